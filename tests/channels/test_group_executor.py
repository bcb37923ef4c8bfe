"""A `WorkerGroup` on an executor keeps the promises that it makes with threads of its own, and its futures are those of
`concurrent.futures`.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import contextvars
import functools
import gc
import os
import signal
import sys
import threading
import weakref
from concurrent.futures import Future, ThreadPoolExecutor, as_completed, wait

import pytest

from channels import Cancelled, CancelToken, Channel, ChannelClosed, WorkerGroup
from support.interrupts import between, press_ctrl_c

LONG = 20


class Hand(concurrent.futures.Executor):
    """Begins a function when the test says so."""

    def __init__(self):
        self.waiting = []

    def submit(self, fn, /, *args, **kwargs):
        future = Future()
        self.waiting.append((future, functools.partial(fn, *args, **kwargs)))
        return future

    def begin(self, number=0):
        future, function = self.waiting.pop(number)
        if future.set_running_or_notify_cancel():
            future.set_result(function())


@pytest.fixture
def pool():
    with ThreadPoolExecutor(2) as pool:
        yield pool


@pytest.fixture
def busy():
    """An executor that is busy with something of others, until the test lets it go on."""
    go_on = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(go_on.wait, LONG)
        pool.go_on = go_on.set
        try:
            yield pool
        finally:
            go_on.set()


def wait_for_cancel(token):
    Channel().recv(timeout=LONG, cancel=token)


def fail(error):
    raise error


# -- results -----------------------------------------------------------------------------------------------------------


def test_functions_run_on_the_executor_and_leaving_waits_for_them(pool):
    with WorkerGroup(executor=pool) as group:
        futures = [group.spawn(threading.current_thread) for _ in range(8)]
    assert all(future.done() for future in futures)
    assert {future.result() for future in futures} <= pool._threads
    assert pool.submit(pow, 2, 3).result(LONG) == 8  # it goes on


def test_context_variables_travel(pool):
    variable = contextvars.ContextVar("variable", default="")
    variable.set("mine")
    with WorkerGroup(executor=pool) as group:
        assert group.spawn(variable.get).result(LONG) == "mine"


@pytest.mark.parametrize("on", ["threads", "executor"])
def test_as_completed_and_wait_take_what_spawn_returns(on, pool):
    gate = Channel()
    with WorkerGroup(executor=pool if on == "executor" else None) as group:
        slow = group.spawn(gate.recv, timeout=LONG)
        quick = group.spawn(pow, 2, 3)
        done, not_done = wait([slow, quick], timeout=LONG, return_when=concurrent.futures.FIRST_COMPLETED)
        assert (done, not_done) == ({quick}, {slow})
        gate.send("open", timeout=LONG)
        assert {future.result() for future in as_completed([slow, quick], timeout=LONG)} == {8, "open"}


# -- cancelling --------------------------------------------------------------------------------------------------------


def test_functions_that_have_not_begun_are_cancelled_with_the_group(busy):
    """And whoever waits for their futures hears of it at once, though the executor is busy with others."""
    called = []
    with WorkerGroup(executor=busy) as group:
        futures = [group.spawn(called.append, number) for number in range(3)]
        group.token.cancel("enough")
        done, _ = wait(futures, timeout=LONG)
        assert len(done) == 3
        assert all(future.cancelled() for future in as_completed(futures, timeout=LONG))
    busy.go_on()
    busy.shutdown()
    assert called == []


def test_the_first_failure_cancels_those_that_have_not_begun_and_waits_for_those_that_run():
    go_on, ended, called = threading.Barrier(3), [], []

    def runs(token):
        go_on.wait(LONG)
        try:
            wait_for_cancel(token)
        finally:
            ended.append(True)

    def fails():
        go_on.wait(LONG)
        raise ValueError("bad")

    with ThreadPoolExecutor(2) as pool:
        with pytest.raises(ExceptionGroup) as caught, WorkerGroup(executor=pool) as group:
            group.spawn(runs, group.token)
            group.spawn(fails)
            later = [group.spawn(called.append, number) for number in range(5)]
            go_on.wait(LONG)
        assert [str(error) for error in caught.value.exceptions] == ["bad"]
        assert ended == [True]
        assert all(future.cancelled() for future in later)
    assert called == []


def test_a_cancelled_future_is_not_called_and_not_waited_for(busy):
    called = []
    with WorkerGroup(executor=busy) as group:
        first, second = (group.spawn(called.append, number) for number in range(2))
        assert first.cancel()
        assert wait([first], timeout=LONG).done == {first}
        busy.go_on()
        second.result(LONG)
        assert not second.cancel()
    assert called == [1]


def test_leaving_does_not_wait_for_an_executor_that_is_busy_with_others(busy):
    """Once the token is cancelled: what was not begun is not owed to anybody."""
    with pytest.raises(ExceptionGroup), WorkerGroup(executor=busy) as group:
        group.spawn(print, "never")
        raise ValueError("of the block")
    assert not busy.submit(int).done()  # it is busy still


def test_a_parent_that_is_cancelled_is_told_though_nothing_had_begun(busy):
    """As where a function ended with `Cancelled`: what was asked for was not done."""
    parent = CancelToken()
    with pytest.raises(Cancelled) as caught, WorkerGroup(parent, executor=busy) as group:
        group.spawn(print, "never")
        parent.cancel("from above")
    assert caught.value.cause == "from above"


def test_a_function_is_begun_or_withdrawn_never_both():
    """Whichever comes first, the cancel or the executor; the other finds nothing to do."""
    for first in ("cancel", "begin"):
        called = []
        hand = Hand()
        with WorkerGroup(executor=hand) as group:
            future = group.spawn(called.append, 1)
            if first == "begin":
                hand.begin()
                group.token.cancel()
                assert future.result(LONG) is None
            else:
                group.token.cancel()
                hand.begin()
                assert future.cancelled()
        assert called == ([1] if first == "begin" else [])


def test_a_function_whose_turn_comes_after_the_cancel_is_not_called():
    """Where the callback of the token has not run yet: callbacks do not nest."""
    called, hand = [], Hand()
    outer = CancelToken()
    with WorkerGroup(executor=hand) as group:
        future = group.spawn(called.append, 1)

        def cancels_and_begins():
            group.token.cancel()
            hand.begin()

        outer.on_cancel(cancels_and_begins)
        outer.cancel()
    assert future.cancelled()
    assert called == []


def test_a_group_that_is_left_inside_a_callback_of_a_token_waits_for_nothing(busy):
    left = []

    def in_callback():
        with WorkerGroup(executor=busy) as group:
            group.spawn(print, "never")
            group.token.cancel()
        left.append(True)

    token = CancelToken()
    token.on_cancel(in_callback)
    token.cancel()
    assert left == [True]


# -- executors that fail -----------------------------------------------------------------------------------------------


def test_an_executor_that_is_shut_down_refuses(pool):
    with WorkerGroup(executor=pool) as group:
        pool.shutdown()
        with pytest.raises(RuntimeError, match="after shutdown"):
            group.spawn(print)
    assert repr(group) == "<WorkerGroup 'worker' closed, 0 running>"


def test_functions_that_the_executor_drops_are_not_waited_for(busy):
    """It was shut down with those that it has not begun."""
    with WorkerGroup(executor=busy) as group:
        future = group.spawn(print, "never")
        busy.shutdown(wait=False, cancel_futures=True)
        assert wait([future], timeout=LONG).done
        assert future.cancelled()


def test_an_executor_that_breaks_fails_the_group():
    def broken():
        raise OSError("no such device")

    pool = ThreadPoolExecutor(1, initializer=broken)
    with pytest.raises(ExceptionGroup) as caught, WorkerGroup(executor=pool) as group:
        try:
            future = group.spawn(print, "never")
        finally:
            pool.shutdown()
        assert isinstance(future.exception(LONG), concurrent.futures.thread.BrokenThreadPool)
    assert [type(error) for error in caught.value.exceptions] == [concurrent.futures.thread.BrokenThreadPool]


def test_executors_of_other_processes_are_refused():
    """Channels do not reach there: with a sentence, not with an error about pickling."""
    with (
        concurrent.futures.ProcessPoolExecutor(1) as pool,
        pytest.raises(TypeError, match="channels and cancel tokens connect the threads of one process"),
    ):
        WorkerGroup(executor=pool)
    interpreters = getattr(concurrent.futures, "InterpreterPoolExecutor", None)
    if interpreters is not None:
        with interpreters(1) as pool, pytest.raises(TypeError, match="InterpreterPoolExecutor"):
            WorkerGroup(executor=pool)


def test_an_executor_that_pickles_fails_the_group():
    """Of a library that is not known here."""
    import pickle

    class Elsewhere(concurrent.futures.Executor):
        def submit(self, fn, /, *args, **kwargs):
            future = Future()
            try:
                pickle.dumps((fn, args))
            except Exception as error:
                future.set_exception(error)
            return future

    with pytest.raises(ExceptionGroup) as caught, WorkerGroup(executor=Elsewhere()) as group:
        group.spawn(print, "never")
    assert all(isinstance(error, TypeError) for error in caught.value.exceptions)


@pytest.mark.parametrize("wrong", [7, "pool", print])
def test_an_executor_is_one_of_concurrent_futures(wrong):
    with pytest.raises(TypeError, match="executor must be one of"):
        WorkerGroup(executor=wrong)


# -- interrupts and memory ---------------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="needs POSIX signals")
def test_ctrl_c_while_leaving_cancels_what_has_not_begun(threads, busy):
    def press():
        member = next(iter(group._members))
        threads.parked(member.ended, receivers=1)
        while not group.token.cancelled:  # CPython loses sight of a signal that comes right before a lock is waited for
            os.kill(os.getpid(), signal.SIGINT)
            with contextlib.suppress(TimeoutError, ChannelClosed):
                group.token.done.recv(timeout=1)

    with pytest.raises(KeyboardInterrupt), WorkerGroup(executor=busy) as group:
        future = group.spawn(print, "never")
        threads.go(press)
    assert future.cancelled()


def test_an_interrupt_anywhere_in_spawn_leaves_nothing_to_wait_for(monkeypatch):
    """Between any two steps: the function runs as a member, or never."""
    monkeypatch.setattr(sys, "unraisablehook", lambda args: None)  # in a finalizer it is lost, as everything there
    number, hit = 0, True
    with ThreadPoolExecutor(1) as pool:
        while hit:
            called = []
            with WorkerGroup(executor=pool) as group:
                try:
                    hit = between(number, functools.partial(group.spawn, called.append, 1), press_ctrl_c)
                except KeyboardInterrupt:
                    hit = True
            at_the_end = len(called)
            pool.submit(int).result(LONG)  # whatever it was given before has had its turn
            assert len(called) == at_the_end, "it was called after the block was left"
            assert hit or called == [1]
            number += 1
    assert number > 10


def test_a_group_is_freed(pool):
    with WorkerGroup(executor=pool) as group:
        group.spawn(int)
    gone = weakref.ref(group)
    del group
    pool.submit(int).result(LONG)
    gc.collect()
    assert gone() is None
