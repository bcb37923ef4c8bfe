"""Parts that break: what a model, a hook, a toolset, a bridge or a tool does wrong ends as it should."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import pathlib
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

import runtime.execution._calls as calls_module
from channels import Cancelled, Channel, ChannelClosed
from runtime import Agent, HookInput, HookResult, RunError, Runtime, Session, StreamStuck, Tool, ToolContext, tool
from runtime.events import ElicitationRequest, Error, Event, StreamStopped, ToolCallResponse, Warning
from runtime.session import Message, ToolCall
from runtime.session._session import SessionLog
from runtime.stream._core import StreamCore
from runtime.toolcalls._context import StreamContext
from support.scripted import AsyncScripted, Scripted, Stall, call, say
from support.waiting import eventually

FORM = {"type": "object", "properties": {}}


def _thread(name: str) -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith(name)]


def _fail_once(
    monkeypatch: pytest.MonkeyPatch, target: Any, name: str, error: BaseException, when: Callable[..., bool]
) -> None:
    """Let the method raise, the first time that ``when`` says so of its arguments."""
    real = getattr(target, name)
    left = [None]

    def method(*args: Any, **kwargs: Any) -> Any:
        if left and when(*args):
            left.clear()
            raise error
        return real(*args, **kwargs)

    monkeypatch.setattr(target, name, method)


class Watching:
    """An observer that does nothing but count."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def on_run_start(self, session: Session) -> None:
        """Nothing."""

    def on_event(self, session: Session, event: Event) -> None:
        """Keep it."""
        self.events.append(event)


# -- whose fault it was ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [Scripted, AsyncScripted])
@pytest.mark.parametrize("error", [ChannelClosed("its own"), Cancelled("its own"), SystemExit(1), KeyboardInterrupt()])
def test_what_a_model_raises_is_a_model_error(model: type[Scripted], error: BaseException) -> None:
    """Law 17: also what is no Exception, and what channels raise too; a `ChannelClosed` passed for the end of the
    turn.
    """
    with Runtime(Agent("a", model([*say("x"), error]))) as runtime, pytest.raises(RunError) as raised:
        runtime.run(Session.from_user("go"))
    assert raised.value.code == "model_error"
    assert raised.value.reason == "error"
    assert raised.value.__cause__ is not None


def test_an_event_that_cannot_be_sent_is_not_the_models_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    """The true code, when sending fails in the middle of a turn."""
    error = MemoryError("no room")
    _fail_once(monkeypatch, StreamCore, "emit", error, lambda core, event: event.type == "agent_choice")
    with Runtime(Agent("a", Scripted(say("x")))) as runtime, pytest.raises(RunError) as raised:
        runtime.run_stream(Session.from_user("go")).result()
    assert raised.value.code == "internal"
    assert raised.value.__cause__ is error


def test_a_toolset_that_gives_up_is_no_cancel() -> None:
    """Law 2: `Cancelled` out of a toolset's own waits is a failure like others, where nobody cancelled the stream."""

    class Giving:
        def start(self) -> None:
            raise Cancelled("its own deadline")

        def tools(self) -> list[Tool]:
            return []

        def stop(self) -> None:
            """Nothing."""

    with Runtime(Agent("a", Scripted(say("x")), toolsets=[Giving()])) as runtime, pytest.raises(RunError) as raised:
        runtime.run(Session.from_user("go"))
    assert (raised.value.reason, raised.value.code) == ("error", "tool_failed")


def test_a_timeout_of_the_calls_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """A `TimeoutError` that a toolset raises is told as such, also if its helper has not come to the very end yet."""
    held = threading.Event()
    monkeypatch.setattr(calls_module.Call, "finish", _finish_late(held))

    class Slow:
        def start(self) -> None:
            raise TimeoutError("no server")

        def tools(self) -> list[Tool]:
            return []

        def stop(self) -> None:
            """Nothing."""

    try:
        with Runtime(Agent("a", Scripted(say("x")), toolsets=[Slow()])) as runtime:
            stream = runtime.run_stream(Session.from_user("go"))
            errors = [event.error for event in stream if isinstance(event, Error)]
            held.set()
            stream.close()
    finally:
        held.set()
    assert errors == ["toolset Slow cannot be used: TimeoutError: no server"]


def _finish_late(held: threading.Event) -> Callable[..., None]:
    """`Call.finish`, with a pause between its two steps."""

    def finish(self: Any, value: Any, error: BaseException | None) -> None:
        with contextlib.suppress(ChannelClosed):
            self.inbox.send(calls_module.Finished(value, error, self))
        held.wait(5)
        self.done.close()

    return finish


def test_a_session_that_cannot_be_settled_is_no_normal_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Law 2: the reason was decided before the session was settled: "normal", with an `Error` event of code
    "normal".
    """
    error = MemoryError("no room")
    _fail_once(monkeypatch, SessionLog, "settle", error, lambda *_: True)
    session = Session.from_user("go")
    with Runtime(Agent("a", Scripted(say("x")))) as runtime:
        stream = runtime.run_stream(session)
        events = list(stream)
        with pytest.raises(RunError) as raised:
            stream.result()
    assert [event.code for event in events if isinstance(event, Error)] == ["internal"]
    assert isinstance(events[-1], StreamStopped)
    assert events[-1].reason == "error"
    assert raised.value.__cause__ is error
    session.add_user("and the session is free")


# -- nobody is left waiting --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nested", [False, True])
def test_an_internal_error_lets_go_of_tools(monkeypatch: pytest.MonkeyPatch, nested: bool) -> None:
    """Law 8: a tool whose question, or nested stream, the worker never came to waited for ever when the stream
    failed.
    """
    failing = threading.Event()
    posted = threading.Event()
    ended = threading.Event()
    real = StreamContext._post

    def post(self: Any, message: Any) -> None:
        real(self, message)
        if not nested or getattr(message, "event", None).__class__ is ElicitationRequest:
            posted.set()

    monkeypatch.setattr(StreamContext, "_post", post)

    @tool(read_only=True)
    def ask(context: ToolContext) -> str:
        """Asks, itself or through an agent."""
        failing.wait(5)
        try:
            if nested:
                return context.run_agent(Agent("sub", Scripted([call("ask_inside")]), tools=[ask_inside]), "go").text
            return context.elicit("?").action
        finally:
            ended.set()

    @tool(read_only=True)
    def ask_inside(context: ToolContext) -> str:
        """Asks."""
        return context.elicit("?").action

    def fails(core: StreamCore, event: Event) -> bool:
        if event.type != "tool_call_response":
            return False
        failing.set()
        posted.wait(5)
        return True

    @tool(read_only=True)
    def quick() -> str:
        """Returns at once."""
        return "quick"

    _fail_once(monkeypatch, StreamCore, "emit", MemoryError("no room"), fails)
    turn = [call("quick", id="1"), call("ask", id="2", index=1)]
    with Runtime(Agent("a", Scripted(turn), tools=[quick, ask])) as runtime:
        with runtime.run_stream(Session.from_user("go")) as stream:
            assert [event.code for event in stream if isinstance(event, Error)] == ["internal"]
            assert ended.wait(5), "the stream is over, and nobody has closed it yet"
        assert not runtime._shared.asks.pending()


def test_a_question_that_comes_late_is_refused() -> None:
    """Law 6: a thread that a tool left behind asks when the call is over: that ended the stream with a `KeyError`."""
    late: list[BaseException | str] = []
    threads: list[threading.Thread] = []
    returned = threading.Event()

    @tool(read_only=True)
    def leaves(context: ToolContext) -> str:
        """Leaves a thread behind."""

        def ask() -> None:
            returned.wait(5)
            try:
                late.append(context.elicit("Too late?").action)
            except BaseException as error:
                late.append(error)

        threads.append(threading.Thread(target=ask))
        threads[0].start()
        return "left"

    @tool(read_only=True)
    def waits() -> str:
        """Keeps the turn open."""
        returned.wait(5)
        threads[0].join(5)
        return "waited"

    turn = [call("leaves", id="1"), call("waits", id="2", index=1)]
    with Runtime(Agent("a", Scripted(turn, say("ok")), tools=[leaves, waits])) as runtime:
        with runtime.run_stream(Session.from_user("go")) as stream:
            for event in stream:
                if isinstance(event, ToolCallResponse):
                    returned.set()
        assert stream.reason == "normal"
    threads[0].join(5)
    assert not threads[0].is_alive()
    assert late == ["cancel"]


def test_a_dropped_stream_with_observers_leaves_no_thread() -> None:
    """Law 8: the forwarder waited for ever for room in a channel that nobody reads."""
    observer = Watching()
    with Stall() as stall:
        agent = Agent("a", Scripted([*say(*"abcdef"), stall]))
        with Runtime(agent, observers=[observer], event_capacity=1) as runtime:
            stream = runtime.run_stream(Session.from_user("go"))
            next(stream)
            del stream
            gc.collect()
            assert eventually(lambda: not _thread("lockgate-observe"))
            assert isinstance(observer.events[-1], StreamStopped)
            stall.go_on.set()


def test_closing_the_runtime_ends_a_stream_that_nobody_reads() -> None:
    """Laws 8 and 9: the forwarder too; observers see the end, and so does the consumer, if it comes back."""
    observer = Watching()
    runtime = Runtime(Agent("a", Scripted(say(*"abcdef"))), observers=[observer], event_capacity=1)
    stream = runtime.run_stream(Session.from_user("go"))
    Threads_parked(stream._core.out)
    runtime.close()
    assert not _thread("lockgate-observe")
    assert isinstance(observer.events[-1], StreamStopped)
    assert isinstance(list(stream)[-1], StreamStopped)


def Threads_parked(channel: Channel[Any]) -> None:
    """Wait until a sender waits for room."""
    assert eventually(lambda: "sender waiting" in repr(channel))


def test_leaving_the_block_waits_for_an_asynchronous_model() -> None:
    """Law 8: its task had been cancelled, but its cleanup was still running when the block was left."""
    clean = threading.Event()
    started = threading.Event()

    class Slow(AsyncScripted):
        async def stream(self, messages: Any, tools: Any, *, cancel: Any) -> Any:
            try:
                started.set()
                await asyncio.sleep(30)
                yield
            finally:
                await asyncio.sleep(0.2)
                clean.set()

    with Runtime(Agent("a", Slow())) as runtime:
        with runtime.run_stream(Session.from_user("go")):
            assert started.wait(5)
        assert clean.is_set()


def test_an_asynchronous_model_that_does_not_end_is_named() -> None:
    """Law 8: or `StreamStuck` names it."""
    started = threading.Event()
    go_on = threading.Event()

    class Deaf(AsyncScripted):
        async def stream(self, messages: Any, tools: Any, *, cancel: Any) -> Any:
            started.set()
            while not go_on.is_set():
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.sleep(0.01)
            yield

    with Runtime(Agent("a", Deaf()), grace=0.1) as runtime:
        stream = runtime.run_stream(Session.from_user("go"))
        assert started.wait(5)
        with pytest.raises(StreamStuck, match="model scripted"):
            stream.close()
        go_on.set()
        stream.close()


def test_a_last_message_that_cannot_be_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Law 2: a helper that failed to say that its call is over left the worker waiting for ever."""
    _fail_once(
        monkeypatch,
        Channel,
        "send",
        MemoryError("no room"),
        lambda _, value, *__: isinstance(value, calls_module.Finished),
    )
    with Runtime(Agent("a", Scripted([call("quick")]), tools=[Tool("quick", lambda: "x", read_only=True)])) as runtime:
        session = Session.from_user("go")
        with runtime.run_stream(session) as stream:
            events = [stream.recv(timeout=5)]
            while not isinstance(events[-1], StreamStopped):
                events.append(stream.recv(timeout=5))
        assert events[-1].reason == "error"


# -- closing the runtime -----------------------------------------------------------------------------------------------


def _starting(stall: Stall) -> Agent:
    class Starting:
        def start(self) -> None:
            stall()

        def tools(self) -> list[Tool]:
            return []

        def stop(self) -> None:
            """Nothing."""

    return Agent("a", Scripted(say("x")), toolsets=[Starting()])


def test_closing_the_runtime_does_not_wait_for_a_toolset_that_never_starts() -> None:
    """`Runtime.close` is bounded."""
    with Stall() as stall:
        runtime = Runtime(_starting(stall), grace=0.1)
        stream = runtime.run_stream(Session.from_user("go"))
        assert stall.reached.wait(5)
        closing = threading.Thread(target=runtime.close)
        closing.start()
        closing.join(3)
        stuck = closing.is_alive()
        stall.go_on.set()
        closing.join(5)
        stream.close()
        assert not stuck


def test_closing_the_runtime_waits_once_for_all_that_is_stuck() -> None:
    """`Runtime.close` is bounded: not by the grace time for each of ten tools."""
    barrier = threading.Barrier(11)

    def stalling() -> None:
        barrier.wait(5)
        stall()

    with Stall() as stall:
        turn = [call("stalling", id=str(i), index=i) for i in range(10)]
        runtime = Runtime(Agent("a", Scripted(turn), tools=[Tool("stalling", stalling, read_only=True)]), grace=0.5)
        stream = runtime.run_stream(Session.from_user("go"))
        barrier.wait(5)
        started = time.monotonic()
        runtime.close()
        took = time.monotonic() - started
        stall.go_on.set()
        stream.close()
        assert took < 4  # of the 5 that ten times would be


def test_a_tool_may_close_the_runtime() -> None:
    """It does not wait for itself."""
    closed: list[bool] = []

    @tool(read_only=True)
    def closes() -> str:
        """Closes everything."""
        runtime.close()
        closed.append(True)
        return "closed"

    runtime = Runtime(Agent("a", Scripted([call("closes")]), tools=[closes]))
    with runtime.run_stream(Session.from_user("go")) as stream:
        assert list(stream)[-1].reason == "canceled"  # type: ignore[attr-defined]
    assert closed == [True]
    runtime.close()


# -- hooks -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "hook",
    ["""echo '{"context": 5}'""", lambda given: HookResult(context=5)],
    ids=["command", "callable"],  # type: ignore[arg-type]
)
def test_a_hook_that_answers_nonsense_is_a_warning(hook: Any) -> None:
    """A hook's failure never takes the stream down: context that is no text ended it with a `TypeError`."""
    with Runtime(Agent("a", Scripted(say("x")), hooks={"session_start": [hook]})) as runtime:
        events = list(runtime.run_stream(Session.from_user("go")))
    assert [event.type for event in events if isinstance(event, (Warning, Error))] == ["warning"]
    assert events[-1].reason == "normal"  # type: ignore[attr-defined]


def test_a_working_directory_that_is_gone(tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture) -> None:
    """Hooks are told the working directory: there may be none, and streams run all the same."""
    here = pathlib.Path.cwd()
    gone = tmp_path / "gone"
    gone.mkdir()
    seen: list[str] = []

    def hook(given: HookInput) -> None:
        seen.append(given.hook_event_name)

    try:
        os.chdir(gone)
        gone.rmdir()
        with Runtime(Agent("a", Scripted(say("x")), hooks={"session_start": [hook], "session_end": [hook]})) as runtime:
            assert runtime.run(Session.from_user("go")).text == "x"
    finally:
        os.chdir(here)
    assert seen == ["session_start", "session_end"]
    assert not caplog.records


def test_arguments_that_are_nested_too_deeply() -> None:
    """What a model writes is its own to mend: a `RecursionError` ended the stream."""
    turn = [call("quick", "[" * 100_000)]
    with Runtime(Agent("a", Scripted(turn, say("ok")), tools=[Tool("quick", lambda: "x", read_only=True)])) as runtime:
        session = Session.from_user("go")
        assert runtime.run(session).text == "ok"
    assert "100 levels deep" in session.messages[2].content


def test_a_bridge_that_cannot_be_entered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Law 1: the consumer waited for ever, and the session stayed leased."""
    error = MemoryError("no room")
    session = Session.from_user("go")
    with Runtime(Agent("a", Scripted(say("x")))) as runtime:
        _fail_once(monkeypatch, type(runtime.bridge), "enter", error, lambda *_: True)
        stream = runtime.run_stream(session)
        assert isinstance(stream.recv(timeout=5), StreamStopped)
        with pytest.raises(RunError) as raised:
            stream.result()
        assert raised.value.__cause__ is error
        assert runtime.run(session).text == "x"


def test_what_is_stuck_in_a_nested_stream_is_named() -> None:
    """Law 8: nested streams and their parent waited as long as each other, gave up at the same moment, and what was
    named was the tool that ran the agent, or nothing, but never what that waited for.
    """
    with Stall() as model, Stall() as hook:
        inner = Agent("inner", Scripted([*say("x"), model]), hooks={"session_end": [hook.__call__]})

        @tool(read_only=True)
        def run_inner(context: ToolContext) -> str:
            """Runs the innermost agent."""
            return context.run_agent(inner, "go").text

        middle = Agent("middle", Scripted([call("run_inner")]), tools=[run_inner])

        @tool(read_only=True)
        def run_middle(context: ToolContext) -> str:
            """Runs an agent that runs an agent."""
            return context.run_agent(middle, "go").text

        agent = Agent("a", Scripted([call("run_middle")]), tools=[run_middle])
        with Runtime(agent, grace=1) as runtime:
            stream = runtime.run_stream(Session.from_user("go"))
            assert model.reached.wait(5)
            with pytest.raises(StreamStuck) as stuck:
                stream.close()
            named = [line for line in str(stuck.value).splitlines() if line and not line.startswith(" ")]
            assert sorted(each.rpartition(": ")[2] for each in named) == ["hook Stall.__call__", "model scripted"]
            model.go_on.set()
            hook.go_on.set()
            stream.close()


def test_what_a_nested_agent_leaves_behind_does_not_fail_it() -> None:
    """Law 8: a tool whose time was up still stood there, and the agent that had done without it was an error."""
    with Stall() as stall:
        slow = Tool("slow", lambda: stall(), read_only=True, timeout=0.001)
        inner = Agent("inner", Scripted([call("slow")], say("without it")), tools=[slow])

        @tool(read_only=True)
        def run_inner(context: ToolContext) -> str:
            """Runs the other agent."""
            return context.run_agent(inner, "go").text

        session = Session.from_user("go")
        with Runtime(Agent("a", Scripted([call("run_inner")], say("ok")), tools=[run_inner]), grace=0.05) as runtime:
            stream = runtime.run_stream(session)
            assert isinstance(list(stream)[-1], StreamStopped)
            assert session.messages[2].content == "without it"
            with pytest.raises(StreamStuck, match="tool slow"):
                stream.close()
            stall.go_on.set()
            stream.close()


def test_a_cleanup_hook_that_exits_does_not_keep_the_stream_from_the_others() -> None:
    """Law 10: a `SystemExit` in one, and the last event came before the next had ended."""
    leaving = threading.Event()
    done: list[bool] = []

    def exits(given: HookInput) -> None:
        raise SystemExit

    def slow(given: HookInput) -> None:
        leaving.wait(0.05)
        done.append(True)

    agent = Agent("a", Scripted(say("x")), hooks={"session_end": [exits, slow]})
    with Runtime(agent) as runtime, runtime.run_stream(Session.from_user("go")) as stream:
        for event in stream:
            if isinstance(event, StreamStopped):
                assert done


def test_a_model_that_uses_an_id_again() -> None:
    """Law 16: the call of the second turn passed for answered, since one of the first had its id."""
    reached = threading.Event()

    @tool(read_only=True)
    def stalls(context: ToolContext) -> str:
        """Waits for the cancel, the second time."""
        if reached.is_set():
            with contextlib.suppress(ChannelClosed):
                context.cancel.done.recv(timeout=5)
        return "x"

    session = Session.from_user("go")
    again = [call("stalls", id="call-0"), call("stalls", id="call-0", index=1)]
    with Runtime(Agent("a", Scripted(again, again), tools=[stalls])) as runtime:
        partial: list[str] = []
        begun: list[str] = []
        with runtime.run_stream(session) as stream:
            for event in stream:
                if event.type == "partial_tool_call":
                    partial.append(event.tool_call.id)  # type: ignore[attr-defined]
                if event.type == "tool_call":
                    begun.append(event.tool_call.id)  # type: ignore[attr-defined]
                if event.type == "tool_call_response":
                    reached.set()
                if len(begun) == 4:
                    stream.cancel()
    assert partial == begun
    assert len(set(begun)) == 4
    assert sorted(m.tool_call_id or "" for m in session.messages if m.role == "tool") == sorted(begun)


def test_a_session_whose_ids_come_again_is_settled() -> None:
    """The same, for what was written elsewhere."""
    call_0 = ToolCall("call-0", "x")
    session = Session(
        [
            Message("user", "go"),
            Message("assistant", tool_calls=(call_0,)),
            Message("tool", "answer", tool_call_id="call-0"),
            Message("assistant", tool_calls=(call_0,)),
            Message("user", "again"),
        ]
    )
    with session.lease() as log:
        log.settle("note")
    assert [m.content for m in session.messages if m.role == "tool"] == ["answer", "note"]
    assert [m.role for m in session.messages] == ["user", "assistant", "tool", "assistant", "tool", "user"]


def test_an_observer_that_raises_a_timeout_is_told_the_next_event() -> None:
    """Law 9: its own `TimeoutError` passed for one that stalls, and it was left out."""

    class Raising(Watching):
        def on_event(self, session: Session, event: Event) -> None:
            super().on_event(session, event)
            raise TimeoutError("its own")

    observer = Raising()
    with Runtime(Agent("a", Scripted(say("x"))), observers=[observer]) as runtime:
        events = list(runtime.run_stream(Session.from_user("go")))
        runtime.close()
    assert observer.events == events
