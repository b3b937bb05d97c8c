"""What the API answers when it does not do what was asked: one type per reaction.

ApiError              any refusal; carries the Status
├── NotFoundError      404   the object, or its kind, is not there
├── AlreadyExistsError 409   create of a name that is taken
├── ConflictError      409   somebody else wrote first: read again and retry
├── ExpiredError       410   the resourceVersion or continue token is too old: list again
├── InvalidError       422   the object breaks a rule; causes name the fields
├── ForbiddenError     401, 403
└── BusyError          429, 5xx  the server cannot now; retry_after_s says when
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from spinney.api.meta import Status, StatusDetails
from spinney.errors import SpinneyError

if TYPE_CHECKING:
    from spinney.kube.transport import ApiResponse


class ApiError(SpinneyError):
    """The API refused; ``status`` has its words."""

    def __init__(self, status: Status) -> None:
        super().__init__(status.message or f"the API answered {status.code} {status.reason}")
        self.status = status

    @property
    def code(self) -> int:
        """The HTTP status code."""
        return self.status.code

    @property
    def retry_after_s(self) -> float:
        """Seconds the server asks to wait, 0 if it does not say."""
        details = self.status.details
        return float(details.retry_after_seconds) if details else 0.0


class NotFoundError(ApiError):
    """The object or its kind is not there."""


class AlreadyExistsError(ApiError):
    """The name is taken."""


class ConflictError(ApiError):
    """Somebody else wrote first, or a precondition does not hold."""


class ExpiredError(ApiError):
    """The version asked for is no longer kept."""


class InvalidError(ApiError):
    """The object breaks a rule."""


class ForbiddenError(ApiError):
    """The caller may not."""


class BusyError(ApiError):
    """The server cannot now; the same request may succeed later."""


def error_of(status: Status) -> ApiError:
    """Return the exception for *status*."""
    code, reason = status.code, status.reason
    if code == 409:
        return AlreadyExistsError(status) if reason == "AlreadyExists" else ConflictError(status)
    if code == 429 or code >= 500:
        return BusyError(status)
    kinds: dict[int, type[ApiError]] = {
        401: ForbiddenError,
        403: ForbiddenError,
        404: NotFoundError,
        410: ExpiredError,
        422: InvalidError,
    }
    return kinds.get(code, ApiError)(status)


def raise_for(response: ApiResponse) -> None:
    """Raise the `ApiError` of *response*, if its status is not a success."""
    if response.status < 400:
        return
    try:
        status = msgspec.json.decode(response.body, type=Status)
    except msgspec.MsgspecError:
        text = response.body[:200].decode("utf-8", "replace")
        status = Status(status="Failure", message=f"HTTP {response.status}: {text}")
    if not status.code:
        status = msgspec.structs.replace(status, code=response.status)
    retry_after = response.headers.get("retry-after", "")
    if retry_after.isdigit():
        details = status.details or StatusDetails()
        details = msgspec.structs.replace(details, retry_after_seconds=int(retry_after))
        status = msgspec.structs.replace(status, details=details)
    raise error_of(status)
