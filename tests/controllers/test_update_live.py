"""Updates on the embedded API with modelled kubelets, in simulated time: RU*, OD*, coherent."""

from __future__ import annotations

import asyncio
import copy
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import pytest
from tests.controllers.farm import NS, Farm, clique, pcs, play

from spinney.api import names
from spinney.api.core import ControllerRevision, Event, Pod
from spinney.api.grove import PodClique, PodCliqueScalingGroup, PodCliqueSet
from spinney.api.meta import Condition, find_condition
from spinney.controllers.pod_state import is_live, is_ready

if TYPE_CHECKING:
    from collections.abc import Callable

GROUP = {"name": "g", "cliqueNames": ["b", "c"], "replicas": 2, "minAvailable": 1}
ROLE = "grove.io/podclique"


def service(strategy: str = "RollingRecreate", replicas: int = 1, **more: Any) -> dict[str, Any]:
    made = pcs(clique("a", 2, min=1), clique("b"), clique("c", 2), groups=[GROUP])
    made["spec"]["replicas"] = replicas
    made["spec"]["updateStrategy"] = {"type": strategy, **more}
    return made


def pair(prefill: int = 2, decode: int = 4, **coherent: Any) -> dict[str, Any]:
    made = pcs(clique("p", prefill), clique("d", decode))
    made["spec"]["updateStrategy"] = {"type": "Coherent", "coherent": coherent}
    return made


async def edit(farm: Farm, *roles: str, image: str = "worker:2") -> None:
    found = await farm.set()
    for role in found.spec.template.cliques:
        if role.name in roles:
            role.spec.pod_spec["containers"][0]["image"] = image
    await farm.client.update(found)


async def strategy(farm: Farm, **changes: Any) -> None:
    await farm.client.patch(PodCliqueSet, "s", {"spec": {"updateStrategy": changes}}, NS)


async def images(farm: Farm, part: str = "") -> dict[str, int]:
    found: dict[str, int] = {}
    for pod in await farm.pods():
        if part in pod.labels[ROLE]:
            image = pod.spec.containers[0].image
            found[image] = found.get(image, 0) + 1
    return found


async def progressing(farm: Farm) -> Condition:
    found = find_condition((await farm.set()).status.conditions, "Progressing")
    assert found is not None
    return found


async def until_reason(farm: Farm, reason: str, within_s: float = 300) -> Condition:
    async def holds() -> bool:
        found = find_condition((await farm.set()).status.conditions, "Progressing")
        return found is not None and found.reason == reason

    await farm.until(holds, reason, within_s)
    return await progressing(farm)


async def pause(farm: Farm, seconds: float) -> None:
    await asyncio.sleep(seconds)


class Tracker:
    """Watches, in every state, that no more is missing at a time than an update may take."""

    def __init__(self, farm: Farm, check: Callable[[list[Pod]], None]) -> None:
        self.farm, self.check = farm, check

    async def __aenter__(self) -> Tracker:
        self._task = asyncio.get_running_loop().create_task(self._run())
        return self

    async def _run(self) -> None:
        while True:
            found = (await self.farm.client.list(Pod, NS)).items
            self.check([pod for pod in found if is_live(pod)])
            await asyncio.sleep(0.02)

    async def __aexit__(self, *exc: object) -> None:
        self._task.cancel()
        (ended,) = await asyncio.gather(self._task, return_exceptions=True)
        assert isinstance(ended, asyncio.CancelledError), ended


def one_at_a_time(want: dict[str, int]) -> Callable[[list[Pod]], None]:
    """At most one pod of each clique is not ready, and those of one set replica only."""

    def check(pods: list[Pod]) -> None:
        ready: dict[str, int] = {}
        for pod in pods:
            ready[pod.labels[ROLE]] = ready.get(pod.labels[ROLE], 0) + is_ready(pod)
        short = {c: want[c] - ready.get(c, 0) for c in want if ready.get(c, 0) < want[c]}
        members = {name.rsplit("-", 1)[0] for name in short if "-g-" in name}
        assert all(n == 1 for c, n in short.items() if "-g-" not in c), short
        assert len(members) <= 1, short
        assert len({name.split("-")[1] for name in short}) <= 1, short

    return check


def counts(replicas: int) -> dict[str, int]:
    found = {}
    for i in range(replicas):
        found[f"s-{i}-a"] = 2
        for j in range(2):
            found |= {f"s-{i}-g-{j}-b": 1, f"s-{i}-g-{j}-c": 2}
    return found


async def started(farm: Farm, manifest: dict[str, Any], pods: int) -> None:
    await farm.apply(manifest)
    await farm.ready(pods)
    await farm.quiet()


@pytest.mark.parametrize(
    ("roles", "new"),
    [
        pytest.param("a", 4, id="RU7"),
        pytest.param("b", 4, id="RU8"),
        pytest.param("abc", 16, id="RU9"),
    ],
)
def test_a_rolling_update_takes_one_unit_of_one_replica_at_a_time(roles: str, new: int) -> None:
    async def scene(farm: Farm) -> None:
        await started(farm, service(replicas=2), 16)
        async with Tracker(farm, one_at_a_time(counts(2))):
            await edit(farm, *roles)
            await until_reason(farm, "UpdateComplete")
        await farm.quiet()
        assert await images(farm) == {
            "worker:2": new,
            **({"worker:1": 16 - new} if new < 16 else {}),
        }
        status = (await farm.set()).status
        assert (status.updated_replicas, status.available_replicas) == (2, 2)
        progress = status.update_progress
        assert progress is not None
        assert progress.update_ended_at is not None
        assert (progress.updated_pod_cliques_count, progress.total_pod_cliques_count) == (2, 2)
        assert progress.currently_updating == []
        before = len(farm.writes())
        await pause(farm, 600)
        assert farm.writes()[before:] == []

    play(scene)


def test_without_room_an_update_stops_after_one_pod_and_says_so() -> None:
    async def scene(farm: Farm) -> None:
        await started(farm, service(progressDeadlineSeconds=30), 8)
        farm.binder.held = {"s-0-a"}
        await edit(farm, "a")
        found = await until_reason(farm, "ProgressDeadlineExceeded")
        assert "s-0-a" in found.message
        assert "has no node" in found.message
        assert await images(farm, "-a") == {"worker:1": 1, "worker:2": 1}
        farm.binder.release("s-0-a")
        await until_reason(farm, "UpdateComplete")
        events = {e.reason for e in (await farm.client.list(Event, NS)).items}
        assert {"UpdateStarted", "ProgressDeadlineExceeded", "UpdateComplete"} <= events

    play(scene)


@pytest.mark.parametrize(
    ("kind", "name", "counts_"),
    [
        pytest.param(PodCliqueSet, "s", (1, 2), id="RU11"),
        pytest.param(PodCliqueSet, "s", (2, 1), id="RU12"),
        pytest.param(PodCliqueScalingGroup, "s-0-g", (2, 3), id="RU14"),
        pytest.param(PodCliqueScalingGroup, "s-0-g", (3, 2), id="RU16"),
        pytest.param(PodClique, "s-0-a", (2, 3), id="RU18"),
        pytest.param(PodClique, "s-0-a", (3, 2), id="RU20"),
    ],
)
@pytest.mark.parametrize("after_s", [0.0, 0.7], ids=["before", "during"])
def test_scaling_around_an_update_makes_new_units_of_the_new_revision(
    kind: type[Any], name: str, counts_: tuple[int, int], after_s: float
) -> None:
    async def scene(farm: Farm) -> None:
        await farm.apply(service())
        await farm.ready(8)
        await farm.client.set_scale(kind, name, counts_[0], NS)
        await farm.quiet()
        old = {pod.metadata.uid for pod in await farm.pods()}
        await edit(farm, "a", "b", "c")
        await pause(farm, after_s)
        await farm.client.set_scale(kind, name, counts_[1], NS)
        born: dict[str, str] = {}

        def note(pods: list[Pod]) -> None:
            for pod in pods:
                if pod.metadata.uid not in old:
                    born[pod.metadata.uid] = pod.spec.containers[0].image

        async with Tracker(farm, note):
            await until_reason(farm, "UpdateComplete")
        await farm.quiet()
        assert set(await images(farm)) == {"worker:2"}
        assert set(born.values()) == {"worker:2"}
        # One that was born and not ready yet is what scaling in gives up first.
        given_up = max(0, counts_[0] - counts_[1])
        assert len(born) <= len(await farm.pods()) + given_up, "none was rolled twice"

    play(scene)


@pytest.mark.parametrize("replicas", [1, 2], ids=["OD1-6", "OD7"])
def test_on_delete_nothing_goes_until_somebody_deletes_it(replicas: int) -> None:
    async def scene(farm: Farm) -> None:
        await started(farm, service("OnDelete", replicas), 8 * replicas)
        await edit(farm, "a", "b", "c")
        await until_reason(farm, "WaitsForDeletion")
        await farm.quiet()
        assert await images(farm) == {"worker:1": 8 * replicas}
        progress = (await farm.set()).status.update_progress
        assert progress is not None
        assert progress.update_ended_at is not None
        for name in ("s-0-a", "s-0-g-1-c"):
            victim = (await farm.pods(name))[0]
            await farm.client.delete(Pod, victim.name, NS)
        await farm.quiet()
        assert await images(farm) == {"worker:1": 8 * replicas - 2, "worker:2": 2}
        assert (await farm.clique("s-0-a")).status.updated_replicas == 1
        await farm.client.set_scale(PodClique, "s-0-a", 1, NS)
        await farm.quiet()
        assert await images(farm, "s-0-a") == {"worker:2": 1}, "OD3: the outdated one leaves"
        before = len(farm.writes())
        await pause(farm, 600)
        assert farm.writes()[before:] == []

    play(scene)


def test_the_strategy_may_be_switched_at_any_time() -> None:
    async def scene(farm: Farm) -> None:
        await started(farm, service("OnDelete"), 8)
        await edit(farm, "a", "b")
        await farm.quiet()
        await strategy(farm, type="RollingRecreate")
        await until_reason(farm, "UpdateComplete")
        await farm.quiet()
        assert await images(farm, "-a") == {"worker:2": 2}
        assert await images(farm, "-b") == {"worker:2": 2}
        await strategy(farm, type="OnDelete")
        await farm.quiet()
        await edit(farm, "a", image="worker:3")
        await farm.quiet()
        assert await images(farm, "-a") == {"worker:2": 2}

    play(scene)


def test_revisions_are_stored_bounded_and_rolled_back_to() -> None:
    async def scene(farm: Farm) -> None:
        await started(farm, service(revisionHistoryLimit=2), 8)
        for n in range(2, 6):
            await edit(farm, "a", image=f"worker:{n}")
            await pause(farm, 1)
            await until_reason(farm, "UpdateComplete")
            await farm.quiet()
        stored = (await farm.client.list(ControllerRevision, NS)).items
        assert sorted(r.revision for r in stored) == [3, 4, 5]
        assert (await farm.set()).status.current_revision == 5
        await strategy(farm, rollbackTo=4)
        await pause(farm, 1)
        await until_reason(farm, "UpdateComplete")
        assert await images(farm, "-a") == {"worker:4": 2}
        spec = (await farm.set()).spec.template.cliques[0].spec.pod_spec
        assert spec["containers"][0]["image"] == "worker:5", "the template is the user's"
        await strategy(farm, rollbackTo=99)
        await until_reason(farm, "RevisionNotFound")
        await farm.quiet()
        assert await images(farm, "-a") == {"worker:4": 2}
        await strategy(farm, rollbackTo=None)
        await pause(farm, 1)
        await until_reason(farm, "UpdateComplete")
        assert await images(farm, "-a") == {"worker:5": 2}

    play(scene)


def test_a_pause_stops_a_rolling_update_where_it_is() -> None:
    async def scene(farm: Farm) -> None:
        await started(farm, service(replicas=2), 16)
        await edit(farm, "a")
        await pause(farm, 0.6)
        await strategy(farm, paused=True)
        await until_reason(farm, "UpdatePaused")
        await farm.quiet()
        held = await images(farm, "-a")
        assert held.get("worker:1", 0) >= 2
        await strategy(farm, paused=False)
        await until_reason(farm, "UpdateComplete")
        assert await images(farm, "-a") == {"worker:2": 4}

    play(scene)


def floor_kept(wanted: dict[str, int], floor: Fraction) -> Callable[[list[Pod]], None]:
    """The weakest role's share, per revision, adds up to at least *floor*."""

    def check(pods: list[Pod]) -> None:
        ready: dict[str, dict[str, int]] = {}
        for pod in pods:
            if is_ready(pod):
                for revision in pod.labels[names.REVISION].split("."):
                    mine = ready.setdefault(revision, {})
                    mine[pod.labels[ROLE]] = mine.get(pod.labels[ROLE], 0) + 1
        total = sum(
            (
                min(Fraction(found.get(c, 0), n) for c, n in wanted.items())
                for found in ready.values()
            ),
            Fraction(0),
        )
        assert total >= floor, ready

    return check


@pytest.mark.parametrize(
    ("sizes", "budget", "floor"),
    [
        pytest.param((2, 4), {"minCapacityPercent": 50, "maxSurge": 0}, "1/2", id="in place"),
        pytest.param((1, 1), {"minCapacityPercent": 100}, "1", id="a pair beside the pair"),
        pytest.param((2, 5), {"minCapacityPercent": 100, "maxSurge": 1}, "1", id="surge"),
    ],
)
def test_a_coherent_update_never_goes_below_its_floor(
    sizes: tuple[int, int], budget: dict[str, Any], floor: str
) -> None:
    async def scene(farm: Farm) -> None:
        await started(farm, pair(*sizes, **budget), sum(sizes))
        wanted = {"s-0-p": sizes[0], "s-0-d": sizes[1]}
        async with Tracker(farm, floor_kept(wanted, Fraction(floor))):
            await edit(farm, "p", "d")
            await until_reason(farm, "UpdateComplete", 600)
            await farm.quiet()
        assert await images(farm) == {"worker:2": sum(sizes)}
        hosts = sorted(pod.spec.hostname for pod in await farm.pods("s-0-p"))
        assert hosts == [f"s-0-p-{i}" for i in range(sizes[0])]
        assert (await farm.set()).status.updated_replicas == 1
        events = [e for e in (await farm.client.list(Event, NS)).items if e.reason == "UpdateStep"]
        assert events
        before = len(farm.writes())
        await pause(farm, 600)
        assert farm.writes()[before:] == []

    play(scene)


def test_a_broken_coherent_revision_stops_is_named_and_rolled_back() -> None:
    async def scene(farm: Farm) -> None:
        manifest = pair(2, 4, minCapacityPercent=50, maxSurge=0)
        manifest["spec"]["updateStrategy"]["progressDeadlineSeconds"] = 60
        await started(farm, manifest, 6)
        async with Tracker(farm, floor_kept({"s-0-p": 2, "s-0-d": 4}, Fraction(1, 2))):
            farm.binder.held = {"s-0-d"}
            await edit(farm, "p", "d")
            found = await until_reason(farm, "ProgressDeadlineExceeded", 600)
            assert "capacity" in found.message
            victim = next(
                p for p in await farm.pods("s-0-p") if p.spec.containers[0].image == "worker:2"
            )
            await farm.client.delete(Pod, victim.name, NS)
            await farm.quiet()
            assert (await images(farm, "-d"))["worker:1"] == 3
            farm.binder.held = set()
            await strategy(farm, rollbackTo=1)
            await pause(farm, 1)
            await until_reason(farm, "UpdateComplete", 600)
        assert await images(farm) == {"worker:1": 6}

    play(scene)


def test_an_old_pod_that_fails_in_mid_update_is_replaced_by_its_like() -> None:
    async def scene(farm: Farm) -> None:
        await started(farm, pair(2, 4, minCapacityPercent=50, maxSurge=0), 6)
        farm.binder.held = {"s-0-d"}
        await edit(farm, "p", "d")
        await farm.quiet()
        victim = next(
            p for p in await farm.pods("s-0-p") if p.spec.containers[0].image == "worker:1"
        )
        await farm.client.delete(Pod, victim.name, NS)
        await farm.quiet()
        assert await images(farm, "-p") == {"worker:1": 1, "worker:2": 1}
        farm.binder.release("s-0-d")
        await until_reason(farm, "UpdateComplete", 600)

    play(scene)


def test_a_role_that_stays_as_it_is_is_not_rolled_and_pairs_with_both_revisions() -> None:
    async def scene(farm: Farm) -> None:
        await started(farm, pair(2, 4, minCapacityPercent=50, maxSurge=0), 6)
        kept = {pod.metadata.uid for pod in await farm.pods("s-0-d")}
        farm.binder.held = {"s-0-p"}
        await edit(farm, "p")
        await farm.quiet()
        prefill = {pod.labels[names.REVISION] for pod in await farm.pods("s-0-p")}
        (decode,) = {pod.labels[names.REVISION] for pod in await farm.pods("s-0-d")}
        assert prefill == set(decode.split("."))
        assert len(prefill) == 2
        newest = (await farm.set()).status.current_generation_hash
        assert decode.split(".")[-1] == newest, "the label has the newest last"
        farm.binder.release("s-0-p")
        await until_reason(farm, "UpdateComplete")
        await farm.quiet()
        assert {pod.metadata.uid for pod in await farm.pods("s-0-d")} == kept
        labels = {pod.labels[names.REVISION] for pod in await farm.pods()}
        assert labels == {(await farm.set()).status.current_generation_hash}

    play(scene)


def test_coherent_scaling_groups_roll_by_whole_replicas() -> None:
    async def scene(farm: Farm) -> None:
        made = pcs(
            clique("a", 2),
            clique("b"),
            clique("c", 2),
            groups=[GROUP | {"replicas": 3}],
        )
        made["spec"]["updateStrategy"] = {"type": "Coherent", "coherent": {"maxSurge": 1}}
        await started(farm, made, 11)
        await edit(farm, "a", "b", "c")
        await until_reason(farm, "UpdateComplete", 600)
        await farm.quiet()
        assert await images(farm) == {"worker:2": 11}
        assert "s-0-g-3-b" not in await farm.names(PodClique)

    play(scene)


def test_a_template_that_changes_again_is_followed_at_once() -> None:
    async def scene(farm: Farm) -> None:
        await started(farm, pair(2, 4), 6)
        async with Tracker(farm, floor_kept({"s-0-p": 2, "s-0-d": 4}, Fraction(3, 4))):
            await edit(farm, "p", "d")
            await pause(farm, 1.5)
            await edit(farm, "p", "d", image="worker:3")
            await pause(farm, 2)
            await until_reason(farm, "UpdateComplete", 600)
        assert await images(farm) == {"worker:3": 6}

    play(scene)


def test_what_admission_would_say_by_default_is_no_new_revision() -> None:
    async def scene(farm: Farm) -> None:
        await started(farm, service(), 8)
        kept = {pod.metadata.uid for pod in await farm.pods()}
        found = await farm.set()
        again = copy.deepcopy(found.spec.template.cliques[0].spec.pod_spec)
        del again["terminationGracePeriodSeconds"]
        found.spec.template.cliques[0].spec.pod_spec = again
        await farm.client.update(found)
        await farm.quiet()
        assert {pod.metadata.uid for pod in await farm.pods()} == kept
        assert len((await farm.client.list(ControllerRevision, NS)).items) == 1

    play(scene)
