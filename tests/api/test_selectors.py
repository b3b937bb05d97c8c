"""Selectors: what people write, and what it selects."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spinney.api import selectors
from spinney.api.meta import LabelSelector, LabelSelectorRequirement
from spinney.errors import BadInputError

WEB = {"tier": "web", "example.com/rack": "r1"}


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("", True),
        ("tier=web", True),
        ("tier==web", True),
        ("tier = web", True),
        ("tier=db", False),
        ("tier!=db", True),
        ("tier!=web", False),
        ("absent!=x", True),
        ("tier in (web, db)", True),
        ("tier in (db)", False),
        ("absent in (db)", False),
        ("tier notin (db,x)", True),
        ("tier notin (web)", False),
        ("absent notin (web)", True),
        ("tier", True),
        ("absent", False),
        ("!absent", True),
        ("!tier", False),
        ("tier=", False),
        ("tier=web,example.com/rack=r1", True),
        ("tier in (web,db),example.com/rack notin (r2),!absent,tier", True),
        ("tier=web,example.com/rack=r2", False),
    ],
)
def test_a_label_selector_selects(text: str, want: bool) -> None:
    assert selectors.parse_labels(text).matches(WEB) is want


@pytest.mark.parametrize("text", ["a=(", "a in b", "=x", "a=b=c", "a b", "-a", "a in (x", "a=@"])
def test_a_malformed_label_selector_is_bad_input_that_names_the_part(text: str) -> None:
    with pytest.raises(BadInputError, match="label selector: cannot parse"):
        selectors.parse_labels(f"ok=1,{text}")


def test_a_selector_of_an_object_means_the_same() -> None:
    selector = LabelSelector(
        match_labels={"tier": "web"},
        match_expressions=[
            LabelSelectorRequirement(key="tier", operator="In", values=["web", "db"]),
            LabelSelectorRequirement(key="x", operator="NotIn", values=["y"]),
            LabelSelectorRequirement(key="example.com/rack", operator="Exists"),
            LabelSelectorRequirement(key="absent", operator="DoesNotExist"),
        ],
    )
    found = selectors.from_object(selector)
    assert found.matches(WEB)
    assert not found.matches({**WEB, "absent": ""})
    with pytest.raises(BadInputError, match="'Near'"):
        selectors.from_object(
            LabelSelector(match_expressions=[LabelSelectorRequirement(key="a", operator="Near")])
        )


_LABELS = st.dictionaries(
    st.sampled_from(["a", "b.c/d", "e-f"]), st.sampled_from(["", "x", "y.z", "1"]), max_size=3
)


@given(wanted=_LABELS, found=_LABELS)
def test_labels_written_as_a_selector_select_exactly_what_has_them(
    wanted: dict[str, str], found: dict[str, str]
) -> None:
    selector = selectors.parse_labels(selectors.format_labels(wanted))
    assert selector.matches(found) is (wanted.items() <= found.items())


OBJECT = {
    "metadata": {"name": "p", "namespace": "n"},
    "spec": {"nodeName": "node-1", "hostNetwork": True},
    "status": {"phase": None},
}


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("", True),
        ("metadata.name=p", True),
        ("metadata.name==p", True),
        ("metadata.name!=p", False),
        ("metadata.name=p,spec.nodeName=node-1", True),
        ("metadata.name=p,spec.nodeName=node-2", False),
        ("spec.nodeName=", False),
        ("status.phase=", True),
        ("status.phase!=Running", True),
        ("spec.nodeName.deeper=", True),
        ("spec.hostNetwork=true", True),
    ],
)
def test_a_field_selector_selects(text: str, want: bool) -> None:
    assert selectors.parse_fields(text).matches(OBJECT) is want


def test_a_malformed_field_selector_is_bad_input() -> None:
    with pytest.raises(BadInputError, match=r"'metadata\.name'"):
        selectors.parse_fields("a=b,metadata.name")
