"""A connection that serves the controllers badly, and a guard that looks at each of their writes.

The guard asks the API itself, past all copies, whether a write keeps what was promised. Controllers
decide by what they last saw; so what happened less than `FRESH_S` ago is not held against them.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec

from spinney.api.core import Pod
from spinney.api.grove import PodClique
from spinney.api.podgang import PodGang
from spinney.controllers.pod_state import is_live, is_ready, is_scheduled
from spinney.controllers.template import clique_count
from spinney.kube.errors import NotFoundError
from spinney.kube.transport import JSON_PATCH, ApiResponse, TransportError

if TYPE_CHECKING:
    import random
    from collections.abc import AsyncIterator

    from spinney.api.meta import KubeObject
    from spinney.kube.client import KubeClient
    from spinney.kube.transport import ApiRequest, Transport

FRESH_S = 1.0
_HASH = "grove.io/pod-template-hash"
_CONFLICT = (
    b'{"kind":"Status","status":"Failure","reason":"Conflict","code":409,"message":"was faster"}'
)


class BadConnection:
    """Between the controllers and the API: refuses, loses answers, shows changes late."""

    def __init__(self, inner: Transport, rng: random.Random) -> None:
        self._inner = inner
        self._rng = rng
        self.conflicts = 0.0
        """Share of changes that are refused because somebody else was faster."""
        self.contested = ""
        """What they concern: a part of the path."""
        self.lost = 0.0
        """Share of writes that are done and not answered."""
        self.lag_s = 0.0
        """How much later, at most, than it happens a change is seen."""
        self.late: dict[str, float] = {}
        """The same for some resources, exactly so much later."""

    def mend(self) -> None:
        self.conflicts = self.lost = self.lag_s = 0.0
        self.late, self.contested = {}, ""

    async def send(self, request: ApiRequest) -> ApiResponse:
        changes = request.method in ("PATCH", "PUT") and self.contested in request.path
        if changes and self._rng.random() < self.conflicts:
            return ApiResponse(409, _CONFLICT)
        response = await self._inner.send(request)
        if request.method != "GET" and self._rng.random() < self.lost:
            raise TransportError("the connection broke before the answer came")
        if response.stream is not None:
            response.stream = self._late(response.stream, request.path)
        return response

    async def _late(self, stream: AsyncIterator[bytes], path: str) -> AsyncIterator[bytes]:
        resource = path.rsplit("/", 1)[-1]
        try:
            async for chunk in stream:
                lag_s = self.late.get(resource) or self._rng.random() * self.lag_s
                if lag_s:
                    await asyncio.sleep(lag_s)
                yield chunk
        finally:
            await stream.aclose()  # type: ignore[attr-defined]

    async def close(self) -> None:
        await self._inner.close()


class Guard:
    """Looks at what the controllers are about to write; `broken` has what they should not have."""

    def __init__(self, inner: BadConnection, truth: KubeClient) -> None:
        self._inner = inner
        self._truth = truth
        self._disturbed_s = -FRESH_S
        self.broken: list[str] = []
        self.checked = 0

    def disturbed(self) -> None:
        """Say that something happened to the cluster just now."""
        self._disturbed_s = asyncio.get_running_loop().time()

    async def send(self, request: ApiRequest) -> ApiResponse:
        calm_s = asyncio.get_running_loop().time() - self._disturbed_s
        if calm_s >= FRESH_S and not self._inner.lag_s:
            await self._look(request)
        return await self._inner.send(request)

    async def close(self) -> None:
        await self._inner.close()

    async def _look(self, request: ApiRequest) -> None:
        place = request.path.split("/")
        if request.method in ("POST", "PATCH") and "podgangs" in place and place[-1] != "status":
            at = place.index("podgangs")
            await self._listing(request, place[at - 1], "".join(place[at + 1 :]))
        if "pods" not in place or place[-2] != "pods":
            return
        namespace, name = place[-3], place[-1]
        try:
            pod = await self._truth.get(Pod, name, namespace)
        except NotFoundError:
            return
        if request.method == "DELETE":
            await self._removal(pod)
        elif request.content_type == JSON_PATCH:
            await self._release(pod, request)

    async def _release(self, pod: Pod, request: ApiRequest) -> None:
        """A gate opens for a pod that its gang lists, and after the gang that goes first."""
        steps = msgspec.json.decode(request.body)
        if not any(step["op"] == "remove" and "schedulingGates" in step["path"] for step in steps):
            return
        self.checked += 1
        gang = await self._gang(pod, "grove.io/podgang")
        listed = {r.name for g in gang.spec.pod_groups for r in g.pod_references} if gang else set()
        if pod.name not in listed:
            self.broken.append(f"{pod.name} is released and its gang does not list it")
        if "grove.io/base-podgang" in pod.labels:
            base = await self._gang(pod, "grove.io/base-podgang")
            if base is None:
                self.broken.append(f"{pod.name} is released and there is no base gang")
            else:
                await self._has(base, "is released before its base gang has nodes", pod)

    async def _listing(self, request: ApiRequest, namespace: str, name: str) -> None:
        """A gang lists pods for the first time when all its cliques have their minimum of them."""
        body = msgspec.json.decode(request.body)
        groups = (body.get("spec") or {}).get("podgroups") or ()
        listed = [ref for group in groups for ref in group.get("podReferences") or ()]
        try:
            gang = await self._truth.get(PodGang, name or body["metadata"]["name"], namespace)
            before = [ref for group in gang.spec.pod_groups for ref in group.pod_references]
        except NotFoundError:
            before = []
        if not listed or before:
            return
        self.checked += 1
        for group in groups:
            labels = f"grove.io/podclique={group['name']}"
            found = (await self._truth.list(Pod, namespace, labels=labels)).items
            if sum(map(is_live, found)) < group.get("minReplicas", 0):
                self.broken.append(f"a gang lists pods before there are those of {group['name']}")

    async def _has(self, gang: PodGang, what: str, pod: Pod) -> None:
        """Note where a gang has fewer pods with nodes than its minimum."""
        for group in gang.spec.pod_groups:
            found = [p for p in await self._pods(gang, group.name) if is_live(p)]
            if sum(map(is_scheduled, found)) < group.min_replicas:
                self.broken.append(f"{pod.name} {what}: {group.name} has too few")

    async def _removal(self, pod: Pod) -> None:
        """A pod that serves is given up while what its clique needs serves without it.

        One of an older revision may be the last of those needed: its successor takes its place.
        """
        if not is_ready(pod):
            return
        self.checked += 1
        clique = await self._clique(pod)
        if clique is None or clique.deleting:
            return
        needed = clique_count(clique).needed
        old = pod.labels.get(_HASH) != clique.labels.get(_HASH)
        pods = await self._pods(pod, clique.name)
        serving = sum(map(is_ready, pods))
        idle = [p.name for p in pods if is_live(p) and not is_ready(p)]
        if idle and not old:
            self.broken.append(f"{pod.name} is given up, which serves, before {idle}")
        if serving - (0 if old else 1) < needed:
            self.broken.append(f"{pod.name} is given up: {serving} serve and {needed} are needed")

    async def _pods(self, near: KubeObject, clique: str) -> list[Pod]:
        labels = f"grove.io/podclique={clique}"
        return (await self._truth.list(Pod, near.namespace, labels=labels)).items

    async def _gang(self, pod: Pod, label: str) -> PodGang | None:
        try:
            return await self._truth.get(PodGang, pod.labels.get(label, ""), pod.namespace)
        except NotFoundError:
            return None

    async def _clique(self, pod: Pod) -> PodClique | None:
        try:
            name = pod.labels["grove.io/podclique"]
            return await self._truth.get(PodClique, name, pod.namespace)
        except NotFoundError:
            return None
