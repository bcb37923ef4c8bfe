"""The record of a run on a worker is that of a run here."""

from __future__ import annotations

import json
import signal
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from runtime import Agent, RunError, Runtime, Session
from runtime.events import AgentChoice, ToolCallConfirmation
from runtime.models.replay import ReplayModel
from runtime.recording import Recording
from runtime.remote import Remote, _record
from support import remote_agents
from support.remote_agents import Processes
from support.waiting import eventually

AGENTS = "support.remote_agents"


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def kinds(path: Path) -> list[str]:
    return [line["type"] for line in lines(path)]


def test_it_is_as_one_that_was_written_here_and_can_be_replayed(pool: ProcessPoolExecutor, tmp_path: Path) -> None:
    there, here = tmp_path / "there.jsonl", tmp_path / "here.jsonl"
    with Remote(pool.submit, f"{AGENTS}:deletes") as remote:
        result = remote.run(Session.from_user("go"), record=there, on_request=lambda event: True)
    with Runtime(remote_agents.deletes) as runtime:
        runtime.run(Session.from_user("go"), record=here, on_request=lambda event: True)
    assert kinds(there) == kinds(here)
    assert there.stat().st_mode & 0o777 == 0o600
    replayed = Agent("deletes", ReplayModel(there, strict=False), tools=[remote_agents.delete])
    with Runtime(replayed) as runtime:
        assert runtime.run(Session.from_user("go"), on_request=lambda event: True).text == result.text


def test_that_of_each_of_many_runs(pool: ProcessPoolExecutor, tmp_path: Path) -> None:
    with Remote(pool.submit, f"{AGENTS}:echoes") as remote:
        pairs = list(remote.map(["one", "two"], record=lambda session: tmp_path / f"{session.id}.jsonl"))
        with pytest.raises(TypeError, match="redact"):
            list(remote.map(["one"], record=lambda session: Recording(tmp_path / "r", redact=str.upper)))
    for session, result in pairs:
        path = tmp_path / f"{session.id}.jsonl"
        assert result.text in path.read_text()
        assert kinds(path)[-1] == "stream_stopped"


def test_it_is_there_when_the_stream_is_left(pool: ProcessPoolExecutor, tmp_path: Path) -> None:
    """Also where the run was cancelled, and where it is long."""
    path = tmp_path / "record.jsonl"
    session = Session.from_user("go")
    with Remote(pool.submit, f"{AGENTS}:waits") as remote, remote.run_stream(session, record=path) as stream:
        for event in stream:
            if isinstance(event, AgentChoice):
                stream.cancel()
    assert kinds(path)[-1] == "stream_stopped"
    with Remote(pool.submit, f"{AGENTS}:echoes") as remote:
        remote.run(Session.from_user("make it 3000000"), record=path)
    assert sum(len(line["content"]) for line in lines(path) if line["type"] == "agent_choice") == 3_000_000
    assert kinds(path)[-1] == "stream_stopped"


def test_that_of_a_worker_that_is_lost_has_what_was_told(processes: Processes, tmp_path: Path) -> None:
    path = tmp_path / "record.jsonl"
    remote = Remote(processes.submit, f"{AGENTS}:deletes")
    with remote, remote.run_stream(Session.from_user("go"), record=Recording(path)) as stream:
        for event in stream:
            if isinstance(event, ToolCallConfirmation):
                assert eventually(lambda: "tool_call_confirmation" in path.read_text())  # it was on its way
                processes.started[0].send_signal(signal.SIGKILL)
    assert stream.reason == "error"
    assert "tool_call_confirmation" in kinds(path)
    assert Recording(path).events
    with Runtime(remote_agents.few) as runtime:  # nobody has the file any more
        runtime.run(Session.from_user("go"), record=path)


def test_what_cannot_be_written_is_an_error_where_it_is_asked_for(
    pool: ProcessPoolExecutor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "record.jsonl"
    session = Session.from_user("go")
    with Remote(pool.submit, f"{AGENTS}:waits") as remote:
        with remote.run_stream(Session.from_user("go"), record=path) as stream:
            next(stream)
            with pytest.raises(FileExistsError, match="another stream"):
                remote.run_stream(session, record=path)
        with pytest.raises(FileNotFoundError):
            remote.run_stream(session, record=tmp_path / "nowhere" / "record.jsonl")
        with pytest.raises(TypeError, match="redact"):
            remote.run_stream(session, record=Recording(path, redact=str.upper))
    assert session._lease is None

    def refuses(function: Any, spec: Any) -> None:
        raise OSError("no workers")

    def slow(file: Any, close: Any = _record.close) -> None:
        time.sleep(0.1)
        close(file)

    monkeypatch.setattr(_record, "close", slow)
    with Remote(refuses, f"{AGENTS}:few") as remote, pytest.raises(OSError, match="no workers"):
        remote.run_stream(session, record=path)
    monkeypatch.undo()
    with Runtime(remote_agents.few) as runtime:
        runtime.run(session, record=path)


def test_a_disk_that_is_full_ends_the_record_and_not_the_run(caplog: pytest.LogCaptureFixture) -> None:
    with ThreadPoolExecutor(1) as pool, Remote(pool.submit, f"{AGENTS}:few") as remote:
        assert remote.run(Session.from_user("go"), record="/dev/full").text == "0 1 2 "
    assert "the record '/dev/full' ends before its run" in caplog.text


def test_no_worker_comes(tmp_path: Path) -> None:
    path = tmp_path / "record.jsonl"
    with (
        Remote(lambda *_: None, f"{AGENTS}:few", start_timeout=0.1) as remote,
        pytest.raises(RunError, match=r"0\.1 s"),
    ):
        remote.run(Session.from_user("go"), record=path)
    with Runtime(remote_agents.few) as runtime:
        runtime.run(Session.from_user("go"), record=path)
