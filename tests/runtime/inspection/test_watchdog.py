"""A stream that stands still though nobody is being asked is reported, once, and a circle of waits is named."""

from __future__ import annotations

import logging
import queue
import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from typing import Any

import pytest

from channels import Channel, _timer
from runtime import Agent, EventStream, Runtime, Session, ToolContext, tool
from runtime.dump import Stall as Report
from runtime.events import ElicitationRequest
from runtime.inspection import _look, _watchdog
from support.scripted import Scripted, Stall, approving, call, say
from support.waiting import eventually

variable: ContextVar[str] = ContextVar("variable", default="")
AFTER = 0.4  # longer than a thread that could go on has to wait for a processor: that would be reported, too
LATER = 1.0  # where more than one thread has to come to its wait before that


class Reports(queue.SimpleQueue[Report]):
    """What was reported. Calling it reports."""

    def __call__(self, stall: Report) -> None:
        self.put(stall)

    def next(self) -> Report:
        return self.get(timeout=10)


@pytest.fixture
def reports() -> Reports:
    return Reports()


@pytest.fixture
def stall() -> Iterator[Stall]:
    with Stall() as stall:
        yield stall


def looks(runtime: Runtime, count: int) -> None:
    """Wait until the watchdog has looked so often."""
    watch: Any = runtime._shared.watch
    seen: list[object] = []

    def another() -> bool:
        timer = watch._timer.get(None)
        if timer is not None and timer not in seen:
            seen.append(timer)
        return len(seen) > count

    assert eventually(another, 10)


def test_a_stalled_tool_is_reported_once_with_its_dump(reports: Reports, stall: Stall) -> None:
    @tool(read_only=True)
    def stuck() -> str:
        stall()
        return ""

    model = Scripted([call("stuck")], say("x"))
    with Runtime(Agent("a", model, tools=[stuck]), stall_after=AFTER, on_stall=reports) as runtime:
        stream = runtime.run_stream(Session.from_user("go"))
        found = reports.next()
        assert AFTER <= found.seconds < 10
        assert found.stream.agent_name == "a"
        assert found.dump.streams == (found.stream,)
        assert found.cycle == ()
        assert [wait.what for wait in found.stream.waits] == ["tool stuck"]
        assert "in stuck\n" in found.stream.calls[0].stack
        assert re.match(rf"stream {found.stream.number} of agent a stands still for \d\.\d", str(found))
        assert "waits for tool stuck" in str(found)
        looks(runtime, 3)
        assert reports.empty()
        stall.go_on.set()
        stream.result()


def test_by_default_it_is_a_warning_in_the_log(stall: Stall, caplog: pytest.LogCaptureFixture) -> None:
    with Runtime(Agent("a", Scripted([stall, *say("x")])), stall_after=AFTER) as runtime:
        session = Session.from_user("go")
        stream = runtime.run_stream(session)
        assert eventually(lambda: caplog.records, 10)
        (record,) = caplog.records
        assert record.levelno == logging.WARNING
        assert vars(record)["session_id"] == session.id
        assert record.name == "runtime"
        assert "stands still" in record.getMessage()
        assert "waits for model scripted" in record.getMessage()
        stall.go_on.set()
        stream.result()


def test_a_stream_that_goes_on_and_stalls_anew_is_reported_again(reports: Reports) -> None:
    with Stall() as one, Stall() as two:
        model = Scripted([one, *say("x"), two, *say("y")])
        with Runtime(Agent("a", model), stall_after=AFTER, on_stall=reports) as runtime:
            stream = runtime.run_stream(Session.from_user("go"))
            reports.next()
            one.go_on.set()
            assert two.reached.wait(10)
            reports.next()
            two.go_on.set()
            stream.result()
    assert reports.empty()


def test_one_that_moves_slowly_is_not_reported(reports: Reports, stall: Stall) -> None:
    """Each wait is shorter than the limit, all of them together are not."""
    steps: list[Any] = []
    for word in ["many", "words", "that", "come", "slowly", "one", "by", "one"]:
        steps += [lambda: time.sleep(0.2), *say(word)]
    with Runtime(Agent("a", Scripted(steps)), stall_after=1.5, on_stall=reports) as runtime:
        runtime.run(Session.from_user("go"))
    assert reports.empty()


def test_nobody_is_late_while_the_user_is_asked(reports: Reports) -> None:
    @tool(read_only=True)
    def ask(context: ToolContext) -> str:
        return context.elicit("well?").action

    model = Scripted([call("ask")], say("x"))
    with Runtime(Agent("a", model, tools=[ask]), stall_after=AFTER, on_stall=reports) as runtime:
        for event in (stream := runtime.run_stream(Session.from_user("go"))):
            if isinstance(event, ElicitationRequest):
                looks(runtime, 3)
                stream.respond(event, "decline")
    assert reports.empty()


class Clock:
    """The clock of the watchdog, which the test moves on; it looks when it is told to."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.ahead = 0.0
        patch.setattr(_watchdog, "monotonic", self)
        patch.setattr(_look, "monotonic", self)

    def __call__(self) -> float:
        return time.monotonic() + self.ahead

    def look(self, runtime: Runtime, after: float) -> None:
        watch: Any = runtime._shared.watch
        self.ahead += after
        watch._look()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_who_was_excused_begins_to_be_late_when_that_is_over(reports: Reports, stall: Stall, clock: Clock) -> None:
    """The worker waits for the tool all the time: first while that has asked the user, then while it goes on."""

    @tool(read_only=True)
    def ask(context: ToolContext) -> str:
        context.elicit("well?")
        stall()
        return ""

    model = Scripted([call("ask")], say("x"))
    with Runtime(Agent("a", model, tools=[ask]), stall_after=60, on_stall=reports) as runtime:
        stream = runtime.run_stream(Session.from_user("go"))
        question = next(event for event in stream if isinstance(event, ElicitationRequest))
        for _ in range(8):
            clock.look(runtime, 12)
        stream.respond(question, "decline")
        assert stall.reached.wait(10)
        for _ in range(5):
            clock.look(runtime, 12)
            assert reports.empty()
        clock.look(runtime, 12)
        assert 59 < reports.next().seconds < 70
        stall.go_on.set()
        stream.result()


@pytest.mark.parametrize("where", ["model", "tool that has asked"])
def test_a_standstill_of_this_process_is_none_of_a_stream(
    where: str, reports: Reports, stall: Stall, clock: Clock
) -> None:
    """It was stopped, for example, or its computer closed: what stood still with it may have been about to go on."""

    @tool(read_only=True)
    def ask(context: ToolContext) -> str:
        context.elicit("well?")  # so its worker waits for it in a channel
        stall()
        return ""

    model = Scripted([stall] if where == "model" else [call("ask")], say("x"))
    with Runtime(Agent("a", model, tools=[ask]), stall_after=60, on_stall=reports) as runtime:
        stream = runtime.run_stream(Session.from_user("go"))
        if where != "model":
            stream.respond(next(event for event in stream if isinstance(event, ElicitationRequest)), "decline")
        assert stall.reached.wait(10)
        for seconds in (12, 3600, 12, 3600):
            clock.look(runtime, seconds)
            assert reports.empty()
        clock.look(runtime, 12)
        clock.look(runtime, 12)
        assert 59 < reports.next().seconds < 80
        stall.go_on.set()
        stream.close()


def test_nor_while_a_run_is_paused(reports: Reports) -> None:
    @tool(read_only=True)
    def rest() -> str:
        runtime.pause(session)
        return ""

    session = Session.from_user("go")
    agent = Agent("a", Scripted([call("rest")], say("x")), tools=[rest])
    with Runtime(agent, stall_after=AFTER, on_stall=reports) as runtime:
        stream = runtime.run_stream(session)
        looks(runtime, 3)
        runtime.resume(session)
        stream.result()
    assert reports.empty()


def test_of_nested_streams_the_innermost_is_reported_and_the_outer_are_in_its_dump(
    reports: Reports, stall: Stall
) -> None:
    inner = Agent("inner", Scripted([stall, *say("x")]))

    @tool(read_only=True)
    def delegate(context: ToolContext) -> str:
        return context.run_agent(inner, "go on").text

    agent = Agent("outer", Scripted([call("delegate")], say("y")), tools=[delegate])
    with Runtime(agent, stall_after=AFTER, on_stall=reports) as runtime:
        stream = runtime.run_stream(Session.from_user("go"))
        found = reports.next()
        assert found.stream.agent_name == "inner"
        assert [each.agent_name for each in found.dump.streams] == ["outer", "inner"]
        looks(runtime, 2)
        assert reports.empty()
        stall.go_on.set()
        stream.result()


def test_a_consumer_that_does_not_read_is_a_stall(reports: Reports) -> None:
    agent = Agent("a", Scripted(say(*"many words")))
    with Runtime(agent, event_capacity=1, stall_after=AFTER, on_stall=reports) as runtime:
        stream = runtime.run_stream(Session.from_user("go"))
        assert [wait.kind for wait in reports.next().stream.waits] == ["consumer"]
        stream.result()


def test_streams_that_wait_for_each_other_are_named_as_a_circle(reports: Reports) -> None:
    """The tool of one reads the other stream, whose tool waits for the end of the first."""
    streams: dict[str, EventStream] = {}
    both = threading.Event()

    @tool(read_only=True)
    def read(other: str) -> str:
        assert both.wait(10)
        return "".join(str(event) for event in streams[other])

    def agent(name: str, other: str) -> Agent:
        return Agent(name, Scripted([call("read", f'{{"other": "{other}"}}')], say("x")), tools=[read])

    with (
        Runtime(agent("one", "two"), stall_after=LATER, on_stall=reports) as first,
        Runtime(agent("two", "three"), stall_after=60) as second,
        Runtime(agent("three", "one"), stall_after=60) as third,
    ):
        for name, runtime in (("one", first), ("two", second), ("three", third)):
            streams[name] = runtime.run_stream(Session.from_user("go"))
        both.set()
        found = reports.next()
        assert found.cycle, str(found)
        numbers = {name: stream._core.number for name, stream in streams.items()}
        assert [each.partition(" on ")[0] for each in found.cycle] == [
            f"stream {numbers[name]} (agent {name}, tool read" for name in ("one", "two", "three")
        ]
        assert {stream.agent_name for stream in found.dump.streams} == {"one", "two", "three"}
        last = f" -> stream {numbers['one']}"
        assert f"these wait for each other: {found.cycle[0]}" in str(found)
        assert last in str(found)
        for stream in streams.values():
            stream.cancel()


def test_a_tool_that_waits_for_the_end_of_its_own_stream_is_a_circle(reports: Reports) -> None:
    opened = threading.Event()

    @tool(read_only=True)
    def wait_for_myself() -> str:
        assert opened.wait(10)
        for _ in stream:
            pass
        return ""

    agent = Agent("a", Scripted([call("wait_for_myself")], say("x")), tools=[wait_for_myself])
    with Runtime(agent, stall_after=LATER, on_stall=reports) as runtime:
        stream = runtime.run_stream(Session.from_user("go"))
        opened.set()
        found = reports.next()
        assert len(found.cycle) == 1
        assert f"tool wait_for_myself on lockgate-stream-{found.stream.number}" in found.cycle[0]
        stream.cancel()


def test_an_executor_that_is_full_of_who_waits_is_a_circle(reports: Reports) -> None:
    """The only thread waits for a nested stream, whose model needs a thread."""
    inner = Agent("inner", Scripted(say("x")))

    @tool(read_only=True)
    def delegate(context: ToolContext) -> str:
        return context.run_agent(inner, "go on").text

    agent = Agent("outer", Scripted([call("delegate")], say("y")), tools=[delegate])
    with (
        ThreadPoolExecutor(1) as executor,
        Runtime(agent, executor=executor, stall_after=LATER, on_stall=reports, grace=0.1) as runtime,
    ):
        stream = runtime.run_stream(Session.from_user("go"))
        found = reports.next()
        assert found.stream.agent_name == "inner"
        assert "(agent inner, model scripted for a thread of the executor)" in found.cycle[0]
        assert "(agent outer, tool delegate on " in found.cycle[1]
        stream.cancel()


def test_a_wait_that_others_may_end_is_no_circle(reports: Reports, stall: Stall) -> None:
    inbox: Channel[int] = Channel()

    @tool(read_only=True)
    def wait_elsewhere() -> str:
        return str(inbox.recv())

    agent = Agent("a", Scripted([call("wait_elsewhere")], say("x")), tools=[wait_elsewhere])
    with Runtime(agent, stall_after=AFTER, on_stall=reports) as runtime:
        stream = runtime.run_stream(Session.from_user("go"))
        assert reports.next().cycle == ()
        inbox.send(1)
        stream.result()


def test_what_on_stall_raises_is_logged_and_what_blocks_in_it_keeps_nobody_else_waiting(
    stall: Stall, caplog: pytest.LogCaptureFixture
) -> None:
    told: queue.SimpleQueue[str] = queue.SimpleQueue()

    def on_stall(found: Report) -> None:
        told.put(found.stream.session_id)
        if found.stream.session_id == first.id:
            stall()
        raise ValueError("of the user")

    first, second = Session.from_user("go"), Session.from_user("go")
    agent = Agent("a", Scripted([stall], [stall]))
    with Runtime(agent, stall_after=AFTER, on_stall=on_stall) as runtime:
        one = runtime.run_stream(first)
        assert told.get(timeout=10) == first.id
        two = runtime.run_stream(second)
        assert told.get(timeout=10) == second.id
        assert eventually(lambda: "could not be reported" in caplog.text)
        stall.go_on.set()
        one.close()
        two.close()
    assert eventually(lambda: len(caplog.records) == 2)


def test_on_stall_sees_the_context_of_the_caller(stall: Stall) -> None:
    seen: queue.SimpleQueue[str] = queue.SimpleQueue()
    runtime = Runtime(Agent("a", Scripted([stall])), stall_after=AFTER, on_stall=lambda _: seen.put(variable.get()))
    variable.set("of the caller")
    with runtime:
        stream = runtime.run_stream(Session.from_user("go"))
        assert seen.get(timeout=10) == "of the caller"
        stall.go_on.set()
        stream.close()


def test_there_is_a_timer_only_while_streams_live(reports: Reports) -> None:
    with Stall() as stall, Runtime(Agent("a", Scripted([stall], [stall])), stall_after=60) as runtime:
        watch: Any = runtime._shared.watch
        assert watch._timer == {}
        before = len(_timer.Timer.pending)
        one = runtime.run_stream(Session.from_user("go"))
        two = runtime.run_stream(Session.from_user("go"))
        assert len(watch._timer) == 1
        assert len(_timer.Timer.pending) == before + 1
        stall.go_on.set()
        one.result()
        two.result()
        assert eventually(lambda: watch._timer == {})
        assert eventually(lambda: len(_timer.Timer.pending) == before)


def test_streams_that_begin_and_end_at_once_never_lose_the_timer(threads: Any) -> None:
    """The end of the last and the beginning of the next meet: whoever lives is watched."""
    with approving(Agent("a", Scripted(*[say("x")] * 200)), stall_after=60) as runtime:
        watch: Any = runtime._shared.watch

        def run() -> None:
            for _ in range(50):
                stream = runtime.run_stream(Session.from_user("go"))
                stream.result()

        threads.all(run, run, run)
        assert eventually(lambda: watch._timer == {})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stall_after": 0}, "stall_after must be a number of seconds above 0, or None, not 0"),
        ({"stall_after": "soon"}, "stall_after must be a number of seconds above 0, or None, not 'soon'"),
        ({"on_stall": print}, "on_stall needs stall_after=, the seconds without progress after which it is called"),
        ({"stall_after": 1, "on_stall": "log"}, "on_stall must be a function that is given a Stall, not 'log'"),
    ],
)
def test_bad_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        Runtime(Agent("a", Scripted()), **settings)
