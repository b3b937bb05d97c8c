"""Autoscalers that a template asks for, and scaling by them or by hand."""

from __future__ import annotations

from typing import Any

from tests.controllers.farm import NS, Farm, clique, pcs, play, typed

from spinney.api.core import HorizontalPodAutoscaler, Pod, Service
from spinney.api.grove import PodClique, PodCliqueScalingGroup, PodCliqueSet
from spinney.controllers.autoscaling.decide import decide, wanted_autoscalers

CPU = {
    "type": "Resource",
    "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 70}},
}


def service(replicas: int = 1, **config: Any) -> dict[str, Any]:
    scale = {"maxReplicas": 5, "minReplicas": 2, **config}
    group = {
        "name": "g",
        "cliqueNames": ["b"],
        "replicas": 2,
        "minAvailable": 1,
        "scaleConfig": {"maxReplicas": 6, "minReplicas": 2, "metrics": [CPU]},
    }
    return pcs(
        clique("a", 3, min=2, autoScalingConfig=scale),
        clique("b"),
        replicas=replicas,
        groups=[group],
    )


def test_each_replica_has_an_autoscaler_for_each_target_named_like_it() -> None:
    made = {hpa.name: hpa for hpa in wanted_autoscalers(typed(service(2)))}
    assert list(made) == ["s-0-a", "s-0-g", "s-1-a", "s-1-g"]
    assert made["s-0-a"].spec == {
        "scaleTargetRef": {"apiVersion": "grove.io/v1alpha1", "kind": "PodClique", "name": "s-0-a"},
        "minReplicas": 2,
        "maxReplicas": 5,
    }
    assert made["s-1-g"].spec["scaleTargetRef"]["kind"] == "PodCliqueScalingGroup"
    assert made["s-1-g"].spec["metrics"] == [CPU]
    assert made["s-0-g"].metadata.owner_references[0].kind == "PodCliqueSet"
    assert made["s-0-g"].labels["app.kubernetes.io/component"] == "pcs-hpa"


def test_an_autoscaler_never_asks_for_less_than_the_minimum() -> None:
    low = typed(service(minReplicas=1))
    assert wanted_autoscalers(low)[0].spec["minReplicas"] == 2


def test_what_somebody_adds_to_an_autoscaler_stays() -> None:
    pcs_ = typed(service())
    existing = {hpa.name: hpa for hpa in wanted_autoscalers(pcs_)}
    existing["s-0-a"].spec["behavior"] = {"scaleDown": {"stabilizationWindowSeconds": 60}}
    existing["s-0-a"].spec["metrics"] = [CPU]
    assert decide(pcs_, existing) == [], "metrics that the API server fills in are no difference"


def test_autoscalers_follow_the_template_and_go_with_their_targets() -> None:
    async def autoscalers(farm: Farm) -> dict[str, HorizontalPodAutoscaler]:
        found = await farm.client.list(HorizontalPodAutoscaler, NS)
        return {hpa.name: hpa for hpa in found.items}

    async def edit(farm: Farm, change: dict[str, Any]) -> None:
        await farm.client.patch(PodCliqueSet, "s", change, NS)
        await farm.quiet()

    async def scene(farm: Farm) -> None:
        await farm.apply(service(2))
        await farm.quiet()
        assert list(await autoscalers(farm)) == ["s-0-a", "s-0-g", "s-1-a", "s-1-g"]
        await edit(farm, {"spec": {"replicas": 1}})
        assert list(await autoscalers(farm)) == ["s-0-a", "s-0-g"]
        template = service(maxReplicas=9)["spec"]["template"]
        template["podCliqueScalingGroups"][0]["scaleConfig"].pop("metrics")
        await edit(farm, {"spec": {"template": template}})
        found = await autoscalers(farm)
        assert found["s-0-a"].spec["maxReplicas"] == 9
        assert found["s-0-g"].spec.get("metrics") in (None, [])
        template["cliques"][0]["spec"].pop("autoScalingConfig")
        await edit(farm, {"spec": {"template": template}})
        assert list(await autoscalers(farm)) == ["s-0-g"]
        await farm.client.delete(HorizontalPodAutoscaler, "s-0-g", NS)
        await farm.quiet()
        assert list(await autoscalers(farm)) == ["s-0-g"]
        await farm.client.delete(PodCliqueSet, "s", NS)
        await farm.quiet()
        assert await autoscalers(farm) == {}

    play(scene)


def test_all_three_kinds_scale_by_their_subresource_to_zero_and_back() -> None:
    async def scale(farm: Farm, kind: type[Any], name: str, replicas: int, pods: int) -> None:
        await farm.client.set_scale(kind, name, replicas, NS)
        await farm.ready(pods)
        await farm.quiet()
        found = await farm.client.get_scale(kind, name, NS)
        assert found.status is not None
        assert (found.spec.replicas, found.status.replicas) == (replicas, replicas)

    async def scene(farm: Farm) -> None:
        await farm.apply(service())
        await farm.ready(5)
        await scale(farm, PodClique, "s-0-a", 5, 7)
        await scale(farm, PodClique, "s-0-a", 0, 2)
        await scale(farm, PodCliqueScalingGroup, "s-0-g", 0, 0)
        await scale(farm, PodCliqueScalingGroup, "s-0-g", 4, 4)
        await scale(farm, PodClique, "s-0-a", 2, 6)
        await scale(farm, PodCliqueSet, "s", 3, 16)
        await scale(farm, PodCliqueSet, "s", 0, 0)
        assert await farm.names(Service) == []
        assert await farm.names(HorizontalPodAutoscaler) == []
        assert await farm.names(PodClique) == []
        await scale(farm, PodCliqueSet, "s", 1, 5)
        selectors = [
            (await farm.client.get_scale(kind, name, NS)).status
            for kind, name in ((PodClique, "s-0-a"), (PodCliqueScalingGroup, "s-0-g"))
        ]
        for status, count in zip(selectors, (3, 2), strict=True):
            assert status is not None
            found = await farm.client.list(Pod, NS, labels=status.selector)
            assert len(found.items) == count

    play(scene)


def test_scaling_in_takes_the_pod_with_least_to_lose() -> None:
    async def scene(farm: Farm) -> None:
        await farm.apply(pcs(clique("a", 4, min=1)))
        await farm.ready(4)
        costs = dict(zip([p.name for p in await farm.pods()], ("7", "-1", None, "3"), strict=True))
        for name, cost in costs.items():
            key = "spinney.dev/deletion-cost"
            if cost is not None:
                patch = {"metadata": {"annotations": {key: cost}}}
                await farm.client.patch(Pod, name, patch, NS)
        for left in (3, 2, 1):
            await farm.client.set_scale(PodClique, "s-0-a", left, NS)
            await farm.ready(left)
            await farm.quiet()
            kept = sorted(costs, key=lambda name: int(costs[name] or 0))[-left:]
            assert sorted(p.name for p in await farm.pods()) == sorted(kept)

    play(scene)
