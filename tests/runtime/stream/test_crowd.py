"""Many streams of a process that are cancelled together: their threads ask for the interpreter lock less often, and a
thousand streams end in a second, not in a minute.
"""

from __future__ import annotations

import itertools
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import pytest

from runtime import Agent, Runtime, Session
from runtime.model import TextDelta
from runtime.stream import _crowd
from support.waiting import eventually

USUAL = 0.004  # seconds; not the interpreter's own, so that what restores it is this


@pytest.fixture(autouse=True)
def interval() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(USUAL)
    yield
    sys.setswitchinterval(before)


def interval_is(seconds: float) -> bool:
    return sys.getswitchinterval() == pytest.approx(seconds)


class Deaf:
    """Waits for its end; what it then does is up to the test."""

    id = "deaf"

    def __init__(self) -> None:
        self.up = threading.Semaphore(0)

    def stream(self, messages: Any, tools: Any, *, cancel: Any) -> Any:
        yield TextDelta("x")
        self.up.release()
        for _ in cancel.done:
            pass


def live(runtime: Runtime, model: Deaf, count: int) -> list[Any]:
    streams = [runtime.run_stream(Session.from_user("go")) for _ in range(count)]
    for _ in streams:
        assert model.up.acquire(timeout=30)
    return streams


def test_a_crowd_changes_the_interval_until_it_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    intervals: list[float] = []

    def note(seconds: float, change: Any = sys.setswitchinterval) -> None:
        intervals.append(seconds)
        change(seconds)

    hold, model = threading.Lock(), Deaf()
    agent = Agent("a", model, hooks={"session_end": [lambda given: hold.acquire() and hold.release()]})
    with Runtime(agent) as runtime:
        streams = live(runtime, model, _crowd.CROWD + 8)
        monkeypatch.setattr(sys, "setswitchinterval", note)
        with hold:  # none of them has ended before all are cancelled
            for stream in streams[: _crowd.CROWD]:
                stream.cancel()
            assert intervals == []
            for stream in streams[_crowd.CROWD :]:
                stream.cancel()
            assert intervals == [_crowd.PATIENT]
        for stream in streams:
            stream.close()
        assert eventually(lambda: interval_is(USUAL))
    assert intervals == [_crowd.PATIENT, pytest.approx(USUAL)]


def test_streams_that_end_one_after_the_other_are_no_crowd() -> None:
    model = Deaf()
    with Runtime(Agent("a", model)) as runtime:
        for _ in range(_crowd.CROWD + 8):
            [stream] = live(runtime, model, 1)
            stream.close()
            assert interval_is(USUAL)


def test_an_interval_that_somebody_sets_meanwhile_stays() -> None:
    for _ in range(_crowd.CROWD + 1):
        _crowd.enter()
    try:
        assert interval_is(_crowd.PATIENT)
        sys.setswitchinterval(0.001)
    finally:
        for _ in range(_crowd.CROWD + 1):
            _crowd.leave()
    assert interval_is(0.001)


def test_one_who_has_set_a_longer_interval_keeps_it() -> None:
    sys.setswitchinterval(0.2)
    for _ in range(_crowd.CROWD + 1):
        _crowd.enter()
    try:
        assert interval_is(0.2)
    finally:
        for _ in range(_crowd.CROWD + 1):
            _crowd.leave()
    assert interval_is(0.2)


def test_threads_that_come_and_go_at_once_leave_the_interval_as_it_was(threads: Any) -> None:
    def come_and_go() -> None:
        for _ in range(200):
            _crowd.enter()
            _crowd.leave()
        for _ in range(40):
            _crowd.enter()
        for _ in range(40):
            _crowd.leave()

    threads.all(*[come_and_go] * 4)
    assert interval_is(USUAL)


def in_between(function: Callable[[], object], at: int, other: Callable[[], object]) -> bool:
    """Call ``function``, and ``other`` before its step number ``at``, as if another thread came then. Whether there is
    such a step.
    """
    steps, came = itertools.count(), []

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        if frame.f_code.co_filename != _crowd.__file__:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode" and next(steps) == at:
            came.append(at)
            sys.settrace(None)
            other()
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        function()
    finally:
        sys.settrace(before)
    return bool(came)


def test_those_who_leave_in_the_middle_of_another_step_leave_the_interval_as_it_was() -> None:
    """As it was, whoever is the last; and so does one that leaves before whoever cancels it has noted it."""

    def enter(count: int = _crowd.CROWD) -> None:
        for _ in range(count):
            _crowd.enter()

    def leave(count: int = _crowd.CROWD) -> None:
        for _ in range(count):
            _crowd.leave()

    for at in itertools.count():
        enter(_crowd.CROWD + 1)
        left = in_between(_crowd.leave, at, leave)
        if not left:
            leave()
        assert interval_is(USUAL), at
        enter()
        entered = in_between(_crowd.enter, at, lambda: leave(_crowd.CROWD + 1))
        if not entered:
            leave(_crowd.CROWD + 1)
        assert interval_is(USUAL), at
        if not (left or entered):
            break
        enter()
        assert interval_is(USUAL), at  # so many are no crowd
        enter(1)
        assert interval_is(_crowd.PATIENT), at
        leave(_crowd.CROWD + 1)
    assert at > 10


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_child_has_no_crowd(script: Any) -> None:
    script(
        """
import os, sys
from runtime.stream import _crowd
for _ in range(_crowd.CROWD + 1):
    _crowd.enter()
assert abs(sys.getswitchinterval() - 0.05) < 1e-5
child = os.fork()
if not child:
    assert abs(sys.getswitchinterval() - 0.005) < 1e-5, sys.getswitchinterval()
    for _ in range(_crowd.CROWD):
        _crowd.enter()
    assert abs(sys.getswitchinterval() - 0.005) < 1e-5, sys.getswitchinterval()
    os._exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
"""
    )


class Raises(Deaf):
    """Ends with an exception when it is cancelled, as a receive from its token does."""

    def stream(self, messages: Any, tools: Any, *, cancel: Any) -> Any:
        yield TextDelta("x")
        self.up.release()
        cancel.done.recv()


def test_no_traceback_is_made_for_whoever_has_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """For each of a crowd that would take longer than all else."""
    made: list[str] = []
    monkeypatch.setattr("runtime.execution._calls._failed", lambda what, error: made.append(what) or "")
    model = Raises()
    with Runtime(Agent("a", model)) as runtime:
        [stream] = live(runtime, model, 1)
        stream.close()
    assert made == []


@pytest.mark.stress
@pytest.mark.parametrize("model", [Deaf(), Raises()], ids=["quiet", "raises"])
def test_a_thousand_streams_that_are_cancelled_together_end_in_seconds(model: Deaf) -> None:
    with Runtime(Agent("a", model)) as runtime:
        streams = live(runtime, model, 1000)
        began = time.monotonic()
        for stream in streams:
            stream.cancel()
        for stream in streams:
            stream.close()
        assert time.monotonic() - began < 10
    assert eventually(lambda: interval_is(USUAL))
