"""Binding, eviction and scale: writes to part of an object under a name of their own."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import msgspec

from spinney.api.admission import FieldError
from spinney.api.meta import LabelSelector
from spinney.api.selectors import from_object
from spinney.errors import BadInputError
from spinney.local.apiserver.objects import DeleteOptions
from spinney.local.apiserver.refusal import RefusalError, bad_request, conflict, invalid

if TYPE_CHECKING:
    from spinney.api.resource import Unstructured
    from spinney.local.apiserver.kinds import Kind, Path, ScalePaths
    from spinney.local.apiserver.objects import Objects, Outcome, WriteOptions
    from spinney.local.apiserver.store import Store

PDBS = "poddisruptionbudgets.policy"


def bind(
    objects: Objects,
    pods: Kind,
    namespace: str,
    name: str,
    binding: Unstructured,
    options: WriteOptions,
) -> Outcome:
    """Assign a pod to the node that *binding* names; raise Conflict if it cannot be now."""
    node = (binding.get("target") or {}).get("name")
    if not node:
        raise bad_request("target.name: a binding needs the name of a node")
    sent = binding.get("metadata") or {}

    def assigned(pod: Unstructured) -> Unstructured:
        meta, spec = pod["metadata"], pod["spec"]
        if sent.get("uid") and sent["uid"] != meta["uid"]:
            raise conflict(
                pods.resource,
                name,
                f"Precondition failed: UID in precondition: {sent['uid']}, UID in object meta: "
                f"{meta['uid']}",
            )
        if "deletionTimestamp" in meta:
            raise conflict(
                pods.resource, name, f"pod {name} is being deleted, cannot be assigned to a host"
            )
        if spec.get("nodeName"):
            raise conflict(
                pods.resource, name, f'pod {name} is already assigned to node "{spec["nodeName"]}"'
            )
        if spec.get("schedulingGates"):
            raise conflict(pods.resource, name, f"pod {name} has non-empty .spec.schedulingGates")
        spec["nodeName"] = node
        for part in ("annotations", "labels"):
            if sent.get(part):
                meta[part] = (meta.get(part) or {}) | sent[part]
        status = pod.setdefault("status", {})
        others = [c for c in status.get("conditions") or () if c.get("type") != "PodScheduled"]
        scheduled = {
            "type": "PodScheduled",
            "status": "True",
            "lastProbeTime": None,
            "lastTransitionTime": objects.now(),
        }
        status["conditions"] = [*others, scheduled]
        return pod

    return objects.update(pods, namespace, name, assigned, options, subresource="binding")


def evict(
    objects: Objects,
    store: Store,
    pods: Kind,
    namespace: str,
    name: str,
    eviction: Unstructured,
    *,
    user: str,
    dry_run: bool,
) -> None:
    """Delete a pod unless a PodDisruptionBudget forbids it now (429)."""
    pod = objects.require(pods, namespace, name).decode()
    sent = eviction.get("deleteOptions") or {}
    grace = sent.get("gracePeriodSeconds")
    conditions = sent.get("preconditions") or {}
    finished = (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed")
    if not finished and "deletionTimestamp" not in pod["metadata"]:
        for stored in store.select(PDBS, namespace):
            _check_budget(store, stored.decode(), pod)
    options = DeleteOptions(
        grace_s=grace if isinstance(grace, int) else None,
        propagation=sent.get("propagationPolicy") or None,
        uid=conditions.get("uid") or "",
        resource_version=conditions.get("resourceVersion") or "",
        dry_run=dry_run,
        user=user,
    )
    objects.delete(pods, namespace, name, options)


def _check_budget(store: Store, budget: Unstructured, pod: Unstructured) -> None:
    """Raise TooManyRequests if *budget* covers *pod* and cannot spare it."""
    spec = budget.get("spec") or {}
    try:
        parsed = msgspec.convert(spec.get("selector") or {}, LabelSelector)
        selector = from_object(parsed)
    except (BadInputError, msgspec.ValidationError):
        return
    if not selector.matches(pod["metadata"].get("labels") or {}):
        return
    covered = [
        stored.decode()
        for stored in store.select("pods", pod["metadata"]["namespace"])
        if selector.matches(stored.labels)
    ]
    live = [p for p in covered if p["status"].get("phase") not in ("Succeeded", "Failed")]
    healthy = sum(_healthy(p) for p in live)
    if "minAvailable" in spec:
        needed = _amount(spec["minAvailable"], len(live))
    else:
        needed = len(live) - _amount(spec.get("maxUnavailable", 1), len(live))
    if healthy - _healthy(pod) >= needed:
        return
    name = budget["metadata"]["name"]
    text = f"The disruption budget {name} needs {needed} healthy pods and has {healthy} currently"
    raise RefusalError(
        429,
        "TooManyRequests",
        "Cannot evict pod as it would violate the pod's disruption budget.",
        details={
            "causes": [{"reason": "DisruptionBudget", "message": text}],
            "retryAfterSeconds": 10,
        },
    )


def _healthy(pod: Unstructured) -> bool:
    conditions = (pod.get("status") or {}).get("conditions") or ()
    ready = any(c.get("type") == "Ready" and c.get("status") == "True" for c in conditions)
    return ready and "deletionTimestamp" not in pod["metadata"]


def _amount(value: Any, total: int) -> int:
    if isinstance(value, str) and value.endswith("%"):
        return math.ceil(int(value[:-1]) * total / 100)
    return int(value)


# Scale


def scale_of(paths: ScalePaths, obj: Unstructured) -> Unstructured:
    """Return the Scale of an object."""
    meta = obj["metadata"]
    kept = ("name", "namespace", "uid", "resourceVersion", "creationTimestamp")
    status: Unstructured = {"replicas": _at(obj, paths.status_replicas) or 0}
    selector = _at(obj, paths.selector) if paths.selector else _selector_text(obj)
    if selector:
        status["selector"] = selector
    return {
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": {key: meta[key] for key in kept if key in meta},
        "spec": {"replicas": _at(obj, paths.spec_replicas) or 0},
        "status": status,
    }


def with_scale(
    kind: Kind, paths: ScalePaths, obj: Unstructured, scale: Unstructured
) -> Unstructured:
    """Return *obj* with the replicas and version that *scale* names; raise Invalid."""
    replicas = (scale.get("spec") or {}).get("replicas", 0)
    if not isinstance(replicas, int) or isinstance(replicas, bool) or replicas < 0:
        error = FieldError(
            "spec.replicas", "FieldValueInvalid", f"{replicas}: must be a whole number, 0 or more"
        )
        raise invalid(kind.resource, obj["metadata"]["name"], [error])
    version = (scale.get("metadata") or {}).get("resourceVersion")
    if version:
        obj["metadata"]["resourceVersion"] = version
    part = obj
    for step in paths.spec_replicas[:-1]:
        part = part.setdefault(step, {})
    part[paths.spec_replicas[-1]] = replicas
    return obj


def _at(obj: Any, path: Path) -> Any:
    for step in path:
        obj = obj.get(step) if isinstance(obj, dict) else None
    return obj


def _selector_text(obj: Unstructured) -> str:
    selector = (obj.get("spec") or {}).get("selector") or {}
    labels = selector.get("matchLabels", {}) if "matchLabels" in selector else selector
    if not isinstance(labels, dict):
        return ""
    return ",".join(f"{k}={v}" for k, v in sorted(labels.items()) if isinstance(v, str))
