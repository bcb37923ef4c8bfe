"""The instructions of an agent: a text, or a function that is asked before each model call."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from runtime import Agent, RunError, Runtime, Session, tool
from support.scripted import Scripted, call, say


def shown(instructions: Any, turns: int = 1) -> list[str]:
    """What the model was given as its system prompt, turn by turn."""

    @tool(read_only=True)
    def again() -> str:
        return "again"

    model = Scripted(*([[call("again")]] * (turns - 1)), say("done"))
    with Runtime(Agent("a", model, instructions, tools=[again])) as runtime:
        runtime.run(Session.from_user("hello"))
    return [messages[0].content if messages[0].role == "system" else "" for messages in model.seen]


async def later(session: Session) -> str:
    return f"async, {len(session.messages)}"


async def later_without() -> str:
    return "async"


class Counted:
    """An object that can be called, and says something else each time."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> str:
        self.count += 1
        return f"turn {self.count}"


@pytest.mark.parametrize(
    ("instructions", "says"),
    [
        ("plain", "plain"),
        ("", ""),
        (lambda: "nothing taken", "nothing taken"),
        (lambda session: session.messages[-1].content, "hello"),
        (lambda *args: f"{len(args)} taken", "1 taken"),
        (later, "async, 1"),
        (later_without, "async"),
    ],
)
def test_forms(instructions: Any, says: str) -> None:
    assert shown(instructions) == [says]


def test_a_function_is_asked_before_each_model_call() -> None:
    assert shown(Counted(), turns=3) == ["turn 1", "turn 2", "turn 3"]


def broken() -> str:
    raise KeyError("date")


@pytest.mark.parametrize(
    ("instructions", "says"),
    [
        (broken, "instructions_failed: the instructions of agent 'a' could not be made: KeyError: 'date'"),
        (lambda: None, "a function of instructions returns text, not None"),
    ],
)
def test_a_function_that_fails_ends_the_run_and_says_why(instructions: Any, says: str) -> None:
    with pytest.raises(RunError) as caught:
        shown(instructions)
    assert says in str(caught.value)
    assert caught.value.code == "instructions_failed"


def test_law_18_a_cancel_does_not_wait_for_a_function_of_instructions() -> None:
    started, gate = threading.Event(), threading.Event()

    def slow() -> str:
        started.set()
        gate.wait(10)
        return ""

    with Runtime(Agent("a", Scripted(say("x")), slow)) as runtime:
        stream = runtime.run_stream(Session.from_user("hello"))
        assert started.wait(10)
        before = time.perf_counter()
        stream.cancel()
        events = list(stream)
        took = time.perf_counter() - before
        gate.set()
        stream.close()
    assert events[-1].reason == "canceled"  # type: ignore[attr-defined]
    assert took < 5  # of 10


def test_a_model_that_yields_text_is_told_what_to_yield() -> None:
    class Yields:
        id = "yields"

        def stream(self, messages: Any, tools: Any, *, cancel: Any) -> Any:
            yield "hello"

    says = r"such as TextDelta\('hello'\), not 'hello'"
    with Runtime(Agent("a", Yields())) as runtime, pytest.raises(RunError, match=says):
        runtime.run(Session.from_user("x"))


def test_the_names_of_a_call_and_of_its_event_differ() -> None:
    import runtime
    from runtime import events

    assert getattr(events, "ToolCall", runtime.ToolCall) is runtime.ToolCall
    assert events.ToolCallStarted.type == "tool_call"
    assert runtime.ToolCall.__module__.startswith("runtime")
