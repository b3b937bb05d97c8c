"""What generated objects are called and labelled.

Names are Grove's, so that its manifests, dashboards and address recipes work. A name is only ever
built here, never taken apart: which set, replica, group or clique an object belongs to is
read from its labels, because ``a-b`` may be clique ``b`` of set ``a`` or clique ``a-b``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from spinney.api import names

if TYPE_CHECKING:
    from collections.abc import Mapping

    from spinney.api.meta import KubeObject

Component = Literal[
    "pcs-headless-service",
    "pod-role",
    "pod-role-binding",
    "pcs-podcliquescalinggroup",
    "pcs-podclique",
    "pcsg-podclique",
    "podgang",
    "pcs-hpa",
    "pcs-revision",
    "resource-claim",
    "pcs-computedomain",
]

TEMPLATE_REPLICAS = "spinney.dev/template-replicas"
"""Annotation: the template's replica count when it last set the object's own. While the template
says the same, a scaled value stands; when the template is edited, the edit wins."""
SET_FINALIZER = "grove.io/podcliqueset.grove.io"


def replica_name(set_name: str, replica: int) -> str:
    """Name the headless service and the base gang of a replica of the set."""
    return f"{set_name}-{replica}"


def clique_name(set_name: str, replica: int, clique: str) -> str:
    """Name a clique that is in no scaling group."""
    return f"{set_name}-{replica}-{clique}"


def group_name(set_name: str, replica: int, group: str) -> str:
    """Name a scaling group."""
    return f"{set_name}-{replica}-{group}"


def member_name(group_full_name: str, group_replica: int, clique: str) -> str:
    """Name a clique of one replica of a scaling group."""
    return f"{group_full_name}-{group_replica}-{clique}"


def scaled_gang_name(group_full_name: str, group_replica: int, min_available: int) -> str:
    """Name the gang of a group replica above the minimum; the first such one has index 0."""
    return f"{group_full_name}-{group_replica - min_available}"


def claim_name(owner: str, claim_template: str, index: int | None = None) -> str:
    """Name the resource claim that all below *owner* share, or those of its replica *index*."""
    return f"{owner}-{'all' if index is None else index}-{claim_template}"


def compute_domain_name(set_name: str, replica: int, mnnvl_group: str) -> str:
    """Name the compute domain of a set's replica, and the claim template made for it."""
    return f"{set_name}-{replica}-{mnnvl_group}"


def role_name(set_name: str) -> str:
    """Name the Role, and its binding, by which waiting pods read their parents."""
    return f"grove.io:pcs:{set_name}"


def managed_labels(set_name: str, name: str, component: Component) -> dict[str, str]:
    """Return the labels that every generated object has."""
    return {
        names.MANAGED_BY: names.OPERATOR,
        names.PART_OF: set_name,
        names.NAME: name,
        names.COMPONENT: component,
    }


def replica_selector(set_name: str, replica: int) -> dict[str, str]:
    """Return the labels that select all pods of a replica of the set."""
    return {
        names.MANAGED_BY: names.OPERATOR,
        names.PART_OF: set_name,
        names.SET_REPLICA_INDEX: str(replica),
    }


def set_key(obj: KubeObject) -> str:
    """Return ``namespace/name`` of the set that *obj* is part of, empty if it is part of none."""
    owner = obj.labels.get(names.PART_OF)
    return f"{obj.namespace}/{owner}" if owner else ""


def replica_key(obj: KubeObject) -> str:
    """Return ``namespace/set/index`` of the set's replica that *obj* is part of, or empty."""
    replica = index_label(obj.labels, names.SET_REPLICA_INDEX)
    return "" if replica is None else f"{set_key(obj)}/{replica}"


def gang_key(obj: KubeObject) -> str:
    """Return ``namespace/name`` of the gang that *obj* belongs to, empty if to none."""
    gang = obj.labels.get(names.POD_GANG)
    return f"{obj.namespace}/{gang}" if gang else ""


def base_gang_key(obj: KubeObject) -> str:
    """Return ``namespace/name`` of the gang that has to be scheduled first, empty if none."""
    gang = obj.labels.get(names.BASE_POD_GANG)
    return f"{obj.namespace}/{gang}" if gang else ""


def group_key(obj: KubeObject) -> str:
    """Return ``namespace/name`` of the scaling group that *obj* is in, empty if in none."""
    group = obj.labels.get(names.SCALING_GROUP)
    return f"{obj.namespace}/{group}" if group else ""


def index_label(labels: Mapping[str, str], key: str) -> int | None:
    """Return the index that label *key* carries, or None when there is none."""
    text = labels.get(key, "")
    return int(text) if text.isdecimal() else None


@dataclass(frozen=True, slots=True)
class GangIdentity:
    """Which part of which set a gang is: a replica's base, or one group replica above it."""

    set_name: str
    replica: int
    group: str | None = None
    """Full name of the scaling group; None for the base gang."""
    group_replica: int | None = None

    @property
    def is_base(self) -> bool:
        """Whether it is the gang that the others of the replica wait for."""
        return self.group is None


def gang_identity(labels: Mapping[str, str]) -> GangIdentity | None:
    """Read the identity of a gang from its own labels or from those of one of its cliques."""
    set_name = labels.get(names.PART_OF)
    replica = index_label(labels, names.SET_REPLICA_INDEX)
    if not set_name or replica is None:
        return None
    if names.BASE_POD_GANG not in labels:
        return GangIdentity(set_name, replica)
    group = labels.get(names.SCALING_GROUP)
    group_replica = index_label(labels, names.SCALING_GROUP_REPLICA_INDEX)
    if group is None or group_replica is None:
        return None
    return GangIdentity(set_name, replica, group, group_replica)
