"""The port for other routers: who may speak there, what is taken, whence the secret."""

from __future__ import annotations

import asyncio
import io
import json
import os
import stat
from contextlib import asynccontextmanager

import aiohttp
import msgspec
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from tests.router.fake_workers import AsgiServer
from tests.router.test_sharing import LIMITS, shared_of

from spinney.cmd.router import router
from spinney.cmd.router_peering import Meet, users_own
from spinney.errors import BadInputError
from spinney.router.limits import Limits
from spinney.router.metrics import RouterMetrics
from spinney.router.peer_app import MOST_MESSAGE_BYTES, HttpPeers, PeerApp
from spinney.router.peer_seal import HEADER, MOST_AGE_S, Refusal, Seal
from spinney.router.sharing import (
    LOAD_PATH,
    MOST_FAILING,
    MOST_LOADS,
    MOST_MODELS,
    MOST_TOKENS,
    PeerLoads,
)
from spinney.router.stories import Stories
from spinney.router.turns import MOST_STANDINGS

SECRET = b"0123456789abcdef"
MESSAGE = json.dumps(["a", 0, 1, {"d0": [1, 2, 3, 4]}]).encode()


class At:
    """A clock that stands."""

    def __init__(self, at_s):
        self.at_s = at_s

    def now(self):
        return self.at_s


def test_only_the_same_secret_request_and_minute_have_the_same_seal():
    seal = Seal(SECRET, At(1000.0))
    made = seal.question("POST", "/x", b"body")

    assert seal.refusal(made, "POST", "/x", b"body") is None
    assert Seal(b"another secret!!", At(1000.0)).refusal(made, "POST", "/x", b"body") == "secret"
    assert seal.refusal(made, "GET", "/x", b"body") == "secret"
    assert seal.refusal(made, "POST", "/y", b"body") == "secret"
    assert seal.refusal(made, "POST", "/x", b"bodies") == "secret"
    assert seal.refusal("1001.0" + made[6:], "POST", "/x", b"body") == "secret"
    for apart_s in (-MOST_AGE_S - 1, MOST_AGE_S + 1):
        later = Seal(SECRET, At(1000.0 + apart_s))
        assert later.refusal(made, "POST", "/x", b"body") == "clock"


@given(st.text(max_size=40))
def test_whatever_stands_in_the_header_is_refused_and_breaks_nothing(text):
    assert Seal(SECRET, At(1000.0)).refusal(text, "POST", "/x", b"") in set(Refusal)


def test_an_answer_belongs_to_its_question():
    seal = Seal(SECRET, At(1000.0))
    one, other = (seal.question("GET", path, b"") for path in ("/a", "/b"))

    assert seal.answers(seal.answer(one, b"yes"), one, b"yes")
    assert not seal.answers(seal.answer(one, b"yes"), other, b"yes")
    assert not seal.answers(seal.answer(one, b"yes"), one, b"no")
    assert not seal.answers("", one, b"yes")
    assert not seal.answers("\udcff", one, b"yes")


# Over HTTP


@asynccontextmanager
async def port(secret=SECRET):
    """Listen for other routers; give the server, what is shared, and the figures."""
    registry, shared = CollectorRegistry(), shared_of("me")
    metrics = RouterMetrics(registry, shared.ledger)
    loads = PeerLoads("me", shared, LIMITS)
    app = PeerApp(loads, Seal(secret, At(1000.0)), metrics, Stories(Limits()))
    server = AsgiServer(app)
    await server.start()
    try:
        yield server, shared, registry
    finally:
        await server.stop()


@pytest.mark.parametrize(
    ("sealed", "body", "status", "reason"),
    [
        (None, MESSAGE, 401, "unsealed"),
        ("x", MESSAGE, 401, "unsealed"),
        ((b"fedcba9876543210", 1000.0), MESSAGE, 401, "secret"),
        ((SECRET, 1000.0 + 2 * MOST_AGE_S), MESSAGE, 401, "clock"),
        ((SECRET, 1000.0), b"{}", 400, "malformed"),
        ((SECRET, 1000.0), b"[" * 100_000, 400, "malformed"),
        ((SECRET, 1000.0), b'["a",0,1,{},[],null,' + b"[" * 500_000, 400, "malformed"),
        ((SECRET, 1000.0), b'["a",0,1,{"d0":[1,2,3,-4]}]', 400, "malformed"),
        ((SECRET, 1000.0), b" " * (MOST_MESSAGE_BYTES + 1), 413, "too-large"),
    ],
)
def test_what_is_not_from_a_router_is_refused_counted_and_changes_nothing(
    sealed, body, status, reason
):
    async def main():
        async with port() as (server, shared, registry), aiohttp.ClientSession() as client:
            seal = sealed
            if isinstance(sealed, tuple):
                secret, at_s = sealed
                seal = Seal(secret, At(at_s)).question("POST", LOAD_PATH, body)
            headers = {} if seal is None else {HEADER: seal}
            async with client.post(
                server.url + LOAD_PATH, data=io.BytesIO(body), headers=headers
            ) as said:
                assert said.status == status, await said.text()
                assert len(await said.text()) > 20, "it says why"
            labels = {"reason": reason}
            assert registry.get_sample_value("spinney_router_peer_refusals_total", labels) == 1
            assert shared.ledger.loads_now() == {}

    asyncio.run(main())


@pytest.mark.parametrize("path", ["/metrics", "/debug/requests/r1"])
def test_figures_and_stories_are_for_those_who_have_the_secret(path):
    async def main():
        async with (
            port() as (server, _, _),
            aiohttp.ClientSession() as client,
            client.get(server.url + path) as said,
        ):
            assert said.status == 401
            assert "spinney_router" not in await said.text()

    asyncio.run(main())


def test_routers_with_one_secret_understand_each_other_and_with_two_do_not(caplog):
    async def main():
        async with port() as (server, shared, _):
            for secret, want in ((SECRET, True), (b"fedcba9876543210", False)):
                links = HttpPeers(Seal(secret, At(1000.0)))
                answer = await links.post(server.url, LOAD_PATH, MESSAGE)
                assert (answer is not None) is want
                await links.aclose()
            assert shared.ledger.loads_now()["d0"].decode_requests == 3

    asyncio.run(main())


def test_an_answer_of_who_has_not_the_secret_counts_for_nothing():
    async def main():
        async def impostor(_scope, receive, send):
            await receive()
            body = json.dumps(["b", True, [1, 2, 3]]).encode()
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": body})

        server = AsgiServer(impostor)
        await server.start()
        links = HttpPeers(Seal(SECRET, At(1000.0)))
        assert await links.post(server.url, LOAD_PATH, MESSAGE) is None
        await links.aclose()
        await server.stop()

    asyncio.run(main())


STAND = [1, 1, 1, 1.0]
MANY = {f"x{number}": [0, 0, 0, 0] for number in range(MOST_STANDINGS + 1)}


@pytest.mark.parametrize(
    "message",
    [
        ["", 0, 1, {}],
        ["a" * 65, 0, 1, {}],
        ["a", -1, 1, {}],
        ["a", 0, 0, {}],
        ["a", 0, 2**54, {}],
        ["a", 0, 1.5, {}],
        ["a", 0, 1, {"d0": [1, 2, 3]}],
        ["a", 0, 1, {"d0": [2**20 + 1, 0, 0, 0]}],
        ["a", 0, 1, {"d0": [0, 2**40 + 1, 0, 0]}],
        ["a", 0, 1, {"d" * 513: [0, 0, 0, 0]}],
        ["a", 0, 1, {f"d{number}": [0, 0, 0, 0] for number in range(MOST_LOADS + 1)}],
        ["a", 0, 1, {}, [f"d{number}" for number in range(MOST_FAILING + 1)]],
        ["a", 0, 1, {}, [], {"m": {"t": [-1, 0, 0, 0]}}],
        ["a", 0, 1, {}, [], {"m": {"t": [0, 2**20 + 1, 0, 0]}}],
        ["a", 0, 1, {}, [], {"m": {"t": [0, 0, 2**53 + 1, 0]}}],
        ["a", 0, 1, {}, [], {"m": {"t": [0, 0, 0, 1e300]}}],
        ["a", 0, 1, {}, [], {"m": MANY}],
        ["a", 0, 1, {}, [], {f"m{number}": {"t": STAND} for number in range(MOST_MODELS + 1)}],
    ],
)
def test_a_message_with_a_figure_out_of_bounds_is_refused_as_a_whole(message):
    async def main():
        shared = shared_of("me")
        loads = PeerLoads("me", shared, LIMITS)
        loads.take(json.dumps(["a", 0, 1, {"d0": [1, 1, 1, 1]}, ["d0"], {"m": {"t": STAND}}]), 0.0)
        before = shared.ledger.loads_now()["d0"]
        with pytest.raises(msgspec.DecodeError):
            loads.take(msgspec.json.encode(message), 0.0)
        assert shared.ledger.loads_now() == {"d0": before}
        assert shared.turns.shared

    asyncio.run(main())


def test_an_older_router_is_understood():
    async def main():
        shared = shared_of("me")
        loads = PeerLoads("me", shared, LIMITS)
        loads.take(json.dumps(["a", 0, 1, {"d0": [1, 1, 1, 1]}]), 0.0)
        assert set(shared.ledger.loads_now()) == {"d0"}

    asyncio.run(main())


NAMES = st.text(max_size=3)
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | NAMES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=12,
)
FIGURES = st.integers(-(2**70), 2**70) | st.floats()
NEAR = st.tuples(
    st.sampled_from(["a", "b", "me", ""]),
    st.integers(-1, 3),
    st.integers(-1, 3),
    st.dictionaries(NAMES, st.lists(FIGURES, min_size=4, max_size=4), max_size=3),
    st.lists(NAMES, max_size=3),
    st.none() | st.dictionaries(
        NAMES,
        st.dictionaries(NAMES, st.lists(FIGURES, min_size=4, max_size=4), max_size=3),
        max_size=2,
    ),
)  # fmt: skip


@given(st.lists(NEAR | ANYTHING, max_size=6))
def test_no_message_breaks_a_router_or_leaves_anything_after_it_aged_out(messages):
    async def main():
        shared = shared_of("me")
        loads = PeerLoads("me", shared, LIMITS)
        for at, message in enumerate(messages):
            try:
                loads.take(msgspec.json.encode(message), at / 10)
            except (msgspec.DecodeError, msgspec.EncodeError):
                continue
            for load in shared.ledger.loads_now().values():
                assert 0 <= load.context_tokens <= 3 * MOST_TOKENS
        loads.expire(at_s := len(messages) + 2 * LIMITS.peer_expiry_s)
        assert shared.ledger.loads_now() == {}
        assert not shared.turns.shared
        assert shared.faults.avoided(at_s) == frozenset()

    asyncio.run(main())


# Where the secret comes from

ELSEWHERE = Meet("0.0.0.0", 9100, (), None)


@pytest.mark.parametrize(
    ("meet", "message"),
    [
        (ELSEWHERE, "--peer-secret-file FILE"),
        (Meet("10.0.0.7", 9100, (), None), "SPINNEY_PEER_SECRET"),
        (Meet("router.example", 9100, (), None), "who speaks to"),
        (Meet("127.0.0.1", None, ("http://10.0.0.7:9100",), None), "--peer http://10.0.0.7:9100"),
        (Meet("127.0.0.1", None, (), "/nowhere/secret"), "No such file"),
    ],
)
def test_without_a_secret_nothing_is_shared_with_other_hosts(meet, message):
    with pytest.raises(BadInputError, match=message):
        meet.secret({})


def test_a_secret_is_read_from_a_file_or_the_environment(tmp_path):
    file = tmp_path / "secret"
    file.write_bytes(SECRET + b"\n")

    assert Meet("0.0.0.0", 9100, (), str(file)).secret({}) == SECRET
    assert ELSEWHERE.secret({"SPINNEY_PEER_SECRET": SECRET.decode() + "\n"}) == SECRET
    with pytest.raises(BadInputError, match="has 5 bytes"):
        ELSEWHERE.secret({"SPINNEY_PEER_SECRET": "short"})


def test_processes_of_one_router_have_a_secret_of_their_own():
    alone = Meet("0.0.0.0", None, (), None)

    assert alone.secret({}) != alone.secret({}), "nobody else is to know it"


def test_routers_of_one_user_on_one_host_find_the_same_secret(tmp_path):
    environ = {"SPINNEY_HOME": str(tmp_path / "home")}
    one = Meet("127.0.0.2", 9100, (), None).secret(environ)
    other = Meet("127.0.0.1", None, ("http://[::1]:9100", "http://localhost:1"), None)

    assert other.secret(environ) == one
    (file,) = (tmp_path / "home").iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    os.chmod(file, 0o644)
    with pytest.raises(BadInputError, match="mode 600"):
        users_own(file)


def test_a_router_that_others_could_reach_does_not_start_without_a_secret(monkeypatch):
    monkeypatch.delenv("SPINNEY_PEER_SECRET", raising=False)
    flags = ["--worker", "both=http://h:1", "--host", "0.0.0.0", "--peer-port", "9100"]
    result = CliRunner().invoke(router, flags)

    assert isinstance(result.exception, BadInputError)
    assert "openssl rand" in str(result.exception)
