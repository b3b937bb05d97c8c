"""Queues as the scheduler sees them, and which of them a gang is charged to.

Amounts are triples of integers (GPUs, CPU, memory), in thousandths like all requests, so sums and
comparisons are exact. `UNLIMITED` stands for "all there is" in a quota and "no bound" in a limit.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import TYPE_CHECKING

from spinney.api.devices import CLAIMED
from spinney.api.quantity import parse_duration_s
from spinney.api.queue import PREEMPTIBILITY, QUEUE, QueueResource
from spinney.errors import BadInputError
from spinney.log import get_logger
from spinney.scheduler.gpu_share import WHOLE, part_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from spinney.api.queue import Queue
    from spinney.scheduler.gangs import Gang
    from spinney.scheduler.shapes import Requests, Shape

Amounts = tuple[int, int, int]
"""GPUs, CPU and memory in thousandths of a device, a core and a byte."""

RESOURCES = ("GPUs", "CPUs", "memory")
UNLIMITED = -1
NOTHING: Amounts = (0, 0, 0)
DEFAULT_QUEUE = "default"
DEFAULT_PRIORITY = 100
NON_PREEMPTIBLE_PRIORITY = 100
"""Gangs of this priority or above are not displaced, unless a label says otherwise."""

GPU_CLAIMED = f"{CLAIMED}gpu"
"""Claimed devices of classes that are called so, such as ``gpu.nvidia.com``, count as GPUs."""
_MEMORY_UNIT = 10**6 * 1000
"""A queue counts memory in megabytes; amounts are thousandths of bytes."""

log = get_logger("scheduler")


@dataclass(frozen=True, slots=True)
class QueueInfo:
    """One queue."""

    name: str
    parent: str = ""
    priority: int = DEFAULT_PRIORITY
    created: str = ""
    quota: Amounts = (UNLIMITED, UNLIMITED, UNLIMITED)
    limit: Amounts = (UNLIMITED, UNLIMITED, UNLIMITED)
    weight: tuple[Fraction, Fraction, Fraction] = (Fraction(1), Fraction(1), Fraction(1))
    preempt_min_runtime_s: float | None = None
    """None: what the parent says."""
    reclaim_min_runtime_s: float | None = None


def queue_info(queue: Queue) -> QueueInfo:
    """Return *queue* as the scheduler sees it; raise BadInputError for a duration that is none."""
    spec = queue.spec
    given = spec.resources
    lines = (given.gpu, given.cpu, given.memory) if given else (None, None, None)
    lines_or_free = [line or QueueResource(-1.0, 1.0, -1.0) for line in lines]
    units = (1000, 1, _MEMORY_UNIT)
    quota = [_amount(line.quota, unit) for line, unit in zip(lines_or_free, units, strict=True)]
    limit = [_amount(line.limit, unit) for line, unit in zip(lines_or_free, units, strict=True)]
    weight = [Fraction(max(0.0, line.over_quota_weight)) for line in lines_or_free]
    return QueueInfo(
        queue.name,
        spec.parent_queue,
        DEFAULT_PRIORITY if spec.priority is None else spec.priority,
        queue.metadata.creation_timestamp or "",
        (quota[0], quota[1], quota[2]),
        (limit[0], limit[1], limit[2]),
        (weight[0], weight[1], weight[2]),
        _seconds(spec.preempt_min_runtime),
        _seconds(spec.reclaim_min_runtime),
    )


def _amount(value: float, unit: int) -> int:
    return UNLIMITED if value < 0 else round(Fraction(value) * unit)


def _seconds(text: str | None) -> float | None:
    return None if text is None else parse_duration_s(text)


def charge(requests: Requests) -> Amounts:
    """Return what *requests* count for in a queue; see `shape_amount` for those of pods."""
    gpus = cpu = memory = 0
    for name, amount in requests:
        if name == "cpu":
            cpu += amount
        elif name == "memory":
            memory += amount
        elif name.endswith("/gpu"):
            gpus += amount
        elif "/mig-" in name:
            gpus += amount * _slices(name)
        elif name.startswith(GPU_CLAIMED):
            gpus += amount
    return (gpus, cpu, memory)


def _slices(resource: str) -> int:
    """Return how many GPU slices one ``nvidia.com/mig-3g.20gb`` is: what the quota counts."""
    digits = resource.partition("/mig-")[2].partition("g")[0]
    return int(digits) if digits.isdigit() else 0


def shape_amount(shape: Shape, gpu_memory_mib: int) -> Amounts:
    """Return what a pod of *shape* counts for in its queue.

    A part of a GPU that is asked for by memory counts as the part of one with *gpu_memory_mib*,
    the smallest there is.
    """
    found = charge(shape.requests)
    share = shape.share
    if share is None or share.milli:
        return found
    part = min(part_of(share, gpu_memory_mib), WHOLE)
    return (found[0] + part * share.devices, found[1], found[2])


def plus(a: Amounts, b: Amounts) -> Amounts:
    """Return the sum."""
    return (a[0] + b[0], a[1] + b[1], a[2] + b[2])


def minus(a: Amounts, b: Amounts) -> Amounts:
    """Return the difference."""
    return (a[0] - b[0], a[1] - b[1], a[2] - b[2])


def times(a: Amounts, count: int) -> Amounts:
    """Return *count* times *a*."""
    return (a[0] * count, a[1] * count, a[2] * count)


def within(amount: Amounts, bound: Amounts, asked: Amounts = (1, 1, 1)) -> bool:
    """Tell whether *amount* is at most *bound* in every resource of which *asked* has some."""
    return all(
        b == UNLIMITED or a <= b for a, b, q in zip(amount, bound, asked, strict=True) if q > 0
    )


class QueueTree:
    """All queues, by name, and how they hang together. Immutable."""

    def __init__(self, queues: Iterable[QueueInfo] = ()) -> None:
        self.queues: dict[str, QueueInfo] = {q.name: q for q in sorted(queues, key=_order)}
        self.shared = bool(self.queues)
        """Whether there is any queue; if not, every gang may take what it can get."""
        if DEFAULT_QUEUE not in self.queues:
            self.queues[DEFAULT_QUEUE] = QueueInfo(DEFAULT_QUEUE)
        self.children: dict[str, list[str]] = {"": []}
        for queue in self.queues.values():
            self.children.setdefault(queue.parent, []).append(queue.name)
        self._paths = {name: self._path(name) for name in self.queues}

    def _path(self, name: str) -> tuple[str, ...] | None:
        found = [name]
        while parent := self.queues[found[-1]].parent:
            if parent not in self.queues or parent in found:
                return None
            found.append(parent)
        return tuple(found)

    def path(self, name: str) -> tuple[str, ...]:
        """Return the queue and those above it; empty when the queue cannot be used."""
        return self._paths.get(self.resolve(name)) or ()

    def resolve(self, name: str) -> str:
        """Return the queue that gangs which name *name* are charged to."""
        return name if self.shared else DEFAULT_QUEUE

    def problem(self, name: str) -> str:
        """Return why no gang can be charged to the queue *name*; empty when one can."""
        name = self.resolve(name)
        if name not in self.queues:
            return f"queue {name} does not exist"
        if not self.path(name):
            parent = self.queues[name].parent
            return f"queue {name} hangs below {parent}, which does not exist or is below itself"
        below = self.children.get(name)
        if below:
            return f"queue {name} has queues below it and takes no gangs; use {' or '.join(below)}"
        return ""

    def meet(self, one: str, other: str) -> tuple[str, str] | None:
        """Return the queues side by side where the two paths part; None for the same queue."""
        a, b = self.path(one)[::-1], self.path(other)[::-1]
        for left, right in zip(a, b, strict=False):
            if left != right:
                return left, right
        return None

    def min_runtime_s(self, queue: str, *, reclaim: bool) -> float:
        """Return how long gangs of *queue* are safe from displacement: its own value or above."""
        for name in self.path(queue):
            info = self.queues[name]
            value = info.reclaim_min_runtime_s if reclaim else info.preempt_min_runtime_s
            if value is not None:
                return value
        return 0.0

    def levels(self) -> Iterator[str]:
        """Yield queues that have children, parents first; the empty name is the top."""
        todo = [""]
        while todo:
            name = todo.pop(0)
            below = self.children.get(name, [])
            if below:
                yield name
            todo += [child for child in below if self.path(child)]


def _order(queue: QueueInfo) -> tuple[str, str]:
    return (queue.created, queue.name)


def assigned(gang: Gang, labels: Mapping[str, str]) -> Gang:
    """Return *gang* with the queue and the preemptibility that *labels* of it or its pods give."""
    queue = gang.queue or labels.get(QUEUE, "") or DEFAULT_QUEUE
    word = labels.get(PREEMPTIBILITY, "")
    known = word in ("preemptible", "non-preemptible")
    preemptible = word == "preemptible" if known else gang.priority < NON_PREEMPTIBLE_PRIORITY
    if gang.preemptible is not None:
        preemptible = gang.preemptible
    return replace(gang, queue=queue, preemptible=preemptible)


@dataclass(slots=True)
class QueueBook:
    """The queues as informers report them, and the tree they make."""

    infos: dict[str, QueueInfo] = field(default_factory=dict)
    tree: QueueTree = field(default_factory=QueueTree)

    def set(self, queue: Queue) -> bool:
        """Add or change a queue; tell whether anything differs."""
        try:
            info = queue_info(queue)
        except BadInputError as error:
            log.warning("queue is left out", queue=queue.name, error=str(error))
            return self.remove(queue.name)
        if self.infos.get(info.name) == info:
            return False
        self.infos[info.name] = info
        self.tree = QueueTree(self.infos.values())
        return True

    def remove(self, name: str) -> bool:
        """Forget a queue; tell whether it was known."""
        if self.infos.pop(name, None) is None:
            return False
        self.tree = QueueTree(self.infos.values())
        return True
