"""The store against a model: lists at any version, and replays from any version.

The model keeps every state there ever was. From any of them, the events after it must lead to the
present one, and for each watcher the events it got must lead to what it would list.
"""

from __future__ import annotations

import random
from typing import Any

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    rule,
)

from spinney.local.apiserver.builtin import kinds
from spinney.local.apiserver.persistence import MemoryPersistence
from spinney.local.apiserver.presenting import PlainEvents
from spinney.local.apiserver.store import HistoryGoneError, Store
from spinney.local.apiserver.watch import Watcher

HISTORY = 4
STORAGES = ("configmaps", "secrets")
NAMES = st.sampled_from(["a", "a-1", "b", "c"])
NAMESPACES = st.sampled_from(["n", "n-2", "m"])
LABELS = st.sampled_from([{}, {"x": "1"}, {"x": "2"}])

State = dict[tuple[str, str], tuple[int, dict[str, str]]]
CONFIG_MAPS = next(kind for kind in kinds() if kind.resource.name == "configmaps")


def selected(state: State, namespace: str | None, label: str | None) -> State:
    return {
        key: value
        for key, value in state.items()
        if (namespace is None or key[0] == namespace)
        and (label is None or value[1].get("x") == label)
    }


class Replay:
    """What a client knows that started from a list and followed a watch."""

    def __init__(self, known: State, watcher: Watcher) -> None:
        self.known = dict(known)
        self.watcher = watcher
        self.last = 0

    def follow(self) -> None:
        while self.watcher._queue:
            event = msgspec.json.decode(self.watcher._queue.popleft())
            meta = event["object"]["metadata"]
            key, version = (meta["namespace"], meta["name"]), int(meta["resourceVersion"])
            assert version > self.last, "events come in order"
            self.last = version
            if event["type"] == "DELETED":
                assert key in self.known
                del self.known[key]
            else:
                assert (key in self.known) == (event["type"] == "MODIFIED")
                self.known[key] = (version, meta.get("labels") or {})


class StoreMachine(RuleBasedStateMachine):
    replays = Bundle("replays")

    @initialize()
    def start(self) -> None:
        self.store = Store(MemoryPersistence(), lambda _: {}, history_events=HISTORY)
        self.states: dict[int, dict[str, State]] = {1: {s: {} for s in STORAGES}}
        self.rng = random.Random(1)
        self.following: list[tuple[Replay, str | None, str | None]] = []

    @property
    def state(self) -> dict[str, State]:
        return self.states[self.store.revision]

    def became(self, storage: str, key: tuple[str, str], value: Any) -> None:
        state = {s: dict(objects) for s, objects in self.states[self.store.revision - 1].items()}
        if value is None:
            del state[storage][key]
        else:
            state[storage][key] = value
        self.states[self.store.revision] = state

    @rule(storage=st.sampled_from(STORAGES), namespace=NAMESPACES, name=NAMES, labels=LABELS)
    def put(self, storage: str, namespace: str, name: str, labels: dict[str, str]) -> None:
        meta = {"namespace": namespace, "name": name, "uid": f"{storage}/{namespace}/{name}"}
        stored = self.store.put(storage, {"metadata": {**meta, "labels": dict(labels)}})
        self.became(storage, (namespace, name), (stored.revision, labels))

    @rule(storage=st.sampled_from(STORAGES), namespace=NAMESPACES, name=NAMES)
    def remove(self, storage: str, namespace: str, name: str) -> None:
        stored = self.store.get(storage, namespace, name)
        assert (stored is None) == ((namespace, name) not in self.state[storage])
        if stored is not None:
            self.store.remove(stored)
            self.became(storage, (namespace, name), None)

    @rule(
        target=replays,
        back=st.integers(0, HISTORY + 3),
        namespace=st.none() | NAMESPACES,
        label=st.none() | st.sampled_from(["1", "2"]),
    )
    def watch(self, back: int, namespace: str | None, label: str | None) -> Any:
        after = max(1, self.store.revision - back)

        def matches(stored: Any) -> bool:
            return (namespace is None or stored.namespace == namespace) and (
                label is None or stored.labels.get("x") == label
            )

        watcher = Watcher(
            matches,
            PlainEvents(CONFIG_MAPS),
            bookmarks=False,
            timeout_s=1,
            too_slow=b"",
        )
        try:
            self.store.watch(watcher, "configmaps", after)
        except HistoryGoneError:
            assert self.store.revision - after > HISTORY
            return multiple()
        replay = Replay(selected(self.states[after]["configmaps"], namespace, label), watcher)
        self.following.append((replay, namespace, label))
        return replay

    @rule(replay=replays)
    def stop(self, replay: Replay) -> None:
        replay.watcher.close()
        self.following = [f for f in self.following if f[0] is not replay]

    @rule(back=st.integers(0, HISTORY + 3), namespace=st.none() | NAMESPACES)
    def list_the_past(self, back: int, namespace: str | None) -> None:
        revision = max(1, self.store.revision - back)
        want = selected(self.states[revision]["configmaps"], namespace, None)
        try:
            found = self.store.list_at("configmaps", namespace, revision)
        except HistoryGoneError:
            assert back > HISTORY
            return
        assert [(s.namespace, s.name) for s in found] == sorted(want)
        assert [s.revision for s in found] == [want[key][0] for key in sorted(want)]

    @invariant()
    def every_replay_equals_the_list(self) -> None:
        for replay, namespace, label in self.following:
            replay.follow()
            assert replay.known == selected(self.state["configmaps"], namespace, label)

    @invariant()
    def lists_are_the_state(self) -> None:
        for storage in STORAGES:
            found = self.store.select(storage)
            assert [(s.namespace, s.name) for s in found] == sorted(self.state[storage])


StoreMachine.TestCase.settings = settings(
    max_examples=80, stateful_step_count=40, deadline=None, derandomize=True
)
TestStore = StoreMachine.TestCase
