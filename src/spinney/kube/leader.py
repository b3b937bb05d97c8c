"""One active process among several: whoever holds a Lease works, the others wait for it to lapse.

The invariant: the work runs only while the last renewal that the API confirmed is younger than
``renew_deadline_s``, and nobody else may take the lease before ``lease_duration_s`` have passed
without a renewal. The expiry of another's lease is judged by how long *we* have seen it
unchanged, so clocks of different machines need not agree.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from spinney.api.core import Lease, LeaseSpec
from spinney.api.meta import ObjectMeta
from spinney.clock import rfc3339
from spinney.kube.errors import AlreadyExistsError, ApiError, ConflictError, NotFoundError
from spinney.kube.transport import TransportError
from spinney.log import get_logger

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from spinney.clock import Clock
    from spinney.ids import IdSource
    from spinney.kube.client import KubeClient

JITTER = 0.2
"""A retry comes up to this share of the period later, so that candidates do not march in step."""

log = get_logger("leader")


@dataclass(frozen=True, slots=True)
class Observed:
    """The lease as it was when it last changed, and when we saw that, in loop time."""

    spec: LeaseSpec
    seen_s: float


def may_take(observed: Observed, identity: str, now_s: float) -> bool:
    """Tell whether *identity* may write itself into the lease at loop time *now_s*."""
    holder = observed.spec.holder_identity
    if not holder or holder == identity:
        return True
    return now_s >= observed.seen_s + observed.spec.lease_duration_seconds


class LeaderElector:
    """Competes for the Lease *namespace*/*name* as *identity*."""

    def __init__(
        self,
        client: KubeClient,
        clock: Clock,
        ids: IdSource,
        name: str,
        namespace: str,
        identity: str,
        lease_duration_s: float = 15.0,
        renew_deadline_s: float = 10.0,
        retry_period_s: float = 2.0,
    ) -> None:
        if not lease_duration_s > renew_deadline_s > retry_period_s * (1 + JITTER):
            raise ValueError(
                f"lease_duration_s {lease_duration_s} > renew_deadline_s {renew_deadline_s} > "
                f"retry_period_s {retry_period_s} × {1 + JITTER} wanted: otherwise two may lead"
            )
        self._client = client
        self._clock = clock
        # Two processes that were given one name must not both believe that they hold the lease.
        self.identity = f"{identity}_{ids.suffix(8)}"
        self._name = name
        self._namespace = namespace
        self._lease_duration_s = lease_duration_s
        self._renew_deadline_s = renew_deadline_s
        self._retry_period_s = retry_period_s
        self._ids = ids
        self._observed: Observed | None = None
        self._renewed_s = float("-inf")
        self.leading = False

    async def run(self, work: Callable[[], Awaitable[None]]) -> None:
        """Wait for the lease, then run *work* while it is held; over and over until cancelled.

        *work* is cancelled when the lease is lost. Returns when *work* returns; raises what it
        raises. The lease is given up on the way out.
        """
        while True:
            await self._acquire()
            log.info("leading", lease=self._name, identity=self.identity)
            self.leading = True
            try:
                if await self._lead(work):
                    return
            finally:
                self.leading = False
                await self._release()
            log.warning("lease lost", lease=self._name, identity=self.identity)

    async def _acquire(self) -> None:
        while True:
            if await self._try_once():
                return
            await asyncio.sleep(self._pause_s())

    async def _lead(self, work: Callable[[], Awaitable[None]]) -> bool:
        """Run *work* and renew; return whether it ended by itself."""
        task = asyncio.ensure_future(_awaited(work))
        try:
            while not task.done():
                deadline_s = self._renewed_s + self._renew_deadline_s
                pause_s = min(self._pause_s(), max(0.0, deadline_s - _loop_s()))
                await asyncio.wait({task}, timeout=pause_s)
                if task.done() or not await self._renew_before(deadline_s):
                    break
        finally:
            ended = task.done()
            if not ended:
                task.cancel()
                await asyncio.wait({task})
        if ended or not task.cancelled():
            task.result()
        return ended

    async def _renew_before(self, deadline_s: float) -> bool:
        """Renew once; return False when the lease is another's or the deadline has passed."""
        try:
            async with asyncio.timeout_at(deadline_s):
                if await self._try_once():
                    return True
        except TimeoutError:
            return False
        observed = self._observed
        taken = observed is not None and observed.spec.holder_identity != self.identity
        return not taken and _loop_s() < deadline_s

    async def _try_once(self) -> bool:
        """Take or renew the lease; return whether it is ours. Failures are logged."""
        try:
            async with asyncio.timeout(self._renew_deadline_s):
                return await self._take_or_renew()
        except (ConflictError, AlreadyExistsError):
            return False
        except (ApiError, TransportError, TimeoutError) as error:
            log.warning("lease not reached", lease=self._name, error=str(error) or "no answer")
            return False

    async def _take_or_renew(self) -> bool:
        asked_s = _loop_s()
        now = rfc3339(self._clock.now(), micro=True)
        try:
            lease = await self._client.get(Lease, self._name, self._namespace)
        except NotFoundError:
            metadata = ObjectMeta(name=self._name, namespace=self._namespace)
            created = await self._client.create(
                Lease(metadata=metadata, spec=self._spec(now, now, 0))
            )
            self._hold(created.spec, asked_s)
            return True
        if self._observed is None or self._observed.spec != lease.spec:
            self._observed = Observed(lease.spec, _loop_s())
        if not may_take(self._observed, self.identity, _loop_s()):
            return False
        lease.spec = self._next_spec(lease.spec, now)
        # update() names the version read: if anybody wrote since, this is a conflict.
        updated = await self._client.update(lease)
        self._hold(updated.spec, asked_s)
        return True

    def _next_spec(self, old: LeaseSpec, now: str) -> LeaseSpec:
        if old.holder_identity == self.identity:
            return self._spec(old.acquire_time or now, now, old.lease_transitions)
        return self._spec(now, now, old.lease_transitions + 1)

    def _spec(self, acquired: str, renewed: str, transitions: int) -> LeaseSpec:
        return LeaseSpec(
            holder_identity=self.identity,
            lease_duration_seconds=max(1, round(self._lease_duration_s)),
            acquire_time=acquired,
            renew_time=renewed,
            lease_transitions=transitions,
        )

    def _hold(self, spec: LeaseSpec, asked_s: float) -> None:
        self._observed = Observed(spec, _loop_s())
        # Counted from before the request: the others may count from the moment it was stored.
        self._renewed_s = asked_s

    async def _release(self) -> None:
        """Give the lease up if it is ours, so that the next one need not wait."""
        try:
            async with asyncio.timeout(self._retry_period_s):
                lease = await self._client.get(Lease, self._name, self._namespace)
                if lease.spec.holder_identity != self.identity:
                    return
                lease.spec = msgspec.structs.replace(
                    lease.spec, holder_identity="", lease_duration_seconds=1
                )
                await self._client.update(lease)
        except (ApiError, TransportError, TimeoutError) as error:
            log.info("lease not released", lease=self._name, error=str(error))

    def _pause_s(self) -> float:
        # The suffix of the identity is random, so it is the candidate's own jitter as well.
        share = sum(map(ord, self.identity)) % 16 / 16
        return self._retry_period_s * (1 + JITTER * share)


async def _awaited(work: Callable[[], Awaitable[None]]) -> None:
    await work()


def _loop_s() -> float:
    return asyncio.get_running_loop().time()
