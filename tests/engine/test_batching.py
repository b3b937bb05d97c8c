"""The batcher's decision, state by state."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from spinney.engine.batching import Admit, Limits, Plan, Run, Running, Waiting, blocks_for, plan

LIMITS = Limits(max_sequences=4, max_tokens=16, block_size=4)


def decoding(index: int, tokens: int = 6, sole: int | None = None) -> Running:
    blocks = blocks_for(tokens - 1, 4)
    return Running(index, tokens, tokens - 1, blocks, blocks if sole is None else sole)


def prefilling(index: int, tokens: int, computed: int) -> Running:
    return Running(index, tokens, computed, blocks_for(tokens, 4), blocks_for(tokens, 4))


def waiting(index: int, tokens: int, cached: int = 0, idle: int = 0, **more: bool) -> Waiting:
    return Waiting(index, tokens, cached, idle, **more)


def decide(
    running: list[Running], queue: list[Waiting], available: int = 100, pulling: int = 0
) -> Plan:
    return plan(running, queue, pulling=pulling, available=available, limits=LIMITS)


def test_nothing_to_do_is_an_empty_plan() -> None:
    assert decide([], []) == Plan()


def test_those_that_decode_come_before_prompts() -> None:
    found = decide([prefilling(1, 40, 8), decoding(2), decoding(3)], [])
    assert found.run == (Run(2, 1, 0), Run(3, 1, 0), Run(1, 14, 0))


def test_a_block_is_given_when_a_sequence_outgrows_its_own() -> None:
    assert decide([decoding(1, tokens=9)], []).run == (Run(1, 1, 1),)


def test_long_prompts_are_cut_to_what_is_left_of_the_step() -> None:
    found = decide([decoding(1)], [waiting(2, 10), waiting(3, 10), waiting(4, 10)])
    assert found.admit == (Admit(2, 10, 3), Admit(3, 5, 3))


def test_cached_blocks_are_neither_computed_nor_allocated() -> None:
    assert decide([], [waiting(1, 10, cached=2)]).admit == (Admit(1, 2, 1),)


def test_a_prompt_is_admitted_when_all_of_it_fits_and_everybody_can_grow() -> None:
    queue = [waiting(9, 8)]
    assert decide([decoding(1)], queue, available=2).admit == ()
    assert decide([decoding(1)], queue, available=3).admit == (Admit(9, 8, 2),)


def test_taking_up_idle_cached_blocks_counts_as_taking() -> None:
    queue = [waiting(1, 9, cached=2, idle=2)]
    assert decide([], queue, available=2).admit == ()
    assert decide([], queue, available=3).admit == (Admit(1, 1, 1),)


def test_nobody_is_passed_over_by_a_younger_and_smaller_one() -> None:
    assert decide([], [waiting(1, 40), waiting(2, 4)], available=5).admit == ()


def test_no_more_run_than_may_and_pulls_count() -> None:
    queue = [waiting(n, 2) for n in range(9)]
    assert len(decide([], queue).admit) == 4
    assert len(decide([decoding(20)], queue, pulling=2).admit) == 1


def test_a_remote_prompt_takes_blocks_but_no_part_of_the_step() -> None:
    queue = [waiting(1, 40, remote=True), waiting(2, 16)]
    assert decide([], queue).admit == (Admit(1, 0, 10), Admit(2, 16, 4))


def test_the_youngest_is_preempted_when_blocks_run_out() -> None:
    running = [decoding(1, tokens=9), decoding(2, tokens=9), decoding(3, tokens=9)]
    found = decide(running, [waiting(4, 2)], available=0)
    assert found == Plan(preempt=(3,), run=(Run(1, 1, 1), Run(2, 1, 1)))


def test_preempting_one_whose_blocks_are_shared_frees_only_its_own() -> None:
    running = [decoding(1, tokens=9), decoding(2, tokens=9, sole=2), decoding(3, tokens=9, sole=0)]
    assert decide(running, [], available=0).preempt == (3, 2)


def test_a_sequence_alone_that_finds_no_block_gives_up_its_own() -> None:
    assert decide([decoding(1, tokens=9)], [], available=0) == Plan(preempt=(1,))


@given(st.data())
def test_a_plan_keeps_the_limits(data: st.DataObject) -> None:
    def sequence(index: int) -> Running:
        tokens = data.draw(st.integers(1, 40))
        computed = data.draw(st.integers(0, tokens - 1))
        held = blocks_for(computed if tokens - computed == 1 else tokens, 4)
        return Running(index, tokens, computed, held, data.draw(st.integers(0, held)))

    running = [sequence(index) for index in range(data.draw(st.integers(0, 4)))]
    queue = []
    for index in range(10, 10 + data.draw(st.integers(0, 5))):
        tokens = data.draw(st.integers(1, 40))
        cached = data.draw(st.integers(0, (tokens - 1) // 4))
        idle = data.draw(st.integers(0, cached))
        queue.append(Waiting(index, tokens, cached, idle, data.draw(st.booleans())))
    available = data.draw(st.integers(0, 30))
    found = decide(running, queue, available)

    by_index = {item.index: item for item in (*running, *queue)}
    used = sum(run.num_tokens for run in (*found.run, *found.admit))
    assert used <= LIMITS.max_tokens
    freed = sum(by_index[index].sole_blocks for index in found.preempt)  # type: ignore[union-attr]
    given = sum(run.new_blocks for run in (*found.run, *found.admit))
    idle = sum(by_index[admit.index].idle_cached for admit in found.admit)  # type: ignore[union-attr]
    assert given + idle <= available + freed
    assert len(running) - len(found.preempt) + len(found.admit) <= LIMITS.max_sequences
    assert not {run.index for run in found.run} & set(found.preempt)
    assert [admit.index for admit in found.admit] == [w.index for w in queue[: len(found.admit)]]
    assert set(found.preempt) == {r.index for r in running[len(running) - len(found.preempt) :]}
