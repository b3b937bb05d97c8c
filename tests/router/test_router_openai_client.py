"""The official OpenAI client against the router."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import pytest
from openai import APIError, APIStatusError, AsyncOpenAI, NotFoundError
from tests.router.fake_workers import fleet, words

MESSAGES = [{"role": "user", "content": "hello"}]
TEXT = "".join(words({"messages": MESSAGES}))


@asynccontextmanager
async def talk(roles="p p d d"):
    async with (
        fleet(roles) as world,
        AsyncOpenAI(base_url=world.server.url + "/v1", api_key="k", max_retries=0) as client,
    ):
        yield world, client


def test_chat_whole():
    async def main():
        async with talk() as (_, client):
            return await client.chat.completions.create(model="m", messages=MESSAGES, n=1)

    answer = asyncio.run(main())

    assert answer.choices[0].message.content == TEXT
    assert answer.usage.completion_tokens == 4


def test_chat_streamed_with_usage():
    async def main():
        async with talk() as (_, client):
            stream = await client.chat.completions.create(
                model="m", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
            )
            return [chunk async for chunk in stream]

    chunks = asyncio.run(main())

    assert "".join(c.choices[0].delta.content for c in chunks if c.choices) == TEXT
    assert chunks[-1].usage.completion_tokens == 4


def test_several_choices():
    async def main():
        async with talk() as (_, client):
            return await client.chat.completions.create(model="m", messages=MESSAGES, n=3)

    assert len(asyncio.run(main()).choices) == 3


def test_completions_and_models():
    async def main():
        async with talk() as (_, client):
            answer = await client.completions.create(model="m", prompt="p", max_tokens=3)
            models = [model.id async for model in client.models.list()]
            return answer, models, await client.models.retrieve("m")

    answer, models, model = asyncio.run(main())

    assert answer.choices[0].text == "".join(words({"prompt": "p"}, 3))
    assert (models, model.id) == (["m"], "m")


def test_embeddings_and_responses_of_workers_that_have_them():
    async def main():
        async with talk("d") as (_, client):
            found = await client.embeddings.create(model="m", input=["a"], encoding_format="float")
            whole = await client.responses.create(model="m", input="a")
            stream = await client.responses.create(model="m", input="a", stream=True)
            return found, whole, [event.type async for event in stream]

    found, whole, events = asyncio.run(main())

    assert found.data[0].embedding == [0.5]
    assert whole.object == "response"
    assert events == ["response.created", "response.completed"]


def test_errors_are_the_clients_own_types():
    async def main():
        async with talk("p d d") as (world, client):
            with pytest.raises(NotFoundError) as unknown:
                await client.chat.completions.create(model="other", messages=MESSAGES)
            assert unknown.value.code == "model_not_found"
            for worker in world.decode:
                worker.fault = "die-mid-stream"
            stream = await client.chat.completions.create(model="m", messages=MESSAGES, stream=True)
            with pytest.raises(APIError, match="broke off"):
                _ = [chunk async for chunk in stream]
            for worker in world.decode:
                worker.fault = 503
            with pytest.raises(APIStatusError) as failed:
                await client.chat.completions.create(model="m", messages=MESSAGES)
            assert failed.value.status_code == 503
            assert failed.value.request_id

    asyncio.run(main())
