from __future__ import annotations

from typing import Any

import pytest

from spinney.api.grove import (
    CoherentUpdate,
    PodCliqueSet,
    PodCliqueSetSpec,
    PodCliqueSetTemplate,
    UpdateStrategy,
)
from spinney.api.grove_update_strategy import check_update_strategy


@pytest.mark.parametrize(
    ("values", "want"),
    [
        pytest.param({"max_unavailable": "25%", "max_surge": 1}, [], id="both ways to say it"),
        pytest.param({"max_surge": -1}, ["maxSurge"], id="below zero"),
        pytest.param({"max_unavailable": "101%"}, ["maxUnavailable"], id="more than all"),
        pytest.param(
            {"max_unavailable": "half", "max_surge": "2"},
            ["maxUnavailable", "maxSurge"],
            id="all are reported",
        ),
    ],
)
def test_a_coherent_budget_is_numbers_or_percentages(
    values: dict[str, Any], want: list[str]
) -> None:
    strategy = UpdateStrategy(type="Coherent", coherent=CoherentUpdate(**values))
    spec = PodCliqueSetSpec(template=PodCliqueSetTemplate(), update_strategy=strategy)
    found = [error.path for error in check_update_strategy(PodCliqueSet(spec=spec))]
    assert found == [f"spec.updateStrategy.coherent.{name}" for name in want]
