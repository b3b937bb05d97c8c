"""Defaults and rules of PodCliqueSets, with the checklist's number in each test id."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from tests.api.grove_manifests import (
    CLIQUES,
    EXPLICIT,
    GROUPS,
    IN_ORDER,
    admit,
    changed,
    clique,
    group,
    pcs,
)

from spinney.api.admission import AdmissionRequest
from spinney.api.core import Pod
from spinney.api.grove import ClusterTopologyBinding, PodCliqueSet
from spinney.api.grove_admission import GroveAdmission
from spinney.api.grove_policy import GrovePolicy, SchedulerBackend, backends, placed_by_spinney
from spinney.api.grove_validation import find_cycles
from spinney.errors import BadInputError


def scheduled(name: str, scheduler: str = "", **fields: Any) -> dict[str, Any]:
    return clique(name, podSpec={"schedulerName": scheduler} if scheduler else {}, **fields)


def containers(*items: dict[str, Any], init: tuple[dict[str, Any], ...] = ()) -> dict[str, Any]:
    return {"containers": list(items)} | ({"initContainers": list(init)} if init else {})


def env(name: str, *variables: str) -> dict[str, Any]:
    return {"name": name, "env": [{"name": v, "value": "1"} for v in variables]}


# Defaults


def test_d1_an_empty_namespace_is_default():
    obj = pcs(clique("a"))
    del obj["metadata"]["namespace"]
    assert admit(obj).obj["metadata"]["namespace"] == "default"


@pytest.mark.parametrize("key", ["metadata", "template"])
def test_d1_what_has_no_shape_is_left_for_the_schema_to_refuse(key):
    obj = {"metadata": {"name": "x"}, "spec": {"template": {"cliques": []}}}
    (obj["spec"] if key == "template" else obj)[key] = None
    assert admit(obj).errors


@pytest.mark.parametrize(
    ("field", "given", "want"),
    [
        pytest.param("restartPolicy", None, "Always", id="D2 absent"),
        pytest.param("restartPolicy", "Never", "Never", id="D2 kept"),
        pytest.param("terminationGracePeriodSeconds", None, 30, id="D3 absent"),
        pytest.param("terminationGracePeriodSeconds", 0, 0, id="D3 kept"),
    ],
)
def test_pod_specs_have_defaults(field, given, want):
    found = admit(pcs(clique("a", podSpec={field: given})))
    assert found.template["cliques"][0]["spec"]["podSpec"][field] == want
    assert found.errors == []


@pytest.mark.parametrize("policy", ["Always", "OnFailure", "Never"])
def test_v_w1_no_restart_policy_is_said_to_be_ignored_because_none_is(policy):
    assert admit(pcs(clique("a", podSpec={"restartPolicy": policy}))).warnings == []


@pytest.mark.parametrize(
    ("spec", "want"),
    [
        pytest.param({"replicas": 0}, (1, 1, None), id="D4 zero"),
        pytest.param({"replicas": None}, (1, 1, None), id="D4 D5 absent"),
        pytest.param({"replicas": 3}, (3, 3, None), id="D5"),
        pytest.param({"replicas": 3, "minAvailable": 2}, (3, 2, None), id="D5 kept"),
        pytest.param(
            {"replicas": None, "autoScalingConfig": {"maxReplicas": 4}}, (1, 1, 1), id="D6 absent"
        ),
        pytest.param({"replicas": 2, "autoScalingConfig": {"maxReplicas": 4}}, (2, 2, 2), id="D6"),
        pytest.param(
            {"replicas": 2, "autoScalingConfig": {"maxReplicas": 4, "minReplicas": 3}},
            (2, 2, 3),
            id="D6 kept",
        ),
    ],
)
def test_counts_of_a_clique_have_defaults(spec, want):
    found = admit(pcs(clique("a", **spec)))
    made = found.template["cliques"][0]["spec"]
    low = made.get("autoScalingConfig", {}).get("minReplicas")
    assert (made["replicas"], made["minAvailable"], low) == want
    assert found.errors == []


def test_d5_an_update_that_leaves_the_minimum_out_keeps_the_stored_one():
    old = pcs(clique("a", 3))
    found = admit(pcs(clique("a", 5)), old)
    assert found.template["cliques"][0]["spec"]["minAvailable"] == 3
    assert found.errors == []


def test_d7_each_group_has_defaults_of_its_own():
    groups = [
        group("g", "a", scaleConfig={"maxReplicas": 5}),
        group("h", "b", replicas=2, scaleConfig={"maxReplicas": 5}),
        group("i", "c", replicas=2, scaleConfig={"maxReplicas": 5, "minReplicas": 1}),
        group("j", "d", scaleConfig=None),
    ]
    found = admit(pcs(*map(clique, "abcd"), groups=groups))
    made = found.template["podCliqueScalingGroups"]
    assert [(g["replicas"], g["minAvailable"]) for g in made] == [(1, 1), (2, 1), (2, 1), (1, 1)]
    assert [g["scaleConfig"]["minReplicas"] for g in made[:3]] == [1, 2, 1]
    assert found.errors == []


@pytest.mark.parametrize("groups", [pytest.param([], id="D7 empty"), pytest.param(None, id="none")])
def test_d7_a_set_needs_no_groups(groups):
    assert admit(pcs(clique("a"), podCliqueScalingGroups=groups)).errors == []


@pytest.mark.parametrize(
    ("field", "given", "want"),
    [
        pytest.param("terminationDelay", None, "4h", id="D8"),
        pytest.param("terminationDelay", "1m", "1m", id="D8 kept"),
        pytest.param(
            "headlessServiceConfig", None, {"publishNotReadyAddresses": True}, id="D9 absent"
        ),
        pytest.param(
            "headlessServiceConfig",
            {"publishNotReadyAddresses": False},
            {"publishNotReadyAddresses": False},
            id="D9 kept",
        ),
        pytest.param("cliqueStartupType", None, "CliqueStartupTypeAnyOrder", id="V3 default"),
    ],
)
def test_a_template_has_defaults(field, given, want):
    assert admit(pcs(clique("a"), **{field: given})).template[field] == want


def test_defaulting_does_not_change_its_input_and_is_idempotent():
    obj = pcs(clique("a", 0), clique("b"), groups=[group("g", "b")])
    before = copy.deepcopy(obj)
    once = admit(obj).obj
    assert obj == before
    assert admit(once).obj == once


POD = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}}


@pytest.mark.parametrize(
    ("resource", "obj", "old"),
    [
        pytest.param(PodCliqueSet.RESOURCE, POD, None, id="D10 wrong object"),
        pytest.param(PodCliqueSet.RESOURCE, pcs(clique("a")), POD, id="D10 wrong old object"),
        pytest.param(PodCliqueSet.RESOURCE, ["x"], None, id="D10 no object"),
        pytest.param(Pod.RESOURCE, POD, None, id="D10 a resource without rules"),
        pytest.param(ClusterTopologyBinding.RESOURCE, pcs(clique("a")), None, id="D10 binding"),
    ],
)
def test_an_object_of_another_kind_is_an_error(resource, obj, old):
    request = AdmissionRequest("UPDATE" if old else "CREATE", resource, obj, old)
    for judge in (GroveAdmission().default, GroveAdmission().validate):
        with pytest.raises(BadInputError, match=r"wanted|no rules"):
            judge(request)


# Rules of a set by itself

CLAIM = {"spec": {"devices": {"requests": [{"name": "gpu"}]}}}
CLAIMS = [{"name": "shared", "templateSpec": CLAIM}]
SHARING = "spec.template.resourceSharing"
SCHEDULER = f"{CLIQUES}.spec.podSpec.schedulerName"


def share(name: str = "outside", scope: str = "AllReplicas", **fields: Any) -> dict[str, Any]:
    return {"name": name, "scope": scope} | fields


def shared(*entries: dict[str, Any], **template: Any) -> dict[str, Any]:
    """A set with groups g[a] and h[b], and clique c."""
    groups = [group("g", "a"), group("h", "b")]
    return pcs(*map(clique, "abc"), groups=groups, resourceSharing=list(entries), **template)


def in_group(*entries: dict[str, Any], **template: Any) -> dict[str, Any]:
    groups = [group("g", "a", "b", resourceSharing=list(entries))]
    return pcs(*map(clique, "abc"), groups=groups, **template)


def scaling(high: int, low: int | None = None) -> dict[str, Any]:
    return {"maxReplicas": high} | ({} if low is None else {"minReplicas": low})


REFUSED = [
    pytest.param(pcs(clique("a"), name="A_b"), ["metadata.name: invalid"], id="V1"),
    pytest.param(pcs(clique("a"), replicas=-1), ["spec.replicas: invalid"], id="V2"),
    pytest.param(
        pcs(clique("a"), cliqueStartupType="Random"),
        ["spec.template.cliqueStartupType: not supported"],
        id="V3 unknown",
    ),
    pytest.param(
        pcs(clique("a"), terminationDelay="0s"),
        ["spec.template.terminationDelay: invalid"],
        id="V4 zero",
    ),
    pytest.param(
        pcs(clique("a"), terminationDelay="-1s"),
        ["spec.template.terminationDelay: invalid"],
        id="V4 negative",
    ),
    pytest.param(
        pcs(clique("a"), terminationDelay="soon"),
        ["spec.template.terminationDelay: invalid"],
        id="V4 no duration",
    ),
    pytest.param(
        shared(resourceClaimTemplates=[{"name": "", "templateSpec": CLAIM}]),
        ["spec.template.resourceClaimTemplates[0].name: required"],
        id="V5",
    ),
    pytest.param(
        shared(resourceClaimTemplates=[{"name": "x", "templateSpec": {"spec": {}}}]),
        ["spec.template.resourceClaimTemplates[0].templateSpec.spec.devices.requests: required"],
        id="V6 no devices",
    ),
    pytest.param(
        shared(
            resourceClaimTemplates=[
                {"name": "x", "templateSpec": {"spec": {"devices": {"requests": []}}}}
            ]
        ),
        ["spec.template.resourceClaimTemplates[0].templateSpec.spec.devices.requests: required"],
        id="V6 no requests",
    ),
    pytest.param(
        shared(resourceClaimTemplates=CLAIMS * 2),
        ["spec.template.resourceClaimTemplates[1].name: duplicate"],
        id="V7",
    ),
    pytest.param(shared(share("")), [f"{SHARING}[0].name: required"], id="V8 set"),
    pytest.param(
        in_group(share(" ")), [f"{GROUPS}[0].resourceSharing[0].name: required"], id="V8 group"
    ),
    pytest.param(
        pcs(clique("a", resourceSharing=[share("")])),
        [f"{CLIQUES}[0].resourceSharing[0].name: required"],
        id="V8 clique",
    ),
    pytest.param(shared(share(), share()), [f"{SHARING}[1].name: duplicate"], id="V9 set"),
    pytest.param(
        in_group(share(), share()),
        [f"{GROUPS}[0].resourceSharing[1].name: duplicate"],
        id="V9 group",
    ),
    pytest.param(
        pcs(clique("a", resourceSharing=[share(), share(namespace="x")])),
        [f"{CLIQUES}[0].resourceSharing[1].name: duplicate"],
        id="V9 clique",
    ),
    pytest.param(
        shared(share("shared", namespace="x"), resourceClaimTemplates=CLAIMS),
        [f"{SHARING}[0].namespace: invalid"],
        id="V10 set",
    ),
    pytest.param(
        in_group(share("shared", namespace="x"), resourceClaimTemplates=CLAIMS),
        [f"{GROUPS}[0].resourceSharing[0].namespace: invalid"],
        id="V10 group",
    ),
    pytest.param(shared(share(scope="Some")), [f"{SHARING}[0].scope: not supported"], id="V11 set"),
    pytest.param(
        in_group(share(scope="Some")),
        [f"{GROUPS}[0].resourceSharing[0].scope: not supported"],
        id="V11 group",
    ),
    pytest.param(
        pcs(clique("a", resourceSharing=[share(scope="")])),
        [f"{CLIQUES}[0].resourceSharing[0].scope: not supported"],
        id="V11 clique",
    ),
    pytest.param(shared(share(filter={})), [f"{SHARING}[0].filter: required"], id="V12"),
    pytest.param(
        shared(share(filter={"childCliqueNames": ["a", "z"]})),
        [f"{SHARING}[0].filter.childCliqueNames[1]: not found"],
        id="V13",
    ),
    pytest.param(
        shared(share(filter={"childScalingGroupNames": ["z"], "childCliqueNames": ["c"]})),
        [f"{SHARING}[0].filter.childScalingGroupNames[0]: not found"],
        id="V14",
    ),
    pytest.param(
        in_group(share(filter={})),
        [f"{GROUPS}[0].resourceSharing[0].filter.childCliqueNames: required"],
        id="V15",
    ),
    pytest.param(
        in_group(share(filter={"childCliqueNames": ["a", "c"]})),
        [f"{GROUPS}[0].resourceSharing[0].filter.childCliqueNames[1]: not found"],
        id="V16",
    ),
    pytest.param(
        in_group(share(filter={"childCliqueNames": ["a"], "childScalingGroupNames": ["g"]})),
        [f"{GROUPS}[0].resourceSharing[0].filter.childScalingGroupNames: forbidden"],
        id="V16 groups in a group",
    ),
    pytest.param(
        pcs(clique("a", resourceSharing=[share(filter={"childCliqueNames": ["a"]})])),
        [f"{CLIQUES}[0].resourceSharing[0].filter: forbidden"],
        id="V16 filter of a clique",
    ),
    pytest.param(
        pcs(
            clique("a", resourceSharing=[share(name="x")]),
            resourceSharing=[share(name="a-all-x", scope="PerReplica")],
        ),
        [f"{CLIQUES}[0].resourceSharing[0].name: invalid"],
        id="claims of two levels called alike",
    ),
    pytest.param(pcs(), [f"{CLIQUES}: required"], id="V17"),
    pytest.param(pcs(clique(" ")), [f"{CLIQUES}[0].name: required"], id="V18 blank"),
    pytest.param(pcs(clique("A_b")), [f"{CLIQUES}[0].name: invalid"], id="V18 no name"),
    pytest.param(
        pcs(clique("a"), clique("a", roleName="b")), [f"{CLIQUES}[1].name: duplicate"], id="V19"
    ),
    pytest.param(
        pcs(clique("a"), clique("b", roleName="a")),
        [f"{CLIQUES}[1].spec.roleName: duplicate"],
        id="V20",
    ),
    pytest.param(
        pcs(clique("a" * 43)),
        ["metadata.name: invalid", f"{CLIQUES}[0].name: invalid"],
        id="V21 standalone of 46",
    ),
    pytest.param(
        pcs(clique("a" * 20), groups=[group("g" * 23, "a" * 20)]),
        [
            "metadata.name: invalid",
            f"{GROUPS}[0].cliqueNames[0]: invalid",
            f"{GROUPS}[0].name: invalid",
        ],
        id="V21 member of 46",
    ),
    pytest.param(
        pcs(clique("a", labels={"a b": "c"})), [f"{CLIQUES}[0].labels: invalid"], id="V22 key"
    ),
    pytest.param(
        pcs(clique("a", labels={"a": "c d"})), [f"{CLIQUES}[0].labels: invalid"], id="V22 value"
    ),
    pytest.param(
        pcs(clique("a", annotations={"UP/a/b": "c"})),
        [f"{CLIQUES}[0].annotations: invalid"],
        id="V22 annotation",
    ),
    pytest.param(
        pcs(scheduled("a", "kai-scheduler"), scheduled("b", "volcano")),
        [f"{SCHEDULER}: invalid"],
        id="V23 two names",
    ),
    pytest.param(
        pcs(scheduled("a", "kai-scheduler"), scheduled("b")),
        [f"{SCHEDULER}: invalid"],
        id="V23 one named, the other left to another default",
    ),
    pytest.param(
        pcs(scheduled("a", "mine")), [f"{SCHEDULER}: invalid"], id="V24 B5 unknown scheduler"
    ),
    pytest.param(
        pcs(clique("a", -1)),
        [f"{CLIQUES}[0].spec.replicas: invalid", f"{CLIQUES}[0].spec.minAvailable: invalid"],
        id="V25",
    ),
    pytest.param(
        pcs(clique("a", 2, minAvailable=0)),
        [f"{CLIQUES}[0].spec.minAvailable: invalid"],
        id="V26 zero",
    ),
    pytest.param(
        pcs(clique("a", 2, minAvailable=3)),
        [f"{CLIQUES}[0].spec.minAvailable: invalid"],
        id="V26 above replicas",
    ),
    pytest.param(
        pcs(clique("a", startsAfter=[" "]), **EXPLICIT),
        [f"{CLIQUES}[0].spec.startsAfter: required"],
        id="V27 blank",
    ),
    pytest.param(
        pcs(clique("a", startsAfter=["a"]), **EXPLICIT),
        [f"{CLIQUES}[0].spec.startsAfter: invalid"],
        id="V27 itself",
    ),
    pytest.param(
        pcs(clique("a", startsAfter=["b", "b"]), clique("b"), **EXPLICIT),
        [f"{CLIQUES}[0].spec.startsAfter[1]: duplicate"],
        id="V27 twice",
    ),
    pytest.param(
        pcs(clique("a", startsAfter=["z"]), **EXPLICIT),
        [f"{CLIQUES}[0].spec.startsAfter: invalid"],
        id="V28",
    ),
    pytest.param(
        pcs(clique("a", startsAfter=["b"]), clique("b", startsAfter=["a"]), **EXPLICIT),
        [f"{CLIQUES}: invalid"],
        id="V29 two",
    ),
    pytest.param(
        pcs(
            clique("a", startsAfter=["b"]),
            clique("b", startsAfter=["c"]),
            clique("c", startsAfter=["a"]),
            clique("d", startsAfter=["e"]),
            clique("e", startsAfter=["d"]),
            **EXPLICIT,
        ),
        [f"{CLIQUES}: invalid"] * 2,
        id="V29 several",
    ),
    pytest.param(
        pcs(clique("a", 3, minAvailable=2, autoScalingConfig=scaling(5, 1))),
        [f"{CLIQUES}[0].spec.autoScalingConfig.minReplicas: invalid"],
        id="V30 below the minimum",
    ),
    pytest.param(
        pcs(clique("a", 3, autoScalingConfig=scaling(4, 5))),
        [f"{CLIQUES}[0].spec.autoScalingConfig.maxReplicas: invalid"],
        id="V31",
    ),
    pytest.param(
        pcs(clique("a", 3, minAvailable=1, autoScalingConfig=scaling(2, 1))),
        [f"{CLIQUES}[0].spec.autoScalingConfig.maxReplicas: invalid"],
        id="V32",
    ),
    pytest.param(
        pcs(clique("a", podSpec=containers(env("m", "1X", "X"), init=(env("i", "a=b"),)))),
        [
            f"{CLIQUES}[0].spec.podSpec.containers[0].env[0].name: invalid",
            f"{CLIQUES}[0].spec.podSpec.initContainers[0].env[0].name: invalid",
        ],
        id="V33",
    ),
    pytest.param(
        pcs(clique("a", podSpec=containers(env("m", "X", "Y", "X")))),
        [f"{CLIQUES}[0].spec.podSpec.containers[0].env[2].name: duplicate"],
        id="V34",
    ),
    pytest.param(
        pcs(clique("a", podSpec={"topologySpreadConstraints": [{"maxSkew": 1}]})),
        [f"{CLIQUES}[0].spec.podSpec.topologySpreadConstraints: invalid"],
        id="V35",
    ),
    pytest.param(
        pcs(clique("a", podSpec={"nodeName": "n"})),
        [f"{CLIQUES}[0].spec.podSpec.nodeName: invalid"],
        id="V36",
    ),
    pytest.param(
        pcs(clique("a"), groups=[group("G_", "a")]), [f"{GROUPS}[0].name: invalid"], id="V37"
    ),
    pytest.param(
        pcs(clique("a"), clique("b"), groups=[group("g", "a"), group("g", "b")]),
        [f"{GROUPS}[1].name: duplicate"],
        id="V38",
    ),
    pytest.param(
        pcs(clique("a"), groups=[group("g", "a", "z")]),
        [f"{GROUPS}[0].cliqueNames[1]: invalid"],
        id="V39",
    ),
    pytest.param(
        pcs(clique("a"), groups=[group("g", "a"), group("h", "a")]),
        [f"{GROUPS}[1].cliqueNames[0]: duplicate"],
        id="V40 two groups",
    ),
    pytest.param(
        pcs(clique("a"), groups=[group("g", "a", "a")]),
        [f"{GROUPS}[0].cliqueNames[1]: duplicate"],
        id="V40 twice in one",
    ),
    pytest.param(
        pcs(clique("a"), groups=[group("g")]),
        [f"{GROUPS}[0].cliqueNames: required"],
        id="V40 a group of none",
    ),
    pytest.param(
        pcs(clique("a"), groups=[group("g", "a", replicas=0)]),
        [f"{GROUPS}[0].replicas: invalid", f"{GROUPS}[0].minAvailable: invalid"],
        id="V41",
    ),
    pytest.param(
        pcs(clique("a"), groups=[group("g", "a", minAvailable=0)]),
        [f"{GROUPS}[0].minAvailable: invalid"],
        id="V42",
    ),
    pytest.param(
        pcs(clique("a"), groups=[group("g", "a", replicas=1, minAvailable=2)]),
        [f"{GROUPS}[0].minAvailable: invalid"],
        id="V43",
    ),
    pytest.param(
        pcs(
            clique("a"),
            groups=[group("g", "a", replicas=3, minAvailable=2, scaleConfig=scaling(5, 1))],
        ),
        [f"{GROUPS}[0].scaleConfig.minReplicas: invalid"],
        id="V44",
    ),
    pytest.param(
        pcs(clique("a"), groups=[group("g", "a", replicas=3, scaleConfig=scaling(2, 1))]),
        [f"{GROUPS}[0].scaleConfig.maxReplicas: invalid"],
        id="V44 maximum below replicas",
    ),
    pytest.param(
        pcs(clique("a"), groups=[group("g", "a", replicas=2, scaleConfig=scaling(3, 4))]),
        [f"{GROUPS}[0].scaleConfig.maxReplicas: invalid"],
        id="V44 maximum below minimum",
    ),
    pytest.param(
        pcs(clique("a", autoScalingConfig=scaling(2)), groups=[group("g", "a")]),
        [f"{CLIQUES}[0].spec.autoScalingConfig: invalid"],
        id="V45",
    ),
]


@pytest.mark.parametrize(("obj", "want"), REFUSED)
def test_a_broken_rule_is_told_with_its_field(obj, want):
    found = admit(obj)
    assert found.errors == want, found.text


@pytest.mark.parametrize(
    "obj",
    [
        pytest.param(pcs(clique("a")), id="smallest"),
        pytest.param(pcs(clique("a"), replicas=0), id="V2 zero"),
        pytest.param(shared(share("shared"), resourceClaimTemplates=CLAIMS), id="V10 internal"),
        pytest.param(shared(share(namespace="x")), id="V10 external"),
        pytest.param(
            shared(share(scope="PerReplica", filter={"childCliqueNames": ["a", "c"]})), id="V13"
        ),
        pytest.param(shared(share(filter={"childScalingGroupNames": ["h"]})), id="V14"),
        pytest.param(in_group(share(filter={"childCliqueNames": ["b"]})), id="V16"),
        pytest.param(
            pcs(clique("a", roleName=None), clique("b", roleName=None)), id="V20 two without role"
        ),
        pytest.param(pcs(clique("a" * 42)), id="V21 standalone of 45"),
        pytest.param(pcs(clique("a" * 20), groups=[group("g" * 22, "a" * 20)]), id="V21 of 45"),
        pytest.param(pcs(clique("a", labels={"x.io/a": "", "b": "B_1"})), id="V22"),
        pytest.param(pcs(clique("a", annotations={"X.io/A": "any text"})), id="V22 annotation"),
        pytest.param(pcs(scheduled("a"), scheduled("b")), id="V23 none named"),
        pytest.param(
            pcs(scheduled("a", "spinney-scheduler"), scheduled("b")), id="V23 the default named"
        ),
        pytest.param(pcs(scheduled("a", "lpx-scheduler")), id="V24 enabled"),
        pytest.param(pcs(clique("a", startsAfter=["z", "z", "a", ""])), id="V27 any order"),
        pytest.param(pcs(clique("a", startsAfter=["z"]), **IN_ORDER), id="V28 in order"),
        pytest.param(pcs(clique("a", 2, autoScalingConfig=scaling(2, 2))), id="V31 equal"),
        pytest.param(
            pcs(clique("a", podSpec=containers(env("m", "X", "_a.b-C"), env("n", "X")))),
            id="V34 in two containers",
        ),
        pytest.param(pcs(clique("a", podSpec=containers(env("m")))), id="V34 none"),
        pytest.param(
            pcs(clique("a"), groups=[group("g", "a", replicas=2, minAvailable=2)]), id="V43"
        ),
    ],
)
def test_what_breaks_no_rule_is_accepted(obj):
    found = admit(obj)
    assert found.errors == [], found.text


@pytest.mark.parametrize(
    ("path", "want"),
    [
        pytest.param("cliqueStartupType", "spec.template.cliqueStartupType: required", id="V3"),
        pytest.param("terminationDelay", "spec.template.terminationDelay: required", id="V4"),
    ],
)
def test_what_defaulting_fills_in_is_required_without_it(path, want):
    obj = admit(pcs(clique("a"))).obj
    del obj["spec"]["template"][path]
    verdict = GroveAdmission().validate(AdmissionRequest("CREATE", PodCliqueSet.RESOURCE, obj))
    assert [f"{e.path}: required" for e in verdict.errors] == [want]


@pytest.mark.parametrize(
    ("field", "want"),
    [
        pytest.param("minAvailable", f"{CLIQUES}[0].spec.minAvailable", id="V26"),
        pytest.param("minReplicas", f"{CLIQUES}[0].spec.autoScalingConfig.minReplicas", id="V30"),
    ],
)
def test_counts_are_required_without_defaulting(field, want):
    obj = admit(pcs(clique("a", autoScalingConfig=scaling(3)))).obj
    spec = obj["spec"]["template"]["cliques"][0]["spec"]
    (spec if field in spec else spec["autoScalingConfig"]).pop(field)
    verdict = GroveAdmission().validate(AdmissionRequest("CREATE", PodCliqueSet.RESOURCE, obj))
    assert [(e.path, e.reason) for e in verdict.errors] == [(want, "FieldValueRequired")]


def test_all_violations_are_reported_together():
    obj = pcs(
        clique("A", 2, minAvailable=3, podSpec={"nodeName": "n"}),
        clique("b", autoScalingConfig=scaling(2)),
        groups=[group("g", "b", "z")],
        terminationDelay="x",
        resourceSharing=[share("")],
    )
    assert len(admit(obj).errors) == 7


def test_each_circle_is_reported_once():
    parents = {"a": ["b"], "b": ["c"], "c": ["a"], "d": ["a"], "e": ["f"], "f": ["e"]}
    assert find_cycles(parents) == [["a", "b", "c", "a"], ["e", "f", "e"]]


# Rules that depend on what is installed


def policy(default: str, *enabled: str) -> GrovePolicy:
    return GrovePolicy(backends(enabled or (default,)), default)


KAI = policy("kai-scheduler", "kai-scheduler", "default-scheduler")
KUBE = policy("default-scheduler", "kai-scheduler", "default-scheduler")
QUEUE = {"kai.scheduler/queue": "q"}


@pytest.mark.parametrize(
    ("installed", "schedulers", "refused"),
    [
        pytest.param(KUBE, ("", ""), False, id="V23 all empty, default-scheduler"),
        pytest.param(KAI, ("", ""), False, id="V23 all empty, kai"),
        pytest.param(KUBE, ("", "default-scheduler"), False, id="V23 mixed, default named"),
        pytest.param(KUBE, ("", "kai-scheduler"), True, id="V23 mixed, kai named"),
        pytest.param(KAI, ("", "kai-scheduler"), False, id="V23 mixed, kai named and default"),
        pytest.param(KAI, ("", "default-scheduler"), True, id="V23 mixed, other named"),
        pytest.param(KAI, ("kai-scheduler", "default-scheduler"), True, id="V23 two"),
        pytest.param(KUBE, ("volcano", "volcano"), True, id="V24 not enabled"),
        pytest.param(KUBE, ("nobody", "nobody"), True, id="B5 V24 unknown"),
        pytest.param(
            policy("lpx-scheduler"), ("lpx-scheduler", ""), False, id="V24 lpx where enabled"
        ),
    ],
)
def test_an_empty_scheduler_means_the_default_one(installed, schedulers, refused):
    first, second = schedulers
    obj = pcs(scheduled("a", first), scheduled("b", second), labels=QUEUE)
    found = admit(obj, policy=installed)
    assert found.errors == ([f"{SCHEDULER}: invalid"] if refused else []), found.text


ANNOTATED = {"scheduling.grove.io/volcano-queue": "q"}
PACKED = {"topologyConstraint": {"topologyName": "cluster", "pack": {"required": "rack"}}}
VOLCANO_QUEUE = ("queues.scheduling.volcano.sh", "q")
DEFAULT_QUEUE = ("queues.scheduling.volcano.sh", "default")
OPEN, CLOSED = {"status": {"state": "Open"}}, {"status": {"state": "Closed"}}
BINDING = ("clustertopologybindings.grove.io", "cluster")
LEVELS = {
    "metadata": {"name": "cluster"},
    "spec": {"levels": [{"domain": "rack", "key": "topology/rack"}]},
}


@pytest.mark.parametrize(
    ("parts", "template", "refused"),
    [
        pytest.param([{}], {}, True, id="B1 no queue"),
        pytest.param([{}], {"labels": QUEUE}, False, id="B1 label"),
        pytest.param([{}], {"annotations": QUEUE}, False, id="B1 annotation"),
        pytest.param([{"labels": QUEUE}, {}], {}, False, id="B1 on a clique"),
        pytest.param([{"annotations": QUEUE}, {"labels": QUEUE}], {}, False, id="B1 cliques agree"),
        pytest.param(
            [{"labels": QUEUE}, {"labels": {"kai.scheduler/queue": "r"}}],
            {},
            True,
            id="B1 cliques differ",
        ),
        pytest.param(
            [{"labels": {"kai.scheduler/queue": "r"}}], {"labels": QUEUE}, True, id="B1 set differs"
        ),
        pytest.param(
            [{}],
            {"labels": QUEUE, "annotations": {"kai.scheduler/queue": "r"}},
            False,
            id="B1 the label wins",
        ),
    ],
)
def test_kai_needs_one_queue(parts, template, refused):
    cliques = [scheduled(name, "kai-scheduler", **p) for name, p in zip("ab", parts, strict=False)]
    found = admit(pcs(*cliques, **template))
    assert found.errors == (["spec: invalid"] if refused else []), found.text


@pytest.mark.parametrize(
    ("template", "objects", "want"),
    [
        pytest.param({}, {DEFAULT_QUEUE: OPEN}, 0, id="B2 the default queue"),
        pytest.param({}, {}, 1, id="B2 no default queue"),
        pytest.param({"annotations": ANNOTATED}, {VOLCANO_QUEUE: OPEN}, 0, id="B2 named"),
        pytest.param({"annotations": ANNOTATED}, {VOLCANO_QUEUE: CLOSED}, 1, id="B2 closed"),
        pytest.param({"annotations": ANNOTATED}, {VOLCANO_QUEUE: {}}, 1, id="B2 no state"),
        pytest.param(
            {"annotations": {"scheduling.grove.io/volcano-queue": "A_"}}, {}, 1, id="B2 no name"
        ),
        pytest.param(PACKED, {DEFAULT_QUEUE: OPEN, BINDING: LEVELS}, 1, id="B2 topology"),
    ],
)
def test_volcano_needs_an_open_queue_and_knows_no_topology(template, objects, want):
    found = admit(pcs(scheduled("a", "volcano"), **template), objects=objects)
    assert found.errors == ["spec: invalid"] * want, found.text


@pytest.mark.parametrize(
    ("own", "first", "second", "refused"),
    [
        pytest.param("q", "q", None, False, id="B2 set and clique agree"),
        pytest.param("q", "r", None, True, id="B2 set and clique differ"),
        pytest.param(None, "q", "r", True, id="B2 cliques differ"),
        pytest.param(None, "q", None, False, id="B2 one clique names it"),
    ],
)
def test_volcano_has_one_queue_for_a_set(own, first, second, refused):
    def named(queue: str | None) -> dict[str, Any]:
        key = "scheduling.grove.io/volcano-queue"
        return {} if queue is None else {"annotations": {key: queue}}

    obj = pcs(
        scheduled("a", "volcano", **named(first)),
        scheduled("b", "volcano", **named(second)),
        **named(own),
    )
    found = admit(obj, objects={VOLCANO_QUEUE: OPEN})
    assert found.errors == (["spec: invalid"] if refused else []), found.text


def test_b2_a_set_whose_queue_has_closed_can_still_be_changed_but_not_moved_to_it():
    obj = pcs(scheduled("a", "volcano"), annotations=ANNOTATED)
    more = changed(obj, lambda t: t.update(terminationDelay="1h"))
    assert admit(more, obj, objects={VOLCANO_QUEUE: CLOSED}).errors == []
    elsewhere = pcs(scheduled("a", "volcano"))
    assert admit(more, elsewhere, objects={VOLCANO_QUEUE: CLOSED}).errors == ["spec: invalid"]


def test_b3_lpx_knows_no_topology():
    obj = pcs(scheduled("a", "lpx-scheduler", **PACKED))
    assert admit(obj, objects={BINDING: LEVELS}).errors == ["spec: invalid"]


def test_b4_default_scheduler_takes_everything_and_says_what_it_leaves_undone():
    found = admit(pcs(scheduled("a", "default-scheduler"), **PACKED), objects={BINDING: LEVELS})
    assert found.errors == []
    assert "default-scheduler does not know topology" in found.warnings[0]
    ours = placed_by_spinney(["spinney-scheduler", "default-scheduler"])
    obj = pcs(scheduled("a", "default-scheduler"), **PACKED)
    assert admit(obj, policy=ours, objects={BINDING: LEVELS}).warnings == []


def test_b5_a_policy_names_each_scheduler_once_and_a_default_among_them():
    with pytest.raises(BadInputError, match="not enabled"):
        policy("volcano", "kai-scheduler")
    with pytest.raises(BadInputError, match="once"):
        GrovePolicy((SchedulerBackend("spinney-scheduler"),) * 2)
    with pytest.raises(BadInputError, match="nobody"):
        backends(["nobody"])


GPU = {"containers": [{"name": "m", "resources": {"limits": {"nvidia.com/gpu": 8}}}]}


def mnnvl(value: str) -> dict[str, Any]:
    return {"annotations": {"grove.io/mnnvl-group": value}}


def at(place: str, value: str, pod_spec: dict[str, Any]) -> dict[str, Any]:
    """A set of a clique in a group, annotated at one of the three places."""
    marks = {p: mnnvl(value) if p == place else {} for p in ("set", "group", "clique")}
    cliques = [clique("a", podSpec=pod_spec, **marks["clique"])]
    return pcs(*cliques, groups=[group("g", "a", **marks["group"])], **marks["set"])


PLACES = {
    "set": "metadata.annotations[grove.io/mnnvl-group]",
    "group": f"{GROUPS}[0].annotations[grove.io/mnnvl-group]",
    "clique": f"{CLIQUES}[0].annotations[grove.io/mnnvl-group]",
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    ("value", "enabled", "refused"),
    [
        pytest.param("train", True, False, id="M1"),
        pytest.param("", True, True, id="M1 empty"),
        pytest.param("two words", True, True, id="M1 spaces"),
        pytest.param("Train", True, True, id="M1 upper case"),
        pytest.param("none", True, False, id="M1 none"),
        pytest.param("train", False, True, id="M2 switched off"),
        pytest.param("none", False, False, id="M2 none"),
    ],
)
def test_an_mnnvl_group_is_a_name_or_none(place, value, enabled, refused):
    found = admit(at(place, value, GPU), policy=GrovePolicy(mnnvl_enabled=enabled))
    assert found.errors == ([f"{PLACES[place]}: invalid"] if refused else []), found.text


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    ("was", "is_"), [("", "train"), ("train", ""), ("train", "infer"), ("train", "none")]
)
def test_m3_an_mnnvl_group_stays_as_it_is(place, was, is_):
    old, new = (at(place if v else "", v, GPU) for v in (was, is_))
    assert admit(new, old).errors == [f"{PLACES[place]}: forbidden"]
    assert admit(at(place, "train", {}), at(place, "train", GPU)).errors == []


@pytest.mark.parametrize("place", PLACES)
def test_m4_an_mnnvl_group_without_gpus_is_accepted_with_a_warning(place):
    found = admit(at(place, "train", {}))
    assert found.errors == []
    assert len(found.warnings) == 1
    assert found.warnings[0].startswith(f"{PLACES[place]}: has no effect")
    assert admit(at(place, "train", GPU)).warnings == []
    assert admit(at(place, "none", {})).warnings == []


# Updates

GROUPED = pcs(
    clique("a", 2, startsAfter=[], resourceSharing=[share()]),
    clique("b", startsAfter=["a"], podSpec={"schedulerName": "spinney-scheduler"}),
    clique("c"),
    groups=[
        group("g", "b", "c", replicas=2, resourceSharing=[share("in-group")]),
    ],
    resourceClaimTemplates=CLAIMS,
    resourceSharing=[share("shared")],
    **EXPLICIT,
)


def set_clique(**spec: Any) -> Any:
    return lambda t: t["cliques"][1]["spec"].update(spec)


def set_group(**fields: Any) -> Any:
    return lambda t: t["podCliqueScalingGroups"][0].update(fields)


@pytest.mark.parametrize(
    ("change", "want"),
    [
        pytest.param(
            lambda t: t["cliques"].append(clique("d")), [f"{CLIQUES}: forbidden"], id="U1"
        ),
        pytest.param(
            lambda t: (
                t["cliques"][0].update(name="z")
                or t["cliques"][1]["spec"].update(startsAfter=["z"])
            ),
            [f"{CLIQUES}[0].name: forbidden", f"{CLIQUES}[1].spec.startsAfter: forbidden"],
            id="U2",
        ),
        pytest.param(lambda t: t["cliques"].reverse(), [f"{CLIQUES}: invalid"], id="U3 Explicit"),
        pytest.param(set_clique(roleName="z"), [f"{CLIQUES}[1].spec.roleName: forbidden"], id="U4"),
        pytest.param(
            set_clique(replicas=2, minAvailable=2),
            [f"{CLIQUES}[1].spec.minAvailable: forbidden"],
            id="U5",
        ),
        pytest.param(
            set_clique(startsAfter=[]), [f"{CLIQUES}[1].spec.startsAfter: forbidden"], id="U6"
        ),
        pytest.param(
            lambda t: t["cliques"][1]["spec"]["podSpec"].pop("schedulerName"),
            [f"{CLIQUES}[1].spec.podSpec.schedulerName: forbidden"],
            id="U7",
        ),
        pytest.param(
            lambda t: t["cliques"][0].pop("resourceSharing"),
            [f"{CLIQUES}[0].resourceSharing: forbidden"],
            id="U8",
        ),
        pytest.param(
            lambda t: t.update(cliqueStartupType="CliqueStartupTypeAnyOrder"),
            ["spec.template.cliqueStartupType: forbidden"],
            id="U9",
        ),
        pytest.param(lambda t: t.pop("podCliqueScalingGroups"), [f"{GROUPS}: forbidden"], id="U10"),
        pytest.param(set_group(name="z"), [f"{GROUPS}[0].name: forbidden"], id="U11"),
        pytest.param(
            set_group(cliqueNames=["c", "b"]), [f"{GROUPS}[0].cliqueNames: forbidden"], id="U12"
        ),
        pytest.param(set_group(minAvailable=2), [f"{GROUPS}[0].minAvailable: forbidden"], id="U13"),
        pytest.param(
            set_group(resourceSharing=[]), [f"{GROUPS}[0].resourceSharing: forbidden"], id="U14"
        ),
        pytest.param(
            lambda t: t["resourceClaimTemplates"].append({"name": "n", "templateSpec": CLAIM}),
            ["spec.template.resourceClaimTemplates: forbidden"],
            id="U15",
        ),
        pytest.param(
            lambda t: t["resourceSharing"][0].update(scope="PerReplica"),
            ["spec.template.resourceSharing: forbidden"],
            id="U16",
        ),
    ],
)
def test_an_immutable_field_may_not_change(change, want):
    found = admit(changed(GROUPED, change), GROUPED)
    assert found.errors == want, found.text


def test_u4_to_u9_several_changes_are_reported_together():
    new = changed(GROUPED, lambda t: t.update(cliqueStartupType="CliqueStartupTypeInOrder"))
    new = changed(new, set_clique(roleName="z", startsAfter=[]))
    new = changed(new, lambda t: t["cliques"].reverse())
    assert admit(new, GROUPED).errors == [
        "spec.template.cliqueStartupType: forbidden",
        f"{CLIQUES}: invalid",
        f"{CLIQUES}[1].spec.roleName: forbidden",
        f"{CLIQUES}[1].spec.startsAfter: forbidden",
    ]


def test_u1_to_u16_are_looked_at_when_the_object_is_good_by_itself():
    new = changed(GROUPED, set_clique(roleName="z", replicas=-1))
    assert not any("forbidden" in error for error in admit(new, GROUPED).errors)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda t: t["cliques"][0]["spec"].update(replicas=5), id="replicas"),
        pytest.param(
            lambda t: t["cliques"][0]["spec"]["podSpec"]["containers"][0].update(image="y"),
            id="image",
        ),
        pytest.param(
            lambda t: t["cliques"][0].update(labels={"a": "b"}, annotations={"c": "d"}),
            id="labels and annotations",
        ),
        pytest.param(lambda t: t.update(priorityClassName="high"), id="priority"),
        pytest.param(lambda t: t.update(terminationDelay="1h"), id="delay"),
        pytest.param(
            lambda t: t.update(headlessServiceConfig={"publishNotReadyAddresses": False}),
            id="service",
        ),
        pytest.param(
            lambda t: t["cliques"][0]["spec"].update(autoScalingConfig=scaling(9)), id="scaling"
        ),
        pytest.param(set_group(replicas=3, scaleConfig=scaling(9)), id="group"),
    ],
)
def test_what_is_mutable_may_change(change):
    found = admit(changed(GROUPED, change), GROUPED)
    assert found.errors == [], found.text


def test_u3_cliques_may_change_places_in_any_order():
    old = pcs(clique("a"), clique("b"))
    assert admit(changed(old, lambda t: t["cliques"].reverse()), old).errors == []
    old = pcs(clique("a"), clique("b"), **IN_ORDER)
    found = admit(changed(old, lambda t: t["cliques"].reverse()), old)
    assert found.errors == [f"{CLIQUES}: invalid"]


def test_u11_groups_may_change_places():
    old = pcs(clique("a"), clique("b"), groups=[group("g", "a"), group("h", "b")])
    new = changed(old, lambda t: t["podCliqueScalingGroups"].reverse())
    assert admit(new, old).errors == []


def test_u10_no_groups_and_an_empty_list_of_groups_are_the_same():
    old, new = pcs(clique("a")), pcs(clique("a"), podCliqueScalingGroups=[])
    assert admit(new, old).errors == admit(old, new).errors == []


@pytest.mark.parametrize(
    ("field", "value"),
    [
        pytest.param("topologySpreadConstraints", [{"maxSkew": 1}], id="V35"),
        pytest.param("nodeName", "n", id="V36"),
    ],
)
def test_what_only_a_new_set_may_not_have_brings_a_warning_to_an_old_one(field, value):
    old, new = pcs(clique("a")), pcs(clique("a", podSpec={field: value}))
    found = admit(new, old)
    assert found.errors == []
    assert [w.split(":")[0] for w in found.warnings] == [f"{CLIQUES}[0].spec.podSpec.{field}"]
    again = admit(changed(new, lambda t: t.update(terminationDelay="1h")), new)
    assert (again.errors, again.warnings) == ([], [])


def test_what_was_stored_under_other_rules_can_go_and_be_deleted():
    bad = pcs(clique("A_"), terminationDelay="x")
    going = copy.deepcopy(bad)
    going["metadata"]["finalizers"] = []
    hook = GroveAdmission()
    resource = PodCliqueSet.RESOURCE
    assert hook.validate(AdmissionRequest("UPDATE", resource, going, bad)).errors == ()
    assert hook.validate(AdmissionRequest("DELETE", resource, bad, bad)).errors == ()
    status = AdmissionRequest("UPDATE", resource, bad, bad, subresource="status")
    assert hook.validate(status).errors == ()
