"""Many channels as one: what an iterator over them promises. Its schedules are in ``tests/explorer``."""

from __future__ import annotations

import gc
import sys
import threading

import pytest

from channels import Cancelled, CancelToken, Channel, ChannelClosed, WouldBlock, merge, select
from channels.aio import from_async
from support.waiting import eventually


async def rows(count, fails=None):
    for number in range(count):
        yield number
    if fails is not None:
        raise fails


def test_the_failure_of_a_source_comes_after_the_values_before_it():
    error = ConnectionError("lost")
    merged = merge(from_async(rows(2, error)), from_async(rows(3)))
    got = []
    with pytest.raises(ConnectionError) as caught:
        for pair in merged:
            got.append(pair)
    assert caught.value is error
    assert [pair for pair in got if pair[0] == 0] == [(0, 0), (0, 1)]
    got += merged  # it is said once, and the others go on
    assert [pair for pair in got if pair[0] == 1] == [(1, 0), (1, 1), (1, 2)]


def test_a_source_that_failed_with_a_closed_channel_of_its_own_has_failed():
    with pytest.raises(ChannelClosed, match="mine"):
        list(merge(from_async(rows(1, ChannelClosed("mine")))))


def test_a_value_costs_the_same_whatever_the_number_of_channels(threads):
    """Steps are counted, not seconds: how often channels are tried or stood at."""

    def steps(count, closed):
        channels = [Channel(4) for _ in range(count)]
        for channel in channels[1 : 1 + closed]:
            channel.close()
        merged = merge(*channels)
        channels[0].send("first")
        assert next(merged) == (0, "first")
        for _ in range(count):  # every channel has been looked at
            channels[0].send("again")
            next(merged)
        calls = 0

        def count_calls(frame, event, _):
            nonlocal calls
            calls += event == "call"

        channels[0].send("measured")

        def send_late():
            threads.parked(channels[-1], receivers=1)
            channels[-1].send("late")

        sys.setprofile(count_calls)
        try:
            next(merged)
        finally:
            sys.setprofile(None)
        task = threads.go(send_late)
        before = calls
        sys.setprofile(count_calls)
        try:
            assert next(merged)[1] == "late"  # it waits for this one
        finally:
            sys.setprofile(None)
        task.result()
        return max(before, calls - before)

    assert steps(400, 0) < 60  # some more or less, by what it meets where
    assert steps(400, 398) < 60


def test_what_it_takes_it_delivers():
    """It holds nothing in between: a rendezvous send waits until the consumer asks."""
    channel = Channel()
    merged = merge(channel)
    with pytest.raises(WouldBlock):
        channel.try_send(1)
    with pytest.raises(TimeoutError):
        channel.send(1, timeout=0.02)
    del merged


def test_who_tries_to_send_meets_one_that_waits(threads):
    channel, other = Channel(), Channel()
    task = threads.go(next, merge(channel, other))
    # It stands in the queue a moment before it waits.
    assert eventually(lambda: channel.statistics().waiting_to_receive)
    channel.try_send("v")
    assert task.result() == (0, "v")


def test_a_select_that_sends_passes_one_that_is_busy(threads):
    channel, idle = Channel(), Channel(1)
    merged = merge(channel, idle)
    idle.send(0)
    assert next(merged) == (1, 0)
    task = threads.go(select, channel.sending("v"))
    assert next(merged) == (0, "v")
    assert task.result().index == 0


def test_threads_share_one(threads):
    channels = [Channel(), Channel(3)]
    merged = merge(*channels)
    tasks = [threads.go(list, merged) for _ in range(3)]
    for number in range(60):
        channels[number % 2].send(number, timeout=10)
    for channel in channels:
        channel.close()
    got = [pair for task in tasks for pair in task.result()]
    assert sorted(value for _, value in got) == list(range(60))
    assert all(value % 2 == index for index, value in got)


def test_a_ctrl_c_leaves_it_whole(threads):
    channel, other = Channel(1), Channel()
    merged = merge(channel, other)
    task = threads.go(threads.ctrl_c)
    with pytest.raises(KeyboardInterrupt):
        next(merged)
    task.result()
    channel.send("still there")
    assert next(merged) == (0, "still there")
    channel.close()
    other.close()
    assert list(merged) == []


def test_dropping_it_leaves_no_waiter_alive():
    channel, other = Channel(), Channel(1)
    other.send(1)
    merged = merge(channel, other)
    next(merged)
    del merged
    gc.collect()
    assert all(waiter.done and waiter.left is None for waiter in channel._receivers)


def test_one_channel_several_times_is_each_of_its_numbers():
    channel = Channel(100)
    for _ in range(100):
        channel.send("v")
    channel.close()
    assert {index for index, _ in merge(channel, channel)} == {0, 1}


def test_a_cancel_counts_before_values_that_are_there():
    channel, token = Channel(1), CancelToken()
    channel.send("v")
    merged = merge(channel, cancel=token)
    token.cancel("why")
    with pytest.raises(Cancelled, match="why"):
        next(merged)
    assert len(channel) == 1


def test_a_value_in_the_channel_that_should_only_close_is_left_there(threads):
    """``cancel`` is whatever has a ``done``; one that says more than its end is not done."""

    class Stop:
        done = Channel(1)

    channel = Channel()
    task = threads.go(next, merge(channel, cancel=Stop()))
    threads.parked(channel, receivers=1)
    threads.parked(Stop.done, receivers=1)
    Stop.done.send("news")
    channel.send("v", timeout=10)
    assert task.result() == (0, "v")
    assert Stop.done.try_recv() == "news"


@pytest.mark.parametrize("wrong", [None, 5, "x", Channel(1).sending(5), Channel(1).sender, [Channel(), Channel()]])
def test_what_cannot_be_received_from_is_refused_at_once(wrong):
    with pytest.raises(TypeError, match="merge takes receivers and channels"):
        merge(Channel(), wrong)


@pytest.mark.parametrize("wrong", [5, threading.Event(), CancelToken().done])
def test_what_cannot_cancel_is_refused_at_once(wrong):
    with pytest.raises(TypeError, match="cancel= takes a CancelToken"):
        merge(Channel(), cancel=wrong)
