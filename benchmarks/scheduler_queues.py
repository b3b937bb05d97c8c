"""CPU time of queues and evictions.

``OPENBLAS_NUM_THREADS=1 python benchmarks/scheduler_queues.py`` prints it; ``quick`` leaves out
what has more than 200 nodes, ``large`` prints only what has 1,000, 5,000 and 12,500.

Clusters are racks of 2 nodes, 8 racks a block, 8 GPUs a node, full of single-GPU pods of a queue
without quota, unless a line says otherwise. Times are milliseconds of process CPU of one cycle with
all actions, snapshot included, the least of several runs. The second column of times is what KAI
Scheduler took for the same scenario where it was measured: CPU milliseconds, but for the reclaim
rows, which are wall time less its 100 ms floor.
"""

from __future__ import annotations

import gc
import sys
import time
from typing import TYPE_CHECKING, Any

from spinney.scheduler.config import SchedulerConfig
from spinney.scheduler.cycle import CycleResult, run_cycle
from spinney.scheduler.scenario import fill, objects, scenario

if TYPE_CHECKING:
    from collections.abc import Callable

    from spinney.scheduler.cache import Cache
    from spinney.scheduler.memory import Memory
    from spinney.scheduler.snapshot_format import Scenario

CONFIG = SchedulerConfig()
NOW = 1_800_000_000.0
APART = {
    "affinity": {
        "podAntiAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": [
                {
                    "topologyKey": "kubernetes.io/hostname",
                    "labelSelector": {"matchLabels": {"app": "apart"}},
                }
            ]
        }
    }
}


def nodes(count: int) -> list[dict[str, Any]]:
    return [
        {
            "name": f"n{at:05}",
            "gpus": 8,
            "labels": {"zone": f"z{at // 128}", "block": f"b{at // 16}", "rack": f"r{at // 2}"},
        }
        for at in range(count)
    ]


def queues(total: int, **quota: float) -> list[dict[str, Any]]:
    found = {"busy": 0.0, "mine": float(total)} | quota
    return [{"name": n, "gpus": {"quota": q, "weight": 1}} for n, q in found.items()]


def full(count: int, per_node: int = 8, gpus: int = 1, **more: Any) -> dict[str, Any]:
    """Return a cluster on which every node runs so many pods of as many gangs."""
    running = [
        {
            "name": f"b{node:05}-{at}",
            "pods": 0,
            "gpus": gpus,
            "on": [f"n{node:05}"],
            "labels": {"kai.scheduler/queue": "busy"},
        }
        for node in range(count)
        for at in range(per_node)
    ]
    levels = ["zone", "block", "rack"]
    found = {"levels": levels, "nodes": nodes(count), "pods": running}
    return found | {"queues": queues(count * 8)} | more


def gang(name: str, pods: int, gpus: int, queue: str = "mine", **more: Any) -> dict[str, Any]:
    group = {"name": "p", "pods": pods, "gpus": gpus}
    group |= {key: more.pop(key) for key in ("labels", "spec", "minimum") if key in more}
    return {"name": name, "queue": queue, "groups": [group], **more}


def cpu_ms(work: Callable[[], Any], repeat: int) -> float:
    best = float("inf")
    for _ in range(repeat):
        gc.collect()
        began = time.process_time()
        work()
        best = min(best, time.process_time() - began)
    return best * 1000


def cycle(cache: Cache, memory: Memory | None = None) -> CycleResult:
    return run_cycle(cache.snapshot(NOW), CONFIG, memory=memory)


def line(title: str, document: dict[str, Any], kai: str = "", repeat: int = 3) -> None:
    cache = fill(scenario(document))
    found = cycle(cache)
    spent = cpu_ms(lambda: cycle(cache), repeat)
    print(
        f"  {title:62} {spent:9.1f} {kai:>9}   {len(found.bindings)} bound, "
        f"{len(found.evictions)} evicted, {len(found.pipelined)} pipelined",
        flush=True,
    )


def reclaims(sizes: tuple[int, ...]) -> None:
    known = {10: "48", 50: "261", 100: "685", 200: "1780", 500: "8800", 1000: "29500"}
    for count in sizes:
        wanted = gang("g", max(1, count // 10), 8)
        line(
            f"reclaim {wanted['groups'][0]['pods']} nodes of {count}",
            full(count, gangs=[wanted]),
            known.get(count, ""),
            2,
        )
    hopeless = {10: "70", 50: "4600", 100: "39700", 200: "121900"}
    for count in sizes:
        if count <= 200 or count == 1000:
            apart = gang("g", count + 1, 1, labels={"app": "apart"}, spec=APART)
            line(
                f"hopeless: {count + 1} pods apart on {count} nodes",
                full(count, gangs=[apart]),
                hopeless.get(count, ""),
                2,
            )
            rack = gang("g", count // 2, 8, required="block")
            line(
                f"hopeless: {count // 2} nodes in one block",
                full(count, gangs=[rack]),
                hopeless.get(count, ""),
                2,
            )
    for count in (50, 100):
        singles = [gang(f"g{at}", 1, 1) for at in range(count)]
        line(
            f"reclaim for {count} single pods on {count} nodes",
            full(count, gangs=singles),
            {50: "990", 100: "5300"}[count],
            1,
        )


def others() -> None:
    low = [{**pod, "labels": {}} for pod in full(200)["pods"]]
    doc = {"nodes": nodes(200), "pods": low, "gangs": [gang("g", 20, 8, "", priority=50)]}
    line("preempt 20 nodes of 200, no queues", doc)
    half = full(200, 2, 2)
    half["pods"] = [{**pod, "labels": {}} for pod in half["pods"]]
    del half["queues"]
    half["gangs"] = [gang("g", 8, 8, "")]
    line("move gangs for 8 whole nodes, 200 nodes half full", half)
    for count in (200, 2048):
        many = [gang(f"h{at}", 4, 8, "", priority=at % 3) for at in range(500)]
        document = full(count, gangs=many)
        for pod in document["pods"]:
            pod["labels"] = {"kai.scheduler/preemptibility": "non-preemptible"}
        del document["queues"]
        cache = fill(scenario(document))
        memory = cycle(cache).memory
        first = cpu_ms(lambda c=cache: cycle(c), 1)  # type: ignore[misc]
        again = cpu_ms(lambda c=cache, m=memory: cycle(c, m), 5)  # type: ignore[misc]
        print(f"  {f'{count} nodes, 500 hopeless gangs, first cycle':62} {first:9.1f}")
        kai = "3500" if count == 2048 else ""
        print(f"  {f'{count} nodes, 500 hopeless gangs, nothing changed':62} {again:9.1f} {kai:>9}")
        extra = scenario({"pods": [{"name": "came", "pods": 0, "cpu": 1, "on": ["n00000"]}]})

        def changed(c: Cache = cache, m: Memory = memory, pods: Scenario = extra) -> None:
            fill(pods, c)
            cycle(c, m)
            c.remove_pod("default/came-0")
            c.remove_pod("default/came")

        spent = cpu_ms(changed, 3)
        print(f"  {f'{count} nodes, 500 hopeless gangs, one pod came':62} {spent:9.1f}")
    wide = [{"name": f"q{at}", "gpus": {"quota": 8, "weight": 1}} for at in range(50)]
    singles = [gang(f"s{at}", 1, 1, f"q{at % 50}") for at in range(4000)]
    line(
        "4000 single pods of 50 queues, 2048 nodes empty",
        {"nodes": nodes(2048), "queues": wide, "gangs": singles},
        "10346",
        1,
    )


def half_full(count: int) -> dict[str, Any]:
    """Return nodes that run two gangs of 2 GPUs each: half of what they have, on all of them."""
    found = full(count, 2, 2)
    found["pods"] = [{**pod, "labels": {}} for pod in found["pods"]]
    del found["queues"]
    return found


def row(cache: Cache, title: str, *gangs: dict[str, Any]) -> None:
    """Print a line for *gangs* in the cluster that *cache* is, which is as before afterwards."""
    found = scenario({"gangs": list(gangs)})
    fill(found, cache)
    result = cycle(cache)
    spent = cpu_ms(lambda: cycle(cache), 2)
    print(
        f"  {title:62} {spent:9.1f}   {len(result.evictions)} evicted, "
        f"{len(result.pipelined)} pipelined",
        flush=True,
    )
    for pod in objects(found).pods:
        cache.remove_pod(pod.key)
    for found_gang in objects(found).gangs:
        cache.remove_gang(found_gang.key)


def large(count: int) -> None:
    """Print the rows of a large cluster, all of it in use unless a line says otherwise."""
    print(f"{count} nodes")
    cache = fill(scenario(full(count)))
    row(cache, "take back one GPU", gang("g", 1, 1))
    row(cache, "take back a tenth of the nodes", gang("g", count // 10, 8))
    row(cache, "take back 8 whole nodes of one block", gang("g", 8, 8, required="block"))
    row(cache, "take back for 200 single pods", *(gang(f"g{at}", 1, 1) for at in range(200)))
    wide = gang("g", count // 2, 8, required="block")
    row(cache, "hopeless: half of the nodes in one block", wide)
    apart = gang("g", count + 1, 1, labels={"app": "apart"}, spec=APART)
    row(cache, "hopeless: a pod more than nodes, apart", apart)
    cache = fill(scenario(half_full(count)))
    row(cache, "move gangs for 8 whole nodes, half full", gang("g", 8, 8, ""))
    rack = gang("g", 2, 8, "", required="rack")
    row(cache, "move gangs for one whole rack, half full", rack)


if __name__ == "__main__":
    if sys.argv[1:] == ["large"]:
        for size in (1000, 5000, 12500):
            large(size)
        sys.exit()
    quick = sys.argv[1:] == ["quick"]
    reclaims((10, 50, 100, 200) if quick else (10, 50, 100, 200, 500, 1000))
    others()
