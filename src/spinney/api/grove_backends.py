"""Rules V23, V24 and B1 to B5: which scheduler places a set, and what that scheduler needs.

One scheduler places a whole set, because a gang is placed as one. Whether that scheduler can do
what the set asks for is told at admission, where a person reads it, not by pods that stay pending.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from spinney.api.grove_fields import CLIQUES, invalid, is_subdomain
from spinney.api.grove_policy import KAI, KUBE, LPX, VOLCANO
from spinney.api.resource import Resource

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from spinney.api.admission import FieldError
    from spinney.api.grove import PodCliqueSet
    from spinney.api.grove_policy import GrovePolicy
    from spinney.api.resource import Unstructured

    QueueLookup = Callable[[str], Unstructured | None]
    """Returns a Volcano queue by name."""

KAI_QUEUE = "kai.scheduler/queue"
VOLCANO_QUEUE_ANNOTATION = "scheduling.grove.io/volcano-queue"
VOLCANO_DEFAULT_QUEUE = "default"
VOLCANO_QUEUES = Resource("scheduling.volcano.sh", "v1beta1", "Queue", "queues", namespaced=False)

_SCHEDULER_PATH = f"{CLIQUES}.spec.podSpec.schedulerName"
_CONFLICT = "one set has one queue, found"


def scheduler_of(pcs: PodCliqueSet, policy: GrovePolicy) -> str | None:
    """Return the scheduler of the set, None when its cliques do not agree on one."""
    found = _schedulers(pcs, policy)
    return found.pop() if len(found) == 1 else None


def check_scheduler(pcs: PodCliqueSet, policy: GrovePolicy) -> Iterator[FieldError]:
    """Yield whether the cliques name different schedulers (V23), or one not enabled (V24, B5)."""
    found = _schedulers(pcs, policy)
    if len(found) > 1:
        yield invalid(
            _SCHEDULER_PATH,
            f"one scheduler places the whole set, found {', '.join(sorted(found))}; "
            f"none named means {policy.default_scheduler}",
        )
    for name in sorted(found):
        if policy.backend(name) is None:
            yield invalid(
                _SCHEDULER_PATH,
                f"scheduler {name!r} is not enabled here; enabled: {policy.scheduler_names}",
            )


def check_backend(
    pcs: PodCliqueSet, old: PodCliqueSet | None, policy: GrovePolicy, queue_of: QueueLookup
) -> Iterator[FieldError]:
    """Yield what the set's scheduler cannot do, or misses.

    An update that keeps the queue is not refused because the queue has been closed since.
    """
    name = scheduler_of(pcs, policy)
    match name if name and policy.backend(name) else None:
        case "kai-scheduler":
            yield from _check_kai(pcs)  # B1
        case "volcano":
            yield from _check_volcano(pcs, old, queue_of)  # B2
        case "lpx-scheduler" if _is_constrained(pcs):  # B3
            yield _no_topology(LPX)


def backend_warnings(pcs: PodCliqueSet, policy: GrovePolicy) -> Iterator[str]:
    """Yield what the set's scheduler silently leaves undone."""
    name = scheduler_of(pcs, policy)
    backend = policy.backend(name) if name else None
    if backend and backend.name == KUBE and not backend.topology_aware and _is_constrained(pcs):
        yield (  # B4
            f"{KUBE} does not know topology constraints: pods are placed without them; "
            "choose a scheduler that does, or remove topologyConstraint"
        )


def _schedulers(pcs: PodCliqueSet, policy: GrovePolicy) -> set[str]:
    return {
        str(clique.spec.pod_spec.get("schedulerName") or policy.default_scheduler)
        for clique in pcs.spec.template.cliques
    }


def _is_constrained(pcs: PodCliqueSet) -> bool:
    template = pcs.spec.template
    held = [template.topology_constraint]
    held += [group.topology_constraint for group in template.pod_clique_scaling_groups]
    held += [clique.topology_constraint for clique in template.cliques]
    return any(constraint is not None for constraint in held)


def _no_topology(scheduler: str) -> FieldError:
    return invalid("spec", f"{scheduler} does not keep topologyConstraint: remove it")


# KAI


def _kai_queue(labels: Mapping[str, str], annotations: Mapping[str, str]) -> str:
    return labels.get(KAI_QUEUE) or annotations.get(KAI_QUEUE) or ""


def _check_kai(pcs: PodCliqueSet) -> Iterator[FieldError]:
    own = _kai_queue(pcs.metadata.labels, pcs.metadata.annotations)
    cliques = pcs.spec.template.cliques
    named = {_kai_queue(c.labels, c.annotations) for c in cliques} - {""}
    if len(named | {own} - {""}) > 1:
        yield invalid("spec", f"{_CONFLICT} {', '.join(sorted(named | {own} - {''}))}")
    if not own and not named:
        yield invalid("spec", f"{KAI} needs a queue: label the set with {KAI_QUEUE}")


# Volcano


def volcano_queue(pcs: PodCliqueSet) -> str:
    """Return the Volcano queue of a set whose parts agree on it."""
    return min(_volcano_queues(pcs), default=VOLCANO_DEFAULT_QUEUE)


def _volcano_queues(pcs: PodCliqueSet) -> set[str]:
    held = [pcs.metadata.annotations, *(c.annotations for c in pcs.spec.template.cliques)]
    found = {annotations_.get(VOLCANO_QUEUE_ANNOTATION) for annotations_ in held}
    return {name for name in found if name is not None}


def _check_volcano(
    pcs: PodCliqueSet, old: PodCliqueSet | None, queue_of: QueueLookup
) -> Iterator[FieldError]:
    if _is_constrained(pcs):
        yield _no_topology(VOLCANO)
    named = _volcano_queues(pcs)
    if len(named) > 1:
        yield invalid("spec", f"{_CONFLICT} {', '.join(sorted(named))}")
        return
    name = volcano_queue(pcs)
    if not is_subdomain(name):
        yield invalid("spec", f"{name!r} in {VOLCANO_QUEUE_ANNOTATION} is no name of a queue")
    elif old is None or volcano_queue(old) != name:
        yield from _check_queue(name, queue_of(name))


def _check_queue(name: str, queue: Unstructured | None) -> Iterator[FieldError]:
    if queue is None:
        yield invalid("spec", f"there is no Volcano queue {name!r}; create it or name another")
        return
    status = queue.get("status")
    state = str(status.get("state") or "") if isinstance(status, dict) else ""
    if state != "Open":
        yield invalid(
            "spec", f"the Volcano queue {name!r} is {state or 'of no state yet'}, not Open"
        )
