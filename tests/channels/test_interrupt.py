"""Asynchronous exceptions: Ctrl-C at every point of every operation, at the end of the stack, and for real.

CPython looks for signals where a call begins and where it returns. `at_every_call` throws at each such point in turn,
so that what follows is not a matter of luck.
"""

from __future__ import annotations

import contextlib
import gc
import signal
import sys
import threading
import time

import pytest

from channels import Cancelled, CancelToken, Channel, ChannelClosed, WouldBlock, select
from channels._rescue import closing


class Interrupt(BaseException):
    """What is thrown."""


def throw_at(n, operation):
    """Run the operation and throw at the n-th point where a signal may come; whether there was one.

    Returns (thrown, result), where the result is None if it was thrown.
    """
    left = n

    def profile(frame, event, _):
        nonlocal left
        if event in ("call", "c_return") and frame.f_code.co_filename != __file__:
            left -= 1
            if left < 0:
                sys.setprofile(None)
                raise Interrupt

    gc.disable()  # or it is thrown into some finalizer of an earlier test, and lost there
    sys.setprofile(profile)
    try:
        result = operation()
    except Interrupt:
        return True, None
    finally:
        sys.setprofile(None)
        gc.enable()
    return False, result


def at_every_call(scenario, limit=200):
    """``scenario`` yields the operation, gets (thrown, result), and checks. Once for every point of the operation."""
    for n in range(limit):
        run = scenario()
        operation = next(run)
        outcome = throw_at(n, operation)
        with contextlib.suppress(StopIteration):
            run.send(outcome)
        if not outcome[0]:
            assert n > 1, "the operation has no point to throw at"
            return n
    pytest.fail(f"the operation has more than {limit} points")


def drain(channel):
    got = []
    with contextlib.suppress(WouldBlock, ChannelClosed):
        while True:
            got.append(channel.try_recv())
    return got


def check_idle(*channels):
    """No lock is held, nobody waits, nothing is on record."""
    for channel in channels:
        free = []

        def look(channel=channel, free=free):
            if channel._lock.acquire(timeout=2):
                free.append(True)
                channel._lock.release()

        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
        assert free, "the lock is held"
        assert "waiting" not in repr(channel)
    assert not closing


# -- receiving: nothing is lost ----------------------------------------------------------------------------------------

RECEIVE = {
    "recv": lambda channel, token: channel.recv(),
    "recv timeout": lambda channel, token: channel.recv(timeout=5),
    "recv timeout 0": lambda channel, token: channel.recv(timeout=0),
    "recv cancel": lambda channel, token: channel.recv(cancel=token),
    "try_recv": lambda channel, token: channel.try_recv(),
    "receiver.recv": lambda channel, token: channel.receiver.recv(),
    "receiver.try_recv": lambda channel, token: channel.receiver.try_recv(),
    "select": lambda channel, token: select(channel).value,
    "select two": lambda channel, token: select(None, token.done, channel).value,
    "select receiver": lambda channel, token: select(token.done, channel.receiver).value,
    "select default": lambda channel, token: select(channel, block=False).value,
    "select cancel": lambda channel, token: select(channel, cancel=token).value,
    "iteration": lambda channel, token: next(_kept(iter(channel))),
}


_iterators = []


def _kept(iterator):
    """The closing of a dropped generator is not part of the operation."""
    _iterators.append(iterator)
    return iterator


@pytest.mark.parametrize("receive", RECEIVE)
@pytest.mark.parametrize("closed", [False, True])
def test_an_interrupted_receive_loses_nothing(receive, closed):
    """What was in the buffer is there, in its order, but for what was returned."""

    def scenario():
        channel, token = Channel(3), CancelToken()
        for k in range(3):
            channel.send(k)
        if closed:
            channel.close()
        thrown, got = yield lambda: RECEIVE[receive](channel, token)
        assert thrown or got == 0
        assert drain(channel) == ([0, 1, 2] if thrown else [1, 2])
        check_idle(channel)

    assert at_every_call(scenario) >= 2


@pytest.mark.parametrize("receive", RECEIVE)
@pytest.mark.parametrize("capacity", [0, 1])
def test_an_interrupted_receive_from_a_parked_sender_loses_nothing(threads, receive, capacity):
    """However far the hand-over had come, the values are there; and the sender is not released early nor left
    parked.
    """

    def scenario():
        channel, token = Channel(capacity), CancelToken()
        for k in range(capacity):
            channel.send(k)
        sender = threads.go(channel.send, capacity)
        threads.parked(channel, senders=1)
        thrown, got = yield lambda: RECEIVE[receive](channel, token)
        assert thrown or got == 0
        rest = []
        while len(rest) < capacity + thrown:
            rest.append(channel.recv(timeout=5))
        assert sorted(rest) == list(range(0 if thrown else 1, capacity + 1))
        sender.result()
        assert drain(channel) == []
        check_idle(channel)

    at_every_call(scenario)


@pytest.mark.parametrize("receive", ["recv", "recv timeout", "recv cancel", "select", "select two", "select cancel"])
def test_an_interrupted_wait_for_a_value_loses_nothing(threads, receive):
    """The receive parks, is served, and is interrupted on its way back (or before): the value goes back, or was not
    taken.
    """

    def scenario():
        channel, token = Channel(), CancelToken()
        stop = threading.Event()

        def serve():
            while not stop.is_set():
                try:
                    channel.send("v", timeout=0.002)
                except TimeoutError:
                    continue
                return True
            return False

        sender = threads.go(serve)
        thrown, got = yield lambda: RECEIVE[receive](channel, token)
        assert thrown or got == "v"
        stop.set()
        sent = sender.result()
        assert drain(channel) == (["v"] if sent and thrown else [])
        check_idle(channel, token.done._channel)

    at_every_call(scenario)


@pytest.mark.parametrize("receive", ["recv", "recv cancel", "select", "select two", "select cancel"])
def test_a_value_delivered_to_a_receive_that_is_being_interrupted(threads, interrupt, receive):
    """Ctrl-C and the value come at the same moment: the value goes to the next receiver, first come, first served."""
    channel, token = Channel(), CancelToken()
    waiting = threads.go(RECEIVE[receive], channel, token)
    threads.parked(channel, receivers=1)
    threads.asleep(waiting)
    behind = [threads.go(channel.recv)]
    threads.parked(channel, receivers=2)
    behind.append(threads.go(channel.recv))
    threads.parked(channel, receivers=3)
    interrupt(waiting, Interrupt)
    channel.send("v")
    waiting.raises(Interrupt)
    assert behind[0].result() == "v"
    channel.send("w")
    assert behind[1].result() == "w"
    check_idle(channel, token.done._channel)


@pytest.mark.parametrize("capacity", [0, 2])
def test_a_value_given_back_goes_to_the_front(threads, interrupt, capacity):
    """Where nobody waits: before what came later. And it counts against the capacity."""
    channel = Channel(capacity)
    waiting = threads.go(channel.recv)
    threads.parked(channel, receivers=1)
    threads.asleep(waiting)
    interrupt(waiting, Interrupt)
    channel.send("first")
    waiting.raises(Interrupt)
    for k in range(capacity - 1):
        channel.send(k)
    with pytest.raises(WouldBlock):
        channel.try_send("no room")
    assert drain(channel) == ["first", *range(capacity - 1)]


@pytest.mark.parametrize("capacity", [0, 1])
def test_a_value_given_back_lets_no_sender_in_early(threads, interrupt, capacity):
    """The buffer may hold more than its capacity then. A sender parked behind it stays parked until there is room:

    at capacity 0 until a receiver has its value (the rendezvous), else until the buffer is below its capacity again.
    """
    channel = Channel(capacity)
    waiting = threads.go(channel.recv)
    threads.parked(channel, receivers=1)
    threads.asleep(waiting)
    interrupt(waiting, Interrupt)
    before = sys.getswitchinterval()
    sys.setswitchinterval(10)  # the interrupted thread does not run before the buffer is full
    try:
        channel.send("first")
        for k in range(capacity):
            channel.send(k)
    finally:
        sys.setswitchinterval(before)
    waiting.raises(Interrupt)
    assert len(channel) == capacity + 1
    sender = threads.go(channel.send, "parked")
    threads.parked(channel, senders=1)
    assert channel.recv() == "first"
    assert len(channel) == capacity
    threads.parked(channel, senders=1)
    assert sender.running
    assert [channel.recv() for _ in range(capacity + 1)] == [*range(capacity), "parked"]
    sender.result()


def test_a_value_given_back_to_a_closed_channel_is_still_received(threads, interrupt):
    """The close came while the value was on its way back: it is drained like any other."""
    channel = Channel()
    waiting = threads.go(channel.recv)
    threads.parked(channel, receivers=1)
    threads.asleep(waiting)
    interrupt(waiting, Interrupt)
    before = sys.getswitchinterval()
    sys.setswitchinterval(10)
    try:
        channel.send("v")
        channel.close(final="last")
    finally:
        sys.setswitchinterval(before)
    waiting.raises(Interrupt)
    assert list(channel) == ["v", "last"]


# -- sending: maybe, but never twice -----------------------------------------------------------------------------------

SEND = {
    "send": lambda channel, token: channel.send("v"),
    "send timeout": lambda channel, token: channel.send("v", timeout=5),
    "send timeout 0": lambda channel, token: channel.send("v", timeout=0),
    "send cancel": lambda channel, token: channel.send("v", cancel=token),
    "try_send": lambda channel, token: channel.try_send("v"),
    "sender.send": lambda channel, token: channel.sender.send("v"),
    "select": lambda channel, token: select(channel.sending("v")),
    "select two": lambda channel, token: select(None, token.done, channel.sending("v")),
    "select default": lambda channel, token: select(channel.sending("v"), block=False),
    "select cancel": lambda channel, token: select(channel.sending("v"), cancel=token),
}


@pytest.mark.parametrize("send", SEND)
def test_an_interrupted_send_is_maybe_but_never_twice(send):
    def scenario():
        channel, token = Channel(2), CancelToken()
        channel.send("u")
        thrown, _ = yield lambda: SEND[send](channel, token)
        assert drain(channel) in ([["u", "v"], ["u"]] if thrown else [["u", "v"]])
        check_idle(channel, token.done._channel)

    at_every_call(scenario)


@pytest.mark.parametrize("send", SEND)
def test_an_interrupted_send_to_a_parked_receiver(threads, send):
    """It gets the value or waits on; it is never woken empty-handed."""

    def scenario():
        channel, token = Channel(), CancelToken()
        receiver = threads.go(channel.recv)
        threads.parked(channel, receivers=1)
        thrown, _ = yield lambda: SEND[send](channel, token)
        if thrown:
            with contextlib.suppress(WouldBlock):
                channel.try_send("w")
        assert receiver.result() in ("v", "w" if thrown else "v")
        assert drain(channel) == []
        check_idle(channel)

    at_every_call(scenario)


@pytest.mark.parametrize("send", ["send", "send timeout", "send cancel", "select", "select two", "select cancel"])
def test_an_interrupted_wait_to_send(threads, send):
    """The value arrives at most once, and if the send returned, once."""

    def scenario():
        channel, token = Channel(), CancelToken()
        stop = threading.Event()

        def take():
            while not stop.is_set():
                with contextlib.suppress(TimeoutError):
                    return [channel.recv(timeout=0.002)]
            return []

        receiver = threads.go(take)
        thrown, _ = yield lambda: SEND[send](channel, token)
        stop.set()
        got = receiver.result() + drain(channel)
        assert got in ([[], ["v"]] if thrown else [["v"]])
        check_idle(channel, token.done._channel)

    at_every_call(scenario)


# -- waits that end otherwise ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wait",
    [
        lambda channel, token: channel.recv(timeout=1e-4),
        lambda channel, token: channel.send(1, timeout=1e-4),
        lambda channel, token: channel.recv(1e-4, token),
        lambda channel, token: channel.send(1, 1e-4, token),
        lambda channel, token: select(channel, channel.sending(1), timeout=1e-4),
        lambda channel, token: select(channel, channel.sending(1), timeout=1e-4, cancel=token),
        lambda channel, token: select(None, timeout=1e-4, cancel=token),
        lambda channel, token: select(channel, channel.sending(1), timeout=0),
        lambda channel, token: channel.recv(timeout=0),
    ],
)
def test_an_interrupted_wait_that_times_out_leaves_nobody_waiting(wait):
    def scenario():
        channel, token = Channel(), CancelToken()

        def operation():
            with contextlib.suppress(TimeoutError):
                return wait(channel, token)

        yield operation
        check_idle(channel, token.done._channel)
        assert drain(channel) == []

    at_every_call(scenario)


# -- closing and cancelling: done all the same -------------------------------------------------------------------------


@pytest.mark.parametrize("final", [True, False])
@pytest.mark.parametrize("close", ["close", "sender.close", "with"])
def test_an_interrupted_close_has_closed(threads, final, close):
    """Parked receivers are told, however far it had come; or it has not begun, and can be done again."""

    def scenario():
        channel = Channel()
        receivers = [threads.go(channel.recv) for _ in range(3)]
        threads.parked(channel, receivers=3)

        def operation():
            arguments = {"final": "last"} if final else {}
            if close == "with":
                with channel:
                    pass
            else:
                (channel if close == "close" else channel.sender).close(**arguments)

        thrown, _ = yield operation
        if thrown and not channel._closed:
            assert not closing
            assert repr(channel) == "<Channel 0/0 open, 3 receivers waiting>"
            assert channel.close(**({"final": "last"} if final else {}))
        got = []
        for task in receivers:
            try:
                got.append(task.result())
            except ChannelClosed:
                got.append("closed")
        with_final = final and (close != "with" or "last" in got)
        assert sorted(got) == ["closed", "closed", "last" if with_final else "closed"]
        assert drain(channel) == []
        check_idle(channel)

    at_every_call(scenario)


@pytest.mark.parametrize("capacity", [0, 1])
def test_an_interrupted_close_refuses_parked_senders(threads, capacity):
    def scenario():
        channel = Channel(capacity)
        for k in range(capacity):
            channel.send(k)
        senders = [threads.go(channel.send, "no") for _ in range(2)]
        threads.parked(channel, senders=2)
        thrown, _ = yield lambda: channel.close(final="last")
        if thrown and not channel._closed:
            assert channel.close(final="last")
        for task in senders:
            task.raises(ChannelClosed)
        assert drain(channel) == [*range(capacity), "last"]
        check_idle(channel)

    at_every_call(scenario)


def test_an_interrupted_cancel_has_cancelled(threads):
    """Children, callbacks and waits are told; or it has not begun."""

    def scenario():
        token = CancelToken()
        child = CancelToken(token)
        calls = []
        for k in range(3):
            token.on_cancel(lambda k=k: calls.append(k))
        waiting = [threads.go(Channel().recv, None, token), threads.go(Channel().recv, None, child)]
        threads.parked(token.done, receivers=1)
        threads.parked(child.done, receivers=1)
        thrown, first = yield lambda: token.cancel("why")
        if thrown and not token.cancelled:
            assert token.cause is None
            assert token.cancel("why")
        assert thrown or first
        for task in waiting:
            assert task.raises(Cancelled).cause == "why"
        assert sorted(calls) == [0, 1, 2]
        assert (child.cancelled, child.cause) == (True, "why")
        assert not token.cancel("again")
        check_idle(token.done._channel, child.done._channel)

    at_every_call(scenario, limit=400)


# -- the end of the stack ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "operation",
    [
        lambda channel: channel.try_send(1),
        lambda channel: channel.send(1, timeout=0),
        lambda channel: channel.send(1, timeout=1e-6),
        lambda channel: select(channel.sending(1), block=False),
        lambda channel: select(channel.sending(1), None, timeout=1e-6),
        lambda channel: channel.recv(timeout=1e-6),
        lambda channel: channel.recv(1e-6, CancelToken()),
        lambda channel: select(channel, None, timeout=1e-6),
        lambda channel: channel.close(),
    ],
)
@pytest.mark.parametrize("capacity", [0, 2, 10_000])
def test_an_operation_at_the_end_of_the_stack(threads, operation, capacity):
    """Runaway recursion hits its limit in the middle of an operation, sooner or later: RecursionError, a free lock,
    no loss.

    The operation is tried at every depth near the limit; a tool that recurses and reports its progress does the same.
    """
    channel = Channel(capacity)
    with contextlib.suppress(WouldBlock):
        for k in range(min(capacity, 5)):
            channel.try_send(("kept", k))

    def recurse():
        with contextlib.suppress(WouldBlock, TimeoutError, ChannelClosed):
            operation(channel)
        recurse()

    received = []
    real = operation

    def keeping(channel):
        value = real(channel)
        if value is not None and value is not True and value is not False:
            received.append(value.value if hasattr(value, "value") else value)

    operation = keeping
    before = sys.getrecursionlimit()
    with pytest.raises(RecursionError):
        recurse()
    assert sys.getrecursionlimit() == before
    channel.close()
    got = received + drain(channel)
    assert [v for v in got if v != 1 and v is not None] == [("kept", k) for k in range(min(capacity, 5))]
    check_idle(channel)


# -- for real ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("capacity", [0, 4])
def test_ctrl_c_in_a_loop_of_receives_loses_nothing(threads, capacity):
    """A hundred real signals, wherever they fall: every value that was sent is received once."""
    n = 400
    channel, got, interrupts = Channel(capacity), [], 0
    stop = threading.Event()
    main = threading.main_thread().ident
    armed = threading.Event()

    def produce():
        for k in range(n):
            channel.send(k, timeout=20)
            time.sleep(0.0002)

    def kill():
        while not stop.wait(0.001):
            if armed.is_set():
                signal.pthread_kill(main, signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    producer = threads.go(produce)
    killer = threads.go(kill)
    try:
        while len(got) < n:
            try:
                armed.set()
                while len(got) < n:
                    got += [channel.recv(timeout=5)]  # one step: received and kept
            except KeyboardInterrupt:
                interrupts += 1
    finally:
        while True:
            try:
                stop.set()
                killer.result()
                break
            except KeyboardInterrupt:
                interrupts += 1
        signal.signal(signal.SIGINT, before)
    producer.result()
    assert interrupts > 10
    assert sorted(got) == list(range(n))


def test_ctrl_c_ends_a_wait_of_the_main_thread(threads):
    """However long: a parked operation can be interrupted, and says so at once."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        for wait in (
            lambda channel: channel.recv(),
            lambda channel: channel.recv(timeout=1e9),
            lambda channel: channel.send(1),
            lambda channel: select(channel, channel.sending(1)),
        ):
            channel = Channel()
            killer = threads.go(threads.ctrl_c)
            began = time.monotonic()
            with pytest.raises(KeyboardInterrupt):
                wait(channel)
            assert time.monotonic() - began < 5
            killer.result()
            check_idle(channel)
    finally:
        signal.signal(signal.SIGINT, before)
