"""Shared resource claims: what is made, who owns it, which pods refer to it, and when it goes."""

from __future__ import annotations

import asyncio
import copy
import itertools
import random
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.controllers.farm import NS, Farm, clique, pcs, play, typed

from spinney.api.core import Event, Namespace, Pod
from spinney.api.devices import (
    ResourceClaim,
    ResourceClaimTemplate,
    ResourceClaimTemplateSpec,
)
from spinney.api.grove import PodClique, PodCliqueScalingGroup, PodCliqueSet
from spinney.api.meta import ObjectMeta, find_condition
from spinney.controllers.actions import Create, Delete
from spinney.controllers.podclique.pod import build_pod
from spinney.controllers.podcliqueset import decide as sets
from spinney.controllers.resourceclaims import decide as claims
from spinney.controllers.resourceclaims import refs
from spinney.controllers.scalinggroup import decide as groups
from spinney.controllers.world import World
from spinney.kube.controller import Runtime
from spinney.kube.errors import ForbiddenError, InvalidError, NotFoundError

if TYPE_CHECKING:
    from collections.abc import Sequence


def template(name: str, device: str = "gpu") -> dict[str, Any]:
    requests = [{"name": "r", "exactly": {"deviceClassName": device}}]
    return {"name": name, "templateSpec": {"spec": {"devices": {"requests": requests}}}}


def share(name: str, scope: str, namespace: str = "", **filters: list[str]) -> dict[str, Any]:
    made: dict[str, Any] = {"name": name, "scope": scope}
    if namespace:
        made["namespace"] = namespace
    if filters:
        made["filter"] = filters
    return made


INDEX = "grove.io/podclique-pod-index"
INTERNAL = ["set-all", "set-rep", "grp-all", "grp-rep", "mem-all", "solo-all", "solo-rep", "few"]


def hierarchy() -> dict[str, Any]:
    """Sharing at each level, in both scopes, filtered and not, from templates here and there."""
    role = clique("solo")
    role["resourceSharing"] = [share("solo-all", "AllReplicas"), share("solo-rep", "PerReplica")]
    member = clique("work")
    member["resourceSharing"] = [share("mem-all", "AllReplicas")]
    group = {
        "name": "g",
        "cliqueNames": ["lead", "work"],
        "replicas": 2,
        "minAvailable": 1,
        "resourceSharing": [
            share("grp-all", "AllReplicas"),
            share("grp-rep", "PerReplica", childCliqueNames=["work"]),
        ],
    }
    return pcs(
        role,
        clique("lead"),
        member,
        groups=[group],
        resourceClaimTemplates=[template(name) for name in INTERNAL],
        resourceSharing=[
            share("set-all", "AllReplicas"),
            share("set-rep", "PerReplica", childScalingGroupNames=["g"]),
            share("few", "PerReplica", childCliqueNames=["solo", "lead"]),
            share("here", "AllReplicas", childCliqueNames=["solo"]),
            share("far", "AllReplicas", namespace="shared", childCliqueNames=["solo"]),
        ],
    )


async def external(farm: Farm, name: str, namespace: str, device: str) -> None:
    spec = template(name, device)["templateSpec"]["spec"]
    meta = {"labels": {"team": "infra", "app.kubernetes.io/part-of": "other"}}
    made = ResourceClaimTemplate(
        metadata=ObjectMeta(name=name, namespace=namespace),
        spec=ResourceClaimTemplateSpec(metadata=meta, spec=spec),
    )
    await farm.client.create(made)


async def started(farm: Farm) -> None:
    await farm.client.create(Namespace(metadata=ObjectMeta(name="shared")))
    await external(farm, "here", NS, "nic")
    await external(farm, "far", "shared", "disk")
    await farm.apply(hierarchy())
    await farm.ready(5)
    await farm.quiet()


async def settled(farm: Farm, pods: int) -> list[str]:
    await farm.ready(pods)
    await farm.quiet()
    return await farm.names(ResourceClaim)


BASE = [
    "s-0-few",
    "s-0-g-0-grp-rep",
    "s-0-g-0-work-all-mem-all",
    "s-0-g-1-grp-rep",
    "s-0-g-1-work-all-mem-all",
    "s-0-g-all-grp-all",
    "s-0-set-rep",
    "s-0-solo-0-solo-rep",
    "s-0-solo-all-solo-all",
    "s-all-far",
    "s-all-here",
    "s-all-set-all",
]


def test_RS1_claims_follow_every_scaling_and_nothing_stays() -> None:  # noqa: N802
    async def scene(farm: Farm) -> None:
        await started(farm)
        assert await farm.names(ResourceClaim) == BASE
        await farm.client.set_scale(PodCliqueScalingGroup, "s-0-g", 1, NS)
        assert await settled(farm, 3) == [n for n in BASE if "g-1" not in n]
        await farm.client.set_scale(PodCliqueScalingGroup, "s-0-g", 3, NS)
        grown = await settled(farm, 7)
        assert len(grown) == 14
        assert {"s-0-g-2-grp-rep", "s-0-g-2-work-all-mem-all"} <= set(grown)
        await farm.client.set_scale(PodClique, "s-0-solo", 2, NS)
        assert "s-0-solo-1-solo-rep" in await settled(farm, 8)
        await farm.client.set_scale(PodClique, "s-0-solo", 1, NS)
        assert await settled(farm, 7) == grown
        await farm.client.set_scale(PodCliqueSet, "s", 2, NS)
        assert len(await settled(farm, 12)) == 14 + 9
        await farm.client.set_scale(PodCliqueSet, "s", 1, NS)
        assert await settled(farm, 7) == grown
        await farm.client.delete(PodCliqueSet, "s", NS)

        async def gone() -> bool:
            return not (await farm.client.list(ResourceClaim)).items

        await farm.until(gone, "no claim")

    play(scene)


def test_a_claim_is_owned_by_its_level_and_says_what_its_template_says() -> None:
    async def scene(farm: Farm) -> None:
        await started(farm)
        found = {c.name: c for c in (await farm.client.list(ResourceClaim, NS)).items}
        owners = {
            "s-all-set-all": "PodCliqueSet",
            "s-0-g-all-grp-all": "PodCliqueScalingGroup",
            "s-0-g-1-grp-rep": "PodCliqueScalingGroup",
            "s-0-g-1-work-all-mem-all": "PodClique",
            "s-0-solo-0-solo-rep": "PodClique",
        }
        for name, kind in owners.items():
            (owner,) = found[name].metadata.owner_references
            assert (owner.kind, owner.controller) == (kind, True), name
        own = {
            "app.kubernetes.io/managed-by": "grove-operator",
            "app.kubernetes.io/part-of": "s",
            "app.kubernetes.io/component": "resource-claim",
        }
        for name, claim in found.items():
            assert own.items() <= claim.labels.items(), name
            assert claim.labels["app.kubernetes.io/name"] == name
        assert found["s-all-far"].labels["team"] == "infra"
        device = found["s-all-far"].spec.devices["requests"][0]["exactly"]["deviceClassName"]
        assert device == "disk"

    play(scene)


def claims_of(pod: Pod) -> list[str]:
    by_entry = {c["name"]: c["resourceClaimName"] for c in pod.spec.resource_claims}
    for container in [*pod.spec.containers, *pod.spec.init_containers]:
        assert [by_entry[c["name"]] for c in container.resources.claims] == list(by_entry.values())
    return sorted(by_entry.values())


def test_every_container_of_a_pod_takes_part_in_what_its_filters_let_it() -> None:
    async def scene(farm: Farm) -> None:
        await started(farm)
        (solo,), (lead,) = await farm.pods("s-0-solo"), await farm.pods("s-0-g-1-lead")
        (work,) = await farm.pods("s-0-g-1-work")
        assert claims_of(solo) == [
            "s-0-few",
            "s-0-solo-0-solo-rep",
            "s-0-solo-all-solo-all",
            "s-all-far",
            "s-all-here",
            "s-all-set-all",
        ]
        assert claims_of(lead) == ["s-0-few", "s-0-g-all-grp-all", "s-0-set-rep", "s-all-set-all"]
        assert claims_of(work) == [
            "s-0-g-1-grp-rep",
            "s-0-g-1-work-all-mem-all",
            "s-0-g-all-grp-all",
            "s-0-set-rep",
            "s-all-set-all",
        ]
        assert not any(key in solo.metadata.annotations for key in (refs.PER_POD, refs.SHARED))

    play(scene)


def test_init_containers_and_own_claims_of_the_user_are_kept() -> None:
    spec = {
        "initContainers": [{"name": "prepare"}],
        "containers": [{"name": "main", "resources": {"claims": [{"name": "mine"}]}}],
        "resourceClaims": [{"name": "mine", "resourceClaimName": "my-claim"}],
    }
    made = refs.with_claims(spec, [refs.shared_reference("s-all-x")])
    assert [c["name"] for c in made["resourceClaims"]] == ["mine", "s-all-x"]
    assert made["initContainers"][0]["resources"]["claims"] == [{"name": "s-all-x"}]
    assert made["containers"][0]["resources"]["claims"] == [{"name": "mine"}, {"name": "s-all-x"}]
    assert refs.with_claims(made, [refs.shared_reference("s-all-x")]) == made
    assert len(spec["resourceClaims"]) == 1


@pytest.mark.parametrize("claim", ["a" * 64, "s-all-with.dot"], ids=["too long", "with a dot"])
def test_a_claim_whose_name_is_no_label_has_another_name_in_the_pod(claim: str) -> None:
    ref = refs.shared_reference(claim)
    assert ref.claim == claim
    assert len(ref.entry) <= 63
    assert "." not in ref.entry


def test_no_pod_is_made_before_the_claim_it_shares_and_the_set_says_what_is_missing() -> None:
    async def scene(farm: Farm) -> None:
        made = pcs(clique("a"), clique("b"))
        made["spec"]["template"]["cliques"][0]["resourceSharing"] = [share("late", "PerReplica")]
        await farm.apply(made)
        await farm.quiet()
        assert [p.labels["grove.io/podclique"] for p in await farm.pods()] == ["s-0-b"]
        found = find_condition((await farm.set()).status.conditions, claims.AVAILABLE)
        assert found is not None
        assert (found.status, found.reason) == ("False", "ClaimsMissing")
        assert "ResourceClaimTemplate default/late, which does not exist" in found.message
        (error,) = (await farm.clique("s-0-a")).status.last_errors
        assert "s-0-a-0-late" in error.description
        line = find_condition((await farm.set()).status.conditions, "Available")
        assert line is not None
        assert line.message.startswith("0 of 1 replicas serve: a of replica 0: 0 of 1 needed pods")
        assert "pods wait for resource claims that are missing: s-0-a-0-late" in line.message
        await external(farm, "late", NS, "gpu")
        await farm.ready(2)
        await farm.quiet()
        found = find_condition((await farm.set()).status.conditions, claims.AVAILABLE)
        assert found is not None
        assert (found.status, found.message) == ("True", "all 1 shared claims exist")
        assert (await farm.clique("s-0-a")).status.last_errors == []

    play(scene)


def test_where_claims_are_not_served_the_set_says_so_and_others_run() -> None:
    async def scene(farm: Farm) -> None:
        made = pcs(clique("a"), name="t", resourceSharing=[share("x", "AllReplicas")])
        made["spec"]["template"]["resourceClaimTemplates"] = [template("x")]
        await farm.apply(made)
        await farm.apply(pcs(clique("a")))
        await farm.ready(1)
        await farm.quiet()
        found = find_condition((await farm.set("t")).status.conditions, claims.AVAILABLE)
        assert found is not None
        assert found.reason == "KindNotServed"
        assert "resource.k8s.io/v1" in found.message
        before = len(farm.writes())
        await asyncio.sleep(600)
        assert len(farm.writes()) == before
        farm.api.lacking.clear()
        await farm.ready(2, within_s=120)

    play(scene, lacking=["resourceclaims"])


def test_at_rest_nothing_is_written_and_a_claim_deleted_by_hand_comes_back() -> None:
    async def scene(farm: Farm) -> None:
        await started(farm)
        before = len(farm.writes())
        await asyncio.sleep(900)
        assert len(farm.writes()) == before
        await farm.client.delete(ResourceClaim, "s-0-few", NS)
        await farm.quiet()
        assert await farm.names(ResourceClaim) == BASE
        created = [e for e in (await farm.client.list(Event, NS)).items if "Claim" in e.reason]
        assert {e.type for e in created} == {"Normal"}

    play(scene)


def test_an_edited_template_changes_no_claim() -> None:
    async def scene(farm: Farm) -> None:
        await started(farm)
        patch = {"spec": {"spec": {"devices": {"requests": []}}}}
        await farm.client.patch(ResourceClaimTemplate, "here", patch, NS)
        await farm.quiet()
        found = await farm.client.get(ResourceClaim, "s-all-here", NS)
        assert found.spec.devices["requests"]
        other: dict[str, Any] = {"spec": {"devices": {"requests": []}}}
        with pytest.raises(InvalidError):
            await farm.client.patch(ResourceClaim, "s-all-here", other, NS)
        change = {"spec": {"template": {"resourceSharing": []}}}
        with pytest.raises((InvalidError, ForbiddenError)):
            await farm.client.patch(PodCliqueSet, "s", change, NS)

    play(scene)


def test_a_clique_made_anew_waits_for_the_claims_of_its_namesake_to_go() -> None:
    async def scene(farm: Farm) -> None:
        await started(farm)
        old = await farm.client.get(ResourceClaim, "s-0-solo-0-solo-rep", NS)
        await farm.client.delete(PodClique, "s-0-solo", NS)
        await farm.quiet()
        await farm.ready(5)
        new = await farm.client.get(ResourceClaim, "s-0-solo-0-solo-rep", NS)
        assert new.metadata.uid != old.metadata.uid
        live = await farm.clique("s-0-solo")
        assert new.controller_uid() == live.metadata.uid
        made = [w.path for w in farm.cluster.transport.writes if w.method == "POST"]
        last = {path.rsplit("/", 1)[-1]: i for i, path in enumerate(made)}
        assert last["resourceclaims"] < last["pods"], "the pod was made after its new claims"

    play(scene)


def test_a_pod_that_stays_keeps_its_claim_when_lower_indices_go() -> None:
    async def scene(farm: Farm) -> None:
        role = clique("a", 3, min=1)
        role["resourceSharing"] = [share("x", "PerReplica")]
        await farm.apply(pcs(role, resourceClaimTemplates=[template("x")]))
        await farm.ready(3)
        await farm.quiet()
        first = next(
            p for p in await farm.pods() if p.labels["grove.io/podclique-pod-index"] == "0"
        )
        cost = {"metadata": {"annotations": {"spinney.dev/deletion-cost": "-5"}}}
        await farm.client.patch(Pod, first.name, cost, NS)
        await farm.client.set_scale(PodClique, "s-0-a", 2, NS)
        await farm.ready(2)
        await farm.quiet()
        left = {p.labels["grove.io/podclique-pod-index"] for p in await farm.pods()}
        assert left == {"1", "2"}
        assert await farm.names(ResourceClaim) == ["s-0-a-1-x", "s-0-a-2-x"]

    play(scene)


@pytest.mark.parametrize("kind", ["RollingRecreate", "Coherent"])
def test_an_updated_pod_has_the_claims_of_its_index_and_surge_pods_have_their_own(
    kind: str,
) -> None:
    async def scene(farm: Farm) -> None:
        roles = [clique("p", 3, min=1), clique("d", 2, min=1)]
        for role in roles:
            role["resourceSharing"] = [share("x", "PerReplica"), share("y", "AllReplicas")]
        made = pcs(*roles, resourceClaimTemplates=[template("x"), template("y")])
        made["spec"]["updateStrategy"] = {"type": kind}
        await farm.apply(made)
        await farm.ready(5)
        await farm.quiet()
        before = set(await farm.names(ResourceClaim))
        first = next(p for p in await farm.pods("s-0-p") if p.labels[INDEX] == "0")
        cost = {"metadata": {"annotations": {"spinney.dev/deletion-cost": "-5"}}}
        await farm.client.patch(Pod, first.name, cost, NS)
        await farm.client.set_scale(PodClique, "s-0-p", 2, NS)
        await farm.ready(4)
        await farm.quiet()
        found = await farm.set()
        for live in found.spec.template.cliques:
            live.spec.pod_spec["containers"][0]["image"] = "worker:2"
        await farm.client.update(found)

        async def done() -> bool:
            pods = await farm.pods()
            return len(pods) == 4 and {p.spec.containers[0].image for p in pods} == {"worker:2"}

        await farm.until(done, "the update", within_s=300)
        await farm.quiet()
        used = set()
        for pod in await farm.pods():
            own = claims_of(pod)
            name = pod.labels["grove.io/podclique"]
            assert own == [f"{name}-{pod.labels[INDEX]}-x", f"{name}-all-y"]
            used |= set(own)
        assert set(await farm.names(ResourceClaim)) == used
        assert len(used) == len(before) - 1

    play(scene)


def test_a_pod_that_comes_back_in_an_old_revision_has_its_claims() -> None:
    async def scene(farm: Farm) -> None:
        roles = [clique("p", 2), clique("d", 4)]
        roles[0]["resourceSharing"] = [share("x", "AllReplicas")]
        made = pcs(*roles, resourceClaimTemplates=[template("x")])
        budget = {"minCapacityPercent": 50, "maxSurge": 0, "maxUnavailable": 1}
        made["spec"]["updateStrategy"] = {"type": "Coherent", "coherent": budget}
        await farm.apply(made)
        await farm.ready(6)
        await farm.quiet()
        farm.binder.held = {"s-0-d"}
        found = await farm.set()
        for live in found.spec.template.cliques:
            live.spec.pod_spec["containers"][0]["image"] = "worker:2"
        await farm.client.update(found)
        await farm.quiet()
        old = [p for p in await farm.pods("s-0-p") if p.spec.containers[0].image == "worker:1"]
        assert old
        await farm.client.delete(Pod, old[0].name, NS)
        await farm.quiet()
        pods = await farm.pods("s-0-p")
        assert sorted(p.spec.containers[0].image for p in pods) == ["worker:1", "worker:2"]
        assert [claims_of(pod) for pod in pods] == [["s-0-p-all-x"]] * 2

    play(scene)


def test_the_claims_of_a_namesake_are_not_a_cliques_own() -> None:
    async def scene(farm: Farm) -> None:
        await started(farm)
        runtime = Runtime(farm.client, farm.cluster.clock, rng=random.Random(1))
        world = World(runtime)
        running = asyncio.create_task(runtime.run())

        async def known() -> bool:
            kinds = (ResourceClaim, ResourceClaimTemplate)
            return all(world.optional.state(kind) == "watched" for kind in kinds)

        await farm.until(known, "the claims")
        live = await farm.clique("s-0-solo")
        assert world.missing_claims(live) == []
        assert world.missing_claims(live, 0) == []
        assert world.missing_claims(live, 1) == ["s-0-solo-1-solo-rep"]
        live.metadata.uid = "of a namesake"
        assert world.missing_claims(live) == ["s-0-solo-all-solo-all"]
        assert world.missing_claims(live, 0) == ["s-0-solo-0-solo-rep"]
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    play(scene)


# Every shape of sharing, decided without a cluster


class Model:
    """The objects of a set, as deciders make them."""

    def __init__(self, manifest: dict[str, Any]) -> None:
        self.pcs = typed(manifest)
        self.claims: dict[str, ResourceClaim] = {}
        self.groups: dict[str, PodCliqueScalingGroup] = {}
        self.cliques: dict[str, PodClique] = {}
        self._uids = itertools.count()
        self.live()

    def live(self) -> None:
        """Make the cliques and groups that the set wants and lacks."""
        nothing = sets.Observation({}, {}, {}, {}, {}, {})
        for action in sets.decide(self.pcs, nothing):
            assert isinstance(action, Create)
            if isinstance(action.object, PodClique):
                self._put(self.cliques, action.object)
            elif isinstance(action.object, PodCliqueScalingGroup):
                self._put(self.groups, action.object)
        for group in list(self.groups.values()):
            for action in groups.decide(self.pcs, group, self.groups, {}):
                assert isinstance(action, Create)
                assert isinstance(action.object, PodClique)
                self._put(self.cliques, action.object)

    def _put(self, into: dict[str, Any], made: Any) -> None:
        if made.name not in into:
            made.metadata.uid = f"u{next(self._uids)}"
            into[made.name] = made

    def forget(self, gone: Sequence[str]) -> None:
        uids = {self.cliques.pop(name).metadata.uid for name in gone if name in self.cliques}
        self.claims = {n: c for n, c in self.claims.items() if c.controller_uid() not in uids}

    def decide(self) -> claims.Decision:
        return claims.decide(
            self.pcs,
            claims.Observation(
                list(self.groups.values()),
                list(self.cliques.values()),
                lambda _: [],
                self.claims,
                lambda _namespace, _name: None,
            ),
        )

    def step(self) -> None:
        for action in self.decide().actions:
            if isinstance(action, Create):
                assert isinstance(action.object, ResourceClaim)
                assert action.object.name not in self.claims
                self.claims[action.object.name] = action.object
            else:
                assert isinstance(action, Delete)
                del self.claims[action.object.name]


scopes = st.lists(st.sampled_from(["AllReplicas", "PerReplica"]), max_size=2)


@settings(max_examples=60, deadline=None)
@given(scopes, scopes, scopes, scopes, st.integers(0, 3), st.integers(1, 3), st.data())
def test_all_that_pods_refer_to_exists_after_one_step_and_the_next_does_nothing(
    of_set: list[str],
    of_group: list[str],
    of_member: list[str],
    of_solo: list[str],
    replicas: int,
    group_replicas: int,
    data: st.DataObject,
) -> None:
    def shares(scopes: list[str]) -> list[dict[str, Any]]:
        return [share(f"t{i}", scope) for i, scope in enumerate(scopes)]

    solo, member = clique("solo", 2), clique("work")
    solo["resourceSharing"], member["resourceSharing"] = shares(of_solo), shares(of_member)
    group = {
        "name": "g",
        "cliqueNames": ["work"],
        "replicas": group_replicas,
        "minAvailable": 1,
        "resourceSharing": shares(of_group),
    }
    model = Model(
        pcs(
            solo,
            member,
            replicas=replicas,
            groups=[group],
            resourceClaimTemplates=[template("t0"), template("t1")],
            resourceSharing=shares(of_set),
        )
    )
    model.step()
    for made in model.cliques.values():
        for index in range(made.spec.replicas or 0):
            pod = build_pod(made, index)
            used = [c["resourceClaimName"] for c in pod["spec"].get("resourceClaims", ())]
            assert len(set(used)) == len(used)
            assert set(used) <= model.claims.keys()
    assert model.decide().actions == []
    if model.cliques:
        model.forget([data.draw(st.sampled_from(sorted(model.cliques)))])
        model.step()
        model.live()
        model.step()
        assert model.decide().actions == []


def test_a_set_that_goes_makes_nothing_more() -> None:
    model = Model(pcs(clique("a"), resourceSharing=[share("x", "AllReplicas")]))
    assert model.decide().problems
    model.pcs.metadata.deletion_timestamp = "2026-01-01T00:00:00Z"
    assert model.decide() == claims.Decision()


def test_a_claim_of_that_name_that_is_somebody_elses_is_left_alone() -> None:
    model = Model(
        pcs(
            clique("a"),
            resourceClaimTemplates=[template("x")],
            resourceSharing=[share("x", "AllReplicas")],
        )
    )
    model.step()
    (claim,) = model.claims.values()
    claim.metadata.owner_references[0].uid = "somebody"
    decision = model.decide()
    assert decision.actions == []
    assert "s-all-x" in claims.condition(decision).message


def sharing_model(**more: Any) -> Model:
    share_ = [share("x", "PerReplica")]
    templates = [template("x")]
    return Model(pcs(clique("a"), resourceClaimTemplates=templates, resourceSharing=share_, **more))


def test_a_claim_stays_while_something_of_its_replica_is_there() -> None:
    model = sharing_model(replicas=2)
    model.step()
    assert sorted(model.claims) == ["s-0-x", "s-1-x"]
    model.pcs.spec.replicas = 1
    assert model.decide().actions == []
    model.forget(["s-1-a"])
    model.step()
    assert sorted(model.claims) == ["s-0-x"]


def test_a_claim_that_is_leaving_is_waited_for_and_told_of() -> None:
    model = sharing_model()
    model.step()
    model.claims["s-0-x"].metadata.deletion_timestamp = "2026-01-01T00:00:00Z"
    decision = model.decide()
    assert decision.actions == []
    assert decision.problems == ["s-0-x is of an owner that is gone; waiting for it to go"]


def test_a_claim_that_only_looks_like_the_sets_is_not_deleted() -> None:
    model = sharing_model()
    model.step()
    model.claims["s-7-x"] = copy.deepcopy(model.claims["s-0-x"])
    model.claims["s-7-x"].metadata.name = "s-7-x"
    (gone,) = model.decide().actions
    assert isinstance(gone, Delete)
    model.claims["s-7-x"].metadata.owner_references[0].uid = "somebody"
    assert model.decide().actions == []


def test_a_pod_of_a_set_without_claims_refers_to_none() -> None:
    async def scene(farm: Farm) -> None:
        await farm.apply(pcs(clique("a")))
        await farm.ready(1)
        (pod,) = await farm.pods()
        assert pod.spec.resource_claims == []
        with pytest.raises(NotFoundError):
            await farm.client.get(ResourceClaim, "s-all-x", NS)
        found = (await farm.set()).status.conditions
        assert find_condition(found, claims.AVAILABLE) is None

    play(scene)
