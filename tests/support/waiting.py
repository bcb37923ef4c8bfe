"""Waiting for what no barrier announces: another process, a file, a thread that the product ends by itself."""

from __future__ import annotations

import time
from collections.abc import Callable

STEP = 0.001  # seconds between two looks


def eventually(condition: Callable[[], object], seconds: float = 20.0) -> bool:
    """Whether the condition comes true within so many seconds; returns as soon as it does."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return bool(condition())  # on a busy machine the last look may have been long ago
        time.sleep(STEP)
    return True


def in_time(trial: Callable[[], float], seconds: float, tries: int = 8) -> bool:
    """Whether one of several tries takes less than so many seconds, as it tells itself. A machine, or a collection of
    the whole heap, may stand in the way of each; what is slow by itself is slow each time.
    """
    return any(trial() < seconds for _ in range(tries))
