"""AdmissionReview v1, the words in which a Kubernetes API server asks a webhook.

Reading and answering are pure. What the rules say of an object is the hook's business and the same
as in a process that holds both hook and API server.
"""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any, cast

import msgspec

from spinney.api.admission import AdmissionRequest
from spinney.api.grove import ClusterTopologyBinding, PodCliqueSet
from spinney.api.grove_authorizer import PROTECTED
from spinney.errors import BadInputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from spinney.api.admission import FieldError, Operation, Verdict
    from spinney.api.resource import Unstructured

API_VERSION = "admission.k8s.io/v1"
KIND = "AdmissionReview"

_RESOURCES = {
    resource.name: resource
    for resource in (PodCliqueSet.RESOURCE, ClusterTopologyBinding.RESOURCE, *PROTECTED)
}


class _Resource(msgspec.Struct):
    group: str = ""
    version: str = ""
    resource: str = ""


class _User(msgspec.Struct):
    username: str = ""


class ReviewRequest(msgspec.Struct, rename="camel"):
    """What is asked for, as the API server says it."""

    uid: str
    resource: _Resource
    operation: str
    sub_resource: str = ""
    name: str = ""
    namespace: str = ""
    user_info: _User = msgspec.field(default_factory=_User)
    object: dict[str, Any] | None = None
    old_object: dict[str, Any] | None = None


class _Review(msgspec.Struct, rename="camel"):
    api_version: str
    kind: str
    request: ReviewRequest


def read(body: bytes) -> ReviewRequest:
    """Return the request of a review; raise BadInputError when it is none."""
    try:
        review = msgspec.json.decode(body, type=_Review)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise BadInputError(f"an {KIND} wanted: {error}") from error
    if (review.api_version, review.kind) != (API_VERSION, KIND):
        raise BadInputError(
            f"{API_VERSION} {KIND} wanted, found {review.api_version} {review.kind}"
        )
    return review.request


def to_admission(asked: ReviewRequest) -> AdmissionRequest:
    """Return the request as hooks take it, without a lookup; raise BadInputError.

    A deletion is about the object as it is.
    """
    group = asked.resource.group
    name = f"{asked.resource.resource}.{group}" if group else asked.resource.resource
    resource = _RESOURCES.get(name)
    if resource is None:
        raise BadInputError(f"there are no rules for {name}")
    obj = asked.object if asked.object is not None else asked.old_object
    if obj is None and asked.operation != "CONNECT":
        raise BadInputError(f"{asked.operation} of {name}: an object wanted, found none")
    return AdmissionRequest(
        operation=cast("Operation", asked.operation),
        resource=resource,
        obj=obj or {},
        old=asked.old_object,
        subresource=asked.sub_resource,
        user=asked.user_info.username,
    )


def allow(uid: str, warnings: Sequence[str] = (), patch: Sequence[Unstructured] = ()) -> bytes:
    """Return the answer that lets a write through, changed by the JSON *patch*."""
    response: Unstructured = {"uid": uid, "allowed": True}
    if warnings:
        response["warnings"] = list(warnings)
    if patch:
        response["patchType"] = "JSONPatch"
        response["patch"] = base64.b64encode(msgspec.json.encode(patch)).decode()
    return _encode(response)


def deny(
    uid: str,
    message: str,
    *,
    code: int,
    reason: str,
    errors: Sequence[FieldError] = (),
    warnings: Sequence[str] = (),
) -> bytes:
    """Return the answer that refuses a write, with a cause for each error."""
    status: Unstructured = {
        "status": "Failure",
        "code": code,
        "reason": reason,
        "message": message,
    }
    if errors:
        causes = [{"reason": e.reason, "message": e.message, "field": e.path} for e in errors]
        status["details"] = {"causes": causes}
    response: Unstructured = {"uid": uid, "allowed": False, "status": status}
    if warnings:
        response["warnings"] = list(warnings)
    return _encode(response)


def answer(uid: str, verdict: Verdict) -> bytes:
    """Return the answer that says what a hook found."""
    if not verdict.errors:
        return allow(uid, verdict.warnings)
    message = "; ".join(map(str, verdict.errors))
    return deny(
        uid,
        message,
        code=422,
        reason="Invalid",
        errors=verdict.errors,
        warnings=verdict.warnings,
    )


def json_patch(before: Any, after: Any, path: str = "") -> list[Unstructured]:
    """Return the JSON Patch (RFC 6902) that turns *before* into *after*, empty if they are equal.

    Lists of one length are compared item by item; others are replaced.
    """
    if before == after and type(before) is type(after):
        return []
    if isinstance(before, dict) and isinstance(after, dict):
        return _patch_members(before, after, path)
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        pairs = enumerate(zip(before, after, strict=True))
        return [op for i, (old, new) in pairs for op in json_patch(old, new, f"{path}/{i}")]
    return [{"op": "replace", "path": path, "value": after}]


def _patch_members(before: dict[str, Any], after: dict[str, Any], path: str) -> list[Unstructured]:
    found: list[Unstructured] = [
        {"op": "remove", "path": _child(path, key)} for key in before if key not in after
    ]
    for key, value in after.items():
        if key in before:
            found += json_patch(before[key], value, _child(path, key))
        else:
            found.append({"op": "add", "path": _child(path, key), "value": value})
    return found


def _child(path: str, key: str) -> str:
    return f"{path}/{key.replace('~', '~0').replace('/', '~1')}"


def _encode(response: Unstructured) -> bytes:
    return msgspec.json.encode({"apiVersion": API_VERSION, "kind": KIND, "response": response})
