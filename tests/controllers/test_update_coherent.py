"""The coherent planner: tables, and a world in which everything goes wrong."""

from __future__ import annotations

import itertools
from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spinney.controllers.update.coherent import Budget, Role, Step, capacity, step
from spinney.controllers.update.plan import PLAN, read_plan, write_plan


def role(name: str, units: str, *, wanted: int | None = None, minimum: int = 0) -> Role:
    """A role by its units: lower case does not serve; the target is C."""
    return Role(
        name,
        len(units) if wanted is None else wanted,
        minimum,
        "C",
        tuple(units.upper()),
        tuple(unit.isupper() for unit in units),
    )


def units(found: Step) -> dict[str, str]:
    return {name: "".join(plan) for name, plan in found.plans.items()}


HALF = Budget(Fraction(1, 2), 1, 0)


@pytest.mark.parametrize(
    ("roles", "budget", "want"),
    [
        pytest.param(
            [role("p", "AA"), role("d", "AA")], HALF, {"p": "CA", "d": "CA"}, id="matched halves"
        ),
        pytest.param(
            [role("p", "AA"), role("d", "AAAA")],
            HALF,
            {"p": "CA", "d": "CAAA"},
            id="one unit of each at a time",
        ),
        pytest.param(
            [role("p", "A"), role("d", "A")],
            Budget(Fraction(1), 0, 1),
            {"p": "AC", "d": "AC"},
            id="a pair beside the only pair",
        ),
        pytest.param(
            [role("p", "AC", wanted=1), role("d", "Ac", wanted=1)],
            Budget(Fraction(1), 0, 1),
            {"p": "AC", "d": "AC"},
            id="half a pair is no capacity",
        ),
        pytest.param(
            [role("p", "AC", wanted=1), role("d", "AC", wanted=1)],
            Budget(Fraction(1), 0, 1),
            {"p": "CC", "d": "CC"},
            id="the old pair goes when the new one serves",
        ),
        pytest.param(
            [role("p", "CC", wanted=1), role("d", "C", wanted=1)],
            Budget(Fraction(1), 0, 1),
            {"p": "C", "d": "C"},
            id="at the end the surge goes",
        ),
        pytest.param(
            [role("p", "aA"), role("d", "AA")],
            Budget(Fraction(1), 1, 0),
            {"p": "CA", "d": "CA"},
            id="what does not serve costs nothing",
        ),
        pytest.param(
            [role("p", "cAA"), role("d", "CAA")],
            Budget(Fraction(1, 3), 1, 0),
            {"p": "CAA", "d": "CAA"},
            id="a broken revision stops at its budget",
        ),
        pytest.param(
            [role("p", "AAA", minimum=3), role("d", "AAA", minimum=3)],
            Budget(Fraction(0), 3, 0),
            {"p": "CAA", "d": "CAA"},
            id="below minAvailable no further unit is taken",
        ),
        pytest.param(
            [role("p", "AAA", minimum=3)],
            Budget(Fraction(0), 3, 0),
            {"p": "CAA"},
            id="below minAvailable also where no other role holds it back",
        ),
        pytest.param(
            [role("p", "AAA", minimum=2)],
            Budget(Fraction(0), 3, 0),
            {"p": "CCA"},
            id="at minAvailable one more unit is taken",
        ),
        pytest.param(
            [role("p", "aaaa")],
            HALF,
            {"p": "CAAA"},
            id="also of units that do not serve only as many as the budget change at a time",
        ),
        pytest.param(
            [role("p", "A", minimum=3)],
            Budget(Fraction(0), 1, 0),
            {"p": "C"},
            id="a minimum above what is wanted holds nothing up",
        ),
    ],
)
def test_a_step(roles: list[Role], budget: Budget, want: dict[str, str]) -> None:
    assert units(step(roles, budget)) == want


def test_a_budget_that_allows_nothing_is_named() -> None:
    found = step([role("p", "A"), role("d", "A")], Budget(Fraction(1), 1, 0))
    assert "raise maxSurge" in found.blocked
    assert units(found) == {"p": "A", "d": "A"}


def test_roles_count_only_with_their_own_revision() -> None:
    assert capacity([role("p", "CA"), role("d", "AA")]) == Fraction(1, 2)
    assert capacity([role("p", "CC"), role("d", "AA")]) == 0
    assert capacity([role("p", "CA"), replace(role("r", "C"), paired=False)]) == 1


def test_units_that_revisions_share_are_split_over_them_but_counted_once() -> None:
    sets = {"B": ("2", "3"), "C": ("3",)}
    shared = replace(role("p", "BB"), target="B", sets=sets)
    other = replace(role("d", "BC"), sets={"B": ("2",), "C": ("3",)})
    assert capacity([shared, other]) == 1
    assert capacity([replace(shared, ready=(True, False)), other]) == Fraction(1, 2)
    third = replace(other, name="e", plan=("B", "B"), sets=other.sets)
    assert capacity([shared, other, third]) == Fraction(1, 2)


def test_a_pause_holds_revisions_and_follows_the_scale() -> None:
    roles = [role("p", "AA", wanted=3), role("d", "AA")]
    assert units(step(roles, HALF, paused=True)) == {"p": "AAC", "d": "AA"}


def test_a_role_that_is_off_holds_nothing_up() -> None:
    off = step([role("p", "AA", wanted=0), role("d", "C")], HALF)
    assert units(off) == {"p": "", "d": "C"}
    assert step([role("p", "", wanted=0), role("d", "C")], HALF).done
    assert not step([replace(role("p", "C"), leaving=True)], HALF).done


@given(st.lists(st.sampled_from(["ab12", "cd-34"]), max_size=9))
def test_a_plan_survives_its_annotation(plan: list[str]) -> None:
    assert read_plan({PLAN: write_plan(plan)}) == tuple(plan)


budgets = st.builds(
    Budget,
    st.sampled_from([Fraction(n, 100) for n in (0, 25, 50, 75, 90, 100)]),
    st.sampled_from([0, 1, 2, "25%", "50%"]),
    st.sampled_from([0, 1, 2, "25%"]),
)


class World:
    """Units that become ready, or never do, or fail; and plans that the planner changes."""

    def __init__(self, sizes: list[int], budget: Budget, broken: set[str]) -> None:
        self.budget, self.broken, self.target = budget, broken, "A"
        self.roles = [
            Role(f"r{i}", n, n if i % 2 else 1, "A", ("A",) * n, (True,) * n)
            for i, n in enumerate(sizes)
        ]
        self.paused = False

    def plan(self) -> Step:
        before = self.roles
        found = step(before, self.budget, paused=self.paused)
        after = []
        for old in before:
            new = found.plans[old.name]
            ready = [
                i < len(old.plan) and old.plan[i] == pod_hash and old.ready[i]
                for i, pod_hash in enumerate(new)
            ]
            after.append(replace(old, plan=new, ready=tuple(ready)))
            assert len(new) <= max(len(old.plan), old.wanted + self.budget.surge(old))
        assert capacity(after) >= min(self.budget.floor, capacity(before))
        for old, new_role in zip(before, after, strict=True):
            taken = sum(old.ready) - sum(new_role.ready)
            left = old.wanted - self.budget.unavailable(old)
            assert not old.wanted or taken <= 0 or sum(new_role.ready) >= left
        self.roles = after
        return found

    def come_up(self, bits: int) -> None:
        changed = []
        for found in self.roles:
            ready = []
            for pod_hash, was in zip(found.plan, found.ready, strict=True):
                bits, lucky = divmod(bits, 2)
                ready.append(was or (bool(lucky) and pod_hash not in self.broken))
            changed.append(replace(found, ready=tuple(ready)))
        self.roles = changed

    def fail(self, pick: int) -> None:
        i = pick % len(self.roles)
        found = self.roles[i]
        if found.plan:
            j = pick // len(self.roles) % len(found.plan)
            ready = (*found.ready[:j], False, *found.ready[j + 1 :])
            self.roles[i] = replace(found, ready=ready)

    def scale(self, pick: int) -> None:
        i = pick % len(self.roles)
        self.roles[i] = replace(self.roles[i], wanted=pick // len(self.roles) % 6)

    def retarget(self, pick: int) -> None:
        target = "ABC"[pick % 3]
        self.roles = [replace(found, target=target) for found in self.roles]


events = st.tuples(
    st.sampled_from(["up", "up", "up", "fail", "scale", "target", "pause"]), st.integers(0, 2**20)
)


@settings(max_examples=120, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=3),
    budget=budgets,
    broken=st.sets(st.sampled_from("BC"), max_size=2),
    script=st.lists(events, max_size=25),
)
def test_no_step_takes_capacity_below_the_floor(
    sizes: list[int], budget: Budget, broken: set[str], script: list[tuple[str, int]]
) -> None:
    world = World(sizes, budget, broken)
    world.retarget(1)
    for what, pick in script:
        match what:
            case "up":
                world.come_up(pick)
            case "fail":
                world.fail(pick)
            case "scale":
                world.scale(pick)
            case "target":
                world.retarget(pick)
            case _:
                world.paused = not world.paused
        world.plan()


def ends(world: World) -> bool:
    """Whether the update ends when all comes up; if not, it has to say what it lacks."""
    for _ in range(80):
        world.come_up(-1)
        found = world.plan()
        if found.done or found.blocked:
            return found.done
    raise AssertionError(world.roles)


surges = {
    "sizes": st.lists(st.integers(1, 9), min_size=1, max_size=3),
    "floor": st.sampled_from([0, 50, 75, 100]),
    "unavailable": st.sampled_from([0, 1, "25%"]),
    "surge": st.sampled_from([1, 2, "25%"]),
    "script": st.lists(events, max_size=10),
    "bits": st.integers(0, 2**20),
}


@settings(max_examples=60, deadline=None)
@given(**surges)
def test_with_a_surge_every_update_comes_to_its_end(
    sizes: list[int],
    floor: int,
    unavailable: int | str,
    surge: int | str,
    script: list[tuple[str, int]],
    bits: int,
) -> None:
    world = World(sizes, Budget(Fraction(floor, 100), unavailable, surge), set())
    world.retarget(1)
    for what, pick in script:
        if what == "scale":
            world.scale(pick)
        world.plan()
        world.come_up(bits)
    assert ends(world), world.roles


@settings(max_examples=60, deadline=None)
@given(**surges)
def test_an_update_that_overtook_others_ends_or_says_what_it_lacks(
    sizes: list[int],
    floor: int,
    unavailable: int | str,
    surge: int | str,
    script: list[tuple[str, int]],
    bits: int,
) -> None:
    world = World(sizes, Budget(Fraction(floor, 100), unavailable, surge), set())
    world.retarget(1)
    for what, pick in script:
        if what == "target":
            world.retarget(pick)
        elif what == "scale":
            world.scale(pick)
        world.plan()
        world.come_up(bits)
    if not ends(world):
        world.budget = replace(world.budget, max_surge="100%")
        assert ends(world), world.roles


@pytest.mark.parametrize(
    ("prefill", "decode", "floor"),
    [
        pytest.param("AABB", "AB", Fraction(3, 4), id="a unit goes back where all others pair"),
        pytest.param("BAAB", "AB", Fraction(3, 4), id="also where it served"),
        pytest.param("ABBBBB", "AB", Fraction(1), id="to the larger of the old revisions"),
    ],
)
def test_units_of_many_revisions_gather_in_one_before_they_go_ahead(
    prefill: str, decode: str, floor: Fraction
) -> None:
    world = World([len(prefill) - 1, len(decode) - 1], Budget(floor, 0, 1), set())
    world.roles = [
        replace(role("r0", prefill, wanted=len(prefill) - 1)),
        replace(role("r1", decode, wanted=len(decode) - 1)),
    ]
    world.retarget(2)
    assert world.plan().blocked == ""
    assert ends(world), world.roles


def test_a_role_does_not_go_where_the_others_cannot_follow() -> None:
    """One decode pair of each old revision is needed, so a new prefill would pair with nothing."""
    roles = [role("p", "AABB", wanted=3), role("d", "AB", wanted=1)]
    found = step(roles, Budget(Fraction(3, 4), 0, 1))
    assert "C" not in units(found)["p"]


def test_a_broken_revision_costs_its_budget_and_can_be_rolled_back() -> None:
    world = World([4, 8], Budget(Fraction(1, 2), 1, 0), {"B"})
    world.retarget(1)
    for _ in range(20):
        world.plan()
        world.come_up(-1)
    assert [sum(found.ready) for found in world.roles] == [3, 7]
    world.retarget(0)
    for _ in range(5):
        world.plan()
        world.come_up(-1)
    assert all(found.settled for found in world.roles)


def most_pairs(roles: list[Role]) -> int:
    """How many chains of one unit of each role, all of one revision, can be made: by trying."""
    if not all(any(found.ready) for found in roles):
        return 0
    choices = []
    for found in roles:
        units = [h for h, ready in zip(found.plan, found.ready, strict=True) if ready]
        choices.append(list(itertools.product(*(found.sets[h] for h in units))))
    return max(
        sum(min(chosen.count(r) for chosen in pick) for r in "123")
        for pick in itertools.product(*choices)
    )


@settings(max_examples=150, deadline=None)
@given(
    sets=st.lists(
        st.dictionaries(
            st.sampled_from("ABC"),
            st.sets(st.sampled_from("123"), min_size=1).map(lambda s: tuple(sorted(s))),
            min_size=3,
        ),
        min_size=2,
        max_size=3,
    ),
    data=st.data(),
)
def test_capacity_is_what_can_be_paired(
    sets: list[dict[str, tuple[str, ...]]], data: st.DataObject
) -> None:
    roles = []
    for i, own in enumerate(sets):
        plan = tuple(data.draw(st.lists(st.sampled_from("ABC"), min_size=3, max_size=3)))
        ready = tuple(data.draw(st.lists(st.booleans(), min_size=3, max_size=3)))
        roles.append(Role(f"r{i}", 3, 0, "C", plan, ready, own))
    shared = [r for r in roles if any(len(r.sets[h]) > 1 for h in r.plan)]
    want = Fraction(most_pairs(roles), 3)
    if len(shared) <= 2:
        assert capacity(roles) == want
    else:
        assert capacity(roles) <= want
