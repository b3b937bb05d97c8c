"""Ask a served model something, and time the answer.

What is measured is what a client sees: TTFT from sending the request to the first text,
ITL between one piece of the stream and the next.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import aiohttp
import msgspec

from spinney.cli.session import CommandError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from spinney.api.core import Pod

FRONT_ROLES = ("router", "both")
"""Who answers clients, in order of preference."""
DEADLINE_S = 120.0
"""No answer of the models this serves takes longer."""


@dataclass(slots=True)
class Answer:
    """A streamed answer, and how it came."""

    text: str = ""
    ttft_s: float = 0.0
    gaps_s: list[float] = field(default_factory=list)
    """Seconds between one piece of the stream and the next."""
    headers: Mapping[str, str] = field(default_factory=dict)
    usage: dict[str, Any] = field(default_factory=dict)
    transfer: dict[str, Any] = field(default_factory=dict)
    """What the decode worker says of the hand-over: ``kv_transfer_params`` of its last chunk."""

    @property
    def itl_s_p50(self) -> float:
        """Median inter-token latency, 0 when fewer than two pieces came."""
        ordered = sorted(self.gaps_s)
        return ordered[len(ordered) // 2] if ordered else 0.0


def endpoint(pod: Pod) -> str:
    """Return the URL at which *pod* serves HTTP; raise CommandError if it has no address yet."""
    ports = [port for container in pod.spec.containers for port in container.ports]
    named = [port.container_port for port in ports if port.name == "http"]
    if not pod.status.pod_ip or not ports:
        raise CommandError(
            f"pod {pod.key} has no address yet; see `spinney describe pod {pod.name}`"
        )
    return f"http://{pod.status.pod_ip}:{(named or [ports[0].container_port])[0]}"


async def stream_chat(
    url: str, body: dict[str, Any], on_text: Callable[[str], None] = lambda _text: None
) -> Answer:
    """Send a chat request, call *on_text* with each piece of the answer, and return the whole.

    Raises CommandError when the server refuses or the stream ends with an error.
    """
    request = body | {"stream": True, "stream_options": {"include_usage": True}}
    answer = Answer()
    loop = asyncio.get_running_loop()
    began = last = loop.time()
    timeout = aiohttp.ClientTimeout(total=DEADLINE_S)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout) as http,
            http.post(f"{url}/v1/chat/completions", json=request) as response,
        ):
            answer.headers = {k.lower(): v for k, v in response.headers.items()}
            if response.status != 200:
                raise CommandError(_refusal(response.status, await response.read()))
            async for line in response.content:
                piece = _read_line(line, answer)
                if not piece:
                    continue
                now = loop.time()
                if answer.text:
                    answer.gaps_s.append(now - last)
                else:
                    answer.ttft_s = now - began
                last = now
                answer.text += piece
                on_text(piece)
    except (aiohttp.ClientError, TimeoutError) as error:
        raise CommandError(f"{url} broke off: {error or type(error).__name__}") from error
    return answer


def _read_line(line: bytes, answer: Answer) -> str:
    """Take what a line of the stream says into *answer*; return its text, if it has some."""
    if not line.startswith(b"data: ") or line.startswith(b"data: [DONE]"):
        return ""
    chunk = msgspec.json.decode(line[6:])
    if error := chunk.get("error"):
        raise CommandError(f"the stream ended with an error: {error.get('message', error)}")
    answer.usage = chunk.get("usage") or answer.usage
    answer.transfer = chunk.get("kv_transfer_params") or answer.transfer
    choices = chunk.get("choices") or []
    return str((choices[0].get("delta") or {}).get("content") or "") if choices else ""


def _refusal(status: int, body: bytes) -> str:
    try:
        message = msgspec.json.decode(body)["error"]["message"]
    except (msgspec.MsgspecError, KeyError, TypeError):
        message = body[:200].decode("utf-8", "replace")
    return f"the server refused the request ({status}): {message}"
