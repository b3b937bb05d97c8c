"""Objects under one revision counter, their recent history, and who watches.

Invariants:

* Every change takes the next revision, which is the object's ``resourceVersion``. A list at
  revision R followed by the events after R is the list at any later revision.
* History is a window of the last `history_events` changes. What is older is answered with
  `HistoryGoneError`, never with a gap.
* An object is kept as the bytes that clients get. Whoever wants to change one decodes a copy of his
  own, so no two requests share a mutable object and nothing has to be copied deeply.
* With a durable `Persistence` nobody sees a change before it is committed: events are delivered at
  the commit, and the server holds every reply back while the store is `dirty`.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left, bisect_right, insort
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

from spinney.api.selectors import field_text
from spinney.local.apiserver.stored import Stored
from spinney.local.apiserver.watch import Change, Watcher

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from spinney.api.resource import Unstructured
    from spinney.local.apiserver.persistence import Persistence

HISTORY_EVENTS = 10_000
"""Changes kept for watches that resume and lists that continue. A pod is about 6 KB a version."""

Key = tuple[str, str]
"""Namespace (empty for objects of the cluster) and name."""

_NOTHING: Mapping[str, str] = {}


class HistoryGoneError(Exception):
    """The revision asked for is older than the history, or newer than the state."""


@dataclass(slots=True)
class _Table:
    """The objects of one resource, sorted by key; the changes that are still known; watchers."""

    objects: dict[Key, Stored] = field(default_factory=dict)
    keys: list[Key] = field(default_factory=list)
    history: deque[Change] = field(default_factory=deque)
    watchers: dict[Watcher, None] = field(default_factory=dict)

    def place(self, stored: Stored) -> None:
        key = (stored.namespace, stored.name)
        if key not in self.objects:
            insort(self.keys, key)
        self.objects[key] = stored

    def drop(self, key: Key) -> None:
        del self.objects[key]
        del self.keys[bisect_left(self.keys, key)]

    def select(self, namespace: str | None) -> list[Stored]:
        objects = self.objects
        if namespace is None:
            return [objects[key] for key in self.keys]
        first = bisect_left(self.keys, (namespace, ""))
        last = bisect_right(self.keys, (namespace, "\U0010ffff"))
        return [objects[key] for key in self.keys[first:last]]


class Store:
    """The state of the server. Everything is synchronous but `committed`."""

    def __init__(
        self,
        persistence: Persistence,
        selectable: Callable[[str], Mapping[str, tuple[str, ...]]],
        *,
        history_events: int = HISTORY_EVENTS,
    ) -> None:
        self._persistence = persistence
        self._selectable = selectable
        self._history_events = history_events
        self._tables: dict[str, _Table] = {}
        self._history: deque[Change] = deque()
        self._by_uid: dict[str, Stored] = {}
        self._dependents: dict[str, dict[tuple[str, str, str], None]] = {}
        self._uncommitted: list[Change] = []
        self._commit: asyncio.Future[None] | None = None
        self._scheduled = False
        self.observers: list[Callable[[Change], None]] = []
        self.failure: BaseException | None = None
        """Why the store can no longer write; for good, until the process is started again."""
        self.revision = 1
        self.committed_revision = 1
        """The newest revision that anybody outside may know of."""
        self.oldest = 1
        """Watches can resume after this revision."""

    # Reading

    def get(self, storage: str, namespace: str, name: str) -> Stored | None:
        """Return the object as it is now."""
        table = self._tables.get(storage)
        return table.objects.get((namespace, name)) if table else None

    def select(self, storage: str, namespace: str | None = None) -> list[Stored]:
        """Return objects sorted by namespace and name; of all namespaces when it is None."""
        table = self._tables.get(storage)
        return table.select(namespace) if table else []

    def list_at(self, storage: str, namespace: str | None, revision: int) -> list[Stored]:
        """Return what `select` returned at *revision*; raise HistoryGoneError."""
        self._check_known(revision)
        table = self._tables.get(storage)
        if table is None:
            return []
        undone: dict[Key, Stored | None] = {}
        for change in reversed(table.history):
            if change.revision <= revision:
                break
            undone[change.key] = change.old
        if not undone:
            return table.select(namespace)
        now = {(s.namespace, s.name): s for s in table.select(namespace)}
        for key, old in undone.items():
            if namespace is not None and key[0] != namespace:
                continue
            if old is None:
                now.pop(key, None)
            else:
                now[key] = old
        return [now[key] for key in sorted(now)]

    def count(self, storage: str) -> int:
        """Return how many objects the resource has."""
        table = self._tables.get(storage)
        return len(table.objects) if table else 0

    def by_uid(self, uid: str) -> Stored | None:
        """Return the object with that uid."""
        return self._by_uid.get(uid)

    def dependents(self, uid: str) -> list[Stored]:
        """Return the objects that name *uid* as an owner, oldest reference first."""
        keys = self._dependents.get(uid, ())
        found = (self.get(*key) for key in keys)
        return [stored for stored in found if stored is not None]

    def everything(self) -> Iterator[Stored]:
        """Yield all objects, resource by resource."""
        for name in sorted(self._tables):
            yield from self._tables[name].select(None)

    def namespace_contents(self, namespace: str) -> list[Stored]:
        """Return everything in *namespace*, of all resources."""
        return [s for name in sorted(self._tables) for s in self._tables[name].select(namespace)]

    # Writing

    def put(self, storage: str, obj: Unstructured) -> Stored:
        """Store *obj* under its metadata's namespace and name, at the next revision.

        Sets ``metadata.resourceVersion`` of *obj*, which the caller does not change afterwards.
        """
        revision = self.revision + 1
        obj["metadata"]["resourceVersion"] = str(revision)
        new = self._stored(storage, obj, revision, msgspec.json.encode(obj))
        old = self.get(storage, new.namespace, new.name)
        self._table(storage).place(new)
        if old is not None:
            self._unindex(old)
        self._index(new)
        self._record(Change(revision, storage, (new.namespace, new.name), old, new))
        return new

    def remove(self, stored: Stored) -> None:
        """Remove the object, at the next revision."""
        key = (stored.namespace, stored.name)
        self._table(stored.storage).drop(key)
        self._unindex(stored)
        self._record(Change(self.revision + 1, stored.storage, key, stored, None))

    def load(self, storage: str, raw: bytes) -> Stored:
        """Take in an object from the persistence, as it was stored."""
        obj = msgspec.json.decode(raw)
        revision = int(obj["metadata"]["resourceVersion"])
        stored = self._stored(storage, obj, revision, raw)
        self._table(storage).place(stored)
        self._index(stored)
        return stored

    def loaded(self, revision: int) -> None:
        """Continue at *revision*, when everything has been loaded."""
        self.revision = self.committed_revision = self.oldest = max(revision, 1)

    def forget(self, storage: str) -> None:
        """End the watches of a resource that is no longer served."""
        table = self._tables.get(storage)
        for watcher in list(table.watchers) if table else ():
            watcher.end()

    # Watching

    def watch(self, watcher: Watcher, storage: str, after: int | None) -> None:
        """Give *watcher* the changes of *storage* after a revision, and all that follow.

        With *after* None it starts from now. Raises HistoryGoneError.
        """
        table = self._table(storage)
        if after is not None:
            self._check_known(after)
            missed = []
            for change in reversed(table.history):
                if change.revision <= after:
                    break
                missed.append(change)
            for change in reversed(missed):
                watcher.push(change)
        watcher.skip_to(self.revision)
        table.watchers[watcher] = None
        watcher.on_close(lambda: table.watchers.pop(watcher, None))

    def end_watches(self) -> None:
        """End every open watch."""
        for table in self._tables.values():
            for watcher in list(table.watchers):
                watcher.end()

    def watcher_count(self) -> int:
        """Return how many watches are open."""
        return sum(len(table.watchers) for table in self._tables.values())

    # Committing

    @property
    def dirty(self) -> bool:
        """Whether there are changes that a crash would lose."""
        return bool(self._uncommitted)

    async def committed(self) -> None:
        """Wait until every change made so far is committed; raise what prevented it."""
        if self._commit is None:
            self._commit = asyncio.get_running_loop().create_future()
        await asyncio.shield(self._commit)

    def flush(self) -> None:
        """Commit what is pending in one transaction, then deliver its events."""
        self._scheduled = False
        changes, self._uncommitted = self._uncommitted, []
        waiting, self._commit = self._commit, None
        if not changes:
            return
        latest = {(c.storage, *c.key): c.new.raw if c.new else None for c in changes}
        try:
            self._persistence.write(latest, changes[-1].revision)
        except Exception as error:
            self.failure = error
            if waiting is None or waiting.done():
                raise
            waiting.set_exception(error)
            return
        self.committed_revision = changes[-1].revision
        for change in changes:
            self._deliver(change)
        if waiting is not None and not waiting.done():
            waiting.set_result(None)

    def close(self) -> None:
        """Commit what is pending and let go of the persistence."""
        if self.failure is None:
            self.flush()
        self.end_watches()
        self._persistence.close()

    # Inside

    def _table(self, storage: str) -> _Table:
        table = self._tables.get(storage)
        if table is None:
            table = self._tables[storage] = _Table()
        return table

    def _stored(self, storage: str, obj: Unstructured, revision: int, raw: bytes) -> Stored:
        meta = obj["metadata"]
        return Stored(
            storage,
            meta.get("namespace", ""),
            meta["name"],
            meta["uid"],
            revision,
            raw,
            meta.get("labels") or _NOTHING,
            {path: field_text(obj, steps) for path, steps in self._selectable(storage).items()},
            tuple(owner["uid"] for owner in meta.get("ownerReferences") or ()),
            "deletionTimestamp" in meta,
        )

    def _index(self, stored: Stored) -> None:
        self._by_uid[stored.uid] = stored
        key = (stored.storage, stored.namespace, stored.name)
        for owner in stored.owners:
            self._dependents.setdefault(owner, {})[key] = None

    def _unindex(self, stored: Stored) -> None:
        self._by_uid.pop(stored.uid, None)
        key = (stored.storage, stored.namespace, stored.name)
        for owner in stored.owners:
            named = self._dependents.get(owner)
            if named is not None:
                named.pop(key, None)
                if not named:
                    del self._dependents[owner]

    def _record(self, change: Change) -> None:
        self.revision = change.revision
        self._history.append(change)
        self._table(change.storage).history.append(change)
        if len(self._history) > self._history_events:
            gone = self._history.popleft()
            self._tables[gone.storage].history.popleft()
            self.oldest = gone.revision
        if self._persistence.durable:
            self._uncommitted.append(change)
            self._schedule()
        else:
            self.committed_revision = change.revision
            self._deliver(change)
        for observe in self.observers:
            observe(change)

    def _schedule(self) -> None:
        """Commit when the running loop has handled the requests it has at hand."""
        if self._scheduled:
            return
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return  # Outside a loop, at start-up, the caller flushes.
        self._scheduled = True
        loop.call_soon(self.flush)

    def _deliver(self, change: Change) -> None:
        table = self._tables[change.storage]
        for watcher in list(table.watchers):
            watcher.push(change)

    def _check_known(self, revision: int) -> None:
        if revision < self.oldest:
            raise HistoryGoneError(f"too old resource version: {revision} ({self.oldest})")
        if revision > self.revision:
            raise HistoryGoneError(
                f"resource version {revision} is none of this server's, whose newest is "
                f"{self.revision}"
            )
