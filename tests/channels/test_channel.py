"""What one channel promises: `Channel`, its two views, its errors and its timeouts."""

from __future__ import annotations

import contextlib
import threading
import time
from datetime import timedelta

import pytest

from channels import (
    Cancelled,
    CancelToken,
    Channel,
    ChannelClosed,
    Receiver,
    Sender,
    Sending,
    WouldBlock,
    merge,
    select,
)

SHORT = 0.02  # long enough for a wait to be one


class Hostile:
    """A value that must be handled by identity only, as numpy arrays must."""

    def _never(self, *_: object) -> bool:
        raise AssertionError("a channel looked into a value")

    __eq__ = __ne__ = __lt__ = __gt__ = __bool__ = __len__ = __iter__ = __contains__ = _never  # type: ignore[assignment]
    __hash__ = None  # type: ignore[assignment]


# -- making one --------------------------------------------------------------------------------------------------------


def test_a_new_channel_is_open_empty_and_true():
    """capacity 0 is the default; an empty channel is not a missing one."""
    channel = Channel()
    assert (channel.capacity, len(channel), channel.closed, channel.name) == (0, 0, False, None)
    assert channel
    assert channel.sender
    assert channel.receiver


@pytest.mark.parametrize("capacity", [-1, -(10**20)])
def test_a_negative_capacity_is_refused(capacity):
    with pytest.raises(ValueError, match="capacity must be a whole number, 0 or more"):
        Channel(capacity)


@pytest.mark.parametrize("capacity", [1.0, "1", None])
def test_a_capacity_is_an_integer(capacity):
    with pytest.raises(TypeError):
        Channel(capacity)


def test_capacity_takes_what_has_an_index():
    class Two:
        def __index__(self):
            return 2

    assert Channel(Two()).capacity == 2


def test_a_huge_capacity_costs_nothing_until_it_is_used():
    channel = Channel(10**30)
    channel.send(1)
    assert channel.capacity == 10**30
    assert channel.recv() == 1


def test_a_channel_may_be_subscripted_when_it_is_made():
    """``Channel[int](2)`` is a channel like any other."""
    channel = Channel[int](2, name="n")
    channel.send(1)
    assert type(channel) is Channel
    assert channel.recv() == 1


# -- sending and receiving ---------------------------------------------------------------------------------------------


def test_values_leave_in_the_order_they_came():
    channel = Channel(10)
    for i in range(10):
        channel.send(i)
    assert len(channel) == 10
    assert [channel.recv() for _ in range(10)] == list(range(10))


@pytest.mark.parametrize("capacity", [0, 1, 3])
def test_every_object_may_travel(threads, capacity):
    """None and the falsy are values; nothing is compared, hashed, measured or asked for its truth."""
    values = [None, False, 0, "", (), NotImplemented, ..., StopIteration(), Hostile(), Hostile()]
    channel = Channel(capacity)
    sender = threads.go(lambda: [channel.send(value) for value in values])
    got = [channel.recv(timeout=5) for _ in values]
    sender.result()
    assert all(a is b for a, b in zip(got, values, strict=True))


def test_hostile_values_in_every_operation(threads):
    """Identity only, also where operations are tried, selected, refused, withdrawn and closed with."""
    value = Hostile()
    channel = Channel(1)
    channel.try_send(value)
    with pytest.raises(WouldBlock):
        channel.try_send(value)
    with pytest.raises(TimeoutError):
        channel.send(value, timeout=0)
    with pytest.raises(TimeoutError):
        channel.send(value, timeout=SHORT)
    with pytest.raises(WouldBlock):
        select(channel.sending(value), block=False)
    with pytest.raises(TimeoutError):
        select(channel.sending(value), timeout=SHORT)
    assert channel.try_recv() is value
    assert select(channel.sending(value)).index == 0
    assert select(channel).value is value
    parked = threads.go(channel.recv)
    threads.parked(channel, receivers=1)
    channel.send(value)
    assert parked.result() is value
    assert channel.close(final=value)
    assert channel.recv() is value


def test_capacity_0_is_a_rendezvous(threads):
    """A send returns once a receiver has the value, and not before."""
    channel = Channel()
    sent = threading.Event()

    def send():
        channel.send("v")
        sent.set()

    sender = threads.go(send)
    threads.parked(channel, senders=1)
    assert not sent.is_set()
    assert len(channel) == 0
    assert channel.recv() == "v"
    sender.result()
    assert sent.is_set()


def test_send_waits_while_the_buffer_is_full(threads):
    channel = Channel(2)
    channel.send(1)
    channel.send(2)
    sender = threads.go(channel.send, 3)
    threads.parked(channel, senders=1)
    assert sender.running
    assert len(channel) == 2
    assert [channel.recv(), channel.recv(), channel.recv()] == [1, 2, 3]
    sender.result()


def test_waiting_receivers_are_served_first_come_first_served(threads):
    channel = Channel()
    tasks = []
    for k in range(5):
        tasks.append(threads.go(channel.recv))
        threads.parked(channel, receivers=k + 1)
    for k in range(5):
        channel.send(k)
    assert [task.result() for task in tasks] == list(range(5))


@pytest.mark.parametrize("capacity", [0, 2])
def test_waiting_senders_are_served_first_come_first_served(threads, capacity):
    channel = Channel(capacity)
    for k in range(capacity):
        channel.send(k)
    tasks = []
    for k in range(capacity, capacity + 5):
        tasks.append(threads.go(channel.send, k))
        threads.parked(channel, senders=len(tasks))
    assert [channel.recv() for _ in range(capacity + 5)] == list(range(capacity + 5))
    for task in tasks:
        task.result()


def test_a_handed_over_value_cannot_be_stolen(threads):
    """With a receiver parked, a value goes to it: whoever asks after the send finds nothing."""
    channel = Channel(3)
    parked = threads.go(channel.recv)
    threads.parked(channel, receivers=1)
    channel.send("mine")
    with pytest.raises(WouldBlock):
        channel.try_recv()
    with pytest.raises(TimeoutError):
        channel.recv(timeout=0)
    assert parked.result() == "mine"


def test_a_waiting_sender_cannot_be_overtaken(threads):
    """With a sender parked, room that appears is its room: whoever tries after the receive finds none."""
    channel = Channel(1)
    channel.send(1)
    parked = threads.go(channel.send, 2)
    threads.parked(channel, senders=1)
    assert channel.recv() == 1
    with pytest.raises(WouldBlock):
        channel.try_send(3)
    parked.result()
    assert channel.recv() == 2


def test_try_send_and_try_recv_meet_a_parked_partner(threads):
    channel = Channel()
    receiver = threads.go(channel.recv)
    threads.parked(channel, receivers=1)
    channel.try_send("a")
    assert receiver.result() == "a"
    sender = threads.go(channel.send, "b")
    threads.parked(channel, senders=1)
    assert channel.try_recv() == "b"
    sender.result()


def test_try_operations_say_would_block():
    channel = Channel()
    with pytest.raises(WouldBlock, match="send on <Channel"):
        channel.try_send(1)
    with pytest.raises(WouldBlock, match="receive from <Channel"):
        channel.try_recv()
    assert len(channel) == 0


def test_try_operations_on_a_closed_channel():
    channel = Channel(2)
    channel.send(1)
    channel.close()
    with pytest.raises(ChannelClosed, match="send on <Channel"):
        channel.try_send(2)
    assert channel.try_recv() == 1
    for _ in range(2):
        with pytest.raises(ChannelClosed, match="receive from <Channel"):
            channel.try_recv()


def test_a_channel_travels_through_a_channel():
    outer, inner = Channel(1), Channel(1)
    outer.send(inner)
    outer.recv().send("through")
    assert inner.recv() == "through"


# -- timeouts ----------------------------------------------------------------------------------------------------------

FOREVER = [None, float("inf"), 1e12, 10**12, 1e308, 10**400]


@pytest.mark.parametrize("timeout", FOREVER, ids=["None", "inf", "1e12", "10**12", "1e308", "10**400"])
def test_a_long_timeout_is_a_long_wait_and_no_error(threads, timeout):
    """Whatever a clock or a lock cannot hold just never comes."""
    channel = Channel()
    receiver = threads.go(channel.recv, timeout)
    threads.parked(channel, receivers=1)
    channel.send(1, timeout)
    assert receiver.result() == 1
    sender = threads.go(channel.send, 2, timeout)
    threads.parked(channel, senders=1)
    assert select(channel, timeout=timeout).value == 2
    sender.result()
    waiting = threads.go(select, channel, timeout=timeout)
    threads.parked(channel, receivers=1)
    channel.send(3)
    assert waiting.result().value == 3


@pytest.mark.parametrize("timeout", [SHORT, 1e-9])
def test_a_timeout_ends_the_wait(timeout):
    channel = Channel()
    began = time.monotonic()
    with pytest.raises(TimeoutError, match=r"nothing came within"):
        channel.recv(timeout=timeout)
    with pytest.raises(TimeoutError, match=r"nobody received within"):
        channel.send(1, timeout=timeout)
    with pytest.raises(TimeoutError, match=r"no case was ready within"):
        select(channel, channel.sending(2), timeout=timeout)
    took = time.monotonic() - began
    assert 3 * timeout <= took < 3 * timeout + 2
    with pytest.raises(WouldBlock):
        channel.try_recv()  # what was not sent is not there


@pytest.mark.parametrize("timeout", [0, 0.0, -0.0])
def test_timeout_0_tries_once(timeout):
    channel = Channel(1)
    with pytest.raises(TimeoutError, match="nothing was there"):
        channel.recv(timeout=timeout)
    channel.send(1, timeout=timeout)
    with pytest.raises(TimeoutError, match="nobody received at once"):
        channel.send(2, timeout=timeout)
    assert channel.recv(timeout=timeout) == 1
    with pytest.raises(TimeoutError):
        select(channel, timeout=timeout)
    assert select(channel.sending(3), timeout=timeout).index == 0
    channel.close()
    with pytest.raises(ChannelClosed):
        channel.send(4, timeout=timeout)
    assert channel.recv(timeout=timeout) == 3
    with pytest.raises(ChannelClosed):
        channel.recv(timeout=timeout)


@pytest.mark.parametrize(
    "timeout", [-1, -1e-9, float("-inf"), float("nan"), -(10**400)], ids=["-1", "-1e-9", "-inf", "nan", "-10**400"]
)
def test_a_timeout_is_not_negative_nor_nan(timeout):
    """And an operation that is refused has done nothing, also where it could have gone ahead."""
    channel = Channel(2)
    channel.send("there")
    for operation in (
        lambda: channel.recv(timeout=timeout),
        lambda: channel.send(1, timeout=timeout),
        lambda: select(channel, timeout=timeout),
        lambda: CancelToken(timeout=timeout),
    ):
        with pytest.raises(ValueError, match="0 or more"):
            operation()
    assert len(channel) == 1


@pytest.mark.parametrize("timeout", ["1", True, False, 1j, timedelta(seconds=1), b"", [1], object()])
def test_a_timeout_is_a_number(timeout):
    """True is a slip of the pen, not a second."""
    channel = Channel(2)
    channel.send("there")
    for operation in (
        lambda: channel.recv(timeout=timeout),
        lambda: channel.send(1, timeout=timeout),
        lambda: select(channel, timeout=timeout),
        lambda: CancelToken(timeout=timeout),
    ):
        with pytest.raises(TypeError, match="number of seconds"):
            operation()
    assert len(channel) == 1


def test_a_timeout_is_a_deadline_that_wakeups_do_not_move(threads):
    """Partners that come and go do not prolong the wait of one who gets nothing."""
    timeout = 0.5  # long enough to be seen parked, on a busy machine too
    channel = Channel()
    first = threads.go(channel.recv)
    threads.parked(channel, receivers=1)
    began = time.monotonic()
    second = threads.go(channel.recv, timeout)
    threads.parked(channel, receivers=2)
    channel.send(1)
    first.result()
    second.raises(TimeoutError)
    assert timeout <= time.monotonic() - began < timeout + 5


@pytest.mark.parametrize("capacity", [0, 2])
def test_a_timed_out_wait_leaves_nothing(threads, capacity):
    """Who gave up is not served, and who waited behind is next."""
    channel = Channel(capacity)
    with pytest.raises(TimeoutError):
        channel.recv(timeout=SHORT)
    parked = threads.go(channel.recv)
    threads.parked(channel, receivers=1)
    channel.send("next")
    assert parked.result() == "next"
    for k in range(capacity):
        channel.send(k)
    with pytest.raises(TimeoutError):
        channel.send("late", timeout=SHORT)
    parked = threads.go(channel.send, "next")
    threads.parked(channel, senders=1)
    assert [channel.recv(timeout=5) for _ in range(capacity + 1)] == [*range(capacity), "next"]
    parked.result()


# -- cancel= -----------------------------------------------------------------------------------------------------------


def test_a_cancel_that_is_done_stops_operations_that_could_go_ahead():
    """The cancel is looked at first: before the channel, before its being closed."""
    token = CancelToken()
    token.cancel("enough")
    channel = Channel(2)
    channel.send(1)
    for operation in (
        lambda: channel.recv(cancel=token),
        lambda: channel.send(2, cancel=token),
        lambda: select(channel, cancel=token),
        lambda: select(block=False, cancel=token),
    ):
        with pytest.raises(Cancelled, match="enough") as caught:
            operation()
        assert caught.value.cause == "enough"
    assert len(channel) == 1
    channel.close()
    with pytest.raises(Cancelled):
        channel.send(2, cancel=token)


@pytest.mark.parametrize("operation", ["recv", "send", "select recv", "select send", "select nil", "select nothing"])
def test_a_cancel_ends_a_wait(threads, operation):
    """With its cause, and with nothing carried out."""
    token = CancelToken()
    channel = Channel()
    waits = {
        "recv": lambda: channel.recv(cancel=token),
        "send": lambda: channel.send(1, cancel=token),
        "select recv": lambda: select(channel, cancel=token),
        "select send": lambda: select(channel.sending(1), cancel=token),
        "select nil": lambda: select(None, cancel=token),
        "select nothing": lambda: select(cancel=token),
    }
    waiting = threads.go(waits[operation])
    threads.parked(token.done, receivers=1)
    cause = LookupError("gone")
    token.cancel(cause)
    assert waiting.raises(Cancelled).cause is cause
    for attempt in (channel.try_recv, lambda: channel.try_send(1)):
        with pytest.raises(WouldBlock):
            attempt()


def test_a_served_wait_ignores_a_cancel_that_comes_later(threads):
    token = CancelToken()
    channel = Channel()
    waiting = threads.go(channel.recv, cancel=token)
    threads.parked(token.done, receivers=1)
    channel.send("value")
    token.cancel()
    assert waiting.result() == "value"


def test_cancel_takes_anything_whose_done_is_a_receiver(threads):
    """A `cause` is passed on if there is one; a channel will do as ``done``."""

    class Stop:
        def __init__(self):
            self.channel = Channel()
            self.done = self.channel.receiver

    stop = Stop()
    channel = Channel()
    waiting = threads.go(channel.recv, cancel=stop)
    threads.parked(stop.channel, receivers=1)
    stop.channel.close()
    error = waiting.raises(Cancelled)
    assert (error.cause, str(error)) == (None, "cancelled")
    with pytest.raises(Cancelled):
        channel.send(1, cancel=stop)


def test_a_value_instead_of_the_close_of_done_ends_one_wait(threads):
    """As in Go, where the case of a select takes it. It is not done for those who come later."""

    class Stop:
        done = Channel(1)

    channel = Channel(1)
    waiting = threads.go(channel.recv, cancel=Stop)
    threads.parked(Stop.done, receivers=1)
    Stop.done.send("news")
    assert waiting.raises(Cancelled).cause is None
    channel.send(1, cancel=Stop)
    assert channel.recv(cancel=Stop) == 1


def test_a_timeout_beside_a_cancel(threads):
    """Whatever comes first ends the wait."""
    token = CancelToken()
    channel = Channel()
    with pytest.raises(TimeoutError):
        channel.recv(SHORT, token)
    with pytest.raises(TimeoutError):
        channel.send(1, SHORT, token)
    with pytest.raises(TimeoutError):
        select(channel, timeout=SHORT, cancel=token)
    waiting = threads.go(channel.recv, 1e6, token)
    threads.parked(token.done, receivers=1)
    token.cancel()
    waiting.raises(Cancelled)


def test_cancelled_says_why():
    assert str(Cancelled()) == "cancelled"
    assert Cancelled().cause is None
    error = Cancelled(TimeoutError("late"))
    assert str(error) == "cancelled: late"
    assert isinstance(error.cause, TimeoutError)


# -- iterating ---------------------------------------------------------------------------------------------------------


def test_iterating_ends_when_the_channel_is_closed_and_drained(threads):
    channel = Channel(2)

    def produce():
        for i in range(20):
            channel.send(i)
        channel.close()

    producer = threads.go(produce)
    assert list(channel) == list(range(20))
    producer.result()
    assert list(channel) == []
    assert list(channel.receiver) == []


def test_iterators_of_one_channel_share_its_values():
    channel = Channel(4)
    for i in range(4):
        channel.send(i)
    channel.close()
    one, other = iter(channel), iter(channel.receiver)
    assert [next(one), next(other), next(one), next(other)] == [0, 1, 2, 3]
    assert next(one, "end") == "end"


def test_iterating_takes_a_value_only_when_it_is_asked_for():
    channel = Channel(3)
    for i in range(3):
        channel.send(i)
    for value in channel:
        assert value == 0
        break
    assert len(channel) == 2


def test_an_error_of_the_consumer_is_not_the_end_of_the_channel():
    """`ChannelClosed` raised in the loop's body is the body's: the loop does not swallow it."""
    channel = Channel(1)
    channel.send(1)
    body = ChannelClosed("of another channel")
    with pytest.raises(ChannelClosed) as caught:
        for _ in channel:
            raise body
    assert caught.value is body


# -- with --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["channel", "sender"])
def test_with_closes_on_exit(side):
    channel = Channel(1)
    inside = channel if side == "channel" else channel.sender
    with inside as given:
        assert given is inside
        given.send(1)
        assert not channel.closed
    assert channel.closed
    assert list(channel) == [1]


def test_with_closes_on_an_exception_and_lets_it_through():
    channel = Channel()
    with pytest.raises(ZeroDivisionError), channel:
        raise ZeroDivisionError
    assert channel.closed


def test_with_may_close_a_closed_channel():
    with Channel() as channel:
        assert channel.close()
    assert channel.closed


# -- views -------------------------------------------------------------------------------------------------------------


def test_views_are_restricted_to_their_direction():
    """``chan<-`` and ``<-chan``: there is no way back to the other side in what a view offers."""
    channel = Channel(1)
    sender, receiver = channel.sender, channel.receiver
    assert isinstance(sender, Sender)
    assert isinstance(receiver, Receiver)
    public = {name for name in dir(Sender) if not name.startswith("_")}
    sending = {"send", "try_send", "send_many", "try_send_many", "sending", "close"}
    assert public == sending | {"closed", "capacity", "statistics"}
    public = {name for name in dir(Receiver) if not name.startswith("_")}
    receiving = {"recv", "try_recv", "recv_many", "try_recv_many", "receiving"}
    assert public == receiving | {"closed", "capacity", "statistics"}
    with pytest.raises(TypeError):
        iter(sender)


def test_views_do_what_the_channel_does():
    channel = Channel(2, name="c")
    sender, receiver = channel.sender, channel.receiver
    sender.send(1)
    sender.try_send(2)
    assert (len(sender), len(receiver), sender.capacity, receiver.capacity) == (2, 2, 2, 2)
    with pytest.raises(TimeoutError):
        sender.send(3, SHORT)
    assert receiver.recv() == 1
    assert receiver.try_recv() == 2
    with pytest.raises(TimeoutError):
        receiver.recv(SHORT)
    assert select(sender.sending(3)).index == 0
    assert (sender.closed, receiver.closed) == (False, False)
    assert sender.close(final=4)
    assert not sender.close()
    assert (sender.closed, receiver.closed) == (True, True)
    assert list(receiver) == [3, 4]
    token = CancelToken()
    token.cancel()
    with pytest.raises(Cancelled):
        receiver.recv(cancel=token)
    with pytest.raises(Cancelled):
        sender.send(1, cancel=token)


def test_a_sender_is_no_receive_case():
    """Selecting on the sending side must not receive behind the receivers' backs."""
    channel = Channel(1)
    channel.send("theirs")
    with pytest.raises(TypeError, match="a case of select"):
        select(channel.sender, block=False)
    assert channel.recv() == "theirs"


# -- repr --------------------------------------------------------------------------------------------------------------


def test_repr_says_what_there_is_to_know(threads):
    channel = Channel(2, name="orders")
    assert repr(channel) == "<Channel 'orders' 0/2 open>"
    waiting = [threads.go(channel.recv), threads.go(select, channel, None)]
    threads.parked(channel, receivers=2)
    assert repr(channel) == "<Channel 'orders' 0/2 open, 2 receivers waiting>"
    for k in range(4):
        channel.send(k)
    for task in waiting:
        task.result()
    sender = threads.go(channel.send, 5)
    threads.parked(channel, senders=1)
    assert repr(channel) == "<Channel 'orders' 2/2 open, 1 sender waiting>"
    assert repr(channel.sender) == "<Sender of <Channel 'orders' 2/2 open, 1 sender waiting>>"
    channel.close(final=6)
    sender.raises(ChannelClosed)
    assert repr(channel) == "<Channel 'orders' 3/2 closed>"
    assert repr(channel.receiver) == "<Receiver of <Channel 'orders' 3/2 closed>>"
    assert repr(channel.sending("x")) == "<Sending 'x' on <Channel 'orders' 3/2 closed>>"
    assert repr(Channel()) == "<Channel 0/0 open>"


def test_repr_does_not_count_who_gave_up():
    channel = Channel()
    for wait in (lambda: channel.recv(SHORT), lambda: channel.send(1, SHORT), lambda: select(channel, timeout=SHORT)):
        with pytest.raises(TimeoutError):
            wait()
    assert repr(channel) == "<Channel 0/0 open>"


def test_repr_takes_no_lock():
    """It is for logging and debuggers, which stop threads anywhere."""
    channel = Channel(1)
    with channel._lock:
        done = []
        thread = threading.Thread(target=lambda: done.append((repr(channel), len(channel), channel.closed)))
        thread.start()
        thread.join(5)
    assert done == [("<Channel 0/1 open>", 0, False)]


def test_repr_while_queues_change(threads, switching):
    """`repr` looks at a queue that others change under it."""
    channel = Channel(1)
    stop = threading.Event()

    def busy():
        while not stop.is_set():
            with contextlib.suppress(TimeoutError):
                channel.recv(1e-5)

    tasks = [threads.go(busy) for _ in range(3)]
    texts = {repr(channel) for _ in range(2000)}
    stop.set()
    for task in tasks:
        task.result()
    assert all(text.startswith("<Channel 0/1 open") for text in texts)


def test_a_sending_case_keeps_its_value():
    channel = Channel()
    case = channel.sending("v")
    assert isinstance(case, Sending)
    assert case.value == "v"
    assert channel.receiving() is not None
    assert isinstance(channel.receiving(), Receiver)
    receiver = channel.receiver
    assert receiver.receiving() is receiver


# -- iterating ---------------------------------------------------------------------------------------------------------


def test_a_receiver_is_an_iterator():
    channel = Channel(2)
    channel.send(1)
    receiver = channel.receiver
    assert iter(receiver) is receiver
    assert next(receiver) == 1
    channel.close(final=2)
    assert next(iter(channel)) == 2
    for _ in range(2):
        with pytest.raises(StopIteration):
            next(receiver)


def test_a_ctrl_c_leaves_an_iterator_usable(threads):
    channel = Channel(1)
    values = iter(channel)

    task = threads.go(threads.ctrl_c)
    with pytest.raises(KeyboardInterrupt):
        next(values)
    task.result()
    channel.send("still there")
    assert next(values) == "still there"


def test_threads_share_an_iterator(threads):
    channel = Channel()
    values = iter(channel)
    tasks = [threads.go(list, values) for _ in range(3)]
    for number in range(50):
        channel.send(number, timeout=10)
    channel.close()
    assert sorted(value for task in tasks for value in task.result()) == list(range(50))


def test_an_overridden_recv_of_a_receiver_is_iterated_over():
    class Doubling(Receiver):
        def recv(self, timeout=None, cancel=None):
            return 2 * super().recv(timeout, cancel)

    channel = Channel(1)
    channel.close(final=4)
    assert list(Doubling(channel)) == [8]


def test_a_send_looks_at_one_number_again_once_all_receivers_have_gone(threads):
    """However they went: `_room` says "look closer" while a receiver waits, and would say so for ever."""
    channel = Channel(2)
    with pytest.raises(TimeoutError):
        channel.recv(timeout=0.001)
    channel.send("after one that gave up")
    assert channel._room == 2
    channel.recv()
    served = threads.go(channel.recv)
    threads.parked(channel, receivers=1)
    channel.send("to one that waits")
    served.result()
    channel.send("after one that was served")
    assert channel._room == 2
    channel.close()
    assert channel._room == 0


# -- statistics --------------------------------------------------------------------------------------------------------


def test_statistics(threads):
    channel = Channel(2)
    assert channel.statistics() == (0, 2, 0, 0, False)
    receiving = threads.go(channel.recv)
    threads.parked(channel, receivers=1)
    assert channel.receiver.statistics().waiting_to_receive == 1
    for number in range(3):
        channel.send(number)
    receiving.result()
    sending = threads.go(channel.send, 3)
    threads.parked(channel, senders=1)
    now = channel.sender.statistics()
    assert (now.current_buffer_used, now.max_buffer_size, now.waiting_to_send, now.closed) == (2, 2, 1, False)
    channel.close()
    sending.raises(ChannelClosed)
    assert channel.statistics() == (2, 2, 0, 0, True)


def test_a_busy_merge_is_no_waiting_receiver():
    channel, other = Channel(), Channel(1)
    other.send(1)
    merged = merge(channel, other)
    next(merged)
    assert channel.statistics().waiting_to_receive == 0
    assert "waiting" not in repr(channel)
