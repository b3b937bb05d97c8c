"""Bindings that take long, beside the cycles: a volume has to be made first, or a GPU be held.

Their pods count as placed all the while, so nobody else is given their room; cycles go on for
others. A restart forgets them: the volume claims say which node was chosen, and the pods are placed
there again. A GPU that is held for sharers that are placed elsewhere after it is let go.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence, Set

    from spinney.kube.controller import Controller, Runtime
    from spinney.scheduler.binder import Binder, BindReport
    from spinney.scheduler.verdict import Binding

CONCURRENT_GANGS = 64
"""Gangs that wait at a time; the next ones wait for one of them."""


class LateBindings:
    """The gangs that are being bound beside the cycles."""

    def __init__(
        self, runtime: Runtime, binder: Binder, done: Callable[[Set[str], BindReport], None]
    ) -> None:
        self._binder = binder
        self._done = done
        self._waiting: dict[str, Sequence[Binding]] = {}
        self._controller: Controller = runtime.controller(
            "late-bindings", self, concurrency=CONCURRENT_GANGS
        )

    def put(self, gang: str, bindings: Sequence[Binding]) -> None:
        """Bind the pods of *gang*, which count as placed from now on."""
        self._binder.assume(bindings)
        self._waiting[gang] = bindings
        self._controller.enqueue(gang)

    async def reconcile(self, key: str) -> None:
        """Bind one gang."""
        bindings = self._waiting.pop(key, ())
        if bindings:
            self._done({key}, await self._binder.bind(bindings))
