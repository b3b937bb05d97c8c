"""Which resource a kind is: its group, version, plural and where it lives in the API.

Every typed object names its `Resource`; objects of kinds without a type are `Unstructured`
dicts and go with the `Resource` that discovery told of.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Unstructured = dict[str, Any]
"""An object as the API sends it: JSON with ``apiVersion``, ``kind`` and ``metadata``."""


@dataclass(frozen=True, slots=True)
class Resource:
    """One kind of object as the API serves it."""

    group: str
    """Empty for the core group."""
    version: str
    kind: str
    plural: str
    namespaced: bool = True
    short_names: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()

    @property
    def api_version(self) -> str:
        """``group/version``, or the bare version in the core group."""
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def singular(self) -> str:
        """The kind in lower case."""
        return self.kind.lower()

    @property
    def name(self) -> str:
        """``plural.group``, or the bare plural in the core group."""
        return f"{self.plural}.{self.group}" if self.group else self.plural

    def path(
        self, namespace: str | None = None, name: str | None = None, subresource: str | None = None
    ) -> str:
        """Return the URL path of the collection, of one object, or of its subresource.

        Without *namespace* a namespaced collection is that of all namespaces.
        """
        root = f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"
        parts = [root]
        if self.namespaced and namespace:
            parts.append(f"namespaces/{namespace}")
        parts.append(self.plural)
        if name:
            parts.append(name)
        if subresource:
            parts.append(subresource)
        return "/".join(parts)
