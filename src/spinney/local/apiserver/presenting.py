"""The shapes in which clients ask to see objects: as they are, as a table, or their metadata."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from spinney.local.apiserver.columns import NAME_AGE
from spinney.local.apiserver.watch import event_line

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from spinney.api.resource import Unstructured
    from spinney.local.apiserver.kinds import Kind
    from spinney.local.apiserver.stored import Stored
    from spinney.local.apiserver.watch import Change

Shape = Literal["object", "table", "metadata"]

_META = "meta.k8s.io/v1"
INITIAL_END = {"k8s.io/initial-events-end": "true"}


def shape_of(accept: str) -> Shape:
    """Return the first shape in an Accept header that the server has."""
    if ";as=" not in accept:
        return "object"
    for wanted in accept.split(","):
        parts = dict(p.strip().partition("=")[::2] for p in wanted.split(";"))
        if "application/json" not in parts:
            continue
        kind, version = parts.get("as", ""), parts.get("v", "v1")
        if kind == "Table" and version == "v1":
            return "table"
        if kind.startswith("PartialObjectMetadata") and version == "v1":
            return "metadata"
        if not kind:
            return "object"
    return "object"


@dataclass(frozen=True, slots=True)
class Presenter:
    """Encodes objects of one kind in one shape."""

    kind: Kind
    shape: Shape
    now: Callable[[], float]
    include_object: str = "Metadata"
    """What each row of a table carries: None, Metadata or Object."""

    def one(self, raw: bytes) -> bytes:
        """Return the body for one object."""
        if self.shape == "object":
            return self._viewed(raw)
        obj = self._decoded(raw)
        if self.shape == "metadata":
            return msgspec.json.encode(_partial(obj))
        meta = {"resourceVersion": obj["metadata"].get("resourceVersion", "")}
        return msgspec.json.encode(self._table([obj], meta, columns=True))

    def many(self, raws: Sequence[bytes], meta: Mapping[str, Any]) -> bytes:
        """Return the body for a list; *meta* is the list's metadata."""
        resource = self.kind.resource
        if self.shape == "table":
            objs = [self._decoded(raw) for raw in raws]
            return msgspec.json.encode(self._table(objs, meta, columns=True))
        if self.shape == "metadata":
            items = [msgspec.json.encode(_partial(self._decoded(raw))) for raw in raws]
            kind, version = "PartialObjectMetadataList", _META
        else:
            items = [self._viewed(raw) for raw in raws] if self.kind.view else list(raws)
            kind, version = f"{resource.kind}List", resource.api_version
        head = b'{"kind":"%s","apiVersion":"%s","metadata":%s,"items":[' % (
            kind.encode(),
            version.encode(),
            msgspec.json.encode(meta),
        )
        return b"%s%s]}\n" % (head, b",".join(items))

    def stream(self) -> PlainEvents | TableEvents:
        """Return the encoder of a watch."""
        if self.shape == "object" and self.kind.view is None:
            return PlainEvents(self.kind)
        return TableEvents(self)

    def event(self, raw: bytes, *, columns: bool) -> bytes:
        """Return an object as an event shows it."""
        if self.shape != "table":
            return self.one(raw)
        obj = self._decoded(raw)
        meta = {"resourceVersion": obj["metadata"].get("resourceVersion", "")}
        return msgspec.json.encode(self._table([obj], meta, columns=columns))

    def _viewed(self, raw: bytes) -> bytes:
        view = self.kind.view
        return msgspec.json.encode(view.show(msgspec.json.decode(raw))) if view else raw

    def _decoded(self, raw: bytes) -> Unstructured:
        obj: Unstructured = msgspec.json.decode(raw)
        view = self.kind.view
        if view is not None and self.shape != "table":
            return view.show(obj)
        return obj

    def _table(
        self, objs: Sequence[Unstructured], meta: Mapping[str, Any], *, columns: bool
    ) -> Unstructured:
        layout = self.kind.columns or NAME_AGE
        now = self.now()
        table: Unstructured = {"kind": "Table", "apiVersion": _META, "metadata": meta}
        table["columnDefinitions"] = (
            [
                {
                    "name": column.name,
                    "type": column.type,
                    "format": column.format,
                    "description": column.description,
                    "priority": column.priority,
                }
                for column in layout
            ]
            if columns
            else None
        )
        rows = []
        for obj in objs:
            row: Unstructured = {"cells": [column.cell(obj, now) for column in layout]}
            if self.include_object == "Object":
                view = self.kind.view
                row["object"] = view.show(obj) if view else obj
            elif self.include_object != "None":
                row["object"] = _partial(obj)
            rows.append(row)
        table["rows"] = rows
        return table


class PlainEvents:
    """Events with objects as they are stored; each is encoded once for all who watch."""

    def __init__(self, kind: Kind) -> None:
        self._kind = kind

    def initial(self, stored: Stored) -> bytes:
        """Return the ADDED line."""
        return event_line("ADDED", stored.raw)

    def change(self, kind: str, change: Change) -> bytes:
        """Return the line of a change."""
        return change.line(kind)

    def bookmark(self, revision: int, *, initial_end: bool = False) -> bytes:
        """Return the line that says only how far the watch has got."""
        return event_line("BOOKMARK", _bookmark(self._kind, revision, initial_end=initial_end))


class TableEvents:
    """Events with tables of one row, or in another shape; made for each watch by itself."""

    def __init__(self, presenter: Presenter) -> None:
        self._presenter = presenter
        self._columns = True

    def initial(self, stored: Stored) -> bytes:
        """Return the ADDED line."""
        return event_line("ADDED", self._shown(stored.raw))

    def change(self, kind: str, change: Change) -> bytes:
        """Return the line of a change."""
        return event_line(kind, self._shown(change.raw(kind)))

    def bookmark(self, revision: int, *, initial_end: bool = False) -> bytes:
        """Return the line that says only how far the watch has got."""
        raw = _bookmark(self._presenter.kind, revision, initial_end=initial_end)
        if self._presenter.shape == "object":
            return event_line("BOOKMARK", raw)
        return event_line("BOOKMARK", self._shown(raw))

    def _shown(self, raw: bytes) -> bytes:
        columns, self._columns = self._columns, False
        return self._presenter.event(raw, columns=columns)


def _partial(obj: Unstructured) -> Unstructured:
    return {"kind": "PartialObjectMetadata", "apiVersion": _META, "metadata": obj["metadata"]}


def _bookmark(kind: Kind, revision: int, *, initial_end: bool) -> bytes:
    resource = kind.resource
    meta: Unstructured = {"resourceVersion": str(revision), "creationTimestamp": None}
    if initial_end:
        meta["annotations"] = INITIAL_END
    obj: Unstructured = {
        "kind": resource.kind,
        "apiVersion": resource.api_version,
        "metadata": meta,
    }
    if resource.name == "pods":
        # Typed clients decode a bookmark as a pod, whose containers are not optional.
        obj |= {"spec": {"containers": None}, "status": {}}
    return msgspec.json.encode(obj)
