"""Runs reconcilers: informers tell which keys changed, workers bring each to its wanted state.

A reconciler is level-based: it is given a key, looks at what is, and does what is missing. It may
be called without a change and is called once for many; so after a crash, a lost event or a failed
call the next run repairs everything.

The invariants: no two reconciles of one key of a controller run at a time; no controller runs
before all informers know the first list; a key whose reconcile raised is reconciled again.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from spinney.api.meta import KubeObject
from spinney.errors import SpinneyError
from spinney.kube.errors import ApiError, ConflictError
from spinney.kube.informer import Change, Informer
from spinney.kube.transport import TransportError
from spinney.kube.workqueue import WorkQueue
from spinney.log import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable
    from random import Random

    from spinney.clock import Clock
    from spinney.kube.client import KubeClient

T = TypeVar("T", bound=KubeObject)

SYNC_NOTICE_S = 15.0
"""How often a runtime whose informers do not get their first list says so."""

log = get_logger("controller")


@dataclass(frozen=True, slots=True)
class Result:
    """What a reconcile that did not fail wants next."""

    requeue_after_s: float | None = None
    """Reconcile the key again after this time, even if nothing changes."""


class Reconciler(Protocol):
    """Brings what a key names to its wanted state."""

    async def reconcile(self, key: str) -> Result | None:
        """Do what is missing for *key* (``namespace/name``, or a bare name).

        The object may be gone. Anything raised makes the key come back after a back-off.
        """
        ...


class _Metrics:
    """What is measured of all controllers of a runtime."""

    def __init__(self, registry: CollectorRegistry) -> None:
        label = ("controller",)
        self.depth = Gauge(
            "spinney_workqueue_depth", "Keys that are ready for a worker.", label, registry=registry
        )
        self.adds = Counter("spinney_workqueue_adds", "Keys made ready.", label, registry=registry)
        self.retries = Counter(
            "spinney_workqueue_retries", "Keys sent back after a failure.", label, registry=registry
        )
        self.seconds = Histogram(
            "spinney_reconcile_seconds", "Time of one reconcile.", label, registry=registry
        )

    def observe(self, controller: Controller, before: tuple[int, int], seconds: float) -> None:
        queue, name = controller.queue, controller.name
        self.depth.labels(name).set(len(queue))
        self.adds.labels(name).inc(queue.adds - before[0])
        self.retries.labels(name).inc(queue.retries - before[1])
        self.seconds.labels(name).observe(seconds)


class Controller:
    """A reconciler with its queue of keys and its workers."""

    def __init__(
        self,
        name: str,
        reconciler: Reconciler,
        *,
        rng: Random,
        concurrency: int = 1,
        metrics: _Metrics | None = None,
    ) -> None:
        self.name = name
        self.queue = WorkQueue(rng=rng)
        self._reconciler = reconciler
        self._concurrency = concurrency
        self._metrics = metrics
        self._measured = (0, 0)
        self._log = log.bind(controller=name)

    def watch(self, informer: Informer[T], keys: Callable[[T], Iterable[str]]) -> None:
        """Enqueue the keys of the old and of the new state on each change of an object."""
        queue = self.queue

        def changed(change: Change[T]) -> None:
            old, new = change.old, change.new
            if old is not None:
                for key in keys(old):
                    queue.add(key)
            if new is not None:
                for key in keys(new):
                    queue.add(key)

        informer.add_handler(changed)

    def enqueue(self, key: str, after_s: float = 0.0) -> None:
        """Reconcile *key* soon, or in *after_s* seconds."""
        self.queue.add_after(key, after_s)

    async def run(self) -> None:
        """Reconcile until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                for worker in range(self._concurrency):
                    group.create_task(self._work(), name=f"{self.name}-{worker}")
        finally:
            self.queue.close()

    async def _work(self) -> None:
        while True:
            key = await self.queue.get()
            try:
                await self._reconcile(key)
            finally:
                self.queue.done(key)

    async def _reconcile(self, key: str) -> None:
        loop = asyncio.get_running_loop()
        started_s = loop.time()
        try:
            result = await self._reconciler.reconcile(key)
        except Exception as error:  # noqa: BLE001  # Whatever it is, the key has to come back.
            self._failed(key, error)
        else:
            self.queue.forget(key)
            if result is not None and result.requeue_after_s is not None:
                self.queue.add_after(key, result.requeue_after_s)
        if self._metrics is not None:
            self._metrics.observe(self, self._measured, loop.time() - started_s)
            self._measured = (self.queue.adds, self.queue.retries)

    def _failed(self, key: str, error: Exception) -> None:
        asked_s = error.retry_after_s if isinstance(error, ApiError) else 0.0
        delay_s = self.queue.retry(key, asked_s)
        fields: dict[str, Any] = {
            "key": key,
            "error": str(error) or repr(error),
            "retry_in_s": round(delay_s, 3),
            "failures": self.queue.failures(key),
        }
        if isinstance(error, ConflictError):
            # Somebody else wrote first: a fresh look is all it takes.
            self._log.debug("reconcile lost a race", **fields)
        elif isinstance(error, SpinneyError | TransportError):
            self._log.warning("reconcile failed", **fields)
        else:
            self._log.error("reconcile failed", exc_info=error, **fields)


class Runtime:
    """Shared informers and the controllers that live on them."""

    def __init__(
        self,
        client: KubeClient,
        clock: Clock,
        *,
        rng: Random,
        registry: CollectorRegistry | None = None,
    ) -> None:
        self.client = client
        self.clock = clock
        self._rng = rng
        self._metrics = _Metrics(registry) if registry is not None else None
        self._informers: dict[tuple[type[KubeObject], str | None, str, str], Informer[Any]] = {}
        self._controllers: dict[str, Controller] = {}
        self._group: asyncio.TaskGroup | None = None

    def informer(
        self, kind: type[T], namespace: str | None = None, *, labels: str = "", fields: str = ""
    ) -> Informer[T]:
        """Return the informer of these arguments, the same one each time.

        One made while the runtime runs is started at once; wait for it with ``wait_synced``.
        """
        key = (kind, namespace, labels, fields)
        found = self._informers.get(key)
        if found is None:
            found = Informer(
                self.client, kind, namespace, rng=self._rng, labels=labels, fields=fields
            )
            self._informers[key] = found
            if self._group is not None:
                _start(self._group, found.run(), f"informer-{kind.RESOURCE.name}")
        return found

    def controller(self, name: str, reconciler: Reconciler, *, concurrency: int = 1) -> Controller:
        """Make a controller; *concurrency* keys are reconciled at a time. Names are unique."""
        if name in self._controllers:
            raise ValueError(f"controller {name!r} is there already; choose another name")
        made = Controller(
            name, reconciler, rng=self._rng, concurrency=concurrency, metrics=self._metrics
        )
        self._controllers[name] = made
        if self._group is not None:
            _start(self._group, self._run_controller(made), f"controller-{name}")
        return made

    async def wait_synced(self) -> None:
        """Wait until every informer made so far has its first list."""
        for informer in list(self._informers.values()):
            while not informer.synced:
                try:
                    async with asyncio.timeout(SYNC_NOTICE_S):
                        await informer.wait_synced()
                except TimeoutError:
                    log.warning("still no first list", resource=informer.kind.RESOURCE.name)

    async def run(self) -> None:
        """Run informers and controllers until cancelled; raises what breaks one of them."""
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                for (kind, *_), informer in self._informers.items():
                    group.create_task(informer.run(), name=f"informer-{kind.RESOURCE.name}")
                for name, controller in self._controllers.items():
                    group.create_task(self._run_controller(controller), name=f"controller-{name}")
                # Without this a runtime that has nothing to run yet would end.
                await asyncio.get_running_loop().create_future()
        finally:
            self._group = None

    async def _run_controller(self, controller: Controller) -> None:
        await self.wait_synced()
        await controller.run()


def _start(group: asyncio.TaskGroup, work: Coroutine[Any, Any, None], name: str) -> None:
    """Start *work* in *group*; while the group is shut down nothing starts any more."""
    try:
        group.create_task(work, name=name)
    except RuntimeError:
        work.close()
