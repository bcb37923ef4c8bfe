"""Many values at once: `send_many`, `recv_many` and those that do not wait."""

from __future__ import annotations

import random
import signal
from typing import Any

import pytest

from channels import Cancelled, CancelToken, Channel, ChannelClosed, WouldBlock

LONG = 10.0


def filled(capacity: int, *values: Any) -> Channel[Any]:
    channel: Channel[Any] = Channel(capacity)
    for value in values:
        channel.send(value)
    return channel


def test_what_is_there_is_received_up_to_a_limit() -> None:
    channel = filled(8, *range(6))
    assert channel.recv_many(2) == [0, 1]
    assert channel.try_recv_many(1) == [2]
    assert channel.recv_many() == [3, 4, 5]
    with pytest.raises(WouldBlock):
        channel.try_recv_many()
    with pytest.raises(TimeoutError):
        channel.recv_many(timeout=0)
    with pytest.raises(TimeoutError):
        channel.recv_many(timeout=0.001)


def test_what_is_sent_fills_the_buffer_and_no_more() -> None:
    channel: Channel[int] = Channel(3)
    assert channel.try_send_many(range(5)) == 3
    assert channel.try_send_many([5]) == 0
    assert channel.try_send_many([]) == 0
    assert len(channel) == 3
    assert channel.recv_many() == [0, 1, 2]
    channel.send_many([])
    channel.send_many(iter("ab"))  # type: ignore[arg-type]
    assert channel.recv_many() == ["a", "b"]


def test_receiving_many_waits_for_the_first_value_and_not_for_more(threads: Any) -> None:
    channel: Channel[int] = Channel(4)
    receiver = threads.go(channel.recv_many)
    threads.parked(channel, receivers=1)
    channel.send_many([1, 2, 3])
    assert receiver.result() == [1]
    assert channel.recv_many() == [2, 3]


def test_a_batch_goes_to_those_who_wait_first_come_first_served(threads: Any) -> None:
    channel: Channel[int] = Channel(1)
    receivers = []
    for n in range(3):
        receivers.append(threads.go(channel.recv))
        threads.parked(channel, receivers=n + 1)
    assert channel.try_send_many(range(6)) == 4
    assert [each.result() for each in receivers] == [0, 1, 2]
    assert channel.try_recv_many() == [3]


def test_a_batch_makes_room_for_all_who_wait_to_send(threads: Any) -> None:
    channel = filled(2, 0, 1)
    senders = []
    for n in range(3):
        senders.append(threads.go(channel.send, 2 + n))
        threads.parked(channel, senders=n + 1)
    assert channel.recv_many() == [0, 1]
    threads.parked(channel, senders=1)
    assert channel.recv_many(1) == [2]
    threads.parked(channel, senders=0)
    assert channel.recv_many() == [3, 4]
    for each in senders:
        each.result()


@pytest.mark.parametrize(("limit", "got"), [(None, [0, 1, 2]), (2, [0, 1])])
def test_without_a_buffer_values_are_taken_from_the_hands_of_senders(threads: Any, limit: int, got: list[int]) -> None:
    channel: Channel[int] = Channel()
    for n in range(3):
        threads.go(channel.send, n)
        threads.parked(channel, senders=n + 1)
    assert channel.recv_many(limit) == got
    assert [channel.recv() for _ in range(3 - len(got))] == [0, 1, 2][len(got) :]


@pytest.mark.parametrize("capacity", [0, 1, 3])
def test_sending_many_waits_until_all_are_sent(threads: Any, capacity: int) -> None:
    channel: Channel[int] = Channel(capacity)
    sender = threads.go(channel.send_many, range(10))
    got: list[int] = []
    while len(got) < 10:
        assert len(channel) <= capacity
        got += channel.recv_many(2, timeout=LONG)
    assert got == list(range(10))
    sender.result()


@pytest.mark.parametrize("receive", ["recv_many", "try_recv_many"])
def test_a_closed_channel_is_drained_with_its_last_value_and_then_says_so(receive: str) -> None:
    channel = filled(2, 0, 1)
    channel.close(final=None)
    assert getattr(channel, receive)() == [0, 1, None]
    with pytest.raises(ChannelClosed):
        getattr(channel, receive)()
    with pytest.raises(ChannelClosed):
        channel.try_send_many([1])
    with pytest.raises(ChannelClosed) as refused:
        channel.send_many([1])
    assert refused.value.sent == 0  # type: ignore[attr-defined]


def test_who_is_refused_in_the_middle_of_a_batch_learns_how_many_were_sent(threads: Any) -> None:
    channel: Channel[int] = Channel(2)
    sender = threads.go(channel.send_many, range(5))
    threads.parked(channel, senders=1)
    assert channel.recv() == 0
    threads.parked(channel, senders=1)
    channel.close()
    assert sender.raises(ChannelClosed).sent == 3
    assert list(channel) == [1, 2]


def test_a_timeout_is_for_the_whole_batch() -> None:
    channel: Channel[int] = Channel(2)
    with pytest.raises(TimeoutError) as late:
        channel.send_many(range(4), timeout=0.01)
    assert late.value.sent == 2  # type: ignore[attr-defined]
    with pytest.raises(TimeoutError) as late:
        channel.send_many([5], timeout=0)
    assert late.value.sent == 0  # type: ignore[attr-defined]
    assert channel.recv_many() == [0, 1]


def test_a_cancel_ends_a_batch_and_nothing_goes_ahead_after_it(threads: Any) -> None:
    channel, token = filled(2), CancelToken()
    sender = threads.go(channel.send_many, range(4), None, token)
    threads.parked(channel, senders=1)
    token.cancel("enough")
    assert sender.raises(Cancelled).sent == 2
    with pytest.raises(Cancelled, match="enough"):
        channel.recv_many(cancel=token)
    with pytest.raises(Cancelled):
        channel.send_many([9], cancel=token)
    assert channel.recv_many() == [0, 1]


@pytest.mark.parametrize("limit", [0, -1, True])
def test_a_limit_is_a_number_of_values(limit: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="limit must be a whole number, 1 or more, or None for all"):
        filled(1, 1).recv_many(limit)
    with pytest.raises(TypeError, match="limit must be a whole number"):
        filled(1, 1).try_recv_many(1.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="timeout"):
        filled(1, 1).recv_many(timeout=-1)


def test_views_have_their_side_of_it() -> None:
    channel: Channel[int] = Channel(4)
    channel.sender.send_many([1, 2])
    assert channel.sender.try_send_many([3]) == 1
    assert channel.receiver.recv_many(2) == [1, 2]
    assert channel.receiver.try_recv_many() == [3]
    assert not hasattr(channel.sender, "recv_many")
    assert not hasattr(channel.receiver, "send_many")


def test_a_signal_handler_may_try_many_and_is_told_where_it_cannot_wait() -> None:
    """It comes into the middle of an operation on the same channel of the same thread."""
    channel = filled(4, 1)
    seen: list[Any] = []

    def handler(*_: Any) -> None:
        seen.append(channel.try_send_many([7]))
        for receive in (channel.try_recv_many, channel.recv_many):
            try:
                seen.append(receive())
            except (WouldBlock, RuntimeError) as error:
                seen.append(type(error))

    before = signal.signal(signal.SIGINT, handler)
    try:
        channel._lock.acquire()
        signal.raise_signal(signal.SIGINT)
        channel._lock.release()
    finally:
        signal.signal(signal.SIGINT, before)
    assert seen == [0, WouldBlock, RuntimeError]
    assert channel.recv_many() == [1]


@pytest.mark.parametrize("capacity", [0, 1, 4])
def test_nothing_is_lost_or_doubled_between_many_threads(threads: Any, switching: None, capacity: int) -> None:
    channel: Channel[tuple[int, int]] = Channel(capacity)
    count = 400

    def send(me: int) -> None:
        choose, at = random.Random(me), 0
        while at < count:
            batch = [(me, k) for k in range(at, min(at + choose.randrange(1, 6), count))]
            if choose.random() < 0.5:
                channel.send_many(batch)
                at += len(batch)
            else:
                at += channel.try_send_many(batch)

    def receive(me: int) -> list[tuple[int, int]]:
        choose, got = random.Random(-me), []
        try:
            while True:
                if choose.random() < 0.5:
                    got += channel.recv_many(choose.choice((None, 1, 3)))
                else:
                    got.append(channel.recv())
        except ChannelClosed:
            return got

    receivers = [threads.go(receive, n) for n in range(1, 4)]
    senders = [threads.go(send, n) for n in range(3)]
    for each in senders:
        each.result(30)
    channel.close()
    got = [each.result(30) for each in receivers]
    assert sorted(value for each in got for value in each) == [(me, k) for me in range(3) for k in range(count)]
    for each in got:  # of one sender, each receiver sees what it gets in order
        for me in range(3):
            mine = [k for sender, k in each if sender == me]
            assert mine == sorted(mine)


def test_who_was_cancelled_before_learns_that_nothing_was_sent() -> None:
    channel, token = Channel[int](4), CancelToken()
    token.cancel()
    with pytest.raises(Cancelled) as raised:
        channel.send_many([1, 2], None, token)
    assert raised.value.sent == 0  # type: ignore[attr-defined]
    assert len(channel) == 0
