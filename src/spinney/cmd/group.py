"""A worker of several processes: which of them this one is, and how a member runs.

Rank 0 leads: it serves HTTP and KV, and is the worker that a router sees. Grove starts the
processes as pods and tells each by its environment which one it is; elsewhere flags do. Invariant:
a member ends when its leader does, and its ``/health`` is 200 exactly while the group runs.
"""

from __future__ import annotations

import asyncio
import os
import signal
from dataclasses import dataclass
from random import SystemRandom
from typing import TYPE_CHECKING, Any

import click

from spinney import log as logs
from spinney.api import names
from spinney.errors import BadInputError, SpinneyError
from spinney.ids import RandomIds

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from spinney.engine.group.leader import GroupLeader
    from spinney.engine.group.member import Membership

POD_INDEX = "GROVE_PCLQ_POD_INDEX"
"""Grove's number of a pod in its clique, from 0."""

GROUP = (
    click.option(
        "--tensor-parallel-size",
        type=click.IntRange(1),
        default=1,
        help="Processes that share the model, each with some of its heads.",
    ),
    click.option(
        "--group-rank",
        type=click.IntRange(0),
        help=f"Which of them this is; 0 leads. [default: ${POD_INDEX} + --group-rank-base]",
    ),
    click.option(
        "--group-rank-base",
        type=click.IntRange(0),
        default=0,
        help=f"Rank of the pod whose ${POD_INDEX} is 0: 1 where the leader is another clique.",
    ),
    click.option("--group-leader", help="Address or name of rank 0; the others need it."),
    click.option("--group-port", default=29400, help="Where rank 0 expects the others."),
    click.option(
        "--group-start-timeout",
        default=300.0,
        help="Seconds the processes wait for each other before they end.",
    ),
)


@dataclass(frozen=True, slots=True)
class Place:
    """Which process of a group this is. *leader_name* is empty at rank 0."""

    rank: int
    ranks: int
    leader_name: str
    host: str
    port: int
    start_timeout_s: float

    def leader(self) -> GroupLeader | None:
        """Return what rank 0 waits with for the others; None where there are none."""
        if self.ranks == 1:
            return None
        from spinney.engine.group.leader import GroupLeader

        return GroupLeader(self.host, self.port, self.start_timeout_s)


@dataclass(frozen=True, slots=True)
class MemberModel:
    """What a member has loaded. *build* gives, by rank and place, the work it does in the group."""

    model: str
    arithmetic: str
    build: Callable[[int, Membership], Callable[[], None]]


def place_in_group(options: dict[str, Any]) -> Place:
    """Return which process of its group this is; raise BadInputError when that is not said."""
    ranks, rank = options["tensor_parallel_size"], options["group_rank"]
    if ranks == 1:
        return Place(0, 1, "", "", 0, 0.0)
    if rank is None:
        index = os.environ.get(POD_INDEX, "")
        if not index.isdecimal():
            raise BadInputError(
                f"--tensor-parallel-size {ranks}: which of the {ranks} processes is this? Give "
                f"--group-rank, or have Grove set {POD_INDEX} (found {index!r})"
            )
        rank = int(index) + options["group_rank_base"]
    if rank >= ranks:
        raise BadInputError(
            f"rank {rank} is none of the {ranks} of --tensor-parallel-size: 0 to {ranks - 1}"
        )
    leader = options["group_leader"] or ""
    if rank and not leader:
        raise BadInputError(
            f"rank {rank} needs --group-leader: in a pod "
            f"$(GROVE_PCSG_NAME)-$(GROVE_PCSG_INDEX)-<leader clique>-0.$(GROVE_HEADLESS_SERVICE)"
        )
    host, port = options["host"], options["group_port"]
    return Place(rank, ranks, leader, host, port, options["group_start_timeout"])


def run_member(options: dict[str, Any], place: Place, load: Callable[[], MemberModel]) -> None:
    """Compute for the leader until it ends the group. Raises GroupLostError when it is gone."""
    import uvloop

    logs.configure(level=options["log_level"], json=options["log_json"])
    loaded = load()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_member(options, place, loaded))


async def _member(options: dict[str, Any], place: Place, loaded: MemberModel) -> None:
    from spinney.engine.group.member import Application, join
    from spinney.listener import listen

    health = _Health()
    listener = listen(options["host"], options["port"], advice="give a free --port")
    application = Application(
        rank=place.rank,
        ranks=place.ranks,
        model=loaded.model,
        arithmetic=loaded.arithmetic,
        member=RandomIds(SystemRandom()).suffix(12),
        resolve=lambda: leader_address(place.leader_name),
        port=place.port,
        timeout_s=place.start_timeout_s,
    )
    server = health.server()
    try:
        async with asyncio.TaskGroup() as group:
            serving = group.create_task(server.serve_until_stopped(listener))
            health.membership = membership = await join(application)
            try:
                await _compute(place, loaded, membership)
            finally:
                membership.close()
            serving.cancel()
    except* SpinneyError as errors:
        # One thing went wrong; that others were cancelled for it is no news.
        raise errors.exceptions[0] from None


async def _compute(place: Place, loaded: MemberModel, membership: Membership) -> None:
    from spinney.engine.worker_thread import WorkerThread

    log = logs.get_logger("group")
    turns = WorkerThread(f"rank-{place.rank}")
    asked: list[int] = []

    def on_signal() -> None:
        if asked:
            os._exit(1)
        asked.append(1)
        membership.leave()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, on_signal)
    work = await turns.run(lambda: loaded.build(place.rank, membership))
    log.info("member ready", rank=place.rank, ranks=place.ranks)
    await membership.run(work, turns, place.start_timeout_s)
    turns.stop()
    log.info("member stopped", rank=place.rank)


class _Health:
    """Answers ``/health``: 200 while the group runs, 503 before."""

    def __init__(self) -> None:
        self.membership: Membership | None = None

    async def __call__(
        self,
        scope: dict[str, Any],
        _receive: object,
        send: Callable[[dict[str, Any]], Awaitable[None]],
    ) -> None:
        """Answer one request, as an ASGI application does."""
        known = scope["type"] == "http" and scope["path"] == "/health"
        runs = self.membership is not None and self.membership.started
        status = 404 if not known else 200 if runs else 503
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    def server(self) -> Any:
        """Return what serves it."""
        import uvicorn

        from spinney.listener import ListeningServer

        config = uvicorn.Config(self, lifespan="off", log_config=None, access_log=False)
        return ListeningServer(config)


async def leader_address(name: str) -> str:
    """Return an address for *name*; raise OSError while there is none.

    A local cluster has no DNS: where $KUBECONFIG says which cluster this is, the name of a pod is
    looked up there.
    """
    parts = name.split(".")
    if os.environ.get("KUBECONFIG") and len(parts) > 2:
        return await _pod_address(parts[0], parts[2])
    found = await asyncio.get_running_loop().getaddrinfo(name, None)
    return str(found[0][4][0])


async def _pod_address(hostname: str, namespace: str) -> str:
    from spinney.api.core import Pod
    from spinney.kube.client import KubeClient
    from spinney.kube.errors import ApiError
    from spinney.kube.http import HttpTransport
    from spinney.kube.transport import TransportError

    clique, _, index = hostname.rpartition("-")
    client = KubeClient(HttpTransport.from_environment())
    try:
        labels = f"{names.POD_CLIQUE}={clique},{names.POD_INDEX}={index}"
        pods = await client.list(Pod, namespace, labels=labels)
    except (ApiError, TransportError) as error:
        raise ConnectionError(f"pod {hostname} cannot be looked up: {error}") from error
    finally:
        await client.close()
    for pod in pods.items:
        if pod.status.pod_ip and not pod.deleting:
            return pod.status.pod_ip
    raise ConnectionError(f"pod {hostname} has no address yet")
