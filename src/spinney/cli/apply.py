"""``spinney apply``: server-side apply of manifests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
import msgspec

from spinney.cli.manifest import Document, read_manifests
from spinney.cli.session import CommandError, Session, explain, pass_session
from spinney.kube import transport as wire
from spinney.kube.discovery import Discovery
from spinney.kube.errors import ApiError, NotFoundError
from spinney.kube.transport import ApiRequest

if TYPE_CHECKING:
    from spinney.api.resource import Resource
    from spinney.kube.client import KubeClient

MANAGER = "spinney-cli"


@click.command()
@click.option("-f", "--filename", "files", multiple=True, required=True, help="File, folder or -.")
@click.option(
    "-n", "--namespace", default="default", show_default=True, help="For objects that name none."
)
@click.option("--dry-run", is_flag=True, help="Let the server check everything and store nothing.")
@click.option("--force", is_flag=True, help="Take over fields that others have set.")
@pass_session
def apply(
    session: Session, files: tuple[str, ...], namespace: str, dry_run: bool, force: bool
) -> None:
    """Create or change objects from a manifest.

    \b
    Examples:
      spinney apply -f examples/disaggregated/disaggregated.yaml
      cat service.yaml | spinney apply -f - --dry-run
    """
    documents = read_manifests(files)

    async def work(client: KubeClient) -> list[str]:
        discovery = Discovery(client)
        failures = []
        for document in documents:
            try:
                verb = await _apply(client, discovery, document, namespace, dry_run, force)
            except ApiError as error:
                failures.append(f"{document.source}: {document.title}: {explain(error)}")
                continue
            note = " (dry run)" if dry_run else ""
            click.echo(f"{document.title} {verb}{note}")
        return failures

    failures = session.run(work)
    if failures:
        raise CommandError("\n".join(failures))


async def _apply(
    client: KubeClient,
    discovery: Discovery,
    document: Document,
    namespace: str,
    dry_run: bool,
    force: bool,
) -> str:
    obj = document.object
    resource = await discovery.for_kind(obj["apiVersion"], obj["kind"])
    if resource.namespaced:
        obj["metadata"].setdefault("namespace", namespace)
    before = await _version(client, resource, obj)
    query = {"fieldManager": MANAGER, "fieldValidation": "Strict"}
    query |= {"dryRun": "All"} if dry_run else {}
    query |= {"force": "true"} if force else {}
    path = resource.path(obj["metadata"].get("namespace"), obj["metadata"]["name"])
    body = msgspec.json.encode(obj)
    request = ApiRequest("PATCH", path, query, body, wire.APPLY_PATCH)
    stored = msgspec.json.decode((await client.raw(request)).body)
    if before is None:
        return "created"
    return "unchanged" if stored["metadata"]["resourceVersion"] == before else "configured"


async def _version(
    client: KubeClient, resource: Resource, obj: dict[str, dict[str, str]]
) -> str | None:
    try:
        found = await client.get(
            resource, obj["metadata"]["name"], obj["metadata"].get("namespace")
        )
    except NotFoundError:
        return None
    return str(found["metadata"]["resourceVersion"])
