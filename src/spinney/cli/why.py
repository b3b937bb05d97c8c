"""``spinney why``: how something stands, and the smallest reason why it waits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
import msgspec
import yaml

from spinney.api import names
from spinney.cli.session import CommandError, Session, namespace_option, pass_session
from spinney.cli.snapshot import state_of
from spinney.errors import BadInputError

if TYPE_CHECKING:
    from spinney.scheduler.scenario import Objects
    from spinney.scheduler.what_if import Spot, Why

_PODS = ("pod", "pods", "po")
_GANGS = ("podgang", "podgangs", "pg", "gang", "podgroup", "podgroups")
_SETS = ("pcs", "podcliqueset", "podcliquesets")


@click.command()
@click.argument("target")
@namespace_option
@click.option("--snapshot", "snapshot_file", help="Ask this file instead of the cluster.")
@click.option(
    "-o", "--output", type=click.Choice(["text", "json", "yaml"]), default="text", show_default=True
)
@pass_session
def why(
    session: Session, target: str, namespace: str, snapshot_file: str | None, output: str
) -> None:
    """Say why TARGET has no node, by a fresh try on the state of now, and what would help.

    TARGET is pod/NAME, podgang/NAME or pcs/NAME.

    \b
    Examples:
      spinney why podgang/chat-0
      spinney why pcs/too-big
    """
    from spinney.scheduler.what_if import why as ask

    kind, _, name = target.partition("/")
    if not name:
        raise BadInputError(f"{target!r}: write pod/NAME, podgang/NAME or pcs/NAME")
    state, now_s = state_of(session, snapshot_file)
    answers = ask(state, _gangs(state, kind.lower(), name, namespace), now_s)
    if not answers:
        raise CommandError(f"there is no gang with pods to place for {target} in {namespace}")
    if output == "text":
        for answer in answers:
            _print(answer)
    else:
        document = msgspec.to_builtins(answers)
        click.echo(
            yaml.safe_dump(document, sort_keys=False, allow_unicode=True).rstrip()
            if output == "yaml"
            else msgspec.json.format(msgspec.json.encode(document), indent=2).decode()
        )


def _gangs(state: Objects, kind: str, name: str, namespace: str) -> list[str]:
    from spinney.scheduler.offline import gang_name
    from spinney.scheduler.sources.pods import membership

    if kind in _PODS:
        pod = next((p for p in state.pods if p.key == f"{namespace}/{name}"), None)
        if pod is None:
            raise CommandError(f"there is no pod {name!r} in {namespace}")
        return [gang_name(membership(pod).gang or pod.key)]
    if kind in _GANGS:
        return [f"{namespace}/{name}"]
    if kind in _SETS:
        mine = [g for g in state.gangs if g.labels.get(names.PART_OF) == name]
        return sorted(gang.key for gang in mine if gang.namespace == namespace)
    raise BadInputError(f"{kind!r} is none of pod, podgang, pcs")


def _print(answer: Why) -> None:
    click.echo(f"{answer.gang}: {answer.state}")
    if answer.reason:
        click.echo(f"  {answer.reason}")
    if answer.said:
        click.echo(f"  the scheduler said: {answer.said}")
    print_spots("on", answer.nodes)
    print_spots("would go to", answer.would_go)
    if answer.displacing:
        click.echo(f"  displacing {', '.join(answer.displacing)}")
    if answer.placement_score is not None:
        click.echo(f"  placement score {answer.placement_score:g}")


def print_spots(words: str, found: list[Spot]) -> None:
    """Print each node with its pods."""
    for spot in found:
        click.echo(f"  {words} {spot.node}: {', '.join(spot.pods)}")
