"""Scaling of live objects through an API server, and warnings on their way to a client."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from tests.api.grove_manifests import binding, clique, pcs

from spinney.api.crd import crd_documents
from spinney.api.grove import (
    ClusterTopologyBinding,
    PodClique,
    PodCliqueScalingGroup,
    PodCliqueSet,
)
from spinney.api.grove_admission import GroveAdmission
from spinney.clock import SystemClock
from spinney.ids import RandomIds
from spinney.kube.client import KubeClient
from spinney.kube.errors import InvalidError
from spinney.kube.transport import MERGE_PATCH, ApiRequest
from spinney.local.apiserver.server import ApiServer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

NS = "default"


def on_a_cluster(scenario: Callable[[KubeClient], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        api = ApiServer(
            SystemClock(),
            RandomIds(random.Random(1)),
            hooks=[GroveAdmission()],
            definitions=crd_documents(),
        )
        client = KubeClient(api)
        try:
            topology = {"kind": "ClusterTopologyBinding"} | binding("cluster", "zone", "rack")
            await client.create(
                topology | {"apiVersion": "grove.io/v1alpha1"},
                resource=ClusterTopologyBinding.RESOURCE,
            )
            return await scenario(client)
        finally:
            await api.close()

    return asyncio.run(run())


def live(kind: Any, replicas: int, minimum: int | None, **labels: str) -> dict[str, Any]:
    spec: dict[str, Any] = {"replicas": replicas} | (
        {} if minimum is None else {"minAvailable": minimum}
    )
    return {
        "apiVersion": "grove.io/v1alpha1",
        "kind": kind.RESOURCE.kind,
        "metadata": {"name": "x", "namespace": NS, "labels": labels},
        "spec": spec,
    }


@pytest.mark.parametrize("kind", [PodClique, PodCliqueScalingGroup])
@pytest.mark.parametrize(
    ("wanted", "allowed"),
    [
        pytest.param(7, True, id="more"),
        pytest.param(2, True, id="the minimum"),
        pytest.param(1, False, id="below the minimum"),
        pytest.param(0, True, id="off"),
    ],
)
def test_a_live_object_is_scaled_to_its_minimum_or_to_zero(kind, wanted, allowed):
    async def scenario(client: KubeClient) -> None:
        await client.create(live(kind, 3, 2), resource=kind.RESOURCE)
        writes = (
            lambda: client.set_scale(kind, "x", wanted, NS),
            lambda: client.patch(kind, "x", {"spec": {"replicas": wanted}}, NS),
        )
        for write in writes:
            if allowed:
                await write()
            else:
                with pytest.raises(InvalidError, match=r"minAvailable \(2\).* 0 to turn it off"):
                    await write()
        found = await client.get(kind, "x", NS)
        assert found.spec.replicas == (wanted if allowed else 3)
        if not wanted:
            await client.set_scale(kind, "x", 2, NS)

    on_a_cluster(scenario)


def test_what_is_below_its_minimum_already_can_be_changed_otherwise_and_raised():
    async def scenario(client: KubeClient) -> None:
        await client.create(live(PodClique, 1, 3), resource=PodClique.RESOURCE)
        await client.patch(PodClique, "x", {"metadata": {"labels": {"a": "b"}}}, NS)
        with pytest.raises(InvalidError):
            await client.set_scale(PodClique, "x", 2, NS)
        await client.set_scale(PodClique, "x", 3, NS)

    on_a_cluster(scenario)


def test_a_count_below_zero_is_refused():
    async def scenario(client: KubeClient) -> None:
        await client.create(live(PodClique, 1, None), resource=PodClique.RESOURCE)
        with pytest.raises(InvalidError, match="must not be negative"):
            await client.patch(PodClique, "x", {"spec": {"replicas": -1}}, NS)

    on_a_cluster(scenario)


async def warnings_of(client: KubeClient, method: str, path: str, body: Any) -> str:
    content_type = MERGE_PATCH if method == "PATCH" else "application/json"
    request = ApiRequest(method, path, {}, msgspec.json.encode(body), content_type)
    response = await client.transport.send(request)
    assert response.status < 300, response.body
    return response.headers.get("warning", "")


def test_warnings_reach_the_client_of_a_write():
    async def scenario(client: KubeClient) -> None:
        packed = {
            "topologyName": "cluster",
            "pack": {"required": "rack", "preferred": "zone"},
        }
        obj = pcs(clique("a"), topologyConstraint=packed)
        path = PodCliqueSet.RESOURCE.path(NS)
        assert await warnings_of(client, "POST", path, obj) == (
            "299 - \"spec.template.topologyConstraint.pack.preferred: 'zone' has no effect, "
            "because it is broader than 'rack', which is required\""
        )
        quiet = pcs(clique("a", podSpec={"restartPolicy": "Never"}), name="quiet")
        assert await warnings_of(client, "POST", path, quiet) == ""

    on_a_cluster(scenario)


def test_whoever_scales_a_member_of_a_group_is_told_of_the_group():
    async def scenario(client: KubeClient) -> None:
        label = {"grove.io/podcliquescalinggroup": "s-0-g"}
        await client.create(live(PodClique, 3, 1, **label), resource=PodClique.RESOURCE)
        path = PodClique.RESOURCE.path(NS, "x", "scale")
        found = await warnings_of(client, "PATCH", path, {"spec": {"replicas": 2}})
        assert "part of the scaling group s-0-g" in found

    on_a_cluster(scenario)


def test_a_wrong_kind_of_object_is_refused_with_what_was_wanted():
    async def scenario(client: KubeClient) -> None:
        body = msgspec.json.encode(pcs(clique("a")) | {"kind": "Pod"})
        request = ApiRequest("POST", PodCliqueSet.RESOURCE.path(NS), {}, body)
        response = await client.transport.send(request)
        assert response.status == 400

    on_a_cluster(scenario)
