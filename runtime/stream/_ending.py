"""How a stream ends, from top to bottom. The worker takes these steps; taking a step twice is harmless.

 1. The loop stops: it returns, or raises `StopRun`, or one of its waits raises `Cancelled`. If the time budget has
    ended it, `time_is_up` first lets go of the calls under way, so that the consumer and the hooks can be told.
 2. The session is completed and given back (`_worker`): every tool call has a result, and late messages are recorded.
 3. The reason is decided, once (`_end_reason.Ending.decide`). If it is a failure, an `Error` event is sent and hooks
    are run.
 4. `wind_down`, while the channel is open: background agents are stopped, all other calls are let go, and the
    ``session_end`` hooks run, until a cancel.
 5. The scope is left: the bridge drops the stream's place, and the channel closes with `StreamStopped` as the last
    event.
 6. `leave` does all of this once more, for steps that an exception has skipped (`release`), and runs the hooks at the
    end that have not run yet.
 7. `finished` closes when the worker has ended. `over` closes when the forwarder has ended too, if there is one; from
    then on the runtime holds no reference to the stream.

A call that has been let go but still runs, such as a thread that cannot be interrupted, is waited for by the consumer's
``close`` for the grace time, and then named.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection
from typing import Final

from channels import CancelToken

from .._errors import StoreError
from ..execution._calls import Call
from . import _at_exit
from ._core import EndHooks, StreamCore
from ._end_hooks import Cleanup
from ._tasks import stop_all

_ENDED: Final = "the stream has ended"
_LAST_WRITE: Final = 0.5  # seconds that a store has at the least for what a stream leaves it, at its end
_PROMPT: Final = 0.02  # and where the stream was cancelled, at the most


def let_go(core: StreamCore, why: str, keep: Collection[Call] = ()) -> None:
    """Let go of all calls except ``keep``, and withdraw the stream's questions to the user. Nothing here waits."""
    core.calls.abandon(keep)
    core.shared.asks.withdraw(core, why)
    core.shared.confirmations.withdraw(core, why)


def time_is_up(core: StreamCore, hooks: EndHooks) -> None:
    """Let go of the calls under way, after the time budget has ended the loop, so that the consumer can be told. Hooks
    that were due go on.
    """
    let_go(core, "the time is up", hooks.calls)
    core.renew_token()
    hooks.resume()


def wind_down(core: StreamCore, hooks: EndHooks) -> None:
    """End the stream's background agents and calls, when the reason is decided and the channel is still open."""
    stop_all(list(core.background.values()), core.token, core.shared.grace)
    let_go(core, _ENDED, hooks.calls)
    core.renew_token()
    hooks.due("session_end", core.ending.reason)


def leave(core: StreamCore, cleanup: Cleanup) -> None:
    """Let go of everything, and run the hooks at the end that have not run yet."""
    try:
        release(core, cleanup.calls)
    finally:
        cleanup.finish()


def give_back(core: StreamCore) -> None:
    """Seal the session, and let the next stream have it. Raises `StoreError` where its store did not take all of it.

    A cancel does not wait for a store that takes its time: what is left to be written is on its way then.
    """
    stopping = core.stopping
    cancel = CancelToken(timeout=_PROMPT) if stopping.cancelled else stopping
    core.log.release(max(core.shared.grace, _LAST_WRITE), cancel)


def release(core: StreamCore, keep: Collection[Call] = ()) -> None:
    """Let go of everything except the calls ``keep``, including what an exception on the way out has skipped."""
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
    """Note that the worker has ended."""
    try:
        core.trace.end()  # not before: the hooks that run last are a part of it
    finally:
        if not core.observed:
            over(core)
        core.finished.close()


def over(core: StreamCore) -> None:
    """Note that nothing of the stream runs any more, except calls that it has let go."""
    core.shared.cores.discard(core)
    _at_exit.live.discard(core)
    core.over.close()
    if core.shared.watch is not None:
        core.shared.watch.rest()
