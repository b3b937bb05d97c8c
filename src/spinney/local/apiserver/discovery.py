"""What the server serves, as clients ask for it: versions, groups, resources, OpenAPI.

Documents are made when first asked for and made anew when a CustomResourceDefinition changes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from spinney.kube.transport import ApiResponse
from spinney.local.apiserver import openapi, reviews

if TYPE_CHECKING:
    from collections.abc import Callable

    from spinney.api.resource import Unstructured
    from spinney.local.apiserver.kinds import Kind, Registry

VERSION = {
    "major": "1",
    "minor": "32",
    "gitVersion": "v1.32.0+spinney",
    "gitCommit": "",
    "gitTreeState": "clean",
    "buildDate": "1970-01-01T00:00:00Z",
    "goVersion": "",
    "compiler": "",
    "platform": "",
}
"""The Kubernetes version whose API this is, which clients compare with their own."""

OPENAPI_V2 = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf"


class Documents:
    """The documents at paths that are not those of objects."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._made: dict[str, ApiResponse] = {}
        self._generation = -1

    def get(self, path: str) -> ApiResponse | None:
        """Return the document at *path*, None if there is none."""
        if self._generation != self._registry.generation:
            self._generation = self._registry.generation
            self._made = {}
        if path not in self._made:
            made = self._make(path)
            if made is None:
                return None
            self._made[path] = made
        return self._made[path]

    def _make(self, path: str) -> ApiResponse | None:
        fixed: dict[str, Callable[[], Any]] = {
            "/": lambda: {"paths": ["/api", "/apis", "/healthz", "/openapi/v3", "/version"]},
            "/version": lambda: VERSION,
            "/api": lambda: {"kind": "APIVersions", "versions": ["v1"]},
            "/apis": self._group_list,
            "/openapi/v3": lambda: openapi.index(self._groups()),
        }
        if path == "/openapi/v2":
            return ApiResponse(200, openapi.v2(self._registry), content_type=OPENAPI_V2)
        if path in fixed:
            return _json(fixed[path]())
        parts = path.strip("/").split("/")
        match parts:
            case ["api", version]:
                return self._resource_list("", version)
            case ["apis", group]:
                versions = self._groups().get(group)
                return _json(_group(group, versions)) if group and versions else None
            case ["apis", group, version]:
                return self._resource_list(group, version)
            case ["openapi", "v3", "api", version]:
                return self._schemas("", version)
            case ["openapi", "v3", "apis", group, version]:
                return self._schemas(group, version)
        return None

    def _groups(self) -> dict[str, list[str]]:
        groups = self._registry.groups()
        for group in reviews.RESOURCES:
            groups.setdefault(group, ["v1"])
        return groups

    def _group_list(self) -> Unstructured:
        groups = [_group(group, v) for group, v in self._groups().items() if group]
        return {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}

    def _resource_list(self, group: str, version: str) -> ApiResponse | None:
        if version not in self._groups().get(group, ()):
            return None
        resources = [
            entry
            for kind in self._registry.in_version(group, version)
            for entry in _resources(kind)
        ]
        resources += [
            {
                "name": plural,
                "singularName": kind.lower(),
                "namespaced": namespaced,
                "kind": kind,
                "verbs": ["create"],
            }
            for plural, kind, namespaced in reviews.RESOURCES.get(group, ())
        ]
        return _json(
            {
                "kind": "APIResourceList",
                "apiVersion": "v1",
                "groupVersion": f"{group}/{version}" if group else version,
                "resources": resources,
            }
        )

    def _schemas(self, group: str, version: str) -> ApiResponse | None:
        if version not in self._groups().get(group, ()):
            return None
        return _json(openapi.v3(self._registry.in_version(group, version)))


def _json(value: Any) -> ApiResponse:
    return ApiResponse(200, msgspec.json.encode(value))


def _group(group: str, versions: list[str]) -> Unstructured:
    listed = [{"groupVersion": f"{group}/{v}", "version": v} for v in versions]
    return {
        "kind": "APIGroup",
        "apiVersion": "v1",
        "name": group,
        "versions": listed,
        "preferredVersion": listed[0],
    }


def _resources(kind: Kind) -> list[Unstructured]:
    resource = kind.resource
    entry: Unstructured = {
        "name": resource.plural,
        "singularName": kind.singular or resource.singular,
        "namespaced": resource.namespaced,
        "kind": resource.kind,
        "verbs": list(kind.verbs),
    }
    if resource.short_names:
        entry["shortNames"] = list(resource.short_names)
    if resource.categories:
        entry["categories"] = list(resource.categories)
    entries = [entry]
    if kind.status:
        entries.append(_below(kind, "status", resource.kind, ("get", "patch", "update")))
    if kind.scale:
        scale = _below(kind, "scale", "Scale", ("get", "patch", "update"))
        entries.append(scale | {"group": "autoscaling", "version": "v1"})
    for name, group, version, other, verbs in kind.subresources:
        below = _below(kind, name, other, verbs)
        if group:
            below |= {"group": group, "version": version}
        entries.append(below)
    return entries


def _below(kind: Kind, name: str, object_kind: str, verbs: tuple[str, ...]) -> Unstructured:
    return {
        "name": f"{kind.resource.plural}/{name}",
        "singularName": "",
        "namespaced": kind.resource.namespaced,
        "kind": object_kind,
        "verbs": list(verbs),
    }
