import os
import signal
import subprocess
import sys

import pytest

from spinney.local.home import (
    ClusterHome,
    ClusterHomeError,
    Supervisor,
    process_started,
    signal_supervisor,
)


def test_a_live_process_has_a_start_time_and_a_dead_one_none():
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        assert process_started(child.pid) is not None
        child.kill()
    assert process_started(child.pid) is None


def test_a_recycled_process_id_is_not_the_supervisor_and_is_not_signalled(tmp_path):
    home = ClusterHome(tmp_path / "home")
    home.prepare()
    started = process_started(os.getpid())
    impostor = Supervisor(os.getpid(), started - 1)
    home.write_supervisor(impostor)

    assert home.supervisor() is None
    signal_supervisor(impostor, signal.SIGKILL)  # We would not survive it.

    home.write_supervisor(Supervisor(os.getpid(), started))
    assert home.supervisor().pid == os.getpid()


def test_the_folder_is_the_owners_alone(tmp_path):
    home = ClusterHome(tmp_path / "home")
    home.prepare()
    assert home.root.stat().st_mode & 0o077 == 0


def test_a_folder_that_cannot_be_made_is_reported(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ClusterHomeError, match="SPINNEY_HOME"):
        ClusterHome(tmp_path / "file" / "home").prepare()
