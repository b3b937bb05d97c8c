"""Gangs on a cluster that is too small: what starts, what waits, and in which order room is used.

A story is a number of nodes that are closed at first, a set, and steps. After each step the pods
that have nodes are compared, clique by clique: no gang may be there by half.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from tests.controllers.scenarios.stage import lenient, play, strict

from spinney.api.grove import PodCliqueScalingGroup, PodCliqueSet

if TYPE_CHECKING:
    from tests.controllers.scenarios.stage import Stage

Pods = Counter[str]
Step = tuple[str, int, Pods]
"""What happens, how much of it, and which pods have nodes then."""

NONE: Pods = Counter()


def base(i: int = 0, front: int = 1, work: int = 1) -> Pods:
    """The base gang of `lenient` at its minimum, or as given."""
    return Counter({f"s-{i}-front": front, f"s-{i}-x-0-lead": 1, f"s-{i}-x-0-work": work})


def replica(i: int, j: int, work: int = 3) -> Pods:
    """A replica of the scaling group."""
    return Counter({f"s-{i}-x-{j}-lead": 1, f"s-{i}-x-{j}-work": work})


def whole(i: int = 0, group_replicas: int = 2) -> Pods:
    """All pods of a replica of the set."""
    scaled = (replica(i, j) for j in range(1, group_replicas))
    return sum(scaled, base(i, 2, 3))


STRICT: dict[str, tuple[int, int, list[Step]]] = {
    "GS1": (10, 1, [("open", 1, whole())]),
    "GS2": (
        14,
        5,
        [("open", 1, whole()), ("group-0", 3, whole()), ("open", 4, whole(0, 3))],
    ),
    "GS3": (
        20,
        11,
        [("open", 1, whole()), ("set", 2, whole()), ("open", 10, whole() + whole(1))],
    ),
    "GS4": (
        28,
        19,
        [
            ("open", 1, whole()),
            ("group-0", 3, whole()),
            ("open", 4, whole(0, 3)),
            ("set", 2, whole(0, 3)),
            ("open", 10, whole(0, 3) + whole(1)),
            ("group-1", 3, whole(0, 3) + whole(1)),
            ("open", 4, whole(0, 3) + whole(1, 3)),
        ],
    ),
}
LENIENT: dict[str, tuple[int, int, list[Step]]] = {
    "GS5": (10, 8, [("open", 1, base()), ("open", 7, whole())]),
    "GS6": (
        14,
        12,
        [
            ("open", 1, base()),
            ("open", 7, whole()),
            ("group-0", 3, whole()),
            ("open", 2, whole() + replica(0, 2, 1)),
            ("open", 2, whole(0, 3)),
        ],
    ),
    "GS7": (
        14,
        12,
        [
            ("open", 1, base()),
            ("open", 2, base() + replica(0, 1, 1)),
            ("open", 5, whole()),
            ("group-0", 3, whole()),
            ("open", 2, whole() + replica(0, 2, 1)),
            ("open", 2, whole(0, 3)),
        ],
    ),
    "GS8": (
        14,
        12,
        [
            ("group-0", 3, NONE),
            ("open", 1, base()),
            ("open", 4, base() + replica(0, 1, 1) + replica(0, 2, 1)),
            ("open", 7, whole(0, 3)),
        ],
    ),
    "GS9": (
        20,
        18,
        [
            ("open", 1, base()),
            ("open", 7, whole()),
            ("set", 2, whole()),
            ("open", 3, whole() + base(1)),
            ("open", 7, whole() + whole(1)),
        ],
    ),
    "GS10": (
        20,
        18,
        [
            ("set", 2, NONE),
            ("open", 4, base() + base(1)),
            ("open", 4, base() + base(1) + replica(0, 1, 1) + replica(1, 1, 1)),
            ("open", 10, whole() + whole(1)),
        ],
    ),
    "GS11": (
        28,
        26,
        [
            ("open", 1, base()),
            ("open", 7, whole()),
            ("group-0", 3, whole()),
            ("open", 2, whole() + replica(0, 2, 1)),
            ("open", 2, whole(0, 3)),
            ("set", 2, whole(0, 3)),
            ("open", 3, whole(0, 3) + base(1)),
            ("open", 7, whole(0, 3) + whole(1)),
            ("group-1", 3, whole(0, 3) + whole(1)),
            ("open", 2, whole(0, 3) + whole(1) + replica(1, 2, 1)),
            ("open", 2, whole(0, 3) + whole(1, 3)),
        ],
    ),
    "GS12": (
        28,
        26,
        [
            ("set", 2, NONE),
            ("group-0", 3, NONE),
            ("group-1", 3, NONE),
            ("open", 4, base() + base(1)),
            (
                "open",
                8,
                base()
                + base(1)
                + replica(0, 1, 1)
                + replica(0, 2, 1)
                + replica(1, 1, 1)
                + replica(1, 2, 1),
            ),
            ("open", 14, whole(0, 3) + whole(1, 3)),
        ],
    ),
}


def story(manifest: dict[str, Any], nodes: int, closed: int, steps: list[Step]) -> None:
    async def scene(stage: Stage) -> None:
        await stage.close_nodes(closed)
        await stage.apply(manifest)
        await stage.settle()
        assert stage.on_nodes() == (NONE if nodes - closed < 10 else whole())
        for at, (what, amount, want) in enumerate(steps):
            if what == "open":
                await stage.open_nodes(amount)
            elif what == "set":
                await stage.scale(PodCliqueSet, "s", amount)
            else:
                name = f"s-{what.removeprefix('group-')}-x"
                await stage.scale(PodCliqueScalingGroup, name, amount)
            await stage.settle()
            assert Counter(stage.on_nodes()) == want, f"step {at}: {what} {amount}"
        await stage.ready(sum(steps[-1][2].values()))

    play(scene, nodes)


@pytest.mark.parametrize("name", STRICT)
def test_a_gang_that_needs_all_its_pods_waits_for_room_for_all(name: str) -> None:
    story(strict(), *STRICT[name])


@pytest.mark.parametrize("name", LENIENT)
def test_room_goes_to_the_minimums_of_all_gangs_before_any_grows(name: str) -> None:
    story(lenient(), *LENIENT[name])
