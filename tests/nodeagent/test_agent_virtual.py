"""The whole agent in virtual time, with Kubernetes' own back-off, probes and graces."""

from __future__ import annotations

import asyncio
import itertools
import signal
from typing import TYPE_CHECKING

from tests.nodeagent.harness import (
    Bench,
    container,
    in_virtual_time,
    is_ready,
    phase,
    pod,
    waiting_reason,
)

from spinney.api.core import Event, Lease, Node, Pod
from spinney.local.nodeagent.fake_process import drains_for, ends_after, forever

if TYPE_CHECKING:
    from pathlib import Path

PROGRAMS = {
    "serve": forever,
    "fail": ends_after(1, 1),
    "succeed": ends_after(5, 0),
    "drain": drains_for(20),
    "stuck": drains_for(10_000),
    "ok": ends_after(0, 0),
    "slow": ends_after(50, 0),
}


def waits_after(found: Pod, restarts: int) -> bool:
    count = sum(s.restart_count for s in found.status.container_statuses)
    return count == restarts and waiting_reason(found) == "CrashLoopBackOff"


def test_declared_nodes_register_and_keep_their_heartbeat(tmp_path: Path) -> None:
    async def story(bench: Bench) -> None:
        await asyncio.sleep(60)
        node = await bench.client.get(Node, "node-0")
        assert node.labels["kubernetes.io/hostname"] == "node-0"
        assert node.labels["topology.kubernetes.io/rack"] == "rack-0"
        assert node.status.capacity == {
            "cpu": "16",
            "memory": "64Gi",
            "pods": "110",
            "nvidia.com/gpu": "4",
        }
        assert node.status.addresses[0].address == "127.77.0.1"
        assert node.status.conditions[0]["status"] == "True"
        assert "spinney" in node.status.node_info["kubeletVersion"]
        first = await bench.client.get(Lease, "node-0", "kube-node-lease")
        await asyncio.sleep(30)
        second = await bench.client.get(Lease, "node-0", "kube-node-lease")
        assert first.spec.renew_time != second.spec.renew_time
        # A node that somebody removes comes back with the agent that runs it.
        await bench.client.delete(Node, "node-0")
        await asyncio.sleep(60)
        assert (await bench.client.get(Node, "node-0")).status.conditions[0]["status"] == "True"
        await bench.stop()
        assert (await bench.client.get(Node, "node-0")).status.conditions[0]["status"] == "False"

    in_virtual_time(tmp_path, PROGRAMS, story)


def test_a_running_pod_costs_no_writes_at_rest(tmp_path: Path) -> None:
    async def story(bench: Bench) -> None:
        probe = {"httpGet": {"port": 80}, "periodSeconds": 1}
        main = container("main", "serve", readinessProbe=probe, livenessProbe=probe)
        await bench.create(pod("p", main))
        await bench.until("p", is_ready)
        writes = [w for w in bench.api.status_writes if "/pods/" in w]
        assert len(writes) <= 4, writes
        await asyncio.sleep(250)
        assert [w for w in bench.api.status_writes if "/pods/" in w] == writes

    in_virtual_time(tmp_path, PROGRAMS, story)


def test_crashes_are_restarted_at_once_then_after_10_20_and_40_seconds(tmp_path: Path) -> None:
    async def story(bench: Bench) -> None:
        await bench.create(pod("p", container("main", "fail")))
        await bench.until("p", lambda p: waits_after(p, 4), 200)
        began = [process.born_at for process in bench.processes.started]
        gaps = [round(b - a) for a, b in itertools.pairwise(began)]
        assert gaps == [1, 11, 21, 41]
        found = await bench.get("p")
        assert found.status.phase == "Running"
        assert found.status.container_statuses[0].restart_count == 4
        assert len(bench.processes.alive()) == 0

    in_virtual_time(tmp_path, PROGRAMS, story)


def test_a_job_like_pod_succeeds_and_keeps_its_status(tmp_path: Path) -> None:
    async def story(bench: Bench) -> None:
        init = [container("i", "succeed")]
        body = pod("p", container("main", "succeed"), initContainers=init, restartPolicy="Never")
        await bench.create(body)
        pending = await bench.until("p", lambda p: bool(p.status.init_container_statuses))
        assert pending.status.phase == "Pending"
        found = await bench.until("p", phase("Succeeded"), 60)
        reasons = {c.type: c.reason for c in found.status.conditions}
        assert reasons["Ready"] == "PodCompleted"
        await asyncio.sleep(600)
        assert len(bench.processes.started) == 2
        await bench.client.delete(Pod, "p", "default")
        await bench.until_gone("p")

    in_virtual_time(tmp_path, PROGRAMS, story)


def test_deletion_waits_for_a_program_that_drains_and_kills_one_that_does_not(
    tmp_path: Path,
) -> None:
    async def story(bench: Bench) -> None:
        loop = asyncio.get_running_loop()
        for name in ("drain", "stuck"):
            main = container("main", name)
            await bench.create(pod(name, main, terminationGracePeriodSeconds=60))
            await bench.until(name, is_ready)
        took = {}
        for name in ("drain", "stuck"):
            began = loop.time()
            await bench.client.delete(Pod, name, "default")
            await bench.until_gone(name, 100)
            took[name] = round(loop.time() - began)
        assert took == {"drain": 20, "stuck": 60}
        numbers = [[n for _, n in p.signals] for p in bench.processes.started]
        assert numbers == [[signal.SIGTERM], [signal.SIGTERM, signal.SIGKILL]]

    in_virtual_time(tmp_path, PROGRAMS, story)


def test_a_pre_stop_hook_comes_before_the_signal(tmp_path: Path) -> None:
    async def story(bench: Bench) -> None:
        hook = {"preStop": {"exec": {"command": ["succeed"]}}}
        await bench.create(pod("p", container("main", "serve", lifecycle=hook)))
        await bench.until("p", is_ready)
        await bench.client.delete(Pod, "p", "default")
        began = asyncio.get_running_loop().time()
        await bench.until_gone("p", 60)
        main, drain = bench.processes.started
        assert drain.spec.argv == ("succeed",)
        assert [(round(at - began), n) for at, n in main.signals] == [(5, signal.SIGTERM)]

    in_virtual_time(tmp_path, PROGRAMS, story)


def test_a_liveness_failure_restarts_after_the_threshold(tmp_path: Path) -> None:
    async def story(bench: Bench) -> None:
        probe = {"httpGet": {"port": 81, "path": "/live"}, "periodSeconds": 10}
        main = container("main", "serve", livenessProbe={**probe, "failureThreshold": 3})
        await bench.create(pod("p", main))
        await bench.until("p", is_ready)
        await asyncio.sleep(35)
        assert len(bench.processes.started) == 1
        bench.network.status[81] = 503
        began = asyncio.get_running_loop().time()
        await bench.until("p", lambda p: p.status.container_statuses[0].restart_count == 1, 60)
        assert 20 <= asyncio.get_running_loop().time() - began <= 31
        assert bench.network.asked[0][2] == "/live"
        events = await bench.client.list(Event.RESOURCE)
        reasons = {(e["reason"], e["type"]) for e in events.items}
        assert {("Started", "Normal"), ("Unhealthy", "Warning"), ("Killing", "Normal")} <= reasons

    in_virtual_time(tmp_path, PROGRAMS, story)


def test_a_slow_exec_probe_fails_at_its_timeout(tmp_path: Path) -> None:
    async def story(bench: Bench) -> None:
        slow = {"exec": {"command": ["slow"]}, "timeoutSeconds": 2, "failureThreshold": 1}
        good = {"exec": {"command": ["ok"]}}
        await bench.create(pod("good", container("main", "serve", readinessProbe=good)))
        await bench.create(pod("slow", container("main", "serve", readinessProbe=slow)))
        await bench.until("good", is_ready)
        await asyncio.sleep(30)
        assert not is_ready(await bench.get("slow"))
        asked = [p for p in bench.processes.started if p.spec.argv == ("slow",)]
        assert len(asked) >= 2
        assert not any(p.alive for p in asked[:-1])

    in_virtual_time(tmp_path, PROGRAMS, story)


def test_a_replaced_pod_is_another_one(tmp_path: Path) -> None:
    async def story(bench: Bench) -> None:
        await bench.create(pod("p", container("main", "stuck")))
        first = await bench.until("p", is_ready)
        await bench.client.delete(Pod, "p", "default", grace_period_s=0)
        await bench.create(pod("p", container("main", "serve")))
        second = await bench.until(
            "p", lambda p: is_ready(p) and p.metadata.uid != first.metadata.uid
        )
        assert second.status.pod_ip != first.status.pod_ip
        assert [p.spec.argv[0] for p in bench.processes.alive()] == ["serve"]

    in_virtual_time(tmp_path, PROGRAMS, story)


def test_addresses_are_unique_among_live_pods_and_not_reused_at_once(tmp_path: Path) -> None:
    async def story(bench: Bench) -> None:
        for i in range(20):
            await bench.create(pod(f"p{i}", container("main", "serve"), nodeName=f"node-{i % 2}"))
        found = [await bench.until(f"p{i}", is_ready) for i in range(20)]
        addresses = {p.status.pod_ip for p in found}
        assert len(addresses) == 20
        await bench.client.delete(Pod, "p0", "default")
        await bench.until_gone("p0", 60)
        await bench.create(pod("fresh", container("main", "serve")))
        assert (await bench.until("fresh", is_ready)).status.pod_ip not in addresses

    in_virtual_time(tmp_path, PROGRAMS, story)


def test_a_new_agent_restarts_what_its_predecessor_ran_and_only_that(tmp_path: Path) -> None:
    async def story(bench: Bench) -> None:
        init = [container("i", "ok")]
        await bench.create(pod("p", container("main", "serve"), initContainers=init))
        await bench.create(pod("once", container("main", "serve"), restartPolicy="Never"))
        await bench.create(pod("done", container("main", "ok"), restartPolicy="Never"))
        await bench.until("p", is_ready)
        await bench.until("once", is_ready)
        await bench.until("done", phase("Succeeded"))
        before = len(bench.processes.started)
        await bench.crash()
        await bench.start()
        found = await bench.until(
            "p", lambda p: p.status.container_statuses[0].restart_count == 1 and is_ready(p)
        )
        last = found.status.container_statuses[0].last_state.terminated
        assert last is not None
        assert last.exit_code == 137
        await bench.until("once", phase("Failed"))
        assert (await bench.get("done")).status.phase == "Succeeded"
        assert len(bench.processes.started) == before + 1

    in_virtual_time(tmp_path, PROGRAMS, story)


def test_any_order_of_simultaneous_events_ends_the_same(tmp_path: Path) -> None:
    async def story(bench: Bench) -> None:
        for i in range(6):
            await bench.create(pod(f"p{i}", container("main", "serve")))
        for i in range(6):
            await bench.until(f"p{i}", is_ready)
        for i in range(0, 6, 2):
            await bench.client.delete(Pod, f"p{i}", "default")
        for i in range(0, 6, 2):
            await bench.until_gone(f"p{i}", 60)
        assert len(bench.processes.alive()) == 3

    for seed in range(5):
        in_virtual_time(tmp_path / str(seed), PROGRAMS, story, seed=seed)
