"""`parked` names who waits, for what and since when, and costs those nothing who do not wait."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
import time

import pytest

from channels import Cancelled, CancelToken, Channel, ChannelClosed, Parked, merge, parked, select
from channels._park import parked_waiters
from channels.aio import LoopThread, from_async, to_async
from support.waiting import eventually

MS = 0.001


def mine(*channels: Channel) -> list[Parked]:
    """Those that wait for one of ``channels``."""
    return [wait for wait in parked() if any(case.channel in channels for case in wait.cases)]


def until_parked(count: int, *channels: Channel) -> list[Parked]:
    assert eventually(lambda: len(mine(*channels)) == count)
    return mine(*channels)


def test_a_parked_receiver_and_a_parked_sender_are_named(threads):
    empty, full = Channel(name="empty"), Channel(1, name="full")
    full.send(1)
    reader = threads.go(empty.recv, 30)
    (found,) = until_parked(1, empty)
    assert found.operation == "recv"
    assert found.cases == (("recv", empty),)
    assert (found.thread_name, found.thread_id) == (reader.thread.name, reader.thread.ident)
    assert found.task_name is None
    assert found.seconds == pytest.approx(time.monotonic() - found.since, abs=1)
    writer = threads.go(full.send, 2)
    (found,) = until_parked(1, full)
    assert (found.operation, found.cases, found.thread_name) == ("send", (("send", full),), writer.thread.name)
    assert "sending on <Channel 'full' 1/1 open, 1 sender waiting>, for 0.0 s" in str(found)
    assert mine(empty, full)[0].cases[0].channel is empty  # who waits longest comes first
    empty.send(0)
    full.recv()
    reader.result()
    writer.result()
    assert mine(empty, full) == []


def test_seconds_count_from_the_moment_of_parking(threads):
    channel = Channel()
    threads.go(channel.recv)
    (first,) = until_parked(1, channel)
    assert 0 <= first.seconds < 10
    assert eventually(lambda: mine(channel)[0].seconds > first.seconds + 20 * MS)
    channel.send(None)


def test_a_select_is_one_wait_with_its_cases(threads):
    source, sink = Channel(name="source"), Channel(name="sink")
    task = threads.go(lambda: select(source, None, sink.sending("x"), source.receiver))
    (found,) = until_parked(1, source)
    assert found.operation == "select"
    assert found.cases == (("recv", source), ("send", sink), ("recv", source))
    assert "select of receiving from" in str(found)
    assert sink.recv() == "x"
    task.result()
    assert mine(source, sink) == []


def test_a_merge_waits_for_those_that_are_open(threads):
    one, two, over = Channel(), Channel(), Channel()
    over.close()
    task = threads.go(lambda: list(merge(one, over, two)))
    (found,) = until_parked(1, one)
    assert found.operation == "merge"
    assert sorted(map(id, (case.channel for case in found.cases))) == sorted(map(id, (one, two)))
    one.close()
    assert eventually(lambda: [w.cases for w in mine(two)] == [(("recv", two),)])
    two.close()
    assert task.result() == []
    assert mine(one, two) == []


def test_an_iterating_consumer_is_parked_in_its_receive(threads):
    channel = Channel(name="numbers")
    task = threads.go(lambda: list(channel))
    assert until_parked(1, channel)[0].operation == "recv"
    channel.close()
    task.result()


@pytest.mark.parametrize(
    ("operation", "end"),
    [
        (operation, end)
        for operation in ("recv", "send", "select", "merge")
        for end in ("timeout", "cancel", "close", "interrupt")
        if (operation, end) != ("merge", "timeout")  # a merge has none
    ],
)
def test_whatever_ends_a_wait_ends_the_note_of_it(threads, interrupt, operation, end):
    channel, token = Channel(), CancelToken()
    timeout = 20 * MS if end == "timeout" else None
    wait = {
        "recv": lambda: channel.recv(timeout, token),
        "send": lambda: channel.send(1, timeout, token),
        "select": lambda: select(channel, timeout=timeout, cancel=token),
        "merge": lambda: next(merge(channel, cancel=token)),
    }[operation]

    def run():
        with contextlib.suppress(TimeoutError, Cancelled, ChannelClosed, KeyboardInterrupt, StopIteration):
            wait()

    task = threads.go(run)
    if end != "timeout":
        until_parked(1, channel)
    if end == "cancel":
        token.cancel()
    elif end == "close":
        channel.close()
    elif end == "interrupt":
        interrupt(task)
        channel.close()
    task.result()
    assert mine(channel) == []
    assert not [waiter for waiter in parked_waiters if parked_waiters[waiter][2] == task.thread.ident]


def test_who_need_not_wait_leaves_no_note(monkeypatch):
    """The hot path: sends and receives that find what they need, and channels that are made, write nothing down."""

    class Closed(dict):
        def __setitem__(self, *_):
            raise AssertionError("noted")

    monkeypatch.setattr("channels._park.parked_waiters", Closed())
    channel = Channel(2)
    channel.send(1)
    channel.try_send(2)
    assert (channel.recv(), select(channel).value) == (1, 2)
    with pytest.raises(TimeoutError):
        channel.recv(timeout=0)


def test_tasks_are_named_with_their_loop(threads):
    channel = Channel(name="for a task")

    async def read():
        asyncio.current_task().set_name("reader of the test")
        async for _ in to_async(channel):
            pass

    with LoopThread(name="loop of the test") as loop:
        loop.start(read)
        (found,) = until_parked(1, channel)
        assert (found.operation, found.cases, found.task_name) == ("recv", (("recv", channel),), "reader of the test")
        assert found.thread_name == "loop of the test"
        assert str(found).startswith("task reader of the test on loop of the test: receiving from <Channel 'for a ")
        channel.close()
        assert eventually(lambda: not mine(channel))

        async def numbers():
            for number in range(3):
                yield number

        feed = loop.iterate(numbers, buffer=1)
        out = feed._channel
        (found,) = until_parked(1, out)
        assert (found.operation, found.cases) == ("send", (("send", out),))
        assert list(feed) == [0, 1, 2]
    assert mine(channel, out) == []


def test_the_note_of_a_feed_does_not_keep_it_alive():
    """What a task waits to send into ends with its consumer, also while `parked` knows of it."""

    async def numbers():
        for number in range(3):
            yield number

    feed = from_async(numbers(), capacity=0)
    until_parked(1, feed._channel)
    ended = feed.done
    del feed
    with pytest.raises(ChannelClosed):
        ended.recv(timeout=10)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="the system has no such timer")
def test_a_signal_handler_sees_the_wait_that_it_interrupted():
    channel, seen = Channel(name="interrupted"), []

    def look(*_):
        if not seen:  # the first signals may come before it has parked
            seen.extend(mine(channel))
        if len(seen) == 1:
            channel.try_send("go on")
            seen.append(None)

    before = signal.signal(signal.SIGALRM, look)
    try:
        signal.setitimer(signal.ITIMER_REAL, 20 * MS, 20 * MS)
        assert channel.recv(timeout=10) == "go on"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    found = seen[0]
    assert found.thread_id == threading.get_ident()


def test_it_is_read_while_waits_come_and_go(threads, switching):
    """No lock, and no error where the table changes under the reader."""
    ping, pong = Channel(), Channel()

    def bounce(one, other):
        with contextlib.suppress(ChannelClosed):
            while True:
                one.send(1)
                other.recv()

    def answer():
        with contextlib.suppress(ChannelClosed):
            while True:
                ping.recv()
                pong.send(1)

    tasks = [threads.go(bounce, ping, pong), threads.go(answer)]
    for _ in range(2000):
        for wait in parked():
            assert wait.seconds >= 0
    for channel in (ping, pong):
        channel.close()
    for task in tasks:
        task.result()
    assert mine(ping, pong) == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system cannot fork")
def test_a_forked_child_does_not_see_the_threads_of_its_parent(script):
    said = script(
        """
import os, sys, threading, time, warnings
warnings.simplefilter("ignore")  # Python warns of any fork with threads
from channels import Channel, parked
channel = Channel()
threading.Thread(target=channel.recv, daemon=True).start()
while not parked():
    time.sleep(0.001)
pid = os.fork()
if pid == 0:
    print(len(parked()), flush=True)
    os._exit(0)
os.waitpid(pid, 0)
print(len(parked()))
channel.close()
"""
    )
    assert said.split() == ["0", "1"]


def test_threads_that_are_not_of_threading_have_a_number(threads):
    import _thread

    channel = Channel()
    _thread.start_new_thread(channel.recv, ())
    (found,) = until_parked(1, channel)
    assert found.thread_name == f"thread {found.thread_id}"
    channel.send(None)
    assert eventually(lambda: not mine(channel))
