"""Snapshot, offline run, why and fit against a live cluster, as a user asks."""

import json

import pytest
import yaml

from spinney.api.core import Node, Pod
from spinney.api.podgang import PodGang

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("e2e")]

GPU = "nvidia.com/gpu"
RACK = "topology.kubernetes.io/rack"
MANIFEST = """
apiVersion: grove.io/v1alpha1
kind: PodCliqueSet
metadata: {name: asked}
spec:
  replicas: 1
  template:
    topologyConstraint: {topologyName: cluster, pack: {required: rack}}
    cliques:
      - name: big
        spec: {roleName: big, replicas: 2, podSpec: &pods {containers: [&main {
          name: main, image: none, command: [sleep, "600"],
          resources: {limits: {nvidia.com/gpu: 3}}}], schedulerName: spinney-scheduler}}
      - name: small
        spec: {roleName: small, replicas: 1, podSpec: {containers: [{<<: *main, resources: {
          limits: {nvidia.com/gpu: 1}}}], schedulerName: spinney-scheduler}}
"""


def cordon(cluster, names, value):
    async def work(client):
        for name in names:
            await client.patch(Node, name, {"spec": {"unschedulable": value}})

    cluster.call(work)


def placed(cluster, gang):
    found = cluster.call(lambda c: c.list(Pod, "default", labels=f"grove.io/podgang={gang}"))
    return {f"default/{pod.name}": pod.spec.node_name for pod in found.items if pod.spec.node_name}


def emptiest_rack(cluster, nodes):
    """Return the names of the nodes of the rack in which the fewest GPUs are used."""
    used = dict.fromkeys(sorted(node.labels[RACK] for node in nodes), 0)
    racks = {node.name: node.labels[RACK] for node in nodes}
    for pod in cluster.call(lambda client: client.list(Pod)).items:
        asked = sum(int(c.resources.limits.get(GPU, 0)) for c in pod.spec.containers)
        if pod.spec.node_name:
            used[racks[pod.spec.node_name]] += asked
    best = min(used, key=used.__getitem__)
    return sorted(name for name, rack in racks.items() if rack == best)


@pytest.fixture
def waiting(cluster, tmp_path):
    """A gang that waits because all nodes are cordoned; gives the rack's nodes back at the end."""
    nodes = cluster.call(lambda client: client.list(Node)).items
    cordon(cluster, [node.name for node in nodes], value=True)
    manifest = tmp_path / "asked.yaml"
    manifest.write_text(MANIFEST)
    cluster.run("apply", "-f", str(manifest))

    def says_why():
        found = cluster.call(lambda c: c.list(PodGang, "default")).items
        mine = [gang for gang in found if gang.name == "asked-0"]
        return any(c.reason == "Unschedulable" for gang in mine for c in gang.status.conditions)

    cluster.wait("the gang says why it waits", says_why)
    yield emptiest_rack(cluster, nodes)
    cluster.run("delete", "-f", str(manifest))
    cordon(cluster, [node.name for node in nodes], value=False)
    cluster.wait("its pods are gone", lambda: not placed(cluster, "asked-0"))


def test_a_snapshot_of_the_cluster_is_scheduled_offline_as_the_cluster_does_it(
    cluster, waiting, tmp_path
):
    told = cluster.run("why", "podgang/asked-0")
    assert told.startswith("default/asked-0: pending")
    assert "would fit if cordoned nodes were used" in told

    saved = tmp_path / "now.yaml"
    cluster.run("snapshot", "-f", str(saved))
    assert cluster.run("why", "podgang/asked-0", "--snapshot", str(saved)) == told
    before = json.loads(cluster.run("schedule", "--snapshot", str(saved), "-o", "json"))
    assert before["cycles"][0]["bindings"] == []

    cordon(cluster, waiting, value=False)
    cluster.wait("3 pods placed", lambda: len(placed(cluster, "asked-0")) == 3)
    state = yaml.safe_load(saved.read_text())
    for node in state["nodes"]:
        node["unschedulable"] = node["name"] not in waiting
    saved.write_text(json.dumps(state))
    report = json.loads(cluster.run("schedule", "--snapshot", str(saved), "-o", "json"))
    planned = {line["pod"]: line["node"] for line in report["cycles"][0]["bindings"]}
    assert planned == placed(cluster, "asked-0")
    assert "asked-0: placed" in cluster.run("why", "podgang/asked-0")


def test_fit_says_what_is_missing_and_where_it_would_go(cluster, aggregated):
    told = cluster.run("fit", "-f", "examples/too-big/too-big.yaml", code=1)
    assert "too-big-0: does not fit" in told
    assert "needs 3 pods with 4 nvidia.com/gpu each" in told
    report = json.loads(cluster.run("fit", "-f", "examples/aggregated/", "-o", "json"))
    assert report["fits"]
    assert report["gangs"][0]["nodes"][0]["node"].startswith("rack-")
