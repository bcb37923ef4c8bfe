"""The rules of Go's specification and memory model for channels, one by one, and what Python makes of each."""

from __future__ import annotations

import collections
import itertools

import pytest

from channels import Channel, ChannelClosed, WouldBlock, select


def test_spec_01_make():
    """make(chan T, n): n >= 0, else an error; the capacity is fixed; n = 0 or absent is unbuffered."""
    assert Channel().capacity == 0
    assert Channel(0).capacity == 0
    channel = Channel(3)
    assert channel.capacity == 3
    with pytest.raises(ValueError, match="capacity"):
        Channel(-1)
    with pytest.raises(AttributeError):
        channel.capacity = 4


def test_spec_02_nil(blocks):
    """A nil channel is never ready. (It has no methods here: it is ``None``, as a case of a select.)"""
    blocks(lambda t: select(None, timeout=t))
    with pytest.raises(WouldBlock):
        select(None, block=False)


@pytest.mark.parametrize("capacity", [0, 2])
def test_spec_03_send_on_closed(threads, phrase, capacity):
    """Send on a closed channel is an error, also a send that is parked while the channel is closed, also in select."""
    channel = Channel(capacity)
    for _ in range(capacity):
        channel.send("before")
    parked = threads.go(phrase(channel).send, "parked")
    threads.parked(channel, senders=1)
    channel.close()
    parked.raises(ChannelClosed)
    with pytest.raises(ChannelClosed):
        phrase(channel).send("after")
    with pytest.raises(ChannelClosed):
        phrase(channel).nbsend("after")
    assert list(channel) == ["before"] * capacity


def test_spec_04_receive_from_closed(phrase):
    """Receive from a closed channel never blocks: the remaining values first, then "no value" for ever."""
    channel = Channel(2)
    channel.send(1)
    channel.send(2)
    channel.close()
    assert [phrase(channel).recv() for _ in range(4)] == [(1, True), (2, True), (None, False), (None, False)]


def test_spec_05_close_of_closed():
    """An error in Go; here False. A receiver has no close at all."""
    channel = Channel()
    assert [channel.close(), channel.close()] == [True, False]
    assert not hasattr(channel.receiver, "close")


def test_spec_06_len_cap(threads):
    """len is the values queued and unread, cap the size of the buffer. Parked senders' values are not counted."""
    channel = Channel(2)
    channel.send(1)
    assert (len(channel), channel.capacity) == (1, 2)
    channel.send(2)
    task = threads.go(channel.send, 3)
    threads.parked(channel, senders=1)
    assert (len(channel), channel.capacity) == (2, 2)
    assert [channel.recv(), len(channel)] == [1, 2]
    task.result()


@pytest.mark.parametrize("capacity", [0, 1, 5])
def test_spec_07_order(threads, phrase, other_phrase, capacity):
    """Values leave in the order they went in, whatever the phrasing on either side."""
    channel = Channel(capacity)
    threads.go(lambda: [phrase(channel).send(i) for i in range(50)])
    assert [other_phrase(channel).recv()[0] for _ in range(50)] == list(range(50))


def test_spec_08_range(threads):
    """for over a channel: values until it is closed and drained."""
    channel = Channel(3)
    threads.go(lambda: ([channel.send(i) for i in range(10)], channel.close()))
    assert list(channel) == list(range(10))


def test_spec_09_evaluation():
    """All channel and value expressions of a select are evaluated exactly once, in source order, on entry."""
    order = []

    def evaluate(k, value):
        order.append(k)
        return value

    select(evaluate(1, Channel(1)).sending(evaluate(2, "v")), evaluate(3, Channel()))
    assert order == [1, 2, 3]


def test_spec_10_uniform_choice():
    """Of the ready cases one is chosen by uniform pseudo-random selection; else default; else block."""
    n = 3000
    channels = [Channel(n) for _ in range(3)]
    for channel in channels:
        for _ in range(n):
            channel.send(None)
    counts = collections.Counter(select(*channels).index for _ in range(n))
    assert all(abs(counts[k] - n / 3) < 5 * (n * 2 / 9) ** 0.5 for k in range(3))


def test_spec_10_choice_has_no_memory():
    """Not a rotation: each choice is independent of the one before."""
    a, b = Channel(2000), Channel(2000)
    for _ in range(2000):
        a.send(0)
        b.send(1)
    picks = [select(a, b).index for _ in range(1600)]
    same = sum(x == y for x, y in itertools.pairwise(picks))
    assert abs(same - 800) < 5 * 20


def test_spec_10_default_and_block(blocks):
    """Without a ready case: default if there is one, else it blocks; ``select {}`` blocks for ever."""
    with pytest.raises(WouldBlock):
        select(Channel(), block=False)
    blocks(lambda t: select(Channel(), timeout=t))
    blocks(lambda t: select(timeout=t))


def test_spec_11_one_moment():
    """select judges all its cases at one moment: see test_runtime_nonblock_select_race in test_go_runtime.py.

    All its channels are locked while it says that none is ready.
    """
    first, second = Channel(), Channel()
    held = []

    class Watching(Channel):
        __slots__ = ()

        def _take(self):
            held.append((first._lock._is_owned(), second._lock._is_owned()))
            return super()._take()

    first.__class__ = second.__class__ = Watching
    with pytest.raises(WouldBlock):
        select(first, second, block=False)
    assert held == [(True, True)] * 2


def test_spec_12_self(threads):
    """One channel several times, with send and receive, in one select: it never matches itself, but others."""
    channel = Channel()
    with pytest.raises(TimeoutError):
        select(channel, channel.sending(1), channel, timeout=0.02)
    with pytest.raises(WouldBlock):
        select(channel, channel.sending(1), block=False)
    task = threads.go(select, channel, channel.sending("parked"), channel)
    threads.parked(channel, receivers=1, senders=1)
    assert channel.recv() == "parked"
    assert task.result().index == 1
    task = threads.go(select, channel, channel.sending("parked"), channel)
    threads.parked(channel, receivers=1, senders=1)
    channel.send("v")
    assert tuple(task.result())[1:3] == ("v", True)
    buffered = Channel(1)
    done = {select(buffered, buffered.sending("own")).index for _ in range(4)}
    assert done == {0, 1}  # through the buffer it may


def test_spec_14_directions():
    """chan converts to chan<- and <-chan, never back. (By the type checker: channels/test_typing.py.)"""
    channel = Channel(1)
    for view in (channel.sender, channel.receiver):
        assert not hasattr(view, "sender")
        assert not hasattr(view, "receiver")
    with pytest.raises(AttributeError):
        channel.sender.recv  # noqa: B018
    with pytest.raises(AttributeError):
        channel.receiver.send  # noqa: B018
    with pytest.raises(TypeError):
        select(channel.sender)


def test_spec_15_deadlock(blocks):
    """In Go a fatal error. Threads that wait for ever cannot be told from threads that wait for input: it waits."""
    blocks(Channel().recv)
