"""What a request's path, query and body ask for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import msgspec
import yaml

from spinney.local.apiserver import protobuf
from spinney.local.apiserver.objects import DeleteOptions, FieldValidation, WriteOptions
from spinney.local.apiserver.refusal import RefusalError, bad_request

if TYPE_CHECKING:
    from collections.abc import Mapping

    from spinney.kube.transport import ApiRequest

MAX_BODY_BYTES = 3 * 1024 * 1024
"""The size Kubernetes allows an object on the wire."""

_TRUE = ("true", "1", "True")
_PROPAGATIONS = ("Background", "Foreground", "Orphan")


@dataclass(frozen=True, slots=True)
class Route:
    """A path below a group and version, taken apart."""

    group: str
    version: str
    plural: str
    namespace: str | None
    name: str = ""
    subresource: str = ""


def parse(path: str) -> Route | None:
    """Return the resource a path leads to, None if it has not the shape of one."""
    parts = [unquote(part) if "%" in part else part for part in path.strip("/").split("/")]
    if parts[0] == "api" and len(parts) > 2:
        group, version, rest = "", parts[1], parts[2:]
    elif parts[0] == "apis" and len(parts) > 3:
        group, version, rest = parts[1], parts[2], parts[3:]
    else:
        return None
    namespace = None
    if rest[0] == "namespaces" and len(rest) > 2 and rest[2] not in ("status", "finalize"):
        namespace, rest = rest[1], rest[2:]
    if len(rest) > 3 or not all(rest):
        return None
    return Route(group, version, rest[0], namespace, *rest[1:])


def flag(query: Mapping[str, str], name: str) -> bool:
    """Tell whether a query parameter is set to true."""
    return query.get(name) in _TRUE


def number(query: Mapping[str, str], name: str) -> int | None:
    """Return a query parameter as a whole number, None if it is absent; raise BadRequest."""
    text = query.get(name)
    if not text:
        return None
    try:
        return int(text)
    except ValueError:
        raise bad_request(f"{name}: {text!r} is no whole number") from None


def decode_body(request: ApiRequest) -> Any:
    """Return the body as JSON values; raise BadRequest, 413 or 415."""
    if len(request.body) > MAX_BODY_BYTES:
        raise RefusalError(
            413,
            "RequestEntityTooLarge",
            f"the body has {len(request.body)} bytes, {MAX_BODY_BYTES} are allowed",
        )
    content_type = request.content_type.partition(";")[0].strip().lower()
    if content_type == protobuf.CONTENT_TYPE:
        return protobuf.decode(request.body)
    try:
        return msgspec.json.decode(request.body)
    except msgspec.DecodeError as error:
        if not content_type.endswith("yaml"):
            raise bad_request(f"the body is not valid JSON: {error}") from error
    try:
        return yaml.safe_load(request.body)
    except yaml.YAMLError as error:
        raise bad_request(f"the body is not valid YAML: {error}") from error


def decode_object(request: ApiRequest) -> dict[str, Any]:
    """Return the body as an object; raise BadRequest."""
    obj = decode_body(request)
    if not isinstance(obj, dict):
        raise bad_request("the body must be an object with apiVersion, kind and metadata")
    return obj


def write_options(request: ApiRequest) -> WriteOptions:
    """Return how the query asks for a write to be done; raise BadRequest."""
    query = request.query
    validation: FieldValidation = "Warn"
    match query.get("fieldValidation", ""):
        case "":
            pass
        case "Strict":
            validation = "Strict"
        case "Warn":
            validation = "Warn"
        case "Ignore":
            validation = "Ignore"
        case other:
            raise bad_request(f"fieldValidation: {other!r} is none of Strict, Warn and Ignore")
    return WriteOptions(
        user=request.user,
        manager=query.get("fieldManager", "") or "unknown",
        dry_run=_dry_run(query.get("dryRun", "")),
        field_validation=validation,
    )


def delete_options(request: ApiRequest) -> DeleteOptions:
    """Return how body and query ask for a deletion to be done; raise BadRequest."""
    query = request.query
    body = decode_object(request) if request.body.strip() else {}
    grace = body.get("gracePeriodSeconds")
    propagation = body.get("propagationPolicy") or query.get("propagationPolicy") or None
    orphan = body.get("orphanDependents")
    if orphan is None and query.get("orphanDependents"):
        orphan = flag(query, "orphanDependents")
    if propagation is None and orphan is not None:
        propagation = "Orphan" if orphan else "Background"
    if propagation is not None and propagation not in _PROPAGATIONS:
        raise bad_request(
            f"propagationPolicy: {propagation!r} is none of {', '.join(_PROPAGATIONS)}"
        )
    conditions = body.get("preconditions") or {}
    dry = body.get("dryRun") or query.get("dryRun", "")
    return DeleteOptions(
        grace_s=grace if isinstance(grace, int) else number(query, "gracePeriodSeconds"),
        propagation=propagation,
        uid=conditions.get("uid") or "",
        resource_version=conditions.get("resourceVersion") or "",
        dry_run=_dry_run(dry[0] if isinstance(dry, list) else dry),
        user=request.user,
    )


def patch_type(request: ApiRequest) -> str:
    """Return the content type of a patch without its parameters."""
    return request.content_type.partition(";")[0].strip().lower()


def _dry_run(value: str) -> bool:
    if value not in ("", "All"):
        raise bad_request(f"dryRun: {value!r} is not supported; use All")
    return value == "All"
