"""The whole of it, nothing made up: the example agent, the model that runs in process, the MCP server that asks."""

from __future__ import annotations

import importlib.util
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from runtime import Agent, EventStream, InvalidAnswer, NotPending, Permissions, Runtime, Session
from runtime.events import AgentChoice, ElicitationRequest, Event, StreamStopped, ToolCallResponse, ToolCallStarted
from support.waiting import in_time

pytest.importorskip("mcp")
pytest.importorskip("xllamacpp")

ROOT = Path(__file__).resolve().parents[2]
PROMPT = "Book a table at Luigi's"
ANSWERS: Mapping[str, Any] = {"date": "2026-12-24", "people": 4, "confirm": True}
APPROVED = Permissions(approve_all=True)
AT_ONCE = 0.05  # seconds


@pytest.fixture(scope="module")
def agent() -> Agent:
    """`examples/booking.py`, with its model loaded: loading holds the GIL, and no cancel gets through meanwhile."""
    spec = importlib.util.spec_from_file_location("booking", ROOT / "examples" / "booking.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.agent.model.load()
    return module.agent  # type: ignore[no-any-return]


@pytest.fixture
def runtime(agent: Agent) -> Iterator[Runtime]:
    with Runtime(agent, permissions=APPROVED) as runtime:
        yield runtime


def converse(stream: EventStream, answer: Callable[[ElicitationRequest], None]) -> list[Event]:
    events = []
    for event in stream:
        events.append(event)
        if isinstance(event, ElicitationRequest):
            answer(event)
    return events


def asked_for(request: ElicitationRequest) -> dict[str, Any]:
    return {name: ANSWERS[name] for name in request.schema["properties"]}


def the_response(events: list[Event]) -> str:
    [response] = [event for event in events if isinstance(event, ToolCallResponse)]
    return response.response


def test_answered(runtime: Runtime) -> None:
    """The model finds the tool and the restaurant, the server asks for the rest, the booking is made and told."""
    session = Session.from_user(PROMPT)
    stream = runtime.run_stream(session)
    events = converse(stream, lambda request: stream.respond(request, "accept", asked_for(request)))
    [made] = [event for event in events if isinstance(event, ToolCallStarted)]
    assert made.tool_call.name == "book_table"
    assert "Luigi's" in made.tool_call.arguments
    assert sum(isinstance(event, ElicitationRequest) for event in events) == 2
    assert re.match(r"Booked: Luigi's, 2026-12-24, 4 people", the_response(events))
    assert "Booked" in "".join(event.content for event in events if isinstance(event, AgentChoice))
    assert isinstance(events[-1], StreamStopped)
    assert events[-1].reason == "normal"
    assert [m.role for m in session.messages] == ["user", "assistant", "tool", "assistant"]


@pytest.mark.parametrize("action", ["decline", "cancel"])
def test_refused(runtime: Runtime, action: Any) -> None:
    """No booking is made, and the run ends normally."""
    stream = runtime.run_stream(Session.from_user(PROMPT))
    events = converse(stream, lambda request: stream.respond(request, action))
    assert "No booking was made" in the_response(events)
    assert stream.reason == "normal"


def test_answered_wrongly_first(runtime: Runtime) -> None:
    """Law 6: wrong answers never reach the server; the question waits for a right one, and takes one only."""
    stream = runtime.run_stream(Session.from_user(PROMPT))

    def answer(request: ElicitationRequest) -> None:
        if "people" in request.schema["properties"]:
            for wrong in ({}, {"date": "tomorrow", "people": 4}, {"date": "2026-12-24", "people": 21}):
                with pytest.raises(InvalidAnswer):
                    stream.respond(request, "accept", wrong)
        stream.respond(request, "accept", asked_for(request))
        with pytest.raises(NotPending):
            stream.respond(request, "accept", asked_for(request))

    assert "Booked" in the_response(converse(stream, answer))


def test_nobody_to_ask(runtime: Runtime) -> None:
    """Law 7: `run()` ends by itself, and the model's reply says why there is no booking."""
    result = runtime.run(Session.from_user(PROMPT))
    assert "No booking was made" in result.text
    assert "nobody is there to be asked" in result.text


def cancelled_from_another_thread(stream: EventStream, reached: Callable[[Event], bool]) -> tuple[float, list[Event]]:
    """Cancel once ``reached`` says so of an event, while this thread is parked in the loop; how long its end took."""
    ready = threading.Event()
    when: list[float] = []

    def cancel() -> None:
        ready.wait(30)
        when.append(time.monotonic())
        stream.cancel("enough")

    canceller = threading.Thread(target=cancel)
    canceller.start()
    events = []
    for event in stream:
        events.append(event)
        if reached(event):
            ready.set()
    took = time.monotonic() - when[0]
    canceller.join()
    assert isinstance(events[-1], StreamStopped)
    assert events[-1].reason == "canceled"
    return took, events


def test_cancelled_while_the_model_talks(runtime: Runtime) -> None:
    """Law 18, in the middle of decoding."""

    def trial() -> float:
        session = Session.from_user("Write a long poem about the sea and the ships that sail on it")
        with runtime.run_stream(session) as stream:
            took, events = cancelled_from_another_thread(stream, lambda event: isinstance(event, AgentChoice))
        said = "".join(event.content for event in events if isinstance(event, AgentChoice))
        assert session.messages[-1].content.startswith(said), "what the consumer has seen is in the session"
        return took

    assert in_time(trial, AT_ONCE)


def test_cancelled_while_the_question_is_open(runtime: Runtime) -> None:
    """Law 18, and the next run on the same server is not disturbed."""

    def trial() -> float:
        with runtime.run_stream(Session.from_user(PROMPT)) as stream:
            took, events = cancelled_from_another_thread(stream, lambda event: isinstance(event, ElicitationRequest))
            request = next(event for event in events if isinstance(event, ElicitationRequest))
            with pytest.raises(NotPending):
                stream.respond(request, "accept", asked_for(request))
        return took

    assert in_time(trial, AT_ONCE)
    again = runtime.run_stream(Session.from_user(PROMPT))
    events = converse(again, lambda request: again.respond(request, "accept", asked_for(request)))
    assert "Booked" in the_response(events)


def test_cancelled_while_the_servers_tool_works(agent: Agent) -> None:
    """Law 18: `wait_for_table` of the real server, called by a model that always calls it."""
    from support.scripted import Scripted, call

    def trial() -> float:
        waiting = Agent("waiting", Scripted([call("wait_for_table", '{"seconds": 600}')]), toolsets=agent.toolsets)
        with Runtime(waiting, permissions=APPROVED) as runtime, runtime.run_stream(Session.from_user("go")) as stream:
            took, _ = cancelled_from_another_thread(stream, lambda event: isinstance(event, ToolCallStarted))
        return took

    assert in_time(trial, AT_ONCE)
