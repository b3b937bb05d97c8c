"""A local cluster with real processes, shared by the tests of this folder."""

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from spinney.api.core import Pod
from spinney.api.meta import is_true
from spinney.kube.client import KubeClient
from spinney.kube.http import HttpTransport
from spinney.local.home import ClusterHome

ROOT = Path(__file__).parents[2]
READY_S = 90.0


class Cluster:
    """Runs ``spinney`` as a user does, and looks at what it did through the API."""

    def __init__(self, folder: Path) -> None:
        self.home = ClusterHome(folder)

    def run(self, *arguments: str, code: int = 0, stdin: str | None = None) -> str:
        environment = os.environ | {"SPINNEY_HOME": str(self.home.root)}
        environment.pop("KUBECONFIG", None)
        done = subprocess.run(
            [sys.executable, "-m", "spinney.cmd.main", *arguments],
            env=environment,
            capture_output=True,
            text=True,
            timeout=READY_S * 2,
            cwd=ROOT,
            input=stdin,
            check=False,
        )
        assert done.returncode == code, (
            f"{arguments}: {done.returncode}\n{done.stdout}{done.stderr}"
        )
        assert "Traceback" not in done.stderr
        return done.stdout + done.stderr

    def call(self, work):
        """Return what the coroutine *work(client)* returns."""

        async def main():
            client = KubeClient(HttpTransport.from_kubeconfig(str(self.home.kubeconfig)))
            try:
                return await work(client)
            finally:
                await client.close()

        return asyncio.run(main())

    def pods(self, service: str, role: str = "") -> list[Pod]:
        labels = f"app.kubernetes.io/part-of={service}"
        labels += f",spinney.dev/role={role}" if role else ""
        found = self.call(lambda client: client.list(Pod, "default", labels=labels))
        return sorted(found.items, key=lambda pod: pod.name)

    def wait(self, what: str, probe, seconds: float = READY_S):
        """Return the first true value of *probe*, asked again and again."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if found := probe():
                return found
            time.sleep(0.1)
        raise AssertionError(f"not within {seconds:g} s: {what}\n{self.run('status')}")

    def wait_ready(self, service: str, count: int) -> list[Pod]:
        def ready():
            pods = [p for p in self.pods(service) if not p.deleting]
            fine = len(pods) == count and all(is_true(p.status.conditions, "Ready") for p in pods)
            return pods if fine else None

        return self.wait(f"{count} pods of {service} ready", ready)

    def processes(self) -> list[str]:
        """Command lines of live processes that belong to this cluster."""
        mark = str(self.home.root).encode()
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) == os.getpid():
                continue
            try:
                texts = (entry / "environ").read_bytes(), (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if texts[1] and any(mark in text for text in texts):
                found.append(texts[1].replace(b"\0", b" ").decode())
        return found


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    found = Cluster(tmp_path_factory.mktemp("cluster") / "home")
    found.run("up", "--port", "0")
    yield found
    found.run("down", "--delete-state")
    assert found.processes() == []


@pytest.fixture(scope="session")
def service(cluster):
    """The disaggregated example, ready."""
    cluster.run("apply", "-f", "examples/disaggregated/disaggregated.yaml")
    cluster.wait_ready("chat", 5)
    return "chat"


@pytest.fixture(scope="session")
def aggregated(cluster):
    """The example of one worker, ready."""
    cluster.run("apply", "-f", "examples/aggregated/aggregated.yaml")
    cluster.wait_ready("aggregated", 1)
    return "aggregated"
