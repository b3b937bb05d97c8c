"""What deploy/controllers.yaml allows is what the controllers and the webhook ask for."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import yaml
from tests.controllers import test_autoscaling, test_cluster_topology, test_compute_domains
from tests.controllers.farm import NS, Controllers, Farm, clique, pcs, play
from tests.controllers.test_resource_claims import started
from tests.controllers.test_scheduler_backends import for_scheduler
from tests.controllers.test_webhook import configuration_kind
from tests.scheduler.test_live_documentation import Listening

from spinney.api import codec
from spinney.api.core import CustomResourceDefinition
from spinney.api.grove import PodCliqueSet
from spinney.cmd.main import spinney
from spinney.controllers.admission.lookup import Lookup
from spinney.controllers.admission.manifests import register_webhook, webhook_manifests
from spinney.kube.client import KubeClient
from spinney.kube.controller import Runtime

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

DEPLOY = Path(__file__).parents[2] / "deploy"
EXPLICIT = "CliqueStartupTypeExplicit"


def services() -> dict[str, dict[str, Any]]:
    made = {
        "domains": test_compute_domains.service(test_compute_domains.role("a")),
        "kai": for_scheduler("kai-scheduler"),
        "scaled": test_autoscaling.service(),
        "ordered": pcs(clique("x"), clique("y", after=["x"]), startup=EXPLICIT),
    }
    for name, manifest in made.items():
        manifest["metadata"]["name"] = name
    return made


async def life(farm: Farm) -> None:
    """Create services of all kinds, scale, update and delete them."""
    topology = test_cluster_topology.KAI_CRD
    await farm.client.create(codec.from_dict(CustomResourceDefinition, topology))
    await farm.client.create(test_cluster_topology.binding("rack"))
    await started(farm)
    for manifest in services().values():
        await farm.apply(manifest)
    await farm.quiet()
    names = ["s", *services()]
    for replicas in (2, 1):
        for name in names:
            await farm.client.patch(PodCliqueSet, name, {"spec": {"replicas": replicas}}, NS)
        await farm.quiet()
    found = await farm.client.get(PodCliqueSet, "ordered", NS)
    found.spec.template.cliques[0].spec.pod_spec["containers"][0]["image"] = "x:2"
    await farm.client.update(found)
    await farm.quiet(300)
    for name in names:
        await farm.client.delete(PodCliqueSet, name, NS)
    await farm.quiet()


def asked_in_a_life() -> set[tuple[str, str, str]]:
    heard: list[Listening] = []

    async def scene(farm: Farm) -> None:
        await farm.controllers.stop()
        heard.append(Listening(farm.cluster.transport))
        mine = Controllers(farm.cluster, heard[0], 2)
        mine.start()
        await life(farm)
        await mine.stop()
        farm.controllers.start()

    play(scene)
    return heard[0].asked


def allowed(account: str) -> set[tuple[str, str, str]]:
    documents = yaml.safe_load_all((DEPLOY / "controllers.yaml").read_text())
    return {
        (group, resource, verb)
        for document in documents
        if document["kind"] in ("ClusterRole", "Role") and document["metadata"]["name"] == account
        for rule in document["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


READS = {"get", "list", "watch"}
SELDOM = {
    "coordination.k8s.io",  # The lease is taken by the program, not by what it runs.
    "scheduling.run.ai",
    "scheduling.volcano.sh",
    "scheduling.k8s.io",
    "kai.scheduler",
}
NOT_IN_A_LIFE = {
    ("apps", "controllerrevisions", "delete"),
    ("autoscaling", "horizontalpodautoscalers", "patch"),
    ("", "services", "patch"),
    ("grove.io", "podcliquescalinggroups", "patch"),
    ("rbac.authorization.k8s.io", "roles", "patch"),
    ("rbac.authorization.k8s.io", "rolebindings", "patch"),
    ("resource.k8s.io", "resourceclaims", "patch"),
}
"""What is done seldom: old revisions, and objects that somebody else has changed."""


def test_the_controllers_are_allowed_what_they_ask_for_and_little_else() -> None:
    asked, may = asked_in_a_life(), allowed("spinney-controllers")
    assert asked - may == set()
    writes = {
        (group, resource, verb)
        for group, resource, verb in may
        if verb not in READS and not resource.endswith("/finalizers") and group not in SELDOM
    }
    assert writes - asked == NOT_IN_A_LIFE


def test_the_webhook_is_allowed_what_it_asks_for() -> None:
    heard: list[Listening] = []

    async def scene(farm: Farm) -> None:
        heard.append(Listening(farm.cluster.transport))
        client = KubeClient(heard[0])
        runtime = Runtime(client, farm.cluster.clock, rng=random.Random(1))
        lookup = Lookup(runtime, protects=True)
        watching = asyncio.get_running_loop().create_task(runtime.run())
        await farm.until(_ready(lookup), "the lists are there")
        watching.cancel()
        for which in ("Mutating", "Validating"):
            await farm.client.create(configuration_kind(which))
        await register_webhook(client, webhook_manifests("https://hook", b"PEM"))

    play(scene)
    assert heard[0].asked - allowed("spinney-webhook") == set()
    assert {verb for _, _, verb in heard[0].asked} == {"list", "watch", "patch"}


def _ready(lookup: Lookup) -> Callable[[], Awaitable[bool]]:
    async def holds() -> bool:
        return lookup.ready

    return holds


def test_the_programs_are_started_with_flags_that_exist() -> None:
    documents = yaml.safe_load_all((DEPLOY / "controllers.yaml").read_text())
    programs = [
        container["command"]
        for document in documents
        if document["kind"] == "Deployment"
        for container in document["spec"]["template"]["spec"]["containers"]
    ]
    assert [program[1] for program in programs] == ["controllers", "webhook"]
    for _, verb, *flags in programs:
        command = spinney.get_command(click.Context(spinney), verb)
        assert command is not None
        command.make_context(verb, list(flags))
