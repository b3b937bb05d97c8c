"""In which order the items of a merged list stand."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

K = TypeVar("K")


def merged_order(
    live: Sequence[K], wanted: Sequence[K], present: Iterable[K], *, new_first: bool
) -> list[K]:
    """Return the keys *present* in order.

    Keys in *wanted* keep its order. The others, which only the server knows, keep their order in
    *live* and come before a wanted key exactly if they did there; where the wanted key is new,
    it comes first if *new_first*, else last. Keys are distinct.
    """
    there = set(present)
    place = {key: index for index, key in enumerate(live)}
    ours = [key for key in wanted if key in there]
    chosen = set(ours)
    theirs = sorted(
        (key for key in there if key not in chosen),
        key=lambda key: place.get(key, len(place)),
    )
    merged: list[K] = []
    i = j = 0
    while i < len(theirs) and j < len(ours):
        right = place.get(ours[j])
        if not new_first if right is None else place.get(theirs[i], len(place)) < right:
            merged.append(theirs[i])
            i += 1
        else:
            merged.append(ours[j])
            j += 1
    return [*merged, *theirs[i:], *ours[j:]]
