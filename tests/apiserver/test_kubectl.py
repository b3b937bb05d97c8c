"""kubectl, whichever is on PATH, against a real server process."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
import yaml

if TYPE_CHECKING:
    from pathlib import Path

KUBECTL = shutil.which("kubectl")
pytestmark = [
    pytest.mark.kubectl,
    pytest.mark.skipif(KUBECTL is None, reason="no kubectl on PATH"),
]

CRD = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "widgets.example.com"},
    "spec": {
        "group": "example.com",
        "scope": "Namespaced",
        "names": {
            "kind": "Widget", "plural": "widgets", "shortNames": ["wd"], "categories": ["all"]
        },
        "versions": [{
            "name": "v1",
            "served": True,
            "storage": True,
            "subresources": {"status": {}, "scale": {
                "specReplicasPath": ".spec.replicas", "statusReplicasPath": ".status.replicas"}},
            "additionalPrinterColumns": [
                {"name": "Replicas", "type": "integer", "jsonPath": ".spec.replicas"}],
            "schema": {"openAPIV3Schema": {
                "type": "object",
                "properties": {
                    "spec": {
                        "type": "object",
                        "description": "What is wanted.",
                        "properties": {
                            "replicas": {"type": "integer", "default": 1, "minimum": 0},
                            "size": {"type": "string", "description": "How large."},
                        },
                    },
                    "status": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
                },
            }},
        }],
    },
}  # fmt: skip
WIDGET = {
    "apiVersion": "example.com/v1",
    "kind": "Widget",
    "metadata": {"name": "w"},
    "spec": {"size": "small"},
}
POD = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "p", "labels": {"app": "x"}},
    "spec": {"containers": [{"name": "main", "image": "busybox:1"}]},
}
DEPLOYMENT = {
    "apiVersion": "apps/v1",
    "kind": "Deployment",
    "metadata": {"name": "d"},
    "spec": {
        "replicas": 2,
        "selector": {"matchLabels": {"app": "web"}},
        "template": {"metadata": {"labels": {"app": "web"}}, "spec": POD["spec"]},
    },
}


class Kubectl:
    """Runs kubectl in a namespace of its own."""

    def __init__(self, server: Any, scratch: Path, namespace: str) -> None:
        self.scratch = scratch
        self.namespace = namespace
        self.environment = {
            "KUBECONFIG": str(server.kubeconfig),
            "HOME": str(server.directory),
            "PATH": os.environ["PATH"],
        }

    def run(self, *args: str, code: int = 0, stdin: str | None = None) -> str:
        """Return what it printed; its exit code has to be *code*."""
        command = [str(KUBECTL), "--namespace", self.namespace, *args]
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=30,
            input=stdin, check=False,
        )  # fmt: skip
        said = done.stdout + done.stderr
        assert done.returncode == code, f"{' '.join(args)}: {said}"
        return said

    def apply(self, *objects: Any, code: int = 0, flags: tuple[str, ...] = ()) -> str:
        text = yaml.safe_dump_all(objects)
        return self.run("apply", *flags, "-f", "-", code=code, stdin=text)

    def json(self, *args: str) -> Any:
        return json.loads(self.run("get", *args, "-o", "json"))


@pytest.fixture(scope="module")
def server(start_server, tmp_path_factory):
    return start_server(tmp_path_factory.mktemp("cluster"))


@pytest.fixture
def kubectl(server, tmp_path, request):
    namespace = re.sub(r"[^a-z0-9]+", "-", request.node.name.lower())[:60].strip("-")
    runner = Kubectl(server, tmp_path, namespace)
    runner.run("create", "namespace", namespace)
    return runner


@pytest.fixture
def widgets(kubectl):
    kubectl.apply(CRD)
    kubectl.run("wait", "--for", "condition=established", "crd/widgets.example.com")
    kubectl.apply(WIDGET)
    return kubectl


def test_get_in_every_format(kubectl):
    kubectl.apply(POD)
    line = kubectl.run("get", "pods").splitlines()
    assert line[0].split() == ["NAME", "READY", "STATUS", "RESTARTS", "AGE"]
    assert line[1].split()[:4] == ["p", "0/1", "Pending", "0"]
    assert "NOMINATED NODE" in kubectl.run("get", "pods", "-o", "wide")
    assert yaml.safe_load(kubectl.run("get", "pod", "p", "-o", "yaml"))["kind"] == "Pod"
    assert kubectl.json("pods")["items"][0]["metadata"]["name"] == "p"
    assert kubectl.run("get", "pod", "p", "-o", "jsonpath={.status.qosClass}") == "BestEffort"
    assert kubectl.run("get", "pods", "-l", "app=x", "-o", "name") == "pod/p\n"
    assert "No resources found" in kubectl.run("get", "pods", "-l", "app=z")
    assert "pod/p" in kubectl.run("get", "all")
    assert 'pods "q" not found' in kubectl.run("get", "pod", "q", code=1)


def test_describe_shows_events(kubectl):
    kubectl.apply(POD)
    uid = kubectl.json("pod", "p")["metadata"]["uid"]
    event = {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": "e"},
        "involvedObject": {
            "kind": "Pod", "name": "p", "namespace": kubectl.namespace, "uid": uid
        },
        "reason": "Unschedulable",
        "message": "no node fits",
        "type": "Warning",
        "count": 1,
        "lastTimestamp": "2026-01-01T00:00:00Z",
    }  # fmt: skip
    kubectl.run("create", "-f", "-", stdin=json.dumps(event))
    said = kubectl.run("describe", "pod", "p")
    assert "no node fits" in said
    assert "Image:" in said
    assert "Unschedulable" in kubectl.run("get", "events")
    assert "kubernetes.io/metadata.name" in kubectl.run("describe", "ns", kubectl.namespace)


def test_apply_again_changes_nothing_and_diff_says_what_would(widgets):
    widgets.apply(POD, DEPLOYMENT)
    assert widgets.apply(POD, DEPLOYMENT).count("unchanged") == 2
    assert "unchanged" in widgets.apply(WIDGET)
    changed = {**WIDGET, "spec": {"size": "large"}}
    assert widgets.run("diff", "-f", "-", stdin=yaml.safe_dump(WIDGET)) == ""
    said = widgets.run("diff", "-f", "-", stdin=yaml.safe_dump(changed), code=1)
    assert "+  size: large" in said
    assert "configured" in widgets.apply(changed)
    assert widgets.json("wd", "w")["metadata"]["generation"] == 2


def test_server_side_apply(widgets):
    other = {**WIDGET, "metadata": {"name": "v"}}
    assert "serverside-applied" in widgets.apply(other, flags=("--server-side",))
    changed = {**other, "spec": {"size": "large"}}
    flags = ("--server-side", "--field-manager=other")
    assert "conflict" in widgets.apply(changed, flags=flags, code=1)
    widgets.apply(changed, flags=(*flags, "--force-conflicts"))
    assert widgets.json("wd", "v")["spec"]["size"] == "large"


def test_misspelt_fields_and_broken_rules_are_named(widgets):
    said = widgets.apply({**WIDGET, "spec": {"sise": "small"}}, code=1)
    assert 'unknown field "spec.sise"' in said
    said = widgets.apply({**WIDGET, "spec": {"replicas": -1}}, code=1)
    assert "spec.replicas: Invalid value" in said


def test_patches_of_every_type_labels_and_annotations(widgets):
    widgets.apply(DEPLOYMENT)
    widgets.run("patch", "wd", "w", "--type=merge", "-p", '{"spec":{"size":"large"}}')
    replace = '[{"op":"replace","path":"/spec/replicas","value":3}]'
    widgets.run("patch", "wd", "w", "--type=json", "-p", replace)
    assert widgets.json("wd", "w")["spec"] == {"replicas": 3, "size": "large"}
    patch = '{"spec":{"template":{"spec":{"containers":[{"name":"side","image":"i"}]}}}}'
    widgets.run("patch", "deploy", "d", "-p", patch)
    containers = widgets.json("deploy", "d")["spec"]["template"]["spec"]["containers"]
    assert {c["name"] for c in containers} == {"main", "side"}
    widgets.run("label", "wd", "w", "a=b")
    widgets.run("annotate", "wd", "w", "c=d")
    meta = widgets.json("wd", "w")["metadata"]
    assert (meta["labels"], meta["annotations"]["c"]) == ({"a": "b"}, "d")
    widgets.run("set", "image", "deploy/d", "main=busybox:2")
    assert "configured" in widgets.apply(DEPLOYMENT)


def test_scale(widgets):
    widgets.apply(DEPLOYMENT)
    widgets.run("scale", "wd", "w", "--replicas=5")
    widgets.run("scale", "deploy", "d", "--replicas=0", "--current-replicas=2")
    assert widgets.json("wd", "w")["spec"]["replicas"] == 5
    assert widgets.json("deploy", "d")["spec"]["replicas"] == 0


@pytest.mark.parametrize("cascade", ["background", "foreground", "orphan"])
def test_delete_with_every_cascade(kubectl, cascade):
    owner = json.loads(kubectl.run("create", "configmap", "owner", "-o", "json"))
    reference = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "name": "owner",
        "uid": owner["metadata"]["uid"],
        "blockOwnerDeletion": True,
    }
    meta = {"name": "child", "ownerReferences": [reference]}
    kubectl.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta})
    kubectl.run("delete", "configmap", "owner", f"--cascade={cascade}", "--timeout=10s")
    if cascade == "orphan":
        assert "ownerReferences" not in kubectl.json("configmap", "child")["metadata"]
        return
    kubectl.run("wait", "--for=delete", "configmap/child", "--timeout=5s")


def test_delete_all_and_a_whole_namespace(widgets):
    widgets.apply(POD)
    widgets.run("delete", "pods", "--all", "--timeout=10s")
    widgets.run("delete", "ns", widgets.namespace, "--timeout=10s")
    assert "not found" in widgets.run("get", "ns", widgets.namespace, code=1)


def test_watching_prints_changes_as_they_happen(kubectl):
    kubectl.apply(POD)
    command = [str(KUBECTL), "-n", kubectl.namespace, "get", "pods", "--watch"]
    with subprocess.Popen(
        command, env=kubectl.environment, stdout=subprocess.PIPE, text=True
    ) as watch:
        assert watch.stdout is not None
        lines = [watch.stdout.readline() for _ in range(2)]
        # Between list and watch nothing may be lost, whenever this happens.
        kubectl.run("label", "pod", "p", "new=label")
        lines.append(watch.stdout.readline())
        kubectl.run("delete", "pod", "p", "--wait=false")
        lines.append(watch.stdout.readline())
        watch.terminate()
    assert [line.split()[0] for line in lines] == ["NAME", "p", "p", "p"]


def test_wait_for_a_condition_and_for_deletion(widgets):
    command = [
        str(KUBECTL), "-n", widgets.namespace, "wait", "--for=condition=Ready", "wd/w",
        "--timeout=20s",
    ]  # fmt: skip
    with subprocess.Popen(command, env=widgets.environment, stdout=subprocess.PIPE) as waiting:
        ready = {"conditions": [{"type": "Ready", "status": "True"}]}
        patch = json.dumps({"status": ready})
        widgets.run("patch", "wd", "w", "--type=merge", "--subresource=status", "-p", patch)
        assert waiting.wait(20) == 0
    widgets.run("delete", "wd", "w", "--wait=false")
    widgets.run("wait", "--for=delete", "wd/w", "--timeout=10s")


def test_explain_custom_and_built_in_kinds(widgets):
    said = widgets.run("explain", "wd.spec")
    assert "What is wanted." in said
    assert "How large." in said
    assert "<integer>" in said
    assert "tolerationSeconds" in widgets.run("explain", "pod.spec.tolerations")
    assert "matchLabels" in widgets.run("explain", "deploy.spec.selector")


@pytest.mark.parametrize(
    "what",
    [
        "configmap c --from-literal=a=b",
        "secret generic s --from-literal=a=b",
        "serviceaccount sa",
        "deployment d --image=i --replicas=0",
        "job j --image=i",
        "service clusterip s --tcp=80",
        "quota q --hard=pods=1",
        "poddisruptionbudget b --selector=a=b --min-available=1",
        "role r --verb=get --resource=pods",
        "rolebinding b --role=r --user=u",
        "ingress i --rule=a.b/c=s:80",
        "priorityclass {namespace} --value=5",
    ],
    ids=lambda text: text.split()[0],
)
def test_typed_creates(kubectl, what):
    args = what.format(namespace=kubectl.namespace).split()
    kind, name = args[0], args[2] if args[0] in ("secret", "service") else args[1]
    kubectl.run("create", *args)
    obj = kubectl.json(kind, name)
    assert obj["metadata"]["name"] == name
    if kind == "deployment":
        assert obj["spec"]["replicas"] == 0
    if kind == "secret":
        assert obj["data"] == {"a": "Yg=="}
    if kind == "priorityclass":
        assert obj["value"] == 5


def test_what_the_cluster_is_and_what_one_may(kubectl):
    said = kubectl.run("api-resources")
    assert re.search(r"^pods +po +v1 +true +Pod$", said, re.MULTILINE)
    assert kubectl.run("auth", "can-i", "create", "pods").strip() == "yes"
    assert "ok" in kubectl.run("get", "--raw", "/readyz")
    assert "spinney" in kubectl.run("version")


def test_nodes_are_cordoned_and_drained(kubectl):
    name = kubectl.namespace
    kubectl.apply({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}})
    pod = {**POD, "spec": {**POD["spec"], "nodeName": name}}
    kubectl.apply(pod)
    kubectl.run("cordon", name)
    assert "SchedulingDisabled" in kubectl.run("get", "node", name)
    drain = ("drain", name, "--force", "--timeout=2s", "--grace-period=7")
    said = kubectl.run(*drain, code=1)
    assert "evicting pod" in said
    assert kubectl.json("pod", "p")["metadata"]["deletionGracePeriodSeconds"] == 7
    kubectl.run("delete", "pod", "p", "--force", "--grace-period=0")
    kubectl.run(*drain)
