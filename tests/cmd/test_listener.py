"""How connections come in: many a turn of the loop, whatever state clients and files are in."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
import ssl
from typing import TYPE_CHECKING, Any

import pytest
import uvicorn
import uvloop

from spinney.clock import SystemClock
from spinney.listener import ACCEPTED_AT_ONCE, Door, ListeningServer, listen
from spinney.local.apiserver.tls import credentials

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DEADLINE_S = 20.0
LOOPS = {"uvloop": uvloop.new_event_loop, "asyncio": asyncio.new_event_loop}


class Guests(asyncio.Protocol):
    """Counts who came in and answers every byte with one."""

    count = 0

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        Guests.count += 1

    def data_received(self, data: bytes) -> None:
        self.transport.write(b"y" * len(data))


@pytest.fixture(autouse=True)
def nobody_yet() -> Iterator[None]:
    Guests.count = 0
    return


@pytest.fixture(params=sorted(LOOPS))
def runner(request: pytest.FixtureRequest) -> Iterator[asyncio.Runner]:
    with asyncio.Runner(loop_factory=LOOPS[request.param]) as made:
        yield made


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with listen("127.0.0.1", 0) as made:
        yield made


@contextlib.contextmanager
def connected(listener: socket.socket, count: int) -> Iterator[None]:
    with contextlib.ExitStack() as open_ones:
        for _ in range(count):
            open_ones.enter_context(socket.create_connection(listener.getsockname(), DEADLINE_S))
        yield


async def turns_until(count: int) -> int:
    turns = 0
    async with asyncio.timeout(DEADLINE_S):
        while Guests.count < count:
            await asyncio.sleep(0)
            turns += 1
    return turns


def test_all_who_wait_are_accepted_within_a_few_turns_of_the_loop(
    runner: asyncio.Runner, listener: socket.socket
) -> None:
    async def run() -> int:
        door = Door(listener, Guests)
        door.open()
        turns = await turns_until(200)
        await door.close()
        return turns

    with connected(listener, 200):
        assert runner.run(run()) < 20


def test_more_than_a_turn_takes_are_accepted_in_the_next(
    runner: asyncio.Runner, listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ACCEPTED_AT_ONCE > 8
    monkeypatch.setattr("spinney.listener.ACCEPTED_AT_ONCE", 8)

    async def run() -> None:
        door = Door(listener, Guests)
        door.open()
        await turns_until(20)
        await door.close()

    with connected(listener, 20):
        runner.run(run())
    assert Guests.count == 20


def test_a_closed_door_accepts_nobody_and_keeps_whoever_is_in(
    runner: asyncio.Runner, listener: socket.socket
) -> None:
    async def run() -> None:
        door = Door(listener, Guests)
        door.open()
        reader, writer = await asyncio.open_connection(*listener.getsockname())
        await turns_until(1)
        await door.close()
        with connected(listener, 1):
            writer.write(b"x")
            assert await asyncio.wait_for(reader.read(1), DEADLINE_S) == b"y"
            for _ in range(10):
                await asyncio.sleep(0.001)
            assert Guests.count == 1
        writer.close()

    runner.run(run())


async def complaint(capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(int(DEADLINE_S / 0.001)):
        if "cannot accept" in capsys.readouterr().err:
            return
        await asyncio.sleep(0.001)
    pytest.fail("nobody was told that nothing can be accepted")


def test_when_files_run_out_the_loop_rests_and_accepts_again_when_there_are_some(
    runner: asyncio.Runner, listener: socket.socket, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr("spinney.listener.REST_S", 0.05)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)

    async def run() -> None:
        door = Door(listener, Guests)
        with open("/dev/null", "rb") as lowest:
            free = lowest.fileno()
        resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
        try:
            door.open()
            await complaint(capsys)
            assert Guests.count == 0
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        await turns_until(1)
        await door.close()

    with connected(listener, 1):
        runner.run(asyncio.wait_for(run(), DEADLINE_S))


async def greet(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"hello"})


def encrypted(folder: Path) -> tuple[ListeningServer, ssl.SSLContext]:
    found = credentials(folder, SystemClock().now())
    config = uvicorn.Config(
        greet, loop="none", lifespan="off", log_config=None,
        ssl_certfile=found.certificate, ssl_keyfile=found.key,
    )  # fmt: skip
    return ListeningServer(config), ssl.create_default_context(cafile=found.authority)


async def asked(host: str, port: int, trust: ssl.SSLContext) -> bytes:
    reader, writer = await asyncio.open_connection(host, port, ssl=trust)
    writer.write(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
    answer = await asyncio.wait_for(reader.read(), DEADLINE_S)
    writer.close()
    return answer


def test_a_client_that_breaks_off_its_handshake_harms_nobody(
    runner: asyncio.Runner, listener: socket.socket, tmp_path: Path
) -> None:
    server, trust = encrypted(tmp_path)

    async def run() -> None:
        loop = asyncio.get_running_loop()
        problems: list[Any] = []
        loop.set_exception_handler(lambda _, context: problems.append(context))
        serving = asyncio.create_task(server.serve_until_stopped(listener))
        host, port = listener.getsockname()
        _, rude = await asyncio.open_connection(host, port)
        rude.write(b"this is not TLS\r\n\r\n")
        _, hasty = await asyncio.open_connection(host, port)
        hasty.close()
        assert b"hello" in await asked(host, port, trust)
        rude.close()
        server.stop()
        await asyncio.wait_for(serving, DEADLINE_S)
        assert problems == []

    runner.run(run())


def test_a_server_ends_while_a_client_dawdles_over_its_handshake(
    runner: asyncio.Runner, listener: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spinney.listener.LAST_GREETING_S", 0.05)
    server, trust = encrypted(tmp_path)

    async def run() -> None:
        serving = asyncio.create_task(server.serve_until_stopped(listener))
        host, port = listener.getsockname()
        reader, writer = await asyncio.open_connection(host, port)
        await asked(host, port, trust)  # it came later, so the first is in, too
        server.stop()
        await serving
        assert await reader.read() == b""
        writer.close()

    runner.run(asyncio.wait_for(run(), DEADLINE_S))
