"""With a store that both sides can open, the worker writes, and a lost worker loses nothing that was told."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from runtime import NotParkable, RunError, Runtime, Session
from runtime.events import ElicitationRequest, Error, StreamStopped, ToolCallConfirmation
from runtime.remote import Remote
from runtime.stores import SQLiteStore
from support import remote_agents
from support.remote_agents import Processes

AGENTS = "support.remote_agents"


def test_a_session_is_run_there_here_and_there_again(pool: ProcessPoolExecutor, tmp_path: Path) -> None:
    """The same object all the time: it knows what the store has, whoever has written it."""
    path = tmp_path / "sessions.db"
    session = Session.from_user("hello")
    remote = Remote(pool.submit, f"{AGENTS}:few", store=f"sqlite:{path}")
    with SQLiteStore(path) as store, Runtime(remote_agents.few, store=store) as local, remote:
        for run in (remote.run, local.run, remote.run):
            run(session)
            assert store.load(session.id).messages == session.messages
            session.add_user("go on")
        loaded = store.load(session.id)
        loaded.add_user("and on")
        remote.run(loaded)
    assert len(loaded.messages) == 8


def test_a_copy_that_is_out_of_date_is_refused(pool: ProcessPoolExecutor, tmp_path: Path) -> None:
    """The epoch fences it, on whatever machine it is run."""
    path = tmp_path / "sessions.db"
    with (
        SQLiteStore(path) as store,
        Remote(pool.submit, f"{AGENTS}:few", store=f"sqlite:{path}") as remote,
    ):
        session = Session.from_user("hello")
        remote.run(session)
        old, new = store.load(session.id), store.load(session.id)
        new.add_user("first")
        remote.run(new)
        old.add_user("second")
        with pytest.raises(RunError, match="another copy") as caught:
            remote.run(old)
        assert caught.value.code == "not_started"
        assert store.load(session.id).messages == new.messages


def test_a_run_is_parked_there_and_goes_on_here(pool: ProcessPoolExecutor, tmp_path: Path) -> None:
    path = tmp_path / "sessions.db"
    with (
        SQLiteStore(path) as store,
        Remote(pool.submit, f"{AGENTS}:deletes", store=f"sqlite:{path}") as remote,
    ):
        session = Session.from_user("go")
        with remote.run_stream(session) as stream:
            for event in stream:
                if isinstance(event, ToolCallConfirmation):
                    stream.park()
            assert isinstance(event, StreamStopped)
            assert event.reason == "waiting"
            assert stream.reason == "waiting"
        [request] = store.pending(session.id)
        store.answer(request.id, {"approved": True})
        assert store.ready() == [session.id]
        with Runtime(remote_agents.deletes, store=store) as local:
            [stream] = [each for each in local.resume_ready() if each.result()]
        assert store.load(session.id).messages[-1].content.startswith("deleted in")


def test_without_a_store_nothing_is_parked(pool: ProcessPoolExecutor) -> None:
    with Remote(pool.submit, f"{AGENTS}:asks") as remote, remote.run_stream(Session.from_user("go")) as stream:
        for event in stream:
            if isinstance(event, ElicitationRequest):
                with pytest.raises(NotParkable, match="store"):
                    stream.park()
                stream.respond(event, "decline")


def test_after_a_worker_was_lost_the_store_has_what_was_told(processes: Processes, tmp_path: Path) -> None:
    """The call had begun when its process died, so that it is not made again."""
    path = tmp_path / "sessions.db"
    session = Session.from_user("go")
    with Remote(processes.submit, f"{AGENTS}:dies", store=f"sqlite:{path}") as remote:
        with remote.run_stream(session) as stream:
            events = list(stream)
        assert any(isinstance(event, Error) and event.code == "worker_lost" for event in events)
        with SQLiteStore(path) as store:
            loaded = store.load(session.id)
            assert [message.role for message in loaded.messages] == ["user", "assistant"]
            assert loaded.messages[-1].tool_calls


def test_a_store_that_cannot_be_opened(pool: ProcessPoolExecutor, tmp_path: Path) -> None:
    remote = Remote(pool.submit, f"{AGENTS}:few", store=f"sqlite:{tmp_path}/no/such/place.db")
    with remote, pytest.raises(RunError, match="place") as caught:
        remote.run(Session.from_user("go"))
    assert caught.value.code == "not_started"


def test_a_runtime_has_its_own_settings(pool: ProcessPoolExecutor, tmp_path: Path) -> None:
    for given in ({"store": f"sqlite:{tmp_path}/sessions.db"}, {"settings": {"titles": True}}):
        remote = Remote(pool.submit, f"{AGENTS}:shared", **given)  # type: ignore[arg-type]
        with remote, pytest.raises(RunError, match="is a Runtime"):
            remote.run(Session.from_user("go"))


def test_settings_are_those_of_the_runtime_there(pool: ProcessPoolExecutor) -> None:
    session = Session.from_user("What is the answer")
    with Remote(pool.submit, f"{AGENTS}:few", settings={"titles": True}) as remote:
        remote.run(session)
    assert session.title == "What is the answer"
