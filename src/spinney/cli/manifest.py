"""Manifests: YAML or JSON documents from files, directories and standard input."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from spinney.errors import BadInputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from spinney.api.resource import Unstructured

SUFFIXES = (".yaml", ".yml", ".json")


@dataclass(frozen=True, slots=True)
class Document:
    """One object of a manifest, and where it stands."""

    source: str
    object: Unstructured

    @property
    def title(self) -> str:
        """The kind and name, for messages."""
        return f"{self.object['kind']} {self.object['metadata']['name']!r}"


def read_manifests(paths: Iterable[str]) -> list[Document]:
    """Return the objects in *paths* in order; ``-`` is standard input, a directory all its files.

    Raises BadInputError that names the file, the document and what is wrong with it.
    """
    documents = [document for path in paths for document in _read(path)]
    if not documents:
        raise BadInputError(f"no object in {', '.join(paths)}; a manifest has at least one")
    return documents


def _read(path: str) -> Iterator[Document]:
    if path == "-":
        yield from _parse("standard input", sys.stdin.read())
        return
    file = Path(path)
    if file.is_dir():
        files = sorted(f for f in file.iterdir() if f.suffix in SUFFIXES)
        if not files:
            raise BadInputError(f"{path}: no file ends in {', '.join(SUFFIXES)}")
        for child in files:
            yield from _parse(str(child), _text(child))
        return
    yield from _parse(path, _text(file))


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except FileNotFoundError:
        raise BadInputError(f"{file}: there is no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise BadInputError(f"{file}: cannot be read: {error}") from error


def _parse(source: str, text: str) -> Iterator[Document]:
    try:
        values = list(yaml.safe_load_all(text))
    except yaml.YAMLError as error:
        raise BadInputError(f"{source}: not valid YAML: {error}") from error
    for index, value in enumerate(v for v in values if v is not None):
        where = source if len(values) == 1 else f"{source}, document {index + 1}"
        for obj in _items(where, value):
            yield Document(where, _checked(where, obj))


def _items(where: str, value: Any) -> list[Any]:
    if not isinstance(value, dict):
        raise BadInputError(f"{where}: an object with apiVersion and kind wanted, found {value!r}")
    if str(value.get("kind", "")).endswith("List") and isinstance(value.get("items"), list):
        return list(value["items"])
    return [value]


def _checked(where: str, obj: Any) -> Unstructured:
    if not isinstance(obj, dict):
        raise BadInputError(f"{where}: an object wanted, found {obj!r}")
    for field in ("apiVersion", "kind"):
        if not isinstance(obj.get(field), str) or not obj[field]:
            raise BadInputError(f"{where}: the field {field} is missing")
    metadata = obj.get("metadata")
    if not isinstance(metadata, dict) or not metadata.get("name"):
        raise BadInputError(f"{where}: {obj['kind']} has no metadata.name")
    return obj
