"""The same Events in the two API groups that have them: core and ``events.k8s.io``."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from spinney.api.resource import Unstructured

_NAMES = {
    "involvedObject": "regarding",
    "message": "note",
    "source": "deprecatedSource",
    "firstTimestamp": "deprecatedFirstTimestamp",
    "lastTimestamp": "deprecatedLastTimestamp",
    "count": "deprecatedCount",
    "reportingComponent": "reportingController",
}
_BACK = {new: old for old, new in _NAMES.items()}


class EventsView:
    """Shows core Events as those of ``events.k8s.io/v1``, and takes them back."""

    def show(self, stored: Unstructured) -> Unstructured:
        """Rename the fields that have another name there."""
        shown = {_NAMES.get(key, key): value for key, value in stored.items()}
        shown["apiVersion"] = "events.k8s.io/v1"
        return shown

    def accept(self, sent: Unstructured) -> Unstructured:
        """Rename them back."""
        stored = {_BACK.get(key, key): value for key, value in sent.items()}
        stored["apiVersion"] = "v1"
        return stored
