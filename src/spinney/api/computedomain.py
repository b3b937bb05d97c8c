"""``resource.nvidia.com``: domains of nodes whose GPUs share memory over NVLink (MNNVL).

The GPU driver's own controller makes a ResourceClaimTemplate for each domain, under the name that
the domain gives; pods that claim from it are let into the domain.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

import msgspec
from msgspec import Meta

from spinney.api.meta import ApiStruct, Condition, KubeObject
from spinney.api.resource import Resource


class ClaimTemplateReference(ApiStruct):
    """The name of the template that is made for the domain."""

    name: Annotated[str, Meta(min_length=1)]


class ComputeDomainChannel(ApiStruct):
    """How pods get in."""

    resource_claim_template: ClaimTemplateReference


class ComputeDomainSpec(ApiStruct):
    """How many nodes, and how pods get in."""

    num_nodes: Annotated[int, Meta(ge=0)] = msgspec.field(name="numNodes")
    """0: those that pods of the domain are on."""
    channel: ComputeDomainChannel


class ComputeDomainStatus(ApiStruct):
    """What the driver says of it."""

    status: str = ""
    conditions: list[Condition] = []


class ComputeDomain(KubeObject, kw_only=True):
    """Nodes whose pods share GPU memory."""

    RESOURCE: ClassVar[Resource] = Resource(
        "resource.nvidia.com", "v1beta1", "ComputeDomain", "computedomains"
    )
    spec: ComputeDomainSpec
    status: ComputeDomainStatus = msgspec.field(default_factory=ComputeDomainStatus)
