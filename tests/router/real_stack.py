"""A router and workers as processes, for tests of what only processes show."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import socket
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import aiohttp

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping
    from pathlib import Path

START_S = 30.0
MODEL = "demo"


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@dataclass
class Program:
    """One process and what it logs."""

    name: str
    port: int
    process: asyncio.subprocess.Process
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def lines(self, event: str) -> list[dict[str, Any]]:
        """Return the log lines of *event*."""
        said = self.log.read_text().splitlines(keepends=True)
        whole = (line for line in said if line[-1] == "\n")
        read = [json.loads(line) for line in whole if line[0] == "{"]
        return [line for line in read if line.get("event") == event]


@dataclass
class Stack:
    """All processes, by name; the router is ``router``."""

    folder: Path
    session: aiohttp.ClientSession
    programs: dict[str, Program] = field(default_factory=dict)

    @property
    def router(self) -> Program:
        return self.programs["router"]

    @property
    def url(self) -> str:
        return self.router.url

    async def ask(
        self, body: dict[str, Any], path: str = "/v1/chat/completions", **how: Any
    ) -> Any:
        async with self.session.post(self.url + path, json={"model": MODEL} | body, **how) as said:
            text = await said.text()
            assert said.status == 200, text
            return text if body.get("stream") else json.loads(text)

    async def samples(self, name: str = "router") -> dict[str, float]:
        """Return the metrics of a program, by name and labels as they are written."""
        async with self.session.get(self.programs[name].url + "/metrics") as said:
            lines = (await said.text()).splitlines()
        found = [re.fullmatch(r"(\S+) (\S+)", line) for line in lines if not line.startswith("#")]
        return {match.group(1): float(match.group(2)) for match in found if match}

    async def start(
        self, name: str, port: int, *words: str, env: Mapping[str, str] | None = None
    ) -> Program:
        log = self.folder / f"{name}.log"
        with log.open("wb") as out:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "spinney.cmd.main", *words, "--port", str(port)),
                "--log-json",
                stdout=out,
                stderr=out,
                env={**os.environ, "OPENBLAS_NUM_THREADS": "1", **(env or {})},
            )
        self.programs[name] = Program(name, port, process, log)
        return self.programs[name]

    async def healthy(self, program: Program) -> None:
        async with asyncio.timeout(START_S):
            while True:
                assert program.process.returncode is None, program.log.read_text()
                with contextlib.suppress(aiohttp.ClientError):
                    async with self.session.get(program.url + "/health") as response:
                        if response.status == 200:
                            return
                await asyncio.sleep(0.05)

    async def end(self, kill: bool = True) -> None:
        for program in reversed(self.programs.values()):
            if program.process.returncode is None:
                program.process.kill() if kill else program.process.terminate()
            await program.process.wait()


@contextlib.asynccontextmanager
async def real_stack(
    folder: Path,
    roles: str,
    *,
    kind: str = "mock",
    flags: tuple[str, ...] = (),
    router_flags: tuple[str, ...] = (),
    env: Mapping[str, str] | None = None,
) -> AsyncIterator[Stack]:
    """Run workers named p0, d0 or b0, as *roles* says, with a router before them."""
    words = {"p": "prefill", "d": "decode", "b": "both"}
    async with aiohttp.ClientSession() as session:
        stack = Stack(folder, session)
        try:
            named = []
            for letter in roles.split():
                name = f"{letter}{sum(each.startswith(letter) for each in stack.programs)}"
                pace = ("--profile", "demo-cpu") if kind == "mock" else ()
                role = ("--role", words[letter], "--engine-id", name)
                port = free_port()
                await stack.start(name, port, kind, *role, *pace, *flags, env=env)
                named += ["--worker", f"{words[letter]}:{name}=http://127.0.0.1:{port}"]
            for program in tuple(stack.programs.values()):
                await stack.healthy(program)
            front = ("router", *named, "--seed", "1", *router_flags)
            await stack.healthy(await stack.start("router", free_port(), *front, env=env))
            yield stack
        finally:
            await stack.end()


async def until(true: Callable[[], Any], what: str, most_s: float = 15.0) -> None:
    """Wait until *true* of what other processes do."""
    try:
        async with asyncio.timeout(most_s):
            while not true():  # noqa: ASYNC110 - it is other processes that are waited for
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"did not come true: {what}") from None
