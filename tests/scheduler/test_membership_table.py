"""Which gang the pods of each kind of owner are in, and what that gang needs."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from tests.scheduler.test_sources import cluster, placed, pod, reasons

from spinney.api.podgroup import CoschedulingPodGroup, VolcanoPodGroup
from spinney.scheduler.sources.min_member import min_member_key, min_member_spec
from spinney.scheduler.sources.pods import membership

LWS = {
    "leaderworkerset.sh/name": "l",
    "leaderworkerset.sh/group-index": "2",
    "leaderworkerset.sh/worker-index": "0",
}
SIZE = {"leaderworkerset.sh/size": "4"}
KAI_JOB = {"kai.scheduler/batch-min-member": "3"}
JOBSET = {
    "jobset.sigs.k8s.io/jobset-name": "js",
    "jobset.sigs.k8s.io/replicatedjob-name": "workers",
    "batch.kubernetes.io/job-name": "js-workers-0",
}
KUBEFLOW = {"training.kubeflow.org/job-name": "t", "training.kubeflow.org/replica-type": "worker"}
RAY = {"ray.io/cluster": "r", "ray.io/node-type": "worker"}
COSCHED = {"scheduling.x-k8s.io/pod-group": "g"}


@pytest.mark.parametrize(
    ("fields", "gang", "group", "minimums"),
    [
        pytest.param({}, "", "", None, id="nobody's pod"),
        pytest.param({"labels": {"pod-template-hash": "1"}}, "", "", None, id="Deployment"),
        pytest.param(
            {"labels": {"apps.kubernetes.io/pod-index": "0"}}, "", "", None, id="StatefulSet"
        ),
        pytest.param({"labels": {"grove.io/podgang": "g"}}, "default/g", "", None, id="PodGang"),
        pytest.param(
            {
                "annotations": {"pod-group-name": "g"},
                "labels": {"kai.scheduler/subgroup-name": "workers"},
            },
            "default/podgroup:g",
            "workers",
            None,
            id="KAI PodGroup with a sub-group",
        ),
        pytest.param(
            {"schedulingGroup": {"podGroupName": "g"}},
            "default/group:g",
            "",
            None,
            id="upstream PodGroup",
        ),
        pytest.param(
            {"workloadRef": {"name": "w", "podGroup": "x", "podGroupReplicaKey": "1"}},
            "default/workload:w/x/1",
            "x",
            None,
            id="upstream Workload",
        ),
        pytest.param(
            {"labels": LWS, "annotations": SIZE},
            "default/lws:l-2",
            "leader",
            {"leader": 1, "workers": 3},
            id="leader of a LeaderWorkerSet",
        ),
        pytest.param(
            {"labels": {**LWS, "leaderworkerset.sh/worker-index": "3"}, "annotations": SIZE},
            "default/lws:l-2",
            "workers",
            {"leader": 1, "workers": 3},
            id="worker of a LeaderWorkerSet",
        ),
        pytest.param(
            {"labels": LWS, "annotations": {"leaderworkerset.sh/size": "1"}},
            "default/lws:l-2",
            "leader",
            {"leader": 1},
            id="LeaderWorkerSet of leaders alone",
        ),
        pytest.param({"labels": {"batch.kubernetes.io/job-name": "j"}}, "", "", None, id="Job"),
        pytest.param(
            {"labels": {"job-name": "j"}, "annotations": KAI_JOB},
            "default/job:j",
            "",
            {"default/job:j": 3},
            id="Job with a minimum, by its old label",
        ),
        pytest.param({"labels": JOBSET}, "", "", None, id="JobSet"),
        pytest.param(
            {"labels": JOBSET, "annotations": KAI_JOB},
            "default/job:js-workers-0",
            "",
            {"default/job:js-workers-0": 3},
            id="JobSet whose jobs have a minimum",
        ),
        pytest.param({"labels": KUBEFLOW}, "", "", None, id="Kubeflow without a group"),
        pytest.param(
            {"labels": {**KUBEFLOW, **COSCHED}}, "default/cosched:g", "", None, id="Kubeflow"
        ),
        pytest.param({"labels": {**RAY, **COSCHED}}, "default/cosched:g", "", None, id="Ray"),
        pytest.param(
            {"annotations": {"scheduling.k8s.io/group-name": "g"}},
            "default/volcano:g",
            "",
            None,
            id="Volcano PodGroup",
        ),
        pytest.param(
            {"labels": {"grove.io/podgang": "g", **LWS}, "annotations": SIZE},
            "default/g",
            "",
            None,
            id="a PodGang before all others",
        ),
    ],
)
def test_a_pod_is_in_the_gang_that_it_names(
    fields: dict[str, Any], gang: str, group: str, minimums: dict[str, int] | None
) -> None:
    found = membership(pod("p", **fields))
    leaves = found.implied.root.leaves() if found.implied else ()

    assert (found.gang, found.group) == (gang, group)
    assert {leaf.name: leaf.minimum for leaf in leaves} == (minimums or {})


@pytest.mark.parametrize("kind", [CoschedulingPodGroup, VolcanoPodGroup])
def test_a_group_with_a_number_of_members_is_placed_whole(kind: Any) -> None:
    raw = {"metadata": {"name": "g", "namespace": "default"}, "spec": {"minMember": 3}}
    group = msgspec.convert(raw, kind)
    names: dict[str, Any] = (
        {"labels": COSCHED}
        if kind is CoschedulingPodGroup
        else {"annotations": {"scheduling.k8s.io/group-name": "g"}}
    )
    cache = cluster(2)
    for name in ("a", "b", "c"):
        cache.set_pod(pod(name, **names))
    assert reasons(cache) == ["waits for PodGroup default/g"]

    cache.set_min_member_group(group)
    assert placed(cache) == []
    raw["spec"]["minMember"] = 2
    cache.set_min_member_group(msgspec.convert(raw, kind))
    assert placed(cache) == ["a", "b"]
    cache.remove_min_member_group(kind, "default/g")
    assert placed(cache) == []


def test_a_volcano_group_says_its_queue() -> None:
    raw = {
        "metadata": {"name": "g", "namespace": "n"},
        "spec": {"minMember": 2, "queue": "team", "priorityClassName": "high"},
    }
    spec = min_member_spec(msgspec.convert(raw, VolcanoPodGroup))

    assert (spec.key, spec.queue, spec.priority_class) == ("n/volcano:g", "team", "high")
    assert spec.key == min_member_key(VolcanoPodGroup, "n", "g")
