"""Filters whose answer changes with every pod placed: resources and host ports."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from spinney.scheduler.plugins import UNBOUNDED
from spinney.scheduler.shapes import PODS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from spinney.scheduler.session import PodClass, Session


class Resources:
    """What the pod requests has to be idle: CPU, memory, devices, and a slot for one more pod."""

    name = "resources"

    def room(self, session: Session, cls: PodClass, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return how many times the request fits into what is idle."""
        if cls.absent:
            return np.zeros(len(rows), np.int64)
        idle = session.idle[rows]
        room = np.full(len(rows), UNBOUNDED)
        for column, amount in cls.columns:
            np.minimum(room, idle[:, column] // amount, out=room)
        return np.maximum(room, 0)

    def reasons(self, session: Session, cls: PodClass) -> Iterator[tuple[str, NDArray[np.bool_]]]:
        """Yield one reason for each resource."""
        for name in cls.absent:
            yield f"without {name}", np.ones(len(session.layout), np.bool_)
        names = session.layout.resources
        ordered = sorted(cls.columns, key=lambda c: (names[c[0]] in ("cpu", "memory"), names[c[0]]))
        for column, amount in ordered:
            what = "too many pods" if names[column] == PODS else f"insufficient {names[column]}"
            yield what, session.idle[:, column] < amount


class HostPorts:
    """A port of the host can be had once."""

    name = "host-ports"

    def room(self, session: Session, cls: PodClass, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return 1 where all ports are free, 0 elsewhere."""
        ports = cls.shape.host_ports
        if not ports:
            return np.full(len(rows), UNBOUNDED)
        wanted = set(ports)
        taken = session.host_ports()
        return np.array([not (taken.get(row, set()) & wanted) for row in rows.tolist()], np.int64)

    def reasons(self, session: Session, cls: PodClass) -> Iterator[tuple[str, NDArray[np.bool_]]]:
        """Yield the one reason there is."""
        if cls.shape.host_ports:
            yield "without the host ports free", self.room(session, cls, session.layout.rows) == 0
