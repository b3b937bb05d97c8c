"""From a gang's key back to the object that describes it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spinney.api.podgroup import PodGroup, UpstreamPodGroup

if TYPE_CHECKING:
    from collections.abc import Callable

    from spinney.api.meta import KubeObject
    from spinney.api.podgang import PodGang
    from spinney.scheduler.said import GangObject


def object_of(
    gang: str,
    podgang: Callable[[str], PodGang | None],
    other: Callable[[type[KubeObject], str], KubeObject | None],
) -> GangObject | None:
    """Return the object of the gang with the key *gang*; None where only labels describe it.

    *podgang* and *other* look up objects by ``namespace/name``.
    """
    namespace, _, rest = gang.partition("/")
    kind, colon, name = rest.partition(":")
    if not colon:
        return podgang(gang)
    kinds: dict[str, type[PodGroup | UpstreamPodGroup]] = {
        "podgroup": PodGroup,
        "group": UpstreamPodGroup,
    }
    if kind not in kinds:
        return None
    found = other(kinds[kind], f"{namespace}/{name}")
    assert found is None or isinstance(found, PodGroup | UpstreamPodGroup)
    return found
