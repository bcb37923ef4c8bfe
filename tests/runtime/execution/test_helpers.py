"""Helper threads: as many as there are jobs at once, and no more than are needed."""

from __future__ import annotations

import contextlib
import threading
from typing import Any

import pytest

from runtime.execution import _helpers
from runtime.execution._helpers import HelperPool


def burst(pool: HelperPool, count: int) -> None:
    """So many jobs at once."""
    line, over = threading.Barrier(count + 1), threading.Semaphore(0)

    def job() -> None:
        line.wait(10)
        over.release()

    for _ in range(count):
        pool.submit(job)
    line.wait(10)
    for _ in range(count):
        assert over.acquire(timeout=10)


def idle(pool: HelperPool, count: int) -> None:
    """Wait until so many are idle."""
    done = threading.Event()
    for _ in range(10_000):
        if len(pool._idle._waiting) == count:
            return
        done.wait(0.001)
    pytest.fail(f"{pool._idle._waiting} are idle")


def test_the_last_to_become_idle_is_the_next_to_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that what a burst has left over ends, though there is always a little to do."""
    monkeypatch.setattr(_helpers, "_IDLE", 0.5)
    pool = HelperPool()
    burst(pool, 20)
    idle(pool, 20)
    used = set()
    over = threading.Event()
    for _ in range(400):
        done = threading.Event()
        pool.submit(lambda done=done: (used.add(threading.current_thread()), done.set()))
        assert done.wait(10)
        over.wait(0.002)
        if sum(thread.is_alive() for thread in pool._threads) <= 2:
            break
    alive = sum(thread.is_alive() for thread in pool._threads)
    assert alive <= 2
    assert len(used) <= 3
    pool.close()
    pool.join(5)


def test_no_job_is_lost_to_a_helper_that_leaves(monkeypatch: pytest.MonkeyPatch, switching: Any) -> None:
    """It may be given one in the moment in which it has waited long enough."""
    monkeypatch.setattr(_helpers, "_IDLE", 0.0005)
    pool = HelperPool()
    pause = threading.Event()
    for number in range(500):
        done = threading.Event()
        pool.submit(done.set)
        assert done.wait(10)
        pause.wait(0.0005 if number % 2 else 0.0004)
    pool.close()
    pool.join(5)
    assert not any(thread.is_alive() for thread in pool._threads)


def test_closed_while_helpers_become_idle(switching: Any) -> None:
    """All of them end, at whatever moment it is closed; and what was taken is done."""
    for _ in range(50):
        pool = HelperPool()
        done: list[int] = []
        count = 0
        for number in range(5):
            pool.submit(lambda number=number: done.append(number))
            count += 1
        pool.close()
        with contextlib.suppress(RuntimeError):
            pool.submit(lambda: done.append(-1))
            pytest.fail("closed")
        pool.join(5)
        assert not any(thread.is_alive() for thread in pool._threads)
        assert sorted(done) == list(range(count))
