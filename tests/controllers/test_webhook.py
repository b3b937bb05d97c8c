"""The admission webhook over a real socket: the same verdicts as in-process."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import copy
import io
import random
import re
import shutil
import ssl
import sys
from typing import TYPE_CHECKING, Any

import aiohttp
import jsonpatch
import msgspec
import pytest
import yaml
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st

from spinney.api import codec
from spinney.api.admission import AdmissionRequest
from spinney.api.core import CustomResourceDefinition
from spinney.api.crd import crd_documents
from spinney.api.grove import (
    ClusterTopologyBinding,
    PodClique,
    PodCliqueScalingGroup,
    PodCliqueSet,
)
from spinney.api.grove_admission import GroveAdmission
from spinney.api.grove_authorizer import GroveAuthorizer
from spinney.api.resource import Resource
from spinney.clock import SystemClock
from spinney.cmd.main import main
from spinney.controllers.admission.app import (
    AUTHORIZE,
    MAX_BODY_BYTES,
    MUTATE,
    VALIDATE,
    WebhookApp,
)
from spinney.controllers.admission.certificate import RenewedCertificate
from spinney.controllers.admission.lookup import Lookup
from spinney.controllers.admission.manifests import ServiceAddress, webhook_manifests
from spinney.controllers.admission.review import json_patch
from spinney.controllers.admission.server import WebhookServer
from spinney.ids import RandomIds
from spinney.kube.client import KubeClient
from spinney.kube.controller import Runtime
from spinney.kube.transport import ApiRequest, ApiResponse, TransportError
from spinney.local.apiserver import tls
from spinney.local.apiserver.http import HttpServer
from spinney.local.apiserver.server import ApiServer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

OPERATOR = "system:serviceaccount:spinney-system:controllers"


class Flaky:
    """A transport that can be told to fail, or to end no watch's silence."""

    def __init__(self, inner: ApiServer) -> None:
        self.inner = inner
        self.broken = False
        self.deaf = False

    async def send(self, request: ApiRequest) -> ApiResponse:
        if self.broken:
            raise TransportError("the API is gone")
        if self.deaf and request.query.get("watch"):
            await asyncio.Event().wait()
        return await self.inner.send(request)


class Webhook:
    """A webhook on a free port, the API it looks things up in, and a client of both."""

    def __init__(self, directory: Path) -> None:
        self.api = ApiServer(
            SystemClock(), RandomIds(random.Random(1)), definitions=crd_documents()
        )
        self.transport = Flaky(self.api)
        self.client = KubeClient(self.api)
        self.runtime = Runtime(KubeClient(self.transport), SystemClock(), rng=random.Random(2))
        self.hook = GroveAdmission()
        lookup = Lookup(self.runtime, protects=True)
        app = WebhookApp(lookup, self.hook, GroveAuthorizer(OPERATOR))
        self.trust = tls.credentials(directory / "pki", SystemClock().now())
        self.server = WebhookServer(
            app,
            certificate=self.trust.certificate,
            key=self.trust.key,
            host="127.0.0.1",
            port=0,
            check_s=0.02,
        )

    async def __aenter__(self) -> Webhook:
        self.serving = asyncio.create_task(self.server.run())
        context = ssl.create_default_context(cafile=str(self.trust.authority))
        connector = aiohttp.TCPConnector(ssl=context)
        self.session = aiohttp.ClientSession(self.server.url, connector=connector)
        self.watching: asyncio.Task[None] | None = None
        return self

    async def look(self) -> None:
        self.watching = asyncio.create_task(self.runtime.run())
        await self.runtime.wait_synced()

    async def __aexit__(self, *_: object) -> None:
        await self.session.close()
        self.server.stop()
        async with asyncio.timeout(5):
            await self.serving
        if self.watching:
            self.watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self.watching
        await self.api.close()

    async def post(self, path: str, body: bytes | io.BytesIO) -> tuple[int, bytes]:
        async with self.session.post(path, data=body) as reply:
            return reply.status, await reply.read()

    async def ask(self, path: str, resource: Any, operation: str, **more: Any) -> dict[str, Any]:
        kind = {"group": resource.group, "version": resource.version}
        request = {
            "uid": "u-1",
            "kind": kind | {"kind": resource.kind},
            "resource": kind | {"resource": resource.plural},
            "operation": operation,
            "name": "n",
            "namespace": "default",
            "dryRun": False,
            "userInfo": {"username": more.pop("user", "jane"), "groups": []},
        } | more
        review = {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview"}
        status, body = await self.post(path, msgspec.json.encode(review | {"request": request}))
        assert status == 200, body
        answer = msgspec.json.decode(body)
        assert answer["apiVersion"] == "admission.k8s.io/v1"
        assert answer["kind"] == "AdmissionReview"
        assert answer["response"]["uid"] == "u-1"
        return dict(answer["response"])


def served(
    tmp_path: Path, scenario: Callable[[Webhook], Awaitable[None]], *, looks: bool = True
) -> None:
    async def run() -> None:
        async with asyncio.timeout(20), Webhook(tmp_path) as webhook:
            if looks:
                await webhook.look()
            await scenario(webhook)

    asyncio.run(run())


def pcs(**template: Any) -> dict[str, Any]:
    pod_spec = {"containers": [{"name": "main", "image": "x"}]}
    clique = {"name": "a", "spec": {"roleName": "a", "replicas": 2, "podSpec": pod_spec}}
    return {
        "apiVersion": "grove.io/v1alpha1",
        "kind": "PodCliqueSet",
        "metadata": {"name": "s", "namespace": "default"},
        "spec": {"replicas": 1, "template": {"cliques": [clique]} | template},
    }


def constrained(topology: str) -> dict[str, Any]:
    return pcs(topologyConstraint={"topologyName": topology, "pack": {"required": "rack"}})


def binding(name: str, *domains: str) -> dict[str, Any]:
    return {
        "apiVersion": "grove.io/v1alpha1",
        "kind": "ClusterTopologyBinding",
        "metadata": {"name": name},
        "spec": {"levels": [{"domain": d, "key": f"topology/{d}"} for d in domains]},
    }


def defaulted(obj: dict[str, Any]) -> dict[str, Any]:
    return GroveAdmission().default(AdmissionRequest("CREATE", PodCliqueSet.RESOURCE, obj))


SETS = [
    pytest.param(pcs(), id="accepted"),
    pytest.param(pcs(cliques=[]), id="V17"),
    pytest.param(pcs(terminationDelay="-1s", cliques=[]), id="V4 and V17"),
    pytest.param(constrained("nowhere"), id="T4"),
    pytest.param(pcs(cliqueStartupType="Random"), id="V3"),
    pytest.param(
        pcs(topologyConstraint={"topologyName": "cluster", "pack": {"required": "host"}}),
        id="T5",
    ),
    pytest.param(
        pcs(
            topologyConstraint={
                "topologyName": "cluster",
                "pack": {"required": "rack", "preferred": "zone"},
            }
        ),
        id="T8 warning",
    ),
]


def test_a_webhook_says_what_the_hook_says_in_process(tmp_path):
    topology = binding("cluster", "zone", "rack")

    async def scenario(webhook: Webhook) -> None:
        await webhook.client.create(topology, resource=ClusterTopologyBinding.RESOURCE)
        for param in SETS:
            obj = defaulted(param.values[0])
            there = await webhook.ask(VALIDATE, PodCliqueSet.RESOURCE, "CREATE", object=obj)
            request = AdmissionRequest(
                "CREATE",
                PodCliqueSet.RESOURCE,
                obj,
                lookup=lambda _r, _ns, name: topology if name == "cluster" else None,
            )
            here = webhook.hook.validate(request)
            assert there["allowed"] == (not here.errors), param.id
            causes = there.get("status", {}).get("details", {}).get("causes", [])
            want = [(e.path, e.reason, e.message) for e in here.errors]
            assert [(c["field"], c["reason"], c["message"]) for c in causes] == want, param.id
            assert tuple(there.get("warnings", ())) == here.warnings, param.id
            for error in here.errors:
                assert str(error) in there["status"]["message"]

    served(tmp_path, scenario)


def test_the_patch_makes_of_an_object_what_defaulting_makes_of_it(tmp_path):
    async def scenario(webhook: Webhook) -> None:
        obj = pcs()
        response = await webhook.ask(MUTATE, PodCliqueSet.RESOURCE, "CREATE", object=obj)
        assert response["allowed"]
        assert response["patchType"] == "JSONPatch"
        patch = msgspec.json.decode(base64.b64decode(response["patch"]))
        assert jsonpatch.apply_patch(obj, patch) == defaulted(obj)
        again = await webhook.ask(MUTATE, PodCliqueSet.RESOURCE, "CREATE", object=defaulted(obj))
        assert again == {"uid": "u-1", "allowed": True}

    served(tmp_path, scenario)


def test_what_was_made_a_moment_ago_is_found_though_no_watch_has_told_of_it(tmp_path):
    async def scenario(webhook: Webhook) -> None:
        webhook.transport.deaf = True
        webhook.api.end_streams()
        await webhook.client.create(
            binding("new", "zone", "rack"), resource=ClusterTopologyBinding.RESOURCE
        )
        obj = defaulted(constrained("new"))
        response = await webhook.ask(VALIDATE, PodCliqueSet.RESOURCE, "CREATE", object=obj)
        assert response["allowed"], response

    served(tmp_path, scenario)


def test_a_write_is_refused_when_the_api_cannot_say_whether_something_is_there(tmp_path):
    async def scenario(webhook: Webhook) -> None:
        webhook.transport.broken = True
        obj = defaulted(constrained("new"))
        response = await webhook.ask(VALIDATE, PodCliqueSet.RESOURCE, "CREATE", object=obj)
        assert not response["allowed"]
        assert response["status"]["code"] == 500
        assert "the API is gone" in response["status"]["message"]

    served(tmp_path, scenario)


def scale_of(name: str, replicas: int) -> dict[str, Any]:
    # A Scale of zero has no replicas in it.
    spec = {"replicas": replicas} if replicas else {}
    return {
        "apiVersion": "autoscaling/v1",
        "kind": "Scale",
        "metadata": {"name": name, "namespace": "default"},
        "spec": spec,
    }


@pytest.mark.parametrize(
    ("replicas", "allowed"),
    [
        pytest.param(3, True, id="at the minimum"),
        pytest.param(2, False, id="below"),
        pytest.param(0, True, id="off"),
    ],
)
def test_a_scale_request_is_held_against_the_minimum_of_what_it_scales(tmp_path, replicas, allowed):
    async def scenario(webhook: Webhook) -> None:
        clique = {
            "apiVersion": "grove.io/v1alpha1",
            "kind": "PodClique",
            "metadata": {"name": "c", "namespace": "default"},
            "spec": {"roleName": "c", "replicas": 4, "minAvailable": 3, "podSpec": {}},
        }
        await webhook.client.create(clique, resource=PodClique.RESOURCE)
        response = await webhook.ask(
            VALIDATE,
            PodClique.RESOURCE,
            "UPDATE",
            subResource="scale",
            object=scale_of("c", replicas),
            oldObject=scale_of("c", 4),
        )
        assert response["allowed"] is allowed
        if not allowed:
            assert "minAvailable (3)" in response["status"]["message"]

    served(tmp_path, scenario)


def test_a_stranger_may_not_write_what_the_controllers_made(tmp_path):
    async def scenario(webhook: Webhook) -> None:
        await webhook.client.create(pcs(), resource=PodCliqueSet.RESOURCE)
        labels = {
            "app.kubernetes.io/managed-by": "grove-operator",
            "app.kubernetes.io/part-of": "s",
        }
        obj = {"kind": "PodGang", "metadata": {"namespace": "default", "labels": labels}}
        gangs = PodClique.RESOURCE.__class__(
            "scheduler.grove.io", "v1alpha1", "PodGang", "podgangs"
        )
        ask = {"oldObject": obj, "object": None}
        refused = await webhook.ask(AUTHORIZE, gangs, "DELETE", **ask)
        assert (refused["allowed"], refused["status"]["code"]) == (False, 403)
        assert (await webhook.ask(AUTHORIZE, gangs, "DELETE", user=OPERATOR, **ask))["allowed"]

    served(tmp_path, scenario)


def test_bad_reviews_are_refused_with_what_is_wrong(tmp_path):
    async def scenario(webhook: Webhook) -> None:
        for body in (b"", b"{", b"[]", b'{"apiVersion":"v1","kind":"Pod","request":{}}'):
            status, text = await webhook.post(VALIDATE, body)
            assert (status, b"wanted" in text) == (400, True)
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}}
        for path in (MUTATE, VALIDATE):
            wrong = await webhook.ask(path, PodCliqueSet.RESOURCE, "CREATE", object=pod)
            assert (wrong["allowed"], wrong["status"]["code"]) == (False, 400)
            assert "PodCliqueSet wanted, found Pod" in wrong["status"]["message"]
        none = await webhook.ask(VALIDATE, PodCliqueSet.RESOURCE, "CREATE", object=None)
        assert none["status"]["code"] == 400
        status, text = await webhook.post(VALIDATE, io.BytesIO(b"x" * (MAX_BODY_BYTES + 1)))
        assert (status, b"more than" in text) == (400, True)
        assert (await webhook.post("/elsewhere", b"{}"))[0] == 404
        async with webhook.session.get(VALIDATE) as reply:
            assert reply.status == 405

    served(tmp_path, scenario)


def test_it_is_ready_when_it_can_look_things_up(tmp_path):
    async def scenario(webhook: Webhook) -> None:
        async def status(path: str) -> int:
            async with webhook.session.get(path) as reply:
                return reply.status

        assert await status("/healthz") == 200
        assert await status("/readyz") == 503
        review = {
            "apiVersion": "admission.k8s.io/v1",
            "kind": "AdmissionReview",
            "request": {"uid": "u", "resource": {}, "operation": "CREATE"},
        }
        assert (await webhook.post(VALIDATE, msgspec.json.encode(review)))[0] == 503
        await webhook.look()
        assert await status("/readyz") == 200

    served(tmp_path, scenario, looks=False)


def test_a_client_that_does_not_know_the_authority_is_not_served(tmp_path):
    async def scenario(webhook: Webhook) -> None:
        async with aiohttp.ClientSession() as stranger:
            with pytest.raises(aiohttp.ClientConnectorCertificateError):
                await stranger.get(f"{webhook.server.url}/healthz")

    served(tmp_path, scenario)


async def served_serial(url: str) -> int:
    """The serial number of the certificate that a new connection is shown."""
    host, port = url.removeprefix("https://").rsplit(":", 1)
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    _, writer = await asyncio.open_connection(host, int(port), ssl=context)
    shown = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    await writer.wait_closed()
    return x509.load_der_x509_certificate(shown).serial_number


def serial(file: Path) -> int:
    return x509.load_pem_x509_certificate(file.read_bytes()).serial_number


def test_a_renewed_certificate_is_shown_without_a_restart(tmp_path):
    other = tls.credentials(tmp_path / "other", SystemClock().now())

    async def until(webhook: Webhook, wanted: int) -> None:
        for _ in range(500):
            if await served_serial(webhook.server.url) == wanted:
                return
            await asyncio.sleep(0.02)
        raise AssertionError("the certificate is not shown")

    async def scenario(webhook: Webhook) -> None:
        await until(webhook, serial(webhook.trust.certificate))
        first = serial(webhook.trust.certificate)
        status, _ = await webhook.post(VALIDATE, b"{}")
        webhook.trust.certificate.write_bytes(other.certificate.read_bytes())
        await asyncio.sleep(0.1)
        assert await served_serial(webhook.server.url) == first, "its key is not there yet"
        webhook.trust.key.write_bytes(other.key.read_bytes())
        await until(webhook, serial(other.certificate))
        assert (await webhook.post(VALIDATE, b"{}"))[0] == status, "an open connection stays"

    served(tmp_path, scenario)


@pytest.mark.parametrize("damage", ["nothing", "text", "other key"])
def test_what_is_no_certificate_changes_nothing(tmp_path, damage):
    found, other = (tls.credentials(tmp_path / n, SystemClock().now()) for n in "ab")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(found.certificate, found.key)
    renewed = RenewedCertificate(context, found.certificate, found.key)
    assert not renewed.look()
    match damage:
        case "nothing":
            found.key.unlink()
        case "text":
            found.certificate.write_text("no certificate")
        case _:
            found.key.write_bytes(other.key.read_bytes())
    assert not renewed.look()
    found.certificate.write_bytes(other.certificate.read_bytes())
    found.key.write_bytes(other.key.read_bytes())
    assert renewed.look()
    assert not renewed.look()


values = st.recursive(
    st.none() | st.booleans() | st.integers(0, 3) | st.sampled_from(["", "a", "a/b", "~1"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["a", "b", "a/b", "m~n", ""]), inner, max_size=3)
    ),
    max_leaves=8,
)
objects = st.dictionaries(st.sampled_from(["a", "b/c", "~"]), values, max_size=3)


@given(before=objects, after=objects)
def test_a_patch_turns_one_object_into_the_other(before, after):
    patch = json_patch(before, after)
    found = jsonpatch.apply_patch(copy.deepcopy(before), patch)
    assert msgspec.json.encode(found, order="sorted") == msgspec.json.encode(after, order="sorted")
    assert json_patch(before, before) == []


def test_the_configurations_lead_an_api_server_to_every_rule():
    address = ServiceAddress("spinney-system", "hook")
    mutating, validating = webhook_manifests(address, b"PEM", protects=True)
    assert mutating["kind"] == "MutatingWebhookConfiguration"
    assert validating["kind"] == "ValidatingWebhookConfiguration"
    for hook in (*mutating["webhooks"], *validating["webhooks"]):
        assert hook["clientConfig"]["caBundle"] == base64.b64encode(b"PEM").decode()
        assert hook["clientConfig"]["service"]["name"] == "hook"
        assert hook["failurePolicy"] == "Fail"
        assert (hook["admissionReviewVersions"], hook["sideEffects"]) == (["v1"], "None")
    rules = {
        resource: rule["operations"]
        for hook in validating["webhooks"][:-1]
        for rule in hook["rules"]
        for resource in rule["resources"]
    }
    hooked = {f"{r.split('/')[0]}.grove.io" for r in rules}
    assert hooked == GroveAdmission.resources
    assert rules["podcliquesets"] == ["CREATE", "UPDATE"]
    for kind in (PodClique, PodCliqueScalingGroup):
        assert rules[f"{kind.RESOURCE.plural}/scale"] == ["UPDATE"]
    managed = validating["webhooks"][-1]
    labels = managed["objectSelector"]["matchLabels"]
    assert labels == {"app.kubernetes.io/managed-by": "grove-operator"}
    protected = {
        f"{plural}.{rule['apiGroups'][0]}".rstrip(".")
        for rule in managed["rules"]
        for plural in rule["resources"]
    }
    assert protected == GroveAuthorizer(OPERATOR).resources
    plain = webhook_manifests("https://127.0.0.1:1/", b"PEM")
    assert plain[0]["webhooks"][0]["clientConfig"]["url"] == "https://127.0.0.1:1/mutate"
    assert [w["name"] for w in plain[1]["webhooks"]][-1].startswith("scaling.")


def test_the_command_prints_configurations_with_the_authority_it_made(tmp_path, capsys):
    folder = tmp_path / "pki"
    assert main(["webhook", "--tls-dir", str(folder), "--manifests", "--service", "ns/hook"]) == 0
    documents = list(yaml.safe_load_all(capsys.readouterr().out))
    config = documents[0]["webhooks"][0]["clientConfig"]
    assert base64.b64decode(config["caBundle"]) == (folder / "ca.crt").read_bytes()
    assert config["service"] == {"namespace": "ns", "name": "hook", "port": 443, "path": "/mutate"}


def configuration_kind(which: str) -> CustomResourceDefinition:
    """The embedded API server does not serve these kinds itself: it calls no webhooks."""
    kind, group = f"{which}WebhookConfiguration", "admissionregistration.k8s.io"
    plural = f"{kind.lower()}s"
    schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    version = {"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}}
    names = {"kind": kind, "listKind": f"{kind}List", "plural": plural, "singular": kind.lower()}
    spec = {"group": group, "scope": "Cluster", "names": names, "versions": [version]}
    body = {"metadata": {"name": f"{plural}.{group}"}, "spec": spec}
    return codec.from_dict(CustomResourceDefinition, body)


async def with_program(tmp_path, arguments, scenario, *, kinds=()):
    """Run the command beside an embedded API server; *scenario* takes it and a client."""
    api = ApiServer(SystemClock(), RandomIds(random.Random(1)), definitions=crd_documents())
    client = KubeClient(api)
    for kind in kinds:
        await client.create(kind)
    trust = tls.credentials(tmp_path / "api", SystemClock().now())
    server = HttpServer(api, trust, "127.0.0.1", 0)
    serving = asyncio.create_task(server.run())
    tls.write_kubeconfig(tmp_path / "kubeconfig", server.url, trust)
    program = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "spinney.cmd.main", "--kubeconfig", tmp_path / "kubeconfig"),
        *("webhook", "--host", "127.0.0.1", "--port", "0", "--tls-dir", tmp_path / "hook"),
        *("--url", "https://127.0.0.1", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(30):
            await scenario(program, client)
    finally:
        if program.returncode is None:
            program.kill()
            await program.wait()
        server.stop()
        await serving
        await api.close()


async def line_with(program, pattern):
    while True:
        line = (await program.stdout.readline()).decode()
        assert line, "it ended"
        if found := re.search(pattern, line):
            return found


@pytest.mark.e2e
def test_the_command_serves_reviews_of_a_cluster_and_ends_when_asked(tmp_path):
    async def scenario(program, client):
        found = await line_with(program, r"https://127\.0\.0\.1:\d+")
        context = ssl.create_default_context(cafile=str(tmp_path / "hook" / "ca.crt"))
        connector = aiohttp.TCPConnector(ssl=context)
        async with aiohttp.ClientSession(found[0], connector=connector) as session:
            ready = 503
            while ready != 200:
                async with session.get("/readyz") as reply:
                    ready = reply.status
                await asyncio.sleep(0.02)
        program.terminate()
        rest = await program.stdout.read()
        assert (await program.wait(), rest) == (0, b"")

    asyncio.run(with_program(tmp_path, (), scenario))


@pytest.mark.e2e
def test_the_command_registers_itself_and_does_so_again_with_a_new_authority(tmp_path):
    kinds = [configuration_kind(which) for which in ("Mutating", "Validating")]

    async def scenario(program, client):
        for which in ("Mutating", "Validating"):
            await line_with(program, f"registered .*kind={which}WebhookConfiguration")
            plural = f"{which.lower()}webhookconfigurations"
            resource = Resource(
                "admissionregistration.k8s.io", "v1", f"{which}WebhookConfiguration", plural, False
            )
            found = await client.get(resource, "spinney-admission")
            bundle = found["webhooks"][0]["clientConfig"]["caBundle"]
            assert base64.b64decode(bundle) == (tmp_path / "hook" / "ca.crt").read_bytes()
        program.terminate()
        assert await program.wait() == 0

    async def twice():
        await with_program(tmp_path, ["--register"], scenario, kinds=kinds)
        shutil.rmtree(tmp_path / "hook")
        await with_program(tmp_path, ["--register"], scenario, kinds=kinds)

    asyncio.run(twice())


@pytest.mark.e2e
def test_a_registration_that_is_refused_ends_the_command_with_the_reason(tmp_path):
    async def scenario(program, client):
        said = (await program.stdout.read()).decode()
        assert await program.wait() == 1
        assert "mutatingwebhookconfigurations" in said
        assert "Traceback" not in said

    asyncio.run(with_program(tmp_path, ["--register"], scenario))


@pytest.mark.parametrize(
    ("arguments", "want"),
    [
        pytest.param(["--manifests"], "a certificate is needed", id="no certificate"),
        pytest.param(["--service", "x", "--tls-dir", "."], "NAMESPACE/NAME", id="no namespace"),
        pytest.param(
            ["--default-scheduler", "volcano", "--tls-dir", "."], "not enabled", id="default"
        ),
    ],
)
def test_the_command_says_what_it_misses(arguments, want, capsys):
    assert main(["webhook", *arguments]) == 2
    assert want in capsys.readouterr().err
