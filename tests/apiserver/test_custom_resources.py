"""CustomResourceDefinitions: what they make the server prune, fill in, refuse, show and scale."""

from __future__ import annotations

import copy
from typing import Any

import msgspec
import pytest

from spinney.api.admission import FieldError, Verdict
from spinney.api.podgang import PodGang
from spinney.errors import BadInputError
from spinney.kube.transport import APPLY_PATCH, MERGE_PATCH, STRATEGIC_PATCH, ApiRequest
from spinney.local.apiserver.crd import permissive
from spinney.local.apiserver.persistence import SqlitePersistence

CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
WIDGETS = "/apis/example.com/v1/namespaces/default/widgets"
TABLE = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json"

SPEC = {
    "type": "object",
    "required": ["size"],
    "properties": {
        "size": {"type": "string", "enum": ["small", "large"]},
        "replicas": {"type": "integer", "minimum": 0, "default": 1},
        "ratio": {"type": "number", "minimum": 0, "exclusiveMinimum": True},
        "port": {"x-kubernetes-int-or-string": True},
        "note": {"type": "string", "nullable": True, "maxLength": 5},
        "mode": {
            "type": "object",
            "default": {},
            "properties": {"fast": {"type": "boolean", "default": True}},
        },
        "parts": {
            "type": "array",
            "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["name"],
            "items": {
                "type": "object",
                "required": ["name"],
                "properties": {
                    "name": {"type": "string"},
                    "count": {"type": "integer", "default": 2},
                },
            },
        },
        "byName": {
            "type": "object",
            "additionalProperties": {
                "type": "object",
                "properties": {"n": {"type": "integer", "default": 7}},
            },
        },
        "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
        "pod": {
            "type": "object",
            "x-kubernetes-embedded-resource": True,
            "properties": {
                "spec": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
            },
        },
    },
}
STATUS = {
    "type": "object",
    "properties": {
        "replicas": {"type": "integer"},
        "selector": {"type": "string"},
        "conditions": {
            "type": "array",
            "items": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
        },
    },
}
COLUMNS = [
    {"name": "Size", "type": "string", "jsonPath": ".spec.size"},
    {
        "name": "Ready",
        "type": "string",
        "jsonPath": '.status.conditions[?(@.type=="Ready")].status',
    },
    {"name": "Since", "type": "date", "jsonPath": ".metadata.creationTimestamp", "priority": 1},
]


def definition(**version: Any) -> dict[str, Any]:
    schema = {"type": "object", "properties": {"spec": SPEC, "status": STATUS}}
    return copy.deepcopy(
        {
            "metadata": {"name": "widgets.example.com"},
            "spec": {
                "group": "example.com",
                "scope": "Namespaced",
                "names": {"kind": "Widget", "plural": "widgets", "shortNames": ["wd"]},
                "versions": [
                    {
                        "name": "v1",
                        "served": True,
                        "storage": True,
                        "schema": {"openAPIV3Schema": schema},
                        "additionalPrinterColumns": COLUMNS,
                        "subresources": {
                            "status": {},
                            "scale": {
                                "specReplicasPath": ".spec.replicas",
                                "statusReplicasPath": ".status.replicas",
                                "labelSelectorPath": ".status.selector",
                            },
                        },
                        **version,
                    }
                ],
            },
        }
    )


def widget(name: str = "w", **spec: Any) -> dict[str, Any]:
    return {"metadata": {"name": name}, "spec": {"size": "small", **spec}}


@pytest.fixture
def widgets(api):
    api.ok("POST", CRDS, definition())
    return api


def test_a_definition_is_established_and_discovered_at_once(api):
    assert api.call("GET", WIDGETS)[0] == 404
    obj = api.ok("POST", CRDS, definition())
    conditions = {c["type"]: c["status"] for c in obj["status"]["conditions"]}
    assert conditions == {"NamesAccepted": "True", "Established": "True"}
    assert obj["spec"]["names"]["listKind"] == "WidgetList"
    assert api.ok("GET", WIDGETS)["kind"] == "WidgetList"
    found = api.ok("GET", "/apis/example.com/v1")["resources"]
    assert [r["name"] for r in found] == ["widgets", "widgets/status", "widgets/scale"]
    assert (found[0]["shortNames"], found[2]["group"]) == (["wd"], "autoscaling")
    assert "example.com" in [g["name"] for g in api.ok("GET", "/apis")["groups"]]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda d: d["metadata"].update(name="x"), "metadata.name"),
        (lambda d: d["spec"].update(scope="Galaxy"), "spec.scope"),
        (lambda d: d["spec"]["versions"][0].update(storage=False), "spec.versions"),
        (
            lambda d: d["spec"]["versions"][0].update(schema={}),
            "spec.versions[0].schema.openAPIV3Schema",
        ),
        (
            lambda d: d["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"].update(
                bad={"description": "no type"}
            ),
            "spec.versions[0].schema.openAPIV3Schema.properties[bad].type",
        ),
        (
            lambda d: d["spec"]["versions"][0]["additionalPrinterColumns"][0].update(
                jsonPath=".a[?(bad)]"
            ),
            "spec.versions",
        ),
        (
            lambda d: d["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"].update(
                bad={"type": "string", "pattern": "("}
            ),
            "spec.versions",
        ),
        (lambda d: d["spec"].pop("names"), "spec.names.plural"),
    ],
)
def test_definitions_that_cannot_be_served_are_refused(api, change, field):
    body = definition()
    change(body)
    status, reply = api.call("POST", CRDS, body)
    assert status == 422
    assert field in [cause["field"] for cause in reply["details"]["causes"]]


def test_objects_are_pruned_and_filled_in(widgets):
    body = widget(
        unknown=1,
        parts=[{"name": "a", "x": 1}, {"name": "b", "count": 5}],
        byName={"k": {"z": 1}},
        free={"any": {"thing": [1]}},
        pod={
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "p"},
            "spec": {"a": 1},
            "q": 1,
        },
        note=None,
        replicas=None,
        port="http",
    )
    obj = widgets.ok("POST", WIDGETS, body | {"extra": True, "status": {"replicas": 9}})
    assert obj["spec"] == {
        "size": "small",
        "replicas": 1,
        "parts": [{"name": "a", "count": 2}, {"name": "b", "count": 5}],
        "byName": {"k": {"n": 7}},
        "free": {"any": {"thing": [1]}},
        "pod": {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {"a": 1}},
        "note": None,
        "port": "http",
        "mode": {"fast": True},
    }
    assert "extra" not in obj
    assert "status" not in obj


def test_every_broken_rule_is_named_with_its_field(widgets):
    body = widget(
        size="big",
        replicas=-1,
        ratio=0,
        port=1.5,
        note="too long",
        parts=[{"name": "a"}, {"count": 1}, {"name": "a"}],
        byName={"k": {"n": "x"}},
    )
    status, reply = widgets.call("POST", WIDGETS, body)
    assert (status, reply["reason"]) == (422, "Invalid")
    fields = {cause["field"]: cause["reason"] for cause in reply["details"]["causes"]}
    assert fields == {
        "spec.size": "FieldValueNotSupported",
        "spec.replicas": "FieldValueInvalid",
        "spec.ratio": "FieldValueInvalid",
        "spec.port": "FieldValueInvalid",
        "spec.note": "FieldValueInvalid",
        "spec.parts[1].name": "FieldValueRequired",
        "spec.parts[2]": "FieldValueDuplicate",
        "spec.byName.k.n": "FieldValueInvalid",
    }
    assert reply["message"].startswith('Widget.example.com "w" is invalid: [')
    assert 'spec.size: Unsupported value: "big"' in reply["message"]
    assert "must be of type integer" in reply["message"]


@pytest.mark.parametrize(
    ("mode", "code", "warns"), [("Strict", 400, False), ("Warn", 201, True), ("Ignore", 201, False)]
)
def test_unknown_fields_are_refused_warned_of_or_dropped(widgets, mode, code, warns):
    body = msgspec.json.encode(widget(sise=1, parts=[{"name": "a", "oops": 1}]))
    response = widgets.send(ApiRequest("POST", WIDGETS, {"fieldValidation": mode}, body))
    assert response.status == code
    assert ("warning" in response.headers) == warns
    text = response.headers.get("warning", "") if warns else response.body.decode()
    if code == 400 or warns:
        assert "spec.sise" in text
        assert "spec.parts[0].oops" in text


def test_status_and_spec_are_apart(widgets):
    widgets.ok("POST", WIDGETS, widget())
    path = f"{WIDGETS}/w"
    patch = {"spec": {"size": "large"}, "status": {"replicas": 3}}
    obj = widgets.ok("PATCH", path, patch, content_type=MERGE_PATCH)
    assert (obj["spec"]["size"], obj["metadata"]["generation"]) == ("large", 2)
    assert "status" not in obj
    patch = {"spec": {"size": "small"}, "status": {"replicas": 3}}
    obj = widgets.ok("PATCH", f"{path}/status", patch, content_type=MERGE_PATCH)
    assert (obj["spec"]["size"], obj["status"]) == ("large", {"replicas": 3})
    assert obj["metadata"]["generation"] == 2
    bad = {"status": {"replicas": "x"}}
    assert widgets.call("PATCH", f"{path}/status", bad, content_type=MERGE_PATCH)[0] == 422


def test_without_a_status_subresource_everything_is_one(api):
    api.ok("POST", CRDS, definition(subresources={}))
    obj = api.ok("POST", WIDGETS, widget() | {"status": {"replicas": 1}})
    assert obj["status"] == {"replicas": 1}
    assert api.call("GET", f"{WIDGETS}/w/status")[0] == 404
    patch = {"status": {"replicas": 2}}
    obj = api.ok("PATCH", f"{WIDGETS}/w", patch, content_type=MERGE_PATCH)
    assert (obj["status"], obj["metadata"]["generation"]) == ({"replicas": 2}, 2)


def test_custom_objects_are_scaled_by_the_paths_of_their_definition(widgets):
    widgets.ok("POST", WIDGETS, widget())
    status = {"status": {"replicas": 1, "selector": "a=b"}}
    widgets.ok("PATCH", f"{WIDGETS}/w/status", status, content_type=MERGE_PATCH)
    patch = {"spec": {"replicas": 4}}
    scale = widgets.ok("PATCH", f"{WIDGETS}/w/scale", patch, content_type=MERGE_PATCH)
    assert scale["spec"] == {"replicas": 4}
    assert scale["status"] == {"replicas": 1, "selector": "a=b"}
    assert widgets.ok("GET", f"{WIDGETS}/w")["spec"]["replicas"] == 4


def test_updates_of_custom_objects_need_their_version(widgets):
    obj = widgets.ok("POST", WIDGETS, widget())
    status, reply = widgets.call("PUT", f"{WIDGETS}/w", widget(size="large"))
    assert (status, "must be specified" in reply["message"]) == (422, True)
    obj["spec"]["size"] = "large"
    assert widgets.ok("PUT", f"{WIDGETS}/w", obj)["spec"]["size"] == "large"


def test_custom_objects_take_no_strategic_patches(widgets):
    widgets.ok("POST", WIDGETS, widget())
    status, reply = widgets.call("PATCH", f"{WIDGETS}/w", {}, content_type=STRATEGIC_PATCH)
    assert (status, MERGE_PATCH in reply["message"]) == (415, True)


def test_applied_lists_merge_by_the_keys_of_the_schema(widgets):
    for manager, part in [("one", "a"), ("two", "b")]:
        body = {"apiVersion": "example.com/v1", "kind": "Widget"} | widget(parts=[{"name": part}])
        widgets.ok("PATCH", f"{WIDGETS}/w", body, content_type=APPLY_PATCH, fieldManager=manager)
    parts = widgets.ok("GET", f"{WIDGETS}/w")["spec"]["parts"]
    assert [p["name"] for p in parts] == ["a", "b"]


def test_printer_columns_make_the_table(widgets):
    widgets.ok("POST", WIDGETS, widget())
    conditions = [{"type": "Old", "status": "False"}, {"type": "Ready", "status": "True"}]
    patch = {"status": {"conditions": conditions}}
    widgets.ok("PATCH", f"{WIDGETS}/w/status", patch, content_type=MERGE_PATCH)
    widgets.clock.at += 90
    table = widgets.ok("GET", WIDGETS, accept=TABLE)
    columns = [(c["name"], c["priority"]) for c in table["columnDefinitions"]]
    assert columns == [("Name", 0), ("Size", 0), ("Ready", 0), ("Since", 1)]
    assert [row["cells"] for row in table["rows"]] == [["w", "small", "True", "90s"]]
    assert table["rows"][0]["object"]["kind"] == "PartialObjectMetadata"


def test_deleting_a_definition_deletes_its_objects(widgets):
    widgets.ok("POST", WIDGETS, widget())
    held = widget("held")
    held["metadata"]["finalizers"] = ["x.io/y"]
    widgets.ok("POST", WIDGETS, held)
    path = f"{CRDS}/widgets.example.com"
    assert "deletionTimestamp" in widgets.ok("DELETE", path)["metadata"]
    assert widgets.call("POST", WIDGETS, widget("new"))[0] == 405
    widgets.settle()
    assert [i["metadata"]["name"] for i in widgets.ok("GET", WIDGETS)["items"]] == ["held"]
    patch = {"metadata": {"finalizers": None}}
    widgets.ok("PATCH", f"{WIDGETS}/held", patch, content_type=MERGE_PATCH)
    widgets.settle()
    assert widgets.call("GET", path)[0] == 404
    assert widgets.call("GET", WIDGETS)[0] == 404


def test_a_changed_definition_holds_from_the_next_write(widgets):
    widgets.ok("POST", WIDGETS, widget())
    body = widgets.ok("GET", f"{CRDS}/widgets.example.com")
    schema = body["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    schema["properties"]["spec"]["properties"]["size"]["enum"].append("huge")
    widgets.ok("PUT", f"{CRDS}/widgets.example.com", body)
    obj = widgets.ok("PATCH", f"{WIDGETS}/w", {"spec": {"size": "huge"}}, content_type=MERGE_PATCH)
    assert obj["spec"]["size"] == "huge"


def test_other_versions_show_the_same_objects(api):
    body = definition()
    second = copy.deepcopy(body["spec"]["versions"][0]) | {"name": "v2", "storage": False}
    body["spec"]["versions"].append(second)
    api.ok("POST", CRDS, body)
    api.ok("POST", WIDGETS.replace("v1", "v2"), widget())
    assert api.ok("GET", f"{WIDGETS}/w")["apiVersion"] == "example.com/v1"
    found = api.ok("GET", WIDGETS.replace("v1", "v2"))
    assert [i["apiVersion"] for i in found["items"]] == ["example.com/v2"]
    ((_, obj),) = api.watch(WIDGETS.replace("v1", "v2"), 1)
    assert obj["apiVersion"] == "example.com/v2"
    patch = {"spec": {"size": "large"}}
    api.ok("PATCH", f"{WIDGETS.replace('v1', 'v2')}/w", patch, content_type=MERGE_PATCH)
    assert api.ok("GET", f"{WIDGETS}/w")["spec"]["size"] == "large"


def test_definitions_and_objects_survive_a_restart(make_api, tmp_path):
    api = make_api(persistence=SqlitePersistence(tmp_path / "s.db"))
    api.ok("POST", CRDS, definition())
    obj = api.ok("POST", WIDGETS, widget())
    api.runner.run(api.server.close())
    api.options["persistence"] = SqlitePersistence(tmp_path / "s.db")
    api.start()
    assert api.ok("GET", f"{WIDGETS}/w") == obj
    assert api.call("POST", WIDGETS, widget("x", size="big"))[0] == 422


def test_a_permissive_definition_takes_anything(make_api):
    api = make_api(definitions=[permissive(PodGang.RESOURCE)])
    path = "/apis/scheduler.grove.io/v1alpha1/namespaces/default/podgangs"
    obj = api.ok("POST", path, {"metadata": {"name": "g"}, "spec": {"any": [1, {"x": None}]}})
    assert obj["spec"] == {"any": [1, {"x": None}]}
    api.server.install(permissive(PodGang.RESOURCE))
    assert api.ok("GET", f"{path}/g") == obj


def test_the_openapi_document_has_the_schema_and_the_write_parameters(widgets):
    index = widgets.ok("GET", "/openapi/v3")["paths"]
    url = index["apis/example.com/v1"]["serverRelativeURL"]
    document = widgets.ok("GET", url)
    (schema,) = [
        s
        for s in document["components"]["schemas"].values()
        if "x-kubernetes-group-version-kind" in s
    ]
    assert schema["properties"]["spec"]["properties"]["replicas"]["minimum"] == 0
    patch = document["paths"]["/apis/example.com/v1/namespaces/{namespace}/widgets/{name}"]["patch"]
    assert {p["name"] for p in patch["parameters"]} >= {"dryRun", "fieldValidation"}


class Hook:
    """Names a default and forbids one value."""

    resources = frozenset({"widgets.example.com"})

    def default(self, request: Any) -> Any:
        if not isinstance(request.obj["spec"].get("size", ""), str):
            raise BadInputError("size is no text")
        return request.obj | {"spec": {"note": "hook", **request.obj["spec"]}}

    def validate(self, request: Any) -> Verdict:
        if request.operation == "DELETE":
            kept = request.obj["metadata"]["name"] == "kept"
            error = FieldError("metadata.name", "FieldValueForbidden", "it is kept")
            return Verdict((error,) if kept else ())
        if request.obj["spec"]["note"] == "bad":
            errors = tuple(
                FieldError(f"spec.{f}", "FieldValueInvalid", "is bad") for f in ("note", "size")
            )
            return Verdict(errors)
        return Verdict(warnings=("careful",))


def test_hooks_fill_in_refuse_and_warn(make_api):
    api = make_api(hooks=[Hook()], definitions=[definition()])
    assert api.ok("POST", WIDGETS, widget())["spec"]["note"] == "hook"
    status, reply = api.call("POST", WIDGETS, widget("x", note="bad"))
    assert status == 422
    assert [c["field"] for c in reply["details"]["causes"]] == ["spec.note", "spec.size"]
    status, reply = api.call("POST", WIDGETS, widget("x", size=3))
    assert (status, reply["details"]["causes"][0]["field"]) == (422, "spec.size")
    api.ok("POST", WIDGETS, widget("kept"))
    assert api.call("DELETE", f"{WIDGETS}/kept")[0] == 403
    api.ok("PATCH", f"{WIDGETS}/w/status", {"status": {}}, content_type=MERGE_PATCH)
