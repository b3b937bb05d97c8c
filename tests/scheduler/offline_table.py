"""Tables of placements: a snapshot document in, the state of every pod out.

Documents take the way of ``spinney schedule``: read as a file, run as cycles, reported. A case
says for each gang or pod, by the start of pods' names, what becomes of its pods: ``B a`` is bound
to node a, ``P a`` waits for room on a that is not free yet, ``E a`` leaves a, ``R a`` runs there,
``L a`` is being deleted there, ``-`` stays pending. What counts is how many of each there are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import yaml

from spinney.scheduler.config import SchedulerConfig
from spinney.scheduler.offline import OfflineCluster
from spinney.scheduler.scenario import objects
from spinney.scheduler.snapshot_file import first_cycle_s, read, read_config

if TYPE_CHECKING:
    from spinney.scheduler.offline import PodState, Report

_LETTERS = {"bound": "B", "pipelined": "P", "evicted": "E", "running": "R", "leaving": "L"}


class Table:
    """Cases of one family, by default of *actions* alone."""

    def __init__(self, *actions: str) -> None:
        self.config = {"actions": list(actions)} if actions else {}
        self.cases: list[Any] = []

    def case(
        self,
        sentence: str,
        want: dict[str, str],
        *,
        config: dict[str, Any] | None = None,
        cycles: int = 1,
        **document: Any,
    ) -> None:
        """Add a case; one without queues of its own runs with and without queues."""
        variants = {"": document}
        if "queues" not in document:
            variants = {
                "no queues": document,
                "queues": {**document, "queues": [{"name": "unused"}]},
            }
        for name, found in variants.items():
            full = f"{sentence} ({name})" if name else sentence
            settings = {**self.config, **(config or {})}
            self.cases.append(pytest.param(found, want, settings, cycles, id=full))

    def test(self) -> Any:
        """Return the test of all cases."""

        @pytest.mark.parametrize(("document", "want", "config", "cycles"), self.cases)
        def test_case(
            document: dict[str, Any],
            want: dict[str, str],
            config: dict[str, Any] | None,
            cycles: int,
        ) -> None:
            report = run(document, config, cycles)

            assert {name: fate(report, name) for name in want} == {
                name: ", ".join(sorted(text.split(", "))) for name, text in want.items()
            }
            check_room(document, report)

        return test_case


def run(document: dict[str, Any], config: dict[str, Any] | None = None, cycles: int = 1) -> Report:
    """Run cycles on *document* as ``spinney schedule`` does."""
    found = read(yaml.safe_dump(document))
    settings = read_config(yaml.safe_dump(config)) if config else SchedulerConfig()
    return OfflineCluster(objects(found), settings, first_cycle_s(found), found.period).run(cycles)


def fate(report: Report, name: str) -> str:
    """Return what becomes of the pods of one gang, sorted."""
    return ", ".join(sorted(_letter(pod) for pod in report.pods if _of(pod, name)))


def _of(pod: PodState, name: str) -> bool:
    key = pod.pod.removeprefix("default/")
    return key == name or key.startswith(f"{name}-")


def _letter(pod: PodState) -> str:
    return f"{_LETTERS[pod.state]} {pod.node}" if pod.state in _LETTERS else "-"


def check_room(document: dict[str, Any], report: Report) -> None:
    """Assert that no pod is on two nodes and that no node has more pods than it may."""
    most = {n["name"]: n.get("pods", 110) for n in document["nodes"] if "count" not in n}
    standing = [p.node for p in report.pods if p.state in ("bound", "running")]
    assert len({p.pod for p in report.pods}) == len(report.pods)
    for name, pods in most.items():
        assert standing.count(name) <= pods, f"{name} has too many pods"


def node(name: str, gpus: int = 0, rack: str = "", zone: str = "", **more: Any) -> dict[str, Any]:
    labels = {k: v for k, v in (("rack", rack), ("zone", zone)) if v}
    return {"name": name, "gpus": gpus, "labels": labels | more.pop("labels", {}), **more}


def group(name: str, pods: Any = 1, gpus: int = 0, **more: Any) -> dict[str, Any]:
    return {"name": name, "pods": pods, "gpus": gpus, **more}


def gang(name: str, *groups: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"name": name, "groups": list(groups), **more}


def busy(node_name: str, gpus: int, **more: Any) -> dict[str, Any]:
    """Return a pod that runs and holds *gpus*."""
    name = more.pop("name", f"busy-{node_name}")
    return {"name": name, "pods": 0, "gpus": gpus, "on": [node_name], **more}


def leaving(node_name: str, gpus: int, **more: Any) -> dict[str, Any]:
    """Return a pod that is being deleted and still holds *gpus*."""
    return {"name": f"old-{node_name}", "pods": 0, "gpus": gpus, "leaving": [node_name], **more}
