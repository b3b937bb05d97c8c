"""The two patches that know nothing of kinds: JSON Merge Patch and JSON Patch."""

from __future__ import annotations

from typing import Any

import jsonpatch
import jsonpointer

from spinney.local.apiserver.patch.errors import BadPatchError, UnappliablePatchError

MAX_OPERATIONS = 10_000
"""Operations in one JSON Patch."""


def merge_patch(target: Any, patch: Any) -> Any:
    """Return *target* with *patch* applied (RFC 7386): null removes, lists are replaced."""
    if not isinstance(patch, dict):
        return patch
    merged = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = merge_patch(merged.get(key), value)
    return merged


def json_patch(target: Any, operations: Any) -> Any:
    """Return *target* with the operations applied in order (RFC 6902): all of them or none."""
    if not isinstance(operations, list):
        raise BadPatchError(
            f"JSON patch: a list of operations wanted, found {type(operations).__name__}"
        )
    if len(operations) > MAX_OPERATIONS:
        raise BadPatchError(
            f"JSON patch: {len(operations)} operations, at most {MAX_OPERATIONS} are allowed"
        )
    try:
        return jsonpatch.apply_patch(target, operations)
    except jsonpatch.InvalidJsonPatch as error:
        raise BadPatchError(f"JSON patch: {error}") from error
    except (jsonpatch.JsonPatchException, jsonpointer.JsonPointerException) as error:
        raise UnappliablePatchError(f"JSON patch: {error}") from error
    except (TypeError, KeyError, AttributeError, ValueError, IndexError) as error:
        # The library lets these through where an operation meets a value of a wrong type.
        raise UnappliablePatchError(f"JSON patch: an operation does not fit: {error}") from error
