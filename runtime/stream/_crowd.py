"""A crowd: many streams of a process that are cancelled together.

A cancel wakes the threads of its stream, each of which has a little to do. CPython, in turn, wakes every thread that
waits for the interpreter lock as often as `sys.getswitchinterval` says, every 5 ms, to ask for it. Where a thousand
wait, that is all that the processors do: a thousand streams took a minute to end. So the threads ask less often for as
long as a crowd is ending, and it ends in a second.
"""

from __future__ import annotations

import os
import sys
from typing import Final

CROWD: Final = 32  # streams
PATIENT: Final = 0.05  # seconds for which a thread may compute while others want to; those of a stream do not

# Each holds one item for each stream. To add or to take one is a single step, and the lengths tell how many there are,
# however late a thread looks.
_ending: list[None] = []  # cancelled, and not ended
_early: list[None] = []  # ended before whoever cancels them has noted it
_before: list[float] = []  # of one item, while the interval is ours: what it was


def enter() -> None:
    """A stream is cancelled. Runs in whichever thread cancels it."""
    try:
        _early.pop()
    except IndexError:
        _ending.append(None)
    if len(_ending) > CROWD and not _before and (interval := sys.getswitchinterval()) < PATIENT:
        _before.append(interval)
        sys.setswitchinterval(PATIENT)
        if not _before:  # enough have left in between
            sys.setswitchinterval(interval)
        else:
            _restore()


def leave() -> None:
    """A stream that was cancelled has ended."""
    try:
        _ending.pop()
    except IndexError:
        _early.append(None)
    _restore()


def _restore() -> None:
    """If the crowd has ended, the interval is as it was."""
    if _before and len(_ending) - len(_early) <= CROWD // 2:
        try:
            interval = _before.pop()
        except IndexError:  # another thread is at it
            return
        if abs(sys.getswitchinterval() - PATIENT) < 1e-5:  # nobody else has set it meanwhile
            sys.setswitchinterval(interval)


def _in_child() -> None:
    """Its parent's streams do not end here."""
    _ending.clear()
    _early.clear()
    _restore()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
