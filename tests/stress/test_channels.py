"""Channels under load: many threads, a switch every 10 us, everything at once.

What holds is that nothing is lost, doubled, reordered or stuck.

Each case runs for a moment in the suite, and for long behind the marker `stress`.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import random
import threading
import time

import pytest

from channels import Cancelled, CancelToken, Channel, ChannelClosed, WouldBlock, after, merge, select
from channels._rescue import closing

pytestmark = pytest.mark.usefixtures("switching")


def sizes(short, long):
    """The size in the suite, and the one behind the marker."""
    return pytest.mark.parametrize(
        "n", [short, pytest.param(long, marks=[pytest.mark.stress, pytest.mark.timeout(600)])]
    )


LIMIT = 300  # seconds for the long ones


@pytest.fixture(autouse=True)
def _nothing_on_record():
    yield
    assert not closing


@pytest.mark.parametrize("capacity", [0, 1, 7, 128])
@sizes(400, 20_000)
def test_mpmc(threads, capacity, n):
    """Four producers, four consumers: each value once, and each producer's in order as any one consumer sees them."""
    channel, left, lock = Channel(capacity), [4], threading.Lock()

    def produce(p):
        for i in range(n):
            channel.send((p, i))
        with lock:
            left[0] -= 1
            last = not left[0]
        if last:
            channel.close()

    results = threads.all(
        *[lambda p=p: produce(p) for p in range(4)], *[lambda: list(channel) for _ in range(4)], timeout=LIMIT
    )[4:]
    assert sorted(value for got in results for value in got) == [(p, i) for p in range(4) for i in range(n)]
    for got in results:
        for p in range(4):
            mine = [i for q, i in got if q == p]
            assert mine == sorted(mine)


@pytest.mark.parametrize("capacity", [0, 1, 7])
@sizes(250, 10_000)
def test_every_kind_of_operation_at_once(threads, capacity, n):
    """Blocking, trying, timed, cancellable and selecting operations on both sides: each value arrives once."""
    channel, spare = Channel(capacity), Channel()
    token = CancelToken()

    def send_one(choose, value):
        kind = choose.randrange(6)
        if kind == 0:
            channel.send(value)
        elif kind == 1:
            channel.try_send(value)
        elif kind == 2:
            channel.send(value, timeout=choose.random() * 0.001)
        elif kind == 3:
            channel.send(value, cancel=token)
        elif kind == 4:
            select(spare, channel.sending(value), None, timeout=choose.random() * 0.01)
        else:
            select(channel.sending(value), block=False)

    def receive_one(choose):
        kind = choose.randrange(6)
        if kind == 0:
            return channel.recv(timeout=1)
        if kind == 1:
            return channel.try_recv()
        if kind == 2:
            return channel.recv(timeout=choose.random() * 0.001)
        if kind == 3:
            return channel.recv(1, token)
        if kind == 4:
            return select(None, channel, timeout=choose.random() * 0.01).value
        return select(channel.receiver, block=False).value

    done = threading.Event()

    def produce(me):
        choose, sent = random.Random(me), []
        for k in range(n):
            with contextlib.suppress(WouldBlock, TimeoutError):
                send_one(choose, (me, k))
                sent.append((me, k))
        return sent

    def consume(me):
        choose, got = random.Random(-me), []
        while not done.is_set():
            with contextlib.suppress(WouldBlock, TimeoutError):
                got.append(receive_one(choose))
        return got

    consumers = [threads.go(consume, me) for me in range(1, 5)]
    sent = [
        value for got in threads.all(*[lambda me=me: produce(me) for me in range(4)], timeout=LIMIT) for value in got
    ]
    done.set()
    got = [value for task in consumers for value in task.result(30)]
    with contextlib.suppress(WouldBlock):
        while True:
            got.append(channel.try_recv())
    assert sorted(got) == sorted(sent)
    assert repr(channel) == f"<Channel 0/{capacity} open>"


@pytest.mark.parametrize("capacity", [1, 3])
@sizes(150, 8000)
def test_bound(threads, capacity, n):
    """A channel as a semaphore: never more than its capacity inside."""
    channel, inside, worst = Channel(capacity), [], []

    def work(me):
        for _ in range(n):
            channel.send(me)
            inside.append(me)
            worst.append(len(inside))
            inside.remove(me)
            channel.recv()

    threads.all(*[lambda me=me: work(me) for me in range(8)], timeout=LIMIT)
    assert max(worst) <= capacity


@pytest.mark.parametrize("capacity", [0, 1, 64])
@pytest.mark.parametrize("final", [False, True], ids=["", "final"])
@sizes(15, 1500)
def test_close_race(threads, capacity, final, n):
    """Send against close: returned <=> received; the final value comes last, once."""
    choose = random.Random(capacity)
    for _ in range(n):
        channel, sent = Channel(capacity), []
        pause = choose.random() * 0.0005

        def send(me, channel=channel, sent=sent):
            with contextlib.suppress(ChannelClosed):
                for k in itertools.count():
                    channel.send((me, k))
                    sent.append((me, k))

        def close(channel=channel, pause=pause):
            time.sleep(pause)
            assert channel.close(final="last") if final else channel.close()

        *_, one, other, _ = threads.all(
            lambda: send(0),
            lambda: send(1),
            lambda: list(channel),
            lambda: list(channel),
            close,
            timeout=LIMIT,
        )
        got = one + other
        assert got.count("last") == final
        if final:
            assert "last" in (one[-1:] + other[-1:])
            got.remove("last")
        assert sorted(got) == sorted(sent)
        threads.tasks.clear()


@sizes(120, 6000)
def test_select_web(threads, n):
    """Six threads, four channels, every thread sends and receives on all of them in one select: all is conserved."""
    channels = [Channel(0), Channel(0), Channel(1), Channel(4)]
    over = threading.Event()
    active = [6]
    lock = threading.Lock()

    def work(me):
        choose, sent, got = random.Random(me), [], []
        while len(sent) < n:
            cases = list(channels) + [c.sending((me, len(sent))) for c in channels]
            order = choose.sample(range(8), 8)
            try:
                done = select(*[cases[k] for k in order], timeout=0.05)
            except TimeoutError:
                continue
            k = order[done.index]
            if k >= 4:
                sent.append((me, len(sent)))
            else:
                got.append(done.value)
        with lock:
            active[0] -= 1
            if not active[0]:
                over.set()
        while not over.is_set():
            with contextlib.suppress(TimeoutError):
                got.append(select(*channels, timeout=0.001).value)
        return sent, got

    results = threads.all(*[lambda me=me: work(me) for me in range(6)], timeout=LIMIT)
    got = [value for _, values in results for value in values]
    for channel in channels:
        with contextlib.suppress(WouldBlock):
            while True:
                got.append(channel.try_recv())
    assert sorted(got) == sorted(value for values, _ in results for value in values)
    assert all("waiting" not in repr(channel) for channel in channels)


@sizes(40, 2000)
def test_pipelines_that_are_cancelled(threads, n):
    """A pipeline of stages with a token each, made and cancelled over and over: nobody is left waiting."""
    choose = random.Random(5)
    for _ in range(n):
        root = CancelToken(timeout=choose.choice([None, 0.002]))
        stages = [Channel(choose.choice([0, 1, 3])) for _ in range(4)]

        def stage(inward, out, parent):
            token = CancelToken(parent)
            with contextlib.suppress(Cancelled, ChannelClosed):
                while True:
                    select(out.sending(inward.recv(cancel=token)), cancel=token)

        def feed(out, token):
            with contextlib.suppress(Cancelled, ChannelClosed):
                for k in itertools.count():
                    out.send(k, cancel=token)

        def drain(inward, token):
            got = []
            with contextlib.suppress(Cancelled, ChannelClosed):
                for _, value in merge(inward, cancel=token):
                    got.append(value)
                    if len(got) == 5:
                        token.cancel("enough")
            assert got == list(range(len(got)))

        threads.all(
            lambda: feed(stages[0], root),
            *[lambda k=k: stage(stages[k], stages[k + 1], root) for k in range(3)],
            lambda: drain(stages[3], root),
            timeout=30,
        )
        assert root.cancelled
        assert all("waiting" not in repr(channel) for channel in stages)
        threads.tasks.clear()


@sizes(300, 20_000)
def test_timers_and_channels(threads, n):
    """Timers, tokens with deadlines and drops, from many threads: they fire, and the timer thread survives."""

    def work(me):
        choose = random.Random(me)
        for _ in range(n // 6):
            kind = choose.randrange(4)
            if kind == 0:
                after(choose.random() * 0.001)
            elif kind == 1:
                assert select(Channel(), after(choose.random() * 0.001), timeout=10).index == 1
            elif kind == 2:
                CancelToken(timeout=choose.random() * 0.001)
            else:
                token = CancelToken(CancelToken(timeout=choose.random() * 0.001))
                with pytest.raises(Cancelled):
                    Channel().recv(timeout=10, cancel=token)

    threads.all(*[lambda me=me: work(me) for me in range(6)], timeout=LIMIT)
    assert after(0).recv(timeout=5)


# -- fairness ----------------------------------------------------------------------------------------------------------


@sizes(8, 200)
def test_fifo(threads, n):
    """Receivers that wait in a known order are served in it; senders too."""
    for _ in range(n):
        channel, tasks = Channel(), []
        for k in range(6):
            tasks.append(threads.go(channel.recv))
            threads.parked(channel, receivers=k + 1)
        for k in range(6):
            channel.send(k)
        assert [task.result() for task in tasks] == list(range(6))
        tasks = []
        for k in range(6):
            tasks.append(threads.go(channel.send, k))
            threads.parked(channel, senders=k + 1)
        assert [channel.recv() for _ in range(6)] == list(range(6))
        threads.tasks.clear()


@pytest.mark.parametrize("capacity", [0, 4])
@sizes(30, 3000)
def test_barge(threads, capacity, n):
    """Of two receivers in a loop neither starves: a value goes to who waits, not to who comes by.

    (Who is served may still have to wait for the processor, and for the GIL, which are not fair. So it is no matter of
    shares, but of whether both go on.)
    """
    channel, counts = Channel(capacity), [0, 0]

    def receive(k):
        for _ in channel:
            counts[k] += 1

    tasks = [threads.go(receive, k) for k in (0, 1)]
    threads.parked(channel, receivers=2)
    deadline = time.monotonic() + 30
    sent = 0
    while min(counts) < n:
        channel.send(sent)
        sent += 1
        assert time.monotonic() < deadline, counts
    channel.close()
    for task in tasks:
        task.result(30)
    assert sum(counts) == sent


# -- exceptions from outside -------------------------------------------------------------------------------------------


class Interrupt(BaseException):
    """What is thrown into the threads."""


def fire(interrupt, tasks, armed, stop):
    """Throw into each task, once for every time that it says it is ready: the next would come in its own handler."""
    while not stop.is_set():
        for k, task in enumerate(tasks):
            if armed[k]:
                armed[k] = False
                interrupt(task, Interrupt)
        time.sleep(0.0003)


@pytest.mark.parametrize("capacity", [0, 1, 8])
@pytest.mark.parametrize("kind", ["recv", "select", "cancel", "timeout"])
@sizes(150, 5000)
def test_receivers_under_fire(threads, interrupt, capacity, kind, n):
    """Exceptions thrown into receiving threads at any moment: no value is lost, none comes twice."""
    channel, spare, token = Channel(capacity), Channel(), CancelToken()
    receive = {
        "recv": channel.recv,
        "select": lambda: select(spare, channel, None).value,  # None once it is closed
        "cancel": lambda: channel.recv(cancel=token),
        "timeout": lambda: channel.recv(timeout=10),
    }[kind]
    armed = [False, False]

    def receive_all(got):  # of its own: see tests/channels/test_jumps.py
        while None not in got[-1:]:
            got += [receive()]

    def consume(me):
        got, hits = [], 0
        while True:
            try:
                armed[me] = True
                receive_all(got)
                return got[:-1], hits
            except Interrupt:
                hits += 1
            except ChannelClosed:
                return got, hits

    tasks = [threads.go(consume, me) for me in range(2)]
    stop = threading.Event()
    gun = threads.go(fire, interrupt, tasks, armed, stop)
    for k in range(n):
        channel.send(k, timeout=30)
        if k % 16 == 0:
            time.sleep(0.0005)
    stop.set()
    gun.result()
    channel.close()
    results = [task.result(30) for task in tasks]
    got = [value for values, _ in results for value in values]
    assert sorted(got) == list(range(n))
    assert sum(hits for _, hits in results) > 0
    assert repr(channel) == f"<Channel 0/{capacity} closed>"


@pytest.mark.parametrize("capacity", [0, 2])
@pytest.mark.parametrize("kind", ["send", "select"])
@sizes(100, 4000)
def test_senders_under_fire(threads, interrupt, capacity, kind, n):
    """What a send that returned sent arrives once; what an interrupted one carried at most once; none stay behind."""
    channel, spare = Channel(capacity), Channel()
    send = {
        "send": channel.send,
        "select": lambda value: select(spare, channel.sending(value), spare.sending(1)),
    }[kind]
    armed, over = [False], threading.Event()

    def send_all(sent, maybe):
        while (k := len(sent) + len(maybe)) < n:
            send(k)
            sent += [k]
        while not over.is_set():
            over.wait(10)

    def produce():
        sent, maybe = [], []
        while True:
            try:
                armed[0] = True
                send_all(sent, maybe)
                return sent, maybe
            except Interrupt:
                if (k := len(sent) + len(maybe)) < n:
                    maybe += [k]

    task = threads.go(produce)
    stop = threading.Event()
    gun = threads.go(fire, interrupt, [task], armed, stop)
    got = []
    quiet = 0
    while quiet < 20:
        try:
            got.append(channel.recv(timeout=0.05))
            quiet = 0
            if len(got) % 8 == 0:
                time.sleep(0.0005)
        except TimeoutError:
            quiet += 1
            if not stop.is_set() and quiet > 2:
                stop.set()
                gun.result()
    over.set()
    sent, maybe = task.result(30)
    assert len(got) == len(set(got))
    assert set(sent) <= set(got) <= set(sent) | set(maybe)
    assert got == sorted(got)
    assert repr(channel) == f"<Channel 0/{capacity} open>"


# -- probes: each a program of its own, as long as it takes ------------------------------------------------------------

SIGNAL = """
import signal, sys, threading, time
from channels import *
seconds = float(sys.argv[1])
channel, n, refused = Channel(128), 0, 0
def handler(*_):
    global n, refused
    try: channel.try_send("s"); n += 1
    except WouldBlock: refused += 1
    signal.setitimer(signal.ITIMER_REAL, 0.0003)
signal.signal(signal.SIGALRM, handler)
signal.setitimer(signal.ITIMER_REAL, 0.0003)
end = time.monotonic() + seconds
sent = got = nested = 0
while time.monotonic() < end:
    channel.send("m", timeout=5); sent += 1
    for _ in range(1 + (len(channel) > 60)):
        value = channel.recv(timeout=5)
        got += value == "m"; nested += value == "s"
    select(channel.sending("m"), timeout=5); sent += 1
    value = select(channel, timeout=5).value
    got += value == "m"; nested += value == "s"
signal.setitimer(signal.ITIMER_REAL, 0)
signal.signal(signal.SIGALRM, signal.SIG_IGN)
channel.close()
for value in channel: got += value == "m"; nested += value == "s"
print(sent == got, nested == n, n + refused > 20 * seconds)
"""

GC = """
import gc, sys, time
from channels import *
seconds = float(sys.argv[1])
channel, token, n, refused, closed = Channel(1 << 20), CancelToken(), 0, 0, []  # room for all that one collection frees
class D:
    def __init__(self): self.me = self
    def __del__(self):
        global n, refused
        try: channel.try_send("d"); n += 1
        except WouldBlock: refused += 1
        other = Channel(); other.close(final=1); closed.append(other)
        CancelToken(token).cancel()
gc.set_threshold(50, 2, 2)
end = time.monotonic() + seconds
sent = got = nested = 0
while time.monotonic() < end:
    D()
    channel.send([[]], timeout=5); sent += 1
    while len(channel) > 30:
        value = channel.recv(timeout=5)
        got += value == [[]]; nested += value == "d"
    D()
    select(channel.sending([[]]), timeout=5); sent += 1
    value = select(channel, timeout=5).value
    got += value == [[]]; nested += value == "d"
    assert all(list(c) == [1] for c in closed); closed.clear()
gc.collect()
while len(channel):
    value = channel.recv(); got += value == [[]]; nested += value == "d"
print(sent == got, nested == n, n > 20 * seconds)
"""

SIGINT = """
import signal, sys, threading, time
from channels import *
count = int(sys.argv[1])
kind = sys.argv[2]
channel, other = Channel(4), Channel()
main, got, stop, ints = threading.main_thread().ident, [], [], 0
armed = False  # from within the try on, for one exception: the next might come in the handler below
def press(number, frame):
    global armed
    if armed:
        armed = False
        raise KeyboardInterrupt
signal.signal(signal.SIGINT, press)
by_select = lambda: select(other, channel).value
receive = {"recv": channel.recv, "select": by_select, "timeout": lambda: channel.recv(5)}[kind]
def produce():
    for k in range(count):
        channel.send(k)
        if k % 4 == 0: time.sleep(0.0005)
def kill():
    while not stop:
        time.sleep(0.0007)
        if not stop: signal.pthread_kill(main, signal.SIGINT)
threads = [threading.Thread(target=produce, daemon=True), threading.Thread(target=kill, daemon=True)]
for thread in threads: thread.start()
def receive_all():  # of its own: see tests/channels/test_jumps.py
    global got, armed
    armed = True
    while len(got) < count:
        got += [receive()]  # no call comes after the receive, hence no signal
    armed = False
while len(got) < count:
    try: receive_all()
    except KeyboardInterrupt: ints += 1
stop.append(1); threads[1].join()
print(sorted(got) == list(range(count)), ints > 10)
"""

FORK = """
import os, random, signal, sys, threading, time, warnings
warnings.simplefilter("ignore")
sys.setswitchinterval(1e-5)
from channels import *
channel, small, token, stop = Channel(128), Channel(), CancelToken(), []
def busy(k):
    choose = random.Random(k)
    while not stop:
        channel.send(1, cancel=token); channel.recv(cancel=token)
        try: small.send(1, timeout=choose.random() * 0.001) if k % 2 else small.recv(timeout=choose.random() * 0.001)
        except TimeoutError: pass
        CancelToken(token).cancel()
        try: select(small, small.sending(1), timeout=choose.random() * 0.001)
        except TimeoutError: pass
for k in range(4): threading.Thread(target=busy, args=(k,), daemon=True).start()
bad = 0
for _ in range(int(sys.argv[1])):
    pid = os.fork()
    if not pid:
        signal.alarm(5)
        code = 1
        try:
            channel.send(2, timeout=1); channel.recv(timeout=1)
            thread = threading.Thread(target=small.recv); thread.start(); small.send(3, timeout=1); thread.join()
            token.cancel(); small.close(final=4)
            assert list(small) == [4] and token.cancelled
            assert after(0.001).recv(timeout=2)
            code = 0
        finally: os._exit(code)
    bad += os.waitpid(pid, 0)[1] != 0
print(bad)
sys.stdout.flush()
os._exit(0)
"""

EXIT = """
import sys, threading, time
sys.setswitchinterval(1e-5)
from channels import *
channel, small, token = Channel(4), Channel(), CancelToken(timeout=1000)
def busy(k):
    while True:
        try:
            if k % 3 == 0: channel.send(k, timeout=0.001)
            elif k % 3 == 1: channel.recv(timeout=0.001)
            else: select(small, small.sending(k), timeout=0.001)
        except TimeoutError: pass
for k in range(9): threading.Thread(target=busy, args=(k,), daemon=True).start()
for wait in (small.recv, lambda: channel.recv(cancel=token), lambda: select(None)):
    threading.Thread(target=wait, daemon=True).start()
ticker = tick(0.001)
ticker.recv(timeout=5)
print("exited")
"""


@sizes(1, 30)
def test_probe_signal(script, n):
    """A SIGALRM handler sends on the channel that the main thread is busy with."""
    assert script(SIGNAL, str(n * 0.7), timeout=LIMIT) == "True True True\n"


@sizes(1, 30)
def test_probe_gc(script, n):
    """Finalizers, run by the garbage collector in the middle of operations, send, close and cancel."""
    assert script(GC, str(n * 0.7), timeout=LIMIT) == "True True True\n"


@pytest.mark.parametrize("kind", ["recv", "select", "timeout"])
@sizes(700, 20_000)
def test_probe_sigint(script, kind, n):
    """Ctrl-C while the main thread receives: nothing lost, nothing twice."""
    assert script(SIGINT, str(n), kind, timeout=LIMIT) == "True True\n"


@sizes(20, 500)
def test_probe_fork(script, n):
    """Forks while other threads are in the middle of everything: every child can use the channels."""
    assert script(FORK, str(n), timeout=LIMIT) == "0\n"


@sizes(2, 60)
def test_probe_exit(script, n):
    """The interpreter ends, at once and in silence, while daemon threads are in the middle of everything."""
    for _ in range(n):
        assert script(EXIT, timeout=10) == "exited\n"


def test_gc_is_on_again():
    """No test above may leave the garbage collector off."""
    assert gc.isenabled()
