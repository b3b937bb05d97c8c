"""Which objects a list or watch is about: namespace, name, labels, fields."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spinney.api.selectors import parse_fields, parse_labels
from spinney.errors import BadInputError
from spinney.local.apiserver.refusal import bad_request

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from spinney.api.selectors import FieldRequirement
    from spinney.local.apiserver.kinds import Kind
    from spinney.local.apiserver.stored import Stored

_OF_FALSE = ("spec.unschedulable", "spec.hostNetwork")
"""Fields whose absence reads ``false``."""


def matcher(
    kind: Kind, namespace: str | None, name: str, query: Mapping[str, str]
) -> Callable[[Stored], bool] | None:
    """Return the test that objects have to pass, None if all do; raise BadRequest."""
    try:
        labels = parse_labels(query.get("labelSelector", ""))
        fields = parse_fields(query.get("fieldSelector", ""))
    except BadInputError as error:
        raise bad_request(str(error)) from error
    tests: list[Callable[[Stored], bool]] = []
    if namespace is not None:
        tests.append(lambda stored: stored.namespace == namespace)
    if name:
        tests.append(lambda stored: stored.name == name)
    tests += [_field_test(kind, requirement) for requirement in fields.requirements]
    if labels.requirements:
        tests.append(lambda stored: labels.matches(stored.labels))
    if not tests:
        return None
    if len(tests) == 1:
        return tests[0]
    return lambda stored: all(test(stored) for test in tests)


def _field_test(kind: Kind, requirement: FieldRequirement) -> Callable[[Stored], bool]:
    path, value, equal = requirement.path, requirement.value, requirement.equal
    if path == "metadata.name":
        return lambda stored: (stored.name == value) == equal
    if path == "metadata.namespace":
        return lambda stored: (stored.namespace == value) == equal
    path = path.replace("regarding.", "involvedObject.")
    if path not in kind.selectable and kind.storage != "events":
        raise bad_request(
            f'field label not supported: "{path}"; {kind.resource.plural} can be selected by '
            f"{', '.join(['metadata.name', 'metadata.namespace', *kind.selectable])}"
        )
    missing = "false" if path in _OF_FALSE else ""
    return lambda stored: ((stored.fields.get(path) or missing) == value) == equal
