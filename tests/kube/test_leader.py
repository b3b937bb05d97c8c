"""At most one leads, and soon after a death another does."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING

import pytest
from tests.kube.fake_api import FakeApi

from spinney.clock import LoopClock, SystemClock
from spinney.ids import RandomIds
from spinney.kube.client import KubeClient
from spinney.kube.leader import LeaderElector
from spinney.kube.transport import ApiRequest, ApiResponse, TransportError
from spinney.sim.loop import SimulatedLoop

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

LEASE = "/apis/coordination.k8s.io/v1/namespaces/ns/leases/main"


class Cable:
    """The way of one candidate to the API, which can be cut."""

    def __init__(self, api: FakeApi) -> None:
        self.api = api
        self.cut = False
        self.hanging = False

    async def send(self, request: ApiRequest) -> ApiResponse:
        if self.hanging:
            await asyncio.sleep(1e6)
        if self.cut:
            raise TransportError("cut")
        return await self.api.send(request)

    async def close(self) -> None: ...


class Candidate:
    def __init__(self, api: FakeApi, name: str, stage: list[str], seed: int) -> None:
        self.name = name
        self.cable = Cable(api)
        self.stage = stage
        self.led_at: list[float] = []
        loop = asyncio.get_running_loop()
        # Clocks of machines disagree: the election must not care.
        clock = LoopClock(loop, epoch_s=1e9 + 1000 * seed)
        ids = RandomIds(random.Random(seed))
        self.elector = LeaderElector(KubeClient(self.cable), clock, ids, "main", "ns", name)
        self.task = asyncio.create_task(self.elector.run(self.work))

    async def work(self) -> None:
        assert not self.stage, f"{self.name} leads beside {self.stage}"
        self.stage.append(self.name)
        self.led_at.append(asyncio.get_running_loop().time())
        try:
            await asyncio.sleep(1e6)
        finally:
            self.stage.remove(self.name)

    async def stop(self) -> None:
        self.task.cancel()
        await asyncio.wait({self.task})


def simulate(scene: Callable[[FakeApi, list[str]], Awaitable[None]]) -> None:
    async def main() -> None:
        await scene(FakeApi(), [])

    with asyncio.Runner(loop_factory=SimulatedLoop) as runner:
        runner.run(main())


def test_one_of_three_leads_and_the_lease_says_who() -> None:
    async def scene(api: FakeApi, stage: list[str]) -> None:
        candidates = [Candidate(api, f"c{n}", stage, n) for n in range(3)]
        await asyncio.sleep(60)
        assert len(stage) == 1
        assert api.objects[LEASE]["spec"]["holderIdentity"].startswith(stage[0])
        assert api.objects[LEASE]["spec"].get("leaseTransitions", 0) == 0
        for candidate in candidates:
            await candidate.stop()

    simulate(scene)


def test_a_leader_that_stops_hands_over_without_waiting() -> None:
    async def scene(api: FakeApi, stage: list[str]) -> None:
        first = Candidate(api, "first", stage, 1)
        await asyncio.sleep(5)
        second = Candidate(api, "second", stage, 2)
        await asyncio.sleep(5)
        assert stage == ["first"]
        await first.stop()
        await asyncio.sleep(3)
        assert stage == ["second"]
        assert api.objects[LEASE]["spec"]["leaseTransitions"] == 1
        await second.stop()

    simulate(scene)


@pytest.mark.parametrize("hanging", [False, True], ids=["refused", "no answer"])
def test_a_leader_that_cannot_renew_stops_before_another_starts(hanging: bool) -> None:
    async def scene(api: FakeApi, stage: list[str]) -> None:
        first = Candidate(api, "first", stage, 1)
        await asyncio.sleep(5)
        second = Candidate(api, "second", stage, 2)
        await asyncio.sleep(5)
        first.cable.cut = not hanging
        first.cable.hanging = hanging
        await asyncio.sleep(10.1)
        assert stage == []
        await asyncio.sleep(9)
        assert stage == ["second"]
        assert not first.elector.leading
        await first.stop()
        await second.stop()

    simulate(scene)


def test_a_short_interruption_does_not_cost_the_lead() -> None:
    async def scene(api: FakeApi, stage: list[str]) -> None:
        first = Candidate(api, "first", stage, 1)
        second = Candidate(api, "second", stage, 2)
        await asyncio.sleep(5)
        leader = first if stage == ["first"] else second
        leader.cable.cut = True
        await asyncio.sleep(6)
        leader.cable.cut = False
        await asyncio.sleep(60)
        assert stage == [leader.name]
        assert len(leader.led_at) == 1
        await first.stop()
        await second.stop()

    simulate(scene)


def test_a_deleted_lease_is_made_again() -> None:
    async def scene(api: FakeApi, stage: list[str]) -> None:
        first = Candidate(api, "first", stage, 1)
        await asyncio.sleep(5)
        api.remove(LEASE)
        await asyncio.sleep(5)
        assert stage == ["first"]
        assert LEASE in api.objects
        await first.stop()

    simulate(scene)


def test_what_the_work_raises_comes_out_and_frees_the_lease() -> None:
    async def main() -> None:
        api = FakeApi()
        clock = LoopClock(asyncio.get_running_loop())
        elector = LeaderElector(KubeClient(api), clock, RandomIds(), "main", "ns", "a")

        async def work() -> None:
            await asyncio.sleep(20)
            raise RuntimeError("work broke")

        with pytest.raises(RuntimeError, match="work broke"):
            await elector.run(work)
        assert not api.objects[LEASE]["spec"].get("holderIdentity")

    with asyncio.Runner(loop_factory=SimulatedLoop) as runner:
        runner.run(main())


@pytest.mark.parametrize("seed", range(15))
def test_two_may_never_lead_through_random_cuts(seed: int) -> None:
    rng = random.Random(seed)

    async def scene(api: FakeApi, stage: list[str]) -> None:
        candidates = [Candidate(api, f"c{n}", stage, n + 10 * seed) for n in range(3)]
        for _ in range(40):
            victim = rng.choice(candidates)
            victim.cable.cut = rng.random() < 0.5
            victim.cable.hanging = rng.random() < 0.2
            await asyncio.sleep(rng.random() * 12)
            for candidate in candidates:
                assert not candidate.task.done(), candidate.task.exception()
        for candidate in candidates:
            candidate.cable.cut = candidate.cable.hanging = False
        await asyncio.sleep(40)
        assert len(stage) == 1
        for candidate in candidates:
            await candidate.stop()

    simulate(scene)


def test_periods_that_allow_two_leaders_are_refused() -> None:
    with pytest.raises(ValueError, match="two may lead"):
        LeaderElector(
            KubeClient(FakeApi()),
            SystemClock(),
            RandomIds(),
            "main",
            "ns",
            "a",
            lease_duration_s=5,
            renew_deadline_s=6,
        )
