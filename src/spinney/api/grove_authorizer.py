"""Rules A1 to A7: only Spinney changes what Spinney made, if an installation wants that.

Off unless it is put among the hooks. It looks at objects that carry the label of a managed object;
the set they are part of can lift the protection by an annotation. Scaling is open to everyone,
because people and autoscalers scale by the live objects: `spinney.api.grove_scaling` guards it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from spinney.api import names
from spinney.api.admission import Verdict
from spinney.api.core import (
    HorizontalPodAutoscaler,
    Pod,
    Role,
    RoleBinding,
    Secret,
    Service,
    ServiceAccount,
)
from spinney.api.grove import PodClique, PodCliqueScalingGroup, PodCliqueSet
from spinney.api.grove_fields import forbidden
from spinney.api.podgang import PodGang
from spinney.errors import BadInputError

if TYPE_CHECKING:
    from spinney.api.admission import AdmissionRequest
    from spinney.api.resource import Unstructured

UNPROTECTED = "grove.io/disable-managed-resource-protection"
"""Annotation of a set: ``"true"`` lets anyone change what was made for it."""

_CHANGED = frozenset({"UPDATE", "DELETE"})
_WRITTEN = frozenset({"CREATE", "UPDATE", "DELETE"})

PROTECTED = {
    **{
        kind.RESOURCE: _CHANGED
        for kind in (
            Secret,
            ServiceAccount,
            Service,
            Role,
            RoleBinding,
            HorizontalPodAutoscaler,
        )
    },
    Pod.RESOURCE: frozenset({"UPDATE"}),
    **{kind.RESOURCE: _WRITTEN for kind in (PodClique, PodCliqueScalingGroup, PodGang)},
}
"""Resources, and the operations on them that are looked at."""

_SCALED = frozenset({PodClique.RESOURCE.name, PodCliqueScalingGroup.RESOURCE.name})


@dataclass(frozen=True, slots=True)
class GroveAuthorizer:
    """An `spinney.api.admission.AdmissionHook` that refuses writes to managed objects."""

    operator: str
    """The user as which Spinney's controllers write."""
    exempt: frozenset[str] = frozenset()
    """Further users that may: the garbage collector, the autoscaler's controller, schedulers."""
    resources: frozenset[str] = field(
        default=frozenset(resource.name for resource in PROTECTED), init=False
    )

    def default(self, request: AdmissionRequest) -> Unstructured:
        """Return the object as it is."""
        return request.obj

    def validate(self, request: AdmissionRequest) -> Verdict:
        """Return whether this user may write this object; a warning where nobody can tell."""
        if request.operation == "CONNECT" or request.subresource:  # A1
            return Verdict()
        obj = request.obj if request.operation == "CREATE" else request.old  # A6
        labels = _labels(request, obj)
        if labels.get(names.MANAGED_BY) != names.OPERATOR or _is_scaling(request):
            return Verdict()
        owner = labels.get(names.PART_OF)
        pcs = self._set_of(request, owner) if owner else None
        if pcs is None:  # A2
            what = f"set {owner!r} is not there" if owner else f"it has no label {names.PART_OF}"
            return Verdict(warnings=(f"not protected as a managed object: {what}",))
        if _annotations(pcs).get(UNPROTECTED) == "true":  # A3
            return Verdict()
        return self._judge(request)

    def _judge(self, request: AdmissionRequest) -> Verdict:
        is_pod = request.resource.name == Pod.RESOURCE.name
        if request.operation == "DELETE" and is_pod:  # A5
            return Verdict()
        known = request.operation in _WRITTEN
        if known and request.user in self.exempt | {self.operator}:  # A4, A5
            return Verdict()
        who = request.user or "an unnamed user"
        detail = (  # A7
            f"{who} may not {request.operation.lower()} what Spinney made; change the PodCliqueSet,"
            f' or annotate it with {UNPROTECTED}: "true"'
        )
        return Verdict((forbidden("metadata", detail),))

    def _set_of(self, request: AdmissionRequest, name: str) -> Unstructured | None:
        meta = (request.old or request.obj).get("metadata") or {}
        return request.lookup(PodCliqueSet.RESOURCE, str(meta.get("namespace") or ""), name)


def _is_scaling(request: AdmissionRequest) -> bool:
    """Tell whether an update changes nothing but how many replicas are wanted."""
    if request.resource.name not in _SCALED or request.old is None:
        return False
    if request.operation != "UPDATE":
        return False
    return _unscaled(request.old) == _unscaled(request.obj)


def _unscaled(obj: Unstructured) -> Unstructured:
    spec = {k: v for k, v in (obj.get("spec") or {}).items() if k != "replicas"}
    meta = obj.get("metadata") or {}
    written = ("resourceVersion", "generation", "managedFields")
    kept = {k: v for k, v in meta.items() if k not in written}
    return {"spec": spec, "metadata": kept}


def _labels(request: AdmissionRequest, obj: Any) -> dict[str, str]:
    meta = obj.get("metadata") if isinstance(obj, dict) else None
    labels = (meta.get("labels") or {}) if isinstance(meta, dict) else None
    if not isinstance(labels, dict):
        raise BadInputError(
            f"{request.operation} of {request.resource.name}: an object with metadata wanted, "
            f"found {type(obj).__name__}"
        )
    return labels


def _annotations(obj: Unstructured) -> dict[str, str]:
    found: dict[str, str] = (obj.get("metadata") or {}).get("annotations") or {}
    return found
