"""Why a recent request was served as it was: its decisions and what came of them.

No prompt and no answer is kept, only who was considered, chosen and failed, and when. The ring is
bounded; the oldest story is forgotten first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from spinney.router.limits import Limits


@dataclass(frozen=True, slots=True)
class Step:
    """Something that happened to a request."""

    at_ms: float
    """Since the request came."""
    what: str
    fields: dict[str, Any]


@dataclass(slots=True)
class Story:
    """One request, from coming to ending."""

    id: str
    path: str
    model: str
    prompt_tokens: int
    stream: bool
    came_at: float
    """Seconds since the Unix epoch."""
    steps: list[Step] = field(default_factory=list)
    outcome: str = "running"
    steps_dropped: int = 0
    trace_id: str = ""
    """Empty when neither the client nor this process traces."""
    tenant: str = ""
    mode: str = ""
    prefill_worker: str = ""
    decode_worker: str = ""
    """Who sent its first byte; those that went on with the stream are in the steps."""
    queue_ms: float = 0.0
    ttft_ms: float | None = None
    duration_ms: float | None = None
    input_tokens: int | None = None
    """As the worker counted them; None where it did not say."""
    output_tokens: int | None = None
    cached_tokens: int | None = None
    attempts: int = 0
    migrations: int = 0

    def encode(self) -> bytes:
        """Return it as JSON."""
        return msgspec.json.encode(self, enc_hook=_listed)


def _listed(value: object) -> object:
    if isinstance(value, Sequence):
        return list(value)
    raise TypeError(f"a story has a value of type {type(value).__name__}")


class Stories:
    """The last requests, by id."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._stories: OrderedDict[str, Story] = OrderedDict()

    def begin(self, story: Story) -> None:
        """Keep *story*; another of the same id gives way to it."""
        self._stories[story.id] = story
        self._stories.move_to_end(story.id)
        while len(self._stories) > self._limits.max_stories:
            self._stories.popitem(last=False)

    def note(self, story: Story, at_ms: float, what: str, **fields: Any) -> None:
        """Add a step; beyond ``max_steps_per_story`` they are only counted."""
        if len(story.steps) < self._limits.max_steps_per_story:
            story.steps.append(Step(round(at_ms, 3), what, fields))
        else:
            story.steps_dropped += 1

    def get(self, request_id: str) -> Story | None:
        """Return the story of the request, or None when it is forgotten or never came."""
        return self._stories.get(request_id)

    def recent(self, most: int = 100) -> list[dict[str, Any]]:
        """Return a line for each of the last requests, the newest first."""
        newest = list(reversed(self._stories.values()))[:most]
        return [
            {"id": s.id, "path": s.path, "model": s.model, "outcome": s.outcome} for s in newest
        ]
