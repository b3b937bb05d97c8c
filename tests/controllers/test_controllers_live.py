"""Controllers on the embedded API with modelled kubelets, in simulated time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.controllers.farm import NS, Farm, clique, pcs, play

from spinney.api import codec
from spinney.api.core import Event, Pod, Role, RoleBinding, Service
from spinney.api.grove import (
    ClusterTopologyBinding,
    PodClique,
    PodCliqueScalingGroup,
    PodCliqueSet,
)
from spinney.api.meta import find_condition, is_true
from spinney.api.podgang import PodGang
from spinney.controllers.pod_state import is_gated

if TYPE_CHECKING:
    from collections.abc import Sequence

GROUP = {"name": "g", "cliqueNames": ["b", "c"], "replicas": 2, "minAvailable": 1}
SERVICE = pcs(
    clique("a", 2),
    clique("b", 1),
    clique("c", 2),
    groups=[GROUP],
    startup="CliqueStartupTypeInOrder",
)
EVERYTHING = (PodClique, PodCliqueScalingGroup, PodGang, Pod, Service, Role, RoleBinding)


def on_delete(manifest: dict[str, Any]) -> dict[str, Any]:
    spec = manifest["spec"] | {"updateStrategy": {"type": "OnDelete"}}
    return manifest | {"spec": spec}


async def rolled_out(farm: Farm, manifest: dict[str, Any] = SERVICE, pods: int = 8) -> None:
    await farm.apply(manifest)
    await farm.ready(pods)
    await farm.quiet()


def test_a_set_becomes_ready_and_says_so_everywhere() -> None:
    async def scene(farm: Farm) -> None:
        await rolled_out(farm)
        found = await farm.set()
        status = found.status
        assert (status.replicas, status.available_replicas, status.updated_replicas) == (1, 1, 1)
        assert status.observed_generation == found.metadata.generation
        assert is_true(status.conditions, "Available")
        clique_status = (await farm.clique("s-0-a")).status
        assert (clique_status.replicas, clique_status.ready_replicas) == (2, 2)
        group = await farm.client.get(PodCliqueScalingGroup, "s-0-g", NS)
        assert (group.status.available_replicas, group.status.scheduled_replicas) == (2, 2)
        for name in ("s-0", "s-0-g-0"):
            gang = await farm.gang(name)
            assert gang.status.phase == "Running"
            assert is_true(gang.status.conditions, "Ready")
        assert await farm.names(PodGang) == ["s-0", "s-0-g-0"]

    play(scene)


def test_a_ready_pod_costs_at_most_four_writes_of_its_own_and_rest_costs_none() -> None:
    async def scene(farm: Farm) -> None:
        await rolled_out(farm)
        ours = [w for w in farm.writes("/pods") if not w.endswith("/status 200")]
        assert len(ours) == 3 * 8, "create, open the gate, bind"
        refused = [w for w in farm.writes() if not w.endswith(("200", "201"))]
        assert refused == []
        before = len(farm.writes())
        await farm.cluster.until(_after(farm, 600), within_s=700, what="ten quiet minutes")
        assert farm.writes()[before:] == []

    play(scene)


def _after(farm: Farm, seconds: float) -> Any:
    until = farm.cluster.clock.now() + seconds

    async def holds() -> bool:
        return farm.cluster.clock.now() >= until

    return holds


def test_a_restarted_controller_has_nothing_to_do() -> None:
    async def scene(farm: Farm) -> None:
        await rolled_out(farm)
        before, reconciles = len(farm.writes()), farm.controllers.reconciles()
        await farm.controllers.restart()
        await farm.cluster.until(_after(farm, 30), within_s=60, what="a while")
        assert farm.writes()[before:] == []
        assert farm.controllers.reconciles() > reconciles

    play(scene)


def test_pods_are_released_all_together_and_scaled_gangs_after_the_base() -> None:
    async def scene(farm: Farm) -> None:
        farm.binder.held = {"s-0-a"}
        await farm.apply(SERVICE)
        await farm.quiet()
        gated = {pod.labels["grove.io/podclique"] for pod in await farm.pods() if is_gated(pod)}
        assert gated == {"s-0-g-1-b", "s-0-g-1-c"}, "the base gang has no nodes for `a` yet"
        assert (await farm.gang("s-0")).status.phase == "Pending"
        farm.binder.release("s-0-a")
        await farm.ready(8)

    play(scene)


def test_nothing_is_released_while_a_pod_cannot_be_created() -> None:
    async def scene(farm: Farm) -> None:
        farm.quota.refused = {"s-0-b"}
        await farm.apply(pcs(clique("a", 2), clique("b")))

        async def holds() -> bool:
            found = (await farm.client.list(PodClique, NS)).items
            return any(c.name == "s-0-b" and c.status.last_errors for c in found)

        await farm.until(holds, "the refusal shows in the status")
        (error,) = (await farm.clique("s-0-b")).status.last_errors
        assert "the quota of s-0-b is used up" in error.description
        assert all(map(is_gated, await farm.pods()))

        async def made() -> bool:
            return "s-0" in await farm.names(PodGang)

        await farm.until(made, "the gang is there, though its pods are not")
        assert (await farm.gang("s-0")).spec.pod_groups[0].pod_references == []

        async def told() -> bool:
            found = find_condition((await farm.set()).status.conditions, "Available")
            want = "b of replica 0: 0 of 1 needed pods are ready; Pod "
            return found is not None and want in found.message and "used up" in found.message

        await farm.until(told, "the set names the role and the reason")
        await farm.cluster.until(_after(farm, 60), within_s=90, what="many tries")
        assert len(farm.writes("/podcliques/s-0-b/status")) == 1, "the same failure is told once"
        events = (await farm.client.list(Event, NS)).items
        assert len([e for e in events if e.reason == "PodCreateFailed"]) == 1
        farm.quota.refused = set()
        await farm.ready(3)
        await farm.quiet()
        assert (await farm.clique("s-0-b")).status.last_errors == []

    play(scene)


def test_a_deleted_pod_is_replaced_under_the_same_index() -> None:
    async def scene(farm: Farm) -> None:
        await rolled_out(farm)
        victim = next(p for p in await farm.pods("s-0-a") if p.spec.hostname == "s-0-a-0")
        await farm.client.delete(Pod, victim.name, NS)
        await farm.ready(8)
        found = {p.spec.hostname: p.name for p in await farm.pods("s-0-a")}
        assert sorted(found) == ["s-0-a-0", "s-0-a-1"]
        assert found["s-0-a-0"] != victim.name
        listed = {
            ref.name
            for group in (await farm.gang("s-0")).spec.pod_groups
            for ref in group.pod_references
        }
        assert found["s-0-a-0"] in listed
        assert victim.name not in listed

    play(scene)


def test_a_replacement_waits_for_its_parents_again() -> None:
    async def scene(farm: Farm) -> None:
        await rolled_out(farm)
        victim = (await farm.pods("s-0-g-0-b"))[0]
        await farm.client.delete(Pod, victim.name, NS)
        await farm.ready(8)
        wait = (await farm.pods("s-0-g-0-b"))[0].spec.init_containers[-1]
        assert wait.name == "grove-initc"
        assert wait.args == [f"--namespace={NS}", "--podcliques=s-0-a:2"]

    play(scene)


def test_a_pod_that_failed_for_good_is_replaced_and_the_event_says_why() -> None:
    async def scene(farm: Farm) -> None:
        await rolled_out(farm)
        victim = (await farm.pods("s-0-a"))[0]
        patch = {"status": {"phase": "Failed", "reason": "Evicted", "message": "disk is full"}}
        await farm.client.patch(Pod, victim.name, patch, NS, subresource="status")
        await farm.quiet()
        await farm.ready(8)
        events = (await farm.client.list(Event, NS)).items
        told = [e.message for e in events if e.reason == "PodDeleteSuccessful"]
        assert any("Evicted: disk is full" in text for text in told)

    play(scene)


def test_replicas_scale_out_and_in_and_nothing_of_the_removed_ones_stays() -> None:
    async def scene(farm: Farm) -> None:
        await rolled_out(farm)
        await farm.client.set_scale(PodCliqueSet, "s", 3, NS)
        await farm.ready(24)
        await farm.quiet()
        assert await farm.names(Service) == ["s-0", "s-1", "s-2"]
        assert (await farm.set()).status.available_replicas == 3
        kept = {pod.metadata.uid for pod in await farm.pods() if pod.name.startswith("s-0-")}
        await farm.client.set_scale(PodCliqueSet, "s", 1, NS)
        await farm.ready(8)
        await farm.quiet()
        assert {pod.metadata.uid for pod in await farm.pods()} == kept
        for kind in EVERYTHING:
            left = [n for n in await farm.names(kind) if n.startswith(("s-1", "s-2"))]
            assert left == [], kind
        assert (await farm.set()).status.replicas == 1

    play(scene)


def test_a_scaling_group_scales_by_whole_replicas_with_a_gang_each() -> None:
    async def scene(farm: Farm) -> None:
        await rolled_out(farm)
        await farm.client.set_scale(PodCliqueScalingGroup, "s-0-g", 4, NS)
        await farm.ready(14)
        await farm.quiet()
        assert await farm.names(PodGang) == ["s-0", "s-0-g-0", "s-0-g-1", "s-0-g-2"]
        await farm.client.set_scale(PodCliqueScalingGroup, "s-0-g", 1, NS)
        await farm.ready(5)
        await farm.quiet()
        assert await farm.names(PodGang) == ["s-0"]
        scale = await farm.client.get_scale(PodCliqueScalingGroup, "s-0-g", NS)
        assert scale.status is not None
        assert scale.status.replicas == 1
        assert "grove.io/podcliquescalinggroup=s-0-g" in scale.status.selector

    play(scene)


def test_a_clique_scales_to_zero_and_back() -> None:
    async def scene(farm: Farm) -> None:
        await rolled_out(farm)
        await farm.client.set_scale(PodClique, "s-0-a", 0, NS)
        await farm.ready(6)
        await farm.quiet()
        assert (await farm.set()).status.available_replicas == 1
        await farm.client.set_scale(PodClique, "s-0-a", 3, NS)
        await farm.ready(9)
        await farm.quiet()
        hosts = sorted(pod.spec.hostname for pod in await farm.pods("s-0-a"))
        assert hosts == ["s-0-a-0", "s-0-a-1", "s-0-a-2"]

    play(scene)


def test_a_changed_template_reaches_new_pods_and_the_status_counts_them() -> None:
    async def scene(farm: Farm) -> None:
        await rolled_out(farm, on_delete(SERVICE))
        found = await farm.set()
        found.spec.template.cliques[0].spec.pod_spec["containers"][0]["image"] = "worker:2"
        await farm.client.update(found)
        await farm.quiet()
        assert (await farm.clique("s-0-a")).status.updated_replicas == 0
        assert (await farm.set()).status.updated_replicas == 0
        for pod in await farm.pods("s-0-a"):
            assert pod.spec.containers[0].image == "worker:1"
            await farm.client.delete(Pod, pod.name, NS)
        await farm.quiet()
        await farm.ready(8)
        images = {pod.spec.containers[0].image for pod in await farm.pods("s-0-a")}
        assert images == {"worker:2"}
        assert (await farm.set()).status.updated_replicas == 1

    play(scene)


def test_a_deleted_set_leaves_nothing_and_may_be_made_again_at_once() -> None:
    async def scene(farm: Farm) -> None:
        await rolled_out(farm)
        await farm.client.delete(PodCliqueSet, "s", NS)

        async def gone() -> bool:
            left: Sequence[Any] = (await farm.client.list(PodCliqueSet, NS)).items
            return not left

        await farm.until(gone, "the set is gone")
        await farm.apply(SERVICE)
        await farm.ready(8)
        await farm.quiet()
        await farm.client.delete(PodCliqueSet, "s", NS)
        await farm.quiet()
        for kind in (PodCliqueSet, *EVERYTHING):
            assert (await farm.client.list(kind, NS)).items == [], kind

    play(scene)


def test_a_stray_pod_with_the_right_labels_is_not_of_the_gang() -> None:
    async def scene(farm: Farm) -> None:
        farm.quota.refused = {"s-0-b"}
        await farm.apply(pcs(clique("a"), clique("b")))
        await farm.quiet(rest_s=1)
        labels = dict((await farm.pods("s-0-a"))[0].labels) | {"grove.io/podclique": "s-0-b"}
        farm.quota.refused = set()
        stray = {
            "metadata": {"name": "stray", "namespace": NS, "labels": labels},
            "spec": {"containers": [{"name": "m", "image": "i"}], "schedulerName": "none"},
        }
        await farm.client.create(stray, resource=Pod.RESOURCE)
        farm.quota.refused = {"s-0-b"}
        await farm.cluster.until(_after(farm, 20), within_s=30, what="a while")
        assert all(map(is_gated, await farm.pods("s-0-a"))), "`b` has no pod of its own yet"

    play(scene)


def test_a_lost_part_is_made_again() -> None:
    async def scene(farm: Farm) -> None:
        await rolled_out(farm)
        await farm.client.delete(Service, "s-0", NS)
        await farm.client.delete(PodGang, "s-0", NS)
        await farm.client.delete(PodClique, "s-0-g-1-c", NS)
        await farm.quiet()
        await farm.ready(8)
        assert await farm.names(Service) == ["s-0"]
        assert (await farm.gang("s-0")).status.phase == "Running"

    play(scene)


def test_constraints_follow_the_binding() -> None:
    async def scene(farm: Farm) -> None:
        rack = {"topologyName": "cluster", "pack": {"required": "rack"}}
        binding = {
            "metadata": {"name": "cluster"},
            "spec": {"levels": [{"domain": "rack", "key": "topology.kubernetes.io/rack"}]},
        }
        made = codec.from_dict(ClusterTopologyBinding, binding)
        await farm.client.create(made)
        await rolled_out(farm, pcs(clique("a", 2), topologyConstraint=rack), 2)
        constraint = (await farm.gang("s-0")).spec.topology_constraint
        assert constraint is not None
        assert constraint.pack_constraint is not None
        assert constraint.pack_constraint.required == "topology.kubernetes.io/rack"
        await farm.client.delete(ClusterTopologyBinding, "cluster")
        await farm.client.set_scale(PodCliqueSet, "s", 2, NS)
        await farm.ready(4)
        await farm.quiet()
        levels = find_condition((await farm.set()).status.conditions, "TopologyLevelsUnavailable")
        assert levels is not None
        assert levels.reason == "ClusterTopologyNotFound"
        assert (await farm.gang("s-0")).spec.topology_constraint == constraint
        assert (await farm.gang("s-1")).spec.topology_constraint is None
        await farm.client.create(made)
        await farm.quiet()
        assert (await farm.gang("s-1")).spec.topology_constraint == constraint

    play(scene)


def test_one_seed_gives_one_history() -> None:
    histories: list[bytes] = []

    async def scene(farm: Farm) -> None:
        await rolled_out(farm)
        histories.append(farm.cluster.history())

    for seed in (5, 5, 6):
        play(scene, seed=seed)
    assert histories[0] == histories[1]
    assert histories[0] != histories[2]
