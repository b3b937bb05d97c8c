"""The answers of why and fit have the fields that the documentation names."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from spinney.scheduler.what_if import (
    FitReport,
    GangFit,
    QueueResourceLine,
    Room,
    Spot,
    WaitingGang,
    Why,
    WhyPod,
    WhyQueue,
)

TEXT = (Path(__file__).parents[2] / "docs" / "scheduler-snapshot.md").read_text()
ANSWERS = TEXT.partition("## The answers of why and fit")[2].partition("\n## ")[0]


@pytest.mark.parametrize(
    "kind",
    [FitReport, GangFit, QueueResourceLine, Room, Spot, WaitingGang, Why, WhyPod, WhyQueue],
)
def test_every_field_of_an_answer_is_documented(kind: Any) -> None:
    names = {field.encode_name for field in msgspec.structs.fields(kind)}
    blocks = [*re.findall(r"\{[^}]*\}", ANSWERS), ANSWERS]

    assert any(names <= set(re.findall(r"\w+", block)) for block in blocks), names
