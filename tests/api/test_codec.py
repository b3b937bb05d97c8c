"""Decoding and encoding lose no field, whatever the types know."""

from __future__ import annotations

import copy
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spinney.api import codec
from spinney.api.core import ConfigMap, Container, EnvVar, Lease, Pod, Service
from spinney.local.apiserver.patch import merge_patch


def raw_pod() -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": "p",
            "namespace": "n",
            "labels": {"a": "1"},
            "managedFields": [{"manager": "x"}],
        },
        "spec": {
            "dnsPolicy": "ClusterFirst",
            "restartPolicy": "Always",
            "containers": [
                {"name": "one", "image": "i:1", "tty": True, "env": [{"name": "X", "value": "1"}]},
                {"name": "two", "image": "i:2", "stdin": True},
            ],
            "nodeSelector": None,
        },
        "status": {"phase": "Running", "newField": {"deep": [1, None]}},
    }


def kept(raw: dict[str, Any] | None = None) -> Pod:
    return codec.decode(Pod, json.dumps(raw or raw_pod()).encode(), keep=True)


def test_an_unchanged_object_is_encoded_as_it_came() -> None:
    assert codec.to_dict(kept()) == raw_pod()
    assert json.loads(codec.encode(kept())) == raw_pod()


def test_a_change_touches_only_what_was_changed() -> None:
    obj = kept()
    obj.metadata.labels["b"] = "2"
    obj.spec.containers[1].image = "i:3"
    want = raw_pod()
    want["metadata"]["labels"]["b"] = "2"
    want["spec"]["containers"][1]["image"] = "i:3"
    assert codec.to_dict(obj) == want


def test_items_of_a_list_keep_their_unknown_fields_when_others_come_and_go() -> None:
    obj = kept()
    del obj.spec.containers[0]
    obj.spec.containers.insert(0, Container(name="zero", image="i:0"))
    assert codec.to_dict(obj)["spec"]["containers"] == [
        {"name": "zero", "image": "i:0", "resources": {}},
        {"name": "two", "image": "i:2", "stdin": True},
    ]


def test_a_field_set_back_to_its_default_is_removed() -> None:
    obj = kept()
    obj.status.phase = ""
    obj.metadata.labels = {}
    found = codec.to_dict(obj)
    assert "phase" not in found["status"]
    assert found["status"]["newField"] == {"deep": [1, None]}
    assert "labels" not in found["metadata"]


def test_a_nested_list_is_changed_item_by_item() -> None:
    obj = kept()
    obj.spec.containers[0].env.append(EnvVar(name="Y", value="2"))
    one = codec.to_dict(obj)["spec"]["containers"][0]
    assert one == {
        "name": "one",
        "image": "i:1",
        "tty": True,
        "env": [{"name": "X", "value": "1"}, {"name": "Y", "value": "2"}],
    }


def test_a_list_of_items_without_keys_is_replaced() -> None:
    raw = {"metadata": {"name": "s"}, "spec": {"ports": [{"port": 1}, {"port": 1}]}}
    obj = codec.decode(Service, json.dumps(raw).encode(), keep=True)
    obj.spec.ports[0].port = 2
    assert [p["port"] for p in codec.to_dict(obj)["spec"]["ports"]] == [2, 1]


def test_without_keep_nothing_is_remembered() -> None:
    obj = codec.decode(Pod, json.dumps(raw_pod()).encode())
    found = codec.to_dict(obj)
    assert "dnsPolicy" not in found["spec"]
    assert found["kind"] == "Pod"


def test_what_an_object_came_from_is_not_shared_with_it() -> None:
    raw = raw_pod()
    obj = codec.from_dict(Pod, raw, keep=True)
    obj.metadata.labels["b"] = "2"
    codec.to_dict(obj)["spec"]["containers"].clear()
    assert raw == raw_pod()
    assert len(codec.to_dict(obj)["spec"]["containers"]) == 2


def test_null_counts_as_absent() -> None:
    text = b'{"metadata":{"name":"m","labels":null,"creationTimestamp":null},"data":null}'
    obj = codec.decode(ConfigMap, text)
    assert (obj.labels, obj.data) == ({}, {})


@pytest.mark.parametrize(
    ("text", "says"),
    [
        pytest.param(b"{", "not valid JSON", id="no JSON"),
        pytest.param(b"[1]", "a JSON object wanted, found list", id="no object"),
        pytest.param(
            b'{"metadata":{"name":"m"},"data":{"a":1}}', r"'m'.*data\[\.\.\.\]", id="a wrong type"
        ),
    ],
)
def test_what_is_no_such_object_is_refused_with_the_path(text: bytes, says: str) -> None:
    with pytest.raises(codec.DecodeError, match=says):
        codec.decode(ConfigMap, text)


def test_apiversion_and_kind_are_those_of_the_type() -> None:
    assert codec.to_dict(Lease())["apiVersion"] == "coordination.k8s.io/v1"
    wrong = Lease(api_version="v9", kind="Wrong")
    assert codec.to_dict(wrong)["kind"] == "Lease"


def test_a_difference_names_only_what_differs() -> None:
    before, after = kept(), kept()
    assert codec.merge_diff(before, after) == {}
    after.status.phase = "Failed"
    after.metadata.labels = {"c": "3"}
    assert codec.merge_diff(before, after) == {
        "status": {"phase": "Failed"},
        "metadata": {"labels": {"a": None, "c": "3"}},
    }


def test_a_copy_with_changes_is_a_difference_too() -> None:
    before = kept()
    after = msgspec.structs.replace(
        before, status=msgspec.structs.replace(before.status, phase="Failed")
    )
    assert codec.merge_diff(before, after) == {"status": {"phase": "Failed"}}


_JSON = st.recursive(
    st.sampled_from(["x", "y", 1, True]),
    lambda inner: (
        st.dictionaries(st.sampled_from("abc"), inner, max_size=3) | st.lists(inner, max_size=2)
    ),
    max_leaves=8,
)
_OBJECTS = st.dictionaries(st.sampled_from("abc"), _JSON, max_size=3)


@given(before=_OBJECTS, after=_OBJECTS)
def test_a_difference_applied_as_a_merge_patch_leads_to_the_other_value(
    before: dict[str, Any], after: dict[str, Any]
) -> None:
    kept_before = copy.deepcopy(before)
    assert merge_patch(before, codec.diff_values(before, after)) == after
    assert before == kept_before


_DATA = st.dictionaries(st.sampled_from("abc"), st.sampled_from("xy"), max_size=3)


@given(labels=_DATA, data=_DATA, unknown=_JSON, new_labels=_DATA, new_data=_DATA)
def test_a_read_modify_write_keeps_what_the_type_does_not_name(
    labels: dict[str, str],
    data: dict[str, str],
    unknown: Any,
    new_labels: dict[str, str],
    new_data: dict[str, str],
) -> None:
    raw = {
        "metadata": {"name": "m", "labels": labels, "unknown": unknown},
        "data": data,
        "unknown": unknown,
    }
    obj = codec.from_dict(ConfigMap, raw, keep=True)
    obj.metadata.labels, obj.data = new_labels, new_data
    found = codec.to_dict(obj)
    assert found["unknown"] == found["metadata"]["unknown"] == unknown
    assert found.get("data", {}) == new_data
    assert found["metadata"].get("labels", {}) == new_labels
