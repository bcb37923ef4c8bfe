"""Engines for tests: their workers are kept by a process of their own (`support/engine_guard.py`)."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 100.0  # seconds, on a busy machine


@contextlib.contextmanager
def guarded(engine: str, *database: str) -> Iterator[str]:
    """The workers of an engine, or a broker; their address. The workers of DBOS are told their ``database``.

    Where no Redis server is installed, what needs one is skipped. With ``LOCKGATE_REDIS=required`` in the environment,
    as in CI, it fails instead.
    """
    if engine in ("celery", "redis") and shutil.which("redis-server") is None:
        if os.environ.get("LOCKGATE_REDIS") == "required":
            pytest.fail("redis-server is not installed")
        pytest.skip("redis-server is not installed")
    command = [sys.executable, "-m", "support.engine_guard", engine, *database]
    # Its errors go to a file: with a pipe it would wait for us to read them, while we wait for its address.
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment()
        ) as guard,
    ):
        assert guard.stdout is not None
        address = guard.stdout.readline().strip()
        if not address:
            guard.wait(PATIENCE)
            errors.seek(0)
            pytest.fail(f"the guard of {engine} has ended:\n{errors.read()}")
        try:
            yield address
        finally:
            guard.communicate(timeout=PATIENCE)  # which closes its standard input


def environment(*paths: Path) -> dict[str, str]:
    """In which workers and callers find the agents of the tests, and what is in ``paths``."""
    known = [os.environ["PYTHONPATH"]] if os.environ.get("PYTHONPATH") else []
    found = os.pathsep.join([*map(str, (*paths, ROOT / "tests", ROOT)), *known])
    return dict(os.environ, PYTHONPATH=found, PYTHONWARNINGS="ignore")
