"""The one place where requests to patch meet the functions that compute patches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from spinney.kube import transport as wire
from spinney.local.apiserver.patch import (
    ApplyConflictError,
    BadPatchError,
    PatchError,
    builtin_schema,
    json_patch,
    merge_patch,
    server_side_apply,
    strategic_merge,
    track_update,
)
from spinney.local.apiserver.refusal import RefusalError, bad_request

if TYPE_CHECKING:
    from spinney.api.resource import Unstructured
    from spinney.local.apiserver.kinds import Kind
    from spinney.local.apiserver.patch import Node


def patched(kind: Kind, content_type: str, old: Unstructured, patch: Any) -> Unstructured:
    """Return *old* with a merge, JSON or strategic *patch* applied; raise RefusalError."""
    try:
        match content_type:
            case wire.MERGE_PATCH:
                if not isinstance(patch, dict):
                    raise bad_request("a merge patch is a JSON object")
                return merge_patch(old, patch)  # type: ignore[no-any-return]  # Of an object.
            case wire.JSON_PATCH:
                result = json_patch(old, patch)
                if not isinstance(result, dict):
                    raise bad_request("the patch leaves no JSON object")
                return result
            case wire.STRATEGIC_PATCH if not kind.custom:
                return strategic_merge(old, patch, _merging(kind))
    except PatchError as error:
        raise _refused(error) from error
    types = [wire.JSON_PATCH, wire.MERGE_PATCH, wire.APPLY_PATCH]
    if not kind.custom:
        types.insert(2, wire.STRATEGIC_PATCH)
    raise RefusalError(
        415,
        "UnsupportedMediaType",
        "the body of the request was in an unknown format - accepted media types include: "
        f"{', '.join(types)}",
    )


def applied(
    kind: Kind,
    live: Unstructured | None,
    configuration: Any,
    *,
    manager: str,
    force: bool,
    now: str,
    subresource: str,
) -> Unstructured:
    """Return *live* (None: a new object) with *configuration* applied by *manager*."""
    try:
        result = server_side_apply(
            live,
            configuration,
            manager,
            force,
            _merging(kind),
            now,
            subresource=subresource,
            has_status=kind.status,
        )
    except PatchError as error:
        raise _refused(error) from error
    return result.object


def tracked(
    kind: Kind, old: Unstructured, new: Unstructured, *, manager: str, now: str, subresource: str
) -> Unstructured:
    """Return *new*, about to be stored over *old* by a plain write, with its owners brought up
    to date."""
    try:
        return track_update(old, new, manager, now, _merging(kind), subresource)
    except PatchError as error:
        raise _refused(error) from error


def _merging(kind: Kind) -> Node:
    return kind.schema.merging if kind.schema else builtin_schema(kind.resource.name)


def _refused(error: PatchError) -> RefusalError:
    if isinstance(error, ApplyConflictError):
        causes = [
            {"reason": "FieldManagerConflict", "message": c.message, "field": c.field}
            for c in error.conflicts
        ]
        return RefusalError(409, "Conflict", str(error), details={"causes": causes})
    if isinstance(error, BadPatchError):
        return bad_request(str(error))
    return RefusalError(422, "Invalid", str(error))
