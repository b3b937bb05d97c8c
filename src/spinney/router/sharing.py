"""What routers tell each other, so that several behave as one. There is no leader.

Each router sends every other what changed of its own, soon after it changed: the load it gave
workers, how tenants stand (`spinney.router.turns`), and all the workers that it found dead
(`spinney.router.hearsay`). What a router decides by is its own and what it was told last. A change
is told once: messages are numbered, a receiver that missed one says so, and is sent the whole; one
that comes late or twice changes nothing. Invariants: of a router that has said nothing for
`Limits.peer_expiry_s` nothing is counted, so that one that died holds nothing; a message is taken
as a whole or not at all, and everything in it has a bound.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Protocol
from urllib.parse import urlsplit

import msgspec

from spinney.log import get_logger
from spinney.router.picker import IDLE, Load
from spinney.router.turns import MOST_COUNTED, MOST_REQUESTS, MOST_STANDINGS, Standing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from spinney.router.hearsay import Hearsay
    from spinney.router.limits import Limits
    from spinney.router.load import Faults, Ledger
    from spinney.router.turns import Turns

LOAD_PATH = "/peers/load"
MOST_PEERS = 256
"""Routers that are told, and listened to; further ones are left out."""
MOST_LOADS = 16_384
"""Workers in one message."""
MOST_FAILING = 1024
"""Workers that one router says are dead."""
MOST_TOKENS = 1 << 40
MOST_MODELS = 64
MOST_BESIDE = 64
"""Processes of one router."""

log = get_logger("router")

_Name = Annotated[str, msgspec.Meta(max_length=512)]
_Requests = Annotated[int, msgspec.Meta(ge=0, le=MOST_REQUESTS)]
_Tokens = Annotated[int, msgspec.Meta(ge=0, le=MOST_TOKENS)]
_Count = Annotated[int, msgspec.Meta(ge=0, le=MOST_COUNTED)]
_Standings = Annotated[dict[_Name, Standing], msgspec.Meta(max_length=MOST_STANDINGS)]
_Port = Annotated[int, msgspec.Meta(ge=1, le=65535)]


class Message(msgspec.Struct, array_like=True):
    """What changed of a router's load since message *base*; all of it where that is 0."""

    router: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
    base: _Count
    seq: Annotated[int, msgspec.Meta(ge=1, le=MOST_COUNTED)]
    loads: Annotated[
        dict[_Name, tuple[_Requests, _Tokens, _Requests, _Tokens]],
        msgspec.Meta(max_length=MOST_LOADS),
    ]
    failing: Annotated[list[_Name], msgspec.Meta(max_length=MOST_FAILING)] = []
    """All workers that it found dead and avoids now."""
    turns: Annotated[dict[_Name, _Standings], msgspec.Meta(max_length=MOST_MODELS)] | None = None
    """How tenants stand with each model, all of them; None where nothing changed since *base*."""


class Receipt(msgspec.Struct, array_like=True):
    """The answer to a `Message`."""

    router: Annotated[str, msgspec.Meta(max_length=64)]
    taken: bool
    """Otherwise the whole is wanted."""
    ports: Annotated[list[_Port], msgspec.Meta(max_length=MOST_BESIDE)] = []
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


@dataclass(frozen=True, slots=True)
class Shared:
    """What routers share: each is told to others, and takes in what they tell."""

    ledger: Ledger
    faults: Faults
    turns: Turns
    hearsay: Hearsay


class PeerLoads:
    """What other routers said; counted in what is *shared*."""

    def __init__(self, me: str, shared: Shared, limits: Limits, ports: Iterable[int] = ()) -> None:
        self._me = me
        self._shared = shared
        self._limits = limits
        self._ports = list(ports)
        self._peers: dict[str, _Peer] = {}

    def take(self, body: bytes, now_s: float) -> bytes:
        """Take a message in and return its receipt; raise msgspec.DecodeError."""
        try:
            said = _message.decode(body)
        except RecursionError as error:
            raise msgspec.DecodeError("it is too deep") from error
        return msgspec.json.encode(Receipt(self._me, self._taken(said, now_s), self._ports))

    def _taken(self, said: Message, now_s: float) -> bool:
        peer = self._peers.get(said.router)
        if said.router == self._me or (peer is not None and said.seq <= peer.seq):
            return True
        if said.base and (peer is None or peer.seq != said.base):
            return False
        if peer is None:
            if len(self._peers) >= MOST_PEERS:
                return True
            log.info("another router is heard", router=said.router)
        self._peers[said.router] = _Peer(said.seq, now_s)
        self._count(said, now_s)
        return True

    def _count(self, said: Message, now_s: float) -> None:
        shared, router = self._shared, said.router
        if not said.base:
            shared.ledger.forget_peer(router)
        for worker, load in said.loads.items():
            shared.ledger.set_peer(router, worker, Load(*load))
        shared.hearsay.heard(router, said.failing, now_s)
        whole = said.turns is None and not said.base
        shared.turns.heard(router, {} if whole else said.turns, now_s)
        shared.turns.look()

    def expire(self, now_s: float) -> None:
        """Forget those that have said nothing for too long, and what is too old."""
        shared = self._shared
        for name, peer in tuple(self._peers.items()):
            if now_s - peer.heard_s > self._limits.peer_expiry_s:
                del self._peers[name]
                shared.ledger.forget_peer(name)
                shared.hearsay.heard(name, (), now_s)
                shared.turns.forget(name)
                log.info("another router has gone silent", router=name)
        shared.turns.fade(now_s)
        shared.turns.look()

    def known(self) -> dict[str, float]:
        """Return when each other router was heard last."""
        return {name: peer.heard_s for name, peer in self._peers.items()}


@dataclass(slots=True)
class _Told:
    """What one other router has been told."""

    base: int = 0
    seq: int = 0
    changed: set[str] = field(default_factory=set)
    turns: dict[str, dict[str, Standing]] | None = None
    """How tenants stood, as it was told last."""
    wake: asyncio.Event = field(default_factory=asyncio.Event)


class Sharing:
    """Tells other routers of our load."""

    def __init__(
        self,
        me: str,
        shared: Shared,
        loads: PeerLoads,
        transport: PeerTransport,
        endpoints: Callable[[], Iterable[str]],
        limits: Limits,
    ) -> None:
        """*endpoints* are the URLs of others; our own may be among them."""
        self._me = me
        self._shared = shared
        self._loads = loads
        self._transport = transport
        self._endpoints = endpoints
        self._limits = limits
        self._seq = 0
        """Of the last message to anybody: what was told to one is no news to another."""
        self._told: dict[str, _Told] = {}
        self._also: dict[str, tuple[str, ...]] = {}
        self._ours: set[str] = set()
        shared.ledger.on_own_change(self._changed)
        shared.faults.on_change(self._wake)
        shared.turns.on_change(self._wake)

    def _changed(self, worker: str) -> None:
        for told in self._told.values():
            told.changed.add(worker)
            told.wake.set()

    def _wake(self) -> None:
        for told in self._told.values():
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
        body = self._body(told)
        answer = await self._transport.post(endpoint, LOAD_PATH, body)
        try:
            receipt = _receipt.decode(answer) if answer is not None else None
        except (msgspec.DecodeError, RecursionError):
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

    def _body(self, told: _Told) -> bytes:
        """Return the next message; what it tells counts as told."""
        shared, now_s = self._shared, _now()
        own = shared.ledger.loads()
        names = list(own if not told.base else told.changed)[:MOST_LOADS]
        told.changed.clear()
        self._seq += 1
        told.seq = self._seq
        loads = {name: _numbers(own.get(name, IDLE)) for name in names}
        turns = shared.turns.report(now_s)
        same = told.base and turns == told.turns
        told.turns = turns
        failing = shared.faults.failing(now_s)[:MOST_FAILING]
        return msgspec.json.encode(
            Message(self._me, told.base, told.seq, loads, failing, None if same else turns)
        )


def _numbers(load: Load) -> tuple[int, int, int, int]:
    return load.prefill_requests, load.prefill_tokens, load.decode_requests, load.context_tokens


def _beside(endpoint: str, ports: Iterable[int]) -> tuple[str, ...]:
    """Return the URLs of *ports* on the host of *endpoint*."""
    host = urlsplit(endpoint).hostname or ""
    shown = f"[{host}]" if ":" in host else host
    return tuple(f"http://{shown}:{port}" for port in ports)


def _now() -> float:
    return asyncio.get_running_loop().time()
