"""What every Kubernetes API has to do for `KubeClient`, whatever carries the requests.

Each check is a coroutine function of an `Env`: a client and a namespace of its own. The suite runs
them against the embedded server in-process and over HTTPS, and against a real kube-apiserver where
one is configured, which keeps the embedded one honest.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from spinney.api.core import ConfigMap, Event, Lease, LeaseSpec, Namespace, ObjectReference, Pod
from spinney.api.meta import ObjectMeta, OwnerReference
from spinney.api.resource import Resource
from spinney.kube import transport as wire
from spinney.kube.discovery import Discovery
from spinney.kube.errors import (
    AlreadyExistsError,
    ApiError,
    ConflictError,
    ExpiredError,
    InvalidError,
    NotFoundError,
)
from spinney.kube.informer import Informer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from spinney.kube.client import KubeClient, WatchEvent

WIDGETS = Resource(
    "conformance.spinney.dev",
    "v1",
    "Widget",
    "widgets",
    short_names=("wdg",),
    categories=("conformance",),
)
PODS = Pod.RESOURCE
MAPS = ConfigMap.RESOURCE
PATIENCE_S = 15.0
"""How long anything may take that a server does on its own."""

WIDGET_CRD: dict[str, Any] = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": WIDGETS.name},
    "spec": {
        "group": WIDGETS.group,
        "scope": "Namespaced",
        "names": {
            "plural": WIDGETS.plural,
            "singular": "widget",
            "kind": WIDGETS.kind,
            "shortNames": ["wdg"],
            "categories": ["conformance"],
        },
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "subresources": {
                    "status": {},
                    "scale": {
                        "specReplicasPath": ".spec.replicas",
                        "statusReplicasPath": ".status.replicas",
                        "labelSelectorPath": ".status.selector",
                    },
                },
                "schema": {
                    "openAPIV3Schema": {
                        "type": "object",
                        "properties": {
                            "spec": {
                                "type": "object",
                                "required": ["size"],
                                "properties": {
                                    "size": {"type": "integer", "minimum": 1},
                                    "colour": {"type": "string", "default": "green"},
                                    "replicas": {"type": "integer"},
                                    "parts": {
                                        "type": "array",
                                        "x-kubernetes-list-type": "map",
                                        "x-kubernetes-list-map-keys": ["name"],
                                        "items": {
                                            "type": "object",
                                            "required": ["name"],
                                            "properties": {
                                                "name": {"type": "string"},
                                                "value": {"type": "string"},
                                            },
                                        },
                                    },
                                },
                            },
                            "status": {
                                "type": "object",
                                "properties": {
                                    "replicas": {"type": "integer"},
                                    "selector": {"type": "string"},
                                    "phase": {"type": "string"},
                                },
                            },
                        },
                    }
                },
            }
        ],
    },
}


@dataclass(frozen=True, slots=True)
class Env:
    """Where a check runs."""

    client: KubeClient
    namespace: str
    collects_garbage: bool = True
    """Whether something follows owner references and empties namespaces."""
    bookmark_s: float = 70.0
    """How long to watch for a bookmark; 0: too long for a test."""
    keeps_history: bool = False
    """Whether the server keeps old versions for longer than a test can wait."""


CHECKS: list[Callable[[Env], Awaitable[None]]] = []


def check(function: Callable[[Env], Awaitable[None]]) -> Callable[[Env], Awaitable[None]]:
    CHECKS.append(function)
    return function


# Objects with defaults


def config_map(env: Env, name: str = "m", **data: str) -> ConfigMap:
    return ConfigMap(metadata=ObjectMeta(name=name, namespace=env.namespace), data=data)


def labelled(env: Env, name: str, /, **labels: str) -> ConfigMap:
    return ConfigMap(metadata=ObjectMeta(name=name, namespace=env.namespace, labels=labels))


def pod(env: Env, name: str = "p", **spec: Any) -> dict[str, Any]:
    containers = [{"name": "main", "image": "main:1"}, {"name": "side", "image": "side:1"}]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": env.namespace},
        "spec": {"containers": containers, **spec},
    }


def widget(env: Env, name: str = "w", **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": WIDGETS.api_version,
        "kind": "Widget",
        "metadata": {"name": name, "namespace": env.namespace},
        "spec": {"size": 1, **spec},
    }


async def eventually(condition: Callable[[], Awaitable[bool]], what: str) -> None:
    try:
        async with asyncio.timeout(PATIENCE_S):
            while True:
                if await condition():
                    return
                await asyncio.sleep(0.05)
    except TimeoutError:
        pytest.fail(f"not within {PATIENCE_S} s: {what}")


async def is_gone(env: Env, kind: Any, name: str) -> bool:
    try:
        await env.client.get(kind, name, env.namespace)
    except NotFoundError:
        return True
    return False


# Create, read, update


@check
async def a_created_object_has_an_identity_and_can_be_read(env: Env) -> None:
    made = await env.client.create(config_map(env, a="1"))
    meta = made.metadata
    assert meta.uid
    assert meta.resource_version.isdigit()
    assert meta.creation_timestamp
    read = await env.client.get(ConfigMap, "m", env.namespace)
    assert (read.metadata, read.data) == (meta, {"a": "1"})


@check
async def a_name_can_be_taken_once(env: Env) -> None:
    await env.client.create(config_map(env))
    with pytest.raises(AlreadyExistsError) as caught:
        await env.client.create(config_map(env))
    assert caught.value.code == 409
    assert caught.value.status.details is not None
    assert caught.value.status.details.name == "m"


@check
async def what_is_not_there_is_a_typed_error(env: Env) -> None:
    with pytest.raises(NotFoundError) as caught:
        await env.client.get(ConfigMap, "absent", env.namespace)
    status = caught.value.status
    assert (status.code, status.reason) == (404, "NotFound")
    assert status.details is not None
    assert (status.details.name, status.details.kind) == ("absent", "configmaps")
    with pytest.raises(NotFoundError):
        await env.client.patch(ConfigMap, "absent", {"data": {}}, env.namespace)
    with pytest.raises(NotFoundError):
        await env.client.delete(ConfigMap, "absent", env.namespace)
    with pytest.raises(NotFoundError):
        await env.client.list(Resource("none.example", "v1", "None", "nones"))


@check
async def a_generated_name_has_the_prefix_and_is_new_each_time(env: Env) -> None:
    meta = ObjectMeta(generate_name="map-", namespace=env.namespace)
    names = {(await env.client.create(ConfigMap(metadata=meta))).name for _ in range(5)}
    assert len(names) == 5
    assert all(name.startswith("map-") and len(name) == 9 for name in names)


@check
async def a_name_that_breaks_the_rules_is_invalid_and_the_cause_names_the_field(env: Env) -> None:
    with pytest.raises(InvalidError) as caught:
        await env.client.create(config_map(env, "Not_A_Name"))
    assert caught.value.code == 422
    assert caught.value.status.details is not None
    assert [c.field for c in caught.value.status.details.causes] == ["metadata.name"]


@check
async def a_namespace_has_to_exist(env: Env) -> None:
    lost = ConfigMap(metadata=ObjectMeta(name="m", namespace="no-such-namespace"))
    with pytest.raises(NotFoundError):
        await env.client.create(lost)


@check
async def a_new_object_may_not_name_a_version(env: Env) -> None:
    made = config_map(env)
    made.metadata.resource_version = "5"
    with pytest.raises(ApiError) as caught:
        await env.client.create(made)
    assert caught.value.code == 400


@check
async def an_update_of_a_stale_copy_is_a_conflict(env: Env) -> None:
    made = await env.client.create(config_map(env, a="1"))
    first = await env.client.get(ConfigMap, "m", env.namespace)
    first.data = {"a": "2"}
    stored = await env.client.update(first)
    assert int(stored.metadata.resource_version) > int(made.metadata.resource_version)
    made.data = {"a": "3"}
    with pytest.raises(ConflictError) as caught:
        await env.client.update(made)
    assert caught.value.code == 409
    assert (await env.client.get(ConfigMap, "m", env.namespace)).data == {"a": "2"}


@check
async def an_update_without_a_version_takes_whatever_there_is(env: Env) -> None:
    await env.client.create(config_map(env, a="1"))
    updated = await env.client.update(config_map(env, a="2"))
    assert updated.data == {"a": "2"}


@check
async def a_write_that_changes_nothing_makes_no_new_version(env: Env) -> None:
    made = await env.client.create(config_map(env, a="1"))
    updated = await env.client.update(made)
    patched = await env.client.patch(ConfigMap, "m", {"data": {"a": "1"}}, env.namespace)
    assert updated.metadata.resource_version == made.metadata.resource_version
    assert patched.metadata.resource_version == made.metadata.resource_version


@check
async def an_update_keeps_the_fields_the_client_does_not_know(env: Env) -> None:
    aliases = [{"ip": "127.0.0.9", "hostnames": ["nine"]}]
    await env.client.create(pod(env, hostAliases=aliases), resource=PODS)
    read = await env.client.get(Pod, "p", env.namespace)
    read.metadata.labels["new"] = "yes"
    await env.client.update(read)
    stored = await env.client.get(PODS, "p", env.namespace)
    assert stored["spec"]["hostAliases"] == aliases
    assert stored["metadata"]["labels"] == {"new": "yes"}


@check
async def a_dry_run_stores_nothing(env: Env) -> None:
    shown = await env.client.create(config_map(env, "dry"), dry_run=True)
    assert shown.metadata.uid
    assert await is_gone(env, ConfigMap, "dry")
    made = await env.client.create(config_map(env, a="1"))
    made.data = {"a": "2"}
    assert (await env.client.update(made, dry_run=True)).data == {"a": "2"}
    patch = {"data": {"a": "3"}}
    patched = await env.client.patch(ConfigMap, "m", patch, env.namespace, dry_run=True)
    assert patched.data == {"a": "3"}
    assert (await env.client.get(ConfigMap, "m", env.namespace)).data == {"a": "1"}


# Lists and selectors


@check
async def a_list_is_in_order_and_has_a_version(env: Env) -> None:
    for name in ("b", "c", "a"):
        await env.client.create(config_map(env, f"list-{name}"))
    found = await env.client.list(ConfigMap, env.namespace)
    names = [obj.name for obj in found.items if obj.name.startswith("list-")]
    assert names == ["list-a", "list-b", "list-c"]
    assert int(found.resource_version) >= max(
        int(obj.metadata.resource_version) for obj in found.items
    )
    everywhere = await env.client.list(ConfigMap)
    assert {obj.key for obj in found.items} <= {obj.key for obj in everywhere.items}


@check
async def pages_show_one_state_even_if_it_changes_meanwhile(env: Env) -> None:
    for name in "acegi":
        await env.client.create(labelled(env, name, page="yes"))
    first = await env.client.list(ConfigMap, env.namespace, labels="page=yes", limit=2)
    assert [obj.name for obj in first.items] == ["a", "c"]
    await env.client.create(labelled(env, "d", page="yes"))
    await env.client.delete(ConfigMap, "i", env.namespace)
    names, token = ["a", "c"], first.continue_token
    while token:
        page = await env.client.list(
            ConfigMap, env.namespace, labels="page=yes", limit=2, continue_token=token
        )
        assert page.resource_version == first.resource_version
        names += [obj.name for obj in page.items]
        token = page.continue_token
    assert names == ["a", "c", "e", "g", "i"]


@check
async def a_broken_continue_token_is_refused(env: Env) -> None:
    with pytest.raises(ApiError) as caught:
        await env.client.list(ConfigMap, env.namespace, limit=2, continue_token="nonsense")
    assert caught.value.code in (400, 410)


@check
async def label_selectors_select(env: Env) -> None:
    await env.client.create(labelled(env, "a", tier="web", env="x"))
    await env.client.create(labelled(env, "b", tier="db"))
    await env.client.create(labelled(env, "c", other="z"))
    want = {
        "tier=web": ["a"],
        "tier!=web": ["b", "c"],
        "tier in (web,db)": ["a", "b"],
        "tier notin (web)": ["b", "c"],
        "tier": ["a", "b"],
        "!tier": ["c"],
        "tier=web,env=y": [],
    }
    for selector, names in want.items():
        found = await env.client.list(ConfigMap, env.namespace, labels=selector)
        ours = [obj.name for obj in found.items if obj.name in ("a", "b", "c")]
        assert ours == names, selector
    with pytest.raises(ApiError) as caught:
        await env.client.list(ConfigMap, env.namespace, labels="a=(")
    assert caught.value.code == 400


@check
async def field_selectors_select_what_the_kind_offers(env: Env) -> None:
    await env.client.create(pod(env, "a"), resource=PODS)
    await env.client.create(pod(env, "b"), resource=PODS)
    await env.client.bind("b", env.namespace, "node-1")
    want = {
        "metadata.name=a": ["a"],
        "spec.nodeName=node-1": ["b"],
        "spec.nodeName=": ["a"],
        "status.phase=Pending": ["a", "b"],
        "status.phase!=Pending": [],
    }
    for selector, names in want.items():
        found = await env.client.list(Pod, env.namespace, fields=selector)
        assert [obj.name for obj in found.items] == names, selector
    with pytest.raises(ApiError) as caught:
        await env.client.list(Pod, env.namespace, fields="spec.subdomain=x")
    assert caught.value.code == 400


@check
async def events_are_found_by_the_object_they_are_about(env: Env) -> None:
    for name in ("x", "y"):
        about = ObjectReference(kind="Pod", name=name, namespace=env.namespace)
        meta = ObjectMeta(name=f"{name}.1", namespace=env.namespace)
        await env.client.create(Event(metadata=meta, involved_object=about, reason="R"))
    selector = "involvedObject.kind=Pod,involvedObject.name=x"
    found = await env.client.list(Event, env.namespace, fields=selector)
    assert [event.name for event in found.items] == ["x.1"]


# Patches


@check
async def a_merge_patch_sets_and_removes_fields(env: Env) -> None:
    await env.client.create(config_map(env, a="1", b="2"))
    patch = {"data": {"a": None, "c": "3"}, "metadata": {"labels": {"l": "1"}}}
    patched = await env.client.patch(ConfigMap, "m", patch, env.namespace)
    assert patched.data == {"b": "2", "c": "3"}
    assert patched.labels == {"l": "1"}


@check
async def a_merge_patch_that_names_an_old_version_is_a_conflict(env: Env) -> None:
    made = await env.client.create(config_map(env, a="1"))
    patch = {"metadata": {"resourceVersion": made.metadata.resource_version}, "data": {"a": "2"}}
    await env.client.patch(ConfigMap, "m", patch, env.namespace)
    with pytest.raises(ConflictError):
        await env.client.patch(ConfigMap, "m", {**patch, "data": {"a": "3"}}, env.namespace)


@check
async def changes_of_a_copy_go_out_as_a_patch(env: Env) -> None:
    before = await env.client.create(config_map(env, a="1"))
    await env.client.patch(ConfigMap, "m", {"data": {"z": "9"}}, env.namespace)
    after = config_map(env, a="2")
    after.metadata = before.metadata
    patched = await env.client.patch_changes(before, after)
    assert patched.data == {"a": "2", "z": "9"}
    assert await env.client.patch_changes(patched, patched) is patched


@check
async def a_json_patch_applies_in_order_or_not_at_all(env: Env) -> None:
    await env.client.create(config_map(env, a="1"))
    operations = [
        {"op": "test", "path": "/data/a", "value": "1"},
        {"op": "replace", "path": "/data/a", "value": "2"},
        {"op": "add", "path": "/data/b", "value": "3"},
    ]
    patched = await env.client.patch(
        ConfigMap, "m", operations, env.namespace, content_type=wire.JSON_PATCH
    )
    assert patched.data == {"a": "2", "b": "3"}
    with pytest.raises(InvalidError):
        await env.client.patch(
            ConfigMap, "m", operations, env.namespace, content_type=wire.JSON_PATCH
        )


@check
async def a_strategic_patch_changes_one_container(env: Env) -> None:
    await env.client.create(pod(env), resource=PODS)
    patch = {"spec": {"containers": [{"name": "side", "image": "side:2"}]}}
    patched = await env.client.patch(
        PODS, "p", patch, env.namespace, content_type=wire.STRATEGIC_PATCH
    )
    images = [(c["name"], c["image"]) for c in patched["spec"]["containers"]]
    assert images == [("main", "main:1"), ("side", "side:2")]


@check
async def a_custom_resource_takes_no_strategic_patch(env: Env) -> None:
    await env.client.create(widget(env), resource=WIDGETS)
    with pytest.raises(ApiError) as caught:
        await env.client.patch(WIDGETS, "w", {}, env.namespace, content_type=wire.STRATEGIC_PATCH)
    assert caught.value.code == 415


@check
async def conditions_are_merged_by_type(env: Env) -> None:
    await env.client.create(pod(env), resource=PODS)
    for kind, status in (("Ready", "False"), ("Extra", "True"), ("Ready", "True")):
        patch = {"status": {"conditions": [{"type": kind, "status": status}]}}
        patched = await env.client.patch(
            Pod,
            "p",
            patch,
            env.namespace,
            content_type=wire.STRATEGIC_PATCH,
            subresource="status",
        )
    found = {c.type: c.status for c in patched.status.conditions}
    assert found["Ready"] == "True"
    assert found["Extra"] == "True"


# Server-side apply


def manifest(env: Env, **data: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "m", "namespace": env.namespace},
        "data": data,
    }


async def apply_as(env: Env, manager: str, obj: dict[str, Any], **options: Any) -> dict[str, Any]:
    client = type(env.client)(env.client.transport, field_manager=manager)
    resource = WIDGETS if obj["kind"] == "Widget" else MAPS
    return await client.apply(obj, resource, **options)


@check
async def apply_creates_and_then_owns_what_it_names(env: Env) -> None:
    made = await apply_as(env, "one", manifest(env, a="1", b="2"))
    [entry] = made["metadata"]["managedFields"]
    assert (entry["manager"], entry["operation"]) == ("one", "Apply")
    assert entry["fieldsV1"]["f:data"] == {"f:a": {}, "f:b": {}}
    changed = await apply_as(env, "one", manifest(env, a="1"))
    assert changed["data"] == {"a": "1"}


@check
async def applying_the_same_again_makes_no_new_version(env: Env) -> None:
    made = await apply_as(env, "one", manifest(env, a="1"))
    again = await apply_as(env, "one", manifest(env, a="1"))
    assert again["metadata"]["resourceVersion"] == made["metadata"]["resourceVersion"]


@check
async def a_field_of_another_manager_is_a_conflict_unless_forced(env: Env) -> None:
    await apply_as(env, "one", manifest(env, a="1", b="2"))
    with pytest.raises(ConflictError) as caught:
        await apply_as(env, "two", manifest(env, a="9"))
    assert str(caught.value) == 'Apply failed with 1 conflict: conflict with "one": .data.a'
    details = caught.value.status.details
    assert details is not None
    assert [(c.reason, c.field) for c in details.causes] == [("FieldManagerConflict", ".data.a")]
    forced = await apply_as(env, "two", manifest(env, a="9"), force=True)
    assert forced["data"] == {"a": "9", "b": "2"}
    released = await apply_as(env, "one", manifest(env, b="2"))
    assert released["data"] == {"a": "9", "b": "2"}


@check
async def a_plain_write_takes_a_field_from_its_applier(env: Env) -> None:
    await apply_as(env, "one", manifest(env, a="1", b="2"))
    await env.client.patch(ConfigMap, "m", {"data": {"a": "5"}}, env.namespace)
    with pytest.raises(ConflictError):
        await apply_as(env, "one", manifest(env, a="1", b="2"))
    kept = await apply_as(env, "one", manifest(env, b="2"))
    assert kept["data"] == {"a": "5", "b": "2"}


@check
async def appliers_share_a_keyed_list_of_a_custom_resource(env: Env) -> None:
    await apply_as(env, "one", widget(env, parts=[{"name": "x", "value": "1"}]))
    both = await apply_as(env, "two", widget(env, parts=[{"name": "y", "value": "2"}]))
    assert [part["name"] for part in both["spec"]["parts"]] == ["x", "y"]
    one = await apply_as(env, "two", widget(env))
    assert one["spec"]["parts"] == [{"name": "x", "value": "1"}]


# Deletion


@check
async def a_deleted_object_is_gone_and_its_name_is_free(env: Env) -> None:
    first = await env.client.create(config_map(env))
    await env.client.delete(ConfigMap, "m", env.namespace)
    assert await is_gone(env, ConfigMap, "m")
    second = await env.client.create(config_map(env))
    assert second.metadata.uid != first.metadata.uid


@check
async def a_deletion_may_insist_on_one_object_and_version(env: Env) -> None:
    made = await env.client.create(config_map(env))
    with pytest.raises(ConflictError):
        await env.client.delete(ConfigMap, "m", env.namespace, uid="another")
    with pytest.raises(ConflictError):
        await env.client.delete(ConfigMap, "m", env.namespace, resource_version="1")
    meta = made.metadata
    await env.client.delete(
        ConfigMap, "m", env.namespace, uid=meta.uid, resource_version=meta.resource_version
    )
    assert await is_gone(env, ConfigMap, "m")


@check
async def an_object_with_a_finalizer_waits_for_it(env: Env) -> None:
    made = config_map(env)
    made.metadata.finalizers = ["example.com/wait"]
    await env.client.create(made)
    await env.client.delete(ConfigMap, "m", env.namespace)
    waiting = await env.client.get(ConfigMap, "m", env.namespace)
    assert waiting.deleting
    await env.client.delete(ConfigMap, "m", env.namespace)
    more = {"metadata": {"finalizers": ["example.com/wait", "example.com/more"]}}
    with pytest.raises((InvalidError, ConflictError)):
        await env.client.patch(ConfigMap, "m", more, env.namespace)
    await env.client.patch(ConfigMap, "m", {"metadata": {"finalizers": None}}, env.namespace)
    assert await is_gone(env, ConfigMap, "m")


@check
async def a_collection_is_deleted_by_labels(env: Env) -> None:
    for name, tier in (("a", "x"), ("b", "x"), ("c", "y")):
        await env.client.create(labelled(env, name, tier=tier))
    await env.client.delete_collection(ConfigMap, env.namespace, labels="tier=x")
    found = await env.client.list(ConfigMap, env.namespace, labels="tier")
    assert [obj.name for obj in found.items] == ["c"]


async def family(env: Env, *, block: bool = False) -> ConfigMap:
    owner = await env.client.create(config_map(env, "owner"))
    reference = OwnerReference(
        api_version="v1",
        kind="ConfigMap",
        name="owner",
        uid=owner.metadata.uid,
        block_owner_deletion=block or None,
    )
    child = config_map(env, "child")
    child.metadata.owner_references = [reference]
    await env.client.create(child)
    return owner


@check
async def dependents_follow_their_owner_in_the_background(env: Env) -> None:
    if not env.collects_garbage:
        pytest.skip("no garbage collector here")
    await family(env)
    await env.client.delete(ConfigMap, "owner", env.namespace, propagation="Background")
    assert await is_gone(env, ConfigMap, "owner")
    await eventually(lambda: is_gone(env, ConfigMap, "child"), "the dependent goes")


@check
async def an_owner_deleted_in_the_foreground_goes_last(env: Env) -> None:
    if not env.collects_garbage:
        pytest.skip("no garbage collector here")
    await family(env, block=True)
    hold = {"metadata": {"finalizers": ["example.com/hold"]}}
    await env.client.patch(ConfigMap, "child", hold, env.namespace)
    await env.client.delete(ConfigMap, "owner", env.namespace, propagation="Foreground")

    async def child_is_deleting() -> bool:
        return (await env.client.get(ConfigMap, "child", env.namespace)).deleting

    await eventually(child_is_deleting, "the dependent is being deleted")
    owner = await env.client.get(ConfigMap, "owner", env.namespace)
    assert owner.deleting
    assert owner.metadata.finalizers == ["foregroundDeletion"]
    await env.client.patch(ConfigMap, "child", {"metadata": {"finalizers": None}}, env.namespace)
    await eventually(lambda: is_gone(env, ConfigMap, "child"), "the dependent goes")
    await eventually(lambda: is_gone(env, ConfigMap, "owner"), "the owner goes")


@check
async def orphaned_dependents_stay_and_forget_their_owner(env: Env) -> None:
    if not env.collects_garbage:
        pytest.skip("no garbage collector here")
    await family(env)
    await env.client.delete(ConfigMap, "owner", env.namespace, propagation="Orphan")
    await eventually(lambda: is_gone(env, ConfigMap, "owner"), "the owner goes")
    child = await env.client.get(ConfigMap, "child", env.namespace)
    assert child.metadata.owner_references == []
    assert not child.deleting


@check
async def a_deleted_namespace_takes_everything_with_it(env: Env) -> None:
    if not env.collects_garbage:
        pytest.skip("no namespace controller here")
    name = f"{env.namespace}-x"
    await env.client.create(Namespace(metadata=ObjectMeta(name=name)))
    await env.client.create(ConfigMap(metadata=ObjectMeta(name="m", namespace=name)))
    await env.client.delete(Namespace, name)

    async def gone() -> bool:
        try:
            await env.client.get(Namespace, name)
        except NotFoundError:
            return True
        return False

    await eventually(gone, "the namespace goes")
    found = await env.client.list(ConfigMap, name)
    assert found.items == []


# Custom resources and subresources


@check
async def a_custom_resource_is_defaulted_pruned_and_validated(env: Env) -> None:
    made = await env.client.create(widget(env, unknown="x"), resource=WIDGETS)
    assert made["spec"] == {"size": 1, "colour": "green"}
    with pytest.raises(InvalidError) as caught:
        await env.client.create(widget(env, "bad", size=0), resource=WIDGETS)
    assert caught.value.status.details is not None
    assert [c.field for c in caught.value.status.details.causes] == ["spec.size"]
    with pytest.raises(InvalidError):
        await env.client.create(widget(env, "bad", size="big"), resource=WIDGETS)


@check
async def spec_and_status_are_written_apart(env: Env) -> None:
    made = await env.client.create({**widget(env), "status": {"phase": "Lie"}}, resource=WIDGETS)
    assert "status" not in made
    assert made["metadata"]["generation"] == 1
    both = {"spec": {"size": 7}, "status": {"phase": "Up"}}
    status = await env.client.patch(WIDGETS, "w", both, env.namespace, subresource="status")
    assert (status["spec"]["size"], status["status"]) == (1, {"phase": "Up"})
    assert status["metadata"]["generation"] == 1
    both["status"]["phase"] = "Down"
    spec = await env.client.patch(WIDGETS, "w", both, env.namespace)
    assert (spec["spec"]["size"], spec["status"]) == (7, {"phase": "Up"})
    assert spec["metadata"]["generation"] == 2
    labels = {"metadata": {"labels": {"a": "b"}}}
    same = await env.client.patch(WIDGETS, "w", labels, env.namespace)
    assert same["metadata"]["generation"] == 2


@check
async def an_object_is_scaled_without_knowing_its_kind(env: Env) -> None:
    await env.client.create(widget(env, replicas=2), resource=WIDGETS)
    status = {"status": {"replicas": 1, "selector": "a=b"}}
    await env.client.patch(WIDGETS, "w", status, env.namespace, subresource="status")
    scale = await env.client.get_scale(WIDGETS, "w", env.namespace)
    assert scale.spec.replicas == 2
    assert scale.status is not None
    assert (scale.status.replicas, scale.status.selector) == (1, "a=b")
    assert (await env.client.set_scale(WIDGETS, "w", 5, env.namespace)).spec.replicas == 5
    assert (await env.client.get(WIDGETS, "w", env.namespace))["spec"]["replicas"] == 5


@check
async def a_pod_is_bound_once(env: Env) -> None:
    made = await env.client.create(pod(env), resource=PODS)
    with pytest.raises(ConflictError):
        await env.client.bind("p", env.namespace, "node-1", uid="another")
    await env.client.bind("p", env.namespace, "node-1", uid=made["metadata"]["uid"])
    assert (await env.client.get(Pod, "p", env.namespace)).spec.node_name == "node-1"
    with pytest.raises(ConflictError):
        await env.client.bind("p", env.namespace, "node-2")


@check
async def an_evicted_pod_goes(env: Env) -> None:
    await env.client.create(pod(env), resource=PODS)
    await env.client.evict("p", env.namespace)
    await eventually(lambda: is_gone(env, Pod, "p"), "the pod goes")


@check
async def a_lease_keeps_its_microseconds(env: Env) -> None:
    at = "2026-01-02T03:04:05.123456Z"
    meta = ObjectMeta(name="l", namespace=env.namespace)
    spec = LeaseSpec(holder_identity="x", lease_duration_seconds=15, renew_time=at)
    made = await env.client.create(Lease(metadata=meta, spec=spec))
    assert made.spec.renew_time == at


# Watches


@contextlib.asynccontextmanager
async def watching(
    env: Env, kind: Any = ConfigMap, **options: Any
) -> AsyncIterator[Callable[[], Awaitable[WatchEvent[Any]]]]:
    """Give a function that returns the next event which is no bookmark."""
    stream = env.client.watch(kind, env.namespace, **options)

    async def following() -> WatchEvent[Any]:
        async with asyncio.timeout(PATIENCE_S):
            async for event in stream:
                if event.type != "BOOKMARK":
                    return event
        raise AssertionError("the watch ended")

    try:
        yield following
    finally:
        await stream.aclose()  # type: ignore[attr-defined]  # An async generator.


async def version_of(env: Env) -> str:
    return (await env.client.list(ConfigMap, env.namespace)).resource_version


@check
async def a_watch_tells_every_change_in_order(env: Env) -> None:
    async with watching(env, resource_version=await version_of(env)) as following:
        await env.client.create(config_map(env, a="1"))
        await env.client.patch(ConfigMap, "m", {"data": {"a": "2"}}, env.namespace)
        await env.client.delete(ConfigMap, "m", env.namespace)
        events = [await following() for _ in range(3)]
    assert [event.type for event in events] == ["ADDED", "MODIFIED", "DELETED"]
    assert [event.object.data for event in events] == [{"a": "1"}, {"a": "2"}, {"a": "2"}]
    versions = [int(event.resource_version) for event in events]
    assert versions == sorted(set(versions))


@check
async def a_watch_goes_on_where_another_ended(env: Env) -> None:
    async with watching(env, resource_version=await version_of(env)) as following:
        await env.client.create(config_map(env, "first"))
        last = (await following()).resource_version
    await env.client.create(config_map(env, "second"))
    await env.client.delete(ConfigMap, "first", env.namespace)
    async with watching(env, resource_version=last) as following:
        events = [await following() for _ in range(2)]
    assert [(e.type, e.object.name) for e in events] == [("ADDED", "second"), ("DELETED", "first")]


@check
async def a_watch_by_labels_sees_objects_come_and_go(env: Env) -> None:
    version = await version_of(env)
    async with watching(env, resource_version=version, labels="in=yes") as following:
        await env.client.create(labelled(env, "m"))
        for labels in ({"in": "yes"}, {"other": "1"}, {"in": None}):
            await env.client.patch(ConfigMap, "m", {"metadata": {"labels": labels}}, env.namespace)
        events = [await following() for _ in range(3)]
    assert [event.type for event in events] == ["ADDED", "MODIFIED", "DELETED"]


@check
async def a_watch_by_name_sees_one_object(env: Env) -> None:
    version = await version_of(env)
    async with watching(env, resource_version=version, fields="metadata.name=b") as following:
        await env.client.create(config_map(env, "a"))
        await env.client.create(config_map(env, "b"))
        assert (await following()).object.name == "b"


@check
async def a_watch_ends_when_its_time_is_over(env: Env) -> None:
    version = await version_of(env)
    async with asyncio.timeout(PATIENCE_S):
        async for event in env.client.watch(
            ConfigMap, env.namespace, resource_version=version, timeout_s=1
        ):
            assert event.type == "BOOKMARK"


@check
async def a_quiet_watch_gets_bookmarks_to_resume_from(env: Env) -> None:
    if not env.bookmark_s:
        pytest.skip("a bookmark comes once a minute")
    version = await version_of(env)
    await env.client.create(Lease(metadata=ObjectMeta(name="l", namespace=env.namespace)))
    seen = [
        event
        async for event in env.client.watch(
            ConfigMap, env.namespace, resource_version=version, timeout_s=int(env.bookmark_s)
        )
    ]
    assert seen
    assert {event.type for event in seen} == {"BOOKMARK"}
    assert int(seen[-1].resource_version) >= int(version)
    async with watching(env, resource_version=seen[-1].resource_version) as following:
        await env.client.create(config_map(env))
        assert (await following()).type == "ADDED"


@check
async def a_version_that_is_no_longer_kept_is_an_expired_error(env: Env) -> None:
    version = "1"
    if not env.keeps_history:
        version = await version_of(env)
        for number in range(100):
            await env.client.patch(
                Namespace, env.namespace, {"metadata": {"labels": {"n": str(number)}}}
            )
    with pytest.raises(ExpiredError):
        await asyncio.wait_for(drained(env, version), PATIENCE_S)


async def drained(env: Env, version: str) -> None:
    async for _ in env.client.watch(ConfigMap, env.namespace, resource_version=version):
        pass


@check
async def an_informer_follows(env: Env) -> None:
    for name in "abc":
        await env.client.create(config_map(env, name, v="1"))
    informer = Informer(env.client, ConfigMap, env.namespace, rng=random.Random(1))
    informer.add_index("v", lambda obj: [obj.data.get("v", "")])
    task = asyncio.create_task(informer.run())
    try:
        async with asyncio.timeout(PATIENCE_S):
            await informer.wait_synced()
        await env.client.patch(ConfigMap, "a", {"data": {"v": "2"}}, env.namespace)
        await env.client.delete(ConfigMap, "b", env.namespace)
        await env.client.create(config_map(env, "d", v="2"))

        async def caught_up() -> bool:
            return [o.name for o in informer.by_index("v", "2")] == ["a", "d"]

        await eventually(caught_up, "the informer catches up")
        assert informer.get("b", env.namespace) is None
        assert informer.get("c", env.namespace) is not None
    finally:
        task.cancel()
        await asyncio.wait({task})


# Discovery


@check
async def a_resource_is_found_by_any_of_its_names(env: Env) -> None:
    discovery = Discovery(env.client)
    for word in ("widgets", "Widget", "wdg", "widgets.conformance.spinney.dev"):
        found = await discovery.resolve(word)
        assert (found.path("n", "x"), found.namespaced) == (WIDGETS.path("n", "x"), True), word
    for word in ("po", "pod", "pods", "Pod"):
        assert (await discovery.resolve(word)).path() == "/api/v1/pods"
    assert not (await discovery.resolve("no")).namespaced
    assert (await discovery.for_kind("v1", "ConfigMap")).plural == "configmaps"
    assert (await discovery.for_kind(WIDGETS.api_version, "Widget")).plural == "widgets"
    assert [r.plural for r in await discovery.category("conformance")] == ["widgets"]
