"""Tables of who makes room for whom: a snapshot document in, the fate of every pod out.

Documents take the way of ``spinney schedule``. A case says for each gang what becomes of its pods
in the first cycle: ``B n`` is bound to node n, ``P n`` waits for room on n, ``R n`` goes on running
there, ``E n`` leaves n, ``M n>m`` leaves n and is to come back on m, ``L n`` is being deleted,
``-`` stays pending. How many of each there are is exact.

Every case is then run on with all actions until decisions have come true, and five rounds more in
which nothing may change: nobody is evicted back.
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
    from spinney.scheduler.offline import Report

_LETTERS = {"bound": "B", "pipelined": "P", "running": "R", "leaving": "L"}
ROUNDS_TO_SETTLE = 4
STABLE_ROUNDS = 5


class Table:
    """Cases of one family."""

    def __init__(self, **defaults: Any) -> None:
        self._defaults = defaults
        self._cases: list[Any] = []

    def case(
        self,
        sentence: str,
        want: str,
        *,
        finally_: str = "",
        reasons: dict[str, str] | None = None,
        config: dict[str, Any] | None = None,
        settle: int = ROUNDS_TO_SETTLE,
        **document: Any,
    ) -> None:
        """Add a case. *want* is the first cycle, *finally_* how many pods of each gang run then."""
        found = {**self._defaults, **document}
        self._cases.append(
            pytest.param(found, want, finally_, reasons or {}, config, settle, id=sentence)
        )

    def test(self) -> Any:
        """Return the test of all cases."""

        @pytest.mark.parametrize(
            ("document", "want", "finally_", "reasons", "config", "settle"), self._cases
        )
        def test_case(
            document: dict[str, Any],
            want: str,
            finally_: str,
            reasons: dict[str, str],
            config: dict[str, Any] | None,
            settle: int,
        ) -> None:
            report = cluster(document, config).run(1)
            wanted = parsed(want)
            found = {name: fates(report, name) for name in wanted}
            assert found == wanted, f"{found} is not {wanted}"
            for name, text in reasons.items():
                assert text in reason(report, name), reason(report, name)
            check_stays(document, config, settle, finally_)

        return test_case


def cluster(document: dict[str, Any], config: dict[str, Any] | None = None) -> OfflineCluster:
    """Return *document* as ``spinney schedule`` reads it."""
    found = read(yaml.safe_dump(document))
    settings = read_config(yaml.safe_dump(config)) if config else SchedulerConfig()
    return OfflineCluster(objects(found), settings, first_cycle_s(found), found.period)


def parsed(text: str) -> dict[str, list[str]]:
    """Return ``x: P n0, -; y: E n0`` by gang, each sorted."""
    parts = [part.partition(":") for part in text.split(";") if part.strip()]
    return {n.strip(): sorted(f.strip() for f in found.split(",")) for n, _, found in parts}


def fates(report: Report, gang: str) -> list[str]:
    """Return what the last cycle made of the pods of *gang*, sorted."""
    moves = {e.pod: (e.node, e.moves_to) for e in report.cycles[-1].evictions}
    found = []
    for pod in report.pods:
        if pod.gang != f"default/{gang}":
            continue
        if pod.pod in moves:
            node, to = moves[pod.pod]
            found.append(f"M {node}>{to}" if to else f"E {node}")
        else:
            letter = _LETTERS.get(pod.state)
            found.append(f"{letter} {pod.node}" if letter else "-")
    return sorted(found)


def reason(report: Report, gang: str) -> str:
    return next((g.reason for g in report.gangs if g.gang == f"default/{gang}"), "")


def check_stays(
    document: dict[str, Any], config: dict[str, Any] | None, settle: int, finally_: str = ""
) -> None:
    """Assert that after some rounds of all actions nothing changes any more."""
    settings = {k: v for k, v in (config or {}).items() if k != "actions"}
    world = cluster(document, settings)
    world.run(1)
    for _ in range(settle - 1):
        step(world)
    before: dict[str, str] | None = None
    for _ in range(STABLE_ROUNDS):
        report = step(world)
        assert not report.cycles[-1].evictions, "evicted back"
        standing = {p.pod: p.node for p in report.pods if p.state in ("bound", "running")}
        assert before is None or standing == before, f"{before} became {standing}"
        before = standing
    counts = {
        name: sum(key.startswith(f"default/{name}-") for key in before or {})
        for name in parsed(finally_)
    }
    wanted = {name: int(found[0]) for name, found in parsed(finally_).items()}
    assert counts == wanted, f"{counts} run, not {wanted}"


def step(world: OfflineCluster) -> Report:
    """Let the last cycle come true, and run another."""
    world.settle()
    return world.run(1)


# Short forms


def node(name: str, gpus: int = 0, rack: str = "", **more: Any) -> dict[str, Any]:
    labels = {"rack": rack} if rack else {}
    return {"name": name, "gpus": gpus, "labels": labels | more.pop("labels", {}), **more}


def queue(name: str, quota: float = 0, limit: float = -1, weight: float = 1, **more: Any) -> Any:
    return {"name": name, "gpus": {"quota": quota, "limit": limit, "weight": weight}, **more}


def cpu_queue(name: str, resource: str = "cpu", **share: Any) -> dict[str, Any]:
    return {"name": name, resource: {"quota": 0, "weight": 1, **share}}


_OF_GROUP = ("minimum", "required", "preferred", "spec", "labels", "cpu", "memory", "requests")
_OF_GROUP += ("gpuFraction", "gpuMemory", "gpuDevices", "priority_of_pods")


def gang(
    name: str, queue: str, *, gpus: int = 0, pods: int = 0, on: str = "", **more: Any
) -> dict[str, Any]:
    """Return a gang of one group: *on* names the nodes of pods that run, separated by spaces."""
    group = {"name": "p", "pods": pods, "gpus": gpus, "on": on.split()}
    group |= {key: more.pop(key) for key in _OF_GROUP if key in more}
    return {"name": name, "queue": queue, "groups": [group], **more}


def runs(name: str, queue: str, on: str, gpus: int = 1, **more: Any) -> dict[str, Any]:
    return gang(name, queue, on=on, gpus=gpus, **more)


def asks(name: str, queue: str, pods: int = 1, gpus: int = 1, **more: Any) -> dict[str, Any]:
    return gang(name, queue, pods=pods, gpus=gpus, **more)


def tree(name: str, queue: str, *groups: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"name": name, "queue": queue, "groups": list(groups), **more}


def group(name: str, pods: int = 0, gpus: int = 1, on: str = "", **more: Any) -> dict[str, Any]:
    return {"name": name, "pods": pods, "gpus": gpus, "on": on.split(), **more}


def at(node_name: str) -> dict[str, Any]:
    """Return the ``spec`` of pods that run on one node only."""
    return {"nodeSelector": {"kubernetes.io/hostname": node_name}}
