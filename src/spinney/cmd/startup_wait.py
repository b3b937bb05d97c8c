"""``spinney startup-wait``: hold a pod back until the roles it starts after are ready.

It runs as the last init container of pods that have a start order, and needs no controller to be
alive. A parent is recognised by the label that carries its exact name: ``a`` is never taken
for ``a-b``. There is no timeout, because a model may load for an hour; a line every few seconds
says what is still missing. It keeps just the parents' pods in memory.
"""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING

import click

from spinney.api import names
from spinney.api.core import Pod
from spinney.api.meta import is_true
from spinney.errors import BadInputError
from spinney.kube.client import KubeClient
from spinney.kube.informer import Informer
from spinney.log import configure, get_logger

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from spinney.kube.informer import Change

PROGRESS_S = 10.0
"""How often it says what it still waits for."""

log = get_logger("startup-wait")


@click.command(
    epilog="Example: spinney startup-wait --namespace default --podcliques chat-0-prefill:2"
)
@click.option("--namespace", "-n", default="default", show_default=True, help="Of the pods.")
@click.option(
    "--podcliques",
    "parents",
    multiple=True,
    required=True,
    metavar="NAME:COUNT",
    help="A PodClique by its full name, and how many of its pods have to be ready. Repeat it.",
)
def startup_wait(namespace: str, parents: tuple[str, ...]) -> None:
    """Wait until other PodCliques have enough ready pods.

    The cluster is that of $KUBECONFIG, or the one whose pod this runs in.
    """
    from spinney.kube.http import HttpTransport

    configure()
    wanted = parse_parents(parents)

    async def main() -> None:
        client = KubeClient(HttpTransport.from_environment())
        try:
            await wait_for(client, namespace, wanted)
        finally:
            await client.close()

    asyncio.run(main())


def parse_parents(texts: Sequence[str]) -> dict[str, int]:
    """Read ``NAME:COUNT`` arguments, each possibly several with commas; raise BadInputError."""
    found = {}
    for text in (part.strip() for whole in texts for part in whole.split(",")):
        name, _, count = text.rpartition(":")
        if not name or not count.isdecimal():
            raise BadInputError(
                f"--podcliques: NAME:COUNT wanted, found {text!r}; for instance chat-0-prefill:2"
            )
        found[name] = int(count)
    return found


async def wait_for(client: KubeClient, namespace: str, wanted: Mapping[str, int]) -> None:
    """Return when each of the cliques *wanted* has that many ready pods in *namespace*."""
    selector = f"{names.POD_CLIQUE} in ({','.join(sorted(wanted))})"
    pods = Informer(client, Pod, namespace, rng=random.Random(), labels=selector)
    enough = asyncio.Event()

    def changed(_: Change[Pod]) -> None:
        if not missing(wanted, pods.list()):
            enough.set()

    pods.add_handler(changed)
    if not any(wanted.values()):
        return
    async with asyncio.TaskGroup() as group:
        watching = group.create_task(pods.run())
        while not enough.is_set():
            try:
                async with asyncio.timeout(PROGRESS_S):
                    await enough.wait()
            except TimeoutError:
                log.info("waiting", missing="; ".join(missing(wanted, pods.list())))
        watching.cancel()
    log.info("all that this pod starts after is ready", cliques=", ".join(sorted(wanted)))


def missing(wanted: Mapping[str, int], pods: Sequence[Pod]) -> list[str]:
    """Return which cliques have too few ready pods, and how many they have."""
    ready = dict.fromkeys(wanted, 0)
    for pod in pods:
        clique = pod.labels.get(names.POD_CLIQUE, "")
        if clique in ready and not pod.deleting and is_true(pod.status.conditions, "Ready"):
            ready[clique] += 1
    return [
        f"{name} has {ready[name]} of {count} ready pods"
        for name, count in sorted(wanted.items())
        if ready[name] < count
    ]
