from __future__ import annotations

import asyncio
import random
from functools import partial
from typing import TYPE_CHECKING

import pytest

from spinney.api.core import Pod, PodStatus
from spinney.api.meta import Condition, ObjectMeta
from spinney.clock import LoopClock
from spinney.cmd.startup_wait import PROGRESS_S, missing, parse_parents, wait_for
from spinney.errors import BadInputError
from spinney.ids import RandomIds
from spinney.kube.client import KubeClient
from spinney.local.apiserver.server import ApiServer
from spinney.sim.loop import SimulatedLoop

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

NS = "default"


def pod(name: str, clique: str, *, ready: bool) -> Pod:
    return Pod(
        metadata=ObjectMeta(name=name, namespace=NS, labels={"grove.io/podclique": clique}),
        status=PodStatus(conditions=[Condition(type="Ready", status=str(ready))]),
    )


async def set_ready(client: KubeClient, name: str) -> None:
    patch = {"status": {"conditions": [{"type": "Ready", "status": "True"}]}}
    await client.patch(Pod, name, patch, NS, subresource="status")


def play(scene: Callable[[KubeClient, ApiServer], Awaitable[None]]) -> None:
    async def main() -> None:
        clock = LoopClock(asyncio.get_running_loop())
        server = ApiServer(clock, RandomIds(random.Random(1)))
        client = KubeClient(server)
        try:
            async with asyncio.timeout(3600):
                await scene(client, server)
        finally:
            await client.close()

    with asyncio.Runner(loop_factory=partial(SimulatedLoop, random.Random(1))) as runner:
        runner.run(main())


async def _make(client: KubeClient, name: str, clique: str) -> None:
    raw = {
        "metadata": {"name": name, "namespace": NS, "labels": {"grove.io/podclique": clique}},
        "spec": {"containers": [{"name": "main", "image": "i"}]},
    }
    await client.create(raw, resource=Pod.RESOURCE)


def test_it_waits_until_every_parent_has_its_minimum() -> None:
    async def scene(client: KubeClient, _: ApiServer) -> None:
        waiting = asyncio.ensure_future(wait_for(client, NS, {"s-0-a": 2, "s-0-b": 1}))
        for name, clique in (("a1", "s-0-a"), ("a2", "s-0-a"), ("b1", "s-0-b")):
            await _make(client, name, clique)
        for name in ("a1", "b1"):
            await set_ready(client, name)
            await asyncio.sleep(1)
            assert not waiting.done()
        await set_ready(client, "a2")
        await asyncio.sleep(1)
        assert waiting.done()

    play(scene)


def test_a_clique_whose_name_begins_alike_is_not_a_parent() -> None:
    async def scene(client: KubeClient, _: ApiServer) -> None:
        waiting = asyncio.ensure_future(wait_for(client, NS, {"s-0-a": 1}))
        await _make(client, "s-0-a-b-x", "s-0-a-b")
        await set_ready(client, "s-0-a-b-x")
        await asyncio.sleep(60)
        assert not waiting.done()
        await _make(client, "s-0-a-y", "s-0-a")
        await set_ready(client, "s-0-a-y")
        await asyncio.sleep(1)
        assert waiting.done()

    play(scene)


def test_it_survives_the_end_of_its_watch() -> None:
    async def scene(client: KubeClient, server: ApiServer) -> None:
        waiting = asyncio.ensure_future(wait_for(client, NS, {"s-0-a": 1}))
        await _make(client, "a1", "s-0-a")
        await asyncio.sleep(1)
        server.end_streams()
        await set_ready(client, "a1")
        await asyncio.sleep(60)
        assert waiting.done()

    play(scene)


def test_it_says_what_it_waits_for(capsys: pytest.CaptureFixture[str]) -> None:
    async def scene(client: KubeClient, _: ApiServer) -> None:
        waiting = asyncio.ensure_future(wait_for(client, NS, {"s-0-a": 2}))
        await asyncio.sleep(2.5 * PROGRESS_S)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)

    play(scene)
    captured = capsys.readouterr()
    assert (captured.out + captured.err).count("s-0-a has 0 of 2 ready pods") == 2


def test_nothing_to_wait_for_is_over_at_once() -> None:
    async def scene(client: KubeClient, _: ApiServer) -> None:
        await wait_for(client, NS, {"s-0-a": 0})

    play(scene)


def test_pods_on_their_way_out_do_not_count() -> None:
    going = pod("a", "s-0-a", ready=True)
    assert missing({"s-0-a": 1}, [going]) == []
    going.metadata.deletion_timestamp = "2026-01-01T00:00:00Z"
    assert missing({"s-0-a": 1}, [going]) == ["s-0-a has 0 of 1 ready pods"]


def test_parents_are_read_from_arguments() -> None:
    assert parse_parents(["a:1", "b-c:2, d:3"]) == {"a": 1, "b-c": 2, "d": 3}
    for bad in ("a", ":1", "a:", "a:x", "a:-1"):
        with pytest.raises(BadInputError, match="NAME:COUNT wanted"):
            parse_parents([bad])
