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
