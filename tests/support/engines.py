"""Engines for tests: their workers are kept by a process of their own (`support/engine_guard.py`)."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 100.0  # seconds, on a busy machine


@contextlib.contextmanager
def guarded(engine: str) -> Iterator[str]:
    """The workers of an engine, or a broker; their address.

    Where no Redis server is installed, what needs one is skipped. With ``LOCKGATE_REDIS=required`` in the environment,
    as in CI, it fails instead.
    """
    if engine in ("celery", "redis") and shutil.which("redis-server") is None:
        if os.environ.get("LOCKGATE_REDIS") == "required":
            pytest.fail("redis-server is not installed")
        pytest.skip("redis-server is not installed")
    command = [sys.executable, "-m", "support.engine_guard", engine]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    ) as guard:
        assert guard.stdout is not None
        assert guard.stderr is not None
        address = guard.stdout.readline().strip()
        assert address, guard.stderr.read()
        try:
            yield address
        finally:
            guard.communicate(timeout=PATIENCE)  # which closes its standard input


def environment(*paths: Path) -> dict[str, str]:
    """In which workers and callers find the agents of the tests, and what is in ``paths``."""
    known = [os.environ["PYTHONPATH"]] if os.environ.get("PYTHONPATH") else []
    found = os.pathsep.join([*map(str, (*paths, ROOT / "tests", ROOT)), *known])
    return dict(os.environ, PYTHONPATH=found, PYTHONWARNINGS="ignore")
