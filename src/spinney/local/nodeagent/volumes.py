"""Volumes for processes that share the machine's file system.

A process of a local cluster sees the machine's files, so a volume cannot appear *at* its mount
path. It is a directory of the pod's own, and wherever the pod's command, arguments, environment or
working directory name the mount path, the agent writes the real path. A ``hostPath`` is the path.
What a directory of files cannot stand for (claims, CSI, service account tokens, …) is refused
by name, and the container waits with reason ``VolumeNotSupported``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spinney.local.nodeagent.environment import (
    CONFIG_ERROR,
    CannotStartError,
    Identity,
    Sources,
    field_value,
    resource_value,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from spinney.api.core import Container, Pod

NOT_SUPPORTED = "VolumeNotSupported"
SUPPORTED = ("emptyDir", "configMap", "secret", "downwardAPI", "projected", "hostPath")


@dataclass(frozen=True, slots=True)
class VolumeFiles:
    """One volume: where it is, and the files the agent keeps in it."""

    name: str
    path: Path
    files: Mapping[str, bytes] | None
    """None: a directory whose content is not the agent's."""
    create: bool = True


@dataclass(frozen=True, slots=True)
class Mount:
    """Where a container expects a volume, and where it really is."""

    mount_path: str
    real_path: str


def plan_volumes(
    pod: Pod, container: Container, root: Path, identity: Identity, sources: Sources
) -> tuple[list[VolumeFiles], list[Mount]]:
    """Return the volumes *container* mounts, below *root*, and its mounts.

    Raises CannotStartError for what cannot be given.
    """
    by_name = {str(v.get("name", "")): v for v in pod.spec.volumes}
    volumes: dict[str, VolumeFiles] = {}
    mounts: list[Mount] = []
    for mount in container.volume_mounts:
        name = str(mount.get("name", ""))
        if name not in by_name:
            raise CannotStartError(
                CONFIG_ERROR, f"volumeMount {name!r}: the pod has no such volume"
            )
        plan = _plan(pod, container, by_name[name], root / _safe(name), identity, sources)
        volumes[name] = plan
        inside = str(mount.get("subPath") or "")
        real = plan.path / _safe(inside) if inside else plan.path
        mounts.append(Mount(str(mount.get("mountPath", "")).rstrip("/"), str(real)))
    return list(volumes.values()), mounts


def write_volumes(volumes: list[VolumeFiles]) -> None:
    """Make the directories and write the files; raise CannotStartError for a missing hostPath."""
    for volume in volumes:
        if not volume.create:
            if not volume.path.exists():
                message = f"hostPath {volume.path} of volume {volume.name!r} does not exist"
                raise CannotStartError(CONFIG_ERROR, message)
            continue
        volume.path.mkdir(parents=True, exist_ok=True)
        for name, content in (volume.files or {}).items():
            target = volume.path / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)


def real_paths(text: str, mounts: list[Mount]) -> str:
    """Return *text* with every mount path, where it stands as a whole path, made the real one."""
    moved = {m.mount_path: m.real_path for m in mounts if m.mount_path != m.real_path}
    moved.pop("", None)
    if not moved:
        return text
    longest_first = sorted(moved, key=lambda path: (-len(path), path))
    # One pass, so that a real path is not itself taken for a mount path.
    either = "|".join(re.escape(path) for path in longest_first)
    pattern = rf"(?<![\w./-])({either})(?![\w.-])"
    return re.sub(pattern, lambda found: moved[found[0]], text)


def _plan(
    pod: Pod,
    container: Container,
    volume: Mapping[str, Any],
    path: Path,
    identity: Identity,
    sources: Sources,
) -> VolumeFiles:
    name = str(volume.get("name", ""))
    kind = next((k for k in SUPPORTED if k in volume), None)
    if kind is None:
        found = ", ".join(k for k in volume if k != "name") or "nothing"
        known = ", ".join(SUPPORTED)
        message = f"volume {name!r} is of type {found}; processes can be given {known}"
        raise CannotStartError(NOT_SUPPORTED, message)
    body = volume[kind] or {}
    if kind == "emptyDir":
        return VolumeFiles(name, path, None)
    if kind == "hostPath":
        create = body.get("type") == "DirectoryOrCreate"
        return VolumeFiles(name, Path(str(body.get("path", "/"))), None, create=create)
    parts = body.get("sources") or [] if kind == "projected" else [{kind: body}]
    files: dict[str, bytes] = {}
    for part in parts:
        files.update(_content(pod, container, name, part, identity, sources))
    return VolumeFiles(name, path, files)


def _content(
    pod: Pod,
    container: Container,
    volume: str,
    part: Mapping[str, Any],
    identity: Identity,
    sources: Sources,
) -> dict[str, bytes]:
    if "configMap" in part:
        body = part["configMap"] or {}
        return _items(body, "ConfigMap", body.get("name", ""), sources.config_map)
    if "secret" in part:
        body = part["secret"] or {}
        return _items(body, "Secret", body.get("secretName") or body.get("name"), sources.secret)
    if "downwardAPI" in part:
        items = (part["downwardAPI"] or {}).get("items") or []
        return {
            _safe(item.get("path", "")): _downward(pod, container, item, identity, sources)
            for item in items
        }
    message = f"volume {volume!r} projects {', '.join(part)}; that cannot be given to processes"
    raise CannotStartError(NOT_SUPPORTED, message)


def _items(body: Mapping[str, Any], kind: str, name: str | None, lookup: Any) -> dict[str, bytes]:
    values: Mapping[str, bytes] | None = lookup(name or "")
    if values is None:
        if body.get("optional"):
            return {}
        raise CannotStartError(CONFIG_ERROR, f"{kind} {name!r} not found")
    if not body.get("items"):
        return {_safe(key): value for key, value in values.items()}
    found = {}
    for item in body["items"]:
        key = item.get("key", "")
        if key in values:
            found[_safe(item.get("path", key))] = values[key]
        elif not body.get("optional"):
            raise CannotStartError(CONFIG_ERROR, f"key {key!r} not found in {kind} {name!r}")
    return found


def _downward(
    pod: Pod,
    container: Container,
    item: Mapping[str, Any],
    identity: Identity,
    sources: Sources,
) -> bytes:
    if "fieldRef" in item:
        return field_value(pod, item["fieldRef"].get("fieldPath", ""), identity).encode()
    return resource_value(pod, container, item.get("resourceFieldRef") or {}, sources).encode()


def _safe(path: str) -> str:
    """Refuse a path that leaves the volume."""
    if not path or path.startswith("/") or ".." in Path(path).parts:
        raise CannotStartError(CONFIG_ERROR, f"path {path!r} does not stay inside its volume")
    return path
