"""CPU time of the scheduler's decisions: ``OPENBLAS_NUM_THREADS=1 python benchmarks/scheduler.py``.

Clusters are zones × 8 blocks × 8 racks × 2 nodes × 8 GPUs, 0, 50 or 95 % full of single-GPU pods.
Times are milliseconds of process CPU, the least of several runs. A gang is one cycle, snapshot and
session included, in which it is the only one pending; where it is not placed, finding the reason is
included too. Only placing is measured, without what makes room by displacing others (that is in
``scheduler_queues.py``), but for the hopeless gangs of a full cluster. At the end stands for each
row how its cost grows: the exponent of the number of nodes from 1,000 to the largest cluster.
``table [nodes …]`` and ``scenarios`` run one half.
"""

from __future__ import annotations

import gc
import math
import random
import sys
import time
from typing import TYPE_CHECKING, Any

from spinney.scheduler.config import SchedulerConfig
from spinney.scheduler.cycle import run_cycle
from spinney.scheduler.scenario import fill, pods, scenario

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from spinney.scheduler.cache import Cache

LEVELS = ["zone", "block", "rack"]
SIZES = (100, 1_000, 5_000, 12_500)
FULL = (0.0, 0.5, 0.95)
PLACEMENT = SchedulerConfig(actions=("allocate",))
ALL = SchedulerConfig()


def labels(at: int) -> dict[str, str]:
    return {"zone": f"z{at // 128}", "block": f"b{at // 16}", "rack": f"r{at // 2}"}


def cluster(nodes: int, full: float, seed: int = 1) -> Cache:
    rng = random.Random(seed)
    lines = [{"name": f"n{at:05}", "gpus": 8, "labels": labels(at)} for at in range(nodes)]
    busy: list[str] = []
    for at in range(nodes):
        busy += [f"n{at:05}"] * sum(rng.random() < full for _ in range(8))
    running = [{"name": "busy", "pods": 0, "gpus": 1, "cpu": 4, "on": busy}] if busy else []
    return fill(scenario({"levels": LEVELS, "nodes": lines, "pods": running}))


def gang(name: str, count: int, gpus: int, **more: Any) -> dict[str, Any]:
    return {"name": name, "groups": [{"name": "p", "pods": count, "gpus": gpus, "cpu": 4}], **more}


def cpu_ms(work: Callable[[], Any], repeat: int = 5) -> float:
    best = float("inf")
    for _ in range(repeat):
        gc.collect()
        began = time.process_time()
        work()
        best = min(best, time.process_time() - began)
    return best * 1000


def cycle(cache: Cache) -> tuple[int, int]:
    result = run_cycle(cache.snapshot(), PLACEMENT)
    unplaced = sum(v.kind == "unplaced" for v in result.verdicts.values())
    return len(result.bindings), unplaced


def with_gangs(cache: Cache, *gangs: dict[str, Any]) -> Cache:
    return fill(scenario({"gangs": list(gangs)}), cache)


def without(cache: Cache, *gangs: dict[str, Any]) -> None:
    for line in scenario({"gangs": list(gangs)}).gangs:
        for group in line.groups:
            for pod in pods(group, 0, line):
                cache.remove_pod(pod.key)
        cache.remove_gang(f"default/{line.name}")


def one(cache: Cache, title: str, *gangs: dict[str, Any], repeat: int = 5) -> float:
    with_gangs(cache, *gangs)
    cache.snapshot()
    bound, unplaced = cycle(cache)
    spent = cpu_ms(lambda: cycle(cache), repeat)
    print(f"  {title:58} {spent:9.2f} ms   {bound} bound, {unplaced} unplaced", flush=True)
    without(cache, *gangs)
    return spent


def snapshots(cache: Cache, nodes: int) -> Iterator[tuple[str, float]]:
    line = scenario({"pods": [{"name": "s", "pods": 100, "gpus": 0, "cpu": 1}]}).pods[0]
    found = list(pods(line))

    def change() -> None:
        for at, pod in enumerate(found):
            cache.set_pod(pod)
            cache.assume(pod.key, f"n{at % nodes:05}")
            cache.forget(pod.key)
            cache.remove_pod(pod.key)
        cache.snapshot()

    def anew() -> None:
        cache._layout = None
        cache.snapshot()

    for title, work, repeat in (
        ("snapshot anew", anew, 3),
        ("100 pods come and go, then a snapshot", change, 5),
        ("snapshot, nothing changed", cache.snapshot, 5),
    ):
        spent = cpu_ms(work, repeat)
        print(f"  {title:58} {spent:9.2f} ms", flush=True)
        yield title, spent


def single_gangs() -> Iterator[tuple[str, dict[str, Any], int]]:
    yield "gang of 8 × 1 GPU, required rack", gang("g", 8, 1, required="rack"), 5
    yield "gang of 64 × 1 GPU, required block", gang("g", 64, 1, required="block"), 5
    yield "gang of 64 × 1 GPU, preferred rack", gang("g", 64, 1, preferred="rack"), 5
    yield (
        "gang of 1,024 × 1 GPU, preferred block",
        gang("g", 1024, 1, preferred="block"),
        3,
    )
    yield (
        "gang of 1,024 × 1 GPU, required zone, preferred rack",
        gang("g", 1024, 1, required="zone", preferred="rack"),
        3,
    )
    yield (
        "why: gang of 64 × 1 GPU, required rack, never fits",
        gang("g", 64, 1, required="rack"),
        3,
    )
    yield "zone ⊃ 16 groups in blocks ⊃ 4 racks × 2 pods of 8 GPU", nested(), 3
    yield "9 groups of mixed sizes, a rack each, 8 racks a block", hard(), 2
    yield "4 pods that add up to a rack and never fit one", hardest(), 1


def table(sizes: Sequence[int]) -> None:
    costs: dict[tuple[float, str], dict[int, float]] = {}
    for nodes in sizes:
        for full in FULL:
            cache = cluster(nodes, full)
            print(f"{nodes} nodes, {full:.0%} full")
            found = dict(snapshots(cache, nodes))
            for title, asked, repeat in single_gangs():
                found[title] = one(cache, title, asked, repeat=repeat)
            many = [gang(f"g{n}", 16, 1, required="rack") for n in range(1000)]
            title = "1,000 gangs of 16 × 1 GPU, required rack, one cycle"
            found[title] = one(cache, title, *many, repeat=1)
            for title, spent in found.items():
                costs.setdefault((full, title), {})[nodes] = spent
    growth(costs)


def growth(costs: dict[tuple[float, str], dict[int, float]]) -> None:
    """Print how cost grows with the number of nodes: 1 is in proportion."""
    print("growth: exponent of the number of nodes, from 1,000 to the largest cluster")
    titles = dict.fromkeys(title for _, title in costs)
    print(f"  {'':58}" + "".join(f"{full:>9.0%}" for full in FULL))
    for title in titles:
        line = f"  {title:58}"
        for full in FULL:
            known = {nodes: ms for nodes, ms in costs[full, title].items() if nodes >= 1000}
            if len(known) < 2:
                continue
            small, large = min(known), max(known)
            exponent = math.log(known[large] / known[small]) / math.log(large / small)
            line += f"{exponent:9.2f}"
        print(line)


def hard() -> dict[str, Any]:
    """Return a gang of which any eight groups would fit a block, and not the ninth."""
    groups = [{"name": f"g{n}", "sizes": [5, 4, 4, 3], "required": "rack"} for n in range(9)]
    return {"name": "hard", "groups": groups, "required": "block"}


def hardest() -> dict[str, Any]:
    """Return a gang that no bound excludes: only trying shows that a rack does not hold it."""
    return {"name": "hardest", "groups": [{"name": "g", "sizes": [6, 4, 3, 3], "required": "rack"}]}


def scenarios() -> None:
    print("512 nodes, empty")
    cache = cluster(512, 0)
    one(
        cache,
        "gang of 128 × 8 GPU, required zone, preferred rack",
        gang("g", 128, 8, required="zone", preferred="rack"),
    )
    one(cache, "gang of 512 × 8 GPU, preferred rack", gang("g", 512, 8, preferred="rack"))
    print("2048 nodes, empty")
    cache = cluster(2048, 0)
    one(cache, "gang of 2, required rack", gang("g", 2, 8, required="rack"))
    many = [gang(f"g{n}", 4, 4, required="rack") for n in range(800)]
    one(cache, "800 gangs of 4 × 4 GPU, required rack", *many, repeat=2)
    one(cache, "zone ⊃ 16 groups in blocks ⊃ 4 racks × 2 pods of 8 GPU", nested(), repeat=3)
    singles = [{"name": f"s{n}", "pods": 1, "gpus": 1, "cpu": 1} for n in range(4000)]
    cache = fill(scenario({"pods": singles}), cache)
    spent = cpu_ms(lambda: cycle(cache), 2)
    print(f"  {'4000 single pods of 1 GPU':58} {spent:9.2f} ms")
    full = cluster(2048, 1.0)
    with_gangs(full, *(gang(f"h{n}", 4, 8) for n in range(500)))
    first = run_cycle(full.snapshot(), ALL)
    print("2048 nodes, full")
    spent = cpu_ms(lambda: run_cycle(full.snapshot(), ALL), 2)
    print(f"  {'500 hopeless gangs, first cycle':58} {spent:9.2f} ms")
    spent = cpu_ms(lambda: run_cycle(full.snapshot(), ALL, memory=first.memory), 3)
    print(f"  {'500 hopeless gangs, nothing changed since':58} {spent:9.2f} ms")


def nested() -> dict[str, Any]:
    """Return a gang that fills one zone: 16 groups in a block each, two of which share a block,
    in each 4 groups that fill a rack with 2 pods: 128 pods of a whole node."""
    racks = [{"name": f"r{n}", "pods": 2, "gpus": 8, "required": "rack"} for n in range(4)]
    blocks = [{"name": f"b{n:02}", "groups": racks, "required": "block"} for n in range(16)]
    return {"name": "n", "groups": blocks, "required": "zone"}


def main() -> None:
    asked = sys.argv[1:]
    if asked[:1] != ["scenarios"]:
        table([int(text) for text in asked[1:]] or SIZES)
    if asked[:1] != ["table"]:
        scenarios()


if __name__ == "__main__":
    main()
