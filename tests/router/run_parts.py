"""A request, a failure and what follows failures, without a network."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from prometheus_client import CollectorRegistry

from spinney.kv.prefix_index import BlockIndex
from spinney.router.cache_view import CacheView
from spinney.router.limits import Limits
from spinney.router.load import Faults, Ledger
from spinney.router.metrics import RouterMetrics
from spinney.router.openai import COMPLETIONS, read_request
from spinney.router.prefix_index import PrefixIndex
from spinney.router.recorder import Recorder
from spinney.router.relay import Reply
from spinney.router.retries import Retries
from spinney.router.run import Attempt, Run
from spinney.router.stories import Stories, Story
from spinney.router.upstream import FailureKind, WorkerFailure
from spinney.router.workers import Role, Stage, Worker

DECODE = Worker("d0", "http://d0", Role.DECODE)
PREFILL = Worker("p0", "http://p0", Role.PREFILL)


class Client:
    """What a client was told; set *hold* to have it not read."""

    def __init__(self) -> None:
        self.told: list[Any] = []
        self.hold: asyncio.Event | None = None

    async def send(self, message: Any) -> None:
        if self.hold is not None:
            await self.hold.wait()
        self.told.append(message)

    @property
    def status(self) -> int:
        return int(self.told[0]["status"])

    @property
    def headers(self) -> dict[str, str]:
        return {name.decode(): value.decode() for name, value in self.told[0]["headers"]}

    @property
    def error(self) -> Any:
        return json.loads(self.told[1]["body"])["error"]


def a_run(client: Client | None = None, *, number: int = 1, age_s: float = 0.0, **body: Any) -> Run:
    """Return a request that came *age_s* ago and is in its attempt *number*; needs a loop."""
    asked = {"model": "m", "prompt": "x", "stream": True} | body
    inbound = read_request(COMPLETIONS, json.dumps(asked).encode())
    now_s = asyncio.get_running_loop().time()
    story = Story("r", COMPLETIONS, "m", 1, stream=True, came_at=0.0)
    reply = Reply((client or Client()).send)
    run = Run("r", inbound, {}, reply, story, now_s - age_s)
    run.attempt = Attempt(number, chosen_s=now_s, asked_s=now_s)
    return run


def a_failure(
    kind: FailureKind | int, *, code: str = "", stage: Stage = Stage.DECODE
) -> WorkerFailure:
    """Return a failure of that kind, or an answer of that status."""
    worker = DECODE if stage is Stage.DECODE else PREFILL
    if isinstance(kind, FailureKind):
        return WorkerFailure(worker, stage, kind, "told to")
    error = {"message": "told to", "code": code} if code else {"message": "told to"}
    return WorkerFailure.refusal(worker, stage, kind, json.dumps({"error": error}).encode())


class Aftermath:
    """What follows failures, and what was noted of it."""

    def __init__(self, **limits: Any) -> None:
        self.limits = Limits(**limits)
        self.faults = Faults(self.limits)
        self.forgotten: list[str] = []
        cache = CacheView(PrefixIndex(100), BlockIndex(), (), self.forgotten.append)
        self.registry = CollectorRegistry()
        recorder = Recorder(RouterMetrics(self.registry, Ledger()), Stories(self.limits))
        self.retries = Retries(self.faults, cache, recorder, limits=self.limits)

    def avoided(self) -> frozenset[str]:
        return self.faults.avoided(asyncio.get_running_loop().time())
