"""The four ways to change part of an object, as functions of JSON values.

``merge_patch`` and ``json_patch`` know nothing of kinds. ``strategic_merge``, for built-in kinds,
and ``server_side_apply`` recognise the items of lists by keys, which a `schema.Node` tells. No
function changes its arguments; results may share parts with them, so treat both as read-only.

Who owns which field is written in ``metadata.managedFields``. Plain writes do not start such a
record: `ownership.track_update` returns at once for an object that has none, and the first apply
gives everything it finds to the manager ``before-first-apply``. So an object that is never
applied pays nothing, and one that is loses no conflict.
"""

from spinney.local.apiserver.patch.apply import server_side_apply
from spinney.local.apiserver.patch.errors import (
    ApplyConflictError,
    BadPatchError,
    Conflict,
    PatchError,
    UnappliablePatchError,
)
from spinney.local.apiserver.patch.merge import json_patch, merge_patch
from spinney.local.apiserver.patch.ownership import track_update
from spinney.local.apiserver.patch.schema import Node, builtin_schema, crd_schema
from spinney.local.apiserver.patch.strategic import strategic_merge

__all__ = [
    "ApplyConflictError",
    "BadPatchError",
    "Conflict",
    "Node",
    "PatchError",
    "UnappliablePatchError",
    "builtin_schema",
    "crd_schema",
    "json_patch",
    "merge_patch",
    "server_side_apply",
    "strategic_merge",
    "track_update",
]
