"""Which keys need work: each at most once, and never the same one twice at a time.

A key that is added while it is being worked on is kept as *dirty* and handed out again when its
work is done: so work on a key is serial, and no change is lost. Since a key is held once, the
number of distinct keys bounds the queue. Failed keys come back after a back-off of their own, and
a token bucket bounds how fast all failures together may come back.

The invariants: a key handed out by ``get`` is in no other worker's hands until ``done``; a key
added after it was handed out is handed out again.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from spinney.kube.backoff import BackoffPolicy

if TYPE_CHECKING:
    from random import Random

RETRY_BACKOFF = BackoffPolicy(base_s=0.01, cap_s=30.0)
RETRY_RATE_PER_S = 50.0
"""Retries of all keys together, in the long run."""
RETRY_BURST = 200
"""Retries of all keys together that need not wait for the rate."""


class TokenBucket:
    """Grants *burst* at once, then *rate_per_s*; later ones are told how long to wait."""

    def __init__(self, rate_per_s: float, burst: int) -> None:
        self._interval_s = 1.0 / rate_per_s
        self._slack_s = burst * self._interval_s
        self._next_s = float("-inf")

    def reserve(self, now_s: float) -> float:
        """Take a token; return the seconds until it may be used."""
        self._next_s = max(self._next_s, now_s - self._slack_s) + self._interval_s
        return max(0.0, self._next_s - now_s)


class WorkQueue:
    """Keys that need work. All methods are of one event loop; times are its ``time()``."""

    def __init__(
        self,
        *,
        rng: Random,
        backoff: BackoffPolicy = RETRY_BACKOFF,
        retry_rate_per_s: float = RETRY_RATE_PER_S,
        retry_burst: int = RETRY_BURST,
    ) -> None:
        self._rng = rng
        self._backoff = backoff
        self._bucket = TokenBucket(retry_rate_per_s, retry_burst)
        self._ready: asyncio.Queue[str] = asyncio.Queue()
        self._dirty: set[str] = set()
        self._processing: set[str] = set()
        self._waiting: dict[str, asyncio.TimerHandle] = {}
        self._failures: dict[str, int] = {}
        self.adds = 0
        """Keys made ready since the start."""
        self.retries = 0
        """Keys that came back after a failure, since the start."""

    def __len__(self) -> int:
        """How many keys are ready to be handed out."""
        return self._ready.qsize()

    @property
    def waiting(self) -> int:
        """How many keys wait for their time."""
        return len(self._waiting)

    @property
    def idle(self) -> bool:
        """Whether nothing is ready and nothing is being worked on; keys may be waiting."""
        return self._ready.empty() and not self._processing

    def add(self, key: str) -> None:
        """Hand *key* out as soon as a worker is free and nobody works on it."""
        if key in self._dirty:
            return
        self._dirty.add(key)
        self.adds += 1
        if key not in self._processing:
            self._ready.put_nowait(key)

    def add_after(self, key: str, delay_s: float) -> None:
        """Add *key* in *delay_s* seconds; of several times for one key, the earliest counts."""
        if delay_s <= 0:
            self.add(key)
            return
        loop = asyncio.get_running_loop()
        when_s = loop.time() + delay_s
        timer = self._waiting.get(key)
        if timer is not None:
            if timer.when() <= when_s:
                return
            timer.cancel()
        self._waiting[key] = loop.call_at(when_s, self._ripen, key)

    def retry(self, key: str, at_least_s: float = 0.0) -> float:
        """Add *key* after its back-off, which grows with each call until `forget`.

        Returns the seconds until then: *at_least_s* or more.
        """
        failures = self._failures.get(key, 0) + 1
        self._failures[key] = failures
        self.retries += 1
        rate_s = self._bucket.reserve(asyncio.get_running_loop().time())
        delay_s = max(at_least_s, rate_s, self._backoff.delay_s(failures, self._rng))
        self.add_after(key, delay_s)
        return delay_s

    def forget(self, key: str) -> None:
        """Start the back-off of *key* over: its work succeeded."""
        self._failures.pop(key, None)

    def failures(self, key: str) -> int:
        """Return how often in a row *key* has failed."""
        return self._failures.get(key, 0)

    async def get(self) -> str:
        """Wait for a key and take it; call `done` with it when the work is over."""
        key = await self._ready.get()
        self._dirty.discard(key)
        self._processing.add(key)
        return key

    def done(self, key: str) -> None:
        """Give *key* back; if it was added meanwhile, it becomes ready again."""
        self._processing.discard(key)
        if key in self._dirty:
            self._ready.put_nowait(key)

    def close(self) -> None:
        """Cancel all timers. Keys that are ready stay."""
        for timer in self._waiting.values():
            timer.cancel()
        self._waiting.clear()

    def _ripen(self, key: str) -> None:
        self._waiting.pop(key, None)
        self.add(key)
