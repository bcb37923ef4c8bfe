"""What a turn, a delta or a stream costs does not grow with the run: what is done is counted, not timed."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import runtime as package
from channels import CancelToken
from runtime import Agent, Delta, Message, Runtime, Session, TextDelta, ToolCallDelta, ToolDefinition, tool
from runtime.execution import _threads

OURS = str(Path(package.__file__).parent)
MORE = 8  # times as many


@tool(read_only=True)
def nothing(n: int) -> str:
    """Does nothing."""
    return "ok"


class Turns:
    """A model that asks for a tool call so many times."""

    id = "turns"

    def __init__(self, turns: int, window: int | None) -> None:
        self.left = turns
        if window is not None:
            self.context_window = window

    def stream(
        self, messages: Sequence[Message], tools: Sequence[ToolDefinition], *, cancel: CancelToken
    ) -> Iterator[Delta]:
        self.left -= 1
        if self.left < 0:
            yield TextDelta("done")
        else:
            yield ToolCallDelta(0, f"call-{self.left}", "nothing", f'{{"n": {self.left}}}')


class Arguments:
    """A model that writes the arguments of a call in so many deltas."""

    id = "arguments"

    def __init__(self, deltas: int) -> None:
        self.deltas = deltas

    def stream(
        self, messages: Sequence[Message], tools: Sequence[ToolDefinition], *, cancel: CancelToken
    ) -> Iterator[Delta]:
        deltas, self.deltas = self.deltas, 0
        if not deltas:
            yield TextDelta("done")
            return
        yield ToolCallDelta(0, "call", "nothing", '{"n": 1')
        for _ in range(deltas):
            yield ToolCallDelta(0, "", "", " ")
        yield ToolCallDelta(0, "", "", "}")


class Counted(list[Message]):
    """The messages of a session, which count how many of them are looked at."""

    def __init__(self, messages: Sequence[Message]) -> None:
        super().__init__(messages)
        self.seen = 0

    def __iter__(self) -> Iterator[Message]:
        for message in super().__iter__():
            self.seen += 1
            yield message

    def __getitem__(self, key: Any) -> Any:
        found = super().__getitem__(key)
        self.seen += len(found) if isinstance(key, slice) else 1
        return found


class Observer:
    def on_event(self, session: Session, event: Any) -> None:
        pass


def calls(work: Callable[[], object]) -> int:
    """How many functions code of `runtime` calls meanwhile, those of C among them, in all threads."""
    count = [0]

    def profile(frame: Any, event: str, argument: Any) -> None:
        caller = {"c_call": frame, "call": frame.f_back}.get(event)
        if caller is not None and caller.f_code.co_filename.startswith(OURS):
            count[0] += 1

    _threads.end_idle(10)  # a thread that is there already is not profiled
    threading.setprofile(profile)
    sys.setprofile(profile)
    try:
        work()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]
        _threads.end_idle(10)
    return count[0]


def run(model: Any, session: Session, turns: int, path: Path | None = None, observers: Sequence[Any] = ()) -> None:
    agent = Agent("a", model, tools=[nothing], max_iterations=turns + 1)
    with Runtime(agent, observers=observers) as runtime:
        assert runtime.run(session, **({"record": path} if path else {})).text == "done"


@pytest.mark.parametrize("how", ["plain", "window", "recorded", "observed"])
def test_a_turn_does_as_much_in_a_long_run_as_in_a_short_one(tmp_path: Path, how: str) -> None:
    def turn(n: int) -> float:
        model = Turns(n, window=1 << 40 if how == "window" else None)
        path = tmp_path / f"{n}.jsonl" if how == "recorded" else None
        observers = [Observer()] if how == "observed" else []
        return calls(lambda: run(model, Session.from_user("go"), n, path, observers)) / n

    assert turn(15 * MORE) < 1.2 * turn(15)


@pytest.mark.parametrize("recorded", [False, True])
def test_a_delta_of_arguments_does_as_much_in_a_long_call_as_in_a_short_one(tmp_path: Path, recorded: bool) -> None:
    def delta(n: int) -> float:
        path = tmp_path / f"{n}.jsonl" if recorded else None
        return calls(lambda: run(Arguments(n), Session.from_user("go"), 2, path)) / n

    assert delta(250 * MORE) < 1.2 * delta(250)


@pytest.mark.parametrize("window", [None, 1 << 40])
def test_a_stream_looks_at_the_messages_of_its_session_once_for_the_model(window: int | None) -> None:
    """It hands the model a list of them. What else it has to know of the old ones the streams before have found out."""

    def stream(n: int) -> tuple[int, int]:
        said = [Message("assistant" if i % 2 else "user", f"message {i}") for i in range(n)]
        session = Session(said)
        run(Turns(0, window), session, 1)
        session.add_user("go on")
        session._messages = messages = Counted(session._messages)
        return calls(lambda: run(Turns(0, window), session, 1)), messages.seen - n

    (few, seen_few), (many, seen_many) = stream(100), stream(100 * MORE)
    assert many < 1.2 * few
    assert abs(seen_many - seen_few) <= 2, f"{seen_few} and {seen_many} looks beside those of the model's list"


def test_a_turn_looks_at_the_messages_of_its_session_once_for_the_model() -> None:
    def turn(n: int) -> int:
        said = [Message("assistant" if i % 2 else "user", f"message {i}") for i in range(n)]
        session = Session([*said, Message("user", "go")])
        run(Turns(0, None), session, 1)
        session.add_user("go on")
        session._messages = messages = Counted(session._messages)
        run(Turns(10, None), session, 10)
        return messages.seen - 11 * n

    assert abs(turn(800) - turn(100)) <= 11
