"""Times from profiles: interpolation, the roofline, transfers, and what a bad file is told."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spinney.errors import BadInputError
from spinney.perfmodel.grid import Grid
from spinney.perfmodel.profile import (
    GridPoints,
    LinkFigures,
    MeasuredPoints,
    Profile,
    RooflineFigures,
    load_profile,
    load_step_model,
    shipped_profiles,
    step_model,
)
from spinney.perfmodel.step_model import Distance
from spinney.perfmodel.step_times import Chunk, Roofline, StepShape

if TYPE_CHECKING:
    from pathlib import Path

POINTS = MeasuredPoints(
    prefill=GridPoints((1, 100), (0, 1000), ((0.001, 0.002), (0.010, 0.020))),
    decode=GridPoints((1, 11), (10, 110), ((0.001, 0.002), (0.002, 0.004))),
    fixed_s=0.0005,
)
FIGURES = RooflineFigures(
    parameters=1e9,
    bytes_per_parameter=2,
    layers=10,
    attention_width=1000,
    flops=1e14,
    bandwidth=1e12,
    compute_efficiency=1.0,
    memory_efficiency=0.5,
    overhead_s=0.001,
)
BASE = Profile(
    "test", "made up", 100.0, 100, {"far": LinkFigures(0.01, 1e6), "host": LinkFigures(0.001, 1e7)}
)
MEASURED = step_model(msgspec.structs.replace(BASE, measured=POINTS))
ANALYTIC = step_model(msgspec.structs.replace(BASE, roofline=FIGURES))


def test_a_grid_gives_its_points_and_lines_between_them() -> None:
    grid = Grid((0, 10), (0, 4), ((0.0, 4.0), (10.0, 14.0)))
    assert [grid.at(0, 0), grid.at(10, 4), grid.at(5, 2), grid.at(2.5, 1)] == [0, 14, 7, 3.5]


def test_a_grid_goes_on_with_its_last_slope_and_starts_with_its_first_value() -> None:
    grid = Grid((1, 2, 4), (5,), ((1.0,), (2.0,), (6.0,)))
    assert grid.at(6, 99) == 10
    assert grid.at(0, 0) == 1


def test_noise_that_falls_is_flattened() -> None:
    assert Grid((1, 2), (1, 2), ((3.0, 2.0), (1.0, 5.0))).rising().values == ((3, 3), (3, 5))


def test_a_prompt_takes_the_sum_of_its_chunks_and_cached_tokens_none() -> None:
    assert MEASURED.prefill_s(100) == pytest.approx(0.010)
    second = MEASURED.step_s(StepShape((Chunk(50, 100),)))
    assert MEASURED.prefill_s(150) == pytest.approx(0.010 + second)
    assert MEASURED.prefill_s(150, 100) == pytest.approx(second)
    assert MEASURED.prefill_s(0) == 0


def test_the_last_token_of_a_cached_prompt_is_computed() -> None:
    last = MEASURED.step_s(StepShape((Chunk(1, 99),)))
    assert MEASURED.prefill_s(100, 100) == MEASURED.prefill_s(100, 500) == last > 0


def test_decode_context_is_the_sum_over_the_batch() -> None:
    assert MEASURED.decode_step_s(1, 10) == pytest.approx(0.001)
    assert MEASURED.decode_step_s(11, 11 * 110) == pytest.approx(0.004)
    assert MEASURED.decode_step_s(0, 0) == 0


def test_parts_of_one_step_share_what_a_step_costs_anyway() -> None:
    mixed = MEASURED.step_s(StepShape((Chunk(100),), 1, 10))
    assert mixed == pytest.approx(0.010 + 0.001 - 0.0005)


def test_a_roofline_decode_step_reads_weights_and_kv() -> None:
    kv = 4 * 1000 * 100
    assert ANALYTIC.decode_step_s(4, 4000) == pytest.approx((2e9 + kv) / 0.5e12 + 0.001)


def test_a_roofline_prefill_is_bound_by_arithmetic() -> None:
    times = ANALYTIC.times
    assert isinstance(times, Roofline)
    tokens = 100_000
    operations = 2e9 * tokens + 4 * 1000 * 10 * tokens * (tokens + 1) / 2
    found = times.step_s(StepShape((Chunk(tokens),)))
    assert found == pytest.approx(operations / 1e14 + 0.001)


def test_chunks_attend_to_what_one_prompt_attends_to() -> None:
    times = ANALYTIC.times
    big = times.step_s(StepShape((Chunk(80_000),))) - 0.001
    halves = [Chunk(40_000), Chunk(40_000, 40_000)]
    assert sum(times.step_s(StepShape((half,))) - 0.001 for half in halves) == pytest.approx(big)


def test_a_distance_without_a_link_is_as_slow_as_the_next_farther() -> None:
    assert MEASURED.transfer_s(1e7, Distance.HOST) == pytest.approx(1.001)
    assert MEASURED.transfer_s(1e6, Distance.RACK) == MEASURED.transfer_s(1e6, Distance.FAR) == 1.01
    assert MEASURED.transfer_s(0, Distance.FAR) == 0
    assert MEASURED.kv_bytes(3) == 300


@pytest.mark.parametrize("name", shipped_profiles())
@given(tokens=st.integers(1, 20_000), more=st.integers(0, 20_000), batch=st.integers(1, 256))
def test_more_work_never_takes_less_time(name: str, tokens: int, more: int, batch: int) -> None:
    model = MODELS[name]
    small, large = StepShape((Chunk(tokens),)), StepShape((Chunk(tokens + more),))
    assert 0 < model.step_s(small) <= model.step_s(large) * (1 + 1e-12)
    both = StepShape((Chunk(tokens),), batch, batch * 10)
    assert model.step_s(both) >= model.step_s(small) * (1 - 1e-12)
    slower = model.decode_step_s(batch, batch * (10 + more))
    assert 0 < model.decode_step_s(batch, batch * 10) <= slower * (1 + 1e-12)
    chunks = tokens // model.chunk_tokens * model.chunk_tokens
    whole = model.prefill_s(tokens + more)
    assert model.prefill_s(tokens + more, chunks) <= whole * (1 + 1e-12)


MODELS = {name: load_step_model(name) for name in shipped_profiles()}


def test_shipped_profiles_say_what_they_are() -> None:
    assert not MODELS["demo-cpu"].analytic
    assert MODELS["llama-8b-h100"].analytic
    assert load_profile("llama-8b-h100").source.startswith("Analytic")
    assert load_profile("demo-cpu").source.startswith("Measured")


def test_the_example_gpu_decodes_at_the_pace_of_its_memory() -> None:
    model = MODELS["llama-8b-h100"]
    floor = 2 * 8.03e9 / 3.35e12
    assert floor < model.decode_step_s(1, 1000) < 2 * floor


def test_a_profile_from_a_file_is_read_as_json_too(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_bytes(msgspec.json.encode(msgspec.structs.replace(BASE, measured=POINTS)))
    assert load_step_model(str(path)).prefill_s(100) == MEASURED.prefill_s(100)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "give either measured or roofline"),
        ({"measured": POINTS, "roofline": FIGURES}, "give either measured or roofline"),
        ({"measured": POINTS, "links": {}}, "far has to be there; found none"),
        ({"measured": POINTS, "links": {"moon": LinkFigures(1, 1)}}, "found moon"),
        ({"measured": POINTS, "links": {"far": LinkFigures(0, 0)}}, "link far"),
        ({"measured": POINTS, "chunk_tokens": 0}, "chunk_tokens is 0"),
        (
            {"roofline": msgspec.structs.replace(FIGURES, memory_efficiency=1.5)},
            "efficiencies above 0 and at most 1",
        ),
        (
            {"measured": msgspec.structs.replace(POINTS, decode=GridPoints((1,), (2, 1), ()))},
            "has to rise strictly",
        ),
        (
            {"measured": msgspec.structs.replace(POINTS, decode=GridPoints((1,), (1, 2), ()))},
            "one row per point",
        ),
    ],
)
def test_figures_that_make_no_sense_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        step_model(msgspec.structs.replace(BASE, **changes))


def test_a_missing_or_unreadable_profile_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="no such profile: nowhere; give a file or one of demo"):
        load_step_model("nowhere")
    bad = tmp_path / "bad.yaml"
    bad.write_text("name: 3", encoding="utf-8")
    with pytest.raises(BadInputError, match=r"bad\.yaml is not a profile"):
        load_step_model(str(bad))
