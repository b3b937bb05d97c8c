"""A real router with real workers behind proxies, requests with known answers, and seeded faults.

Every request has to end in the greedy answer, in a clean error (OpenAI's form; in a stream, after a
prefix of the right answer), or in the client's own leaving. At the end no living worker may hold a
KV block. A run is told by its seed; timing is the machine's.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import multiprocessing
import signal
import sys
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from random import Random
from typing import TYPE_CHECKING, Any

import aiohttp
from tests.contract.worker_process import MODEL, free_port
from tests.faults.proxy import Proxy

from spinney.engine.assembly import model_directory
from spinney.engine.checkpoint import load_checkpoint
from spinney.engine.executor import Batch, Executor, SequenceStep
from spinney.engine.mock.assembly import speakable
from spinney.engine.mock.executor import MockExecutor
from spinney.engine.numpy_executor import NumpyExecutor
from spinney.engine.tokenizer import load_tokenizer
from spinney.perfmodel.profile import load_step_model

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

READY_S = 30.0
HANG_S = 60.0
"""A request without an end by then counts as hanging; all the router's deadlines are far below."""
LEASE_S = 3.0
ROUTER_FLAGS = (
    *("--connect-timeout", "1", "--prefill-deadline", "3", "--first-byte-deadline", "3"),
    *("--response-deadline", "10", "--idle-deadline", "3", "--seed", "1"),
    *("--retry-within", "20"),
)


class Truth:
    """What greedy decoding answers: one request at a time, whole, nothing shared or moved."""

    LONGEST = 2048

    def __init__(self, kind: str) -> None:
        directory = model_directory(MODEL)
        self._executor: Executor
        if kind == "mock":
            tokenizer = load_tokenizer(directory)
            self._executor = MockExecutor(
                load_step_model("demo-cpu"),
                num_blocks=1,
                block_size=self.LONGEST,
                max_model_len=self.LONGEST,
                vocab_size=tokenizer.vocab_size,
                tokens=speakable(tokenizer),
            )
        else:
            self._executor = NumpyExecutor(
                load_checkpoint(directory), num_blocks=1, block_size=self.LONGEST
            )

    def answer(self, prompt: list[int], count: int) -> list[int]:
        step, found = SequenceStep(prompt, 0, [0], True), []
        while len(found) < count:
            found.append(int(self._executor.step(Batch((step,)))[0].argmax()))
            step = SequenceStep([found[-1]], len(prompt) + len(found) - 1, [0], True)
        return found


@functools.cache
def _truth(kind: str) -> Truth:
    return Truth(kind)


def _answer(kind: str, prompt: list[int], count: int) -> list[int]:
    return _truth(kind).answer(prompt, count)


class WorkerProcess:
    """A worker that can be killed, stopped and started again on its ports, behind proxies."""

    def __init__(
        self, kind: str, name: str, role: str, folder: Path, rng: Random, *flags: str
    ) -> None:
        self.kind, self.name, self.role = kind, name, role
        self.folder, self.flags = folder, flags
        self.port, self.kv_port = free_port(), free_port()
        self.http = Proxy(self.port, rng)
        self.kv = Proxy(self.kv_port, rng)
        self.process: asyncio.subprocess.Process | None = None
        self.lives = 0
        self.log_to = folder / f"{name}.log"
        self.busy = False
        """Whether a fault is at work on it."""

    async def start(self) -> None:
        self.lives += 1
        command = [
            *(sys.executable, "-m", "spinney.cmd.main", self.kind, "--port", str(self.port)),
            *("--role", self.role, "--engine-id", f"{self.name}-{self.lives}", "--log-json"),
            *("--kv-port", str(self.kv_port), "--kv-advertise-port", str(self.kv.port)),
            *("--kv-lease", str(LEASE_S), "--drain-timeout", "20", *self.flags),
        ]
        with self.log_to.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(*command, stdout=log, stderr=log)

    async def wait_ready(self, session: aiohttp.ClientSession) -> None:
        await until(lambda: self.answers(session), f"{self.name} is ready", READY_S)

    async def answers(self, session: aiohttp.ClientSession) -> bool:
        assert self.process is not None
        code = self.process.returncode
        assert code is None, f"{self.name} ended with {code}: {self.log_tail()}"
        return await status(session, f"http://127.0.0.1:{self.port}/health") == 200

    def log_tail(self) -> str:
        return (self.folder / f"{self.name}.log").read_text()[-2000:]

    @property
    def died(self) -> bool:
        return self.process is not None and self.process.returncode is not None

    def send(self, number: int) -> None:
        if self.process is not None and self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(number)

    async def end(self) -> int:
        assert self.process is not None
        async with asyncio.timeout(40):
            return await self.process.wait()

    async def heal(self) -> None:
        self.send(signal.SIGCONT)
        await self.http.heal()
        await self.kv.heal()


@dataclass
class Tally:
    """How requests ended, and everything that may not happen."""

    ended: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    handovers: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    unsaved: list[str] = field(default_factory=list)
    """What the router tells of each request that ended in an error."""

    @property
    def total(self) -> int:
        return sum(self.ended.values())

    def reset(self) -> None:
        for counter in (self.ended, self.faults, self.handovers):
            counter.clear()
        self.wrong.clear()
        self.unsaved.clear()


@dataclass(frozen=True)
class Job:
    """One request. *leave* is the event number after which the client goes away; -1: never."""

    number: int
    prompt: list[int]
    count: int
    stream: bool
    leave: int = -1


@dataclass(frozen=True)
class Said:
    """What came of a request: how it ended, or tokens to be compared, and the router's id of it."""

    ended: str = ""
    tokens: tuple[int, ...] = ()
    broke_off: bool = False
    request_id: str = ""


@dataclass(frozen=True)
class Pools:
    """How many KV blocks workers have, by role, and how many tokens a request may have."""

    prefill: int = 512
    decode: int = 512
    context: int = 2048

    def flags(self, role: str) -> tuple[str, ...]:
        blocks = self.prefill if role == "prefill" else self.decode
        return ("--num-blocks", str(blocks), "--max-model-len", str(self.context))


class Arena:
    """Two prefill and two decode workers behind a router; use it as a context."""

    def __init__(
        self,
        folder: Path,
        seed: int,
        *,
        kind: str = "mock",
        slow_down: float = 1.0,
        pools: Pools = Pools(),
        patience: tuple[str, ...] = (),
    ) -> None:
        """*patience*: flags of the router that are to differ from `ROUTER_FLAGS`."""
        self.folder, self.seed = folder, seed
        self.rng = Random(seed)
        self.kind = kind
        self._reckoner: ProcessPoolExecutor | None = None
        if kind != "mock":
            # A model computes: in this process, all that passes the proxies would wait for it.
            spawning = multiprocessing.get_context("spawn")
            self._reckoner = ProcessPoolExecutor(1, mp_context=spawning)
        self.tally = Tally()
        pace = ("--speed-up", str(1 / slow_down)) if kind == "mock" else ()
        prefill = (*pools.flags("prefill"), *pace)
        decode = (*pools.flags("decode"), *pace)
        plain = ("--no-kv-shared-memory", *(("--no-kv-nixl",) if kind == "engine" else ()))
        self.workers = [
            WorkerProcess(kind, "p0", "prefill", folder, Random(seed), *prefill),
            WorkerProcess(kind, "p1", "prefill", folder, Random(seed + 1), *prefill),
            # One maps the blocks of its peers, to the other all bytes come through the proxy.
            WorkerProcess(kind, "d0", "decode", folder, Random(seed + 2), *decode),
            WorkerProcess(kind, "d1", "decode", folder, Random(seed + 3), *decode, *plain),
        ]
        self.patience = patience
        self.by_name = {worker.name: worker for worker in self.workers}
        self.router_port = free_port()
        self.router: asyncio.subprocess.Process | None = None
        self.session: aiohttp.ClientSession

    async def __aenter__(self) -> Arena:
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        self.session = aiohttp.ClientSession(connector=connector)
        try:
            await self._start()
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def _start(self) -> None:
        for worker in self.workers:
            await worker.http.start()
            await worker.kv.start()
            await worker.start()
        await self.start_router()
        for worker in self.workers:
            await worker.wait_ready(self.session)
        await until(self.router_ready, "the router is ready", READY_S)

    async def __aexit__(self, *_: object) -> None:
        await self.session.close()
        for process in (self.router, *(worker.process for worker in self.workers)):
            if process is not None and process.returncode is None:
                process.kill()
                await process.wait()
        for worker in self.workers:
            await worker.http.close()
            await worker.kv.close()
        if self._reckoner is not None:
            self._reckoner.shutdown(cancel_futures=True)

    async def start_router(self) -> None:
        self.router = await self.another_router(self.router_port)

    async def another_router(
        self, port: int, *more: str, log_to: Path | None = None
    ) -> asyncio.subprocess.Process:
        """Start a router for the same workers; what it logs goes to *log_to*."""
        flags = [
            flag
            for worker in self.workers
            for flag in (
                "--worker",
                f"{worker.role}:{worker.name}=http://127.0.0.1:{worker.http.port}",
            )
        ]
        command = [
            *(sys.executable, "-m", "spinney.cmd.main", "router", "--log-json"),
            *("--port", str(port), "--model", MODEL, *ROUTER_FLAGS, *self.patience, *flags, *more),
        ]
        with (log_to or self.folder / "router.log").open("ab") as log:
            return await asyncio.create_subprocess_exec(*command, stdout=log, stderr=log)

    async def forgive(self) -> None:
        """Start the router anew where it avoids a worker: the next test is not about that."""
        async with self.session.get(f"{self.url}/debug/workers") as answer:
            known = await answer.text()
        if '"avoided":true' not in known.replace(" ", ""):
            return
        assert self.router is not None
        self.router.terminate()
        code = await self.router.wait()
        assert code == 0, f"the router ended with {code}"
        await self.start_router()
        await until(self.router_ready, "the router is ready", READY_S)

    async def router_ready(self) -> bool:
        return await status(self.session, f"{self.url}/health") == 200

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.router_port}"

    def job(self, number: int, *, leaving: float = 0.0) -> Job:
        """Return request *number* of this seed; one of *leaving* is given up by its client."""
        rng = Random(f"{self.seed}/{number}")
        length = rng.choice((rng.randint(2, 40), rng.randint(20, 300), rng.randint(100, 900)))
        prompt = [rng.randrange(300, 2000) for _ in range(length)]
        leave = rng.randint(0, 12) if rng.random() < leaving else -1
        return Job(number, prompt, rng.randint(3, 60), rng.random() < 0.8, leave)

    async def ask(self, job: Job, url: str = "") -> str:
        """Send *job*, check what comes, and return how it ended."""
        url = url or self.url
        try:
            async with asyncio.timeout(HANG_S):
                said = await self._ask(job, url)
        except TimeoutError:
            said = Said("HANGS")
            self.tally.wrong.append(f"request {job.number} has no end after {HANG_S:g} s")
        ended = said.ended or await self._judged(job, said)
        if ended.startswith("error"):
            story = await self._story(url, said.request_id)
            self.tally.unsaved.append(f"request {job.number}, {ended}\n{story}")
        self.tally.ended[ended] += 1
        return ended

    async def _judged(self, job: Job, said: Said) -> str:
        """Return how a request ended whose answer is as good as the model's, or that it is not."""
        expected = tuple(await self._expected(job))
        if said.tokens == expected and not said.broke_off:
            return "ok"
        if said.broke_off and said.tokens == expected[: len(said.tokens)]:
            return "error event"
        self.tally.wrong.append(
            f"request {job.number}: {said.tokens} came, broken off: {said.broke_off}, "
            f"{expected} was due"
        )
        return "WRONG"

    async def _expected(self, job: Job) -> list[int]:
        if self._reckoner is None:
            return _answer(self.kind, job.prompt, job.count)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._reckoner, _answer, self.kind, job.prompt, job.count)

    async def _ask(self, job: Job, url: str) -> Said:
        body = {
            "model": MODEL,
            "prompt": job.prompt,
            "max_tokens": job.count,
            "temperature": 0,
            "ignore_eos": True,
            "stream": job.stream,
            "return_token_ids": True,
        }
        call = self.session.post(f"{url}/v1/completions", json=body)
        try:
            if not job.stream and job.leave >= 0:
                return await self._leave_early(call, job.leave)
            async with call as answer:
                said = await self._said(job, answer)
            return replace(said, request_id=answer.headers.get("x-request-id", ""))
        except (aiohttp.ClientError, ValueError) as error:
            self.tally.wrong.append(f"request {job.number} broke: {error!r}")
            return Said("BROKEN")

    async def _said(self, job: Job, answer: aiohttp.ClientResponse) -> Said:
        if answer.status != 200:
            return Said(self._refused(job, answer.status, await answer.read()))
        if job.stream:
            return await self._read_stream(job, answer)
        return self._whole(json.loads(await answer.read()))

    async def _story(self, url: str, request_id: str) -> str:
        """Return what the router did for a request, a line for each step."""
        try:
            async with self.session.get(f"{url}/debug/requests/{request_id}") as answer:
                story = json.loads(await answer.read())
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            return f"  no story: {error!r}"
        lines = [f"  {story.get('prompt_tokens')} prompt tokens, stream: {story.get('stream')}"]
        for step in story.get("steps", ()):
            told = {name: _brief(value) for name, value in step["fields"].items()}
            lines.append(f"  {step['at_ms']:>9.0f} ms  {step['what']}  {told}")
        return "\n".join(lines)

    async def _leave_early(self, call: Any, tick: int) -> Said:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.005 * tick):
                async with call as answer:
                    await answer.read()
        return Said("left")

    def _refused(self, job: Job, code: int, raw: bytes) -> str:
        try:
            error = json.loads(raw)["error"]
            assert error["message"]
        except (ValueError, KeyError, TypeError, AssertionError):
            self.tally.wrong.append(f"request {job.number}: {code} without an error: {raw[:200]!r}")
            return "BROKEN"
        if code < 500:
            self.tally.wrong.append(f"request {job.number}: {code}: {raw[:300]!r}")
        return f"error {code}"

    def _note_handover(self, answer: Any) -> None:
        report = answer.get("kv_transfer_params")
        if report:
            self.tally.handovers[f"{report['outcome']} {report['failure'] or ''}".strip()] += 1

    def _whole(self, answer: Any) -> Said:
        self._note_handover(answer)
        return Said(tokens=tuple(answer["choices"][0]["token_ids"]))

    async def _read_stream(self, job: Job, answer: aiohttp.ClientResponse) -> Said:
        found: list[int] = []
        end = ""
        events = 0
        async for line in answer.content:
            if not line.startswith(b"data: "):
                continue
            if events == job.leave:
                answer.close()
                return Said("left")
            events += 1
            if line.startswith(b"data: [DONE]"):
                end = end or "done"
                continue
            event = json.loads(line[6:])
            if "error" in event:
                end = "error"
                continue
            self._note_handover(event)
            for choice in event["choices"]:
                found += choice.get("token_ids") or []
        if not end:
            self.tally.wrong.append(f"request {job.number}: the stream has no end")
            return Said("BROKEN")
        return Said(tokens=tuple(found), broke_off=end == "error")

    async def run(self, count: int, *, clients: int, leaving: float) -> None:
        """Send *count* requests from *clients* clients."""
        numbers = iter(range(count))

        async def client() -> None:
            for number in numbers:
                await self.ask(self.job(number, leaving=leaving))

        async with asyncio.TaskGroup() as group:
            for _ in range(clients):
                group.create_task(client())

    async def metrics(self, worker: WorkerProcess) -> dict[str, float]:
        return await samples(self.session, f"http://127.0.0.1:{worker.port}/metrics")

    async def restore(self) -> None:
        """Heal everything and start again what has died; wait until the router knows it."""
        for worker in self.workers:
            await worker.heal()
            # A signal sent is not yet a death.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.1):
                    await worker.end()
            assert worker.process is not None
            if worker.process.returncode is not None:
                await worker.start()
        for worker in self.workers:
            await worker.wait_ready(self.session)

    async def settle(self) -> None:
        """Heal everything and check that nothing is held anywhere."""
        for worker in self.workers:
            await worker.heal()
        for worker in self.workers:
            await worker.wait_ready(self.session)
        for worker in self.workers:
            await self._settled(f"http://127.0.0.1:{worker.port}/metrics", worker.name)
        await self._settled(f"{self.url}/metrics", "router")

    async def _settled(self, url: str, name: str) -> None:
        held = {}

        async def free() -> bool:
            found = await samples(self.session, url)
            held.clear()
            held.update({what: found[what] for what in HELD if found.get(what)})
            return not held

        try:
            await until(free, f"{name} holds nothing", LEASE_S + 12)
        except AssertionError:
            self.tally.wrong.append(f"{name} still holds {held}")


def _brief(value: Any) -> Any:
    """Return the names of the workers that were chosen, and other values as they are."""
    if not isinstance(value, dict) or "decode" not in value:
        return value
    picks = (value.get("prefill"), value["decode"])
    return " then ".join(pick["worker"]["name"] for pick in picks if pick)


HELD = (
    "vllm:num_requests_running",
    "vllm:num_requests_waiting",
    "vllm:kv_cache_usage_perc",
    "spinney:kv_leases",
    "spinney_router_inflight_requests",
    "spinney_router_queued_prefill_tokens",
)


async def until(
    condition: Callable[[], Awaitable[bool]], what: str, seconds: float, every_s: float = 0.05
) -> None:
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    while not await condition():
        assert loop.time() < end, f"not within {seconds:g} s: {what}"
        await asyncio.sleep(every_s)


async def status(session: aiohttp.ClientSession, url: str) -> int:
    try:
        async with session.get(url, timeout=aiohttp.ClientTimeout(2)) as answer:
            return answer.status
    except (aiohttp.ClientError, TimeoutError):
        return 0


async def samples(session: aiohttp.ClientSession, url: str) -> dict[str, float]:
    """Return metrics by name, summed over labels; empty while nobody answers."""
    try:
        async with session.get(url, timeout=aiohttp.ClientTimeout(2)) as answer:
            text = await answer.text()
    except (aiohttp.ClientError, TimeoutError):
        return {"vllm:num_requests_running": -1.0}
    found: Counter[str] = Counter()
    for line in text.splitlines():
        if line and not line.startswith("#"):
            found[line.split("{", 1)[0].split(" ", 1)[0]] += float(line.rsplit(" ", 1)[1])
    return dict(found)
