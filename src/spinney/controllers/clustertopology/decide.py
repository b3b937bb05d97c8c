"""What a ClusterTopologyBinding says of each scheduler's topology, and the object that KAI reads.

Our scheduler reads bindings themselves, so it is in sync by itself. KAI reads Topology objects of
its own: one that the binding refers to is only compared; without a reference one is made, named
like the binding and owned by it. Its levels cannot be changed, so another replaces it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec

from spinney.api import names
from spinney.api.grove_policy import KAI
from spinney.api.meta import Condition, with_condition
from spinney.api.resource import Resource

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from spinney.api.grove import ClusterTopologyBinding, ClusterTopologyBindingStatus
    from spinney.api.resource import Unstructured

KAI_TOPOLOGIES = Resource("kai.scheduler", "v1alpha1", "Topology", "topologies", namespaced=False)
DRIFT = "SchedulerTopologyDrift"


@dataclass(frozen=True, slots=True)
class Seen:
    """What there is of schedulers' topologies."""

    bindings: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """The label keys of all bindings, by name: what our scheduler reads."""
    kai: Mapping[str, Unstructured] | None = None
    """KAI's topologies by name; None where KAI is not installed."""


@dataclass(frozen=True, slots=True)
class SchedulerView:
    """What one scheduler sees in place of the binding."""

    scheduler: str
    reference: str
    keys: Sequence[str] | None
    """Label keys of its levels; None when the object is not there."""
    served: bool = True
    """Whether the scheduler is there at all."""
    generation: int = 0


def keys_of(binding: ClusterTopologyBinding) -> list[str]:
    """Return the node label keys of the binding, the broadest first."""
    return [level.key for level in binding.spec.levels]


def render_kai(binding: ClusterTopologyBinding) -> Unstructured:
    """Return the KAI Topology that stands for *binding*."""
    owner = binding.owner_reference()
    return {
        "apiVersion": KAI_TOPOLOGIES.api_version,
        "kind": KAI_TOPOLOGIES.kind,
        "metadata": {
            "name": binding.name,
            "labels": {names.MANAGED_BY: names.OPERATOR},
            "ownerReferences": [msgspec.to_builtins(owner)],
        },
        "spec": {"levels": [{"nodeLabel": key} for key in keys_of(binding)]},
    }


def kai_keys(topology: Unstructured) -> list[str]:
    """Return the node label keys of a KAI Topology."""
    levels = (topology.get("spec") or {}).get("levels") or []
    return [str(level.get("nodeLabel", "")) for level in levels]


def owned_elsewhere(binding: ClusterTopologyBinding, scheduler: str) -> str | None:
    """Return the topology that the binding refers to for a scheduler, None without a reference."""
    for found in binding.spec.scheduler_topology_bindings:
        if found.scheduler_name == scheduler:
            return found.topology_reference
    return None


def kai_actions(binding: ClusterTopologyBinding, seen: Seen) -> tuple[bool, bool]:
    """Return whether to delete KAI's topology of the binding's name, and whether to make one.

    One that somebody else made is left alone.
    """
    if seen.kai is None or owned_elsewhere(binding, KAI) is not None or binding.deleting:
        return False, False
    found = seen.kai.get(binding.name)
    if found is None:
        return False, True
    owners = (found.get("metadata") or {}).get("ownerReferences") or []
    ours = any(owner.get("uid") == binding.metadata.uid for owner in owners)
    return (True, True) if ours and kai_keys(found) != keys_of(binding) else (False, False)


def views(binding: ClusterTopologyBinding, seen: Seen) -> list[SchedulerView]:
    """Return what each scheduler sees: ours, KAI where it is installed, and those referred to."""
    found = []
    for scheduler in _schedulers(binding, seen):
        reference = owned_elsewhere(binding, scheduler) or binding.name
        if scheduler == names.SPINNEY_SCHEDULER:
            found.append(SchedulerView(scheduler, reference, seen.bindings.get(reference)))
        elif scheduler == KAI and seen.kai is not None:
            topology = seen.kai.get(reference)
            generation = int(((topology or {}).get("metadata") or {}).get("generation") or 0)
            keys = kai_keys(topology) if topology is not None else None
            found.append(SchedulerView(scheduler, reference, keys, generation=generation))
        else:
            found.append(SchedulerView(scheduler, reference, None, served=False))
    return found


def binding_status(
    binding: ClusterTopologyBinding, found: Sequence[SchedulerView], now: str
) -> ClusterTopologyBindingStatus:
    """Return the status; *now* dates the condition when it changes."""
    condition = _drift(binding, found)
    return msgspec.structs.replace(
        binding.status,
        observed_generation=binding.metadata.generation,
        conditions=with_condition(binding.status.conditions, condition, now),
        scheduler_topology_statuses=[_entry(binding, view) for view in found],
    )


def _schedulers(binding: ClusterTopologyBinding, seen: Seen) -> list[str]:
    referred = [b.scheduler_name for b in binding.spec.scheduler_topology_bindings]
    installed = [names.SPINNEY_SCHEDULER, *([KAI] if seen.kai is not None else [])]
    return sorted({*referred, *installed})


def _entry(binding: ClusterTopologyBinding, view: SchedulerView) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "schedulerName": view.scheduler,
        "topologyReference": view.reference,
        "inSync": view.keys is not None and list(view.keys) == keys_of(binding),
        "message": _words(binding, view),
    }
    if view.generation:
        entry["schedulerBackendTopologyObservedGeneration"] = view.generation
    return entry


def _words(binding: ClusterTopologyBinding, view: SchedulerView) -> str:
    if not view.served:
        return f"{view.scheduler} has no topology here: its kind is not installed"
    if view.keys is None:
        return f"{view.reference} does not exist"
    wanted = keys_of(binding)
    if list(view.keys) == wanted:
        return "the levels are the same"
    return f"its levels are {', '.join(view.keys)}; the binding's are {', '.join(wanted)}"


def _drift(binding: ClusterTopologyBinding, found: Sequence[SchedulerView]) -> Condition:
    missing = [view for view in found if not view.served]
    drifted = [
        view
        for view in found
        if view.served and (view.keys is None or list(view.keys) != keys_of(binding))
    ]
    if drifted:
        text = "; ".join(f"{view.scheduler}: {_words(binding, view)}" for view in drifted)
        return Condition(type=DRIFT, status="True", reason="Drift", message=text)
    if missing:
        text = "; ".join(_words(binding, view) for view in missing)
        return Condition(type=DRIFT, status="Unknown", reason="TopologyNotFound", message=text)
    names_ = ", ".join(view.scheduler for view in found)
    return Condition(
        type=DRIFT, status="False", reason="InSync", message=f"{names_} see the same levels"
    )
