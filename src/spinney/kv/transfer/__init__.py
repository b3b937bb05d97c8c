"""Moves KV blocks between workers: the connector interface, and TCP with shared memory."""
