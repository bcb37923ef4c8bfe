"""Go's test/*.go, test/ken and test/fixedbugs that are about channels, by their names."""

from __future__ import annotations

import gc
import time

import pytest

from channels import Channel, ChannelClosed, WouldBlock, select

# -- closedchan.go -----------------------------------------------------------------------------------------------------


def _closed_sync():
    channel = Channel()
    channel.close()
    return channel


def _closed_async():
    channel = Channel(2)
    channel.send(1)
    channel.close()
    return channel


def _check_closed(c):
    for _ in range(3):
        assert c.recv() == (None, False)
        assert c.nbrecv() == (None, False, True)
    with pytest.raises(ChannelClosed):
        c.nbsend(1)
    assert c.recv() == (None, False)  # the value was discarded
    with pytest.raises(ChannelClosed):
        c.send(2)
    assert c.recv() == (None, False)


def test_closedchan_sync(phrase):
    """Receiving from and sending to a closed channel, in all phrasings, three times over."""
    _check_closed(phrase(_closed_sync()))


@pytest.mark.parametrize("first", ["recv", "nbrecv"])
def test_closedchan_async(phrase, first):
    """The last value first, then the same."""
    c = phrase(_closed_async())
    assert getattr(c, first)() == ((1, True) if first == "recv" else (1, True, True))
    _check_closed(c)


def test_closedchan_close_twice():
    """In Go a panic. Here it is harmless, and says so: cleanup runs on every path, so it may run twice."""
    channel = Channel()
    assert channel.close() is True
    assert channel.close() is False


@pytest.mark.parametrize("capacity", [0, 1])
def test_closedchan_with_parked_partners(threads, phrase, capacity):
    """What closedchan.go has as a TODO: close with parked receivers and senders, in all phrasings."""
    channel = Channel(capacity)
    receivers = [threads.go(lambda: phrase(channel).recv()) for _ in range(3)]
    threads.parked(channel, receivers=3)
    channel.close()
    assert [task.result() for task in receivers] == [(None, False)] * 3
    channel = Channel(capacity)
    for k in range(capacity):
        channel.send(k)
    senders = [threads.go(lambda: phrase(channel).send("no")) for _ in range(3)]
    threads.parked(channel, senders=3)
    channel.close()
    for task in senders:
        task.raises(ChannelClosed)
    assert list(channel) == list(range(capacity))


# -- chancap.go, chanlinear.go, range.go -------------------------------------------------------------------------------


def test_chancap():
    """len and cap while filling; a negative size is an error."""
    channel = Channel(10)
    assert (len(channel), channel.capacity) == (0, 10)
    for i in range(3):
        channel.send(i)
    assert (len(channel), channel.capacity) == (3, 10)
    channel = Channel()
    assert (len(channel), channel.capacity) == (0, 0)
    with pytest.raises(ValueError, match="capacity"):
        Channel(-1)


def _popular(threads, n, messages=4):
    """n threads select over one popular channel and one of their own; how long it takes to wake each a few times."""
    popular = Channel()
    own = [Channel() for _ in range(n)]

    def selecting(channel):
        for _ in range(messages):
            assert select(popular, channel, timeout=20).index == 1

    for channel in own:
        threads.go(selecting, channel)
    threads.parked(popular, receivers=n)
    began = time.perf_counter()
    for _ in range(messages):
        for channel in own:
            channel.send(True, timeout=20)
    took = time.perf_counter() - began
    for task in threads.tasks:
        task.result()
    threads.tasks.clear()
    return took


@pytest.mark.parametrize("n", [60, pytest.param(400, marks=pytest.mark.stress)])
def test_chanlinear(threads, n):
    """A losing select leaves a popular channel in constant time: twice the threads take at most three times as long."""
    for _ in range(6):
        if _popular(threads, 2 * n) < 3 * _popular(threads, n):
            return
    pytest.fail("waking selects over a popular channel is not linear")


def test_chanlinear_queue_is_short(threads):
    """The same without a clock: the popular channel holds few dead entries, however often its selects lose."""
    popular, own = Channel(), Channel()
    task = threads.go(lambda: [select(popular, own, timeout=20) for _ in range(1000)])
    for _ in range(1000):
        own.send(1, timeout=10)
    task.result()
    assert len(popular._receivers) <= 64


def test_range_testchan(threads):
    """for range over a channel: a generator thread, then the end; the loop variable is optional."""

    def sequence():
        out = Channel()

        def run():
            for letter in "abcdefghijklmnopqrstuvwxyz":
                out.send(letter)
            out.close()

        threads.go(run)
        return out

    assert "".join(sequence()) == "abcdefghijklmnopqrstuvwxyz"
    n = 0
    for _ in sequence():
        n += 1
    assert n == 26


# -- ken/chan.go, ken/chan1.go -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("capacity", [0, 1, 10])
def test_ken_chan(threads, phrase, other_phrase, capacity):
    """A sender and a receiver on each of three channels, in all mixes of phrasings: sequences arrive complete, in
    order.
    """
    channels = [Channel(capacity) for _ in range(3)]
    n = 25

    def send(k):
        for i in range(n):
            phrase(channels[k]).send((k, i))
        channels[k].close()

    def receive(k):
        got = []
        while (pair := other_phrase(channels[k]).recv())[1]:
            got.append(pair[0])
        return got

    receivers = [threads.go(receive, k) for k in range(3)]
    for k in range(3):
        threads.go(send, k)
    assert [task.result() for task in receivers] == [[(k, i) for i in range(n)] for k in range(3)]


def test_ken_chan_one_select_for_all(threads):
    """The other half of ken/chan.go: one thread serves all the senders by a select, another all the receivers."""
    n = 60
    inward, outward = [Channel(k) for k in range(3)], [Channel(k) for k in range(3)]

    def send(k):
        for i in range(n):
            inward[k].send(i)
        inward[k].close()

    def carry():
        held = [[] for _ in range(3)]
        sources = list(inward)
        while any(sources) or any(held):
            cases = [*sources, *(outward[k].sending(held[k][0]) if held[k] else None for k in range(3))]
            done = select(*cases, timeout=10)
            if done.index >= 3:
                del held[done.index - 3][0]
            elif done.ok:
                held[done.index].append(done.value)
            else:
                sources[done.index] = None
        for channel in outward:
            channel.close()

    receivers = [threads.go(lambda k=k: list(outward[k])) for k in range(3)]
    for k in range(3):
        threads.go(send, k)
    threads.go(carry)
    assert [task.result() for task in receivers] == [list(range(n))] * 3


def test_ken_chan1(threads):
    """1,000 messages, 10 receivers by select, a buffer of two: each message is received once."""
    channel = Channel(2)

    def receive():
        got = []
        while (done := select(channel)).ok:
            got.append(done.value)
        return got

    receivers = [threads.go(receive) for _ in range(10)]
    for i in range(1000):
        channel.send(i, timeout=10)
    channel.close()
    assert sorted(value for task in receivers for value in task.result()) == list(range(1000))


# -- fixedbugs ---------------------------------------------------------------------------------------------------------


def test_fixedbugs_bug067(threads):
    """Receiving what a thread sends that was started later."""
    channel = Channel()
    threads.go(channel.send, 0)
    assert channel.recv(timeout=10) == 0


def test_fixedbugs_bug147(threads):
    """A synchronous send waits for its receiver: the second is not complete before the second receive."""
    channel, count, go_on = Channel(), [], Channel()

    def receiver():
        channel.recv()
        count.append(1)
        go_on.recv()
        count.append(2)
        channel.recv()

    threads.go(receiver)
    channel.send(1, timeout=10)
    sender = threads.go(lambda: (channel.send(2), list(count))[1])
    threads.parked(channel, senders=1)
    go_on.send(None)
    assert sender.result() == [1, 2]


def test_fixedbugs_bug225():
    """A select with default must not receive from an empty channel, and must from one that holds a value."""
    channel = Channel(1)
    with pytest.raises(WouldBlock):
        select(channel, block=False)
    channel.send(True)
    assert select(channel, block=False).ok


def test_fixedbugs_bug234():
    """ok of a receive, before and after the close."""
    channel = Channel(1)
    channel.send(100)
    assert tuple(select(channel))[1:3] == (100, True)
    channel.close()
    assert tuple(select(channel))[1:3] == (None, False)


@pytest.mark.parametrize("ready", [0, 1])
def test_fixedbugs_issue4313_issue8336(ready):
    """The cases of a select are evaluated in source order, all of them, once, whichever is chosen."""
    order = []
    channels = [Channel(1), Channel(1)]
    channels[ready].send("v")

    def case(k):
        order.append(k)
        return channels[k]

    assert select(case(0), case(1)).index == ready
    assert order == [0, 1]


def test_fixedbugs_issue9110(threads):
    """Repeated selects over one channel three times leave no waiter structures when it is closed."""
    gc.collect()
    from channels._park import Waiter

    before = sum(type(thing) is Waiter for thing in gc.get_objects())
    for _ in range(10):
        channel = Channel()
        tasks = [threads.go(select, channel, channel, channel) for _ in range(5)]
        threads.parked(channel, receivers=5)  # each once for its three
        channel.close()
        assert [task.result().ok for task in tasks] == [False] * 5
    threads.tasks.clear()
    del tasks, channel
    gc.collect()
    assert sum(type(thing) is Waiter for thing in gc.get_objects()) <= before


def test_fixedbugs_issue13169(threads, switching):
    """Ten senders of fresh objects through one unbuffered channel while the garbage collector is always at it."""
    channel, n = Channel(), 40
    threshold = gc.get_threshold()
    gc.set_threshold(1, 1, 1)
    try:

        def send(k):
            for i in range(n):
                channel.send([k, i, [object()]], timeout=20)

        def receive():
            return [channel.recv(timeout=20)[:2] for _ in range(n)]

        tasks = [threads.go(receive) for _ in range(10)]
        for k in range(10):
            threads.go(send, k)
        got = [value for task in tasks for value in task.result()]
    finally:
        gc.set_threshold(*threshold)
    assert sorted(got) == [[k, i] for k in range(10) for i in range(n)]
