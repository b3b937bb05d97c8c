"""What the server fills in and checks in pods and other built-in kinds, and how it prints them."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from spinney.kube.transport import MERGE_PATCH, ApiRequest
from spinney.local.apiserver.printing import duration

PODS = "/api/v1/namespaces/default/pods"
TABLE = "application/json;as=Table;v=v1;g=meta.k8s.io"


def pod(name: str = "p", *containers: dict[str, Any], **spec: Any) -> dict[str, Any]:
    found = list(containers) or [{"name": "main", "image": "busybox:1"}]
    return {"metadata": {"name": name}, "spec": {"containers": found, **spec}}


def container(name: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "image": "i:1", **more}


def test_a_pod_is_filled_in(api):
    body = pod("p", {"name": "m", "image": "x", "resources": {"limits": {"cpu": 1}}})
    obj = api.ok("POST", PODS, body)
    spec = obj["spec"]
    want = {
        "restartPolicy": "Always",
        "dnsPolicy": "ClusterFirst",
        "schedulerName": "default-scheduler",
        "terminationGracePeriodSeconds": 30,
        "priority": 0,
    }
    assert want.items() <= spec.items()
    (main,) = spec["containers"]
    assert main["imagePullPolicy"] == "Always"
    assert main["resources"]["requests"] == {"cpu": 1}
    assert obj["status"] == {"phase": "Pending", "qosClass": "Burstable"}


@pytest.mark.parametrize(
    ("resources", "want"),
    [
        ({}, "BestEffort"),
        ({"limits": {"nvidia.com/gpu": 1}}, "BestEffort"),
        ({"requests": {"cpu": "1"}}, "Burstable"),
        ({"limits": {"cpu": "1", "memory": "1Gi"}}, "Guaranteed"),
        (
            {
                "limits": {"cpu": "1", "memory": "1Gi"},
                "requests": {"cpu": "1000m", "memory": "1024Mi"},
            },
            "Guaranteed",
        ),
        ({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m"}}, "Burstable"),
    ],
)
def test_quality_of_service_follows_from_resources(api, resources, want):
    obj = api.ok("POST", PODS, pod("p", container("m", resources=resources)))
    assert obj["status"]["qosClass"] == want


def test_priority_comes_from_the_class(api):
    path = "/apis/scheduling.k8s.io/v1/priorityclasses"
    api.ok("POST", path, {"metadata": {"name": "high"}, "value": 100})
    obj = api.ok("POST", PODS, pod("a", priorityClassName="high"))
    assert (obj["spec"]["priority"], obj["spec"]["preemptionPolicy"]) == (
        100,
        "PreemptLowerPriority",
    )
    status, reply = api.call("POST", PODS, pod("b", priorityClassName="nope"))
    assert (status, "no PriorityClass with name nope" in reply["message"]) == (422, True)
    api.ok("POST", path, {"metadata": {"name": "usual"}, "value": 7, "globalDefault": True})
    assert api.ok("POST", PODS, pod("c"))["spec"]["priority"] == 7


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"metadata": {"name": "p"}}, "spec"),
        (pod("p") | {"spec": {}}, "spec.containers"),
        (pod("p", {"name": "m"}), "spec.containers[0].image"),
        (pod("p", {"image": "i"}), "spec.containers[0].name"),
        (pod("p", container("Bad")), "spec.containers[0].name"),
        (pod("p", container("m"), container("m")), "spec.containers[1].name"),
        (pod("p", container("m"), initContainers=[container("m")]), "spec.containers[0].name"),
        (
            pod("p", container("m", ports=[{"containerPort": 0}])),
            "spec.containers[0].ports[0].containerPort",
        ),
        (
            pod("p", container("m", resources={"limits": {"cpu": "x"}})),
            "spec.containers[0].resources.limits[cpu]",
        ),
        (
            pod("p", container("m", resources={"limits": {"cpu": 1}, "requests": {"cpu": 2}})),
            "spec.containers[0].resources.requests",
        ),
        (pod("p", restartPolicy="Never mind"), "spec.restartPolicy"),
        (pod("p", terminationGracePeriodSeconds=-1), "spec.terminationGracePeriodSeconds"),
        (pod("p", schedulingGates=[{"name": "g"}, {"name": "g"}]), "spec.schedulingGates[1]"),
        (pod("p", schedulingGates=[{"name": "g"}], nodeName="n"), "spec.nodeName"),
    ],
)
def test_pods_that_break_rules_are_refused_with_the_field(api, body, field):
    status, reply = api.call("POST", PODS, body)
    assert status == 422, reply
    assert field in [cause["field"] for cause in reply["details"]["causes"]]


@pytest.mark.parametrize(
    ("patch", "code"),
    [
        ({"containers": [container("main", image="new")]}, 200),
        ({"activeDeadlineSeconds": 5}, 200),
        ({"tolerations": [{"key": "a"}, {"key": "b"}]}, 200),
        ({"tolerations": []}, 422),
        ({"schedulingGates": []}, 200),
        ({"schedulingGates": [{"name": "g"}, {"name": "h"}]}, 422),
        ({"nodeSelector": {"a": "b"}}, 200),
        ({"nodeName": "n"}, 422),
        ({"restartPolicy": "Never"}, 422),
        ({"containers": [container("main", command=["x"])]}, 422),
    ],
)
def test_little_of_a_pods_spec_can_be_changed(api, patch, code):
    body = pod("p", container("main"), tolerations=[{"key": "a"}], schedulingGates=[{"name": "g"}])
    made = api.ok("POST", PODS, body)
    for wanted in patch.get("containers", ()):
        wanted |= {k: v for k, v in made["spec"]["containers"][0].items() if k not in wanted}
    status, _ = api.call("PATCH", f"{PODS}/p", {"spec": patch}, content_type=MERGE_PATCH)
    assert status == code


def test_placement_is_fixed_once_a_pod_is_not_gated(api):
    api.ok("POST", PODS, pod("p"))
    patch = {"spec": {"nodeSelector": {"a": "b"}}}
    assert api.call("PATCH", f"{PODS}/p", patch, content_type=MERGE_PATCH)[0] == 422


RUNNING = {"running": {"startedAt": "2027-01-15T08:00:00Z"}}


def state(name: str = "main", ready: bool = False, restarts: int = 0, **more: Any) -> Any:
    return {"name": name, "ready": ready, "restartCount": restarts, **more}


@pytest.mark.parametrize(
    ("spec", "status", "want"),
    [
        pytest.param({}, {}, ("0/1", "Pending", "0"), id="pending"),
        pytest.param(
            {"schedulingGates": [{"name": "g"}]}, {}, ("0/1", "SchedulingGated", "0"), id="gated"
        ),
        pytest.param(
            {},
            {"phase": "Running", "containerStatuses": [state(ready=True, state=RUNNING)]},
            ("1/1", "Running", "0"),
            id="running",
        ),
        pytest.param(
            {},
            {
                "phase": "Running",
                "containerStatuses": [
                    state(
                        restarts=3,
                        state={"waiting": {"reason": "CrashLoopBackOff"}},
                        lastState={"terminated": {"finishedAt": "2027-01-15T07:59:30Z"}},
                    )
                ],
            },
            ("0/1", "CrashLoopBackOff", "3 (30s ago)"),
            id="crash loop",
        ),
        pytest.param(
            {},
            {
                "phase": "Succeeded",
                "containerStatuses": [
                    state(state={"terminated": {"exitCode": 0, "reason": "Completed"}})
                ],
            },
            ("0/1", "Completed", "0"),
            id="completed",
        ),
        pytest.param(
            {},
            {
                "phase": "Failed",
                "containerStatuses": [state(state={"terminated": {"exitCode": 3}})],
            },
            ("0/1", "ExitCode:3", "0"),
            id="exit code",
        ),
        pytest.param(
            {},
            {
                "phase": "Failed",
                "containerStatuses": [state(state={"terminated": {"exitCode": 137, "signal": 9}})],
            },
            ("0/1", "Signal:9", "0"),
            id="signal",
        ),
        pytest.param(
            {}, {"phase": "Failed", "reason": "Evicted"}, ("0/1", "Evicted", "0"), id="evicted"
        ),
        pytest.param(
            {"initContainers": [container("i1"), container("i2")]},
            {
                "initContainerStatuses": [
                    state("i1", state={"terminated": {"exitCode": 0}}),
                    state("i2", state=RUNNING),
                ]
            },
            ("0/1", "Init:1/2", "0"),
            id="init",
        ),
        pytest.param(
            {"initContainers": [container("i1")]},
            {
                "initContainerStatuses": [
                    state("i1", restarts=2, state={"waiting": {"reason": "CrashLoopBackOff"}})
                ]
            },
            ("0/1", "Init:CrashLoopBackOff", "2"),
            id="init crash loop",
        ),
        pytest.param(
            {"initContainers": [container("side", restartPolicy="Always")]},
            {
                "phase": "Running",
                "initContainerStatuses": [state("side", ready=True, started=True, state=RUNNING)],
                "containerStatuses": [state(ready=True, state=RUNNING)],
            },
            ("2/2", "Running", "0"),
            id="sidecar",
        ),
    ],
)
def test_the_pod_table_says_it_as_kubectl_does(api, spec, status, want):
    api.ok("POST", PODS, pod("p", container("main"), **spec))
    if status:
        api.ok("PATCH", f"{PODS}/p/status", {"status": status}, content_type=MERGE_PATCH)
    (row,) = api.ok("GET", PODS, accept=TABLE)["rows"]
    assert (row["cells"][0], tuple(row["cells"][1:4])) == ("p", want)


def test_a_pod_that_is_being_deleted_is_terminating(api):
    api.ok("POST", PODS, pod("p", nodeName="n"))
    api.ok("DELETE", f"{PODS}/p")
    table = api.ok("GET", f"{PODS}/p", accept=TABLE)
    assert table["rows"][0]["cells"][2] == "Terminating"
    names = [c["name"] for c in table["columnDefinitions"] if c["priority"] == 0]
    assert names == ["Name", "Ready", "Status", "Restarts", "Age"]
    assert table["rows"][0]["cells"][5:7] == ["<none>", "n"]


def test_a_table_watch_defines_its_columns_once(api):
    for name in ("a", "b"):
        api.ok("POST", PODS, pod(name))

    async def read() -> list[Any]:
        request = ApiRequest("GET", PODS, {"watch": "true"}, accept=TABLE)
        response = await api.server.send(request)
        events = [msgspec.json.decode(await anext(response.stream)) for _ in range(2)]
        await response.stream.aclose()
        return events

    first, second = api.runner.run(read())
    assert first["object"]["columnDefinitions"]
    assert second["object"]["columnDefinitions"] is None
    assert second["object"]["rows"][0]["cells"][0] == "b"


NODE = {
    "metadata": {"name": "n", "labels": {"node-role.kubernetes.io/gpu": ""}},
    "spec": {"unschedulable": True},
    "status": {
        "conditions": [{"type": "Ready", "status": "True"}],
        "nodeInfo": {"kubeletVersion": "v1"},
        "addresses": [{"type": "InternalIP", "address": "127.0.0.2"}],
    },
}
PORT = {"port": 80, "nodePort": 30080}


@pytest.mark.parametrize(
    ("path", "body", "want"),
    [
        ("/api/v1/nodes", NODE, ["n", "Ready,SchedulingDisabled", "gpu", "0s", "v1", "127.0.0.2"]),
        (
            "/api/v1/namespaces/default/services",
            {"metadata": {"name": "s"}, "spec": {"selector": {"a": "b"}, "ports": [PORT]}},
            ["s", "ClusterIP", "<none>", "<none>", "80:30080/TCP", "0s", "a=b"],
        ),
        (
            "/api/v1/namespaces/default/events",
            {
                "metadata": {"name": "e"},
                "involvedObject": {"kind": "Pod", "name": "p"},
                "reason": "Started",
                "type": "Normal",
                "message": "up",
                "lastTimestamp": "2027-01-15T07:58:00Z",
            },
            ["2m", "Normal", "Started", "pod/p", "", "", "up"],
        ),
        (
            "/apis/coordination.k8s.io/v1/namespaces/default/leases",
            {"metadata": {"name": "l"}, "spec": {"holderIdentity": "me"}},
            ["l", "me", "0s"],
        ),
        (
            "/api/v1/namespaces/default/configmaps",
            {"metadata": {"name": "c"}, "data": {"a": "b"}, "binaryData": {"c": ""}},
            ["c", 2, "0s"],
        ),
        ("/api/v1/namespaces", {"metadata": {"name": "x"}}, ["x", "Active", "0s"]),
        (
            "/apis/storage.k8s.io/v1/storageclasses",
            {"metadata": {"name": "y"}, "provisioner": "z"},
            ["y", "0s"],
        ),
    ],
)
def test_tables_of_other_kinds(api, path, body, want):
    api.ok("POST", path, body)
    table = api.ok("GET", f"{path}/{body['metadata']['name']}", accept=TABLE)
    assert table["rows"][0]["cells"][: len(want)] == want


@pytest.mark.parametrize(
    ("seconds", "want"),
    [
        (-5, "0s"),
        (0, "0s"),
        (119, "119s"),
        (120, "2m"),
        (150, "2m30s"),
        (600, "10m"),
        (10_799, "179m"),
        (10_800, "3h"),
        (12_000, "3h20m"),
        (28_800, "8h"),
        (172_799, "47h"),
        (172_800, "2d"),
        (180_000, "2d2h"),
        (691_200, "8d"),
        (63_072_000, "2y"),
        (70_000_000, "2y80d"),
        (300_000_000, "9y"),
    ],
)
def test_durations_are_written_as_kubectl_writes_them(seconds, want):
    assert duration(seconds) == want


def test_events_are_one_in_both_groups(api):
    core = "/api/v1/namespaces/default/events"
    other = "/apis/events.k8s.io/v1/namespaces/default/events"
    body = {"metadata": {"name": "e"}, "regarding": {"kind": "Pod", "name": "p"}, "note": "hello"}
    api.ok("POST", other, body)
    obj = api.ok("GET", f"{core}/e")
    assert (obj["apiVersion"], obj["message"]) == ("v1", "hello")
    assert obj["involvedObject"]["name"] == "p"
    found = api.ok("GET", core, fieldSelector="involvedObject.name=p")["items"]
    assert [i["metadata"]["name"] for i in found] == ["e"]
    (shown,) = api.ok("GET", other)["items"]
    assert (shown["apiVersion"], shown["note"]) == ("events.k8s.io/v1", "hello")


def test_secrets_take_plain_strings(api):
    path = "/api/v1/namespaces/default/secrets"
    obj = api.ok("POST", path, {"metadata": {"name": "s"}, "stringData": {"a": "b"}})
    assert (obj["data"], obj["type"]) == ({"a": "Yg=="}, "Opaque")
    assert "stringData" not in obj


def test_immutable_data_stays(api):
    path = "/api/v1/namespaces/default/configmaps"
    api.ok("POST", path, {"metadata": {"name": "c"}, "data": {"a": "b"}, "immutable": True})
    patch = {"data": {"a": "c"}}
    assert api.call("PATCH", f"{path}/c", patch, content_type=MERGE_PATCH)[0] == 422


def test_a_nodes_status_is_taken_at_its_creation(api):
    obj = api.ok("POST", "/api/v1/nodes", {"metadata": {"name": "n"}, "status": {"phase": "x"}})
    assert obj["status"] == {"phase": "x"}


def test_nulls_of_typed_clients_count_as_absent(api):
    body = pod("p", container("m", command=None), nodeSelector=None)
    body["metadata"]["creationTimestamp"] = None
    obj = api.ok("POST", PODS, body)
    assert "nodeSelector" not in obj["spec"]
    assert "command" not in obj["spec"]["containers"][0]
    assert obj["metadata"]["creationTimestamp"]


def test_partial_metadata_is_what_metadata_clients_get(api):
    api.ok("POST", PODS, pod("p"))
    accept = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
    found = api.ok("GET", PODS, accept=accept)
    assert found["kind"] == "PartialObjectMetadataList"
    assert set(found["items"][0]) == {"kind", "apiVersion", "metadata"}


@pytest.mark.parametrize(
    ("path", "key"),
    [
        ("/version", "gitVersion"),
        ("/api", "versions"),
        ("/apis", "groups"),
        ("/api/v1", "resources"),
        ("/apis/apps", "preferredVersion"),
        ("/apis/apps/v1", "resources"),
        ("/openapi/v3", "paths"),
        ("/openapi/v3/api/v1", "components"),
        ("/openapi/v3/apis/apps/v1", "components"),
    ],
)
def test_discovery_documents(api, path, key):
    assert api.ok("GET", path)[key]


def test_reviews_allow_everything(api):
    path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
    obj = api.ok("POST", path, {"spec": {"resourceAttributes": {"verb": "get"}}})
    assert obj["status"]["allowed"] is True


MISTYPED = [
    ({"containers": "main"}, "spec.containers: a list is needed, a string was found"),
    ({"containers": [{"name": 5, "image": "i"}]}, "spec.containers[0].name: a string is needed"),
    ({"nodeSelector": {"a": True}}, "spec.nodeSelector.a: a string is needed, a boolean was found"),
    ({"hostNetwork": "yes"}, "spec.hostNetwork: a boolean is needed"),
    ({"terminationGracePeriodSeconds": "30"}, "a whole number is needed"),
]


@pytest.mark.parametrize(("spec", "says"), MISTYPED)
def test_values_of_the_wrong_type_are_refused_with_their_path(api, spec, says):
    body = pod("p")
    body["spec"] |= spec
    status, reply = api.call("POST", PODS, body)
    assert (status, says in reply["message"]) == (400, True), reply
    api.ok("POST", PODS, pod("p"))
    status, reply = api.call("PATCH", f"{PODS}/p", {"spec": spec}, content_type=MERGE_PATCH)
    assert (status, says in reply["message"]) == (400, True), reply


@pytest.mark.parametrize(("mode", "code"), [("Strict", 400), ("Warn", 201), ("Ignore", 201)])
def test_unknown_fields_of_pods_are_told_of_and_kept(api, mode, code):
    body = msgspec.json.encode(pod("p", container("m", imagee="x"), nodeNaem="n"))
    response = api.send(ApiRequest("POST", PODS, {"fieldValidation": mode}, body))
    assert response.status == code
    if mode == "Strict":
        text = response.body.decode()
        assert "spec.nodeNaem" in text
        assert "spec.containers[0].imagee" in text
        return
    assert ("warning" in response.headers) == (mode == "Warn")
    assert api.ok("GET", f"{PODS}/p")["spec"]["nodeNaem"] == "n"
