"""Puts a mock engine together: the engine's own server, core and events around a mock backend.

Invariant: nothing a client, router or peer sees differs in kind from the real engine; only tokens
are made up and time is modelled. With `MockSettings.in_memory` no socket and no thread is used, and
the engine runs on a loop with virtual time.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from spinney.engine.assembly import Backend, assemble, model_directory, pool_size
from spinney.engine.mock.connectors import MemoryConnector, ModelledConnector
from spinney.engine.mock.executor import MockExecutor
from spinney.engine.mock.pacing import ModelledTurns
from spinney.engine.protocol import Limits
from spinney.engine.tokenizer import load_tokenizer
from spinney.errors import BadInputError
from spinney.kv.transfer.tcp import TcpConnector
from spinney.perfmodel.step_model import Distance
from spinney.tracing import NO_TRACER, Tracer

if TYPE_CHECKING:
    from collections.abc import Callable

    from prometheus_client import CollectorRegistry

    from spinney.clock import Clock
    from spinney.engine.assembly import Engine, EngineSettings
    from spinney.engine.group.leader import GroupLeader
    from spinney.engine.tokenizer import Tokenizer
    from spinney.ids import IdSource
    from spinney.kv.event_stream import EventSink
    from spinney.kv.transfer.connector import BlockSource, Connector
    from spinney.perfmodel.step_model import StepModel

POSITIONS = 131_072
"""The longest context of a mock."""
DEFAULT_MODEL_LEN = 8_192
"""The context length where none is given."""


@dataclass(frozen=True, slots=True)
class MockSettings:
    """What a mock has beside an engine's settings.

    *distance* is how far its peers are. *in_memory*: the workers of this process by KV host and
    port; the engine adds itself, and pulls from no other.
    """

    model: StepModel
    speed_up: float = 1.0
    distance: Distance = Distance.HOST
    in_memory: dict[tuple[str, int], BlockSource] | None = None


def build_mock(
    settings: EngineSettings,
    mock: MockSettings,
    *,
    clock: Clock,
    ids: IdSource,
    timer: Callable[[], float],
    registry: CollectorRegistry | None = None,
    events: EventSink | None = None,
    group: GroupLeader | None = None,
    tracer: Tracer = NO_TRACER,
) -> Engine:
    """Build a mock engine; needs a running loop. Raises BadInputError."""
    settings = replace(settings, max_model_len=settings.max_model_len or DEFAULT_MODEL_LEN)
    directory = model_directory(settings.model)
    tokenizer = load_tokenizer(directory)
    _, num_blocks = pool_size(settings, POSITIONS)
    executor = MockExecutor(
        mock.model,
        num_blocks=num_blocks,
        block_size=settings.block_size,
        max_model_len=settings.max_model_len,
        vocab_size=tokenizer.vocab_size,
        tokens=speakable(tokenizer),
        ranks=settings.ranks,
    )
    backend = Backend(
        executor=executor,
        tokenizer=tokenizer,
        directory=directory,
        limits=Limits(tokenizer.vocab_size, settings.max_model_len, {}),
        turns=ModelledTurns(executor, mock.speed_up),
        connector=_connector(settings, mock),
        serves_pulls=mock.in_memory is None,
    )
    engine = assemble(
        settings,
        backend,
        clock=clock,
        ids=ids,
        timer=timer,
        registry=registry,
        events=events,
        tracer=tracer,
    )
    if mock.in_memory is not None and settings.role != "decode":
        mock.in_memory[settings.kv_host, settings.kv_port] = engine.service
    return replace(engine, group=group)


def speakable(tokenizer: Tokenizer) -> list[int]:
    """Return the tokens that are text of their own: no special ones, no halves of characters."""
    found = [
        token
        for token in range(tokenizer.vocab_size)
        if (text := tokenizer.decode([token])) and "�" not in text
    ]
    if not found:
        raise BadInputError("the tokenizer has no token that is text; give another --model")
    return found


def _connector(settings: EngineSettings, mock: MockSettings) -> Connector:
    carrier: Connector
    if mock.in_memory is None:
        carrier = TcpConnector(shared_memory=settings.kv_shared_memory)
    else:
        carrier = MemoryConnector(mock.in_memory)
    return ModelledConnector(
        carrier,
        mock.model,
        block_size=settings.block_size,
        distance=mock.distance,
        speed_up=mock.speed_up,
    )
