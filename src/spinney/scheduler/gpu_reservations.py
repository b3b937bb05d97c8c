"""Which pods hold shared GPUs against the device plugin: what there should be, and what to change.

The device plugin gives whole devices to whoever asks for ``nvidia.com/gpu``; pods that share one
ask for none. So each shared GPU is asked for by a pod of its own, the reservation, which says which
device it was given.

Invariant: a shared GPU has one reservation at most, for its name follows from node and GPU; and one
that a pod on the node may still use is never let go.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from spinney.api import names
from spinney.api.core import Container, EnvVar, Pod, PodSpec, ResourceRequirements, Toleration
from spinney.api.meta import ObjectMeta
from spinney.scheduler.gpu_share import GPU

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from spinney.scheduler.config import SchedulerConfig
    from spinney.scheduler.shapes import PodInfo

NO_SCHEDULER = "spinney-gpu-reservation"
"""Who places a reservation: nobody, it is made with its node."""
SERVICE_ACCOUNT = "spinney-gpu-reservation"
_LABEL_LENGTH = 63
_NODE_LENGTH = 40

Stage = Literal["starting", "holding", "leaving", "ended"]


@dataclass(frozen=True, slots=True, order=True)
class SharedGpu:
    """A GPU that is shared, as the scheduler names it."""

    node: str
    group: str

    @property
    def pod_name(self) -> str:
        """The name of its reservation; the same again after a restart."""
        node = self.node[:_NODE_LENGTH].rstrip(".-")
        return f"gpu-{node}-{_digest(f'{self.node}/{self.group}')}"


@dataclass(frozen=True, slots=True)
class Reservation:
    """A pod that holds a GPU, as it stands."""

    gpu: SharedGpu
    name: str
    namespace: str
    uid: str
    owner: str
    """The scheduler that keeps it."""
    stage: Stage
    device: str = ""
    """What it says it was given; known when it is holding."""
    ended_because: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do for the reservations to be those that are wanted."""

    create: tuple[SharedGpu, ...] = ()
    delete: tuple[Reservation, ...] = ()


def owner_of(config: SchedulerConfig) -> str:
    """Return what marks the reservations of the scheduler with *config*, as a label's value."""
    name = config.scheduler_names[0] if config.scheduler_names else ""
    owner = f"{name}.{config.pool or 'rest'}" if config.pool_key else name
    return owner if len(owner) <= _LABEL_LENGTH else _digest(owner)


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=5).hexdigest()


def reservations_wanted(sharers: Iterable[PodInfo]) -> frozenset[SharedGpu]:
    """Return the GPUs that *sharers* which this scheduler placed are to keep."""
    return frozenset(
        gpu
        for pod in sharers
        if pod.ours and pod.state == "active"
        for gpu in gpus_of(pod.node, pod.gpu_groups)
    )


def gpus_of(node: str, groups: Iterable[str]) -> tuple[SharedGpu, ...]:
    """Return the GPUs that the scheduler calls *groups* on *node*."""
    return tuple(SharedGpu(node, group) for group in groups)


def reservation_of(pod: Pod) -> Reservation:
    """Return the reservation that *pod* is, which has its label."""
    device = pod.metadata.annotations.get(names.RESERVED_DEVICE, "")
    if pod.status.phase in ("Succeeded", "Failed"):
        stage: Stage = "ended"
    elif pod.deleting:
        stage = "leaving"
    else:
        stage = "holding" if device and pod.status.phase == "Running" else "starting"
    return Reservation(
        SharedGpu(pod.spec.node_name, pod.labels.get(names.GPU_RESERVATION, "")),
        pod.name,
        pod.namespace,
        pod.metadata.uid,
        pod.labels.get(names.GPU_RESERVATION_OWNER, ""),
        stage,
        device if stage == "holding" else "",
        f"{pod.status.reason}: {pod.status.message}".strip(": ") or pod.status.phase,
    )


def plan(
    sharers: Collection[PodInfo],
    standing: Iterable[Reservation],
    nodes: Collection[str],
    owner: str,
    *,
    reserve: bool = True,
    going: Collection[str] = (),
) -> Plan:
    """Return what to change so that the GPUs of *sharers* are held, and no others.

    *sharers* are all pods on nodes that have parts of GPUs, other schedulers' and those that are
    leaving included: they keep their GPU from being let go. *nodes* are those that exist. *going*
    are uids whose deletion was asked for, perhaps without success. Without *reserve* nothing is
    made any more. Only reservations of *owner* are deleted.
    """
    used = {gpu for pod in sharers for gpu in gpus_of(pod.node, pod.gpu_groups)}
    wanted = reservations_wanted(sharers) if reserve else frozenset()
    known = list(standing)
    there = {found.gpu for found in known}
    return Plan(
        tuple(sorted(gpu for gpu in wanted - there if gpu.node in nodes)),
        tuple(
            found
            for found in sorted(known, key=lambda r: r.name)
            if found.owner == owner and _is_over(found, used, nodes, going)
        ),
    )


def _is_over(
    found: Reservation,
    used: Collection[SharedGpu],
    nodes: Collection[str],
    going: Collection[str],
) -> bool:
    if found.gpu.node not in nodes:
        # No kubelet confirms the end of its pods any more.
        return True
    if found.stage == "leaving":
        return False
    return found.stage == "ended" or found.gpu not in used or found.uid in going


def reservation_pod(gpu: SharedGpu, config: SchedulerConfig) -> Pod:
    """Return the pod that holds *gpu*: on its node already, and there whatever taints come.

    It asks for nothing but the GPU, so that the node has room for it where it has room for a pod.
    """
    made_up = config.gpu_reservation == "made-up"
    container = Container(
        name="reservation",
        image=config.gpu_reservation_image,
        command=["spinney", "gpu-reservation"],
        args=["--made-up", gpu.group] if made_up else [],
        env=[
            EnvVar(name=variable, value_from={"fieldRef": {"fieldPath": path}})
            for variable, path in (
                ("POD_NAME", "metadata.name"),
                ("POD_NAMESPACE", "metadata.namespace"),
            )
        ],
        resources=ResourceRequirements(requests={GPU: 1}, limits={GPU: 1}),
    )
    labels = {names.GPU_RESERVATION: gpu.group, names.GPU_RESERVATION_OWNER: owner_of(config)}
    return Pod(
        metadata=ObjectMeta(
            name=gpu.pod_name, namespace=config.gpu_reservation_namespace, labels=labels
        ),
        spec=PodSpec(
            containers=[container],
            node_name=gpu.node,
            scheduler_name=NO_SCHEDULER,
            service_account_name=SERVICE_ACCOUNT,
            tolerations=[Toleration(operator="Exists")],
        ),
    )
