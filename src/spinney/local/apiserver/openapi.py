"""OpenAPI documents: what ``kubectl explain`` prints and what kubectl looks up before it writes.

Custom kinds have the schema of their definition, built-in ones their fields and types without
descriptions. Each path says that writes take ``fieldValidation`` and ``dryRun``, without which
kubectl falls back to checks of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from spinney.local.apiserver import protobuf

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from spinney.api.resource import Unstructured
    from spinney.local.apiserver.kinds import Kind, Registry

_WRITE_PARAMETERS = ("dryRun", "fieldManager", "fieldValidation", "force")


def index(groups: Mapping[str, list[str]]) -> Unstructured:
    """Return the list of documents."""
    paths = [
        f"apis/{g}/{v}" if g else f"api/{v}" for g, versions in groups.items() for v in versions
    ]
    return {"paths": {path: {"serverRelativeURL": f"/openapi/v3/{path}"} for path in paths}}


def v2(_registry: Registry) -> bytes:
    """Return the OpenAPI v2 document: an empty one, which switches checks in clients off."""
    return b""


def v3(kinds: Sequence[Kind]) -> Unstructured:
    """Return the document of one group and version."""
    schemas: Unstructured = {}
    paths: Unstructured = {}
    for kind in kinds:
        schemas[_component(kind)] = _schema(kind, schemas)
        for path, methods in _paths(kind):
            paths[path] = {method: _operation(kind, method) for method in methods}
    return {
        "openapi": "3.0.0",
        "info": {"title": "Kubernetes", "version": "v1.32.0"},
        "paths": paths,
        "components": {"schemas": schemas},
    }


def _component(kind: Kind) -> str:
    resource = kind.resource
    group = ".".join(reversed(resource.group.split("."))) if resource.group else "io.k8s.api.core"
    return f"{group}.{resource.version}.{resource.kind}"


def _gvk(kind: Kind) -> Unstructured:
    resource = kind.resource
    return {"group": resource.group, "version": resource.version, "kind": resource.kind}


def _schema(kind: Kind, schemas: Unstructured) -> Unstructured:
    schema: Unstructured = dict(kind.schema.source) if kind.schema else _built_in(kind, schemas)
    properties = dict(schema.get("properties") or {})
    properties.setdefault("apiVersion", {"type": "string", "description": _API_VERSION})
    properties.setdefault("kind", {"type": "string", "description": _KIND})
    properties["metadata"] = _type_of("meta.ObjectMeta", schemas) | {"description": _METADATA}
    schema["properties"] = properties
    schema["x-kubernetes-group-version-kind"] = [_gvk(kind)]
    return schema


def _built_in(kind: Kind, schemas: Unstructured) -> Unstructured:
    name = protobuf.message_name(kind.resource.api_version, kind.resource.kind)
    return _message(name, schemas) if name else {"type": "object"}


def _message(name: str, schemas: Unstructured) -> Unstructured:
    properties: Unstructured = {}
    for field in protobuf.messages()[name].values():
        if field.inline:
            properties |= _message(field.type, schemas)["properties"]
            continue
        value = _type_of(field.type, schemas)
        if field.repeated:
            value = {"type": "array", "items": value}
        elif field.mapped:
            value = {"type": "object", "additionalProperties": value}
        properties[field.name] = value
    return {"type": "object", "properties": properties}


def _type_of(name: str, schemas: Unstructured) -> Unstructured:
    """Return the schema of a type; that of a message is a reference, made once in *schemas*."""
    if name in _SCALARS:
        return dict(_SCALARS[name])
    component = f"io.k8s.{name}"
    if component not in schemas:
        schemas[component] = {}  # Some refer to themselves.
        schemas[component] = _message(name, schemas)
    return {"allOf": [{"$ref": f"#/components/schemas/{component}"}]}


_SCALARS: dict[str, Unstructured] = {
    "s": {"type": "string"},
    "b": {"type": "string", "format": "byte"},
    "o": {"type": "boolean"},
    "i": {"type": "integer"},
    "d": {"type": "number"},
    "Quantity": {"type": "string"},
    "IntOrString": {"type": "string", "format": "int-or-string"},
    "meta.Time": {"type": "string", "format": "date-time"},
    "meta.MicroTime": {"type": "string", "format": "date-time"},
    "meta.FieldsV1": {"type": "object"},
    "RawExtension": {"type": "object"},
}
_API_VERSION = "The group and version of the schema this object follows."
_KIND = "What this object is."
_METADATA = "Name, namespace, labels and what else all objects have."


def _paths(kind: Kind) -> list[tuple[str, tuple[str, ...]]]:
    resource = kind.resource
    namespace = "{namespace}" if resource.namespaced else None
    collection = resource.path(namespace)
    return [
        (collection, ("get", "post")),
        (f"{collection}/{{name}}", ("get", "put", "patch", "delete")),
    ]


def _operation(kind: Kind, method: str) -> Unstructured:
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{_component(kind)}"}}}
    operation: Unstructured = {
        "responses": {"200": {"description": "OK", "content": content}},
        "x-kubernetes-group-version-kind": _gvk(kind),
        "x-kubernetes-action": method,
    }
    if method in ("post", "put", "patch"):
        parameters: list[Any] = [
            {"name": name, "in": "query", "schema": {"type": "string"}}
            for name in _WRITE_PARAMETERS
        ]
        operation["parameters"] = parameters
    return operation
