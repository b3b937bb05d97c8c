"""Bindings tell whether schedulers see their levels; KAI gets a topology of its own kind."""

from __future__ import annotations

from typing import Any

import pytest
from tests.controllers.farm import Farm, play

from spinney.api import codec
from spinney.api.core import CustomResourceDefinition, Event
from spinney.api.grove import ClusterTopologyBinding
from spinney.api.meta import find_condition
from spinney.controllers.clustertopology.decide import (
    KAI_TOPOLOGIES,
    Seen,
    binding_status,
    kai_actions,
    keys_of,
    render_kai,
    views,
)

ANY = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
KAI_CRD = {
    "metadata": {"name": "topologies.kai.scheduler"},
    "spec": {
        "group": "kai.scheduler",
        "scope": "Cluster",
        "names": {
            "kind": "Topology",
            "listKind": "TopologyList",
            "plural": "topologies",
            "singular": "topology",
        },
        "versions": [
            {
                "name": "v1alpha1",
                "served": True,
                "storage": True,
                "schema": {"openAPIV3Schema": ANY},
            }
        ],
    },
}


def binding(*levels: str, name: str = "cluster", refers: Any = None) -> ClusterTopologyBinding:
    spec: dict[str, Any] = {"levels": [{"domain": level, "key": level} for level in levels]}
    if refers:
        spec["schedulerTopologyBindings"] = [
            {"schedulerName": scheduler, "topologyReference": reference}
            for scheduler, reference in refers.items()
        ]
    body = {"metadata": {"name": name, "uid": "u"}, "spec": spec}
    return codec.from_dict(ClusterTopologyBinding, body)


def told(found: ClusterTopologyBinding, seen: Seen) -> tuple[str, str, dict[str, bool]]:
    status = binding_status(found, views(found, seen), "2026-01-01T00:00:00Z")
    condition = find_condition(status.conditions, "SchedulerTopologyDrift")
    assert condition is not None
    entries = {e["schedulerName"]: e["inSync"] for e in status.scheduler_topology_statuses}
    return condition.status, condition.reason, entries


OURS = {"cluster": ["zone", "rack"]}
SAME = render_kai(binding("zone", "rack"))
OTHER = render_kai(binding("zone", "host"))


@pytest.mark.parametrize(
    ("refers", "kai", "want"),
    [
        pytest.param({}, None, ("False", "InSync", {"spinney-scheduler": True}), id="ours-only"),
        pytest.param(
            {},
            {"cluster": SAME},
            ("False", "InSync", {"spinney-scheduler": True, "kai-scheduler": True}),
            id="kai-too",
        ),
        pytest.param(
            {"kai-scheduler": "theirs"},
            {"theirs": OTHER},
            ("True", "Drift", {"spinney-scheduler": True, "kai-scheduler": False}),
            id="other-levels",
        ),
        pytest.param(
            {"kai-scheduler": "theirs"},
            {},
            ("True", "Drift", {"spinney-scheduler": True, "kai-scheduler": False}),
            id="TAS18-missing",
        ),
        pytest.param(
            {"kai-scheduler": "theirs"},
            None,
            ("Unknown", "TopologyNotFound", {"spinney-scheduler": True, "kai-scheduler": False}),
            id="kai-not-installed",
        ),
    ],
)
def test_a_binding_tells_whether_schedulers_see_its_levels(
    refers: dict[str, str], kai: Any, want: tuple[str, str, dict[str, bool]]
) -> None:
    assert told(binding("zone", "rack", refers=refers), Seen(OURS, kai)) == want


def test_a_topology_of_kai_that_somebody_else_made_is_left_alone() -> None:
    mine, theirs = binding("zone"), render_kai(binding("rack"))
    assert kai_actions(mine, Seen(OURS, {"cluster": theirs})) == (True, True)
    theirs["metadata"]["ownerReferences"] = []
    assert kai_actions(mine, Seen(OURS, {"cluster": theirs})) == (False, False)
    referring = binding("zone", refers={"kai-scheduler": "x"})
    assert kai_actions(referring, Seen(OURS, {})) == (False, False)
    assert kai_actions(mine, Seen(OURS, None)) == (False, False)
    assert keys_of(mine) == ["zone"]


def test_kai_has_a_topology_that_follows_the_binding_and_goes_with_it_tas1_tas19() -> None:
    async def levels(farm: Farm) -> list[str]:
        found = await farm.client.get(KAI_TOPOLOGIES, "cluster")
        return [level["nodeLabel"] for level in found["spec"]["levels"]]

    async def scene(farm: Farm) -> None:
        await farm.client.create(codec.from_dict(CustomResourceDefinition, KAI_CRD))
        made = binding("zone", "rack")
        made.metadata.uid = ""
        await farm.client.create(made)
        await farm.quiet()
        assert await levels(farm) == ["zone", "rack"]
        patch = {"spec": {"levels": [{"domain": d, "key": d} for d in ("zone", "rack", "host")]}}
        await farm.client.patch(ClusterTopologyBinding, "cluster", patch)
        await farm.quiet()
        assert await levels(farm) == ["zone", "rack", "host"]
        status = (await farm.client.get(ClusterTopologyBinding, "cluster")).status
        assert all(entry["inSync"] for entry in status.scheduler_topology_statuses)
        assert status.observed_generation == 2
        events = (await farm.client.list(Event)).items
        assert [e.reason for e in events if e.involved_object.name == "cluster"] == [
            "TopologyInSync"
        ]
        await farm.client.delete(ClusterTopologyBinding, "cluster")

        async def gone() -> bool:
            return not (await farm.client.list(KAI_TOPOLOGIES)).items

        await farm.until(gone, "the topology goes with its binding")

    play(scene)
