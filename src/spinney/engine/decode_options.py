"""How sequences are to decode on torch, as a user says it; for flags and executors alike.

Invariant: ``auto`` never fails. What is asked for by name is had, or refused with the reason.
"""

from __future__ import annotations

from dataclasses import dataclass

from spinney.errors import BadInputError

DECODE_GRAPH = ("auto", "cuda", "compile", "static", "eager")
"""How a decode step runs: ``cuda`` captures it as a CUDA graph; ``compile`` compiles its layers,
and on a GPU captures that; ``static`` runs what would be captured as it is; ``eager`` has no fixed
shape. ``auto`` is ``cuda`` on a GPU, where a whole step stays on it, else ``eager``."""
PAGED_ATTENTION = ("auto", "kernel", "gather")
"""How it attends: ``kernel`` reads KV blocks in place, ``gather`` copies them first. ``auto`` is
``kernel`` on a GPU with Triton, else ``gather``."""
MOST_SEQUENCES = 64
"""The largest batch that is captured, unless another is given."""


@dataclass(frozen=True, slots=True)
class DecodeOptions:
    """*graph* is one of `DECODE_GRAPH`, *attention* one of `PAGED_ATTENTION`.

    *most_sequences* is the largest batch that is captured; larger ones run eagerly. *most_blocks*
    is what one sequence may have; 0: as many as the model has positions for.
    """

    graph: str = "eager"
    attention: str = "auto"
    most_sequences: int = MOST_SEQUENCES
    most_blocks: int = 0

    def __post_init__(self) -> None:
        for flag, value, allowed in (
            ("--decode-graph", self.graph, DECODE_GRAPH),
            ("--paged-attention", self.attention, PAGED_ATTENTION),
        ):
            if value not in allowed:
                raise BadInputError(f"{flag} is {value!r}; it is one of {', '.join(allowed)}")
        if self.most_sequences < 1:
            raise BadInputError(
                f"--decode-graph-max-batch {self.most_sequences}: a batch has at least one "
                f"sequence; give 1 or more, or --decode-graph eager"
            )

    def check_numpy(self) -> None:
        """Raise BadInputError unless the NumPy executor can do what is asked for."""
        for flag, value, without in (
            ("--decode-graph", self.graph, ("auto", "eager")),
            ("--paged-attention", self.attention, ("auto", "gather")),
        ):
            if value not in without:
                raise BadInputError(
                    f"{flag} {value}: the numpy executor has none; use --executor torch, or "
                    f"{flag} auto"
                )
