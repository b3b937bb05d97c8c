from __future__ import annotations

from typing import Any

import msgspec
from tests.controllers.farm import clique, pcs, typed

from spinney.api.core import Pod
from spinney.api.grove import PodClique, PodCliqueScalingGroup, PodCliqueSet
from spinney.api.meta import Condition, is_true
from spinney.api.podgang import PodGang, PodGangSpec
from spinney.controllers import topology
from spinney.controllers.actions import Create
from spinney.controllers.identity import GangIdentity
from spinney.controllers.podcliqueset import decide as sets
from spinney.controllers.podgang.decide import (
    Observation,
    gang_name,
    is_wanted,
    wanted_gang,
)
from spinney.controllers.podgang.status import gang_status
from spinney.controllers.scalinggroup import decide as groups_of
from spinney.controllers.topology import Keys

NOW = "2026-01-01T00:00:00Z"
GROUP = {"name": "g", "cliqueNames": ["b", "c"], "replicas": 3, "minAvailable": 2}
BASE = GangIdentity("s", 0)
SCALED = GangIdentity("s", 0, "s-0-g", 2)
KEYS = Keys("cluster", {"zone": "topology/zone", "rack": "topology/rack", "host": "host"})


def manifest(**template: Any) -> PodCliqueSet:
    return typed(
        pcs(
            clique("a", 2, min=1),
            clique("b", 1, min=1),
            clique("c", 2, min=2),
            groups=[GROUP | template.pop("group", {})],
            **template,
        )
    )


def live(owner: PodCliqueSet) -> tuple[dict[str, PodCliqueScalingGroup], dict[str, PodClique]]:
    made = sets.decide(owner, sets.Observation({}, {}, {}, {}, {}, {}))
    objects = [a.object for a in made if isinstance(a, Create)]
    groups = {o.name: o for o in objects if isinstance(o, PodCliqueScalingGroup)}
    cliques = {o.name: o for o in objects if isinstance(o, PodClique)}
    for group in groups.values():
        for action in groups_of.decide(owner, group, groups, {}):
            assert isinstance(action, Create)
            assert isinstance(action.object, PodClique)
            cliques[action.object.name] = action.object
    return groups, cliques


def pods(**counts: int) -> list[Pod]:
    return [
        msgspec.convert(
            {
                "metadata": {
                    "name": f"{name.replace('_', '-')}-{n}",
                    "namespace": "default",
                    "labels": {"grove.io/podclique": name.replace("_", "-")},
                }
            },
            Pod,
        )
        for name, count in counts.items()
        for n in range(count)
    ]


ALL = {"s_0_a": 2, "s_0_g_0_b": 1, "s_0_g_0_c": 2, "s_0_g_1_b": 1, "s_0_g_1_c": 2}


def wanted(
    owner: PodCliqueSet,
    which: GangIdentity = BASE,
    *,
    found: list[Pod] | None = None,
    gang: PodGang | None = None,
    keys: Keys | None = None,
) -> PodGang:
    groups, cliques = live(owner)
    name = gang_name(owner, which)
    assert name is not None
    return wanted_gang(owner, which, name, Observation(gang, groups, cliques, found or [], keys))


def listed(gang: PodGang) -> dict[str, int]:
    return {g.name: len(g.pod_references) for g in gang.spec.pod_groups if g.pod_references}


def test_the_base_gang_has_standalone_cliques_and_the_minimum_of_each_group() -> None:
    gang = wanted(manifest())
    assert gang.name == "s-0"
    assert [(g.name, g.min_replicas) for g in gang.spec.pod_groups] == [
        ("s-0-a", 1),
        ("s-0-g-0-b", 1),
        ("s-0-g-0-c", 2),
        ("s-0-g-1-b", 1),
        ("s-0-g-1-c", 2),
    ]
    assert "grove.io/base-podgang" not in gang.labels


def test_a_scaled_gang_is_one_group_replica_named_from_the_minimum_up() -> None:
    gang = wanted(manifest(), SCALED)
    assert gang.name == "s-0-g-0"
    assert [g.name for g in gang.spec.pod_groups] == ["s-0-g-2-b", "s-0-g-2-c"]
    assert gang.labels["grove.io/base-podgang"] == "s-0"


def test_which_gangs_a_set_has() -> None:
    owner = manifest()
    groups, _ = live(owner)
    assert is_wanted(owner, BASE, groups)
    assert is_wanted(owner, SCALED, groups)
    assert not is_wanted(owner, GangIdentity("s", 1), groups)
    assert not is_wanted(owner, GangIdentity("s", 0, "s-0-g", 3), groups)
    groups["s-0-g"].spec.replicas = 2
    assert not is_wanted(owner, SCALED, groups)


def test_pods_are_listed_only_when_all_of_them_exist() -> None:
    owner = manifest()
    assert listed(wanted(owner, found=pods(**ALL | {"s_0_a": 1}))) == {}
    full = wanted(owner, found=pods(**ALL))
    assert listed(full) == {k.replace("_", "-"): v for k, v in ALL.items()}


def test_after_that_a_replacement_is_listed_once_every_group_has_its_minimum() -> None:
    owner = manifest()
    before = wanted(owner, found=pods(**ALL))
    # One of two pods of `a` is gone, its minimum is there: the rest stays listed.
    fewer = wanted(owner, found=pods(**ALL | {"s_0_a": 1}), gang=before)
    assert listed(fewer)["s-0-a"] == 1
    # `c` of replica 0 is below its minimum: what is there stays listed, nothing is added.
    broken = pods(**ALL | {"s_0_g_0_c": 1, "s_0_a": 1})
    broken += pods(s_0_a=3)[2:]
    kept = listed(wanted(owner, found=broken, gang=before))
    assert kept["s-0-g-0-c"] == 1
    assert kept["s-0-a"] == 1


def test_a_gang_that_lost_all_pods_is_released_as_a_whole_again() -> None:
    owner = manifest()
    before = wanted(owner, found=pods(**ALL))
    for group in before.spec.pod_groups:
        for ref in group.pod_references:
            ref.name = f"old-{ref.name}"
    assert listed(wanted(owner, found=pods(**ALL | {"s_0_a": 1}), gang=before)) == {}
    assert len(listed(wanted(owner, found=pods(**ALL), gang=before))) == 5


def test_pods_on_their_way_out_are_not_listed() -> None:
    found = pods(**ALL)
    found[0].metadata.deletion_timestamp = NOW
    assert listed(wanted(manifest(), found=found)) == {}


def test_the_gang_mirrors_the_sets_own_labels_and_annotations() -> None:
    owner = manifest()
    owner.metadata.labels = {"kai.scheduler/queue": "q", "grove.io/x": "no"}
    owner.metadata.annotations = {
        "note": "y",
        "kubectl.kubernetes.io/last-applied-configuration": "{}",
    }
    gang = wanted(owner)
    assert gang.labels["kai.scheduler/queue"] == "q"
    assert "grove.io/x" not in gang.labels
    assert gang.metadata.annotations == {"note": "y"}


# Topology


def pack(**domains: str) -> dict[str, Any]:
    return {"topologyName": "cluster", "pack": domains}


def key_of(constraint: Any) -> tuple[str | None, str | None]:
    pack = constraint.pack_constraint
    return pack.required, pack.preferred


def test_constraints_of_all_three_levels_become_node_labels() -> None:
    owner = manifest(
        topologyConstraint=pack(required="zone", preferred="rack"),
        group={"topologyConstraint": pack(required="rack")},
    )
    owner.spec.template.cliques[2].topology_constraint = msgspec.convert(
        pack(preferred="host"), type(owner.spec.template.topology_constraint)
    )
    gang = wanted(owner, keys=KEYS)
    assert key_of(gang.spec.topology_constraint) == ("topology/zone", "topology/rack")
    configs = gang.spec.topology_constraint_group_configs
    assert [(c.name, c.pod_group_names) for c in configs] == [
        ("s-0-g-0", ["s-0-g-0-b", "s-0-g-0-c"]),
        ("s-0-g-1", ["s-0-g-1-b", "s-0-g-1-c"]),
    ]
    assert key_of(configs[0].topology_constraint) == ("topology/rack", None)
    by_name = {g.name: g.topology_constraint for g in gang.spec.pod_groups}
    assert key_of(by_name["s-0-g-0-c"]) == (None, "host")
    assert by_name["s-0-a"] is None
    assert gang.metadata.annotations["grove.io/topology-name"] == "cluster"


def test_a_scaled_gang_has_its_groups_constraint_or_else_the_sets() -> None:
    own = manifest(
        topologyConstraint=pack(required="zone"),
        group={"topologyConstraint": pack(required="rack")},
    )
    gang = wanted(own, SCALED, keys=KEYS)
    assert key_of(gang.spec.topology_constraint) == ("topology/rack", None)
    assert gang.spec.topology_constraint_group_configs == []
    inherited = wanted(manifest(topologyConstraint=pack(required="zone")), SCALED, keys=KEYS)
    assert key_of(inherited.spec.topology_constraint) == ("topology/zone", None)


def test_without_its_binding_a_new_gang_is_unconstrained_and_an_old_one_keeps_its_constraints() -> (
    None
):
    owner = manifest(
        topologyConstraint=pack(required="zone"),
        group={"topologyConstraint": pack(required="rack")},
    )
    new = wanted(owner)
    assert new.spec.topology_constraint is None
    assert "grove.io/topology-name" not in new.metadata.annotations
    before = wanted(owner, keys=KEYS)
    after = wanted(owner, gang=before)
    assert after.spec == before.spec
    without_rack = Keys("cluster", {"zone": "topology/zone"})
    assert wanted(owner, gang=before, keys=without_rack).spec == before.spec


def condition(owner: PodCliqueSet, keys: Keys | None) -> tuple[str, str] | None:
    found = topology.levels_condition(owner.spec.template, keys)
    return (found.status, found.reason) if found else None


def test_the_set_says_whether_its_levels_exist() -> None:
    owner = manifest(topologyConstraint=pack(required="zone"))
    assert condition(owner, None) == ("Unknown", "ClusterTopologyNotFound")
    assert condition(owner, Keys("cluster", {"rack": "r"})) == (
        "True",
        "ClusterTopologyLevelsUnavailable",
    )
    assert condition(owner, KEYS) == ("False", "AllClusterTopologyLevelsAvailable")
    assert condition(manifest(), None) is None
    nameless = manifest(topologyConstraint={"pack": {"required": "zone"}})
    assert condition(nameless, KEYS) == ("Unknown", "TopologyNameMissing")


def test_the_deprecated_domain_is_the_required_one() -> None:
    owner = manifest(topologyConstraint={"topologyName": "cluster", "packDomain": "rack"})
    gang = wanted(owner, keys=KEYS)
    assert key_of(gang.spec.topology_constraint) == ("topology/rack", None)


# Status


def bound(found: list[Pod], *, ready: bool = False) -> list[Pod]:
    for pod in found:
        pod.spec.node_name = "n"
        if ready:
            pod.status.conditions = [Condition(type="Ready", status="True")]
    return found


def test_the_phase_follows_the_pods_and_the_schedulers_conditions_stay() -> None:
    gang = wanted(manifest(), found=pods(**ALL))
    gang.status.conditions = [Condition(type="Scheduled", status="True", reason="Placed")]
    gang.status.placement_score = 0.5
    pending = gang_status(gang, pods(**ALL), NOW)
    assert pending.phase == "Pending"
    assert is_true(pending.conditions, "Initialized")
    starting = gang_status(gang, bound(pods(**ALL)), NOW)
    assert starting.phase == "Starting"
    assert not is_true(starting.conditions, "Ready")
    running = gang_status(gang, bound(pods(**ALL), ready=True), NOW)
    assert running.phase == "Running"
    assert is_true(running.conditions, "Ready")
    assert is_true(running.conditions, "Scheduled")
    assert running.placement_score == 0.5


def test_initialized_stays_once_it_was_true() -> None:
    gang = wanted(manifest(), found=pods(**ALL))
    gang.status = gang_status(gang, pods(**ALL), NOW)
    gang.spec = PodGangSpec(pod_groups=wanted(manifest()).spec.pod_groups)
    assert is_true(gang_status(gang, [], NOW).conditions, "Initialized")
    gang.status.conditions = []
    assert not is_true(gang_status(gang, [], NOW).conditions, "Initialized")
