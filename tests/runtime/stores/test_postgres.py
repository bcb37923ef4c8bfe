"""`PostgresStore` where it is a server's: connections that are cut, a server that ends, processes that meet there.

What every store does is in the conformance suite, which is first.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from channels import Cancelled, CancelToken, ChannelClosed
from runtime import Agent, Message, Permissions, Runtime, Session, SessionBusy, ToolCall, tool
from runtime._errors import LeaseLost, StoreError, StoreTooNew
from runtime.session._journal import Began, Ended, Request, Requested, Said, Step
from support.postgres import Server
from support.stores import RESULTS, Planned, World, calls, done, results
from support.waiting import eventually

psycopg = pytest.importorskip("psycopg", reason="the extra postgres is not installed", exc_type=ImportError)

from runtime.stores.conformance import StoreConformance  # noqa: E402
from runtime.stores.postgres import PostgresStore, _migrations, _watch, _writer  # noqa: E402
from runtime.stores.postgres._database import Database  # noqa: E402

LONG = 10.0
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def store(postgres: str) -> Iterator[PostgresStore]:
    """A store in an empty database."""
    with PostgresStore(postgres) as store:
        yield store


class TestPostgresStore(StoreConformance):
    @pytest.fixture
    def store(self, postgres: str) -> Iterator[PostgresStore]:
        with PostgresStore(postgres) as store:
            yield store

    @pytest.fixture
    def other(self, store: PostgresStore, postgres: str) -> Iterator[PostgresStore]:
        with PostgresStore(postgres) as other:
            yield other


def said(text: str) -> Said:
    return Said(Message("assistant", text))


def texts(store: PostgresStore, id: str) -> list[str]:
    return [message.content for message in store.load(id).messages]


def cut(server: Server, which: str = "true") -> int:
    """End the connections of all databases but the one of this statement; how many there were."""
    return len(
        server.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            f" WHERE datname = 'test' AND pid <> pg_backend_pid() AND {which}"
        )
    )


# -- where the database cannot be used ---------------------------------------------------------------------------------


def test_no_server(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=f"on {tmp_path} cannot be reached: .*; is the server up"):
        PostgresStore(f"host={tmp_path} dbname=x password=secret")


def test_what_is_no_connection_string() -> None:
    with pytest.raises(
        ValueError, match="no connection string of PostgreSQL, such as 'postgresql://user@host/database'"
    ):
        PostgresStore("lockgate.db")
    with pytest.raises(TypeError, match="must be text, not PosixPath"):
        PostgresStore(Path("lockgate.db"))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"database": "missing"}, 'database "missing" does not exist; make it with: createdb'),
        ({"user": "stranger"}, 'role "stranger" does not exist; make it with: createuser'),
        ({"user": "guarded", "password": "wrong-secret"}, "password authentication failed .*check the user and the"),
    ],
)
def test_who_is_not_let_in(postgres_server: Server, more: dict[str, str], told: str) -> None:
    postgres_server.execute("DROP ROLE IF EXISTS guarded")
    postgres_server.execute("CREATE ROLE guarded LOGIN PASSWORD 'right-secret'")
    with pytest.raises(StoreError, match=told) as caught:
        PostgresStore(postgres_server.dsn(**more))
    assert "secret" not in str(caught.value)


def test_a_user_without_the_rights(postgres: str, postgres_server: Server) -> None:
    """Told what to ask for, and let in once that is done."""
    postgres_server.execute("DROP ROLE IF EXISTS reader")
    postgres_server.execute("CREATE ROLE reader LOGIN")
    limited = f"{postgres} user=reader"
    with pytest.raises(StoreError, match="its administrator may say: CREATE SCHEMA lockgate AUTHORIZATION"):
        PostgresStore(limited)
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute("CREATE SCHEMA lockgate AUTHORIZATION reader")
    with PostgresStore(limited) as store:
        store.open(Session.from_user("hello")).release("idle")
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute("REASSIGN OWNED BY reader TO lockgate")
    with pytest.raises(StoreError, match=r"permission denied .*GRANT ALL ON SCHEMA lockgate"):
        PostgresStore(limited)


def test_a_server_that_takes_no_writes(postgres: str) -> None:
    """As a standby does, and one that is about to take over."""
    with PostgresStore(postgres):
        pass
    read_only = f"{postgres} options='-c default_transaction_read_only=on'"
    with PostgresStore(read_only) as store, pytest.raises(StoreError, match=r"takes no writes now.*standby"):
        store.open(Session.from_user("hello"))


def test_tables_of_a_later_version(postgres: str) -> None:
    PostgresStore(postgres).close()
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute("UPDATE lockgate.version SET version = 99")
    with pytest.raises(StoreTooNew, match=r"its tables are of version 99, .*pip install --upgrade lockgate"):
        PostgresStore(postgres)


def test_a_database_in_another_encoding(postgres_server: Server) -> None:
    postgres_server.execute("CREATE DATABASE test_latin ENCODING 'LATIN1' TEMPLATE template0 LOCALE 'C'")
    try:
        with pytest.raises(StoreError, match=r"keeps its text in LATIN1, .*createdb -E UTF8"):
            PostgresStore(postgres_server.dsn("test_latin"))
    finally:
        postgres_server.execute("DROP DATABASE test_latin")


def test_without_psycopg(script: Callable[..., str]) -> None:
    program = """if True:
        import sys
        sys.modules["psycopg"] = None
        try:
            from runtime.stores import PostgresStore
        except ImportError as error:
            print(error)
    """
    assert script(program) == "PostgresStore needs an extra: pip install 'lockgate[postgres]'\n"


def test_many_that_start_at_once_make_the_tables_once(postgres: str, threads: Any) -> None:
    stores = threads.all(*[lambda: PostgresStore(postgres) for _ in range(8)])
    for store in stores:
        store.close()


def test_two_schemas_are_two_stores(postgres: str) -> None:
    with PostgresStore(postgres) as one, PostgresStore(postgres, schema="another") as two:
        one.open(Session.from_user("hello")).release("idle")
        assert len(one.sessions()) == 1
        assert two.sessions() == []
    with pytest.raises(ValueError, match="the name of a schema"):
        PostgresStore(postgres, schema='x"; DROP TABLE')


def test_the_connection_string_is_not_shown(postgres: str) -> None:
    with PostgresStore(f"{postgres} password=secret") as store:
        assert "secret" not in repr(store)
        assert repr(store).startswith("<PostgresStore the database test on ")


# -- connections -------------------------------------------------------------------------------------------------------


def test_what_is_acknowledged_is_there_once_whatever_connections_are_cut(
    store: PostgresStore, postgres_server: Server, threads: Any
) -> None:
    """The writer connects anew, and writes no append twice and none out of order."""
    sessions = [Session([Message("user", "hello")], id=f"s{n}") for n in range(4)]
    journals = [store.open(session) for session in sessions]
    over = threading.Event()

    def write(which: int) -> None:
        for n in range(60):
            journals[which].append(said(str(n)))

    def disturb() -> int:
        count = 0
        while not over.wait(0.01):
            count += cut(postgres_server)
        return count

    disturbing = threads.go(disturb)
    try:
        threads.all(*[lambda which=which: write(which) for which in range(4)], timeout=40)
    finally:
        over.set()
    assert disturbing.result() > 3
    for journal in journals:
        journal.release("idle")
    for session in sessions:
        assert texts(store, session.id) == ["hello", *map(str, range(60))]
        assert session._stored is not None
        assert session._stored.messages == 61


def test_an_append_whose_acknowledgement_is_lost_is_not_written_twice(
    store: PostgresStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    transaction = _writer.Writer._transaction
    lose = [True, False, True]

    def lossy(self: Any, connection: Any, works: Any) -> Any:
        done = transaction(self, connection, works)
        if lose and lose.pop(0):
            connection.close()
            raise psycopg.OperationalError("the connection was cut")
        return done

    monkeypatch.setattr(_writer.Writer, "_transaction", lossy)
    session = Session([Message("user", "hello")], id="s")
    journal = store.open(session)
    journal.append(said("one"))
    journal.append(Step("no such call", "k", 1))  # an append without a message is counted too
    journal.append(said("two"))
    journal.release("idle")
    assert lose == []
    assert texts(store, "s") == ["hello", "one", "two"]
    with psycopg.connect(store._database._dsn) as connection:
        assert connection.execute("SELECT appends FROM lockgate.sessions").fetchall() == [(4,)]


@pytest.mark.parametrize("operation", ["open", "answer", "branch", "import"])
def test_an_operation_whose_acknowledgement_is_lost_is_made_once(
    store: PostgresStore, monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    session = Session([Message("user", "hello"), Message("assistant", "hi")], id="s")
    journal = store.open(session)
    journal.append(Requested(Request("r", "s", "s", "turns", {})))
    journal.release("waiting")
    exported = store.export("s")
    if operation == "import":
        store.delete("s")
    run = type(store._database).run
    lost = []

    def lossy(self: Any, function: Any) -> Any:
        def once(connection: Any) -> Any:
            result = function(connection)
            if not lost and connection.info.transaction_status == 0 and function.__name__ in ("take", "write"):
                lost.append(function.__name__)
                connection.close()
                raise psycopg.OperationalError("the connection was cut")
            return result

        return run(self, once)

    monkeypatch.setattr(type(store._database), "run", lossy)
    if operation == "open":
        store.open(session).release("idle")
        assert session._stored is not None
        assert session._stored.epoch == 2
    elif operation == "answer":
        assert store.answer("r", {"action": "decline"}).answer == {"action": "decline"}
    elif operation == "branch":
        assert [each.content for each in store.branch("s").messages] == ["hello", "hi"]
        assert len(store.sessions()) == 2
    else:
        assert [each.content for each in store.import_(exported).messages] == ["hello", "hi"]
    assert lost == ["take" if operation == "open" else "write"]


def test_a_server_that_is_started_again(postgres: str, postgres_server: Server, threads: Any) -> None:
    """What is under way waits for it, and a cancel ends that wait."""
    with PostgresStore(postgres) as store:
        journal = store.open(Session([Message("user", "hello")], id="s"))
        other = store.open(Session([Message("user", "hello")], id="t"))
        postgres_server.stop()
        try:
            waiting = threads.go(journal.append, said("one"))
            token = CancelToken()
            leaving = threads.go(other.append, said("one"), cancel=token)
            token.cancel()
            leaving.raises(Cancelled)
            with pytest.raises(StoreError, match="cannot be reached"):
                store.load("s")
            assert waiting.running
        finally:
            postgres_server.start()
        waiting.result()
        journal.append(said("two"))
        journal.release("idle")
        other.append(said("two"))  # the one that nobody waited for is in front of it
        other.release("idle")
        assert texts(store, "s") == ["hello", "one", "two"]
        assert texts(store, "t") == ["hello", "one", "two"]


def test_a_server_that_stays_away(postgres: str, postgres_server: Server) -> None:
    """The journal fails for good, and the copy in memory is written whole when it is back."""
    with PostgresStore(postgres, patience=0.1) as store:
        session = Session([Message("user", "hello")], id="s")
        journal = store.open(session)
        postgres_server.stop()
        try:
            with pytest.raises(StoreError, match=r"cannot be reached|was lost") as first:
                journal.append(said("one"))
        finally:
            postgres_server.start()
        with pytest.raises(StoreError) as second:
            journal.append(said("two"))
        assert second.value is first.value
        session._messages += [Message("assistant", "one"), Message("assistant", "two")]
        store.open(session).release("idle")
        assert texts(store, "s") == ["hello", "one", "two"]


def test_closing_while_the_server_is_away_is_bounded(
    postgres: str, postgres_server: Server, monkeypatch: pytest.MonkeyPatch, threads: Any
) -> None:
    monkeypatch.setattr(_writer, "CLOSING", 0.2)
    store = PostgresStore(postgres)
    journal = store.open(Session([Message("user", "hello")], id="s"))
    postgres_server.stop()
    try:
        waiting = threads.go(journal.append, said("one"))
        assert eventually(lambda: store._writer._connection is None)
        began = time.monotonic()
        store.close()
        assert time.monotonic() - began < 5
        waiting.raises(StoreError)
    finally:
        postgres_server.start()


def test_one_append_that_is_refused_takes_no_other_along(store: PostgresStore, threads: Any) -> None:
    good, bad = (store.open(Session([Message("user", "hello")], id=name)) for name in ("good", "bad"))
    with psycopg.connect(store._database._dsn, autocommit=True) as connection:  # as no store does it
        connection.execute("INSERT INTO lockgate.items VALUES ('bad', 1, '{}', '')")
        with connection.transaction():  # the group gathers behind this
            connection.execute("LOCK TABLE lockgate.sessions IN ACCESS EXCLUSIVE MODE")
            first = threads.go(good.append, said("one"))
            assert eventually(lambda: store._writer._connection is not None and not store._writer._queue)
            rest = [threads.go(journal.append, said("two")) for journal in (bad, good)]
            assert eventually(lambda: len(store._writer._queue) == 2)
    first.result()
    rest[0].raises(StoreError)
    rest[1].result()
    good.release("idle")
    assert texts(store, "good") == ["hello", "one", "two"]


def test_an_entry_that_json_has_no_word_for_fails_its_journal_only(store: PostgresStore) -> None:
    good, bad = (store.open(Session([Message("user", "hello")], id=name)) for name in ("good", "bad"))
    with pytest.raises(StoreError, match=r"session bad cannot be written: .*not JSON serializable"):
        bad.append(Said(Message("user", "x")), Requested(Request("r", "bad", "bad", "turns", {"x": object()})))
    good.append(said("one"))
    good.release("idle")
    assert texts(store, "good") == ["hello", "one"]
    with pytest.raises(StoreError, match="session bad cannot be written"):
        bad.release("idle", "error")
    assert {info.id: info.reason for info in store.sessions()} == {"good": "", "bad": "error"}
    store.open(store.load("bad")).release("idle")  # the lease was given back all the same


def test_whoever_waits_for_a_writer_that_breaks_down_is_told(
    store: PostgresStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(self: Any, works: Any) -> None:
        raise MemoryError("no room")

    journal = store.open(Session([Message("user", "hello")], id="s"))
    monkeypatch.setattr(_writer.Writer, "_write", broken)
    with pytest.raises(StoreError, match="the writer of the store has failed: MemoryError: no room"):
        journal.append(said("one"))
    with pytest.raises(StoreError):
        journal.append(said("two"))
    assert "no room" in caplog.text


def test_a_closed_store_says_so(postgres: str) -> None:
    store = PostgresStore(postgres)
    journal = store.open(Session([Message("user", "hello")], id="s"))
    journal.append(said("one"))
    journal.post(said("two"))
    store.close()
    store.close()
    for use in (lambda: journal.append(said("x")), lambda: store.load("s"), lambda: store.watch(CancelToken())):
        with pytest.raises(StoreError, match="the store is closed"):
            use()
    with PostgresStore(postgres) as again:
        assert texts(again, "s") == ["hello", "one", "two"]  # what was on its way was written


def test_a_store_that_is_dropped_ends_its_threads(postgres: str) -> None:
    store = PostgresStore(postgres)
    journal = store.open(Session([Message("user", "hello")], id="s"))
    store.watch(CancelToken())
    journal.append(said("one"))
    journal.release("idle")
    names = {"lockgate-store", "lockgate-store-watch"}
    assert names <= {thread.name for thread in threading.enumerate()}
    del store, journal
    import gc

    gc.collect()
    assert eventually(lambda: not names & {thread.name for thread in threading.enumerate()})


def test_text_that_the_database_does_not_take_comes_back_as_it_was(store: PostgresStore) -> None:
    """A NUL anywhere; and JSON keeps the order of its keys, and its numbers."""
    calls = (ToolCall("c\0", "f\0", '{"b": 1e2, "a": "\\u0000"}'),)
    session = Session([Message("user", "a\0b"), Message("assistant", "\1x", tool_calls=calls)], id="s\0", title="t\0")
    journal = store.open(session)
    event = {"z": 1.0, "schema": {"properties": {"second": {}, "first": {}, "n\0": 100}}}
    request = Request("r\0", "s\0", "s\0", "approval", event, call_id="c\0", arguments='{"a": "\0"}')
    journal.append(Began("c\0", "\0"), Step("c\0", "k\0", {"b": "\0", "a": 1.0}), Requested(request))
    loaded = store.load("s\0")
    assert (loaded.id, loaded.title) == ("s\0", "t\0")
    assert [message.to_dict() for message in loaded.messages] == [message.to_dict() for message in session.messages]
    assert loaded._unfinished is not None
    state = loaded._unfinished.calls["c\0"]
    assert (state.arguments, state.kept) == ("\0", {"k\0": {"b": "\0", "a": 1.0}})
    [kept] = state.requests
    assert kept == request
    assert str(kept.event) == str(event)
    journal.append(Ended(Message("tool", "done", tool_call_id="c\0")))
    journal.release("idle", "why\0")
    assert store.sessions()[0].reason == "why\0"


# -- processes ---------------------------------------------------------------------------------------------------------

HOLDER = """if True:
    import sys
    from runtime import Message, Session
    from runtime.session._journal import Said
    from runtime.stores.postgres import PostgresStore
    store = PostgresStore(sys.argv[1], lease=float(sys.argv[2]))
    session = store.load("s")
    journal = store.open(session)
    n = 0
    for line in sys.stdin:
        try:
            journal.append(Said(Message("assistant", f"{line.strip()} {n}")))
            print("written", flush=True)
        except Exception as error:
            print(type(error).__name__, error, flush=True)
        n += 1
"""


class Holder:
    """Another process, which has the session ``s`` and appends when it is told to."""

    def __init__(self, dsn: str, lease: float) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, dsn, str(lease)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )

    def append(self, text: str) -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(text + "\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()

    def __enter__(self) -> Holder:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        with contextlib.suppress(BrokenPipeError):
            self.process.communicate()


def test_another_process_has_it_until_it_is_killed(postgres: str, store: PostgresStore) -> None:
    store.open(Session([Message("user", "hello")], id="s")).release("idle")
    stale = store.load("s")
    with Holder(postgres, 60.0) as holder:
        assert holder.append("theirs") == "written"
        with pytest.raises(SessionBusy, match=f"live stream, in process {holder.process.pid} on"):
            store.open(store.load("s"))
        with pytest.raises(SessionBusy, match=f"process {holder.process.pid} on"):
            store.delete("s")
        assert store.sessions()[0].status == "running"
        holder.process.kill()
        holder.process.wait()
        assert store.sessions()[0].status == "interrupted"
        journal = store.open(store.load("s"))  # at once, though the lease is for a minute
        journal.append(said("ours"))
        journal.release("idle")
        assert texts(store, "s") == ["hello", "theirs 0", "ours"]
        with pytest.raises(Exception, match="load it again"):
            store.open(stale)


def test_a_process_that_stood_still_has_lost_its_lease(postgres: str, store: PostgresStore) -> None:
    """It was taken over, and writes nothing any more."""
    store.open(Session([Message("user", "hello")], id="s")).release("idle")
    with Holder(postgres, 1.0) as holder:
        assert holder.append("theirs") == "written"
        os.kill(holder.process.pid, signal.SIGSTOP)
        copy = store.load("s")
        journals: list[Any] = []

        def taken() -> bool:
            with contextlib.suppress(SessionBusy):
                journals.append(store.open(copy))
            return bool(journals)

        assert eventually(taken, 20)
        journals[0].append(said("ours"))
        os.kill(holder.process.pid, signal.SIGCONT)
        assert holder.append("theirs").startswith("LeaseLost session s was taken over by another process")
        assert holder.append("theirs").startswith("LeaseLost")
        journals[0].release("idle")
        assert texts(store, "s") == ["hello", "theirs 0", "ours"]


@pytest.mark.timeout(120)
@pytest.mark.skipif(os.name != "posix", reason="needs fork and SIGKILL")
def test_nothing_that_was_acknowledged_is_lost_or_there_twice(postgres: str) -> None:
    """Two processes that write, killed at random moments, again and again."""
    kill(postgres, 12, random.randrange(2**31), 110)


@pytest.mark.stress
@pytest.mark.timeout(3600)
def test_two_thousand_processes_killed(postgres: str) -> None:
    kill(postgres, 1000, random.randrange(2**31), 3500)


def kill(dsn: str, rounds: int, seed: int, timeout: float) -> None:
    program = ROOT / "tests" / "support" / "store_kills.py"
    done = subprocess.run(
        [sys.executable, str(program), dsn, str(rounds), str(seed)], capture_output=True, text=True, timeout=timeout
    )
    assert done.returncode == 0, f"seed {seed}\n{done.stdout}\n{done.stderr}"
    assert done.stdout.startswith(f"{2 * rounds} processes killed")


FORKED = """
import os, sys, warnings
from runtime import Message, Session, StoreError
from runtime.session._journal import Said
from runtime.stores import PostgresStore
warnings.simplefilter("ignore", DeprecationWarning)  # of a fork with threads
store = PostgresStore(sys.argv[1])
journal = store.open(Session([Message("user", "hello")], id="s"))
child = os.fork()
if not child:
    for use in (lambda: journal.append(Said(Message("user", "x"))), lambda: store.load("s")):
        try:
            use()
        except StoreError as error:
            print(error, flush=True)
    store.close()
    with PostgresStore(sys.argv[1]) as own:
        print(len(own.load("s").messages), flush=True)
    os._exit(0)
os.waitpid(child, 0)
journal.append(Said(Message("assistant", "parent")))
journal.release("idle")
print(len(store.load("s").messages))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_after_a_fork_the_store_stays_with_the_parent(script: Callable[..., str], postgres: str) -> None:
    """The child is told to make its own. And a program that leaves its store open ends all the same."""
    told = "the store was made before this process was forked: make a new one here"
    assert script(FORKED, postgres).splitlines() == [told, told, "1", "2"]


def test_a_lease_is_renewed_while_nothing_is_written(postgres: str) -> None:
    with PostgresStore(postgres, lease=2) as store, PostgresStore(postgres, lease=2) as other:
        session = Session([Message("user", "hello")], id="s")
        journal = store.open(session)
        seen = set()
        with psycopg.connect(postgres, autocommit=True) as connection:

            def renewed() -> bool:
                [row] = connection.execute("SELECT lease_until, lease_until > now() FROM lockgate.sessions").fetchall()
                assert row[1]
                seen.add(row[0])
                return len(seen) > 3

            assert eventually(renewed, 20)
        with pytest.raises(SessionBusy):
            other.open(other.load("s"))
        journal.release("idle")


def test_a_session_that_is_deleted_while_it_is_open_elsewhere(postgres: str, store: PostgresStore) -> None:
    """Once its lease has run out: the journal says that it is gone."""
    journal = store.open(Session([Message("user", "hello")], id="s"))
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute("DELETE FROM lockgate.sessions")
    with pytest.raises(LeaseLost, match="taken over by another process, or deleted"):
        journal.append(said("one"))


@pytest.mark.parametrize("through", ["postgres", "pooled"])
def test_a_run_goes_from_store_to_store(request: pytest.FixtureRequest, through: str) -> None:
    """Parked whenever it asks, answered through another store, gone on with through a third: each call is made once."""
    postgres = request.getfixturevalue(through)
    world = World()
    session = Session.from_user("go", permissions=Permissions(ask=["*"]))
    reasons: list[Any] = []
    with PostgresStore(postgres) as store, Runtime(world.team(), store=store, park_after=0) as runtime:
        with runtime.run_stream(session) as stream:
            list(stream)
        reasons.append(stream.reason)
    while reasons[-1] == "waiting" and len(reasons) < 20:
        with PostgresStore(postgres) as elsewhere:
            for request in elsewhere.pending():
                approval = {"approved": True} if request.kind == "approval" else None
                elsewhere.answer(request.id, approval or {"action": "accept", "content": {"n": 3}})
        with PostgresStore(postgres) as store, Runtime(world.team(), store=store, park_after=0) as runtime:
            for stream in runtime.resume_ready():
                list(stream)
                reasons.append(stream.reason)
    assert reasons[-1] == "normal"
    assert len(reasons) > 4
    with PostgresStore(postgres) as store:
        assert results(store.load(session.id)) == RESULTS
        [info] = store.sessions()
        assert (info.status, info.waiting) == ("idle", 0)
    assert set(world.effects.values()) == {1}
    assert len(world.effects) == 6


def test_a_run_waits_for_a_server_that_is_started_again(postgres: str, postgres_server: Server, threads: Any) -> None:
    """And is over at once where it is cancelled meanwhile."""
    started, on = threading.Event(), threading.Event()

    @tool(read_only=True)
    def wait() -> str:
        started.set()
        on.wait(LONG)
        return "waited"

    team = Agent("a", Planned(calls(("1", "wait", {})), done("fine")), tools=[wait])
    with PostgresStore(postgres) as store, Runtime(team, store=store) as runtime:
        running = threads.go(runtime.run, Session.from_user("go"))
        assert started.wait(LONG)
        postgres_server.stop()
        on.set()
        assert eventually(lambda: store._writer._connection is None)
        assert running.running
        postgres_server.start()
        assert running.result(30).text == "fine"

        started.clear()
        on.clear()
        with runtime.run_stream(Session.from_user("go")) as stream:
            assert started.wait(LONG)
            postgres_server.stop()
            try:
                on.set()
                assert eventually(lambda: store._writer._connection is None)
                began = time.monotonic()
                stream.cancel()
                list(stream)
                assert time.monotonic() - began < 5.0
                assert stream.reason == "canceled"
            finally:
                postgres_server.start()


# -- event logs --------------------------------------------------------------------------------------------------------


def test_tables_of_the_first_version_are_run_on(postgres: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_migrations, "STEPS", _migrations.STEPS[:1])
    database = Database(postgres, "lockgate")
    _migrations.migrate(database)
    database.close()
    with psycopg.connect(postgres, autocommit=True) as connection:
        assert connection.execute("SELECT version FROM lockgate.version").fetchall() == [(1,)]
        connection.execute(
            "INSERT INTO lockgate.sessions (id, root_id, title, status, permissions, compacted, messages, epoch, words)"
            " VALUES ('old', 'old', '', 'idle', %s, %s, 0, 3, '')",
            (
                '{"allow": [], "ask": [], "deny": [], "approve_all": false}',
                '{"summary": "", "start": 0, "shortened": 0, "at": 0}',
            ),
        )
    monkeypatch.undo()
    with PostgresStore(postgres) as store:
        session = store.load("old")
        journal = store.open(session, listens=True)
        store.append_events(session, [(1, "{}")])
        store.mail("old", "user_followup_submit", "more")
        assert (store.last_event("old"), len(store.commands("old").mail)) == (1, 1)
        journal.release("idle")


def test_a_log_is_emptied_an_hour_after_its_last_event_but_not_under_a_stream(
    postgres: str, store: PostgresStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_writer, "EVERY", -1.0)
    kept, old, live = (Session.from_user(f"{n}") for n in range(3))
    journals = [store.open(session) for session in (kept, old, live)]
    for session in (kept, old, live):
        store.append_events(session, [(1, "a"), (2, "b")])
    journals[0].release("idle")
    journals[1].release("idle")
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute(
            "UPDATE lockgate.sessions SET events_at = events_at - interval '3601 seconds' WHERE id IN (%s, %s)",
            (old.id, live.id),
        )
    other = Session.from_user("other")
    journals[1] = store.open(other)
    store.append_events(other, [(1, "x")])
    assert [len(store.events(session.id)) for session in (kept, old, live)] == [2, 0, 2]
    assert store.last_event(old.id) == 2
    journals[1].release("idle")
    journals[2].release("idle")


def test_events_are_logged_once_also_where_connections_are_cut(
    store: PostgresStore, postgres_server: Server, threads: Any
) -> None:
    """Between any two of its statements, also in the middle of a commit."""
    session = Session.from_user("hello")
    journal = store.open(session)
    over = threading.Event()

    def cutting() -> None:
        while not over.wait(random.uniform(0.001, 0.02)):
            cut(postgres_server, "query LIKE '%events%'")

    task = threads.go(cutting)
    for number in range(1, 301, 3):
        store.append_events(session, [(number + i, f"{number + i}") for i in range(3)])
    over.set()
    task.result()
    assert list(store.events(session.id)) == [(number, f"{number}") for number in range(1, 301)]
    journal.release("idle")


def test_commands_are_heard_of_behind_a_pooler(pooled: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_watch, "LOOK", 0.05)
    with PostgresStore(pooled) as store:
        session = Session.from_user("hello")
        journal = store.open(session, listens=True)
        token = CancelToken()
        notices = store.watch(token, events=True)
        for command, kind in (
            (lambda: store.append_events(session, [(1, "a")]), "events"),
            (lambda: store.mail(session.id, "user_followup_submit", "x"), "mailed"),
            (lambda: store.cancel(session.id), "canceled"),
        ):
            command()
            assert notices.recv(timeout=10).kind == kind
        token.cancel()
        journal.release("idle")


# -- watching ----------------------------------------------------------------------------------------------------------


def test_an_answer_is_heard_of_also_after_the_connection_was_cut(
    postgres: str, store: PostgresStore, postgres_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_watch, "_AGAIN", 0.01)
    journal = store.open(Session([Message("user", "hello")], id="s"))
    for name in ("a", "b", "c"):
        journal.append(Requested(Request(name, "s", "s", "turns", {})))
    token = CancelToken()
    notices = store.watch(token)
    with PostgresStore(postgres) as other:
        other.answer("a", {"action": "decline"}, by="somebody")
        heard = notices.recv(timeout=10)
        assert (heard.kind, heard.session_id) == ("answered", "s")
        assert heard.request is not None
        assert (heard.request.id, heard.request.answered_by) == ("a", "somebody")
        cut(postgres_server, "query LIKE '%clock_timestamp%'")
        other.answer("b", {"action": "decline"})
        other.answer("c", {"action": "decline"})
        assert [notices.recv(timeout=10).request.id for _ in range(2)] == ["b", "c"]
    token.cancel()
    with pytest.raises(ChannelClosed):
        notices.recv(timeout=10)
    journal.release("idle")


def test_who_waits_for_answers_does_not_look_at_each_event_of_a_log(
    postgres: str, store: PostgresStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[tuple[bool, bool]] = []
    real = _watch._Listener._look

    def looked(listener: _watch._Listener, *, changes: bool, logs: bool) -> Any:
        looks.append((changes, logs))
        return real(listener, changes=changes, logs=logs)

    monkeypatch.setattr(_watch._Listener, "_look", looked)
    session = Session.from_user("hello")
    journal = store.open(session)
    token = CancelToken()
    notices = store.watch(token)
    looks.clear()
    for number in range(1, 21):
        store.append_events(session, [(number, "x")])
    assert eventually(lambda: looks)
    assert set(looks) == {(False, False)}
    journal.release("idle")
    assert notices.recv(timeout=10).kind == "released"
    assert looks[-1] == (True, False)
    token.cancel()


def test_behind_a_pooler_where_nothing_can_be_heard_it_looks(pooled: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that is given away after each transaction hears nothing: LISTEN has no effect."""
    monkeypatch.setattr(_watch, "LOOK", 0.05)
    store = PostgresStore(pooled)
    journal = store.open(Session([Message("user", "hello")], id="s"))
    journal.append(Requested(Request("r", "s", "s", "turns", {})))
    notices = store.watch(CancelToken())
    store.answer("r", {"action": "decline"})
    assert notices.recv(timeout=10).kind == "answered"
    journal.release("idle")
    assert notices.recv(timeout=10).kind == "released"
    store.delete("s")
    assert notices.recv(timeout=10).kind == "deleted"
    store.close()
