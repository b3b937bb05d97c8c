"""The step of sequences that decode one token each, in shapes that come again.

A batch is padded to a bucket, its numbers are put into a tensor that stays where it is, and what
was captured for that bucket runs. Invariants: padding writes to the scratch block and reads nothing
else, so the blocks of sequences hold what they would hold without it; a row of logits depends on
its own column of the input alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch

from spinney import log as logs
from spinney.engine import decode_rows
from spinney.engine.decode_rows import (
    HEADER,
    NARROWEST,
    bucket,
    clear,
    fill,
    powers,
    tokens_held,
    widths,
)
from spinney.engine.tensor.replay import CaptureError, CudaGraphs, Plain, check_equal, compiled
from spinney.errors import BadInputError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from spinney.engine.decode_options import DecodeOptions
    from spinney.engine.decode_rows import Rows
    from spinney.engine.executor import SequenceStep
    from spinney.engine.tensor.attention import PagedAttention
    from spinney.engine.tensor.pool import KVPool
    from spinney.engine.tensor.replay import Capture, Step
    from spinney.engine.tensor.transformer import RunLayer, Transformer

log = logs.get_logger("engine")


@dataclass(frozen=True, slots=True, eq=False)
class _Captured:
    """A bucket: *host* and *inputs* are the same numbers here and on the device."""

    host: Rows
    source: Tensor
    inputs: Tensor
    replay: Callable[[], Tensor]

    def run(self, steps: Sequence[SequenceStep], pool: KVPool) -> Tensor:
        fill(self.host, steps, pool.block_size, pool.scratch)
        # What is below is for longer sequences; where nobody reads it, it need not be there.
        used = HEADER + -(-tokens_held(steps) // pool.block_size)
        self.inputs[:used].copy_(self.source[:used], non_blocking=True)
        return self.replay()[: len(steps)]


class DecodeStep:
    """Runs up to *most_sequences* decoding sequences of up to *most_blocks* blocks each."""

    def __init__(
        self,
        model: Transformer,
        pool: KVPool,
        attention: PagedAttention,
        capture: Capture,
        *,
        most_sequences: int,
        most_blocks: int,
        compiles: bool = False,
    ) -> None:
        self._model = model
        self._pool = pool
        self._attention = attention
        self._capture = capture
        self._batches = powers(1, most_sequences)
        narrowest = NARROWEST if attention.wide_tables_cost else most_blocks
        self._widths = widths(narrowest, most_blocks)
        self._captured: dict[tuple[int, int], _Captured] = {}
        self._run_layer = compiled(model.layer) if compiles else None

    def takes(self, steps: Sequence[SequenceStep]) -> bool:
        """Return whether there is a bucket for *steps*."""
        return bool(steps) and self._bucket(steps) is not None

    def run(self, steps: Sequence[SequenceStep]) -> Tensor:
        """Run *steps*, which `takes` accepts, and return their logits, valid until the next run."""
        key = self._bucket(steps)
        assert key is not None, "no bucket holds these sequences"
        return self._of(*key).run(steps, self._pool)

    def warm_up(self) -> None:
        """Capture every batch size in the narrowest width, the largest first; see `Capture`."""
        for batch in reversed(self._batches):
            self._of(batch, self._widths[0])

    def _bucket(self, steps: Sequence[SequenceStep]) -> tuple[int, int] | None:
        batch = bucket(self._batches, len(steps))
        width = bucket(self._widths, -(-tokens_held(steps) // self._pool.block_size))
        return None if batch is None or width is None else (batch, width)

    def _of(self, batch: int, width: int) -> _Captured:
        found = self._captured.get((batch, width))
        if found is None:
            found = self._captured[batch, width] = self._make(batch, width)
        return found

    def _make(self, batch: int, width: int) -> _Captured:
        device = self._pool.memory.device
        shape, pinned = (HEADER + width, batch), device.type == "cuda"
        source = torch.empty(shape, dtype=torch.int32, pin_memory=pinned)
        host = source.numpy()
        clear(host, self._pool.scratch)
        inputs = source.to(device, copy=True)
        replay = self._capture.capture(self._step(inputs), inputs)
        log.debug("decode step captured", batch=batch, width=width)
        return _Captured(host, source, inputs, replay)

    def _step(self, inputs: Tensor) -> Step:
        """Return the step, compiled if it is to be, and then compared with the plain one."""
        if self._run_layer is None:
            return self._compute
        step = partial(self._compute, run=self._run_layer)
        try:
            check_equal(step(inputs), self._compute(inputs))
        except (RuntimeError, OSError) as error:
            reason = str(error).strip().splitlines()[0]
            raise CaptureError(f"a decode step cannot be compiled: {reason}") from error
        return step

    def _compute(self, inputs: Tensor, run: RunLayer | None = None) -> Tensor:
        model = self._model
        lengths, tables = inputs[decode_rows.LENGTHS], inputs[HEADER:].T
        rows = model.rows(
            inputs[decode_rows.TOKENS],
            inputs[decode_rows.POSITIONS],
            inputs[decode_rows.BLOCKS],
            inputs[decode_rows.OFFSETS],
        )
        attend = self._attention.over(tables, lengths)
        return model.logits(model.hidden(rows, self._pool, attend, run))


def choose_decode_step(
    options: DecodeOptions, model: Transformer, pool: KVPool, attention: PagedAttention
) -> DecodeStep | None:
    """Return the step that *options* want, captured; None: none, step eagerly.

    Raises BadInputError when what is wanted by name cannot be had. Ranks of a group, whose sums
    leave the device in the middle of a step, get None for what is captured, and a warning.
    """
    device, wanted = model.device, options.graph
    wish = wanted
    if wish == "auto":
        wish = "cuda" if device.type == "cuda" and model.part.collective is None else "eager"
    if wish == "cuda" and device.type != "cuda":
        raise BadInputError(
            f"--decode-graph cuda: device {device} is no GPU; use --device cuda, or --decode-graph "
            f"compile, which works on a CPU as well"
        )
    if wish in ("cuda", "compile") and model.part.collective is not None:
        log.warning("decode steps are not captured", wanted=wanted, reason="the model is shared")
        wish = "eager"
    if wish == "eager":
        return None
    positions = -(-model.config.max_position_embeddings // pool.block_size)
    step = DecodeStep(
        model,
        pool,
        attention,
        CudaGraphs(device) if device.type == "cuda" and wish != "static" else Plain(),
        most_sequences=options.most_sequences,
        most_blocks=min(options.most_blocks or positions, pool.scratch),
        compiles=wish == "compile",
    )
    return _tried(step, wanted)


def _tried(step: DecodeStep, wanted: str) -> DecodeStep | None:
    """Return *step* when all its batches are captured; None where ``auto`` may do without."""
    try:
        step.warm_up()
    except CaptureError as error:
        if wanted == "auto":
            log.warning("decode steps are not captured", wanted=wanted, reason=str(error))
            return None
        raise BadInputError(
            f"--decode-graph {wanted}: {error}; use --decode-graph eager"
        ) from error
    return step
