"""Turns a step of fixed shape into something that costs less to run again.

A decode step of a small batch is hundreds of short kernels, and starting them from Python takes
longer than running them. A CUDA graph starts all with one call; a compiler makes fewer of them.
Invariant: what is returned computes what the step computes, from whatever its input tensor holds at
the time, and says so only after having been compared with it.
"""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any, Protocol

import torch

from spinney.errors import SpinneyError

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from spinney.engine.tensor.transformer import Layer, RunLayer, TokenRows

    Step = Callable[[Tensor], Tensor]

WARM_UPS = 2
"""Plain runs before a capture: libraries choose their kernels and workspaces in them."""
TOLERANCE = 0.05
"""How far a capture's logits may be from the plain step's, as a part of the largest of them."""


class CaptureError(SpinneyError):
    """A step cannot be captured, or computes something else when it is."""


class Capture(Protocol):
    """A way to run a step again and again."""

    def capture(self, step: Step, inputs: Tensor) -> Callable[[], Tensor]:
        """Return what runs *step* on what *inputs* holds at the time.

        The step is run with what they hold now; twice the same must do no harm. A result is valid
        until the next run of anything that this captured. Raises CaptureError.
        """
        ...


class Plain:
    """Runs the step as it is: every device can, and nothing is gained."""

    def capture(self, step: Step, inputs: Tensor) -> Callable[[], Tensor]:
        """See `Capture.capture`."""
        return lambda: step(inputs)


class CudaGraphs:
    """Records what a GPU is asked to do, and asks for all of it at once; one memory for all."""

    def __init__(self, device: Any) -> None:
        self._device = device
        self._memory: Any = None

    def capture(self, step: Step, inputs: Tensor) -> Callable[[], Tensor]:
        """See `Capture.capture`."""
        try:
            return self._capture(step, inputs)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[0]
            raise CaptureError(
                f"a decode step cannot be captured as a CUDA graph: {reason}"
            ) from error

    def _capture(self, step: Step, inputs: Tensor) -> Callable[[], Tensor]:
        stream, current = torch.cuda.Stream(self._device), torch.cuda.current_stream(self._device)
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                wanted = step(inputs)
        current.wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # Other threads may use the GPU meanwhile, another executor's for instance.
        with torch.cuda.graph(
            graph, pool=self._memory, stream=stream, capture_error_mode="thread_local"
        ):
            logits = step(inputs)
        self._memory = self._memory or graph.pool()

        def replay() -> Tensor:
            graph.replay()
            return logits

        check_equal(replay(), wanted)
        return replay


def compiled(run: RunLayer) -> RunLayer:
    """Return what torch's compiler makes of *run* when it is called first.

    *run* gets what a `PagedAttention` returns. It is compiled twice, for one sequence and for more;
    each serves every layer and every number of blocks.
    """
    fast = torch.compile(run, fullgraph=True)
    met: set[tuple[int, ...]] = set()

    def run_layer(layer: Layer, x: Tensor, rows: TokenRows, pool: Tensor, attend: Any) -> Tensor:
        shape = (len(x), *attend.tables.shape)
        if shape not in met:
            met.add(shape)
            for value in (x, *_tensors(rows)):
                _may_vary(value, 0)
            for value in _tensors(attend):
                for dimension in range(value.dim()):
                    _may_vary(value, dimension)
        return fast(layer, x, rows, pool, attend)

    return run_layer


def _tensors(record: Any) -> list[Tensor]:
    values = (getattr(record, field.name) for field in fields(record))
    return [value for value in values if isinstance(value, torch.Tensor)]


def _may_vary(value: Tensor, dimension: int) -> None:
    # A size of one is a case of its own to the compiler.
    if value.shape[dimension] > 1:
        torch._dynamo.maybe_mark_dynamic(value, dimension)


def check_equal(found: Tensor, wanted: Tensor) -> None:
    """Raise CaptureError unless *found* is *wanted*, up to what another order of sums makes."""
    off = float((found - wanted).abs().max())
    bound = TOLERANCE * float(wanted.abs().max())
    if not off <= bound:
        raise CaptureError(
            f"a captured decode step gives logits that are off by {off:.3g}, {bound:.3g} is allowed"
        )
