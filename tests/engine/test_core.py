"""The engine's core over a model that notices every wrong block."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spinney.engine.request import (
    FinishReason,
    GenerateRequest,
    QueueFullError,
    RemotePrefill,
    SamplingParams,
)
from spinney.engine.sequence import Handover, Outcome, State
from spinney.kv.block_hash import prompt_digest
from spinney.kv.lease import Handle, HandoverError

if TYPE_CHECKING:
    CoreHarness = Any

Make = Callable[..., "CoreHarness"]
REMOTE = RemotePrefill("prefill-0", "127.0.0.1", 1, Handle("h"), None)


def request(name: str, prompt: list[int], max_tokens: int = 10, **more: Any) -> GenerateRequest:
    sampling = {k: more.pop(k) for k in list(more) if k in SamplingParams.__dataclass_fields__}
    params = SamplingParams(max_tokens, temperature=0, **sampling)
    return GenerateRequest(name, tuple(prompt), params, **more)


def prompts(count: int) -> list[list[int]]:
    return [[(7 * n + k) % 50 for k in range(3 + 5 * n)] for n in range(count)]


def test_sequences_in_one_batch_get_what_each_gets_alone(make_core: Make) -> None:
    harness = make_core()
    running = [harness.core.add(request(str(n), p), 0) for n, p in enumerate(prompts(6))]
    harness.run()
    for sequence, prompt in zip(running, prompts(6), strict=True):
        assert harness.tokens(sequence) == harness.expected(prompt, 10)
        assert harness.end(sequence).reason is FinishReason.LENGTH
    assert harness.core.pool.held == 0


def test_prompts_longer_than_a_step_are_computed_in_chunks(make_core: Make) -> None:
    harness = make_core(max_step_tokens=8)
    prompt = list(range(40))
    sequence = harness.core.add(request("a", prompt), 0)
    harness.run()
    assert [batch.num_tokens for batch in harness.tape.steps[:6]] == [8, 8, 8, 8, 8, 1]
    assert harness.tokens(sequence) == harness.expected(prompt, 10)


def test_a_known_prefix_is_not_computed_again(make_core: Make) -> None:
    harness = make_core()
    prompt = list(range(20))
    harness.core.add(request("a", prompt), 0)
    harness.run()
    computed = len(harness.tape.steps)
    again = harness.core.add(request("b", prompt), 0)
    longer = harness.core.add(request("c", [*prompt, 1, 2, 3]), 0)
    harness.run()
    # The last token is always computed, so 16 of 20 tokens come from the cache.
    assert harness.tape.steps[computed].num_tokens == 4 + 3
    assert harness.tokens(again) == harness.expected(prompt, 10)
    assert harness.tokens(longer) == harness.expected([*prompt, 1, 2, 3], 10)
    assert harness.end(again).cached_tokens == 16
    assert harness.end(longer).cached_tokens == 20


def test_generated_tokens_are_found_as_a_prefix_too(make_core: Make) -> None:
    harness = make_core()
    prompt = list(range(6))
    first = harness.core.add(request("a", prompt, 11), 0)
    harness.run()
    turn = [*prompt, *harness.tokens(first), 5]
    second = harness.core.add(request("b", turn), 0)
    harness.run()
    assert harness.end(second).cached_tokens == 16
    assert harness.tokens(second) == harness.expected(turn, 10)


def test_preemption_changes_no_token_and_loses_no_block(make_core: Make) -> None:
    harness = make_core(num_blocks=14, max_model_len=56)
    running = [harness.core.add(request(str(n), [n, n + 1, n + 2, n + 3], 30), 0) for n in range(5)]
    harness.run()
    assert harness.core.counters.preemptions > 0
    for n, sequence in enumerate(running):
        assert harness.tokens(sequence) == harness.expected([n, n + 1, n + 2, n + 3], 30)
    assert harness.core.pool.held == 0


def test_a_pulled_prompt_that_is_preempted_counts_no_token_twice(make_core: Make) -> None:
    harness = make_core(num_blocks=10, max_model_len=40)
    older = [harness.core.add(request(str(n), [n] * 4, 11), 0) for n in range(2)]
    harness.step()
    pulled = harness.core.add(request("p", list(range(13)), 4, remote=REMOTE), 0)
    while harness.core.pool.available or all(s.num_tokens % 4 != 1 for s in older):
        harness.step()
    assert pulled.state is State.PULLING
    for at, block in enumerate(pulled.blocks):
        tokens = pulled.prompt[at * 4 : at * 4 + 4]
        harness.tape.tape[block, : len(tokens)] = tokens
    # At this moment the older ones need blocks, and the youngest gives up its own.
    harness.core.pull_arrived(pulled, Handover(Outcome.PULLED, "p"))
    harness.step()
    assert harness.core.counters.preemptions == 1
    assert (pulled.state, pulled.output) == (State.WAITING, [])
    harness.run()
    assert harness.tokens(pulled) == harness.expected(list(range(13)), 4)


def test_choices_of_one_prompt_share_its_blocks(make_core: Make) -> None:
    harness = make_core()
    prompt = list(range(17))
    harness.core.add(request("a", prompt), 0)
    follower = harness.core.add(request("b", prompt, follows="a"), 0, force=True)
    harness.run()
    assert harness.end(follower).cached_tokens == 16
    assert harness.tokens(follower) == harness.expected(prompt, 10)


def test_the_queue_has_a_bound(make_core: Make) -> None:
    harness = make_core(max_waiting=2)
    for name in "ab":
        harness.core.add(request(name, [1]), 0)
    with pytest.raises(QueueFullError, match="no more than 2 may"):
        harness.core.add(request("c", [1]), 0)
    harness.run()
    assert harness.core.pool.held == 0


@pytest.mark.parametrize(
    ("fields", "reason", "stop"),
    [
        ({"eos": True}, FinishReason.STOP, None),
        ({"eos": True, "ignore_eos": True}, FinishReason.LENGTH, None),
        ({"stop_ids": True}, FinishReason.STOP, "id"),
        ({"stop_text": True}, FinishReason.STOP, "text"),
    ],
    ids=["eos", "ignored-eos", "stop-token", "stop-string-over-two-tokens"],
)
def test_stop_conditions(
    make_core: Make, fields: dict[str, bool], reason: FinishReason, stop: str | None
) -> None:
    prompt = [1, 2, 3]
    plain = make_core().expected(prompt, 10)
    third = plain.index(plain[2])
    harness = make_core(eos=frozenset({plain[2]}) if fields.get("eos") else frozenset())
    more: dict[str, Any] = {"ignore_eos": fields.get("ignore_eos", False)}
    if fields.get("stop_ids"):
        more["stop_token_ids"] = frozenset({plain[2]})
    text = "".join(chr(65 + token) for token in plain)
    if fields.get("stop_text"):
        more["stop"] = (text[2:4],)
    sequence = harness.core.add(request("a", prompt, **more), 0)
    harness.run()
    end = harness.end(sequence)
    assert end.reason is reason
    shown = "".join(u.text for u in sequence.updates)
    if stop == "text":
        assert (end.stop, shown) == (text[2:4], text[: text.index(text[2:4])])
    elif reason is FinishReason.STOP:
        assert shown == text[:third]
        assert end.stop == (plain[2] if stop == "id" else None)
    assert harness.core.pool.held == 0


def test_min_tokens_keeps_the_end_away(make_core: Make) -> None:
    prompt = [1, 2, 3]
    first = make_core().expected(prompt, 1)[0]
    harness = make_core(eos=frozenset({first}))
    sequence = harness.core.add(request("a", prompt, 10, min_tokens=4), 0)
    harness.run()
    assert len(harness.tokens(sequence)) >= 4
    assert first not in harness.tokens(sequence)[:4]


def test_generation_ends_at_the_context_length(make_core: Make) -> None:
    harness = make_core(max_model_len=12)
    sequence = harness.core.add(request("a", list(range(8)), 100), 0)
    harness.run()
    assert len(harness.tokens(sequence)) == 4
    assert harness.end(sequence).reason is FinishReason.LENGTH


@pytest.mark.parametrize("stage", ["waiting", "chunk", "in-flight", "decoding", "pulling", "done"])
def test_an_abort_at_any_stage_frees_all_blocks(make_core: Make, stage: str) -> None:
    harness = make_core(max_step_tokens=8)
    remote = REMOTE if stage == "pulling" else None
    sequence = harness.core.add(request("a", list(range(20)), remote=remote), 0)
    if stage == "pulling":
        (pull,) = harness.core.begin().pulls
        harness.core.abort("a")
        assert harness.core.pool.held == 5, "blocks under a pull are written to"
        harness.core.pull_cancelled(pull)
    elif stage == "in-flight":
        work = harness.core.begin().work
        harness.core.abort("a")
        assert harness.core.pool.held == 5, "blocks of a running step are written to"
        harness.core.commit(work, harness.core.execute(work), 0)
    else:
        for _ in range({"waiting": 0, "chunk": 1, "decoding": 5, "done": 99}[stage]):
            harness.step()
    harness.core.abort("a")
    harness.core.abort("a")
    wanted = FinishReason.LENGTH if stage == "done" else FinishReason.ABORT
    assert harness.end(sequence).reason is wanted
    assert harness.core.pool.held == 0
    assert harness.core.num_running == harness.core.num_waiting == 0
    harness.core.check()


def test_a_lease_keeps_the_prompts_blocks_until_it_is_claimed(make_core: Make) -> None:
    harness = make_core()
    prompt = list(range(10))
    sequence = harness.core.add(request("a", prompt, 1, lease_prompt=True), 0)
    harness.run()
    lease = harness.end(sequence).lease
    assert harness.core.pool.held == 3
    claimed = harness.core.claim(lease.handle, prompt_digest(prompt), 5.0)
    assert harness.tape.tape[list(claimed.blocks)].reshape(-1)[:10].tolist() == prompt
    harness.core.release_blocks(claimed.blocks)
    assert harness.core.pool.held == 0
    with pytest.raises(HandoverError):
        harness.core.claim(lease.handle, prompt_digest(prompt), 5.0)


def test_an_expired_lease_frees_its_blocks(make_core: Make) -> None:
    harness = make_core()
    harness.core.add(request("a", list(range(10)), 1, lease_prompt=True), 0)
    harness.run()
    assert harness.core.expire_leases(9.9) == 0
    assert harness.core.expire_leases(10.0) == 1
    assert harness.core.pool.held == 0
    assert harness.core.counters.leases_expired == 1


def test_an_aborted_prefill_leaves_no_lease(make_core: Make) -> None:
    harness = make_core(max_step_tokens=8)
    harness.core.add(request("a", list(range(20)), 1, lease_prompt=True), 0)
    harness.step()
    harness.core.abort("a")
    assert len(harness.core.leases) == 0
    assert harness.core.pool.held == 0


def test_pulled_kv_is_decoded_from_its_last_token_on(make_core: Make) -> None:
    harness = make_core()
    prompt = list(range(18))
    sequence = harness.core.add(request("a", prompt, remote=REMOTE), 0)
    (pull,) = harness.core.begin().pulls
    assert pull.state is State.PULLING
    flat = harness.tape.tape[pull.blocks].reshape(-1)
    flat[:18] = prompt
    harness.tape.tape[pull.blocks] = flat.reshape(-1, 4)
    harness.core.pull_arrived(pull, Handover(Outcome.PULLED, "prefill-0"))
    harness.run()
    assert harness.tape.steps[0].num_tokens == 1
    assert harness.tokens(sequence) == harness.expected(prompt, 10)
    assert harness.end(sequence).cached_tokens == 18
    assert harness.end(sequence).handover.outcome is Outcome.PULLED


@pytest.mark.parametrize("fails", [False, True], ids=["recompute", "fail"])
def test_a_failed_pull_is_computed_here_or_ends_in_an_error(make_core: Make, fails: bool) -> None:
    harness = make_core()
    prompt = list(range(18))
    sequence = harness.core.add(request("a", prompt, remote=REMOTE), 0)
    (pull,) = harness.core.begin().pulls
    outcome = Outcome.FAILED if fails else Outcome.RECOMPUTED
    error = RuntimeError("no KV") if fails else None
    harness.core.pull_failed(pull, Handover(outcome, "prefill-0"), error)
    harness.run()
    if fails:
        assert harness.end(sequence).error is error
    else:
        assert harness.tokens(sequence) == harness.expected(prompt, 10)
    assert harness.core.pool.held == 0


def test_a_broken_executor_ends_every_sequence(make_core: Make) -> None:
    harness = make_core(max_sequences=1)
    running = [harness.core.add(request(name, [1, 2]), 0) for name in "ab"]
    work = harness.core.begin().work
    harness.tape.broken = MemoryError("none left")
    with pytest.raises(MemoryError) as caught:
        harness.core.execute(work)
    harness.core.fail_all(caught.value)
    for sequence in running:
        assert harness.end(sequence).reason is FinishReason.ERROR
    assert harness.core.pool.held == 0


def test_a_seed_gives_the_same_tokens_whatever_else_runs(make_core: Make) -> None:
    def sampled(others: int) -> list[int]:
        harness = make_core(max_step_tokens=16)
        for n in range(others):
            harness.core.add(request(f"other-{n}", [n] * (3 + n)), 0)
        params = SamplingParams(12, temperature=5.0, top_p=0.9, seed=42)
        sequence = harness.core.add(GenerateRequest("a", (1, 2, 3), params), 0)
        harness.run()
        return harness.tokens(sequence)

    alone = sampled(0)
    assert len(set(alone)) > 3
    assert sampled(4) == alone


operations = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(1, 30), st.integers(1, 12), st.integers(0, 3)),
        st.tuples(st.just("lease"), st.integers(1, 30)),
        st.tuples(st.just("remote"), st.integers(1, 30)),
        st.tuples(st.just("step")),
        st.tuples(st.just("step")),
        st.tuples(st.just("abort"), st.integers(0, 20)),
        st.tuples(st.just("pull"), st.sampled_from(["arrives", "fails", "cancelled"])),
        st.tuples(st.just("claim"), st.integers(0, 20)),
        st.tuples(st.just("expire")),
    ),
    max_size=40,
)


@settings(max_examples=80, deadline=None)
@given(operations=operations)
def test_whatever_comes_in_whatever_order_tokens_are_right_and_no_block_is_lost(
    operations: list[tuple[Any, ...]], make_core: Make
) -> None:
    Story(make_core(num_blocks=20, max_model_len=60, max_step_tokens=16)).play(operations)


class Story:
    """Plays operations and checks every sequence against the model computed without blocks."""

    def __init__(self, harness: CoreHarness) -> None:
        self.harness = harness
        self.core = harness.core
        self.sequences: list[Any] = []
        self.pulls: list[Any] = []
        self.claimed: set[str] = set()

    def play(self, operations: list[tuple[Any, ...]]) -> None:
        for name, *arguments in operations:
            getattr(self, name)(*arguments)
            self.core.check()
        while self.pulls:
            self.pull("fails")
        while True:
            self.step()
            if not self.core.num_running and not self.core.num_waiting:
                break
            while self.pulls:
                self.pull("arrives")
            # Leases may hold what the last ones need.
            self.expire()
        self.expire()
        assert self.core.pool.held == 0
        for sequence in self.sequences:
            self.verify(sequence)

    def verify(self, sequence: Any) -> None:
        end, tokens = self.harness.end(sequence), self.harness.tokens(sequence)
        expected = self.harness.expected(sequence.prompt, len(tokens))
        assert tokens == expected
        if end.reason is FinishReason.LENGTH:
            assert len(tokens) == sequence.request.sampling.max_tokens

    def new(self, prompt: list[int], max_tokens: int, **more: Any) -> None:
        name = f"r{len(self.sequences)}"
        self.sequences.append(self.core.add(request(name, prompt, max_tokens, **more), 0))

    def add(self, length: int, max_tokens: int, kind: int) -> None:
        self.new([kind] * length, max_tokens)

    def lease(self, length: int) -> None:
        self.new([1] * length, 1, lease_prompt=True)

    def remote(self, length: int) -> None:
        self.new([2] * length, 5, remote=REMOTE)

    def step(self) -> None:
        begun = self.core.begin()
        self.pulls += begun.pulls
        if begun.work is not None:
            self.core.commit(begun.work, self.core.execute(begun.work), 0)

    def abort(self, at: int) -> None:
        self.core.abort(f"r{at}")

    def pull(self, how: str) -> None:
        if not self.pulls:
            return
        sequence = self.pulls.pop()
        if how == "cancelled":
            self.core.pull_cancelled(sequence)
        elif how == "fails":
            self.core.pull_failed(sequence, Handover(Outcome.RECOMPUTED, "p"), None)
        else:
            size, have = 4, sequence.cached_tokens // 4
            padded = [*sequence.prompt, *[0] * (-len(sequence.prompt) % size)]
            for at in range(have, len(sequence.blocks)):
                self.harness.tape.tape[sequence.blocks[at]] = padded[at * size : (at + 1) * size]
            self.core.pull_arrived(sequence, Handover(Outcome.PULLED, "p"))

    def claim(self, at: int) -> None:
        if at >= len(self.sequences) or not self.sequences[at].updates:
            return
        lease = getattr(self.sequences[at].updates[-1], "lease", None)
        if lease is None or lease.handle in self.claimed:
            return
        prompt = self.sequences[at].prompt
        try:
            found = self.core.claim(lease.handle, prompt_digest(prompt), 5.0)
        except HandoverError:
            return
        self.claimed.add(lease.handle)
        content = self.harness.tape.tape[list(found.blocks)].reshape(-1)[: len(prompt)]
        assert tuple(content.astype(int).tolist()) == prompt
        self.core.release_blocks(found.blocks)

    def expire(self) -> None:
        self.core.expire_leases(11.0)
