"""Which resources a cluster serves, and which one a person means by ``pcs`` or ``pods.v1``.

The API lists its groups, and each group version its resources. The answers are kept for the life
of the object; a word that they do not know makes them be read once more, since CRDs may have
been installed meanwhile.
"""

from __future__ import annotations

import asyncio
import difflib
from typing import TYPE_CHECKING

import msgspec

from spinney.api.resource import Resource
from spinney.errors import BadInputError
from spinney.kube.errors import ApiError, NotFoundError
from spinney.kube.transport import ApiRequest
from spinney.log import get_logger

if TYPE_CHECKING:
    from spinney.kube.client import KubeClient

MAX_PARALLEL = 8
"""Group versions asked for at a time."""

log = get_logger("discovery")


class _Versions(msgspec.Struct):
    versions: list[str] = []


class _GroupVersion(msgspec.Struct, rename="camel"):
    group_version: str


class _Group(msgspec.Struct, rename="camel"):
    name: str
    versions: list[_GroupVersion] = []
    preferred_version: _GroupVersion | None = None


class _Groups(msgspec.Struct):
    groups: list[_Group] = []


class _Served(msgspec.Struct, rename="camel"):
    name: str
    kind: str
    namespaced: bool
    singular_name: str = ""
    short_names: list[str] = []
    categories: list[str] = []
    verbs: list[str] = []


class _Resources(msgspec.Struct):
    resources: list[_Served] = []


class Discovery:
    """Finds resources by the words people use and by the kinds manifests name."""

    def __init__(self, client: KubeClient) -> None:
        self._client = client
        self._found: list[Resource] | None = None
        self._by_version: dict[str, list[Resource]] = {}

    async def resources(self, *, fresh: bool = False) -> list[Resource]:
        """Return all resources, core ones first, each in its group's preferred version if it is
        in that, else in the first one that has it."""
        if self._found is None or fresh:
            self._found = await self._read_all()
        return self._found

    async def resolve(self, word: str) -> Resource:
        """Return the resource meant by a plural, singular, short name or kind, in any case.

        A group may follow: ``pods``, ``podcliquesets.grove.io``. Raises BadInputError with the
        nearest names when nothing is called so.
        """
        for fresh in (False, True):
            found = _match(word, await self.resources(fresh=fresh))
            if found is not None:
                return found
        raise BadInputError(_unknown(word, await self.resources()))

    async def category(self, word: str) -> list[Resource]:
        """Return the resources in a category such as ``all``; none when there is no such one."""
        return [r for r in await self.resources() if word.lower() in r.categories]

    async def for_kind(self, api_version: str, kind: str) -> Resource:
        """Return the resource of a manifest's ``apiVersion`` and ``kind``; raise BadInputError."""
        for fresh in (False, True):
            if fresh or api_version not in self._by_version:
                self._by_version[api_version] = await self._read_version(api_version)
            for resource in self._by_version[api_version]:
                if resource.kind == kind:
                    return resource
        raise BadInputError(
            f"kind {kind!r} in apiVersion {api_version!r} is not served by this cluster; check "
            f"both words, and that its CustomResourceDefinition is installed"
        )

    async def _read_all(self) -> list[Resource]:
        versions = [*await self._core_versions(), *await self._group_versions()]
        limit = asyncio.Semaphore(MAX_PARALLEL)

        async def read(version: str) -> list[Resource]:
            async with limit:
                return await self._read_version(version)

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(read(version)) for version in versions]
        found: dict[tuple[str, str], Resource] = {}
        for task in tasks:
            for resource in task.result():
                found.setdefault((resource.group, resource.plural), resource)
        return list(found.values())

    async def _core_versions(self) -> list[str]:
        response = await self._client.raw(ApiRequest("GET", "/api"))
        return msgspec.json.decode(response.body, type=_Versions).versions

    async def _group_versions(self) -> list[str]:
        """Return all versions of all groups, each group's preferred one first.

        A kind need not be in its group's preferred version.
        """
        response = await self._client.raw(ApiRequest("GET", "/apis"))
        groups = msgspec.json.decode(response.body, type=_Groups).groups
        ordered = [
            version.group_version
            for group in groups
            for version in (group.preferred_version, *group.versions)
            if version is not None
        ]
        return list(dict.fromkeys(ordered))

    async def _read_version(self, api_version: str) -> list[Resource]:
        """Return what one group version serves: nothing where it is unknown or unwell."""
        root = "/apis" if "/" in api_version else "/api"
        try:
            response = await self._client.raw(ApiRequest("GET", f"{root}/{api_version}"))
        except NotFoundError:
            return []
        except ApiError as error:
            # An aggregated API whose server is down must not hide all others.
            log.warning("group not discovered", version=api_version, error=str(error))
            return []
        listed = msgspec.json.decode(response.body, type=_Resources).resources
        return [_resource(api_version, served) for served in listed if "/" not in served.name]


def _resource(api_version: str, served: _Served) -> Resource:
    group, _, version = api_version.rpartition("/")
    return Resource(
        group,
        version,
        served.kind,
        served.name,
        namespaced=served.namespaced,
        short_names=tuple(served.short_names),
        categories=tuple(served.categories),
    )


def _match(word: str, resources: list[Resource]) -> Resource | None:
    name, _, group = word.lower().partition(".")
    # A plural beats a kind, which beats a short name: as with kubectl.
    for names in (_plural, _kind, _shorts):
        for resource in resources:
            # "pods.v1" and "deployments.v1.apps" name a version first.
            accepted = (
                "",
                resource.group,
                resource.version,
                f"{resource.version}.{resource.group}",
            )
            if name in names(resource) and group in accepted:
                return resource
    return None


def _plural(resource: Resource) -> tuple[str, ...]:
    return (resource.plural,)


def _kind(resource: Resource) -> tuple[str, ...]:
    return (resource.singular,)


def _shorts(resource: Resource) -> tuple[str, ...]:
    return resource.short_names


def _unknown(word: str, resources: list[Resource]) -> str:
    names = [name for r in resources for name in (r.plural, r.singular, *r.short_names)]
    near = difflib.get_close_matches(word.lower(), names, n=3)
    advice = f"did you mean {' or '.join(near)}?" if near else "is its CRD installed?"
    return f"no resource is called {word!r}; {advice}"
