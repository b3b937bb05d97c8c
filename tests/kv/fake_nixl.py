"""NIXL's agent as far as it is used here, between agents of one process; bytes move for real.

It stands in where NIXL is not installed. Like the real one without its progress thread, a read goes
on only while both sides see to it: the serving side by asking for notifications, the reading one by
asking for the state. Memory that was not registered when the metadata was made cannot be read.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar
from weakref import WeakValueDictionary

if TYPE_CHECKING:
    from collections.abc import Iterator

Region = tuple[int, int]
"""An address and how many bytes from there."""


class FakeNixlError(Exception):
    """What the agent does not do."""


def nixl_agent_config(**options: Any) -> dict[str, Any]:
    return options


@dataclass(eq=False)
class Transfer:
    """A read; *begun* is how often the serving side had looked when it was started."""

    here: Region
    there: Region
    source: FakeAgent
    begun: int = 0
    state: str = "NEW"


class FakeAgent:
    """One side. *cancels*: whether transfers that are under way can be released."""

    running: ClassVar[WeakValueDictionary[str, FakeAgent]] = WeakValueDictionary()

    def __init__(self, name: str, config: dict[str, Any]) -> None:
        assert not config["enable_prog_thread"], "nothing else asks for progress"
        self.name = name
        self.cancels = True
        self.known: dict[str, set[Region]] = {}
        self._registered: list[Region] = []
        self._looks = 0
        self.running[name] = self

    def register_memory(self, blocks: list[tuple[int, int, int, str]], kind: str) -> list[Region]:
        assert kind == "DRAM"
        found = [(address, size) for address, size, _, _ in blocks]
        self._registered += found
        return found

    def deregister_memory(self, regions: list[Region]) -> None:
        for region in regions:
            self._registered.remove(region)

    def get_agent_metadata(self) -> bytes:
        return json.dumps([self.name, self._registered]).encode()

    def add_remote_agent(self, metadata: bytes) -> None:
        name, regions = json.loads(metadata)
        if name == self.name:
            raise FakeNixlError(f"{name} is this agent")
        self.known.setdefault(name, set()).update((at, size) for at, size in regions)

    def remove_remote_agent(self, name: str) -> None:
        del self.known[name]

    def get_new_notifs(self) -> dict[str, list[bytes]]:
        self._looks += 1
        return {}

    def get_xfer_descs(self, blocks: list[tuple[int, int, int]], kind: str) -> Region:
        assert kind == "DRAM"
        ((address, size, _),) = blocks
        return address, size

    def initialize_xfer(self, way: str, here: Region, there: Region, name: str) -> Transfer:
        assert way == "READ"
        if not _covered(here, self._registered):
            raise FakeNixlError("memory here is not registered")
        if not _covered(there, self.known.get(name, ())):
            raise FakeNixlError(f"{name} has no such memory")
        return Transfer(here, there, self.running[name])

    def transfer(self, transfer: Transfer) -> str:
        transfer.state, transfer.begun = "PROC", transfer.source._looks
        return transfer.state

    def check_xfer_state(self, transfer: Transfer) -> str:
        if transfer.state == "PROC" and transfer.source._looks > transfer.begun:
            transfer.state = "ERR"
            if _covered(transfer.there, transfer.source._registered):
                ctypes.memmove(transfer.here[0], transfer.there[0], transfer.here[1])
                transfer.state = "DONE"
        return transfer.state

    def release_xfer_handle(self, transfer: Transfer) -> None:
        if transfer.state == "PROC" and not self.cancels:
            raise FakeNixlError("it is under way")
        transfer.state = "ERR"


def _covered(wanted: Region, regions: Any) -> bool:
    address, size = wanted
    return any(at <= address and address + size <= at + length for at, length in regions)


@contextlib.contextmanager
def unless_installed() -> Iterator[None]:
    """Let ``nixl`` be this module's, in this context, where there is no other."""
    if find_spec("nixl") is None:
        with in_its_place():
            yield
    else:
        yield


@contextlib.contextmanager
def in_its_place() -> Iterator[None]:
    """Let ``nixl`` be this module's, in this context."""
    before = {name: sys.modules.get(name) for name in ("nixl", "nixl._api")}
    package, api = ModuleType("nixl"), ModuleType("nixl._api")
    vars(api).update(nixl_agent=FakeAgent, nixl_agent_config=nixl_agent_config)
    vars(package)["_api"] = api
    sys.modules |= {"nixl": package, "nixl._api": api}
    try:
        yield
    finally:
        for name, module in before.items():
            del sys.modules[name]
            if module is not None:
                sys.modules[name] = module
