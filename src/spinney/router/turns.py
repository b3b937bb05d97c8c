"""What routers let in together: tenants' limits, workers' room and fair shares over all of them.

Each router tells the others how many requests of each tenant it runs, how many wait, and how much
work it let in. From that every router computes the same division of what may run (`quotas`), and
keeps to its own part. A router's own wishes count only once all have heard of them
(`Limits.settle_s`), so that two that are asked at once do not both take what is free. Invariants:
where all know the same, the parts add up to the limit and no more; a router that says nothing for
`Limits.peer_expiry_s` is counted no more, and one that is alone has all of it.

A router that claims more than there is can hold others up, but not keep them out: who was held up
for `PATIENCE_S` has its even part whatever others say. Nor can one claim more work than the one
it tells does itself: shares bend as far as one more router of that size would bend them.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from dataclasses import dataclass, field
from math import exp
from typing import TYPE_CHECKING, Annotated, NamedTuple, Protocol
from zlib import crc32

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from spinney.router.limits import Limits

MOST_STANDINGS = 1024
"""Tenants, counted once for each model, in what one router says; the busiest come first."""
MANY_STANDINGS = 100
"""With so many in a report, reports take twice the time to be made and heard, and so on."""
MOST_PAST = 1024
"""Words of other routers that are remembered after they said something else."""
MOST_REQUESTS = 1 << 20
"""Of one tenant, or at one worker, that one router can say it has."""
MOST_COUNTED = 1 << 53
"""Where counters end."""
MOST_TENANTS = 4096
"""Tenants that are remembered at one door, besides those that run."""
PATIENCE_S = 10.0
"""After it a router has its even part of a limit, whatever others say that they run."""
MEMORY_S = 2.0
"""Work that other routers let in counts for an e-th of itself after so long."""
LEAST_WORK = 1.0
"""Remembered work below this is forgotten."""


_Requests = Annotated[int, msgspec.Meta(ge=0, le=MOST_REQUESTS)]
_Count = Annotated[int, msgspec.Meta(ge=0, le=MOST_COUNTED)]
_Work = Annotated[float, msgspec.Meta(ge=0, le=float(MOST_COUNTED))]


class Standing(NamedTuple):
    """How one tenant stands with one model at one router."""

    running: _Requests
    waiting: _Requests
    ended: _Count
    """Requests that ended since it stood there last with none."""
    work: _Work
    """What was let in since then, in the costs of the queue."""


class Wish(NamedTuple):
    """What one router runs, would run, and has run, of one tenant or one model."""

    running: int = 0
    wanted: int = 0
    """Running and waiting."""
    ended: int = 0


NOTHING = Wish()


def quotas(limit: int, wanted: Mapping[str, int], turn: int) -> dict[str, int]:
    """Return how many of *limit* each router may run; they add up to *limit*.

    Those that want less than an even part have what they want, the others share the rest; what
    nobody wants is divided evenly. What cannot be divided goes round with *turn*.
    """
    order, count = _in_turn(wanted, turn), len(wanted)
    spare = limit - sum(wanted.values())
    if spare >= 0:
        given = dict(wanted)
        unfed = order
    else:
        given, spare = {}, limit
        for at, name in enumerate(sorted(order, key=lambda each: wanted[each])):
            if wanted[name] > spare // (count - at):
                break
            given[name] = wanted[name]
            spare -= wanted[name]
        unfed = [name for name in order if name not in given]
    for at, name in enumerate(unfed):
        given[name] = given.get(name, 0) + spare // len(unfed) + (at < spare % len(unfed))
    return given


def may_run(me: str, limit: int, wishes: Mapping[str, Wish], turn: int) -> bool:
    """Whether one more may run at router *me*: it has not its part yet, and there is a place.

    While a router still runs more than its part, there are fewer places than are missing: they go
    to those whose turn is first.
    """
    parts = quotas(limit, {name: wish.wanted for name, wish in wishes.items()}, turn)
    places = limit - sum(wish.running for wish in wishes.values())
    for name in _in_turn(wishes, turn):
        wish = wishes[name]
        if name == me:
            return wish.running < parts[me] and places > 0
        places -= max(0, min(parts[name], wish.wanted) - wish.running)
    raise AssertionError(f"{me} is one of them")


def _in_turn(names: Collection[str], turn: int) -> list[str]:
    ordered = sorted(names)
    first = turn % len(ordered)
    return ordered[first:] + ordered[:first]


@dataclass(slots=True)
class Fading:
    """A sum whose parts count for less the older they are."""

    value: float = 0.0
    at_s: float = 0.0

    def now(self, now_s: float) -> float:
        """Return what it is now."""
        return self.value * exp(min(0.0, (self.at_s - now_s) / MEMORY_S))

    def add(self, more: float, now_s: float) -> None:
        """Add *more*."""
        self.value, self.at_s = self.now(now_s) + more, now_s


@dataclass(slots=True)
class _Said:
    """What one router said last, added up."""

    models: dict[str, Wish] = field(default_factory=dict)
    tenants: dict[str, Wish] = field(default_factory=dict)
    work: dict[tuple[str, str], float] = field(default_factory=dict)
    counted: dict[str, Fading] = field(default_factory=dict)
    """Its work for each model that was counted."""

    def size(self) -> int:
        """Return how many tenants it spoke of."""
        return len(self.tenants)

    def of(self, kind: str, name: str) -> Wish:
        """Return what it said of one model or one tenant."""
        return (self.models if kind == "model" else self.tenants).get(name, NOTHING)


@dataclass(slots=True)
class _Held:
    """Since when requests of one tenant or model were held up, and when that was seen last."""

    since_s: float
    seen_s: float


class Waiters(Protocol):
    """The door in front of one model's workers, as routers look at it together."""

    def look(self) -> None:
        """Let in who may be let in now."""
        ...

    def lines(self) -> dict[str, int]:
        """Return how many wait, by tenant."""
        ...

    def worked_elsewhere(self, tenant: str, work: float, most: float) -> None:
        """Note that another router let in *work* of *tenant*, of which *most* counts now."""
        ...


class Door:
    """What one router let in to the workers of one model."""

    def __init__(self, turns: Turns, model: str) -> None:
        self._turns = turns
        self.model = model
        self.waiters: Waiters | None = None
        self.running: Counter[str] = Counter()
        self.ended: Counter[str] = Counter()
        self.work: dict[str, float] = {}
        self.own = Fading()
        self.elsewhere: dict[str, Fading] = {}

    def room(self, running: int, capacity: int) -> bool:
        """Whether one more request may run where *running* do, of the *capacity* of all routers."""
        return self._turns.model_has_room(self, running, capacity)

    def may(self, tenant: str) -> bool:
        """Whether one more request of *tenant* may run."""
        return self._turns.tenant_has_room(tenant)

    def changed(self) -> None:
        """Note that others wait than before."""
        self._turns.changed()

    def let_in(self, tenant: str, cost: float) -> None:
        """Count a request that runs from now on."""
        self.running[tenant] += 1
        self.work[tenant] = self.work.get(tenant, 0.0) + cost
        self._turns.let_in(tenant)
        if self._turns.shared:
            self.own.add(cost, self._turns.now())

    def left(self, tenant: str) -> None:
        """Count a request that ran as ended."""
        self.running[tenant] -= 1
        self.ended[tenant] += 1
        if len(self.work) > MOST_TENANTS:
            self.standings()
        self._turns.left(tenant)

    def look(self) -> None:
        """Let in who may be let in now."""
        if self.waiters is not None:
            self.waiters.look()

    def standings(self) -> dict[str, Standing]:
        """Return how each tenant stands that runs or waits, and forget the others."""
        lines = self.waiters.lines() if self.waiters else {}
        gone = [name for name in self.work if not self.running[name] and name not in lines]
        found = {
            name: Standing(
                self.running[name],
                lines.get(name, 0),
                self.ended[name],
                round(self.work.get(name, 0.0), 3),
            )
            for name in {*self.work, *lines}
        }
        for name in gone:
            del self.work[name], self.running[name], self.ended[name]
        return found

    def wish(self) -> Wish:
        """Return what this router runs and would run."""
        waiting = sum(self.waiters.lines().values()) if self.waiters else 0
        running = self.running.total()
        return Wish(running, running + waiting, self.ended.total())

    def wish_of(self, tenant: str) -> Wish:
        """Return what it runs and would run of *tenant*."""
        waiting = self.waiters.lines().get(tenant, 0) if self.waiters else 0
        running = self.running[tenant]
        return Wish(running, running + waiting, self.ended[tenant])

    def worked_elsewhere(self, tenant: str, work: float, now_s: float) -> None:
        """Note that another router let in *work* of *tenant*."""
        fading = self.elsewhere.setdefault(tenant, Fading())
        fading.add(work, now_s)
        if self.waiters is not None:
            self.waiters.worked_elsewhere(tenant, work, fading.value)

    def fade(self, now_s: float) -> None:
        """Have what others did count for what it does now."""
        for tenant, fading in tuple(self.elsewhere.items()):
            left = fading.now(now_s)
            if left < LEAST_WORK:
                del self.elsewhere[tenant]
                left = 0.0
            if self.waiters is not None:
                self.waiters.worked_elsewhere(tenant, 0.0, left)


class Turns:
    """What this router and others let in, of all models."""

    def __init__(self, me: str, limits: Limits, now: Callable[[], float]) -> None:
        """*me* is this router's name among others; *now* tells seconds, of any origin."""
        self._me = me
        self._limits = limits
        self._named = dict(limits.tenant_limits)
        self.now = now
        self._doors: dict[str, Door] = {}
        self._running: Counter[str] = Counter()
        """Of each tenant, over all models."""
        self._peers: dict[str, _Said] = {}
        self._known = _Said()
        """What others have heard of this router by now."""
        self._told: deque[tuple[float, _Said]] = deque()
        """What they are told and have not heard for sure, and when they were told."""
        self._reported: tuple[float, dict[str, dict[str, Standing]]] = (-1e9, {})
        """When others were told last, and what."""
        self._past: deque[tuple[float, str, _Said]] = deque(maxlen=MOST_PAST)
        """What other routers said before, and when it ceased to be so."""
        self._held: dict[tuple[str, str], _Held] = {}
        self._callbacks: list[Callable[[], None]] = []
        self._timer: asyncio.TimerHandle | None = None

    @property
    def needed(self) -> bool:
        """Whether turns depend on more than the room of one router."""
        return bool(self._callbacks or self._named or self._limits.tenant_limit)

    @property
    def shared(self) -> bool:
        """Whether another router was heard lately."""
        return bool(self._peers)

    def door(self, model: str) -> Door:
        """Return the door to the workers of *model*."""
        found = self._doors.get(model)
        if found is None:
            found = self._doors[model] = Door(self, model)
        return found

    def on_change(self, callback: Callable[[], None]) -> None:
        """Have *callback* called when what others should know has changed."""
        self._callbacks.append(callback)

    def changed(self) -> None:
        """Tell that others should know more."""
        for callback in self._callbacks:
            callback()

    def let_in(self, tenant: str) -> None:
        """Count a request of *tenant*."""
        self._running[tenant] += 1

    def left(self, tenant: str) -> None:
        """Count a request of *tenant* out; others of it may have their turn at any door."""
        self._running[tenant] -= 1
        if not self._running[tenant]:
            del self._running[tenant]
        if self.limit_of(tenant) is not None:
            self.look()

    def look(self) -> None:
        """Let in who may be let in now."""
        for door in tuple(self._doors.values()):
            door.look()

    # What others say

    def report(self, now_s: float) -> dict[str, dict[str, Standing]]:
        """Return what other routers are told now, by model and tenant.

        All that are told at about the same time are told the same.
        """
        if now_s - self._reported[0] < self._pace() * self._limits.share_every_s / 2:
            return self._reported[1]
        told = self._standings()
        self._reported = (now_s, told)
        said = _added_up(told)
        self._heard_by_now(now_s)
        if said != (self._told[-1][1] if self._told else self._known):
            self._told.append((now_s, said))
        return told

    def _pace(self) -> float:
        """Return how much more slowly than few tenants many are told of: it takes time."""
        sizes = (sum(map(len, self._reported[1].values())), *map(_Said.size, self._peers.values()))
        return 1.0 + max(sizes) / MANY_STANDINGS

    def _settle_s(self) -> float:
        return self._pace() * self._limits.settle_s

    def _heard_by_now(self, now_s: float) -> _Said:
        """Return what others have heard of this router, at the least."""
        while self._told and now_s - self._told[0][0] >= self._settle_s():
            self._known = self._told.popleft()[1]
        return self._known

    def _standings(self) -> dict[str, dict[str, Standing]]:
        found = {name: door.standings() for name, door in self._doors.items()}
        if sum(map(len, found.values())) <= MOST_STANDINGS:
            return {name: stand for name, stand in found.items() if stand}
        every = [(s, model, t) for model, stand in found.items() for t, s in stand.items()]
        every.sort(key=lambda each: (-each[0].running - each[0].waiting, each[1:]))
        kept: dict[str, dict[str, Standing]] = {}
        for standing, model, tenant in every[:MOST_STANDINGS]:
            kept.setdefault(model, {})[tenant] = standing
        return kept

    def heard(
        self, router: str, said: Mapping[str, Mapping[str, Standing]] | None, now_s: float
    ) -> None:
        """Take in how tenants stand at another *router*; None is as it said before."""
        before = self._peers.get(router)
        if said is None:
            if before is None:
                self._peers[router] = _Said()
            return
        peer = self._peers[router] = _added_up(said)
        peer.work = {
            (model, name): each.work for model in said for name, each in said[model].items()
        }
        if before is None:
            return  # What it did before it was heard is no measure of what it does.
        self._past.append((now_s, router, before))
        peer.counted = before.counted
        for model, stand in said.items():
            new_work = {}
            for tenant, standing in stand.items():
                known = before.work.get((model, tenant), 0.0)
                new_work[tenant] = standing.work - (known if known <= standing.work else 0.0)
            self._count_work(peer, model, new_work, now_s)

    def _count_work(
        self, peer: _Said, model: str, new_work: dict[str, float], now_s: float
    ) -> None:
        """Count what another router did, as far as it is no more than this one does itself."""
        door, total = self._doors.get(model), sum(new_work.values())
        if door is None or total <= 0:
            return
        counted = peer.counted.setdefault(model, Fading())
        part = min(1.0, max(0.0, door.own.now(now_s) - counted.now(now_s)) / total)
        counted.add(part * total, now_s)
        for tenant, work in new_work.items():
            if part * work > 0:
                door.worked_elsewhere(tenant, part * work, now_s)

    def forget(self, router: str) -> None:
        """Count another *router* no more."""
        self._peers.pop(router, None)

    def fade(self, now_s: float) -> None:
        """Have the past count for less; call it now and then."""
        for door in self._doors.values():
            door.fade(now_s)
        for key, held in tuple(self._held.items()):
            if now_s - held.seen_s > PATIENCE_S:
                del self._held[key]

    # Who may run

    def limit_of(self, tenant: str) -> int | None:
        """Return how many requests of *tenant* may run at all routers; None is any number."""
        if not self._named and self._limits.tenant_limit is None:
            return None
        return self._named.get(tenant, self._limits.tenant_limit)

    def tenant_has_room(self, tenant: str) -> bool:
        """Whether one more request of *tenant* may run here."""
        limit = self.limit_of(tenant)
        if limit is None:
            return True
        running = self._running[tenant]
        if not self._peers:
            return running < limit
        return self._has_room(("tenant", tenant), running, limit)

    def model_has_room(self, door: Door, running: int, capacity: int) -> bool:
        """Whether one more request may run at *door*, where *running* do."""
        if not self._peers:
            return running < capacity
        return self._has_room(("model", door.model), running, capacity)

    def _has_room(self, key: tuple[str, str], running: int, limit: int) -> bool:
        others = {name: said.of(*key) for name, said in self._peers.items()}
        wanted_elsewhere = sum(wish.wanted for wish in others.values())
        if running < (limit - wanted_elsewhere) // (len(others) + 1):
            return True  # Its part is at least that, whatever was heard of it.
        # Somebody may go by what this router said a moment ago, or by what another did: a part is
        # one only by all that anybody may go by.
        now_s = self.now()
        heard = self._heard_by_now(now_s)
        views = [heard.of(*key), *(said.of(*key) for _, said in self._told), self._wish(key)]
        wanted = min(view.wanted for view in views)
        wishes = others | {self._me: Wish(running, wanted)}
        ended = self._ended_elsewhere(key, others, now_s)
        turns = {(mine.ended + theirs) % len(wishes) for mine in views for theirs in ended}
        first = crc32(key[1].encode())
        if all(may_run(self._me, limit, wishes, first + turn) for turn in turns):
            self._held.pop(key, None)
            return True
        self._look_again()
        return self._held_for(key, now_s) >= PATIENCE_S and running < max(
            1, limit // (len(others) + 1)
        )

    def _wish(self, key: tuple[str, str]) -> Wish:
        """Return what this router runs and would run."""
        kind, name = key
        if kind == "model":
            return self._doors[name].wish()
        wishes = [door.wish_of(name) for door in self._doors.values()]
        running, wanted, ended = (sum(figures) for figures in zip(*wishes, strict=True))
        return Wish(running, wanted, ended)

    def _ended_elsewhere(
        self, key: tuple[str, str], others: dict[str, Wish], now_s: float
    ) -> set[int]:
        """Return how many requests ended at other routers, as it was heard now and just before."""
        while self._past and now_s - self._past[0][0] >= self._settle_s():
            self._past.popleft()
        total = sum(wish.ended for wish in others.values())
        found, latest = {total}, {name: wish.ended for name, wish in others.items()}
        for _, router, said in reversed(self._past):
            if router in latest:
                ended = said.of(*key).ended
                total += ended - latest[router]
                latest[router] = ended
                found.add(total)
        return found

    def _held_for(self, key: tuple[str, str], now_s: float) -> float:
        """Return for how long requests have been held up without an end."""
        held = self._held.setdefault(key, _Held(now_s, now_s))
        if now_s - held.seen_s > PATIENCE_S:
            held.since_s = now_s
        held.seen_s = now_s
        return now_s - held.since_s

    def _look_again(self) -> None:
        """See to those that were held up, when others have heard of them."""
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._settle_s(), self._due)

    def _due(self) -> None:
        self._timer = None
        self.look()


def _added_up(said: Mapping[str, Mapping[str, Standing]]) -> _Said:
    models: dict[str, list[Standing]] = {}
    tenants: dict[str, list[Standing]] = {}
    for model, stand in said.items():
        models[model] = list(stand.values())
        for tenant, standing in stand.items():
            tenants.setdefault(tenant, []).append(standing)
    return _Said(
        {name: _added(found) for name, found in models.items()},
        {name: _added(found) for name, found in tenants.items()},
    )


def _added(standings: list[Standing]) -> Wish:
    running = sum(each.running for each in standings)
    wanted = running + sum(each.waiting for each in standings)
    return Wish(running, wanted, sum(each.ended for each in standings))
