"""Single interruptions, each at the worst moment."""

from __future__ import annotations

import asyncio
import gc

from tests.controllers.farm import NS, Farm, clique, pcs, play

from spinney.api.core import Pod
from spinney.api.grove import PodClique, PodCliqueScalingGroup
from spinney.controllers.pod_state import is_gated


def test_a_gate_whose_opening_was_refused_once_is_opened_later() -> None:
    async def scene(farm: Farm) -> None:
        farm.binder.held = {"s-0-a"}
        farm.connection.conflicts, farm.connection.contested = 1.0, "/pods/"
        await farm.apply(pcs(clique("a", 2)))
        await asyncio.sleep(3)
        assert all(map(is_gated, await farm.pods()))
        assert (await farm.clique("s-0-a")).status.last_errors == []
        farm.connection.mend()
        await asyncio.sleep(10)
        assert not any(map(is_gated, await farm.pods()))

    play(scene)


def test_no_pods_are_made_for_a_clique_that_is_gone_while_its_watch_is_behind() -> None:
    async def scene(farm: Farm) -> None:
        farm.quota.refused = {"s-0-b"}
        await farm.apply(pcs(clique("a", 2), clique("b")))
        await asyncio.sleep(10)
        before = len(farm.writes("/pods"))
        farm.connection.late = {"podcliques": 5.0}
        await farm.client.delete(PodClique, "s-0-a", NS)
        await asyncio.sleep(4)
        made = [write for write in farm.writes("/pods")[before:] if write.startswith("POST")]
        assert len(made) <= 2
        farm.quota.refused = set()
        farm.connection.late = {}
        await farm.ready(3)

    play(scene)


def test_a_creation_whose_answer_was_lost_is_not_done_again() -> None:
    async def scene(farm: Farm) -> None:
        farm.connection.late = {"pods": 1.0}
        farm.connection.lost = 0.5
        await farm.apply(pcs(clique("a", 6)))
        for _ in range(40):
            await asyncio.sleep(0.1)
            found = (await farm.client.list(Pod, NS)).items
            assert len(found) <= 6
        farm.connection.mend()
        await farm.ready(6)
        assert len((await farm.client.list(Pod, NS)).items) == 6

    play(scene)


def test_pods_that_serve_are_not_taken_by_an_order_that_was_taken_back() -> None:
    async def scene(farm: Farm) -> None:
        await farm.apply(pcs(clique("a", 3, min=1)))
        await farm.ready(3)
        before = {pod.name for pod in await farm.pods()}
        farm.connection.late = {"podcliques": 1.0}
        await farm.client.set_scale(PodClique, "s-0-a", 1, NS)
        await asyncio.sleep(0.5)
        await farm.client.set_scale(PodClique, "s-0-a", 3, NS)
        await asyncio.sleep(10)
        assert {pod.name for pod in await farm.pods()} == before
        farm.connection.mend()
        await farm.client.set_scale(PodClique, "s-0-a", 1, NS)
        await farm.ready(1)

    play(scene)


def test_replicas_of_a_group_are_not_taken_by_an_order_that_was_taken_back() -> None:
    async def scene(farm: Farm) -> None:
        group = {"name": "g", "cliqueNames": ["a"], "replicas": 3, "minAvailable": 1}
        await farm.apply(pcs(clique("a"), groups=[group]))
        await farm.ready(3)
        before = {pod.name for pod in await farm.pods()}
        farm.connection.late = {"podcliquescalinggroups": 1.0}
        await farm.client.set_scale(PodCliqueScalingGroup, "s-0-g", 1, NS)
        await asyncio.sleep(0.5)
        await farm.client.set_scale(PodCliqueScalingGroup, "s-0-g", 3, NS)
        await asyncio.sleep(10)
        assert {pod.name for pod in await farm.pods()} == before
        farm.connection.mend()
        await farm.client.set_scale(PodCliqueScalingGroup, "s-0-g", 1, NS)
        await farm.ready(1)

    play(scene)


async def _stuck(farm: Farm) -> tuple[Pod, str]:
    """Stop the node of a pod and delete the pod: nobody ends it."""
    pod = (await farm.pods())[0]
    await farm.cluster.kubelets.fail_node(pod.spec.node_name)
    farm.binder.closed.add(pod.spec.node_name)
    await farm.client.delete(Pod, pod.name, NS)
    return pod, pod.labels["grove.io/podclique-pod-index"]


def test_a_pod_that_does_not_end_on_a_dead_node_is_replaced_all_the_same() -> None:
    async def scene(farm: Farm) -> None:
        await farm.apply(pcs(clique("a", 2)))
        await farm.ready(2)
        pod, index = await _stuck(farm)
        await farm.ready(2)
        assert pod.name in {p.name for p in (await farm.client.list(Pod, NS)).items}
        assert index in {p.labels["grove.io/podclique-pod-index"] for p in await farm.pods()}
        assert (await farm.gang("s-0")).status.phase == "Running"

    play(scene)


def test_pods_on_their_way_out_are_not_what_scaling_in_gives_up() -> None:
    async def scene(farm: Farm) -> None:
        await farm.apply(pcs(clique("a", 4, min=1)))
        await farm.ready(4)
        await _stuck(farm)
        await farm.ready(4)
        before = {pod.name for pod in await farm.pods()}
        await farm.client.set_scale(PodClique, "s-0-a", 3, NS)
        await farm.ready(3)
        assert {pod.name for pod in await farm.pods()} < before

    play(scene)


def test_controllers_that_are_stopped_while_they_start_leave_nothing_behind() -> None:
    async def scene(farm: Farm) -> None:
        await farm.apply(pcs(clique("a", 2)))
        for turns in (0, 1, 2, 3, 5, 8, 13, 21, 34):
            for _ in range(turns):
                await asyncio.sleep(0)
            await farm.controllers.restart()
        await farm.ready(2)

    play(scene)
    # What was made and never started would be a warning now, and so a failure.
    gc.collect()
