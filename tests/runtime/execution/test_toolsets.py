"""Toolsets: started once, stopped once, by the last runtime that uses them."""

from __future__ import annotations

import gc
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from runtime import Agent, RunError, Runtime, Session, Tool, tool
from support.scripted import Scripted, Stall, say


@tool(read_only=True)
def nothing() -> None:
    """Does nothing."""


class Shelf:
    """Counts. The n-th call of ``start`` or ``stop`` stands still where a stall is given for it."""

    name = "shelf"

    def __init__(self, **stalls: Stall) -> None:
        self.calls: list[str] = []
        self.stalls = stalls

    def start(self) -> None:
        self._note("start")

    def stop(self) -> None:
        self._note("stop")

    def tools(self) -> Sequence[Tool]:
        assert self.calls[-1] == "start", self.calls
        return [nothing]

    def _note(self, what: str) -> None:
        if what in self.stalls:
            self.stalls[what]()
        self.calls.append(what)


def runtime(shelf: Shelf, *, grace: float = 1.0) -> Runtime:
    return Runtime(Agent("a", Scripted(*[say("x")] * 9), toolsets=[shelf]), grace=grace)


def run(runtime: Runtime) -> str:
    return runtime.run(Session.from_user("go")).text


def test_the_first_runtime_that_closes_leaves_a_shared_toolset_to_the_other() -> None:
    shelf = Shelf()
    with runtime(shelf) as second:
        with runtime(shelf) as first:
            assert run(first) == run(second) == "x"
        assert shelf.calls == ["start"]
        assert run(second) == "x"
    assert shelf.calls == ["start", "stop"]


def test_a_runtime_that_never_used_it_does_not_stop_it() -> None:
    shelf = Shelf()
    with runtime(shelf) as second:
        assert run(second) == "x"
        with runtime(shelf):
            pass
        assert run(second) == "x"
        assert shelf.calls == ["start"]


def test_started_again_after_it_was_stopped() -> None:
    shelf = Shelf()
    for _ in range(2):
        with runtime(shelf) as one:
            assert run(one) == "x"
    assert shelf.calls == ["start", "stop"] * 2


def test_who_comes_while_it_is_being_stopped_starts_it_again() -> None:
    """Never a start beside a stop."""
    with Stall() as stall:
        shelf = Shelf(stop=stall)
        first = runtime(shelf)
        run(first)
        closing = threading.Thread(target=first.close)
        closing.start()
        assert stall.reached.wait(10)
        with runtime(shelf) as second, second.run_stream(Session.from_user("go")) as stream:
            while next(stream).type != "mcp_init_started":
                pass
            assert shelf.calls == ["start"]
            stall.go_on.set()
            assert stream.result().text == "x"
            assert shelf.calls == ["start", "stop", "start"]
        closing.join(10)


def test_a_runtime_that_is_forgotten_does_not_keep_the_toolset_from_being_stopped() -> None:
    shelf = Shelf()
    forgotten = runtime(shelf)
    run(forgotten)
    forgotten._shared.helpers.close()  # or its idle helper would be the next thing to wait for
    forgotten._shared.helpers.join(10)  # it is on its way out of the last job, and holds what belongs to that
    with runtime(shelf) as other:
        run(other)
        del forgotten
        gc.collect()  # what is forgotten may hang in a cycle
    assert shelf.calls == ["start", "stop"]


def test_many_runtimes_at_once() -> None:
    """Starts and stops alternate, whoever comes and goes."""
    shelf = Shelf()

    def use(_: int) -> str:
        with runtime(shelf) as one:
            return run(one)

    with ThreadPoolExecutor(8) as threads:
        assert set(threads.map(use, range(64))) == {"x"}
    assert shelf.calls == ["start", "stop"] * (len(shelf.calls) // 2)


def test_closing_does_not_wait_for_a_toolset_that_does_not_stop(caplog: pytest.LogCaptureFixture) -> None:
    """It is named, with its stack; the others are stopped."""
    with Stall() as stall:
        stuck, other = Shelf(stop=stall), Shelf()
        one = Runtime(Agent("a", Scripted(say("x")), toolsets=[stuck]), grace=0.1)
        one._shared.toolsets.tools(other)
        run(one)
        one.close()
        assert other.calls == ["start", "stop"]
        assert "toolset shelf.stop did not end within 0.3 s" in caplog.text
        assert "in __call__" in caplog.text  # of the stall


def test_a_call_that_comes_after_the_end_starts_nothing() -> None:
    """A helper thread may be late; nobody would stop what it starts."""
    shelf = Shelf()
    with runtime(shelf) as one:
        pass
    with pytest.raises(RuntimeError, match="the runtime is closed"):
        one._shared.toolsets.tools(shelf)
    assert shelf.calls == []


def test_a_failing_start_is_everybodys_and_tried_again() -> None:
    class Broken(Shelf):
        def start(self) -> None:
            if not self.calls:
                self.calls.append("failed")
                raise LookupError("no")
            super().start()

    shelf = Broken()
    with runtime(shelf) as one, runtime(shelf) as two:
        with pytest.raises(RunError, match="no"):
            run(one)
        assert run(two) == "x"
        assert run(one) == "x"
    assert shelf.calls == ["failed", "start", "stop"]
