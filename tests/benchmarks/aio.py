"""What a value costs on its way between a thread and an asyncio task: plain janus, and `channels.aio`.

    python tests/benchmarks/aio.py [--values 50000] [--rounds 7] [--json FILE]

Capacity 128. The two take turns within each round, so that both meet the same machine; the medians and their ratio are
printed. "paced": the time from handing a value over to the other side having it, one value at a time, with a pause
between.
"""

from __future__ import annotations

import argparse
import asyncio
import pathlib
import statistics
import sys
import threading
from collections.abc import Callable
from time import perf_counter, sleep

HERE = pathlib.Path(__file__).resolve().parent
sys.path[0:1] = [str(HERE.parent.parent), str(HERE)]  # in this order: a file here has the name of the package

import janus  # noqa: E402
from results import write  # noqa: E402

from channels import Channel  # noqa: E402
from channels.aio import LoopThread, to_async  # noqa: E402

CAPACITY = 128


def janus_to_async(values: int) -> float:
    async def main() -> float:
        queue: janus.Queue[int] = janus.Queue(CAPACITY)

        def produce() -> None:
            put = queue.sync_q.put
            for value in range(values):
                put(value)

        thread = threading.Thread(target=produce)
        begin = perf_counter()
        thread.start()
        for _ in range(values):
            await queue.async_q.get()
        took = perf_counter() - begin
        thread.join()
        await queue.aclose()
        return took / values

    return asyncio.run(main())


def ours_to_async(values: int) -> float:
    channel: Channel[int] = Channel(CAPACITY)

    def produce() -> None:
        with channel:
            for value in range(values):
                channel.send(value)

    async def main() -> float:
        thread = threading.Thread(target=produce)
        begin = perf_counter()
        thread.start()
        count = 0
        async for _ in to_async(channel):
            count += 1
        took = perf_counter() - begin
        thread.join()
        assert count == values
        return took / values

    return asyncio.run(main())


async def numbers(values: int) -> object:
    for value in range(values):
        yield value


def janus_to_thread(loop: LoopThread, values: int) -> float:
    async def prepare() -> janus.Queue[int]:
        return janus.Queue(CAPACITY)

    queue = loop.call(prepare)

    async def produce() -> None:
        put = queue.async_q.put
        async for value in numbers(values):
            await put(value)

    begin = perf_counter()
    task = loop.start(produce)
    get = queue.sync_q.get
    for _ in range(values):
        get()
    took = perf_counter() - begin
    for _ in task.done:
        pass
    loop.call(queue.aclose)
    return took / values


def ours_to_thread(loop: LoopThread, values: int) -> float:
    begin = perf_counter()
    count = sum(1 for _ in loop.iterate(numbers(values), buffer=CAPACITY))
    took = perf_counter() - begin
    assert count == values
    return took / values


PAUSE = 0.001


def janus_paced_to_async(values: int) -> float:
    async def main() -> float:
        queue: janus.Queue[float] = janus.Queue(CAPACITY)

        def produce() -> None:
            for _ in range(values):
                sleep(PAUSE)
                queue.sync_q.put(perf_counter())

        thread = threading.Thread(target=produce)
        thread.start()
        took = []
        for _ in range(values):
            sent = await queue.async_q.get()
            took.append(perf_counter() - sent)
        thread.join()
        await queue.aclose()
        return statistics.median(took)

    return asyncio.run(main())


def plain_paced_to_async(values: int) -> float:
    """What asyncio itself takes: `call_soon_threadsafe` and a future."""

    async def main() -> float:
        loop = asyncio.get_running_loop()
        arrived: list[float] = []
        waiting: list[asyncio.Future[None]] = []

        def arrive(sent: float) -> None:
            arrived.append(sent)
            if waiting:
                waiting.pop().set_result(None)

        def produce() -> None:
            for _ in range(values):
                sleep(PAUSE)
                loop.call_soon_threadsafe(arrive, perf_counter())

        thread = threading.Thread(target=produce)
        thread.start()
        took = []
        for _ in range(values):
            if not arrived:
                waiting.append(loop.create_future())
                await waiting[0]
            took.append(perf_counter() - arrived.pop(0))
        thread.join()
        return statistics.median(took)

    return asyncio.run(main())


def ours_paced_to_async(values: int) -> float:
    channel: Channel[float] = Channel(CAPACITY)

    def produce() -> None:
        with channel:
            for _ in range(values):
                sleep(PAUSE)
                channel.send(perf_counter())

    async def main() -> float:
        thread = threading.Thread(target=produce)
        thread.start()
        took = [perf_counter() - sent async for sent in to_async(channel)]
        thread.join()
        return statistics.median(took)

    return asyncio.run(main())


async def clock(values: int) -> object:
    for _ in range(values):
        await asyncio.sleep(PAUSE)
        yield perf_counter()


def janus_paced_to_thread(loop: LoopThread, values: int) -> float:
    async def prepare() -> janus.Queue[float]:
        return janus.Queue(CAPACITY)

    queue = loop.call(prepare)

    async def produce() -> None:
        async for value in clock(values):
            await queue.async_q.put(value)

    task = loop.start(produce)
    took = []
    for _ in range(values):
        sent = queue.sync_q.get()
        took.append(perf_counter() - sent)
    for _ in task.done:
        pass
    loop.call(queue.aclose)
    return statistics.median(took)


def ours_paced_to_thread(loop: LoopThread, values: int) -> float:
    return statistics.median(perf_counter() - sent for sent in loop.iterate(clock(values), buffer=CAPACITY))


ratios: dict[str, list[float]] = {}


def compare(name: str, rounds: int, plain: Callable[[], float], ours: Callable[[], float], what: str = "janus") -> None:
    figures: tuple[list[float], list[float]] = [], []
    for _ in range(rounds):
        figures[0].append(plain())
        figures[1].append(ours())
    ratios[f"{name}, of {what}"] = [ours / plain for plain, ours in zip(*figures, strict=True)]
    first, second = (statistics.median(column) * 1e6 for column in figures)
    print(f"{name:28} {what:24} {first:7.2f} us   channels.aio {second:7.2f} us   ratio {second / first:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--values", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=pathlib.Path, help="the ratios, for compare.py")
    options = parser.parse_args()
    values, rounds = options.values, options.rounds
    paced = max(values // 250, 50)
    with LoopThread() as loop:
        compare("thread -> asyncio", rounds, lambda: janus_to_async(values), lambda: ours_to_async(values))
        compare(
            "asyncio -> thread", rounds, lambda: janus_to_thread(loop, values), lambda: ours_to_thread(loop, values)
        )
        compare(
            "thread -> asyncio, paced", rounds, lambda: janus_paced_to_async(paced), lambda: ours_paced_to_async(paced)
        )
        compare(
            "thread -> asyncio, paced",
            rounds,
            lambda: plain_paced_to_async(paced),
            lambda: ours_paced_to_async(paced),
            "call_soon_threadsafe",
        )
        compare(
            "asyncio -> thread, paced",
            rounds,
            lambda: janus_paced_to_thread(loop, paced),
            lambda: ours_paced_to_thread(loop, paced),
        )

        async def nothing() -> None:
            pass

        def calls() -> float:
            begin = perf_counter()
            for _ in range(1000):
                loop.call(nothing)
            return (perf_counter() - begin) / 1000

        def plain_calls() -> float:
            begin = perf_counter()
            for _ in range(1000):
                asyncio.run_coroutine_threadsafe(nothing(), loop.loop).result()
            return (perf_counter() - begin) / 1000

        compare("call", rounds, plain_calls, calls, "run_coroutine_threadsafe")
    if options.json:
        write(options.json, "aio", ratios, unit="of what it is held against")


if __name__ == "__main__":
    main()
