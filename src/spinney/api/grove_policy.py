"""What an installation of Spinney offers: which schedulers, topology, MNNVL.

Admission refuses what nothing here would act on. The policy is a value that the program passes to
the hook; it says nothing of how the offers are kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from spinney.api import names
from spinney.errors import BadInputError

if TYPE_CHECKING:
    from collections.abc import Iterable

KAI = "kai-scheduler"
VOLCANO = "volcano"
KUBE = "default-scheduler"
LPX = "lpx-scheduler"


@dataclass(frozen=True, slots=True)
class SchedulerBackend:
    """A scheduler that gangs can be handed to."""

    name: str
    """What pods name as their scheduler."""
    topology_aware: bool = False
    """Whether it keeps topology constraints, and bindings may name its topology objects."""


KNOWN_BACKENDS = (
    SchedulerBackend(names.SPINNEY_SCHEDULER, topology_aware=True),
    SchedulerBackend(KAI, topology_aware=True),
    SchedulerBackend(KUBE),
    SchedulerBackend(VOLCANO),
    SchedulerBackend(LPX),
)


@dataclass(frozen=True, slots=True)
class GrovePolicy:
    """Which parts of the ``grove.io`` API are switched on; by default all.

    Raises BadInputError when the schedulers are not unique or the default is none of them.
    """

    schedulers: tuple[SchedulerBackend, ...] = KNOWN_BACKENDS
    default_scheduler: str = names.SPINNEY_SCHEDULER
    """Who places pods that name no scheduler."""
    topology_enabled: bool = True
    mnnvl_enabled: bool = True
    """Whether ComputeDomains are made for ``grove.io/mnnvl-group``."""

    def __post_init__(self) -> None:
        known = [backend.name for backend in self.schedulers]
        if len(set(known)) < len(known):
            raise BadInputError(f"each scheduler may be enabled once, found {', '.join(known)}")
        if self.default_scheduler not in known:
            raise BadInputError(
                f"the default scheduler {self.default_scheduler!r} is not enabled; enable it or "
                f"choose one of: {', '.join(known) or 'none is enabled'}"
            )

    def backend(self, name: str) -> SchedulerBackend | None:
        """Return the enabled scheduler called *name*; empty means the default one."""
        wanted = name or self.default_scheduler
        return next((b for b in self.schedulers if b.name == wanted), None)

    @property
    def scheduler_names(self) -> str:
        """The enabled schedulers in words."""
        return ", ".join(backend.name for backend in self.schedulers)


def backends(wanted: Iterable[str]) -> tuple[SchedulerBackend, ...]:
    """Return the back ends by name; raise BadInputError for one that is not known."""
    known = {backend.name: backend for backend in KNOWN_BACKENDS}
    wanted = tuple(wanted)
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise BadInputError(
            f"no scheduler back end is called {', '.join(unknown)}; there are {', '.join(known)}"
        )
    return tuple(known[name] for name in wanted)


def placed_by_spinney(scheduler_names: Iterable[str]) -> GrovePolicy:
    """Return the policy where Spinney's scheduler places pods that name any of these."""
    return GrovePolicy(
        schedulers=tuple(SchedulerBackend(name, topology_aware=True) for name in scheduler_names)
    )
