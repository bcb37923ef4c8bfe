"""A run on a worker is as a run here: its events, its session, its result, its questions, its cancel."""

from __future__ import annotations

import contextlib
import gc
import inspect
import os
import sys
import time
import typing
import weakref
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any

import pytest

from channels import merge, select
from channels.net._link import live
from runtime import InvalidAnswer, NotPending, NotRunning, RunError, Runtime, Session, SessionBusy
from runtime.events import (
    AgentChoice,
    ElicitationRequest,
    Error,
    Event,
    StreamStarted,
    StreamStopped,
    ToolCallConfirmation,
)
from runtime.remote import Remote, RemoteError, RemoteStream, work
from runtime.stream._any_stream import AnyStream
from runtime.stream._event_stream import EventStream
from support import remote_agents
from support.interrupts import between, press_ctrl_c
from support.remote_agents import Place, Processes
from support.waiting import eventually, in_time

AGENTS = "support.remote_agents"


def shape(events: list[Event]) -> list[Any]:
    """What two runs of the same agent have in common."""
    return [
        {key: value for key, value in event.to_dict().items() if key not in ("session_id", "timestamp")}
        for event in events
    ]


@pytest.mark.parametrize("name", ["few", "deletes", "fails", "made"])
def test_the_same_events_session_and_result_as_here(pool: ProcessPoolExecutor, name: str) -> None:
    agent = remote_agents.few if name == "made" else getattr(remote_agents, name)
    here, there = Session.from_user("hello"), Session.from_user("hello")
    with Runtime(agent) as local, local.run_stream(here, interactive=False) as stream:
        events = list(stream)
        wanted = stream.result()
    with Remote(pool.submit, f"{AGENTS}:{name}") as remote, remote.run_stream(there, interactive=False) as other:
        assert shape(list(other)) == shape(events)
        result = other.result()
        assert other.reason == stream.reason == "normal"
    assert result.text == wanted.text
    assert result.usage == wanted.usage
    assert result.messages == there.messages[1:]
    strip = ("created_at",)
    said = [[{k: v for k, v in m.to_dict().items() if k not in strip} for m in each.messages] for each in (here, there)]
    assert said[0] == said[1]
    assert here.title == there.title
    assert here.usage == there.usage
    assert there._lease is None


def test_a_session_goes_on_where_it_was(pool: ProcessPoolExecutor) -> None:
    """Between a run there and a run here, and back."""
    session = Session.from_user("hello")
    with Remote(pool.submit, f"{AGENTS}:few") as remote, Runtime(remote_agents.few) as local:
        for run in (remote.run, local.run, remote.run):
            before = session.messages
            run(session)
            assert session.messages[:-1] == before
            assert session.messages[-1].content == "0 1 2 "
            session.add_user("go on")
    assert len(session.messages) == 7


def test_any_engine(pool: ProcessPoolExecutor, processes: Processes) -> None:
    """With futures or without, a thread of this process, and a runtime that the worker has already."""
    with ThreadPoolExecutor(1) as threads:
        for submit in (pool.submit, threads.submit, processes.submit):
            with Remote(submit, f"{AGENTS}:shared") as remote:
                assert remote.run(Session.from_user("hello")).text == "0 1 2 "
    assert processes.outcome()["reason"] == "normal"


def test_a_question_is_answered_from_here(pool: ProcessPoolExecutor) -> None:
    with Remote(pool.submit, f"{AGENTS}:asks") as remote, remote.run_stream(Session.from_user("go")) as stream:
        for event in stream:
            if isinstance(event, ElicitationRequest):
                assert stream.pending == [event]
                with pytest.raises(InvalidAnswer, match="whole number"):
                    stream.respond(event, "accept", {"n": "many"})
                stream.respond(event, "accept", {"n": 3})
                with pytest.raises(NotPending):
                    stream.respond(event.elicitation_id, "decline")
        assert stream.result().text.startswith("accept {'n': 3} in ")
        assert not stream.result().text.endswith(f" {os.getpid()}")
        assert stream.pending == []
        with pytest.raises(NotPending):
            stream.respond(event if isinstance(event, ElicitationRequest) else "it", "decline")


@pytest.mark.parametrize("approves", [True, False])
def test_a_call_is_approved_from_here(pool: ProcessPoolExecutor, approves: bool) -> None:
    session = Session.from_user("go")
    with Remote(pool.submit, f"{AGENTS}:deletes") as remote:
        result = remote.run(session, on_request=lambda event: approves)
    assert ("deleted in" in result.text) is approves


def test_messages_and_pauses(pool: ProcessPoolExecutor) -> None:
    session = Session.from_user("go")
    with Remote(pool.submit, f"{AGENTS}:asks") as remote, remote.run_stream(session) as stream:
        for event in stream:
            if isinstance(event, ElicitationRequest):
                stream.steer("by the way")
                stream.follow_up("and then")
                stream.pause()
                stream.resume()
                stream.respond(event, "decline")
                break
        for event in stream:
            if isinstance(event, ElicitationRequest):
                stream.respond(event, "decline")
    said = [message.content for message in session.messages if message.role == "user"]
    assert said == ["go", "by the way", "and then"]
    with pytest.raises(NotRunning):
        stream.steer("too late")


def test_law_18_a_cancel_from_here_is_prompt(pool: ProcessPoolExecutor) -> None:
    with Remote(pool.submit, f"{AGENTS}:waits") as remote:

        def cancelled() -> float:
            session = Session.from_user("go")
            with remote.run_stream(session) as stream:
                for event in stream:
                    if isinstance(event, AgentChoice):
                        began = time.monotonic()
                        stream.cancel("enough")
                took = time.monotonic() - began
                assert isinstance(event, StreamStopped)
                assert event.reason == stream.reason == "canceled"
                assert session.messages[-1].content == "begun"
            assert session._lease is None
            return took

        assert in_time(cancelled, 0.05)


def test_leaving_the_block_ends_it(pool: ProcessPoolExecutor) -> None:
    session = Session.from_user("go")
    with Remote(pool.submit, f"{AGENTS}:many") as remote:
        with remote.run_stream(session) as stream:
            for _ in stream:
                break
        assert stream.reason == "canceled"
        assert list(stream) == []
        remote.run(session)  # and it is free


def test_a_stream_that_is_dropped_is_cancelled(pool: ProcessPoolExecutor) -> None:
    session = Session.from_user("go")
    with Remote(pool.submit, f"{AGENTS}:waits") as remote:
        stream = remote.run_stream(session)
        next(stream)
        link = stream._run.link
        del stream
        assert link is not None
        assert link.join(5)
        assert session._lease is None


def test_select_and_merge_take_it(pool: ProcessPoolExecutor) -> None:
    with Remote(pool.submit, f"{AGENTS}:few") as remote:
        streams = [remote.run_stream(Session.from_user("go")) for _ in range(2)]
        assert isinstance(select(streams[0], timeout=10).value, StreamStarted)
        events = [event for _, event in merge(*streams)]
        assert sum(isinstance(event, StreamStopped) for event in events) == 2
        for stream in streams:
            stream.close()


def test_one_live_stream_a_session(pool: ProcessPoolExecutor) -> None:
    session = Session.from_user("go")
    with Remote(pool.submit, f"{AGENTS}:waits") as remote, remote.run_stream(session):
        with pytest.raises(SessionBusy):
            remote.run_stream(session)
        with pytest.raises(SessionBusy):
            session.add_user("no")


def test_what_an_agent_raises_has_its_traceback(pool: ProcessPoolExecutor) -> None:
    """`RunError` says which exception ended the run, although it stays where it was raised."""
    remote = Remote(pool.submit, f"{AGENTS}:raises")
    with remote, pytest.raises(RunError, match="the agent cannot be made") as caught:
        remote.run(Session.from_user("go"))
    assert caught.value.code == "not_started"
    assert isinstance(caught.value.__cause__, RemoteError)
    assert "remote_agents.py" in str(caught.value.__cause__)


@pytest.mark.parametrize("name", ["raises", "exits", "not_an_agent", "nobody"])
def test_an_agent_that_is_not_there(pool: ProcessPoolExecutor, name: str) -> None:
    with Remote(pool.submit, f"{AGENTS}:{name}") as remote, remote.run_stream(Session.from_user("go")) as stream:
        first, error, last = stream
    assert isinstance(first, StreamStarted)
    assert isinstance(error, Error)
    assert error.code == "not_started"
    assert isinstance(last, StreamStopped)
    assert last.reason == "error"


def test_an_engine_that_fails() -> None:
    """At once, later, by cancelling the job, by never running it: a clear error, and the session is free."""
    session = Session.from_user("go")

    def refuses(function: Any, spec: Any) -> None:
        raise OSError("no workers")

    with Remote(refuses, f"{AGENTS}:few") as remote, pytest.raises(OSError, match="no workers"):
        remote.run_stream(session)
    future: Future[Any]
    for end, text in (
        (lambda: future.set_exception(OSError("lost it")), "lost it"),
        (lambda: future.cancel(), "cancelled the job"),
        (lambda: future.set_result({"refused": "no route"}), "no route"),
        (lambda: None, "within 0.2 s"),
    ):
        future = Future()
        patience = 0.2 if "within" in text else 20
        with Remote(lambda *_: future, f"{AGENTS}:few", start_timeout=patience) as remote:
            stream = remote.run_stream(session)
            end()
            events = list(stream)
            assert [type(event) for event in events] == [StreamStarted, Error, StreamStopped]
            assert isinstance(events[1], Error)
            assert text in events[1].error
            assert events[1].code == "not_started"
            with pytest.raises(RunError, match=text):
                stream.result()
    assert session._lease is None


def test_a_close_while_a_run_is_opened_leaves_no_run() -> None:
    """In a signal handler, at the worst moment: it does not wait for the thread that it interrupts."""
    remote = Remote(lambda *_: pytest.fail("submitted"), f"{AGENTS}:few")

    class Interrupted(weakref.WeakSet[Any]):
        def add(self, item: Any) -> None:
            remote.close()
            super().add(item)

    remote._runs = Interrupted()
    session = Session.from_user("go")
    with pytest.raises(RuntimeError, match="closed"):
        remote.run_stream(session)
    assert session._lease is None


def test_an_interrupt_anywhere_leaves_no_run_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between any two steps of opening, reading and leaving a stream: the session is free again, the sockets are
    closed."""
    monkeypatch.setattr(sys, "unraisablehook", lambda args: None)  # in a finalizer it is lost, as everything there
    number, happened = 0, True
    with ThreadPoolExecutor(4) as pool, Remote(pool.submit, f"{AGENTS}:few", grace=0.5) as remote:
        remote.run(Session.from_user("go"))
        while happened:
            session = Session.from_user("go")

            def consume() -> None:
                with contextlib.suppress(KeyboardInterrupt), remote.run_stream(session) as stream:
                    list(stream)

            happened = between(number, consume, press_ctrl_c)
            gc.collect()  # a stream that was not handed over yet is cancelled where it is dropped
            assert eventually(lambda: session._lease is None and not live), number
            number += 1 if number < 40 else 9
    assert number > 200


def test_a_run_may_wait_behind_another() -> None:
    """An engine with fewer workers than runs is no engine that does not begin them."""
    with (
        ThreadPoolExecutor(1) as one,
        Remote(one.submit, f"{AGENTS}:waits", start_timeout=0.2) as remote,
        remote.run_stream(Session.from_user("go")) as first,
    ):
        assert isinstance(next(first), StreamStarted)
        with remote.run_stream(Session.from_user("go")) as second:
            with pytest.raises(TimeoutError):
                select(second, timeout=0.7)
            first.close()
            assert isinstance(next(second), StreamStarted)


def test_a_cancel_before_a_worker_is_there() -> None:
    """It does not wait for one; the engine is told, and a worker that comes all the same is refused."""
    future: Future[Any] = Future()
    specs = []
    remote = Remote(lambda function, spec: specs.append(spec) or future, f"{AGENTS}:few")
    with remote, remote.run_stream(Session.from_user("go")) as stream:
        began = time.monotonic()
        stream.cancel()
        assert [type(event) for event in stream] == [StreamStarted, StreamStopped]
        assert time.monotonic() - began < 10
        assert stream.reason == "canceled"
    assert "refused" in work(specs[0])
    assert eventually(future.cancelled)


def test_bad_settings_are_refused_where_they_are_said() -> None:
    for target in ("few", "support.remote_agents", "__main__:agent", "a b:c", ""):
        with pytest.raises(ValueError, match="module"):
            Remote(print, target)
    for setting in ({"grace": 0}, {"heartbeat": -1}, {"capacity": 0}, {"start_timeout": "soon"}, {"store": "file.db"}):
        with pytest.raises(ValueError, match=next(iter(setting))):
            Remote(print, f"{AGENTS}:few", **setting)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="advertise"):
        Remote(print, f"{AGENTS}:few", address="0.0.0.0")
    with pytest.raises(TypeError, match="submit"):
        Remote(None, f"{AGENTS}:few")  # type: ignore[arg-type]
    with Remote(print, f"{AGENTS}:few") as remote, pytest.raises(TypeError):
        remote.run_stream("hello")  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="closed"):
        remote.run_stream(Session.from_user("go"))


def test_one_interface() -> None:
    """What takes an `AnyStream` takes a run here and a run there."""
    streams: list[type[AnyStream]] = [EventStream, RemoteStream]
    for name in vars(AnyStream):
        if not name.startswith("_"):
            assert all(hasattr(kind, name) for kind in streams), name


@pytest.mark.parametrize("method", ["run_stream", "run", "map"])
def test_one_signature(method: str) -> None:
    """That of `Runtime`, argument for argument, with their defaults and types, and those of its overloads. (One that
    both took from a `TypedDict` would show users nothing.)"""

    def said(kind: type) -> list[Any]:
        function = getattr(kind, method)
        signatures = [inspect.signature(each) for each in (function, *typing.get_overloads(function))]
        return [[*each.parameters.values(), each.return_annotation] for each in signatures]

    here, there = said(Runtime), said(Remote)
    assert len(here) == (1 if method == "run_stream" else 3)
    if method == "run_stream":
        assert (here[0].pop(), there[0].pop()) == ("EventStream", "RemoteStream")
    assert there == here


def test_a_slow_consumer_slows_the_worker_down(pool: ProcessPoolExecutor) -> None:
    """No more events are under way than the capacity of the stream there and of the connection."""
    with Remote(pool.submit, f"{AGENTS}:many", capacity=8, settings={"event_capacity": 4}) as remote:
        with remote.run_stream(Session.from_user("go")) as stream:
            first = next(stream)
            time.sleep(0.3)  # whatever would come, has come
            assert len(stream) <= 8
            rest = list(stream)
        assert len([event for event in (first, *rest) if isinstance(event, AgentChoice)]) == 1000


def test_many_streams_at_once(pool: ProcessPoolExecutor) -> None:
    """A hundred, of which two run at a time."""
    with Remote(pool.submit, f"{AGENTS}:few") as remote, contextlib.ExitStack() as stack:
        sessions = [Session.from_user("go") for _ in range(100)]
        streams = [stack.enter_context(remote.run_stream(session)) for session in sessions]
        events = [event for _, event in merge(*streams)]
        assert sum(isinstance(event, StreamStopped) and event.reason == "normal" for event in events) == 100
        assert all(session.messages[-1].content == "0 1 2 " for session in sessions)


def test_a_call_is_made_by_nobody_twice(pool: ProcessPoolExecutor) -> None:
    """A tool that asks for an approval is asked about here, once."""
    seen = []
    with Remote(pool.submit, f"{AGENTS}:deletes") as remote, remote.run_stream(Session.from_user("go")) as stream:
        for event in stream:
            if isinstance(event, ToolCallConfirmation):
                seen.append(event)
                stream.approve(event)
    assert len(seen) == 1


def test_a_tool_for_the_consumers_thread_runs_in_that_of_the_job(pool: ProcessPoolExecutor) -> None:
    with Remote(pool.submit, f"{AGENTS}:wheres") as remote:
        assert remote.run(Session.from_user("go")).text == "MainThread"


def test_the_context_of_a_trace_travels(pool: ProcessPoolExecutor) -> None:
    """As W3C has it: tools in the worker are in the trace of the caller."""
    trace = pytest.importorskip("opentelemetry.sdk.trace", reason="the extra otel is not installed")
    from opentelemetry import trace as api

    tracer = trace.TracerProvider().get_tracer("test")
    with Remote(pool.submit, f"{AGENTS}:traces") as remote:
        with tracer.start_as_current_span("here") as span:
            assert api.get_current_span() is span
            inside = remote.run(Session.from_user("go")).text
        assert inside == f"{span.get_span_context().trace_id:032x}"
        assert remote.run(Session.from_user("go")).text == "0" * 32


def test_an_output_type(pool: ProcessPoolExecutor) -> None:
    """It is imported by the worker, which asks for it, and read here."""
    with Remote(pool.submit, f"{AGENTS}:says_a_place") as remote:
        assert remote.run(Session.from_user("go"), output_type=Place).output == Place("Rome", 3)
        for kind in (int, list[int], type("Local", (), {"__qualname__": "f.<locals>.Local"})):
            with pytest.raises((TypeError, ValueError)):
                remote.run_stream(Session.from_user("go"), output_type=kind)


@pytest.mark.parametrize("capacity", [1, 2, 8, 128])
def test_a_cancel_does_not_wait_for_a_consumer_that_does_not_read(pool: ProcessPoolExecutor, capacity: int) -> None:
    """It gets the events for which there was room, and the last one; the session is free at once."""
    session = Session.from_user("go")
    remote = Remote(pool.submit, f"{AGENTS}:many", capacity=capacity, grace=60)
    with remote, remote.run_stream(session) as stream:
        next(stream)
        while len(stream) < min(capacity, 2) - 1:
            time.sleep(0.001)
        time.sleep(0.1)  # until nothing moves any more
        began = time.monotonic()
        stream.cancel()
        while stream.reason is None:
            assert time.monotonic() - began < 10  # long before the grace time
            time.sleep(0.001)
        assert session._lease is None
        events = list(stream)
        assert isinstance(events[-1], StreamStopped)
        assert len(events) <= capacity + 1
        assert stream.reason == "canceled"
        assert session.messages[-1].finish_reason == "interrupted"


@pytest.mark.stress
def test_many_runs_of_one_process_that_are_cancelled_together_end_in_seconds() -> None:
    """Each has half a dozen threads, which all wake."""
    with (
        ThreadPoolExecutor(400) as pool,
        Remote(pool.submit, f"{AGENTS}:waits", grace=60, settings={"grace": 30}) as remote,
    ):
        streams = [remote.run_stream(Session.from_user("go")) for _ in range(400)]
        for stream in streams:
            assert any(isinstance(event, AgentChoice) for event in stream)
        began = time.monotonic()
        for stream in streams:
            stream.cancel()
        assert all(list(stream)[-1].type == "stream_stopped" for stream in streams)
        assert time.monotonic() - began < 15
        for stream in streams:
            stream.close()


@pytest.mark.parametrize("capacity", [1, 8])
def test_a_run_that_has_ended_waits_for_its_consumer(pool: ProcessPoolExecutor, capacity: int) -> None:
    """Nothing is left out where nobody has cancelled it."""
    remote = Remote(pool.submit, f"{AGENTS}:few", capacity=capacity)
    with remote, remote.run_stream(Session.from_user("go")) as stream:
        next(stream)
        time.sleep(0.2)
        events = list(stream)
        assert [event.content for event in events if isinstance(event, AgentChoice)] == ["0 ", "1 ", "2 "]
        assert stream.result().text == "0 1 2 "


def test_a_long_session(pool: ProcessPoolExecutor) -> None:
    """Megabytes go there and back; what is longer than a frame may be is refused where it is said, or told."""
    session = Session.from_user("x" * 5_000_000)
    with Remote(pool.submit, f"{AGENTS}:echoes") as remote:
        assert len(remote.run(session).text) == 5_000_000
        with pytest.raises(ValueError, match="longer than a frame"):
            remote.run_stream(Session.from_user("x" * 70_000_000))
        long = Session.from_user("make it 70000000")
        with pytest.raises(RunError, match="longer than a frame") as caught:
            remote.run(long)
        assert caught.value.code == "internal"
        assert long._lease is None
        remote.run(session)
