"""What is made anew, from what is written in the status of cliques and the time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from tests.controllers.farm import clique, pcs, typed

from spinney.api.grove import (
    CurrentlyUpdating,
    PodClique,
    PodCliqueScalingGroup,
    PodCliqueScalingGroupSpec,
    PodCliqueSetUpdateProgress,
    PodCliqueSpec,
)
from spinney.api.meta import Condition, ObjectMeta
from spinney.clock import rfc3339
from spinney.controllers.termination.decide import decide
from spinney.controllers.termination.kept import KEPT_REPLICAS, note, resume

if TYPE_CHECKING:
    from spinney.api.grove import PodCliqueSet
    from spinney.controllers.termination.decide import Plan

START_S = 1_767_225_600.0
DELAY_S = 100.0


def service(replicas: int = 3, minimum: int = 2) -> PodCliqueSet:
    group = {
        "name": "g",
        "cliqueNames": ["b"],
        "replicas": replicas,
        "minAvailable": minimum,
    }
    return typed(pcs(clique("a"), clique("b"), groups=[group], terminationDelay="100s"))


def group(replicas: int = 3, minimum: int = 2) -> dict[str, PodCliqueScalingGroup]:
    spec = PodCliqueScalingGroupSpec(replicas=replicas, min_available=minimum, clique_names=["b"])
    return {"s-0-g": PodCliqueScalingGroup(metadata=ObjectMeta(name="s-0-g"), spec=spec)}


def part(name: str, breached_s: float | None = None, *, ran: bool = True) -> PodClique:
    """A clique, whole or broken since *breached_s* seconds after the start."""
    labels = {}
    if name != "s-0-a":
        labels = {
            "grove.io/podcliquescalinggroup": "s-0-g",
            "grove.io/podcliquescalinggroup-replica-index": name.split("-")[3],
        }
    since = rfc3339(START_S + (breached_s or 0.0))
    made = PodClique(
        metadata=ObjectMeta(name=name, uid=name, labels=labels, annotations={}),
        spec=PodCliqueSpec(replicas=1, min_available=1),
    )
    made.status.conditions = [
        Condition(
            type="MinAvailableBreached",
            status="False" if breached_s is None else "True",
            last_transition_time=since,
        ),
        Condition(type="MinAvailableReached", status=str(ran)),
    ]
    return made


def cliques(**breached: Any) -> list[PodClique]:
    """The four cliques of the service; ``a=5`` broke at 5, ``b1=(5, False)`` has never run."""
    found = []
    for key, name in [("a", "s-0-a"), *((f"b{j}", f"s-0-g-{j}-b") for j in range(3))]:
        since = breached.get(key)
        found.append(
            part(name, since[0], ran=since[1]) if isinstance(since, tuple) else part(name, since)
        )
    return found


def plan(now: float, parts: list[PodClique], **sizes: int) -> Plan:
    return decide(service(**sizes), 0, group(**sizes), parts, START_S + now)


def told(found: Plan) -> tuple[list[str], list[tuple[str, float]]]:
    later = [(breach.name, breach.due_s - START_S) for breach in found.later]
    return [breach.name for breach in found.now], later


@pytest.mark.parametrize(
    ("now", "broken", "want"),
    [
        pytest.param(500, {}, ([], []), id="whole"),
        pytest.param(50, {"a": 0}, ([], [("s-0-a", 100)]), id="not-yet"),
        pytest.param(100, {"a": 0}, (["s-0-a"], []), id="standalone-takes-all"),
        pytest.param(500, {"a": (0, False)}, ([], []), id="never-ran"),
        pytest.param(100, {"b0": 0}, (["s-0-g-0"], []), id="one-replica-goes-alone"),
        pytest.param(
            100, {"b0": 0, "b1": 50}, ([], [("s-0-g", 150)]), id="group-broke-with-the-second"
        ),
        pytest.param(150, {"b0": 0, "b1": 50}, (["s-0-g"], []), id="group-takes-all"),
        pytest.param(
            500, {"b0": (0, False), "b1": 450}, ([], [("s-0-g", 550)]), id="one-waits-one-breaks"
        ),
        pytest.param(
            900, {"b0": (0, False), "b1": (0, False)}, ([], []), id="waiting-ends-nothing"
        ),
        pytest.param(100, {"a": 0, "b0": 0}, (["s-0-a"], []), id="the-whole-covers-the-part"),
    ],
)
def test_a_breach_ends_what_depends_on_it_after_the_delay(
    now: float, broken: dict[str, Any], want: Any
) -> None:
    assert told(plan(now, cliques(**broken))) == want


def test_replicas_of_a_group_go_alone_only_while_the_minimum_is_whole() -> None:
    found = plan(100, cliques(b0=0, b1=10), minimum=1, replicas=3)
    assert told(found) == (["s-0-g-0"], [("s-0-g-1", 110)])


def test_a_group_replica_that_is_being_made_is_not_whole() -> None:
    parts = [c for c in cliques(b0=0) if c.name != "s-0-g-1-b"]
    assert told(plan(100, parts)) == ([], [("s-0-g", 200)])


def test_offenders_go_last_so_that_an_interruption_is_made_up_for() -> None:
    (breach,) = plan(100, cliques(a=0)).now
    assert [c.name for c in breach.cliques][-1] == "s-0-a"
    assert len(breach.cliques) == 4


def test_nothing_is_decided_during_an_update_or_while_a_clique_is_made_again() -> None:
    updating = service()
    updating.status.update_progress = PodCliqueSetUpdateProgress(
        currently_updating=[CurrentlyUpdating(replica_index=0)]
    )
    assert decide(updating, 0, group(), cliques(a=0), START_S + 500).now == ()
    updating.status.update_progress.update_ended_at = rfc3339(START_S)
    assert decide(updating, 0, group(), cliques(a=0), START_S + 500).now
    assert plan(500, cliques(b0=0)[1:]).now == ()


def test_a_replica_that_is_scaled_away_is_not_made_anew() -> None:
    smaller = service()
    smaller.spec.replicas = 0
    assert decide(smaller, 0, group(), cliques(a=0), START_S + 500).now == ()


def test_a_breach_is_announced_before_it_is_acted_on() -> None:
    early = plan(10, cliques(a=0))
    assert early.next_s(START_S + 10) == START_S + 50
    assert early.next_s(START_S + 60) == START_S + 100


def _scaled(replicas: int, template: str) -> PodClique:
    found = part("s-0-a")
    found.spec.replicas = replicas
    found.metadata.annotations = {"spinney.dev/template-replicas": template}
    return found


def test_a_scaled_count_is_carried_over_unless_the_template_was_edited() -> None:
    from spinney.api.podgang import PodGang

    text = note([_scaled(5, "1")])
    assert text is not None
    gang = PodGang(metadata=ObjectMeta(annotations={KEPT_REPLICAS: text}))
    assert resume(_scaled(1, "1"), gang).spec.replicas == 5
    assert resume(_scaled(2, "2"), gang).spec.replicas == 2
    assert resume(_scaled(1, "1"), None).spec.replicas == 1
    assert note([_scaled(1, "1")]) is None
