"""``spinney gpu-reservation``: hold the GPU that this pod was given, and say which it is.

The scheduler makes a pod with this program for each GPU that others share. It asks the device
plugin for one GPU, and writes what it got into an annotation of its own pod, from where the
scheduler tells the sharers. The device is what a container writes into ``NVIDIA_VISIBLE_DEVICES``:
a uuid or an index. Nothing is invented: a pod that cannot tell its device fails, unless it is told
what to say.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import click

from spinney.api import names
from spinney.api.core import Pod
from spinney.errors import SpinneyError
from spinney.kube.client import KubeClient
from spinney.kube.errors import ApiError, NotFoundError
from spinney.kube.transport import TransportError
from spinney.log import configure, get_logger

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

VISIBLE_DEVICES = "NVIDIA_VISIBLE_DEVICES"
REPORT_ATTEMPTS = 10
"""Tries to write the annotation before the program ends, for its pod to start it again."""
REPORT_RETRY_S = 0.5
"""The wait after the first failed try; it doubles up to `REPORT_MAX_RETRY_S`."""
REPORT_MAX_RETRY_S = 10.0
_DEVICE = re.compile(r"\d+|(GPU|MIG)-[\w/.-]+")
_NODE_FILE = re.compile(r"nvidia(\d+)")
_ELSEWHERE = ("", "all", "none", "void")
"""Values that say nothing of the device: it was given by files."""

log = get_logger("gpu-reservation")


class DeviceError(SpinneyError):
    """This container was given no GPU, or more than one."""


@click.command(epilog="The scheduler starts it; see docs/scheduler.md.")
@click.option("--name", envvar="POD_NAME", required=True, help="This pod. [$POD_NAME]")
@click.option("--namespace", envvar="POD_NAMESPACE", required=True, help="[$POD_NAMESPACE]")
@click.option("--made-up", default="", help="Say this instead of the device, where GPUs are none.")
def gpu_reservation(name: str, namespace: str, made_up: str) -> None:
    """Hold this pod's GPU until SIGTERM, and write into the pod's annotation which it is.

    The device is what NVIDIA_VISIBLE_DEVICES says, or else the device file that is there.
    """
    from spinney.kube.http import HttpTransport

    configure()
    device = made_up or given_device(os.environ, Path("/"))

    async def main() -> None:
        client = KubeClient(HttpTransport.from_environment())
        try:
            await _hold(client, name, namespace, device)
        finally:
            await client.close()

    asyncio.run(main())


def given_device(environment: Mapping[str, str], root: Path) -> str:
    """Return the one device that this container was given; raise DeviceError.

    It is in the environment; or, where that names a folder, the name of the file in it; or the
    number of the device file under *root*.
    """
    said = environment.get(VISIBLE_DEVICES, "").strip()
    if said in _ELSEWHERE:
        files = (_NODE_FILE.fullmatch(entry) for entry in _entries(root / "dev"))
        return _only((found[1] for found in files if found), f"no {VISIBLE_DEVICES}, in /dev")
    if said.startswith("/"):
        return _only(_entries(root / said.lstrip("/")), f"{VISIBLE_DEVICES} is {said}, in it")
    return _only(said.split(","), f"{VISIBLE_DEVICES} is {said}")


def _entries(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []


def _only(devices: Iterable[str], where: str) -> str:
    found = [device.strip() for device in devices]
    if len(found) == 1 and _DEVICE.fullmatch(found[0]):
        return found[0]
    raise DeviceError(
        f"one GPU wanted; {where}: {', '.join(found) or 'nothing'}. Does the node have a device "
        f"plugin, and does the pod ask for nvidia.com/gpu: 1?"
    )


async def _hold(client: KubeClient, name: str, namespace: str, device: str) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with asyncio.TaskGroup() as group:
        reporting = group.create_task(report(client, name, namespace, device))
        await stop.wait()
        reporting.cancel()
    log.info("gpu is let go", device=device)


async def report(client: KubeClient, name: str, namespace: str, device: str) -> None:
    """Write *device* into the pod's annotation; raise what the API says in the end."""
    changes = {"metadata": {"annotations": {names.RESERVED_DEVICE: device}}}
    for attempt in range(REPORT_ATTEMPTS):
        try:
            await client.patch(Pod, name, changes, namespace)
        except NotFoundError:
            raise
        except (ApiError, TransportError) as error:
            if attempt + 1 == REPORT_ATTEMPTS:
                raise
            log.warning("device is not written yet", error=str(error))
            await asyncio.sleep(min(REPORT_MAX_RETRY_S, REPORT_RETRY_S * 2**attempt))
        else:
            log.info("gpu is held", device=device, pod=f"{namespace}/{name}")
            return
