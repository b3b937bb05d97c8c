"""``spinney webhook``: admission of the ``grove.io`` kinds for a Kubernetes API server.

A local cluster needs none: its API server calls the same rules in its own process.
"""

from __future__ import annotations

import asyncio
import signal
from dataclasses import dataclass
from pathlib import Path
from random import Random, SystemRandom
from typing import TYPE_CHECKING

import click
import yaml

from spinney.api.grove_admission import GroveAdmission
from spinney.api.grove_authorizer import GroveAuthorizer
from spinney.api.grove_policy import KNOWN_BACKENDS, GrovePolicy, backends
from spinney.api.names import SPINNEY_SCHEDULER
from spinney.clock import SystemClock
from spinney.controllers.admission.app import WebhookApp
from spinney.controllers.admission.lookup import Lookup
from spinney.controllers.admission.manifests import (
    ServiceAddress,
    register_webhook,
    webhook_manifests,
)
from spinney.controllers.admission.server import WebhookServer
from spinney.errors import BadInputError
from spinney.kube.controller import Runtime
from spinney.log import configure, get_logger

if TYPE_CHECKING:
    from spinney.api.resource import Unstructured
    from spinney.cli.session import Session
    from spinney.kube.client import KubeClient

log = get_logger("webhook")

_SERVICE = ("spinney-system", "spinney-webhook")


@dataclass(frozen=True, slots=True)
class _Certificate:
    authority: Path
    certificate: Path
    key: Path


@click.command(
    context_settings={"show_default": True},
    epilog="To configure the API server, apply what --manifests prints.",
)
@click.option("--host", default="0.0.0.0", help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=9443, help="0 means any free one.")
@click.option(
    "--tls-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder with ca.crt, server.crt and server.key; what is missing is made.",
)
@click.option("--tls-cert", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--tls-key", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--tls-ca", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--service", default="/".join(_SERVICE), help="NAMESPACE/NAME of the Service.")
@click.option("--url", help="How the API server reaches it, instead of by a Service.")
@click.option("--manifests", is_flag=True, help="Print the webhook configurations and exit.")
@click.option("--register", is_flag=True, help="Apply the webhook configurations at the start.")
@click.option(
    "--scheduler",
    "schedulers",
    multiple=True,
    type=click.Choice([backend.name for backend in KNOWN_BACKENDS]),
    default=[SPINNEY_SCHEDULER],
    help="A scheduler that is installed; repeat it.",
)
@click.option("--default-scheduler", help="For pods that name none. Default: the first one.")
@click.option("--topology/--no-topology", default=True, help="Allow topology constraints.")
@click.option("--mnnvl/--no-mnnvl", default=False, help="Allow grove.io/mnnvl-group.")
@click.option(
    "--protect-for",
    metavar="USER",
    help="Let nobody but this user (the controllers) write what they made.",
)
@click.option("--exempt", multiple=True, metavar="USER", help="Another user that may.")
@click.option("--log-level", default="info")
@click.pass_obj
def webhook(
    session: Session,
    *,
    host: str,
    port: int,
    tls_dir: Path | None,
    tls_cert: Path | None,
    tls_key: Path | None,
    tls_ca: Path | None,
    service: str,
    url: str | None,
    manifests: bool,
    register: bool,
    schedulers: tuple[str, ...],
    default_scheduler: str | None,
    topology: bool,
    mnnvl: bool,
    protect_for: str | None,
    exempt: tuple[str, ...],
    log_level: str,
) -> None:
    """Answer a Kubernetes API server's admission reviews over HTTPS."""
    address = url or _service(service)
    policy = GrovePolicy(backends(schedulers), default_scheduler or schedulers[0], topology, mnnvl)
    authorizer = GroveAuthorizer(protect_for, frozenset(exempt)) if protect_for else None
    found = _certificate(tls_dir, tls_cert, tls_key, tls_ca, address)
    authority = found.authority.read_bytes()
    documents = webhook_manifests(address, authority, protects=authorizer is not None)
    if manifests:
        click.echo(yaml.safe_dump_all(documents, sort_keys=False), nl=False)
        return
    configure(level=log_level)
    client = session.connect()
    runtime = Runtime(client, SystemClock(), rng=Random(SystemRandom().getrandbits(64)))
    lookup = Lookup(runtime, protects=authorizer is not None)
    app = WebhookApp(lookup, GroveAdmission(policy), authorizer)
    server = WebhookServer(app, certificate=found.certificate, key=found.key, host=host, port=port)
    asyncio.run(_run(client, runtime, server, documents if register else []))


async def _run(
    client: KubeClient, runtime: Runtime, server: WebhookServer, documents: list[Unstructured]
) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, server.stop)
    log.info("answering reviews", url=server.url)
    try:
        async with asyncio.TaskGroup() as group:
            watching = group.create_task(runtime.run())
            registering = group.create_task(register_webhook(client, documents))
            await server.run()
            watching.cancel()
            registering.cancel()
    finally:
        await client.close()


def _service(text: str) -> ServiceAddress:
    namespace, slash, name = text.partition("/")
    if not slash or not namespace or not name:
        raise BadInputError(f"--service takes NAMESPACE/NAME, such as {'/'.join(_SERVICE)}")
    return ServiceAddress(namespace, name)


def _certificate(
    folder: Path | None,
    certificate: Path | None,
    key: Path | None,
    authority: Path | None,
    address: ServiceAddress | str,
) -> _Certificate:
    from spinney.local.apiserver.tls import credentials

    if folder is not None:
        made = credentials(folder, SystemClock().now(), _hosts(address))
        return _Certificate(made.authority, made.certificate, made.key)
    if certificate is None or key is None:
        raise BadInputError("a certificate is needed: --tls-dir, or --tls-cert and --tls-key")
    return _Certificate(authority or certificate, certificate, key)


def _hosts(address: ServiceAddress | str) -> list[str]:
    """Return the names that the certificate has to be good for."""
    if isinstance(address, ServiceAddress):
        name = f"{address.name}.{address.namespace}.svc"
        return [name, f"{name}.cluster.local"]
    from urllib.parse import urlsplit

    host = urlsplit(address).hostname
    return [host] if host else []
