"""What threads in Python need and goroutines do not: the list "Not in Go". Its parts about Ctrl-C, signal handlers,
finalizers, fork and exit are in channels/test_interrupt.py, test_reentrance.py, test_fork_exit.py; asyncio in
test_aio.py.
"""

from __future__ import annotations

import contextlib
import itertools
import random
import threading

import pytest

from channels import Cancelled, CancelToken, Channel, ChannelClosed, WouldBlock, select

pytestmark = pytest.mark.usefixtures("switching")
stress = pytest.mark.stress


@pytest.mark.parametrize("kind", ["op", "select", "cancel"])
@pytest.mark.parametrize("capacity", [0, 2])
@pytest.mark.parametrize("n", [80, pytest.param(3000, marks=stress)])
def test_timeout_racing_with_delivery(threads, kind, capacity, n):
    """Exactly one of "timed out" and "delivered": what was sent is received once, what timed out never."""
    channel, over, token = Channel(capacity), threading.Event(), CancelToken()

    def send(me):
        choose, sent = random.Random(me), []
        for k in range(n):
            timeout = choose.choice((0, 0.0002, 0.001, 0.003))
            with contextlib.suppress(TimeoutError):
                if kind == "select":
                    select(channel.sending((me, k)), None, timeout=timeout)
                else:
                    channel.send((me, k), timeout, token if kind == "cancel" else None)
                sent.append((me, k))
        return sent

    def receive(me):
        choose, got = random.Random(-me), []
        while True:
            last = over.is_set()
            try:
                timeout = choose.choice((0, 0.0001, 0.001, 0.002))
                if kind == "select":
                    got.append(select(None, channel, timeout=timeout).value)
                else:
                    got.append(channel.recv(timeout, token if kind == "cancel" else None))
            except TimeoutError:
                if last:
                    return got

    receivers = [threads.go(receive, k) for k in range(1, 4)]
    senders = [threads.go(send, k) for k in range(3)]
    sent = [value for task in senders for value in task.result(60)]
    over.set()
    got = [value for task in receivers for value in task.result(60)]
    assert sorted(sent) == sorted(got)
    assert repr(channel) == f"<Channel 0/{capacity} open>"


@pytest.mark.parametrize("capacity", [0, 1])
@pytest.mark.parametrize("n", [60, pytest.param(2000, marks=stress)])
def test_cancel_racing_with_delivery(threads, capacity, n):
    """Exactly one of "cancelled" and "delivered", on both sides."""
    for _ in range(n):
        channel, token = Channel(capacity), CancelToken()

        def send(value, channel=channel, token=token):
            with contextlib.suppress(Cancelled):
                channel.send(value, cancel=token)
                return [value]
            return []

        def receive(channel=channel, token=token):
            with contextlib.suppress(Cancelled):
                return [channel.recv(cancel=token)]
            return []

        first, second, got, _ = threads.all(lambda: send(1), lambda: send(2), receive, token.cancel)
        with contextlib.suppress(WouldBlock):
            while True:
                got.append(channel.try_recv())
        assert sorted(got) == first + second


@pytest.mark.parametrize("capacity", [0, 1, 5])
@pytest.mark.parametrize("n", [40, pytest.param(1000, marks=stress)])
def test_send_concurrent_with_close_is_linearizable(threads, capacity, n):
    """A send that returned was received, one that raised was not."""
    for _ in range(n):
        channel, sent = Channel(capacity), []

        def send(me, channel=channel, sent=sent):
            with contextlib.suppress(ChannelClosed):
                for k in itertools.count():
                    channel.send((me, k))
                    sent.append((me, k))

        def close(channel=channel, sent=sent):
            while len(sent) < 2:
                pass
            channel.close()

        *_, one, other, _ = threads.all(
            lambda: send(0), lambda: send(1), lambda: list(channel), lambda: list(channel), close
        )
        assert sorted(one + other) == sorted(sent)


@pytest.mark.parametrize("capacity", [0, 3])
def test_a_hand_off_may_not_be_stolen(threads, capacity):
    """pygolang's test_chan_buf_send_vs_tryrecv_race: with a receiver parked, whoever tries to receive finds nothing."""
    for _ in range(30):
        channel = Channel(capacity)
        parked = threads.go(channel.recv)
        threads.parked(channel, receivers=1)

        def steal(channel=channel):
            for _ in range(20):
                with contextlib.suppress(WouldBlock):
                    return channel.try_recv()
            return None

        stolen, _ = threads.all(steal, lambda channel=channel: channel.send("v"))
        assert stolen is None
        assert parked.result() == "v"


@pytest.mark.parametrize("capacity", [0, 2])
def test_a_parked_sender_may_not_be_overtaken(threads, capacity):
    """pygolang's recv_vs_tryrecv_race, mirrored: with a sender parked, a concurrent try_send finds no room."""
    for _ in range(30):
        channel = Channel(capacity)
        for k in range(capacity):
            channel.send(k)
        parked = threads.go(channel.send, capacity)
        threads.parked(channel, senders=1)

        def overtake(channel=channel):
            for _ in range(20):
                with contextlib.suppress(WouldBlock):
                    channel.try_send("overtaken")
                    return True
            return False

        overtaken, got = threads.all(overtake, lambda channel=channel: channel.recv())
        assert not overtaken
        assert [got, *(channel.recv() for _ in range(capacity))] == list(range(capacity + 1))
        parked.result()


@pytest.mark.parametrize("capacity", [1, 3])
@pytest.mark.parametrize("n", [150, pytest.param(4000, marks=stress)])
def test_capacity_is_never_exceeded(threads, capacity, n):
    """Not even for a moment: it is a semaphore. In every phrasing of taking it and giving it back."""
    channel, inside, worst = Channel(capacity), [], []
    take = [
        lambda: channel.send(1),
        lambda: select(channel.sending(1), None),
        lambda: channel.send(1, timeout=30),
        lambda: channel.send(1, cancel=CancelToken()),
    ]
    give = [channel.recv, lambda: select(channel), channel.try_recv, lambda: channel.recv(timeout=1)]

    def work(me):
        for k in range(n):
            take[(me + k) % 4]()
            inside.append(me)
            worst.append(len(inside))
            assert len(channel) <= capacity
            inside.remove(me)
            give[(me * 3 + k) % 4]()

    threads.all(*[lambda me=me: work(me) for me in range(8)], timeout=60)
    assert max(worst) <= capacity
    assert len(channel) == 0


def test_items_are_compared_by_identity_only(threads):
    """numpy arrays raise when they are asked whether they are true or equal: see also test_hostile_values."""

    class Array:
        __hash__ = None

        def __eq__(self, other):
            raise ValueError("the truth value of an array is ambiguous")

        __bool__ = __ne__ = __lt__ = __eq__

    values = [Array() for _ in range(20)]
    channel = Channel(2)

    def send():
        for value in values[:-1]:
            select(channel.sending(value), channel.sending(value))
        channel.close(final=values[-1])

    threads.go(send)
    assert all(got is sent for got, sent in zip(channel, values, strict=True))
