"""The admission webhook as an ASGI application: a thin shell around hooks.

Every review is answered as a review. What cannot be answered is refused, never let through: the API
server asks again or tells the user. No client is authenticated; what a review says of its user is
believed, so only the API server may reach the port (a NetworkPolicy, or the node's own network).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from spinney.controllers.admission import review
from spinney.errors import BadInputError, SpinneyError
from spinney.kube.transport import TransportError
from spinney.log import get_logger

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, MutableMapping

    from spinney.api.admission import AdmissionHook
    from spinney.controllers.admission.lookup import Lookup
    from spinney.controllers.admission.review import ReviewRequest

    Message = MutableMapping[str, Any]
    Receive = Callable[[], Awaitable[Message]]
    Send = Callable[[Message], Awaitable[None]]

log = get_logger("webhook")

MUTATE = "/mutate"
VALIDATE = "/validate"
AUTHORIZE = "/authorize"
MAX_BODY_BYTES = 8 * 1024 * 1024
"""A review has the object twice, and the API server takes objects of up to 3 MiB."""


@dataclass(frozen=True, slots=True)
class _Reply:
    status: int
    body: bytes
    content_type: str = "application/json"


class WebhookApp:
    """Answers reviews: ``/mutate`` and ``/validate`` by *hook*, ``/authorize`` by *authorizer*.

    ``/healthz`` answers always, ``/readyz`` and reviews when the informers have their first lists.
    """

    def __init__(
        self, lookup: Lookup, hook: AdmissionHook, authorizer: AdmissionHook | None = None
    ) -> None:
        self._lookup = lookup
        self._hook = hook
        self._validators: Mapping[str, AdmissionHook] = {
            VALIDATE: hook,
            **({AUTHORIZE: authorizer} if authorizer else {}),
        }

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            return
        reply = await self._reply(scope["method"], scope["path"], receive)
        if reply is not None:
            await _send(reply, send)

    async def _reply(self, method: str, path: str, receive: Receive) -> _Reply | None:
        """Return the reply, None when the client went away."""
        if path == "/healthz":
            return _text(200, "ok")
        if path == "/readyz":
            return _text(200, "ok") if self._lookup.ready else _text(503, "no first list yet")
        if path != MUTATE and path not in self._validators:
            return _text(404, f"there is nothing at {path}")
        if method != "POST":
            return _text(405, f"{path} takes POST")
        try:
            body = await _body(receive)
            if body is None:
                return None
            asked = review.read(body)
        except BadInputError as error:
            return _text(400, str(error))
        if not self._lookup.ready:
            return _text(503, "not ready: the first lists are not there yet")
        return _Reply(200, await self._answer(path, asked))

    async def _answer(self, path: str, asked: ReviewRequest) -> bytes:
        try:
            request = review.to_admission(asked)
            if path == MUTATE:
                patch = review.json_patch(request.obj, self._hook.default(request))
                return review.allow(asked.uid, patch=patch)
            verdict = await self._lookup.judge(self._validators[path], request)
        except BadInputError as error:
            return review.deny(asked.uid, str(error), code=400, reason="BadRequest")
        except (SpinneyError, TransportError) as error:
            log.warning("review failed", path=path, error=str(error))
            return review.deny(asked.uid, str(error), code=500, reason="InternalError")
        if verdict.errors:
            log.info(
                "write refused",
                path=path,
                resource=request.resource.name,
                name=f"{asked.namespace}/{asked.name}",
                user=request.user,
                errors=[str(error) for error in verdict.errors],
            )
        if path == AUTHORIZE and verdict.errors:
            text = "; ".join(error.message for error in verdict.errors)
            return review.deny(asked.uid, text, code=403, reason="Forbidden")
        return review.answer(asked.uid, verdict)


def _text(status: int, text: str) -> _Reply:
    return _Reply(status, text.encode(), "text/plain; charset=utf-8")


async def _body(receive: Receive) -> bytes | None:
    """Return the body, None if the client went away; raise BadInputError over the bound."""
    parts = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        part = message.get("body", b"")
        size += len(part)
        if size > MAX_BODY_BYTES:
            raise BadInputError(f"a review of more than {MAX_BODY_BYTES} bytes")
        parts.append(part)
        if not message.get("more_body"):
            return b"".join(parts)


async def _send(reply: _Reply, send: Send) -> None:
    headers = [
        (b"content-type", reply.content_type.encode()),
        (b"content-length", str(len(reply.body)).encode()),
    ]
    await send({"type": "http.response.start", "status": reply.status, "headers": headers})
    await send({"type": "http.response.body", "body": reply.body})
