"""Who may write what the controllers made, with the checklist's number in each test id."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from spinney.api.admission import AdmissionRequest
from spinney.api.core import ConfigMap, Pod, Service
from spinney.api.grove import PodClique, PodCliqueSet
from spinney.api.grove_authorizer import PROTECTED, UNPROTECTED, GroveAuthorizer
from spinney.api.podgang import PodGang
from spinney.errors import BadInputError

OPERATOR = "system:serviceaccount:spinney-system:controllers"
COLLECTOR = "system:serviceaccount:kube-system:generic-garbage-collector"
AUTHORIZER = GroveAuthorizer(OPERATOR, frozenset({COLLECTOR}))
MANAGED = {"app.kubernetes.io/managed-by": "grove-operator", "app.kubernetes.io/part-of": "s"}


def made(**spec: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": "x", "namespace": "default", "labels": dict(MANAGED)},
        "spec": {"replicas": 2} | spec,
    }


def judge(
    operation: str,
    resource: Any = PodGang.RESOURCE,
    *,
    user: str = "jane",
    obj: Any = None,
    old: Any = None,
    pcs: dict[str, Any] | None = None,
    subresource: str = "",
) -> tuple[bool, int]:
    """Return whether it is let through, and how many warnings it brings."""
    sets = {"s": {"metadata": {"name": "s"}} if pcs is None else pcs}

    def lookup(kind: Any, namespace: str, name: str) -> dict[str, Any] | None:
        assert (kind, namespace) == (PodCliqueSet.RESOURCE, "default")
        return sets.get(name)

    obj = made() if obj is None else obj
    if old is None and operation != "CREATE":
        old = made(x=1)
    request: Any = AdmissionRequest(
        operation,
        resource,
        obj,
        old,
        subresource,
        user,
        lookup,  # type: ignore[arg-type]
    )
    verdict = AUTHORIZER.validate(request)
    return not verdict.errors, len(verdict.warnings)


@pytest.mark.parametrize(
    ("operation", "resource", "user", "allowed"),
    [
        pytest.param("CONNECT", Pod.RESOURCE, "jane", True, id="A1"),
        pytest.param("CREATE", PodClique.RESOURCE, "jane", False, id="A4 create"),
        pytest.param("CREATE", PodClique.RESOURCE, OPERATOR, True, id="A4 create, operator"),
        pytest.param("UPDATE", Service.RESOURCE, "jane", False, id="A4 update"),
        pytest.param("UPDATE", Service.RESOURCE, OPERATOR, True, id="A4 update, operator"),
        pytest.param("UPDATE", Service.RESOURCE, COLLECTOR, True, id="A4 update, exempt"),
        pytest.param("UPDATE", Service.RESOURCE, "", False, id="A4 no name"),
        pytest.param("UPDATE", Pod.RESOURCE, "jane", False, id="A4 pod"),
        pytest.param("DELETE", PodGang.RESOURCE, "jane", False, id="A5"),
        pytest.param("DELETE", PodGang.RESOURCE, OPERATOR, True, id="A5 operator"),
        pytest.param("DELETE", PodGang.RESOURCE, COLLECTOR, True, id="A5 exempt"),
        pytest.param("DELETE", Pod.RESOURCE, "jane", True, id="A5 pod"),
        pytest.param("PATCHED", PodGang.RESOURCE, OPERATOR, False, id="A7"),
    ],
)
def test_only_the_controllers_and_who_is_exempt_write_managed_objects(
    operation, resource, user, allowed
):
    assert judge(operation, resource, user=user) == (allowed, 0)


def test_a2_what_cannot_be_traced_to_a_set_is_let_through_with_a_warning():
    loose = made()
    del loose["metadata"]["labels"]["app.kubernetes.io/part-of"]
    assert judge("CREATE", obj=loose) == (True, 1)
    orphan = made()
    orphan["metadata"]["labels"]["app.kubernetes.io/part-of"] = "gone"
    assert judge("CREATE", obj=orphan) == (True, 1)


@pytest.mark.parametrize(("value", "allowed"), [("true", True), ("false", False), ("", False)])
def test_a3_a_set_can_lift_the_protection(value, allowed):
    pcs = {"metadata": {"annotations": {UNPROTECTED: value}}}
    assert judge("UPDATE", pcs=pcs) == (allowed, 0)


def test_a6_an_update_is_judged_by_the_labels_there_are():
    bare = made(x=1)
    bare["metadata"]["labels"] = {}
    assert judge("UPDATE", obj=bare, old=made()) == (False, 0)
    assert judge("UPDATE", obj=made(), old=bare) == (True, 0)


@pytest.mark.parametrize("old", ["text", {"metadata": 3}, {"metadata": {"labels": [1]}}])
def test_a6_an_old_object_that_cannot_be_read_is_an_error(old):
    with pytest.raises(BadInputError, match="an object with metadata wanted"):
        judge("UPDATE", old=old)


def test_a7_status_and_scale_are_left_to_their_own_rules():
    assert judge("UPDATE", PodClique.RESOURCE, subresource="status") == (True, 0)
    assert judge("UPDATE", PodClique.RESOURCE, subresource="scale") == (True, 0)
    scaled = copy.deepcopy(made()) | {"spec": {"replicas": 5}}
    assert judge("UPDATE", PodClique.RESOURCE, obj=scaled, old=made()) == (True, 0)
    more = {"spec": {"replicas": 5, "minAvailable": 1}}
    assert judge("UPDATE", PodClique.RESOURCE, obj=made() | more, old=made()) == (False, 0)


def test_a7_the_table_says_which_operations_are_looked_at():
    found = {
        resource.name: "".join(sorted(o[0] for o in ops)) for resource, ops in PROTECTED.items()
    }
    want = {
        "UD": "secrets serviceaccounts services roles.rbac.authorization.k8s.io "
        "rolebindings.rbac.authorization.k8s.io horizontalpodautoscalers.autoscaling",
        "U": "pods",
        "CUD": "podcliques.grove.io podcliquescalinggroups.grove.io podgangs.scheduler.grove.io",
    }
    assert found == {
        name: "".join(sorted(o)) for o, names in want.items() for name in names.split()
    }
    assert AUTHORIZER.resources == frozenset(found)
    assert ConfigMap.RESOURCE.name not in found
