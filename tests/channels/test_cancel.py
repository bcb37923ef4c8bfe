"""What `CancelToken` promises: once, with a cause, downwards, and from anywhere."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import itertools
import logging
import numbers
import threading
import time
import weakref
from datetime import timedelta
from decimal import Decimal
from fractions import Fraction

import pytest

from channels import (
    Cancelled,
    CancelToken,
    Channel,
    ChannelClosed,
    Receiver,
    WorkerGroup,
    WouldBlock,
    _cancel,
    _timer,
    after,
    select,
)
from channels._cancel import _Cancellation
from channels.aio import LoopThread
from support.waiting import eventually

SOON = 0.2  # seconds after which a deadline comes: not before the next line has run, on a busy machine either


def test_a_new_token_is_not_cancelled():
    token = CancelToken()
    assert (token.cancelled, token.cause, repr(token)) == (False, None, "<CancelToken>")
    assert isinstance(token.done, Receiver)
    with pytest.raises(WouldBlock):
        token.done.try_recv()


def test_cancel_says_whether_it_did_and_keeps_the_first_cause():
    token = CancelToken()
    assert token.cancel("first") is True
    assert token.cancel("second") is False
    assert token.cancel() is False
    assert (token.cancelled, token.cause) == (True, "first")
    assert repr(token) == "<CancelToken cancelled: 'first'>"
    token = CancelToken()
    assert token.cancel()
    assert (token.cause, repr(token)) == (None, "<CancelToken cancelled>")
    assert not token.cancel("too late")
    assert token.cause is None


def test_a_registration_shows_its_callback_until_that_is_called_or_removed():
    token = CancelToken()
    calls = token.on_cancel(print), token.on_cancel(int)
    assert repr(calls[0]) == "<Registration of print>"
    calls[0].remove()
    token.cancel()
    assert [repr(each) for each in calls] == ["<Registration, removed or called>"] * 2


def test_done_closes_on_cancel(threads):
    """For whoever waits for it, looks at it, or selects on it."""
    token = CancelToken()
    waiting = threads.go(token.done.recv)
    selecting = threads.go(select, None, token.done)
    threads.parked(token.done, receivers=2)
    token.cancel()
    waiting.raises(ChannelClosed)
    assert tuple(selecting.result())[:3] == (1, None, False)
    assert token.done.closed
    assert list(token.done) == []


def test_exactly_one_of_many_cancels_did(threads, switching):
    """Its cause is the one; and once a `cancel` has returned, whoever's it was, the token is cancelled."""
    for _ in range(50):
        token = CancelToken()

        def cancel(k, token=token):
            did = token.cancel(k)
            assert token.cancelled
            assert token.cause is not None
            return did

        won = threads.all(*[lambda k=k: cancel(k) for k in range(1, 5)])
        assert won.count(True) == 1
        assert token.cause == won.index(True) + 1


def test_a_second_cancel_finishes_what_the_first_has_only_begun():
    """Its thread may be held up, or have been interrupted, between deciding and closing: a cancel that returns has
    closed.

    The first canceller is stopped right after the decision.
    """
    token = CancelToken()
    core = token.done._channel

    class Stop(BaseException):
        pass

    def stop(*_):
        raise Stop

    class Undecided(_Cancellation):
        __slots__ = ()

    Undecided.close = stop
    core.__class__ = Undecided
    with pytest.raises(Stop):
        token.cancel("first")
    core.__class__ = _Cancellation
    assert token.cancel("second") is False
    assert token.cancelled
    assert token.cause == "first"


# -- parents and children ----------------------------------------------------------------------------------------------


def test_cancelling_a_parent_cancels_its_children_with_its_cause():
    parent = CancelToken()
    child = CancelToken(parent)
    grandchild, other = CancelToken(child), CancelToken(parent)
    parent.cancel("why")
    assert [token.cause for token in (child, grandchild, other)] == ["why"] * 3
    assert all(token.cancelled for token in (child, grandchild, other))


def test_a_long_chain_of_tokens_is_cancelled_to_its_end():
    """However deep the nesting, it is no matter of the stack."""
    tokens = [CancelToken()]
    for _ in range(3000):
        tokens.append(CancelToken(tokens[-1]))
    calls = []
    tokens[-1].on_cancel(lambda: calls.append(1))
    tokens[0].cancel("why")
    assert all(token.cancelled for token in tokens)
    assert (tokens[-1].cause, calls) == ("why", [1])


def test_everything_below_is_cancelled_before_a_callback_runs():
    """A slow callback delays no other part of the tree."""
    parent = CancelToken()
    seen = []
    parent.on_cancel(lambda: seen.append((child.cancelled, grandchild.cancelled)))
    child = CancelToken(parent)
    child.on_cancel(lambda: seen.append("child"))
    grandchild = CancelToken(child)
    parent.on_cancel(lambda: seen.append("second"))
    parent.cancel()
    assert seen == [(True, True), "second", "child"]


def test_cancelling_a_child_leaves_its_parent_and_siblings():
    parent = CancelToken()
    child, other = CancelToken(parent), CancelToken(parent)
    assert child.cancel("mine")
    assert (parent.cancelled, other.cancelled) == (False, False)
    parent.cancel("theirs")
    assert (child.cause, other.cause) == ("mine", "theirs")


def test_a_child_of_a_cancelled_parent_is_born_cancelled():
    parent = CancelToken()
    parent.cancel("before")
    child = CancelToken(parent)
    assert (child.cancelled, child.cause) == (True, "before")
    assert CancelToken(parent, timeout=100).cause == "before"


def test_a_child_born_while_its_parent_is_cancelled(threads, switching):
    """However the two fall, it is cancelled in the end."""
    for _ in range(100):
        parent = CancelToken()
        child, _ = threads.all(lambda parent=parent: CancelToken(parent), lambda parent=parent: parent.cancel("why"))
        with pytest.raises(ChannelClosed):
            child.done.recv(timeout=5)
        assert child.cause == "why"


def test_a_parent_holds_its_children_weakly():
    """A long-lived token does not collect what was made from it: neither tokens nor their entries."""
    parent = CancelToken()
    for _ in range(1000):
        CancelToken(parent)
    gc.collect()
    assert parent._core.callbacks == {}
    child = CancelToken(parent)
    gone = weakref.ref(child._core)
    assert len(parent._core.callbacks) == 1
    del child
    assert gone() is None
    assert parent._core.callbacks == {}


def test_cancelled_children_of_a_living_parent_cost_nothing():
    parent = CancelToken()
    for _ in range(1000):
        CancelToken(parent).cancel()
    assert parent._core.callbacks == {}


def test_a_child_keeps_its_parent():
    """Or nobody could cancel it by the parent's deadline."""
    child = CancelToken(CancelToken(timeout=0.02))
    gc.collect()
    with pytest.raises(ChannelClosed):
        child.done.recv(timeout=5)
    assert isinstance(child.cause, TimeoutError)


def test_who_waits_for_a_token_need_not_hold_it(threads):
    """The receiver is enough: for the deadline and for the parent's cancel."""
    parent = CancelToken()
    done = [CancelToken(timeout=0.02).done, CancelToken(parent).done]
    gc.collect()
    with pytest.raises(ChannelClosed):
        done[0].recv(timeout=5)
    waiting = threads.go(done.pop().recv)
    parent.cancel()
    waiting.raises(ChannelClosed)


def test_tokens_are_freed_without_the_garbage_collector():
    """No cycles: not with a parent, a deadline, callbacks, or after a cancel."""
    gc.collect()
    gc.disable()
    try:
        for prepare in (
            lambda parent: CancelToken(),
            lambda parent: CancelToken(parent),
            lambda parent: CancelToken(timeout=1000),
            lambda parent: CancelToken(parent, 1000),
        ):
            for cancelled in (False, True):
                parent = CancelToken()
                token = prepare(parent)
                token.on_cancel(list)
                if cancelled:
                    token.cancel("c")
                gone = [weakref.ref(token), weakref.ref(token._core), weakref.ref(parent._core)]
                del token, parent
                assert [ref() for ref in gone] == [None] * 3
    finally:
        gc.enable()


# -- deadlines ---------------------------------------------------------------------------------------------------------


def test_a_deadline_cancels_with_a_timeout_error():
    token = CancelToken(timeout=SOON)
    assert not token.cancelled
    with pytest.raises(ChannelClosed):
        token.done.recv(timeout=5)
    assert isinstance(token.cause, TimeoutError)
    assert str(token.cause) == f"deadline of {SOON} s passed"
    with pytest.raises(Cancelled, match="deadline") as caught:
        Channel().recv(cancel=token)
    assert caught.value.cause is token.cause


def test_a_deadline_of_0_has_passed():
    """At once, as in Go, not when the timer thread gets to it."""
    token = CancelToken(timeout=0)
    assert token.cancelled
    assert isinstance(token.cause, TimeoutError)


@pytest.mark.parametrize("timeout", [None, float("inf"), 1e12, 10**400], ids=["None", "inf", "1e12", "10**400"])
def test_a_deadline_that_never_comes(timeout):
    token = CancelToken(timeout=timeout)
    other = CancelToken(timeout=0.02)
    with pytest.raises(ChannelClosed):
        other.done.recv(timeout=5)  # the timer thread has had it in its hands, and lives
    assert not token.cancelled
    assert token.cancel()


def test_the_earlier_deadline_counts():
    early = CancelToken(timeout=0.02)
    child = CancelToken(early, timeout=1000)
    with pytest.raises(ChannelClosed):
        child.done.recv(timeout=5)
    assert child.cause is early.cause
    late = CancelToken(timeout=1000)
    child = CancelToken(late, timeout=0.02)
    with pytest.raises(ChannelClosed):
        child.done.recv(timeout=5)
    assert not late.cancelled


def test_a_cancel_before_the_deadline_keeps_its_cause():
    token = CancelToken(timeout=SOON)
    token.cancel("mine")
    with pytest.raises(TimeoutError):
        Channel().recv(timeout=SOON + 0.03)
    assert token.cause == "mine"


# -- callbacks ---------------------------------------------------------------------------------------------------------


def test_callbacks_run_once_in_the_order_of_registration():
    token = CancelToken()
    calls = []
    for k in range(5):
        token.on_cancel(lambda k=k: calls.append((k, token.cancelled, threading.get_ident())))
    assert calls == []
    token.cancel()
    token.cancel()
    me = threading.get_ident()
    assert calls == [(k, True, me) for k in range(5)]


def test_a_callback_of_a_cancelled_token_runs_at_once():
    token = CancelToken()
    token.cancel()
    calls = []
    registration = token.on_cancel(lambda: calls.append(1))
    assert calls == [1]
    assert registration.remove() is False


def test_a_deadline_runs_the_callbacks_on_a_thread_for_callbacks():
    token = CancelToken(timeout=SOON)
    where = Channel(1)
    token.on_cancel(lambda: where.try_send(threading.current_thread().name))
    assert where.recv(timeout=5) == "channels-callback"


def test_a_callback_that_blocks_delays_no_timer_and_no_other_callback(threads):
    token = CancelToken(timeout=SOON)
    inside, go_on = Channel(1), Channel()
    token.on_cancel(lambda: (inside.send(1), go_on.recv(timeout=10)))
    inside.recv(timeout=5)
    after(0.02).recv(timeout=5)
    other = CancelToken(timeout=SOON)
    called = Channel(1)
    other.on_cancel(lambda: called.try_send(1))
    assert called.recv(timeout=5) == 1
    go_on.send(1, timeout=5)


def test_a_callback_of_a_deadline_may_wait_for_a_timer():
    token = CancelToken(timeout=SOON)
    waited = Channel(1)
    token.on_cancel(lambda: waited.send(after(0.02).recv(timeout=5)))
    assert waited.recv(timeout=5) > 0


def test_threads_for_callbacks_are_used_again_and_end_when_idle(monkeypatch):
    names = []

    def call_back():
        token = CancelToken(timeout=SOON / 2)
        called = Channel(1)
        token.on_cancel(lambda: (names.append(threading.current_thread()), called.try_send(1)))
        called.recv(timeout=5)

    monkeypatch.setattr(_timer, "IDLE", 60)  # none of them ends meanwhile, however busy the machine is
    for _ in range(5):
        call_back()
        assert eventually(lambda: any(caller.thread is names[-1] for caller in _timer._clock._idle.copy()))
    assert len(set(names)) <= 2
    monkeypatch.setattr(_timer, "IDLE", 0.1)
    call_back()
    names[-1].join(5)
    assert not names[-1].is_alive()


def test_remove_says_whether_the_callback_will_never_run():
    token = CancelToken()
    calls = []
    registration = token.on_cancel(lambda: calls.append(1))
    assert registration.remove() is True
    assert registration.remove() is False
    token.cancel()
    assert calls == []
    with token.on_cancel(lambda: calls.append(2)):
        pass
    assert calls == [2]


def test_a_registration_is_removed_on_leaving_a_with_block():
    token = CancelToken()
    calls = []
    with token.on_cancel(lambda: calls.append(1)) as registration:
        assert registration.remove is not None
    with pytest.raises(ZeroDivisionError), token.on_cancel(lambda: calls.append(2)):
        raise ZeroDivisionError
    token.cancel()
    assert calls == []
    assert token._core.callbacks == {}


def test_a_removed_callback_is_let_go_of():
    class Callback:
        def __call__(self):
            pass

    token = CancelToken()
    removed, called = Callback(), Callback()
    registration = token.on_cancel(removed)
    kept = token.on_cancel(called)
    gone = weakref.ref(removed), weakref.ref(called)
    del removed, called
    registration.remove()
    assert gone[0]() is None
    token.cancel()
    assert gone[1]() is None
    assert kept.remove() is False


def test_a_callback_runs_once_whoever_is_faster(threads, switching):
    """`on_cancel` and `cancel`, and `remove` and `cancel`, at the same moment: exactly once, or removed."""
    for _ in range(200):
        token = CancelToken()
        calls = []
        early = token.on_cancel(lambda calls=calls: calls.append("early"))
        removed, _, _ = threads.all(
            early.remove,
            lambda token=token, calls=calls: token.on_cancel(lambda: calls.append("late")),
            token.cancel,
        )
        assert sorted(calls) == (["late"] if removed else ["early", "late"])


def test_what_a_callback_raises_is_logged_and_stops_nobody(caplog):
    token = CancelToken()
    calls = []
    token.on_cancel(lambda: calls.append(1))
    token.on_cancel(lambda: 1 / 0)
    token.on_cancel(lambda: calls.append(2))
    child = CancelToken(token)
    child.on_cancel(lambda: [][0])
    with caplog.at_level(logging.ERROR):
        assert token.cancel() is True
    assert calls == [1, 2]
    assert child.cancelled
    assert [record.exc_info[0] for record in caplog.records] == [ZeroDivisionError, IndexError]
    assert all("a cancel callback failed" in record.message for record in caplog.records)


def test_an_exit_in_a_callback_gets_out_and_stops_nobody():
    """SystemExit and Ctrl-C are not swallowed; but everyone else is told first, however many of them there are."""
    token = CancelToken()
    calls = []
    for k in range(4):
        token.on_cancel(lambda k=k: calls.append(k))
        token.on_cancel(lambda k=k: exit_with(k))

    def exit_with(k):
        raise SystemExit(k)

    with pytest.raises(SystemExit, match="0"):
        token.cancel()
    assert calls == [0, 1, 2, 3]
    assert token.cancelled


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt])
def test_every_callback_runs_however_many_end_the_program(kind, caplog):
    """More of them than cleaning up has tries."""
    token = CancelToken()
    calls = []

    def end():
        calls.append("end")
        raise kind("first" if len(calls) == 1 else "later")

    for _ in range(150):
        token.on_cancel(end)
    token.on_cancel(lambda: calls.append("last"))
    child = CancelToken(token)
    child.on_cancel(lambda: calls.append("child"))
    with caplog.at_level(logging.ERROR), pytest.raises(kind, match="first"):
        token.cancel()
    assert calls == ["end"] * 150 + ["last", "child"]
    assert len(caplog.records) == 149  # one is raised, the others are told of
    assert len(token._core.callbacks) == 1  # the child's


@pytest.mark.parametrize("apart", [False, True])
def test_two_exceptions_between_callbacks_leave_no_round_that_nobody_is_at(monkeypatch, apart):
    """The second comes while the first is noted. What the thread cancels afterwards has its callbacks run."""
    thrown = [KeyboardInterrupt(), KeyboardInterrupt()]

    class Raised(list):
        def append(self, error):
            if thrown:
                raise thrown.pop()
            super().append(error)

    class Round(_cancel._Round):
        __slots__ = ()

        def __init__(self, *args):
            super().__init__(*args)
            self.raised = Raised()

    def run(core, *args):
        if len(thrown) == 2:
            raise thrown.pop()
        run_now(core, *args)

    run_now = _Cancellation.run
    monkeypatch.setattr(_Cancellation, "run", run)
    monkeypatch.setattr(_cancel, "_Round", Round)
    called, later, token, another = [], [], CancelToken(), CancelToken()
    token.on_cancel(lambda: called.append("first"))
    token.on_cancel(lambda: called.append("second"))
    another.on_cancel(lambda: later.append("later"))
    if apart:
        with pytest.raises(KeyboardInterrupt):
            _cancel._Round([token._core], [(token._core, key) for key in token._core.callbacks]).carry_out()
    else:
        with pytest.raises(KeyboardInterrupt):
            token.cancel()
    assert called == ["first", "second"]
    another.cancel()
    assert later == ["later"]


def test_a_cancel_in_a_callback_says_false_at_once():
    """Callbacks do not nest: neither in order nor in depth does it matter how many say it again."""
    token = CancelToken()
    began, ended = [], []

    def again(k):
        began.append(k)
        assert token.cancel("again") is False
        assert len(began) == k + 1
        ended.append(k)

    for k in range(3000):
        token.on_cancel(lambda k=k: again(k))
    assert token.cancel("first") is True
    assert ended == list(range(3000))
    assert token.cause == "first"


def test_children_whose_callbacks_cancel_their_parent():
    parent = CancelToken()
    children = [CancelToken(parent) for _ in range(3000)]
    ended = []
    for child in children:
        child.on_cancel(lambda: (parent.cancel("a child"), ended.append(1)))
    children[7].cancel("reset")
    assert len(ended) == 3000
    assert parent.cause == "a child"
    assert all(child.cancelled for child in children)


def test_tokens_that_cancel_each_other_in_a_long_row():
    tokens = [CancelToken() for _ in range(3000)]
    ended = []
    for k, (one, other) in enumerate(itertools.pairwise(tokens)):
        one.on_cancel(lambda k=k, other=other: (other.cancel(k), ended.append((k, other.cancelled))))
    tokens[0].cancel("first")
    assert ended == [(k, True) for k in range(2999)]


def test_a_long_line_of_descendants_is_cancelled_and_freed():
    root = token = CancelToken()
    for _ in range(20_000):
        token = CancelToken(token)
    called = []
    token.on_cancel(lambda: called.append(token.cause))
    root.cancel("above")
    assert called == ["above"]


def test_callbacks_that_register_callbacks():
    token = CancelToken()
    depth = []

    def register():
        depth.append(1)
        if len(depth) < 3000:
            token.on_cancel(register)

    token.on_cancel(register)
    token.cancel()
    assert len(depth) == 3000


def test_callbacks_of_what_a_callback_cancels_run_when_it_has_returned():
    first, second = CancelToken(), CancelToken()
    log = []
    second.on_cancel(lambda: log.append("second"))
    first.on_cancel(lambda: log.extend(["begin", second.cancel(), second.cancelled, "end"]))
    first.on_cancel(lambda: log.append("first"))
    first.cancel()
    assert log == ["begin", True, True, "end", "first", "second"]


def test_a_cancelled_wait_in_a_callback_is_logged_like_any_failure(caplog):
    token = CancelToken()
    token.on_cancel(lambda: Channel().recv(cancel=token))
    with caplog.at_level(logging.ERROR):
        token.cancel()
    assert [record.exc_info[0] for record in caplog.records] == [Cancelled]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (5, "for a deadline say timeout=5"),
        (0.5, "for a deadline say timeout=0.5"),
        ("x", "not 'x'"),
        (CancelToken().done, "must be another one or None"),
        (WorkerGroup(), "pass its token"),
    ],
)
def test_a_parent_is_a_token(wrong, says):
    with pytest.raises(TypeError, match=says):
        CancelToken(wrong)
    with pytest.raises(TypeError, match=says):
        WorkerGroup(wrong)


def test_a_callback_is_a_function():
    with pytest.raises(TypeError, match="on_cancel takes a function"):
        CancelToken().on_cancel(None)


def test_a_callback_may_use_the_token():
    token = CancelToken()
    seen = []

    def callback():
        seen.append(token.cancel("again"))
        seen.append(token.cancelled)
        token.on_cancel(lambda: seen.append("nested"))
        seen.append(CancelToken(token).cancelled)
        with pytest.raises(Cancelled):
            Channel().recv(cancel=token)

    token.on_cancel(callback)
    token.on_cancel(lambda: seen.append("next"))
    token.cancel("once")
    assert token.cause == "once"
    assert sorted(map(str, seen)) == ["False", "True", "True", "nested", "next"]


def test_a_callback_may_remove_another():
    token = CancelToken()
    calls = []
    token.on_cancel(lambda: calls.append(second.remove()))
    second = token.on_cancel(lambda: calls.append("second"))
    token.cancel()
    assert calls == [True]


def test_no_callback_runs_under_a_lock(threads):
    """While a callback is at it, others use the token freely."""
    token = CancelToken()
    inside, go_on = Channel(1), Channel(1)

    def callback():
        inside.send(1)
        go_on.recv(timeout=10)

    token.on_cancel(callback)
    canceller = threads.go(token.cancel, "why")
    inside.recv(timeout=10)
    assert token.cancelled
    assert token.cancel() is False
    calls = []
    token.on_cancel(lambda: calls.append(1))
    assert calls == [1]
    with pytest.raises(ChannelClosed):
        token.done.recv(timeout=1)
    assert canceller.running
    go_on.send(1)
    assert canceller.result() is True


def test_cancel_from_a_finalizer_run_by_the_garbage_collector(threads):
    """Dropping the last reference, also in a cycle, may be what cancels."""
    token = CancelToken()
    calls = []
    token.on_cancel(lambda: calls.append(1))

    class Guard:
        def __init__(self):
            self.me = self

        def __del__(self):
            token.cancel("dropped")

    waiting = threads.go(Channel().recv, None, token)
    threads.parked(token.done, receivers=1)
    Guard()
    gc.collect()
    assert waiting.raises(Cancelled).cause == "dropped"
    assert calls == [1]


def test_cancelling_is_prompt(threads):
    """A hundred waits end together, long before a timeout."""
    token = CancelToken()
    channel = Channel()
    waits = [threads.go(channel.recv, None, token) for _ in range(50)]
    waits += [threads.go(select, channel, cancel=token) for _ in range(50)]
    threads.parked(token.done, receivers=100)
    began = time.monotonic()
    token.cancel()
    for task in waits:
        task.raises(Cancelled)
    assert time.monotonic() - began < 2
    assert repr(channel) == "<Channel 0/0 open>"


def test_a_canceller_is_for_finalizers(threads):
    """It cancels on other threads, so whatever the callbacks do, the finalizer does not."""
    token = CancelToken()
    where = Channel(1)
    token.on_cancel(lambda: where.try_send(threading.current_thread().name))

    class Thing:
        pass

    thing = Thing()
    finalizer = weakref.finalize(thing, token.canceller("dropped"))
    finalizer.atexit = False
    waiting = threads.go(Channel().recv, None, token)
    threads.parked(token.done, receivers=1)
    del thing
    assert waiting.raises(Cancelled).cause == "dropped"
    assert where.recv(timeout=5) == "channels-callback"


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (5, "not 5$"),
        (threading.Event(), "not <"),
        (CancelToken().done, ": pass the token, not its done"),
        (Channel(), ": pass the token, not its done"),
        (WorkerGroup(), ": pass its token"),
        (concurrent.futures.Future(), "not <Future"),
        (CancelToken, "not <class"),
    ],
)
@pytest.mark.parametrize("operation", ["send", "recv", "select", "call", "iterate"])
def test_what_cancel_takes(operation, wrong, says):
    channel = Channel(1)
    with LoopThread() as loop, pytest.raises(TypeError, match=f"cancel= takes a CancelToken.*{says}"):
        if operation == "send":
            channel.send(1, cancel=wrong)
        elif operation == "recv":
            channel.recv(cancel=wrong)
        elif operation == "select":
            select(channel, cancel=wrong)
        elif operation == "call":
            loop.call(asyncio.sleep, 0, cancel=wrong)
        else:
            loop.iterate(aiter_nothing(), cancel=wrong)


async def aiter_nothing():
    for nothing in ():
        yield nothing


# -- numbers of seconds, and clocks that stand still -------------------------------------------------------------------


@pytest.mark.parametrize("number", [Fraction(1, 50), Decimal("0.02")], ids=str)
def test_any_real_number_is_a_timeout(number):
    with pytest.raises(TimeoutError):
        Channel().recv(timeout=number)
    assert after(number).recv(timeout=5) > 0
    token = CancelToken(timeout=number)
    with pytest.raises(ChannelClosed):
        token.done.recv(timeout=5)


def test_numbers_that_are_registered_as_such_are_timeouts():
    """numpy's are."""

    class Int64:
        def __float__(self):
            return 0.02

    numbers.Integral.register(Int64)
    with pytest.raises(TimeoutError):
        Channel().recv(timeout=Int64())


@pytest.mark.parametrize("wrong", ["1", timedelta(seconds=1), True, 1j, b"", [1]])
def test_a_timeout_is_a_number(wrong):
    hint = r": say \.total_seconds\(\)" if isinstance(wrong, timedelta) else ""
    with pytest.raises(TypeError, match=f"timeout must be a number of seconds or None, not .*{hint}$"):
        Channel().recv(timeout=wrong)


FROZEN = """
import sys, time
if sys.argv[1] == "before":
    from channels import *
real, stopped = time.monotonic, time.monotonic()
for module in list(sys.modules.values()):  # as freezegun does it
    for name, thing in list(vars(module).items()):
        if thing is real:
            setattr(module, name, lambda: stopped)
from channels import *
def timed_out(kind, function, **how):
    try: function(**how)
    except kind: return True
print(timed_out(TimeoutError, Channel().recv, timeout=0.02),
      timed_out(TimeoutError, lambda **how: select(None, **how), timeout=0.02),
      timed_out(Cancelled, Channel().send, value=1, cancel=CancelToken(timeout=0.02)), after(0.02).recv() > stopped)
"""


@pytest.mark.parametrize("imported", ["before", "after"])
def test_timeouts_end_where_the_clock_is_frozen(script, imported):
    assert script(FROZEN, imported) == "True True True True\n"


PATCHED = """
import channels, channels.aio, _thread, threading
before = threading.active_count()
real = _thread.allocate_lock
_thread.allocate_lock = lambda: real()  # as gevent and eventlet do it
for wait in (channels.Channel().recv, lambda: channels.Channel().send(1), lambda: channels.after(1),
             lambda: channels.select(None), lambda: channels.CancelToken(timeout=1),
             lambda: channels.aio.LoopThread().loop):
    try: wait()
    except RuntimeError as error: print("patch first (gevent.monkey.patch_all()), then import channels" in str(error))
channel = channels.Channel(1)
channel.send(1)
print(channel.recv(), threading.active_count() - before)
"""


def test_locks_that_were_patched_after_the_import_are_refused(script):
    assert script(PATCHED).split() == ["True"] * 6 + ["1", "0"]


GREEN = """
import _thread
real = _thread.allocate_lock
def allocate_lock(): return real()
allocate_lock.__module__ = "gevent.thread"
_thread.allocate_lock = allocate_lock
import channels, channels.aio, threading
for wait in (lambda: channels.after(1), lambda: channels.tick(1), lambda: channels.CancelToken(timeout=1),
             lambda: channels.aio.LoopThread().loop):
    try: wait()
    except RuntimeError as error: print("a thread of the system" in str(error))
channel = channels.Channel(1)
try: channel.recv(timeout=0.02)
except TimeoutError: channel.send(1)
print(channel.recv(), threading.active_count())
"""


def test_timers_and_event_loops_are_refused_where_threads_are_greenlets(script):
    """Their thread would be a greenlet, whose wait stops all others: the process would stand still, without a word."""
    assert script(GREEN).split() == ["True"] * 4 + ["1", "1"]
