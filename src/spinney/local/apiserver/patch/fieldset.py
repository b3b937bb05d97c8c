"""Sets of fields: which places of an object somebody owns, and what two versions differ in.

A place is a path: a tuple of steps, each spelt as Kubernetes' FieldsV1 does, ``f:name`` for a
field, ``k:{"name":"x"}`` for an item of a keyed list, ``v:"x"`` for a member of a set. A field set
is a set of paths, so the algebra of ownership is Python's own; FieldsV1, a tree in JSON, is
only how it is stored.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec

from spinney.local.apiserver.patch.errors import BadPatchError
from spinney.local.apiserver.patch.schema import UNKNOWN, Node

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

Path = tuple[str, ...]
FieldSet = frozenset[Path]

EMPTY: FieldSet = frozenset()
MAX_DEPTH = 100
"""Steps in a path: bounds recursion over what clients send."""

_encode = msgspec.json.Encoder(order="deterministic").encode


# FieldsV1


def to_fields_v1(paths: Iterable[Path]) -> dict[str, Any]:
    """Return the FieldsV1 tree of *paths*."""
    root: dict[str, Any] = {}
    for path in sorted(paths):
        branch = root
        for step in path[:-1]:
            below = branch.setdefault(step, {})
            branch = below
        leaf = branch.setdefault(path[-1], {})
        leaf["."] = {}
    _drop_lone_dots(root)
    return root


def _drop_lone_dots(tree: dict[str, Any]) -> None:
    """A leaf says by being there that it is a member; only a branch has to say so with a dot."""
    for step, below in tree.items():
        if step == ".":
            continue
        if len(below) == 1 and "." in below:
            below.clear()
        else:
            _drop_lone_dots(below)


def from_fields_v1(tree: Any) -> FieldSet:
    """Return the paths of a FieldsV1 tree; raise BadPatchError when it is none."""
    found: set[Path] = set()
    _collect(tree, (), found)
    return frozenset(found)


def _collect(tree: Any, path: Path, found: set[Path]) -> None:
    if not isinstance(tree, dict) or len(path) > MAX_DEPTH:
        raise BadPatchError(f"managedFields: {'/'.join(path) or 'fieldsV1'} is no field set")
    if path and not tree:
        found.add(path)
    for step, below in tree.items():
        if step == ".":
            found.add(path)
        else:
            _collect(below, (*path, step), found)


def readable(path: Path) -> str:
    """Return *path* as messages write it: ``.spec.containers[name="main"].image``."""
    return "".join(_readable_step(step) for step in path)


def _readable_step(step: str) -> str:
    kind, text = step[:2], step[2:]
    if kind == "f:":
        return f".{text}"
    if kind == "v:":
        return f"[={text}]"
    keys = msgspec.json.decode(text)
    return "[" + ",".join(f"{k}={_encode(v).decode()}" for k, v in keys.items()) + "]"


# Items of lists


def item_step(item: Any, node: Node) -> str:
    """Return the step to *item* of a keyed list or set; raise BadPatchError without its keys."""
    if node.list_type == "set":
        return f"v:{_encode(item).decode()}"
    if not isinstance(item, dict):
        raise BadPatchError(f"a keyed list wants maps with {', '.join(node.keys)}, found {item!r}")
    keys = {}
    for key in node.keys:
        value = item.get(key, node.key_defaults.get(key))
        if value is None:
            raise BadPatchError(
                f"an item of a list keyed by {', '.join(node.keys)} leaves out {key!r}: {item!r}"
            )
        keys[key] = value
    return f"k:{_encode(keys).decode()}"


def items_by_step(items: list[Any], node: Node) -> dict[str, Any] | None:
    """Return the items by their steps, or None where they cannot be told apart."""
    try:
        found = {item_step(item, node): item for item in items}
    except BadPatchError:
        return None
    return found if len(found) == len(items) else None


def is_branch(value: Any, node: Node) -> bool:
    """Tell whether *value* is owned by parts, and not as a whole."""
    if isinstance(value, dict):
        return not node.atomic_map
    return isinstance(value, list) and node.list_type != "atomic"


def parts(value: Any, node: Node) -> Iterator[tuple[str, Any, Node]]:
    """Yield step, value and node of each part of a branch; none if its items are ambiguous."""
    if isinstance(value, dict):
        for name, below in value.items():
            yield f"f:{name}", below, node.child(name)
        return
    for step, item in (items_by_step(value, node) or {}).items():
        yield step, item, node.item


# Sets of values


def named_by(value: Any, node: Node) -> FieldSet:
    """Return the fields that *value*, an applied configuration, claims."""
    found: set[Path] = set()
    _claim(value, node, (), found)
    return frozenset(found)


def _claim(value: Any, node: Node, path: Path, found: set[Path]) -> None:
    if not is_branch(value, node):
        found.add(path)
        return
    if path and not value:
        found.add(path)
    if path and not path[-1].startswith("f:"):
        found.add(path)
    for step, below, below_node in parts(value, node):
        _claim(below, below_node, (*path, step), found)


def everything_in(value: Any, node: Node, path: Path, found: set[Path]) -> None:
    """Add to *found* the path of *value* and of all its parts."""
    found.add(path)
    if is_branch(value, node):
        for step, below, below_node in parts(value, node):
            everything_in(below, below_node, (*path, step), found)


@dataclass(slots=True)
class Comparison:
    """What differs between two versions of an object."""

    added: set[Path] = field(default_factory=set)
    modified: set[Path] = field(default_factory=set)
    removed: set[Path] = field(default_factory=set)

    @property
    def changed(self) -> set[Path]:
        """What has a new value."""
        return self.added | self.modified


def compare(old: Any, new: Any, node: Node) -> Comparison:
    """Return what differs between *old* and *new*; the order of keyed lists does not count."""
    found = Comparison()
    _compare(old, new, node, (), found)
    return found


def _compare(old: Any, new: Any, node: Node, path: Path, found: Comparison) -> None:
    if old is new or (old == new and type(old) is type(new)):
        return
    olds, news = _comparable(old, node), _comparable(new, node)
    if olds is None or news is None or isinstance(old, dict) != isinstance(new, dict):
        found.modified.add(path)
        _replaced(old, new, node, path, found)
        return
    for step, (value, below) in olds.items():
        if step not in news:
            everything_in(value, below, (*path, step), found.removed)
        else:
            _compare(value, news[step][0], below, (*path, step), found)
    for step, (value, below) in news.items():
        if step not in olds:
            everything_in(value, below, (*path, step), found.added)


def _replaced(old: Any, new: Any, node: Node, path: Path, found: Comparison) -> None:
    everything_in(old, node, path, found.removed)
    found.removed.discard(path)
    everything_in(new, node, path, found.added)
    found.added.discard(path)


def _comparable(value: Any, node: Node) -> dict[str, tuple[Any, Node]] | None:
    """Return a branch's parts by step, or None for what is compared as a whole."""
    if not is_branch(value, node):
        return None
    if isinstance(value, dict):
        return {f"f:{name}": (below, node.child(name)) for name, below in value.items()}
    by_step = items_by_step(value, node)
    if by_step is None:
        return None
    return {step: (item, node.item) for step, item in by_step.items()}


def without(value: Any, node: Node, gone: FieldSet, needed: FieldSet) -> Any:
    """Return *value* without the places in *gone*, except those above a place in *needed*.

    A branch that this empties goes as well, unless it is needed itself.
    """
    removable = {path for path in gone if path not in needed}
    above = {path[:n] for path in gone for n in range(len(path))}
    return _prune(value, node, (), removable, above, needed)


def with_ancestors(paths: Iterable[Path]) -> FieldSet:
    """Return *paths* and every place above them."""
    return frozenset(path[:n] for path in paths for n in range(1, len(path) + 1))


def _prune(
    value: Any, node: Node, path: Path, removable: set[Path], above: set[Path], needed: FieldSet
) -> Any:
    if path not in above or not is_branch(value, node):
        return value
    kept: list[tuple[str, Any]] = []
    for step, below, below_node in list(parts(value, node)):
        place = (*path, step)
        if place in removable:
            continue
        left = _prune(below, below_node, place, removable, above, needed)
        emptied = left is not below and left in ({}, [])
        # The three great parts of an object stay even when nothing is left in them.
        if emptied and place not in needed and len(place) > 1:
            continue
        kept.append((step, left))
    if isinstance(value, dict):
        return {step[2:]: left for step, left in kept}
    return [left for _, left in kept] if items_by_step(value, node) is not None else value


__all__ = [
    "EMPTY",
    "UNKNOWN",
    "Comparison",
    "FieldSet",
    "Path",
    "compare",
    "from_fields_v1",
    "named_by",
    "readable",
    "to_fields_v1",
    "with_ancestors",
    "without",
]
