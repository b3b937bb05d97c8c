"""Make a virtual environment that has pip, on any machine with Python 3.11 or newer.

    python3 tools/make_venv.py .venv

Debian and Ubuntu leave ``ensurepip`` out of Python unless the package python3-venv is there. Then
pip comes from the package index instead, as the wheel it is published as, so that nothing has
to be installed on the machine.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

OLDEST = (3, 11)
INDEX = "https://pypi.org/simple"
PIP = "pip>=25.1"  # The first that installs dependency groups.


def main(folder: str) -> int:
    """Make the environment in *folder*; return the exit code."""
    if sys.version_info < OLDEST:
        found = ".".join(map(str, sys.version_info[:3]))
        print(
            f"Spinney needs Python {OLDEST[0]}.{OLDEST[1]} or newer, this is {found}. "
            f"Name another with: make PYTHON=python3.12 …",
            file=sys.stderr,
        )
        return 2
    python = str(Path(folder) / "bin" / "python")
    if importlib.util.find_spec("ensurepip"):
        _run(sys.executable, "-m", "venv", folder)
        _run(python, "-m", "pip", "install", *_QUIET, PIP)
        return 0
    _run(sys.executable, "-m", "venv", "--without-pip", folder)
    if importlib.util.find_spec("pip"):
        _run(sys.executable, "-m", "pip", "--python", python, "install", *_QUIET, PIP)
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        wheel = _download_pip(Path(scratch))
        _run(python, f"{wheel}/pip", "install", *_QUIET, PIP)
    return 0


_QUIET = ("--quiet", "--disable-pip-version-check")


def _run(*command: str) -> None:
    subprocess.run(command, check=True)


def _download_pip(folder: Path) -> Path:
    """Fetch the newest final pip wheel of the index, checked against the index's hash."""
    index = os.environ.get("PIP_INDEX_URL", INDEX).rstrip("/")
    request = urllib.request.Request(
        f"{index}/pip/", headers={"Accept": "application/vnd.pypi.simple.v1+json"}
    )
    with urllib.request.urlopen(request, timeout=60) as reply:
        files = json.load(reply)["files"]
    wheels = {f["filename"]: f for f in files if re.match(r"pip-[\d.]+-py3", f["filename"])}
    newest = wheels[max(wheels, key=_version)]
    url = urllib.parse.urljoin(f"{index}/pip/", newest["url"])
    with urllib.request.urlopen(url, timeout=60) as reply:
        data = reply.read()
    wanted = newest["hashes"]["sha256"]
    if hashlib.sha256(data).hexdigest() != wanted:
        raise SystemExit(f"{url}: the download is damaged; try again")
    wheel = folder / newest["filename"]
    wheel.write_bytes(data)
    return wheel


def _version(filename: str) -> tuple[int, ...]:
    return tuple(int(part) for part in filename.split("-")[1].split("."))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: make_venv.py FOLDER")
    try:
        sys.exit(main(sys.argv[1]))
    except subprocess.CalledProcessError as error:
        sys.exit(f"failed: {' '.join(error.cmd)} (exit code {error.returncode})")
    except urllib.error.URLError as error:
        sys.exit(f"the package index cannot be reached: {error.reason}; or install python3-venv")
