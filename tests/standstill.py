"""Runs tests while all of their processes stand still now and then, as a busy machine or a laptop that is closed does
it. `make standstill`.

    tests/standstill.py [--seed N] [--seconds 0.15,0.7,1.3] [pytest arguments]

Finds bounds that take a standstill of the own process for the silence of its partner. The tests that have failed are
run once more without standstills: what fails then too is another matter. What is left is to be read, for a test that
measures how long something takes counts the standstill as well.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

SECONDS = "0.15,0.7,1.3"
LOOKS = 100  # for processes that still run
RUNNING = 1.0  # seconds between two standstills, at most


def _running(root: int) -> Iterator[int]:
    """Of a process and those it has started, those that run and whose parents stand still."""
    table = subprocess.run(["ps", "-A", "-o", "pid=,ppid=,stat="], capture_output=True, text=True, check=True).stdout
    children: dict[int, list[int]] = {}
    states = {}
    for pid, parent, state in (line.split()[:3] for line in table.splitlines()):
        children.setdefault(int(parent), []).append(int(pid))
        states[int(pid)] = state
    waiting = [root]
    for pid in waiting:
        if states.get(pid, "Z")[0] == "T":
            waiting += children.get(pid, ())
        elif states.get(pid, "Z")[0] != "Z":
            yield pid


@contextlib.contextmanager
def stopped(root: int) -> Iterator[list[int]]:
    """A process stands still, with all that it has started. What a test has stopped itself stays so at the end."""
    ours: list[int] = []
    try:
        # Parents before their children: a shell that still runs would take a child that stops for suspended.
        for _ in range(LOOKS):
            found = list(_running(root))
            for pid in found:
                if pid not in ours:
                    ours.append(pid)
                    with contextlib.suppress(ProcessLookupError, PermissionError):
                        os.kill(pid, signal.SIGSTOP)
            if not found:
                break
        yield ours
    finally:
        for pid in reversed(ours):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGCONT)


def disturbed(command: list[str], seconds: list[float], chance: random.Random) -> int:
    """Run a program that stands still now and then; its exit code."""
    times = []
    with subprocess.Popen(command) as process:
        try:
            while True:
                try:
                    process.wait(chance.uniform(0.02, RUNNING))
                    break
                except subprocess.TimeoutExpired:
                    times.append(chance.choice(seconds))
                    with stopped(process.pid):
                        time.sleep(times[-1])
        except BaseException:
            process.send_signal(signal.SIGINT)
            raise
    print(f"stood still {len(times)} times, {sum(times):.0f} s in all", flush=True)
    return process.returncode


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    parser.add_argument("--seconds", default=SECONDS, help="how long to stand still: one of these each time")
    options, arguments = parser.parse_known_args()
    seconds = [float(each) for each in options.seconds.split(",")]
    print(f"--seed {options.seed} --seconds {options.seconds}", flush=True)
    with tempfile.TemporaryDirectory() as cache:
        pytest = [sys.executable, "-m", "pytest", "-q", "-o", f"cache_dir={cache}"]
        # In worker processes, for a test that has hung is ended with its process.
        command = [*pytest, "-n", "2", "--dist", "worksteal", "--timeout", "180", *arguments]
        status = disturbed(command, seconds, random.Random(options.seed))
        if status != 1:  # not that tests have failed
            return status
        print("without standstills:", flush=True)
        again = subprocess.run([*pytest, "--last-failed", *arguments], check=False).returncode
        print("the failures come from standing still" if again == 0 else "see above: not all come from standing still")
        return status


if __name__ == "__main__":
    sys.exit(main())
