"""Builds the JSON of answers from the updates of sequences.

One `Choice` per sequence gathers what has been told; the same gathering serves whole answers and
streams. Invariant: the texts of a stream's chunks, joined, are the text of the whole answer.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from spinney.engine.sequence import Finished, TokenUpdate

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from spinney.engine.request import GenerateRequest, Logprobs
    from spinney.engine.sequence import Handover, Update
    from spinney.kv.lease import Lease


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where this engine's KV can be pulled from, as prefill answers name it."""

    engine_id: str
    host: str
    port: int
    ranks: int = 1


@dataclass(slots=True)
class Delta:
    """What is new of a choice."""

    text: str = ""
    tokens: list[int] = field(default_factory=list)
    logprobs: list[tuple[int, Logprobs]] = field(default_factory=list)
    end: Finished | None = None

    @classmethod
    def of(cls, updates: Sequence[Update]) -> Delta:
        """Join *updates*."""
        delta = cls()
        texts: list[str] = []
        for update in updates:
            match update:
                case TokenUpdate(token, text, logprobs):
                    delta.tokens.append(token)
                    texts.append(text)
                    if logprobs is not None:
                        delta.logprobs.append((token, logprobs))
                case Finished():
                    texts.append(update.text)
                    delta.end = update
        delta.text = "".join(texts)
        return delta

    def add(self, other: Delta) -> None:
        """Append what came later."""
        self.text += other.text
        self.tokens += other.tokens
        self.logprobs += other.logprobs
        self.end = other.end or self.end


def usage(prompt_tokens: int, completion_tokens: int, cached_tokens: int) -> dict[str, Any]:
    """Return the ``usage`` object."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": cached_tokens},
    }


def lease_params(lease: Lease, endpoint: Endpoint, cached_tokens: int) -> dict[str, Any]:
    """Return ``kv_transfer_params`` of a prefill's answer: what the decode worker is to be sent."""
    return {
        "do_remote_prefill": True,
        "do_remote_decode": False,
        "remote_engine_id": endpoint.engine_id,
        "remote_block_ids": [list(lease.blocks)],
        "remote_request_id": lease.handle,
        "remote_host": endpoint.host,
        "remote_port": endpoint.port,
        "tp_size": endpoint.ranks,
        "dcp_size": 1,
        "pp_size": 1,
        "remote_num_tokens": lease.num_tokens,
        "remote_blocks_expiry_time": lease.deadline_s,
        "transfer_mode": "pull",
        "remote_prefill_cached_tokens": cached_tokens,
    }


def handover_params(handover: Handover) -> dict[str, Any]:
    """Return ``kv_transfer_params`` of a decode's answer: how the hand-over went."""
    return {
        "do_remote_prefill": False,
        "do_remote_decode": False,
        "remote_engine_id": handover.engine_id,
        "outcome": handover.outcome,
        "transport": handover.transport,
        "blocks_pulled": handover.num_blocks,
        "bytes_pulled": handover.num_bytes,
        "seconds": handover.seconds,
        "failure": handover.failure,
        "message": handover.message,
    }


def transfer_params(end: Finished, endpoint: Endpoint | None) -> dict[str, Any] | None:
    """Return ``kv_transfer_params`` of an answer, None where no hand-over is concerned."""
    if end.lease is not None and endpoint is not None:
        return lease_params(end.lease, endpoint, end.cached_tokens)
    if end.handover is not None:
        return handover_params(end.handover)
    return None


class Shape(ABC):
    """The shape of one kind of answer; see `CompletionShape` and `ChatShape`."""

    object_name = ""
    chunk_name = ""

    def __init__(
        self,
        token_text: Callable[[int], str],
        *,
        return_token_ids: bool,
        return_prompt: bool = True,
        resumed: bool = False,
    ) -> None:
        """*resumed* continues what another worker began: its first chunk is no first one."""
        self._token_text = token_text
        self._return_token_ids = return_token_ids
        self._return_prompt = return_prompt
        self._started: set[int] = {0} if resumed else set()
        self._offsets: dict[int, int] = {}

    @abstractmethod
    def whole(self, index: int, request: GenerateRequest, delta: Delta) -> dict[str, Any]:
        """Return a choice of a whole answer."""

    @abstractmethod
    def chunk(self, index: int, request: GenerateRequest, delta: Delta) -> dict[str, Any]:
        """Return a choice of a chunk."""

    def worth_sending(self, delta: Delta) -> bool:
        """Whether a chunk of *delta* says anything."""
        return bool(delta.text or delta.end or delta.logprobs or self._return_token_ids)

    def _ids(self, request: GenerateRequest, delta: Delta, *, with_prompt: bool) -> dict[str, Any]:
        if not self._return_token_ids:
            return {}
        ids: dict[str, Any] = {"token_ids": delta.tokens}
        if with_prompt and self._return_prompt:
            ids["prompt_token_ids"] = list(request.prompt)
        return ids

    def _first(self, index: int) -> bool:
        first = index not in self._started
        self._started.add(index)
        return first


class CompletionShape(Shape):
    """``text_completion``."""

    object_name = chunk_name = "text_completion"

    def whole(self, index: int, request: GenerateRequest, delta: Delta) -> dict[str, Any]:
        """Return a choice of a whole answer."""
        return self.chunk(index, request, delta)

    def chunk(self, index: int, request: GenerateRequest, delta: Delta) -> dict[str, Any]:
        """Return a choice of a chunk."""
        ids = self._ids(request, delta, with_prompt=self._first(index))
        return {
            "index": index,
            "text": delta.text,
            "logprobs": self._logprobs(index, delta),
            "finish_reason": delta.end and delta.end.reason,
            "stop_reason": delta.end and delta.end.stop,
            **ids,
        }

    def _logprobs(self, index: int, delta: Delta) -> dict[str, Any] | None:
        if not delta.logprobs:
            return None
        texts = [self._token_text(token) for token, _ in delta.logprobs]
        offset, offsets = self._offsets.get(index, 0), []
        for text in texts:
            offsets.append(offset)
            offset += len(text)
        self._offsets[index] = offset
        return {
            "tokens": texts,
            "token_logprobs": [found.chosen for _, found in delta.logprobs],
            "top_logprobs": [
                {self._token_text(token): value for token, value in found.top}
                | {self._token_text(chosen): found.chosen}
                for chosen, found in delta.logprobs
            ],
            "text_offset": offsets,
        }


class ChatShape(Shape):
    """``chat.completion``."""

    object_name = "chat.completion"
    chunk_name = "chat.completion.chunk"

    def whole(self, index: int, request: GenerateRequest, delta: Delta) -> dict[str, Any]:
        """Return a choice of a whole answer."""
        return {
            "index": index,
            "message": {"role": "assistant", "content": delta.text, "refusal": None},
            **self._rest(request, delta, with_prompt=True),
        }

    def chunk(self, index: int, request: GenerateRequest, delta: Delta) -> dict[str, Any]:
        """Return a choice of a chunk; a choice's first one carries the role."""
        first = self._first(index)
        content: dict[str, Any] = {"role": "assistant"} if first else {}
        if delta.text or first:
            content["content"] = delta.text
        return {
            "index": index,
            "delta": content,
            **self._rest(request, delta, with_prompt=first),
        }

    def _rest(self, request: GenerateRequest, delta: Delta, *, with_prompt: bool) -> dict[str, Any]:
        return {
            "logprobs": self._logprobs(delta),
            "finish_reason": delta.end and delta.end.reason,
            "stop_reason": delta.end and delta.end.stop,
            **self._ids(request, delta, with_prompt=with_prompt),
        }

    def _logprobs(self, delta: Delta) -> dict[str, Any] | None:
        if not delta.logprobs:
            return None
        return {
            "content": [
                {
                    **self._entry(token, found.chosen),
                    "top_logprobs": [self._entry(other, value) for other, value in found.top],
                }
                for token, found in delta.logprobs
            ]
        }

    def _entry(self, token: int, value: float) -> dict[str, Any]:
        text = self._token_text(token)
        return {"token": text, "logprob": value, "bytes": list(text.encode())}
