"""The worker without weights: its tokens, its time, and its life on a virtual clock."""

from __future__ import annotations

import asyncio
import json
from random import Random
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pytest

from spinney.clock import LoopClock
from spinney.engine.assembly import Engine, EngineSettings
from spinney.engine.executor import Batch, SequenceStep
from spinney.engine.mock.assembly import MockSettings, build_mock
from spinney.engine.mock.executor import MockExecutor
from spinney.engine.mock.pacing import ModelledTurns
from spinney.errors import BadInputError
from spinney.ids import RandomIds
from spinney.perfmodel.profile import load_step_model
from spinney.perfmodel.step_model import Distance
from spinney.sim.loop import SimulatedLoop

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

T = TypeVar("T")
MODEL = load_step_model("llama-8b-h100")
PROMPT = [(7 * n) % 500 + 5 for n in range(100)]


def executor(**changes: Any) -> MockExecutor:
    fields = {"num_blocks": 32, "block_size": 8, "max_model_len": 200, "vocab_size": 300}
    return MockExecutor(MODEL, **(fields | changes), tokens=range(10, 300))


def answer(mock: MockExecutor, tokens: list[int], blocks: list[int]) -> int:
    step = SequenceStep(tokens, 0, blocks, True)
    return int(mock.step(Batch((step,)))[0].argmax())


def test_a_token_depends_on_all_tokens_before_and_on_no_batch_or_block_number() -> None:
    tokens = list(range(40))
    alone = answer(executor(), tokens, [0, 1, 2, 3, 4])
    assert answer(executor(num_blocks=64), tokens, [30, 2, 9, 11, 6, 7]) == alone
    found = {
        answer(executor(), [*tokens[:n], 99, *tokens[n + 1 :]], [0, 1, 2, 3, 4])
        for n in (0, 20, 39)
    }
    assert alone not in found
    assert len(found) == 3


def test_in_chunks_or_whole_the_answer_is_the_same() -> None:
    mock, blocks = executor(), [4, 9, 1, 7, 3]
    mock.step(Batch((SequenceStep(range(13), 0, blocks, False),)))
    last = SequenceStep(range(13, 40), 13, blocks, True)
    assert mock.step(Batch((last,)))[0].argmax() == answer(
        executor(), list(range(40)), [0, 1, 2, 3, 4]
    )


@pytest.mark.parametrize("fault", ["lost", "swapped", "flipped"])
def test_a_block_that_was_not_handed_over_rightly_changes_the_answer(fault: str) -> None:
    tokens, there = list(range(40)), executor()
    expected = answer(there, [*tokens, 7], [0, 1, 2, 3, 4, 5])
    wire = np.zeros(5 * there.layout.block_bytes, np.uint8)
    there.read_blocks([0, 1, 2, 3, 4], wire)
    blocks = [20, 21, 22, 23, 24]

    def after(data: Any, order: list[int]) -> int:
        here = executor()
        here.write_blocks(order, data)
        step = SequenceStep([7], 40, [*blocks, 25], True)
        return int(here.step(Batch((step,)))[0].argmax())

    assert after(wire, blocks) == expected
    if fault == "lost":
        wire[64:128] = 0
    elif fault == "flipped":
        wire[70] ^= 1
    else:
        blocks = [21, 20, 22, 23, 24]
    assert after(wire, [20, 21, 22, 23, 24]) != expected


def virtual(work: Callable[[], Awaitable[T]]) -> T:
    async def main() -> T:
        return await work()

    with asyncio.Runner(loop_factory=SimulatedLoop) as runner:
        return runner.run(main())


def test_the_time_of_many_steps_is_the_model_s_divided_by_the_speed_up() -> None:
    async def main() -> float:
        mock = executor()
        turns, loop = ModelledTurns(mock, 4.0), asyncio.get_running_loop()
        started = loop.time()
        for n in range(50):
            step = SequenceStep([5], n, range(32), True)
            await turns.run(lambda step=step: mock.step(Batch((step,))))
        return loop.time() - started

    expected = sum(MODEL.decode_step_s(1, n + 1) for n in range(50)) / 4
    assert virtual(main) == pytest.approx(expected)
    with pytest.raises(BadInputError, match="above 0"):
        ModelledTurns(executor(), 0)


class Twin:
    """Mock engines on a virtual clock, called through their HTTP application."""

    def __init__(self) -> None:
        self.sources: dict[tuple[str, int], Any] = {}
        self.engines: dict[str, Engine] = {}
        self.tasks: list[asyncio.Task[None]] = []

    def start(self, name: str, role: str) -> None:
        loop = asyncio.get_running_loop()
        settings = EngineSettings(
            "demo", name, role, kv_host=name, kv_port=1, max_num_batched_tokens=8192
        )
        engine = build_mock(
            settings,
            MockSettings(MODEL, distance=Distance.RACK, in_memory=self.sources),
            clock=LoopClock(loop),
            ids=RandomIds(Random(name)),
            timer=loop.time,
        )
        self.engines[name] = engine
        self.tasks.append(asyncio.ensure_future(engine.service.run()))

    async def complete(self, name: str, **fields: Any) -> Any:
        body = {"prompt": PROMPT, "temperature": 0, "return_token_ids": True} | fields
        sent = [{"type": "http.request", "body": json.dumps(body).encode()}]
        raw = b""

        async def receive() -> Any:
            if sent:
                return sent.pop()
            return await asyncio.Event().wait()

        async def send(message: Any) -> None:
            nonlocal raw
            raw += message.get("body", b"")

        scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": []}
        await self.engines[name].app(scope, receive, send)
        return json.loads(raw)

    async def stop(self) -> None:
        for engine in self.engines.values():
            await engine.service.drain(1)
            engine.core.check()
            assert engine.core.pool.held == 0
            engine.close()
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


def test_a_hand_over_on_a_virtual_clock_takes_modelled_time() -> None:
    async def main() -> tuple[Any, Any, float]:
        twin, loop = Twin(), asyncio.get_running_loop()
        twin.start("p", "prefill")
        twin.start("d", "decode")
        whole = await twin.complete("p", max_tokens=9)
        ticket = await twin.complete(
            "p", max_tokens=1, kv_transfer_params={"do_remote_decode": True}
        )
        started = loop.time()
        answer = await twin.complete(
            "d", max_tokens=9, kv_transfer_params=ticket["kv_transfer_params"]
        )
        took = loop.time() - started
        await twin.stop()
        return whole, answer, took

    whole, answer, took = virtual(main)
    assert answer["choices"][0]["token_ids"] == whole["choices"][0]["token_ids"]
    report = answer["kv_transfer_params"]
    assert (report["outcome"], report["transport"]) == ("pulled", "memory")
    blocks = -(-len(PROMPT) // 16)
    transfer = MODEL.transfer_s(MODEL.kv_bytes(blocks * 16), Distance.RACK)
    steps = sum(MODEL.decode_step_s(1, len(PROMPT) + n) for n in range(9))
    assert report["seconds"] == pytest.approx(transfer, abs=1e-6)
    assert took == pytest.approx(transfer + steps, rel=0.01)


def test_one_seed_gives_one_history() -> None:
    async def main() -> list[Any]:
        twin = Twin()
        twin.start("e", "both")
        calls = [twin.complete("e", max_tokens=5 + n, prompt=PROMPT[n:]) for n in range(6)]
        answers = await asyncio.gather(*calls)
        await twin.stop()
        return [(a["choices"], a["created"]) for a in answers]

    assert virtual(main) == virtual(main)
