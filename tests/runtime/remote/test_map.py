"""`Remote.map` is `Runtime.map` on workers. What both share is in `tests/runtime/batch`."""

from __future__ import annotations

from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from runtime import RunError, Session
from runtime.events import ElicitationRequest
from runtime.remote import Remote
from runtime.remote._run import RemoteRun
from support.engine_agents import Number
from support.waiting import eventually

AGENT = "support.engine_agents:agent"


def test_each_session_comes_back_changed_with_its_result(pool: ProcessPoolExecutor) -> None:
    sessions = [Session.from_user(f"say {number}") for number in range(4)]
    with Remote(pool.submit, AGENT) as remote:
        pairs = list(remote.map(sessions, limit=2))
    assert {session.id for session, _ in pairs} == {session.id for session in sessions}
    for session, result in pairs:
        assert session.messages[-1].content == result.text
        assert (result.reason, result.error, len(result.messages)) == ("normal", None, 1)


def test_a_failure_has_the_traceback_of_the_worker_and_does_not_end_the_others(pool: ProcessPoolExecutor) -> None:
    with Remote(pool.submit, AGENT) as remote:
        results = {session.messages[0].content: result for session, result in remote.map(["say 2", "fail", "say 3"])}
    error = results["fail"].error
    assert isinstance(error, RunError)
    assert (error.code, results["fail"].reason) == ("model_error", "error")
    assert "ValueError: as the prompt says" in str(error.__cause__)
    assert [results[prompt].error for prompt in ("say 2", "say 3")] == [None, None]


def test_words_that_nobody_reads_are_not_sent(pool: ProcessPoolExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker does not wait for a caller that is busy, and the connections carry results only."""
    came = []

    def event(run: RemoteRun, body: bytes) -> Any:
        came.append(body)
        return real(run, body)

    real = RemoteRun._event
    monkeypatch.setattr(RemoteRun, "_event", event)
    with Remote(pool.submit, AGENT, capacity=1) as remote:
        assert [len(result.text.split()) for _, result in remote.map(["say 500", "say 500"])] == [502, 502]
        assert len(came) <= 2
        with remote.run_stream(Session.from_user("say 500")) as stream:
            assert len(list(stream)) > 500
        assert len(came) > 500


def test_break_cancels_the_runs_in_the_workers(pool: ProcessPoolExecutor, tmp_path: Path) -> None:
    with Remote(pool.submit, AGENT) as remote:
        hanging = Session.from_user(f"hang {tmp_path}")
        for _, result in remote.map([hanging, "say 1"], limit=2):
            assert result.error is None
            assert eventually((tmp_path / "begun").exists, 10)
            break
        assert (tmp_path / "cancelled").exists()
        assert hanging.messages[-1].role == "tool"  # each of its calls has a result, and it is free again
        hanging.lease().release()


def test_questions_are_answered_from_here(pool: ProcessPoolExecutor) -> None:
    asked = []

    def answer(event: Any) -> Any:
        asked.append(event)
        return {"n": len(asked)}

    with Remote(pool.submit, AGENT) as remote:
        texts = sorted(result.text[:4] for _, result in remote.map(["ask", "ask"], on_request=answer))
    assert texts == ["1 in", "2 in"]
    assert all(isinstance(event, ElicitationRequest) for event in asked)


def test_output_types_are_read_here(pool: ProcessPoolExecutor) -> None:
    with Remote(pool.submit, AGENT) as remote:
        assert [result.output for _, result in remote.map(['{"n": 7}'], output_type=Number)] == [Number(7)]


def test_what_submit_raises_ends_it_and_cancels_the_others(pool: ProcessPoolExecutor, tmp_path: Path) -> None:
    """An engine that is down is down for all of them."""

    def submit(function: Any, spec: Any) -> Future[Any]:
        if eventually((tmp_path / "begun").exists, 0 if not given else 10):
            raise OSError("the engine is down")
        given.append(spec)
        return pool.submit(function, spec)

    given: list[Any] = []
    session = Session.from_user(f"hang {tmp_path}")
    with Remote(submit, AGENT) as remote, pytest.raises(OSError, match="down"):
        list(remote.map([session, "say 1"]))
    assert (tmp_path / "cancelled").exists()
    session.lease().release()


def test_what_is_no_list_of_sessions(pool: ProcessPoolExecutor) -> None:
    with Remote(max, AGENT) as remote, pytest.raises(TypeError, match="many sessions"):
        remote.map("hello")
