"""The thread of a worker: it makes calls of foreign code itself while the worker rests, and another thread takes the
worker over if that is needed meanwhile.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable
from contextvars import copy_context
from typing import Any

import pytest

import runtime.execution._driver as driver_module
from channels import CancelToken, Channel, _timer
from runtime import Agent, Runtime, Session, TextDelta, ToolContext, tool
from runtime.events import AgentChoice, Event, StreamStopped, ToolCallOutput, ToolCallResponse
from runtime.execution._calls import Calls
from runtime.execution._driver import Carrier
from runtime.execution._errands import Held, call_here
from runtime.execution._helpers import HelperPool
from runtime.execution._reading import ALONE, ReadHere, read
from runtime.execution._threads import Running
from runtime.stores import MemoryStore
from runtime.stream import _at_exit
from runtime.stream._core import StreamCore
from support.scripted import AsyncScripted, Scripted, Stall, call, say
from support.waiting import eventually

PROMPT = 0.05  # seconds, law 18


def here(into: list[str]) -> Any:
    return lambda: into.append(threading.current_thread().name)


def test_a_stream_has_one_thread(cold: None) -> None:
    """Model and tool are called there, and the arguments read."""
    ran: list[str] = []
    note = tool(name="note", read_only=True)(here(ran))
    before = set(threading.enumerate())
    with Runtime(Agent("a", Scripted([here(ran), call("note")], [here(ran), *say("x")]), tools=[note])) as runtime:
        stream = runtime.run_stream(Session.from_user("go"))
        stream.result()
        new = {each.name for each in set(threading.enumerate()) - before} - {"channels-timer"}
    assert ran == [f"lockgate-stream-{stream._core.number}"] * 3
    assert len(new) == 1  # idle by now


def test_a_tool_that_asks_has_its_worker_taken_over(cold: None) -> None:
    """Its thread is a helper from then on; its result is the call's all the same."""
    ran: list[str] = []

    @tool(read_only=True)
    def ask(context: ToolContext) -> str:
        """Asks."""
        here(ran)()
        answer = context.elicit("?").action
        here(ran)()
        return answer

    with Runtime(Agent("a", Scripted([call("ask")], [here(ran), *say("x")]), tools=[ask])) as runtime:
        stream = runtime.run_stream(Session.from_user("go"))
        results = []
        for event in stream:
            if event.type == "elicitation_request":
                stream.respond(event, "accept")  # type: ignore[arg-type]
            elif isinstance(event, ToolCallResponse):
                results.append(event.response)
        name = f"lockgate-stream-{stream._core.number}"
    assert results == ["accept"]
    assert ran[0] == ran[2] == name
    assert ran[1].startswith("lockgate-helper-")


def test_what_a_tool_says_meanwhile_comes_before_its_result() -> None:
    @tool(read_only=True)
    def tell(context: ToolContext) -> str:
        """Tells how far it is."""
        for n in range(200):
            context.progress(str(n))
        return "done"

    with Runtime(Agent("a", Scripted([call("tell")], say("x")), tools=[tell])) as runtime:
        events = list(runtime.run_stream(Session.from_user("go")))
    seen = [event for event in events if isinstance(event, (ToolCallOutput, ToolCallResponse))]
    told = [int(event.output) for event in seen if isinstance(event, ToolCallOutput)]
    assert told == sorted(told)
    assert told[0] == 0
    assert isinstance(seen[-1], ToolCallResponse)


@pytest.mark.parametrize("where", ["model", "tool", "instructions"])
def test_a_cancel_finds_the_worker_at_rest(where: str) -> None:
    """It goes on elsewhere; what stands still is left to itself."""
    with Stall() as stall:
        stop = tool(name="stop", read_only=True)(lambda: stall())
        steps = [stall] if where == "model" else [call("stop")]
        instructions: Any = (lambda: stall() or "") if where == "instructions" else ""
        with Runtime(Agent("a", Scripted(steps, say("x")), tools=[stop], instructions=instructions)) as runtime:
            stream = runtime.run_stream(Session.from_user("go"))
            assert stall.reached.wait(10)
            began = time.monotonic()
            stream.cancel()
            events = list(stream)
            took = time.monotonic() - began
            assert isinstance(events[-1], StreamStopped)
            assert stream.reason == "canceled"
            assert took < 20 * PROMPT  # test_cancel.py measures it
            assert eventually(lambda: [t.name for t in threading.enumerate() if t.name.startswith("lockgate-helper")])
            stall.go_on.set()


def test_a_model_that_does_not_close_holds_nobody_up() -> None:
    """The cancel finds the worker at a full channel, on the thread that has to close the model then."""
    with Stall() as stall:

        class Model(Scripted):
            def stream(self, *args: Any, **more: Any) -> Any:
                try:
                    yield from say(*"abcdefgh")
                finally:
                    stall()

        with Runtime(Agent("a", Model()), event_capacity=1) as runtime:
            stream = runtime.run_stream(Session.from_user("go"))
            for event in stream:
                if isinstance(event, AgentChoice):
                    break
            assert eventually(lambda: stream._core.events.statistics().waiting_to_send == 1)
            stream.cancel()
            assert isinstance(list(stream)[-1], StreamStopped)
            assert stall.reached.wait(10)
            stall.go_on.set()


def test_what_is_said_to_a_worker_as_it_goes_to_rest_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is wanted a moment before it rests, when nobody can take it over yet."""

    def leave(carrier: Carrier) -> None:
        if isinstance(carrier._driver._errand, Held):
            rung = threading.Event()
            stream.park(force=True)
            _timer.call_soon(rung.set)
            assert rung.wait(10)
        plainly(carrier)

    plainly = Carrier.leave
    monkeypatch.setattr(Carrier, "leave", leave)
    known, ended, seen = threading.Event(), threading.Event(), []
    stop = tool(name="stop", read_only=True)(lambda: seen.append(ended.wait(10)))
    model = Scripted([lambda: known.wait(10), call("stop")])
    with Runtime(Agent("a", model, tools=[stop]), store=MemoryStore()) as runtime:
        stream = runtime.run_stream(Session.from_user("go"))
        known.set()
        assert isinstance(list(stream)[-1], StreamStopped)
        assert not seen
        ended.set()
    assert stream.reason == "waiting"


def test_without_a_thread_the_worker_goes_on_when_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The system may have none for a while."""
    launch, tries = driver_module.launch, []

    def launching(running: Running) -> None:
        if running.name == name[0]:
            tries.append(running)
            if len(tries) < 4:
                raise RuntimeError("can't start new thread")
        launch(running)

    name = [""]
    monkeypatch.setattr(driver_module, "launch", launching)
    monkeypatch.setattr(driver_module, "AGAIN", 0.001)
    with Stall() as stall, Runtime(Agent("a", Scripted([stall]))) as runtime:
        stream = runtime.run_stream(Session.from_user("go"))
        assert stall.reached.wait(10)
        name[0] = f"lockgate-stream-{stream._core.number}"
        stream.cancel()
        assert isinstance(list(stream)[-1], StreamStopped)
        assert len(tries) == 4
        stall.go_on.set()


def test_without_a_thread_the_worker_goes_on_when_its_own_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(running: Running) -> None:
        tried.set()
        raise RuntimeError("can't start new thread")

    tried = threading.Event()
    with Stall() as stall, Runtime(Agent("a", Scripted([stall]))) as runtime:
        stream = runtime.run_stream(Session.from_user("go"))
        assert stall.reached.wait(10)
        with monkeypatch.context() as patch:
            patch.setattr(driver_module, "launch", none)
            stream.cancel()
            assert tried.wait(10)
            stall.go_on.set()
            assert isinstance(list(stream)[-1], StreamStopped)
    assert stream.reason == "canceled"


def test_a_worker_that_is_taken_over_for_nothing_goes_on() -> None:
    """Who wanted it may have been served by the time that it rests again."""
    with Stall() as stall:
        stop = tool(name="stop", read_only=True)(lambda: stall() or "ok")
        model = Scripted([*say("a"), stall, *say("b"), call("stop")], say("c"))
        with Runtime(Agent("a", model, tools=[stop])) as runtime:
            stream = runtime.run_stream(Session.from_user("go"))
            for _ in range(2):
                assert stall.reached.wait(10)
                stall.reached.clear()
                first = stream._core.threads[0]
                assert stream._core.driver is not None
                stream._core.driver.wanted()
                assert eventually(lambda first=first: stream._core.threads[0] is not first)  # type: ignore[misc]
                stall.go_on.set()
                if stream._core.session.messages[-1].role == "user":
                    stall.go_on.clear()
            events = list(stream)
    assert "".join(event.content for event in events if isinstance(event, AgentChoice)) == "abc"
    assert stream.reason == "normal"


def test_what_is_computed_for_a_worker_that_is_taken_over_for_nothing_comes_all_the_same() -> None:
    with Stall() as stall:

        def instructions() -> str:
            stall()
            return "Be brief."

        model = Scripted(say("x"))
        with Runtime(Agent("a", model, instructions=instructions)) as runtime:
            stream = runtime.run_stream(Session.from_user("go"))
            assert stall.reached.wait(10)
            first = stream._core.threads[0]
            assert stream._core.driver is not None
            stream._core.driver.wanted()
            assert eventually(lambda: stream._core.threads[0] is not first)
            stall.go_on.set()
            assert stream.result().text == "x"
    assert model.seen[0][0].content == "Be brief."


def test_what_is_thrown_into_a_thread_before_the_first_step_of_its_worker_cancels_it() -> None:
    """The worker cannot raise it yet, and has to come to its end by itself."""
    went: list[str] = []

    def worker() -> Any:
        went.append("went")
        return
        yield

    token, threads = CancelToken(), [Running(lambda: None, "first")]
    driver = driver_module.Driver("worker", worker(), copy_context(), threads, HelperPool(), token)
    error = KeyboardInterrupt()
    driver_module.Carrier(driver)._carry(driver_module.Thrown(error))
    assert went == ["went"]
    assert token.cause is error


def test_a_thread_whose_worker_was_taken_over_does_not_touch_it_any_more() -> None:
    """Not to see whether there is anything left to do, either, where an exception was thrown into it: the worker runs
    elsewhere, and without the GIL in the same moment.
    """
    looked: list[str] = []

    class Taken:
        call = None

        def run(self, carrier: Carrier) -> None:
            carrier.leave()
            driver._rest[None] = "another"
            raise KeyboardInterrupt

    class Steps:
        gi_suspended = True

        def send(self, sent: Any) -> Taken:
            looked.append("sent")
            return Taken()

        @property
        def gi_frame(self) -> None:
            looked.append("gi_frame")

    given: Any = Steps()
    driver = driver_module.Driver("worker", given, copy_context(), [], HelperPool(), CancelToken())
    with pytest.raises(KeyboardInterrupt):
        Carrier(driver).begin()
    assert looked == ["sent"]


def test_a_delta_that_comes_alone_is_sent_on_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its worker waits on. With others behind it, and for a consumer that is slow, all comes in order."""
    sent_on: list[str] = []
    try_emit = StreamCore.try_emit

    def noting(core: StreamCore, event: Event) -> bool:
        sent_on.append(threading.current_thread().name)
        return try_emit(core, event)

    async def until_the_worker_waits() -> None:
        [core] = _at_exit.live
        reading: Any = core.driver and core.driver._errand
        while reading.put != reading._through:
            await asyncio.sleep(0.0001)
        await asyncio.sleep(2 * ALONE)

    monkeypatch.setattr(StreamCore, "try_emit", noting)
    numbers = [str(n) for n in range(300)]
    steps: list[Any] = []
    for n in numbers:
        steps.append(TextDelta(n))
        if int(n) % 7 == 0:
            steps.append(until_the_worker_waits)
    session, texts = Session.from_user("go"), []
    with Runtime(Agent("a", AsyncScripted(steps)), event_capacity=8) as runtime:
        stream = runtime.run_stream(session)
        for event in stream:
            if isinstance(event, AgentChoice):
                texts.append(event.content)
                if len(texts) in (50, 100, 150, 200, 250):
                    assert eventually(lambda: len(stream._core.events) == 8)
    assert texts == numbers
    assert session.messages[-1].content == "".join(numbers)
    assert set(sent_on) == {"lockgate-loop"}
    assert len(sent_on) > 40  # it is said again that it waits


def test_a_cancel_comes_between_two_deltas_on_the_loop() -> None:
    """The reply has what the consumer was told."""
    session, told = Session.from_user("go"), ""
    steps = [step for n in range(1000) for step in (TextDelta(f"{n} "), lambda: asyncio.sleep(0.0005))]
    with Runtime(Agent("a", AsyncScripted(steps))) as runtime, runtime.run_stream(session) as stream:
        for event in stream:
            if isinstance(event, AgentChoice):
                told += event.content
                if event.content == "20 ":
                    stream.cancel()
    assert session.messages[-1].content == told
    assert told.startswith("0 1 2 ")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_call_that_returns_in_a_forked_child_does_not_go_on_with_the_run(script: Callable[..., str]) -> None:
    """There it would ask the model, and call tools, a second time."""
    said = script(
        """
import os, sys, warnings
sys.path[:0] = ["tests"]
from runtime import Agent, Runtime, Session, tool
from runtime.execution import _threads
from support.scripted import Scripted, call, say

warnings.simplefilter("ignore")  # that a process with threads is forked
_threads.IDLE = 0.05
parent = os.getpid()

@tool(read_only=True)
def fork() -> str:
    if (child := os.fork()) == 0:
        return "child"
    os.waitpid(child, 0)
    return "parent"

def asked():
    print("asked by the parent" if os.getpid() == parent else "asked by the child", flush=True)

session = Session.from_user("go")
with Runtime(Agent("a", Scripted([call("fork")], [asked, *say("x")]), tools=[fork])) as runtime:
    runtime.run(session)
print(session.messages[2].content)
"""
    )
    assert said.split("\n")[:2] == ["asked by the parent", "parent"]


class Hit(set[Any]):
    """What is under way. An exception is thrown into who adds to it."""

    def add(self, call: Any) -> None:
        super().add(call)
        raise KeyboardInterrupt


class Away:
    """A carrier that finds that the worker was taken over."""

    wanted = ask_for_relief = leave = staticmethod(lambda: None)

    def is_back(self) -> bool:
        return False


def errand(calls: Calls, inbox: Channel[Any], kind: str) -> Any:
    if kind == "held":
        return Held(calls, "tool", inbox, str)
    return read(calls, "model", lambda: iter("x")) if kind == "reading" else next(call_here(calls, "call", str))


@pytest.mark.parametrize("kind", ["held", "awaited", "reading"])
def test_a_call_that_an_exception_keeps_from_being_made_is_not_under_way(kind: str) -> None:
    """Or whoever closes the stream would wait for it."""
    calls = Calls(CancelToken(), HelperPool(), lambda: None, copy_context())  # type: ignore[arg-type, return-value]
    made = errand(calls, Channel(8), kind)
    calls._live = Hit()
    with pytest.raises(KeyboardInterrupt):
        made.run(Away())
    assert not calls._live
    assert made.call.over


def test_an_exception_that_keeps_a_result_from_its_worker_ends_the_wait_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It was thrown at the tool, and comes late; the worker is on another thread by then."""

    def hit(*_: Any) -> None:
        raise KeyboardInterrupt

    calls = Calls(CancelToken(), HelperPool(), lambda: None, copy_context())  # type: ignore[arg-type, return-value]
    inbox: Channel[Any] = Channel(8)
    monkeypatch.setattr(inbox.__class__, "try_send", hit)
    with pytest.raises(KeyboardInterrupt):
        errand(calls, inbox, "held").run(Away())
    assert inbox.closed
    assert not calls._live


class Here(Away):
    """One that still has the worker."""

    def is_back(self) -> bool:
        return True


@pytest.mark.parametrize("noted", [False, True])
def test_an_exception_that_comes_with_the_end_of_a_model_makes_no_whole_reply_of_a_part(
    noted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model has failed. What the worker has of it is not taken for all."""

    def items() -> Any:
        yield "a part"
        raise ValueError

    def hit(reading: ReadHere, finished: Any) -> None:
        if noted:
            reading._end = (finished.error,)
        raise KeyboardInterrupt

    calls = Calls(CancelToken(), HelperPool(), lambda: None, copy_context())  # type: ignore[arg-type, return-value]
    reading, got = read(calls, "model", items), []
    reading.take = got.append
    monkeypatch.setattr(ReadHere, "send", hit)
    reading.run(Here())  # type: ignore[arg-type]
    assert got == ["a part"]
    with pytest.raises(ValueError if noted else RuntimeError):
        reading.next_batch()
