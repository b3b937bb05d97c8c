"""Environment, command lines and volumes, as values."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spinney.api import codec
from spinney.api.core import ConfigMap, Pod, Secret
from spinney.local.nodeagent.environment import (
    CannotStartError,
    Identity,
    Sources,
    command_line,
    environment,
    expand,
)
from spinney.local.nodeagent.launch import image_name, refuse_unsupported
from spinney.local.nodeagent.volumes import Mount, plan_volumes, real_paths, write_volumes

IDENTITY = Identity("127.10.0.2", "127.10.0.1")
SOURCES = Sources(
    {"settings": ConfigMap(data={"mode": "fast", "bad key!": "x"}), "absent": None},
    {"keys": Secret(data={"token": base64.b64encode(b"s3").decode()})},
    {"cpu": "16", "memory": "64Gi"},
)


def make(main: dict[str, Any], **spec: Any) -> Pod:
    meta = {
        "name": "p",
        "namespace": "ns",
        "uid": "u-1",
        "labels": {"a/b": "1", "z": "2"},
        "annotations": {"note": "n"},
    }
    spec = {"nodeName": "node-0", "containers": [{"name": "main", **main}], **spec}
    return codec.from_dict(Pod, {"metadata": meta, "spec": spec})


def env_of(*variables: dict[str, Any], **main: Any) -> dict[str, str]:
    pod = make({"env": list(variables), **main})
    return environment(pod, pod.spec.containers[0], IDENTITY, SOURCES, {"HOST": "h"})


@pytest.mark.parametrize(
    ("text", "want"),
    [
        pytest.param("$(A)-$(B)", "1-2", id="known"),
        pytest.param("$(C)", "$(C)", id="unknown stays"),
        pytest.param("$$(A)", "$(A)", id="escaped"),
        pytest.param("$$$(A)", "$1", id="escape then reference"),
        pytest.param("$A ${A} $", "$A ${A} $", id="a shell's own"),
        pytest.param("$(A", "$(A", id="not closed"),
        pytest.param("$$$$", "$$", id="dollars"),
    ],
)
def test_references_expand_as_kubernetes_defines(text: str, want: str) -> None:
    assert expand(text, {"A": "1", "B": "2"}) == want


@given(st.text(alphabet="$()AB x"))
def test_text_without_dollars_is_itself_and_expansion_never_fails(text: str) -> None:
    assert expand(text.replace("$", ""), {"A": "1"}) == text.replace("$", "")
    expand(text, {"A": "1"})


def test_values_refer_to_what_was_defined_before() -> None:
    found = env_of(
        {"name": "LATE", "value": "$(EARLY)"},
        {"name": "EARLY", "value": "$(HOST)"},
        {"name": "BOTH", "value": "$(EARLY)$(LATE)"},
    )
    assert found == {"HOST": "h", "LATE": "$(EARLY)", "EARLY": "h", "BOTH": "h$(EARLY)"}


@pytest.mark.parametrize(
    ("source", "want"),
    [
        ({"fieldRef": {"fieldPath": "metadata.namespace"}}, "ns"),
        ({"fieldRef": {"fieldPath": "metadata.labels['a/b']"}}, "1"),
        ({"fieldRef": {"fieldPath": "metadata.annotations['none']"}}, ""),
        ({"fieldRef": {"fieldPath": "spec.nodeName"}}, "node-0"),
        ({"fieldRef": {"fieldPath": "spec.serviceAccountName"}}, "default"),
        ({"fieldRef": {"fieldPath": "status.podIPs"}}, "127.10.0.2"),
        ({"fieldRef": {"fieldPath": "status.hostIP"}}, "127.10.0.1"),
        ({"resourceFieldRef": {"resource": "limits.memory", "divisor": "1Gi"}}, "64"),
        ({"resourceFieldRef": {"resource": "requests.cpu"}}, "0"),
        ({"configMapKeyRef": {"name": "settings", "key": "mode"}}, "fast"),
        ({"secretKeyRef": {"name": "keys", "key": "token"}}, "s3"),
    ],
)
def test_a_value_comes_from_where_it_says(source: dict[str, Any], want: str) -> None:
    assert env_of({"name": "X", "valueFrom": source})["X"] == want


def test_what_is_optional_may_be_missing_and_what_is_not_may_not() -> None:
    missing = {"configMapKeyRef": {"name": "absent", "key": "k", "optional": True}}
    assert "X" not in env_of({"name": "X", "valueFrom": missing})
    for source in (
        {"configMapKeyRef": {"name": "absent", "key": "k"}},
        {"secretKeyRef": {"name": "keys", "key": "other"}},
        {"fieldRef": {"fieldPath": "status.phase"}},
        {"resourceFieldRef": {"resource": "cpu"}},
        {"fileKeyRef": {}},
    ):
        with pytest.raises(CannotStartError) as caught:
            env_of({"name": "X", "valueFrom": source})
        assert caught.value.reason == "CreateContainerConfigError"


def test_whole_maps_come_with_a_prefix_and_lose_to_single_variables() -> None:
    found = env_of(
        {"name": "P_mode", "value": "mine"},
        envFrom=[
            {"prefix": "P_", "configMapRef": {"name": "settings"}},
            {"secretRef": {"name": "keys"}},
            {"configMapRef": {"name": "absent", "optional": True}},
        ],
    )
    assert found == {"HOST": "h", "P_mode": "mine", "token": "s3"}


def test_an_entrypoint_stands_in_only_for_a_missing_command() -> None:
    pod = make({"args": ["engine", "$(A)"]})
    assert command_line(pod.spec.containers[0], {"A": "1"}, ["spinney"]) == [
        "spinney",
        "engine",
        "1",
    ]
    pod = make({"command": ["x"], "args": ["y"]})
    assert command_line(pod.spec.containers[0], {}, ["spinney"]) == ["x", "y"]
    assert image_name("ghcr.io:443/org/spinney:v1@sha256:abc") == "spinney"


def test_mount_paths_become_real_ones_where_they_stand_as_paths() -> None:
    mounts = [Mount("/data", "/s/data"), Mount("/data/models", "/s/m"), Mount("/s", "/t")]
    text = "--model=/data/models/x:/data /database x/data /data-2 '/data' /s"
    want = "--model=/s/m/x:/s/data /database x/data /data-2 '/s/data' /t"
    assert real_paths(text, mounts) == want


def test_volumes_are_directories_with_their_files(tmp_path: Path) -> None:
    volumes = [
        {"name": "empty", "emptyDir": {}},
        {"name": "host", "hostPath": {"path": str(tmp_path)}},
        {
            "name": "all",
            "projected": {
                "sources": [
                    {"configMap": {"name": "settings", "items": [{"key": "mode", "path": "a/m"}]}},
                    {"secret": {"name": "keys"}},
                    {"downwardAPI": {"items": [{"path": "labels", "fieldRef": LABELS}]}},
                ]
            },
        },
    ]
    mounts = [{"name": v["name"], "mountPath": f"/{v['name']}/"} for v in volumes]
    pod = make({"volumeMounts": mounts}, volumes=volumes)
    plan, found = plan_volumes(pod, pod.spec.containers[0], tmp_path / "v", IDENTITY, SOURCES)
    write_volumes(plan)
    assert (tmp_path / "v/all/a/m").read_text() == "fast"
    assert (tmp_path / "v/all/token").read_text() == "s3"
    assert (tmp_path / "v/all/labels").read_text() == 'a/b="1"\nz="2"'
    assert (tmp_path / "v/empty").is_dir()
    assert Mount("/host", str(tmp_path)) in found


LABELS = {"fieldPath": "metadata.labels"}


@pytest.mark.parametrize(
    ("volume", "reason"),
    [
        ({"persistentVolumeClaim": {"claimName": "c"}}, "VolumeNotSupported"),
        ({"projected": {"sources": [{"serviceAccountToken": {}}]}}, "VolumeNotSupported"),
        ({"configMap": {"name": "absent"}}, "CreateContainerConfigError"),
        (
            {"configMap": {"name": "settings", "items": [{"key": "mode", "path": "../x"}]}},
            "CreateContainerConfigError",
        ),
    ],
)
def test_a_volume_that_cannot_be_given_is_refused(volume: dict[str, Any], reason: str) -> None:
    mount = {"name": "v", "mountPath": "/v"}
    pod = make({"volumeMounts": [mount]}, volumes=[{"name": "v", **volume}])
    with pytest.raises(CannotStartError) as caught:
        plan_volumes(pod, pod.spec.containers[0], Path("/nowhere"), IDENTITY, SOURCES)
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    "main",
    [
        {"livenessProbe": {"grpc": {"port": 1}}},
        {"lifecycle": {"postStart": {"exec": {"command": ["x"]}}}},
        {"lifecycle": {"preStop": {"httpGet": {"port": 1}}}},
    ],
)
def test_what_the_agent_cannot_do_is_said_not_skipped(main: dict[str, Any]) -> None:
    with pytest.raises(CannotStartError):
        refuse_unsupported(make(main).spec.containers[0])
