"""The bug report this project began with: a stream that exits early must close its channel and leave the bridge alone.

Upstream, two early returns stood between the swap of the bridge and the registration of the cleanup: a toolset that
cannot start, and a ``user_prompt_submit`` hook that stops the run. The consumer's loop then never ended, the bridge
kept pointing at the dead stream, and the forwarder of the observers never terminated.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from channels import Channel
from runtime import Agent, HookInput, HookResult, RunError, Runtime, Session
from runtime.events import Error, Event, StreamStopped
from support.scripted import Scripted, say


class Broken:
    """A toolset that cannot start."""

    name = "broken"

    def start(self) -> None:
        raise OSError("no such server")

    def tools(self) -> list[Any]:
        raise AssertionError("not reached")

    def stop(self) -> None:
        pass


def refuse(given: HookInput) -> HookResult:
    return HookResult(block=True, reason="not today")


EXITS: list[tuple[str, Callable[[], Agent], str, str, str]] = [
    (
        "toolset cannot start",
        lambda: Agent("a", Scripted(say("never")), toolsets=[Broken()]),
        "error",
        "tool_failed",
        "no such server",
    ),
    (
        "hook stops the run",
        lambda: Agent("a", Scripted(say("never")), hooks={"user_prompt_submit": [refuse]}),
        "hook_blocked",
        "hook_blocked",
        "not today",
    ),
]
each_exit = pytest.mark.parametrize(
    ("make", "reason", "code", "text"), [row[1:] for row in EXITS], ids=[row[0] for row in EXITS]
)


class Watcher:
    def __init__(self) -> None:
        self.started: list[Session] = []
        self.events: list[Event] = []

    def on_run_start(self, session: Session) -> None:
        self.started.append(session)

    def on_event(self, session: Session, event: Event) -> None:
        self.events.append(event)


@each_exit
def test_the_consumers_loop_ends(make: Callable[[], Agent], reason: str, code: str, text: str) -> None:
    """Laws 1 and 2: the channel closes, the last event is StreamStopped with the true reason, an Error stands before
    it.
    """
    with Runtime(make()) as runtime:
        events = list(runtime.run_stream(Session.from_user("hello")))
    assert [type(event) for event in events[-2:]] == [Error, StreamStopped]
    error, stopped = events[-2:]
    assert isinstance(error, Error)
    assert error.code == code
    assert text in error.error
    assert isinstance(stopped, StreamStopped)
    assert stopped.reason == reason
    assert sum(isinstance(event, StreamStopped) for event in events) == 1


@each_exit
def test_the_previous_elicitation_channel_is_back(make: Callable[[], Agent], reason: str, code: str, text: str) -> None:
    """Laws 1 and 3: what the bridge pointed at before the stream, it points at after it."""
    with Runtime(make()) as runtime:
        bridge = runtime.bridge
        outer: Channel[Event] = Channel(1, name="outer")
        assert bridge.swap(outer) is None
        for _ in runtime.run_stream(Session.from_user("hello")):
            pass
        assert bridge.current is outer
        question = Error("asked after the stream")
        bridge.send(question, timeout=0)
        assert outer.try_recv() is question


@each_exit
def test_the_forwarder_of_the_observers_ends(make: Callable[[], Agent], reason: str, code: str, text: str) -> None:
    """Laws 1 and 9: with an observer in between the consumer's loop ends too; the observer saw what the consumer
    saw.
    """
    watcher = Watcher()
    session = Session.from_user("hello")
    with Runtime(make(), observers=[watcher]) as runtime:
        events = list(runtime.run_stream(session))
    assert watcher.started == [session]
    assert watcher.events == events


@each_exit
def test_run_raises(make: Callable[[], Agent], reason: str, code: str, text: str) -> None:
    """Law 17: run() does not look like a success."""
    with Runtime(make()) as runtime, pytest.raises(RunError, match=text) as raised:
        runtime.run(Session.from_user("hello"))
    assert raised.value.code == code
    assert raised.value.reason == reason
    assert raised.value.__cause__ is not None


@each_exit
def test_the_next_stream_on_the_session_works(make: Callable[[], Agent], reason: str, code: str, text: str) -> None:
    """Law 15: the lease is given back on the early exits too."""
    session = Session.from_user("hello")
    with Runtime(make()) as runtime:
        for _ in range(3):
            assert list(runtime.run_stream(session))
        assert runtime.bridge.current is None
        assert len(runtime.bridge) == 0
