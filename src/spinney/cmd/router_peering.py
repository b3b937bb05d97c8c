"""What joins the processes of a router, and routers, to one: who they are, and their secret.

Invariant: no port for other routers is listened on that hosts other than this one reach, and none
there is spoken to, without a secret that was given. On one host the routers of one user share a
secret that the first of them makes up, in a file that nobody else can read.
"""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from spinney.errors import BadInputError
from spinney.router.peer_app import HttpPeers, PeerApp, Siblings
from spinney.router.peer_seal import LEAST_SECRET, Seal
from spinney.router.sharing import PeerLoads, Sharing

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from spinney.cmd.router_processes import Seat
    from spinney.router.assembly import Router
    from spinney.router.limits import Limits
    from spinney.router.pods import PodPeers

VARIABLE = "SPINNEY_PEER_SECRET"
GIVE_ONE = (
    "give all routers the same secret of 16 bytes or more: --peer-secret-file FILE, a Kubernetes "
    f"Secret mounted there for instance, or {VARIABLE}; `openssl rand -hex 32` makes one"
)
MADE_UP_BYTES = 32


@dataclass(frozen=True, slots=True)
class Meet:
    """Where a router meets others."""

    host: str
    """Where it listens, should it listen for other routers."""
    port: int | None
    peers: tuple[str, ...]
    secret_file: str | None

    def secret(self, environ: Mapping[str, str]) -> bytes:
        """Return the routers' secret; raise BadInputError where there has to be one and is none."""
        given = _given(self.secret_file, environ)
        if given is not None:
            return given
        outside = [url for url in self.peers if not is_loopback(urlsplit(url).hostname or "")]
        if self.port is not None and not is_loopback(self.host):
            raise BadInputError(
                f"--peer-port {self.port}: other hosts can reach {self.host}, and who speaks to "
                f"this port has a say in who is served; {GIVE_ONE}"
            )
        if outside:
            raise BadInputError(f"--peer {outside[0]} is on another host; {GIVE_ONE}")
        if self.port is None and not self.peers:
            return secrets.token_bytes(MADE_UP_BYTES)  # Only its own processes speak to it.
        home = Path(environ.get("SPINNEY_HOME") or "~/.spinney").expanduser()
        return users_own(home / "router-peers")


def _given(file: str | None, environ: Mapping[str, str]) -> bytes | None:
    if file is not None:
        try:
            secret = Path(file).read_bytes().strip()
        except OSError as error:
            raise BadInputError(
                f"--peer-secret-file {file}: {error.strerror or error}; {GIVE_ONE}"
            ) from error
        named = f"--peer-secret-file {file}"
    elif VARIABLE in environ:
        secret, named = environ[VARIABLE].strip().encode("utf-8", "surrogateescape"), VARIABLE
    else:
        return None
    if len(secret) < LEAST_SECRET:
        raise BadInputError(f"{named} has {len(secret)} bytes; {GIVE_ONE}")
    return secret


def users_own(path: Path) -> bytes:
    """Return the secret of this user's routers on this host, made up where there is none yet."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        made = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
        try:
            descriptor = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as out:
                out.write(secrets.token_hex(MADE_UP_BYTES).encode())
            with suppress(FileExistsError):
                os.link(made, path)  # Whole or not at all, and only the first one's stays.
        finally:
            made.unlink(missing_ok=True)
        found = path.stat()
        secret = path.read_bytes().strip()
    except OSError as error:
        raise BadInputError(f"{path}: {error.strerror or error}; {GIVE_ONE}") from error
    if found.st_uid != os.getuid() or found.st_mode & 0o077 or len(secret) < LEAST_SECRET:
        raise BadInputError(
            f"{path} has to be this user's, with mode 600 and a secret in it; remove it for "
            f"another to be made, or {GIVE_ONE}"
        )
    return secret


def is_loopback(host: str) -> bool:
    """Whether only this host reaches *host*."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@dataclass(frozen=True, slots=True)
class Peering:
    """What has a router share with others."""

    app: PeerApp
    sharing: Sharing
    others: PodPeers | None
    """Finds them in the cluster."""


def siblings_of(seat: Seat, links: HttpPeers) -> Siblings | None:
    """Return the other processes of this router, None where there are none."""
    others = [(n, url) for n, url in peer_urls(seat) if n != seat.number]
    return Siblings(seat.number, others, links) if others else None


def peer_urls(seat: Seat) -> list[tuple[int, str]]:
    """Return the numbers of all processes of this router, and where they meet."""
    host = seat.peers.getsockname()[0] if seat.peers else ""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    host = f"[{host}]" if ":" in host else host
    return [(n, f"http://{host}:{port}") for n, port in enumerate(seat.peer_ports)]


def peering_of(
    me: str,
    seat: Seat,
    built: Router,
    links: HttpPeers,
    seal: Seal,
    limits: Limits,
    named: Iterable[str],
    others: PodPeers | None,
) -> Peering | None:
    """Return what has *built* share with others, None where it is to be alone.

    *named* are the URLs of other routers, to which those come that *others* finds.
    """
    if seat.peers is None:
        return None
    loads = PeerLoads(me, built.shared, limits, seat.peer_ports)
    known = [*named, *(url for n, url in peer_urls(seat) if n != seat.number)]

    def endpoints() -> list[str]:
        return [*known, *(others.endpoints() if others else ())]

    sharing = Sharing(me, built.shared, loads, links, endpoints, limits)
    return Peering(PeerApp(loads, seal, built.metrics, built.stories), sharing, others)
