"""Leases: used once, ended once, and whoever is late is told why."""

from __future__ import annotations

import pytest

from spinney.kv import lease as leases
from spinney.kv.block_pool import BlockId
from spinney.kv.lease import Failure, Handle, HandoverError, Lease, LeaseTable


def granted(handle: str = "h", deadline_s: float = 10.0) -> LeaseTable:
    table = LeaseTable()
    table.grant(Lease(Handle(handle), (BlockId(1), BlockId(2)), "prompt", 20, deadline_s))
    return table


def refused(
    table: LeaseTable, handle: str = "h", prompt: str = "prompt", now: float = 1
) -> Failure:
    with pytest.raises(HandoverError) as caught:
        table.claim(Handle(handle), prompt, now)
    return caught.value.failure


def test_a_handle_serves_once() -> None:
    table = granted()
    assert table.claim(Handle("h"), "prompt", 9.9).blocks == (1, 2)
    assert len(table) == 0
    assert refused(table) is Failure.USED


def test_unknown_expired_and_released_handles_are_told_apart() -> None:
    assert refused(granted(), handle="other") is Failure.UNKNOWN
    table = granted()
    assert refused(table, now=10.0) is Failure.EXPIRED
    assert [lease.handle for lease in table.expire(10.0)] == ["h"]
    assert refused(table, now=10.0) is Failure.EXPIRED
    table = granted()
    assert table.release(Handle("h")) is not None
    assert refused(table) is Failure.RELEASED
    assert table.release(Handle("h")) is None


def test_the_wrong_prompt_does_not_take_the_blocks_from_the_right_one() -> None:
    table = granted()
    assert refused(table, prompt="another") is Failure.PROMPT
    assert table.claim(Handle("h"), "prompt", 1).num_tokens == 20


def test_each_lease_is_given_back_exactly_once() -> None:
    table = granted("a", 5)
    table.grant(Lease(Handle("b"), (BlockId(3),), "p", 1, 7.0))
    assert table.blocks == 3
    assert table.next_deadline() == 5
    assert [lease.handle for lease in table.expire(6)] == ["a"]
    assert table.expire(6) == []
    assert [lease.handle for lease in table.release_all()] == ["b"]
    assert table.release_all() == []
    assert table.next_deadline() is None


def test_the_memory_of_ended_leases_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "REMEMBERED_ENDS", 2)
    table = LeaseTable()
    for name in "abc":
        table.grant(Lease(Handle(name), (), "p", 1, 5.0))
        table.claim(Handle(name), "p", 0)
    assert refused(table, "a") is Failure.UNKNOWN
    assert refused(table, "c") is Failure.USED
