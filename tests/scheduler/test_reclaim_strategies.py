"""Whether a queue may take from another: two strategies, asked before each victim.

*Maintain*: the victim's side has more than it is entitled to. *Guarantee*: it has more than its
quota, and the taker's side stays within its own. The taker's queue stays within its fair share of
everything, and no department grows past its share at the cost of one that has less of its own.
"""

from __future__ import annotations

from typing import Any

import pytest
from tests.scheduler.eviction_table import asks, cluster, node, queue, runs

from spinney.scheduler.actions.reclaim import may_reclaim
from spinney.scheduler.actions.victims import units_of
from spinney.scheduler.actions.wishes import wish_of
from spinney.scheduler.session import Session


def taken(document: dict[str, Any]) -> list[str]:
    """Return the gangs of which the gang ``x`` may take something, in the order of the document."""
    session = Session(cluster(document).cache.snapshot())
    assert session.ledger is not None
    gang = next(g for g in session.snapshot.gangs if g.key == "default/x")
    wish = wish_of(session, gang)
    assert wish is not None
    standing = [g for g in session.snapshot.standing if g.preemptible]
    units = [u for g in standing for u in units_of(session, g, 0)]
    found = may_reclaim(session.ledger, wish, units)
    return [u.gang.key.removeprefix("default/") for u in found]


def case(sentence: str, want: str, **document: Any) -> Any:
    return pytest.param({"nodes": [node("n", 64)], **document}, want.split(), id=sentence)


def full(count: int) -> list[dict[str, Any]]:
    return [node("n", count)]


CASES = [
    case(
        "one above its share gives until it is at it",
        "a b",
        nodes=full(4),
        queues=[queue("q", 2, weight=0), queue("r", 2)],
        gangs=[*(runs(n, "q", "n") for n in "abcd"), asks("x", "r", 2)],
    ),
    case(
        "one at its share gives nothing",
        "",
        nodes=full(4),
        queues=[queue("q", 2, weight=0), queue("r", 2)],
        gangs=[*(runs(n, "q", "n") for n in "ab"), asks("x", "r", 2)],
    ),
    case(
        "one that is above by a part of a gang gives the whole gang",
        "a",
        nodes=full(4),
        queues=[queue("q", 2, weight=0), queue("r", 2)],
        gangs=[runs("a", "q", "n n n"), runs("b", "q", "n"), asks("x", "r", 2)],
    ),
    case(
        "a share that grew by weight is kept",
        "a",
        nodes=full(4),
        queues=[queue("q", weight=3), queue("r")],
        gangs=[*(runs(n, "q", "n") for n in "abcd"), asks("x", "r", 1)],
    ),
    case(
        "one whose own share is too small takes nothing",
        "",
        nodes=full(4),
        queues=[queue("q", weight=3), queue("r")],
        gangs=[*(runs(n, "q", "n") for n in "abcd"), asks("x", "r", 2)],
    ),
    case(
        "inside its quota it takes what is beyond the other's quota, though within its share",
        "a b c",
        queues=[queue("q", 1), queue("r", 1)],
        gangs=[*(runs(n, "q", "n") for n in "abcd"), asks("x", "r", 1)],
    ),
    case(
        "beyond its quota it does not",
        "",
        queues=[queue("q", 1), queue("r", 0)],
        gangs=[*(runs(n, "q", "n") for n in "abcd"), asks("x", "r", 1)],
    ),
    case(
        "an unlimited quota is never exceeded",
        "",
        queues=[queue("q", -1), queue("r", 4)],
        gangs=[*(runs(n, "q", "n") for n in "ab"), asks("x", "r", 1)],
    ),
    case(
        "one of unlimited quota takes all that is beyond quotas",
        "a b",
        queues=[queue("q", 0), queue("r", -1)],
        gangs=[*(runs(n, "q", "n") for n in "ab"), asks("x", "r", 1)],
    ),
    case(
        "a limit below the share is what one is entitled to",
        "a b",
        nodes=full(4),
        queues=[queue("q", 4, 2), queue("r", 2)],
        gangs=[*(runs(n, "q", "n") for n in "abcd"), asks("x", "r", 2)],
    ),
    case(
        "what is not preemptible takes within the quota",
        "a",
        nodes=full(2),
        queues=[queue("q", 1, weight=0), queue("r", 1)],
        gangs=[*(runs(n, "q", "n") for n in "ab"), asks("x", "r", 1, preemptible=False)],
    ),
    case(
        "and not within the surplus",
        "",
        nodes=full(2),
        queues=[queue("q", 0, weight=0), queue("r", 0)],
        gangs=[*(runs(n, "q", "n") for n in "ab"), asks("x", "r", 1, preemptible=False)],
    ),
    case(
        "a queue of lower priority gives its surplus",
        "a b",
        nodes=full(2),
        queues=[queue("q"), queue("r", priority=200)],
        gangs=[*(runs(n, "q", "n") for n in "ab"), asks("x", "r", 2)],
    ),
    case(
        "one of higher priority does not",
        "",
        nodes=full(2),
        queues=[queue("q", priority=200), queue("r")],
        gangs=[*(runs(n, "q", "n") for n in "ab"), asks("x", "r", 1)],
    ),
    case(
        "siblings are asked at their own level",
        "b",
        nodes=full(4),
        queues=[
            queue("d", 4),
            queue("q", 1, weight=0, parent="d"),
            queue("r", 3, parent="d"),
        ],
        gangs=[runs("b", "q", "n"), runs("a", "q", "n"), asks("x", "r", 3)],
    ),
    case(
        "cousins are asked at the level of their parents",
        "",
        nodes=full(4),
        queues=[
            queue("d", 2, weight=0),
            queue("e", 2),
            queue("q", 0, weight=0, parent="d"),
            queue("r", 2, parent="e"),
        ],
        gangs=[runs("a", "q", "n"), runs("b", "q", "n"), asks("x", "r", 2)],
    ),
    case(
        "a department beyond its share gives whatever its team has",
        "a",
        nodes=full(4),
        queues=[
            queue("d", 2, weight=0),
            queue("e", 2),
            queue("q", 4, parent="d"),
            queue("r", 2, parent="e"),
        ],
        gangs=[*(runs(n, "q", "n") for n in "abc"), asks("x", "r", 2)],
    ),
    case(
        "a team without quota takes within its department's",
        "a b",
        queues=[
            queue("d", 0),
            queue("e", 2),
            queue("q", 0, parent="d"),
            queue("r", 0, parent="e"),
        ],
        gangs=[*(runs(n, "q", "n") for n in "ab"), asks("x", "r", 1)],
    ),
    case(
        "a department that has more of its share than another takes nothing from it",
        "",
        nodes=full(10),
        queues=[
            queue("d", 4, weight=0),
            queue("e", 4, weight=0),
            queue("q", 4, parent="d"),
            queue("r", 2, parent="e"),
            queue("s", 2, parent="e"),
        ],
        gangs=[
            *(runs(n, "q", "n") for n in "abcdef"),
            runs("m", "s", "n n n n", preemptible=False),
            asks("x", "r", 2),
        ],
    ),
    case(
        "unless the other has far more",
        "a b",
        nodes=full(14),
        queues=[
            queue("d", 4, weight=0),
            queue("e", 4, weight=0),
            queue("q", 4, parent="d"),
            queue("r", 2, parent="e"),
            queue("s", 2, parent="e"),
        ],
        gangs=[
            *(runs(n, "q", "n") for n in "abcdefghi"),
            runs("m", "s", "n n n n", preemptible=False),
            asks("x", "r", 2),
        ],
    ),
    case(
        "who has nothing of what is wanted gives nothing",
        "b",
        nodes=full(1),
        queues=[queue("q", 0, weight=0), queue("r", 1)],
        gangs=[runs("a", "q", "n", 0, cpu=1), runs("b", "q", "n"), asks("x", "r", 1)],
    ),
    case(
        "a queue that has too much of something else takes nothing",
        "",
        nodes=full(2),
        queues=[queue("q", 0, weight=0), queue("r", 2, cpu={"quota": 1, "weight": 0})],
        gangs=[
            runs("a", "q", "n"),
            runs("b", "q", "n"),
            runs("m", "r", "n", 0, cpu=4, preemptible=False),
            asks("x", "r", 1),
        ],
    ),
    case(
        "surplus of a gang is asked for before its minimum",
        "a a",
        nodes=full(3),
        queues=[queue("q", 1, weight=0), queue("r", 2)],
        gangs=[runs("a", "q", "n n n", minimum=1), asks("x", "r", 2)],
    ),
    case(
        "once a gang is spared, all of it is",
        "a",
        nodes=full(4),
        queues=[queue("q", 3, weight=0), queue("r", 1)],
        gangs=[runs("a", "q", "n n n n", minimum=1), asks("x", "r", 1)],
    ),
]


@pytest.mark.parametrize(("document", "want"), CASES)
def test_what_may_be_taken(document: dict[str, Any], want: list[str]) -> None:
    for gang in document["gangs"]:
        gang.setdefault("preemptible", True)
    assert taken(document) == want
