"""Which devices an expression selects, for the expressions that drivers' device classes consist of.

Understood are comparisons of the driver or of an attribute with a literal, joined by ``&&``:

    device.driver == "gpu.example.com" && device.attributes["gpu.example.com"].type == "gpu"

An expression with anything else selects no device: a wrong device is worse than none.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

_LITERAL = r"""(?P<value>"[^"]*"|'[^']*'|true|false|-?\d+)"""
_DRIVER = re.compile(rf"device\.driver\s*(?P<op>==|!=)\s*{_LITERAL}")
_ATTRIBUTE = re.compile(
    r"""device\.attributes\[["'](?P<domain>[^"']+)["']\]\.(?P<name>\w+)\s*"""
    rf"(?P<op>==|!=|>=|<=|>|<)\s*{_LITERAL}"
)
_KINDS = ("string", "int", "bool", "version")


def matches(expression: str, driver: str, attributes: Mapping[str, Any]) -> bool:
    """Tell whether the CEL *expression* selects a device of *driver* with *attributes*."""
    parts = [part.strip() for part in expression.split("&&")]
    return all(_holds(part, driver, attributes) for part in parts if part)


def _holds(part: str, driver: str, attributes: Mapping[str, Any]) -> bool:
    while part.startswith("(") and part.endswith(")"):
        part = part[1:-1].strip()
    if found := _DRIVER.fullmatch(part):
        return _compare(driver, found["op"], _literal(found["value"]))
    if found := _ATTRIBUTE.fullmatch(part):
        value = _attribute(attributes, driver, found["domain"], found["name"])
        return value is not None and _compare(value, found["op"], _literal(found["value"]))
    return False


def _attribute(attributes: Mapping[str, Any], driver: str, domain: str, name: str) -> Any:
    """Return the value; a name without a domain is of the driver's own."""
    raw = attributes.get(f"{domain}/{name}")
    if raw is None and domain == driver:
        raw = attributes.get(name)
    return next((raw[kind] for kind in _KINDS if raw and kind in raw), None)


def _literal(text: str) -> str | int | bool:
    if text in ("true", "false"):
        return text == "true"
    return int(text) if text.lstrip("-").isdigit() else text[1:-1]


def _compare(left: Any, operator: str, right: Any) -> bool:
    if type(left) is not type(right):
        return False
    if operator in ("==", "!="):
        return bool(left == right) == (operator == "==")
    if type(right) is not int:
        return False
    higher, lower = bool(left > right), bool(left < right)
    return {">": higher, "<": lower, ">=": not lower, "<=": not higher}[operator]
