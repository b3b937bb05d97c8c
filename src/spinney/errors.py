"""The root of Spinney's exceptions.

``SpinneyError`` is what a person may read as it is: the CLI prints its message and no traceback.

    SpinneyError
    ├── BadInputError      the user can fix it: a manifest, a flag, a file (exit code 2)
    └── (each package derives one type per reaction)
"""

from __future__ import annotations


class SpinneyError(Exception):
    """Something failed, and its message says what was wanted, what was found, what to do."""


class BadInputError(SpinneyError):
    """What the user gave cannot be used as it is."""
