"""What routers tell each other of the load they gave workers. There is no leader.

Each router sends every other what changed of its own load, soon after it changed; what a router
chooses by is the sum of its own and what it was told. A change is told once: messages are numbered,
a receiver that missed one says so, and is sent the whole. Invariant: of a router that has said
nothing for `Limits.peer_expiry_s` nothing is counted, so that one that died holds no load.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol
from urllib.parse import urlsplit

import msgspec

from spinney.log import get_logger
from spinney.router.picker import IDLE, Load

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from spinney.router.limits import Limits
    from spinney.router.load import Ledger

LOAD_PATH = "/peers/load"
MOST_PEERS = 256
"""Routers that are told, and listened to; further ones are left out."""
MOST_LOADS = 65_536
"""Workers in one message."""

log = get_logger("router")


class Message(msgspec.Struct, array_like=True):
    """What changed of a router's load since message *base*; all of it where that is 0."""

    router: str
    base: int
    seq: int
    loads: dict[str, tuple[int, int, int, int]]


class Receipt(msgspec.Struct, array_like=True):
    """The answer to a `Message`."""

    router: str
    taken: bool
    """Otherwise the whole is wanted."""
    ports: list[int] = []
    """Where other processes of the same router listen, on the same host."""


_message = msgspec.json.Decoder(Message)
_receipt = msgspec.json.Decoder(Receipt)


class PeerTransport(Protocol):
    """Carries messages to other routers."""

    async def post(self, base: str, path: str, body: bytes) -> bytes | None:
        """Return the answer to *body*, None when there is none in time. Raises nothing."""
        ...


@dataclass(slots=True)
class _Peer:
    seq: int
    heard_s: float


class PeerLoads:
    """What other routers said; added to *ledger*."""

    def __init__(self, me: str, ledger: Ledger, limits: Limits, ports: Iterable[int] = ()) -> None:
        self._me = me
        self._ledger = ledger
        self._limits = limits
        self._ports = list(ports)
        self._peers: dict[str, _Peer] = {}

    def take(self, body: bytes, now_s: float) -> bytes:
        """Take a message in and return its receipt; raise msgspec.DecodeError."""
        said = _message.decode(body)
        return msgspec.json.encode(Receipt(self._me, self._taken(said, now_s), self._ports))

    def _taken(self, said: Message, now_s: float) -> bool:
        peer = self._peers.get(said.router)
        if said.router == self._me:
            return True
        if said.base and (peer is None or peer.seq != said.base):
            return False
        if peer is None and len(self._peers) >= MOST_PEERS:
            return True
        if len(said.loads) > MOST_LOADS:
            return True
        if not said.base:
            self._ledger.forget_peer(said.router)
        for worker, load in said.loads.items():
            self._ledger.set_peer(said.router, worker, Load(*(max(0, each) for each in load)))
        self._peers[said.router] = _Peer(said.seq, now_s)
        return True

    def expire(self, now_s: float) -> None:
        """Forget those that have said nothing for too long."""
        for name, peer in tuple(self._peers.items()):
            if now_s - peer.heard_s > self._limits.peer_expiry_s:
                del self._peers[name]
                self._ledger.forget_peer(name)
                log.info("another router has gone silent", router=name)

    def known(self) -> dict[str, float]:
        """Return when each other router was heard last."""
        return {name: peer.heard_s for name, peer in self._peers.items()}


@dataclass(slots=True)
class _Told:
    """What one other router has been told."""

    base: int = 0
    seq: int = 0
    changed: set[str] = field(default_factory=set)
    wake: asyncio.Event = field(default_factory=asyncio.Event)


class Sharing:
    """Tells other routers of our load."""

    def __init__(
        self,
        me: str,
        ledger: Ledger,
        loads: PeerLoads,
        transport: PeerTransport,
        endpoints: Callable[[], Iterable[str]],
        limits: Limits,
    ) -> None:
        """*endpoints* are the URLs of others; our own may be among them."""
        self._me = me
        self._ledger = ledger
        self._loads = loads
        self._transport = transport
        self._endpoints = endpoints
        self._limits = limits
        self._told: dict[str, _Told] = {}
        self._also: dict[str, tuple[str, ...]] = {}
        self._ours: set[str] = set()
        ledger.on_own_change(self._changed)

    def _changed(self, worker: str) -> None:
        for told in self._told.values():
            told.changed.add(worker)
            told.wake.set()

    async def run(self) -> None:
        """Tell others until cancelled."""
        tasks: dict[str, asyncio.Task[None]] = {}
        async with asyncio.TaskGroup() as group:
            while True:
                self._loads.expire(_now())
                wanted = self._wanted()
                for gone in tasks.keys() - wanted:
                    tasks.pop(gone).cancel()
                    self._told.pop(gone, None)
                    self._also.pop(gone, None)
                for endpoint in wanted - tasks.keys():
                    told = self._told[endpoint] = _Told()
                    tasks[endpoint] = group.create_task(self._tell(endpoint, told))
                await asyncio.sleep(self._limits.peer_expiry_s / 4)

    def _wanted(self) -> set[str]:
        named = dict.fromkeys(self._endpoints())
        for endpoint in tuple(named):
            named.update(dict.fromkeys(self._also.get(endpoint, ())))
        return set([each for each in named if each not in self._ours][:MOST_PEERS])

    async def _tell(self, endpoint: str, told: _Told) -> None:
        """Send what changes as it changes, and a sign of life where nothing does."""
        while True:
            told.wake.clear()
            if not await self._send(endpoint, told):
                told.base = 0
            await asyncio.sleep(self._limits.share_every_s)
            try:
                async with asyncio.timeout(self._limits.peer_expiry_s / 4):
                    await told.wake.wait()
            except TimeoutError:
                continue

    async def _send(self, endpoint: str, told: _Told) -> bool:
        """Return whether the other router knows our load as it was before the call."""
        own = self._ledger.loads()
        names = own.keys() if not told.base else tuple(told.changed)
        told.changed.clear()
        told.seq += 1
        loads = {name: _numbers(own.get(name, IDLE)) for name in names}
        body = msgspec.json.encode(Message(self._me, told.base, told.seq, loads))
        answer = await self._transport.post(endpoint, LOAD_PATH, body)
        try:
            receipt = _receipt.decode(answer) if answer is not None else None
        except msgspec.DecodeError:
            receipt = None
        if receipt is None:
            return False
        if receipt.router == self._me:
            self._ours.add(endpoint)
            return True
        self._also[endpoint] = _beside(endpoint, receipt.ports)
        told.base = told.seq if receipt.taken else 0
        if not receipt.taken:
            told.wake.set()
        return True


def _numbers(load: Load) -> tuple[int, int, int, int]:
    return load.prefill_requests, load.prefill_tokens, load.decode_requests, load.context_tokens


def _beside(endpoint: str, ports: Iterable[int]) -> tuple[str, ...]:
    """Return the URLs of *ports* on the host of *endpoint*."""
    host = urlsplit(endpoint).hostname or ""
    shown = f"[{host}]" if ":" in host else host
    return tuple(f"http://{shown}:{port}" for port in ports)


def _now() -> float:
    return asyncio.get_running_loop().time()
