"""Protobuf bodies, encoded here by hand the way Kubernetes' clients do."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spinney.kube.transport import ApiRequest
from spinney.local.apiserver import protobuf
from spinney.local.apiserver.refusal import RefusalError

PODS = "/api/v1/namespaces/default/pods"


def varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def field(number: int, value: Any) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    data = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(data)) + data


def message(*fields: tuple[int, Any]) -> bytes:
    return b"".join(field(number, value) for number, value in fields)


def body(api_version: str, kind: str, raw: bytes) -> bytes:
    about = message((1, api_version), (2, kind))
    return b"k8s\x00" + message((1, about), (2, raw), (3, ""), (4, ""))


def meta(name: str, *more: tuple[int, Any]) -> bytes:
    # Go writes empty fields that are not optional: generateName, namespace, selfLink, uid.
    return message((1, name), (2, ""), (3, ""), (4, ""), (5, ""), (7, 0), (8, b""), *more)


def test_a_config_map():
    entries = [(2, message((1, "a"), (2, "1"))), (2, message((1, "b"), (2, "")))]
    label = (11, message((1, "l"), (2, "x")))
    raw = message((1, meta("c", label)), *entries, (3, message((1, "z"), (2, b"\x01\x02"))))
    assert protobuf.decode(body("v1", "ConfigMap", raw)) == {
        "kind": "ConfigMap",
        "apiVersion": "v1",
        "metadata": {"name": "c", "labels": {"l": "x"}},
        "data": {"a": "1", "b": ""},
        "binaryData": {"z": "AQI="},
    }


def test_a_deployment_with_zero_replicas_quantities_and_ports():
    limits = message((1, message((1, "cpu"), (2, message((1, "500m"))))))
    probe = message(
        (1, message((2, message((1, "/h"), (2, message((1, 1), (2, 0), (3, "http")))))))
    )
    env = message((1, "E"), (2, ""), (3, message((4, message((1, message((1, "s"))), (2, "key"))))))
    container = message(
        (1, "m"), (2, "i"), (7, env), (8, limits), (11, probe), (14, ""), (16, 0), (17, 0)
    )
    volume = message((1, "v"), (2, message((2, b""))))
    pod_spec = message((1, volume), (2, container), (3, ""), (4, 0), (11, 0))
    template = message((1, meta("")), (2, pod_spec))
    update = message((1, "RollingUpdate"), (2, message((1, message((1, 0), (2, 3), (3, ""))))))
    spec = message(
        (1, 0), (2, message((1, message((1, "a"), (2, "b"))))), (3, template), (4, update)
    )
    obj = protobuf.decode(body("apps/v1", "Deployment", message((1, meta("d")), (2, spec))))
    assert obj["spec"]["replicas"] == 0
    assert obj["spec"]["selector"] == {"matchLabels": {"a": "b"}}
    assert obj["spec"]["strategy"]["rollingUpdate"] == {"maxUnavailable": 3}
    found = obj["spec"]["template"]["spec"]
    assert found["volumes"] == [{"name": "v", "emptyDir": {}}]
    assert found["terminationGracePeriodSeconds"] == 0
    assert "hostNetwork" not in found
    (main,) = found["containers"]
    assert main["resources"] == {"limits": {"cpu": "500m"}}
    assert main["readinessProbe"]["httpGet"] == {"path": "/h", "port": "http"}
    assert main["env"] == [
        {"name": "E", "valueFrom": {"secretKeyRef": {"name": "s", "key": "key"}}}
    ]


def test_times_and_negative_numbers():
    raw = message(
        (1, meta("l")),
        (2, message((1, "me"), (2, -1), (4, message((1, 1_800_000_000), (2, 5_000))))),
    )
    spec = protobuf.decode(body("coordination.k8s.io/v1", "Lease", raw))["spec"]
    assert spec == {
        "holderIdentity": "me",
        "leaseDurationSeconds": -1,
        "renewTime": "2027-01-15T08:00:00.000005Z",
    }


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"{}", 400),
        (b"k8s\x00\xff", 400),
        (body("v1", "ConfigMap", b"\x0a\x7f"), 400),
        (body("v1", "ConfigMap", message((99, "x"))), 415),
        (body("example.com/v1", "Widget", b""), 415),
        (body("v1", "ConfigMap", message((1, message((1, b"\xff"))))), 400),
    ],
)
def test_bodies_that_cannot_be_read_are_refused(data, code):
    with pytest.raises(RefusalError) as caught:
        protobuf.decode(data)
    assert caught.value.code == code


@given(st.binary(max_size=60))
def test_no_bytes_do_worse_than_a_refusal(raw):
    for kind in ("Pod", "ConfigMap", "Event"):
        with contextlib.suppress(RefusalError):
            protobuf.decode(body("v1", kind, raw))


def test_the_server_takes_a_pod_and_an_eviction(api):
    container = message((1, "m"), (2, "i"))
    raw = message((1, meta("p")), (2, message((2, container))))
    request = ApiRequest("POST", PODS, {}, body("v1", "Pod", raw), protobuf.CONTENT_TYPE)
    assert api.send(request).status == 201
    eviction = body("policy/v1", "Eviction", message((1, meta("p"))))
    path = f"{PODS}/p/eviction"
    reply = api.send(ApiRequest("POST", path, {}, eviction, protobuf.CONTENT_TYPE))
    assert reply.status == 201
    assert api.call("GET", f"{PODS}/p")[0] == 404


def test_delete_options_may_be_protobuf(api):
    api.ok("POST", "/api/v1/namespaces/default/configmaps", {"metadata": {"name": "c"}})
    options = body("v1", "DeleteOptions", message((2, message((1, "another uid")))))
    path = "/api/v1/namespaces/default/configmaps/c"
    reply = api.send(ApiRequest("DELETE", path, {}, options, protobuf.CONTENT_TYPE))
    assert reply.status == 409
