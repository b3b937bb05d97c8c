"""The main job with real processes: what the demo shows, and what must not go wrong beside it."""

import asyncio
import contextlib
import os
import signal
from pathlib import Path

import pytest

from spinney.api.core import ConfigMap, Node
from spinney.api.grove import PodClique
from spinney.api.meta import ObjectMeta, find_condition
from spinney.api.podgang import PodGang
from spinney.cli.completion import endpoint, stream_chat
from spinney.clock import parse_rfc3339

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("e2e")]

SYSTEM = "You are the guide of a small wood. Answer in plain words, briefly and kindly."
QUESTIONS = [
    "What is a spinney?",
    "What is a KV block?",
    "What is a gang?",
    "Tell me a story about a fox.",
    "Why split prefill and decode?",
    "What is decode?",
]


def ask(cluster, service, question, role="router", pod=None, **fields):
    pod = pod or cluster.pods(service, role)[0]
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]
    body = {"model": "demo", "messages": messages, "max_tokens": 60, "temperature": 0} | fields
    return asyncio.run(stream_chat(endpoint(pod), body))


def engine_pids(cluster, pod):
    """Process ids of the engine in *pod*, found by the address it was told to listen on."""
    mark = f"--host\0{pod.status.pod_ip}\0".encode()
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and mark in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
    return found


def test_nodes_are_those_that_were_declared(cluster):
    nodes = cluster.call(lambda client: client.list(Node)).items
    racks = [n.labels["topology.kubernetes.io/rack"] for n in nodes]
    assert racks == ["rack-0", "rack-0", "rack-1", "rack-1"]
    assert "rack-0-host-0" in cluster.run("get", "nodes")


def test_the_gang_is_placed_in_one_rack_and_starts_in_order(cluster, service):
    pods = cluster.pods(service)
    nodes = {n.name: n for n in cluster.call(lambda client: client.list(Node)).items}
    racks = {nodes[p.spec.node_name].labels["topology.kubernetes.io/rack"] for p in pods}
    assert len(racks) == 1

    def ready_at(pod):
        return parse_rfc3339(find_condition(pod.status.conditions, "Ready").last_transition_time)

    (router,) = (p for p in pods if p.labels["spinney.dev/role"] == "router")
    workers = [p for p in pods if p is not router]
    started = router.status.container_statuses[0].state.running.started_at
    assert parse_rfc3339(started) >= max(map(ready_at, workers))
    gang = cluster.call(lambda client: client.get(PodGang, "chat-0", "default"))
    assert gang.status.placement_score == 1.0


def test_kv_blocks_move_and_answers_equal_those_of_one_worker(cluster, service, aggregated):
    moved = 0
    for question in QUESTIONS:
        apart = ask(cluster, service, question)
        one = ask(cluster, aggregated, question, role="both")
        assert apart.text == one.text
        assert apart.text
        assert apart.headers["x-spinney-mode"] == "disaggregated"
        assert apart.headers["x-spinney-prefill-worker"].startswith("chat-0-prefill-")
        assert apart.headers["x-spinney-decode-worker"].startswith("chat-0-decode-")
        moved += apart.transfer["bytes_pulled"]
    assert moved > 0


def test_a_killed_prefill_process_costs_no_answer_and_comes_back(cluster, service):
    victim = cluster.pods(service, "prefill")[0]
    (pid,) = engine_pids(cluster, victim)
    os.kill(pid, signal.SIGKILL)

    for question in QUESTIONS[:3]:
        assert ask(cluster, service, question).text

    def restarted():
        (now,) = (p for p in cluster.pods(service) if p.name == victim.name)
        status = now.status.container_statuses[0]
        return status.restart_count == 1 and status.ready

    cluster.wait("the killed container restarted", restarted)


def test_a_deleted_pod_is_replaced_under_another_name(cluster, service):
    victim = cluster.pods(service, "decode")[0]
    cluster.run("delete", "pod", victim.name, "--force", "--no-wait")
    assert ask(cluster, service, QUESTIONS[0]).text
    pods = cluster.wait_ready(service, 5)
    assert victim.name not in {p.name for p in pods}


def test_a_gang_that_fits_nowhere_stays_whole_and_says_why(cluster, service):
    cluster.run("apply", "-f", "examples/too-big/too-big.yaml")

    def message():
        gangs = cluster.call(lambda client: client.list(PodGang, "default")).items
        found = [find_condition(g.status.conditions, "Scheduled") for g in gangs if "big" in g.name]
        return found[0].message if found and found[0] else ""

    said = cluster.wait("a reason", message)
    assert "needs 3 pods with 4 nvidia.com/gpu each in one rack" in said
    assert {p.spec.node_name for p in cluster.pods("too-big")} == {""}
    assert said in cluster.run("describe", "podgang", "too-big-0")
    cluster.run("delete", "pcs", "too-big")
    cluster.wait("its pods are gone", lambda: not cluster.pods("too-big"))


def test_a_killed_control_plane_loses_no_write_and_no_pod(cluster, service):
    before = cluster.pods(service)
    (router,) = cluster.pods(service, "router")
    supervisor = cluster.home.supervisor()
    control_plane = next(
        int(pid)
        for pid in Path(f"/proc/{supervisor.pid}/task/{supervisor.pid}/children")
        .read_text()
        .split()
        if b"control-plane" in Path(f"/proc/{pid}/cmdline").read_bytes()
    )

    async def write_until_it_dies(client):
        acknowledged = []
        for number in range(500):
            if number == 50:
                os.kill(control_plane, signal.SIGKILL)
            try:
                created = await client.create(
                    ConfigMap(metadata=ObjectMeta(name=f"w{number}", namespace="default"))
                )
            except Exception:  # noqa: BLE001  # However it fails: it was not acknowledged.
                break
            acknowledged.append(created.name)
        return acknowledged

    acknowledged = cluster.call(write_until_it_dies)
    assert len(acknowledged) >= 50
    answer = ask(cluster, service, QUESTIONS[0], pod=router)
    assert answer.text, "the data plane needs no control plane"

    def back():
        with contextlib.suppress(Exception):
            return cluster.call(lambda client: client.list(ConfigMap, "default")).items
        return None

    stored = {c.name for c in cluster.wait("the control plane is back", back)}
    assert set(acknowledged) <= stored
    after = cluster.wait_ready(service, 5)
    assert [p.metadata.uid for p in after] == [p.metadata.uid for p in before]
    restarts = [s.restart_count for p in after for s in p.status.container_statuses]
    assert restarts == [s.restart_count for p in before for s in p.status.container_statuses]


def test_a_role_is_scaled_up_and_down(cluster, service):
    cluster.run("scale", "podclique", "chat-0-prefill", "--replicas", "3")
    pods = cluster.wait_ready(service, 6)
    assert sum(p.labels["spinney.dev/role"] == "prefill" for p in pods) == 3
    cluster.run("scale", "pclq", "chat-0-prefill", "--replicas", "2")
    cluster.wait("two are left", lambda: len(cluster.pods(service, "prefill")) == 2)
    clique = cluster.call(lambda client: client.get(PodClique, "chat-0-prefill", "default"))
    assert clique.spec.replicas == 2


def test_logs_of_a_pod_are_printed(cluster, service):
    router = cluster.pods(service, "router")[0]
    assert "worker available" in cluster.run("logs", router.name)


def test_chat_prints_an_answer_and_who_served_it(cluster, service):
    printed = cluster.run("chat", "--service", "chat", "What is a spinney?")
    assert "small wood" in printed
    assert "prefill by chat-0-prefill-" in printed


def test_a_second_up_on_the_same_state_is_refused(cluster):
    said = cluster.run("up", "--port", "0", code=1)
    assert "already running" in said
    assert "spinney down" in said


def test_a_port_in_use_is_named(cluster, tmp_path):
    port = cluster.home.supervisor().url.rpartition(":")[2]
    other = type(cluster)(tmp_path / "other")
    assert f"port {port}" in other.run("up", "--port", port, code=2)
    assert other.processes() == []


MANIFEST = """
apiVersion: grove.io/v1alpha1
kind: PodCliqueSet
metadata: {name: bad}
spec:
  replicas: 1
  template:
    cliqueStartupType: CliqueStartupTypeExplicit
    cliques:
      - name: a
        spec:
          roleName: a
          replicas: 1
          startsAfter: [b]
          podSpec: {containers: [{name: c, image: x}]}
      - name: b
        spec:
          roleName: b
          replicas: 1
          startsAfter: [a]
          podSpec: {containers: [{name: c, image: x}]}
"""


@pytest.mark.parametrize(
    ("manifest", "want"),
    [
        pytest.param(MANIFEST, "circle: a → b → a", id="cycle"),
        pytest.param(
            MANIFEST.replace("replicas: 1\n  temp", "replicsa: 1\n  temp"),
            "replicsa",
            id="unknown field",
        ),
        pytest.param(
            MANIFEST.replace("replicas: 1\n          startsAfter: [b]", "replicas: two"),
            "replicas",
            id="wrong type",
        ),
        pytest.param(
            MANIFEST.replace(
                "{name: c, image: x}]}\n      - name: b", "{name: c, imagge: x}]}\n      - name: b"
            ),
            "imagge",
            id="unknown field of a container",
        ),
        pytest.param(
            MANIFEST.replace("PodCliqueSet", "PodCliqueSett"), "PodCliqueSett", id="unknown kind"
        ),
    ],
)
def test_a_bad_manifest_is_refused_with_the_field_and_nothing_is_stored(cluster, manifest, want):
    said = cluster.run("apply", "-f", "-", stdin=manifest, code=2 if "Sett" in manifest else 1)
    assert want in said
    assert "bad" not in cluster.run("get", "pcs")


def test_a_cluster_that_is_stopped_comes_back_with_its_objects(cluster, service):
    names = {pod.name for pod in cluster.pods(service)}
    cluster.run("down")
    assert cluster.processes() == []
    cluster.run("up", "--port", "0")
    assert {pod.name for pod in cluster.wait_ready(service, 5)} == names
    assert ask(cluster, service, QUESTIONS[0]).text


def test_a_killed_supervisor_leaves_no_process_behind(cluster, service):
    os.kill(cluster.home.supervisor().pid, signal.SIGKILL)
    cluster.wait("all processes are gone", lambda: not cluster.processes(), seconds=60)
    cluster.run("up", "--port", "0")
    cluster.wait_ready(service, 5)


PLAIN = """
apiVersion: v1
kind: Pod
metadata: {name: plain}
spec:
  restartPolicy: Never
  containers: [{name: c, image: busybox, command: [echo, it ran]}]
"""


def test_a_pod_that_names_no_scheduler_runs_too(cluster):
    cluster.run("apply", "-f", "-", stdin=PLAIN)
    cluster.wait("it has ended", lambda: "Completed" in cluster.run("get", "pod", "plain"))
    assert cluster.run("logs", "plain") == "it ran\n"
    cluster.run("delete", "pod", "plain")
