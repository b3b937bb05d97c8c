"""Making room for a gang by displacing others: the part that reclaim, preemption and moving share.

An action names the candidates, in the order in which they had better go. Here the fewest of them
are found that do: every set is tried on a copied snapshot in which its pods are gone, with the real
search and the real filters. What is displaced is a pod above a gang's minimum, or a whole gang;
never half of one. Nothing on the session changes until a plan is carried out, and a plan that is
carried out keeps the room for whom it was made.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from spinney.clock import parse_rfc3339
from spinney.scheduler import search
from spinney.scheduler.demand import floor_demand, growth_demand
from spinney.scheduler.queues.ledger import pods_amount
from spinney.scheduler.queues.model import NOTHING, Amounts, minus
from spinney.scheduler.reservations import spots_of
from spinney.scheduler.session import Session, demand_amount
from spinney.scheduler.verdict import Eviction, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from spinney.scheduler.demand import Demand
    from spinney.scheduler.gangs import Gang, Group
    from spinney.scheduler.memory import Spot
    from spinney.scheduler.shapes import PodInfo


PLACES_TRIED = 8
"""Domains that are looked at one by one for the cheapest to clear."""


@dataclass(frozen=True, slots=True, eq=False)
class Unit:
    """What is displaced together: one surplus pod, or what a gang has besides surplus."""

    gang: Gang
    pods: tuple[PodInfo, ...]
    surplus: bool
    amount: Amounts


@dataclass(frozen=True, slots=True)
class Plan:
    """A set of victims that makes room, where the gang then goes, and where victims may go on."""

    gang: Gang
    spots: tuple[Spot, ...]
    victims: tuple[Unit, ...]
    moves: dict[str, tuple[Spot, ...]]
    """By victim gang: its pods that run elsewhere afterwards."""


# Candidates


def candidates(session: Session, gang: Gang) -> Iterator[Gang]:
    """Yield the gangs on nodes that may be displaced for *gang* as far as they themselves go."""
    mine = _family(gang)
    displaced = {eviction.gang for eviction in session.evictions}
    for other in session.snapshot.standing:
        if other.preemptible and other.key not in displaced and _family(other) != mine:
            yield other


def _family(gang: Gang) -> str:
    for leaf in gang.root.leaves():
        for pod in (*leaf.active, *leaf.pending):
            return pod.base_gang or pod.gang or pod.key
    return gang.key


def units_of(session: Session, gang: Gang, protected_s: float) -> list[Unit]:
    """Return what may be displaced of *gang*, surplus first; its minimum not for *protected_s*."""
    found = session.units.get(gang.key)
    if found is None:
        found = session.units[gang.key] = _all_units(gang)
    if found and not found[-1].surplus and _protected(session, found[-1].pods, protected_s):
        return found[:-1]
    return found


def _all_units(gang: Gang) -> list[Unit]:
    active = [pod for leaf in gang.root.leaves() for pod in leaf.active]
    if not all(pod.ours for pod in active):
        return []
    extra = _surplus(gang) if gang.satisfied else []
    units = [Unit(gang, (pod,), True, pods_amount((pod,))) for pod in extra]
    spare = {pod.key for pod in extra}
    rest = tuple(pod for pod in active if pod.key not in spare)
    if rest:
        units.append(Unit(gang, rest, False, pods_amount(rest)))
    return units


def _surplus(gang: Gang) -> list[PodInfo]:
    """Return the pods above the minimum of their group, the youngest first."""
    found: list[PodInfo] = []
    for leaf in gang.root.leaves():
        eldest = sorted(leaf.active, key=lambda pod: (pod.started, pod.created, pod.key))
        found += eldest[leaf.minimum :]
    return sorted(found, key=lambda pod: (pod.started, pod.created, pod.key), reverse=True)


def _protected(session: Session, pods: Sequence[PodInfo], protected_s: float) -> bool:
    if protected_s <= 0:
        return False
    safe_until = max(_started_s(pod) for pod in pods) + protected_s
    if safe_until > session.snapshot.now:
        session.wake(safe_until)
        return True
    return False


def _started_s(pod: PodInfo) -> float:
    try:
        return parse_rfc3339(pod.started)
    except ValueError:
        return 0.0


# Trying


@dataclass(slots=True)
class _Attempt:
    """The search for the fewest victims for one gang."""

    session: Session
    gang: Gang
    demand: Demand
    all_move: bool
    """Whether every victim has to find another place."""
    trials: int
    trial: Session | None = None
    """The last one that succeeded."""
    spots: tuple[Spot, ...] = ()
    """Where the gang went in it."""
    rows: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    """The nodes of `spots`."""
    coupled: bool = False

    def works(self, units: Sequence[Unit]) -> bool:
        """Try with *units* gone: first what can be counted, then the real search."""
        if not may_fit(self.session, self.demand, units):
            return False
        self.trials -= 1
        if not _permitted(self.session, self.gang, self.demand, units):
            return False
        return self.fits(units)

    def fits(self, units: Sequence[Unit]) -> bool:
        """Like `works`, whatever the queue's bounds."""
        trial = without(self.session, units)
        wanted = floor_demand(trial, self.gang)
        steps = self.session.config.victim_steps
        if wanted is None or search.place(trial, wanted, self.gang.topology, steps=steps) != (
            "placed"
        ):
            return False
        spots = spots_of(trial, trial.statement.placements)
        if self.all_move:
            moves = _moves(self.session, trial, self.gang, self.demand, units)
            if sum(map(len, moves.values())) < sum(len(u.pods) for u in units):
                return False
        self.spots, self.trial = spots, trial
        self.rows = np.unique([trial.layout.index[spot.node] for spot in spots])
        self.coupled = any(trial.coupled(cls) for cls, _ in wanted.totals)
        return True

    def shortest_prefix(self, units: Iterable[Unit]) -> Sequence[Unit]:
        """Return the shortest beginning of *units* that does, by doubling and bisection.

        Empty when none does. No more of *units* is asked for than is tried.
        """
        source = iter(units)
        found: list[Unit] = []
        tried = 0
        while self.trials > 0:
            more = list(itertools.islice(source, max(1, len(found))))
            found += more
            if not more:
                return []
            if self.works(found):
                break
            tried = len(found)
        enough = len(found)
        while enough - tried > 1 and self.trials > 0:
            middle = (tried + enough) // 2
            if self.works(found[:middle]):
                enough = middle
            else:
                tried = middle
        return found[:enough]

    def without_bystanders(self, units: Sequence[Unit]) -> Sequence[Unit]:
        """Return those of *units* with a pod where the gang goes, if these do."""
        if self.coupled or not self.works(units):
            return units
        index, rows = self.session.layout.index, set(self.rows.tolist())
        near = [u for u in units if any(index.get(pod.node, -1) in rows for pod in u.pods)]
        near = _whole_gangs(near, units)
        return near if len(near) < len(units) and self.works(near) else units

    def thinned(self, units: Sequence[Unit]) -> Sequence[Unit]:
        """Return *units* without those that need not go, looking at the last of them first."""
        kept = list(units)
        for unit in reversed(units):
            if self.trials <= 0 or len(kept) < 2:
                break
            if unit not in kept:
                continue
            fewer = [other for other in kept if other is not unit and not _needs(other, unit)]
            if self.works(fewer):
                kept = fewer
        return kept


def _needs(floor: Unit, surplus: Unit) -> bool:
    """Tell whether *floor* may go only together with *surplus*: else half a gang would stay."""
    return not floor.surplus and surplus.surplus and floor.gang.key == surplus.gang.key


def _whole_gangs(chosen: Iterable[Unit], units: Sequence[Unit]) -> list[Unit]:
    picked = set(map(id, chosen))
    whole = {u.gang.key for u in units if id(u) in picked and not u.surplus}
    return [u for u in units if id(u) in picked or u.gang.key in whole]


def hopeless_without(session: Session, gang: Gang, units: Sequence[Unit]) -> bool:
    """Tell whether *gang* would not fit even with all of *units* gone: a bound before planning."""
    demand = floor_demand(session, gang)
    if demand is None or not may_fit(session, demand, units):
        return True
    trial = without(session, units)
    wanted = floor_demand(trial, gang)
    steps = session.config.victim_steps
    return wanted is None or search.place(trial, wanted, gang.topology, steps=steps) != "placed"


def may_fit(session: Session, demand: Demand, units: Iterable[Unit]) -> bool:
    """Tell whether nodes have room in sum with *units* gone: necessary, and cheap to count."""
    if demand.alternatives:
        return True
    free = session.idle + session.leaving
    used = np.zeros_like(free)
    _take_out(session, used, [pod for unit in units for pod in unit.pods])
    free -= used
    required = demand.required
    codes = session.layout.domains(required).codes if required else None
    for cls, count in demand.totals:
        if cls.absent:
            return False
        room = np.where(session.allowed(cls.shape), count, 0)
        for column, amount in cls.columns:
            np.minimum(room, free[:, column] // amount, out=room)
        np.maximum(room, 0, out=room)
        if codes is None:
            most = int(room.sum())
        else:
            inside = codes >= 0
            sums = np.bincount(codes[inside], room[inside], 1)
            most = int(sums.max())
        if most < count:
            return False
    return True


def by_place(session: Session, demand: Demand, units: Sequence[Unit]) -> Iterator[list[Unit]]:
    """Yield *units* in the order of where they are: what is cheapest to clear comes first.

    Where the demand needs one domain, each list is of one domain, and no more than
    `PLACES_TRIED` are yielded.
    """
    cost = clearing_cost(session, demand, units)
    index = session.layout.index
    rows_of = {id(u): [index[p.node] for p in u.pods if p.node in index] for u in units}

    def key(unit: Unit) -> tuple[int, int, str]:
        row = min(rows_of[id(unit)], key=lambda r: (int(cost[r]), r), default=0)
        return (int(cost[row]), row, unit.gang.key)

    ordered = sorted(units, key=key)
    required = _outermost_required(demand)
    if not required:
        yield ordered
        return
    codes = session.layout.domains(required).codes
    homes: dict[int, list[Unit]] = {}
    for unit in ordered:
        for code in sorted({int(codes[row]) for row in rows_of[id(unit)]} - {-1}):
            homes.setdefault(code, []).append(unit)
    main = demand.totals[0][0].main
    free = np.bincount(codes[codes >= 0], np.maximum(session.idle[codes >= 0, main], 0))
    best = sorted(homes, key=lambda code: (-float(free[code]), code))
    yield from (homes[code] for code in best[:PLACES_TRIED])


def clearing_cost(session: Session, demand: Demand, units: Iterable[Unit]) -> NDArray[np.int64]:
    """Return for each node how much of *units* is on it, or the largest number where clearing it
    of them all would not let one pod of the demand in."""
    index, layout = session.layout.index, session.layout
    cls = demand.totals[0][0]
    movable = np.zeros(len(layout), np.int64)
    for unit in units:
        for pod in unit.pods:
            if pod.node in index:
                movable[index[pod.node]] += int(layout.vector(pod.shape.requests)[cls.main])
    free = session.idle[:, cls.main] + session.leaving[:, cls.main]
    useful = (free + movable >= cls.vector[cls.main]) & session.allowed(cls.shape)
    return np.where(useful, movable, np.iinfo(np.int64).max)


def _outermost_required(demand: Demand) -> str:
    if demand.required:
        return demand.required
    return next((found for child in demand.children if (found := _outermost_required(child))), "")


def find_plan(
    session: Session, gang: Gang, units: Iterable[Unit], *, all_move: bool = False
) -> Plan | None:
    """Return a plan that displaces few of *units* to make room for the minimum of *gang*."""
    demand = floor_demand(session, gang)
    if demand is None:
        return None
    attempt = _Attempt(session, gang, demand, all_move, session.config.victim_trials)
    chosen = attempt.shortest_prefix(units)
    if not chosen:
        return None
    chosen = attempt.without_bystanders(chosen)
    chosen = attempt.thinned(chosen)
    if not attempt.works(chosen) or attempt.trial is None:
        return None
    if all_move:
        everyone = spots_of(attempt.trial, attempt.trial.statement.placements)
        moves = _moved(everyone[len(attempt.spots) :], chosen)
    else:
        moves = _moves(session, attempt.trial, gang, demand, chosen)
    return Plan(gang, attempt.spots, tuple(chosen), moves)


def _moved(spots: Iterable[Spot], units: Iterable[Unit]) -> dict[str, tuple[Spot, ...]]:
    """Return *spots* by the gang of their pods."""
    owner = {pod.key: unit.gang.key for unit in units for pod in unit.pods}
    found: dict[str, tuple[Spot, ...]] = {}
    for spot in spots:
        gang = owner[spot.pod.key]
        found[gang] = (*found.get(gang, ()), spot)
    return found


def _permitted(session: Session, gang: Gang, demand: Demand, units: Sequence[Unit]) -> bool:
    """Tell whether the gang's queue may take it on when *units* are gone."""
    ledger = session.ledger
    if ledger is None:
        return True
    for unit in units:
        ledger.enter(unit.gang, minus(NOTHING, unit.amount))
    refusal = ledger.refusal(gang, demand_amount(demand))
    for unit in units:
        ledger.enter(unit.gang, unit.amount)
    return not refusal


def without(session: Session, units: Iterable[Unit]) -> Session:
    """Return a session on a copied snapshot: *units* and whoever is leaving are gone, those that
    were placed in this cycle are there, and reserved room is taken."""
    layout, snapshot = session.layout, session.snapshot
    units = list(units)
    gone = [pod for unit in units for pod in unit.pods]
    used = layout.allocatable - session.idle - session.leaving
    _take_out(session, used, gone)
    pods = dict(snapshot.pods)
    for pod in gone:
        pods.pop(pod.key, None)
    for eviction in session.evictions:
        pods.pop(eviction.pod, None)
    standing = [(p, row) for p, row in session.placed() if p.key in pods]
    pods.update((p.key, replace(p, node=layout.nodes[r].name, state="active")) for p, r in standing)
    apart = [key for key in snapshot.apart if key in pods and pods[key].state == "active"]
    apart += [p.key for p, _ in standing if p.shape.pod_anti_affinity]
    looking = [u for u in units if any(pod.shape.looks_at_pods for pod in u.pods)]
    displaced = tuple(_displaced(gang, pods_) for gang, pods_ in _by_gang(looking))
    copied = replace(
        snapshot,
        used=used,
        leaving=np.zeros_like(used),
        pods={k: p for k, p in pods.items() if p.state != "leaving"},
        gangs=(*snapshot.gangs, *displaced),
        apart=tuple(apart),
    )
    return Session(copied, session.config)


def _take_out(session: Session, used: NDArray[np.int64], pods: Sequence[PodInfo]) -> None:
    index, layout = session.layout.index, session.layout
    rows: dict[int, tuple[NDArray[np.int64], list[int]]] = {}
    for pod in pods:
        row = index.get(pod.node)
        if row is not None:
            alike = rows.get(id(pod.shape))
            if alike is None:
                alike = rows[id(pod.shape)] = (layout.vector(pod.shape.requests), [])
            alike[1].append(row)
    for vector, found in rows.values():
        counts = np.bincount(np.array(found, np.int64), minlength=len(layout))
        used -= counts[:, None] * vector


# Where victims may go on


def _by_gang(units: Iterable[Unit]) -> list[tuple[Gang, tuple[PodInfo, ...]]]:
    found: dict[str, tuple[Gang, list[PodInfo]]] = {}
    for unit in units:
        found.setdefault(unit.gang.key, (unit.gang, []))[1].extend(unit.pods)
    ordered = sorted(found.values(), key=lambda pair: pair[0].order)
    return [(gang, tuple(pods)) for gang, pods in ordered]


def _displaced(gang: Gang, pods: Iterable[PodInfo]) -> Gang:
    """Return *gang* as it is when *pods* have left and want to come back."""
    gone = {pod.key for pod in pods}
    return replace(gang, root=_without(gang.root, gone))


def _without(group: Group, gone: set[str]) -> Group:
    away = [pod for pod in group.active if pod.key in gone]
    return replace(
        group,
        children=tuple(_without(child, gone) for child in group.children),
        active=tuple(pod for pod in group.active if pod.key not in gone),
        pending=tuple(replace(pod, state="pending", node="") for pod in away),
    )


def _moves(
    session: Session, trial: Session, gang: Gang, demand: Demand, units: Sequence[Unit]
) -> dict[str, tuple[Spot, ...]]:
    """Place what fits of the victims on *trial*, after the gang that they make room for."""
    ledger = session.ledger
    entries: list[tuple[Gang, Amounts]] = [(u.gang, minus(NOTHING, u.amount)) for u in units]
    entries.append((gang, demand_amount(demand)))
    for who, amount in entries if ledger else ():
        ledger.enter(who, amount)  # type: ignore[union-attr]
    found: dict[str, tuple[Spot, ...]] = {}
    for victim, pods in _by_gang(units):
        start = trial.statement.checkpoint()
        displaced = _displaced(victim, pods)
        for part in _parts(trial, displaced):
            amount = demand_amount(part)
            if ledger is not None and ledger.refusal(victim, amount):
                break
            if search.place(trial, part, victim.topology, steps=session.config.victim_steps) != (
                "placed"
            ):
                break
            if ledger is not None:
                ledger.enter(victim, amount)
                entries.append((victim, amount))
        spots = spots_of(trial, trial.statement.placements[start:])
        if spots:
            found[victim.key] = spots
    for who, amount in entries if ledger else ():
        ledger.enter(who, minus(NOTHING, amount))  # type: ignore[union-attr]
    return found


def _parts(trial: Session, displaced: Gang) -> Iterator[Demand]:
    """Yield the minimum that the displaced gang lacks, then each pod beyond it."""
    floor = floor_demand(trial, displaced)
    if floor is not None:
        yield floor
    for leaf in displaced.root.leaves():
        for pod in leaf.pending:
            if pod.key not in trial.statement.node_of:
                yield growth_demand(trial, displaced, (pod,))


# Carrying out


def carry_out(session: Session, plan: Plan, action: str) -> Verdict:
    """Displace the plan's victims on *session* and keep the room for whom it was made."""
    gang = plan.gang
    node_of = {spot.pod.key: spot.node for spots in plan.moves.values() for spot in spots}
    message = f"makes room for {gang.key}"
    if gang.queue and session.ledger is not None:
        message += f" of queue {gang.queue}"
    for unit in plan.victims:
        for pod in unit.pods:
            moves_to = node_of.get(pod.key, "")
            session.evictions.append(
                Eviction(
                    pod.key, pod.uid, pod.node, unit.gang.key, action, gang.key, message, moves_to
                )
            )
    displace(session, plan.victims)
    session.reservations.release(gang.key)
    session.reservations.make(gang, plan.spots)
    for victim, pods in _by_gang(plan.victims):
        spots = plan.moves.get(victim.key, ())
        if spots:
            session.reservations.make(_displaced(victim, pods), spots, moved=True)
    reason = f"room is reserved; {_leave(plan, session)} and make room by {action}"
    pending = tuple(pod.key for leaf in gang.root.leaves() for pod in leaf.pending)
    return Verdict(gang.key, "pipelined", reason, pending)


def displace(session: Session, units: Iterable[Unit]) -> None:
    """Count the pods of *units* as leaving, and no longer as their queue's."""
    for unit in units:
        used = np.zeros_like(session.leaving)
        _take_out(session, used, unit.pods)
        session.leaving -= used
        if session.ledger is not None:
            session.ledger.enter(unit.gang, minus(NOTHING, unit.amount))


def _leave(plan: Plan, session: Session) -> str:
    count = sum(len(unit.pods) for unit in plan.victims)
    gangs = len({unit.gang.key for unit in plan.victims})
    moved = sum(map(len, plan.moves.values()))
    text = f"{count} pod{'s' * (count != 1)} of {gangs} gang{'s' * (gangs != 1)}"
    queues = sorted({unit.gang.queue for unit in plan.victims})
    if session.ledger is not None:
        text += f" of queue {', '.join(queues)}"
    return f"{text} leave" + (f" ({moved} move elsewhere)" if moved else "")


# Whom to make room for


def make_room(
    session: Session,
    action: str,
    may: Callable[[Gang, Demand], bool],
    choose: Callable[[Gang, Demand], Plan | None],
) -> Iterator[Verdict]:
    """Try to make room for every gang that is not placed, in order; yield verdicts of successes.

    What cannot be served is not looked at again in this cycle for a gang that asks the same of
    the same queue with the same priority.
    """
    hopeless: set[object] = set()
    for gang in session.snapshot.gangs:
        verdict = session.verdicts.get(gang.key)
        if verdict is None or verdict.kind != "unplaced" or gang.key in session.reservations.lapsed:
            continue
        if len(session.evictions) >= session.config.evictions_per_cycle:
            return
        demand = floor_demand(session, gang)
        if demand is None or session.snapshot.queues.problem(gang.queue):
            continue
        at = (demand.signature, gang.queue, gang.priority, gang.preemptible, _family(gang))
        if not gang.stands and not gang.root.anchors:
            at = (*at[:-1], "")
        if at in hopeless or not may(gang, demand):
            continue
        plan = choose(gang, demand)
        if plan is None:
            hopeless.add(at)
            continue
        yield carry_out(session, plan, action)
