"""What would help a gang that waits: a broader level, a queue that returns what is not its own."""

from __future__ import annotations

from typing import Any

import pytest
from tests.scheduler.eviction_table import asks, cluster, node, queue, reason, runs

from spinney.scheduler.config import SchedulerConfig
from spinney.scheduler.scenario import objects, scenario
from spinney.scheduler.what_if import why, would_fit

NOW = 1_767_312_000.0


def nodes(count: int, gpus: int = 1) -> list[dict[str, Any]]:
    """Return nodes, two in a rack, four in a block."""
    return [node(f"n{i}", gpus, f"r{i // 2}", labels={"block": f"b{i // 4}"}) for i in range(count)]


NOT_ENTITLED = {
    "nodes": [node("n", 4)],
    "queues": [queue("mine", 0, weight=0), queue("theirs", 1)],
    "gangs": [runs("y", "theirs", "n n n n", minimum=1), asks("x", "mine", 2)],
}
PROTECTED = {
    "nodes": [node("n", 2)],
    "queues": [queue("mine", 2), queue("theirs", 0, weight=0, reclaimMinRuntime="1h")],
    "gangs": [
        runs("y", "theirs", "n n", started="2026-01-01T23:59:00Z"),
        asks("x", "mine"),
    ],
}


@pytest.mark.parametrize(
    ("document", "text"),
    [
        pytest.param(NOT_ENTITLED, "would fit after queue theirs returns 2 GPUs", id="surplus"),
        pytest.param(PROTECTED, "would fit after queue theirs returns 2 GPUs", id="a whole gang"),
        pytest.param(
            {
                "nodes": [node("n", 4)],
                "queues": [
                    queue("mine", 0, weight=0),
                    queue("some", 0),
                    queue("more", 0),
                ],
                "gangs": [
                    runs("s", "some", "n"),
                    runs("m", "more", "n n n", minimum=1),
                    asks("x", "mine", 2),
                ],
            },
            "would fit after queue more returns 2 GPUs",
            id="the queue that has enough",
        ),
        pytest.param(
            {
                "nodes": nodes(4),
                "levels": ["block", "rack"],
                "queues": [queue("mine", 0, weight=0), queue("theirs", 0)],
                "gangs": [
                    runs("y", "theirs", "n0"),
                    runs("z", "theirs", "n2"),
                    asks("x", "mine", 2, required="rack"),
                ],
            },
            "would fit in one block instead; or after queue theirs returns 1 GPU",
            id="a broader level, or a queue",
        ),
        pytest.param(
            {
                "nodes": [node("n", 2, cpu=4)],
                "queues": [
                    {"name": "mine", "cpu": {"quota": 0, "weight": 0}},
                    {"name": "theirs", "cpu": {"quota": 0}},
                ],
                "gangs": [runs("y", "theirs", "n", 0, cpu=3), asks("x", "mine", gpus=0, cpu=2)],
            },
            "would fit after queue theirs returns 3 CPUs",
            id="cores",
        ),
    ],
)
def test_what_a_queue_would_have_to_return(document: dict[str, Any], text: str) -> None:
    report = cluster(document, {"actions": ["allocate", "reclaim"]}).run(1)

    assert text in reason(report, "x")
    assert "returns" not in reason(report, "y")


@pytest.mark.parametrize(
    "document",
    [
        pytest.param(
            {
                "nodes": [node("n", 2)],
                "queues": [queue("mine", 0, weight=0), queue("theirs", 2)],
                "gangs": [runs("y", "theirs", "n n"), asks("x", "mine")],
            },
            id="what others have is their own",
        ),
        pytest.param(
            {
                "nodes": [node("n", 2)],
                "queues": [queue("mine", 0, 0), queue("theirs", 0)],
                "gangs": [runs("y", "theirs", "n n"), asks("x", "mine")],
            },
            id="its own queue is full",
        ),
        pytest.param(
            {
                "nodes": [node("n", 2)],
                "queues": [queue("mine", 0, weight=0), queue("theirs", 0)],
                "gangs": [runs("y", "theirs", "n n"), asks("x", "mine", gpus=3)],
            },
            id="it would not fit then either",
        ),
    ],
)
def test_nothing_is_claimed_that_would_not_help(document: dict[str, Any]) -> None:
    report = cluster(document).run(1)

    assert reason(report, "x")
    assert "returns" not in reason(report, "x")


def test_it_is_said_once_however_many_cycles_go_by() -> None:
    world = cluster(NOT_ENTITLED)
    for _ in range(4):
        report = world.run(1)
        world.settle()

    assert reason(report, "x").count("returns") == 1


def test_why_and_fit_say_it() -> None:
    state = objects(scenario({k: v for k, v in NOT_ENTITLED.items() if k != "gangs"}))
    gangs = objects(scenario({"gangs": NOT_ENTITLED["gangs"]}))
    wanted = objects(scenario({"gangs": [asks("new", "mine", 2)]}))
    state.gangs.extend(gangs.gangs)
    state.pods.extend(gangs.pods)

    (answer,) = why(state, ["default/x"], NOW, SchedulerConfig())
    (fit,) = would_fit(state, wanted, NOW, SchedulerConfig()).gangs

    assert "after queue theirs returns 2 GPUs" in answer.reason
    assert "after queue theirs returns 2 GPUs" in fit.reason
    assert not fit.fits
