"""Hand-overs between processes that go wrong on the way: a reason at once, and the right answer."""

from __future__ import annotations

import contextlib
import re
import resource
import socket
import threading
from typing import TYPE_CHECKING

import pytest
from tests.contract.worker_process import Kind, Worker, free_port, tokens

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("handover-faults")]

NEGATIVE_ACK_S = 0.2
ENGINE = Kind("engine", 20)
BY_SOCKET = ("--no-kv-nixl",)
"""So that what memory files do not carry passes the proxy, also where NIXL is installed."""
TO_SERVING, TO_READER = "to the serving side", "to the reader"
HEADER = 12


class BitFlipper:
    """A TCP proxy that flips bit 2 of byte *at* of what goes one way."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.way, self.at = "", 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                threading.Thread(target=self._carry, args=(near,), daemon=True).start()

    def _carry(self, near: socket.socket) -> None:
        with near, socket.create_connection(("127.0.0.1", self.target)) as far:
            at = {way: self.at if way == self.way else -1 for way in (TO_SERVING, TO_READER)}
            up = threading.Thread(target=_copy, args=(near, far, at[TO_SERVING]))
            up.start()
            _copy(far, near, at[TO_READER])
            up.join()


def _copy(source: socket.socket, sink: socket.socket, at: int) -> None:
    passed = 0
    with contextlib.suppress(OSError):
        while data := bytearray(source.recv(65536)):
            if passed <= at < passed + len(data):
                data[at - passed] ^= 4
            passed += len(data)
            sink.sendall(data)
    for sock, how in ((sink, socket.SHUT_WR), (source, socket.SHUT_RD)):
        with contextlib.suppress(OSError):
            sock.shutdown(how)


class Pair:
    """A prefill worker behind the proxy, and a decode worker."""

    def __init__(self, folder: Path) -> None:
        kv = free_port()
        self.link = BitFlipper(kv)
        flags = ("--kv-port", str(kv), "--kv-advertise-port", str(self.link.port))
        self.prefill = Worker(ENGINE, "prefill", folder, flags)
        self.decode = Worker(ENGINE, "decode", folder, (*BY_SOCKET, "--no-kv-shared-memory"))
        for worker in (self.prefill, self.decode):
            worker.wait_ready()

    def close(self) -> None:
        self.link.close()
        self.prefill.kill()
        self.decode.kill()


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    found = Pair(tmp_path_factory.mktemp("pair"))
    yield found
    found.close()


def prompt(seed: int, length: int = 200) -> list[int]:
    return [(seed * 131 + n * 17) % 1500 + 300 for n in range(length)]


def served(worker: Worker, outcome: str) -> float:
    text = worker.call("GET", "/metrics").body.decode()
    found = re.search(rf'spinney:kv_served_pulls_total{{[^}}]*="{outcome}"[^}}]*}} (\S+)', text)
    return float(found.group(1)) if found else 0.0


@pytest.mark.parametrize(
    ("way", "at", "failures"),
    [
        (TO_SERVING, 2, {"protocol_error", "peer_unreachable"}),
        (TO_SERVING, 9, {"protocol_error", "peer_unreachable"}),
        (TO_SERVING, HEADER + 40, {"protocol_error", "peer_unreachable"}),
        (TO_READER, 2, {"protocol_error"}),
        (TO_READER, HEADER + 20, {"protocol_error"}),
        (TO_READER, 5_000, {"checksum_mismatch"}),
        (TO_READER, 500_000, {"checksum_mismatch"}),
    ],
    ids=["length", "check", "request", "answer-length", "answer", "bytes", "last-bytes"],
)
def test_a_flipped_bit_is_noticed_at_once_and_the_prompt_computed(
    pair: Pair, way: str, at: int, failures: set[str]
) -> None:
    text = prompt(1000 + at % 997)
    expected = tokens(pair.prefill.complete(text, 12, ignore_eos=True))
    counted = served(pair.prefill, "checksum_mismatch")
    pair.link.way, pair.link.at = way, at
    ticket = pair.prefill.prefill(text)
    answer = pair.decode.complete(text, 12, ignore_eos=True, kv_transfer_params=ticket)
    assert tokens(answer) == expected
    report = answer["kv_transfer_params"]
    assert report["outcome"] == "recomputed", report
    assert report["failure"] in failures
    assert report["seconds"] < NEGATIVE_ACK_S
    pair.decode.wait_idle()
    if way == TO_SERVING:
        # The handle never came through: the lease ends by itself.
        assert pair.prefill.call("GET", "/health").status == 200
    pair.prefill.wait_idle()
    if failures == {"checksum_mismatch"}:
        assert served(pair.prefill, "checksum_mismatch") == counted + 1


def test_bandwidth_is_measured_by_transport(pair: Pair) -> None:
    pair.link.way = ""
    text = prompt(7)
    answer = pair.decode.complete(text, 2, kv_transfer_params=pair.prefill.prefill(text))
    report = answer["kv_transfer_params"]
    assert (report["outcome"], report["transport"]) == ("pulled", "tcp")
    text = pair.decode.call("GET", "/metrics").body.decode()
    name = "spinney:kv_pull_bandwidth_bytes_per_second"
    found = re.search(rf'{name}{{[^}}]*transport="tcp"[^}}]*}} (\S+)', text)
    assert found is not None
    assert float(found.group(1)) == pytest.approx(
        report["bytes_pulled"] / report["seconds"], rel=0.01
    )


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[str], Worker]]:
    started: list[Worker] = []

    def begin(role: str) -> Worker:
        started.append(Worker(ENGINE, role, tmp_path, BY_SOCKET))
        return started[-1].wait_ready()

    yield begin
    for worker in started:
        worker.kill()


def test_where_shared_memory_is_full_the_bytes_go_through_the_socket(
    pair: Pair, start: Callable[[str], Worker]
) -> None:
    prefill, decode = start("prefill"), start("decode")
    # Files of more than half a megabyte: none. Segments are files in memory of a megabyte at least.
    resource.prlimit(prefill.process.pid, resource.RLIMIT_FSIZE, (500_000, 500_000))
    text = prompt(8)
    expected = tokens(pair.prefill.complete(text, 8, ignore_eos=True))
    ticket = prefill.prefill(text)
    answer = decode.complete(text, 8, ignore_eos=True, kv_transfer_params=ticket)
    report = answer["kv_transfer_params"]
    assert (report["outcome"], report["transport"]) == ("pulled", "tcp")
    assert tokens(answer) == expected
    prefill.wait_idle()
