"""Workers found through the Kubernetes API."""

from __future__ import annotations

import asyncio
import json
import random
from contextlib import asynccontextmanager, suppress
from dataclasses import replace

import pytest
from tests.kube.fake_api import FakeApi
from tests.router.fake_workers import QUICK, until

from spinney.api import codec
from spinney.api.core import Container, ContainerPort, Node, Pod, PodSpec, PodStatus
from spinney.api.meta import Condition, ObjectMeta
from spinney.clock import SystemClock
from spinney.ids import RandomIds
from spinney.kube.client import KubeClient
from spinney.kube.informer import Informer
from spinney.local.apiserver.server import ApiServer
from spinney.router.picker import Ask, Nobody, Policy, View, pick
from spinney.router.pods import (
    ROUTER_SELECTOR,
    WORKER_SELECTOR,
    PodPeers,
    PodWorkers,
    worker_of,
)
from spinney.router.table import WorkerTable
from spinney.router.workers import Role, StaticWorkers, Worker

PORTS = [ContainerPort(container_port=9000, name="metrics"), ContainerPort(container_port=8000)]
HTTP = ContainerPort(container_port=8001, name="http")


def status(*, ready=True, ip="127.1.0.1", phase="Running"):
    condition = Condition(type="Ready", status="True" if ready else "False")
    return PodStatus(phase=phase, conditions=[condition], pod_ip=ip)


def pod(
    name="w",
    role="prefill",
    model="m",
    ports=(*PORTS, HTTP),
    annotations=None,
    labels=None,
    **state,
):
    more = labels or {}
    labels = {"spinney.dev/role": role, "app": "llm"} | (
        {"spinney.dev/model": model} if model else {}
    )
    return Pod(
        metadata=ObjectMeta(
            name=name,
            namespace="ns",
            uid=name,
            labels=labels | more,
            annotations=annotations or {},
        ),
        spec=PodSpec(containers=[Container(name="c", image="i", ports=list(ports))]),
        status=status(**state),
    )


class NoProbe:
    """Knows nothing: all models are in the labels."""

    async def models(self, _worker):
        return frozenset()


WORKER = Worker("w", "http://127.1.0.1:8001", Role.PREFILL, frozenset({"m"}), uid="w")


@pytest.mark.parametrize(
    ("given", "want"),
    [
        pytest.param(pod(), WORKER, id="labels, ip, the port named http"),
        pytest.param(
            pod(ports=PORTS), replace(WORKER, url="http://127.1.0.1:9000"), id="the first port"
        ),
        pytest.param(pod(ready=False), replace(WORKER, ready=False), id="not ready"),
        pytest.param(pod(model=""), replace(WORKER, models=frozenset()), id="model not known"),
        pytest.param(
            pod(annotations={"spinney.dev/model": "org/m"}),
            replace(WORKER, models=frozenset({"org/m"})),
            id="a name no label can hold",
        ),
        pytest.param(pod(ip="fd00::1"), replace(WORKER, url="http://[fd00::1]:8001"), id="IPv6"),
        pytest.param(
            pod(
                ports=[
                    HTTP,
                    ContainerPort(container_port=5557, name="kv-events"),
                    ContainerPort(container_port=5558, name="kv-replay"),
                ]
            ),
            replace(WORKER, kv_events="tcp://127.1.0.1:5557", kv_replay="tcp://127.1.0.1:5558"),
            id="ports of KV events",
        ),
        pytest.param(
            pod(labels={"spinney.dev/revision": "a.b"}),
            replace(WORKER, revisions=frozenset("ab")),
            id="revisions",
        ),
        pytest.param(pod(role="router"), None, id="a router"),
        pytest.param(pod(ip=""), None, id="no address yet"),
        pytest.param(pod(ports=[]), None, id="no port"),
        pytest.param(pod(phase="Failed"), None, id="ended"),
    ],
)
def test_what_worker_a_pod_is(given, want):
    assert worker_of(given) == want


def test_a_pod_that_is_being_deleted_is_draining():
    going = pod()
    going.metadata.deletion_timestamp = "2026-01-01T00:00:00Z"

    assert worker_of(going) == replace(WORKER, draining=True)


@asynccontextmanager
async def cluster():
    """An API, and the workers that are seen through it."""
    api = FakeApi()
    informer = Informer(KubeClient(api), Pod, "ns", rng=random.Random(1), labels=WORKER_SELECTOR)
    source = PodWorkers(informer)
    watching = asyncio.create_task(source.run())
    try:
        yield api, source
    finally:
        watching.cancel()
        with suppress(asyncio.CancelledError):
            await watching


def put(api, wanted):
    api.put(f"/api/v1/namespaces/ns/pods/{wanted.name}", json.loads(codec.encode(wanted)))


def test_workers_come_change_and_go_with_their_pods():
    async def main():
        async with cluster() as (api, source):
            changes = []
            source.on_change(lambda: changes.append(source.workers()))

            def seen():
                return {worker.name: worker.available for worker in source.workers()}

            put(api, pod("w1", ready=False))
            await until(lambda: seen() == {"w1": False}, "a worker that is not ready")
            put(api, pod("w1"))
            put(api, pod("w0", role="decode"))
            await until(lambda: seen() == {"w0": True, "w1": True}, "both are ready")
            assert [worker.name for worker in source.workers()] == ["w0", "w1"]
            put(api, pod("w1", ready=False))
            await until(lambda: seen() == {"w0": True, "w1": False}, "one is not ready again")
            going = pod("w0", role="decode")
            going.metadata.deletion_timestamp = "2026-01-01T00:00:00Z"
            put(api, going)
            await until(lambda: seen() == {"w0": False, "w1": False}, "one is terminating")
            api.remove("/api/v1/namespaces/ns/pods/w0")
            await until(lambda: seen() == {"w1": False}, "it is gone")
            assert changes[-1] == source.workers()
            assert "role" in api.requests[0].query["labelSelector"]

    asyncio.run(main())


def test_a_worker_serves_the_role_that_its_label_says_now():
    async def main():
        server = ApiServer(SystemClock(), RandomIds(random.Random(1)))
        client = KubeClient(server)
        source = PodWorkers(
            Informer(client, Pod, "default", rng=random.Random(1), labels=WORKER_SELECTOR)
        )
        table = WorkerTable(source, NoProbe(), QUICK)
        watching = asyncio.create_task(source.run())

        def chosen():
            """Who serves a long prompt; an index that was kept says that w1 has its beginning."""
            seen = View(table.workers(), rosters=table.rosters)
            found = pick(Ask("m", 1000, {"w1": 900}), seen, Policy(), random.Random(1))
            if isinstance(found, Nobody):
                return None
            return found.mode.value, found.prefill and found.prefill.worker.name

        for name, role in (("w0", "decode"), ("w1", "both")):
            wanted = pod(name, role)
            wanted.metadata.namespace, wanted.metadata.uid = "default", ""
            await client.create(wanted)
            await client.patch(
                Pod, name, codec.to_dict(pod(name, role)) | {"metadata": {}, "spec": {}},
                "default", subresource="status",
            )  # fmt: skip
        for role, want in (
            ("both", ("aggregated", None)),
            ("prefill", ("disaggregated", "w1")),
            ("decode", ("local-prefill", None)),
            ("both", ("aggregated", None)),
            ("router", ("local-prefill", None)),
        ):
            patch = {"metadata": {"labels": {"spinney.dev/role": role}}}
            await client.patch(Pod, "w1", patch, "default")

            def as_labelled(role=role, want=want):
                roles = {worker.name: worker.role.value for worker in table.workers()}
                return chosen() == want and roles.get("w1", "router") == role

            await until(as_labelled, f"w1 is {role}")
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        await server.close()

    asyncio.run(main())


def test_other_routers_are_pods_with_a_port_for_peers():
    async def main():
        api = FakeApi()
        informer = Informer(
            KubeClient(api), Pod, "ns", rng=random.Random(1), labels=ROUTER_SELECTOR
        )
        peers = PodPeers(informer)
        watching = asyncio.create_task(peers.run())
        port = [HTTP, ContainerPort(container_port=9100, name="peers")]
        put(api, pod("r0", role="router", ports=port))
        put(api, pod("r1", role="router", ports=port, ip="fd00::1"))
        put(api, pod("r2", role="router"))
        put(api, pod("r3", role="router", ports=port, phase="Failed"))
        want = ["http://127.1.0.1:9100", "http://[fd00::1]:9100"]
        await until(lambda: peers.endpoints() == want, "both are found")
        api.remove("/api/v1/namespaces/ns/pods/r0")
        await until(lambda: peers.endpoints() == want[1:], "one is gone")
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)

    asyncio.run(main())


def test_workers_are_where_their_nodes_are():
    async def main():
        api = FakeApi()
        client = KubeClient(api)
        pods = Informer(client, Pod, "ns", rng=random.Random(1), labels=WORKER_SELECTOR)
        source = PodWorkers(pods, Informer(client, Node, rng=random.Random(2)))
        watching = asyncio.create_task(source.run())

        def node(name, rack):
            labels = {"kubernetes.io/hostname": name, "topology.kubernetes.io/rack": rack}
            made = Node(metadata=ObjectMeta(name=name, uid=name, labels=labels))
            api.put(f"/api/v1/nodes/{name}", json.loads(codec.encode(made)))

        placed = pod("w")
        placed.spec.node_name = "n1"
        put(api, placed)
        await until(lambda: bool(source.workers()), "the worker is known")
        assert source.workers()[0].places == ()
        node("n0", "r0")
        node("n1", "r1")
        await until(lambda: source.workers()[0].places == ("n1", "r1", ""), "and where it is")
        node("n1", "r2")
        await until(lambda: source.workers()[0].places == ("n1", "r2", ""), "the node is moved")
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)

    asyncio.run(main())


def test_the_embedded_server_tells_of_pods_from_creation_to_the_end():
    async def main():
        server = ApiServer(SystemClock(), RandomIds(random.Random(1)))
        client = KubeClient(server)
        labels = f"app=llm,{WORKER_SELECTOR}"
        source = PodWorkers(Informer(client, Pod, "default", rng=random.Random(1), labels=labels))
        watching = asyncio.create_task(source.run())

        def seen():
            return {worker.name: worker.available for worker in source.workers()}

        for name, role in (("p", "prefill"), ("d", "decode"), ("r", "router")):
            wanted = pod(name, role)
            wanted.metadata.namespace, wanted.metadata.uid = "default", ""
            wanted.metadata.finalizers = ["test/stay"]
            await client.create(wanted)
            await client.patch(
                Pod, name, codec.to_dict(pod(name, role)) | {"metadata": {}, "spec": {}},
                "default", subresource="status",
            )  # fmt: skip
        await until(lambda: seen() == {"p": True, "d": True}, "both are ready")
        await client.delete(Pod, "p", "default")
        await until(lambda: seen() == {"p": False, "d": True}, "one is terminating")
        await client.patch(Pod, "p", {"metadata": {"finalizers": None}}, "default")
        await until(lambda: seen() == {"d": True}, "it is gone")
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        await server.close()

    asyncio.run(main())


class Oracle:
    """Workers that tell their models when they feel like it."""

    def __init__(self, answers):
        self.answers = answers
        self.asked = 0

    async def models(self, _worker):
        self.asked += 1
        return self.answers.pop(0) if self.answers else frozenset()


class ChangingWorkers(StaticWorkers):
    def __init__(self, workers):
        super().__init__(workers)
        self.callback = None

    def on_change(self, callback):
        self.callback = callback

    def become(self, *workers):
        self._workers = tuple(workers)
        self.callback()


UNKNOWN = Worker("d", "http://d", Role.DECODE)


def test_a_worker_of_unknown_model_is_asked_until_it_answers():
    async def main():
        oracle = Oracle([frozenset(), frozenset({"x"})])
        table = WorkerTable(StaticWorkers([UNKNOWN]), oracle, QUICK)
        assert not table.complete()
        running = asyncio.create_task(table.run())
        await until(lambda: table.available_models() == ["x"], "it told")
        assert table.complete()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        return oracle.asked

    assert asyncio.run(main()) == 2


def test_a_replaced_worker_is_forgotten_and_asked_again():
    async def main():
        forgotten = []
        source = ChangingWorkers([UNKNOWN])
        answers = [frozenset({"x"}), frozenset({"y"})]
        table = WorkerTable(source, Oracle(answers), QUICK, forgotten.append)
        running = asyncio.create_task(table.run())
        await until(lambda: table.models() == ["x"], "it told")
        source.become(replace(UNKNOWN, ready=False))
        assert (table.models(), table.available_models()) == (["x"], [])
        source.become(replace(UNKNOWN, uid="another"))
        assert (table.models(), forgotten) == ([], ["d"])
        await until(lambda: table.models() == ["y"], "the new one told")
        source.become()
        assert forgotten == ["d", "d"]
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    asyncio.run(main())
