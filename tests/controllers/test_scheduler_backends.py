"""One gang, told to each scheduler in its own words."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.controllers.farm import NS, Farm, clique, pcs, play

from spinney.api import codec
from spinney.api.core import CustomResourceDefinition, Event
from spinney.api.grove_backends import VOLCANO_QUEUES
from spinney.api.meta import ObjectMeta
from spinney.api.podgang import (
    GangPackConstraint,
    GangPodGroup,
    GangTopologyConstraint,
    PodGang,
    PodGangSpec,
    TopologyConstraintGroupConfig,
)
from spinney.controllers.backends.conformance import DOCUMENT, FEATURES, document, expresses, lost
from spinney.controllers.backends.renderers import (
    ALL,
    KAI_POD_GROUPS,
    KUBE_POD_GROUPS,
    KUBE_WORKLOADS,
    VOLCANO_POD_GROUPS,
    backend_of,
)

if TYPE_CHECKING:
    from spinney.api.resource import Resource


def packed(required: str = "", preferred: str = "") -> GangTopologyConstraint:
    return GangTopologyConstraint(
        pack_constraint=GangPackConstraint(required=required or None, preferred=preferred or None)
    )


def gang() -> PodGang:
    return PodGang(
        metadata=ObjectMeta(
            name="s-0",
            namespace=NS,
            uid="u",
            labels={"kai.scheduler/queue": "team"},
            annotations={
                "grove.io/topology-name": "cluster",
                "scheduling.grove.io/volcano-queue": "night",
            },
        ),
        spec=PodGangSpec(
            pod_groups=[
                GangPodGroup(name="s-0-a", min_replicas=2),
                GangPodGroup(name="s-0-g-0-b", min_replicas=1, topology_constraint=packed("host")),
                GangPodGroup(name="s-0-g-0-c", min_replicas=3),
            ],
            topology_constraint=packed("zone", "rack"),
            topology_constraint_group_configs=[
                TopologyConstraintGroupConfig(
                    name="s-0-g-0",
                    pod_group_names=["s-0-g-0-b", "s-0-g-0-c"],
                    topology_constraint=packed("rack"),
                )
            ],
            priority_class_name="high",
        ),
    )


def rendered(scheduler: str, **options: Any) -> dict[str, Any]:
    made = backend_of(scheduler, **options).render(gang())
    assert made is not None
    assert made["metadata"]["name"] == "s-0"
    assert made["metadata"]["ownerReferences"][0]["kind"] == "PodGang"
    return dict(made["spec"])


def test_kai_gets_a_tree_of_subgroups() -> None:
    assert rendered("kai-scheduler") == {
        "minMember": 6,
        "queue": "team",
        "priorityClassName": "high",
        "topologyConstraint": {
            "topology": "cluster",
            "requiredTopologyLevel": "zone",
            "preferredTopologyLevel": "rack",
        },
        "subGroups": [
            {
                "name": "s-0-g-0",
                "minSubGroup": 2,
                "topologyConstraint": {"topology": "cluster", "requiredTopologyLevel": "rack"},
            },
            {"name": "s-0-a", "minMember": 2},
            {
                "name": "s-0-g-0-b",
                "minMember": 1,
                "parent": "s-0-g-0",
                "topologyConstraint": {"topology": "cluster", "requiredTopologyLevel": "host"},
            },
            {"name": "s-0-g-0-c", "minMember": 3, "parent": "s-0-g-0"},
        ],
    }


def test_volcano_gets_a_policy_for_each_clique() -> None:
    def policy(clique: str, minimum: int) -> dict[str, Any]:
        return {
            "name": clique,
            "labelSelector": {"matchLabels": {"grove.io/podclique": clique}},
            "matchLabelKeys": ["grove.io/podclique"],
            "subGroupSize": minimum,
            "minSubGroups": 1,
        }

    assert rendered("volcano") == {
        "minMember": 6,
        "queue": "night",
        "priorityClassName": "high",
        "subGroupPolicy": [policy("s-0-a", 2), policy("s-0-g-0-b", 1), policy("s-0-g-0-c", 3)],
    }


def test_volcano_gets_the_default_queue_and_at_least_one_member() -> None:
    empty = PodGang(
        metadata=ObjectMeta(name="s-0"),
        spec=PodGangSpec(pod_groups=[GangPodGroup(name="a", min_replicas=0)]),
    )
    made = backend_of("volcano").render(empty)
    assert made is not None
    assert made["spec"] == {"minMember": 1, "queue": "default", "subGroupPolicy": []}


@pytest.mark.parametrize(
    ("scheduler", "kube_kind", "labels", "annotations", "spec"),
    [
        pytest.param("spinney-scheduler", None, {}, {}, {}, id="ours"),
        pytest.param(
            "kai-scheduler",
            None,
            {"kai.scheduler/subgroup-name": "s-0-a"},
            {"kai.scheduler/skip-podgrouper": "true", "pod-group-name": "s-0"},
            {},
            id="KAI",
        ),
        pytest.param(
            "volcano",
            None,
            {},
            {
                "scheduling.k8s.io/group-name": "s-0",
                "scheduling.volcano.sh/group-name": "s-0",
            },
            {},
            id="Volcano",
        ),
        pytest.param(
            "default-scheduler",
            KUBE_POD_GROUPS,
            {},
            {},
            {"schedulingGroup": {"podGroupName": "s-0"}},
            id="PodGroups",
        ),
        pytest.param(
            "default-scheduler",
            KUBE_WORKLOADS,
            {},
            {},
            {"workloadRef": {"name": "s-0", "podGroup": "gang"}},
            id="Workloads",
        ),
        pytest.param("default-scheduler", None, {}, {}, {}, id="kube-scheduler alone"),
    ],
)
def test_a_pod_is_marked_as_its_scheduler_looks_for_it(
    scheduler: str,
    kube_kind: Resource | None,
    labels: dict[str, str],
    annotations: dict[str, str],
    spec: dict[str, Any],
) -> None:
    marks = backend_of(scheduler, kube_kind=kube_kind).marks("s-0", "s-0-a")
    assert (marks.labels, marks.annotations, marks.spec) == (labels, annotations, spec)


def test_kai_is_told_what_grove_tells_it_in_metadata_too() -> None:
    made = backend_of("kai-scheduler").render(gang())
    assert made is not None
    assert made["apiVersion"] == "scheduling.run.ai/v2alpha2"
    assert made["metadata"]["annotations"]["kai.scheduler/skip-podgrouper"] == "true"
    assert made["metadata"]["labels"]["kai.scheduler/queue"] == "team"


@pytest.mark.parametrize(
    "place", ["set label", "set annotation", "clique label", "clique annotation"]
)
def test_kais_queue_is_found_where_grove_finds_it(place: str) -> None:
    async def scene(farm: Farm) -> None:
        made = for_scheduler("kai-scheduler")
        del made["metadata"]["labels"]
        queue = {"kai.scheduler/queue": "team"}
        holder, kind = place.split()
        holders = [made["metadata"]] if holder == "set" else made["spec"]["template"]["cliques"]
        for found in holders:
            found[f"{kind}s"] = queue
        await farm.apply(made)
        await farm.ready(3)
        await farm.quiet()
        group = await farm.client.get(KAI_POD_GROUPS, "s-0", NS)
        assert group["spec"]["queue"] == "team"

    play(scene)


VOLCANO_CRD = {
    "metadata": {"name": "podgroups.scheduling.volcano.sh"},
    "spec": {
        "group": "scheduling.volcano.sh",
        "scope": "Namespaced",
        "names": {
            "kind": "PodGroup",
            "listKind": "PodGroupList",
            "plural": "podgroups",
            "singular": "podgroup",
        },
        "versions": [
            {
                "name": "v1beta1",
                "served": True,
                "storage": True,
                "schema": {
                    "openAPIV3Schema": {
                        "type": "object",
                        "properties": {
                            "spec": {
                                "type": "object",
                                "properties": {
                                    "minMember": {"type": "integer"},
                                    "queue": {"type": "string"},
                                },
                            }
                        },
                    }
                },
            }
        ],
    },
}
VOLCANO_QUEUE = {
    "metadata": {"name": "queues.scheduling.volcano.sh"},
    "spec": {
        "group": "scheduling.volcano.sh",
        "scope": "Cluster",
        "names": {
            "kind": "Queue",
            "listKind": "QueueList",
            "plural": "queues",
            "singular": "queue",
        },
        "versions": [
            {
                "name": "v1beta1",
                "served": True,
                "storage": True,
                "schema": {
                    "openAPIV3Schema": {
                        "type": "object",
                        "x-kubernetes-preserve-unknown-fields": True,
                    }
                },
            }
        ],
    },
}


def test_a_volcano_that_is_too_old_for_cliques_is_named() -> None:
    async def scene(farm: Farm) -> None:
        for definition in (VOLCANO_CRD, VOLCANO_QUEUE):
            await farm.client.create(codec.from_dict(CustomResourceDefinition, definition))
        queue = {"metadata": {"name": "default"}, "status": {"state": "Open"}}
        queue |= {"apiVersion": "scheduling.volcano.sh/v1beta1", "kind": "Queue"}
        await farm.client.create(queue, resource=VOLCANO_QUEUES)
        await farm.apply(for_scheduler("volcano"))
        await farm.ready(3)
        await farm.quiet()
        assert (await farm.client.get(VOLCANO_POD_GROUPS, "s-0", NS))["spec"]["minMember"] == 3
        events = (await farm.client.list(Event, NS)).items
        (told,) = [e for e in events if e.reason == "VolcanoCapabilityUnavailable"]
        assert "has no subGroupPolicy" in told.message
        assert told.count == 1

    play(scene)


def test_kube_scheduler_gets_one_number_where_it_knows_groups_and_nothing_elsewhere() -> None:
    spec = rendered("default-scheduler", kube_kind=KUBE_POD_GROUPS)
    assert spec == {"schedulingPolicy": {"gang": {"minCount": 6}}}
    spec = rendered("default-scheduler", kube_kind=KUBE_WORKLOADS)
    assert spec == {
        "controllerRef": {"apiGroup": "scheduler.grove.io", "kind": "PodGang", "name": "s-0"},
        "podGroups": [{"name": "gang", "policy": {"gang": {"minCount": 6}}}],
    }
    assert backend_of("default-scheduler").render(gang()) is None
    assert backend_of("somebody-else").render(gang()) is None


@pytest.mark.parametrize("backend", ALL, ids=lambda backend: backend.title)
def test_what_is_lost_is_what_the_table_denies(backend: Any) -> None:
    denied = {f.title for f in FEATURES if f.used(gang()) and not expresses(backend, f)}
    assert {feature.title for feature in lost(backend, gang())} == denied


def test_the_table_in_the_document_is_current() -> None:
    text = (Path(__file__).parents[2] / DOCUMENT).read_text()
    assert text == document(text), "run python -m spinney.controllers.backends.conformance"


KAI_CRD = {
    "metadata": {"name": "podgroups.scheduling.run.ai"},
    "spec": {
        "group": "scheduling.run.ai",
        "scope": "Namespaced",
        "names": {
            "kind": "PodGroup",
            "listKind": "PodGroupList",
            "plural": "podgroups",
            "singular": "podgroup",
        },
        "versions": [
            {
                "name": "v2alpha2",
                "served": True,
                "storage": True,
                "schema": {
                    "openAPIV3Schema": {
                        "type": "object",
                        "x-kubernetes-preserve-unknown-fields": True,
                    }
                },
            }
        ],
    },
}


def for_scheduler(name: str) -> dict[str, Any]:
    manifest = pcs(clique("a", 2, min=2), clique("b"))
    manifest["metadata"]["labels"] = {"kai.scheduler/queue": "team"}
    for role in manifest["spec"]["template"]["cliques"]:
        role["spec"]["podSpec"]["schedulerName"] = name
    return manifest


def test_a_set_for_kai_has_a_pod_group_that_follows_the_gang_and_goes_with_it() -> None:
    async def scene(farm: Farm) -> None:
        await farm.apply(for_scheduler("kai-scheduler"))
        await farm.ready(3)
        await farm.quiet()
        found = await farm.client.get(KAI_POD_GROUPS, "s-0", NS)
        assert (found["spec"]["minMember"], found["spec"]["queue"]) == (3, "team")
        pod = (await farm.pods("s-0-a"))[0]
        assert pod.labels["kai.scheduler/subgroup-name"] == "s-0-a"
        assert pod.metadata.annotations["pod-group-name"] == "s-0"
        await farm.client.patch(KAI_POD_GROUPS, "s-0", {"spec": {"markUnschedulable": True}}, NS)
        await farm.client.patch(
            type(await farm.set()), "s", {"metadata": {"labels": {"kai.scheduler/queue": "b"}}}, NS
        )
        await farm.quiet()
        found = await farm.client.get(KAI_POD_GROUPS, "s-0", NS)
        assert (found["spec"]["queue"], found["spec"]["markUnschedulable"]) == ("b", True)
        await farm.client.delete(type(await farm.set()), "s", NS)

        async def gone() -> bool:
            return not (await farm.client.list(KAI_POD_GROUPS, NS)).items

        await farm.until(gone, "the group goes with its gang")

    play(scene)


def test_a_scheduler_whose_kind_is_not_installed_is_told_of_in_an_event() -> None:
    async def scene(farm: Farm) -> None:
        await farm.client.delete(CustomResourceDefinition, KAI_CRD["metadata"]["name"])
        await farm.apply(for_scheduler("kai-scheduler"))
        await farm.ready(3)

        async def told() -> bool:
            events = (await farm.client.list(Event, NS)).items
            return any(event.reason == "SchedulerBackendMappingFailed" for event in events)

        await farm.until(told, "an event")
        await farm.client.create(codec.from_dict(CustomResourceDefinition, KAI_CRD))

        async def made() -> bool:
            return bool((await farm.client.list(KAI_POD_GROUPS, NS)).items)

        await farm.until(made, "it is tried again")

    play(scene)


def test_a_set_for_kube_scheduler_says_that_there_is_no_gang() -> None:
    async def scene(farm: Farm) -> None:
        await farm.apply(for_scheduler("default-scheduler"))
        await farm.ready(3)
        await farm.quiet()
        conditions = (await farm.gang("s-0")).status.conditions
        found = {c.type: (c.status, c.reason) for c in conditions}
        assert found["GangScheduling"] == ("False", "NotSupported")
        assert found["Scheduled"] == ("True", "Placed")

    play(scene)
