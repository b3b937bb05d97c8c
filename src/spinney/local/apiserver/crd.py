"""From a CustomResourceDefinition to the kinds it makes the server serve."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from spinney.api.admission import FieldError
from spinney.api.resource import Resource
from spinney.local.apiserver.jsonpath import compile_path, simple_path
from spinney.local.apiserver.kinds import Column, Kind, NewApiVersion, ScalePaths
from spinney.local.apiserver.printing import age
from spinney.local.apiserver.schema import Schema, check_structural

if TYPE_CHECKING:
    from collections.abc import Callable

    from spinney.api.resource import Unstructured
    from spinney.local.apiserver.kinds import World

_ANYTHING: Unstructured = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}


def permissive(
    resource: Resource, *, status: bool = True, scale: ScalePaths | None = None
) -> Unstructured:
    """Return a CustomResourceDefinition for *resource* that takes objects of any shape."""
    version: Unstructured = {
        "name": resource.version,
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": dict(_ANYTHING)},
    }
    subresources: Unstructured = {"status": {}} if status else {}
    if scale:
        subresources["scale"] = {
            "specReplicasPath": "." + ".".join(scale.spec_replicas),
            "statusReplicasPath": "." + ".".join(scale.status_replicas),
        }
        if scale.selector:
            subresources["scale"]["labelSelectorPath"] = "." + ".".join(scale.selector)
    if subresources:
        version["subresources"] = subresources
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": resource.name},
        "spec": {
            "group": resource.group,
            "scope": "Namespaced" if resource.namespaced else "Cluster",
            "names": {
                "kind": resource.kind,
                "plural": resource.plural,
                "singular": resource.singular,
                "shortNames": list(resource.short_names),
                "categories": list(resource.categories),
            },
            "versions": [version],
        },
    }


def kinds_of(definition: Unstructured) -> list[Kind]:
    """Return one kind for each served version, the stored one first; raise ValueError."""
    spec = definition["spec"]
    versions = [v for v in spec["versions"] if v.get("served")]
    stored = next(v["name"] for v in spec["versions"] if v.get("storage"))
    versions.sort(key=lambda version: version["name"] != stored)
    return [_kind(spec, version, stored) for version in versions]


def _kind(spec: Unstructured, version: Unstructured, stored: str) -> Kind:
    names = spec["names"]
    resource = Resource(
        spec["group"],
        version["name"],
        names["kind"],
        names["plural"],
        namespaced=spec.get("scope") == "Namespaced",
        short_names=tuple(names.get("shortNames") or ()),
        categories=tuple(names.get("categories") or ()),
    )
    subresources = version.get("subresources") or {}
    view = None
    if version["name"] != stored:
        view = NewApiVersion(resource.api_version, f"{resource.group}/{stored}")
    return Kind(
        resource,
        status="status" in subresources,
        generation=True,
        scale=_scale(subresources.get("scale")),
        selectable={
            field["jsonPath"].lstrip("."): simple_path(field["jsonPath"])
            for field in version.get("selectableFields") or ()
        },
        columns=tuple(_columns(version.get("additionalPrinterColumns") or ())),
        singular=names.get("singular") or names["kind"].lower(),
        schema=Schema((version.get("schema") or {}).get("openAPIV3Schema") or dict(_ANYTHING)),
        view=view,
    )


def _scale(scale: Unstructured | None) -> ScalePaths | None:
    if scale is None:
        return None
    selector = scale.get("labelSelectorPath")
    return ScalePaths(
        simple_path(scale["specReplicasPath"]),
        simple_path(scale["statusReplicasPath"]),
        simple_path(selector) if selector else (),
    )


def _columns(columns: Any) -> list[Column]:
    if not columns:
        created: Unstructured = {
            "name": "Age",
            "type": "date",
            "jsonPath": ".metadata.creationTimestamp",
        }
        columns = [created]
    return [
        Column("Name", lambda obj, _now: obj["metadata"]["name"], format="name"),
        *(
            Column(
                column["name"],
                _cell(column["jsonPath"], column["type"]),
                type=column["type"],
                priority=column.get("priority", 0),
                description=column.get("description", ""),
                format=column.get("format", ""),
            )
            for column in columns
        ),
    ]


def _cell(path: str, kind: str) -> Callable[[Unstructured, float], Any]:
    values = compile_path(path)

    def cell(obj: Unstructured, now: float) -> Any:
        found = values(obj)
        if not found or found[0] is None:
            return None
        value = found[0]
        if kind == "date":
            return age(value, now) if isinstance(value, str) else None
        if kind in ("integer", "number", "boolean"):
            return value
        return value if isinstance(value, str) else ",".join(map(_text, found))

    return cell


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


# The rules of definitions themselves


def complete(obj: Unstructured, old: Unstructured | None, world: World) -> None:
    """Fill in a definition, and its status: names are accepted and served as soon as stored."""
    spec = obj.get("spec")
    if not isinstance(spec, dict) or not isinstance(spec.get("names"), dict):
        return
    names = spec["names"]
    if isinstance(names.get("kind"), str):
        names.setdefault("singular", names["kind"].lower())
        names.setdefault("listKind", f"{names['kind']}List")
    spec.setdefault("conversion", {"strategy": "None"})
    versions = [v for v in spec.get("versions") or () if isinstance(v, dict)]
    status = obj.get("status") or {}
    stored = [v["name"] for v in versions if v.get("storage") and v.get("name")]
    since = obj["metadata"].get("creationTimestamp")
    before = {c["type"]: c for c in status.get("conditions") or ()}
    obj["status"] = {
        "acceptedNames": names,
        "storedVersions": sorted({*(status.get("storedVersions") or ()), *stored}),
        "conditions": [
            before.get(kind)
            or {
                "type": kind,
                "status": "True",
                "lastTransitionTime": since,
                "reason": reason,
                "message": message,
            }
            for kind, reason, message in (
                ("NamesAccepted", "NoConflicts", "no conflicts found"),
                ("Established", "InitialNamesAccepted", "the initial names have been accepted"),
            )
        ],
    }


def definition_errors(obj: Unstructured, old: Unstructured | None) -> list[FieldError]:
    """Return what is wrong with a definition."""
    spec = obj.get("spec")
    if not isinstance(spec, dict):
        return [FieldError("spec", "FieldValueRequired", "a definition needs one")]
    names = spec.get("names") or {}
    needed = [
        ("spec.group", spec.get("group")),
        ("spec.names.plural", names.get("plural")),
        ("spec.names.kind", names.get("kind")),
        ("spec.versions", spec.get("versions")),
    ]
    errors = [FieldError(p, "FieldValueRequired", "is needed") for p, value in needed if not value]
    if errors:
        return errors
    if spec.get("scope") not in ("Namespaced", "Cluster"):
        text = f'"{spec.get("scope")}": supported values: "Cluster", "Namespaced"'
        errors.append(FieldError("spec.scope", "FieldValueNotSupported", text))
    wanted = f"{names['plural']}.{spec['group']}"
    if obj["metadata"].get("name") != wanted:
        text = f'"{obj["metadata"].get("name")}": must be spec.names.plural+"."+spec.group'
        errors.append(FieldError("metadata.name", "FieldValueInvalid", text))
    if sum(bool(v.get("storage")) for v in spec["versions"]) != 1:
        text = "must have exactly one version marked as storage version"
        errors.append(FieldError("spec.versions", "FieldValueInvalid", text))
    for index, version in enumerate(spec["versions"]):
        errors += _version_errors(version, f"spec.versions[{index}]")
    errors += _fixed_errors(spec, (old or {}).get("spec"))
    return errors or _usable(obj)


def _version_errors(version: Unstructured, path: str) -> list[FieldError]:
    errors = []
    if not version.get("name"):
        errors.append(FieldError(f"{path}.name", "FieldValueRequired", "is needed"))
    schema = (version.get("schema") or {}).get("openAPIV3Schema")
    where = f"{path}.schema.openAPIV3Schema"
    if not schema:
        errors.append(FieldError(where, "FieldValueRequired", "schemas are required"))
    else:
        errors += check_structural(schema, where)
    return errors


def _fixed_errors(spec: Unstructured, old: Unstructured | None) -> list[FieldError]:
    if old is None:
        return []
    fixed = [
        ("spec.group", spec["group"], old["group"]),
        ("spec.scope", spec["scope"], old["scope"]),
        ("spec.names.kind", spec["names"]["kind"], old["names"]["kind"]),
        ("spec.names.plural", spec["names"]["plural"], old["names"]["plural"]),
    ]
    return [
        FieldError(path, "FieldValueInvalid", f'"{new}": field is immutable')
        for path, new, before in fixed
        if new != before
    ]


def _usable(obj: Unstructured) -> list[FieldError]:
    try:
        kinds_of(obj)
    except (ValueError, KeyError, TypeError) as error:
        return [FieldError("spec.versions", "FieldValueInvalid", str(error))]
    return []
