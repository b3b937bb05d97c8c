"""Every file under ``examples/`` does what it says it does: those that no other test here runs."""

import concurrent.futures
import contextlib
from pathlib import Path

import pytest
from tests.e2e.test_main_job import QUESTIONS, ask

from spinney.api.grove import PodCliqueSet
from spinney.api.meta import find_condition

ROOT = Path(__file__).parents[2]


def test_every_example_is_run_by_a_test():
    tests = "".join(p.read_text() for p in (ROOT / "tests").rglob("test_*.py"))
    tests += (Path(__file__).parent / "conftest.py").read_text()
    examples = [p.relative_to(ROOT).as_posix() for p in (ROOT / "examples").rglob("*.yaml")]
    assert len(examples) >= 6
    assert [name for name in examples if Path(name).name not in tests] == []


def chat(cluster):
    return cluster.call(lambda client: client.get(PodCliqueSet, "chat", "default"))


def updated(cluster):
    found = chat(cluster)
    said = find_condition(found.status.conditions, "Progressing")
    fresh = found.status.observed_generation == found.metadata.generation
    return said is not None and said.reason == "UpdateComplete" and fresh


def release(cluster, value):
    path = "/spec/template/cliques/{}/labels/release"
    operations = [
        {"op": "add" if value else "remove", "path": path.format(i)}
        | ({"value": value} if value else {})
        for i in (0, 1)
    ]

    async def work(client):
        await client.patch(
            PodCliqueSet, "chat", operations, "default", content_type="application/json-patch+json"
        )

    cluster.call(work)


@pytest.fixture
def coherent(cluster, service):
    """The chat service with the strategy of the example; afterwards as it was."""
    cluster.run("apply", "-f", "examples/updates/coherent.yaml")
    cluster.wait_ready(service, 5)
    before = cluster.pods(service)
    yield [pod.metadata.uid for pod in before]
    plain = {"spec": {"updateStrategy": None}}
    cluster.call(lambda client: client.patch(PodCliqueSet, "chat", plain, "default"))
    with contextlib.suppress(Exception):
        release(cluster, None)
    cluster.wait_ready(service, 5)


@pytest.mark.e2e
@pytest.mark.xdist_group("e2e")
def test_a_coherent_update_rolls_matched_pairs_under_load_and_back(cluster, service, coherent):
    (router,) = cluster.pods(service, "router")
    served = []

    def load(stop):
        while not stop():
            served.append(ask(cluster, service, QUESTIONS[0], pod=router, max_tokens=8))

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        done = []
        asking = pool.submit(load, lambda: bool(done))
        try:
            release(cluster, "b")
            cluster.wait("the update ends", lambda: updated(cluster))
        finally:
            done.append(True)
        asking.result()
    assert served
    assert all(answer.text for answer in served), "no request was lost"
    pods = cluster.wait_ready(service, 5)
    workers = [p for p in pods if p.labels["spinney.dev/role"] != "router"]
    assert {p.labels["release"] for p in workers} == {"b"}
    assert len({p.labels["spinney.dev/revision"] for p in workers}) == 1
    assert [p.metadata.uid for p in pods if p not in workers] == [router.metadata.uid]
    assert not {p.metadata.uid for p in workers} & set(coherent)
    back = {"spec": {"updateStrategy": {"rollbackTo": 1}}}
    cluster.call(lambda client: client.patch(PodCliqueSet, "chat", back, "default"))
    cluster.wait(
        "the rollback ends", lambda: updated(cluster) and chat(cluster).status.current_revision == 1
    )
    workers = [p for p in cluster.wait_ready(service, 5) if p.metadata.uid != router.metadata.uid]
    assert not any("release" in p.labels for p in workers)


@pytest.mark.e2e
@pytest.mark.xdist_group("e2e")
def test_the_scheduler_runs_the_cluster_written_by_hand(cluster):
    said = cluster.run("schedule", "--snapshot", "examples/scheduling/racks.yaml")
    assert "default/chat       placed" in said
    assert "too-big pending: needs 3 pods with 8 nvidia.com/gpu each in one rack" in said
    assert "1 with taint reserved" in said
