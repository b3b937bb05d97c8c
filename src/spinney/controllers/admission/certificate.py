"""A server's certificate that is renewed while the server runs.

The files are read now and then (a Secret that is mounted changes in place, without a signal). A new
pair is tried on a context of its own first: a certificate whose key has not been written yet, or
one that is broken, changes nothing and is tried again. Connections that are open keep theirs.
"""

from __future__ import annotations

import asyncio
import ssl
import tempfile
from pathlib import Path

from spinney.log import get_logger

CHECK_S = 10.0
"""How often the files are read."""

log = get_logger("webhook")


class RenewedCertificate:
    """Keeps *context* at what the files *certificate* and *key* hold."""

    def __init__(self, context: ssl.SSLContext, certificate: Path, key: Path) -> None:
        self._context = context
        self._files = (certificate, key)
        self._loaded = self._read()
        self._refused: tuple[bytes, bytes] | None = None

    async def run(self, check_s: float = CHECK_S) -> None:
        """Look every *check_s* seconds, until cancelled."""
        while True:
            await asyncio.sleep(check_s)
            self.look()

    def look(self) -> bool:
        """Load the files if they have changed; tell whether a new pair is in use."""
        found = self._read()
        if found is None or found in (self._loaded, self._refused):
            return False
        try:
            _load(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), found)
        except ssl.SSLError as error:
            # Half of a pair, mostly: the other half is another change.
            self._refused = found
            log.warning("certificate not usable, the old one stays", error=str(error))
            return False
        _load(self._context, found)
        self._loaded, self._refused = found, None
        log.info("certificate renewed", file=str(self._files[0]))
        return True

    def _read(self) -> tuple[bytes, bytes] | None:
        try:
            return self._files[0].read_bytes(), self._files[1].read_bytes()
        except OSError as error:
            log.warning("certificate not readable, the old one stays", error=str(error))
            return None


def _load(context: ssl.SSLContext, pair: tuple[bytes, bytes]) -> None:
    """Load exactly the bytes that were read: ssl takes files only, and those may change."""
    with tempfile.TemporaryDirectory() as folder:
        certificate, key = Path(folder, "crt"), Path(folder, "key")
        for path, data in zip((certificate, key), pair, strict=True):
            path.touch(mode=0o600)
            path.write_bytes(data)
        context.load_cert_chain(certificate, key)
