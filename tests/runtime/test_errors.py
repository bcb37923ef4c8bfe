"""Errors as callers meet them: whole in another process, with the place where they came from, and never hidden."""

from __future__ import annotations

import copy
import logging
import pickle
import threading
from typing import Any

import pytest

from channels import CancelToken
from runtime import (
    Agent,
    Budget,
    InvalidAnswer,
    MissingExtra,
    ModelError,
    NotPending,
    NotRunning,
    RunError,
    Runtime,
    Session,
    SessionBusy,
    StreamStuck,
    Tool,
    tool,
)
from runtime.mcp import MCPServerError
from runtime.models.replay import ReplayDiverged
from runtime.stream._end_reason import StopRun
from support.scripted import Scripted, call, say

ERRORS: list[Exception] = [
    RunError("tool_failed", "it broke", "error", failures=["Traceback: boom"], stuck=StreamStuck("tool slow")),
    ModelError("overloaded", "busy", retryable=True, retry_after=1.5),
    MissingExtra("LocalModel", "local", " (it is big)"),
    ReplayDiverged("it is another request", 3),
    MCPServerError("files", "cannot be reached"),
    StopRun("error", "tool_failed", "it broke", note="Stopped."),
    InvalidAnswer("n is too small"),
    NotPending("no question"),
    NotRunning("no run"),
    SessionBusy("busy"),
    StreamStuck("tool slow"),
]


BROKEN = [ValueError("the model broke")]


def told(error: BaseException) -> tuple[Any, ...]:
    state = {key: str(value) if isinstance(value, Exception) else value for key, value in vars(error).items()}
    return type(error), error.args, str(error), state


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_error_is_whole_in_another_process(error: Exception) -> None:
    """A process pool that cannot read an error back breaks down, or waits for ever."""
    error.add_note("seen")
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        assert told(again) == told(error)


def nothing_there() -> str:
    return {}["key"]  # type: ignore[no-any-return]


def test_a_failure_says_where_it_happened(caplog: pytest.LogCaptureFixture) -> None:
    """The model reads one line; the log at DEBUG and the error have the traceback, also in another process."""

    @tool(read_only=True)
    def boom() -> str:
        """Fails."""
        return nothing_there()

    @tool(read_only=True)
    async def boom_async() -> str:
        """Fails."""
        return nothing_there()

    caplog.set_level(logging.DEBUG, "runtime")
    calls = [call("boom", id="1", index=0), call("boom_async", id="2", index=1)]
    with Runtime(Agent("a", Scripted(calls, BROKEN), tools=[boom, boom_async])) as runtime:
        stream = runtime.run_stream(Session.from_user("go"))
        with pytest.raises(RunError) as raised:
            stream.result()
    assert [each.count("in nothing_there") for each in stream.failures] == [1, 1]
    for error in (raised.value, pickle.loads(pickle.dumps(raised.value))):
        assert error.traceback.count("in nothing_there") == 2
        assert "ValueError: the model broke" in error.traceback
    assert caplog.text.count("KeyError: 'key'") == 2
    assert "ValueError: the model broke" in caplog.text


def test_few_tracebacks_are_kept() -> None:
    """A model that calls what fails for hours does not fill the memory."""
    boom = Tool("boom", nothing_there, read_only=True)
    calls = [call("boom", id=str(i), index=i) for i in range(30)]
    with Runtime(Agent("a", Scripted(calls, say("ok")), tools=[boom])) as runtime:
        stream = runtime.run_stream(Session.from_user("go"))
        stream.result()
    assert len(stream.failures) == 8


class Slow:
    """A tool that is given up, and at work until the test says so."""

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.tool = Tool("slow", lambda: self.go_on.wait(10), read_only=True, timeout=0.01)

    def __enter__(self) -> Slow:
        return self

    def __exit__(self, *_: Any) -> None:
        self.go_on.set()


def test_a_result_is_not_lost_to_what_is_stuck(caplog: pytest.LogCaptureFixture) -> None:
    """It stands beside the result, and in the log, once; leaving the block does not take the result away."""
    model = Scripted([call("slow")], say("there"), [call("slow")], say("there"))
    with Slow() as slow, Runtime(Agent("a", model, tools=[slow.tool]), grace=0.05) as r:
        result = r.run(Session.from_user("go"))
        assert result.text == "there"
        assert "tool slow" in str(result.stuck)
        with r.run_stream(Session.from_user("go")) as stream:
            result = stream.result()
            assert result.stuck is not None
        assert stream.result().stuck is not None
    assert len([each for each in caplog.records if "tool slow" in each.getMessage()]) == 2


def test_an_error_is_not_lost_to_what_is_stuck() -> None:
    with (
        Slow() as slow,
        Runtime(Agent("a", Scripted([call("slow")], BROKEN), tools=[slow.tool]), grace=0.05) as runtime,
    ):
        with pytest.raises(RunError, match="the model broke") as raised:
            runtime.run(Session.from_user("go"))
        assert "tool slow" in str(raised.value.stuck)
        assert isinstance(raised.value.__cause__, ValueError)

    def deaf(cancel: CancelToken | None = None) -> None:
        slow.go_on.wait(10)

    with Slow() as slow, Runtime(Agent("a", Scripted([call("deaf")]), tools=[Tool("deaf", deaf, read_only=True)])) as r:
        r._shared.grace = 0.05
        with pytest.raises(RunError) as raised:
            r.run(Session.from_user("go"), budget=Budget(seconds=0.5))  # it has begun by then
        assert raised.value.reason == "budget_exceeded"
        assert "tool deaf" in str(raised.value.stuck)


def test_a_thousand_stuck_calls_are_a_few_lines() -> None:
    with Slow() as slow:
        calls = [call("slow", id=str(i), index=i) for i in range(40)]
        with Runtime(Agent("a", Scripted(calls, say("ok")), tools=[slow.tool]), grace=0.5) as runtime:
            stuck = runtime.run(Session.from_user("go")).stuck
    assert str(stuck).endswith("... and 35 more")
    assert len(str(stuck)) < 20_000
