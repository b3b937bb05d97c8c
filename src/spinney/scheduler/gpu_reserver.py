"""Keeps a reservation pod for each shared GPU, and tells bindings which device it is.

Level-based: after each cycle what there is is compared with what the sharers on nodes need, those
included that are only assumed there. So a pod that is about to be bound has its GPU held before the
API knows of it, one whose binding failed lets go of it, and a restart finds what it left behind.
No comparison is made before the first cycle, which places the pods again that were under way.

One worker decides and writes. A reservation that it has decided to delete is not given to a
binding any more, whatever the API still shows.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from spinney.api import names
from spinney.api.core import Namespace, Node, Pod
from spinney.api.meta import ObjectMeta
from spinney.errors import SpinneyError
from spinney.kube.controller import Result
from spinney.kube.errors import (
    AlreadyExistsError,
    ApiError,
    BusyError,
    ConflictError,
    NotFoundError,
)
from spinney.kube.transport import TransportError
from spinney.log import get_logger
from spinney.scheduler.gpu_reservations import (
    Plan,
    Reservation,
    SharedGpu,
    gpus_of,
    owner_of,
    plan,
    reservation_of,
    reservation_pod,
    reservations_wanted,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from spinney.kube.controller import Controller, Runtime
    from spinney.kube.informer import Change, Informer
    from spinney.scheduler.cache import Cache
    from spinney.scheduler.config import SchedulerConfig
    from spinney.scheduler.shapes import PodInfo
    from spinney.scheduler.verdict import Binding

RESERVATION_WAIT_S = 120.0
"""How long a pod that is placed waits for its GPUs to be held before it is placed anew."""
RESERVATION_LOOK_S = 0.1
REFUSED_S = 30.0
"""When a reservation that came to nothing is made again, if pods still need it."""
KEY = "cluster"
_INDEX = "gpu-reservation"

log = get_logger("scheduler")


class NoReservationError(SpinneyError):
    """A GPU that a pod shares is not held for it."""


class GpuReserver:
    """Makes and deletes reservations. Off by configuration, it only deletes those left over."""

    def __init__(
        self, runtime: Runtime, cache: Cache, pods: Informer[Pod], config: SchedulerConfig
    ) -> None:
        self._client = runtime.client
        self._cache = cache
        self._pods = pods
        self._config = config
        self._owner = owner_of(config)
        self._on = config.gpu_reservation in ("device", "made-up")
        self._begun = False
        self._going: set[str] = set()
        """Uids of reservations that were decided to be deleted."""
        self._refused: dict[SharedGpu, tuple[str, float]] = {}
        """What the last try for a GPU came to, and when to try again, in loop time."""
        self._controller: Controller = runtime.controller("gpu-reservations", self)
        self._nodes = runtime.informer(Node)
        pods.add_index(_INDEX, lambda pod: [KEY] if names.GPU_RESERVATION in pod.labels else [])
        self._nodes.add_handler(self._node_changed)

    def _node_changed(self, change: Change[Node]) -> None:
        if change.new is None and self._begun:
            self.compare()

    # What cycles and bindings ask

    def compare(self) -> None:
        """Look soon whether there are the reservations that there should be."""
        self._begun = True
        self._controller.enqueue(KEY)

    def awaited(self, binding: Binding) -> bool:
        """Tell whether *binding* has to wait until its GPUs are held."""
        return self._on and not all(map(self._device, gpus_of(binding.node, binding.devices)))

    async def settle(self, pod: PodInfo) -> tuple[str, ...]:
        """Return the devices of *pod*, which is assumed on its node, when they are held.

        Raises NoReservationError. Without reservations it is what the scheduler calls them.
        """
        if not self._on:
            return pod.gpu_groups
        gpus = gpus_of(pod.node, pod.gpu_groups)
        for _ in range(int(RESERVATION_WAIT_S / RESERVATION_LOOK_S)):
            devices = tuple(map(self._device, gpus))
            if all(devices):
                return devices
            for gpu in gpus:
                if gpu in self._refused:
                    raise NoReservationError(f"{self._named(gpu)}: {self._refused[gpu][0]}")
            await asyncio.sleep(RESERVATION_LOOK_S)
        missing = ", ".join(self._named(gpu) for gpu in gpus if not self._device(gpu))
        raise NoReservationError(
            f"{missing}: does not run, or does not say its device, after {RESERVATION_WAIT_S:g} s; "
            f"look at the pod's events and log"
        )

    def _named(self, gpu: SharedGpu) -> str:
        return f"reservation {self._config.gpu_reservation_namespace}/{gpu.pod_name}"

    def _device(self, gpu: SharedGpu) -> str:
        """Return the device that *gpu* is; empty while it is not held."""
        pod = self._pods.get(gpu.pod_name, self._config.gpu_reservation_namespace)
        if pod is None or pod.metadata.uid in self._going:
            return ""
        return reservation_of(pod).device

    # The comparison

    async def reconcile(self, key: str) -> Result | None:
        """Make and delete what there should and should not be; raise the first that failed."""
        sharers = self._cache.sharers()
        found = self._decide(sharers)
        failures = [await self._delete(over) for over in found.delete]
        failures += [await self._create(gpu, sharers) for gpu in found.create]
        for failure in failures:
            if failure is not None:
                raise failure
        return Result(REFUSED_S) if self._refused else None

    def _decide(self, sharers: Sequence[PodInfo]) -> Plan:
        standing = [reservation_of(pod) for pod in self._pods.by_index(_INDEX, KEY)]
        self._going &= {found.uid for found in standing}
        nodes = {pod.node for pod in sharers} | {found.gpu.node for found in standing}
        wanted, now_s = reservations_wanted(sharers), asyncio.get_running_loop().time()
        self._refused = {
            gpu: refused
            for gpu, refused in self._refused.items()
            if gpu in wanted and refused[1] > now_s
        }
        for found in standing:
            if found.stage == "ended" and found.gpu in wanted:
                self._refuse(found.gpu, f"it has ended: {found.ended_because}")
        decided = plan(
            sharers,
            standing,
            {node for node in nodes if self._nodes.get(node) is not None},
            self._owner,
            reserve=self._on,
            going=self._going,
        )
        self._going.update(over.uid for over in decided.delete)
        create = tuple(gpu for gpu in decided.create if gpu not in self._refused)
        return Plan(create, decided.delete)

    def _refuse(self, gpu: SharedGpu, reason: str) -> None:
        log.warning("gpu is not held", node=gpu.node, gpu=gpu.group, reason=reason)
        self._refused[gpu] = (reason, asyncio.get_running_loop().time() + REFUSED_S)

    async def _delete(self, over: Reservation) -> Exception | None:
        """Delete *over*; at once where no program and no kubelet has to end for it."""
        gone = over.stage == "ended" or self._nodes.get(over.gpu.node) is None
        try:
            await self._client.delete(
                Pod, over.name, over.namespace, grace_period_s=0 if gone else None, uid=over.uid
            )
        except (NotFoundError, ConflictError):
            return None
        except ApiError as error:
            self._going.discard(over.uid)
            return error
        except TransportError as error:
            # Perhaps it is being deleted: nobody is given it, and it is deleted once more.
            return error
        log.info("gpu is let go", node=over.gpu.node, gpu=over.gpu.group, device=over.device)
        return None

    async def _create(self, gpu: SharedGpu, sharers: Sequence[PodInfo]) -> Exception | None:
        try:
            await self._create_pod(gpu)
        except AlreadyExistsError:
            return None
        except (BusyError, TransportError) as error:
            return error
        except ApiError as error:
            self._refuse(gpu, str(error))
            return None
        running = [
            pod.key
            for pod in sharers
            if gpu in gpus_of(pod.node, pod.gpu_groups) and self._cache.confirmed(pod.key)
        ]
        log.info("gpu is reserved", node=gpu.node, gpu=gpu.group, pod=gpu.pod_name)
        if running:
            log.warning("gpu of running pods was not held", node=gpu.node, pods=", ".join(running))
        return None

    async def _create_pod(self, gpu: SharedGpu) -> None:
        pod = reservation_pod(gpu, self._config)
        try:
            await self._client.create(pod)
        except NotFoundError:
            await self._create_namespace()
            await self._client.create(pod)

    async def _create_namespace(self) -> None:
        name = self._config.gpu_reservation_namespace
        try:
            await self._client.create(Namespace(metadata=ObjectMeta(name=name)))
        except AlreadyExistsError:
            return
