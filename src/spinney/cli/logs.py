"""``spinney logs``: what a pod's program has written."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from spinney.cli.session import Session, namespace_option, pass_session

if TYPE_CHECKING:
    from spinney.kube.client import KubeClient


@click.command()
@click.argument("pod")
@click.option("-c", "--container", default="", help="Which container; default: the first.")
@click.option("-f", "--follow", is_flag=True, help="Go on printing as the log grows.")
@click.option("--tail", type=click.IntRange(min=0), help="Only so many of the newest lines.")
@click.option("-p", "--previous", is_flag=True, help="The log of the run before a restart.")
@namespace_option
@pass_session
def logs(
    session: Session,
    pod: str,
    container: str,
    follow: bool,
    tail: int | None,
    previous: bool,
    namespace: str,
) -> None:
    """Print the log of a POD.

    \b
    Examples:
      spinney logs chat-0-decode-abcde
      spinney logs -f chat-0-router-xyz12 --tail 20
    """

    async def work(client: KubeClient) -> None:
        async for chunk in client.logs(
            pod,
            namespace,
            container=container,
            follow=follow,
            tail_lines=tail,
            previous=previous,
        ):
            sys.stdout.buffer.write(chunk)
            sys.stdout.flush()

    session.run(work)
