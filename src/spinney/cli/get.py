"""``spinney get``: objects as the API's own tables, or as JSON and YAML."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click
import msgspec
import yaml

from spinney.cli.session import Session, columns, namespace_option, output_option, pass_session
from spinney.kube.discovery import Discovery
from spinney.kube.transport import ApiRequest

if TYPE_CHECKING:
    from spinney.api.resource import Resource
    from spinney.kube.client import KubeClient

TABLE = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json"


@click.command()
@click.argument("kind")
@click.argument("name", required=False)
@namespace_option
@click.option("-A", "--all-namespaces", is_flag=True, help="Objects of all namespaces.")
@click.option("-l", "--selector", default="", help="Label selector, such as app=chat.")
@click.option("-w", "--watch", is_flag=True, help="Go on printing changes.")
@output_option
@pass_session
def get(
    session: Session,
    kind: str,
    name: str | None,
    namespace: str,
    all_namespaces: bool,
    selector: str,
    watch: bool,
    output: str,
) -> None:
    """List objects of a KIND, or show the one called NAME.

    \b
    Examples:
      spinney get pcs
      spinney get pods -o wide
      spinney get podgang chat-0 -o yaml
    """

    async def work(client: KubeClient) -> None:
        resource = await Discovery(client).resolve(kind)
        path = resource.path(None if all_namespaces else namespace, name)
        query = {"labelSelector": selector} if selector else {}
        if output in ("json", "yaml", "name"):
            await _print_objects(client, resource, path, query, output)
        elif watch:
            await _watch_table(client, path, query, wide=output == "wide", name=name)
        else:
            await _print_table(
                client, path, query, wide=output == "wide", namespaces=all_namespaces
            )

    session.run(work)


async def _print_objects(
    client: KubeClient, resource: Resource, path: str, query: dict[str, str], output: str
) -> None:
    body = msgspec.json.decode((await client.raw(ApiRequest("GET", path, query))).body)
    if output == "json":
        click.echo(msgspec.json.format(msgspec.json.encode(body), indent=2).decode())
    elif output == "yaml":
        click.echo(yaml.safe_dump(body, sort_keys=False, allow_unicode=True), nl=False)
    else:
        for item in body.get("items", [body]):
            click.echo(f"{resource.name}/{item['metadata']['name']}")


async def _print_table(
    client: KubeClient, path: str, query: dict[str, str], *, wide: bool, namespaces: bool
) -> None:
    response = await client.raw(ApiRequest("GET", path, query, accept=TABLE))
    rows = table_rows(msgspec.json.decode(response.body), wide=wide, namespaces=namespaces)
    if len(rows) < 2:
        click.echo("No objects found.", err=True)
        return
    for line in columns(rows):
        click.echo(line)


async def _watch_table(
    client: KubeClient, path: str, query: dict[str, str], *, wide: bool, name: str | None
) -> None:
    if name:
        path = path.rsplit("/", 1)[0]
        query = query | {"fieldSelector": f"metadata.name={name}"}
    query = query | {"watch": "true"}
    response = await client.raw(ApiRequest("GET", path, query, accept=TABLE))
    header: list[Any] = []
    widths: list[int] = []
    assert response.stream is not None
    async for line in response.stream:
        event = msgspec.json.decode(line)
        if event["type"] not in ("ADDED", "MODIFIED", "DELETED"):
            continue
        table = event["object"]
        if table.get("columnDefinitions"):
            header = table["columnDefinitions"]
        table["columnDefinitions"] = header
        rows = table_rows(table, wide=wide, namespaces=False)
        if not widths:
            widths = [
                max(len(str(cell)) for cell in cells) + 6 for cells in zip(*rows, strict=True)
            ]
            _echo_padded(rows[0], widths)
        for row in rows[1:]:
            _echo_padded(row, widths)


def _echo_padded(row: list[Any], widths: list[int]) -> None:
    cells = ("" if cell is None else str(cell) for cell in row)
    click.echo(" ".join(c.ljust(w) for c, w in zip(cells, widths, strict=True)).rstrip())


def table_rows(table: dict[str, Any], *, wide: bool, namespaces: bool) -> list[list[Any]]:
    """Return the header and rows of an API Table; *wide* adds its columns of lower priority."""
    definitions = table.get("columnDefinitions") or []
    shown = [i for i, column in enumerate(definitions) if wide or not column.get("priority")]
    header = [str(definitions[i]["name"]).upper() for i in shown]
    rows = [header if not namespaces else ["NAMESPACE", *header]]
    for row in table.get("rows") or []:
        cells = [row["cells"][i] for i in shown]
        metadata = (row.get("object") or {}).get("metadata") or {}
        rows.append(cells if not namespaces else [metadata.get("namespace", ""), *cells])
    return rows
