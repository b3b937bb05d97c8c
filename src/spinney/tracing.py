"""The seam for traces: programs tell spans, whoever built them decides whether anybody listens.

Nothing here knows OpenTelemetry; `spinney.otel` is what does, and only a process that is told to
trace imports it. Invariant: with `NO_TRACER` a span is one shared object that does nothing, so that
programs need not ask whether traces are on.
"""

from __future__ import annotations

import re
from enum import Enum
from typing import TYPE_CHECKING, Protocol, Self

if TYPE_CHECKING:
    from collections.abc import Mapping

    Value = str | bool | int | float | list[str]
    Attributes = Mapping[str, Value]

TRACEPARENT = "traceparent"
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")


class Kind(Enum):
    """Which side of a call a span is."""

    INTERNAL = "internal"
    SERVER = "server"
    CLIENT = "client"


class Span(Protocol):
    """Something that takes time. It ends once; what is told of it afterwards is lost.

    As a context it ends with the block, and failed when the block raises.
    """

    @property
    def recording(self) -> bool:
        """Whether anybody will see it; what is told of it otherwise need not be made up."""
        ...

    @property
    def trace_id(self) -> str:
        """32 hexadecimal digits; empty when nothing is traced."""
        ...

    def child(
        self,
        name: str,
        attributes: Attributes | None = None,
        *,
        kind: Kind = Kind.INTERNAL,
        ago_s: float = 0.0,
    ) -> Span:
        """Return a span within this one that began *ago_s* seconds before now."""
        ...

    def rename(self, name: str) -> None:
        """Call it *name* from now on."""
        ...

    def set(self, attributes: Attributes) -> None:
        """Add *attributes*."""
        ...

    def event(self, name: str, attributes: Attributes | None = None) -> None:
        """Note that something happened now."""
        ...

    def carry(self, headers: dict[str, str]) -> dict[str, str]:
        """Return *headers* with those that make what is asked with them a part of this span."""
        ...

    def end(self, error: str = "", *, ago_s: float = 0.0) -> None:
        """End it, *ago_s* seconds before now; *error* is a word for what went wrong."""
        ...

    def __enter__(self) -> Self: ...
    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None: ...


class Tracer(Protocol):
    """Begins traces, or goes on with those that came with a request."""

    def begin(self, name: str, headers: Mapping[str, str], kind: Kind = Kind.SERVER) -> Span:
        """Return a span below the one that *headers* name (in lower case), if they name one."""
        ...


class NoSpan:
    """Does nothing."""

    __slots__ = ()
    recording = False

    @property
    def trace_id(self) -> str:
        """Empty."""
        return ""

    def child(
        self,
        name: str,
        attributes: Attributes | None = None,
        *,
        kind: Kind = Kind.INTERNAL,
        ago_s: float = 0.0,
    ) -> Span:
        """Return itself."""
        return self

    def rename(self, name: str) -> None:
        """Do nothing."""

    def set(self, attributes: Attributes) -> None:
        """Do nothing."""

    def event(self, name: str, attributes: Attributes | None = None) -> None:
        """Do nothing."""

    def carry(self, headers: dict[str, str]) -> dict[str, str]:
        """Return *headers*: what a client said of its own trace is passed on as it is."""
        return headers

    def end(self, error: str = "", *, ago_s: float = 0.0) -> None:
        """Do nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        return None


class NoTracer:
    """Traces nothing."""

    __slots__ = ()

    def begin(self, name: str, headers: Mapping[str, str], kind: Kind = Kind.SERVER) -> Span:
        """Return `NO_SPAN`."""
        return NO_SPAN


NO_SPAN: Span = NoSpan()
NO_TRACER: Tracer = NoTracer()


def trace_id_of(headers: Mapping[str, str]) -> str:
    """Return the trace that *headers* (in lower case) are of, empty when they do not say."""
    found = _TRACEPARENT.fullmatch(headers.get(TRACEPARENT, ""))
    return found.group(1) if found else ""
