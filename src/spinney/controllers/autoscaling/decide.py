"""Which HorizontalPodAutoscalers a set has: one for each target, named like it.

A standalone clique with ``autoScalingConfig`` and a scaling group with ``scaleConfig`` are targets,
in each replica of the set by themselves. Bounds and metrics follow the template; what somebody
adds, such as ``behavior``, is left alone. No autoscaler asks for less than ``minAvailable``. What
is scaled to zero is left asleep by its autoscaler: Kubernetes has it so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from spinney.api import names
from spinney.api.core import HorizontalPodAutoscaler
from spinney.api.grove import PodClique, PodCliqueScalingGroup
from spinney.api.meta import ObjectMeta
from spinney.controllers import identity
from spinney.controllers.actions import Change, Create, Delete, covers, metadata_patch
from spinney.controllers.template import (
    group_template_count,
    set_replicas,
    standalone_cliques,
    template_count,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from spinney.api.grove import AutoScalingConfig, PodCliqueSet
    from spinney.api.resource import Resource
    from spinney.controllers.actions import Action


def decide(pcs: PodCliqueSet, existing: Mapping[str, HorizontalPodAutoscaler]) -> list[Action]:
    """Return what brings the *existing* autoscalers of a set, by name, to what it asks for."""
    if pcs.deleting:
        return []
    wanted = {made.name: made for made in wanted_autoscalers(pcs)}
    actions: list[Action] = [
        Delete(found)
        for name, found in sorted(existing.items())
        if name not in wanted and not found.deleting
    ]
    for name, made in wanted.items():
        found = existing.get(name)
        if found is None:
            actions.append(Create(made))
        elif not found.deleting and (patch := _changes(found, made)):
            actions.append(Change(found, patch))
    return actions


def wanted_autoscalers(pcs: PodCliqueSet) -> list[HorizontalPodAutoscaler]:
    """Return the autoscalers of all replicas, in the order of the template."""
    template = pcs.spec.template
    made = []
    for replica in range(set_replicas(pcs)):
        for clique in standalone_cliques(template):
            if clique.spec.auto_scaling_config is not None:
                name = identity.clique_name(pcs.name, replica, clique.name)
                minimum = template_count(clique).minimum
                config = clique.spec.auto_scaling_config
                made.append(_build(pcs, replica, name, PodClique.RESOURCE, config, minimum))
        for group in template.pod_clique_scaling_groups:
            if group.scale_config is not None:
                name = identity.group_name(pcs.name, replica, group.name)
                minimum = group_template_count(group).minimum
                kind = PodCliqueScalingGroup.RESOURCE
                made.append(_build(pcs, replica, name, kind, group.scale_config, minimum))
    return made


def _build(
    pcs: PodCliqueSet,
    replica: int,
    name: str,
    target: Resource,
    config: AutoScalingConfig,
    minimum: int,
) -> HorizontalPodAutoscaler:
    spec: dict[str, Any] = {
        "scaleTargetRef": {
            "apiVersion": target.api_version,
            "kind": target.kind,
            "name": name,
        },
        "minReplicas": max(config.min_replicas or minimum, minimum, 1),
        "maxReplicas": config.max_replicas,
    }
    if config.metrics:
        spec["metrics"] = config.metrics
    labels = identity.managed_labels(pcs.name, name, "pcs-hpa")
    return HorizontalPodAutoscaler(
        metadata=ObjectMeta(
            name=name,
            namespace=pcs.namespace,
            labels={**labels, names.SET_REPLICA_INDEX: str(replica)},
            annotations={HAS_METRICS: "true"} if config.metrics else {},
            owner_references=[pcs.owner_reference()],
        ),
        spec=spec,
    )


HAS_METRICS = "spinney.dev/has-metrics"
"""Annotation: the metrics are the template's. Without, they are what the API server fills in."""


def _changes(existing: HorizontalPodAutoscaler, wanted: HorizontalPodAutoscaler) -> dict[str, Any]:
    patch = metadata_patch(existing, wanted.labels, wanted.metadata.annotations)
    spec = {k: v for k, v in wanted.spec.items() if not covers(existing.spec.get(k), v)}
    if HAS_METRICS in existing.metadata.annotations and "metrics" not in wanted.spec:
        spec["metrics"] = None
        patch.setdefault("metadata", {})["annotations"] = {HAS_METRICS: None}
    if spec:
        patch["spec"] = spec
    return patch
