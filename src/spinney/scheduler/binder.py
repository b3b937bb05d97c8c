"""Tells the API which pod goes where: gang by gang, the pods of one gang several at a time.

A binding cannot be taken back. So a gang's first pod is bound alone: two schedulers that place one
gang at a time both begin with the same pod, one of them is refused, and gives up the whole gang.
From then on the first failure ends the gang's turn: pods that are not sent yet return to
pending, those that are bound stay, count and pin the domain, and the next cycle places the others
beside them under the same constraints or, where that cannot be, the gang is evicted as stale.

Before each binding the node is looked at again, before the first one those of the whole gang: when
another scheduler has used the room meanwhile, that is a failure too. Nothing is bound twice: the
API refuses a pod that has a node, or that is another pod by now.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from spinney.api.core import Pod
from spinney.errors import SpinneyError
from spinney.kube.errors import ApiError, BusyError, ConflictError
from spinney.kube.transport import TransportError
from spinney.log import get_logger
from spinney.scheduler.bind_claims import NoVolumeError
from spinney.scheduler.device_allocation import NoDevicesError
from spinney.scheduler.gpu_reserver import NoReservationError
from spinney.scheduler.shapes import DEVICES, GROUPS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from spinney.kube.client import KubeClient
    from spinney.scheduler.bind_claims import ClaimBinder
    from spinney.scheduler.cache import Cache
    from spinney.scheduler.gpu_reserver import GpuReserver
    from spinney.scheduler.verdict import Binding

CONCURRENT_BINDS = 32
"""Binding calls that are under way at a time."""
BIND_ATTEMPTS = 4
"""Tries of one binding when the API is busy or not reachable."""
BIND_RETRY_S = 0.1
"""The wait after the first failed try; it doubles."""

RECEIVED = "received-resource-type"
"""Annotation of a pod that got a part of a GPU: ``Fraction``."""

log = get_logger("scheduler")


class RoomLostError(SpinneyError):
    """A node cannot take a pod any more that was placed there."""


_FAILURES = (
    ApiError,
    TransportError,
    RoomLostError,
    NoDevicesError,
    NoVolumeError,
    NoReservationError,
)


@dataclass(slots=True)
class BindReport:
    """What became of some bindings."""

    bound: list[Binding] = field(default_factory=list)
    failed: list[Binding] = field(default_factory=list)
    """Pods that are pending again: their own binding failed, or another of their gang did."""
    conflicts: int = 0
    """Failures because somebody else was faster: with the pod, or with room on its node."""
    refused: set[str] = field(default_factory=set)
    """Gangs of which a binding failed for another reason, which may last."""


class Binder:
    """Sends bindings, and keeps the cache's assumptions true."""

    def __init__(
        self, client: KubeClient, cache: Cache, claims: ClaimBinder, gpus: GpuReserver
    ) -> None:
        self._client = client
        self._cache = cache
        self._claims = claims
        self._gpus = gpus

    async def bind(self, bindings: Sequence[Binding]) -> BindReport:
        """Assume all *bindings*, send them, and return what became of them."""
        gangs: dict[str, list[Binding]] = {}
        for binding in bindings:
            gangs.setdefault(binding.gang, []).append(binding)
        self.assume(bindings)
        slots, report = asyncio.Semaphore(CONCURRENT_BINDS), BindReport()
        async with asyncio.TaskGroup() as group:
            for members in gangs.values():
                group.create_task(_GangTurn(self, slots, report).run(members))
        return report

    def assume(self, bindings: Sequence[Binding]) -> None:
        """Count pods as on their nodes, before anything is sent."""
        for binding in bindings:
            self._cache.assume(binding.pod, binding.node, binding.devices)

    async def send(self, binding: Binding, beside: Sequence[Binding] = ()) -> None:
        """Bind one pod; raise RoomLostError, or what the API says in the end.

        It is not bound either when one of the pods *beside* it has lost its room.
        """
        self._look_again(binding, beside)
        await self._claims.settle(binding)
        pod = self._cache.pod(binding.pod)
        annotations = {}
        if pod is not None and pod.shape.share is not None:
            devices = await self._gpus.settle(pod)
            annotations = {
                RECEIVED: "Fraction",
                GROUPS: ",".join(pod.gpu_groups),
                DEVICES: ",".join(devices),
            }
        await self._send(binding, beside, annotations)

    def _look_again(self, binding: Binding, beside: Sequence[Binding]) -> None:
        for other in (binding, *beside):
            if conflict := self._cache.conflict(other.pod):
                raise RoomLostError(f"pod {other.pod} is placed anew: {conflict}")

    async def _send(
        self, binding: Binding, beside: Sequence[Binding], annotations: dict[str, str]
    ) -> None:
        namespace, _, name = binding.pod.partition("/")
        for attempt in range(BIND_ATTEMPTS):
            self._look_again(binding, beside)
            try:
                await self._client.bind(
                    name, namespace, binding.node, uid=binding.uid, annotations=annotations
                )
            except (BusyError, TransportError) as error:
                if attempt + 1 == BIND_ATTEMPTS:
                    raise
                asked_s = error.retry_after_s if isinstance(error, BusyError) else 0.0
                await asyncio.sleep(max(asked_s, BIND_RETRY_S * 2**attempt))
            except ConflictError:
                if attempt == 0 or not await self._is_bound(binding):
                    raise
                return
            else:
                return

    async def give_up(self, binding: Binding) -> None:
        """Take the assumption of *binding* back."""
        self._cache.forget(binding.pod)
        await self._claims.release(binding.pod)

    async def _is_bound(self, binding: Binding) -> bool:
        """Tell whether the pod is on its node already: an answer to us was lost."""
        namespace, _, name = binding.pod.partition("/")
        pod = await self._client.get(Pod, name, namespace)
        return pod.metadata.uid == binding.uid and pod.spec.node_name == binding.node


class _GangTurn:
    """The bindings of one gang, up to the first that fails."""

    def __init__(self, binder: Binder, slots: asyncio.Semaphore, report: BindReport) -> None:
        self._binder = binder
        self._slots = slots
        self._report = report
        self._broken = False

    async def run(self, members: Sequence[Binding]) -> None:
        first, *others = sorted(members, key=lambda binding: binding.pod)
        await self._one(first, others)
        async with asyncio.TaskGroup() as group:
            for binding in others:
                group.create_task(self._one(binding))

    async def _one(self, binding: Binding, beside: Sequence[Binding] = ()) -> None:
        async with self._slots:
            if not self._broken and await self._sent(binding, beside):
                self._report.bound.append(binding)
                return
        self._broken = True
        await self._binder.give_up(binding)
        self._report.failed.append(binding)

    async def _sent(self, binding: Binding, beside: Sequence[Binding]) -> bool:
        try:
            await self._binder.send(binding, beside)
        except _FAILURES as error:
            if isinstance(error, ConflictError | RoomLostError):
                self._report.conflicts += 1
            else:
                self._report.refused.add(binding.gang)
            log.warning("bind failed", pod=binding.pod, node=binding.node, error=str(error))
            return False
        return True
