"""Go's test/chan/*.go, one test each, by their names. (perm.go, the direction types, is in channels/test_typing.py.)"""

from __future__ import annotations

import heapq
import itertools
import threading
from collections import deque
from fractions import Fraction

import pytest

from channels import Cancelled, CancelToken, Channel, ChannelClosed, WouldBlock, merge, select


@pytest.mark.parametrize("n", [1500, pytest.param(100_000, marks=pytest.mark.stress)])
def test_chan_doubleselect(threads, n):
    """Two cases of one select never both run: one sender selects over four channels, and no value comes twice."""
    channels = [Channel() for _ in range(4)]
    mux, done = Channel(), Channel()

    def sender():
        for i in range(n):
            select(*[channel.sending(i) for channel in channels], timeout=10)
        for channel in channels:
            channel.close()

    def muxer(channel):
        for value in channel:
            mux.send(value)
        done.send(True)

    def finish():
        for _ in range(4):
            done.recv(timeout=60)
        mux.close()

    threads.go(sender)
    threads.go(finish)
    for channel in channels:
        threads.go(muxer, channel)
    assert sorted(mux) == list(range(n))


def test_chan_fifo_asynch_fifo():
    """A buffered channel is first in, first out."""
    channel = Channel(10)
    for i in range(10):
        channel.send(i)
    assert [channel.recv() for _ in range(10)] == list(range(10))


def test_chan_fifo_synch_fifo(threads):
    """A daisy chain of receivers gets the values of an unbuffered channel in order."""
    channel = Channel()

    def chain(expected, before, after):
        before.recv(timeout=10)
        assert channel.recv(timeout=10) == expected
        after.send(1)

    start = before = Channel()
    for i in range(10):
        after = Channel()
        threads.go(chain, i, before, after)
        before = after
    start.send(0)
    for i in range(10):
        channel.send(i, timeout=10)
    before.recv(timeout=10)


@pytest.mark.parametrize("n", [200, pytest.param(4000, marks=pytest.mark.stress)])
def test_chan_goroutines(threads, n):
    """A chain of threads, each waiting for the next, passes one value from end to end, and all of them end."""

    def link(left, right):
        left.send(right.recv(timeout=20))

    leftmost = left = Channel()
    for _ in range(n):
        right = Channel()
        threads.go(link, left, right)
        left = right
    threads.go(left.send, "value")
    assert leftmost.recv(timeout=20) == "value"


@pytest.mark.parametrize("capacity", [0, 1])
@pytest.mark.parametrize("value", [123, 123456789012, True, "hello"])
def test_chan_nonblock(threads, capacity, value):
    """Sends and receives with a default meet a partner that is parked, and block nobody when there is none."""
    channel, strobe = Channel(capacity), Channel()
    with pytest.raises(WouldBlock):
        select(channel, block=False)

    def receiver():
        assert channel.recv() == value
        strobe.send(True)

    def sender():
        channel.send(value)
        strobe.send(True)

    threads.go(receiver)
    threads.parked(channel, receivers=1)
    select(channel.sending(value), block=False)
    strobe.recv(timeout=10)
    threads.go(sender)
    if capacity:
        strobe.recv(timeout=10)  # a buffered send does not wait for us
    else:
        threads.parked(channel, senders=1)
    assert select(channel, block=False).value == value
    if not capacity:
        strobe.recv(timeout=10)


class PowerSeries:
    """A demand channel: a coefficient is sent when it is asked for."""

    def __init__(self):
        self.request, self.data = Channel(), Channel()


class Mill:
    """The arithmetic of test/chan/powser1.go."""

    def __init__(self, threads, token):
        self.threads, self.token = threads, token

    def get(self, series):
        series.request.send(None, cancel=self.token)
        return series.data.recv(cancel=self.token)

    def get2(self, *series):
        """One coefficient of each, asked for and taken in whatever order they are ready."""
        token = self.token
        requests = [s.request.sending(None) for s in series]
        data, out = [None, None], [None, None]
        for _ in range(4):
            done = select(*requests, *data, cancel=token)
            k = done.index % 2
            if done.index < 2:
                requests[k], data[k] = None, series[k].data
            else:
                out[k], data[k] = done.value, None
        return out

    def go(self, function, *args):
        def run():
            try:
                function(*args)
            except Cancelled:
                pass

        self.threads.go(run)

    def made(self, coefficients):
        out = PowerSeries()

        def run():
            for coefficient in coefficients:
                out.request.recv(cancel=self.token)
                out.data.send(coefficient, cancel=self.token)

        self.go(run)
        return out

    def constant(self, value):
        return self.made(itertools.repeat(Fraction(value)))

    def add(self, u, v):
        return self.made(sum(self.get2(u, v)) for _ in itertools.count())

    def times(self, factor, u):
        return self.made(factor * self.get(u) for _ in itertools.count())

    def split(self, series):
        """Two series with the same coefficients, asked for in any order; the one ahead waits in `dosplit`."""
        outs = [PowerSeries(), PowerSeries()]
        release = Channel()
        self.go(self._dosplit, series, outs, release)
        self.go(release.send, None, None, self.token)
        return outs

    def _dosplit(self, series, outs, wait):
        token = self.token
        both = False
        if select(outs[0].request, wait, cancel=token).index == 1:
            both = True  # the generation before has served both
            if select(outs[0].request, outs[1].request, cancel=token).index == 1:
                outs = outs[::-1]
        series.request.send(None, cancel=token)
        release = Channel()
        self.go(self._dosplit, series, outs, release)
        data = series.data.recv(cancel=token)
        outs[0].data.send(data, cancel=token)
        if not both:
            wait.recv(cancel=token)
        outs[1].request.recv(cancel=token)
        outs[1].data.send(data, cancel=token)
        release.send(None, cancel=token)

    def multiply(self, u, v):
        def coefficients():
            a, b = self.get2(u, v)
            yield a * b
            us, vs = self.split(u), self.split(v)
            crossed = self.add(self.times(a, vs[0]), self.times(b, us[0]))
            yield self.get(crossed)
            rest = self.add(crossed, self.multiply(us[1], vs[1]))
            while True:
                yield self.get(rest)

        return self.made(coefficients())

    def take(self, n, series):
        return [self.get(series) for _ in range(n)]


def test_chan_powser1(threads):
    """Power series over demand-driven channels: sums, products, and a split that serves whoever asks."""
    token = CancelToken(timeout=30)
    mill = Mill(threads, token)
    ones = mill.constant(1)
    assert mill.take(5, mill.add(ones, mill.constant(2))) == [3] * 5
    a, b = mill.split(mill.made(Fraction(k) for k in itertools.count()))
    assert mill.take(4, a) == [0, 1, 2, 3]
    assert mill.take(6, b) == [0, 1, 2, 3, 4, 5]
    assert mill.take(2, a) == [4, 5]
    square = mill.multiply(mill.constant(1), mill.constant(1))  # 1 / (1 - x)^2
    assert mill.take(6, square) == [1, 2, 3, 4, 5, 6]
    token.cancel()


def test_chan_select():
    """The sends of a select are evaluated each round; a channel that was chosen drops out by becoming nil; default
    ends.
    """
    counter, shift = itertools.count(), 0

    def value():
        next(counter)
        return 1 << shift

    def send(a, b):
        nonlocal shift
        sent = 0
        while True:
            try:
                done = select(a and a.sending(value()), b and b.sending(value()), block=False)
            except WouldBlock:
                return sent
            sent += 1
            shift += 1
            a, b = (None, b) if done.index == 0 else (a, None)

    a, b = Channel(1), Channel(1)
    assert send(a, b) == 2
    assert a.recv() | b.recv() == 3
    assert send(a, None) == 1


def test_chan_select2(threads):
    """100,000 selects with a silent second channel do not make it grow. (Memory: channels/test_memory.py.)"""
    n = 2000
    channel, dummy = Channel(), Channel()
    threads.go(lambda: [channel.send(1) for _ in range(n)])
    for _ in range(n):
        assert select(channel, dummy, timeout=10).index == 0
    assert len(dummy._receivers) < 100


# test/chan/select3.go: what blocks, what does not, what panics

NIL = None
ASYNC = 10


def _closed():
    channel = Channel()
    channel.close()
    return channel


def _filled(capacity, *values):
    channel = Channel(capacity)
    for value in values:
        channel.send(value)
    return channel


SELECT3 = {
    # blocks
    "receive from a nil channel blocks": ("blocks", lambda t: select(NIL, timeout=t)),
    "send to a nil channel blocks": ("blocks", lambda t: select(NIL, timeout=t)),
    "receive from a channel that is not ready blocks": ("blocks", lambda t: Channel().recv(t)),
    "send to a channel that is not ready blocks": ("blocks", lambda t: Channel().send(7, t)),
    "send to a full channel blocks": ("blocks", lambda t: _filled(1, 1).send(7, t)),
    "an empty select blocks": ("blocks", lambda t: select(timeout=t)),
    "a select of two nil channels blocks": ("blocks", lambda t: select(NIL, NIL, timeout=t)),
    "a select of a channel that is not ready blocks": ("blocks", lambda t: select(Channel(), timeout=t)),
    "a select of a send that is not ready blocks": ("blocks", lambda t: select(Channel().sending(7), timeout=t)),
    "a select that sees itself blocks": ("blocks", lambda t: (lambda c: select(c.sending(1), c, timeout=t))(Channel())),
    # default
    "nil channels in a select with default": ("default", lambda t: select(NIL, NIL, block=False)),
    "a receive that is not ready in a select with default": ("default", lambda t: select(Channel(), block=False)),
    "a send that is not ready in a select with default": (
        "default",
        lambda t: select(Channel().sending(7), block=False),
    ),
    "only default": ("default", lambda t: select(block=False)),
    # never blocks
    "send to a channel with room": (None, lambda t: Channel(ASYNC).send(7, t)),
    "receive of a buffered value": (7, lambda t: _filled(ASYNC, 7).recv(t)),
    "select of a send with room": ((0, None, True), lambda t: tuple(select(Channel(ASYNC).sending(7), timeout=t))[:3]),
    "select of a send with room and default": (
        (0, None, True),
        lambda t: tuple(select(Channel(ASYNC).sending(7), block=False))[:3],
    ),
    "select of a buffered receive": ((0, 7, True), lambda t: tuple(select(_filled(ASYNC, 7), timeout=t))[:3]),
    "select of a buffered receive and default": (
        (0, 7, True),
        lambda t: tuple(select(_filled(ASYNC, 7), block=False))[:3],
    ),
    "select of a closed channel": ((0, None, False), lambda t: tuple(select(_closed(), timeout=t))[:3]),
    "select of a closed channel and default": ((0, None, False), lambda t: tuple(select(_closed(), block=False))[:3]),
    # panics
    "receive from a closed channel": ("panics", lambda t: _closed().recv(t)),
    "send to a closed channel": ("panics", lambda t: _closed().send(7, t)),
    "select of a send to a closed channel": ("panics", lambda t: select(_closed().sending(7), timeout=t)),
    "select of a send to a closed channel and default": ("panics", lambda t: select(_closed().sending(7), block=False)),
}


@pytest.mark.parametrize("row", SELECT3)
def test_chan_select3_table(row, blocks):
    """For nil, closed, ready and unready channels, empty selects and a select that sees itself."""
    expected, operation = SELECT3[row]
    if expected == "blocks":
        blocks(operation)
    elif expected == "default":
        with pytest.raises(WouldBlock):
            operation(5)
    elif expected == "panics":
        with pytest.raises(ChannelClosed):
            operation(5)
    else:
        assert operation(5) == expected


def test_chan_select3_receive_from_closed_never_blocks():
    """Ten times over, in both forms."""
    channel = _closed()
    for _ in range(10):
        with pytest.raises(ChannelClosed):
            channel.recv()
        assert tuple(select(channel))[:3] == (0, None, False)


def test_chan_select4():
    """A case that is not chosen leaves everything as it is."""
    chosen, other = Channel(1), Channel(1)
    chosen.send(42)
    other.send(1)
    silent = Channel()
    for _ in range(20):
        done = select(chosen, silent, other.sending(2))  # the send finds no room
        assert tuple(done)[:2] == (0, 42)
        chosen.send(42)
    assert other.recv() == 1
    assert len(other) == 0


MAYBE = (False, True)


@pytest.mark.parametrize("default", MAYBE)
@pytest.mark.parametrize("send", MAYBE)
def test_chan_select5(send, default):
    """Every phrasing of one receive or send: silent and nil cases before and after it, with and without default.

    The channel is buffered, so that one thread can do it all: the right call must happen, and only it.
    """
    channel, silent = Channel(1), Channel()
    others = [None, silent, silent.sending(1), silent.receiver]
    n = 0
    for before in itertools.chain.from_iterable(itertools.combinations(others, k) for k in range(5)):
        for after in itertools.chain.from_iterable(itertools.combinations(others, k) for k in range(5)):
            n += 1
            options = {"block": False} if default else {"timeout": 10}
            if send:
                done = select(*before, channel.sending(n), *after, **options)
                assert tuple(done)[:3] == (len(before), None, True)
                assert channel.recv() == n
            else:
                channel.send(n)
                done = select(*before, channel, *after, **options)
                assert tuple(done)[:3] == (len(before), n, True)
            assert len(channel) == 0
            if default:
                with pytest.raises(WouldBlock):
                    select(*before, *after, block=False)
    assert n == 256
    assert repr(silent) == "<Channel 0/0 open>"


def test_chan_select5_order_of_evaluation():
    """Channels and values are evaluated exactly once, from left to right, on entry."""
    order = []

    def mark(k, value):
        order.append(k)
        return value

    channel, silent = Channel(1), Channel()
    select(
        mark(1, silent),
        mark(2, channel).sending(mark(3, "v")),
        mark(4, None),
        mark(5, silent).sending(mark(6, "w")),
        timeout=mark(7, 10),
    )
    assert order == [1, 2, 3, 4, 5, 6, 7]


def test_chan_select6(threads):
    """Issue 2075: a losing select that was the last in a queue must not corrupt it: later waiters still wake."""
    c1, c2, c3 = Channel(), Channel(), Channel()
    first = threads.go(c1.recv)
    threads.parked(c1, receivers=1)

    def loser():
        assert select(c1, c2).index == 1
        c3.send(True)
        return c1.recv()

    second = threads.go(loser)
    threads.parked(c1, receivers=2)
    threads.go(c2.send, True)
    c3.recv(timeout=10)
    c1.send(1, timeout=10)
    c1.send(2, timeout=10)
    assert (first.result(), second.result()) == (1, 2)


@pytest.mark.parametrize("parked_first", ["receiver", "sender"])
def test_chan_select7(threads, phrase, other_phrase, parked_first):
    """Every phrasing of a receive against every phrasing of a send, whichever waits first."""
    channel = Channel()
    receive = lambda: phrase(channel).recv()  # noqa: E731
    send = lambda: other_phrase(channel).send(1)  # noqa: E731
    if parked_first == "receiver":
        task = threads.go(receive)
        threads.parked(channel, receivers=1)
        send()
        assert task.result() == (1, True)
    else:
        task = threads.go(send)
        threads.parked(channel, senders=1)
        assert receive() == (1, True)
        task.result()


def test_chan_sendstmt_chanchan():
    """A channel sent through a channel, and used as it comes out."""
    outer, inner = Channel(1), Channel(1)
    outer.send(inner)
    select(outer.recv().sending(2), block=False)
    assert inner.recv() == 2


PRIMES = [2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83, 89, 97]


def test_chan_sieve1(threads):
    """A daisy chain of prime filters."""
    token = CancelToken(timeout=30)

    def endless(function):
        def run(*args):
            try:
                function(*args)
            except Cancelled:
                pass

        return lambda *args: threads.go(run, *args)

    @endless
    def generate(out):
        for i in itertools.count(2):
            out.send(i, cancel=token)

    @endless
    def keep(inward, out, prime):
        while True:
            value = inward.recv(cancel=token)
            if value % prime:
                out.send(value, cancel=token)

    channel = Channel()
    generate(channel)
    found = []
    while len(found) < 25:
        found.append(channel.recv(cancel=token))
        behind = Channel()
        keep(channel, behind, found[-1])
        channel = behind
    token.cancel()
    assert found == PRIMES


def test_chan_sieve2(threads):
    """A sieve with a heap of channels that are peeked into, and a proxy that buffers without bound by nil-able
    cases.
    """
    token = CancelToken(timeout=30)

    def go(function, *args):
        def run():
            try:
                function(*args)
            except Cancelled:
                pass

        threads.go(run)

    def produced(capacity, values):
        out = Channel(capacity)

        def run():
            for value in values:
                out.send(value, cancel=token)

        go(run)
        return out

    def send_proxy(out):
        proxy = Channel(10)

        def run():
            held = deque()
            while True:
                done = select(proxy, out.sending(held[0]) if held else None, cancel=token)
                if done.index == 0:
                    held.append(done.value)
                else:
                    held.popleft()

        go(run)
        return proxy

    out, composites, primes = Channel(10), Channel(50), Channel(10)
    out.send(2)
    out.send(3)
    primes.send(3)

    def merge_multiples():
        heads = []
        order = itertools.count()
        least = 15

        def advance():
            nonlocal least
            head, _, channel = heapq.heappop(heads)
            least = head
            heapq.heappush(heads, (channel.recv(cancel=token), next(order), channel))

        while True:
            prime = primes.recv(cancel=token)
            multiples = produced(10, itertools.count(prime * prime, 2 * prime))
            head = multiples.recv(cancel=token)
            while least < head:
                composites.send(least, cancel=token)
                advance()
            while least == head:
                advance()
            composites.send(head, cancel=token)
            heapq.heappush(heads, (multiples.recv(cancel=token), next(order), multiples))

    def sieve():
        proxy = send_proxy(primes)
        candidates = produced(50, itertools.count(5, 2))
        candidate = candidates.recv(cancel=token)
        while True:
            composite = composites.recv(cancel=token)
            while candidate < composite:
                proxy.send(candidate, cancel=token)
                out.send(candidate, cancel=token)
                candidate = candidates.recv(cancel=token)
            if candidate == composite:
                candidate = candidates.recv(cancel=token)

    go(merge_multiples)
    go(sieve)
    found = [out.recv(cancel=token) for _ in PRIMES]
    token.cancel()
    assert found == PRIMES


def test_chan_fan_in_of_select_and_range(threads):
    """Not a file of Go's, but the shape of half of them: many producers, `merge`, one consumer, everything once."""
    channels = [Channel(k % 3) for k in range(6)]
    go_on = threading.Barrier(6)

    def produce(k):
        go_on.wait(10)
        with channels[k] as channel:
            for i in range(20):
                channel.send((k, i))

    for k in range(6):
        threads.go(produce, k)
    assert sorted(value for _, value in merge(*channels)) == [(k, i) for k in range(6) for i in range(20)]
