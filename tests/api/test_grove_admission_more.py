"""Rules about claims, schedulers, MNNVL, scaling and protection, with the rule in each test id."""

import copy

import pytest
from tests.api.test_grove_admission import EXPLICIT, LEVELS, clique, group, pack, pcs

from spinney.api.admission import AdmissionRequest
from spinney.api.core import Pod
from spinney.api.grove import ClusterTopologyBinding, PodClique, PodCliqueSet
from spinney.api.grove_admission import GroveAdmission
from spinney.api.grove_authorizer import UNPROTECTED, GroveAuthorizer
from spinney.api.grove_policy import GrovePolicy, backends
from spinney.errors import BadInputError

ALL = GrovePolicy()
MNNVL = "grove.io/mnnvl-group"
QUEUES = {"open": {"status": {"state": "Open"}}, "closed": {"status": {"state": "Closed"}}}


def lookup(resource, _namespace, name):
    if resource.kind == "ClusterTopologyBinding":
        return (
            {"metadata": {"name": name}, "spec": {"levels": LEVELS}} if name == "cluster" else None
        )
    return QUEUES.get(name)


def admit(obj, old=None, policy=ALL):
    """Return the messages and the warnings of a write of *obj*."""
    hook = GroveAdmission(policy)
    operation = "UPDATE" if old else "CREATE"
    stored = old and hook.default(AdmissionRequest("CREATE", PodCliqueSet.RESOURCE, old))
    request = AdmissionRequest(operation, PodCliqueSet.RESOURCE, obj, stored, lookup=lookup)
    defaulted = hook.default(request)
    request = AdmissionRequest(operation, PodCliqueSet.RESOURCE, defaulted, stored, lookup=lookup)
    verdict = hook.validate(request)
    return [f"{e.path}: {e.message}" for e in verdict.errors], list(verdict.warnings)


def claims(*names, requests=({"name": "gpu"},)):
    spec = {"spec": {"devices": {"requests": list(requests)}}}
    return {"resourceClaimTemplates": [{"name": n, "templateSpec": spec} for n in names]}


def share(name="c", scope="AllReplicas", **fields):
    return {"name": name, "scope": scope} | fields


def scheduled(name, **template):
    return pcs(clique("a", podSpec={"schedulerName": name}), **template)


def with_annotation(obj, key, value):
    obj["metadata"].setdefault("annotations", {})[key] = value
    return obj


REFUSED = [
    pytest.param(pcs(clique("a"), **claims(" ")), "Templates[0].name: Required", id="V5"),
    pytest.param(
        pcs(clique("a"), **claims("c", requests=())), "devices.requests: Required", id="V6"
    ),
    pytest.param(pcs(clique("a"), **claims("c", "c")), "Templates[1].name: Duplicate", id="V7"),
    pytest.param(
        pcs(clique("a"), resourceSharing=[share(" ")]), "resourceSharing[0].name: Req", id="V8"
    ),
    pytest.param(
        pcs(clique("a"), resourceSharing=[share(), share()]), "Sharing[1].name: Dup", id="V9"
    ),
    pytest.param(
        pcs(clique("a"), resourceSharing=[share(namespace="x")], **claims("c")),
        "leave the namespace out",
        id="V10",
    ),
    pytest.param(
        pcs(clique("a"), resourceSharing=[share(scope="Some")]),
        "resourceSharing[0].scope",
        id="V11",
    ),
    pytest.param(
        pcs(clique("a"), resourceSharing=[share(filter={})]), "filter: Required", id="V12"
    ),
    pytest.param(
        pcs(clique("a"), resourceSharing=[share(filter={"childCliqueNames": ["z"]})]),
        "no clique is called 'z'",
        id="V13",
    ),
    pytest.param(
        pcs(clique("a"), resourceSharing=[share(filter={"childScalingGroupNames": ["z"]})]),
        "no scaling group is called 'z'",
        id="V14",
    ),
    pytest.param(
        pcs(
            clique("a"),
            podCliqueScalingGroups=[group("g", "a", resourceSharing=[share(filter={})])],
        ),
        "filter.childCliqueNames: Required",
        id="V15",
    ),
    pytest.param(
        pcs(
            clique("a"),
            clique("b"),
            podCliqueScalingGroups=[
                group("g", "a", resourceSharing=[share(filter={"childCliqueNames": ["b"]})])
            ],
        ),
        "'b' is no clique of the group",
        id="V16",
    ),
    pytest.param(scheduled("nobody"), "scheduler 'nobody' is not enabled", id="V24 B5"),
    pytest.param(scheduled("kai-scheduler"), "needs a queue", id="B1 no queue"),
    pytest.param(scheduled("volcano"), "there is no Volcano queue 'default'", id="B2 no queue"),
    pytest.param(
        with_annotation(scheduled("volcano"), "scheduling.grove.io/volcano-queue", "closed"),
        "is Closed, not Open",
        id="B2 closed",
    ),
    pytest.param(
        scheduled("lpx-scheduler", topologyConstraint=pack(required="rack")), "lpx", id="B3"
    ),
    pytest.param(with_annotation(pcs(clique("a")), MNNVL, ""), "must be 'none'", id="M1"),
    pytest.param(
        pcs(clique("a"), topologyConstraint={"topologyName": "cluster", "packDomain": "rack"}),
        "packDomain",
        id="C1",
    ),
]


@pytest.mark.parametrize(("obj", "want"), REFUSED)
def test_a_broken_rule_is_named_with_its_field(obj, want):
    errors, _ = admit(obj)
    assert any(want in error for error in errors), errors


@pytest.mark.parametrize(
    "obj",
    [
        pytest.param(pcs(clique("a"), resourceSharing=[share()], **claims("c")), id="V5-V11"),
        pytest.param(pcs(clique("a"), resourceSharing=[share(namespace="x")]), id="V10 external"),
        pytest.param(
            with_annotation(scheduled("kai-scheduler"), "kai.scheduler/queue", "q"), id="B1"
        ),
        pytest.param(
            with_annotation(scheduled("volcano"), "scheduling.grove.io/volcano-queue", "open"),
            id="B2",
        ),
        pytest.param(with_annotation(pcs(clique("a")), MNNVL, "none"), id="M2 none"),
        pytest.param(
            pcs(clique("a"), clique("b", podSpec={"schedulerName": "spinney-scheduler"})),
            id="V23 none named means the default",
        ),
    ],
)
def test_what_breaks_no_rule_is_accepted_without_a_warning(obj):
    assert admit(obj) == ([], [])


def test_t1_topology_that_is_switched_off_is_refused_wherever_it_is_asked_for():
    obj = pcs(
        clique("a", topologyConstraint={"pack": {"required": "host"}}),
        topologyConstraint=pack(required="rack"),
    )
    errors, _ = admit(obj, policy=GrovePolicy(topology_enabled=False))
    assert len(errors) == 2


def test_m2_mnnvl_that_is_switched_off_is_refused():
    obj = with_annotation(pcs(clique("a")), MNNVL, "train")
    errors, _ = admit(obj, policy=GrovePolicy(mnnvl_enabled=False))
    assert "switched off" in errors[0]


def test_m3_the_mnnvl_group_does_not_change():
    old = with_annotation(pcs(clique("a")), MNNVL, "train")
    errors, _ = admit(with_annotation(copy.deepcopy(old), MNNVL, "serve"), old)
    assert "may not be changed" in errors[0]


WARNED = [
    pytest.param(with_annotation(pcs(clique("a")), MNNVL, "train"), "has no effect", id="M4"),
    pytest.param(
        pcs(clique("a"), topologyConstraint=pack(required="rack", preferred="zone")),
        "preferred",
        id="T8",
    ),
    pytest.param(
        scheduled("default-scheduler", topologyConstraint=pack(required="rack")),
        "does not know topology constraints",
        id="B4",
    ),
]


@pytest.mark.parametrize(("obj", "want"), WARNED)
def test_what_has_no_effect_is_accepted_with_a_warning(obj, want):
    errors, warnings = admit(obj)
    assert errors == []
    assert any(want in warning for warning in warnings), warnings


def test_v_w1_a_restart_policy_draws_no_warning_because_it_is_kept():
    assert admit(pcs(clique("a", podSpec={"restartPolicy": "OnFailure"}))) == ([], [])


OLD_DOMAIN = {"packDomain": "rack"}


def test_t10_a_constraint_of_old_may_be_given_its_topology():
    old = pcs(clique("a"), topologyConstraint=OLD_DOMAIN)
    new = pcs(clique("a"), topologyConstraint=OLD_DOMAIN | {"topologyName": "cluster"})
    errors, warnings = admit(new, old)
    assert errors == []
    assert any("packDomain" in warning for warning in warnings)  # T12


def test_t10_the_repair_changes_nothing_else():
    old = pcs(clique("a"), topologyConstraint=OLD_DOMAIN)
    new = pcs(clique("a"), topologyConstraint={"topologyName": "cluster", "packDomain": "host"})
    assert admit(new, old)[0]


def test_t11_the_old_field_may_become_the_new_one():
    old = pcs(clique("a"), topologyConstraint=OLD_DOMAIN | {"topologyName": "cluster"})
    new = pcs(clique("a"), topologyConstraint=pack(required="rack"))
    assert admit(new, old) == ([], [])


def test_t13_a_set_whose_topology_is_gone_can_still_be_scaled():
    old = pcs(clique("a"), topologyConstraint=pack("gone", required="rack"))
    new = copy.deepcopy(old)
    new["spec"]["replicas"] = 3
    assert admit(new, old) == ([], [])


@pytest.mark.parametrize(
    ("scheduler", "want"),
    [
        pytest.param("nobody", "not enabled", id="CT4"),
        pytest.param("volcano", "topology", id="CT5"),
    ],
)
def test_a_binding_names_schedulers_that_can_keep_it(scheduler, want):
    reference = {"schedulerName": scheduler, "topologyReference": "t"}
    spec = {"levels": LEVELS, "schedulerTopologyBindings": [reference]}
    binding = {"metadata": {"name": "c"}, "spec": spec}
    request = AdmissionRequest("CREATE", ClusterTopologyBinding.RESOURCE, binding)
    (error,) = GroveAdmission().validate(request).errors
    assert want in error.message


def test_d10_an_object_of_another_kind_is_not_read_as_a_set():
    request = AdmissionRequest("CREATE", PodCliqueSet.RESOURCE, {"kind": "Pod"})
    with pytest.raises(BadInputError, match="a PodCliqueSet wanted, found Pod"):
        GroveAdmission().default(request)


def test_a_policy_names_schedulers_that_are_known():
    with pytest.raises(BadInputError, match="called nobody"):
        backends(("nobody",))
    with pytest.raises(BadInputError, match="not enabled"):
        GrovePolicy(schedulers=backends(("volcano",)))


def scale(replicas, subresource):
    spec = {"replicas": 3, "minAvailable": 2}
    live = {"kind": "PodClique", "metadata": {"name": "x", "namespace": "d"}, "spec": spec}
    new = copy.deepcopy(live)
    new["spec"]["replicas"] = replicas
    old = live
    if subresource:
        new = {"kind": "Scale", "metadata": live["metadata"], "spec": {"replicas": replicas}}
        old = {"kind": "Scale", "metadata": live["metadata"], "spec": {"replicas": 3}}
    request = AdmissionRequest(
        "UPDATE",
        PodClique.RESOURCE,
        new,
        old,
        subresource=subresource,
        lookup=lambda *_: live,
    )
    return [e.message for e in GroveAdmission().validate(request).errors]


@pytest.mark.parametrize("subresource", ["", "scale"])
def test_scaling_stops_at_the_gangs_minimum_unless_it_turns_the_role_off(subresource):
    assert scale(2, subresource) == []
    assert scale(0, subresource) == []
    assert "below minAvailable (2)" in scale(1, subresource)[0]
    assert "must not be negative" in scale(-1, subresource)[0]


LABELS = {"app.kubernetes.io/managed-by": "grove-operator", "app.kubernetes.io/part-of": "svc"}
OWNER = pcs(clique("a"), **EXPLICIT)


def judge(operation, user, *, resource=PodClique.RESOURCE, owner=OWNER, labels=LABELS):
    obj = {"metadata": {"name": "x", "namespace": "default", "labels": labels}, "spec": {"a": 1}}
    old = None if operation == "CREATE" else {**obj, "spec": {"a": 2}}
    request = AdmissionRequest(operation, resource, obj, old, user=user, lookup=lambda *_: owner)
    return GroveAuthorizer("operator", frozenset({"gc"})).validate(request)


@pytest.mark.parametrize(
    ("arguments", "allowed"),
    [
        pytest.param({"operation": "UPDATE", "user": "operator"}, True, id="A4 operator"),
        pytest.param({"operation": "CREATE", "user": "gc"}, True, id="A4 exempt"),
        pytest.param({"operation": "UPDATE", "user": "eve"}, False, id="A4 somebody"),
        pytest.param({"operation": "DELETE", "user": "eve"}, False, id="A5 somebody"),
        pytest.param(
            {"operation": "DELETE", "user": "eve", "resource": Pod.RESOURCE}, True, id="A5 pod"
        ),
        pytest.param({"operation": "UPDATE", "user": "eve", "owner": None}, True, id="A2 no set"),
        pytest.param(
            {
                "operation": "UPDATE",
                "user": "eve",
                "owner": with_annotation(copy.deepcopy(OWNER), UNPROTECTED, "true"),
            },
            True,
            id="A3 unprotected",
        ),
    ],
)
def test_what_was_made_for_a_set_is_protected(arguments, allowed):
    assert (judge(**arguments).errors == ()) == allowed
