"""Go's src/runtime/chan_test.go and chanbarrier_test.go, by their names. (Its tests of moving stacks are left out.)"""

from __future__ import annotations

import collections
import contextlib
import gc
import math
import os
import weakref

import pytest

from channels import Channel, ChannelClosed, WouldBlock, select

pytestmark = pytest.mark.usefixtures("switching")

CAPACITIES = [0, 1, 2, 3, 7, 20]
stress = pytest.mark.stress


@pytest.mark.parametrize("capacity", CAPACITIES)
class TestChan:
    """TestChan, part by part."""

    def test_runtime_chan_receive_from_empty_blocks(self, threads, phrase, capacity):
        channel = Channel(capacity)
        tasks = [threads.go(phrase(channel).recv) for _ in range(2)]
        threads.parked(channel, receivers=2)
        assert all(task.running for task in tasks)
        assert phrase(channel).nbrecv() == (None, False, False)
        channel.send(0)
        channel.send(0)
        assert [task.result() for task in tasks] == [(0, True)] * 2

    def test_runtime_chan_send_to_full_blocks(self, threads, phrase, capacity):
        channel = Channel(capacity)
        for i in range(capacity):
            phrase(channel).send(i) if capacity else None
        task = threads.go(phrase(channel).send, "last")
        threads.parked(channel, senders=1)
        assert task.running
        assert phrase(channel).nbsend(0) is False
        assert [channel.recv() for _ in range(capacity + 1)] == [*range(capacity), "last"]
        task.result()

    def test_runtime_chan_receive_from_closed(self, phrase, capacity):
        channel = Channel(capacity)
        for i in range(capacity):
            channel.send(i)
        channel.close()
        assert [phrase(channel).recv() for _ in range(capacity)] == [(i, True) for i in range(capacity)]
        assert [phrase(channel).recv() for _ in range(3)] == [(None, False)] * 3

    def test_runtime_chan_close_unblocks_receive(self, threads, phrase, capacity):
        channel = Channel(capacity)
        task = threads.go(phrase(channel).recv)
        threads.parked(channel, receivers=1)
        channel.close()
        assert task.result() == (None, False)

    def test_runtime_chan_100_in_order(self, threads, phrase, capacity):
        channel = Channel(capacity)
        for _ in range(2):
            threads.go(lambda: [channel.send(i) for i in range(100)])
            assert [phrase(channel).recv() for _ in range(100)] == [(i, True) for i in range(100)]

    @pytest.mark.parametrize("n", [150, pytest.param(1000, marks=stress)])
    def test_runtime_chan_4_to_4(self, threads, capacity, n):
        channel = Channel(capacity)
        for _ in range(4):
            threads.go(lambda: [channel.send(i) for i in range(n)])
        tasks = [threads.go(lambda: collections.Counter(channel.recv(timeout=20) for _ in range(n))) for _ in range(4)]
        got = sum((task.result() for task in tasks), collections.Counter())
        assert got == dict.fromkeys(range(n), 4)

    def test_runtime_chan_len_cap(self, capacity):
        channel = Channel(capacity)
        assert (len(channel), channel.capacity) == (0, capacity)
        for i in range(capacity):
            channel.send(i)
            assert len(channel) == i + 1
        assert (len(channel), channel.capacity) == (capacity, capacity)


@pytest.mark.parametrize("n", [300, pytest.param(10_000, marks=stress)])
def test_runtime_nonblock_recv_race(threads, phrase, n):
    """A receive with default of a channel that holds a value, while another closes it: it is ready."""
    channels = [Channel(1) for _ in range(n)]
    for channel in channels:
        channel.send(1)
    turn = [Channel(1) for _ in range(2)]

    def receive():
        for channel in channels:
            turn[0].recv(timeout=10)
            assert phrase(channel).nbrecv()[2], "chan is not ready"
            turn[1].send(1)

    task = threads.go(receive)
    for channel in channels:
        turn[0].send(1)
        channel.close()
        with contextlib.suppress(ChannelClosed):
            channel.recv()
        turn[1].recv(timeout=10)
    task.result()


@pytest.mark.parametrize("close", [False, True], ids=["send", "close"])
@pytest.mark.parametrize("n", [1000, pytest.param(30_000, marks=stress)])
def test_runtime_nonblock_select_race(threads, n, close):
    """TestNonblockSelectRace and TestNonblockSelectRace2: select judges one moment, not a smeared time window.

    c1 is ready, then c2 is made ready (or closed), then c1 is emptied: at every moment one of them is ready, so that a
    select with default over both may never find neither.
    """
    pairs = [(Channel(1), Channel(0 if close else 1)) for _ in range(n)]
    for c1, _ in pairs:
        c1.send(1)
    start, done = Channel(1), Channel(1)

    def selecting():
        for c1, c2 in pairs:
            start.recv(timeout=10)
            try:
                select(c1, c2, block=False)
                done.send(True)
            except WouldBlock:
                done.send(False)

    threads.go(selecting)
    for c1, c2 in pairs:
        start.send(None)
        if close:
            c2.close()
        else:
            c2.send(1)
        try:
            select(c1, block=False)
        except WouldBlock:
            pass
        assert done.recv(timeout=10), "no chan is ready"


@pytest.mark.parametrize("phrase", ["default", "timeout 0"])
def test_runtime_nonblock_select_race_at_the_worst_moment(phrase):
    """The same without luck: the channel that was seen ready is emptied, and the other filled, before the select gets
    to it.
    """

    class Shifting(Channel):
        __slots__ = ("other",)

        def _try_take(self):
            if self.other is not None:
                other, self.other = self.other, None
                other.send("moved")
                assert super()._try_take() == "here"
            return super()._try_take()

    options = {"block": False} if phrase == "default" else {"timeout": 0}
    for order in (1, -1):
        first, second = Channel(1), Shifting(1)
        second.send("here")
        second.other = first
        assert select(*(first, second)[::order], **options).value == "moved"


@pytest.mark.parametrize("capacity", [0, 10])
@pytest.mark.parametrize("n", [500, pytest.param(20_000, marks=stress)])
def test_runtime_self_select(threads, capacity, n):
    """Send and receive of one channel in one select, by two threads: no deadlock, and at capacity 0 no self-receive."""
    channel = Channel(capacity)

    def work(p):
        for i in range(n):
            cases = [channel.sending(p), channel]
            if p and i % 2:
                cases.reverse()
            done = select(*cases, timeout=20)
            if capacity == 0 and cases[done.index] is channel:
                assert done.value != p, "self receive"

    threads.all(lambda: work(0), lambda: work(1), timeout=60)


@pytest.mark.parametrize("n", [400, pytest.param(10_000, marks=stress)])
def test_runtime_select_stress(threads, n):
    """Four senders, four receivers, one select-sender and one select-receiver on channels of capacity 0, 0, 2, 3."""
    channels = [Channel(0), Channel(0), Channel(2), Channel(3)]

    def selecting(cases):
        counts = [0] * 4
        for _ in range(4 * n):
            index = select(*cases, timeout=30).index
            counts[index] += 1
            if counts[index] == n:
                cases[index] = None
        assert counts == [n] * 4

    threads.all(
        *[lambda c=c: [c.send(0) for _ in range(n)] for c in channels],
        *[lambda c=c: [c.recv() for _ in range(n)] for c in channels],
        lambda: selecting([c.sending(0) for c in channels]),
        lambda: selecting(list(channels)),
        timeout=60,
    )
    assert [len(c) for c in channels] == [0] * 4


@pytest.mark.parametrize("n", [3000, pytest.param(10_000, marks=stress)])
def test_runtime_select_fairness(threads, n):
    """Of two ready and two silent channels the ready are chosen as often, within 4.89 sigma (six nines)."""
    c1, c2, c3, c4, out, done = Channel(n + 1), Channel(n + 1), Channel(), Channel(), Channel(), Channel()
    for _ in range(n + 1):
        c1.send(1)
        c2.send(2)

    def selecting():
        while True:
            value = select(c3, c4, c1, c2).value
            if select(out.sending(value), done).index == 1:
                return

    task = threads.go(selecting)
    ones = sum(out.recv(timeout=10) == 1 for _ in range(n))
    done.close()
    task.result()
    assert abs(ones / n - 0.5) <= 4.891676 / (2 * math.sqrt(n)), f"unfair select: {ones} of {n}"


def test_runtime_chan_send_interface():
    """Any object may be sent, in any phrasing; a select of two sends with default."""

    class Thing:
        pass

    thing = Thing()
    channel = Channel(1)
    channel.send(thing)
    with pytest.raises(WouldBlock):
        select(channel.sending(thing), block=False)
    with pytest.raises(WouldBlock):
        select(channel.sending(thing), channel.sending(Thing()), block=False)
    assert channel.recv() is thing
    select(channel.sending(thing), channel.sending(thing), block=False)
    assert channel.recv() is thing


@pytest.mark.parametrize("capacity", [0, 200])
def test_runtime_pseudo_random_send(threads, capacity):
    """A select that sends 0 or 1 to one channel: both come, each more than one time in ten."""
    n = 200
    channel = Channel(capacity)

    def receive():
        got = []
        for _ in range(n):
            os.sched_yield()
            got.append(channel.recv(timeout=10))
        return got

    task = threads.go(receive)
    for _ in range(n):
        select(channel.sending(1), channel.sending(0), timeout=10)
    ones = sum(task.result())
    assert n / 10 < ones < n - n / 10, f"{ones} ones of {n}"


@pytest.mark.parametrize("n", [3000, pytest.param(271_828, marks=stress)])
def test_runtime_multi_consumer(threads, n):
    """23 workers range over one channel and send to another; the closer waits for them. Sum and count are right."""
    numbers = [2, 3, 7, 11, 13, 17, 19, 23, 27, 31]
    queue, results = Channel(69), Channel(69)

    def work(w):
        for value in queue:
            if numbers[w % len(numbers)] == value:
                os.sched_yield()
            results.send(value)

    workers = [threads.go(work, w) for w in range(23)]

    def feed():
        for i in range(n):
            queue.send(numbers[i % len(numbers)])
        queue.close()
        for worker in workers:
            worker.result(timeout=50)
        results.close()

    threads.go(feed)
    got = list(results)
    assert (len(got), sum(got)) == (n, sum(numbers[i % len(numbers)] for i in range(n)))


def test_runtime_select_duplicate_channel(threads):
    """The same channel twice in a select that loses: the waiter queued behind it must still be woken."""
    c, d, e = Channel(), Channel(), Channel()

    def a():
        assert select(c, c, d).index == 2
        e.send(9)

    threads.go(a)
    threads.parked(c, receivers=1)  # once for both
    b = threads.go(c.recv)
    threads.parked(c, receivers=2)
    d.send(7, timeout=10)  # wakes a, whose entries on c are dead now
    e.recv(timeout=10)
    c.send(8, timeout=10)  # must find b behind them
    assert b.result() == 8


class Value:
    """Something that a weak reference can watch."""


@pytest.mark.parametrize("use_select", [False, True], ids=["TestChanSendBarrier", "TestChanSendSelectBarrier"])
def test_runtime_chan_send_barrier(threads, use_select):
    """What is in a channel survives the garbage collector, also when only the channel holds it; and goes with it."""
    threshold = gc.get_threshold()
    gc.set_threshold(1, 1, 1)
    try:

        def inner(channel):
            outer = Channel()

            def sender():
                value = Value()
                if use_select:
                    select(outer.sending(value), Channel().sending(bytearray(100)))
                else:
                    outer.send(value)

            threads.go(sender)
            value = outer.recv(timeout=10)
            channel.send(value)
            return weakref.ref(value)

        channel = Channel(20)
        refs = [inner(channel) for _ in range(20)]
        gc.collect()
        assert all(ref() is not None for ref in refs)
        assert [type(channel.recv()) for _ in range(10)] == [Value] * 10
        for task in threads.tasks:
            task.result()
        threads.tasks.clear()
        gc.collect()
        assert [ref() is None for ref in refs] == [True] * 10 + [False] * 10
        del channel
        gc.collect()
        assert all(ref() is None for ref in refs)
    finally:
        gc.set_threshold(*threshold)
