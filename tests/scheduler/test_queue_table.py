"""Queues, case by case: who is placed, who stays pending and which queue's rule says so."""

from __future__ import annotations

from typing import Any

import pytest
from tests.scheduler.world import World

CASES: list[Any] = []


def node(name: str, gpus: int, **more: Any) -> dict[str, Any]:
    return {"name": name, "gpus": gpus, **more}


def queue(name: str, quota: float = 0, limit: float = -1, **more: Any) -> dict[str, Any]:
    share = {"quota": quota, "limit": limit, "weight": more.pop("weight", 1)}
    return {"name": name, "gpus": share, **more}


def gang(name: str, pods: int, gpus: int, queue: str = "", **more: Any) -> dict[str, Any]:
    group = {"name": "p", "pods": pods, "gpus": gpus}
    group |= {k: more.pop(k) for k in ("minimum", "on", "required") if k in more}
    return {"name": name, "queue": queue, "groups": [group], **more}


def case(
    sentence: str, placed: dict[str, int], reasons: dict[str, str] | None = None, **doc: Any
) -> None:
    CASES.append(pytest.param(doc, placed, reasons or {}, id=sentence))


case(
    "without any Queue a queue label limits nothing",
    {"g": 8},
    nodes=[node("a", 8)],
    gangs=[gang("g", 8, 1, "nowhere")],
)
case(
    "a gang whose queue does not exist waits and says so",
    {"g": 0, "h": 1},
    {"g": "queue nowhere does not exist"},
    nodes=[node("a", 8)],
    queues=[queue("q")],
    gangs=[gang("g", 1, 1, "nowhere"), gang("h", 1, 1, "q")],
)
case(
    "only a queue without children takes gangs",
    {"g": 0},
    {"g": "queue dept has queues below it and takes no gangs; use team"},
    nodes=[node("a", 8)],
    queues=[queue("dept"), queue("team", parent="dept")],
    gangs=[gang("g", 1, 1, "dept")],
)
case(
    "a gang without a queue is in the default queue, which nothing limits",
    {"g": 8},
    nodes=[node("a", 8)],
    queues=[queue("q", 8)],
    gangs=[gang("g", 8, 1, preemptible=False)],
)
case(
    "a limit holds whatever is free",
    {"a": 2, "b": 0},
    {"b": "queue q is at its limit of 3 GPUs (2 in use, 2 more wanted)"},
    nodes=[node("a", 8)],
    queues=[queue("q", 0, 3)],
    gangs=[gang("a", 2, 1, "q"), gang("b", 2, 1, "q")],
)
case(
    "a gang that is too large for the limit does not keep a smaller one from it",
    {"big": 0, "small": 3},
    {"big": "limit of 3 GPUs"},
    nodes=[node("a", 8)],
    queues=[queue("q", 0, 3)],
    gangs=[gang("big", 4, 1, "q"), gang("small", 3, 1, "q")],
)
case(
    "a parent's limit holds for its children together",
    {"a": 2, "b": 0},
    {"b": "queue dept is at its limit of 3 GPUs"},
    nodes=[node("a", 8)],
    queues=[queue("dept", 0, 3), queue("x", parent="dept"), queue("y", parent="dept")],
    gangs=[gang("a", 2, 1, "x"), gang("b", 2, 1, "y")],
)
case(
    "what is not preemptible has to fit the quota, whole or not at all",
    {"firm": 0, "soft": 4},
    {"firm": "queue q has no quota left for gangs that are not preemptible: 2 GPUs"},
    nodes=[node("a", 8)],
    queues=[queue("q", 2)],
    gangs=[gang("firm", 3, 1, "q", priority=100), gang("soft", 4, 1, "q")],
)
case(
    "a parent's quota holds for what is not preemptible too",
    {"a": 2, "b": 0},
    {"b": "queue dept has no quota left"},
    nodes=[node("a", 8)],
    queues=[queue("dept", 2), queue("x", 2, parent="dept"), queue("y", 2, parent="dept")],
    gangs=[
        gang("a", 2, 1, "x", preemptible=False),
        gang("b", 2, 1, "y", preemptible=False),
    ],
)
case(
    "a gang grows up to the limit and no further",
    {"g": 3},
    {"g": "limit of 3 GPUs"},
    nodes=[node("a", 8)],
    queues=[queue("q", 0, 3)],
    gangs=[gang("g", 6, 1, "q", minimum=2)],
)
case(
    "queues take turns by their shares, whoever came first",
    {"a1": 2, "a2": 0, "b1": 2},
    nodes=[node("a", 4)],
    queues=[queue("a"), queue("b")],
    gangs=[gang("a1", 2, 1, "a"), gang("a2", 2, 1, "a"), gang("b1", 2, 1, "b")],
)
case(
    "a queue within its quota comes before one that would exceed it",
    {"a1": 0, "b1": 4},
    nodes=[node("a", 4)],
    queues=[queue("a", 0), queue("b", 4)],
    gangs=[gang("a1", 4, 1, "a"), gang("b1", 4, 1, "b")],
)
case(
    "the queue of higher priority is served first",
    {"a1": 0, "b1": 4},
    nodes=[node("a", 4)],
    queues=[queue("a"), queue("b", priority=200)],
    gangs=[gang("a1", 4, 1, "a"), gang("b1", 4, 1, "b")],
)
case(
    "inside a queue priority comes before age",
    {"old": 0, "new": 4},
    nodes=[node("a", 4)],
    queues=[queue("a")],
    gangs=[gang("old", 4, 1, "a"), gang("new", 4, 1, "a", priority=10)],
)
case(
    "departments share first, then their teams",
    {"x1": 2, "x2": 0, "y1": 2},
    nodes=[node("a", 4)],
    queues=[
        queue("d1"),
        queue("d2"),
        queue("x", parent="d1"),
        queue("x2", parent="d1"),
        queue("y", parent="d2"),
    ],
    gangs=[gang("x1", 2, 1, "x"), gang("x2", 2, 1, "x2"), gang("y1", 2, 1, "y")],
)
case(
    "minimums of a queue come before its growth",
    {"a": 1, "b": 2},
    nodes=[node("n", 3)],
    queues=[queue("q")],
    gangs=[gang("a", 3, 1, "q", minimum=1), gang("b", 2, 1, "q")],
)
case(
    "single pods are placed up to the limit of their queue",
    {"a0": 1, "a1": 1, "a2": 0, "b0": 1},
    {"a2": "queue a is at its limit of 2 GPUs"},
    nodes=[node("n", 4)],
    queues=[queue("a", 0, 2), queue("b")],
    gangs=[*(gang(f"a{i}", 1, 1, "a") for i in range(3)), gang("b0", 1, 1, "b")],
)
case(
    "single pods of two queues are placed in turn while there is room",
    {"a0": 1, "a1": 1, "a2": 0, "a3": 0, "b0": 1, "b1": 0},
    nodes=[node("n", 3)],
    queues=[queue("a"), queue("b")],
    gangs=[
        *(gang(f"a{i}", 1, 1, "a") for i in range(4)),
        *(gang(f"b{i}", 1, 1, "b") for i in range(2)),
    ],
)
case(
    "single pods of two sizes, the larger between the smaller",
    {"a0": 1, "a1": 1, "a2": 1},
    nodes=[node("n", 4)],
    queues=[queue("a")],
    gangs=[gang("a0", 1, 1, "a"), gang("a1", 1, 2, "a"), gang("a2", 1, 1, "a")],
)
case(
    "a queue that cannot use its turn does not hold up others",
    {"a1": 0, "b1": 1},
    nodes=[node("n", 2)],
    queues=[queue("a", 8), queue("b")],
    gangs=[gang("a1", 1, 4, "a"), gang("b1", 1, 2, "b")],
)


@pytest.mark.parametrize(("document", "placed", "reasons"), CASES)
def test_queues(document: dict[str, Any], placed: dict[str, int], reasons: dict[str, str]) -> None:
    world = World(document)
    world.cycle()

    for name, count in placed.items():
        mine = [p for p in world.bound if p.startswith(f"{name}-")]
        assert len(mine) == count, name
    for name, text in reasons.items():
        assert text in world.reason(name)
