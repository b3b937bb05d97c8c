"""Watches: what they deliver, from when, in which shape, and when they end."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import msgspec
import pytest

from spinney.clock import LoopClock
from spinney.ids import RandomIds
from spinney.kube.transport import MERGE_PATCH, ApiRequest
from spinney.local.apiserver.server import ApiServer

CMS = "/api/v1/namespaces/default/configmaps"
PODS = "/api/v1/namespaces/default/pods"


def cm(name: str, **labels: str) -> dict[str, Any]:
    return {"metadata": {"name": name, "labels": labels}}


def label(api: Any, name: str, **labels: str | None) -> Any:
    patch = {"metadata": {"labels": labels}}
    return api.ok("PATCH", f"{CMS}/{name}", patch, content_type=MERGE_PATCH)


def shown(events: list[tuple[str, Any]]) -> list[tuple[str, str]]:
    return [(kind, obj["metadata"]["name"]) for kind, obj in events]


def test_a_watch_from_a_list_sees_all_that_follows(api):
    api.ok("POST", CMS, cm("old"))
    version = api.ok("GET", CMS)["metadata"]["resourceVersion"]
    api.ok("POST", CMS, cm("a"))
    changed = label(api, "a", x="1")
    api.ok("DELETE", f"{CMS}/a")
    events = api.watch(CMS, 3, resourceVersion=version)
    assert shown(events) == [("ADDED", "a"), ("MODIFIED", "a"), ("DELETED", "a")]
    assert events[1][1] == changed
    versions = [int(obj["metadata"]["resourceVersion"]) for _, obj in events]
    assert versions == [int(version) + i for i in (1, 2, 3)]
    resumed = api.watch(CMS, 1, resourceVersion=str(versions[1]))
    assert shown(resumed) == [("DELETED", "a")]


def test_a_watch_without_a_version_starts_with_what_is_there(api):
    api.ok("POST", CMS, cm("a"))
    api.ok("POST", CMS, cm("b"))
    assert shown(api.watch(CMS, 2)) == [("ADDED", "a"), ("ADDED", "b")]


def test_initial_events_end_with_a_bookmark_that_says_so(api):
    api.ok("POST", CMS, cm("a"))
    events = api.watch(CMS, 2, sendInitialEvents="true", allowWatchBookmarks="true")
    assert [kind for kind, _ in events] == ["ADDED", "BOOKMARK"]
    assert events[1][1]["metadata"]["annotations"] == {"k8s.io/initial-events-end": "true"}


def test_other_namespaces_and_names_are_not_seen(api):
    version = str(api.server.store.revision)
    api.ok("POST", "/api/v1/namespaces/kube-system/configmaps", cm("x"))
    api.ok("POST", CMS, cm("y"))
    api.ok("POST", CMS, cm("z"))
    assert shown(api.watch(CMS, 1, resourceVersion=version)) == [("ADDED", "y")]
    one = api.watch(CMS, 1, resourceVersion=version, fieldSelector="metadata.name=z")
    assert shown(one) == [("ADDED", "z")]
    assert shown(api.watch(f"{CMS}/z", 1, resourceVersion=version)) == [("ADDED", "z")]
    every = api.watch("/api/v1/configmaps", 3, resourceVersion=version)
    assert [name for _, name in shown(every)] == ["x", "y", "z"]


def test_what_comes_to_match_is_added_and_what_stops_is_deleted(api):
    version = str(api.server.store.revision)
    api.ok("POST", CMS, cm("a"))
    label(api, "a", x="1")
    label(api, "a", x="1", y="2")
    label(api, "a", x="2")
    label(api, "a", y="3")
    label(api, "a", x="1")
    api.ok("DELETE", f"{CMS}/a")
    events = api.watch(CMS, 5, resourceVersion=version, labelSelector="x=1")
    assert [kind for kind, _ in events] == ["ADDED", "MODIFIED", "DELETED", "ADDED", "DELETED"]
    assert events[2][1]["metadata"]["labels"] == {"x": "1", "y": "2"}
    assert int(events[2][1]["metadata"]["resourceVersion"]) == int(version) + 4


def test_pods_can_be_watched_by_node(api):
    version = str(api.server.store.revision)
    for name in ("p", "q"):
        spec = {"containers": [{"name": "m", "image": "i"}]}
        api.ok("POST", PODS, {"metadata": {"name": name}, "spec": spec})
    body = {"metadata": {"name": "q"}, "target": {"name": "n1"}}
    api.ok("POST", f"{PODS}/q/binding", body)
    events = api.watch(PODS, 1, resourceVersion=version, fieldSelector="spec.nodeName=n1")
    assert shown(events) == [("ADDED", "q")]


@pytest.mark.parametrize("version", ["1", "999999"])
def test_a_version_outside_the_history_is_an_error_in_the_stream(make_api, version):
    api = make_api(history_events=3)
    for i in range(6):
        api.ok("POST", CMS, cm(f"c{i}"))
    (event,) = api.watch(CMS, 1, resourceVersion=version)
    assert event[0] == "ERROR"
    assert (event[1]["code"], event[1]["reason"]) == (410, "Expired")


def test_a_watch_that_falls_behind_is_ended_and_holds_no_memory(make_api):
    api = make_api(queue_changes=5)

    async def scenario() -> list[Any]:
        request = ApiRequest("GET", CMS, {"watch": "true"})
        slow = await api.server.send(request)
        for i in range(20):
            body = msgspec.json.encode(cm(f"c{i}"))
            await api.server.send(ApiRequest("POST", CMS, {}, body))
        assert api.server.store.watcher_count() == 0
        assert slow.stream is not None
        return [msgspec.json.decode(line) async for line in slow.stream]

    events = api.runner.run(scenario())
    assert [(e["type"], e["object"].get("code")) for e in events] == [("ERROR", 410)]


def test_an_event_is_encoded_once_for_all_who_watch(api):
    async def scenario() -> list[bytes]:
        request = ApiRequest("GET", CMS, {"watch": "true"})
        streams = [(await api.server.send(request)).stream for _ in range(3)]
        await api.server.send(ApiRequest("POST", CMS, {}, msgspec.json.encode(cm("a"))))
        lines = [await anext(stream) for stream in streams]  # type: ignore[arg-type]
        for stream in streams:
            await stream.aclose()  # type: ignore[union-attr]
        return lines

    first, second, third = api.runner.run(scenario())
    assert first is second is third


def test_closing_a_stream_ends_its_watch(api):
    api.ok("POST", CMS, cm("a"))
    api.watch(CMS, 1)
    assert api.server.store.watcher_count() == 0


def test_closing_the_server_ends_every_watch(api):
    async def scenario() -> list[bytes]:
        response = await api.server.send(ApiRequest("GET", CMS, {"watch": "true"}))
        assert response.stream is not None

        async def read() -> list[bytes]:
            return [line async for line in response.stream]  # type: ignore[union-attr]

        reading = asyncio.create_task(read())
        await asyncio.sleep(0)
        api.server.end_streams()
        async with asyncio.timeout(1):
            return await reading

    assert api.runner.run(scenario()) == []


class _JumpingLoop(asyncio.SelectorEventLoop):
    """A loop whose time jumps to the next timer when nothing else is to be done."""

    def __init__(self) -> None:
        super().__init__()
        self._at = 0.0

    def time(self) -> float:
        return self._at

    def _run_once(self) -> None:
        if not self._ready and self._scheduled:  # type: ignore[attr-defined]
            self._at = max(self._at, self._scheduled[0].when())  # type: ignore[attr-defined]
        super()._run_once()  # type: ignore[misc]


def test_a_quiet_watch_gets_bookmarks_and_ends_at_its_timeout():
    async def scenario() -> list[tuple[str, str]]:
        loop = asyncio.get_running_loop()
        server = ApiServer(LoopClock(loop), RandomIds(random.Random(1)))
        query = {"watch": "true", "allowWatchBookmarks": "true", "timeoutSeconds": "150"}
        response = await server.send(ApiRequest("GET", PODS, query))
        await server.send(ApiRequest("POST", CMS, {}, msgspec.json.encode(cm("a"))))
        assert response.stream is not None
        events = [msgspec.json.decode(line) async for line in response.stream]
        assert loop.time() == pytest.approx(150)
        assert events[0]["object"]["spec"] == {"containers": None}
        versions = {e["object"]["metadata"]["resourceVersion"] for e in events}
        assert versions == {str(server.store.revision)}
        return [e["type"] for e in events]

    with asyncio.Runner(loop_factory=_JumpingLoop) as runner:
        assert runner.run(scenario()) == ["BOOKMARK"] * 3
