"""NVLink domains: one for each set replica and group, referred to by GPU containers only."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tests.controllers.farm import NS, Farm, clique, pcs, play, typed

from spinney.api.computedomain import ComputeDomain
from spinney.api.core import Event, Pod
from spinney.api.grove import PodClique, PodCliqueSet
from spinney.api.grove_mnnvl import MNNVL_GROUP
from spinney.api.meta import find_condition
from spinney.controllers.actions import Change, Create, Delete
from spinney.controllers.computedomains.decide import (
    AVAILABLE,
    FINALIZER,
    condition,
    decide,
    taken,
)
from spinney.kube.errors import NotFoundError

GPU = {"limits": {"nvidia.com/gpu": 1}}


def role(name: str, group: str | None = None, *, gpu: bool = True) -> dict[str, Any]:
    made = clique(name)
    containers = [{"name": "main", "image": "w:1"}, {"name": "sidecar", "image": "s:1"}]
    if gpu:
        containers[0]["resources"] = GPU  # type: ignore[assignment]
    made["spec"]["podSpec"]["containers"] = containers
    if group is not None:
        made["annotations"] = {MNNVL_GROUP: group}
    return made


def service(
    *cliques: dict[str, Any], group: str | None = "train", replicas: int = 1, **more: Any
) -> dict[str, Any]:
    made = pcs(*cliques, replicas=replicas, **more)
    if group is not None:
        made["metadata"]["annotations"] = {MNNVL_GROUP: group}
    return made


async def settled(farm: Farm, pods: int) -> list[str]:
    await farm.ready(pods)
    await farm.quiet()
    return [d.name for d in (await farm.client.list(ComputeDomain, NS)).items]


def domain_of(pod: Pod) -> str | None:
    claims = {c["name"]: c["resourceClaimTemplateName"] for c in pod.spec.resource_claims}
    takes_part = [c.name for c in pod.spec.containers if c.resources.claims]
    assert takes_part == (["main"] if claims else [])
    return claims.get("mnnvl-claim")


def test_a_domain_is_made_for_each_replica_and_goes_with_it() -> None:
    async def scene(farm: Farm) -> None:
        await farm.apply(service(role("a"), role("b", gpu=False)))
        assert await settled(farm, 2) == ["s-0-train"]
        domain = await farm.client.get(ComputeDomain, "s-0-train", NS)
        assert domain.spec.num_nodes == 0
        assert domain.spec.channel.resource_claim_template.name == "s-0-train"
        assert domain.metadata.finalizers == [FINALIZER]
        assert domain.labels[MNNVL_GROUP] == "train"
        assert domain.labels["app.kubernetes.io/component"] == "pcs-computedomain"
        assert domain.metadata.owner_references[0].kind == "PodCliqueSet"
        (a,), (b,) = await farm.pods("s-0-a"), await farm.pods("s-0-b")
        assert (domain_of(a), domain_of(b)) == ("s-0-train", None)
        await farm.client.set_scale(PodCliqueSet, "s", 2, NS)
        assert await settled(farm, 4) == ["s-0-train", "s-1-train"]
        (a,) = await farm.pods("s-1-a")
        assert domain_of(a) == "s-1-train"
        await farm.client.set_scale(PodCliqueSet, "s", 1, NS)
        assert await settled(farm, 2) == ["s-0-train"]
        await farm.client.delete(PodCliqueSet, "s", NS)

        async def gone() -> bool:
            return not (await farm.client.list(ComputeDomain)).items and not await farm.pods()

        await farm.until(gone, "nothing left")

    play(scene)


def made_of(owner: PodCliqueSet) -> dict[str, ComputeDomain]:
    found = {}
    for action in decide(owner, {}, ()):
        assert isinstance(action, Create)
        assert isinstance(action.object, ComputeDomain)
        found[action.object.name] = action.object
    return found


def test_a_domain_stays_while_something_of_its_replica_is_there() -> None:
    owner = typed(service(role("a"), replicas=2))
    existing = made_of(owner)
    owner.spec.replicas = 1
    assert decide(owner, existing, {0, 1}) == []
    (gone,) = decide(owner, existing, {0})
    assert isinstance(gone, Delete)
    assert gone.object.name == "s-1-train"
    existing["s-1-train"].metadata.deletion_timestamp = "2026-01-01T00:00:00Z"
    assert decide(owner, existing, {0, 1}) == [], "released when nothing is there any more"
    (released,) = decide(owner, existing, {0})
    assert isinstance(released, Change)
    assert released.patch["metadata"]["finalizers"] == []


def test_a_domain_of_somebody_else_is_left_alone() -> None:
    owner = typed(service(role("a"), replicas=2))
    existing = made_of(owner)
    owner.spec.replicas = 0
    assert len(decide(owner, existing, ())) == 2
    for domain in existing.values():
        domain.metadata.owner_references[0].uid = "somebody"
    assert decide(owner, existing, ()) == []
    owner.spec.replicas = 2
    assert decide(owner, existing, ()) == []
    said = condition(2, taken(owner, existing))
    assert said.status == "False"
    assert "s-0-train" in said.message


def test_the_nearest_annotation_counts_and_none_opts_out() -> None:
    async def scene(farm: Farm) -> None:
        group = {
            "name": "g",
            "cliqueNames": ["in-g", "own", "out"],
            "replicas": 1,
            "annotations": {MNNVL_GROUP: "infer"},
        }
        made = service(
            role("top"),
            role("none", "none"),
            role("in-g"),
            role("own", "solo"),
            role("out", "none"),
            groups=[group],
        )
        await farm.apply(made)
        assert await settled(farm, 5) == ["s-0-infer", "s-0-solo", "s-0-train"]
        found = {p.labels["grove.io/podclique"]: domain_of(p) for p in await farm.pods()}
        assert found == {
            "s-0-top": "s-0-train",
            "s-0-none": None,
            "s-0-g-0-in-g": "s-0-infer",
            "s-0-g-0-own": "s-0-solo",
            "s-0-g-0-out": None,
        }
        template = (await farm.clique("s-0-g-0-own")).spec.pod_spec["resourceClaims"]
        assert template == [{"name": "mnnvl-claim", "resourceClaimTemplateName": "s-0-solo"}]

    play(scene)


@pytest.mark.parametrize(
    "made",
    [
        pytest.param(service(role("a"), group=None), id="no annotation"),
        pytest.param(service(role("a"), group="none"), id="opted out"),
        pytest.param(service(role("a", gpu=False)), id="no GPUs"),
    ],
)
def test_without_need_there_is_no_domain(made: dict[str, Any]) -> None:
    async def scene(farm: Farm) -> None:
        await farm.apply(made)
        assert await settled(farm, 1) == []
        (pod,) = await farm.pods()
        assert domain_of(pod) is None
        assert find_condition((await farm.set()).status.conditions, AVAILABLE) is None

    play(scene)


def test_a_domain_in_use_is_protected_and_one_that_was_forced_away_is_made_again() -> None:
    async def scene(farm: Farm) -> None:
        await farm.apply(service(role("a")))
        await settled(farm, 1)
        await farm.client.delete(ComputeDomain, "s-0-train", NS)
        await farm.quiet()
        old = await farm.client.get(ComputeDomain, "s-0-train", NS)
        assert old.deleting
        assert old.metadata.finalizers == [FINALIZER]
        forced = {"metadata": {"finalizers": []}}
        await farm.client.patch(ComputeDomain, "s-0-train", forced, NS)
        await farm.quiet()
        new = await farm.client.get(ComputeDomain, "s-0-train", NS)
        assert new.metadata.uid != old.metadata.uid
        assert new.metadata.finalizers == [FINALIZER]

    play(scene)


def test_a_domain_that_was_deleted_in_use_goes_with_its_set() -> None:
    async def scene(farm: Farm) -> None:
        await farm.apply(service(role("a")))
        await settled(farm, 1)
        await farm.client.delete(ComputeDomain, "s-0-train", NS)
        await farm.quiet()
        await farm.client.delete(PodCliqueSet, "s", NS)

        async def gone() -> bool:
            return not (await farm.client.list(ComputeDomain)).items

        await farm.until(gone, "no domain")

    play(scene)


def test_a_domain_that_outlived_its_set_is_released_when_it_is_deleted() -> None:
    async def scene(farm: Farm) -> None:
        await farm.apply(service(role("a")))
        await settled(farm, 1)
        await farm.client.delete(PodCliqueSet, "s", NS, propagation="Orphan")
        await farm.quiet()
        left = await farm.client.get(ComputeDomain, "s-0-train", NS)
        assert not left.deleting
        assert left.metadata.owner_references == []
        await farm.client.delete(PodClique, "s-0-a", NS)
        await farm.client.delete(ComputeDomain, "s-0-train", NS)
        await farm.quiet()
        with pytest.raises(NotFoundError):
            await farm.client.get(ComputeDomain, "s-0-train", NS)

    play(scene)


def test_at_rest_nothing_is_written_and_the_set_says_that_all_is_there() -> None:
    async def scene(farm: Farm) -> None:
        await farm.apply(service(role("a"), replicas=2))
        await settled(farm, 2)
        found = find_condition((await farm.set()).status.conditions, AVAILABLE)
        assert found is not None
        assert (found.status, found.message) == ("True", "all 2 compute domains exist")
        before = len(farm.writes())
        await asyncio.sleep(900)
        assert len(farm.writes()) == before

    play(scene)


def test_without_the_driver_the_set_says_what_to_install_and_goes_on_when_it_is() -> None:
    async def scene(farm: Farm) -> None:
        await farm.apply(service(role("a")))
        await farm.ready(1)
        await farm.quiet()
        found = find_condition((await farm.set()).status.conditions, AVAILABLE)
        assert found is not None
        assert (found.status, found.reason) == ("False", "KindNotServed")
        assert "install NVIDIA's DRA driver" in found.message
        warned = [e for e in (await farm.client.list(Event, NS)).items if e.type == "Warning"]
        assert [(e.reason, e.count) for e in warned] == [("KindNotServed", 1)]
        before = len(farm.writes())
        await asyncio.sleep(600)
        assert len(farm.writes()) == before
        farm.api.lacking.clear()

        async def made() -> bool:
            return bool((await farm.client.list(ComputeDomain, NS)).items)

        await farm.until(made, "the domain", within_s=120)

    play(scene, lacking=["computedomains"])
