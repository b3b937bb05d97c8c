"""Puts an engine together from a model directory and settings.

Everything that is real (clock, ids, sockets, threads) is given or made here, so that a process and
a test build the same engine. Invariant: what cannot work is a BadInputError before anything runs.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import numpy as np
from prometheus_client import CollectorRegistry

from spinney.engine.answers import Endpoint
from spinney.engine.checkpoint import load_checkpoint, read_json
from spinney.engine.core import CoreConfig, EngineCore
from spinney.engine.engine_metrics import EngineMetrics
from spinney.engine.numpy_executor import NumpyExecutor
from spinney.engine.protocol import Limits
from spinney.engine.server import EngineApp, ServedModel
from spinney.engine.service import EngineService, Parts
from spinney.engine.tokenizer import load_tokenizer
from spinney.engine.worker_thread import WorkerThread
from spinney.errors import BadInputError
from spinney.kv.event_stream import EventPublisher
from spinney.kv.lease import Handle
from spinney.kv.transfer.tcp import TcpConnector, TransferServer

if TYPE_CHECKING:
    from collections.abc import Callable

    from spinney.clock import Clock
    from spinney.engine.checkpoint import Checkpoint
    from spinney.engine.executor import Executor
    from spinney.engine.tokenizer import Tokenizer
    from spinney.ids import IdSource
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
    kv_lease_s: float = 15.0
    kv_shared_memory: bool = True
    recompute: bool = True
    kv_events_endpoint: str | None = None
    kv_events_replay_endpoint: str | None = None
    kv_events_topic: str = ""
    seed: int | None = None
    torch_device: str = "cpu"
    torch_dtype: str = "float32"
    threads: int = 1


@dataclass(frozen=True, slots=True, eq=False)
class Engine:
    """A built engine. `EngineService.run` and `TransferServer.serve` have to be running."""

    settings: EngineSettings
    service: EngineService
    core: EngineCore
    app: EngineApp
    transfer: TransferServer | None
    publisher: EventPublisher | None
    thread: WorkerThread
    executor: Executor
    tokenizer: Tokenizer
    model: ServedModel

    def close(self) -> None:
        """End the thread and close sockets; call it when nothing runs any more."""
        self.thread.stop()
        self.executor.close()
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
) -> Engine:
    """Load the model and build the engine; needs a running loop. Raises BadInputError."""
    directory = model_directory(settings.model)
    checkpoint = load_checkpoint(directory)
    tokenizer = load_tokenizer(directory)
    if tokenizer.vocab_size > checkpoint.config.vocab_size:
        raise BadInputError(
            f"{directory}: tokenizer.json has {tokenizer.vocab_size} tokens, the model "
            f"{checkpoint.config.vocab_size}; they do not belong together"
        )
    max_len, num_blocks = _sizes(settings, checkpoint)
    executor = make_executor(settings, checkpoint, num_blocks)
    core = _core(settings, executor, tokenizer, max_len, clock=clock, ids=ids)
    names = settings.served_names or (
        settings.model if settings.model == DEMO_MODEL else directory.resolve().name,
    )
    registry = CollectorRegistry() if registry is None else registry
    metrics = EngineMetrics(registry, model_name=names[0], engine_id=settings.engine_id)
    publisher = _publisher(settings)
    thread = WorkerThread(f"engine-{settings.engine_id}")
    connector = connector or TcpConnector(shared_memory=settings.kv_shared_memory)
    service = EngineService(
        Parts(
            core=core,
            executor=executor,
            thread=thread,
            connector=connector,
            publisher=publisher,
            metrics=metrics,
            clock=clock,
            timer=timer,
            recompute=settings.recompute,
        )
    )
    transfer = None
    if settings.role != "decode":
        transfer = TransferServer(service, settings.kv_bind_host, settings.kv_port)
    model = _served(settings, directory, checkpoint, max_len, names, transfer)
    app = EngineApp(service, tokenizer, model, registry=registry, clock=clock, ids=ids)
    return Engine(
        settings, service, core, app, transfer, publisher, thread, executor, tokenizer, model
    )


def make_executor(settings: EngineSettings, checkpoint: Checkpoint, num_blocks: int) -> Executor:
    """Return the executor that the settings name."""
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
        )
    return NumpyExecutor(checkpoint, num_blocks=num_blocks, block_size=settings.block_size)


def _sizes(settings: EngineSettings, checkpoint: Checkpoint) -> tuple[int, int]:
    """Return the context length and the number of blocks, checked against each other."""
    positions = checkpoint.config.max_position_embeddings
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


def _core(
    settings: EngineSettings,
    executor: Executor,
    tokenizer: Tokenizer,
    max_len: int,
    *,
    clock: Clock,
    ids: IdSource,
) -> EngineCore:
    def decode(tokens: list[int], skip: bool) -> str:
        return tokenizer.decode(tokens, skip_special_tokens=skip)

    def lease_terms() -> tuple[Handle, float]:
        return Handle(ids.uid()), clock.now() + settings.kv_lease_s

    seed = settings.seed if settings.seed is not None else Random().getrandbits(62)
    return EngineCore(
        executor,
        CoreConfig(
            max_sequences=settings.max_num_seqs,
            max_step_tokens=settings.max_num_batched_tokens,
            max_model_len=max_len,
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


def _served(
    settings: EngineSettings,
    directory: Path,
    checkpoint: Checkpoint,
    max_len: int,
    names: tuple[str, ...],
    transfer: TransferServer | None,
) -> ServedModel:
    endpoint = None
    if transfer is not None:
        endpoint = Endpoint(settings.engine_id, settings.kv_host, transfer.port)
    return ServedModel(
        names=names,
        root=str(directory),
        role=settings.role,
        limits=Limits(checkpoint.config.vocab_size, max_len, _defaults(directory)),
        endpoint=endpoint,
        engine_id=settings.engine_id,
    )


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
