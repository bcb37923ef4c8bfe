"""A worker, a caller or a network that is lost: one last event, a session that is free, and nothing is run twice."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from channels import ChannelClosed, net
from runtime import NotPending, RunError, Session
from runtime.events import (
    AgentChoice,
    ElicitationRequest,
    Error,
    Event,
    StreamStarted,
    StreamStopped,
    ToolCallConfirmation,
)
from runtime.remote import Remote, work
from support.cutting import How, Network, Way
from support.remote_agents import ROOT, Processes

AGENTS = "support.remote_agents"


def check_end(events: list[Event], reason: str, code: str | None) -> None:
    """The first event, the last one and the error are there, each once."""
    assert [i for i, event in enumerate(events) if isinstance(event, StreamStarted)] == [0]
    stopped = [event for event in events if isinstance(event, StreamStopped)]
    assert stopped == events[-1:]
    assert stopped[0].reason == reason
    assert [event.code for event in events if isinstance(event, Error)] == ([] if code is None else [code])
    assert len({event.session_id for event in events}) == 1


def test_a_worker_that_is_killed(processes: Processes) -> None:
    """By the system, in the middle of a call."""
    session = Session.from_user("go")
    with Remote(processes.submit, f"{AGENTS}:dies") as remote, remote.run_stream(session) as stream:
        began = time.monotonic()
        events = list(stream)
        assert time.monotonic() - began < 10
        check_end(events, "error", "worker_lost")
        with pytest.raises(RunError, match="worker") as caught:
            stream.result()
        assert caught.value.code == "worker_lost"
        assert stream.reason == "error"
        assert stream.pending == []
    assert session._lease is None
    assert [message.content for message in session.messages] == ["go"]


def test_a_worker_that_is_killed_while_it_asks(processes: Processes) -> None:
    with Remote(processes.submit, f"{AGENTS}:asks") as remote, remote.run_stream(Session.from_user("go")) as stream:
        for event in stream:
            if isinstance(event, ElicitationRequest):
                processes.started[0].kill()
                with pytest.raises(NotPending):
                    while True:
                        stream.respond(event, "decline")
        check_end([StreamStarted(session_id=event.session_id), event], "error", None)


def test_a_worker_that_stands_still(processes: Processes) -> None:
    """It is lost after the heartbeat."""
    remote = Remote(processes.submit, f"{AGENTS}:waits", heartbeat=2)  # this side shall not seem to do so
    with remote, remote.run_stream(Session.from_user("go")) as stream:
        for event in stream:
            if isinstance(event, AgentChoice):
                processes.started[0].send_signal(signal.SIGSTOP)
        assert isinstance(event, StreamStopped)
        assert event.reason == "error"
        with pytest.raises(RunError, match=r"for 2 s"):
            stream.result()


def test_a_cancel_of_a_worker_that_stands_still(processes: Processes) -> None:
    """It is waited for no longer than the grace time."""
    remote = Remote(processes.submit, f"{AGENTS}:waits", grace=0.2)
    with remote, remote.run_stream(Session.from_user("go")) as stream:
        for event in stream:
            if isinstance(event, AgentChoice):
                processes.started[0].send_signal(signal.SIGSTOP)
                began = time.monotonic()
                stream.cancel()
        assert time.monotonic() - began < 10  # and not for the heartbeat
        assert isinstance(event, StreamStopped)
        assert event.reason == "canceled"


def test_law_24_a_job_is_run_once(tmp_path: Path) -> None:
    """An engine that runs a job again, at the same time or later, is refused before the agent is called."""
    marks = tmp_path / "marks"
    with Processes(LOCKGATE_TEST_MARKS=str(marks)) as processes:

        def submit(function: Any, spec: Mapping[str, Any]) -> None:
            processes.specs.append(dict(spec))
            for _ in range(3):
                processes.start(spec)

        with Remote(submit, f"{AGENTS}:marks") as remote:
            assert remote.run(Session.from_user("go")).text
        processes.start(processes.specs[0])
        outcomes = [processes.outcome(number) for number in range(4)]
    assert sum("refused" in each for each in outcomes) == 3
    assert len(marks.read_text().splitlines()) == 1


def test_law_24_after_the_worker_was_killed_too(processes: Processes) -> None:
    """When engines do it, Dask even with ``retries=0``."""
    with Remote(processes.submit, f"{AGENTS}:dies") as remote, remote.run_stream(Session.from_user("go")) as stream:
        check_end(list(stream), "error", "worker_lost")
    assert "refused" in work(processes.specs[0])


def test_a_caller_that_is_killed(processes: Processes, tmp_path: Path) -> None:
    """Its workers learn it at once, although other processes that it has forked have copies of its sockets."""
    script = f"""
import multiprocessing, os, sys, threading, warnings
from concurrent.futures import ProcessPoolExecutor
from runtime import Session
from runtime.events import AgentChoice
from runtime.remote import Remote
from support.remote_agents import Processes

warnings.simplefilter("ignore")
engine = Processes()
with Remote(engine.submit, "{AGENTS}:waits") as remote:
    stream = remote.run_stream(Session.from_user("go"))
    for event in stream:
        if isinstance(event, AgentChoice):
            if os.fork() == 0:
                threading.Event().wait(20)
                os._exit(0)
            print(engine.started[0].pid, flush=True)
            threading.Event().wait()
"""
    caller = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"},
    )
    try:
        assert caller.stdout is not None
        worker = int(caller.stdout.readline())
        caller.kill()
        began = time.monotonic()
        while _runs(worker):
            assert time.monotonic() - began < 10
            time.sleep(0.01)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(caller.pid, signal.SIGKILL)
        caller.wait()
        assert caller.stdout is not None
        caller.stdout.close()


def _runs(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
@pytest.mark.parametrize("how", ["exit", "raise"])
def test_a_caller_that_ends_does_not_wait_for_its_runs(how: str) -> None:
    """A pool waits for its workers at the exit of the interpreter, before the sockets of the process are closed."""
    script = f"""
import multiprocessing, time
from concurrent.futures import ProcessPoolExecutor
from runtime import Session
from runtime.events import AgentChoice
from runtime.remote import Remote

pool = ProcessPoolExecutor(1, multiprocessing.get_context("forkserver"))
stream = Remote(pool.submit, "{AGENTS}:waits").run_stream(Session.from_user("go"))
for event in stream:
    if isinstance(event, AgentChoice):
        print(time.monotonic(), flush=True)
        break
{"1 / 0" if how == "raise" else ""}
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=30,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"},
    )
    assert time.monotonic() - float(done.stdout) < 20
    assert done.returncode == (1 if how == "raise" else 0), done.stderr


STOPPED = {"type": "stream_stopped", "reason": "normal"}
RUBBISH: dict[str, Any] = {
    "an event that is none": {"type": "nothing"},
    "no object": [1],
    "a number": 5,
    "a last event that is no end": STOPPED,
    "an end of nothing": {"End": {}},
    "an end that is a number": {"End": 5},
    "an end for a reason that is none": {"End": {"stopped": {**STOPPED, "reason": "bored"}}},
    "an end with a usage that is none": {"End": {"stopped": STOPPED, "usage": {"a": 1}}},
    "an end with a usage in words": {"End": {"stopped": STOPPED, "usage": {"input_tokens": "many"}}},
    "an end with errors that are none": {"End": {"stopped": STOPPED, "failures": 5}},
    "an end with a cause that is none": {"End": {"stopped": STOPPED, "cause": [5]}},
    "an end with a session that is none": {"End": {"stopped": STOPPED, "session": {"kept": 1, "messages": [5]}}},
}


@pytest.mark.parametrize("said", RUBBISH.values(), ids=RUBBISH.keys())
def test_a_worker_that_says_what_makes_no_sense_is_lost(said: Any) -> None:
    """At once, and not when somebody asks for the result; the session is as it was."""

    def rubbish(spec: Mapping[str, Any]) -> None:
        codecs = [net.Codec(), net.Codec()]
        with net.connect(tuple(spec["address"]), spec["key"], codecs=codecs) as connection:
            events, requests = connection.lanes
            events[1].recv(timeout=5)
            events[0].send(said, timeout=5)
            with contextlib.suppress(ChannelClosed):
                requests[0].send({"over": ""}, timeout=5)

    session = Session.from_user("go")
    with (
        ThreadPoolExecutor(1) as pool,
        Remote(lambda _, spec: pool.submit(rubbish, spec), "a:b", grace=0.5) as remote,
        pytest.raises(RunError) as caught,
    ):
        remote.run(session)
    assert caught.value.code == "worker_lost"
    assert [message.content for message in session.messages] == ["go"]
    assert session._lease is None


def test_a_pool_that_breaks(tmp_path: Path) -> None:
    """The engine's own error is there, too, where the job had not begun."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        with contextlib.suppress(Exception):
            pool.submit(os._exit, 1).result(30)
        with Remote(pool.submit, f"{AGENTS}:few") as remote, pytest.raises(Exception, match="terminated"):
            remote.run_stream(Session.from_user("go"))


def test_the_network_is_cut_after_each_frame() -> None:
    """In both directions, in three ways: one last event, the session is free, and the worker comes to its end."""
    with ThreadPoolExecutor(2) as pool:
        cuts = 0
        for how in ("reset", "end", "silence"):
            for way in ("up", "down"):
                after = 0
                while _cut(pool, how, way, after):  # type: ignore[arg-type]
                    after += 1 if how != "silence" else 3  # which takes its time
                    cuts += 1
                assert after >= 3
        assert cuts >= 20


def _cut(pool: ThreadPoolExecutor, how: How, way: Way, after: int) -> bool:
    session = Session.from_user("go")
    networks: list[Network] = []
    jobs = []

    def submit(function: Any, spec: dict[str, Any]) -> Any:
        host, port = spec["address"]
        networks.append(Network((host, port), way=way, after=after, extra=after % 3, how=how))
        jobs.append(pool.submit(function, {**spec, "address": networks[0].address, "timeout": 0.5}))

    heartbeat = 0.4 if how == "silence" else 10.0
    remote = Remote(submit, f"{AGENTS}:deletes", heartbeat=heartbeat, start_timeout=1, grace=0.3)
    try:
        with remote, remote.run_stream(session) as stream:
            events = []
            for event in stream:
                events.append(event)
                if isinstance(event, ToolCallConfirmation):
                    with contextlib.suppress(NotPending):
                        stream.approve(event)
            error = next((event for event in events if isinstance(event, Error)), None)
            assert error is None or error.code in ("worker_lost", "not_started")
            check_end(events, "normal" if error is None else "error", None if error is None else error.code)
            assert stream.reason == ("normal" if error is None else "error")
            # All of it or nothing: what the session has is what the last event was about.
            assert len(session.messages) == (4 if error is None else 1)
            assert session._lease is None
        outcome = jobs[0].result(10)
        assert error is not None or outcome["reason"] == "normal"
        return networks[0].cut.is_set()
    finally:
        for each in networks:
            each.close()
