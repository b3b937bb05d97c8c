"""Who can serve: a worker as the router sees it, and where the list of workers comes from.

A `Worker` is a value; when anything about it changes, the source has another one under the same
name. A worker whose address or uid changed is a new worker: what was known of the old one is void.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol
from urllib.parse import urlsplit

from spinney.errors import BadInputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


class Role(StrEnum):
    """What a worker is for."""

    PREFILL = "prefill"
    DECODE = "decode"
    BOTH = "both"


class Way(StrEnum):
    """How KV comes from one worker to the other; workers of different ways do not pair."""

    TICKET = "ticket"
    """The prefill worker answers with a ticket, which the decode worker gets."""
    RENDEZVOUS = "rendezvous"
    """Both are called at once; see `spinney.router.rendezvous`."""
    SGLANG = "sglang"
    """The same, of workers that refuse whatever comes without a meeting."""


class Stage(StrEnum):
    """The two halves of a request."""

    PREFILL = "prefill"
    DECODE = "decode"


@dataclass(frozen=True, slots=True)
class Worker:
    """One worker."""

    name: str
    url: str
    """``http://host:port``, without a slash at the end."""
    role: Role
    models: frozenset[str] = field(default_factory=frozenset)
    """Names it serves; empty when not known yet."""
    ready: bool = True
    draining: bool = False
    """It is on its way out: it finishes what it has and takes nothing new."""
    uid: str = ""
    places: tuple[str, str, str] | tuple[()] = ()
    """Its host, rack and zone, empty where not known; or nothing where none is."""
    kv_events: str = ""
    """Where it publishes KV events, as ``tcp://host:port``; empty when it does not."""
    kv_replay: str = ""
    """Where it sends events again that were missed."""
    revisions: frozenset[str] = frozenset()
    """Revisions of its set that it belongs to; none where it does not say."""
    way: Way = Way.TICKET
    bootstrap_port: int = 0
    """Where others meet it for its KV, if it is a prefill worker that is met."""

    @property
    def pairing(self) -> tuple[frozenset[str], Way]:
        """What decides whom it may pair with."""
        return self.revisions, self.way

    @property
    def only_paired(self) -> bool:
        """Whether it serves nothing without a worker of the other role."""
        return self.way is Way.SGLANG and self.role is not Role.BOTH

    @property
    def available(self) -> bool:
        """Whether it takes new requests."""
        return self.ready and not self.draining

    @property
    def decodes(self) -> bool:
        """Whether it can stream an answer."""
        return self.role is not Role.PREFILL


def may_pair(one: Worker, other: Worker) -> bool:
    """Tell whether KV of one worker is KV for the other.

    It is not where their revisions differ, or their ways to hand it over.
    """
    if one.way is not other.way:
        return False
    if not one.revisions or not other.revisions:
        return True
    return not one.revisions.isdisjoint(other.revisions)


class WorkerSource(Protocol):
    """Knows the workers there are."""

    def workers(self) -> tuple[Worker, ...]:
        """Return all that are known, ready or not, sorted by name."""
        ...

    def on_change(self, callback: Callable[[], None]) -> None:
        """Have *callback* called after each change; it must not block or raise."""
        ...

    async def run(self) -> None:
        """Keep the list current until cancelled."""
        ...


class StaticWorkers:
    """A list that does not change; for running without Kubernetes."""

    def __init__(self, workers: Iterable[Worker]) -> None:
        self._workers = tuple(sorted(workers, key=lambda worker: worker.name))

    def workers(self) -> tuple[Worker, ...]:
        """Return the list, sorted by name."""
        return self._workers

    def on_change(self, callback: Callable[[], None]) -> None:
        """Do nothing: there is no change."""

    async def run(self) -> None:
        """Wait until cancelled."""
        await asyncio.get_running_loop().create_future()


_PLACES = ("host", "rack", "zone")
_MET = (Way.RENDEZVOUS, Way.SGLANG)


def parse_worker(text: str, models: Iterable[str] = ()) -> Worker:
    """Return the worker that ``ROLE[:NAME]=URL[,KEY=VALUE...]`` describes; raise BadInputError.

    Keys are kv-events, kv-replay, rendezvous, sglang, host, rack and zone. Without a name
    it is called after its host and port.
    """
    left, separator, rest = text.partition("=")
    url, *extras = rest.split(",")
    further = dict(extra.partition("=")[::2] for extra in extras)
    if unknown := set(further) - {"kv-events", "kv-replay", *_MET, *_PLACES}:
        raise BadInputError(
            f"worker {text!r}: {sorted(unknown)[0]!r} is not known; after the URL there may be "
            f"kv-events=tcp://host:port, kv-replay=tcp://host:port, rendezvous=PORT, "
            f"sglang=PORT, host=, rack= and zone="
        )
    way = next((met for met in _MET if met in further), Way.TICKET)
    meets = further.get(way, "0")
    if not meets.isdecimal() or int(meets) > 65535:
        raise BadInputError(
            f"worker {text!r}: {way}={meets} is no port; give the prefill worker's KV port, "
            f"and to decode workers any"
        )
    host, rack, zone = (further.get(place, "") for place in _PLACES)
    role, _, name = left.partition(":")
    parts = urlsplit(url)
    roles = [each.value for each in Role]
    if not separator or role not in roles:
        raise BadInputError(
            f"worker {text!r}: ROLE=URL or ROLE:NAME=URL is wanted, with ROLE one of "
            f"{', '.join(roles)}; for example prefill=http://127.0.0.1:8001"
        )
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise BadInputError(
            f"worker {text!r}: {url!r} is no URL of a server; write http://host:port"
        )
    base = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"
    return Worker(
        name or parts.netloc,
        base,
        Role(role),
        frozenset(models),
        places=(host, rack, zone) if host or rack or zone else (),
        kv_events=further.get("kv-events", ""),
        kv_replay=further.get("kv-replay", ""),
        way=way,
        bootstrap_port=int(meets),
    )
