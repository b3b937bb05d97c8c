"""What a manifest becomes, before it is created: gangs and pods, made by the real controllers.

The controllers run against an API server in memory, in simulated time, with no nodes and no
scheduler, until they have nothing left to do. So admission, defaults, naming and the shape of
gangs are those that the cluster would give.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from spinney.api import codec
from spinney.api.core import Pod, PriorityClass
from spinney.api.grove import PodCliqueSet
from spinney.api.leaderworkerset import LeaderWorkerSet
from spinney.api.meta import KubeObject, ObjectMeta
from spinney.api.podgang import PodGang
from spinney.api.podgroup import (
    CoschedulingPodGroup,
    PodGroup,
    UpstreamPodGroup,
    VolcanoPodGroup,
)
from spinney.api.queue import Queue
from spinney.cli.session import CommandError, explain
from spinney.cli.workload_pods import KINDS as WORKLOADS
from spinney.cli.workload_pods import pods_of
from spinney.errors import BadInputError
from spinney.kube.errors import AlreadyExistsError, ApiError
from spinney.scheduler.scenario import Objects

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from spinney.api.resource import Unstructured
    from spinney.clock import Clock
    from spinney.ids import IdSource
    from spinney.kube.client import KubeClient
    from spinney.kube.transport import Transport
    from spinney.sim.cluster import SimulatedCluster

K = TypeVar("K", bound=KubeObject)

QUIET_S = 5.0
"""Simulated seconds without a write after which the controllers are done."""
MAX_S = 600.0
"""Simulated seconds after which they are taken to be at odds with each other."""

_KINDS: dict[tuple[str, str], type[KubeObject]] = {
    (kind.RESOURCE.group, kind.RESOURCE.kind): kind
    for kind in (
        PodGang,
        PodGroup,
        UpstreamPodGroup,
        CoschedulingPodGroup,
        VolcanoPodGroup,
        Pod,
        PriorityClass,
        Queue,
        LeaderWorkerSet,
    )
}


def compiled(documents: Sequence[Unstructured], state: Objects, namespace: str) -> Objects:
    """Return what *documents* become in a cluster with the topologies and classes of *state*.

    Objects of kinds that do not matter to placing are left out. Raises BadInputError when nothing
    is left, CommandError when the cluster would refuse an object.
    """
    result = Objects()
    sets = []
    for document in documents:
        kind, group = document["kind"], document["apiVersion"].rpartition("/")[0]
        if kind == "PodCliqueSet":
            sets.append(document)
        if (group, kind) in _KINDS:
            _take(result, _KINDS[group, kind], document, namespace)
        if kind in WORKLOADS:
            result.pods.extend(pods_of(document, namespace))
    if sets:
        found = _made_by_controllers(sets, state, namespace)
        result.gangs.extend(found.gangs)
        result.pods.extend(found.pods)
    if not result.pods:
        kinds = ", ".join(["PodCliqueSet", "Pod", *WORKLOADS])
        raise BadInputError(f"the manifest makes no pods to place; of use are {kinds}")
    return result


def _take(result: Objects, kind: type[KubeObject], document: Unstructured, namespace: str) -> None:
    if kind.RESOURCE.namespaced:
        document["metadata"].setdefault("namespace", namespace)
    try:
        obj = codec.from_dict(kind, document)
    except codec.DecodeError as error:
        title = f"{document['kind']} {document['metadata']['name']!r}"
        raise BadInputError(f"{title}: {error}") from error
    places: dict[type[KubeObject], list[Any]] = {
        PodGang: result.gangs,
        PodGroup: result.groups,
        UpstreamPodGroup: result.upstream,
        CoschedulingPodGroup: result.min_member,
        VolcanoPodGroup: result.min_member,
        Pod: result.pods,
        PriorityClass: result.classes,
        Queue: result.queues,
        LeaderWorkerSet: result.leader_worker_sets,
    }
    places[kind].append(obj)


def _made_by_controllers(sets: Sequence[Unstructured], state: Objects, namespace: str) -> Objects:
    from spinney.controllers.setup import register
    from spinney.sim.cluster import simulate

    async def scene(cluster: SimulatedCluster) -> Objects:
        await _create(cluster.client, sets, state, namespace)
        await _quiet(cluster)
        return Objects(
            gangs=(await cluster.client.list(PodGang)).items,
            pods=(await cluster.client.list(Pod)).items,
        )

    return simulate(scene, seed=1, nodes=(), api=_api(), programs=(register,))


def _api() -> Callable[[Clock, IdSource], Transport]:
    from spinney.api.crd import crd_documents
    from spinney.api.grove_admission import GroveAdmission
    from spinney.local.apiserver.server import ApiServer

    def make(clock: Clock, ids: IdSource) -> ApiServer:
        return ApiServer(clock, ids, hooks=[GroveAdmission()], definitions=crd_documents())

    return make


async def _create(
    client: KubeClient, sets: Sequence[Unstructured], state: Objects, namespace: str
) -> None:
    for obj in (*state.topologies, *state.classes):
        with contextlib.suppress(AlreadyExistsError):  # every cluster has the system's classes
            await client.create(_new(obj))
    for document in sets:
        document["metadata"].setdefault("namespace", namespace)
        try:
            await client.create(document, resource=PodCliqueSet.RESOURCE)
        except ApiError as error:
            raise CommandError(explain(error)) from error


def _new(obj: K) -> K:
    """Return *obj* as one that no API has stored yet."""
    metadata = ObjectMeta(name=obj.name, labels=obj.labels, annotations=obj.metadata.annotations)
    return msgspec.structs.replace(obj, metadata=metadata)


async def _quiet(cluster: SimulatedCluster) -> None:
    """Wait until the controllers have not written for a while."""
    loop = asyncio.get_running_loop()
    seen, since_s = len(cluster.transport.writes), loop.time()
    while loop.time() - since_s < QUIET_S:
        await asyncio.sleep(0.5)
        if len(cluster.transport.writes) != seen:
            seen, since_s = len(cluster.transport.writes), loop.time()
        if loop.time() > MAX_S:
            raise CommandError("the controllers do not come to rest over this manifest")
