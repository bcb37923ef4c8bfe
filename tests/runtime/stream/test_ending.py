"""What a stream lets go of at its end, and when: at each step by itself, not by what the next would do, too."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import runtime.stream._ending as ending
from channels import ChannelClosed
from runtime import Agent, Budget, EventStream, HookInput, NotRunning, Runtime, Session, ToolContext, tool
from runtime.events import ElicitationRequest, HookStarted, SubSessionCompleted, ToolCallConfirmation
from runtime.human._mailbox import Mailbox
from runtime.session._session import SessionLog
from runtime.stream import _at_exit
from runtime.stream._core import StreamCore
from runtime.stream._end_reason import Ending
from support.scripted import AsyncScripted, Scripted, call, say

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


# -- each step by itself -----------------------------------------------------------------------------------------------


def test_hooks_at_the_end_run_where_the_time_is_up_as_the_stream_ends() -> None:
    """While the channel is open, though the token was cancelled after the loop: the consumer hears of them."""

    def late(given: HookInput) -> None:
        core.token.cancel("as its timer does")

    opened = threading.Event()
    agent = Agent(
        "a",
        Scripted([lambda: opened.wait(LONG), ValueError("no")]),
        hooks={"on_error": [late], "session_end": [lambda given: None]},
        budget=Budget(seconds=600),
    )
    with Runtime(agent) as runtime, runtime.run_stream(Session.from_user("go")) as stream:
        (core,) = runtime._shared.cores
        opened.set()
        assert [event.hook_event for event in stream if isinstance(event, HookStarted)] == ["on_error", "session_end"]
    assert stream.reason == "error"


def test_hooks_of_the_turn_run_before_it_is_told_that_the_time_is_up() -> None:
    """In the order in which things have ended."""
    opened = threading.Event()
    agent = Agent(
        "a",
        Scripted([lambda: opened.wait(LONG), lambda: core.token.cancel("as its timer does"), *say("x")]),
        hooks={"turn_end": [lambda given: None], "notification": [lambda given: None]},
        budget=Budget(seconds=600),
    )
    with Runtime(agent) as runtime, runtime.run_stream(Session.from_user("go")) as stream:
        (core,) = runtime._shared.cores
        opened.set()
        assert [event.hook_event for event in stream if isinstance(event, HookStarted)] == ["turn_end", "notification"]


def test_what_the_user_says_too_late_is_refused_where_the_way_out_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody would read it any more: not even into the session, which was not put in order."""
    refused: list[type[BaseException]] = []
    failed: list[bool] = []

    real = Mailbox.close

    def close(self: Mailbox) -> Any:
        if not failed:
            failed.append(True)
            raise MemoryError("injected")
        return real(self)

    def steers(given: HookInput) -> None:
        try:
            runtime.steer(session, "too late")
        except NotRunning as error:
            refused.append(type(error))

    reached = threading.Event()
    agent = Agent(
        "a", AsyncScripted([reached.set, lambda: asyncio.sleep(3600), *say("x")]), hooks={"session_end": [steers]}
    )
    session = Session.from_user("go")
    with Runtime(agent) as runtime, runtime.run_stream(session) as stream:
        assert reached.wait(LONG)
        monkeypatch.setattr(Mailbox, "close", close)
        stream.cancel()
        list(stream)
    assert refused == [NotRunning]


def test_what_the_user_said_is_in_the_session_where_it_is_put_in_order_at_the_second_try(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As where an asynchronous exception comes into the first: nothing that was taken is lost, or said twice."""
    real = SessionLog.settle
    failed: list[str] = []

    def settle(self: SessionLog, note: str, *args: Any) -> None:
        if reached.is_set() and not failed:
            failed.append(note)
            raise MemoryError("injected")
        real(self, note, *args)

    reached = threading.Event()
    session = Session.from_user("go")
    with (
        Runtime(Agent("a", AsyncScripted([reached.set, lambda: asyncio.sleep(3600), *say("x")]))) as runtime,
        runtime.run_stream(session) as stream,
    ):
        assert reached.wait(LONG)
        runtime.steer(session, "one")
        runtime.follow_up(session, "two")
        monkeypatch.setattr(SessionLog, "settle", settle)
        stream.cancel()
        list(stream)
    assert failed
    assert [message.content for message in session.messages] == ["go", "one", "two"]


def test_who_still_acts_for_the_stream_is_told_that_it_has_ended() -> None:
    """A thread that a tool left behind waits for its token: the stream ends normally, and nobody has closed it yet."""
    left: list[threading.Thread] = []

    @tool(read_only=True)
    def leave(context: ToolContext) -> str:
        """Leaves a thread behind."""

        def wait() -> None:
            with contextlib.suppress(ChannelClosed):
                context.cancel.done.recv(timeout=LONG)

        left.append(threading.Thread(target=wait))
        left[0].start()
        return "left"

    agent = Agent("a", Scripted([call("leave")], say("ok")), tools=[leave])
    with Runtime(agent) as runtime, runtime.run_stream(Session.from_user("go")) as stream:
        list(stream)
        left[0].join(LONG / 2)
        assert not left[0].is_alive()


def test_agents_in_the_background_are_over_by_the_last_event() -> None:
    """They are told to stop, and waited for, while the channel is open."""
    reached = threading.Event()

    @tool(read_only=True)
    def wait() -> str:
        """Until the other has begun."""
        assert reached.wait(LONG)
        return ""

    background = Agent("helper", AsyncScripted([reached.set, lambda: asyncio.sleep(3600), *say("x")]))
    start = call("run_background_agent", '{"agent": "helper", "task": "go"}')
    agent = Agent(
        "a",
        Scripted([start, call("wait", id="2", index=1)], say("ok")),
        tools=[wait],
        sub_agents=[background],
        background_agents=True,
    )
    with Runtime(agent) as runtime, runtime.run_stream(Session.from_user("go")) as stream:
        events = list(stream)
        assert [core for core in runtime._shared.cores if core.parent is not None] == []
    assert [event.reason for event in events if isinstance(event, SubSessionCompleted)] == ["canceled"]


def test_a_stream_that_is_over_is_known_to_nobody() -> None:
    """Neither to its runtime nor to the hook of the interpreter's exit."""
    looked = threading.Event()
    with Runtime(Agent("a", Scripted([lambda: looked.wait(LONG), *say("x")]))) as runtime:
        stream = runtime.run_stream(Session.from_user("go"))
        core = weakref.ref(stream._core)
        assert core() in _at_exit.live
        looked.set()
        stream.result()
        stream.close()
        assert not runtime._shared.cores
        assert core() not in _at_exit.live
