"""Brings the pods of a clique to where `decide` wants them, and reports.

Writes of one pod from its creation to its release: the creation and the removal of the gate.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import msgspec

from spinney.api import codec, names
from spinney.api.core import Pod
from spinney.api.grove import PodClique
from spinney.clock import rfc3339
from spinney.controllers import actions, gangs
from spinney.controllers.conditions import last_errors
from spinney.controllers.pacing import Pacer
from spinney.controllers.pod_state import is_finished, is_ready, why_not_ready
from spinney.controllers.podclique.backoff import ReplacementBackoff
from spinney.controllers.podclique.decide import (
    CreatePod,
    DeletePod,
    MarkRevision,
    Observation,
    OpenGate,
    decide,
)
from spinney.controllers.podclique.pod import WAIT_IMAGE, build_pod
from spinney.controllers.podclique.status import clique_status, has_reached, is_progress
from spinney.controllers.template import clique_count
from spinney.errors import SpinneyError
from spinney.kube.controller import Result
from spinney.kube.errors import ApiError, ConflictError, InvalidError, NotFoundError
from spinney.kube.transport import JSON_PATCH

if TYPE_CHECKING:
    from collections.abc import Sequence

    from spinney.clock import Clock
    from spinney.controllers.backends.handover import Handover
    from spinney.controllers.podclique.decide import Action
    from spinney.controllers.world import World
    from spinney.kube.client import KubeClient
    from spinney.kube.events import EventRecorder


STALE_S = 1.0
"""When to look again at a clique of which the informer shows an older state than the API has: it is
about to show the present one, but may be behind while its watch is broken."""
_NAMED_CLAIMS = 3
"""Missing claims that a message tells of one by one."""


class ClaimsMissingError(SpinneyError):
    """Pods cannot be made yet, because claims they share do not exist."""


class GateMovedError(SpinneyError):
    """Somebody else changed the gates of a pod."""


class PodCliqueReconciler:
    """Reconciles PodCliques by ``namespace/name``."""

    def __init__(
        self,
        client: KubeClient,
        world: World,
        clock: Clock,
        events: EventRecorder,
        handover: Handover,
        *,
        wait_image: str = WAIT_IMAGE,
    ) -> None:
        self._client = client
        self._world = world
        self._clock = clock
        self._events = events
        self._handover = handover
        self._wait_image = wait_image
        self._unseen = world.unseen
        self._pacer = Pacer(clock)
        self._backoff = ReplacementBackoff(clock)
        self._uids: dict[str, str] = {}
        self._replaced: dict[str, list[str]] = {}
        self._reached: set[str] = set()
        """Cliques whose minimum had nodes: what came and went between two writes counts too."""

    async def reconcile(self, key: str) -> Result | None:
        """Bring the pods of one clique one step closer to its spec; write its status."""
        clique = self._world.cliques.get_key(key)
        if clique is None or self._uids.get(key, clique.metadata.uid) != clique.metadata.uid:
            self._forget(key)
        if clique is None or clique.deleting:
            return None
        uid = clique.metadata.uid
        self._uids[key] = uid
        if not await self._unseen.recheck(self._client, clique):
            return Result(STALE_S)
        pods = self._world.pods_of_clique(clique)
        finished = [pod for pod in pods if is_finished(pod) and not pod.deleting]
        backoff_s = self._backoff.wait_s(key, (pod.metadata.uid for pod in finished))
        todo, lacking = self._with_claims(
            clique, decide(clique, self._observe(clique, pods, backoff_s))
        )
        if _takes_what_serves(todo) and not await actions.is_current(self._client, clique):
            return Result(STALE_S)
        errors = await self._perform(clique, todo)
        self._note_replaced(clique, todo)
        pods = self._world.pods_of_clique(clique)
        if pods and all(map(is_ready, pods)) and len(pods) >= clique_count(clique).target:
            self._backoff.succeeded(key)
        told = [*lacking, *(error for error in errors if not _is_race(error))]
        status_s = await self._report(key, clique, pods, told)
        if errors:
            raise errors[0]
        waits = [s for s in (status_s, backoff_s if finished else None) if s]
        return Result(min(waits)) if waits else None

    def _with_claims(
        self, clique: PodClique, todo: Sequence[Action]
    ) -> tuple[Sequence[Action], list[Exception]]:
        """Return *todo* without pods that share a claim that is not there, and what they lack.

        The claim's appearance brings the clique back here.
        """
        missing = self._world.missing_claims(clique)
        made: list[Action] = []
        lacking = set(missing)
        for action in todo:
            index = action.index if isinstance(action, CreatePod) else None
            own = self._world.missing_claims(clique, index) if index is not None else []
            if index is None or not (missing or own):
                made.append(action)
            lacking |= set(own)
        if not lacking or len(made) == len(todo):
            return todo, []
        named = ", ".join(sorted(lacking)[:_NAMED_CLAIMS])
        return made, [
            ClaimsMissingError(f"pods wait for resource claims that are missing: {named}")
        ]

    def _note_replaced(self, clique: PodClique, todo: Sequence[Action]) -> None:
        """Remember, for the status, which pods go because they are of another revision."""
        own = clique.labels.get(names.POD_TEMPLATE_HASH)
        gone = [
            action.pod.name
            for action in todo
            if isinstance(action, DeletePod)
            and action.pod.labels.get(names.POD_TEMPLATE_HASH) != own
        ]
        progress = clique.status.update_progress
        if gone:
            self._replaced.setdefault(clique.metadata.uid, []).extend(gone)
        elif progress is not None and progress.update_ended_at is not None:
            self._replaced.pop(clique.metadata.uid, None)

    def _forget(self, key: str) -> None:
        self._replaced.pop(self._uids.get(key, ""), None)
        uid = self._uids.pop(key, "")
        self._unseen.forget(uid)
        self._reached.discard(uid)
        self._pacer.forget(key)
        self._backoff.succeeded(key)

    def _observe(self, clique: PodClique, pods: Sequence[Pod], backoff_s: float) -> Observation:
        gang = self._world.gangs.get(clique.labels.get(names.POD_GANG, ""), clique.namespace)
        groups = gang.spec.pod_groups if gang is not None and not gang.deleting else []
        listed = {
            ref.name
            for group in groups
            if group.name == clique.name
            for ref in group.pod_references
        }
        return Observation(
            pods=pods,
            listed=frozenset(listed),
            base_scheduled=self._base_scheduled(clique),
            may_replace_finished=backoff_s <= 0,
        )

    def _base_scheduled(self, clique: PodClique) -> bool:
        base = clique.labels.get(names.BASE_POD_GANG)
        if base is None:
            return True
        gang = self._world.gangs.get(base, clique.namespace)
        if gang is None:
            return False
        return gangs.is_gang_scheduled(gang, self._world.pods_of_gang(gang.key))

    def _waits_for(self, clique: PodClique) -> list[tuple[str, int]] | None:
        """Return the parents with how many ready pods of each to wait for; None if one is missing.

        A missing parent is about to be made, and its appearance brings the clique back here.
        """
        found = []
        for name in clique.spec.starts_after:
            parent = self._world.cliques.get(name, clique.namespace)
            if parent is None:
                return None
            if needed := clique_count(parent).needed:
                found.append((name, needed))
        return found

    async def _perform(self, clique: PodClique, todo: Sequence[Action]) -> list[Exception]:
        leaving = [action for action in todo if isinstance(action, DeletePod)]
        missing = [action for action in todo if isinstance(action, CreatePod)]
        marks = [action for action in todo if isinstance(action, MarkRevision)]
        gated = [action.pod for action in todo if isinstance(action, OpenGate)]
        errors = await self._delete(clique, leaving)
        if not errors:
            errors += await self._create(clique, missing)
        errors += await self._open(gated)
        errors += await self._mark(marks)
        return errors

    async def _create(self, clique: PodClique, missing: Sequence[CreatePod]) -> list[Exception]:
        templates = self._templates(clique, {action.revision for action in missing})
        missing = [action for action in missing if action.revision in templates]
        if not missing:
            return []
        waits_for = self._waits_for(clique)
        if waits_for is None:
            return []
        scheduler = str(clique.spec.pod_spec.get("schedulerName") or "")
        backend = await self._handover.backend(scheduler)
        marks = backend.marks(clique.labels.get(names.POD_GANG, ""), clique.name)

        async def create(action: CreatePod) -> str:
            template = templates[action.revision]
            body = build_pod(template, action.index, waits_for, marks, wait_image=self._wait_image)
            made = await self._client.create(body, resource=Pod.RESOURCE)
            pod = codec.from_dict(Pod, made)
            self._unseen.created(pod)
            return pod.name

        made, errors = await actions.in_batches([partial(create, action) for action in missing])
        if made:
            message = f"created {len(made)} pods: {', '.join(made)}"
            self._events.event(clique, "Normal", "PodCreateSuccessful", message)
        if errors:
            if not all(map(_is_refusal, errors)):
                self._unseen.doubt(clique.metadata.uid)
            message = f"cannot create pods: {_said(errors[0], clique)}"
            self._events.event(clique, "Warning", "PodCreateFailed", message)
        return errors

    def _templates(self, clique: PodClique, wanted: set[str]) -> dict[str, PodClique]:
        """Return the clique as it is in the *wanted* revisions, as far as they are known.

        One that is not is not made; the set's next plan has another in its place.
        """
        own = clique.labels.get(names.POD_TEMPLATE_HASH, "")
        found = {revision: clique for revision in wanted if revision in ("", own)}
        pcs = self._world.set_of(clique) if wanted - found.keys() else None
        for revision in sorted(wanted - found.keys()):
            old = self._world.clique_as_of(pcs, clique, revision) if pcs is not None else None
            if old is not None:
                found[revision] = old
        return found

    async def _mark(self, marks: Sequence[MarkRevision]) -> list[Exception]:
        async def mark(action: MarkRevision) -> None:
            patch = {"metadata": {"labels": {names.REVISION: action.revision}}}
            try:
                await self._client.patch(Pod, action.pod.name, patch, action.pod.namespace)
            except NotFoundError:
                return

        _, errors = await actions.in_batches([partial(mark, action) for action in marks])
        return errors

    async def _delete(self, clique: PodClique, leaving: Sequence[DeletePod]) -> list[Exception]:
        async def delete(action: DeletePod) -> DeletePod:
            await actions.delete(self._client, action.pod)
            self._unseen.deleted(action.pod)
            return action

        gone, errors = await actions.in_batches([partial(delete, action) for action in leaving])
        for action in gone:
            pod = action.pod
            message = (
                f"deleted pod {pod.name}: {action.reason}; it {why_not_ready(pod) or 'served'}"
            )
            kind = "PodDeleteSuccessful"
            self._events.event(clique, "Warning" if is_finished(pod) else "Normal", kind, message)
        if errors:
            self._events.event(
                clique, "Warning", "PodDeleteFailed", f"cannot delete pods: {errors[0]}"
            )
        return errors

    async def _open(self, gated: Sequence[Pod]) -> list[Exception]:
        async def open_gate(pod: Pod) -> None:
            try:
                await self._client.patch(
                    Pod, pod.name, _without_gate(pod), pod.namespace, content_type=JSON_PATCH
                )
            except NotFoundError:
                return
            except InvalidError as error:
                raise GateMovedError(f"the gates of pod {pod.name} are not as seen") from error
            self._unseen.opened(pod)

        _, errors = await actions.in_batches([partial(open_gate, pod) for pod in gated])
        return errors

    async def _report(
        self, key: str, clique: PodClique, pods: Sequence[Pod], errors: Sequence[Exception]
    ) -> float | None:
        """Write the status when it is due; return the seconds until it will be."""
        now = rfc3339(self._clock.now())
        uid = clique.metadata.uid
        texts = [_said(error, clique) for error in errors]
        failed = last_errors(clique.status.last_errors, "ERR_SYNC_PODS", texts, now)
        status = clique_status(
            clique,
            pods,
            failed,
            now,
            reached=uid in self._reached,
            replaced=self._replaced.get(uid, ()),
        )
        (self._reached.add if has_reached(status) else self._reached.discard)(uid)
        patch = actions.status_patch(clique, msgspec.structs.replace(clique, status=status))
        progress = is_progress(clique, status)
        wait_s = self._pacer.wait_s(key, changed=bool(patch), progress=progress)
        if wait_s == 0.0:
            lost = clique.status.scheduled_replicas > 0 and status.scheduled_replicas == 0
            if lost and clique_count(clique).target > 0:
                message = "none of the clique's pods has a node any more"
                self._events.event(clique, "Warning", "AllScheduledReplicasLost", message)
            await self._client.patch(
                PodClique, clique.name, patch, clique.namespace, subresource="status"
            )
        return wait_s


def _takes_what_serves(todo: Sequence[Action]) -> bool:
    return any(isinstance(action, DeletePod) and is_ready(action.pod) for action in todo)


def _is_race(error: Exception) -> bool:
    """Tell whether somebody else was faster: a fresh look is all it takes."""
    return isinstance(error, ConflictError | GateMovedError)


def _is_refusal(error: Exception) -> bool:
    """Tell whether *error* is the API's word that nothing was done."""
    return isinstance(error, ApiError) and 400 <= error.code < 500


def _said(error: Exception, clique: PodClique) -> str:
    """Return the words of a failure, the same for each try: without the name made for the try."""
    text = str(error) or repr(error)
    details = error.status.details if isinstance(error, ApiError) else None
    if details is not None and details.name.startswith(f"{clique.name}-"):
        return text.replace(details.name, f"{clique.name}-…")
    return text


def _without_gate(pod: Pod) -> list[dict[str, str]]:
    """Return the JSON patch that removes our gate and nothing else; it fails without the gate."""
    place = [gate.name for gate in pod.spec.scheduling_gates].index(names.POD_GANG_GATE)
    path = f"/spec/schedulingGates/{place}"
    return [
        {"op": "test", "path": f"{path}/name", "value": names.POD_GANG_GATE},
        {"op": "remove", "path": path},
    ]
