"""Label and field selectors: parse what clients write, match what objects have."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from spinney.errors import BadInputError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from spinney.api.meta import LabelSelector

Operator = Literal["=", "!=", "in", "notin", "exists", "!"]

_KEY = r"[A-Za-z0-9]([A-Za-z0-9._/-]*[A-Za-z0-9])?"
_SET = re.compile(rf"^({_KEY})\s+(in|notin)\s*\(([^)]*)\)$")
_EQUALITY = re.compile(rf"^({_KEY})\s*(==|=|!=)\s*([A-Za-z0-9._-]*)$")
_EXISTS = re.compile(rf"^(!?)\s*({_KEY})$")


@dataclass(frozen=True, slots=True)
class Requirement:
    """One condition on one label."""

    key: str
    operator: Operator
    values: tuple[str, ...] = ()

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Tell whether *labels* fulfil it; ``!=`` and ``notin`` accept a missing label."""
        match self.operator:
            case "exists":
                return self.key in labels
            case "!":
                return self.key not in labels
            case "=" | "in":
                return labels.get(self.key) in self.values
            case _:
                return labels.get(self.key) not in self.values


@dataclass(frozen=True, slots=True)
class Selector:
    """Requirements that must all hold; without any, everything matches."""

    requirements: tuple[Requirement, ...] = ()

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Tell whether *labels* fulfil every requirement."""
        return all(r.matches(labels) for r in self.requirements)


def parse_labels(text: str) -> Selector:
    """Parse ``a=b,c!=d,e in (f,g),!h,i``; raise BadInputError naming the part that is wrong."""
    parts = [part.strip() for part in re.split(r",(?![^(]*\))", text)]
    return Selector(tuple(_requirement(part) for part in parts if part))


def _requirement(part: str) -> Requirement:
    if found := _SET.match(part):
        values = tuple(value.strip() for value in found[4].split(","))
        return Requirement(found[1], "in" if found[3] == "in" else "notin", values)
    if found := _EQUALITY.match(part):
        return Requirement(found[1], "!=" if found[3] == "!=" else "=", (found[4],))
    if found := _EXISTS.match(part):
        return Requirement(found[2], "!" if found[1] else "exists")
    raise BadInputError(
        f"label selector: cannot parse {part!r}; "
        f"write key=value, key!=value, key in (a,b), key notin (a,b), key or !key"
    )


def from_object(selector: LabelSelector) -> Selector:
    """Return the selector that an object carries as ``matchLabels`` and ``matchExpressions``."""
    operators: dict[str, Operator] = {
        "In": "in",
        "NotIn": "notin",
        "Exists": "exists",
        "DoesNotExist": "!",
    }
    labels = [Requirement(k, "=", (v,)) for k, v in sorted(selector.match_labels.items())]
    expressions = []
    for line in selector.match_expressions:
        if line.operator not in operators:
            raise BadInputError(
                f"label selector: operator {line.operator!r} of key {line.key!r} is none of "
                f"{', '.join(operators)}"
            )
        expressions.append(Requirement(line.key, operators[line.operator], tuple(line.values)))
    return Selector((*labels, *expressions))


def format_labels(labels: Mapping[str, str]) -> str:
    """Return the selector text that matches exactly these labels: ``a=b,c=d``."""
    return ",".join(f"{key}={value}" for key, value in sorted(labels.items()))


@dataclass(frozen=True, slots=True)
class FieldRequirement:
    """One condition on one field, by its path such as ``spec.nodeName``."""

    path: str
    value: str
    equal: bool = True


@dataclass(frozen=True, slots=True)
class FieldSelector:
    """Field requirements that must all hold."""

    requirements: tuple[FieldRequirement, ...] = ()

    def matches(self, obj: Mapping[str, Any]) -> bool:
        """Tell whether the JSON object *obj* fulfils every requirement; absent counts as empty."""
        return all(
            (field_text(obj, r.path.split(".")) == r.value) == r.equal for r in self.requirements
        )


def parse_fields(text: str) -> FieldSelector:
    """Parse ``metadata.name=x,status.phase!=Running``; raise BadInputError."""
    found = []
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        if "!=" in part:
            path, value = part.split("!=", 1)
            found.append(FieldRequirement(path.strip(), value.strip(), equal=False))
        elif "=" in part:
            path, value = re.split("==?", part, maxsplit=1)
            found.append(FieldRequirement(path.strip(), value.strip()))
        else:
            raise BadInputError(f"field selector: cannot parse {part!r}; write path=value")
    return FieldSelector(tuple(found))


def field_text(obj: Any, path: Sequence[str]) -> str:
    """Return the value under *path* as field selectors see it: empty where there is none."""
    for step in path:
        if not isinstance(obj, dict):
            return ""
        obj = obj.get(step)
    if obj is None:
        return ""
    if isinstance(obj, bool):
        return "true" if obj else "false"
    return str(obj)
