"""The trees of all gangs, made again only where something changed.

A cycle asks for the gangs that wait and for those that stand on nodes. In a large cluster nearly
all of them are as they were a moment ago; a tree that did not change is the same object in
the next snapshot, so what was found out about it is still known.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Container

    from spinney.scheduler.gangs import Gang


class GangTrees:
    """Trees by gang key, with a note of which are out of date."""

    def __init__(self) -> None:
        self.version = 0
        """Rises with every change."""
        self._trees: dict[str, Gang] = {}
        self._stale: dict[str, None] = {}
        self._waiting: tuple[Gang, ...] | None = None
        self._standing: dict[str, Gang] = {}
        self._short: dict[str, Gang] = {}

    def touch(self, *keys: str) -> None:
        """Note that something about these gangs changed."""
        self.version += 1
        self._stale.update(dict.fromkeys(keys))

    def clear(self) -> None:
        """Note that something about all gangs may have changed."""
        self.touch(*self._trees)

    def refresh(self, build: Callable[[str], Gang], *present: Container[str]) -> None:
        """Bring all trees up to date; a gang that is in none of *present* has none."""
        if not self._stale:
            return
        for key in self._stale:
            if any(key in keys for keys in present):
                self._put(key, build(key))
            else:
                self._put(key, None)
        self._stale.clear()
        self._waiting = None

    def _put(self, key: str, gang: Gang | None) -> None:
        stands = gang is not None and gang.stands
        short = gang is not None and stands and not gang.satisfied
        for wanted, kept in ((gang is not None, self._trees), (stands, self._standing)):
            _set(kept, key, gang if wanted else None)
        _set(self._short, key, gang if short else None)

    def waiting(self, keys: Collection[str]) -> tuple[Gang, ...]:
        """Return the gangs of *keys* in their order of placing."""
        if self._waiting is None:
            found = [self._trees[key] for key in keys if key in self._trees]
            self._waiting = tuple(sorted(found, key=lambda gang: gang.order))
        return self._waiting

    def standing(self) -> tuple[Gang, ...]:
        """Return the gangs with pods on nodes."""
        return tuple(self._standing.values())

    def short(self) -> tuple[Gang, ...]:
        """Return those of them that run below their minimum."""
        return tuple(self._short.values())


def _set(kept: dict[str, Gang], key: str, gang: Gang | None) -> None:
    if gang is None:
        kept.pop(key, None)
    else:
        kept[key] = gang
