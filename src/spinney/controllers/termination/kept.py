"""What outlives the cliques of a replica that is made anew: how far each was scaled.

A standalone clique holds its own scale. Before it is deleted, its count is noted on the base
gang of its replica, which stays, and the clique that takes its place starts from it. An edit of the
template in between wins.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from spinney.api import names
from spinney.controllers import identity

if TYPE_CHECKING:
    from collections.abc import Iterable

    from spinney.api.grove import PodClique
    from spinney.api.podgang import PodGang

KEPT_REPLICAS = "spinney.dev/kept-replicas"
"""Annotation of a base gang: JSON, by name of a clique, its replicas and those of its template."""

_Notes = dict[str, tuple[int, str]]


def note(cliques: Iterable[PodClique]) -> str | None:
    """Return what the annotation has to say of *cliques*; None when none was scaled."""
    notes: _Notes = {}
    for clique in cliques:
        said = clique.metadata.annotations.get(identity.TEMPLATE_REPLICAS, "")
        scaled = clique.spec.replicas
        if names.SCALING_GROUP not in clique.labels and scaled is not None and str(scaled) != said:
            notes[clique.name] = (scaled, said)
    return msgspec.json.encode(notes, order="sorted").decode() if notes else None


def resume(clique: PodClique, gang: PodGang | None) -> PodClique:
    """Return a *clique* to be made with the count that was noted for it, if one was."""
    text = gang.metadata.annotations.get(KEPT_REPLICAS) if gang is not None else None
    if not text:
        return clique
    try:
        notes = msgspec.json.decode(text, type=_Notes)
    except msgspec.DecodeError:
        return clique
    replicas, said = notes.get(clique.name, (0, ""))
    if not said or said != clique.metadata.annotations.get(identity.TEMPLATE_REPLICAS):
        return clique
    return msgspec.structs.replace(
        clique, spec=msgspec.structs.replace(clique.spec, replicas=replicas)
    )
