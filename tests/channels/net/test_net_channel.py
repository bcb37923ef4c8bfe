"""A channel over a connection is a channel: what holds in one process, holds between two."""

from __future__ import annotations

import asyncio
import gc
import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from channels import Cancelled, CancelToken, Channel, ChannelClosed, WouldBlock, merge, select
from channels.aio import to_async
from channels.net import Codec, Connection, ConnectionLost, Listener, connect
from support.certificates import certificates

Pair = Callable[..., tuple[Connection, Connection]]


@pytest.fixture(params=["plain", "tls"])
def pair(request: pytest.FixtureRequest, threads: Any) -> Iterator[Pair]:
    """The two ends of a connection."""
    made: list[Connection] = []
    here = there = None
    if request.param == "tls":
        here, there = certificates().server(), certificates().client()

    def pair(**settings: Any) -> tuple[Connection, Connection]:
        with Listener(**settings, ssl=here) as listener:
            codecs = settings.get("codecs")
            other = threads.go(connect, listener.address, listener.key, codecs=codecs, ssl=there)
            made.append(listener.accept(timeout=5))
        made.append(other.result())
        return made[-2], made[-1]

    yield pair
    for connection in made:
        connection.abort()
    for connection in made:
        connection.close()


def test_values_come_in_order_in_both_directions(pair: Pair, threads: Any) -> None:
    near, far = pair(capacity=4)
    values = [None, True, -1, 0.5, "é \u2028 \ud800", [], {"a": [{}]}, "x" * 100_000]

    def send(connection: Connection) -> None:
        with connection.sender as sender:
            for value in values:
                sender.send(value)

    tasks = [threads.go(send, each) for each in (near, far)]
    lists = threads.all(lambda: list(near.receiver), lambda: list(far.receiver))
    for task in tasks:
        task.result()
    assert lists == [values, values]
    near.close()
    far.close()
    assert near.error is far.error is None


@pytest.mark.parametrize("capacity", [1, 2, 3, 4, 5, 8, 64, 127, 128])
def test_the_bound_holds_end_to_end(pair: Pair, capacity: int, threads: Any) -> None:
    """So many values can be sent that nobody receives; and then one for each that is received."""
    near, far = pair(capacity=capacity)
    assert near.sender.capacity == far.receiver.capacity == capacity
    sent = fill(near)
    assert len(sent) == capacity
    with pytest.raises(WouldBlock):
        near.sender.try_send("one more")
    for number in sent:
        assert far.receiver.recv(timeout=5) == number
    again = fill(near)
    assert len(again) == capacity
    assert [far.receiver.recv(timeout=5) for _ in again] == again


@pytest.mark.parametrize("capacity", [1, 2, 3, 64, 128])
def test_a_send_goes_on_when_one_value_is_received(pair: Pair, threads: Any, capacity: int) -> None:
    """Credits are given back many at a time, but not where somebody would wait in vain for the next."""
    near, far = pair(capacity=capacity)
    fill(near)
    for number in range(3):
        task = threads.go(near.sender.send, capacity + number)
        threads.asleep(task)
        assert far.receiver.recv(timeout=5) == number
        task.result()
        with pytest.raises(WouldBlock):
            near.sender.try_send("no room")


def fill(connection: Connection) -> list[int]:
    """Send until no more is taken. For its capacity there is room, if not at once: each value has to be taken by the
    thread of the connection first, and may be waited for until the other end has given room back.
    """
    sent: list[int] = []
    with pytest.raises(TimeoutError):
        while True:
            connection.sender.send(len(sent), timeout=10 if len(sent) < connection.sender.capacity else 0.1)
            sent.append(len(sent))
    return sent


@pytest.mark.parametrize("capacity", [1, 2, 3, 7, 128])
@pytest.mark.parametrize("way", ["recv", "for", "recv_many", "try_recv", "select", "merge", "task"])
def test_however_values_are_received_the_sender_goes_on(pair: Pair, threads: Any, capacity: int, way: str) -> None:
    near, far = pair(capacity=capacity)
    count = 300
    task = threads.go(lambda: (near.sender.send_many(range(count)), near.sender.close(final="end")))
    wanted = [*range(count), "end"]
    assert received(far.receiver, way) == wanted
    task.result()


def received(receiver: Any, way: str) -> list[Any]:
    values: list[Any] = []
    if way == "for":
        return list(receiver)
    if way == "merge":
        return [value for _, value in merge(receiver)]
    if way == "task":

        async def take() -> None:
            async for value in to_async(receiver):
                values.append(value)

        asyncio.run(take())
        return values
    while True:
        try:
            if way == "recv":
                values.append(receiver.recv(timeout=5))
            elif way == "recv_many":
                values += receiver.recv_many(timeout=5)
            elif way == "try_recv":
                values.append(receiver.try_recv())
            else:
                done = select(receiver, Channel(), timeout=5)
                if not done.ok:
                    return values
                values.append(done.value)
        except WouldBlock:
            time.sleep(0)
        except ChannelClosed:
            return values


def test_a_select_sends(pair: Pair) -> None:
    near, far = pair(capacity=1)
    never: Channel[None] = Channel()
    case = near.sender.sending({"a": 1})
    assert select(never, case, timeout=5).case is case
    assert far.receiver.recv(timeout=5) == {"a": 1}
    near.sender.send(2)
    with pytest.raises(TimeoutError):
        select(near.sender.sending(3), timeout=0.05)
    near.sender.close()
    with pytest.raises(ChannelClosed):
        select(near.sender.sending(4))
    assert list(far.receiver) == [2]


@pytest.mark.parametrize("capacity", [1, 2, 128])
def test_closing_never_waits_and_the_last_value_comes(pair: Pair, capacity: int) -> None:
    """Also where the channel is full and nobody receives; the other direction stays open."""
    near, far = pair(capacity=capacity)
    sent = fill(near)
    began = time.monotonic()
    assert near.sender.close(final="last") is True
    assert near.sender.close() is False
    assert time.monotonic() - began < 5
    with pytest.raises(ChannelClosed):
        near.sender.send("too late")
    while not far.receiver.closed:
        time.sleep(0.001)
    assert len(far.receiver) == capacity + 1
    assert list(far.receiver) == [*sent, "last"]
    with pytest.raises(ChannelClosed):
        far.receiver.recv()
    far.sender.send("still open")
    assert near.receiver.recv(timeout=5) == "still open"


def test_a_send_that_waits_is_cancelled_timed_out_and_refused(pair: Pair, threads: Any) -> None:
    near, _ = pair(capacity=1)
    near.sender.send(1)
    token = CancelToken()
    task = threads.go(near.sender.send, 2, None, token)
    token.cancel("enough")
    task.raises(Cancelled)
    with pytest.raises(TimeoutError):
        near.sender.send(2, timeout=0)
    task = threads.go(near.sender.send, 2)
    threads.asleep(task)
    near.sender.close()
    task.raises(ChannelClosed)


def test_a_value_that_cannot_be_sent_is_an_error_where_it_is_sent(pair: Pair) -> None:
    near, far = pair(limit=1000)
    for value in (object(), {1, 2}, b"bytes"):
        with pytest.raises(TypeError):
            near.sender.send(value)
    cycle: list[Any] = []
    cycle.append(cycle)
    with pytest.raises(ValueError, match="Circular"):
        near.sender.try_send(cycle)
    with pytest.raises(ValueError, match="1,000 bytes"):
        near.sender.send("x" * 1000)
    near.sender.send("y" * 998)
    assert far.receiver.recv(timeout=5) == "y" * 998


def test_nobody_receives_any_more(pair: Pair, threads: Any) -> None:
    """Once the peer has closed the connection, sends are refused; what it had sent before is here."""
    near, far = pair(capacity=2)
    near.sender.send(1)
    near.sender.send(2)
    task = threads.go(near.sender.send, 3)
    threads.asleep(task)
    far.sender.send("the last")
    closing = threads.go(far.close)
    task.raises(ChannelClosed)
    assert list(near.receiver) == ["the last"]
    near.close()
    closing.result()
    assert near.error is far.error is None


def test_after_both_have_said_goodbye_nothing_is_lost(pair: Pair, threads: Any) -> None:
    """A socket that is closed with unread input resets the connection: the last values would be gone, now and then."""
    for _ in range(50):
        near, far = pair(capacity=64)
        for connection in (near, far):
            connection.sender.send_many(range(50))
            connection.sender.close(final="bye")
        closing = threads.go(near._link.join, 5)
        lists = [list(near.receiver), list(far.receiver)]
        assert lists == [[*range(50), "bye"]] * 2
        assert closing.result()
        assert near.error is far.error is None


def test_a_lane_that_is_full_does_not_hold_up_another(pair: Pair) -> None:
    codecs = [Codec(), Codec()]
    near, far = pair(codecs=codecs, capacities=[(1, 1), (4, 4)])
    near.lanes[0][0].send("fills it")
    with pytest.raises(WouldBlock):
        near.lanes[0][0].try_send("no room")
    for number in range(20):
        near.lanes[1][0].send(number, timeout=5)
        assert far.lanes[1][1].recv(timeout=5) == number
    assert far.lanes[0][1].recv(timeout=5) == "fills it"


def test_codecs_write_and_read(pair: Pair) -> None:
    codec = Codec(bytes, bytes)
    near, far = pair(codecs=[codec])
    near.sender.send(b"\0\xff")
    assert far.receiver.recv(timeout=5) == b"\0\xff"


def test_threads_share_the_ends(pair: Pair, threads: Any) -> None:
    near, far = pair(capacity=8)
    senders = [lambda: near.sender.send_many(range(200)) for _ in range(4)]
    takers = [threads.go(list, far.receiver) for _ in range(3)]
    threads.all(*senders)
    near.sender.close()
    values = sorted(value for taker in takers for value in taker.result())
    assert values == sorted([*range(200)] * 4)


def test_a_connection_that_is_dropped_is_cut(pair: Pair) -> None:
    with Listener() as listener:
        made: list[Connection] = []
        thread = threading.Thread(target=lambda: made.append(connect(listener.address, listener.key)))
        thread.start()
        near = listener.accept(5)
        thread.join()
    receiver = made[0].receiver  # which keeps it
    made.clear()
    gc.collect()
    near.sender.send("there")
    assert receiver.recv(timeout=5) == "there"
    del receiver
    gc.collect()
    with pytest.raises(ConnectionLost):
        near.receiver.recv(timeout=5)
    near.close()


def test_ends_close_what_they_are_left(pair: Pair) -> None:
    """Leaving the block says goodbye; leaving it by an exception cuts, so that the peer does not take the half for the
    whole."""
    near, far = pair()
    with near:
        near.sender.send(1)
    assert list(far.receiver) == [1]
    near, far = pair()
    with pytest.raises(ZeroDivisionError), near:
        raise ZeroDivisionError
    with pytest.raises(ConnectionLost):
        list(far.receiver)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_does_not_hold_the_connection_open(pair: Pair) -> None:
    """Its copies of the sockets would: the peer of a process that dies would never learn it."""
    near, far = pair()
    waiting = Listener()
    told, tell = os.pipe()
    up, is_up = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(tell)
        os.write(is_up, b"!")
        closed = near.receiver.closed and far.receiver.closed
        os.read(told, 1)  # until the parent is through
        os._exit(0 if closed else 1)
    try:
        os.read(up, 1)
        near.abort()
        with pytest.raises(ConnectionLost):
            far.receiver.recv(timeout=5)
        waiting.close()
        with pytest.raises(ConnectionRefusedError):
            connect(waiting.address, waiting.key, timeout=1)
    finally:
        for each in (tell, told, up, is_up):
            os.close(each)
        assert os.waitpid(pid, 0)[1] == 0


def test_infinite_heartbeats_and_zeros_are_refused() -> None:
    for settings in ({"capacity": 0}, {"heartbeat": 0}, {"heartbeat": -1}, {"heartbeat": math.nan}):
        with pytest.raises(ValueError, match=r"capacity|heartbeat"):
            Listener(**settings)  # type: ignore[arg-type]
