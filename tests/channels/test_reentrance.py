"""Operations in signal handlers and finalizers: they run in the middle of any other operation of their thread.

The deterministic tests put an action where such code may run: right after an operation has taken its channel's lock.
"""

from __future__ import annotations

import gc
import signal
import threading
import time

import pytest

from channels import Cancelled, CancelToken, Channel, ChannelClosed, WouldBlock, _channel, _select, select
from channels._rescue import closing


class _During:
    """A lock that does something when it has just been taken: a handler or finalizer in the middle of an operation."""

    def __init__(self, lock, action, times=1):
        self.lock, self.action, self.times = lock, action, times

    def acquire(self, *args):
        if not self.lock.acquire(*args):
            return False
        if self.times:
            self.times -= 1
            self.action()
        return True

    def release(self):
        self.lock.release()

    def _is_owned(self):
        return self.lock._is_owned()


def interrupt_with(channel, action):
    """Run ``action`` in the middle of the next operation on ``channel``."""
    channel._lock = _During(channel._lock, action)


@pytest.fixture(params=["send", "try_send", "select send", "select both"])
def sending(request):
    return {
        "send": lambda channel, value: channel.send(value, timeout=5),
        "try_send": lambda channel, value: channel.try_send(value),
        "select send": lambda channel, value: select(channel.sending(value), timeout=5),
        "select both": lambda channel, value: select(None, channel.sending(value), block=False),
    }[request.param]


@pytest.fixture(params=["recv", "try_recv", "select", "select default"])
def receiving(request):
    return {
        "recv": lambda channel: channel.recv(timeout=5),
        "try_recv": lambda channel: channel.try_recv(),
        "select": lambda channel: select(channel, timeout=5).value,
        "select default": lambda channel: select(None, channel, block=False).value,
    }[request.param]


# name: (what to do in the middle, what it raises)
REFUSED = {
    "try_send": (lambda channel: channel.try_send("nested"), WouldBlock),
    "try_recv": (lambda channel: channel.try_recv(), WouldBlock),
    "select send default": (lambda channel: select(channel.sending("nested"), block=False), WouldBlock),
    "select recv default": (lambda channel: select(channel, block=False), WouldBlock),
    "send": (lambda channel: channel.send("nested"), RuntimeError),
    "recv": (lambda channel: channel.recv(), RuntimeError),
    "send timeout": (lambda channel: channel.send("nested", timeout=1), RuntimeError),
    "recv timeout": (lambda channel: channel.recv(timeout=1), RuntimeError),
    "recv timeout 0": (lambda channel: channel.recv(timeout=0), RuntimeError),
    "select": (lambda channel: select(channel), RuntimeError),
    "select send": (lambda channel: select(channel.sending("nested"), timeout=1), RuntimeError),
    "iteration": (lambda channel: next(iter(channel)), RuntimeError),
}


@pytest.mark.parametrize("nested", REFUSED)
def test_a_nested_operation_never_changes_a_busy_channel(nested, sending, receiving):
    """It is refused at once, and the operation that it interrupted goes on as if nothing had been."""
    operation, error = REFUSED[nested]
    channel = Channel(3)
    channel.send("first")
    seen = []

    def action():
        with pytest.raises(error) as caught:
            operation(channel)
        seen.append(str(caught.value))

    interrupt_with(channel, action)
    sending(channel, "second")
    interrupt_with(channel, action)
    assert receiving(channel) == "first"
    assert len(seen) == 2
    if error is RuntimeError:
        assert "signal handler or finalizer that interrupted an operation" in seen[0]
    assert channel.recv(timeout=0) == "second"
    with pytest.raises(WouldBlock):
        channel.try_recv()


@pytest.mark.parametrize("final", [True, False])
def test_a_nested_close_is_completed_by_the_send_it_interrupted(sending, final):
    """The send was first, so its value comes first, and the close's final value after it."""
    channel = Channel(2)
    answers = []

    def action():
        answers.append(channel.close(final="last") if final else channel.close())
        answers.append(channel.close(final="too late"))
        assert channel.closed

    interrupt_with(channel, action)
    sending(channel, "sent")
    assert answers == [True, False]
    with pytest.raises(ChannelClosed):
        channel.send("no")
    assert list(channel) == (["sent", "last"] if final else ["sent"])
    assert not closing


def test_a_nested_close_is_completed_by_the_receive_it_interrupted(receiving):
    channel = Channel(2)
    channel.send(1)
    interrupt_with(channel, lambda: channel.close(final="last"))
    assert receiving(channel) == 1
    assert channel._closed
    assert list(channel) == ["last"]
    assert not closing


def test_a_nested_close_is_completed_by_a_wait_that_it_then_ends():
    """An operation that was about to park meets the close that came while it queued."""
    for wait, outcome in (
        (lambda channel: channel.recv(), ChannelClosed),
        (lambda channel: channel.send(1), ChannelClosed),
        (lambda channel: select(channel.sending(1), None), ChannelClosed),
    ):
        channel = Channel()
        interrupt_with(channel, channel.close)
        with pytest.raises(outcome):
            wait(channel)
    channel = Channel()
    interrupt_with(channel, channel.close)
    assert tuple(select(channel, None))[:3] == (0, None, False)
    channel = Channel()
    interrupt_with(channel, lambda: channel.close(final="last"))
    assert channel.recv() == "last"
    assert not closing


def test_a_nested_close_is_completed_by_a_close(threads):
    channel = Channel()
    receivers = [threads.go(channel.recv) for _ in range(2)]
    threads.parked(channel, receivers=2)
    answers = []
    interrupt_with(channel, lambda: answers.append(channel.close(final=2)))
    assert channel.close(final=1) is True
    assert answers == [False]
    got = []
    for task in receivers:
        try:
            got.append(task.result())
        except ChannelClosed:
            got.append("closed")
    assert sorted(map(str, got)) == ["1", "closed"]
    assert not closing


def test_a_nested_close_is_completed_by_a_wait_that_times_out():
    """Also when it comes as the timed-out operation withdraws."""
    channel = Channel()
    with pytest.raises(TimeoutError):
        lock = _During(channel._lock, lambda: None, times=1)
        lock.action = lambda: setattr(channel, "_lock", _During(lock.lock, channel.close))
        channel._lock = lock
        channel.recv(timeout=0.01)
    assert channel._closed
    assert not closing


def test_a_nested_close_is_completed_by_a_value_given_back(threads, interrupt):
    """The last of the places that hold the lock: the receive that Ctrl-C hit puts its value back, and is
    interrupted.
    """
    one, two = Channel(), Channel()
    waiting = threads.go(select, one, two)  # the last channel it enlists on is not the one that serves it
    threads.parked(two, receivers=1)
    threads.asleep(waiting)
    interrupt(waiting)

    def arm():
        one._lock = _During(one._lock.lock, lambda: one.close(final="last"))

    one._lock = _During(one._lock, lambda: None)
    real = one._lock.lock
    one.send("value")
    one._lock = _During(real, lambda: one.close(final="last"))
    waiting.raises(KeyboardInterrupt)
    assert one._closed
    assert list(one) == ["value", "last"]
    assert not closing


@pytest.mark.parametrize("operation", ["recv", "send", "select"])
def test_a_token_cancelled_in_the_middle_of_an_operation_on_it(operation):
    """A handler may cancel the very token that the interrupted operation is about to wait for."""
    token = CancelToken()
    called = []
    token.on_cancel(lambda: called.append(token.cancelled))
    channel = Channel()
    interrupt_with(token.done._channel, lambda: token.cancel("handler"))
    with pytest.raises(Cancelled, match="handler"):
        {
            "recv": lambda: channel.recv(5, token),
            "send": lambda: channel.send(1, 5, token),
            "select": lambda: select(channel, timeout=5, cancel=token),
        }[operation]()
    assert called == [True]
    assert token.done._channel._closed


def test_a_wait_for_a_token_that_its_own_thread_is_cancelling():
    """A handler that interrupts `cancel` and waits for that very token: refused, with nothing sent."""
    token = CancelToken()
    channel = Channel()
    seen = []

    def action():
        for operation in (
            lambda: channel.recv(5, token),
            lambda: channel.send("nested", 5, token),
            lambda: select(channel, timeout=5, cancel=token),
        ):
            with pytest.raises((RuntimeError, Cancelled)) as caught:
                operation()
            seen.append(type(caught.value))

    interrupt_with(token.done._channel, action)
    token.cancel()
    assert len(seen) == 3
    assert repr(channel) == "<Channel 0/0 open>"
    with pytest.raises(WouldBlock):
        channel.try_recv()


def test_a_finalizer_cancels_and_closes_in_the_middle_of_anything():
    """Dropping an object ends its business, wherever that happens."""
    token, channel = CancelToken(), Channel(4)

    class Guard:
        def __del__(self):
            token.cancel("dropped")
            channel.close(final="bye")

    guards = [Guard()]
    interrupt_with(channel, guards.clear)
    channel.send("sent")
    assert token.cause == "dropped"
    assert list(channel) == ["sent", "bye"]


# -- two threads, two channels, two finalizers -------------------------------------------------------------------------


@pytest.fixture
def patience(monkeypatch):
    """The bound on a finalizer's wait, made short."""
    monkeypatch.setattr(_channel, "PATIENCE", 0.05)
    monkeypatch.setattr(_select, "PATIENCE", 0.05)


@pytest.mark.parametrize("nested", ["try_send", "try_recv", "select", "close"])
def test_two_finalizers_crosswise_do_not_deadlock(threads, patience, nested):
    """Each thread is in the middle of one channel and wants the other's: the wait is bounded, and a close gets
    through.
    """
    one, two = Channel(2), Channel(2)
    inside = threading.Barrier(2)

    def action(other):
        inside.wait(5)
        try:
            {
                "try_send": lambda: other.try_send("nested"),
                "try_recv": lambda: other.try_recv(),
                "select": lambda: select(other, block=False),
                "close": lambda: other.close(final="nested"),
            }[nested]()
        except WouldBlock:
            return "refused"
        return "done"

    answers = []
    interrupt_with(one, lambda: answers.append(action(two)))
    interrupt_with(two, lambda: answers.append(action(one)))
    began = time.monotonic()
    threads.all(lambda: one.send(1), lambda: two.send(2))
    assert time.monotonic() - began < 3
    assert len(answers) == 2
    if nested == "close":
        assert answers == ["done", "done"]
        assert list(one) == [1, "nested"]
        assert list(two) == [2, "nested"]
    else:
        assert "refused" in answers
        one.close(), two.close()
        assert [v for v in one if v != "nested"] in ([1], [])
    assert not closing


def test_a_finalizers_wait_for_a_lock_is_bounded(threads, patience):
    """Another thread is in the middle of the channel and does not move: nothing of what a finalizer may call hangs."""
    channel, ready = Channel(2), Channel(1)
    inside, go_on = threading.Event(), threading.Event()

    def action():
        inside.set()
        go_on.wait(10)

    interrupt_with(channel, action)
    sender = threads.go(channel.send, "sent")
    assert inside.wait(10)
    ready.send("there")
    with pytest.raises(WouldBlock):
        channel.try_send(1)
    with pytest.raises(WouldBlock):
        channel.try_recv()
    with pytest.raises(WouldBlock):
        select(channel, None, block=False)
    with pytest.raises(WouldBlock):
        select(channel.sending(1), block=False)
    assert channel.close(final="last") is True  # whoever is in the middle will see to it
    go_on.set()
    sender.result()
    assert channel.closed
    assert list(channel) == ["sent", "last"]
    assert not closing


# -- real signals and a real garbage collector -------------------------------------------------------------------------


@pytest.fixture
def on_signal():
    """Install a handler for SIGUSR1."""
    before = signal.getsignal(signal.SIGUSR1)
    yield lambda handler: signal.signal(signal.SIGUSR1, handler)
    signal.signal(signal.SIGUSR1, before)


def _kill_main():
    signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)


def test_a_signal_handler_serves_the_receive_that_it_interrupted(threads, on_signal):
    channel = Channel()
    on_signal(lambda *_: channel.try_send("from the handler"))
    killer = threads.go(lambda: (threads.parked(channel, receivers=1), _kill_main()))
    assert channel.recv(timeout=10) == "from the handler"
    killer.result()


def test_a_signal_handler_takes_from_the_send_that_it_interrupted(threads, on_signal):
    channel, got = Channel(), []
    on_signal(lambda *_: got.append(channel.try_recv()))
    killer = threads.go(lambda: (threads.parked(channel, senders=1), _kill_main()))
    channel.send("to the handler", timeout=10)
    assert got == ["to the handler"]
    killer.result()


def test_a_signal_handler_closes_what_it_interrupted(threads, on_signal):
    for wait in (lambda channel: channel.recv(10), lambda channel: channel.send(1, 10)):
        channel = Channel()
        on_signal(lambda *_, channel=channel: channel.close())
        killer = threads.go(
            lambda channel=channel: (
                threads.parked(channel, *(1, None) if wait.__code__.co_names[0] == "recv" else (None, 1)),
                _kill_main(),
            )
        )
        with pytest.raises(ChannelClosed):
            wait(channel)
        killer.result()


def test_a_signal_handler_may_wait_while_the_interrupted_operation_is_parked(threads, on_signal):
    """A parked operation holds no lock: the handler's own receive queues behind it, first come, first served."""
    channel, got = Channel(), []
    on_signal(lambda *_: got.append(channel.recv(timeout=10)))

    def partner():
        threads.parked(channel, receivers=1)
        _kill_main()
        threads.parked(channel, receivers=2)
        channel.send("outer")
        channel.send("inner")

    task = threads.go(partner)
    assert channel.recv(timeout=10) == "outer"
    assert got == ["inner"]
    task.result()


def test_a_signal_handler_cancels_the_wait_that_it_interrupted(threads, on_signal):
    token, channel = CancelToken(), Channel()
    on_signal(lambda *_: token.cancel("signal"))
    killer = threads.go(lambda: (threads.parked(token.done, receivers=1), _kill_main()))
    with pytest.raises(Cancelled, match="signal"):
        channel.recv(10, token)
    killer.result()


@pytest.fixture
def gc_often():
    before = gc.get_threshold()
    gc.set_threshold(20, 2, 2)
    yield
    gc.set_threshold(*before)


def test_finalizers_run_by_the_garbage_collector(threads, gc_often):
    """An object in a cycle sends when it is collected, in the middle of whatever allocates. Nothing hangs or is
    lost.
    """
    # Room for all: Python 3.14 collects them in hundreds, and then nobody would be left to take some out.
    channel, refused, nested = Channel(1000), [], []

    class Loop:
        def __init__(self):
            self.me = self

        def __del__(self):
            try:
                channel.try_send("nested")
                nested.append(1)
            except (WouldBlock, ChannelClosed):
                refused.append(1)

    def work():
        got = []
        for _ in range(400):
            Loop()
            channel.send([[], []], timeout=10)
            got.append(channel.recv(timeout=10))
            while len(channel) > 20:
                got.append(channel.recv(timeout=10))
        return got

    results = threads.all(work, work)
    gc.collect()
    rest = []
    channel.close()
    rest.extend(channel)
    values = [value for got in (*results, rest) for value in got]
    assert values.count("nested") == len(nested)
    assert len(values) == 800 + len(nested)
    assert len(nested) + len(refused) == 800
