"""Where the time of `runtime.py` goes: what is left of a figure without a part of it, and what a part costs alone.

    python tests/benchmarks/ablation.py [--rounds N]

Variants take turns, and each figure is the lowest of its rounds, in processor time where that is said: it does not
depend on what else runs on the machine. A variant whose worker never rests breaks the laws (a model or a tool that
stands still would hold up a cancel); it is there to show what keeping them costs.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import queue
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).resolve().parents[2]
# In this order: this directory has a file with the name of a package.
sys.path[0:1] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "benchmarks")]

from channels import CancelToken, Channel  # noqa: E402
from channels.aio import LoopThread  # noqa: E402
from runtime import Agent, Runtime, Session, TextDelta, tool  # noqa: E402
from runtime.events import AgentChoice  # noqa: E402
from runtime.execution._driver import Carrier  # noqa: E402
from runtime.execution._helpers import HelperPool  # noqa: E402
from runtime.execution._threads import start  # noqa: E402
from support.scripted import AsyncScripted, Scripted, call  # noqa: E402

TURNS = 100
DELTAS = 5000
PACED = 100
PACE = 0.002  # seconds
THREADS = 100

Figures = dict[str, Callable[[], float]]


def processor(work: Callable[[], object], count: int) -> float:
    """Microseconds of processor time of one of ``count`` steps of ``work``."""
    began = time.process_time()
    work()
    return (time.process_time() - began) / count * 1e6


# -- a turn with a tool call -------------------------------------------------------------------------------------------


def turns(model: type[Scripted] = Scripted, *, reads: bool = True) -> float:
    """Of processor time. A consumer ``reads`` the events, or waits for the result."""

    @tool(read_only=True)
    def nothing(n: int) -> str:
        """Does nothing."""
        return "ok"

    said = [[call("nothing", f'{{"n": {n}}}', id=f"call-{n}")] for n in range(TURNS)]
    agent = Agent("a", model(*said, [TextDelta("done")]), tools=[nothing], max_iterations=TURNS + 1)
    with Runtime(agent) as runtime:
        run: Callable[[Session], object] = runtime.run
        if reads:
            run = lambda session: list(runtime.run_stream(session))  # noqa: E731
        return processor(lambda: run(Session.from_user("go")), TURNS)


def turns_on_helpers() -> float:
    """Each call on a thread of its own, which is how they are made where the user gives an executor."""
    with mock.patch.object(HelperPool, "unbounded", False):
        return turns()


def turns_without_rest() -> float:
    """The worker never rests while its thread makes a call, so that nobody can take it over."""

    def stay(carrier: Carrier) -> None: ...

    with mock.patch.object(Carrier, "leave", stay):
        return turns()


def way_to_a_helper() -> float:
    """There and back: a function that does nothing, on a warm thread."""

    def go() -> None:
        for _ in range(TURNS):
            done: Channel[None] = Channel(1)
            start(lambda done=done: done.send(None))  # type: ignore[misc]
            done.recv()

    return processor(go, TURNS)


def way_to_the_loop() -> float:
    """There and back: a coroutine that does nothing, on the thread of an event loop."""

    async def nothing() -> None: ...

    with LoopThread() as loop:
        loop.call(nothing())
        return processor(lambda: [loop.call(nothing()) for _ in range(TURNS)], TURNS)


def loop_in_this_thread() -> float:
    """The same where the thread that waits runs the loop itself."""

    async def nothing() -> None: ...

    loop = asyncio.new_event_loop()
    with contextlib.closing(loop):
        return processor(lambda: [loop.run_until_complete(nothing()) for _ in range(TURNS)], TURNS)


TOOL_TURN: Figures = {
    "as it is": turns,
    "with run(), which reads no events": lambda: turns(reads=False),
    "the worker never rests": turns_without_rest,
    "each call on a helper": turns_on_helpers,
    "one way to a helper and back": way_to_a_helper,
    "with an asynchronous model": lambda: turns(AsyncScripted),
    "one way to the event loop and back": way_to_the_loop,
    "the same with the loop in the thread that waits": loop_in_this_thread,
}


# -- a delta -----------------------------------------------------------------------------------------------------------


def deltas(model: type[Scripted]) -> float:
    with Runtime(Agent("a", model([TextDelta("word ")] * DELTAS))) as runtime:

        def go() -> None:
            for _ in runtime.run_stream(Session.from_user("go")):
                pass

        return processor(go, DELTAS)


def floor() -> float:
    events: queue.Queue[Any] = queue.Queue(128)

    def produce() -> None:
        for _ in range(DELTAS):
            events.put(AgentChoice("word ", agent_name="a", session_id="s"))
        events.put(None)

    def go() -> None:
        threading.Thread(target=produce).start()
        while events.get() is not None:
            pass

    return processor(go, DELTAS)


def of_each(step: Callable[[], object]) -> Callable[[], float]:
    """The cost of a step alone, in one thread."""

    def go() -> None:
        for _ in range(DELTAS):
            step()

    return lambda: processor(go, DELTAS)


def sending(many: int) -> Callable[[], float]:
    """Sending a delta and receiving it, ``many`` at once."""
    channel: Channel[int] = Channel(128)
    token = CancelToken()
    batch = [0] * many

    def go() -> None:
        for _ in range(DELTAS // many):
            if many == 1:
                channel.send(0, None, token)
                channel.recv()
            else:
                channel.send_many(batch, None, token)
                channel.recv_many()

    return lambda: processor(go, DELTAS)


DELTA: Figures = {
    "the floor": floor,
    "synchronous model": lambda: deltas(Scripted),
    "asynchronous model": lambda: deltas(AsyncScripted),
    "the event alone": of_each(lambda: AgentChoice("word ", agent_name="a", session_id="s")),
    "sent and received one by one": sending(1),
    "sent and received by 32": sending(32),
}


# -- how late a delta is that comes alone ------------------------------------------------------------------------------


def by_hand(threads: int) -> float:
    """Microseconds from a delta to its consumer, ``threads`` away; nothing but queues is on the way."""
    queues = [queue.Queue[Any](128) for _ in range(threads)]

    def produce() -> None:
        for _ in range(PACED):
            time.sleep(PACE)
            queues[0].put(time.perf_counter())
        queues[0].put(None)

    def pass_on(first: queue.Queue[Any], second: queue.Queue[Any]) -> None:
        while (item := first.get()) is not None:
            second.put(item)
        second.put(None)

    threading.Thread(target=produce).start()
    for pair in itertools.pairwise(queues):
        threading.Thread(target=pass_on, args=pair).start()
    late = []
    while (made := queues[-1].get()) is not None:
        late.append(time.perf_counter() - made)
    return sorted(late)[len(late) // 2] * 1e6


def paced(on_helper: bool = False) -> float:
    with mock.patch.object(HelperPool, "unbounded", not on_helper):
        return _paced()


def _paced() -> float:
    made: list[float] = []
    late: list[float] = []

    def wait() -> None:
        time.sleep(PACE)
        made.append(time.perf_counter())

    with Runtime(Agent("a", Scripted([step for _ in range(PACED) for step in (wait, TextDelta("x"))]))) as runtime:
        for event in runtime.run_stream(Session.from_user("go")):
            if isinstance(event, AgentChoice):
                late.append(time.perf_counter() - made[len(late)])
    return sorted(late)[len(late) // 2] * 1e6


PACED_DELTA: Figures = {
    "the floor: one thread and a queue": lambda: by_hand(1),
    "two threads and two queues": lambda: by_hand(2),
    "as it is, with a synchronous model": paced,
    "its model on a helper": lambda: paced(on_helper=True),
}


# -- memory ------------------------------------------------------------------------------------------------------------


def parked(each: int) -> float:
    """KiB that a hundred streams would take for ``each`` bare threads that wait on a lock, for each stream."""
    before, lock = _resident(), threading.Lock()
    lock.acquire()
    ready = threading.Semaphore(0)

    def wait() -> None:
        ready.release()
        with lock:
            pass

    threads = [threading.Thread(target=wait) for _ in range(THREADS * each)]
    for thread in threads:
        thread.start()
    for _ in threads:
        ready.acquire()
    added = _resident() - before
    lock.release()
    for thread in threads:
        thread.join()
    return added / THREADS


def _resident() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return float(line.split()[1])
    return 0.0


MEMORY: Figures = {"one bare thread": lambda: parked(1), "two bare threads": lambda: parked(2)}


def show(title: str, figures: Figures, rounds: int, best: Callable[[list[float]], float] = min) -> None:
    found: dict[str, list[float]] = {name: [] for name in figures}
    for _ in range(rounds):
        for name, measured in figures.items():
            found[name].append(measured())
    print(f"\n{title}")
    for name, values in found.items():
        print(f"  {name:50s} {best(values):8.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    print(f"CPython {sys.version.split()[0]}, the lowest of {rounds} rounds")
    if sys.platform == "linux":
        show("100 streams that wait: KiB each", MEMORY, 1, max)  # first: what is free afterwards is used again
    show("a turn with a tool call: us of processor time", TOOL_TURN, rounds)
    show("a delta: us of processor time", DELTA, rounds)
    show("a delta that comes alone: us until its consumer has it", PACED_DELTA, rounds)


if __name__ == "__main__":
    main()
