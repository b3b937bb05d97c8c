"""``spinney router``: the OpenAI server in front of prefill and decode workers.

It takes no new requests after SIGTERM or SIGINT, finishes what runs, and exits with 0; a second
signal ends it at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import random
import signal
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click
import uvicorn
import uvloop
from prometheus_client import CollectorRegistry, ProcessCollector, disable_created_metrics

from spinney.api.core import Node, Pod
from spinney.api.selectors import parse_labels
from spinney.clock import SystemClock
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
from spinney.router.picker import Policy
from spinney.router.pods import WORKER_SELECTOR, PodWorkers
from spinney.router.upstream import HttpUpstream
from spinney.router.workers import StaticWorkers, parse_worker

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

    from spinney.kv.event_stream import Gap
    from spinney.kv.events import KVEventBatch
    from spinney.router.event_feeds import Subscribe
    from spinney.router.prompt_tokens import PromptTokenizer
    from spinney.router.workers import WorkerSource

log = get_logger("router")

_DEFAULTS = Limits()
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
    "--drain-deadline",
    type=_deadline,
    default=_DEFAULTS.drain_deadline_s,
    help="Seconds for running requests to finish after SIGTERM.",
)
@click.option(
    "--max-attempts",
    type=click.IntRange(min=1),
    default=_DEFAULTS.max_attempts,
    help="Decode workers tried for one request.",
)
@click.option(
    "--max-running",
    type=click.IntRange(min=1),
    default=_DEFAULTS.max_running_per_worker,
    help="Requests served at once for each decode worker; the rest wait for their turns.",
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
    listener = listen(options.host, options.port, options.idle_deadline)
    with listener:
        uvloop.run(run(options, listener))


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
    drain_deadline: float
    max_attempts: int
    max_running: int
    max_waiting: int
    queue_deadline: float
    ttft_target_ms: float | None
    tenant_shares: tuple[str, ...]
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
        if self.workers and (self.selector or self.kubeconfig):
            raise BadInputError("--worker and --selector or --kubeconfig exclude each other")

    def policy(self) -> Policy:
        """Return how workers are weighed; raise BadInputError for an unusable profile."""
        if self.profile is None:
            return Policy(local_prefill_below_tokens=self.local_prefill_below)
        costs = ModelCosts(load_step_model(self.profile))
        return Policy(local_prefill_below_tokens=self.local_prefill_below, costs=costs)

    def limits(self) -> Limits:
        """Return the bounds that the flags set."""
        return Limits(
            connect_timeout_s=self.connect_timeout,
            prefill_deadline_s=self.prefill_deadline,
            first_byte_deadline_s=self.first_byte_deadline,
            response_deadline_s=self.response_deadline,
            idle_stream_deadline_s=self.idle_deadline,
            drain_deadline_s=self.drain_deadline,
            max_attempts=self.max_attempts,
            max_running_per_worker=self.max_running,
            max_waiting=self.max_waiting,
            queue_deadline_s=self.queue_deadline,
            ttft_target_ms=self.ttft_target_ms,
            tenant_shares=tuple(parse_share(text) for text in self.tenant_shares),
        )


def listen(host: str, port: int, unread_s: float) -> socket.socket:
    """Return a socket bound to the address; raise SpinneyError saying why it cannot be.

    Its connections end when the client takes in nothing for *unread_s*.
    """
    listener = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
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


async def run(options: Options, listener: socket.socket) -> None:
    """Serve on *listener* until SIGTERM or SIGINT, and drain."""
    rng = random.Random(options.seed)
    clock, registry = SystemClock(), CollectorRegistry()
    ProcessCollector(registry=registry)
    disable_created_metrics()  # type: ignore[no-untyped-call]
    with tracing("spinney-router", clock) as tracer:
        limits = options.limits()
        async with _source(options, rng) as source, HttpUpstream(limits) as upstream:
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
            )
            host, port = listener.getsockname()[:2]
            log.info("router listening", url=f"http://{host}:{port}")
            await serve(built, listener)


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
async def _source(options: Options, rng: random.Random) -> AsyncIterator[WorkerSource]:
    if options.workers:
        yield StaticWorkers(parse_worker(text, options.models) for text in options.workers)
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
        yield PodWorkers(pods, Informer(client, Node, rng=rng) if options.topology else None)
    finally:
        await transport.close()


async def serve(built: Router, listener: socket.socket) -> None:
    """Run *built* on *listener* until a signal; return when it is drained."""
    server = ListeningServer(
        uvicorn.Config(
            built.app,
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
    signals: asyncio.Queue[int] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, signals.put_nowait, number)
    async with asyncio.TaskGroup() as tasks:
        watching = tasks.create_task(built.run())
        stopping = tasks.create_task(_stop(built, server, signals))
        await server.serve(sockets=[listener])
        watching.cancel()
        stopping.cancel()


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
