"""``spinney scale``: set how many replicas are wanted."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from spinney.cli.session import Session, namespace_option, pass_session
from spinney.kube.discovery import Discovery

if TYPE_CHECKING:
    from spinney.kube.client import KubeClient


@click.command()
@click.argument("kind")
@click.argument("name")
@click.option("--replicas", type=click.IntRange(min=0), required=True, help="How many are wanted.")
@namespace_option
@pass_session
def scale(session: Session, kind: str, name: str, replicas: int, namespace: str) -> None:
    """Set how many replicas of an object are wanted.

    \b
    Examples:
      spinney scale pcs chat --replicas 2
      spinney scale podclique chat-0-decode --replicas 3
    """

    async def work(client: KubeClient) -> None:
        resource = await Discovery(client).resolve(kind)
        before = await client.get_scale(resource, name, namespace)
        await client.set_scale(resource, name, replicas, namespace)
        click.echo(f"{resource.kind} {name!r} scaled from {before.spec.replicas} to {replicas}")

    session.run(work)
