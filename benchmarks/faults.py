"""Continuous faults on real processes: a router, two prefill and two decode workers.

    python benchmarks/faults.py --requests 10000 --seed 1
    python benchmarks/faults.py --requests 1000 --worker engine     the demo model, not the mock
    python benchmarks/faults.py --requests 2000 --seed 3 --only "kill" --only "stall"
    python benchmarks/faults.py --requests 2000 --blocks 80    workers that run out of KV blocks

Every request has to end in the right greedy answer or a clean error, and no worker may hold a KV
block at the end. Exit code 1, with the seed, when that is not so; logs stay in --logs, with what
the router tells of each request that ended in an error (unsaved.txt).
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.faults.arena import Arena, Pools
from tests.faults.storm import FAULTS, Storm


def _arena(options: argparse.Namespace, folder: Path) -> Arena:
    pools = Pools(options.blocks, options.blocks, min(2048, options.blocks * 16))
    return Arena(
        folder, options.seed, kind=options.worker, slow_down=options.slow_down, pools=pools
    )


async def run(options: argparse.Namespace, folder: Path) -> int:
    started = time.perf_counter()
    async with _arena(options, folder) as arena:
        storm = asyncio.ensure_future(Storm(arena).run(tuple(options.only)))
        work = asyncio.ensure_future(
            arena.run(options.requests, clients=options.clients, leaving=options.leaving)
        )
        await asyncio.wait((storm, work), return_when=asyncio.FIRST_COMPLETED)
        if storm.done():
            work.cancel()
            storm.result()
        work.result()
        storm.cancel()
        await asyncio.gather(storm, return_exceptions=True)
        took = time.perf_counter() - started
        await arena.settle()
        tally = arena.tally
    (folder / "unsaved.txt").write_text("\n".join(tally.unsaved))
    print(f"seed {options.seed}: {tally.total} requests in {took:.0f} s")
    for name, count in sorted(tally.ended.items()):
        print(f"  {name:<14} {count:>7,}  {count / tally.total:.2%}")
    print("hand-overs:")
    for name, count in sorted(tally.handovers.items()):
        print(f"  {name:<26} {count:>7,}")
    print(f"{sum(tally.faults.values())} faults:")
    for name, count in sorted(tally.faults.items()):
        print(f"  {name:<26} {count:>5}")
    for line in tally.wrong[:50]:
        print("WRONG:", line[:600])
    print(f"{len(tally.wrong)} wrong; logs in {folder}" if tally.wrong else "nothing wrong")
    return 1 if tally.wrong else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--worker", choices=["mock", "engine"], default="mock")
    parser.add_argument("--clients", type=int, default=24)
    parser.add_argument("--leaving", type=float, default=0.1, help="Share of clients that leave.")
    parser.add_argument("--slow-down", type=float, default=2.0, help="Multiplies modelled times.")
    parser.add_argument("--blocks", type=int, default=512, help="KV blocks of each worker.")
    parser.add_argument("--only", action="append", default=[], choices=sorted(FAULTS))
    parser.add_argument("--logs", type=Path, help="Default: a new folder.")
    options = parser.parse_args()
    folder = options.logs or Path(tempfile.mkdtemp(prefix="spinney-faults-"))
    folder.mkdir(parents=True, exist_ok=True)
    return asyncio.run(run(options, folder))


if __name__ == "__main__":
    sys.exit(main())
