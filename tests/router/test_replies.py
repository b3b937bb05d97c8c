"""What a client is told where there is no answer, and how long it may take to read it."""

from __future__ import annotations

import asyncio
import json

import pytest
from tests.router.run_parts import DECODE, Client, a_failure, a_run

from spinney.router.admission import RefusedError
from spinney.router.picker import Nobody
from spinney.router.relay import ClientStalledError
from spinney.router.replies import Replies
from spinney.router.upstream import FailureKind, WorkerFailure
from spinney.router.workers import Stage


def told(tell):
    async def main():
        client = Client()
        await tell(Replies(1.0), a_run(client))
        return client

    return asyncio.run(main())


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        (FailureKind.TIMEOUT, 504),
        (FailureKind.REFUSED, 502),
        (FailureKind.BROKEN, 502),
        (FailureKind.BAD_ANSWER, 502),
    ],
)
def test_a_worker_without_an_answer_is_an_error_of_the_gateway(kind, status):
    client = told(lambda replies, run: replies.failed(run, a_failure(kind)))

    assert (client.status, client.headers["retry-after"]) == (status, "2")
    assert (client.error["type"], client.error["code"]) == ("server_error", "worker_failed")


def refusal(status, body, headers=None):
    return WorkerFailure.refusal(DECODE, Stage.DECODE, status, body, headers)


def test_a_workers_own_error_is_passed_on_as_it_is():
    body = json.dumps({"error": {"message": "too long", "code": "x", "param": "prompt"}}).encode()
    failure = refusal(429, body, {"retry-after": "17", "x-else": "no"})
    client = told(lambda replies, run: replies.failed(run, failure))

    assert client.status == 429
    assert client.told[1]["body"] == body
    assert client.headers == {
        "content-type": "application/json",
        "retry-after": "17",
        "content-length": str(len(body)),
    }


def test_an_error_that_is_none_of_openais_gets_their_form():
    client = told(lambda replies, run: replies.failed(run, refusal(500, b"<html>oops")))

    assert (client.status, client.error["code"]) == (500, "worker_failed")
    assert "oops" in client.error["message"]
    assert "retry-after" not in client.headers


@pytest.mark.parametrize(("status", "kind"), [(429, "rate_limit_error"), (503, "server_error")])
def test_a_refusal_says_when_to_ask_again(status, kind):
    refused = RefusedError("full", status=status, code="queue_full", retry_after_s=7)
    client = told(lambda replies, run: replies.refused(run, refused))

    assert (client.status, client.headers["retry-after"]) == (status, "7")
    assert (client.error["type"], client.error["code"]) == (kind, "queue_full")


@pytest.mark.parametrize(
    ("rejected", "found"),
    [({}, "no worker is known"), ({"not ready": 2, "draining": 1}, "1 draining, 2 not ready")],
)
def test_where_nobody_can_serve_it_is_said_why(rejected, found):
    client = told(lambda replies, run: replies.nobody(run, Nobody(rejected)))

    assert (client.status, client.headers["retry-after"]) == (503, "2")
    assert client.error["code"] == "no_worker"
    assert found in client.error["message"]


def test_a_client_that_does_not_read_its_whole_answer_is_given_up():
    async def main():
        client = Client()
        client.hold = asyncio.Event()
        with pytest.raises(ClientStalledError):
            async with asyncio.timeout(5):
                await Replies(0.02).whole(a_run(client), 200, [], b"x")

    asyncio.run(main())
