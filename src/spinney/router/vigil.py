"""Which workers have fallen silent, and which have come back.

A worker that stands still keeps its connections: nothing breaks, nothing comes. It is asked whether
it is alive when it has said nothing on any of its streams for a while; one that is busy answers or
goes on with some stream, and is left alone. When it does neither, and another worker is better off,
everything that waits for it is given up at once. And where every worker that could decode is
avoided, those are asked likewise, so that requests go on as soon as one is back. Invariant: a
request is given up only while it waits for the worker, never while it waits for its client.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol, Self

from spinney.log import get_logger
from spinney.router.upstream import FailureKind, WorkerFailure

if TYPE_CHECKING:
    from collections.abc import Callable

    from spinney.router.limits import Limits
    from spinney.router.load import Faults
    from spinney.router.workers import Stage, Worker

LOOK_S = 0.1
"""Between two looks at the workers, while anything is asked of one."""
PROBE_AGAIN_S = 0.25
"""Between two questions to one worker."""

log = get_logger("router")


class LifeProbe(Protocol):
    """Asks a worker whether it is alive."""

    async def answers(self, worker: Worker, within_s: float) -> bool:
        """Return whether it answers anything at all in that time. Raises nothing."""
        ...


class Pulse:
    """One worker that something is asked of."""

    __slots__ = ("asked_s", "heard_s", "probing", "waits", "worker")

    def __init__(self, worker: Worker, now_s: float) -> None:
        self.worker = worker
        self.heard_s = now_s
        """When it last said something, on any stream."""
        self.asked_s = 0.0
        self.probing = False
        self.waits: set[Attendance] = set()


class Attendance:
    """A context in which a request waits for a worker; raises WorkerFailure when it is silent."""

    __slots__ = (
        "_cancelling",
        "_given_up_s",
        "_stage",
        "_task",
        "_vigil",
        "began_s",
        "on_client",
        "pulse",
    )

    def __init__(self, vigil: Vigil, pulse: Pulse, stage: Stage) -> None:
        self._vigil = vigil
        self._stage = stage
        self._given_up_s: float | None = None
        self.pulse = pulse
        self.began_s = 0.0
        self.on_client = False
        """Whether it is the client that the request waits for."""

    def __enter__(self) -> Self:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._cancelling = task.cancelling()
        self._vigil.begin(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._vigil.end(self)
        if self._given_up_s is None or kind is not asyncio.CancelledError:
            return
        if self._task.uncancel() <= self._cancelling:
            detail = f"silent for {self._given_up_s:.1f} s, and does not answer /health"
            raise WorkerFailure(self.pulse.worker, self._stage, FailureKind.TIMEOUT, detail)

    def heard(self, *, on_client: bool) -> None:
        """Note that the worker said something, and whom the request waits for from now on."""
        self.pulse.heard_s = _now()
        self.on_client = on_client

    def give_up(self, silent_s: float) -> None:
        """Have the request give this worker up, unless it is the client that it waits for."""
        if self._given_up_s is None and not self.on_client:
            self._given_up_s = silent_s
            self._task.cancel()


class Vigil:
    """Watches the workers that something is asked of. Does nothing unless it is run."""

    def __init__(
        self,
        probe: LifeProbe,
        faults: Faults,
        workers: Callable[[], tuple[Worker, ...]],
        limits: Limits,
    ) -> None:
        self._probe = probe
        self._faults = faults
        self._workers = workers
        self._limits = limits
        self._pulses: dict[str, Pulse] = {}
        self._needed = asyncio.Event()
        self._waiting = 0
        self._returned = asyncio.Event()
        self._seen: tuple[object, frozenset[str]] = ((), frozenset())

    def attend(self, worker: Worker, stage: Stage) -> Attendance:
        """Return the context in which *worker* is asked for something."""
        pulse = self._pulses.get(worker.name)
        if pulse is None or pulse.worker.url != worker.url:
            pulse = Pulse(worker, _now())
        return Attendance(self, pulse, stage)

    def begin(self, attendance: Attendance) -> None:
        """Count *attendance* in."""
        pulse = attendance.pulse
        attendance.began_s = _now()
        if not pulse.waits:
            pulse.heard_s = attendance.began_s
            self._pulses[pulse.worker.name] = pulse
        pulse.waits.add(attendance)
        self._needed.set()

    def end(self, attendance: Attendance) -> None:
        """Count *attendance* out."""
        pulse = attendance.pulse
        pulse.waits.discard(attendance)
        if not pulse.waits and self._pulses.get(pulse.worker.name) is pulse:
            del self._pulses[pulse.worker.name]

    async def returned(self, until_s: float) -> None:
        """Wait until a worker is avoided no more or another one is there, at most until then."""
        self._waiting += 1
        self._needed.set()
        try:
            async with asyncio.timeout_at(until_s):
                await self._returned.wait()
        except TimeoutError:
            return
        finally:
            self._waiting -= 1

    async def run(self) -> None:
        """Look after the workers until cancelled."""
        async with asyncio.TaskGroup() as probes:
            while True:
                await self._needed.wait()
                self._look(probes)
                if not self._pulses and not self._waiting:
                    self._needed.clear()
                await asyncio.sleep(LOOK_S)

    def _look(self, probes: asyncio.TaskGroup) -> None:
        now_s = _now()
        for pulse in self._pulses.values():
            if now_s - pulse.heard_s >= self._limits.suspect_after_s:
                self._ask(pulse, now_s, probes)
        avoided = self._faults.avoided(now_s)
        workers = self._workers()
        before, self._seen = self._seen, (workers, avoided)
        if before[0] is not workers or before[1] - avoided:
            self._returned.set()
            self._returned = asyncio.Event()
        if self._waiting:
            for worker in workers:
                if worker.name in avoided and worker.available:
                    pulse = self._pulses.get(worker.name) or self._absent(worker)
                    self._ask(pulse, now_s, probes)

    def _absent(self, worker: Worker) -> Pulse:
        """Return the pulse of a worker that nothing is asked of, kept while somebody waits."""
        return self._pulses.setdefault(worker.name, Pulse(worker, _now()))

    def _ask(self, pulse: Pulse, now_s: float, probes: asyncio.TaskGroup) -> None:
        if not pulse.probing and now_s - pulse.asked_s >= PROBE_AGAIN_S:
            pulse.probing, pulse.asked_s = True, now_s
            probes.create_task(self._answered(pulse))

    async def _answered(self, pulse: Pulse) -> None:
        name, asked_s = pulse.worker.name, _now()
        try:
            alive = await self._probe.answers(pulse.worker, self._limits.alive_deadline_s)
        finally:
            pulse.probing = False
            if not pulse.waits and self._pulses.get(name) is pulse:
                del self._pulses[name]
        if alive:
            pulse.heard_s = max(pulse.heard_s, asked_s)
            self._faults.let_back(name, _now())
        elif pulse.heard_s < asked_s:
            self._silent(pulse, asked_s)

    def _silent(self, pulse: Pulse, asked_s: float) -> None:
        """Give up what was asked of the worker before it was asked whether it is alive."""
        silent_s = _now() - pulse.heard_s
        if silent_s < self._limits.suspect_after_s or not self._somebody_better(pulse.worker):
            return
        waits = [wait for wait in pulse.waits if wait.began_s <= asked_s]
        if waits:
            log.warning(
                "worker stands still",
                worker=pulse.worker.name,
                silent_s=round(silent_s, 3),
                requests=len(waits),
            )
        for wait in waits:
            wait.give_up(silent_s)

    def _somebody_better(self, than: Worker) -> bool:
        """Whether another worker could take over that is neither silent itself nor avoided.

        Where all are silent at once it is not the workers: the machine or the network has too much
        to do, and sending everything again would be more of it.
        """
        now_s = _now()
        avoided = self._faults.avoided(now_s)
        for other in self._workers():
            if other.name == than.name or not other.available or other.name in avoided:
                continue
            pulse = self._pulses.get(other.name)
            quiet = pulse is not None and now_s - pulse.heard_s >= self._limits.suspect_after_s
            if not quiet and (other.decodes or not than.decodes):
                return True
        return False


def _now() -> float:
    return asyncio.get_running_loop().time()
