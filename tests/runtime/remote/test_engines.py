"""Agents on the engines that people have: a run, a question answered across processes, a cancel, many sessions, a
worker that is killed, a caller that is killed. Law 24: at most once, whatever the engine makes of a lost worker.

The callers are processes of their own too (`support/engine_caller.py`), for clients of engines leave threads behind.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from support.engines import PATIENCE, environment, guarded

SCENARIOS = ("run", "failure", "question", "cancel", "map")
KILLS = ("caller_killed", "killed")

pytestmark = [
    pytest.mark.timeout(180),
    pytest.mark.skipif(not hasattr(os, "killpg"), reason="kills processes as POSIX does"),
]


def called(engine: str, address: str, directory: Path, *more: str) -> dict[str, dict[str, Any]]:
    """What a caller saw: for each way to submit a job, in each scenario."""
    command = [sys.executable, "-m", "support.engine_caller", engine, address, str(directory), *SCENARIOS, *more]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=PATIENCE)
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, dict[str, Any]] = {}
    for line in done.stdout.splitlines():
        way, scenario, saw = json.loads(line)
        found.setdefault(way, {})[scenario] = saw
    for saw in found.values():
        assert saw.pop("threads") == {"left": []}
        assert set(SCENARIOS) <= saw.keys()
    return found


def check(found: dict[str, Any], *, elsewhere: bool = True) -> None:
    """What holds on every engine."""
    types = ["stream_started", "stream_stopped"]
    assert found["run"] == {"words": 302, "same": True, "types": types, "elsewhere": elsewhere}
    assert found["failure"] == {"errors": ["model_error"], "reason": "error"}
    assert found["question"]["asked"] == "How many?"
    assert found["question"]["text"].startswith("3 in ")
    cancelled = found["cancel"]
    assert cancelled.pop("seconds") < 15, "the worker was cut off, and did not end the run by itself"  # after 30
    assert cancelled == {"told": True, "errors": [], "reason": "canceled"}
    assert found["map"]["texts"] == ["0 1 2", "0 1 2 3", "0 1 2 3 4"]
    (error,) = found["map"]["errors"]
    assert error.startswith("model_error: ")


def check_kills(found: dict[str, Any], job: str) -> None:
    """``job`` is what the engine says of the job whose worker was killed, once it is through with it."""
    killed = found["killed"]
    assert killed.pop("seconds") < 5
    assert killed == {"job": job, "begun": 1, "errors": ["worker_lost"], "reason": "error"}
    orphaned = found["caller_killed"]
    assert orphaned.pop("seconds") < 5
    assert orphaned == {"begun": 1, "after": True}


def test_a_thread_pool(tmp_path: Path) -> None:
    check(called("threads", "", tmp_path)["pool"], elsewhere=False)


def test_a_process_pool(tmp_path: Path) -> None:
    """A pool that has lost a worker is broken: the run is lost, and is not begun again."""
    found = called("processes", "", tmp_path, *KILLS)
    check(found["pool"])
    check_kills(found["pool"], "BrokenProcessPool")


def test_dask(tmp_path: Path) -> None:
    """Dask runs the task of a lost worker again, without being asked to: it is refused before the agent begins."""
    pytest.importorskip("distributed", reason="the extra engines is not installed")
    with guarded("dask") as address:
        found = called("dask", address, tmp_path, *KILLS)
    check(found["client"])
    check_kills(found["client"], "refused")
    check(found["executor"])


def test_celery(tmp_path: Path) -> None:
    """With the settings that make Celery run the task of a lost worker again: it is refused there too."""
    pytest.importorskip("celery", reason="the extra engines is not installed")
    with guarded("celery") as broker:
        found = called("celery", broker, tmp_path, *KILLS)
    check(found["prefork"])
    check_kills(found["prefork"], "refused")
    check(found["threads"])


def test_dbos(tmp_path: Path, dbos_database: str) -> None:
    """DBOS runs the workflow of a lost worker again in the next one."""
    with guarded("dbos", dbos_database) as database:
        found = called("dbos", database, tmp_path, *KILLS)
    check(found["client"])
    check_kills(found["client"], "refused")
