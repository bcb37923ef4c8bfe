"""At the exit of the interpreter, live streams are cancelled and get a moment to run their cleanup."""

from __future__ import annotations

import atexit
import os
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from channels import Cancelled, CancelToken, ChannelClosed
from channels._exit import exit_seconds

if TYPE_CHECKING:
    from ._core import StreamCore

EXIT_SECONDS = 1.5  # for all of them

live: set[StreamCore] = set()  # a stream is in here from before its worker starts until that is over


def end_streams(cores: set[StreamCore], cause: str, limit: float) -> None:
    """Cancel the live streams, and wait up to ``limit`` seconds, for all of them together, until they have ended."""
    deadline = CancelToken(timeout=limit)
    ending = list(cores)
    for core in ending:
        core.gone.cancel(cause)
    until = time.monotonic() + limit
    for core in ending:
        if not core.threads:
            continue  # somebody is about to start it, who will find it cancelled
        try:
            core.over.recv(cancel=deadline)
        except (ChannelClosed, Cancelled):
            pass
        except RuntimeError:  # a signal handler has come into the middle of this wait, in the same thread
            for thread in core.threads:
                thread.join(max(0.0, until - time.monotonic()))


def _at_exit() -> None:
    if live:
        end_streams(live, "the interpreter exits", exit_seconds(EXIT_SECONDS))


def register() -> None:
    """Run before the exit functions that are registered by now.

    Not with atexit where it can be helped: the threads of concurrent.futures are joined before that, and may be
    waiting in a stream. Called again once the event loop's thread may exist, which ends itself in the same way, and
    streams first.
    """
    at_exit: Callable[[Callable[[], None]], object] = getattr(threading, "_register_atexit", atexit.register)
    at_exit(_at_exit)


def _in_child() -> None:
    """A forked child has none of the threads of these streams: they are over, and iterating over one says so."""
    for core in list(live):
        core.inherited = True
        core.threads.clear()
        if core.driver is not None:
            core.driver.forget()
        core.calls.forget()
        core.session._lock = threading.Lock()  # a thread that is not here may have held it
        core.log.outbox.disown()
        core.log.release()
        core.shared.cores.discard(core)
        for channel in (core.events, core.out, core.finished, core.over):
            channel.close()
        while len(core.out):
            core.out.try_recv()
    live.clear()


register()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
