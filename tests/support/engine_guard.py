"""A program that keeps the workers of an engine for as long as its standard input is open: ``dask``, ``dbos URL``, or
``celery`` with its broker, a Redis server, which there is by itself too: ``redis``. It prints the address once they are
there.

When its standard input ends, which the kernel sees to when pytest is killed, it ends them.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

STARTING = 40.0  # seconds, on a busy machine
ENDING = 5.0


@contextlib.contextmanager
def dask() -> Iterator[str]:
    """Two workers, each a process with threads for two jobs."""
    from distributed import LocalCluster

    with LocalCluster(
        n_workers=2, threads_per_worker=2, processes=True, dashboard_address=None, silence_logs=logging.CRITICAL + 1
    ) as cluster:
        yield cluster.scheduler_address


@contextlib.contextmanager
def redis() -> Iterator[str]:
    """A Redis server that keeps nothing."""
    with tempfile.TemporaryDirectory() as directory:
        for _ in range(5):  # the port was free a moment ago
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port = probe.getsockname()[1]
            settings = ("--bind", "127.0.0.1", "--port", str(port), "--save", "", "--dir", directory)
            server = subprocess.Popen(["redis-server", *settings], stdout=subprocess.DEVNULL)
            try:
                if _answers(server, port):
                    yield f"redis://127.0.0.1:{port}/0"
                    return
            finally:
                _end(server)
        raise RuntimeError("redis-server does not start")


def _answers(server: subprocess.Popen[bytes], port: int) -> bool:
    until = time.monotonic() + STARTING
    while server.poll() is None and time.monotonic() < until:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1.0) as client:
            client.sendall(b"PING\r\n")
            if client.recv(7) == b"+PONG\r\n":
                return True
        time.sleep(0.01)
    return False


@contextlib.contextmanager
def celery() -> Iterator[str]:
    """A worker with threads and one with processes, each with a queue of its own."""
    with redis() as broker, contextlib.ExitStack() as workers, tempfile.TemporaryDirectory() as directory:
        environment = dict(os.environ, BROKER=broker)
        logs = []
        for pool in ("threads", "prefork"):
            log = Path(directory) / f"{pool}.log"
            command = [sys.executable, "-m", "celery", "-A", "support.engine_celery", "worker", "-P", pool, "-c", "2"]
            command += ["-Q", pool, "-n", pool, "--without-mingle", "--without-gossip", "--without-heartbeat"]
            command += ["-l", "info", "-f", str(log)]
            quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
            worker = subprocess.Popen(command, env=environment, **quiet)  # type: ignore[call-overload]
            workers.callback(_end, worker)
            logs.append((worker, log))
        for worker, log in logs:
            until = time.monotonic() + STARTING
            while not (log.exists() and " ready." in log.read_text()):
                if worker.poll() is not None or time.monotonic() > until:
                    raise RuntimeError(f"a worker does not start:\n{log.read_text() if log.exists() else ''}")
                time.sleep(0.02)
        yield broker


@contextlib.contextmanager
def dbos(database: str) -> Iterator[str]:
    """A worker, which is started again when it dies."""
    with tempfile.TemporaryDirectory() as directory:
        ended = threading.Event()
        log = Path(directory) / "log"

        def start() -> subprocess.Popen[bytes]:
            with open(log, "a") as file:
                command = [sys.executable, "-m", "support.engine_dbos"]
                return subprocess.Popen(command, env=dict(os.environ, DBOS_DATABASE=database), stdout=file, stderr=file)

        def supervise(worker: subprocess.Popen[bytes]) -> None:
            while not ended.wait(0.05):
                if worker.poll() is not None:
                    worker = start()
            _end(worker)

        first = start()
        until = time.monotonic() + STARTING
        while "ready" not in log.read_text():
            if first.poll() is not None or time.monotonic() > until:
                _end(first)
                raise RuntimeError(f"a worker does not start:\n{log.read_text()[-4000:]}")
            time.sleep(0.02)
        supervisor = threading.Thread(target=supervise, args=(first,))
        supervisor.start()
        try:
            yield database
        finally:
            ended.set()
            supervisor.join()


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(ENDING)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


if __name__ == "__main__":
    engine, *database = sys.argv[1:]
    with {"dask": dask, "celery": celery, "redis": redis, "dbos": dbos}[engine](*database) as address:
        print(address, flush=True)
        sys.stdin.read()
