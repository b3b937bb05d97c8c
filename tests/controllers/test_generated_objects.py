from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from tests.controllers.farm import NS, clique, pcs, typed

from spinney.api import codec
from spinney.api.core import Pod
from spinney.controllers import cliques, template
from spinney.controllers.actions import Change, Create, Delete
from spinney.controllers.podclique.pod import WAIT_IMAGE, build_pod
from spinney.controllers.podcliqueset import decide as sets
from spinney.controllers.scalinggroup import decide as groups

if TYPE_CHECKING:
    from spinney.api.grove import PodClique, PodCliqueScalingGroup

MANAGED = {
    "app.kubernetes.io/managed-by": "grove-operator",
    "app.kubernetes.io/part-of": "s",
}
GROUP = [{"name": "g", "cliqueNames": ["b", "c"], "replicas": 2, "minAvailable": 1}]


def nothing() -> sets.Observation:
    return sets.Observation({}, {}, {}, {}, {}, {})


def made(manifest: dict[str, Any]) -> dict[tuple[str, str], Any]:
    found = sets.decide(typed(manifest), nothing())
    assert all(isinstance(action, Create) for action in found)
    return {(a.object.RESOURCE.kind, a.object.name): a.object for a in found}


def scaling_group(replicas: int = 2, minimum: int = 1) -> PodCliqueScalingGroup:
    found = made(pcs(clique("a"), clique("b"), clique("c"), groups=GROUP))
    group: PodCliqueScalingGroup = found["PodCliqueScalingGroup", "s-0-g"]
    group.metadata.uid = "uid-of-group"
    group.spec.replicas, group.spec.min_available = replicas, minimum
    return group


def member_cliques(replicas: int = 2) -> dict[str, PodClique]:
    group = scaling_group(replicas)
    owner = typed(pcs(clique("a"), clique("b", 2), clique("c", 3), groups=GROUP))
    found = groups.decide(owner, group, {group.name: group}, {})
    return {a.object.name: a.object for a in found if isinstance(a, Create)}  # type: ignore[misc]


def test_each_replica_has_a_service_its_cliques_and_its_groups() -> None:
    found = made(pcs(clique("a"), clique("b"), clique("c"), replicas=2, groups=GROUP))
    assert sorted(found) == [
        ("PodClique", "s-0-a"),
        ("PodClique", "s-1-a"),
        ("PodCliqueScalingGroup", "s-0-g"),
        ("PodCliqueScalingGroup", "s-1-g"),
        ("Service", "s-0"),
        ("Service", "s-1"),
    ]
    assert all(obj.controller_uid() == "uid-of-set" for obj in found.values())


def test_the_service_names_all_pods_of_its_replica_before_they_are_ready() -> None:
    service = made(pcs(clique("a")))["Service", "s-0"]
    assert service.spec.cluster_ip == "None"
    assert service.spec.publish_not_ready_addresses
    assert service.spec.selector == {**MANAGED, "grove.io/podcliqueset-replica-index": "0"}
    quiet = made(pcs(clique("a"), headlessServiceConfig={"publishNotReadyAddresses": False}))
    assert not quiet["Service", "s-0"].spec.publish_not_ready_addresses


@pytest.mark.parametrize(
    ("name", "want"),
    [
        ("s-0-g-0-b", {"grove.io/podgang": "s-0", "app.kubernetes.io/component": "pcsg-podclique"}),
        ("s-0-g-1-c", {"grove.io/podgang": "s-0-g-0", "grove.io/base-podgang": "s-0"}),
        ("s-0-g-3-b", {"grove.io/podgang": "s-0-g-2", "grove.io/base-podgang": "s-0"}),
    ],
    ids=["base member", "first scaled member", "third scaled member"],
)
def test_members_of_groups_carry_their_gang(name: str, want: dict[str, str]) -> None:
    labels = member_cliques(4)[name].labels
    assert labels.items() >= want.items()
    assert labels["grove.io/podcliquescalinggroup"] == "s-0-g"
    assert labels["grove.io/podcliquescalinggroup-replica-index"] == name.split("-")[3]
    assert ("grove.io/base-podgang" in labels) == ("grove.io/base-podgang" in want)


def test_a_standalone_clique_carries_groves_labels_and_the_users() -> None:
    outer = {"labels": {"team": "x", "grove.io/podgang": "mine"}, "annotations": {"note": "y"}}
    found = made(pcs(clique("a", outer=outer)))["PodClique", "s-0-a"]
    revision = found.labels["grove.io/pod-template-hash"]
    owner = typed(pcs(clique("a", outer=outer)))
    assert found.labels == {
        **MANAGED,
        "app.kubernetes.io/name": "s-0-a",
        "app.kubernetes.io/component": "pcs-podclique",
        "grove.io/podgang": "s-0",
        "grove.io/podcliqueset-replica-index": "0",
        "grove.io/pod-template-hash": revision,
        "spinney.dev/revision": template.generation_hash(owner.spec.template),
        "team": "x",
    }
    assert found.metadata.annotations["note"] == "y"
    assert "grove.io/base-podgang" not in found.labels


def live(found: PodClique) -> PodClique:
    found.metadata.uid = "uid-of-clique"
    return found


def environment(pod: dict[str, Any], container: int = 0) -> dict[str, str]:
    return {
        v["name"]: v.get("value") or v["valueFrom"]["fieldRef"]["fieldPath"]
        for v in pod["spec"]["containers"][container]["env"]
    }


def test_a_pod_has_groves_name_labels_and_environment() -> None:
    pod = build_pod(live(made(pcs(clique("a")))["PodClique", "s-0-a"]), 3)
    meta, spec = pod["metadata"], pod["spec"]
    assert meta["generateName"] == "s-0-a-"
    assert "name" not in meta
    assert meta["labels"]["grove.io/podclique"] == "s-0-a"
    assert meta["labels"]["grove.io/podclique-pod-index"] == "3"
    assert meta["labels"]["app.kubernetes.io/component"] == "pcs-podclique"
    assert meta["annotations"] == {}
    assert meta["ownerReferences"][0]["uid"] == "uid-of-clique"
    assert (spec["hostname"], spec["subdomain"]) == ("s-0-a-3", "s-0")
    assert spec["schedulerName"] == "spinney-scheduler"
    assert spec["schedulingGates"] == [{"name": "grove.io/podgang-pending-creation"}]
    assert "initContainers" not in spec
    assert environment(pod) == {
        "GROVE_PCS_NAME": "s",
        "GROVE_PCS_INDEX": "0",
        "GROVE_PCLQ_NAME": "s-0-a",
        "GROVE_HEADLESS_SERVICE": "s-0.default.svc.cluster.local",
        "GROVE_PCLQ_POD_INDEX": "metadata.labels['grove.io/podclique-pod-index']",
    }


def test_a_pod_of_a_group_knows_the_group_and_how_many_pods_a_replica_has() -> None:
    env = environment(build_pod(live(member_cliques()["s-0-g-1-c"]), 0))
    assert env["GROVE_PCSG_NAME"] == "s-0-g"
    label = "grove.io/podcliquescalinggroup-replica-index"
    assert env["GROVE_PCSG_INDEX"] == f"metadata.labels['{label}']"
    assert env["GROVE_PCSG_TEMPLATE_NUM_PODS"] == "5"


def test_our_variables_come_first_and_replace_the_users_of_the_same_name() -> None:
    containers = [
        {
            "name": "main",
            "image": "i",
            "env": [
                {"name": "LEADER", "value": "$(GROVE_PCLQ_NAME)-0"},
                {"name": "GROVE_PCS_NAME", "value": "forged"},
            ],
        }
    ]
    init = [{"name": "load", "image": "i"}]
    spec = {"podSpec": {"containers": containers, "initContainers": init}}
    pod = build_pod(live(made(pcs(clique("a", **spec)))["PodClique", "s-0-a"]), 0)
    names = [v["name"] for v in pod["spec"]["containers"][0]["env"]]
    assert names[-1] == "LEADER"
    assert names.count("GROVE_PCS_NAME") == 1
    assert environment(pod)["GROVE_PCS_NAME"] == "s"
    assert pod["spec"]["initContainers"][0]["env"][0]["name"] == "GROVE_PCS_NAME"


def test_the_waiting_container_is_the_last_init_container_and_names_each_parent() -> None:
    spec = {"podSpec": {"containers": [], "initContainers": [{"name": "load"}]}}
    found = live(made(pcs(clique("a", **spec)))["PodClique", "s-0-a"])
    pod = build_pod(found, 0, [("s-0-b", 2), ("s-0-c", 1)])
    wait = pod["spec"]["initContainers"][-1]
    assert [c["name"] for c in pod["spec"]["initContainers"]] == ["load", "grove-initc"]
    assert wait["image"] == WAIT_IMAGE
    assert wait["command"] == ["spinney", "startup-wait"]
    assert wait["args"] == [
        f"--namespace={NS}",
        "--podcliques=s-0-b:2",
        "--podcliques=s-0-c:1",
    ]
    assert "volumeMounts" not in wait


def test_the_waiting_container_brings_its_token_where_the_pod_mounts_none() -> None:
    spec = {"podSpec": {"containers": [], "automountServiceAccountToken": False}}
    found = live(made(pcs(clique("a", **spec)))["PodClique", "s-0-a"])
    pod = build_pod(found, 0, [("s-0-b", 1)])
    mounts = pod["spec"]["initContainers"][-1]["volumeMounts"]
    assert mounts[0]["name"] == pod["spec"]["volumes"][0]["name"]


def test_what_our_types_do_not_name_reaches_the_pod() -> None:
    odd = {"containers": [{"name": "main", "futureField": 1}], "hostnameOverride": "x"}
    found = live(made(pcs(clique("a", podSpec=odd)))["PodClique", "s-0-a"])
    spec = build_pod(found, 0)["spec"]
    assert spec["hostnameOverride"] == "x"
    assert spec["containers"][0]["futureField"] == 1
    assert codec.from_dict(Pod, build_pod(found, 0)).spec.subdomain == "s-0"


def test_foreign_gates_and_scheduler_names_are_kept() -> None:
    spec = {"podSpec": {"schedulingGates": [{"name": "other"}], "schedulerName": "kai-scheduler"}}
    pod = build_pod(live(made(pcs(clique("a", **spec)))["PodClique", "s-0-a"]), 0)
    assert [g["name"] for g in pod["spec"]["schedulingGates"]] == [
        "grove.io/podgang-pending-creation",
        "other",
    ]
    assert pod["spec"]["schedulerName"] == "kai-scheduler"


# Revisions


def revision(**changes: Any) -> str:
    found = typed(pcs(clique("a", **changes.pop("spec", {})), **changes)).spec.template
    return template.pod_template_hash(found, found.cliques[0])


def test_a_revision_does_not_depend_on_key_order_nulls_or_counts() -> None:
    one = {"containers": [{"name": "m", "image": "i"}], "nodeSelector": None}
    two = {"containers": [{"image": "i", "name": "m"}]}
    assert revision(spec={"podSpec": one}) == revision(spec={"podSpec": two, "replicas": 4})


def test_a_revision_changes_with_image_labels_and_priority_and_is_this_one() -> None:
    base = revision()
    image = {"podSpec": {"containers": [{"name": "main", "image": "worker:2"}]}}
    others = {
        base,
        revision(spec=image),
        revision(spec={"outer": {"labels": {"a": "b"}}}),
        revision(priorityClassName="high"),
    }
    assert len(others) == 4
    # A change here would roll every pod of every set when Spinney is upgraded.
    assert base == "a5fdf69fe4"


# Changes of what exists


def existing(manifest: dict[str, Any]) -> sets.Observation:
    found = made(manifest)

    def of(kind: str) -> dict[str, Any]:
        return {name: obj for (k, name), obj in found.items() if k == kind}

    return sets.Observation(
        of("Service"),
        of("PodClique"),
        of("PodCliqueScalingGroup"),
        {},
        of("Role"),
        of("RoleBinding"),
    )


FULL = pcs(
    clique("a", 2, min=2),
    clique("b"),
    clique("c"),
    replicas=2,
    groups=GROUP,
    startup="CliqueStartupTypeInOrder",
)


def test_what_is_as_wanted_is_left_alone() -> None:
    assert sets.decide(typed(FULL), existing(FULL)) == []


def test_scaling_in_removes_the_highest_replica_with_its_service() -> None:
    smaller = typed(FULL)
    smaller.spec.replicas = 1
    found = sets.decide(smaller, existing(FULL))
    assert all(isinstance(action, Delete) for action in found)
    assert sorted(action.object.name for action in found) == ["s-1", "s-1-a", "s-1-g"]


def test_a_scaled_count_stands_until_the_template_is_edited() -> None:
    seen = existing(FULL)
    seen.cliques["s-0-a"].spec.replicas = 7
    seen.groups["s-1-g"].spec.replicas = 9
    assert sets.decide(typed(FULL), seen) == []
    edited = typed(FULL)
    edited.spec.template.cliques[0].spec.replicas = 3
    patches = {a.object.name: a.patch for a in sets.decide(edited, seen) if isinstance(a, Change)}
    assert sorted(patches) == ["s-0-a", "s-1-a"]
    assert all(patch["spec"] == {"replicas": 3} for patch in patches.values())


def test_an_edited_pod_template_reaches_the_cliques_with_its_revision() -> None:
    edited = typed(FULL)
    edited.spec.template.cliques[0].spec.pod_spec["containers"][0]["image"] = "worker:2"
    edited.spec.template.cliques[0].spec.pod_spec["priority"] = 3
    (first, *_) = sets.decide(edited, existing(FULL))
    assert isinstance(first, Change)
    assert first.patch["spec"]["podSpec"]["priority"] == 3
    assert "grove.io/pod-template-hash" in first.patch["metadata"]["labels"]


def test_defaults_that_the_api_server_fills_in_are_no_difference() -> None:
    seen = existing(FULL)
    seen.cliques["s-0-a"].spec.pod_spec["dnsPolicy"] = "ClusterFirst"
    seen.cliques["s-0-a"].spec.pod_spec["containers"][0]["imagePullPolicy"] = "Always"
    seen.services["s-0"].spec.type = "ClusterIP"
    assert sets.decide(typed(FULL), seen) == []


def test_no_access_is_granted_where_no_clique_waits() -> None:
    kinds = {kind for kind, _ in made(pcs(clique("a"), clique("b")))}
    assert not kinds & {"Role", "RoleBinding"}
    found = made(
        pcs(
            clique("a"),
            clique("b", podSpec={"containers": [], "serviceAccountName": "robot"}),
            startup="CliqueStartupTypeInOrder",
        )
    )
    role = found["Role", "grove.io:pcs:s"]
    assert role.rules == [
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch"]}
    ]
    binding = found["RoleBinding", "grove.io:pcs:s"]
    assert [subject["name"] for subject in binding.subjects] == ["default", "robot"]


def test_a_deleted_set_takes_all_its_parts_unless_they_are_to_be_orphaned() -> None:
    going = typed(FULL)
    going.metadata.deletion_timestamp = "2026-01-01T00:00:00Z"
    seen = existing(FULL)
    found = sets.decide(going, seen)
    assert {id(a.object) for a in found} == {id(obj) for obj in seen.all()}
    assert not sets.may_go(going, seen)
    assert sets.may_go(going, nothing())
    going.metadata.finalizers = ["orphan"]
    assert sets.decide(going, seen) == []


def test_a_group_scaled_below_its_minimum_keeps_the_minimum_and_at_zero_keeps_none() -> None:
    owner = typed(pcs(clique("a"), clique("b"), clique("c"), groups=GROUP))
    before = member_cliques(3)
    group = scaling_group(1, 2)
    kept = groups.decide(owner, group, {}, before)
    assert sorted(a.object.name for a in kept if isinstance(a, Delete)) == [
        "s-0-g-2-b",
        "s-0-g-2-c",
    ]
    group.spec.replicas = 0
    gone = groups.decide(owner, group, {}, before)
    assert len([a for a in gone if isinstance(a, Delete)]) == 6


def test_a_clique_is_found_by_its_name_and_not_by_a_suffix() -> None:
    # `b` of set `s-0-a` and `a-b` of set `s` would end alike.
    found = made(pcs(clique("a"), clique("b-a")))
    assert sorted(name for kind, name in found if kind == "PodClique") == ["s-0-a", "s-0-b-a"]
    assert (
        found["PodClique", "s-0-b-a"].labels["grove.io/pod-template-hash"]
        != found["PodClique", "s-0-a"].labels["grove.io/pod-template-hash"]
    )


def test_a_members_environment_does_not_change_its_revision() -> None:
    owner = typed(pcs(clique("a"), clique("b", 2), clique("c", 3), groups=GROUP))
    wanted = cliques.revisions(owner.spec.template)
    assert member_cliques()["s-0-g-0-b"].labels["grove.io/pod-template-hash"] == wanted["b"]
