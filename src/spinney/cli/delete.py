"""``spinney delete``: by name, by selector, or by manifest."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from spinney.cli.manifest import read_manifests
from spinney.cli.session import CommandError, Session, namespace_option, pass_session
from spinney.errors import BadInputError
from spinney.kube.discovery import Discovery
from spinney.kube.errors import NotFoundError

if TYPE_CHECKING:
    from spinney.api.resource import Resource
    from spinney.kube.client import KubeClient

POLL_S = 0.2


@dataclass(frozen=True, slots=True)
class _Target:
    resource: Resource
    name: str
    namespace: str | None


@click.command()
@click.argument("kind", required=False)
@click.argument("names", nargs=-1)
@click.option("-f", "--filename", "files", multiple=True, help="Delete what a manifest names.")
@click.option("-l", "--selector", default="", help="Delete what has these labels.")
@click.option("--all", "everything", is_flag=True, help="Delete all objects of the kind.")
@click.option("--wait/--no-wait", default=True, show_default=True, help="Wait until it is gone.")
@click.option("--timeout", default=60.0, show_default=True, help="Seconds to wait at most.")
@click.option("--force", is_flag=True, help="Do not let pods end by themselves: kill at once.")
@namespace_option
@pass_session
def delete(
    session: Session,
    kind: str | None,
    names: tuple[str, ...],
    files: tuple[str, ...],
    selector: str,
    everything: bool,
    wait: bool,
    timeout: float,
    force: bool,
    namespace: str,
) -> None:
    """Delete objects of a KIND by NAME, or those that a manifest names.

    \b
    Examples:
      spinney delete pcs chat
      spinney delete -f examples/disaggregated/disaggregated.yaml
    """
    if not files and (kind is None or not (names or selector or everything)):
        raise BadInputError("say what to delete: a kind and names, -l, --all, or -f FILE")

    async def work(client: KubeClient) -> None:
        discovery = Discovery(client)
        if files:
            targets = await _of_manifests(discovery, files, namespace)
        else:
            assert kind is not None
            resource = await discovery.resolve(kind)
            targets = await _of_kind(client, resource, names, selector, namespace)
        for target in targets:
            await client.delete(
                target.resource,
                target.name,
                target.namespace,
                grace_period_s=0 if force else None,
            )
            click.echo(f"{target.resource.kind} {target.name!r} deleted")
        if wait:
            await _wait_gone(client, targets, timeout)

    session.run(work)


async def _of_manifests(
    discovery: Discovery, files: tuple[str, ...], namespace: str
) -> list[_Target]:
    targets = []
    for document in read_manifests(files):
        obj = document.object
        resource = await discovery.for_kind(obj["apiVersion"], obj["kind"])
        space = obj["metadata"].get("namespace", namespace) if resource.namespaced else None
        targets.append(_Target(resource, obj["metadata"]["name"], space))
    return targets


async def _of_kind(
    client: KubeClient, resource: Resource, names: tuple[str, ...], selector: str, namespace: str
) -> list[_Target]:
    space = namespace if resource.namespaced else None
    if names:
        return [_Target(resource, name, space) for name in names]
    found = await client.list(resource, space, labels=selector)
    return [_Target(resource, item["metadata"]["name"], space) for item in found.items]


async def _wait_gone(client: KubeClient, targets: list[_Target], timeout_s: float) -> None:
    remaining = list(targets)
    try:
        async with asyncio.timeout(timeout_s):
            while remaining:
                remaining = [t for t in remaining if await _exists(client, t)]
                if remaining:
                    await asyncio.sleep(POLL_S)
    except TimeoutError:
        left = ", ".join(f"{t.resource.kind} {t.name!r}" for t in remaining)
        raise CommandError(f"after {timeout_s:g} s still there: {left}") from None


async def _exists(client: KubeClient, target: _Target) -> bool:
    try:
        await client.get(target.resource, target.name, target.namespace)
    except NotFoundError:
        return False
    return True
