"""Which reservations there should be, how they count, and what their pods say."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from spinney.api import names
from spinney.api.core import Pod
from spinney.cmd.gpu_reservation import DeviceError, given_device
from spinney.cmd.scheduler import scheduler
from spinney.scheduler.config import SchedulerConfig
from spinney.scheduler.cycle import run_cycle
from spinney.scheduler.gpu_reservations import (
    Reservation,
    SharedGpu,
    owner_of,
    plan,
    reservation_of,
    reservation_pod,
    reservations_wanted,
)
from spinney.scheduler.offline import OfflineCluster
from spinney.scheduler.scenario import fill, objects, scenario
from spinney.scheduler.shapes import DEVICES, GROUPS, GpuShare, PodInfo, Shape, gpu_groups
from spinney.scheduler.snapshot_file import read, write
from spinney.scheduler.snapshot_writer import scenario_of

if TYPE_CHECKING:
    from pathlib import Path

    from spinney.scheduler.cache import Cache

OWNER = "spinney-scheduler"
CONFIG = SchedulerConfig(gpu_reservation="device")
HALF = Shape(share=GpuShare(500))


def sharer(name: str, node: str, *groups: str, **more: Any) -> PodInfo:
    fields = {"state": "active", "shape": HALF, "node": node, "gpu_groups": groups, **more}
    return PodInfo(f"default/{name}", f"uid-{name}", **fields)


def held(node: str, group: str, stage: Any = "holding", owner: str = OWNER) -> Reservation:
    gpu = SharedGpu(node, group)
    return Reservation(gpu, gpu.pod_name, "r", f"uid-{gpu.pod_name}", owner, stage)


def changes(
    sharers: list[PodInfo], standing: list[Reservation], **more: Any
) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    found = plan(sharers, standing, {"n0", "n1"}, OWNER, **more)
    return (
        [(gpu.node, gpu.group) for gpu in found.create],
        [(over.gpu.node, over.gpu.group) for over in found.delete],
    )


def test_each_gpu_that_is_shared_has_one_reservation_and_no_other_has() -> None:
    pods = [sharer("a", "n0", "0"), sharer("b", "n0", "0", "1"), sharer("c", "n1", "0")]

    assert changes(pods, []) == ([("n0", "0"), ("n0", "1"), ("n1", "0")], [])
    assert changes(pods, [held("n0", "0"), held("n0", "2")]) == (
        [("n0", "1"), ("n1", "0")],
        [("n0", "2")],
    )
    assert changes([], []) == ([], [])


def test_a_gpu_is_kept_while_anybody_may_use_it_and_reserved_for_who_is_to_stay() -> None:
    leaving = sharer("a", "n0", "0", state="leaving")
    foreign = sharer("b", "n0", "1", ours=False)

    assert reservations_wanted([leaving, foreign]) == frozenset()
    assert changes([leaving, foreign], [held("n0", "0"), held("n0", "1")]) == ([], [])
    assert changes([leaving, foreign], []) == ([], [])


def test_a_reservation_that_is_over_goes_before_its_name_is_used_again() -> None:
    pods = [sharer("a", "n0", "0")]
    (uid,) = [held("n0", "0").uid]

    assert changes(pods, [held("n0", "0", "ended")]) == ([], [("n0", "0")])
    assert changes(pods, [held("n0", "0", "leaving")]) == ([], [])
    assert changes(pods, [held("n0", "0")], going={uid}) == ([], [("n0", "0")])


def test_reservations_of_nodes_that_are_gone_go_and_those_of_other_schedulers_stay() -> None:
    pods = [sharer("a", "gone", "0")]

    assert changes(pods, [held("gone", "0")]) == ([], [("gone", "0")])
    assert changes(pods, [held("gone", "0", "leaving")]) == ([], [("gone", "0")])
    assert changes([], [held("n0", "0", owner="another")]) == ([], [])


def test_switched_off_nothing_is_made_and_what_is_left_over_goes() -> None:
    pods = [sharer("a", "n0", "0"), sharer("b", "n1", "0")]

    assert changes(pods, [held("n0", "0"), held("n0", "1")], reserve=False) == ([], [("n0", "1")])


_GPUS = st.tuples(st.sampled_from(["n0", "n1", "gone"]), st.sampled_from(["0", "1", "2"]))
_STAGES = st.sampled_from(["starting", "holding", "ended"])


@given(st.lists(_GPUS), st.dictionaries(_GPUS, _STAGES))
def test_what_is_planned_and_done_leaves_nothing_to_do(
    shared: list[tuple[str, str]], found: dict[tuple[str, str], Any]
) -> None:
    sharers = [sharer(f"p{at}", node, group) for at, (node, group) in enumerate(shared)]
    standing = [held(node, group, stage) for (node, group), stage in found.items()]

    for _ in range(2):
        _, deleted = changes(sharers, standing)
        standing = [r for r in standing if (r.gpu.node, r.gpu.group) not in deleted]
        created, _ = changes(sharers, standing)
        standing += [held(node, group) for node, group in created]

    assert changes(sharers, standing) == ([], [])
    gpus = [(r.gpu.node, r.gpu.group) for r in standing]
    assert sorted(gpus) == sorted({gpu for gpu in shared if gpu[0] != "gone"})


def test_names_follow_from_node_and_gpu_and_no_two_are_equal() -> None:
    nodes = ["n", "n-1", "n-1.example.com", "x" * 60, "x" * 60 + "y", "a" * 39 + ".b"]
    found = {SharedGpu(node, group).pod_name for node in nodes for group in ("0", "1", "10")}

    assert len(found) == len(nodes) * 3
    assert all(len(name) <= 63 and name[-1].isalnum() for name in found)
    assert SharedGpu("n", "0").pod_name == SharedGpu("n", "0").pod_name


def test_schedulers_of_different_pools_keep_reservations_of_their_own() -> None:
    configs = [
        SchedulerConfig(),
        SchedulerConfig(pool_key="k"),
        SchedulerConfig(pool_key="k", pool="a"),
        SchedulerConfig(scheduler_names=("s" * 60,), pool_key="k", pool="a"),
    ]
    owners = {owner_of(config) for config in configs}

    assert len(owners) == 4
    assert all(len(owner) <= 63 for owner in owners)


def test_a_reservation_asks_for_one_gpu_and_is_placed_by_nobody() -> None:
    pod = reservation_pod(SharedGpu("n0", "3"), CONFIG)

    assert pod.spec.node_name == "n0"
    assert pod.spec.scheduler_name not in ("", "default-scheduler", *CONFIG.scheduler_names)
    (container,) = pod.spec.containers
    assert container.resources.requests == container.resources.limits == {"nvidia.com/gpu": 1}
    assert container.args == []
    assert reservation_of(pod).gpu == SharedGpu("n0", "3")
    assert reservation_of(pod).owner == OWNER
    made_up = SchedulerConfig(gpu_reservation="made-up")
    assert reservation_pod(SharedGpu("n0", "3"), made_up).spec.containers[0].args[-1] == "3"


def test_a_reservation_holds_when_it_runs_and_says_what() -> None:
    pod = reservation_pod(SharedGpu("n0", "0"), CONFIG)
    stages = [reservation_of(pod).stage]
    pod.metadata.annotations[names.RESERVED_DEVICE] = "GPU-7"
    stages.append(reservation_of(pod).stage)
    assert reservation_of(pod).device == ""
    pod.status.phase = "Running"
    stages.append(reservation_of(pod).stage)
    assert reservation_of(pod).device == "GPU-7"
    pod.metadata.deletion_timestamp = "2026-01-01T00:00:00Z"
    stages.append(reservation_of(pod).stage)
    assert reservation_of(pod).device == ""
    pod.status.phase = "Failed"
    stages.append(reservation_of(pod).stage)

    assert stages == ["starting", "starting", "holding", "leaving", "ended"]


# How they count


def reserving(node: str, group: str, **metadata: Any) -> Pod:
    pod = reservation_pod(SharedGpu(node, group), CONFIG)
    pod.metadata.uid = f"uid-{node}-{group}"
    pod.status.phase = "Running"
    for name, value in metadata.items():
        setattr(pod.metadata, name, value)
    return pod


def world(sharing: bool = True, wanting: int = 3) -> Cache:
    pods = [{"name": "s", "node": "n0", "gpuIndices": [0]}] if sharing else []
    return fill(
        scenario(
            {
                "nodes": [{"name": "n0", "gpus": 4}],
                "pods": [{"name": "s", "gpuFraction": 0.5, "pods": pods}] if sharing else [],
                "gangs": [{"name": "g", "groups": [{"name": "p", "pods": wanting, "gpus": 1}]}],
            }
        )
    )


def placed(cache: Cache) -> int:
    return len(run_cycle(cache.snapshot(1.0), SchedulerConfig()).bindings)


def test_a_gpu_that_is_shared_and_held_counts_once() -> None:
    for wanting, bound in ((3, 3), (4, 0)):
        cache = world(wanting=wanting)
        assert placed(cache) == bound
        cache.set_pod(reserving("n0", "0"))
        assert placed(cache) == bound, "counted twice, or not at all"


def test_a_gpu_that_is_held_for_nobody_is_used_but_on_its_way_out() -> None:
    cache = world(sharing=False, wanting=4)
    cache.set_pod(reserving("n0", "0"))

    result = run_cycle(cache.snapshot(1.0), SchedulerConfig())

    assert result.bindings == ()
    assert "being deleted" in result.verdicts["default/g"].reason
    assert cache.idle_reservations() == [reserving("n0", "0").key]
    cache.remove_pod(reserving("n0", "0").key)
    assert placed(cache) == 4


def test_a_gpu_whose_last_reservation_still_ends_counts_beside_the_one_shared_now() -> None:
    cache = world(wanting=3)
    cache.set_pod(reserving("n0", "0", deletion_timestamp="2026-01-01T00:00:00Z"))

    assert placed(cache) == 0


def test_groups_are_read_before_devices_and_devices_stand_for_them_alone() -> None:
    def on(**annotations: str) -> tuple[str, ...]:
        return gpu_groups(msgspec.convert({"metadata": {"annotations": annotations}}, Pod))

    assert on(**{GROUPS: "0,1", DEVICES: "GPU-a,GPU-b"}) == ("0", "1")
    assert on(**{DEVICES: "0,1"}) == ("0", "1")
    assert on() == ()


def test_a_snapshot_file_counts_as_the_cluster_does() -> None:
    found = objects(
        scenario(
            {
                "nodes": [{"name": "n0", "gpus": 4}],
                "pods": [{"name": "s", "gpuFraction": 0.5, "pods": [{"name": "s", "node": "n0"}]}],
                "gangs": [{"name": "g", "groups": [{"name": "p", "pods": 4, "gpus": 1}]}],
            }
        )
    )
    sharing = next(pod for pod in found.pods if pod.name == "s")
    sharing.metadata.annotations.update({GROUPS: "2", DEVICES: "GPU-7"})
    found.pods.extend([reserving("n0", "2"), reserving("n0", "3")])
    again = read(write(scenario_of(found, 1.0)))

    cluster = OfflineCluster(objects(again))
    assert cluster.cache.pod("default/s").gpu_groups == ("2",)
    for key in ("n0/2", "n0/3"):
        node, _, group = key.partition("/")
        assert cluster.cache.pod(reserving(node, group).key).reserves == group
    assert cluster.cache.idle_reservations() == [reserving("n0", "3").key]
    cluster.run(1)
    cluster.settle()
    assert cluster.cache.idle_reservations() == [], "it is let go before the next cycle"


# What is said


@pytest.mark.parametrize(
    ("environment", "files", "device"),
    [
        ({"NVIDIA_VISIBLE_DEVICES": "GPU-4f1a-22"}, (), "GPU-4f1a-22"),
        ({"NVIDIA_VISIBLE_DEVICES": " 3 "}, ("dev/nvidia0",), "3"),
        ({"NVIDIA_VISIBLE_DEVICES": "MIG-12ab"}, (), "MIG-12ab"),
        ({"NVIDIA_VISIBLE_DEVICES": "/var/run/devices"}, ("var/run/devices/GPU-9",), "GPU-9"),
        ({"NVIDIA_VISIBLE_DEVICES": "void"}, ("dev/nvidia5", "dev/nvidiactl", "dev/null"), "5"),
        ({}, ("dev/nvidia0",), "0"),
    ],
)
def test_the_device_is_what_the_environment_or_the_files_say(
    environment: dict[str, str], files: tuple[str, ...], device: str, tmp_path: Path
) -> None:
    lay(tmp_path, files)

    assert given_device(environment, tmp_path) == device


@pytest.mark.parametrize(
    ("environment", "files", "words"),
    [
        ({}, (), "in /dev: nothing"),
        ({"NVIDIA_VISIBLE_DEVICES": "all"}, ("dev/nvidia0", "dev/nvidia1"), "in /dev: 0, 1"),
        ({"NVIDIA_VISIBLE_DEVICES": "GPU-1,GPU-2"}, (), "GPU-1, GPU-2"),
        ({"NVIDIA_VISIBLE_DEVICES": "/nowhere"}, ("dev/nvidia0",), "nothing"),
        ({"NVIDIA_VISIBLE_DEVICES": "$(reboot)"}, (), "reboot"),
    ],
)
def test_no_device_is_made_up_where_it_is_not_clear(
    environment: dict[str, str], files: tuple[str, ...], words: str, tmp_path: Path
) -> None:
    lay(tmp_path, files)

    with pytest.raises(DeviceError, match="one GPU wanted") as error:
        given_device(environment, tmp_path)
    assert words in str(error.value)


def lay(root: Path, files: tuple[str, ...]) -> None:
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


@pytest.mark.parametrize(("text", "used"), [("", "device"), ("gpuReservation: none", "none")])
def test_the_program_for_other_clusters_reserves_unless_it_is_told_not_to(
    text: str, used: str, tmp_path: Path
) -> None:
    (tmp_path / "config.yaml").write_text(text)
    arguments = ["--config", str(tmp_path / "config.yaml"), "--print-config"]

    result = CliRunner().invoke(scheduler, arguments)

    assert f"gpuReservation: {used}\n" in result.stdout
