"""An embedded API server that tests talk to in plain calls, on a clock they set."""

from __future__ import annotations

import asyncio
import random
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
