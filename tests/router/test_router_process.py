"""``spinney router`` as a process: starting, refusing bad flags, draining on SIGTERM."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import sys
from contextlib import suppress

import aiohttp
import pytest
from click.testing import CliRunner
from tests.router.fake_workers import QUICK, Fabric, FakeWorker, until

from spinney.cmd.router import listen, router
from spinney.errors import BadInputError, SpinneyError
from spinney.router.workers import Role

START = "import sys; from spinney.cmd.router import router; router(sys.argv[1:])"


@pytest.mark.e2e
def test_sigterm_lets_the_running_stream_finish_and_exits_with_zero():
    async def main():
        worker = FakeWorker("d0", Role.DECODE, Fabric(), "m")
        worker.hold_mid_stream = asyncio.Event()
        await worker.server.start()
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", START, "--port", "0", "--log-json"),
            *("--worker", f"decode={worker.server.url}"),
            stderr=asyncio.subprocess.PIPE,
        )
        async with asyncio.timeout(20), aiohttp.ClientSession() as client:
            url = json.loads(await process.stderr.readline())["url"]
            await healthy(client, url)
            body = {"model": "m", "prompt": "p", "stream": True}
            async with client.post(url + "/v1/completions", json=body) as response:
                assert await response.content.readany()
                process.send_signal(signal.SIGTERM)
                refused = 0
                while refused != 503:
                    async with client.post(url + "/v1/completions", json=body) as other:
                        refused = other.status
                        other.close()
                worker.hold_mid_stream.set()
                rest = await response.read()
            assert rest.endswith(b"data: [DONE]\n\n")
            _, log = await process.communicate()
        await worker.server.stop()
        return process.returncode, log

    code, log = asyncio.run(main())

    assert code == 0, log.decode()


async def healthy(client, url):
    while True:
        async with client.get(url + "/health") as response:
            if response.status == 200:
                return
        await asyncio.sleep(0.02)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--worker", "x=http://h:1"], "ROLE=URL"),
        (["--worker", "both=http://h:1", "--worker", "decode=http://h:1"], "named twice"),
        (["--worker", "both=http://h:1", "--selector", "a=b"], "exclude"),
        (["--selector", "a b"], "label selector"),
        (["--worker", "both=http://h:1", "--peer", "h:9100"], "write http://host:port"),
        (["--worker", "both=http://h:1", "--processes", "2", "--peer-port", "8000"], "the same"),
    ],
)
def test_bad_flags_are_refused_before_anything_starts(flags, message):
    result = CliRunner().invoke(router, flags)

    assert isinstance(result.exception, BadInputError)
    assert message in str(result.exception)


def test_a_port_in_use_is_said():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(SpinneyError, match="choose another --port"):
            listen("127.0.0.1", port, 1.0)


def test_a_stalled_clients_connection_is_ended_by_the_kernel():
    async def main():
        with listen("127.0.0.1", 0, QUICK.idle_stream_deadline_s) as listener:
            ended = asyncio.Event()

            async def flood(_reader, writer):
                with suppress(OSError):
                    while True:
                        writer.write(b"x" * 65536)
                        await writer.drain()
                writer.close()
                ended.set()

            server = await asyncio.start_server(flood, sock=listener)
            with socket.socket() as client:
                client.setblocking(False)
                address = listener.getsockname()
                await asyncio.get_running_loop().sock_connect(client, address)
                await until(ended.is_set, "the connection is ended")
            server.close()

    asyncio.run(main())
