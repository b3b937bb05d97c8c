"""Hypothesis without deadlines: they are wall-clock time, and fail for what else a machine does."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

settings.register_profile(
    "no deadlines", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("no deadlines")
