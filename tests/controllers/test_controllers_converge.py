"""Random edits, failures and faults: the controllers converge and keep their promises."""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from tests.controllers.farm import NS, Farm, clique, pcs, play

from spinney.api.core import Pod, Service
from spinney.api.grove import PodClique, PodCliqueScalingGroup, PodCliqueSet
from spinney.api.meta import is_true
from spinney.api.podgang import PodGang
from spinney.controllers.pod_state import is_gated, is_live, is_ready
from spinney.kube.errors import InvalidError, NotFoundError

if TYPE_CHECKING:
    from spinney.api.meta import KubeObject

GROUP = {"name": "g", "cliqueNames": ["b", "c"], "replicas": 2, "minAvailable": 1}
SERVICE = pcs(clique("a", 2, min=1), clique("b"), clique("c", 2, min=2), groups=[GROUP])
MOST_RECONCILES_PER_S = 1500
"""In a second of simulated time: three replicas of twelve objects, each looked at often."""
MOST_RECONCILES_AT_REST = 60
"""In a minute at rest: what is looked at again because of the time."""


@dataclass(frozen=True)
class Step:
    """One thing that happens, and how long nothing else does after it."""

    what: str
    pick: int
    count: int
    then_s: float


steps = st.builds(
    Step,
    st.sampled_from(
        [
            "scale set",
            "scale group",
            "scale clique",
            "delete pod",
            "delete pod",
            "fail pod",
            "delete clique",
            "delete gang",
            "delete service",
            "crash pod",
            "edit template",
            "edit counts",
            "delete set",
            "end watches",
            "restart controllers",
            "busy api",
            "conflicts api",
            "lost api",
            "lag api",
        ]
    ),
    st.integers(0, 30),
    st.integers(0, 3),
    st.sampled_from([0.0, 0.001, 0.03, 0.3, 2.0, 6.0]),
)


def target(replicas: int | None, minimum: int | None) -> int:
    wanted = replicas or 0
    return max(wanted, minimum or 0) if wanted else 0


class Watcher:
    """Looks at every state there is and remembers how many pods a clique may have had."""

    def __init__(self, farm: Farm) -> None:
        self.farm = farm
        self.allowed: dict[str, int] = {}

    async def look(self) -> None:
        for found in (await self.farm.client.list(PodClique, NS)).items:
            uid, now = found.metadata.uid, target(found.spec.replicas, found.spec.min_available)
            self.allowed[uid] = max(self.allowed.get(uid, 0), now)
        pods = [p for p in (await self.farm.client.list(Pod, NS)).items if is_live(p)]
        by_owner: dict[str, list[Pod]] = {}
        for pod in pods:
            by_owner.setdefault(pod.controller_uid() or "", []).append(pod)
        for uid, found_pods in by_owner.items():
            if uid not in self.allowed:
                continue
            assert len(found_pods) <= self.allowed[uid], [p.name for p in found_pods]
            indices = [p.labels["grove.io/podclique-pod-index"] for p in found_pods]
            assert len(indices) == len(set(indices)), indices

    async def run(self) -> None:
        before = self.farm.controllers.reconciles()
        for tick in itertools.count(1):
            await self.look()
            assert self.farm.guard.broken == []
            await asyncio.sleep(0.1)
            if tick % 10 == 0:
                now = self.farm.controllers.reconciles()
                assert now - before <= MOST_RECONCILES_PER_S, "a storm of reconciles"
                before = now


async def _pick(farm: Farm, kind: type[Any], index: int) -> Any:
    found = (await farm.client.list(kind, NS)).items
    return found[index % len(found)] if found else None


async def happen(farm: Farm, step: Step) -> None:
    kinds: dict[str, type[KubeObject]] = {
        "set": PodCliqueSet,
        "group": PodCliqueScalingGroup,
        "clique": PodClique,
        "pod": Pod,
        "gang": PodGang,
        "service": Service,
    }
    verb, noun = step.what.split()
    if verb != "scale":
        farm.guard.disturbed()
    try:
        if verb == "edit":
            await _edit(farm, step)
        elif noun == "api":
            _disturb(farm, verb)
        elif verb == "end":
            farm.api.inner.end_streams()
        elif verb == "restart":
            await farm.controllers.restart()
        elif (obj := await _pick(farm, kinds[noun], step.pick)) is None:
            return
        elif verb == "scale":
            await farm.client.set_scale(kinds[noun], obj.name, step.count, NS)
        elif verb == "delete":
            await farm.client.delete(kinds[noun], obj.name, NS)
        elif verb == "crash":
            farm.cluster.kubelets.crash(obj.key)
        else:
            patch = {"status": {"phase": "Failed"}}
            await farm.client.patch(Pod, obj.name, patch, NS, subresource="status")
    except (NotFoundError, InvalidError, KeyError):
        # The object is gone, has not started, or the count is below its gang's minimum.
        return


def _disturb(farm: Farm, what: str) -> None:
    """Let the API or the way to it be bad, or good again."""
    if what == "busy":
        farm.api.busy = 0.3 - farm.api.busy
    elif what == "conflicts":
        farm.connection.conflicts = 0.3 - farm.connection.conflicts
    elif what == "lost":
        farm.connection.lost = 0.2 - farm.connection.lost
    else:
        farm.connection.lag_s = 0.4 - farm.connection.lag_s


async def _edit(farm: Farm, step: Step) -> None:
    found = await farm.set()
    for i, role in enumerate(found.spec.template.cliques):
        if step.pick >> i & 1 and step.what == "edit template":
            role.spec.pod_spec["containers"][0]["image"] = f"worker:{step.count}"
        elif step.pick >> i & 1:
            role.spec.replicas = max(step.count, role.spec.min_available or 1)
    await farm.client.update(found)


async def there(farm: Farm) -> None:
    """Make the set again if it was deleted."""

    async def made() -> bool:
        try:
            if not (await farm.set()).deleting:
                return True
        except NotFoundError:
            await farm.apply(SERVICE)
        return False

    await farm.until(made, "the set is there again")


async def wanted_pods(farm: Farm) -> dict[str, int]:
    """How many pods each clique has to have, from what the user's objects say."""
    want: dict[str, int] = {}
    replicas = (await farm.set()).spec.replicas or 0
    groups = {g.name: g for g in (await farm.client.list(PodCliqueScalingGroup, NS)).items}
    for i in range(replicas):
        spec = groups[f"s-{i}-g"].spec
        names = [f"s-{i}-a"]
        for j in range(target(spec.replicas, spec.min_available)):
            names += [f"s-{i}-g-{j}-b", f"s-{i}-g-{j}-c"]
        for name in names:
            found = (await farm.clique(name)).spec
            want[name] = target(found.replicas, found.min_available)
    return want


async def converged(farm: Farm) -> None:
    await farm.quiet(within_s=900, rest_s=70)
    before = farm.controllers.reconciles()
    await asyncio.sleep(60)
    assert farm.controllers.reconciles() - before <= MOST_RECONCILES_AT_REST
    want = await wanted_pods(farm)
    found = [p for p in (await farm.client.list(Pod, NS)).items if not p.deleting]
    have: dict[str, int] = {}
    for pod in found:
        name = pod.labels["grove.io/podclique"]
        have[name] = have.get(name, 0) + 1
    assert have == {name: count for name, count in want.items() if count}
    assert not [pod.name for pod in found if is_gated(pod)]
    assert all(map(is_ready, found))
    template = (await farm.set()).spec.template
    images = {c.name: c.spec.pod_spec["containers"][0]["image"] for c in template.cliques}
    assert {p.name for p in found if p.spec.containers[0].image != images[_role(p)]} == set()
    names = await farm.names(PodClique)
    assert sorted(names) == sorted(want)
    replicas = (await farm.set()).spec.replicas or 0
    assert await farm.names(Service) == [f"s-{i}" for i in range(replicas)]
    gangs = await farm.client.list(PodGang, NS)
    listed = {
        r.name for g in gangs.items for group in g.spec.pod_groups for r in group.pod_references
    }
    assert listed == {pod.name for pod in found}
    await told_as_it_is(farm, have)
    assert (await farm.set()).status.available_replicas == replicas


async def told_as_it_is(farm: Farm, have: dict[str, int]) -> None:
    """No status tells of a state that is over."""
    for found in (await farm.client.list(PodClique, NS)).items:
        status, count = found.status, have.get(found.name, 0)
        counts = (status.replicas, status.ready_replicas, status.scheduled_replicas)
        assert counts == (count, count, count), found.name
        assert not is_true(status.conditions, "MinAvailableBreached"), found.name
        assert status.last_errors == [], found.name
    for group in (await farm.client.list(PodCliqueScalingGroup, NS)).items:
        wanted = target(group.spec.replicas, group.spec.min_available)
        assert group.status.available_replicas == wanted, group.name
        assert not is_true(group.status.conditions, "MinAvailableBreached"), group.name
    for gang in (await farm.client.list(PodGang, NS)).items:
        assert gang.status.phase == "Running", gang.name
        for kind in ("Initialized", "Ready"):
            assert is_true(gang.status.conditions, kind), (gang.name, kind)
    assert is_true((await farm.set()).status.conditions, "Available")


def _role(pod: Pod) -> str:
    return pod.labels["grove.io/podclique"].rsplit("-", 1)[1]


@settings(
    max_examples=25,
    deadline=None,
    # A failure prints its script, which is short; to make it shorter would take minutes.
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=[HealthCheck.too_slow],
)
@given(script=st.lists(steps, min_size=1, max_size=12), seed=st.integers(0, 1000))
# A gate whose opening is refused once, and nothing else happens.
@example(
    script=[
        Step("edit template", 26, 0, 0.3),
        Step("delete pod", 6, 3, 6.0),
        Step("fail pod", 20, 1, 6.0),
        Step("edit counts", 9, 1, 0.001),
        Step("crash pod", 23, 3, 0.03),
        Step("crash pod", 4, 3, 0.0),
        Step("conflicts api", 0, 1, 0.0),
        Step("fail pod", 7, 0, 0.001),
        Step("delete clique", 0, 2, 0.001),
        Step("scale group", 27, 3, 0.0),
        Step("edit counts", 24, 0, 2.0),
        Step("busy api", 8, 1, 0.0),
        Step("delete clique", 27, 2, 0.03),
        Step("busy api", 28, 0, 2.0),
    ],
    seed=38378,
)
# A clique that goes while its watch is behind: pods for it are collected at once.
@example(
    script=[
        Step("scale clique", 3, 3, 0.3),
        Step("lag api", 15, 2, 2.0),
        Step("scale set", 20, 3, 0.3),
        Step("delete clique", 19, 3, 2.0),
        Step("lag api", 18, 1, 2.0),
        Step("delete clique", 10, 0, 2.0),
        Step("delete clique", 19, 3, 2.0),
        Step("scale clique", 2, 2, 2.0),
        Step("scale set", 13, 0, 2.0),
        Step("delete set", 10, 2, 0.001),
        Step("restart controllers", 1, 2, 0.001),
        Step("scale set", 12, 2, 2.0),
        Step("delete clique", 10, 2, 0.3),
    ],
    seed=5822,
)
def test_whatever_happens_the_controllers_converge(script: list[Step], seed: int) -> None:
    async def scene(farm: Farm) -> None:
        await farm.apply(SERVICE)
        watcher = Watcher(farm)
        watching = asyncio.get_running_loop().create_task(watcher.run())
        for step in script:
            await watcher.look()
            await happen(farm, step)
            await watcher.look()
            await asyncio.sleep(step.then_s)
        farm.api.busy = 0.0
        farm.connection.mend()
        farm.guard.disturbed()
        await there(farm)
        await asyncio.sleep(3)
        watching.cancel()
        (ended,) = await asyncio.gather(watching, return_exceptions=True)
        assert isinstance(ended, asyncio.CancelledError), ended
        await converged(farm)
        farm.guard.disturbed()
        await farm.client.delete(PodCliqueSet, "s", NS)
        await farm.quiet()
        assert farm.guard.broken == []
        for kind in (PodCliqueSet, PodClique, PodCliqueScalingGroup, PodGang, Pod, Service):
            assert (await farm.client.list(kind, NS)).items == [], kind

    play(scene, seed=seed)
