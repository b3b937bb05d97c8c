"""Text to tokens and back, and conversations to prompts, as the model directory says.

Chat templates come from strangers, so they run in Jinja's sandbox. Invariant: a template's fault
is the caller's or the directory's (`TemplateError`, BadInputError), never a crash of the server.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer as RawTokenizer

from spinney.engine.checkpoint import read_json
from spinney.engine.model import token_id_list
from spinney.errors import BadInputError, SpinneyError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path


class TemplateError(SpinneyError):
    """The chat template refuses these messages, or there is no template."""


class Tokenizer:
    """The tokenizer of a model directory."""

    def __init__(
        self,
        raw: RawTokenizer,
        *,
        eos_token_ids: frozenset[int],
        special_texts: Mapping[str, str],
        chat_template: str | None,
        where: str,
    ) -> None:
        self._raw = raw
        self.eos_token_ids = eos_token_ids
        self._special_texts = dict(special_texts)
        self._template = None if chat_template is None else _compile(chat_template, where)
        self._where = where

    @property
    def vocab_size(self) -> int:
        """Tokens, added ones included."""
        return int(self._raw.get_vocab_size(with_added_tokens=True))

    @property
    def has_chat_template(self) -> bool:
        """Whether `render_chat` can work."""
        return self._template is not None

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Return the token ids of *text*."""
        ids: list[int] = self._raw.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Return the text of *token_ids*."""
        text: str = self._raw.decode(token_ids, skip_special_tokens=skip_special_tokens)
        return text

    def token_text(self, token_id: int) -> str:
        """Return the text of one token alone, special tokens included."""
        return self.decode([token_id], skip_special_tokens=False)

    def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> str:
        """Return the prompt for *messages*; raise TemplateError when they do not fit."""
        if self._template is None:
            raise TemplateError(
                f"{self._where} has no chat template; use /v1/completions, or add "
                f"chat_template.jinja to the model directory"
            )
        try:
            return self._template.render(
                **self._special_texts,
                messages=[dict(message) for message in messages],
                tools=tools,
                add_generation_prompt=add_generation_prompt,
                **(extra or {}),
            )
        except (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError) as error:
            raise TemplateError(f"the chat template refuses these messages: {error}") from error


def load_tokenizer(directory: Path) -> Tokenizer:
    """Read ``tokenizer.json`` and what stands beside it; raise BadInputError when it is wrong."""
    path = directory / "tokenizer.json"
    if not path.is_file():
        raise BadInputError(f"{path}: missing; the tokenizer is in it")
    try:
        raw = RawTokenizer.from_file(str(path))
    except Exception as error:  # noqa: BLE001 - the library raises bare Exception
        raise BadInputError(f"{path}: cannot be read as a tokenizer: {error}") from None
    config = _optional_json(directory / "tokenizer_config.json")
    texts = {
        key: text
        for key in ("bos_token", "eos_token", "unk_token", "pad_token")
        if (text := _token_text(config.get(key))) is not None
    }
    return Tokenizer(
        raw,
        eos_token_ids=_eos_token_ids(directory, raw, texts),
        special_texts=texts,
        chat_template=_chat_template(directory, config),
        where=str(directory),
    )


def _optional_json(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _token_text(value: object) -> str | None:
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _eos_token_ids(directory: Path, raw: RawTokenizer, texts: Mapping[str, str]) -> frozenset[int]:
    """Collect the ends of text: of the generation, the model and the tokenizer configuration."""
    found: set[int] = set()
    for name in ("generation_config.json", "config.json"):
        found.update(token_id_list(_optional_json(directory / name).get("eos_token_id")))
    if "eos_token" in texts:
        token = raw.token_to_id(texts["eos_token"])
        found.update(() if token is None else (token,))
    return frozenset(found)


def _chat_template(directory: Path, config: Mapping[str, Any]) -> str | None:
    path = directory / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    template = config.get("chat_template")
    if isinstance(template, list):
        named = {entry["name"]: entry["template"] for entry in template}
        template = named.get("default")
    return template if isinstance(template, str) else None


def _compile(template: str, where: str) -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = _raise_exception
    environment.filters["tojson"] = _to_json
    try:
        return environment.from_string(template)
    except jinja2.TemplateError as error:
        raise BadInputError(f"{where}: the chat template cannot be compiled: {error}") from None


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _to_json(value: object, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)
