"""Addresses for pods: each its own, in its node's /24 of 127.0.0.0/8.

Linux answers on every address of that network without any set-up, so two pods can listen on the
same port. An address that was given back is the last to be handed out again: clients of a dead
pod find nobody, not another pod.
"""

from __future__ import annotations

import ipaddress
from collections import deque
from typing import TYPE_CHECKING

from spinney.errors import SpinneyError

if TYPE_CHECKING:
    from collections.abc import Iterable


class AddressesExhaustedError(SpinneyError):
    """Every address of a node's range belongs to a live pod."""


class AddressRange:
    """The pod addresses of one node; no address is held twice."""

    def __init__(self, pod_range: str) -> None:
        network = ipaddress.IPv4Network(pod_range)
        hosts = [str(host) for host in network.hosts()]
        self._range = pod_range
        self._all = frozenset(hosts[1:])
        self._free = deque(hosts[1:])  # The first is the node's own.
        self._held: set[str] = set()

    def skip_past(self, used: Iterable[str]) -> None:
        """Put addresses that were in use before this start at the end of the queue."""
        for address in used:
            if address in self._all and address not in self._held:
                self._free.remove(address)
                self._free.append(address)

    def acquire(self, wanted: str = "") -> str:
        """Return an address that no live pod has: *wanted* if it is free, else the longest unused.

        Raises AddressesExhaustedError.
        """
        if wanted in self._all and wanted not in self._held:
            self._free.remove(wanted)
            self._held.add(wanted)
            return wanted
        if not self._free:
            held = len(self._held)
            raise AddressesExhaustedError(f"{self._range}: all {held} addresses belong to pods")
        address = self._free.popleft()
        self._held.add(address)
        return address

    def release(self, address: str) -> None:
        """Give *address* back."""
        if address in self._held:
            self._held.discard(address)
            self._free.append(address)
