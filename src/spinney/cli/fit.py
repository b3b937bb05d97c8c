"""``spinney fit``: would a manifest be placed now, where, and if not, what would help?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
import msgspec
import yaml

from spinney.cli.manifest import read_manifests
from spinney.cli.session import Session, namespace_option, pass_session
from spinney.cli.snapshot import state_of
from spinney.cli.why import print_spots

if TYPE_CHECKING:
    from spinney.scheduler.what_if import FitReport, GangFit


@click.command()
@click.option("-f", "--filename", "files", multiple=True, required=True, help="File, folder or -.")
@namespace_option
@click.option("--snapshot", "snapshot_file", help="Ask this file instead of the cluster.")
@click.option(
    "-o", "--output", type=click.Choice(["text", "json", "yaml"]), default="text", show_default=True
)
@pass_session
def fit(
    session: Session,
    files: tuple[str, ...],
    namespace: str,
    snapshot_file: str | None,
    output: str,
) -> int:
    """Say whether a manifest would be placed now. Nothing is created; exit code 1 means no.

    PodCliqueSets are taken apart by the controllers themselves; PodGangs, PodGroups and Pods are
    taken as they are.

    \b
    Examples:
      spinney fit -f examples/too-big/too-big.yaml
      spinney fit -f service.yaml --snapshot now.yaml -o json
    """
    from spinney.cli.compiled import compiled
    from spinney.scheduler.what_if import would_fit

    documents = read_manifests(files)
    state, now_s = state_of(session, snapshot_file)
    wanted = compiled([document.object for document in documents], state, namespace)
    report = would_fit(state, wanted, now_s)
    if output == "text":
        _print(report)
    else:
        document = msgspec.to_builtins(report)
        click.echo(
            yaml.safe_dump(document, sort_keys=False, allow_unicode=True).rstrip()
            if output == "yaml"
            else msgspec.json.format(msgspec.json.encode(document), indent=2).decode()
        )
    return 0 if report.fits else 1


def _print(report: FitReport) -> None:
    for gang in report.gangs:
        click.echo(f"{gang.gang}: {_verdict(gang)}")
        print_spots("on", gang.nodes)
        if gang.reason:
            click.echo(f"  {gang.reason}")
        if gang.displacing:
            click.echo(f"  would be placed once these leave for it: {', '.join(gang.displacing)}")


def _verdict(gang: GangFit) -> str:
    if not gang.fits:
        return "does not fit"
    score = "" if gang.placement_score is None else f", placement score {gang.placement_score:g}"
    return f"fits, {gang.placed} of {gang.wanted} pods{score}"
