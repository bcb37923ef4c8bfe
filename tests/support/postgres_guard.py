"""A program that keeps a PostgreSQL server for as long as its standard input is open.

It makes a cluster in a temporary directory and starts a server on it; then ``stop`` and ``start``, a line each, end the
server as a crash does and start it again, and ``pool`` starts a pgbouncer before it, in its transaction mode. What it
says is a line of JSON for each. When its standard input ends, which
the kernel sees to when pytest is killed, it ends the server and removes the directory.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from typing import IO, Any

DEBIAN = "/usr/lib/postgresql"  # where Debian keeps the programs of a server, by version, off the PATH
UNPRIVILEGED = ("postgres", "nobody")  # users to run the server as where the tests run as root, which it refuses
GUARDED = "guarded"  # the only user who is asked for a password
SETTINGS = {
    "listen_addresses": "",
    "fsync": "off",  # the server ends in a test, the machine does not
    "full_page_writes": "off",
    "shared_buffers": "16MB",
    "max_connections": "50",
}
STARTING = 30.0  # seconds that the server may take to start, on a busy machine
ENDING = 10.0
POOL = 6432  # the port that pgbouncer's socket is named after


def pooler() -> str | None:
    """The program pgbouncer, where it is installed."""
    return shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")


def programs() -> pathlib.Path | None:
    """The directory of the programs of the newest server that is installed."""
    found = shutil.which("postgres")
    if found and (pathlib.Path(found).parent / "initdb").exists():
        return pathlib.Path(found).parent
    installed = [path.parent for path in pathlib.Path(DEBIAN).glob("*/bin/initdb")]
    return max(installed, key=lambda path: float(path.parent.name), default=None)


class _Cluster:
    """The data of a server, and its process."""

    def __init__(self, directory: pathlib.Path, user: dict[str, Any]) -> None:
        self.directory = directory
        self._user = user
        self._data = directory / "data"
        self._log = directory / "log"
        found = programs()
        assert found is not None
        self._programs = found
        self._process: subprocess.Popen[bytes] | None = None
        self._pool: subprocess.Popen[bytes] | None = None

    def _run(self, program: str, *args: str, output: IO[bytes]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [str(self._programs / program) if "/" not in program else program, *args],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=self.directory,
            env={"PATH": os.environ.get("PATH", ""), "LC_ALL": "C"},
            **self._user,
        )

    def make(self) -> None:
        with self._log.open("ab") as log:
            options = ("--auth=trust", "--encoding=UTF8", "--locale=C", "--username=lockgate", "--no-sync")
            status = self._run("initdb", "-D", str(self._data), *options, output=log).wait(STARTING)
        if status:
            raise RuntimeError(f"initdb: {self._log.read_text(errors='replace')[-2000:]}")
        access = self._data / "pg_hba.conf"
        access.write_text(f"local all {GUARDED} scram-sha-256\nlocal all all trust\n")

    def start(self) -> int:
        settings = [part for name, value in SETTINGS.items() for part in ("-c", f"{name}={value}")]
        with self._log.open("ab") as log:
            process = self._run("postgres", "-D", str(self._data), "-k", str(self.directory), *settings, output=log)
        self._process = process
        deadline = time.monotonic() + STARTING
        ready = self._data / "postmaster.pid"
        while True:  # its last line says how far it is
            lines = ready.read_text().splitlines() if ready.exists() else []
            if len(lines) >= 8 and lines[0] == str(process.pid) and lines[7].strip() == "ready":
                return process.pid
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"postgres: {self._log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.01)

    def pool(self) -> int:
        """Start a pgbouncer, which gives a connection to another client after each transaction; its process."""
        folder = self.directory / "pool"
        folder.mkdir()
        os.chown(folder, self._user.get("user", -1), self._user.get("group", -1))
        (folder / "users").write_text('"lockgate" ""\n')
        (folder / "pgbouncer.ini").write_text(
            f"[databases]\n* = host={self.directory} user=lockgate\n[pgbouncer]\nlisten_addr =\nlisten_port = {POOL}\n"
            f"unix_socket_dir = {folder}\nauth_type = any\nauth_file = {folder}/users\npool_mode = transaction\n"
            "default_pool_size = 3\n"
        )
        program = pooler()
        assert program is not None
        with self._log.open("ab") as log:
            process = self._pool = self._run(program, str(folder / "pgbouncer.ini"), output=log)
        deadline = time.monotonic() + STARTING
        while not (folder / f".s.PGSQL.{POOL}").exists():
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"pgbouncer: {self._log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.01)
        return process.pid

    def close(self) -> None:
        if self._pool is not None:
            self._pool.kill()
            self._pool.wait()
        self.stop()

    def stop(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(signal.SIGQUIT)  # at once: clients are disconnected, nothing is written
        try:
            process.wait(ENDING)
        except subprocess.TimeoutExpired:
            process.kill()  # its children see that it is gone, and end too
            process.wait()


def _owner(directory: pathlib.Path) -> dict[str, Any]:
    """Whom the server runs as, as `Popen` takes it; ``directory`` is given to that user."""
    if os.geteuid() != 0:
        return {}
    import pwd

    known = {entry.pw_name: entry for entry in pwd.getpwall()}
    entry = next(known[name] for name in UNPRIVILEGED if name in known)
    os.chown(directory, entry.pw_uid, entry.pw_gid)
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}


def _guard() -> None:
    """Keep a server until standard input ends."""
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, signal.SIG_IGN)  # the end of standard input is what ends it
    # Not in a directory of pytest's, which belongs to its user; and the path of a socket may have 107 characters.
    directory = pathlib.Path(tempfile.mkdtemp(prefix="lockgate-postgres-", dir="/tmp"))
    try:
        cluster = _Cluster(directory, _owner(directory))
        try:
            cluster.make()
            _say(directory=str(directory), pid=cluster.start())
            for line in sys.stdin:
                if line == "stop\n":
                    cluster.stop()
                    _say(pid=0)
                elif line == "pool\n":
                    _say(pid=cluster.pool())
                else:
                    _say(pid=cluster.start())
        except Exception as error:
            _say(error=f"{type(error).__name__}: {error}")
        finally:
            cluster.close()
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _say(**what: Any) -> None:
    with contextlib.suppress(BrokenPipeError):
        print(json.dumps(what), flush=True)


if __name__ == "__main__":
    _guard()
