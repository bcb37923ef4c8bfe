"""The tests of Go's packages time and context that are about channels, for `after`, `tick` and `CancelToken`."""

from __future__ import annotations

import gc
import time
import weakref

import pytest

from channels import Cancelled, CancelToken, Channel, ChannelClosed, WouldBlock, after, merge, select, tick


def test_time_after():
    """TestAfter: not before its time; the value is the time at which it fired."""
    began = time.monotonic()
    fired = after(0.03).recv(timeout=10)
    assert began + 0.03 <= fired <= time.monotonic()


def test_time_after_tick():
    """TestAfterTick: ten ticks take ten times as long as one."""
    began = time.monotonic()
    ticker = tick(0.01)
    for _ in range(10):
        ticker.recv(timeout=10)
    assert 0.1 <= time.monotonic() - began < 5


def test_time_after_stop():
    """TestAfterStop: a timer that nobody holds, or whose token was cancelled, does not fire."""
    calls = []
    token = CancelToken(timeout=0.2)
    registration = token.on_cancel(lambda: calls.append(1))
    registration.remove()
    stopped = after(0.2)
    gone = weakref.ref(stopped._channel)
    del stopped
    assert gone() is None
    after(0.22).recv(timeout=10)
    assert calls == []


def test_time_after_queuing():
    """TestAfterQueuing: timers fire in the order of their deadlines, whatever the order in which they were made."""
    slots = [5, 3, 6, 6, 6, 1, 1, 2, 7, 9, 4, 8, 0]
    while True:
        began = time.monotonic()
        timers = [after(0.02 + slot * 0.01) for slot in slots]
        if time.monotonic() - began < 0.005:  # or those that were made last have later deadlines than their slots say
            break
    fired = []
    while any(timers):
        done = select(*timers, timeout=10)
        fired.append((done.value, slots[done.index]))
        timers[done.index] = None
    assert [slot for _, slot in sorted(fired)] == sorted(slots)


def test_time_ticker():
    """TestTicker: about as many ticks as the time has room for, none before its time."""
    began = time.monotonic()
    ticker = tick(0.01)
    times = [ticker.recv(timeout=10) for _ in range(5)]
    for k, at in enumerate(times, 1):
        assert at >= began + k * 0.01


def test_time_new_ticker_lt_zero_duration():
    """TestNewTickerLtZeroDuration: an error."""
    for seconds in (0, -1):
        with pytest.raises(ValueError, match="0"):
            tick(seconds)


def test_time_ticker_is_collected():
    """Go 1.23: an unreferenced ticker is recovered without being stopped."""
    ticker = tick(0.001)
    gone = weakref.ref(ticker._channel)
    ticker.recv(timeout=10)
    del ticker
    deadline = time.monotonic() + 5
    while gone() is not None:  # the timer thread may have it in its hands
        gc.collect()
        assert time.monotonic() < deadline
    assert gone() is None


def test_time_timer_stop_stress(threads):
    """TimerStopStress: many timers made and dropped, or cancelled, by many threads at once; others fire all the
    same.
    """

    def work():
        for k in range(100):
            token = CancelToken(timeout=0.001 * (k % 3))
            after(0.001 * (k % 3))
            if k % 2:
                token.cancel()
        after(0.001).recv(timeout=10)

    threads.all(*[work] * 6)


# -- context -----------------------------------------------------------------------------------------------------------


def test_context_background():
    """A token without a parent or deadline is never done by itself."""
    token = CancelToken()
    with pytest.raises(WouldBlock):
        select(token.done, block=False)
    assert (token.cancelled, token.cause) == (False, None)


def test_context_with_cancel(threads):
    """TestWithCancel: Done closes, Err (here `cause`) is set; a child made of it is done too."""
    parent = CancelToken()
    child = CancelToken(parent)
    for token in (parent, child):
        assert not token.cancelled
        assert token.cause is None
    parent.cancel("canceled")
    for token in (parent, child):
        assert select(token.done, block=False).ok is False
        assert token.cause == "canceled"


def test_context_cancel_twice():
    """Cancelling twice is harmless and keeps the first cause (TestCause)."""
    token = CancelToken()
    assert token.cancel("first")
    assert not token.cancel("second")
    assert token.cause == "first"


def test_context_parent_finishes_child():
    """TestParentFinishesChild: parent to child, not the other way round."""
    parent = CancelToken()
    cancel_child, value_child, timer_child = CancelToken(parent), CancelToken(parent), CancelToken(parent, timeout=1000)
    value_child.cancel()
    assert not parent.cancelled
    parent.cancel("parent")
    assert [token.cause for token in (cancel_child, value_child, timer_child)] == ["parent", None, "parent"]
    late = CancelToken(parent)
    assert late.cause == "parent"


def test_context_child_finishes_first():
    """TestChildFinishesFirst: the parent forgets a child that is gone."""
    parent = CancelToken()
    for child in (CancelToken(parent), CancelToken(parent, timeout=1000)):
        child.cancel()
        assert not parent.cancelled
    del child
    gc.collect()
    assert not parent._core.callbacks


def test_context_deadline(threads):
    """TestDeadline: it comes, with a deadline error; nested deadlines take the earlier."""
    for token in (
        CancelToken(timeout=0.02),
        CancelToken(CancelToken(timeout=0.02)),
        CancelToken(CancelToken(timeout=0.02), timeout=1000),
        CancelToken(CancelToken(timeout=1000), timeout=0.02),
    ):
        with pytest.raises(ChannelClosed):
            token.done.recv(timeout=10)
        assert isinstance(token.cause, TimeoutError)


def test_context_canceled_timeout():
    """TestCanceledTimeout: cancelled before its deadline, it is cancelled and not late."""
    parent = CancelToken(timeout=1000)
    child = CancelToken(parent, timeout=1000)
    parent.cancel("canceled")
    assert child.cause == "canceled"


def test_context_already_expired():
    """A deadline that has passed when the token is made: done at once."""
    assert CancelToken(timeout=0).cancelled


def test_context_simultaneous_cancels(threads):
    """TestSimultaneousCancels: a tree of tokens, each cancelled by a thread of its own; all are done in the end."""
    root = CancelToken()
    queue, tokens = [root], [root]
    while len(queue) < 40:
        parent = queue.pop(0)
        for _ in range(4):
            queue.append(CancelToken(parent))
            tokens.append(queue[-1])
    threads.all(*[token.cancel for token in tokens[:40]])
    for token in tokens:
        assert token.cancelled


def test_context_interlocked_cancels(threads):
    """TestInterlockedCancels: a child's cancel in a callback of its parent and the other way round do not deadlock."""
    parent = CancelToken()
    child = CancelToken(parent)
    parent.on_cancel(child.cancel)
    child.on_cancel(parent.cancel)
    threads.all(parent.cancel, child.cancel)
    assert parent.cancelled
    assert child.cancelled


def test_context_after_func(threads):
    """TestAfterFunc*: called once, not if stopped before, at once if it is done already."""
    token, calls = CancelToken(), []
    stopped = token.on_cancel(lambda: calls.append("stopped"))
    token.on_cancel(lambda: calls.append("called"))
    assert stopped.remove()
    token.cancel()
    token.on_cancel(lambda: calls.append("late"))
    assert calls == ["called", "late"]
    assert not stopped.remove()


def test_context_cancel_ends_every_kind_of_wait(threads):
    """The point of it all: ``case <-ctx.Done()``."""
    token = CancelToken()
    c = [Channel() for _ in range(5)]
    waits = [
        lambda: c[0].recv(cancel=token),
        lambda: c[1].send(1, cancel=token),
        lambda: select(c[2], c[3].sending(1), cancel=token),
        lambda: next(iter(merge(c[4], cancel=token))),
    ]
    tasks = [threads.go(wait) for wait in waits]
    idiom = threads.go(lambda: select(Channel().sending(1), Channel(), token.done).index)
    threads.parked(token.done, receivers=5)
    token.cancel("why")
    for task in tasks:
        assert task.raises(Cancelled).cause == "why"
    assert idiom.result() == 2
