"""Strategic merge, merge and JSON patches, by example."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spinney.local.apiserver.patch import (
    BadPatchError,
    UnappliablePatchError,
    builtin_schema,
    json_patch,
    merge_patch,
    strategic_merge,
)
from spinney.local.apiserver.patch.ordering import merged_order

PODS = builtin_schema("pods")


@pytest.mark.parametrize(
    ("target", "patch", "want"),
    [
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
        (["a", "b"], ["c", "d"], ["c", "d"]),
        ({"a": "foo"}, None, None),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
        ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
    ],
)
def test_merge_patch_does_what_rfc_7386_tells(target: Any, patch: Any, want: Any) -> None:
    before = copy.deepcopy(target)
    assert merge_patch(target, patch) == want
    assert target == before


def test_json_patch_applies_operations_in_order() -> None:
    target = {"a": [1, 2], "b": {"c": 1}}
    operations = [
        {"op": "test", "path": "/b/c", "value": 1},
        {"op": "add", "path": "/a/-", "value": 3},
        {"op": "remove", "path": "/a/0"},
        {"op": "move", "from": "/b/c", "path": "/d"},
    ]
    assert json_patch(target, operations) == {"a": [2, 3], "b": {}, "d": 1}
    assert target == {"a": [1, 2], "b": {"c": 1}}


@pytest.mark.parametrize(
    ("operations", "error"),
    [
        pytest.param([{"op": "test", "path": "/a", "value": 2}], UnappliablePatchError, id="test"),
        pytest.param([{"op": "remove", "path": "/x"}], UnappliablePatchError, id="missing"),
        pytest.param([{"op": "add", "path": "/a/b", "value": 1}], UnappliablePatchError, id="kind"),
        pytest.param([{"op": "jump", "path": "/a"}], BadPatchError, id="unknown operation"),
        pytest.param([{"path": "/a"}], BadPatchError, id="no operation"),
        pytest.param(["x"], BadPatchError, id="no map"),
        pytest.param({"a": 1}, BadPatchError, id="no list"),
        pytest.param([{"op": "remove", "path": "/x"}] * 10_001, BadPatchError, id="too many"),
    ],
)
def test_a_json_patch_that_does_not_work_is_refused(
    operations: Any, error: type[Exception]
) -> None:
    with pytest.raises(error):
        json_patch({"a": 1}, operations)


def pod(**spec: Any) -> dict[str, Any]:
    return {"metadata": {"name": "p"}, "spec": spec}


def containers(*names: str, **fields: Any) -> list[dict[str, Any]]:
    return [{"name": name, "image": f"{name}:1", **fields} for name in names]


SPEC_CASES: list[Any] = [
    pytest.param(
        {"containers": containers("a", "b")},
        {"containers": [{"name": "b", "image": "b:2"}]},
        {"containers": [{"name": "a", "image": "a:1"}, {"name": "b", "image": "b:2"}]},
        id="an item is changed in place",
    ),
    pytest.param(
        {"containers": containers("a")},
        {"containers": [{"name": "z", "image": "z:1", "command": None}]},
        {"containers": [{"name": "a", "image": "a:1"}, {"name": "z", "image": "z:1"}]},
        id="a new item is appended without nulls",
    ),
    pytest.param(
        {"containers": containers("a", "b")},
        {"containers": [{"name": "a", "$patch": "delete"}]},
        {"containers": [{"name": "b", "image": "b:1"}]},
        id="an item is deleted",
    ),
    pytest.param(
        {"containers": containers("a", "b")},
        {"containers": [{"$patch": "replace"}, {"name": "c"}]},
        {"containers": [{"name": "c"}]},
        id="a list is replaced",
    ),
    pytest.param(
        {"containers": [{"name": "a", "env": [{"name": "X", "value": "1"}, {"name": "Y"}]}]},
        {"containers": [{"name": "a", "env": [{"name": "X", "value": "2"}]}]},
        {"containers": [{"name": "a", "env": [{"name": "X", "value": "2"}, {"name": "Y"}]}]},
        id="keyed lists nest",
    ),
    pytest.param(
        {"containers": [{"name": "a", "args": ["x", "y"]}]},
        {"containers": [{"name": "a", "args": ["z"]}]},
        {"containers": [{"name": "a", "args": ["z"]}]},
        id="a list without key is replaced",
    ),
    pytest.param(
        {"tolerations": [{"key": "a"}]},
        {"tolerations": [{"key": "b"}]},
        {"tolerations": [{"key": "b"}]},
        id="tolerations are taken whole",
    ),
    pytest.param(
        {"nodeSelector": {"a": "1", "b": "2"}},
        {"nodeSelector": {"$patch": "replace", "c": "3"}},
        {"nodeSelector": {"c": "3"}},
        id="a map is replaced",
    ),
    pytest.param(
        {"nodeSelector": {"a": "1"}},
        {"nodeSelector": {"$patch": "delete"}},
        {"nodeSelector": {}},
        id="a map is emptied",
    ),
    pytest.param(
        {"nodeSelector": {"a": "1"}}, {"nodeSelector": None}, {}, id="null removes a field"
    ),
    pytest.param(
        {"volumes": [{"name": "v", "emptyDir": {}}]},
        {"volumes": [{"name": "v", "$retainKeys": ["name", "nfs"], "nfs": {"path": "/"}}]},
        {"volumes": [{"name": "v", "nfs": {"path": "/"}}]},
        id="only the retained keys stay",
    ),
    pytest.param(
        {"containers": containers("a", "b", "c")},
        {
            "$setElementOrder/containers": [{"name": "c"}, {"name": "a"}],
            "containers": [{"name": "c", "image": "c:2"}],
        },
        {
            "containers": [
                {"name": "b", "image": "b:1"},
                {"name": "c", "image": "c:2"},
                {"name": "a", "image": "a:1"},
            ]
        },
        id="named items stand in the order asked for",
    ),
    pytest.param(
        {"containers": containers("a", "b")},
        {"$setElementOrder/containers": [{"name": "b"}, {"name": "a"}]},
        {"containers": [{"name": "b", "image": "b:1"}, {"name": "a", "image": "a:1"}]},
        id="an order alone reorders",
    ),
]


@pytest.mark.parametrize(("spec", "patch", "want"), SPEC_CASES)
def test_a_strategic_patch_of_a_pod(
    spec: dict[str, Any], patch: dict[str, Any], want: dict[str, Any]
) -> None:
    target = pod(**spec)
    before = copy.deepcopy(target)
    assert strategic_merge(target, {"spec": patch}, PODS) == pod(**want)
    assert target == before


def test_finalizers_are_united_and_removed_one_by_one() -> None:
    target = {"metadata": {"finalizers": ["a", "b"]}}
    united = strategic_merge(target, {"metadata": {"finalizers": ["b", "c", "c"]}}, PODS)
    assert united["metadata"]["finalizers"] == ["a", "b", "c"]
    patch = {
        "metadata": {
            "$deleteFromPrimitiveList/finalizers": ["a"],
            "$setElementOrder/finalizers": ["c", "b"],
            "finalizers": ["c"],
        }
    }
    assert strategic_merge(target, patch, PODS)["metadata"]["finalizers"] == ["c", "b"]


def test_conditions_are_recognised_by_type() -> None:
    target = {"status": {"conditions": [{"type": "Ready", "status": "False", "reason": "x"}]}}
    patch = {"status": {"conditions": [{"type": "Ready", "status": "True"}, {"type": "New"}]}}
    assert strategic_merge(target, patch, PODS)["status"]["conditions"] == [
        {"type": "Ready", "status": "True", "reason": "x"},
        {"type": "New"},
    ]


def test_directives_in_a_new_part_are_not_stored() -> None:
    patch = {
        "spec": {
            "$setElementOrder/containers": [{"name": "a"}],
            "containers": [
                {"name": "a", "$retainKeys": ["name"], "env": [{"name": "X", "$patch": "delete"}]}
            ],
        }
    }
    assert strategic_merge({}, patch, PODS) == {"spec": {"containers": [{"name": "a", "env": []}]}}


@pytest.mark.parametrize(
    "patch",
    [
        pytest.param({"spec": {"containers": [{"image": "x"}]}}, id="no merge key"),
        pytest.param({"spec": {"$patch": "explode"}}, id="unknown directive"),
        pytest.param({"spec": {"containers": [{"name": "a", "$patch": "x"}]}}, id="item directive"),
        pytest.param({"spec": {"$retainKeys": ["a"], "b": 1}}, id="set but not retained"),
        pytest.param({"spec": {"$retainKeys": "a"}}, id="retain no list"),
        pytest.param({"metadata": {"$deleteFromPrimitiveList/finalizers": 1}}, id="delete no list"),
        pytest.param({"spec": {"$setElementOrder/containers": 1}}, id="order no list"),
        pytest.param([], id="no map"),
    ],
)
def test_a_malformed_strategic_patch_is_refused(patch: Any) -> None:
    with pytest.raises(BadPatchError):
        strategic_merge(pod(containers=containers("a")), patch, PODS)


_KEYS = st.lists(st.sampled_from("abcdefgh"), unique=True)


@given(live=_KEYS, wanted=_KEYS, new_first=st.booleans())
def test_a_merged_order_keeps_both_orders(
    live: list[str], wanted: list[str], new_first: bool
) -> None:
    merged = merged_order(live, wanted, {*live, *wanted}, new_first=new_first)
    assert sorted(merged) == sorted({*live, *wanted})
    assert [key for key in merged if key in wanted] == wanted
    theirs = [key for key in live if key not in wanted]
    assert [key for key in merged if key not in wanted] == theirs


@pytest.mark.parametrize(
    ("live", "wanted", "new_first", "want"),
    [
        pytest.param("sat", "a", True, "sat", id="the server's own stay where they were"),
        pytest.param("sa", "na", True, "nsa", id="new ones first"),
        pytest.param("sa", "na", False, "sna", id="new ones last"),
        pytest.param("asb", "ba", True, "sba", id="reordered"),
    ],
)
def test_items_of_the_server_stand_where_they_stood(
    live: str, wanted: str, new_first: bool, want: str
) -> None:
    assert "".join(merged_order(live, wanted, {*live, *wanted}, new_first=new_first)) == want


_NAMES = st.lists(st.sampled_from("abcd"), unique=True, max_size=4)


@given(before=_NAMES, after=_NAMES, image=st.sampled_from(["x:1", "y:2"]))
def test_a_patch_that_names_every_difference_leads_to_the_wanted_list(
    before: list[str], after: list[str], image: str
) -> None:
    target = pod(containers=containers(*before))
    wanted = [{"name": name, "image": image} for name in after]
    gone = [{"name": name, "$patch": "delete"} for name in before if name not in after]
    patch = {
        "spec": {
            "$setElementOrder/containers": [{"name": name} for name in after],
            "containers": [*wanted, *gone],
        }
    }
    assert strategic_merge(target, patch, PODS)["spec"]["containers"] == wanted
