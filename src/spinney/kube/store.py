"""An informer's memory: objects by key, in key order, with indexes.

The invariant: after every call, each index holds a key under exactly the values that the index's
function gave for the object stored under it.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from spinney.api.meta import KubeObject

T = TypeVar("T", bound="KubeObject")


class _Index(Generic[T]):
    """Which keys have which value."""

    __slots__ = ("_keys_of", "_values", "function")

    def __init__(self, function: Callable[[T], Iterable[str]]) -> None:
        self.function = function
        self._keys_of: dict[str, set[str]] = {}
        self._values: dict[str, tuple[str, ...]] = {}

    def put(self, key: str, obj: T) -> None:
        values = tuple(self.function(obj))
        old = self._values.get(key)
        if values == old:
            return
        if old:
            self._forget(key, old)
        self._values[key] = values
        for value in values:
            self._keys_of.setdefault(value, set()).add(key)

    def remove(self, key: str) -> None:
        self._forget(key, self._values.pop(key, ()))

    def keys(self, value: str) -> list[str]:
        return sorted(self._keys_of.get(value, ()))

    def _forget(self, key: str, values: tuple[str, ...]) -> None:
        for value in values:
            keys = self._keys_of.get(value)
            if keys is None:
                continue
            keys.discard(key)
            if not keys:
                del self._keys_of[value]


class Store(Generic[T]):
    """Objects by key. Returned lists are the caller's own."""

    def __init__(self) -> None:
        self._objects: dict[str, T] = {}
        self._sorted: list[str] = []
        self._indexes: dict[str, _Index[T]] = {}

    def __len__(self) -> int:
        return len(self._objects)

    def get(self, key: str) -> T | None:
        """Return the object under *key*."""
        return self._objects.get(key)

    def sorted_keys(self) -> list[str]:
        """Return all keys in order."""
        return self._sorted.copy()

    def list(self, namespace: str | None = None) -> list[T]:
        """Return all objects, or those of one namespace, in key order."""
        objects = self._objects
        if namespace is None:
            return [objects[key] for key in self._sorted]
        # "0" follows "/" in code order, so these bounds hold exactly the keys "namespace/…".
        start = bisect_left(self._sorted, f"{namespace}/")
        end = bisect_left(self._sorted, f"{namespace}0")
        return [objects[key] for key in self._sorted[start:end]]

    def by_index(self, index: str, value: str) -> list[T]:  # type: ignore[valid-type]  # list is a method here.
        """Return the objects that *index* lists under *value*, in key order."""
        return [self._objects[key] for key in self._indexes[index].keys(value)]

    def add_index(self, name: str, function: Callable[[T], Iterable[str]]) -> None:
        """Index all objects, present and future, by the values *function* gives for them."""
        if name in self._indexes:
            raise ValueError(f"index {name!r} is there already; choose another name")
        index = _Index(function)
        for key, obj in self._objects.items():
            index.put(key, obj)
        self._indexes[name] = index

    def put(self, key: str, obj: T) -> None:
        """Store *obj* under *key*."""
        if key not in self._objects:
            insort(self._sorted, key)
        self._objects[key] = obj
        for index in self._indexes.values():
            index.put(key, obj)

    def remove(self, key: str) -> T | None:
        """Forget *key*; return what was stored under it."""
        old = self._objects.pop(key, None)
        if old is None:
            return None
        del self._sorted[bisect_left(self._sorted, key)]
        for index in self._indexes.values():
            index.remove(key)
        return old
