"""How long a request's prompt is, and how much of it each worker has computed before.

What a client was sent of a stream that broke off counts as its prompt for the worker that goes on.
Invariant: a request's length is measured once. A cached figure that workers report is held against
what was thought before they were asked.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

from spinney.router.prompt_tokens import prompt_tokens

if TYPE_CHECKING:
    from collections.abc import Mapping

    from spinney.router.cache_view import CacheView
    from spinney.router.metrics import RouterMetrics
    from spinney.router.openai import Inbound, Usage
    from spinney.router.prompt_tokens import PromptTokenizer
    from spinney.router.run import Run
    from spinney.router.workers import Worker


class PromptLookup:
    """Looks prompts up in what is believed of the workers' caches."""

    def __init__(
        self,
        cache: CacheView,
        tokenizers: Mapping[str, PromptTokenizer],
        metrics: RouterMetrics,
    ) -> None:
        """*tokenizers* are by model; the one of an empty name is for all others."""
        self._cache = cache
        self._tokenizers = tokenizers
        self._metrics = metrics

    async def measure(self, run: Run) -> None:
        """Find how long the prompt is, and who has computed how much of it before."""
        inbound = run.inbound
        tokens = await self._tokens(inbound)
        self._find(run, inbound, tokens)
        if tokens:
            run.estimated = inbound
            run.inbound = replace(inbound, prompt_tokens=len(tokens))
            run.story.prompt_tokens = len(tokens)
        self._metrics.prompt_tokens.inc(run.inbound.prompt_tokens)

    async def measure_again(self, run: Run) -> None:
        """Find the same of the prompt and what was sent of the answer, which count alike now."""
        run.told = run.break_point()
        tokens = await self._tokens(run.inbound)
        known = None if tokens is None else [*tokens, *run.told]
        inbound = run.estimated or run.inbound
        inbound = replace(inbound, prompt_tokens=inbound.prompt_tokens + len(run.told))
        self._find(run, inbound, known)

    def _find(self, run: Run, inbound: Inbound, tokens: list[int] | None) -> None:
        run.found = self._cache.found(inbound, tokens, _now())
        run.cached = self._cache.believed(run.found)

    async def _tokens(self, inbound: Inbound) -> list[int] | None:
        tokenizer = self._tokenizers.get(inbound.model) or self._tokenizers.get("")
        return await prompt_tokens(inbound, tokenizer)

    def uncached_tokens(self, run: Run, worker: Worker) -> int:
        """Return how much *worker* has to compute, as far as its cache is believed."""
        return max(1, run.known_tokens - run.cached.get(worker.name, 0))

    def routed(self, run: Run, worker: Worker) -> None:
        """Note that *worker* computes or gets this prompt."""
        self._cache.routed(worker.name, run.inbound, _now())

    def audit(self, run: Run, worker: Worker, usage: Usage | None) -> int | None:
        """Compare what *worker* found in its cache with what was thought; return its figure."""
        if usage is None or usage.cached_tokens is None or usage.prompt_tokens <= 0:
            return None
        if run.migrations:
            return usage.cached_tokens  # What was sent is not in the worker's figures.
        run.story.cached_tokens = usage.cached_tokens
        thought = run.found.get(worker.name, 0) / run.inbound.prompt_tokens
        real = usage.cached_tokens / usage.prompt_tokens
        if thought > 0:
            before = self._cache.trust(worker.name)
            after = self._cache.audited(worker.name, thought, real)
            self._metrics.audits.labels("wrong" if after < before else "right").inc()
        return usage.cached_tokens


def _now() -> float:
    return asyncio.get_running_loop().time()
