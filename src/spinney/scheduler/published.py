"""The configuration in force, where everyone can read it: a ConfigMap that the scheduler writes.

Questions asked from elsewhere (`spinney why`, `spinney fit`, a planner) are answered by the code
that decides in the cluster, and so have to use its configuration too. The ConfigMap is a copy: the
scheduler never reads it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from spinney.api.core import ConfigMap, Namespace
from spinney.api.meta import ObjectMeta
from spinney.kube.errors import AlreadyExistsError, ApiError, NotFoundError
from spinney.log import get_logger
from spinney.scheduler.config import SchedulerConfig
from spinney.scheduler.snapshot_file import read_config, write_config

if TYPE_CHECKING:
    from spinney.kube.client import KubeClient

NAMESPACE = "spinney-system"
NAME = "spinney-scheduler"
KEY = "config.yaml"

log = get_logger("scheduler")


async def publish(
    client: KubeClient, config: SchedulerConfig, *, namespace: str = NAMESPACE, name: str = NAME
) -> None:
    """Write *config* where `published` finds it; a scheduler beside the main one has another name.

    What the API refuses is logged: it is a copy.
    """
    try:
        await _write(client, namespace, name, write_config(config))
    except ApiError as error:
        log.warning("configuration is not published", error=str(error))


async def _write(client: KubeClient, namespace: str, name: str, text: str) -> None:
    try:
        found = await client.get(ConfigMap, name, namespace)
    except NotFoundError:
        await _create_namespace(client, namespace)
        metadata = ObjectMeta(name=name, namespace=namespace)
        await client.create(ConfigMap(metadata=metadata, data={KEY: text}))
        return
    if found.data.get(KEY) != text:
        await client.patch(ConfigMap, name, {"data": {KEY: text}}, namespace)


async def _create_namespace(client: KubeClient, name: str) -> None:
    try:
        await client.create(Namespace(metadata=ObjectMeta(name=name)))
    except AlreadyExistsError:
        return


async def published(client: KubeClient) -> SchedulerConfig:
    """Return the configuration of the cluster's scheduler; the default one if none is published.

    Raises BadInputError when it is one of another version that this one cannot read.
    """
    try:
        found = await client.get(ConfigMap, NAME, NAMESPACE)
    except NotFoundError:
        return SchedulerConfig()
    return read_config(found.data.get(KEY, ""), f"ConfigMap {NAMESPACE}/{found.name}")
