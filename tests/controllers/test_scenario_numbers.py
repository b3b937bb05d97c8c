"""Each scenario that Grove tests end to end is a test here, by its number or another name."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

TESTS = Path(__file__).parents[1]
NUMBERED = {
    "GS": range(1, 13),
    "GT": range(1, 7),
    "SO": range(1, 5),
    "TAS": range(1, 24),
    "RU": range(7, 22),
    "OD": range(1, 10),
    "RS": range(1, 2),
}
ELSEWHERE = {
    "TAS21": "test_a_binding_names_each_thing_once_and_only_what_there_is",
    "TAS22": "test_a_broken_rule_is_told_with_its_field",
    "CascadeDelete": "test_a_manifest_for_grove_runs_and_leaves_nothing",
    "CM1": "test_a_renewed_certificate_is_shown_without_a_restart",
    "CRD_Installer_Idempotent": "test_a_cluster_that_is_stopped_comes_back_with_its_objects",
    "AutoMNNVL_SupportedAndEnabled": "test_a_domain_is_made_for_each_replica_and_goes_with_it",
    "AutoMNNVL_UnsupportedButEnabled": (
        "test_without_the_driver_the_set_says_what_to_install_and_goes_on_when_it_is"
    ),
    "TestUpgradeFromLatestRelease": "test_a_stored_revision_keeps_the_hashes_it_was_stored_with",
}


def sources() -> str:
    own = Path(__file__)
    return "\n".join(p.read_text() for p in sorted(TESTS.rglob("test_*.py")) if p != own)


def test_every_scenario_has_a_test() -> None:
    text = sources()
    numbered = re.compile(r"""(?:id="|["_])(GS|GT|SO|TAS|RU|OD|RS)(\d+)(?=["_(:-])""", re.I)
    found = {(kind.upper(), int(number)) for kind, number in numbered.findall(text)}
    wanted = itertools.chain.from_iterable(
        ((kind, number) for number in numbers) for kind, numbers in NUMBERED.items()
    )
    missing = [f"{kind}{number}" for kind, number in wanted if (kind, number) not in found]
    assert [name for name in missing if name not in ELSEWHERE] == []
    assert [test for test in ELSEWHERE.values() if f"def {test}(" not in text] == []
