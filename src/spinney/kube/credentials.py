"""How a client proves who it is: a bearer token that may change while the process runs.

A token comes from a kubeconfig, from a file that the kubelet rotates, or from a program that a
cloud provides. Whichever it is, a 401 means that it has to be fetched afresh, once per request.
"""

from __future__ import annotations

import asyncio
import base64
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from spinney.errors import BadInputError

if TYPE_CHECKING:
    from lightkube.config.models import User, UserExec

EXEC_TIMEOUT_S = 60.0
"""How long a credential program may take; some of them ask a person."""
_EXEC_VERSIONS = tuple(f"client.authentication.k8s.io/{v}" for v in ("v1", "v1beta1"))


class Credential(Protocol):
    """Gives the value of the ``Authorization`` header."""

    async def header(self, *, fresh: bool) -> str:
        """Return the value, or an empty string for none; *fresh* when the last was refused."""
        ...


class FixedHeader:
    """A header that never changes."""

    def __init__(self, value: str = "") -> None:
        self._value = value

    async def header(self, *, fresh: bool) -> str:  # Nothing can be renewed.
        """Return the value."""
        return self._value


class TokenFile:
    """A token in a file that somebody else keeps current."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)
        self._value = ""

    async def header(self, *, fresh: bool) -> str:
        """Return the token; read it when there is none yet or the last was refused."""
        if fresh or not self._value:
            self._value = f"Bearer {self._read()}"
        return self._value

    def _read(self) -> str:
        try:
            return self._path.read_text().strip()
        except OSError as error:
            raise BadInputError(f"token file {self._path} cannot be read: {error}") from error


class ExecToken:
    """A token that a program prints as an ExecCredential."""

    def __init__(self, plugin: UserExec) -> None:
        if plugin.apiVersion not in _EXEC_VERSIONS:
            raise BadInputError(
                f"kubeconfig: exec apiVersion {plugin.apiVersion!r} is none of "
                f"{', '.join(_EXEC_VERSIONS)}"
            )
        self._plugin = plugin
        self._value = ""
        self._one_at_a_time = asyncio.Lock()

    async def header(self, *, fresh: bool) -> str:
        """Return the token; run the program when there is none yet or the last was refused."""
        refused = self._value if fresh else None
        async with self._one_at_a_time:
            # Of many requests that were refused at once, the first renews it for all.
            if not self._value or self._value == refused:
                self._value = f"Bearer {await self._run()}"
            return self._value

    async def _run(self) -> str:
        plugin = self._plugin
        info = {"apiVersion": plugin.apiVersion, "kind": "ExecCredential", "spec": {}}
        env = {**os.environ, "KUBERNETES_EXEC_INFO": msgspec.json.encode(info).decode()}
        env.update((variable.name, variable.value) for variable in plugin.env or ())
        try:
            process = await asyncio.create_subprocess_exec(
                plugin.command, *(plugin.args or ()), env=env, stdout=asyncio.subprocess.PIPE
            )
        except OSError as error:
            hint = f" {plugin.installHint}" if plugin.installHint else ""
            raise BadInputError(
                f"kubeconfig: cannot run {plugin.command!r}: {error}.{hint}"
            ) from error
        try:
            async with asyncio.timeout(EXEC_TIMEOUT_S):
                output, _ = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
        if process.returncode:
            raise BadInputError(
                f"kubeconfig: {plugin.command!r} ended with exit code {process.returncode}"
            )
        return self._token_in(output)

    def _token_in(self, output: bytes) -> str:
        try:
            credential: Any = msgspec.json.decode(output)
            token = credential["status"]["token"]
        except (msgspec.DecodeError, KeyError, TypeError) as error:
            raise BadInputError(
                f"kubeconfig: {self._plugin.command!r} printed no ExecCredential with a token"
            ) from error
        return str(token)


def credential_of(user: User | None) -> Credential:
    """Return how *user* of a kubeconfig proves who it is, other than by certificate."""
    if user is None:
        return FixedHeader()
    if user.token_file:
        return TokenFile(user.token_file)
    if user.token:
        return FixedHeader(f"Bearer {user.token}")
    if user.exec is not None:
        return ExecToken(user.exec)
    if user.username and user.password:
        pair = base64.b64encode(f"{user.username}:{user.password}".encode()).decode()
        return FixedHeader(f"Basic {pair}")
    if user.auth_provider:
        raise BadInputError(
            "kubeconfig: auth-provider is not supported; use an exec plugin or a token"
        )
    return FixedHeader()
