from spinney.api import crd
from spinney.api.grove import PodCliqueSet


def test_the_files_in_the_tree_are_current():
    assert crd.main(["--check"]) == 0


def test_a_stale_file_is_noticed(monkeypatch, tmp_path):
    monkeypatch.setattr(crd, "__file__", str(tmp_path / "crd.py"))
    assert crd.main(["--check"]) == 1
    assert crd.main([]) == 0
    assert crd.main(["--check"]) == 0


def test_the_kinds_of_others_are_left_out_where_they_are_installed():
    groups = {d["spec"]["group"] for d in crd.crd_documents(others=False)}
    assert groups == {"grove.io", "scheduler.grove.io"}
    assert {d["spec"]["group"] for d in crd.crd_documents()} > groups


def schema_of(name, *path):
    document = next(d for d in crd.crd_documents() if d["metadata"]["name"] == name)
    schema = document["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    for step in path:
        schema = schema["items"] if step == "[]" else schema["properties"][step]
    return schema


def test_the_schema_has_defaults_enums_and_keys_of_lists():
    template = schema_of(PodCliqueSet.RESOURCE.name, "spec", "template")["properties"]
    assert template["cliqueStartupType"]["default"] == "CliqueStartupTypeAnyOrder"
    assert "CliqueStartupTypeExplicit" in template["cliqueStartupType"]["enum"]
    assert template["cliques"]["x-kubernetes-list-map-keys"] == ["name"]


def test_a_pod_spec_has_a_schema_that_knows_the_fields_spinney_does_not_read():
    clique = ("spec", "template", "cliques", "[]", "spec", "podSpec")
    pod_spec = schema_of(PodCliqueSet.RESOURCE.name, *clique)["properties"]
    assert pod_spec["dnsPolicy"] == {"x-kubernetes-preserve-unknown-fields": True}
    assert pod_spec["containers"]["items"]["required"] == ["name"]
    assert "replicas" not in pod_spec
