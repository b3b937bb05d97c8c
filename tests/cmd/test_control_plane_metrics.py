"""The control plane tells of its controllers at /metrics, to those who have its token."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import aiohttp

from spinney.api import codec
from spinney.api.grove import PodCliqueSet
from spinney.cmd import control_plane
from spinney.kube.client import KubeClient
from spinney.kube.http import HttpTransport
from spinney.kube.transport import ApiRequest
from spinney.local.home import ClusterHome

if TYPE_CHECKING:
    from pathlib import Path

MANIFEST = {
    "metadata": {"name": "chat", "namespace": "default"},
    "spec": {
        "replicas": 1,
        "template": {
            "cliques": [
                {
                    "name": "worker",
                    "spec": {
                        "roleName": "worker",
                        "replicas": 2,
                        "podSpec": {"containers": [{"name": "main", "image": "worker:1"}]},
                    },
                }
            ]
        },
    },
}
WANTED = (
    'spinney_podcliqueset_replicas{name="chat",namespace="default",state="wanted"} 1.0',
    'spinney_pods_total{event="created"} 2.0',
    'spinney_podcliques_breached{reason="ScheduledReplicasBelowMinAvailable"} 1.0',
    'spinney_reconcile_seconds_count{controller="podclique"}',
)


async def _scrape(client: KubeClient) -> str:
    reply = await client.raw(ApiRequest("GET", "/metrics", accept="*/*"))
    return reply.body.decode()


async def _status_without_token(url: str) -> int:
    async with aiohttp.ClientSession() as session, session.get(url, ssl=False) as reply:
        return reply.status


def test_metrics_of_the_controllers_are_served_to_those_with_the_token(tmp_path: Path) -> None:
    async def scene() -> None:
        home = ClusterHome(tmp_path)
        home.prepare()
        running = asyncio.create_task(control_plane._run(home, 0))
        async with asyncio.timeout(60):
            while not home.kubeconfig.exists():
                assert not running.done(), running.result()
                await asyncio.sleep(0.05)
            client = KubeClient(HttpTransport.from_kubeconfig(home.kubeconfig))
            await client.create(codec.from_dict(PodCliqueSet, MANIFEST))
            text = ""
            while not all(line in text for line in WANTED):
                await asyncio.sleep(0.2)
                text = await _scrape(client)
            record = home.supervisor()
            assert record is not None
            assert await _status_without_token(f"{record.url}/metrics") == 401
            await client.close()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    asyncio.run(scene())
