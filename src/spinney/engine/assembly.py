"""Puts an engine together from a model directory and settings.

Everything that is real (clock, ids, sockets, threads) is given or made here, so that a process and
a test build the same engine. Invariant: what cannot work is a BadInputError before anything runs.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import numpy as np
from prometheus_client import CollectorRegistry

from spinney.engine.answers import Endpoint
from spinney.engine.call_trace import CallTracer
from spinney.engine.checkpoint import load_checkpoint, read_json
from spinney.engine.core import CoreConfig, EngineCore
from spinney.engine.decode_options import DecodeOptions
from spinney.engine.engine_metrics import EngineMetrics
from spinney.engine.group.data_link import LeaderSum
from spinney.engine.group.executor import GroupExecutor
from spinney.engine.numpy_executor import NumpyExecutor
from spinney.engine.part import WHOLE, Part
from spinney.engine.protocol import Limits
from spinney.engine.server import EngineApp, ServedModel
from spinney.engine.service import EngineService, Parts
from spinney.engine.tokenizer import load_tokenizer
from spinney.engine.worker_thread import WorkerThread
from spinney.errors import BadInputError
from spinney.kv.event_stream import EventPublisher
from spinney.kv.lease import Handle
from spinney.kv.transfer.nixl import RemoteMemory
from spinney.kv.transfer.tcp import TcpConnector, TransferServer
from spinney.tracing import NO_TRACER, Tracer

if TYPE_CHECKING:
    from collections.abc import Callable

    from spinney.clock import Clock
    from spinney.engine.checkpoint import Checkpoint
    from spinney.engine.executor import Executor
    from spinney.engine.group.leader import GroupLeader
    from spinney.engine.tokenizer import Tokenizer
    from spinney.engine.worker_thread import Turns
    from spinney.ids import IdSource
    from spinney.kv.event_stream import EventSink
    from spinney.kv.transfer.connector import Connector

DEMO_MODEL = "demo"
"""The model that ships with the package."""
DEFAULT_POOL_TOKENS = 32_768
"""Tokens of KV to make room for where the number of blocks is not given."""
SAMPLING_DEFAULTS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
"""What ``generation_config.json`` may set for requests that say nothing."""


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """Everything a user can set about an engine. Zero *num_blocks*: as many as fit the defaults."""

    model: str
    engine_id: str
    role: str = "both"
    executor: str = "numpy"
    block_size: int = 16
    num_blocks: int = 0
    max_model_len: int = 0
    max_num_seqs: int = 64
    max_num_batched_tokens: int = 512
    max_waiting: int = 256
    served_names: tuple[str, ...] = ()
    kv_bind_host: str = "127.0.0.1"
    kv_host: str = "127.0.0.1"
    kv_port: int = 0
    kv_advertise_port: int = 0
    kv_lease_s: float = 15.0
    kv_shared_memory: bool = True
    kv_nixl: bool = False
    recompute: bool = True
    kv_events_endpoint: str | None = None
    kv_events_replay_endpoint: str | None = None
    kv_events_topic: str = ""
    seed: int | None = None
    torch_device: str = "cpu"
    torch_dtype: str = "float32"
    threads: int = 1
    decode_graph: str = "auto"
    decode_graph_max_batch: int = 0
    """Zero: `max_num_seqs`."""
    paged_attention: str = "auto"
    ranks: int = 1
    """Processes that share the model; this one is the first."""


@dataclass(frozen=True, slots=True, eq=False)
class Backend:
    """What computes and what it is talked to about; the rest of an engine is the same for all.

    Where *serves_pulls* is false, no socket serves KV: whoever builds the engine gives others a
    connector that finds it by the host and port of its settings.
    """

    executor: Executor
    tokenizer: Tokenizer
    directory: Path
    limits: Limits
    turns: Turns
    connector: Connector
    serves_pulls: bool = True
    memory: RemoteMemory | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Model:
    """What is read from a model directory, and the sizes that settings make of it."""

    directory: Path
    checkpoint: Checkpoint
    tokenizer: Tokenizer
    max_model_len: int
    num_blocks: int


@dataclass(frozen=True, slots=True, eq=False)
class Engine:
    """A built engine. `EngineService.run` and `TransferServer.serve` have to be running.

    So has `GroupLeader.run`, where there is a *group*.
    """

    settings: EngineSettings
    service: EngineService
    core: EngineCore
    app: EngineApp
    transfer: TransferServer | None
    publisher: EventSink | None
    backend: Backend
    model: ServedModel
    group: GroupLeader | None = None

    @property
    def executor(self) -> Executor:
        """What computes."""
        return self.backend.executor

    @property
    def tokenizer(self) -> Tokenizer:
        """Text to tokens and back."""
        return self.backend.tokenizer

    def close(self) -> None:
        """End the thread and close sockets; call it when nothing runs any more."""
        self.backend.turns.stop()
        self.executor.close()
        if self.group is not None:
            self.group.close()
        if self.backend.memory is not None:
            self.backend.memory.close()
        if self.publisher is not None:
            self.publisher.close()


def model_directory(model: str) -> Path:
    """Return the directory of *model*: a path, or `DEMO_MODEL`."""
    path = Path(model)
    if model != DEMO_MODEL or path.is_dir():
        return path
    shipped = Path(str(resources.files("spinney.engine"))) / "models" / DEMO_MODEL
    if not (shipped / "config.json").is_file():
        raise BadInputError(
            f"the model 'demo' is not in this installation ({shipped}); give --model a "
            f"Hugging Face directory"
        )
    return shipped


def build_engine(
    settings: EngineSettings,
    *,
    clock: Clock,
    ids: IdSource,
    timer: Callable[[], float],
    registry: CollectorRegistry | None = None,
    connector: Connector | None = None,
    tracer: Tracer = NO_TRACER,
    model: Model | None = None,
    group: GroupLeader | None = None,
) -> Engine:
    """Load the model, unless it is given, and build the engine; needs a running loop.

    *group* is complete. Raises BadInputError.
    """
    model = model or load_model(settings)
    part, links = WHOLE, () if group is None else group.links
    if links:
        part = Part(0, settings.ranks, LeaderSum(links))
    executor = make_executor(settings, model.checkpoint, model.num_blocks, part)
    # Its name has to be another one after a restart.
    memory = RemoteMemory(f"{settings.engine_id}-{ids.uid()}") if settings.kv_nixl else None
    backend = Backend(
        executor=GroupExecutor(executor, links) if links else executor,
        tokenizer=model.tokenizer,
        directory=model.directory,
        limits=Limits(
            model.checkpoint.config.vocab_size, model.max_model_len, _defaults(model.directory)
        ),
        turns=WorkerThread(f"engine-{settings.engine_id}"),
        connector=connector or TcpConnector(shared_memory=settings.kv_shared_memory, memory=memory),
        memory=memory,
    )
    built = assemble(
        settings, backend, clock=clock, ids=ids, timer=timer, registry=registry, tracer=tracer
    )
    return replace(built, group=group)


def load_model(settings: EngineSettings, rank: int = 0) -> Model:
    """Read the model's directory: the weights that *rank* needs.

    Raises BadInputError when it, or the settings, cannot be used.
    """
    directory = model_directory(settings.model)
    checkpoint = load_checkpoint(directory, Part(rank, settings.ranks))
    tokenizer = load_tokenizer(directory)
    if tokenizer.vocab_size > checkpoint.config.vocab_size:
        raise BadInputError(
            f"{directory}: tokenizer.json has {tokenizer.vocab_size} tokens, the model "
            f"{checkpoint.config.vocab_size}; they do not belong together"
        )
    max_len, num_blocks = pool_size(settings, checkpoint.config.max_position_embeddings)
    return Model(directory, checkpoint, tokenizer, max_len, num_blocks)


def assemble(
    settings: EngineSettings,
    backend: Backend,
    *,
    clock: Clock,
    ids: IdSource,
    timer: Callable[[], float],
    registry: CollectorRegistry | None = None,
    events: EventSink | None = None,
    tracer: Tracer = NO_TRACER,
) -> Engine:
    """Build an engine around *backend*; needs a running loop.

    *events* takes the KV events where the settings name no endpoint for them.
    """
    core = _core(settings, backend, clock=clock, ids=ids)
    registry = CollectorRegistry() if registry is None else registry
    names = served_names(settings, backend.directory)
    publisher = _publisher(settings) or events
    service = EngineService(
        Parts(
            core=core,
            executor=backend.executor,
            thread=backend.turns,
            connector=backend.connector,
            publisher=publisher,
            metrics=EngineMetrics(registry, model_name=names[0], engine_id=settings.engine_id),
            clock=clock,
            timer=timer,
            recompute=settings.recompute,
        )
    )
    traces = CallTracer(tracer, timer, engine_id=settings.engine_id, role=settings.role)
    transfer = _transfer(settings, backend, service, traces)
    model = _served_model(settings, backend, names, transfer)
    app = EngineApp(
        service,
        backend.tokenizer,
        model,
        registry=registry,
        clock=clock,
        ids=ids,
        traces=traces,
    )
    return Engine(settings, service, core, app, transfer, publisher, backend, model)


def _transfer(
    settings: EngineSettings, backend: Backend, service: EngineService, traces: CallTracer
) -> TransferServer | None:
    if settings.role == "decode" or not backend.serves_pulls:
        return None
    return TransferServer(
        service,
        settings.kv_bind_host,
        settings.kv_port,
        memory=backend.memory,
        spans=traces.serving,
    )


def _served_model(
    settings: EngineSettings,
    backend: Backend,
    names: tuple[str, ...],
    transfer: TransferServer | None,
) -> ServedModel:
    return ServedModel(
        names=names,
        root=str(backend.directory),
        role=settings.role,
        limits=backend.limits,
        endpoint=_endpoint(settings, transfer),
        engine_id=settings.engine_id,
    )


def make_executor(
    settings: EngineSettings, checkpoint: Checkpoint, num_blocks: int, part: Part = WHOLE
) -> Executor:
    """Return the executor that the settings name, for *part* of the model.

    Raises BadInputError when it cannot be had as it is wanted.
    """
    options = _decode_options(settings)
    if settings.executor == "torch":
        try:
            # Only here, so that everything else starts, and installs, without torch.
            from spinney.engine.torch_executor import TorchExecutor
        except ImportError as error:
            raise BadInputError(
                f"--executor torch: {error}; install spinney[torch], or use --executor numpy"
            ) from None
        return TorchExecutor(
            checkpoint,
            num_blocks=num_blocks,
            block_size=settings.block_size,
            device=settings.torch_device,
            dtype=settings.torch_dtype,
            threads=settings.threads,
            part=part,
            options=options,
        )
    options.check_numpy()
    return NumpyExecutor(
        checkpoint, num_blocks=num_blocks, block_size=settings.block_size, part=part
    )


def _decode_options(settings: EngineSettings) -> DecodeOptions:
    return DecodeOptions(
        graph=settings.decode_graph,
        attention=settings.paged_attention,
        most_sequences=settings.decode_graph_max_batch or settings.max_num_seqs,
        most_blocks=-(-settings.max_model_len // settings.block_size),
    )


def arithmetic(settings: EngineSettings) -> str:
    """Return what the ranks of a group have to have in common beside the model."""
    return f"{settings.executor} {settings.torch_dtype if settings.executor == 'torch' else ''}"


def pool_size(settings: EngineSettings, positions: int) -> tuple[int, int]:
    """Return the context length and the number of blocks, checked against each other.

    *positions* is the longest context of the model. Raises BadInputError.
    """
    max_len = settings.max_model_len or positions
    if max_len > positions:
        raise BadInputError(
            f"--max-model-len {max_len}: the model has {positions} positions "
            f"(max_position_embeddings); give {positions} or less"
        )
    least = -(-max_len // settings.block_size)
    num_blocks = settings.num_blocks or max(least, DEFAULT_POOL_TOKENS // settings.block_size)
    if num_blocks < least:
        raise BadInputError(
            f"--num-blocks {num_blocks} of {settings.block_size} tokens hold "
            f"{num_blocks * settings.block_size}, one request may have {max_len}; give at least "
            f"{least} blocks or lower --max-model-len"
        )
    if settings.max_num_batched_tokens < settings.max_num_seqs:
        raise BadInputError(
            f"--max-num-batched-tokens {settings.max_num_batched_tokens} is below --max-num-seqs "
            f"{settings.max_num_seqs}; every running sequence needs a token per step"
        )
    return max_len, num_blocks


def _core(settings: EngineSettings, backend: Backend, *, clock: Clock, ids: IdSource) -> EngineCore:
    tokenizer = backend.tokenizer

    def decode(tokens: list[int], skip: bool) -> str:
        return tokenizer.decode(tokens, skip_special_tokens=skip)

    def lease_terms() -> tuple[Handle, float]:
        return Handle(ids.uid()), clock.now() + settings.kv_lease_s

    seed = settings.seed if settings.seed is not None else Random().getrandbits(62)
    return EngineCore(
        backend.executor,
        CoreConfig(
            max_sequences=settings.max_num_seqs,
            max_step_tokens=settings.max_num_batched_tokens,
            max_model_len=backend.limits.max_model_len,
            max_waiting=settings.max_waiting,
        ),
        decode=decode,
        eos_token_ids=tokenizer.eos_token_ids,
        lease_terms=lease_terms,
        rng=np.random.default_rng(seed),
    )


def _publisher(settings: EngineSettings) -> EventPublisher | None:
    if settings.kv_events_endpoint is None:
        return None
    return EventPublisher(
        settings.kv_events_endpoint,
        settings.kv_events_replay_endpoint,
        settings.kv_events_topic,
    )


def _endpoint(settings: EngineSettings, transfer: TransferServer | None) -> Endpoint | None:
    if settings.role == "decode":
        return None
    port = settings.kv_port if transfer is None else transfer.port
    port = settings.kv_advertise_port or port
    return Endpoint(settings.engine_id, settings.kv_host, port, settings.ranks)


def served_names(settings: EngineSettings, directory: Path) -> tuple[str, ...]:
    """Return what requests may call the model, the first name being its own."""
    if settings.served_names:
        return settings.served_names
    return (settings.model if settings.model == DEMO_MODEL else directory.resolve().name,)


def _defaults(directory: Path) -> dict[str, float]:
    path = directory / "generation_config.json"
    raw = read_json(path) if path.is_file() else {}
    if raw.get("do_sample") is False:
        return {}
    return {
        name: float(raw[name])
        for name in SAMPLING_DEFAULTS
        if isinstance(raw.get(name), int | float)
    }


def own_address(host: str) -> str:
    """Return what other workers are to call: *host*, unless it means every address."""
    if host not in ("0.0.0.0", "::", ""):
        return host
    try:
        return socket.gethostbyname(socket.gethostname())
    except OSError:
        return "127.0.0.1"
