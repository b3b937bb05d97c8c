"""What holds for all tests."""

from collections.abc import Iterator

import pytest

from spinney import log


@pytest.fixture(autouse=True)
def logs_of_this_test_only() -> Iterator[None]:
    """Commands that a test runs in this process set up logging; the next test starts anew."""
    yield
    log.reset()
