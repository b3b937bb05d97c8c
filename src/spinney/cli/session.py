"""What a verb gets to work with: a way to the API, the time, and where to print.

``cmd`` builds the real one; a test builds one over an in-process API server.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click

from spinney.errors import SpinneyError
from spinney.kube.errors import ApiError, NotFoundError
from spinney.kube.transport import TransportError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from pathlib import Path

    from spinney.clock import Clock
    from spinney.kube.client import KubeClient

V = TypeVar("V")

MAX_CAUSES = 20
"""How many broken rules of one object are printed; a manifest with more has one cause."""


class CommandError(SpinneyError):
    """A verb failed; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Session:
    """The surroundings of one verb."""

    home: Path
    """Where the local cluster keeps its state."""
    connect: Callable[[], KubeClient]
    """Returns a client of the cluster that the user means; raises SpinneyError if none is named."""
    clock: Clock
    launch: Callable[[Sequence[str], Path], int]
    """Starts ``spinney ARGUMENTS`` in the background with its output in a file; returns the pid."""

    def run(self, work: Callable[[KubeClient], Awaitable[V]]) -> V:
        """Run *work* with a client and close it; what the API refuses becomes a CommandError."""
        return asyncio.run(self._run(work))

    async def _run(self, work: Callable[[KubeClient], Awaitable[V]]) -> V:
        client = self.connect()
        try:
            return await work(client)
        except ApiError as error:
            raise CommandError(explain(error)) from error
        except TransportError as error:
            raise CommandError(
                f"the cluster does not answer: {error}. Start a local one with `spinney up`, "
                f"or name another with --kubeconfig."
            ) from error
        finally:
            await client.close()


def explain(error: ApiError) -> str:
    """Return what a refusal says, with a line for each field that is wrong."""
    details = error.status.details
    causes = [c for c in details.causes if c.field or c.message] if details else []
    if len(causes) < 2 and isinstance(error, NotFoundError):
        return f"{error}. `spinney get` with the kind alone lists what there is."
    if len(causes) < 2:
        return str(error)
    lines = [f"  {c.field}: {c.message}" if c.field else f"  {c.message}" for c in causes]
    if len(lines) > MAX_CAUSES:
        lines = [*lines[:MAX_CAUSES], f"  … and {len(lines) - MAX_CAUSES} more"]
    assert details is not None
    head = f"{details.kind or 'object'} {details.name!r} is refused"
    return "\n".join([f"{head}, {len(causes)} rules are broken:", *lines])


pass_session = click.make_pass_decorator(Session)

namespace_option = click.option(
    "-n", "--namespace", default="default", show_default=True, help="Namespace of the objects."
)
output_option = click.option(
    "-o",
    "--output",
    type=click.Choice(["table", "wide", "json", "yaml", "name"]),
    default="table",
    show_default=True,
    help="How to print: a table for people, JSON or YAML for programs.",
)


def columns(rows: Sequence[Sequence[Any]], gap: int = 3) -> list[str]:
    """Return *rows* as lines whose cells stand under each other; the first row is the header."""
    texts = [["" if cell is None else str(cell) for cell in row] for row in rows]
    if not texts:
        return []
    widths = [max(len(row[i]) for row in texts if i < len(row)) for i in range(len(texts[0]))]
    return [
        (" " * gap)
        .join(cell.ljust(width) for cell, width in zip(row, widths, strict=False))
        .rstrip()
        for row in texts
    ]
