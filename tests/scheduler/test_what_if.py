"""Questions at the command line and in a cluster: why, would it fit, save and run again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from click.testing import CliRunner

from spinney.api.core import Pod
from spinney.api.crd import crd_documents
from spinney.api.podgroup import CoschedulingPodGroup, PodGroup, VolcanoPodGroup
from spinney.cli.fit import fit
from spinney.cli.schedule import schedule
from spinney.cli.session import Session
from spinney.cli.why import why
from spinney.clock import SystemClock
from spinney.errors import SpinneyError
from spinney.local.apiserver.server import ApiServer
from spinney.scheduler.live import read_cluster
from spinney.scheduler.offline import OfflineCluster
from spinney.scheduler.scenario import Objects, objects
from spinney.scheduler.snapshot_file import first_cycle_s, read, write
from spinney.scheduler.snapshot_writer import scenario_of
from spinney.scheduler.what_if import room_for
from spinney.scheduler.what_if import why as ask
from spinney.sim.cluster import SimulatedCluster, SimulatedNode, simulate

if TYPE_CHECKING:
    import click

    from spinney.clock import Clock
    from spinney.ids import IdSource

EXAMPLES = Path(__file__).parents[2] / "examples"

STATE = """
levels: [topology.kubernetes.io/zone, topology.kubernetes.io/rack]
nodes:
- name: n
  count: 2
  gpus: 8
  labels: {topology.kubernetes.io/zone: z, topology.kubernetes.io/rack: r1}
- name: m
  gpus: 8
  labels: {topology.kubernetes.io/zone: z, topology.kubernetes.io/rack: r2}
"""


def cannot_connect() -> Any:
    raise AssertionError("no cluster is asked")


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def call(command: click.Command, *arguments: str, state: str = STATE) -> tuple[int, str]:
    session = Session(Path("/nowhere"), cannot_connect, SystemClock(), lambda *_: 0)
    Path("state.yaml").write_text(state)
    result = CliRunner().invoke(command, list(arguments), obj=session, standalone_mode=False)
    if result.exception is not None:
        raise result.exception
    return result.return_value or 0, result.stdout


def test_a_set_that_fits_is_shown_with_its_nodes() -> None:
    manifest = str(EXAMPLES / "too-big" / "too-big.yaml")
    code, text = call(fit, "-f", manifest, "--snapshot", "state.yaml")

    assert code == 0
    assert "default/too-big-0: fits, 3 of 3 pods, placement score 1" in text
    assert "on n-0: " in text


def test_a_set_that_does_not_fit_says_the_smallest_change() -> None:
    busy = STATE + "pods: [{name: busy, gpus: 4, pods: 0, on: [n-0, n-1]}]"
    manifest = str(EXAMPLES / "too-big" / "too-big.yaml")
    code, text = call(fit, "-f", manifest, "--snapshot", "state.yaml", "-o", "json", state=busy)

    report = json.loads(text)
    assert code == 1
    assert report["fits"] is False
    assert "needs 3 pods" in report["gangs"][0]["reason"]
    assert "would fit in one zone instead" in report["gangs"][0]["reason"]


def test_who_would_have_to_leave_is_told() -> None:
    queues = """
queues: [{name: a, gpus: {quota: 0}}, {name: b, gpus: {quota: 24}}]
gangs: [{name: old, queue: a, groups: [{name: p, pods: 0, gpus: 8, on: [n-0, n-1, m]}]}]
"""
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "p", "labels": {"kai.scheduler/queue": "b"}},
        "spec": {"containers": [{"name": "c", "resources": {"requests": {"nvidia.com/gpu": "8"}}}]},
    }
    Path("pod.json").write_text(json.dumps(pod))
    arguments = ("-f", "pod.json", "--snapshot", "state.yaml", "-o", "json")
    code, text = call(fit, *arguments, state=STATE + queues)
    report = json.loads(text)

    assert code == 1
    assert report["gangs"][0]["displacing"], report


def test_why_names_the_reason_and_where_a_gang_is() -> None:
    state = STATE + (
        "gangs: [{name: g, required: topology.kubernetes.io/rack, "
        "groups: [{name: p, pods: 3, gpus: 8}]}, "
        "{name: h, groups: [{name: p, pods: 0, gpus: 1, on: [m]}]}]"
    )
    _, text = call(why, "podgang/g", "--snapshot", "state.yaml", state=state)
    assert text.startswith("default/g: pending\n  needs 3 pods with 8 nvidia.com/gpu each")

    _, text = call(why, "pod/h-p-0", "--snapshot", "state.yaml", state=state)
    assert text == "default/h-p-0: running on m\nas part of default/h: placed\n"

    _, text = call(why, "pod/g-p-1", "--snapshot", "state.yaml", state=state)
    assert text.startswith("default/g-p-1: pending\nas part of default/g: pending\n  needs 3 pods")


@pytest.mark.parametrize(
    ("pod", "words"),
    [
        ("scheduler: default-scheduler", "it is for default-scheduler to place"),
        ("pods: [{state: gated}]", "it has the scheduling gate grove.io/podgang-pending-creation"),
        ("gpus: 9", "needs 1 pod with 9 nvidia.com/gpu"),
    ],
)
def test_why_of_a_pod_says_what_keeps_just_that_pod(pod: str, words: str) -> None:
    state = f"{STATE}pods: [{{name: p, {pod}}}]"
    _, text = call(why, "pod/p", "--snapshot", "state.yaml", state=state)

    assert words in text
    assert text.count(words) == 1


@pytest.mark.parametrize(
    ("target", "label"),
    [
        ("job/w", "batch.kubernetes.io/job-name"),
        ("jobset/w", "jobset.sigs.k8s.io/jobset-name"),
        ("lws/w", "leaderworkerset.sh/name"),
        ("raycluster/w", "ray.io/cluster"),
        ("pytorchjob/w", "training.kubeflow.org/job-name"),
        ("pcs/w", "app.kubernetes.io/part-of"),
    ],
)
def test_why_of_a_workload_is_that_of_its_gangs(target: str, label: str) -> None:
    pods = [
        f"{{name: p{at}, gpus: {size}, labels: {{{label}: w}}}}" for at, size in ((0, 1), (1, 9))
    ]
    state = f"{STATE}pods: [{', '.join(pods)}, {{name: other}}]"
    _, text = call(why, target, "--snapshot", "state.yaml", state=state)

    assert "default/p0: placed" in text
    assert "default/p1: pending\n  needs 1 pod with 9 nvidia.com/gpu" in text
    assert "other" not in text


QUEUES = """
queues:
- {name: org, gpus: {quota: 16}}
- {name: a, parent: org, gpus: {quota: 8, limit: 8}}
- {name: b, parent: org, gpus: {quota: 8}}
gangs:
- {name: runs, queue: a, groups: [{name: p, pods: 0, gpus: 8, on: [n-0]}]}
- {name: waits, queue: a, groups: [{name: p, gpus: 4}]}
"""


def test_why_of_a_queue_shows_its_account_and_who_waits_in_it() -> None:
    _, text = call(why, "queue/a", "--snapshot", "state.yaml", state=STATE + QUEUES)
    lines = text.splitlines()
    assert lines[0] == "a: priority 100, below org"
    assert lines[2].split() == ["GPUs", "8", "8", "8", "8", "12"]
    assert "1 gang placed, 1 waiting" in text
    assert "default/waits: pending\n    queue a is at its limit of 8 GPUs" in text

    arguments = ("queue/org", "--snapshot", "state.yaml", "-o", "json")
    _, text = call(why, *arguments, state=STATE + QUEUES)
    report = json.loads(text)
    assert report["children"] == ["a", "b"]
    assert [gang["gang"] for gang in report["waiting"]] == ["default/waits"]
    assert report["resources"][0]["inUse"] == 8
    assert "takes no gangs" in report["problem"]


TEMPLATE = {
    "spec": {"containers": [{"name": "c", "resources": {"requests": {"nvidia.com/gpu": 5}}}]}
}


@pytest.mark.parametrize(
    ("kind", "spec", "gangs"),
    [
        ("Deployment", {"replicas": 3, "template": TEMPLATE}, [True, True, True]),
        ("StatefulSet", {"template": TEMPLATE}, [True]),
        ("Job", {"parallelism": 4, "completions": 4, "template": TEMPLATE}, [True] * 3 + [False]),
        (
            "LeaderWorkerSet",
            {"replicas": 2, "leaderWorkerTemplate": {"size": 2, "workerTemplate": TEMPLATE}},
            [True, False],
        ),
    ],
)
def test_fit_takes_workloads_of_other_controllers(
    kind: str, spec: dict[str, Any], gangs: list[bool]
) -> None:
    document = {"apiVersion": "x/v1", "kind": kind, "metadata": {"name": "w"}, "spec": spec}
    Path("w.json").write_text(json.dumps(document))
    code, text = call(fit, "-f", "w.json", "--snapshot", "state.yaml", "-o", "json")

    assert [gang["fits"] for gang in json.loads(text)["gangs"]] == gangs
    assert code == (0 if all(gangs) else 1)


def test_fit_takes_a_job_with_a_minimum_as_a_gang() -> None:
    document = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "w", "annotations": {"kai.scheduler/batch-min-member": "4"}},
        "spec": {"parallelism": 4, "template": TEMPLATE},
    }
    Path("w.json").write_text(json.dumps(document))
    code, text = call(fit, "-f", "w.json", "--snapshot", "state.yaml")

    assert code == 1
    assert "default/w: does not fit\n  needs 4 pods with 5 nvidia.com/gpu each" in text


@pytest.mark.parametrize("group", ["scheduling.x-k8s.io/v1alpha1", "scheduling.volcano.sh/v1beta1"])
def test_fit_takes_a_pod_group_of_each_api_for_what_it_is(group: str) -> None:
    pods = [
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": f"p{at}",
                "labels": {"scheduling.x-k8s.io/pod-group": "g"} if "x-k8s" in group else {},
                "annotations": {"scheduling.k8s.io/group-name": "g"},
            },
            **TEMPLATE,
        }
        for at in range(4)
    ]
    found = {
        "apiVersion": group,
        "kind": "PodGroup",
        "metadata": {"name": "g"},
        "spec": {"minMember": 4},
    }
    Path("w.json").write_text("\n---\n".join(json.dumps(line) for line in (found, *pods)))
    code, text = call(fit, "-f", "w.json", "--snapshot", "state.yaml")

    assert code == 1
    assert text.startswith("default/g: does not fit\n  needs 4 pods")


@pytest.mark.parametrize(
    "names",
    [
        {"labels": {"batch.kubernetes.io/job-name": "j"}},
        {"labels": {"scheduling.x-k8s.io/pod-group": "j"}},
        {"annotations": {"scheduling.k8s.io/group-name": "j"}},
        {"annotations": {"pod-group-name": "j"}},
    ],
)
def test_copies_of_a_gang_are_gangs_of_their_own(names: dict[str, Any]) -> None:
    state = objects(read(STATE))
    annotations = {"kai.scheduler/batch-min-member": "2", **names.get("annotations", {})}
    pods = [
        msgspec.convert(
            {
                "metadata": {
                    "name": f"p{at}",
                    "namespace": "default",
                    "uid": f"p{at}",
                    "labels": names.get("labels", {}),
                    "annotations": annotations,
                },
                **TEMPLATE,
            },
            Pod,
        )
        for at in range(2)
    ]
    raw = {"metadata": {"name": "j", "namespace": "default"}, "spec": {"minMember": 2}}
    wanted = Objects(
        pods=pods,
        groups=[msgspec.convert(raw, PodGroup)],
        min_member=[
            msgspec.convert(raw, CoschedulingPodGroup),
            msgspec.convert(raw, VolcanoPodGroup),
        ],
    )

    assert (room_for(state, wanted, 3, 0.0).fits, room_for(state, wanted, 1, 0.0).fits) == (1, 1)


def test_fit_counts_copies() -> None:
    manifest = str(EXAMPLES / "too-big" / "too-big.yaml")
    state = STATE + "pods: [{name: busy, gpus: 4, pods: 0, on: [n-1]}]"
    arguments = ("-f", manifest, "--snapshot", "state.yaml", "--copies", "3")
    code, text = call(fit, *arguments, state=state)

    assert code == 1
    assert text.startswith("1 of 3 copies fit\n  needs 3 pods with 4 nvidia.com/gpu each")


def test_a_planner_asks_without_changing_what_it_asks_about() -> None:
    state = objects(read(STATE))
    wanted = objects(read("gangs: [{name: g, groups: [{name: p, pods: 2, gpus: 4}]}]"))
    before = msgspec.to_builtins(state.nodes), msgspec.to_builtins(wanted.gangs)

    assert room_for(state, wanted, 5, 0.0) == room_for(state, wanted, 5, 0.0)
    room = room_for(state, wanted, 5, 0.0)
    assert (room.fits, room.of) == (3, 5)
    assert "needs 2 pods" in room.reason
    assert room_for(state, wanted, 3, 0.0).reason == ""
    assert (msgspec.to_builtins(state.nodes), msgspec.to_builtins(wanted.gangs)) == before


@pytest.mark.parametrize("target", ["pod/none", "podgang/none", "queue/none", "thing/x", "pod"])
def test_why_of_what_is_not_there_is_an_error(target: str) -> None:
    with pytest.raises(SpinneyError):
        call(why, target, "--snapshot", "state.yaml")


def test_schedule_prints_a_table_and_json() -> None:
    state = STATE + "pods: [{name: p, gpus: 1}]"
    code, text = call(schedule, "--snapshot", "state.yaml", state=state)
    assert code == 0
    assert "default/p   → m" in text

    _, text = call(schedule, "--snapshot", "state.yaml", "-o", "json", state=state)
    assert json.loads(text)["cycles"][0]["bindings"] == [
        {"pod": "default/p", "node": "m", "gang": "default/p", "gpus": []}
    ]


def api(clock: Clock, ids: IdSource) -> ApiServer:
    return ApiServer(clock, ids, definitions=crd_documents())


NODES = [SimulatedNode(f"n{at}", {"rack": f"r{at // 2}"}, gpus=4) for at in range(4)]


def raw_pod(name: str, group: str, gpus: int) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": "default",
            "annotations": {"pod-group-name": group},
            "labels": {"kai.scheduler/subgroup-name": "workers"},
        },
        "spec": {
            "schedulerName": "spinney-scheduler",
            "containers": [
                {
                    "name": "c",
                    "image": "i",
                    "resources": {"requests": {"nvidia.com/gpu": str(gpus)}},
                }
            ],
        },
    }


def group(minimum: int) -> dict[str, Any]:
    return {
        "apiVersion": "scheduling.run.ai/v2alpha2",
        "kind": "PodGroup",
        "metadata": {"name": "g", "namespace": "default"},
        "spec": {
            "subGroups": [
                {
                    "name": "workers",
                    "minMember": minimum,
                    "topologyConstraint": {"requiredTopologyLevel": "rack"},
                }
            ]
        },
    }


async def create_group(cluster: SimulatedCluster, gpus: int) -> None:
    await cluster.client.create(group(2), resource=PodGroup.RESOURCE)
    for at in range(2):
        await cluster.client.create(raw_pod(f"g-{at}", "g", gpus), resource=Pod.RESOURCE)


def test_a_pod_group_in_a_cluster_is_bound_into_one_domain() -> None:
    async def scene(cluster: SimulatedCluster) -> set[str]:
        await create_group(cluster, 4)

        async def bound() -> bool:
            pods = (await cluster.client.list(Pod)).items
            return len(pods) == 2 and all(pod.spec.node_name for pod in pods)

        await cluster.until(bound, within_s=120, what="both pods bound")
        return {pod.spec.node_name for pod in (await cluster.client.list(Pod)).items}

    assert simulate(scene, seed=1, nodes=NODES, api=api) in ({"n0", "n1"}, {"n2", "n3"})


def test_a_saved_cluster_gives_the_reason_that_the_cluster_gives() -> None:
    async def scene(cluster: SimulatedCluster) -> tuple[str, str, str]:
        await create_group(cluster, 5)
        told = ""

        async def is_told() -> bool:
            nonlocal told
            conditions = (await cluster.client.get(Pod, "g-0", "default")).status.conditions
            told = next((c.message for c in conditions if c.type == "PodScheduled"), "")
            return bool(told)

        await cluster.until(is_told, within_s=120, what="a reason")
        state = await read_cluster(cluster.client)
        now_s = cluster.clock.now()
        found = read(write(scenario_of(state, now_s)))
        saved = OfflineCluster(objects(found), now_s=first_cycle_s(found)).run(1)
        return told, saved.gangs[0].reason, ask(state, ["default/g"], now_s)[0].reason

    told, saved, asked = simulate(scene, seed=1, nodes=NODES, api=api)

    assert told == asked
    assert told.partition(";")[0] == saved.partition(";")[0]
    assert "needs 2 pods with 5 nvidia.com/gpu each in one rack" in saved
