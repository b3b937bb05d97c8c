"""What pods claim beside CPU, memory and counted devices: volumes and devices of classes.

A volume that is bound restricts its pods to the nodes that reach it. A claim for devices counts
like a request for as many of its class; once it is allocated it restricts its pods to
the nodes of its devices. Which devices are of a class is read from the driver that the class's
expression names; further conditions on attributes are not evaluated. A claim that several pods
share counts for each of them. Claims that are not known ask for nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from spinney.api.devices import CLAIMED
from spinney.scheduler.shapes import node_terms

if TYPE_CHECKING:
    from collections.abc import Iterator

    from spinney.api.core import Pod
    from spinney.api.devices import DeviceClass, ResourceClaim, ResourceSlice
    from spinney.api.storage import PersistentVolume, PersistentVolumeClaim
    from spinney.scheduler.shapes import NodeTerm

_DRIVER = re.compile(r"""device\.driver\s*==\s*["']([^"']+)["']""")

Terms = tuple["NodeTerm", ...]


@dataclass(slots=True)
class ClaimBook:
    """Volumes, claims and devices as informers report them."""

    volumes: dict[str, Terms] = field(default_factory=dict)
    """Volume to the terms of which a node has to fulfil one; without any, all nodes reach it."""
    bound: dict[str, str] = field(default_factory=dict)
    """Volume claim to its volume."""
    claims: dict[str, tuple[dict[str, int], Terms]] = field(default_factory=dict)
    """Resource claim to devices by class, in thousandths, and to where they are once allocated."""
    drivers: dict[str, frozenset[str]] = field(default_factory=dict)
    """Device class to its drivers; empty: all."""
    slices: dict[str, tuple[str, str, int]] = field(default_factory=dict)
    """Slice to its node, driver and number of devices."""

    def set_volume(self, volume: PersistentVolume) -> None:
        """Add or change a volume."""
        required = volume.spec.node_affinity.get("required") or {}
        self.volumes[volume.name] = node_terms(required.get("nodeSelectorTerms"))

    def set_volume_claim(self, claim: PersistentVolumeClaim) -> None:
        """Add or change a volume claim."""
        self.bound[claim.key] = claim.spec.volume_name

    def set_resource_claim(self, claim: ResourceClaim) -> None:
        """Add or change a resource claim."""
        allocation = claim.status.allocation or {}
        selector = allocation.get("nodeSelector") or {}
        terms = node_terms(selector.get("nodeSelectorTerms"))
        self.claims[claim.key] = (_wanted(claim.spec.devices), terms)

    def set_device_class(self, found: DeviceClass) -> None:
        """Add or change a device class."""
        text = " ".join(str(s.get("cel", {}).get("expression", "")) for s in found.spec.selectors)
        self.drivers[found.name] = frozenset(_DRIVER.findall(text))

    def set_slice(self, found: ResourceSlice) -> None:
        """Add or change what a driver offers on a node."""
        spec = found.spec
        self.slices[found.name] = (spec.node_name, spec.driver, len(spec.devices))

    def devices_on(self, node: str) -> dict[str, int]:
        """Return the devices of *node* in thousandths, by resource."""
        offered = [(driver, count) for at, driver, count in self.slices.values() if at == node]
        if not offered:
            return {}
        return {
            CLAIMED + name: 1000
            * sum(c for driver, c in offered if not drivers or driver in drivers)
            for name, drivers in self.drivers.items()
        }

    def of(self, pod: Pod) -> tuple[tuple[Terms, ...], dict[str, int]]:
        """Return the terms of the volumes and allocated claims of *pod*, and what it claims."""
        terms = [self.volumes.get(self.bound.get(key, ""), ()) for key in volume_claims(pod)]
        devices: dict[str, int] = {}
        for key in resource_claims(pod):
            wanted, where = self.claims.get(key, ({}, ()))
            terms.append(where)
            for name, amount in wanted.items():
                devices[name] = devices.get(name, 0) + amount
        return tuple(found for found in terms if found), devices


def has_claims(pod: Pod) -> bool:
    """Tell whether *pod* mounts volume claims or has resource claims."""
    return bool(pod.spec.resource_claims) or any(True for _ in volume_claims(pod))


def volume_claims(pod: Pod) -> Iterator[str]:
    """Yield the keys of the volume claims of *pod*."""
    for volume in pod.spec.volumes:
        name = (volume.get("persistentVolumeClaim") or {}).get("claimName")
        if not name and volume.get("ephemeral"):
            name = f"{pod.name}-{volume.get('name', '')}"
        if name:
            yield f"{pod.namespace}/{name}"


def resource_claims(pod: Pod) -> Iterator[str]:
    """Yield the keys of the resource claims of *pod*."""
    made = {s.get("name"): s.get("resourceClaimName") for s in pod.status.resource_claim_statuses}
    for claim in pod.spec.resource_claims:
        name = claim.get("resourceClaimName") or made.get(claim.get("name"))
        if name:
            yield f"{pod.namespace}/{name}"


def _wanted(devices: dict[str, Any]) -> dict[str, int]:
    found: dict[str, int] = {}
    for request in devices.get("requests") or ():
        exact = request.get("exactly") or (request.get("firstAvailable") or [request])[0]
        name = exact.get("deviceClassName")
        if name:
            found[CLAIMED + name] = found.get(CLAIMED + name, 0) + 1000 * int(exact.get("count", 1))
    return found
