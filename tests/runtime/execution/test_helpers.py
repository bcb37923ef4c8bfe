"""Threads of streams, and helpers: as many as there is to do at once, out of one cache, and no more than are needed."""

from __future__ import annotations

import contextlib
import gc
import os
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from runtime import Agent, Runtime, Session
from runtime.execution import _threads
from runtime.execution._helpers import HelperPool
from support.scripted import Scripted, Stall, say
from support.waiting import eventually


def burst(count: int) -> list[_threads.Running]:
    """So many at once; they have ended."""
    line = threading.Barrier(count + 1)
    running = [_threads.start(lambda: line.wait(10)) for _ in range(count)]
    line.wait(10)
    for each in running:
        each.join(10)
    return running


def idle(count: int) -> None:
    """Wait until so many are idle."""
    assert eventually(lambda: len(_threads._idle.waiting) == count), _threads._idle.waiting


def ours(before: set[threading.Thread]) -> list[threading.Thread]:
    """Threads of the cache that have come since."""
    return [each for each in set(threading.enumerate()) - before if each.name.startswith("lockgate-")]


def test_the_last_to_become_idle_is_the_next_to_work(monkeypatch: pytest.MonkeyPatch, cold: None) -> None:
    """So that what a burst has left over ends, though there is always a little to do."""
    monkeypatch.setattr(_threads, "IDLE", 0.5)
    burst(20)
    idle(20)
    threads = [seat.thread for seat in _threads._idle.waiting]
    used = set()
    pause = threading.Event()
    for _ in range(400):
        _threads.start(lambda: used.add(threading.current_thread())).join(10)
        pause.wait(0.002)
        if sum(thread.is_alive() for thread in threads) <= 2:
            break
    assert sum(thread.is_alive() for thread in threads) <= 2
    assert len(used) <= 3


def test_nothing_is_lost_to_a_thread_that_leaves(monkeypatch: pytest.MonkeyPatch, switching: Any, cold: None) -> None:
    """It may be given something in the moment in which it has waited long enough."""
    monkeypatch.setattr(_threads, "IDLE", 0.0005)
    pause = threading.Event()
    for number in range(500):
        done = threading.Event()
        _threads.start(done.set)
        assert done.wait(10)
        pause.wait(0.0005 if number % 2 else 0.0004)


def test_a_pool_that_is_closed_takes_nothing_and_what_it_took_is_done(switching: Any) -> None:
    for _ in range(50):
        pool = HelperPool()
        done: list[int] = []
        for number in range(5):
            pool.submit(lambda number=number: done.append(number))
        pool.close()
        with contextlib.suppress(RuntimeError):
            pool.submit(lambda: done.append(-1))
            pytest.fail("closed")
        pool.join(5)
        assert sorted(done) == list(range(5))
        assert eventually(lambda pool=pool: not pool._running)


def test_a_pool_waits_for_its_own_jobs_only(cold: None) -> None:
    mine, other = HelperPool(), HelperPool()
    with Stall() as stall:
        other.submit(stall)
        assert stall.reached.wait(10)
        mine.submit(lambda: None)
        mine.join(10)
        assert not mine._running
        other.join(0.01)
        assert len(other._running) == 1


def test_a_stream_on_a_warm_process_starts_no_thread(monkeypatch: pytest.MonkeyPatch, cold: None) -> None:
    """Nor does another runtime: there is one cache."""
    before = set(threading.enumerate())
    for _ in range(2):
        with Runtime(Agent("a", Scripted(say("x")))) as runtime:
            runtime.run(Session.from_user("go"))
    assert eventually(lambda: all(thread.name == _threads.IDLE_NAME for thread in ours(before)))
    monkeypatch.setattr(threading.Thread, "start", lambda self: pytest.fail(f"{self.name} was started"))
    with Runtime(Agent("a", Scripted(say("x"), say("y")))) as runtime:
        for text in "xy":
            assert runtime.run(Session.from_user("go")).text == text


def test_a_thread_has_the_name_of_what_it_runs(cold: None) -> None:
    before = set(threading.enumerate())
    names: list[str] = []
    for name in ("lockgate-stream-7", None):
        running = _threads.start(lambda: names.append(threading.current_thread().name), name)
        running.join(10)
        assert running.name == names[-1]
        assert not running.is_alive()
        assert running.ident is None
    assert names[0] == "lockgate-stream-7"
    assert names[1].startswith("lockgate-helper-")
    assert {thread.name for thread in ours(before)} <= {_threads.IDLE_NAME}


def test_what_a_thread_has_run_is_not_held(cold: None) -> None:
    class Thing:
        pass

    thing = Thing()
    gone = weakref.ref(thing)
    running = _threads.start(lambda thing=thing: None)
    del thing
    running.join(10)
    del running
    idle(1)
    gc.collect()
    assert gone() is None


def test_an_exception_is_told_as_that_of_any_thread(monkeypatch: pytest.MonkeyPatch, cold: None) -> None:
    """And the thread goes on with the next."""
    before = set(threading.enumerate())
    told: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", told.append)

    def fail() -> None:
        raise ValueError("x")

    _threads.start(fail).join(10)
    [said] = told
    assert said.exc_type is ValueError
    assert said.thread is not None
    told.clear()
    said = None
    idle(1)
    ran: list[threading.Thread] = []
    _threads.start(lambda: ran.append(threading.current_thread())).join(10)
    assert len(ours(before)) == 1


def test_an_exception_that_is_thrown_at_an_idle_thread_loses_nothing(interrupt: Any, cold: None) -> None:
    burst(1)
    idle(1)
    [seat] = _threads._idle.waiting
    interrupt(seat.thread)  # seen when it next runs: with the next job, or when it has waited long enough
    done = threading.Event()
    with contextlib.suppress(BaseException):
        for _ in range(3):
            _threads.start(done.set).join(10)
    assert done.is_set()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_has_none_of_the_threads(script: Callable[..., str]) -> None:
    said = script(
        """
import os, sys, warnings
sys.path[:0] = ["tests"]
warnings.simplefilter("ignore")  # that a process with threads is forked
from runtime import Agent, Runtime, Session
from runtime.execution import _threads
from support.scripted import Scripted, say

def run():
    with Runtime(Agent("a", Scripted(say("x")))) as runtime:
        return runtime.run(Session.from_user("go")).text

run()
child = os.fork()
if child == 0:
    assert not _threads._idle.waiting
    os._exit(run() != "x")
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
print(run())
"""
    )
    assert said.strip() == "x"


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="the private module has another name, and other functions")
def test_a_subinterpreter_ends_its_idle_threads(script: Callable[..., str]) -> None:
    """It cannot end while it has threads: the whole process would be ended by that."""
    script(
        """
import _xxsubinterpreters as interpreters
one = interpreters.create(isolated=False)  # one that may have threads
interpreters.run_string(one, '''
import sys
sys.path[:0] = ["", "tests"]
from runtime.execution import _threads
for _ in range(3):
    _threads.start(lambda: None).join(10)
import atexit, threading
atexit._run_exitfuncs()  # as at its end
assert threading.active_count() == 1, threading.enumerate()
''')
interpreters.destroy(one)
"""
    )


def test_the_interpreter_exits_at_once_with_idle_threads(script: Callable[..., str]) -> None:
    script(
        """
import time
from runtime.execution import _threads
for _ in range(10):
    _threads.start(lambda: time.sleep(0.01))
_threads.start(lambda: None).join(10)
"""
    )
