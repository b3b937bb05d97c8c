from __future__ import annotations

import pytest
from tests.controllers.farm import clique, pcs, typed

from spinney.controllers.start_order import has_order, starts_after
from spinney.controllers.template import Count

IN_ORDER = "CliqueStartupTypeInOrder"
EXPLICIT = "CliqueStartupTypeExplicit"
ANY = "CliqueStartupTypeAnyOrder"


def group(replicas: int, minimum: int) -> list[dict[str, object]]:
    return [
        {"name": "sg", "cliqueNames": ["b", "c"], "replicas": replicas, "minAvailable": minimum}
    ]


# Each case: start-up type, minAvailable of the group of b and c, clique, its group replica, want.
# Explicit order here: c after a, b after c, d after b.
CASES = [
    pytest.param(ANY, 2, "c", 0, [], id="any order waits for nobody"),
    pytest.param(IN_ORDER, 2, "a", None, [], id="the first in order waits for nobody"),
    pytest.param(IN_ORDER, 2, "b", 0, ["s-0-a"], id="a member waits for a standalone clique"),
    pytest.param(
        IN_ORDER,
        2,
        "c",
        0,
        ["s-0-sg-0-b", "s-0-sg-1-b"],
        id="a base member waits for its parent in every base replica of its own group",
    ),
    pytest.param(IN_ORDER, 1, "c", 0, ["s-0-sg-0-b"], id="the base is one replica"),
    pytest.param(IN_ORDER, 1, "c", 1, ["s-0-sg-1-b"], id="a scaled member waits in its replica"),
    pytest.param(IN_ORDER, 1, "b", 1, [], id="a scaled member drops parents outside its group"),
    pytest.param(
        IN_ORDER,
        2,
        "d",
        None,
        ["s-0-sg-0-c", "s-0-sg-1-c"],
        id="a standalone clique waits for the group's base replicas",
    ),
    pytest.param(EXPLICIT, 2, "c", 1, ["s-0-a"], id="explicit: member after standalone"),
    pytest.param(
        EXPLICIT, 2, "b", 1, ["s-0-sg-0-c", "s-0-sg-1-c"], id="explicit: member after member"
    ),
    pytest.param(EXPLICIT, 1, "b", 2, ["s-0-sg-2-c"], id="explicit: scaled keeps its own replica"),
    pytest.param(EXPLICIT, 1, "c", 2, [], id="explicit: scaled drops the standalone parent"),
]


@pytest.mark.parametrize(("startup", "minimum", "name", "j", "want"), CASES)
def test_parents_expand_over_groups(
    startup: str, minimum: int, name: str, j: int | None, want: list[str]
) -> None:
    found = typed(
        pcs(
            clique("a"),
            clique("b", after=["c"]),
            clique("c", after=["a"]),
            clique("d", after=["b"]),
            groups=group(3, minimum),
            startup=startup,
        )
    )
    assert starts_after(found, 0, name, {}, j) == want


def test_parents_are_those_of_the_same_replica_of_the_set() -> None:
    found = typed(pcs(clique("a"), clique("b"), startup=IN_ORDER))
    assert starts_after(found, 7, "b", {}) == ["s-7-a"]


def test_a_group_scaled_to_zero_is_not_waited_for() -> None:
    found = typed(pcs(clique("b"), clique("c"), clique("d"), groups=group(2, 1), startup=IN_ORDER))
    assert starts_after(found, 0, "d", {"sg": Count(0, 1)}) == []
    assert starts_after(found, 0, "d", {"sg": Count(1, 1)}) == ["s-0-sg-0-c"]


def test_start_order_needs_access_only_where_somebody_waits() -> None:
    assert not has_order(typed(pcs(clique("a"), clique("b"))).spec.template)
    assert not has_order(typed(pcs(clique("a"), clique("b"), startup=EXPLICIT)).spec.template)
    assert has_order(typed(pcs(clique("a"), clique("b"), startup=IN_ORDER)).spec.template)
