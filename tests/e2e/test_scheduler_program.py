"""``spinney scheduler`` beside a cluster: leads by a lease, places, measures, and stops."""

import os
import re
import signal
import subprocess
import sys
import urllib.request

import msgspec
import pytest

from spinney.api.core import ConfigMap, Lease, Pod

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("e2e")]

POD = {
    "metadata": {"name": "placed-by-other", "namespace": "default"},
    "spec": {
        "schedulerName": "other",
        "containers": [{"name": "c", "image": "none", "command": ["sleep", "60"]}],
    },
}


def test_a_scheduler_of_its_own_places_its_pods_and_exports_what_it_did(cluster, tmp_path):
    config, log = tmp_path / "config.yaml", tmp_path / "log"
    config.write_text("schedulerNames: [other]\nactions: [allocate]\npool: ''\n")
    command = [sys.executable, "-m", "spinney.cmd.main", "scheduler", "--config", str(config)]
    command += ["--host", "127.0.0.1", "--port", "0", "--lease", "default/other-scheduler"]
    environment = os.environ | {"KUBECONFIG": str(cluster.home.kubeconfig)}
    with log.open("wb") as out:
        running = subprocess.Popen(command, env=environment, stderr=out)
    try:
        address = cluster.wait(
            "the address", lambda: re.search(r"address=(\S+)", log.read_text()), 30
        )[1]
        cluster.call(lambda client: client.create(msgspec.convert(POD, Pod)))

        def node():
            return cluster.call(lambda c: c.get(Pod, "placed-by-other", "default")).spec.node_name

        cluster.wait("the pod is bound", node, 30)
        with urllib.request.urlopen(f"http://{address}/metrics") as answer:
            figures = answer.read().decode()
        assert 'spinney_scheduler_binds_total{result="bound"} 1.0' in figures
        lease = cluster.call(lambda client: client.get(Lease, "other-scheduler", "default"))
        assert lease.spec.holder_identity
    finally:
        running.send_signal(signal.SIGTERM)
        assert running.wait(20) == 0, log.read_text()
        cluster.call(lambda client: client.delete(Pod, "placed-by-other", "default"))
    lease = cluster.call(lambda client: client.get(Lease, "other-scheduler", "default"))
    assert not lease.spec.holder_identity, "the lease is given up"
    found = cluster.call(lambda c: c.get(ConfigMap, "spinney-scheduler", "spinney-system"))
    assert "config.yaml" in found.data


def test_a_configuration_with_a_mistake_is_refused_before_anything_starts(cluster, tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text("actions: [allocate, pray]\n")
    said = cluster.run("scheduler", "--config", str(config), code=2)
    assert "scheduler action 'pray' is none of allocate" in said
