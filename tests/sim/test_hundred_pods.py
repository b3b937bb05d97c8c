"""A set of a hundred pods on a hundred nodes, from the manifest to all Ready, in simulated time."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tests.sim.twin import all_pods, clique, in_one, play, pod_clique_set, topology, until_ready

from spinney.api.grove import PodCliqueSet
from spinney.api.podgang import PodGang

if TYPE_CHECKING:
    from spinney.sim.cluster import SimulatedCluster

AT_REST_S = 300.0

Story = tuple[float, bytes, list[tuple[str, str, str]], int]


async def hundred(cluster: SimulatedCluster) -> Story:
    """Return when all were Ready, the history, the final state, and the writes made at rest."""
    await cluster.client.create(topology())
    await cluster.client.create(
        pod_clique_set(
            "chat",
            [
                clique("router", 1, 0),
                clique("prefill", 5, 4, "router"),
                clique("decode", 4, 8, "prefill"),
            ],
            replicas=10,
            topologyConstraint=in_one("rack"),
        )
    )
    ready_s = await until_ready(cluster, 100)
    await asyncio.sleep(30)
    history, writes = cluster.history(), len(cluster.transport.writes)
    await asyncio.sleep(AT_REST_S)
    return ready_s, history, await end(cluster), len(cluster.transport.writes) - writes


async def end(cluster: SimulatedCluster) -> list[tuple[str, str, str]]:
    """Return the state without what a seed may choose: suffixes, addresses, whose rack is which."""
    rack = {node.name: node.labels["topology.kubernetes.io/rack"] for node in cluster.nodes}
    state = []
    racks: dict[str, set[str]] = {}
    for pod in await all_pods(cluster):
        owner = re.sub(r"-[a-z0-9]{5}$", "", pod.name)
        gang = pod.labels["grove.io/podgang"]
        racks.setdefault(gang, set()).add(rack[pod.spec.node_name])
        conditions = ",".join(sorted(f"{c.type}={c.status}" for c in pod.status.conditions))
        state.append((owner, pod.status.phase, conditions))
    for gang, found in racks.items():
        state.append((gang, "racks", str(len(found))))
    for podgang in (await cluster.client.list(PodGang)).items:
        conditions = ",".join(sorted(f"{c.type}={c.status}" for c in podgang.status.conditions))
        score = podgang.status.placement_score
        state.append((podgang.name, podgang.status.phase, f"{score} {conditions}"))
    sets = (await cluster.client.list(PodCliqueSet)).items
    state += [(s.name, str(s.status.replicas), str(s.status.available_replicas)) for s in sets]
    return sorted(state)


@functools.cache
def story(seed: int) -> Story:
    return play(hundred, seed)


def test_a_hundred_pods_become_ready_in_simulated_seconds() -> None:
    ready_s, _, state, at_rest = story(1)

    assert ready_s < 60
    assert at_rest == 0
    assert [line for line in state if line[1] == "racks"] == [
        (f"chat-{i}", "racks", "1") for i in range(10)
    ]
    assert ("chat", "10", "10") in state


TELL = """
import hashlib, sys
sys.path.insert(0, sys.argv[1])
from tests.sim.test_hundred_pods import story
print(hashlib.sha256(story(1)[1]).hexdigest(), file=sys.stderr)
"""


def test_one_seed_gives_one_history_byte_for_byte() -> None:
    """Another process hashes strings in another way: no order may come from a set."""
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONHASHSEED": "12345"}
    again = subprocess.run(
        [sys.executable, "-c", TELL, root],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )

    history = story(1)[1]
    assert again.stderr.split()[-1] == hashlib.sha256(history).hexdigest()
    assert len(history.splitlines()) > 1000


def test_other_seeds_take_other_ways_to_the_same_end() -> None:
    (_, first, end, _), (_, second, other, _), (_, third, last, _) = map(story, (1, 2, 3))

    assert len({first, second, third}) == 3
    assert end == other == last
