"""Strategic merge patch: a merge patch that knows the keys of lists, for built-in kinds.

Besides values a patch has directives: ``$patch`` (replace, delete or merge what it stands in),
``$retainKeys`` (of this map keep only these), ``$deleteFromPrimitiveList/x`` and
``$setElementOrder/x``. None of them is ever left in the result.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from spinney.local.apiserver.patch.errors import BadPatchError
from spinney.local.apiserver.patch.ordering import merged_order

if TYPE_CHECKING:
    from spinney.local.apiserver.patch.schema import Node

_PATCH = "$patch"
_RETAIN = "$retainKeys"
_DELETE_FROM = "$deleteFromPrimitiveList/"
_ORDER = "$setElementOrder/"


def strategic_merge(target: dict[str, Any], patch: dict[str, Any], schema: Node) -> dict[str, Any]:
    """Return *target* with *patch* applied by the rules of *schema*; raise BadPatchError."""
    if not isinstance(patch, dict):
        raise BadPatchError(f"strategic merge patch: a map wanted, found {type(patch).__name__}")
    return _merge_map(target, patch, schema, "")


def _merge_map(
    target: dict[str, Any], patch: dict[str, Any], node: Node, path: str
) -> dict[str, Any]:
    directive = patch.get(_PATCH)
    if directive == "replace":
        return {k: _plain(v) for k, v in patch.items() if k != _PATCH and v is not None}
    if directive == "delete":
        return {}
    if directive not in (None, "merge"):
        raise BadPatchError(
            f"{path or '.'}: $patch {directive!r} is none of replace, delete, merge"
        )
    merged = _retained(target, patch, path)
    for key, value in patch.items():
        if key in (_PATCH, _RETAIN):
            continue
        if key.startswith(_DELETE_FROM):
            _delete_from(merged, key.removeprefix(_DELETE_FROM), value, path)
        elif not key.startswith(_ORDER):
            _merge_field(merged, key, value, node.child(key), f"{path}.{key}")
    for key, order in patch.items():
        if key.startswith(_ORDER):
            name = key.removeprefix(_ORDER)
            _set_order(merged, name, order, target.get(name), node.child(name), f"{path}.{name}")
    return merged


def _retained(target: dict[str, Any], patch: dict[str, Any], path: str) -> dict[str, Any]:
    keep = patch.get(_RETAIN)
    if keep is None:
        return dict(target)
    if not isinstance(keep, list):
        raise BadPatchError(f"{path}: $retainKeys wants a list of field names")
    for key, value in patch.items():
        if not key.startswith("$") and value is not None and key not in keep:
            raise BadPatchError(f"{path}: the patch sets {key!r}, which $retainKeys does not list")
    return {key: value for key, value in target.items() if key in keep}


def _delete_from(merged: dict[str, Any], name: str, gone: Any, path: str) -> None:
    if not isinstance(gone, list):
        raise BadPatchError(f"{path}: {_DELETE_FROM}{name} wants a list of values")
    if isinstance(merged.get(name), list):
        merged[name] = [value for value in merged[name] if value not in gone]


def _merge_field(merged: dict[str, Any], key: str, value: Any, node: Node, path: str) -> None:
    if value is None:
        merged.pop(key, None)
        return
    there = merged.get(key)
    if isinstance(value, dict) and isinstance(there, dict):
        merged[key] = _merge_map(there, value, node, path)
    elif isinstance(value, dict) and value.get(_PATCH) == "delete":
        merged.pop(key, None)
    elif isinstance(value, list) and isinstance(there, list):
        merged[key] = _merge_list(there, value, node, path)
    else:
        merged[key] = _plain(value)


def _merge_list(there: list[Any], patch: list[Any], node: Node, path: str) -> list[Any]:
    if node.strategic_set and not any(isinstance(item, dict) for item in patch):
        return [*there, *(v for i, v in enumerate(patch) if v not in there and v not in patch[:i])]
    if not node.merge_key:
        return _plain_list(patch)
    plain = [item for item in patch if not (isinstance(item, dict) and _PATCH in item)]
    merged = list(there)
    for item in patch:
        if not isinstance(item, dict) or _PATCH not in item:
            continue
        if item[_PATCH] == "replace":
            return _plain_list(plain)
        if item[_PATCH] != "delete":
            raise BadPatchError(f"{path}: $patch {item[_PATCH]!r} is none of replace, delete")
        gone = _key_of(item, node.merge_key, path)
        merged = [old for old in merged if _peek(old, node.merge_key) != gone]
    return _merge_items(merged, plain, node, path)


def _merge_items(merged: list[Any], patch: list[Any], node: Node, path: str) -> list[Any]:
    places = {_peek(old, node.merge_key): index for index, old in enumerate(merged)}
    for item in patch:
        key = _key_of(item, node.merge_key, path)
        place = places.get(key)
        if place is None:
            places[key] = len(merged)
            merged.append(_plain(item))
        else:
            merged[place] = _merge_map(merged[place], item, node.item, f"{path}[{key}]")
    return merged


def _set_order(
    merged: dict[str, Any], name: str, order: Any, live: Any, node: Node, path: str
) -> None:
    if not isinstance(order, list):
        raise BadPatchError(f"{path}: {_ORDER}{name} wants a list")
    items = merged.get(name)
    if not isinstance(items, list):
        return
    before = live if isinstance(live, list) else []
    if node.merge_key:
        wanted = [_key_of(item, node.merge_key, path) for item in order]
        by_key = {_peek(item, node.merge_key): item for item in items}
        live_keys = [_peek(item, node.merge_key) for item in before]
        ordered = merged_order(live_keys, wanted, by_key, new_first=True)
        merged[name] = [by_key[key] for key in ordered]
    elif node.strategic_set:
        merged[name] = merged_order(before, order, items, new_first=True)


def _key_of(item: Any, key: str, path: str) -> Any:
    found = _peek(item, key)
    if found is None or isinstance(found, dict | list):
        raise BadPatchError(f"{path}: every item needs its merge key {key!r}, found {item!r}")
    return found


def _peek(item: Any, key: str) -> Any:
    found = item.get(key) if isinstance(item, dict) else None
    return found if not isinstance(found, dict | list) else None


def _plain(value: Any) -> Any:
    """Return a value of a patch as it stands in an object: without directives and nulls."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items() if v is not None and not _is_directive(k)}
    return _plain_list(value) if isinstance(value, list) else value


def _plain_list(values: list[Any]) -> list[Any]:
    return [
        _plain(item)
        for item in values
        if not (isinstance(item, dict) and item.get(_PATCH) in ("delete", "replace"))
    ]


def _is_directive(key: str) -> bool:
    return key in (_PATCH, _RETAIN) or key.startswith((_DELETE_FROM, _ORDER))
