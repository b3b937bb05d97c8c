"""Server-side apply: ownership, conflicts and release, by example and by property."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spinney.local.apiserver.patch import (
    ApplyConflictError,
    BadPatchError,
    builtin_schema,
    crd_schema,
    server_side_apply,
    track_update,
)
from spinney.local.apiserver.patch import fieldset as fs

PODS = builtin_schema("pods")
MAPS = builtin_schema("configmaps")
T1, T2, T3 = "2026-01-01T00:00:01Z", "2026-01-01T00:00:02Z", "2026-01-01T00:00:03Z"


def config_map(**data: Any) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m"}, "data": data}


def pod(**spec: Any) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": spec}


def apply(
    live: dict[str, Any] | None,
    wanted: dict[str, Any],
    manager: str = "one",
    *,
    force: bool = False,
    now: str = T1,
    schema: Any = MAPS,
    **options: Any,
) -> dict[str, Any]:
    kept = copy.deepcopy((live, wanted))
    result = server_side_apply(live, wanted, manager, force, schema, now, **options)
    assert (live, wanted) == kept
    return result.object


def owned(obj: dict[str, Any]) -> dict[str, Any]:
    entries = obj["metadata"].get("managedFields", [])
    return {f"{e['manager']}/{e['operation']}": e["fieldsV1"] for e in entries}


def bare(obj: dict[str, Any]) -> dict[str, Any]:
    metadata = {k: v for k, v in obj["metadata"].items() if k != "managedFields"}
    return {**obj, "metadata": metadata}


def test_the_record_has_the_form_that_kubernetes_writes() -> None:
    wanted = pod(
        containers=[
            {"name": "a", "image": "x", "args": ["1"], "ports": [{"containerPort": 80}]},
        ],
        nodeSelector={"k": "v"},
        volumes=[{"name": "v", "emptyDir": {}}],
    )
    wanted["metadata"] |= {
        "labels": {"app": "x"},
        "finalizers": ["f/1"],
        "ownerReferences": [{"uid": "u", "name": "o"}],
    }
    [entry] = apply(None, wanted, schema=PODS)["metadata"]["managedFields"]
    assert entry == {
        "manager": "one",
        "operation": "Apply",
        "apiVersion": "v1",
        "time": T1,
        "fieldsType": "FieldsV1",
        "fieldsV1": {
            "f:metadata": {
                "f:labels": {"f:app": {}},
                "f:finalizers": {'v:"f/1"': {}},
                "f:ownerReferences": {'k:{"uid":"u"}': {".": {}, "f:uid": {}, "f:name": {}}},
            },
            "f:spec": {
                "f:nodeSelector": {},
                "f:containers": {
                    'k:{"name":"a"}': {
                        ".": {},
                        "f:name": {},
                        "f:image": {},
                        "f:args": {},
                        "f:ports": {
                            'k:{"containerPort":80,"protocol":"TCP"}': {
                                ".": {},
                                "f:containerPort": {},
                            }
                        },
                    }
                },
                "f:volumes": {'k:{"name":"v"}': {".": {}, "f:name": {}, "f:emptyDir": {}}},
            },
        },
    }


def test_applying_the_same_again_changes_nothing_not_even_the_time() -> None:
    first = apply(None, config_map(a="1"))
    result = server_side_apply(first, config_map(a="1"), "one", False, MAPS, T2)
    assert not result.changed
    assert result.object == first


def test_a_field_that_is_no_longer_applied_is_removed() -> None:
    first = apply(None, config_map(a="1", b="2"))
    second = apply(first, config_map(a="1"), now=T2)
    assert second["data"] == {"a": "1"}
    assert second["metadata"]["managedFields"][0]["time"] == T2


def test_a_map_that_loses_its_last_field_goes_too() -> None:
    first = apply(None, pod(securityContext={"runAsUser": 1}, hostname="h"), schema=PODS)
    assert apply(first, pod(hostname="h"), schema=PODS)["spec"] == {"hostname": "h"}


def test_a_field_that_another_manager_applies_too_stays() -> None:
    live = apply(None, config_map(a="1", b="2"))
    live = apply(live, config_map(b="2"), "two")
    live = apply(live, config_map(a="1"))
    assert live["data"] == {"a": "1", "b": "2"}
    assert owned(live) == {
        "one/Apply": {"f:data": {"f:a": {}}},
        "two/Apply": {"f:data": {"f:b": {}}},
    }


def test_another_value_for_a_field_of_another_manager_is_a_conflict() -> None:
    live = apply(None, config_map(a="1", b="2"))
    with pytest.raises(ApplyConflictError) as caught:
        apply(live, config_map(a="9"), "two")
    assert str(caught.value) == 'Apply failed with 1 conflict: conflict with "one": .data.a'
    assert [(c.message, c.field) for c in caught.value.conflicts] == [
        ('conflict with "one"', ".data.a")
    ]


def test_several_conflicts_are_listed_by_manager() -> None:
    live = apply(None, pod(containers=[{"name": "a", "image": "x"}], hostname="h"), schema=PODS)
    changed = copy.deepcopy(live)
    changed["spec"]["subdomain"] = "s"
    live = track_update(live, changed, "kubectl-edit", T2, PODS)
    wanted = pod(containers=[{"name": "a", "image": "y"}], hostname="i", subdomain="t")
    with pytest.raises(ApplyConflictError) as caught:
        apply(live, wanted, "two", schema=PODS)
    assert str(caught.value) == (
        "Apply failed with 3 conflicts: "
        'conflicts with "one":\n- .spec.containers[name="a"].image\n- .spec.hostname\n'
        f'conflicts with "kubectl-edit" using v1 at {T2}:\n- .spec.subdomain'
    )


def test_force_takes_the_field_over() -> None:
    live = apply(None, config_map(a="1", b="2"))
    live = apply(live, config_map(a="9"), "two", force=True)
    assert live["data"] == {"a": "9", "b": "2"}
    assert owned(live) == {
        "one/Apply": {"f:data": {"f:b": {}}},
        "two/Apply": {"f:data": {"f:a": {}}},
    }


def test_the_same_value_is_shared_without_conflict() -> None:
    live = apply(None, config_map(a="1"))
    live = apply(live, config_map(a="1"), "two")
    assert set(owned(live)) == {"one/Apply", "two/Apply"}


def test_what_was_there_before_the_first_apply_is_owned_and_conflicts() -> None:
    live = config_map(a="1", b="2")
    with pytest.raises(ApplyConflictError, match=r'"before-first-apply" using v1: \.data\.a'):
        apply(live, config_map(a="9"))
    live = apply(live, config_map(a="1"))
    assert set(owned(live)) == {"before-first-apply/Update", "one/Apply"}
    live = apply(live, config_map())
    assert live["data"] == {"a": "1", "b": "2"}


def test_defaults_filled_in_by_the_server_are_nobodys_and_go_with_their_item() -> None:
    live = apply(None, pod(containers=[{"name": "a"}, {"name": "b"}]), schema=PODS)
    for container in live["spec"]["containers"]:
        container["imagePullPolicy"] = "Always"
    live = apply(live, pod(containers=[{"name": "b"}]), schema=PODS)
    assert live["spec"] == {"containers": [{"name": "b", "imagePullPolicy": "Always"}]}


def test_two_managers_share_a_keyed_list() -> None:
    live = apply(None, pod(containers=[{"name": "a", "image": "a"}]), schema=PODS)
    live = apply(live, pod(containers=[{"name": "z", "image": "z"}]), "two", schema=PODS)
    assert [c["name"] for c in live["spec"]["containers"]] == ["a", "z"]
    live = apply(live, pod(), "two", schema=PODS)
    assert [c["name"] for c in live["spec"]["containers"]] == ["a"]


def test_a_port_is_the_same_with_and_without_the_default_protocol() -> None:
    ports = [{"containerPort": 80, "protocol": "TCP"}, {"containerPort": 80, "protocol": "UDP"}]
    live = apply(None, pod(containers=[{"name": "a", "ports": ports}]), schema=PODS)
    wanted = pod(containers=[{"name": "a", "ports": [{"containerPort": 80, "name": "w"}]}])
    live = apply(live, wanted, "two", schema=PODS)
    assert live["spec"]["containers"][0]["ports"] == [
        {"containerPort": 80, "protocol": "TCP", "name": "w"},
        {"containerPort": 80, "protocol": "UDP"},
    ]


def test_finalizers_are_a_set() -> None:
    one, two = config_map(), config_map()
    one["metadata"]["finalizers"] = ["a"]
    two["metadata"]["finalizers"] = ["b"]
    live = apply(apply(None, one), two, "two")
    assert live["metadata"]["finalizers"] == ["a", "b"]
    live = apply(live, config_map(), "one")
    assert live["metadata"]["finalizers"] == ["b"]


def test_an_atomic_list_is_one_field() -> None:
    live = apply(None, pod(tolerations=[{"key": "a"}]), schema=PODS)
    with pytest.raises(ApplyConflictError, match=r"\.spec\.tolerations$"):
        apply(live, pod(tolerations=[{"key": "a"}, {"key": "b"}]), "two", schema=PODS)


def test_a_custom_resource_merges_as_its_schema_says() -> None:
    schema = crd_schema(
        {
            "properties": {
                "spec": {
                    "properties": {
                        "whole": {"type": "object", "x-kubernetes-map-type": "atomic"},
                        "list": {"type": "array"},
                        "keyed": {
                            "x-kubernetes-list-type": "map",
                            "x-kubernetes-list-map-keys": ["id", "zone"],
                            "items": {"properties": {"zone": {"default": "z"}}},
                        },
                        "set": {"x-kubernetes-list-type": "set"},
                        "free": {"x-kubernetes-preserve-unknown-fields": True},
                    }
                }
            }
        }
    )
    wanted = {
        "apiVersion": "example.com/v1",
        "metadata": {"name": "x"},
        "spec": {
            "whole": {"a": 1},
            "list": [{"a": 1}],
            "keyed": [{"id": 1, "v": 2}],
            "set": ["s", 3],
            "free": {"deep": {"x": 1}},
        },
    }
    live = apply(None, wanted, schema=schema)
    assert owned(live)["one/Apply"]["f:spec"] == {
        "f:whole": {},
        "f:list": {},
        "f:keyed": {'k:{"id":1,"zone":"z"}': {".": {}, "f:id": {}, "f:v": {}}},
        "f:set": {'v:"s"': {}, "v:3": {}},
        "f:free": {"f:deep": {"f:x": {}}},
    }


def test_status_is_applied_only_through_its_subresource() -> None:
    wanted = {**pod(hostname="h"), "status": {"phase": "Running"}}
    live = apply(None, wanted, schema=PODS)
    assert "status" not in live
    live = apply(live, wanted, "kubelet", schema=PODS, subresource="status")
    assert live["status"] == {"phase": "Running"}
    entry = next(e for e in live["metadata"]["managedFields"] if e["manager"] == "kubelet")
    assert entry["subresource"] == "status"
    assert entry["fieldsV1"] == {"f:status": {"f:phase": {}}}


@pytest.mark.parametrize(
    "wanted",
    [
        pytest.param(pod(containers=[{"name": "a"}, {"name": "a"}]), id="two of one key"),
        pytest.param(pod(containers=[{"image": "a"}]), id="no key"),
        pytest.param(pod(containers=["a"]), id="no map in a keyed list"),
        pytest.param({"metadata": {"name": "p", "managedFields": [{}]}}, id="managedFields"),
        pytest.param({"metadata": 1}, id="metadata no map"),
        pytest.param([], id="no object"),
    ],
)
def test_a_malformed_configuration_is_refused(wanted: Any) -> None:
    with pytest.raises(BadPatchError):
        server_side_apply(None, wanted, "one", False, PODS, T1)


# Plain writes


def test_a_plain_write_to_an_object_that_is_never_applied_costs_nothing() -> None:
    old, new = config_map(a="1"), config_map(a="2")
    assert track_update(old, new, "x", T1, MAPS) is new
    assert track_update(None, new, "x", T1, MAPS) is new


def test_a_plain_write_takes_over_what_it_changes_and_frees_what_it_removes() -> None:
    live = apply(None, config_map(a="1", b="2", c="3"))
    changed = copy.deepcopy(live)
    changed["data"] = {"a": "9", "b": "2", "d": "4"}
    live = track_update(live, changed, "editor", T2, MAPS)
    assert owned(live) == {
        "one/Apply": {"f:data": {"f:b": {}}},
        "editor/Update": {"f:data": {"f:a": {}, "f:d": {}}},
    }
    with pytest.raises(ApplyConflictError, match='"editor" using v1 at'):
        apply(live, config_map(a="1"))


def test_a_plain_write_of_status_is_recorded_with_its_subresource() -> None:
    live = apply(None, pod(hostname="h"), schema=PODS)
    changed = {**live, "status": {"conditions": [{"type": "Ready", "status": "True"}]}}
    live = track_update(live, changed, "kubelet", T2, PODS, "status")
    entry = next(e for e in live["metadata"]["managedFields"] if e["manager"] == "kubelet")
    assert entry["fieldsV1"] == {
        "f:status": {
            ".": {},
            "f:conditions": {
                ".": {},
                'k:{"type":"Ready"}': {".": {}, "f:type": {}, "f:status": {}},
            },
        }
    }


def test_a_write_that_changes_nothing_leaves_the_record() -> None:
    live = apply(None, config_map(a="1"))
    assert track_update(live, copy.deepcopy(live), "x", T3, MAPS) == live
    assert track_update(live, bare(live), "x", T3, MAPS) == live


def test_an_emptied_record_is_dropped() -> None:
    live = apply(None, config_map(a="1"))
    changed = copy.deepcopy(live)
    changed["metadata"]["managedFields"] = [{}]
    assert "managedFields" not in track_update(live, changed, "x", T3, MAPS)["metadata"]


def test_many_writers_are_remembered_as_one() -> None:
    live = apply(None, config_map(a="1"))
    for number in range(15):
        changed = copy.deepcopy(live)
        changed["data"][f"k{number:02}"] = "v"
        live = track_update(live, changed, f"w{number:02}", f"2026-01-01T00:01:{number:02}Z", MAPS)
    writers = owned(live)
    assert len(writers) == 11
    assert set(writers["ancient-changes/Update"]["f:data"]) == {f"f:k{n:02}" for n in range(6)}


# Properties

_LEAVES = st.sampled_from(["1", "2"])
_DATA = st.dictionaries(st.sampled_from("abcd"), _LEAVES, max_size=4)
_CONTAINERS = st.lists(
    st.fixed_dictionaries(
        {"name": st.sampled_from("abc")},
        optional={
            "image": _LEAVES,
            "env": st.lists(
                st.fixed_dictionaries({"name": st.sampled_from("XY")}, optional={"value": _LEAVES}),
                unique_by=lambda e: e["name"],
                max_size=2,
            ),
            "args": st.lists(_LEAVES, max_size=2),
        },
    ),
    unique_by=lambda c: c["name"],
    max_size=3,
)


@st.composite
def pods(draw: st.DrawFn) -> dict[str, Any]:
    wanted = pod(containers=draw(_CONTAINERS), nodeSelector=draw(_DATA))
    if draw(st.booleans()):
        wanted["metadata"]["labels"] = draw(_DATA)
    return wanted


@given(live=st.none() | pods(), wanted=pods())
def test_applying_twice_is_applying_once(
    live: dict[str, Any] | None, wanted: dict[str, Any]
) -> None:
    once = apply(live, wanted, force=True, schema=PODS)
    again = server_side_apply(once, wanted, "one", False, PODS, T2)
    assert again.object == once
    assert not again.changed


@given(wanted=st.lists(st.tuples(st.sampled_from(["one", "two"]), pods()), max_size=6))
@settings(max_examples=60)
def test_an_applied_field_has_its_value_and_an_unowned_one_is_gone(
    wanted: list[tuple[str, dict[str, Any]]],
) -> None:
    live: dict[str, Any] | None = None
    for manager, config in wanted:
        live = apply(live, config, manager, force=True, schema=PODS)
        claimed = fs.named_by(config, PODS)
        assert claimed <= fs.named_by(live, PODS) | fs.with_ancestors(fs.named_by(live, PODS))
        assert not fs.compare(live, apply(live, config, manager, schema=PODS), PODS).changed
        leaves = fs.named_by(bare(live), PODS)
        owners = frozenset().union(
            *(fs.from_fields_v1(e["fieldsV1"]) for e in live["metadata"]["managedFields"])
        )
        system = {("f:apiVersion",), ("f:kind",), ("f:metadata", "f:name")}
        assert leaves - system <= fs.with_ancestors(owners)


@given(config=pods())
def test_a_field_set_survives_being_written_and_read(config: dict[str, Any]) -> None:
    paths = fs.named_by(config, PODS)
    assert fs.from_fields_v1(fs.to_fields_v1(paths)) == paths


@given(old=pods(), new=pods())
def test_a_plain_writer_owns_what_it_changed(old: dict[str, Any], new: dict[str, Any]) -> None:
    live = apply(None, old, schema=PODS)
    stored = track_update(live, {**new}, "editor", T2, PODS)
    difference = fs.compare(old, new, PODS)
    entries = {
        e["manager"]: fs.from_fields_v1(e["fieldsV1"])
        for e in stored["metadata"].get("managedFields", [])
    }
    assert bare(stored) == bare(new)
    changed = {p for p in difference.changed if p != ("f:metadata",)}
    assert entries.get("editor", fs.EMPTY) == changed
    assert not entries.get("one", fs.EMPTY) & (difference.changed | difference.removed)
