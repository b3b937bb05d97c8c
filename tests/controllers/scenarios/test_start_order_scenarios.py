"""Who becomes ready before whom, with pods that wait as their order asks."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import pytest
from tests.controllers.scenarios.stage import lenient, play, strict

from spinney.api.meta import find_condition
from spinney.clock import parse_rfc3339

if TYPE_CHECKING:
    from tests.controllers.scenarios.stage import Stage

IN_ORDER: dict[str, Any] = {"startup": "CliqueStartupTypeInOrder"}
FRONT_LAST_LEAD: dict[str, Any] = {"after": {"work": ["front"], "lead": ["work"]}}
FRONT_LEAD_WORK: dict[str, Any] = {"after": {"lead": ["front"], "work": ["lead"]}}

Before = tuple[str, str]
"""A clique's minimum is ready no later than the first pod of the other."""


def _chain(order: tuple[str, ...], replicas: tuple[int, ...]) -> list[Before]:
    return [
        (f"s-0-x-{i}-{first}", f"s-0-x-{j}-{then}")
        for first, then in itertools.pairwise(order)
        for i in replicas
        for j in replicas
    ]


def _ready_times(stage: Stage, clique: str) -> list[float]:
    found = []
    for pod in stage.pods(clique):
        ready = find_condition(pod.status.conditions, "Ready")
        assert ready is not None
        assert ready.last_transition_time is not None
        found.append(parse_rfc3339(ready.last_transition_time))
    return sorted(found)


@pytest.mark.parametrize(
    ("manifest", "want"),
    [
        pytest.param(
            strict(**IN_ORDER),
            [("s-0-front", f"s-0-x-{j}-lead") for j in (0, 1)] + _chain(("lead", "work"), (0, 1)),
            id="SO1",
        ),
        pytest.param(
            lenient(**IN_ORDER),
            [
                ("s-0-front", "s-0-x-0-lead"),
                *_chain(("lead", "work"), (0,)),
                *_chain(("lead", "work"), (1,)),
            ],
            id="SO2",
        ),
        pytest.param(
            strict(**FRONT_LAST_LEAD),
            [("s-0-front", f"s-0-x-{j}-work") for j in (0, 1)] + _chain(("work", "lead"), (0, 1)),
            id="SO3",
        ),
        pytest.param(
            lenient(**FRONT_LEAD_WORK),
            [
                ("s-0-front", "s-0-x-0-lead"),
                *_chain(("lead", "work"), (0,)),
                *_chain(("lead", "work"), (1,)),
            ],
            id="SO4",
        ),
    ],
)
def test_roles_become_ready_in_their_order(manifest: dict[str, Any], want: list[Before]) -> None:
    async def scene(stage: Stage) -> None:
        await stage.apply(manifest)
        await stage.ready(10)
        for first, then in want:
            minimum = (await stage.clique(first)).spec.min_available or 1
            reached = _ready_times(stage, first)[minimum - 1]
            assert reached <= _ready_times(stage, then)[0], f"{first} before {then}"

    play(scene, 10)


def test_a_replacement_waits_for_its_parents_again() -> None:
    async def scene(stage: Stage) -> None:
        await stage.apply(strict(**IN_ORDER))
        await stage.ready(10)
        before = stage.uids("s-0-x-0-lead")
        for pod in stage.pods("s-0-front"):
            stage.cluster.kubelets.crash(pod.key)
        await stage.delete_pod("s-0-x-0-lead")
        await stage.settle(0.7)
        await stage.ready(10)
        assert not before & stage.uids("s-0-x-0-lead")
        assert _ready_times(stage, "s-0-front")[1] <= _ready_times(stage, "s-0-x-0-lead")[0]

    play(scene, 10)
