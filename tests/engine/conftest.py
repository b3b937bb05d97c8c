"""Models, executors and running engines for the tests of the engine."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
import pytest
from tests.kv.fake_nixl import unless_installed

from spinney.clock import SystemClock
from spinney.engine.assembly import Engine, EngineSettings, build_engine
from spinney.engine.core import CoreConfig, EngineCore
from spinney.engine.random_model import RandomModel, write_random_model
from spinney.engine.sequence import Finished, TokenUpdate
from spinney.engine.sequence import Sequence as EngineSequence
from spinney.ids import RandomIds
from spinney.kv.layout import KVLayout
from spinney.kv.lease import Handle

if TYPE_CHECKING:
    from pathlib import Path

    from spinney.engine.executor import Batch, ByteArray, FloatArray


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer Llama with random weights and a trained tokenizer."""
    return write_random_model(tmp_path_factory.mktemp("tiny-llama"), RandomModel())


class TapeExecutor:
    """A model whose next token is a digest of all tokens it finds in its blocks.

    Its KV of a token is the token. Whatever is wrong with a block (evicted too early, shared by
    mistake, not written) makes another next token.
    """

    VOCAB = 50

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.layout = KVLayout("tape", "float32", 1, 1, 1, block_size)
        self.num_blocks = num_blocks
        self.tape = np.full((num_blocks, block_size), -1, np.float32)
        self.steps: list[Batch] = []
        self.broken: Exception | None = None

    def step(self, batch: Batch) -> FloatArray:
        if self.broken is not None:
            raise self.broken
        self.steps.append(batch)
        size = self.layout.block_size
        rows: list[FloatArray] = []
        for sequence in batch.sequences:
            for at, token in enumerate(sequence.token_ids, sequence.start):
                self.tape[sequence.block_ids[at // size], at % size] = token
        for sequence in batch.sequences:
            if sequence.wants_logits:
                end = sequence.start + len(sequence.token_ids)
                rows.append(self._logits(sequence.block_ids, end))
        return np.stack(rows) if rows else np.empty((0, self.VOCAB), np.float32)

    def _logits(self, blocks: Sequence[int], end: int) -> FloatArray:
        seen = self.tape[list(blocks)].reshape(-1)[:end].astype(int).tolist()
        logits = np.zeros(self.VOCAB, np.float32)
        logits[tape_token(seen)] = 1
        return logits

    def read_blocks(self, block_ids: Sequence[int], out: ByteArray) -> None:
        wire = out.view(np.float32).reshape(len(block_ids), 2, self.layout.block_size)
        wire[:, 0] = self.tape[list(block_ids)]

    def write_blocks(self, block_ids: Sequence[int], data: ByteArray) -> None:
        wire = data.view(np.float32).reshape(len(block_ids), 2, self.layout.block_size)
        self.tape[list(block_ids)] = wire[:, 0]

    def close(self) -> None:
        pass


def tape_token(tokens: Sequence[int]) -> int:
    digest = hashlib.blake2b(bytes(tokens), digest_size=4).digest()
    return int.from_bytes(digest, "big") % TapeExecutor.VOCAB


@dataclass
class CoreHarness:
    """A core over a tape, stepped by hand."""

    core: EngineCore
    tape: TapeExecutor
    now_s: float = 0.0
    finished: dict[str, Finished] = field(default_factory=dict)

    def step(self) -> bool:
        """Run one step; False when there is nothing to compute."""
        begun = self.core.begin()
        self.core.check()
        if begun.work is None:
            return False
        sampled = self.core.execute(begun.work)
        self.core.commit(begun.work, sampled, self.now_s)
        self.core.check()
        return True

    def run(self, limit: int = 1000) -> None:
        for _ in range(limit):
            if not self.step():
                return
        raise AssertionError(f"still busy after {limit} steps")

    @staticmethod
    def tokens(sequence: EngineSequence) -> list[int]:
        return [update.token for update in sequence.updates if isinstance(update, TokenUpdate)]

    @staticmethod
    def end(sequence: EngineSequence) -> Finished:
        end = sequence.updates[-1]
        assert isinstance(end, Finished)
        assert sum(isinstance(update, Finished) for update in sequence.updates) == 1
        return end

    @staticmethod
    def expected(prompt: Sequence[int], count: int) -> list[int]:
        """What the tape's model says after *prompt*, computed without blocks."""
        tokens = list(prompt)
        for _ in range(count):
            tokens.append(tape_token(tokens))
        return tokens[len(prompt) :]


@pytest.fixture(scope="session")
def make_core() -> Callable[..., CoreHarness]:
    """Returns a function that makes a fresh core; it keeps nothing between calls."""

    def make(
        *,
        num_blocks: int = 64,
        block_size: int = 4,
        max_sequences: int = 8,
        max_step_tokens: int = 64,
        max_model_len: int = 200,
        max_waiting: int = 100,
        eos: frozenset[int] = frozenset(),
    ) -> CoreHarness:
        tape, ids = TapeExecutor(num_blocks, block_size), RandomIds(Random(1))
        core = EngineCore(
            tape,
            CoreConfig(max_sequences, max_step_tokens, max_model_len, max_waiting),
            decode=lambda tokens, skip: "".join(chr(65 + token) for token in tokens),
            eos_token_ids=eos,
            lease_terms=lambda: (Handle(ids.uid()), 10.0),
            rng=np.random.default_rng(0),
        )
        return CoreHarness(core, tape)

    return make


@dataclass
class Answer:
    """An HTTP answer, as it was sent."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def events(self) -> list[Any]:
        """The server-sent events, the closing [DONE] checked and left out."""
        lines = [line for line in self.body.decode().split("\n\n") if line]
        assert all(line.startswith("data: ") for line in lines)
        assert lines[-1] == "data: [DONE]"
        return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


class RunningEngine:
    """An engine with its real thread and sockets; only HTTP's own socket is left out."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.core = engine.core
        self.service = engine.service

    async def call(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        *,
        headers: dict[str, str] | None = None,
        gone: asyncio.Event | None = None,
        on_body: Callable[[bytes], None] | None = None,
    ) -> Answer:
        """Send a request; the client goes away when *gone* is set."""
        sent = [{"type": "http.request", "body": body, "more_body": False}]
        answer = Answer(0, {}, b"")
        leaves = gone or asyncio.Event()

        async def receive() -> dict[str, Any]:
            if sent:
                return sent.pop()
            await leaves.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                assert answer.status == 0, "an answer starts once"
                answer.status = message["status"]
                answer.headers = {k.decode(): v.decode() for k, v in message["headers"]}
            else:
                answer.body += message["body"]
                if on_body is not None:
                    on_body(message["body"])
                await asyncio.sleep(0)

        pairs = [(k.lower().encode(), v.encode()) for k, v in (headers or {}).items()]
        scope = {"type": "http", "method": method, "path": path, "headers": pairs}
        async with asyncio.timeout(20):
            await self.engine.app(scope, receive, send)
        return answer

    async def post(self, path: str, body: Any, **options: Any) -> Answer:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        return await self.call("POST", path, raw, **options)

    async def complete(self, prompt: Any, **fields: Any) -> Any:
        """Return a greedy completion's JSON, token ids included."""
        body = {"prompt": prompt, "temperature": 0, "return_token_ids": True} | fields
        answer = await self.post("/v1/completions", body)
        assert answer.status == 200, answer.body
        return answer.json

    async def prefill(self, prompt: Any, **fields: Any) -> dict[str, Any]:
        """Return the kv_transfer_params of a prefill."""
        answer = await self.complete(
            prompt, max_tokens=1, kv_transfer_params={"do_remote_decode": True}, **fields
        )
        params: dict[str, Any] = answer["kv_transfer_params"]
        return params

    async def metric(self, name: str) -> float:
        """Return the sum of the samples of *name* (labels in braces may be part of it)."""
        text = (await self.call("GET", "/metrics")).body.decode()
        wanted, _, label = name.partition("{")
        found = [
            float(line.rsplit(" ", 1)[1])
            for line in text.splitlines()
            if line.startswith(wanted + "{") and label.rstrip("}") in line
        ]
        assert found, f"no metric {name}"
        return sum(found)

    async def settle(self) -> None:
        """Wait until no block is held."""
        await self.until(lambda: self.core.pool.held == 0)
        self.core.check()

    @staticmethod
    async def until(condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not condition():  # noqa: ASYNC110 - conditions of all kinds
                await asyncio.sleep(0.002)


Start = Callable[..., AbstractAsyncContextManager[RunningEngine]]


@pytest.fixture
def start_engine(tiny_model: Path) -> Iterator[Start]:
    """Returns a context manager that runs an engine and at its end finds no block held."""

    @contextlib.asynccontextmanager
    async def start(**overrides: Any) -> AsyncIterator[RunningEngine]:
        leak_check = overrides.pop("leak_check", True)
        fields: dict[str, Any] = {
            "model": str(tiny_model),
            "engine_id": "engine-under-test",
            "num_blocks": 128,
            "block_size": 8,
            "seed": 1,
        }
        with unless_installed():
            engine = build_engine(
                EngineSettings(**(fields | overrides)),
                clock=SystemClock(),
                ids=RandomIds(Random(overrides.get("engine_id", ""))),
                timer=time.perf_counter,
            )
        running = RunningEngine(engine)
        tasks = [asyncio.create_task(engine.service.run())]
        if engine.transfer is not None:
            tasks.append(asyncio.create_task(engine.transfer.serve()))
        try:
            yield running
            if leak_check:
                await running.settle()
        finally:
            broken = [task.exception() for task in tasks if task.done()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            engine.close()
            for error in filter(None, broken):
                raise error

    return start
