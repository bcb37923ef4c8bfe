"""The end of a runtime, and of the process: bounded, from wherever it is asked for, and nothing goes on after it."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest

from runtime import Agent, Runtime, Session, Tool
from runtime.execution._result_files import ResultFiles
from support.interrupts import between
from support.scripted import AsyncScripted, Scripted, Stall, call, say
from support.waiting import in_time


def open_and_read(runtime: Runtime) -> None:
    with contextlib.suppress(RuntimeError):  # it is closed
        for _ in runtime.run_stream(Session.from_user("go")):
            pass


@pytest.mark.parametrize("what", ["open and read", "close", "close with a live stream"])
def test_closed_by_a_signal_handler(what: str) -> None:
    """Wherever it comes in, it returns within its limits (it may hold what the stream waits for), and no stream is live
    once what it came into has ended.
    """
    step = 7  # every so many points; and others each time
    for number in range(0, 2000, step):
        big = Tool("big", lambda: "x" * 100, read_only=True)
        agent = Agent("a", Scripted([call("big")], say("a", "b")), tools=[big])
        runtime = Runtime(agent, result_limit=10, grace=0.2)
        function: Callable[[], object] = runtime.close
        stream = None
        if what == "open and read":
            function = functools.partial(open_and_read, runtime)
        elif what == "close":
            runtime.run(Session.from_user("go"))
        else:
            stream = runtime.run_stream(Session.from_user("go"))

        def handler() -> None:
            began = time.monotonic()
            runtime.close()
            assert time.monotonic() - began < 5

        hit = between(number + number % 3, function, handler)
        runtime.close()
        assert not runtime._shared.cores
        if stream is not None:
            stream.close()
        if not hit:
            assert number > 3 * step
            return
    pytest.fail("more points than there can be")


def test_files_of_results_are_gone_once_it_is_closed_in_the_middle_of_closing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A handler that comes while they are removed neither waits for itself, nor leaves some."""
    import shutil

    files = ResultFiles()
    for _ in range(3):
        folder = os.path.dirname(os.path.dirname(files.keep("session", "tool", "text")))
    remove = shutil.rmtree
    seen: list[bool] = []

    def interrupted(path: str, **kwargs: Any) -> None:
        if not seen:
            seen.append(True)
            files.close()
            seen.append(os.path.exists(folder))
        remove(path, **kwargs)

    monkeypatch.setattr(shutil, "rmtree", interrupted)
    files.close()
    assert seen == [True, False]
    assert not os.path.exists(folder)


class Late(Session):
    """Something closes the runtime in the moment in which a stream on it is opened."""

    closing: Callable[[], object]

    def lease(self) -> Any:
        log = super().lease()
        self.closing()
        return log


def test_a_stream_that_is_being_opened_while_it_is_closed_is_refused() -> None:
    """It would live on in a runtime that is closed, and nobody would end it."""
    runtime = Runtime(Agent("a", Scripted(say("x"))))
    session = Late([])
    session.closing = runtime.close
    with pytest.raises(RuntimeError, match="the runtime is closed"):
        runtime.run_stream(session)
    assert session._lease is None
    assert not runtime._shared.cores


@pytest.mark.parametrize("model", [Scripted, AsyncScripted])
def test_closed_and_opened_by_two_threads(model: type[Scripted], threads: Any, switching: Any) -> None:
    """Whoever is first: no stream is live afterwards."""
    for _ in range(100):
        with Stall() as stall:
            runtime = Runtime(Agent("a", model([*say("x"), stall] if model is Scripted else say("x"))), grace=0.1)
            streams = []

            def start(runtime: Runtime = runtime, streams: list[Any] = streams) -> None:
                with contextlib.suppress(RuntimeError):  # it is closed
                    streams.append(runtime.run_stream(Session.from_user("go")))

            threads.all(start, runtime.close)
            for stream in streams:
                assert stream._core.stopping.cancelled or stream.reason is not None
                stall.go_on.set()
                stream.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_session_that_was_being_opened_is_free_in_a_forked_child() -> None:
    """Whoever holds it there, or its lock, is not here."""
    session = Session.from_user("go")
    with session.lease():
        session._lock.acquire()
        pid = os.fork()
        if not pid:
            signal.alarm(5)
            try:
                session.add_user("child")
                os._exit(len(session.messages))
            except BaseException:
                os._exit(99)
        session._lock.release()
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 2
    session.add_user("parent")


STUCK = """
import asyncio, sys, threading, time
from channels.aio import default_loop
from runtime import Agent, Runtime, Session, TextDelta, Tool, ToolCallDelta

class Model:
    id = "m"
    def stream(self, messages, tools, *, cancel):
        yield TextDelta("x")
        yield ToolCallDelta(0, "1", "stuck", "{}")

class Async:
    id = "n"
    async def stream(self, messages, tools, *, cancel):
        yield TextDelta("x")
        while True:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                pass

class Toolset:
    def start(self): pass
    def tools(self): return []
    def stop(self): time.sleep(60)

class Watcher:
    def on_event(self, session, event): time.sleep(60 if event.type == "tool_call" else 0)

def stuck(*_): time.sleep(60)

hooks = {"turn_end": [stuck], "session_end": [stuck]}
held = []
for model in (Model(), Async()):
    tools = [Tool("stuck", stuck, read_only=True)]
    runtime = Runtime(Agent("a", model, hooks=hooks, tools=tools, toolsets=[Toolset()]), observers=[Watcher()])
    stream = runtime.run_stream(Session.from_user("go"))
    for event in stream:
        if event.type == "agent_choice":
            break
    held.append((runtime, stream))

async def deaf():
    while True:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            pass

default_loop().start(deaf)
time.sleep(0.2)
print(time.time(), flush=True)
"""


def test_law_11_everything_is_stuck_at_once(script: Callable[..., str]) -> None:
    """Streams, hooks, tools, observers, toolsets and the loop have one budget: each had one of its own."""

    def trial() -> float:
        began = float(script(STUCK, timeout=30, stderr=None))
        return time.time() - began

    assert in_time(trial, 2.0, tries=4)


def test_exit_seconds(script: Callable[..., str]) -> None:
    """What the first have used, the others have not; each has a moment."""
    source = (
        "from channels import _exit; import time; a = _exit.exit_seconds(5); time.sleep(0.3); b = _exit.exit_seconds(5)"
    )
    source += "; c = _exit.exit_seconds(0.5); time.sleep(1.4); print(round(a, 3), b < 1.4, c, _exit.exit_seconds(5))"
    assert script(source) == "1.6 True 0.5 0.05\n"
