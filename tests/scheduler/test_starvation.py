"""Large gangs among small ones that come without end: the large one is placed after all."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from tests.scheduler.eviction_table import asks, node, queue

from spinney.clock import rfc3339
from spinney.scheduler.config import SchedulerConfig
from spinney.scheduler.cycle import CycleResult, run_cycle
from spinney.scheduler.memory import Memory
from spinney.scheduler.scenario import fill, objects, scenario

AFTER_S = 5
NOW = 1_800_000_000.0


class Stream:
    """A cluster into which small pods come in every cycle; each ends *life* cycles after it
    started, every other a cycle later. A cycle takes a second."""

    def __init__(
        self,
        document: dict[str, Any],
        *,
        arrivals: int,
        life: int,
        after_s: float = AFTER_S,
        limit_s: float = 3600,
        small: dict[str, Any] | None = None,
    ) -> None:
        self.cache = fill(scenario(document))
        self.config = SchedulerConfig(drain_after_s=after_s, drain_limit_s=limit_s)
        self.pods = {pod.key: pod for pod in objects(scenario(document)).pods}
        self.now = NOW
        self.memory = Memory()
        self._arrivals = arrivals
        self._life = life
        self._small = {"gpus": 1, "preemptible": False, **(small or {})}
        self._count = 0
        self._ends: dict[str, int] = {}
        self._cycles = 0

    def come(self, *gangs: dict[str, Any]) -> None:
        found = scenario({"gangs": [{**gang, "created": rfc3339(self.now)} for gang in gangs]})
        fill(found, self.cache)
        self.pods.update((pod.key, pod) for pod in objects(found).pods)

    def _small_ones_come(self) -> None:
        lines = []
        for _ in range(self._arrivals):
            self._count += 1
            name = f"s{self._count:04}"
            lines.append({"name": name, "created": rfc3339(self.now), **self._small})
        found = scenario({"pods": lines})
        fill(found, self.cache)
        self.pods.update((pod.key, pod) for pod in objects(found).pods)

    def cycle(self) -> CycleResult:
        self._small_ones_come()
        result = run_cycle(self.cache.snapshot(self.now), self.config, memory=self.memory)
        assert not result.evictions
        self.memory = result.memory
        self._cycles += 1
        self.now += 1
        for binding in result.bindings:
            pod = self.pods[binding.pod]
            self.cache.set_pod(replace(pod, spec=replace(pod.spec, node_name=binding.node)))
            if binding.pod.startswith("default/s0"):
                uneven = int(binding.pod[-4:]) % 2
                self._ends[binding.pod] = self._cycles + self._life + uneven
        for key in [key for key, end in self._ends.items() if end <= self._cycles]:
            del self._ends[key]
            self.cache.remove_pod(key)
        return result

    def ends(self, gang: str) -> None:
        """Let a gang that runs end when the small pods that start now do."""
        mine = [key for key in self.pods if key.startswith(f"default/{gang}-")]
        self._ends.update(dict.fromkeys(mine, self._cycles + self._life))

    def cycles_until_placed(self, gang: str, most: int) -> int | None:
        for count in range(1, most + 1):
            if any(b.gang == f"default/{gang}" for b in self.cycle().bindings):
                return count
        return None


def racks(count: int, gpus: int = 2) -> list[dict[str, Any]]:
    return [node(f"n{i}", gpus, f"r{i // 2}") for i in range(count)]


def busy(nodes: int = 4, gpus: int = 2, **more: Any) -> Stream:
    """Return a cluster that small pods fill already."""
    document = {"nodes": racks(nodes, gpus), "levels": ["rack"], "queues": more.pop("queues", [])}
    stream = Stream(document, **{"arrivals": 4, "life": 3, **more})
    for _ in range(4):
        stream.cycle()
    return stream


def test_without_drains_a_large_gang_waits_as_long_as_small_ones_come() -> None:
    stream = busy(after_s=0)
    stream.come(asks("large", "", 2, 2, required="rack"))

    assert stream.cycles_until_placed("large", 60) is None


def test_with_drains_it_is_placed_in_the_rack_that_is_emptied_for_it() -> None:
    stream = busy()
    stream.come(asks("large", "", 2, 2, required="rack"))

    took = stream.cycles_until_placed("large", 60)
    assert took is not None
    assert AFTER_S < took <= AFTER_S + 10


def test_it_says_which_nodes_are_kept_for_it() -> None:
    stream = busy()
    stream.come(asks("large", "", 1, 2))
    for _ in range(AFTER_S + 6):
        result = stream.cycle()
        if any(r.draining for r in stream.memory.reservations):
            break

    reason = result.verdicts["default/large"].reason
    assert reason.count("is kept for it") == 1
    assert "what becomes free on n" in reason
    assert not result.pipelined


def test_others_use_what_the_large_gang_does_not_need() -> None:
    stream = trickle(nodes=1, limit_s=60)
    stream.come(asks("large", "", 1, 2))
    while not any(r.draining for r in stream.memory.reservations):
        stream.cycle()
    for _ in range(3):
        stream.cycle()
    stream.come(asks("wants-cores", "", 1, 0, cpu=1), asks("wants-gpus", "", 1, 1))
    stream.cycle()

    kinds = {name: v.kind for name, v in stream.memory.verdicts.items()}
    assert kinds["default/wants-cores"] == "placed"
    assert kinds["default/wants-gpus"] == "unplaced"
    reason = stream.memory.verdicts["default/wants-gpus"].reason
    assert "would fit in the room that is kept for default/large" in reason


def test_one_of_higher_priority_is_placed_in_the_room_that_is_kept() -> None:
    stream = busy(nodes=1, gpus=2, arrivals=1, life=8)
    stream.come(asks("large", "", 1, 2))
    for _ in range(60):
        stream.cycle()
        if stream.memory.reservations:
            break
    assert [r.gang for r in stream.memory.reservations] == ["default/large"]
    stream.come(asks("urgent", "", 1, 1, priority=125))

    assert stream.cycles_until_placed("urgent", 10) is not None


def test_only_one_gang_of_a_queue_has_a_drain_and_the_next_has_it_after_that() -> None:
    stream = busy()
    stream.come(asks("large", "", 2, 2, required="rack"), asks("other", "", 2, 2, required="rack"))
    most = 0
    order: list[str] = []
    for _ in range(40):
        result = stream.cycle()
        most = max(most, sum(r.draining for r in stream.memory.reservations))
        bound = {b.gang.removeprefix("default/") for b in result.bindings}
        for name in sorted(bound & {"large", "other"}):
            stream.ends(name)
            order.append(name)

    assert most == 1
    assert order == ["large", "other"]


def test_drains_of_two_queues_never_want_the_same_room() -> None:
    queues = [queue(name, -1) for name in ("q0", "q1", "q2")]
    stream = busy(queues=queues, small={"queue": "q2"})
    stream.come(asks("a", "q0", 2, 2, required="rack"), asks("b", "q1", 2, 2, required="rack"))
    nodes: list[set[str]] = []
    placed = []
    for _ in range(30):
        placed += [b.gang for b in stream.cycle().bindings if b.gang in ("default/a", "default/b")]
        drains = [r for r in stream.memory.reservations if r.draining]
        if len(drains) == 2:
            nodes = [{spot.node for spot in found.spots} for found in drains]

    assert nodes
    assert not nodes[0] & nodes[1]
    assert set(placed) == {"default/a", "default/b"}


def trickle(nodes: int, limit_s: float) -> Stream:
    """Return a cluster whose first node has half its GPUs taken for ever, and small pods in it."""
    held = {"name": "for-ever", "pods": 0, "on": ["n0"], "gpus": 1, "preemptible": False}
    document = {"nodes": racks(nodes), "pods": [held]}
    return Stream(document, arrivals=nodes * 2 - 1, life=1, limit_s=limit_s)


def test_a_drain_ends_in_time_and_others_have_its_room() -> None:
    stream = trickle(nodes=1, limit_s=4)
    stream.come(asks("large", "", 1, 2))
    placed = [bool(stream.cycle().bindings) for _ in range(30)]

    text = "".join("#" if found else "." for found in placed)
    assert "...#" in text.lstrip("."), text


def test_nodes_that_did_not_become_free_are_not_tried_again_at_once() -> None:
    stream = trickle(nodes=2, limit_s=6)
    stream.come(asks("large", "", 1, 2))

    assert stream.cycles_until_placed("large", 60) is not None


def test_a_gang_that_no_empty_cluster_holds_keeps_nothing_from_others() -> None:
    stream = busy()
    stream.come(
        asks("a-never", "", 3, 2, required="rack"), asks("large", "", 2, 2, required="rack")
    )

    assert stream.cycles_until_placed("large", 40) is not None
    assert "default/a-never" in stream.memory.undrainable


def test_one_that_waits_for_its_queue_is_not_waiting_for_room() -> None:
    queues = [queue("q0", -1, 1), queue("q1", -1)]
    stream = busy(queues=queues, small={"queue": "q1"})
    stream.come(asks("large", "q0", 1, 2))
    for _ in range(AFTER_S + 3):
        stream.cycle()

    assert not stream.memory.reservations


@settings(max_examples=20, deadline=None)
@given(
    nodes=st.sampled_from([2, 4, 6]),
    gpus=st.integers(1, 3),
    life=st.integers(1, 4),
    queues=st.booleans(),
    required=st.booleans(),
    several=st.integers(1, 2),
)
@example(nodes=4, gpus=2, life=3, queues=True, required=True, several=2)
def test_every_large_gang_that_fits_an_empty_cluster_is_placed_in_bounded_time(
    nodes: int, gpus: int, life: int, queues: bool, required: bool, several: int
) -> None:
    found = [queue(name, -1) for name in ("q0", "q1", "q2")] if queues else []
    small = {"queue": "q2"} if queues else {}
    arrivals = nodes * gpus // (life + 1) + 1
    stream = busy(nodes, gpus, arrivals=arrivals, life=life, queues=found, small=small)
    shape: dict[str, Any] = {"required": "rack"} if required else {}
    waiting = {f"large{i}" for i in range(several)}
    for i, name in enumerate(sorted(waiting)):
        of = f"q{i}" if queues else ""
        stream.come(asks(name, of, 2 if required else nodes, gpus, **shape))
    older = 4 * (life + 1)
    for _ in range(several * (AFTER_S + 2 * life + 6) + older):
        bound = {b.gang.removeprefix("default/") for b in stream.cycle().bindings}
        for name in bound & waiting:
            stream.ends(name)
        waiting -= bound
    assert not waiting


@pytest.mark.parametrize("after_s", [0, -1])
def test_drains_can_be_turned_off(after_s: float) -> None:
    stream = busy(after_s=after_s)
    stream.come(asks("large", "", 2, 2, required="rack"))
    for _ in range(20):
        stream.cycle()

    assert not stream.memory.reservations
