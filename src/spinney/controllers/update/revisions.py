"""Which pod templates a set has rolled out: told apart, stored, and rolled back to.

A template is the same as a stored one when it says the same, by today's reading of both; then it
*is* the stored one, with the hashes it was stored with. Hashes are never computed a second time,
so neither another way to hash nor another default of a newer Spinney rolls a pod.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from spinney.api import names
from spinney.api.codec import without_nulls
from spinney.api.core import ControllerRevision
from spinney.api.grove_defaulting import GRACE_PERIOD_S
from spinney.api.meta import ObjectMeta
from spinney.controllers import identity
from spinney.controllers.template import generation_hash, pod_template_hash

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from spinney.api.grove import PodClique, PodCliqueSet, PodCliqueSetTemplate

HISTORY_LIMIT = 10
"""Revisions that are kept besides those in use, where the set does not say."""
_DEFAULTED = {"restartPolicy": "Always", "terminationGracePeriodSeconds": GRACE_PERIOD_S}
"""What admission fills into a pod template: saying it is the same as not saying it."""


@dataclass(frozen=True, slots=True)
class PodTemplate:
    """How the pods of one role are in a revision."""

    hash: str
    labels: dict[str, str]
    annotations: dict[str, str]
    pod_spec: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Revision:
    """All pod templates of a set, as they were or are to be rolled out together."""

    id: str
    number: int
    roles: Mapping[str, PodTemplate]
    """By the clique's name in the template."""
    priority_class_name: str = ""
    stored: bool = False

    @property
    def hashes(self) -> dict[str, str]:
        """The pod-template hash of each role."""
        return {name: role.hash for name, role in self.roles.items()}

    def group_hash(self, cliques: Iterable[str]) -> str:
        """Return what tells apart revisions of a scaling group with these *cliques*."""
        return "-".join(self.roles[name].hash for name in cliques if name in self.roles)


def read(found: ControllerRevision) -> Revision | None:
    """Return the revision that *found* stores, None if it stores something else."""
    try:
        data = msgspec.convert(found.data, _Stored)
    except msgspec.ValidationError:
        return None
    roles = {
        role.name: PodTemplate(role.hash, role.labels, role.annotations, role.pod_spec)
        for role in data.cliques
    }
    return Revision(data.id, found.revision, roles, data.priority_class_name, stored=True)


def read_all(found: Iterable[ControllerRevision]) -> list[Revision]:
    """Return the stored revisions, the newest first."""
    revisions = [revision for obj in found if (revision := read(obj)) is not None]
    return sorted(revisions, key=lambda r: (-r.number, r.id))


def of_template(template: PodCliqueSetTemplate, stored: Sequence[Revision] = ()) -> Revision:
    """Return the revision that *template* says: the *stored* one that says the same, or a new one.

    *stored* has the newest first. A role that is as in a stored revision keeps its hash.
    """
    roles = {
        clique.name: PodTemplate(
            pod_template_hash(template, clique),
            clique.labels,
            clique.annotations,
            clique.spec.pod_spec,
        )
        for clique in template.cliques
    }
    fresh = Revision(generation_hash(template), 1, roles, template.priority_class_name)
    wanted = {name: _meaning(fresh, name) for name in roles}
    for old in stored:
        if old.roles.keys() == roles.keys() and all(
            _meaning(old, name) == meaning for name, meaning in wanted.items()
        ):
            return old
    kept = {
        name: next(
            (old.roles[name] for old in stored if _has(old, name, meaning)),
            roles[name],
        )
        for name, meaning in wanted.items()
    }
    number = max((old.number for old in stored), default=0) + 1
    return Revision(fresh.id, number, kept, fresh.priority_class_name)


def target(pcs: PodCliqueSet, stored: Sequence[Revision]) -> Revision:
    """Return the revision that the set's pods are to be of.

    A rollback to a revision that is not stored changes nothing: the set stays as it is.
    """
    strategy = pcs.spec.update_strategy
    number = strategy.rollback_to if strategy is not None else None
    if number is not None:
        for old in stored:
            if old.number == number:
                return old
        for old in stored:
            if old.id == pcs.status.current_generation_hash:
                return old
    return of_template(pcs.spec.template, stored)


def at(pcs: PodCliqueSet, revision: Revision) -> PodCliqueSet:
    """Return the set with the pod templates of *revision*; *pcs* is not changed."""
    template = pcs.spec.template
    cliques = []
    for clique in template.cliques:
        role = revision.roles.get(clique.name)
        if role is not None:
            spec = msgspec.structs.replace(clique.spec, pod_spec=role.pod_spec)
            clique = msgspec.structs.replace(
                clique, spec=spec, labels=role.labels, annotations=role.annotations
            )
        cliques.append(clique)
    changed = msgspec.structs.replace(
        template, cliques=cliques, priority_class_name=revision.priority_class_name
    )
    return msgspec.structs.replace(pcs, spec=msgspec.structs.replace(pcs.spec, template=changed))


def clique_as(
    clique: PodClique, now: PodTemplate | None, then: PodTemplate, revision: Revision
) -> PodClique:
    """Return *clique*, whose template is *now*, with the template *then* of *revision*."""
    ours = clique.labels if now is None else _except(clique.labels, now.labels)
    notes = clique.metadata.annotations
    theirs = notes if now is None else _except(notes, now.annotations)
    labels = {**ours, names.POD_TEMPLATE_HASH: then.hash, names.REVISION: revision.id}
    metadata = msgspec.structs.replace(
        clique.metadata,
        labels={**then.labels, **labels},
        annotations={**then.annotations, **theirs},
    )
    spec = msgspec.structs.replace(clique.spec, pod_spec=then.pod_spec)
    return msgspec.structs.replace(clique, metadata=metadata, spec=spec)


def _except(values: Mapping[str, str], gone: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in values.items() if gone.get(key) != value}


def to_store(pcs: PodCliqueSet, revision: Revision) -> ControllerRevision:
    """Return the object that keeps *revision*."""
    name = f"{pcs.name}-{revision.id}"
    data = _Stored(
        id=revision.id,
        priority_class_name=revision.priority_class_name,
        cliques=[
            _StoredRole(
                name=role,
                hash=kept.hash,
                labels=kept.labels,
                annotations=kept.annotations,
                pod_spec=kept.pod_spec,
            )
            for role, kept in revision.roles.items()
        ],
    )
    return ControllerRevision(
        metadata=ObjectMeta(
            name=name,
            namespace=pcs.namespace,
            labels=identity.managed_labels(pcs.name, name, "pcs-revision"),
            owner_references=[pcs.owner_reference()],
        ),
        data=msgspec.to_builtins(data),
        revision=revision.number,
    )


def surplus(
    stored: Sequence[Revision], current: Revision, hashes: Collection[str], limit: int
) -> list[Revision]:
    """Return the *stored* revisions to drop, newest first in *stored*.

    Kept are *current*, the newest that has each of the pod *hashes* in use, and *limit* others.
    """
    used = {current.id}
    for pod_hash in hashes:
        newest = next((r.id for r in stored if pod_hash in r.hashes.values()), None)
        used |= {newest} if newest is not None else set()
    return list(itertools.islice((r for r in stored if r.id not in used), limit, None))


class _StoredRole(msgspec.Struct, rename="camel", omit_defaults=True):
    name: str
    hash: str
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    pod_spec: dict[str, Any] = {}


class _Stored(msgspec.Struct, rename="camel", omit_defaults=True):
    id: str
    cliques: list[_StoredRole]
    priority_class_name: str = ""


def _has(revision: Revision, role: str, meaning: dict[str, Any]) -> bool:
    return role in revision.roles and _meaning(revision, role) == meaning


def _meaning(revision: Revision, name: str) -> dict[str, Any]:
    """Return what a role's template says, without what is said by default anyway."""
    role = revision.roles[name]
    spec = without_nulls(role.pod_spec)
    return {
        "labels": role.labels,
        "annotations": role.annotations,
        "priority": revision.priority_class_name,
        "podSpec": {k: v for k, v in spec.items() if _DEFAULTED.get(k) != v},
    }
