"""The truth about small placements, from an exact solver: can a gang be placed, and how closely.

The question is written as a mixed-integer program and given to HiGHS. It knows GPUs, node labels,
trees of groups with minimums, and required levels: what the search has to get right, said in
another way. Solving takes milliseconds for tens of nodes.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import highspy

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from spinney.scheduler.snapshot_format import GangLine, PodsLine


@dataclass(frozen=True, slots=True)
class Host:
    """A node with what is free on it."""

    name: str
    gpus: int
    labels: Mapping[str, str]


Pods = dict[str, list[tuple[Any, int]]]
"""By host: variables for numbers of equal pods there, each with the most it can be."""


@dataclass(slots=True)
class _Program:
    hosts: Sequence[Host]
    model: Any = field(default_factory=highspy.Highs)
    load: dict[str, list[Any]] = field(default_factory=dict)
    """By host: terms that add up to the GPUs used there."""

    def __post_init__(self) -> None:
        self.model.setOptionValue("output_flag", False)
        self.load = {host.name: [] for host in self.hosts}

    def group(self, line: GangLine | PodsLine, chosen: Any) -> Pods:
        """Add a group that has its minimum if *chosen* is 1; return its pods by host."""
        below = line.groups
        pods: Pods = {host.name: [] for host in self.hosts}
        if below:
            picks = [self.model.addBinary() for _ in below]
            needed = len(below) if not line.minimum else min(line.minimum, len(below))
            self.model.addConstr(sum(picks) >= needed * chosen)
            for child, pick in zip(below, picks, strict=True):
                for name, counts in self.group(child, pick).items():
                    pods[name] += counts
        else:
            self._leaf(line, chosen, pods)  # type: ignore[arg-type]
        if line.required:
            self._one_domain(line.required, pods)
        return pods

    def _total(self, terms: Sequence[Any]) -> Any:
        return sum(terms) if terms else self.model.addVariable(lb=0, ub=0)

    def _leaf(self, line: PodsLine, chosen: Any, pods: Pods) -> None:
        for size, count in Counter(minimum_sizes(line)).items():
            placed = []
            for host in self.hosts:
                most = min(count, host.gpus // size) if size else count
                if most:
                    number = self.model.addIntegral(lb=0, ub=most)
                    placed.append(number)
                    pods[host.name].append((number, most))
                    self.load[host.name].append(size * number)
            # A group that is not chosen has no pods: it may not use up a domain either.
            self.model.addConstr(self._total(placed) == count * chosen)

    def _one_domain(self, key: str, pods: Pods) -> None:
        used: dict[str, Any] = {}
        for host in self.hosts:
            counts = pods[host.name]
            if not counts:
                continue
            value = host.labels.get(key)
            if value is None:
                self.model.addConstr(sum(number for number, _ in counts) == 0)
                continue
            if value not in used:
                used[value] = self.model.addBinary()
            for number, most in counts:
                self.model.addConstr(number <= most * used[value])
        if used:
            self.model.addConstr(sum(used.values()) <= 1)

    def fewest(self, key: str, pods: Pods) -> Any:
        """Return a term for the number of domains of *key* in which *pods* are."""
        used: dict[str, Any] = {}
        for host in self.hosts:
            value = host.labels.get(key, host.name)
            for number, most in pods[host.name]:
                if value not in used:
                    used[value] = self.model.addBinary()
                self.model.addConstr(number <= most * used[value])
        return sum(used.values()) if used else None

    def capacity(self) -> None:
        for host in self.hosts:
            if self.load[host.name]:
                self.model.addConstr(sum(self.load[host.name]) <= host.gpus)

    def solved(self, objective: Any = None) -> float | None:
        """Return the least value of *objective*, 0 without one; None where there is no solution."""
        self.capacity()
        if objective is None:
            self.model.run()
        else:
            self.model.minimize(objective)
        status = self.model.getModelStatus()
        if status == highspy.HighsModelStatus.kInfeasible:
            return None
        assert status in (
            highspy.HighsModelStatus.kOptimal,
            highspy.HighsModelStatus.kModelEmpty,
        ), f"the solver ended with {status}"
        return float(self.model.getObjectiveValue())


def minimum_sizes(line: PodsLine) -> list[int]:
    """Return the GPUs of each pod of the minimum of a group that waits whole."""
    sizes = line.sizes or [line.gpus] * int(line.pods)  # type: ignore[arg-type]
    return sizes if line.minimum is None else sizes[: line.minimum]


def can_place(hosts: Sequence[Host], gang: GangLine) -> bool:
    """Tell whether the minimum of *gang*, none of which runs, fits on *hosts*."""
    program = _Program(hosts)
    program.group(gang, 1)
    return program.solved() is not None


def fewest_domains(hosts: Sequence[Host], gang: GangLine, key: str) -> int | None:
    """Return over how few domains of *key* the minimum of *gang* fits; None where it does not."""
    program = _Program(hosts)
    pods = program.group(gang, 1)
    found = program.solved(program.fewest(key, pods))
    return None if found is None else round(found)
