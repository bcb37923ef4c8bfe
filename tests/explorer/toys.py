"""Small wrong programs, for the explorer to show what it sees."""

from __future__ import annotations

import threading
from time import monotonic


class Counter:
    def __init__(self) -> None:
        self.value = 0
        self.items: list[int] = []
        self.lock = threading.Lock()

    def add(self) -> None:
        self.value = self.value + 1

    def add_in_place(self) -> None:
        self.value += 1

    def add_locked(self) -> None:
        with self.lock:
            self.value = self.value + 1

    def append_once(self, item: int) -> None:
        if not self.items:
            self.items.append(item)


class Account:
    def __init__(self) -> None:
        self.lock = threading.Lock()

    def move(self, other: Account) -> None:
        with self.lock, other.lock:
            pass


class Box:
    """Takes with a call, or without one."""

    def __init__(self, *items: int) -> None:
        self.items = list(items)
        self.out: list[int] = []

    def take_by_a_call(self) -> int:
        value = None
        try:
            value = self.items.pop()
            self.touch()
        except BaseException:
            if value is not None:
                self.items.append(value)
            raise
        return value

    def take_in_one_step(self) -> int:
        value = None
        try:
            value = self.items[-1]
            del self.items[-1]
            self.touch()
        except BaseException:
            if value is not None:
                self.items.append(value)
            raise
        return value

    def touch(self) -> None:
        pass


def wait_for(lock: threading.Lock, timeout: float) -> tuple[bool, float]:
    began = monotonic()
    return lock.acquire(timeout=timeout), monotonic() - began


def spin(counter: Counter) -> None:
    while not counter.value:
        pass
