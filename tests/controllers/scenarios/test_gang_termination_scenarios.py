"""Gangs that lose their minimum: who waits, who is made anew, and when."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.controllers.farm import pcs
from tests.controllers.scenarios.stage import lenient, play, role, strict

from spinney.api.grove import PodClique
from spinney.api.meta import is_true

if TYPE_CHECKING:
    from typing import Any

    from tests.controllers.scenarios.stage import Stage

DELAY_S = 10.0


def _group(minimum: int) -> dict[str, Any]:
    return {"name": "x", "cliqueNames": ["lead", "work"], "replicas": 2, "minAvailable": minimum}


@pytest.mark.parametrize(
    "broken", [pytest.param("s-0-front", id="GT1"), pytest.param("s-0-x-0-work", id="GT2")]
)
def test_a_gang_below_its_minimum_is_made_anew_after_the_delay(broken: str) -> None:
    async def scene(stage: Stage) -> None:
        await stage.apply(strict(terminationDelay="10s"))
        await stage.ready(10)
        before = stage.uids()
        await stage.kill(broken)
        await stage.settle(DELAY_S - 2)
        assert len(before & stage.uids()) == 9, "the others stay until the delay is over"
        await stage.settle(5)
        assert not before & stage.uids()
        assert is_true((await stage.group("s-0-x")).status.conditions, "GangTerminationInProgress")
        await stage.open_nodes()
        await stage.ready(10)
        await stage.settle()
        group = await stage.group("s-0-x")
        assert not is_true(group.status.conditions, "GangTerminationInProgress")
        assert len(await stage.reasons("PodCliqueSetReplicaDeleteSuccessful")) == 1
        assert len(await stage.reasons("GangTerminationPending")) == 1

    play(scene, 10)


def test_a_gang_above_its_minimum_stays_and_the_last_pod_takes_the_replica_gt3() -> None:
    async def scene(stage: Stage) -> None:
        await stage.apply(lenient(terminationDelay="10s"))
        await stage.ready(10)
        before = stage.uids()
        await stage.kill("s-0-front")
        await stage.settle(2 * DELAY_S)
        assert len(before & stage.uids()) == 9
        await stage.kill("s-0-front")
        await stage.settle(DELAY_S + 3)
        assert not before & stage.uids()
        await stage.open_nodes()
        await stage.ready(10)

    play(scene, 10)


def test_a_group_replica_goes_alone_while_enough_are_whole_gt4() -> None:
    async def scene(stage: Stage) -> None:
        await stage.apply(lenient(terminationDelay="10s"))
        await stage.ready(10)
        start = stage.uids()
        await stage.kill("s-0-x-0-work")
        await stage.settle(2 * DELAY_S)
        assert len(start & stage.uids()) == 9
        first, others = stage.uids("s-0-x-0-"), stage.uids() - stage.uids("s-0-x-0-")
        await stage.kill("s-0-x-0-work", 2)
        await stage.settle(DELAY_S + 3)
        assert not first & stage.uids()
        assert others <= stage.uids()
        second = stage.uids()
        await stage.kill("s-0-x-1-work")
        await stage.settle(2 * DELAY_S)
        assert len(second & stage.uids()) == len(second) - 1
        await stage.kill("s-0-x-1-work", 2)
        await stage.settle(DELAY_S + 3)
        assert not second & stage.uids(), "no replica of the group is whole: all goes"
        await stage.open_nodes()
        await stage.ready(10)

    play(scene, 10)


def test_a_group_replica_that_lost_a_whole_clique_goes_alone_gt5() -> None:
    async def scene(stage: Stage) -> None:
        cliques = (role("front", 2, 1), role("lead", 1, 1), role("work", 3, 3))
        await stage.apply(pcs(*cliques, groups=[_group(1)], terminationDelay="10s"))
        await stage.ready(10)
        kept = stage.uids("s-0-front") | stage.uids("s-0-x-0-")
        gone = stage.uids("s-0-x-1-")
        await stage.kill("s-0-x-1-work", 3)
        await stage.settle(DELAY_S + 3)
        assert kept <= stage.uids()
        assert not gone & stage.uids()
        await stage.open_nodes()
        await stage.ready(10)
        assert len(await stage.reasons("PodCliqueScalingGroupReplicaDeleteSuccessful")) == 1

    play(scene, 10)


def test_a_deleted_pod_of_a_scaled_gang_is_just_replaced_gt6() -> None:
    async def scene(stage: Stage) -> None:
        await stage.apply(lenient(terminationDelay="10s"))
        await stage.ready(10)
        before = stage.uids()
        await stage.delete_pod("s-0-x-1-work")
        await stage.ready(10)
        await stage.settle(2 * DELAY_S)
        assert len(before & stage.uids()) == 9
        assert await stage.reasons("PodCliqueSetReplicaDeleteSuccessful") == []

    play(scene, 10)


def test_what_has_never_run_is_never_terminated() -> None:
    async def scene(stage: Stage) -> None:
        await stage.close_nodes(1)
        await stage.apply(strict(terminationDelay="10s"))
        await stage.settle()
        before = stage.uids()
        await stage.settle(6 * DELAY_S)
        assert stage.uids() == before
        assert stage.on_nodes() == {}

    play(scene, 10)


def test_a_clique_that_sleeps_and_wakes_slowly_ends_nothing() -> None:
    """Scaled to zero it lacks nothing; woken, it waits for capacity as long as it takes."""

    async def scene(stage: Stage) -> None:
        await stage.apply(pcs(role("front", 1, 1), role("work", 2, 2), terminationDelay="10s"))
        await stage.ready(3)
        front = stage.uids("s-0-front")
        await stage.scale(PodClique, "s-0-work", 0)
        await stage.settle(3 * DELAY_S)
        assert stage.on_nodes() == {"s-0-front": 1}
        await stage.close_nodes(2)
        await stage.scale(PodClique, "s-0-work", 2)
        await stage.settle(3 * DELAY_S)
        assert stage.uids("s-0-front") == front
        await stage.open_nodes()
        await stage.ready(3)
        assert stage.uids("s-0-front") == front

    play(scene, 4)


def test_a_scaled_clique_keeps_its_count_when_it_is_made_anew() -> None:
    async def scene(stage: Stage) -> None:
        await stage.apply(pcs(role("front", 1, 1), role("work", 2, 1), terminationDelay="10s"))
        await stage.ready(3)
        await stage.scale(PodClique, "s-0-work", 4)
        await stage.ready(5)
        before = stage.uids()
        await stage.kill("s-0-front")
        await stage.settle(DELAY_S + 3)
        assert not before & stage.uids()
        await stage.open_nodes()
        await stage.ready(5)
        assert (await stage.clique("s-0-work")).spec.replicas == 4

    play(scene, 5)
