"""Structural schemas of custom resources: prune, default, validate.

A schema is compiled once. Pruning and defaulting are closures that touch only the parts of an
object the schema has something to say about; validation is a JSON Schema made from the structural
one, so that every error comes with its field. CEL rules (``x-kubernetes-validations``) and formats
are not evaluated.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jsonschema_rs

from spinney.api.admission import FieldError
from spinney.local.apiserver.patch import crd_schema

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from spinney.api.admission import Reason

SchemaDict = dict[str, Any]

Unknown = list[str]
"""Paths of fields that were dropped, relative to where the walk is."""

_Walk = Callable[[Any], "Unknown | None"]
"""Prunes and fills in a value in place; returns what it dropped, or None."""

_KEPT_AT_ROOT = ("apiVersion", "kind", "metadata")
_COPIED = (
    "enum",
    "maximum",
    "minimum",
    "maxItems",
    "minItems",
    "maxLength",
    "minLength",
    "maxProperties",
    "minProperties",
    "multipleOf",
    "pattern",
    "required",
    "uniqueItems",
)


class Schema:
    """The compiled schema of one version of a custom resource. Raises ValueError if it is wrong."""

    def __init__(self, schema: SchemaDict) -> None:
        self.source = schema
        root = dict(schema)
        properties = dict(root.get("properties") or {})
        for kept in _KEPT_AT_ROOT:
            properties[kept] = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
        root["properties"] = properties
        self._walk = _compile_walk(root) or (lambda _value: None)
        self._lists = _list_checks(schema)
        self.merging = crd_schema(schema)
        validated = _json_schema(schema)
        for kept in _KEPT_AT_ROOT:
            validated.get("properties", {}).pop(kept, None)
        try:
            self._validator = jsonschema_rs.Draft202012Validator(validated)
        except (jsonschema_rs.ValidationError, jsonschema_rs.ReferencingError) as error:
            raise ValueError(f"not a usable schema: {error}") from error

    def prune_and_default(self, obj: dict[str, Any]) -> Unknown:
        """Drop the fields the schema does not have and fill in defaults, in place.

        Returns the paths of what was dropped.
        """
        return self._walk(obj) or []

    def errors(self, obj: dict[str, Any]) -> list[FieldError]:
        """Return everything the schema does not allow."""
        if self._validator.is_valid(obj):
            found: list[FieldError] = []
        else:
            found = [error for raw in self._validator.iter_errors(obj) for error in _explain(raw)]
        for check in self._lists:
            found += check(obj)
        return found


# Pruning and defaulting


def _compile_walk(schema: SchemaDict) -> _Walk | None:
    """Return the walk of a schema, or None where there is never anything to do."""
    if "properties" in schema or _is_plain_object(schema):
        return _object_walk(schema)
    items = schema.get("items")
    if isinstance(items, dict):
        return _each(_compile_walk(items), list)
    extra = schema.get("additionalProperties")
    if isinstance(extra, dict):
        return _each(_compile_walk(extra), dict)
    return None


def _is_plain_object(schema: SchemaDict) -> bool:
    return (
        schema.get("type") == "object"
        and not schema.get("x-kubernetes-preserve-unknown-fields")
        and "additionalProperties" not in schema
    )


def _object_walk(schema: SchemaDict) -> _Walk:
    properties: dict[str, SchemaDict] = dict(schema.get("properties") or {})
    if schema.get("x-kubernetes-embedded-resource"):
        for kept in _KEPT_AT_ROOT:
            properties.setdefault(kept, {"x-kubernetes-preserve-unknown-fields": True})
    keep = bool(schema.get("x-kubernetes-preserve-unknown-fields"))
    known = frozenset(properties)
    defaults = [
        (name, json.dumps(sub["default"]), sub.get("nullable", False))
        for name, sub in properties.items()
        if "default" in sub
    ]
    walks = [(name, inner) for name, sub in properties.items() if (inner := _compile_walk(sub))]
    extra = schema.get("additionalProperties")
    each_extra = _compile_walk(extra) if isinstance(extra, dict) else None

    def walk(value: Any) -> Unknown | None:
        if not isinstance(value, dict):
            return None
        unknown: Unknown | None = None
        if not keep and not value.keys() <= known:
            extras = [key for key in value if key not in known]
            if each_extra is not None:
                unknown = _walk_extras(value, extras, each_extra)
            elif extra is None:
                unknown = extras
                for key in extras:
                    del value[key]
        for name, default, nullable in defaults:
            if name not in value or (value[name] is None and not nullable):
                value[name] = json.loads(default)
        for name, inner in walks:
            if name in value and (dropped := inner(value[name])):
                unknown = (unknown or []) + [_joined(name, path) for path in dropped]
        return unknown

    return walk


def _walk_extras(value: dict[str, Any], extras: list[str], walk: _Walk) -> Unknown | None:
    unknown: Unknown = []
    for key in extras:
        unknown += [_joined(key, path) for path in walk(value[key]) or ()]
    return unknown or None


def _each(inner: _Walk | None, container: type) -> _Walk | None:
    if inner is None:
        return None

    def walk(value: Any) -> Unknown | None:
        if not isinstance(value, list | dict) or not isinstance(value, container):
            return None
        pairs = enumerate(value) if isinstance(value, list) else value.items()
        unknown: Unknown | None = None
        for key, item in pairs:
            if dropped := inner(item):
                step = f"[{key}]" if isinstance(key, int) else key
                unknown = (unknown or []) + [_joined(step, path) for path in dropped]
        return unknown

    return walk


def _joined(step: str, path: str) -> str:
    return f"{step}{path}" if path.startswith("[") else f"{step}.{path}"


# Validation


def _json_schema(schema: SchemaDict) -> SchemaDict:
    """Return the JSON Schema that accepts what the structural schema accepts."""
    result: SchemaDict = {key: schema[key] for key in _COPIED if key in schema}
    if schema.get("x-kubernetes-int-or-string"):
        result["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    elif "type" in schema:
        result["type"] = schema["type"]
    for bound in ("Maximum", "Minimum"):
        if schema.get(f"exclusive{bound}") is True:
            result[f"exclusive{bound}"] = result.pop(bound.lower())
    if isinstance(schema.get("properties"), dict):
        result["properties"] = {k: _json_schema(v) for k, v in schema["properties"].items()}
    for key in ("items", "additionalProperties", "not"):
        if isinstance(schema.get(key), dict):
            result[key] = _json_schema(schema[key])
    for key in ("allOf", "anyOf", "oneOf"):
        branches = schema.get(key)
        if branches and not (key == "anyOf" and schema.get("x-kubernetes-int-or-string")):
            result[key] = [_json_schema(branch) for branch in branches]
    if schema.get("nullable"):
        return {"anyOf": [{"type": "null"}, result]} if result else {}
    return result


def _explain(error: jsonschema_rs.ValidationError) -> Iterable[FieldError]:
    """Say in Kubernetes' words what a validation error means."""
    kind = error.kind.name
    path = _path(error.instance_path)
    if kind == "required":
        missing = getattr(error.kind, "property", "").strip('"')
        yield FieldError(
            f"{path}.{missing}" if path else missing, "FieldValueRequired", "is needed"
        )
        return
    if kind == "anyOf":
        contexts = getattr(error.kind, "context", None) or []
        inner = [e for branch in contexts for e in branch if not _wants_null(e)]
        if len(contexts) == 2 and inner and any(_wants_null(e) for b in contexts for e in b):
            for deeper in inner:
                yield from _explain(deeper)
            return
    reason: Reason = "FieldValueInvalid"
    shown = json.dumps(error.instance)
    shown = shown if len(shown) <= 80 else f"{shown[:77]}..."
    if kind == "enum":
        reason = "FieldValueNotSupported"
        options = getattr(error.kind, "options", []) or []
        if isinstance(options, str):
            options = json.loads(options)
        detail = f"{shown}: supported values: {', '.join(json.dumps(o) for o in options)}"
    elif kind == "type":
        detail = f"{shown}: {path} must be of type {_types(error)}"
    else:
        detail = f"{shown}: {error.message}"
    yield FieldError(path or "<root>", reason, detail)


def _wants_null(error: jsonschema_rs.ValidationError) -> bool:
    return error.kind.name == "type" and _types(error) == "null"


def _types(error: jsonschema_rs.ValidationError) -> str:
    types = getattr(error.kind, "types", None) or []
    return types if isinstance(types, str) else " or ".join(types)


def _path(steps: Sequence[str | int]) -> str:
    text = ""
    for step in steps:
        if isinstance(step, int):
            text += f"[{step}]"
        else:
            text += f".{step}" if text else step
    return text


# Lists that are maps or sets

_Check = Callable[[Any], list[FieldError]]


def _list_checks(schema: SchemaDict) -> list[_Check]:
    """Return one check for each list in the schema that may not repeat items."""
    found: list[_Check] = []

    def visit(part: Any, path: tuple[str, ...]) -> None:
        if not isinstance(part, dict):
            return
        kind = part.get("x-kubernetes-list-type")
        if kind in ("map", "set"):
            keys = tuple(part.get("x-kubernetes-list-map-keys") or ()) if kind == "map" else ()
            found.append(_unique(path, keys, part.get("items") or {}))
        for name, sub in (part.get("properties") or {}).items():
            visit(sub, (*path, name))
        visit(part.get("items"), (*path, "[]"))
        visit(part.get("additionalProperties"), (*path, "{}"))

    visit(schema, ())
    return found


def _unique(path: tuple[str, ...], keys: tuple[str, ...], items: SchemaDict) -> _Check:
    fallback = {k: s.get("default") for k, s in (items.get("properties") or {}).items()}

    def identity(item: Any) -> str:
        if keys and isinstance(item, dict):
            return json.dumps({key: item.get(key, fallback.get(key)) for key in keys})
        return json.dumps(item, sort_keys=True)

    def check(obj: Any) -> list[FieldError]:
        errors = []
        for where, values in _at(obj, path, ""):
            seen: set[str] = set()
            for index, item in enumerate(values if isinstance(values, list) else ()):
                name = identity(item)
                if name in seen:
                    errors.append(FieldError(f"{where}[{index}]", "FieldValueDuplicate", name))
                seen.add(name)
        return errors

    return check


def _at(value: Any, path: tuple[str, ...], where: str) -> Iterable[tuple[str, Any]]:
    if not path:
        yield where, value
        return
    step, rest = path[0], path[1:]
    if step == "[]" and isinstance(value, list):
        for index, item in enumerate(value):
            yield from _at(item, rest, f"{where}[{index}]")
    elif step == "{}" and isinstance(value, dict):
        for key, item in value.items():
            yield from _at(item, rest, f"{where}.{key}")
    elif isinstance(value, dict) and step in value:
        yield from _at(value[step], rest, f"{where}.{step}" if where else step)


def check_structural(schema: Mapping[str, Any], path: str) -> list[FieldError]:
    """Return what keeps a schema from being structural: every part needs a type."""
    errors = []
    free = schema.get("x-kubernetes-int-or-string") or schema.get(
        "x-kubernetes-preserve-unknown-fields"
    )
    if not schema.get("type") and not free:
        errors.append(FieldError(f"{path}.type", "FieldValueRequired", "must not be empty"))
    for name, sub in (schema.get("properties") or {}).items():
        errors += check_structural(sub, f"{path}.properties[{name}]")
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            errors += check_structural(schema[key], f"{path}.{key}")
    return errors
