"""Scaling of live PodCliques and PodCliqueScalingGroups, whether by ``/scale`` or by an edit.

Between zero and ``minAvailable`` a gang cannot run: pods below the minimum would count as a
broken gang and be terminated over and over. So a count is either zero, which turns the role
off and keeps its gang's other roles, or at least the minimum.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from spinney.api import names
from spinney.api.admission import Verdict
from spinney.api.grove import PodCliqueScalingGroup
from spinney.api.grove_fields import invalid

if TYPE_CHECKING:
    from spinney.api.admission import AdmissionRequest
    from spinney.api.resource import Unstructured

GROUP_MINIMUM = 1
"""``minAvailable`` of a scaling group that names none."""


def validate_scaling(request: AdmissionRequest) -> Verdict:
    """Refuse a change of replicas to a count below the minimum, unless it is zero.

    A request to ``/scale`` carries a Scale; what it scales is looked up, and if it has gone, there
    is nothing to guard. Updates that leave the count alone are always let through.
    """
    if request.operation != "UPDATE" or request.old is None:
        return Verdict()
    wanted = _replicas(request.obj)
    if wanted == _replicas(request.old):
        return Verdict()
    if wanted < 0:
        return Verdict((invalid("spec.replicas", f"must not be negative, got {wanted}"),))
    scaled: Unstructured | None = request.obj
    if request.subresource == "scale":
        meta = request.obj.get("metadata") or {}
        scaled = request.lookup(
            request.resource, str(meta.get("namespace") or ""), str(meta.get("name") or "")
        )
    if scaled is None:
        return Verdict()
    minimum = _minimum(request, scaled)
    if 0 < wanted < minimum:
        detail = (
            f"{wanted} are below minAvailable ({minimum}), with which the gang runs; "
            f"ask for at least {minimum}, or for 0 to turn it off"
        )
        return Verdict((invalid("spec.replicas", detail),))
    return Verdict(warnings=_member_warning(scaled))


def _replicas(obj: Unstructured) -> int:
    # A Scale of zero is sent without the field, and without the spec.
    found = _spec(obj).get("replicas")
    return found if isinstance(found, int) else 0


def _minimum(request: AdmissionRequest, scaled: Unstructured) -> int:
    found = _spec(scaled).get("minAvailable")
    if isinstance(found, int):
        return found
    return GROUP_MINIMUM if request.resource.name == PodCliqueScalingGroup.RESOURCE.name else 0


def _member_warning(scaled: Unstructured) -> tuple[str, ...]:
    labels = (scaled.get("metadata") or {}).get("labels") or {}
    group = labels.get(names.SCALING_GROUP)
    if scaled.get("kind") == PodCliqueScalingGroup.RESOURCE.kind or not group:
        return ()
    return (
        f"this clique is part of the scaling group {group}: its other replicas keep their counts; "
        f"to add or remove whole replicas, scale the group",
    )


def _spec(obj: Unstructured) -> dict[str, Any]:
    spec = obj.get("spec")
    return spec if isinstance(spec, dict) else {}
