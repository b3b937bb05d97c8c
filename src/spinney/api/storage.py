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


SELECTED_NODE = "volume.kubernetes.io/selected-node"
"""Annotation of a volume claim: the node for whose pod a volume is to be made."""


class StorageClass(KubeObject):
    """How volumes are made."""

    RESOURCE: ClassVar[Resource] = Resource(
        "storage.k8s.io", "v1", "StorageClass", "storageclasses", False, short_names=("sc",)
    )
    provisioner: str = ""
    volume_binding_mode: str = "Immediate"


class PersistentVolumeClaimSpec(ApiStruct):
    """Which volume a claim is bound to, and how one is made for it."""

    volume_name: str = ""
    storage_class_name: str = ""


class PersistentVolumeClaim(KubeObject):
    """What pods mount."""

    RESOURCE: ClassVar[Resource] = Resource(
        "", "v1", "PersistentVolumeClaim", "persistentvolumeclaims", short_names=("pvc",)
    )
    spec: PersistentVolumeClaimSpec = msgspec.field(default_factory=PersistentVolumeClaimSpec)
