"""What `WorkerGroup` promises: it joins all, the first failure cancels the rest, and nothing that is raised is lost."""

from __future__ import annotations

import contextlib
import contextvars
import functools
import gc
import logging
import os
import re
import signal
import sys
import threading
import traceback
import weakref
from concurrent.futures import Future

import pytest

from channels import Cancelled, CancelToken, Channel, ChannelClosed, WorkerGroup, _group
from support.waiting import eventually

LONG = 20


def wait_for_cancel(token: CancelToken) -> None:
    Channel().recv(timeout=LONG, cancel=token)


def fail(error: BaseException) -> None:
    raise error


def alive() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("worker ")]


# -- results -----------------------------------------------------------------------------------------------------------


def test_leaving_joins_every_thread():
    gate = Channel()
    seen = []

    def work(number):
        gate.recv(timeout=LONG)
        seen.append(number)

    with WorkerGroup() as group:
        futures = [group.spawn(work, number) for number in range(5)]
        for _ in futures:
            gate.send(None, timeout=LONG)
    assert sorted(seen) == list(range(5))
    assert all(isinstance(future, Future) and future.done() for future in futures)
    assert not alive()


def test_a_future_has_the_result_also_inside_the_block():
    with WorkerGroup() as group:
        inside = group.spawn(divmod, 7, 2).result(timeout=LONG)
        later = group.spawn(int, "101", base=2)
    assert inside == (3, 1)
    assert later.result(timeout=0) == 5
    assert not group.token.cancelled


def test_an_empty_group():
    with WorkerGroup() as group:
        pass
    assert "closed, 0 running" in repr(group)


def test_names_of_threads_tell_the_group_and_the_function():
    def job():
        return threading.current_thread().name

    with WorkerGroup(name="fetch") as group:
        first, second = group.spawn(job), group.spawn(threading.current_thread)
        assert "open" in repr(group)
    assert first.result().startswith("fetch 1: ")
    assert first.result().endswith("job")
    assert second.result().name == "fetch 2: current_thread"


def test_context_variables_travel_as_a_copy():
    variable = contextvars.ContextVar("variable")
    variable.set("mine")

    def work():
        before = variable.get()
        variable.set("theirs")
        return before

    with WorkerGroup() as group:
        future = group.spawn(work)
    assert future.result() == "mine"
    assert variable.get() == "mine"


def test_functions_may_spawn_also_while_leaving_waits(threads):
    leaving = Channel()
    seen = []

    def work(depth):
        if depth == 0:
            leaving.recv(timeout=LONG)
        seen.append(depth)
        if depth < 3:
            group.spawn(work, depth + 1)

    with WorkerGroup() as group:
        group.spawn(work, 0)
        threads.go(lambda: leaving.send(None, timeout=LONG))
    assert seen == [0, 1, 2, 3]


def test_many_short_functions_are_not_kept():
    """A group that lives as long as a server holds the running, not the ended."""
    with WorkerGroup() as group:
        for _ in range(1000):
            group.spawn(int).result(timeout=LONG)
        assert len(group._members) < 200


# -- failures ----------------------------------------------------------------------------------------------------------


def test_the_first_failure_cancels_the_rest():
    error = ValueError("first")
    with pytest.raises(ExceptionGroup) as caught, WorkerGroup() as group:
        waiting = [group.spawn(wait_for_cancel, group.token) for _ in range(3)]
        group.spawn(fail, error)
    assert caught.value.exceptions == (error,)
    assert group.token.cause is error
    for future in waiting:
        cancelled = future.exception(timeout=0)
        assert isinstance(cancelled, Cancelled)
        assert cancelled.cause is error
    assert not alive()


def test_who_waits_for_the_failed_future_finds_the_token_cancelled():
    with pytest.raises(ExceptionGroup), WorkerGroup() as group:
        future = group.spawn(fail, ValueError())
        assert isinstance(future.exception(timeout=LONG), ValueError)
        assert group.token.cancelled


def test_every_failure_is_in_the_group():
    line = threading.Barrier(3)

    def work(number):
        line.wait(LONG)
        raise ValueError(number)

    with pytest.raises(ExceptionGroup, match="unhandled errors in a WorkerGroup") as caught, WorkerGroup() as group:
        for number in range(3):
            group.spawn(work, number)
    assert sorted(error.args[0] for error in caught.value.exceptions) == [0, 1, 2]


def test_the_exception_of_the_block_cancels_and_comes_first_in_the_group():
    mine, theirs = KeyError("block"), ValueError("function")

    def work(token):
        try:
            wait_for_cancel(token)
        finally:
            raise theirs

    with pytest.raises(ExceptionGroup) as caught, WorkerGroup() as group:
        group.spawn(work, group.token)
        raise mine
    assert caught.value.exceptions == (mine, theirs)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__  # what is in the group is not said twice
    assert group.token.cause is mine


def test_the_block_s_own_exception_is_a_group_too():
    with pytest.raises(ExceptionGroup) as caught, WorkerGroup():
        raise KeyError("block")
    assert [type(error) for error in caught.value.exceptions] == [KeyError]


def test_the_traceback_leads_into_the_function():
    with pytest.raises(ExceptionGroup) as caught, WorkerGroup() as group:
        group.spawn(fail, ValueError("x"))
    (error,) = caught.value.exceptions
    assert traceback.extract_tb(error.__traceback__)[-1].name == "fail"


def test_a_block_that_was_cancelled_by_a_failure_adds_nothing():
    with pytest.raises(ExceptionGroup) as caught, WorkerGroup() as group:
        group.spawn(fail, ValueError())
        wait_for_cancel(group.token)
    assert [type(error) for error in caught.value.exceptions] == [ValueError]


def test_a_function_cancelled_by_a_token_of_others_cancels_the_rest_and_leaving_says_so():
    """Of a token of its own, say: nobody else would hear of it."""
    stranger = CancelToken()
    stranger.cancel("mine")
    with pytest.raises(Cancelled) as caught, WorkerGroup() as group:
        group.spawn(wait_for_cancel, stranger)
        group.spawn(wait_for_cancel, group.token)
    assert caught.value.cause == "mine"
    assert group.token.cancelled


def test_a_failure_counts_more_than_a_cancel_by_others():
    stranger = CancelToken()
    with pytest.raises(ExceptionGroup) as caught, WorkerGroup() as group:
        group.spawn(wait_for_cancel, stranger)

        def fail_then():
            with contextlib.suppress(Cancelled):
                wait_for_cancel(group.token)
            raise ValueError

        group.spawn(fail_then)
        stranger.cancel("mine")
    assert [type(error) for error in caught.value.exceptions] == [ValueError]


def test_a_nested_group_without_a_parent_keeps_a_cancel_orderly():
    """Its functions wait with the token of the outer group: they leave by `Cancelled`, and so does it."""
    inside = Channel()

    def inner(token):
        with WorkerGroup() as group:
            group.spawn(inside.recv, cancel=token)

    with WorkerGroup() as outer:
        outer.spawn(inner, outer.token)
        with contextlib.suppress(TimeoutError):
            Channel().recv(timeout=0.02)
        outer.token.cancel("bye")


def test_except_star():
    seen = []
    try:
        with WorkerGroup() as group:
            group.spawn(fail, OSError())
            group.spawn(fail, OSError())
    except* OSError as errors:
        seen = errors.exceptions
    assert seen


# -- not only Exception ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_in_a_function_is_raised_as_it_is(kind):
    error = kind("stop")
    with pytest.raises(kind) as caught, WorkerGroup() as group:
        waiting = group.spawn(wait_for_cancel, group.token)
        group.spawn(fail, error)
    assert caught.value is error
    assert error.__cause__ is None
    assert isinstance(waiting.exception(), Cancelled)


def test_an_interrupt_has_the_other_failures_as_its_cause():
    line = threading.Barrier(2)

    def work(error):
        line.wait(LONG)
        raise error

    with pytest.raises(SystemExit) as caught, WorkerGroup() as group:
        group.spawn(work, SystemExit(3))
        group.spawn(work, ValueError("also"))
    assert caught.value.code == 3
    assert isinstance(caught.value.__cause__, ExceptionGroup)
    assert [str(error) for error in caught.value.__cause__.exceptions] == ["also"]


def test_another_base_exception_makes_a_base_exception_group():
    class Odd(BaseException):
        pass

    with pytest.raises(BaseExceptionGroup) as caught, WorkerGroup() as group:
        group.spawn(fail, Odd())
    assert not isinstance(caught.value, ExceptionGroup)
    assert [type(error) for error in caught.value.exceptions] == [Odd]


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_a_base_exception_of_the_block_goes_on_as_it_is(kind):
    error = kind()
    with pytest.raises(kind) as caught, WorkerGroup() as group:
        waiting = group.spawn(wait_for_cancel, group.token)
        raise error
    assert caught.value is error
    assert isinstance(waiting.exception(), Cancelled)


def test_a_generator_that_is_closed_inside_a_group():
    def numbers():
        with WorkerGroup() as group:
            group.spawn(wait_for_cancel, group.token)
            yield 1
            yield 2

    generator = numbers()
    assert next(generator) == 1
    generator.close()
    assert not alive()


# -- cancelling --------------------------------------------------------------------------------------------------------


def test_cancelling_the_token_oneself_is_no_failure():
    with WorkerGroup() as group:
        waiting = group.spawn(wait_for_cancel, group.token)
        group.token.cancel("enough")
    assert waiting.exception().cause == "enough"


def test_a_parent_that_is_cancelled_cancels_the_functions_and_leaving_says_so():
    parent = CancelToken()
    with pytest.raises(Cancelled) as caught, WorkerGroup(parent) as group:
        waiting = group.spawn(wait_for_cancel, group.token)
        parent.cancel("from above")
    assert caught.value.cause == "from above"
    assert waiting.exception().cause == "from above"


def test_a_parent_that_is_cancelled_when_all_was_done_changes_nothing():
    parent = CancelToken()
    with WorkerGroup(parent) as group:
        future = group.spawn(int, "7")
        future.result(timeout=LONG)
        parent.cancel()
    assert future.result() == 7


def test_a_failure_does_not_cancel_the_parent():
    parent = CancelToken()
    with pytest.raises(ExceptionGroup), WorkerGroup(parent) as group:
        group.spawn(fail, ValueError())
    assert not parent.cancelled


def test_cancelled_in_the_block_goes_on_where_nothing_failed():
    parent = CancelToken()
    with pytest.raises(Cancelled) as caught, WorkerGroup(parent) as group:
        parent.cancel("up")
        wait_for_cancel(group.token)
    assert caught.value.cause == "up"


def test_spawn_on_a_cancelled_token_is_cancelled():
    with pytest.raises(ExceptionGroup) as caught, WorkerGroup() as group:
        group.spawn(fail, ValueError()).exception(timeout=LONG)
        group.spawn(int)
    assert [type(error) for error in caught.value.exceptions] == [ValueError]


def test_a_nested_group_is_cancelled_from_outside_and_fails_outwards():
    error = ValueError("inner")
    ready = Channel()

    def inner(token):
        with WorkerGroup(token, name="inner") as group:
            group.spawn(wait_for_cancel, group.token)
            ready.recv(timeout=LONG)
            group.spawn(fail, error)

    def sibling(token):
        with WorkerGroup(token, name="sibling") as group:
            deep = group.spawn(wait_for_cancel, group.token)
            ready.send(None, timeout=LONG)
        return deep

    with pytest.raises(ExceptionGroup) as caught, WorkerGroup() as group:
        group.spawn(inner, group.token)
        other = group.spawn(sibling, group.token)
    (nested,) = caught.value.exceptions
    assert isinstance(nested, ExceptionGroup)
    assert nested.exceptions == (error,)
    assert isinstance(other.exception(), Cancelled)  # not failed: it was told to stop
    assert other.exception().cause is nested


# -- use and misuse ----------------------------------------------------------------------------------------------------


def test_spawn_before_entering():
    with pytest.raises(RuntimeError, match="not entered"):
        WorkerGroup().spawn(int)


def test_spawn_after_leaving():
    with WorkerGroup() as group:
        pass
    with pytest.raises(RuntimeError, match="closed"):
        group.spawn(int)


def test_a_group_is_used_once():
    group = WorkerGroup()
    with group, pytest.raises(RuntimeError, match="once"):
        group.__enter__()
    with pytest.raises(RuntimeError, match="once"):
        group.__enter__()


def test_a_thread_that_cannot_start_leaves_nothing_to_wait_for(monkeypatch):
    def refuse(self):
        raise RuntimeError("can't start new thread")

    with pytest.raises(ExceptionGroup) as caught, WorkerGroup() as group:
        monkeypatch.setattr(threading.Thread, "start", refuse)
        group.spawn(int)
    assert "can't start new thread" in str(caught.value.exceptions[0])


def test_an_interrupt_right_after_the_start_leaves_a_member_like_any_other(monkeypatch):
    start = threading.Thread.start
    begun = Channel(1)

    def interrupted(self):
        start(self)
        begun.recv(timeout=LONG)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), WorkerGroup() as group:
        monkeypatch.setattr(threading.Thread, "start", interrupted)
        group.spawn(lambda: (begun.send(None), wait_for_cancel(group.token)))
    assert not alive()


def test_an_interrupt_before_the_thread_has_begun_means_that_it_never_does(monkeypatch):
    start = threading.Thread.start
    called = []

    def interrupted(self):
        held.append(self)
        raise KeyboardInterrupt

    held = []
    with pytest.raises(KeyboardInterrupt), WorkerGroup() as group:
        monkeypatch.setattr(threading.Thread, "start", interrupted)
        group.spawn(called.append, 1)
    start(held[0])  # the thread comes to life after all
    held[0].join(LONG)
    assert called == []


def test_a_cancelled_future_is_not_called_and_not_waited_for(monkeypatch):
    """`Future.cancel` in the moment before the thread has begun."""
    start = threading.Thread.start
    called = []

    def cancelled(self):
        for member in group._members:
            member.future.cancel()
        start(self)

    with WorkerGroup() as group:
        monkeypatch.setattr(threading.Thread, "start", cancelled)
        future = group.spawn(called.append, 1)
    assert future.cancelled()
    assert called == []


def test_spawning_from_anywhere_while_the_block_is_left(threads, switching):
    """Each spawn is either refused or waited for."""
    for _ in range(200):
        ran, spawned = [], []
        ready = threading.Barrier(2)

        def outsider(group, ran=ran, spawned=spawned, ready=ready):
            ready.wait(LONG)
            with contextlib.suppress(RuntimeError):
                group.spawn(ran.append, 1)
                spawned.append(1)

        with WorkerGroup() as group:
            task = threads.go(outsider, group)
            ready.wait(LONG)
        after_leaving = len(ran)
        task.result()
        assert len(ran) == len(spawned) == after_leaving


def test_who_spawns_in_the_moment_of_closing_is_waited_for():
    """Between the look at the members, of whom there are none, and the closing of the group."""
    gate, ran = Channel(), []

    class Members(dict):
        def __bool__(self):
            if len(self) or ran:
                return len(self) > 0
            ran.append("begun")
            group.spawn(work)
            threading.Timer(0.05, gate.close).start()
            return False

    def work():
        with contextlib.suppress(ChannelClosed):
            gate.recv(timeout=LONG)
        ran.append("ended")

    with WorkerGroup() as group:
        group._members = Members()
    assert ran == ["begun", "ended"]


def test_a_failed_group_is_freed_with_its_exception():
    """Without the help of the garbage collector: what the functions held must not outlive the failure by long."""

    class Thing:
        pass

    def work(thing):
        raise ValueError

    def attempt():
        thing = Thing()
        refs.append(weakref.ref(thing))
        with WorkerGroup() as group:
            group.spawn(work, thing)

    refs = []
    gc.disable()
    try:
        with contextlib.suppress(ExceptionGroup):
            attempt()
        if not getattr(sys, "_is_gil_enabled", lambda: True)():
            gc.collect()  # only the collector adds up a count that is in parts
        assert refs[0]() is None
    finally:
        gc.enable()


# -- Ctrl-C ------------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="needs POSIX signals")
def test_ctrl_c_while_leaving_cancels_and_keeps_joining(threads):
    ended = []
    inside = Channel()

    def stubborn(token):
        inside.send(None, timeout=LONG)
        try:
            wait_for_cancel(token)
        except Cancelled as cancelled:
            ended.append(cancelled.cause)
            raise

    def press():
        inside.recv(timeout=LONG)
        threads.parked(next(iter(group._members)).ended, receivers=1)
        while not group.token.cancelled:  # CPython loses sight of a signal that comes right before a lock is waited for
            os.kill(os.getpid(), signal.SIGINT)
            with contextlib.suppress(TimeoutError, ChannelClosed):
                group.token.done.recv(timeout=1)

    with pytest.raises(KeyboardInterrupt), WorkerGroup() as group:
        group.spawn(stubborn, group.token)
        threads.go(press)
    assert len(ended) == 1
    assert isinstance(ended[0], KeyboardInterrupt)
    assert not alive()


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="needs POSIX signals")
def test_a_second_ctrl_c_does_not_leave_threads_behind(threads):
    gate, inside = Channel(), Channel()

    def press():
        inside.recv(timeout=LONG)
        member = next(iter(group._members))
        for _ in range(3):
            threads.parked(member.ended, receivers=1)
            os.kill(os.getpid(), signal.SIGINT)
        gate.send(None, timeout=LONG)

    def deaf():
        inside.send(None, timeout=LONG)
        gate.recv(timeout=LONG)

    with pytest.raises(KeyboardInterrupt), WorkerGroup() as group:
        group.spawn(deaf)
        threads.go(press)
    assert not alive()


def test_an_exception_thrown_in_anywhere_while_leaving(threads, interrupt, switching):
    """As `Ctrl-C`, in a thread where it can be aimed: the wait goes on, and it is raised at the end."""
    for _ in range(30):
        gate, inside = Channel(), Channel()

        def work(gate=gate, inside=inside):
            inside.send(None, timeout=LONG)
            with pytest.raises(ChannelClosed):
                gate.recv(timeout=LONG)

        seen = []

        def leave(work=work, seen=seen):
            try:
                with WorkerGroup() as group:
                    group.spawn(work)
            finally:
                seen.append(len(group._members))

        task = threads.go(leave)
        inside.recv(timeout=LONG)
        interrupt(task)
        gate.close()
        with contextlib.suppress(KeyboardInterrupt):
            task.result()
        assert seen == [0]
    assert not alive()


def test_a_group_in_a_program_that_ends_by_sys_exit(script):
    out = script(
        "import sys, channels\n"
        "with channels.WorkerGroup() as group:\n"
        "    group.spawn(sys.exit, 3)\n"
        "    channels.Channel().recv(cancel=group.token)\n",
        status=3,
    )
    assert out == ""


# -- slips ------------------------------------------------------------------------------------------------------------


async def asynchronous():
    pass


class AsyncCall:
    async def __call__(self):
        pass


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (None, "takes a function to call, not None: pass the function itself"),
        (5, "not 5"),
        (asynchronous, "is async: run it with channels.aio.LoopThread"),
        (functools.partial(asynchronous), "is async"),
        (AsyncCall(), "is async"),
    ],
)
def test_spawn_takes_a_function(wrong, says):
    with WorkerGroup() as group, pytest.raises(TypeError, match=says):
        group.spawn(wrong)
    assert not group.token.cancelled


# -- who is waited for -------------------------------------------------------------------------------------------------


def test_after_an_interrupt_leaving_says_whom_it_waits_for(monkeypatch, caplog, threads):
    monkeypatch.setattr(_group, "PATIENCE", 0.05)
    go_on = Channel()

    def deaf():
        go_on.recv()

    def end():
        assert eventually(lambda: caplog.records)
        go_on.send(1)

    ender = threads.go(end)
    with caplog.at_level(logging.WARNING), pytest.raises(KeyboardInterrupt), WorkerGroup(name="crawl") as group:
        group.spawn(deaf)
        group.spawn(wait_for_cancel, group.token)
        threads.parked(go_on, receivers=1)
        raise KeyboardInterrupt
    ender.result()
    (record,) = caplog.records
    assert re.search(r"leaving <WorkerGroup 'crawl' .*> waits for crawl 1: .*deaf \(.*:\d+\)", record.message)
    assert "crawl 2" not in record.message


def test_an_interrupt_that_ends_in_time_says_nothing(caplog):
    with caplog.at_level(logging.WARNING), pytest.raises(KeyboardInterrupt), WorkerGroup() as group:
        group.spawn(wait_for_cancel, group.token)
        raise KeyboardInterrupt
    assert not caplog.records
