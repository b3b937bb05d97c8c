"""A clique is decided by what was written, also while the informer does not show it yet."""

from __future__ import annotations

import asyncio
import random

import msgspec
from tests.controllers.farm import NS

from spinney.api.core import Pod, PodSpec, SchedulingGate
from spinney.api.meta import ObjectMeta, OwnerReference
from spinney.controllers.pod_state import is_gated
from spinney.controllers.podclique.unseen import RECHECK_S, UnseenWrites
from spinney.ids import RandomIds
from spinney.kube.client import KubeClient
from spinney.kube.informer import Informer
from spinney.local.apiserver.server import ApiServer


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
        api = ApiServer(self.tick, RandomIds(random.Random(1)))
        self.client = KubeClient(api)
        self.informer = Informer(self.client, Pod, rng=random.Random(1))
        self.notes = UnseenWrites(self.informer, self.tick)

    def seen(self) -> list[Pod]:
        return self.notes.apply("clique", self.informer.list())


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
        await lag.notes.recheck(lag.client, "clique")
        assert len(lag.seen()) == 2
        lag.tick.at += RECHECK_S
        await lag.notes.recheck(lag.client, "clique")
        assert [p.name for p in lag.seen()] == [made.name]

    run(scene)
