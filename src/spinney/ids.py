"""The seam for identity: unique ids and random name suffixes come from an `IdSource`."""

from __future__ import annotations

import uuid
from random import Random, SystemRandom
from typing import Protocol

SUFFIX_ALPHABET = "bcdfghjklmnpqrstvwxz2456789"
"""Kubernetes' own choice: no vowels, so no words; no characters that look alike."""


class IdSource(Protocol):
    """Makes identities."""

    def uid(self) -> str:
        """Return a UUID that no other call returns."""
        ...

    def suffix(self, length: int = 5) -> str:
        """Return *length* random characters that are legal at the end of an object's name."""
        ...


class RandomIds:
    """Identities from *rng*: the same seed gives the same ones."""

    def __init__(self, rng: Random | None = None) -> None:
        self._rng = rng or SystemRandom()

    def uid(self) -> str:
        """Return a random UUID, version 4."""
        return str(uuid.UUID(int=self._rng.getrandbits(128), version=4))

    def suffix(self, length: int = 5) -> str:
        """Return *length* characters of `SUFFIX_ALPHABET`."""
        return "".join(self._rng.choices(SUFFIX_ALPHABET, k=length))
