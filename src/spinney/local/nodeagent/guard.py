"""Ends what an agent leaves behind, also when the agent was killed.

Every process of a pod carries a mark in its environment that its descendants inherit, whatever
session or group they make for themselves. Run as a program, this module waits until its standard
input ends, which happens when the agent ends in whatever way, and then kills all that carry the
agent's mark. It imports nothing but the standard library, so that it starts in milliseconds and
stays small.

    python -I -S guard.py AGENT_ID/INSTANCE
"""

from __future__ import annotations

import os
import signal
import sys
import time

MARK = "SPINNEY_PROCESS"
"""The environment variable: ``agent/instance/container``."""
SWEEP_PASSES = 200
"""Looks at the process table before a sweep gives up."""
PASS_WAIT_S = 0.01


def marked(prefix: str) -> list[int]:
    """Return the processes whose mark begins with *prefix*; those of other users are not seen."""
    wanted = f"{MARK}={prefix}".encode()
    return [int(entry) for entry in os.listdir("/proc") if entry.isdigit() and _has(entry, wanted)]


def kill_marked(prefix: str) -> int:
    """Kill every process whose mark begins with *prefix*; return how many there were."""
    found = marked(prefix)
    for pid in found:
        _kill_if_marked(pid, f"{MARK}={prefix}".encode())
    return len(found)


def sweep(prefix: str) -> bool:
    """Kill until no process with the mark is left; return False if some would not go."""
    for _ in range(SWEEP_PASSES):
        if kill_marked(prefix) == 0:
            return True
        time.sleep(PASS_WAIT_S)
    return False


def _kill_if_marked(pid: int, wanted: bytes) -> None:
    # The descriptor holds on to this very process: looked at again, it cannot be another one.
    try:
        descriptor = os.pidfd_open(pid)
    except OSError:
        return
    try:
        if _has(str(pid), wanted):
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
    except OSError:
        pass
    finally:
        os.close(descriptor)


def _has(pid: str, wanted: bytes) -> bool:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            content = file.read()
    except OSError:
        return False
    return content.startswith(wanted) or b"\0" + wanted in content


def main() -> int:
    """Wait for the agent's end, then sweep."""
    # The agent's terminal must not end its guard before it.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    while os.read(0, 1024):
        pass
    return 0 if sweep(sys.argv[1] + "/") else 1


if __name__ == "__main__":
    sys.exit(main())
