"""Sessions that go from process to process: killed and taken up; parked in one, answered and ended in others."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
import textwrap

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[3]
SEED = int.from_bytes(os.urandom(4), "big")


def python(*arguments: str, timeout: float = 100.0) -> str:
    """What a program of ours prints. Fails with all of it where that ends badly."""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=timeout, env=environment, check=False
    )
    assert done.returncode == 0, f"{arguments[1:]}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.timeout(120)
def test_a_run_that_is_killed_at_any_write_is_taken_up(tmp_path: pathlib.Path) -> None:
    """Laws 19 to 21, with real processes and a real file: before a write, or after it."""
    killed = int(python("-m", "support.kill_runs", "writes", str(tmp_path)).split()[0])
    assert killed >= 30


@pytest.mark.timeout(120)
def test_a_run_that_is_killed_at_any_moment_is_taken_up(tmp_path: pathlib.Path) -> None:
    """The same, wherever it is: again and again, until it has come to its end."""
    print(f"seed {SEED}")
    python("-m", "support.kill_runs", "moments", str(tmp_path), "250", str(SEED))


@pytest.mark.stress
@pytest.mark.timeout(1200)
def test_a_run_that_is_killed_thousands_of_times(tmp_path: pathlib.Path) -> None:
    """The same, for longer."""
    print(f"seed {SEED}")
    python("-m", "support.kill_runs", "moments", str(tmp_path), "3000", str(SEED), timeout=1100)


PROGRAM = """
import os, pathlib, sys
from runtime import *
from runtime.events import ToolCallConfirmation
from runtime.stores import SQLiteStore
from support.stores import Planned, calls, done

@tool
def pay(to: str) -> str:
    "Pays."
    with open("paid", "a") as file:
        file.write(to + "\\n")
    return f"paid {to}"

def agent():
    two = calls(("c1", "pay", {"to": "ann"}), ("c2", "pay", {"to": "bob"}))
    return Agent("a", Planned(two, done("all done")), tools=[pay])

store = SQLiteStore("sessions.db")
"""


def test_a_question_is_asked_in_one_process_answered_in_a_second_and_used_in_a_third(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first does not even end well."""
    monkeypatch.chdir(tmp_path)
    first = """
    session = Session.from_user("go")
    with Runtime(agent(), store=store) as runtime, runtime.run_stream(session) as stream:
        asked = 0
        for event in stream:
            if isinstance(event, ToolCallConfirmation):
                asked += 1
                if asked == 2:
                    stream.park()
        print(stream.reason, flush=True)
        os._exit(0)
    """
    second = """
    for request in store.pending():
        store.answer(request.id, {"approved": request.arguments == '{"to": "ann"}'}, by="second")
    """
    third = """
    with Runtime(agent(), store=store) as runtime:
        for stream in runtime.resume_ready():
            print(stream.result().text, [m.content for m in stream.session.messages if m.role == "tool"])
    """
    reason = python("-c", PROGRAM + textwrap.dedent(first)).strip()
    assert reason == "waiting"
    python("-c", PROGRAM + textwrap.dedent(second))
    printed = python("-c", PROGRAM + textwrap.dedent(third))
    assert printed == "all done ['paid ann', 'this call was rejected by the user']\n"
    assert (tmp_path / "paid").read_text() == "ann\n"
    assert python("-c", PROGRAM + textwrap.dedent(third)) == ""
