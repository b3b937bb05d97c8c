"""The configurations by which an API server finds the webhook."""

from __future__ import annotations

import asyncio
import base64
from dataclasses import dataclass
from typing import TYPE_CHECKING

from spinney.api import names
from spinney.api.grove import (
    ClusterTopologyBinding,
    PodClique,
    PodCliqueScalingGroup,
    PodCliqueSet,
)
from spinney.api.grove_authorizer import PROTECTED
from spinney.api.resource import Resource
from spinney.controllers.admission.app import AUTHORIZE, MUTATE, VALIDATE
from spinney.errors import SpinneyError
from spinney.kube.errors import ApiError
from spinney.kube.transport import TransportError
from spinney.log import get_logger

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from spinney.api.resource import Unstructured
    from spinney.kube.client import KubeClient

log = get_logger("webhook")

NAME = "spinney-admission"
DOMAIN = "admission.spinney.dev"
TIMEOUT_S = 10
"""How long the API server waits; then it refuses the write."""
RETRY_S = 2.0
"""Between attempts to register while the API server cannot be reached."""


@dataclass(frozen=True, slots=True)
class ServiceAddress:
    """A Service in front of the webhook."""

    namespace: str
    name: str
    port: int = 443


def webhook_manifests(
    address: ServiceAddress | str, authority: bytes, *, protects: bool = False
) -> list[Unstructured]:
    """Return the webhook configurations, to be applied as they are.

    *address* is a Service, or an ``https://`` URL that the API server can reach. *authority*
    is the PEM of the authority that signed the webhook's certificate. *protects* adds the
    authorizer.
    """
    bundle = base64.b64encode(authority).decode()
    scaled = (PodClique.RESOURCE, PodCliqueScalingGroup.RESOURCE)

    def webhook(name: str, path: str, rules: Sequence[Unstructured]) -> Unstructured:
        return {
            "name": f"{name}.{DOMAIN}",
            "admissionReviewVersions": ["v1"],
            "clientConfig": {"caBundle": bundle, **_client(address, path)},
            "rules": list(rules),
            "failurePolicy": "Fail",
            "matchPolicy": "Exact",
            "sideEffects": "None",
            "timeoutSeconds": TIMEOUT_S,
        }

    sets = _rule(PodCliqueSet.RESOURCE, ("CREATE", "UPDATE"))
    bindings = _rule(ClusterTopologyBinding.RESOURCE, ("CREATE", "UPDATE"))
    scaling = [_rule(resource, ("UPDATE",), subresources=("", "/scale")) for resource in scaled]
    validating = [
        webhook("podcliquesets", VALIDATE, [sets]),
        webhook("clustertopologybindings", VALIDATE, [bindings]),
        webhook("scaling", VALIDATE, scaling),
    ]
    if protects:
        rules = [_rule(resource, sorted(done)) for resource, done in PROTECTED.items()]
        managed = {"matchLabels": {names.MANAGED_BY: names.OPERATOR}}
        validating.append(webhook("managed", AUTHORIZE, rules) | {"objectSelector": managed})
    return [
        _configuration("Mutating", [webhook("defaults", MUTATE, [sets])]),
        _configuration("Validating", validating),
    ]


async def register_webhook(client: KubeClient, documents: Iterable[Unstructured]) -> None:
    """Apply configurations of `webhook_manifests`, waiting for an API server that is away.

    Raises SpinneyError naming the one that the API server refuses.
    """
    for document in documents:
        kind, name = document["kind"], document["metadata"]["name"]
        group, _, version = document["apiVersion"].partition("/")
        resource = Resource(group, version, kind, f"{kind.lower()}s", namespaced=False)
        try:
            await _apply_when_there(client, document, resource)
        except ApiError as error:
            raise SpinneyError(f"cannot register {resource.plural}/{name}: {error}") from error
        log.info("registered", kind=kind, name=name)


async def _apply_when_there(client: KubeClient, document: Unstructured, resource: Resource) -> None:
    while True:
        try:
            await client.apply(document, resource, force=True)
        except TransportError as error:
            log.warning("cannot register yet", kind=resource.kind, error=str(error))
            await asyncio.sleep(RETRY_S)
        else:
            return


def _configuration(which: str, webhooks: list[Unstructured]) -> Unstructured:
    return {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": f"{which}WebhookConfiguration",
        "metadata": {"name": NAME},
        "webhooks": webhooks,
    }


def _rule(
    resource: Resource, operations: Iterable[str], *, subresources: Sequence[str] = ("",)
) -> Unstructured:
    return {
        "apiGroups": [resource.group],
        "apiVersions": [resource.version],
        "resources": [f"{resource.plural}{part}" for part in subresources],
        "operations": list(operations),
        "scope": "Namespaced" if resource.namespaced else "Cluster",
    }


def _client(address: ServiceAddress | str, path: str) -> Unstructured:
    if isinstance(address, str):
        return {"url": f"{address.rstrip('/')}{path}"}
    return {
        "service": {
            "namespace": address.namespace,
            "name": address.name,
            "port": address.port,
            "path": path,
        }
    }
