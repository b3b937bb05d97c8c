"""Which devices of a node a resource claim gets, as a value: the claim's new status.

The same claim on the same state gets the same devices: those of each request in the order in which
the node's drivers list them. What does not work out is said, and nothing is promised in part.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from spinney.errors import SpinneyError
from spinney.scheduler.device_selection import matches

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from spinney.api.core import Pod
    from spinney.api.devices import DeviceClass, ResourceClaim
    from spinney.scheduler.claims import ClaimBook, Device

MAX_USERS = 256
"""Pods that Kubernetes lets share one claim."""


class NoDevicesError(SpinneyError):
    """A claim cannot be allocated for a pod on a node."""


def reserved(
    claim: ResourceClaim,
    pod: Pod,
    node: str,
    book: ClaimBook,
    taken: Collection[tuple[str, str, str]],
    classes: Mapping[str, DeviceClass],
) -> dict[str, Any] | None:
    """Return the status fields that give *claim* to *pod* on *node*; None when it has it already.

    *taken* are devices of other claims. Raises NoDevicesError.
    """
    status = claim.status
    users = status.reserved_for
    if any(user.get("uid") == pod.metadata.uid for user in users):
        return None
    if len(users) >= MAX_USERS:
        raise NoDevicesError(f"claim {claim.key} has {MAX_USERS} pods already, as many as it may")
    user = {"resource": "pods", "name": pod.name, "uid": pod.metadata.uid}
    changes: dict[str, Any] = {"reservedFor": [*users, user]}
    if status.allocation is None:
        changes["allocation"] = _allocation(claim, node, book, taken, classes)
    return changes


def released(claim: ResourceClaim, pod: Pod) -> dict[str, Any] | None:
    """Return the status fields that take *claim* back from *pod*; None when it does not have it.

    A claim that nobody uses any more is not allocated.
    """
    users = [u for u in claim.status.reserved_for if u.get("uid") != pod.metadata.uid]
    if len(users) == len(claim.status.reserved_for):
        return None
    return {"reservedFor": users} | ({} if users else {"allocation": None})


def _allocation(
    claim: ResourceClaim,
    node: str,
    book: ClaimBook,
    taken: Collection[tuple[str, str, str]],
    classes: Mapping[str, DeviceClass],
) -> dict[str, Any]:
    used = set(taken)
    results: list[dict[str, str]] = []
    config: list[dict[str, Any]] = []
    for request in claim.spec.devices.get("requests") or ():
        name, chosen = _chosen(claim, request, node, book, used)
        class_name = _exact(request, name).get("deviceClassName", "")
        for device in chosen:
            used.add(device.known_as())
            driver, pool, device_name = device.known_as()
            results.append({"request": name, "driver": driver, "pool": pool, "device": device_name})
        found = classes.get(class_name)
        config += [
            {"source": "FromClass", "requests": [name], **line}
            for line in (found.spec.config if found else ())
        ]
    config += [{"source": "FromClaim", **line} for line in claim.spec.devices.get("config") or ()]
    fields = [{"key": "metadata.name", "operator": "In", "values": [node]}]
    return {
        "devices": {"results": results} | ({"config": config} if config else {}),
        "nodeSelector": {"nodeSelectorTerms": [{"matchFields": fields}]},
    }


def _chosen(
    claim: ResourceClaim,
    request: Mapping[str, Any],
    node: str,
    book: ClaimBook,
    used: Collection[tuple[str, str, str]],
) -> tuple[str, list[Device]]:
    """Return the first alternative of *request* that the node can fulfil, and its devices."""
    for name, exact in _alternatives(request):
        free = [
            device
            for device in book.of_class(exact.get("deviceClassName", ""), book.node_devices(node))
            if device.known_as() not in used and _selected(exact, device)
        ]
        every = exact.get("allocationMode") == "All"
        count = len(free) if every else int(exact.get("count", 1))
        if count and len(free) >= count:
            return name, free[:count]
    raise NoDevicesError(
        f"claim {claim.key}: request {request.get('name', '')!r} finds too few devices on {node}"
    )


def _alternatives(request: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    name = str(request.get("name", ""))
    for below in request.get("firstAvailable") or ():
        yield f"{name}/{below.get('name', '')}", below
    if not request.get("firstAvailable"):
        yield name, request.get("exactly") or request


def _exact(request: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    return next(exact for found, exact in _alternatives(request) if found == name)


def _selected(exact: Mapping[str, Any], device: Device) -> bool:
    expressions = [(s.get("cel") or {}).get("expression", "") for s in exact.get("selectors") or ()]
    return all(matches(found, device.driver, device.attributes) for found in expressions)
