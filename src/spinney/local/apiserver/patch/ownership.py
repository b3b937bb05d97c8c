"""Who owns which field: the record in ``metadata.managedFields``, kept true by every write.

The invariant: after a write, a field that the write changed is owned by its manager, a field that
it removed by nobody, and every other field by whom it was before. An object without a record
stays without one until the first apply, so plain writes cost nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from spinney.local.apiserver.patch import fieldset
from spinney.local.apiserver.patch.errors import BadPatchError

if TYPE_CHECKING:
    from spinney.local.apiserver.patch.fieldset import FieldSet, Path
    from spinney.local.apiserver.patch.schema import Node

BEFORE_FIRST_APPLY = "before-first-apply"
"""Owns what an object had when it was first applied to."""
ANCIENT = "ancient-changes"
"""Owns what the oldest of too many updating managers owned."""
MAX_UPDATE_MANAGERS = 10
"""Entries of plain writes that are kept apart."""

SERVER_METADATA = frozenset(
    {
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "selfLink",
        "uid",
        "generation",
        "resourceVersion",
        "managedFields",
    }
)
"""Fields of metadata that the server alone writes."""
_IDENTITY = ("name", "namespace", "generateName")
_SYSTEM = frozenset(
    {
        ("f:apiVersion",),
        ("f:kind",),
        ("f:metadata",),
        *(("f:metadata", f"f:{name}") for name in (*_IDENTITY, *SERVER_METADATA)),
    }
)
"""Fields nobody owns: identity, and what the server alone writes."""


@dataclass(frozen=True, slots=True)
class Manager:
    """Who wrote, and how."""

    name: str
    operation: str
    """``Apply`` or ``Update``."""
    api_version: str
    subresource: str = ""


@dataclass(frozen=True, slots=True)
class Entry:
    """What one manager owns, and when that last changed."""

    fields: FieldSet
    time: str

    def described(self, manager: Manager) -> str:
        """Return *manager* as conflict messages name it."""
        text = f'"{manager.name}"'
        if manager.subresource:
            text += f' with subresource "{manager.subresource}"'
        if manager.operation == "Update":
            text += f" using {manager.api_version}"
            if self.time:
                text += f" at {self.time}"
        return text


Owners = dict[Manager, Entry]


def read(obj: dict[str, Any] | None) -> Owners:
    """Return the record of *obj*; raise BadPatchError when it is malformed."""
    listed = _listed(obj)
    owners: Owners = {}
    for raw in listed or ():
        if not raw:
            continue
        manager = Manager(
            raw.get("manager", ""),
            raw.get("operation", "Update"),
            raw.get("apiVersion", ""),
            raw.get("subresource", ""),
        )
        if manager.operation not in ("Apply", "Update"):
            raise BadPatchError(
                f"managedFields: operation {manager.operation!r} is none of Apply, Update"
            )
        fields = fieldset.from_fields_v1(raw.get("fieldsV1") or {})
        owners[manager] = Entry(fields, raw.get("time") or "")
    return owners


def _listed(obj: dict[str, Any] | None) -> list[Any] | None:
    found = ((obj or {}).get("metadata") or {}).get("managedFields")
    return found if isinstance(found, list) else None


def written(obj: dict[str, Any], owners: Owners) -> dict[str, Any]:
    """Return *obj* with *owners* as its record; none if there is nobody."""
    metadata = dict(obj.get("metadata") or {})
    entries = [_entry(manager, entry) for manager, entry in owners.items() if entry.fields]
    if entries:
        entries.sort(key=lambda e: (e["operation"], e.get("time", ""), e["manager"]))
        metadata["managedFields"] = entries
    else:
        metadata.pop("managedFields", None)
    return {**obj, "metadata": metadata}


def _entry(manager: Manager, entry: Entry) -> dict[str, Any]:
    raw: dict[str, Any] = {
        "manager": manager.name,
        "operation": manager.operation,
        "apiVersion": manager.api_version,
        "fieldsType": "FieldsV1",
        "fieldsV1": fieldset.to_fields_v1(entry.fields),
    }
    if entry.time:
        raw["time"] = entry.time
    if manager.subresource:
        raw["subresource"] = manager.subresource
    return raw


def without_system(paths: FieldSet | set[Path]) -> FieldSet:
    """Return *paths* without those that nobody can own."""
    return frozenset(
        path
        for path in paths
        if path not in _SYSTEM and path[:2] != ("f:metadata", "f:managedFields")
    )


def adopted(live: dict[str, Any], schema: Node) -> Owners:
    """Return the record of an object that is applied to for the first time."""
    fields = without_system(fieldset.named_by(_body(live), schema))
    manager = Manager(BEFORE_FIRST_APPLY, "Update", live.get("apiVersion", ""))
    return {manager: Entry(fields, "")} if fields else {}


def taken_over(
    owners: Owners, keeper: Manager, changed: FieldSet | set[Path], removed: set[Path]
) -> Owners:
    """Return *owners* after *keeper* changed and removed fields: the others lose them."""
    lost = changed | removed
    result: Owners = {}
    for manager, entry in owners.items():
        left = entry.fields - (removed if manager == keeper else lost)
        result[manager] = entry if left == entry.fields else Entry(left, entry.time)
    return result


def track_update(
    old: dict[str, Any] | None,
    new: dict[str, Any],
    manager: str,
    now: str,
    schema: Node,
    subresource: str = "",
) -> dict[str, Any]:
    """Return *new*, about to be stored over *old* by a plain write, with its record brought up
    to date.

    *now* is the time stamp of the write. An object without a record is returned as it is. A
    *new* that leaves the record out keeps the old one; an explicitly empty list drops it.
    """
    if old is None or not _listed(old):
        return new if _listed(new) is None else written(new, {})
    given = _listed(new)
    if given is not None and not any(given):
        return written(new, {})
    owners = read(new if given else old)
    difference = fieldset.compare(_body(old), _body(new), schema)
    changed = without_system(difference.changed)
    if not changed and not difference.removed:
        return new if given else _with_list(new, _listed(old))
    writer = Manager(manager, "Update", new.get("apiVersion", ""), subresource)
    owners = taken_over(owners, writer, changed, difference.removed)
    if changed:
        before = owners.get(writer)
        fields = changed if before is None else before.fields | changed
        owners[writer] = Entry(frozenset(fields), now)
    return written(new, _capped(owners))


def _with_list(obj: dict[str, Any], listed: list[Any] | None) -> dict[str, Any]:
    return {**obj, "metadata": {**(obj.get("metadata") or {}), "managedFields": listed}}


def _body(obj: dict[str, Any]) -> dict[str, Any]:
    """Return *obj* without its record, which is not part of what is owned."""
    metadata = obj.get("metadata")
    if not isinstance(metadata, dict) or "managedFields" not in metadata:
        return obj
    return {**obj, "metadata": {k: v for k, v in metadata.items() if k != "managedFields"}}


def _capped(owners: Owners) -> Owners:
    """Merge the oldest plain writers into one, so that the record is bounded."""
    updates = [m for m, entry in owners.items() if m.operation == "Update" and entry.fields]
    surplus = len(updates) - MAX_UPDATE_MANAGERS
    if surplus <= 0:
        return owners
    updates.sort(key=lambda m: (m.name != ANCIENT, owners[m].time, m.name))
    merged = updates[: surplus + 1]
    fields = frozenset().union(*(owners[m].fields for m in merged))
    kept = {m: entry for m, entry in owners.items() if m not in merged}
    last = merged[-1]
    kept[Manager(ANCIENT, "Update", last.api_version)] = Entry(fields, owners[last].time)
    return kept
