"""What the index of KV blocks costs: blocks taken in per second, bytes per block, microseconds per look-up.

    python benchmarks/prefix_index.py [--blocks 1000000] [--workers 8,64,1000]

Each worker stores conversations of 32 blocks that begin with a system prompt of 8 blocks which all
workers share. Half the look-ups find a whole conversation on one worker, half only the system prompt.
"""  # noqa: E501

from __future__ import annotations

import argparse
import random
import resource
import time

from spinney.kv.events import BlockRemoved, BlockStored
from spinney.kv.prefix_index import BlockIndex

BLOCK_SIZE = 16
SYSTEM_BLOCKS = 8
OWN_BLOCKS = 24
LOOKUPS = 2000


def resident_mb() -> float:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize() / 1e6


def stored(names: list[int], parent: int | None, tokens: list[int]) -> BlockStored:
    return BlockStored(names, parent, tokens, BLOCK_SIZE)


def measure(workers: int, blocks: int) -> str:
    rng = random.Random(1)
    system = [rng.randrange(50_000) for _ in range(SYSTEM_BLOCKS * BLOCK_SIZE)]
    index = BlockIndex(max_blocks_per_worker=blocks)
    names = [f"worker-{number}" for number in range(workers)]
    next_name = iter(range(1, 1 << 62))
    parents = {}
    for name in names:
        own = [next(next_name) for _ in range(SYSTEM_BLOCKS)]
        index.apply(name, [stored(own, None, system)])
        parents[name] = own[-1]
    rounds = max(1, blocks // (workers * OWN_BLOCKS))
    seeds: list[int] = []
    took_s, before_mb, first = 0.0, resident_mb(), next(next_name)
    for _ in range(rounds):
        events = []
        for name in names:
            seed = rng.getrandbits(32)
            tokens = conversation(seed)
            own = [next(next_name) for _ in range(OWN_BLOCKS)]
            events.append((name, stored(own, parents[name], tokens)))
            if len(seeds) < LOOKUPS:
                seeds.append(seed)
        began_s = time.thread_time()
        for name, event in events:
            index.apply(name, [event])
        took_s += time.thread_time() - began_s
    count = rounds * workers * OWN_BLOCKS
    grown = resident_mb() - before_mb
    asked = [conversation(seed) for seed in seeds]
    found_us = [look_up(index, system + tokens) for tokens in asked]
    shared_us = [look_up(index, system + [each + 1 for each in tokens]) for tokens in asked]
    began_s = time.thread_time()
    removed = list(range(first + 1, first + 1 + min(count, 100_000)))
    for name in names[:1]:
        index.apply(name, [BlockRemoved(removed)])
    remove_s = time.thread_time() - began_s
    return (
        f"{workers:8}{count:11}{count / took_s:12.0f}{len(removed) / remove_s:12.0f}"
        f"{1e6 * grown / count:9.0f}{median(found_us):14.0f}{median(shared_us):14.0f}"
    )


def conversation(seed: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(50_000) for _ in range(OWN_BLOCKS * BLOCK_SIZE)]


def look_up(index: BlockIndex, tokens: list[int]) -> float:
    began_s = time.thread_time()
    index.cached_tokens(tokens)
    return 1e6 * (time.thread_time() - began_s)


def median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--blocks", type=int, default=1_000_000)
    parser.add_argument("--workers", default="8,64,1000")
    options = parser.parse_args()
    print(
        f"{'workers':>8}{'blocks':>11}{'stored/s':>12}{'removed/s':>12}{'B/block':>9}"
        f"{'found, µs':>14}{'shared, µs':>14}"
    )
    for workers in map(int, options.workers.split(",")):
        print(measure(workers, options.blocks), flush=True)


if __name__ == "__main__":
    main()
