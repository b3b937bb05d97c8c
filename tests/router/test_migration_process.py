"""A worker is killed while it streams: real processes, and the answer is that of one."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import sys

import aiohttp
import pytest
from tests.router.fake_workers import lower
from tests.router.real_stack import real_stack

ASKED = {
    "model": "demo",
    "messages": [{"role": "user", "content": "hello"}],
    "max_tokens": 40,
    "temperature": 0,
    "ignore_eos": True,
    "stream": True,
    "stream_options": {"include_usage": True},
}
START_S = 30.0


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@contextlib.asynccontextmanager
async def process(*words):
    started = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "spinney.cmd.main", *words, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        yield started
    finally:
        if started.returncode is None:
            started.kill()
        await started.wait()


async def healthy(session, port):
    async with asyncio.timeout(START_S):
        while True:
            with contextlib.suppress(aiohttp.ClientError):
                async with session.get(f"http://127.0.0.1:{port}/health") as response:
                    if response.status == 200:
                        return
            await asyncio.sleep(0.05)


@pytest.mark.e2e
def test_an_answer_survives_the_death_of_its_worker():
    async def main():
        ports = {"d0": free_port(), "d1": free_port()}
        front = free_port()
        async with contextlib.AsyncExitStack() as stack:
            session = await stack.enter_async_context(aiohttp.ClientSession())
            mocks = {}
            flags = []
            for name, port in ports.items():
                # 20 ms a token or so: slow enough to be killed in the middle.
                started = process("mock", "--port", str(port), "--role", "decode",
                                  "--profile", "demo-cpu", "--speed-up", "0.2")  # fmt: skip
                mocks[name] = await stack.enter_async_context(started)
                flags += ["--worker", f"decode:{name}=http://127.0.0.1:{port}"]
            for port in ports.values():
                await healthy(session, port)
            router = process("router", "--port", str(front), *flags)
            await stack.enter_async_context(router)
            await healthy(session, front)
            url = f"http://127.0.0.1:{front}/v1/chat/completions"
            whole = await streamed(session, url, None)
            assert await streamed(session, url, mocks) == whole
            assert len(mocks) == 1
            assert whole[1] == "length"

    asyncio.run(main())


LONG = {
    "prompt": [(11 * at) % 1500 + 300 for at in range(900)],
    "max_tokens": 120,
    "temperature": 0,
    "frequency_penalty": 0.5,
    "ignore_eos": True,
    "stream": True,
    "return_token_ids": True,
    "stream_options": {"include_usage": True},
}


@pytest.mark.e2e
@pytest.mark.parametrize(("kind", "flags"), [("mock", ("--speed-up", "0.5")), ("engine", ())])
def test_what_was_sent_is_prefilled_elsewhere_when_a_worker_dies(kind, flags, tmp_path):
    async def main():
        async with real_stack(tmp_path, "p d d", kind=kind, flags=flags) as stack:
            found, story = await begun(stack)
            # Asked of the worker that handed over: it finished no answer before.
            body = {key: LONG[key] for key in LONG if not key.startswith("stream")}
            url = stack.programs["p0"].url + "/v1/completions"
            async with stack.session.post(url, json=body) as response:
                answer = await response.json()
            (choice,), counts = answer["choices"], answer["usage"]
            whole = choice["token_ids"], choice["text"], counts["prompt_tokens"]
            assert found == (*whole, counts["completion_tokens"])
            assert len(whole[0]) == 120
            (step,) = [each for each in story["steps"] if each["what"] == "migrated"]
            by = step["fields"]
            assert (by["resumed"], by["mode"], by["prefill_worker"]) == (
                True,
                "disaggregated",
                "p0",
            )
            (report,) = [each for each in story["steps"] if each["what"] == "handed over"]
            assert report["fields"]["report"]["outcome"] == "pulled"
            samples = await stack.samples()
            assert samples['spinney_router_migrations_total{outcome="resumed"}'] == 1
            assert samples['spinney_router_handovers_total{outcome="offered"}'] == 2

    asyncio.run(main())


async def begun(stack):
    """Return token ids, text and counts of an answer whose worker is killed, and its story."""
    events, ident, kill = [], "begun", True
    url, body = stack.url + "/v1/completions", LONG | {"model": "demo"}
    async with stack.session.post(url, json=body, headers={"x-request-id": ident}) as response:
        name = lower(response.headers)["x-spinney-decode-worker"]
        async for line in response.content:
            if line.startswith(b"data: "):
                events.append(line[6:].strip())
            if kill and len(events) == 5:
                stack.programs[name].process.kill()
                kill = False
    assert events.pop() == b"[DONE]"
    read = [json.loads(event) for event in events]
    choices = [choice for event in read for choice in event["choices"]]
    ids = [token for choice in choices for token in choice.get("token_ids") or []]
    text = "".join(choice["text"] for choice in choices)
    counts = read[-1]["usage"]["prompt_tokens"], read[-1]["usage"]["completion_tokens"]
    async with stack.session.get(f"{stack.url}/debug/requests/{ident}") as response:
        return (ids, text, *counts), await response.json()


async def streamed(session, url, victims):
    """Return text, end and usage; kill the worker that answers once five events came."""
    events = []
    async with session.post(url, json=ASKED) as response:
        name = lower(response.headers)["x-spinney-decode-worker"]
        async for line in response.content:
            if line.startswith(b"data: "):
                events.append(line[6:].strip())
            if victims and len(events) == 5:
                victims.pop(name).kill()
                victims = None
    assert events.pop() == b"[DONE]"
    read = [json.loads(event) for event in events]
    assert len({event["id"] for event in read}) == 1
    choices = [choice for event in read for choice in event["choices"]]
    text = "".join(choice["delta"].get("content", "") for choice in choices)
    usage = read[-1]["usage"]
    counts = usage["prompt_tokens"], usage["completion_tokens"]
    return text, choices[-1]["finish_reason"], counts
