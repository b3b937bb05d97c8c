"""Why a patch cannot be applied, one type per reaction.

PatchError
├── BadPatchError          400  the patch itself is malformed
├── UnappliablePatchError  422  well-formed, but it does not fit this object
└── ApplyConflictError     409  other managers own what it would change
"""

from __future__ import annotations

from dataclasses import dataclass

from spinney.errors import SpinneyError


class PatchError(SpinneyError):
    """The patch was not applied."""


class BadPatchError(PatchError):
    """The patch is malformed."""


class UnappliablePatchError(PatchError):
    """The patch does not fit the object it is for."""


@dataclass(frozen=True, slots=True)
class Conflict:
    """One field that an apply would change and another manager owns."""

    manager: str
    """The owner as messages name it, such as ``"kubectl" using v1 at …``."""
    field: str
    """Such as ``.spec.containers[name="main"].image``."""

    @property
    def message(self) -> str:
        """The cause, without the field."""
        return f"conflict with {self.manager}"


class ApplyConflictError(PatchError):
    """Other managers own fields that the apply would change; ``conflicts`` lists them."""

    def __init__(self, conflicts: list[Conflict]) -> None:
        super().__init__(_message(conflicts))
        self.conflicts = conflicts


def _message(conflicts: list[Conflict]) -> str:
    if len(conflicts) == 1:
        only = conflicts[0]
        return f"Apply failed with 1 conflict: {only.message}: {only.field}"
    by_manager: dict[str, list[str]] = {}
    for conflict in conflicts:
        by_manager.setdefault(conflict.manager, []).append(f"- {conflict.field}")
    parts = [
        "\n".join([f"conflicts with {manager}:", *fields]) for manager, fields in by_manager.items()
    ]
    return f"Apply failed with {len(conflicts)} conflicts: " + "\n".join(parts)
