"""How routers know that it is one of them that speaks: what they say is sealed with a secret.

A seal is an HMAC over when it was made, what is asked and the body, so that who listens on the
network learns no secret and can change nothing; an answer is sealed with the seal of its question.
Invariant: comparisons take the same time whatever differs, and nothing that came unsealed is read
any further. What was sent can be sent again for `MOST_AGE_S`: what routers tell each other is
numbered, so that it has no effect twice.
"""

from __future__ import annotations

import hashlib
import hmac
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from spinney.clock import Clock

HEADER = "x-spinney-peer"
MOST_AGE_S = 60.0
"""How far the clocks of two routers' hosts may be apart."""
LEAST_SECRET = 16
"""Bytes; a shorter one could be guessed."""


class Refusal(StrEnum):
    """Why what came was not taken."""

    UNSEALED = "unsealed"
    """There is no seal, or nothing that is one."""
    SECRET = "secret"
    """It was made with another secret, or changed on its way."""
    CLOCK = "clock"
    """It is too old, or of the future."""
    MALFORMED = "malformed"
    """It is sealed, and is no message."""
    TOO_LARGE = "too-large"


WORDS = {
    Refusal.UNSEALED: "the request is not sealed; only routers ask here",
    Refusal.SECRET: (
        "the seal was made with another secret; give all routers the same one "
        "(--peer-secret-file or SPINNEY_PEER_SECRET)"
    ),
    Refusal.CLOCK: f"the routers' clocks are more than {MOST_AGE_S:.0f} s apart; set them",
    Refusal.MALFORMED: "the message is not one of a router, or has figures out of bounds",
    Refusal.TOO_LARGE: "the message is too large",
}


class Seal:
    """Seals what is sent with *secret*, and tells whether what came was."""

    def __init__(self, secret: bytes, clock: Clock) -> None:
        assert len(secret) >= LEAST_SECRET, "secrets are checked where they are read"
        self._secret = secret
        self._clock = clock

    def question(self, method: str, path: str, body: bytes) -> str:
        """Return the header's value for a request that is sent now."""
        made = f"{self._clock.now():.3f}"
        return f"{made}.{self._mac(made, f'{method} {path}', body)}"

    def refusal(self, seal: str, method: str, path: str, body: bytes) -> Refusal | None:
        """Return why a request with this *seal* is not taken, None when it is."""
        made, _, given = seal.rpartition(".")
        try:
            age_s = abs(self._clock.now() - float(made))
        except ValueError:
            return Refusal.UNSEALED
        if not _same(given, self._mac(made, f"{method} {path}", body)):
            return Refusal.SECRET
        return None if age_s <= MOST_AGE_S else Refusal.CLOCK

    def answer(self, seal: str, body: bytes) -> str:
        """Return the header's value for the answer to the request with *seal*."""
        return self._mac(seal, "answer", body)

    def answers(self, given: str, seal: str, body: bytes) -> bool:
        """Whether *given* was made for *body* as the answer to the request with *seal*."""
        return _same(given, self.answer(seal, body))

    def _mac(self, first: str, second: str, body: bytes) -> str:
        head = f"{first}\n{second}\n".encode("utf-8", "surrogateescape")
        return hmac.new(self._secret, head + body, hashlib.sha256).hexdigest()


def _same(given: str, wanted: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "surrogateescape"), wanted.encode())
