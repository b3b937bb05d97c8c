"""How the server says no: an exception that is a Kubernetes ``Status``.

Handlers raise; `ApiServer.send` turns what was raised into the reply. Reasons and messages are the
ones Kubernetes clients look at: ``AlreadyExists`` and ``Conflict`` are both 409, and kubectl tells
them apart by reason.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from spinney.kube.transport import ApiResponse

if TYPE_CHECKING:
    from collections.abc import Sequence

    from spinney.api.admission import FieldError
    from spinney.api.resource import Resource


class RefusalError(Exception):
    """A request that is not carried out; nothing has changed."""

    def __init__(
        self, code: int, reason: str, message: str, *, details: dict[str, Any] | None = None
    ) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.message = message
        self.details = details or {}

    def status(self) -> dict[str, Any]:
        """Return the ``Status`` object."""
        status: dict[str, Any] = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
            "reason": self.reason,
            "code": self.code,
        }
        if self.details:
            status["details"] = self.details
        return status

    def response(self) -> ApiResponse:
        """Return the HTTP reply."""
        retry = self.details.get("retryAfterSeconds")
        headers = {"retry-after": str(retry)} if retry else {}
        return ApiResponse(self.code, msgspec.json.encode(self.status()), headers=headers)


def _about(resource: Resource, name: str) -> dict[str, Any]:
    details = {"name": name, "kind": resource.plural}
    return details | ({"group": resource.group} if resource.group else {})


def not_found(resource: Resource, name: str) -> RefusalError:
    """The object is not there."""
    return RefusalError(
        404, "NotFound", f'{resource.name} "{name}" not found', details=_about(resource, name)
    )


def no_such_path() -> RefusalError:
    """The kind, or the path, is not there."""
    return RefusalError(404, "NotFound", "the server could not find the requested resource")


def already_exists(resource: Resource, name: str) -> RefusalError:
    """The name is taken."""
    return RefusalError(
        409,
        "AlreadyExists",
        f'{resource.name} "{name}" already exists',
        details=_about(resource, name),
    )


def conflict(resource: Resource, name: str, why: str) -> RefusalError:
    """The object is not in the state the writer took for granted."""
    return RefusalError(
        409,
        "Conflict",
        f'Operation cannot be fulfilled on {resource.name} "{name}": {why}',
        details=_about(resource, name),
    )


def stale(resource: Resource, name: str) -> RefusalError:
    """Somebody else wrote first."""
    return conflict(
        resource,
        name,
        "the object has been modified; please apply your changes to the latest version and try"
        " again",
    )


def bad_request(message: str) -> RefusalError:
    """The request cannot be understood."""
    return RefusalError(400, "BadRequest", message)


def forbidden(resource: Resource, name: str, why: str) -> RefusalError:
    """The request is understood and not allowed."""
    return RefusalError(
        403,
        "Forbidden",
        f'{resource.name} "{name}" is forbidden: {why}',
        details=_about(resource, name),
    )


def expired(message: str) -> RefusalError:
    """The version asked for is no longer kept."""
    return RefusalError(410, "Expired", message)


def method_not_allowed(method: str, path: str) -> RefusalError:
    """The path is there, and not with this method."""
    return RefusalError(
        405, "MethodNotAllowed", f"the server does not allow the method {method} on {path}"
    )


def invalid(resource: Resource, name: str, errors: Sequence[FieldError]) -> RefusalError:
    """The object breaks rules; every broken one is named."""
    lines = [str(error) for error in errors]
    text = lines[0] if len(lines) == 1 else f"[{', '.join(lines)}]"
    kind = f"{resource.kind}.{resource.group}" if resource.group else resource.kind
    causes = [{"reason": e.reason, "message": e.message, "field": e.path} for e in errors]
    details: dict[str, Any] = {"name": name, "kind": resource.kind, "causes": causes}
    if resource.group:
        details["group"] = resource.group
    return RefusalError(422, "Invalid", f'{kind} "{name}" is invalid: {text}', details=details)


def success(resource: Resource, name: str, uid: str) -> bytes:
    """Return the ``Status`` of something done that leaves no object to show."""
    status = {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Success",
        "details": _about(resource, name) | {"uid": uid},
    }
    return msgspec.json.encode(status)
