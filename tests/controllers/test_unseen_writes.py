"""A clique is decided by what was written, also while the informer does not show it yet."""

from __future__ import annotations

import asyncio
import random

import msgspec
from tests.controllers.farm import NS

from spinney.api.core import Pod, PodSpec, SchedulingGate
from spinney.api.crd import crd_documents
from spinney.api.grove import PodClique, PodCliqueSpec
from spinney.api.meta import ObjectMeta, OwnerReference
from spinney.controllers.pod_state import is_gated
from spinney.controllers.podclique.unseen import RECHECK_S, UnseenWrites
from spinney.ids import RandomIds
from spinney.kube.client import KubeClient
from spinney.kube.informer import Informer
from spinney.local.apiserver.server import ApiServer

CLIQUE = PodClique(metadata=ObjectMeta(name="c", namespace=NS, uid="clique"))


class Tick:
    def __init__(self) -> None:
        self.at = 0.0

    def now(self) -> float:
        return self.at


def pod(name: str = "p", uid: str = "u", version: str = "1", *, gated: bool = True) -> Pod:
    owner = OwnerReference(api_version="v", kind="k", name="c", uid="clique", controller=True)
    gates = [SchedulingGate(name="grove.io/podgang-pending-creation")] if gated else []
    return Pod(
        metadata=ObjectMeta(
            name=name, namespace=NS, uid=uid, resource_version=version, owner_references=[owner]
        ),
        spec=PodSpec(scheduling_gates=gates),
    )


class Lag:
    """An informer that shows what it is told, and the notes beside it."""

    def __init__(self) -> None:
        self.tick = Tick()
        api = ApiServer(self.tick, RandomIds(random.Random(1)), definitions=crd_documents())
        self.client = KubeClient(api)
        self.informer = Informer(self.client, Pod, rng=random.Random(1))
        self.notes = UnseenWrites(self.informer, self.tick)

    def seen(self, owner: str = "clique") -> list[Pod]:
        return self.notes.apply(owner, self.informer.list())

    async def clique(self) -> PodClique:
        containers = [{"name": "m", "image": "i"}]
        spec = PodCliqueSpec(role_name="r", replicas=1, pod_spec={"containers": containers})
        return await self.client.create(
            PodClique(metadata=ObjectMeta(name="c", namespace=NS), spec=spec)
        )

    async def create(self, owner: str) -> None:
        metadata = {
            "generateName": "p-",
            "namespace": NS,
            "labels": {"grove.io/podclique": "c"},
            "ownerReferences": [
                {"apiVersion": "v", "kind": "k", "name": "c", "uid": owner, "controller": True}
            ],
        }
        spec = {"containers": [{"name": "m", "image": "i"}]}
        await self.client.create({"metadata": metadata, "spec": spec}, resource=Pod.RESOURCE)


def run(scene: object) -> None:
    async def main() -> None:
        await scene(Lag())  # type: ignore[operator]

    asyncio.run(main())


def test_a_created_pod_counts_before_it_is_shown_and_once_after() -> None:
    async def scene(lag: Lag) -> None:
        lag.notes.created(pod())
        assert [p.name for p in lag.seen()] == ["p"]
        lag.informer.put(f"{NS}/p", pod(version="2"))
        assert [p.metadata.resource_version for p in lag.seen()] == ["2"]
        lag.informer.remove(f"{NS}/p", None)
        assert lag.seen() == []

    run(scene)


def test_a_pod_shown_before_its_creation_was_answered_is_not_noted() -> None:
    async def scene(lag: Lag) -> None:
        lag.informer.put(f"{NS}/p", pod())
        lag.notes.created(pod())
        lag.informer.remove(f"{NS}/p", None)
        assert lag.seen() == []

    run(scene)


def test_a_deleted_pod_is_on_its_way_out_before_it_is_shown_so() -> None:
    async def scene(lag: Lag) -> None:
        lag.informer.put(f"{NS}/p", pod())
        lag.notes.deleted(pod())
        assert [p.deleting for p in lag.seen()] == [True]
        lag.informer.remove(f"{NS}/p", None)
        # The name comes back with another uid: the note is not about this one.
        lag.informer.put(f"{NS}/p", pod(uid="other", version="9"))
        assert [p.deleting for p in lag.seen()] == [False]

    run(scene)


def test_an_opened_gate_is_not_opened_again() -> None:
    async def scene(lag: Lag) -> None:
        lag.informer.put(f"{NS}/p", pod())
        lag.notes.opened(pod())
        assert [is_gated(p) for p in lag.seen()] == [False]
        lag.informer.put(f"{NS}/p", pod(version="2", gated=False))
        assert [is_gated(p) for p in lag.seen()] == [False]

    run(scene)


def test_a_note_about_a_pod_that_was_never_shown_is_checked_when_it_is_old() -> None:
    async def scene(lag: Lag) -> None:
        raw = {
            "metadata": {"generateName": "p-", "namespace": NS},
            "spec": {"containers": [{"name": "m", "image": "i"}]},
        }
        made = msgspec.convert(await lag.client.create(raw, resource=Pod.RESOURCE), Pod)
        made.metadata.owner_references = pod().metadata.owner_references
        lag.notes.created(made)
        lag.notes.created(pod())
        await lag.notes.recheck(lag.client, CLIQUE)
        assert len(lag.seen()) == 2
        lag.tick.at += RECHECK_S
        await lag.notes.recheck(lag.client, CLIQUE)
        assert [p.name for p in lag.seen()] == [made.name]

    run(scene)


def test_after_a_creation_without_an_answer_the_api_is_asked_what_there_is() -> None:
    async def scene(lag: Lag) -> None:
        clique = await lag.clique()
        for uid in (clique.metadata.uid, "another"):
            await lag.create(uid)
        await lag.notes.recheck(lag.client, clique)
        assert lag.seen(clique.metadata.uid) == []
        lag.notes.doubt(clique.metadata.uid)
        assert await lag.notes.recheck(lag.client, clique)
        assert [p.controller_uid() for p in lag.seen(clique.metadata.uid)] == [clique.metadata.uid]

    run(scene)


def test_a_clique_whose_pods_vanish_without_a_node_is_looked_for() -> None:
    async def scene(lag: Lag) -> None:
        clique = await lag.clique()
        stale = msgspec.structs.replace(clique, metadata=msgspec.structs.replace(clique.metadata))
        stale.metadata.uid = "clique"
        assert await lag.notes.recheck(lag.client, stale)
        lag.informer.put(f"{NS}/p", pod())
        lag.informer.remove(f"{NS}/p", None)
        assert not await lag.notes.recheck(lag.client, stale), "another has its name"
        lag.notes.forget("clique")
        assert await lag.notes.recheck(lag.client, stale), "it is asked where there is a doubt"

    run(scene)


def test_pods_that_were_deleted_here_or_had_a_node_raise_no_doubt() -> None:
    async def scene(lag: Lag) -> None:
        await lag.notes.recheck(lag.client, CLIQUE)
        lag.informer.put(f"{NS}/p", pod())
        lag.notes.deleted(pod())
        lag.informer.remove(f"{NS}/p", None)
        ran = pod(uid="v")
        ran.spec.node_name = "n"
        lag.informer.put(f"{NS}/p", ran)
        lag.informer.remove(f"{NS}/p", None)
        assert await lag.notes.recheck(lag.client, CLIQUE)

    run(scene)
