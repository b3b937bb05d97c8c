"""An embedded API server that tests talk to in plain calls, on a clock they set."""

from __future__ import annotations

import asyncio
import random
import ssl
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from spinney.ids import RandomIds
from spinney.kube.transport import JSON, ApiRequest, ApiResponse
from spinney.local.apiserver.server import ApiServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

START = 1_800_000_000.0


class HandClock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.at = START

    def now(self) -> float:
        return self.at


class Api:
    """Sends requests to a server, one after the other."""

    def __init__(self, **options: Any) -> None:
        self.clock = HandClock()
        self.runner = asyncio.Runner()
        self.options = options
        self.server = self.start()

    def start(self) -> ApiServer:
        """Start a server in place of the one there was."""
        ids = RandomIds(random.Random(1))
        self.server = ApiServer(self.clock, ids, **self.options)
        return self.server

    def send(self, request: ApiRequest) -> ApiResponse:
        return self.runner.run(self.server.send(request))

    def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        content_type: str = JSON,
        accept: str = JSON,
        **query: str,
    ) -> tuple[int, Any]:
        """Return the status and the decoded body of the reply."""
        data = b"" if body is None else msgspec.json.encode(body)
        response = self.send(ApiRequest(method, path, query, data, content_type, accept))
        return response.status, msgspec.json.decode(response.body) if response.body else None

    def ok(self, method: str, path: str, body: Any = None, **more: Any) -> Any:
        """Return the body of a reply that has to be a success."""
        status, reply = self.call(method, path, body, **more)
        assert status < 300, reply
        return reply

    def settle(self) -> None:
        """Let the server finish the deletions it can."""

        async def wait() -> None:
            for _ in range(1000):
                await asyncio.sleep(0)
                if self.server.settled:
                    return
            raise AssertionError("deletions do not settle")

        self.runner.run(wait())

    def watch(self, path: str, count: int, **query: str) -> list[tuple[str, Any]]:
        """Return the first *count* events of a watch; an event that does not come is an error."""

        async def read() -> list[tuple[str, Any]]:
            request = ApiRequest("GET", path, {"watch": "true"} | query)
            response = await self.server.send(request)
            assert response.stream is not None, response.body
            events = []
            async with asyncio.timeout(5):
                while len(events) < count:
                    event = msgspec.json.decode(await anext(response.stream))
                    events.append((event["type"], event["object"]))
            await response.stream.aclose()  # type: ignore[attr-defined]
            return events

        return self.runner.run(read())

    def close(self) -> None:
        self.runner.run(self.server.close())
        self.runner.close()


@pytest.fixture
def api() -> Iterator[Api]:
    server = Api()
    yield server
    server.close()


@pytest.fixture
def make_api() -> Iterator[Callable[..., Api]]:
    made: list[Api] = []

    def make(**options: Any) -> Api:
        made.append(Api(**options))
        return made[-1]

    yield make
    for server in made:
        server.close()


class ServerProcess:
    """An API server in a process of its own, on the state in *directory*."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        program = Path(__file__).with_name("apiserver_process.py")
        self.process = subprocess.Popen(
            [sys.executable, str(program), str(directory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().strip()

    @property
    def kubeconfig(self) -> Path:
        return self.directory / "kubeconfig"

    @property
    def token(self) -> str:
        return (self.directory / "pki/token").read_text().strip()

    def trust(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.directory / "pki/ca.crt"))

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate(timeout=10)

    def stop(self) -> tuple[int, str]:
        """Ask it to stop; return its exit code and what it said."""
        _, said = self.process.communicate(timeout=15)
        return self.process.returncode, said


@pytest.fixture(scope="session")
def start_server() -> Iterator[Callable[[Path], ServerProcess]]:
    started: list[ServerProcess] = []

    def start(directory: Path) -> ServerProcess:
        started.append(ServerProcess(directory))
        return started[-1]

    yield start
    for server in started:
        if server.process.poll() is None:
            server.kill()
