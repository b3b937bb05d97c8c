"""The embedded Kubernetes API server: requests in, replies and watches out.

`ApiServer` is a `Transport`: programs in this process call it directly, and
`spinney.local.apiserver.http` puts the same object behind HTTPS for kubectl and other processes. A
request is carried out in one synchronous step, so requests never interleave, and the order of
requests alone determines the order of changes. No reply leaves while a change is uncommitted.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
from typing import TYPE_CHECKING, Any

import msgspec

from spinney.errors import SpinneyError
from spinney.kube import transport as wire
from spinney.kube.transport import ApiRequest, ApiResponse
from spinney.local.apiserver import builtin, crd, routes, subresources
from spinney.local.apiserver.collector import Collector
from spinney.local.apiserver.discovery import Documents
from spinney.local.apiserver.kinds import Registry
from spinney.local.apiserver.nodelogs import NodeLogs
from spinney.local.apiserver.objects import CRDS, SYSTEM, Objects, Outcome
from spinney.local.apiserver.patching import applied, patched
from spinney.local.apiserver.persistence import MemoryPersistence
from spinney.local.apiserver.presenting import Presenter, shape_of
from spinney.local.apiserver.refusal import (
    RefusalError,
    bad_request,
    expired,
    method_not_allowed,
    no_such_path,
    not_found,
    success,
)
from spinney.local.apiserver.reviews import review
from spinney.local.apiserver.selecting import matcher
from spinney.local.apiserver.store import HISTORY_EVENTS, HistoryGoneError, Store
from spinney.local.apiserver.watch import QUEUE_CHANGES, Watcher, event_line
from spinney.log import get_logger

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from spinney.api.admission import AdmissionHook
    from spinney.api.resource import Unstructured
    from spinney.clock import Clock
    from spinney.ids import IdSource
    from spinney.local.apiserver.kinds import Kind
    from spinney.local.apiserver.persistence import Persistence
    from spinney.local.apiserver.routes import Route
    from spinney.local.apiserver.stored import Stored
    from spinney.local.apiserver.watch import Change

log = get_logger("apiserver")

NAMESPACES = ("default", "kube-system", "kube-public", "kube-node-lease")
PRIORITY_CLASSES = {
    "system-cluster-critical": (2_000_000_000, "Needed by the cluster as a whole."),
    "system-node-critical": (2_000_001_000, "Needed by the node it runs on."),
}
WATCH_TIMEOUT_S = 3600.0
"""When a watch ends whose client did not say; it resumes where it was."""
_HEALTH = ("/healthz", "/readyz", "/livez")
_SUBRESOURCE_WORK = frozenset({"status", "scale", "finalize", "binding", "eviction", "log"})


class ApiServer:
    """Serves the Kubernetes API from *persistence* (memory, if none is given).

    *hooks* take part in writes of the resources they name. *definitions* are
    CustomResourceDefinitions to `install`.
    """

    def __init__(
        self,
        clock: Clock,
        ids: IdSource,
        *,
        persistence: Persistence | None = None,
        hooks: Sequence[AdmissionHook] = (),
        definitions: Iterable[Unstructured] = (),
        history_events: int = HISTORY_EVENTS,
        queue_changes: int = QUEUE_CHANGES,
    ) -> None:
        self._clock = clock
        self._ids = ids
        self._queue_changes = queue_changes
        self._registry = Registry(builtin.kinds())
        self.store = Store(
            persistence or MemoryPersistence(),
            self._registry.selectable,
            history_events=history_events,
        )
        self._objects = Objects(self.store, self._registry, clock, ids, hooks)
        self._collector = Collector(self.store, self._objects, self._registry, clock)
        self._documents = Documents(self._registry)
        self._logs = NodeLogs()
        self._load(persistence)
        self.store.observers += [self._follow_definitions, self._collector.observe]
        self._collector.recover()
        self._create_what_is_always_there()
        for definition in definitions:
            self.install(definition)
        self.store.flush()

    # The transport

    async def send(self, request: ApiRequest) -> ApiResponse:
        """Carry out one request; never raises but for its own cancellation."""
        try:
            if self.store.failure is not None:
                raise RefusalError(
                    500, "InternalError", f"the state cannot be written: {self.store.failure}"
                )
            response = self._respond(request)
            self._collector.kick()
            if self.store.dirty:
                await self.store.committed()
            elif response.stream is None:
                # Whoever sends many requests in a row lets others have their turn.
                await asyncio.sleep(0)
            if response.status == 0:
                return await self._logs.open(response)
        except RefusalError as refusal:
            return refusal.response()
        except SpinneyError as error:
            return bad_request(str(error)).response()
        except Exception as error:
            log.exception("request failed", method=request.method, path=request.path)
            text = f"Internal error occurred: {type(error).__name__}: {error}"
            return RefusalError(500, "InternalError", text).response()
        return response

    async def close(self) -> None:
        """End all watches and let go of the state."""
        self._collector.close()
        self.store.close()
        await self._logs.close()

    def end_streams(self) -> None:
        """End every open watch; clients resume elsewhere or later."""
        self.store.end_watches()

    def install(self, definition: Unstructured) -> None:
        """Serve the kinds of a CustomResourceDefinition: create it, or bring it up to date."""
        kind = self._registry.stored(CRDS)
        assert kind is not None
        name = definition["metadata"]["name"]
        wanted: Unstructured = msgspec.json.decode(msgspec.json.encode(definition))
        if self.store.get(CRDS, "", name) is None:
            self._objects.create(kind, "", wanted, SYSTEM)
        else:
            self._objects.update(
                kind, "", name, lambda found: found | {"spec": wanted["spec"]}, SYSTEM
            )

    @property
    def settled(self) -> bool:
        """Whether all deletions that could be finished are."""
        return self._collector.idle

    # Start

    def _load(self, persistence: Persistence | None) -> None:
        if persistence is None:
            return
        revision, rows = persistence.load()
        objects = sorted(rows, key=lambda row: row[0] != CRDS)
        for storage, raw in objects:
            stored = self.store.load(storage, raw)
            if storage == CRDS:
                self._serve(stored)
        self.store.loaded(revision)

    def _create_what_is_always_there(self) -> None:
        for name in NAMESPACES:
            self._ensure("namespaces", {"metadata": {"name": name}})
        for name, (value, text) in PRIORITY_CLASSES.items():
            self._ensure(
                "priorityclasses.scheduling.k8s.io",
                {"metadata": {"name": name}, "value": value, "description": text},
            )

    def _ensure(self, storage: str, obj: Unstructured) -> None:
        kind = self._registry.stored(storage)
        assert kind is not None
        if self.store.get(storage, "", obj["metadata"]["name"]) is None:
            self._objects.create(kind, "", obj, SYSTEM)

    # Definitions

    def _follow_definitions(self, change: Change) -> None:
        if change.storage != CRDS:
            return
        if change.new is None:
            self._registry.remove(change.key[1])
            self.store.forget(change.key[1])
        elif change.old is None or _spec_raw(change.old) != _spec_raw(change.new):
            self._serve(change.new)

    def _serve(self, definition: Stored) -> None:
        self._registry.remove(definition.name)
        for kind in crd.kinds_of(definition.decode()):
            self._registry.add(kind)

    # Requests

    def _respond(self, request: ApiRequest) -> ApiResponse:
        route = routes.parse(request.path)
        if route is None:
            return self._respond_to_path(request)
        kind = self._registry.find(route.group, route.version, route.plural)
        if kind is None:
            return self._respond_without_kind(request, route)
        if route.namespace is None and route.name and kind.resource.namespaced:
            raise no_such_path()
        if route.namespace is not None and not kind.resource.namespaced:
            raise no_such_path()
        if route.subresource:
            return self._subresource(kind, route, request)
        if route.name:
            return self._one(kind, route, request)
        return self._collection(kind, route, request)

    def _respond_to_path(self, request: ApiRequest) -> ApiResponse:
        path = request.path.rstrip("/") or "/"
        if path.startswith(_HEALTH):
            return ApiResponse(200, b"ok", content_type="text/plain; charset=utf-8")
        if request.method != "GET":
            raise method_not_allowed(request.method, request.path)
        response = self._documents.get(path)
        if response is None:
            raise no_such_path()
        return response

    def _respond_without_kind(self, request: ApiRequest, route: Route) -> ApiResponse:
        if request.method == "POST" and route.plural == "bindings" and route.group == "":
            binding = routes.decode_object(request)
            name = (binding.get("metadata") or {}).get("name", "")
            return self._bind(route.namespace or "", name, binding, request)
        if request.method == "POST" and not route.name:
            body = routes.decode_object(request)
            reply = review(route.group, route.plural, body, request.user)
            if reply is not None:
                return ApiResponse(201, msgspec.json.encode(reply))
        raise no_such_path()

    def _collection(self, kind: Kind, route: Route, request: ApiRequest) -> ApiResponse:
        match request.method:
            case "GET" if routes.flag(request.query, "watch"):
                return self._watch(kind, route, request)
            case "GET":
                return self._list(kind, route, request)
            case "POST":
                if kind.resource.namespaced and route.namespace is None:
                    raise method_not_allowed("POST", request.path)
                obj = self._sent(kind, request)
                options = routes.write_options(request)
                outcome = self._objects.create(kind, route.namespace or "", obj, options)
                return self._reply(kind, request, outcome)
            case "DELETE":
                return self._delete_all(kind, route, request)
            case _:
                raise method_not_allowed(request.method, request.path)

    def _one(self, kind: Kind, route: Route, request: ApiRequest) -> ApiResponse:
        namespace = route.namespace or ""
        match request.method:
            case "GET" if routes.flag(request.query, "watch"):
                return self._watch(kind, route, request)
            case "GET":
                stored = self._objects.require(kind, namespace, route.name)
                return ApiResponse(200, self._presenter(kind, request).one(stored.raw))
            case "PUT" | "PATCH":
                return self._update(kind, route, request)
            case "DELETE":
                options = routes.delete_options(request)
                outcome = self._objects.delete(kind, namespace, route.name, options)
                if outcome.gone:
                    uid = msgspec.json.decode(outcome.raw)["metadata"]["uid"]
                    return ApiResponse(200, success(kind.resource, route.name, uid))
                return self._reply(kind, request, outcome)
            case _:
                raise method_not_allowed(request.method, request.path)

    def _subresource(self, kind: Kind, route: Route, request: ApiRequest) -> ApiResponse:
        name = route.subresource
        if name not in kind.served_subresources or name not in _SUBRESOURCE_WORK:
            raise no_such_path()
        namespace = route.namespace or ""
        if name == "scale":
            return self._scale(kind, route, request)
        if name == "log":
            return self._open_log(kind, route, request)
        if name in ("binding", "eviction"):
            if request.method != "POST":
                raise method_not_allowed(request.method, request.path)
            body = routes.decode_object(request)
            if name == "binding":
                return self._bind(namespace, route.name, body, request)
            return self._evict(kind, namespace, route.name, body, request)
        if request.method == "GET":
            stored = self._objects.require(kind, namespace, route.name)
            return ApiResponse(200, self._presenter(kind, request).one(stored.raw))
        if request.method in ("PUT", "PATCH"):
            return self._update(kind, route, request)
        raise method_not_allowed(request.method, request.path)

    # Reading

    def _presenter(self, kind: Kind, request: ApiRequest) -> Presenter:
        return Presenter(
            kind,
            shape_of(request.accept),
            self._clock.now,
            request.query.get("includeObject", "Metadata"),
        )

    def _list(self, kind: Kind, route: Route, request: ApiRequest) -> ApiResponse:
        query = request.query
        matches = matcher(kind, route.namespace, "", query)
        revision, start = self._list_point(query)
        try:
            found = self.store.list_at(kind.storage, route.namespace, revision)
        except HistoryGoneError as error:
            raise expired(
                f"the provided continue parameter or resource version is not available: {error}"
            ) from error
        if matches is not None:
            found = [stored for stored in found if matches(stored)]
        if start is not None:
            found = [stored for stored in found if (stored.namespace, stored.name) > start]
        limit = routes.number(query, "limit") or 0
        meta: dict[str, Any] = {"resourceVersion": str(revision)}
        if limit and len(found) > limit:
            last = found[limit - 1]
            meta["continue"] = _continue_token(revision, last)
            meta["remainingItemCount"] = len(found) - limit
            found = found[:limit]
        body = self._presenter(kind, request).many([stored.raw for stored in found], meta)
        return ApiResponse(200, body)

    def _list_point(self, query: Any) -> tuple[int, tuple[str, str] | None]:
        """Return the revision to list at, and the key to continue after."""
        token = query.get("continue")
        if token:
            return _read_token(token)
        wanted = query.get("resourceVersion") or "0"
        if not wanted.isdigit():
            raise bad_request(f"resourceVersion: {wanted!r} is no version")
        if int(wanted) > self.store.revision:
            raise RefusalError(
                504,
                "Timeout",
                f"Too large resource version: {wanted}, current: {self.store.revision}",
                details={
                    "causes": [
                        {
                            "reason": "ResourceVersionTooLarge",
                            "message": "Too large resource version",
                        }
                    ],
                    "retryAfterSeconds": 1,
                },
            )
        if query.get("resourceVersionMatch") == "Exact" and wanted != "0":
            return int(wanted), None
        return self.store.revision, None

    def _watch(self, kind: Kind, route: Route, request: ApiRequest) -> ApiResponse:
        query = request.query
        matches = matcher(kind, route.namespace, route.name, query)
        encoder = self._presenter(kind, request).stream()
        watcher = Watcher(
            matches,
            encoder,
            bookmarks=routes.flag(query, "allowWatchBookmarks"),
            timeout_s=float(routes.number(query, "timeoutSeconds") or WATCH_TIMEOUT_S),
            too_slow=_expired_line("the watch fell too far behind"),
            queue_changes=self._queue_changes,
        )
        since = query.get("resourceVersion") or "0"
        if not since.isdigit():
            raise bad_request(f"resourceVersion: {since!r} is no version")
        initial: list[Stored] = []
        ending: list[bytes] = []
        asked = query.get("sendInitialEvents")
        wants_all = routes.flag(query, "sendInitialEvents") if asked else since == "0"
        if wants_all:
            initial = self.store.select(kind.storage, route.namespace)
            initial = [s for s in initial if matches is None or matches(s)]
            if asked:
                ending = [encoder.bookmark(self.store.revision, initial_end=True)]
        try:
            self.store.watch(
                watcher, kind.storage, None if wants_all or since == "0" else int(since)
            )
        except HistoryGoneError as error:
            watcher.push_line(_expired_line(str(error)))
            watcher.end()
        lines = _chain((encoder.initial(stored) for stored in initial), ending)
        stream = watcher.stream(lines, lambda: self.store.committed_revision)
        return ApiResponse(200, stream=stream)

    # Writing

    def _update(self, kind: Kind, route: Route, request: ApiRequest) -> ApiResponse:
        options = routes.write_options(request)
        namespace = route.namespace or ""
        put = request.method == "PUT"
        content_type = routes.patch_type(request)
        sent: Any = self._sent(kind, request) if put else routes.decode_body(request)
        if not put and content_type == wire.APPLY_PATCH:
            return self._apply(kind, route, request, sent)

        def change(old: Unstructured) -> Unstructured:
            if put:
                replacement: Unstructured = sent
                return replacement
            return patched(kind, content_type, old, sent)

        outcome = self._objects.update(
            kind,
            namespace,
            route.name,
            change,
            options,
            subresource=route.subresource,
            versioned=put,
        )
        return self._reply(kind, request, outcome)

    def _sent(self, kind: Kind, request: ApiRequest) -> Unstructured:
        obj = routes.decode_object(request)
        if not kind.custom and b"null" in request.body:
            # Typed clients write null for what is absent.
            drop_nulls(obj)
        return obj

    def _delete_all(self, kind: Kind, route: Route, request: ApiRequest) -> ApiResponse:
        options = routes.delete_options(request)
        matches = matcher(kind, route.namespace, "", request.query)
        for stored in self.store.select(kind.storage, route.namespace):
            if matches is None or matches(stored):
                self._objects.delete(kind, stored.namespace, stored.name, options)
        return ApiResponse(200, success(kind.resource, "", ""))

    def _reply(self, kind: Kind, request: ApiRequest, outcome: Outcome) -> ApiResponse:
        body = self._presenter(kind, request).one(outcome.raw)
        return ApiResponse(201 if outcome.created else 200, body, headers=_warnings(outcome))

    # Subresources

    def _bind(
        self, namespace: str, name: str, binding: Unstructured, request: ApiRequest
    ) -> ApiResponse:
        pods = self._registry.stored("pods")
        assert pods is not None
        options = routes.write_options(request)
        subresources.bind(self._objects, pods, namespace, name, binding, options)
        return ApiResponse(201, _SUCCESS)

    def _evict(
        self, kind: Kind, namespace: str, name: str, eviction: Unstructured, request: ApiRequest
    ) -> ApiResponse:
        dry_run = routes.write_options(request).dry_run
        subresources.evict(
            self._objects,
            self.store,
            kind,
            namespace,
            name,
            eviction,
            user=request.user,
            dry_run=dry_run,
        )
        return ApiResponse(201, _SUCCESS)

    def _scale(self, kind: Kind, route: Route, request: ApiRequest) -> ApiResponse:
        paths = kind.scale
        assert paths is not None
        namespace = route.namespace or ""
        if request.method == "GET":
            obj = self._objects.require(kind, namespace, route.name).decode()
            return ApiResponse(200, msgspec.json.encode(subresources.scale_of(paths, obj)))
        if request.method not in ("PUT", "PATCH"):
            raise method_not_allowed(request.method, request.path)
        body = routes.decode_body(request)
        content_type = routes.patch_type(request)

        def change(obj: Unstructured) -> Unstructured:
            scale = body
            if request.method == "PATCH":
                # The version in it is the current one, unless the patch says otherwise.
                scale = patched(kind, content_type, subresources.scale_of(paths, obj), body)
            return subresources.with_scale(kind, paths, obj, scale)

        options = routes.write_options(request)
        outcome = self._objects.update(kind, namespace, route.name, change, options)
        obj = msgspec.json.decode(outcome.raw)
        body = msgspec.json.encode(subresources.scale_of(paths, obj))
        return ApiResponse(200, body, headers=_warnings(outcome))

    def _open_log(self, kind: Kind, route: Route, request: ApiRequest) -> ApiResponse:
        if request.method != "GET":
            raise method_not_allowed(request.method, request.path)
        pod = self._objects.require(kind, route.namespace or "", route.name).decode()
        node_name = (pod.get("spec") or {}).get("nodeName")
        node = self._objects.find("nodes", "", node_name) if node_name else None
        return self._logs.prepare(pod, node, request.query)

    def _apply(
        self, kind: Kind, route: Route, request: ApiRequest, configuration: Any
    ) -> ApiResponse:
        options = routes.write_options(request)
        if not request.query.get("fieldManager"):
            raise bad_request("fieldManager is required for apply patch")
        namespace = route.namespace or ""

        def change(live: Unstructured | None) -> Unstructured:
            result = applied(
                kind,
                live,
                configuration,
                manager=options.manager,
                force=routes.flag(request.query, "force"),
                now=self._objects.now(),
                subresource=route.subresource,
            )
            version = (configuration.get("metadata") or {}).get("resourceVersion")
            if version:
                result["metadata"] = result["metadata"] | {"resourceVersion": version}
            return result

        if self.store.get(kind.storage, namespace, route.name) is not None:
            outcome = self._objects.update(
                kind,
                namespace,
                route.name,
                change,
                options,
                subresource=route.subresource,
                applied=True,
            )
        elif route.subresource:
            raise not_found(kind.resource, route.name)
        else:
            new = change(None)
            new["metadata"] = {"name": route.name} | new["metadata"]
            outcome = self._objects.create(kind, namespace, new, options, applied=True)
        return self._reply(kind, request, outcome)


_SUCCESS = msgspec.json.encode(
    {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}
)


def _warnings(outcome: Outcome) -> dict[str, str]:
    """Return the header that tells a client what admission warns of; none without warnings."""
    if not outcome.warnings:
        return {}
    quoted = (text.replace("\\", "\\\\").replace('"', '\\"') for text in outcome.warnings)
    return {"warning": ", ".join(f'299 - "{text}"' for text in quoted)}


def _spec_raw(stored: Stored) -> Any:
    return stored.decode().get("spec")


def _chain(first: Iterable[bytes], then: Sequence[bytes]) -> Iterable[bytes]:
    yield from first
    yield from then


def _expired_line(message: str) -> bytes:
    return event_line("ERROR", msgspec.json.encode(expired(message).status()))


def _continue_token(revision: int, last: Stored) -> str:
    point = msgspec.json.encode([revision, last.namespace, last.name])
    return base64.urlsafe_b64encode(point).decode()


def _read_token(token: str) -> tuple[int, tuple[str, str]]:
    try:
        point = msgspec.json.decode(base64.urlsafe_b64decode(token), type=tuple[int, str, str])
    except (binascii.Error, ValueError, msgspec.MsgspecError) as error:
        raise bad_request("continue: not a token that this server gave") from error
    return point[0], (point[1], point[2])


def drop_nulls(value: Any) -> None:
    """Remove every null from JSON values, in place."""
    if isinstance(value, dict):
        for key in [k for k, v in value.items() if v is None]:
            del value[key]
        for inner in value.values():
            drop_nulls(inner)
    elif isinstance(value, list):
        for inner in value:
            drop_nulls(inner)
