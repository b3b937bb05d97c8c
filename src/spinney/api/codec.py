"""Objects to and from JSON, without losing what the types do not name.

A typed object names only the fields Spinney uses. ``decode(…, keep=True)`` remembers the
JSON an object came from; encoding it then changes in that JSON just what was changed in the object.
So a read-modify-write by an older client does not erase a newer field. Informers decode without
``keep``: their copies are for reading, and changes go out as patches (`merge_diff`).
"""

from __future__ import annotations

import copy
import functools
from typing import Any, TypeVar, cast

import msgspec

from spinney.api.meta import KubeObject
from spinney.errors import SpinneyError

T = TypeVar("T", bound=KubeObject)

_ORIGINAL = "_original"
_LIST_KEYS = ("name", "type", "key", "uid", "containerPort", "port", "ip")
"""By which field items of a list are recognised as the same, first that all items have."""


class DecodeError(SpinneyError):
    """The JSON is no object of the wanted kind; the message has the path of what is wrong."""


@functools.cache
def _decoder(cls: type[T]) -> msgspec.json.Decoder[T]:
    return msgspec.json.Decoder(cls)


def decode(cls: type[T], data: bytes, *, keep: bool = False) -> T:
    """Return the object in *data*; with *keep* it remembers fields its type does not name.

    A ``null`` counts as absent. Raises DecodeError.
    """
    try:
        obj: T = _decoder(cls).decode(data)
    except msgspec.ValidationError:
        return from_dict(cls, _json(cls, data), keep=keep)
    except msgspec.DecodeError as error:
        raise DecodeError(f"{cls.__name__}: not valid JSON: {error}") from error
    if keep:
        obj.__dict__[_ORIGINAL] = msgspec.json.decode(data)
    return obj


def from_dict(cls: type[T], raw: dict[str, Any], *, keep: bool = False) -> T:
    """Return the object that *raw* describes; see `decode`. *raw* is not changed."""
    try:
        obj = msgspec.convert(without_nulls(raw), cls)
    except msgspec.ValidationError as error:
        name = (raw.get("metadata") or {}).get("name", "") if isinstance(raw, dict) else ""
        raise DecodeError(f"{cls.__name__} {name!r}: {error}") from error
    if keep:
        obj.__dict__[_ORIGINAL] = copy.deepcopy(raw)
    return obj


def to_dict(obj: KubeObject) -> dict[str, Any]:
    """Return *obj* as JSON values, with apiVersion and kind, and with what it came from kept."""
    typed = _typed_dict(obj)
    original = obj.__dict__.get(_ORIGINAL)
    if original is None:
        return typed
    before = _typed_dict(msgspec.convert(without_nulls(original), type(obj)))
    merged = copy.deepcopy(original)
    _overlay(merged, before, typed)
    return cast("dict[str, Any]", merged)


def encode(obj: KubeObject) -> bytes:
    """Return *obj* as JSON; see `to_dict`."""
    return msgspec.json.encode(to_dict(obj))


def merge_diff(before: KubeObject, after: KubeObject) -> dict[str, Any]:
    """Return the JSON merge patch (RFC 7386) that turns *before* into *after*.

    Empty when they are equal. Lists are replaced as a whole, so use it for lists whose items the
    types name in full, such as conditions.
    """
    return diff_values(_typed_dict(before), _typed_dict(after))


def diff_values(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """Return the JSON merge patch between two JSON objects."""
    patch: dict[str, Any] = {key: None for key in before if key not in after}
    for key, new in after.items():
        old = before.get(key)
        if key in before and old == new:
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            patch[key] = diff_values(old, new)
        else:
            patch[key] = new
    return patch


def without_nulls(value: Any) -> Any:
    """Return *value* with every object member that is null left out."""
    if isinstance(value, dict):
        return {k: without_nulls(v) for k, v in value.items() if v is not None}
    if isinstance(value, list):
        return [without_nulls(item) for item in value]
    return value


def _json(cls: type[KubeObject], data: bytes) -> dict[str, Any]:
    raw = msgspec.json.decode(data)
    if not isinstance(raw, dict):
        raise DecodeError(f"{cls.__name__}: a JSON object wanted, found {type(raw).__name__}")
    return raw


def _typed_dict(obj: KubeObject) -> dict[str, Any]:
    body = cast("dict[str, Any]", msgspec.to_builtins(obj))
    resource = obj.RESOURCE
    head = {"apiVersion": resource.api_version, "kind": resource.kind}
    return {**head, **body, **head}


def _overlay(target: dict[str, Any], before: dict[str, Any], after: dict[str, Any]) -> None:
    """Apply to *target* what changed from *before* to *after*, and nothing else."""
    for key in before.keys() - after.keys():
        target.pop(key, None)
    for key, new in after.items():
        old = before.get(key)
        if key in before and old == new:
            continue
        there = target.get(key)
        if isinstance(new, dict) and isinstance(old, dict) and isinstance(there, dict):
            _overlay(there, old, new)
        elif isinstance(new, list) and isinstance(old, list) and isinstance(there, list):
            target[key] = _overlay_list(there, old, new)
        else:
            target[key] = new


def _overlay_list(target: list[Any], before: list[Any], after: list[Any]) -> list[Any]:
    """Keep the unnamed fields of items that are in both lists, recognised by their key."""
    key = _list_key(before, after, target)
    if key is None:
        return after
    olds = {item[key]: item for item in before}
    theirs = {item[key]: item for item in target}
    merged = []
    for new in after:
        kept = theirs.get(new[key])
        if kept is None or new[key] not in olds:
            merged.append(new)
            continue
        _overlay(kept, olds[new[key]], new)
        merged.append(kept)
    return merged


def _list_key(*lists: list[Any]) -> str | None:
    for key in _LIST_KEYS:
        if all(_is_keyed(items, key) for items in lists):
            return key
    return None


def _is_keyed(items: list[Any], key: str) -> bool:
    if not all(isinstance(item, dict) and key in item for item in items):
        return False
    return len({item[key] for item in items}) == len(items)
