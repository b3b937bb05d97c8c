"""``spinney crds``: the definitions of the kinds, for a cluster that has its own API server."""

from __future__ import annotations

import click
import yaml

from spinney.api.crd import crd_documents


@click.command(epilog="To install them: spinney crds | kubectl apply --server-side -f -")
@click.option(
    "--others",
    is_flag=True,
    help="Also kinds of KAI and of NVIDIA's driver, for a cluster that has neither.",
)
def crds(*, others: bool) -> None:
    """Print the CustomResourceDefinitions."""
    click.echo(yaml.safe_dump_all(crd_documents(others=others), sort_keys=False), nl=False)
