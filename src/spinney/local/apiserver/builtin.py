"""The kinds every Kubernetes has, as far as anybody asks this one for them.

All are stored and served; only the deletion rules of the server and the pod rules act on them.
Nothing runs Deployments, Jobs or DaemonSets, allocates service addresses or enforces quotas.
"""

from __future__ import annotations

import base64
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from spinney.api import core
from spinney.api.admission import FieldError
from spinney.api.resource import Resource
from spinney.local.apiserver import columns, crd, pods
from spinney.local.apiserver.events import EventsView
from spinney.local.apiserver.kinds import Kind, ScalePaths
from spinney.local.apiserver.protobuf import message_name

if TYPE_CHECKING:
    from collections.abc import Mapping

    from spinney.api.resource import Unstructured
    from spinney.local.apiserver.kinds import Path, World

_POD_FIELDS = (
    "spec.nodeName",
    "spec.restartPolicy",
    "spec.schedulerName",
    "spec.serviceAccountName",
    "spec.hostNetwork",
    "status.phase",
    "status.podIP",
    "status.nominatedNodeName",
)
_EVENT_FIELDS = (
    "involvedObject.kind",
    "involvedObject.namespace",
    "involvedObject.name",
    "involvedObject.uid",
    "involvedObject.apiVersion",
    "involvedObject.resourceVersion",
    "involvedObject.fieldPath",
    "reason",
    "reportingComponent",
    "type",
)
_ALL = ("all",)


def _paths(*names: str) -> Mapping[str, Path]:
    return {name: tuple(name.split(".")) for name in names}


def kinds() -> list[Kind]:
    """Return the built-in kinds, in the order in which discovery lists them."""
    found = [*_core(), *_core_stored(), *_workloads(), *_policies(), *_cluster()]
    return [replace(kind, message=_message(kind.resource)) for kind in found]


def _message(resource: Resource) -> str:
    if resource.group == "events.k8s.io":
        return message_name("v1", "Event")  # What is checked is what is stored.
    return message_name(resource.api_version, resource.kind)


def _core() -> list[Kind]:
    pod_subresources = (
        ("binding", "", "v1", "Binding", ("create",)),
        ("eviction", "policy", "v1", "Eviction", ("create",)),
        ("log", "", "v1", "Pod", ("get",)),
    )
    return [
        Kind(
            core.Pod.RESOURCE,
            status=True,
            subresources=pod_subresources,
            selectable=_paths(*_POD_FIELDS),
            columns=columns.PODS,
            default=pods.default,
            validate=pods.validate,
        ),
        Kind(
            core.Node.RESOURCE,
            status=True,
            status_on_create=True,
            selectable=_paths("spec.unschedulable"),
            columns=columns.NODES,
            default=_default_node,
            validate=_node_errors,
        ),
        Kind(
            core.Namespace.RESOURCE,
            status=True,
            subresources=(("finalize", "", "v1", "Namespace", ("update",)),),
            selectable=_paths("status.phase"),
            columns=columns.NAMESPACES,
            default=_default_namespace,
        ),
        Kind(
            core.Service.RESOURCE,
            status=True,
            selectable=_paths("spec.clusterIP", "spec.type"),
            columns=columns.SERVICES,
            default=_default_service,
            validate=_service_errors,
        ),
        Kind(core.ConfigMap.RESOURCE, columns=columns.CONFIG_MAPS, validate=_immutable_data_errors),
        Kind(
            core.Secret.RESOURCE,
            selectable=_paths("type"),
            columns=columns.SECRETS,
            default=_default_secret,
            validate=_immutable_data_errors,
        ),
    ]


def _core_stored() -> list[Kind]:
    """Kinds of the core group without rules of their own."""
    return [
        Kind(core.ServiceAccount.RESOURCE, columns=columns.NAME_AGE),
        Kind(core.Event.RESOURCE, selectable=_paths(*_EVENT_FIELDS), columns=columns.EVENTS),
        Kind(Resource("", "v1", "Endpoints", "endpoints", short_names=("ep",))),
        Kind(
            Resource("", "v1", "PersistentVolumeClaim", "persistentvolumeclaims", True, ("pvc",)),
            status=True,
        ),
        Kind(
            Resource("", "v1", "PersistentVolume", "persistentvolumes", False, ("pv",)), status=True
        ),
        Kind(
            Resource(
                "",
                "v1",
                "ReplicationController",
                "replicationcontrollers",
                short_names=("rc",),
                categories=_ALL,
            ),
            status=True,
            generation=True,
            scale=ScalePaths(),
        ),
        Kind(Resource("", "v1", "PodTemplate", "podtemplates"), generation=True),
        Kind(
            Resource("", "v1", "ResourceQuota", "resourcequotas", short_names=("quota",)),
            status=True,
        ),
        Kind(Resource("", "v1", "LimitRange", "limitranges", short_names=("limits",))),
    ]


def _workloads() -> list[Kind]:
    def workload(
        group: str, kind: str, plural: str, short: tuple[str, ...], *, scale: bool
    ) -> Kind:
        return Kind(
            Resource(group, "v1", kind, plural, short_names=short, categories=_ALL),
            status=True,
            generation=True,
            scale=ScalePaths() if scale else None,
            columns=columns.WORKLOADS if scale else (),
            default=_default_workload if scale else pods.default_template,
            validate=pods.validate_template,
        )

    return [
        workload("apps", "Deployment", "deployments", ("deploy",), scale=True),
        workload("apps", "ReplicaSet", "replicasets", ("rs",), scale=True),
        workload("apps", "StatefulSet", "statefulsets", ("sts",), scale=True),
        workload("apps", "DaemonSet", "daemonsets", ("ds",), scale=False),
        Kind(core.ControllerRevision.RESOURCE),
        workload("batch", "Job", "jobs", (), scale=False),
        Kind(
            Resource("batch", "v1", "CronJob", "cronjobs", True, ("cj",), _ALL),
            status=True,
            generation=True,
        ),
        Kind(core.HorizontalPodAutoscaler.RESOURCE, status=True),
        Kind(
            Resource("events.k8s.io", "v1", "Event", "events", short_names=("ev",)),
            columns=columns.EVENTS,
            view=EventsView(),
        ),
        Kind(core.Lease.RESOURCE, columns=columns.LEASES),
        Kind(Resource("discovery.k8s.io", "v1", "EndpointSlice", "endpointslices")),
    ]


def _policies() -> list[Kind]:
    rbac = "rbac.authorization.k8s.io"
    return [
        Kind(
            Resource("policy", "v1", "PodDisruptionBudget", "poddisruptionbudgets", True, ("pdb",)),
            status=True,
            generation=True,
        ),
        Kind(
            Resource(
                "networking.k8s.io", "v1", "NetworkPolicy", "networkpolicies", True, ("netpol",)
            ),
            generation=True,
        ),
        Kind(
            Resource("networking.k8s.io", "v1", "Ingress", "ingresses", True, ("ing",)),
            status=True,
            generation=True,
        ),
        Kind(
            Resource("networking.k8s.io", "v1", "IngressClass", "ingressclasses", False),
            generation=True,
        ),
        Kind(Resource(rbac, "v1", "Role", "roles"), loose_names=True),
        Kind(Resource(rbac, "v1", "RoleBinding", "rolebindings"), loose_names=True),
        Kind(Resource(rbac, "v1", "ClusterRole", "clusterroles", False), loose_names=True),
        Kind(
            Resource(rbac, "v1", "ClusterRoleBinding", "clusterrolebindings", False),
            loose_names=True,
        ),
    ]


def _cluster() -> list[Kind]:
    resource = "resource.k8s.io"
    return [
        Kind(core.PriorityClass.RESOURCE, generation=True, columns=columns.PRIORITY_CLASSES),
        Kind(Resource("storage.k8s.io", "v1", "StorageClass", "storageclasses", False, ("sc",))),
        Kind(Resource("node.k8s.io", "v1", "RuntimeClass", "runtimeclasses", False)),
        Kind(
            Resource(resource, "v1", "ResourceClaim", "resourceclaims"),
            status=True,
            validate=_immutable_spec_errors,
        ),
        Kind(Resource(resource, "v1", "ResourceClaimTemplate", "resourceclaimtemplates")),
        Kind(Resource(resource, "v1", "DeviceClass", "deviceclasses", False), generation=True),
        Kind(
            Resource(resource, "v1", "ResourceSlice", "resourceslices", False),
            generation=True,
            selectable=_paths("spec.nodeName", "spec.driver"),
        ),
        Kind(
            core.CustomResourceDefinition.RESOURCE,
            generation=True,
            status_on_create=True,
            columns=columns.DEFINITIONS,
            default=crd.complete,
            validate=crd.definition_errors,
        ),
    ]


# Rules


def _default_node(obj: Unstructured, old: Unstructured | None, world: World) -> None:
    obj.setdefault("spec", {})


def _node_errors(obj: Unstructured, old: Unstructured | None) -> list[FieldError]:
    spec = obj.get("spec")
    errors = []
    for index, taint in enumerate(spec.get("taints") or () if isinstance(spec, dict) else ()):
        path = f"spec.taints[{index}]"
        if not taint.get("key"):
            errors.append(FieldError(f"{path}.key", "FieldValueRequired", "a taint needs one"))
        if taint.get("effect") not in ("NoSchedule", "PreferNoSchedule", "NoExecute"):
            text = (
                f'"{taint.get("effect")}": supported values: "NoSchedule", "PreferNoSchedule", '
                '"NoExecute"'
            )
            errors.append(FieldError(f"{path}.effect", "FieldValueNotSupported", text))
    return errors


def _default_namespace(obj: Unstructured, old: Unstructured | None, world: World) -> None:
    meta = obj["metadata"]
    labels = meta.get("labels")
    meta["labels"] = (labels if isinstance(labels, dict) else {}) | {
        "kubernetes.io/metadata.name": meta["name"]
    }
    if old is None:
        obj["spec"] = {"finalizers": ["kubernetes"]}
        obj["status"] = {"phase": "Active"}


def _default_service(obj: Unstructured, old: Unstructured | None, world: World) -> None:
    spec = obj.get("spec")
    if not isinstance(spec, dict):
        return
    spec.setdefault("type", "ClusterIP")
    spec.setdefault("sessionAffinity", "None")
    for port in spec.get("ports") or ():
        if isinstance(port, dict):
            port.setdefault("protocol", "TCP")
            if "port" in port:
                port.setdefault("targetPort", port["port"])
    obj.setdefault("status", {"loadBalancer": {}})


def _service_errors(obj: Unstructured, old: Unstructured | None) -> list[FieldError]:
    spec = obj.get("spec")
    if not isinstance(spec, dict):
        return [FieldError("spec", "FieldValueRequired", "a service needs one")]
    errors = []
    ports = spec.get("ports") or []
    headless = spec.get("clusterIP") == "None" or spec["type"] == "ExternalName"
    if not ports and not headless:
        errors.append(FieldError("spec.ports", "FieldValueRequired", "at least one is needed"))
    for index, port in enumerate(ports):
        number = port.get("port") if isinstance(port, dict) else None
        if not isinstance(number, int) or not 0 < number < 65536:
            text = f"{number}: must be between 1 and 65535, inclusive"
            errors.append(FieldError(f"spec.ports[{index}].port", "FieldValueInvalid", text))
        elif len(ports) > 1 and not port.get("name"):
            errors.append(
                FieldError(f"spec.ports[{index}].name", "FieldValueRequired", "is needed")
            )
    return errors


def _default_secret(obj: Unstructured, old: Unstructured | None, world: World) -> None:
    import_strings(obj)
    obj.setdefault("type", "Opaque")


def import_strings(obj: Unstructured) -> None:
    """Move ``stringData`` of a Secret, which is for writing only, into ``data``."""
    strings = obj.pop("stringData", None)
    if isinstance(strings, dict):
        data: dict[str, Any] = obj.setdefault("data", {})
        for key, value in strings.items():
            data[key] = base64.b64encode(str(value).encode()).decode()


def _immutable_data_errors(obj: Unstructured, old: Unstructured | None) -> list[FieldError]:
    if old is None or not old.get("immutable"):
        return []
    return [
        FieldError(key, "FieldValueForbidden", "field is immutable when `immutable` is set")
        for key in ("data", "binaryData", "immutable")
        if obj.get(key) != old.get(key)
    ]


def _immutable_spec_errors(obj: Unstructured, old: Unstructured | None) -> list[FieldError]:
    if old is None or obj.get("spec") == old.get("spec"):
        return []
    return [FieldError("spec", "FieldValueInvalid", "field is immutable")]


def _default_workload(obj: Unstructured, old: Unstructured | None, world: World) -> None:
    pods.default_template(obj, old, world)
    spec = obj.get("spec")
    if isinstance(spec, dict):
        spec.setdefault("replicas", 1)
