"""Whether the fields of built-in kinds are known and have the right types.

The table of `spinney.local.apiserver.protobuf` says which fields a kind has. Unknown ones are kept,
as they may be newer than the table, and told of as ``fieldValidation`` asks; a value of a wrong
type is refused. Checks are compiled for each message when it is first seen; paths are put together
only when there is something to tell.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from spinney.local.apiserver import protobuf

if TYPE_CHECKING:
    from spinney.api.resource import Unstructured

_ROOT = ("apiVersion", "kind")

Finding = tuple[str, str]
"""A path, and what is wrong there; nothing when the field is unknown."""

_Check = Callable[[Any], "list[Finding] | None"]


def check(message: str, obj: Unstructured, old: Unstructured | None) -> list[Finding]:
    """Return what is wrong with the parts of *obj* that are not as in *old*."""
    found: list[Finding] = []
    checks = _fields(message)
    for name, value in obj.items():
        if name in _ROOT or (old is not None and old.get(name) == value):
            continue
        inner = checks.get(name)
        if inner is None:
            found.append((name, ""))
        elif wrong := inner(value):
            found += _below(name, wrong)
    return found


@functools.cache
def _fields(message: str) -> dict[str, _Check]:
    found: dict[str, _Check] = {}
    for part in protobuf.messages()[message].values():
        if part.inline:
            found |= _fields(part.type)
            continue
        one = _SCALARS[part.type] if part.type in _SCALARS else _message(part.type)
        if part.repeated:
            one = _each_item(one)
        elif part.mapped:
            one = _each_value(one)
        found[part.name] = one
    return found


def _message(name: str) -> _Check:
    checks: dict[str, _Check] = {}

    def message(value: Any) -> list[Finding] | None:
        if type(value) is not dict:
            return _mistyped("an object", value)
        if not checks:
            checks.update(_fields(name))  # Not before: some messages hold themselves.
        found: list[Finding] | None = None
        for key, inner in value.items():
            one = checks.get(key)
            if one is None:
                found = [*(found or ()), (key, "")]
            elif wrong := one(inner):
                found = [*(found or ()), *_below(key, wrong)]
        return found

    return message


def _each_item(one: _Check) -> _Check:
    def items(value: Any) -> list[Finding] | None:
        if type(value) is not list:
            return _mistyped("a list", value)
        found: list[Finding] | None = None
        for index, item in enumerate(value):
            if wrong := one(item):
                found = [*(found or ()), *_below(f"[{index}]", wrong)]
        return found

    return items


def _each_value(one: _Check) -> _Check:
    def values(value: Any) -> list[Finding] | None:
        if type(value) is not dict:
            return _mistyped("a map", value)
        found: list[Finding] | None = None
        for key, item in value.items():
            if wrong := one(item):
                found = [*(found or ()), *_below(key, wrong)]
        return found

    return values


def _scalar(wanted: str, *types: type) -> _Check:
    def scalar(value: Any) -> list[Finding] | None:
        return None if type(value) in types else _mistyped(wanted, value)

    return scalar


def _anything(_value: Any) -> list[Finding] | None:
    return None


def _mistyped(wanted: str, value: Any) -> list[Finding] | None:
    """Return the finding about a value of a wrong type; null is none."""
    if value is None:
        return None
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean"}
    return [("", f"{wanted} is needed, {names.get(type(value), 'a number')} was found")]


def _below(step: str, found: list[Finding]) -> list[Finding]:
    return [
        (f"{step}.{path}" if path and not path.startswith("[") else f"{step}{path}", what)
        for path, what in found
    ]


_SCALARS: dict[str, _Check] = {
    "s": _scalar("a string", str),
    "b": _scalar("a string", str),
    "o": _scalar("a boolean", bool),
    "i": _scalar("a whole number", int),
    "d": _scalar("a number", int, float),
    "Quantity": _scalar("a quantity", str, int, float),
    "IntOrString": _scalar("a whole number or a string", int, str),
    "meta.Time": _scalar("a time", str),
    "meta.MicroTime": _scalar("a time", str),
    "meta.FieldsV1": _anything,
    "RawExtension": _anything,
}
