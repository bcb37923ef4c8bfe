"""What closing promises: idempotent, never waiting, drained, and with a last value that nothing can displace."""

from __future__ import annotations

import threading

import pytest

from channels import Channel, ChannelClosed, WouldBlock, select
from channels._rescue import closing


@pytest.fixture(autouse=True)
def _no_close_is_forgotten():
    """A close that is on record has an operation that completes it: afterwards none is left."""
    yield
    assert not closing


def test_close_says_whether_it_did():
    channel = Channel()
    assert channel.close() is True
    assert channel.closed
    assert channel.close() is False
    assert channel.sender.close() is False
    assert channel.closed


def test_exactly_one_of_many_closers_did(threads, switching):
    """And its final value, no other, is the last."""
    for _ in range(50):
        channel = Channel(1)
        won = threads.all(*[lambda k=k: channel.close(final=k) for k in range(4)])
        assert won.count(True) == 1
        assert list(channel) == [won.index(True)]


def test_when_close_returns_the_channel_is_closed(threads, switching):
    """For the one that was second, too: nobody sends after a close that has returned."""
    for _ in range(100):
        channel = Channel(8)

        def closer(channel=channel):
            channel.close()
            with pytest.raises(ChannelClosed):
                channel.try_send("after")
            return channel._closed

        assert threads.all(closer, closer, closer) == [True, True, True]


@pytest.mark.parametrize("capacity", [0, 1, 3])
def test_send_on_a_closed_channel_is_refused(capacity):
    """And the value is not there afterwards."""
    channel = Channel(capacity)
    channel.close()
    for operation in (
        lambda: channel.send(1),
        lambda: channel.send(1, timeout=0),
        lambda: channel.send(1, timeout=1),
        lambda: channel.try_send(1),
        lambda: select(channel.sending(1)),
        lambda: select(channel.sending(1), block=False),
        lambda: select(channel.sending(1), None, timeout=0),
    ):
        with pytest.raises(ChannelClosed, match="send on <Channel"):
            operation()
    assert list(channel) == []


@pytest.mark.parametrize("capacity", [1, 3])
def test_receivers_drain_a_closed_channel(capacity):
    """What is buffered is delivered first, then it is `ChannelClosed` for ever."""
    channel = Channel(capacity)
    for k in range(capacity):
        channel.send(k)
    channel.close()
    assert len(channel) == capacity
    assert channel.recv() == 0
    rest = [select(channel) for _ in range(capacity - 1)]
    assert [(r.value, r.ok) for r in rest] == [(k, True) for k in range(1, capacity)]
    for _ in range(3):
        for operation in (channel.recv, channel.try_recv, lambda: channel.recv(timeout=0), lambda: channel.recv(1)):
            with pytest.raises(ChannelClosed, match="receive from <Channel"):
                operation()
        assert tuple(select(channel))[:3] == (0, None, False)
        assert tuple(select(channel, block=False))[:3] == (0, None, False)


@pytest.mark.parametrize("capacity", [0, 2])
def test_close_wakes_parked_receivers(threads, capacity):
    channel = Channel(capacity)
    receivers = [threads.go(channel.recv) for _ in range(3)] + [threads.go(channel.recv, 1e9)]
    selecting = threads.go(select, channel, None)
    threads.parked(channel, receivers=5)
    assert channel.close()
    for task in receivers:
        task.raises(ChannelClosed)
    assert tuple(selecting.result())[:3] == (0, None, False)


@pytest.mark.parametrize("capacity", [0, 2])
def test_close_refuses_parked_senders(threads, capacity):
    """What they carried is not delivered; what was buffered before is."""
    channel = Channel(capacity)
    for k in range(capacity):
        channel.send(k)
    senders = [threads.go(channel.send, "no") for _ in range(3)] + [threads.go(channel.send, "no", 1e9)]
    selecting = threads.go(select, channel.sending("no"), None)
    threads.parked(channel, senders=5)
    assert channel.close()
    for task in [*senders, selecting]:
        task.raises(ChannelClosed)
    assert list(channel) == list(range(capacity))


# -- final= ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("capacity", [0, 1, 3])
def test_final_is_the_last_value_also_of_a_full_channel(capacity):
    channel = Channel(capacity)
    for k in range(capacity):
        channel.send(k)
    assert channel.close(final="last")
    assert len(channel) == capacity + 1
    assert list(channel) == [*range(capacity), "last"]


@pytest.mark.parametrize("capacity", [0, 3])
def test_final_of_an_empty_channel(capacity):
    channel = Channel(capacity)
    channel.close(final="last")
    assert channel.recv(timeout=0) == "last"
    with pytest.raises(ChannelClosed):
        channel.recv(timeout=0)


@pytest.mark.parametrize("capacity", [0, 1])
def test_none_is_a_final_value(capacity):
    channel = Channel(capacity)
    channel.close(final=None)
    assert list(channel) == [None]
    channel = Channel(capacity)
    channel.close()
    assert list(channel) == []


@pytest.mark.parametrize("capacity", [0, 2])
def test_final_goes_to_the_first_parked_receiver(threads, capacity):
    channel = Channel(capacity)
    receivers = []
    for k in range(3):
        receivers.append(threads.go(channel.recv))
        threads.parked(channel, receivers=k + 1)
    channel.close(final="last")
    assert receivers[0].result() == "last"
    receivers[1].raises(ChannelClosed)
    receivers[2].raises(ChannelClosed)
    assert len(channel) == 0


def test_final_goes_to_a_parked_select(threads):
    channel, other = Channel(), Channel()
    waiting = threads.go(select, other, channel)
    threads.parked(channel, receivers=1)
    channel.close(final="last")
    assert tuple(waiting.result())[:3] == (1, "last", True)
    threads.parked(other, receivers=0)


@pytest.mark.parametrize("capacity", [0, 2])
def test_parked_senders_are_refused_before_the_final_value_goes_in(threads, capacity):
    """Whoever was parked is told so, and none of their values comes before or after the final one."""
    channel = Channel(capacity)
    for k in range(capacity):
        channel.send(k)
    senders = [threads.go(channel.send, f"no {k}") for k in range(3)]
    threads.parked(channel, senders=3)
    assert channel.close(final="last")
    for task in senders:
        task.raises(ChannelClosed)
    assert list(channel) == [*range(capacity), "last"]


def test_only_the_final_of_the_closing_call_counts():
    channel = Channel()
    assert channel.close(final=1)
    assert not channel.close(final=2)
    assert list(channel) == [1]
    channel = Channel(1)
    assert channel.close()
    assert not channel.close(final=2)
    assert list(channel) == []
    assert not channel.close(final=3)
    assert list(channel) == []


def test_final_never_waits_for_a_consumer(threads):
    """Law 2 of the design: a full buffer and a slow consumer, and the last value is there, once."""
    channel = Channel(2)
    channel.send(1)
    channel.send(2)
    task = threads.go(channel.close, "last")
    assert task.result() is True
    with pytest.raises(ChannelClosed):
        channel.send(3)
    assert list(channel) == [1, 2, "last"]


@pytest.mark.parametrize("capacity", [0, 1, 4])
def test_close_with_a_final_racing_senders_and_receivers(threads, switching, capacity):
    """Returned <=> received, and the final value comes after all of them, exactly once."""
    for _ in range(30):
        channel = Channel(capacity)
        sent, got = [], []

        def send(k, channel=channel, sent=sent):
            with pytest.raises(ChannelClosed):
                for n in range(1_000_000):
                    channel.send((k, n))
                    sent.append((k, n))

        def receive(channel=channel, got=got):
            got.extend(channel)

        def close(channel=channel, sent=sent):
            while len(sent) < 20:
                threading.Event().wait(0.0001)
            assert channel.close(final="last")

        threads.all(lambda: send(0), lambda: send(1), receive, close)
        assert got.pop() == "last"
        assert sorted(got) == sorted(sent)


def test_receive_at_once_racing_the_final_value():
    """``recv(timeout=0)`` says that the channel is closed only when it is drained: a poller must not lose the last.

    The close comes right after the receive has let go of the lock, found nothing, and has not yet said so.
    """
    for operation in ("recv", "try_recv", "select", "select default"):
        channel = Channel(2)
        channel._lock = _AfterRelease(channel._lock, lambda channel=channel: channel.close(final="last"))
        with pytest.raises((TimeoutError, WouldBlock)):
            {
                "recv": lambda: channel.recv(timeout=0),
                "try_recv": channel.try_recv,
                "select": lambda: select(channel, timeout=0),
                "select default": lambda: select(channel, block=False),
            }[operation]()
        assert channel.recv(timeout=0) == "last"


class _AfterRelease:
    """A lock that does something once, right after it has been let go: what another thread may do at that moment."""

    def __init__(self, lock, action):
        self._lock, self._action = lock, action

    def acquire(self, *args):
        return self._lock.acquire(*args)

    def _is_owned(self):
        return self._lock._is_owned()

    def release(self):
        self._lock.release()
        action, self._action = self._action, None
        if action is not None:
            action()


def test_the_last_of_several_senders_closes(threads):
    """The usual shape of many producers and one channel."""
    channel = Channel(2)
    left = [3]
    lock = threading.Lock()

    def produce(k):
        for i in range(5):
            channel.send((k, i))
        with lock:
            left[0] -= 1
            last = not left[0]
        if last:
            channel.close()

    tasks = [threads.go(produce, k) for k in range(3)]
    assert sorted(channel) == [(k, i) for k in range(3) for i in range(5)]
    for task in tasks:
        task.result()
