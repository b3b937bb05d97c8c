"""Asking containers whether they are well: HTTP, TCP, or a command of theirs.

One question, one answer: how often, and how many answers make a verdict, is decided by
`spinney.local.nodeagent.lifecycle`.
"""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from spinney.local.nodeagent.process import StartError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from spinney.api.core import Container, HTTPGetAction, IntOrString, Probe
    from spinney.local.nodeagent.process import ProcessRuntime, ProcessSpec, Stream

MAX_OUTPUT_BYTES = 10 * 1024
"""Of a probe's command; the rest is not kept."""
MAX_MESSAGE = 256
TIMED_OUT = -1
"""Stands for the exit code of a command that did not end in time."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """An answer, and its reason for people."""

    ok: bool
    message: str = ""


class Network(Protocol):
    """Asks over the network; raises OSError when nobody answers."""

    async def http_status(
        self, host: str, port: int, path: str, headers: Mapping[str, str], *, tls: bool
    ) -> int:
        """Return the status code of a GET."""
        ...

    async def connect(self, host: str, port: int) -> None:
        """Open a connection and close it."""
        ...


class SocketNetwork:
    """The real network."""

    async def http_status(
        self, host: str, port: int, path: str, headers: Mapping[str, str], *, tls: bool
    ) -> int:
        """Return the status code of a GET, without reading the body."""
        context = _unverified() if tls else None
        reader, writer = await asyncio.open_connection(host, port, ssl=context)
        try:
            fields = {"Host": f"{host}:{port}", "User-Agent": "kube-probe/spinney"} | {
                name.title(): value for name, value in headers.items()
            }
            head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
            writer.write(f"GET {path} HTTP/1.1\r\n{head}Connection: close\r\n\r\n".encode())
            line = await reader.readline()
        finally:
            writer.transport.abort()
        parts = line.split()
        if len(parts) < 2 or not parts[1].isdigit():
            raise OSError(f"no HTTP status line, but {line[:80]!r}")
        return int(parts[1])

    async def connect(self, host: str, port: int) -> None:
        """Open a connection and close it."""
        _, writer = await asyncio.open_connection(host, port)
        writer.transport.abort()


async def ask(
    probe: Probe,
    container: Container,
    pod_ip: str,
    program: ProcessSpec,
    network: Network,
    processes: ProcessRuntime,
) -> Outcome:
    """Put one question; *program* is how the container itself runs. Never raises for an answer."""
    timeout_s = max(1, probe.timeout_seconds)
    if probe.exec is not None:
        code, output = await run_command(processes, program, probe.exec.command, timeout_s)
        if code == TIMED_OUT:
            return Outcome(False, f"command timed out after {timeout_s} s")
        return Outcome(code == 0, "" if code == 0 else f"exit code {code}: {output}"[:MAX_MESSAGE])
    try:
        async with asyncio.timeout(timeout_s):
            return await _over_network(probe, container, pod_ip, network)
    except TimeoutError:
        return Outcome(False, f"no answer within {timeout_s} s")
    except (OSError, ValueError) as error:
        return Outcome(False, str(error)[:MAX_MESSAGE])


async def run_command(
    processes: ProcessRuntime, program: ProcessSpec, argv: Sequence[str], timeout_s: float
) -> tuple[int, str]:
    """Run a command as *program*'s neighbour; return exit code (or TIMED_OUT) and output."""
    output = bytearray()

    def keep(_: Stream, data: bytes) -> None:
        output.extend(data[: MAX_OUTPUT_BYTES - len(output)])

    try:
        process = processes.start(replace(program, argv=tuple(argv), sweep=False), keep)
    except StartError as error:
        return 127, str(error)
    try:
        async with asyncio.timeout(timeout_s):
            ended = await process.wait()
    except TimeoutError:
        return TIMED_OUT, output.decode("utf-8", "replace")
    return ended.code, output.decode("utf-8", "replace").strip()


def port_number(port: IntOrString, container: Container) -> int:
    """Return a port by number or by its name in the container; raise ValueError."""
    if isinstance(port, int) or port.isdigit():
        return int(port)
    for known in container.ports:
        if known.name == port:
            return known.container_port
    names = ", ".join(p.name for p in container.ports if p.name) or "none"
    raise ValueError(f"container {container.name!r} has no port named {port!r}; named are {names}")


async def _over_network(
    probe: Probe, container: Container, pod_ip: str, network: Network
) -> Outcome:
    if probe.http_get is not None:
        return await _http(probe.http_get, container, pod_ip, network)
    if probe.tcp_socket is not None:
        port = port_number(probe.tcp_socket.port, container)
        await network.connect(probe.tcp_socket.host or pod_ip, port)
        return Outcome(True)
    return Outcome(False, "the probe says neither httpGet nor tcpSocket nor exec")


async def _http(
    action: HTTPGetAction, container: Container, pod_ip: str, network: Network
) -> Outcome:
    port = port_number(action.port, container)
    headers = {h.get("name", ""): h.get("value", "") for h in action.http_headers}
    path = action.path if action.path.startswith("/") else f"/{action.path}"
    tls = action.scheme.upper() == "HTTPS"
    status = await network.http_status(action.host or pod_ip, port, path, headers, tls=tls)
    ok = 200 <= status < 400
    return Outcome(ok, "" if ok else f"HTTP probe failed with statuscode: {status}")


def _unverified() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
