"""Updates whose turn comes later, and what each part says of its own: RU13 to RU21, OD2 to OD9."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from tests.controllers.farm import NS, Farm, clique, pcs, play
from tests.controllers.scenarios import stage as stages
from tests.controllers.test_update_live import (
    Tracker,
    edit,
    images,
    service,
    started,
    strategy,
    until_reason,
)

from spinney.api import names
from spinney.api.core import Pod
from spinney.api.grove import PodClique, PodCliqueScalingGroup, PodCliqueSet
from spinney.api.meta import ObjectMeta, Status, find_condition
from spinney.controllers.conditions import last_errors
from spinney.kube.errors import ConflictError

if TYPE_CHECKING:
    from tests.controllers.scenarios.stage import Stage

IMAGE = "worker:2"


def image(pod: Pod) -> str:
    return pod.spec.containers[0].image


async def updating(farm: Farm, replica: int) -> None:
    async def holds() -> bool:
        progress = (await farm.set()).status.update_progress
        at = progress.currently_updating if progress is not None else []
        return [found.replica_index for found in at] == [replica]

    await farm.until(holds, f"replica {replica} is updated")


@pytest.mark.parametrize(
    ("kind", "name", "counts", "part", "left"),
    [
        pytest.param(PodCliqueScalingGroup, "s-1-g", (2, 3), "s-1-g", 9, id="RU15"),
        pytest.param(PodCliqueScalingGroup, "s-1-g", (3, 2), "s-1-g", 6, id="RU17"),
        pytest.param(PodClique, "s-1-a", (2, 3), "s-1-a", 3, id="RU19"),
        pytest.param(PodClique, "s-1-a", (3, 2), "s-1-a", 2, id="RU21"),
    ],
)
def test_what_is_scaled_before_its_turn_is_updated_once(
    kind: type[Any], name: str, counts: tuple[int, int], part: str, left: int
) -> None:
    async def scene(farm: Farm) -> None:
        await started(farm, service(replicas=2), 16)
        await farm.client.set_scale(kind, name, counts[0], NS)
        await farm.quiet()
        farm.binder.held = {"s-0-a"}
        await edit(farm, "a", "b", "c")
        await updating(farm, 0)
        await farm.client.set_scale(kind, name, counts[1], NS)
        await farm.quiet()
        before = [
            pod for pod in await farm.pods() if pod.labels["grove.io/podclique"].startswith(part)
        ]
        assert len(before) == left
        made_anew = {pod.metadata.uid for pod in before if image(pod) == IMAGE}
        if kind is PodCliqueScalingGroup and counts[1] > counts[0]:
            assert len(made_anew) == 3, "a replica that is made is of the new revision"
        else:
            assert made_anew == set(), "a clique whose turn has not come has pods of one revision"
        farm.binder.release("s-0-a")
        await until_reason(farm, "UpdateComplete")
        await farm.quiet()
        after = [
            pod for pod in await farm.pods() if pod.labels["grove.io/podclique"].startswith(part)
        ]
        assert {image(pod) for pod in after} == {IMAGE}
        assert len(after) == left
        assert made_anew <= {pod.metadata.uid for pod in after}, "none was rolled twice"

    play(scene)


@pytest.mark.parametrize((), [pytest.param(id="RU13")])
def test_a_replica_that_leaves_after_its_update_leaves_the_others_alone() -> None:
    async def scene(farm: Farm) -> None:
        await started(farm, service(replicas=2), 16)
        await edit(farm, "a", "b", "c")
        await updating(farm, 1)
        await until_reason(farm, "UpdateComplete")
        kept = {
            p.metadata.uid for p in await farm.pods() if p.labels["grove.io/podclique"][2] == "0"
        }
        await farm.client.set_scale(PodCliqueSet, "s", 1, NS)
        await farm.ready(8)
        await farm.quiet()
        assert {pod.metadata.uid for pod in await farm.pods()} == kept
        status = (await farm.set()).status
        assert (status.updated_replicas, status.available_replicas) == (1, 1)
        found = find_condition(status.conditions, "Progressing")
        assert found is not None
        assert found.reason == "UpdateComplete"

    play(scene)


@pytest.mark.parametrize((), [pytest.param(id="RU10")])
def test_without_room_exactly_one_pod_is_missing(  # The rest is in test_update_live.
) -> None:
    async def scene(farm: Farm) -> None:
        await started(farm, service(), 8)
        farm.binder.held = {"s-0-a", "s-0-g-0-b", "s-0-g-1-b"}
        await edit(farm, "a")
        await farm.quiet()
        pending = [pod for pod in await farm.pods() if not pod.spec.node_name]
        assert [pod.labels["grove.io/podclique"] for pod in pending] == ["s-0-a"]
        assert len(await farm.pods()) == 8
        farm.binder.release("s-0-a")
        await until_reason(farm, "UpdateComplete")

    play(scene)


@pytest.mark.parametrize(
    ("roles", "victims"),
    [
        pytest.param("a", ["s-0-a"], id="OD2"),
        pytest.param("c", ["s-0-g-1-c"], id="OD5"),
        pytest.param("abc", ["s-0-a", "s-0-g-0-b", "s-0-g-1-c"], id="OD6"),
    ],
)
def test_on_delete_a_deleted_pod_comes_back_updated_and_is_counted(
    roles: str, victims: list[str]
) -> None:
    async def scene(farm: Farm) -> None:
        await started(farm, service("OnDelete"), 8)
        old = {pod.metadata.uid for pod in await farm.pods()}
        await edit(farm, *roles)
        await until_reason(farm, "WaitsForDeletion")
        await farm.quiet()
        assert {pod.metadata.uid for pod in await farm.pods()} == old, "OD1, OD4: nothing goes"
        for name in victims:
            await farm.client.delete(Pod, (await farm.pods(name))[0].name, NS)
        await farm.ready(8)
        await farm.quiet()
        new = [pod for pod in await farm.pods() if pod.metadata.uid not in old]
        assert sorted(pod.labels["grove.io/podclique"] for pod in new) == victims
        assert {image(pod) for pod in new} == {IMAGE}
        for name in victims:
            status = (await farm.clique(name)).status
            assert status.updated_replicas == 1
            if status.update_progress is not None:
                assert status.update_progress.update_ended_at is not None

    play(scene)


@pytest.mark.parametrize(
    ("roles", "part"), [pytest.param("a", "s-0-a", id="OD1"), pytest.param("b", "s-0-g", id="OD4")]
)
def test_on_delete_a_part_says_that_its_update_has_ended(roles: str, part: str) -> None:
    async def scene(farm: Farm) -> None:
        await started(farm, service("OnDelete"), 8)
        await edit(farm, *roles)
        await farm.quiet()
        kind = PodClique if part == "s-0-a" else PodCliqueScalingGroup
        found = (await farm.client.get(kind, part, NS)).status.update_progress
        assert found is not None
        assert found.update_started_at == found.update_ended_at
        assert await images(farm) == {"worker:1": 8}

    play(scene)


@pytest.mark.parametrize((), [pytest.param(id="OD3")])
def test_on_delete_scaling_in_takes_the_outdated_pod() -> None:
    async def scene(farm: Farm) -> None:
        await started(farm, service("OnDelete"), 8)
        await edit(farm, "a")
        await farm.quiet()
        await farm.client.delete(Pod, (await farm.pods("s-0-a"))[0].name, NS)
        await farm.ready(8)
        await farm.quiet()
        assert await images(farm, "s-0-a") == {"worker:1": 1, IMAGE: 1}
        await farm.client.set_scale(PodClique, "s-0-a", 1, NS)
        await farm.ready(7)
        assert await images(farm, "s-0-a") == {IMAGE: 1}

    play(scene)


@pytest.mark.parametrize((), [pytest.param(id="OD8")])
def test_on_delete_an_affinity_moves_the_pods_of_a_failed_node_only() -> None:
    async def scene(stage: Stage) -> None:
        made = stages.strict()
        made["spec"]["updateStrategy"] = {"type": "OnDelete"}
        await stage.apply(made)
        await stage.ready(10)
        await stage.settle()
        old = stage.uids()
        victim = stage.pods("s-0-front")[0]
        failed = victim.spec.node_name
        away = {"key": "kubernetes.io/hostname", "operator": "NotIn", "values": [failed]}
        affinity = {
            "nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": {
                    "nodeSelectorTerms": [{"matchExpressions": [away]}]
                }
            }
        }
        found = await stage.set()
        for role in found.spec.template.cliques:
            role.spec.pod_spec["affinity"] = affinity
        await stage.client.update(found)
        await stage.settle()
        assert stage.uids() == old
        await stage.client.delete(Pod, victim.name, NS)
        await stage.ready(10)
        await stage.settle()
        assert len(stage.uids() & old) == 9
        (new,) = [pod for pod in stage.pods() if pod.metadata.uid not in old]
        assert new.spec.node_name != failed
        assert not any(pod.spec.node_name == failed for pod in stage.pods())

    stages.play(scene, 11)


@pytest.mark.parametrize((), [pytest.param(id="OD9")])
def test_a_strategy_switched_there_and_back_rolls_only_in_between() -> None:
    async def scene(farm: Farm) -> None:
        await started(farm, service("OnDelete"), 8)
        await edit(farm, "a")
        await farm.quiet()
        assert await images(farm, "s-0-a") == {"worker:1": 2}
        waiting = (await farm.clique("s-0-a")).status.update_progress
        await strategy(farm, type="RollingRecreate")
        await until_reason(farm, "UpdateComplete")
        await farm.quiet()
        assert await images(farm, "s-0-a") == {IMAGE: 2}
        rolled = (await farm.clique("s-0-a")).status.update_progress
        assert waiting is not None
        assert rolled is not None
        assert rolled.ready_pods_selected_to_update is not None
        assert (rolled.update_started_at or "") > (waiting.update_ended_at or "")
        assert (rolled.update_ended_at or "") > (rolled.update_started_at or "")
        await strategy(farm, type="OnDelete")
        await edit(farm, "a", image="worker:3")
        await farm.quiet()
        assert await images(farm, "s-0-a") == {IMAGE: 2}

    play(scene)


def test_a_clique_says_how_far_its_update_is() -> None:
    async def scene(farm: Farm) -> None:
        await started(farm, service(), 8)
        assert (await farm.clique("s-0-a")).status.update_progress is None
        before = {pod.name for pod in await farm.pods("s-0-a")}
        farm.binder.held = {"s-0-a"}
        await edit(farm, "a")
        await farm.quiet()
        found = await farm.clique("s-0-a")
        at = found.status.update_progress
        assert at is not None
        assert at.update_ended_at is None
        target = (await farm.set()).status.current_generation_hash
        assert at.pod_clique_set_generation_hash == target
        assert at.pod_template_hash == found.labels[names.POD_TEMPLATE_HASH]
        assert at.ready_pods_selected_to_update is not None
        assert at.ready_pods_selected_to_update.current in before
        farm.binder.release("s-0-a")
        await until_reason(farm, "UpdateComplete")
        await farm.quiet()
        found = await farm.clique("s-0-a")
        at = found.status.update_progress
        assert at is not None
        assert at.update_ended_at is not None
        assert found.status.current_pod_clique_set_generation_hash == target
        picked = at.ready_pods_selected_to_update
        assert picked is not None
        assert {picked.current, *picked.completed} == before

    play(scene)


def test_a_group_says_how_far_its_update_is() -> None:
    async def progress(farm: Farm) -> Any:
        group = await farm.client.get(PodCliqueScalingGroup, "s-0-g", NS)
        return group.status.update_progress

    async def scene(farm: Farm) -> None:
        await started(farm, service(), 8)
        assert await progress(farm) is None
        farm.binder.held = {"s-0-g-0-b", "s-0-g-1-b"}
        await edit(farm, "b", "c")
        await farm.quiet()
        at = await progress(farm)
        assert at.update_ended_at is None
        assert (at.updated_pod_cliques_count, at.total_pod_cliques_count) == (2, 4)
        selected = at.ready_replica_indices_selected_to_update
        assert (selected.current, selected.completed) == (0, [])
        farm.binder.release("s-0-g-0-b")
        await farm.quiet()
        at = await progress(farm)
        assert at.update_ended_at is None, "the last replica is at work"
        selected = at.ready_replica_indices_selected_to_update
        assert (selected.current, selected.completed) == (1, [0])
        farm.binder.release("s-0-g-1-b")
        await until_reason(farm, "UpdateComplete")
        await farm.quiet()
        at = await progress(farm)
        assert at.update_ended_at is not None
        assert at.updated_pod_cliques_count == 4

    play(scene)


@pytest.mark.parametrize("kind", ["RollingRecreate", "OnDelete", "Coherent"])
def test_a_label_that_leaves_the_template_leaves_the_pods(kind: str) -> None:
    async def scene(farm: Farm) -> None:
        made = service(kind)
        for role in made["spec"]["template"]["cliques"]:
            role["labels"], role["annotations"] = {"stage": "b", "team": "x"}, {"note": "y"}
        await started(farm, made, 8)
        found = await farm.set()
        for template in found.spec.template.cliques:
            template.labels, template.annotations = {"team": "x"}, {}
        await farm.client.update(found)
        await farm.quiet()
        for pod in await farm.pods():
            await farm.client.delete(Pod, pod.name, NS)
        await farm.ready(8)
        await farm.quiet()
        pods = await farm.pods()
        assert {pod.labels.get("stage") for pod in pods} == {None}
        assert {pod.labels["team"] for pod in pods} == {"x"}
        assert {pod.metadata.annotations.get("note") for pod in pods} == {None}
        assert all(names.REVISION in pod.labels for pod in pods)

    play(scene)


@pytest.mark.parametrize("kind", ["RollingRecreate", "OnDelete", "Coherent"])
def test_all_pods_of_a_revision_say_so_by_one_label_whatever_their_role(kind: str) -> None:
    async def labels(farm: Farm) -> set[tuple[str, str]]:
        return {(image(p), p.labels["spinney.dev/revision"]) for p in await farm.pods()}

    async def scene(farm: Farm) -> None:
        await started(farm, service(kind), 8)
        first = (await farm.set()).status.current_generation_hash
        assert await labels(farm) == {("worker:1", first)}
        await edit(farm, "a", "b", "c")
        await farm.quiet()
        if kind == "OnDelete":
            for pod in await farm.pods():
                await farm.client.delete(Pod, pod.name, NS)
                await farm.ready(8)
                assert len({label for _, label in await labels(farm)}) <= 2
        await farm.quiet()
        second = (await farm.set()).status.current_generation_hash
        assert second != first
        assert await labels(farm) == {(IMAGE, second)}

    play(scene)


def test_a_coherent_update_is_told_by_its_parts_too() -> None:
    async def scene(farm: Farm) -> None:
        made = pcs(clique("p", 2), clique("d", 4))
        made["spec"]["updateStrategy"] = {"type": "Coherent"}
        await started(farm, made, 6)
        seen: set[str | None] = set()

        def note(_: list[Pod]) -> None:
            pass

        await edit(farm, "p", "d")
        async with Tracker(farm, note):
            await until_reason(farm, "UpdateComplete")
        await farm.quiet()
        for name in ("s-0-p", "s-0-d"):
            found = (await farm.clique(name)).status.update_progress
            assert found is not None
            seen.add(found.update_ended_at)
            assert found.pod_clique_set_generation_hash
        assert None not in seen

    play(scene)


def test_an_error_keeps_its_time_and_a_lost_race_is_none() -> None:
    old = last_errors([], "ERR_X", [ValueError("a")], "10:00")
    assert [(e.code, e.description, e.observed_at) for e in old] == [("ERR_X", "a", "10:00")]
    race = ConflictError(Status(message="somebody wrote first"))
    new = last_errors(old, "ERR_X", [ValueError("a"), ValueError("b"), race], "10:05")
    assert [(e.description, e.observed_at) for e in new] == [("a", "10:00"), ("b", "10:05")]


@pytest.mark.parametrize("level", ["set", "group"])
def test_a_failure_is_in_the_last_errors_until_it_is_over(level: str) -> None:
    name = "s-0-a" if level == "set" else "s-0-g-0-b"

    async def errors(farm: Farm) -> list[tuple[str, str]]:
        if level == "set":
            found = (await farm.set()).status.last_errors
        else:
            groups = (await farm.client.list(PodCliqueScalingGroup, NS)).items
            found = [error for group in groups for error in group.status.last_errors]
        return [(error.code, error.description) for error in found]

    async def scene(farm: Farm) -> None:
        await farm.client.create(PodClique(metadata=ObjectMeta(name=name, namespace=NS)))
        await farm.apply(service())

        async def failed() -> bool:
            return bool(await errors(farm))

        await farm.until(failed, "an error")
        ((code, text),) = await errors(farm)
        assert code == ("ERR_SYNC_PARTS" if level == "set" else "ERR_SYNC_PODCLIQUES")
        assert name in text
        assert "belongs to somebody else" in text
        if level == "set":
            said = find_condition((await farm.set()).status.conditions, "Available")
            assert said is not None
            assert "belongs to somebody else" in said.message
        await farm.client.delete(PodClique, name, NS)

        async def over() -> bool:
            return not await errors(farm)

        await farm.until(over, "no error", within_s=120)
        await farm.ready(8)

    play(scene)
