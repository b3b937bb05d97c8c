"""The Kubernetes API over HTTP: any server that a kubeconfig or a service account names.

lightkube reads kubeconfigs and builds TLS contexts; aiohttp carries the bytes. A watch is
split into lines as bytes and decoded by nobody but its reader: this is what keeps an event cheap.
"""

from __future__ import annotations

import asyncio
import os
import ssl
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING

import aiohttp
import msgspec
import yaml
from lightkube.config import kubeconfig as lk
from lightkube.config.client_adapter import verify_cluster
from lightkube.config.models import User
from lightkube.core.exceptions import ConfigError
from yarl import URL

from spinney.errors import BadInputError
from spinney.kube.credentials import Credential, FixedHeader, credential_of
from spinney.kube.transport import ApiRequest, ApiResponse, TransportError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

CONNECT_TIMEOUT_S = 10.0
REPLY_TIMEOUT_S = 60.0
"""How long a whole reply may take; a server gives up after as much."""
WATCH_IDLE_TIMEOUT_S = 150.0
"""A watch silent for longer counts as broken: servers send a bookmark about every minute."""
MAX_CONNECTIONS = 1024
"""Connections at a time: each watch and each followed log holds one."""
MAX_LINE_BYTES = 32 * 1024 * 1024
"""The longest event; the objects of a server are a tenth of it at most."""

_HEADERS = {"User-Agent": "spinney", "Accept-Encoding": "identity"}


class HttpTransport:
    """A `Transport` to *server* (``https://host:port``, perhaps with a path)."""

    def __init__(
        self,
        server: str,
        *,
        tls: ssl.SSLContext | None = None,
        credential: Credential | None = None,
        namespace: str = "default",
    ) -> None:
        self.server = server.rstrip("/")
        self.namespace = namespace
        """The namespace that the kubeconfig's context or the service account names."""
        self._tls = tls
        self._credential = credential or FixedHeader()
        self._session: aiohttp.ClientSession | None = None
        self._streams: set[_Stream] = set()
        self._closed = False

    @classmethod
    def from_kubeconfig(
        cls, path: str | os.PathLike[str], context: str | None = None
    ) -> HttpTransport:
        """Return the transport to the cluster of *context*, or of the file's current context.

        Raises BadInputError when the file is missing, malformed, or has no such context.
        """
        try:
            found = lk.KubeConfig.from_file(path).get(context)
            assert found is not None, "get() without a default raises instead"
            return cls._of(found)
        except (
            ConfigError,
            OSError,
            KeyError,
            TypeError,
            AttributeError,
            ValueError,
            yaml.YAMLError,
            msgspec.MsgspecError,
        ) as error:
            said = f"no entry {error}" if isinstance(error, KeyError) else error
            raise BadInputError(f"kubeconfig {os.fspath(path)}: {said}") from error

    @classmethod
    def in_cluster(cls, account: str = lk.SERVICE_ACCOUNT) -> HttpTransport:
        """Return the transport that a pod's service account gives; raise BadInputError."""
        try:
            found = lk.KubeConfig.from_service_account(account).get()
            assert found is not None, "a service account is a complete configuration"
            return cls._of(found)
        except (ConfigError, KeyError, OSError) as error:
            raise BadInputError(f"service account {account}: {error}") from error

    @classmethod
    def from_environment(cls, account: str = lk.SERVICE_ACCOUNT) -> HttpTransport:
        """Return the transport to the cluster this process belongs to.

        The first that is there of: the files in ``KUBECONFIG``, the pod's service account,
        ``~/.kube/config``. Raises BadInputError when there is none.
        """
        named = [part for part in os.environ.get("KUBECONFIG", "").split(os.pathsep) if part]
        if named:
            there = [part for part in named if Path(part).is_file()]
            if not there:
                raise BadInputError(f"KUBECONFIG names {', '.join(named)}, which is not there")
            return cls.from_kubeconfig(there[0])
        if Path(account, "token").is_file():
            return cls.in_cluster(account)
        default = Path(lk.DEFAULT_KUBECONFIG).expanduser()
        if default.is_file():
            return cls.from_kubeconfig(default)
        raise BadInputError(
            f"no cluster: KUBECONFIG is not set, and neither a service account in {account} nor "
            f"{default} is there; set KUBECONFIG"
        )

    @classmethod
    def _of(cls, config: lk.SingleConfig) -> HttpTransport:
        user = config.user or User()
        server = config.cluster.server
        tls = None
        if server.startswith("https:"):
            tls = verify_cluster(config.cluster, user, config.abs_file)
            if config.cluster.insecure:
                tls.check_hostname = False
                tls.verify_mode = ssl.CERT_NONE
        if user.token_file:
            user = msgspec.structs.replace(user, token_file=str(config.abs_file(user.token_file)))
        return cls(server, tls=tls, credential=credential_of(user), namespace=config.namespace)

    async def send(self, request: ApiRequest) -> ApiResponse:
        """Return the reply, of whatever status; raise TransportError if there is none."""
        watching = request.query.get("watch") in ("true", "1")
        following = request.query.get("follow") in ("true", "1")
        try:
            response = await self._exchange(request, watching=watching, following=following)
            if response.status < 400 and (watching or following):
                return _reply(response, stream=self._stream(response, lines=watching))
            async with response:
                return _reply(response, body=await response.read())
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise TransportError(f"{self.server}: {_said(error)}") from error

    async def close(self) -> None:
        """Close all connections; open streams end with TransportError."""
        self._closed = True
        for stream in list(self._streams):
            stream.break_off()
        if self._session is not None:
            await self._session.close()

    async def _exchange(
        self, request: ApiRequest, *, watching: bool, following: bool
    ) -> aiohttp.ClientResponse:
        response = await self._once(request, watching, following, fresh=False)
        if response.status == 401:
            response.release()
            response = await self._once(request, watching, following, fresh=True)
        return response

    async def _once(
        self, request: ApiRequest, watching: bool, following: bool, *, fresh: bool
    ) -> aiohttp.ClientResponse:
        headers = {"Accept": request.accept}
        if request.body:
            headers["Content-Type"] = request.content_type
        authorization = await self._credential.header(fresh=fresh)
        if authorization:
            headers["Authorization"] = authorization
        return await self._open().request(
            request.method,
            URL(self.server + request.path),
            params=dict(request.query),
            data=request.body or None,
            headers=headers,
            timeout=_timeout(watching, following),
            allow_redirects=False,
        )

    def _stream(self, response: aiohttp.ClientResponse, *, lines: bool) -> _Stream:
        stream = _Stream(self.server, response, lines, self._streams.discard)
        self._streams.add(stream)
        return stream

    def _open(self) -> aiohttp.ClientSession:
        """Return the session, which can only be made where a loop runs."""
        if self._closed:
            raise TransportError(f"{self.server}: the transport is closed")
        if self._session is None:
            connector = aiohttp.TCPConnector(
                limit=MAX_CONNECTIONS, ssl=self._tls if self._tls is not None else True
            )
            self._session = aiohttp.ClientSession(connector=connector, headers=_HEADERS)
        return self._session


class _Stream:
    """What arrives of one reply, in whole *lines* or as it comes."""

    def __init__(
        self,
        server: str,
        response: aiohttp.ClientResponse,
        lines: bool,
        on_close: Callable[[_Stream], None],
    ) -> None:
        self._server = server
        self._response = response
        self._lines = lines
        self._on_close = on_close
        self._ready: deque[bytes] = deque()
        self._begun: list[bytes] = []
        self._begun_bytes = 0
        self._ended = False

    def __aiter__(self) -> _Stream:
        return self

    async def __anext__(self) -> bytes:
        while not self._ready:
            if self._ended:
                self._close()
                raise StopAsyncIteration
            chunk = await self._read()
            if not self._lines:
                self._ended = not chunk
                self._ready.extend([chunk] if chunk else ())
            elif chunk:
                self._take(chunk)
            else:
                # A last line without newline is for its reader to judge.
                self._ended = True
                self._ready.extend([b"".join(self._begun)] if self._begun else ())
        return self._ready.popleft()

    async def aclose(self) -> None:
        """Let go of the connection; it cannot be used again, as the rest is not wanted."""
        self._close()

    def _close(self) -> None:
        self._ended = True
        self._ready.clear()
        self._response.close()
        self._on_close(self)

    def break_off(self) -> None:
        """Make the reader fail: aiohttp closes connections without waking who reads from them."""
        self._response.content.set_exception(aiohttp.ClientConnectionError("closed by this side"))

    async def _read(self) -> bytes:
        try:
            return await self._response.content.readany()
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            self._close()
            raise TransportError(f"{self._server}: the stream broke: {_said(error)}") from error

    def _take(self, chunk: bytes) -> None:
        *whole, rest = chunk.split(b"\n")
        if whole:
            whole[0] = b"".join([*self._begun, whole[0]])
            self._begun, self._begun_bytes = [], 0
            self._ready.extend(line for line in whole if line)
        if rest:
            self._begun.append(rest)
            self._begun_bytes += len(rest)
            if self._begun_bytes > MAX_LINE_BYTES:
                self._close()
                raise TransportError(f"{self._server}: an event of over {MAX_LINE_BYTES} bytes")


def _timeout(watching: bool, following: bool) -> aiohttp.ClientTimeout:
    if watching:
        return aiohttp.ClientTimeout(sock_connect=CONNECT_TIMEOUT_S, sock_read=WATCH_IDLE_TIMEOUT_S)
    if following:
        # A program may say nothing for days.
        return aiohttp.ClientTimeout(sock_connect=CONNECT_TIMEOUT_S)
    return aiohttp.ClientTimeout(total=REPLY_TIMEOUT_S, sock_connect=CONNECT_TIMEOUT_S)


def _reply(
    response: aiohttp.ClientResponse,
    *,
    body: bytes = b"",
    stream: AsyncIterator[bytes] | None = None,
) -> ApiResponse:
    headers = {name.lower(): value for name, value in response.headers.items()}
    return ApiResponse(
        response.status,
        body,
        stream,
        content_type=headers.get("content-type", "").split(";")[0],
        headers=headers,
    )


def _said(error: BaseException) -> str:
    if isinstance(error, asyncio.TimeoutError) and not str(error):
        return "no answer in time"
    return str(error) or type(error).__name__
