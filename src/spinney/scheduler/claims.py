"""What pods claim beside CPU, memory and counted devices: volumes and devices of classes.

A volume that is bound restricts its pods to the nodes that reach it; one that is being made for a
node restricts them to that node. A claim for devices counts like a request for as many of its
class; once it is allocated it restricts its pods to the nodes of its devices, and counts for the
first of them only. Claims that are not known ask for nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from spinney.api.devices import CLAIMED
from spinney.api.storage import SELECTED_NODE
from spinney.scheduler.affinity import Expression, NodeTerm, node_terms
from spinney.scheduler.device_selection import matches

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from spinney.api.core import Pod
    from spinney.api.devices import DeviceClass, ResourceClaim, ResourceSlice
    from spinney.api.storage import PersistentVolume, PersistentVolumeClaim, StorageClass

Terms = tuple["NodeTerm", ...]

WAIT_FOR_FIRST_CONSUMER = "WaitForFirstConsumer"
_BY_HAND = "kubernetes.io/no-provisioner"


@dataclass(frozen=True, slots=True)
class Device:
    """One device that a driver offers on a node."""

    driver: str
    pool: str
    name: str
    attributes: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def known_as(self) -> tuple[str, str, str]:
        """Return what identifies it in an allocation."""
        return (self.driver, self.pool, self.name)


@dataclass(frozen=True, slots=True)
class DevicesClaimed:
    """A resource claim."""

    wanted: Mapping[str, int] = field(default_factory=dict)
    """Devices by class, in thousandths."""
    where: Terms = ()
    """Where they are, once they are allocated."""
    devices: frozenset[tuple[str, str, str]] = frozenset()
    """Which they are."""
    users: tuple[str, ...] = ()
    """The uids of its pods."""

    @property
    def first_user(self) -> str:
        """The uid of the pod that they count for; empty: all of its pods."""
        return self.users[0] if self.users else ""


@dataclass(slots=True)
class ClaimBook:
    """Volumes, claims and devices as informers report them."""

    volumes: dict[str, Terms] = field(default_factory=dict)
    """Volume to the terms of which a node has to fulfil one; without any, all nodes reach it."""
    bound: dict[str, str] = field(default_factory=dict)
    """Volume claim to its volume."""
    selected: dict[str, str] = field(default_factory=dict)
    """Volume claim without a volume to the node for which one is being made."""
    storage: dict[str, str] = field(default_factory=dict)
    """Volume claim to its storage class."""
    delayed: set[str] = field(default_factory=set)
    """Storage classes that make a volume when a pod that uses it has a node."""
    claims: dict[str, DevicesClaimed] = field(default_factory=dict)
    """By key of the resource claim."""
    classes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Device class to the expressions that its devices fulfil."""
    slices: dict[str, tuple[str, tuple[Device, ...]]] = field(default_factory=dict)
    """Slice to its node and devices."""

    def set_volume(self, volume: PersistentVolume) -> None:
        """Add or change a volume."""
        required = volume.spec.node_affinity.get("required") or {}
        self.volumes[volume.name] = node_terms(required.get("nodeSelectorTerms"))

    def set_volume_claim(self, claim: PersistentVolumeClaim) -> bool:
        """Add or change a volume claim; return whether that changes anything."""
        new = (
            claim.spec.volume_name,
            claim.spec.storage_class_name,
            claim.metadata.annotations.get(SELECTED_NODE, ""),
        )
        books = (self.bound, self.storage, self.selected)
        old = tuple(book.get(claim.key) for book in books)
        for book, value in zip(books, new, strict=True):
            book[claim.key] = value
        return old != new

    def set_storage_class(self, found: StorageClass) -> None:
        """Add or change a storage class."""
        self.delayed.discard(found.name)
        if found.volume_binding_mode == WAIT_FOR_FIRST_CONSUMER and found.provisioner != _BY_HAND:
            self.delayed.add(found.name)

    def set_resource_claim(self, claim: ResourceClaim) -> bool:
        """Add or change a resource claim; return whether that changes anything."""
        allocation = claim.status.allocation or {}
        selector = allocation.get("nodeSelector") or {}
        users = claim.status.reserved_for
        old = self.claims.get(claim.key)
        new = self.claims[claim.key] = DevicesClaimed(
            _wanted(claim.spec.devices),
            node_terms(selector.get("nodeSelectorTerms")),
            allocated_devices(allocation),
            tuple(str(user.get("uid", "")) for user in users),
        )
        return old != new

    def set_device_class(self, found: DeviceClass) -> None:
        """Add or change a device class."""
        self.classes[found.name] = _expressions(found.spec.selectors)

    def set_slice(self, found: ResourceSlice) -> None:
        """Add or change what a driver offers on a node."""
        spec = found.spec
        pool = str(spec.pool.get("name") or spec.node_name)
        self.slices[found.name] = (
            spec.node_name,
            tuple(
                Device(spec.driver, pool, str(raw.get("name", "")), raw.get("attributes") or {})
                for raw in spec.devices
            ),
        )

    def remove(self, key: str) -> None:
        """Forget a volume, volume claim or resource claim."""
        for found in (self.volumes, self.bound, self.storage, self.selected, self.claims):
            found.pop(key, None)

    def remove_devices(self, name: str) -> None:
        """Forget a device class or a slice."""
        self.classes.pop(name, None)
        self.slices.pop(name, None)

    def node_devices(self, node: str) -> list[Device]:
        """Return all devices of *node*."""
        return [device for at, devices in self.slices.values() if at == node for device in devices]

    def of_class(self, name: str, devices: list[Device]) -> list[Device]:
        """Return those of *devices* that are of the class *name*."""
        expressions = self.classes.get(name)
        if expressions is None:
            return []
        return [d for d in devices if all(matches(e, d.driver, d.attributes) for e in expressions)]

    def devices_on(self, node: str) -> dict[str, int]:
        """Return the devices of *node* in thousandths, by resource."""
        offered = self.node_devices(node)
        if not offered:
            return {}
        return {CLAIMED + name: 1000 * len(self.of_class(name, offered)) for name in self.classes}

    def settled(self, key: str) -> bool:
        """Tell whether the resource claim counts for a pod that it is reserved for."""
        return bool(self.claims.get(key, DevicesClaimed()).first_user)

    def of(self, pod: Pod, paid: Collection[str] = ()) -> tuple[tuple[Terms, ...], dict[str, int]]:
        """Return the terms of the volumes and allocated claims of *pod*, and what it claims.

        The claims *paid* count for another pod.
        """
        terms = [self._reach(key) for key in volume_claims(pod)]
        devices: dict[str, int] = {}
        for key in resource_claims(pod):
            claim = self.claims.get(key, DevicesClaimed())
            terms.append(claim.where)
            if key not in paid and claim.first_user in ("", pod.metadata.uid):
                for name, amount in claim.wanted.items():
                    devices[name] = devices.get(name, 0) + amount
        return tuple(found for found in terms if found), devices

    def exist_for(self, pod: Pod) -> bool:
        """Tell whether all resource claims of *pod* are there, those made for it included."""
        found = list(resource_claims(pod))
        return len(found) == len(pod.spec.resource_claims) and all(k in self.claims for k in found)

    def _reach(self, key: str) -> Terms:
        volume, node = self.bound.get(key, ""), self.selected.get(key, "")
        if volume or not node:
            return self.volumes.get(volume, ())
        return (NodeTerm(fields=(Expression("metadata.name", "In", (node,)),)),)

    def held_alone(self, pod: Pod) -> bool:
        """Tell whether a claim of *pod* is allocated for it and for nobody else."""
        mine = (pod.metadata.uid,)
        found = (self.claims.get(key, DevicesClaimed()) for key in resource_claims(pod))
        return any(claim.devices and claim.users == mine for claim in found)

    def awaits_node(self, key: str) -> bool:
        """Tell whether the volume claim gets a volume only once a node is chosen for it."""
        return not self.bound.get(key, "") and self.storage.get(key, "") in self.delayed


def allocated_devices(allocation: Mapping[str, Any]) -> frozenset[tuple[str, str, str]]:
    """Return which devices an allocation consists of."""
    results = (allocation.get("devices") or {}).get("results") or ()
    return frozenset((r.get("driver", ""), r.get("pool", ""), r.get("device", "")) for r in results)


def _expressions(selectors: list[dict[str, Any]]) -> tuple[str, ...]:
    return tuple(str((found.get("cel") or {}).get("expression", "")) for found in selectors)


def has_claims(pod: Pod) -> bool:
    """Tell whether *pod* mounts volume claims or has resource claims."""
    return bool(pod.spec.resource_claims) or any(True for _ in volume_claims(pod))


def claims_of(pod: Pod) -> list[str]:
    """Return the keys of all claims of *pod*."""
    return [*volume_claims(pod), *resource_claims(pod)]


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
