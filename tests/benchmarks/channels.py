"""Channels of several libraries side by side, in one run.

    python tests/benchmarks/channels.py [--pinned | --unpinned] [--rounds N] [--quick] [--markdown] [--json FILE]

Libraries take turns within each round, in an order that is drawn anew, so that all of them meet the same machine. A
figure is the median, over the rounds, of the ratio to the baseline of the row *in that round*; below 1 is better than
the baseline. There are two tables: pinned to one processor, where figures are steady, and on all of them, where
whatever is cross-thread depends on who runs where. A Go program beside this one measures the same, if there is a `go`.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import glob
import json
import os
import pathlib
import platform
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import tracemalloc
from _thread import allocate_lock
from collections import deque
from collections.abc import Callable
from time import perf_counter
from typing import Any, NamedTuple

HERE = pathlib.Path(__file__).resolve().parent
sys.path[0:1] = [str(HERE.parent.parent), str(HERE)]  # in this order: this file has the name of the package

from peers import Peer, installed  # noqa: E402
from results import write  # noqa: E402

RAW = "raw limit"  # a deque, or two locks handed to and fro
HANG = 20.0  # seconds after which a library is left out


class Absent(Exception):
    """The library cannot do it."""


# -- what is measured: seconds, or bytes, of one operation. ``peer`` is None for the raw limit -------------------------


def need(there: object) -> None:
    if not there:
        raise Absent


def timed(action: Callable[[], Any], *others: Callable[[], Any]) -> float:
    """From the start of ``action`` until it and ``others``, which are in threads of their own, have ended."""
    threads = [threading.Thread(target=other, daemon=True) for other in others]
    for thread in threads:
        thread.start()
    begin = perf_counter()
    action()
    for thread in threads:
        thread.join()
    return perf_counter() - begin


def give(n: int, send: Callable[[Any], Any]) -> Callable[[], None]:
    def run() -> None:
        for _ in range(n):
            send(1)

    return run


def take(n: int, recv: Callable[[], Any]) -> Callable[[], None]:
    def run() -> None:
        for _ in range(n):
            recv()

    return run


def pair(peer: Peer | None, n: int) -> float:
    fifo: deque[Any] = deque()
    send, recv = (fifo.append, fifo.popleft) if peer is None else peer.ops(peer.make(128))
    begin = perf_counter()
    for _ in range(n):
        send(1)
        recv()
    return (perf_counter() - begin) / n


def batch(peer: Peer | None, n: int) -> float:
    """64 values at once, where the library can do it."""
    need(peer and peer.name == "lockgate")
    channel, values = peer.make(128), list(range(64))
    send, recv = channel.send_many, channel.recv_many
    begin = perf_counter()
    for _ in range(n // 64):
        send(values)
        recv()
    return (perf_counter() - begin) / (n // 64 * 64)


def flow(peer: Peer | None, n: int, capacity: int, sides: int = 1) -> float:
    need(peer and (peer.rendezvous if capacity == 0 else peer.bounded or capacity > 1))
    send, recv = peer.ops(peer.make(capacity))
    gate = threading.Barrier(2 * sides + 1)

    def side(work: Callable[[], Any]) -> Callable[[], Any]:
        return lambda: (gate.wait(), work())

    work = [side(give(n, send)), side(take(n, recv))] * sides
    return timed(gate.wait, *work) / (n * sides)


def pairs(peer: Peer | None, n: int, count: int) -> float:
    """So many pairs of threads, each on a channel of its own: what they share slows them down."""
    need(peer)
    gate = threading.Barrier(2 * count + 1)

    def side(work: Callable[[], Any]) -> Callable[[], Any]:
        return lambda: (gate.wait(), work())

    work = []
    for _ in range(count):
        send, recv = peer.ops(peer.make(128))
        work += [side(give(n, send)), side(take(n, recv))]
    return timed(gate.wait, *work) / (n * count)


def trip(peer: Peer | None, n: int) -> float:
    need(peer is None or peer.rendezvous)
    if peer is None:
        there, back = allocate_lock(), allocate_lock()
        there.acquire(), back.acquire()
        send, wait, answer, hear = there.release, there.acquire, back.release, back.acquire
        args: tuple[int, ...] = ()
    else:
        (send, wait), (answer, hear) = peer.ops(peer.make(0)), peer.ops(peer.make(0))
        args = (1,)

    def this() -> None:
        for _ in range(n):
            send(*args)
            hear()

    def other() -> None:
        for _ in range(n):
            wait()
            answer(*args)

    return timed(this, other) / n


def selecting(peer: Peer | None, n: int, cases: int, parked: bool) -> float:
    need(peer and peer.selects)
    channels = [peer.make(0 if parked else 16) for _ in range(cases)]
    sends = [peer.ops(channel)[0] for channel in channels]
    select, given = peer.selector(channels)
    rounds = -(-n // cases)

    def fill() -> None:
        for _ in range(rounds):
            for send in sends:
                send(1)

    def drain() -> None:
        for _ in range(rounds * cases):
            select(*given)

    def alone() -> None:
        for _ in range(rounds):
            for send in sends:
                send(1)
                select(*given)

    def alone_with_two() -> None:  # as one writes it; unpacking arguments is not what is measured
        (send1, send2), (case1, case2) = sends, given
        for _ in range(rounds):
            send1(1)
            select(case1, case2)
            send2(1)
            select(case1, case2)

    if parked:
        return timed(drain, fill) / (rounds * cases)
    return timed(alone_with_two if cases == 2 else alone) / (rounds * cases)


def merging(peer: Peer | None, n: int, cases: int) -> float:
    """Where the channels stay the same: a merge keeps its places in their queues from one value to the next."""
    need(peer and peer.name == "lockgate")
    channels = [peer.make(16) for _ in range(cases)]
    sends = [channel.send for channel in channels]
    merged = peer.m.merge(*channels)

    def alone(rounds: int) -> None:
        for _ in range(rounds):
            for send in sends:
                send(1)
                next(merged)

    alone(1)  # it takes its places
    rounds = -(-n // cases)
    return timed(lambda: alone(rounds)) / (rounds * cases)


def to_asyncio(peer: Peer | None, n: int) -> float:
    need(peer and peer.asynchronous)

    async def main() -> float:
        channel = peer.make(128)
        thread = threading.Thread(target=give(n, peer.ops(channel)[0]), daemon=True)
        recv = peer.async_recv(channel)
        begin = perf_counter()
        thread.start()
        for _ in range(n):
            await recv()
        took = perf_counter() - begin
        await asyncio.to_thread(thread.join)
        return took / n

    return asyncio.run(main())


def wake(peer: Peer | None, n: int, by_close: bool = False) -> float:
    """Until all have ended, from the first value or the close on."""
    need(peer and (peer.closed or not by_close))
    channel = peer.make(0 if peer.rendezvous else 128)
    send, recv = peer.ops(channel)
    wait = (lambda: peer.drain(channel)) if by_close else recv
    threads = [threading.Thread(target=wait, daemon=True) for _ in range(n)]
    for thread in threads:
        thread.start()
    time.sleep(0.02)  # until all are parked: no library tells
    act = (lambda: peer.close(channel)) if by_close else give(n, send)
    return timed(lambda: (act(), [thread.join() for thread in threads]))


def size(peer: Peer | None, n: int) -> float:
    need(peer and peer.traceable)
    kept: list[Any] = [peer.make(0)] * n
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for i in range(n):
        kept[i] = peer.make(0)
    used = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    return used / n


class Measure(NamedTuple):
    title: str
    baseline: tuple[str, str]  # measure, library
    n: int
    function: Callable[..., float]
    args: tuple[Any, ...] = ()


MEASURES = {
    "pair": Measure("send + receive, one thread, capacity 128", ("pair", "queue.Queue"), 40_000, pair),
    "batch": Measure("the same, 64 values at once", ("pair", "queue.Queue"), 40_000, batch),
    "cap0": Measure("thread to thread, unbuffered", ("trip", RAW), 1500, flow, (0,)),
    "cap1": Measure("thread to thread, capacity 1", ("cap1", "queue.Queue"), 2000, flow, (1,)),
    "cap128": Measure("thread to thread, capacity 128", ("cap128", "queue.Queue"), 40_000, flow, (128,)),
    "4to4": Measure("4 threads to 4, capacity 128", ("4to4", "queue.Queue"), 3000, flow, (128, 4)),
    "4pairs": Measure("4 pairs of threads, a channel each", ("4pairs", "queue.Queue"), 10_000, pairs, (4,)),
    "trip": Measure("round trip of two threads, unbuffered", ("trip", RAW), 1500, trip),
    "select2": Measure("send + select over 2, one thread", ("pair", "queue.Queue"), 40_000, selecting, (2, False)),
    "select10": Measure("send + select over 10, one thread", ("pair", "queue.Queue"), 2000, selecting, (10, False)),
    "select100": Measure("send + select over 100, one thread", ("pair", "queue.Queue"), 300, selecting, (100, False)),
    "merge2": Measure("send + merge of 2, one thread", ("pair", "queue.Queue"), 2000, merging, (2,)),
    "merge100": Measure("send + merge of 100, one thread", ("pair", "queue.Queue"), 2000, merging, (100,)),
    "parked2": Measure("thread to parked select over 2", ("trip", RAW), 1000, selecting, (2, True)),
    "parked10": Measure("thread to parked select over 10", ("trip", RAW), 600, selecting, (10, True)),
    "parked100": Measure("thread to parked select over 100", ("trip", RAW), 100, selecting, (100, True)),
    "wake": Measure("100 values wake 100 receivers", ("wake", "queue.Queue"), 100, wake),
    "close": Measure("close wakes 100 receivers", ("wake", "queue.Queue"), 100, wake, (True,)),
    "aio": Measure("thread to asyncio, capacity 128", ("aio", "janus"), 2000, to_asyncio),
    "bytes": Measure("bytes of an empty channel", ("bytes", "queue.Queue"), 10_000, size),
}
UNSCALED = {"wake", "close", "bytes"}
TARGETS = {"pair": 0.3, "batch": 0.05, "cap128": 0.35, "trip": 1.0, "select2": 0.6}

Figures = dict[tuple[str, str], list[float]]  # (measure, library) -> one a round


def guarded(function: Callable[..., float], *args: Any) -> float:
    """In a thread of its own: a library that hangs does not stop the run."""
    result: list[Any] = []

    def run() -> None:
        try:
            result.append(function(*args))
        except BaseException as error:
            result.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(HANG)
    if not result:
        raise TimeoutError(f"hung for {HANG:g} s")
    if isinstance(result[0], BaseException):
        raise result[0]
    return result[0]


def build_go(directory: str) -> str | None:
    places = [shutil.which("go"), *sorted(glob.glob("/usr/lib/go-*/bin/go")), "/usr/local/go/bin/go"]
    go = next((place for place in places if place and os.access(place, os.X_OK)), None)
    if go is None:
        print("skipped Go: there is no go")
        return None
    program = os.path.join(directory, "channels")
    built = subprocess.run([go, "build", "-o", program, str(HERE / "channels.go")], capture_output=True, text=True)
    if built.returncode:
        print(f"skipped Go: {built.stderr.strip()}")
    return None if built.returncode else program


def run(peers: dict[str, Peer | None], rounds: int, scale: float, go: str | None) -> Figures:
    figures: Figures = {}
    absent = set()
    for round_ in range(rounds):
        for key, measure in MEASURES.items():
            if key == "bytes" and round_:  # always the same
                continue
            n = measure.n if key in UNSCALED else max(int(measure.n * scale), 50)
            for name in random.sample(list(peers), len(peers)):
                if (key, name) in absent:
                    continue
                gc.collect()
                gc.disable()  # as timeit does
                try:
                    took = guarded(measure.function, peers[name], n, *measure.args)
                    figures.setdefault((key, name), []).append(took)
                except Exception as error:
                    absent.add((key, name))
                    if not isinstance(error, Absent):
                        print(f"left out {name}, {measure.title}: {error!r}")
                finally:
                    gc.enable()
        if go is not None:
            done = subprocess.run([go, str(scale)], capture_output=True, text=True, timeout=120, check=True)
            for key, took in json.loads(done.stdout).items():
                figures.setdefault((key, "Go"), []).append(took)
    return figures


def ratios(figures: Figures, key: str, name: str) -> list[float]:
    return [a / b for a, b in zip(figures[key, name], figures[MEASURES[key].baseline], strict=False)]


def report(figures: Figures, names: list[str], markdown: bool) -> None:
    def cell(key: str, name: str) -> str:
        if (key, name) not in figures or MEASURES[key].baseline not in figures:
            return "-"
        values = ratios(figures, key, name)
        median = statistics.median(values)
        text = f"{median:.0f}" if median >= 9.95 else f"{median:.2f}" if median >= 0.095 else f"{median:.3f}"
        return f"{text} ({min(values):.2f}-{max(values):.2f})" if name == "lockgate" else text

    def baseline(key: str) -> str:
        value = statistics.median(figures.get(MEASURES[key].baseline, [0]))
        amount = f"{value:.0f} B" if key == "bytes" else f"{value * 1e6:.{0 if value > 1e-5 else 2}f} us"
        return f"{MEASURES[key].baseline[1]} {amount}"

    table = [["", "baseline", *(f"{n} (lowest-highest)" if n == "lockgate" else n for n in names)]]
    table += [[m.title, baseline(key), *(cell(key, name) for name in names)] for key, m in MEASURES.items()]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for number, row in enumerate(table):
        cells = [f"{c:>{w}}" if i else f"{c:<{w}}" for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        print("| " + " | ".join(cells) + " |" if markdown else "  ".join(cells))
        if markdown and number == 0:
            print("|" + "|".join("-" * (w + 1) + (":" if i else "-") for i, w in enumerate(widths)) + "|")
    print()
    for name in names:  # with one pair that keeps two processors busy, 1 is what two processors allow
        if ("4pairs", name) in figures and ("cap128", name) in figures:
            both = zip(figures["cap128", name], figures["4pairs", name], strict=False)
            print(f"four pairs do {statistics.median(one / four for one, four in both):.2f} of one pair: {name}  ")
    print()
    for key, limit in TARGETS.items():
        base, name = MEASURES[key].baseline
        of = name if base == key else f"{name}'s {MEASURES[base].title}"
        ratio = statistics.median(ratios(figures, key, "lockgate"))
        verdict = "pass" if ratio <= limit else "MISS"
        print(f"target: {MEASURES[key].title}, at most {limit} of {of}: {ratio:.2f}, {verdict}  ")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--pinned", action="store_true", help="only the table of one processor")
    where.add_argument("--unpinned", action="store_true", help="only the table of all processors")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--quick", action="store_true", help="three short rounds: to see that it works")
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--json", type=pathlib.Path, help="the ratios of lockgate, for compare.py")
    options = parser.parse_args()
    if not options.pinned and not options.unpinned:  # threads keep the processor they began on: a process for each
        for table in ["--pinned", "--unpinned"] if hasattr(os, "sched_setaffinity") else ["--unpinned"]:
            subprocess.run([sys.executable, __file__, *sys.argv[1:], table], check=True)
        return
    if options.pinned:
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    print(f"\n## {'Pinned to one processor' if options.pinned else f'On all {os.cpu_count()} processors'}\n")
    peers: dict[str, Peer | None] = {peer.name: peer for peer in installed()}
    peers[RAW] = None
    rounds, scale = (3, 0.1) if options.quick else (options.rounds, 1.0)
    with tempfile.TemporaryDirectory() as directory:
        go = build_go(directory)
        begin = perf_counter()
        figures = run(peers, rounds, scale, go)
    without = "" if getattr(sys, "_is_gil_enabled", lambda: True)() else " without the GIL"
    print(f"\n{platform.python_implementation()} {platform.python_version()}{without}, {rounds} rounds", end="")
    print(f" in {perf_counter() - begin:.0f} s. Ratios to the baseline of the row; SimpleQueue has no bound.\n")
    report(figures, [*peers, "Go"] if go else [*peers], options.markdown)
    if options.json:
        rows = {measure.title: ratios(figures, key, "lockgate") for key, measure in MEASURES.items()}
        write(options.json, f"channels, {'pinned' if options.pinned else 'not pinned'}", rows, unit="of its baseline")
    sys.stdout.flush()
    os._exit(0)  # not waiting for what hangs


if __name__ == "__main__":
    main()
