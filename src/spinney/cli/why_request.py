"""``spinney why request/ID``: what became of a request, step by step, as its router tells.

Routers keep their stories in memory and do not share them: each is asked until one knows.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import aiohttp
import msgspec

from spinney.api.core import Pod
from spinney.api.meta import is_true
from spinney.api.names import ROLE
from spinney.cli.completion import endpoint
from spinney.cli.session import CommandError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from spinney.kube.client import KubeClient

    Story = dict[str, Any]

ASK_S = 5.0
"""What a router gets to answer."""
LAST = "last"
"""Stands for the newest request."""


async def routers(client: KubeClient, namespace: str) -> list[str]:
    """Return the addresses of all routers in *namespace*; raise CommandError without any."""
    pods = (await client.list(Pod, namespace, labels=f"{ROLE}=router")).items
    found = [pod for pod in pods if is_true(pod.status.conditions, "Ready")]
    if not found:
        raise CommandError(
            f"there is no ready router in namespace {namespace!r} to ask; name one with --url"
        )
    return [endpoint(pod) for pod in sorted(found, key=lambda pod: pod.name)]


def story_of(request_id: str, urls: Sequence[str]) -> Story:
    """Return what one of the routers at *urls* tells of the request; raise CommandError."""
    return asyncio.run(_story_of(request_id, urls))


async def _story_of(request_id: str, urls: Sequence[str]) -> Story:
    silent = []
    timeout = aiohttp.ClientTimeout(total=ASK_S)
    async with aiohttp.ClientSession(timeout=timeout) as http:
        for url in urls:
            try:
                story = await _told_by(http, url, request_id)
            except (aiohttp.ClientError, TimeoutError) as error:
                silent.append(f"{url} does not answer: {error or type(error).__name__}")
                continue
            if story is not None:
                return story
    told = "; ".join(silent) or f"asked {', '.join(urls)}"
    raise CommandError(
        f"no router remembers request {request_id!r} ({told}). Each keeps its last 1,024; the id "
        f"is the header x-request-id of the answer, and request/{LAST} is the newest one."
    )


async def _told_by(http: aiohttp.ClientSession, url: str, request_id: str) -> Story | None:
    if request_id == LAST:
        async with http.get(f"{url}/debug/requests") as response:
            recent = msgspec.json.decode(await response.read())
        if response.status != 200 or not recent:
            return None
        request_id = recent[0]["id"]
    async with http.get(f"{url}/debug/requests/{request_id}") as response:
        body = await response.read()
    story: Story | None = msgspec.json.decode(body) if response.status == 200 else None
    return story


def lines(story: Story) -> Iterator[str]:
    """Yield *story* for people."""
    yield f"request {story['id']}: {story['outcome']}"
    yield from (f"  {line}" for line in _head(story) if line)
    for step in story["steps"]:
        what, *more = _step(step["what"], step["fields"])
        yield f"{step['at_ms']:10.1f} ms  {what}"
        yield from (f"{'':15}{line}" for line in more)
    if story["steps_dropped"]:
        yield f"{'':15}and {story['steps_dropped']} more steps, which are not kept"


def _head(story: Story) -> Iterator[str]:
    counted = story["input_tokens"]
    # What no worker counted is the router's estimate, from the length of the text.
    tokens = f"about {story['prompt_tokens']}" if counted is None else f"{counted}"
    tokens += " prompt tokens"
    if story["cached_tokens"] is not None:
        tokens += f" ({story['cached_tokens']} cached)"
    if story["output_tokens"] is not None:
        tokens += f", {story['output_tokens']} answered"
    yield f"{story['path']}, model {story['model'] or '?'}, {tokens}"
    times = [
        f"{word} {story[field]:.1f} ms"
        for word, field in (
            ("queue", "queue_ms"),
            ("first byte after", "ttft_ms"),
            ("ended after", "duration_ms"),
        )
        if story[field] is not None
    ]
    yield ", ".join(times)
    names = ("tenant", "trace_id")
    yield ", ".join(f"{name.removesuffix('_id')} {story[name]}" for name in names if story[name])


def _step(what: str, fields: dict[str, Any]) -> list[str]:
    match what:
        case "chosen":
            return _chosen(fields["attempt"], fields["choice"])
        case "worker failed":
            failed = f"{fields['stage']} worker {fields['worker']} failed ({fields['cause']})"
            return [failed, fields["detail"]]
        case "no worker":
            return ["no worker can serve it", *_left_out(fields["rejected"])]
        case "handed over":
            report = fields["report"]
            moved = f"{report['bytes_pulled']} bytes in {1000 * report['seconds']:.1f} ms"
            why = f", {report['failure']}" if report.get("failure") else ""
            return [f"KV {report['outcome']}: {moved}{why}"]
        case _:
            told = ", ".join(f"{key} {_plain(value)}" for key, value in fields.items() if value)
            return [f"{what}: {told}" if told else what]


def _chosen(attempt: int, choice: dict[str, Any]) -> list[str]:
    decode, prefill, unit = choice["decode"], choice["prefill"], choice["unit"]
    who = f"decode by {decode['worker']['name']} ({decode['reason']})"
    if prefill is not None:
        who = f"prefill by {prefill['worker']['name']} ({prefill['reason']}), {who}"
    again = f"chosen (attempt {attempt})" if attempt > 1 else "chosen"
    mode = choice["mode"] + (f", {choice['why_mode']}" if choice["why_mode"] else "")
    picked = {pick["worker"]["name"] for pick in (decode, prefill) if pick is not None}
    rows = [_candidate(candidate, picked, unit) for candidate in choice["candidates"]]
    return [f"{again}: {who}; {mode}", *rows, *_left_out(choice["rejected"])]


def _candidate(candidate: dict[str, Any], picked: set[str], unit: str) -> str:
    mark = "*" if candidate["worker"] in picked else " "
    terms = " + ".join(f"{name} {value:g}" for name, value in candidate["terms"].items())
    cached = candidate["cached_tokens"]
    held = f", {cached} tokens cached" if cached else ""
    return (
        f"{mark} {candidate['stage']:7} {candidate['worker']:32} "
        f"{candidate['cost']:10.1f} {unit} = {terms or 0}{held}"
    )


def _left_out(rejected: dict[str, int]) -> list[str]:
    told = ", ".join(f"{count} {why}" for why, count in sorted(rejected.items()))
    return [f"left out: {told}"] if told else []


def _plain(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
