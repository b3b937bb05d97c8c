"""One engine of several processes: the same answers, one life, one death."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
from tests.contract.worker_process import Kind, Worker, free_port, send_raw, tokens, wait_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("group")]

GONE_S = 5.0
START_S = 60
PROMPTS = [
    [(n * 131 + at * 17) % 1500 + 300 for at in range(length)]
    for n, length in enumerate((1, 15, 16, 40, 300))
]


class Member(Worker):
    """One process of a group; *port* serves HTTP or, at members, just their health."""

    def __init__(
        self,
        kind: Kind,
        folder: Path,
        rank: int,
        ranks: int,
        group_port: int,
        *flags: str,
        role: str = "both",
    ) -> None:
        place = (
            "--tensor-parallel-size",
            str(ranks),
            "--group-rank",
            str(rank),
            "--group-port",
            str(group_port),
            "--group-start-timeout",
            str(START_S),
        )
        leader = ("--group-leader", "127.0.0.1") if rank else ()
        super().__init__(kind, role, folder, (*place, *leader, *flags))

    def said(self) -> str:
        return self.log.read_text()


Group = list[Member]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Group]]:
    started: Group = []

    def begin(kind: str = "engine", ranks: int = 2, role: str = "both", *flags: str) -> Group:
        port = free_port()
        folder = tmp_path / f"{kind}{len(started)}"
        folder.mkdir()
        group = [
            Member(Kind(kind, START_S), folder, rank, ranks, port, *flags, role=role)
            for rank in reversed(range(ranks))
        ]
        started.extend(group)
        for member in group:
            member.wait_ready()
        return group[::-1]

    yield begin
    for member in started:
        member.kill()


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    worker = Worker(Kind("engine", 20), "both", tmp_path_factory.mktemp("alone"))
    try:
        yield worker.wait_ready()
    finally:
        worker.kill()


def answers(worker: Worker) -> list[list[int]]:
    return [tokens(worker.complete(prompt, 24, ignore_eos=True)) for prompt in PROMPTS]


def test_a_group_answers_as_one_process_does(start: Callable[..., Group], alone: Worker) -> None:
    # The demo model has 3 KV heads: two ranks share them unevenly.
    leader = start("engine", 2)[0]
    assert answers(leader) == answers(alone)
    leader.wait_idle()


@pytest.mark.parametrize("ranks", [(2, 1), (1, 3)], ids=str)
def test_kv_is_handed_over_between_groups_of_other_sizes(
    start: Callable[..., Group], alone: Worker, ranks: tuple[int, int]
) -> None:
    prefill = start("engine", ranks[0], "prefill")[0]
    decode = start("engine", ranks[1], "decode", "--block-size", "32")[0]
    for prompt in PROMPTS[3:5]:
        ticket = prefill.prefill(prompt)
        assert ticket["tp_size"] == ranks[0]
        answer = decode.complete(prompt, 24, ignore_eos=True, kv_transfer_params=ticket)
        report = answer["kv_transfer_params"]
        assert report["outcome"] == "pulled", report
        assert report["bytes_pulled"] > 0
        assert tokens(answer) == tokens(alone.complete(prompt, 24, ignore_eos=True))
    prefill.wait_idle()
    decode.wait_idle()


def all_end(group: Group, within_s: float = GONE_S) -> list[int]:
    began = time.perf_counter()
    codes = [member.process.wait(20) for member in group]
    assert time.perf_counter() - began < within_s
    return codes


@pytest.mark.parametrize(("kind", "victim"), [("engine", 1), ("mock", 0), ("mock", 2)])
def test_when_one_process_dies_all_do_and_clients_are_told(
    start: Callable[..., Group], kind: str, victim: int
) -> None:
    group = start(kind, 3)
    body = {"prompt": PROMPTS[3], "max_tokens": 1900, "ignore_eos": True}
    with send_raw(group[0].port, body) as client:
        running = "vllm:num_requests_running"
        wait_for(lambda: group[0].metrics()[running] > 0, "it runs", 20)
        group[victim].process.kill()
        codes = all_end(group)
        assert codes[victim] == -signal.SIGKILL
        assert all(code == 1 for at, code in enumerate(codes) if at != victim)
        assert all("Traceback" not in member.said() for member in group)
        if victim:
            said = client.recv(65536)
            assert b" 500 " in said or b" 503 " in said, said
            assert "rank " + str(victim) in group[0].said()


def test_a_process_that_hangs_takes_the_group_down_within_a_bound(
    start: Callable[..., Group],
) -> None:
    group = start("engine", 2)
    os.kill(group[1].process.pid, signal.SIGSTOP)
    with send_raw(group[0].port, {"prompt": PROMPTS[3], "max_tokens": 50}):
        # `DEAD_S` without a sign of life, and the step that waits for it is ended.
        assert group[0].process.wait(20) == 1
    assert "nothing was heard of it for 10 s" in group[0].said()
    os.kill(group[1].process.pid, signal.SIGCONT)
    assert group[1].process.wait(20) == 1


def test_ended_processes_form_the_group_again_when_they_are_started_again(
    start: Callable[..., Group], alone: Worker
) -> None:
    group = start("engine", 2)
    group[1].process.kill()
    all_end(group)
    again = [
        Member(member.kind, member.folder, rank, 2, int(member.flags[5]))
        for rank, member in enumerate(group)
    ]
    try:
        again[0].wait_ready()
        expected = tokens(alone.complete(PROMPTS[4], 8))
        assert tokens(again[0].complete(PROMPTS[4], 8)) == expected
    finally:
        for member in again:
            member.kill()


@pytest.mark.parametrize("told", [0, 1])
def test_a_process_told_to_stop_drains_the_whole_group(
    start: Callable[..., Group], told: int
) -> None:
    group = start("engine", 2)
    body = {"prompt": PROMPTS[3], "max_tokens": 200, "ignore_eos": True}
    with send_raw(group[0].port, body) as client:
        wait_for(lambda: group[0].metrics()["vllm:num_requests_running"] > 0, "it runs", 20)
        group[told].process.terminate()
        said = b""
        while part := client.recv(65536):
            said += part
            if b'"usage"' in said:
                break
        assert b'"completion_tokens":200' in said
    assert all_end(group, 20) == [0, 0]


def test_a_leader_without_members_is_not_ready_and_gives_up_in_time(tmp_path: Path) -> None:
    kind, port = Kind("mock", 20), free_port()
    leader = Member(kind, tmp_path, 0, 3, port, "--group-start-timeout", "1.5")
    try:
        wait_for(lambda: "group waits" in leader.said(), "it waits", 20)
        with pytest.raises(OSError, match="refused"):
            leader.call("GET", "/health")
        assert leader.process.wait(20) == 1
        assert "rank 1, 2 has not come" in leader.said()
        assert "Traceback" not in leader.said()
    finally:
        leader.kill()


def test_a_member_without_a_leader_is_not_ready_and_gives_up_in_time(tmp_path: Path) -> None:
    member = Member(Kind("mock", 20), tmp_path, 1, 2, free_port(), "--group-start-timeout", "1.5")
    try:
        wait_for(lambda: "waiting for the leader" in member.said(), "it waits", 20)
        assert member.call("GET", "/health").status == 503
        assert member.process.wait(20) == 1
        assert "could not join within 1.5 s" in member.said()
        assert "Traceback" not in member.said()
    finally:
        member.kill()


def test_who_does_not_belong_is_refused_and_told_why(tmp_path: Path) -> None:
    port = free_port()
    kind = Kind("mock", 20)
    leader = Member(kind, tmp_path, 0, 2, port)
    try:
        wait_for(lambda: "group waits" in leader.said(), "it waits", 20)
        with socket.create_connection(("127.0.0.1", port)) as stranger:
            stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
            with contextlib.suppress(ConnectionResetError):
                assert stranger.recv(100) == b""
        other = Member(Kind("engine", 20), tmp_path, 1, 2, port)
        assert other.process.wait(20) == 2
        assert "refuses rank 1: another model is loaded" in other.said()
        wrong = Member(kind, tmp_path, 1, 3, port)
        assert wrong.process.wait(20) == 2
        assert "a group of 3 is joined, this one has 2 ranks" in wrong.said()
        right = Member(kind, tmp_path, 1, 2, port)
        leader.wait_ready()
        right.process.terminate()
        assert all_end([leader, right], 10) == [0, 0]
    finally:
        leader.kill()


def run(*flags: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "spinney.cmd.main", "mock", *flags],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_a_process_that_cannot_know_its_place_says_what_is_missing() -> None:
    nothing = run("--tensor-parallel-size", "2")
    assert (nothing.returncode, "GROVE_PCLQ_POD_INDEX" in nothing.stderr) == (2, True)
    beyond = run("--tensor-parallel-size", "2", GROVE_PCLQ_POD_INDEX="2")
    assert (beyond.returncode, "rank 2 is none of the 2" in beyond.stderr) == (2, True)
    based = run("--tensor-parallel-size", "2", "--group-rank-base", "1", GROVE_PCLQ_POD_INDEX="0")
    assert (based.returncode, "rank 1 needs --group-leader" in based.stderr) == (2, True)


def test_heads_that_cannot_be_shared_are_refused(tmp_path: Path) -> None:
    found: Any = subprocess.run(
        [
            sys.executable,
            "-m",
            "spinney.cmd.main",
            "engine",
            "--tensor-parallel-size",
            "4",
            "--group-rank",
            "0",
        ],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert found.returncode == 2
    assert "4 ranks cannot share 3 KV heads" in found.stderr
