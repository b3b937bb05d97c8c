"""What docs/scheduler.md and its examples say is so: configuration, permissions, names."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from click.testing import CliRunner
from tests.scheduler.test_bind_claims import claim, make_pod, offer_devices, sharing, uses
from tests.scheduler.test_bind_restarts import NEVER, Mortal, live
from tests.scheduler.test_gpu_reserver import CONFIG, DevicePlugin
from tests.scheduler.test_live_status import kai_group
from tests.scheduler.test_scheduler_in_a_cluster import bound, create, gang, play

from spinney.api.core import Pod, PriorityClass
from spinney.api.queue import Queue, QueueResource, QueueResources, QueueSpec
from spinney.cli.schedule import schedule
from spinney.errors import BadInputError
from spinney.scheduler.config import SchedulerConfig
from spinney.scheduler.cycle import ACTIONS
from spinney.scheduler.published import publish, published
from spinney.scheduler.snapshot_file import read_config, write_config

if TYPE_CHECKING:
    from spinney.kube.transport import ApiRequest, ApiResponse, Transport
    from spinney.sim.cluster import SimulatedCluster

ROOT = Path(__file__).parents[2]
DOCUMENT = (ROOT / "docs" / "scheduler.md").read_text()
EXAMPLES = ROOT / "examples" / "scheduling"


def part(heading: str) -> str:
    return DOCUMENT.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]


def camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(word.capitalize() for word in rest)


def test_the_configuration_in_the_text_is_the_example_and_is_read() -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", part("Configuration"), re.DOTALL)
    example = (EXAMPLES / "config.yaml").read_text()

    assert yaml.safe_load(block) == yaml.safe_load(example)
    config = read_config(example)
    assert config.actions == ("allocate", "reclaim", "preempt", "evict-stale")
    assert dict(config.scores)["bin-pack"] == 10
    assert (config.gpu_order, config.stale_grace_s) == ("spread", 300)


def test_the_example_runs_with_the_example() -> None:
    arguments = ["--snapshot", str(EXAMPLES / "racks.yaml"), "-o", "json"]
    arguments += ["--config", str(EXAMPLES / "config.yaml")]
    result = CliRunner().invoke(schedule, arguments, standalone_mode=False)

    assert result.exception is None
    report = json.loads(result.stdout)
    assert {g["gang"]: g["state"] for g in report["gangs"]}["default/chat"] == "placed"


def test_every_field_of_the_configuration_is_described_with_its_default() -> None:
    rows = re.findall(r"^\| (`.*?) \| (.*?) \|", part("Configuration"), re.MULTILINE)
    described = {}
    for names, defaults in rows:
        found = re.findall(r"`(\w+)`", names)
        values = [defaults] if len(found) == 1 else defaults.split(", ")
        described.update(zip(found, values, strict=True))
    fields = {camel(f.name): f for f in dataclasses.fields(SchedulerConfig)}

    assert set(described) == set(fields)
    default = SchedulerConfig()
    for name, field in fields.items():
        value = getattr(default, field.name)
        if isinstance(value, str):
            assert described[name] in (value, '""')
        elif isinstance(value, int | float):
            assert float(described[name]) == value, name
        elif name == "scores":
            assert described[name] == ", ".join(f"{key}: {weight:g}" for key, weight in value)
        else:
            assert described[name].strip("[]") == ", ".join(value), name


def test_every_action_is_described() -> None:
    described = re.findall(r"^\| `([\w-]+)` \|", part("Queues and making room"), re.MULTILINE)

    assert described == list(SchedulerConfig().actions)
    assert set(described) == set(ACTIONS)


def test_a_configuration_is_written_as_it_is_read() -> None:
    config = SchedulerConfig(pool="a", pool_key="k", actions=("allocate",), stale_grace_s=1.5)

    assert read_config(write_config(config)) == config
    assert read_config("") == SchedulerConfig()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("actions: [pray]", "scheduler action 'pray' is none of allocate"),
        ("filters: [taint]", "scheduler filter 'taint' is none of"),
        ("scores: {packed: 1}", "scheduler score 'packed' is none of"),
        ("staleGrace: 3", "staleGrace is none of"),
        ("staleGraceS: soon", "Expected `float`"),
        ("[1]", "an object wanted"),
    ],
)
def test_a_mistake_in_a_configuration_is_named(text: str, words: str) -> None:
    with pytest.raises(BadInputError) as error:
        read_config(text, "c.yaml")

    assert str(error.value).startswith("c.yaml: ")
    assert words in str(error.value)


def test_the_configuration_in_force_is_found_by_who_asks() -> None:
    async def scene(cluster: SimulatedCluster) -> None:
        assert await published(cluster.client) == SchedulerConfig()
        for grace_s in (30.0, 30.0, 40.0):
            config = SchedulerConfig(stale_grace_s=grace_s)
            await publish(cluster.client, config)
            assert await published(cluster.client) == config
        other = SchedulerConfig(pool="b", pool_key="k")
        await publish(cluster.client, other, namespace="elsewhere", name="b")
        assert (await published(cluster.client)).stale_grace_s == 40.0

    play(scene, programs=())


# Permissions


class Listening:
    """Passes requests on and keeps what they ask for: group, resource, verb."""

    def __init__(self, inner: Transport) -> None:
        self._inner = inner
        self.asked: set[tuple[str, str, str]] = set()

    async def send(self, request: ApiRequest) -> ApiResponse:
        self.asked.add(asked_for(request))
        return await self._inner.send(request)

    async def close(self) -> None:
        await self._inner.close()


def asked_for(request: ApiRequest) -> tuple[str, str, str]:
    """Return group, resource and verb as authorisation rules name them."""
    steps = request.path.strip("/").split("/")
    group, rest = ("", steps[2:]) if steps[0] == "api" else (steps[1], steps[3:])
    if rest[0] == "namespaces" and len(rest) > 2:
        rest = rest[2:]
    resource = "/".join((rest[0], *rest[2:]))
    if request.method == "GET":
        verb = "get" if len(rest) > 1 else "watch" if "watch" in request.query else "list"
    else:
        verbs = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
        verb = verbs[request.method]
    return group, resource, verb


def allowed() -> set[tuple[str, str, str]]:
    documents = list(yaml.safe_load_all((ROOT / "deploy" / "scheduler.yaml").read_text()))
    return {
        (group, resource, verb)
        for document in documents
        if document["kind"] in ("ClusterRole", "Role")
        for rule in document["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def test_the_deployment_allows_what_the_scheduler_asks_for() -> None:
    async def scene(cluster: SimulatedCluster) -> set[tuple[str, str, str]]:
        important = PriorityClass(value=50)
        important.metadata.name = "p50"
        await cluster.client.create(important)
        gpu = QueueResource(quota=-1.0)
        queue = Queue(spec=QueueSpec(resources=QueueResources(gpu=gpu)))
        queue.metadata.name = "default"
        await cluster.client.create(queue)
        await offer_devices(cluster)
        await claim(cluster, "c")
        await create(cluster, gang("low", 4, 4))
        await kai_group(cluster, "kai", 2)
        await make_pod(cluster, "claims", resourceClaims=uses("c"))
        await create(cluster, sharing("shared", 1, 0.5))
        listening = Listening(cluster.transport)
        later = asyncio.get_running_loop().create_task(arrive(cluster))
        await live(cluster, Mortal(listening, NEVER), 90, CONFIG)
        await later
        assert "high-p-0" in await bound(cluster)
        return listening.asked

    async def arrive(cluster: SimulatedCluster) -> None:
        await asyncio.sleep(5)
        await create(cluster, gang("high", 1, 4, priority=50))
        await asyncio.sleep(40)
        await cluster.client.delete(Pod, "shared-p-0", "default")

    asked: Any = play(scene, programs=(DevicePlugin(),))
    assert asked - allowed() == set()
    assert asked >= {("", "pods", "create"), ("", "pods", "delete"), ("", "namespaces", "create")}
    assert {resource for _, resource, verb in asked if verb in ("create", "patch")} >= {
        "pods/binding",
        "pods/eviction",
        "pods/status",
        "podgangs/status",
        "podgroups/status",
        "queues/status",
        "resourceclaims",
        "resourceclaims/status",
        "events",
    }
