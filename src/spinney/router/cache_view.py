"""How much of a prompt each worker has computed before: what workers say, what was routed, and how
far either is to be believed.

A worker's own events tell what it holds; what was routed to it a moment ago tells what it is about
to hold, so that a burst of siblings sees each other. Of workers without events only the latter is
known. Workers report how many tokens they really found: where less than was thought, the worker's
figure counts for less next time. Invariant: a worker whose figures are always wrong ends at no
credit at all, so that a stale or poisoned index is load balancing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from spinney.kv.prefix_index import BlockIndex
    from spinney.router.openai import Inbound
    from spinney.router.prefix_index import PrefixIndex

PREDICTION_S = 2.0
"""How long a routed prompt counts as cached before the worker's events have to say so."""
LEARNING = 0.25
"""How much one audit moves a worker's trust."""
TOLERANCE = 0.1
"""The part of a prompt that an estimate may be off: blocks are whole, text is not tokens."""
RESYNC_BELOW = 0.3
"""Trust below which a worker's figures count for nothing and its events are asked for again."""
RESTORED = 0.98
"""Trust from which on it is complete."""


class CacheView:
    """What is believed of the workers' caches."""

    def __init__(
        self,
        routed: PrefixIndex,
        blocks: BlockIndex,
        heard: Collection[str],
        resync: Callable[[str], None] = lambda _worker: None,
    ) -> None:
        """*heard* are the workers whose events arrive; *resync* asks one for them again."""
        self._routed = routed
        self._blocks = blocks
        self._heard = heard
        self._resync = resync
        self._trust: dict[str, float] = {}

    def found(self, inbound: Inbound, tokens: Sequence[int] | None, now_s: float) -> dict[str, int]:
        """Return how many prompt tokens each worker seems to have, before any trust."""
        if tokens is None:
            return self._routed.cached_tokens(inbound.chunks)
        guessed = self._routed.cached_tokens(
            inbound.chunks, since_s=now_s - PREDICTION_S, only_since=self._heard
        )
        scale = len(tokens) / max(1, inbound.prompt_tokens)
        merged = {name: round(count * scale) for name, count in guessed.items()}
        # The last token is computed in any case: its logits choose the first one of the answer.
        for name, count in self._blocks.cached_tokens(tokens[:-1]).items():
            merged[name] = max(count, merged.get(name, 0))
        return merged

    def believed(self, found: dict[str, int]) -> dict[str, int]:
        """Return *found* as far as each worker is trusted."""
        if not self._trust:
            return found
        credit = {
            name: trust if trust >= RESYNC_BELOW else 0.0 for name, trust in self._trust.items()
        }
        return {name: int(count * credit.get(name, 1.0)) for name, count in found.items()}

    def trust(self, worker: str) -> float:
        """Return how far *worker*'s figures are believed, from 0 to 1."""
        return self._trust.get(worker, 1.0)

    def routed(self, worker: str, inbound: Inbound, now_s: float) -> None:
        """Note that *worker* computes this prompt."""
        self._routed.record(worker, inbound.chunks, now_s)

    def audited(self, worker: str, thought: float, real: float) -> float:
        """Compare the parts of a prompt that were *thought* and *real*ly cached; return trust.

        A worker that had more than was thought is no fault of the index.
        """
        before = self._trust.get(worker, 1.0)
        if thought <= 0:
            return before
        right = min(1.0, (real + TOLERANCE) / thought) if real + TOLERANCE < thought else 1.0
        after = before + LEARNING * (right - before)
        if after >= RESTORED:
            self._trust.pop(worker, None)
            return 1.0
        self._trust[worker] = after
        if after < RESYNC_BELOW <= before:
            self._routed.forget(worker)
            self._resync(worker)
        return after

    def forget(self, worker: str) -> None:
        """Drop what is known of *worker*: it may have restarted empty."""
        self._routed.forget(worker)
        self._resync(worker)

    def gone(self, worker: str) -> None:
        """Drop *worker* itself: it is no longer there, or another one is in its place."""
        self._routed.forget(worker)
        self._blocks.forget(worker)
        self._trust.pop(worker, None)
