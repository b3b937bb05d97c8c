"""A worker of two pods in a local cluster: one life, and KV handed over."""

import os
import signal
import time
from pathlib import Path

import pytest
from tests.e2e.test_main_job import QUESTIONS, ask, engine_pids

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("e2e")]


@pytest.fixture(scope="module")
def wide(cluster):
    cluster.run("apply", "-f", "examples/multi-node/multi-node.yaml")
    cluster.wait_ready("wide", 4)
    yield "wide"
    cluster.run("delete", "pcs", "wide")


def pod_of(cluster, clique):
    (found,) = (pod for pod in cluster.pods("wide") if f"-{clique}-" in pod.name)
    return found


def restarts(cluster, clique):
    return pod_of(cluster, clique).status.container_statuses[0].restart_count


def test_a_group_prefills_and_one_process_decodes(cluster, wide, aggregated):
    moved = 0
    for question in QUESTIONS[:3]:
        apart = ask(cluster, wide, question)
        assert apart.text == ask(cluster, aggregated, question, role="both").text
        assert apart.headers["x-spinney-prefill-worker"].startswith("wide-0-prefill-0-leader-")
        moved += apart.transfer["bytes_pulled"]
    assert moved > 0


@pytest.mark.parametrize("victim", ["member", "leader"])
def test_a_killed_process_takes_its_group_with_it_and_both_come_back(cluster, wide, victim):
    before = {clique: restarts(cluster, clique) for clique in ("leader", "member")}
    killed = time.monotonic()
    pids = {
        clique: engine_pids(cluster, pod_of(cluster, clique))[0] for clique in ("leader", "member")
    }
    os.kill(pids[victim], signal.SIGKILL)
    other = "leader" if victim == "member" else "member"
    cluster.wait("the other process ends", lambda: not Path(f"/proc/{pids[other]}").exists(), 10)
    assert time.monotonic() - killed < 10
    # The decode worker computes meanwhile what it cannot pull.
    assert ask(cluster, wide, QUESTIONS[3]).text

    def back():
        return all(restarts(cluster, clique) > before[clique] for clique in before)

    cluster.wait("both were restarted", back)
    cluster.wait_ready("wide", 4)
