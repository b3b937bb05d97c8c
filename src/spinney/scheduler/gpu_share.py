"""Parts of GPUs: which device of a node each sharer is on, and what is left.

A node's shared devices are kept one by one. A pod that needs a part takes it of the fullest shared
devices that have it, or opens a new one, which takes a whole GPU of the node: the reservation. A
device that nobody shares any more is a whole GPU again. Taking back is exact: it is done on the
very devices the pod was put on.
"""

from __future__ import annotations

import contextlib
import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from spinney.scheduler.session import PodClass
    from spinney.scheduler.shapes import GpuShare, PodInfo
    from spinney.scheduler.snapshot import Layout, Snapshot

GPU = "nvidia.com/gpu"
GPU_MEMORY = "nvidia.com/gpu.memory"
"""Node label: the memory of each GPU, in MiB."""
WHOLE = 1000
"""A GPU in thousandths."""
_MEMORY_STEP = 10
"""Shares by memory are rounded up to hundredths of a GPU."""


@dataclass(slots=True, eq=False)
class Device:
    """One shared GPU."""

    free: int = WHOLE
    users: int = 0
    name: str = ""
    """Unique on its node: what sharers say, or a number."""

    def take(self, part: int) -> None:
        """Give *part* to one more user."""
        self.free -= part
        self.users += 1

    def give_back(self, part: int) -> None:
        """Take *part* back from a user."""
        self.free += part
        self.users -= 1


def part_of(share: GpuShare, gpu_memory_mib: int) -> int:
    """Return the share of each GPU in thousandths; more than `WHOLE` where it does not fit."""
    if share.milli:
        return share.milli
    if gpu_memory_mib <= 0:
        return WHOLE + 1
    steps = -(-share.memory_mib * WHOLE // (gpu_memory_mib * _MEMORY_STEP))
    return steps * _MEMORY_STEP


def gpu_memory_mib(labels: Mapping[str, str]) -> int:
    """Return the memory of each GPU of a node with *labels*; 0 where it is not known."""
    text = labels.get(GPU_MEMORY, "")
    return int(text) if text.isdigit() else 0


def standing_devices(pods: Iterable[PodInfo], memory_mib: int) -> list[Device]:
    """Return the shared devices of a node that runs *pods*.

    Pods that name the same group share a device; those that name none are put where they fit.
    """
    named: dict[str, Device] = {}
    silent: list[PodInfo] = []
    for pod in sorted(pods, key=lambda p: p.key):
        share = pod.shape.share
        assert share is not None, "a pod without a share among sharers"
        if not pod.gpu_groups:
            silent.append(pod)
            continue
        for group in pod.gpu_groups:
            device = named.setdefault(group, Device(name=group))
            device.take(part_of(share, memory_mib))
    found = list(named.values())
    for pod in silent:
        share = pod.shape.share
        assert share is not None
        part = part_of(share, memory_mib)
        for device in _chosen(found, part, share.devices):
            device.take(part)
    _name(found)
    return found


def _name(devices: Sequence[Device]) -> None:
    """Give those of *devices* that have no name the smallest numbers that are free."""
    used = {device.name for device in devices}
    free = (str(at) for at in itertools.count() if str(at) not in used)
    for device in devices:
        if not device.name:
            device.name = next(free)


def _chosen(
    devices: list[Device], part: int, count: int, *, whole: int | None = None
) -> list[Device]:
    """Return *count* devices for a share, the fullest that fit first; new ones are added.

    With *whole*, the number of whole GPUs that may be broken up, new ones come first, then the
    emptiest.
    """
    fitting = sorted((d for d in devices if d.free >= part), key=lambda d: d.free)
    if whole is not None:
        new = min(max(whole, 0), count)
        fitting = fitting[::-1][: count - new]
    for _ in range(count - len(fitting[:count])):
        devices.append(Device())
        fitting.append(devices[-1])
    return fitting[:count]


_At = tuple[int, int, bool]
"""Class, node, and whether room is only kept."""


@dataclass(slots=True)
class SharedGpus:
    """The shared devices of all nodes, as a session changes them."""

    layout: Layout
    idle: NDArray[np.int64]
    """Changed when a device is opened or closed."""
    spread: bool = False
    """Whether a sharer gets a GPU of its own while there is one."""
    devices: dict[int, list[Device]] = field(default_factory=dict)
    """By node."""
    _taken: dict[_At, list[list[Device]]] = field(default_factory=dict)
    """The devices of each pod that the session put somewhere, or keeps room for."""
    _shares: dict[int, GpuShare] = field(default_factory=dict)
    """By class: what a pod takes, for the classes in `_taken`."""
    _staying: dict[int, list[PodInfo]] = field(default_factory=dict)
    """Of the nodes where sharers are leaving: the others."""
    spare: NDArray[np.int64] = field(init=False)
    """By node: what is left of shared devices, in thousandths of a GPU."""

    def __post_init__(self) -> None:
        self.spare = np.zeros(len(self.layout), np.int64)

    def start(self, snapshot: Snapshot) -> None:
        """Take over the sharers of *snapshot*, whose devices it counts as used."""
        by_row: dict[int, list[PodInfo]] = {}
        for key in snapshot.sharing:
            pod = snapshot.pods.get(key)
            if pod is not None and pod.node in self.layout.index:
                by_row.setdefault(self.layout.index[pod.node], []).append(pod)
        column = self.layout.column.get(GPU)
        for row, pods in by_row.items():
            self.devices[row] = standing_devices(pods, self._memory(row))
            self._count_spare(row)
            if any(pod.state == "leaving" for pod in pods):
                self._staying[row] = [pod for pod in pods if pod.state != "leaving"]
        if column is None:
            return
        for row, counted in snapshot.shared_devices:
            self.idle[row, column] += (counted - len(self.devices.get(row, ()))) * WHOLE

    def _count_spare(self, row: int) -> None:
        self.spare[row] = sum(device.free for device in self.devices[row])

    @contextlib.contextmanager
    def without_leaving(self) -> Iterator[None]:
        """Answer as if the sharers that are being deleted were gone.

        What is placed meanwhile has to be taken back before it ends.
        """
        before = {row: self.devices[row] for row in self._staying}
        taken = {at: list(found) for at, found in self._taken.items() if at[1] in before}
        for row, pods in self._staying.items():
            devices = standing_devices(pods, self._memory(row))
            for at in taken:
                if at[1] == row:
                    self._taken[at] = self._put_again(at, devices, len(taken[at]))
            self._replace(row, devices)
        try:
            yield
        finally:
            for row, devices in before.items():
                self._replace(row, devices)
            self._taken.update(taken)

    def _put_again(self, at: _At, devices: list[Device], count: int) -> list[list[Device]]:
        share = self._shares[at[0]]
        part, found = self._part(share, at[1]), []
        for _ in range(count):
            found.append(_chosen(devices, part, share.devices))
            for device in found[-1]:
                device.take(part)
        _name(devices)
        return found

    def _replace(self, row: int, devices: list[Device]) -> None:
        """Let *devices* be those of *row*; what is no longer shared is a whole GPU again."""
        column = self.layout.column.get(GPU)
        if column is not None:
            self.idle[row, column] += (len(self.devices[row]) - len(devices)) * WHOLE
        self.devices[row] = devices
        self._count_spare(row)

    def _memory(self, row: int) -> int:
        return gpu_memory_mib(self.layout.nodes[row].labels)

    def room(self, share: GpuShare, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return how many more pods with *share* each of *rows* takes."""
        column = self.layout.column.get(GPU)
        if column is None:
            return np.zeros(len(rows), np.int64)
        idle = np.maximum(self.idle[rows, column] // WHOLE, 0)
        parts = [self._part(share, row) for row in rows.tolist()]
        per_device = np.array([WHOLE // part if part <= WHOLE else 0 for part in parts], np.int64)
        room: NDArray[np.int64] = (idle // share.devices) * per_device
        for at, row in enumerate(rows.tolist()):
            if self.devices.get(row) and per_device[at]:
                room[at] = self._count(self.devices[row], int(idle[at]), parts[at], share.devices)
        return room

    def _part(self, share: GpuShare, row: int) -> int:
        return share.milli or part_of(share, self._memory(row))

    def change(
        self, cls: PodClass, rows: NDArray[np.int64], sign: int, *, held: bool = False
    ) -> None:
        """Put one pod of *cls* on each of *rows*, or take one away; *held*: only keep room."""
        share = cls.shape.share
        assert share is not None
        self._shares[cls.number] = share
        for row in rows.tolist():
            part = self._part(share, row)
            at = self.devices.setdefault(row, [])
            before = len(at)
            taken = self._taken.setdefault((cls.number, row, held), [])
            if sign > 0:
                whole = self._whole(row) if self.spread else None
                taken.append(_chosen(at, part, share.devices, whole=whole))
                for device in taken[-1]:
                    device.take(part)
                _name(at)
            else:
                for device in taken.pop():
                    device.give_back(part)
                self.devices[row] = [device for device in at if device.users]
            opened = len(self.devices[row]) - before
            self.idle[row, self.layout.column[GPU]] -= opened * WHOLE
            self._count_spare(row)

    def _whole(self, row: int) -> int:
        return int(self.idle[row, self.layout.column[GPU]] // WHOLE)

    def look(self, row: int) -> tuple[int, ...]:
        """Return all by which pods could tell the shared devices of *row* from others."""
        return tuple(sorted(device.free for device in self.devices.get(row, ())))

    def names(self, cls: PodClass, row: int, number: int, *, held: bool = False) -> tuple[str, ...]:
        """Return the devices of one of the pods of *cls* that the session put on *row*."""
        devices = self._taken[cls.number, row, held][number]
        return tuple(sorted(device.name for device in devices))

    def has_room_shared(self, share: GpuShare, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Tell which of *rows* have room on devices that are shared already."""
        return np.array(
            [
                sum(d.free >= self._part(share, row) for d in self.devices.get(row, ()))
                >= share.devices
                for row in rows.tolist()
            ],
            np.bool_,
        )

    def _count(self, devices: Sequence[Device], idle: int, part: int, each: int) -> int:
        """Return how many pods fit that take *part* of *each* devices."""
        trial = [Device(device.free, device.users) for device in devices]
        most, found = len(devices) + idle, 0
        while True:
            whole = most - len(trial) if self.spread else None
            for device in _chosen(trial, part, each, whole=whole):
                device.take(part)
            if len(trial) > most or part <= 0:
                return found
            found += 1
