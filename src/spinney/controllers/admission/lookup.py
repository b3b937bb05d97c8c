"""What rules look up while a webhook answers: informers' copies, and the API for what they miss.

A copy may lag behind by a moment, so that it does not know yet what the same `kubectl apply` made
just before. Only what the API itself does not have counts as missing.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from spinney.api import codec
from spinney.api.grove import (
    ClusterTopologyBinding,
    PodClique,
    PodCliqueScalingGroup,
    PodCliqueSet,
)
from spinney.kube.errors import NotFoundError

if TYPE_CHECKING:
    from spinney.api.admission import AdmissionHook, AdmissionRequest, Verdict
    from spinney.api.meta import KubeObject
    from spinney.api.resource import Resource, Unstructured
    from spinney.kube.client import KubeClient
    from spinney.kube.controller import Runtime
    from spinney.kube.informer import Informer

ROUNDS = 4
"""How often a hook is asked again with what it missed; rules look up two objects at most."""

_Key = tuple["Resource", str, str]


class Lookup:
    """Finds objects for hooks. *protects* adds what the authorizer looks up."""

    def __init__(self, runtime: Runtime, *, protects: bool = False) -> None:
        self._client: KubeClient = runtime.client
        kinds: list[type[KubeObject]] = [ClusterTopologyBinding, PodClique, PodCliqueScalingGroup]
        if protects:
            kinds.append(PodCliqueSet)
        self._informers: dict[str, Informer[Any]] = {
            kind.RESOURCE.name: runtime.informer(kind) for kind in kinds
        }

    @property
    def ready(self) -> bool:
        """Whether the first lists are there."""
        return all(informer.synced for informer in self._informers.values())

    async def judge(self, hook: AdmissionHook, request: AdmissionRequest) -> Verdict:
        """Return what *hook* says of *request*, with all it asks for looked up.

        Raises ApiError and TransportError when the API cannot say whether an object is there.
        """
        fetched: dict[_Key, Unstructured | None] = {}
        for _ in range(ROUNDS):
            missed: list[_Key] = []
            asked = replace(request, lookup=_finder(self._informers, fetched, missed))
            verdict = hook.validate(asked)
            if not missed:
                break
            for key in missed:
                fetched[key] = await self._fetch(*key)
        return verdict

    async def _fetch(self, resource: Resource, namespace: str, name: str) -> Unstructured | None:
        try:
            return await self._client.get(resource, name, namespace or None)
        except NotFoundError:
            return None


def _finder(
    informers: dict[str, Informer[Any]],
    fetched: dict[_Key, Unstructured | None],
    missed: list[_Key],
) -> Any:
    """Return a lookup that notes in *missed* what it knows nothing of."""

    def find(resource: Resource, namespace: str, name: str) -> Unstructured | None:
        key = (resource, namespace, name)
        if key in fetched:
            return fetched[key]
        informer = informers.get(resource.name)
        found = informer.get(name, namespace) if informer else None
        if found is not None:
            return codec.to_dict(found)
        missed.append(key)
        return None

    return find
