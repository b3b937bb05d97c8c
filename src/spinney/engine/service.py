"""The engine as a running service: one loop that steps, pulls that come and go, leases that end.

Everything that decides is in `spinney.engine.core` and runs in the loop; only forward passes and
copies of KV run in the worker thread. Invariants: whoever reads a stream is told its end, whatever
happens; a failure of the executor ends the service, visibly; nothing is left after `close`.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from spinney.engine.rendezvous import PATIENCE_S, Rooms, RoomTakenError, is_room
from spinney.engine.request import DrainingError, QueueFullError
from spinney.engine.sequence import Handover, Outcome
from spinney.kv.block_hash import prompt_digest
from spinney.kv.events import to_wire
from spinney.kv.lease import Failure, HandoverError
from spinney.kv.reshard import Span, reshard
from spinney.kv.transfer.connector import PullRequest, Taken, check_compatible, checksum
from spinney.log import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from collections.abc import Sequence as Items

    from spinney.clock import Clock
    from spinney.engine.core import EngineCore, StepWork
    from spinney.engine.engine_metrics import EngineMetrics
    from spinney.engine.executor import ByteArray, Executor
    from spinney.engine.request import GenerateRequest, RemotePrefill
    from spinney.engine.sampling import Sampled
    from spinney.engine.sequence import Sequence, Update
    from spinney.engine.worker_thread import Turns
    from spinney.kv.block_pool import BlockId
    from spinney.kv.event_stream import EventSink
    from spinney.kv.lease import Handle
    from spinney.kv.transfer.connector import Connector, Pulled

DRAIN_POLL_S = 0.02
"""How often a draining engine looks whether it is done."""
DECLINE_S = 0.5
"""How long a prefill worker may take to hear that its blocks are not wanted."""
DECLINERS = 4
"""Prefill workers told at one time that blocks are not wanted any more."""
MAX_UNWANTED = 1024
"""Hand-overs whose prefill workers are still to be told; those beyond wait for their deadline."""
LEASE_POLL_S = 0.25
"""An expired lease frees its blocks at most this much later."""

log = get_logger("engine")


class Stream:
    """The updates of one sequence, for one reader."""

    def __init__(self, sequence: Sequence) -> None:
        self.sequence = sequence
        self._wake = asyncio.Event()
        sequence.on_update = self._wake.set

    async def next(self) -> list[Update]:
        """Wait for updates and return all there are; the last one of all is a `Finished`."""
        while not self.sequence.updates:
            self._wake.clear()
            await self._wake.wait()
        updates = list(self.sequence.updates)
        self.sequence.updates.clear()
        return updates


@dataclass(frozen=True, slots=True)
class Parts:
    """What a service is made of.

    *timer* reads seconds from any zero, finer than a loop's clock need be: tokens come every
    millisecond. *recompute* is the policy when a pull fails.
    """

    core: EngineCore
    executor: Executor
    thread: Turns
    connector: Connector
    publisher: EventSink | None
    metrics: EngineMetrics
    clock: Clock
    timer: Callable[[], float]
    recompute: bool = True


class EngineService:
    """See the module. Also the `BlockSource` behind a transfer server."""

    def __init__(self, parts: Parts) -> None:
        self._core = parts.core
        self._executor = parts.executor
        self._thread = parts.thread
        self._connector = parts.connector
        self._publisher = parts.publisher
        self._metrics = parts.metrics
        self._clock = parts.clock
        self._timer = parts.timer
        self._recompute = parts.recompute
        self._layout = parts.executor.layout
        self._wake = asyncio.Event()
        self._pulls: dict[str, asyncio.Task[None]] = {}
        self._unwanted: asyncio.Queue[Sequence] = asyncio.Queue(MAX_UNWANTED)
        self.rooms = Rooms(parts.core.leases)
        self._draining = False
        self._broken: Exception | None = None

    @property
    def draining(self) -> bool:
        """Whether no requests are admitted any more."""
        return self._draining

    @property
    def healthy(self) -> bool:
        """Whether the executor works."""
        return self._broken is None

    def submit(self, requests: Items[GenerateRequest]) -> list[Stream]:
        """Queue the choices of one call; raise DrainingError or QueueFullError, queueing none."""
        if self._draining or self._broken is not None:
            raise DrainingError("this engine is shutting down; send the request to another one")
        now = self._timer()
        with self._expecting(requests):
            first = self._core.add(requests[0], now)
        rest = [self._core.add(request, now, force=True) for request in requests[1:]]
        self._wake.set()
        return [Stream(sequence) for sequence in (first, *rest)]

    @contextlib.contextmanager
    def _expecting(self, requests: Items[GenerateRequest]) -> Iterator[None]:
        """Expect those who are to be met for *requests*, unless what is inside is refused."""
        expected: list[Handle] = []
        try:
            for request in requests:
                if request.lease_as is not None:
                    self.rooms.expect(request.lease_as)
                    expected.append(request.lease_as)
            yield
        except (RoomTakenError, QueueFullError) as refused:
            if isinstance(refused, QueueFullError):
                self._metrics.rejected()
            for handle in expected:
                self.rooms.settled(handle)
            raise

    def abort(self, request_id: str) -> None:
        """End a request; unknown and ended ones are no error."""
        pull = self._pulls.get(request_id)
        self._core.abort(request_id)
        if pull is not None:
            pull.cancel()
        self._wake.set()

    def release(self, handle: Handle) -> None:
        """Give up a lease that nobody will claim."""
        self._core.release_lease(handle)
        self._wake.set()

    def give_up(self, handle: Handle) -> None:
        """Note that there will be no KV for *handle*, which was agreed on beforehand."""
        self.rooms.settled(handle)

    async def decline(self, remote: RemotePrefill, known: Items[int]) -> None:
        """End the lease on *known* tokens of a hand-over that is not wanted here any more.

        Best effort: a worker that does not answer within `DECLINE_S` keeps it until its deadline.
        """
        request = PullRequest(remote.handle, self._layout, prompt_digest(known), Span(0, 0))
        with contextlib.suppress(HandoverError, TimeoutError):
            async with asyncio.timeout(DECLINE_S):
                async with self._connector.pull(remote.host, remote.port, request):
                    log.info("kv declined", handle=remote.handle)

    async def run(self) -> None:
        """Step until cancelled. Raises what the executor raises, after all readers know."""
        self._metrics.started(self._core)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._expire_leases())
            for _ in range(DECLINERS):
                group.create_task(self._decline_unwanted())
            if self._publisher is not None:
                group.create_task(self._publisher.serve_replays())
            await self._step_loop(group)

    async def drain(self, timeout_s: float) -> None:
        """Admit nothing, wait for running work and leases at most *timeout_s*, then end them."""
        self._draining = True
        waited = 0.0
        while self._busy() and waited < timeout_s:
            await asyncio.sleep(DRAIN_POLL_S)
            waited += DRAIN_POLL_S
        left = self._core.release_all_leases()
        aborted = self._core.abort_all()
        for pull in self._pulls.values():
            pull.cancel()
        self._wake.set()
        log.info("drained", waited_s=round(waited, 2), leases_released=left, aborted=aborted)

    async def take(self, request: PullRequest, allocate: Callable[[int], ByteArray]) -> Taken:
        """Copy leased blocks out for a reader; see `BlockSource.take`."""
        layout, span = self._layout, request.span
        check_compatible(layout, request.layout)
        if is_room(request.handle):
            if span.first >= span.end and not self._core.leases.knows(request.handle):
                self.rooms.unwanted(request.handle)
                return Taken(layout, checksum(np.empty(0, np.uint8)))
            await self.rooms.settle(request.handle)
        lease = self._core.claim(request.handle, request.prompt, self._clock.now())
        try:
            if span.first >= span.end:
                return Taken(layout, checksum(np.empty(0, np.uint8)))
            if span.first < 0 or span.end != lease.num_tokens:
                raise HandoverError(
                    Failure.PROTOCOL,
                    f"tokens {span.first} to {span.end} were asked for, "
                    f"there are {lease.num_tokens}",
                )
            blocks = lease.blocks[span.first // layout.block_size :]
            size = len(blocks) * layout.block_bytes
            total = await self._thread.run(lambda: self._read(blocks, allocate(size)))
            return Taken(layout, total)
        finally:
            self._core.release_blocks(lease.blocks)
            self._wake.set()

    def ended(self, request: PullRequest, num_bytes: int, failure: str | None) -> None:
        """Count how a reader fared; see `BlockSource.ended`."""
        self._metrics.served(num_bytes, failure)
        log.info(
            "kv served",
            handle=request.handle,
            tokens=request.span.end - request.span.first,
            bytes=num_bytes,
            failure=failure,
        )

    def _busy(self) -> bool:
        core = self._core
        return bool(core.num_running or core.num_waiting or core.leases)

    def _read(self, blocks: Items[BlockId], out: ByteArray) -> int:
        self._executor.read_blocks(blocks, out)
        return checksum(out)

    def _write(self, blocks: Items[BlockId], span: Span, pulled: Pulled) -> None:
        found = checksum(pulled.data)
        if found != pulled.checksum:
            raise HandoverError(
                Failure.CHECKSUM,
                f"the KV bytes have checksum {found:08x}, {pulled.checksum:08x} was announced",
            )
        data = reshard(pulled.data, span, pulled.layout, self._layout)
        self._executor.write_blocks(blocks, data)

    async def _step_loop(self, group: asyncio.TaskGroup) -> None:
        while True:
            begun = self._core.begin()
            for sequence in begun.pulls:
                sequence.times.admitted = self._timer()
                self._start_pull(group, sequence)
            if begun.work is None:
                self._count_ends(self._timer())
                self._metrics.step_done(self._core, 0)
                await self._publish()
                await self._wake.wait()
                self._wake.clear()
                continue
            await self._step(begun.work)

    async def _step(self, work: StepWork) -> None:
        started = self._timer()
        for sequence in work.sequences:
            if sequence.times.admitted is None:
                sequence.times.admitted = started
        try:
            sampled = await self._thread.run(lambda: self._core.execute(work))
        except Exception as error:
            self._broken = error
            log.error("the executor failed", error=repr(error))
            self._core.fail_all(error)
            raise
        self._commit(work, sampled, self._timer())
        await self._publish()

    def _commit(self, work: StepWork, sampled: list[Sampled], now_s: float) -> None:
        before = [sequence.times.last_token for sequence in work.sampled]
        self._core.commit(work, sampled, now_s)
        for sequence, last in zip(work.sampled, before, strict=True):
            if sequence.times.last_token == now_s:
                self._metrics.tokens_out(sequence, 1, None if last is None else now_s - last)
        self._count_ends(now_s)
        self._metrics.step_done(self._core, work.batch.num_tokens)

    def _count_ends(self, now_s: float) -> None:
        for sequence, end in self._core.take_ended():
            if sequence.request.lease_as is not None:
                self.rooms.settled(sequence.request.lease_as)
            if sequence.needs_pull and sequence.times.admitted is None:
                # It left before it had blocks to pull into: its handle is not spent.
                with contextlib.suppress(asyncio.QueueFull):
                    self._unwanted.put_nowait(sequence)
            self._metrics.finished(sequence, end, now_s)

    async def _decline_unwanted(self) -> None:
        while True:
            request = (await self._unwanted.get()).request
            assert request.remote is not None, "only such sequences have a lease elsewhere"
            await self.decline(request.remote, request.known)

    async def _publish(self) -> None:
        changes = self._core.pool.take_changes()
        if changes and self._publisher is not None:
            events = to_wire(changes, self._core.block_size)
            await self._publisher.publish(self._clock.now(), events)

    async def _expire_leases(self) -> None:
        while True:
            now = self._clock.now()
            if self._core.expire_leases(now):
                self._wake.set()
            deadline = self._core.leases.next_deadline()
            pause = LEASE_POLL_S if deadline is None else min(LEASE_POLL_S, deadline - now)
            await asyncio.sleep(max(0.001, pause))

    def _start_pull(self, group: asyncio.TaskGroup, sequence: Sequence) -> None:
        task = group.create_task(self._pull(sequence))
        self._pulls[sequence.request_id] = task

        def over(_: asyncio.Task[None]) -> None:
            # Also when the task was cancelled before its first line ran.
            del self._pulls[sequence.request_id]
            self._core.pull_cancelled(sequence)
            self._wake.set()

        task.add_done_callback(over)

    async def _pull(self, sequence: Sequence) -> None:
        """Fetch the prompt's KV of *sequence*, or make it be computed here."""
        remote = sequence.request.remote
        assert remote is not None, "only such sequences are pulled"
        started = self._timer()
        try:
            handover = await self._fetch(sequence, remote, started)
        except HandoverError as error:
            self._pull_failed(sequence, remote, error, started)
        else:
            log.info("kv pulled", request=sequence.request_id, **_fields(handover))
            self._metrics.handover_done(handover)
            self._core.pull_arrived(sequence, handover)

    async def _fetch(self, sequence: Sequence, remote: RemotePrefill, started: float) -> Handover:
        known, size = sequence.request.known, self._core.block_size
        have = sequence.num_computed // size
        total = -(-len(known) // size)
        cached = len(known) - sequence.num_computed <= size
        count = 0 if cached else total - have
        span = Span(0, 0) if cached else Span(have * size, len(known))
        request = PullRequest(
            remote.handle,
            self._layout,
            prompt_digest(known),
            span,
            PATIENCE_S if remote.patient else None,
            sequence.trace,
        )
        if remote.deadline_s is not None and self._clock.now() >= remote.deadline_s:
            raise HandoverError(
                Failure.EXPIRED, f"hand-over {remote.handle} expired before it could be pulled"
            )
        async with self._connector.pull(remote.host, remote.port, request) as pulled:
            if not cached:
                blocks = sequence.blocks[have:total]
                await self._thread.run(lambda: self._write(blocks, span, pulled))
        return Handover(
            Outcome.CACHED if cached else Outcome.PULLED,
            remote.engine_id,
            None if cached else pulled.transport,
            count,
            int(pulled.data.nbytes),
            self._timer() - started,
        )

    def _pull_failed(
        self, sequence: Sequence, remote: RemotePrefill, error: HandoverError, started: float
    ) -> None:
        handover = Handover(
            Outcome.RECOMPUTED if self._recompute else Outcome.FAILED,
            remote.engine_id,
            seconds=self._timer() - started,
            failure=error.failure,
            message=str(error),
        )
        log.warning("kv pull failed", request=sequence.request_id, **_fields(handover))
        self._metrics.handover_done(handover)
        self._core.pull_failed(sequence, handover, None if self._recompute else error)


def _fields(handover: Handover) -> dict[str, object]:
    return {
        "outcome": str(handover.outcome),
        "from_engine": handover.engine_id,
        "blocks": handover.num_blocks,
        "bytes": handover.num_bytes,
        "seconds": round(handover.seconds, 6),
        "transport": handover.transport,
        "failure": handover.failure,
    }
