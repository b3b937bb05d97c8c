"""What a scaling group reports: how many of its replicas exist, are scheduled and serve."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from spinney.api import names, selectors
from spinney.api.meta import Condition, find_condition, is_true, with_condition
from spinney.controllers.cliques import is_available, is_updated, trouble
from spinney.controllers.identity import index_label
from spinney.controllers.pacing import turned
from spinney.controllers.podclique.status import MIN_AVAILABLE_BREACHED
from spinney.controllers.template import (
    clique_count,
    group_count,
    member_cliques,
)
from spinney.controllers.update.parts import Replica, group_progress
from spinney.controllers.update.plan import PLAN, ROLLOUT
from spinney.controllers.update.revisions import of_template
from spinney.controllers.update.strategy import is_on_delete

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from spinney.api.grove import (
        LastError,
        PodClique,
        PodCliqueScalingGroup,
        PodCliqueScalingGroupStatus,
        PodCliqueSet,
        ScalingGroupTemplate,
    )
    from spinney.controllers.update.revisions import Revision

TERMINATING = "GangTerminationInProgress"
"""Whether the set's replica was made anew and the group has not had its minimum since."""
_NAMED_CLIQUES = 3
"""Cliques that a message tells of one by one."""
_RECOVERED = Condition(
    type=TERMINATING,
    status="False",
    reason="GangRecovered",
    message="the group has its minimum again",
)


@dataclass(frozen=True, slots=True)
class _Replica:
    """One replica of the group, by what its cliques report."""

    complete: bool
    scheduled: bool
    available: bool
    updated: bool
    breached: bool


def group_status(
    pcs: PodCliqueSet,
    group: PodCliqueScalingGroup,
    template: ScalingGroupTemplate,
    existing: Iterable[PodClique],
    now: str,
    target: Revision | None = None,
    errors: Sequence[LastError] = (),
) -> PodCliqueScalingGroupStatus:
    """Return the group's status from its *existing* cliques; *now* dates changed conditions.

    *target* is the revision its pods are to be of, that of the template if None. *errors* are
    those of the last reconciliation.
    """
    target = of_template(pcs.spec.template) if target is None else target
    roles = member_cliques(pcs.spec.template, template)
    hashes = {role.name: target.hashes[role.name] for role in roles}
    by_index = _by_index(existing)
    found = {j: _replica(cliques, hashes) for j, cliques in sorted(by_index.items())}
    replicas = list(found.values())
    cliques = [clique for _, found in sorted(by_index.items()) for clique in found]
    condition = _breached(group, replicas, cliques)
    conditions = with_condition(group.status.conditions, condition, now)
    if condition.status == "False" and _is_rebuilt(conditions, cliques):
        conditions = with_condition(conditions, _RECOVERED, now)
    return msgspec.structs.replace(
        group.status,
        observed_generation=group.metadata.generation,
        current_pod_clique_set_generation_hash=target.id,
        replicas=len(replicas),
        scheduled_replicas=sum(r.scheduled for r in replicas),
        available_replicas=sum(r.available for r in replicas),
        updated_replicas=sum(r.updated for r in replicas),
        selector=selectors.format_labels(
            {
                names.MANAGED_BY: names.OPERATOR,
                names.PART_OF: pcs.name,
                names.SCALING_GROUP: group.name,
            }
        ),
        conditions=conditions,
        last_errors=list(errors),
        update_progress=group_progress(
            group,
            target,
            {j: Replica(_is_of(by_index[j], hashes), one.available) for j, one in found.items()},
            now,
            on_delete=is_on_delete(pcs),
        ),
    )


def _by_index(existing: Iterable[PodClique]) -> dict[int, list[PodClique]]:
    found: dict[int, list[PodClique]] = {}
    for clique in existing:
        j = index_label(clique.labels, names.SCALING_GROUP_REPLICA_INDEX)
        if j is not None and not clique.deleting:
            found.setdefault(j, []).append(clique)
    return found


def _is_of(cliques: Sequence[PodClique], hashes: Mapping[str, str]) -> bool:
    """Tell whether *cliques* declare pods of the *hashes*, and have no others."""
    wanted = set(hashes.values())
    return all(
        (own := c.labels.get(names.POD_TEMPLATE_HASH, "")) in wanted
        and c.status.current_pod_template_hash in ("", own)
        for c in cliques
    )


def is_progress(group: PodCliqueScalingGroup, status: PodCliqueScalingGroupStatus) -> bool:
    """Tell whether *status*, compared with what is written, only tells of a start that goes on."""
    before = group.status
    return (
        status.available_replicas < group_count(group).target
        and status.available_replicas >= before.available_replicas
        and status.replicas >= before.replicas
        and not turned(before.conditions, status.conditions)
        and status.last_errors == before.last_errors
    )


def _replica(cliques: Sequence[PodClique], hashes: Mapping[str, str]) -> _Replica:
    complete = len(cliques) == len(hashes)
    wanted = set(hashes.values())
    return _Replica(
        complete=complete,
        scheduled=complete
        and all(c.status.scheduled_replicas >= clique_count(c).needed for c in cliques),
        available=complete and all(is_available(c, clique_count(c).needed) for c in cliques),
        updated=complete
        and all(
            (own := c.labels.get(names.POD_TEMPLATE_HASH, "")) in wanted and is_updated(c, own)
            for c in cliques
        ),
        breached=any(is_true(c.status.conditions, MIN_AVAILABLE_BREACHED) for c in cliques),
    )


def _is_rebuilt(conditions: list[Condition], cliques: Sequence[PodClique]) -> bool:
    """Tell whether the termination that *conditions* tell of is over: all cliques are of after it.

    Copies of before it are still around when it is written, and say that all is well.
    """
    flag = find_condition(conditions, TERMINATING)
    if flag is None or flag.status != "True":
        return False
    since = flag.last_transition_time or ""
    return all(
        (clique.metadata.creation_timestamp or "") >= since and clique.status.conditions
        for clique in cliques
    )


def _breached(
    group: PodCliqueScalingGroup, replicas: Sequence[_Replica], cliques: Sequence[PodClique]
) -> Condition:
    count = group_count(group)
    needed = count.needed
    sound = sum(r.complete and not r.breached for r in replicas)
    available = sum(r.available for r in replicas)
    message = (
        f"{available} of {needed} needed replicas are available{_reasons(cliques)}{count.remark}"
    )
    if sound < needed and _is_updating(group, replicas):
        return Condition(
            type=MIN_AVAILABLE_BREACHED,
            status="Unknown",
            reason="UpdateInProgress",
            message=message,
        )
    if sound < needed:
        return Condition(
            type=MIN_AVAILABLE_BREACHED,
            status="True",
            reason="InsufficientAvailablePodCliqueScalingGroupReplicas",
            message=message,
        )
    return Condition(
        type=MIN_AVAILABLE_BREACHED,
        status="False",
        reason="SufficientAvailablePodCliqueScalingGroupReplicas",
        message=message,
    )


def _is_updating(group: PodCliqueScalingGroup, replicas: Sequence[_Replica]) -> bool:
    """Tell whether an update is replacing replicas: what is missing then is missing on purpose."""
    told = group.metadata.annotations
    return PLAN in told or (ROLLOUT in told and not all(r.updated for r in replicas))


def _reasons(cliques: Sequence[PodClique]) -> str:
    short = [c for c in cliques if not is_available(c, clique_count(c).needed)]
    if not short:
        return ""
    named = "; ".join(f"{c.name}: {trouble(c)}" for c in short[:_NAMED_CLIQUES])
    more = len(short) - _NAMED_CLIQUES
    return f": {named}" + (f"; and {more} more" if more > 0 else "")
