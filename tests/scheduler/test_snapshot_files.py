"""Snapshot files: mistakes are named, a saved state reads back, the schema is that of the code."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema_rs
import msgspec
import pytest

from spinney.errors import BadInputError
from spinney.scheduler.offline import OfflineCluster, Report
from spinney.scheduler.scenario import objects
from spinney.scheduler.snapshot_file import (
    first_cycle_s,
    read,
    read_config,
    report_schema,
    snapshot_schema,
    write,
)
from spinney.scheduler.snapshot_writer import scenario_of

ROOT = Path(__file__).parents[2]
NODES = "nodes: [{name: a, gpus: 4}, {name: b, gpus: 4}]\n"


def run(text: str, cycles: int = 1, **config: Any) -> Report:
    found = read(text)
    cluster = OfflineCluster(
        objects(found), read_config(json.dumps(config)), first_cycle_s(found), found.period
    )
    return cluster.run(cycles)


def states(report: Report) -> dict[str, tuple[str, str]]:
    return {p.pod.removeprefix("default/"): (p.state, p.node) for p in report.pods}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("nodes: [{name: a, gpuz: 1}]", "nodes[0]: Object contains unknown field `gpuz`"),
        ("nodes: [{name: a, gpus: x}]", "nodes[0].gpus: Expected `int`, got `str`"),
        ("nodes: [{name: a}, {name: a}]", "nodes: 2 are named 'a'"),
        ("nodes: [{name: a, memory: 3Gx}]", "nodes[0].memory: '3Gx' is no quantity"),
        ("pods: [{name: p, on: [z]}]", "pods[0].on: there is no node 'z'"),
        ("gangs: [{name: g, groups: []}]", "gangs[0].groups: a gang has at least one group"),
        (
            "gangs: [{name: g, groups: [{name: x, groups: [{name: y}, {name: y}]}]}]",
            "gangs[0].groups[0].groups: 2 are named 'y'",
        ),
        (
            "gangs: [{name: g, groups: [{name: x, pods: [{state: running}]}]}]",
            "gangs[0].groups[0].pods[0].node: a pod that is running has a node",
        ),
        (
            NODES + "gangs: [{name: g, groups: [{name: x, pods: [{node: a}]}]}]",
            "gangs[0].groups[0].pods[0].state: a pod that is pending has no node",
        ),
        ("gangs: [{name: g, groups: [{name: x, within: y}]}]", "no constraint 'y'"),
        ("gangs: [{name: g, priorityClass: p, groups: [{name: x}]}]", "no priority class 'p'"),
        ("now: tomorrow", "now: 'tomorrow' is no time"),
        ("pods: [{name: p, spec: {tolerations: 3}}]", "pod p: Expected `array`, got `int`"),
        ("[1]", "an object with nodes, gangs and pods wanted"),
        ("{", "not valid YAML"),
    ],
)
def test_a_mistake_is_named_with_its_path(text: str, words: str) -> None:
    with pytest.raises(BadInputError) as error:
        read(text, "f.yaml")

    assert str(error.value).startswith("f.yaml: ")
    assert words in str(error.value)


def test_all_mistakes_are_told_at_once() -> None:
    with pytest.raises(BadInputError, match="2 mistakes") as error:
        read("pods: [{name: p, on: [z]}, {name: q, leaving: [y]}]")

    assert "'z'" in str(error.value)
    assert "'y'" in str(error.value)


def test_a_setting_that_nobody_knows_is_refused() -> None:
    with pytest.raises(BadInputError, match="domainStep is none of"):
        read_config("domainStep: 3")


def test_bindings_of_a_cycle_are_there_in_the_next() -> None:
    report = run(NODES + "gangs: [{name: g, groups: [{name: p, pods: 2, gpus: 4}]}]", cycles=2)

    assert [len(cycle.bindings) for cycle in report.cycles] == [2, 0]
    assert states(report) == {"g-p-0": ("running", "a"), "g-p-1": ("running", "b")}
    assert report.gangs[0].on_nodes == 2


def test_pods_that_are_being_deleted_are_gone_in_the_next_cycle() -> None:
    report = run(
        NODES
        + """
pods: [{name: old, pods: 0, gpus: 4, leaving: [a, b]}]
gangs: [{name: g, groups: [{name: p, pods: 2, gpus: 4}]}]
""",
        cycles=2,
    )

    assert not report.cycles[0].bindings
    assert {b.node for b in report.cycles[1].bindings} == {"a", "b"}


def test_what_is_displaced_comes_back_as_pending() -> None:
    report = run(
        """
nodes: [{name: a, gpus: 4}]
gangs:
- {name: low, groups: [{name: p, pods: 0, gpus: 4, on: [a]}]}
- {name: high, priority: 50, groups: [{name: p, pods: 1, gpus: 4}]}
""",
        cycles=3,
    )

    assert [e.pod for e in report.cycles[0].evictions] == ["default/low-p-0"]
    assert [p.pod for p in report.cycles[0].pipelined] == ["default/high-p-0"]
    assert [b.pod for b in report.cycles[1].bindings] == ["default/high-p-0"]
    assert states(report) == {"low-p-0": ("pending", ""), "high-p-0": ("running", "a")}


def test_a_saved_state_reads_back_and_places_the_same() -> None:
    text = """
levels: [zone, rack]
priorityClasses: [{name: urgent, value: 70}]
queues: [{name: team, gpus: {quota: 4, limit: 12}, memory: {limit: 64Gi}}]
nodes:
- {name: a, gpus: 8, labels: {zone: z, rack: r1}, taints: [{key: k, value: v}]}
- {name: b, gpus: 8, labels: {zone: z, rack: r2}, unschedulable: true}
- {name: c, gpus: 8, gpuMemory: 80000, allocatable: {example.com/nic: 2}, labels: {zone: z}}
- {name: d, gpus: 8, labels: {zone: z, rack: r1}, cpu: 3500m}
pods:
- {name: lone, gpus: 1, hostPorts: [8080, 53/UDP], requests: {example.com/nic: 1}}
- {name: there, gpus: 1, pods: 0, on: [c], scheduler: other}
gangs:
- name: flat
  queue: team
  priorityClass: urgent
  required: zone
  groups:
  - {name: x, pods: 2, gpus: 1, cpu: 500m, memory: 1Gi, minimum: 1, required: rack}
  - {name: y, pods: 1, gpus: 2, on: [d], absent: 1, minimum: 1}
- name: deep
  minimum: 1
  groups:
  - name: r0
    groups: [{name: i, groups: [{name: p, gpus: 1}, {name: q, gpus: 1, preferred: rack}]}]
  - {name: r1, minimum: 1, groups: [{name: p, gpus: 1}, {name: q, gpus: 9}]}
"""
    first = read(text)
    saved = write(scenario_of(objects(first), first_cycle_s(first)))
    again = write(scenario_of(objects(read(saved)), first_cycle_s(first)))

    assert saved == again
    before, after = run(text), run(saved)
    assert states(before) == states(after)
    assert [g.state for g in before.gangs] == [g.state for g in after.gangs]


def test_the_schemas_in_the_documentation_are_those_of_the_code() -> None:
    for name, schema in (("snapshot", snapshot_schema()), ("report", report_schema())):
        stored = (ROOT / f"docs/scheduler-{name}.schema.json").read_text()
        assert json.loads(stored) == schema, "make it anew: tools/scheduler_schemas.py"


def test_the_example_and_a_report_fit_their_schemas() -> None:
    text = (ROOT / "examples/scheduling/racks.yaml").read_text()
    document = msgspec.to_builtins(read(text))

    jsonschema_rs.validate(snapshot_schema(), document)
    jsonschema_rs.validate(report_schema(), msgspec.to_builtins(run(text, cycles=2)))


def test_one_file_gives_one_report() -> None:
    text = (ROOT / "examples/scheduling/racks.yaml").read_text()

    assert msgspec.json.encode(run(text, 3)) == msgspec.json.encode(run(text, 3))


def test_shared_claims_are_saved_and_read_back() -> None:
    document = """
        nodes: [{name: a, devices: {gpu: 2}}, {name: b, devices: {gpu: 1}}]
        claims: [{name: c, devices: {gpu: 1}}]
        pods:
        - {name: x, pods: 0, on: [b], sharedClaims: [c]}
        - {name: y, sharedClaims: [c], claims: {gpu: 0}}
        - {name: z, claims: {gpu: 1}}
    """
    found = read(document)
    again = read(write(scenario_of(objects(found), first_cycle_s(found))))

    for state in (found, again):
        report = OfflineCluster(objects(state), now_s=first_cycle_s(state)).run(2)
        assert {p.pod: p.node for p in report.pods} == {
            "default/x": "b",
            "default/y": "b",
            "default/z": "a",
        }


def test_a_shared_claim_that_is_not_there_is_a_mistake() -> None:
    with pytest.raises(BadInputError, match=r"pods\[0\].sharedClaims: there is no claim default/c"):
        read("{nodes: [{name: a}], pods: [{name: x, sharedClaims: [c]}]}")


DOCUMENT = (ROOT / "docs" / "scheduler-snapshot.md").read_text()


@pytest.mark.parametrize("text", re.findall(r"```yaml\n(.*?)```", DOCUMENT, re.DOTALL))
def test_the_worked_examples_of_the_documentation_are_true(text: str) -> None:
    report = run(text, actions=["allocate"])

    found = {pod: f"{state} {node}".strip() for pod, (state, node) in states(report).items()}
    assert found == dict(re.findall(r"#> (\S+): (.*)", text))
