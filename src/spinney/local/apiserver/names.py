"""Which names, labels and owner references an object may have."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from spinney.api.admission import FieldError

if TYPE_CHECKING:
    from spinney.api.resource import Unstructured

_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
_QUALIFIED = re.compile(
    r"([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
)

_SUBDOMAIN_TEXT = (
    "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or "
    "'.', and must start and end with an alphanumeric character"
)
_LABEL_TEXT = (
    "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', start "
    "and end with an alphanumeric character, and be at most 63 characters long"
)

_known_keys: set[str] = set()
"""Label keys found to be right: the same few are checked with every write."""
_KNOWN_KEYS = 10_000


def is_label(text: str) -> bool:
    """Tell whether *text* is a DNS-1123 label."""
    return _LABEL.fullmatch(text) is not None


def label_error(path: str, value: Any) -> FieldError | None:
    """Return what is wrong with a DNS-1123 label."""
    if isinstance(value, str) and is_label(value):
        return None
    return FieldError(path, "FieldValueInvalid", f'"{value}": {_LABEL_TEXT}')


def name_error(name: str, *, loose: bool, label: bool) -> FieldError | None:
    """Return what is wrong with an object's name."""
    if loose:
        good = bool(name) and name not in (".", "..") and "/" not in name and "%" not in name
        text = "must not be '.' or '..' and must not contain '/' or '%'"
    elif label:
        good, text = is_label(name), _LABEL_TEXT
    else:
        good = len(name) <= 253 and _SUBDOMAIN.fullmatch(name) is not None
        text = _SUBDOMAIN_TEXT
    return None if good else FieldError("metadata.name", "FieldValueInvalid", f'"{name}": {text}')


def metadata_errors(meta: Unstructured) -> list[FieldError]:
    """Return what is wrong with labels, annotations, finalizers and owner references."""
    errors = _map_errors(meta.get("labels"), "metadata.labels", labels=True)
    errors += _map_errors(meta.get("annotations"), "metadata.annotations", labels=False)
    owners = meta.get("ownerReferences")
    if owners:
        errors += _owner_errors(owners)
    for index, finalizer in enumerate(meta.get("finalizers") or ()):
        if not isinstance(finalizer, str) or not _QUALIFIED.fullmatch(finalizer):
            path = f"metadata.finalizers[{index}]"
            errors.append(FieldError(path, "FieldValueInvalid", f'"{finalizer}": not a name'))
    return errors


def _map_errors(values: Any, path: str, *, labels: bool) -> list[FieldError]:
    if not values:
        return []
    if not isinstance(values, dict):
        return [FieldError(path, "FieldValueInvalid", "must be a map of strings")]
    errors = []
    for key, value in values.items():
        if key not in _known_keys:
            if not _QUALIFIED.fullmatch(key):
                errors.append(FieldError(path, "FieldValueInvalid", f'"{key}": not a label key'))
            elif len(_known_keys) < _KNOWN_KEYS:
                _known_keys.add(key)
        if not isinstance(value, str):
            errors.append(FieldError(f"{path}.{key}", "FieldValueInvalid", "must be a string"))
        elif labels and not _LABEL_VALUE.fullmatch(value):
            errors.append(
                FieldError(
                    path,
                    "FieldValueInvalid",
                    f'"{value}": a valid label must be an empty string or consist of alphanumeric '
                    "characters, '-', '_' or '.', and must start and end with an alphanumeric "
                    "character",
                )
            )
    return errors


def _owner_errors(owners: list[Any]) -> list[FieldError]:
    errors = []
    controllers = 0
    for index, owner in enumerate(owners):
        path = f"metadata.ownerReferences[{index}]"
        if not isinstance(owner, dict):
            errors.append(FieldError(path, "FieldValueInvalid", "must be an object"))
            continue
        errors += [
            FieldError(f"{path}.{part}", "FieldValueInvalid", f"{part} must not be empty")
            for part in ("apiVersion", "kind", "name", "uid")
            if not owner.get(part)
        ]
        controllers += bool(owner.get("controller"))
    if controllers > 1:
        text = "Only one reference can have Controller set to true"
        errors.append(FieldError("metadata.ownerReferences", "FieldValueInvalid", text))
    return errors
