"""Chooses the next token from logits: a function of logits, parameters, history and one number.

Invariant: a sampled token consumes exactly one uniform number of its own sequence, so the same
seed gives the same tokens whatever else is in the batch and wherever the prompt was computed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from spinney.engine.request import Logprobs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from spinney.engine.executor import FloatArray
    from spinney.engine.request import SamplingParams


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """What one row of logits is for. *banned* are tokens that may not come yet."""

    params: SamplingParams
    prompt: Sequence[int]
    output: Sequence[int]
    uniform: float
    banned: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Sampled:
    """A chosen token, with what was asked about it."""

    token: int
    logprobs: Logprobs | None = None


def sample(logits: FloatArray, rows: Sequence[Row]) -> list[Sampled]:
    """Return one token per row. *logits* is used as working space."""
    reports = [_log_softmax(logits[at]) if _reports(row) else None for at, row in enumerate(rows)]
    for at, row in enumerate(rows):
        if row.params.penalised:
            penalise(logits[at], row)
        if row.banned:
            logits[at, list(row.banned)] = -np.inf
    greedy = logits.argmax(axis=1).tolist()
    sampled: list[Sampled] = []
    for at, (row, report) in enumerate(zip(rows, reports, strict=True)):
        params = row.params
        token = greedy[at] if params.greedy else draw(logits[at], params, row.uniform)
        sampled.append(Sampled(token, _logprobs(report, token, params.logprobs)))
    return sampled


def penalise(logits: FloatArray, row: Row) -> None:
    """Change *logits* by the penalties and biases of *row*.

    The repetition penalty counts prompt and output, the other two the output alone.
    """
    params = row.params
    if params.repetition_penalty != 1.0:
        seen = np.unique(np.concatenate([_ids(row.prompt), _ids(row.output)]))
        at = logits[seen]
        penalty = np.float32(params.repetition_penalty)
        logits[seen] = np.where(at > 0, at / penalty, at * penalty)
    if (params.presence_penalty or params.frequency_penalty) and row.output:
        tokens, counts = np.unique(_ids(row.output), return_counts=True)
        logits[tokens] -= np.float32(params.presence_penalty)
        logits[tokens] -= np.float32(params.frequency_penalty) * counts.astype(np.float32)
    for token, bias in params.logit_bias:
        logits[token] += np.float32(bias)


def draw(logits: FloatArray, params: SamplingParams, uniform: float) -> int:
    """Return the token at *uniform* of the distribution that *params* makes of *logits*."""
    scaled = logits.astype(np.float64) / params.temperature
    weights = np.exp(scaled - scaled.max())
    weights /= weights.sum()
    if params.min_p > 0:
        weights[weights < params.min_p * weights.max()] = 0
    tokens: np.ndarray[tuple[int], np.dtype[np.intp]] | None = None
    if params.top_k > 0 or params.top_p < 1:
        tokens = np.argsort(-weights, kind="stable")
        weights = weights[tokens]
        if params.top_k > 0:
            weights = weights[: params.top_k]
        if params.top_p < 1:
            weights = weights / weights.sum()
            before = np.cumsum(weights) - weights
            weights = weights[before < max(params.top_p, np.finfo(np.float64).tiny)]
    upto = np.cumsum(weights)
    at = int(np.searchsorted(upto, uniform * upto[-1], side="right"))
    # Rounding can put the number on the very end: the last token with weight is meant.
    at = min(at, int(np.flatnonzero(weights)[-1]))
    return at if tokens is None else int(tokens[at])


def _ids(tokens: Sequence[int]) -> np.ndarray[tuple[int], np.dtype[np.intp]]:
    return np.asarray(tokens, np.intp)


def _reports(row: Row) -> bool:
    return row.params.logprobs is not None


def _log_softmax(logits: FloatArray) -> FloatArray:
    shifted = logits - logits.max()
    result: FloatArray = shifted - np.log(np.exp(shifted).sum())
    return result


def _logprobs(report: FloatArray | None, token: int, count: int | None) -> Logprobs | None:
    if report is None or count is None:
        return None
    top = np.argsort(-report, kind="stable")[:count].tolist()
    return Logprobs(float(report[token]), tuple((other, float(report[other])) for other in top))
