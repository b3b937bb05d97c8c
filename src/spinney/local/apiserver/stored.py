"""The unit of the store: one version of one object."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Mapping

    from spinney.api.resource import Unstructured


@dataclass(frozen=True, slots=True, eq=False)
class Stored:
    """One version of one object, with what indexes and selectors need of it."""

    storage: str
    """Name of the resource, ``plural.group``, whatever version it is served in."""
    namespace: str
    name: str
    uid: str
    revision: int
    raw: bytes
    labels: Mapping[str, str]
    fields: Mapping[str, str]
    """Values of the field selectors the kind supports."""
    owners: tuple[str, ...]
    """The uids of its owners."""
    deleting: bool

    def decode(self) -> Unstructured:
        """Return a copy of the object that the caller may change."""
        obj: Unstructured = msgspec.json.decode(self.raw)
        return obj
