"""Choosing tokens: what each parameter does to the distribution."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spinney.engine.request import SamplingParams
from spinney.engine.sampling import Row, draw, sample

LOGITS = np.log(np.array([0.1, 0.4, 0.2, 0.25, 0.05], np.float32))


def params(**fields: Any) -> SamplingParams:
    return SamplingParams(10, **fields)


def support(**fields: Any) -> dict[int, float]:
    """How often each token comes, over evenly spread numbers."""
    count = 2000
    drawn = [draw(LOGITS.copy(), params(**fields), (n + 0.5) / count) for n in range(count)]
    return {token: drawn.count(token) / count for token in sorted(set(drawn))}


def test_tokens_come_as_often_as_their_probability_says() -> None:
    assert support() == pytest.approx({0: 0.1, 1: 0.4, 2: 0.2, 3: 0.25, 4: 0.05}, abs=0.01)


@pytest.mark.parametrize(
    ("fields", "want"),
    [
        ({"top_k": 2}, {1, 3}),
        ({"top_k": 1}, {1}),
        ({"top_p": 0.6}, {1, 3}),
        ({"top_p": 0.4}, {1}),
        ({"top_p": 1e-9}, {1}),
        ({"min_p": 0.45}, {1, 2, 3}),
        ({"top_k": 3, "top_p": 0.5}, {1, 3}),
        ({"temperature": 0.01}, {1}),
    ],
    ids=str,
)
def test_filters_keep_the_likeliest(fields: dict[str, float], want: set[int]) -> None:
    assert set(support(**fields)) == want


@given(
    uniform=st.floats(0, 1, exclude_max=True),
    temperature=st.floats(0.05, 5),
    top_p=st.floats(0.01, 1),
    top_k=st.integers(0, 6),
    min_p=st.floats(0, 1),
)
def test_a_drawn_token_always_has_weight(
    uniform: float, temperature: float, top_p: float, top_k: int, min_p: float
) -> None:
    logits = LOGITS.copy()
    logits[2] = -np.inf
    chosen = draw(
        logits,
        params(temperature=temperature, top_p=top_p, top_k=top_k, min_p=min_p),
        uniform,
    )
    assert chosen in {0, 1, 3, 4}


def one(prompt: list[int], output: list[int], banned: tuple[int, ...] = (), **fields: Any) -> Any:
    row = Row(params(temperature=0, **fields), prompt, output, 0.0, banned)
    return sample(LOGITS.copy()[None], [row])[0]


def test_greedy_takes_the_likeliest() -> None:
    assert one([], []).token == 1


def test_penalties_turn_the_choice_away_from_what_was_there() -> None:
    assert one([1], [], repetition_penalty=2.0).token == 3
    assert one([1], [], presence_penalty=2.0).token == 1, "the prompt does not count"
    assert one([], [1], presence_penalty=2.0).token == 3
    assert one([], [1, 1, 3], frequency_penalty=0.5).token == 2
    assert one([], [], logit_bias=((4, 10.0),)).token == 4
    assert one([], [], banned=(1, 3)).token == 2


def test_logprobs_are_of_the_model_not_of_the_penalties() -> None:
    found = one([1], [], repetition_penalty=2.0, logprobs=2)
    assert found.token == 3
    assert found.logprobs.chosen == pytest.approx(math.log(0.25), abs=1e-5)
    assert [token for token, _ in found.logprobs.top] == [1, 3]
    assert one([], [], logprobs=0).logprobs.top == ()
    assert one([], []).logprobs is None


def test_rows_of_a_batch_do_not_touch_each_other() -> None:
    rows = [
        Row(params(temperature=0), [], [], 0.0),
        Row(params(temperature=1.0), [], [], 0.99),
        Row(params(temperature=0, logit_bias=((0, 50.0),)), [], [], 0.0),
    ]
    logits = np.stack([LOGITS] * 3)
    assert [found.token for found in sample(logits, rows)] == [1, 4, 0]
