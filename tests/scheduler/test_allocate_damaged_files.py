"""Snapshot files that are wrong in any way: a message with the field's path, never a traceback."""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jsonschema_rs
import pytest
import yaml
from click.testing import CliRunner

from spinney.cli.schedule import schedule
from spinney.errors import BadInputError
from spinney.scheduler.snapshot_file import snapshot_schema

if TYPE_CHECKING:
    from collections.abc import Iterator

SEED = Path(__file__).with_name("fuzz_seed.yaml")
JUNK: list[Any] = [
    None, 0, -1, 3.5, True, "", "x", "-1", "1e400", "5m", "2026-13-01T00:00:00Z", [], {}, [1],
    ["a"], {"a": 1}, {"a": "b"}, [None], 10**30, "a/b", "é",
]  # fmt: skip


def seed() -> dict[str, Any]:
    text = SEED.read_text().replace(" on: ", ' "on": ')
    found: dict[str, Any] = yaml.safe_load(text)
    return found


def paths(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if at:
        yield at
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, below in list(items):
            yield from paths(below, (*at, key))


def damaged(rng: random.Random) -> dict[str, Any]:
    document = seed()
    for _ in range(rng.choice((1, 1, 2))):
        path = rng.choice(list(paths(document)))
        owner: Any = document
        for key in path[:-1]:
            owner = owner[key]
        if rng.random() < 0.3:
            del owner[path[-1]]
        else:
            owner[path[-1]] = copy.deepcopy(rng.choice(JUNK))
    return document


def run(document: dict[str, Any]) -> BadInputError | None:
    """Run the command on *document*; return what it refuses. Anything else that it raises fails."""
    text = yaml.safe_dump(document)
    found = CliRunner().invoke(
        schedule, ["--snapshot", "-", "-o", "json"], input=text, standalone_mode=False
    )
    if found.exception is None:
        json.loads(found.stdout)
        return None
    if isinstance(found.exception, BadInputError):
        return found.exception
    raise AssertionError(text) from found.exception


def test_the_file_that_is_damaged_is_right() -> None:
    assert run(seed()) is None


@pytest.mark.parametrize("first", range(0, 120, 20))
def test_a_damaged_file_is_refused_with_a_message_or_runs(first: int) -> None:
    for number in range(first, first + 20):
        refused = run(damaged(random.Random(number)))

        assert refused is None or str(refused).startswith("-"), f"seed {number}: no source"


def test_a_file_that_the_schema_refuses_is_refused() -> None:
    validator = jsonschema_rs.validator_for(snapshot_schema())
    told = 0
    for number in range(300):
        document = damaged(random.Random(1000 + number))
        if not validator.is_valid(document):
            told += 1
            assert run(document) is not None, f"seed {1000 + number}: {document}"
    assert told > 50


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"nodes": [{"name": "a", "count": 10**30}]}, "more than the"),
        ({"nodes": [{"name": "a", "gpus": 10**25}]}, "nodes[0].gpus"),
        ({"pods": [{"name": "x", "pods": -2}]}, "pods[0].pods: -2 is less than 0"),
        ({"pods": [{"name": "x", "hostPorts": ["http"]}]}, "pods[0].hostPorts: 'http' is no port"),
        ({"pods": [{"name": "x", "spec": {"affinity": {"nodeAffinity": 3}}}]}, "nodeAffinity"),
        ({"pods": [{"name": "x", "cpu": "lots"}]}, "pods[0].cpu"),
    ],
)
def test_what_is_wrong_is_named(change: dict[str, Any], words: str) -> None:
    assert words in str(run(change))
