from __future__ import annotations

from spinney.controllers.pacing import Pacer


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
