"""Owners and dependents: background, foreground, orphan; and after a restart."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from spinney.kube.transport import MERGE_PATCH
from spinney.local.apiserver.collector import EVENT_TTL_S
from spinney.local.apiserver.persistence import SqlitePersistence

CMS = "/api/v1/namespaces/default/configmaps"
SECRETS = "/api/v1/namespaces/default/secrets"


def make(
    api: Any, name: str, *owners: Any, block: bool = True, path: str = CMS, **meta: Any
) -> Any:
    references = [
        {
            "apiVersion": owner["apiVersion"],
            "kind": owner["kind"],
            "name": owner["metadata"]["name"],
            "uid": owner["metadata"]["uid"],
            "blockOwnerDeletion": block,
        }
        for owner in owners
    ]
    body = {"metadata": {"name": name, "ownerReferences": references, **meta}}
    return api.ok("POST", path, body)


def names(api: Any, path: str = CMS) -> list[str]:
    return [item["metadata"]["name"] for item in api.ok("GET", path)["items"]]


def unhold(api: Any, name: str) -> None:
    patch = {"metadata": {"finalizers": None}}
    api.ok("PATCH", f"{CMS}/{name}", patch, content_type=MERGE_PATCH)
    api.settle()


def test_dependents_follow_their_owner_through_generations(api):
    owner = make(api, "owner")
    child = make(api, "child", owner)
    make(api, "grandchild", child, path=SECRETS)
    make(api, "other")
    api.ok("DELETE", f"{CMS}/owner")
    api.settle()
    assert (names(api), names(api, SECRETS)) == (["other"], [])


def test_an_object_stays_while_one_of_its_owners_does(api):
    one, two = make(api, "one"), make(api, "two")
    make(api, "child", one, two)
    api.ok("DELETE", f"{CMS}/one")
    api.settle()
    child = api.ok("GET", f"{CMS}/child")
    assert [r["name"] for r in child["metadata"]["ownerReferences"]] == ["two"]
    api.ok("DELETE", f"{CMS}/two")
    api.settle()
    assert names(api) == []


def test_a_dependent_made_after_its_owner_is_gone_is_collected(api):
    owner = make(api, "owner")
    api.ok("DELETE", f"{CMS}/owner")
    make(api, "owner")
    make(api, "late", owner)
    api.settle()
    assert names(api) == ["owner"]


def test_dependents_of_owners_of_unknown_kinds_are_left_alone(api):
    stranger = {
        "apiVersion": "x.io/v1",
        "kind": "Stranger",
        "metadata": {"name": "s", "uid": "nobody"},
    }
    make(api, "child", stranger)
    api.settle()
    assert names(api) == ["child"]


def test_foreground_deletion_waits_for_dependents_that_block(api):
    owner = make(api, "owner")
    make(api, "child", owner, finalizers=["x.io/hold"])
    make(api, "free", owner, block=False, finalizers=["x.io/hold"])
    reply = api.ok("DELETE", f"{CMS}/owner", {"propagationPolicy": "Foreground"})
    assert reply["metadata"]["finalizers"] == ["foregroundDeletion"]
    api.settle()
    assert names(api) == ["child", "free", "owner"]
    assert "deletionTimestamp" in api.ok("GET", f"{CMS}/child")["metadata"]
    unhold(api, "child")
    assert names(api) == ["free"]


def test_foreground_deletion_goes_bottom_up(api):
    owner = make(api, "owner")
    child = make(api, "child", owner)
    make(api, "grandchild", child, finalizers=["x.io/hold"])
    api.ok("DELETE", f"{CMS}/owner", {"propagationPolicy": "Foreground"})
    api.settle()
    assert names(api) == ["child", "grandchild", "owner"]
    unhold(api, "grandchild")
    assert names(api) == []


@pytest.mark.parametrize("body", [{"propagationPolicy": "Orphan"}, {"orphanDependents": True}])
def test_orphans_stay_and_forget_their_owner(api, body):
    owner = make(api, "owner")
    make(api, "child", owner)
    api.ok("DELETE", f"{CMS}/owner", body)
    api.settle()
    assert names(api) == ["child"]
    assert "ownerReferences" not in api.ok("GET", f"{CMS}/child")["metadata"]


def test_what_was_not_finished_is_finished_after_a_restart(make_api, tmp_path):
    path = tmp_path / "state.db"
    api = make_api(persistence=SqlitePersistence(path))
    owner = make(api, "owner")
    for i in range(5):
        make(api, f"child{i}", owner)
    api.ok("POST", "/api/v1/namespaces", {"metadata": {"name": "n"}})
    api.ok("POST", "/api/v1/namespaces/n/configmaps", {"metadata": {"name": "a"}})
    # The collector stops before it can do anything, as in a crash.
    api.server._collector.close()
    api.ok("DELETE", f"{CMS}/owner")
    api.ok("DELETE", "/api/v1/namespaces/n")
    assert len(names(api)) == 5
    api.runner.run(api.server.close())
    api.options["persistence"] = SqlitePersistence(path)
    api.start()
    api.ok("GET", CMS)
    api.settle()
    assert names(api) == []
    assert api.call("GET", "/api/v1/namespaces/n")[0] == 404


def test_events_are_forgotten_after_their_time(api):
    path = "/api/v1/namespaces/default/events"
    api.ok("POST", path, {"metadata": {"name": "old"}, "reason": "r"})
    api.ok("POST", path, {"metadata": {"name": "renewed"}, "reason": "r"})
    api.clock.at += EVENT_TTL_S / 2
    api.ok("PATCH", f"{path}/renewed", {"count": 2}, content_type=MERGE_PATCH)
    api.clock.at += EVENT_TTL_S / 2 + 1
    api.ok("POST", path, {"metadata": {"name": "new"}, "reason": "r"})
    api.settle()
    assert names(api, path) == ["new", "renewed"]


def test_an_item_that_fails_is_tried_again(api, monkeypatch):
    owner = make(api, "owner")
    make(api, "child", owner)
    delete = api.server._objects.delete
    failures = iter([RuntimeError("no")])

    def failing(*args: Any) -> Any:
        for failure in failures:
            raise failure
        return delete(*args)

    api.server._objects.delete = failing
    monkeypatch.setattr("spinney.local.apiserver.collector.RETRY_S", 0.001)
    api.runner.run(_delete_quietly(api))
    assert names(api) == []


async def _delete_quietly(api: Any) -> None:
    api.server.store.remove(api.server.store.get("configmaps", "default", "owner"))
    async with asyncio.timeout(5):
        while not api.server.settled:  # noqa: ASYNC110 - Nothing signals it.
            await asyncio.sleep(0.001)


def test_the_same_requests_make_the_same_history_byte_for_byte(make_api):
    def history() -> list[bytes]:
        api = make_api()
        owners = [make(api, f"owner{i}") for i in range(3)]
        for i in range(20):
            make(api, f"child{i}", owners[i % 3], owners[(i + 1) % 3])
        api.ok("DELETE", f"{CMS}/owner1", {"propagationPolicy": "Foreground"})
        api.ok("DELETE", f"{CMS}/owner0")
        api.ok("DELETE", f"{CMS}/owner2", {"propagationPolicy": "Orphan"})
        api.settle()
        return [
            change.line("DELETED" if change.new is None else "MODIFIED")
            for change in api.server.store._history
        ]

    first = history()
    assert len(first) > 60
    assert history() == first
