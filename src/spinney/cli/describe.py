"""``spinney describe``: one object for a person, with its conditions and events."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click
import yaml

from spinney.api.core import Event
from spinney.cli.session import Session, columns, namespace_option, pass_session
from spinney.clock import parse_rfc3339
from spinney.kube.discovery import Discovery

if TYPE_CHECKING:
    from spinney.api.resource import Unstructured
    from spinney.kube.client import KubeClient

MAX_EVENTS = 30
"""The newest events are printed; older ones seldom explain the present."""


@click.command()
@click.argument("kind")
@click.argument("name")
@namespace_option
@pass_session
def describe(session: Session, kind: str, name: str, namespace: str) -> None:
    """Show the object of a KIND called NAME, with its conditions and events.

    \b
    Examples:
      spinney describe pcs chat
      spinney describe podgang too-big-0
    """

    async def work(client: KubeClient) -> None:
        resource = await Discovery(client).resolve(kind)
        obj = await client.get(resource, name, namespace if resource.namespaced else None)
        uid = obj["metadata"].get("uid", "")
        events = await client.list(
            Event, namespace if resource.namespaced else None, fields=f"involvedObject.uid={uid}"
        )
        for line in describe_lines(obj, events.items, session.clock.now()):
            click.echo(line)

    session.run(work)


def describe_lines(obj: Unstructured, events: list[Event], now: float) -> list[str]:
    """Return what is printed of *obj*; ages count to *now*, in seconds since the epoch."""
    metadata = obj["metadata"]
    lines = [f"Name:       {metadata['name']}", f"Kind:       {obj['kind']} ({obj['apiVersion']})"]
    if metadata.get("namespace"):
        lines.append(f"Namespace:  {metadata['namespace']}")
    lines.append(f"Created:    {age(metadata.get('creationTimestamp'), now)} ago")
    owners = metadata.get("ownerReferences") or []
    lines += [f"Owner:      {owner['kind']} {owner['name']}" for owner in owners]
    for field in ("labels", "annotations"):
        if metadata.get(field):
            lines += [f"{field.capitalize()}:", *_yaml(metadata[field])]
    if obj.get("spec"):
        lines += ["Spec:", *_yaml(obj["spec"])]
    status = dict(obj.get("status") or {})
    conditions = status.pop("conditions", None) or []
    if status:
        lines += ["Status:", *_yaml(status)]
    if conditions:
        lines += ["Conditions:", *_condition_lines(conditions, now)]
    return [*lines, "Events:", *_event_lines(events, now)]


def _yaml(value: Any) -> list[str]:
    text = yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=100)
    return [f"  {line}" for line in text.splitlines()]


def _condition_lines(conditions: list[dict[str, Any]], now: float) -> list[str]:
    rows = [["TYPE", "STATUS", "SINCE", "REASON", "MESSAGE"]]
    for c in conditions:
        since = age(c.get("lastTransitionTime"), now)
        rows.append([c["type"], c["status"], since, c.get("reason", ""), c.get("message", "")])
    return [f"  {line}" for line in columns(rows)]


def _event_lines(events: list[Event], now: float) -> list[str]:
    if not events:
        return ["  none"]
    rows = [["TYPE", "REASON", "AGE", "FROM", "MESSAGE"]]
    ordered = sorted(events, key=lambda e: (_when(e), e.name))
    for event in ordered[-MAX_EVENTS:]:
        times = f" (x{event.count})" if event.count > 1 else ""
        source = event.source.component or event.reporting_component
        rows.append(
            [event.type, event.reason, age(_when(event), now) + times, source, event.message]
        )
    return [f"  {line}" for line in columns(rows)]


def _when(event: Event) -> str:
    stamps = (event.last_timestamp, event.event_time, event.metadata.creation_timestamp)
    return next((stamp for stamp in stamps if stamp), "")


def age(stamp: str | None, now: float) -> str:
    """Return how long ago *stamp* was, such as ``45s``, ``12m`` or ``3h``."""
    if not stamp:
        return "unknown"
    seconds = max(0, int(now - parse_rfc3339(stamp)))
    if seconds < 120:
        return f"{seconds}s"
    if seconds < 7200:
        return f"{seconds // 60}m"
    return f"{seconds // 3600}h" if seconds < 172_800 else f"{seconds // 86_400}d"
