"""Seeded faults, one after the other, on the workers of an arena."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from random import Random
from typing import TYPE_CHECKING

from tests.faults.proxy import Proxy, Way

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.faults.arena import Arena, WorkerProcess

    Fault = Callable[["Storm", WorkerProcess], Awaitable[None]]


BOTH_AT_ONCE = 0.15
"""How often a fault may strike while the other worker of the role has one."""


class Storm:
    """Runs faults until stopped. Mostly one worker of each role is left alone."""

    def __init__(self, arena: Arena, *, pause_s: tuple[float, float] = (0.1, 0.8)) -> None:
        self.arena = arena
        self.rng = Random(arena.seed * 7919 + 1)
        self._pause_s = pause_s
        self._running: set[asyncio.Task[None]] = set()

    async def run(self, only: tuple[str, ...] = ()) -> None:
        """Let faults happen until cancelled; those under way are seen through."""
        names = only or tuple(FAULTS)
        try:
            while True:
                await asyncio.sleep(self.rng.uniform(*self._pause_s))
                self._strike(self.rng.choice(names))
                for task in [task for task in self._running if task.done()]:
                    self._running.discard(task)
                    task.result()
        finally:
            await asyncio.gather(*self._running)

    def _strike(self, name: str) -> None:
        roles = ROLES.get(name, ("prefill", "decode"))
        target = self.rng.choice([w for w in self.arena.workers if w.role in roles])
        others = [w for w in self.arena.workers if w.role == target.role and w is not target]
        alone = any(worker.busy for worker in others)
        if target.busy or (alone and self.rng.random() > BOTH_AT_ONCE):
            return
        target.busy = True
        self.arena.tally.faults[f"{name} {target.role}"] += 1
        self._running.add(asyncio.ensure_future(self._see_through(FAULTS[name], target)))

    async def _see_through(self, fault: Fault, target: WorkerProcess) -> None:
        try:
            await fault(self, target)
            await target.heal()
            await target.wait_ready(self.arena.session)
        finally:
            target.busy = False

    def seconds(self, low: float, high: float) -> float:
        return self.rng.uniform(low, high)


async def kill(storm: Storm, target: WorkerProcess) -> None:
    target.send(signal.SIGKILL)
    await _dead_for(target, storm.seconds(0.0, 1.0))


async def kill_in_transfer(storm: Storm, target: WorkerProcess) -> None:
    """Kill the worker when it is asked for KV, or has sent some of it."""
    struck = asyncio.Event()

    def spring() -> None:
        target.send(signal.SIGKILL)
        struck.set()

    proxy = target.kv if target.role == "prefill" else target.http
    proxy.set_trap(storm.rng.choice((0, 1, 200, 2000)), spring)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(2):
            await struck.wait()
    # Nobody would start the worker again that meets it later.
    proxy.clear_trap()
    if struck.is_set():
        await _dead_for(target, storm.seconds(0.0, 1.0))


async def _dead_for(target: WorkerProcess, seconds: float) -> None:
    await target.end()
    await target.http.refuse(True)
    await target.kv.refuse(True)
    await asyncio.sleep(seconds)
    await target.start()
    await target.http.refuse(False)
    await target.kv.refuse(False)


async def stop(storm: Storm, target: WorkerProcess) -> None:
    target.send(signal.SIGSTOP)
    await asyncio.sleep(storm.seconds(0.05, 4.0))
    target.send(signal.SIGCONT)


async def drain(storm: Storm, target: WorkerProcess) -> None:
    target.send(signal.SIGTERM)
    code = await target.end()
    if code != 0:
        storm.arena.tally.wrong.append(f"{target.name} ended with {code} after SIGTERM")
    await target.start()


async def refuse(storm: Storm, target: WorkerProcess) -> None:
    await _proxy(storm, target).refuse(True)
    await asyncio.sleep(storm.seconds(0.1, 1.5))


async def cut_all(storm: Storm, target: WorkerProcess) -> None:
    _proxy(storm, target).cut_all()


def way(kind: str) -> Fault:
    """Return the fault that connections go *kind*'s way for a while."""

    async def broken(storm: Storm, target: WorkerProcess) -> None:
        # Nothing guards the bytes of HTTP: a flipped bit in them is another answer.
        proxy = target.kv if kind == "corrupt" else _proxy(storm, target)
        proxy.way = Way(kind, storm.rng.choice((0, 10, 100, 300, 1000, 3000)))
        # Kept connections would not notice.
        proxy.cut_all()
        await asyncio.sleep(storm.seconds(0.2, 1.5))

    return broken


def _proxy(storm: Storm, target: WorkerProcess) -> Proxy:
    """Return one of the proxies that carry anything: KV is pulled from prefill workers."""
    return storm.rng.choice((target.http, target.kv)) if target.role == "prefill" else target.http


FAULTS: dict[str, Fault] = {
    "kill": kill,
    "kill in transfer": kill_in_transfer,
    "stop": stop,
    "drain": drain,
    "refuse": refuse,
    "cut all": cut_all,
    "stall": way("stall"),
    "cut": way("cut"),
    "slow": way("slow"),
    "corrupt": way("corrupt"),
    "garbage": way("garbage"),
}
ROLES = {"corrupt": ("prefill",)}
"""Which roles a fault is for, where it is not for all."""
