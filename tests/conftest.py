"""What holds for all tests.

Property tests draw the same examples each time, so that a change is judged by what it changes;
``HYPOTHESIS_SEEK=1 make test`` looks for new ones.
"""

import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from spinney import log

# No deadlines: how long an example takes says how busy the machine is.
settings.register_profile("seek", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("steady", settings.get_profile("seek"), derandomize=True)
settings.load_profile("seek" if os.environ.get("HYPOTHESIS_SEEK") else "steady")


@pytest.fixture(autouse=True)
def logs_of_this_test_only() -> Iterator[None]:
    """Commands that a test runs in this process set up logging; the next test starts anew."""
    yield
    log.reset()
