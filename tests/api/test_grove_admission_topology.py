"""Topology constraints and bindings, with the checklist's number in each test id."""

from __future__ import annotations

from typing import Any

import pytest
from tests.api.grove_manifests import CLIQUES, GROUPS, admit, binding, clique, group, pcs

from spinney.api.admission import AdmissionRequest
from spinney.api.grove import ClusterTopologyBinding
from spinney.api.grove_admission import GroveAdmission
from spinney.api.grove_policy import GrovePolicy

TOP = "spec.template.topologyConstraint"
IN_GROUP = f"{GROUPS}[0].topologyConstraint"
MEMBER = f"{CLIQUES}[0].topologyConstraint"
ALONE = f"{CLIQUES}[1].topologyConstraint"


def pack(topology: str | None = None, old: str | None = None, **pack: str) -> dict[str, Any]:
    """A constraint; *old* is packDomain."""
    found: dict[str, Any] = {"topologyName": topology} if topology else {}
    if old:
        found["packDomain"] = old
    return found | ({"pack": pack} if pack else {})


def placed(
    top: Any = None, in_group: Any = None, member: Any = None, alone: Any = None, **more: Any
) -> dict[str, Any]:
    """A set of group g[a] and clique b, constrained at any of the four places."""

    def held(constraint: Any) -> dict[str, Any]:
        return {} if constraint is None else {"topologyConstraint": constraint}

    cliques = [clique("a", **held(member)), clique("b", **held(alone))]
    return pcs(*cliques, groups=[group("g", "a", **held(in_group))], **held(top), **more)


ZONE = {"required": "zone"}
RACK = {"required": "rack"}
HOST = {"required": "host"}
OFF = GrovePolicy(topology_enabled=False)

REFUSED = [
    pytest.param(
        placed(pack(**RACK)), [f"{TOP}.topologyName: required"], id="T2 set without topology"
    ),
    pytest.param(
        placed(in_group=pack(**RACK), member=pack(**HOST)),
        [f"{IN_GROUP}.topologyName: required", f"{MEMBER}.topologyName: required"],
        id="T2 nothing to inherit",
    ),
    pytest.param(
        placed(in_group=pack("cluster", **RACK), alone=pack(**HOST)),
        [f"{ALONE}.topologyName: required"],
        id="T2 a clique in no group inherits from none",
    ),
    pytest.param(
        placed(pack("cluster", **RACK), member=pack("other", **HOST)),
        [f"{TOP}.topologyName: invalid", f"{MEMBER}.topologyName: invalid"],
        id="T3",
    ),
    pytest.param(placed(pack("none", **RACK)), [f"{TOP}.topologyName: invalid"], id="T4"),
    pytest.param(
        placed(member=pack("none", **RACK)), [f"{MEMBER}.topologyName: invalid"], id="T4 clique"
    ),
    pytest.param(
        placed(pack("cluster", required="row", preferred="shelf")),
        [f"{TOP}.pack.required: invalid", f"{TOP}.pack.preferred: invalid"],
        id="T5",
    ),
    pytest.param(
        placed(pack("cluster", **HOST), member=pack(required="row"), alone=pack(**ZONE)),
        [f"{MEMBER}.pack.required: invalid"],
        id="T5 the hierarchy is not looked at",
    ),
    pytest.param(
        placed(pack("cluster", **HOST), alone=pack(**RACK)),
        [f"{TOP}.pack.required: invalid"],
        id="T6 set and clique",
    ),
    pytest.param(
        placed(pack("cluster", **RACK), in_group=pack(**ZONE)),
        [f"{TOP}.pack.required: invalid"],
        id="T6 set and group",
    ),
    pytest.param(
        placed(in_group=pack("cluster", **HOST), member=pack(**RACK)),
        [f"{IN_GROUP}.pack.required: invalid"],
        id="T6 group and member",
    ),
    pytest.param(
        placed(pack("cluster", **HOST), member=pack(**RACK)),
        [f"{TOP}.pack.required: invalid"],
        id="T6 set and member of a free group",
    ),
    pytest.param(
        placed(pack("cluster", preferred="host"), alone=pack(preferred="rack")),
        [f"{TOP}.pack.preferred: invalid"],
        id="T7",
    ),
    pytest.param(
        placed(pack("cluster", old="rack"), in_group=pack(old="rack"), member=pack(old="rack")),
        [f"{p}.packDomain: forbidden" for p in (TOP, IN_GROUP, MEMBER)],
        id="C1",
    ),
    pytest.param(placed(pack("cluster")), [f"{TOP}.pack: required"], id="C2"),
    pytest.param(
        placed({"topologyName": "cluster", "pack": {}}), [f"{TOP}.pack: required"], id="C3"
    ),
    pytest.param(
        placed(pack("cluster", old="rack", **RACK)),
        [f"{TOP}: invalid", f"{TOP}.packDomain: forbidden"],
        id="C4",
    ),
]


@pytest.mark.parametrize(("obj", "want"), REFUSED)
def test_a_broken_rule_is_told_with_its_field(obj, want):
    found = admit(obj)
    assert found.errors == want, found.text


@pytest.mark.parametrize(
    "obj",
    [
        pytest.param(placed(pack("cluster", **RACK), member=pack(**HOST)), id="T2 from the set"),
        pytest.param(
            placed(in_group=pack("cluster", **RACK), member=pack(**HOST)), id="T2 from the group"
        ),
        pytest.param(
            placed(pack("cluster", **ZONE), in_group=pack(**RACK), member=pack(**HOST)),
            id="T2 through the group",
        ),
        pytest.param(placed(alone=pack("cluster", **HOST)), id="T2 of its own"),
        pytest.param(
            placed(pack("cluster", **RACK), alone=pack("cluster", **RACK)), id="T3 T6 equal"
        ),
        pytest.param(
            placed(pack("cluster", **HOST), alone=pack(preferred="rack")),
            id="T7 required and another's preferred are not compared",
        ),
        pytest.param(placed(pack("cluster", preferred="rack")), id="C5"),
    ],
)
def test_what_breaks_no_rule_is_accepted(obj):
    found = admit(obj)
    assert (found.errors, found.warnings) == ([], []), found.text


def test_t1_without_topology_every_constraint_is_refused():
    every = [pack("cluster", **RACK)] * 4
    found = admit(placed(*every), policy=OFF)
    assert found.errors == [f"{p}: invalid" for p in (TOP, IN_GROUP, MEMBER, ALONE)]
    assert admit(placed(), policy=OFF).errors == []


@pytest.mark.parametrize(
    ("domains", "warns"),
    [
        pytest.param({"required": "host", "preferred": "rack"}, True, id="T8 broader"),
        pytest.param({"required": "rack", "preferred": "host"}, False, id="T8 narrower"),
        pytest.param({"required": "rack", "preferred": "rack"}, False, id="T8 equal"),
    ],
)
def test_a_preference_that_a_requirement_makes_idle_brings_a_warning(domains, warns):
    found = admit(placed(pack("cluster", **domains)))
    assert found.errors == []
    assert [w.split(":")[0] for w in found.warnings] == [f"{TOP}.pack.preferred"] * warns


# Updates

CONSTRAINED = placed(
    pack("cluster", **ZONE), in_group=pack("cluster", **RACK), alone=pack("cluster", **HOST)
)


@pytest.mark.parametrize(
    ("new", "want"),
    [
        pytest.param(
            placed(in_group=pack("cluster", **RACK), alone=pack("cluster", **HOST)),
            [f"{TOP}: forbidden"],
            id="T9 removed",
        ),
        pytest.param(
            placed(
                pack("other", **ZONE),
                in_group=pack("other", **RACK),
                alone=pack("other", **HOST),
            ),
            [f"{p}.topologyName: forbidden" for p in (TOP, IN_GROUP, ALONE)],
            id="T9 topology changed",
        ),
        pytest.param(
            placed(
                pack("cluster", **ZONE),
                in_group=pack("cluster", **HOST),
                member=pack("cluster", **HOST),
                alone=pack("cluster", **RACK),
            ),
            [f"{p}: forbidden" for p in (IN_GROUP, MEMBER, ALONE)],
            id="T9 changed and added",
        ),
    ],
)
def test_a_constraint_stays_as_it_is(new, want):
    found = admit(new, CONSTRAINED)
    assert found.errors == want, found.text


LEGACY = placed(pack(old="zone"), in_group=pack(old="rack", preferred="host"))


@pytest.mark.parametrize(
    ("new", "want"),
    [
        pytest.param(
            placed(
                pack("cluster", old="zone"), in_group=pack("cluster", old="rack", preferred="host")
            ),
            [],
            id="T10 at every place",
        ),
        pytest.param(
            placed(pack("cluster", old="zone"), in_group=pack(old="rack", preferred="host")),
            [],
            id="T10 inherited",
        ),
        pytest.param(
            placed(pack("none", old="zone"), in_group=pack(old="rack", preferred="host")),
            [f"{TOP}.topologyName: invalid"],
            id="T10 then T4",
        ),
        pytest.param(
            placed(pack(old="zone"), in_group=pack("cluster", old="rack", preferred="host")),
            [f"{TOP}.topologyName: required"],
            id="T10 then T2",
        ),
        pytest.param(
            placed(pack("cluster", old="host"), in_group=pack(old="rack", preferred="host")),
            [f"{TOP}.topologyName: forbidden"],
            id="T10 domain changed too",
        ),
        pytest.param(
            placed(pack("cluster", **ZONE), in_group=pack(old="rack", preferred="host")),
            [f"{TOP}.topologyName: forbidden"],
            id="T10 written anew too",
        ),
    ],
)
def test_a_constraint_without_topology_can_be_repaired(new, want):
    found = admit(new, LEGACY, stored_as_is=False)
    assert found.errors == want, found.text


def test_t10_a_repair_is_checked_against_the_hierarchy_and_the_switch():
    old = placed(pack(old="host"), in_group=pack(old="rack"))
    new = placed(pack("cluster", old="host"), in_group=pack(old="rack"))
    assert admit(new, old).errors == [f"{TOP}.packDomain: invalid"]
    assert admit(new, old, policy=OFF).errors == [f"{TOP}: invalid", f"{IN_GROUP}: invalid"]


def test_t10_a_topology_without_domain_is_not_repaired():
    old, new = placed(pack("cluster")), placed(pack("cluster", **RACK))
    assert admit(new, old).errors == [f"{TOP}: forbidden"]


@pytest.mark.parametrize(
    ("was", "is_", "refused"),
    [
        pytest.param(pack("cluster", old="rack"), pack("cluster", **RACK), False, id="T11"),
        pytest.param(
            pack("cluster", old="rack", preferred="host"),
            pack("cluster", required="rack", preferred="host"),
            False,
            id="T11 with a preference",
        ),
        pytest.param(
            pack("cluster", old="rack"), pack("cluster", **HOST), True, id="T11 other domain"
        ),
        pytest.param(
            pack("cluster", old="rack"),
            pack("cluster", required="rack", preferred="host"),
            True,
            id="T11 preference added",
        ),
        pytest.param(
            pack("cluster", **RACK), pack("cluster", old="rack"), True, id="T11 backwards"
        ),
    ],
)
def test_pack_domain_can_be_written_as_required(was, is_, refused):
    found = admit(placed(alone=is_), placed(alone=was))
    assert found.errors == ([f"{ALONE}: forbidden"] if refused else []), found.text


def test_t11_is_said_of_the_topology_when_that_changes_too():
    found = admit(placed(pack("other", **RACK)), placed(pack("cluster", old="rack")))
    assert found.errors == [f"{TOP}.topologyName: forbidden"]


def test_t12_each_pack_domain_that_is_left_brings_a_warning():
    old = placed(pack("cluster", old="zone"), in_group=pack(old="rack"), alone=pack(**HOST))
    found = admit(old | {"metadata": old["metadata"] | {"labels": {"x": "y"}}}, old)
    assert found.errors == []
    assert [w.split(":")[0] for w in found.warnings] == [
        f"{TOP}.packDomain",
        f"{IN_GROUP}.packDomain",
    ]


@pytest.mark.parametrize("policy", [None, OFF], ids=["T13", "T13 switched off since"])
@pytest.mark.parametrize(
    "old",
    [
        pytest.param(LEGACY, id="stored without topology"),
        pytest.param(placed(pack("gone", **RACK)), id="its binding has gone"),
        pytest.param(placed(pack("cluster", **HOST), alone=pack(**ZONE)), id="levels have moved"),
    ],
)
def test_a_stored_set_is_not_checked_against_the_topology_again(old, policy):
    new = old | {"spec": old["spec"] | {"replicas": 7}}
    found = admit(new, old, policy=policy)
    assert found.errors == [], found.text


# Bindings


def bound(*schedulers: str, levels: list[dict[str, str]] | None = None) -> dict[str, Any]:
    found = binding("c", "zone", "rack")
    if levels:
        found["spec"]["levels"] = levels
    found["spec"]["schedulerTopologyBindings"] = [
        {"schedulerName": name, "topologyReference": "t"} for name in schedulers
    ]
    return found


WHO = "spec.schedulerTopologyBindings[{}].schedulerName"


@pytest.mark.parametrize("operation", ["CREATE", "UPDATE"])
@pytest.mark.parametrize(
    ("obj", "want"),
    [
        pytest.param(bound(), [], id="good"),
        pytest.param(
            bound(levels=[{"domain": "a", "key": "k"}, {"domain": "a", "key": "l"}]),
            [("spec.levels[1].domain", "FieldValueDuplicate")],
            id="CT1",
        ),
        pytest.param(
            bound(levels=[{"domain": "a", "key": "k"}, {"domain": "b", "key": "k"}]),
            [("spec.levels[1].key", "FieldValueDuplicate")],
            id="CT2",
        ),
        pytest.param(
            bound(levels=[{"domain": "a", "key": "k"}, {"domain": "a", "key": "k"}]),
            [
                ("spec.levels[1].domain", "FieldValueDuplicate"),
                ("spec.levels[1].key", "FieldValueDuplicate"),
            ],
            id="CT1 CT2 together",
        ),
        pytest.param(
            bound("kai-scheduler", "kai-scheduler"),
            [(WHO.format(1), "FieldValueDuplicate")],
            id="CT3",
        ),
        pytest.param(bound("nobody"), [(WHO.format(0), "FieldValueInvalid")], id="CT4"),
        pytest.param(bound("default-scheduler"), [(WHO.format(0), "FieldValueInvalid")], id="CT5"),
        pytest.param(bound("kai-scheduler"), [], id="CT5 aware"),
        pytest.param(
            bound(levels=[{"domain": "A", "key": "k"}]),
            [("spec.levels[0].domain", "FieldValueInvalid")],
            id="CT schema domain",
        ),
        pytest.param(
            bound(levels=[{"domain": "a", "key": "a b"}]),
            [("spec.levels[0].key", "FieldValueInvalid")],
            id="CT schema key",
        ),
    ],
)
def test_a_binding_names_each_thing_once_and_only_what_there_is(obj, want, operation):
    old = binding("c", "region") if operation == "UPDATE" else None
    request = AdmissionRequest(operation, ClusterTopologyBinding.RESOURCE, obj, old)
    verdict = GroveAdmission().validate(request)
    assert [(e.path, e.reason) for e in verdict.errors] == want


def test_ct5_a_binding_can_always_be_deleted():
    bad = bound("nobody", "nobody")
    request = AdmissionRequest("DELETE", ClusterTopologyBinding.RESOURCE, bad, bad)
    assert GroveAdmission().validate(request).errors == ()
