"""What a scheduler back end is: a pure rendering of a PodGang, and marks on its pods.

A PodGang is the one description of a gang. Our scheduler reads it as it is; others get an object of
their own kind, made from it and owned by it. What a kind has no words for is lost, and
`lost` names it, so that nobody takes silence for consent.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

    from spinney.api.podgang import GangTopologyConstraint, PodGang
    from spinney.api.resource import Resource, Unstructured


@dataclass(frozen=True, slots=True)
class PodMarks:
    """What a pod carries so that the scheduler finds its gang."""

    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    spec: Mapping[str, Any] = field(default_factory=dict)


class Backend(Protocol):
    """A scheduler that gangs can be handed to."""

    @property
    def scheduler(self) -> str:
        """What pods name as their scheduler."""
        ...

    @property
    def title(self) -> str:
        """What people call it."""
        ...

    @property
    def resource(self) -> Resource | None:
        """The kind it is told of gangs by; None when it reads PodGangs, or nothing at all."""
        ...

    def render(self, gang: PodGang) -> Unstructured | None:
        """Return the object for *gang*; None when there is no such kind."""
        ...

    def marks(self, gang: str, clique: str) -> PodMarks:
        """Return what a pod of *clique*, of the gang of that name, carries."""
        ...


def levels(constraint: GangTopologyConstraint | None) -> tuple[str, str]:
    """Return the label keys of the required and of the preferred domain, empty where none is."""
    pack = constraint.pack_constraint if constraint is not None else None
    return (pack.required or "", pack.preferred or "") if pack is not None else ("", "")


def rendered(resource: Resource, gang: PodGang, spec: dict[str, Any]) -> Unstructured:
    """Return an object named, labelled and owned as one that stands for *gang*."""
    owner = gang.owner_reference()
    return {
        "apiVersion": resource.api_version,
        "kind": resource.kind,
        "metadata": {
            "name": gang.name,
            "namespace": gang.namespace,
            "labels": dict(gang.labels),
            "annotations": dict(gang.metadata.annotations),
            "ownerReferences": [
                {
                    "apiVersion": owner.api_version,
                    "kind": owner.kind,
                    "name": owner.name,
                    "uid": owner.uid,
                    "controller": True,
                    "blockOwnerDeletion": True,
                }
            ],
        },
        "spec": spec,
    }
