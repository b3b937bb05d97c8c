"""OpenAI's own client against router and workers as processes: what its users really send.

Each test runs against ``spinney mock`` and ``spinney engine``, served by one worker and handed
over from one to another. docs/openai.md is this page in words.
"""

from __future__ import annotations

import asyncio
import json
import urllib.error
import urllib.request

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from tests.router.real_stack import real_stack

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("openai-stack")]
HELLO = [{"role": "user", "content": "Tell me of a small wood. " * 6}]
GREEDY = {"model": "demo", "temperature": 0, "max_tokens": 8, "extra_body": {"ignore_eos": True}}
PROMPT = "A spinney is a small wood, and a wood has many trees. " * 3


class Served:
    """One stack and clients for it."""

    def __init__(self, stack, runner, roles):
        self.stack, self.run, self.split = stack, runner.run, roles != "b"
        self.base = stack.url + "/v1"
        self.client = OpenAI(base_url=self.base, api_key="k", max_retries=0)

    def chat(self, **fields):
        return self.client.chat.completions.create(**{"messages": HELLO} | GREEDY | fields)

    def complete(self, **fields):
        return self.client.completions.create(**{"prompt": PROMPT} | GREEDY | fields)

    def leases(self):
        names = [name for name in self.stack.programs if name != "router"]
        counts = [self.run(self.stack.samples(name)) for name in names]
        return sum(v for c in counts for k, v in c.items() if k.startswith("spinney:kv_leases{"))

    def raw(self, path, body=None, method=None, **headers):
        """Return status, headers and body of a request that no client library would send."""
        request = urllib.request.Request(self.stack.url + path, body, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=20) as said:
                return said.status, said.headers, said.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.headers, error.read()


@pytest.fixture(scope="module", params=["mock-b", "mock-p d", "engine-b", "engine-p d"])
def served(request, tmp_path_factory):
    kind, roles = request.param.split("-")
    pace = ("--speed-up", "5") if kind == "mock" else ()
    with asyncio.Runner() as runner:
        folder = tmp_path_factory.mktemp("stack")
        context = real_stack(folder, roles, kind=kind, flags=pace)
        made = Served(runner.run(context.__aenter__()), runner, roles)
        yield made
        made.client.close()
        runner.run(context.__aexit__(None, None, None))


def text_of(chunks):
    return "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)


def test_a_chat_is_the_same_streamed_and_whole_and_split_as_it_should_be(served):
    raw = served.client.chat.completions.with_raw_response.create(messages=HELLO, **GREEDY)
    whole = raw.parse()
    chunks = list(served.chat(stream=True))

    assert raw.headers["x-spinney-mode"] == ("disaggregated" if served.split else "aggregated")
    assert text_of(chunks) == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason == "length"
    assert len({chunk.id for chunk in chunks}) == 1
    assert whole.usage.completion_tokens == 8
    assert whole.usage.prompt_tokens + 8 == whole.usage.total_tokens


def test_usage_ends_a_stream_when_it_is_asked_for_and_only_then(served):
    asked = list(served.chat(stream=True, stream_options={"include_usage": True}))
    silent = list(served.chat(stream=True))
    declined = list(served.chat(stream=True, stream_options={"include_usage": False}))

    assert asked[-1].choices == []
    assert asked[-1].usage.completion_tokens == 8
    assert all(chunk.usage is None for chunk in asked[:-1])
    for chunks in (silent, declined):
        assert all(chunk.choices and chunk.usage is None for chunk in chunks)
    assert text_of(asked) == text_of(silent) == text_of(declined)


def test_the_async_client_gets_what_the_sync_one_gets(served):
    async def ask():
        async with AsyncOpenAI(base_url=served.base, api_key="k", max_retries=0) as client:
            asking = [
                client.chat.completions.create(messages=HELLO, stream=True, **GREEDY)
                for _ in range(4)
            ]
            streams = await asyncio.gather(*asking)
            return [text_of([chunk async for chunk in stream]) for stream in streams]

    assert set(served.run(ask())) == {served.chat().choices[0].message.content}


@pytest.mark.parametrize("stream", [False, True])
def test_several_choices_are_computed_by_one_worker_and_leave_no_lease(served, stream):
    fields = {"n": 3, "temperature": 1.0, "seed": 7, "stream": stream}
    if stream:
        texts = ["", "", ""]
        for chunk in served.chat(**fields):
            for choice in chunk.choices:
                texts[choice.index] += choice.delta.content or ""
    else:
        raw = served.client.chat.completions.with_raw_response.create(
            messages=HELLO, **GREEDY | fields
        )
        assert raw.headers["x-spinney-mode"] == ("local-prefill" if served.split else "aggregated")
        answer = raw.parse()
        assert [choice.index for choice in answer.choices] == [0, 1, 2]
        assert answer.usage.completion_tokens == 24
        texts = [choice.message.content for choice in answer.choices]

    assert all(texts)
    assert len(set(texts)) > 1
    assert served.leases() == 0


def test_several_prompts_are_answered_in_order(served):
    alone = [served.complete(prompt=prompt).choices[0].text for prompt in ("one", "two")]
    answer = served.complete(prompt=["one", "two"])

    assert [choice.text for choice in answer.choices] == alone
    assert served.leases() == 0


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        ("completions", {"best_of": 2}, "best_of"),
        ("completions", {"echo": True}, "echo"),
        ("completions", {"suffix": "the end"}, "suffix"),
        ("chat", {"response_format": {"type": "json_object"}}, "response_format"),
        ("chat", {"tools": [], "tool_choice": "required"}, "tool_choice"),
        ("chat", {"top_logprobs": 3}, "top_logprobs"),
        ("chat", {"temperature": -1}, "temperature"),
        ("chat", {"max_tokens": 10_000_000}, "max_tokens"),
    ],
)
def test_what_a_worker_cannot_do_is_refused_by_name(served, path, fields, param):
    with pytest.raises(openai.BadRequestError) as refused:
        served.complete(**fields) if path == "completions" else served.chat(**fields)

    assert refused.value.param == param
    assert refused.value.type == "invalid_request_error"
    assert refused.value.request_id
    assert served.leases() == 0


def test_a_stop_string_ends_an_answer_before_it(served):
    whole = served.complete(max_tokens=24).choices[0].text
    stop = whole[len(whole) // 2 :][:4]
    wanted = whole[: whole.index(stop)]

    for given in (stop, [stop, "never in it"]):
        choice = served.complete(max_tokens=24, stop=given).choices[0]
        assert (choice.text, choice.finish_reason) == (wanted, "stop")
    chunks = list(served.complete(max_tokens=24, stop=[stop], stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == wanted


def test_a_seed_repeats_an_answer(served):
    def sampled(seed):
        return served.chat(temperature=1.0, seed=seed).choices[0].message.content

    assert sampled(5) == sampled(5)
    assert len({sampled(seed) for seed in range(4)}) > 1


def test_logprobs_come_whole_and_streamed(served):
    whole = served.chat(logprobs=True, top_logprobs=2).choices[0].logprobs.content
    chunks = list(served.chat(logprobs=True, top_logprobs=2, stream=True))
    streamed = [
        entry for c in chunks for entry in ((c.choices[0].logprobs or None) and
        c.choices[0].logprobs.content) or []
    ]  # fmt: skip
    text = served.complete(logprobs=2).choices[0].logprobs

    assert len(whole) == len(streamed) == len(text.token_logprobs) == 8
    assert [e.token for e in whole] == [e.token for e in streamed]
    assert all(len(entry.top_logprobs) == 2 for entry in whole)


def test_the_newer_name_of_the_token_limit_counts(served):
    fields = {key: value for key, value in GREEDY.items() if key != "max_tokens"}
    answer = served.client.chat.completions.create(
        messages=HELLO, max_completion_tokens=3, **fields
    )
    assert answer.usage.completion_tokens == 3
    assert served.chat(max_completion_tokens=2).usage.completion_tokens == 2
    assert served.complete(max_tokens=1).usage.completion_tokens == 1


def test_tools_parts_and_what_says_nothing_to_a_model_pass_through(served):
    function = {"name": "trees", "description": "count", "parameters": {"type": "object"}}
    parts = [{"type": "text", "text": "Tell me of "}, {"type": "text", "text": "a small wood."}]
    answer = served.chat(
        messages=[{"role": "system", "content": "Be brief."}, {"role": "user", "content": parts}],
        tools=[{"type": "function", "function": function}],
        tool_choice="auto",
        user="someone",
        metadata={"team": "a"},
        store=False,
        parallel_tool_calls=False,
    )
    assert answer.choices[0].message.content
    image = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}]
    with pytest.raises(openai.BadRequestError, match="image_url") as refused:
        served.chat(messages=[{"role": "user", "content": image}])
    assert refused.value.param == "messages[0].content"


def test_models_are_listed_and_got_and_unknown_ones_are_404(served):
    assert [model.id for model in served.client.models.list()] == ["demo"]
    assert served.client.models.retrieve("demo").id == "demo"
    for ask in (
        lambda: served.client.models.retrieve("org/other"),
        lambda: served.chat(model="other"),
        lambda: served.complete(model="other", stream=True),
    ):
        with pytest.raises(openai.NotFoundError) as unknown:
            ask()
        assert (unknown.value.code, unknown.value.param) == ("model_not_found", "model")


def test_paths_that_no_worker_has_are_404(served):
    with pytest.raises(openai.NotFoundError):
        served.client.embeddings.create(model="demo", input="x")
    with pytest.raises(openai.NotFoundError):
        served.client.responses.create(model="demo", input="x")
    status, headers, body = served.raw("/v1/audio/speech", b"{}")
    assert (status, headers["x-request-id"] is not None) == (404, True)
    assert json.loads(body)["error"]["type"] == "invalid_request_error"


def test_request_ids_are_echoed_and_made_up(served):
    headers = {"x-request-id": "mine-1"}
    raw = served.client.chat.completions.with_raw_response.create(
        messages=HELLO, extra_headers=headers, **GREEDY
    )
    assert raw.headers["x-request-id"] == "mine-1"
    with pytest.raises(openai.NotFoundError) as unknown:
        served.chat(model="other", extra_headers=headers)
    assert unknown.value.request_id == "mine-1"
    assert served.chat()._request_id


@pytest.mark.parametrize(
    ("body", "status", "code", "param"),
    [
        (b"{", 400, "invalid_json", None),
        (b"\xff\xfe", 400, "invalid_json", None),
        (b"[]", 400, None, None),
        (b'{"model": "demo"}', 400, None, "messages"),
        (b'{"model": "demo", "messages": []}', 400, None, "messages"),
        (b'{"model": 3, "messages": []}', 400, None, "model"),
        (b'{"model": "demo", "messages": [{"role": "user"}], "stream": "yes"}', 400, None,
         "stream"),
    ],
    ids=["cut", "no text", "list", "no messages", "empty", "model type", "stream type"],
)  # fmt: skip
def test_bodies_that_are_no_requests_are_400_in_openais_form(served, body, status, code, param):
    found, headers, said = served.raw(
        "/v1/chat/completions", body, **{"x-request-id": "r", "content-type": "application/json"}
    )
    error = json.loads(said)["error"]

    assert (found, headers["x-request-id"]) == (status, "r")
    assert error["type"] == "invalid_request_error"
    assert error["message"]
    assert (error["code"], error["param"]) == (code, param)


def test_the_content_type_is_not_asked_for(served):
    body = json.dumps({"messages": HELLO, "max_tokens": 1}).encode()
    for kind in ("text/plain", "application/x-www-form-urlencoded"):
        status, _, said = served.raw("/v1/chat/completions", body, **{"content-type": kind})
        assert (status, json.loads(said)["usage"]["completion_tokens"]) == (200, 1)


def test_a_body_that_is_too_large_is_413_before_it_is_read(served):
    status, _, said = served.raw("/v1/chat/completions", b"{", **{"content-length": str(1 << 40)})
    assert (status, json.loads(said)["error"]["type"]) == (413, "invalid_request_error")


def test_methods_are_told_where_they_are_wrong(served):
    assert served.raw("/v1/models", method="HEAD")[0::2] == (200, b"")
    for path, method, allowed in (
        ("/v1/chat/completions", "GET", "POST"),
        ("/v1/chat/completions", "OPTIONS", "POST"),
        ("/v1/models", "DELETE", "GET, HEAD"),
    ):
        status, headers, _ = served.raw(path, method=method)
        assert (status, headers["allow"]) == (405, allowed)
