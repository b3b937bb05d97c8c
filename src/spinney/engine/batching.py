"""Decides what the next forward pass computes: continuous batching with chunked prefill.

Running sequences that decode come first, so that a long prompt costs the others at most one step
of `Limits.max_tokens`; then prompts already begun, oldest first; then new ones, by arrival.
A sequence is admitted when there are blocks for its whole prompt and one to grow for everybody
who runs. When a decoding sequence finds no block, the youngest one is preempted: it gives up its
blocks and is computed again later, mostly from the prefix cache.

`plan` is a function of values. Invariants of its result: no more tokens and sequences than the
limits say, no more blocks than are available, and nobody is passed over by a younger one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class Running:
    """A sequence that has its blocks. *sole_blocks* become available if it is preempted."""

    index: int
    num_tokens: int
    num_computed: int
    num_blocks: int
    sole_blocks: int


@dataclass(frozen=True, slots=True)
class Waiting:
    """A sequence that has none yet.

    *cached_blocks* of its prompt are in the pool; *idle_cached* of those are held by nobody, so
    taking them up makes fewer available. A *remote* one computes nothing until its KV is here.
    """

    index: int
    num_tokens: int
    cached_blocks: int
    idle_cached: int
    remote: bool = False


@dataclass(frozen=True, slots=True)
class Limits:
    """Per step: *max_tokens* run, *max_sequences* hold blocks; *block_size* tokens per block."""

    max_sequences: int
    max_tokens: int
    block_size: int


@dataclass(frozen=True, slots=True)
class Run:
    """Compute the next *num_tokens* of a running sequence, after giving it *new_blocks*."""

    index: int
    num_tokens: int
    new_blocks: int


@dataclass(frozen=True, slots=True)
class Admit:
    """Give a waiting sequence *new_blocks* beside its cached ones; compute *num_tokens* of it."""

    index: int
    num_tokens: int
    new_blocks: int


@dataclass(frozen=True, slots=True)
class Plan:
    """To be applied in this order: preempt, admit, run."""

    preempt: tuple[int, ...] = ()
    admit: tuple[Admit, ...] = ()
    run: tuple[Run, ...] = ()


def plan(
    running: Sequence[Running],
    waiting: Sequence[Waiting],
    *,
    pulling: int,
    available: int,
    limits: Limits,
) -> Plan:
    """Return what to do next.

    *running* and *waiting* are in order of arrival; *pulling* sequences hold blocks but compute
    nothing yet; *available* blocks are free or cached. An empty plan means: wait for something.
    """
    decodes, preempted, available = _decodes(running, available, limits)
    budget = limits.max_tokens - len(decodes)
    gone = set(preempted)
    prefills, budget = _prefills([seq for seq in running if seq.index not in gone], budget)
    if preempted:
        return Plan(preempt=tuple(preempted), run=(*decodes, *prefills))
    admitted = _admissions(
        waiting,
        room=limits.max_sequences - len(running) - pulling,
        budget=budget,
        # One block to grow for each that runs, or an admission is soon paid with a preemption.
        available=available - len(running),
        block_size=limits.block_size,
    )
    return Plan(admit=tuple(admitted), run=(*decodes, *prefills))


def _decodes(
    running: Sequence[Running], available: int, limits: Limits
) -> tuple[list[Run], list[int], int]:
    """Plan the sequences that need one token, preempting from the youngest."""
    runs: list[Run] = []
    candidates = list(running)
    preempted: list[int] = []
    for sequence in running:
        if sequence.num_tokens - sequence.num_computed != 1 or sequence.index in preempted:
            continue
        needed = blocks_for(sequence.num_tokens, limits.block_size) - sequence.num_blocks
        while needed > available:
            victim = candidates.pop()
            preempted.append(victim.index)
            available += victim.sole_blocks
            if victim is sequence:
                break
        if sequence.index not in preempted:
            available -= needed
            runs.append(Run(sequence.index, 1, needed))
    planned = {run.index for run in runs}
    assert planned.isdisjoint(preempted), "a sequence is planned and preempted"
    return runs, preempted, available


def _prefills(running: Sequence[Running], budget: int) -> tuple[list[Run], int]:
    """Plan chunks of prompts under way; their blocks were given at admission."""
    runs: list[Run] = []
    for sequence in running:
        left = sequence.num_tokens - sequence.num_computed
        chunk = min(left, budget)
        if left > 1 and chunk > 0:
            runs.append(Run(sequence.index, chunk, 0))
            budget -= chunk
    return runs, budget


def _admissions(
    waiting: Sequence[Waiting], *, room: int, budget: int, available: int, block_size: int
) -> list[Admit]:
    """Admit in order of arrival until one does not fit."""
    admitted: list[Admit] = []
    for sequence in waiting:
        new = blocks_for(sequence.num_tokens, block_size) - sequence.cached_blocks
        chunk = 0
        if not sequence.remote:
            chunk = min(sequence.num_tokens - sequence.cached_blocks * block_size, budget)
            if chunk <= 0:
                break
        if room <= 0 or new + sequence.idle_cached > available:
            break
        admitted.append(Admit(sequence.index, chunk, new))
        room -= 1
        budget -= chunk
        available -= new + sequence.idle_cached
    return admitted


def blocks_for(num_tokens: int, block_size: int) -> int:
    """Blocks that *num_tokens* tokens take."""
    return -(-num_tokens // block_size)
