from __future__ import annotations

from spinney.api.meta import Condition
from spinney.controllers.pacing import LONGEST_S, PROGRESS_PER_S, PROGRESS_S, Pacer, turned


class Tick:
    def __init__(self) -> None:
        self.at = 0.0

    def now(self) -> float:
        return self.at


def test_a_change_is_written_once_it_has_settled() -> None:
    tick = Tick()
    pacer = Pacer(tick, settle_s=1.0)
    assert pacer.wait_s("k", changed=True) == 1.0
    tick.at = 0.75
    assert pacer.wait_s("k", changed=True) == 0.25
    tick.at = 1.0
    assert pacer.wait_s("k", changed=True) == 0.0
    assert pacer.wait_s("k", changed=True) == 1.0


def test_what_goes_back_to_how_it_was_is_not_written_and_starts_over() -> None:
    tick = Tick()
    pacer = Pacer(tick, settle_s=1.0)
    pacer.wait_s("k", changed=True)
    tick.at = 0.9
    assert pacer.wait_s("k", changed=False) is None
    tick.at = 2.0
    assert pacer.wait_s("k", changed=True) == 1.0


def test_of_many_that_start_together_each_reports_in_its_turn_and_none_waits_too_long() -> None:
    tick = Tick()
    pacer = Pacer(tick)
    waits = [pacer.wait_s(f"k{i}", changed=True, progress=True) or 0.0 for i in range(500)]
    assert waits[0] == PROGRESS_S
    assert sum(wait <= PROGRESS_S + 1.0 for wait in waits) <= PROGRESS_PER_S + 2
    assert max(waits) == LONGEST_S
    tick.at = 5.0
    assert pacer.wait_s("k499", changed=True, progress=True) == LONGEST_S - 5.0


def test_what_becomes_news_does_not_wait_for_its_turn() -> None:
    tick = Tick()
    pacer = Pacer(tick)
    for i in range(50):
        pacer.wait_s(f"k{i}", changed=True, progress=True)
    tick.at = 1.0
    assert pacer.wait_s("k49", changed=True) == 0.0


def test_a_condition_that_turns_is_news_and_one_said_for_the_first_time_is_not() -> None:
    yes, no = Condition(type="Ready", status="True"), Condition(type="Ready", status="False")
    assert turned([no], [yes])
    assert turned([no], [])
    assert not turned([], [yes])
    assert not turned([no], [Condition(type="Ready", status="False", reason="Other")])
