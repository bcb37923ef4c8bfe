"""Go's src/runtime/race/testdata: what the memory model orders. ``NoRace`` tests must find what was written before.

Where a race must be reported there, the invariant that holds for us whatever the order is checked instead.
On builds with a GIL the order of memory is given; that the hand-over comes after the write is not.
"""

from __future__ import annotations

import contextlib
import itertools

import pytest

from channels import Channel, ChannelClosed, WouldBlock, select

pytestmark = pytest.mark.usefixtures("switching")

ROUNDS = 25


class Box:
    """A plain variable."""

    value = 0


@pytest.fixture(params=[0, 1, 10], ids=["sync", "async1", "async10"])
def capacity(request):
    return request.param


def test_race_no_race_chan_sync_async(threads, phrase, other_phrase, capacity):
    """NoRaceChanSync, NoRaceChanAsync: a send happens before the completion of its receive."""
    for n in range(ROUNDS):
        channel, box = Channel(capacity), Box()

        def send(channel=channel, box=box, n=n):
            box.value = n
            phrase(channel).send(0)

        task = threads.go(send)
        other_phrase(channel).recv()
        assert box.value == n
        task.result()


def test_race_no_race_chan_sync_rev(threads, phrase, other_phrase):
    """NoRaceChanSyncRev: on an unbuffered channel the receive happens before the completion of the send."""
    for n in range(ROUNDS):
        channel, box, seen = Channel(), Box(), []

        def send(channel=channel, box=box, seen=seen):
            phrase(channel).send(0)
            seen.append(box.value)

        task = threads.go(send)
        box.value = n
        other_phrase(channel).recv()
        task.result()
        assert seen == [n]


@pytest.mark.parametrize("end", ["recv", "recv ok", "range", "non-blocking", "select", "done"])
def test_race_no_race_chan_close_recv(threads, end, capacity):
    """NoRaceChan{Async,Sync}CloseRecv{,2,3}, NoRaceCloseHappensBeforeRead: close happens before a receive that ends
    by it.
    """
    for n in range(ROUNDS):
        channel, box = Channel(capacity), Box()

        def close(channel=channel, box=box, n=n):
            box.value = n
            channel.close()

        task = threads.go(close)
        if end == "recv":
            with pytest.raises(ChannelClosed):
                channel.recv()
        elif end == "recv ok":
            assert not select(channel).ok
        elif end == "range":
            assert list(channel) == []
        elif end == "select":
            assert not select(Channel(), channel, None).ok
        elif end == "done":
            while not channel.closed:
                pass
        else:
            while True:
                try:
                    channel.try_recv()
                except WouldBlock:
                    continue
                except ChannelClosed:
                    break
        assert box.value == n
        task.result()


@pytest.mark.parametrize("size", [1, 2, 5])
def test_race_memory_model_kth_receive(threads, size):
    """The k-th receive on a channel of capacity C happens before the completion of the (k+C)-th send."""
    channel = Channel(size)
    received = [False] * 200

    def receive():
        for k in range(200):
            received[k] = True  # before the receive that lets send k + C complete
            assert channel.recv() == k

    task = threads.go(receive)
    for k in range(200):
        channel.send(k)
        assert k < size or received[k - size]
    task.result()


@pytest.mark.parametrize("size", [1, 2, 3])
def test_race_chan_sem_and_mutex(threads, size):
    """NoRaceChanMutex, RaceChanSem: a channel of capacity C admits C holders and no more, not even for a moment."""
    channel, inside, worst = Channel(size), [], []

    def work(me):
        for _ in range(60):
            channel.send(me)
            inside.append(me)
            worst.append(len(inside))
            inside.remove(me)
            channel.recv()

    threads.all(*[lambda me=me: work(me) for me in range(6)])
    assert max(worst) <= size


def test_race_no_race_chan_mutex_counts(threads, phrase):
    """NoRaceChanMutex, NoRaceSelectMutex: what is done while holding it is not lost."""
    channel, box = Channel(1), Box()

    def work():
        for _ in range(40):
            phrase(channel).send(None)
            value = box.value
            for _ in itertools.repeat(None, 20):
                pass
            box.value = value + 1
            phrase(channel).recv()

    threads.all(*[work] * 5)
    assert box.value == 200


def test_race_no_race_chan_wait_group(threads):
    """NoRaceChanWaitGroup: as many receives as workers, and all their work is seen."""
    done, data = Channel(5), [0] * 10

    def work(k):
        data[k] = k + 1
        done.send(None)

    for k in range(10):
        threads.go(work, k)
    for _ in range(10):
        done.recv(timeout=10)
    assert data == list(range(1, 11))


@pytest.mark.parametrize("size", [0, 2])
def test_race_no_race_blocked_send_sync(threads, phrase, size):
    """NoRaceBlockedSendSync, NoRaceBlockedSelectSendSync: a parked sender's writes are seen by who takes its value."""
    for n in range(ROUNDS):
        channel, box = Channel(size), Box()
        for _ in range(size):
            channel.send("first")

        def send(channel=channel, box=box, n=n):
            box.value = n
            phrase(channel).send("mine")

        task = threads.go(send)
        threads.parked(channel, senders=1)
        while channel.recv() != "mine":
            pass
        assert box.value == n
        task.result()


def test_race_no_race_chan_ptr(threads):
    """NoRaceChanPtr: what a sent object refers to is seen."""
    channel = Channel()
    task = threads.go(lambda: [channel.send([n]) for n in range(100)])
    for n in range(100):
        got = channel.recv()
        assert got == [n]
        got[0] = None
    task.result()


def test_race_no_race_producer_consumer_unbuffered(threads):
    """NoRaceProducerConsumerUnbuffered: a queue of callables, each run once before it is answered."""
    tasks, box = Channel(), Box()

    def serve():
        for function, done in tasks:
            function()
            done.send(True)

    threads.go(serve)

    def increment():
        box.value += 1

    for _ in range(100):
        done = Channel(1)
        tasks.send((increment, done))
        done.recv()
    tasks.close()
    assert box.value == 100


def test_race_no_race_elem_size_0(threads, capacity):
    """NoRaceElemetSize0: sending None synchronizes too."""
    for n in range(ROUNDS):
        channel, box = Channel(capacity), Box()

        def send(channel=channel, box=box, n=n):
            box.value = n
            channel.send(None)

        task = threads.go(send)
        assert channel.recv() is None
        assert box.value == n
        task.result()


@pytest.mark.parametrize("size", [0, 10])
def test_race_no_race_select_1_to_5(threads, size):
    """NoRaceSelect1-5, NoRaceSelectReadWriteAsync, -Sync: order through selects on either side and on both."""
    for n in range(ROUNDS):
        for sender_selects, receiver_selects in ((True, True), (True, False), (False, True)):
            channel, other, box = Channel(size), Channel(), Box()

            def send(channel=channel, other=other, box=box, n=n, selects=sender_selects):
                box.value = n
                if selects:
                    select(channel.sending(True), other.sending(True))
                else:
                    channel.send(True)

            task = threads.go(send)
            if receiver_selects:
                select(channel, Channel(), Channel().sending(1))
            else:
                channel.recv()
            assert box.value == n
            task.result()


def test_race_flaky_default(threads):
    """FlakyDefault: a select with default orders only what it received."""
    channel, box = Channel(), Box()

    def send():
        box.value = 1
        channel.send(True)

    task = threads.go(send)
    while True:
        try:
            select(channel, block=False)
            break
        except WouldBlock:
            continue
    assert box.value == 1
    task.result()


# -- races that Go reports: the invariants -----------------------------------------------------------------------------


def test_race_chan_close_send(threads, phrase, capacity):
    """RaceChan{Sync,Async}CloseSend, -SendClose, -SendSelectClose, -CloseSend: a send that returned is received, one
    that raised is not."""
    for _ in range(ROUNDS):
        channel, sent, got = Channel(capacity), [], []

        def send(k, channel=channel, sent=sent):
            with contextlib.suppress(ChannelClosed):
                for n in itertools.count():
                    phrase(channel).send((k, n))
                    sent.append((k, n))

        def close(channel=channel, sent=sent):
            while len(sent) < 3:
                pass
            channel.close()

        threads.all(lambda: send(0), lambda: send(1), lambda: got.extend(channel), close)
        assert sorted(sent) == sorted(got)


def test_race_chan_close_close(threads):
    """RaceChanCloseClose, -WrongClose: exactly one of them closes."""
    for _ in range(ROUNDS):
        channel = Channel()
        assert sorted(threads.all(channel.close, channel.close)) == [False, True]


def test_race_chan_len_cap(threads, capacity):
    """RaceChanSendLen, RaceChanRecvLen, NoRaceChanCloseLen, -Cap: they order nothing, but are safe at any time."""
    channel = Channel(capacity)

    def look():
        seen = set()
        while not channel.closed:
            seen.add(len(channel))
            assert channel.capacity == capacity
            repr(channel)
        return seen

    watcher = threads.go(look)
    sender = threads.go(lambda: [channel.send(k) for k in range(300)])
    for _ in range(300):
        channel.recv()
    sender.result()
    channel.close()
    assert watcher.result() <= set(range(capacity + 1))
    assert (len(channel), channel.capacity) == (0, capacity)
