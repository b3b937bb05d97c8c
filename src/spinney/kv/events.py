"""KV events as vLLM publishes them, so that any router that reads vLLM's reads ours.

A message has three frames: topic, sequence number (8 bytes, big-endian) and a MessagePack array
``[timestamp, [event, …], data parallel rank]``, each event a map with a ``type``. Numbers rise by
one per message from 0; who sees a gap asks the replay endpoint, and who is told that the messages
are gone must forget what it knew. Readers also accept events as tagged arrays, the older form.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

import msgspec

from spinney.kv.block_pool import Cleared, Removed, Stored

if TYPE_CHECKING:
    from collections.abc import Sequence

    from spinney.kv.block_pool import CacheChange

MEDIUM = "GPU"
"""Where blocks are, in the words of the wire: the memory the model runs on."""
REPLAY_MESSAGES = 10_000
"""Messages kept for replay; a reader that lags further starts anew."""
END_OF_REPLAY = (-1).to_bytes(8, "big", signed=True)
"""Sequence number of the frame that ends a replay."""


class BlockStored(msgspec.Struct, tag="BlockStored", omit_defaults=False):
    """Full blocks became findable, one after the other, following *parent_block_hash*."""

    block_hashes: list[int | bytes]
    parent_block_hash: int | bytes | None
    token_ids: list[int]
    block_size: int
    lora_id: int | None = None
    medium: str | None = None
    lora_name: str | None = None
    extra_keys: list[Any] | None = None
    group_idx: int | None = None
    kv_cache_spec_kind: str | None = None
    cache_salt: str | msgspec.UnsetType | None = msgspec.UNSET
    """SGLang's: its blocks are found with that salt only. None of ours have one."""


class BlockRemoved(msgspec.Struct, tag="BlockRemoved"):
    """Blocks are gone."""

    block_hashes: list[int | bytes]
    medium: str | None = None
    group_idx: int | None = None


class AllBlocksCleared(msgspec.Struct, tag="AllBlocksCleared"):
    """All blocks are gone."""


KVEvent = BlockStored | BlockRemoved | AllBlocksCleared


class KVEventBatch(msgspec.Struct, array_like=True):
    """One message's content. *ts* is in seconds since the epoch."""

    ts: float
    events: list[KVEvent]
    data_parallel_rank: int | None = None


_ENCODER = msgspec.msgpack.Encoder()
_BATCH = msgspec.msgpack.Decoder(KVEventBatch)
_TYPES: dict[str, type[msgspec.Struct]] = {
    "BlockStored": BlockStored,
    "BlockRemoved": BlockRemoved,
    "AllBlocksCleared": AllBlocksCleared,
}


def encode_batch(batch: KVEventBatch) -> bytes:
    """Return the third frame."""
    return _ENCODER.encode(batch)


def decode_batch(payload: bytes) -> KVEventBatch:
    """Return the content of a third frame, events as maps or as tagged arrays.

    Raises msgspec.DecodeError (msgspec.ValidationError for wrong fields).
    """
    try:
        return _BATCH.decode(payload)
    except msgspec.ValidationError:
        raw = msgspec.msgpack.decode(payload)
        if not isinstance(raw, list) or not 2 <= len(raw) <= 3 or not isinstance(raw[1], list):
            raise
        if not any(isinstance(event, list) for event in raw[1]):
            raise
        events = [_event_from_array(event) for event in raw[1]]
        return KVEventBatch(float(raw[0]), events, raw[2] if len(raw) > 2 else None)


def _event_from_array(event: object) -> KVEvent:
    if not isinstance(event, list) or not event or event[0] not in _TYPES:
        raise msgspec.ValidationError(f"a tagged array of {', '.join(_TYPES)} is needed")
    struct = _TYPES[event[0]]
    fields = dict(zip(struct.__struct_fields__, event[1:], strict=False))
    converted: KVEvent = msgspec.convert({"type": event[0], **fields}, KVEvent)
    return converted


def to_wire(changes: Sequence[CacheChange], block_size: int) -> list[KVEvent]:
    """Return *changes* as events, blocks that follow each other joined into one."""
    events: list[KVEvent] = []
    for change in changes:
        last = events[-1] if events else None
        match change:
            case Stored(block_hash, parent, tokens):
                if isinstance(last, BlockStored) and last.block_hashes[-1] == parent:
                    last.block_hashes.append(block_hash)
                    last.token_ids.extend(tokens)
                else:
                    events.append(
                        BlockStored([block_hash], parent, list(tokens), block_size, medium=MEDIUM)
                    )
            case Removed(block_hash):
                if isinstance(last, BlockRemoved):
                    last.block_hashes.append(block_hash)
                else:
                    events.append(BlockRemoved([block_hash], medium=MEDIUM))
            case Cleared():
                events.append(AllBlocksCleared())
    return events


class EventLog:
    """Numbers messages and keeps the last `REPLAY_MESSAGES` of them."""

    def __init__(self, keep: int = REPLAY_MESSAGES) -> None:
        self._messages: deque[tuple[int, bytes]] = deque(maxlen=keep)
        self.next_sequence = 0

    def append(self, batch: KVEventBatch) -> tuple[int, bytes]:
        """Add *batch* and return its number and its third frame."""
        message = (self.next_sequence, encode_batch(batch))
        self._messages.append(message)
        self.next_sequence += 1
        return message

    def since(self, sequence: int) -> list[tuple[int, bytes]]:
        """Return the kept messages numbered *sequence* or higher."""
        return [message for message in self._messages if message[0] >= sequence]
