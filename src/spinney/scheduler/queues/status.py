"""What a Queue's status says: what its gangs have, what they want, and what would be fair.

A pure function of the snapshot that a cycle works on. The amounts are those by which the cycle
decides, so a status explains why a gang of the queue waits.
"""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING

from spinney.api.meta import Condition
from spinney.api.queue import QueueStatus
from spinney.scheduler.queues.ledger import Ledger, amounts_text
from spinney.scheduler.queues.model import NOTHING, UNLIMITED

if TYPE_CHECKING:
    from spinney.scheduler.queues.model import Amounts, QueueTree
    from spinney.scheduler.queues.usage import UsageMemory
    from spinney.scheduler.snapshot import Snapshot

ORPHAN = "Orphan"
"""Condition: the queue above it does not exist, so it takes no gangs."""
OVER_QUOTA = "OverQuota"
"""Condition: it has more than its quota of some resource."""

GPU = "nvidia.com/gpu"


def queue_statuses(
    snapshot: Snapshot, usage: UsageMemory | None = None, usage_weight: float = 0.0
) -> dict[str, QueueStatus]:
    """Return the status of every queue of *snapshot*, by name; nothing where there is no queue.

    Amounts are quantities: devices, cores and bytes; what is zero is left out. Conditions have no
    transition time: whoever writes them sets it. *usage* and *usage_weight* are the memory's and
    the configuration's, where past usage counts. For the shell: compare with what is written,
    and patch ``status`` where it differs.
    """
    if not snapshot.queues.shared:
        return {}
    ledger = Ledger(snapshot, usage=usage, history=Fraction(usage_weight))
    return {name: _status(ledger, name) for name in snapshot.queues.queues}


def _status(ledger: Ledger, name: str) -> QueueStatus:
    tree = ledger.tree
    return QueueStatus(
        conditions=[_orphan(tree, name), _over_quota(ledger, name)],
        child_queues=list(tree.children.get(name, ())),
        allocated=_quantities(ledger.allocated[name]),
        allocated_non_preemptible=_quantities(ledger.firm[name]),
        requested=_quantities(ledger.requested[name]),
        fair_share=_quantities(ledger.shares.get(name, NOTHING)),
    )


def _orphan(tree: QueueTree, name: str) -> Condition:
    problem = "" if tree.path(name) else tree.problem(name)
    reason = "ParentMissing" if problem else "ParentFound"
    return Condition(ORPHAN, str(bool(problem)), reason=reason, message=problem)


def _over_quota(ledger: Ledger, name: str) -> Condition:
    have, quota = ledger.allocated[name], ledger.tree.queues[name].quota
    beyond = [
        0 if most == UNLIMITED else max(0, mine - most)
        for mine, most in zip(have, quota, strict=True)
    ]
    text = amounts_text((beyond[0], beyond[1], beyond[2]))
    if not any(beyond):
        return Condition(OVER_QUOTA, "False", reason="WithinQuota", message="")
    return Condition(OVER_QUOTA, "True", reason="OverQuota", message=f"{text} beyond its quota")


def _quantities(amounts: Amounts) -> dict[str, str | int | float]:
    found: dict[str, str | int | float] = {}
    gpus, cpu, memory = amounts
    if gpus > 0:
        found[GPU] = f"{gpus / 1000:g}"
    if cpu > 0:
        found["cpu"] = str(cpu // 1000) if cpu % 1000 == 0 else f"{cpu}m"
    if memory > 0:
        found["memory"] = str(-(-memory // 1000))
    return found
