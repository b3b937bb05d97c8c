"""Writing a pod's status beside others who write it, and over failures."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING

import msgspec
from tests.nodeagent.harness import pod

from spinney.api.core import Pod, PodStatus
from spinney.api.meta import Condition, with_condition
from spinney.clock import LoopClock
from spinney.ids import RandomIds
from spinney.kube.client import KubeClient
from spinney.kube.transport import ApiRequest, ApiResponse, TransportError
from spinney.local.apiserver.server import ApiServer
from spinney.local.nodeagent.status_writer import StatusWriter
from spinney.sim.loop import SimulatedLoop

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


class Flaky:
    """The API, failing as often as it is told to."""

    def __init__(self, api: ApiServer) -> None:
        self._api = api
        self.failures = 0

    async def send(self, request: ApiRequest) -> ApiResponse:
        if self.failures:
            self.failures -= 1
            raise TransportError("the connection broke")
        return await self._api.send(request)

    async def close(self) -> None:
        pass


def ready(found: Pod) -> PodStatus:
    conditions = with_condition(
        found.status.conditions, Condition(type="Ready", status="True"), "2030-01-01T00:00:00Z"
    )
    return msgspec.structs.replace(found.status, phase="Running", conditions=conditions)


def run(story: Callable[[Flaky, KubeClient, StatusWriter], Awaitable[None]]) -> None:
    async def whole() -> None:
        clock = LoopClock(asyncio.get_running_loop())
        api = ApiServer(clock, RandomIds(random.Random(1)))
        flaky = Flaky(api)
        client = KubeClient(flaky)
        await client.create(pod("p"), resource=Pod.RESOURCE)
        stored = await client.get(Pod, "p", "default")
        await story(flaky, client, StatusWriter(client, stored, ready, random.Random(1)))
        await api.close()

    with asyncio.Runner(loop_factory=SimulatedLoop) as runner:
        runner.run(whole())


def test_a_condition_that_somebody_else_wrote_meanwhile_is_kept() -> None:
    async def story(flaky: Flaky, client: KubeClient, writer: StatusWriter) -> None:
        theirs = {"status": {"conditions": [{"type": "Theirs", "status": "True"}]}}
        await client.patch(Pod, "p", theirs, "default", subresource="status")
        await writer.flush()
        found = await client.get(Pod, "p", "default")
        assert {c.type for c in found.status.conditions} == {"Theirs", "Ready"}

    run(story)


def test_a_broken_connection_delays_the_status_and_loses_nothing() -> None:
    async def story(flaky: Flaky, client: KubeClient, writer: StatusWriter) -> None:
        flaky.failures = 7
        await writer.flush()
        assert 0 < asyncio.get_running_loop().time() < 60
        assert (await client.get(Pod, "p", "default")).status.phase == "Running"

    run(story)


def test_another_pod_of_the_same_name_is_never_written_to() -> None:
    async def story(flaky: Flaky, client: KubeClient, writer: StatusWriter) -> None:
        await client.delete(Pod, "p", "default", grace_period_s=0)
        await client.create(pod("p"), resource=Pod.RESOURCE)
        await writer.flush()
        assert writer.gone
        assert (await client.get(Pod, "p", "default")).status.phase == "Pending"

    run(story)
