"""What comes in between: a signal handler, or what it raises, at a point that the test chooses."""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Callable, Iterator
from types import FrameType

OURS = ("runtime.", "channels.")
# One closes generators, the other is the callback of a weak reference: what is raised there is lost.
NOT_THERE = ("runtime.schema._checking", "channels._timer")


@contextlib.contextmanager
def uncalled_by_collections() -> Iterator[None]:
    """Collections call nothing of other packages meanwhile: an exception that is thrown into a thread while it runs
    such a callback, as the one that hypothesis has to measure them, is lost there.
    """
    before, gc.callbacks[:] = gc.callbacks[:], []
    try:
        yield
    finally:
        gc.callbacks[:] = before


def between(number: int, function: Callable[[], object], act: Callable[[], object]) -> bool:
    """Call ``function``, and ``act`` in the middle of it: at the ``number``-th point of our code where CPython looks
    for signals, which is where a call begins and where one of C returns. Whether there was such a point.
    """
    left = number

    def profile(frame: FrameType, event: str, _: object) -> None:
        nonlocal left
        where = frame.f_globals.get("__name__", "")
        if event in ("call", "c_return") and where.startswith(OURS) and where not in NOT_THERE:
            left -= 1
            if left < 0:
                sys.setprofile(None)
                act()

    collecting = gc.isenabled()
    gc.disable()  # or it comes into a finalizer, and is lost there
    sys.setprofile(profile)
    try:
        function()
    finally:
        sys.setprofile(None)
        if collecting:
            gc.enable()
    return left < 0


def press_ctrl_c() -> None:
    """What Python's own handler does."""
    raise KeyboardInterrupt
