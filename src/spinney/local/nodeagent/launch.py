"""From a container's spec to a program that can be started: its files, environment and arguments.

Whatever is missing is a `CannotStartError` with one word for the container's status and a sentence
that says what to do; the rest of the pod, and of the agent, goes on.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from spinney.api.core import ConfigMap, Secret
from spinney.api.meta import KubeObject
from spinney.kube.errors import ApiError, NotFoundError
from spinney.kube.transport import TransportError
from spinney.local.nodeagent.environment import (
    CONFIG_ERROR,
    CannotStartError,
    Identity,
    Sources,
    command_line,
    environment,
    references,
)
from spinney.local.nodeagent.linux import find_program
from spinney.local.nodeagent.process import ProcessSpec
from spinney.local.nodeagent.volumes import Mount, plan_volumes, real_paths, write_volumes

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from spinney.api.core import Container, Pod
    from spinney.kube.client import KubeClient
    from spinney.local.nodeagent.runs import PodRun
    from spinney.local.nodeagent.state_dir import StateDir

T = TypeVar("T", bound=KubeObject)

NOT_RUNNABLE = "ImageNotRunnable"
NOT_SUPPORTED = "NotSupported"

INHERITED = ("HOME", "USER", "LOGNAME", "LANG", "LC_ALL", "TZ", "TMPDIR")
"""Variables of the agent that its containers get too."""
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
"""One thread each unless the container says otherwise: its neighbours need the other cores."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What every container of the cluster gets."""

    base: Mapping[str, str]
    """The variables of an image, so to say; the pod's own come on top."""
    service: Mapping[str, str] = field(default_factory=dict)
    """Where the API is; visible to ``$(VAR)``."""
    entrypoints: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """The program that stands for an image, by the last part of the image's name."""
    allocatable: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """By node."""
    find: Callable[[str, str, str], str | None] = find_program
    """Looks for a program, given its name, PATH and the working directory."""


def surroundings(
    agent_env: Mapping[str, str], bin_dir: str, *, kubeconfig: str, api_host: str, api_port: int
) -> Surroundings:
    """Return what containers of a cluster get whose API is at that host and port."""
    base = {name: agent_env[name] for name in INHERITED if name in agent_env}
    base["PATH"] = bin_dir + os.pathsep + agent_env.get("PATH", os.defpath)
    base["PYTHONUNBUFFERED"] = "1"  # Or nothing is seen of a program's log until it ends.
    base.update(dict.fromkeys(THREADS, "1"))
    if kubeconfig:
        base["KUBECONFIG"] = kubeconfig
    service = {"KUBERNETES_SERVICE_HOST": api_host, "KUBERNETES_SERVICE_PORT": str(api_port)}
    entrypoints = {"spinney": (os.path.join(bin_dir, "spinney"),)}
    return Surroundings(base, service if api_host else {}, entrypoints)


class Launcher:
    """Prepares containers; asks the API only for the ConfigMaps and Secrets a pod names."""

    def __init__(self, client: KubeClient, state_dir: StateDir, surroundings: Surroundings) -> None:
        self._client = client
        self._state_dir = state_dir
        self._around = surroundings

    async def prepare(self, pod: Pod, container: Container, run: PodRun, mark: str) -> ProcessSpec:
        """Make the container's files and return its program; raise CannotStartError."""
        refuse_unsupported(container)
        sources = await self._sources(pod)
        identity = Identity(run.ip, run.host_ip)
        root = self._state_dir.volumes(run.uid)
        volumes, mounts = plan_volumes(pod, container, root, identity, sources)
        try:
            write_volumes(volumes)
            scratch = str(self._state_dir.scratch(run.uid))
        except OSError as error:
            raise CannotStartError(CONFIG_ERROR, f"volumes cannot be made: {error}") from error
        own = environment(pod, container, identity, sources, self._around.service)
        argv = command_line(container, own, self._entrypoint(container))
        env = self._whole_env(pod, run, own, mounts)
        cwd = _working_dir(container, scratch, mounts)
        argv = [real_paths(part, mounts) for part in argv]
        argv = self._runnable(container, argv, env, cwd)
        return ProcessSpec(tuple(argv), env, cwd, mark)

    def _entrypoint(self, container: Container) -> Sequence[str]:
        if container.command:
            return ()
        name = image_name(container.image)
        if name in self._around.entrypoints:
            return self._around.entrypoints[name]
        raise CannotStartError(
            NOT_RUNNABLE,
            f"container {container.name!r} has no command, and what image {container.image!r} "
            f"runs is not known here: nothing is pulled, pods are processes; "
            f"give the container a command that this machine has",
        )

    def _whole_env(
        self, pod: Pod, run: PodRun, own: Mapping[str, str], mounts: list[Mount]
    ) -> dict[str, str]:
        env = {**self._around.base, "HOSTNAME": pod.spec.hostname or run.name}
        return env | {key: real_paths(value, mounts) for key, value in own.items()}

    def _runnable(
        self, container: Container, argv: list[str], env: Mapping[str, str], cwd: str
    ) -> list[str]:
        found = self._around.find(argv[0], env.get("PATH", os.defpath), cwd)
        if found is None:
            raise CannotStartError(
                NOT_RUNNABLE,
                f"command {argv[0]!r} of container {container.name!r} is no program of this "
                f"machine; image {container.image!r} is not pulled, pods are processes: "
                f"install the program, or name one that is on PATH",
            )
        return argv

    async def _sources(self, pod: Pod) -> Sources:
        config_maps, secrets = references(pod)
        found_maps = {n: await self._fetch(ConfigMap, n, pod.namespace) for n in config_maps if n}
        found_secrets = {n: await self._fetch(Secret, n, pod.namespace) for n in secrets if n}
        allocatable = self._around.allocatable.get(pod.spec.node_name, {})
        return Sources(found_maps, found_secrets, allocatable)

    async def _fetch(self, kind: type[T], name: str, namespace: str) -> T | None:
        try:
            return await self._client.get(kind, name, namespace)
        except NotFoundError:
            return None
        except (ApiError, TransportError) as error:
            what = f"{kind.RESOURCE.kind} {name!r} cannot be read: {error}"
            raise CannotStartError(CONFIG_ERROR, what) from error


def image_name(image: str) -> str:
    """Return the last part of an image's name, without registry, tag and digest."""
    return image.partition("@")[0].rpartition("/")[2].partition(":")[0]


def refuse_unsupported(container: Container) -> None:
    """Raise CannotStartError for what the agent cannot do, rather than leave it out unsaid."""
    probes = (container.startup_probe, container.readiness_probe, container.liveness_probe)
    if any(p is not None and p.grpc for p in probes):
        message = f"container {container.name!r} has a gRPC probe; use httpGet, tcpSocket or exec"
        raise CannotStartError(NOT_SUPPORTED, message)
    if (container.lifecycle or {}).get("postStart"):
        message = f"container {container.name!r} has a postStart hook; start what it does itself"
        raise CannotStartError(NOT_SUPPORTED, message)
    hook = (container.lifecycle or {}).get("preStop") or {}
    if hook and not ("exec" in hook or "sleep" in hook):
        message = f"container {container.name!r}: preStop is given by exec or sleep here"
        raise CannotStartError(NOT_SUPPORTED, message)


def _working_dir(container: Container, scratch: str, mounts: list[Mount]) -> str:
    if not container.working_dir:
        return scratch
    path = os.path.join(scratch, real_paths(container.working_dir, mounts))
    if not os.path.isdir(path):
        message = f"workingDir {container.working_dir!r} is no directory of this machine"
        raise CannotStartError(CONFIG_ERROR, message)
    return path
