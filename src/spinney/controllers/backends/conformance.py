"""What each back end can express, found by trying.

A back end expresses something of a gang exactly when its rendering changes with it. So the table
cannot claim what the code does not do. ``python -m spinney.controllers.backends.conformance``
writes it into ``docs/scheduler-backends.md``; with ``--check`` it only says whether it is current.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from spinney.api import names
from spinney.api.grove_backends import KAI_QUEUE, VOLCANO_QUEUE_ANNOTATION
from spinney.api.meta import ObjectMeta
from spinney.api.podgang import (
    GangPackConstraint,
    GangPodGroup,
    GangTopologyConstraint,
    PodGang,
    PodGangSpec,
    TopologyConstraintGroupConfig,
)
from spinney.controllers.backends.renderers import ALL

if TYPE_CHECKING:
    from collections.abc import Callable

    from spinney.controllers.backends.backend import Backend

RACK = GangTopologyConstraint(pack_constraint=GangPackConstraint(required="rack"))
NEAR = GangTopologyConstraint(pack_constraint=GangPackConstraint(preferred="rack"))
DOCUMENT = Path("docs/scheduler-backends.md")
BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"


@dataclass(frozen=True, slots=True)
class Feature:
    """Something a gang may ask for."""

    title: str
    used: Callable[[PodGang], bool]
    """Whether a gang asks for it."""
    without: PodGang
    with_it: PodGang


def _gang(
    minimums: tuple[int, int] = (2, 2),
    *,
    labels: dict[str, str] | None = None,
    annotations: dict[str, str] | None = None,
    clique: GangTopologyConstraint | None = None,
    group: GangTopologyConstraint | None = None,
    **spec: Any,
) -> PodGang:
    config = TopologyConstraintGroupConfig(
        name="s-0-g-0", pod_group_names=["b"], topology_constraint=group
    )
    return PodGang(
        metadata=ObjectMeta(name="s-0", labels=labels or {}, annotations=annotations or {}),
        spec=PodGangSpec(
            pod_groups=[
                GangPodGroup(name="a", min_replicas=minimums[0], topology_constraint=clique),
                GangPodGroup(name="b", min_replicas=minimums[1]),
            ],
            topology_constraint_group_configs=[config] if group else [],
            **spec,
        ),
    )


def _preferred(gang: PodGang) -> bool:
    found = [gang.spec.topology_constraint]
    found += [config.topology_constraint for config in gang.spec.topology_constraint_group_configs]
    found += [group.topology_constraint for group in gang.spec.pod_groups]
    packs = [constraint.pack_constraint for constraint in found if constraint is not None]
    return any(pack is not None and pack.preferred for pack in packs)


ALL_OR_NOTHING = Feature(
    "All or nothing: a minimum for the whole gang",
    lambda gang: sum(group.min_replicas for group in gang.spec.pod_groups) > 1,
    _gang((2, 2)),
    _gang((3, 2)),
)
FEATURES = (
    ALL_OR_NOTHING,
    Feature(
        "A minimum for each clique",
        lambda gang: len(gang.spec.pod_groups) > 1,
        _gang((3, 2)),
        _gang((2, 3)),
    ),
    Feature(
        "Topology constraint of the gang",
        lambda gang: gang.spec.topology_constraint is not None,
        _gang(),
        _gang(topology_constraint=RACK),
    ),
    Feature(
        "Topology constraint of a scaling group's replica",
        lambda gang: bool(gang.spec.topology_constraint_group_configs),
        _gang(),
        _gang(group=RACK),
    ),
    Feature(
        "Topology constraint of a clique",
        lambda gang: any(g.topology_constraint is not None for g in gang.spec.pod_groups),
        _gang(),
        _gang(clique=RACK),
    ),
    Feature("Preferred topology domain", _preferred, _gang(), _gang(topology_constraint=NEAR)),
    Feature(
        "A set's constraint holds for base and scaled gangs together",
        lambda gang: (
            gang.spec.topology_constraint is not None and names.BASE_POD_GANG in gang.labels
        ),
        _gang(topology_constraint=RACK),
        _gang(topology_constraint=RACK, labels={names.BASE_POD_GANG: "s-0"}),
    ),
    Feature(
        "Priority class of the gang",
        lambda gang: bool(gang.spec.priority_class_name),
        _gang(),
        _gang(priority_class_name="high"),
    ),
    Feature(
        "Queue",
        lambda gang: (
            KAI_QUEUE in gang.labels or VOLCANO_QUEUE_ANNOTATION in gang.metadata.annotations
        ),
        _gang(),
        _gang(labels={KAI_QUEUE: "q"}, annotations={VOLCANO_QUEUE_ANNOTATION: "q"}),
    ),
)


def expresses(backend: Backend, feature: Feature) -> bool:
    """Tell whether the rendering of *backend* says anything of *feature*."""
    return _said(backend, feature.without) != _said(backend, feature.with_it)


def lost(backend: Backend, gang: PodGang) -> list[Feature]:
    """Return what *gang* asks for and *backend* does not pass on."""
    return [
        feature for feature in FEATURES if feature.used(gang) and not expresses(backend, feature)
    ]


def table() -> str:
    """Return the table in Markdown."""
    head = ["What a gang may ask for", *(backend.title for backend in ALL)]
    kinds = [
        "Told by",
        *(
            f"{b.resource.kind} {b.resource.api_version}"
            if b.resource
            else "PodGang itself"
            if b.render(_gang())
            else "nothing"
            for b in ALL
        ),
    ]
    rows = [
        [feature.title, *("yes" if expresses(b, feature) else "no" for b in ALL)]
        for feature in FEATURES
    ]
    lines = [head, ["---"] * len(head), kinds, *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def document(text: str) -> str:
    """Return the document *text* with a current table."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


def _said(backend: Backend, gang: PodGang) -> bytes:
    """Return what the scheduler acts on: labels and annotations of its object are for people."""
    made = backend.render(gang)
    if made is None:
        return b""
    said = made if backend.resource is None else made["spec"]
    return msgspec.json.encode(said, order="sorted")


def main(arguments: list[str]) -> int:
    """Write the table, or check it; return the exit status."""
    text = DOCUMENT.read_text()
    wanted = document(text)
    if "--check" not in arguments:
        DOCUMENT.write_text(wanted)
        return 0
    if text != wanted:
        sys.stderr.write(f"{DOCUMENT} is not current: run this without --check\n")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
