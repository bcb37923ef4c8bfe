"""`make standstill` stops what it says, and wakes what it has stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from standstill import stopped
from support.waiting import eventually

pytestmark = pytest.mark.skipif(not hasattr(os, "killpg"), reason="stops processes as POSIX does")

# A process in a session of its own, as the servers of the tests are, and one that its test has stopped.
TREE = """
import subprocess, sys
sleep = ["sleep", "60"]
print(*[subprocess.Popen(sleep, start_new_session=True).pid for _ in range(2)], flush=True)
sys.stdin.read()
"""


def state(pid: int) -> str:
    said = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return said.strip()[:1]


def test_a_whole_tree_stands_still_and_goes_on() -> None:
    with subprocess.Popen([sys.executable, "-c", TREE], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child, still = map(int, parent.stdout.readline().split())
        try:
            os.kill(still, signal.SIGSTOP)
            assert eventually(lambda: state(still) == "T")
            with stopped(parent.pid) as ours:
                assert set(ours) == {parent.pid, child}
                assert eventually(lambda: [state(pid) for pid in (parent.pid, child, still)] == ["T"] * 3)
            assert eventually(lambda: "T" not in state(parent.pid) + state(child))
            assert state(still) == "T"
        finally:
            for pid in (child, still):
                os.kill(pid, signal.SIGKILL)
            parent.communicate()
