"""What a queue's status says of what it has, wants and would fairly have."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.scheduler.eviction_table import asks, cluster, node, queue, runs

from spinney.api.meta import find_condition
from spinney.scheduler.queues.status import ORPHAN, OVER_QUOTA, queue_statuses

if TYPE_CHECKING:
    from spinney.api.queue import QueueStatus


def statuses(**document: Any) -> dict[str, QueueStatus]:
    return queue_statuses(cluster(document).cache.snapshot())


def test_a_parent_has_what_its_children_have() -> None:
    found = statuses(
        nodes=[node("n", 8)],
        queues=[queue("d", 4), queue("a", parent="d"), queue("b", parent="d")],
        gangs=[
            runs("x", "a", "n n", 1, cpu="500m", memory="1Gi"),
            runs("y", "b", "n", 2, preemptible=False),
            asks("z", "b", 2, 1),
        ],
    )

    assert found["d"].child_queues == ["a", "b"]
    assert found["d"].allocated == {"nvidia.com/gpu": "4", "cpu": "1", "memory": str(2 << 30)}
    assert found["d"].allocated_non_preemptible == {"nvidia.com/gpu": "2"}
    assert found["b"].requested == {"nvidia.com/gpu": "4"}
    assert found["b"].fair_share == {"nvidia.com/gpu": "4"}


def test_a_queue_beyond_its_quota_says_by_how_much() -> None:
    found = statuses(
        nodes=[node("n", 8)], queues=[queue("a", 1)], gangs=[runs("x", "a", "n n n", 1)]
    )

    over = find_condition(found["a"].conditions, OVER_QUOTA)
    assert over is not None
    assert (over.status, over.message) == ("True", "2 GPUs beyond its quota")


def test_a_queue_whose_parent_does_not_exist_is_an_orphan() -> None:
    found = statuses(nodes=[node("n", 8)], queues=[queue("a", parent="gone"), queue("b")])

    conditions = {n: find_condition(found[n].conditions, ORPHAN) for n in ("a", "b")}
    assert {n: c.status for n, c in conditions.items() if c} == {"a": "True", "b": "False"}
    assert found["a"].fair_share == {}


def test_parts_of_gpus_by_memory_count_as_the_part_of_the_smallest() -> None:
    found = statuses(
        nodes=[node("n", 1, gpuMemory=100), node("m", 1, gpuMemory=200)],
        queues=[queue("a", 1)],
        gangs=[runs("x", "a", "m", 0, gpuMemory=50)],
    )

    assert found["a"].allocated == {"nvidia.com/gpu": "0.5"}


def test_without_queues_there_is_no_status() -> None:
    assert statuses(nodes=[node("n", 1)]) == {}
