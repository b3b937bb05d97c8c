"""Random edits, strategies, scales, failures and faults around updates: they all come to an end."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from tests.controllers.farm import NS, Farm, clique, pcs, play
from tests.controllers.test_controllers_converge import Step, happen, wanted_pods

from spinney.api.core import Pod
from spinney.api.grove import PodClique, PodCliqueScalingGroup, PodCliqueSet
from spinney.api.meta import find_condition
from spinney.controllers.pod_state import is_ready
from spinney.controllers.update.plan import PLAN

if TYPE_CHECKING:
    from collections.abc import Sequence

GROUP = {"name": "g", "cliqueNames": ["b", "c"], "replicas": 2, "minAvailable": 1}
ROLES = ("a", "b", "c")

steps = st.builds(
    Step,
    st.sampled_from(
        [
            "edit template",
            "edit template",
            "switch strategy",
            "pause update",
            "roll back",
            "scale set",
            "scale group",
            "scale clique",
            "delete pod",
            "fail pod",
            "delete clique",
            "end watches",
            "busy api",
        ]
    ),
    st.integers(0, 30),
    st.integers(0, 3),
    st.sampled_from([0.0, 0.03, 0.3, 0.8, 2.0]),
)


async def _edit(farm: Farm, step: Step) -> None:
    found = await farm.set()
    for i, role in enumerate(found.spec.template.cliques):
        if step.pick >> i & 1:
            role.spec.pod_spec["containers"][0]["image"] = f"worker:{step.count}"
    await farm.client.update(found)


async def _strategy(farm: Farm, **changes: Any) -> None:
    await farm.client.patch(PodCliqueSet, "s", {"spec": {"updateStrategy": changes}}, NS)


async def play_step(farm: Farm, step: Step) -> None:
    match step.what:
        case "edit template":
            await _edit(farm, step)
        case "switch strategy":
            kind = ("RollingRecreate", "OnDelete", "Coherent", "Coherent")[step.count]
            coherent = {"maxSurge": step.pick % 3, "minCapacityPercent": 50}
            await _strategy(farm, type=kind, coherent=coherent)
        case "pause update":
            await _strategy(farm, paused=bool(step.count % 2))
        case "roll back":
            await _strategy(farm, rollbackTo=step.count or None)
        case _:
            await happen(farm, step)


async def updated(farm: Farm) -> None:
    """Everything is of the template, as many as wanted, ready, and at rest."""
    want = await wanted_pods(farm)
    found = [p for p in (await farm.client.list(Pod, NS)).items if not p.deleting]
    have: dict[str, int] = {}
    template = (await farm.set()).spec.template
    images = {c.name: c.spec.pod_spec["containers"][0]["image"] for c in template.cliques}
    for pod in found:
        name = pod.labels["grove.io/podclique"]
        have[name] = have.get(name, 0) + 1
        assert pod.spec.containers[0].image == images[name.rsplit("-", 1)[1]], name
    assert have == {name: count for name, count in want.items() if count}
    assert all(map(is_ready, found))
    kinds: Sequence[type[Any]] = (PodClique, PodCliqueScalingGroup)
    for kind in kinds:
        for obj in (await farm.client.list(kind, NS)).items:
            assert PLAN not in obj.metadata.annotations, obj.name
    said = find_condition((await farm.set()).status.conditions, "Progressing")
    assert said is None or said.reason == "UpdateComplete", said


@settings(
    max_examples=25,
    deadline=None,
    # A failure prints its script, which is short; to make it shorter would take minutes.
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=[HealthCheck.too_slow],
)
@given(
    kind=st.sampled_from(["RollingRecreate", "Coherent"]),
    script=st.lists(steps, min_size=1, max_size=10),
    seed=st.integers(0, 1000),
)
# A scaled-in clique whose pod with the higher index stayed.
@example(
    kind="Coherent",
    script=[
        Step("scale group", 7, 0, 0.3),
        Step("switch strategy", 1, 2, 0.8),
        Step("scale clique", 5, 3, 2.0),
        Step("switch strategy", 26, 2, 0.8),
        Step("switch strategy", 27, 0, 0.0),
        Step("switch strategy", 27, 0, 0.0),
        Step("fail pod", 0, 0, 0.03),
        Step("scale group", 15, 3, 0.3),
        Step("scale clique", 7, 1, 0.0),
        Step("scale clique", 17, 3, 0.03),
        Step("end watches", 20, 0, 2.0),
        Step("scale set", 2, 3, 0.3),
        Step("edit template", 2, 0, 0.03),
        Step("scale group", 15, 3, 0.3),
    ],
    seed=91474,
)
# A template that is changed there and back in the middle of a step.
@example(
    kind="Coherent",
    script=[
        Step("scale group", 7, 2, 0.0),
        Step("edit template", 14, 1, 0.03),
        Step("delete pod", 29, 1, 0.03),
        Step("fail pod", 19, 1, 0.0),
        Step("end watches", 3, 3, 0.3),
        Step("edit template", 25, 2, 0.03),
        Step("delete pod", 29, 1, 0.03),
        Step("edit template", 25, 3, 0.0),
        Step("edit template", 15, 1, 0.3),
        Step("busy api", 26, 3, 0.03),
    ],
    seed=123,
)
# From OnDelete, whose templates go ahead of the pods, to Coherent.
@example(
    kind="Coherent",
    script=[
        Step("fail pod", 28, 0, 0.03),
        Step("edit template", 0, 0, 0.03),
        Step("switch strategy", 17, 1, 2.0),
        Step("scale set", 26, 3, 0.3),
        Step("end watches", 18, 3, 2.0),
        Step("end watches", 2, 0, 0.0),
        Step("busy api", 25, 2, 0.0),
        Step("edit template", 19, 1, 2.0),
        Step("edit template", 10, 0, 0.0),
        Step("scale clique", 2, 2, 0.03),
    ],
    seed=315,
)
def test_whatever_happens_an_update_comes_to_its_end(
    kind: str, script: list[Step], seed: int
) -> None:
    async def scene(farm: Farm) -> None:
        service = pcs(clique("a", 2, min=1), clique("b"), clique("c", 2, min=2), groups=[GROUP])
        service["spec"]["updateStrategy"] = {"type": kind}
        await farm.apply(service)
        await farm.ready(8)
        for step in script:
            await play_step(farm, step)
            await asyncio.sleep(step.then_s)
        farm.api.busy = 0.0
        await _strategy(farm, type=kind, paused=False, rollbackTo=None, coherent={"maxSurge": 1})
        await asyncio.sleep(3)
        await farm.quiet(within_s=1200, rest_s=70)
        await updated(farm)

    play(scene, seed=seed)
