"""The cluster's state as the scheduler keeps it, one change at a time.

Informers report single changes; a scheduling cycle wants columns over all nodes. The cache keeps
both: what each pod takes is added to its node's row when the pod comes and subtracted when it goes,
so that a snapshot is a copy of two arrays. A pod that was placed and not yet seen on its node is
*assumed* there until the API confirms or denies it.

Nothing here does I/O: a test, or a what-if, fills a cache by hand.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from spinney.api import names
from spinney.api.leaderworkerset import LEADER_READY
from spinney.api.meta import find_condition
from spinney.errors import BadInputError
from spinney.log import get_logger
from spinney.scheduler.affinity import Expression, PodTerm
from spinney.scheduler.budgets import Budget, budget_of
from spinney.scheduler.claims import ClaimBook, claims_of, has_claims, resource_claims
from spinney.scheduler.gang_trees import GangTrees
from spinney.scheduler.gangs import gang_of, lone_gang, tree_of, whole_gang
from spinney.scheduler.gpu_share import GPU, WHOLE, gpu_memory_mib, standing_devices
from spinney.scheduler.queues.model import QueueBook, assigned
from spinney.scheduler.shapes import PodInfo, Shape, gpu_groups, shape_of
from spinney.scheduler.snapshot import Layout, NodeInfo, Snapshot, node_info
from spinney.scheduler.sources.min_member import min_member_key, min_member_spec
from spinney.scheduler.sources.podgroup import (
    podgroup_key,
    podgroup_spec,
    upstream_key,
    upstream_spec,
    workload_groups,
)
from spinney.scheduler.sources.pods import (
    described,
    leaders_first,
    membership,
    set_of_leaders,
    workload_of,
)
from spinney.scheduler.sources.spec import GangSpec

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from numpy.typing import NDArray

    from spinney.api.core import Node, Pod, PriorityClass
    from spinney.api.devices import DeviceClass, ResourceClaim, ResourceSlice
    from spinney.api.grove import ClusterTopologyBinding
    from spinney.api.leaderworkerset import LeaderWorkerSet
    from spinney.api.podgang import PodGang
    from spinney.api.podgroup import MinMemberGroup, PodGroup, UpstreamPodGroup, Workload
    from spinney.api.policy import PodDisruptionBudget
    from spinney.api.queue import Queue
    from spinney.api.storage import PersistentVolume, PersistentVolumeClaim, StorageClass
    from spinney.scheduler.gangs import Gang
    from spinney.scheduler.shapes import PodState
    from spinney.scheduler.sources.spec import GroupSpec

log = get_logger("scheduler")

_HOLDING = ("active", "leaving")
HOSTNAME = "kubernetes.io/hostname"
CLAIM_MARK = "claim.spinney/"
"""Label, in snapshots only, of the pod that a shared claim counts for."""


class Cache:
    """Nodes, pods, gangs, priority classes and topologies."""

    def __init__(
        self,
        scheduler_names: Collection[str] = (names.SPINNEY_SCHEDULER,),
        pool: tuple[str, str] | None = None,
    ) -> None:
        self.scheduler_names = frozenset(scheduler_names)
        self._pool = pool
        """Label key and value of the nodes and pods looked at; an empty value: those without it."""
        self._claims = ClaimBook()
        self._raw_nodes: dict[str, Node] = {}
        self._claiming: dict[str, Pod] = {}
        """Pods with claims, to be looked at again when a claim changes."""
        self._users: dict[str, set[str]] = {}
        """Volume claim or resource claim to the keys of the pods that name it."""
        self._payers: dict[str, str] = {}
        """Resource claim to the pod that it counts for: one on a node, else the first by name."""
        self._nodes: dict[str, NodeInfo] = {}
        self._pods: dict[str, PodInfo] = {}
        self._gangs: dict[str, PodGang] = {}
        self._specs: dict[str, GangSpec] = {}
        """Gangs whose pods say themselves that they belong to it, by gang key."""
        self._workloads: dict[str, dict[str, GroupSpec]] = {}
        self._leaders_first: set[str] = set()
        """LeaderWorkerSets whose workers are made when their leader is ready."""
        self._classes: dict[str, PriorityClass] = {}
        self._topologies: dict[str, tuple[str, ...]] = {}
        self._assumed: dict[str, tuple[str, str, tuple[str, ...]]] = {}
        """Pod key to its uid, the node it was sent to, and shared GPUs there."""
        self._displaced: set[str] = set()
        """Uids of pods whose eviction was accepted."""
        self._nominated: dict[str, str] = {}
        """Pod key to the node on which the API says room is kept for it."""
        self._waiting: dict[str, set[str]] = {}
        """Gang key, or the key of a pod without one, to its pods that are to be placed."""
        self._active: dict[str, set[str]] = {}
        self._scaled: dict[str, set[str]] = {}
        """Base gang to the gangs that were scaled out from it."""
        self._apart: set[str] = set()
        self._sharing: set[str] = set()
        self._reserving: set[str] = set()
        """Pods on nodes that hold a GPU for sharers."""
        self._shapes: dict[Shape, Shape] = {}
        self._queues = QueueBook()
        self._budgets: dict[str, Budget] = {}
        self._trees = GangTrees()
        self._frozen: tuple[int, Mapping[str, PodInfo]] | None = None
        """The pods of the last snapshot, with the version of the trees at that time."""
        self._layout: Layout | None = None
        self._used: NDArray[np.int64] = np.zeros((0, 0), np.int64)
        self._leaving: NDArray[np.int64] = np.zeros((0, 0), np.int64)
        self.room_version = 0
        """Rises whenever something may fit that did not before, or nodes are numbered anew."""

    # What informers report

    def set_node(self, node: Node) -> None:
        """Add or change a node. A heartbeat changes nothing."""
        if self._pool is not None and not _in_pool(node.labels, self._pool):
            self.remove_node(node.name)
            return
        self._raw_nodes[node.name] = node
        try:
            info = node_info(node, self._claims.devices_on(node.name))
        except BadInputError as error:
            log.warning("node is left out", node=node.name, error=str(error))
            self.remove_node(node.name)
            return
        if self._nodes.get(info.name) != info:
            self._nodes[info.name] = info
            self._layout = None
            self.room_version += 1

    def remove_node(self, name: str) -> None:
        """Forget a node."""
        self._raw_nodes.pop(name, None)
        if self._nodes.pop(name, None) is not None:
            self._layout = None
            self.room_version += 1

    def set_pod(self, pod: Pod) -> None:
        """Add or change a pod."""
        old = self._pods.get(pod.key)
        if has_claims(pod):
            self._forget_claims(pod.key)
            self._claiming[pod.key] = pod
            for claim in claims_of(pod):
                self._users.setdefault(claim, set()).add(pod.key)
            self._settle_payers(pod)
        info = self._info(pod)
        if info is None:
            self.remove_pod(pod.key)
            return
        if info.ours and info.state == "pending" and pod.status.nominated_node_name:
            self._nominated[pod.key] = pod.status.nominated_node_name
        else:
            self._nominated.pop(pod.key, None)
        if info != old:
            self._replace(pod.key, info)

    def remove_pod(self, key: str) -> None:
        """Forget a pod."""
        claiming = self._claiming.get(key)
        self._forget_claims(key)
        self._assumed.pop(key, None)
        self._nominated.pop(key, None)
        self._replace(key, None)
        if claiming is not None:
            self._settle_payers(claiming)

    def _forget_claims(self, key: str) -> None:
        pod = self._claiming.pop(key, None)
        for claim in claims_of(pod) if pod is not None else ():
            _index(self._users, claim, key, -1)

    def _settle_payers(self, pod: Pod) -> None:
        """Decide anew which pod each of the resource claims of *pod* counts for."""
        for claim in resource_claims(pod):
            users = self._users.get(claim, set())
            held = [k for k in users if k in self._pods and self._pods[k].state in _HOLDING]
            payer = min(held or users, default="")
            if self._payers.get(claim, "") == payer:
                continue
            self._payers[claim] = payer
            if not payer:
                del self._payers[claim]
            for other in sorted(users - {pod.key}):
                self.set_pod(self._claiming[other])

    def set_gang(self, gang: PodGang) -> None:
        """Add or change a gang."""
        self._gangs[gang.key] = gang
        self._trees.touch(gang.key, *self._scaled.get(gang.key, ()))

    def remove_gang(self, key: str) -> None:
        """Forget a gang."""
        self._gangs.pop(key, None)
        self._trees.touch(key, *self._scaled.get(key, ()))

    def set_volume(self, volume: PersistentVolume) -> None:
        """Add or change a volume."""
        self._claims.set_volume(volume)
        self._claims_changed(self._claiming)

    def set_volume_claim(self, claim: PersistentVolumeClaim) -> None:
        """Add or change a volume claim."""
        if self._claims.set_volume_claim(claim):
            self._claims_changed(self._users.get(claim.key, ()))

    def set_storage_class(self, found: StorageClass) -> None:
        """Add or change a storage class."""
        self._claims.set_storage_class(found)

    def remove_storage_class(self, name: str) -> None:
        """Forget a storage class."""
        self._claims.delayed.discard(name)

    def set_resource_claim(self, claim: ResourceClaim) -> None:
        """Add or change a claim for devices."""
        if self._claims.set_resource_claim(claim):
            self._claims_changed(self._users.get(claim.key, ()))

    def remove_claim(self, key: str) -> None:
        """Forget a volume, a volume claim or a resource claim."""
        self._claims.remove(key)
        self._claims_changed(self._users.get(key, self._claiming))

    def set_device_class(self, found: DeviceClass) -> None:
        """Add or change a class of devices."""
        self._claims.set_device_class(found)
        self._devices_changed()

    def set_resource_slice(self, found: ResourceSlice) -> None:
        """Add or change what a driver offers on a node."""
        self._claims.set_slice(found)
        self._devices_changed()

    def remove_devices(self, name: str) -> None:
        """Forget a class of devices or what a driver offers."""
        self._claims.remove_devices(name)
        self._devices_changed()

    def _claims_changed(self, users: Iterable[str]) -> None:
        for pod in [self._claiming[key] for key in users]:
            self.set_pod(pod)
            self.room_version += 1

    def _devices_changed(self) -> None:
        for node in list(self._raw_nodes.values()):
            self.set_node(node)

    def set_podgroup(self, group: PodGroup) -> None:
        """Add or change a KAI PodGroup; one whose sub-groups are no tree is left out."""
        try:
            self._set_spec(podgroup_spec(group))
        except BadInputError as error:
            log.warning("pod group is left out", group=group.key, error=str(error))
            self.remove_podgroup(group.key)

    def remove_podgroup(self, key: str) -> None:
        """Forget a KAI PodGroup, by ``namespace/name``."""
        namespace, _, name = key.partition("/")
        self._remove_spec(podgroup_key(namespace, name))

    def set_upstream_group(self, group: UpstreamPodGroup) -> None:
        """Add or change an upstream PodGroup."""
        self._set_spec(upstream_spec(group))

    def remove_upstream_group(self, key: str) -> None:
        """Forget an upstream PodGroup, by ``namespace/name``."""
        namespace, _, name = key.partition("/")
        self._remove_spec(upstream_key(namespace, name))

    def set_min_member_group(self, group: MinMemberGroup) -> None:
        """Add or change a PodGroup of the scheduler plugins or of Volcano."""
        self._set_spec(min_member_spec(group))

    def remove_min_member_group(self, kind: type[MinMemberGroup], key: str) -> None:
        """Forget one, by ``namespace/name``."""
        namespace, _, name = key.partition("/")
        self._remove_spec(min_member_key(kind, namespace, name))

    def set_leader_worker_set(self, found: LeaderWorkerSet) -> None:
        """Add or change a LeaderWorkerSet."""
        self.remove_leader_worker_set(found.key)
        if found.spec.startup_policy == LEADER_READY:
            self._leaders_first.add(found.key)
            self._trees.clear()

    def remove_leader_worker_set(self, key: str) -> None:
        """Forget a LeaderWorkerSet."""
        if key in self._leaders_first:
            self._leaders_first.discard(key)
            self._trees.clear()

    def set_workload(self, workload: Workload) -> None:
        """Add or change an upstream Workload."""
        self._workloads[workload.key] = workload_groups(workload)
        self._trees.clear()

    def remove_workload(self, key: str) -> None:
        """Forget an upstream Workload, by ``namespace/name``."""
        self._workloads.pop(key, None)
        self._trees.clear()

    def _set_spec(self, spec: GangSpec) -> None:
        self._specs[spec.key] = spec
        self._trees.touch(spec.key)

    def _remove_spec(self, key: str) -> None:
        if self._specs.pop(key, None) is not None:
            self._trees.touch(key)

    def set_priority_class(self, found: PriorityClass) -> None:
        """Add or change a priority class."""
        self._classes[found.name] = found
        self._trees.clear()

    def remove_priority_class(self, name: str) -> None:
        """Forget a priority class."""
        self._classes.pop(name, None)
        self._trees.clear()

    def set_queue(self, queue: Queue) -> None:
        """Add or change a queue."""
        if self._queues.set(queue):
            self._trees.clear()
            self.room_version += 1

    def remove_queue(self, name: str) -> None:
        """Forget a queue."""
        if self._queues.remove(name):
            self._trees.clear()
            self.room_version += 1

    def set_budget(self, found: PodDisruptionBudget) -> None:
        """Add or change a disruption budget; one with an amount that is none is left out."""
        try:
            self._budgets[found.key] = budget_of(found)
        except BadInputError as error:
            log.warning("budget is left out", budget=found.key, error=str(error))
            self._budgets.pop(found.key, None)
        self._trees.touch()

    def remove_budget(self, key: str) -> None:
        """Forget a disruption budget, by ``namespace/name``."""
        self._budgets.pop(key, None)
        self._trees.touch()

    def set_topology(self, binding: ClusterTopologyBinding) -> None:
        """Add or change a topology."""
        levels = tuple(level.key for level in binding.spec.levels)
        if self._topologies.get(binding.name) != levels:
            self._topologies[binding.name] = levels
            self._layout = None
            self.room_version += 1

    def remove_topology(self, name: str) -> None:
        """Forget a topology."""
        if self._topologies.pop(name, None) is not None:
            self._layout = None
            self.room_version += 1

    # What the binder reports

    def assume(self, key: str, node: str, devices: tuple[str, ...] = ()) -> None:
        """Count the pod as on *node*, and on these shared GPUs of it, whatever the API says."""
        info = self._pods.get(key)
        if info is None:
            return
        self._assumed[key] = (info.uid, node, devices)
        devices = devices or info.gpu_groups
        self._replace(key, replace(info, node=node, state="active", gpu_groups=devices))

    def forget(self, key: str) -> None:
        """Take an assumption back: the pod is pending again, unless the API says otherwise."""
        assumed = self._assumed.pop(key, None)
        info = self._pods.get(key)
        if assumed is not None and info is not None:
            groups = () if assumed[2] else info.gpu_groups
            self._replace(key, replace(info, node="", state="pending", gpu_groups=groups))

    def displace(self, key: str) -> None:
        """Count the pod as leaving: its eviction was accepted, whatever the API still says."""
        info = self._pods.get(key)
        if info is not None and info.state == "active":
            self._displaced.add(info.uid)
            self._replace(key, replace(info, state="leaving"))

    def conflict(self, key: str) -> str:
        """Return what is wrong by now with the node that the pod *key* is assumed on.

        Another scheduler may have used room that this one counted on. Empty when nothing is.
        """
        info = self._pods.get(key)
        if info is None or key not in self._assumed:
            return "the pod is gone"
        layout = self._laid_out()
        row = layout.index.get(info.node)
        if row is None:
            return f"node {info.node} is gone"
        over = [
            name
            for name, _ in info.shape.requests
            if (at := layout.column.get(name)) is not None
            and self._used[row, at] > layout.allocatable[row, at]
        ]
        return f"others took {', '.join(over)} of node {info.node} meanwhile" if over else ""

    # What a cycle takes

    @property
    def nominated(self) -> dict[str, str]:
        """Pending pods with the node on which the API says room is kept for them."""
        return dict(self._nominated)

    @property
    def claims(self) -> ClaimBook:
        """Volumes, claims and devices as last seen."""
        return self._claims

    def claiming(self, key: str) -> Pod | None:
        """Return the pod if it has volume claims or resource claims."""
        return self._claiming.get(key)

    @property
    def pending(self) -> bool:
        """Whether any pod waits to be placed."""
        return bool(self._waiting)

    def gang(self, key: str) -> PodGang | None:
        """Return the PodGang as last seen."""
        return self._gangs.get(key)

    def pod(self, key: str) -> PodInfo | None:
        """Return a pod as last seen or assumed."""
        return self._pods.get(key)

    def waiting_pods(self, gang: str) -> tuple[str, ...]:
        """Return the keys of the pods of *gang* that are to be placed."""
        return tuple(sorted(self._waiting.get(gang, ())))

    def confirmed(self, key: str) -> bool:
        """Tell whether the API has said that the pod is on a node, and stays."""
        info = self._pods.get(key)
        return info is not None and info.state == "active" and key not in self._assumed

    def sharers(self) -> list[PodInfo]:
        """Return the pods on nodes that have parts of GPUs, assumed ones included."""
        return [self._pods[key] for key in sorted(self._sharing)]

    def idle_reservations(self) -> list[str]:
        """Return the keys of pods that hold a GPU which nobody shares."""
        groups = self._groups()
        held = (self._pods[key] for key in sorted(self._reserving))
        return [pod.key for pod in held if (pod.node, pod.reserves) not in groups]

    def _groups(self) -> set[tuple[str, str]]:
        """Return the shared GPUs that sharers name, with their nodes."""
        sharing = (self._pods[key] for key in self._sharing)
        return {(pod.node, group) for pod in sharing for group in pod.gpu_groups}

    def snapshot(self, now: float = 0.0) -> Snapshot:
        """Return the state at *now*. Cheap while nodes stay the same: two arrays are copied."""
        layout = self._laid_out()
        used, leaving = self._used.copy(), self._leaving.copy()
        self._trees.refresh(self._gang, self._waiting, self._active)
        shared = self._shared_devices(layout, used)
        self._count_reservations(layout, used, leaving)
        used.flags.writeable = False
        leaving.flags.writeable = False
        return Snapshot(
            layout,
            used,
            leaving,
            self._frozen_pods(),
            self._trees.waiting(self._waiting),
            tuple(sorted(self._apart)),
            self.room_version,
            self._trees.standing(),
            self._queues.tree,
            self._trees.version + self.room_version,
            now,
            tuple(sorted(self._sharing)),
            shared,
            self._trees.short(),
            tuple(found for _, found in sorted(self._budgets.items())),
        )

    def _frozen_pods(self) -> Mapping[str, PodInfo]:
        """Return the pods as they are now: the same mapping while none of them changes."""
        version = self._trees.version
        if self._frozen is None or self._frozen[0] != version:
            self._frozen = (version, dict(self._pods))
        return self._frozen[1]

    def _shared_devices(
        self, layout: Layout, used: NDArray[np.int64]
    ) -> tuple[tuple[int, int], ...]:
        """Count GPUs that are shared as used, and return how many there are on which nodes."""
        by_row: dict[int, list[PodInfo]] = {}
        for key in self._sharing:
            row = layout.index.get(self._pods[key].node)
            if row is not None:
                by_row.setdefault(row, []).append(self._pods[key])
        found = []
        for row, pods in sorted(by_row.items()):
            memory = gpu_memory_mib(layout.nodes[row].labels)
            devices = len(standing_devices(pods, memory))
            found.append((row, devices))
            if GPU in layout.column:
                used[row, layout.column[GPU]] += devices * WHOLE
        return tuple(found)

    def _count_reservations(
        self, layout: Layout, used: NDArray[np.int64], leaving: NDArray[np.int64]
    ) -> None:
        """Count a GPU once that is shared and held; one that is held for nobody is leaving."""
        if not self._reserving:
            return
        groups, column = self._groups(), layout.column.get(GPU)
        for key in sorted(self._reserving):
            pod = self._pods[key]
            row = layout.index.get(pod.node)
            if row is None or pod.state == "leaving":
                continue
            if (pod.node, pod.reserves) not in groups:
                leaving[row] += layout.vector(pod.shape.requests)
                continue
            groups.discard((pod.node, pod.reserves))
            if column is not None:
                used[row, column] -= min(dict(pod.shape.requests).get(GPU, 0), WHOLE)

    def judge(self, key: str) -> Gang | None:
        """Return the tree of the gang *key* as it stands, pending pods or not."""
        known = key in self._gangs or key in self._waiting or key in self._active
        return self._gang(key) if known else None

    def _gang(self, key: str) -> Gang:
        gang = self._tree_of(key)
        podgang = self._gangs.get(key)
        pods = (*self._waiting.get(key, ()), *self._active.get(key, ()))
        labels: dict[str, str] = dict(self._pods[min(pods)].labels) if pods else {}
        return assigned(gang, labels | (podgang.labels if podgang is not None else {}))

    def _tree_of(self, key: str) -> Gang:
        podgang = self._gangs.get(key)
        members = [self._pods[p] for p in (*self._waiting.get(key, ()), *self._active.get(key, ()))]
        if podgang is None and (spec := self._spec(key, members)) is not None:
            return tree_of(spec, members, priority=self._spec_priority(spec, members))
        if podgang is None and key not in self._waiting:
            return whole_gang(key, [self._pods[p] for p in self._active[key]], self._pod_priority)
        if podgang is None:
            pod = self._pods[min(self._waiting[key])]
            lone = lone_gang(pod, self._pod_priority(pod))
            if pod.gang:
                return replace(lone, key=key, lone=False, waiting=f"waits for {described(key)}")
            return lone
        base = self._base(key)
        base_key = base.key if base is not None else key
        family_keys = {base_key, *self._scaled.get(base_key, ())} - {key}
        family = [self._pods[p] for g in family_keys for p in self._active.get(g, ())]
        scaled = sorted(self._scaled.get(key, ()))
        followers = (self._pending_of(gang) for gang in scaled)
        return gang_of(
            podgang,
            self._pods,
            priority=self._gang_priority(podgang),
            topology=podgang.metadata.annotations.get(names.TOPOLOGY_NAME, ""),
            base=base,
            family=tuple(sorted(family, key=lambda p: p.key)),
            followers=tuple(pods for pods in followers if pods),
        )

    def _pending_of(self, gang: str) -> tuple[PodInfo, ...]:
        return tuple(self._pods[key] for key in sorted(self._waiting.get(gang, ())))

    def _spec(self, key: str, members: Iterable[PodInfo]) -> GangSpec | None:
        found = self._specs.get(key)
        if found is None:
            found = next((p.implied for p in members if p.implied is not None), None)
            if found is not None and set_of_leaders(key) in self._leaders_first:
                return leaders_first(found)
        if found is None and (owner := workload_of(key)) is not None:
            group = self._workloads.get(owner[0], {}).get(owner[1])
            found = GangSpec(key, group) if group is not None else None
        return found

    def _spec_priority(self, spec: GangSpec, members: Iterable[PodInfo]) -> int:
        named = self._classes.get(spec.priority_class)
        if named is not None:
            return named.value
        return max((self._pod_priority(pod) for pod in members), default=0)

    def _base(self, key: str) -> PodGang | None:
        for pod in sorted((*self._waiting.get(key, ()), *self._active.get(key, ()))):
            base = self._pods[pod].base_gang
            if base and base != key:
                return self._gangs.get(base)
        return None

    def _gang_priority(self, podgang: PodGang) -> int:
        named = self._classes.get(podgang.spec.priority_class_name)
        if named is not None:
            return named.value
        keys = self._waiting.get(podgang.key) or self._active.get(podgang.key) or set()
        pods = [self._pods[p] for p in keys]
        return max((self._pod_priority(p) for p in pods), default=0)

    def _pod_priority(self, pod: PodInfo) -> int:
        if pod.priority is not None:
            return pod.priority
        named = self._classes.get(pod.priority_class)
        if named is not None:
            return named.value
        defaults = [c.value for c in self._classes.values() if c.global_default]
        return max(defaults, default=0)

    def _info(self, pod: Pod) -> PodInfo | None:
        ours = pod.spec.scheduler_name in self.scheduler_names
        ours = ours and (self._pool is None or _in_pool(pod.labels, self._pool))
        promised = "" if ours else pod.status.nominated_node_name
        if not ours and not pod.spec.node_name and not promised:
            return None
        state = self._state(pod)
        if promised and state == "pending":
            # Another scheduler has made room for it there, and so has nobody else.
            state = "active"
        if state == "pending" and not self._claims.exist_for(pod):
            state = "gated"
        node, devices = pod.spec.node_name or promised, gpu_groups(pod)
        assumed = self._assumed.get(pod.key)
        if assumed is not None:
            if node or assumed[0] != pod.metadata.uid or state != "pending":
                del self._assumed[pod.key]
            else:
                node, state = assumed[1], "active"
                devices = assumed[2] or devices
        if state == "active" and pod.metadata.uid in self._displaced:
            state = "leaving"
        try:
            shape, labels = self._shared_claims(pod, ours=ours and state == "pending")
        except BadInputError as error:
            log.warning("pod is left out", pod=pod.key, error=str(error))
            return None
        member = membership(pod)
        base = labels.get(names.BASE_POD_GANG, "")
        return PodInfo(
            pod.key,
            pod.metadata.uid,
            state,
            self._shapes.setdefault(shape, shape),
            node,
            member.gang,
            f"{pod.namespace}/{base}" if base else "",
            ours,
            labels,
            pod.spec.priority,
            pod.spec.priority_class_name,
            pod.metadata.creation_timestamp or "",
            _started(pod) if node else "",
            pod.status.phase == "Succeeded",
            member.group,
            member.implied,
            devices,
            labels.get(names.GPU_RESERVATION, ""),
        )

    def _shared_claims(self, pod: Pod, *, ours: bool) -> tuple[Shape, Mapping[str, str]]:
        """Return the shape of *pod* and its labels, with what claims add that it shares.

        A claim counts for one of its pods. Until it is allocated the others go to the node of that
        one: to them it has a label of its own.
        """
        paid, labels = [], pod.labels
        for claim in resource_claims(pod) if has_claims(pod) else ():
            payer = self._payers.get(claim, pod.key)
            if self._claims.settled(claim):
                continue
            if payer == pod.key:
                labels = {**labels, CLAIM_MARK + claim: ""}
            else:
                paid.append(claim)
        shape = shape_of(pod, *self._claims.of(pod, paid))
        if paid and ours:
            terms = tuple(
                PodTerm(HOSTNAME, (Expression(CLAIM_MARK + claim, "Exists"),), ()) for claim in paid
            )
            shape = replace(shape, pod_affinity=(*shape.pod_affinity, *terms))
        return shape, labels

    @staticmethod
    def _state(pod: Pod) -> PodState:
        if pod.status.phase in ("Succeeded", "Failed"):
            return "ended"
        if pod.spec.node_name:
            return "leaving" if pod.deleting else "active"
        if pod.deleting:
            return "ended"
        return "gated" if pod.spec.scheduling_gates else "pending"

    def _replace(self, key: str, new: PodInfo | None) -> None:
        old = self._pods.pop(key, None)
        if old is not None:
            self._count(old, -1)
            if new is None or new.uid != old.uid:
                self._displaced.discard(old.uid)
        if new is not None:
            self._pods[key] = new
            self._count(new, 1)
        for pod in (old, new):
            if pod is not None:
                base = pod.base_gang or pod.gang
                self._trees.touch(pod.gang or pod.key, base, *self._scaled.get(base, ()))
        self._note_room(old, new)

    def _note_room(self, old: PodInfo | None, new: PodInfo | None) -> None:
        held = old is not None and old.state in _HOLDING
        holds = new is not None and new.state in _HOLDING
        leaves = new is not None and new.state == "leaving" != (old.state if old else "")
        if (held and not holds) or leaves:
            self.room_version += 1

    def _count(self, pod: PodInfo, sign: int) -> None:
        owner = pod.gang or pod.key
        if pod.ours and pod.state == "pending":
            _index(self._waiting, owner, pod.key, sign)
        if pod.state == "active" and (pod.gang or pod.ours):
            _index(self._active, owner, pod.key, sign)
        if pod.base_gang and pod.gang and sign > 0:
            self._scaled.setdefault(pod.base_gang, set()).add(pod.gang)
        if pod.state not in _HOLDING:
            return
        if pod.reserves:
            (self._reserving.add if sign > 0 else self._reserving.discard)(pod.key)
        if pod.shape.share is not None:
            (self._sharing.add if sign > 0 else self._sharing.discard)(pod.key)
        if pod.shape.pod_anti_affinity:
            (self._apart.add if sign > 0 else self._apart.discard)(pod.key)
        if self._layout is not None:
            self._take(self._layout, pod, sign)

    def _take(self, layout: Layout, pod: PodInfo, sign: int) -> None:
        row = layout.index.get(pod.node)
        if row is None:
            return
        if any(name not in layout.column for name, _ in pod.shape.requests):
            self._layout = None
            return
        vector = layout.vector(pod.shape.requests) * sign
        self._used[row] += vector
        if pod.state == "leaving":
            self._leaving[row] += vector

    def _laid_out(self) -> Layout:
        if self._layout is None:
            holding = [p for p in self._pods.values() if p.state in _HOLDING]
            asked = {name for pod in holding for name, _ in pod.shape.requests}
            layout = Layout(self._nodes.values(), self._topologies, asked)
            self._used = np.zeros_like(layout.allocatable)
            self._leaving = np.zeros_like(layout.allocatable)
            self._layout = layout
            for pod in holding:
                self._take(layout, pod, 1)
        return self._layout


def _in_pool(labels: Mapping[str, str], pool: tuple[str, str]) -> bool:
    key, value = pool
    return labels.get(key, "") == value


def _started(pod: Pod) -> str:
    """Return when the pod came to its node."""
    bound = find_condition(pod.status.conditions, "PodScheduled")
    since = bound.last_transition_time if bound and bound.status == "True" else None
    return pod.status.start_time or since or pod.metadata.creation_timestamp or ""


def _index(index: dict[str, set[str]], at: str, key: str, sign: int) -> None:
    if sign > 0:
        index.setdefault(at, set()).add(key)
        return
    found = index.get(at)
    if found is not None:
        found.discard(key)
        if not found:
            del index[at]
