"""What `channels.aio` promises: `LoopThread` (call, start, iterate, close), `from_async` and `to_async`."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import itertools
import os
import signal
import sys
import threading
import time
import traceback
import weakref

import pytest

from channels import Cancelled, CancelToken, Channel, ChannelClosed, WouldBlock, after, select
from channels.aio import AsyncReceiver, Feed, LoopThread, TaskHandle, default_loop, from_async, to_async
from support.waiting import in_time

LONG = 20


@pytest.fixture
def loop():
    """A loop of the test's own; at the end of the test no task is left on it."""
    with LoopThread("test loop") as loop:
        yield loop
        if not loop.closed:
            left = loop.call(settled)
            assert not left, f"tasks left behind: {left}"


async def settled():
    """The tasks but this one, once those that are about to end have."""
    deadline = time.monotonic() + 5
    while True:
        left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        if not left or time.monotonic() > deadline:
            return left
        await asyncio.sleep(0.001)


def done(receiver, timeout=LONG):
    """Wait until a receiver closes."""
    with pytest.raises(ChannelClosed):
        receiver.recv(timeout=timeout)


needs_signals = pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs POSIX signals")
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


@pytest.fixture
def press(threads):
    """Presses Ctrl-C (this is the main thread) once something came through a channel; hands on the second argument.

    And again, until `caught` is closed: CPython loses sight of a signal that comes right before a lock is waited for.
    """

    class Press:
        caught = Channel()

        def when(self, channel, thing):
            def wait():
                channel.recv(timeout=LONG)
                while not self.caught.closed:
                    os.kill(os.getpid(), signal.SIGINT)
                    with contextlib.suppress(TimeoutError, ChannelClosed):
                        self.caught.recv(timeout=1)

            threads.go(wait)
            return thing

    return Press()


def freed(ref):
    """Wait until what ``ref`` refers to is gone, without the garbage collector where there is a GIL.

    (Without one, a count may be in parts, and only the collector adds them up.) The loop's thread may just be at it.
    """
    deadline = time.monotonic() + LONG
    while ref() is not None:
        assert time.monotonic() < deadline
        if not getattr(sys, "_is_gil_enabled", lambda: True)():
            gc.collect()
        time.sleep(0.001)


class Probe:
    """A coroutine function that says when it has begun and how it ended."""

    def __init__(self, stubborn=None):
        self.began = Channel(1)
        self.ended = Channel(1)
        self.stubborn = stubborn

    async def __call__(self):
        self.began.try_send(None)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError as error:
            if self.stubborn is not None:
                await to_async(self.stubborn).__anext__()
            self.ended.try_send(error)
            raise


class Source:
    """An asynchronous generator, and whether it was closed."""

    def __init__(self, values=(), then=None, wait=False):
        self.values, self.then, self.wait = values, then, wait
        self.made = []
        self.closed = Channel()
        self.waiting = Channel(1)

    def __aiter__(self):
        return self.generate()

    async def generate(self):
        try:
            for value in self.values:
                self.made.append(value)
                yield value
            if self.then is not None:
                raise self.then
            if self.wait:
                self.waiting.try_send(None)
                await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)  # cleaning up may take its time
            self.closed.close()


# -- importing ---------------------------------------------------------------------------------------------------------


def test_importing_channels_imports_neither_asyncio_nor_janus(script):
    out = script("import sys, channels; print([name for name in ('asyncio', 'janus') if name in sys.modules])")
    assert out == "[]\n"


# -- call --------------------------------------------------------------------------------------------------------------


def test_call_a_coroutine(loop):
    async def double(value):
        await asyncio.sleep(0)
        return 2 * value

    assert loop.call(double(4)) == 8


def test_call_a_coroutine_function_with_arguments(loop):
    async def where(*args):
        return args, threading.current_thread().name

    assert loop.call(where, 1, 2) == ((1, 2), "test loop")


def test_call_any_awaitable(loop):
    class Awaitable:
        def __await__(self):
            yield from asyncio.sleep(0).__await__()
            return 5

    assert loop.call(Awaitable()) == 5
    assert loop.call(lambda: asyncio.get_running_loop().run_in_executor(None, int, "6")) == 6


def test_call_what_is_not_awaitable(loop):
    with pytest.raises(TypeError, match="await"):
        loop.call(lambda: 5)
    with pytest.raises(TypeError):
        loop.call(5)


def test_exceptions_pass_with_their_traceback_cause_and_context(loop):
    async def inner():
        try:
            raise KeyError("context")
        except KeyError:
            raise ValueError("x") from OSError("cause")

    with pytest.raises(ValueError, match="x") as caught:
        loop.call(inner)
    assert [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)][-1] == "inner"
    assert isinstance(caught.value.__cause__, OSError)
    assert isinstance(caught.value.__context__, KeyError)


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, GeneratorExit])
def test_a_base_exception_reaches_the_caller_and_leaves_the_loop_running(loop, kind):
    async def leave():
        raise kind

    with pytest.raises(kind):
        loop.call(leave)
    assert loop.call(asyncio.sleep, 0, "alive") == "alive"


def test_the_exception_of_a_call_is_freed_with_it(loop):
    class Thing:
        pass

    async def work(thing):
        raise ValueError

    def attempt():
        thing = Thing()
        refs.append(weakref.ref(thing))
        loop.call(work, thing)

    refs = []
    gc.disable()
    try:
        with contextlib.suppress(ValueError):
            attempt()
        freed(refs[0])
    finally:
        gc.enable()


def test_a_timeout_cancels_the_task(loop):
    probe = Probe()
    with pytest.raises(TimeoutError, match=r"not done within 0\.02 s"):
        loop.call(probe, timeout=0.02)
    assert isinstance(probe.ended.recv(timeout=LONG), asyncio.CancelledError)


def test_a_timeout_error_of_the_coroutine_is_its_own(loop):
    async def late():
        async with asyncio.timeout(0.001):
            await asyncio.Event().wait()

    with pytest.raises(TimeoutError) as caught:
        loop.call(late, timeout=LONG)
    assert "not done" not in str(caught.value)


def test_a_cancel_token_cancels_the_task_and_the_caller_does_not_wait_for_it(loop, threads):
    gate = Channel()
    probe = Probe(stubborn=gate)
    token = CancelToken()
    task = threads.go(loop.call, probe, cancel=token)
    probe.began.recv(timeout=LONG)
    token.cancel("enough")
    assert task.raises(Cancelled).cause == "enough"
    with pytest.raises(WouldBlock):
        probe.ended.try_recv()  # the task ignores its cancellation for now
    gate.send(None, timeout=LONG)
    probe.ended.recv(timeout=LONG)


def test_a_call_with_a_token_that_is_done_begins_nothing(loop):
    began = []

    async def work():
        began.append(1)

    token = CancelToken()
    token.cancel("before")
    with pytest.raises(Cancelled, match="before"):
        loop.call(work(), cancel=token)
    loop.call(asyncio.sleep, 0)
    assert began == []


@needs_signals
def test_ctrl_c_in_the_caller_cancels_the_task(loop, press):
    probe = Probe()
    with pytest.raises(KeyboardInterrupt):
        loop.call(press.when(probe.began, probe))
    press.caught.close()
    assert isinstance(probe.ended.recv(timeout=LONG), asyncio.CancelledError)


@needs_signals
def test_ctrl_c_at_any_moment_of_a_call_leaves_no_task(loop):
    """A storm: signals every few microseconds, from a timer."""
    hits = 0
    began = ended = 0

    async def work():
        nonlocal began, ended
        began += 1
        try:
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        finally:
            ended += 1

    def handler(number, frame):
        nonlocal hits
        hits += 1
        raise KeyboardInterrupt

    def wait_for_it():
        for _ in range(1000):
            time.sleep(0.01)

    loop.call(asyncio.sleep, 0)
    previous = signal.signal(signal.SIGALRM, handler)
    try:
        for delay in range(300):
            try:
                signal.setitimer(signal.ITIMER_REAL, 1e-6 + delay % 60 * 4e-6)
                loop.call(work)
                wait_for_it()
            except KeyboardInterrupt:
                pass
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert hits == 300
    loop.call(settled)
    assert began == ended
    assert not loop._life.runs


def test_a_task_cancelled_on_the_loop_is_cancelled_in_the_caller(loop):
    async def give_up():
        asyncio.current_task().cancel("because")
        await asyncio.sleep(0)

    with pytest.raises(Cancelled) as caught:
        loop.call(give_up)
    assert caught.value.cause == "because"
    assert isinstance(caught.value.__cause__, asyncio.CancelledError)


def test_call_on_the_loop_s_own_thread_is_refused(loop):
    async def inner():
        pass

    async def outer():
        with pytest.raises(RuntimeError, match=r"call on the thread of test loop would stall"):
            loop.call(inner())  # and the coroutine is closed: no "never awaited"
        return "refused"

    assert loop.call(outer) == "refused"


def test_call_from_the_thread_of_another_loop(loop):
    async def outer():
        return loop.call(asyncio.sleep, 0, "inner")

    with LoopThread("other") as other:
        assert other.call(outer) == "inner"


def test_context_variables_travel_as_a_copy(loop):
    variable = contextvars.ContextVar("variable", default="nobody's")
    variable.set("mine")

    async def work():
        before = variable.get()
        variable.set("the task's")
        await asyncio.sleep(0)
        return before, variable.get()

    assert loop.call(work) == ("mine", "the task's")
    assert variable.get() == "mine"
    other = contextvars.Context()
    other.run(variable.set, "another")
    assert loop.call(work, context=other) == ("another", "the task's")
    assert other.run(variable.get) == "another"
    # Also one that this thread is in at the moment.
    assert other.run(lambda: loop.call(work, context=other)) == ("another", "the task's")


def test_calls_of_many_threads(loop, threads):
    async def double(value):
        await asyncio.sleep(0)
        return 2 * value

    def work(number):
        return [loop.call(double, number * 100 + i) for i in range(100)]

    results = threads.all(*(lambda number=number: work(number) for number in range(8)))
    assert results == [[2 * (number * 100 + i) for i in range(100)] for number in range(8)]


# -- start -------------------------------------------------------------------------------------------------------------


def test_start_tells_the_result_on_the_loop_s_thread(loop):
    told = Channel(1)
    handle = loop.start(
        asyncio.sleep, 0, "result", on_done=lambda *args: told.send((*args, threading.current_thread().name))
    )
    assert told.recv(timeout=LONG) == ("result", None, "test loop")
    done(handle.done)
    assert isinstance(handle, TaskHandle)
    assert "ended" in repr(handle)
    handle.cancel()  # harmless


def test_start_tells_an_exception(loop):
    told = Channel(1)

    async def fail():
        raise ValueError("x")

    loop.start(fail(), on_done=lambda *args: told.send(args))
    result, error = told.recv(timeout=LONG)
    assert result is None
    assert str(error) == "x"


def test_start_tells_a_cancellation_with_its_cause(loop):
    told = Channel(1)
    probe = Probe()
    handle = loop.start(probe, on_done=lambda *args: told.send(args))
    probe.began.recv(timeout=LONG)
    assert not handle.done.closed
    handle.cancel("why")
    error = told.recv(timeout=LONG)[1]
    assert isinstance(error, Cancelled)
    assert error.cause == "why"
    done(handle.done)


def test_a_task_that_is_cancelled_before_its_first_step(loop):
    told = Channel(2)
    began = []

    async def work():
        began.append(1)

    async def both():  # on the loop: nothing comes between
        loop.start(work(), on_done=lambda *args: told.send(args)).cancel("early")

    loop.call(both)
    assert told.recv(timeout=LONG)[1].cause == "early"
    assert began == []


def test_done_closes_after_on_done(loop):
    inside, gate = Channel(), Channel()

    def on_done(result, error):
        inside.send(None, timeout=LONG)
        gate.recv(timeout=LONG)

    handle = loop.start(asyncio.sleep, 0, on_done=on_done)
    inside.recv(timeout=LONG)
    assert not handle.done.closed
    gate.send(None, timeout=LONG)
    done(handle.done)


def test_a_failing_on_done_is_logged_and_harms_nobody(loop, caplog):
    def on_done(result, error):
        raise ZeroDivisionError

    done(loop.start(asyncio.sleep, 0, on_done=on_done).done)
    assert "on_done failed" in caplog.text
    assert loop.call(asyncio.sleep, 0, 1) == 1


def test_a_failure_nobody_asked_for_is_logged(loop, caplog):
    async def fail():
        raise ValueError("lost")

    done(loop.start(fail).done)
    assert "ValueError: lost" in caplog.text


def test_start_may_be_called_on_the_loop_s_thread(loop):
    async def outer():
        inner = loop.start(asyncio.sleep, 0)
        async for _ in to_async(inner.done):
            pass
        return inner.done.closed

    assert loop.call(outer) is True


# -- iterate -----------------------------------------------------------------------------------------------------------


def test_iterate_gives_all_values_in_order(loop):
    source = Source(range(1000))
    feed = loop.iterate(source)
    assert isinstance(feed, Feed)
    assert list(feed) == list(range(1000))
    assert list(feed) == []
    done(source.closed)


@pytest.mark.parametrize("buffer", [0, 1, 2, 64])
def test_iterate_with_every_buffer(loop, buffer):
    assert list(loop.iterate(Source(range(300)), buffer=buffer)) == list(range(300))


def test_iterate_takes_functions_and_coroutines_that_give_the_iterable(loop):
    async def connect():
        await asyncio.sleep(0)
        return Source("abc")

    assert list(loop.iterate(lambda: Source("abc"))) == ["a", "b", "c"]
    assert list(loop.iterate(connect)) == ["a", "b", "c"]
    assert list(loop.iterate(connect())) == ["a", "b", "c"]
    assert list(loop.iterate(Source("abc").generate)) == ["a", "b", "c"]


def test_iterate_over_what_is_not_asynchronous(loop):
    with pytest.raises(TypeError, match="asynchronous iterable"):
        loop.iterate([1, 2])
    with pytest.raises(TypeError):
        next(loop.iterate(lambda: [1, 2]))


def test_an_iterator_without_aclose(loop):
    class Plain:
        left = 3

        def __aiter__(self):
            return self

        async def __anext__(self):
            if not self.left:
                raise StopAsyncIteration
            self.left -= 1
            return self.left

    assert list(loop.iterate(Plain())) == [2, 1, 0]


def test_the_first_value_does_not_wait_for_the_second(loop):
    source = Source([1], wait=True)
    with loop.iterate(source) as feed:
        assert next(feed) == 1


def test_the_source_runs_ahead_by_the_buffer_and_one(loop, threads):
    source = Source(range(100))
    with loop.iterate(source, buffer=5) as feed:
        threads.parked(feed, senders=1)
        assert len(source.made) == 6
        assert next(feed) == 0
        threads.parked(feed, senders=1)
        assert len(source.made) == 7


def test_an_exception_comes_after_the_values_before_it_and_once(loop):
    feed = loop.iterate(Source([1, 2], then=ValueError("x")))
    done(feed.done)
    assert next(feed) == 1
    assert next(feed) == 2
    with pytest.raises(ValueError, match="x") as caught:
        next(feed)
    assert "generate" in [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
    assert caught.value.__cause__ is None
    assert not caught.value.__suppress_context__
    assert list(feed) == []


def test_a_source_that_raises_channel_closed_has_failed(loop):
    """It is an exception of the source like any other, not the end."""
    feed = loop.iterate(Source([1], then=ChannelClosed("of the source")))
    assert next(feed) == 1
    with pytest.raises(ChannelClosed, match="of the source"):
        next(feed)


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt])
def test_a_base_exception_of_the_source_reaches_the_consumer(loop, kind):
    feed = loop.iterate(Source([1], then=kind()))
    assert next(feed) == 1
    with pytest.raises(kind):
        next(feed)
    assert list(feed) == []


def test_close_cancels_the_task_and_closes_the_generator(loop):
    source = Source([1, 2], wait=True)
    feed = loop.iterate(source)
    source.waiting.recv(timeout=LONG)
    feed.close()
    assert source.closed.closed
    assert feed.done.closed
    assert feed.closed
    assert list(feed) == []  # what was there is dropped
    with pytest.raises(ChannelClosed):
        feed.recv()
    feed.close()


class Cleanup:
    """Awaited by the cleanup of a task: says that it has begun, goes on when told to, and knows whether it was let."""

    def __init__(self):
        self.began, self.gate = Channel(1), Channel()
        self.ended = None

    async def __call__(self):
        self.began.try_send(None)
        self.ended = False
        async for _ in to_async(self.gate):
            pass
        self.ended = True


def test_cleaning_up_is_not_disturbed_by_a_second_cancel(loop):
    """The token cancels, and leaving the block does: one of them is enough."""
    token = CancelToken()
    cleanup = Cleanup()

    async def source():
        try:
            yield 1
            await asyncio.Event().wait()
        finally:
            await cleanup()

    with pytest.raises(Cancelled), loop.iterate(source(), cancel=token) as feed:
        for _ in feed:
            token.cancel()
    cleanup.began.recv(timeout=LONG)
    feed.close(timeout=0)
    loop.call(asyncio.sleep, 0)
    cleanup.gate.close()
    done(feed.done)
    assert cleanup.ended

    async def work():
        try:
            await asyncio.Event().wait()
        finally:
            await again()

    again = Cleanup()
    handle = loop.start(work)
    loop.call(asyncio.sleep, 0)
    handle.cancel()
    again.began.recv(timeout=LONG)
    handle.cancel()
    loop.call(asyncio.sleep, 0)
    again.gate.close()
    done(handle.done)
    assert again.ended


def test_a_source_that_cleans_up_by_itself_is_not_cancelled(loop):
    class Ending:
        cleanup = Cleanup()

        def __aiter__(self):
            return self

        async def __anext__(self):
            raise StopAsyncIteration

        async def aclose(self):
            await self.cleanup()

    source = Ending()
    feed = loop.iterate(source)
    source.cleanup.began.recv(timeout=LONG)
    feed.close(timeout=0)
    loop.call(asyncio.sleep, 0)
    source.cleanup.gate.close()
    done(feed.done)
    assert source.cleanup.ended


def test_close_frees_a_source_that_waits_for_room(loop, threads):
    source = Source(range(100))
    feed = loop.iterate(source, buffer=2)
    threads.parked(feed, senders=1)
    feed.close()
    assert source.closed.closed


def test_leaving_the_block_closes(loop):
    source = Source(range(1000))
    with pytest.raises(ZeroDivisionError), loop.iterate(source) as feed:
        next(feed)
        raise ZeroDivisionError
    assert source.closed.closed


def test_close_frees_a_consumer_in_another_thread(loop, threads):
    feed = loop.iterate(Source(wait=True))
    task = threads.go(list, feed)
    threads.parked(feed, receivers=1)
    feed.close()
    assert task.result() == []


def test_close_is_bounded_where_the_source_ignores_it(loop, threads):
    gate = Channel()

    async def stubborn():
        try:
            yield 1
            await asyncio.Event().wait()
        finally:
            async for _ in to_async(gate):
                pass

    feed = loop.iterate(stubborn())
    assert next(feed) == 1
    began = time.monotonic()
    feed.close(timeout=0.05)
    assert 0.04 < time.monotonic() - began < 5
    assert not feed.done.closed
    gate.close()
    done(feed.done)


def test_a_cancel_token_ends_a_parked_wait_and_the_task(loop, threads):
    source = Source(wait=True)
    token = CancelToken()
    feed = loop.iterate(source, cancel=token)
    task = threads.go(next, feed)
    source.waiting.recv(timeout=LONG)
    threads.parked(feed, receivers=1)
    token.cancel("stop")
    assert task.raises(Cancelled).cause == "stop"
    done(source.closed)
    assert list(feed) == []


def test_leaving_the_block_after_a_cancel_does_not_wait(loop):
    """Not for the grace time, which is one second."""
    assert in_time(lambda: left_after_a_cancel(loop), 0.5)


def left_after_a_cancel(loop):
    gate = Channel()
    token = CancelToken()

    async def stubborn():
        try:
            yield 1
            await asyncio.Event().wait()
        finally:
            async for _ in to_async(gate):
                pass

    with pytest.raises(Cancelled), loop.iterate(stubborn(), cancel=token) as feed:
        for _ in feed:
            token.cancel()
            began = time.monotonic()
    took = time.monotonic() - began
    gate.close()
    done(feed.done)
    return took


@needs_signals
def test_ctrl_c_in_the_consumer_loses_nothing(loop, press):
    source = Source([1], wait=True)
    with loop.iterate(source) as feed:
        assert next(feed) == 1
        with pytest.raises(KeyboardInterrupt):
            next(press.when(source.waiting, feed))
        press.caught.close()
        with pytest.raises(TimeoutError):
            feed.recv(timeout=0.01)
    assert source.closed.closed


@needs_signals
def test_ctrl_c_at_any_moment_of_an_iteration_loses_nothing(loop):
    hits = 0

    def handler(number, frame):
        nonlocal hits
        while frame is not None and frame.f_code is not Feed.__next__.__code__:
            frame = frame.f_back
        if frame is not None:  # elsewhere the value would be this test's to lose
            hits += 1
            raise KeyboardInterrupt
        signal.setitimer(signal.ITIMER_REAL, 0.0001)

    previous = signal.signal(signal.SIGALRM, handler)
    seen = []
    try:
        with loop.iterate(Source(range(4000)), buffer=4) as feed:
            while not seen or seen[-1] != 3999:
                try:
                    signal.setitimer(signal.ITIMER_REAL, 0.0002)
                    for value in feed:
                        seen.append(value)
                except KeyboardInterrupt:
                    pass
            signal.setitimer(signal.ITIMER_REAL, 0)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert hits
    assert seen == list(range(4000))


@pytest.mark.parametrize("buffer", [0, 1, 2, 64])
def test_batches_bring_every_value_once_and_in_order(loop, buffer):
    assert [value for batch in loop.iterate(Source(range(300)), buffer=buffer).batches() for value in batch] == list(
        range(300)
    )


def test_a_batch_is_what_has_piled_up_and_makes_room(loop, threads):
    source = Source(range(8))
    with loop.iterate(source, buffer=5) as feed:
        batches = feed.batches()
        threads.parked(feed, senders=1)
        assert list(next(batches)) == [0]  # the one that it waited for, at once
        threads.parked(feed, senders=1)
        assert list(next(batches)) == [1, 2, 3, 4, 5]
        assert [value for batch in batches for value in batch] == [6, 7]


def test_the_first_value_of_a_batch_does_not_wait_for_the_second(loop):
    with loop.iterate(Source([1], wait=True)) as feed:
        batches = feed.batches()
        assert list(next(batches)) == [1]
        assert list(next(batches)) == []


def test_the_exception_of_the_source_comes_after_the_last_batch(loop):
    seen = []
    feed = loop.iterate(Source([1, 2], then=ValueError("x")))
    with pytest.raises(ValueError, match="x"):
        for batch in feed.batches():
            seen += batch
    assert seen == [1, 2]


def test_an_exception_at_any_point_of_taking_a_batch_puts_it_back(loop, threads):
    """At each line of `Channel._take_many`, as Ctrl-C and `PyThreadState_SetAsyncExc` do it."""
    taking = Channel._take_many.__code__
    line = 0
    while True:
        reached = 0

        def trace(frame, event, arg):
            nonlocal reached
            if frame.f_code is not taking:
                return None
            if event == "line":
                reached += 1
                if reached == line:
                    raise KeyboardInterrupt
            return trace

        with loop.iterate(Source(range(4)), buffer=3) as feed:
            threads.parked(feed, senders=1)
            previous = sys.gettrace()
            sys.settrace(trace)
            try:
                values = list(feed._channel.take_all())
            except KeyboardInterrupt:
                values = []
            finally:
                sys.settrace(previous)
            assert values + list(feed) == [0, 1, 2, 3], line
        line += 1
        if line > reached + 1:
            break
    assert line > 8


def test_a_dropped_feed_cancels_its_task(loop):
    source = Source([1, 2], wait=True)
    feed = loop.iterate(source)
    assert next(feed) == 1
    source.waiting.recv(timeout=LONG)
    del feed
    done(source.closed)


def test_a_dropped_feed_cancels_a_task_that_waits_for_room(loop, threads):
    source = Source(range(100))
    feed = loop.iterate(source, buffer=2)
    threads.parked(feed, senders=1)
    del feed
    done(source.closed)


def test_a_for_loop_over_a_temporary_keeps_the_task(loop):
    assert sum(loop.iterate(Source(range(500)), buffer=1)) == sum(range(500))


def test_a_feed_holds_no_value_that_was_consumed(loop):
    class Thing:
        pass

    async def source():
        thing = Thing()
        refs.append(weakref.ref(thing))
        yield thing
        del thing
        waiting.try_send(None)
        await asyncio.Event().wait()

    refs, waiting = [], Channel(1)
    with loop.iterate(source()) as feed:
        next(feed)
        waiting.recv(timeout=LONG)
        freed(refs[0])


def test_iterating_on_the_loop_s_own_thread_is_refused(loop):
    async def outer():
        feed = loop.iterate(Source([1], wait=True))
        with pytest.raises(RuntimeError, match="iterating on the thread of test loop"):
            next(feed)
        with pytest.raises(RuntimeError, match="receiving"):
            feed.recv(timeout=1)
        with pytest.raises(TimeoutError):
            feed.recv(timeout=0)  # waits for nothing
        async for value in to_async(feed):  # this is the way
            assert value == 1
            break
        feed.close()
        return feed

    done(loop.call(outer).done)


def test_a_source_that_never_waits_leaves_other_tasks_their_turn(loop):
    stopped = False

    async def busy():
        made = 0
        while not stopped and made < 10_000_000:  # it ends by itself only where the other task never had its turn
            made += 1
            yield made

    async def stop():
        nonlocal stopped
        stopped = True

    with loop.iterate(busy(), buffer=20_000_000) as feed:
        assert next(feed) == 1
        loop.call(stop)
        assert max(feed, default=1) < 10_000_000


def test_context_variables_in_a_source(loop):
    variable = contextvars.ContextVar("variable", default="nobody's")
    variable.set("mine")

    async def source():
        yield variable.get()
        await asyncio.sleep(0)
        yield variable.get()

    assert list(loop.iterate(source())) == ["mine", "mine"]
    other = contextvars.Context()
    assert list(loop.iterate(source(), context=other)) == ["nobody's", "nobody's"]


def test_several_threads_share_a_feed(loop, threads):
    feed = loop.iterate(Source(range(2000)))
    parts = threads.all(*[lambda: list(feed)] * 4)
    assert sorted(value for part in parts for value in part) == list(range(2000))


def test_a_failing_cleanup_that_nobody_waits_for_is_logged(loop, caplog):
    async def source():
        try:
            yield 1
            await asyncio.Event().wait()
        finally:
            raise ValueError("in the cleanup")

    feed = loop.iterate(source())
    next(feed)
    feed.close()
    assert "in the cleanup" in caplog.text


# -- from_async --------------------------------------------------------------------------------------------------------


def test_from_async_is_a_case_of_select(loop):
    first = from_async(Source("ab", wait=True), loop=loop)
    second = from_async(Source(wait=True), loop=loop)
    try:
        for expected in "ab":
            index, value, ok, case = select(second, first, timeout=LONG)
            assert (index, value, ok, case) == (1, expected, True, first)
        assert select(first, second, after(0.01)).index == 2
    finally:
        first.close()
        second.close()


def test_from_async_on_the_default_loop():
    with from_async(Source("abc")) as feed:
        assert feed.recv(timeout=LONG) == "a"
        assert list(feed) == ["b", "c"]


def test_recv_raises_the_error_of_the_source_to_every_receiver(loop):
    feed = from_async(Source([1], then=ValueError("x")), loop=loop)
    assert feed.recv(timeout=LONG) == 1
    depths = []
    for _ in range(3):
        with pytest.raises(ValueError, match="x") as caught:
            feed.recv(timeout=LONG)
        depths.append(len(traceback.extract_tb(caught.value.__traceback__)))
    with pytest.raises(ValueError, match="x"):
        feed.try_recv()
    assert len(set(depths)) == 1  # the traceback does not grow


def test_a_select_sees_a_failed_feed_as_closed_and_recv_tells_why(loop):
    feed = from_async(Source(then=ValueError("x")), loop=loop)
    assert select(feed, timeout=LONG).ok is False
    with pytest.raises(ValueError, match="x"):
        feed.recv()


def test_a_parked_receiver_gets_the_error(loop, threads):
    gate = Channel()

    async def source():
        async for _ in to_async(gate):
            pass
        raise ValueError("x")
        yield

    feed = from_async(source(), loop=loop)
    task = threads.go(feed.recv)
    threads.parked(feed, receivers=1)
    gate.close()
    assert str(task.raises(ValueError)) == "x"


def test_an_iterator_of_the_channel_keeps_the_task(loop):
    """Whoever can still receive is somebody."""
    source = Source([1, 2], wait=True)
    feed = from_async(source, loop=loop)
    view = feed._channel.receiver
    del feed
    assert view.recv(timeout=LONG) == 1
    assert view.recv(timeout=LONG) == 2
    assert not source.closed.closed
    del view
    done(source.closed)


# -- the life of a loop ------------------------------------------------------------------------------------------------


def test_it_starts_with_its_first_use_and_ends_with_close():
    loop = LoopThread("life")
    names = [thread.name for thread in threading.enumerate()]
    assert "life" not in names
    assert "idle" in repr(loop)
    loop.call(asyncio.sleep, 0)
    assert "running" in repr(loop)
    assert loop.loop.is_running()
    thread = loop._life.thread
    assert thread.daemon
    loop.close()
    assert not thread.is_alive()
    assert loop.closed
    assert "closed" in repr(loop)
    loop.close()


def test_many_threads_that_use_it_first_start_one_loop(threads, switching):
    for _ in range(20):
        with LoopThread("first") as loop:
            loops = threads.all(*[lambda loop=loop: loop.loop] * 4)
            assert len(set(map(id, loops))) == 1


def test_a_closed_loop_says_so():
    loop = LoopThread("shut")
    loop.close()

    async def work():
        pass

    for use in (lambda: loop.call(work()), lambda: loop.start(work()), lambda: loop.iterate(work()), lambda: loop.loop):
        with pytest.raises(RuntimeError, match="shut is closed"):
            use()


def test_close_cancels_tasks_and_runs_them_to_their_end(threads):
    loop = LoopThread("closing")
    order = []

    async def work():
        try:
            await asyncio.Event().wait()
        finally:
            for step in range(5):
                await asyncio.sleep(0)
                order.append(step)

    began = Channel()

    async def starting():
        began.close()
        await work()

    handle = loop.start(starting)
    done(began)
    loop.close()
    assert order == list(range(5))
    assert handle.done.closed


def test_close_leaves_a_task_to_its_cleanup_that_was_cancelled_before():
    loop = LoopThread("closing")
    steps = []

    async def work():
        try:
            await asyncio.Event().wait()
        finally:
            for step in range(20):
                await asyncio.sleep(0.001)
                steps.append(step)

    handle = loop.start(work)
    loop.call(asyncio.sleep, 0)
    handle.cancel()
    loop.close()
    assert steps == list(range(20))


def test_close_frees_who_waits_for_the_loop(threads):
    loop = LoopThread("closing")
    probe, source = Probe(), Source([1], wait=True)
    call = threads.go(loop.call, probe)
    feed = loop.iterate(source)
    assert next(feed) == 1
    consumer = threads.go(next, feed)
    probe.began.recv(timeout=LONG)
    threads.parked(feed, receivers=1)
    told = Channel(1)
    loop.start(Probe(), on_done=lambda *args: told.send(args))
    loop.close()
    assert call.raises(Cancelled).cause == "closing was closed"
    assert consumer.raises(Cancelled).cause == "closing was closed"
    assert told.recv(timeout=LONG)[1].cause == "closing was closed"
    assert source.closed.closed


def test_close_closes_generators_that_somebody_left_open():
    loop = LoopThread("closing")
    closed = []

    async def generator():
        try:
            yield 1
            yield 2
        finally:
            closed.append(1)

    kept = []

    async def leave_open():
        kept.append(generator())
        await kept[0].__anext__()

    loop.call(leave_open)
    loop.close()
    assert closed == [1]


def test_close_is_bounded_where_a_task_ignores_it(caplog):
    loop = LoopThread("closing")
    began = Channel()

    async def deaf():
        began.close()
        for _ in range(100):
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(10)

    handle = loop.start(deaf())
    done(began)
    before = time.monotonic()
    loop.close(timeout=0.05)
    assert time.monotonic() - before < 2
    assert "ignored its cancellation" in caplog.text
    assert "deaf" in caplog.text
    assert handle.done.closed
    gc.collect()


def test_close_is_bounded_where_the_thread_is_blocked(threads, caplog):
    """And who waits for a task on it is freed."""
    loop = LoopThread("closing")
    gate, began = Channel(), Channel()

    async def block():
        began.close()
        with contextlib.suppress(ChannelClosed):
            gate.recv(timeout=LONG)

    probe = Probe()
    call = threads.go(loop.call, probe)
    probe.began.recv(timeout=LONG)
    handle = loop.start(block)
    done(began)
    before = time.monotonic()
    loop.close(timeout=0.05)
    assert time.monotonic() - before < 2
    assert "blocks its thread" in caplog.text
    call.raises(Cancelled)
    assert handle.done.closed
    gate.close()
    loop._life.thread.join(LONG)


def test_close_does_not_wait_for_the_default_executor():
    loop = LoopThread("closing")
    gate, began = Channel(), Channel()

    def blocked():
        began.close()
        with contextlib.suppress(ChannelClosed):
            gate.recv(timeout=LONG)

    loop.start(asyncio.to_thread, blocked)
    done(began)
    before = time.monotonic()
    loop.close()
    assert time.monotonic() - before < 2
    gate.close()


def test_close_on_the_loop_s_own_thread_only_begins():
    loop = LoopThread("closing")

    async def work():
        loop.close()
        await asyncio.Event().wait()

    with pytest.raises(Cancelled):
        loop.call(work)
    done(loop._life.ended.receiver)
    loop.close()


def test_two_threads_may_close(threads):
    loop = LoopThread("closing")
    loop.call(asyncio.sleep, 0)
    threads.all(*[loop.close] * 3)


def test_using_while_closing_ends_well(threads, switching):
    """Each call is carried out, cancelled or refused."""
    for _ in range(50):
        loop = LoopThread("closing")

        def use(loop=loop):
            seen = set()
            while True:
                try:
                    seen.add(loop.call(asyncio.sleep, 0, "done"))
                except Cancelled:
                    seen.add("cancelled")
                except RuntimeError as error:
                    assert "closed" in str(error)  # noqa: PT017
                    return seen

        users = [threads.go(use) for _ in range(3)]
        loop.call(asyncio.sleep, 0)
        loop.close()
        for user in users:
            user.result()


def test_a_dropped_loop_closes_when_its_last_task_has_ended():
    gate = Channel()

    async def work():
        async for _ in to_async(gate):
            pass

    loop = LoopThread("dropped")
    handle = loop.start(work)
    life = loop._life
    del loop
    gc.collect()
    assert not handle.done.closed
    gate.close()
    done(handle.done)
    del handle
    done(life.ended)
    life.thread.join(LONG)


def test_somebody_stops_the_loop(loop, caplog):
    """It is not theirs to stop: it goes on."""

    async def stop():
        asyncio.get_running_loop().stop()

    loop.call(stop)
    assert loop.call(asyncio.sleep, 0, 1) == 1
    loop.loop.call_soon_threadsafe(exit)
    assert loop.call(asyncio.sleep, 0, 2) == 2
    assert "the loop, which goes on" in caplog.text


def test_the_default_loop_is_one_and_a_new_one_when_closed():
    first = default_loop()
    assert default_loop() is first
    assert first.call(asyncio.sleep, 0, 1) == 1
    first.close()
    second = default_loop()
    assert second is not first
    assert second.call(asyncio.sleep, 0, 2) == 2


def test_helpers_run_at_the_same_time_and_carry_exceptions(loop):
    line = threading.Barrier(4)

    async def work():
        return await asyncio.gather(*(asyncio.to_thread(line.wait, LONG) for _ in range(4)))

    assert sorted(loop.call(work)) == [0, 1, 2, 3]

    async def fail():
        await asyncio.to_thread(int, "x")

    with pytest.raises(ValueError, match="invalid literal"):
        loop.call(fail)
    host = loop.call(lambda: asyncio.get_running_loop().getaddrinfo("127.0.0.1", 80))
    assert host


def test_helpers_queue_beyond_their_number(loop):
    async def work():
        return await asyncio.gather(*(asyncio.to_thread(int, i) for i in range(200)))

    assert loop.call(work) == list(range(200))


# -- to_async ----------------------------------------------------------------------------------------------------------


def test_to_async_gives_what_is_there_and_what_comes(threads):
    channel = Channel(4)

    def produce():
        with channel:
            for value in range(500):
                channel.send(value, timeout=LONG)

    async def main():
        receiver = to_async(channel)
        assert isinstance(receiver, AsyncReceiver)
        return [value async for value in receiver]

    task = threads.go(produce)
    assert asyncio.run(main()) == list(range(500))
    task.result()


@pytest.mark.parametrize("capacity", [0, 1, 128])
def test_to_async_with_every_capacity(threads, capacity, switching):
    channel = Channel(capacity)

    def produce():
        for value in range(1000):
            channel.send(value, timeout=LONG)
        channel.close(final="last")

    async def main():
        return [value async for value in to_async(channel.receiver)]

    threads.go(produce)
    assert asyncio.run(main()) == [*range(1000), "last"]


def test_to_async_does_not_block_the_loop(threads):
    channel = Channel()

    async def main():
        waiting = asyncio.ensure_future(to_async(channel).__anext__())
        for _ in range(10):
            await asyncio.sleep(0)
        assert not waiting.done()
        threads.parked(channel, receivers=1)
        threads.go(channel.send, "value")
        return await waiting

    assert asyncio.run(main()) == "value"


def test_a_task_of_a_full_channel_leaves_others_their_turn():
    channel = Channel(1000)
    for value in range(1000):
        channel.send(value)
    channel.close()
    turns = 0

    async def other():
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def main():
        task = asyncio.ensure_future(other())
        async for _ in to_async(channel):
            pass
        task.cancel()

    asyncio.run(main())
    assert turns > 5


def test_a_cancelled_task_takes_nothing():
    channel = Channel(2)

    async def main():
        receiver = to_async(channel)
        for _ in range(5):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.001):
                    await receiver.__anext__()
        channel.send("first")
        channel.send("second")
        assert await receiver.__anext__() == "first"

    asyncio.run(main())
    assert channel.recv(timeout=0) == "second"
    assert not [waiter for waiter in channel._receivers if not waiter.done]


def test_a_value_handed_to_a_cancelled_task_goes_back_to_the_front(threads):
    """Handed over by the sender, but the loop has not come to it when the task is cancelled."""
    channel = Channel(2)

    async def main():
        receiver = to_async(channel)
        task = asyncio.ensure_future(receiver.__anext__())
        while not channel._receivers:
            await asyncio.sleep(0)
        channel.send("handed over")  # the loop's thread itself: it hears of it later
        channel.send("second")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert len(channel) == 2
        return [await receiver.__anext__(), await receiver.__anext__()]

    assert asyncio.run(main()) == ["handed over", "second"]


def test_cancelling_and_sending_at_the_same_time_loses_nothing(threads, switching):
    channel = Channel()
    count = 500
    seen = []
    attempts = itertools.count()

    def produce():
        with channel:
            for value in range(count):
                channel.send(value, timeout=LONG)

    async def main():
        receiver = to_async(channel)
        while True:
            task = asyncio.ensure_future(receiver.__anext__())
            for _ in range(next(attempts) % 20):
                await asyncio.sleep(0)
            task.cancel()
            try:
                seen.append(await task)
            except asyncio.CancelledError:
                await asyncio.sleep(0)
            except StopAsyncIteration:
                return

    threads.go(produce)
    asyncio.run(main())
    assert seen == list(range(count))


def test_aclose_ends_the_iteration_also_of_waiting_tasks(threads):
    channel = Channel(1)

    async def main():
        receiver = to_async(channel)

        async def consume():
            return [value async for value in receiver]

        tasks = [asyncio.ensure_future(consume()) for _ in range(3)]
        while sum(not waiter.done for waiter in channel._receivers) < 3:
            await asyncio.sleep(0)
        await receiver.aclose()
        assert await asyncio.gather(*tasks) == [[], [], []]
        channel.send("stays")
        assert [value async for value in receiver] == []
        await receiver.aclose()

    asyncio.run(main())
    assert channel.recv(timeout=0) == "stays"
    assert not channel.closed


def test_leaving_the_async_with_block_closes():
    channel = Channel(4)
    for value in range(4):
        channel.send(value)

    async def main():
        async with to_async(channel) as receiver:
            async for value in receiver:
                assert value == 0
                break
        with pytest.raises(StopAsyncIteration):
            await receiver.__anext__()

    asyncio.run(main())
    assert [channel.recv(timeout=0) for _ in range(3)] == [1, 2, 3]


def test_several_tasks_share_an_iterator(threads):
    channel = Channel(8)

    def produce():
        with channel:
            for value in range(900):
                channel.send(value, timeout=LONG)

    async def main():
        receiver = to_async(channel)

        async def consume():
            seen = []
            async for value in receiver:
                seen.append(value)
                await asyncio.sleep(0)
            return seen

        parts = await asyncio.gather(*(consume() for _ in range(3)))
        assert all(parts)
        return sorted(value for part in parts for value in part)

    threads.go(produce)
    assert asyncio.run(main()) == list(range(900))


def test_one_iterator_in_one_loop_after_another(threads):
    channel = Channel()

    async def take():
        return await receiver.__anext__()

    receiver = to_async(channel)
    for value in range(3):
        threads.go(channel.send, value)
        assert asyncio.run(take()) == value


def test_tasks_and_threads_receive_from_one_channel(loop, threads, switching):
    channel = Channel(2)

    async def consume():
        return [value async for value in to_async(channel)]

    def produce():
        with channel:
            for value in range(1000):
                channel.send(value, timeout=LONG)

    parts = threads.all(
        produce, lambda: loop.call(consume), lambda: list(channel), lambda: asyncio.run(consume()), timeout=60
    )[1:]
    assert sorted(value for part in parts for value in part) == list(range(1000))


def test_a_loop_that_closes_under_a_waiting_task_takes_nothing(threads):
    """Its run ends, the task is never cancelled: whatever the channel hands over afterwards comes back."""
    channel = Channel(3)
    other = asyncio.new_event_loop()
    receiver = to_async(channel)

    async def wait():
        waiting.append(asyncio.ensure_future(receiver.__anext__()))
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    waiting = []
    other.run_until_complete(wait())
    threads.parked(channel, receivers=1)
    other.close()
    channel.send("late")
    assert channel.recv(timeout=LONG) == "late"
    waiting[0]._log_destroy_pending = False
    waiting.clear()
    gc.collect()


def test_a_coroutine_that_is_destroyed_while_it_waits_takes_nothing(threads):
    channel = Channel(3)

    async def main():
        coroutine = to_async(channel).__anext__()
        coroutine.send(None)  # as far as its wait
        threads.parked(channel, receivers=1)
        del coroutine
        threads.parked(channel, receivers=0)  # withdrawn in the background: a finalizer may not wait for locks
        channel.send("kept")

    asyncio.run(main())
    assert channel.recv(timeout=0) == "kept"


def test_a_feed_read_asynchronously_raises_its_error(loop):
    async def main():
        seen = []
        with pytest.raises(ValueError, match="x"):
            async for value in to_async(from_async(Source([1, 2], then=ValueError("x")), loop=loop)):
                seen.append(value)
        return seen

    assert asyncio.run(main()) == [1, 2]


def test_from_async_of_to_async_and_back(loop, threads):
    channel = Channel(3)

    def produce():
        with channel:
            for value in range(300):
                channel.send(value, timeout=LONG)

    threads.go(produce)
    assert list(from_async(to_async(channel), loop=loop, capacity=2)) == list(range(300))


@needs_signals
def test_a_handler_of_a_signal_may_send_to_a_waiting_task():
    """Serving a task takes no lock beyond the channel's and calls nothing but C."""
    channel = Channel(100)

    async def main():
        receiver = to_async(channel)
        seen = []
        for _ in range(20):
            os.kill(os.getpid(), signal.SIGUSR1)
            seen.append(await receiver.__anext__())
        return seen

    previous = signal.signal(signal.SIGUSR1, lambda *_: channel.try_send("x"))
    try:
        assert asyncio.run(main()) == ["x"] * 20
    finally:
        signal.signal(signal.SIGUSR1, previous)


def test_waking_a_task_calls_nothing_but_c():
    """So no interrupt can come between a sender's hand-over and the wake-up."""
    from channels.aio._wake import LoopWaiter

    async def main():
        waiter = LoopWaiter(Channel(), "recv")
        events = []
        release = waiter.park.release
        gc.disable()  # a finalizer that happens to run is not what is looked at
        sys.setprofile(lambda frame, event, arg: events.append(event))
        try:
            release()
        finally:
            sys.setprofile(None)
            gc.enable()
        assert "call" not in events
        waiter.withdraw()

    asyncio.run(main())


def test_a_task_that_is_served_waits_for_its_server_before_it_lets_go_of_the_waiter():
    """The server says that it has served, then looks for what it has to release."""
    from channels.aio._wake import LoopWaiter

    async def main():
        waiter = LoopWaiter(Channel(), "recv")
        there = []

        class Serving:
            def acquire(self):
                there.append(waiter.park is not None)

            def _is_owned(self):
                return False

        waiter.park._lock = Serving()
        waiter.done = True
        await waiter.served()
        assert there == [True]
        assert waiter.park is None

    asyncio.run(main())


def test_the_sockets_of_a_loop_are_held_until_what_closes_them_is_gone():
    """Otherwise the garbage collector may come to them first, and they complain that nobody has closed them."""
    from channels.aio._wake import _Bell

    def open_and_drop():
        with contextlib.closing(asyncio.new_event_loop()) as loop:
            bell = _Bell(loop)
            bell._armed["cycle"] = bell
            sockets = bell._ears, bell._mouth
            assert _Bell._open.issuperset(sockets)
            return weakref.ref(bell), sockets

    gone, sockets = open_and_drop()
    deadline = time.monotonic() + LONG
    while gone() is not None and time.monotonic() < deadline:  # the timer thread is told that the loop is closed
        gc.collect()
    assert [each.fileno() for each in sockets] == [-1, -1]
    assert _Bell._open.isdisjoint(sockets)


class BlindLoop(asyncio.SelectorEventLoop):
    """A loop that cannot watch a socket, as the one of Windows."""

    def add_reader(self, fd, callback, *args):
        raise NotImplementedError


def test_a_loop_that_cannot_watch_a_socket(threads):
    channel = Channel(2)
    values = 200

    def produce():
        with channel:
            for value in range(values):
                channel.send(value, timeout=LONG)

    async def main():
        return [value async for value in to_async(channel)]

    threads.go(produce)
    with asyncio.Runner(loop_factory=BlindLoop) as runner:
        assert runner.run(main()) == list(range(values))


def test_a_task_of_a_loop_that_cannot_watch_a_socket_is_cancelled():
    channel = Channel(2)

    async def main():
        task = asyncio.ensure_future(to_async(channel).__anext__())
        while not channel._receivers:
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        channel.send(1)

    with asyncio.Runner(loop_factory=BlindLoop) as runner:
        runner.run(main())
    assert channel.recv(timeout=0) == 1


def test_any_number_of_tasks_may_be_served_while_their_loop_is_busy(threads):
    """What wakes them never blocks and never fails, however long nobody hears it."""
    channel = Channel()
    many = 2000

    async def main():
        receiver = to_async(channel)
        tasks = [asyncio.ensure_future(receiver.__anext__()) for _ in range(many)]
        while len(channel._receivers) < many:
            await asyncio.sleep(0)
        threads.all(lambda: [channel.send(value, timeout=LONG) for value in range(many)])  # in one step of the loop
        return await asyncio.gather(*tasks)

    assert asyncio.run(main()) == list(range(many))


def test_a_closed_loop_leaves_no_descriptor(threads):
    """Those that its tasks were woken by go with it."""
    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("cannot count descriptors here")
    before = len(os.listdir("/proc/self/fd"))

    async def main():
        channel = Channel()
        asyncio.get_running_loop().call_later(0.001, channel.try_send, 1)
        return await to_async(channel).__anext__()

    for _ in range(10):
        assert asyncio.run(main()) == 1
    deadline = time.monotonic() + LONG
    while len(os.listdir("/proc/self/fd")) > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(os.listdir("/proc/self/fd")) <= before


def test_an_iterator_holds_its_receiver_and_no_longer():
    """What feeds the channel may end when the receiver is dropped."""
    channel = Channel(1)
    channel.send(1)
    receiver = channel.receiver
    gone = weakref.ref(receiver)
    iterator = to_async(receiver)
    del receiver

    async def main():
        assert await iterator.__anext__() == 1
        assert gone() is not None

    asyncio.run(main())
    del iterator
    assert gone() is None

    receiver = channel.receiver
    gone = weakref.ref(receiver)
    iterator = to_async(receiver)
    del receiver
    asyncio.run(iterator.aclose())
    assert gone() is None


@pytest.mark.parametrize("wrong", [5, Channel().sender, [1], None, Channel(1).sending(1)], ids=repr)
def test_to_async_takes_a_receiver(wrong):
    with pytest.raises(TypeError, match="to_async takes a channel or its receiver, not"):
        to_async(wrong)


# -- fork and exit -----------------------------------------------------------------------------------------------------


@needs_fork
def test_a_forked_child_has_a_loop_of_its_own_and_leaves_the_parent_s_alone(script):
    out = script(
        """
import asyncio, gc, os, warnings
warnings.simplefilter("ignore", DeprecationWarning)
from channels import Cancelled
from channels.aio import LoopThread, default_loop

parent = os.getpid()

async def numbers():
    try:
        for i in range(10):
            yield i
            await asyncio.sleep(0)
        await asyncio.Event().wait()
    finally:
        if os.getpid() != parent:
            print("the child ran the parent's cleanup")

loop = default_loop()
mine = LoopThread("mine")
feed = mine.iterate(numbers(), buffer=4)
assert next(feed) == 0
asyncio.run(asyncio.sleep(0))
assert loop.call(asyncio.sleep, 0, 1) == 1
child = os.fork()
if child == 0:
    assert default_loop().call(asyncio.sleep, 0, 2) == 2
    assert mine.call(asyncio.sleep, 0, 3) == 3
    seen = []
    try:
        for value in feed:
            seen.append(value)
    except Cancelled as error:
        assert "parent" in str(error), error
    assert seen == list(range(1, 1 + len(seen))), seen
    feed.close()
    del feed, mine, loop
    gc.collect()
    raise SystemExit(5)  # an ordinary exit, with all finalizers
_, status = os.waitpid(child, 0)
assert os.waitstatus_to_exitcode(status) == 5, status
# The parent's loops still wake up: the child has not taken their descriptors out of the selector.
for _ in range(3):
    assert loop.call(asyncio.sleep, 0, 4, timeout=5) == 4
assert [next(feed) for _ in range(9)] == list(range(1, 10))
feed.close()
print("well")
"""
    )
    assert out == "well\n"


EXITS = {
    "idle": "default_loop().call(asyncio.sleep, 0)",
    "task": "default_loop().start(asyncio.sleep, 100)",
    "feed": "feed = default_loop().iterate(forever()); next(feed)",
    "deaf": "default_loop().start(deaf); time.sleep(0.05)",
    "blocked": "default_loop().start(blocked); time.sleep(0.05)",
    "executor": "default_loop().start(asyncio.to_thread, time.sleep, 100); time.sleep(0.05)",
    "pool": "pool = ThreadPoolExecutor(); pool.submit(default_loop().call, asyncio.sleep, 100); time.sleep(0.05)",
    "pool, blocked": "pool = ThreadPoolExecutor(); pool.submit(default_loop().call, blocked); time.sleep(0.05)",
    "thread": "threading.Thread(target=catch, args=(default_loop().call, forty)).start(); time.sleep(0.05)",
    "to_async": "threading.Thread(target=asyncio.run, args=(consume(),), daemon=True).start(); time.sleep(0.05)",
    "waiting daemon": "threading.Thread(target=catch, args=(default_loop().call, deaf), daemon=True).start()",
}


@pytest.mark.parametrize("what", EXITS)
def test_the_interpreter_exits_at_once_and_silently(script, what):
    assert in_time(lambda: seconds_to_exit(script, what), 1.5, tries=4)


def seconds_to_exit(script, what):
    out = script(
        f"""
import asyncio, threading, time
from concurrent.futures import ThreadPoolExecutor
from channels import Cancelled, Channel
from channels.aio import default_loop, to_async

async def forever():
    while True:
        yield 1
        await asyncio.sleep(0.001)

async def deaf():
    while True:
        try:
            await asyncio.sleep(10)
        except asyncio.CancelledError:
            pass

async def forty():
    await asyncio.sleep(40)

async def blocked():
    time.sleep(100)

async def consume():
    async for _ in to_async(Channel()):
        pass

def catch(function, *args):
    try:
        function(*args)
    except (Cancelled, RuntimeError):  # cancelled, or it came too late
        pass

class Clock:
    began = time.monotonic()
    def __del__(self):  # the last thing that happens
        print(time.monotonic() - Clock.began < 2)

import atexit
{EXITS[what]}
Clock.began = time.monotonic()
atexit.register(lambda: print(time.monotonic() - Clock.began))
""",
        timeout=30,
    )
    (seconds,) = out.splitlines()
    return float(seconds)


def test_cleanup_runs_at_exit(script):
    out = script(
        """
import asyncio
from channels import Channel
from channels.aio import default_loop

began = Channel(1)

async def work():
    began.try_send(1)
    try:
        await asyncio.Event().wait()
    finally:
        await asyncio.sleep(0.01)
        print("cleaned up")

default_loop().start(work)
began.recv()
"""
    )
    assert out == "cleaned up\n"


def test_after_exit_has_begun_a_loop_says_so(script):
    out = script(
        """
import atexit, asyncio
from channels.aio import LoopThread, default_loop

def late():
    for loop in (default_loop(), LoopThread("late")):
        try:
            loop.call(asyncio.sleep(0))
        except RuntimeError as error:
            print(error)

atexit.register(late)
default_loop().call(asyncio.sleep, 0)
"""
    )
    assert out == "lockgate-loop is closed\nlate: the interpreter is exiting\n"
