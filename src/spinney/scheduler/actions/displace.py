"""Making room for a gang by displacing others: the part that reclaim, preemption and moving share.

An action names the candidates, in the order in which they had better go. Here the fewest of them
are found that do: every set is tried on a copied snapshot in which its pods are gone, with the real
search and the real filters. Nothing on the session changes until a plan is carried out, and a plan
that is carried out keeps the room for whom it was made.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass, field, replace
from operator import is_
from typing import TYPE_CHECKING

import numpy as np

from spinney.scheduler import search
from spinney.scheduler.actions.victims import by_gang, family, needs, whole_gangs
from spinney.scheduler.actions.wishes import in_turn, wish_of
from spinney.scheduler.demand import floor_demand, growth_demand, optional_groups
from spinney.scheduler.gpu_share import GPU, WHOLE
from spinney.scheduler.queues.model import NOTHING, Amounts, minus
from spinney.scheduler.reservations import spots_of
from spinney.scheduler.session import Session
from spinney.scheduler.sources.spec import gang_name
from spinney.scheduler.verdict import Eviction, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from spinney.scheduler.actions.victims import Unit
    from spinney.scheduler.actions.wishes import Wish
    from spinney.scheduler.demand import Demand
    from spinney.scheduler.gangs import Gang, Group
    from spinney.scheduler.memory import Spot
    from spinney.scheduler.session import PodClass
    from spinney.scheduler.shapes import PodInfo
    from spinney.scheduler.snapshot import Snapshot

    Moves = Mapping[str, tuple[Spot, ...]]
    """By victim gang: its pods that run elsewhere afterwards."""


PLACES_TRIED = 8
"""Domains that are looked at one by one for the cheapest to clear."""
MOST_EXPLAINED = 32
"""Different questions for which a cycle looks for what would help."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A set of victims that makes room, where the gang then goes, and where victims may go on."""

    wish: Wish
    spots: tuple[Spot, ...]
    victims: tuple[Unit, ...]
    moves: Moves


# Trying


@dataclass(slots=True)
class _Attempt:
    """The search for the fewest victims for one gang."""

    session: Session
    wish: Wish
    accept: Callable[[Sequence[Unit], Moves], bool] | None
    """Judges a set of victims by who of them finds another place; None takes any set."""
    trials: int
    trial: Session | None = None
    """The last one that succeeded."""
    spots: tuple[Spot, ...] = ()
    """Where the gang went in it."""
    moves: Moves | None = None
    """Where victims went in it, if that was looked at."""
    rows: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    """The nodes of `spots`."""
    coupled: bool = False
    worked: Sequence[Unit] = ()
    """The units without which it succeeded."""

    def works(self, units: Sequence[Unit]) -> bool:
        """Try with *units* gone: first what can be counted, then the real search."""
        if units and len(units) == len(self.worked) and all(map(is_, units, self.worked)):
            return True
        if not may_fit(self.session, self.wish.demand, units):
            return False
        self.trials -= 1
        if not _permitted(self.session, self.wish, units):
            return False
        return self.fits(units)

    def fits(self, units: Sequence[Unit]) -> bool:
        """Like `works`, whatever the queue's bounds."""
        trial = placed_without(self.session, self.wish, units)
        if trial is None:
            return False
        spots = spots_of(trial, trial.statement.placements)
        moves = None
        if self.accept is not None:
            moves = moves_of(self.session, trial, self.wish, units)
            if not self.accept(units, moves):
                return False
        self.spots, self.trial, self.moves = spots, trial, moves
        self.worked = tuple(units)
        self.rows = np.unique([trial.layout.index[spot.node] for spot in spots])
        self.coupled = any(trial.coupled(cls) for cls in self._classes(trial))
        return True

    def _classes(self, trial: Session) -> list[PodClass]:
        return [trial.class_of(spot.pod) for spot in self.spots]

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
        near = whole_gangs(near, units)
        return near if len(near) < len(units) and self.works(near) else units

    def thinned(self, units: Sequence[Unit]) -> Sequence[Unit]:
        """Return *units* without those that need not go, looking at the last of them first.

        No more of them are looked at than sets may be tried.
        """
        kept = list(units)
        for unit in units[: -self.session.config.victim_trials - 1 : -1]:
            if self.trials <= 0 or len(kept) < 2:
                break
            if unit not in kept:
                continue
            fewer = [other for other in kept if other is not unit and not needs(other, unit)]
            if self.works(fewer):
                kept = fewer
        return kept


def placed_without(session: Session, wish: Wish, units: Sequence[Unit]) -> Session | None:
    """Return a session in which *units* are gone and the wish is placed; None if it cannot be."""
    trial = without(session, wish, units)
    wanted = wish.on(trial)
    steps = session.config.victim_steps
    if wanted is None or search.place(trial, wanted, wish.gang.topology, steps=steps) != "placed":
        return None
    return trial


def hopeless_without(session: Session, wish: Wish, units: Sequence[Unit]) -> bool:
    """Tell whether *wish* would not fit even with all of *units* gone: a bound before planning."""
    if not may_fit(session, wish.demand, units):
        return True
    return placed_without(session, wish, units) is None


def may_fit(session: Session, demand: Demand, units: Sequence[Unit]) -> bool:
    """Tell whether nodes have room in sum with *units* gone: necessary, and cheap to count."""
    if demand.alternatives:
        return True
    free = session.idle + session.leaving
    used = np.zeros_like(free)
    _take_out(session, used, [pod for unit in units for pod in unit.pods])
    free -= used
    _give_back_shared(session, free, units)
    required = demand.required
    codes = session.layout.domains(required).codes if required else None
    for cls, count in demand.totals:
        if cls.absent:
            return False
        if cls.shape.share is not None:
            continue
        room = np.where(session.allowed(cls.shape), count, 0)
        for column, amount in cls.columns:
            np.minimum(room, free[:, column] // amount, out=room)
        np.maximum(room, 0, out=room)
        if _apart_from_each_other(session, cls, room) < count:
            return False
        if codes is None:
            most = int(room.sum())
        else:
            inside = codes >= 0
            sums = np.bincount(codes[inside], room[inside], 1)
            most = int(sums.max())
        if most < count:
            return False
    return True


def _apart_from_each_other(session: Session, cls: PodClass, room: NDArray[np.int64]) -> int:
    """Return how many pods of *cls* there can be at most where each keeps others like it away."""
    most = int(room.sum())
    for term in cls.shape.pod_anti_affinity:
        if term.matches(cls.namespace, cls.labels_map):
            codes = session.layout.domains(term.topology_key).codes
            domains = np.unique(codes[(codes >= 0) & (room > 0)])
            most = min(most, len(domains) + int(room[codes < 0].sum()))
    return most


def _give_back_shared(session: Session, free: NDArray[np.int64], units: Iterable[Unit]) -> None:
    """Add the GPUs that may be whole again when sharers among *units* are gone."""
    column, index = session.layout.column.get(GPU), session.layout.index
    if column is None or not session.shares.devices:
        return
    rows = {index.get(p.node, -1) for one in units for p in one.pods if p.shape.share is not None}
    for row in rows - {-1}:
        free[row, column] += len(session.shares.devices.get(row, ())) * WHOLE


def by_place(session: Session, demand: Demand, units: Sequence[Unit]) -> Iterator[list[Unit]]:
    """Yield *units* in the order of where they are: what is cheapest to clear comes first.

    Where the demand needs one domain, each list is of one domain, and no more than
    `PLACES_TRIED` are yielded.
    """
    cost = clearing_cost(session, demand, units)
    index = session.layout.index
    rows_of = {id(u): [index[p.node] for p in u.pods if p.node in index] for u in units}

    def key(unit: Unit) -> tuple[int, int]:
        row = min(rows_of[id(unit)], key=lambda r: (int(cost[r]), r), default=0)
        return (int(cost[row]), row)

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
    session: Session,
    wish: Wish,
    units: Iterable[Unit],
    accept: Callable[[Sequence[Unit], Moves], bool] | None = None,
) -> Plan | None:
    """Return a plan that displaces few of *units* to make room for *wish*.

    The order of *units* is that in which they had better go; *accept* may refuse a set of them for
    those who find no other place.
    """
    attempt = _Attempt(session, wish, accept, session.config.victim_trials)
    chosen = attempt.shortest_prefix(units)
    if not chosen:
        return None
    chosen = attempt.without_bystanders(chosen)
    chosen = attempt.thinned(chosen)
    if not attempt.works(chosen) or attempt.trial is None:
        return None
    moves = attempt.moves
    if moves is None:
        moves = moves_of(session, attempt.trial, wish, chosen)
    return Plan(wish, attempt.spots, tuple(chosen), moves)


def room_when_gone(
    session: Session, wish: Wish, units: Sequence[Unit]
) -> tuple[Sequence[Unit], tuple[Spot, ...]]:
    """Return the fewest of the first *units* without which *wish* fits, and where it goes then.

    Both are empty where all of them are not enough.
    """
    attempt = _Attempt(session, wish, None, session.config.victim_trials)
    return attempt.shortest_prefix(units), attempt.spots


def everyone_moves(units: Sequence[Unit], moves: Moves) -> bool:
    """Tell whether each pod of *units* has another place."""
    return sum(map(len, moves.values())) >= sum(len(one.pods) for one in units)


def _permitted(session: Session, wish: Wish, units: Sequence[Unit]) -> bool:
    """Tell whether the gang's queue may take it on when *units* are gone."""
    ledger = session.ledger
    if ledger is None:
        return True
    for one in units:
        ledger.enter(one.gang, minus(NOTHING, one.amount))
    refusal = ledger.refusal(wish.gang, wish.amount)
    for one in units:
        ledger.enter(one.gang, one.amount)
    return not refusal


def without(session: Session, wish: Wish, units: Sequence[Unit]) -> Session:
    """Return a session on a copied snapshot: *units* and whoever is leaving are gone, those that
    were placed in this cycle are there, and reserved room is taken."""
    layout, snapshot = session.layout, session.snapshot
    gone = [pod for unit in units for pod in unit.pods]
    used = layout.allocatable - session.idle - session.leaving
    _take_out(session, used, gone)
    for rows, missing in session.drains.missing():
        used[rows] += missing
    copied = replace(
        snapshot, used=used, leaving=np.zeros_like(used), pods={}, apart=(), sharing=()
    )
    if not _only_room_matters(session, wish, gone):
        copied = _with_pods(session, copied, units)
    return Session(copied, session.config)


def _only_room_matters(session: Session, wish: Wish, gone: Iterable[PodInfo]) -> bool:
    """Tell whether it makes no difference for *wish* and who leaves which pods are where."""
    if session.snapshot.sharing or session.shares.devices or session.terms:
        return False
    shapes = {id(pod.shape): pod.shape for pod in gone}
    shapes |= {id(cls.shape): cls.shape for cls, _ in wish.demand.totals}
    return not any(s.looks_at_pods or s.host_ports or s.share for s in shapes.values())


def _with_pods(session: Session, copied: Snapshot, units: Sequence[Unit]) -> Snapshot:
    """Return *copied* with the pods that are there when *units* are gone."""
    layout, snapshot = session.layout, session.snapshot
    pods = dict(snapshot.pods)
    for pod in (pod for unit in units for pod in unit.pods):
        pods.pop(pod.key, None)
    for eviction in session.evictions:
        pods.pop(eviction.pod, None)
    standing = [(p, row) for p, row in session.placed() if p.key in pods]
    pods.update((p.key, replace(p, node=layout.nodes[r].name, state="active")) for p, r in standing)
    apart = [key for key in snapshot.apart if key in pods and pods[key].state == "active"]
    apart += [p.key for p, _ in standing if p.shape.pod_anti_affinity]
    looking = [u for u in units if any(pod.shape.looks_at_pods for pod in u.pods)]
    displaced = tuple(_displaced(session, gang, pods_) for gang, pods_ in by_gang(looking))
    return replace(
        copied,
        pods={k: p for k, p in pods.items() if p.state != "leaving"},
        gangs=(*snapshot.gangs, *displaced),
        apart=tuple(apart),
        sharing=(
            *(key for key in snapshot.sharing if key in pods and pods[key].state == "active"),
            *(pod.key for pod, _ in standing if pod.shape.share is not None),
        ),
        shared_devices=tuple((r, len(found)) for r, found in session.shares.devices.items()),
    )


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


def _displaced(session: Session, gang: Gang, pods: Iterable[PodInfo]) -> Gang:
    """Return *gang* as it is when *pods* have left and want to come back."""
    gone = {pod.key for pod in pods}
    return replace(gang, root=_without(gang.root, gone, session.displaced))


def _without(group: Group, gone: set[str], lost: set[str]) -> Group:
    away = [pod for pod in group.active if pod.key in gone]
    return replace(
        group,
        children=tuple(_without(child, gone, lost) for child in group.children),
        active=tuple(p for p in group.active if p.key not in gone and p.key not in lost),
        pending=tuple(replace(pod, state="pending", node="") for pod in away),
    )


def moves_of(session: Session, trial: Session, wish: Wish, units: Sequence[Unit]) -> Moves:
    """Place what fits of the victims on *trial*, after the gang that they make room for."""
    ledger = session.ledger
    entries: list[tuple[Gang, Amounts]] = [(u.gang, minus(NOTHING, u.amount)) for u in units]
    entries.append((wish.gang, wish.amount))
    for who, amount in entries if ledger else ():
        ledger.enter(who, amount)  # type: ignore[union-attr]
    found: dict[str, tuple[Spot, ...]] = {}
    for victim, pods in by_gang(units):
        start = trial.statement.checkpoint()
        for part, needed in _parts(trial, _displaced(session, victim, pods)):
            if _goes_on(session, trial, victim, part):
                entries.append((victim, trial.amount(part)))
            elif needed:
                break
        spots = spots_of(trial, trial.statement.placements[start:])
        if spots:
            found[victim.key] = spots
    for who, amount in entries if ledger else ():
        ledger.enter(who, minus(NOTHING, amount))  # type: ignore[union-attr]
    return found


def _goes_on(session: Session, trial: Session, victim: Gang, part: Demand) -> bool:
    """Place *part* of a victim on *trial* if its queue lets it, and charge the queue for it."""
    ledger, amount = session.ledger, trial.amount(part)
    if ledger is not None and ledger.refusal(victim, amount):
        return False
    steps = session.config.victim_steps
    if search.place(trial, part, victim.topology, steps=steps) != "placed":
        return False
    if ledger is not None:
        ledger.enter(victim, amount)
    return True


def _parts(trial: Session, displaced: Gang) -> Iterator[tuple[Demand, bool]]:
    """Yield the minimum that the displaced gang lacks, without which nothing of it goes on; then
    groups it can do without, each whole; then each pod beyond the minimum of its group."""
    floor = floor_demand(trial, displaced)
    if floor is not None:
        yield floor, True
    closed: set[str] = set()
    for group, whole in optional_groups(trial, displaced):
        if whole is not None:
            yield whole, False
        placed = trial.statement.node_of
        if any(p.key not in placed for leaf in group.leaves() for p in leaf.pending):
            closed.update(leaf.name for leaf in group.leaves())
    for leaf in displaced.root.leaves():
        for pod in leaf.pending:
            if pod.key not in trial.statement.node_of and leaf.name not in closed:
                yield growth_demand(trial, displaced, (pod,)), False


# Carrying out


def carry_out(session: Session, plan: Plan, action: str) -> Verdict:
    """Displace the plan's victims on *session* and keep the room for whom it was made."""
    gang = plan.wish.gang
    node_of = {spot.pod.key: spot.node for spots in plan.moves.values() for spot in spots}
    message = f"makes room for {gang_name(gang.key)}"
    if gang.queue and session.ledger is not None:
        message += f" of queue {gang.queue}"
    for one in plan.victims:
        session.evictions += [
            Eviction(
                pod.key,
                pod.uid,
                pod.node,
                one.gang.key,
                action,
                gang.key,
                message,
                node_of.get(pod.key, ""),
            )
            for pod in one.pods
        ]
    displace(session, plan.victims)
    _keep_room(session, plan)
    who = f"{_leave(plan, session)} and make room by {action}"
    reason = f"room is reserved; {who if plan.victims else 'others leave already'}"
    pending = tuple(pod.key for leaf in gang.root.leaves() for pod in leaf.pending)
    return Verdict(gang.key, "placed" if plan.wish.pods else "pipelined", reason, pending)


def _keep_room(session: Session, plan: Plan) -> None:
    gang, kept = plan.wish.gang, session.reservations.kept.get(plan.wish.gang.key)
    before = kept.spots if kept is not None and plan.wish.pods else ()
    session.reservations.make(gang, (*before, *plan.spots))
    session.promised.add(gang.key)
    for victim, pods in by_gang(plan.victims):
        spots = plan.moves.get(victim.key, ())
        if spots:
            displaced = _displaced(session, victim, pods)
            session.reservations.make(displaced, spots, moved=True)
            session.promised.add(victim.key)


def displace(session: Session, units: Iterable[Unit]) -> None:
    """Count the pods of *units* as leaving, and no longer as their queue's."""
    units = list(units)
    used = np.zeros_like(session.leaving)
    _take_out(session, used, [pod for one in units for pod in one.pods])
    session.leaving -= used
    for one in units:
        session.displaced.update(pod.key for pod in one.pods)
        session.units.pop(one.gang.key, None)
        if session.ledger is not None:
            session.ledger.enter(one.gang, minus(NOTHING, one.amount))


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
    may: Callable[[Wish], bool],
    choose: Callable[[Wish], Plan | None],
    explain: Callable[[Wish], str] | None = None,
) -> Iterator[Verdict]:
    """Try to make room for all that is not placed, in order; yield verdicts of successes, and of
    those for whom *explain* knows what would help.

    What cannot be served is not looked at again in this cycle for a gang that asks the same of
    the same queue with the same priority.
    """
    hopeless: dict[object, str] = {}
    for gang in in_turn(session):
        if gang.key in session.reservations.lapsed or _is_patient(session, gang):
            continue
        if _is_displaced(session, gang):
            continue
        if len(session.evictions) >= session.config.evictions_per_cycle:
            return
        if session.snapshot.queues.problem(gang.queue):
            continue
        verdict = session.verdicts.get(gang.key)
        at = _question(session, gang, verdict)
        if at not in hopeless:
            session.drains.make_way(gang)
            wish = wish_of(session, gang)
            if wish is None or _fits_already(session, wish):
                continue
            plan = (_freed_already(session, wish) or choose(wish)) if may(wish) else None
            if plan is not None:
                yield carry_out(session, plan, action)
                continue
            few = len(hopeless) < MOST_EXPLAINED
            hopeless[at] = explain(wish) if explain is not None and few else ""
        if hopeless[at] and verdict is not None:
            yield with_help(verdict, hopeless[at])


def _question(session: Session, gang: Gang, verdict: Verdict | None) -> object:
    """Return a key that is equal for gangs of which one fares like the other."""
    if verdict is None or not verdict.signature or gang.key in session.drains:
        return gang.key
    grows = gang.key if verdict.kind == "placed" else ""
    alone = not gang.stands and not gang.root.anchors
    relatives = "" if alone else family(gang)
    queue = session.snapshot.queues.resolve(gang.queue)
    return (verdict.signature, queue, gang.priority, gang.preemptible, relatives, grows)


def with_help(verdict: Verdict, text: str) -> Verdict:
    """Return *verdict* with one more thing that would help in its reason; said once."""
    if text in verdict.reason:
        return verdict
    also = "or " if "would fit" in verdict.reason else "would fit "
    first, _, last = verdict.reason.rpartition("; ")
    counts_nodes = first and re.match(r"\d+/\d+ nodes", last)
    words = (first, f"{also}{text}", last) if counts_nodes else (verdict.reason, f"{also}{text}")
    return replace(verdict, reason="; ".join(words))


def _is_displaced(session: Session, gang: Gang) -> bool:
    """Tell whether this cycle takes pods from *gang*, which then may not grow at others' cost."""
    gone = session.displaced
    return bool(gone) and any(p.key in gone for leaf in gang.root.leaves() for p in leaf.active)


def _freed_already(session: Session, wish: Wish) -> Plan | None:
    """Return a plan without victims, where those that leave for others make enough room."""
    if not session.displaced or session.refusal(wish.gang, wish.demand):
        return None
    trial = placed_without(session, wish, ())
    if trial is None:
        return None
    return Plan(wish, spots_of(trial, trial.statement.placements), (), {})


def _is_patient(session: Session, gang: Gang) -> bool:
    """Tell whether *gang* lets others run for a while before it has them displaced."""
    if gang.timing.preemption_delay_s <= 0:
        return False
    since = session.memory.unplaced_since.get(gang.key, session.snapshot.now)
    until = since + gang.timing.preemption_delay_s
    if until > session.snapshot.now:
        session.wake(until)
        return True
    return False


def _fits_already(session: Session, wish: Wish) -> bool:
    """Tell whether nobody has to leave; where gangs were placed first that is known."""
    if wish.gang.key in session.verdicts:
        return False
    start = session.statement.checkpoint()
    outcome = search.place(session, wish.demand, wish.gang.topology)
    session.statement.rollback(start)
    return outcome == "placed"
