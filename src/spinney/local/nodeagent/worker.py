"""Runs one pod: performs what `decide` says, and tells it what came of it.

The run is saved before a process is started and after, so that neither a crash between the two nor
one later leaves an attempt uncounted. Everything the worker does for its pod is a task of one
group: when the worker ends, nothing of it goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from spinney.api.core import Pod
from spinney.kube.errors import ApiError, ConflictError, NotFoundError
from spinney.kube.transport import TransportError
from spinney.local.nodeagent import lifecycle, runs
from spinney.local.nodeagent.environment import CannotStartError
from spinney.local.nodeagent.pod_status import status_of
from spinney.local.nodeagent.probes import ask, run_command
from spinney.local.nodeagent.process import StartError
from spinney.local.nodeagent.state_dir import durable
from spinney.local.nodeagent.status_writer import RETRY, StatusWriter
from spinney.log import get_logger

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from random import Random

    from spinney.api.core import Container, PodStatus
    from spinney.api.meta import KubeObject
    from spinney.clock import Clock
    from spinney.ids import IdSource
    from spinney.kube.client import KubeClient
    from spinney.local.nodeagent.launch import Launcher
    from spinney.local.nodeagent.lifecycle import Action
    from spinney.local.nodeagent.logs import LogStore
    from spinney.local.nodeagent.probes import Network
    from spinney.local.nodeagent.process import Process, ProcessExit, ProcessRuntime, ProcessSpec
    from spinney.local.nodeagent.runs import PodRun, Policy
    from spinney.local.nodeagent.state_dir import StateDir

LAST_REPORT_S = 3.0
"""For the last status of a pod when the agent ends: the API may be ending too."""

log = get_logger("nodeagent")


class Events(Protocol):
    """Where to tell people what happened."""

    def event(
        self, obj: KubeObject, type: Literal["Normal", "Warning"], reason: str, message: str
    ) -> None:
        """Report that *reason* happened to *obj*; returns at once."""
        ...


@dataclass(frozen=True, slots=True)
class Tools:
    """What workers share."""

    client: KubeClient
    clock: Clock
    rng: Random
    ids: IdSource
    state_dir: StateDir
    logs: LogStore
    launcher: Launcher
    processes: ProcessRuntime
    network: Network
    events: Events
    policy: Policy


class PodWorker:
    """Runs one pod until it is gone."""

    def __init__(self, pod: Pod, run: PodRun, tools: Tools) -> None:
        self.pod = pod
        self.run = run
        self._tools = tools
        self._wake = asyncio.Event()
        self._running: dict[str, tuple[Process, ProcessSpec]] = {}
        self._saved: PodRun | None = None
        self._writer = StatusWriter(tools.client, pod, self._status, tools.rng)
        self._group: asyncio.TaskGroup | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.removed = False
        """The pod was deleted and all is done for it."""

    @property
    def vanished(self) -> bool:
        """Whether the pod is no longer in the API."""
        return self._writer.gone

    def observe(self, pod: Pod) -> None:
        """The API has a new version of the pod."""
        self.pod = pod
        self._writer.observe(pod)
        self._wake.set()

    def vanish(self) -> None:
        """The API has the pod no more: there is nobody to wait for."""
        self._writer.gone = True
        self._become(runs.stopping(self.run, "vanished", 0.0, self._now()))

    def shut_down(self, bound_s: float) -> None:
        """The agent ends, and in *bound_s* seconds at most, the pod's processes."""
        grace_s = min(bound_s, runs.grace_s(self.pod))
        self._become(runs.stopping(self.run, "shutdown", grace_s, self._now()))

    def recover(self) -> None:
        """Begin again after `work` broke: what ran has been killed with it."""
        self._running.clear()
        self.run = runs.restored(self.run, self._now())

    async def work(self) -> None:
        """Run the pod; return when nothing of it is left and the API knows."""
        async with asyncio.TaskGroup() as group:
            self._group = group
            self._spawn(self._writer.run())
            await self._live()
            # No process is left; what still asks or hooks is asking nobody.
            for task in self._tasks:
                task.cancel()
        self._group = None
        await self._report_end()

    async def _live(self) -> None:
        while True:
            self._wake.clear()
            decision = lifecycle.decide(self.pod, self.run, self._now(), self._tools.policy)
            self.run = decision.run
            self._save()
            for action in decision.actions:
                self._perform(action)
            self._writer.nudge()
            if lifecycle.FinishPod() in decision.actions:
                return
            await self._pause(decision.wake_at)

    async def _pause(self, until: float | None) -> None:
        try:
            async with asyncio.timeout(None if until is None else max(0.0, until - self._now())):
                await self._wake.wait()
        except TimeoutError:
            return

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        assert self._group is not None
        task = self._group.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _perform(self, action: Action) -> None:
        match action:
            case lifecycle.StartContainer():
                self._spawn(self._start(action))
            case lifecycle.RunProbe():
                self._spawn(self._probe(action))
            case lifecycle.RunPreStop():
                self._spawn(self._pre_stop(action))
            case lifecycle.SignalContainer():
                self._signal(action)
            case lifecycle.FinishPod():
                pass

    async def _start(self, action: lifecycle.StartContainer) -> None:
        spec = runs.container_spec(self.pod, action.name)
        container_id = self._tools.ids.uid()
        try:
            program = await self._tools.launcher.prepare(self.pod, spec, self.run, container_id)
            if self.run.get(action.name).kill is not None:
                raise CannotStartError("PodStopped", "the pod ends")
            await self._run(action, spec, program, container_id)
        except (CannotStartError, StartError) as error:
            reason = error.reason if isinstance(error, CannotStartError) else "StartError"
            self._warn("Failed", f"container {action.name}: {error}")
            policy = self._tools.policy
            self._become(
                runs.cannot_start(self.run, action.name, reason, str(error), self._now(), policy)
            )

    async def _run(
        self,
        action: lifecycle.StartContainer,
        spec: Container,
        program: ProcessSpec,
        container_id: str,
    ) -> None:
        tools = self._tools
        output = tools.logs.create(self.run.uid, action.name, action.attempt)
        try:
            process = tools.processes.start(program, output.write)
            self._running[action.name] = (process, program)
            full_id = f"process://{container_id}"
            self._become(
                runs.started(self.run, spec, full_id, process.pid, process.start_ticks, self._now())
            )
            self._save()
            where = {"pod": self.pod.key, "container": action.name, "pid": process.pid}
            log.info("container started", attempt=action.attempt, **where)
            tools.events.event(self.pod, "Normal", "Started", f"Started container {action.name}")
            ended = await process.wait()
        finally:
            output.close()
            self._running.pop(action.name, None)
        self._ended(action.name, ended)

    def _ended(self, name: str, ended: ProcessExit) -> None:
        now, policy = self._now(), self._tools.policy
        self._become(runs.exited(self.run, name, ended.code, ended.signal, now, policy))
        log.info("container ended", pod=self.pod.key, container=name, code=ended.code)
        wait_s = self.run.get(name).not_before - now
        if wait_s > 0 and self.run.stop is None:
            self._warn("BackOff", f"Back-off restarting failed container {name}")

    async def _probe(self, action: lifecycle.RunProbe) -> None:
        spec = runs.container_spec(self.pod, action.name)
        probe = runs.probe_spec(spec, action.kind)
        running = self._running.get(action.name)
        if probe is None or running is None:
            return
        tools = self._tools
        outcome = await ask(probe, spec, self.run.ip, running[1], tools.network, tools.processes)
        if not outcome.ok and self.run.get(action.name).attempt == action.attempt:
            text = f"{action.kind.capitalize()} probe failed: {outcome.message}"
            self._warn("Unhealthy", text)
        self._become(
            runs.probed(
                self.run,
                spec,
                action.kind,
                action.attempt,
                outcome.ok,
                outcome.message,
                self._now(),
            )
        )

    async def _pre_stop(self, action: lifecycle.RunPreStop) -> None:
        spec = runs.container_spec(self.pod, action.name)
        hook = (spec.lifecycle or {}).get("preStop") or {}
        running = self._running.get(action.name)
        if "sleep" in hook:
            await asyncio.sleep(min(float(hook["sleep"].get("seconds", 0)), action.timeout_s))
        elif running is not None:
            command = (hook.get("exec") or {}).get("command") or []
            code, output = await run_command(
                self._tools.processes, running[1], command, action.timeout_s
            )
            if code != 0:
                self._warn("FailedPreStopHook", f"container {action.name}: {code}: {output}")
        self._become(runs.pre_stop_done(self.run, action.name, action.attempt))

    def _signal(self, action: lifecycle.SignalContainer) -> None:
        running = self._running.get(action.name)
        if running is None:
            return
        text = f"Stopping container {action.name} ({action.reason})"
        self._tools.events.event(self.pod, "Normal", "Killing", text)
        log.info(
            "signal",
            pod=self.pod.key,
            container=action.name,
            number=int(action.number),
            reason=action.reason,
        )
        running[0].signal(action.number)

    async def _report_end(self) -> None:
        """Write the last status and, where deletion was asked for, remove the pod."""
        assert self.run.stop is not None
        if self._writer.gone:
            return
        if self.run.stop.reason == "shutdown":
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LAST_REPORT_S):
                    await self._writer.flush()
            return
        await self._writer.flush()
        if self.run.stop.reason == "deleted":
            await self._remove()
            self.removed = True

    async def _remove(self) -> None:
        """Remove the pod from the API; it, and no other of its name."""
        failures = 0
        while True:
            try:
                await self._tools.client.delete(
                    Pod, self.run.name, self.run.namespace, grace_period_s=0, uid=self.run.uid
                )
            except (NotFoundError, ConflictError):
                return
            except (ApiError, TransportError) as error:
                failures += 1
                log.warning("pod not removed", pod=self.pod.key, error=str(error))
                await asyncio.sleep(RETRY.delay_s(failures, self._tools.rng))
            else:
                return

    def _become(self, run: PodRun) -> None:
        self.run = run
        self._wake.set()

    def _save(self) -> None:
        kept = durable(self.run)
        if kept != self._saved:
            self._tools.state_dir.save(kept)
            self._saved = kept

    def _status(self, pod: Pod) -> PodStatus:
        return status_of(pod, self.run, self._now())

    def _warn(self, reason: str, message: str) -> None:
        self._tools.events.event(self.pod, "Warning", reason, message)

    def _now(self) -> float:
        return self._tools.clock.now()
