"""Requests that are sent twice with one `Idempotency-Key`: carried out once, whichever process they come to."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from runtime import Message, Session, ToolCall
from runtime.stores import SQLiteStore
from support.serving import Client, Events, serving, waiter

pytest.importorskip("werkzeug")

ROOT = Path(__file__).parents[3]
KEY = {"Idempotency-Key": "k1"}


def said(text: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}]}


def run(client: Client, id: str, text: str) -> Events:
    return Events(client.open("POST", f"/api/sessions/{id}/agent/waiter", said(text), KEY))


def texts(client: Client, id: str) -> list[str]:
    """What the user has said."""
    messages = [each["message"] for each in client.get(f"/api/sessions/{id}")["messages"]]
    return [each["content"] for each in messages if each["role"] == "user"]


everywhere = pytest.mark.parametrize("two", ["one process", "sqlite", "postgres"], indirect=True)


@everywhere
def test_a_run_that_is_asked_for_twice_is_one(two: Any) -> None:
    """While it goes on and when it is over: the second gets the events of the first, from the first one to the last."""
    id = two.first.session()
    with two.first.run(id, "before") as events:
        events.until("stream_stopped")
    with run(two.first, id, "one wait two") as events, run(two.second, id, "one wait two") as again:
        first = next(iter(events))
        assert next(iter(again)) == first
        late = two.second.ask("POST", f"/api/sessions/{id}/agent/waiter?stream=false", said("one wait two"), KEY)
        assert late == (202, {"status": "running", "session_id": id, "since": first[0] - 1, "duplicate": True})
        two.model.go_on.set()
        rest = list(events)
        assert list(again) == rest
        assert rest[-1][1]["type"] == "stream_stopped"
    with two.first.run(id, "after") as events:
        events.until("stream_stopped")
    for client in (two.first, two.second):
        with run(client, id, "one wait two") as again:
            assert list(again) == [first, *rest]
    assert texts(two.second, id) == ["before", "one wait two", "after"]


@everywhere
def test_a_key_that_another_request_had_is_refused(two: Any) -> None:
    id = two.first.session()
    with run(two.first, id, "one") as events:
        events.until("stream_stopped")
    for path, body in (
        ("agent/waiter", said("two")),
        ("agent/waiter/waiter", said("one")),
        ("steer", said("one")),
        ("followup", said("one")),
    ):
        status, reply = two.second.ask("POST", f"/api/sessions/{id}/{path}", body, KEY)
        assert (status, reply["code"]) == (422, "key_reused"), path
    assert texts(two.second, id) == ["one"]
    other = two.second.session()  # in another session it is another key
    with run(two.second, other, "two") as events:
        events.until("stream_stopped")


@everywhere
def test_of_many_requests_at_once_one_is_carried_out(two: Any, threads: Any) -> None:
    two.model.go_on.set()
    id = two.first.session()

    def ask(client: Client) -> Any:
        return client.ask("POST", f"/api/sessions/{id}/agent/waiter?stream=false", said("one"), KEY)

    found = threads.all(*[lambda client=client: ask(client) for client in (two.first, two.second) * 4], timeout=30)
    assert {status for status, _ in found} == {202}
    assert len({reply["since"] for _, reply in found}) == 1
    assert sum("duplicate" not in reply for _, reply in found) == 1
    with run(two.second, id, "one") as events:
        events.until("stream_stopped")
    assert texts(two.first, id) == ["one"]


@everywhere
def test_a_message_to_a_run_is_said_once(two: Any) -> None:
    id = two.first.session()
    several = {"messages": [{"content": "a"}, {"content": "b"}]}
    with two.first.run(id, "wait") as events:
        assert two.model.waits.wait(5)
        replies = [
            client.ask("POST", f"/api/sessions/{id}/followup", several, KEY)[1] for client in (two.second, two.first)
        ]
        assert [each["status"] for each in replies] == ["queued_streaming", "duplicate"]
        assert [each["duplicate"] for each in replies] == [False, True]
        steered = {"Idempotency-Key": "k2"}
        for client, status in ((two.second, "queued"), (two.first, "duplicate")):
            assert client.ask("POST", f"/api/sessions/{id}/steer", said("c"), steered)[1]["status"] == status
        two.model.go_on.set()
        events.until("stream_stopped")
    assert texts(two.first, id) == ["wait", "c", "a", "b"]
    assert two.second.ask("POST", f"/api/sessions/{id}/followup", several, KEY)[1]["status"] == "duplicate"


@everywhere
def test_a_message_for_the_next_run_is_said_once(two: Any) -> None:
    id = two.first.session()
    for client, status in ((two.first, "queued_idle"), (two.second, "duplicate"), (two.first, "duplicate")):
        assert client.ask("POST", f"/api/sessions/{id}/followup", said("later"), KEY)[1]["status"] == status
    assert texts(two.second, id) == ["later"]
    status, reply = two.second.ask("POST", f"/api/sessions/{id}/steer", said("x"), {"Idempotency-Key": "k2"})
    assert (status, reply["code"]) == (409, "not_running")
    # What was not carried out may be sent again.
    with Events(two.second.open("POST", f"/api/sessions/{id}/agent/waiter", {}, {"Idempotency-Key": "k2"})) as events:
        events.until("stream_stopped")


def test_a_run_that_is_refused_leaves_no_key(tmp_path: Path) -> None:
    """It waits with a call of an agent that is not of the team that is asked: nothing was begun."""
    with SQLiteStore(tmp_path / "s.db") as store, serving(store=store) as client:
        calls = Message("assistant", tool_calls=(ToolCall("c1", "pay", "{}"),), agent_name="cook")
        session = Session([Message("user", "pay"), calls], agent_name="cook")
        store.open(session).release("interrupted")
        for _ in range(2):
            status, reply = client.ask("POST", f"/api/sessions/{session.id}/agent/waiter", {}, KEY)
            assert (status, reply["code"]) == (409, "other_agent")
        assert store.idempotency_key(session.id, "k1") is None


@everywhere
def test_a_session_is_made_once(two: Any) -> None:
    made = [client.ask("POST", "/api/sessions", {"title": "Bills"}, KEY) for client in (two.first, two.second)]
    assert [status for status, _ in made] == [200, 200]
    assert made[0][1]["id"] == made[1][1]["id"]
    assert made[1][1]["title"] == "Bills"
    status, reply = two.second.ask("POST", "/api/sessions", {"title": "Others"}, KEY)
    assert (status, reply["code"]) == (422, "key_reused")
    assert len(two.first.get("/api/sessions")) == 1


def test_owners_have_keys_of_their_own() -> None:
    with serving(user=lambda request: request.headers.get("X-User")) as client:
        ids = []
        for user in ("ann", "bob"):
            status, made = client.ask("POST", "/api/sessions", {"title": user}, {**KEY, "X-User": user})
            assert status == 200
            ids.append(made["id"])
        assert len(set(ids)) == 2


@pytest.mark.skipif(sys.platform == "win32", reason="kill -9")
def test_a_run_whose_process_was_killed_is_not_made_again(tmp_path: Path) -> None:
    """Whoever asks for it again, at another process, gets its events and hears that it was interrupted; also when the
    next run has begun meanwhile. A new key goes on with it."""
    path = str(tmp_path / "s.db")
    program = f"""
import sys, threading
sys.path.insert(0, "tests")
from runtime.serve import Application
from runtime.stores import SQLiteStore
from support.serving import listening, waiter
with listening(Application(waiter(), store=SQLiteStore({path!r}))) as client:
    print(client.port, flush=True)
    threading.Event().wait()
"""
    process = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        client = Client(int(process.stdout.readline()))
        id = client.session()
        events = run(client, id, "one wait two")
        first = [next(iter(events))]
        while first[-1][1]["type"] != "agent_choice":
            first.append(next(iter(events)))
    finally:
        process.kill()
        process.communicate()
    events.close()
    agent = waiter()
    agent.model.go_on.set()
    with SQLiteStore(path) as store, serving(agent, store=store, ping=0.1) as client:
        for _ in range(2):
            with run(client, id, "one wait two") as again:
                assert [next(iter(again)) for _ in first] == first
                assert again.until("error")["code"] == "interrupted"
                assert again.until("stream_stopped")["reason"] == "error"
                assert list(again) == []
            assert texts(client, id) == ["one wait two"]
            if agent.model.waits.is_set():
                break
            goes_on = client.open("POST", f"/api/sessions/{id}/agent/waiter", {}, {"Idempotency-Key": "k2"})
            with Events(goes_on) as events:
                assert events.until("stream_stopped")["reason"] == "normal"
