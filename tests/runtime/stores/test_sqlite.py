"""`SQLiteStore`: the file, its one writer, two processes on one file, and what may be wrong with a file."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import re
import socket
import sqlite3
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from channels import Cancelled, CancelToken
from runtime import Agent, Image, Message, RunError, Runtime, Session, SessionBusy
from runtime._errors import LeaseLost, StoreError, StoreTooNew
from runtime.session._journal import Said
from runtime.stores import SQLiteStore
from runtime.stores._owner import Owner
from runtime.stores.conformance import StoreConformance
from runtime.stores.sqlite import _file, _migrations, _search, _store
from support.interrupts import between, press_ctrl_c
from support.scripted import Scripted
from support.scripted import say as say_it

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "sessions.db"


class TestSQLiteStore(StoreConformance):
    @pytest.fixture
    def store(self, path: Path) -> Iterator[SQLiteStore]:
        with SQLiteStore(path) as store:
            yield store

    @pytest.fixture
    def other(self, store: SQLiteStore) -> Iterator[SQLiteStore]:
        with SQLiteStore(store.path) as other:
            yield other


def say(text: str) -> Said:
    return Said(Message("assistant", text))


def contents(store: SQLiteStore, id: str) -> list[str]:
    return [message.content for message in store.load(id).messages]


@contextlib.contextmanager
def raw(path: Path | str) -> Iterator[sqlite3.Connection]:
    """The file, as another program sees it."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None, timeout=0)) as connection:
        yield connection


@contextlib.contextmanager
def standing_still(store: SQLiteStore) -> Iterator[None]:
    """The writer gets no further than to its next transaction."""
    with store._core().writer.inside:
        yield


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


# -- the writer --------------------------------------------------------------------------------------------------------


def test_what_comes_together_is_written_together(path: Path, threads: Any) -> None:
    with SQLiteStore(path) as store:
        journals = [store.open(Session.from_user(f"{n}")) for n in range(20)]
        writer = store._core().writer
        batches: list[int] = []
        real = writer._write

        def counted(batch: Any) -> None:
            batches.append(len(batch))
            real(batch)

        writer._write = counted  # type: ignore[method-assign]
        with standing_still(store):
            journals[0].post(say("hi"))
            wait_until(lambda: batches == [1])
            tasks = [threads.go(journal.append, say("hi")) for journal in journals[1:]]
            wait_until(lambda: len(writer.inbox) == 19)
        for task in tasks:
            task.result()
        assert batches == [1, 19]


def test_one_that_fails_does_not_take_the_others_with_it(path: Path) -> None:
    with SQLiteStore(path) as store:
        good, lost = Session.from_user("good"), Session.from_user("lost")
        journals = store.open(good), store.open(lost)
        with raw(path) as other:
            other.execute("UPDATE sessions SET epoch = epoch + 1 WHERE id = ?", (lost.id,))
        with standing_still(store):
            for journal in (journals[0], journals[1], journals[0]):
                journal.post(say("hi"))
        journals[0].append(say("last"))
        with pytest.raises(LeaseLost):
            journals[1].append()
        assert contents(store, good.id) == ["good", "hi", "hi", "last"]
        assert contents(store, lost.id) == ["lost"]


def test_a_caller_waits_with_its_cancel_token(path: Path, threads: Any) -> None:
    with SQLiteStore(path) as store:
        session = Session.from_user("hello")
        journal = store.open(session)
        token = CancelToken()
        with standing_still(store):
            task = threads.go(journal.append, say("hi"), cancel=token)
            wait_until(lambda: task.running)
            token.cancel()
            task.raises(Cancelled)
            with pytest.raises(StoreError, match=r"within 0\.01 s"):
                journal.release("idle", timeout=0.01)
        wait_until(lambda: store.sessions()[0].status == "idle")
        assert contents(store, session.id) == ["hello", "hi"]


def test_close_writes_what_is_on_its_way_and_ends_the_thread(path: Path) -> None:
    before = set(threading.enumerate())
    store = SQLiteStore(path)
    session = Session.from_user("hello")
    journal = store.open(session)
    for n in range(100):
        journal.post(say(f"{n}"))
    store.close()
    assert set(threading.enumerate()) <= before
    with SQLiteStore(path) as store:
        assert contents(store, session.id) == ["hello", *(f"{n}" for n in range(100))]
        assert store.sessions()[0].status == "interrupted"
        store.open(store.load(session.id)).release("idle")  # the lease was given back


def test_a_store_that_is_forgotten_ends_its_thread(path: Path) -> None:
    store = SQLiteStore(path)
    journal = store.open(Session.from_user("hello"))
    del store
    gc.collect()
    journal.append(say("a journal keeps its store"))
    thread = journal._writer._thread
    del journal
    gc.collect()
    thread.join(10)
    assert not thread.is_alive()


def test_a_journal_that_nobody_has_any_more_gives_its_lease_back(path: Path) -> None:
    """As after a Ctrl-C in the middle of an opening."""
    with SQLiteStore(path) as store:
        session = Session.from_user("hello")
        journal = store.open(session)
        del journal
        gc.collect()
        wait_until(lambda: store.sessions()[0].status == "interrupted")
        store.open(store.load(session.id)).release("idle")


EXITING = """
import sys
from runtime import Message, Session
from runtime.session._journal import Said
from runtime.stores import SQLiteStore
store = SQLiteStore(sys.argv[1])
journal = store.open(Session([Message("user", "hello")], id="x"))
for n in range(50):
    journal.post(Said(Message("assistant", str(n))))
"""


def test_what_is_on_its_way_is_written_as_the_interpreter_exits(path: Path, script: Callable[..., str]) -> None:
    script(EXITING, str(path))
    with SQLiteStore(path) as store:
        assert len(store.load("x").messages) == 51


def test_durability_says_when_the_disk_is_waited_for(path: Path) -> None:
    for durability, level in (("process", 1), ("power", 2)):
        with SQLiteStore(path, durability=durability) as store:  # type: ignore[arg-type]
            done = store._core().writer.do(lambda connection, _: connection.execute("PRAGMA synchronous").fetchone())
            assert done == (level,)
    with pytest.raises(ValueError, match="durability"):
        SQLiteStore(path, durability="full")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="lease"):
        SQLiteStore(path, lease=0)


# -- leases ------------------------------------------------------------------------------------------------------------

HOLDING = """
import sys
from runtime import Message, Session
from runtime.session._journal import Said
from runtime.stores import SQLiteStore
store = SQLiteStore(sys.argv[1])
journal = store.open(Session([Message("user", "hello")], id="x"))
journal.append(Said(Message("assistant", "hi")))
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def holder(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process, in which a stream has the session x."""
    environment = dict(os.environ, PYTHONPATH=str(ROOT))
    with subprocess.Popen(
        [sys.executable, "-c", HOLDING, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
        process.kill()


def test_a_session_of_a_process_that_died_is_taken_over_at_once(path: Path, holder: subprocess.Popen[str]) -> None:
    with SQLiteStore(path) as store:
        with pytest.raises(SessionBusy, match=f"process {holder.pid} on {re.escape(socket.gethostname())}"):
            store.open(store.load("x"))
        assert store.sessions()[0].status == "running"
        holder.kill()
        holder.wait(10)
        assert store.sessions()[0].status == "interrupted"
        session = store.load("x")
        assert [message.content for message in session.messages] == ["hello", "hi"]
        store.open(session).release("idle")


def test_a_process_whose_number_was_given_again_is_gone(path: Path) -> None:
    with SQLiteStore(path) as store:
        session = Session.from_user("hello")
        journal = store.open(session)
        owner = {**Owner.here().to_dict(), "pid": os.getppid(), "started": "1"}
        with raw(path) as other:
            other.execute("UPDATE sessions SET owner = ?", (json.dumps(owner),))
        assert store.sessions()[0].status == "interrupted"
        store.open(store.load(session.id)).release("idle")
        del journal


def elsewhere(path: Path, until: int) -> None:
    """Let the session be that of a process on another machine."""
    owner = {"host": "far-away", "pid": 1, "machine": "another", "started": "5"}
    with raw(path) as other:
        other.execute("UPDATE sessions SET owner = ?, lease_until = ?", (json.dumps(owner), until))


def test_a_lease_of_another_machine_is_taken_over_when_it_has_run_out(path: Path) -> None:
    with SQLiteStore(path) as store:
        session = Session.from_user("hello")
        lost = store.open(session)
        elsewhere(path, 2**51)
        with pytest.raises(SessionBusy, match="process 1 on far-away"):
            store.open(store.load(session.id))
        elsewhere(path, 1)
        journal = store.open(store.load(session.id))
        journal.append(say("mine"))
        for _ in range(2):
            with pytest.raises(LeaseLost, match=f"taken over by process {os.getpid()}"):
                lost.append(say("late"))
        with pytest.raises(LeaseLost):
            lost.release("idle")
        journal.append(say("still mine"))
        assert contents(store, session.id) == ["hello", "mine", "still mine"]
        assert store.sessions()[0].status == "running"
        journal.release("idle")


def test_a_journal_of_a_session_that_was_deleted_writes_nothing(path: Path) -> None:
    with SQLiteStore(path) as store:
        session = Session.from_user("hello")
        journal = store.open(session)
        elsewhere(path, 1)
        store.delete(session.id)
        with pytest.raises(LeaseLost, match="deleted"):
            journal.append(say("late"))


def test_leases_are_renewed_as_long_as_their_stream_runs(path: Path) -> None:
    with SQLiteStore(path, lease=2) as store, raw(path) as other:
        journal = store.open(Session.from_user("hello"))

        def until() -> int:
            return int(other.execute("SELECT lease_until FROM sessions").fetchone()[0])

        seen = {until()}
        wait_until(lambda: seen.add(until()) or len(seen) > 3)
        assert until() > time.time() * 1e6
        journal.release("idle")


# -- forks -------------------------------------------------------------------------------------------------------------

FORKING = """
import os, sys, threading
from runtime import Message, Session
from runtime._errors import StoreError
from runtime.session._journal import Said
from runtime.stores import SQLiteStore
store = SQLiteStore(sys.argv[1])
journal = store.open(Session([Message("user", "hello")], id="parent"))
store.load("parent")
stop = threading.Event()
def write():
    while not stop.is_set():
        journal.append(Said(Message("assistant", "x")))
        store.load("parent")
threads = [threading.Thread(target=write) for _ in range(4)]
for thread in threads:
    thread.start()
children = []
for n in range(8):
    child = os.fork()
    if not child:
        status = 1
        try:
            try:
                journal.append(Said(Message("assistant", "of the child")))
            except StoreError:
                own = store.open(Session([Message("user", "hello")], id=str(n)))
                own.append(Said(Message("assistant", "hi")))
                own.release("idle")
                assert len(store.load(str(n)).messages) == 2
                if n % 2:
                    store.close()
                status = 0
        finally:
            sys.stdout.flush()
            if n < 4:
                os._exit(status)
            sys.exit(status)
    children.append(child)
for child in children:
    assert os.waitpid(child, 0)[1] == 0
stop.set()
for thread in threads:
    thread.join()
journal.append(Said(Message("assistant", "last")))
journal.release("idle")
assert {message.content for message in store.load("parent").messages} == {"hello", "x", "last"}
assert len(store.sessions()) == 9
store.close()
"""


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_has_a_connection_and_a_writer_of_its_own(path: Path, script: Callable[..., str]) -> None:
    """Also where it was forked while threads of the parent were inside SQLite."""
    script(FORKING, str(path), timeout=40, stderr=None)
    with raw(path) as other:
        assert other.execute("PRAGMA integrity_check").fetchone() == ("ok",)


# -- what may be wrong with a file -------------------------------------------------------------------------------------


def test_the_file_is_for_its_owner_alone(path: Path) -> None:
    before = os.umask(0)
    try:
        with SQLiteStore(path) as store:
            store.open(Session.from_user("hello")).release("idle")
            for each in path.parent.iterdir():
                assert stat.S_IMODE(each.stat().st_mode) == 0o600, each
            store.backup(path.parent / "copy.db")
            assert stat.S_IMODE((path.parent / "copy.db").stat().st_mode) == 0o600
        link = path.parent / "link.db"
        link.symlink_to(path.parent / "target.db")
        with SQLiteStore(link):
            assert stat.S_IMODE((path.parent / "target.db").stat().st_mode) == 0o600
    finally:
        os.umask(before)


@pytest.mark.parametrize(
    "name", ["with space", "?mode=ro", "100%25#x", "file:x", "ünï", "'quoted\"", "-x", "a\nb", "\udce9"]
)
def test_paths_with_odd_characters(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with SQLiteStore(name) as store:
        monkeypatch.chdir("/")  # a store is where it was made
        store.open(Session.from_user("hello")).release("idle")
        store.backup(f"{store.path} copy")
        assert {each.name for each in tmp_path.iterdir()} == {name, f"{name}-wal", f"{name}-shm", f"{name} copy"}
    assert {each.name for each in tmp_path.iterdir()} == {name, f"{name} copy"}


@pytest.mark.parametrize("path", ["", ":memory:", "a\0b", 5, None])
def test_what_is_no_path(path: Any) -> None:
    with pytest.raises((ValueError, TypeError), match="path of a store"):
        SQLiteStore(path)


def test_a_path_that_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="is a directory: give the path of a file in it"):
        SQLiteStore(tmp_path)
    with pytest.raises(StoreError, match=r"there is no directory .*make it first"):
        SQLiteStore(tmp_path / "no" / "sessions.db")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(StoreError, match="is not a file"):
        SQLiteStore(tmp_path / "pipe")
    with pytest.raises(StoreError, match="cannot be opened"):
        SQLiteStore(tmp_path / ("x" * 300))


def left_as_it_is(path: Path, match: str, kind: type[Exception] = StoreError) -> None:
    before = {each.name: each.read_bytes() for each in path.parent.iterdir()}
    with pytest.raises(kind, match=match):
        SQLiteStore(path)
    assert {each.name: each.read_bytes() for each in path.parent.iterdir()} == before


def test_a_file_of_another_program_is_left_as_it_is(path: Path) -> None:
    path.write_text("Dear diary, " * 1000)
    left_as_it_is(path, "not a store, but a file of another program")
    path.write_bytes(b"x")
    left_as_it_is(path, "file of another program")
    path.unlink()
    with raw(path) as other:
        other.execute("CREATE TABLE sessions (id)")
    left_as_it_is(path, "database of another program")
    with raw(path) as other:
        other.execute("DROP TABLE sessions")
        other.execute("PRAGMA application_id = 1234")
    left_as_it_is(path, "database of another program")


def test_an_empty_file_becomes_a_store(path: Path) -> None:
    path.touch()
    with SQLiteStore(path) as store:
        store.open(Session.from_user("hello")).release("idle")


def test_a_file_of_a_later_version_is_left_as_it_is(path: Path) -> None:
    SQLiteStore(path).close()
    with raw(path) as other:
        other.execute("PRAGMA user_version = 99")
    left_as_it_is(path, "later version.*pip install --upgrade", StoreTooNew)


def test_a_file_that_a_later_version_takes_over_is_written_no_more(path: Path) -> None:
    """While it is open: the later one may have changed what its rows mean. The session in memory stays whole."""
    with (
        SQLiteStore(path) as store,
        Runtime(Agent("a", Scripted(say_it("one"), say_it("two"))), store=store) as runtime,
    ):
        session = Session.from_user("hello")
        runtime.run(session)
        with raw(path) as other:
            other.execute("PRAGMA user_version = 99")
        session.add_user("and?")
        with pytest.raises(StoreTooNew, match="later version"):
            runtime.run(session)
        assert contents(store, session.id) == ["hello", "one"]
        assert [message.content for message in session.messages] == ["hello", "one", "and?"]


def test_a_damaged_file_is_left_as_it_is(path: Path) -> None:
    with SQLiteStore(path) as store:
        session = Session([Message("user", "x" * 500) for _ in range(200)])
        store.open(session).release("idle")
    data = bytearray(path.read_bytes())
    data[4096:] = os.urandom(len(data) - 4096)
    path.write_bytes(data)
    before = bytes(data)
    with pytest.raises(StoreError, match=r"damaged.*left as it is.*\.recover"), SQLiteStore(path) as store:
        store.load(session.id)
    assert path.read_bytes()[4096:] == before[4096:]
    path.write_bytes(before[:6000])  # cut off
    with pytest.raises(StoreError, match="damaged"), SQLiteStore(path) as store:
        store.load(session.id)


def test_a_row_that_is_not_ours_is_an_error(path: Path) -> None:
    with SQLiteStore(path) as store:
        session = Session.from_user("hello")
        store.open(session).release("idle")
        for data in ("{", "5", "{}", '{"role": "boss", "content": ""}'):
            with raw(path) as other:
                other.execute("UPDATE items SET data = ?", (data,))
            with pytest.raises(StoreError, match="cannot be read"):
                store.load(session.id)


def test_a_locked_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_file, "PATIENCE", 0.1)
    with SQLiteStore(path) as store, raw(path) as other:
        session = Session.from_user("hello")
        journal = store.open(session)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="locked by another process"):
            journal.append(say("hi"))
        with pytest.raises(StoreError, match="locked"):
            store.open(Session.from_user("another"))
        assert contents(store, session.id) == ["hello"]  # reading goes on
        other.execute("ROLLBACK")
        session._stored.behind = True  # as its log says, whose journal has failed
        store.open(session).release("idle")
    with raw(path) as other:
        other.execute("PRAGMA locking_mode = EXCLUSIVE")
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(StoreError, match="locked by another process"):
            SQLiteStore(path)


def test_a_full_disk(path: Path) -> None:
    with SQLiteStore(path) as store:
        session = Session.from_user("hello")
        journal = store.open(session)
        writer = store._core().writer
        pages = writer.do(lambda connection, _: connection.execute("PRAGMA page_count").fetchone()[0])
        writer.do(lambda connection, _: connection.execute(f"PRAGMA max_page_count = {pages + 5}").fetchone())
        written = []
        with pytest.raises(StoreError, match=r"no room is left on the disk.*make room"):
            for n in range(1000):
                journal.append(say(f"{n} {'x' * 1000}"))
                written.append(n)
        assert len(store.load(session.id).messages) == 1 + len(written)
        with pytest.raises(StoreError, match="no room"):
            journal.append(say("more"))
        writer.do(lambda connection, _: connection.execute("PRAGMA max_page_count = 1000000").fetchone())
        session._messages += [Message("assistant", "all of it")]
        session._stored.behind = True
        again = store.open(session)
        again.append(say("and more"))
        again.release("idle")
        assert contents(store, session.id) == ["hello", "all of it", "and more"]


def test_a_run_on_a_full_disk_ends_as_store_failed_and_can_be_run_again(path: Path) -> None:
    """The session in memory is whole; what the store lacks is written by the next run."""
    model = Scripted(say_it("x" * 200_000), say_it("short"))
    with SQLiteStore(path) as store, Runtime(Agent("a", model), store=store) as runtime:
        session = Session.from_user("hello")
        writer = store._core().writer
        pages = writer.do(lambda connection, _: connection.execute("PRAGMA page_count").fetchone()[0])
        writer.do(lambda connection, _: connection.execute(f"PRAGMA max_page_count = {pages + 8}").fetchone())
        with pytest.raises(RunError, match=r"store_failed.*no room is left on the disk") as caught:
            runtime.run(session)
        assert caught.value.code == "store_failed"
        assert [len(message.content) for message in session.messages] == [5, 200_000]
        assert contents(store, session.id) == ["hello"]
        writer.do(lambda connection, _: connection.execute("PRAGMA max_page_count = 1000000").fetchone())
        session.add_user("again")
        runtime.run(session)
        assert store.load(session.id).messages == session.messages
        assert [len(message.content) for message in session.messages] == [5, 200_000, 5, 5]


def test_a_file_that_is_moved_away_is_written_no_more(path: Path) -> None:
    store = SQLiteStore(path)
    journal = store.open(Session.from_user("hello"))
    path.rename(path.parent / "elsewhere.db")
    with pytest.raises(StoreError, match="moved, deleted or replaced while it was open"):
        journal.append(say("hi"))
    path.write_text("another")
    with pytest.raises(StoreError, match="moved, deleted or replaced"):
        store.open(Session.from_user("hello"))
    store.close()
    assert path.read_text() == "another"


def test_a_directory_that_is_gone_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    with SQLiteStore(folder / "sessions.db") as store:
        session = Session.from_user("hello")
        store.open(session).release("idle")
        for each in folder.iterdir():
            each.unlink()
        folder.rmdir()
        with pytest.raises(StoreError, match=r"no directory '.*folder' any more"):
            store.load(session.id)
        with pytest.raises(StoreError, match="moved, deleted or replaced"):
            store.delete(session.id)
    assert not folder.exists()


def test_a_part_of_the_store_that_is_gone_is_named(path: Path) -> None:
    """Its -wal file, which looks as if it were left over."""
    with SQLiteStore(path) as store:
        session = Session.from_user("hello")
        store.open(session).release("idle")
        for end in ("-wal", "-shm"):
            Path(f"{path}{end}").unlink()
        error = sqlite3.OperationalError("disk I/O error")
        error.sqlite_errorcode, error.sqlite_errorname = sqlite3.SQLITE_IOERR_SHORT_READ, "SQLITE_IOERR_SHORT_READ"
        assert re.search("-wal', was moved or deleted", str(store._file.explained(error)))


UNPRIVILEGED = """
import os, sys, tempfile
from runtime import Session
from runtime._errors import StoreError
from runtime.stores import SQLiteStore
session = Session.from_user("hello")
with tempfile.TemporaryDirectory() as folder, SQLiteStore(f"{folder}/x") as store:
    store.open(session).release("idle")  # what is imported late may be out of reach of that user
if os.geteuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
try:
    with SQLiteStore(sys.argv[1]) as store:
        store.open(session)
except StoreError as error:
    print(error)
"""


def test_a_file_that_may_not_be_written_or_read(script: Callable[..., str]) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:  # that of pytest is for its user alone, again and again
        path = Path(folder) / "sessions.db"
        with SQLiteStore(path) as store:
            store.open(Session.from_user("hello")).release("idle")
        for mode, closed, said in (
            (0o444, 0o755, f"may not make files in '{folder}'"),
            (0o444, 0o777, "may not read and write it"),
            (0o000, 0o777, "may not read and write it"),
            (0o666, 0o700, f"may not enter the directory '{folder}'"),
        ):
            path.chmod(mode)
            Path(folder).chmod(closed)
            if os.geteuid() == 0:
                assert said in script(UNPRIVILEGED, str(path), timeout=30)
        Path(folder).chmod(0o755)
        if os.geteuid() == 0:
            assert f"may not make files in '{folder}'" in script(UNPRIVILEGED, f"{path}.new", timeout=30)
        assert path.exists()


def test_network_file_systems_are_refused(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    mounts = path.parent / "mounts"
    mounts.write_text(
        "overlay / overlay rw 0 0\n"
        f"server:/x {path.parent.parent} nfs4 rw 0 0\n"
        "tmpfs /tmp\\040x tmpfs rw 0 0\nbroken\n"
        "host /mnt/shared 9p rw 0 0\n"
    )
    kind = _file.kind_of_file_system
    assert kind(str(path), str(mounts)) == "nfs4"
    assert kind("/tmp x/y", str(mounts)) == "tmpfs"
    assert kind("/tmp xy", str(mounts)) == "overlay"
    assert kind("/mnt/shared/y", str(mounts)) == "9p"
    assert kind("/x", str(path.parent / "nothing")) == ""
    monkeypatch.setattr(_file, "kind_of_file_system", lambda path: "nfs4")
    with pytest.raises(StoreError, match=r"network file system \(nfs4\).*local disk, or use PostgresStore"):
        SQLiteStore(path)
    assert not path.exists()
    monkeypatch.setattr(_file, "kind_of_file_system", lambda path: "9p")
    SQLiteStore(path).close()
    assert "shared with another kernel (9p)" in caplog.text


def test_a_file_system_without_shared_memory(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Without(sqlite3.Connection):
        def execute(self, sql: str, *args: Any) -> Any:
            return super().execute(sql.replace("journal_mode = WAL", "journal_mode"), *args)

    real = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *args, **more: real(*args, **{**more, "factory": Without}))
    with pytest.raises(StoreError, match=r"no shared memory.*local disk"):
        SQLiteStore(path)


def test_an_old_sqlite_is_named(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 34, 1))
    with pytest.raises(StoreError, match=r"needs SQLite 3\.37 or later"):
        SQLiteStore(path)


@pytest.mark.parametrize(
    ("code", "match"),
    [
        ("SQLITE_IOERR_SHMMAP", "does not lock files or share memory"),
        ("SQLITE_IOERR_WRITE", "quota or a limit"),
        ("SQLITE_IOERR_FSYNC", "disk of .* has failed"),
        ("SQLITE_READONLY_DIRECTORY", "cannot be written.*file system is read-only"),
        ("SQLITE_CANTOPEN", "cannot be opened"),
        ("SQLITE_NOMEM", "could not be used"),
    ],
)
def test_each_error_of_sqlite_says_what_to_do(path: Path, code: str, match: str) -> None:
    error = sqlite3.OperationalError("x")
    error.sqlite_errorcode, error.sqlite_errorname = getattr(sqlite3, code), code
    assert re.search(match, str(_file.StoreFile(path, "process").explained(error)))


# -- event logs --------------------------------------------------------------------------------------------------------


def test_a_log_is_emptied_an_hour_after_its_last_event_but_not_under_a_stream(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its numbers go on behind that."""
    monkeypatch.setattr(_store, "_EVERY", -1)
    with SQLiteStore(path) as store:
        kept, old, live, other = (Session.from_user(f"{n}") for n in range(4))
        journals = [store.open(session) for session in (kept, old, live, other)]
        for session in (kept, old, live):
            store.append_events(session, [(1, "a"), (2, "b")])
        for journal in journals[:2]:
            journal.release("idle")
        with raw(path) as connection:
            connection.execute(
                "UPDATE event_logs SET changed_at = changed_at - 3601000000 WHERE session IN"
                " (SELECT number FROM sessions WHERE id IN (?, ?))",
                (old.id, live.id),
            )
        store.append_events(other, [(1, "x")])
        assert [len(store.events(session.id)) for session in (kept, old, live)] == [2, 0, 2]
        assert store.last_event(old.id) == 2
        journal = store.open(old)
        store.append_events(old, [(3, "c")])
        assert list(store.events(old.id)) == [(3, "c")]
        for each in (journal, *journals[2:]):
            each.release("idle")


def test_what_another_process_writes_is_seen_where_it_is_looked_for_nothing_else(path: Path) -> None:
    """A look that finds the file unchanged reads no table."""
    with SQLiteStore(path) as store, SQLiteStore(path) as other:
        session = Session.from_user("hello")
        journal = store.open(session)
        token = CancelToken()
        notices = other.watch(token, events=True)
        statements: list[str] = []
        core = other._core()
        with core.writer.inside:
            core.writer.connection.set_trace_callback(statements.append)
        wait_until(lambda: len(statements) >= 4)
        assert set(statements) == {"PRAGMA data_version"}
        store.append_events(session, [(1, "a")])
        assert notices.recv(timeout=10).kind == "events"
        token.cancel()
        journal.release("idle")


# -- migrations --------------------------------------------------------------------------------------------------------

STEP = "CREATE TABLE more (x INTEGER) STRICT;\nINSERT INTO more SELECT count(*) FROM items;\n"


def test_an_older_file_becomes_one_of_today_with_a_backup_before(
    path: Path, monkeypatch: pytest.MonkeyPatch, threads: Any
) -> None:
    with SQLiteStore(path) as store:
        session = Session.from_user("hello")
        store.open(session).release("idle")
    monkeypatch.setattr(_migrations, "STEPS", [*_migrations.STEPS, STEP])
    stores = threads.all(*[lambda: SQLiteStore(path) for _ in range(3)], timeout=30)
    for store in stores:
        assert contents(store, session.id) == ["hello"]
        store.close()
    with raw(path) as other:
        assert other.execute("SELECT x FROM more").fetchall() == [(1,)]
        assert other.execute("PRAGMA user_version").fetchone() == (len(_migrations.STEPS),)
    monkeypatch.undo()
    backups = list(path.parent.glob("*.backup"))
    assert backups
    for backup in backups:
        assert stat.S_IMODE(backup.stat().st_mode) == 0o600
    with SQLiteStore(backups[0]) as store:
        assert contents(store, session.id) == ["hello"]


def test_a_file_of_the_first_version_is_run_on(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its sessions get event logs, and take commands; a new file is made without a backup of nothing."""
    monkeypatch.setattr(_migrations, "STEPS", _migrations.STEPS[:1])
    file = _file.StoreFile(path, "process")
    file.prepare()
    with contextlib.closing(file.connect(write=True)) as connection:
        _migrations.migrate(file, connection)
        connection.execute(
            "INSERT INTO sessions (id, title, status, permissions, compacted, messages, created_at, updated_at, epoch)"
            " VALUES ('old', 'a title', 'idle', ?, ?, 1, 5, 6, 3)",
            (
                '{"allow": [], "ask": [], "deny": [], "approve_all": false}',
                '{"summary": "", "start": 0, "shortened": 0, "at": 0}',
            ),
        )
        connection.execute(
            "INSERT INTO items VALUES (?, ?)", ((1 << 32), json.dumps(Message("user", "hello").to_dict()))
        )
        assert connection.execute("PRAGMA user_version").fetchone() == (1,)
    monkeypatch.undo()
    with SQLiteStore(path) as store:
        session = store.load("old")
        assert [message.content for message in session.messages] == ["hello"]
        journal = store.open(session, listens=True)
        store.append_events(session, [(1, "{}")])
        store.cancel("old", "enough")
        assert (store.last_event("old"), store.commands("old").cancel) == (1, "enough")
        journal.release("idle")
    (backup,) = path.parent.glob("*.backup")
    with raw(backup) as old:
        assert old.execute("PRAGMA user_version").fetchone() == (1,)
    with SQLiteStore(path.parent / "new.db"):
        assert list(path.parent.glob("*.backup")) == [backup]


def test_a_log_whose_events_have_a_row_each_is_gone_on_with(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the second version wrote it: what is added behind them has a row together."""
    monkeypatch.setattr(_migrations, "STEPS", _migrations.STEPS[:2])
    file = _file.StoreFile(path, "process")
    file.prepare()
    rows = [(number, f"{number},1\n") for number in range(1, 8)]
    with contextlib.closing(file.connect(write=True)) as connection:
        _migrations.migrate(file, connection)
        connection.execute(
            "INSERT INTO sessions (id, title, status, permissions, compacted, created_at, updated_at, epoch, events)"
            " VALUES ('old', '', 'idle', ?, ?, 5, 6, 3, 7)",
            (
                '{"allow": [], "ask": [], "deny": [], "approve_all": false}',
                '{"summary": "", "start": 0, "shortened": 0, "at": 0}',
            ),
        )
        connection.executemany("INSERT INTO events VALUES (?, ?)", [((1 << 32) + at, text) for at, text in rows])
    monkeypatch.undo()
    with SQLiteStore(path) as store:
        session = store.load("old")
        journal = store.open(session)
        assert list(store.events("old")) == rows
        more = [(8, "8"), (9, "9"), (10, "10")]
        store.append_events(session, more)
        for since in range(12):
            assert list(store.events("old", since)) == [*rows, *more][since:]
        journal.release("idle")
    with raw(path) as other:
        assert other.execute("SELECT count(*), sum(count) FROM events").fetchone() == (8, 10)


def test_a_step_that_fails_leaves_the_file_as_it_was(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with SQLiteStore(path) as store:
        session = Session.from_user("hello")
        store.open(session).release("idle")
    monkeypatch.setattr(_migrations, "STEPS", [*_migrations.STEPS, STEP + "INSERT INTO missing VALUES (1);\n"])
    with pytest.raises(StoreError, match="no such table: missing"):
        SQLiteStore(path)
    monkeypatch.undo()
    with SQLiteStore(path) as store:
        assert contents(store, session.id) == ["hello"]
    with raw(path) as other:
        assert other.execute("SELECT count(*) FROM sqlite_schema WHERE name = 'more'").fetchone() == (0,)


def test_a_backup_is_whole_while_streams_go_on(path: Path) -> None:
    copy = path.parent / "copy.db"
    with SQLiteStore(path) as store:
        session = Session.from_user("hello")
        journal = store.open(session)
        store.backup(copy)
        journal.append(say("later"))
        with pytest.raises(StoreError, match="no backup"):
            store.backup(copy)
        with pytest.raises(StoreError, match="no backup"):
            store.backup(path.parent / "no" / "copy.db")
        with SQLiteStore(copy) as other:
            assert contents(other, session.id) == ["hello"]
        journal.release("idle")


# -- images, search ----------------------------------------------------------------------------------------------------


def test_an_image_is_kept_once_and_goes_with_its_last_message(path: Path) -> None:
    image = Image(b"picture" * 100, "image/png")
    with SQLiteStore(path) as store, raw(path) as other:

        def blobs() -> int:
            return int(other.execute("SELECT count(*) FROM blobs").fetchone()[0])

        first, second = (Session([Message("user", "look", images=(image, image))]) for _ in range(2))
        for session in (first, second):
            store.open(session).release("idle")
        assert blobs() == 1
        branch = store.branch(first.id)
        store.delete(first.id)
        store.delete(second.id)
        assert store.load(branch.id).messages[0].images == (image, image)
        store.delete(branch.id)
        assert blobs() == 0


def test_a_sqlite_without_fts5_searches_too(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a file may be used by both: one that has it indexes what the other has written."""

    def found(store: SQLiteStore, query: str) -> list[str]:
        return [info.id for info in store.sessions(query)]

    first, second, third = (Session.from_user(f"a {word} here") for word in ("needle", "thread", "button"))
    with SQLiteStore(path) as store:
        store.open(first).release("idle")
        assert found(store, "NEEDLE here") == [first.id]
    with monkeypatch.context() as without, SQLiteStore(path) as store:
        without.setattr(_search, "has_fts5", lambda connection: False)
        with SQLiteStore(path) as plain:
            plain.open(second).release("idle")
            assert found(plain, "thread HERE") == [second.id]
            assert found(plain, "needle thread") == []
            assert set(found(plain, "here")) == {first.id, second.id}
            plain.delete(first.id)
            assert found(plain, "needle") == []
    with SQLiteStore(path) as store:
        assert found(store, "thread") == [second.id]
        assert found(store, "needle") == []
        store.open(third).release("idle")
        assert found(store, "button") == [third.id]
        with raw(path) as other:
            indexed = "SELECT count(*) FROM word_index WHERE word_index MATCH 'button'"
            assert other.execute(indexed).fetchone() == (1,)
            store.delete(third.id)
            assert other.execute(indexed).fetchone() == (0,)
        assert found(store, "button") == []


@pytest.mark.parametrize("fts5", [True, False])
def test_a_session_that_was_written_anew_is_found_by_its_new_words(
    path: Path, monkeypatch: pytest.MonkeyPatch, fts5: bool
) -> None:
    session = Session.from_user("an old word")
    with SQLiteStore(path) as store:
        store.open(session).release("idle")
        assert store.sessions("old")
    with monkeypatch.context() as maybe:
        maybe.setattr(_search, "has_fts5", lambda connection: fts5)
        with SQLiteStore(path) as store:
            session._messages[:] = [Message("user", "a new word")]
            assert session._stored is not None
            session._stored.behind = True  # as its log says, whose journal has failed
            store.open(session).release("idle")
    with SQLiteStore(path) as store:
        assert store.sessions("new")
        assert not store.sessions("old")
        store.delete(session.id)
        assert not store.sessions("new")


def test_the_text_of_what_is_deleted_is_not_left_in_the_file(path: Path) -> None:
    with SQLiteStore(path) as store:
        session = Session.from_user("the secret is swordfish")
        store.open(session).release("idle")
        assert store.sessions("swordfish")
        store.delete(session.id)
    assert b"the secret is" not in path.read_bytes()


def test_a_large_store_is_indexed_in_pieces(path: Path) -> None:
    with SQLiteStore(path) as store:
        store.open(Session([Message("user", f"number {n}") for n in range(1200)])).release("idle")
        assert len(store.sessions("1199")) == 1
        assert len(store.sessions("0")) == 1


# -- threads -----------------------------------------------------------------------------------------------------------


def test_two_stores_on_one_file_take_turns(path: Path, threads: Any) -> None:
    """Neither waits for long while the other writes all the time."""
    waits: list[float] = []
    done = threading.Event()

    def busy(store: SQLiteStore) -> None:
        journal = store.open(Session.from_user("busy"))
        while not done.is_set():
            journal.append(say("x"))

    with SQLiteStore(path) as one, SQLiteStore(path) as other:
        tasks = [threads.go(busy, one) for _ in range(4)]
        journal = other.open(Session.from_user("hello"))
        for _ in range(50):
            begin = time.monotonic()
            journal.append(say("y"))
            waits.append(time.monotonic() - begin)
        done.set()
        for task in tasks:
            task.result()
    assert sorted(waits)[45] < 1.0


@pytest.mark.filterwarnings("ignore:unclosed database:ResourceWarning")
def test_an_interrupt_in_a_read_leaves_no_connection(path: Path) -> None:
    number, happened = 0, True
    with SQLiteStore(path) as store:
        session = Session.from_user("hello")
        store.open(session).release("idle")
        while happened:

            def read() -> None:
                with contextlib.suppress(KeyboardInterrupt):
                    store.load(session.id)

            happened = between(number, read, press_ctrl_c)
            number += 1
        gc.collect()
        assert len(store._core().readers.connections) <= 1
    assert number > 60


@pytest.mark.parametrize("call", ["load", "delete", "export", "branch", "pending"])
def test_what_is_no_id_is_named(path: Path, call: str) -> None:
    with SQLiteStore(path) as store, pytest.raises(TypeError, match="id of a session must be text"):
        getattr(store, call)(Session())


def test_readers_do_not_wait_for_the_writer(path: Path) -> None:
    with SQLiteStore(path) as store:
        session = Session.from_user("hello")
        journal = store.open(session)
        with standing_still(store):
            journal.post(say("on its way"))
            assert contents(store, session.id) == ["hello"]
            assert len(store.sessions()) == 1
        journal.append()
        assert contents(store, session.id) == ["hello", "on its way"]
