"""What create, get, list, update, patch and delete mean, whatever the kind."""

from __future__ import annotations

from typing import Any

import pytest

from spinney.kube.transport import APPLY_PATCH, JSON_PATCH, MERGE_PATCH, STRATEGIC_PATCH

CMS = "/api/v1/namespaces/default/configmaps"
PODS = "/api/v1/namespaces/default/pods"
DEPLOYMENTS = "/apis/apps/v1/namespaces/default/deployments"


def cm(name: str, data: Any = None, **meta: Any) -> dict[str, Any]:
    return {"metadata": {"name": name, **meta}, "data": data or {}}


def pod(name: str, **spec: Any) -> dict[str, Any]:
    containers = [{"name": "main", "image": "busybox:1"}]
    return {"metadata": {"name": name}, "spec": {"containers": containers, **spec}}


def deployment(name: str) -> dict[str, Any]:
    template = {"metadata": {"labels": {"a": "b"}}, "spec": pod("x")["spec"]}
    return {
        "metadata": {"name": name},
        "spec": {"selector": {"matchLabels": {"a": "b"}}, "template": template},
    }


def test_a_created_object_has_what_the_server_gives_it(api):
    obj = api.ok("POST", CMS, cm("a", {"k": "v"}))
    meta = obj["metadata"]
    assert (obj["kind"], obj["apiVersion"]) == ("ConfigMap", "v1")
    assert (meta["namespace"], meta["creationTimestamp"]) == ("default", "2027-01-15T08:00:00Z")
    assert meta["uid"]
    assert int(meta["resourceVersion"]) > 1
    assert api.ok("GET", f"{CMS}/a") == obj


def test_every_write_takes_the_next_version(api):
    first = int(api.ok("POST", CMS, cm("a"))["metadata"]["resourceVersion"])
    second = int(api.ok("POST", CMS, cm("b"))["metadata"]["resourceVersion"])
    third = api.ok("PATCH", f"{CMS}/a", {"data": {"x": "1"}}, content_type=MERGE_PATCH)
    assert [second, int(third["metadata"]["resourceVersion"])] == [first + 1, first + 2]
    assert int(api.ok("GET", CMS)["metadata"]["resourceVersion"]) == first + 2


def test_generated_names_start_with_what_was_asked_for_and_differ(api):
    names = {
        api.ok("POST", CMS, {"metadata": {"generateName": "x-"}})["metadata"]["name"]
        for _ in range(20)
    }
    assert len(names) == 20
    assert all(name.startswith("x-") and len(name) == 7 for name in names)


@pytest.mark.parametrize(
    ("body", "code", "reason", "says"),
    [
        pytest.param(cm("a"), 409, "AlreadyExists", 'configmaps "a" already exists', id="taken"),
        pytest.param(cm("A"), 422, "Invalid", "RFC 1123", id="bad name"),
        pytest.param({"data": {}}, 422, "Invalid", "generateName", id="no name"),
        pytest.param(cm("b", namespace="x"), 400, "BadRequest", "namespace", id="other namespace"),
        pytest.param(cm("b", resourceVersion="3"), 400, "BadRequest", "resourceVersion", id="rv"),
        pytest.param({**cm("b"), "kind": "Pod"}, 400, "BadRequest", "kind", id="other kind"),
        pytest.param(
            cm("b", labels={"a b": "c"}), 422, "Invalid", "metadata.labels", id="label key"
        ),
        pytest.param(cm("b", labels={"a": "-"}), 422, "Invalid", "metadata.labels", id="label"),
        pytest.param(cm("b", labels={"a": 1}), 400, "BadRequest", "labels.a", id="label type"),
        pytest.param(
            cm("b", ownerReferences=[{"uid": "u"}]), 422, "Invalid", "[0].kind", id="owner"
        ),
        pytest.param([], 400, "BadRequest", "object", id="no object"),
        pytest.param({"metadata": 3}, 400, "BadRequest", "metadata", id="no metadata"),
    ],
)
def test_a_create_that_cannot_be_is_refused(api, body, code, reason, says):
    api.ok("POST", CMS, cm("a"))
    status, reply = api.call("POST", CMS, body)
    assert (status, reply["reason"]) == (code, reason), reply
    assert says in reply["message"]


@pytest.mark.parametrize(
    ("method", "path", "code"),
    [
        ("GET", f"{CMS}/nope", 404),
        ("GET", "/api/v1/namespaces/default/nopes", 404),
        ("GET", "/nope", 404),
        ("GET", "/api/v1/configmaps/a", 404),
        ("GET", "/api/v1/namespaces/default/nodes", 404),
        ("DELETE", f"{CMS}/nope", 404),
        ("POST", "/api/v1/configmaps", 405),
        ("POST", f"{CMS}/a", 405),
        ("GET", f"{CMS}/a/status", 404),
        ("GET", f"{PODS}/a/exec", 404),
    ],
)
def test_paths_and_methods_that_are_not_served(api, method, path, code):
    assert api.call(method, path, cm("a") if method == "POST" else None)[0] == code


def test_a_namespace_has_to_exist(api):
    status, reply = api.call("POST", "/api/v1/namespaces/nope/configmaps", cm("a"))
    assert (status, reply["message"]) == (404, 'namespaces "nope" not found')


def test_a_write_that_changes_nothing_takes_no_version(api):
    obj = api.ok("POST", CMS, cm("a", {"k": "v"}, labels={"l": "1"}))
    reordered = {
        "data": {"k": "v"},
        "metadata": {"labels": {"l": "1"}, "name": "a"},
        "apiVersion": "v1",
        "kind": "ConfigMap",
    }
    for method, body, kind in [
        ("PATCH", {"data": {"k": "v"}}, MERGE_PATCH),
        ("PATCH", {"data": {"k": "v"}}, STRATEGIC_PATCH),
        ("PATCH", [{"op": "replace", "path": "/data/k", "value": "v"}], JSON_PATCH),
        ("PUT", reordered, "application/json"),
    ]:
        assert api.ok(method, f"{CMS}/a", body, content_type=kind) == obj
    assert api.ok("GET", CMS)["metadata"]["resourceVersion"] == obj["metadata"]["resourceVersion"]


@pytest.mark.parametrize("method", ["PUT", "PATCH"])
def test_a_write_that_names_an_old_version_is_a_conflict(api, method):
    old = api.ok("POST", CMS, cm("a"))
    api.ok("PATCH", f"{CMS}/a", {"data": {"k": "1"}}, content_type=MERGE_PATCH)
    old["data"] = {"k": "2"}
    content_type = MERGE_PATCH if method == "PATCH" else "application/json"
    status, reply = api.call(method, f"{CMS}/a", old, content_type=content_type)
    assert (status, reply["reason"]) == (409, "Conflict")
    assert "has been modified" in reply["message"]
    assert api.ok("GET", f"{CMS}/a")["data"] == {"k": "1"}


def test_a_put_without_a_version_replaces_whatever_there_is(api):
    api.ok("POST", CMS, cm("a", {"k": "1"}, labels={"x": "y"}))
    obj = api.ok("PUT", f"{CMS}/a", cm("a", {"k": "2"}))
    assert obj["data"] == {"k": "2"}
    assert "labels" not in obj["metadata"]


def test_a_put_of_another_uid_is_a_conflict(api):
    api.ok("POST", CMS, cm("a"))
    assert api.call("PUT", f"{CMS}/a", cm("a", uid="other"))[0] == 409


def test_clients_cannot_write_what_is_the_servers(api):
    before = api.ok("POST", CMS, cm("a"))
    patch = {
        "metadata": {
            "creationTimestamp": "2000-01-01T00:00:00Z",
            "deletionTimestamp": "2000-01-01T00:00:00Z",
            "generation": 7,
        }
    }
    assert api.ok("PATCH", f"{CMS}/a", patch, content_type=MERGE_PATCH) == before


def test_dry_run_answers_as_if_and_stores_nothing(api):
    made = api.ok("POST", CMS, cm("a"), dryRun="All")
    assert made["metadata"]["uid"]
    assert api.call("GET", f"{CMS}/a")[0] == 404
    api.ok("POST", CMS, cm("a"))
    patched = api.ok(
        "PATCH", f"{CMS}/a", {"data": {"k": "v"}}, content_type=MERGE_PATCH, dryRun="All"
    )
    assert patched["data"] == {"k": "v"}
    api.ok("DELETE", f"{CMS}/a", dryRun="All")
    assert api.ok("GET", f"{CMS}/a")["data"] == {}
    assert api.call("POST", CMS, cm("b"), dryRun="Some")[0] == 400


def test_generation_counts_changes_of_the_spec_alone(api):
    assert api.ok("POST", DEPLOYMENTS, deployment("d"))["metadata"]["generation"] == 1
    path = f"{DEPLOYMENTS}/d"
    steps = [
        ({"metadata": {"labels": {"a": "b"}}}, "", 1),
        ({"spec": {"replicas": 3}}, "", 2),
        ({"status": {"replicas": 3}}, "", 2),
        ({"status": {"replicas": 3}}, "/status", 2),
        ({"spec": {"replicas": 4}}, "/status", 2),
    ]
    for patch, subresource, want in steps:
        obj = api.ok("PATCH", path + subresource, patch, content_type=MERGE_PATCH)
        assert obj["metadata"]["generation"] == want, patch
    assert (obj["spec"]["replicas"], obj["status"]["replicas"]) == (3, 3)


def test_status_is_written_through_its_subresource_only(api):
    api.ok("POST", PODS, {**pod("p"), "status": {"phase": "Running"}})
    assert api.ok("GET", f"{PODS}/p")["status"]["phase"] == "Pending"
    api.ok("PATCH", f"{PODS}/p", {"status": {"phase": "Failed"}}, content_type=MERGE_PATCH)
    assert api.ok("GET", f"{PODS}/p")["status"]["phase"] == "Pending"
    patch = {"status": {"phase": "Running"}, "metadata": {"labels": {"a": "b"}}}
    obj = api.ok("PATCH", f"{PODS}/p/status", patch, content_type=MERGE_PATCH)
    assert obj["status"]["phase"] == "Running"
    assert "labels" not in obj["metadata"]


# Lists


def test_a_list_is_sorted_and_of_one_namespace_or_all(api):
    api.ok("POST", "/api/v1/namespaces", {"metadata": {"name": "other"}})
    for namespace, name in [("other", "a"), ("default", "b"), ("default", "a-1"), ("default", "a")]:
        api.ok("POST", f"/api/v1/namespaces/{namespace}/configmaps", cm(name))
    names = [i["metadata"]["name"] for i in api.ok("GET", CMS)["items"]]
    assert names == ["a", "a-1", "b"]
    found = api.ok("GET", "/api/v1/configmaps")
    assert found["kind"] == "ConfigMapList"
    assert [i["metadata"]["namespace"] for i in found["items"]] == ["default"] * 3 + ["other"]


@pytest.mark.parametrize(
    ("selector", "want"),
    [
        ({"labelSelector": "a=1"}, ["p1", "p2"]),
        ({"labelSelector": "a=1,b"}, ["p2"]),
        ({"labelSelector": "a notin (1)"}, ["p3"]),
        ({"fieldSelector": "metadata.name=p1"}, ["p1"]),
        ({"fieldSelector": "metadata.name!=p1"}, ["p2", "p3"]),
        ({"fieldSelector": "spec.nodeName=n1"}, ["p3"]),
        ({"fieldSelector": "spec.nodeName="}, ["p1", "p2"]),
        ({"fieldSelector": "status.phase=Pending", "labelSelector": "!a"}, ["p3"]),
    ],
)
def test_selectors_pick_objects(api, selector, want):
    for name, labels, node in [("p1", {"a": "1"}, ""), ("p2", {"a": "1", "b": ""}, "")]:
        body = pod(name, nodeName=node)
        body["metadata"]["labels"] = labels
        api.ok("POST", PODS, body)
    api.ok("POST", PODS, pod("p3", nodeName="n1"))
    assert [i["metadata"]["name"] for i in api.ok("GET", PODS, **selector)["items"]] == want


def test_selectors_that_cannot_be_understood_are_refused(api):
    assert api.call("GET", PODS, labelSelector="a~b")[0] == 400
    status, reply = api.call("GET", PODS, fieldSelector="spec.foo=1")
    assert status == 400
    assert "spec.foo" in reply["message"]


def test_pages_show_the_state_of_the_first_page(api):
    for i in range(5):
        api.ok("POST", CMS, cm(f"c{i}"))
    page = api.ok("GET", CMS, limit="2")
    assert page["metadata"]["remainingItemCount"] == 3
    api.ok("DELETE", f"{CMS}/c3")
    api.ok("POST", CMS, cm("c2a"))
    api.ok("PATCH", f"{CMS}/c4", {"data": {"new": "1"}}, content_type=MERGE_PATCH)
    seen = [i["metadata"]["name"] for i in page["items"]]
    while token := page["metadata"].get("continue"):
        page = api.ok("GET", CMS, limit="2", **{"continue": token})
        seen += [i["metadata"]["name"] for i in page["items"]]
        assert all(item["data"] == {} for item in page["items"])
    assert seen == ["c0", "c1", "c2", "c3", "c4"]


def test_a_page_whose_state_is_forgotten_is_gone(make_api):
    api = make_api(history_events=5)
    for i in range(4):
        api.ok("POST", CMS, cm(f"c{i}"))
    token = api.ok("GET", CMS, limit="2")["metadata"]["continue"]
    for i in range(6):
        api.ok("POST", CMS, cm(f"d{i}"))
    status, reply = api.call("GET", CMS, limit="2", **{"continue": token})
    assert (status, reply["reason"]) == (410, "Expired")
    assert api.call("GET", CMS, **{"continue": "rubbish"})[0] == 400


def test_a_list_at_an_exact_version_is_the_state_then(api):
    version = api.ok("POST", CMS, cm("a"))["metadata"]["resourceVersion"]
    api.ok("POST", CMS, cm("b"))
    found = api.ok("GET", CMS, resourceVersion=version, resourceVersionMatch="Exact")
    assert [i["metadata"]["name"] for i in found["items"]] == ["a"]
    status, reply = api.call("GET", CMS, resourceVersion="999999")
    assert (status, reply["reason"]) == (504, "Timeout")


# Deletion


def test_deleting_with_preconditions(api):
    obj = api.ok("POST", CMS, cm("a"))
    for wrong in ({"uid": "x"}, {"resourceVersion": "1"}):
        status, _ = api.call("DELETE", f"{CMS}/a", {"preconditions": wrong})
        assert status == 409
    right = {k: obj["metadata"][k] for k in ("uid", "resourceVersion")}
    reply = api.ok("DELETE", f"{CMS}/a", {"preconditions": right})
    assert (reply["kind"], reply["details"]["uid"]) == ("Status", right["uid"])
    assert api.ok("POST", CMS, cm("a"))["metadata"]["uid"] != right["uid"]


def test_an_object_with_finalizers_goes_when_the_last_one_is_removed(api):
    api.ok("POST", CMS, cm("a", finalizers=["x.io/1", "x.io/2"]))
    marked = api.ok("DELETE", f"{CMS}/a")
    assert marked["metadata"]["deletionTimestamp"] == "2027-01-15T08:00:00Z"
    assert api.ok("DELETE", f"{CMS}/a")["metadata"] == marked["metadata"]
    add = {"metadata": {"finalizers": ["x.io/1", "x.io/2", "x.io/3"]}}
    assert api.call("PATCH", f"{CMS}/a", add, content_type=MERGE_PATCH)[0] == 422
    for left in (["x.io/1"], []):
        patch = {"metadata": {"finalizers": left}}
        api.ok("PATCH", f"{CMS}/a", patch, content_type=MERGE_PATCH)
    assert api.call("GET", f"{CMS}/a")[0] == 404


def test_a_collection_is_deleted_by_selector(api):
    for name, labels in [("a", {"x": "1"}), ("b", {"x": "2"})]:
        api.ok("POST", CMS, cm(name, labels=labels))
    api.ok("DELETE", CMS, labelSelector="x=1")
    assert [i["metadata"]["name"] for i in api.ok("GET", CMS)["items"]] == ["b"]


@pytest.mark.parametrize(
    ("spec", "status", "grace", "want"),
    [
        pytest.param({}, {}, None, None, id="not bound: at once"),
        pytest.param({"nodeName": "n"}, {}, None, 30, id="bound: its own grace"),
        pytest.param({"nodeName": "n", "terminationGracePeriodSeconds": 5}, {}, None, 5, id="own"),
        pytest.param({"nodeName": "n"}, {}, 7, 7, id="asked for"),
        pytest.param({"nodeName": "n"}, {}, 0, None, id="forced"),
        pytest.param({"nodeName": "n"}, {"phase": "Succeeded"}, None, None, id="finished"),
    ],
)
def test_pods_on_nodes_are_given_time_to_stop(api, spec, status, grace, want):
    api.ok("POST", PODS, pod("p", **spec))
    if status:
        api.ok("PATCH", f"{PODS}/p/status", {"status": status}, content_type=MERGE_PATCH)
    reply = api.ok("DELETE", f"{PODS}/p", {} if grace is None else {"gracePeriodSeconds": grace})
    if want is None:
        assert api.call("GET", f"{PODS}/p")[0] == 404
        return
    meta = api.ok("GET", f"{PODS}/p")["metadata"]
    assert reply["metadata"] == meta
    assert meta["deletionGracePeriodSeconds"] == want
    assert meta["deletionTimestamp"] == f"2027-01-15T08:00:{want:02}Z"


def test_grace_can_be_shortened_and_ends_with_a_forced_delete(api):
    api.ok("POST", PODS, pod("p", nodeName="n"))
    for asked, want in [(30, 30), (60, 30), (10, 10), (20, 10)]:
        api.ok("DELETE", f"{PODS}/p", {"gracePeriodSeconds": asked})
        meta = api.ok("GET", f"{PODS}/p")["metadata"]
        assert meta["deletionGracePeriodSeconds"] == want
    api.ok("DELETE", f"{PODS}/p", {"gracePeriodSeconds": 0})
    assert api.call("GET", f"{PODS}/p")[0] == 404


def test_a_namespace_takes_its_contents_with_it(api):
    api.ok("POST", "/api/v1/namespaces", {"metadata": {"name": "n"}})
    base = "/api/v1/namespaces/n"
    api.ok("POST", f"{base}/configmaps", cm("a"))
    api.ok("POST", f"{base}/configmaps", cm("held", finalizers=["x.io/y"]))
    api.ok("POST", f"{base}/pods", pod("p", nodeName="n1"))
    assert api.ok("DELETE", base)["status"] == {"phase": "Terminating"}
    status, reply = api.call("POST", f"{base}/configmaps", cm("b"))
    assert (status, "being terminated" in reply["message"]) == (403, True)
    api.settle()
    assert api.call("GET", f"{base}/configmaps/a")[0] == 404
    label = {"metadata": {"labels": {"a": "b"}}}
    api.ok("PATCH", base, label, content_type=MERGE_PATCH)
    api.ok("DELETE", f"{base}/pods/p", {"gracePeriodSeconds": 0})
    api.settle()
    assert api.ok("GET", base)["status"]["phase"] == "Terminating"
    no_finalizers = {"metadata": {"finalizers": None}}
    api.ok("PATCH", f"{base}/configmaps/held", no_finalizers, content_type=MERGE_PATCH)
    api.settle()
    assert api.call("GET", base)[0] == 404


@pytest.mark.parametrize("name", ["default", "kube-system", "kube-public"])
def test_some_namespaces_stay(api, name):
    assert api.call("DELETE", f"/api/v1/namespaces/{name}")[0] == 403


# Patches


def test_strategic_patches_merge_containers_by_name(api):
    api.ok("POST", DEPLOYMENTS, deployment("d"))
    patch = {"spec": {"template": {"spec": {"containers": [{"name": "main", "image": "new:2"}]}}}}
    obj = api.ok("PATCH", f"{DEPLOYMENTS}/d", patch, content_type=STRATEGIC_PATCH)
    (container,) = obj["spec"]["template"]["spec"]["containers"]
    assert (container["image"], container["terminationMessagePolicy"]) == ("new:2", "File")


@pytest.mark.parametrize(
    ("body", "kind", "code"),
    [
        ([{"op": "test", "path": "/data/k", "value": "no"}], JSON_PATCH, 422),
        ([{"op": "bad"}], JSON_PATCH, 400),
        ([], MERGE_PATCH, 400),
        ({}, "application/unknown", 415),
        ({"metadata": {"name": "b"}}, MERGE_PATCH, 400),
    ],
)
def test_patches_that_cannot_be_applied(api, body, kind, code):
    api.ok("POST", CMS, cm("a", {"k": "v"}))
    assert api.call("PATCH", f"{CMS}/a", body, content_type=kind)[0] == code


def test_server_side_apply_creates_owns_and_conflicts(api):
    def apply(manager: str, data: dict[str, str], **more: str) -> tuple[int, Any]:
        body = {"apiVersion": "v1", "kind": "ConfigMap", **cm("a", data)}
        return api.call(
            "PATCH", f"{CMS}/a", body, content_type=APPLY_PATCH, fieldManager=manager, **more
        )

    status, obj = apply("one", {"k": "1", "l": "1"})
    assert (status, obj["data"]) == (201, {"k": "1", "l": "1"})
    again = apply("one", {"k": "1", "l": "1"})
    assert again == (200, obj)
    status, reply = apply("two", {"k": "2"})
    assert (status, reply["details"]["causes"][0]["reason"]) == (409, "FieldManagerConflict")
    assert apply("two", {"k": "2"}, force="true")[1]["data"] == {"k": "2", "l": "1"}
    status, obj = apply("one", {})
    assert (status, obj["data"]) == (200, {"k": "2"})
    assert {entry["manager"] for entry in obj["metadata"]["managedFields"]} >= {"two"}
    api.ok("PATCH", f"{CMS}/a", {"data": {"k": "3"}}, content_type=MERGE_PATCH, fieldManager="me")
    status, reply = apply("two", {"k": "2"})
    assert 'conflict with "me"' in reply["message"]


def test_apply_needs_a_manager(api):
    assert api.call("PATCH", f"{CMS}/a", cm("a"), content_type=APPLY_PATCH)[0] == 400


# Scale, binding, eviction


def test_scale_reads_and_writes_replicas(api):
    api.ok("POST", DEPLOYMENTS, deployment("d"))
    scale = api.ok("GET", f"{DEPLOYMENTS}/d/scale")
    assert (scale["kind"], scale["spec"]["replicas"]) == ("Scale", 1)
    assert scale["status"] == {"replicas": 0, "selector": "a=b"}
    scale["spec"]["replicas"] = 3
    assert api.ok("PUT", f"{DEPLOYMENTS}/d/scale", scale)["spec"]["replicas"] == 3
    assert api.call("PUT", f"{DEPLOYMENTS}/d/scale", scale)[0] == 409
    patch = {"spec": {"replicas": 5}}
    api.ok("PATCH", f"{DEPLOYMENTS}/d/scale", patch, content_type=MERGE_PATCH)
    obj = api.ok("GET", f"{DEPLOYMENTS}/d")
    assert (obj["spec"]["replicas"], obj["metadata"]["generation"]) == (5, 3)
    negative = {"spec": {"replicas": -1}}
    status, reply = api.call("PATCH", f"{DEPLOYMENTS}/d/scale", negative, content_type=MERGE_PATCH)
    assert (status, reply["details"]["causes"][0]["field"]) == (422, "spec.replicas")


def bind(api: Any, name: str, node: str = "n1", **meta: str) -> tuple[int, Any]:
    body = {"metadata": {"name": name, **meta}, "target": {"kind": "Node", "name": node}}
    return api.call("POST", f"{PODS}/{name}/binding", body)


def test_binding_assigns_a_pod_once(api):
    uid = api.ok("POST", PODS, pod("p"))["metadata"]["uid"]
    assert bind(api, "p", uid="other")[0] == 409
    assert bind(api, "p", uid=uid)[0] == 201
    obj = api.ok("GET", f"{PODS}/p")
    assert obj["spec"]["nodeName"] == "n1"
    assert [(c["type"], c["status"]) for c in obj["status"]["conditions"]] == [
        ("PodScheduled", "True")
    ]
    status, reply = bind(api, "p", "n2")
    assert (status, "already assigned" in reply["message"]) == (409, True)
    assert bind(api, "nope")[0] == 404


def test_a_gated_pod_is_not_bound_before_its_gates_are_gone(api):
    gated = api.ok("POST", PODS, pod("p", schedulingGates=[{"name": "g"}]))
    assert gated["status"]["conditions"][0]["reason"] == "SchedulingGated"
    assert bind(api, "p")[0] == 409
    api.ok("PATCH", f"{PODS}/p", {"spec": {"schedulingGates": []}}, content_type=MERGE_PATCH)
    assert bind(api, "p")[0] == 201


def test_eviction_keeps_what_a_disruption_budget_needs(api):
    for name in ("a", "b"):
        body = pod(name, nodeName="n")
        body["metadata"]["labels"] = {"app": "x"}
        api.ok("POST", PODS, body)
        ready = {"status": {"conditions": [{"type": "Ready", "status": "True"}]}}
        api.ok("PATCH", f"{PODS}/{name}/status", ready, content_type=MERGE_PATCH)
    budget = {
        "metadata": {"name": "b"},
        "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "x"}}},
    }
    api.ok("POST", "/apis/policy/v1/namespaces/default/poddisruptionbudgets", budget)
    assert api.call("POST", f"{PODS}/a/eviction", {"metadata": {"name": "a"}})[0] == 201
    assert "deletionTimestamp" in api.ok("GET", f"{PODS}/a")["metadata"]
    status, reply = api.call("POST", f"{PODS}/b/eviction", {"metadata": {"name": "b"}})
    assert (status, reply["details"]["causes"][0]["reason"]) == (429, "DisruptionBudget")
    assert "deletionTimestamp" not in api.ok("GET", f"{PODS}/b")["metadata"]
