"""Parts of GPUs, by fraction and by memory, beside whole GPUs and slices of GPUs."""

from __future__ import annotations

from typing import Any

import pytest
from tests.scheduler.offline_table import Table, busy, gang, group, leaving, node, run

TABLE = Table("allocate")
case = TABLE.case


def part(name: str, fraction: float, pods: Any = 1, **more: Any) -> dict[str, Any]:
    return group(name, pods, 0, gpuFraction=fraction, **more)


def memory(name: str, mib: int, pods: Any = 1, **more: Any) -> dict[str, Any]:
    return group(name, pods, 0, gpuMemory=mib, **more)


def sharing(node_name: str, *parts: tuple[float, int]) -> list[dict[str, Any]]:
    """Return pods that run on *node_name* with a fraction each of the GPU numbered."""
    return [
        part(
            f"share-{node_name}{at}",
            fraction,
            [{"state": "running", "node": node_name, "gpuIndices": [device]}],
        )
        for at, (fraction, device) in enumerate(parts)
    ]


# Fractions

case(
    "a part of a GPU goes where a GPU is free",
    {"x": "B a"},
    nodes=[node("a", 1)],
    pods=[part("x", 0.5)],
)
case(
    "two halves are one GPU, and a third half needs another",
    {"x": "B a, B a, B b"},
    nodes=[node("a", 1), node("b", 1)],
    pods=[part("x", 0.5, 3)],
)
case(
    "two parts that do not fit one device are not put on it",
    {"x": "B a", "y": "-"},
    nodes=[node("a", 1)],
    pods=[part("x", 0.6), part("y", 0.5)],
)
case(
    "a shared GPU with room comes before a free one on a fuller node",
    {"x": "B b"},
    nodes=[node("a", 4), node("b", 4)],
    pods=[busy("a", 3), *sharing("b", (0.5, 0)), part("x", 0.5)],
)
case(
    "a shared GPU without room is no reason to go there",
    {"x": "B a"},
    nodes=[node("a", 4), node("b", 4)],
    pods=[busy("a", 2), *sharing("b", (0.7, 0)), part("x", 0.5)],
)
case(
    "of nodes where a GPU is to be broken up the fullest",
    {"x": "B b"},
    nodes=[node("a", 4), node("b", 4)],
    pods=[busy("b", 2), part("x", 0.5)],
)
case(
    "parts that are in use count for packing",
    {"x": "B b"},
    nodes=[node("a", 2), node("b", 2)],
    pods=[*sharing("b", (0.9, 0)), group("x", 1, 1)],
)
case(
    "a GPU that is shared is no whole one",
    {"x": "-"},
    nodes=[node("a", 1)],
    pods=[*sharing("a", (0.1, 0)), group("x", 1, 1)],
)
case(
    "whole GPUs leave no part",
    {"x": "-"},
    nodes=[node("a", 2)],
    pods=[busy("a", 2), part("x", 0.1)],
)
case(
    "parts on different devices do not add up",
    {"x": "-"},
    nodes=[node("a", 2)],
    pods=[*sharing("a", (0.6, 0), (0.6, 1)), part("x", 0.5)],
)
case(
    "the fullest device that has room is taken, so that a larger part fits afterwards",
    {"x": "B a", "y": "B a"},
    nodes=[node("a", 2)],
    pods=[*sharing("a", (0.2, 0), (0.6, 1)), part("x", 0.4), part("y", 0.8)],
)
case(
    "a gang of parts is placed whole",
    {"g": "B a, B a, B a, B a"},
    nodes=[node("a", 2)],
    gangs=[gang("g", part("p", 0.5, 4))],
)
case(
    "a gang of parts of which one has no device is not placed",
    {"g": "-, -, -"},
    nodes=[node("a", 2)],
    gangs=[gang("g", part("p", 0.6, 3))],
)
case(
    "an elastic gang of parts takes what there is",
    {"g": "B a, B a, -"},
    nodes=[node("a", 2)],
    gangs=[gang("g", part("p", 0.6, 3, minimum=1))],
)
case(
    "a gang of whole GPUs and parts",
    {"g-w": "B a", "g-p": "B a, B a"},
    nodes=[node("a", 2)],
    gangs=[gang("g", part("p", 0.5, 2), group("w", 1, 1))],
)
case(
    "tenths add up to a whole GPU exactly",
    {"x": ", ".join(["B a"] * 10 + ["-"])},
    nodes=[node("a", 1)],
    pods=[part("x", 0.1, 11)],
)
case(
    "a part of two devices needs two devices",
    {"x": "B b", "y": "-"},
    nodes=[node("a", 1), node("b", 2)],
    pods=[part("x", 0.5, gpuDevices=2), part("y", 0.6, gpuDevices=2)],
)
case(
    "parts of two devices share the same two",
    {"x": "B b", "y": "B b"},
    nodes=[node("b", 2)],
    pods=[part("x", 0.5, gpuDevices=2), part("y", 0.5, gpuDevices=2)],
)
case(
    "a part waits for a sharer that is leaving",
    {"x": "P a"},
    nodes=[node("a", 1)],
    pods=[
        part("old", 0.5, [{"state": "leaving", "node": "a", "gpuIndices": [0]}]),
        *sharing("a", (0.5, 0)),
        part("x", 0.5),
    ],
)
case(
    "a part waits for a whole GPU that is being freed",
    {"x": "P a"},
    nodes=[node("a", 1)],
    pods=[leaving("a", 1), part("x", 0.5)],
)
case(
    "a whole GPU waits for the last sharer to leave",
    {"x": "P a"},
    nodes=[node("a", 1)],
    pods=[
        part("old", 0.5, [{"state": "leaving", "node": "a", "gpuIndices": [0]}]),
        group("x", 1, 1),
    ],
)
case(
    "a whole GPU does not wait for a device that another one goes on sharing",
    {"x": "-"},
    nodes=[node("a", 1)],
    pods=[
        part("old", 0.5, [{"state": "leaving", "node": "a", "gpuIndices": [0]}]),
        *sharing("a", (0.5, 0)),
        group("x", 1, 1),
    ],
)
case(
    "a part that fits now does not wait",
    {"x": "B b"},
    nodes=[node("a", 1), node("b", 1)],
    pods=[
        part("old", 0.5, [{"state": "leaving", "node": "a", "gpuIndices": [0]}]),
        *sharing("a", (0.5, 0)),
        part("x", 0.5),
    ],
)
case(
    "two parts wait on the device that two leave",
    {"x": "P a, P a"},
    nodes=[node("a", 1)],
    pods=[
        part("o1", 0.5, [{"state": "leaving", "node": "a", "gpuIndices": [0]}]),
        part("o2", 0.5, [{"state": "leaving", "node": "a", "gpuIndices": [0]}]),
        part("x", 0.5, 2),
    ],
)
case(
    "a part that waited is bound once the device is free",
    {"x": "B a"},
    cycles=2,
    nodes=[node("a", 1)],
    pods=[
        part("old", 0.5, [{"state": "leaving", "node": "a", "gpuIndices": [0]}]),
        *sharing("a", (0.5, 0)),
        part("x", 0.5),
    ],
)
case(
    "a required rack counts parts by device",
    {"g": "B b, B b"},
    levels=["rack"],
    nodes=[node("a", 1, "r1"), node("b", 1, "r2"), node("c", 1, "r2")],
    pods=[*sharing("a", (0.2, 0)), busy("c", 1)],
    gangs=[gang("g", part("p", 0.5, 2), required="rack")],
)
case(
    "a quota of one GPU takes two halves",
    {"x": "B a", "y": "B a", "z": "-"},
    nodes=[node("a", 4)],
    queues=[{"name": "q", "gpus": {"quota": 1, "limit": 1}}],
    pods=[part(n, 0.5, queue="q") for n in ("x", "y", "z")],
)

# Memory

case(
    "a share by memory is a part of the node's GPU",
    {"x": "B a", "y": "B a", "z": "-"},
    nodes=[node("a", 1, gpuMemory=100)],
    pods=[memory("x", 50), memory("y", 50), memory("z", 50)],
)
case(
    "a share larger than the GPU fits nowhere",
    {"x": "-"},
    nodes=[node("a", 8, gpuMemory=100)],
    pods=[memory("x", 101)],
)
case(
    "the same memory is a smaller part of a larger GPU",
    {"x": "B b"},
    nodes=[node("a", 1, gpuMemory=100), node("b", 1, gpuMemory=200)],
    pods=[*sharing("a", (0.5, 0)), *sharing("b", (0.5, 0)), memory("x", 80)],
)
case(
    "memory and fractions share a device",
    {"x": "B a", "y": "B a", "z": "-"},
    nodes=[node("a", 1, gpuMemory=100)],
    pods=[part("x", 0.5), memory("y", 30), memory("z", 30)],
)
case(
    "a gang by memory is placed whole",
    {"g": "B a, B a, B b"},
    nodes=[node("a", 1, gpuMemory=100), node("b", 1, gpuMemory=100)],
    gangs=[gang("g", memory("p", 50, 3))],
)
case(
    "a share by memory waits for one that is leaving",
    {"x": "P a"},
    nodes=[node("a", 1, gpuMemory=100)],
    pods=[
        memory("old", 60, [{"state": "leaving", "node": "a", "gpuIndices": [0]}]),
        memory("x", 60),
    ],
)
case(
    "shares by memory pack the node in use",
    {"x": "B b"},
    nodes=[node("a", 2, gpuMemory=100), node("b", 2, gpuMemory=100)],
    pods=[busy("b", 1), memory("x", 20)],
)
# Slices

MIG = {"nvidia.com/mig-1g.10gb": 4, "nvidia.com/mig-3g.40gb": 1}
case(
    "slices of GPUs are taken one by one",
    {"x": "B a, B a, B a, B a, -"},
    nodes=[node("a", 0, allocatable=MIG)],
    pods=[group("x", 5, requests={"nvidia.com/mig-1g.10gb": 1})],
)
case(
    "a slice of one size does not stand in for another",
    {"x": "B a, -"},
    nodes=[node("a", 0, allocatable=MIG)],
    pods=[group("x", 2, requests={"nvidia.com/mig-3g.40gb": 1})],
)
case(
    "a whole GPU is not made of slices",
    {"x": "-"},
    nodes=[node("a", 0, allocatable=MIG)],
    pods=[group("x", 1, 1)],
)
case(
    "a node with whole GPUs and slices serves both",
    {"x": "B a", "y": "B a"},
    nodes=[node("a", 1, allocatable=MIG)],
    pods=[group("x", 1, 1), group("y", requests={"nvidia.com/mig-1g.10gb": 1})],
)
case(
    "a slice waits for one that is being freed",
    {"x": "P a"},
    nodes=[node("a", 0, allocatable={"nvidia.com/mig-1g.10gb": 1})],
    pods=[
        group("old", 0, requests={"nvidia.com/mig-1g.10gb": 1}, leaving=["a"]),
        group("x", requests={"nvidia.com/mig-1g.10gb": 1}),
    ],
)
case(
    "slices pack the node in use",
    {"x": "B b"},
    nodes=[node("a", 0, allocatable=MIG), node("b", 0, allocatable=MIG)],
    pods=[
        group("old", 0, requests={"nvidia.com/mig-1g.10gb": 1}, on=["b"]),
        group("x", requests={"nvidia.com/mig-1g.10gb": 1}),
    ],
)
case(
    "a gang of slices of two sizes is placed whole",
    {"g-s": "B a, B a", "g-l": "B b"},
    nodes=[
        node("a", 0, allocatable={"nvidia.com/mig-1g.10gb": 4}),
        node("b", 0, allocatable=MIG),
    ],
    gangs=[
        gang(
            "g",
            group("s", 2, requests={"nvidia.com/mig-1g.10gb": 1}),
            group("l", 1, requests={"nvidia.com/mig-3g.40gb": 1}),
        )
    ],
)
case(
    "a pod without devices stays off a node with slices",
    {"x": "B z"},
    nodes=[node("a", 0, allocatable=MIG), node("z", 0)],
    pods=[group("x", cpu=1)],
)

test_fractions = TABLE.test()


# Which GPU of the node

SPREAD = {"gpuOrder": "spread"}


@pytest.mark.parametrize(
    ("config", "standing", "pods", "want"),
    [
        pytest.param({}, [(0.5, 0)], [part("x", 0.5)], ["0"], id="packed on the shared one"),
        pytest.param({}, [(0.7, 0)], [part("x", 0.5)], ["1"], id="on a new one without room"),
        pytest.param({}, [(0.2, 0), (0.6, 1)], [part("x", 0.4)], ["1"], id="on the fullest"),
        pytest.param(SPREAD, [(0.5, 0)], [part("x", 0.5)], ["1"], id="spread to a new one"),
        pytest.param(SPREAD, [(0.6, 0), (0.2, 1)], [part("x", 0.3)], ["1"], id="on the emptiest"),
        pytest.param(
            SPREAD, [(0.5, 1), (0.3, 0)], [part("x", 0.6)], ["0"], id="spread where there is room"
        ),
        pytest.param(
            {}, [(0.5, 0)], [part("x", 0.4, gpuDevices=2)], ["0", "1"], id="parts of both"
        ),
    ],
)
def test_the_report_says_which_gpu_is_shared(
    config: dict[str, Any],
    standing: list[tuple[float, int]],
    pods: list[dict[str, Any]],
    want: list[str],
) -> None:
    report = run(
        {"nodes": [node("a", 2), node("b", 2)], "pods": [*sharing("a", *standing), *pods]},
        {"actions": ["allocate"], **config},
    )

    (bound,) = report.cycles[0].bindings
    assert (bound.node, bound.gpus) == ("a", want)


def test_sharers_keep_their_gpus_over_cycles() -> None:
    report = run(
        {"nodes": [node("a", 2)], "pods": [part("x", 0.6), part("y", 0.6), part("z", 0.4)]},
        {"actions": ["allocate"]},
        cycles=3,
    )

    on = {pod.pod.removeprefix("default/"): pod.gpus for pod in report.pods}
    assert on["x"] != on["y"]
    assert on["z"] in (on["x"], on["y"])


def test_sharers_that_wait_are_told_which_gpu() -> None:
    old = part("old", 0.5, [{"state": "leaving", "node": "a", "gpuIndices": [0]}])
    report = run({"nodes": [node("a", 1)], "pods": [old, *sharing("a", (0.5, 0)), part("x", 0.5)]})

    assert [(p.pod, p.node) for p in report.cycles[0].pipelined] == [("default/x", "a")]
    assert len(report.cycles[0].pipelined[0].gpus) == 1
