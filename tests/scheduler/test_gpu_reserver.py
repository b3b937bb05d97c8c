"""Reservations in a cluster: made before the binding, told to it, and let go after the last."""

from __future__ import annotations

import asyncio
import collections
import functools
import re
from typing import TYPE_CHECKING, Any

import pytest
from tests.scheduler.test_bind_claims import make_pod, sharing
from tests.scheduler.test_bind_restarts import NEVER, Mortal, live
from tests.scheduler.test_scheduler_in_a_cluster import (
    bindings,
    bound,
    create,
    faults,
    gang,
    play,
    until_bound,
)

from spinney.api import names
from spinney.api.core import Namespace, Node, Pod
from spinney.cmd.gpu_reservation import report
from spinney.kube import transport as wire
from spinney.kube.errors import BusyError, NotFoundError
from spinney.scheduler.config import SchedulerConfig
from spinney.scheduler.gpu_reserver import RESERVATION_WAIT_S
from spinney.scheduler.setup import register
from spinney.scheduler.shapes import DEVICES, GROUPS, gpu_groups
from spinney.sim.kubelet import KubeletModel

if TYPE_CHECKING:
    from spinney.ids import IdSource
    from spinney.kube.controller import Runtime
    from spinney.kube.events import EventRecorder
    from spinney.sim.cluster import SimulatedCluster

CONFIG = SchedulerConfig(gpu_reservation="device", stale_grace_s=5.0)
NAMESPACE = CONFIG.gpu_reservation_namespace
KUBELET = KubeletModel(stop_s=(1.0, 3.0))
GPUS = 4


class DevicePlugin:
    """The device plugins of all nodes, and the programs in reservations that say what they got.

    A pod that asks for GPUs gets free ones when it comes to its node, the last first, so that no
    device has the number that the scheduler gives it.
    """

    def __init__(self) -> None:
        self.given: dict[str, list[str]] = {}
        """Pod uid to devices."""
        self.over: list[str] = []
        """Pods for which there was no device."""
        self.silent = False
        self._nodes: dict[str, str] = {}

    def __call__(self, runtime: Runtime, ids: IdSource, events: EventRecorder) -> None:
        del ids, events
        self._pods, self._client = runtime.informer(Pod), runtime.client
        self._controller = runtime.controller("device-plugin", self)
        self._controller.watch(self._pods, lambda pod: [pod.key])

    async def reconcile(self, key: str) -> None:
        there = {pod.metadata.uid for pod in self._pods.list()}
        self.given = {uid: devices for uid, devices in self.given.items() if uid in there}
        pod = self._pods.get_key(key)
        if pod is None or not pod.spec.node_name or pod.status.phase in ("Failed", "Succeeded"):
            return
        wanted = int(pod.spec.containers[0].resources.requests.get("nvidia.com/gpu", 0))
        if wanted and pod.metadata.uid not in self.given:
            taken = {device for devices in self.given.values() for device in devices}
            every = [f"GPU-{pod.spec.node_name}-{at}" for at in reversed(range(GPUS))]
            free = [device for device in every if device not in taken]
            if len(free) < wanted:
                self.over.append(key)
                return
            self.given[pod.metadata.uid] = free[:wanted]
        says = names.GPU_RESERVATION in pod.labels and not pod.metadata.annotations
        if says and pod.status.phase == "Running" and not self.silent and not pod.deleting:
            await report(self._client, pod.name, pod.namespace, self.given[pod.metadata.uid][0])

    def speak(self) -> None:
        self.silent = False
        for pod in self._pods.list():
            self._controller.enqueue(pod.key)


def enact(scene: Any, *, scheduler: bool = True, config: SchedulerConfig = CONFIG) -> Any:
    """Play *scene* of cluster and device plugin; no pod is ever left without its device."""
    plugin = DevicePlugin()
    programs = [functools.partial(register, config=config)] if scheduler else []

    async def whole(cluster: SimulatedCluster) -> Any:
        found = await scene(cluster, plugin)
        assert plugin.over == []
        return found

    return play(whole, programs=(*programs, plugin), kubelets=KUBELET)


async def reservations(cluster: SimulatedCluster) -> dict[str, Pod]:
    return {pod.name: pod for pod in (await cluster.client.list(Pod, NAMESPACE)).items}


async def until_reserved(cluster: SimulatedCluster, count: int, within_s: float = 60) -> None:
    async def so() -> bool:
        return len(await reservations(cluster)) == count

    await cluster.until(so, within_s=within_s, what=f"{count} reservations")


def made(cluster: SimulatedCluster) -> list[float]:
    """Return when reservations were made."""
    path = f"/api/v1/namespaces/{NAMESPACE}/pods"
    return [w.at_s for w in cluster.transport.writes if w.path == path and w.status == 201]


def bound_at(cluster: SimulatedCluster, name: str) -> float:
    (found,) = (w.at_s for w in cluster.transport.writes if w.path.endswith(f"pods/{name}/binding"))
    return found


async def check(cluster: SimulatedCluster, plugin: DevicePlugin) -> None:
    """Assert that each sharer is told the devices that the reservations of its GPUs have."""
    held = {
        (pod.spec.node_name, pod.labels[names.GPU_RESERVATION]): plugin.given[pod.metadata.uid]
        for pod in (await reservations(cluster)).values()
    }
    used = set()
    for pod in (await cluster.client.list(Pod, "default")).items:
        if pod.spec.node_name and "gpu-fraction" in pod.metadata.annotations:
            groups = [(pod.spec.node_name, group) for group in gpu_groups(pod)]
            devices = [device for group in groups for device in held[group]]
            assert pod.metadata.annotations[DEVICES] == ",".join(devices)
            used.update(groups)
    assert used == set(held), "a reservation is missing, or left over"


def test_the_first_sharer_is_bound_when_its_gpu_is_held_and_told_which_it_is() -> None:
    async def scene(cluster: SimulatedCluster, plugin: DevicePlugin) -> None:
        await create(cluster, sharing("a", 1, 0.5))
        await until_bound(cluster, 1)
        (reservation,) = (await reservations(cluster)).values()
        pod = await cluster.client.get(Pod, "a-p-0", "default")
        assert reservation.spec.node_name == pod.spec.node_name
        assert reservation.status.phase == "Running"
        assert pod.metadata.annotations[GROUPS] == "0"
        assert pod.metadata.annotations[DEVICES] == f"GPU-{pod.spec.node_name}-3"
        assert (await cluster.client.get(Namespace, NAMESPACE)).name == NAMESPACE
        assert made(cluster)[0] < bound_at(cluster, "a-p-0")
        await check(cluster, plugin)

    enact(scene)


def test_sharers_of_one_gpu_have_one_reservation_and_later_ones_do_not_wait() -> None:
    async def scene(cluster: SimulatedCluster, plugin: DevicePlugin) -> None:
        await create(cluster, sharing("a", 2, 0.3))
        await until_bound(cluster, 2)
        await asyncio.sleep(1)
        began_s = asyncio.get_running_loop().time()
        await create(cluster, sharing("b", 1, 0.3))
        await until_bound(cluster, 3)
        assert bound_at(cluster, "b-p-0") < began_s + 0.1
        assert len(made(cluster)) == 1
        await check(cluster, plugin)

    enact(scene)


def test_two_shared_gpus_of_a_node_are_two_devices_and_whole_ones_get_the_others() -> None:
    async def scene(cluster: SimulatedCluster, plugin: DevicePlugin) -> None:
        await create(cluster, gang("w", 14))
        await until_bound(cluster, 14)
        await create(cluster, sharing("a", 4, 0.5))
        await until_bound(cluster, 18)
        assert len(await reservations(cluster)) == 2
        await create(cluster, gang("more", 1))
        await asyncio.sleep(60)
        assert "more-p-0" not in await bound(cluster), "the GPUs are shared"
        await check(cluster, plugin)
        await cluster.client.delete_collection(Pod, "default", labels="grove.io/podgang=a")
        await until_bound(cluster, 15)
        await until_reserved(cluster, 0)

    enact(scene)


def test_a_gpu_is_let_go_after_its_last_sharer_and_not_before() -> None:
    async def scene(cluster: SimulatedCluster, plugin: DevicePlugin) -> None:
        await create(cluster, sharing("a", 1, 0.5), sharing("b", 1, 0.5))
        await until_bound(cluster, 2)
        await cluster.client.delete(Pod, "a-p-0", "default")
        await asyncio.sleep(30)
        assert len(await reservations(cluster)) == 1
        await check(cluster, plugin)
        await cluster.client.delete(Pod, "b-p-0", "default")
        await asyncio.sleep(0.1)
        assert not any(pod.deleting for pod in (await reservations(cluster)).values())
        await until_reserved(cluster, 0)
        await asyncio.sleep(5)
        writes = len(cluster.transport.writes)
        await asyncio.sleep(600)
        assert len(cluster.transport.writes) == writes, "writes at rest"

    enact(scene)


def test_a_gpu_that_is_shared_again_while_it_is_let_go_gets_a_new_reservation() -> None:
    async def scene(cluster: SimulatedCluster, plugin: DevicePlugin) -> None:
        await create(cluster, sharing("a", 1, 0.5))
        await until_bound(cluster, 1)
        (before,) = (await reservations(cluster)).values()
        await cluster.client.delete(Pod, "a-p-0", "default")

        async def on_its_way() -> bool:
            return any(pod.deleting for pod in (await reservations(cluster)).values())

        await cluster.until(on_its_way, within_s=10, what="deletion")
        await create(cluster, sharing("b", 1, 0.5))
        await until_bound(cluster, 1)
        (after,) = (await reservations(cluster)).values()
        assert after.name == before.name
        assert after.metadata.uid != before.metadata.uid
        await check(cluster, plugin)

    enact(scene)


def test_a_reservation_that_is_about_to_be_deleted_is_given_to_nobody() -> None:
    async def scene(cluster: SimulatedCluster, plugin: DevicePlugin) -> None:
        await create(cluster, sharing("a", 1, 0.5))
        await until_bound(cluster, 1)
        deleting = asyncio.Event()

        async def dawdle(request: Any) -> None:
            if request.method == "DELETE" and f"{NAMESPACE}/pods" in request.path:
                deleting.set()
                await asyncio.sleep(3)

        faults(cluster).before = dawdle
        await cluster.client.delete(Pod, "a-p-0", "default")
        await deleting.wait()
        faults(cluster).before = None
        await create(cluster, sharing("b", 1, 0.5))
        await asyncio.sleep(2)
        assert await bound(cluster) == {}
        await until_bound(cluster, 1)
        await check(cluster, plugin)
        assert len(made(cluster)) == 2

    enact(scene)


def test_a_gpu_that_is_not_held_in_time_is_given_up_and_holds_up_nobody_else() -> None:
    async def scene(cluster: SimulatedCluster, plugin: DevicePlugin) -> None:
        plugin.silent = True
        await create(cluster, sharing("a", 1, 0.5))
        await asyncio.sleep(1)
        await create(cluster, gang("w", 15))
        await until_bound(cluster, 15)
        assert "a-p-0" not in await bound(cluster)
        await asyncio.sleep(RESERVATION_WAIT_S - 5)
        assert len(await reservations(cluster)) == 1
        assert len(made(cluster)) == 1

        async def again() -> bool:
            return len(made(cluster)) == 2

        await cluster.until(again, within_s=15, what="another reservation")
        assert "a-p-0" not in await bound(cluster)
        plugin.speak()
        await until_bound(cluster, 16)
        await check(cluster, plugin)

    enact(scene)


def test_a_reservation_that_its_node_refuses_fails_the_binding_at_once_and_is_made_again() -> None:
    async def scene(cluster: SimulatedCluster, plugin: DevicePlugin) -> None:
        for node in cluster.nodes:
            await cluster.kubelets.fail_node(node.name)
            status = {"conditions": [{"type": "Ready", "status": "True"}]}
            await cluster.client.patch(
                Node,
                node.name,
                {"status": status},
                content_type=wire.STRATEGIC_PATCH,
                subresource="status",
            )
        await create(cluster, sharing("a", 1, 0.5))
        await until_reserved(cluster, 1)
        (refused,) = (await reservations(cluster)).values()
        failed = {"phase": "Failed", "reason": "UnexpectedAdmissionError", "message": "no GPU"}
        patch = {"status": failed}
        await cluster.client.patch(Pod, refused.name, patch, NAMESPACE, subresource="status")
        await until_reserved(cluster, 0, within_s=2)
        assert await bound(cluster) == {}
        await until_reserved(cluster, 1)
        assert len(made(cluster)) == 2
        for node in cluster.nodes:
            await cluster.kubelets.restore_node(node.name)
        await until_bound(cluster, 1)
        await check(cluster, plugin)

    enact(scene)


def test_what_the_api_refuses_to_make_fails_the_binding_at_once() -> None:
    async def scene(cluster: SimulatedCluster, plugin: DevicePlugin) -> None:
        await create(cluster, sharing("a", 1, 0.5))
        await asyncio.sleep(100)
        assert await bound(cluster) == {}
        tries = [w for w in cluster.transport.writes if w.path.endswith("/namespaces")]
        assert tries[1].at_s < tries[0].at_s + 5, "the binding waited for nothing"
        assert len(tries) <= 12, "the wait between tries grows"
        assert plugin.given == {}

    wrong = SchedulerConfig(gpu_reservation="device", gpu_reservation_namespace="Not a name")
    enact(scene, config=wrong)


def test_a_busy_api_delays_reservations_and_makes_none_twice() -> None:
    async def scene(cluster: SimulatedCluster, plugin: DevicePlugin) -> None:
        tries: collections.Counter[str] = collections.Counter()

        def refuse(request: Any) -> bool:
            if NAMESPACE not in request.path or request.method not in ("POST", "DELETE"):
                return False
            tries[request.method] += 1
            return tries[request.method] <= 2

        faults(cluster).refuse = refuse
        faults(cluster).drop_replies = lambda request: (
            request.method == "POST" and request.path.endswith("/pods") and tries["POST"] == 3
        )
        await create(cluster, sharing("a", 2, 0.5))
        await until_bound(cluster, 2)
        await check(cluster, plugin)
        await cluster.client.delete_collection(Pod, "default", labels="grove.io/podgang=a")
        await until_reserved(cluster, 0)

    enact(scene)


def test_the_reservation_of_a_node_that_is_gone_is_deleted() -> None:
    async def scene(cluster: SimulatedCluster, plugin: DevicePlugin) -> None:
        del plugin
        await create(cluster, sharing("a", 1, 0.5))
        await until_bound(cluster, 1)
        (node,) = (await bound(cluster)).values()
        await cluster.kubelets.fail_node(node)
        await cluster.client.delete(Node, node)
        await until_reserved(cluster, 0)

    enact(scene)


def test_a_reservation_that_was_deleted_is_made_again_while_its_gpu_is_shared() -> None:
    async def scene(cluster: SimulatedCluster, plugin: DevicePlugin) -> None:
        await create(cluster, sharing("a", 1, 0.5))
        await until_bound(cluster, 1)
        (name,) = await reservations(cluster)
        await cluster.client.delete(Pod, name, NAMESPACE, grace_period_s=0)
        await until_reserved(cluster, 1)
        await asyncio.sleep(20)
        await check(cluster, plugin)

    enact(scene)


def test_reservations_that_are_switched_off_end_with_their_sharers() -> None:
    async def scene(cluster: SimulatedCluster, plugin: DevicePlugin) -> None:
        del plugin
        await create(cluster, sharing("a", 1, 0.5))
        await live(cluster, Mortal(cluster.transport, NEVER), 20, CONFIG)
        off = asyncio.get_running_loop().create_task(
            live(cluster, Mortal(cluster.transport, NEVER), 60, SchedulerConfig())
        )
        await asyncio.sleep(5)
        assert len(await reservations(cluster)) == 1
        await create(cluster, sharing("b", 1, 0.9))
        await until_bound(cluster, 2)
        pod = await cluster.client.get(Pod, "b-p-0", "default")
        assert re.fullmatch(r"\d", pod.metadata.annotations[DEVICES])
        await cluster.client.delete(Pod, "a-p-0", "default")
        await off
        assert await reservations(cluster) == {}

    enact(scene, scheduler=False)


def test_the_device_is_written_when_the_api_answers_again_and_not_for_ever() -> None:
    async def scene(cluster: SimulatedCluster) -> None:
        await make_pod(cluster, "r", nodeName="n0")
        tries: collections.Counter[str] = collections.Counter()

        def refuse(request: Any) -> bool:
            tries[request.method] += request.method == "PATCH"
            return request.method == "PATCH" and tries["PATCH"] <= 3

        faults(cluster).refuse = refuse
        await report(cluster.client, "r", "default", "GPU-7")
        found = await cluster.client.get(Pod, "r", "default")
        assert found.metadata.annotations[names.RESERVED_DEVICE] == "GPU-7"
        faults(cluster).refuse = lambda request: request.method == "PATCH"
        with pytest.raises(BusyError):
            await report(cluster.client, "r", "default", "GPU-7")
        assert asyncio.get_running_loop().time() < 120
        faults(cluster).refuse = lambda _: False
        with pytest.raises(NotFoundError):
            await report(cluster.client, "gone", "default", "GPU-7")

    play(scene, programs=())


def play_lives(at: int) -> int:
    """Let a scheduler die before write *at*, another one finish; return the first one's writes."""

    async def scene(cluster: SimulatedCluster, plugin: DevicePlugin) -> int:
        await create(cluster, sharing("a", 3, 0.5), gang("w", 12), sharing("b", 2, 0.4))
        first = Mortal(cluster.transport, at)
        dying = asyncio.get_running_loop().create_task(live(cluster, first, 40, CONFIG))
        await asyncio.sleep(18)
        await cluster.client.delete(Pod, "a-p-0", "default")
        await cluster.client.delete(Pod, "a-p-1", "default")
        await dying
        await live(cluster, Mortal(cluster.transport, NEVER), 40, CONFIG)
        assert set(await bound(cluster)) >= {"b-p-0", "b-p-1", *(f"w-p-{n}" for n in range(12))}
        assert set(bindings(cluster).values()) == {1}, "bound twice"
        await check(cluster, plugin)
        return first.writes

    written: int = enact(scene, scheduler=False)
    return written


def test_a_scheduler_that_dies_before_any_of_its_writes_leaks_no_gpu_and_binds_nothing_twice() -> (
    None
):
    at = 0
    while play_lives(at) > at:
        at += 2
    assert at > 20, "there are fewer writes than there were; does the scene still reserve and bind?"
