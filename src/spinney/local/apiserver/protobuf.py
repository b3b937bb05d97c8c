"""Protobuf bodies: kubectl from 1.32 on sends built-in kinds in it when it creates them itself.

Only decoding; replies are JSON, which all clients accept. The numbers of the fields are in
``wire_fields.txt``. A number that is not there is refused rather than dropped.

Clients write fields that are not optional even when they are empty. What is empty is therefore
left out, as it is in JSON, except where the field is a pointer in Kubernetes' types, so
that zero was meant (`_POINTERS`).
"""

from __future__ import annotations

import base64
import functools
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Any

import msgspec

from spinney.clock import rfc3339
from spinney.local.apiserver.refusal import RefusalError, bad_request

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

CONTENT_TYPE = "application/vnd.kubernetes.protobuf"
MAX_DEPTH = 64

_MAGIC = b"k8s\x00"
_GROUPS = {
    "": "core",
    "apps": "apps",
    "batch": "batch",
    "autoscaling": "autoscaling",
    "policy": "policy",
    "coordination.k8s.io": "coordination",
    "discovery.k8s.io": "discovery",
    "events.k8s.io": "events",
    "networking.k8s.io": "networking",
    "rbac.authorization.k8s.io": "rbac",
    "scheduling.k8s.io": "scheduling",
    "storage.k8s.io": "storage",
    "node.k8s.io": "node",
    "authorization.k8s.io": "authorization",
    "authentication.k8s.io": "authentication",
}
_POINTERS = frozenset(
    [
        "activeDeadlineSeconds",
        "allocateLoadBalancerNodePorts",
        "allowPrivilegeEscalation",
        "allowed",
        "automountServiceAccountToken",
        "averageUtilization",
        "backoffLimit",
        "backoffLimitPerIndex",
        "blockOwnerDeletion",
        "completions",
        "controller",
        "defaultMode",
        "deletionGracePeriodSeconds",
        "enableServiceLinks",
        "expirationSeconds",
        "failedJobsHistoryLimit",
        "fsGroup",
        "gracePeriodSeconds",
        "hostUsers",
        "immutable",
        "leaseDurationSeconds",
        "leaseTransitions",
        "manualSelector",
        "maxFailedIndexes",
        "minReplicas",
        "mode",
        "optional",
        "orphanDependents",
        "parallelism",
        "percentage",
        "priority",
        "privileged",
        "progressDeadlineSeconds",
        "readOnlyRootFilesystem",
        "replicas",
        "revisionHistoryLimit",
        "runAsGroup",
        "runAsNonRoot",
        "runAsUser",
        "setHostnameAsFQDN",
        "shareProcessNamespace",
        "startingDeadlineSeconds",
        "successfulJobsHistoryLimit",
        "suspend",
        "terminationGracePeriodSeconds",
        "tolerationSeconds",
        "ttlSecondsAfterFinished",
        "value",
    ]
)


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a message."""

    name: str
    type: str
    """``s``, ``b``, ``o``, ``i``, ``d``, or the name of a message."""
    repeated: bool = False
    mapped: bool = False
    inline: bool = False


@functools.cache
def messages() -> Mapping[str, Mapping[int, Field]]:
    """Return the fields of every message by their numbers."""
    text = resources.files(__package__).joinpath("wire_fields.txt").read_text("ascii")
    found = {}
    for line in text.splitlines():
        if line.startswith("#"):
            continue
        name, *parts = line.split()
        found[name] = dict(_field(part) for part in parts)
    return found


def message_name(api_version: str, kind: str) -> str:
    """Return the name of the message of a kind, "" if there is none."""
    group, _, version = api_version.rpartition("/")
    if kind == "DeleteOptions":
        return "meta.DeleteOptions"
    name = f"{_GROUPS.get(group, group)}.{version}.{kind}"
    return name if name in messages() else ""


def decode(data: bytes) -> dict[str, Any]:
    """Return the object in a body; raise BadRequest, or 415 for kinds without a table."""
    if not data.startswith(_MAGIC):
        raise bad_request("the body does not start like Kubernetes' protobuf")
    try:
        return _envelope(memoryview(data)[len(_MAGIC) :])
    except (IndexError, ValueError, TypeError, OverflowError, msgspec.DecodeError) as error:
        raise bad_request(f"the body is not valid protobuf: {error}") from error


def _envelope(data: memoryview) -> dict[str, Any]:
    outer = {number: value for number, _, value in _parts(data)}
    about = {number: bytes(value).decode() for number, _, value in _parts(outer.get(1, b""))}
    api_version, kind = about.get(1, ""), about.get(2, "")
    raw = outer.get(2, b"")
    if bytes(outer.get(4, b"")) == b"application/json":
        obj: dict[str, Any] = msgspec.json.decode(raw)
        return obj
    name = message_name(api_version, kind)
    if not name:
        raise RefusalError(
            415,
            "UnsupportedMediaType",
            f"{kind} of {api_version} is not taken as protobuf; send application/json",
        )
    return {"kind": kind, "apiVersion": api_version} | _message(name, raw, 0)


def _message(name: str, data: Any, depth: int) -> dict[str, Any]:
    if depth > MAX_DEPTH:
        raise ValueError("messages are nested too deeply")
    fields = messages()[name]
    result: dict[str, Any] = {}
    for number, wire, raw in _parts(data):
        field = fields.get(number)
        if field is None:
            raise RefusalError(
                415,
                "UnsupportedMediaType",
                f"field {number} of {name} is not known as protobuf; send application/json",
            )
        if field.mapped:
            key, value = _entry(field, wire, raw, depth)
            result.setdefault(field.name, {})[key] = "" if value is None else value
        elif field.repeated:
            packed = wire == 2 and field.type == "i"
            items = result.setdefault(field.name, [])
            items += _packed(raw) if packed else [_value(field, wire, raw, depth)]
        elif field.inline:
            result |= _message(field.type, raw, depth + 1)
        else:
            value = _value(field, wire, raw, depth)
            if value is not None and (value or _kept(field, value)):
                result[field.name] = value
    return result


def _entry(field: Field, wire: int, raw: Any, depth: int) -> tuple[str, Any]:
    if wire != 2:
        raise ValueError(f"{field.name} has the wrong wire type {wire}")
    parts = {number: (kind, value) for number, kind, value in _parts(raw)}
    key_wire, key = parts.get(1, (2, b""))
    if key_wire != 2:
        raise ValueError(f"{field.name} has a key that is no text")
    return bytes(key).decode(), _value(field, *parts.get(2, (2, b"")), depth)


def _kept(field: Field, value: Any) -> bool:
    """Tell whether an empty value says something."""
    if isinstance(value, str):
        return field.name == "storageClassName"
    return isinstance(value, dict) or field.name in _POINTERS


def _value(field: Field, wire: int, raw: Any, depth: int) -> Any:
    if (wire == 0) != (field.type in ("o", "i")):
        raise ValueError(f"{field.name} has the wrong wire type {wire}")
    match field.type:
        case "s":
            return bytes(raw).decode()
        case "b":
            return base64.b64encode(raw).decode()
        case "o":
            return bool(raw)
        case "i":
            return raw - (1 << 64) if raw >= 1 << 63 else raw
    special = _SPECIAL.get(field.type)
    if special is not None:
        return special({number: value for number, _, value in _parts(raw)})
    return _message(field.type, raw, depth + 1)


def _int_or_string(parts: dict[int, Any]) -> int | str:
    if parts.get(1, 0) == 1:
        return bytes(parts.get(3, b"")).decode()
    number: int = parts.get(2, 0)
    return number - (1 << 64) if number >= 1 << 63 else number


def _time(parts: dict[int, Any], *, micro: bool = False) -> str | None:
    seconds = parts.get(1, 0)
    if not seconds or seconds >= 1 << 63:
        return None
    return rfc3339(seconds + parts.get(2, 0) / 1e9 if micro else seconds, micro=micro)


def _raw_json(parts: dict[int, Any]) -> Any:
    raw = bytes(parts.get(1, b""))
    return msgspec.json.decode(raw) if raw else None


_SPECIAL: dict[str, Callable[[dict[int, Any]], Any]] = {
    "Quantity": lambda parts: bytes(parts.get(1, b"")).decode(),
    "IntOrString": _int_or_string,
    "meta.Time": _time,
    "meta.MicroTime": lambda parts: _time(parts, micro=True),
    "meta.FieldsV1": _raw_json,
    "RawExtension": _raw_json,
}


def _parts(data: Any) -> Iterator[tuple[int, int, Any]]:
    """Yield number, wire type and raw value of each field."""
    position, end = 0, len(data)
    while position < end:
        tag, position = _varint(data, position)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, position = _varint(data, position)
            yield number, wire, value
            continue
        size = {1: 8, 5: 4}.get(wire)
        if wire == 2:
            size, position = _varint(data, position)
        if size is None or position + size > end:
            raise ValueError(f"field {number} does not end, or has the unknown type {wire}")
        yield number, wire, data[position : position + size]
        position += size


def _packed(data: Any) -> list[int]:
    values, position = [], 0
    while position < len(data):
        value, position = _varint(data, position)
        values.append(value)
    return values


def _varint(data: Any, position: int) -> tuple[int, int]:
    result = shift = 0
    while shift < 70:
        byte = data[position]
        position += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            return result, position
        shift += 7
    raise ValueError("a number does not end")


def _field(text: str) -> tuple[int, Field]:
    number, name, kind = text.split(":")
    return int(number), Field(
        name,
        kind.lstrip("[]{}="),
        repeated=kind.startswith("[]"),
        mapped=kind.startswith("{}"),
        inline=kind.startswith("="),
    )
