"""What follows from deletions: dependents of owners, contents of namespaces, objects of CRDs.

Work is a set of things to look at again. Looking is level-based: it reads the state, does what is
missing and may be repeated, so after a restart everything is simply looked at once more. It
happens in callbacks of the loop, `ITEMS_PER_TURN` at a time, between requests.
"""

from __future__ import annotations

import asyncio
import itertools
from typing import TYPE_CHECKING, Any

from spinney.clock import parse_rfc3339
from spinney.local.apiserver.objects import (
    CRD_CLEANUP,
    CRDS,
    FOREGROUND,
    ORPHAN,
    SYSTEM,
    DeleteOptions,
)
from spinney.local.apiserver.refusal import RefusalError
from spinney.log import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from spinney.api.resource import Unstructured
    from spinney.clock import Clock
    from spinney.local.apiserver.kinds import Registry
    from spinney.local.apiserver.objects import Objects
    from spinney.local.apiserver.store import Store
    from spinney.local.apiserver.stored import Stored
    from spinney.local.apiserver.watch import Change

log = get_logger("apiserver.collector")

ITEMS_PER_TURN = 50
"""Things looked at before requests get their turn again."""
RETRY_S = 1.0
"""How long something that failed is left alone."""
EVENT_TTL_S = 3600.0
"""How long an Event is kept after its last change, as in Kubernetes."""
EVENTS_PER_TURN = 10

_Item = tuple[str, str]


class Collector:
    """Finishes deletions. `observe` has to be told of every change."""

    def __init__(self, store: Store, objects: Objects, registry: Registry, clock: Clock) -> None:
        self._store = store
        self._objects = objects
        self._registry = registry
        self._clock = clock
        self._work: dict[_Item, None] = {}
        self._events: dict[tuple[str, str], float] = {}
        self._handle: asyncio.Handle | None = None
        self._retry: asyncio.TimerHandle | None = None
        self._failed: dict[_Item, None] = {}
        self._closed = False

    def recover(self) -> None:
        """Take up what a previous process had not finished."""
        events = []
        for stored in self._store.everything():
            if stored.deleting or stored.owners:
                self._add(self._item(stored))
            if stored.storage == "events":
                events.append((_last_change_s(stored.decode()), stored))
        for changed_s, stored in sorted(events, key=lambda pair: (pair[0], pair[1].name)):
            self._events[stored.namespace, stored.name] = changed_s + EVENT_TTL_S

    def observe(self, change: Change) -> None:
        """Note what *change* makes worth looking at."""
        old, new = change.old, change.new
        if change.storage == "events":
            self._note_event(change)
        if new is None:
            assert old is not None
            self._add_all(self._store.dependents(old.uid))
            for owner in old.owners:
                self._add(("object", owner))
            self._look_at_home(old)
            return
        if new.deleting:
            self._add(self._item(new))
        elif new.owners and (old is None or old.owners != new.owners):
            owners = [self._store.by_uid(uid) for uid in new.owners]
            if any(owner is None or owner.deleting for owner in owners):
                self._add(("object", new.uid))
        if old is not None and old.owners != new.owners:
            for owner_uid in old.owners:
                if owner_uid not in new.owners:
                    self._add(("object", owner_uid))

    def kick(self) -> None:
        """Go on in the running loop, if there is something to do."""
        if not self._work or self._handle is not None or self._closed:
            return
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return  # At start-up: the first request kicks again.
        self._handle = loop.call_soon(self._turn)

    def close(self) -> None:
        """Stop; what is not finished is taken up by the next process."""
        self._closed = True
        for handle in (self._handle, self._retry):
            if handle is not None:
                handle.cancel()

    @property
    def idle(self) -> bool:
        """Whether there is nothing to look at."""
        return not self._work and not self._failed

    def _turn(self) -> None:
        self._handle = None
        for item in list(itertools.islice(self._work, ITEMS_PER_TURN)):
            del self._work[item]
            try:
                self._look_at(item)
            except Exception:
                log.exception("deletion not finished; tried again later", item=item)
                self._failed[item] = None
        if self._failed and self._retry is None:
            self._retry = asyncio.get_running_loop().call_later(RETRY_S, self._try_again)
        self.kick()

    def _try_again(self) -> None:
        self._retry = None
        self._work |= self._failed
        self._failed.clear()
        self.kick()

    def _look_at(self, item: _Item) -> None:
        looks: dict[str, Callable[[str], None]] = {
            "object": self._look_at_object,
            "namespace": self._look_at_namespace,
            "definition": self._look_at_definition,
            "events": self._look_at_events,
        }
        looks[item[0]](item[1])

    # Owners and dependents

    def _look_at_object(self, uid: str) -> None:
        stored = self._store.by_uid(uid)
        if stored is None:
            return
        if stored.deleting:
            self._go_on_deleting(stored)
        elif stored.owners:
            self._judge_by_owners(stored)

    def _go_on_deleting(self, owner: Stored) -> None:
        finalizers = owner.decode()["metadata"].get("finalizers") or ()
        dependents = self._store.dependents(owner.uid)
        if ORPHAN in finalizers:
            for dependent in dependents:
                self._drop_owners(dependent, {owner.uid})
            self._drop_finalizer(owner, ORPHAN)
        elif FOREGROUND in finalizers:
            self._add_all([d for d in dependents if not d.deleting])
            if not any(_blocks(dependent, owner.uid) for dependent in dependents):
                self._drop_finalizer(owner, FOREGROUND)

    def _judge_by_owners(self, stored: Stored) -> None:
        gone, waiting, solid = set(), set(), 0
        for reference in stored.decode()["metadata"].get("ownerReferences") or ():
            owner = self._store.by_uid(reference["uid"])
            if owner is not None and owner.namespace not in ("", stored.namespace):
                owner = None
            if owner is None:
                # An owner of a kind that is not served may well exist; leave its dependents.
                known = self._registry.of_object(reference["apiVersion"], reference["kind"])
                if known is None:
                    solid += 1
                else:
                    gone.add(reference["uid"])
            elif owner.deleting and self._waits_for(owner) and reference.get("blockOwnerDeletion"):
                waiting.add(reference["uid"])
            else:
                solid += 1
        if solid:
            if gone or waiting:
                self._drop_owners(stored, gone | waiting)
        elif waiting and self._store.dependents(stored.uid):
            self._delete(stored, "Foreground")
        else:
            self._delete(stored, None)

    def _waits_for(self, owner: Stored) -> bool:
        return FOREGROUND in (owner.decode()["metadata"].get("finalizers") or ())

    def _drop_owners(self, stored: Stored, uids: set[str]) -> None:
        def without(obj: Unstructured) -> Unstructured:
            references = obj["metadata"].get("ownerReferences") or ()
            kept = [r for r in references if r["uid"] not in uids]
            obj["metadata"]["ownerReferences"] = kept or None
            return obj

        self._update(stored, without)

    def _drop_finalizer(self, stored: Stored, finalizer: str) -> None:
        def without(obj: Unstructured) -> Unstructured:
            kept = [f for f in obj["metadata"].get("finalizers") or () if f != finalizer]
            obj["metadata"]["finalizers"] = kept or None
            return obj

        self._update(stored, without)

    # Namespaces and definitions

    def _look_at_namespace(self, name: str) -> None:
        namespace = self._store.get("namespaces", "", name)
        if namespace is None or not namespace.deleting:
            return
        contents = self._store.namespace_contents(name)
        self._go_on_deleting(namespace)
        if contents:
            self._empty(contents, ("namespace", name))
            return

        def finalized(obj: Unstructured) -> Unstructured:
            obj.setdefault("spec", {})["finalizers"] = []
            return obj

        self._update(namespace, finalized, subresource="finalize")

    def _look_at_definition(self, name: str) -> None:
        definition = self._store.get(CRDS, "", name)
        if definition is None or not definition.deleting:
            return
        self._go_on_deleting(definition)
        instances = self._store.select(name)
        if instances:
            self._empty(instances, ("definition", name))
            return
        self._drop_finalizer(definition, CRD_CLEANUP)

    def _empty(self, contents: Sequence[Stored], item: _Item) -> None:
        left = [stored for stored in contents if not stored.deleting]
        for stored in left[:ITEMS_PER_TURN]:
            self._delete(stored, "Background")
        # The rest goes in its own time, and its going brings us here again.
        if len(left) > ITEMS_PER_TURN:
            self._add(item)

    # Inside

    def _update(
        self,
        stored: Stored,
        change: Callable[[Unstructured], Unstructured],
        *,
        subresource: str = "",
    ) -> None:
        kind = self._registry.stored(stored.storage)
        if kind is None or self._store.by_uid(stored.uid) is None:
            return
        self._objects.update(
            kind, stored.namespace, stored.name, change, SYSTEM, subresource=subresource
        )

    def _delete(self, stored: Stored, propagation: str | None) -> None:
        kind = self._registry.stored(stored.storage)
        if kind is None:
            return
        options = DeleteOptions(propagation=propagation, uid=stored.uid, user=SYSTEM.user)
        try:
            self._objects.delete(kind, stored.namespace, stored.name, options)
        except RefusalError as refusal:
            if refusal.code != 404:
                raise

    def _look_at_home(self, stored: Stored) -> None:
        """Look at the namespace or definition of what is gone, if it waits to be empty."""
        if stored.namespace:
            namespace = self._store.get("namespaces", "", stored.namespace)
            if namespace is not None and namespace.deleting:
                self._add(("namespace", stored.namespace))
        definition = self._store.get(CRDS, "", stored.storage)
        if definition is not None and definition.deleting:
            self._add(("definition", stored.storage))

    def _item(self, stored: Stored) -> _Item:
        if stored.storage == "namespaces":
            return ("namespace", stored.name)
        if stored.storage == CRDS:
            return ("definition", stored.name)
        return ("object", stored.uid)

    def _add(self, item: _Item) -> None:
        self._work[item] = None
        self.kick()

    def _add_all(self, found: Sequence[Stored]) -> None:
        for stored in found:
            self._add(self._item(stored))

    def _note_event(self, change: Change) -> None:
        now = self._clock.now()
        self._events.pop(change.key, None)
        if change.new is None:
            return
        self._events[change.key] = now + EVENT_TTL_S
        if next(iter(self._events.values())) <= now:
            self._add(("events", ""))

    def _look_at_events(self, _: str) -> None:
        now = self._clock.now()
        for key in list(itertools.islice(self._events, EVENTS_PER_TURN)):
            if self._events[key] > now:
                return
            expired = self._store.get("events", *key)
            if expired is not None:
                self._delete(expired, "Background")
            self._events.pop(key, None)
        if self._events:
            self._add(("events", ""))


def _blocks(dependent: Stored, uid: str) -> bool:
    references: list[dict[str, Any]] = dependent.decode()["metadata"].get("ownerReferences") or []
    return any(r["uid"] == uid and r.get("blockOwnerDeletion") for r in references)


def _last_change_s(event: Unstructured) -> float:
    stamp = event.get("lastTimestamp") or event["metadata"]["creationTimestamp"]
    try:
        return parse_rfc3339(stamp)
    except ValueError:
        return 0.0
