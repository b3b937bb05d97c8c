"""The Kubernetes client: typed objects over any `Transport`.

Methods take the type of the object (``Pod``) or, for kinds without a type, a `Resource` and
return JSON dicts. All raise `spinney.kube.errors.ApiError` types for refusals and
`spinney.kube.transport.TransportError` when no answer comes; none retries by itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, overload

import msgspec

from spinney.api import codec
from spinney.api.core import Pod, Scale
from spinney.api.meta import KubeObject, ListMeta, Status
from spinney.api.resource import Resource, Unstructured
from spinney.kube import transport as wire
from spinney.kube.errors import ApiError, error_of, raise_for
from spinney.kube.transport import ApiRequest, ApiResponse, Transport, TransportError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

T = TypeVar("T", bound=KubeObject)
V = TypeVar("V")

Propagation = Literal["Background", "Foreground", "Orphan"]
EventType = Literal["ADDED", "MODIFIED", "DELETED", "BOOKMARK"]


@dataclass(frozen=True, slots=True)
class ObjectList(Generic[V]):
    """Objects at one version of the API's state."""

    items: list[V]
    resource_version: str
    continue_token: str = ""
    """Not empty when there is more: pass it to the next ``list``."""


@dataclass(frozen=True, slots=True)
class WatchEvent(Generic[V]):
    """A change; a ``BOOKMARK`` has only a version worth resuming from."""

    type: EventType
    object: V
    resource_version: str


class _WatchLine(msgspec.Struct):
    type: str
    object: msgspec.Raw


class _VersionOnly(msgspec.Struct):
    metadata: ListMeta = msgspec.field(default_factory=ListMeta)


class _ListBody(msgspec.Struct):
    metadata: ListMeta = msgspec.field(default_factory=ListMeta)
    items: list[msgspec.Raw] | None = None


class KubeClient:
    """Reads and writes objects through *transport*, in the name of *field_manager*."""

    def __init__(self, transport: Transport, *, field_manager: str = "spinney") -> None:
        self.transport = transport
        self.field_manager = field_manager

    # Reading

    @overload
    async def get(self, kind: type[T], name: str, namespace: str | None = None) -> T: ...
    @overload
    async def get(
        self, kind: Resource, name: str, namespace: str | None = None
    ) -> Unstructured: ...
    async def get(
        self, kind: type[KubeObject] | Resource, name: str, namespace: str | None = None
    ) -> Any:
        """Return the object; it may be changed and given to `update` without losing fields."""
        path = _resource(kind).path(namespace, name)
        response = await self._send(ApiRequest("GET", path))
        return _decode(kind, response.body)

    @overload
    async def list(
        self,
        kind: type[T],
        namespace: str | None = None,
        *,
        labels: str = "",
        fields: str = "",
        limit: int = 0,
        continue_token: str = "",
        resource_version: str = "",
    ) -> ObjectList[T]: ...
    @overload
    async def list(
        self,
        kind: Resource,
        namespace: str | None = None,
        *,
        labels: str = "",
        fields: str = "",
        limit: int = 0,
        continue_token: str = "",
        resource_version: str = "",
    ) -> ObjectList[Unstructured]: ...
    async def list(
        self,
        kind: type[KubeObject] | Resource,
        namespace: str | None = None,
        *,
        labels: str = "",
        fields: str = "",
        limit: int = 0,
        continue_token: str = "",
        resource_version: str = "",
    ) -> ObjectList[Any]:
        """Return objects of one namespace, or of all when *namespace* is None.

        *limit* 0 means all in one reply.
        """
        query = _query(
            labelSelector=labels,
            fieldSelector=fields,
            limit=str(limit) if limit else "",
            resourceVersion=resource_version,
        )
        if continue_token:
            query["continue"] = continue_token
        response = await self._send(ApiRequest("GET", _resource(kind).path(namespace), query))
        body = msgspec.json.decode(response.body, type=_ListBody)
        items = [_decode(kind, bytes(raw), keep=False) for raw in body.items or ()]
        return ObjectList(items, body.metadata.resource_version, body.metadata.continue_)

    @overload
    def watch(
        self,
        kind: type[T],
        namespace: str | None = None,
        *,
        resource_version: str = "",
        labels: str = "",
        fields: str = "",
        timeout_s: int = 0,
    ) -> AsyncIterator[WatchEvent[T]]: ...
    @overload
    def watch(
        self,
        kind: Resource,
        namespace: str | None = None,
        *,
        resource_version: str = "",
        labels: str = "",
        fields: str = "",
        timeout_s: int = 0,
    ) -> AsyncIterator[WatchEvent[Unstructured]]: ...
    async def watch(
        self,
        kind: type[KubeObject] | Resource,
        namespace: str | None = None,
        *,
        resource_version: str = "",
        labels: str = "",
        fields: str = "",
        timeout_s: int = 0,
    ) -> AsyncIterator[WatchEvent[Any]]:
        """Yield changes after *resource_version*, with bookmarks, until the server ends the watch.

        Raises `ExpiredError` when that version is no longer kept (list again), other ApiErrors
        as the server reports them, and TransportError when the connection breaks.
        """
        query = _query(
            watch="true",
            allowWatchBookmarks="true",
            resourceVersion=resource_version,
            labelSelector=labels,
            fieldSelector=fields,
            timeoutSeconds=str(timeout_s) if timeout_s else "",
        )
        response = await self._send(ApiRequest("GET", _resource(kind).path(namespace), query))
        if response.stream is None:
            raise TransportError(f"{_resource(kind).name}: a watch was asked for, a body came")
        try:
            async for line in response.stream:
                yield _event(kind, line)
        finally:
            await _aclose(response.stream)

    # Writing

    @overload
    async def create(self, obj: T, *, dry_run: bool = False) -> T: ...
    @overload
    async def create(
        self, obj: Unstructured, *, resource: Resource, dry_run: bool = False
    ) -> Unstructured: ...
    async def create(
        self,
        obj: KubeObject | Unstructured,
        *,
        resource: Resource | None = None,
        dry_run: bool = False,
    ) -> Any:
        """Store a new object and return it as stored; raise AlreadyExistsError."""
        kind = _kind_of(obj, resource)
        query = self._write_query(dry_run=dry_run)
        path = _resource(kind).path(_metadata(obj)[0])
        response = await self._send(ApiRequest("POST", path, query, _encode(obj)))
        return _decode(kind, response.body)

    @overload
    async def update(
        self, obj: T, *, subresource: str | None = None, dry_run: bool = False
    ) -> T: ...
    @overload
    async def update(
        self,
        obj: Unstructured,
        *,
        resource: Resource,
        subresource: str | None = None,
        dry_run: bool = False,
    ) -> Unstructured: ...
    async def update(
        self,
        obj: KubeObject | Unstructured,
        *,
        resource: Resource | None = None,
        subresource: str | None = None,
        dry_run: bool = False,
    ) -> Any:
        """Replace the object; raise ConflictError when its resourceVersion is not the newest.

        Give it what `get` returned, changed in place: an informer's copy, and one made by
        ``msgspec.structs.replace``, have lost the fields their type does not name.
        """
        kind = _kind_of(obj, resource)
        namespace, name = _metadata(obj)
        path = _resource(kind).path(namespace, name, subresource)
        query = self._write_query(dry_run=dry_run)
        response = await self._send(ApiRequest("PUT", path, query, _encode(obj)))
        return _decode(kind, response.body)

    @overload
    async def patch(
        self,
        kind: type[T],
        name: str,
        patch: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        namespace: str | None = None,
        *,
        content_type: str = wire.MERGE_PATCH,
        subresource: str | None = None,
        force: bool = False,
        dry_run: bool = False,
    ) -> T: ...
    @overload
    async def patch(
        self,
        kind: Resource,
        name: str,
        patch: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        namespace: str | None = None,
        *,
        content_type: str = wire.MERGE_PATCH,
        subresource: str | None = None,
        force: bool = False,
        dry_run: bool = False,
    ) -> Unstructured: ...
    async def patch(
        self,
        kind: type[KubeObject] | Resource,
        name: str,
        patch: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        namespace: str | None = None,
        *,
        content_type: str = wire.MERGE_PATCH,
        subresource: str | None = None,
        force: bool = False,
        dry_run: bool = False,
    ) -> Any:
        """Change part of an object: merge, JSON or strategic patch, or server-side apply.

        A merge patch that names ``metadata.resourceVersion`` is refused with ConflictError when
        that is not the newest. *force* takes over fields of other managers (apply only).
        """
        query = self._write_query(dry_run=dry_run)
        if force:
            query["force"] = "true"
        path = _resource(kind).path(namespace, name, subresource)
        body = msgspec.json.encode(patch)
        response = await self._send(ApiRequest("PATCH", path, query, body, content_type))
        return _decode(kind, response.body)

    async def apply(
        self,
        obj: Unstructured,
        resource: Resource,
        *,
        force: bool = False,
        dry_run: bool = False,
        subresource: str | None = None,
    ) -> Unstructured:
        """Server-side apply *obj*: create it, or own just the fields it names."""
        namespace, name = _metadata(obj)
        return await self.patch(
            resource,
            name,
            obj,
            namespace,
            content_type=wire.APPLY_PATCH,
            force=force,
            dry_run=dry_run,
            subresource=subresource,
        )

    async def patch_changes(self, before: T, after: T, *, subresource: str | None = None) -> T:
        """Send what differs between two versions of an object as a merge patch.

        Sends nothing and returns *after* when nothing does. Only fields that the type names are
        compared, so nothing else is touched.
        """
        changes = codec.merge_diff(before, after)
        if not changes:
            return after
        return await self.patch(
            type(before), before.name, changes, before.namespace or None, subresource=subresource
        )

    async def delete(
        self,
        kind: type[KubeObject] | Resource,
        name: str,
        namespace: str | None = None,
        *,
        propagation: Propagation | None = None,
        grace_period_s: int | None = None,
        uid: str = "",
        resource_version: str = "",
    ) -> None:
        """Ask for deletion; raise ConflictError when *uid* or *resource_version* do not match."""
        options = _delete_options(propagation, grace_period_s, uid, resource_version)
        path = _resource(kind).path(namespace, name)
        await self._send(ApiRequest("DELETE", path, {}, msgspec.json.encode(options)))

    async def delete_collection(
        self,
        kind: type[KubeObject] | Resource,
        namespace: str | None = None,
        *,
        labels: str = "",
        fields: str = "",
        propagation: Propagation | None = None,
        grace_period_s: int | None = None,
    ) -> None:
        """Ask for the deletion of all that match."""
        options = _delete_options(propagation, grace_period_s, "", "")
        query = _query(labelSelector=labels, fieldSelector=fields)
        path = _resource(kind).path(namespace)
        await self._send(ApiRequest("DELETE", path, query, msgspec.json.encode(options)))

    # Subresources

    async def get_scale(
        self, kind: type[KubeObject] | Resource, name: str, namespace: str | None = None
    ) -> Scale:
        """Return the scale of an object."""
        path = _resource(kind).path(namespace, name, "scale")
        response = await self._send(ApiRequest("GET", path))
        return msgspec.json.decode(response.body, type=Scale)

    async def set_scale(
        self,
        kind: type[KubeObject] | Resource,
        name: str,
        replicas: int,
        namespace: str | None = None,
    ) -> Scale:
        """Set how many replicas are wanted, whatever they were."""
        path = _resource(kind).path(namespace, name, "scale")
        body = msgspec.json.encode({"spec": {"replicas": replicas}})
        request = ApiRequest("PATCH", path, self._write_query(), body, wire.MERGE_PATCH)
        response = await self._send(request)
        return msgspec.json.decode(response.body, type=Scale)

    async def bind(
        self,
        name: str,
        namespace: str,
        node: str,
        *,
        uid: str = "",
        annotations: dict[str, str] | None = None,
    ) -> None:
        """Assign a pod to *node*; raise ConflictError when it is assigned or is another pod.

        The pod gets *annotations* in the same write.
        """
        metadata: dict[str, Any] = {"name": name, "namespace": namespace}
        metadata |= {"uid": uid} if uid else {}
        metadata |= {"annotations": annotations} if annotations else {}
        body = {
            "apiVersion": "v1",
            "kind": "Binding",
            "metadata": metadata,
            "target": {"apiVersion": "v1", "kind": "Node", "name": node},
        }
        path = Pod.RESOURCE.path(namespace, name, "binding")
        await self._send(ApiRequest("POST", path, {}, msgspec.json.encode(body)))

    async def evict(self, name: str, namespace: str, *, grace_period_s: int | None = None) -> None:
        """Ask for a pod to leave; raise BusyError (429) when a disruption budget forbids it now."""
        body: dict[str, Any] = {
            "apiVersion": "policy/v1",
            "kind": "Eviction",
            "metadata": {"name": name, "namespace": namespace},
        }
        if grace_period_s is not None:
            body["deleteOptions"] = {"gracePeriodSeconds": grace_period_s}
        path = Pod.RESOURCE.path(namespace, name, "eviction")
        await self._send(ApiRequest("POST", path, {}, msgspec.json.encode(body)))

    async def logs(
        self,
        name: str,
        namespace: str,
        *,
        container: str = "",
        follow: bool = False,
        tail_lines: int | None = None,
        previous: bool = False,
    ) -> AsyncIterator[bytes]:
        """Yield a pod's log in chunks; with *follow*, as it grows."""
        query = _query(
            container=container,
            follow="true" if follow else "",
            previous="true" if previous else "",
            tailLines="" if tail_lines is None else str(tail_lines),
        )
        path = Pod.RESOURCE.path(namespace, name, "log")
        response = await self._send(ApiRequest("GET", path, query, accept="*/*"))
        if response.stream is None:
            yield response.body
            return
        try:
            async for chunk in response.stream:
                yield chunk
        finally:
            await _aclose(response.stream)

    async def raw(self, request: ApiRequest) -> ApiResponse:
        """Send any request; raise ApiError for a refusal."""
        return await self._send(request)

    async def close(self) -> None:
        """Close the transport."""
        await self.transport.close()

    async def _send(self, request: ApiRequest) -> ApiResponse:
        response = await self.transport.send(request)
        raise_for(response)
        return response

    def _write_query(self, *, dry_run: bool = False) -> dict[str, str]:
        return _query(fieldManager=self.field_manager, dryRun="All" if dry_run else "")


def _query(**values: str) -> dict[str, str]:
    return {key: value for key, value in values.items() if value}


def _resource(kind: type[KubeObject] | Resource) -> Resource:
    return kind if isinstance(kind, Resource) else kind.RESOURCE


def _kind_of(
    obj: KubeObject | Unstructured, resource: Resource | None
) -> type[KubeObject] | Resource:
    if isinstance(obj, KubeObject):
        return type(obj)
    assert resource is not None, "a dict says its kind but not its plural: pass its Resource"
    return resource


def _metadata(obj: KubeObject | Unstructured) -> tuple[str | None, str]:
    if isinstance(obj, KubeObject):
        return obj.namespace or None, obj.name
    metadata = obj.get("metadata") or {}
    return metadata.get("namespace"), metadata.get("name", "")


def _encode(obj: KubeObject | Unstructured) -> bytes:
    return codec.encode(obj) if isinstance(obj, KubeObject) else msgspec.json.encode(obj)


def _decode(kind: type[KubeObject] | Resource, data: bytes, *, keep: bool = True) -> Any:
    if isinstance(kind, Resource):
        return msgspec.json.decode(data)
    return codec.decode(kind, data, keep=keep)


def _event(kind: type[KubeObject] | Resource, line: bytes) -> WatchEvent[Any]:
    found = msgspec.json.decode(line, type=_WatchLine)
    raw = bytes(found.object)
    if found.type == "ERROR":
        raise error_of(msgspec.json.decode(raw, type=Status))
    version = msgspec.json.decode(raw, type=_VersionOnly).metadata.resource_version
    if found.type == "BOOKMARK":
        empty: Any = {} if isinstance(kind, Resource) else None
        return WatchEvent("BOOKMARK", empty, version)
    if found.type not in ("ADDED", "MODIFIED", "DELETED"):
        raise ApiError(Status(status="Failure", message=f"unknown watch event {found.type!r}"))
    return WatchEvent(found.type, _decode(kind, raw, keep=False), version)  # type: ignore[arg-type]  # Checked above.


def _delete_options(
    propagation: Propagation | None, grace_period_s: int | None, uid: str, resource_version: str
) -> dict[str, Any]:
    options: dict[str, Any] = {"apiVersion": "v1", "kind": "DeleteOptions"}
    if propagation:
        options["propagationPolicy"] = propagation
    if grace_period_s is not None:
        options["gracePeriodSeconds"] = grace_period_s
    if uid or resource_version:
        options["preconditions"] = _query(uid=uid, resourceVersion=resource_version)
    return options


async def _aclose(stream: AsyncIterator[bytes]) -> None:
    close = getattr(stream, "aclose", None)
    if close is not None:
        await close()
