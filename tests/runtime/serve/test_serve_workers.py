"""Agents served by several processes that share a store, and by the servers that people use."""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runtime.serve import Application
from runtime.stores import SQLiteStore
from support.serving import Client, listening, serving, waiter
from support.waiting import eventually

pytest.importorskip("werkzeug")
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="forks, signals")

ROOT = Path(__file__).parents[3]
WSGI = """
import os, sys
sys.path.insert(0, {tests!r})
from runtime.serve import Application
from runtime.stores import SQLiteStore
from support.serving import waiter
import threading

class Tells:
    # Which process has answered: a header of every reply.
    def __init__(self, application): self.application = application
    def __call__(self, environ, start_response):
        def started(status, headers, *rest):
            return start_response(status, [*headers, ("X-Process", str(os.getpid()))], *rest)
        return self.application(environ, started)

store = {store}
before = threading.active_count()
application = Tells(Application(waiter(), store=store, ping=0.2, linger=5))
assert threading.active_count() == before  # it may be forked now
"""


@contextlib.contextmanager
def gunicorn(folder: Path, *options: str, store: str = "None", fails: bool = False) -> Iterator[Any]:
    """A server of its own, and a client of it; with ``fails``, what it says when it does not start."""
    (folder / "served.py").write_text(WSGI.format(tests=str(ROOT / "tests"), store=store))
    with socket.create_server(("127.0.0.1", 0)) as listening:  # handed down, so that nobody else gets the port
        port = listening.getsockname()[1]
        command = [sys.executable, "-m", "gunicorn", "-b", f"fd://{listening.fileno()}", "-k", "gthread", *options]
        process = subprocess.Popen(
            [*command, "--graceful-timeout", "30", "served:application"], pass_fds=[listening.fileno()],
            cwd=folder, env=dict(os.environ, PYTHONPATH=str(ROOT)), stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
    assert process.stderr is not None
    try:
        if fails:
            yield process.communicate(timeout=30)[1]
            return
        client = Client(port)

        def is_up() -> bool:
            with contextlib.suppress(OSError):
                return client.ask("GET", "/health")[0] == 200
            return False

        assert eventually(is_up, 30)
        client.process = process  # type: ignore[attr-defined]
        yield client
    finally:
        process.terminate()
        try:
            process.communicate(timeout=20)
        finally:
            process.kill()
            process.communicate()


def test_a_run_of_one_process_is_shown_answered_and_steered_in_another(two: Any) -> None:
    first, second, _ = two
    id = first.session()
    with first.run(id, "!order") as events, second.events(id) as elsewhere:
        events.until("tool_call_confirmation")
        asked = elsewhere.until("tool_call_confirmation")
        [waits] = second.get("/api/waiting")
        assert waits["id"] == asked["confirmation_id"]
        assert second.get(f"/api/sessions/{id}/status")["streaming"]
        second.post(f"/api/sessions/{id}/resume", {"confirmation": "approve"})
        elsewhere.until("elicitation_request")
        wrong = {"action": "accept", "content": {"dish": "x"}}
        assert second.ask("POST", f"/api/sessions/{id}/elicitation", wrong)[1]["code"] == "invalid_answer"
        second.post(f"/api/sessions/{id}/followup", {"messages": [{"content": "and then?"}]})
        second.post(f"/api/sessions/{id}/elicitation", {"action": "accept", "content": {"dish": "soup"}})
        assert events.until("tool_call_response")["response"] == "ordered soup"
        assert events.until("stream_stopped")["reason"] == "normal"
        assert elsewhere.until("stream_stopped")["reason"] == "normal"
        assert elsewhere.last == events.last
    assert second.get(f"/api/sessions/{id}")["messages"][4]["message"]["content"] == "and then?"


@pytest.mark.parametrize("kind", ["one process", "two"])
def test_an_answer_to_a_parked_run_is_told_to_all_who_look(tmp_path: Path, kind: str) -> None:
    """Also where another request is still open, so that nothing runs which could tell; in every process."""
    with contextlib.ExitStack() as stack:
        stores: list[SQLiteStore | None] = [None]
        if kind == "two":
            stores = [stack.enter_context(SQLiteStore(tmp_path / "s.db")) for _ in range(2)]
        applications = [Application(waiter(), store=store, ping=0.1) for store in stores]
        clients = [stack.enter_context(listening(each)) for each in applications]
        first, second = clients[0], clients[-1]
        id = first.session()
        with first.run(id, "!pay pay") as events:
            asked = [events.until("tool_call_confirmation")["confirmation_id"] for _ in range(2)]
            run = applications[0]._backend.runs.get(id)
            assert run is not None
            run.stream.park()
            events.until("stream_stopped")
        here, there = stack.enter_context(first.events(id)), stack.enter_context(second.events(id))
        for each in (here, there):
            assert each.until("stream_stopped")["reason"] == "waiting"
        answer = {"confirmation": "approve", "confirmation_id": asked[0]}
        second.post(f"/api/sessions/{id}/resume", answer)
        for each in (here, there):
            at, told = next(iter(each))
            assert (at, told["type"], told["request_id"], told["outcome"]) == (
                0,
                "request_settled",
                asked[0],
                "approved",
            )
        second.post(f"/api/sessions/{id}/resume", {**answer, "confirmation_id": asked[1]})
        for each in (here, there):
            each.until("stream_started")
            told_ids = {each.until("request_settled")["request_id"] for _ in range(2)}
            assert told_ids == set(asked)
            assert each.until("stream_stopped")["reason"] == "normal"


def test_a_run_of_another_process_is_cancelled_and_its_session_deleted(two: Any) -> None:
    first, second, _ = two
    id = first.session()
    with first.run(id, "one wait") as events:
        events.until("agent_choice")
        assert second.ask("POST", f"/api/sessions/{id}/agent/waiter", {"messages": [{"content": "x"}]})[0] == 409
        assert second.post(f"/api/sessions/{id}/cancel") == {"status": "cancelling"}
        assert events.until("stream_stopped")["reason"] == "canceled"
    with first.run(id, "one wait") as events, first.events(id) as looking:
        events.until("agent_choice")
        assert second.ask("DELETE", f"/api/sessions/{id}?wait=true")[0] == 200
        assert [event for _, event in looking][-1] == {"type": "session_exited"}


def test_a_client_that_is_cut_off_goes_on_at_the_other_process(two: Any) -> None:
    """Law 23: no gap, no twin, whichever process it comes to."""
    id = two[0].session()
    with two[0].run(id, "one two three four five six") as events:
        whole = [(at, event["type"]) for at, event in events]
    assert [at for at, _ in whole] == list(range(1, len(whole) + 1))
    for cut in range(len(whole)):
        id = two[cut % 2].session()
        seen: list[tuple[int, str]] = []
        with two[cut % 2].run(id, "one two three four five six") as events:
            for at, event in events:
                seen.append((at, event["type"]))
                if len(seen) > cut:
                    break
        with two[1 - cut % 2].events(id, since=seen[-1][0]) as events:
            while len(seen) < len(whole):
                seen.append(next((at, event["type"]) for at, event in events))
        assert seen == whole, cut


def test_a_run_is_not_cancelled_while_somebody_looks_in_another_process(tmp_path: Path) -> None:
    """The process that has the run sees nobody; the other one tells it, through the store."""
    agent = waiter()
    with (
        SQLiteStore(tmp_path / "s.db") as here,
        SQLiteStore(tmp_path / "s.db") as there,
        serving(agent, store=here, linger=2.5, ping=0.05) as first,
        serving(store=there, linger=2.5, ping=0.05) as second,
    ):
        id = first.session()
        with second.events(id) as elsewhere:
            with first.run(id, "one wait two") as events:
                events.until("agent_choice")
            elsewhere.until("agent_choice")
            time.sleep(5.5)  # more than twice as long as it would linger: the time is what is tested
            agent.model.go_on.set()
            assert elsewhere.until("stream_stopped")["reason"] == "normal"


def test_a_run_whose_process_was_killed_is_told_to_be_over_and_can_go_on(tmp_path: Path) -> None:
    """Nothing in its log says so: a client that comes back would wait for ever."""
    path = str(tmp_path / "s.db")
    program = f"""
import sys, time
sys.path.insert(0, "tests")
from runtime import Session
from runtime.serve import Application
from runtime.stores import SQLiteStore
from support.serving import waiter
application = Application(waiter(), store=SQLiteStore({path!r}))
session = Session.from_user("one wait two")
application._backend.runs.start("waiter", session)
while not application._backend.log.last(session.id) >= 6:
    time.sleep(0.01)
print(session.id, flush=True)
time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        id = process.stdout.readline().strip()
    finally:
        process.kill()
        process.communicate()
    agent = waiter()
    agent.model.go_on.set()
    with SQLiteStore(path) as store, serving(agent, store=store) as client:
        last = client.get(f"/api/sessions/{id}/snapshot")["last_event_seq"]
        with client.events(id, since=last) as events:
            assert events.until("error")["code"] == "interrupted"
            assert events.until("stream_stopped")["reason"] == "error"
            client.post(f"/api/sessions/{id}/agent/waiter?stream=false", {})
            events.until("stream_started")
            assert events.until("stream_stopped")["reason"] == "normal"


def test_a_server_that_is_restarted_knows_the_ids_that_clients_have(tmp_path: Path) -> None:
    with SQLiteStore(tmp_path / "s.db") as store, serving(store=store) as client:
        id = client.session()
        with client.run(id, "one two") as events:
            ids = [at for at, _ in events]
    with SQLiteStore(tmp_path / "s.db") as store, serving(store=store) as client:
        with client.events(id, since=ids[2]) as events:
            reading = iter(events)
            assert [next(reading)[0] for _ in ids[3:]] == ids[3:]
            with client.run(id, "three") as run:
                run.until("stream_stopped")
            assert next(reading)[0] == ids[-1] + 1
        assert client.ask("GET", f"/api/sessions/{id}/events?wait=0&since={ids[-1] + 1000}")[1]["gap"]


def test_a_snapshot_of_a_run_of_another_process_says_where_to_go_on(two: Any) -> None:
    first, second, model = two
    id = first.session()
    with first.run(id, "before") as events:
        events.until("stream_stopped")
    with first.run(id, "one wait two") as events:
        events.until("agent_choice")
        taken = [client.get(f"/api/sessions/{id}/snapshot") for client in (first, second)]
        assert taken[0]["run"] == taken[1]["run"]
        assert taken[1]["run"]["messages"] == 2
        model.go_on.set()
        events.until("stream_stopped")


# -- gunicorn ----------------------------------------------------------------------------------------------------------


def test_gunicorn_with_two_workers_and_a_store(tmp_path: Path) -> None:
    """A run in one process, answered in the other; both were forked after the application was made."""
    pytest.importorskip("gunicorn")
    options = ("--workers", "2", "--threads", "6", "--preload")
    with gunicorn(tmp_path, *options, store="SQLiteStore('s.db')") as client:
        id = client.session()
        with client.run(id, "!pay") as events:
            process = events.answer.headers["X-Process"]
            asked = events.until("tool_call_confirmation")
            others = set()
            while process not in others or len(others) < 2:  # the kernel chooses who answers
                answer = client.open("GET", f"/api/sessions/{id}/status")
                others.add(answer.headers["X-Process"])
                assert b'"streaming":true' in answer.read()
                answer.connection.close()
            body = {"confirmation": "approve", "confirmation_id": asked["confirmation_id"]}
            client.post(f"/api/sessions/{id}/resume", body)
            assert events.until("tool_call_response")["response"] == "paid"
            assert events.until("stream_stopped")["reason"] == "normal"
        with client.events(id) as events:  # and it ends when gunicorn is told to, without its graceful time
            events.until("stream_stopped")
            began = time.monotonic()
            client.process.send_signal(signal.SIGTERM)
            assert list(events) == []
            assert events.retry
            client.process.wait(25)
            assert time.monotonic() - began < 20  # of 30


@pytest.mark.parametrize(
    ("workers", "threads", "said"),
    [("2", "2", "several worker processes serve the agents"), ("1", "1", "gunicorn has one thread")],
)
def test_gunicorn_that_cannot_serve_is_told_so_when_it_starts(
    tmp_path: Path, workers: str, threads: str, said: str
) -> None:
    """Sessions of each worker's own; a stream that takes the only thread."""
    pytest.importorskip("gunicorn")
    with gunicorn(tmp_path, "--workers", workers, "--threads", threads, fails=True) as log:
        assert f"ValueError: {said}" in log


def test_under_gunicorn_a_stream_never_takes_the_last_threads(tmp_path: Path) -> None:
    """An answer has to get in, or the run waits for it for ever; and those who have left are noticed."""
    pytest.importorskip("gunicorn")
    with gunicorn(tmp_path, "--threads", "4") as client:
        id = client.session()
        streams = [client.events(id), client.events(id)]
        assert client.ask("GET", f"/api/sessions/{id}/events")[1]["code"] == "too_many_streams"
        assert client.get(f"/api/sessions/{id}/status")["id"] == id
        for each in streams:
            each.close()

        def is_free() -> bool:
            answer = client.open("GET", f"/api/sessions/{id}/events")
            answer.close()
            answer.connection.close()
            return bool(answer.status == 200)

        assert eventually(is_free, 5)


def test_several_workers_that_no_server_tells_of_are_found_with_the_first_request() -> None:
    application = Application(waiter())
    said: list[str] = []
    environ = {
        "REQUEST_METHOD": "GET", "PATH_INFO": "/api/agents", "wsgi.multiprocess": True, "REMOTE_ADDR": "127.0.0.1",
        "HTTP_HOST": "localhost", "wsgi.url_scheme": "http", "SERVER_NAME": "x", "SERVER_PORT": "80",
    }  # fmt: skip
    body = b"".join(application(environ, lambda status, headers, *rest: said.append(status)))
    assert said[0].startswith("503")
    assert b"several worker processes" in body
    application.close()


# -- waitress ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def desk() -> Iterator[tuple[Application, Any, Client]]:
    """What `lockgate serve` runs."""
    pytest.importorskip("waitress")
    agent = waiter()
    application = Application(agent, ping=0.1)
    address: list[str] = []
    ready = threading.Event()

    def told(where: str) -> None:
        address.append(where)
        ready.set()

    thread = threading.Thread(target=lambda: application.run(port=0, threads=8, ready=told))
    thread.start()
    assert ready.wait(10)
    yield application, agent, Client(int(address[0].rstrip("/").rpartition(":")[2]))
    application.close()
    thread.join(10)
    assert not thread.is_alive()


def test_waitress_delivers_each_event_at_once(desk: tuple[Application, Any, Client]) -> None:
    """It would be no stream if it came at the end."""
    _, agent, client = desk
    id = client.session()
    with client.run(id, "one wait two") as events:
        assert events.until("agent_choice")["content"] == "one "
        assert not agent.model.go_on.is_set()
        agent.model.go_on.set()
        assert events.until("stream_stopped")["reason"] == "normal"


def test_waitress_tells_that_a_client_has_left(desk: tuple[Application, Any, Client]) -> None:
    application, _, client = desk
    id = client.session()
    streams = [client.events(id) for _ in range(6)]
    assert client.ask("GET", f"/api/sessions/{id}/events")[1]["code"] == "too_many_streams"
    for each in streams:
        each.close()
    assert eventually(lambda: application._backend.streams == 0)


def test_waitress_ends_its_streams_and_says_when_to_come_back(desk: tuple[Application, Any, Client]) -> None:
    application, _, client = desk
    with client.events(client.session()) as events:
        threading.Thread(target=application.close).start()
        assert list(events) == []
        assert events.retry


def test_requests_that_do_not_arrive_and_replies_that_are_not_taken_are_given_up(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """Also where a byte comes now and then. A stream on which nothing happens is left alone."""
    monkeypatch.setattr("runtime.serve._server.ARRIVAL", 1.0)
    monkeypatch.setattr("runtime.serve._server.STUCK", 1.0)
    application, _, client = request.getfixturevalue("desk")
    much = client.session()
    for _ in range(7):  # more than fits into the buffers of the system
        with client.run(much, " ".join(["x" * 5000] * 180)) as events:
            assert events.until("stream_stopped")["reason"] == "normal"
    address = ("127.0.0.1", client.port)
    with client.events(client.session()) as quiet, socket.socket() as full:
        full.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        full.connect(address)
        full.sendall(b"GET /api/sessions/%b/events HTTP/1.1\r\nHost: localhost\r\n\r\n" % much.encode())
        assert eventually(lambda: application._backend.streams == 2)
        assert eventually(lambda: application._backend.streams == 1)
        with socket.create_connection(address, 20) as silent, socket.create_connection(address, 20) as slow:
            slow.sendall(b"POST /api/sessions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n{")
            assert silent.recv(1) == b""
            begun = time.monotonic()
            with contextlib.suppress(OSError):
                while not select.select([slow], [], [], 0.05)[0]:
                    assert time.monotonic() < begun + 10
                    slow.sendall(b" ")
            with contextlib.suppress(ConnectionError):
                assert slow.recv(1) == b""
        assert application._backend.streams == 1
        next(iter(quiet.answer))


def test_a_head_of_a_stream_has_no_body(desk: tuple[Application, Any, Client]) -> None:
    """What came behind it would be read as the next reply."""
    _, _, client = desk
    id = client.session()
    with socket.create_connection(("127.0.0.1", client.port), 20) as connection:
        host = b"Host: localhost\r\n"
        connection.sendall(b"HEAD /api/sessions/%b/events HTTP/1.1\r\n%b\r\n" % (id.encode(), host))
        connection.sendall(b"GET /health HTTP/1.1\r\n%bConnection: close\r\n\r\n" % host)
        said = b"".join(iter(lambda: connection.recv(65536), b""))
    head, _, rest = said.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    assert rest.startswith(b"HTTP/1.1 200 "), rest


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_serves_until_a_signal_ends_it(tmp_path: Path, number: signal.Signals) -> None:
    lines = ("import sys", f"sys.path.insert(0, {str(ROOT / 'tests')!r})", "from support.serving import waiter")
    (tmp_path / "agents.py").write_text("\n".join((*lines, "agent = waiter()\n")))
    command = [sys.executable, "-m", "runtime.cli", "serve", "agents.py", "--listen", "0", "--store", "s.db"]
    environment = dict(os.environ, PYTHONPATH=str(ROOT), LOCKGATE_TOKEN="sesame")
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        told = re.fullmatch(
            r"serving agents\.py on http://127\.0\.0\.1:(\d+)/ \(Ctrl-C ends it\)\n", process.stderr.readline()
        )
        assert told is not None
        client = Client(int(told[1]), Authorization="Bearer sesame")
        assert Client(int(told[1])).ask("GET", "/api/sessions")[0] == 401
        id = client.session()
        with client.run(id, "!pay") as events:
            events.until("tool_call_confirmation")
            process.send_signal(number)
            assert {event["type"] for _, event in events} <= {"stream_stopped"}
        assert process.communicate(timeout=30)[1] == ""
        assert process.returncode == 0
    finally:
        process.kill()
        process.communicate()
    with SQLiteStore(tmp_path / "s.db") as store:
        assert store.info(id).status == "waiting"


def test_ten_megabytes_get_a_reply_that_says_why_not(desk: tuple[Application, Any, Client]) -> None:
    _, _, client = desk
    status, said = client.ask("POST", "/api/sessions", b" " * 10_000_000, {"Content-Type": "application/json"})
    assert (status, said["code"]) == (413, "too_large")
