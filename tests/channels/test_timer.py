"""What `after` and `tick` promise, and that timers of nobody cost nothing."""

from __future__ import annotations

import gc
import logging
import threading
import time

import pytest

from channels import CancelToken, Channel, Receiver, WouldBlock, _timer, after, tick
from support.waiting import eventually


@pytest.fixture
def heap():
    """The timers that the timer thread holds at this moment, or those that it finds to be as asked for."""

    def look(wanted=lambda timer: True):
        _timer.start()
        answer = Channel(1)
        _timer.call_soon(
            lambda: answer.try_send([t for t in gc.get_objects() if type(t) is _timer.Timer and wanted(t)])
        )
        return answer.recv(timeout=10)

    return look


def test_after_fires_once_with_the_time_and_is_not_closed():
    began = time.monotonic()
    timer = after(0.03)
    assert isinstance(timer, Receiver)
    fired = timer.recv(timeout=10)
    assert began + 0.03 <= fired <= time.monotonic()
    assert not timer.closed
    with pytest.raises(TimeoutError):
        timer.recv(timeout=0.05)


def test_after_keeps_its_value_until_it_is_taken():
    timer = after(0.01)
    with pytest.raises(TimeoutError):
        Channel().recv(timeout=0.03)
    assert eventually(lambda: len(timer) == 1)
    assert timer.try_recv() > 0


def test_after_0_fires_at_once():
    assert after(0).recv(timeout=10) <= time.monotonic()


@pytest.mark.parametrize("seconds", [float("inf"), 1e12, 10**400, 1e308], ids=["inf", "1e12", "10**400", "1e308"])
def test_after_a_time_that_never_comes(seconds):
    """And the timer thread lives on."""
    timer = after(seconds)
    after(0.01).recv(timeout=10)
    with pytest.raises(WouldBlock):
        timer.try_recv()
    assert "after(" in repr(timer)


@pytest.mark.parametrize("make", [after, tick])
@pytest.mark.parametrize("seconds", [-1, float("nan"), float("-inf")])
def test_a_time_is_not_negative_nor_nan(make, seconds):
    with pytest.raises(ValueError, match="0 or more"):
        make(seconds)


@pytest.mark.parametrize("make", [after, tick])
@pytest.mark.parametrize("seconds", ["1", True, None, [1]])
def test_a_time_is_a_number(make, seconds):
    with pytest.raises(TypeError, match="number of seconds"):
        make(seconds)


def test_tick_takes_more_than_0_seconds():
    with pytest.raises(ValueError, match="more than 0"):
        tick(0)


def test_timers_fire_in_the_order_of_their_deadlines():
    """Go's TestAfterQueuing."""
    while True:
        began = time.monotonic()
        timers = {seconds: after(seconds) for seconds in (0.06, 0.02, 0.04)}
        if time.monotonic() - began < 0.01:  # or those that were made last have later deadlines than that
            break
    fired = {seconds: timer.recv(timeout=10) for seconds, timer in timers.items()}
    assert sorted(fired, key=lambda seconds: fired[seconds]) == sorted(timers)


def test_timers_of_one_deadline_fire_in_the_order_they_were_made():
    calls, done = [], Channel(1)
    deadline = time.monotonic() + 0.03
    for k in range(5):
        _timer.call_at(deadline, lambda k=k: calls.append(k))
    _timer.call_at(deadline, lambda: done.try_send(None))
    done.recv(timeout=10)
    assert calls == list(range(5))


def test_all_timers_are_on_one_thread():
    timers = [after(0.05) for _ in range(20)] + [tick(0.02) for _ in range(20)]
    tokens = [CancelToken(timeout=0.05) for _ in range(20)]
    timers[0].recv(timeout=10)
    names = [thread.name for thread in threading.enumerate()]
    assert names.count("channels-timer") == 1
    assert all(thread.daemon for thread in threading.enumerate() if thread.name == "channels-timer")
    del tokens


def test_tick_ticks():
    began = time.monotonic()
    ticker = tick(0.02)
    times = [ticker.recv(timeout=10) for _ in range(4)]
    assert times == sorted(times)
    assert times[0] >= began + 0.02
    assert times[-1] >= began + 0.08


def test_ticks_that_nobody_takes_are_dropped():
    """At most one waits; and it does not catch up afterwards."""
    ticker = tick(0.01)
    with pytest.raises(TimeoutError):
        Channel().recv(timeout=0.1)
    assert eventually(lambda: len(ticker) == 1)
    first = ticker.recv(timeout=10)
    rest = [ticker.recv(timeout=10) for _ in range(4)]
    assert rest[0] > first
    assert rest[3] - rest[0] > 0.02  # one may come late, by less than a period, and the next in time


def test_tick_ends_when_nobody_holds_the_receiver(heap):
    def ticking(timer):
        return getattr(timer._function, "_period", None) == 0.005

    ticker = tick(0.005)
    ticker.recv(timeout=10)
    assert heap(ticking)
    del ticker
    gc.collect()
    after(0.03).recv(timeout=10)
    assert not heap(ticking)


def test_tick_goes_on_while_it_is_iterated():
    """The iterator is holder enough."""
    times = []
    for now in tick(0.005):
        gc.collect()
        times.append(now)
        if len(times) == 3:
            break
    assert times == sorted(times)


@pytest.mark.parametrize(
    "make",
    [
        lambda: after(3600),
        lambda: tick(3600),
        lambda: CancelToken(timeout=3600),
        lambda: CancelToken(timeout=3600).cancel(),
        lambda: CancelToken(timeout=3600).done,
    ],
    ids=["after", "tick", "token", "cancelled token", "done"],
)
def test_timers_of_nobody_do_not_pile_up(make, heap):
    """`select(channel, after(3600))` in a loop must not cost an hour of memory."""
    gc.collect()
    before = len(heap())
    for _ in range(2000):
        make()
    heap()  # the timer thread has seen them all
    gc.collect()  # without the GIL, what it let go of is freed by the thread that made it
    assert len(heap()) - before < 300


def test_a_fired_timer_leaves_nothing(heap):
    """No cycles either: nothing for the garbage collector to find."""
    gc.collect()
    gc.disable()
    try:
        before = len(heap())
        receivers = [after(0.001) for _ in range(50)]
        for receiver in receivers:
            receiver.recv(timeout=10)
        after(0.01).recv(timeout=10)
        assert len(heap()) <= before + 1
    finally:
        gc.enable()


def test_a_cancelled_timer_lets_go_of_its_function():
    class Function:
        def __call__(self):
            raise AssertionError("called")

    import weakref

    function = Function()
    gone = weakref.ref(function)
    timer = _timer.call_at(time.monotonic() + 0.3, function)
    assert "Timer in" in repr(timer)
    del function
    timer.cancel()
    assert gone() is None
    after(0.32).recv(timeout=10)
    assert "over" in repr(timer)


def test_a_failing_timer_function_is_logged_and_stops_nobody(caplog):
    """Also SystemExit: every other timer of the process is on that thread."""
    now = time.monotonic()
    with caplog.at_level(logging.ERROR):
        for error in (ZeroDivisionError, SystemExit, KeyboardInterrupt):
            _timer.call_at(now, lambda error=error: (_ for _ in ()).throw(error))
        after(0.02).recv(timeout=10)
    assert [record.exc_info[0] for record in caplog.records] == [ZeroDivisionError, SystemExit, KeyboardInterrupt]


def test_a_closed_timer_channel_harms_nobody():
    """A receiver cannot close, but its channel can be: the timer thread takes no offence."""
    timer = after(0.01)
    timer._channel.close()
    ticker = tick(0.005)
    ticker._channel.close()
    after(0.03).recv(timeout=10)


def test_a_timer_made_in_a_finalizer_while_the_first_timer_starts_the_thread(script):
    """Starting a thread takes a while, and any finalizer may run meanwhile in the thread that starts it."""
    out = script(
        """
import threading, channels
from channels import _timer
nested = []
start = threading.Thread.start
def slow(self):
    if not nested:
        nested.append(channels.CancelToken(timeout=0.01))
        nested.append(channels.after(0.01))
    start(self)
threading.Thread.start = slow
timer = channels.after(0.02)
print(timer.recv(timeout=5) > 0, nested[1].recv(timeout=5) > 0, nested[0].done.closed)
print(sum(t.name == "channels-timer" for t in threading.enumerate()))
"""
    )
    assert out.split() == ["True", "True", "True", "1"]


def test_the_thread_that_could_not_be_started_is_started_later(script):
    """Out of threads for a moment is not out of timers for ever."""
    out = script(
        """
import threading, channels
start = threading.Thread.start
def fail(self):
    raise RuntimeError("can't start new thread")
threading.Thread.start = fail
try:
    channels.after(0)
except RuntimeError as error:
    print(error)
threading.Thread.start = start
print(channels.after(0.01).recv(timeout=5) > 0)
"""
    )
    assert out.split("\n")[:2] == ["can't start new thread", "True"]
