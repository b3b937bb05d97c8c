"""``spinney why``: how something stands, and the smallest reason why it waits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click
import msgspec
import yaml

from spinney.api import names
from spinney.cli.session import CommandError, Session, columns, namespace_option, pass_session
from spinney.cli.situation import config_option, situation_of
from spinney.errors import BadInputError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from spinney.scheduler.config import SchedulerConfig
    from spinney.scheduler.scenario import Objects
    from spinney.scheduler.what_if import Spot, Why, WhyPod, WhyQueue

_PODS = ("pod", "pods", "po")
_GANGS = ("podgang", "podgangs", "pg", "gang", "gangs", "podgroup", "podgroups")
_LABELS: dict[tuple[str, ...], tuple[str, ...]] = {
    ("pcs", "podcliqueset", "podcliquesets"): (names.PART_OF,),
    ("job", "jobs"): ("batch.kubernetes.io/job-name", "job-name"),
    ("jobset", "jobsets"): ("jobset.sigs.k8s.io/jobset-name",),
    ("lws", "leaderworkerset", "leaderworkersets"): ("leaderworkerset.sh/name",),
    ("raycluster", "rayclusters"): ("ray.io/cluster",),
    ("pytorchjob", "mpijob", "tfjob"): ("training.kubeflow.org/job-name",),
}
"""What people call a workload, and the labels by which its pods name it."""
_SETS = tuple(word for words in _LABELS for word in words)
_QUEUES = ("queue", "queues", "q")
_REQUESTS = ("request", "requests")
_FORMS = (
    "pod/NAME, podgang/NAME, podgroup/NAME, pcs/NAME, job/NAME, lws/NAME, queue/NAME or request/ID"
)

NAMED_PODS = 4
"""Pods of one node that are printed by name; more are counted by what their names begin with."""


@click.command()
@click.argument("target")
@namespace_option
@click.option("--snapshot", "snapshot_file", help="Ask this file instead of the cluster.")
@config_option
@click.option("--url", default="", help="Of a request: ask the router at this address.")
@click.option(
    "-o", "--output", type=click.Choice(["text", "json", "yaml"]), default="text", show_default=True
)
@pass_session
def why(
    session: Session,
    target: str,
    namespace: str,
    snapshot_file: str | None,
    config_file: str | None,
    url: str,
    output: str,
) -> None:
    """Say why TARGET has no node, by a fresh try on the state of now, and what would help.

    TARGET is pod/NAME, podgang/NAME, podgroup/NAME, queue/NAME, or a workload with its gangs:
    pcs/NAME, job/NAME, lws/NAME, jobset/NAME, raycluster/NAME, pytorchjob/NAME. Of request/ID, and
    of request/last, it says who was considered and chosen to serve it, and what happened when.

    The exit code is 0 when there is an answer, 1 when there is no such thing, 2 when TARGET
    cannot be read.

    \b
    Examples:
      spinney why podgang/chat-0
      spinney why pcs/too-big
      spinney why queue/team-a
      spinney why request/last
    """
    kind, _, name = target.partition("/")
    if kind.lower() in _REQUESTS and name:
        from spinney.cli.why_request import lines, routers, story_of

        urls = [url.rstrip("/")] if url else session.run(lambda c: routers(c, namespace))
        story = story_of(name, urls)
        _show(story, lines(story), output)
        return
    known = (*_PODS, *_GANGS, *_SETS, *_QUEUES)
    if not name or kind.lower() not in known:
        raise BadInputError(f"{target!r}: write {_FORMS}")
    state, now_s, config = situation_of(session, snapshot_file, config_file)
    _show(*_answer(state, kind.lower(), name, namespace, now_s, config), output)


def _show(answer: Any, text: Iterator[str], output: str) -> None:
    if output == "text":
        for line in text:
            click.echo(line)
    else:
        print_document(answer, output)


def _answer(
    state: Objects, kind: str, name: str, namespace: str, now_s: float, config: SchedulerConfig
) -> tuple[Any, Iterator[str]]:
    """Return the answer, and its lines for people."""
    from spinney.scheduler import what_if

    if kind in _PODS:
        pod = next((p for p in state.pods if p.key == f"{namespace}/{name}"), None)
        if pod is None:
            raise CommandError(f"there is no pod {name!r} in {namespace}")
        of_pod = what_if.why_pod(state, pod, now_s, config)
        return of_pod, _pod_lines(of_pod)
    if kind in _QUEUES:
        of_queue = what_if.why_queue(state, name, now_s, config)
        if of_queue is None:
            there = ", ".join(sorted(queue.name for queue in state.queues)) or "none"
            raise CommandError(f"there is no queue {name!r}; there are: {there}")
        return of_queue, _queue_lines(of_queue)
    found = what_if.why(state, _gangs(state, kind, name, namespace), now_s, config)
    if not found:
        raise CommandError(f"there is no gang with pods to place for {kind}/{name} in {namespace}")
    return found, (line for gang in found for line in _gang_lines(gang))


def _gangs(state: Objects, kind: str, name: str, namespace: str) -> list[str]:
    from spinney.scheduler.sources.pods import membership
    from spinney.scheduler.sources.spec import gang_name

    if kind in _GANGS:
        return [f"{namespace}/{name}"]
    labels = next(labels for words, labels in _LABELS.items() if kind in words)
    mine = [
        pod
        for pod in state.pods
        if pod.namespace == namespace and any(pod.labels.get(label) == name for label in labels)
    ]
    return sorted({gang_name(membership(pod).gang or pod.key) for pod in mine})


def _gang_lines(answer: Why) -> Iterator[str]:
    yield f"{answer.gang}: {answer.state}"
    yield from reason_lines(answer.reason)
    if answer.said:
        yield f"  the scheduler said: {answer.said}"
    yield from spot_lines("on", answer.nodes)
    yield from spot_lines("would go to", answer.would_go)
    if answer.displacing:
        yield f"  displacing {', '.join(answer.displacing)}"
    if answer.placement_score is not None:
        yield f"  placement score {answer.placement_score:g}"


def _pod_lines(answer: WhyPod) -> Iterator[str]:
    where = f" on {answer.node}" if answer.node else ""
    words = {"bound": "would be bound next,", "pipelined": "room is kept", "other": "not placed"}
    yield f"{answer.pod}: {words.get(answer.state, answer.state)}{where}"
    gang = answer.gang
    if gang is None or answer.reason != gang.reason:
        yield from reason_lines(answer.reason)
    if gang is not None and gang.gang != answer.pod:
        yield f"as part of {gang.gang}: {gang.state}"
        yield from reason_lines(gang.reason)
    elif gang is not None:
        yield from reason_lines(gang.reason if gang.reason == answer.reason else "")


def _queue_lines(answer: WhyQueue) -> Iterator[str]:
    below = f", below {answer.parent}" if answer.parent else ""
    yield f"{answer.queue}: priority {answer.priority}{below}"
    if answer.children:
        yield f"  queues below it: {', '.join(answer.children)}"
    elif answer.problem:
        yield f"  {answer.problem}"
    header = ["  ", "QUOTA", "LIMIT", "FAIR SHARE", "IN USE", "WANTED"]
    rows = [
        [
            f"  {line.resource}",
            _amount(line.resource, line.quota),
            _amount(line.resource, line.limit),
            _amount(line.resource, line.fair_share),
            _amount(line.resource, line.in_use),
            _amount(line.resource, line.wanted),
        ]
        for line in answer.resources
    ]
    yield from columns([header, *rows])
    noun = "gang" if answer.placed == 1 else "gangs"
    yield f"  {answer.placed} {noun} placed, {len(answer.waiting)} waiting"
    for gang in answer.waiting:
        yield f"  {gang.gang}: {gang.state}"
        for line in reason_lines(gang.reason):
            yield f"  {line}"


def _amount(resource: str, amount: float) -> str:
    if amount < 0:
        return "any"
    return f"{amount / 2**30:.4g}Gi" if resource == "memory" else f"{amount:g}"


def reason_lines(reason: str) -> Iterator[str]:
    """Yield a reason part by part."""
    for part in reason.split("; ") if reason else ():
        yield f"  {part}"


def spot_lines(words: str, found: list[Spot], *, named: int = NAMED_PODS) -> Iterator[str]:
    """Yield each node with its pods: by name, or counted where there are more than *named*."""
    for spot in found:
        pods = spot.pods if len(spot.pods) <= named else _counted(spot.pods)
        yield f"  {words} {spot.node}: {', '.join(pods)}"


def _counted(pods: list[str]) -> list[str]:
    stems: dict[str, int] = {}
    for pod in pods:
        stem = pod.rpartition("-")[0] or pod
        stems[stem] = stems.get(stem, 0) + 1
    return [f"{count} {stem}" for stem, count in stems.items()]


def print_document(answer: Any, output: str) -> None:
    """Print *answer* as JSON or YAML."""
    document = msgspec.to_builtins(answer)
    click.echo(
        yaml.safe_dump(document, sort_keys=False, allow_unicode=True).rstrip()
        if output == "yaml"
        else msgspec.json.format(msgspec.json.encode(document), indent=2).decode()
    )
