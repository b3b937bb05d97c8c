"""``spinney controllers``: the controllers alone, for a cluster that has its own API server.

They need the definitions of their kinds (``spinney crds``) and the webhook (``spinney webhook``),
which fills in the defaults they count on. A local cluster runs them inside its control plane.
"""

from __future__ import annotations

import asyncio
from random import Random, SystemRandom
from typing import TYPE_CHECKING, Any

import click

from spinney.clock import SystemClock
from spinney.cmd.leading import lead, leading_options, read_leading
from spinney.controllers.podclique.pod import WAIT_IMAGE
from spinney.controllers.setup import register
from spinney.ids import RandomIds
from spinney.kube.controller import Runtime
from spinney.kube.events import EventRecorder

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from spinney.cli.session import Session
    from spinney.kube.client import KubeClient

LEASE = "spinney-system/spinney-controllers"


@click.command(context_settings={"show_default": True})
@click.option(
    "--wait-image", default=WAIT_IMAGE, help="Image of the containers that wait for other roles."
)
@leading_options(LEASE)
@click.pass_obj
def controllers(session: Session, /, *, wait_image: str, **options: Any) -> None:
    """Make and keep what PodCliqueSets declare, on any Kubernetes cluster."""
    how = read_leading(options)
    client = session.connect()
    lead(client, how, lambda registry: _control(client, wait_image, registry))


async def _control(client: KubeClient, wait_image: str, registry: CollectorRegistry) -> None:
    clock, ids, rng = SystemClock(), RandomIds(), Random(SystemRandom().getrandbits(64))
    runtime = Runtime(client, clock, rng=rng, registry=registry)
    events = EventRecorder(client, clock, ids, "spinney-controllers")
    register(runtime, ids, events, wait_image=wait_image, registry=registry)
    async with asyncio.TaskGroup() as group:
        group.create_task(events.run())
        group.create_task(runtime.run())
