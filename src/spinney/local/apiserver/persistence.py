"""Where the state of the server survives its process: nowhere, or an SQLite file.

A `write` that returned is there after ``kill -9``. One process owns a file at a time.
"""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING, Protocol

from spinney.errors import BadInputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

ObjectKey = tuple[str, str, str]
"""Storage, namespace, name."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS objects (
    storage TEXT NOT NULL, namespace TEXT NOT NULL, name TEXT NOT NULL, raw BLOB NOT NULL,
    PRIMARY KEY (storage, namespace, name)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS state (id INTEGER PRIMARY KEY CHECK (id = 1), revision INTEGER NOT NULL);
INSERT OR IGNORE INTO state VALUES (1, 0);
"""

_WAL_PAGES = 4_000
"""Pages (of 4 KiB) after which the log is folded into the file. Folding syncs the disk, which
stops the server for some milliseconds: every 16 MB written instead of SQLite's 4 MB."""


class Persistence(Protocol):
    """Keeps objects as bytes, and the newest revision."""

    @property
    def durable(self) -> bool:
        """Whether a write has to be waited for before anybody may know of it."""
        ...

    def load(self) -> tuple[int, Iterable[tuple[str, bytes]]]:
        """Return the newest revision, 0 if there is none, and storage and bytes of each object."""
        ...

    def write(self, objects: Mapping[ObjectKey, bytes | None], revision: int) -> None:
        """Store or (None) remove *objects*: all of them and the revision, or nothing."""
        ...

    def close(self) -> None:
        """Let go of it."""
        ...


class MemoryPersistence:
    """Keeps nothing: the state lives as long as its process."""

    durable = False

    def load(self) -> tuple[int, Iterable[tuple[str, bytes]]]:
        """Return the state of a new cluster."""
        return 0, ()

    def write(self, objects: Mapping[ObjectKey, bytes | None], revision: int) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


class SqlitePersistence:
    """Keeps the state in the SQLite database at *path*.

    Raises BadInputError when another process uses it or it is no database.
    """

    durable = True

    def __init__(self, path: Path) -> None:
        self._path = path
        self._database = sqlite3.connect(path, isolation_level=None, timeout=0)
        try:
            self._open()
        except sqlite3.Error as error:
            self._database.close()
            if "locked" in str(error):
                raise BadInputError(
                    f"{path} is in use by another process; stop that cluster, "
                    f"or choose another state directory"
                ) from error
            raise BadInputError(
                f"{path} cannot be opened as an SQLite database: {error}"
            ) from error

    def _open(self) -> None:
        database = self._database
        # The lock is taken by the first read and held until the process ends, however it ends.
        database.execute("PRAGMA locking_mode = EXCLUSIVE")
        database.execute("PRAGMA journal_mode = WAL")
        # A commit is a write to the log without waiting for the disk: the kernel has it, so it
        # survives the death of the process at any instant. A power cut may cost the last seconds
        # but does not damage the file, which a cluster on one machine can live with; syncing each
        # commit would cost milliseconds for every request.
        database.execute("PRAGMA synchronous = NORMAL")
        database.execute(f"PRAGMA wal_autocheckpoint = {_WAL_PAGES}")
        database.execute("BEGIN EXCLUSIVE")
        database.execute("COMMIT")
        database.executescript(_SCHEMA)

    def load(self) -> tuple[int, Iterable[tuple[str, bytes]]]:
        """Return the newest revision, and storage and bytes of each object."""
        (revision,) = self._database.execute("SELECT revision FROM state").fetchone()
        rows = self._database.execute("SELECT storage, raw FROM objects").fetchall()
        return revision, rows

    def write(self, objects: Mapping[ObjectKey, bytes | None], revision: int) -> None:
        """Store or remove *objects* and note *revision*, in one transaction."""
        database = self._database
        database.execute("BEGIN IMMEDIATE")
        try:
            for key, raw in objects.items():
                if raw is None:
                    database.execute(
                        "DELETE FROM objects WHERE storage = ? AND namespace = ? AND name = ?", key
                    )
                else:
                    database.execute("REPLACE INTO objects VALUES (?, ?, ?, ?)", (*key, raw))
            database.execute("UPDATE state SET revision = ?", (revision,))
            database.execute("COMMIT")
        except BaseException:
            if database.in_transaction:
                database.execute("ROLLBACK")
            raise

    def close(self) -> None:
        """Close the database."""
        self._database.close()
