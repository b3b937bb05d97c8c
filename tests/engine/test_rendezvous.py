"""Both workers called at once with a room: the same tokens, or a reason soon, and no block left."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import numpy as np
import pytest

from spinney.engine import rendezvous

Start = Callable[..., AbstractAsyncContextManager[Any]]
AT_ONCE_S = 0.2
ROOMS = iter(range(1 << 40, 1 << 41))


def prompt(seed: int, length: int = 60) -> list[int]:
    found: list[int] = np.random.default_rng(seed).integers(4, 500, length).tolist()
    return found


def tokens(answer: Any) -> list[int]:
    ids: list[int] = answer["choices"][0]["token_ids"]
    return ids


def meeting(prefill: Any) -> dict[str, Any]:
    port = prefill.engine.transfer.port
    return {
        "bootstrap_host": "127.0.0.1",
        "bootstrap_port": port,
        "bootstrap_room": next(ROOMS),
    }


@pytest.mark.parametrize("way", ["shared-memory", "tcp", "nixl"])
def test_both_are_called_at_once_and_the_answer_is_that_of_one(
    start_engine: Start, way: str
) -> None:
    ways = {"kv_shared_memory": way == "shared-memory", "kv_nixl": way == "nixl"}

    async def main() -> None:
        async with (
            start_engine(engine_id="prefill", role="prefill", **ways) as prefill,
            start_engine(engine_id="decode", role="decode", **ways) as decode,
            start_engine() as whole,
        ):

            async def both(seed: int) -> None:
                text, where = prompt(seed, 20 + 5 * seed), meeting(prefill)
                expected = tokens(await whole.complete(text, max_tokens=9))
                answer, other = await asyncio.gather(
                    decode.complete(text, max_tokens=9, **where),
                    prefill.complete(text, max_tokens=9, **where),
                )
                assert tokens(answer) == expected
                report = answer["kv_transfer_params"]
                assert (report["outcome"], report["transport"]) == ("pulled", way)
                assert len(tokens(other)) == 1

            # More than the tickets that may be pulled at one time.
            await asyncio.gather(*(both(seed) for seed in range(40)))
            assert len(prefill.service.rooms) == 0

    asyncio.run(main())


@pytest.mark.parametrize("first", ["prefill", "decode"])
def test_either_may_come_first(start_engine: Start, first: str) -> None:
    async def main() -> None:
        async with start_engine(role="prefill") as prefill, start_engine() as decode:
            text, where = prompt(2), meeting(prefill)
            expected = tokens(await prefill.complete(text, max_tokens=4))
            workers = [prefill, decode] if first == "prefill" else [decode, prefill]
            early = asyncio.create_task(workers[0].complete(text, max_tokens=4, **where))
            await asyncio.sleep(0.15)
            late = await workers[1].complete(text, max_tokens=4, **where)
            answer = late if first == "prefill" else await early
            await early
            assert tokens(answer) == expected
            assert answer["kv_transfer_params"]["outcome"] == "pulled"

    asyncio.run(main())


def test_a_role_of_both_tells_by_the_address_which_part_is_its(start_engine: Start) -> None:
    async def main() -> None:
        async with start_engine() as one, start_engine() as other:
            text, where = prompt(3), meeting(one)
            prefilled, answer = await asyncio.gather(
                one.complete(text, max_tokens=4, **where),
                other.complete(text, max_tokens=4, **where),
            )
            assert len(tokens(prefilled)) == 1
            assert answer["kv_transfer_params"]["outcome"] == "pulled"

    asyncio.run(main())


async def decoded_alone(
    decode: Any, text: list[int], where: dict[str, Any]
) -> tuple[dict[str, Any], float]:
    started = time.perf_counter()
    answer = await decode.complete(text, max_tokens=4, **where)
    return answer["kv_transfer_params"], time.perf_counter() - started


def test_a_prompt_that_nobody_sends_is_given_up_and_computed(
    start_engine: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rendezvous, "ARRIVAL_S", 0.1)

    async def main() -> None:
        async with start_engine(role="prefill") as prefill, start_engine() as decode:
            report, seconds = await decoded_alone(decode, prompt(4), meeting(prefill))
            assert (report["outcome"], report["failure"]) == ("recomputed", "unknown_handle")
            assert "was the request sent to both" in report["message"]
            assert seconds < 2

    asyncio.run(main())


def test_a_refused_or_abandoned_prefill_is_told_at_once(start_engine: Start) -> None:
    async def main() -> None:
        async with (
            start_engine(role="prefill", max_waiting=1, max_num_seqs=1) as prefill,
            start_engine() as decode,
        ):
            # Refused: what one worker finds wrong the other may not.
            where = meeting(prefill)
            waiting = asyncio.create_task(decoded_alone(decode, prompt(5), where))
            await asyncio.sleep(0.05)
            bad = await prefill.post(
                "/v1/completions", {"prompt": prompt(5), "echo": True, **where}
            )
            refused = time.perf_counter()
            assert bad.status == 400
            report, _ = await waiting
            assert (report["outcome"], report["failure"]) == ("recomputed", "lease_released")
            assert time.perf_counter() - refused < AT_ONCE_S + 0.3

            # Abandoned: the caller of the prefill worker goes away while its request waits.
            where, gone = meeting(prefill), asyncio.Event()
            blocker = asyncio.create_task(
                prefill.complete(prompt(6), max_tokens=900, ignore_eos=True)
            )
            await prefill.until(lambda: prefill.core.num_running == 1)
            waiting = asyncio.create_task(decoded_alone(decode, prompt(7), where))
            body = {"prompt": prompt(7), "max_tokens": 4, **where}
            call = asyncio.create_task(prefill.post("/v1/completions", body, gone=gone))
            await prefill.until(lambda: len(prefill.service.rooms) == 1)
            full = await prefill.post("/v1/completions", {"prompt": [5], **meeting(prefill)})
            assert full.status == 503
            gone.set()
            report, _ = await waiting
            assert (report["outcome"], report["failure"]) == ("recomputed", "lease_released")
            await asyncio.gather(call, blocker)
            assert len(prefill.service.rooms) == 0

    asyncio.run(main())


def test_a_reader_that_refuses_its_request_has_no_blocks_kept(start_engine: Start) -> None:
    async def main() -> None:
        async with start_engine(role="prefill", kv_lease_s=60) as prefill, start_engine() as decode:
            where = meeting(prefill)
            body = {"prompt": prompt(8), "suffix": "x", **where}
            assert (await decode.post("/v1/completions", body)).status == 400
            late = await prefill.post("/v1/completions", {"prompt": prompt(8), **where})
            assert late.status == 200
            await prefill.settle()
            # One that is under way already is computed to its end, for nobody.
            where = meeting(prefill)
            body = {"prompt": prompt(8), "suffix": "x", **where}
            _, refused = await asyncio.gather(
                prefill.complete(prompt(8), max_tokens=4, **where),
                decode.post("/v1/completions", body),
            )
            assert refused.status == 400
            await prefill.settle()
            assert len(prefill.core.leases) == 0

    asyncio.run(main())


def test_a_reader_that_leaves_while_it_waits_frees_its_blocks(start_engine: Start) -> None:
    async def main() -> None:
        async with (
            start_engine(role="prefill", kv_lease_s=0.2) as prefill,
            start_engine() as decode,
        ):
            where, gone = meeting(prefill), asyncio.Event()
            body = {"prompt": prompt(9), **where}
            call = asyncio.create_task(decode.post("/v1/completions", body, gone=gone))
            await decode.until(lambda: decode.core.pool.held > 0)
            gone.set()
            await call
            await decode.settle()
            await prefill.complete(prompt(9), max_tokens=4, **where)

    asyncio.run(main())


def test_a_room_serves_once_and_goes_with_one_prompt(start_engine: Start) -> None:
    async def main() -> None:
        async with start_engine(role="prefill", kv_lease_s=0.1) as prefill:
            where = meeting(prefill)
            await prefill.complete(prompt(10), max_tokens=4, **where)
            again = await prefill.post("/v1/completions", {"prompt": prompt(10), **where})
            assert (again.status, again.json["error"]["param"]) == (400, "bootstrap_room")
            two = {"prompt": [[5], [6]]}
            three = {"bootstrap_room": [next(ROOMS) for _ in range(3)]}
            for fields in ({"bootstrap_port": None}, two | {"bootstrap_host": []}, two | three):
                body = {"prompt": prompt(11), **meeting(prefill), **fields}
                answer = await prefill.post("/v1/completions", body)
                assert (answer.status, answer.json["error"]["param"]) == (400, "bootstrap_room")

    asyncio.run(main())


def test_a_reader_waits_as_long_as_there_are_signs_of_life(
    start_engine: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spinney.kv.transfer.tcp.LATER_S", 0.05)
    monkeypatch.setattr("spinney.kv.transfer.tcp.ANSWER_TIMEOUT_S", 0.3)

    async def main() -> None:
        async with start_engine(role="prefill") as prefill, start_engine() as decode:
            text, where = prompt(12), meeting(prefill)
            waiting = asyncio.create_task(decoded_alone(decode, text, where))
            await asyncio.sleep(0.8)
            await prefill.complete(text, max_tokens=4, **where)
            report, _ = await waiting
            assert report["outcome"] == "pulled"

    asyncio.run(main())


@pytest.mark.parametrize("first", ["prefill", "decode"])
def test_a_reader_that_has_the_prompt_cached_waits_for_nobody(
    start_engine: Start, first: str
) -> None:
    async def main() -> None:
        async with (
            start_engine(role="prefill", kv_lease_s=60) as prefill,
            start_engine(recompute=False) as decode,
        ):
            text, where = prompt(13), meeting(prefill)
            expected = tokens(await decode.complete(text, max_tokens=4))
            if first == "prefill":
                await prefill.complete(text, **where)
            report = await decode.complete(text, max_tokens=4, **where)
            assert tokens(report) == expected
            assert report["kv_transfer_params"]["outcome"] == "cached"
            if first == "decode":
                await prefill.complete(text, **where)
            again = await prefill.post("/v1/completions", {"prompt": text, **where})
            assert again.status == 400
            await prefill.settle()

    asyncio.run(main())


def test_each_prompt_has_a_room_and_further_choices_need_none(start_engine: Start) -> None:
    async def main() -> None:
        async with start_engine(role="prefill") as prefill, start_engine() as decode:

            async def both(**fields: Any) -> list[list[int]]:
                body = {"max_tokens": 5, **meeting(prefill), **fields}
                _, answer = await asyncio.gather(prefill.complete(**body), decode.complete(**body))
                assert answer["kv_transfer_params"]["outcome"] == "pulled"
                return [choice["token_ids"] for choice in answer["choices"]]

            two = [prompt(14), prompt(15)]
            rooms = {"bootstrap_room": [next(ROOMS), next(ROOMS)]}
            listed = {"bootstrap_host": ["[127.0.0.1]"] * 2}
            listed |= {"bootstrap_port": [prefill.engine.transfer.port] * 2}
            told = await both(prompt=two, **rooms, **listed)
            assert told == [tokens(await prefill.complete(text, max_tokens=5)) for text in two]
            assert await decode.metric("spinney:kv_handovers_total") == 2
            one = tokens(await prefill.complete(prompt(16), max_tokens=5))
            assert await both(prompt=prompt(16), n=3) == [one] * 3
            assert await decode.metric("spinney:kv_handovers_total") == 3
            assert await both(prompt=[prompt(17), prompt(18)], n=2)
            assert len(prefill.service.rooms) == 0

    asyncio.run(main())
