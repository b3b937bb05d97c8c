"""The seam between the Kubernetes client and where the API lives.

A `Transport` carries one request and brings one reply. There are two: over HTTPS to any
Kubernetes API server, and in-process to the embedded one, whose request handler has this very
interface. Everything above (client, informers, controllers) is the same code on both.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

JSON = "application/json"
JSON_PATCH = "application/json-patch+json"
MERGE_PATCH = "application/merge-patch+json"
STRATEGIC_PATCH = "application/strategic-merge-patch+json"
APPLY_PATCH = "application/apply-patch+yaml"


@dataclass(frozen=True, slots=True)
class ApiRequest:
    """One request to the Kubernetes API."""

    method: str
    path: str
    query: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    content_type: str = JSON
    accept: str = JSON
    user: str = ""
    """Who asks, where the transport has authenticated them already."""


@dataclass(slots=True)
class ApiResponse:
    """A reply: a whole body, or a stream of chunks (watches and followed logs).

    A watch yields one chunk per event, each a line of JSON with its newline. Whoever takes
    ``stream`` must exhaust it or call its ``aclose``.
    """

    status: int
    body: bytes = b""
    stream: AsyncIterator[bytes] | None = None
    content_type: str = JSON
    headers: Mapping[str, str] = field(default_factory=dict)


class TransportError(Exception):
    """No reply came: the server is not reachable, or the connection broke. Retrying may help."""


class Transport(Protocol):
    """Carries requests to a Kubernetes API."""

    async def send(self, request: ApiRequest) -> ApiResponse:
        """Return the reply, of whatever status; raise TransportError if there is none.

        With ``watch=true`` or ``follow=true`` in the query the reply has a ``stream``, whose
        iteration raises TransportError when the connection breaks.
        """
        ...

    async def close(self) -> None:
        """Let go of connections. Streams that are open end with TransportError or end."""
        ...
