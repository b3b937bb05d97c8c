"""Gangs that may have more pods than they need: minimums first, then one at a time in turn."""

from __future__ import annotations

from tests.scheduler.offline_table import Table, busy, gang, group, leaving, node

TABLE = Table("allocate")
case = TABLE.case

case(
    "an elastic gang takes what there is",
    {"g": "B a, B a, -"},
    nodes=[node("a", 2)],
    gangs=[gang("g", group("p", 3, 1, minimum=1))],
)
case(
    "below its minimum it takes nothing",
    {"g": "-, -, -"},
    nodes=[node("a", 1)],
    gangs=[gang("g", group("p", 3, 1, minimum=2))],
)
case(
    "two elastic gangs share what is left after their minimums, the first gets the odd one",
    {"x": "B a, B a, B a, -", "y": "B a, B a, -, -"},
    nodes=[node("a", 5)],
    gangs=[gang("x", group("p", 4, 1, minimum=1)), gang("y", group("p", 4, 1, minimum=1))],
)
case(
    "a minimum comes before another gang's growth, whoever is older",
    {"old": "B a, -, -", "new": "B a, B a"},
    nodes=[node("a", 3)],
    gangs=[gang("old", group("p", 3, 1, minimum=1)), gang("new", group("p", 2, 1))],
)
case(
    "growth of a higher priority comes before a minimum of a lower one",
    {"high": "B a, B a, B a", "low": "-, -"},
    nodes=[node("a", 4)],
    gangs=[
        gang("high", group("p", 3, 1, minimum=1), priority=60),
        gang("low", group("p", 2, 1), priority=50),
    ],
)
case(
    "a gang at its minimum grows before one above it",
    {"above": "R a, R a, -", "at": "R a, B a"},
    nodes=[node("a", 4)],
    gangs=[
        gang("above", group("p", 1, 1, on=["a", "a"], minimum=1)),
        gang("at", group("p", 1, 1, on=["a"], minimum=1)),
    ],
)
case(
    "a gang that runs grows when room appears",
    {"g": "R a, B a, -"},
    nodes=[node("a", 2)],
    gangs=[gang("g", group("p", 2, 1, on=["a"], minimum=1))],
)
case(
    "growth waits for a pod that is leaving",
    {"g": "R a, P a"},
    nodes=[node("a", 2)],
    pods=[leaving("a", 1)],
    gangs=[gang("g", group("p", 1, 1, on=["a"], minimum=1))],
)
case(
    "the minimum is bound where it fits and growth alone waits for a leaving pod",
    {"g": "B a, P b"},
    nodes=[node("a", 1), node("b", 1)],
    pods=[leaving("b", 1)],
    gangs=[gang("g", group("p", 2, 1, minimum=1))],
)
case(
    "growth that waits is bound once the room is free",
    {"g": "R a, B a"},
    cycles=2,
    nodes=[node("a", 2)],
    pods=[leaving("a", 1)],
    gangs=[gang("g", group("p", 1, 1, on=["a"], minimum=1))],
)
case(
    "pods of different sizes grow as far as each fits",
    {"g": "B a, B a, -"},
    nodes=[node("a", 3)],
    gangs=[gang("g", group("p", sizes=[1, 4, 2], minimum=1))],
)
case(
    "a gang without a minimum is all growth",
    {"g": "B a, B a, -"},
    nodes=[node("a", 2)],
    gangs=[gang("g", group("p", 3, 1, minimum=0))],
)
case(
    "of two groups the one that has grown less grows next",
    {"g-x": "B a, B a, -, -", "g-y": "B a, B a, B a, B a"},
    nodes=[node("a", 6)],
    gangs=[gang("g", group("x", 4, 1, minimum=1), group("y", 4, 1, minimum=2))],
)
case(
    "growth keeps to the required rack",
    {"g": "B a, B b, -"},
    nodes=[node("a", 1, "r1"), node("b", 1, "r1"), node("c", 8, "r2")],
    pods=[busy("c", 8)],
    gangs=[gang("g", group("p", 3, 1, minimum=2), required="rack")],
)
case(
    "three gangs grow in turn by age",
    {"x": "B a, B a, -", "y": "B a, B a, -", "z": "B a, -, -"},
    nodes=[node("a", 5)],
    gangs=[gang(name, group("p", 3, 1, minimum=1)) for name in ("x", "y", "z")],
)

case(
    "a label decides which pods of a group are the minimum, and which grow first",
    {"g-p-0": "-", "g-p-1": "B a", "g-p-2": "B a"},
    nodes=[node("a", 2)],
    gangs=[
        gang(
            "g",
            group(
                "p",
                [
                    {},
                    {"labels": {"kai.scheduler/task-priority": "2"}},
                    {"labels": {"kai.scheduler/task-priority": "5"}},
                ],
                1,
                minimum=1,
            ),
        )
    ],
)
case(
    "a pod that asks for nothing packs by CPU",
    {"x": "B b"},
    nodes=[node("a", 0, cpu=8), node("b", 0, cpu=8)],
    pods=[busy("b", 0, cpu=4), busy("a", 0), group("x")],
)

case(
    "pods of one rack do not wait in two",
    {"g": "P a, -"},
    nodes=[node("a", 1, "r1"), node("b", 2, "r2")],
    pods=[leaving("a", 1), busy("b", 1), leaving("b", 1)],
    gangs=[gang("g", group("p", 2, 1, minimum=0), required="rack")],
)

test_elastic = TABLE.test()
