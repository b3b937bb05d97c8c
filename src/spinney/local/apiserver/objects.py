"""What create, update and delete mean in Kubernetes, whatever the kind.

Each method is one request, carried out at once and wholly or (raising `RefusalError`) not at all.
Identity, versions and deletion marks are the server's: what clients write there is overruled or
refused. A write that changes nothing takes no version and emits no event.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from spinney.api.admission import AdmissionRequest, FieldError
from spinney.clock import parse_rfc3339, rfc3339
from spinney.errors import SpinneyError
from spinney.local.apiserver import fieldtypes
from spinney.local.apiserver.names import metadata_errors, name_error
from spinney.local.apiserver.patching import tracked
from spinney.local.apiserver.refusal import (
    RefusalError,
    already_exists,
    bad_request,
    conflict,
    forbidden,
    invalid,
    not_found,
    stale,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from spinney.api.admission import AdmissionHook
    from spinney.api.resource import Resource, Unstructured
    from spinney.clock import Clock
    from spinney.ids import IdSource
    from spinney.local.apiserver.kinds import Kind, Registry
    from spinney.local.apiserver.store import Store
    from spinney.local.apiserver.stored import Stored

FieldValidation = Literal["Strict", "Warn", "Ignore"]

FOREGROUND = "foregroundDeletion"
ORPHAN = "orphan"
CRD_CLEANUP = "customresourcecleanup.apiextensions.k8s.io"
CRDS = "customresourcedefinitions.apiextensions.k8s.io"

PROTECTED_NAMESPACES = frozenset({"default", "kube-system", "kube-public"})
DEFAULT_GRACE_S = 30
GENERATED_NAME_TRIES = 8
MAX_WARNINGS = 20

_IDENTITY = (
    "uid",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "generation",
    "resourceVersion",
    "generateName",
    "managedFields",
)


@dataclass(frozen=True, slots=True)
class WriteOptions:
    """How a write was asked for."""

    user: str = ""
    manager: str = "unknown"
    dry_run: bool = False
    field_validation: FieldValidation = "Warn"


@dataclass(frozen=True, slots=True)
class DeleteOptions:
    """How a deletion was asked for."""

    grace_s: int | None = None
    propagation: str | None = None
    uid: str = ""
    resource_version: str = ""
    dry_run: bool = False
    user: str = ""


@dataclass(slots=True)
class Outcome:
    """What came of a write."""

    raw: bytes
    """The object as it is now; a deleted one as it last was."""
    created: bool = False
    gone: bool = False
    warnings: list[str] = field(default_factory=list)


SYSTEM = WriteOptions(user="system:apiserver", manager="apiserver", field_validation="Ignore")


class Objects:
    """Carries out writes on a `Store` by the rules of each `Kind` and of admission hooks."""

    def __init__(
        self,
        store: Store,
        registry: Registry,
        clock: Clock,
        ids: IdSource,
        hooks: Sequence[AdmissionHook] = (),
    ) -> None:
        self._store = store
        self._registry = registry
        self._clock = clock
        self._ids = ids
        self._hooks: dict[str, list[AdmissionHook]] = {}
        self._stamp = (-1, "")
        for hook in hooks:
            for name in sorted(hook.resources):
                self._hooks.setdefault(name, []).append(hook)

    # Looking up

    def find(self, storage: str, namespace: str, name: str) -> Unstructured | None:
        """Return a copy of an object, or None."""
        stored = self._store.get(storage, namespace, name)
        return stored.decode() if stored else None

    def all(self, storage: str) -> list[Unstructured]:
        """Return copies of all objects of a resource."""
        return [stored.decode() for stored in self._store.select(storage)]

    def require(self, kind: Kind, namespace: str, name: str) -> Stored:
        """Return the object; raise NotFound."""
        stored = self._store.get(kind.storage, namespace, name)
        if stored is None:
            raise not_found(kind.resource, name)
        return stored

    # Create

    def create(
        self,
        kind: Kind,
        namespace: str,
        obj: Unstructured,
        options: WriteOptions,
        *,
        applied: bool = False,
    ) -> Outcome:
        """Store a new object; one that is *applied* brings its record of field owners."""
        owners = (obj.get("metadata") or {}).get("managedFields") if applied else None
        meta = self._new_metadata(kind, namespace, obj)
        if kind.resource.namespaced:
            self._require_live_namespace(kind, namespace, meta.get("name", ""))
        self._require_live_definition(kind)
        if kind.view is not None:
            obj = kind.view.accept(obj)
        if kind.status and not kind.status_on_create:
            obj.pop("status", None)
        meta["name"] = self._free_name(kind, namespace, meta)
        meta["uid"] = self._ids.uid()
        meta["creationTimestamp"] = self.now()
        if kind.generation:
            meta["generation"] = 1
        if owners:
            meta["managedFields"] = owners
        outcome = Outcome(b"", created=True)
        obj = self._admit(kind, obj, None, "", options, outcome.warnings)
        if options.dry_run:
            outcome.raw = msgspec.json.encode(obj)
        else:
            outcome.raw = self._store.put(kind.storage, obj).raw
        return outcome

    def _new_metadata(self, kind: Kind, namespace: str, obj: Unstructured) -> Unstructured:
        self._check_type(kind, obj)
        sent = obj.get("metadata") or {}
        if not isinstance(sent, dict):
            raise bad_request("metadata: must be an object")
        if sent.get("resourceVersion"):
            raise bad_request("resourceVersion should not be set on objects to be created")
        dropped = (*_IDENTITY, "selfLink", "namespace", "name")
        meta = {k: v for k, v in sent.items() if k not in dropped and v is not None}
        self._check_namespace(kind, namespace, sent)
        first: Unstructured = {"name": sent.get("name") or ""}
        if sent.get("generateName"):
            first["generateName"] = sent["generateName"]
        if kind.resource.namespaced:
            first["namespace"] = namespace
        obj["metadata"] = meta = first | meta
        return meta

    def _free_name(self, kind: Kind, namespace: str, meta: Unstructured) -> str:
        name = meta["name"]
        prefix = meta.get("generateName", "")
        if not name and prefix:
            for _ in range(GENERATED_NAME_TRIES):
                name = prefix[:58] + self._ids.suffix()
                if self._store.get(kind.storage, namespace, name) is None:
                    break
        if not name or not isinstance(name, str):
            error = FieldError(
                "metadata.name", "FieldValueRequired", "name or generateName is required"
            )
            raise invalid(kind.resource, "", [error])
        if self._store.get(kind.storage, namespace, name) is not None:
            raise already_exists(kind.resource, name)
        wrong = name_error(
            name, loose=kind.loose_names, label=kind.resource.name in ("namespaces", "services")
        )
        if wrong:
            raise invalid(kind.resource, name, [wrong])
        return name

    def _require_live_namespace(self, kind: Kind, namespace: str, name: str) -> None:
        stored = self._store.get("namespaces", "", namespace)
        if stored is None:
            raise RefusalError(
                404,
                "NotFound",
                f'namespaces "{namespace}" not found',
                details={"name": namespace, "kind": "namespaces"},
            )
        if stored.deleting:
            raise forbidden(
                kind.resource,
                name,
                f"unable to create new content in namespace {namespace} because it is being "
                "terminated",
            )

    def _require_live_definition(self, kind: Kind) -> None:
        if not kind.custom:
            return
        definition = self._store.get(CRDS, "", kind.resource.name)
        if definition is not None and definition.deleting:
            raise RefusalError(
                405,
                "MethodNotAllowed",
                f"create not allowed while custom resource definition {definition.name} is "
                "terminating",
            )

    # Update

    def update(
        self,
        kind: Kind,
        namespace: str,
        name: str,
        change: Callable[[Unstructured], Unstructured],
        options: WriteOptions,
        *,
        subresource: str = "",
        versioned: bool = False,
        applied: bool = False,
    ) -> Outcome:
        """Store what *change* makes of the object.

        *change* gets a copy of its own. With *versioned* what it returns has to name the version
        it was made from, unless the kind allows unconditional updates. What is *applied* has
        its record of field owners with it.
        """
        stored = self.require(kind, namespace, name)
        base = stored.decode()
        new = change(kind.view.show(base) if kind.view else base)
        self._check_type(kind, new)
        if kind.view is not None:
            new = kind.view.accept(new)
        old = stored.decode()
        meta = self._same_identity(
            kind, stored, old["metadata"], new, versioned=versioned, applied=applied
        )
        new = _part_written(kind, old, new, meta, subresource)
        return self._replace(kind, stored, old, new, options, subresource, applied=applied)

    def _replace(
        self,
        kind: Kind,
        stored: Stored,
        old: Unstructured,
        new: Unstructured,
        options: WriteOptions,
        subresource: str,
        *,
        applied: bool,
    ) -> Outcome:
        outcome = Outcome(stored.raw)
        new = self._admit(kind, new, old, subresource, options, outcome.warnings)
        if not applied and "managedFields" in old["metadata"]:
            new = tracked(
                kind,
                old,
                new,
                manager=options.manager,
                now=self.now(),
                subresource=subresource,
            )
        if new == old:
            return outcome
        if kind.generation and _specified(kind, new) != _specified(kind, old):
            generation = old["metadata"].get("generation", 0) + 1
            new["metadata"] = new["metadata"] | {"generation": generation}
        if options.dry_run:
            outcome.raw = msgspec.json.encode(new)
        elif stored.deleting and _may_go(new):
            outcome.raw, outcome.gone = msgspec.json.encode(new), True
            self._store.remove(stored)
        else:
            outcome.raw = self._store.put(stored.storage, new).raw
        return outcome

    def _same_identity(
        self,
        kind: Kind,
        stored: Stored,
        old: Unstructured,
        new: Unstructured,
        *,
        versioned: bool,
        applied: bool,
    ) -> Unstructured:
        """Return the metadata to store: the client's, with the server's part of it restored."""
        resource = kind.resource
        sent = new.get("metadata") or {}
        if not isinstance(sent, dict):
            raise bad_request("metadata: must be an object")
        if sent.get("name", stored.name) != stored.name:
            raise bad_request(
                f"the name of the object ({sent.get('name')}) does not match the name on the URL "
                f"({stored.name})"
            )
        self._check_namespace(kind, stored.namespace, sent)
        if sent.get("uid") and sent["uid"] != stored.uid:
            raise conflict(
                resource,
                stored.name,
                f"Precondition failed: UID in precondition: {sent['uid']}, UID in object meta: "
                f"{stored.uid}",
            )
        version = sent.get("resourceVersion")
        if version and version not in ("0", str(stored.revision)):
            raise stale(resource, stored.name)
        if versioned and not version and kind.custom:
            text = "0x0: must be specified for an update"
            error = FieldError("metadata.resourceVersion", "FieldValueInvalid", text)
            raise invalid(resource, stored.name, [error])
        meta = {k: v for k, v in sent.items() if k not in _IDENTITY and v is not None}
        if stored.deleting:
            self._no_new_finalizers(resource, stored, old, meta)
        kept = {k: v for k, v in old.items() if k in _IDENTITY or k in ("name", "namespace")}
        owners = sent.get("managedFields")
        if applied or (isinstance(owners, list) and not any(owners)):
            kept["managedFields"] = owners
            if not owners:
                del kept["managedFields"]
        return kept | meta

    def _no_new_finalizers(
        self, resource: Resource, stored: Stored, old: Unstructured, new: Unstructured
    ) -> None:
        added = set(new.get("finalizers") or ()) - set(old.get("finalizers") or ())
        if added:
            text = (
                "no new finalizers can be added if the object is being deleted, found new "
                f"finalizers {sorted(added)}"
            )
            error = FieldError("metadata.finalizers", "FieldValueForbidden", text)
            raise invalid(resource, stored.name, [error])

    # Delete

    def delete(self, kind: Kind, namespace: str, name: str, options: DeleteOptions) -> Outcome:
        """Remove the object, or mark it as being deleted when something has to happen first."""
        stored = self.require(kind, namespace, name)
        self._check_deletable(kind, stored, options)
        obj = stored.decode()
        meta = obj["metadata"]
        finalizers = self._deletion_finalizers(kind, meta, options)
        grace_s = self._grace_s(kind, obj, options)
        if options.dry_run:
            return Outcome(stored.raw, gone=True)
        namespace_busy = kind.storage == "namespaces"
        if not finalizers and grace_s == 0 and not namespace_busy:
            self._store.remove(stored)
            return Outcome(stored.raw, gone=True)
        before = dict(meta)
        if finalizers:
            meta["finalizers"] = finalizers
        else:
            meta.pop("finalizers", None)
        if not stored.deleting or grace_s < (meta.get("deletionGracePeriodSeconds") or 0):
            meta["deletionTimestamp"] = rfc3339(self._clock.now() + grace_s)
            meta["deletionGracePeriodSeconds"] = grace_s
            if meta.get("generation"):
                meta["generation"] += 1
            if namespace_busy:
                obj["status"] = {"phase": "Terminating"}
        if meta == before:
            return Outcome(stored.raw)
        return Outcome(self._store.put(stored.storage, obj).raw)

    def _check_deletable(self, kind: Kind, stored: Stored, options: DeleteOptions) -> None:
        resource = kind.resource
        if options.uid and options.uid != stored.uid:
            raise conflict(
                resource,
                stored.name,
                f"Precondition failed: UID in precondition: {options.uid}, UID in object meta: "
                f"{stored.uid}",
            )
        if options.resource_version and options.resource_version != str(stored.revision):
            raise conflict(
                resource,
                stored.name,
                "Precondition failed: ResourceVersion in precondition: "
                f"{options.resource_version}, ResourceVersion in object meta: {stored.revision}",
            )
        if kind.storage == "namespaces" and stored.name in PROTECTED_NAMESPACES:
            raise forbidden(resource, stored.name, "this namespace may not be deleted")
        hooks = self._hooks.get(kind.storage)
        if hooks:
            obj = stored.decode()
            request = self._request(kind, "DELETE", obj, obj, "", options.user)
            errors = [e for hook in hooks for e in hook.validate(request).errors]
            if errors:
                raise forbidden(resource, stored.name, "; ".join(map(str, errors)))

    def _deletion_finalizers(
        self, kind: Kind, meta: Unstructured, options: DeleteOptions
    ) -> list[str]:
        finalizers: list[str] = list(meta.get("finalizers") or ())
        if options.propagation is not None:
            finalizers = [f for f in finalizers if f not in (FOREGROUND, ORPHAN)]
            if options.propagation == "Foreground":
                finalizers.append(FOREGROUND)
            elif options.propagation == "Orphan":
                finalizers.append(ORPHAN)
        if (
            kind.storage == CRDS
            and CRD_CLEANUP not in finalizers
            and self._store.count(meta["name"])
        ):
            finalizers.append(CRD_CLEANUP)
        return finalizers

    def _grace_s(self, kind: Kind, obj: Unstructured, options: DeleteOptions) -> int:
        """Return how long the node has to stop a pod; everything else goes at once."""
        if kind.storage != "pods":
            return 0
        spec, meta = obj.get("spec") or {}, obj["metadata"]
        finished = (obj.get("status") or {}).get("phase") in ("Succeeded", "Failed")
        if not spec.get("nodeName") or finished:
            return 0
        wanted = options.grace_s
        if wanted is None:
            wanted = spec.get("terminationGracePeriodSeconds", DEFAULT_GRACE_S)
        wanted = max(wanted, 0)
        if "deletionTimestamp" not in meta:
            return wanted
        given: int = meta.get("deletionGracePeriodSeconds") or 0
        if wanted == 0 or options.grace_s is None:
            return 0 if wanted == 0 else given
        left = parse_rfc3339(meta["deletionTimestamp"]) - self._clock.now()
        return wanted if wanted < left else given

    # Admission

    def _admit(
        self,
        kind: Kind,
        obj: Unstructured,
        old: Unstructured | None,
        subresource: str,
        options: WriteOptions,
        warnings: list[str],
    ) -> Unstructured:
        """Return *obj* with defaults; raise Invalid naming every rule it breaks."""
        if kind.schema is not None:
            _tell(kind.schema.prune_and_default(obj), options, warnings)
        elif kind.message and options is not SYSTEM:
            self._check_fields(kind, obj, old, options, warnings)
        if kind.default is not None:
            kind.default(obj, old, self)
        hooks = () if subresource else self._hooks.get(kind.storage, ())
        for hook in hooks:
            obj = self._hook_default(kind, hook, obj, old, options)
        meta = obj["metadata"]
        errors = [] if old is not None and meta == old["metadata"] else metadata_errors(meta)
        if kind.schema is not None:
            errors += kind.schema.errors(obj)
        if kind.validate is not None and subresource != "binding":
            errors += kind.validate(obj, old)
        if not errors:
            for hook in hooks:
                operation: Literal["CREATE", "UPDATE"] = "CREATE" if old is None else "UPDATE"
                verdict = hook.validate(
                    self._request(kind, operation, obj, old, subresource, options.user)
                )
                errors += verdict.errors
                warnings += verdict.warnings
        if errors:
            raise invalid(kind.resource, meta.get("name", ""), errors)
        return obj

    def _check_fields(
        self,
        kind: Kind,
        obj: Unstructured,
        old: Unstructured | None,
        options: WriteOptions,
        warnings: list[str],
    ) -> None:
        found = fieldtypes.check(kind.message, obj, old)
        mistyped = [f"{path}: {what}" for path, what in found if what]
        if mistyped:
            raise bad_request(f"{kind.resource.kind} cannot be read: {'; '.join(mistyped)}")
        _tell([path for path, _ in found], options, warnings)

    def _hook_default(
        self,
        kind: Kind,
        hook: AdmissionHook,
        obj: Unstructured,
        old: Unstructured | None,
        options: WriteOptions,
    ) -> Unstructured:
        operation: Literal["CREATE", "UPDATE"] = "CREATE" if old is None else "UPDATE"
        try:
            return hook.default(self._request(kind, operation, obj, old, "", options.user))
        except SpinneyError as error:
            # The hook could not read the object: the schema says best where it is wrong.
            errors = kind.schema.errors(obj) if kind.schema else []
            if errors:
                raise invalid(kind.resource, obj["metadata"]["name"], errors) from error
            raise bad_request(str(error)) from error

    def _request(
        self,
        kind: Kind,
        operation: Literal["CREATE", "UPDATE", "DELETE"],
        obj: Unstructured,
        old: Unstructured | None,
        subresource: str,
        user: str,
    ) -> AdmissionRequest:
        return AdmissionRequest(
            operation=operation,
            resource=kind.resource,
            obj=obj,
            old=old,
            subresource=subresource,
            user=user,
            lookup=lambda resource, namespace, name: self.find(resource.name, namespace, name),
        )

    # Checks of what a request says of itself

    def _check_type(self, kind: Kind, obj: Unstructured) -> None:
        if not isinstance(obj, dict):
            raise bad_request("the object must be a JSON object")
        resource = kind.resource
        api_version, name = obj.get("apiVersion"), obj.get("kind")
        if api_version and api_version != resource.api_version:
            raise bad_request(
                f"the API version in the data ({api_version}) does not match the expected API "
                f"version ({resource.api_version})"
            )
        if name and name != resource.kind:
            raise bad_request(
                f"the kind in the data ({name}) does not match the expected kind ({resource.kind})"
            )
        if not api_version or not name:
            obj["apiVersion"], obj["kind"] = resource.api_version, resource.kind

    def _check_namespace(self, kind: Kind, namespace: str, meta: Unstructured) -> None:
        sent = meta.get("namespace")
        if sent and kind.resource.namespaced and sent != namespace:
            raise bad_request(
                f"the namespace of the provided object ({sent}) does not match the namespace sent "
                f"on the request ({namespace})"
            )
        if not kind.resource.namespaced:
            meta.pop("namespace", None)

    def now(self) -> str:
        """Return the time of day as objects carry it."""
        second = int(self._clock.now())
        if self._stamp[0] != second:
            self._stamp = (second, rfc3339(second))
        return self._stamp[1]


def _tell(unknown: Sequence[str], options: WriteOptions, warnings: list[str]) -> None:
    """Refuse unknown fields, or warn of them, as the client wishes."""
    if not unknown or options.field_validation == "Ignore":
        return
    lines = [f'unknown field "{path}"' for path in unknown]
    if options.field_validation == "Strict":
        raise bad_request(f"strict decoding error: {', '.join(lines)}")
    warnings += lines[:MAX_WARNINGS]


def _part_written(
    kind: Kind, old: Unstructured, new: Unstructured, meta: Unstructured, subresource: str
) -> Unstructured:
    """Return *old* with the part of *new* that a write to *subresource* may change."""
    if subresource == "status":
        # Of the metadata only the record of who owns the status.
        result = dict(old)
        owners = meta.get("managedFields")
        if owners != old["metadata"].get("managedFields"):
            result["metadata"] = old["metadata"] | {"managedFields": owners}
        _take_status(result, new)
        return result
    new["metadata"] = meta
    if kind.status and subresource != "binding":
        _take_status(new, old)
    if kind.storage == "namespaces" and subresource != "finalize":
        new["spec"] = old.get("spec", {})
    return new


def _take_status(target: Unstructured, source: Unstructured) -> None:
    if source.get("status") is None:
        target.pop("status", None)
    else:
        target["status"] = source["status"]


def _specified(kind: Kind, obj: Unstructured) -> Any:
    """Return the part of an object whose changes count as a new generation."""
    status_counts = kind.custom and not kind.status
    return {
        key: value
        for key, value in obj.items()
        if key not in ("apiVersion", "kind", "metadata") and (key != "status" or status_counts)
    }


def _may_go(obj: Unstructured) -> bool:
    """Tell whether nothing holds back an object that is being deleted."""
    meta = obj["metadata"]
    if meta.get("finalizers") or meta.get("deletionGracePeriodSeconds"):
        return False
    return obj.get("kind") != "Namespace" or not (obj.get("spec") or {}).get("finalizers")
