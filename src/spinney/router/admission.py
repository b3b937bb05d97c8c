"""Who is served next, who waits, and who is told at once that it would be too late.

`FairQueue` decides: higher priorities first, and within one the tenant that has had least, each
tenant's own requests in the order they came. `Gate` is the door in front of one model's workers:
at most so many requests run, at most so many wait, each for a bounded time; where other routers
have doors to the same workers, `spinney.router.turns` says what is left for this one. `Forecast`
learns from what first tokens took what the next one will take. Invariants: a request that was let
in is let out once; a tenant that floods the queue costs others nothing but their fair share, and
one at its own limit holds up nobody else.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from math import ceil
from typing import TYPE_CHECKING, Generic, TypeVar

from spinney.errors import SpinneyError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from spinney.router.limits import Limits
    from spinney.router.turns import Door

T = TypeVar("T")

MAX_TENANTS = 4096
"""Tenants whose past share is remembered; beyond it the ones that have had least are forgotten."""
MAX_RETRY_AFTER_S = 60
"""The most that a refused client is told to wait: the forecast is no better than that."""
FORGETTING = 0.97
"""What an observation counts for after one more."""
ENOUGH = 8
"""Observations before a forecast is made."""


class RefusedError(SpinneyError):
    """A request is not served now. *retry_after_s* says when it may be worth asking again."""

    def __init__(self, message: str, *, status: int, code: str, retry_after_s: int) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.retry_after_s = retry_after_s


@dataclass(slots=True)
class _Line(Generic[T]):
    """One tenant's waiting requests, and when its turn is in the time of shares."""

    due: float
    items: deque[tuple[T, float]] = field(default_factory=deque)


class FairQueue(Generic[T]):
    """A bounded queue that shares out turns by cost.

    A tenant has one part of what there is, or as many as *shares* say.
    """

    def __init__(self, capacity: int, shares: Mapping[str, float] | None = None) -> None:
        self._capacity = capacity
        self._shares = shares or {}
        self._lines: dict[int, dict[str, _Line[T]]] = {}
        self._had: dict[str, float] = {}
        self._ahead: dict[str, float] = {}
        """How much later turns come for tenants that had theirs at other routers."""
        self._now = 0.0
        self._size = 0

    def __len__(self) -> int:
        """Return how many wait."""
        return self._size

    def push(self, item: T, tenant: str, priority: int, cost: float) -> T | None:
        """Add *item*; return the one that has no room any more, if there is one.

        That is the latest of the tenant with the longest line, of the lowest priority that is not
        above *priority*; it may be *item* itself.
        """
        lines = self._lines.setdefault(priority, {})
        line = lines.get(tenant)
        if line is None:
            line = lines[tenant] = _Line(self._begins(tenant))
        line.items.append((item, cost / self._shares.get(tenant, 1.0)))
        self._size += 1
        return self._overflow(priority) if self._size > self._capacity else None

    def _begins(self, tenant: str) -> float:
        """Return when a line is due that begins now: who was away has saved nothing up."""
        had = self._had.get(tenant, 0.0)
        due = max(self._now, had)
        if tenant in self._ahead:
            self._ahead[tenant] = max(0.0, had + self._ahead[tenant] - due)
        return due

    def pop(
        self,
        gone: Callable[[T], bool] = lambda _: False,
        held: Callable[[str], bool] = lambda _: False,
    ) -> T | None:
        """Take out whose turn it is; None when nobody waits who is not held up.

        Those that are *gone* are taken out on the way, and cost their tenants nothing. *held* says
        of a tenant whether it may have no turn now.
        """
        holding: set[str] = set()
        while found := self._next(holding):
            priority, tenant = found
            if held(tenant):
                holding.add(tenant)
                continue
            line = self._lines[priority][tenant]
            item, cost = line.items.popleft()
            left = gone(item)
            if not left:
                self._charge(tenant, line, cost)
            self._removed(priority, tenant)
            if not left:
                return item
        return None

    def _next(self, without: set[str]) -> tuple[int, str] | None:
        """Return the priority and the tenant whose turn it is."""
        ahead = self._ahead
        for priority in sorted(self._lines, reverse=True):
            lines = self._lines[priority]
            able = [name for name in lines if name not in without] if without else lines
            if able:
                return priority, min(
                    able, key=lambda name: (lines[name].due + ahead.get(name, 0.0), name)
                )
        return None

    def had_elsewhere(self, tenant: str, cost: float, most: float) -> None:
        """Have *tenant*'s turns come later, since it had *cost* at another router.

        Not later than what it had there lately, *most* in all, puts it behind the others.
        """
        share = self._shares.get(tenant, 1.0)
        due = max(self._had.get(tenant, 0.0), self._due(tenant))
        ahead = self._ahead.pop(tenant, 0.0) + cost / share
        if most <= 0:
            for lines in self._lines.values():
                if line := lines.get(tenant):
                    line.due = max(line.due, min(line.due + ahead, self._now))
            return
        # It counts from now on, whatever the tenant had, or missed, before.
        ahead = min(max(ahead, self._now - due + cost / share), self._now + most / share - due)
        if ahead > 0:
            self._ahead[tenant] = ahead

    def _due(self, tenant: str) -> float:
        return max(
            (lines[tenant].due for lines in self._lines.values() if tenant in lines), default=0.0
        )

    def lines(self) -> dict[str, int]:
        """Return how many wait, by tenant."""
        found: dict[str, int] = {}
        for lines in self._lines.values():
            for tenant, line in lines.items():
                found[tenant] = found.get(tenant, 0) + len(line.items)
        return found

    def waits(self, tenant: str) -> bool:
        """Whether a request of *tenant* waits."""
        return any(tenant in lines for lines in self._lines.values())

    def _charge(self, tenant: str, line: _Line[T], cost: float) -> None:
        self._now = max(self._now, line.due + self._ahead.get(tenant, 0.0))
        line.due += cost
        self._had[tenant] = max(line.due, self._had.get(tenant, 0.0))
        if len(self._had) > MAX_TENANTS:
            self._had = {name: had for name, had in self._had.items() if had > self._now}
            while len(self._had) > MAX_TENANTS:
                self._had.pop(next(iter(self._had)))

    def discard(self, item: T, tenant: str, priority: int) -> bool:
        """Take *item* out; return whether it was there."""
        line = self._lines.get(priority, {}).get(tenant)
        for entry in line.items if line else ():
            if entry[0] is item:
                assert line is not None
                line.items.remove(entry)
                self._removed(priority, tenant)
                return True
        return False

    def _overflow(self, most: int) -> T:
        lowest = min(priority for priority in self._lines if priority <= most)
        lines = self._lines[lowest]
        tenant = max(lines, key=lambda name: (len(lines[name].items), name))
        item, _ = lines[tenant].items.pop()
        self._removed(lowest, tenant)
        return item

    def _removed(self, priority: int, tenant: str) -> None:
        self._size -= 1
        lines = self._lines[priority]
        if not lines[tenant].items:
            del lines[tenant]
        if not lines:
            del self._lines[priority]


class Forecast:
    """A straight line through what first tokens took over what they were thought to cost.

    Old observations fade. Costs are in any unit; times are in milliseconds.
    """

    def __init__(self) -> None:
        self._seen = 0
        self._n = self._x = self._y = self._xx = self._xy = 0.0

    def observe(self, cost: float, took_ms: float) -> None:
        """Note that what was thought to cost *cost* took *took_ms*."""
        self._seen += 1
        self._n = self._n * FORGETTING + 1
        self._x = self._x * FORGETTING + cost
        self._y = self._y * FORGETTING + took_ms
        self._xx = self._xx * FORGETTING + cost * cost
        self._xy = self._xy * FORGETTING + cost * took_ms

    def ms(self, cost: float) -> float | None:
        """Return what *cost* will take; None when too little was seen."""
        if self._seen < ENOUGH:
            return None
        mean = self._y / self._n
        spread = self._n * self._xx - self._x * self._x
        if spread <= 1e-9 * self._xx * self._n:
            return mean
        slope = max(0.0, (self._n * self._xy - self._x * self._y) / spread)
        return max(0.0, mean + slope * (cost - self._x / self._n))


@dataclass(frozen=True, slots=True)
class Claim:
    """How a request stands among the others."""

    tenant: str = ""
    priority: int = 0
    """Higher goes first."""
    ttft_ms: float | None = None
    """When its first token is wanted, from its coming on; None at any time."""


@dataclass(slots=True, eq=False)
class _Turn:
    """A request that waits."""

    come: asyncio.Future[None]
    tenant: str
    cost: float

    def over(self) -> bool:
        """Whether it waits no more."""
        return self.come.done()


class Gate:
    """The door in front of one model's workers."""

    def __init__(
        self, limits: Limits, capacity: Callable[[], int], door: Door | None = None
    ) -> None:
        """*capacity* says how many requests may run now, of all routers that count at *door*."""
        self._limits = limits
        self._capacity = capacity
        shares = dict(limits.tenant_shares)
        self._queue: FairQueue[_Turn] = FairQueue(limits.max_waiting, shares)
        self._door = door
        if door is not None:
            door.waiters = self
        self._turn_s = 0.0
        self._last_out_s = 0.0
        self.running = 0

    @property
    def waiting(self) -> int:
        """How many requests wait."""
        return len(self._queue)

    def lines(self) -> dict[str, int]:
        """Return how many wait, by tenant."""
        return self._queue.lines()

    def worked_elsewhere(self, tenant: str, work: float, most: float) -> None:
        """Note that another router let in *work* of *tenant*, of which *most* counts now."""
        self._queue.had_elsewhere(tenant, work, most)

    def wait_ms(self) -> float:
        """Return about how long a request that comes now would wait."""
        if not self._queue and self._has_room():
            return 0.0
        return 1000 * self._turn_s * (len(self._queue) + 1)

    @asynccontextmanager
    async def passed(self, claim: Claim, cost: float) -> AsyncIterator[None]:
        """Run what is inside when it is its turn; raise RefusedError when it is not let in."""
        if self._may_pass(claim.tenant):
            self._let_in(claim.tenant, cost)
        else:
            await self._wait(claim, cost)
        try:
            yield
        finally:
            self._left(claim.tenant)

    def _has_room(self) -> bool:
        if self._door is None:
            return self.running < self._capacity()
        return self._door.room(self.running, self._capacity())

    def _may_pass(self, tenant: str) -> bool:
        """Whether a request that comes now need not wait.

        While there is room, only those wait whose tenants are at their limits.
        """
        if not self._has_room():
            return False
        if self._door is None:
            return not self._queue
        return not self._queue.waits(tenant) and self._door.may(tenant)

    def _let_in(self, tenant: str, cost: float) -> None:
        self.running += 1
        if self._door is not None:
            self._door.let_in(tenant, cost)

    async def _wait(self, claim: Claim, cost: float) -> None:
        if claim.ttft_ms is not None and (expected := self.wait_ms()) > claim.ttft_ms:
            raise too_late(claim.ttft_ms, expected)
        turn = _Turn(asyncio.get_running_loop().create_future(), claim.tenant, cost)
        full = self._queue.push(turn, claim.tenant, claim.priority, cost)
        if full is not None and not full.over():
            full.come.set_exception(self._full())
        if self._door is not None:
            self._door.changed()
        most_s = self._limits.queue_deadline_s
        if claim.ttft_ms is not None:
            most_s = min(most_s, claim.ttft_ms / 1000)
        try:
            async with asyncio.timeout(most_s):
                await turn.come
        except TimeoutError:
            self._give_up(turn, claim)
            raise self._waited(most_s) from None
        except asyncio.CancelledError:
            self._give_up(turn, claim)
            raise

    def _give_up(self, turn: _Turn, claim: Claim) -> None:
        come = turn.come
        let_in = come.done() and not come.cancelled() and come.exception() is None
        if not self._queue.discard(turn, claim.tenant, claim.priority) and let_in:
            self._left(claim.tenant)  # Its turn came just when it had given up: the next has it.

    def _left(self, tenant: str) -> None:
        self.running -= 1
        now_s = asyncio.get_running_loop().time()
        if self._queue:
            self._turn_s += 0.1 * (now_s - self._last_out_s - self._turn_s)
        self._last_out_s = now_s
        if self._door is not None:
            self._door.left(tenant)
        self.look()

    def look(self) -> None:
        """Let in who may be let in now; call it when there is more room than before."""
        while self._queue and self._has_room():
            turn = self._queue.pop(_Turn.over, self._held_up)
            if turn is None:
                return
            self._let_in(turn.tenant, turn.cost)
            turn.come.set_result(None)

    def _held_up(self, tenant: str) -> bool:
        return self._door is not None and not self._door.may(tenant)

    def _full(self) -> RefusedError:
        return RefusedError(
            f"{self._limits.max_waiting} requests wait, and no more may (--max-waiting); "
            f"ask again later",
            status=429,
            code="queue_full",
            retry_after_s=_retry_after(self.wait_ms() / 1000),
        )

    def _waited(self, most_s: float) -> RefusedError:
        return RefusedError(
            f"it was not its turn within {most_s:g} s, and a later answer is not wanted "
            f"(x-spinney-ttft-ms, --ttft-target-ms, --queue-deadline); {len(self._queue)} others "
            f"wait; ask again later, or allow more",
            status=503,
            code="deadline",
            retry_after_s=_retry_after(self.wait_ms() / 1000),
        )


def too_late(wanted_ms: float, expected_ms: float) -> RefusedError:
    """Return the refusal of a request whose first token would come too late."""
    return RefusedError(
        f"the first token is wanted within {wanted_ms:.0f} ms and would take about "
        f"{expected_ms:.0f} ms now; ask again later, or allow more",
        status=503,
        code="deadline",
        retry_after_s=_retry_after((expected_ms - wanted_ms) / 1000),
    )


def _retry_after(seconds: float) -> int:
    return min(MAX_RETRY_AFTER_S, max(1, ceil(seconds)))
