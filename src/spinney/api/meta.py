"""What all objects share: metadata, owner references, conditions, selectors, status replies.

Structs hold the fields Spinney reads or writes. Fields they do not name are not lost: see
`spinney.api.codec`.
"""

from __future__ import annotations

from typing import Any, ClassVar, TypeVar

import msgspec

from spinney.api.resource import Resource


class ApiStruct(msgspec.Struct, rename="camel", omit_defaults=True, kw_only=True):
    """A part of an object; absent fields have their default and are not sent."""


class OwnerReference(ApiStruct):
    """Who an object belongs to; the garbage collector follows it."""

    api_version: str
    kind: str
    name: str
    uid: str
    controller: bool | None = None
    block_owner_deletion: bool | None = None


class ObjectMeta(ApiStruct):
    """Identity, versions, labels and ties of an object."""

    name: str = ""
    generate_name: str = ""
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    generation: int = 0
    creation_timestamp: str | None = None
    deletion_timestamp: str | None = None
    deletion_grace_period_seconds: int | None = None
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    owner_references: list[OwnerReference] = []
    finalizers: list[str] = []


class KubeObject(ApiStruct, dict=True):
    """A whole object. ``RESOURCE`` says what it is; the codec fills in apiVersion and kind."""

    RESOURCE: ClassVar[Resource]

    api_version: str = ""
    kind: str = ""
    metadata: ObjectMeta = msgspec.field(default_factory=ObjectMeta)

    @property
    def name(self) -> str:
        """``metadata.name``."""
        return self.metadata.name

    @property
    def namespace(self) -> str:
        """``metadata.namespace``, empty for objects of the cluster."""
        return self.metadata.namespace

    @property
    def key(self) -> str:
        """``namespace/name``, or the bare name for objects of the cluster."""
        meta = self.metadata
        return f"{meta.namespace}/{meta.name}" if meta.namespace else meta.name

    @property
    def labels(self) -> dict[str, str]:
        """``metadata.labels``."""
        return self.metadata.labels

    @property
    def deleting(self) -> bool:
        """Whether deletion has been asked for."""
        return self.metadata.deletion_timestamp is not None

    def owner_reference(self, *, block_owner_deletion: bool = True) -> OwnerReference:
        """Return the reference by which a child names this object as its controller."""
        return OwnerReference(
            api_version=self.RESOURCE.api_version,
            kind=self.RESOURCE.kind,
            name=self.metadata.name,
            uid=self.metadata.uid,
            controller=True,
            block_owner_deletion=block_owner_deletion,
        )

    def controller_uid(self) -> str | None:
        """Return the uid of the owner that controls this object, if one does."""
        for owner in self.metadata.owner_references:
            if owner.controller:
                return owner.uid
        return None


T = TypeVar("T", bound=KubeObject)


class Condition(ApiStruct):
    """One aspect of an object's state, for people and programs."""

    type: str
    status: str
    """``True``, ``False`` or ``Unknown``."""
    reason: str = ""
    message: str = ""
    last_transition_time: str | None = None
    observed_generation: int = 0


def find_condition(conditions: list[Condition], kind: str) -> Condition | None:
    """Return the condition of type *kind*, or None."""
    return next((c for c in conditions if c.type == kind), None)


def is_true(conditions: list[Condition], kind: str) -> bool:
    """Tell whether the condition of type *kind* is there and ``True``."""
    found = find_condition(conditions, kind)
    return found is not None and found.status == "True"


def with_condition(conditions: list[Condition], new: Condition, now: str) -> list[Condition]:
    """Return *conditions* with *new* in place of the one of its type.

    The transition time is kept while the status stays the same, and is *now* otherwise.
    The input is not changed.
    """
    old = find_condition(conditions, new.type)
    same = old is not None and old.status == new.status
    since = old.last_transition_time if old is not None and same else now
    placed = msgspec.structs.replace(new, last_transition_time=since)
    if old is None:
        return [*conditions, placed]
    return [placed if c.type == new.type else c for c in conditions]


class LabelSelectorRequirement(ApiStruct):
    """One line of ``matchExpressions``."""

    key: str
    operator: str
    values: list[str] = []


class LabelSelector(ApiStruct):
    """A selector as objects carry it; `spinney.api.selectors` matches it."""

    match_labels: dict[str, str] = {}
    match_expressions: list[LabelSelectorRequirement] = []


class StatusCause(ApiStruct):
    """One of several reasons for a refusal."""

    reason: str = ""
    message: str = ""
    field: str = ""


class StatusDetails(ApiStruct):
    """What a `Status` is about."""

    name: str = ""
    group: str = ""
    kind: str = ""
    uid: str = ""
    causes: list[StatusCause] = []
    retry_after_seconds: int = 0


class Status(ApiStruct):
    """The API's reply when there is no object to return: a refusal, mostly."""

    kind: str = "Status"
    api_version: str = "v1"
    metadata: dict[str, Any] = {}
    status: str = ""
    """``Success`` or ``Failure``."""
    message: str = ""
    reason: str = ""
    details: StatusDetails | None = None
    code: int = 0


class ListMeta(ApiStruct):
    """Version and continuation of a list."""

    resource_version: str = ""
    continue_: str = msgspec.field(default="", name="continue")
    remaining_item_count: int | None = None
