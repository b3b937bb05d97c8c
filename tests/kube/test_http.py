"""The HTTP transport over real sockets: who we are, what comes back, how it breaks."""

from __future__ import annotations

import asyncio
import base64
import datetime
import ipaddress
import json
import ssl
import stat
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from spinney.api.core import ConfigMap
from spinney.errors import BadInputError
from spinney.kube import http
from spinney.kube.client import KubeClient
from spinney.kube.errors import BusyError, ForbiddenError
from spinney.kube.http import HttpTransport
from spinney.kube.transport import ApiRequest, TransportError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    Script = Callable[["Exchange"], Awaitable[None]]

MAP = b'{"metadata":{"name":"m","namespace":"n","resourceVersion":"5"},"data":{"a":"1"}}'


class Exchange:
    """One request as the server got it, and the means to answer."""

    def __init__(self, line: str, headers: dict[str, str], body: bytes, writer: Any) -> None:
        self.line = line
        self.headers = headers
        self.body = body
        self._writer = writer

    async def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        lines = [f"HTTP/1.1 {status} Said", f"Content-Length: {len(body)}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        await self.send("\r\n".join(lines).encode() + b"\r\n\r\n" + body)

    async def begin_stream(self) -> None:
        await self.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")

    async def chunk(self, data: bytes) -> None:
        await self.send(b"%x\r\n%s\r\n" % (len(data), data))

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    def reset(self) -> None:
        self._writer.transport.abort()


class Server:
    """Answers each request by the next script; the last one goes on for ever."""

    def __init__(self, *scripts: Script, tls: ssl.SSLContext | None = None) -> None:
        self.scripts = list(scripts)
        self.tls = tls
        self.seen: list[Exchange] = []

    async def __aenter__(self) -> Server:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self.tls)
        self._tasks: set[asyncio.Task[None]] = set()
        port = self._server.sockets[0].getsockname()[1]
        self.url = f"{'https' if self.tls else 'http'}://127.0.0.1:{port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                line, *rest = head.decode().strip().split("\r\n")
                headers = {k.lower(): v for k, v in (item.split(": ", 1) for item in rest)}
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                exchange = Exchange(line, headers, body, writer)
                self.seen.append(exchange)
                script = self.scripts.pop(0) if len(self.scripts) > 1 else self.scripts[0]
                await script(exchange)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


def says(status: int, body: bytes = MAP, **headers: str) -> Script:
    async def script(exchange: Exchange) -> None:
        await exchange.answer(status, body, **headers)

    return script


def run(main: Awaitable[None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(20):
            await main

    asyncio.run(bounded())


def kubeconfig(path: Path, server: str, user: dict[str, Any], **cluster: Any) -> Path:
    path.write_text(
        yaml.safe_dump(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "first",
                "clusters": [{"name": "c", "cluster": {"server": server, **cluster}}],
                "users": [{"name": "u", "user": user}],
                "contexts": [
                    {"name": "first", "context": {"cluster": "c", "user": "u"}},
                    {
                        "name": "second",
                        "context": {"cluster": "c", "user": "u", "namespace": "other"},
                    },
                ],
            }
        )
    )
    return path


WATCH = ApiRequest("GET", "/api/v1/configmaps", {"watch": "true", "resourceVersion": "1"})


async def lines_of(transport: HttpTransport, request: ApiRequest = WATCH) -> list[bytes]:
    response = await transport.send(request)
    assert response.stream is not None
    return [line async for line in response.stream]


# Requests and replies


def test_a_request_carries_its_path_query_body_and_token(tmp_path: Path) -> None:
    async def main() -> None:
        async with Server(says(200)) as server:
            path = kubeconfig(tmp_path / "k", server.url, {"token": "secret"})
            transport = HttpTransport.from_kubeconfig(path)
            client = KubeClient(transport, field_manager="me")
            found = await client.patch(ConfigMap, "m", {"data": {"a": "ü"}}, "n")
            await client.list(ConfigMap, labels="a in (b,c),d!=e")
            await transport.close()
        assert found.data == {"a": "1"}
        patch, listed = server.seen
        assert patch.line == "PATCH /api/v1/namespaces/n/configmaps/m?fieldManager=me HTTP/1.1"
        assert patch.headers["authorization"] == "Bearer secret"
        assert patch.headers["content-type"] == "application/merge-patch+json"
        assert json.loads(patch.body) == {"data": {"a": "ü"}}
        query = "labelSelector=a+in+(b,c),d!%3De"
        assert query in listed.line.replace("%2C", ",").replace("%28", "(").replace("%29", ")")

    run(main())


def test_a_refusal_keeps_its_type_and_when_to_come_back() -> None:
    async def main() -> None:
        async with Server(says(429, b"slow down", Retry_After="7")) as server:
            transport = HttpTransport(server.url)
            with pytest.raises(BusyError) as caught:
                await KubeClient(transport).get(ConfigMap, "m", "n")
            await transport.close()
        assert caught.value.retry_after_s == 7

    run(main())


def test_a_watch_is_split_into_lines_however_it_arrives() -> None:
    big = b'{"type":"ADDED","object":"' + b"x" * 300_000 + b'"}'

    async def script(exchange: Exchange) -> None:
        await exchange.begin_stream()
        await exchange.chunk(b"one\ntwo\nth")
        await asyncio.sleep(0.01)
        await exchange.chunk(b"ree\n\n")
        for start in range(0, len(big), 50_000):
            await exchange.chunk(big[start : start + 50_000])
        await exchange.chunk(b"\nlast")
        await exchange.chunk(b"")

    async def main() -> None:
        async with Server(script) as server:
            transport = HttpTransport(server.url)
            lines = await lines_of(transport)
            await transport.close()
        assert lines == [b"one", b"two", b"three", big, b"last"]

    run(main())


def test_a_followed_log_comes_as_it_grows() -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.begin_stream()
        await exchange.chunk(b"half a li")
        await asyncio.sleep(0.05)
        await exchange.chunk(b"ne\n")
        await exchange.chunk(b"")

    async def main() -> None:
        async with Server(script) as server:
            transport = HttpTransport(server.url)
            logs = KubeClient(transport).logs("p", "n", follow=True)
            assert [chunk async for chunk in logs] == [b"half a li", b"ne\n"]
            await transport.close()

    run(main())


# Breaking


def test_nobody_listening_is_a_transport_error() -> None:
    async def main() -> None:
        async with Server(says(200)) as server:
            url = server.url
        transport = HttpTransport(url)
        with pytest.raises(TransportError, match=r"127\.0\.0\.1"):
            await transport.send(ApiRequest("GET", "/version"))
        await transport.close()
        with pytest.raises(TransportError, match="closed"):
            await transport.send(ApiRequest("GET", "/version"))

    run(main())


def test_a_reply_that_breaks_off_is_a_transport_error() -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
        exchange.reset()

    async def main() -> None:
        async with Server(script) as server:
            transport = HttpTransport(server.url)
            with pytest.raises(TransportError):
                await transport.send(ApiRequest("POST", "/x", body=b"{}"))
            await transport.close()

    run(main())


def test_a_watch_that_breaks_gives_what_came_and_then_the_error() -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.begin_stream()
        await exchange.chunk(b"one\ntwo\nhal")
        await asyncio.sleep(0.05)
        exchange.reset()

    async def main() -> None:
        async with Server(script) as server:
            transport = HttpTransport(server.url)
            response = await transport.send(WATCH)
            assert response.stream is not None
            seen: list[bytes] = []
            with pytest.raises(TransportError, match="broke"):
                await drain(response.stream, seen)
            await transport.close()
        assert seen == [b"one", b"two"]

    run(main())


async def drain(stream: Any, seen: list[bytes]) -> None:
    async for line in stream:
        seen.append(line)  # noqa: PERF401  # What came before an error has to be kept.


async def silent(exchange: Exchange) -> None:
    await exchange.begin_stream()
    await exchange.chunk(b"one\n")
    await asyncio.sleep(60)


def test_a_watch_that_falls_silent_counts_as_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "WATCH_IDLE_TIMEOUT_S", 0.1)

    async def main() -> None:
        async with Server(silent) as server:
            transport = HttpTransport(server.url)
            response = await transport.send(WATCH)
            seen: list[bytes] = []
            with pytest.raises(TransportError):
                await drain(response.stream, seen)
            assert seen == [b"one"]
            await transport.close()

    run(main())


def test_closing_the_transport_ends_its_watches() -> None:
    async def main() -> None:
        async with Server(silent) as server:
            transport = HttpTransport(server.url)
            response = await transport.send(WATCH)
            assert response.stream is not None
            assert await anext(response.stream) == b"one"
            reading = asyncio.create_task(drain(response.stream, []))
            await asyncio.sleep(0.02)
            await transport.close()
            with pytest.raises(TransportError, match="closed by this side"):
                await reading

    run(main())


def test_an_event_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "MAX_LINE_BYTES", 1000)

    async def script(exchange: Exchange) -> None:
        await exchange.begin_stream()
        for _ in range(20):
            await exchange.chunk(b"x" * 100)

    async def main() -> None:
        async with Server(script) as server:
            transport = HttpTransport(server.url)
            with pytest.raises(TransportError, match="over 1000 bytes"):
                await lines_of(transport)
            await transport.close()

    run(main())


# Who we are


def test_a_token_file_is_read_again_when_its_token_is_refused(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("old\n")

    async def refuse(exchange: Exchange) -> None:
        token.write_text("new\n")
        await exchange.answer(401)

    async def main() -> None:
        async with Server(says(200), refuse, says(200)) as server:
            path = kubeconfig(tmp_path / "k", server.url, {"tokenFile": "token"})
            transport = HttpTransport.from_kubeconfig(path)
            for _ in range(3):
                assert (await transport.send(ApiRequest("GET", "/x"))).status == 200
            await transport.close()
        tokens = [exchange.headers["authorization"] for exchange in server.seen]
        assert tokens == ["Bearer old", "Bearer old", "Bearer new", "Bearer new"]

    run(main())


def test_a_refusal_that_stays_comes_out(tmp_path: Path) -> None:
    async def main() -> None:
        async with Server(says(401, b"{}")) as server:
            path = kubeconfig(tmp_path / "k", server.url, {"token": "wrong"})
            transport = HttpTransport.from_kubeconfig(path)
            with pytest.raises(ForbiddenError):
                await KubeClient(transport).get(ConfigMap, "m", "n")
            await transport.close()
        assert len(server.seen) == 2

    run(main())


@pytest.mark.parametrize("version", ["v1", "v1beta1"])
def test_an_exec_plugin_is_run_once_and_again_when_its_token_is_refused(
    tmp_path: Path, version: str
) -> None:
    plugin = tmp_path / "plugin"
    plugin.write_text(
        "#!/bin/sh\n"
        f'echo run >> "{tmp_path}/runs"\n'
        'test -n "$KUBERNETES_EXEC_INFO" || exit 3\n'
        f'n=$(wc -l < "{tmp_path}/runs")\n'
        'echo "{\\"kind\\": \\"ExecCredential\\", \\"status\\": {\\"token\\": \\"$PRE$n\\"}}"\n'
    )
    plugin.chmod(plugin.stat().st_mode | stat.S_IXUSR)
    user = {
        "exec": {
            "apiVersion": f"client.authentication.k8s.io/{version}",
            "command": str(plugin),
            "env": [{"name": "PRE", "value": "t"}],
        }
    }

    async def main() -> None:
        async with Server(says(200), says(200), says(401), says(200)) as server:
            path = kubeconfig(tmp_path / "k", server.url, user)
            transport = HttpTransport.from_kubeconfig(path)
            await asyncio.gather(*(transport.send(ApiRequest("GET", "/x")) for _ in range(2)))
            await transport.send(ApiRequest("GET", "/x"))
            await transport.close()
        tokens = [exchange.headers["authorization"] for exchange in server.seen]
        assert tokens == [f"Bearer {t}" for t in ("t1", "t1", "t1", "t2")]

    run(main())


@pytest.mark.parametrize(
    ("command", "says_what"),
    [
        pytest.param(["/no/such/plugin"], "cannot run", id="not there"),
        pytest.param(["/bin/sh", "-c", "exit 4"], "exit code 4", id="fails"),
        pytest.param(["/bin/sh", "-c", "echo hello"], "no ExecCredential", id="says nonsense"),
    ],
)
def test_an_exec_plugin_that_fails_says_so(
    tmp_path: Path, command: list[str], says_what: str
) -> None:
    version = "client.authentication.k8s.io/v1"
    user = {"exec": {"apiVersion": version, "command": command[0], "args": command[1:]}}

    async def main() -> None:
        path = kubeconfig(tmp_path / "k", "http://127.0.0.1:9", user)
        transport = HttpTransport.from_kubeconfig(path)
        with pytest.raises(BadInputError, match=says_what):
            await transport.send(ApiRequest("GET", "/x"))
        await transport.close()

    run(main())


def certificates(folder: Path) -> tuple[Path, Path]:
    """Make a certificate that is its own authority, good for servers and clients."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    start = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(start)
        .not_valid_after(start + datetime.timedelta(days=36500))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    certificate, private = folder / "tls.crt", folder / "tls.key"
    certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return certificate, private


def test_a_client_certificate_opens_a_server_that_wants_one(tmp_path: Path) -> None:
    certificate, key = certificates(tmp_path)
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=certificate)
    tls.load_cert_chain(certificate, key)
    tls.verify_mode = ssl.CERT_REQUIRED
    encoded = {
        f"client-{what}-data": base64.b64encode(path.read_bytes()).decode()
        for what, path in (("certificate", certificate), ("key", key))
    }

    async def main() -> None:
        async with Server(says(200), tls=tls) as server:
            authority = {"certificate-authority": "tls.crt"}
            for user in (encoded, {"client-certificate": "tls.crt", "client-key": "tls.key"}):
                path = kubeconfig(tmp_path / "k", server.url, user, **authority)
                transport = HttpTransport.from_kubeconfig(path)
                assert (await transport.send(ApiRequest("GET", "/x"))).status == 200
                await transport.close()
            bare = HttpTransport.from_kubeconfig(
                kubeconfig(tmp_path / "k", server.url, {}, **authority)
            )
            with pytest.raises(TransportError):
                await bare.send(ApiRequest("GET", "/x"))
            await bare.close()

    run(main())


def test_a_server_of_an_unknown_authority_is_not_talked_to(tmp_path: Path) -> None:
    certificate, key = certificates(tmp_path)
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(certificate, key)

    async def main() -> None:
        async with Server(says(200), tls=tls) as server:
            strict = HttpTransport.from_kubeconfig(kubeconfig(tmp_path / "k", server.url, {}))
            with pytest.raises(TransportError, match="certificate"):
                await strict.send(ApiRequest("GET", "/x"))
            await strict.close()
            insecure = {"insecure-skip-tls-verify": True}
            path = kubeconfig(tmp_path / "k", server.url, {}, **insecure)
            lax = HttpTransport.from_kubeconfig(path)
            assert (await lax.send(ApiRequest("GET", "/x"))).status == 200
            await lax.close()
        assert len(server.seen) == 1

    run(main())


# Which cluster


def test_a_context_is_chosen_by_name(tmp_path: Path) -> None:
    path = kubeconfig(tmp_path / "k", "http://127.0.0.1:9", {})
    assert HttpTransport.from_kubeconfig(path).namespace == "default"
    assert HttpTransport.from_kubeconfig(path, "second").namespace == "other"
    with pytest.raises(BadInputError, match="'third' not found"):
        HttpTransport.from_kubeconfig(path, "third")


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("a: [", id="no YAML"),
        pytest.param("just words", id="no map"),
        pytest.param("", id="empty"),
        pytest.param("{clusters: [], contexts: [], users: []}", id="no context"),
        pytest.param(
            "{current-context: a, clusters: [], users: [], "
            "contexts: [{name: a, context: {cluster: gone}}]}",
            id="no cluster",
        ),
        pytest.param(
            "{current-context: a, clusters: [{name: c, cluster: {server: 'https://127.0.0.1:1', "
            "certificate-authority: gone.crt}}], users: [], "
            "contexts: [{name: a, context: {cluster: c}}]}",
            id="no authority file",
        ),
    ],
)
def test_a_broken_kubeconfig_is_bad_input_that_names_the_file(tmp_path: Path, text: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(BadInputError, match=r"broken\.yaml"):
        HttpTransport.from_kubeconfig(path)


def test_the_environment_names_the_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    account = tmp_path / "account"
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("KUBECONFIG", raising=False)
    with pytest.raises(BadInputError, match="set KUBECONFIG"):
        HttpTransport.from_environment(str(account))

    (tmp_path / ".kube").mkdir()
    kubeconfig(tmp_path / ".kube" / "config", "http://home:1", {})
    assert HttpTransport.from_environment(str(account)).server == "http://home:1"

    account.mkdir()
    (account / "token").write_text("t")
    (account / "namespace").write_text("inside")
    certificate, _ = certificates(tmp_path)
    (account / "ca.crt").write_bytes(certificate.read_bytes())
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    inside = HttpTransport.from_environment(str(account))
    assert (inside.server, inside.namespace) == ("https://10.0.0.1:443", "inside")

    named = kubeconfig(tmp_path / "named", "http://named:1", {})
    monkeypatch.setenv("KUBECONFIG", f"{tmp_path / 'gone'}:{named}")
    assert HttpTransport.from_environment(str(account)).server == "http://named:1"
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "gone"))
    with pytest.raises(BadInputError, match="gone"):
        HttpTransport.from_environment(str(account))
