"""Protobuf bodies."""

from __future__ import annotations

from typing import Any

from spinney.local.apiserver.refusal import RefusalError

CONTENT_TYPE = "application/vnd.kubernetes.protobuf"


def decode(data: bytes) -> dict[str, Any]:
    """Return the object; raise RefusalError."""
    raise RefusalError(415, "UnsupportedMediaType", "send application/json")
