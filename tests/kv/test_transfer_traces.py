"""Serving KV is told as a span below whoever pulls; peers that know no traces get along."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Self

import msgspec
import pytest

from spinney.kv.layout import KVLayout
from spinney.kv.lease import Failure, Handle, HandoverError
from spinney.kv.reshard import Span
from spinney.kv.transfer.connector import PullRequest, Taken, checksum
from spinney.kv.transfer.tcp import TcpConnector, TransferServer
from spinney.kv.transfer.wire import Message, Pull, frame
from spinney.tracing import NoSpan

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

BLOCK = 1000
LAYOUT = KVLayout("m", "float32", 1, 1, BLOCK // 8, 1)
PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
WANTED = PullRequest(Handle("h"), LAYOUT, "prompt", Span(0, 3), trace=PARENT)
HEADER = 12


class Blocks:
    """A source of three known blocks."""

    def __init__(self) -> None:
        self.refuse: HandoverError | None = None
        self.taken: list[PullRequest] = []

    async def take(
        self, request: PullRequest, allocate: Callable[[int], NDArray[np.uint8]]
    ) -> Taken:
        self.taken.append(request)
        if self.refuse is not None:
            raise self.refuse
        data = allocate(3 * BLOCK)
        data[:] = 7
        return Taken(LAYOUT, checksum(data))

    def ended(self, request: PullRequest, num_bytes: int, failure: str | None) -> None:
        """Nothing hangs on it."""


@dataclass
class Told(NoSpan):
    """A span that keeps what it is told, until it ends."""

    parent: str
    attributes: dict[str, Any] = field(default_factory=dict)
    error: str | None = None
    ended: bool = False

    def set(self, attributes: Any) -> None:
        assert not self.ended, "what is told of an ended span is lost"
        self.attributes |= attributes

    def end(self, error: str = "", *, ago_s: float = 0.0) -> None:
        if not self.ended:
            self.ended, self.error = True, error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.end("" if error is None else type(error).__name__)


def spans_of(
    request: PullRequest, source: Blocks | None = None, reader: HandoverError | None = None
) -> list[Told]:
    """Pull *request*; *reader* is what it fails with once it has the bytes."""
    found: list[Told] = []

    def begin(parent: str) -> Told:
        found.append(Told(parent))
        return found[-1]

    async def main() -> None:
        server = TransferServer(source or Blocks(), "127.0.0.1", 0, spans=begin)
        serving = asyncio.create_task(server.serve())
        with contextlib.suppress(HandoverError):
            async with TcpConnector().pull("127.0.0.1", server.port, request):
                if reader is not None:
                    raise reader
        async with asyncio.timeout(5):
            while not all(span.ended for span in found):  # noqa: ASYNC110 - a span tells nobody
                await asyncio.sleep(0.005)
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)

    asyncio.run(main())
    return found


def test_a_pull_is_served_below_the_one_who_pulls() -> None:
    (span,) = spans_of(WANTED)
    assert (span.parent, span.error) == (PARENT, "")
    told = {"spinney.handover.tokens": 3, "spinney.handover.bytes": 3 * BLOCK}
    assert span.attributes == told


def test_a_pull_without_a_trace_has_no_span() -> None:
    source = Blocks()
    assert spans_of(replace(WANTED, trace=""), source) == []
    assert len(source.taken) == 1


def test_a_refusal_fails_the_span_with_its_reason() -> None:
    source = Blocks()
    source.refuse = HandoverError(Failure.EXPIRED, "too late")
    (span,) = spans_of(WANTED, source)
    assert span.error == "lease_expired"


def test_a_reader_that_has_no_use_for_the_bytes_fails_the_span() -> None:
    (span,) = spans_of(WANTED, reader=HandoverError(Failure.CHECKSUM, "damaged"))
    assert span.error == "checksum_mismatch"


class Untraced(msgspec.Struct, tag="pull"):
    """What a peer sends, and reads, that knows no traces."""

    version: int
    handle: str
    layout: KVLayout
    prompt: str
    first: int
    end: int
    host: str
    reads: str
    patient: bool


@pytest.mark.parametrize("trace", ["", PARENT])
def test_a_peer_that_knows_no_traces_reads_a_pull_and_is_read(trace: str) -> None:
    old = Untraced(3, "h", LAYOUT, "p", 0, 3, "", "", patient=False)
    new = Pull(3, "h", LAYOUT, "p", 0, 3, "", "", patient=False, trace=trace)
    assert msgspec.msgpack.decode(frame(new)[HEADER:], type=Untraced) == old
    read = msgspec.msgpack.decode(msgspec.msgpack.encode(old), type=Message)
    assert read == Pull(3, "h", LAYOUT, "p", 0, 3, "", "", patient=False)
    if not trace:
        assert frame(new)[HEADER:] == msgspec.msgpack.encode(old), "nothing is added"
