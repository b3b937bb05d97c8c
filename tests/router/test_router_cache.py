"""What the router believes of caches: events over real sockets, audits, and no pinned traffic."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.kv.test_prefix_index import named, stored
from tests.router.fake_workers import fleet, until

from spinney.kv.event_stream import EventPublisher, Gap, subscribe
from spinney.kv.events import KVEventBatch
from spinney.kv.prefix_index import BlockIndex
from spinney.router.cache_view import PREDICTION_S, RESYNC_BELOW, CacheView
from spinney.router.openai import CHAT_COMPLETIONS, COMPLETIONS, read_request
from spinney.router.prefix_index import PrefixIndex
from spinney.router.prompt_tokens import LONG_BYTES, prompt_tokens
from spinney.router.workers import parse_worker

TOKENS = list(range(1, 129))
BODY = {"prompt": TOKENS, "max_tokens": 3, "stream": True}


class Feeds:
    """Events that a test writes, by endpoint."""

    def __init__(self):
        self.queues = {}
        self.begun = []

    async def follow(self, endpoint, _replay):
        self.begun.append(endpoint)
        queue = self.queues[endpoint] = asyncio.Queue()
        while True:
            item = await queue.get()
            if isinstance(item, Exception):
                raise item
            yield item

    async def say(self, worker, *events):
        endpoint = f"events-of-{worker}"
        await until(lambda: endpoint in self.queues, "somebody listens")
        self.queues[endpoint].put_nowait(KVEventBatch(0.0, list(events)))

    def fail(self, worker, item):
        self.queues[f"events-of-{worker}"].put_nowait(item)


def test_a_prompt_goes_to_the_worker_whose_events_say_that_it_has_it():
    async def main():
        feeds = Feeds()
        async with fleet("p p p p d", parts={"subscribe": feeds.follow}) as world:
            await feeds.say("p2", stored(tuple(TOKENS), 16, named("p2")))
            await until(lambda: world.router.blocks.blocks("p2") == 8, "the events arrive")
            for number in range(5):
                body = BODY | {"prompt": [*TOKENS, 500 + number]}
                said = await world.ask(body)
                assert said.headers["x-spinney-prefill-worker"] == "p2"
            assert await world.metric("kv_events_total") == 1

    asyncio.run(main())


@pytest.mark.parametrize("loss", [Gap(), RuntimeError("the socket broke")], ids=["gap", "error"])
def test_lost_events_void_what_the_worker_said(loss):
    async def main():
        feeds = Feeds()
        async with fleet("p p d", parts={"subscribe": feeds.follow}) as world:
            await feeds.say("p0", stored(tuple(TOKENS), 16, named("p0")))
            await feeds.say("p1", stored(tuple(TOKENS), 16, named("p1")))
            await until(lambda: len(world.router.feeds.heard) == 2, "the events arrive")
            feeds.fail("p0", loss)
            await until(lambda: not world.router.blocks.blocks("p0"), "p0 is forgotten")
            assert world.router.blocks.blocks("p1") == 8

    asyncio.run(main())


def test_a_worker_that_broke_off_is_asked_for_its_events_again():
    async def main():
        feeds = Feeds()
        async with fleet("p d", parts={"subscribe": feeds.follow}) as world:
            await feeds.say("p0", stored(tuple(TOKENS), 16, named("p0")))
            await until(lambda: world.router.blocks.blocks("p0") == 8, "the events arrive")
            world.prefill[0].fault, world.prefill[0].faults_left = "die", 1
            assert (await world.ask(BODY)).status == 200
            assert world.router.blocks.blocks("p0") == 0
            await until(lambda: feeds.begun.count("events-of-p0") == 2, "a new subscription")

    asyncio.run(main())


def test_a_wrong_index_ends_in_load_balancing():
    async def main():
        feeds = Feeds()
        async with fleet("p p p d", parts={"subscribe": feeds.follow}, max_attempts=2) as world:
            for worker in world.prefill:
                worker.cached_part = 0.0

            async def poison():
                await feeds.say("p0", stored(tuple(TOKENS), 16, named("p0")))

            await poison()
            await until(lambda: world.router.blocks.blocks("p0") == 8, "the events arrive")
            went = []
            for number in range(60):
                body = BODY | {"prompt": [*TOKENS, *range(300 + number, 330 + number)]}
                went.append((await world.ask(body)).headers["x-spinney-prefill-worker"])
                if not world.router.blocks.blocks("p0"):
                    await poison()
            assert world.router.cache.trust("p0") < RESYNC_BELOW
            assert set(went[-30:]) == {"p0", "p1", "p2"}
            assert await world.metric("cache_audits_total", outcome="wrong") > 3

    asyncio.run(main())


def view(blocks=None, heard=("a",), resync=lambda _w: None):
    return CacheView(PrefixIndex(100), blocks or BlockIndex(), set(heard), resync)


def inbound(tokens):
    body = b'{"prompt":[%s]}' % b",".join(b"%d" % token for token in tokens)
    return read_request(COMPLETIONS, body)


def test_what_was_routed_counts_for_a_moment_until_the_events_have_to_say_it():
    seen = view()
    asked = inbound(range(1000, 1400))
    tokens = list(range(1000, 1400))
    seen.routed("a", asked, 100.0)
    seen.routed("silent", asked, 100.0)

    just_now = seen.found(asked, tokens, 100.0 + PREDICTION_S / 2)
    later = seen.found(asked, tokens, 100.0 + PREDICTION_S * 2)
    untold = seen.found(asked, None, 100.0 + PREDICTION_S * 2)

    assert just_now["a"] == just_now["silent"] > 300
    assert set(later) == {"silent"}
    assert set(untold) == {"a", "silent"}


def test_the_last_token_is_never_counted_as_cached():
    blocks = BlockIndex()
    blocks.apply("a", [stored(tuple(TOKENS), 16, named("a"))])

    assert view(blocks).found(inbound(TOKENS), TOKENS, 0.0) == {"a": 112}


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), max_size=50))
def test_trust_stays_between_nothing_and_all(audits):
    seen = view()
    for thought, real in audits:
        assert 0 <= seen.audited("a", thought, real) <= 1
    assert seen.believed({"a": 1000, "b": 1000})["b"] == 1000


def test_trust_goes_when_figures_are_wrong_and_comes_back_when_they_are_right():
    resynced = []
    seen = view(resync=resynced.append)
    for _ in range(30):
        seen.audited("a", 0.9, 0.0)
    assert seen.trust("a") < 0.2
    assert seen.believed({"a": 1000, "b": 1000}) == {"a": 0, "b": 1000}
    assert resynced == ["a"]
    for _ in range(30):
        seen.audited("a", 0.9, 0.9)
    assert seen.trust("a") == 1.0
    seen.audited("a", 0.2, 0.9)
    assert seen.trust("a") == 1.0


def test_real_sockets_carry_events_and_replays_into_the_index():
    async def main():
        publisher = EventPublisher("tcp://127.0.0.1:*", "tcp://127.0.0.1:*")
        replays = asyncio.create_task(publisher.serve_replays())
        await publisher.publish(0.0, [stored(tuple(TOKENS), 16, named("w"))])

        def follow(_endpoint, _replay):
            return subscribe(publisher.endpoint, publisher.replay_endpoint)

        try:
            async with fleet("p d", parts={"subscribe": follow}) as world:
                blocks = world.router.blocks
                await until(lambda: blocks.blocks("p0") == 8, "what was said before comes too")
                more = [*TOKENS, *range(200, 216)]
                await publisher.publish(1.0, [stored(tuple(more), 16, named("w"), start=8)])
                await until(lambda: blocks.blocks("p0") == 9, "and what is said now")
        finally:
            replays.cancel()
            await asyncio.gather(replays, return_exceptions=True)
            publisher.close()

    asyncio.run(main())


# Tokens of a prompt


class Spelling:
    """A tokenizer for which a character is a token."""

    def encode(self, text, *, add_special_tokens=True):
        return [0] * add_special_tokens + [ord(c) for c in text]

    def render_chat(self, messages, *, add_generation_prompt=True, tools=None, extra=None):
        lines = [f"{m['role']}:{m['content']}" for m in messages]
        return "|".join([*lines, "assistant:"] if add_generation_prompt else lines)


def spelled(text):
    return [ord(c) for c in text]


@pytest.mark.parametrize(
    ("path", "body", "want"),
    [
        (COMPLETIONS, b'{"prompt":"ab"}', [0, 97, 98]),
        (COMPLETIONS, b'{"prompt":"ab","add_special_tokens":false}', [97, 98]),
        (COMPLETIONS, b'{"prompt":[5,6]}', [5, 6]),
        (COMPLETIONS, b'{"prompt":["a","b"]}', None),
        (
            CHAT_COMPLETIONS,
            b'{"messages":[{"role":"user","content":"hi"}]}',
            spelled("user:hi|assistant:"),
        ),
        (
            CHAT_COMPLETIONS,
            b'{"messages":[{"role":"user","content":[{"type":"text","text":"hi"}]}]}',
            spelled("user:hi|assistant:"),
        ),
        (
            CHAT_COMPLETIONS,
            b'{"messages":[{"role":"user","content":[{"type":"image_url"}]}]}',
            None,
        ),
        (CHAT_COMPLETIONS, b'{"messages":[{"content":"no role"}]}', None),
        (COMPLETIONS, b'{"prompt":"%s"}' % (b"x" * LONG_BYTES), [0, *[120] * LONG_BYTES]),
    ],
)
def test_prompts_become_the_tokens_that_workers_make_of_them(path, body, want):
    found = asyncio.run(prompt_tokens(read_request(path, body), Spelling()))

    assert found == want


def test_without_a_tokenizer_text_stays_an_estimate():
    asked = read_request(COMPLETIONS, b'{"prompt":"ab"}')

    assert asyncio.run(prompt_tokens(asked, None)) is None


def test_a_worker_on_the_command_line_can_name_where_its_events_are():
    found = parse_worker("prefill:p=http://h:1,kv-events=tcp://h:2,kv-replay=tcp://h:3")

    assert (found.url, found.kv_events, found.kv_replay) == (
        "http://h:1",
        "tcp://h:2",
        "tcp://h:3",
    )
