"""Prometheus metrics: one registry per process, built in ``cmd`` and passed in."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""What ``/metrics`` answers."""


def exposition(registry: CollectorRegistry) -> bytes:
    """Return all of *registry* in Prometheus' text format."""
    return generate_latest(registry)
