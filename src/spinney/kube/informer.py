"""A live, indexed copy of a collection that many readers share.

The invariant: handlers are called in the order of changes, one at a time, after the copy has been
brought up to date; a handler sees every object of the copy added before it sees it changed.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from spinney.api.meta import KubeObject
from spinney.kube.reflector import Reflector
from spinney.kube.store import Store
from spinney.log import get_logger

if TYPE_CHECKING:
    import builtins
    from collections.abc import Callable, Iterable
    from random import Random

    from spinney.kube.client import KubeClient

T = TypeVar("T", bound=KubeObject)

log = get_logger("informer")


@dataclass(frozen=True, slots=True)
class Change(Generic[T]):
    """What happened to one object."""

    old: T | None
    """None when it was added."""
    new: T | None
    """None when it was deleted."""

    @property
    def object(self) -> T:
        """The new state, or the last one of a deleted object."""
        found = self.new if self.new is not None else self.old
        assert found is not None, "a change has an old or a new state"
        return found


class Informer(Generic[T]):
    """Copies of the objects of *kind* that the selectors match. For reading: do not change them."""

    def __init__(
        self,
        client: KubeClient,
        kind: type[T],
        namespace: str | None = None,
        *,
        rng: Random,
        labels: str = "",
        fields: str = "",
    ) -> None:
        self.kind = kind
        self._store: Store[T] = Store()
        self._handlers: list[Callable[[Change[T]], None]] = []
        self._synced = asyncio.Event()
        self._reflector = Reflector(
            client, kind, self, rng=rng, namespace=namespace, labels=labels, fields=fields
        )

    def __len__(self) -> int:
        return len(self._store)

    def get(self, name: str, namespace: str = "") -> T | None:
        """Return the object, or None when the copy has none of that name."""
        return self._store.get(f"{namespace}/{name}" if namespace else name)

    def get_key(self, key: str) -> T | None:
        """Return the object by ``namespace/name`` or bare name."""
        return self._store.get(key)

    def list(self, namespace: str | None = None) -> list[T]:
        """Return all objects, or those of one namespace, sorted by key."""
        return self._store.list(namespace)

    def by_index(self, index: str, value: str) -> builtins.list[T]:
        """Return the objects for which *index* gave *value*, sorted by key."""
        return self._store.by_index(index, value)

    def add_index(self, name: str, keys: Callable[[T], Iterable[str]]) -> None:
        """Index by the values *keys* gives; before or after the start. Names are unique."""
        self._store.add_index(name, keys)

    def add_handler(self, handler: Callable[[Change[T]], None]) -> None:
        """Call *handler* for each change; first, now, for each object there is, as an addition."""
        self._handlers.append(handler)
        for obj in self._store.list():
            self._call(handler, Change(None, obj))

    @property
    def synced(self) -> bool:
        """Whether the first list is complete."""
        return self._synced.is_set()

    @property
    def version(self) -> str | None:
        """The resourceVersion up to which the copy is complete, or None before the first list."""
        return self._reflector.version

    async def wait_synced(self) -> None:
        """Wait for the first list to be complete and handed to all handlers."""
        await self._synced.wait()

    async def run(self) -> None:
        """Keep the copy up to date until cancelled."""
        await self._reflector.run()

    # What the reflector calls

    def put(self, key: str, obj: T) -> None:
        """Take an added or changed object; one whose version is known already is no change."""
        old = self._store.get(key)
        if old is not None:
            before, after = old.metadata, obj.metadata
            if before.resource_version == after.resource_version and before.uid == after.uid:
                return
            if before.uid != after.uid:
                # Another object of the same name: whoever counts deletions has to see one.
                self.remove(key, None)
                old = None
        self._store.put(key, obj)
        self._notify(Change(old, obj))

    def remove(self, key: str, last: T | None) -> None:
        """Take a deletion; of an object that is not known it is no change."""
        old = self._store.remove(key)
        if old is not None:
            self._notify(Change(last if last is not None else old, None))

    def replace(self, objects: dict[str, T], unreadable: set[str]) -> None:
        """Take the whole collection; what is not in it has been deleted."""
        for key in self._store.sorted_keys():
            if key not in objects and key not in unreadable:
                self.remove(key, None)
        for key in sorted(objects):
            self.put(key, objects[key])
        self._synced.set()

    def _notify(self, change: Change[T]) -> None:
        for handler in self._handlers:
            self._call(handler, change)

    def _call(self, handler: Callable[[Change[T]], None], change: Change[T]) -> None:
        try:
            handler(change)
        except Exception:
            # One broken handler must not starve the others of changes.
            log.exception("handler failed", resource=self.kind.RESOURCE.name, key=change.object.key)
