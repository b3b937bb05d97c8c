"""Kinds that a cluster may lack: resource claims, compute domains.

An informer of a kind that the API does not serve is never synced, and all controllers wait for
all informers. So each such kind is asked for first, and again now and then, for it may be
installed later. Whoever needs one that is missing is told so, and woken when it is there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypeVar

from spinney.kube.controller import Result
from spinney.kube.errors import NotFoundError
from spinney.log import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from spinney.api.meta import KubeObject
    from spinney.kube.controller import Runtime
    from spinney.kube.informer import Informer

T = TypeVar("T", bound="KubeObject")
State = Literal["unknown", "missing", "watched"]

LOOK_AGAIN_S = 60.0
"""How often a kind that is not served is asked for again."""

log = get_logger("optional-kinds")


class OptionalKinds:
    """Informers of the kinds that are there; reconciles names of resources."""

    def __init__(self, runtime: Runtime, kinds: Mapping[type[KubeObject], str]) -> None:
        """*kinds* has the label selector of each kind's informer."""
        self._runtime = runtime
        self._kinds = {kind.RESOURCE.name: (kind, labels) for kind, labels in kinds.items()}
        self._found: dict[str, Informer[Any]] = {}
        self._missing: set[str] = set()
        self._known: list[tuple[type[KubeObject], Callable[[], None]]] = []
        self._prepared: list[tuple[type[KubeObject], Callable[[Informer[Any]], None]]] = []
        controller = runtime.controller("optionalkinds", self)
        for name in self._kinds:
            controller.enqueue(name)

    def state(self, kind: type[KubeObject]) -> State:
        """Tell whether *kind* is watched, is not served, or has not been asked for yet."""
        name = kind.RESOURCE.name
        if name in self._found:
            return "watched"
        return "missing" if name in self._missing else "unknown"

    def informer(self, kind: type[T]) -> Informer[T] | None:
        """Return the informer of *kind*, synced; None while it is not watched."""
        return self._found.get(kind.RESOURCE.name)

    def prepare(self, kind: type[T], prepare: Callable[[Informer[T]], None]) -> None:
        """Call *prepare* with the informer of *kind* before it has its first list."""
        self._prepared.append((kind, prepare))

    def when_known(self, kind: type[KubeObject], call: Callable[[], None]) -> None:
        """Call *call* each time the state of *kind* has changed."""
        self._known.append((kind, call))

    async def reconcile(self, key: str) -> Result | None:
        """Watch the kind called *key* if it is served."""
        kind, labels = self._kinds[key]
        if key in self._found:
            return None
        try:
            await self._runtime.client.list(kind, limit=1)
        except NotFoundError:
            if key not in self._missing:
                self._missing.add(key)
                self._tell(kind)
            return Result(LOOK_AGAIN_S)
        informer = self._runtime.informer(kind, labels=labels)
        for wanted, prepare in self._prepared:
            if wanted is kind:
                prepare(informer)
        await informer.wait_synced()
        self._found[key] = informer
        self._missing.discard(key)
        log.info("kind is watched", kind=key)
        self._tell(kind)
        return None

    def _tell(self, kind: type[KubeObject]) -> None:
        for wanted, call in self._known:
            if wanted is kind:
                call()
