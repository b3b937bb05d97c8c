"""Writes a pod's status: one patch per real change, none at rest, never an older one over a newer.

A patch names the version it was computed from, so that conditions that somebody else has written
meanwhile are not lost: the API refuses it, the pod is read again and the patch is made anew.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec

from spinney.api import codec
from spinney.api.core import Pod
from spinney.kube.backoff import BackoffPolicy
from spinney.kube.errors import ApiError, ConflictError, NotFoundError
from spinney.kube.transport import TransportError
from spinney.log import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

    from spinney.api.core import PodStatus
    from spinney.kube.client import KubeClient

RETRY = BackoffPolicy(base_s=0.2, cap_s=10.0)
WRITE_TIMEOUT_S = 30.0
"""For one request."""

log = get_logger("nodeagent")


class StatusWriter:
    """Keeps the status of one pod as *status_for* wants it."""

    def __init__(
        self,
        client: KubeClient,
        pod: Pod,
        status_for: Callable[[Pod], PodStatus],
        rng: Random,
    ) -> None:
        self._client = client
        self._pod = pod
        self._status_for = status_for
        self._rng = rng
        self._wake = asyncio.Event()
        self.gone = False
        """The pod is no longer in the API."""

    @property
    def pod(self) -> Pod:
        """The newest version of the pod that is known."""
        return self._pod

    def observe(self, pod: Pod) -> None:
        """Take note of a version that the API reported, unless a newer one is known."""
        if _version(pod) >= _version(self._pod):
            self._pod = pod
        self.nudge()

    def nudge(self) -> None:
        """Look soon whether there is something to write."""
        self._wake.set()

    async def run(self) -> None:
        """Write until cancelled or the pod is gone."""
        while not self.gone:
            await self._wake.wait()
            self._wake.clear()
            await self.flush()

    async def flush(self) -> None:
        """Return when the API has the status that is wanted, or the pod is gone."""
        failures = 0
        while not self.gone:
            try:
                async with asyncio.timeout(WRITE_TIMEOUT_S):
                    await self._write()
            except ConflictError:
                await self._read_again()
            except (ApiError, TransportError, TimeoutError) as error:
                failures += 1
                log.warning("status not written", pod=self._pod.key, error=str(error))
                await asyncio.sleep(RETRY.delay_s(failures, self._rng))
            else:
                return

    async def _write(self) -> None:
        before = self._pod
        after = msgspec.structs.replace(before, status=self._status_for(before))
        patch = codec.merge_diff(before, after)
        if not patch:
            return
        patch["metadata"] = {"resourceVersion": before.metadata.resource_version}
        try:
            self._pod = await self._client.patch(
                Pod, before.name, patch, before.namespace, subresource="status"
            )
        except NotFoundError:
            self.gone = True

    async def _read_again(self) -> None:
        try:
            found = await self._client.get(Pod, self._pod.name, self._pod.namespace)
        except NotFoundError:
            self.gone = True
        except (ApiError, TransportError) as error:
            log.warning("pod not read", pod=self._pod.key, error=str(error))
        else:
            self.gone = found.metadata.uid != self._pod.metadata.uid
            self._pod = self._pod if self.gone else found


def _version(pod: Pod) -> int:
    text = pod.metadata.resource_version
    return int(text) if text.isdigit() else 0
