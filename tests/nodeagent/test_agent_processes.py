"""The agent with real processes: what a pod's programs see, and what is left of them."""

from __future__ import annotations

import asyncio
import os
import textwrap
from typing import TYPE_CHECKING, Any

import pytest
from tests.nodeagent.harness import (
    DEADLINE_S,
    PYTHON,
    Bench,
    container,
    is_ready,
    phase,
    pod,
    waiting_reason,
    with_processes,
)

from spinney.api.core import ConfigMap, Pod, Secret
from spinney.api.meta import ObjectMeta
from spinney.local.nodeagent.linux import kill_group_of, start_ticks

if TYPE_CHECKING:
    from pathlib import Path

SHELL = ("/bin/sh", "-c")
SERVER = textwrap.dedent("""
    import http.server, os, pathlib
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            sick = pathlib.Path("sick").exists()
            self.send_response(500 if sick else 200)
            self.end_headers()
        def log_message(self, *args): pass
    http.server.HTTPServer((os.environ["POD_IP"], 8080), Handler).serve_forever()
""")
POD_IP = {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}

# Their nodes have the same addresses.
pytestmark = pytest.mark.xdist_group("nodeagent")


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in ("Z", "X")
    except FileNotFoundError:
        return False


def restarts(found: Pod) -> int:
    return sum(s.restart_count for s in found.status.container_statuses)


async def eventually(holds: Any, what: str) -> None:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + DEADLINE_S
    while not holds():
        assert loop.time() < deadline, what
        await asyncio.sleep(0.02)


async def numbers_in_log(bench: Bench, name: str, count: int) -> list[int]:
    """Return the process ids that the pod has printed."""
    text = ""
    await bench.until(name, phase("Running"))
    for _ in range(300):
        text = await bench.log(name)
        if len(text.split()) >= count:
            return [int(word) for word in text.split()]
        await asyncio.sleep(0.02)
    raise AssertionError(f"{count} numbers wanted, found {text!r}")


def sh(script: str, **fields: Any) -> dict[str, Any]:
    return container("main", *SHELL, script, **fields)


def test_a_program_sees_environment_arguments_files_and_its_own_directory(tmp_path: Path) -> None:
    env = [
        POD_IP,
        {"name": "PLAIN", "value": "a$(MISSING)b$$(PLAIN)"},
        {"name": "FROM_MAP", "valueFrom": {"configMapKeyRef": {"name": "settings", "key": "mode"}}},
        {"name": "SECRET", "valueFrom": {"secretKeyRef": {"name": "keys", "key": "token"}}},
        {"name": "GPUS", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}},
        {"name": "ROLE", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['role']"}}},
        {"name": "URL", "value": "http://$(POD_IP):80"},
    ]
    script = (
        'echo "$PLAIN|$FROM_MAP|$SECRET|$GPUS|$ROLE|$URL|$PREFIX_mode|$1|$OMP_NUM_THREADS";'
        'echo "$KUBERNETES_SERVICE_HOST:$KUBERNETES_SERVICE_PORT $KUBECONFIG $HOSTNAME";'
        "cat /etc/settings/mode; echo; pwd; echo to-stderr >&2"
    )
    main = sh(
        script,
        args=["name", "$(ROLE)"],
        env=env,
        envFrom=[{"configMapRef": {"name": "settings"}, "prefix": "PREFIX_"}],
        resources={"limits": {"cpu": "1500m"}},
        volumeMounts=[{"name": "settings", "mountPath": "/etc/settings"}],
    )

    async def story(bench: Bench) -> None:
        api = bench.client
        meta = ObjectMeta(name="settings", namespace="default")
        await api.create(ConfigMap(metadata=meta, data={"mode": "fast"}))
        meta = ObjectMeta(name="keys", namespace="default")
        await api.create(Secret(metadata=meta, data={"token": "c2VjcmV0"}))
        volumes = [{"name": "settings", "configMap": {"name": "settings"}}]
        body = pod("p", main, volumes=volumes, restartPolicy="Never", labels={"role": "decode"})
        await bench.create(body)
        found = await bench.until("p", phase("Succeeded"))
        first, second, third, fourth, fifth = (await bench.log("p")).splitlines()
        ip = found.status.pod_ip
        assert first == (f"a$(MISSING)b$(PLAIN)|fast|secret|2|decode|http://{ip}:80|fast|decode|1")
        assert second == "127.0.0.1:6443 /somewhere/kubeconfig p"
        assert (third, fifth) == ("fast", "to-stderr")
        assert fourth == str(tmp_path / "pods" / found.metadata.uid / "scratch")

    with_processes(tmp_path, story)


def test_pods_have_addresses_of_their_own_and_can_listen_on_one_port(tmp_path: Path) -> None:
    probe = {"httpGet": {"port": "http"}, "periodSeconds": 1, "failureThreshold": 1}
    main = container(
        "main",
        PYTHON,
        "-c",
        SERVER,
        env=[POD_IP],
        ports=[{"name": "http", "containerPort": 8080}],
        readinessProbe=probe,
    )

    async def story(bench: Bench) -> None:
        names = ("a", "b", "c")
        for name, node in zip(names, ("node-0", "node-0", "node-1"), strict=True):
            await bench.create(pod(name, main, nodeName=node))
        found = [await bench.until(name, is_ready) for name in names]
        assert len({p.status.pod_ip for p in found}) == 3
        prefixes = [p.status.pod_ip.rpartition(".")[0] for p in found]
        assert prefixes == ["127.77.0", "127.77.0", "127.77.1"]
        assert found[2].status.host_ip == "127.77.1.1"
        # It stops answering well, and is no longer ready; its neighbours are.
        scratch = tmp_path / "pods" / found[0].metadata.uid / "scratch"
        (scratch / "sick").touch()
        await bench.until("a", lambda p: not is_ready(p))
        assert is_ready(await bench.get("b"))

    with_processes(tmp_path, story)


def test_logs_can_be_followed_to_the_container_s_end_and_cut(tmp_path: Path) -> None:
    script = "for i in 1 2 3 4; do echo line $i; sleep 0.1; done; exit 3"

    async def story(bench: Bench) -> None:
        await bench.create(pod("p", sh(script), restartPolicy="Never"))
        await bench.until("p", lambda p: p.status.phase in ("Running", "Failed"))
        # kubectl logs -f asks the API server, which asks the node.
        assert (await bench.log("p", follow=True)).splitlines() == [
            f"line {i}" for i in range(1, 5)
        ]
        assert await bench.log("p", tail_lines=1) == "line 4\n"
        found = await bench.until("p", phase("Failed"))
        ended = found.status.container_statuses[0].state.terminated
        assert ended is not None
        assert (ended.exit_code, ended.reason) == (3, "Error")

    with_processes(tmp_path, story)


def test_a_failing_container_is_restarted_and_its_last_log_kept(tmp_path: Path) -> None:
    async def story(bench: Bench) -> None:
        await bench.create(pod("p", sh("echo attempt; exit 7")))
        found = await bench.until("p", lambda p: restarts(p) >= 2)
        last = found.status.container_statuses[0].last_state.terminated
        assert last is not None
        assert last.exit_code == 7
        await bench.until("p", lambda p: waiting_reason(p) == "CrashLoopBackOff")
        assert await bench.log("p", previous=True) == "attempt\n"

    with_processes(tmp_path, story)


def test_what_cannot_run_waits_with_a_reason_and_the_rest_goes_on(tmp_path: Path) -> None:
    async def story(bench: Bench) -> None:
        no_command = {"name": "main", "image": "vllm/vllm-openai:v1"}
        await bench.create(pod("no-command", no_command))
        await bench.create(pod("no-program", container("main", "/app/not-there")))
        claim = [{"name": "data", "persistentVolumeClaim": {"claimName": "x"}}]
        mount = [{"name": "data", "mountPath": "/data"}]
        await bench.create(pod("claim", sh("true", volumeMounts=mount), volumes=claim))
        missing = {"name": "A", "valueFrom": {"secretKeyRef": {"name": "none", "key": "k"}}}
        await bench.create(pod("secret", sh("true", env=[missing])))
        await bench.create(pod("fine", sh("sleep 60")))
        wanted = {
            "no-command": "ImageNotRunnable",
            "no-program": "ImageNotRunnable",
            "claim": "VolumeNotSupported",
            "secret": "CreateContainerConfigError",
        }
        for name, reason in wanted.items():
            found = await bench.until(name, lambda p, r=reason: waiting_reason(p) == r)  # type: ignore[misc]
            assert found.status.phase == "Pending"
            assert found.status.container_statuses[0].restart_count == 0
        await bench.until("fine", is_ready)

    with_processes(tmp_path, story)


def test_deletion_asks_then_forces_and_takes_grandchildren_along(tmp_path: Path) -> None:
    polite = "trap 'echo bye; exit 0' TERM; echo $$$$; while :; do sleep 0.05; done"
    # A child, one without the mark, and one that left the group for a session of its own.
    stubborn = (
        "trap '' TERM; sleep 300 & echo $!; env -i sleep 300 & echo $!; setsid sleep 300 & echo $!;"
        "echo $$$$;"
        "while :; do sleep 0.05; done"
    )

    async def story(bench: Bench) -> None:
        await bench.create(pod("polite", sh(polite), terminationGracePeriodSeconds=30))
        await bench.create(pod("stubborn", sh(stubborn), terminationGracePeriodSeconds=1))
        pids = await numbers_in_log(bench, "polite", 1)
        pids += await numbers_in_log(bench, "stubborn", 4)
        assert all(alive(pid) for pid in pids)
        loop = asyncio.get_running_loop()
        began = loop.time()
        await bench.client.delete(Pod, "polite", "default")
        await bench.client.delete(Pod, "stubborn", "default")
        await bench.until_gone("polite")
        assert loop.time() - began < 5
        await bench.until_gone("stubborn")
        assert loop.time() - began >= 1.0
        await eventually(lambda: not any(alive(pid) for pid in pids), f"left of {pids}")

    with_processes(tmp_path, story)


def test_what_a_program_leaves_in_its_group_ends_with_it(tmp_path: Path) -> None:
    async def story(bench: Bench) -> None:
        left = "env -i sleep 300 >/dev/null 2>&1 & echo $!"
        await bench.create(pod("p", sh(left), restartPolicy="Never"))
        await bench.until("p", phase("Succeeded"))
        pid = int(await bench.log("p"))
        await eventually(lambda: not alive(pid), "it lives on")

    with_processes(tmp_path, story)


def test_a_pod_removed_by_force_is_killed(tmp_path: Path) -> None:
    async def story(bench: Bench) -> None:
        await bench.create(pod("p", sh("trap '' TERM; echo $$$$; while :; do sleep 0.05; done")))
        (pid,) = await numbers_in_log(bench, "p", 1)
        await bench.client.delete(Pod, "p", "default", grace_period_s=0)
        await bench.until_gone("p")
        await eventually(lambda: not alive(pid), "it lives on")

    with_processes(tmp_path, story)


def test_a_stopped_agent_leaves_nothing_and_the_next_one_goes_on(tmp_path: Path) -> None:
    async def story(bench: Bench) -> None:
        await bench.create(pod("p", sh("echo $$$$; exec sleep 300")))
        await bench.create(pod("once", sh("echo $$$$; exec sleep 300"), restartPolicy="Never"))
        (pid,) = await numbers_in_log(bench, "p", 1)
        (other,) = await numbers_in_log(bench, "once", 1)
        ip = (await bench.until("p", is_ready)).status.pod_ip
        await bench.stop()
        assert not alive(pid)
        assert not alive(other)
        await bench.start()
        found = await bench.until("p", lambda p: is_ready(p) and restarts(p) == 1)
        assert found.status.pod_ip == ip
        assert (await bench.until("once", phase("Failed"))).status.container_statuses

    with_processes(tmp_path, story)


def test_an_identity_is_a_pid_and_its_start_time() -> None:
    assert start_ticks(os.getpid()) > 0
    assert not kill_group_of(os.getpid(), start_ticks(os.getpid()) + 1)
