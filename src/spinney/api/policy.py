"""Disruption budgets: how many pods of a kind may be missing by somebody's decision."""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec

from spinney.api.meta import ApiStruct, KubeObject
from spinney.api.resource import Resource


class PodDisruptionBudgetSpec(ApiStruct):
    """Which pods, and how many of them have to run: a number, or a percentage such as ``50%``."""

    selector: dict[str, Any] = {}
    min_available: int | str | None = None
    max_unavailable: int | str | None = None


class PodDisruptionBudget(KubeObject):
    """What the eviction of a pod is measured against."""

    RESOURCE: ClassVar[Resource] = Resource(
        "policy", "v1", "PodDisruptionBudget", "poddisruptionbudgets", short_names=("pdb",)
    )
    spec: PodDisruptionBudgetSpec = msgspec.field(default_factory=PodDisruptionBudgetSpec)
