"""The engine without sockets, threads or clocks: sequences, blocks, and one step at a time.

A step has three parts. `begin` decides what to compute and gives out blocks, `execute` computes
(the only part that takes long and touches no state but the executor's, so that it may run in a
thread), `commit` takes the tokens in. Between `begin` and `commit` new requests, aborts, pulls and
leases may come; what belongs to the running step is only marked.
Invariants: every block is held by as many sequences, leases and readers as its count says; a
sequence's first ``num_computed`` tokens are in its blocks; every sequence that was added is
finished exactly once.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from spinney.engine.batching import Limits, Running, Waiting, plan
from spinney.engine.executor import Batch, SequenceStep
from spinney.engine.request import FinishReason, QueueFullError
from spinney.engine.sampling import Row, sample
from spinney.engine.sequence import Finished, Outcome, Sequence, State, Times, TokenUpdate
from spinney.engine.text import Detokenizer, StopStrings
from spinney.kv.block_hash import prompt_digest
from spinney.kv.block_pool import BlockPool
from spinney.kv.lease import Lease, LeaseTable

if TYPE_CHECKING:
    from collections.abc import Callable

    from spinney.engine.batching import Admit, Plan
    from spinney.engine.executor import Executor
    from spinney.engine.request import GenerateRequest, SamplingParams
    from spinney.engine.sampling import Sampled
    from spinney.engine.sequence import Handover
    from spinney.kv.block_pool import BlockId
    from spinney.kv.lease import Handle


@dataclass(frozen=True, slots=True)
class CoreConfig:
    """Bounds of one engine. *max_waiting* requests may wait beside those that run."""

    max_sequences: int
    max_step_tokens: int
    max_model_len: int
    max_waiting: int


@dataclass(frozen=True, slots=True, eq=False)
class StepWork:
    """One forward pass to execute, with its sequences and how their rows are to be sampled."""

    batch: Batch
    sequences: tuple[Sequence, ...]
    sampled: tuple[Sequence, ...]
    rows: tuple[Row, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Begun:
    """What `EngineCore.begin` decided: a pass to execute, and pulls to start."""

    work: StepWork | None
    pulls: tuple[Sequence, ...]


@dataclass(slots=True)
class Counters:
    """What has happened since the start; the shell turns them into metrics."""

    preemptions: int = 0
    prefix_queries: int = 0
    prefix_hits: int = 0
    leases_expired: int = 0


class EngineCore:
    """See the module.

    *decode* turns token ids into text (skipping special tokens if told to); *lease_terms* makes a
    new handle and says until when (seconds since the epoch) it is good.
    """

    def __init__(
        self,
        executor: Executor,
        config: CoreConfig,
        *,
        decode: Callable[[list[int], bool], str],
        eos_token_ids: frozenset[int],
        lease_terms: Callable[[], tuple[Handle, float]],
        rng: np.random.Generator,
    ) -> None:
        self._executor = executor
        self.config = config
        self.block_size = executor.layout.block_size
        self.pool = BlockPool(executor.num_blocks, self.block_size)
        self.leases = LeaseTable()
        self.counters = Counters()
        self._decode = decode
        self._eos = eos_token_ids
        self._lease_terms = lease_terms
        self._rng = rng
        self._limits = Limits(config.max_sequences, config.max_step_tokens, self.block_size)
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []
        self._pulling: list[Sequence] = []
        self._by_id: dict[str, Sequence] = {}
        self._ended: list[tuple[Sequence, Finished]] = []
        self._next_index = 0

    @property
    def num_waiting(self) -> int:
        """Sequences without blocks."""
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        """Sequences with blocks, those whose KV is on its way included."""
        return len(self._running) + len(self._pulling)

    def add(self, request: GenerateRequest, now_s: float, *, force: bool = False) -> Sequence:
        """Queue *request*; its updates appear on the sequence returned.

        Raises QueueFullError when as many wait as may, unless *force* is set (the further choices
        of a request that was let in).
        """
        if len(self._waiting) >= self.config.max_waiting and not force:
            raise QueueFullError(
                f"{len(self._waiting)} requests wait, and no more than "
                f"{self.config.max_waiting} may (--max-waiting); try again later"
            )
        assert request.request_id not in self._by_id, "request ids are unique"
        sequence = self._new_sequence(request, now_s)
        self._next_index += 1
        self._by_id[request.request_id] = sequence
        self._waiting.append(sequence)
        return sequence

    def abort(self, request_id: str) -> None:
        """End a sequence as soon as its step is over; unknown and ended ones are no error."""
        sequence = self._by_id.get(request_id)
        if sequence is None or sequence.aborted:
            return
        sequence.aborted = True
        # Blocks in a running step or under a pull are written to: they are freed after it.
        if not sequence.in_flight and sequence.state is not State.PULLING:
            self._finish(sequence, FinishReason.ABORT)

    def begin(self) -> Begun:
        """Decide the next step, give out its blocks, and return what is to be done."""
        decided, candidates = self._plan()
        by_index = {sequence.index: sequence for sequence in (*self._running, *candidates)}
        for index in decided.preempt:
            self._preempt(by_index[index])
        self._hold_cached([by_index[admit.index] for admit in decided.admit])
        pulls: list[Sequence] = []
        work: list[tuple[Sequence, int]] = []
        for run in decided.run:
            sequence = by_index[run.index]
            sequence.blocks += self.pool.allocate(run.new_blocks)
            work.append((sequence, run.num_tokens))
        for admit in decided.admit:
            sequence = by_index[admit.index]
            self._admit(sequence, admit)
            if sequence.state is State.PULLING:
                pulls.append(sequence)
            else:
                work.append((sequence, admit.num_tokens))
        return Begun(self._step_work(work), tuple(pulls))

    def execute(self, work: StepWork) -> list[Sampled]:
        """Compute *work*. Touches nothing but the executor and the work's own values."""
        logits = self._executor.step(work.batch)
        return sample(logits, work.rows) if work.rows else []

    def commit(self, work: StepWork, sampled: list[Sampled], now_s: float) -> None:
        """Take in the result of *work*: new tokens, full blocks, ends."""
        for sequence, step in zip(work.sequences, work.batch.sequences, strict=True):
            sequence.in_flight = False
            sequence.num_computed = step.start + len(step.token_ids)
        for sequence, token in zip(work.sampled, sampled, strict=True):
            if not sequence.aborted:
                self._append(sequence, token, now_s)
        for sequence in work.sequences:
            if sequence.state is State.RUNNING:
                self._register_full_blocks(sequence)
            if sequence.aborted and sequence.state is not State.FINISHED:
                self._finish(sequence, FinishReason.ABORT)

    def pull_arrived(self, sequence: Sequence, handover: Handover) -> None:
        """The KV that *sequence* lacked is in its blocks, or it was cached here: decode it."""
        if handover.outcome is Outcome.PULLED:
            # The last token is computed here in any case: its logits give the first output.
            sequence.num_computed = len(sequence.request.known) - 1
            sequence.pulled_tokens = len(sequence.prompt) - sequence.cached_tokens
        self._pull_over(sequence, handover)

    def pull_failed(self, sequence: Sequence, handover: Handover, error: Exception | None) -> None:
        """There will be no KV for *sequence*: compute its prompt here, or end it with *error*."""
        self._pull_over(sequence, handover)
        if error is not None and sequence.state is not State.FINISHED:
            self._finish(sequence, FinishReason.ERROR, error=error)

    def pull_cancelled(self, sequence: Sequence) -> None:
        """The pull of *sequence* is over; if it came to nothing, that was because of an abort."""
        if sequence.state is State.PULLING:
            sequence.aborted = True
            self._finish(sequence, FinishReason.ABORT)

    def abort_all(self) -> int:
        """Abort every sequence; return how many there were."""
        ids = list(self._by_id)
        for request_id in ids:
            self.abort(request_id)
        return len(ids)

    def take_ended(self) -> list[tuple[Sequence, Finished]]:
        """Return the sequences that ended since the last call, with how."""
        ended, self._ended = self._ended, []
        return ended

    def claim(self, handle: Handle, digest: str, now_s: float) -> Lease:
        """End a lease for its reader, who has to call `release_blocks`. May raise HandoverError."""
        return self.leases.claim(handle, digest, now_s)

    def expire_leases(self, now_s: float) -> int:
        """Free the blocks of leases whose deadline has come; return how many there were."""
        over = self.leases.expire(now_s)
        for lease in over:
            self.pool.release(lease.blocks)
        self.counters.leases_expired += len(over)
        return len(over)

    def release_lease(self, handle: Handle) -> None:
        """Free the blocks of a lease nobody will claim."""
        lease = self.leases.release(handle)
        if lease is not None:
            self.pool.release(lease.blocks)

    def release_all_leases(self) -> int:
        """Free the blocks of all leases; return how many there were."""
        leases = self.leases.release_all()
        for lease in leases:
            self.pool.release(lease.blocks)
        return len(leases)

    def release_blocks(self, blocks: tuple[BlockId, ...]) -> None:
        """Drop the references of a lease that was claimed."""
        self.pool.release(blocks)

    def fail_all(self, error: Exception) -> None:
        """End every sequence with *error*: the executor is broken."""
        for sequence in list(self._by_id.values()):
            self._finish(sequence, FinishReason.ERROR, error=error)

    def check(self) -> None:
        """Raise AssertionError unless every held block is held by somebody known."""
        self.pool.check()
        for sequence in self._by_id.values():
            known = sequence.cached_tokens + sequence.pulled_tokens
            assert known <= len(sequence.prompt), "a prompt token is counted twice"
        holders = [sequence.blocks for sequence in (*self._running, *self._pulling)]
        distinct = {block for blocks in holders for block in blocks}
        assert len(distinct) <= self.pool.held, "a sequence holds a block that is free"
        if not holders and not self.leases:
            assert self.pool.held == 0, f"{self.pool.held} blocks are held by nobody"

    def _new_sequence(self, request: GenerateRequest, now_s: float) -> Sequence:
        params = request.sampling
        seed = params.seed if params.seed is not None else int(self._rng.integers(1 << 62))
        skip = params.skip_special_tokens
        sequence = Sequence(
            index=self._next_index,
            request=request,
            detokenizer=Detokenizer(lambda ids: self._decode(list(ids), skip)),
            stops=StopStrings(params.stop, include=params.include_stop),
            rng=np.random.default_rng(seed),
            times=Times(now_s),
            output=list(request.resumed),
        )
        for token in request.resumed:
            sequence.stops.push(sequence.detokenizer.push(token))
            if not params.greedy:
                sequence.rng.random()  # One number was drawn for each, as `_row` does.
        return sequence

    def _plan(self) -> tuple[Plan, list[Sequence]]:
        candidates = self._candidates()
        # Each running sequence needs one block at most: only then can one be preempted.
        scarce = self.pool.available < len(self._running)
        running = [
            Running(
                sequence.index,
                sequence.num_tokens,
                sequence.num_computed,
                len(sequence.blocks),
                self.pool.sole_among(sequence.blocks) if scarce else 0,
            )
            for sequence in self._running
        ]
        waiting = [self._view_waiting(sequence) for sequence in candidates]
        decided = plan(
            running,
            waiting,
            pulling=len(self._pulling),
            available=self.pool.available,
            limits=self._limits,
        )
        return decided, candidates

    def _candidates(self) -> list[Sequence]:
        """Return the waiting sequences that could be admitted now, oldest first."""
        room = self.config.max_sequences - self.num_running
        found: list[Sequence] = []
        for sequence in self._waiting:
            if len(found) >= room:
                break
            leader = self._by_id.get(sequence.request.follows or "")
            if leader is None or leader.prefilled:
                found.append(sequence)
        return found

    def _view_waiting(self, sequence: Sequence) -> Waiting:
        cached = self._cached_prefix(sequence)
        return Waiting(
            sequence.index,
            sequence.num_tokens,
            len(cached),
            self.pool.idle_among(cached),
            sequence.needs_pull,
        )

    def _cached_prefix(self, sequence: Sequence) -> list[BlockId]:
        # At least one token has to be computed: its logits choose the next one.
        usable = (sequence.num_tokens - 1) // self.block_size
        return self.pool.match(sequence.extend_hashes(self.block_size)[:usable])

    def _hold_cached(self, sequences: list[Sequence]) -> None:
        """Hold all cached prefixes before any block is given out, or one could evict another's."""
        for sequence in sequences:
            cached = self._cached_prefix(sequence)
            self.pool.hold(cached)
            sequence.blocks = cached
            sequence.num_computed = len(cached) * self.block_size
            sequence.num_registered = len(cached)
            fresh = len(sequence.output) == len(sequence.request.resumed)
            if fresh and not sequence.pulled_tokens:
                # Not of one that was preempted: what it pulled is in the cache, too.
                sequence.cached_tokens = min(sequence.num_computed, len(sequence.prompt))
            self.counters.prefix_queries += sequence.num_tokens
            self.counters.prefix_hits += sequence.num_computed

    def _admit(self, sequence: Sequence, admit: Admit) -> None:
        sequence.blocks += self.pool.allocate(admit.new_blocks)
        self._waiting.remove(sequence)
        if sequence.needs_pull:
            sequence.state = State.PULLING
            self._pulling.append(sequence)
        else:
            self._start(sequence)

    def _start(self, sequence: Sequence) -> None:
        sequence.state = State.RUNNING
        self._running.append(sequence)
        # Oldest first: the youngest is preempted, and a pull may end after a younger one's.
        self._running.sort(key=lambda other: other.index)

    def _preempt(self, sequence: Sequence) -> None:
        self._running.remove(sequence)
        self._release(sequence)
        sequence.state = State.WAITING
        sequence.num_computed = sequence.num_registered = 0
        self._waiting.appendleft(sequence)
        self.counters.preemptions += 1

    def _step_work(self, work: list[tuple[Sequence, int]]) -> StepWork | None:
        if not work:
            return None
        steps: list[SequenceStep] = []
        sampled: list[Sequence] = []
        for sequence, count in work:
            begin = sequence.num_computed
            last = begin + count == sequence.num_tokens
            tokens = sequence.tokens(begin, begin + count)
            steps.append(SequenceStep(tokens, begin, sequence.blocks, last))
            sequence.in_flight = True
            if last:
                sampled.append(sequence)
        return StepWork(
            Batch(tuple(steps)),
            tuple(sequence for sequence, _ in work),
            tuple(sampled),
            tuple(self._row(sequence) for sequence in sampled),
        )

    def _row(self, sequence: Sequence) -> Row:
        params = sequence.request.sampling
        early = len(sequence.output) < params.min_tokens
        return Row(
            params,
            sequence.prompt,
            sequence.output,
            0.0 if params.greedy else float(sequence.rng.random()),
            tuple(sorted(self._eos | params.stop_token_ids)) if early else (),
        )

    def _append(self, sequence: Sequence, sampled: Sampled, now_s: float) -> None:
        """Add a token, tell its text, and finish the sequence if it ends with it."""
        params, token = sequence.request.sampling, sampled.token
        sequence.output.append(token)
        if sequence.times.first_token is None:
            sequence.times.first_token = now_s
        sequence.times.last_token = now_s
        stop_token = self._stop_token(params, token, len(sequence.output))
        hidden = stop_token is not None and not params.include_stop
        checked = sequence.stops.push("" if hidden else sequence.detokenizer.push(token))
        sequence.tell(TokenUpdate(token, checked.text, sampled.logprobs))
        if checked.stop is not None:
            self._finish(sequence, FinishReason.STOP, stop=checked.stop)
        elif stop_token is not None:
            # vLLM names the token only where the caller asked for it, not for the model's own end.
            named = stop_token if stop_token in params.stop_token_ids else None
            self._finish(sequence, FinishReason.STOP, stop=named)
        elif self._at_limit(sequence):
            self._finish(sequence, FinishReason.LENGTH)

    def _stop_token(self, params: SamplingParams, token: int, length: int) -> int | None:
        if length < params.min_tokens:
            return None
        ends = token in params.stop_token_ids or (token in self._eos and not params.ignore_eos)
        return token if ends else None

    def _at_limit(self, sequence: Sequence) -> bool:
        return (
            len(sequence.output) >= sequence.request.sampling.max_tokens
            or sequence.num_tokens >= self.config.max_model_len
        )

    def _finish(
        self,
        sequence: Sequence,
        reason: FinishReason,
        *,
        stop: str | int | None = None,
        error: Exception | None = None,
    ) -> None:
        text = ""
        if reason in (FinishReason.STOP, FinishReason.LENGTH) and not isinstance(stop, str):
            text, stop = self._last_text(sequence, stop)
            if isinstance(stop, str):
                reason = FinishReason.STOP
        lease = self._leased(sequence, reason)
        self._remove(sequence)
        sequence.state = State.FINISHED
        sequence.end_reason = reason
        cached = sequence.cached_tokens + sequence.pulled_tokens
        finished = Finished(reason, text, stop, lease, sequence.handover, cached, error)
        self._ended.append((sequence, finished))
        sequence.tell(finished)

    def _last_text(self, sequence: Sequence, stop: int | None) -> tuple[str, str | int | None]:
        """Return what was held back; a stop string can complete in it."""
        checked = sequence.stops.push(sequence.detokenizer.flush())
        if checked.stop is not None:
            return checked.text, checked.stop
        return checked.text + sequence.stops.flush(), stop

    def _leased(self, sequence: Sequence, reason: FinishReason) -> Lease | None:
        """Keep the blocks of what was known for a reader, if asked to and they are computed."""
        if not sequence.request.lease_prompt or reason not in (
            FinishReason.STOP,
            FinishReason.LENGTH,
        ):
            return None
        self._register_full_blocks(sequence)
        known = sequence.request.known
        count = -(-len(known) // self.block_size)
        kept, sequence.blocks = sequence.blocks[:count], sequence.blocks[count:]
        handle, deadline_s = self._lease_terms()
        handle = sequence.request.lease_as or handle
        if self.leases.knows(handle):
            # Its reader has declined it already.
            sequence.blocks = kept + sequence.blocks
            return None
        lease = Lease(handle, tuple(kept), prompt_digest(known), len(known), deadline_s)
        self.leases.grant(lease)
        return lease

    def _remove(self, sequence: Sequence) -> None:
        match sequence.state:
            case State.WAITING:
                self._waiting.remove(sequence)
            case State.PULLING:
                self._pulling.remove(sequence)
            case State.RUNNING:
                self._register_full_blocks(sequence)
                self._running.remove(sequence)
            case State.FINISHED:
                raise AssertionError("a sequence is finished once")
        del self._by_id[sequence.request_id]
        self._release(sequence)

    def _release(self, sequence: Sequence) -> None:
        self.pool.release(sequence.blocks)
        sequence.blocks = []

    def _pull_over(self, sequence: Sequence, handover: Handover) -> None:
        sequence.handover = handover
        sequence.remote_done = True
        if sequence.aborted or handover.outcome is Outcome.FAILED:
            if sequence.aborted:
                self._finish(sequence, FinishReason.ABORT)
            return
        self._pulling.remove(sequence)
        self._start(sequence)
        self._register_full_blocks(sequence)

    def _register_full_blocks(self, sequence: Sequence) -> None:
        """Make blocks findable whose tokens are all computed."""
        full = sequence.num_computed // self.block_size
        if full <= sequence.num_registered:
            return
        hashes = sequence.extend_hashes(self.block_size)
        size = self.block_size
        for at in range(sequence.num_registered, min(full, len(sequence.blocks))):
            parent = hashes[at - 1] if at else None
            tokens = sequence.tokens(at * size, (at + 1) * size)
            self.pool.register(sequence.blocks[at], hashes[at], parent, tokens)
        sequence.num_registered = full
