"""Every manifest written for Grove runs unchanged: its samples and the fixtures of its tests.

They are rebuilt from what they express; each goes through admission and the controllers until all
is ready, and away again.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import pytest
from tests.controllers.farm import NS, Farm, play

from spinney.api import codec
from spinney.api.computedomain import ComputeDomain
from spinney.api.core import HorizontalPodAutoscaler, Pod, Service
from spinney.api.devices import ResourceClaim
from spinney.api.grove import (
    ClusterTopologyBinding,
    PodClique,
    PodCliqueScalingGroup,
    PodCliqueSet,
)
from spinney.api.podgang import PodGang
from spinney.kube.errors import InvalidError

GROUP_KEY = "grove.io/mnnvl-group"
LEVELS = ("zone", "block", "rack", "host")


@dataclass(frozen=True, slots=True)
class Case:
    """A manifest and what has to come of it."""

    name: str
    manifest: dict[str, Any]
    pods: int
    gangs: list[str]
    autoscalers: list[str] = field(default_factory=list)
    domains: list[str] = field(default_factory=list)


def roles(text: str, after: dict[str, list[str]], more: dict[str, dict[str, Any]]) -> list[Any]:
    """Cliques as ``name:replicas/minimum``; the minimum may be left out, as Grove's samples do."""
    found = []
    for word in text.split():
        name, _, counts = word.partition(":")
        replicas, _, minimum = counts.partition("/")
        spec: dict[str, Any] = {
            "roleName": name,
            "replicas": int(replicas or 1),
            "podSpec": {"containers": [{"name": name, "image": "registry.k8s.io/pause:3.10"}]},
        }
        if minimum:
            spec["minAvailable"] = int(minimum)
        if name in after:
            spec["startsAfter"] = after[name]
        outer = copy.deepcopy(more.get(name, {}))
        gpus = outer.pop("gpus", 0)
        if gpus:
            spec["podSpec"]["containers"][0]["resources"] = {"limits": {"nvidia.com/gpu": gpus}}
        if outer.pop("no role", False):
            del spec["roleName"]
        if (most := outer.pop("hpa", None)) is not None:
            spec["autoScalingConfig"] = {"maxReplicas": most, "metrics": [METRIC]}
        found.append({"name": name, "spec": spec, **outer})
    return found


METRIC = {
    "type": "Resource",
    "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80}},
}


def case(  # One argument for each thing a manifest may say.
    name: str,
    cliques: str,
    pods: int,
    gangs: str = "",
    *,
    groups: dict[str, str] | None = None,
    after: dict[str, list[str]] | None = None,
    of: dict[str, dict[str, Any]] | None = None,
    group_of: dict[str, dict[str, Any]] | None = None,
    replicas: int | None = 1,
    startup: str = "",
    annotations: dict[str, str] | None = None,
    strategy: str = "",
    autoscalers: str = "",
    domains: str = "",
    **template: Any,
) -> Any:
    """A set; groups are ``replicas/minimum clique clique``, gangs those above the base."""
    configs = []
    for group, text in (groups or {}).items():
        counts, *members = text.split()
        config: dict[str, Any] = {"name": group, "cliqueNames": members}
        count, _, minimum = counts.partition("/")
        if count != "-":
            config["replicas"] = int(count)
        if minimum:
            config["minAvailable"] = int(minimum)
        config |= (group_of or {}).get(group, {})
        configs.append(config)
    if after and not startup:
        startup = "Explicit"
    body: dict[str, Any] = {"cliques": roles(cliques, after or {}, of or {}), **template}
    if startup:
        body["cliqueStartupType"] = f"CliqueStartupType{startup}"
    if configs:
        body["podCliqueScalingGroups"] = configs
    spec: dict[str, Any] = {"template": body}
    if replicas is not None:
        spec["replicas"] = replicas
    if strategy:
        spec["updateStrategy"] = {"type": strategy}
    metadata: dict[str, Any] = {"name": name, "namespace": NS, "labels": {"app": name}}
    if annotations:
        metadata["annotations"] = annotations
    manifest = {
        "apiVersion": "grove.io/v1alpha1",
        "kind": "PodCliqueSet",
        "metadata": metadata,
        "spec": spec,
    }
    base = [f"{name}-{i}" for i in range(replicas or 0)]
    found = Case(
        name,
        manifest,
        pods,
        sorted([*base, *gangs.split()]),
        sorted(autoscalers.split()),
        sorted(domains.split()),
    )
    return pytest.param(found, id=name)


def pack(
    required: str = "", preferred: str = "", topology: str = "grove-topology"
) -> dict[str, Any]:
    inner = {"required": required, "preferred": preferred}
    made = {"topologyName": topology, "pack": {k: v for k, v in inner.items() if v}}
    return {"topologyConstraint": made}


HPA5 = {"scaleConfig": {"maxReplicas": 6, "metrics": [METRIC]}}
SAMPLES = [
    case(
        "simple1",
        "pca:3 pcb:2 pcc:2 pcd:2",
        9,
        groups={"sga": "- pcb pcc"},
        of={"pca": {"hpa": 5}},
        group_of={"sga": HPA5},
        autoscalers="simple1-0-pca simple1-0-sga",
    ),
    case(
        "simple2",
        "pca:3 pcb:2 pcc:2 pcd:2",
        9,
        after={"pcb": ["pca"], "pcc": ["pca"], "pcd": ["pcb", "pcc"]},
        of={"pca": {"hpa": 5}},
        terminationDelay="1m",
        autoscalers="simple2-0-pca",
    ),
    case(
        "simple3",
        "pca:3 pcb:2 pcc:2 pcd:2 pce:2",
        23,
        "simple3-0-sga-0",
        groups={"sga": "3/2 pcb pcc pcd"},
        after={"pcb": ["pca"], "pcc": ["pca"], "pcd": ["pcb", "pcc"], "pce": ["pcb", "pcc"]},
        of={"pca": {"hpa": 5}},
        group_of={"sga": HPA5},
        terminationDelay="1m",
        autoscalers="simple3-0-pca simple3-0-sga",
    ),
    case("single-node-aggregated", "model-worker:2", 2),
    case("single-node-disaggregated", "prefill:3 decode:2", 5),
    case(
        "multinode-aggregated",
        "leader:1 worker:3",
        8,
        "multinode-aggregated-0-model-instance-0",
        groups={"model-instance": "2 leader worker"},
    ),
    case(
        "multinode-disagg",
        "pleader:1 pworker:4 dleader:1 dworker:2",
        13,
        "multinode-disagg-0-prefill-0",
        groups={"prefill": "2 pleader pworker", "decode": "1 dleader dworker"},
    ),
    case(
        "pipeline",
        "frontend:2 vision-encoder:1 pleader:1 pworker:4 dleader:1 dworker:2",
        11,
        groups={"prefill": "1 pleader pworker", "decode-cluster": "1 dleader dworker"},
    ),
    case(
        "mn-disagg",
        "frontend:2 pleader:1 pworker:3 dleader:1 dworker:2",
        13,
        "mn-disagg-0-prefill-0",
        groups={"prefill": "2 pleader pworker", "decode": "1 dleader dworker"},
        of={"frontend": {"no role": True}},
    ),
    case("env-demo-standalone", "frontend:2", 2, of={"frontend": {"no role": True}}),
    case(
        "env-demo-pcsg",
        "leader:1 worker:3",
        8,
        "env-demo-pcsg-0-model-instance-0",
        groups={"model-instance": "2 leader worker"},
    ),
]

WL1: dict[str, Any] = {"groups": {"sg-x": "2/2 pc-b pc-c"}}
WL2: dict[str, Any] = {"groups": {"sg-x": "2/1 pc-b pc-c"}}
STRICT, LENIENT = "pc-a:2/2 pc-b:1/1 pc-c:3/3", "pc-a:2/1 pc-b:1/1 pc-c:3/1"
WORKLOADS = [
    case("workload1", STRICT, 10, **WL1),
    case("workload2", LENIENT, 10, "workload2-0-sg-x-0", **WL2),
    case("workload3", STRICT, 10, **WL1, startup="InOrder"),
    case("workload4", LENIENT, 10, "workload4-0-sg-x-0", **WL2, startup="InOrder"),
    case("workload5", STRICT, 10, **WL1, after={"pc-c": ["pc-a"], "pc-b": ["pc-c"]}),
    case(
        "workload6",
        LENIENT,
        10,
        "workload6-0-sg-x-0",
        **WL2,
        after={"pc-b": ["pc-a"], "pc-c": ["pc-b"]},
    ),
    case("workload1-gt", STRICT, 10, **WL1, terminationDelay="10s"),
    case("workload2-gt", LENIENT, 10, "workload2-gt-0-sg-x-0", **WL2, terminationDelay="10s"),
    case(
        "workload5-gt",
        "pc-a:2/1 pc-b:1/1 pc-c:3/3",
        10,
        "workload5-gt-0-sg-x-0",
        **WL2,
        terminationDelay="10s",
    ),
    case("workload-ondelete", "pc-a:2/1 pc-b:1/1 pc-c:3/3", 10, **WL1, strategy="OnDelete"),
    case("upgrade", "bootstrap:1 worker:2", 3, after={"worker": ["bootstrap"]}),
    case("scale-test", "expert-worker:2/2", 6, replicas=3),
    case("scale-test-moe", "expert-worker:2/2", 0, replicas=None),
]

RACK, HOST, BLOCK = pack("rack"), pack("host"), pack("block")
PAIRED: dict[str, Any] = {
    "groups": {"decoder": "2/1 dworker dleader", "prefill": "2/1 pworker pleader"},
    "group_of": {"decoder": RACK, "prefill": RACK},
}
PAIRS = "dworker:1 dleader:1 pworker:1 pleader:1 router:2"
TOPOLOGY = [
    case(
        "tas-hierarchy",
        "prefill:2 decode:2",
        8,
        "tas-hierarchy-0-inference-0",
        groups={"inference": "2/1 prefill decode"},
        group_of={"inference": RACK},
        of={"prefill": HOST, "decode": HOST},
        **BLOCK,
    ),
    case("tas-host-level", "worker:2", 2, of={"worker": HOST}),
    case(
        "tas-indep-clq", "rack-pods:3 block-pods:4", 7, of={"rack-pods": RACK, "block-pods": BLOCK}
    ),
    case("tas-insuffic", "worker:10", 10, **RACK),
    case(
        "tas-large-scale",
        "worker:1 router:1",
        20,
        " ".join(f"tas-large-scale-0-workers-{i}" for i in range(7)),
        groups={"workers": "10/3 worker router"},
        group_of={"workers": RACK},
        of={"worker": HOST, "router": HOST},
        **BLOCK,
    ),
    case("tas-multi-topology-h100", "worker:2", 2, **pack("block", topology="h100")),
    case("tas-multi-topology-gb200", "worker:2", 2, **pack("block", topology="gb200")),
    case("tas-multirep", "worker:2", 4, replicas=2, **RACK),
    case(
        "tas-no-constraint",
        "worker:2",
        4,
        "tas-no-constraint-0-workers-0",
        groups={"workers": "2/1 worker"},
    ),
    case(
        "tas-pcs-multi-pcsg",
        PAIRS,
        10,
        "tas-pcs-multi-pcsg-0-decoder-0 tas-pcs-multi-pcsg-0-prefill-0",
        **PAIRED,
        **BLOCK,
    ),
    case(
        "tas-pcs-multi-pcsg-mr",
        PAIRS,
        20,
        " ".join(
            f"tas-pcs-multi-pcsg-mr-{i}-{g}-0" for i in (0, 1) for g in ("decoder", "prefill")
        ),
        **PAIRED,
        replicas=2,
        **BLOCK,
    ),
    case("tas-pcs-pclq", "worker:2", 2, of={"worker": HOST}, **BLOCK),
    case(
        "tas-pcsg-pclq",
        "worker:2",
        4,
        "tas-pcsg-pclq-0-workers-0",
        groups={"workers": "2/1 worker"},
        group_of={"workers": RACK},
        of={"worker": HOST},
    ),
    case(
        "tas-pcsg-scale",
        "worker:2",
        6,
        "tas-pcsg-scale-0-workers-0 tas-pcsg-scale-0-workers-1",
        groups={"workers": "3/1 worker"},
        group_of={"workers": RACK},
        **BLOCK,
    ),
    case(
        "tas-preferred-pack",
        "worker:2 router:2",
        6,
        "tas-preferred-pack-0-workers-0",
        groups={"workers": "2/1 worker"},
        group_of={"workers": pack(preferred="host")},
        of={"router": pack(preferred="host")},
        **pack("block", "rack"),
    ),
    case(
        "tas-sl-pcs-only",
        "worker:1 router:2",
        4,
        "tas-sl-pcs-only-0-workers-0",
        groups={"workers": "2/1 worker"},
        **RACK,
    ),
    case(
        "tas-sl-pcsg-only",
        "worker:1 router:2",
        4,
        "tas-sl-pcsg-only-0-workers-0",
        groups={"workers": "2/1 worker"},
        group_of={"workers": RACK},
    ),
    case("tas-standalone-pclq", "worker:4", 4, **pack("zone")),
    case(
        "tas-topology-condition",
        "worker:2",
        0,
        replicas=None,
        **pack("rack", topology="tas20-topology"),
    ),
]

GPU = {"gpus": 1}


def asks(value: str, gpus: int = 1) -> dict[str, Any]:
    return {"gpus": gpus, "annotations": {GROUP_KEY: value}}


MIX = [(level, own) for level in ("g1", "g2", "g3") for own in ("inherit", "train", "none")]
MNNVL = [
    case("gpu-bare", "gpu-worker:2", 2, of={"gpu-worker": GPU}),
    case(
        "gpu-default",
        "gpu-worker:2",
        4,
        replicas=2,
        of={"gpu-worker": GPU},
        annotations={GROUP_KEY: "default"},
        domains="gpu-default-0-default gpu-default-1-default",
    ),
    case("gpu-optout", "gpu-worker:1", 1, of={"gpu-worker": GPU}, annotations={GROUP_KEY: "none"}),
    case("cpu-with-annotation", "worker:1", 1, annotations={GROUP_KEY: "default"}),
    case(
        "comprehensive-bare",
        "gpu-a:1 gpu-b:1 cpu:1",
        3,
        groups={"g": "1 gpu-b cpu"},
        of={"gpu-a": GPU, "gpu-b": GPU},
    ),
    case(
        "comp-mix",
        " ".join(
            f"{g}-{own}:1" for g, own in [*MIX, ("s", "inherit"), ("s", "own"), ("s", "none")]
        ),
        12,
        groups={
            g: "1 " + " ".join(f"{g}-{own}" for level, own in MIX if level == g)
            for g in ("g1", "g2", "g3")
        },
        group_of={
            "g2": {"annotations": {GROUP_KEY: "train"}},
            "g3": {"annotations": {GROUP_KEY: "none"}},
        },
        of={
            **{f"{g}-inherit": GPU for g in ("g1", "g2", "g3", "s")},
            **{f"{g}-train": asks("infer") for g in ("g1", "g2", "g3")},
            **{f"{g}-none": asks("none") for g in ("g1", "g2", "g3", "s")},
            "s-own": asks("solo"),
        },
        annotations={GROUP_KEY: "default"},
        domains="comp-mix-0-default comp-mix-0-infer comp-mix-0-solo comp-mix-0-train",
    ),
]
LEFT = (
    PodClique,
    PodCliqueScalingGroup,
    PodGang,
    Pod,
    Service,
    HorizontalPodAutoscaler,
    ResourceClaim,
    ComputeDomain,
)


async def bindings(farm: Farm) -> None:
    for name in ("grove-topology", "h100", "gb200", "tas20-topology"):
        levels = [{"domain": level, "key": f"kubernetes.io/{level}"} for level in LEVELS]
        body = {"metadata": {"name": name}, "spec": {"levels": levels}}
        await farm.client.create(codec.from_dict(ClusterTopologyBinding, body))


@pytest.mark.parametrize("case", [*SAMPLES, *WORKLOADS, *TOPOLOGY, *MNNVL])
def test_a_manifest_for_grove_runs_and_leaves_nothing(case: Case) -> None:
    async def scene(farm: Farm) -> None:
        await bindings(farm)
        services = set(await farm.names(Service))
        await farm.apply(case.manifest)
        await farm.ready(case.pods)
        await farm.quiet()
        assert await farm.names(PodGang) == case.gangs
        assert await farm.names(HorizontalPodAutoscaler) == case.autoscalers
        assert await farm.names(ComputeDomain) == case.domains
        live = await farm.set(case.name)
        assert live.status.available_replicas == (live.spec.replicas or 0)
        assert live.status.last_errors == []
        assert {pod.labels["app.kubernetes.io/part-of"] for pod in await farm.pods()} <= {case.name}
        await farm.client.delete(PodCliqueSet, case.name, NS)

        async def gone() -> bool:
            found = [obj for kind in LEFT for obj in (await farm.client.list(kind, NS)).items]
            return {obj.name for obj in found} <= services

        await farm.until(gone, "nothing is left")

    play(scene)


def test_a_manifest_that_grove_refuses_is_refused() -> None:
    invalid = case("gpu-invalid", "w:1", 1, of={"w": GPU}, annotations={GROUP_KEY: "a b"}).values[0]
    old = case("old", "w:1", 1, topologyConstraint={"topologyName": "x", "packDomain": "rack"})

    async def scene(farm: Farm) -> None:
        for refused in (invalid, old.values[0]):
            with pytest.raises(InvalidError):
                await farm.apply(refused.manifest)

    play(scene)
