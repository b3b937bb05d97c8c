"""What ``spinney engine`` and ``spinney mock`` share: flags, and the process around a built engine.

Invariant: SIGTERM ends it with exit code 0 within the drain timeout and a few seconds, whatever
clients do; a failure of any part ends it with exit code 1, so that whoever started it knows.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from dataclasses import dataclass
from random import SystemRandom
from typing import TYPE_CHECKING, Any

import click

from spinney import log as logs
from spinney.clock import SystemClock
from spinney.cmd.group import GROUP
from spinney.cmd.traces import tracing
from spinney.ids import RandomIds

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable, Coroutine

    from spinney.clock import Clock
    from spinney.engine.assembly import Engine, EngineSettings
    from spinney.ids import IdSource
    from spinney.tracing import Tracer

    Build = Callable[[Clock, IdSource, Callable[[], float], Tracer], Engine]

HTTP_SHUTDOWN_S = 5
"""How long connections may take to end after the engine is drained."""
GIL_SWITCH_S = 0.0005
"""The loop gets its turn beside a computing thread after half a millisecond, not five."""

_NAMING = (
    click.option("--served-model-name", multiple=True, help="What requests call it; repeatable."),
    click.option("--host", default="127.0.0.1", help="Address to listen on."),
    click.option("--port", default=8000, help="HTTP port; 0 picks a free one."),
    click.option(
        "--role",
        type=click.Choice(["prefill", "decode", "both"]),
        default="both",
        help="'decode' leases no KV; the others serve everything.",
    ),
)
_SIZES = (
    click.option("--block-size", default=16, help="Tokens per KV block."),
    click.option("--num-blocks", default=0, help="KV blocks; 0 makes room for 32,768 tokens."),
    click.option("--max-model-len", default=0, help="Context length; 0 takes the model's."),
    click.option("--max-num-seqs", default=64, help="Requests that run at one time."),
    click.option(
        "--max-num-batched-tokens", default=512, help="Tokens per step: bounds its length."
    ),
    click.option("--max-waiting", default=256, help="Requests that may wait; more get 503."),
)
_HANDOVER = (
    click.option("--engine-id", help="Name of this engine; random if not given."),
    click.option("--kv-port", default=0, help="Port where KV is pulled; 0 picks a free one."),
    click.option(
        "--kv-host",
        envvar="POD_IP",
        help="Address other workers pull from. [default: $POD_IP or host]",
    ),
    click.option(
        "--kv-advertise-port",
        default=0,
        help="Port named to other workers, where a proxy is between; 0: the real one.",
    ),
    click.option("--kv-lease", default=15.0, help="Seconds a prompt's KV waits to be pulled."),
    click.option(
        "--kv-shared-memory/--no-kv-shared-memory", default=True, help="Use it on one host."
    ),
    click.option(
        "--kv-load-failure-policy",
        type=click.Choice(["recompute", "fail"]),
        default="recompute",
        help="When KV cannot be pulled: compute the prompt here, or answer 500.",
    ),
    click.option("--kv-events-endpoint", help="Publish KV events here, as tcp://*:5557."),
    click.option("--kv-events-replay-endpoint", help="Answer replay requests, as tcp://*:5558."),
    click.option("--kv-events-topic", default="", help="First frame of KV events."),
)
_PROCESS = (
    click.option(
        "--drain-timeout", default=25.0, help="Seconds running work may take after SIGTERM."
    ),
    click.option("--seed", type=int, help="Seed of requests that bring none."),
    click.option("--log-level", default="info"),
    click.option("--log-json", is_flag=True, help="Log lines as JSON."),
)


def worker_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give *command* the flags every worker has."""
    for option in reversed(_NAMING + _SIZES + GROUP + _HANDOVER + _PROCESS):
        command = option(command)
    return command


@dataclass(frozen=True, slots=True)
class Process:
    """What concerns the process, not the engine."""

    host: str
    port: int
    drain_timeout_s: float


def worker_settings(options: dict[str, Any], **further: Any) -> EngineSettings:
    """Return the settings that the shared flags and *further* fields say."""
    # NumPy comes with it, after the number of threads is settled.
    from spinney.engine.assembly import EngineSettings, own_address

    return EngineSettings(
        model=options["model"],
        engine_id=options["engine_id"] or f"engine-{RandomIds(SystemRandom()).suffix(8)}",
        role=options["role"],
        block_size=options["block_size"],
        num_blocks=options["num_blocks"],
        max_model_len=options["max_model_len"],
        max_num_seqs=options["max_num_seqs"],
        max_num_batched_tokens=options["max_num_batched_tokens"],
        max_waiting=options["max_waiting"],
        served_names=tuple(options["served_model_name"]),
        kv_bind_host=options["host"],
        kv_host=options["kv_host"] or own_address(options["host"]),
        kv_port=options["kv_port"],
        kv_advertise_port=options["kv_advertise_port"],
        kv_lease_s=options["kv_lease"],
        kv_shared_memory=options["kv_shared_memory"],
        recompute=options["kv_load_failure_policy"] == "recompute",
        kv_events_endpoint=options["kv_events_endpoint"],
        kv_events_replay_endpoint=options["kv_events_replay_endpoint"],
        kv_events_topic=options["kv_events_topic"],
        seed=options["seed"],
        ranks=options["tensor_parallel_size"],
        **further,
    )


def run_worker(
    options: dict[str, Any], build: Build, before: Callable[[], Awaitable[None]] | None = None
) -> None:
    """Serve what *build* returns until a signal comes; then drain, and return.

    *before* is awaited first, before the HTTP port is opened.
    """
    import uvloop

    logs.configure(level=options["log_level"], json=options["log_json"])
    sys.setswitchinterval(GIL_SWITCH_S)
    process = Process(options["host"], options["port"], options["drain_timeout"])
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(build, process, before))


async def _serve(
    build: Build, process: Process, before: Callable[[], Awaitable[None]] | None
) -> None:
    from prometheus_client import disable_created_metrics

    from spinney.listener import listen

    log = logs.get_logger("engine")
    if before is not None:
        await before()
    listener = listen(process.host, process.port, advice="give a free --port")
    disable_created_metrics()  # type: ignore[no-untyped-call]
    clock = SystemClock()
    with tracing("spinney-worker", clock) as tracer:
        built = build(clock, RandomIds(), time.perf_counter, tracer)
        port = listener.getsockname()[1]
        log.info(
            "engine ready",
            url=f"http://{process.host}:{port}",
            engine_id=built.settings.engine_id,
            model=built.model.names[0],
            role=built.settings.role,
            kv_port=built.transfer.port if built.transfer else None,
            blocks=built.core.pool.capacity,
            max_model_len=built.model.limits.max_model_len,
        )
        try:
            await _run(built, listener, process)
        finally:
            built.close()
    log.info("engine stopped")


async def _run(built: Engine, listener: socket.socket, process: Process) -> None:
    """Run all parts until a signal comes, then drain."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _on_signal, stop)
    server = _http_server(built)
    failures: list[Exception] = []

    async def watched(part: Coroutine[Any, Any, None]) -> None:
        """Run *part*; when it fails, stop the rest in order, so that clients get their answers."""
        try:
            await part
        except Exception as error:  # noqa: BLE001 - raised below, when all are told
            failures.append(error)
            stop.set()

    async with asyncio.TaskGroup() as group:
        parts = [group.create_task(watched(built.service.run()))]
        if built.transfer is not None:
            parts.append(group.create_task(watched(built.transfer.serve())))
        if built.group is not None:
            parts.append(group.create_task(watched(built.group.run(stop.set))))
        http = group.create_task(server.serve(sockets=[listener]))
        await stop.wait()
        await built.service.drain(0 if failures else process.drain_timeout_s)
        server.should_exit = True
        await http
        for part in parts:
            part.cancel()
    if failures:
        raise _cause(failures[0])
    if built.group is not None:
        built.group.dismiss()


def _cause(error: BaseException) -> BaseException:
    """Return what went wrong, where a group of tasks says that something did."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def _on_signal(stop: asyncio.Event) -> None:
    if stop.is_set():
        # Asked twice: whoever asks does not want to wait.
        os._exit(1)
    stop.set()


def _http_server(built: Engine) -> Any:
    import uvicorn

    from spinney.listener import ListeningServer

    config = uvicorn.Config(
        built.app,
        http="httptools",
        lifespan="off",
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=HTTP_SHUTDOWN_S,
    )
    return ListeningServer(config)
