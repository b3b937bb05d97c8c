"""How good placements are: ``OPENBLAS_NUM_THREADS=1 python -m benchmarks.placement_quality``.

Two experiments on random clusters, each gang against an exact solver.

*Refused*: 18 nodes of 8 GPUs in 2 blocks × 3 racks × 3 nodes, 30 to 70 % busy; gangs of two or
three groups that each need one rack, half of them in one block. Of the gangs that a solver can
place, how many are refused?

*Racks used*: racks of 4 nodes at random occupancy; a gang of equal pods that prefers one rack and
fits in none. Over how many racks does it go, against the fewest possible?

Published figures of KAI v0.17 for the same experiments stand beside. ``--cases N --seed S`` choose
how many gangs of each kind and which.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from dataclasses import dataclass
from typing import Any

from benchmarks.placement_oracle import Host, can_place, fewest_domains

from spinney.scheduler.config import SchedulerConfig
from spinney.scheduler.cycle import run_cycle
from spinney.scheduler.offline import OfflineCluster
from spinney.scheduler.scenario import fill, objects
from spinney.scheduler.snapshot_format import scenario

CONFIG = SchedulerConfig(actions=("allocate",))
GPUS = 8
LEVELS = ["block", "rack"]


@dataclass(frozen=True)
class Row:
    """One kind of gang, with what KAI does with it."""

    title: str
    sizes: tuple[int, ...]
    mixed: bool
    kai: str


ROWS = (
    Row("one size a group, of 1, 2, 4", (1, 2, 4), mixed=False, kai="2.8 % (16 of 579)"),
    Row("one size a group, of 1, 2, 4, 8", (1, 2, 4, 8), mixed=False, kai="10.5 % (40 of 382)"),
    Row("mixed sizes in a group, of 1, 2, 4", (1, 2, 4), mixed=True, kai="61 % (288 of 469)"),
)
RACKS = ((8, "×1.00"), (16, "×1.04, worst ×1.5"), (40, "×1.22, worst ×2.5"))


def cluster(rng: random.Random) -> list[dict[str, Any]]:
    busy = rng.uniform(0.3, 0.7)
    return [
        {
            "name": f"n{at:02}",
            "gpus": sum(rng.random() >= busy for _ in range(GPUS)),
            "labels": {"block": f"b{at // 9}", "rack": f"r{at // 3}"},
        }
        for at in range(18)
    ]


def gang(rng: random.Random, row: Row) -> dict[str, Any]:
    groups = []
    for at in range(rng.choice((2, 3))):
        count = rng.randint(1, 3)
        size = rng.choice(row.sizes)
        sizes = [rng.choice(row.sizes) if row.mixed else size for _ in range(count)]
        groups.append({"name": f"g{at}", "sizes": sizes, "required": "rack"})
    return {"name": "x", "groups": groups, "required": rng.choice((None, "block"))}


def hosts(nodes: list[dict[str, Any]]) -> list[Host]:
    return [Host(n["name"], n["gpus"], n["labels"]) for n in nodes]


def refused(row: Row, cases: int, seed: int) -> None:
    rng = random.Random(seed)
    feasible = missed = wrong = 0
    spent = 0.0
    for _ in range(cases):
        nodes, asked = cluster(rng), gang(rng, row)
        document = scenario({"levels": LEVELS, "nodes": nodes, "gangs": [asked]})
        snapshot = fill(document).snapshot()
        began = time.process_time()
        placed = bool(run_cycle(snapshot, CONFIG).bindings)
        spent += time.process_time() - began
        possible = can_place(hosts(nodes), document.gangs[0])
        feasible += possible
        missed += possible and not placed
        wrong += placed and not possible
    share = missed / feasible if feasible else 0.0
    print(
        f"  {row.title:36} {feasible:4} of {cases} can be placed, refused {share:6.1%}   "
        f"KAI {row.kai:20} {1000 * spent / cases:6.1f} ms each"
    )
    assert not wrong, f"{wrong} gangs were placed that no solver can place"


def racks_used(racks: int, kai: str, cases: int, seed: int, *, mixed: bool = False) -> None:
    rng = random.Random(seed)
    ratios, scores = [], []
    while len(ratios) < cases:
        nodes = occupied(rng, racks)
        sizes = wanted(rng, nodes, mixed=mixed)
        asked = {"name": "x", "groups": [{"name": "p", "sizes": sizes}], "preferred": "rack"}
        document = scenario({"levels": ["rack"], "nodes": nodes, "gangs": [asked]})
        best = fewest_domains(hosts(nodes), document.gangs[0], "rack") if mixed else None
        best = fewest(nodes, len(sizes), sizes[0]) if sizes and not mixed else best
        if best is None or best < 2:
            continue
        report = OfflineCluster(objects(document), CONFIG).run(1)
        rack_of = {n["name"]: n["labels"]["rack"] for n in nodes}
        used = len({rack_of[b.node] for b in report.cycles[0].bindings})
        ratios.append(used / best)
        scores.append(report.gangs[0].placement_score or 0.0)
    print(
        f"  {racks:3} racks, {'mixed' if mixed else 'equal'} pods: "
        f"×{statistics.mean(ratios):.3f} of the fewest, worst ×{max(ratios):.2f}, "
        f"score {statistics.mean(scores):.3f}   KAI {kai}"
    )


def occupied(rng: random.Random, racks: int) -> list[dict[str, Any]]:
    busy = rng.uniform(0.2, 0.8)
    return [
        {
            "name": f"n{at:03}",
            "gpus": sum(rng.random() >= busy for _ in range(GPUS)),
            "labels": {"rack": f"r{at // 4:02}"},
        }
        for at in range(4 * racks)
    ]


def wanted(rng: random.Random, nodes: list[dict[str, Any]], *, mixed: bool) -> list[int]:
    """Return the GPUs of each pod of a gang that fits the cluster; empty where hardly any does."""
    size = rng.choice((1, 2, 4))
    slots = sum(n["gpus"] // size for n in nodes)
    if slots < 2:
        return []
    if not mixed:
        return [size] * rng.randint(2, slots)
    return [rng.choice((1, 2, 4)) for _ in range(rng.randint(2, max(2, slots // 3)))]


def fewest(nodes: list[dict[str, Any]], pods: int, size: int) -> int:
    """Return how few racks hold *pods* equal pods: the largest first is exact."""
    slots: dict[str, int] = {}
    for node in nodes:
        rack = node["labels"]["rack"]
        slots[rack] = slots.get(rack, 0) + node["gpus"] // size
    used = 0
    for room in sorted(slots.values(), reverse=True):
        if pods <= 0:
            break
        pods -= room
        used += 1
    return used


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--cases", type=int, default=600)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    print(f"Gangs refused that can be placed, {asked.cases} cases each, seed {asked.seed}")
    for row in ROWS:
        refused(row, asked.cases, asked.seed)
    print(f"Racks used where one is preferred, {asked.cases // 3} cases each")
    for racks, kai in RACKS:
        racks_used(racks, kai, asked.cases // 3, asked.seed)
    racks_used(8, "not published", asked.cases // 6, asked.seed, mixed=True)


if __name__ == "__main__":
    main()
