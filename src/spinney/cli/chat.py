"""``spinney chat``: talk to a model that the cluster serves."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Any

import click

from spinney.api.core import Pod
from spinney.api.meta import is_true
from spinney.api.names import MODEL, PART_OF, ROLE
from spinney.cli.completion import FRONT_ROLES, Answer, endpoint, stream_chat
from spinney.cli.session import CommandError, Session, namespace_option, pass_session

if TYPE_CHECKING:
    from spinney.kube.client import KubeClient


@click.command()
@click.argument("message", nargs=-1)
@click.option("--service", default="", help="Name of the PodCliqueSet; default: any that is ready.")
@click.option("--url", default="", help="Talk to this address instead of looking for a service.")
@click.option("--model", default="", help="Model to ask for; default: what the service serves.")
@click.option("--max-tokens", type=click.IntRange(min=1), default=200, show_default=True)
@click.option("--temperature", type=click.FloatRange(min=0), default=0.0, show_default=True)
@namespace_option
@pass_session
def chat(
    session: Session,
    message: tuple[str, ...],
    service: str,
    url: str,
    model: str,
    max_tokens: int,
    temperature: float,
    namespace: str,
) -> None:
    """Send a MESSAGE and print the answer as it comes; without one, hold a conversation.

    \b
    Examples:
      spinney chat "What is a spinney?"
      spinney chat --service chat
    """
    if not url:
        pod = session.run(lambda client: find_front(client, service, namespace))
        url, model = endpoint(pod), model or pod.labels.get(MODEL, "")
    body = {"model": model or "demo", "max_tokens": max_tokens, "temperature": temperature}
    if message:
        _ask(url, body | {"messages": [{"role": "user", "content": " ".join(message)}]})
        return
    _converse(url, body)


def _converse(url: str, body: dict[str, object]) -> None:
    click.echo(f"Talking to {body['model']} at {url}. An empty line ends it.", err=True)
    messages: list[dict[str, str]] = []
    while True:
        click.echo("> ", nl=False, err=True)
        line = sys.stdin.readline().strip()
        if not line:
            return
        messages.append({"role": "user", "content": line})
        answer = _ask(url, body | {"messages": messages})
        messages.append({"role": "assistant", "content": answer.text})


def _ask(url: str, body: dict[str, object]) -> Answer:
    answer = asyncio.run(stream_chat(url, body, lambda text: click.echo(text, nl=False)))
    click.echo()
    for line in summary_lines(answer):
        click.echo(f"  {line}", err=True)
    return answer


def summary_lines(answer: Answer) -> list[str]:
    """Return who served an answer and how fast it came, a line each."""
    headers = answer.headers
    tokens = answer.usage.get("completion_tokens", len(answer.gaps_s) + 1)
    lines = [
        f"TTFT {answer.ttft_s * 1000:.0f} ms, ITL {answer.itl_s_p50 * 1000:.1f} ms (median), "
        f"{answer.usage.get('prompt_tokens', '?')} prompt and {tokens} answer tokens"
    ]
    if mode := headers.get("x-spinney-mode"):
        prefill = headers.get("x-spinney-prefill-worker", "")
        decode = headers.get("x-spinney-decode-worker", "")
        who = f"prefill by {prefill}, decode by {decode}" if prefill else f"served by {decode}"
        lines.append(f"{mode}: {who}")
    return [*lines, *_transfer_lines(answer.transfer, answer.usage)]


def _transfer_lines(transfer: dict[str, Any], usage: dict[str, Any]) -> list[str]:
    """Return what the decode worker says of the KV blocks it was offered."""
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
    moved, seconds = transfer.get("bytes_pulled", 0), float(transfer.get("seconds") or 0.0)
    if moved:
        how = str(transfer.get("transport") or "").replace("-", " ")
        return [f"KV blocks moved: {moved / 1024:.0f} KiB by {how} in {seconds * 1000:.1f} ms"]
    if transfer.get("outcome") == "cached" and not cached:
        return ["KV blocks moved: none, the prompt does not fill one"]
    if transfer.get("outcome") == "cached":
        return ["KV blocks moved: none, the decode worker held the prefix already"]
    if transfer.get("failure"):
        return [f"KV blocks moved: none ({transfer['failure']}), the prompt was computed again"]
    return []


async def find_front(client: KubeClient, service: str, namespace: str) -> Pod:
    """Return a ready pod that answers clients; raise CommandError that says what there is."""
    labels = f"{ROLE} in ({','.join(FRONT_ROLES)})"
    if service:
        labels += f",{PART_OF}={service}"
    pods = (await client.list(Pod, namespace, labels=labels)).items
    ready = [p for p in pods if is_true(p.status.conditions, "Ready") and not p.deleting]
    if ready:
        return min(ready, key=lambda p: (FRONT_ROLES.index(p.labels[ROLE]), p.name))
    what = f"service {service!r}" if service else "any service"
    if pods:
        raise CommandError(f"{what} has no ready router yet; `spinney status` shows why")
    raise CommandError(
        f"{what} is not in namespace {namespace!r}; "
        f"start one with `spinney apply -f examples/disaggregated/disaggregated.yaml`"
    )
