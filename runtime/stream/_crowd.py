"""A crowd: many streams of a process that are cancelled together.

A cancel wakes the threads of its stream, each of which has a little to do. CPython, in turn, wakes every thread that
waits for the interpreter lock as often as `sys.getswitchinterval` says, every 5 ms, to ask for it. Where a thousand
wait, that is all that the processors do: a thousand streams took a minute to end. So the threads ask less often for as
long as a crowd is ending, and it ends in a second.
"""

from __future__ import annotations

import itertools
import os
import sys
from typing import Final

CROWD: Final = 32  # streams
PATIENT: Final = 0.05  # seconds for which a thread may compute while others want to; those of a stream do not

_cancels = itertools.count(1)  # a step of it is atomic, with the lock and without
_ends = itertools.count(1)
_cancelled = _ended = 0  # how far they are; where two threads write at once, one less for a moment
_before: list[float] = []  # of one item, while the interval is ours: what it was


def enter() -> None:
    """A stream is cancelled. Runs in whichever thread cancels it."""
    global _cancelled
    _cancelled = next(_cancels)
    if _cancelled - _ended > CROWD and not _before and (interval := sys.getswitchinterval()) < PATIENT:
        _before.append(interval)
        sys.setswitchinterval(PATIENT)
        if not _before:  # all have left in between
            sys.setswitchinterval(interval)


def leave() -> None:
    """A stream that was cancelled has ended."""
    global _ended
    _ended = next(_ends)
    if _before and _cancelled - _ended <= CROWD // 2:
        try:
            interval = _before.pop()
        except IndexError:  # another thread is at it
            return
        if abs(sys.getswitchinterval() - PATIENT) < 1e-5:  # nobody else has set it meanwhile
            sys.setswitchinterval(interval)


def _in_child() -> None:
    """Its parent's streams do not end here."""
    global _cancels, _ends, _cancelled, _ended
    _cancels, _ends = itertools.count(2), itertools.count(1)
    _cancelled = 1
    leave()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
