"""What the consumer holds, and what it may do with it. Laws 2, 8, 11, 13, 15, 17."""

from __future__ import annotations

import asyncio
import contextvars
import copy
import gc
import pickle
import subprocess
import sys
import textwrap
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from channels import Cancelled, CancelToken, aio, merge, select
from runtime import (
    Agent,
    EventStream,
    FinishDelta,
    HookInput,
    Message,
    Permissions,
    ReasoningDelta,
    RunError,
    Runtime,
    Session,
    SessionBusy,
    TextDelta,
    ToolCallDelta,
    UsageDelta,
    tool,
)
from runtime.events import AgentChoice, Error, Event, StreamStarted, StreamStopped, TokenUsage
from support.scripted import AsyncScripted, Scripted, Stall, call, say


def text_of(events: list[Event]) -> str:
    return "".join(event.content for event in events if isinstance(event, AgentChoice))


@pytest.mark.parametrize("model", [Scripted, AsyncScripted])
def test_a_plain_run(model: type[Scripted]) -> None:
    """Events in order, the session written, the result told."""
    turn = [ReasoningDelta("hm"), *say("Hello ", "there"), UsageDelta(7, 2), FinishDelta("stop")]
    with Runtime(Agent("greeter", model(turn))) as runtime:
        session = Session.from_user("hi")
        stream = runtime.run_stream(session)
        events = list(stream)
        assert isinstance(events[0], StreamStarted)
        assert isinstance(events[-1], StreamStopped)
        assert events[-1].reason == "normal"
        assert text_of(events) == "Hello there"
        assert {event.session_id for event in events} == {session.id}
        assert {event.agent_name for event in events} == {"greeter"}
        usage = [event for event in events if isinstance(event, TokenUsage)]
        assert [(u.input_tokens, u.output_tokens) for u in usage] == [(7, 2)]
        result = stream.result()
        assert (result.text, result.usage.input_tokens, result.usage.output_tokens) == ("Hello there", 7, 2)
        assert [m.role for m in session.messages] == ["user", "assistant"]


def test_the_conversation_goes_on() -> None:
    """A second run on the session sees what was said before."""
    model = Scripted(say("one"), say("two"))
    with Runtime(Agent("a", model, instructions="Be brief.")) as runtime:
        session = Session.from_user("first")
        assert runtime.run(session).text == "one"
        session.add_user("second")
        assert runtime.run(session).text == "two"
    assert [(m.role, m.content) for m in model.seen[1]] == [
        ("system", "Be brief."), ("user", "first"), ("assistant", "one"), ("user", "second"),
    ]  # fmt: skip


def test_a_model_that_fails_midway() -> None:
    """Law 17: its text is delivered and kept, the Error has code model_error, run() raises from the original."""
    original = ConnectionError("gone")
    with Runtime(Agent("a", Scripted([*say("half a "), original], [original]))) as runtime:
        session = Session.from_user("hi")
        events = list(runtime.run_stream(session))
        assert text_of(events) == "half a "
        assert isinstance(events[-2], Error)
        assert events[-2].code == "model_error"
        assert "gone" in events[-2].error
        assert session.messages[-1].content == "half a "
        with pytest.raises(RunError, match="gone") as raised:
            runtime.run(session)
        assert raised.value.__cause__ is original


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit(), ValueError("x")])
def test_whatever_a_model_raises_ends_the_stream(error: BaseException) -> None:
    """Law 1: BaseException too."""
    with Runtime(Agent("a", Scripted([*say("x"), error]))) as runtime:
        events = list(runtime.run_stream(Session.from_user("hi")))
        assert isinstance(events[-1], StreamStopped)
        assert events[-1].reason == "error"
        assert runtime.bridge.current is None


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), ValueError("x")])
def test_whatever_a_tool_raises_is_a_result(error: BaseException) -> None:
    """The model can read what went wrong, and the stream goes on."""

    @tool(read_only=True)
    def failing() -> None:
        """Fails."""
        raise error

    with Runtime(Agent("a", Scripted([call("failing")], say("I see")), tools=[failing])) as runtime:
        session = Session.from_user("hi")
        assert runtime.run(session).text == "I see"
        assert session.messages[2].is_error
        assert type(error).__name__ in session.messages[2].content


@pytest.mark.parametrize(
    "delta",
    [
        TextDelta(None),  # type: ignore[arg-type]
        ReasoningDelta(b"x"),  # type: ignore[arg-type]
        ToolCallDelta("0", "id", "echo"),  # type: ignore[arg-type]
        ToolCallDelta(0, "id", None),  # type: ignore[arg-type]
        ToolCallDelta(0, "id", "echo", []),  # type: ignore[arg-type]
        UsageDelta(None, 1),  # type: ignore[arg-type]
        None,
        "x",
    ],
    ids=repr,
)
def test_what_is_no_delta_is_the_models_fault(delta: Any) -> None:
    """It is named; what came before is kept."""
    session = Session.from_user("go")
    with Runtime(Agent("a", Scripted([TextDelta("before"), delta]))) as runtime:
        events = list(runtime.run_stream(session))
    assert [(event.code, repr(delta) in event.error) for event in events if isinstance(event, Error)] == [
        ("model_error", True)
    ]
    assert isinstance(events[-1], StreamStopped)
    assert events[-1].reason == "error"
    assert session.messages[-1].content == "before"


def test_wrong_calls_come_back_to_the_model() -> None:
    """Unknown tool, broken JSON, wrong types, one id used twice: errors that it can mend, never a crash."""

    @tool(read_only=True)
    def add(a: int, b: int) -> int:
        """Adds."""
        return a + b

    calls = [
        call("sub", id="1", index=0),
        call("add", '{"a": 1', id="2", index=1),
        call("add", '{"a": 1, "b": "two"}', id="3", index=2),
        call("add", "[1, 2]", id="4", index=3),
        call("add", '{"a": 1, "b": 2}', id="4", index=4),
    ]
    with Runtime(Agent("a", Scripted(calls, say("ok")), tools=[add])) as runtime:
        session = Session.from_user("hi")
        runtime.run(session)
        results = [m for m in session.messages if m.role == "tool"]
        assert [m.is_error for m in results] == [True, True, True, True, False]
        assert "there is no tool 'sub'" in results[0].content
        assert "not JSON" in results[1].content
        assert "b must be a whole number" in results[2].content
        assert results[4].content == "3"
        assert len({m.tool_call_id for m in results}) == 5


def test_fragments_of_tool_calls() -> None:
    """Names and JSON text may come in fragments, those of several calls mixed."""

    @tool(read_only=True)
    def echo(text: str) -> str:
        """Echoes."""
        return text

    turn = [
        ToolCallDelta(0, "a", "ec"), ToolCallDelta(1, "b", "echo", '{"text"'), ToolCallDelta(0, "", "ho", '{"te'),
        ToolCallDelta(1, "", "", ': "two"}'), ToolCallDelta(0, "", "", 'xt": "one"}'),
    ]  # fmt: skip
    with Runtime(Agent("a", Scripted(turn, say("ok")), tools=[echo])) as runtime:
        session = Session.from_user("hi")
        runtime.run(session)
        assert [m.content for m in session.messages if m.role == "tool"] == ["one", "two"]


def test_calls_of_one_turn_run_side_by_side_and_are_recorded_in_order() -> None:
    """They meet at a barrier, so they run at once; the second ends first, the first is recorded first."""
    barrier = threading.Barrier(2)
    second_done = threading.Event()

    @tool(read_only=True)
    def first() -> str:
        """Ends last."""
        barrier.wait(5)
        second_done.wait(5)
        return "first"

    @tool(read_only=True)
    def second() -> str:
        """Ends first."""
        barrier.wait(5)
        return "second"

    turn = [call("first", id="1", index=0), call("second", id="2", index=1)]
    with Runtime(Agent("a", Scripted(turn, say("ok")), tools=[first, second])) as runtime:
        session = Session.from_user("hi")
        with runtime.run_stream(session) as stream:
            for event in stream:
                if event.type == "tool_call_response":
                    second_done.set()
        assert [m.content for m in session.messages if m.role == "tool"] == ["first", "second"]


def test_the_thread_that_calls_run_is_woken_only_for_what_asks_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would throw the other events away."""
    got: list[str] = []
    following = EventStream.__next__

    def noting(stream: EventStream) -> Event:
        event = following(stream)
        got.append(event.type)
        return event

    monkeypatch.setattr(EventStream, "__next__", noting)
    asked: list[str] = []
    agent = Agent("a", Scripted([*say("I do "), call("f")], say("done")), tools=[tool(name="f")(lambda: "ok")])
    with Runtime(agent) as runtime:
        result = runtime.run(Session.from_user("go"), on_request=lambda event: asked.append(event.type) or True)
    assert result.text == "done"
    assert [message.content for message in result.messages] == ["I do ", "ok", "done"]
    assert asked == ["tool_call_confirmation"]
    assert got == ["tool_call_confirmation", "stream_stopped"]


def test_a_tool_that_must_run_alone_does() -> None:
    """`parallel=False`."""
    running = threading.Semaphore(1)

    def alone() -> str:
        assert running.acquire(blocking=False)
        running.release()
        return "alone"

    lone = tool(read_only=True, parallel=False)(alone)
    turn = [call("alone", id=str(i), index=i) for i in range(5)]
    with Runtime(Agent("a", Scripted(turn, say("ok")), tools=[lone])) as runtime:
        session = Session.from_user("hi")
        runtime.run(session)
        assert [m.content for m in session.messages if m.role == "tool"] == ["alone"] * 5


def test_max_iterations() -> None:
    """The end is told with its own reason."""

    @tool(read_only=True)
    def again() -> str:
        """Never enough."""
        return "again"

    model = Scripted(*[[call("again")] for _ in range(3)])
    with Runtime(Agent("a", model, tools=[again], max_iterations=3)) as runtime:
        with pytest.raises(RunError) as raised:
            runtime.run(Session.from_user("hi"))
        assert raised.value.reason == "max_iterations"


# -- the consumer who leaves -------------------------------------------------------------------------------------------


def test_leaving_the_block_ends_everything() -> None:
    """Law 8: break after the first text; afterwards no thread of the stream is left."""
    stopped = threading.Event()

    def forever() -> None:
        stopped.wait(0.001)

    turn = [step for _ in range(2000) for step in (TextDelta("x"), forever)]
    with Runtime(Agent("a", Scripted(turn))) as runtime:
        with runtime.run_stream(Session.from_user("hi")) as stream:
            for event in stream:
                if isinstance(event, AgentChoice):
                    break
        assert stream.reason == "canceled"
        assert list(stream) == []
        assert not [t for t in threading.enumerate() if t.name.startswith("lockgate-stream")]


def test_a_dropped_stream_is_cancelled() -> None:
    """Law 8: dropping the last reference ends it in the background."""
    with Stall() as stall, Runtime(Agent("a", Scripted([*say("x"), stall]))) as runtime:
        stream = runtime.run_stream(Session.from_user("hi"))
        core = stream._core
        assert stall.reached.wait(5)
        gone = weakref.ref(stream)
        del stream
        gc.collect()
        assert gone() is None, "nobody but the consumer holds it"
        with pytest.raises(Exception, match="closed"):
            core.finished.recv(timeout=5)
        assert core.ending.reason == "canceled"


def test_a_runtime_that_is_forgotten_can_be_collected() -> None:
    """No thread holds the runtime."""
    runtime = Runtime(Agent("a", Scripted(say("x"))))
    runtime.run(Session.from_user("hi"))
    helpers = runtime._shared.helpers
    gone = weakref.ref(runtime)
    del runtime
    gc.collect()
    assert gone() is None
    helpers.close()


def test_an_exception_in_the_loop_cancels_and_passes() -> None:
    """Laws 8 and 17."""
    with Stall() as stall, Runtime(Agent("a", Scripted([*say("x"), stall]))) as runtime:

        def consume() -> None:
            with runtime.run_stream(Session.from_user("hi")) as stream:
                for event in stream:
                    if isinstance(event, AgentChoice):
                        stall.go_on.set()
                        raise LookupError("mine")

        with pytest.raises(LookupError, match="mine"):
            consume()
        assert not runtime._shared.cores


def test_ctrl_c_surfaces_at_once_and_a_second_run_works(threads: Any) -> None:
    """Law 8: KeyboardInterrupt in a blocked consumer."""
    with Stall() as stall, Runtime(Agent("a", Scripted([*say("x"), stall], say("again")))) as runtime:
        stream = runtime.run_stream(Session.from_user("hi"))

        def interrupt() -> None:
            stall.reached.wait(5)
            threads.ctrl_c()

        interrupter = threading.Thread(target=interrupt)
        interrupter.start()
        with pytest.raises(KeyboardInterrupt):
            for _ in stream:
                pass
        interrupter.join()
        stall.go_on.set()
        stream.close()
        assert stream.reason == "canceled"
        assert runtime.run(Session.from_user("hi")).text == "again"


def test_two_threads_do_not_iterate_at_once() -> None:
    """An error, not a mixture."""
    with Stall() as stall, Runtime(Agent("a", Scripted([*say("x"), stall]))) as runtime:
        stream = runtime.run_stream(Session.from_user("hi"))
        consumer = threading.Thread(target=lambda: list(stream))
        consumer.start()
        assert stall.reached.wait(5)
        while "receiver waiting" not in repr(stream._core.out):
            threading.Event().wait(0.001)
        with pytest.raises(RuntimeError, match="another thread is iterating"):
            next(stream)
        stall.go_on.set()
        consumer.join()


def test_opened_in_one_thread_iterated_in_another_from_a_pool() -> None:
    """Thread-pool integrations."""
    with Runtime(Agent("a", Scripted(*[say("x") for _ in range(20)]))) as runtime, ThreadPoolExecutor(4) as pool:
        streams = [runtime.run_stream(Session.from_user("hi")) for _ in range(20)]
        for events in pool.map(list, streams):
            assert text_of(events) == "x"


def test_an_executor_of_the_callers() -> None:
    """Helper calls go to the pool that was given."""
    names: list[str] = []

    @tool(read_only=True)
    def where() -> str:
        """Tells its thread."""
        names.append(threading.current_thread().name)
        return "here"

    with ThreadPoolExecutor(2, thread_name_prefix="mine") as pool:
        agent = Agent("a", Scripted([call("where")], say("ok")), tools=[where])
        with Runtime(agent, executor=pool) as runtime:
            runtime.run(Session.from_user("hi"))
    assert names
    assert names[0].startswith("mine")


def test_select_and_merge_over_streams() -> None:
    """A stream is a receiver."""
    with Runtime(Agent("a", Scripted(say("x"), say("x")))) as runtime:
        streams = [runtime.run_stream(Session.from_user("hi")) for _ in range(2)]
        seen = [0, 0]
        for index, event in merge(*streams):
            seen[index] += isinstance(event, AgentChoice)
        assert seen == [1, 1]
        assert not select(*streams, block=False).ok


# -- sessions, contexts, ends ------------------------------------------------------------------------------------------


def test_one_live_stream_a_session() -> None:
    """Law 15."""
    with Stall() as stall, Runtime(Agent("a", Scripted([stall, *say("x")], say("y")))) as runtime:
        session = Session.from_user("hi")
        stream = runtime.run_stream(session)
        with pytest.raises(SessionBusy):
            runtime.run_stream(session)
        with pytest.raises(SessionBusy):
            session.add_user("too early")
        stall.go_on.set()
        assert stream.result().text == "x"
        session.add_user("now")
        assert runtime.run(session).text == "y"


@pytest.mark.parametrize("model", [Scripted, AsyncScripted])
def test_the_callers_context_travels(model: type[Scripted]) -> None:
    """Law 13: into tools, hooks and models; and nothing comes back."""
    who: contextvars.ContextVar[str] = contextvars.ContextVar("who", default="nobody")
    seen: dict[str, str] = {}

    @tool(read_only=True)
    def sync_tool() -> None:
        """Looks."""
        seen["tool"] = who.get()
        who.set("changed")

    @tool(read_only=True)
    async def async_tool() -> None:
        """Looks."""
        seen["async tool"] = who.get()

    def hook(given: HookInput) -> None:
        seen[given.hook_event_name] = who.get()

    async def async_hook(given: HookInput) -> None:
        seen["async hook"] = who.get()

    def look() -> None:
        seen["model"] = who.get()

    agent = Agent(
        "a",
        model([look, call("sync_tool", id="1"), call("async_tool", id="2", index=1)], say("ok")),
        tools=[sync_tool, async_tool],
        hooks={"session_start": [hook], "user_prompt_submit": [async_hook], "session_end": [hook]},
    )
    with Runtime(agent) as runtime:
        token = who.set("me")
        runtime.run(Session.from_user("hi"))
        assert who.get() == "me"
        who.reset(token)
    assert seen == dict.fromkeys(["tool", "async tool", "session_start", "session_end", "async hook", "model"], "me")


def test_a_closed_runtime() -> None:
    """It ends its streams, and says so to the next."""
    with Stall() as stall:
        runtime = Runtime(Agent("a", Scripted([*say("x"), stall])))
        stream = runtime.run_stream(Session.from_user("hi"))
        assert stall.reached.wait(5)
        stall.go_on.set()
        runtime.close()
        runtime.close()
        assert stream.reason is not None
        with pytest.raises(RuntimeError, match="closed"):
            runtime.run_stream(Session.from_user("hi"))


def test_a_worker_that_cannot_start_leaves_nothing(cold: None) -> None:
    """Law 1: no threads to be had."""
    with Runtime(Agent("a", Scripted(say("x")))) as runtime:
        session = Session.from_user("hi")
        with pytest.MonkeyPatch.context() as patch:

            def refuse(self: threading.Thread) -> None:
                raise RuntimeError("can't start new thread")

            patch.setattr(threading.Thread, "start", refuse)
            with pytest.raises(RuntimeError, match="can't start new thread"):
                runtime.run_stream(session)
        assert runtime.run(session).text == "x"


@pytest.mark.parametrize("part", ["lockgate-stream", "lockgate-observe", "lockgate-helper", "the loop"])
@pytest.mark.parametrize("model", [Scripted, AsyncScripted])
def test_any_thread_that_cannot_start(
    part: str, model: type[Scripted], monkeypatch: pytest.MonkeyPatch, cold: None
) -> None:
    """Law 1: `run_stream` raises, or the stream ends and says why; the next one runs, once there are threads again."""

    class Deaf:
        def on_run_start(self, session: Session) -> None:
            pass

        def on_event(self, session: Session, event: Event) -> None:
            pass

    @tool(read_only=True)
    async def echo() -> str:
        """Runs on the loop."""
        return "ok"

    start = threading.Thread.start
    refused = []

    def refuse(thread: threading.Thread) -> None:
        if thread.name.startswith(part) and not refused:
            refused.append(thread.name)
            raise RuntimeError("can't start new thread")
        start(thread)

    with aio.LoopThread("the loop") as loop, monkeypatch.context() as patch:
        patch.setattr(aio, "default_loop", lambda: loop)
        patch.setattr("runtime.execution._threads._Idle.give", lambda self, running: False)  # each is a new one
        patch.setattr(threading.Thread, "start", refuse)
        turns = [[call("echo")], say("x"), [call("echo")], say("x")]
        with Runtime(Agent("a", model(*turns), tools=[echo]), observers=[Deaf()]) as runtime:
            session = Session.from_user("hi")
            failure = "can't start new thread"
            try:
                runtime.run(session)  # an observer that is not told is logged, and no more
            except (RuntimeError, RunError) as error:
                failure = str(error)
            assert "can't start new thread" in failure
            assert refused
            assert session._lease is None
            assert len(runtime.bridge) == 0
            assert runtime.run(Session.from_user("hi")).text == "x"


@pytest.mark.skipif((3, 12) <= sys.version_info < (3, 12, 3), reason="this Python starts no thread at its exit")
def test_the_interpreter_exits_with_live_streams() -> None:
    """Law 11: within two seconds, cleanup run, nothing printed by dying threads."""
    program = """
        import os, sys, threading
        sys.path[:0] = [{root!r}, {tests!r}]
        from support.scripted import AsyncScripted, Scripted, Stall, say
        from runtime import Agent, Runtime, Session
        import asyncio

        async def wait():
            await asyncio.sleep(60)

        hooks = {{"session_end": [lambda given: os.write(1, f"cleanup {{given.reason}}\\n".encode()) and None]}}
        stall = Stall()
        held = []
        for model in (Scripted([stall]), AsyncScripted([*say("x"), wait])):
            runtime = Runtime(Agent("a", model, hooks=hooks))
            stream = runtime.run_stream(Session.from_user("hi"))
            next(stream)
            held.append(stream)
        stall.reached.wait(5)
        threading.Thread(target=lambda: list(held[1])).start()
        print("leaving", flush=True)
    """
    import pathlib

    tests = pathlib.Path(__file__).resolve().parents[2]
    source = textwrap.dedent(program).format(root=str(tests.parent), tests=str(tests))
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=20, check=False)
    assert done.stderr == ""
    assert done.stdout.split("\n") == ["leaving", "cleanup canceled", "cleanup canceled", ""]
    assert done.returncode == 0


def test_messages_survive_json() -> None:
    """`Message.to_dict` and back."""
    message = Message("tool", "text", tool_call_id="1", is_error=True)
    assert Message.from_dict(message.to_dict()) == message


def pickled(session: Session) -> Any:
    return pickle.loads(pickle.dumps(session))


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, pickled])
def test_a_copy_of_a_session_is_another_session(again: Callable[[Session], Session]) -> None:
    """Also of a live one: the copy has what was said by then, no stream, and what it is told stays there."""
    with Stall() as stall, Runtime(Agent("a", Scripted([stall], say("ok")))) as runtime:
        session = Session.from_user("go", permissions=Permissions(allow=["t"]))
        stream = runtime.run_stream(session)
        assert stall.reached.wait(10)
        twin = again(session)
        assert twin.to_dict() == session.to_dict()
        stall.go_on.set()
        stream.result()
        twin.add_user("and this")
        assert runtime.run(twin).text == "ok"
    assert [message.content for message in session.messages] == ["go", ""]
    assert [message.content for message in twin.messages] == ["go", "and this", "ok"]


def test_an_asynchronous_iterator_holds_its_stream() -> None:
    """Nobody else does in ``to_async(runtime.run_stream(session))``, and a stream that is dropped is cancelled."""

    async def main() -> list[Event]:
        receiver = aio.to_async(runtime.run_stream(Session.from_user("go")))
        gc.collect()
        stall.go_on.set()
        return [event async for event in receiver]

    with Stall() as stall, Runtime(Agent("a", Scripted([stall, *say("x")]))) as runtime:
        events = asyncio.run(main())
    assert isinstance(events[-1], StreamStopped)
    assert events[-1].reason == "normal"


@pytest.mark.parametrize("model", [Scripted, AsyncScripted])
@pytest.mark.parametrize("how", ["break", "cancel", "add_user"])
def test_a_stream_that_was_left_lets_the_next_have_the_session(model: type[Scripted], how: str) -> None:
    """``break`` leaves it, and it ends in the background: the next waits for that, and is not told `SessionBusy`."""
    session = Session.from_user("go")
    with Runtime(Agent("a", model(*[say("a", "b", "c")] * 61))) as runtime:
        for _ in range(30):
            if how == "cancel":
                stream = runtime.run_stream(session)
                next(stream)
                stream.cancel()
            else:
                for _ in runtime.run_stream(session):
                    break
            if how == "add_user":
                session.add_user("and then")
        assert runtime.run(session).text == "abc"


def test_a_stream_that_is_stuck_keeps_its_session_for_a_bounded_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.session._session.LEAVING", 0.05)
    session = Session.from_user("go")
    with session.lease() as log:
        with pytest.raises(SessionBusy):
            session.lease()
        log.dropped = True
        with pytest.raises(SessionBusy):
            session.lease()
    session.add_user("free")


@pytest.mark.parametrize("reading", [next, EventStream.recv], ids=["next", "recv"])
def test_ctrl_c_in_the_loop_cancels_the_run(reading: Callable[[EventStream], Event], threads: Any) -> None:
    """Law 8: by itself, though nobody closes the stream, which its holder may keep for long."""

    with Stall() as stall, Runtime(Agent("a", Scripted([*say("x"), stall, *say("y")]))) as runtime:
        stream = runtime.run_stream(Session.from_user("go"))
        assert stall.reached.wait(10)
        assert text_of([next(stream) for _ in range(5)]) == "x"
        pressing = threads.go(threads.ctrl_c)
        with pytest.raises(KeyboardInterrupt):
            reading(stream)
        pressing.result()
        assert stream._core.stopping.cancelled
        assert [type(event) for event in stream] == [StreamStopped]
        assert stream.reason == "canceled"
        stall.go_on.set()


@pytest.mark.parametrize("raised", [Cancelled, TimeoutError])
def test_who_waits_no_longer_does_not_cancel_the_run(raised: type[BaseException]) -> None:
    token = CancelToken(timeout=0.01)
    with Stall() as stall, Runtime(Agent("a", Scripted([stall, *say("y")]))) as runtime:
        stream = runtime.run_stream(Session.from_user("go"))
        assert stall.reached.wait(10)
        with pytest.raises(raised):
            while True:
                stream.recv(*((None, token) if raised is Cancelled else (0.01, None)))
        stall.go_on.set()
        assert stream.result().text == "y"
