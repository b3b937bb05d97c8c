"""Spinney serves large language models with prefill and decode as separate services."""

__version__ = "0.1.0"
