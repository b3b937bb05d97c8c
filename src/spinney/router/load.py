"""What routers have given each worker and not seen the end of, and who failed lately.

Invariant: every `Work` that was begun is ended exactly once, so an idle router has an empty ledger,
and the total is the sum of what it gave and what others say that they did.
Loads are values: a view that was handed out does not change.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from spinney.router.picker import IDLE, Load, View
from spinney.router.workers import Stage, Worker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from spinney.router.limits import Limits
    from spinney.router.table import WorkerTable


class Work:
    """One request's share of one worker's load."""

    __slots__ = ("_ledger", "_share", "_worker")

    def __init__(self, ledger: Ledger, worker: str, share: Load) -> None:
        self._ledger = ledger
        self._worker = worker
        self._share = share
        ledger.add(worker, share)

    def prefilling(self, prompt_tokens: int) -> None:
        """Note that this worker has to compute the prompt after all."""
        more = Load(prefill_requests=1, prefill_tokens=prompt_tokens)
        self._ledger.add(self._worker, more)
        self._share = _sum(self._share, more, 1)

    def prefilled(self) -> None:
        """Note that the prompt is computed: its tokens are no work ahead any more."""
        done = Load(self._share.prefill_requests, self._share.prefill_tokens)
        self._ledger.subtract(self._worker, done)
        self._share = replace(self._share, prefill_requests=0, prefill_tokens=0)

    def end(self) -> None:
        """Take the share off the worker's load."""
        self._ledger.subtract(self._worker, self._share)
        self._share = IDLE


class Ledger:
    """The loads of all workers."""

    def __init__(self) -> None:
        self._loads: dict[str, Load] = {}
        self._peers: dict[str, dict[str, Load]] = {}
        self._total: dict[str, Load] = {}
        self._callbacks: list[Callable[[str, Load], None]] = []
        self._own_callbacks: list[Callable[[str], None]] = []

    def on_change(self, callback: Callable[[str, Load], None]) -> None:
        """Have *callback* called with each worker's load, of all routers, after a change."""
        self._callbacks.append(callback)

    def on_own_change(self, callback: Callable[[str], None]) -> None:
        """Have *callback* called with each worker whose load by this router changes."""
        self._own_callbacks.append(callback)

    def loads_now(self) -> Mapping[str, Load]:
        """Return what all routers gave; it changes. Workers without work are not in it."""
        return self._total

    def loads(self) -> dict[str, Load]:
        """Return a copy of what this router gave; workers without work are not in it."""
        return dict(self._loads)

    def set_peer(self, peer: str, worker: str, load: Load) -> None:
        """Note what another router has given *worker*."""
        loads = self._peers.setdefault(peer, {})
        before = loads.pop(worker, IDLE)
        if load != IDLE:
            loads[worker] = load
        self._moved(worker, _sum(load, before, -1))

    def forget_peer(self, peer: str) -> None:
        """Take off what another router has given."""
        for worker, load in self._peers.pop(peer, {}).items():
            self._moved(worker, _sum(IDLE, load, -1))

    @contextmanager
    def work(
        self, worker: Worker, stage: Stage, *, prefill_tokens: int = 0, context_tokens: int = 0
    ) -> Iterator[Work]:
        """Count a request's work on *worker* while the context lasts."""
        prefills = int(stage is Stage.PREFILL or prefill_tokens > 0)
        decodes = int(stage is Stage.DECODE)
        share = Work(self, worker.name, Load(prefills, prefill_tokens, decodes, context_tokens))
        try:
            yield share
        finally:
            share.end()

    def add(self, worker: str, share: Load) -> None:
        """Add *share* to the load of *worker*."""
        self._own(worker, share)

    def subtract(self, worker: str, share: Load) -> None:
        """Take *share* off the load of *worker*."""
        self._own(worker, _sum(IDLE, share, -1))

    def _own(self, worker: str, change: Load) -> None:
        _put(self._loads, worker, change)
        self._moved(worker, change)
        for callback in self._own_callbacks:
            callback(worker)

    def _moved(self, worker: str, change: Load) -> None:
        load = _put(self._total, worker, change)
        for callback in self._callbacks:
            callback(worker, load)


def _put(loads: dict[str, Load], worker: str, change: Load) -> Load:
    load = _sum(loads.get(worker, IDLE), change, 1)
    if load == IDLE:
        loads.pop(worker, None)
    else:
        loads[worker] = load
    return load


def _sum(load: Load, share: Load, sign: int) -> Load:
    return Load(
        load.prefill_requests + sign * share.prefill_requests,
        load.prefill_tokens + sign * share.prefill_tokens,
        load.decode_requests + sign * share.decode_requests,
        load.context_tokens + sign * share.context_tokens,
    )


@dataclass(frozen=True, slots=True)
class _Fault:
    failures: int
    until_s: float
    since_s: float
    """When the outage was noticed."""


class Faults:
    """Workers that failed lately: each is avoided for a while that grows with its failures.

    Independent of readiness in Kubernetes, which takes seconds to follow. *now_s* is any clock
    that does not go back.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._faults: dict[str, _Fault] = {}
        self._told: dict[str, float] = {}
        """Until when workers are avoided on another router's word."""
        self._callbacks: list[Callable[[], None]] = []

    def on_change(self, callback: Callable[[], None]) -> None:
        """Have *callback* called when a worker is avoided, or no more, as this router found."""
        self._callbacks.append(callback)

    def failed(self, worker: str, now_s: float) -> float:
        """Note a failure; return for how many seconds the worker is avoided.

        Failures while it is avoided already belong to the same outage and do not lengthen it.
        """
        before = self._faults.get(worker, _Fault(0, now_s, now_s))
        if before.until_s > now_s:
            return before.until_s - now_s
        pause_s = min(self._limits.avoid_most_s, self._limits.avoid_first_s * 2.0**before.failures)
        self._faults[worker] = _Fault(min(before.failures + 1, 30), now_s + pause_s, now_s)
        self._changed()
        return pause_s

    def told(self, worker: str, until_s: float) -> None:
        """Avoid *worker* until then on another router's word: it is no failure of its own."""
        self._told[worker] = until_s

    def untold(self, worker: str) -> None:
        """Avoid *worker* on no other router's word."""
        self._told.pop(worker, None)

    def failing(self, now_s: float) -> list[str]:
        """Return the workers that are avoided by what this router found itself; sorted."""
        return sorted(name for name, fault in self._faults.items() if fault.until_s > now_s)

    def _changed(self) -> None:
        for callback in self._callbacks:
            callback()

    def was_known(self, worker: str, asked_s: float) -> bool:
        """Whether *worker* was known to fail when it was asked something at *asked_s*."""
        fault = self._faults.get(worker)
        return fault is not None and fault.since_s < asked_s

    def let_back(self, worker: str, now_s: float) -> None:
        """Avoid *worker*, which answers, no longer; its next failure counts as a further one.

        One that answered before and failed all the same is avoided for a moment even so: it can
        have its health and not be able to serve.
        """
        self.untold(worker)
        fault = self._faults.get(worker)
        if fault is None or fault.until_s <= now_s:
            return
        limits = self._limits
        again_s = min(limits.avoid_answering_most_s, limits.avoid_first_s * (fault.failures - 1))
        if now_s >= fault.since_s + again_s:
            self._faults[worker] = replace(fault, until_s=now_s)
            self._changed()

    def succeeded(self, worker: str) -> None:
        """Forget what *worker* did, and what was said of it."""
        if self._told:
            self.untold(worker)
        if self._faults.pop(worker, None) is not None:
            self._changed()

    def avoided(self, now_s: float) -> frozenset[str]:
        """Return the workers to avoid now."""
        if not self._faults and not self._told:
            return frozenset()
        found = {name for name, fault in self._faults.items() if fault.until_s > now_s}
        found.update(name for name, until_s in self._told.items() if until_s > now_s)
        return frozenset(found)


class RetryBudget:
    """Retries for all requests together, so that an outage is not multiplied.

    What follows from one worker's death is not taken from it: each request it had is tried
    elsewhere once, whether it had two or two hundred. Each request earns ``retry_ratio`` of a
    retry, up to ``retry_reserve``, where it starts.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._left = limits.retry_reserve

    def earn(self) -> None:
        """Note a request."""
        self._left = min(self._limits.retry_reserve, self._left + self._limits.retry_ratio)

    def try_spend(self) -> bool:
        """Take one retry, if there is one."""
        if self._left < 1:
            return False
        self._left -= 1
        return True


def view_of(table: WorkerTable, ledger: Ledger, faults: Faults, now_s: float) -> View:
    """Return the frozen view that a choice is made from."""
    loads: Mapping[str, Load] = dict(ledger.loads_now())
    return View(table.workers(), loads, faults.avoided(now_s), table.rosters)
