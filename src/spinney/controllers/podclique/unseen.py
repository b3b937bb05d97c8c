"""What this process has written to pods and its informer has not shown yet.

An informer lags behind the writes of its own process. Deciding by it alone would create a pod
twice. So each write leaves a note, by the pod's uid, until the informer shows its effect, and
the pods that are decided by are those of the informer with the notes applied. Notes are
by uid because a name may be used again. A pod that was created and deleted between two lists of
the informer is never shown; so a note that gets old is checked against the API.

Where no answer to a creation came, the API is asked what there is before anything is decided again.
So it is where a pod vanished that nobody here deleted and that had no node: its clique may be gone,
and pods made for it would be collected as fast as they are made.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from spinney.api import names
from spinney.api.core import Pod
from spinney.api.grove import PodClique
from spinney.controllers.pod_state import is_gated
from spinney.kube.errors import NotFoundError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from spinney.clock import Clock
    from spinney.kube.client import KubeClient
    from spinney.kube.informer import Change, Informer

RECHECK_S = 30.0
"""Age at which a note about a pod that the informer never showed is checked."""


class UnseenWrites:
    """Notes on the pods of all cliques."""

    def __init__(self, pods: Informer[Pod], clock: Clock) -> None:
        self._informer = pods
        self._clock = clock
        self._created: dict[str, dict[str, tuple[Pod, float]]] = {}
        self._deleted: set[str] = set()
        self._opened: set[str] = set()
        self._doubtful: dict[str, bool] = {}
        pods.add_handler(self._shown)

    def created(self, pod: Pod) -> None:
        """Note that *pod*, as the API returned it, was created."""
        if self._known(pod) is None:
            owner = pod.controller_uid() or ""
            note = (pod, self._clock.now())
            self._created.setdefault(owner, {})[pod.metadata.uid] = note

    def doubt(self, owner_uid: str) -> None:
        """Note that of a clique that was looked at the pods, or itself, may not be as shown."""
        if owner_uid in self._doubtful:
            self._doubtful[owner_uid] = True

    def deleted(self, pod: Pod) -> None:
        """Note that *pod* was asked to go."""
        known = self._known(pod)
        if known is not None and not known.deleting:
            self._deleted.add(pod.metadata.uid)
        self._drop(pod)

    def opened(self, pod: Pod) -> None:
        """Note that the gate of *pod* was removed."""
        known = self._known(pod)
        if known is None or is_gated(known):
            self._opened.add(pod.metadata.uid)

    def apply(self, owner_uid: str, pods: Iterable[Pod]) -> list[Pod]:
        """Return the informer's *pods* of a clique as they are after the noted writes, by name."""
        found = {pod.metadata.uid: self._updated(pod) for pod in pods}
        for uid, (pod, _) in self._created.get(owner_uid, {}).items():
            found.setdefault(uid, self._updated(pod))
        return sorted(found.values(), key=lambda pod: pod.name)

    async def recheck(self, client: KubeClient, clique: PodClique) -> bool:
        """Clear doubts about *clique* and drop old notes whose pod is gone.

        Returns whether the clique exists, as far as anybody doubted that.
        """
        now, owner_uid = self._clock.now(), clique.metadata.uid
        if self._doubtful.setdefault(owner_uid, False):
            if not await _exists(client, clique):
                return False
            labels = f"{names.POD_CLIQUE}={clique.name}"
            found = await client.list(Pod, clique.namespace, labels=labels)
            for pod in found.items:
                if pod.controller_uid() == owner_uid:
                    self.created(pod)
            self._doubtful[owner_uid] = False
        for uid, (pod, since) in list(self._created.get(owner_uid, {}).items()):
            if now - since < RECHECK_S:
                continue
            try:
                now_there = await client.get(Pod, pod.name, pod.namespace)
            except NotFoundError:
                self._drop(pod)
                continue
            if now_there.metadata.uid != uid:
                self._drop(pod)
        return True

    def forget(self, owner_uid: str) -> None:
        """Drop all notes of a clique that is gone."""
        self._doubtful.pop(owner_uid, None)
        for uid in self._created.pop(owner_uid, {}):
            self._opened.discard(uid)

    def _updated(self, pod: Pod) -> Pod:
        uid = pod.metadata.uid
        if uid in self._deleted and not pod.deleting:
            stamp = pod.metadata.creation_timestamp or ""
            metadata = msgspec.structs.replace(pod.metadata, deletion_timestamp=stamp)
            pod = msgspec.structs.replace(pod, metadata=metadata)
        if uid in self._opened and is_gated(pod):
            spec = msgspec.structs.replace(pod.spec, scheduling_gates=[])
            pod = msgspec.structs.replace(pod, spec=spec)
        return pod

    def _known(self, pod: Pod) -> Pod | None:
        known = self._informer.get(pod.name, pod.namespace)
        return known if known is not None and known.metadata.uid == pod.metadata.uid else None

    def _drop(self, pod: Pod) -> None:
        notes = self._created.get(pod.controller_uid() or "")
        if notes is not None:
            notes.pop(pod.metadata.uid, None)
            if not notes:
                del self._created[pod.controller_uid() or ""]

    def _shown(self, change: Change[Pod]) -> None:
        pod = change.object
        uid = pod.metadata.uid
        self._drop(pod)
        if change.new is None and not (pod.deleting or pod.spec.node_name or uid in self._deleted):
            self.doubt(pod.controller_uid() or "")
        if change.new is None or pod.deleting:
            self._deleted.discard(uid)
        if change.new is None or not is_gated(pod):
            self._opened.discard(uid)


async def _exists(client: KubeClient, clique: PodClique) -> bool:
    try:
        found = await client.get(PodClique, clique.name, clique.namespace)
    except NotFoundError:
        return False
    return found.metadata.uid == clique.metadata.uid and not found.deleting
