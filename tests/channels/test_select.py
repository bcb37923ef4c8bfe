"""What `select` and `merge` promise beyond the Go tests in `conformance`."""

from __future__ import annotations

import collections
import threading
import time

import pytest

from channels import CancelToken, Channel, ChannelClosed, Selected, WouldBlock, merge, select
from channels._park import Waiter


def test_a_receiver_or_a_channel_is_the_receive_case():
    """``channel``, ``channel.receiver`` and ``channel.receiving()`` are one thing said in three ways."""
    channel = Channel(3)
    for case in (channel, channel.receiver, channel.receiving(), channel.receiver.receiving()):
        channel.send("v")
        assert tuple(select(case)) == (0, "v", True, case)


def test_selected_tells_what_was_done():
    channel = Channel(1)
    case = channel.sending("v")
    done = select(None, case)
    assert isinstance(done, Selected)
    assert (done.index, done.value, done.ok, done.case) == (1, None, True, case)
    done = select(channel.receiver, None)
    assert (done.index, done.value, done.ok) == (0, "v", True)
    index, value, ok, case = done
    assert (index, value, ok) == (0, "v", True)
    assert repr(done).startswith("Selected(index=0, value='v', ok=True, case=<Receiver of ")


def test_a_parked_select_tells_what_was_done(threads):
    """In both directions, and it is the case object that was passed."""
    a, b = Channel(), Channel()
    cases = [None, a.receiver, b.sending("v")]
    waiting = threads.go(select, *cases)
    threads.parked(a, receivers=1)
    threads.parked(b, senders=1)
    assert b.recv() == "v"
    done = waiting.result()
    assert tuple(done) == (2, None, True, cases[2])
    assert done.case is cases[2]
    waiting = threads.go(select, *cases)
    threads.parked(a, receivers=1)
    a.send("w")
    done = waiting.result()
    assert tuple(done) == (1, "w", True, cases[1])
    assert done.case is cases[1]
    threads.parked(b, senders=0)


@pytest.mark.parametrize("case", ["x", 1, object(), CancelToken(), threading.Lock(), [Channel()]])
def test_a_case_is_a_case(case):
    channel = Channel(1)
    with pytest.raises(TypeError, match="a case of select must be"):
        select(channel, case, timeout=0)


def test_a_wrong_case_is_an_error_before_anything_is_carried_out():
    channel = Channel(1)
    channel.send(1)
    with pytest.raises(TypeError):
        select(channel, "x")
    assert len(channel) == 1


def test_block_false_says_would_block():
    channel = Channel(1)
    for cases in ((), (None,), (channel,), (None, channel)):
        with pytest.raises(WouldBlock, match="no case is ready"):
            select(*cases, block=False)
    channel.send(1)
    with pytest.raises(WouldBlock):
        select(channel.sending(2), block=False)
    assert select(channel.sending(2), channel, block=False).index == 1


def test_a_timeout_of_a_select_that_cannot_become_ready():
    for cases in ((), (None,), (None, None)):
        with pytest.raises(TimeoutError):
            select(*cases, timeout=0.01)
        with pytest.raises(TimeoutError):
            select(*cases, timeout=0)


def test_select_with_a_timeout_channel_is_the_idiom():
    """A timer channel as a case: Go's ``case <-time.After``."""
    from channels import after

    assert select(Channel(), after(0.01), timeout=10).index == 1


@pytest.mark.parametrize("ready", [2, 3, 5])
def test_each_ready_case_is_as_likely(ready):
    """Uniform, sends and receives alike: every count within five sigma."""
    n = 4000
    channels = [Channel(n + 1) for _ in range(ready)]
    cases = []
    for k, channel in enumerate(channels):
        if k % 2:
            for _ in range(n):
                channel.send(k)
            cases.append(channel)
        else:
            cases.append(channel.sending(k))
        cases.append(Channel())  # never ready
    counts = collections.Counter(select(*cases).index for _ in range(n))
    p = 1 / ready
    sigma = (n * p * (1 - p)) ** 0.5
    assert set(counts) == {2 * k for k in range(ready)}
    assert all(abs(count - n * p) < 5 * sigma for count in counts.values())


def test_each_ready_case_is_as_likely_where_all_channels_are_locked(monkeypatch):
    """The slow judgement under all locks (``block=False``) is as fair as the quick look."""
    from channels import _select

    n = 2000
    a, b = Channel(n), Channel(n)
    for _ in range(n):
        a.send(1)
        b.send(1)
    first = sum(_select._decide((a, b), [a, b]).index for _ in range(n))
    assert abs(first - n / 2) < 5 * (n / 4) ** 0.5


@pytest.mark.parametrize("kinds", ["two sends", "three sends"])
def test_of_parked_cases_on_one_channel_each_is_as_likely(threads, kinds):
    """A select that has to wait is as fair as one that does not."""
    n = 600
    channel, values = Channel(), list(range(3 if kinds == "three sends" else 2))

    def wait():
        for _ in range(n):
            select(*[channel.sending(value) for value in values])

    task = threads.go(wait)
    counts = collections.Counter()
    for _ in range(n):
        threads.parked(channel, senders=1)  # one of them is drawn
        counts[channel.recv()] += 1
    task.result()
    p = 1 / len(values)
    assert all(abs(counts[value] - n * p) < 5 * (n * p * (1 - p)) ** 0.5 for value in values)


def test_a_select_queues_fairly_with_others(threads):
    """First come, first served, whether by `recv` or by `select`, and the other way round."""
    channel = Channel()
    tasks = []
    for k in range(6):
        tasks.append(threads.go(channel.recv) if k % 2 else threads.go(lambda: select(channel, None).value))
        threads.parked(channel, receivers=k + 1)
    for k in range(6):
        select(channel.sending(k)) if k % 3 else channel.send(k)
    assert [task.result() for task in tasks] == list(range(6))
    tasks = []
    for k in range(6):
        tasks.append(threads.go(channel.send, k) if k % 2 else threads.go(lambda k=k: select(channel.sending(k), None)))
        threads.parked(channel, senders=k + 1)
    assert [channel.recv() for _ in range(6)] == list(range(6))
    for task in tasks:
        task.result()


def test_two_selects_meet(threads):
    """A select that sends and one that receives find each other, whichever is parked first."""
    for parked_first in ("sender", "receiver"):
        a, b = Channel(), Channel()
        send = lambda: select(a.sending("a"), b.sending("b"))  # noqa: E731
        receive = lambda: select(b, a)  # noqa: E731
        first, second = (send, receive) if parked_first == "sender" else (receive, send)
        task = threads.go(first)
        threads.parked(b, **{"senders" if parked_first == "sender" else "receivers": 1})
        done = {parked_first: second(), "other": task.result()}
        sent = done["other"] if parked_first == "sender" else done["receiver"]
        got = done["sender"] if parked_first == "sender" else done["other"]
        assert (sent.index, got.value, got.index) in ((0, "a", 1), (1, "b", 0))


def test_two_selects_over_the_same_channels_both_ways(threads, switching):
    """Many selects that send and receive on two channels: every value arrives once, nobody meets himself."""
    a, b = Channel(), Channel()
    k = 4
    left = [500]
    lock = threading.Lock()

    def work(me):
        got, sent = [], 0
        while True:
            with lock:
                if left[0] == 0:
                    return sent, got
            try:
                done = select(a, b, a.sending((me, sent)), b.sending((me, sent)), timeout=0.005)
            except TimeoutError:
                continue
            if done.index < 2:
                assert done.value[0] != me
                got.append(done.value)
                with lock:
                    left[0] = max(0, left[0] - 1)
            else:
                sent += 1

    results = threads.all(*[lambda me=me: work(me) for me in range(k)])
    got = sorted(value for _, values in results for value in values)
    assert got == sorted((me, i) for me, (sent, _) in enumerate(results) for i in range(sent))


def test_a_select_that_finds_its_partner_taken_starts_anew():
    """A partner that another channel is just about to serve is no partner, and no reason to park before it is
    settled.
    """
    channel = Channel()
    taken = Waiter([None])
    taken.ticket.clear()  # somebody has the ticket, and has not yet said so
    channel._receivers = channel._queue(channel._receivers, taken)
    waiter = Waiter([None])
    entry = [waiter, "v", 0]
    assert channel._enlist(waiter, entry) is False
    assert waiter.done
    assert waiter.channel is None
    assert not channel._senders


def test_a_timeout_racing_with_partners(threads, switching):
    """A select that timed out has carried out nothing; one that returned has carried out exactly one case."""
    a, b = Channel(), Channel(1)
    n = 300
    stop = threading.Event()

    def produce():
        sent = []
        for i in range(n):
            try:
                done = select(a.sending(("a", i)), b.sending(("b", i)), timeout=(i % 7) * 1e-4)
            except TimeoutError:
                continue
            sent.append("ab"[done.index] + str(i))
        return sent

    def consume():
        got = []
        while not (stop.is_set() and len(b) == 0):
            try:
                value = select(a, b, timeout=(len(got) % 5) * 1e-4).value
            except TimeoutError:
                continue
            got.append(value[0] + str(value[1]))
        return got

    consumers = [threads.go(consume) for _ in range(2)]
    sent = [value for values in threads.all(produce, produce) for value in values]
    stop.set()
    got = [value for task in consumers for value in task.result()]
    assert sorted(sent) == sorted(got)


# -- merge -------------------------------------------------------------------------------------------------------------


def test_merge_yields_everything_until_all_are_closed(threads):
    channels = [Channel(k) for k in range(4)]

    def produce(k):
        for i in range(10):
            channels[k].send(i)
        channels[k].close(final="end")

    tasks = [threads.go(produce, k) for k in range(4)]
    got = list(merge(*channels[:2], channels[2].receiver, channels[3]))
    for k in range(4):
        assert [value for index, value in got if index == k] == [*range(10), "end"]
    for task in tasks:
        task.result()


def test_merge_of_nothing_is_empty():
    assert list(merge()) == []
    channel = Channel()
    channel.close()
    assert list(merge(channel, channel)) == []


def test_merge_does_not_wait_for_the_slow(threads):
    fast, slow = Channel(3), Channel()
    for i in range(3):
        fast.send(i)
    merged = merge(slow, fast)
    assert [next(merged) for _ in range(3)] == [(1, 0), (1, 1), (1, 2)]
    task = threads.go(slow.send, "late")
    assert next(merged) == (0, "late")
    task.result()


def test_merge_is_cancelled():
    from channels import Cancelled

    token = CancelToken(timeout=0.02)
    began = time.monotonic()
    with pytest.raises(Cancelled):
        next(merge(Channel(), Channel(), cancel=token))
    assert time.monotonic() - began < 5


def test_merge_takes_only_what_is_asked_for():
    a, b = Channel(2), Channel(2)
    a.send(1)
    b.send(2)
    merged = merge(a, b)
    next(merged)
    del merged
    assert len(a) + len(b) == 1


def test_merge_does_not_swallow_the_consumers_closed_channel():
    channel = Channel(1)
    channel.send(1)
    error = ChannelClosed("mine")
    with pytest.raises(ChannelClosed) as caught:
        for _ in merge(channel):
            raise error
    assert caught.value is error


def test_not_waiting_has_no_timeout():
    for timeout in (0, 5):
        with pytest.raises(ValueError, match="does not wait"):
            select(Channel(), block=False, timeout=timeout)


def test_many_cases_on_one_channel_stand_in_its_queue_once_each_way(threads):
    """All of them would look through each other: a select of n receives and n sends would take n * n steps."""
    channel = Channel()
    n = 500
    task = threads.go(select, *[channel.sending(k) for k in range(n)], *[channel] * n)
    threads.parked(channel, receivers=1, senders=1)
    done = task.running and channel.recv()
    assert 0 <= done < n
    assert task.result().index == done


def test_of_parked_receives_from_one_channel_each_is_as_likely(threads):
    channel, n = Channel(), 300
    task = threads.go(lambda: collections.Counter(select(channel, channel).index for _ in range(n)))
    for _ in range(n):
        threads.parked(channel, receivers=1)
        channel.send(1)
    assert abs(task.result()[0] - n / 2) < 5 * (n / 4) ** 0.5
