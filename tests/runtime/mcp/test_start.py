"""A server whose start is cut off leaves nothing behind, wherever that happens: no process, and no pipe that only the
garbage collector would close.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from channels.aio import LoopThread
from support.mcp import children
from support.waiting import eventually

pytest.importorskip("mcp")

from runtime.mcp._patience import Patience
from runtime.mcp._stdio import Process

SLEEPER = ["sleep", "60"]
LONG = 10.0  # seconds
STEPS = 50  # of the loop, more than a start takes


def open_files() -> set[str]:
    """What each open file is, as the numbers are used again. (That of the listing itself has ended meanwhile.)"""
    found = set()
    for number in os.listdir("/proc/self/fd"):
        try:
            found.add(os.readlink(f"/proc/self/fd/{number}"))
        except FileNotFoundError:
            continue
    return found


class AtOnce(ThreadPoolExecutor):
    """Does the work of helper threads where it is submitted, so that each start takes the same steps."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except BaseException as error:
            future.set_exception(error)
        return future


async def enter(process: Process, entered: Callable[[], object]) -> None:
    async with process.open(lambda: None, lambda: None, None):
        entered()
        await asyncio.Event().wait()


async def cut_off_after(steps: int, every_task: bool) -> bool:
    """Start a server and cancel that after so many steps of the loop; whether it had started."""
    started = asyncio.Event()
    before = asyncio.all_tasks()
    start = asyncio.create_task(enter(Process("sleeper", SLEEPER, None, None), started.set))
    for _ in range(steps):
        await asyncio.sleep(0)
    was_started = started.is_set()
    # What closes a loop cancels what the start has begun, too.
    for task in asyncio.all_tasks() - before if every_task else {start}:
        task.cancel()
    await asyncio.wait([start], timeout=LONG)
    assert start.cancelled()
    return was_started


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("every_task", [False, True])
def test_a_start_that_is_cut_off_at_any_step_leaves_nothing(every_task: bool) -> None:
    async def main() -> None:
        asyncio.get_running_loop().set_default_executor(AtOnce())
        await asyncio.sleep(0)
        before = open_files(), children()
        for steps in range(STEPS):
            was_started = await cut_off_after(steps, every_task)
            await asyncio.sleep(0)  # the loop closes what it was told to
            assert (open_files(), children()) == before, f"cut off after {steps} steps"
            if was_started:
                return
        raise AssertionError(f"not started after {STEPS} steps")

    gc.collect()  # what other tests have left open shall not be closed meanwhile
    asyncio.run(main())
    gc.collect()  # finds what nobody has closed, and says so


@pytest.mark.parametrize("asked_by", ["cancel", "kill"])
def test_a_process_that_is_given_up_while_it_is_made_is_ended_by_who_makes_it(
    asked_by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    making, given_up = threading.Event(), threading.Event()
    made: list[subprocess.Popen[bytes]] = []

    def slow(*args: Any, **options: Any) -> subprocess.Popen[bytes]:
        made.append(subprocess.Popen(*args, **options))
        making.set()
        assert given_up.wait(LONG)
        return made[0]

    async def main() -> None:
        process = Process("sleeper", SLEEPER, None, None)
        start = asyncio.create_task(enter(process, lambda: None))
        assert await asyncio.to_thread(making.wait, LONG)
        if asked_by == "kill":
            process.kill()
        else:
            start.cancel()
            await asyncio.sleep(0)
        given_up.set()
        await asyncio.wait([start], timeout=LONG)
        with pytest.raises(asyncio.CancelledError if asked_by == "cancel" else ProcessLookupError):
            start.result()

    monkeypatch.setattr("runtime.mcp._child.Popen", slow)
    asyncio.run(main())
    [process] = made
    assert process.returncode == -signal.SIGKILL
    assert process.stdin is not None
    assert process.stdin.closed


def test_a_start_does_not_wait_for_ever_for_a_process_that_the_system_does_not_make(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[subprocess.Popen[bytes]] = []
    making, go_on = threading.Event(), threading.Event()

    def stuck(*args: Any, **options: Any) -> subprocess.Popen[bytes]:
        making.set()
        assert go_on.wait(LONG)
        made.append(subprocess.Popen(*args, **options))
        return made[0]

    async def main() -> None:
        start = asyncio.create_task(enter(Process("sleeper", SLEEPER, None, None), lambda: None))
        assert await asyncio.to_thread(making.wait, LONG)
        start.cancel()
        await asyncio.wait([start], timeout=LONG)
        assert start.cancelled()
        assert not made
        go_on.set()

    monkeypatch.setattr("runtime.mcp._child.KILLED", 0.05)
    monkeypatch.setattr("runtime.mcp._child.Popen", stuck)
    asyncio.run(main())  # which waits for its helper threads
    assert made[0].returncode == -signal.SIGKILL


def test_a_loop_that_is_closed_while_it_starts_a_server_leaves_nothing() -> None:
    """However far the start has come: all of these are cut off within their first milliseconds."""
    before = children()
    loops = [LoopThread(name=f"loop {number}") for number in range(8)]
    for number, loop in enumerate(loops):
        loop.start(enter, Process("sleeper", SLEEPER, None, None), lambda: None)
        for _ in range(number):
            loop.call(asyncio.sleep(0))
        loop.close()
    gc.collect()
    assert eventually(lambda: children() <= before)


class Jumping:
    """The clock of a loop, which jumps on when the process has stood still."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._now, self.ahead = loop.time, 0.0
        loop.time = lambda: self._now() + self.ahead  # type: ignore[method-assign]


@pytest.mark.parametrize("times", [1, 6])
def test_a_standstill_of_this_process_uses_up_no_patience_with_a_server(times: int) -> None:
    """Its computer was closed, for example, and the server stood still with it."""

    async def main() -> None:
        clock = Jumping(asyncio.get_running_loop())
        async with Patience(1.2):
            for _ in range(times):
                await asyncio.sleep(0.05)
                clock.ahead += 3600
                await asyncio.sleep(0)
                await asyncio.sleep(0.05)
        with pytest.raises(TimeoutError):
            async with Patience(0.1):
                await asyncio.sleep(60)

    asyncio.run(main())


def test_patience_is_suspended_and_begins_anew() -> None:
    async def main() -> None:
        async with Patience(0.1) as patience:
            patience.suspend()
            await asyncio.sleep(0.2)
            patience.begin_anew()
            await asyncio.sleep(60)

    began = time.monotonic()
    with pytest.raises(TimeoutError):
        asyncio.run(main())
    assert time.monotonic() - began > 0.25


def test_patience_that_is_ended_has_no_time_left() -> None:
    async def main() -> None:
        async with Patience(60) as patience:
            patience.end()
            patience.end()
            await asyncio.sleep(60)

    with pytest.raises(TimeoutError):
        asyncio.run(main())
