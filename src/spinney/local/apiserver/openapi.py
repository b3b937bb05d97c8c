"""OpenAPI documents: what ``kubectl explain`` prints and what kubectl looks up before it writes.

Custom kinds have the schema of their definition. Each path says that writes take
``fieldValidation`` and ``dryRun``, without which kubectl falls back to checks of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

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
        schemas[_component(kind)] = _schema(kind)
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


def _schema(kind: Kind) -> Unstructured:
    schema: Unstructured = dict(kind.schema.source) if kind.schema else {"type": "object"}
    properties = dict(schema.get("properties") or {})
    properties.setdefault("apiVersion", {"type": "string", "description": _API_VERSION})
    properties.setdefault("kind", {"type": "string", "description": _KIND})
    properties["metadata"] = {"type": "object", "description": _METADATA}
    schema["properties"] = properties
    schema["x-kubernetes-group-version-kind"] = [_gvk(kind)]
    return schema


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
