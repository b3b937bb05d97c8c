"""Volumes and claims to them, as far as they say which nodes reach them."""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec

from spinney.api.meta import ApiStruct, KubeObject
from spinney.api.resource import Resource


class PersistentVolumeSpec(ApiStruct):
    """Where a volume can be reached."""

    node_affinity: dict[str, Any] = {}


class PersistentVolume(KubeObject):
    """Storage that exists."""

    RESOURCE: ClassVar[Resource] = Resource(
        "", "v1", "PersistentVolume", "persistentvolumes", namespaced=False, short_names=("pv",)
    )
    spec: PersistentVolumeSpec = msgspec.field(default_factory=PersistentVolumeSpec)


class PersistentVolumeClaimSpec(ApiStruct):
    """Which volume a claim is bound to."""

    volume_name: str = ""


class PersistentVolumeClaim(KubeObject):
    """What pods mount."""

    RESOURCE: ClassVar[Resource] = Resource(
        "", "v1", "PersistentVolumeClaim", "persistentvolumeclaims", short_names=("pvc",)
    )
    spec: PersistentVolumeClaimSpec = msgspec.field(default_factory=PersistentVolumeClaimSpec)
