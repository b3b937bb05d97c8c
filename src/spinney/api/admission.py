"""The interface by which rules of a kind take part in writes: defaulting, then validation.

Hooks are pure. The same ones serve the embedded API server in-process and, on other clusters, an
admission webhook. What they may look up comes as a function, so that a test can pass a dict's.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from spinney.api.resource import Resource, Unstructured

Operation = Literal["CREATE", "UPDATE", "DELETE", "CONNECT"]
Reason = Literal[
    "FieldValueRequired",
    "FieldValueInvalid",
    "FieldValueForbidden",
    "FieldValueDuplicate",
    "FieldValueNotFound",
    "FieldValueNotSupported",
]

_WORDS: dict[Reason, str] = {
    "FieldValueRequired": "Required value",
    "FieldValueInvalid": "Invalid value",
    "FieldValueForbidden": "Forbidden",
    "FieldValueDuplicate": "Duplicate value",
    "FieldValueNotFound": "Not found",
    "FieldValueNotSupported": "Unsupported value",
}


@dataclass(frozen=True, slots=True)
class FieldError:
    """One broken rule: where, what kind, and what would be right."""

    path: str
    """Such as ``spec.template.cliques[1].spec.replicas``."""
    reason: Reason
    detail: str

    @property
    def message(self) -> str:
        """The rule in words, without the path."""
        return f"{_WORDS[self.reason]}: {self.detail}"

    def __str__(self) -> str:
        return f"{self.path}: {self.message}"


@dataclass(frozen=True, slots=True)
class AdmissionRequest:
    """A write that asks to be let through."""

    operation: Operation
    resource: Resource
    obj: Unstructured
    """The object as it would be stored; on DELETE, as it is."""
    old: Unstructured | None = None
    """The object as it is stored, on UPDATE and DELETE."""
    subresource: str = ""
    user: str = ""
    lookup: Callable[[Resource, str, str], Unstructured | None] = field(
        default=lambda _resource, _namespace, _name: None
    )
    """Returns another object by resource, namespace and name, or None."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What validation found: nothing written when there is an error."""

    errors: tuple[FieldError, ...] = ()
    warnings: tuple[str, ...] = ()


class AdmissionHook(Protocol):
    """Defaults and validates the objects of the resources it names."""

    @property
    def resources(self) -> frozenset[str]:
        """Names of resources (``podcliquesets.grove.io``) that it has rules for."""
        ...

    def default(self, request: AdmissionRequest) -> Unstructured:
        """Return ``request.obj`` with defaults filled in; the input is not changed.

        Called on CREATE and UPDATE, before the schema is checked.
        """
        ...

    def validate(self, request: AdmissionRequest) -> Verdict:
        """Return every rule that the write breaks."""
        ...
