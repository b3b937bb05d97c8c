"""What one pod asks of a node, reduced to a value that can be compared.

Pods made from one template ask for the same. A `Shape` is that question: pods of one shape are
interchangeable to every filter that looks at nodes only: the question is answered once for all of
them. Amounts are integers in thousandths: no sum ever rounds.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from spinney.api import quantity
from spinney.errors import BadInputError
from spinney.scheduler.affinity import (
    NodeTerm,
    PodTerm,
    Spread,
    affinity_of,
    spreads_of,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from spinney.api.core import Container, Pod, PodSpec
    from spinney.scheduler.sources.spec import GangSpec

Requests = tuple[tuple[str, int], ...]
"""Resource names with amounts in thousandths, sorted by name, zeros left out."""

PODS = "pods"
"""The resource of which every pod takes one: how many pods a node may run."""

SHARED_GPU = "shared.nvidia.com/gpu"
"""The resource that parts of GPUs are counted in: as much as the node has GPUs."""

TASK_PRIORITY = "kai.scheduler/task-priority"
"""Pod label: which pods of a group come first; a number, larger first."""

PodState = Literal["gated", "pending", "active", "leaving", "ended"]
"""``active`` is on a node; ``leaving`` too, but deletion was asked for; ``ended`` holds nothing."""


@dataclass(frozen=True, slots=True)
class Tolerance:
    """A toleration."""

    key: str
    operator: str
    value: str
    effect: str

    def tolerates(self, key: str, value: str, effect: str) -> bool:
        """Tell whether a taint of *key*, *value* and *effect* does not keep the pod away."""
        if self.effect and self.effect != effect:
            return False
        if self.key and self.key != key:
            return False
        return self.operator == "Exists" or (bool(self.key) and self.value == value)


@dataclass(frozen=True, slots=True)
class GpuShare:
    """A part of one GPU, or the same part of several."""

    milli: int = 0
    """Thousandths of a GPU; 0: by memory."""
    memory_mib: int = 0
    devices: int = 1


@dataclass(frozen=True, slots=True)
class Shape:
    """All that a pod asks of the place it runs in."""

    requests: Requests = ()
    node_selector: tuple[tuple[str, str], ...] = ()
    node_required: tuple[NodeTerm, ...] | None = None
    """Any one of them; None asks for nothing."""
    node_preferred: tuple[tuple[int, NodeTerm], ...] = ()
    tolerances: tuple[Tolerance, ...] = ()
    host_ports: tuple[tuple[str, int], ...] = ()
    """Protocol and port."""
    pod_affinity: tuple[PodTerm, ...] = ()
    pod_anti_affinity: tuple[PodTerm, ...] = ()
    pod_preferred: tuple[tuple[int, PodTerm], ...] = ()
    """Weights; those of preferred anti-affinity are negative."""
    spread: tuple[Spread, ...] = ()
    share: GpuShare | None = None
    volumes: tuple[tuple[NodeTerm, ...], ...] = ()
    """For each volume bound to nodes, the terms of which one has to hold."""
    nominated: str = ""
    """The node that the API names for a pending pod: it comes before all others."""

    @property
    def looks_at_pods(self) -> bool:
        """Whether it asks for or against other pods."""
        asks = self.pod_affinity or self.pod_anti_affinity or self.pod_preferred
        return bool(asks or self.spread)


@dataclass(frozen=True, slots=True)
class PodInfo:
    """A pod as the scheduler sees it."""

    key: str
    """``namespace/name``."""
    uid: str
    state: PodState
    shape: Shape
    node: str = ""
    gang: str = ""
    """``namespace/name`` of its PodGang; empty for a pod on its own."""
    base_gang: str = ""
    """``namespace/name`` of the gang that this one was scaled out from."""
    ours: bool = True
    """Whether this scheduler is the one to place it."""
    labels: Mapping[str, str] = field(default_factory=dict)
    priority: int | None = None
    priority_class: str = ""
    created: str = ""
    started: str = ""
    """When it came to its node, as the API writes times; empty while it has none."""
    succeeded: bool = False
    """Whether it ended well."""

    group: str = ""
    """The leaf of its gang's tree, where the pod says it."""
    implied: GangSpec | None = None
    """Its gang, where only labels of pods describe it."""
    gpu_groups: tuple[str, ...] = ()
    """Which shared GPUs of its node it is on, where that is known."""
    reserves: str = ""
    """The shared GPU of its node that it holds for its sharers; empty for all other pods."""

    @property
    def rank(self) -> int:
        """Its place among the pods of its group: those with more are chosen first."""
        text = self.labels.get(TASK_PRIORITY, "")
        return int(text) if text.removeprefix("-").isdecimal() else 0

    @property
    def namespace(self) -> str:
        """The part of the key before the slash."""
        return self.key.partition("/")[0]


@functools.lru_cache(maxsize=4096)
def _milli(value: str | int | float) -> int:
    return quantity.milli(value)


def amounts(values: Mapping[str, str | int | float]) -> dict[str, int]:
    """Return quantities in thousandths; raise BadInputError for what is none."""
    return {name: _milli(value) for name, value in values.items()}


def _asked(container: Container) -> dict[str, int]:
    resources = container.resources
    return amounts({**resources.limits, **resources.requests})


def requests_of(spec: PodSpec) -> Requests:
    """Return what the pod needs at its peak: containers together, or an init container alone.

    Init containers that restart always (sidecars) run beside everything that starts after them.
    """
    steady: dict[str, int] = {}
    peak: dict[str, int] = {}
    for container in spec.init_containers:
        asked = _asked(container)
        if container.restart_policy == "Always":
            _add(steady, asked)
            asked = {}
        for name in steady.keys() | asked.keys():
            need = steady.get(name, 0) + asked.get(name, 0)
            peak[name] = max(peak.get(name, 0), need)
    for container in spec.containers:
        _add(steady, _asked(container))
    for name, amount in peak.items():
        steady[name] = max(steady.get(name, 0), amount)
    _add(steady, amounts(spec.overhead))
    steady[PODS] = 1000
    return tuple(sorted((name, amount) for name, amount in steady.items() if amount > 0))


def _add(total: dict[str, int], more: Mapping[str, int]) -> None:
    for name, amount in more.items():
        total[name] = total.get(name, 0) + amount


def shape_of(
    pod: Pod,
    volumes: tuple[tuple[NodeTerm, ...], ...] = (),
    claimed: Mapping[str, int] | None = None,
) -> Shape:
    """Return the shape of *pod*; raise BadInputError for a quantity that is none.

    *volumes* and *claimed* are what its volume claims and resource claims ask for.
    """
    spec = pod.spec
    share = gpu_share(pod)
    affinity = affinity_of(spec.affinity or {}, pod.namespace)
    return Shape(
        requests=_all_requests(spec, share, claimed or {}),
        node_selector=tuple(sorted(spec.node_selector.items())),
        node_required=affinity.node_required,
        node_preferred=affinity.node_preferred,
        tolerances=tuple(
            Tolerance(t.key, t.operator or "Equal", t.value, t.effect) for t in spec.tolerations
        ),
        host_ports=_host_ports(spec),
        pod_affinity=affinity.pod_affinity,
        pod_anti_affinity=affinity.pod_anti_affinity,
        pod_preferred=affinity.pod_preferred,
        spread=spreads_of(spec.topology_spread_constraints, pod.namespace, pod.labels),
        share=share,
        volumes=volumes,
        nominated="" if spec.node_name else pod.status.nominated_node_name,
    )


GPU_FRACTION = "gpu-fraction"
"""Annotation: the part of a GPU a pod takes, between 0 and 1."""
GPU_MEMORY = "gpu-memory"
"""Annotation: the GPU memory a pod takes, in MiB."""
GPU_DEVICES = "gpu-fraction-num-devices"
"""Annotation: of how many GPUs it takes that much."""
GPU_GROUP = "runai-gpu-group"
"""Label, also as a prefix with one id each: the shared GPUs that a pod on a node is on."""


def gpu_share(pod: Pod) -> GpuShare | None:
    """Return the part of a GPU that the pod's annotations ask for; raise BadInputError."""
    annotations = pod.metadata.annotations
    fraction, memory = annotations.get(GPU_FRACTION, ""), annotations.get(GPU_MEMORY, "")
    if not fraction and not memory:
        return None
    devices = annotations.get(GPU_DEVICES, "1")
    if not devices.isdigit() or not int(devices):
        raise BadInputError(f"annotation {GPU_DEVICES}: {devices!r} is no number of GPUs")
    if fraction:
        milli = _milli(fraction)
        if not 0 < milli < 1000:
            raise BadInputError(f"annotation {GPU_FRACTION}: {fraction!r} is not between 0 and 1")
        return GpuShare(milli, 0, int(devices))
    if not memory.isdigit() or not int(memory):
        raise BadInputError(f"annotation {GPU_MEMORY}: {memory!r} is no number of MiB")
    return GpuShare(0, int(memory), int(devices))


GROUPS = "spinney.dev/gpu-groups"
"""Annotation that binding sets: the same, as the scheduler numbers them, ``0`` or ``0,1``."""
DEVICES = "spinney.dev/gpu-devices"
"""Annotation that binding sets: the devices that these are, in the same order.

Without reservations nobody knows, and the scheduler's numbers stand for them."""


def gpu_groups(pod: Pod) -> tuple[str, ...]:
    """Return the shared GPUs that labels or annotations of *pod* name."""
    prefix = f"{GPU_GROUP}/"
    single = pod.labels.get(GPU_GROUP, "")
    several = sorted(key for key in pod.labels if key.startswith(prefix))
    named = tuple(pod.labels[key] or key.removeprefix(prefix) for key in several)
    if named or single:
        return named or (single,)
    annotations = pod.metadata.annotations
    written = annotations.get(GROUPS, "") or annotations.get(DEVICES, "")
    return tuple(filter(None, written.split(",")))


def _all_requests(spec: PodSpec, share: GpuShare | None, claimed: Mapping[str, int]) -> Requests:
    found = dict(requests_of(spec))
    _add(found, claimed)
    if share is not None and share.milli:
        _add(found, {SHARED_GPU: share.milli * share.devices})
    return tuple(sorted(found.items()))


def _host_ports(spec: PodSpec) -> tuple[tuple[str, int], ...]:
    found = set()
    for container in (*spec.init_containers, *spec.containers):
        for port in container.ports:
            number = port.host_port or (port.container_port if spec.host_network else 0)
            if number:
                found.add((port.protocol or "TCP", number))
    return tuple(sorted(found))
