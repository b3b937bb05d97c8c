"""Text that is shown: whole characters, and nothing of a stop string."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spinney.engine.text import Detokenizer, StopStrings
from spinney.engine.tokenizer import TemplateError, load_tokenizer

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

SAMPLES = [
    "Grüße aus Köln",
    "日本語のテキスト",
    "🦊🦔 and 👩\u200d👩\u200d👧",
    "a  b\n\tc",
    "x = {'k': [1, 2]}",
]


def of_bytes(tokens: Sequence[int]) -> str:
    return bytes(tokens).decode("utf-8", errors="replace")


@pytest.mark.parametrize("text", SAMPLES)
def test_pieces_are_whole_characters_and_join_to_the_text(text: str) -> None:
    detokenizer = Detokenizer(of_bytes)
    pieces = [detokenizer.push(byte) for byte in text.encode()]
    assert "\ufffd" not in "".join(pieces)
    assert "".join(pieces) + detokenizer.flush() == text


@pytest.mark.parametrize("text", SAMPLES)
def test_pieces_of_a_real_tokenizer_join_to_the_text(tiny_model: Path, text: str) -> None:
    tokenizer = load_tokenizer(tiny_model)
    tokens = tokenizer.encode(text, add_special_tokens=False)
    detokenizer = Detokenizer(tokenizer.decode)
    pieces = [detokenizer.push(token) for token in tokens]
    assert all("\ufffd" not in piece for piece in pieces)
    assert "".join(pieces) + detokenizer.flush() == text


@given(st.binary(max_size=30))
def test_any_bytes_are_shown_in_the_end(data: bytes) -> None:
    detokenizer = Detokenizer(of_bytes)
    shown = "".join(detokenizer.push(byte) for byte in data) + detokenizer.flush()
    assert shown == of_bytes(data)


def test_half_a_character_at_the_end_is_shown_when_all_is_over() -> None:
    detokenizer = Detokenizer(of_bytes)
    assert [detokenizer.push(byte) for byte in "ab€".encode()[:-1]] == ["a", "b", "", ""]
    assert detokenizer.flush() == "\ufffd"


def test_a_stop_string_across_pieces_is_not_shown() -> None:
    stops = StopStrings(["END"])
    assert [stops.push(piece).text for piece in ("one E", "N", "X E")] == ["one ", "", "ENX "]
    found = stops.push("ND and more")
    assert (found.text, found.stop) == ("", "END")


def test_what_was_held_back_is_shown_when_no_stop_came() -> None:
    stops = StopStrings(["\n\n"])
    assert stops.push("a\n").text == "a"
    assert stops.flush() == "\n"


def test_the_stop_string_is_included_when_asked_for() -> None:
    found = StopStrings(["b"], include=True).push("abc")
    assert (found.text, found.stop) == ("ab", "b")


def test_the_stop_string_that_completes_first_wins() -> None:
    found = StopStrings(["bcd", "c"]).push("abcd")
    assert (found.text, found.stop) == ("ab", "c")


@given(
    pieces=st.lists(st.text("ab", max_size=4), max_size=8),
    stops=st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
)
def test_shown_text_is_the_whole_up_to_the_first_stop(pieces: list[str], stops: list[str]) -> None:
    checker, shown, stopped = StopStrings(stops), "", None
    for piece in pieces:
        found = checker.push(piece)
        shown += found.text
        if found.stop is not None:
            stopped = found.stop
            break
    whole = "".join(pieces)
    if stopped is None:
        assert shown + checker.flush() == whole
        assert not any(stop in whole for stop in stops)
    else:
        assert whole.startswith(shown + stopped)
        assert not any(stop in shown for stop in stops)


def test_a_chat_is_rendered_by_the_models_template(tiny_model: Path) -> None:
    tokenizer = load_tokenizer(tiny_model)
    text = tokenizer.render_chat([{"role": "user", "content": "hi"}])
    assert text == "<s><|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


def test_a_template_can_refuse_and_cannot_reach_out(tmp_path: Path, tiny_model: Path) -> None:
    for name in ("tokenizer.json", "config.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((tiny_model / name).read_bytes())
    template = tmp_path / "chat_template.jinja"
    messages = [{"role": "user", "content": "hi"}]
    template.write_text("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(TemplateError, match="roles must alternate"):
        load_tokenizer(tmp_path).render_chat(messages)
    template.write_text("{{ messages.__class__.__mro__[1].__subclasses__() }}")
    with pytest.raises(TemplateError):
        load_tokenizer(tmp_path).render_chat(messages)
    template.write_text("{{ messages | tojson }}{{ eos_token }}")
    assert load_tokenizer(tmp_path).render_chat(messages).endswith('"hi"}]<|im_end|>')
