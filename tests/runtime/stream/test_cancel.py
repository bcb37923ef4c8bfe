"""Law 18: the channel is closed within 50 ms of `cancel()`, from any thread, whatever stands still. Laws 1, 2, 8, 16
with it.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from channels import CancelToken
from runtime import Agent, HookInput, Runtime, Session, StreamStuck, Tool, ToolContext, tool
from runtime.events import ElicitationRequest, Error, StreamStarted, StreamStopped
from support.scripted import AsyncScripted, Scripted, Stall, call, say
from support.waiting import in_time

PROMPT = 0.05  # seconds


def _tool_agent(function: Callable[..., Any]) -> Agent:
    return Agent("a", Scripted([call("stalling")], say("done")), tools=[Tool("stalling", function, read_only=True)])


def stalled_model(stall: Stall) -> Agent:
    return Agent("a", Scripted([*say("some text"), stall, *say("more")]))


def stalled_async_model(stall: Stall) -> Agent:
    async def wait() -> None:
        stall.reached.set()
        await asyncio.sleep(30)

    return Agent("a", AsyncScripted([*say("some text"), wait, *say("more")]))


def stalled_tool(stall: Stall) -> Agent:
    return _tool_agent(stall)


def stalled_async_tool(stall: Stall) -> Agent:
    async def stalling() -> None:
        stall.reached.set()
        await asyncio.sleep(30)

    return _tool_agent(stalling)


def stalled_question(stall: Stall) -> Agent:
    @tool(read_only=True)
    def stalling(context: ToolContext) -> str:
        """Asks, and is not answered."""
        stall.reached.set()
        return context.elicit("Well?").action

    return Agent("a", Scripted([call("stalling")], say("done")), tools=[stalling])


def stalled_async_question(stall: Stall) -> Agent:
    @tool(read_only=True)
    async def stalling(context: ToolContext) -> str:
        """Asks, and is not answered."""
        stall.reached.set()
        return (await context.aelicit("Well?")).action

    return Agent("a", Scripted([call("stalling")], say("done")), tools=[stalling])


def stalled_hook(stall: Stall) -> Agent:
    def stalling(given: HookInput) -> None:
        stall()

    return Agent("a", Scripted(say("done")), hooks={"session_start": [stalling]})


def stalled_command_hook(stall: Stall) -> Agent:
    stall.reached.set()  # how far the shell has come cannot be seen; early or late, the cancel must work
    return Agent("a", Scripted(say("done")), hooks={"session_start": ["sleep 30"]})


def stalled_cleanup(stall: Stall) -> Agent:
    def stalling(given: HookInput) -> None:
        stall()

    return Agent("a", Scripted(say("done")), hooks={"session_end": [stalling]})


def stalled_toolset(stall: Stall) -> Agent:
    class Stalling:
        def start(self) -> None:
            stall()

        def tools(self) -> list[Tool]:
            return []

        def stop(self) -> None:
            pass

    return Agent("a", Scripted(say("done")), toolsets=[Stalling()])


ALL = [
    stalled_model, stalled_async_model, stalled_tool, stalled_async_tool, stalled_question, stalled_async_question,
    stalled_hook, stalled_command_hook, stalled_toolset,
]  # fmt: skip


@pytest.mark.parametrize("make", ALL)
def test_cancel_from_another_thread_is_prompt(make: Callable[[Stall], Agent]) -> None:
    """The consumer is parked in its loop; another thread cancels; the loop ends within 50 ms, with the true reason."""
    assert in_time(lambda: cancelled_from_another_thread(make), PROMPT)


def cancelled_from_another_thread(make: Callable[[Stall], Agent]) -> float:
    session = Session.from_user("go")
    with Stall() as stall, Runtime(make(stall)) as runtime:
        stream = runtime.run_stream(session)
        when: list[float] = []

        def cancel() -> None:
            stall.reached.wait(10)
            when.append(time.monotonic())
            stream.cancel("enough")

        canceller = threading.Thread(target=cancel)
        canceller.start()
        events = list(stream)
        took = time.monotonic() - when[0]
        canceller.join()
        assert isinstance(events[-1], StreamStopped)
        assert events[-1].reason == "canceled"
        assert stream.reason == "canceled"
        assert sum(isinstance(event, StreamStopped) for event in events) == 1
        assert not any(isinstance(event, Error) for event in events)
        assert runtime.bridge.current is None
        open_calls = {c.id for m in session.messages for c in m.tool_calls} - {m.tool_call_id for m in session.messages}
        assert not open_calls, "law 16: every tool call has a result"
        stall.go_on.set()
        before = session.messages
        stream.close()
        assert session.messages == before, "law 16: nothing is written after the last event"
        return took


def test_a_cleanup_hook_that_stalls_does_not_hold_up_a_cancelled_stream() -> None:
    """Laws 10 and 18: cancelled while the session_end hook runs, the stream closes first and the hook ends after."""
    assert in_time(cancelled_in_a_cleanup_hook, PROMPT)


def cancelled_in_a_cleanup_hook() -> float:
    with Stall() as stall, Runtime(stalled_cleanup(stall)) as runtime:
        stream = runtime.run_stream(Session.from_user("go"))
        assert stall.reached.wait(10)
        started = time.monotonic()
        stream.cancel()
        events = list(stream)
        took = time.monotonic() - started
        assert isinstance(events[-1], StreamStopped)
        assert events[-1].reason == "normal", "what was decided before the cancel stands"
        stall.go_on.set()
        stream.close()
        return took


def test_session_end_runs_before_the_last_event_and_also_when_cancelled() -> None:
    """Law 10."""
    order: list[str] = []

    def ended(given: HookInput) -> None:
        order.append(f"hook {given.reason}")

    with Stall() as stall:
        turns = (say("one"), [*say("two"), stall])
        with Runtime(Agent("a", Scripted(*turns), hooks={"session_end": [ended]})) as runtime:
            for event in runtime.run_stream(Session.from_user("go")):
                order.append(event.type)
            assert order.index("hook normal") < order.index("stream_stopped")
            with runtime.run_stream(Session.from_user("go")) as stream:
                stall.reached.wait(10)
                stream.cancel()
                for _ in stream:
                    pass
                stall.go_on.set()
            assert order[-1] == "hook canceled"


def test_a_full_buffer_does_not_hold_up_the_end() -> None:
    """Law 2: nobody reads, the buffer is full, the worker is parked in a send: the last event is still the last."""
    assert in_time(cancelled_with_a_full_buffer, PROMPT)


def cancelled_with_a_full_buffer() -> float:
    with Runtime(Agent("a", Scripted(say(*"abcdefghij"))), event_capacity=3) as runtime:
        stream = runtime.run_stream(Session.from_user("go"))
        while len(stream) < 3:
            threading.Event().wait(0.001)
        started = time.monotonic()
        stream.cancel()
        events = list(stream)
        took = time.monotonic() - started
        assert len(events) == 4
        assert isinstance(events[0], StreamStarted)
        assert isinstance(events[-1], StreamStopped)
        assert events[-1].reason == "canceled"
        return took


def test_what_cannot_be_interrupted_is_named() -> None:
    """Law 8: a tool that ignores the cancel outlives the grace time, and the report says which, and where it is."""
    with Stall() as stall:
        runtime = Runtime(stalled_tool(stall), grace=0.1)
        stream = runtime.run_stream(Session.from_user("go"))
        assert stall.reached.wait(10)
        with pytest.raises(StreamStuck, match="tool stalling") as raised:
            stream.close()
        assert "go_on.wait" in str(raised.value), "with its stack"
        stall.go_on.set()
        stream.close()
        runtime.close()


def test_the_report_does_not_mask_what_the_body_raised() -> None:
    """Law 17."""
    with Stall() as stall:
        runtime = Runtime(stalled_tool(stall), grace=0.05)
        with pytest.raises(KeyError) as raised, runtime.run_stream(Session.from_user("go")):
            assert stall.reached.wait(10)
            raise KeyError("mine")
        assert "tool stalling" in raised.value.__notes__[0]
        stall.go_on.set()
        runtime.close()


def test_late_results_are_dropped() -> None:
    """Laws 12 and 16: what an abandoned tool returns changes nothing."""
    session = Session.from_user("go")
    with Stall() as stall, Runtime(stalled_tool(stall)) as runtime:
        stream = runtime.run_stream(session)
        assert stall.reached.wait(10)
        stream.cancel()
        list(stream)
        before = session.messages
        assert before[-1].is_error
        assert "interrupted" in before[-1].content
        stall.go_on.set()
        stream.close()
        assert session.messages == before


def test_a_tool_sees_the_cancel() -> None:
    """A synchronous tool that passes ``cancel`` on ends with its stream."""
    from channels import Cancelled, Channel

    seen: Channel[object] = Channel(1)
    entered = threading.Event()

    @tool(read_only=True)
    def patient(context: ToolContext) -> None:
        """Waits for ever, but listens."""
        entered.set()
        try:
            Channel[None]().recv(cancel=context.cancel)
        except Cancelled as error:
            seen.send(error.cause)

    with Runtime(Agent("a", Scripted([call("patient")]), tools=[patient])) as runtime:
        with runtime.run_stream(Session.from_user("go")) as stream:
            for event in stream:
                if event.type == "tool_call":
                    assert entered.wait(10)  # cancelled before, it is not called at all
                    stream.cancel("because")
        assert seen.recv(timeout=5) == "because"


def test_a_question_that_is_withdrawn_cannot_be_answered() -> None:
    """Law 6: an answer after the end is refused."""
    from runtime import NotPending

    with Stall() as stall, Runtime(stalled_question(stall)) as runtime:
        stream = runtime.run_stream(Session.from_user("go"))
        request = next(event for event in stream if isinstance(event, ElicitationRequest))
        stream.cancel()
        list(stream)
        with pytest.raises(NotPending):
            stream.respond(request, "accept", {})


def test_a_token_of_the_caller() -> None:
    """A stream can be cancelled by anything that has a token."""
    with Stall() as stall, Runtime(stalled_model(stall)) as runtime:
        token = CancelToken(timeout=0.05)
        stream = runtime.run_stream(Session.from_user("go"))
        with token.on_cancel(lambda: stream.cancel(token.cause)):
            events = list(stream)
        assert isinstance(events[-1], StreamStopped)
        assert events[-1].reason == "canceled"
        stall.go_on.set()
        stream.close()
