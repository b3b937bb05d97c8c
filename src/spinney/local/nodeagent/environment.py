"""A container's environment and command line, as Kubernetes defines them.

Values come from the pod, its ConfigMaps and Secrets, and the downward API; ``$(VAR)`` refers to
what was defined before, ``$$`` is a dollar, and a reference to nothing stays as it is written. All
here is a function of values that were fetched before.
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from spinney.api.quantity import parse_quantity
from spinney.local.nodeagent.runs import all_containers

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from spinney.api.core import ConfigMap, Container, Pod, Secret

CONFIG_ERROR = "CreateContainerConfigError"

_REFERENCE = re.compile(r"\$(\$|\(([^)]*)\))")
_NAME = re.compile(r"^[-._a-zA-Z][-._a-zA-Z0-9]*$")
_KEYED_FIELD = re.compile(r"^metadata\.(labels|annotations)\['([^']+)'\]$")


class CannotStartError(Exception):
    """A container cannot be started as things are; ``reason`` is one word for its status."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


@dataclass(frozen=True, slots=True)
class Sources:
    """What environment and volumes may refer to; None marks an object that is not there."""

    config_maps: Mapping[str, ConfigMap | None] = field(default_factory=dict)
    secrets: Mapping[str, Secret | None] = field(default_factory=dict)
    allocatable: Mapping[str, str | int | float] = field(default_factory=dict)
    """What the node has: the limit of a container that names none."""

    def config_map(self, name: str) -> Mapping[str, bytes] | None:
        """Return a ConfigMap's values, or None."""
        found = self.config_maps.get(name)
        if found is None:
            return None
        binary = {key: _decoded(value, key) for key, value in found.binary_data.items()}
        return {**{key: text.encode() for key, text in found.data.items()}, **binary}

    def secret(self, name: str) -> Mapping[str, bytes] | None:
        """Return a Secret's values, decoded, or None."""
        found = self.secrets.get(name)
        if found is None:
            return None
        return {key: _decoded(value, key) for key, value in found.data.items()}


@dataclass(frozen=True, slots=True)
class Identity:
    """What the agent gave the pod."""

    pod_ip: str
    host_ip: str


def expand(text: str, values: Mapping[str, str]) -> str:
    """Return *text* with each ``$(NAME)`` that *values* knows replaced, and ``$$`` as ``$``."""

    def replacement(found: re.Match[str]) -> str:
        if found[1] == "$":
            return "$"
        return values.get(found[2], found[0])

    return _REFERENCE.sub(replacement, text)


def command_line(
    container: Container, values: Mapping[str, str], entrypoint: Sequence[str]
) -> list[str]:
    """Return the program and its arguments; *entrypoint* stands in for a missing ``command``."""
    command = [expand(part, values) for part in container.command] or list(entrypoint)
    return command + [expand(part, values) for part in container.args]


def environment(
    pod: Pod,
    container: Container,
    identity: Identity,
    sources: Sources,
    service: Mapping[str, str],
) -> dict[str, str]:
    """Return the variables that the pod defines, over those of *service*.

    Raises CannotStartError when something that is not optional is missing.
    """
    values = dict(service)
    for entry in container.env_from:
        values.update(_from_all(entry, sources))
    for variable in container.env:
        if variable.value_from is None:
            values[variable.name] = expand(variable.value, values)
            continue
        found = _value_from(pod, container, variable.value_from, identity, sources, variable.name)
        if found is not None:
            values[variable.name] = found
    return values


def references(pod: Pod) -> tuple[set[str], set[str]]:
    """Return the names of the ConfigMaps and Secrets that the pod's containers and volumes use."""
    config_maps: set[str] = set()
    secrets: set[str] = set()
    for kind, name in _references(pod):
        (config_maps if kind == "configMap" else secrets).add(name)
    return config_maps, secrets


def field_value(pod: Pod, path: str, identity: Identity) -> str:
    """Return the field that the downward API calls *path*; raise CannotStartError."""
    meta, spec = pod.metadata, pod.spec
    simple = {
        "metadata.name": meta.name,
        "metadata.namespace": meta.namespace,
        "metadata.uid": meta.uid,
        "spec.nodeName": spec.node_name,
        "spec.serviceAccountName": spec.service_account_name or "default",
        "status.podIP": identity.pod_ip,
        "status.podIPs": identity.pod_ip,
        "status.hostIP": identity.host_ip,
        "status.hostIPs": identity.host_ip,
        "metadata.labels": _listed(meta.labels),
        "metadata.annotations": _listed(meta.annotations),
    }
    if path in simple:
        return simple[path]
    keyed = _KEYED_FIELD.match(path)
    if keyed is None:
        known = ", ".join(sorted(simple))
        raise CannotStartError(CONFIG_ERROR, f"field {path!r} is none of {known}")
    where = meta.labels if keyed[1] == "labels" else meta.annotations
    return where.get(keyed[2], "")


def resource_value(
    pod: Pod, container: Container, reference: Mapping[str, Any], sources: Sources
) -> str:
    """Return a request or limit in units of the divisor, rounded up; raise CannotStartError."""
    name = reference.get("containerName") or container.name
    owner = next((c for c in all_containers(pod) if c.name == name), None)
    kind, _, resource = str(reference.get("resource", "")).partition(".")
    if owner is None or kind not in ("limits", "requests") or not resource:
        raise CannotStartError(CONFIG_ERROR, f"resourceFieldRef {dict(reference)!r} names nothing")
    own = owner.resources.limits if kind == "limits" else owner.resources.requests
    missing: str | int | float = sources.allocatable.get(resource, 0) if kind == "limits" else 0
    amount = parse_quantity(own.get(resource, missing))
    divisor = parse_quantity(reference.get("divisor") or 1) or parse_quantity(1)
    return str(int((amount / divisor).to_integral_value(rounding="ROUND_CEILING")))


def _from_all(entry: Mapping[str, Any], sources: Sources) -> dict[str, str]:
    prefix = str(entry.get("prefix") or "")
    if "configMapRef" in entry:
        kind, reference = "ConfigMap", entry["configMapRef"]
        values = sources.config_map(reference.get("name", ""))
    else:
        kind, reference = "Secret", entry.get("secretRef") or {}
        values = sources.secret(reference.get("name", ""))
    if values is None:
        if reference.get("optional"):
            return {}
        raise CannotStartError(CONFIG_ERROR, f"{kind} {reference.get('name')!r} not found")
    named = {prefix + key: value.decode("utf-8", "replace") for key, value in values.items()}
    return {key: value for key, value in named.items() if _NAME.match(key)}


def _value_from(
    pod: Pod,
    container: Container,
    source: Mapping[str, Any],
    identity: Identity,
    sources: Sources,
    name: str,
) -> str | None:
    if "fieldRef" in source:
        return field_value(pod, str(source["fieldRef"].get("fieldPath", "")), identity)
    if "resourceFieldRef" in source:
        return resource_value(pod, container, source["resourceFieldRef"], sources)
    if "configMapKeyRef" in source:
        reference = source["configMapKeyRef"]
        return _keyed("ConfigMap", reference, sources.config_map(reference.get("name", "")))
    if "secretKeyRef" in source:
        reference = source["secretKeyRef"]
        return _keyed("Secret", reference, sources.secret(reference.get("name", "")))
    known = "fieldRef, resourceFieldRef, configMapKeyRef, secretKeyRef"
    found = ", ".join(source) or "nothing"
    raise CannotStartError(CONFIG_ERROR, f"env {name}: one of {known} wanted, found {found}")


def _keyed(
    kind: str, reference: Mapping[str, Any], values: Mapping[str, bytes] | None
) -> str | None:
    name, key = reference.get("name", ""), reference.get("key", "")
    if values is not None and key in values:
        return values[key].decode("utf-8", "replace")
    if reference.get("optional"):
        return None
    if values is None:
        raise CannotStartError(CONFIG_ERROR, f"{kind} {name!r} not found")
    raise CannotStartError(CONFIG_ERROR, f"key {key!r} not found in {kind} {name!r}")


def _references(pod: Pod) -> Iterator[tuple[str, str]]:
    for container in all_containers(pod):
        for entry in container.env_from:
            for kind in ("configMap", "secret"):
                if f"{kind}Ref" in entry:
                    yield kind, str(entry[f"{kind}Ref"].get("name", ""))
        for variable in container.env:
            for kind in ("configMap", "secret"):
                if f"{kind}KeyRef" in (variable.value_from or {}):
                    yield kind, str((variable.value_from or {})[f"{kind}KeyRef"].get("name", ""))
    for volume in pod.spec.volumes:
        for source in (volume, *((volume.get("projected") or {}).get("sources") or ())):
            if "configMap" in source:
                yield "configMap", str(source["configMap"].get("name", ""))
            if "secret" in source:
                secret = source["secret"]
                yield "secret", str(secret.get("secretName") or secret.get("name") or "")


def _listed(values: Mapping[str, str]) -> str:
    return "\n".join(f'{key}="{value}"' for key, value in sorted(values.items()))


def _decoded(value: str, key: str) -> bytes:
    try:
        return base64.b64decode(value, validate=True)
    except binascii.Error as error:
        raise CannotStartError(CONFIG_ERROR, f"key {key!r} is not valid base64") from error
