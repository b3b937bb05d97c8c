"""``spinney schedule``: scheduling cycles on a saved or hand-written state, without a cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
import msgspec
import yaml

from spinney.cli.session import columns
from spinney.cli.situation import config_of, text_of

if TYPE_CHECKING:
    from spinney.scheduler.offline import Report


@click.command()
@click.option("--snapshot", "-s", required=True, help="Snapshot file, YAML or JSON; - is stdin.")
@click.option("--cycles", default=1, show_default=True, type=click.IntRange(1, 10_000))
@click.option("--config", "config_file", help="Scheduler configuration, YAML or JSON.")
@click.option(
    "-o",
    "--output",
    type=click.Choice(["table", "json", "yaml"]),
    default="table",
    show_default=True,
    help="How to print: a table for people, JSON or YAML for programs.",
)
def schedule(snapshot: str, cycles: int, config_file: str | None, output: str) -> None:
    """Run scheduling cycles on a snapshot and print what they decide.

    What one cycle binds, evicts or deletes is done before the next. docs/scheduler-snapshot.md
    describes the file and the output.

    \b
    Examples:
      spinney schedule --snapshot examples/scheduling/racks.yaml
      spinney snapshot | spinney schedule --snapshot - --cycles 5 -o json
    """
    from spinney.scheduler.offline import OfflineCluster
    from spinney.scheduler.scenario import objects
    from spinney.scheduler.snapshot_file import first_cycle_s, read

    found = read(text_of(snapshot), snapshot)
    config = config_of(config_file)
    cluster = OfflineCluster(objects(found), config, first_cycle_s(found), found.period)
    print_as(output, cluster.run(cycles))


def print_as(output: str, report: Report) -> None:
    """Print *report* as *output* says."""
    if output == "json":
        click.echo(msgspec.json.format(msgspec.json.encode(report), indent=2).decode())
    elif output == "yaml":
        text = yaml.safe_dump(msgspec.to_builtins(report), sort_keys=False, allow_unicode=True)
        click.echo(text, nl=False)
    else:
        _print_table(report)


def _print_table(report: Report) -> None:
    for cycle in report.cycles:
        click.echo(f"Cycle {cycle.cycle}")
        rows = [[f"  {b.pod}", f"→ {b.node}", ""] for b in cycle.bindings]
        rows += [[f"  {p.pod}", f"→ {p.node}", "when it is free"] for p in cycle.pipelined]
        rows += [[f"  {e.pod}", f"leaves {e.node}", e.reason] for e in cycle.evictions]
        for line in columns(rows) if rows else ["  nothing placed"]:
            click.echo(line)
        for found in cycle.pending:
            click.echo(f"  {found.gang} {found.kind}: {found.reason}")
    click.echo("")
    header = ["GANG", "STATE", "ON NODES", "SCORE"]
    rows = [
        [
            g.gang,
            g.state,
            str(g.on_nodes),
            "" if g.placement_score is None else f"{g.placement_score:g}",
        ]
        for g in report.gangs
    ]
    for line in columns([header, *rows]):
        click.echo(line)
