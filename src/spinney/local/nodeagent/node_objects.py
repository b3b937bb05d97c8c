"""Node objects and their heartbeats: how declared nodes appear in the API, and stay.

The agent owns a node's labels that the declaration names, its status and its Lease; what an
administrator adds (taints, cordon, other labels) is left alone.
"""

from __future__ import annotations

import asyncio
import platform
from typing import TYPE_CHECKING, Any

from spinney import __version__
from spinney.api.core import Lease, Node
from spinney.clock import rfc3339
from spinney.kube.backoff import BackoffPolicy
from spinney.kube.errors import AlreadyExistsError, ApiError, NotFoundError
from spinney.kube.transport import TransportError
from spinney.log import get_logger

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from random import Random

    from spinney.clock import Clock
    from spinney.kube.client import KubeClient
    from spinney.local.cluster_config import NodeDeclaration

LEASE_NAMESPACE = "kube-node-lease"
LEASE_DURATION_S = 40
HEARTBEAT_S = 10.0
STATUS_EVERY_S = 300.0
"""A status that does not change is repeated this often; the Lease is the heartbeat."""
REQUEST_TIMEOUT_S = 10.0
RETRY = BackoffPolicy(base_s=0.2, cap_s=5.0)

log = get_logger("nodeagent")


class NodeObjects:
    """The Node and Lease objects of the declared nodes."""

    def __init__(
        self,
        client: KubeClient,
        clock: Clock,
        rng: Random,
        nodes: Sequence[NodeDeclaration],
    ) -> None:
        self._client = client
        self._clock = clock
        self._rng = rng
        self._nodes = nodes
        self._ports: dict[str, int] = {}
        self._ready_since: dict[str, str] = {}

    async def run(self, log_ports: dict[str, int]) -> None:
        """Register all nodes, then keep their heartbeats going until cancelled."""
        self._ports = log_ports
        reported_s = 0.0
        failures = 0
        while True:
            try:
                if self._clock.now() - reported_s >= STATUS_EVERY_S:
                    await self._each(self._register)
                    reported_s = self._clock.now()
                await self._each(self._renew)
            except NotFoundError:
                reported_s = 0.0  # Somebody removed a node: it comes back.
                failures += 1
            except (ApiError, TransportError, TimeoutError) as error:
                failures += 1
                log.warning("heartbeat failed", error=str(error), failures=failures)
            else:
                failures = 0
            wait_s = RETRY.delay_s(failures, self._rng) if failures else HEARTBEAT_S
            await asyncio.sleep(wait_s)

    async def retire(self) -> None:
        """Report the nodes as not ready: nobody runs their pods from now on."""
        for node in self._nodes:
            status = self._status(node, ready=False)
            await self._client.patch(
                Node.RESOURCE, node.name, {"status": status}, subresource="status"
            )

    async def _each(self, what: Callable[[NodeDeclaration], Awaitable[None]]) -> None:
        for node in self._nodes:
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                await what(node)

    async def _register(self, node: NodeDeclaration) -> None:
        body = {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": node.name, "labels": self._labels(node)},
            "spec": {
                "podCIDR": node.pod_range,
                "providerID": f"spinney://{node.name}",
                "taints": [
                    {"key": t.key, "value": t.value, "effect": t.effect} for t in node.taints
                ],
            },
        }
        try:
            await self._client.create(body, resource=Node.RESOURCE)
            log.info("node registered", node=node.name, address=node.address)
        except AlreadyExistsError:
            labels = {"metadata": {"labels": self._labels(node)}}
            await self._client.patch(Node.RESOURCE, node.name, labels)
        status = {"status": self._status(node, ready=True)}
        await self._client.patch(Node.RESOURCE, node.name, status, subresource="status")

    @staticmethod
    def _labels(node: NodeDeclaration) -> dict[str, str]:
        machine = {"kubernetes.io/os": "linux", "kubernetes.io/arch": _architecture()}
        return {**machine, **node.labels}

    def _status(self, node: NodeDeclaration, *, ready: bool) -> dict[str, Any]:
        now = rfc3339(self._clock.now())
        since = self._ready_since.setdefault(node.name, now) if ready else now
        condition = {
            "type": "Ready",
            "status": "True" if ready else "False",
            "reason": "NodeAgentReady" if ready else "NodeAgentStopped",
            "message": "pods run as processes" if ready else "the node agent was stopped",
            "lastHeartbeatTime": now,
            "lastTransitionTime": since,
        }
        return {
            "capacity": node.capacity,
            "allocatable": node.capacity,
            "conditions": [condition],
            "addresses": [
                {"type": "InternalIP", "address": node.address},
                {"type": "Hostname", "address": node.name},
            ],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": self._ports.get(node.name, 0)}},
            "nodeInfo": self._node_info(node),
        }

    @staticmethod
    def _node_info(node: NodeDeclaration) -> dict[str, str]:
        system = platform.uname()
        return {
            "kubeletVersion": f"v{__version__}-spinney",
            "kubeProxyVersion": "",
            "containerRuntimeVersion": f"process://{__version__}",
            "operatingSystem": "linux",
            "architecture": _architecture(),
            "osImage": "this machine",
            "kernelVersion": system.release,
            "machineID": node.name,
            "systemUUID": node.name,
            "bootID": "",
        }

    async def _renew(self, node: NodeDeclaration) -> None:
        now = rfc3339(self._clock.now(), micro=True)
        spec = {
            "holderIdentity": node.name,
            "leaseDurationSeconds": LEASE_DURATION_S,
            "renewTime": now,
        }
        try:
            await self._client.patch(Lease, node.name, {"spec": spec}, LEASE_NAMESPACE)
        except NotFoundError:
            # Raises NotFoundError in turn when the node itself has gone.
            owner = await self._client.get(Node, node.name)
            reference = {
                "apiVersion": "v1",
                "kind": "Node",
                "name": node.name,
                "uid": owner.metadata.uid,
            }
            meta = {
                "name": node.name,
                "namespace": LEASE_NAMESPACE,
                "ownerReferences": [reference],
            }
            body = {
                "apiVersion": Lease.RESOURCE.api_version,
                "kind": "Lease",
                "metadata": meta,
                "spec": spec,
            }
            await self._client.create(body, resource=Lease.RESOURCE)


def _architecture() -> str:
    machine = platform.machine()
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(machine, machine)
