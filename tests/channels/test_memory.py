"""Nothing is kept alive that nobody can receive any more, and no queue grows by waits that are over."""

from __future__ import annotations

import contextlib
import gc
import tracemalloc
import weakref

import pytest

from channels import Cancelled, CancelToken, Channel, ChannelClosed, WouldBlock, merge, select
from channels._channel import TIDY_AT
from channels._park import Waiter
from channels._rescue import closing


class Value:
    """Something that a weak reference can watch."""


@pytest.fixture(autouse=True)
def _no_garbage_collector():
    """What is freed is freed at once: there are no cycles."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def watched():
    value = Value()
    return value, weakref.ref(value)


def test_a_received_value_is_let_go_of():
    channel = Channel(1)
    for receive in (channel.recv, channel.try_recv, lambda: select(channel).value, lambda: next(iter(channel))):
        value, gone = watched()
        channel.send(value)
        del value
        got = receive()
        assert got is gone()
        del got
        assert gone() is None


def test_a_value_handed_from_thread_to_thread_is_let_go_of(threads):
    """By the parked sender and by the parked receiver, with a cancel and in a select, too."""
    token = CancelToken()
    channel, other = Channel(), Channel()
    for send in (
        lambda v: channel.send(v),
        lambda v: channel.send(v, None, token),
        lambda v: select(channel.sending(v), other),
    ):
        value, gone = watched()
        task = threads.go(send, value)
        del value
        threads.parked(channel, senders=1)
        got = channel.recv()
        assert got is gone()
        task.result()
        del got, task
        threads.tasks.clear()
        assert gone() is None
    for receive in (channel.recv, lambda: channel.recv(None, token), lambda: select(channel, other).value):
        task = threads.go(receive)
        threads.parked(channel, receivers=1)
        value, gone = watched()
        channel.send(value)
        del value
        assert task.result() is gone()
        assert gone() is None


@pytest.mark.parametrize("capacity", [0, 2])
def test_a_dropped_channel_frees_its_contents(capacity):
    channel = Channel(capacity)
    refs = []
    for _ in range(capacity):
        value, gone = watched()
        channel.send(value)
        refs.append(gone)
    value, gone = watched()
    channel.close(final=value)
    refs.append(gone)
    del value
    refs.append(weakref.ref(channel))
    del channel
    assert [ref() for ref in refs] == [None] * len(refs)


def test_a_dropped_view_frees_the_channel():
    channel = Channel(1)
    gone = weakref.ref(channel)
    views = [channel.sender, channel.receiver, channel.sending(1), iter(channel)]
    del channel
    assert gone() is not None
    views.clear()
    assert gone() is None


@pytest.mark.parametrize("capacity", [0, 1])
def test_a_refused_value_is_let_go_of(threads, capacity):
    """Refused because of a timeout, a cancel, a close, or no partner: the channel keeps nothing of it."""
    for refuse in (
        "timeout",
        "timeout 0",
        "try",
        "cancel",
        "close",
        "select timeout",
        "select default",
        "select cancel",
    ):
        channel, other, token = Channel(capacity), Channel(), CancelToken()
        for k in range(capacity):
            channel.send(k)
        value, gone = watched()
        if refuse in ("cancel", "close", "select cancel"):
            wait = {
                "cancel": lambda v: channel.send(v, None, token),
                "close": lambda v: channel.send(v),
                "select cancel": lambda v: select(channel.sending(v), other.sending(v), cancel=token),
            }[refuse]
            task = threads.go(wait, value)
            threads.parked(channel, senders=1)
            if refuse == "close":
                channel.close()
            else:
                threads.parked(token.done, receivers=1)
                token.cancel()
            with contextlib.suppress(Exception, Cancelled):
                task.result()
            task.error = None
            threads.tasks.clear()
            del task
        else:
            with contextlib.suppress(TimeoutError, WouldBlock):
                {
                    "timeout": lambda: channel.send(value, 0.001),
                    "timeout 0": lambda: channel.send(value, 0),
                    "try": lambda: channel.try_send(value),
                    "select timeout": lambda: select(channel.sending(value), other.sending(value), timeout=0.001),
                    "select default": lambda: select(channel.sending(value), block=False),
                }[refuse]()
        del value
        assert gone() is None, refuse


def test_a_losing_select_keeps_neither_values_nor_channels(threads):
    """What it would have sent elsewhere is gone when it returns, and a long-lived channel does not hold the
    winner's.
    """
    silent = Channel()
    winner = Channel()
    value, gone = watched()
    lost, lost_gone = watched()
    task = threads.go(lambda a, b: select(silent.sending(b), winner.sending(a), silent), value, lost)
    del value, lost
    threads.parked(winner, senders=1)
    winner.recv()
    task.result()
    threads.tasks.clear()
    del task
    assert gone() is None
    assert lost_gone() is None
    winner_gone = weakref.ref(winner)
    del winner
    assert winner_gone() is None


def test_a_long_lived_token_does_not_hold_the_channels_it_was_used_with(threads):
    """Nor what is in them."""
    token = CancelToken()
    for wait in (
        lambda channel: channel.recv(None, token),
        lambda channel: select(channel, None, cancel=token).value,
    ):
        channel = Channel(1)
        task = threads.go(wait, channel)
        threads.parked(token.done, receivers=1)
        channel.send("v")
        assert task.result() == "v"
        value, value_gone = watched()
        channel.send(value)
        gone = weakref.ref(channel)
        threads.tasks.clear()
        del channel, value, task
        assert gone() is None
        assert value_gone() is None
    channel = Channel()
    task = threads.go(lambda channel: channel.send("v", None, token), channel)
    threads.parked(token.done, receivers=1)
    channel.recv()
    task.result()
    gone = weakref.ref(channel)
    threads.tasks.clear()
    del channel, task
    assert gone() is None


def test_a_long_lived_channel_does_not_hold_the_tokens_that_ended_its_waits(threads):
    channel = Channel()
    for wait in (
        lambda t: channel.recv(None, t),
        lambda t: channel.send(1, None, t),
        lambda t: select(channel, cancel=t),
    ):
        token = CancelToken()
        task = threads.go(wait, token)
        threads.parked(token.done, receivers=1)
        token.cancel()
        with contextlib.suppress(Exception, Cancelled):
            task.result()
        task.error = None
        gone = weakref.ref(token._core)
        threads.tasks.clear()
        del token, task
        assert gone() is None


def test_an_interrupted_send_keeps_its_value_nowhere(threads, interrupt):
    """Ctrl-C is one more way not to be received."""
    channel, other = Channel(), Channel()
    for send in (lambda v: channel.send(v), lambda v: select(channel.sending(v), other.sending(v))):
        value, gone = watched()
        task = threads.go(send, value)
        del value
        threads.parked(channel, senders=1)
        threads.asleep(task)
        interrupt(task)
        # a thread in its park sees the exception when it wakes: serve it a partner that backs out
        entry = channel._senders[-1]
        entry[0].park.release()
        with pytest.raises(KeyboardInterrupt):
            task.result()
        task.error = None
        threads.tasks.clear()
        del task, entry
        assert gone() is None


def test_iterating_does_not_hold_the_last_value_while_it_waits(threads):
    channel, other = Channel(1), Channel()
    for iterate in (iter, lambda channel: iter(channel.receiver), None):
        value, gone = watched()
        channel.send(value)
        del value
        seen = Channel(1)

        def consume(iterate=iterate, seen=seen, channel=channel, other=other):
            if iterate is None:
                for pair in merge(channel, other):
                    del pair
                    seen.send(1)
            else:
                for value in iterate(channel):
                    del value
                    seen.send(1)

        task = threads.go(consume)
        seen.recv(timeout=5)
        threads.parked(channel, receivers=1)
        assert gone() is None
        channel.close(final=1)
        other.close()
        task.result()
        channel, other = Channel(1), Channel()


# -- queues stay small -------------------------------------------------------------------------------------------------


def entries(channel):
    return len(channel._receivers) + len(channel._senders)


def test_waits_that_timed_out_do_not_pile_up():
    channel, token = Channel(), CancelToken()
    for _ in range(40):
        for wait in (
            lambda: channel.recv(1e-6),
            lambda: channel.send(1, 1e-6),
            lambda: channel.recv(1e-6, token),
            lambda: channel.send(1, 1e-6, token),
            lambda: select(channel, timeout=1e-6, cancel=token),
            lambda: select(channel.sending(1), None, channel, timeout=1e-6, cancel=token),
            lambda: select(None, timeout=1e-6, cancel=token),
        ):
            with pytest.raises(TimeoutError):
                wait()
    assert entries(channel) <= 4 * TIDY_AT
    assert entries(token.done._channel) <= 2 * TIDY_AT


def test_losing_selects_do_not_pile_up(threads):
    """Go's select2 and issue 9110: a silent second channel, and one that is named three times."""
    busy, silent, token = Channel(), Channel(), CancelToken()
    n = 300
    sender = threads.go(lambda: [busy.send(k) for k in range(n)])
    for k in range(n):
        assert select(silent, busy, silent.sending(1), silent, silent, cancel=token).value == k
    sender.result()
    assert entries(silent) <= 4 * TIDY_AT
    assert entries(token.done._channel) <= 2 * TIDY_AT


def test_waits_interrupted_by_ctrl_c_do_not_pile_up(threads, interrupt):
    """Not even where there is no case to wait for but the cancel."""
    token, channel = CancelToken(), Channel()
    for wait in (
        lambda: select(None, cancel=token),
        lambda: select(channel, cancel=token),
        lambda: channel.recv(None, token),
        lambda: channel.send(1, None, token),
    ):
        task = threads.go(wait)
        threads.parked(token.done, receivers=1)
        threads.asleep(task)
        interrupt(task)
        token.done._channel._receivers[-1].park.release()
        task.raises(KeyboardInterrupt)
        threads.parked(token.done, receivers=0)
    assert repr(channel) == "<Channel 0/0 open>"


def test_the_living_are_kept_when_the_dead_are_dropped(threads):
    """Tidying up loses nobody, whatever the mix, and keeps the order."""
    channel = Channel()
    tasks = []
    for k in range(40):
        with pytest.raises(TimeoutError):
            channel.recv(1e-6)
        tasks.append(threads.go(channel.recv))
        threads.parked(channel, receivers=k + 1)
    for k in range(40):
        channel.send(k)
    assert [task.result() for task in tasks] == list(range(40))


def test_tidying_up_knows_every_kind_of_waiter():
    """`channels.aio` queues waiters of its own class."""

    class Other(Waiter):
        __slots__ = ()

    channel = Channel()
    for _ in range(3 * TIDY_AT):
        waiter = Other([None])
        assert channel._enlist(waiter, None)
    assert repr(channel) == f"<Channel 0/0 open, {3 * TIDY_AT} receivers waiting>"
    for k in range(3 * TIDY_AT):
        channel.send(k)
    assert repr(channel) == "<Channel 0/0 open>"


def test_a_retried_select_leaves_no_value_behind():
    """The entries of the attempt that had to start anew are dead, and empty."""
    value, gone = watched()
    partners = [Waiter([None])]
    partners[0].ticket.clear()  # another channel is about to serve it

    class Crossed(Channel):
        """A partner comes as the select queues, and is served elsewhere."""

        __slots__ = ()

        def _enlist(self, waiter, entry):
            if not partners:
                return super()._enlist(waiter, entry)
            partner = partners.pop()
            self._receivers = self._queue(self._receivers, partner)
            enlisted = super()._enlist(waiter, entry)
            partner.done = True
            assert not enlisted
            return enlisted

    silent, crossed = Channel(), Crossed()
    with pytest.raises(TimeoutError):
        select(silent.sending(value), crossed.sending(value), timeout=0.01)
    assert len(silent._senders) == 2  # one of each attempt
    del value
    assert gone() is None


def test_closing_leaves_no_record():
    """Nor does a close that comes after the close."""
    channel = Channel()
    channel.close(final=Value())
    channel.close(final=Value())
    assert not closing
    late = Channel()
    record = ["late", False, late]
    late.close()
    closing[id(late)] = record  # a second closer that had looked before the first was through
    late._attention = True
    with pytest.raises(ChannelClosed):
        late.recv()
    assert not closing


def test_an_operation_allocates_nothing_that_stays(threads):
    """A million messages later the channel is as big as before."""
    channel, token = Channel(4), CancelToken()

    def round_trip(n):
        task = threads.go(lambda: [channel.send(k, None, token) for k in range(n)])
        for _ in range(n):
            channel.recv(None, token)
        task.result()
        threads.tasks.clear()

    round_trip(2000)
    tracemalloc.start()
    try:
        round_trip(500)
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        round_trip(4000)
        gc.collect()
        assert tracemalloc.get_traced_memory()[0] - before < 20_000
    finally:
        tracemalloc.stop()
