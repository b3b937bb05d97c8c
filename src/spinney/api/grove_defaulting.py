"""Defaults of the ``grove.io`` kinds that a schema cannot express.

Rule names (D1 …) are those of the compatibility checklist in ``docs/compatibility.md``.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from spinney.api.resource import Unstructured

TERMINATION_DELAY = "4h"
GRACE_PERIOD_S = 30
STARTUP_TYPE = "CliqueStartupTypeAnyOrder"


def default_pod_clique_set(obj: Unstructured, old: Unstructured | None = None) -> Unstructured:
    """Return *obj* with defaults filled in; what has the wrong shape is left for validation.

    A ``minAvailable`` that an update leaves out is that of *old*: it is immutable, so to take it
    from changed replicas would refuse the update.
    """
    result = copy.deepcopy(obj)
    if result.get("metadata") is None:
        result["metadata"] = {}
    metadata = result["metadata"]
    if isinstance(metadata, dict) and not metadata.get("namespace"):
        metadata["namespace"] = "default"  # D1
    spec = result.get("spec")
    template = spec.get("template") if isinstance(spec, dict) else None
    if not isinstance(spec, dict) or not isinstance(template, dict):
        return result
    _fill(spec, "replicas", 0)
    _fill(template, "cliqueStartupType", STARTUP_TYPE)
    _fill(template, "terminationDelay", TERMINATION_DELAY)  # D8
    _fill(template, "headlessServiceConfig", {"publishNotReadyAddresses": True})  # D9
    minimums = _minimums(old)
    for clique in _objects(template.get("cliques")):
        _default_clique(clique, minimums.get(str(clique.get("name"))))
    for group in _objects(template.get("podCliqueScalingGroups")):
        _default_group(group)
    return result


def _fill(target: dict[str, Any], key: str, value: Any) -> None:
    """Set what is absent; an explicit null is absent too."""
    if target.get(key) is None:
        target[key] = value


def _minimums(old: Unstructured | None) -> dict[str, int]:
    """Return ``minAvailable`` by name of clique, as *old* has it."""
    found = {}
    template = ((old or {}).get("spec") or {}).get("template") or {}
    for clique in _objects(template.get("cliques")):
        spec = clique.get("spec")
        minimum = spec.get("minAvailable") if isinstance(spec, dict) else None
        if isinstance(minimum, int):
            found[str(clique.get("name"))] = minimum
    return found


def _default_clique(clique: dict[str, Any], stored_minimum: int | None) -> None:
    spec = clique.get("spec")
    if not isinstance(spec, dict):
        return
    pod_spec = spec.get("podSpec")
    if isinstance(pod_spec, dict):
        if not pod_spec.get("restartPolicy"):
            pod_spec["restartPolicy"] = "Always"  # D2
        if pod_spec.get("terminationGracePeriodSeconds") is None:
            pod_spec["terminationGracePeriodSeconds"] = GRACE_PERIOD_S  # D3
    if not spec.get("replicas"):
        spec["replicas"] = 1  # D4
    # D5, D6: from the defaulted replicas, not from an omitted value that counts as 0.
    if spec.get("minAvailable") is None:
        spec["minAvailable"] = stored_minimum or spec["replicas"]
    scaling = spec.get("autoScalingConfig")
    if isinstance(scaling, dict) and scaling.get("minReplicas") is None:
        scaling["minReplicas"] = spec["replicas"]


def _default_group(group: dict[str, Any]) -> None:
    if group.get("replicas") is None:
        group["replicas"] = 1
    if group.get("minAvailable") is None:
        group["minAvailable"] = 1
    scaling = group.get("scaleConfig")
    if isinstance(scaling, dict) and scaling.get("minReplicas") is None:
        scaling["minReplicas"] = group["replicas"]  # D7


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, list):
        yield from (item for item in value if isinstance(item, dict))
