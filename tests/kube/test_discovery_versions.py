"""Kinds of one group that are served in different versions."""

from __future__ import annotations

import asyncio
import random

from spinney.api.crd import crd_documents
from spinney.clock import SystemClock
from spinney.ids import RandomIds
from spinney.kube.client import KubeClient
from spinney.kube.discovery import Discovery
from spinney.local.apiserver.server import ApiServer


def test_a_kind_outside_of_its_groups_preferred_version_is_found() -> None:
    async def main() -> None:
        ids = RandomIds(random.Random(1))
        api = ApiServer(SystemClock(), ids, definitions=crd_documents())
        discovery = Discovery(KubeClient(api))

        assert (await discovery.resolve("queues")).api_version == "scheduling.run.ai/v2"
        assert (await discovery.resolve("podgroups")).api_version == "scheduling.run.ai/v2alpha2"
        found = await discovery.resources()
        assert len({(r.group, r.plural) for r in found}) == len(found)

    asyncio.run(main())
