"""The way in which a stream ends, top to bottom. Its worker goes it; to do a step twice is harmless.

 1. The loop stops: it returns, or raises `StopRun`, or a wait of it raises `Cancelled`. Where that is the time budget,
    `time_is_up` lets go of what is under way first, so that there is a quiet moment to say so.
 2. The session is put in order and given back (`_worker`): each call has a result, late messages are in it.
 3. The reason is decided, once (`_reason.Ending.decide`). Where it is a failure, an `Error` event and hooks say so.
 4. `wind_down`, while the channel is open: what runs in the background is stopped, all else is let go, and the
    ``session_end`` hooks run, as long as nobody cancels.
 5. The scope is left: the bridge forgets the stream, and its channel closes with `StreamStopped` as the last event.
 6. `leave`: all of that once more, for what an exception has skipped (`release`); then the hooks that are still owed.
 7. `finished` closes, when the worker is through. `over` closes when the forwarder is, too, where there is one: from
    then on the runtime knows nothing of the stream.

What foreign code does not do when it is let go, such as a thread that goes on, is waited for by the consumer's
``close``, for the grace time, and named.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection
from typing import Final

from .._errors import StoreError
from ..execution._calls import Call
from . import _at_exit
from ._core import EndHooks, StreamCore
from ._end_hooks import Cleanup
from ._tasks import stop_all

_ENDED: Final = "the stream has ended"
_LAST_WRITE: Final = 0.5  # seconds that a store has at the least for what a stream leaves it, at its end


def let_go(core: StreamCore, why: str, keep: Collection[Call] = ()) -> None:
    """Leave all calls but those to ``keep`` to themselves, and take back what the user is asked. Nothing here waits."""
    core.calls.abandon(keep)
    core.shared.asks.withdraw(core, why)
    core.shared.confirmations.withdraw(core, why)


def time_is_up(core: StreamCore, hooks: EndHooks) -> None:
    """The time budget has ended the loop, and the consumer is still there to be told. Hooks that were due go on."""
    let_go(core, "the time is up", hooks.calls)
    core.renew_token()
    hooks.resume()


def wind_down(core: StreamCore, hooks: EndHooks) -> None:
    """The reason is decided, and the channel still open."""
    stop_all(list(core.background.values()), core.token, core.shared.grace)
    let_go(core, _ENDED, hooks.calls)
    core.renew_token()
    hooks.due("session_end", core.ending.reason)


def leave(core: StreamCore, cleanup: Cleanup) -> None:
    """Let go of everything, and run the hooks that are still owed."""
    try:
        release(core, cleanup.calls)
    finally:
        cleanup.finish()


def give_back(core: StreamCore) -> None:
    """Seal the session, and let the next stream have it. Raises `StoreError` where its store did not take all of it."""
    core.log.release(max(core.shared.grace, _LAST_WRITE))


def release(core: StreamCore, keep: Collection[Call] = ()) -> None:
    """Let go of everything but the calls to ``keep``, also of what the way out did not come to."""
    try:
        core.mailbox.close()
        if core.parking is not None:
            core.parking.end()
        with contextlib.suppress(StoreError):  # which has been told, where the worker came so far
            give_back(core)
    finally:
        try:
            core.scope.leave()
        finally:
            core.token.cancel(_ENDED)  # what still acts for it shall not wait for ever
            let_go(core, _ENDED, keep)


def finished(core: StreamCore) -> None:
    """The worker is through."""
    try:
        core.trace.end()  # not before: the hooks that run last are a part of it
    finally:
        if not core.observed:
            over(core)
        core.finished.close()


def over(core: StreamCore) -> None:
    """Nothing of the stream runs any more, but for what it has let go."""
    core.shared.cores.discard(core)
    _at_exit.live.discard(core)
    core.over.close()
    if core.shared.watch is not None:
        core.shared.watch.rest()
