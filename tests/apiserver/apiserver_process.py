"""A real API server in a process of its own: ``python apiserver_process.py DIRECTORY``.

Prints its URL when it is ready; stops at the end of its input.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from spinney.clock import SystemClock
from spinney.errors import BadInputError
from spinney.ids import RandomIds
from spinney.local.apiserver import tls
from spinney.local.apiserver.http import HttpServer
from spinney.local.apiserver.persistence import SqlitePersistence
from spinney.local.apiserver.server import ApiServer


async def main(directory: Path) -> None:
    clock = SystemClock()
    persistence = SqlitePersistence(directory / "state.db")
    api = ApiServer(clock, RandomIds(), persistence=persistence)
    found = tls.credentials(directory / "pki", clock.now())
    server = HttpServer(api, found, "127.0.0.1", 0)
    tls.write_kubeconfig(directory / "kubeconfig", server.url, found, namespace="default")
    running = asyncio.create_task(server.run())
    sys.stdout.write(f"{server.url}\n")
    sys.stdout.flush()
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    await reader.read()
    server.stop()
    await running
    await api.close()


try:
    asyncio.run(main(Path(sys.argv[1])))
except BadInputError as error:
    sys.exit(str(error))
