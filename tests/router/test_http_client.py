"""The client against a server that writes bytes as it is told to."""

from __future__ import annotations

import asyncio

import pytest
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st

from spinney.router.http_client import KEEP_ALIVE_S, BrokenError, ConnectError, HttpClient

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
LENGTH = OK + b"Content-Length: 5\r\nX-Some: Thing\r\n\r\n"


class Server:
    """Answers each request with the next of *answers*: parts to write; None ends the connection."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.requests, self.connections = [], 0

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.base = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        self.client = HttpClient(2.0)
        return self

    async def __aexit__(self, *_):
        self.client.close()
        self._server.close()

    async def _serve(self, reader, writer):
        self.connections += 1
        try:
            while self.answers:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                self.requests.append(head + await reader.readexactly(length))
                for part in self.answers.pop(0):
                    if part is None:
                        return
                    writer.write(part)
                    await writer.drain()
                    await asyncio.sleep(0)
            await reader.read()
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            writer.close()

    async def ask(self, **options):
        connection = await self.client.send("POST", self.base, "/p", {"a": "b"}, b"body", **options)
        try:
            parts = []
            while part := await connection.chunk():
                parts.append(part)
            return connection.status, connection.headers, b"".join(parts)
        finally:
            connection.let_go()


def served(*answers, runner=asyncio.run, **options):
    async def main():
        async with Server(*answers) as server:
            said = [await server.ask(**options) for _ in range(len(answers))]
            return said, server

    return runner(main())


@pytest.mark.parametrize("runner", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def test_answers_are_read_and_the_connection_is_used_again(runner):
    said, server = served(
        [LENGTH, b"he", b"llo"],
        [CHUNKED, b"3\r\nabc\r\n", b"2\r\nde\r\n0\r\n\r\n"],
        [b"HTTP/1.1 100 Continue\r\n\r\n", LENGTH + b"world"],
        [OK + b"Content-Length: 0\r\n\r\n"],
        runner=runner,
    )

    assert [body for _, _, body in said] == [b"hello", b"abcde", b"world", b""]
    assert said[0][1]["x-some"] == "Thing"
    assert server.connections == 1
    assert server.requests[0].startswith(b"POST /p HTTP/1.1\r\nhost: 127.0.0.1:")
    assert server.requests[0].endswith(b"\r\na: b\r\ncontent-length: 4\r\n\r\nbody")


@pytest.mark.parametrize(
    ("answer", "want"),
    [
        ([OK + b"\r\nuntil", b" the end", None], b"until the end"),
        ([OK + b"Connection: close\r\nContent-Length: 2\r\n\r\nok"], b"ok"),
    ],
    ids=["the end of the connection is that of the answer", "the server says it closes"],
)
def test_a_connection_that_ends_with_its_answer_is_not_used_again(answer, want):
    said, server = served(answer, [LENGTH + b"hello"])

    assert [body for _, _, body in said] == [want, b"hello"]
    assert server.connections == 2


@pytest.mark.parametrize(
    "answer",
    [
        [None],
        [b"garbage\r\n\r\n"],
        [LENGTH + b"he", None],
        [CHUNKED + b"5\r\nab", None],
        [CHUNKED + b"5\r\nabcde\r\n", None],
        [OK + b"X: " + b"y" * 100_000 + b"\r\n\r\n"],
        [CHUNKED + b"nonsense\r\n"],
    ],
    ids=["nothing", "no HTTP", "short", "in a chunk", "no last chunk", "long head", "no chunk"],
)
def test_a_broken_answer_is_an_error(answer):
    async def main():
        async with Server(answer, [LENGTH + b"hello"]) as server:
            with pytest.raises(BrokenError) as caught:
                await server.ask()
            assert not caught.value.reused
            assert (await server.ask())[2] == b"hello"
            assert server.connections == 2

    asyncio.run(main())


def test_a_kept_connection_that_ended_is_told_from_a_new_one():
    async def main():
        async with Server([LENGTH + b"hello"], [None], [LENGTH + b"again"]) as server:
            await server.ask()
            with pytest.raises(BrokenError) as caught:
                await server.ask()
            assert caught.value.reused
            assert (await server.ask())[2] == b"again"

    asyncio.run(main())


def test_an_answer_let_go_of_before_its_end_closes_the_connection():
    async def main():
        async with Server([CHUNKED + b"1\r\na\r\n"], [LENGTH + b"hello"]) as server:
            connection = await server.client.send("POST", server.base, "/p", {})
            assert await connection.chunk() == b"a"
            connection.let_go()
            assert (await server.ask())[2] == b"hello"
            assert server.connections == 2

    asyncio.run(main())


def test_one_that_is_asked_for_a_fresh_connection_gets_it_and_old_ones_are_dropped():
    async def main():
        answers = [[LENGTH + b"hello"]] * 4
        async with Server(*answers) as server:
            await server.ask()
            await server.ask(fresh=True)
            assert server.connections == 2
            for idle in server.client._idle.values():
                for connection in idle:
                    connection.idle_since_s -= KEEP_ALIVE_S + 1
            await server.ask()
            assert server.connections == 3

    asyncio.run(main())


def test_nobody_there_is_no_connection():
    async def main():
        async with Server() as server:
            base = server.base
        client = HttpClient(2.0)
        with pytest.raises(ConnectError):
            await client.send("POST", base, "/p", {})
        client.close()

    asyncio.run(main())


def test_more_than_is_taken_waits_at_the_server():
    async def main():
        body = b"x" * (8 << 20)
        head = OK + b"Content-Length: %d\r\n\r\n" % len(body)
        async with Server([head, body]) as server:
            connection = await server.client.send("POST", server.base, "/p", {})
            size = 0
            while part := await connection.chunk():
                assert len(part) < 1 << 20
                size += len(part)
                await asyncio.sleep(0.001)
            connection.let_go()
            assert size == len(body)

    asyncio.run(main())


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 40), max_size=8), st.lists(st.binary(min_size=1, max_size=9)))
def test_wherever_the_bytes_are_cut_the_body_is_the_same(cuts, bodies):
    whole = CHUNKED + b"".join(b"%x\r\n%b\r\n" % (len(b), b) for b in bodies) + b"0\r\n\r\n"
    parts, at = [], 0
    for cut in cuts:
        parts.append(whole[at : at + cut])
        at += cut
    parts.append(whole[at:])

    ((_, _, body),), _ = served([part for part in parts if part])

    assert body == b"".join(bodies)
