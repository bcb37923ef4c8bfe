"""Steering and cancels that come through the store, from another process or another runtime. Nothing is lost."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runtime import Agent, NotRunning, RunError, Runtime, Session, StoreError
from runtime.events import StreamStopped, UserMessage
from runtime.stores import MemoryStore, SQLiteStore
from support.scripted import Scripted, Stall, say
from support.waiting import eventually

ROOT = Path(__file__).resolve().parents[3]
LONG = 10.0


@pytest.fixture(params=["memory", "sqlite"])
def stores(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Any, Any]]:
    """The store of the process that runs the session, and the same sessions as another process has them."""
    if request.param == "memory":
        with contextlib.closing(MemoryStore()) as store:
            yield store, store
        return
    with SQLiteStore(tmp_path / "sessions.db") as here, SQLiteStore(tmp_path / "sessions.db") as there:
        yield here, there


def said(session: Session) -> list[str]:
    return [f"{message.role}: {message.content}" for message in session.messages]


def test_a_run_is_steered_by_another_runtime(stores: tuple[Any, Any]) -> None:
    """As if it were its own: steering first, then the follow-ups, one by one; each is heard once."""
    here, there = stores
    session = Session.from_user("go")
    with Stall() as stall:
        agent = Agent("a", Scripted([*say("one"), stall], say("two"), say("three"), say("four")))
        with Runtime(agent, store=here, listen=True) as runtime, Runtime(agent, store=there) as other:
            stream = runtime.run_stream(session)
            assert stall.reached.wait(LONG)
            other.follow_up(session.id, "later")
            other.steer(session.id, "now")
            runtime.follow_up(session.id, "mine")
            stall.go_on.set()
            events = list(stream)
            assert stream.reason == "normal"
    assert said(session)[:4] == ["user: go", "assistant: one", "user: now", "assistant: two"]
    assert sorted(said(session)[4::2]) == ["user: later", "user: mine"]
    assert [event.message for event in events if isinstance(event, UserMessage)] == [
        each.removeprefix("user: ") for each in said(session) if each.startswith("user")
    ]
    assert said(there.load(session.id)) == said(session)


def test_a_message_that_comes_at_the_last_moment_is_heard(stores: tuple[Any, Any], monkeypatch: Any) -> None:
    """Nobody has told the run of it: it asks the store before it ends."""
    here, there = stores
    monkeypatch.setattr("runtime.human._listener.Listener._pass_on", lambda self, id: None)
    session = Session.from_user("go")
    with Stall() as stall:
        agent = Agent("a", Scripted([*say("one"), stall], say("two")))
        with Runtime(agent, store=here, listen=True) as runtime, Runtime(agent, store=there) as other:
            stream = runtime.run_stream(session)
            assert stall.reached.wait(LONG)
            other.steer(session.id, "wait")
            stall.go_on.set()
            assert stream.result().text == "two"
    assert said(session) == ["user: go", "assistant: one", "user: wait", "assistant: two"]


def test_a_run_is_canceled_by_another_runtime(stores: tuple[Any, Any]) -> None:
    here, there = stores
    session = Session.from_user("go")
    with Stall() as stall:
        agent = Agent("a", Scripted([stall], say("never")))
        with Runtime(agent, store=here, listen=True) as runtime, Runtime(agent, store=there) as other:
            stream = runtime.run_stream(session)
            assert stall.reached.wait(LONG)
            other.cancel(session.id, "the user has gone")
            *_, last = stream
            stall.go_on.set()
            assert isinstance(last, StreamStopped)
            assert last.reason == "canceled"
            with pytest.raises(RunError, match="the user has gone"):
                stream.result()
            with pytest.raises(NotRunning):
                other.cancel(session.id)
        # The cancel was for that run, not for the next.
        with Runtime(Agent("a", Scripted(say("again"))), store=here, listen=True) as runtime:
            session.add_user("again")
            assert runtime.run(session).text == "again"


def test_a_cancel_that_comes_while_a_run_is_opened_is_obeyed(stores: tuple[Any, Any], monkeypatch: Any) -> None:
    """The lease is taken, and the listener finds no stream yet."""
    here, there = stores
    real = here.open

    def opened(*args: Any, **kwargs: Any) -> Any:
        journal = real(*args, **kwargs)
        there.cancel(session.id, "at once")
        return journal

    monkeypatch.setattr(here, "open", opened)
    session = Session.from_user("go")
    with Runtime(Agent("a", Scripted(say("never"))), store=here, listen=True) as runtime:
        *_, last = runtime.run_stream(session)
        assert isinstance(last, StreamStopped)
        assert last.reason == "canceled"


def test_its_own_run_is_canceled_without_a_store() -> None:
    session = Session.from_user("go")
    with Stall() as stall, Runtime(Agent("a", Scripted([stall]))) as runtime:
        stream = runtime.run_stream(session)
        assert stall.reached.wait(LONG)
        runtime.cancel(session, "enough")
        *_, last = stream
        stall.go_on.set()
        assert isinstance(last, StreamStopped)
        assert last.reason == "canceled"
        for command in (runtime.cancel, lambda session: runtime.steer(session, "x")):
            assert eventually(lambda: not runtime._shared.cores)
            with pytest.raises(NotRunning, match="no run on session"):
                command(session)


def test_a_runtime_that_does_not_listen_is_not_told(stores: tuple[Any, Any]) -> None:
    """Who sends it hears so: a message that nobody takes would be lost on him."""
    here, there = stores
    session = Session.from_user("go")
    with Stall() as stall:
        agent = Agent("a", Scripted([stall, *say("one")]))
        with Runtime(agent, store=here) as runtime, Runtime(agent, store=there) as other:
            stream = runtime.run_stream(session)
            assert stall.reached.wait(LONG)
            with pytest.raises(NotRunning, match="listen=True"):
                other.steer(session.id, "x")
            with pytest.raises(NotRunning, match="listen=True"):
                other.cancel(session.id)
            with pytest.raises(NotRunning, match="no run on session nobody is live"):
                other.follow_up("nobody", "x")
            stall.go_on.set()
            stream.result()


def test_listening_needs_a_store() -> None:
    with pytest.raises(ValueError, match="needs a store"):
        Runtime(Agent("a", Scripted()), listen=True)


def test_a_store_that_cannot_be_watched_begins_no_run(stores: tuple[Any, Any], monkeypatch: Any) -> None:
    """The session is free behind it."""
    here, _ = stores

    def failing(*_: Any, **__: Any) -> Any:
        raise StoreError("no")

    session = Session.from_user("go")
    with Runtime(Agent("a", Scripted(say("one"))), store=here, listen=True) as runtime:
        monkeypatch.setattr(here, "watch", failing)
        with pytest.raises(StoreError):
            runtime.run_stream(session)
        monkeypatch.undo()
        assert runtime.run(session).text == "one"


PROGRAM = """
import sys, threading
from runtime import Agent, Runtime, Session
from runtime.events import AgentChoice
from runtime.stores import SQLiteStore
from support.scripted import say

class Slow:
    id = "slow"
    def stream(self, messages, tools, *, cancel):
        said = [message.content for message in messages if message.role == "user"]
        yield from say(f"{len(said)}: {said[-1]}")
        sys.stdin.readline()

session = Session.from_user("first")
session.id = "s"
with SQLiteStore("sessions.db") as store, Runtime(Agent("a", Slow()), store=store, listen=True) as runtime:
    for event in runtime.run_stream(session):
        if isinstance(event, AgentChoice):
            print(event.content, flush=True)
    print(event.reason, flush=True)
"""


def test_a_run_of_another_process_is_steered_and_canceled(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    command = [sys.executable, "-c", PROGRAM]
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=tmp_path, env=environment, **pipes) as process:
        try:
            assert process.stdout is not None
            assert process.stdin is not None
            assert process.stdout.readline() == "1: first\n"
            agent = Agent("a", Scripted())
            with SQLiteStore(tmp_path / "sessions.db") as store, Runtime(agent, store=store) as runtime:
                runtime.steer("s", "second")
                process.stdin.write("go on\n")
                process.stdin.flush()
                assert process.stdout.readline() == "2: second\n"
                runtime.cancel("s", "enough")
                assert process.stdout.readline() == "canceled\n"
                assert said(store.load("s")) == [
                    "user: first",
                    "assistant: 1: first",
                    "user: second",
                    "assistant: 2: second",
                ]
        finally:
            process.kill()
