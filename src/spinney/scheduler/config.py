"""What a scheduling cycle consists of, as data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from spinney import __version__
from spinney.api import names


@dataclass(frozen=True, slots=True)
class SchedulerConfig:
    """Which actions run, which filters and scores take part, and how long a search may be."""

    scheduler_names: tuple[str, ...] = (names.SPINNEY_SCHEDULER,)
    """Whose pods are placed: those whose ``spec.schedulerName`` is one of these."""
    pool_key: str = ""
    """Label key by which nodes and pods are divided among schedulers; empty: all are one's own."""
    pool: str = ""
    """The value of that label on this scheduler's nodes and pods; empty: those without it."""
    actions: tuple[str, ...] = (
        "allocate",
        "consolidate",
        "reclaim",
        "preempt",
        "drain",
        "evict-stale",
    )
    """In this order."""
    filters: tuple[str, ...] = (
        "unschedulable",
        "not-ready",
        "taints",
        "node-affinity",
        "volumes",
        "resources",
        "gpu-shares",
        "host-ports",
        "pod-affinity",
        "topology-spread",
    )
    """A node is counted under the first filter that refuses it."""
    scores: tuple[tuple[str, float], ...] = (
        ("nominated-node", 10_000.0),
        ("preferred-affinity", 1000.0),
        ("topology-spread", 500.0),
        ("resource-type", 100.0),
        ("gpu-sharing", 50.0),
        ("bin-pack", 10.0),
    )
    """Names and weights. Each score is from 0 to 1, so the weights rank them."""
    gpu_order: Literal["pack", "spread"] = "pack"
    """Which GPU of a node a pod shares that needs a part: the fullest that has it, or one of its
    own while there is one."""
    gpu_reservation: Literal["auto", "none", "device", "made-up"] = "auto"
    """Whether a pod of its own holds each shared GPU against the device plugin, and says which it
    is: ``device``; ``made-up``: it says what the scheduler calls it, where GPUs are none; ``auto``:
    ``device`` in ``spinney scheduler``, ``none`` everywhere else."""
    gpu_reservation_namespace: str = "spinney-gpu-reservation"
    """Where these pods are; made when it is missing."""
    gpu_reservation_image: str = f"ghcr.io/spinney-dev/spinney:{__version__}"
    """What they run."""
    domain_steps: int = 2_000
    """Domains tried for one gang before the search with greedy filling gives up."""
    node_steps: int = 5_000
    """Choices tried for one gang before the search over single nodes gives up."""
    exhaustive_nodes: int = 64
    """In domains with more nodes than this, filling stays greedy."""
    reservation_s: float = 600.0
    """How long room is kept for a gang that others have to leave for."""
    drain_after_s: float = 300.0
    """How long later gangs are placed before one that waits for room, until what becomes free is
    kept for it; 0: for ever."""
    drain_limit_s: float = 3600.0
    """How long what becomes free is kept for one gang before others have their turn."""
    evictions_per_cycle: int = 1_000
    """Pods that one cycle displaces before it starts no further plan."""
    victim_trials: int = 64
    """Sets of victims tried for one gang, each with the real search."""
    victim_steps: int = 500
    """The bound of each of these searches."""
    consolidated_gangs: int = 16
    """Gangs that are moved at most to make room for one."""
    stale_grace_s: float = 60.0
    """How long a gang may run below its minimum before it is evicted; negative: for ever."""
    usage_half_life_s: float = 0.0
    """When past usage counts half in fair shares; 0: the past does not count."""
    usage_weight: float = 1.0
    """How strongly past usage counts."""

    @property
    def pool_label(self) -> tuple[str, str] | None:
        """Key and value of the label of this scheduler's nodes and pods; None: all of them."""
        return (self.pool_key, self.pool) if self.pool_key else None
