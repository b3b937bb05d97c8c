"""Structured logs: an event name and fields, one line per decision; always on standard error."""

from __future__ import annotations

import contextlib
import logging
import sys
from typing import Any, TextIO, cast

import msgspec
import structlog

Logger = structlog.typing.FilteringBoundLogger


class _StandardError:
    """Standard error as it is when something is written, not as it was at the start.

    A line that cannot be written, for want of space or of a reader, is lost: what it tells of goes
    on.
    """

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            sys.stderr.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            sys.stderr.flush()


# A line and its end go out in one piece: several processes may write to one place.
_LINES = structlog.WriteLoggerFactory(file=cast("TextIO", _StandardError()))


def reset() -> None:
    """Log as a program does that has not said how: everything, for people."""
    structlog.reset_defaults()
    structlog.configure(logger_factory=_LINES)


if not structlog.is_configured():
    reset()


def get_logger(component: str, **fields: Any) -> Logger:
    """Return a logger whose lines carry *component* and *fields*."""
    return cast("Logger", structlog.get_logger(component=component, **fields))


def _as_json(line: object, **_: object) -> str:
    return msgspec.json.encode(line, enc_hook=repr).decode()


def configure(*, level: str = "info", json: bool = False, final: bool = True) -> None:
    """Write the process's logs to stderr, for people or as JSON. Called by ``cmd``.

    *final*: loggers keep this for good, which halves the cost of a line.
    """
    renderer: Any = (
        structlog.processors.JSONRenderer(serializer=_as_json)
        if json
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(
            logging.getLevelNamesMapping()[level.upper()]
        ),
        logger_factory=_LINES,
        cache_logger_on_first_use=final,
    )
