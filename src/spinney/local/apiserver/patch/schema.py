"""How values merge: which lists are keyed, which are sets, which maps are taken whole.

A `Node` says it for one place in an object. Custom resources say it in their schema
(``x-kubernetes-list-type`` and its kin); for the built-in kinds it stands here. A place that no
node describes is a map that merges by field, a list that is taken whole, or a scalar.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

ListType = Literal["atomic", "set", "map"]


@dataclass(frozen=True, slots=True)
class Node:
    """How the value at one place merges."""

    fields: Mapping[str, Node] = field(default_factory=dict)
    """Nodes of named fields."""
    values: Node | None = None
    """The node of the values of a map whose keys are free."""
    items: Node | None = None
    """The node of the items of a list."""
    list_type: ListType = "atomic"
    keys: tuple[str, ...] = ()
    """By which fields items of a keyed list are recognised."""
    key_defaults: Mapping[str, Any] = field(default_factory=dict)
    """What a key field is when an item leaves it out."""
    merge_key: str = ""
    """The key of strategic merge patches, which know one per list; empty: the list is replaced."""
    strategic_set: bool = False
    """Whether a strategic merge patch unites a list of scalars instead of replacing it."""
    atomic_map: bool = False
    """Whether a map is owned and applied as one value."""

    def child(self, name: str) -> Node:
        """Return the node of field *name*."""
        found = self.fields.get(name, self.values)
        return found if found is not None else UNKNOWN

    @property
    def item(self) -> Node:
        """The node of a list's items."""
        return self.items if self.items is not None else UNKNOWN


UNKNOWN = Node()
"""A place nobody described."""
_ATOMIC = Node(atomic_map=True)


def _keyed(*keys: str, item: Node = UNKNOWN, merge: str | None = None, **defaults: Any) -> Node:
    return Node(
        items=item,
        list_type="map",
        keys=tuple(sorted(keys)),
        merge_key=keys[0] if merge is None else merge,
        key_defaults=defaults,
    )


def _fields(**nodes: Node) -> Node:
    return Node(fields=nodes)


_SET = Node(list_type="set", strategic_set=True)
_CONDITIONS = _keyed("type")
_METADATA = _fields(ownerReferences=_keyed("uid"), finalizers=_SET)
_ENV = _keyed(
    "name",
    item=_fields(
        valueFrom=_fields(
            configMapKeyRef=_ATOMIC,
            fieldRef=_ATOMIC,
            resourceFieldRef=_ATOMIC,
            secretKeyRef=_ATOMIC,
        )
    ),
)
_CONTAINER = _fields(
    env=_ENV,
    ports=_keyed("containerPort", "protocol", protocol="TCP"),
    volumeMounts=_keyed("mountPath"),
    volumeDevices=_keyed("devicePath"),
    resources=_fields(claims=_keyed("name", merge="")),
)
_VOLUME = _fields(
    projected=_fields(),
    persistentVolumeClaim=_fields(),
    ephemeral=_fields(volumeClaimTemplate=_fields(spec=_fields(selector=_ATOMIC))),
)
_POD_SPEC = _fields(
    containers=_keyed("name", item=_CONTAINER),
    initContainers=_keyed("name", item=_CONTAINER),
    ephemeralContainers=_keyed("name", item=_CONTAINER),
    volumes=_keyed("name", item=_VOLUME),
    imagePullSecrets=_keyed("name"),
    hostAliases=_keyed("ip"),
    nodeSelector=_ATOMIC,
    schedulingGates=_keyed("name"),
    resourceClaims=_keyed("name"),
    topologySpreadConstraints=_keyed(
        "topologyKey", "whenUnsatisfiable", item=_fields(labelSelector=_ATOMIC)
    ),
)
_POD_TEMPLATE = _fields(metadata=_METADATA, spec=_POD_SPEC)
_WORKLOAD = _fields(
    metadata=_METADATA,
    spec=_fields(selector=_ATOMIC, template=_POD_TEMPLATE),
    status=_fields(conditions=_CONDITIONS),
)
_WITH_CONDITIONS = _fields(metadata=_METADATA, status=_fields(conditions=_CONDITIONS))

_BUILTIN: dict[str, Node] = {
    "pods": _fields(
        metadata=_METADATA,
        spec=_POD_SPEC,
        status=_fields(
            conditions=_CONDITIONS,
            podIPs=_keyed("ip"),
            hostIPs=Node(items=UNKNOWN, merge_key="ip"),
            resourceClaimStatuses=_keyed("name"),
        ),
    ),
    "podtemplates": _fields(metadata=_METADATA, template=_POD_TEMPLATE),
    "nodes": _fields(
        metadata=_METADATA,
        spec=_fields(podCIDRs=_SET),
        status=_fields(conditions=_CONDITIONS, addresses=_keyed("type")),
    ),
    "services": _fields(
        metadata=_METADATA,
        spec=_fields(
            ports=_keyed("port", "protocol", protocol="TCP"),
            selector=_ATOMIC,
        ),
        status=_fields(conditions=_CONDITIONS),
    ),
    "serviceaccounts": _fields(metadata=_METADATA, secrets=_keyed("name")),
    "events": _fields(metadata=_METADATA, involvedObject=_ATOMIC),
    "namespaces": _WITH_CONDITIONS,
    "deployments.apps": _WORKLOAD,
    "replicasets.apps": _WORKLOAD,
    "statefulsets.apps": _WORKLOAD,
    "daemonsets.apps": _WORKLOAD,
    "replicationcontrollers": _WORKLOAD,
    "jobs.batch": _WORKLOAD,
    "cronjobs.batch": _fields(
        metadata=_METADATA,
        spec=_fields(jobTemplate=_fields(metadata=_METADATA, spec=_WORKLOAD.child("spec"))),
    ),
    "poddisruptionbudgets.policy": _fields(
        metadata=_METADATA,
        spec=_fields(selector=_ATOMIC),
        status=_fields(conditions=_CONDITIONS),
    ),
    "customresourcedefinitions.apiextensions.k8s.io": _WITH_CONDITIONS,
    "horizontalpodautoscalers.autoscaling": _WITH_CONDITIONS,
}
_PLAIN = _fields(metadata=_METADATA)


def builtin_schema(resource: str) -> Node:
    """Return the node of a built-in kind by its resource name, such as ``deployments.apps``."""
    return _BUILTIN.get(resource, _PLAIN)


def crd_schema(openapi: Mapping[str, Any] | None) -> Node:
    """Return the node of a custom kind from its ``openAPIV3Schema``; do this once per CRD."""
    body = _compile(openapi or {})
    return Node(fields={**body.fields, "metadata": _METADATA}, values=body.values)


def _compile(schema: Mapping[str, Any]) -> Node:
    fields = {name: _compile(part) for name, part in (schema.get("properties") or {}).items()}
    if schema.get("x-kubernetes-embedded-resource"):
        fields["metadata"] = _METADATA
    extra, items = schema.get("additionalProperties"), schema.get("items")
    keys = tuple(sorted(schema.get("x-kubernetes-list-map-keys") or ()))
    return Node(
        fields=fields,
        values=_compile(extra) if isinstance(extra, dict) else None,
        items=_compile(items) if isinstance(items, dict) else None,
        list_type=_list_type(schema.get("x-kubernetes-list-type")),
        keys=keys,
        key_defaults=_key_defaults(keys, items),
        atomic_map=schema.get("x-kubernetes-map-type") == "atomic",
    )


def _list_type(text: Any) -> ListType:
    if text == "set":
        return "set"
    return "map" if text == "map" else "atomic"


def _key_defaults(keys: tuple[str, ...], items: Any) -> dict[str, Any]:
    properties = (items or {}).get("properties") or {}
    return {
        key: properties[key]["default"]
        for key in keys
        if isinstance(properties.get(key), dict) and "default" in properties[key]
    }
