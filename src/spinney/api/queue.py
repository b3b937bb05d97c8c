"""``scheduling.run.ai/v2``: queues that share a cluster, as KAI Scheduler defines them."""

from __future__ import annotations

from typing import ClassVar

import msgspec

from spinney.api.meta import ApiStruct, Condition, KubeObject
from spinney.api.resource import Resource

GROUP = "scheduling.run.ai"

QUEUE = "kai.scheduler/queue"
"""Label of a PodGang or pod: the queue it is charged to."""
PREEMPTIBILITY = "kai.scheduler/preemptibility"
"""Label of a PodGang or pod: ``preemptible`` or ``non-preemptible``, whatever its priority."""
STALENESS_GRACE = "kai.scheduler/staleness-grace-period"
"""Annotation of a gang: how long it may run below its minimum; negative means for ever."""
STALE_SINCE = "kai.scheduler/stale-podgroup-timestamp"
"""Annotation of a gang: since when it runs below its minimum."""
PREEMPTION_DELAY = "kai.scheduler/preemption-delay"
"""Annotation of a gang: how long it waits before others are displaced for it."""

UNLIMITED = -1.0


class QueueResource(ApiStruct):
    """A queue's part of one resource: GPUs in devices, CPU in thousandths, memory in megabytes."""

    quota: float = 0.0
    """Guaranteed; -1 means all there is."""
    over_quota_weight: float = 0.0
    """Share of what is left over, relative to the queues beside this one."""
    limit: float = UNLIMITED
    """Never more than this; -1 means no limit."""


class QueueResources(ApiStruct):
    """The resources that are shared out. One that is not given is not restricted."""

    gpu: QueueResource | None = None
    cpu: QueueResource | None = None
    memory: QueueResource | None = None


class QueueSpec(ApiStruct):
    """A queue's place in the tree and its share."""

    display_name: str = ""
    parent_queue: str = ""
    priority: int | None = None
    """Queues with a higher one get surplus first; 100 unless given."""
    preempt_min_runtime: str | None = None
    """How long a gang runs before a gang of its own queue may displace it."""
    reclaim_min_runtime: str | None = None
    """How long a gang runs before a gang of another queue may displace it."""
    resources: QueueResources | None = None


class QueueStatus(ApiStruct):
    """What a queue uses."""

    conditions: list[Condition] = []
    child_queues: list[str] = []
    allocated: dict[str, str | int | float] = {}
    allocated_non_preemptible: dict[str, str | int | float] = {}
    requested: dict[str, str | int | float] = {}
    fair_share: dict[str, str | int | float] = {}
    """What it would have if all that is asked for were shared out fairly. Spinney's own field."""


class Queue(KubeObject, kw_only=True):
    """A part of the cluster that a team may use; only queues without children take work."""

    RESOURCE: ClassVar[Resource] = Resource(
        GROUP, "v2", "Queue", "queues", namespaced=False, short_names=("q",)
    )
    spec: QueueSpec = msgspec.field(default_factory=QueueSpec)
    status: QueueStatus = msgspec.field(default_factory=QueueStatus)
