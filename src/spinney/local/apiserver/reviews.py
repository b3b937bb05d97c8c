"""Questions of who may do what: whoever has the cluster's token may do everything."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spinney.api.resource import Unstructured

ADMIN = "spinney:admin"
GROUPS = ["system:masters", "system:authenticated"]

_ALLOWED = {"allowed": True, "reason": "the token of a local cluster allows everything"}
_EVERYTHING = {
    "resourceRules": [{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}],
    "nonResourceRules": [{"verbs": ["*"], "nonResourceURLs": ["*"]}],
    "incomplete": False,
}

RESOURCES: dict[str, tuple[tuple[str, str, bool], ...]] = {
    "authorization.k8s.io": (
        ("selfsubjectaccessreviews", "SelfSubjectAccessReview", False),
        ("selfsubjectrulesreviews", "SelfSubjectRulesReview", False),
        ("subjectaccessreviews", "SubjectAccessReview", False),
        ("localsubjectaccessreviews", "LocalSubjectAccessReview", True),
    ),
    "authentication.k8s.io": (
        ("tokenreviews", "TokenReview", False),
        ("selfsubjectreviews", "SelfSubjectReview", False),
    ),
}
"""Plural, kind and whether it is namespaced, by group; all are version v1 and only created."""


def review(group: str, plural: str, body: Unstructured, user: str) -> Unstructured | None:
    """Return the answered review, None if *plural* is none."""
    kinds = {name: kind for name, kind, _ in RESOURCES.get(group, ())}
    if plural not in kinds:
        return None
    status: dict[str, Any]
    who = {"username": user or ADMIN, "groups": GROUPS}
    match plural:
        case "selfsubjectrulesreviews":
            status = _EVERYTHING
        case "selfsubjectreviews":
            status = {"userInfo": who}
        case "tokenreviews":
            status = {"authenticated": True, "user": who}
        case _:
            status = _ALLOWED
    head = {"kind": kinds[plural], "apiVersion": f"{group}/v1", "metadata": {}}
    return head | {"spec": body.get("spec") or {}, "status": status}
