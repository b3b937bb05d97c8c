"""The ``spinney`` command: which verbs there are, and how failures reach a person.

Verbs are imported when they are used, so that ``spinney --help`` and a worker's start cost only
what they need. A `SpinneyError` is printed as its message; a traceback means a fault of ours and
goes to the log only with ``SPINNEY_DEBUG`` set.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import TYPE_CHECKING

import click

from spinney import __version__
from spinney.errors import BadInputError, SpinneyError

if TYPE_CHECKING:
    from collections.abc import Sequence

BAD_INPUT = 2
FAILURE = 1
INTERRUPTED = 130

_VERBS: dict[str, dict[str, tuple[str, str]]] = {
    "A cluster on this machine": {
        "demo": ("spinney.cli.demo", "Show the main job, step by step."),
        "up": ("spinney.cli.up", "Start a local cluster."),
        "down": ("spinney.cli.down", "Stop the local cluster."),
        "status": ("spinney.cli.status", "Show nodes, services and what is pending."),
    },
    "Services": {
        "apply": ("spinney.cli.apply", "Create or change objects from a manifest."),
        "get": ("spinney.cli.get", "List objects."),
        "describe": ("spinney.cli.describe", "Show one object with its conditions and events."),
        "scale": ("spinney.cli.scale", "Set how many replicas are wanted."),
        "logs": ("spinney.cli.logs", "Print a pod's log."),
        "delete": ("spinney.cli.delete", "Delete objects."),
        "chat": ("spinney.cli.chat", "Talk to a model that is being served."),
    },
    "Placing": {
        "why": ("spinney.cli.why", "Say why something is pending, or was served as it was."),
        "fit": ("spinney.cli.fit", "Say whether a manifest would fit now, and where."),
        "snapshot": ("spinney.cli.snapshot", "Save the cluster's scheduling state."),
        "schedule": ("spinney.cli.schedule", "Run scheduling cycles on a snapshot."),
    },
    "Programs of a cluster": {
        "engine": ("spinney.cmd.engine", "Serve a model: prefill, decode or both."),
        "mock": ("spinney.cmd.mock", "Serve made-up tokens in modelled time."),
        "router": ("spinney.cmd.router", "Route requests to prefill and decode workers."),
        "control-plane": ("spinney.cmd.control_plane", "API server, controllers and scheduler."),
        "nodeagent": ("spinney.cmd.nodeagent", "Run the pods of this machine's nodes."),
        "controllers": ("spinney.cmd.controllers", "Keep PodCliqueSets on any cluster."),
        "scheduler": ("spinney.cmd.scheduler", "Place pods on any Kubernetes cluster."),
        "webhook": ("spinney.cmd.webhook", "Answer an API server's admission reviews."),
        "crds": ("spinney.cmd.crds", "Print the definitions of the kinds."),
        "startup-wait": ("spinney.cmd.startup_wait", "Wait until other roles are ready."),
        "gpu-reservation": ("spinney.cmd.gpu_reservation", "Hold a GPU for pods that share it."),
    },
    "": {"supervise": ("spinney.cmd.supervise", "Keep a local cluster's processes running.")},
}


class _LazyGroup(click.Group):
    """A group that imports a verb's module when the verb is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for heading, verbs in _VERBS.items() if heading for name in verbs]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        for verbs in _VERBS.values():
            if cmd_name in verbs:
                module = importlib.import_module(verbs[cmd_name][0])
                command = getattr(module, cmd_name.replace("-", "_"))
                assert isinstance(command, click.Command)
                return command
        return None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for heading, verbs in _VERBS.items():
            if not heading:
                continue
            with formatter.section(heading):
                formatter.write_dl([(name, about) for name, (_, about) in verbs.items()])


@click.group(
    cls=_LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Start with: spinney demo",
)
@click.version_option(__version__, prog_name="spinney")
@click.option(
    "--kubeconfig",
    type=click.Path(dir_okay=False),
    help="The cluster to talk to. Default: $KUBECONFIG, the local cluster, ~/.kube/config.",
)
@click.pass_context
def spinney(ctx: click.Context, kubeconfig: str | None) -> None:
    """Serve large language models with prefill and decode as separate services."""
    from spinney.cmd.session import build_session
    from spinney.log import configure

    # Standard output is for what was asked; a verb that is a program says anew how it logs.
    configure(level="warning", final=False)
    ctx.obj = build_session(kubeconfig)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit code; the console script calls ``sys.exit`` with it."""
    try:
        result = spinney.main(
            args=None if arguments is None else list(arguments),
            prog_name="spinney",
            standalone_mode=False,
        )
    except click.exceptions.Abort:
        return INTERRUPTED
    except click.exceptions.Exit as done:
        return done.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has gone; Python would complain again while it shuts down.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILURE
    except SpinneyError as error:
        return _report(error)
    except BaseExceptionGroup as group:
        # Tasks that failed together: where all say what is wrong, the first one is enough.
        said, faults = group.split(SpinneyError)
        if said is None or faults is not None:
            raise
        return _report(_first(said))
    return result if isinstance(result, int) else 0


def _first(error: BaseException) -> SpinneyError:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, SpinneyError)
    return error


def _report(error: SpinneyError) -> int:
    if os.environ.get("SPINNEY_DEBUG"):
        raise error
    click.echo(f"Error: {error}", err=True)
    return BAD_INPUT if isinstance(error, BadInputError) else FAILURE


if __name__ == "__main__":
    sys.exit(main())
