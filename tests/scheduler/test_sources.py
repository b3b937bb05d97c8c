"""Gangs from every API that describes them: which pods belong together, and how many are needed."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from spinney.api.core import Node, Pod
from spinney.api.leaderworkerset import LeaderWorkerSet
from spinney.api.podgroup import PodGroup, UpstreamPodGroup, Workload
from spinney.errors import BadInputError
from spinney.scheduler.cache import Cache
from spinney.scheduler.config import SchedulerConfig
from spinney.scheduler.cycle import run_cycle
from spinney.scheduler.sources.podgroup import podgroup_spec


def cluster(*gpus: int) -> Cache:
    cache = Cache()
    for at, count in enumerate(gpus):
        raw = {
            "metadata": {"name": f"n{at}", "labels": {"rack": f"r{at // 2}"}},
            "status": {"allocatable": {"nvidia.com/gpu": count, "cpu": 8, "pods": 20}},
        }
        cache.set_node(msgspec.convert(raw, Node))
    return cache


def pod(name: str, gpus: int = 1, **more: Any) -> Pod:
    metadata = {"name": name, "namespace": "default", "uid": name}
    metadata |= {key: more.pop(key) for key in ("labels", "annotations") if key in more}
    requests = {"nvidia.com/gpu": gpus}
    spec = {
        "schedulerName": "spinney-scheduler",
        "containers": [{"name": "c", "resources": {"requests": requests}}],
        **more,
    }
    return msgspec.convert({"metadata": metadata, "spec": spec}, Pod)


def placed(cache: Cache) -> list[str]:
    result = run_cycle(cache.snapshot(), SchedulerConfig(actions=("allocate",)))
    return sorted(b.pod.removeprefix("default/") for b in result.bindings)


def reasons(cache: Cache) -> list[str]:
    result = run_cycle(cache.snapshot(), SchedulerConfig(actions=("allocate",)))
    return [v.reason for v in result.verdicts.values() if v.kind != "placed"]


def kai(name: str, **spec: Any) -> PodGroup:
    return msgspec.convert(
        {"metadata": {"name": name, "namespace": "default"}, "spec": spec}, PodGroup
    )


def kai_pod(name: str, group: str, sub: str = "", gpus: int = 1) -> Pod:
    labels = {"kai.scheduler/subgroup-name": sub} if sub else {}
    return pod(name, gpus, annotations={"pod-group-name": group}, labels=labels)


def test_a_pod_group_waits_for_its_minimum_and_then_is_placed_whole() -> None:
    cache = cluster(4)
    cache.set_podgroup(kai("g", minMember=2))
    cache.set_pod(kai_pod("a", "g"))
    assert reasons(cache) == [
        "waits for pods of group default/g: 1 of 2 can be placed",
    ]

    cache.set_pod(kai_pod("b", "g"))
    assert placed(cache) == ["a", "b"]


def test_a_pod_whose_group_does_not_exist_waits_for_it() -> None:
    cache = cluster(4)
    cache.set_pod(kai_pod("a", "g"))
    assert reasons(cache) == ["waits for PodGroup default/g"]

    cache.set_podgroup(kai("g", minMember=1))
    assert placed(cache) == ["a"]
    cache.remove_podgroup("default/g")
    assert placed(cache) == []


TREE = [
    {"name": "i0", "minSubGroup": 2},
    {"name": "i0-p", "parent": "i0", "minMember": 1},
    {"name": "i0-d", "parent": "i0", "minMember": 1},
    {"name": "i1"},
    {"name": "i1-p", "parent": "i1", "minMember": 1},
    {"name": "i1-d", "parent": "i1", "minMember": 1},
]


def tree(**spec: Any) -> list[Any]:
    cache = [kai("g", subGroups=TREE, **spec)]
    return [*cache, *(kai_pod(n, "g", n) for n in ("i0-p", "i0-d", "i1-p", "i1-d"))]


def fill(cache: Cache, objects: list[Any]) -> None:
    for obj in objects:
        (cache.set_podgroup if isinstance(obj, PodGroup) else cache.set_pod)(obj)


def test_a_tree_needs_all_of_its_groups_unless_it_says_how_many() -> None:
    cache = cluster(3)
    fill(cache, tree())
    assert placed(cache) == []

    cache = cluster(4)
    fill(cache, tree())
    assert placed(cache) == ["i0-d", "i0-p", "i1-d", "i1-p"]


def test_of_several_groups_those_that_fit_are_chosen() -> None:
    cache = cluster(3, 3)
    found = tree(minSubGroup=1)
    found = [o for o in found if isinstance(o, PodGroup) or not o.name.startswith("i0")]
    fill(cache, found)
    cache.set_pod(kai_pod("i0-p", "g", "i0-p", gpus=4))
    cache.set_pod(kai_pod("i0-d", "g", "i0-d"))

    assert placed(cache) == ["i1-d", "i1-p"]


def test_a_group_beyond_the_minimum_grows_as_a_whole_or_not_at_all() -> None:
    cache = cluster(3)
    fill(cache, tree(minSubGroup=1))
    assert placed(cache) == ["i0-d", "i0-p"]

    cache = cluster(4)
    fill(cache, tree(minSubGroup=1))
    assert placed(cache) == ["i0-d", "i0-p", "i1-d", "i1-p"]


def test_constraints_hold_at_every_node_of_a_tree() -> None:
    cache = cluster(1, 1, 1, 1)
    subs = [dict(sub) for sub in TREE]
    for at in (0, 3):
        subs[at]["topologyConstraint"] = {"requiredTopologyLevel": "rack"}
    fill(cache, [kai("g", subGroups=subs), *tree()[1:]])
    result = run_cycle(cache.snapshot(), SchedulerConfig())
    racks = {b.pod: int(b.node[1:]) // 2 for b in result.bindings}

    assert len(racks) == 4
    assert racks["default/i0-p"] == racks["default/i0-d"]
    assert racks["default/i1-p"] == racks["default/i1-d"]


@pytest.mark.parametrize(
    ("subs", "words"),
    [
        ([{"name": "a"}, {"name": "a"}], "one name"),
        ([{"name": "a", "parent": "b"}], "the parent 'b'"),
        ([{"name": "a", "parent": "b"}, {"name": "b", "parent": "a"}], "in a circle"),
    ],
)
def test_sub_groups_that_are_no_tree_are_refused(subs: list[Any], words: str) -> None:
    with pytest.raises(BadInputError, match=words):
        podgroup_spec(kai("g", subGroups=subs))


def upstream(name: str, **policy: Any) -> UpstreamPodGroup:
    raw = {
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"schedulingPolicy": policy},
    }
    return msgspec.convert(raw, UpstreamPodGroup)


def test_an_upstream_group_is_a_gang_by_its_policy() -> None:
    cache = cluster(2)
    cache.set_upstream_group(upstream("g", gang={"minCount": 3}))
    for name in ("a", "b", "c"):
        cache.set_pod(pod(name, schedulingGroup={"podGroupName": "g"}))
    assert placed(cache) == []

    cache.set_upstream_group(upstream("g", basic={}))
    assert placed(cache) == ["a", "b"]


def test_each_replica_of_a_workloads_group_is_a_gang() -> None:
    cache = cluster(3)
    raw = {
        "metadata": {"name": "w", "namespace": "default"},
        "spec": {"podGroups": [{"name": "x", "policy": {"gang": {"minCount": 2}}}]},
    }
    cache.set_workload(msgspec.convert(raw, Workload))
    for replica in ("0", "1"):
        for name in ("a", "b"):
            ref = {"name": "w", "podGroup": "x", "podGroupReplicaKey": replica}
            cache.set_pod(pod(f"{name}{replica}", workloadRef=ref))

    assert placed(cache) == ["a0", "b0"]


def lws(index: int, worker: int, size: int = 3) -> Pod:
    return pod(
        f"l-{index}-{worker}",
        labels={
            "leaderworkerset.sh/name": "l",
            "leaderworkerset.sh/group-index": str(index),
            "leaderworkerset.sh/worker-index": str(worker),
        },
        annotations={
            "leaderworkerset.sh/size": str(size),
            "leaderworkerset.sh/exclusive-topology": "rack",
        },
    )


def test_a_group_of_a_leader_worker_set_is_a_gang_in_one_domain() -> None:
    cache = cluster(1, 1, 2, 1)
    for worker in range(3):
        cache.set_pod(lws(0, worker))
    result = run_cycle(cache.snapshot(), SchedulerConfig())

    assert {b.node for b in result.bindings} == {"n2", "n3"}
    cache.remove_pod("default/l-0-2")
    assert placed(cache) == []


def test_a_leader_whose_workers_are_made_when_it_is_ready_does_not_wait_for_them() -> None:
    cache = cluster(1, 1, 2, 1)
    cache.set_pod(lws(0, 0))
    assert placed(cache) == []
    raw = {
        "metadata": {"name": "l", "namespace": "default"},
        "spec": {"startupPolicy": "LeaderReady"},
    }
    cache.set_leader_worker_set(msgspec.convert(raw, LeaderWorkerSet))
    assert placed(cache) == ["l-0-0"]

    cache.assume("default/l-0-0", "n2")
    cache.set_pod(lws(0, 1))
    cache.set_pod(lws(0, 2))
    result = run_cycle(cache.snapshot(), SchedulerConfig())
    assert {b.node for b in result.bindings} == {"n2", "n3"}, "in the leader's rack"

    cache.remove_leader_worker_set("default/l")
    cache.forget("default/l-0-0")
    cache.remove_pod("default/l-0-2")
    assert placed(cache) == []


def test_a_job_with_a_minimum_is_a_gang_and_grows_beyond_it() -> None:
    cache = cluster(3)
    labels = {"batch.kubernetes.io/job-name": "j"}
    for at in range(4):
        cache.set_pod(
            pod(f"j-{at}", labels=labels, annotations={"kai.scheduler/batch-min-member": "2"})
        )
    assert placed(cache) == ["j-0", "j-1", "j-2"]

    small = cluster(1)
    for at in range(4):
        small.set_pod(
            pod(f"j-{at}", labels=labels, annotations={"kai.scheduler/batch-min-member": "2"})
        )
    assert placed(small) == []


def test_pods_of_a_job_without_a_minimum_are_on_their_own() -> None:
    cache = cluster(1)
    for at in range(2):
        cache.set_pod(pod(f"j-{at}", labels={"batch.kubernetes.io/job-name": "j"}))
    assert placed(cache) == ["j-0"]
