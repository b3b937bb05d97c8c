"""What is written beside a binding: shared GPUs, devices of claims, the node of a volume to be."""

from __future__ import annotations

import asyncio
import collections
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from tests.scheduler.test_scheduler_in_a_cluster import bound, create, faults, play, until_bound

from spinney.api.core import Pod
from spinney.api.devices import PROTECTION, DeviceClass, ResourceClaim, ResourceSlice
from spinney.api.storage import SELECTED_NODE, PersistentVolumeClaim, StorageClass
from spinney.scheduler.device_selection import matches
from spinney.scheduler.shapes import DEVICES, gpu_groups

if TYPE_CHECKING:
    from spinney.api.meta import KubeObject
    from spinney.kube.transport import ApiRequest
    from spinney.sim.cluster import SimulatedCluster

DRIVER = "gpu.example.com"


async def make(cluster: SimulatedCluster, kind: type[KubeObject], name: str, **fields: Any) -> None:
    namespaced = {"namespace": "default"} if kind.RESOURCE.namespaced else {}
    raw = {"metadata": {"name": name, **namespaced, **fields.pop("metadata", {})}, **fields}
    await cluster.client.create(msgspec.convert(raw, kind))


async def make_pod(cluster: SimulatedCluster, name: str, **spec: Any) -> None:
    container = {"name": "main", "image": "example.org/x:1"}
    metadata = spec.pop("metadata", {})
    fields = {"schedulerName": "spinney-scheduler", "containers": [container], **spec}
    await make(cluster, Pod, name, metadata=metadata, spec=fields)


# Parts of GPUs


def sharing(name: str, count: int, fraction: float) -> dict[str, Any]:
    return {"name": name, "groups": [{"name": "p", "pods": count, "gpuFraction": fraction}]}


def test_sharers_are_told_their_gpus_with_the_binding_and_none_is_given_more_than_it_has() -> None:
    async def scene(cluster: SimulatedCluster) -> None:
        await create(cluster, sharing("a", 3, 0.5))
        await until_bound(cluster, 3)
        await create(cluster, sharing("b", 6, 0.3), sharing("c", 2, 0.6))
        await until_bound(cluster, 11)
        used: collections.Counter[tuple[str, str]] = collections.Counter()
        parts = {"a": 500, "b": 300, "c": 600}
        for pod in (await cluster.client.list(Pod, "default")).items:
            assert pod.metadata.annotations["received-resource-type"] == "Fraction"
            (device,) = pod.metadata.annotations[DEVICES].split(",")
            assert gpu_groups(pod) == (device,)
            used[pod.spec.node_name, device] += parts[pod.name[0]]
        assert max(used.values()) <= 1000
        assert {device for _, device in used} <= {"0", "1", "2", "3"}
        for write in cluster.transport.writes:
            assert b"gpu-devices" not in write.body or write.path.endswith("/binding")

    play(scene)


# Devices that claims name


async def offer_devices(cluster: SimulatedCluster, per_node: int = 2) -> None:
    expression = f'device.driver == "{DRIVER}" && device.attributes["{DRIVER}"].type == "gpu"'
    await make(
        cluster,
        DeviceClass,
        "gpu",
        spec={
            "selectors": [{"cel": {"expression": expression}}],
            "config": [{"opaque": {"driver": DRIVER}}],
        },
    )
    for node in ("n0", "n1"):
        devices = [
            {"name": f"d{at}", "attributes": {"type": {"string": "gpu"}}} for at in range(per_node)
        ]
        devices.append({"name": "part", "attributes": {"type": {"string": "mig"}}})
        pool = {"name": node, "generation": 1, "resourceSliceCount": 1}
        spec = {"driver": DRIVER, "nodeName": node, "pool": pool, "devices": devices}
        await make(cluster, ResourceSlice, f"slice-{node}", spec=spec)


async def claim(cluster: SimulatedCluster, name: str, count: int = 1) -> None:
    request = {"name": "gpu", "exactly": {"deviceClassName": "gpu", "count": count}}
    await make(cluster, ResourceClaim, name, spec={"devices": {"requests": [request]}})


async def claimed(cluster: SimulatedCluster, name: str) -> ResourceClaim:
    return await cluster.client.get(ResourceClaim, name, "default")


def uses(name: str) -> list[dict[str, str]]:
    return [{"name": "devices", "resourceClaimName": name}]


def test_a_claim_is_allocated_on_the_pods_node_and_reserved_before_the_pod_is_bound() -> None:
    async def scene(cluster: SimulatedCluster) -> None:
        await offer_devices(cluster)
        for at in range(4):
            await claim(cluster, f"c{at}")
            await make_pod(cluster, f"p{at}", resourceClaims=uses(f"c{at}"))
        await until_bound(cluster, 4)
        nodes = await bound(cluster)
        given = set()
        for at in range(4):
            found = await claimed(cluster, f"c{at}")
            assert found.status.allocation is not None
            (result,) = found.status.allocation["devices"]["results"]
            assert result["pool"] == nodes[f"p{at}"]
            assert result["request"] == "gpu"
            given.add((result["pool"], result["device"]))
            (config,) = found.status.allocation["devices"]["config"]
            assert config["source"] == "FromClass"
            assert [user["name"] for user in found.status.reserved_for] == [f"p{at}"]
            assert found.metadata.finalizers == [PROTECTION]
        assert given == {(node, device) for node in ("n0", "n1") for device in ("d0", "d1")}
        order = [write.path.rpartition("/")[2] for write in cluster.transport.writes]
        assert order.index("binding") > order.index("status")

    play(scene)


def test_pods_that_share_a_claim_go_to_its_node_and_its_devices_count_once() -> None:
    async def scene(cluster: SimulatedCluster) -> None:
        await offer_devices(cluster, per_node=1)
        await claim(cluster, "shared")
        for at in range(3):
            await make_pod(cluster, f"p{at}", resourceClaims=uses("shared"))
            await asyncio.sleep(2)
        await until_bound(cluster, 3)
        assert len(set((await bound(cluster)).values())) == 1
        users = (await claimed(cluster, "shared")).status.reserved_for
        assert sorted(user["name"] for user in users) == ["p0", "p1", "p2"]

    play(scene)


def test_a_pod_that_is_not_bound_gives_its_devices_back() -> None:
    async def scene(cluster: SimulatedCluster) -> None:
        await offer_devices(cluster)
        await claim(cluster, "c")
        refused = 0

        def refuse(request: ApiRequest) -> bool:
            nonlocal refused
            refused += request.path.endswith("/binding")
            return request.path.endswith("/binding")

        faults(cluster).refuse = refuse
        await make_pod(cluster, "p", resourceClaims=uses("c"))
        await asyncio.sleep(1.2)
        assert refused == 4
        found = await claimed(cluster, "c")
        assert found.status.allocation is None
        assert found.status.reserved_for == []
        faults(cluster).refuse = lambda _: False
        await until_bound(cluster, 1)
        assert (await claimed(cluster, "c")).status.allocation is not None

    play(scene)


def test_devices_that_pin_a_pod_to_a_node_without_room_are_given_back() -> None:
    async def scene(cluster: SimulatedCluster) -> dict[str, str]:
        await offer_devices(cluster)
        await claim(cluster, "c")
        container = {
            "name": "main",
            "image": "example.org/x:1",
            "resources": {"requests": {"nvidia.com/gpu": 4}},
        }
        faults(cluster).refuse = lambda request: request.path.endswith("p/binding")
        await make_pod(cluster, "p", containers=[container], resourceClaims=uses("c"))
        await asyncio.sleep(0.4)
        pod = await cluster.client.get(Pod, "p", "default")
        found = await claimed(cluster, "c")
        node = found.status.allocation["devices"]["results"][0]["pool"]
        user = {"resource": "pods", "name": "p", "uid": pod.metadata.uid}
        left = {"allocation": found.status.allocation, "reservedFor": [user]}
        await asyncio.sleep(1)
        await make_pod(cluster, "other", containers=[container], nodeName=node)
        await cluster.client.patch(
            ResourceClaim, "c", {"status": left}, "default", subresource="status"
        )
        faults(cluster).refuse = lambda _: False
        await until_bound(cluster, 2)
        return await bound(cluster)

    placed = play(scene)

    assert {placed["p"], placed["other"]} == {"n0", "n1"}


def test_a_pod_whose_claim_does_not_exist_yet_is_not_bound_without_it() -> None:
    async def scene(cluster: SimulatedCluster) -> None:
        await offer_devices(cluster)
        await make_pod(cluster, "p", resourceClaims=uses("late"))
        await asyncio.sleep(5)
        assert await bound(cluster) == {}
        assert not any(write.path.endswith("/binding") for write in cluster.transport.writes)
        await claim(cluster, "late")
        await until_bound(cluster, 1)
        assert (await claimed(cluster, "late")).status.allocation is not None

    play(scene)


@pytest.mark.parametrize(
    ("expression", "selected"),
    [
        ("", True),
        (f'device.driver == "{DRIVER}"', True),
        ("device.driver == 'other'", False),
        (f"device.driver == '{DRIVER}' && device.attributes['{DRIVER}'].type == 'gpu'", True),
        (f'device.attributes["{DRIVER}"].type != "gpu"', False),
        (f'device.attributes["{DRIVER}"].memory >= 40', True),
        (f'device.attributes["{DRIVER}"].memory > 80', False),
        (f'device.attributes["{DRIVER}"].shared == false', True),
        (f'device.attributes["{DRIVER}"].absent == "x"', False),
        (f'device.attributes["{DRIVER}"].type.startsWith("g")', False),
        ("true || false", False),
    ],
)
def test_an_expression_selects_what_it_says_and_nothing_when_it_is_not_understood(
    expression: str, selected: bool
) -> None:
    attributes = {"type": {"string": "gpu"}, "memory": {"int": 80}, "shared": {"bool": False}}

    assert matches(expression, DRIVER, attributes) == selected


# Volumes


async def late_volume(cluster: SimulatedCluster) -> dict[str, Any]:
    """Make a claim whose volume is made once its pod has a node; return a pod's volume of it."""
    await make(
        cluster,
        StorageClass,
        "late",
        provisioner="disk.example.com",
        volumeBindingMode="WaitForFirstConsumer",
    )
    await make(cluster, PersistentVolumeClaim, "data", spec={"storageClassName": "late"})
    return {"name": "data", "persistentVolumeClaim": {"claimName": "data"}}


def test_room_is_kept_while_a_volume_is_made() -> None:
    async def scene(cluster: SimulatedCluster) -> None:
        volume = await late_volume(cluster)
        container = {
            "name": "main",
            "image": "example.org/x:1",
            "resources": {"requests": {"nvidia.com/gpu": 4}},
        }
        await make_pod(cluster, "p", volumes=[volume], containers=[container])
        await asyncio.sleep(1)
        await create(cluster, {"name": "g", "groups": [{"name": "p", "pods": 4, "gpus": 4}]})
        await asyncio.sleep(60)
        assert await bound(cluster) == {}
        patch = {"spec": {"volumeName": "pv-1"}}
        await cluster.client.patch(PersistentVolumeClaim, "data", patch, "default")
        await until_bound(cluster, 1)
        assert set(await bound(cluster)) == {"p"}

    play(scene)


def test_a_volume_is_asked_for_on_the_node_and_the_pod_waits_for_it() -> None:
    async def scene(cluster: SimulatedCluster) -> None:
        volume = await late_volume(cluster)
        await make_pod(cluster, "p", volumes=[volume])
        await asyncio.sleep(1)
        await make_pod(cluster, "other")
        await asyncio.sleep(1)
        assert set(await bound(cluster)) == {"other"}, "nobody else waits for the volume"
        await asyncio.sleep(40)
        found = await cluster.client.get(PersistentVolumeClaim, "data", "default")
        node = found.metadata.annotations[SELECTED_NODE]
        assert set(await bound(cluster)) == {"other"}
        patch = {"spec": {"volumeName": "pv-1"}}
        await cluster.client.patch(PersistentVolumeClaim, "data", patch, "default")
        await until_bound(cluster, 2)
        assert (await bound(cluster))["p"] == node

    play(scene)
