"""What a line of log is to those who read it while others write, too."""

from __future__ import annotations

import io
import sys

import pytest

from spinney import log as logs


class Pipe(io.RawIOBase):
    """Keeps what each call of the system's ``write`` would have been given."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data) -> int:
        self.pieces.append(bytes(data))
        return len(data)


@pytest.mark.parametrize("json", [False, True])
def test_a_line_goes_out_in_one_piece_so_that_those_of_several_processes_do_not_mix(
    monkeypatch, json
):
    pipe = Pipe()
    # As Python makes it where PYTHONUNBUFFERED is set, which it often is in containers.
    text = io.TextIOWrapper(pipe, line_buffering=True, write_through=True)
    monkeypatch.setattr(sys, "stderr", text)
    logs.configure(json=json, final=False)
    log = logs.get_logger("test")

    log.info("first", number=1)
    log.warning("second", number=2)

    assert [piece.count(b"\n") for piece in pipe.pieces] == [1, 1]
    assert all(piece.endswith(b"\n") for piece in pipe.pieces)
    assert b"first" in pipe.pieces[0]
    assert b"second" in pipe.pieces[1]
