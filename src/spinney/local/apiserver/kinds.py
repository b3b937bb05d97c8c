"""What the server knows of each kind it serves, and which kinds there are right now.

Built-in kinds are there from the start; custom ones come and go with their
CustomResourceDefinitions. A resource served in several versions has one `Kind` for each and one
storage, named ``plural.group``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from spinney.api.admission import FieldError
    from spinney.api.resource import Resource, Unstructured
    from spinney.local.apiserver.schema import Schema

Path = tuple[str, ...]

READ_WRITE = ("create", "delete", "deletecollection", "get", "list", "patch", "update", "watch")

NO_FIELDS: Mapping[str, Path] = {}


class World(Protocol):
    """What rules of a kind may look up."""

    def find(self, storage: str, namespace: str, name: str) -> Unstructured | None:
        """Return a copy of another object, or None."""
        ...

    def all(self, storage: str) -> list[Unstructured]:
        """Return copies of all objects of a resource."""
        ...


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the table that ``kubectl get`` prints."""

    name: str
    cell: Callable[[Unstructured, float], Any]
    """Takes the object and the time of day in seconds."""
    type: str = "string"
    priority: int = 0
    """0 is always printed, 1 with ``-o wide``."""
    description: str = ""
    format: str = ""


@dataclass(frozen=True, slots=True)
class ScalePaths:
    """Where the scale subresource finds its numbers."""

    spec_replicas: Path = ("spec", "replicas")
    status_replicas: Path = ("status", "replicas")
    selector: Path = ()
    """A string with a label selector; empty when the kind has ``spec.selector`` instead."""


class View(Protocol):
    """How a version of a resource differs from what is stored."""

    def show(self, stored: Unstructured) -> Unstructured:
        """Return the object in this version; the input may be changed."""
        ...

    def accept(self, sent: Unstructured) -> Unstructured:
        """Return what is stored for an object in this version; the input may be changed."""
        ...


@dataclass(frozen=True, slots=True)
class NewApiVersion:
    """A version that differs in nothing but its name."""

    served: str
    stored: str

    def show(self, stored: Unstructured) -> Unstructured:
        """Name the served version."""
        stored["apiVersion"] = self.served
        return stored

    def accept(self, sent: Unstructured) -> Unstructured:
        """Name the stored version."""
        sent["apiVersion"] = self.stored
        return sent


@dataclass(frozen=True, slots=True, eq=False)
class Kind:
    """One version of one resource, with its rules."""

    resource: Resource
    status: bool = False
    """Whether status is written through its own subresource only."""
    status_on_create: bool = False
    generation: bool = False
    scale: ScalePaths | None = None
    subresources: tuple[tuple[str, str, str, str, tuple[str, ...]], ...] = ()
    """Further ones, for discovery: name, group, version, kind, verbs."""
    verbs: tuple[str, ...] = READ_WRITE
    selectable: Mapping[str, Path] = field(default_factory=dict)
    columns: Sequence[Column] = ()
    default: Callable[[Unstructured, Unstructured | None, World], None] | None = None
    """Fills in the object; called with the stored one on updates."""
    validate: Callable[[Unstructured, Unstructured | None], list[FieldError]] | None = None
    loose_names: bool = False
    """Whether names need only be path segments (RBAC uses colons)."""
    singular: str = ""
    schema: Schema | None = None
    """Of custom resources."""
    view: View | None = None
    """None when what is stored is what is served."""
    message: str = ""
    """Which entry of the table of fields describes it; empty if none does."""

    @property
    def custom(self) -> bool:
        """Whether a CustomResourceDefinition made it."""
        return self.schema is not None

    @property
    def storage(self) -> str:
        """The name its objects are stored under, common to all its versions."""
        if self.resource.group == "events.k8s.io":
            return "events"
        return self.resource.name

    @property
    def served_subresources(self) -> frozenset[str]:
        """Names of the subresources."""
        named = {name for name, *_ in self.subresources}
        if self.status:
            named.add("status")
        if self.scale:
            named.add("scale")
        return frozenset(named)


class Registry:
    """The kinds that are served now."""

    def __init__(self, kinds: Sequence[Kind]) -> None:
        self._kinds: dict[tuple[str, str, str], Kind] = {}
        self._stored: dict[str, Kind] = {}
        self.generation = 0
        """Grows whenever the set of kinds changes: documents made from it are remade."""
        for kind in kinds:
            self.add(kind)

    def add(self, kind: Kind) -> None:
        """Serve *kind*, in place of one of the same group, version and plural."""
        resource = kind.resource
        self._kinds[resource.group, resource.version, resource.plural] = kind
        if kind.view is None:
            self._stored[kind.storage] = kind
        self.generation += 1

    def remove(self, storage: str) -> None:
        """Stop serving all versions of a resource."""
        self._kinds = {k: v for k, v in self._kinds.items() if v.storage != storage}
        self._stored.pop(storage, None)
        self.generation += 1

    def find(self, group: str, version: str, plural: str) -> Kind | None:
        """Return the kind served at a path."""
        return self._kinds.get((group, version, plural))

    def stored(self, storage: str) -> Kind | None:
        """Return the kind whose version is the one stored."""
        return self._stored.get(storage)

    def of_object(self, api_version: str, kind: str) -> Kind | None:
        """Return the kind of an object by what it says of itself."""
        group, _, version = api_version.rpartition("/")
        for found in self._kinds.values():
            resource = found.resource
            if (resource.kind, resource.group, resource.version) == (kind, group, version):
                return found
        return None

    def selectable(self, storage: str) -> Mapping[str, Path]:
        """Return the field selectors of a resource and where their values are."""
        kind = self._stored.get(storage)
        return kind.selectable if kind else NO_FIELDS

    def groups(self) -> dict[str, list[str]]:
        """Return the versions of each group, in the order in which kinds were added."""
        found: dict[str, list[str]] = {}
        for group, version, _ in self._kinds:
            versions = found.setdefault(group, [])
            if version not in versions:
                versions.append(version)
        return found

    def in_version(self, group: str, version: str) -> list[Kind]:
        """Return the kinds of one group and version."""
        return [kind for key, kind in self._kinds.items() if key[:2] == (group, version)]
