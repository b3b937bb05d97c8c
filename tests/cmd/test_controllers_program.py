"""``spinney controllers`` beside an API server: leads by a lease, works, measures, and stops."""

from __future__ import annotations

import asyncio
import re
import sys
from typing import TYPE_CHECKING

import aiohttp
import pytest
import yaml
from tests.cmd.test_control_plane_metrics import MANIFEST

from spinney.api import codec
from spinney.api.core import Lease, Pod
from spinney.api.crd import crd_documents
from spinney.api.grove import PodCliqueSet
from spinney.api.grove_admission import GroveAdmission
from spinney.clock import SystemClock
from spinney.cmd.main import main
from spinney.ids import RandomIds
from spinney.kube.client import KubeClient
from spinney.local.apiserver import tls
from spinney.local.apiserver.http import HttpServer
from spinney.local.apiserver.server import ApiServer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

LEASE = "default/spinney-controllers"


async def start(kubeconfig: Path, *arguments: str) -> asyncio.subprocess.Process:
    command = ["-m", "spinney.cmd.main", "--kubeconfig", str(kubeconfig), "controllers"]
    command += ["--host", "127.0.0.1", "--port", "0", "--lease", LEASE, *arguments]
    return await asyncio.create_subprocess_exec(
        sys.executable, *command, stderr=asyncio.subprocess.PIPE
    )


async def told(program: asyncio.subprocess.Process, pattern: str) -> str:
    assert program.stderr is not None
    while line := (await program.stderr.readline()).decode():
        if found := re.search(pattern, line):
            return found[1]
    raise AssertionError(f"it ended without saying {pattern}")


async def ended(program: asyncio.subprocess.Process) -> int:
    program.terminate()
    assert program.stderr is not None
    await program.stderr.read()
    return await program.wait()


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    for _ in range(1000):
        if await holds():
            return
        await asyncio.sleep(0.05)
    raise AssertionError("not within 50 s")


@pytest.mark.e2e
def test_one_of_two_works_and_the_other_takes_over_when_it_ends(tmp_path: Path) -> None:
    async def run() -> None:
        clock, ids = SystemClock(), RandomIds()
        api = ApiServer(clock, ids, hooks=[GroveAdmission()], definitions=crd_documents())
        trust = tls.credentials(tmp_path / "api", clock.now())
        server = HttpServer(api, trust, "127.0.0.1", 0)
        serving = asyncio.create_task(server.run())
        kubeconfig = tmp_path / "kubeconfig"
        tls.write_kubeconfig(kubeconfig, server.url, trust)
        client = KubeClient(api)
        programs = [await start(kubeconfig) for _ in range(2)]
        try:
            async with asyncio.timeout(60):
                await scene(client, programs)
        finally:
            for program in programs:
                if program.returncode is None:
                    program.kill()
                    await program.wait()
            server.stop()
            await serving
            await api.close()

    async def scene(client: KubeClient, programs: list[asyncio.subprocess.Process]) -> None:
        addresses = [await told(program, r"address=(\S+)") for program in programs]
        await client.create(codec.from_dict(PodCliqueSet, MANIFEST))

        async def pods(want: int) -> bool:
            return len((await client.list(Pod, "default")).items) == want

        await until(lambda: pods(2))
        figures = [await scrape(address) for address in addresses]
        leads = ["spinney_pods_total" in text for text in figures]
        assert sorted(leads) == [False, True], "only the one that leads works"
        first = programs.pop(leads.index(True))
        assert await ended(first) == 0
        await client.patch(PodCliqueSet, "chat", {"spec": {"replicas": 2}}, "default")
        await until(lambda: pods(4))
        assert await ended(programs[0]) == 0
        lease = await client.get(Lease, "spinney-controllers", "default")
        assert not lease.spec.holder_identity, "the lease is given up"

    asyncio.run(run())


async def scrape(address: str) -> str:
    async with aiohttp.ClientSession() as session, session.get(f"http://{address}/metrics") as got:
        return await got.text()


def test_a_lease_without_namespace_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["controllers", "--lease", "mine"]) == 2
    assert "NAMESPACE/NAME" in capsys.readouterr().err


@pytest.mark.parametrize("others", [False, True])
def test_the_definitions_that_are_printed_are_those_of_the_kinds(
    capsys: pytest.CaptureFixture[str], *, others: bool
) -> None:
    assert main(["crds", *(["--others"] if others else [])]) == 0
    assert list(yaml.safe_load_all(capsys.readouterr().out)) == crd_documents(others=others)
