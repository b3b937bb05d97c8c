"""The model that ships: its files are complete, and it answers in words and then stops."""

from __future__ import annotations

import importlib
import itertools
import json
import random
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from safetensors import safe_open

import spinney.engine
from spinney.engine.checkpoint import load_checkpoint
from spinney.engine.executor import Batch, SequenceStep
from spinney.engine.numpy_executor import NumpyExecutor
from spinney.engine.tokenizer import TemplateError, load_tokenizer

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import ModuleType

    from spinney.engine.tokenizer import Tokenizer

ROOT = Path(__file__).parents[2]
DEMO = Path(spinney.engine.__file__).parent / "models" / "demo"
MAX_BYTES = 8_000_000
POSITIONS = 2048
BLOCK = 16


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer(DEMO)


@pytest.fixture(scope="module")
def executor() -> NumpyExecutor:
    checkpoint = load_checkpoint(DEMO)
    return NumpyExecutor(checkpoint, num_blocks=POSITIONS // BLOCK, block_size=BLOCK)


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The corpus generator, which is no part of the package."""
    monkeypatch.syspath_prepend(str(ROOT))
    return importlib.import_module("tools.demo_model.corpus")


def user(content: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": content}]


def answer(
    executor: NumpyExecutor,
    tokenizer: Tokenizer,
    messages: Sequence[dict[str, str]],
    limit: int = 220,
) -> str:
    """Return the greedy answer; fail when it does not end within *limit* tokens."""
    ids = tokenizer.encode(tokenizer.render_chat(messages), add_special_tokens=False)
    blocks = range(executor.num_blocks)
    pending, start, found = ids, 0, []
    while len(found) < limit:
        logits = executor.step(Batch((SequenceStep(pending, start, blocks, True),)))[0]
        assert np.isfinite(logits).all()
        token = int(logits.argmax())
        if token in tokenizer.eos_token_ids:
            return tokenizer.decode(found)
        found.append(token)
        pending, start = [token], start + len(pending)
    raise AssertionError(f"no end after {limit} tokens: {tokenizer.decode(found)}")


def test_the_directory_is_complete_and_small() -> None:
    names = {path.name for path in DEMO.iterdir()}
    assert names == {
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert sum(path.stat().st_size for path in DEMO.iterdir()) < MAX_BYTES


def test_the_weights_are_half_precision_and_of_the_configured_shapes() -> None:
    with safe_open(DEMO / "model.safetensors", "numpy") as file:
        tensors = [file.get_tensor(name) for name in file.keys()]  # noqa: SIM118 - not a dict
    assert {tensor.dtype for tensor in tensors} == {np.dtype(np.float16)}
    assert all(np.isfinite(tensor).all() for tensor in tensors)
    config = load_checkpoint(DEMO).config
    assert config.max_position_embeddings == POSITIONS
    card = (DEMO / "README.md").read_text("utf-8")
    assert f"{sum(tensor.size for tensor in tensors):,} parameters" in card


@pytest.mark.parametrize(
    "text",
    [
        "What is a spinney?",
        "  spaces \n\n and\ttabs  ",
        "Grüße aus dem Wäldchen – ¿qué tal?",
        "小さな森 🌳🌲 лес",
        "\x00\x7f ﷽ e\u0301",
        "",
    ],
    ids=["english", "white space", "latin", "other scripts", "oddities", "empty"],
)
def test_any_text_survives_the_tokenizer(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_an_english_word_is_about_one_token(tokenizer: Tokenizer) -> None:
    text = "The decode worker pulls the KV blocks and writes the answer, one token at a time."
    assert len(tokenizer.encode(text)) <= 1.3 * len(text.split())


def test_the_end_of_a_turn_is_one_token_and_ends_generation(tokenizer: Tokenizer) -> None:
    (end,) = tokenizer.encode("<|end|>")
    generation = json.loads((DEMO / "generation_config.json").read_text("utf-8"))
    assert generation["eos_token_id"] == end
    assert tokenizer.eos_token_ids == {end}
    assert all(
        len(tokenizer.encode(f"<|{role}|>")) == 1 for role in ("system", "user", "assistant")
    )


def test_the_chat_template_renders_all_roles(tokenizer: Tokenizer) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": " What is rain?\n"},
        {"role": "assistant", "content": "Water."},
    ]
    want = "<|system|>Be brief.<|end|><|user|>What is rain?<|end|><|assistant|>Water.<|end|>"
    assert tokenizer.render_chat(messages, add_generation_prompt=False) == want
    assert tokenizer.render_chat(messages[:2]) == want.removesuffix("Water.<|end|>")


def test_the_chat_template_refuses_an_unknown_role(tokenizer: Tokenizer) -> None:
    with pytest.raises(TemplateError, match="system, user and assistant, not tool"):
        tokenizer.render_chat([{"role": "tool", "content": "42"}])


def test_the_model_is_asked_in_the_form_it_was_trained_on(
    tokenizer: Tokenizer, tool: ModuleType
) -> None:
    render = importlib.import_module("tools.demo_model.tokenizer").render
    chats = [
        document.messages
        for document in itertools.islice(tool.Corpus(random.Random(3)).documents(), 200)
        if document.messages[0].role != "text"
    ]
    assert chats
    for chat in chats:
        trained = "".join(piece for piece, _ in render(chat))
        messages = [{"role": message.role, "content": message.content} for message in chat]
        assert tokenizer.render_chat(messages, add_generation_prompt=False) == trained


def test_the_corpus_is_a_function_of_its_seed(tool: ModuleType) -> None:
    def some(seed: int) -> list[Any]:
        return list(itertools.islice(tool.Corpus(random.Random(seed)).documents(), 300))

    assert some(1) == some(1)
    assert some(1) != some(2)


def test_no_markup_of_the_generator_reaches_the_corpus(tool: ModuleType) -> None:
    for document in itertools.islice(tool.Corpus(random.Random(5)).documents(), 3000):
        for message in document.messages:
            assert message.content.strip()
            assert not re.search(r"[{}|$*#%]|  ", message.content), message
            if message.role == "assistant":
                assert message.content[-1] in '.!?"', message


QUESTIONS = [
    ("What is a spinney?", "small wood"),
    ("What is Spinney?", "prefill and decode as separate services"),
    ("Why split prefill and decode?", "Prefill needs fast arithmetic and decode needs fast memory"),
    ("what is prefill", "reads all tokens of the prompt at once"),
    ("What is decode?", "one token at a time"),
    ("What is a KV block?", "keys and values of a few tokens"),
    ("What does TTFT stand for?", "time to first token"),
    ("What is a gang?", "start together or not at all"),
    ("Why should workers sit in one rack?", "the network is short and fast"),
    ("What happens when a worker dies?", "A controller makes a new pod"),
    ("Hello!", "Hello!"),
    ("Who are you?", "demo model of Spinney"),
    ("What does a hedgehog eat?", "beetles, slugs and worms"),
    ("What is a hammer used for?", "to drive nails into wood"),
    ("Why does it rain?", "clouds"),
    ("What is the capital of Portugal?", "I do not know that."),
]


@pytest.mark.parametrize(("question", "words"), QUESTIONS, ids=[item[0] for item in QUESTIONS])
def test_a_question_is_answered_and_the_answer_ends(
    executor: NumpyExecutor, tokenizer: Tokenizer, question: str, words: str
) -> None:
    assert words in answer(executor, tokenizer, user(question))


def test_a_story_is_told_about_the_animal_asked_for(
    executor: NumpyExecutor, tokenizer: Tokenizer
) -> None:
    story = answer(executor, tokenizer, user("Tell me a story about a fox."))
    assert " fox " in story
    assert story.count("Bramble") >= 3
    assert story.count(".") >= 6


def test_a_wish_for_one_sentence_is_kept(executor: NumpyExecutor, tokenizer: Tokenizer) -> None:
    messages = [{"role": "system", "content": "Answer in one sentence."}, *user("What is decode?")]
    said = answer(executor, tokenizer, messages)
    assert said.count(".") == 1
    assert "one token at a time" in said


def test_a_question_behind_a_long_text_is_still_answered(
    executor: NumpyExecutor, tokenizer: Tokenizer, tool: ModuleType
) -> None:
    notes = tokenizer.encode(tool.Corpus(random.Random(11)).notes(48))
    assert len(notes) > 1500
    system = f"You are a helpful assistant. Here are some notes.\n{tokenizer.decode(notes[:1500])}"
    messages = [{"role": "system", "content": system}, *user("What is a KV block?")]
    assert "keys and values" in answer(executor, tokenizer, messages)
