"""What a forked child has to know: its only thread is the one that forked, and channels may come from the parent."""

from __future__ import annotations

import os
from typing import Any

from ._park import RLock, get_ident, parked_waiters

forked = False  # whether this process is a forked child, which may have inherited channels
epoch = object()  # of this process: another one in a forked child
survivor: int | None = None  # the thread that a forked child began with
refreshing = RLock()  # held by who makes an inherited channel fit for the child
# Of modules whose hot paths look at `forked` in a variable of their own: that is one step, and without the GIL no write
# to the reference count of a module that all threads share.
looked_at: list[dict[str, Any]] = []


def _after_fork() -> None:
    global forked, epoch, survivor, refreshing
    forked = True
    for variables in looked_at:
        variables["forked"] = True
    epoch = object()
    survivor = get_ident()
    refreshing = RLock()
    for waiter, (_, _, ident, _) in parked_waiters.copy().items():
        if ident != survivor:
            del parked_waiters[waiter]  # its thread stayed in the parent


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
