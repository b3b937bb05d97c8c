"""The simple JSON paths of CustomResourceDefinitions: printer columns and scale.

``.spec.replicas``, ``.status.conditions[?(@.type=="Ready")].status``, ``.spec.ports[0].port``,
``.metadata.labels.app\\.kubernetes\\.io/name``, ``.spec['a-b']``, ``.spec.items[*].name``.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

_Step = "Callable[[list[Any]], list[Any]]"

_TOKEN = re.compile(
    r"""\.(?P<name>(?:\\.|[^.\[\]\\])+)
    | \[(?P<index>-?\d+)\]
    | \[(?P<all>\*)\]
    | \[\?\(@\.(?P<key>[^=!\s]+)\s*(?P<op>==|!=)\s*["'](?P<value>[^"']*)["']\)\]
    | \[['"](?P<quoted>[^'"]+)['"]\]""",
    re.VERBOSE,
)


def compile_path(text: str) -> Callable[[Any], list[Any]]:
    """Return a function from an object to the values at *text*; raise ValueError."""
    body = text.strip()
    if body.startswith("{") and body.endswith("}"):
        body = body[1:-1]
    if not body.startswith((".", "[")):
        body = f".{body}"
    steps: list[Callable[[list[Any]], list[Any]]] = []
    position = 0
    while position < len(body):
        token = _TOKEN.match(body, position)
        if token is None:
            raise ValueError(f"cannot read the JSON path {text!r} at {body[position:]!r}")
        steps.append(_step(token))
        position = token.end()

    def values(obj: Any) -> list[Any]:
        found = [obj]
        for step in steps:
            found = step(found)
        return found

    return values


def simple_path(text: str) -> tuple[str, ...]:
    """Return the steps of a path of plain names, such as ``.spec.replicas``; raise ValueError."""
    steps = tuple(step for step in text.split(".") if step)
    if not text.startswith(".") or not steps or "[" in text:
        raise ValueError(f"{text!r} is no simple JSON path such as .spec.replicas")
    return steps


def _step(token: re.Match[str]) -> Callable[[list[Any]], list[Any]]:
    if token["index"] is not None:
        index = int(token["index"])
        return lambda found: [
            v[index] for v in found if isinstance(v, list) and -len(v) <= index < len(v)
        ]
    if token["all"]:
        return lambda found: [item for v in found for item in _items(v)]
    if token["key"]:
        key, equal, wanted = token["key"], token["op"] == "==", token["value"]
        return lambda found: [
            item
            for v in found
            for item in _items(v)
            if isinstance(item, dict) and (_text(item.get(key)) == wanted) == equal
        ]
    name = token["quoted"] or re.sub(r"\\(.)", r"\1", token["name"])
    if name == "*":
        return lambda found: [item for v in found for item in _items(v)]
    return lambda found: [v[name] for v in found if isinstance(v, dict) and name in v]


def _items(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)
