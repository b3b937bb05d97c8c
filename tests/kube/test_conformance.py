"""Runs `tests.kube.conformance` against every server there is.

A real kube-apiserver takes part where ``KUBEBUILDER_ASSETS`` names a folder with ``etcd`` and
``kube-apiserver``, or ``SPINNEY_TEST_KUBECONFIG`` a kubeconfig of a cluster made for tests.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
import socket
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.kube.conformance import CHECKS, PATIENCE_S, WIDGET_CRD, WIDGETS, Env

from spinney.api.core import CustomResourceDefinition, Namespace
from spinney.api.meta import ObjectMeta
from spinney.clock import LoopClock, SystemClock
from spinney.ids import RandomIds
from spinney.kube.client import KubeClient
from spinney.kube.errors import AlreadyExistsError, ApiError, NotFoundError
from spinney.kube.http import HttpTransport
from spinney.kube.transport import TransportError
from spinney.local.apiserver.http import HttpServer
from spinney.local.apiserver.server import ApiServer
from spinney.local.apiserver.tls import credentials, write_kubeconfig
from spinney.sim.loop import SimulatedLoop

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

HISTORY_EVENTS = 60
"""Few, so that a version expires within a test."""
_numbers = itertools.count()

each_check = pytest.mark.parametrize("check", CHECKS, ids=[c.__name__ for c in CHECKS])


@contextlib.asynccontextmanager
async def prepared(client: KubeClient, **traits: Any) -> AsyncIterator[Env]:
    """Install the test CRD, if it is not there, and make a namespace."""
    crd = CustomResourceDefinition.RESOURCE
    with contextlib.suppress(AlreadyExistsError):
        await client.create(WIDGET_CRD, resource=crd)
    async with asyncio.timeout(PATIENCE_S):
        while True:
            with contextlib.suppress(NotFoundError):
                await client.list(WIDGETS)
                break
            await asyncio.sleep(0.05)
    made = await client.create(
        Namespace(metadata=ObjectMeta(name=f"conformance-{os.getpid()}-{next(_numbers)}"))
    )
    yield Env(client, made.name, **traits)
    with contextlib.suppress(ApiError):
        await client.delete(Namespace, made.name)


@each_check
def test_in_process_in_virtual_time(check: Callable[[Env], Awaitable[None]]) -> None:
    async def main() -> None:
        clock = LoopClock(asyncio.get_running_loop())
        server = ApiServer(clock, RandomIds(random.Random(1)), history_events=HISTORY_EVENTS)
        async with prepared(KubeClient(server)) as env:
            await check(env)
        await server.close()

    with asyncio.Runner(loop_factory=SimulatedLoop) as runner:
        runner.run(main())


@pytest.fixture(scope="module")
def cluster_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cluster")


@each_check
def test_over_https(check: Callable[[Env], Awaitable[None]], cluster_home: Path) -> None:
    async def main() -> None:
        clock = SystemClock()
        api = ApiServer(clock, RandomIds(), history_events=HISTORY_EVENTS)
        found = credentials(cluster_home, clock.now())
        server = HttpServer(api, found, "127.0.0.1", 0)
        serving = asyncio.create_task(server.run())
        write_kubeconfig(cluster_home / "kubeconfig", server.url, found)
        transport = HttpTransport.from_kubeconfig(cluster_home / "kubeconfig")
        try:
            async with prepared(KubeClient(transport), bookmark_s=0) as env:
                await check(env)
        finally:
            await transport.close()
            server.stop()
            await serving
            await api.close()

    asyncio.run(main())


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def real_transport(cluster_home: Path) -> Iterator[Callable[[], HttpTransport]]:
    kubeconfig = os.environ.get("SPINNEY_TEST_KUBECONFIG")
    assets = os.environ.get("KUBEBUILDER_ASSETS")
    if kubeconfig:
        yield lambda: HttpTransport.from_kubeconfig(kubeconfig)
    elif assets:
        with contextlib.ExitStack() as stack:
            yield start_kube_apiserver(Path(assets), cluster_home, stack)
    else:
        pytest.skip("neither KUBEBUILDER_ASSETS nor SPINNEY_TEST_KUBECONFIG is set")


def start_kube_apiserver(
    assets: Path, home: Path, stack: contextlib.ExitStack
) -> Callable[[], HttpTransport]:
    etcd, peer, port = free_port(), free_port(), free_port()
    key, tokens = home / "sa.key", home / "tokens.csv"
    subprocess.run(["openssl", "genrsa", "-out", key, "2048"], check=True, capture_output=True)
    tokens.write_text("secret,admin,admin,system:masters\n")
    commands = [
        [
            assets / "etcd",
            f"--data-dir={home / 'etcd'}",
            f"--listen-client-urls=http://127.0.0.1:{etcd}",
            f"--advertise-client-urls=http://127.0.0.1:{etcd}",
            f"--listen-peer-urls=http://127.0.0.1:{peer}",
        ],
        [
            assets / "kube-apiserver",
            f"--etcd-servers=http://127.0.0.1:{etcd}",
            f"--secure-port={port}",
            f"--cert-dir={home / 'apiserver'}",
            "--bind-address=127.0.0.1",
            "--service-cluster-ip-range=10.0.0.0/24",
            "--service-account-issuer=https://localhost/",
            f"--service-account-key-file={key}",
            f"--service-account-signing-key-file={key}",
            f"--token-auth-file={tokens}",
            "--authorization-mode=RBAC",
            "--disable-admission-plugins=ServiceAccount",
        ],
    ]
    for command in commands:
        name = Path(command[0]).name
        log = stack.enter_context((home / f"{name}.log").open("wb"))
        process = subprocess.Popen(command, stdout=log, stderr=log)
        stack.callback(process.wait, 30)
        stack.callback(process.terminate)
    kubeconfig = home / "real-kubeconfig"
    kubeconfig.write_text(
        f"""
apiVersion: v1
kind: Config
current-context: real
clusters:
- {{name: real, cluster: {{server: "https://127.0.0.1:{port}", insecure-skip-tls-verify: true}}}}
users:
- {{name: real, user: {{token: secret}}}}
contexts:
- {{name: real, context: {{cluster: real, user: real}}}}
"""
    )

    def make() -> HttpTransport:
        return HttpTransport.from_kubeconfig(kubeconfig)

    asyncio.run(until_ready(make))
    return make


async def until_ready(make: Callable[[], HttpTransport]) -> None:
    transport = make()
    async with asyncio.timeout(60):
        while True:
            with contextlib.suppress(TransportError, ApiError):
                await KubeClient(transport).get(Namespace, "default")
                break
            await asyncio.sleep(0.2)
    await transport.close()


@each_check
def test_a_real_kube_apiserver(
    check: Callable[[Env], Awaitable[None]], real_transport: Callable[[], HttpTransport]
) -> None:
    has_controllers = "SPINNEY_TEST_KUBECONFIG" in os.environ

    async def main() -> None:
        transport = real_transport()
        try:
            async with prepared(
                KubeClient(transport),
                collects_garbage=has_controllers,
                bookmark_s=4,
                keeps_history=True,
            ) as env:
                await check(env)
        finally:
            await transport.close()

    asyncio.run(main())
