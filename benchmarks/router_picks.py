"""What a choice of workers costs: microseconds by number of workers, busy ones, half of each role.

    python benchmarks/router_picks.py [--workers 8,64,1000] [--profile llama-8b-h100]

"alone": nobody has the prompt's beginning; "shared": all have a part of it; "placed": workers are
in racks of eight hosts, and pairs are chosen by distance.
"""

from __future__ import annotations

import argparse
import random
import time
from dataclasses import replace

from spinney.perfmodel.profile import load_step_model
from spinney.router.costs import ModelCosts
from spinney.router.fleet import Fleet
from spinney.router.picker import Ask, Load, Policy, View
from spinney.router.workers import Role, Worker

PICKS = 300


def fleet(count: int, *, placed: bool) -> View:
    rng = random.Random(1)
    workers = []
    for number in range(count):
        role = Role.PREFILL if number % 2 else Role.DECODE
        worker = Worker(f"w{number:04}", "http://h:1", role, frozenset({"m"}))
        if placed:
            rack = number // 16
            worker = replace(worker, places=(f"h{number // 2}", f"r{rack}", f"z{rack // 8}"))
        workers.append(worker)
    loads = {
        worker.name: Load(1, rng.randrange(4000), 0, 0)
        if worker.role is Role.PREFILL
        else Load(0, 0, rng.randrange(64), rng.randrange(64_000))
        for worker in workers
    }
    return View(tuple(workers), loads)


def median_us(ask: Ask, view: View, policy: Policy) -> float:
    """Each choice finds two workers busier or less busy than the one before, as a request does."""
    rng, busy = random.Random(2), random.Random(3)
    fleet = Fleet(view.roster("m"), view.loads, policy)
    loads = list(view.loads.items())
    took = []
    for _ in range(PICKS):
        for _ in range(2):
            name, load = busy.choice(loads)
            fleet.note(name, replace(load, context_tokens=busy.randrange(64_000)))
        began_s = time.thread_time()
        fleet.pick(ask, view.avoided, rng)
        took.append(time.thread_time() - began_s)
    return 1e6 * sorted(took)[len(took) // 2]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--workers", default="8,64,1000")
    parser.add_argument("--profile", default="llama-8b-h100")
    options = parser.parse_args()
    costs = ModelCosts(load_step_model(options.profile))
    print(f"{'':10}{'workers':>8}{'alone':>10}{'shared':>10}{'placed':>10}  µs")
    for unit, policy in (("tokens", Policy()), ("ms", Policy(costs=costs))):
        for count in map(int, options.workers.split(",")):
            near, far = fleet(count, placed=True), fleet(count, placed=False)
            shared = {worker.name: 16 * (n % 90) for n, worker in enumerate(far.workers)}
            alone_us = median_us(Ask("m", 2000), far, policy)
            shared_us = median_us(Ask("m", 2000, cached=shared), far, policy)
            placed_us = median_us(Ask("m", 2000), near, policy)
            print(f"{unit:10}{count:8}{alone_us:10.0f}{shared_us:10.0f}{placed_us:10.0f}")


if __name__ == "__main__":
    main()
