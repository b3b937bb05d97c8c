"""LeaderWorkerSets, as far as they say when the workers of a group start."""

from __future__ import annotations

from typing import ClassVar

import msgspec

from spinney.api.meta import ApiStruct, KubeObject
from spinney.api.resource import Resource

LEADER_READY = "LeaderReady"


class LeaderWorkerSetSpec(ApiStruct):
    """When workers are created: with their leader, or once it is ready."""

    startup_policy: str = "LeaderCreated"


class LeaderWorkerSet(KubeObject):
    """Groups of a leader and its workers."""

    RESOURCE: ClassVar[Resource] = Resource(
        "leaderworkerset.x-k8s.io",
        "v1",
        "LeaderWorkerSet",
        "leaderworkersets",
        short_names=("lws",),
    )
    spec: LeaderWorkerSetSpec = msgspec.field(default_factory=LeaderWorkerSetSpec)
