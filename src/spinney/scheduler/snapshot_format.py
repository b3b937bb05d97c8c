"""The format of snapshot files: a cluster's scheduling state, saved or written by hand.

Everything has a default. The structs here are the format: `docs/scheduler-snapshot.md` explains
them, the JSON schema beside it is made from them, and `spinney.scheduler.scenario` turns them
into the API objects that a real cluster would report.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import msgspec

from spinney.api import names
from spinney.errors import BadInputError

if TYPE_CHECKING:
    from collections.abc import Iterator

Amount = str | int | float

PodPhase = Literal["pending", "gated", "running", "leaving", "succeeded", "failed", "absent"]
ON_NODES = ("running", "leaving")


class _Part(
    msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True, rename="camel"
):
    pass


class TaintLine(_Part):
    """Keeps pods that do not tolerate it off a node."""

    key: str
    value: str = ""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] = "NoSchedule"


class NodeLine(_Part):
    """One node, or several alike."""

    name: str
    count: int = 1
    """With more than one, they are named ``<name>-0``, ``<name>-1``, ..."""
    gpus: int = 0
    gpu_memory: int = 0
    """Of each GPU, in MiB; needed by pods that ask for a part of a GPU by memory."""
    cpu: Amount = 64
    memory: Amount = "512Gi"
    pods: int = 110
    labels: dict[str, str] = {}
    taints: list[TaintLine] = []
    unschedulable: bool = False
    ready: bool = True
    allocatable: dict[str, Amount] = {}
    """Further resources, or other amounts of those above."""
    devices: dict[str, int] = {}
    """Devices that resource claims can have, by device class."""
    spec: dict[str, Any] = {}
    """Further fields of the node's ``spec``."""


class PodLine(_Part):
    """One pod of a group; what it does not say is as the group says."""

    name: str = ""
    """``<gang>-<group>-<number>`` unless given."""
    state: PodPhase = "pending"
    node: str = ""
    started: str = ""
    created: str = ""
    """As its gang, unless given."""
    nominated: str = ""
    """The node on which room is kept for it; see ``status.nominatedNodeName`` of pods."""
    gpus: int | None = None
    cpu: Amount | None = None
    memory: Amount | None = None
    requests: dict[str, Amount] | None = None
    gpu_fraction: float | None = None
    gpu_memory: int | None = None
    gpu_devices: int | None = None
    gpu_indices: list[int] | None = None
    claims: dict[str, int] | None = None
    shared_claims: list[str] | None = None
    volumes: list[str] | None = None
    host_ports: list[int | str] | None = None
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    spec: dict[str, Any] = {}
    priority: int | None = None


class PodsLine(_Part):
    """Pods of one template; in a gang, a group of its tree."""

    name: str
    pods: int | list[PodLine] = 1
    """How many there are to place, beside those on nodes; or each pod on its own."""
    gpus: int = 0
    cpu: Amount = 0
    memory: Amount = 0
    requests: dict[str, Amount] = {}
    """Further resources."""
    gpu_fraction: float = 0
    """The part of one GPU it takes, instead of whole ones."""
    gpu_memory: int = 0
    """The memory it takes of one GPU, in MiB, instead of whole ones."""
    gpu_devices: int = 1
    """With a fraction or memory: of how many GPUs it takes that much."""
    claims: dict[str, int] = {}
    """Devices that it claims, by device class."""
    shared_claims: list[str] = []
    """Names of the claims that it shares with other pods."""
    volumes: list[str] = []
    """Names of the volume claims that it mounts."""
    host_ports: list[int | str] = []
    """Such as ``8080`` or ``53/UDP``."""
    sizes: list[int] = []
    """GPUs of each pod to place, where they differ; then ``pods`` and ``gpus`` are not used."""
    on: list[str] = []
    """The nodes of pods that run already."""
    leaving: list[str] = []
    """The nodes of pods that are being deleted."""
    gated: int = 0
    absent: int = 0
    """Pods that the gang lists and that do not exist yet."""
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    spec: dict[str, Any] = {}
    """Further fields of the pods' ``spec``, such as ``nodeSelector`` or ``affinity``."""
    priority: int | None = None
    priority_class: str = ""
    scheduler: str = names.SPINNEY_SCHEDULER

    namespace: str = names.DEFAULT_NAMESPACE
    """Of pods outside of gangs."""
    queue: str = ""
    """Of pods outside of gangs."""
    preemptible: bool | None = None
    """Of pods outside of gangs, whatever their priority."""
    created: str = ""
    """Of pods outside of gangs."""

    minimum: int | None = None
    """In a gang: how many pods it needs, all that the gang lists unless given; with ``groups``, how
    many of them it needs, all unless given."""
    required: str | None = None
    preferred: str | None = None
    groups: list[PodsLine] = []
    """In a gang: the groups below it; then it has no pods itself."""
    within: str = ""
    """In a gang: the constraint of the gang's ``constraints`` it is under."""


class ConstraintLine(_Part):
    """A constraint over several groups of a gang: a short way to write one level of ``groups``."""

    name: str
    required: str | None = None
    preferred: str | None = None


class GangLine(_Part):
    """A gang with its groups."""

    name: str
    groups: list[PodsLine]
    namespace: str = names.DEFAULT_NAMESPACE
    minimum: int | None = None
    """How many of its groups it needs; all unless given."""
    priority: int = 0
    priority_class: str = ""
    required: str | None = None
    preferred: str | None = None
    topology: str = ""
    """The topology that its levels are of, where several have them."""
    constraints: list[ConstraintLine] = []
    base: str = ""
    """The gang it was scaled out from."""
    queue: str = ""
    preemptible: bool | None = None
    """Whatever its priority."""
    created: str = ""
    started: str = ""
    """When its pods came to their nodes; their creation unless given."""
    annotations: dict[str, str] = {}


class ShareLine(_Part):
    """A queue's part of one resource, in GPUs, cores or bytes; -1 is unlimited."""

    quota: Amount = -1
    limit: Amount = -1
    weight: float = 1


class QueueLine(_Part):
    """A queue; what it does not say is not restricted."""

    name: str
    parent: str = ""
    priority: int = 100
    gpus: ShareLine = msgspec.field(default_factory=ShareLine)
    cpu: ShareLine = msgspec.field(default_factory=ShareLine)
    memory: ShareLine = msgspec.field(default_factory=ShareLine)
    preempt_min_runtime: str | None = None
    reclaim_min_runtime: str | None = None
    created: str = ""


class TopologyLine(_Part):
    """A topology: node label keys from broad to narrow."""

    name: str
    levels: list[str]
    domains: list[str] = []
    """What manifests call the levels; the last part of each key unless given, ``host`` for
    ``kubernetes.io/hostname``."""


class PriorityClassLine(_Part):
    """A named priority."""

    name: str
    value: int = 0
    global_default: bool = False


class VolumeLine(_Part):
    """A volume claim that is bound to a volume which only some nodes reach."""

    name: str
    namespace: str = names.DEFAULT_NAMESPACE
    nodes: list[str] = []
    """Names of the nodes that reach it; all unless given."""
    labels: dict[str, str] = {}
    """Labels that a node has to have to reach it."""


class BudgetLine(_Part):
    """A disruption budget: how many of some pods have to run, whoever wants them to move."""

    name: str
    namespace: str = names.DEFAULT_NAMESPACE
    labels: dict[str, str] = {}
    """Labels that the pods have; none: all pods of the namespace."""
    min_available: int | str | None = None
    """A number, or a percentage such as ``50%``."""
    max_unavailable: int | str | None = None
    """1 unless given, where ``minAvailable`` is not."""


class ClaimLine(_Part):
    """A claim for devices that several pods may name: all of them run on one node."""

    name: str
    devices: dict[str, int]
    """By device class."""
    namespace: str = names.DEFAULT_NAMESPACE


class Scenario(_Part):
    """All that a scheduling cycle looks at."""

    version: Literal[1] = 1
    now: str = ""
    """The time of the first cycle, as in ``2026-01-02T00:00:00Z``, which it is unless given."""
    period: float = 1.0
    """Seconds from one cycle to the next."""
    nodes: list[NodeLine] = []
    levels: list[str] = []
    """Label keys from broad to narrow: short for one topology called ``cluster``."""
    topologies: list[TopologyLine] = []
    priority_classes: list[PriorityClassLine] = []
    queues: list[QueueLine] = []
    volumes: list[VolumeLine] = []
    budgets: list[BudgetLine] = []
    claims: list[ClaimLine] = []
    gangs: list[GangLine] = []
    pods: list[PodsLine] = []


def scenario(document: Any) -> Scenario:
    """Return the scenario that *document* describes; raise BadInputError naming the field."""
    try:
        return msgspec.convert(document, Scenario)
    except msgspec.ValidationError as error:
        what, _, where = str(error).rpartition(" - at ")
        path = where.strip("`").removeprefix("$").removeprefix(".")
        raise BadInputError(f"{path}: {what}" if what and path else str(error)) from error


def node_names(found: Scenario) -> Iterator[str]:
    """Yield the names of all nodes, those made by ``count`` included."""
    for line in found.nodes:
        yield from numbered(line)


def numbered(line: NodeLine) -> list[str]:
    """Return the names of the nodes of one line."""
    return [line.name] if line.count == 1 else [f"{line.name}-{at}" for at in range(line.count)]
