"""How the rules of the ``grove.io`` kinds say what is wrong: fields, reasons, names.

Every rule speaks through these functions, so that paths and words are the same everywhere.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from spinney.api.admission import FieldError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

TEMPLATE = "spec.template"
CLIQUES = f"{TEMPLATE}.cliques"
GROUPS = f"{TEMPLATE}.podCliqueScalingGroups"

MAX_NAME = 253
MAX_LABEL = 63
MAX_ANNOTATION_BYTES = 256 * 1024
"""Of all annotations of an object together, as the API server counts them."""

_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_KEY_NAME = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")


def invalid(path: str, detail: str) -> FieldError:
    """Return that a value is not allowed."""
    return FieldError(path, "FieldValueInvalid", detail)


def required(path: str, detail: str) -> FieldError:
    """Return that a value is missing; *detail* says what belongs there."""
    return FieldError(path, "FieldValueRequired", detail)


def duplicate(path: str, value: str) -> FieldError:
    """Return that a value is there twice."""
    return FieldError(path, "FieldValueDuplicate", repr(value))


def not_found(path: str, detail: str) -> FieldError:
    """Return that what a value names is not there."""
    return FieldError(path, "FieldValueNotFound", detail)


def forbidden(path: str, detail: str) -> FieldError:
    """Return that a field may not be set, or not so."""
    return FieldError(path, "FieldValueForbidden", detail)


def immutable(path: str, was: object = None) -> FieldError:
    """Return that an update changes what it may not; *was* is what has to stay."""
    detail = "may not be changed after creation" + (f"; it is {was!r}" if was is not None else "")
    return forbidden(path, detail)


def duplicates(values: Sequence[str], path: str) -> Iterator[FieldError]:
    """Yield an error for each value that was there before; ``{i}`` in *path* is its index.

    Blank values are not compared: that one is missing is another rule's, or allowed.
    """
    seen: set[str] = set()
    for i, value in enumerate(values):
        if value in seen and value.strip():
            yield duplicate(path.format(i=i), value)
        seen.add(value)


def is_subdomain(text: str) -> bool:
    """Tell whether *text* is a DNS-1123 subdomain, as names of objects are."""
    return len(text) <= MAX_NAME and _SUBDOMAIN.fullmatch(text) is not None


def is_label(text: str) -> bool:
    """Tell whether *text* is a DNS-1123 label."""
    return _LABEL.fullmatch(text) is not None


def check_name(path: str, name: str) -> Iterator[FieldError]:
    """Yield what is wrong with a name; of a blank one only that it is missing."""
    if not name.strip():
        yield required(path, "a name")
    elif not is_subdomain(name):
        yield invalid(
            path, f"{name!r} must be lower case letters, digits, '-' and '.', such as decode-a"
        )


def check_labels(path: str, labels: Mapping[str, str]) -> Iterator[FieldError]:
    """Yield each key and value that Kubernetes would refuse as a label."""
    for key, value in labels.items():
        if not _is_key(key):
            yield invalid(path, f"{key!r} is no label key; write one such as example.com/tier")
        if _VALUE.fullmatch(value) is None:
            yield invalid(
                path,
                f"{value!r} of {key!r} is no label value: at most {MAX_LABEL} letters, digits, "
                "'-', '_' and '.', with a letter or digit at both ends",
            )


def check_annotations(path: str, annotations: Mapping[str, str]) -> Iterator[FieldError]:
    """Yield each key that Kubernetes would refuse, and whether all are too large together."""
    for key in annotations:
        # Keys of annotations may have upper case in the prefix.
        if not _is_key(key.lower()):
            yield invalid(path, f"{key!r} is no annotation key; write one such as example.com/note")
    size = sum(len(k.encode()) + len(v.encode()) for k, v in annotations.items())
    if size > MAX_ANNOTATION_BYTES:
        yield invalid(path, f"{size} bytes of annotations, at most {MAX_ANNOTATION_BYTES} fit")


def _is_key(key: str) -> bool:
    prefix, slash, name = key.rpartition("/")
    return _KEY_NAME.fullmatch(name) is not None and (not slash or is_subdomain(prefix))
