"""Runs scenarios through a scheduling cycle, and checks what must hold of every result."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from spinney.scheduler.config import SchedulerConfig
from spinney.scheduler.cycle import CycleResult, run_cycle
from spinney.scheduler.scenario import NAMESPACE, fill, scenario

if TYPE_CHECKING:
    from spinney.scheduler.gangs import Gang, Group
    from spinney.scheduler.snapshot import Snapshot


class Outcome:
    """What one cycle did with a scenario."""

    def __init__(self, document: dict[str, Any], config: SchedulerConfig | None = None) -> None:
        self.snapshot: Snapshot = fill(scenario(document)).snapshot()
        self.result: CycleResult = run_cycle(self.snapshot, config or SchedulerConfig())
        self.node_of = {b.pod.removeprefix(f"{NAMESPACE}/"): b.node for b in self.result.bindings}
        check(self.snapshot, self.result)

    def nodes(self, prefix: str) -> list[str]:
        """Return the nodes of the pods whose names start so, sorted."""
        found = (n for p, n in self.node_of.items() if p == prefix or p.startswith(f"{prefix}-"))
        return sorted(found)

    def reason(self, gang: str) -> str:
        return self.result.verdicts[f"{NAMESPACE}/{gang}"].reason

    def kind(self, gang: str) -> str:
        keys = (f"{NAMESPACE}/{gang}", f"{NAMESPACE}/podgroup:{gang}")
        return next(self.result.verdicts[key].kind for key in keys if key in self.result.verdicts)


def check(snapshot: Snapshot, result: CycleResult) -> None:
    """Assert what holds whatever was asked: no oversubscription, all or nothing, constraints."""
    layout = snapshot.layout
    used = snapshot.used.copy()
    assert len({b.pod for b in result.bindings}) == len(result.bindings), "a pod is bound twice"
    for binding in result.bindings:
        pod = snapshot.pods[binding.pod]
        assert pod.state == "pending"
        used[layout.index[binding.node]] += layout.vector(pod.shape.requests)
    touched = {layout.index[b.node] for b in result.bindings}
    for row in touched:
        assert (used[row] <= layout.allocatable[row]).all(), f"{layout.nodes[row].name} is over"
    # Room that is kept fits beside what stays, and beside what is bound.
    used -= snapshot.leaving
    for gone in result.evictions:
        used[layout.index[gone.node]] -= layout.vector(snapshot.pods[gone.pod].shape.requests)
    for kept in result.pipelined:
        used[layout.index[kept.node]] += layout.vector(snapshot.pods[kept.pod].shape.requests)
    for kept in result.pipelined:
        row = layout.index[kept.node]
        assert (used[row] <= layout.allocatable[row]).all(), f"{kept.node} is promised twice"
    placed = {b.pod: layout.index[b.node] for b in result.bindings}
    placed |= {p.pod: layout.index[p.node] for p in result.pipelined}
    for gang in snapshot.gangs:
        _check_gang(snapshot, gang, placed)


def _check_gang(snapshot: Snapshot, gang: Gang, placed: dict[str, int]) -> None:
    mine = [p for leaf in gang.root.leaves() for p in leaf.pending if p.key in placed]
    if not mine:
        return
    assert _has_minimum(gang.root, placed), f"{gang.key} is below its minimum"
    _check_halves(gang.root, placed)
    _check_domains(snapshot, gang.root, placed)


def _has_minimum(group: Group, placed: dict[str, int]) -> bool:
    if group.children:
        return sum(_has_minimum(child, placed) for child in group.children) >= group.needed
    return len(group.active) + sum(pod.key in placed for pod in group.pending) >= group.minimum


def _check_halves(group: Group, placed: dict[str, int]) -> None:
    """Assert that a group has its minimum, or no new pod."""
    for child in group.children:
        if _has_minimum(child, placed):
            _check_halves(child, placed)
        else:
            new = [p.key for leaf in child.leaves() for p in leaf.pending if p.key in placed]
            assert not new, f"{child.name} is below its minimum and has {new}"


def _check_domains(snapshot: Snapshot, group: Group, placed: dict[str, int]) -> None:
    layout = snapshot.layout
    if group.required:
        codes = layout.domains(group.required).codes
        held = {codes[layout.index[p.node]] for p in group.anchors if p.node in layout.index}
        new = set()
        for leaf in group.leaves():
            held |= {codes[layout.index[p.node]] for p in leaf.active if p.node in layout.index}
            new |= {codes[placed[p.key]] for p in leaf.pending if p.key in placed}
        assert -1 not in new
        if new:
            assert new <= held if held else len(new) == 1, f"{group.name} is in several domains"
    for child in group.children:
        _check_domains(snapshot, child, placed)


def spread(nodes: list[str]) -> list[int]:
    """Return how many pods share a node, largest first: what matters when names do not."""
    return sorted(Counter(nodes).values(), reverse=True)
