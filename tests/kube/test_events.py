"""Events are written once and counted after, and never get in the way."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any

from tests.kube.fake_api import FakeApi, failure

from spinney.api.core import Pod
from spinney.api.meta import ObjectMeta
from spinney.clock import LoopClock
from spinney.ids import RandomIds
from spinney.kube.client import KubeClient
from spinney.kube.events import MAX_PENDING, REPEAT_INTERVAL_S, EventRecorder
from spinney.kube.transport import TransportError
from spinney.sim.loop import SimulatedLoop

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


def pod(name: str = "p") -> Pod:
    return Pod(metadata=ObjectMeta(name=name, namespace="ns", uid=f"uid-{name}"))


def events_of(api: FakeApi) -> list[dict[str, Any]]:
    return [obj for path, obj in sorted(api.objects.items()) if "/events/" in path]


def simulate(scene: Callable[[FakeApi, EventRecorder], Awaitable[None]]) -> None:
    async def main() -> None:
        api = FakeApi()
        loop = asyncio.get_running_loop()
        recorder = EventRecorder(
            KubeClient(api), LoopClock(loop), RandomIds(random.Random(1)), "tester"
        )
        task = asyncio.create_task(recorder.run())
        await scene(api, recorder)
        assert not task.done()
        task.cancel()

    with asyncio.Runner(loop_factory=SimulatedLoop) as runner:
        runner.run(main())


def test_an_event_names_its_object_and_its_component() -> None:
    async def scene(api: FakeApi, recorder: EventRecorder) -> None:
        recorder.event(pod(), "Warning", "Unschedulable", "3 GPUs wanted, 1 free")
        await asyncio.sleep(1)
        [event] = events_of(api)
        assert event["involvedObject"] == {
            "apiVersion": "v1",
            "kind": "Pod",
            "namespace": "ns",
            "name": "p",
            "uid": "uid-p",
        }
        assert event["type"] == "Warning"
        assert event["reason"] == "Unschedulable"
        assert event["source"] == {"component": "tester"}
        assert event["count"] == 1
        assert event["metadata"]["name"].startswith("p.")

    simulate(scene)


def test_a_repeated_event_counts_up_and_is_written_seldom() -> None:
    async def scene(api: FakeApi, recorder: EventRecorder) -> None:
        for _ in range(100):
            recorder.event(pod(), "Normal", "Waiting", "still waiting")
            await asyncio.sleep(1)
        await asyncio.sleep(2 * REPEAT_INTERVAL_S)
        [event] = events_of(api)
        assert event["count"] == 100
        assert len(api.requests) <= 100 / REPEAT_INTERVAL_S + 2

    simulate(scene)


def test_different_messages_are_different_events() -> None:
    async def scene(api: FakeApi, recorder: EventRecorder) -> None:
        recorder.event(pod("a"), "Normal", "X", "one")
        recorder.event(pod("a"), "Normal", "X", "two")
        recorder.event(pod("b"), "Normal", "X", "one")
        await asyncio.sleep(1)
        assert len(events_of(api)) == 3

    simulate(scene)


def test_an_event_that_expired_on_the_server_is_written_anew() -> None:
    async def scene(api: FakeApi, recorder: EventRecorder) -> None:
        recorder.event(pod(), "Normal", "X", "m")
        await asyncio.sleep(1)
        api.objects.clear()
        recorder.event(pod(), "Normal", "X", "m")
        await asyncio.sleep(2 * REPEAT_INTERVAL_S)
        [event] = events_of(api)
        assert event["count"] == 1

    simulate(scene)


def test_trouble_with_the_server_delays_an_event_but_does_not_end_the_recorder() -> None:
    async def scene(api: FakeApi, recorder: EventRecorder) -> None:
        api.fail_next(TransportError("refused"), times=2)
        recorder.event(pod(), "Normal", "X", "late")
        await asyncio.sleep(10)
        api.fail_next(failure(403, "Forbidden"))
        recorder.event(pod(), "Normal", "X", "lost")
        recorder.event(pod(), "Normal", "X", "next")
        await asyncio.sleep(10)
        assert sorted(event["message"] for event in events_of(api)) == ["late", "next"]

    simulate(scene)


def test_events_beyond_the_bound_are_dropped() -> None:
    async def scene(api: FakeApi, recorder: EventRecorder) -> None:
        for number in range(MAX_PENDING + 50):
            recorder.event(pod(), "Normal", "X", f"message {number}")
        await asyncio.sleep(60)
        assert len(events_of(api)) == MAX_PENDING

    simulate(scene)
