"""Reads a Hugging Face model directory: `config.json` and safetensors, whole or sharded.

Tensors are read from the files directly, because bfloat16 has no NumPy type: its sixteen bits are
the upper half of a float32. Invariant: what loads is complete and of the shapes the configuration
implies; everything else is a BadInputError that names the file and what is wrong in it.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from spinney.engine.model import ModelConfig, ModelWeights, gather_weights, parse_config
from spinney.errors import BadInputError
from spinney.kv.layout import KVLayout

if TYPE_CHECKING:
    from pathlib import Path

    from spinney.engine.executor import ByteArray, FloatArray
    from spinney.engine.part import Part

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
MAX_HEADER_BYTES = 100_000_000
"""A header longer than this is taken for a damaged file, as the format's own reader does."""
FINGERPRINT_SAMPLE_BYTES = 4096
"""How much of the beginning, middle and end of a weight file goes into the fingerprint."""

_ELEMENT_BYTES = {"F32": 4, "F16": 2, "BF16": 2}


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """A model in memory, or a rank's part of it.

    *fingerprint* is equal for equal configuration and weights, and that of the whole model. Of a
    part, *config* and *weights* are the part's and *whole* is the model's configuration.
    """

    directory: Path
    config: ModelConfig
    weights: ModelWeights
    fingerprint: str
    whole: ModelConfig | None = None

    def cut(self, part: Part) -> Checkpoint:
        """Return what *part* computes with; it may be that already."""
        if part.ranks == 1 or self.whole is not None:
            return self
        cut = part.cut_of(self.config)
        layers = tuple(cut.layer(layer) for layer in self.weights.layers)
        return replace(
            self,
            config=cut.config,
            weights=replace(self.weights, layers=layers),
            whole=self.config,
        )

    def kv_layout(self, part: Part, dtype: str, block_size: int) -> KVLayout:
        """Return what a block of all ranks of *part* together is."""
        config = self.whole or self.config
        return KVLayout(
            model=self.fingerprint,
            dtype=dtype,
            layers=config.num_layers,
            kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            block_size=block_size,
            ranks=part.ranks,
        )


def load_checkpoint(directory: Path, part: Part | None = None) -> Checkpoint:
    """Read the model in *directory*, or *part* of it, converting weights to float32.

    Raises BadInputError, naming the path, when a file or a tensor is missing or wrong, or when so
    many ranks cannot share the model.
    """
    config = load_config(directory)
    files = _open_weights(directory)
    if part is None or part.ranks == 1:
        weights = gather_weights(config, files.tensor)
        return Checkpoint(directory, config, weights, _fingerprint(directory, files))
    cut = part.cut_of(config)
    weights = gather_weights(config, files.tensor, cut.layer)
    return Checkpoint(directory, cut.config, weights, _fingerprint(directory, files), config)


def load_config(directory: Path) -> ModelConfig:
    """Read ``config.json`` alone."""
    if not directory.is_dir():
        raise BadInputError(
            f"{directory}: no such model directory; give a directory with config.json, "
            f"{SINGLE_FILE} and tokenizer.json"
        )
    path = directory / "config.json"
    return parse_config(read_json(path), str(path))


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in *path*; raise BadInputError when it is absent or no object."""
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise BadInputError(f"{path}: missing; a Hugging Face model directory has it") from None
    except (OSError, ValueError) as error:
        raise BadInputError(f"{path}: cannot be read as JSON: {error}") from None
    if not isinstance(value, dict):
        raise BadInputError(f"{path}: a JSON object is needed, found {type(value).__name__}")
    return value


class SafetensorsFile:
    """One mapped safetensors file. Its header is checked when it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._bytes: ByteArray = np.memmap(path, dtype=np.uint8, mode="r")
        except FileNotFoundError:
            raise BadInputError(f"{path}: missing; the weights are in it") from None
        except (OSError, ValueError) as error:
            raise BadInputError(f"{path}: cannot be read: {error}") from None
        self.header_bytes = self._header_bytes()
        self._data_start = 8 + len(self.header_bytes)
        self._entries = self._parse(self.header_bytes)

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    @property
    def names(self) -> list[str]:
        """Tensors in the file, in header order."""
        return list(self._entries)

    def read(self, name: str) -> FloatArray:
        """Return tensor *name* as float32; raise BadInputError for another element type."""
        entry = self._entries[name]
        dtype, shape = entry["dtype"], tuple(entry["shape"])
        begin, end = entry["data_offsets"]
        if dtype not in _ELEMENT_BYTES:
            raise BadInputError(
                f"{self.path}: {name} is {dtype}; this engine reads F32, F16 and BF16"
            )
        size = math.prod(shape) * _ELEMENT_BYTES[dtype]
        if end - begin != size or self._data_start + end > self._bytes.size:
            raise BadInputError(
                f"{self.path}: {name} needs {size} bytes at {begin}, the file holds "
                f"{self._bytes.size - self._data_start}; it is damaged or cut short"
            )
        raw = self._bytes[self._data_start + begin : self._data_start + end]
        return _to_float32(np.asarray(raw).copy(), dtype).reshape(shape)

    def sample(self) -> bytes:
        """Return the header and some bytes of the data: enough to tell weights apart."""
        piece, size = FINGERPRINT_SAMPLE_BYTES, self._bytes.size
        starts = (self._data_start, (self._data_start + size) // 2, max(0, size - piece))
        return self.header_bytes + b"".join(
            self._bytes[start : start + piece].tobytes() for start in starts
        )

    def _header_bytes(self) -> bytes:
        if self._bytes.size < 8:
            raise BadInputError(f"{self.path}: too short to be a safetensors file")
        length = int.from_bytes(self._bytes[:8].tobytes(), "little")
        if length > MAX_HEADER_BYTES or 8 + length > self._bytes.size:
            raise BadInputError(
                f"{self.path}: its header claims {length} bytes, the file has "
                f"{self._bytes.size}; it is damaged or no safetensors file"
            )
        return self._bytes[8 : 8 + length].tobytes()

    def _parse(self, header: bytes) -> dict[str, dict[str, Any]]:
        try:
            entries = json.loads(header)
            entries.pop("__metadata__", None)
            for entry in entries.values():
                _ = entry["dtype"], entry["shape"], entry["data_offsets"]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BadInputError(f"{self.path}: the header cannot be read: {error}") from None
        return dict(entries)


def _to_float32(raw: ByteArray, dtype: str) -> FloatArray:
    if dtype == "F32":
        return raw.view("<f4").astype(np.float32, copy=False)
    if dtype == "F16":
        return raw.view("<f2").astype(np.float32)
    return (raw.view("<u2").astype(np.uint32) << 16).view(np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class _WeightFiles:
    by_tensor: dict[str, SafetensorsFile]
    files: tuple[SafetensorsFile, ...]
    where: str

    def tensor(self, name: str, shape: tuple[int, ...]) -> FloatArray:
        file = self.by_tensor.get(name)
        if file is None:
            raise BadInputError(f"{self.where}: tensor {name} is missing")
        value = file.read(name)
        if value.shape != shape:
            raise BadInputError(
                f"{file.path}: {name} has shape {list(value.shape)}, config.json implies "
                f"{list(shape)}"
            )
        return value


def _open_weights(directory: Path) -> _WeightFiles:
    index, single = directory / INDEX_FILE, directory / SINGLE_FILE
    if single.exists() or not index.exists():
        if not single.exists():
            raise BadInputError(f"{single}: missing, and so is {INDEX_FILE}; no weights to load")
        file = SafetensorsFile(single)
        return _WeightFiles(dict.fromkeys(file.names, file), (file,), str(single))
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise BadInputError(f"{index}: weight_map is missing; it maps tensors to files")
    opened = {name: SafetensorsFile(directory / name) for name in sorted(set(shards.values()))}
    for tensor, name in shards.items():
        if tensor not in opened[name]:
            raise BadInputError(f"{directory / name}: lacks {tensor}, which {index.name} promises")
    by_tensor = {tensor: opened[name] for tensor, name in shards.items()}
    return _WeightFiles(by_tensor, tuple(opened.values()), str(index))


def _fingerprint(directory: Path, weights: _WeightFiles) -> str:
    digest = hashlib.sha256((directory / "config.json").read_bytes())
    for file in weights.files:
        digest.update(file.sample())
    return digest.hexdigest()[:32]
