"""``spinney router``: the OpenAI server in front of prefill and decode workers.

It takes no new requests after SIGTERM or SIGINT, finishes what runs, and exits with 0; a second
signal ends it at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import random
import signal
import socket
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import click
import uvicorn
import uvloop
from prometheus_client import CollectorRegistry, ProcessCollector, disable_created_metrics

from spinney.api.core import Node, Pod
from spinney.api.selectors import parse_labels
from spinney.clock import SystemClock
from spinney.cmd.router_peering import Meet, Peering, peering_of, siblings_of
from spinney.cmd.router_processes import Seat, Supervisor
from spinney.cmd.traces import tracing
from spinney.errors import BadInputError, SpinneyError
from spinney.ids import RandomIds
from spinney.kv.event_stream import subscribe
from spinney.listener import ListeningServer
from spinney.log import configure, get_logger
from spinney.perfmodel.profile import load_step_model
from spinney.router.assembly import Router, assemble
from spinney.router.costs import ModelCosts
from spinney.router.limits import Limits
from spinney.router.peer_app import HttpPeers
from spinney.router.peer_seal import Seal
from spinney.router.picker import Policy
from spinney.router.pods import ROUTER_SELECTOR, WORKER_SELECTOR, PodPeers, PodWorkers
from spinney.router.upstream import HttpUpstream
from spinney.router.workers import StaticWorkers, parse_worker

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

    from spinney.kv.event_stream import Gap
    from spinney.kv.events import KVEventBatch
    from spinney.router.app import RouterApp
    from spinney.router.event_feeds import Subscribe
    from spinney.router.peer_app import PeerApp
    from spinney.router.prompt_tokens import PromptTokenizer
    from spinney.router.workers import WorkerSource

log = get_logger("router")

_DEFAULTS = Limits()
MOST_PROCESSES = 64
BACKLOG = 2048
"""Connections that may wait to be accepted."""
KEEP_ALIVE_S = 75
"""How long a client's idle connection is kept."""
LAST_WORDS_S = 2
"""For connections to close after the last request has ended."""


_deadline = click.FloatRange(min=0.001)


@click.command(
    context_settings={"show_default": True},
    epilog="Without Kubernetes: spinney router --worker both=http://127.0.0.1:8001",
)
@click.option("--host", default="127.0.0.1", help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, help="0 means any free one.")
@click.option(
    "--worker",
    "workers",
    multiple=True,
    metavar="ROLE[:NAME]=URL[,KEY=VALUE...]",
    help="A worker, instead of looking for pods; repeat it. ROLE is prefill, decode or both; keys "
    "are kv-events, kv-replay, host, rack, zone.",
)
@click.option(
    "--model",
    "models",
    multiple=True,
    help="A model that the --worker ones serve; without it they are asked.",
)
@click.option("--namespace", default="default", help="Where to look for pods.")
@click.option("--selector", default="", help="Labels that worker pods have, besides their role.")
@click.option("--kubeconfig", type=click.Path(dir_okay=False), help="The cluster to look in.")
@click.option(
    "--tokenizer",
    "tokenizers",
    multiple=True,
    metavar="[MODEL=]DIR",
    help="A model's directory, or 'demo': its prompts are looked up by token, as KV events are.",
)
@click.option(
    "--profile",
    help="A performance profile, shipped or a file: workers are weighed in its milliseconds.",
)
@click.option(
    "--topology",
    is_flag=True,
    help="Read the labels of nodes, and prefer pairs of workers that are near each other.",
)
@click.option(
    "--local-prefill-below",
    type=click.IntRange(min=0),
    default=0,
    help="Prompts with fewer uncached tokens are prefilled by the decode worker.",
)
@click.option(
    "--connect-timeout",
    type=_deadline,
    default=_DEFAULTS.connect_timeout_s,
    help="Seconds for a worker to accept a connection.",
)
@click.option(
    "--prefill-deadline",
    type=_deadline,
    default=_DEFAULTS.prefill_deadline_s,
    help="Seconds for a prefill; long prompts get more.",
)
@click.option(
    "--first-byte-deadline",
    type=_deadline,
    default=_DEFAULTS.first_byte_deadline_s,
    help="Seconds for a decode worker's first byte; long prompts get more.",
)
@click.option(
    "--response-deadline",
    type=_deadline,
    default=_DEFAULTS.response_deadline_s,
    help="Seconds for an answer that is not streamed.",
)
@click.option(
    "--idle-deadline",
    type=_deadline,
    default=_DEFAULTS.idle_stream_deadline_s,
    help="Seconds a stream may stand still.",
)
@click.option(
    "--suspect-after",
    type=_deadline,
    default=_DEFAULTS.suspect_after_s,
    help="Seconds of a worker's silence on all its streams before it is asked for its health.",
)
@click.option(
    "--alive-deadline",
    type=_deadline,
    default=_DEFAULTS.alive_deadline_s,
    help="Seconds it has to answer; then its requests go elsewhere.",
)
@click.option(
    "--retry-within",
    type=_deadline,
    default=_DEFAULTS.retry_within_s,
    help="Seconds after its coming in which a request is tried again.",
)
@click.option(
    "--return-wait",
    type=click.FloatRange(min=0),
    default=_DEFAULTS.return_wait_s,
    help="Seconds a request waits for a decode worker to come back when all have failed.",
)
@click.option(
    "--drain-deadline",
    type=_deadline,
    default=_DEFAULTS.drain_deadline_s,
    help="Seconds for running requests to finish after SIGTERM.",
)
@click.option(
    "--max-attempts",
    type=click.IntRange(min=1),
    default=_DEFAULTS.max_attempts,
    help="Decode attempts of one request that reach a worker.",
)
@click.option(
    "--max-running",
    type=click.IntRange(min=1),
    default=_DEFAULTS.max_running_per_worker,
    help="Requests served at once for each decode worker, by all routers that know each other; "
    "the rest wait for their turns.",
)
@click.option(
    "--max-waiting",
    type=click.IntRange(min=0),
    default=_DEFAULTS.max_waiting,
    help="Requests for one model that may wait; more are refused with 429.",
)
@click.option(
    "--queue-deadline",
    type=_deadline,
    default=_DEFAULTS.queue_deadline_s,
    help="Seconds a request may wait for its turn.",
)
@click.option(
    "--ttft-target-ms",
    type=_deadline,
    help="When first tokens are wanted; requests that would be later are refused with 503. "
    "A request's own target is its header x-spinney-ttft-ms.",
)
@click.option(
    "--tenant-share",
    "tenant_shares",
    multiple=True,
    metavar="NAME=PARTS",
    help="Parts of busy workers that a tenant has; others have 1.",
)
@click.option(
    "--tenant-limit",
    "tenant_limits",
    multiple=True,
    metavar="[NAME=]REQUESTS",
    help="Requests of a tenant served at once, by all routers that know each other; without a name "
    "it is each other tenant's. The rest wait for their turns.",
)
@click.option(
    "--processes",
    type=click.IntRange(1, MOST_PROCESSES),
    default=1,
    help="Processes that share the port and the load; one uses one core.",
)
@click.option(
    "--peer",
    "peers",
    multiple=True,
    metavar="URL",
    help="The --peer-port of another router to act as one with; repeat it. Without --worker, "
    "router pods with a port named peers are found too.",
)
@click.option(
    "--peer-port",
    type=click.IntRange(1, 65535),
    help="Where other routers speak to this one; process n listens at n more.",
)
@click.option(
    "--peer-secret-file",
    type=click.Path(dir_okay=False),
    help="What all routers know and nobody else, 16 bytes or more; or SPINNEY_PEER_SECRET. On "
    "loopback addresses one is made up.",
)
@click.option("--seed", type=int, help="Makes the choice between equals repeatable.")
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    help="A finished request is a line at info.",
)
@click.option("--log-json", is_flag=True, help="Log as JSON.")
def router(**flags: Any) -> None:
    """Route requests to prefill and decode workers, as OpenAI's API.

    Workers are the Ready pods of --namespace that carry the label spinney.dev/role and match
    --selector, or those that --worker names.
    """
    options = Options(**flags)
    configure(level=options.log_level, json=options.log_json)
    options.check()
    secret = options.secret()
    with contextlib.ExitStack() as sockets:
        seats = [replace(seat, secret=secret) for seat in seats_of(options, sockets)]
        host, port = seats[0].listener.getsockname()[:2]
        log.info("router listening", url=f"http://{host}:{port}")
        if options.processes == 1:
            uvloop.run(run(options, seats[0]))
            return
        code = Supervisor(
            options.processes,
            lambda number, pipe: uvloop.run(run(options, replace(seats[number], parent=pipe))),
            SystemClock(),
        ).run()
    if code:
        raise SystemExit(code)


@dataclass(frozen=True, slots=True)
class Options:
    """The flags, as they are called."""

    host: str
    port: int
    workers: tuple[str, ...]
    models: tuple[str, ...]
    namespace: str
    selector: str
    kubeconfig: str | None
    tokenizers: tuple[str, ...]
    profile: str | None
    topology: bool
    local_prefill_below: int
    connect_timeout: float
    prefill_deadline: float
    first_byte_deadline: float
    response_deadline: float
    idle_deadline: float
    suspect_after: float
    alive_deadline: float
    retry_within: float
    return_wait: float
    drain_deadline: float
    max_attempts: int
    max_running: int
    max_waiting: int
    queue_deadline: float
    ttft_target_ms: float | None
    tenant_shares: tuple[str, ...]
    tenant_limits: tuple[str, ...]
    processes: int
    peers: tuple[str, ...]
    peer_port: int | None
    peer_secret_file: str | None
    seed: int | None
    log_level: str
    log_json: bool

    def check(self) -> None:
        """Raise BadInputError for what can be seen to be wrong before anything starts."""
        parse_labels(self.selector)
        named = [parse_worker(text).name for text in self.workers]
        twice = sorted({name for name in named if named.count(name) > 1})
        if twice:
            raise BadInputError(
                f"--worker: {', '.join(twice)} is named twice; write ROLE:NAME=URL with names "
                f"that differ"
            )
        self.policy()
        self.limits()
        for peer in self.peers:
            parts = urlsplit(peer)
            if parts.scheme != "http" or not parts.hostname:
                raise BadInputError(f"--peer {peer}: write http://host:port")
        if self.processes > 1 and self.port and self.peer_port == self.port:
            raise BadInputError("--peer-port and --port are the same; choose another")
        if self.workers and (self.selector or self.kubeconfig):
            raise BadInputError("--worker and --selector or --kubeconfig exclude each other")

    def policy(self) -> Policy:
        """Return how workers are weighed; raise BadInputError for an unusable profile."""
        if self.profile is None:
            return Policy(local_prefill_below_tokens=self.local_prefill_below)
        costs = ModelCosts(load_step_model(self.profile))
        return Policy(local_prefill_below_tokens=self.local_prefill_below, costs=costs)

    def secret(self) -> bytes:
        """Return the routers' secret; raise BadInputError where there has to be one and is none."""
        meet = Meet(self.host, self.peer_port, self.peers, self.peer_secret_file)
        return meet.secret(os.environ)

    def limits(self) -> Limits:
        """Return the bounds that the flags set."""
        tenant_limits = [parse_limit(text) for text in self.tenant_limits]
        return Limits(
            connect_timeout_s=self.connect_timeout,
            prefill_deadline_s=self.prefill_deadline,
            first_byte_deadline_s=self.first_byte_deadline,
            response_deadline_s=self.response_deadline,
            idle_stream_deadline_s=self.idle_deadline,
            suspect_after_s=self.suspect_after,
            alive_deadline_s=self.alive_deadline,
            retry_within_s=self.retry_within,
            return_wait_s=self.return_wait,
            drain_deadline_s=self.drain_deadline,
            max_attempts=self.max_attempts,
            max_running_per_worker=self.max_running,
            max_waiting=self.max_waiting,
            queue_deadline_s=self.queue_deadline,
            ttft_target_ms=self.ttft_target_ms,
            tenant_shares=tuple(parse_share(text) for text in self.tenant_shares),
            tenant_limits=tuple((name, most) for name, most in tenant_limits if name),
            tenant_limit=next((most for name, most in tenant_limits if not name), None),
        )


def seats_of(options: Options, sockets: contextlib.ExitStack) -> list[Seat]:
    """Return the places of the router's processes; *sockets* closes theirs."""
    count, unread_s = options.processes, options.idle_deadline
    shared = count > 1
    listeners = [sockets.enter_context(listen(options.host, options.port, unread_s, shared=shared))]
    port = listeners[0].getsockname()[1]
    for _ in range(1, count):
        listener = listen(options.host, port, unread_s, shared=True)
        listeners.append(sockets.enter_context(listener))
    if not shared and options.peer_port is None and not options.peers:
        return [Seat(0, listeners[0])]
    peers = []
    for number in range(count):
        host = options.host if options.peer_port else "127.0.0.1"
        wanted = options.peer_port + number if options.peer_port else 0
        peers.append(sockets.enter_context(listen(host, wanted, unread_s)))
    ports = tuple(each.getsockname()[1] for each in peers)
    return [Seat(n, *pair, ports) for n, pair in enumerate(zip(listeners, peers, strict=True))]


def listen(host: str, port: int, unread_s: float, *, shared: bool = False) -> socket.socket:
    """Return a socket bound to the address; raise SpinneyError saying why it cannot be.

    Its connections end when the client takes in nothing for *unread_s*. With *shared* other sockets
    of this program may be bound to the same address, and the kernel spreads connections over them.
    """
    listener = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        # An unread answer keeps its connection open after it was given up, but not for ever.
        unread_ms = int(unread_s * 1000)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, unread_ms)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        if listener is not None:
            listener.close()
        used = error.errno == errno.EADDRINUSE
        advice = "; stop what listens there, or choose another --port" if used else ""
        raise SpinneyError(
            f"cannot listen on {host}:{port}: {error.strerror or error}{advice}"
        ) from error
    return listener


def parse_share(text: str) -> tuple[str, float]:
    """Return the tenant and the parts that ``NAME=PARTS`` gives it; raise BadInputError."""
    name, _, parts = text.rpartition("=")
    try:
        share = float(parts)
    except ValueError:
        share = 0.0
    if not name or not 0 < share < float("inf"):
        raise BadInputError(
            f"--tenant-share {text}: write NAME=PARTS, PARTS being a number above 0, as acme=3"
        )
    return name, share


def parse_limit(text: str) -> tuple[str, int]:
    """Return the tenant that ``[NAME=]REQUESTS`` limits and how far; raise BadInputError.

    An empty name is each tenant that is not named.
    """
    name, named, most = text.rpartition("=")
    if bool(named) != bool(name) or not most.isascii() or not most.isdigit() or int(most) < 1:
        raise BadInputError(
            f"--tenant-limit {text}: write NAME=REQUESTS, or REQUESTS for each tenant that is not "
            f"named; REQUESTS being a whole number above 0, as acme=8"
        )
    return name, int(most)


async def run(options: Options, seat: Seat) -> None:
    """Serve as the process of *seat* until SIGTERM or SIGINT, and drain."""
    seed = options.seed if options.seed is None else options.seed + seat.number
    rng = random.Random(seed)
    clock, registry = SystemClock(), CollectorRegistry()
    ProcessCollector(registry=registry)
    disable_created_metrics()  # type: ignore[no-untyped-call]
    with tracing("spinney-router", clock) as tracer:
        limits, seal = options.limits(), Seal(seat.secret, clock)
        async with (
            _source(options, rng) as (source, others),
            HttpUpstream(limits) as upstream,
            contextlib.aclosing(HttpPeers(seal)) as links,
        ):
            me = RandomIds().uid()
            built = assemble(
                source,
                upstream,
                limits=limits,
                policy=options.policy(),
                rng=rng,
                clock=clock,
                ids=RandomIds(random.Random(rng.getrandbits(128))),
                registry=registry,
                subscribe=_subscriber(),
                tokenizers=_tokenizers(options.tokenizers),
                tracer=tracer,
                siblings=siblings_of(seat, links),
                me=me,
            )
            peering = peering_of(me, seat, built, links, seal, limits, options.peers, others)
            await serve(built, seat, peering)


def _subscriber() -> Subscribe:
    import zmq.asyncio

    context: zmq.asyncio.Context = zmq.asyncio.Context()

    def follow(endpoint: str, replay: str | None) -> AsyncGenerator[KVEventBatch | Gap, None]:
        return subscribe(endpoint, replay, context=context)

    return follow


def _tokenizers(wanted: tuple[str, ...]) -> dict[str, PromptTokenizer]:
    """Return the tokenizers that ``[MODEL=]DIR`` name; raise BadInputError."""
    if not wanted:
        return {}
    # NumPy comes with them: a router without has no need of it.
    from spinney.engine.assembly import model_directory
    from spinney.engine.tokenizer import load_tokenizer

    named = [text.rpartition("=") for text in wanted]
    return {model: load_tokenizer(model_directory(where)) for model, _, where in named}


@contextlib.asynccontextmanager
async def _source(
    options: Options, rng: random.Random
) -> AsyncIterator[tuple[WorkerSource, PodPeers | None]]:
    """Give the workers, and the other routers where they are looked for."""
    if options.workers:
        yield StaticWorkers(parse_worker(text, options.models) for text in options.workers), None
        return
    from spinney.kube.client import KubeClient
    from spinney.kube.http import HttpTransport
    from spinney.kube.informer import Informer

    if options.kubeconfig:
        transport = HttpTransport.from_kubeconfig(options.kubeconfig)
    else:
        transport = HttpTransport.from_environment()
    labels = ",".join(filter(None, (options.selector, WORKER_SELECTOR)))
    client = KubeClient(transport, field_manager="spinney-router")
    try:
        pods = Informer(client, Pod, options.namespace, rng=rng, labels=labels)
        workers = PodWorkers(pods, Informer(client, Node, rng=rng) if options.topology else None)
        others = None
        if options.peer_port is not None:
            theirs = ",".join(filter(None, (options.selector, ROUTER_SELECTOR)))
            others = PodPeers(Informer(client, Pod, options.namespace, rng=rng, labels=theirs))
        yield workers, others
    finally:
        await transport.close()


def _server(app: RouterApp | PeerApp) -> ListeningServer:
    return ListeningServer(
        uvicorn.Config(
            app,
            loop="none",
            http="httptools",
            ws="none",
            proxy_headers=False,
            lifespan="off",
            interface="asgi3",
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=False,
            backlog=BACKLOG,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=LAST_WORDS_S,
        )
    )


async def serve(built: Router, seat: Seat, peering: Peering | None) -> None:
    """Run *built* at its *seat* until a signal; return when it is drained."""
    server = _server(built.app)
    signals: asyncio.Queue[int] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    if seat.parent >= 0:
        loop.add_reader(seat.parent, _orphaned, seat.parent)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, signals.put_nowait, number)
    async with asyncio.TaskGroup() as tasks:
        beside = [tasks.create_task(built.run())]
        beside.append(tasks.create_task(_stop(built, server, signals)))
        if peering is not None:
            assert seat.peers is not None, "who shares listens"
            beside.append(tasks.create_task(peering.sharing.run()))
            beside.append(tasks.create_task(_server(peering.app).serve_until_stopped(seat.peers)))
            if peering.others is not None:
                beside.append(tasks.create_task(peering.others.run()))
        await server.serve(sockets=[seat.listener])
        for task in beside:
            task.cancel()


def _orphaned(pipe: int) -> None:
    """Drain: the process that started this one is gone."""
    asyncio.get_running_loop().remove_reader(pipe)
    os.kill(os.getpid(), signal.SIGTERM)


async def _stop(built: Router, server: uvicorn.Server, signals: asyncio.Queue[int]) -> None:
    """Drain at the first signal; end at the second, or when drained."""
    await signals.get()
    drained = asyncio.ensure_future(built.app.drain())
    again = asyncio.ensure_future(signals.get())
    try:
        await asyncio.wait((drained, again), return_when=asyncio.FIRST_COMPLETED)
        if drained.done():
            drained.result()
    finally:
        drained.cancel()
        again.cancel()
    server.should_exit = True
