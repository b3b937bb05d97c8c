"""A plan: which revision each unit of a role is to be of, by index.

A unit is a pod of a clique or a replica of a scaling group. The set's reconciler writes plans as
annotations; those of the clique and the group carry them out and decide nothing themselves: a unit
that is not as planned goes, one that is missing is made as planned.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

PLAN = "spinney.dev/plan"
"""Annotation of a clique or scaling group in a coherent update: runs of ``hash*count``."""
ROLLOUT = "spinney.dev/rollout"
"""Annotation of a clique or scaling group: the revision it may replace its running units for.
Absent where running units are left alone."""
SHARED = "spinney.dev/shared-revisions"
"""Annotation of a scaling group during an update: by pod-template hash of a role that stays as it
is, the revisions it is part of, as the label `names.REVISION` has them: ``hash=a.b,…``."""
OWN = (PLAN, ROLLOUT, SHARED)

Plan = tuple[str, ...]
HOLE = ""
"""In a plan: no unit has this index. Scaling in leaves such holes among the pods of a clique."""


def units_of(plan: Plan) -> Plan:
    """Return the revisions of the units of *plan*, without its holes."""
    return tuple(own for own in plan if own != HOLE)


def write_plan(plan: Iterable[str]) -> str:
    """Return *plan* as an annotation has it; an empty plan is ``-``."""
    runs = [f"{revision}*{len(list(run))}" for revision, run in itertools.groupby(plan)]
    return ",".join(runs) or "-"


def read_plan(annotations: Mapping[str, str]) -> Plan | None:
    """Return the plan that an object has, None if it has none, or none that can be read."""
    text = annotations.get(PLAN)
    if not text:
        return None
    units: list[str] = []
    if text == "-":
        return ()
    for run in text.split(","):
        revision, star, count = run.rpartition("*")
        if not star or not count.isdecimal():
            return None
        units += [revision] * int(count)
    return tuple(units)


def write_shared(shared: Mapping[str, str]) -> str:
    """Return *shared*, labels by pod-template hash, as an annotation has it."""
    return ",".join(f"{pod_hash}={label}" for pod_hash, label in sorted(shared.items()))


def read_shared(annotations: Mapping[str, str]) -> dict[str, str]:
    """Return what the annotation `SHARED` says; nothing where it is absent."""
    pairs = (pair.partition("=") for pair in annotations.get(SHARED, "").split(","))
    return {pod_hash: label for pod_hash, _, label in pairs if pod_hash and label}
