"""The net of tests/conftest.py holds: a test that leaves something behind fails, whatever else it checks."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import pytest

CASES = {
    "a thread": (
        """
def test(threads):
    threading.Thread(target=GATE.wait, name="stray", daemon=True).start()
""",
        "1 thread(s) left behind",
    ),
    "a parked thread": (
        """
def test():
    threading.Thread(target=channels.Channel().recv, name="stray", daemon=True).start()
""",
        "stray",
    ),
    "a task that is stuck": (
        """
def test(threads):
    threads.go(channels.Channel().recv)
""",
        "thread(s) of the test still running",
    ),
    "an exception in a thread": (
        """
def test():
    thread = threading.Thread(target=lambda: 1 / 0)
    thread.start()
    thread.join()
""",
        "exceptions that reached nobody",
    ),
    "an exception in a task that nobody asked": (
        """
def test(threads):
    threads.go(lambda: 1 / 0)
""",
        "raised, and the test never asked",
    ),
    "an exception in a finalizer": (
        """
def test():
    class Bad:
        def __del__(self):
            raise ValueError("lost")
    Bad()
""",
        "ValueError: lost",
    ),
    "nothing": (
        """
def test(threads):
    thread = threading.Thread(target=time.sleep, args=(0.2,))
    thread.start()  # it ends in time
    assert channels.after(0.001).recv(timeout=5)  # the process's own thread may stay
    threads.go(len, "x").result()
""",
        None,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_a_test_leaves_behind_fails_it(case, tmp_path):
    source, complaint = CASES[case]
    root = pathlib.Path(__file__).resolve().parents[2]
    (tmp_path / "conftest.py").write_text(
        (root / "tests/conftest.py").read_text().replace("GRACE = 3.0", "GRACE = 0.5")
    )
    (tmp_path / "test_it.py").write_text("import threading, time, channels\nGATE = threading.Event()\n" + source)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--import-mode=importlib", str(tmp_path)],
        cwd=tmp_path,
        env={"PYTHONPATH": f"{root}{os.pathsep}{root / 'tests'}", "PATH": ""},
        capture_output=True,
        text=True,
        timeout=50,
    )
    if complaint is None:
        assert run.returncode == 0, run.stdout
    else:
        assert run.returncode == 1, run.stdout
        assert complaint in run.stdout
