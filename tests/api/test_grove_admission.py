"""Which PodCliqueSets are accepted, with the checklist's rule in each test id."""

import copy

import pytest

from spinney.api.admission import AdmissionRequest
from spinney.api.grove import ClusterTopologyBinding, PodCliqueSet
from spinney.api.grove_admission import GroveAdmission
from spinney.api.grove_validation import find_cycles

LEVELS = [{"domain": d, "key": f"topology/{d}"} for d in ("zone", "rack", "host")]


def clique(name, replicas=1, **spec):
    pod_spec = {"containers": [{"name": "main", "image": "x"}]} | spec.pop("podSpec", {})
    return (
        {"name": name, "spec": {"roleName": name, "podSpec": pod_spec, "replicas": replicas}}
        | {key: spec.pop(key) for key in ("topologyConstraint",) if key in spec}
        | (
            {}
            if not spec
            else {"spec": {"roleName": name, "podSpec": pod_spec, "replicas": replicas} | spec}
        )
    )


def pcs(*cliques, **template):
    return {
        "apiVersion": "grove.io/v1alpha1",
        "kind": "PodCliqueSet",
        "metadata": {"name": template.pop("name", "svc"), "namespace": "default"},
        "spec": {"replicas": 1, "template": {"cliques": list(cliques)} | template},
    }


def group(name, *cliques, **fields):
    return {"name": name, "cliqueNames": list(cliques)} | fields


def lookup(_resource, _namespace, name):
    binding = {"metadata": {"name": name}, "spec": {"levels": LEVELS}}
    return binding if name == "cluster" else None


def admit(obj, old=None):
    hook = GroveAdmission()
    operation = "UPDATE" if old else "CREATE"
    old = old and hook.default(AdmissionRequest("CREATE", PodCliqueSet.RESOURCE, old))
    request = AdmissionRequest(operation, PodCliqueSet.RESOURCE, obj, old, lookup=lookup)
    defaulted = hook.default(request)
    request = AdmissionRequest(operation, PodCliqueSet.RESOURCE, defaulted, old, lookup=lookup)
    return defaulted, [f"{e.path}: {e.message}" for e in hook.validate(request).errors]


def pack(topology="cluster", **domains):
    return {"topologyName": topology, "pack": domains}


EXPLICIT = {"cliqueStartupType": "CliqueStartupTypeExplicit"}
LONG = "a" * 40

REFUSED = [
    pytest.param(pcs(), "spec.template.cliques: Required value", id="V17 no clique"),
    pytest.param(pcs(clique("A_b")), "cliques[0].name: Invalid", id="V18 clique name"),
    pytest.param(pcs(clique("a"), clique("a")), "cliques[1].name: Duplicate", id="V19 twice"),
    pytest.param(pcs(clique(LONG), name="svc-abc"), "at most 45 fit", id="V21 name budget"),
    pytest.param(
        pcs(
            clique("a", podSpec={"schedulerName": "x"}), clique("b", podSpec={"schedulerName": "y"})
        ),
        "schedulerName: Invalid value: one scheduler",
        id="V23 two schedulers",
    ),
    pytest.param(pcs(clique("a", -1)), "spec.replicas: Invalid", id="V25 replicas"),
    pytest.param(
        pcs(clique("a", 2, minAvailable=3)), "not be more than replicas", id="V26 minimum"
    ),
    pytest.param(
        pcs(clique("a", startsAfter=["a"]), **EXPLICIT), "cannot start after itself", id="V27 self"
    ),
    pytest.param(
        pcs(clique("a", startsAfter=["zz"]), **EXPLICIT),
        "no clique is called 'zz'",
        id="V28 unknown",
    ),
    pytest.param(
        pcs(clique("a", startsAfter=["b"]), clique("b", startsAfter=["a"]), **EXPLICIT),
        "circle: a → b → a",
        id="V29 cycle",
    ),
    pytest.param(
        pcs(clique("a", 3, autoScalingConfig={"maxReplicas": 2})),
        "autoScalingConfig.maxReplicas: Invalid",
        id="V31 maximum below minimum",
    ),
    pytest.param(
        pcs(
            clique(
                "a", podSpec={"containers": [{"name": "c", "env": [{"name": "X"}, {"name": "X"}]}]}
            )
        ),
        "containers[0].env[1].name: Duplicate",
        id="V34 variable twice",
    ),
    pytest.param(pcs(clique("a", podSpec={"nodeName": "n"})), "podSpec.nodeName", id="V36 node"),
    pytest.param(
        pcs(clique("a"), podCliqueScalingGroups=[group("g", "b")]),
        "no clique is called 'b'",
        id="V39",
    ),
    pytest.param(
        pcs(clique("a"), podCliqueScalingGroups=[group("g", "a"), group("h", "a")]),
        "'a' is in group 'g' already",
        id="V40 in two groups",
    ),
    pytest.param(
        pcs(clique("a"), podCliqueScalingGroups=[group("g", "a", replicas=1, minAvailable=2)]),
        "podCliqueScalingGroups[0].minAvailable: Invalid",
        id="V43 group minimum",
    ),
    pytest.param(
        pcs(
            clique("a", autoScalingConfig={"maxReplicas": 2}),
            podCliqueScalingGroups=[group("g", "a")],
        ),
        "put scaleConfig on the group",
        id="V45 member scales",
    ),
    pytest.param(pcs(clique("a"), terminationDelay="-1s"), "must be more than 0", id="V4 delay"),
    pytest.param(pcs(clique("a"), terminationDelay="soon"), "no duration", id="V4 no duration"),
    pytest.param(
        pcs(clique("a"), topologyConstraint={"pack": {"required": "rack"}}),
        "topologyConstraint.topologyName: Required",
        id="T2 no topology",
    ),
    pytest.param(
        pcs(
            clique("a", topologyConstraint=pack("other", required="rack")),
            topologyConstraint=pack(required="rack"),
        ),
        "one set has one topology",
        id="T3 two topologies",
    ),
    pytest.param(
        pcs(clique("a"), topologyConstraint=pack("nowhere", required="rack")),
        "there is no ClusterTopologyBinding 'nowhere'",
        id="T4 unknown topology",
    ),
    pytest.param(
        pcs(clique("a"), topologyConstraint=pack(required="row")),
        "'row' is no domain of the topology: zone, rack, host",
        id="T5 unknown domain",
    ),
    pytest.param(
        pcs(
            clique("a", topologyConstraint={"pack": {"required": "zone"}}),
            topologyConstraint=pack(required="host"),
        ),
        "'host' is narrower than 'zone'",
        id="T6 hierarchy",
    ),
    pytest.param(
        pcs(clique("a"), topologyConstraint=pack()),
        "set required, preferred, or both",
        id="C3 empty pack",
    ),
]


@pytest.mark.parametrize(("obj", "want"), REFUSED)
def test_a_broken_rule_is_named_with_its_field(obj, want):
    _, errors = admit(obj)
    assert any(want in error for error in errors), errors


@pytest.mark.parametrize(
    "obj",
    [
        pytest.param(pcs(clique("a")), id="smallest"),
        pytest.param(pcs(clique("a" * 42)), id="V21 exactly 45"),
        pytest.param(pcs(clique("a", startsAfter=["zz"])), id="V27 ignored in any order"),
        pytest.param(
            pcs(
                clique("a", topologyConstraint={"pack": {"required": "host"}}),
                topologyConstraint=pack(required="rack"),
            ),
            id="T6 nested",
        ),
        pytest.param(pcs(clique("a"), topologyConstraint=pack(preferred="rack")), id="C5"),
    ],
)
def test_what_breaks_no_rule_is_accepted(obj):
    assert admit(obj)[1] == []


def test_all_violations_are_reported_together():
    _, errors = admit(pcs(clique("A"), clique("b", -2), terminationDelay="x"))
    assert len(errors) >= 3


def test_defaults_are_filled_in_and_the_input_is_not_changed():
    obj = pcs(clique("a", 0), clique("b", 3), podCliqueScalingGroups=[group("g", "b")])
    before = copy.deepcopy(obj)

    defaulted, errors = admit(obj)

    assert errors == []
    assert obj == before
    template = defaulted["spec"]["template"]
    first, second = template["cliques"]
    assert (first["spec"]["replicas"], first["spec"]["minAvailable"]) == (1, 1)  # D4, D5
    assert second["spec"]["minAvailable"] == 3
    assert first["spec"]["podSpec"]["restartPolicy"] == "Always"  # D2
    assert first["spec"]["podSpec"]["terminationGracePeriodSeconds"] == 30  # D3
    assert template["terminationDelay"] == "4h"  # D8
    assert template["headlessServiceConfig"] == {"publishNotReadyAddresses": True}  # D9
    group_ = template["podCliqueScalingGroups"][0]
    assert (group_["replicas"], group_["minAvailable"]) == (1, 1)


def changed(obj, change):
    result = copy.deepcopy(obj)
    change(result["spec"]["template"])
    return result


GROUPED = pcs(
    clique("a", 2), clique("b"), podCliqueScalingGroups=[group("g", "b", replicas=2)], **EXPLICIT
)


@pytest.mark.parametrize(
    ("change", "want"),
    [
        pytest.param(lambda t: t["cliques"].append(clique("c")), "may not be added", id="U1"),
        pytest.param(lambda t: t["cliques"][0].update(name="z"), "renamed", id="U2"),
        pytest.param(lambda t: t["cliques"].reverse(), "order of cliques", id="U3"),
        pytest.param(lambda t: t["cliques"][0]["spec"].update(roleName="z"), "roleName", id="U4"),
        pytest.param(
            lambda t: t["cliques"][0]["spec"].update(minAvailable=1), "minAvailable", id="U5"
        ),
        pytest.param(
            lambda t: t["cliques"][0]["spec"].update(startsAfter=["b"]), "startsAfter", id="U6"
        ),
        pytest.param(
            lambda t: t.update(cliqueStartupType="CliqueStartupTypeInOrder"), "StartupType", id="U9"
        ),
        pytest.param(lambda t: t.pop("podCliqueScalingGroups"), "may not be added", id="U10"),
        pytest.param(
            lambda t: t["podCliqueScalingGroups"][0].update(minAvailable=2),
            "minAvailable",
            id="U13",
        ),
        pytest.param(
            lambda t: t.update(topologyConstraint=pack(required="rack")),
            "topologyConstraint",
            id="T9",
        ),
    ],
)
def test_an_immutable_field_may_not_change(change, want):
    _, errors = admit(changed(GROUPED, change), old=GROUPED)
    assert any(want in error for error in errors), errors


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda t: t["cliques"][0]["spec"].update(replicas=5), id="replicas"),
        pytest.param(
            lambda t: t["cliques"][0]["spec"]["podSpec"]["containers"][0].update(image="y"),
            id="image",
        ),
        pytest.param(lambda t: t.update(terminationDelay="1h"), id="delay"),
        pytest.param(lambda t: t["podCliqueScalingGroups"][0].update(replicas=3), id="group"),
    ],
)
def test_what_is_mutable_may_change(change):
    assert admit(changed(GROUPED, change), old=GROUPED)[1] == []


def test_a_binding_names_each_domain_and_key_once():
    levels = [{"domain": "rack", "key": "k"}, {"domain": "rack", "key": "k"}]
    binding = {"metadata": {"name": "c"}, "spec": {"levels": levels}}
    request = AdmissionRequest("CREATE", ClusterTopologyBinding.RESOURCE, binding)

    errors = GroveAdmission().validate(request).errors

    assert [e.path for e in errors] == ["spec.levels[1].domain", "spec.levels[1].key"]


def test_each_circle_is_reported_once():
    parents = {"a": ["b"], "b": ["c"], "c": ["a"], "d": ["a"], "e": ["f"], "f": ["e"]}
    assert find_cycles(parents) == [["a", "b", "c", "a"], ["e", "f", "e"]]
