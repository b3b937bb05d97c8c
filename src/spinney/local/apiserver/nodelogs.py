"""Logs of pods, fetched from the agent of the node they run on, as from a kubelet.

The node's ``status.addresses`` (InternalIP) and
``status.daemonEndpoints.kubeletEndpoint.Port`` say where it listens; the path is the kubelet's:
``/containerLogs/<namespace>/<pod>/<container>``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import aiohttp

from spinney.kube.transport import ApiResponse, TransportError
from spinney.local.apiserver.refusal import RefusalError, bad_request

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from spinney.api.resource import Unstructured

CONNECT_TIMEOUT_S = 5.0
ERROR_BODY_BYTES = 2_000
_PASSED = (
    "follow",
    "tailLines",
    "previous",
    "timestamps",
    "sinceSeconds",
    "sinceTime",
    "limitBytes",
)


class NodeLogs:
    """Opens log streams at node agents."""

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None

    def prepare(
        self, pod: Unstructured, node: Unstructured | None, query: Mapping[str, str]
    ) -> ApiResponse:
        """Return a reply of status 0 that says where the log is, for `open`; raise RefusalError."""
        name = pod["metadata"]["name"]
        container = _container(pod, query.get("container", ""))
        if not (pod.get("spec") or {}).get("nodeName"):
            return ApiResponse(200, b"", content_type="text/plain")
        address, port = _endpoint(node) if node else ("", 0)
        if not address or not port:
            raise RefusalError(
                503,
                "ServiceUnavailable",
                f"the node of pod {name} does not say where its agent listens for logs",
            )
        path = "/".join(quote(p) for p in (pod["metadata"]["namespace"], name, container))
        asked = "&".join(f"{key}={quote(query[key])}" for key in _PASSED if query.get(key))
        url = f"http://{address}:{port}/containerLogs/{path}?{asked}"
        return ApiResponse(0, url.encode(), content_type="text/plain")

    async def open(self, prepared: ApiResponse) -> ApiResponse:
        """Return the reply of the node agent; raise RefusalError if there is none."""
        if self._session is None:
            timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S)
            self._session = aiohttp.ClientSession(timeout=timeout)
        url = prepared.body.decode()
        try:
            reply = await self._session.get(url)
            if reply.status != 200:
                text = (await reply.content.read(ERROR_BODY_BYTES)).decode("utf-8", "replace")
                reply.close()
                raise _refused(reply.status, text.strip())
        except (aiohttp.ClientError, TimeoutError) as error:
            raise RefusalError(
                503, "ServiceUnavailable", f"the node agent at {url} does not answer: {error}"
            ) from error
        return ApiResponse(200, stream=_chunks(reply), content_type="text/plain")

    async def close(self) -> None:
        """Break off every open stream."""
        if self._session is not None:
            await self._session.close()


async def _chunks(reply: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    try:
        async for chunk in reply.content.iter_any():
            yield chunk
    except aiohttp.ClientError as error:
        raise TransportError(f"the log stream of {reply.url} broke: {error}") from error
    finally:
        reply.close()


def _refused(status: int, text: str) -> RefusalError:
    reasons = {400: "BadRequest", 404: "NotFound"}
    return RefusalError(status, reasons.get(status, "InternalError"), text or f"HTTP {status}")


def _container(pod: Unstructured, wanted: str) -> str:
    spec = pod.get("spec") or {}
    regular = [c["name"] for c in spec.get("containers") or ()]
    init = [c["name"] for c in spec.get("initContainers") or ()]
    name = pod["metadata"]["name"]
    if wanted:
        if wanted not in regular + init:
            raise bad_request(f"container {wanted} is not valid for pod {name}")
        return wanted
    if len(regular) == 1:
        return str(regular[0])
    annotations = pod["metadata"].get("annotations") or {}
    default = annotations.get("kubectl.kubernetes.io/default-container")
    if default in regular:
        return str(default)
    raise bad_request(
        f"a container name must be specified for pod {name}, choose one of: "
        f"[{' '.join(regular)}]"
        + (f" or one of the init containers: [{' '.join(init)}]" if init else "")
    )


def _endpoint(node: Unstructured) -> tuple[str, int]:
    status: dict[str, Any] = node.get("status") or {}
    endpoint = (status.get("daemonEndpoints") or {}).get("kubeletEndpoint") or {}
    addresses = status.get("addresses") or ()
    found = [a.get("address", "") for a in addresses if a.get("type") == "InternalIP"]
    return (found[0] if found else ""), int(endpoint.get("Port") or 0)
