"""The server over HTTPS: who may ask, streams, shutdown, and logs from node agents."""

from __future__ import annotations

import asyncio
import io
import os
import random
import ssl
import stat
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
import yaml
from aiohttp import web

from spinney.clock import SystemClock
from spinney.errors import BadInputError
from spinney.ids import RandomIds
from spinney.local.apiserver import tls
from spinney.local.apiserver.http import HttpServer
from spinney.local.apiserver.routes import MAX_BODY_BYTES
from spinney.local.apiserver.server import ApiServer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

CMS = "/api/v1/namespaces/default/configmaps"
PODS = "/api/v1/namespaces/default/pods"


class Serving:
    """A server on a free port, and a client of it."""

    def __init__(self, directory: Path) -> None:
        self.api = ApiServer(SystemClock(), RandomIds(random.Random(1)))
        self.credentials = tls.credentials(directory / "pki", SystemClock().now())
        self.server = HttpServer(self.api, self.credentials, "127.0.0.1", 0)

    async def __aenter__(self) -> Serving:
        self.running = asyncio.create_task(self.server.run())
        trust = tls_context(self.credentials)
        self.session = aiohttp.ClientSession(
            self.server.url, connector=aiohttp.TCPConnector(ssl=trust)
        )
        self.bearer = {"authorization": f"Bearer {self.credentials.token}"}
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.session.close()
        self.server.stop()
        async with asyncio.timeout(5):
            await self.running
        await self.api.close()

    async def get(self, path: str, **more: Any) -> tuple[int, str]:
        async with self.session.get(path, headers=self.bearer, **more) as reply:
            return reply.status, await reply.text()


def tls_context(found: tls.Credentials) -> Any:
    return ssl.create_default_context(cafile=str(found.authority))


def served(tmp_path: Path, scenario: Callable[[Serving], Awaitable[None]]) -> None:
    async def run() -> None:
        async with asyncio.timeout(20), Serving(tmp_path) as serving:
            await scenario(serving)

    asyncio.run(run())


def test_requests_need_the_token_but_for_health_and_version(tmp_path):
    async def scenario(serving: Serving) -> None:
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Basic x"}):
            async with serving.session.get("/api/v1/pods", headers=headers) as reply:
                body = await reply.json()
                assert (reply.status, body["reason"]) == (401, "Unauthorized")
        for path in ("/healthz", "/readyz", "/livez", "/version"):
            async with serving.session.get(path) as reply:
                assert reply.status == 200
        assert (await serving.get("/api/v1/pods"))[0] == 200

    served(tmp_path, scenario)


def test_events_of_a_watch_are_sent_one_by_one_as_they_happen(tmp_path):
    async def scenario(serving: Serving) -> None:
        url = f"{CMS}?watch=true"
        async with serving.session.get(url, headers=serving.bearer) as watch:
            for name in ("a", "b"):
                body = {"metadata": {"name": name}}
                async with serving.session.post(CMS, json=body, headers=serving.bearer):
                    pass
                line = await watch.content.readline()
                assert f'"name":"{name}"'.encode() in line

    served(tmp_path, scenario)


def test_a_client_that_leaves_takes_its_watch_with_it(tmp_path):
    async def scenario(serving: Serving) -> None:
        watch = await serving.session.get(f"{CMS}?watch=true", headers=serving.bearer)
        assert serving.api.store.watcher_count() == 1
        watch.close()
        while serving.api.store.watcher_count():  # noqa: ASYNC110 - Nothing signals it.
            await asyncio.sleep(0.001)

    served(tmp_path, scenario)


def test_open_watches_do_not_hold_up_a_shutdown(tmp_path):
    async def scenario(serving: Serving) -> None:
        watch = await serving.session.get(f"{CMS}?watch=true", headers=serving.bearer)
        reading = asyncio.create_task(watch.content.read())
        started = asyncio.get_running_loop().time()
        serving.server.stop()
        await serving.running
        assert await reading == b""
        assert asyncio.get_running_loop().time() - started < 2

    served(tmp_path, scenario)


def test_cancelling_the_server_shuts_it_down(tmp_path):
    async def scenario(serving: Serving) -> None:
        watch = await serving.session.get(f"{CMS}?watch=true", headers=serving.bearer)
        serving.running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await serving.running
        assert await watch.content.read() == b""
        serving.running = asyncio.create_task(asyncio.sleep(0))

    served(tmp_path, scenario)


def test_bodies_have_a_bound(tmp_path):
    async def scenario(serving: Serving) -> None:
        for size in (MAX_BODY_BYTES + 1, MAX_BODY_BYTES * 3):
            body = io.BytesIO(b"x" * size)
            async with serving.session.post(CMS, data=body, headers=serving.bearer) as reply:
                assert reply.status == 413

    served(tmp_path, scenario)


@pytest.mark.parametrize(("body", "says"), [(b"{", "not valid JSON"), (b"[1]", "object")])
def test_bodies_that_are_no_objects_are_bad_requests(tmp_path, body, says):
    async def scenario(serving: Serving) -> None:
        async with serving.session.post(CMS, data=body, headers=serving.bearer) as reply:
            assert (reply.status, says in (await reply.json())["message"]) == (400, True)

    served(tmp_path, scenario)


def test_a_port_in_use_is_an_error_that_says_so(tmp_path):
    async def scenario(serving: Serving) -> None:
        with pytest.raises(
            BadInputError, match=f"cannot listen on 127.0.0.1:{serving.server.port}"
        ):
            HttpServer(serving.api, serving.credentials, "127.0.0.1", serving.server.port)

    served(tmp_path, scenario)


# Credentials


def test_credentials_are_kept_and_private(tmp_path):
    first = tls.credentials(tmp_path / "pki", 1_800_000_000)
    again = tls.credentials(tmp_path / "pki", 1_800_000_000)
    assert first == again
    assert first.certificate.read_bytes() == again.certificate.read_bytes()
    for file in (tmp_path / "pki").iterdir():
        assert stat.S_IMODE(os.stat(file).st_mode) == 0o600, file


def test_a_certificate_that_does_not_cover_a_host_or_expires_is_replaced(tmp_path):
    found = tls.credentials(tmp_path / "pki", 1_800_000_000)
    before = found.certificate.read_bytes()
    tls.credentials(tmp_path / "pki", 1_800_000_000, ["127.0.0.9"])
    wider = found.certificate.read_bytes()
    assert wider != before
    tls.credentials(tmp_path / "pki", 1_800_000_000 + 3640 * 86_400, ["127.0.0.9"])
    assert found.certificate.read_bytes() != wider


def test_the_kubeconfig_has_all_that_is_needed_and_is_private(tmp_path):
    found = tls.credentials(tmp_path / "pki", 1_800_000_000)
    path = tmp_path / "kubeconfig"
    tls.write_kubeconfig(path, "https://127.0.0.1:1", found, namespace="x")
    config = yaml.safe_load(path.read_text())
    assert config["users"][0]["user"]["token"] == found.token
    assert config["contexts"][0]["context"]["namespace"] == "x"
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600


# Logs


async def agent(handler: Any) -> tuple[web.AppRunner, int]:
    app = web.Application()
    app.router.add_get("/containerLogs/{namespace}/{pod}/{container}", handler)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    return runner, runner.addresses[0][1]


async def create_pod(serving: Serving, port: int, *names: str) -> None:
    node = {
        "metadata": {"name": "n"},
        "status": {
            "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": port}},
        },
    }
    containers = [{"name": name, "image": "i"} for name in names]
    pod = {"metadata": {"name": "p"}, "spec": {"nodeName": "n", "containers": containers}}
    for path, body in (("/api/v1/nodes", node), (PODS, pod)):
        async with serving.session.post(path, json=body, headers=serving.bearer) as reply:
            assert reply.status == 201


def test_logs_come_from_the_agent_of_the_pods_node_as_they_grow(tmp_path):
    async def scenario(serving: Serving) -> None:
        asked: list[str] = []
        more = asyncio.Event()

        async def handler(request: web.Request) -> web.StreamResponse:
            asked.append(request.path_qs)
            reply = web.StreamResponse()
            await reply.prepare(request)
            await reply.write(b"one\n")
            await more.wait()
            await reply.write(b"two\n")
            return reply

        runner, port = await agent(handler)
        await create_pod(serving, port, "main")
        url = f"{PODS}/p/log?follow=true&tailLines=5"
        async with serving.session.get(url, headers=serving.bearer) as reply:
            assert reply.content_type == "text/plain"
            assert await reply.content.readline() == b"one\n"
            more.set()
            assert await reply.content.read() == b"two\n"
        assert asked == ["/containerLogs/default/p/main?follow=true&tailLines=5"]
        await runner.cleanup()

    served(tmp_path, scenario)


def test_logs_that_cannot_be_had(tmp_path):
    async def scenario(serving: Serving) -> None:
        async def handler(request: web.Request) -> web.Response:
            return web.Response(status=404, text="no log of that container")

        runner, port = await agent(handler)
        await create_pod(serving, port, "main", "side")
        status, text = await serving.get(f"{PODS}/p/log")
        assert (status, "[main side]" in text) == (400, True)
        assert (await serving.get(f"{PODS}/p/log?container=nope"))[0] == 400
        status, text = await serving.get(f"{PODS}/p/log?container=side")
        assert (status, "no log of that container" in text) == (404, True)
        await runner.cleanup()
        status, text = await serving.get(f"{PODS}/p/log?container=side")
        assert (status, "does not answer" in text) == (503, True)

    served(tmp_path, scenario)
