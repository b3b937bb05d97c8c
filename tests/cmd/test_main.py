import os
import subprocess
import sys

import pytest

from spinney.cmd import main as command


def run(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "spinney.cmd.main", *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_help_names_every_verb_without_importing_one():
    code = (
        "import sys; from spinney.cmd.main import main; main(['--help']);"
        "print([m for m in ('numpy', 'aiohttp', 'spinney.kube.client') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.rstrip().endswith("[]")
    for verb in ("demo", "apply", "engine", "router"):
        assert f"  {verb} " in done.stdout


@pytest.mark.parametrize("verb", [v for group in command._VERBS.values() for v in group])
def test_every_verb_has_help_that_says_what_it_does(verb):
    group = command.spinney
    found = group.get_command(None, verb)
    assert found is not None
    assert found.help


@pytest.mark.parametrize(
    ("arguments", "code", "want"),
    [
        pytest.param(["aply"], 2, "No such command 'aply'", id="unknown verb"),
        pytest.param(["get", "pods"], 1, "no cluster", id="no cluster"),
        pytest.param(["apply", "-f", "nowhere.yaml"], 2, "no such file", id="no file"),
        pytest.param(["delete"], 2, "say what to delete", id="nothing to delete"),
        pytest.param(["up", "--nodes", "nowhere"], 2, "does not exist", id="no nodes file"),
        pytest.param(["--kubeconfig", "nowhere", "get", "pods"], 2, "nowhere", id="no kubeconfig"),
    ],
)
def test_a_mistake_gets_a_message_an_exit_code_and_no_traceback(tmp_path, arguments, code, want):
    environment = {"SPINNEY_HOME": str(tmp_path / "home"), "KUBECONFIG": "", "HOME": str(tmp_path)}
    done = run(*arguments, **environment)
    assert done.returncode == code, done.stderr
    assert want in done.stderr
    assert "Traceback" not in done.stderr


def test_down_without_a_cluster_says_so(tmp_path):
    done = run("down", SPINNEY_HOME=str(tmp_path / "home"))
    assert done.returncode == 0
    assert "No local cluster is running" in done.stdout
