"""Prefill here, decode there: the same tokens, or a reason at once, and no block left behind."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from spinney.engine.random_model import RandomModel, write_random_model
from spinney.kv.events import BlockStored, decode_batch
from spinney.kv.transfer import connector

if TYPE_CHECKING:
    from pathlib import Path

Start = Callable[..., AbstractAsyncContextManager[Any]]
AT_ONCE_S = 0.2

PROMPTS = [
    np.random.default_rng(n).integers(4, 500, length).tolist()
    for n, length in enumerate([1, 2, 7, 8, 9, 15, 16, 17, 31, 64, 65, 100, 200, 333])
]


def tokens(answer: Any) -> list[int]:
    ids: list[int] = answer["choices"][0]["token_ids"]
    return ids


@pytest.mark.parametrize("way", ["shared-memory", "tcp", "nixl"])
def test_disaggregated_tokens_equal_aggregated_ones(start_engine: Start, way: str) -> None:
    shared, by_nixl = way == "shared-memory", way == "nixl"

    async def main() -> None:
        async with (
            start_engine(engine_id="aggregated") as whole,
            start_engine(engine_id="prefill", role="prefill", kv_nixl=by_nixl) as prefill,
            start_engine(
                engine_id="decode", role="decode", kv_shared_memory=shared, kv_nixl=by_nixl
            ) as decode,
        ):

            async def both_ways(prompt: list[int]) -> None:
                expected = tokens(await whole.complete(prompt, max_tokens=24))
                params = await prefill.prefill(prompt)
                answer = await decode.complete(prompt, max_tokens=24, kv_transfer_params=params)
                assert tokens(answer) == expected
                report = answer["kv_transfer_params"]
                block_bytes = decode.core._executor.layout.block_bytes
                cached = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
                if len(prompt) > 8:
                    assert report["outcome"] == "pulled"
                    assert report["transport"] == way
                    assert report["blocks_pulled"] == -(-len(prompt) // 8)
                    assert report["bytes_pulled"] == report["blocks_pulled"] * block_bytes
                    assert report["seconds"] > 0
                    assert cached == len(prompt)
                else:
                    assert report["outcome"] == "cached"
                    assert report["bytes_pulled"] == 0

            await asyncio.gather(*(both_ways(prompt) for prompt in PROMPTS))
            pulled = sum(len(prompt) for prompt in PROMPTS if len(prompt) > 8)
            source = 'vllm:prompt_tokens_by_source_total{source="external_kv_transfer"}'
            assert await decode.metric(source) == pulled
            assert len(prefill.core.leases) == 0

    asyncio.run(main())


def test_what_the_decode_side_has_cached_is_not_pulled_again(start_engine: Start) -> None:
    async def main() -> None:
        async with start_engine() as prefill, start_engine() as decode:
            first, second = PROMPTS[11], PROMPTS[11] + PROMPTS[8]
            await decode.complete(first, max_tokens=1)
            expected = tokens(await prefill.complete(second, max_tokens=10))
            params = await prefill.prefill(second)
            answer = await decode.complete(second, max_tokens=10, kv_transfer_params=params)
            assert tokens(answer) == expected
            blocks = answer["kv_transfer_params"]["blocks_pulled"]
            assert blocks == -(-len(second) // 8) - len(first) // 8

    asyncio.run(main())


def test_a_cached_prompt_ends_the_lease_without_a_byte(start_engine: Start) -> None:
    async def main() -> None:
        async with start_engine() as prefill, start_engine() as decode:
            prompt = PROMPTS[9]
            expected = tokens(await decode.complete(prompt, max_tokens=5))
            params = await prefill.prefill(prompt)
            answer = await decode.complete(prompt, max_tokens=5, kv_transfer_params=params)
            assert tokens(answer) == expected
            assert answer["kv_transfer_params"]["outcome"] == "cached"
            await prefill.settle()

    asyncio.run(main())


async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while await reader.read(1000):
        pass
    writer.close()


async def decode_after(
    prefill: Any, decode: Any, prompt: list[int], *, tokens: int = 5, **changes: Any
) -> tuple[Any, float]:
    params = await prefill.prefill(prompt)
    started = time.perf_counter()
    answer = await decode.complete(prompt, max_tokens=tokens, kv_transfer_params=params | changes)
    return answer, time.perf_counter() - started


@pytest.mark.parametrize(
    ("changes", "failure"),
    [
        ({"remote_request_id": "nobody"}, "unknown_handle"),
        ({"remote_port": 1}, "peer_unreachable"),
        ({"remote_blocks_expiry_time": 1.0}, "lease_expired"),
    ],
    ids=["unknown", "dead-peer", "expired"],
)
def test_a_pull_that_fails_is_computed_locally_at_once(
    start_engine: Start, changes: dict[str, Any], failure: str
) -> None:
    async def main() -> None:
        async with (
            start_engine(kv_lease_s=0.3) as prefill,
            start_engine(role="decode") as decode,
        ):
            prompt = PROMPTS[10]
            expected = tokens(await prefill.complete(prompt, max_tokens=5))
            answer, seconds = await decode_after(prefill, decode, prompt, **changes)
            assert tokens(answer) == expected
            report = answer["kv_transfer_params"]
            assert (report["outcome"], report["failure"]) == ("recomputed", failure)
            assert report["seconds"] < AT_ONCE_S
            assert seconds < 2
            assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
            assert await decode.metric(f"spinney:kv_handover_failures_total{{{failure}}}") == 1
            assert await decode.metric("spinney:kv_handovers_total{recomputed}") == 1
            await decode.settle()

    asyncio.run(main())


def test_a_used_handle_gives_nothing_twice(start_engine: Start) -> None:
    async def main() -> None:
        async with start_engine() as prefill, start_engine() as one, start_engine() as two:
            prompt = PROMPTS[10]
            params = await prefill.prefill(prompt)
            first = await one.complete(prompt, max_tokens=5, kv_transfer_params=params)
            again = await two.complete(prompt, max_tokens=5, kv_transfer_params=params)
            assert first["kv_transfer_params"]["outcome"] == "pulled"
            assert again["kv_transfer_params"]["failure"] == "handle_used"
            assert tokens(first) == tokens(again)

    asyncio.run(main())


def test_another_prompt_gets_its_own_tokens_not_the_leased_ones(start_engine: Start) -> None:
    async def main() -> None:
        async with start_engine() as prefill, start_engine() as decode:
            leased, asked = PROMPTS[10], PROMPTS[10][::-1]
            expected = tokens(await prefill.complete(asked, max_tokens=5))
            params = await prefill.prefill(leased)
            answer = await decode.complete(asked, max_tokens=5, kv_transfer_params=params)
            assert tokens(answer) == expected
            assert answer["kv_transfer_params"]["failure"] == "prompt_mismatch"
            right = await decode.complete(leased, max_tokens=5, kv_transfer_params=params)
            assert right["kv_transfer_params"]["outcome"] == "pulled"

    asyncio.run(main())


@pytest.mark.parametrize("sizes", [(8, 16), (16, 8), (8, 12)], ids=str)
def test_blocks_of_another_size_are_converted(start_engine: Start, sizes: tuple[int, int]) -> None:
    async def main() -> None:
        async with (
            start_engine(block_size=sizes[0]) as prefill,
            start_engine(block_size=sizes[1]) as decode,
        ):
            for first, second in ((PROMPTS[10], PROMPTS[11]), (PROMPTS[12], PROMPTS[13])):
                await decode.complete(first, max_tokens=1)
                for prompt in (second, first + second):
                    expected = tokens(await prefill.complete(prompt, max_tokens=8))
                    answer, _ = await decode_after(prefill, decode, prompt, tokens=8)
                    assert answer["kv_transfer_params"]["outcome"] == "pulled"
                    assert tokens(answer) == expected

    asyncio.run(main())


def test_kv_of_another_model_is_refused_and_the_difference_named(
    start_engine: Start, tmp_path: Path
) -> None:
    other = write_random_model(tmp_path / "other", RandomModel(kv_heads=1, seed=9))

    async def main() -> None:
        async with (
            start_engine(kv_lease_s=0.2) as prefill,
            start_engine(model=str(other)) as decode,
        ):
            answer, _ = await decode_after(prefill, decode, PROMPTS[10])
            report = answer["kv_transfer_params"]
            assert report["failure"] == "layout_mismatch"
            assert "the model is " in report["message"]
            assert "the number of KV heads is 2 there and 1 here" in report["message"]
            assert report["seconds"] < AT_ONCE_S

    asyncio.run(main())


def test_damaged_bytes_are_noticed(start_engine: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with start_engine() as prefill, start_engine() as decode:
            prompt = PROMPTS[10]
            expected = tokens(await prefill.complete(prompt, max_tokens=5))
            honest = prefill.engine.executor.read_blocks

            def damaged(blocks: Any, out: Any) -> None:
                honest(blocks, out)
                sums.append(connector.checksum(out))
                out[1000] ^= 1

            sums: list[int] = []
            monkeypatch.setattr(prefill.engine.executor, "read_blocks", damaged)
            monkeypatch.setattr("spinney.engine.service.checksum", lying(sums))
            answer, _ = await decode_after(prefill, decode, prompt)
            assert answer["kv_transfer_params"]["failure"] == "checksum_mismatch"
            assert tokens(answer) == expected

    def lying(sums: list[int]) -> Callable[[Any], int]:
        """The serving side announces the checksum from before the damage."""
        return lambda data: sums.pop() if sums else connector.checksum(data)

    asyncio.run(main())


def test_policy_fail_answers_500_at_once_and_frees_the_blocks(start_engine: Start) -> None:
    async def main() -> None:
        async with (
            start_engine(kv_lease_s=0.2) as prefill,
            start_engine(recompute=False) as decode,
        ):
            params = await prefill.prefill(PROMPTS[10]) | {"remote_request_id": "nobody"}
            for stream in (False, True):
                started = time.perf_counter()
                answer = await decode.post(
                    "/v1/completions",
                    {"prompt": PROMPTS[10], "kv_transfer_params": params, "stream": stream},
                )
                assert time.perf_counter() - started < AT_ONCE_S
                assert answer.status == 500
                assert answer.json["error"]["code"] == "kv_transfer_failed"
                assert "never granted" in answer.json["error"]["message"]
            await decode.settle()

    asyncio.run(main())


def test_a_lease_nobody_pulls_expires_and_frees_its_blocks(start_engine: Start) -> None:
    async def main() -> None:
        async with start_engine(kv_lease_s=0.05) as prefill, start_engine() as decode:
            params = await prefill.prefill(PROMPTS[10])
            assert prefill.core.pool.held == 9
            await prefill.settle()
            params |= {"remote_blocks_expiry_time": None}
            answer = await decode.complete(PROMPTS[10], max_tokens=2, kv_transfer_params=params)
            assert answer["kv_transfer_params"]["failure"] == "lease_expired"
            await prefill.complete([5], max_tokens=1)
            assert await prefill.metric("spinney:kv_leases_expired_total") == 1

    asyncio.run(main())


def test_a_client_that_leaves_during_a_pull_frees_the_blocks(start_engine: Start) -> None:
    async def main() -> None:
        async with start_engine() as decode:
            silent = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
            async with silent:
                params = {
                    "do_remote_prefill": True,
                    "remote_engine_id": "p",
                    "remote_request_id": "h",
                    "remote_host": "127.0.0.1",
                    "remote_port": silent.sockets[0].getsockname()[1],
                }
                gone = asyncio.Event()
                body = {"prompt": PROMPTS[10], "kv_transfer_params": params}
                call = asyncio.create_task(decode.post("/v1/completions", body, gone=gone))
                await decode.until(lambda: decode.core.pool.held == 9)
                gone.set()
                await call
                await decode.settle()

    asyncio.run(main())


def test_a_client_that_leaves_before_there_are_blocks_to_pull_into_ends_the_lease(
    start_engine: Start,
) -> None:
    async def main() -> None:
        async with (
            start_engine(kv_lease_s=600.0) as prefill,
            start_engine(num_blocks=16, max_model_len=128) as decode,
        ):
            silent = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
            async with silent:
                port = silent.sockets[0].getsockname()[1]
                nowhere = {"do_remote_prefill": True, "remote_engine_id": "p"}
                nowhere |= {"remote_request_id": "h", "remote_host": "127.0.0.1"}
                nowhere |= {"remote_port": port}
                gone = [asyncio.Event(), asyncio.Event()]
                params = await prefill.prefill(PROMPTS[10])
                calls = []
                for prompt, source, event in zip(
                    ([5] * 120, PROMPTS[10]), (nowhere, params), gone, strict=True
                ):
                    body = {"prompt": prompt, "kv_transfer_params": source}
                    call = decode.post("/v1/completions", body, gone=event)
                    calls.append(asyncio.create_task(call))
                    await decode.until(lambda: decode.core.num_running == 1)
                await decode.until(lambda: decode.core.num_waiting == 1)
                gone[1].set()
                await calls[1]
                await prefill.until(lambda: prefill.core.pool.held == 0)
                assert decode.core.num_running == 1, "the other still waits for its KV"
                gone[0].set()
                await calls[0]
            await prefill.settle()
            await decode.settle()

    asyncio.run(main())


def test_a_prefill_worker_with_few_blocks_waits_for_its_leases(start_engine: Start) -> None:
    async def main() -> None:
        async with (
            start_engine(num_blocks=16, max_model_len=128) as prefill,
            start_engine() as decode,
        ):

            async def request(n: int) -> None:
                prompt = [n + 4] * 60
                params = await prefill.prefill(prompt)
                answer = await decode.complete(prompt, max_tokens=3, kv_transfer_params=params)
                assert answer["kv_transfer_params"]["outcome"] == "pulled"

            await asyncio.gather(*(request(n) for n in range(12)))

    asyncio.run(main())


def test_the_roles_refuse_what_they_do_not_do(start_engine: Start) -> None:
    async def main() -> None:
        async with start_engine(role="decode") as decode:
            body: dict[str, Any] = {
                "prompt": [5],
                "kv_transfer_params": {"do_remote_decode": True},
            }
            answer = await decode.post("/v1/completions", body)
            assert answer.status == 400
            assert "role is decode" in answer.json["error"]["message"]
            body["kv_transfer_params"] = {"do_remote_prefill": True, "remote_engine_id": "x"}
            answer = await decode.post("/v1/completions", body)
            assert answer.status == 400
            assert "remote_request_id, remote_host, remote_port" in answer.body.decode()

    asyncio.run(main())


def test_blocks_that_were_pulled_are_announced_as_events(start_engine: Start) -> None:
    async def main() -> None:
        anywhere = "tcp://127.0.0.1:*"
        async with (
            start_engine() as prefill,
            start_engine(kv_events_endpoint=anywhere, kv_events_replay_endpoint=anywhere) as decode,
        ):
            prompt = PROMPTS[9]
            await decode_after(prefill, decode, prompt)
            batches = [decode_batch(raw) for _, raw in decode.engine.publisher._log.since(0)]
            stored = [e for batch in batches for e in batch.events if isinstance(e, BlockStored)]
            announced = [token for event in stored for token in event.token_ids]
            assert announced[:64] == prompt

    asyncio.run(main())
