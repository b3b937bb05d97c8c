"""The informer's copy equals the API's state, whatever breaks."""

from __future__ import annotations

import asyncio
import itertools
import random
from typing import TYPE_CHECKING, Any

import pytest
from tests.kube.fake_api import FakeApi, config_map, failure, status

from spinney.api.core import ConfigMap, Pod
from spinney.kube.client import KubeClient
from spinney.kube.informer import Change, Informer
from spinney.kube.reflector import PAGE_LIMIT
from spinney.kube.transport import TransportError
from spinney.sim.loop import SimulatedLoop

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

ROOT = "/api/v1/namespaces/ns/configmaps"


class World:
    """An API, an informer on it, and what its handler was told."""

    def __init__(self, seed: int = 1) -> None:
        self.api = FakeApi()
        self.informer: Informer[ConfigMap] = Informer(
            KubeClient(self.api), ConfigMap, "ns", rng=random.Random(seed)
        )
        self.story: list[str] = []
        self.informer.add_handler(self._heard)

    def _heard(self, change: Change[ConfigMap]) -> None:
        old, new = change.old, change.new
        if new is None:
            self.story.append(f"-{change.object.name}")
        elif old is None:
            self.story.append(f"+{new.name}={new.data.get('v', '')}")
        else:
            self.story.append(f"~{new.name}={new.data.get('v', '')}")

    def put(self, name: str, v: str = "") -> None:
        self.api.put(f"{ROOT}/{name}", config_map(name, v=v))

    def remove(self, name: str) -> None:
        self.api.remove(f"{ROOT}/{name}")

    def copy(self) -> dict[str, str]:
        return {obj.name: obj.data.get("v", "") for obj in self.informer.list()}

    def truth(self) -> dict[str, str]:
        return {o["metadata"]["name"]: o["data"]["v"] for o in self.api.objects.values()}


def simulate(test: Callable[[World], Awaitable[None]], world: World | None = None) -> World:
    async def main() -> World:
        there = world or World()
        task = asyncio.create_task(there.informer.run())
        await test(there)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return there

    with asyncio.Runner(loop_factory=SimulatedLoop) as runner:
        return runner.run(main())


async def settled(world: World) -> None:
    """Wait until the informer is synced and watching, and has taken all events."""
    async with asyncio.timeout(120):
        while True:
            await asyncio.sleep(0.05)
            if world.informer.synced and world.api.streams:
                break
    await asyncio.sleep(0.01)


def test_objects_that_are_there_come_first_and_as_additions() -> None:
    async def scene(world: World) -> None:
        world.put("b", "1")
        world.put("a", "1")
        assert not world.informer.synced
        await world.informer.wait_synced()
        world.put("c", "1")
        await settled(world)

    world = simulate(scene)
    assert world.story == ["+a=1", "+b=1", "+c=1"]
    assert world.copy() == world.truth()


def test_changes_and_deletions_follow() -> None:
    async def scene(world: World) -> None:
        world.put("a", "1")
        await settled(world)
        world.put("a", "2")
        world.remove("a")
        await settled(world)

    world = simulate(scene)
    assert world.story == ["+a=1", "~a=2", "-a"]
    assert world.informer.get("a", "ns") is None


def test_a_handler_that_comes_late_hears_of_everything_there_is() -> None:
    late: list[str] = []

    async def scene(world: World) -> None:
        world.put("a", "1")
        await settled(world)
        world.informer.add_handler(lambda change: late.append(change.object.name))
        assert late == ["a"]
        world.put("b", "1")
        await settled(world)

    simulate(scene)
    assert late == ["a", "b"]


def test_a_handler_that_raises_does_not_stop_the_others() -> None:
    def broken(_change: Change[ConfigMap]) -> None:
        raise RuntimeError("broken on purpose")

    async def scene(world: World) -> None:
        world.informer.add_handler(broken)
        world.put("a", "1")
        await settled(world)
        world.put("a", "2")
        await settled(world)

    world = simulate(scene)
    assert world.story == ["+a=1", "~a=2"]


def test_a_long_list_is_read_in_pages() -> None:
    async def scene(world: World) -> None:
        for number in range(2 * PAGE_LIMIT + 1):
            world.put(f"m{number:04}")
        await settled(world)

    world = simulate(scene)
    assert len(world.informer) == 2 * PAGE_LIMIT + 1
    lists = [r for r in world.api.requests if "watch" not in r.query]
    assert [r.query.get("continue") for r in lists] == [None, "500", "1000"]


def test_a_broken_connection_is_resumed_without_listing_again() -> None:
    async def scene(world: World) -> None:
        world.put("a", "1")
        world.put("b", "1")
        await settled(world)
        world.api.break_streams()
        world.put("a", "2")
        world.remove("b")
        await settled(world)

    world = simulate(scene)
    assert world.story == ["+a=1", "+b=1", "~a=2", "-b"]
    assert sum("watch" not in r.query for r in world.api.requests) == 1


def test_a_watch_that_ends_is_resumed_from_the_last_bookmark() -> None:
    async def scene(world: World) -> None:
        world.put("a", "1")
        await settled(world)
        world.api.version = 50
        bookmark = {"kind": "ConfigMap", "metadata": {"resourceVersion": "50"}}
        world.api.send_event("BOOKMARK", bookmark)
        await settled(world)
        world.api.expire()
        world.api.end_streams()
        await settled(world)

    world = simulate(scene)
    watches = [r for r in world.api.requests if "watch" in r.query]
    assert watches[-1].query["resourceVersion"] == "50"
    assert sum("watch" not in r.query for r in world.api.requests) == 1


def test_a_bookmark_of_a_pod_with_null_fields_is_understood() -> None:
    async def main() -> None:
        api = FakeApi()
        pods: Informer[Pod] = Informer(KubeClient(api), Pod, rng=random.Random(1))
        task = asyncio.create_task(pods.run())
        await pods.wait_synced()
        await asyncio.sleep(1)
        bookmark = {
            "kind": "Pod",
            "metadata": {"resourceVersion": "77", "creationTimestamp": None},
            "spec": {"containers": None},
        }
        api.send_event("BOOKMARK", bookmark)
        await asyncio.sleep(1)
        assert pods.version == "77"
        task.cancel()

    with asyncio.Runner(loop_factory=SimulatedLoop) as runner:
        runner.run(main())


def missed_changes(world: World) -> None:
    world.api.break_streams()
    world.put("a", "2")
    world.remove("b")
    world.put("d", "1")
    world.remove("c")
    world.put("c", "new")


async def three_objects(world: World) -> None:
    for name in "abc":
        world.put(name, "1")
    await settled(world)


WANT_AFTER_RELIST = ["-b", "~a=2", "-c", "+c=new", "+d=1"]


def test_410_as_a_reply_leads_to_a_list_that_reveals_missed_deletions() -> None:
    async def scene(world: World) -> None:
        await three_objects(world)
        missed_changes(world)
        world.api.expire()
        await settled(world)

    world = simulate(scene)
    assert world.story[3:] == WANT_AFTER_RELIST
    assert world.copy() == world.truth()


def test_410_inside_the_stream_leads_to_a_list_that_reveals_missed_deletions() -> None:
    async def scene(world: World) -> None:
        await three_objects(world)
        streams = set(world.api.streams)
        missed_changes(world)
        world.api.streams = streams
        for stream in streams:
            while not stream.queue.empty():
                stream.queue.get_nowait()
        world.api.send_event("ERROR", status(410, "Expired"))
        world.api.streams = set()
        await settled(world)

    world = simulate(scene)
    assert world.story[3:] == WANT_AFTER_RELIST
    assert world.copy() == world.truth()


def test_an_expired_continue_token_leads_to_one_whole_list() -> None:
    async def scene(world: World) -> None:
        for number in range(PAGE_LIMIT + 1):
            world.put(f"m{number:04}")
        world.api.fail_next(None)
        world.api.fail_next(failure(410, "Expired"))
        await settled(world)

    world = simulate(scene)
    assert len(world.informer) == PAGE_LIMIT + 1
    assert "limit" not in world.api.requests[2].query


@pytest.mark.parametrize(
    ("answer", "least_s", "most_s"),
    [
        pytest.param(failure(429, "TooManyRequests", **{"retry-after": "7"}), 7, 8, id="429"),
        pytest.param(failure(503, "Unavailable"), 0.05, 1, id="503"),
        pytest.param(TransportError("refused"), 0.05, 1, id="refused"),
        pytest.param(failure(404, "NotFound"), 0.05, 1, id="kind not there yet"),
    ],
)
def test_a_failed_list_is_tried_again_when_the_server_may_be_well(
    answer: Any, least_s: float, most_s: float
) -> None:
    async def scene(world: World) -> None:
        world.put("a", "1")
        world.api.fail_next(answer)
        await settled(world)
        assert least_s <= asyncio.get_running_loop().time() <= most_s + 0.1

    world = simulate(scene)
    assert world.story == ["+a=1"]


def test_waits_between_failures_grow_to_a_bound() -> None:
    times: list[float] = []

    async def scene(world: World) -> None:
        def refuse(_request: Any) -> None:
            times.append(asyncio.get_running_loop().time())
            raise TransportError("refused")

        world.api.fail.extend([refuse] * 40)
        await asyncio.sleep(2000)

    simulate(scene)
    waits = [b - a for a, b in itertools.pairwise(times)]
    assert len(waits) == 39
    assert all(0.1 <= wait <= 0.2 for wait in waits[:1])
    assert all(15 <= wait <= 30 for wait in waits[10:])


def test_a_server_that_ends_every_watch_at_once_is_not_hammered() -> None:
    async def scene(world: World) -> None:
        await settled(world)
        before = len(world.api.requests)
        for _ in range(1200):
            await asyncio.sleep(0.5)
            world.api.end_streams()
        assert len(world.api.requests) - before < 700

    simulate(scene)


def test_a_version_that_never_works_is_given_up_after_some_tries() -> None:
    async def scene(world: World) -> None:
        await three_objects(world)
        missed_changes(world)
        world.api.fail_next(failure(504, "Timeout"), times=5)
        await settled(world)

    world = simulate(scene)
    assert world.copy() == world.truth()
    assert sum("watch" not in r.query for r in world.api.requests) == 2


def test_an_object_that_cannot_be_decoded_costs_only_itself() -> None:
    async def scene(world: World) -> None:
        world.put("a", "1")
        world.api.put(f"{ROOT}/bad", {**config_map("bad"), "data": {"v": 7}})
        world.put("z", "1")
        await settled(world)
        world.api.put(f"{ROOT}/bad", {**config_map("bad"), "data": [1]})
        world.put("z", "2")
        await settled(world)

    world = simulate(scene)
    assert world.story == ["+a=1", "+z=1", "~z=2"]
    assert sum("watch" in r.query for r in world.api.requests) == 1


def test_an_object_that_turns_unreadable_keeps_its_last_copy_and_can_be_deleted() -> None:
    async def scene(world: World) -> None:
        world.put("a", "1")
        await settled(world)
        world.api.put(f"{ROOT}/a", {**config_map("a"), "data": [1]})
        await settled(world)
        world.api.expire()
        world.api.break_streams()
        world.put("b", "1")
        world.api.expire()
        await settled(world)
        assert world.informer.get("a", "ns") is not None
        world.remove("a")
        await settled(world)

    world = simulate(scene)
    assert world.story == ["+a=1", "+b=1", "-a"]


def test_an_event_that_comes_twice_is_told_once() -> None:
    async def scene(world: World) -> None:
        await settled(world)
        world.api.duplicate_events = True
        world.put("a", "1")
        world.put("a", "2")
        world.remove("a")
        await settled(world)

    world = simulate(scene)
    assert world.story == ["+a=1", "~a=2", "-a"]


def test_half_an_event_at_the_end_of_a_stream_is_read_again() -> None:
    async def scene(world: World) -> None:
        await settled(world)
        streams = set(world.api.streams)
        world.api.streams.clear()
        world.put("a", "1")
        world.api.streams = streams
        world.api.send_line(b'{"type":"ADDED","object":{"metad')
        world.api.streams = set()
        await settled(world)

    world = simulate(scene)
    assert world.story == ["+a=1"]


def test_a_watch_that_outlives_its_time_counts_as_broken() -> None:
    async def scene(world: World) -> None:
        await settled(world)
        silent = set(world.api.streams)
        world.api.streams.clear()
        world.put("a", "1")
        await asyncio.sleep(700)
        assert not silent & world.api.streams

    world = simulate(scene)
    assert world.story == ["+a=1"]


def test_indexes_follow_every_change() -> None:
    async def scene(world: World) -> None:
        world.informer.add_index("v", lambda obj: [obj.data["v"]])
        world.put("b", "x")
        world.put("a", "x")
        await settled(world)
        world.informer.add_index("late", lambda obj: [obj.data["v"], "all"])
        assert [o.name for o in world.informer.by_index("v", "x")] == ["a", "b"]
        assert [o.name for o in world.informer.by_index("late", "all")] == ["a", "b"]
        world.put("a", "y")
        world.remove("b")
        await settled(world)
        assert world.informer.by_index("v", "x") == []
        assert [o.name for o in world.informer.by_index("late", "y")] == ["a"]

    simulate(scene)


def test_random_faults_never_leave_the_copy_wrong() -> None:
    for seed in range(40):
        rng = random.Random(seed)

        async def scene(world: World, rng: random.Random = rng, seed: int = seed) -> None:
            await settled(world)
            for step in range(60):
                name = rng.choice("abcdef")
                deed = rng.randrange(8)
                if deed < 3:
                    world.put(name, str(step))
                elif deed < 5:
                    if name in world.truth():
                        world.remove(name)
                elif deed == 5:
                    world.api.break_streams()
                elif deed == 6:
                    world.api.expire()
                    world.api.break_streams()
                else:
                    world.api.fail_next(failure(rng.choice([429, 500, 410]), "Trouble"))
                    await asyncio.sleep(rng.random() * 3)
            world.api.fail.clear()
            await asyncio.sleep(60)
            await settled(world)
            assert world.copy() == world.truth(), f"seed {seed}"
            assert world.copy() == replayed(world.story), f"seed {seed}"

        simulate(scene, None)


def replayed(story: list[str]) -> dict[str, str]:
    """What a reader who only hears the handlers believes."""
    state: dict[str, str] = {}
    for line in story:
        name, _, value = line[1:].partition("=")
        if line[0] == "-":
            del state[name]
        else:
            assert (name in state) == (line[0] == "~"), story
            state[name] = value
    return state
