"""What deciders ask for, and the one place that does it.

An action names one object of the API. Performing it again is harmless: what exists is not created
twice, what is gone is not deleted twice, and a deletion names the uid it means, so that a
namesake made since survives.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, cast

from spinney.api import codec
from spinney.errors import SpinneyError
from spinney.kube.errors import AlreadyExistsError, ConflictError, NotFoundError
from spinney.kube.transport import TransportError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

    from spinney.api.meta import KubeObject
    from spinney.kube.client import KubeClient

T = TypeVar("T")

MAX_IN_FLIGHT = 16
"""Requests that one reconcile has under way at a time."""


class NameTakenError(SpinneyError):
    """An object of the wanted name exists and belongs to somebody else."""


@dataclass(frozen=True, slots=True)
class Create:
    """Make a new object."""

    object: KubeObject


@dataclass(frozen=True, slots=True)
class Change:
    """Change an object: a merge patch."""

    object: KubeObject
    patch: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Delete:
    """Ask for an object's deletion; what it owns goes with it."""

    object: KubeObject


Action = Create | Change | Delete


async def perform(client: KubeClient, actions: Iterable[Action]) -> None:
    """Do *actions*, all of one kind of action at a time: deletions, creations, changes.

    Raises the first failure after all that were started have ended.
    """
    todo = list(actions)
    for kind in (Delete, Create, Change):
        calls = [_call(client, action) for action in todo if isinstance(action, kind)]
        _, errors = await in_batches(calls)
        if errors:
            raise errors[0]


async def in_batches(
    calls: Sequence[Callable[[], Awaitable[T]]],
) -> tuple[list[T], list[Exception]]:
    """Make *calls* in batches that double up to `MAX_IN_FLIGHT`; stop after one with a failure.

    So a refusal that holds for all, such as a quota, costs few requests. Returns results and
    failures in the order of the calls.
    """
    done: list[T] = []
    start, size = 0, 1
    while start < len(calls):
        batch = [call() for call in calls[start : start + size]]
        results = await asyncio.gather(*batch, return_exceptions=True)
        done += cast("list[T]", [r for r in results if not isinstance(r, BaseException)])
        errors: list[Exception] = []
        for result in results:
            if isinstance(result, SpinneyError | TransportError):
                errors.append(result)
            elif isinstance(result, BaseException):
                raise result
        if errors:
            return done, errors
        start, size = start + size, min(size * 2, MAX_IN_FLIGHT)
    return done, []


def metadata_patch(
    existing: KubeObject, labels: Mapping[str, str], annotations: Mapping[str, str]
) -> dict[str, Any]:
    """Return the merge patch that sets *labels* and *annotations*; empty if they are set.

    Others that the object has are left alone.
    """
    patch: dict[str, Any] = {}
    if new := _missing(existing.metadata.labels, labels):
        patch["labels"] = new
    if new := _missing(existing.metadata.annotations, annotations):
        patch["annotations"] = new
    return {"metadata": patch} if patch else {}


def covers(existing: Any, wanted: Any) -> bool:
    """Tell whether *existing* says all that *wanted* says; it may say more, as defaults do."""
    if isinstance(wanted, dict):
        return isinstance(existing, dict) and all(
            key in existing and covers(existing[key], value) for key, value in wanted.items()
        )
    if isinstance(wanted, list):
        return (
            isinstance(existing, list)
            and len(existing) == len(wanted)
            and all(map(covers, existing, wanted))
        )
    return bool(existing == wanted)


def status_patch(before: KubeObject, after: KubeObject) -> dict[str, Any]:
    """Return the merge patch from one status to another, refused if the object changed since.

    Empty when they are equal. Conditions are one list, so a write by another must not be
    lost: the patch names the version it was made from.
    """
    changes = codec.merge_diff(before, after)
    if "status" not in changes:
        return {}
    version = before.metadata.resource_version
    return {"metadata": {"resourceVersion": version}, "status": changes["status"]}


def _missing(have: Mapping[str, str], want: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in want.items() if have.get(key) != value}


def _call(client: KubeClient, action: Action) -> Callable[[], Awaitable[None]]:
    async def run() -> None:
        match action:
            case Create(obj):
                await _create(client, obj)
            case Change(obj, patch):
                await client.patch(type(obj), obj.name, patch, obj.namespace or None)
            case Delete(obj):
                await delete(client, obj)

    return run


async def is_current(client: KubeClient, obj: KubeObject) -> bool:
    """Ask the API whether *obj* still says what this copy of it says; its status may differ.

    Who takes away what serves does it by what is wanted now; a copy may be of before the last edit.
    """
    try:
        found = await client.get(type(obj), obj.name, obj.namespace or None)
    except NotFoundError:
        return False
    now, then = found.metadata, obj.metadata
    return (now.uid, now.generation, now.labels, now.annotations, now.deletion_timestamp) == (
        then.uid,
        then.generation,
        then.labels,
        then.annotations,
        then.deletion_timestamp,
    )


async def delete(client: KubeClient, obj: KubeObject) -> None:
    """Ask for the deletion of exactly *obj*; if it is gone or replaced, do nothing."""
    try:
        await client.delete(
            type(obj),
            obj.name,
            obj.namespace or None,
            uid=obj.metadata.uid,
            propagation="Background",
        )
    except (NotFoundError, ConflictError):
        return


async def _create(client: KubeClient, obj: KubeObject) -> None:
    try:
        await client.create(obj)
    except AlreadyExistsError as error:
        found = await client.get(type(obj), obj.name, obj.namespace or None)
        if found.controller_uid() != obj.controller_uid() or found.deleting:
            raise NameTakenError(
                f"{obj.RESOURCE.kind} {obj.key} cannot be created: one of that name exists and "
                f"{'is being deleted' if found.deleting else 'belongs to somebody else'}; "
                "waiting for it to go"
            ) from error
