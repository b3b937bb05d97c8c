"""What the server fills in and checks in a Pod."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from spinney.api.admission import FieldError
from spinney.api.quantity import parse_quantity
from spinney.errors import BadInputError
from spinney.local.apiserver.names import label_error

if TYPE_CHECKING:
    from collections.abc import Iterable
    from decimal import Decimal

    from spinney.api.resource import Unstructured
    from spinney.local.apiserver.kinds import World

PRIORITY_CLASSES = "priorityclasses.scheduling.k8s.io"

_SPEC_DEFAULTS: dict[str, Any] = {
    "restartPolicy": "Always",
    "dnsPolicy": "ClusterFirst",
    "schedulerName": "default-scheduler",
    "terminationGracePeriodSeconds": 30,
    "enableServiceLinks": True,
}
_PROBE_DEFAULTS = {
    "timeoutSeconds": 1,
    "periodSeconds": 10,
    "successThreshold": 1,
    "failureThreshold": 3,
}
_RESTART_POLICIES = ("Always", "OnFailure", "Never")
_IMMUTABLE_TEXT = (
    "pod updates may not change fields other than `spec.containers[*].image`, "
    "`spec.initContainers[*].image`, `spec.activeDeadlineSeconds`, `spec.tolerations` (only "
    "additions to existing tolerations), `spec.terminationGracePeriodSeconds` (allow it to be set "
    "to 1 if it was previously negative), `spec.schedulingGates` (only removals)"
)


def default(obj: Unstructured, old: Unstructured | None, world: World) -> None:
    """Fill in a pod; a new one gets its priority and is Pending."""
    spec = obj.get("spec")
    if not isinstance(spec, dict):
        return
    default_spec(spec)
    if old is not None:
        return
    _default_priority(spec, world)
    conditions = []
    if spec.get("schedulingGates"):
        gated = "Scheduling is blocked due to non-empty scheduling gates"
        conditions.append(
            {
                "type": "PodScheduled",
                "status": "False",
                "lastProbeTime": None,
                "lastTransitionTime": None,
                "reason": "SchedulingGated",
                "message": gated,
            }
        )
    obj["status"] = {"phase": "Pending", "qosClass": qos_class(spec)}
    if conditions:
        obj["status"]["conditions"] = conditions


def default_template(obj: Unstructured, old: Unstructured | None, world: World) -> None:
    """Fill in the pod template of a workload."""
    spec = obj.get("spec")
    template = spec.get("template") if isinstance(spec, dict) else None
    inner = template.get("spec") if isinstance(template, dict) else None
    if isinstance(inner, dict):
        default_spec(inner)


def default_spec(spec: Unstructured) -> None:
    """Fill in the spec of a pod or of a template."""
    for key, value in _SPEC_DEFAULTS.items():
        if spec.get(key) is None:
            spec[key] = value
    spec.setdefault("securityContext", {})
    for container in _containers(spec):
        if isinstance(container, dict):
            _default_container(container)


def _default_container(container: Unstructured) -> None:
    image = container.get("image")
    if "imagePullPolicy" not in container and isinstance(image, str) and image:
        tag = image.rpartition("/")[2]
        latest = (":" not in tag and "@" not in tag) or tag.endswith(":latest")
        container["imagePullPolicy"] = "Always" if latest else "IfNotPresent"
    container.setdefault("terminationMessagePath", "/dev/termination-log")
    container.setdefault("terminationMessagePolicy", "File")
    resources = container.setdefault("resources", {})
    if isinstance(resources, dict) and isinstance(resources.get("limits"), dict):
        requests = resources.setdefault("requests", {})
        for name, limit in resources["limits"].items():
            requests.setdefault(name, limit)
    for port in container.get("ports") or ():
        if isinstance(port, dict):
            port.setdefault("protocol", "TCP")
    for name in ("startupProbe", "readinessProbe", "livenessProbe"):
        probe = container.get(name)
        if isinstance(probe, dict):
            for key, value in _PROBE_DEFAULTS.items():
                probe.setdefault(key, value)
            if isinstance(probe.get("httpGet"), dict):
                probe["httpGet"].setdefault("scheme", "HTTP")
                probe["httpGet"].setdefault("path", "/")


def _default_priority(spec: Unstructured, world: World) -> None:
    name = spec.get("priorityClassName")
    found = None
    if name:
        found = world.find(PRIORITY_CLASSES, "", name)
    else:
        defaults = [c for c in world.all(PRIORITY_CLASSES) if c.get("globalDefault")]
        if defaults:
            found = max(defaults, key=lambda c: int(c.get("value", 0)))
            spec["priorityClassName"] = found["metadata"]["name"]
    if found is not None:
        spec["priority"] = found.get("value", 0)
        spec["preemptionPolicy"] = found.get("preemptionPolicy", "PreemptLowerPriority")
    elif not name:
        spec["priority"] = 0
        spec.setdefault("preemptionPolicy", "PreemptLowerPriority")


def qos_class(spec: Unstructured) -> str:
    """Return Guaranteed, Burstable or BestEffort, by the cpu and memory asked for."""
    asked = False
    guaranteed = True
    for container in _containers(spec):
        resources = container.get("resources") if isinstance(container, dict) else None
        resources = resources if isinstance(resources, dict) else {}
        requests, limits = resources.get("requests") or {}, resources.get("limits") or {}
        for name in ("cpu", "memory"):
            asked = asked or _positive(requests.get(name)) or _positive(limits.get(name))
            same = name in limits and _same(requests.get(name, limits[name]), limits[name])
            guaranteed = guaranteed and same and _positive(limits.get(name))
    if not asked:
        return "BestEffort"
    return "Guaranteed" if guaranteed else "Burstable"


def validate(obj: Unstructured, old: Unstructured | None) -> list[FieldError]:
    """Return what is wrong with a pod; an update may change little of its spec."""
    spec = obj.get("spec")
    if not isinstance(spec, dict):
        return [FieldError("spec", "FieldValueRequired", "a pod needs one")]
    if old is not None:
        if spec == old.get("spec"):
            return []
        return _update_errors(spec, old["spec"])
    errors = spec_errors(spec, "spec")
    name = spec.get("priorityClassName")
    if name and "priority" not in spec:
        text = f"no PriorityClass with name {name} was found"
        errors.append(FieldError("spec.priorityClassName", "FieldValueNotFound", text))
    return errors


def validate_template(obj: Unstructured, old: Unstructured | None) -> list[FieldError]:
    """Return what is wrong with the pod template of a workload."""
    spec = obj.get("spec")
    if not isinstance(spec, dict):
        return [FieldError("spec", "FieldValueRequired", "is needed")]
    template = spec.get("template")
    inner = template.get("spec") if isinstance(template, dict) else None
    if not isinstance(inner, dict):
        return [FieldError("spec.template.spec", "FieldValueRequired", "is needed")]
    return spec_errors(inner, "spec.template.spec")


def spec_errors(spec: Unstructured, path: str) -> list[FieldError]:
    """Return what is wrong with the spec of a pod or template."""
    containers = spec.get("containers")
    if not isinstance(containers, list) or not containers:
        return [FieldError(f"{path}.containers", "FieldValueRequired", "at least one is needed")]
    errors: list[FieldError] = []
    names: set[str] = set()
    for group in ("initContainers", "containers"):
        for index, container in enumerate(spec.get(group) or ()):
            errors += _container_errors(container, f"{path}.{group}[{index}]", names)
    if spec.get("restartPolicy") not in _RESTART_POLICIES:
        shown = ", ".join(f'"{p}"' for p in _RESTART_POLICIES)
        text = f'"{spec.get("restartPolicy")}": supported values: {shown}'
        errors.append(FieldError(f"{path}.restartPolicy", "FieldValueNotSupported", text))
    grace = spec.get("terminationGracePeriodSeconds")
    if not isinstance(grace, int) or grace < 0:
        where = f"{path}.terminationGracePeriodSeconds"
        errors.append(FieldError(where, "FieldValueInvalid", f"{grace}: must be non-negative"))
    gates = [g.get("name") for g in spec.get("schedulingGates") or () if isinstance(g, dict)]
    errors += [
        FieldError(f"{path}.schedulingGates[{i}]", "FieldValueDuplicate", f'"{gate}"')
        for i, gate in enumerate(gates)
        if gate in gates[:i]
    ]
    if gates and spec.get("nodeName"):
        text = "cannot be set until all schedulingGates have been cleared"
        errors.append(FieldError(f"{path}.nodeName", "FieldValueForbidden", text))
    return errors


def _container_errors(container: Any, path: str, names: set[str]) -> list[FieldError]:
    if not isinstance(container, dict):
        return [FieldError(path, "FieldValueInvalid", "must be an object")]
    errors = []
    name = container.get("name")
    if not name:
        errors.append(FieldError(f"{path}.name", "FieldValueRequired", "a container needs a name"))
    elif wrong := label_error(f"{path}.name", name):
        errors.append(wrong)
    elif name in names:
        errors.append(FieldError(f"{path}.name", "FieldValueDuplicate", f'"{name}"'))
    else:
        names.add(name)
    if not container.get("image"):
        errors.append(FieldError(f"{path}.image", "FieldValueRequired", "an image is needed"))
    for index, port in enumerate(container.get("ports") or ()):
        number = port.get("containerPort") if isinstance(port, dict) else None
        if not isinstance(number, int) or not 0 < number < 65536:
            where = f"{path}.ports[{index}].containerPort"
            text = f"{number}: must be between 1 and 65535, inclusive"
            errors.append(FieldError(where, "FieldValueInvalid", text))
    for index, env in enumerate(container.get("env") or ()):
        if not isinstance(env, dict) or not env.get("name"):
            errors.append(
                FieldError(f"{path}.env[{index}].name", "FieldValueRequired", "is needed")
            )
    resources = container.get("resources")
    return errors + _resource_errors(resources if isinstance(resources, dict) else {}, path)


def _resource_errors(resources: Unstructured, path: str) -> list[FieldError]:
    errors = []
    for part in ("limits", "requests"):
        for name, value in (resources.get(part) or {}).items():
            where = f"{path}.resources.{part}[{name}]"
            try:
                amount = _amount(value)
            except BadInputError as error:
                errors.append(FieldError(where, "FieldValueInvalid", str(error)))
                continue
            if amount < 0:
                text = f'"{value}": must be greater than or equal to 0'
                errors.append(FieldError(where, "FieldValueInvalid", text))
    limits, requests = resources.get("limits") or {}, resources.get("requests") or {}
    if not errors:
        for name, value in requests.items():
            if name in limits and _amount(value) > _amount(limits[name]):
                text = f'"{value}": must be less than or equal to {name} limit of {limits[name]}'
                errors.append(FieldError(f"{path}.resources.requests", "FieldValueInvalid", text))
    return errors


def _update_errors(new: Unstructured, old: Unstructured) -> list[FieldError]:
    errors = []
    allowed = dict(new)
    for key in ("activeDeadlineSeconds", "schedulingGates", "tolerations"):
        _copy_key(allowed, old, key)
    if not old.get("nodeName") and old.get("schedulingGates"):
        for key in ("nodeSelector", "affinity"):
            _copy_key(allowed, old, key)
    for group in ("containers", "initContainers"):
        if group in new and group in old and len(new[group]) == len(old[group]):
            pairs = zip(new[group], old[group], strict=True)
            allowed[group] = [_with_key_of(a, b, "image") for a, b in pairs]
    if allowed != old:
        errors.append(FieldError("spec", "FieldValueForbidden", _IMMUTABLE_TEXT))
    gates = {g.get("name") for g in old.get("schedulingGates") or ()}
    added = [g for g in new.get("schedulingGates") or () if g.get("name") not in gates]
    if added:
        text = f"only deletion is allowed, but found new scheduling gate {added[0].get('name')!r}"
        errors.append(FieldError("spec.schedulingGates", "FieldValueForbidden", text))
    missing = [t for t in old.get("tolerations") or () if t not in (new.get("tolerations") or ())]
    if missing:
        text = "existing toleration can not be modified except its tolerationSeconds"
        errors.append(FieldError("spec.tolerations", "FieldValueForbidden", text))
    return errors


def _copy_key(target: Unstructured, source: Unstructured, key: str) -> None:
    if key in source:
        target[key] = source[key]
    else:
        target.pop(key, None)


def _with_key_of(target: Unstructured, source: Unstructured, key: str) -> Unstructured:
    result = dict(target)
    _copy_key(result, source, key)
    if key == "image":
        _copy_key(result, source, "imagePullPolicy")
    return result


def _containers(spec: Unstructured) -> Iterable[Any]:
    for group in ("initContainers", "containers"):
        found = spec.get(group)
        if isinstance(found, list):
            yield from found


@functools.lru_cache(maxsize=1024)
def _amount(value: Any) -> Decimal:
    """Return a quantity's amount; the same few are asked for with every pod."""
    return parse_quantity(value)


def _positive(value: Any) -> bool:
    if value is None:
        return False
    try:
        return _amount(value) > 0
    except BadInputError:
        return False


def _same(left: Any, right: Any) -> bool:
    if left == right:
        return True
    try:
        return _amount(left) == _amount(right)
    except BadInputError:
        return False
