"""Profiles: the files step models are made of, and those that ship.

A profile is YAML or JSON with either measured points or the figures of a roofline. Invariant: a
file that loads makes a model that answers every question; anything else is a BadInputError that
names the file.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import msgspec

from spinney.errors import BadInputError
from spinney.perfmodel.grid import Grid
from spinney.perfmodel.step_model import Distance, Link, StepModel
from spinney.perfmodel.step_times import MeasuredTimes, Roofline, StepTimes

SUFFIX = ".yaml"


class GridPoints(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """A table of seconds: one row per value of the first axis."""

    rows: tuple[float, ...]
    columns: tuple[float, ...]
    seconds: tuple[tuple[float, ...], ...]


class MeasuredPoints(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Measured steps.

    *prefill*: rows are tokens of a chunk, columns the tokens before it. *decode*: rows are
    sequences, columns their mean length. *fixed_s*: what a step costs whatever is in it.
    """

    prefill: GridPoints
    decode: GridPoints
    fixed_s: float


class RooflineFigures(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """The figures of `Roofline`; parameters count once, with *bytes_per_parameter* each."""

    parameters: float
    bytes_per_parameter: float
    layers: int
    attention_width: int
    flops: float
    bandwidth: float
    compute_efficiency: float
    memory_efficiency: float
    overhead_s: float
    active_parameters: float | None = None


class LinkFigures(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """See `Link`."""

    latency_s: float
    bytes_per_s: float


class Profile(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """A profile as it is written. *source* says where the figures come from."""

    name: str
    source: str
    kv_bytes_per_token: float
    chunk_tokens: int
    links: dict[str, LinkFigures]
    measured: MeasuredPoints | None = None
    roofline: RooflineFigures | None = None


def load_step_model(profile: str) -> StepModel:
    """Return the model of *profile*: the name of a shipped one, or a path to a file.

    Raises BadInputError.
    """
    return step_model(load_profile(profile))


def load_profile(profile: str) -> Profile:
    """Read a profile by shipped name or path; raises BadInputError."""
    path = Path(profile)
    if not path.is_file():
        path = _shipped() / f"{profile}{SUFFIX}"
    try:
        text = path.read_bytes()
    except OSError:
        raise BadInputError(
            f"no such profile: {profile}; give a file or one of {', '.join(shipped_profiles())}"
        ) from None
    try:
        # YAML takes 1e9 (no sign, no point) for a text.
        return msgspec.yaml.decode(text, type=Profile, strict=False)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise BadInputError(f"{path} is not a profile: {error}") from None


def shipped_profiles() -> list[str]:
    """Return the names of the profiles that ship."""
    return sorted(path.stem for path in _shipped().glob(f"*{SUFFIX}"))


def step_model(profile: Profile) -> StepModel:
    """Return the model of *profile*; raises BadInputError where figures make no sense."""
    if profile.chunk_tokens < 1 or profile.kv_bytes_per_token < 0:
        raise BadInputError(
            f"profile {profile.name}: chunk_tokens is {profile.chunk_tokens} and has to be 1 or "
            f"more, kv_bytes_per_token is {profile.kv_bytes_per_token} and has to be 0 or more"
        )
    return StepModel(
        profile.name,
        _times(profile),
        _links(profile),
        profile.kv_bytes_per_token,
        profile.chunk_tokens,
        analytic=profile.measured is None,
    )


def _shipped() -> Path:
    return Path(str(resources.files("spinney.perfmodel"))) / "profiles"


def _times(profile: Profile) -> StepTimes:
    match profile.measured, profile.roofline:
        case MeasuredPoints() as points, None:
            if points.fixed_s < 0:
                raise BadInputError(f"profile {profile.name}: fixed_s is not negative")
            prefill, decode = _grid(points.prefill), _grid(points.decode)
            return MeasuredTimes(prefill, decode, points.fixed_s)
        case None, RooflineFigures() as figures:
            return _roofline(profile, figures)
    raise BadInputError(f"profile {profile.name}: give either measured or roofline")


def _grid(points: GridPoints) -> Grid:
    return Grid(points.rows, points.columns, points.seconds).rising()


def _roofline(profile: Profile, figures: RooflineFigures) -> Roofline:
    rates = (
        figures.flops,
        figures.bandwidth,
        figures.compute_efficiency,
        figures.memory_efficiency,
    )
    if min(rates) <= 0 or max(rates[2:]) > 1 or figures.overhead_s < 0:
        raise BadInputError(
            f"profile {profile.name}: flops and bandwidth are above 0, efficiencies above 0 and at "
            f"most 1, overhead_s is not negative"
        )
    return Roofline(
        active_parameters=figures.active_parameters or figures.parameters,
        weight_bytes=figures.parameters * figures.bytes_per_parameter,
        layers=figures.layers,
        attention_width=figures.attention_width,
        kv_bytes_per_token=profile.kv_bytes_per_token,
        flops=figures.flops,
        bandwidth=figures.bandwidth,
        compute_efficiency=figures.compute_efficiency,
        memory_efficiency=figures.memory_efficiency,
        overhead_s=figures.overhead_s,
    )


def _links(profile: Profile) -> dict[Distance, Link]:
    names = {distance.name.lower(): distance for distance in Distance}
    unknown = sorted(set(profile.links) - set(names))
    if unknown or "far" not in profile.links:
        raise BadInputError(
            f"profile {profile.name}: links are of {', '.join(names)}, and far has to be there; "
            f"found {', '.join(profile.links) or 'none'}"
        )
    links: dict[Distance, Link] = {}
    for name, figures in profile.links.items():
        if figures.latency_s < 0 or figures.bytes_per_s <= 0:
            raise BadInputError(
                f"profile {profile.name}: link {name} has latency_s {figures.latency_s} and "
                f"bytes_per_s {figures.bytes_per_s}; they are 0 or more, and above 0"
            )
        links[names[name]] = Link(figures.latency_s, figures.bytes_per_s)
    return links
