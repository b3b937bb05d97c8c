"""The smallest reason why a demand was not placed, found by trying.

First the part that fails by itself: a leaf, before a group of them, before the gang. Then what of
it is missing, and where it came closest. Then the smallest change under which the real search
does place the whole demand: pods that are leaving gone, a constraint one level broader, a
constraint dropped, a node filter ignored. What was not tried is not claimed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from spinney.scheduler import search
from spinney.scheduler.demand import Demand, make_demand
from spinney.scheduler.plugins.registry import NODE_FILTERS
from spinney.scheduler.topology import domains

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from spinney.scheduler.search import Outcome
    from spinney.scheduler.session import PodClass, Session
    from spinney.scheduler.snapshot import Layout

TRIAL_STEPS = 200
"""The bound of each search that tries a relaxation."""

_IGNORED = {
    "unschedulable": "if cordoned nodes were used",
    "not-ready": "if nodes that are not ready were used",
    "taints": "if the pods tolerated the taints",
    "node-affinity": "without the node selector or affinity",
    "volumes": "if its volumes and claimed devices were reached from everywhere",
    "pod-affinity": "without pod affinity and anti-affinity",
    "topology-spread": "without topology spread constraints",
}
_BINARY = {"memory", "ephemeral-storage"}


@dataclass(frozen=True, slots=True)
class _Part:
    """A part of a demand under the constraints of the groups around it."""

    demand: Demand
    """The part itself."""
    within: Demand
    """The whole chain of groups down to the part, without its siblings."""
    chain: tuple[Demand, ...]
    """The groups from the outermost to the part."""


def explain(session: Session, demand: Demand, outcome: Outcome, topology: str = "") -> str:
    """Return why *demand* was not placed on *session*, in one line for people.

    Nothing placed on the session changes.
    """
    part = _smallest_failing(session, demand, topology)
    words = [_needs(session, part), _closest(session, part)]
    if outcome == "gave up":
        words.append("the search gave up before it had tried everything")
    words.append(
        _relaxation(session, demand, part, topology) or _whole_cluster(session, demand, part)
    )
    words.append(_refusals(session, part))
    return "; ".join(word for word in words if word)


# What fails


def _smallest_failing(session: Session, demand: Demand, topology: str) -> _Part:
    part = _Part(demand, demand, (demand,))
    while True:
        failing = next(
            (p for p in _parts_of(part) if not _would_fit(session, p.within, topology)), None
        )
        if failing is None:
            return part
        part = failing


def _parts_of(part: _Part) -> Iterator[_Part]:
    seen: set[int] = set()
    for child in part.demand.children:
        if child.signature in seen:
            continue
        seen.add(child.signature)
        chain = (*part.chain, child)
        within = child
        for group in reversed(part.chain):
            within = make_demand(
                group.name, group.required, group.preferred, (within,), (), group.held
            )
        yield _Part(child, within, chain)


def _would_fit(session: Session, demand: Demand, topology: str) -> bool:
    checkpoint = session.statement.checkpoint()
    outcome = search.place(session, demand, topology, steps=TRIAL_STEPS)
    session.statement.rollback(checkpoint)
    return outcome == "placed"


# What is missing


def _needs(session: Session, part: _Part) -> str:
    wanted = " and ".join(_pods(session, cls, count) for cls, count in part.demand.totals)
    text = f"needs {wanted}"
    if len(part.chain) > 1 and len(part.chain[0].children) > 1:
        text = f"{part.demand.name} {text}"
    narrow = _narrowest(part)
    if narrow is not None:
        text += f" in one {level_word(session.layout, narrow.required)}"
        if narrow not in (part.demand, part.chain[0]):
            text += f" of {narrow.name}"
    total = part.demand.need()
    main = part.demand.totals[0][0].main
    if part.demand.pods > 1:
        text += f" ({_amount(session, main, int(total[main]))})"
    if len(part.demand.children) > 1:
        text += "; each of its groups would fit alone, not all together"
    return text


def _narrowest(part: _Part) -> Demand | None:
    return next((group for group in reversed(part.chain) if group.required), None)


def _pods(session: Session, cls: PodClass, count: int) -> str:
    names = session.layout.resources
    asked = [
        _amount(session, column, amount)
        for column, amount in cls.columns
        if column == cls.main and names[column] != "pods"
    ]
    asked += [f"1 {name}" for name in cls.absent]
    noun = "pod" if count == 1 else "pods"
    text = f"{count} {noun}"
    if asked:
        text += f" with {' and '.join(asked)}" + (" each" if count > 1 else "")
    return text


def _amount(session: Session, column: int, milli: int) -> str:
    name = session.layout.resources[column]
    return f"{quantity_text(name, milli)} {name}"


def level_word(layout: Layout, key: str) -> str:
    """Return a node label key as people say it: its last part, where that means no other level."""
    word = key.rpartition("/")[2]
    keys = {level for levels in layout.topologies.values() for level in levels} | {key}
    return word if sum(other.rpartition("/")[2] == word for other in keys) == 1 else key


def quantity_text(resource: str, milli: int) -> str:
    """Return an amount in thousandths as people write it: ``4``, ``500m``, ``1.5Gi``."""
    if resource in _BINARY:
        return f"{milli / 1000 / 2**30:.4g}Gi"
    return str(milli // 1000) if milli % 1000 == 0 else f"{milli}m"


# Where it came closest


def _closest(session: Session, part: _Part) -> str:
    narrow = _narrowest(part)
    if narrow is None:
        return ""
    rows = session.layout.rows
    held = [group for group in part.chain if group.required and group.held]
    for group in held:
        codes = session.layout.domains(group.required).codes
        rows = rows[np.isin(codes[rows], codes[list(group.held)])]
    split = domains.split(session.layout, rows, narrow.required)
    if not len(split.rows):
        return f"no node has the label {narrow.required}" if not held else "its domain has no nodes"
    share, room = _capacity(session, part.demand, split)
    main = part.demand.totals[0][0].main
    free = split.sums(np.maximum(session.idle[split.rows, main], 0))
    best = int(np.lexsort((np.arange(split.count), -free, -share))[0])
    name = session.layout.domains(narrow.required).names[best]
    where = f"its running pods are in {name}, which" if narrow in held else f"best domain {name}"
    return f"{where} has {_amount(session, main, int(free[best]))} free{room(best)}"


def _capacity(
    session: Session, demand: Demand, split: domains.Partition
) -> tuple[domains.Floats, Callable[[int], str]]:
    cls, count = demand.totals[0]
    room = split.sums(np.minimum(session.room_bound(cls)[split.rows], count))
    share = domains.capacity(session, demand, split)
    if len(demand.totals) > 1:
        return share, lambda _: ""
    return share, lambda at: f", room for {int(room[at])} of the {count}" if count > 1 else ""


# What would help


def _relaxation(session: Session, demand: Demand, part: _Part, topology: str) -> str:
    for words, fits in _relaxations(session, demand, part, topology):
        if fits:
            return f"would fit {words}"
    return ""


def _relaxations(
    session: Session, demand: Demand, part: _Part, topology: str
) -> Iterator[tuple[str, bool]]:
    if session.leaving.any():
        with session.without_leaving():
            fits = _would_fit(session, demand, topology)
        yield "once the pods that are being deleted are gone", fits
    if kept_for := session.drains.holding():
        with session.drains.lifted():
            fits = _would_fit(session, demand, topology)
        yield f"in the room that is kept for {' and '.join(sorted(kept_for))}", fits
    for group in reversed(part.chain):
        if not group.required:
            continue
        above = session.layout.levels(group.required, topology)[-2::-1]
        outer = {g.required for g in part.chain if g is not group}
        for level in above:
            if level in outer:
                break
            broader = _changed(demand, group.signature, level)
            word = level_word(session.layout, level)
            yield f"in one {word} instead", _would_fit(session, broader, topology)
        dropped = _changed(demand, group.signature, "")
        words = f"without the {level_word(session.layout, group.required)} constraint"
        words += f" of {group.name}" if group is not part.chain[0] else ""
        yield words, _would_fit(session, dropped, topology)
    if demand.constrained:
        free = _changed(demand, None, "")
        yield "without any topology constraint", _would_fit(session, free, topology)
    for name, words in _IGNORED.items():
        if name in session.config.filters and _refuses(session, demand, name):
            with session.ignoring(name):
                fits = _would_fit(session, demand, topology)
            yield words, fits


def _changed(demand: Demand, signature: int | None, required: str) -> Demand:
    """Return *demand* with another required level in the groups of *signature*, or in all."""
    children = tuple(_changed(child, signature, required) for child in demand.children)
    changed = replace(demand, children=children)
    hit = signature is None or demand.signature == signature
    return make_demand(
        changed.name,
        required if hit else demand.required,
        demand.preferred,
        children,
        demand.batches,
        demand.held,
    )


def _refuses(session: Session, demand: Demand, name: str) -> bool:
    """Tell whether the filter *name* keeps the demand from any node."""
    plugin = NODE_FILTERS.get(name)
    for cls, _ in demand.totals:
        if plugin is None:
            if session.coupled(cls):
                return True
        elif not plugin.allows(session.layout, cls.shape).all():
            return True
    return False


def _whole_cluster(session: Session, demand: Demand, part: _Part) -> str:
    cls = part.demand.totals[0][0]
    nodes = session.allowed(cls.shape)
    free = int(np.maximum(session.idle[nodes, cls.main], 0).sum())
    total = int(session.layout.allocatable[nodes, cls.main].sum())
    name = session.layout.resources[cls.main]
    more = ""
    if demand.pods > part.demand.pods and cls.main == demand.totals[0][0].main:
        more = f" for the gang's {_amount(session, cls.main, int(demand.need()[cls.main]))}"
    return (
        f"not even the whole cluster would do{more}: {quantity_text(name, free)} of "
        f"{quantity_text(name, total)} {name} free"
    )


def _refusals(session: Session, part: _Part) -> str:
    cls = part.demand.totals[0][0]
    nodes = len(session.layout)
    room = int((session.room(cls) > 0).sum())
    refusals = session.refusals(cls)
    if not refusals:
        return f"{room}/{nodes} nodes have room for one" if not room else ""
    counts = ", ".join(f"{count} {reason}" for reason, count in refusals)
    return f"{room}/{nodes} nodes: {counts}"
