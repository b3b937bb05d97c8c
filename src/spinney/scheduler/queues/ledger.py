"""Who has what: the amounts queues use, what they may use, and what would be fair.

A ledger belongs to one cycle. It starts from the gangs on nodes, and every placement, reservation
and eviction of the cycle is entered, so a question is answered for the state that the cycle has
reached. Fair shares are divided once, at the start: they depend on what is asked for, and that
does not change by serving it.
"""

from __future__ import annotations

import functools
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

from spinney.api.queue import QUEUE
from spinney.scheduler.gpu_share import GPU
from spinney.scheduler.queues.fair_share import Claim, divide
from spinney.scheduler.queues.model import (
    DEFAULT_QUEUE,
    GPU_CLAIMED,
    NOTHING,
    RESOURCES,
    UNLIMITED,
    Amounts,
    QueueInfo,
    QueueTree,
    charge,
    minus,
    plus,
    shape_amount,
    within,
)
from spinney.scheduler.shapes import SHARED_GPU

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

    from spinney.scheduler.gangs import Gang
    from spinney.scheduler.queues.usage import UsageMemory
    from spinney.scheduler.shapes import PodInfo
    from spinney.scheduler.snapshot import Layout, Snapshot

UNITS = (1000, 1, 1000)
"""Surplus is divided in whole devices, thousandths of a core, and bytes."""
_WORDS = {"GPUs": 1000, "CPUs": 1000, "memory": 1000 * 2**30}


def pods_amount(
    pods: Iterable[PodInfo], gpu_memory_mib: int = 0, known: dict[int, Amounts] | None = None
) -> Amounts:
    """Return what *pods* count for together in a cluster whose smallest GPUs have that memory.

    *known* remembers what pods of a shape count for while the shapes are alive.
    """
    known = {} if known is None else known
    gpus = cpu = memory = 0
    for pod in pods:
        amount = known.get(id(pod.shape))
        if amount is None:
            amount = known[id(pod.shape)] = shape_amount(pod.shape, gpu_memory_mib)
        gpus += amount[0]
        cpu += amount[1]
        memory += amount[2]
    return (gpus, cpu, memory)


class Ledger:
    """The account of all queues in one cycle."""

    def __init__(
        self,
        snapshot: Snapshot,
        *,
        usage: UsageMemory | None = None,
        history: Fraction = Fraction(0),
    ) -> None:
        self.tree: QueueTree = snapshot.queues
        self._snapshot = snapshot
        self._usage = usage
        self._history = history
        self._by_shape: dict[int, Amounts] = {}
        names = self.tree.queues
        self.allocated: dict[str, Amounts] = dict.fromkeys(names, NOTHING)
        """By queue, those below included."""
        self.firm: dict[str, Amounts] = dict.fromkeys(names, NOTHING)
        """The part of it that is not preemptible."""
        self._entitled: dict[str, Amounts] = {}
        self.watchers: list[set[str]] = []
        """Each is told the names of queues whose account changes."""
        for gang in snapshot.standing:
            active = (pod for leaf in gang.root.leaves() for pod in leaf.active)
            self.enter(gang, self._amount(active))

    def _amount(self, pods: Iterable[PodInfo]) -> Amounts:
        return pods_amount(pods, self._snapshot.layout.gpu_memory_mib, self._by_shape)

    # Entries

    def enter(self, gang: Gang, amount: Amounts) -> None:
        """Add *amount* to the account of the gang's queue; a negative one takes away."""
        self.enter_for(gang.queue, amount, firm=gang.preemptible is False)

    def enter_for(self, queue: str, amount: Amounts, *, firm: bool) -> None:
        """Add *amount* to the account of *queue* and of those above it."""
        for name in self.tree.path(queue):
            self.allocated[name] = plus(self.allocated[name], amount)
            if firm:
                self.firm[name] = plus(self.firm[name], amount)
            for changed in self.watchers:
                changed.add(name)

    # What there is

    @functools.cached_property
    def total(self) -> Amounts:
        """What the ready nodes have, less what pods outside of all gangs take."""
        layout = self._snapshot.layout
        usable = np.array([n.ready and not n.unschedulable for n in layout.nodes], np.bool_)
        columns = layout.allocatable[usable].T.copy()
        _count_once(layout, columns)
        found = tuple(
            (name, _exact_sum(column))
            for name, column in zip(layout.resources, columns, strict=True)
            if name != SHARED_GPU
        )
        foreign = [p for p in self._snapshot.pods.values() if not p.ours and p.state == "active"]
        taken = self._amount(p for p in foreign if p.node in layout.index)
        rest = minus(charge(found), taken)
        return (max(0, rest[0]), max(0, rest[1]), max(0, rest[2]))

    @functools.cached_property
    def requested(self) -> dict[str, Amounts]:
        """What gangs of each queue use and want at the start of the cycle."""
        wanted = dict.fromkeys(self.tree.queues, NOTHING)
        for gang in self._snapshot.standing:
            self._want(wanted, gang, active=True)
        for gang in self._snapshot.gangs:
            if not gang.waiting:
                self._want(wanted, gang, active=False)
        for pod in self._snapshot.pods.values():
            if pod.ours and pod.state == "leaving":
                # Who was displaced comes back: its queue still wants what it had.
                queue = pod.labels.get(QUEUE, DEFAULT_QUEUE)
                for name in self.tree.path(queue):
                    wanted[name] = plus(wanted[name], self._amount((pod,)))
        return wanted

    def _want(self, wanted: dict[str, Amounts], gang: Gang, *, active: bool) -> None:
        leaves = gang.root.leaves()
        pods = (p for leaf in leaves for p in (leaf.active if active else leaf.pending))
        amount = self._amount(pods)
        for name in self.tree.path(gang.queue):
            wanted[name] = plus(wanted[name], amount)

    # What is fair

    @functools.cached_property
    def shares(self) -> Mapping[str, Amounts]:
        """The fair share of each queue: the parent's share divided among its children."""
        shares: dict[str, list[int]] = {}
        asked = self._asked_within_limits()
        for parent in self.tree.levels():
            have = shares[parent] if parent else list(self.total)
            below = [self.tree.queues[name] for name in self.tree.children[parent]]
            for at, unit in enumerate(UNITS):
                claims = [self._claim(queue, at, asked) for queue in below]
                found = divide(have[at], claims, unit=unit, history=self._history)
                for name, share in found.items():
                    shares.setdefault(name, [0, 0, 0])[at] = share
        return {name: (s[0], s[1], s[2]) for name, s in shares.items()}

    def _asked_within_limits(self) -> dict[str, Amounts]:
        """Return what each queue asks for, as far as limits of it and below let it."""
        asked = dict(self.requested)
        for parent in reversed(list(self.tree.levels())):
            if not parent:
                continue
            total = NOTHING
            for child in self.tree.children[parent]:
                total = plus(total, _capped(asked[child], self.tree.queues[child].limit))
            asked[parent] = total
        return asked

    def _claim(self, queue: QueueInfo, at: int, asked: Mapping[str, Amounts]) -> Claim:
        past = self._usage.share(queue.name, at) if self._usage is not None else Fraction(0)
        return Claim(
            queue.name,
            queue.quota[at],
            queue.limit[at],
            asked[queue.name][at],
            queue.weight[at],
            queue.priority,
            queue.created,
            past,
        )

    def entitled(self, name: str) -> Amounts:
        """Return what the queue has a right to: the larger of quota and share, up to its limit."""
        known = self._entitled.get(name)
        if known is not None:
            return known
        queue, share = self.tree.queues[name], self.shares.get(name, NOTHING)
        found = []
        for at in range(3):
            quota, limit = queue.quota[at], queue.limit[at]
            right = self.total[at] if quota == UNLIMITED else max(quota, share[at])
            found.append(right if limit == UNLIMITED else min(limit, right))
        self._entitled[name] = (found[0], found[1], found[2])
        return self._entitled[name]

    def dominant_share(self, name: str, have: Amounts) -> float:
        """Return the largest part that *have* is of what the queue is entitled to."""
        found = 0.0
        for mine, right in zip(have, self.entitled(name), strict=True):
            if mine > 0:
                found = max(found, mine / right if right > 0 else mine * 1000.0)
        return found

    # What is allowed

    def refusal(self, gang: Gang, amount: Amounts) -> str:
        """Return why *gang* may not have *amount* more; empty when it may."""
        problem = self.tree.problem(gang.queue)
        if problem:
            return problem
        for name in self.tree.path(gang.queue):
            queue = self.tree.queues[name]
            found = _excess(self.allocated[name], amount, queue.limit)
            if found is not None:
                return f"queue {name} is at its limit of {_against(found)}"
            if gang.preemptible is False:
                found = _excess(self.firm[name], amount, queue.quota)
                if found is not None:
                    what = "for gangs that are not preemptible"
                    return f"queue {name} has no quota left {what}: {_against(found)}"
        return ""

    def order_key(
        self, name: str, head: Amounts, have: Amounts | None = None
    ) -> tuple[object, ...]:
        """Return the key by which sibling queues take turns; the smallest is served first.

        *head* is what its next gang wants; *have* is what the queue has, if not what is
        entered. Who is to lose something is asked in the opposite order.
        """
        queue = self.tree.queues[name]
        mine = self.allocated[name] if have is None else have
        right, share = self.entitled(name), self.shares.get(name, NOTHING)
        then = plus(mine, head)
        return (
            all(a > b for a, b in zip(mine, share, strict=True)),
            not within(then, queue.quota),
            -queue.priority,
            any(asked > 0 and due == 0 for asked, due in zip(head, right, strict=True)),
            self.dominant_share(name, then),
            self.dominant_share(name, mine),
            right,
            queue.created,
            name,
        )


def _count_once(layout: Layout, columns: NDArray[np.int64]) -> None:
    """Take out of *columns* the GPUs that a node offers both as a resource and to claims."""
    claimed = [at for name, at in layout.column.items() if name.startswith(GPU_CLAIMED)]
    if not claimed or GPU not in layout.column:
        return
    whole = columns[layout.column[GPU]]
    np.subtract(whole, np.minimum(whole, columns[claimed].max(axis=0)), out=whole)


def _exact_sum(values: NDArray[np.int64]) -> int:
    """Return the sum of *values*, none negative, even where it needs more than 64 bits."""
    high, low = values >> 24, values & 0xFFFFFF
    return (int(high.sum()) << 24) + int(low.sum())


def _capped(amount: Amounts, limit: Amounts) -> Amounts:
    a, b, c = (
        x if bound == UNLIMITED else min(x, bound) for x, bound in zip(amount, limit, strict=True)
    )
    return (a, b, c)


def _excess(have: Amounts, more: Amounts, bound: Amounts) -> tuple[str, int, int, int] | None:
    """Return name, bound, what is in use and what is wanted of the first resource exceeded."""
    for name, mine, wanted, most in zip(RESOURCES, have, more, bound, strict=True):
        if wanted > 0 and most != UNLIMITED and mine + wanted > most:
            return (name, most, mine, wanted)
    return None


def _against(excess: tuple[str, int, int, int]) -> str:
    name, most, mine, wanted = excess
    have, more = (amount_text(name, value).removesuffix(" of") for value in (mine, wanted))
    return f"{amount_text(name, most)} {name} ({have} in use, {more} more wanted)"


def amount_text(resource: str, amount: int) -> str:
    """Return an amount as people write it: GPUs and CPUs as numbers, memory in Gi."""
    if resource == "memory":
        return f"{amount / _WORDS[resource]:.4g}Gi of"
    return f"{amount / _WORDS[resource]:g}"


def amounts_text(amount: Amounts) -> str:
    """Return the first resource of which there is some, GPUs before CPUs before memory."""
    for name, value in zip(RESOURCES, amount, strict=True):
        if value > 0:
            noun = name.removesuffix("s") if value == 1000 else name
            return f"{amount_text(name, value)} {noun}"
    return "nothing"
