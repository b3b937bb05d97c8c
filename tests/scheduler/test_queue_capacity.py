"""What a queue may take on: limits for everyone, quotas for who is not preemptible, at every level.

A case is the queues, what they have, and a gang; and why the gang is refused, empty if it is not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from tests.scheduler.eviction_table import asks, cluster, node, queue, runs

from spinney.scheduler.queues.ledger import Ledger

if TYPE_CHECKING:
    from spinney.scheduler.queues.model import Amounts


def gpus(count: float, cores: float = 0, mib: float = 0) -> Amounts:
    return (int(count * 1000), int(cores * 1000), int(mib * 1000 * 2**20))


def refusal(
    queues: list[dict[str, Any]],
    have: list[dict[str, Any]],
    wanted: Amounts,
    *,
    firm: bool = False,
    of: str = "q",
) -> str:
    ask = asks("x", of, 1, 1, preemptible=not firm)
    document = {"nodes": [node("n", 64)], "queues": queues, "gangs": [*have, ask]}
    snapshot = cluster(document).cache.snapshot()
    gang = next(g for g in snapshot.gangs if g.key == "default/x")
    return Ledger(snapshot).refusal(gang, wanted)


def firm(name: str, queue_name: str, count: int) -> dict[str, Any]:
    return runs(name, queue_name, " ".join("n" * count), preemptible=False)


def soft(name: str, queue_name: str, count: int) -> dict[str, Any]:
    return runs(name, queue_name, " ".join("n" * count))


Q = [queue("q", 4, 6)]
TREE = [queue("d", 4, 6), queue("q", 3, 5, parent="d"), queue("r", 3, 5, parent="d")]
CORES = [{"name": "q", "cpu": {"quota": 2, "limit": 4}}]
MEMORY = [{"name": "q", "memory": {"quota": "2Gi", "limit": "4Gi"}}]

SOFT = [
    pytest.param(Q, [], gpus(6), "", id="up to the limit"),
    pytest.param(Q, [], gpus(6.5), "q is at its limit of 6 GPUs (0 in use, 6.5 more", id="beyond"),
    pytest.param(Q, [soft("a", "q", 5)], gpus(1), "", id="the last one"),
    pytest.param(
        Q, [soft("a", "q", 5)], gpus(2), "limit of 6 GPUs (5 in use, 2", id="one too many"
    ),
    pytest.param(Q, [firm("a", "q", 4)], gpus(2), "", id="beyond a quota that is used up"),
    pytest.param(Q, [soft("a", "q", 7)], gpus(0, 1), "", id="beyond the limit of another resource"),
    pytest.param([queue("q", 0, 0)], [], gpus(1), "limit of 0 GPUs", id="limit 0"),
    pytest.param([queue("q", 0, 0)], [], gpus(0, 1), "", id="limit 0, and none wanted"),
    pytest.param([queue("q")], [], gpus(60), "", id="no limit"),
    pytest.param(CORES, [], gpus(0, 4), "", id="cores up to the limit"),
    pytest.param(CORES, [], gpus(1, 4.5), "limit of 4 CPUs", id="cores beyond"),
    pytest.param(MEMORY, [], gpus(0, 0, 4096), "", id="memory up to the limit"),
    pytest.param(MEMORY, [], gpus(0, 0, 4097), "limit of 4Gi of memory", id="memory beyond"),
    pytest.param(TREE, [soft("a", "q", 4)], gpus(1), "", id="within both limits"),
    pytest.param(TREE, [soft("a", "r", 5)], gpus(1), "", id="up to the parent's limit"),
    pytest.param(TREE, [soft("a", "r", 5)], gpus(2), "d is at its limit of 6", id="the parent's"),
    pytest.param(
        TREE, [soft("a", "q", 4)], gpus(2), "q is at its limit of 5", id="one's own first"
    ),
]

FIRM = [
    pytest.param(Q, [], gpus(4), "", id="up to the quota"),
    pytest.param(Q, [], gpus(5), "q has no quota left", id="beyond the quota"),
    pytest.param(Q, [soft("a", "q", 2)], gpus(4), "", id="preemptible ones do not use the quota"),
    pytest.param(Q, [soft("a", "q", 3)], gpus(4), "limit of 6", id="but the limit"),
    pytest.param(Q, [firm("a", "q", 3)], gpus(1), "", id="the last of the quota"),
    pytest.param(Q, [firm("a", "q", 3)], gpus(2), "4 GPUs (3 in use, 2 more", id="one too many"),
    pytest.param(Q, [firm("a", "q", 4)], gpus(0, 1), "", id="a quota used up of another resource"),
    pytest.param([queue("q", 0)], [], gpus(1), "no quota left", id="no quota at all"),
    pytest.param([queue("q", -1)], [firm("a", "q", 9)], gpus(50), "", id="unlimited quota"),
    pytest.param(CORES, [], gpus(9, 2), "", id="cores up to the quota"),
    pytest.param(CORES, [], gpus(0, 3), "preemptible: 2 CPUs", id="cores beyond the quota"),
    pytest.param(MEMORY, [], gpus(0, 0, 3000), "preemptible: 2Gi", id="memory beyond the quota"),
    pytest.param(TREE, [], gpus(3), "", id="within both quotas"),
    pytest.param(TREE, [firm("a", "r", 2)], gpus(2), "", id="up to the parent's quota"),
    pytest.param(
        TREE, [firm("a", "r", 2)], gpus(3), "d has no quota left", id="the parent's quota"
    ),
    pytest.param(TREE, [soft("a", "r", 3)], gpus(3), "", id="preemptible neighbours do not count"),
    pytest.param(
        TREE, [soft("a", "r", 4)], gpus(3), "d is at its limit", id="for the limit they do"
    ),
]


@pytest.mark.parametrize(("queues", "have", "wanted", "text"), SOFT)
def test_preemptible(
    queues: list[dict[str, Any]], have: list[dict[str, Any]], wanted: Amounts, text: str
) -> None:
    found = refusal(queues, have, wanted)
    assert text in found
    assert bool(text) == bool(found)


@pytest.mark.parametrize(("queues", "have", "wanted", "text"), FIRM)
def test_not_preemptible(
    queues: list[dict[str, Any]], have: list[dict[str, Any]], wanted: Amounts, text: str
) -> None:
    found = refusal(queues, have, wanted, firm=True)
    assert text in found
    assert bool(text) == bool(found)


@pytest.mark.parametrize(
    ("of", "text"),
    [
        pytest.param("q", "", id="a leaf"),
        pytest.param("d", "takes no gangs; use q or r", id="a parent"),
        pytest.param("s", "queue s does not exist", id="an unknown queue"),
    ],
)
def test_only_leaves_take_gangs(of: str, text: str) -> None:
    found = refusal(TREE, [], gpus(1), of=of)
    assert text in found
    assert bool(text) == bool(found)
