"""The nodes of a local cluster, as a small YAML file declares them.

A declaration is read once, checked in full, and turned into `NodeDeclaration` values. Everything
wrong with a file is reported together, each with the path of the field (``racks[1].hosts[0].cpu``).
The order of the hosts in the file numbers the nodes, and a node's number is its address range, so
appending hosts leaves the addresses of the others as they are.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from spinney.api.quantity import parse_quantity
from spinney.errors import BadInputError

DEFAULT_NETWORK = "127.10.0.0/16"
DEFAULT_CPU = "16"
DEFAULT_MEMORY = "64Gi"
DEFAULT_PODS = 110
MAX_PODS = 250
"""Node ranges are /24: .1 is the node, the rest are pods."""

HOSTNAME_LABEL = "kubernetes.io/hostname"
ZONE_LABEL = "topology.kubernetes.io/zone"
RACK_LABEL = "topology.kubernetes.io/rack"
GPU_RESOURCE = "nvidia.com/gpu"

_NAME = re.compile(r"^[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?$")
_EFFECTS = ("NoSchedule", "PreferNoSchedule", "NoExecute")


@dataclass(frozen=True, slots=True)
class NodeTaint:
    """Keeps pods off a node unless they tolerate it."""

    key: str
    effect: str
    value: str = ""


@dataclass(frozen=True, slots=True)
class NodeDeclaration:
    """One node as declared; `capacity` holds quantities as Kubernetes writes them."""

    name: str
    labels: dict[str, str]
    capacity: dict[str, str]
    pod_range: str
    """The node's /24 in 127.0.0.0/8."""
    taints: tuple[NodeTaint, ...] = ()

    @property
    def address(self) -> str:
        """The node's own address: the first of its range."""
        return str(next(ipaddress.IPv4Network(self.pod_range).hosts()))


def default_nodes(network: str = DEFAULT_NETWORK) -> tuple[NodeDeclaration, ...]:
    """Return the nodes that ship with the package, with addresses in *network*."""
    text = resources.files("spinney.local").joinpath("default_nodes.yaml").read_text()
    return parse_nodes(text, source="default_nodes.yaml", network=network)


def read_nodes(
    path: str | Path | None, network: str = DEFAULT_NETWORK
) -> tuple[NodeDeclaration, ...]:
    """Return the nodes declared in the file *path*, or the default ones.

    *network* is where their addresses are when the file names no network of its own. Raises
    BadInputError when the file cannot be read or breaks a rule.
    """
    if path is None:
        return default_nodes(network)
    try:
        text = Path(path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInputError(f"nodes file {path}: cannot be read: {error}") from error
    return parse_nodes(text, source=str(path), network=network)


def parse_nodes(
    text: str, *, source: str, network: str = DEFAULT_NETWORK
) -> tuple[NodeDeclaration, ...]:
    """Return the nodes that YAML *text* declares; raise BadInputError with all that is wrong."""
    try:
        raw = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise BadInputError(f"{source}: not valid YAML: {error}") from error
    reader = _Reader(network)
    nodes = reader.cluster(raw)
    if reader.errors:
        lines = "\n  ".join(reader.errors)
        raise BadInputError(f"{source}: {len(reader.errors)} problem(s)\n  {lines}")
    return nodes


@dataclass(slots=True)
class _Reader:
    """Reads JSON-like values and collects what is wrong with them."""

    default_network: str
    errors: list[str] = field(default_factory=list)
    names: dict[str, str] = field(default_factory=dict)

    def cluster(self, raw: Any) -> tuple[NodeDeclaration, ...]:
        top = self._mapping(raw, "", {"network", "zone", "racks"})
        network = self._network(top.get("network", self.default_network))
        zone = self._text(top, "zone", "", "local")
        racks = self._items(top, "racks", "")
        found: list[NodeDeclaration] = []
        for i, rack in enumerate(racks):
            path = f"racks[{i}]"
            body = self._mapping(rack, path, {"name", "zone", "labels", "hosts"})
            labels = {
                ZONE_LABEL: self._text(body, "zone", path, zone),
                RACK_LABEL: self._name(body, path, seen={}),
                **self._labels(body, path),
            }
            for j, host in enumerate(self._items(body, "hosts", path)):
                where = f"{path}.hosts[{j}]"
                found.append(self._host(host, where, labels, network, len(found)))
        return tuple(found)

    def _host(
        self,
        raw: Any,
        path: str,
        rack_labels: dict[str, str],
        network: ipaddress.IPv4Network,
        index: int,
    ) -> NodeDeclaration:
        known = {"name", "gpus", "cpu", "memory", "pods", "labels", "taints"}
        body = self._mapping(raw, path, known)
        name = self._name(body, path, seen=self.names)
        capacity = {
            "cpu": self._quantity(body, "cpu", path, DEFAULT_CPU),
            "memory": self._quantity(body, "memory", path, DEFAULT_MEMORY),
            "pods": str(self._count(body, "pods", path, DEFAULT_PODS, MAX_PODS)),
        }
        gpus = self._count(body, "gpus", path, 0, 10_000)
        if gpus:
            capacity[GPU_RESOURCE] = str(gpus)
        labels = {HOSTNAME_LABEL: name, **rack_labels, **self._labels(body, path)}
        taints = tuple(
            self._taint(taint, f"{path}.taints[{i}]")
            for i, taint in enumerate(self._items(body, "taints", path, needed=False))
        )
        return NodeDeclaration(name, labels, capacity, self._range(network, index, path), taints)

    def _range(self, network: ipaddress.IPv4Network, index: int, path: str) -> str:
        ranges = 1 << (24 - network.prefixlen)
        if index >= ranges:
            self._wrong(path, f"{network} has room for {ranges} nodes; widen network")
            return str(network)
        return f"{network.network_address + 256 * index}/24"

    def _network(self, value: Any) -> ipaddress.IPv4Network:
        fallback = ipaddress.IPv4Network(DEFAULT_NETWORK)
        try:
            network = ipaddress.IPv4Network(value)
        except (ValueError, TypeError) as error:
            self._wrong("network", f"{value!r} is no IPv4 network such as 127.10.0.0/16: {error}")
            return fallback
        if not network.is_loopback or network.prefixlen > 24:
            self._wrong("network", f"{value} is no part of 127.0.0.0/8 with room for a /24")
            return fallback
        return network

    def _taint(self, raw: Any, path: str) -> NodeTaint:
        body = self._mapping(raw, path, {"key", "value", "effect"})
        effect = self._text(body, "effect", path, "")
        if effect not in _EFFECTS:
            self._wrong(f"{path}.effect", f"{effect!r} is none of {', '.join(_EFFECTS)}")
        key = self._text(body, "key", path, "")
        if not key:
            self._wrong(f"{path}.key", "is missing")
        return NodeTaint(key, effect, self._text(body, "value", path, ""))

    def _name(self, body: dict[str, Any], path: str, seen: dict[str, str]) -> str:
        name = self._text(body, "name", path, "")
        if not _NAME.match(name):
            rule = "lower-case letters, digits, '-' and '.', at most 63"
            self._wrong(f"{path}.name", f"{name!r} is no name: {rule}")
        elif name in seen:
            self._wrong(f"{path}.name", f"{name!r} is taken by {seen[name]}")
        seen[name] = path
        return name

    def _labels(self, body: dict[str, Any], path: str) -> dict[str, str]:
        labels = body.get("labels") or {}
        if not isinstance(labels, dict):
            self._wrong(f"{path}.labels", f"a mapping wanted, found {_shown(labels)}")
            return {}
        for key, value in labels.items():
            if not isinstance(value, str):
                hint = "write it in quotes"
                self._wrong(
                    f"{path}.labels.{key}", f"a string wanted, found {_shown(value)}; {hint}"
                )
        return {str(key): str(value) for key, value in labels.items()}

    def _quantity(self, body: dict[str, Any], key: str, path: str, default: str) -> str:
        value = body.get(key, default)
        try:
            if isinstance(value, bool) or parse_quantity(value) <= 0:
                self._wrong(f"{path}.{key}", f"{value!r} is not above zero")
        except (BadInputError, ArithmeticError) as error:
            self._wrong(f"{path}.{key}", str(error))
        return str(value)

    def _count(self, body: dict[str, Any], key: str, path: str, default: int, most: int) -> int:
        value = body.get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
            self._wrong(f"{path}.{key}", f"a number from 0 to {most} wanted, found {_shown(value)}")
            return default
        return value

    def _text(self, body: dict[str, Any], key: str, path: str, default: str) -> str:
        value = body.get(key, default)
        if isinstance(value, str):
            return value
        dot = "." if path else ""
        self._wrong(f"{path}{dot}{key}", f"a string wanted, found {_shown(value)}")
        return default

    def _items(
        self, body: dict[str, Any], key: str, path: str, *, needed: bool = True
    ) -> list[Any]:
        value = body.get(key) or []
        dot = "." if path else ""
        if not isinstance(value, list):
            self._wrong(f"{path}{dot}{key}", f"a list wanted, found {_shown(value)}")
            return []
        if needed and not value:
            self._wrong(f"{path}{dot}{key}", "at least one wanted, found none")
        return value

    def _mapping(self, raw: Any, path: str, known: set[str]) -> dict[str, Any]:
        if not isinstance(raw, dict):
            self._wrong(path or "(the file)", f"a mapping wanted, found {_shown(raw)}")
            return {}
        dot = "." if path else ""
        for key in raw:
            if key not in known:
                fields = ", ".join(sorted(known))
                self._wrong(f"{path}{dot}{key}", f"unknown field; known are {fields}")
        return raw

    def _wrong(self, path: str, message: str) -> None:
        self.errors.append(f"{path}: {message}")


def _shown(value: Any) -> str:
    return "nothing" if value is None else f"{value!r} ({type(value).__name__})"
