"""Modelled kubelets, and what the control plane makes of what they report."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from tests.sim.twin import (
    all_pods,
    clique,
    in_one,
    play,
    pod_clique_set,
    racks,
    topology,
    until_ready,
)

from spinney.api.core import Pod
from spinney.api.grove import PodClique, PodCliqueScalingGroup
from spinney.api.meta import find_condition, is_true
from spinney.api.podgang import PodGang

if TYPE_CHECKING:
    from spinney.sim.cluster import SimulatedCluster

RACK = "topology.kubernetes.io/rack"
NODES = racks(8, per_rack=4)


def rack_of(cluster: SimulatedCluster, pod: Pod) -> str:
    return next(n.labels[RACK] for n in cluster.nodes if n.name == pod.spec.node_name)


def role(pod: Pod, name: str) -> bool:
    return pod.labels["grove.io/podclique"].endswith(f"-{name}")


def test_cliques_start_in_order() -> None:
    async def scene(cluster: SimulatedCluster) -> None:
        await cluster.client.create(
            pod_clique_set("s", [clique("router", 2, 0), clique("worker", 3, 1, "router")])
        )
        await until_ready(cluster, 5)
        ready = {"router": [], "worker": []}
        started = {"router": [], "worker": []}
        for pod in await all_pods(cluster):
            kind = "router" if role(pod, "router") else "worker"
            condition = find_condition(pod.status.conditions, "Ready")
            assert condition is not None
            ready[kind].append(condition.last_transition_time)
            running = pod.status.container_statuses[0].state.running
            assert running is not None
            started[kind].append(running.started_at)
        assert min(started["worker"]) >= max(ready["router"])

    play(scene, nodes=NODES)


def test_a_crashed_container_comes_back_and_is_counted() -> None:
    async def scene(cluster: SimulatedCluster) -> int:
        await cluster.client.create(pod_clique_set("s", [clique("w", 2, 1)]))
        await until_ready(cluster, 2)
        name = (await all_pods(cluster))[0].name
        cluster.kubelets.crash(f"default/{name}")
        await asyncio.sleep(1)
        crashed = await cluster.client.get(Pod, name, "default")
        assert not is_true(crashed.status.conditions, "Ready")
        await until_ready(cluster, 2)
        back = await cluster.client.get(Pod, name, "default")
        return back.status.container_statuses[0].restart_count

    assert play(scene, nodes=NODES) == 1


def test_a_deleted_pod_is_replaced_in_the_rack_of_the_others() -> None:
    async def scene(cluster: SimulatedCluster) -> None:
        await cluster.client.create(topology())
        await cluster.client.create(
            pod_clique_set("s", [clique("w", 3, 4)], topologyConstraint=in_one("rack"))
        )
        await until_ready(cluster, 3)
        before = await all_pods(cluster)
        rack = {rack_of(cluster, pod) for pod in before}
        assert len(rack) == 1
        await cluster.client.delete(Pod, before[0].name, "default")
        await asyncio.sleep(5)
        await until_ready(cluster, 3)
        after = await all_pods(cluster)
        assert before[0].metadata.uid not in {pod.metadata.uid for pod in after}
        assert {rack_of(cluster, pod) for pod in after} == rack

    play(scene, nodes=NODES)


def test_a_set_that_is_too_large_stays_wholly_pending_and_says_why() -> None:
    async def scene(cluster: SimulatedCluster) -> None:
        await cluster.client.create(topology())
        await cluster.client.create(
            pod_clique_set("big", [clique("w", 5, 8)], topologyConstraint=in_one("rack"))
        )
        await asyncio.sleep(30)
        pods = await all_pods(cluster)
        assert len(pods) == 5
        assert not any(pod.spec.node_name for pod in pods)
        gang = await cluster.client.get(PodGang, "big-0", "default")
        condition = find_condition(gang.status.conditions, "Scheduled")
        assert condition is not None
        assert condition.message == (
            "needs 5 pods with 8 nvidia.com/gpu each in one rack "
            "(40 nvidia.com/gpu); best domain r0 has 32 nvidia.com/gpu free, room for 4 of the 5; "
            "would fit in one zone instead"
        )

    play(scene, nodes=NODES)


def test_replicas_scaled_out_later_keep_to_the_rack_of_the_set() -> None:
    async def scene(cluster: SimulatedCluster) -> None:
        await cluster.client.create(topology())
        group: dict[str, Any] = {
            "name": "grp",
            "cliqueNames": ["lead", "work"],
            "replicas": 1,
            "minAvailable": 1,
        }
        await cluster.client.create(
            pod_clique_set(
                "s",
                [clique("lead", 1, 2), clique("work", 2, 2)],
                topologyConstraint=in_one("rack"),
                podCliqueScalingGroups=[group],
            )
        )
        await until_ready(cluster, 3)
        await cluster.client.set_scale(PodCliqueScalingGroup, "s-0-grp", 3, "default")
        await until_ready(cluster, 9)
        assert len({rack_of(cluster, pod) for pod in await all_pods(cluster)}) == 1

    play(scene, nodes=NODES)


def test_a_clique_grows_by_as_many_pods_as_fit() -> None:
    async def scene(cluster: SimulatedCluster) -> int:
        await cluster.client.create(pod_clique_set("s", [clique("w", 2, 8, minAvailable=2)]))
        await until_ready(cluster, 2)
        await cluster.client.set_scale(PodClique, "s-0-w", 10, "default")
        await asyncio.sleep(60)
        pods = await all_pods(cluster)
        assert len(pods) == 10
        left = [pod for pod in pods if not pod.spec.node_name]
        for pod in left:
            told = find_condition(pod.status.conditions, "PodScheduled")
            assert told is not None
            assert "0 of 64 nvidia.com/gpu free" in told.message
        return len(left)

    assert play(scene, nodes=NODES) == 2


def test_pods_of_a_node_that_fails_wait_for_it() -> None:
    async def scene(cluster: SimulatedCluster) -> None:
        await cluster.client.create(pod_clique_set("s", [clique("w", 2, 1)]))
        await until_ready(cluster, 2)
        node = (await all_pods(cluster))[0].spec.node_name
        await cluster.kubelets.fail_node(node)
        doomed = [pod for pod in await all_pods(cluster) if pod.spec.node_name == node]
        for pod in doomed:
            await cluster.client.delete(Pod, pod.name, "default")
        await asyncio.sleep(60)
        assert any(pod.deleting for pod in await all_pods(cluster))
        await cluster.kubelets.restore_node(node)
        await asyncio.sleep(5)
        await until_ready(cluster, 2)

    play(scene, nodes=NODES)
