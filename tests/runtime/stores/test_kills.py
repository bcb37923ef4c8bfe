"""Processes that write a store are killed, or stand still, at random moments: what was acknowledged is there, once."""

from __future__ import annotations

import itertools
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime import Message, SessionBusy
from runtime._errors import SessionChanged, SessionNotFound, StoreError
from runtime.session._journal import Said
from runtime.stores import SQLiteStore
from runtime.stores.sqlite import _file

ROOT = Path(__file__).resolve().parents[3]
PROGRAM = ROOT / "tests" / "support" / "store_kills.py"
MEMORY = Path("/dev/shm")  # a file system in memory: what is killed here is the process, not the disk

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs fork and SIGKILL")


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=MEMORY if os.access(MEMORY, os.W_OK) else tmp_path) as directory:
        yield Path(directory) / "sessions.db"


def kill(path: Path, rounds: int, seed: int, timeout: float) -> None:
    done = subprocess.run(
        [sys.executable, str(PROGRAM), str(path), str(rounds), str(seed)],
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, f"seed {seed}\n{done.stdout}\n{done.stderr}"
    assert done.stdout.startswith(f"{2 * rounds} processes killed")


@pytest.mark.timeout(120)
@pytest.mark.parametrize("part", range(2))
def test_nothing_that_was_acknowledged_is_lost_or_there_twice(path: Path, part: int) -> None:
    """Two processes, killed 240 times."""
    kill(path, 60, random.randrange(2**31), 110)


@pytest.mark.stress
@pytest.mark.timeout(3600)
def test_four_thousand_processes_killed(path: Path) -> None:
    kill(path, 2000, random.randrange(2**31), 3500)


STANDING_STILL = """
import itertools, sys
from runtime import Message, Session
from runtime._errors import LeaseLost
from runtime.session._journal import Said
from runtime.stores import SQLiteStore
store = SQLiteStore(sys.argv[1], lease=0.2)
for round in range(int(sys.argv[2])):
    journal = store.open(Session([Message("user", "go")], id=f"x{round}"))
    print("open", flush=True)
    for n in itertools.count():
        try:
            journal.append(Said(Message("assistant", f"a{n}")))
        except LeaseLost:
            print(n, flush=True)
            break
"""


@pytest.mark.timeout(120)
def test_a_process_that_stood_still_writes_nothing_behind_the_one_that_took_over(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_file, "PATIENCE", 0.5)  # it may stand still with the lock for writing
    rounds = 8
    environment = dict(os.environ, PYTHONPATH=str(ROOT))
    with subprocess.Popen(
        [sys.executable, "-c", STANDING_STILL, str(path), str(rounds)],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        try:
            assert process.stdout is not None
            for round in range(rounds):
                assert process.stdout.readline() == "open\n"
                with SQLiteStore(path, lease=0.2) as store:
                    taken = take_over(store, f"x{round}", process)
                    os.kill(process.pid, signal.SIGCONT)
                    acknowledged = int(process.stdout.readline())  # it was told that its lease is lost
                    said = [message.content for message in store.load(f"x{round}").messages[1:]]
                mine = [f"b{n}" for n in range(5)]
                assert said[-5:] == mine == taken
                theirs = said[:-5]
                assert theirs == [f"a{n}" for n in range(len(theirs))]
                assert len(theirs) == acknowledged
        finally:
            os.kill(process.pid, signal.SIGCONT)
            process.kill()


def take_over(store: SQLiteStore, id: str, process: subprocess.Popen[str]) -> list[str]:
    """Let the process stand still, take its session over, and write to it."""
    deadline = time.monotonic() + 30
    for pause in itertools.count():
        time.sleep(random.uniform(0.001, 0.02))
        os.kill(process.pid, signal.SIGSTOP)
        try:
            while True:
                assert time.monotonic() < deadline
                try:
                    journal = store.open(store.load(id))
                    break
                except (SessionBusy, SessionChanged, SessionNotFound):
                    time.sleep(0.01)
            said = []
            for n in range(5):
                journal.append(Said(Message("assistant", f"b{n}")))
                said.append(f"b{n}")
            journal.release("idle")
            return said
        except StoreError:  # it stands still in the middle of a transaction: try another moment
            assert pause < 20
            os.kill(process.pid, signal.SIGCONT)
    raise AssertionError
