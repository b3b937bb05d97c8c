"""A small Kubernetes API in memory, with switches to make it fail.

Any path is a resource; there is no validation. History is kept until ``expire``.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from typing import TYPE_CHECKING, Any

from spinney.kube.transport import ApiRequest, ApiResponse, TransportError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable


def status(code: int, reason: str, message: str = "", **details: Any) -> dict[str, Any]:
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "status": "Failure",
        "code": code,
        "reason": reason,
        "message": message or f"{reason} by order of the test",
        "details": details,
    }


def failure(code: int, reason: str, **headers: str) -> ApiResponse:
    body = json.dumps(status(code, reason)).encode()
    return ApiResponse(code, body, headers=headers)


class _Stream:
    def __init__(self, api: FakeApi, prefix: str) -> None:
        self.api = api
        self.prefix = prefix
        self.queue: asyncio.Queue[bytes | BaseException | None] = asyncio.Queue()

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        item = await self.queue.get()
        if item is None:
            raise StopAsyncIteration
        if isinstance(item, BaseException):
            raise item
        return item

    async def aclose(self) -> None:
        self.api.streams.discard(self)


class FakeApi:
    """A `Transport`."""

    def __init__(self) -> None:
        self.version = 10
        self.oldest = 10
        self.objects: dict[str, dict[str, Any]] = {}
        self.history: list[tuple[int, str, str, dict[str, Any]]] = []
        self.streams: set[_Stream] = set()
        self.requests: list[ApiRequest] = []
        self.fail: deque[Callable[[ApiRequest], ApiResponse | None]] = deque()
        """Asked first, one per request: an answer, None to go on, or an exception."""
        self.duplicate_events = False

    # Switches

    def fail_next(self, answer: ApiResponse | BaseException | None, times: int = 1) -> None:
        def give(_request: ApiRequest) -> ApiResponse | None:
            if isinstance(answer, BaseException):
                raise answer
            return answer

        self.fail.extend([give] * times)

    def break_streams(self) -> None:
        for stream in list(self.streams):
            stream.queue.put_nowait(TransportError("connection reset"))
        self.streams.clear()

    def end_streams(self) -> None:
        for stream in list(self.streams):
            stream.queue.put_nowait(None)
        self.streams.clear()

    def send_line(self, line: bytes) -> None:
        for stream in list(self.streams):
            stream.queue.put_nowait(line)

    def send_event(self, kind: str, obj: dict[str, Any]) -> None:
        self.send_line(json.dumps({"type": kind, "object": obj}).encode() + b"\n")

    def expire(self) -> None:
        """Forget history: watches from older versions are refused with 410."""
        self.history.clear()
        self.oldest = self.version

    # The state

    def put(self, path: str, obj: dict[str, Any]) -> dict[str, Any]:
        self.version += 1
        known = self.objects.get(path)
        metadata = obj.setdefault("metadata", {})
        metadata["resourceVersion"] = str(self.version)
        metadata.setdefault("uid", known["metadata"]["uid"] if known else f"uid-{self.version}")
        self.objects[path] = obj
        self._record("MODIFIED" if known else "ADDED", path, obj)
        return obj

    def remove(self, path: str) -> None:
        self.version += 1
        obj = json.loads(json.dumps(self.objects.pop(path)))
        obj["metadata"]["resourceVersion"] = str(self.version)
        self._record("DELETED", path, obj)

    def _record(self, kind: str, path: str, obj: dict[str, Any]) -> None:
        obj = json.loads(json.dumps(obj))
        self.history.append((self.version, kind, path, obj))
        line = json.dumps({"type": kind, "object": obj}).encode() + b"\n"
        for stream in list(self.streams):
            if path.startswith(stream.prefix):
                for _ in range(2 if self.duplicate_events else 1):
                    stream.queue.put_nowait(line)

    # The transport

    async def send(self, request: ApiRequest) -> ApiResponse:
        self.requests.append(request)
        await asyncio.sleep(0)
        if self.fail:
            answer = self.fail.popleft()(request)
            if answer is not None:
                return answer
        if request.query.get("watch"):
            return self._watch(request)
        return getattr(self, f"_{request.method.lower()}")(request)

    async def close(self) -> None:
        self.break_streams()

    def _prefix(self, path: str) -> str:
        return path + "/"

    def _watch(self, request: ApiRequest) -> ApiResponse:
        version = int(request.query["resourceVersion"])
        if version < self.oldest:
            return failure(410, "Expired")
        stream = _Stream(self, self._prefix(request.path))
        for at, kind, path, obj in self.history:
            if at > version and path.startswith(stream.prefix):
                stream.queue.put_nowait(json.dumps({"type": kind, "object": obj}).encode())
        self.streams.add(stream)
        return ApiResponse(200, stream=stream)

    def _get(self, request: ApiRequest) -> ApiResponse:
        if request.path in self.objects:
            return ApiResponse(200, json.dumps(self.objects[request.path]).encode())
        prefix = self._prefix(request.path)
        if not any(path.startswith(prefix) for path in self.objects) and request.path.count(
            "/"
        ) != 3 + 2 * ("namespaces" in request.path):
            return failure(404, "NotFound")
        items = [self.objects[path] for path in sorted(self.objects) if path.startswith(prefix)]
        limit = int(request.query.get("limit", 0))
        start = int(request.query.get("continue", 0))
        end = start + limit if limit else len(items)
        meta = {"resourceVersion": str(self.version)}
        if end < len(items):
            meta["continue"] = str(end)
        return ApiResponse(200, json.dumps({"metadata": meta, "items": items[start:end]}).encode())

    def _post(self, request: ApiRequest) -> ApiResponse:
        obj = json.loads(request.body)
        path = f"{request.path}/{obj['metadata']['name']}"
        if path in self.objects:
            return failure(409, "AlreadyExists")
        return ApiResponse(201, json.dumps(self.put(path, obj)).encode())

    def _put(self, request: ApiRequest) -> ApiResponse:
        obj = json.loads(request.body)
        known = self.objects.get(request.path)
        if known is None:
            return failure(404, "NotFound")
        wanted = obj["metadata"].get("resourceVersion")
        if wanted and wanted != known["metadata"]["resourceVersion"]:
            return failure(409, "Conflict")
        return ApiResponse(200, json.dumps(self.put(request.path, obj)).encode())

    def _patch(self, request: ApiRequest) -> ApiResponse:
        known = self.objects.get(request.path)
        if known is None:
            return failure(404, "NotFound")
        merged = {**known, **json.loads(request.body)}
        return ApiResponse(200, json.dumps(self.put(request.path, merged)).encode())

    def _delete(self, request: ApiRequest) -> ApiResponse:
        if request.path not in self.objects:
            return failure(404, "NotFound")
        self.remove(request.path)
        return ApiResponse(200, json.dumps({"kind": "Status", "status": "Success"}).encode())


def config_map(name: str, namespace: str = "ns", **data: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": namespace},
        "data": data,
    }
