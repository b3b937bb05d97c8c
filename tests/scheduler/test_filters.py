"""Filters, case by case: spreading, volumes, claimed devices, parts of GPUs, MIG, pools."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.scheduler.table import spread

from spinney.api.core import Node, Pod
from spinney.api.devices import DeviceClass, ResourceClaim, ResourceSlice
from spinney.scheduler.cache import Cache
from spinney.scheduler.config import SchedulerConfig
from spinney.scheduler.cycle import CycleResult, run_cycle
from spinney.scheduler.scenario import fill, scenario
from spinney.scheduler.session import Session

ALLOCATE = SchedulerConfig(actions=("allocate",))


def run(config: SchedulerConfig = ALLOCATE, **document: Any) -> dict[str, str]:
    result = run_cycle(fill(scenario(document)).snapshot(), config)
    return {b.pod.removeprefix("default/"): b.node for b in result.bindings}


def reason(**document: Any) -> str:
    result: CycleResult = run_cycle(fill(scenario(document)).snapshot(), ALLOCATE)
    return next(v.reason for v in result.verdicts.values() if v.reason)


def nodes(*gpus: int, **more: Any) -> list[dict[str, Any]]:
    return [
        {"name": f"n{at}", "gpus": count, "labels": {"zone": f"z{at // 2}"}, **more}
        for at, count in enumerate(gpus)
    ]


# Topology spread


def even(key: str = "zone", skew: int = 1, hard: bool = True, **more: Any) -> dict[str, Any]:
    line = {
        "topologyKey": key,
        "maxSkew": skew,
        "whenUnsatisfiable": "DoNotSchedule" if hard else "ScheduleAnyway",
        "labelSelector": {"matchLabels": {"app": "x"}},
        **more,
    }
    return {"labels": {"app": "x"}, "spec": {"topologySpreadConstraints": [line]}}


def test_pods_are_spread_as_evenly_as_the_skew_asks() -> None:
    gang = {"name": "g", "groups": [{"name": "p", "pods": 4, "gpus": 1, **even()}]}
    found = run(nodes=nodes(4, 4, 4, 4), gangs=[gang])

    zones = [node in ("n0", "n1") for node in found.values()]
    assert sorted(zones) == [False, False, True, True]


def test_what_cannot_be_spread_waits_and_says_so() -> None:
    gang = {"name": "g", "groups": [{"name": "p", "pods": 4, "gpus": 1, **even()}]}
    document = {"nodes": nodes(4, 4, 1), "gangs": [gang]}

    assert run(**document) == {}
    assert "would fit without topology spread constraints" in reason(**document)


def test_pods_on_nodes_count_for_the_skew() -> None:
    there = {"name": "there", "pods": 0, "on": ["n0"], "labels": {"app": "x"}}
    found = run(nodes=nodes(4, 4, 4), pods=[there, {"name": "p", "gpus": 1, **even()}])

    assert found == {"p": "n2"}


def test_a_domain_where_the_pod_may_not_be_does_not_count() -> None:
    gang = {"name": "g", "groups": [{"name": "p", "pods": 2, "gpus": 1, **even()}]}
    gang["groups"][0]["spec"]["nodeSelector"] = {"zone": "z0"}
    assert len(run(nodes=nodes(4, 4, 4), gangs=[gang])) == 2

    gang["groups"][0]["spec"]["topologySpreadConstraints"][0]["nodeAffinityPolicy"] = "Ignore"
    assert run(nodes=nodes(4, 4, 4), gangs=[gang]) == {}


def test_with_fewer_domains_than_wanted_the_emptiest_counts_as_empty() -> None:
    gang = {"name": "g", "groups": [{"name": "p", "pods": 2, "gpus": 1, **even(minDomains=2)}]}
    assert run(nodes=nodes(4, 4), gangs=[gang]) == {}


def test_a_soft_spread_is_kept_where_it_can_be() -> None:
    gang = {"name": "g", "groups": [{"name": "p", "pods": 2, "gpus": 1, **even(hard=False)}]}
    found = run(nodes=nodes(2, 0, 2), gangs=[gang])
    assert sorted(found.values()) == ["n0", "n2"]
    assert len(run(nodes=nodes(2, 0, 0), gangs=[gang])) == 2


def test_pods_of_another_revision_do_not_count() -> None:
    there = {"name": "old", "pods": 0, "on": ["n0"], "labels": {"app": "x", "rev": "1"}}
    new = {"name": "p", "gpus": 1, **even(matchLabelKeys=["rev"], skew=1)}
    new["labels"] = {"app": "x", "rev": "2"}
    found = run(nodes=nodes(4, 0, 4), pods=[{**there, "gpus": 2}, new])

    assert found == {"p": "n0"}


# Volumes and devices


def test_a_volume_that_some_nodes_reach_keeps_its_pods_there() -> None:
    pod = {"name": "p", "gpus": 1, "volumes": ["data"]}
    volume = {"name": "data", "nodes": ["n1"]}
    assert run(nodes=nodes(4, 4), volumes=[volume], pods=[pod]) == {"p": "n1"}

    by_label = {"name": "data", "labels": {"zone": "z1"}}
    assert run(nodes=nodes(4, 4, 4), volumes=[by_label], pods=[pod]) == {"p": "n2"}


def test_a_volume_that_nothing_free_reaches_is_the_reason() -> None:
    pod = {"name": "p", "gpus": 1, "volumes": ["data"]}
    volume = {"name": "data", "nodes": ["n1"]}
    text = reason(nodes=nodes(4, 0), volumes=[volume], pods=[pod])

    assert "would fit if its volumes and claimed devices were reached from everywhere" in text


def test_claimed_devices_are_counted_by_class() -> None:
    gang = {"name": "g", "groups": [{"name": "p", "pods": 3, "claims": {"gpu": 2}}]}
    few = [{"name": "a", "devices": {"gpu": 4}}, {"name": "b", "devices": {"gpu": 1}}]
    many = [{"name": "a", "devices": {"gpu": 4}}, {"name": "b", "devices": {"gpu": 2}}]

    assert run(nodes=few, gangs=[gang]) == {}
    assert sorted(run(nodes=many, gangs=[gang]).values()) == ["a", "a", "b"]


def raw(kind: type[Any], name: str, namespace: str = "", **more: Any) -> Any:
    return msgspec.convert({"metadata": {"name": name, "namespace": namespace}, **more}, kind)


def test_claims_of_the_api_count_by_class_and_pin_once_allocated() -> None:
    cache = Cache()
    for name in ("a", "b"):
        allocatable = {"cpu": 4, "pods": 10}
        cache.set_node(raw(Node, name, status={"allocatable": allocatable}))
        spec: dict[str, Any] = {"driver": "gpu.example.com", "nodeName": name}
        spec["devices"] = [{"name": f"d{at}"} for at in range(2)]
        cache.set_resource_slice(raw(ResourceSlice, f"slice-{name}", spec=spec))
    cel = {"cel": {"expression": 'device.driver == "gpu.example.com"'}}
    cache.set_device_class(raw(DeviceClass, "gpu", spec={"selectors": [cel]}))
    request = {"requests": [{"name": "r", "exactly": {"deviceClassName": "gpu", "count": 2}}]}
    allocated = {
        "nodeSelector": {
            "nodeSelectorTerms": [
                {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["b"]}]}
            ]
        }
    }
    for at in range(3):
        status = {"allocation": allocated} if at == 0 else {}
        cache.set_resource_claim(
            raw(ResourceClaim, f"c{at}", "default", spec={"devices": request}, status=status)
        )
        claims = [{"name": "x", "resourceClaimName": f"c{at}"}]
        spec = {"schedulerName": "spinney-scheduler", "resourceClaims": claims}
        cache.set_pod(raw(Pod, f"p{at}", "default", spec=spec))

    result = run_cycle(cache.snapshot(), ALLOCATE)
    assert {b.pod: b.node for b in result.bindings} == {"default/p0": "b", "default/p1": "a"}

    cache.remove_claim("default/c2")
    waiting = run_cycle(cache.snapshot(), ALLOCATE)
    assert len(waiting.bindings) == 2
    assert set(waiting.verdicts) == {"default/p0", "default/p1"}, "p2 waits for its claim"


# Parts of GPUs


def part(name: str, fraction: float = 0.5, **more: Any) -> dict[str, Any]:
    return {"name": name, "gpuFraction": fraction, **more}


def test_two_halves_share_a_gpu_and_the_third_opens_another() -> None:
    assert len(run(nodes=nodes(1), pods=[part("a"), part("b"), part("c")])) == 2
    assert len(run(nodes=nodes(2), pods=[part("a"), part("b"), part("c")])) == 3


def test_a_shared_gpu_is_no_whole_one_any_more() -> None:
    shared = part("there", pods=0, on=["n0"])
    assert run(nodes=nodes(2), pods=[shared, {"name": "w", "gpus": 2}]) == {}
    assert run(nodes=nodes(2), pods=[shared, {"name": "w", "gpus": 1}]) == {"w": "n0"}


def test_the_nodes_where_a_gpu_is_shared_already_come_first() -> None:
    shared = part("there", 0.3, pods=0, on=["n1"])
    assert run(nodes=nodes(4, 8), pods=[shared, part("p", 0.7)]) == {"p": "n1"}
    assert run(nodes=nodes(4, 8), pods=[shared, part("p", 0.8)]) == {"p": "n0"}


def test_parts_that_do_not_fit_one_device_are_not_added_up_over_two() -> None:
    there = [
        {"state": "running", "node": "n0", "gpuIndices": [0]},
        {"state": "running", "node": "n0", "gpuIndices": [1]},
    ]
    busy = {"name": "busy", "gpuFraction": 0.5, "pods": there}
    document = {"nodes": nodes(2), "pods": [busy, part("p", 0.6)]}

    assert run(**document) == {}
    assert "without that part of a GPU free" in reason(**document)
    assert run(nodes=nodes(2), pods=[busy, part("p", 0.5)]) == {"p": "n0"}


def test_a_share_by_memory_depends_on_the_nodes_gpus() -> None:
    pods = [{"name": f"p{at}", "gpuMemory": 40_000} for at in range(3)]
    small = [{**node, "gpuMemory": 40_000} for node in nodes(1)]
    large = [{**node, "gpuMemory": 80_000} for node in nodes(1)]

    assert len(run(nodes=small, pods=pods)) == 1
    assert len(run(nodes=large, pods=pods)) == 2
    assert run(nodes=nodes(1), pods=pods) == {}


def test_a_part_of_several_gpus_takes_several() -> None:
    pods = [part(f"p{at}", 0.5, gpuDevices=2) for at in range(3)]
    assert len(run(nodes=nodes(2), pods=pods)) == 2
    assert run(nodes=nodes(1), pods=pods) == {}


def test_a_gang_of_sharers_is_placed_whole_or_not_at_all() -> None:
    gang = {"name": "g", "groups": [{"name": "p", "pods": 5, "gpuFraction": 0.4}]}
    assert run(nodes=nodes(2), gangs=[gang]) == {}
    assert spread(list(run(nodes=nodes(2, 1), gangs=[gang]).values())) == [3, 2]


def test_queues_count_parts_of_gpus() -> None:
    queue = {"name": "q", "gpus": {"quota": 1, "limit": 1}}
    pods = [part(f"p{at}", 0.4, queue="q") for at in range(3)]
    assert len(run(nodes=nodes(4), queues=[queue], pods=pods)) == 2


SHARES = st.lists(st.tuples(st.sampled_from([200, 300, 500, 700]), st.integers(1, 2)), max_size=8)


@settings(max_examples=60, deadline=None)
@given(SHARES, st.integers(0, 4), st.integers(0, 3))
def test_taking_sharers_back_restores_every_device(
    shares: list[tuple[int, int]], gpus: int, kept: int
) -> None:
    lines = [
        part(f"p{at}", milli / 1000, gpuDevices=each) for at, (milli, each) in enumerate(shares)
    ]
    session = Session(fill(scenario({"nodes": nodes(gpus), "pods": lines})).snapshot(), ALLOCATE)
    pods = [gang.root.pending[0] for gang in session.snapshot.gangs]
    states = []
    for pod in pods:
        cls = session.class_of(pod)
        if session.room(cls)[0] > 0:
            states.append((session.statement.checkpoint(), session.idle.copy(), frees(session)))
            session.statement.place(cls, (pod,), session.layout.rows[:1])
            assert (session.idle >= 0).all()
            assert all(free >= 0 for free in frees(session))
    for checkpoint, idle, devices in reversed(states[min(kept, len(states)) :]):
        session.statement.rollback(checkpoint)
        assert (session.idle == idle).all()
        assert frees(session) == devices


def frees(session: Session) -> list[int]:
    return sorted(device.free for device in session.shares.devices.get(0, ()))


# MIG, strategies and pools


def test_slices_of_gpus_are_resources_of_their_own() -> None:
    mig = "nvidia.com/mig-1g.10gb"
    document = {
        "nodes": [{"name": "a", "allocatable": {mig: 2}}, {"name": "b", "gpus": 8}],
        "gangs": [{"name": "g", "groups": [{"name": "p", "pods": 3, "requests": {mig: 1}}]}],
    }
    assert run(**document) == {}
    document["nodes"][0]["allocatable"][mig] = 3
    assert set(run(**document).values()) == {"a"}


@pytest.mark.parametrize(("score", "node"), [("bin-pack", "n1"), ("spread", "n0")])
def test_a_configuration_packs_or_spreads(score: str, node: str) -> None:
    config = SchedulerConfig(actions=("allocate",), scores=((score, 1.0),))
    assert run(config, nodes=nodes(8, 4), pods=[{"name": "p", "gpus": 1}]) == {"p": node}


def test_a_scheduler_of_a_pool_sees_its_nodes_and_pods_only() -> None:
    key = "kai.scheduler/node-pool"
    document = {
        "nodes": [
            {"name": "a", "gpus": 8, "labels": {key: "x"}},
            {"name": "b", "gpus": 8},
        ],
        "pods": [
            {"name": "p", "gpus": 1, "labels": {key: "x"}},
            {"name": "q", "gpus": 1},
        ],
    }

    def placed(pool: str) -> dict[str, str]:
        config = SchedulerConfig(actions=("allocate",), pool_key=key, pool=pool)
        cache = Cache(config.scheduler_names, config.pool_label)
        result = run_cycle(fill(scenario(document), cache).snapshot(), config)
        return {b.pod.removeprefix("default/"): b.node for b in result.bindings}

    assert placed("x") == {"p": "a"}
    assert placed("") == {"q": "b"}
