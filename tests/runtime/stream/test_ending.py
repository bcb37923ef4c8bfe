"""What a stream lets go of at its end, and when: at each step by itself, not by what the next would do, too."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import runtime.stream._ending as ending
from runtime import Agent, Budget, EventStream, HookInput, Runtime, Session, ToolContext, tool
from runtime.events import ElicitationRequest, ToolCallConfirmation
from runtime.stream._core import StreamCore
from runtime.stream._reason import Ending
from support.scripted import Scripted, call, say

LONG = 10.0  # seconds after which something will never happen
EVERYTHING = {"question": False, "confirmation": False, "task": False}  # what waits, once it was let go
Look = Callable[[], dict[str, bool]]


class Waiting:
    """A stream with one of each under way: a question, a confirmation, a call that is a task."""

    def __init__(self, hooks: dict[str, Any]) -> None:
        self.begun, self.cancelled = threading.Event(), threading.Event()
        agent = Agent(
            "a",
            Scripted([call(name, id=name, index=i) for i, name in enumerate(("ask", "write", "sleep"))], say("y")),
            tools=[self._sleep(), ask, write],
            hooks=hooks,
            budget=Budget(seconds=600),
        )
        self.runtime = Runtime(agent)
        self.session = Session.from_user("go")

    def _sleep(self) -> Any:
        @tool(read_only=True)
        async def sleep() -> str:
            """Goes on until it is cancelled."""
            self.begun.set()
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                self.cancelled.set()
                raise
            return ""

        return sleep

    @contextlib.contextmanager
    def stream(self) -> Iterator[tuple[EventStream, StreamCore]]:
        with self.runtime, self.runtime.run_stream(self.session) as stream:
            kinds: set[type] = {ElicitationRequest, ToolCallConfirmation}
            while kinds:
                kinds.discard(type(next(stream)))
            assert self.begun.wait(LONG)
            (core,) = self.runtime._shared.cores
            yield stream, core

    def look(self) -> dict[str, bool]:
        """What still waits. A task is cancelled on its own thread, so that is waited for."""
        shared = self.runtime._shared
        return {
            "question": bool(shared.asks.pending()),
            "confirmation": bool(shared.confirmations.pending()),
            "task": not self.cancelled.wait(LONG / 5),
        }


@tool(read_only=True)
def ask(context: ToolContext) -> str:
    """Asks."""
    return context.elicit("?").action


@tool
def write() -> str:
    """Has to be approved."""
    return ""


def test_before_the_last_event(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who reads `StreamStopped` finds nothing that waits."""
    seen: list[dict[str, bool]] = []
    real = Ending.stopped

    def stopped(self: Ending) -> Any:
        seen.append(waiting.look())
        return real(self)

    monkeypatch.setattr(Ending, "stopped", stopped)
    waiting = Waiting({})
    with waiting.stream() as (stream, _):
        stream.cancel()
        list(stream)
    assert seen == [EVERYTHING]


def test_before_it_is_told_that_the_time_is_up() -> None:
    """The hooks that hear of it find nothing that waits: no tool goes on beside them."""
    seen: list[dict[str, bool]] = []

    def notified(given: HookInput) -> None:
        seen.append(waiting.look())

    waiting = Waiting({"notification": [notified]})
    with waiting.stream() as (stream, core):
        core.token.cancel("as its timer does")
        list(stream)
        assert stream.reason == "budget_exceeded"
    assert seen == [EVERYTHING]


def test_where_the_way_out_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it did not come to is made up for before the stream is over."""

    def fails(*args: Any) -> None:
        raise MemoryError("injected")

    monkeypatch.setattr(ending, "stop_all", fails)
    waiting = Waiting({})
    with waiting.stream() as (stream, core):
        stream.cancel()
        list(stream)
        stream.close()
        assert core.over.closed
        assert waiting.look() == EVERYTHING


def test_by_the_time_that_owed_hooks_run() -> None:
    """After a cancel the hooks run when the stream is closed, and nothing of it goes on beside them."""
    seen: list[dict[str, bool]] = []

    def ended(given: HookInput) -> None:
        seen.append(waiting.look())

    waiting = Waiting({"session_end": [ended]})
    with waiting.stream() as (stream, _):
        stream.cancel()
    assert seen == [EVERYTHING]


@pytest.mark.parametrize(
    ("point", "how"), [("turn_end", "cancel"), ("turn_end", "the time is up"), ("session_end", "cancel")]
)
def test_hooks_at_an_end_go_on(point: str, how: str) -> None:
    """What is let go is all else: a hook that has begun comes to its end, once."""
    begun = threading.Event()
    started: list[int] = []
    ended: list[int] = []

    async def hook(given: HookInput) -> None:
        started.append(given.iteration)
        begun.set()
        await asyncio.sleep(0.05)
        ended.append(given.iteration)

    @tool(read_only=True)
    def nothing() -> str:
        """Does nothing."""
        return ""

    agent = Agent(
        "a", Scripted([call("nothing")], say("y")), tools=[nothing], hooks={point: [hook]}, budget=Budget(seconds=600)
    )
    with Runtime(agent, grace=LONG) as runtime, runtime.run_stream(Session.from_user("go")) as stream:
        (core,) = runtime._shared.cores
        assert begun.wait(LONG)
        if how == "cancel":
            stream.cancel()
        else:
            core.token.cancel("as its timer does")
        list(stream)
    assert started
    assert ended == started
