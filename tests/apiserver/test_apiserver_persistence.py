"""What was acknowledged survives the death of the process; one process owns a database."""

from __future__ import annotations

import asyncio
import sqlite3
from typing import Any

import aiohttp
import msgspec
import pytest

from spinney.errors import BadInputError
from spinney.kube.transport import MERGE_PATCH, ApiRequest
from spinney.local.apiserver.persistence import SqlitePersistence

CMS = "/api/v1/namespaces/default/configmaps"


def restarted(api: Any, path: Any) -> Any:
    api.runner.run(api.server.close())
    api.options["persistence"] = SqlitePersistence(path)
    api.start()
    return api


def test_a_restart_keeps_objects_and_continues_their_versions(make_api, tmp_path):
    path = tmp_path / "state.db"
    api = make_api(persistence=SqlitePersistence(path))
    api.ok("POST", CMS, {"metadata": {"name": "gone"}})
    kept = api.ok("POST", CMS, {"metadata": {"name": "kept", "labels": {"a": "b"}}})
    api.ok("DELETE", f"{CMS}/gone")
    version = api.ok("GET", CMS)["metadata"]["resourceVersion"]
    restarted(api, path)
    found = api.ok("GET", CMS, labelSelector="a=b")
    assert found["items"] == [kept]
    assert found["metadata"]["resourceVersion"] == version
    new = api.ok("POST", CMS, {"metadata": {"name": "new"}})
    assert int(new["metadata"]["resourceVersion"]) == int(version) + 1


def test_watches_resume_from_the_newest_version_and_older_ones_are_gone(make_api, tmp_path):
    path = tmp_path / "state.db"
    api = make_api(persistence=SqlitePersistence(path))
    old = api.ok("POST", CMS, {"metadata": {"name": "a"}})["metadata"]["resourceVersion"]
    newest = api.ok("POST", CMS, {"metadata": {"name": "b"}})["metadata"]["resourceVersion"]
    restarted(api, path)
    api.ok("POST", CMS, {"metadata": {"name": "c"}})
    ((kind, obj),) = api.watch(CMS, 1, resourceVersion=newest)
    assert (kind, obj["metadata"]["name"]) == ("ADDED", "c")
    ((kind, obj),) = api.watch(CMS, 1, resourceVersion=old)
    assert (kind, obj["code"]) == ("ERROR", 410)


def test_writes_of_one_turn_are_one_transaction_and_seen_only_after_it(make_api, tmp_path):
    persistence = SqlitePersistence(tmp_path / "state.db")
    api = make_api(persistence=persistence)
    batches: list[int] = []
    write = persistence.write

    def counting(objects: Any, revision: int) -> None:
        batches.append(len(objects))
        write(objects, revision)

    persistence.write = counting  # type: ignore[method-assign]

    async def scenario() -> None:
        watch = await api.server.send(ApiRequest("GET", CMS, {"watch": "true"}))
        bodies = [msgspec.json.encode({"metadata": {"name": f"c{i}"}}) for i in range(10)]
        tasks = [
            asyncio.create_task(api.server.send(ApiRequest("POST", CMS, {}, body)))
            for body in bodies
        ]
        get = asyncio.create_task(api.server.send(ApiRequest("GET", f"{CMS}/c0")))
        reading = asyncio.create_task(anext(watch.stream))  # type: ignore[arg-type]
        await asyncio.sleep(0)
        # The requests are carried out; nothing is written, so nobody knows of them.
        assert batches == []
        assert not any(task.done() for task in [*tasks, get, reading])
        replies = await asyncio.gather(*tasks)
        assert [reply.status for reply in replies] == [201] * 10
        assert (await get).status == 200
        await reading
        await watch.stream.aclose()  # type: ignore[union-attr]

    api.runner.run(scenario())
    assert batches == [10]


def test_a_server_whose_state_cannot_be_written_stops_answering(make_api, tmp_path):
    persistence = SqlitePersistence(tmp_path / "state.db")
    api = make_api(persistence=persistence)

    def full(objects: Any, revision: int) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    persistence.write = full  # type: ignore[method-assign]
    status, reply = api.call("POST", CMS, {"metadata": {"name": "a"}})
    assert (status, "disk is full" in reply["message"]) == (500, True)
    assert api.call("GET", f"{CMS}/a")[0] == 500
    assert api.call("GET", "/readyz")[0] == 500


def test_a_database_has_one_owner(tmp_path, start_server):
    first = start_server(tmp_path)
    second = start_server(tmp_path)
    code, said = second.stop()
    assert code == 1
    assert "in use by another process" in said
    assert first.process.poll() is None


@pytest.mark.parametrize("content", [b"this is no database at all" * 100])
def test_a_file_that_is_no_database_is_an_error(tmp_path, content):
    path = tmp_path / "state.db"
    path.write_bytes(content)
    with pytest.raises(BadInputError, match="cannot be opened"):
        SqlitePersistence(path)


@pytest.mark.e2e
def test_every_acknowledged_write_survives_kill_9(tmp_path, start_server):
    acknowledged: dict[str, int] = {}
    deleted: set[str] = set()
    for round_ in range(3):
        server = start_server(tmp_path)
        asyncio.run(write_until_killed(server, round_, acknowledged, deleted))
    server = start_server(tmp_path)
    found = asyncio.run(read_all(server))
    assert len(acknowledged) > 50
    for name, value in acknowledged.items():
        if name in deleted:
            assert name not in found
        else:
            # A write that was under way may have been made; none that was answered is missing.
            assert found[name] >= value, name


async def write_until_killed(
    server: Any, round_: int, acknowledged: dict[str, int], deleted: set[str]
) -> None:
    """Write from eight clients until there is much; then kill the server in the midst of it."""

    async def client(session: aiohttp.ClientSession, number: int) -> None:
        for i in range(100_000):
            name = f"r{round_}-c{number}-{i}"
            body = {"metadata": {"name": name}, "data": {"value": "0"}}
            async with session.post(CMS, json=body) as reply:
                assert reply.status == 201
                await reply.read()
            acknowledged[name] = 0
            patch = {"data": {"value": "1"}}
            headers = {"content-type": MERGE_PATCH}
            async with session.patch(f"{CMS}/{name}", json=patch, headers=headers) as reply:
                assert reply.status == 200
                await reply.read()
            acknowledged[name] = 1
            if i % 3 == 0:
                async with session.delete(f"{CMS}/{name}") as reply:
                    assert reply.status == 200
                    await reply.read()
                deleted.add(name)

    async def killer() -> None:
        before = len(acknowledged)
        while len(acknowledged) < before + 60 + round_ * 17:  # noqa: ASYNC110 - Any client's.
            await asyncio.sleep(0.001)
        server.kill()

    async with session_of(server) as session:
        clients = [asyncio.create_task(client(session, n)) for n in range(8)]
        await killer()
        results = await asyncio.gather(*clients, return_exceptions=True)
    assert all(isinstance(result, aiohttp.ClientError) for result in results), results


async def read_all(server: Any) -> dict[str, int]:
    async with session_of(server) as session, session.get(CMS) as reply:
        items = (await reply.json())["items"]
    return {item["metadata"]["name"]: int(item["data"]["value"]) for item in items}


def session_of(server: Any) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        server.url,
        headers={"authorization": f"Bearer {server.token}"},
        connector=aiohttp.TCPConnector(ssl=server.trust()),
    )


@pytest.mark.parametrize("since", ["", "old"])
def test_a_watch_that_starts_before_a_commit_sees_each_change_once(make_api, tmp_path, since):
    api = make_api(persistence=SqlitePersistence(tmp_path / "state.db"))
    version = api.ok("GET", CMS)["metadata"]["resourceVersion"]
    query = {"watch": "true"} | ({"resourceVersion": version} if since else {})

    def post(name: str) -> Any:
        body = msgspec.json.encode({"metadata": {"name": name}})
        return api.server.send(ApiRequest("POST", CMS, {}, body))

    async def scenario() -> list[str]:
        watching = api.server.send(ApiRequest("GET", CMS, query))
        _, watch = await asyncio.gather(post("a"), watching)
        await post("b")
        lines = [await anext(watch.stream) for _ in range(2)]
        await watch.stream.aclose()
        return [msgspec.json.decode(line)["object"]["metadata"]["name"] for line in lines]

    assert api.runner.run(scenario()) == ["a", "b"]
