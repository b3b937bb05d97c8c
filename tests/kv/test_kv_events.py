"""KV events: vLLM's wire format, and subscribers that lose nothing unknowingly."""

from __future__ import annotations

import asyncio

import msgspec
import pytest
import zmq
import zmq.asyncio

from spinney.errors import BadInputError
from spinney.kv.block_hash import BlockHash
from spinney.kv.block_pool import Cleared, Removed, Stored
from spinney.kv.event_stream import EventPublisher, Gap, subscribe
from spinney.kv.events import (
    AllBlocksCleared,
    BlockRemoved,
    BlockStored,
    EventLog,
    KVEventBatch,
    decode_batch,
    encode_batch,
    to_wire,
)

ANYWHERE = "tcp://127.0.0.1:*"


def test_a_batch_is_an_array_whose_events_are_maps_with_a_type() -> None:
    events = to_wire([Stored(BlockHash(5), None, (1, 2))], 2)
    raw = msgspec.msgpack.decode(encode_batch(KVEventBatch(1.5, events, 0)))
    assert raw == [
        1.5,
        [
            {
                "type": "BlockStored",
                "block_hashes": [5],
                "parent_block_hash": None,
                "token_ids": [1, 2],
                "block_size": 2,
                "lora_id": None,
                "medium": "GPU",
                "lora_name": None,
                "extra_keys": None,
                "group_idx": None,
                "kv_cache_spec_kind": None,
            }
        ],
        0,
    ]


def test_consecutive_blocks_travel_in_one_event_and_others_do_not() -> None:
    changes = [
        Stored(BlockHash(1), None, (1,)),
        Stored(BlockHash(2), BlockHash(1), (2,)),
        Stored(BlockHash(9), None, (9,)),
        Removed(BlockHash(1)),
        Removed(BlockHash(2)),
        Cleared(),
    ]
    stored, other, removed, cleared = to_wire(changes, 1)
    assert isinstance(stored, BlockStored)
    assert (stored.block_hashes, stored.token_ids) == ([1, 2], [1, 2])
    assert isinstance(other, BlockStored)
    assert other.parent_block_hash is None
    assert isinstance(removed, BlockRemoved)
    assert removed.block_hashes == [1, 2]
    assert isinstance(cleared, AllBlocksCleared)


def test_events_as_tagged_arrays_are_read_too() -> None:
    payload = msgspec.msgpack.encode(
        [2.0, [["BlockStored", [7], None, [1, 2], 2, None], ["AllBlocksCleared"]]]
    )
    batch = decode_batch(payload)
    stored, cleared = batch.events
    assert isinstance(stored, BlockStored)
    assert (stored.block_hashes, stored.block_size) == ([7], 2)
    assert isinstance(cleared, AllBlocksCleared)


@pytest.mark.parametrize("payload", [b"", b"\xc1", msgspec.msgpack.encode([1.0, [["No"]]])])
def test_what_is_no_batch_is_refused(payload: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        decode_batch(payload)


def test_the_log_keeps_the_last_messages() -> None:
    log = EventLog(keep=2)
    for _ in range(3):
        log.append(KVEventBatch(0.0, []))
    assert [sequence for sequence, _ in log.since(0)] == [1, 2]


def removed(*names: int) -> list[BlockRemoved]:
    return [BlockRemoved(list(names))]


def test_a_late_subscriber_gets_what_was_published_before_and_after() -> None:
    async def main() -> list[object]:
        publisher = EventPublisher(ANYWHERE, ANYWHERE, "kv")
        replays = asyncio.create_task(publisher.serve_replays())
        for name in range(3):
            await publisher.publish(0.0, removed(name))
        stream = subscribe(publisher.endpoint, publisher.replay_endpoint, "kv")
        seen = [await anext(stream) for _ in range(3)]
        reading = asyncio.ensure_future(anext(stream))
        while not reading.done():
            await publisher.publish(0.0, removed(3))
            await asyncio.sleep(0.01)
        seen.append(await reading)
        await stream.aclose()
        replays.cancel()
        publisher.close()
        return seen

    seen = asyncio.run(asyncio.wait_for(main(), 10))
    names = [item.events[0].block_hashes for item in seen if isinstance(item, KVEventBatch)]
    assert names == [[0], [1], [2], [3]]


def test_lost_messages_are_replayed_and_those_gone_for_good_are_a_gap() -> None:
    async def main() -> list[object]:
        publisher = EventPublisher(ANYWHERE, ANYWHERE)
        replays = asyncio.create_task(publisher.serve_replays())
        await publisher.publish(0.0, removed(0))
        stream = subscribe(publisher.endpoint, publisher.replay_endpoint)
        seen: list[object] = [await anext(stream)]
        # Published while nobody can be connected any better: as if it had been dropped.
        for name in (1, 2, 3):
            publisher._log.append(KVEventBatch(0.0, removed(name)))
        publisher._log._messages.popleft()
        publisher._log._messages.popleft()
        reading = asyncio.ensure_future(anext(stream))
        while not reading.done():
            await publisher.publish(0.0, removed(4))
            await asyncio.sleep(0.01)
        seen.append(await reading)
        seen += [await anext(stream) for _ in range(2)]
        await stream.aclose()
        replays.cancel()
        publisher.close()
        return seen

    seen = asyncio.run(asyncio.wait_for(main(), 10))
    assert isinstance(seen[1], Gap)
    assert [item.events[0].block_hashes for item in seen[2:]] == [[2], [3]]  # type: ignore[attr-defined]


def test_the_replay_endpoint_speaks_to_a_plain_dealer() -> None:
    async def main() -> list[list[bytes]]:
        publisher = EventPublisher(ANYWHERE, ANYWHERE, "t")
        replays = asyncio.create_task(publisher.serve_replays())
        for name in range(3):
            await publisher.publish(0.0, removed(name))
        context = zmq.asyncio.Context()
        dealer = context.socket(zmq.DEALER)
        assert publisher.replay_endpoint is not None
        dealer.connect(publisher.replay_endpoint)
        await dealer.send_multipart([b"", (1).to_bytes(8, "big")])
        frames = [await dealer.recv_multipart() for _ in range(3)]
        context.destroy(linger=0)
        replays.cancel()
        publisher.close()
        return frames

    first, second, last = asyncio.run(asyncio.wait_for(main(), 10))
    assert first[:3] == [b"", b"t", (1).to_bytes(8, "big")]
    assert second[2] == (2).to_bytes(8, "big")
    assert int.from_bytes(last[2], "big", signed=True) == -1


def test_an_endpoint_in_use_is_named() -> None:
    async def main() -> None:
        publisher = EventPublisher(ANYWHERE, None)
        try:
            with pytest.raises(BadInputError, match="KV event endpoint tcp://127"):
                EventPublisher(publisher.endpoint, None)
        finally:
            publisher.close()

    asyncio.run(main())
