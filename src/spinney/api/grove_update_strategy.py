"""What ``spec.updateStrategy`` may say.

Bounds of single numbers are in the schema; here is what a schema cannot say.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from spinney.api.grove_fields import invalid

if TYPE_CHECKING:
    from collections.abc import Iterator

    from spinney.api.admission import FieldError
    from spinney.api.grove import PodCliqueSet

_PERCENT = re.compile(r"[0-9]{1,3}%")
_COHERENT = "spec.updateStrategy.coherent"


def check_update_strategy(pcs: PodCliqueSet) -> Iterator[FieldError]:
    """Yield what is wrong with the set's update strategy."""
    strategy = pcs.spec.update_strategy
    budget = strategy.coherent if strategy is not None else None
    if budget is None:
        return
    fields = {"maxUnavailable": budget.max_unavailable, "maxSurge": budget.max_surge}
    for name, value in fields.items():
        if isinstance(value, int) and value < 0:
            yield invalid(f"{_COHERENT}.{name}", f"{value} is below zero")
        elif isinstance(value, str) and not _is_percent(value):
            text = f"a number or a percentage up to 100% is wanted, found {value!r}"
            yield invalid(f"{_COHERENT}.{name}", text)


def _is_percent(text: str) -> bool:
    return _PERCENT.fullmatch(text) is not None and int(text[:-1]) <= 100
