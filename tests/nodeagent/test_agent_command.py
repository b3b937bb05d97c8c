"""``spinney nodeagent`` as a process of its own, over HTTPS: killed, restarted, asked to end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
from tests.nodeagent.harness import DEADLINE_S, NODES, PYTHON, container, is_ready, pod

from spinney.api.core import Node, Pod
from spinney.clock import SystemClock
from spinney.ids import RandomIds
from spinney.kube.client import KubeClient
from spinney.local.apiserver.http import HttpServer
from spinney.local.apiserver.server import ApiServer
from spinney.local.apiserver.tls import credentials, write_kubeconfig
from spinney.local.nodeagent import guard

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("nodeagent")]

# A shell with one child in its group and one, with a child again, in a session of its own.
FAMILY = "echo $$$$; sleep 300 & echo $!; setsid sh -c 'echo $$$$; sleep 300' &wait; "


class Agent:
    """The agent's process."""

    def __init__(self, root: Path, kubeconfig: Path) -> None:
        self.root = root
        self._kubeconfig = kubeconfig
        (root / "nodes.yaml").write_text(NODES.replace("127.77", "127.78"))
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        state = str(self.root / "state")
        command = [PYTHON, "-m", "spinney.cmd.main", "nodeagent", "--state-dir", state]
        command += ["--kubeconfig", str(self._kubeconfig)]
        command += ["--nodes", str(self.root / "nodes.yaml"), "--restart-backoff", "0.1"]
        with (self.root / "agent.log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)

    async def end(self, number: int) -> int:
        """Send a signal and return the exit code."""
        assert self.process is not None
        self.process.send_signal(number)
        await until(lambda: self.process is None or self.process.poll() is not None, "it ends")
        return self.process.wait()

    def marked(self) -> list[int]:
        """Return the processes that carry the agent's mark."""
        identity = self.root / "state" / "agent-id"
        return guard.marked(identity.read_text()) if identity.exists() else []


@contextlib.asynccontextmanager
async def cluster(root: Path) -> AsyncIterator[tuple[KubeClient, Agent]]:
    """Yield a client of an API server behind HTTPS, and an agent that is not started."""
    clock = SystemClock()
    api = ApiServer(clock, RandomIds())
    found = credentials(root / "tls", clock.now())
    server = HttpServer(api, found, "127.0.0.1", 0)
    write_kubeconfig(root / "kubeconfig", server.url, found)
    serving = asyncio.ensure_future(server.run())
    agent = Agent(root, root / "kubeconfig")
    try:
        yield KubeClient(api), agent
    finally:
        if agent.process is not None and agent.process.poll() is None:
            agent.process.kill()
            agent.process.wait()
        for pid in agent.marked():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        server.stop()
        await serving
        await api.close()


async def until(holds: Callable[[], bool], what: str) -> None:
    deadline = asyncio.get_running_loop().time() + DEADLINE_S
    while not holds():
        assert asyncio.get_running_loop().time() < deadline, f"not within {DEADLINE_S} s: {what}"
        await asyncio.sleep(0.02)


async def until_pod(client: KubeClient, name: str, holds: Callable[[Pod], bool]) -> Pod:
    deadline = asyncio.get_running_loop().time() + DEADLINE_S
    while True:
        found = await client.get(Pod, name, "default")
        if holds(found):
            return found
        assert asyncio.get_running_loop().time() < deadline, f"still: {found.status}"
        await asyncio.sleep(0.02)


def restarted(count: int) -> Callable[[Pod], bool]:
    def holds(found: Pod) -> bool:
        statuses = found.status.container_statuses
        return is_ready(found) and statuses[0].restart_count == count

    return holds


async def log_lines(client: KubeClient, name: str, count: int) -> list[str]:
    deadline = asyncio.get_running_loop().time() + DEADLINE_S
    lines: list[str] = []
    while len(lines) < count:
        assert asyncio.get_running_loop().time() < deadline, lines
        await asyncio.sleep(0.02)
        text = b"".join([chunk async for chunk in client.logs(name, "default")])
        lines = text.decode().splitlines()
    return lines


def run_story(root: Path, story: Callable[[KubeClient, Agent], Any]) -> None:
    async def whole() -> None:
        async with asyncio.timeout(60), cluster(root) as (client, agent):
            await story(client, agent)

    asyncio.run(whole())


def exists(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def test_a_killed_agent_leaves_no_process_and_its_successor_starts_the_pods_again(
    tmp_path: Path,
) -> None:
    async def story(client: KubeClient, agent: Agent) -> None:
        agent.start()
        await client.create(pod("p", container("main", "sh", "-c", FAMILY)), resource=Pod.RESOURCE)
        await until_pod(client, "p", restarted(0))
        pids = [int(line) for line in await log_lines(client, "p", 3)]
        assert all(exists(pid) for pid in pids)
        assert len(agent.marked()) >= 4
        assert await agent.end(signal.SIGKILL) == -signal.SIGKILL
        await until(lambda: not any(exists(pid) for pid in pids), "all of the family end")
        await until(lambda: not agent.marked(), "nothing is left")
        agent.start()
        found = await until_pod(client, "p", restarted(1))
        last = found.status.container_statuses[0].last_state.terminated
        assert last is not None
        assert last.exit_code == 137
        assert agent.process is not None
        assert await agent.end(signal.SIGTERM) == 0
        assert not agent.marked()
        node = await client.get(Node, "node-0")
        assert node.status.conditions[0]["status"] == "False"

    run_story(tmp_path, story)


def test_what_even_the_guard_left_is_killed_by_the_next_agent(tmp_path: Path) -> None:
    async def story(client: KubeClient, agent: Agent) -> None:
        agent.start()
        await client.create(pod("p", container("main", "sh", "-c", FAMILY)), resource=Pod.RESOURCE)
        await until_pod(client, "p", restarted(0))
        pids = [int(line) for line in await log_lines(client, "p", 3)]
        assert agent.process is not None
        # Agent and guard are stopped first, so that neither can do anything when killed.
        guards = _children(agent.process.pid, b"guard.py")
        assert len(guards) == 1
        os.kill(agent.process.pid, signal.SIGSTOP)
        os.kill(guards[0], signal.SIGKILL)
        await agent.end(signal.SIGKILL)
        await until(lambda: not exists(pids[0]), "the kernel ends the first process")
        assert [pid for pid in pids if exists(pid)] == pids[1:], "and no other"
        agent.start()
        await until_pod(client, "p", restarted(1))
        assert not any(exists(pid) for pid in pids)
        assert await agent.end(signal.SIGTERM) == 0

    run_story(tmp_path, story)


def _children(parent: int, word: bytes) -> list[int]:
    found = []
    with open(f"/proc/{parent}/task/{parent}/children") as file:
        pids = file.read().split()
    for pid in pids:
        with contextlib.suppress(FileNotFoundError), open(f"/proc/{pid}/cmdline", "rb") as file:
            if word in file.read():
                found.append(int(pid))
    return found


def test_a_second_agent_on_the_same_state_is_refused(tmp_path: Path) -> None:
    async def story(client: KubeClient, agent: Agent) -> None:
        agent.start()
        await client.create(pod("p", container("main", "sleep", "300")), resource=Pod.RESOURCE)
        await until_pod(client, "p", restarted(0))
        first = agent.process
        agent.start()
        await until(lambda: agent.process is None or agent.process.poll() is not None, "it ends")
        assert agent.process is not None
        assert agent.process.returncode == 1
        assert "in use by another node agent" in (tmp_path / "agent.log").read_text()
        assert restarted(0)(await client.get(Pod, "p", "default"))
        agent.process = first
        assert await agent.end(signal.SIGTERM) == 0

    run_story(tmp_path, story)


@pytest.mark.kubectl
def test_kubectl_follows_a_log_to_its_end_and_describes_the_node(tmp_path: Path) -> None:
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("no kubectl on PATH")

    async def ask(*arguments: str) -> str:
        process = await asyncio.create_subprocess_exec(
            str(kubectl),
            "--kubeconfig",
            str(tmp_path / "kubeconfig"),
            *arguments,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        output, _ = await process.communicate()
        return output.decode()

    async def story(client: KubeClient, agent: Agent) -> None:
        agent.start()
        script = "for i in 1 2 3; do echo line $i; sleep 0.2; done"
        body = pod("p", container("main", "sh", "-c", script), restartPolicy="Never")
        await client.create(body, resource=Pod.RESOURCE)
        await until_pod(client, "p", lambda p: p.status.phase in ("Running", "Succeeded"))
        assert await ask("logs", "-f", "p") == "line 1\nline 2\nline 3\n"
        assert await ask("logs", "p", "--tail=1") == "line 3\n"
        stamped = (await ask("logs", "p", "--timestamps")).split()
        assert stamped[1:3] == ["line", "1"]
        assert stamped[0].endswith("Z")
        assert "no log" in await ask("logs", "p", "--previous")
        nodes = await ask("get", "nodes")
        assert nodes.count(" Ready") == 2
        assert "spinney" in nodes
        assert await agent.end(signal.SIGTERM) == 0
        assert (await ask("get", "nodes")).count("NotReady") == 2

    run_story(tmp_path, story)
