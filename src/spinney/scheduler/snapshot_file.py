"""Snapshot files: read with every mistake named by its path, and described by a schema."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from typing import TYPE_CHECKING, Any

import msgspec
import yaml

from spinney.api import quantity
from spinney.clock import parse_rfc3339
from spinney.errors import BadInputError
from spinney.scheduler.config import SchedulerConfig
from spinney.scheduler.cycle import ACTIONS
from spinney.scheduler.offline import Report
from spinney.scheduler.plugins.registry import NODE_FILTERS, ROOM_FILTERS, SCORES, check
from spinney.scheduler.scenario import leaves, objects
from spinney.scheduler.shapes import shape_of
from spinney.scheduler.snapshot_format import (
    ON_NODES,
    GangLine,
    PodLine,
    PodsLine,
    Scenario,
    node_names,
    scenario,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

FIRST_CYCLE = "2026-01-02T00:00:00Z"
"""The time of the first cycle where a file does not say it."""
MAX_NODES = 100_000
MAX_PODS = 1_000_000
MOST_MILLI = 1 << 60
"""The largest amount, in thousandths: sums over a node stay within 64 bits."""
MAX_PROBLEMS = 20
"""Mistakes that one message names; a file with more has one cause."""

_SCHEMA = "https://json-schema.org/draft/2020-12/schema"


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """YAML in which only true and false are booleans: a field may be called ``on``."""


_Loader.yaml_implicit_resolvers = {
    first: [found for found in resolvers if found[0] != "tag:yaml.org,2002:bool" or first in "tTfF"]
    for first, resolvers in _Loader.yaml_implicit_resolvers.items()
}


def read(text: str, source: str = "snapshot") -> Scenario:
    """Return the snapshot in *text*, YAML or JSON; raise BadInputError that names every mistake."""
    try:
        document = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise BadInputError(f"{source}: not valid YAML: {error}") from error
    if not isinstance(document, dict):
        raise BadInputError(f"{source}: an object with nodes, gangs and pods wanted")
    try:
        found = scenario(document)
    except BadInputError as error:
        raise BadInputError(f"{source}: {error}") from error
    wrong = problems(found)
    if wrong:
        more = [f"… and {len(wrong) - MAX_PROBLEMS} more"] if len(wrong) > MAX_PROBLEMS else []
        lines = "\n".join(f"  {line}" for line in [*wrong[:MAX_PROBLEMS], *more])
        raise BadInputError(f"{source}: {len(wrong)} mistakes:\n{lines}")
    return found


def first_cycle_s(found: Scenario) -> float:
    """Return the time of the first cycle, in seconds since the epoch."""
    return parse_rfc3339(found.now or FIRST_CYCLE)


def read_config(text: str, source: str = "configuration") -> SchedulerConfig:
    """Return the configuration in *text*, with fields in camelCase or with underscores."""
    try:
        document = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise BadInputError(f"{source}: not valid YAML: {error}") from error
    if not isinstance(document, dict):
        raise BadInputError(f"{source}: an object wanted, found {document!r}")
    known = {_camel(f.name): f.name for f in dataclasses.fields(SchedulerConfig)}
    fields: dict[str, Any] = {}
    for key, value in document.items():
        name = known.get(key) or (key if key in known.values() else None)
        if name is None:
            raise BadInputError(f"{source}: {key} is none of {', '.join(known)}")
        fields[name] = value
    if isinstance(fields.get("scores"), dict):
        fields["scores"] = list(fields["scores"].items())
    try:
        found = msgspec.convert(fields, SchedulerConfig)
        _check_names(found)
    except (msgspec.ValidationError, BadInputError) as error:
        raise BadInputError(f"{source}: {error}") from error
    return found


def _check_names(config: SchedulerConfig) -> None:
    """Raise BadInputError for an action, filter or score that does not exist."""
    check("action", config.actions, ACTIONS)
    check("filter", config.filters, {**NODE_FILTERS, **ROOM_FILTERS})
    check("score", [name for name, _ in config.scores], SCORES)


def write_config(config: SchedulerConfig) -> str:
    """Return *config* as YAML that `read_config` reads, with every field."""
    fields = msgspec.to_builtins(config)
    document = {_camel(name): value for name, value in fields.items()}
    document["scores"] = dict(config.scores)
    return yaml.safe_dump(document, sort_keys=False, default_flow_style=None, width=100)


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(word.capitalize() for word in rest)


def write(found: Scenario) -> str:
    """Return *found* as YAML that `read` reads; what has its default is left out."""
    document = msgspec.to_builtins(found)
    return yaml.safe_dump(
        document, sort_keys=False, allow_unicode=True, width=120, default_flow_style=None
    )


def snapshot_schema() -> dict[str, Any]:
    """Return the JSON schema of snapshot files."""
    return {"$schema": _SCHEMA, "title": "Spinney scheduling snapshot"} | msgspec.json.schema(
        Scenario
    )


def report_schema() -> dict[str, Any]:
    """Return the JSON schema of what ``spinney schedule -o json`` prints."""
    return {"$schema": _SCHEMA, "title": "Spinney scheduling report"} | msgspec.json.schema(Report)


# Mistakes that types do not show


def problems(found: Scenario) -> list[str]:
    """Return what is wrong with *found*, each with its path."""
    return list(_sizes(found)) or list(_static(found)) or list(_of_objects(found))


def _sizes(found: Scenario) -> Iterator[str]:
    """Yield numbers that nothing can be made of, before anything is made of them."""
    nodes = sum(max(0, line.count) for line in found.nodes)
    if nodes > MAX_NODES:
        yield f"nodes: {nodes} are more than the {MAX_NODES} that a file may have"
    pods = 0
    for path, line in _pods_lines(found):
        numbers = {"gated": line.gated, "absent": line.absent}
        if isinstance(line.pods, int):
            numbers["pods"] = line.pods
        else:
            pods += len(line.pods)
        for name, number in numbers.items():
            pods += max(0, number)
            if number < 0:
                yield f"{path}.{name}: {number} is less than 0"
    if pods > MAX_PODS:
        yield f"pods: {pods} are more than the {MAX_PODS} that a file may have"


def _pods_lines(found: Scenario) -> Iterator[tuple[str, PodsLine]]:
    """Yield all lines that stand for pods, with their paths."""
    for at, gang in enumerate(found.gangs):
        yield from _below(f"gangs[{at}]", gang.groups)
    for at, line in enumerate(found.pods):
        yield f"pods[{at}]", line


def _below(path: str, groups: list[PodsLine]) -> Iterator[tuple[str, PodsLine]]:
    for at, group in enumerate(groups):
        here = f"{path}.groups[{at}]"
        yield here, group
        yield from _below(here, group.groups)


def _static(found: Scenario) -> Iterator[str]:
    nodes = set(node_names(found))
    yield from _twice("nodes", node_names(found))
    yield from _twice("gangs", (f"{g.namespace}/{g.name}" for g in found.gangs))
    yield from _twice("queues", (q.name for q in found.queues))
    yield from _times(found)
    yield from _amounts_of(found)
    classes = {line.name for line in found.priority_classes}
    topologies = {line.name for line in found.topologies} | ({"cluster"} if found.levels else set())
    for at, line in enumerate(found.topologies):
        if line.domains and len(line.domains) != len(line.levels):
            yield f"topologies[{at}].domains: one for each of the {len(line.levels)} levels wanted"
    for at, gang in enumerate(found.gangs):
        path = f"gangs[{at}]"
        if not gang.groups:
            yield f"{path}.groups: a gang has at least one group"
        if gang.priority_class and gang.priority_class not in classes:
            yield f"{path}.priorityClass: there is no priority class {gang.priority_class!r}"
        if gang.topology and gang.topology not in topologies:
            yield f"{path}.topology: there is no topology {gang.topology!r}"
        yield from _twice(f"{path}.groups", (group.name for group in gang.groups))
        yield from _groups(path, gang, gang.groups, nodes)
    yield from _claims(found)
    for at, pods in enumerate(found.pods):
        path = f"pods[{at}]"
        if pods.groups:
            yield f"{path}.groups: only groups of a gang have groups"
        if pods.priority_class and pods.priority_class not in classes:
            yield f"{path}.priorityClass: there is no priority class {pods.priority_class!r}"
        yield from _pods(path, pods, nodes)


def _of_objects(found: Scenario) -> Iterator[str]:
    """Yield what shows when the file becomes objects and nothing else is wrong."""
    try:
        pods = objects(found).pods
    except BadInputError as error:
        yield str(error)
        return
    yield from _twice("pods", (pod.key for pod in pods))
    for pod in pods:
        spec = pod.spec
        if spec.affinity or spec.topology_spread_constraints or pod.metadata.annotations:
            try:
                shape_of(pod)
            except BadInputError as error:
                yield f"pod {pod.key}: {error}"


def _claims(found: Scenario) -> Iterator[str]:
    known = {(line.namespace, line.name) for line in found.claims}
    yield from _twice("claims", (f"{c.namespace}/{c.name}" for c in found.claims))
    lines = [(f"pods[{at}]", line.namespace, line) for at, line in enumerate(found.pods)]
    for at, gang in enumerate(found.gangs):
        lines += [
            (f"gangs[{at}].groups: {path}", gang.namespace, line)
            for path, line in leaves(gang.groups)
        ]
    for path, namespace, line in lines:
        own = [pod.shared_claims or [] for pod in line.pods] if isinstance(line.pods, list) else []
        for name in itertools.chain(line.shared_claims, *own):
            if (namespace, name) not in known:
                yield f"{path}.sharedClaims: there is no claim {namespace}/{name}"


def _twice(path: str, names: Iterable[str]) -> Iterator[str]:
    for name, count in Counter(names).items():
        if count > 1:
            yield f"{path}: {count} are named {name!r}; each needs its own name"


def _times(found: Scenario) -> Iterator[str]:
    times = [("now", found.now)]
    for at, gang in enumerate(found.gangs):
        times += [(f"gangs[{at}].created", gang.created), (f"gangs[{at}].started", gang.started)]
    times += [(f"pods[{at}].created", line.created) for at, line in enumerate(found.pods)]
    for path, text in times:
        yield from _time(path, text)


def _time(path: str, text: str) -> Iterator[str]:
    try:
        parse_rfc3339(text or FIRST_CYCLE)
    except ValueError:
        yield f"{path}: {text!r} is no time; write one such as {FIRST_CYCLE}"


def _amounts_of(found: Scenario) -> Iterator[str]:
    for at, node in enumerate(found.nodes):
        path = f"nodes[{at}]"
        if node.count < 1:
            yield f"{path}.count: {node.count} is less than 1"
        numbers = {"gpus": node.gpus, "gpuMemory": node.gpu_memory, "pods": node.pods}
        numbers |= {f"devices.{name}": count for name, count in node.devices.items()}
        yield from _quantities(path, {"cpu": node.cpu, "memory": node.memory, **numbers})
        yield from _quantities(f"{path}.allocatable", node.allocatable)
    for at, queue in enumerate(found.queues):
        for name in ("gpus", "cpu", "memory"):
            share = getattr(queue, name)
            yield from _quantities(
                f"queues[{at}].{name}", {"quota": share.quota, "limit": share.limit}, least=-1
            )


def _quantities(path: str, amounts: dict[str, Any], least: int = 0) -> Iterator[str]:
    for name, amount in amounts.items():
        try:
            milli = quantity.milli(amount if amount is not None else 0)
        except (BadInputError, ValueError, OverflowError) as error:
            yield f"{path}.{name}: {error}"
            continue
        if milli < 1000 * least:
            yield f"{path}.{name}: {amount} is less than {least}"
        if milli > MOST_MILLI:
            yield f"{path}.{name}: {amount} is more than can be counted"


def _counts(line: PodsLine | PodLine) -> dict[str, Any]:
    """Return the numbers of one line that are quantities too."""
    sizes = {f"sizes[{at}]": size for at, size in enumerate(getattr(line, "sizes", ()))}
    claims = {f"claims.{name}": count for name, count in (line.claims or {}).items()}
    named = {"gpus": line.gpus, "gpuMemory": line.gpu_memory, "gpuDevices": line.gpu_devices}
    return {**named, **sizes, **claims}


def _ports(path: str, ports: Iterable[int | str] | None) -> Iterator[str]:
    for port in ports or ():
        number = str(port).partition("/")[0]
        if not number.isdecimal() or not 0 < int(number) < 65536:
            yield f"{path}.hostPorts: {port!r} is no port; write one such as 8080 or 53/UDP"


def _groups(path: str, gang: GangLine, groups: list[PodsLine], nodes: set[str]) -> Iterator[str]:
    constraints = {line.name for line in gang.constraints}
    for at, group in enumerate(groups):
        here = f"{path}.groups[{at}]"
        if group.within and group.within not in constraints:
            yield f"{here}.within: the gang has no constraint {group.within!r}"
        if not group.groups:
            yield from _pods(here, group, nodes)
            continue
        if group.within:
            yield f"{here}.within: write the constraint in the group that has groups"
        if group.pods != 1 or group.sizes or group.on or group.leaving:
            yield f"{here}: a group has groups or pods, not both"
        if (group.minimum or 0) > len(group.groups):
            yield f"{here}.minimum: {group.minimum} is more than its {len(group.groups)} groups"
        yield from _twice(f"{here}.groups", (below.name for below in group.groups))
        yield from _groups(here, gang, group.groups, nodes)


def _pods(path: str, line: PodsLine, nodes: set[str]) -> Iterator[str]:
    numbers = {"cpu": line.cpu, "memory": line.memory, **line.requests, **_counts(line)}
    yield from _quantities(path, numbers)
    yield from _ports(path, line.host_ports)
    for field in ("on", "leaving"):
        for node in getattr(line, field):
            if node not in nodes:
                yield f"{path}.{field}: there is no node {node!r}"
    if not isinstance(line.pods, list):
        return
    if line.sizes or line.on or line.leaving or line.gated:
        yield f"{path}.pods: with a list of pods, sizes, on, leaving and gated have no use"
    for at, pod in enumerate(line.pods):
        yield from _pod(f"{path}.pods[{at}]", pod, nodes)


def _pod(path: str, pod: PodLine, nodes: set[str]) -> Iterator[str]:
    numbers = {"cpu": pod.cpu, "memory": pod.memory, **(pod.requests or {}), **_counts(pod)}
    yield from _quantities(path, numbers)
    yield from _ports(path, pod.host_ports)
    if pod.state in ON_NODES and not pod.node:
        yield f"{path}.node: a pod that is {pod.state} has a node"
    if pod.node and pod.state in ("pending", "gated", "absent"):
        yield f"{path}.state: a pod that is {pod.state} has no node; write state: running"
    for field, node in (("node", pod.node), ("nominated", pod.nominated)):
        if node and node not in nodes:
            yield f"{path}.{field}: there is no node {node!r}"
    yield from _time(f"{path}.created", pod.created)
