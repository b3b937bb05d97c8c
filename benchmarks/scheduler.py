"""CPU time of the scheduler's decisions: ``OPENBLAS_NUM_THREADS=1 python benchmarks/scheduler.py``.

Clusters are zones × 8 blocks × 8 racks × 2 nodes × 8 GPUs. Times are milliseconds of process CPU,
the least of several runs. A gang is one cycle, snapshot and session included, in which it is the
only one pending; where it is not placed, finding the reason is included too. With ``scenarios``
only the larger scenarios run.
"""

from __future__ import annotations

import gc
import random
import sys
import time
from typing import TYPE_CHECKING, Any

from spinney.scheduler.config import SchedulerConfig
from spinney.scheduler.cycle import run_cycle
from spinney.scheduler.scenario import fill, pods, scenario

if TYPE_CHECKING:
    from collections.abc import Callable

    from spinney.scheduler.cache import Cache

LEVELS = ["zone", "block", "rack"]
SIZES = (100, 1_000, 5_000)
FULL = (0.0, 0.5, 0.95)
CONFIG = SchedulerConfig()


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
    result = run_cycle(cache.snapshot(), CONFIG)
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


def one(cache: Cache, title: str, *gangs: dict[str, Any], repeat: int = 5) -> None:
    with_gangs(cache, *gangs)
    cache.snapshot()
    bound, unplaced = cycle(cache)
    spent = cpu_ms(lambda: cycle(cache), repeat)
    print(f"  {title:58} {spent:9.2f} ms   {bound} bound, {unplaced} unplaced")
    without(cache, *gangs)


def snapshots(cache: Cache, nodes: int) -> None:
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

    print(f"  {'snapshot anew':58} {cpu_ms(anew, 3):9.2f} ms")
    print(f"  {'100 pods come and go, then a snapshot':58} {cpu_ms(change):9.2f} ms")
    print(f"  {'snapshot, nothing changed':58} {cpu_ms(cache.snapshot):9.2f} ms")


def table() -> None:
    for nodes in SIZES:
        for full in FULL:
            cache = cluster(nodes, full)
            print(f"{nodes} nodes, {full:.0%} full")
            snapshots(cache, nodes)
            one(cache, "gang of 8 × 1 GPU, required rack", gang("g", 8, 1, required="rack"))
            one(cache, "gang of 64 × 1 GPU, required block", gang("g", 64, 1, required="block"))
            one(cache, "gang of 64 × 1 GPU, preferred rack", gang("g", 64, 1, preferred="rack"))
            one(
                cache,
                "gang of 64 × 1 GPU, required rack: never fits",
                gang("g", 64, 1, required="rack"),
            )
            one(cache, "9 groups of mixed sizes, a rack each, 8 racks a block", hard(), repeat=2)
            one(cache, "4 pods that add up to a rack and never fit one", hardest(), repeat=1)


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
    one(cache, "zone ⊃ 8 blocks, each of 4 racks × 2 pods", nested(), repeat=3)
    singles = [{"name": f"s{n}", "pods": 1, "gpus": 1, "cpu": 1} for n in range(4000)]
    cache = fill(scenario({"pods": singles}), cache)
    spent = cpu_ms(lambda: cycle(cache), 2)
    print(f"  {'4000 single pods of 1 GPU':58} {spent:9.2f} ms")
    full = cluster(2048, 1.0)
    with_gangs(full, *(gang(f"h{n}", 4, 8) for n in range(500)))
    first = run_cycle(full.snapshot(), CONFIG)
    print("2048 nodes, full")
    spent = cpu_ms(lambda: run_cycle(full.snapshot(), CONFIG), 2)
    print(f"  {'500 hopeless gangs, first cycle':58} {spent:9.2f} ms")
    spent = cpu_ms(lambda: run_cycle(full.snapshot(), CONFIG, first.verdicts), 3)
    print(f"  {'500 hopeless gangs, nothing changed since':58} {spent:9.2f} ms")


def nested() -> dict[str, Any]:
    """Return a gang in one zone: 8 blocks, in each 4 racks, in each 2 pods that fill them."""
    groups = []
    for block in range(8):
        groups += [
            {
                "name": f"b{block}r{rack}",
                "pods": 2,
                "gpus": 8,
                "required": "rack",
                "within": f"b{block}",
            }
            for rack in range(4)
        ]
    constraints = [{"name": f"b{block}", "required": "block"} for block in range(8)]
    return {"name": "n", "groups": groups, "constraints": constraints, "required": "zone"}


if __name__ == "__main__":
    if sys.argv[1:] != ["scenarios"]:
        table()
    scenarios()
