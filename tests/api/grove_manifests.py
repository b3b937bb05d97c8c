"""PodCliqueSets to admit, and how admission answers."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from spinney.api.admission import AdmissionRequest
from spinney.api.grove import ClusterTopologyBinding, PodCliqueSet
from spinney.api.grove_admission import GroveAdmission

if TYPE_CHECKING:
    from collections.abc import Callable

    from spinney.api.admission import Verdict
    from spinney.api.grove_policy import GrovePolicy

    Objects = dict[tuple[str, str], dict[str, Any]]

_WORDS = {
    "FieldValueRequired": "required",
    "FieldValueInvalid": "invalid",
    "FieldValueForbidden": "forbidden",
    "FieldValueDuplicate": "duplicate",
    "FieldValueNotFound": "not found",
    "FieldValueNotSupported": "not supported",
}
CLIQUES = "spec.template.cliques"
GROUPS = "spec.template.podCliqueScalingGroups"
EXPLICIT = {"cliqueStartupType": "CliqueStartupTypeExplicit"}
IN_ORDER = {"cliqueStartupType": "CliqueStartupTypeInOrder"}

_OUTER = ("labels", "annotations", "topologyConstraint", "resourceSharing")


def clique(name: str, replicas: int | None = 1, **fields: Any) -> dict[str, Any]:
    """A clique; fields of the template itself and of its spec are told apart by name."""
    outer = {key: fields.pop(key) for key in _OUTER if key in fields}
    pod_spec = {"containers": [{"name": "main", "image": "x"}]} | fields.pop("podSpec", {})
    spec = {"roleName": name, "podSpec": pod_spec, "replicas": replicas} | fields
    return {"name": name, "spec": {k: v for k, v in spec.items() if v is not None}} | outer


def group(name: str, *cliques: str, **fields: Any) -> dict[str, Any]:
    return {"name": name, "cliqueNames": list(cliques)} | fields


def pcs(*cliques: dict[str, Any], **template: Any) -> dict[str, Any]:
    metadata = {"name": template.pop("name", "svc"), "namespace": "default"}
    metadata |= {k: template.pop(k) for k in ("labels", "annotations") if k in template}
    groups = template.pop("groups", None)
    spec = {"replicas": template.pop("replicas", 1)}
    more = {"podCliqueScalingGroups": groups} if groups else {}
    return {
        "apiVersion": "grove.io/v1alpha1",
        "kind": "PodCliqueSet",
        "metadata": metadata,
        "spec": spec | {"template": {"cliques": list(cliques)} | more | template},
    }


def binding(name: str, *domains: str) -> dict[str, Any]:
    levels = [{"domain": d, "key": f"topology/{d}"} for d in domains]
    return {"metadata": {"name": name}, "spec": {"levels": levels}}


TOPOLOGIES: Objects = {
    (ClusterTopologyBinding.RESOURCE.name, name): binding(name, "zone", "rack", "host")
    for name in ("cluster", "other")
}


class Admitted:
    """What admission made of an object, and said of it."""

    def __init__(self, obj: dict[str, Any], verdict: Verdict) -> None:
        self.obj = obj
        self.warnings = list(verdict.warnings)
        self.errors = [f"{e.path}: {_WORDS[e.reason]}" for e in verdict.errors]
        self.text = "\n".join(map(str, verdict.errors))

    @property
    def template(self) -> dict[str, Any]:
        found: dict[str, Any] = self.obj["spec"]["template"]
        return found


def admit(
    obj: dict[str, Any],
    old: dict[str, Any] | None = None,
    *,
    policy: GrovePolicy | None = None,
    objects: Objects = TOPOLOGIES,
    stored_as_is: bool = False,
) -> Admitted:
    """Create *obj*, or update *old* to it, with *objects* there by resource and name.

    *old* gets defaults first, unless it is *stored_as_is*.
    """
    hook = GroveAdmission(policy)

    def request(new: dict[str, Any]) -> AdmissionRequest:
        return AdmissionRequest(
            "UPDATE" if old else "CREATE",
            PodCliqueSet.RESOURCE,
            new,
            old,
            lookup=lambda resource, _namespace, name: objects.get((resource.name, name)),
        )

    if old is not None and not stored_as_is:
        old = hook.default(AdmissionRequest("CREATE", PodCliqueSet.RESOURCE, old))
    defaulted = hook.default(request(obj))
    return Admitted(defaulted, hook.validate(request(defaulted)))


def changed(obj: dict[str, Any], change: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    """Return *obj* after *change* of its template."""
    result = copy.deepcopy(obj)
    change(result["spec"]["template"])
    return result
