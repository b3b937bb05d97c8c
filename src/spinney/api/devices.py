"""``resource.k8s.io``: devices that nodes offer and pods claim (dynamic resource allocation)."""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec

from spinney.api.meta import ApiStruct, KubeObject
from spinney.api.resource import Resource

GROUP = "resource.k8s.io"

CLAIMED = "deviceclass.resource.k8s.io/"
"""Prefix of the resource that devices of a class are counted in."""
PROTECTION = "resource.kubernetes.io/delete-protection"
"""Finalizer of an allocated claim, which its controller takes away when nobody uses it."""


class DeviceClassSpec(ApiStruct):
    """Which devices are of the class, and what their driver is to be told."""

    selectors: list[dict[str, Any]] = []
    config: list[dict[str, Any]] = []


class DeviceClass(KubeObject):
    """A kind of devices."""

    RESOURCE: ClassVar[Resource] = Resource(
        GROUP, "v1", "DeviceClass", "deviceclasses", namespaced=False
    )
    spec: DeviceClassSpec = msgspec.field(default_factory=DeviceClassSpec)


class ResourceSliceSpec(ApiStruct):
    """Devices of one driver on one node."""

    driver: str = ""
    pool: dict[str, Any] = {}
    node_name: str = ""
    devices: list[dict[str, Any]] = []


class ResourceSlice(KubeObject):
    """What a driver offers."""

    RESOURCE: ClassVar[Resource] = Resource(
        GROUP, "v1", "ResourceSlice", "resourceslices", namespaced=False
    )
    spec: ResourceSliceSpec = msgspec.field(default_factory=ResourceSliceSpec)


class ResourceClaimSpec(ApiStruct):
    """What a claim asks for: ``devices.requests``."""

    devices: dict[str, Any] = {}


class ResourceClaimStatus(ApiStruct):
    """What a claim got: ``allocation`` with a ``nodeSelector``."""

    allocation: dict[str, Any] | None = None
    reserved_for: list[dict[str, Any]] = []
    """The pods that use it: ``resource``, ``name``, ``uid``."""


class ResourceClaim(KubeObject):
    """Devices that pods use."""

    RESOURCE: ClassVar[Resource] = Resource(GROUP, "v1", "ResourceClaim", "resourceclaims")
    spec: ResourceClaimSpec = msgspec.field(default_factory=ResourceClaimSpec)
    status: ResourceClaimStatus = msgspec.field(default_factory=ResourceClaimStatus)


class ResourceClaimTemplateSpec(ApiStruct):
    """Metadata and spec of the claims that are made from it."""

    metadata: dict[str, Any] = {}
    spec: dict[str, Any] = {}


class ResourceClaimTemplate(KubeObject):
    """What claims are made from."""

    RESOURCE: ClassVar[Resource] = Resource(
        GROUP, "v1", "ResourceClaimTemplate", "resourceclaimtemplates"
    )
    spec: ResourceClaimTemplateSpec = msgspec.field(default_factory=ResourceClaimTemplateSpec)
