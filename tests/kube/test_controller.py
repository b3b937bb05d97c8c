"""Controllers reconcile each key serially, until it works, after the first lists."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING

import pytest
from prometheus_client import CollectorRegistry
from tests.kube.fake_api import FakeApi, config_map, failure

from spinney.api.core import ConfigMap, Secret
from spinney.clock import LoopClock
from spinney.kube.client import KubeClient
from spinney.kube.controller import Result, Runtime
from spinney.sim.loop import SimulatedLoop

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

ROOT = "/api/v1/namespaces/ns/configmaps"


class Recorder:
    """Keeps what it was asked to reconcile; fails as often as told."""

    def __init__(self, seconds: float = 0.0, failures: int = 0, again_s: float | None = None):
        self.calls: list[tuple[float, str]] = []
        self.seconds = seconds
        self.failures = failures
        self.again_s = again_s
        self.running: set[str] = set()
        self.most_running = 0

    async def reconcile(self, key: str) -> Result | None:
        assert key not in self.running, "two reconciles of one key at a time"
        self.running.add(key)
        self.most_running = max(self.most_running, len(self.running))
        self.calls.append((asyncio.get_running_loop().time(), key))
        await asyncio.sleep(self.seconds)
        self.running.discard(key)
        if self.failures:
            self.failures -= 1
            raise RuntimeError("failed on purpose")
        return Result(self.again_s) if self.again_s else None

    @property
    def keys(self) -> list[str]:
        return [key for _, key in self.calls]


def simulate(
    scene: Callable[[FakeApi, Runtime], Awaitable[None]],
    registry: CollectorRegistry | None = None,
) -> None:
    async def main() -> None:
        api = FakeApi()
        clock = LoopClock(asyncio.get_running_loop())
        runtime = Runtime(KubeClient(api), clock, rng=random.Random(1), registry=registry)
        await scene(api, runtime)

    with asyncio.Runner(loop_factory=SimulatedLoop) as runner:
        runner.run(main())


async def run_for(runtime: Runtime, seconds: float) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(seconds):
            await runtime.run()


def controller_on_maps(runtime: Runtime, recorder: Recorder, concurrency: int = 1) -> None:
    controller = runtime.controller("maps", recorder, concurrency=concurrency)
    controller.watch(runtime.informer(ConfigMap, "ns"), lambda obj: [obj.key])


def test_every_object_that_is_there_is_reconciled_once() -> None:
    async def scene(api: FakeApi, runtime: Runtime) -> None:
        recorder = Recorder()
        controller_on_maps(runtime, recorder)
        for name in "ab":
            api.put(f"{ROOT}/{name}", config_map(name))
        await run_for(runtime, 5)
        assert recorder.keys == ["ns/a", "ns/b"]

    simulate(scene)


def test_nothing_is_reconciled_before_all_informers_know_their_lists() -> None:
    async def scene(api: FakeApi, runtime: Runtime) -> None:
        recorder = Recorder()
        controller_on_maps(runtime, recorder)
        runtime.informer(Secret, "ns")
        api.put(f"{ROOT}/a", config_map("a"))

        def slow_secrets(request: object) -> None:
            return None

        api.fail.append(slow_secrets)
        api.fail_next(failure(503, "Unavailable"))
        await run_for(runtime, 10)
        assert recorder.calls[0][0] >= 0.1
        assert recorder.keys == ["ns/a"]

    simulate(scene)


def test_a_change_enqueues_the_keys_of_the_old_and_of_the_new_state() -> None:
    async def scene(api: FakeApi, runtime: Runtime) -> None:
        recorder = Recorder()
        controller = runtime.controller("owners", recorder)
        controller.watch(runtime.informer(ConfigMap, "ns"), lambda obj: [obj.data["owner"]])
        task = asyncio.create_task(runtime.run())
        api.put(f"{ROOT}/a", config_map("a", owner="x"))
        await asyncio.sleep(1)
        recorder.calls.clear()
        api.put(f"{ROOT}/a", config_map("a", owner="y"))
        await asyncio.sleep(1)
        assert sorted(recorder.keys) == ["x", "y"]
        task.cancel()

    simulate(scene)


def test_a_failed_key_comes_back_after_growing_waits_and_then_rests() -> None:
    async def scene(api: FakeApi, runtime: Runtime) -> None:
        recorder = Recorder(failures=6)
        controller_on_maps(runtime, recorder)
        api.put(f"{ROOT}/a", config_map("a"))
        await run_for(runtime, 60)
        assert recorder.keys == ["ns/a"] * 7
        times = [at for at, _ in recorder.calls]
        assert times[6] - times[5] > times[2] - times[1]

    simulate(scene)


def test_a_success_starts_the_back_off_over() -> None:
    async def scene(api: FakeApi, runtime: Runtime) -> None:
        recorder = Recorder(failures=10)
        controller_on_maps(runtime, recorder)
        task = asyncio.create_task(runtime.run())
        api.put(f"{ROOT}/a", config_map("a"))
        await asyncio.sleep(120)
        assert not recorder.failures
        recorder.failures = 1
        recorder.calls.clear()
        api.put(f"{ROOT}/a", config_map("a"))
        await asyncio.sleep(1)
        assert recorder.keys == ["ns/a", "ns/a"]
        task.cancel()

    simulate(scene)


def test_a_reconcile_may_ask_to_be_called_again() -> None:
    async def scene(api: FakeApi, runtime: Runtime) -> None:
        recorder = Recorder(again_s=10)
        controller_on_maps(runtime, recorder)
        api.put(f"{ROOT}/a", config_map("a"))
        await run_for(runtime, 35)
        assert [round(at) for at, _ in recorder.calls] == [0, 10, 20, 30]

    simulate(scene)


def test_keys_are_worked_on_in_parallel_but_no_key_twice_at_a_time() -> None:
    async def scene(api: FakeApi, runtime: Runtime) -> None:
        recorder = Recorder(seconds=1.0)
        controller_on_maps(runtime, recorder, concurrency=3)
        task = asyncio.create_task(runtime.run())
        for _ in range(5):
            for name in "abcdef":
                api.put(f"{ROOT}/{name}", config_map(name))
            await asyncio.sleep(0.7)
        await asyncio.sleep(20)
        assert recorder.most_running == 3
        assert set(recorder.keys) == {f"ns/{name}" for name in "abcdef"}
        task.cancel()

    simulate(scene)


def test_the_same_arguments_give_the_same_informer() -> None:
    async def scene(_api: FakeApi, runtime: Runtime) -> None:
        assert runtime.informer(ConfigMap, "ns") is runtime.informer(ConfigMap, "ns")
        assert runtime.informer(ConfigMap, "ns") is not runtime.informer(ConfigMap)
        assert runtime.informer(ConfigMap, labels="a=b") is not runtime.informer(ConfigMap)

    simulate(scene)


def test_an_informer_and_a_controller_made_late_run_as_well() -> None:
    async def scene(api: FakeApi, runtime: Runtime) -> None:
        api.put(f"{ROOT}/a", config_map("a"))
        task = asyncio.create_task(runtime.run())
        await asyncio.sleep(1)
        recorder = Recorder()
        controller_on_maps(runtime, recorder)
        await asyncio.sleep(1)
        assert recorder.keys == ["ns/a"]
        task.cancel()

    simulate(scene)


def test_two_controllers_of_one_name_are_refused() -> None:
    async def scene(_api: FakeApi, runtime: Runtime) -> None:
        runtime.controller("x", Recorder())
        with pytest.raises(ValueError, match="'x' is there already"):
            runtime.controller("x", Recorder())

    simulate(scene)


def test_work_is_measured() -> None:
    registry = CollectorRegistry()

    async def scene(api: FakeApi, runtime: Runtime) -> None:
        recorder = Recorder(failures=2, seconds=0.5)
        controller_on_maps(runtime, recorder)
        api.put(f"{ROOT}/a", config_map("a"))
        await run_for(runtime, 60)

    simulate(scene, registry)
    labels = {"controller": "maps"}
    assert registry.get_sample_value("spinney_workqueue_retries_total", labels) == 2
    assert registry.get_sample_value("spinney_reconcile_seconds_count", labels) == 3
    assert registry.get_sample_value("spinney_reconcile_seconds_sum", labels) == 1.5
    assert registry.get_sample_value("spinney_workqueue_depth", labels) == 0


def test_the_same_seed_gives_the_same_history() -> None:
    def history() -> list[tuple[float, str]]:
        found: list[tuple[float, str]] = []

        async def scene(api: FakeApi, runtime: Runtime) -> None:
            recorder = Recorder(failures=9)
            controller_on_maps(runtime, recorder, concurrency=2)
            for name in "abcd":
                api.put(f"{ROOT}/{name}", config_map(name))
            await run_for(runtime, 60)
            found.extend(recorder.calls)

        simulate(scene)
        return found

    assert history() == history()
