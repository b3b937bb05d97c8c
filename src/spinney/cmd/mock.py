"""``spinney mock``: a worker without weights, which takes as long as a profile says."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from spinney.cmd.group import MemberModel, place_in_group, run_member
from spinney.cmd.worker import run_worker, worker_options, worker_settings

if TYPE_CHECKING:
    from collections.abc import Callable

    from spinney.clock import Clock
    from spinney.cmd.group import Place
    from spinney.engine.assembly import Engine
    from spinney.engine.group.data_link import DataLink
    from spinney.engine.group.member import Membership
    from spinney.ids import IdSource
    from spinney.tracing import Tracer

MOCK = "mock"
"""What the processes of a mock's group have in common."""
EXAMPLES = """\b
Examples:
  spinney mock                                          paced as the demo model on a CPU
  spinney mock --profile llama-8b-h100 --port 8001      paced as a model on a GPU
  spinney mock --profile mine.yaml --speed-up 10        ten times as fast as the profile says
"""


@click.command(epilog=EXAMPLES, context_settings={"show_default": True})
@click.option(
    "--model", default="demo", help="Whose tokenizer to speak with: a model directory, or 'demo'."
)
@click.option("--profile", default="demo-cpu", help="A shipped profile, or a file.")
@click.option("--speed-up", default=1.0, help="Divides every modelled time.")
@click.option(
    "--distance",
    type=click.Choice(["host", "rack", "zone", "far"]),
    default="host",
    help="How far the workers are that KV is pulled from.",
)
@worker_options
def mock(**options: Any) -> None:
    """Serve made-up tokens in modelled time; everything else is as with spinney engine.

    HTTP, batching, KV blocks and their events, hand-over, metrics and draining are the engine's
    own. A token is a function of all tokens before it, as far as the KV blocks really hold them.
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    place = place_in_group(options)
    if place.rank:
        return run_member(options, place, _idle_part)
    return _serve_mock(options, place)


def _serve_mock(options: dict[str, Any], place: Place) -> None:
    from spinney.engine.group.leader import Terms
    from spinney.engine.mock.assembly import MockSettings, build_mock
    from spinney.perfmodel.profile import load_step_model
    from spinney.perfmodel.step_model import Distance

    model = load_step_model(options["profile"])
    how = MockSettings(model, options["speed_up"], Distance[options["distance"].upper()])
    settings = worker_settings(options)
    leader = place.leader()
    terms = Terms(place.ranks, MOCK, MOCK, settings.block_size, settings.num_blocks)

    def build(clock: Clock, ids: IdSource, timer: Callable[[], float], tracer: Tracer) -> Engine:
        return build_mock(
            settings, how, clock=clock, ids=ids, timer=timer, tracer=tracer, group=leader
        )

    run_worker(options, build, None if leader is None else lambda: leader.form(terms))


def _idle_part() -> MemberModel:
    """Return what a member of a mock does: it is there, and waits for the end."""

    def build(_: int, membership: Membership) -> Callable[[], None]:
        return lambda: _until_closed(membership.link)

    return MemberModel(MOCK, MOCK, build)


def _until_closed(link: DataLink) -> None:
    link.receive()
