"""``spinney fit``: would a manifest be placed now, where, and if not, what would help?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from spinney.cli.manifest import read_manifests
from spinney.cli.session import Session, namespace_option, pass_session
from spinney.cli.situation import config_option, situation_of
from spinney.cli.why import print_document, reason_lines, spot_lines

if TYPE_CHECKING:
    from spinney.scheduler.what_if import FitReport, GangFit, Room


@click.command()
@click.option("-f", "--filename", "files", multiple=True, required=True, help="File, folder or -.")
@namespace_option
@click.option("--snapshot", "snapshot_file", help="Ask this file instead of the cluster.")
@config_option
@click.option(
    "--copies", type=click.IntRange(1, 1000), help="Say how many copies would fit, of so many."
)
@click.option(
    "-o", "--output", type=click.Choice(["text", "json", "yaml"]), default="text", show_default=True
)
@pass_session
def fit(
    session: Session,
    files: tuple[str, ...],
    namespace: str,
    snapshot_file: str | None,
    config_file: str | None,
    copies: int | None,
    output: str,
) -> int:
    """Say whether a manifest would be placed now, and where. Nothing is created.

    The exit code is 0 when all of it fits, 1 when not, 2 when the manifest cannot be read.

    PodCliqueSets are taken apart by the controllers themselves. Of Deployments, StatefulSets, Jobs
    and LeaderWorkerSets the pods are those of their templates; PodGangs, PodGroups and Pods are
    taken as they are.

    \b
    Examples:
      spinney fit -f examples/too-big/too-big.yaml
      spinney fit -f service.yaml --copies 10
      spinney fit -f service.yaml --snapshot now.yaml -o json
    """
    from spinney.cli.compiled import compiled
    from spinney.scheduler.what_if import room_for, would_fit

    documents = read_manifests(files)
    state, now_s, config = situation_of(session, snapshot_file, config_file)
    wanted = compiled([document.object for document in documents], state, namespace)
    if copies is not None:
        room = room_for(state, wanted, copies, now_s, config)
        if output != "text":
            print_document(room, output)
        else:
            _print_room(room)
        return 0 if room.fits == room.of else 1
    report = would_fit(state, wanted, now_s, config)
    if output == "text":
        _print(report)
    else:
        print_document(report, output)
    return 0 if report.fits else 1


def _print_room(room: Room) -> None:
    click.echo(f"{room.fits} of {room.of} copies fit")
    for line in reason_lines(room.reason):
        click.echo(line)


def _print(report: FitReport) -> None:
    for gang in report.gangs:
        click.echo(f"{gang.gang}: {_verdict(gang)}")
        for line in (*spot_lines("on", gang.nodes, named=0), *reason_lines(gang.reason)):
            click.echo(line)
        if gang.displacing:
            click.echo(f"  would be placed once these leave for it: {', '.join(gang.displacing)}")


def _verdict(gang: GangFit) -> str:
    if not gang.fits:
        return "does not fit"
    score = "" if gang.placement_score is None else f", placement score {gang.placement_score:g}"
    return f"fits, {gang.placed} of {gang.wanted} pods{score}"
