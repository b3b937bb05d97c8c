import io

import pytest

from spinney.cli.manifest import read_manifests
from spinney.errors import BadInputError

POD = "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\n"


def test_documents_come_in_order_from_files_folders_and_lists(tmp_path):
    (tmp_path / "b.yaml").write_text(POD + "---\n" + POD.replace("a}", "b}") + "---\n")
    (tmp_path / "a.json").write_text(
        '{"kind": "List", "items": ['
        '{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "l"}}]}'
    )
    (tmp_path / "notes.txt").write_text("not a manifest")

    names = [d.object["metadata"]["name"] for d in read_manifests([str(tmp_path)])]

    assert names == ["l", "a", "b"]


def test_standard_input_is_read(monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO(POD))
    assert read_manifests(["-"])[0].title == "Pod 'a'"


@pytest.mark.parametrize(
    ("text", "want"),
    [
        pytest.param("kind: Pod\nmetadata: {name: a}", "apiVersion is missing", id="no version"),
        pytest.param("apiVersion: v1\nmetadata: {name: a}", "kind is missing", id="no kind"),
        pytest.param("apiVersion: v1\nkind: Pod", "no metadata.name", id="no name"),
        pytest.param("[1, 2]", "an object with apiVersion and kind wanted", id="a list"),
        pytest.param("a: [", "not valid YAML", id="broken"),
        pytest.param("", "no object", id="empty"),
    ],
)
def test_what_is_wrong_is_said_with_the_file(tmp_path, text, want):
    file = tmp_path / "m.yaml"
    file.write_text(text)

    with pytest.raises(BadInputError, match=want) as refused:
        read_manifests([str(file)])

    assert "m.yaml" in str(refused.value)


def test_the_document_that_is_wrong_is_numbered(tmp_path):
    file = tmp_path / "m.yaml"
    file.write_text(POD + "---\nkind: Pod\n")
    with pytest.raises(BadInputError, match="document 2"):
        read_manifests([str(file)])


def test_a_missing_file_is_named():
    with pytest.raises(BadInputError, match=r"nowhere\.yaml: there is no such file"):
        read_manifests(["nowhere.yaml"])
