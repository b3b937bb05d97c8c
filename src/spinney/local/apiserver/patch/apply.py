"""Server-side apply: a manager says what it wants, and owns just that.

The configuration is merged into the live object. What the manager applied before and no longer
names is removed, unless another manager owns it too. What would change and is owned by others
is a conflict, unless forced, which takes it from them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from spinney.api.codec import without_nulls
from spinney.local.apiserver.patch import fieldset, ownership
from spinney.local.apiserver.patch.errors import ApplyConflictError, BadPatchError, Conflict
from spinney.local.apiserver.patch.ordering import merged_order
from spinney.local.apiserver.patch.ownership import Entry, Manager, Owners

if TYPE_CHECKING:
    from spinney.local.apiserver.patch.fieldset import Comparison, FieldSet
    from spinney.local.apiserver.patch.schema import Node


@dataclass(frozen=True, slots=True)
class ApplyResult:
    """What an apply leads to."""

    object: dict[str, Any]
    """The object with its record of owners, ready for defaulting, admission and storage."""
    created: bool
    changed: bool
    """False when the live object already is just so, owners included: nothing is to be stored."""


def server_side_apply(
    live: dict[str, Any] | None,
    applied: dict[str, Any],
    manager: str,
    force: bool,
    schema: Node,
    now: str,
    *,
    subresource: str = "",
    has_status: bool = True,
) -> ApplyResult:
    """Return *live* with the configuration *applied* by *manager* at time stamp *now*.

    *live* is None when there is no such object. Where the kind *has_status* as a subresource,
    the configuration's status counts only when applied to the subresource ``status``, and
    there nothing else does. A ``metadata.resourceVersion`` in *applied* is the caller's to check.
    Raises ApplyConflictError and, for a malformed configuration, BadPatchError.
    """
    wanted = _configuration(applied, subresource, has_status)
    _check_keys(wanted, schema, "")
    writer = Manager(manager, "Apply", str(applied.get("apiVersion", "")), subresource)
    owners = ownership.read(live)
    if live is not None and not owners:
        owners = ownership.adopted(live, schema)
    claimed = ownership.without_system(fieldset.named_by(wanted, schema))
    base = ownership.written(live, {}) if live is not None else {}
    merged = _merge(base, wanted, schema) if live is not None else wanted
    merged, owners = _released(merged, owners, writer, claimed, schema)
    difference = fieldset.compare(base, merged, schema)
    _check_conflicts(owners, writer, difference, force)
    changed = ownership.without_system(difference.changed)
    before = ownership.read(live)
    owners = ownership.taken_over(owners, writer, changed, difference.removed)
    owners[writer] = _entry(before.get(writer), claimed, now, same=not changed)
    result = ownership.written(merged, owners)
    return ApplyResult(result, created=live is None, changed=result != live)


def _entry(before: Entry | None, claimed: FieldSet, now: str, *, same: bool) -> Entry:
    """The time is that of the last change, so that applying the same again changes nothing."""
    if before is not None and same and before.fields == claimed:
        return before
    return Entry(claimed, now)


def _configuration(applied: Any, subresource: str, has_status: bool) -> dict[str, Any]:
    if not isinstance(applied, dict):
        raise BadPatchError(f"apply: an object wanted, found {type(applied).__name__}")
    wanted: dict[str, Any] = without_nulls(applied)
    metadata = wanted.get("metadata") or {}
    if not isinstance(metadata, dict):
        raise BadPatchError("apply: metadata is no map")
    if metadata.get("managedFields"):
        raise BadPatchError("apply: metadata.managedFields must be left out; the server writes it")
    metadata = {k: v for k, v in metadata.items() if k not in ownership.SERVER_METADATA}
    wanted["metadata"] = metadata
    if not has_status:
        return wanted
    if subresource == "status":
        identity = {k: v for k, v in metadata.items() if k in ("name", "namespace")}
        head = {k: v for k, v in wanted.items() if k in ("apiVersion", "kind", "status")}
        return {**head, "metadata": identity}
    return {k: v for k, v in wanted.items() if k != "status"}


def _check_keys(value: Any, node: Node, path: str) -> None:
    """Refuse lists whose items have no key or the same one twice."""
    if isinstance(value, dict):
        for name, below in value.items():
            _check_keys(below, node.child(name), f"{path}.{name}")
        return
    if not isinstance(value, list) or node.list_type == "atomic":
        return
    seen: set[str] = set()
    for item in value:
        try:
            step = fieldset.item_step(item, node)
        except BadPatchError as error:
            raise BadPatchError(f"{path}: {error}") from error
        if step in seen:
            raise BadPatchError(f"{path}: two items have the key {fieldset.readable((step,))}")
        seen.add(step)
        _check_keys(item, node.item, f"{path}{fieldset.readable((step,))}")


def _merge(live: Any, wanted: Any, node: Node) -> Any:
    if isinstance(wanted, dict) and isinstance(live, dict) and not node.atomic_map:
        merged = dict(live)
        for name, value in wanted.items():
            merged[name] = _merge(live[name], value, node.child(name)) if name in live else value
        return merged
    if isinstance(wanted, list) and isinstance(live, list) and node.list_type != "atomic":
        return _merge_list(live, wanted, node)
    return wanted


def _merge_list(live: list[Any], wanted: list[Any], node: Node) -> list[Any]:
    olds = fieldset.items_by_step(live, node)
    news = fieldset.items_by_step(wanted, node)
    if olds is None or news is None:
        return wanted
    merged = dict(olds)
    for step, item in news.items():
        merged[step] = _merge(olds[step], item, node.item) if step in olds else item
    order = merged_order(list(olds), list(news), merged, new_first=False)
    return [merged[step] for step in order]


def _released(
    merged: dict[str, Any], owners: Owners, writer: Manager, claimed: FieldSet, schema: Node
) -> tuple[dict[str, Any], Owners]:
    """Remove what *writer* owned, no longer claims, and nobody else owns."""
    before = owners.get(writer)
    gone = before.fields - claimed if before is not None else fieldset.EMPTY
    if not gone:
        return merged, owners
    others = frozenset().union(*(e.fields for m, e in owners.items() if m != writer))
    needed = fieldset.with_ancestors(others | claimed)
    return fieldset.without(merged, schema, gone, needed), owners


def _check_conflicts(owners: Owners, writer: Manager, difference: Comparison, force: bool) -> None:
    if force:
        return
    changed = difference.changed
    conflicts = [
        Conflict(entry.described(manager), fieldset.readable(path))
        for manager, entry in owners.items()
        if manager != writer
        for path in sorted(entry.fields & changed)
    ]
    if conflicts:
        raise ApplyConflictError(conflicts)
