"""The worker of a stream: the one thread that runs the loop, writes the session and decides how the stream ends.

It only waits, sends and records. Whatever happens, it leaves through `stream_scope`, so the channel closes and the
bridge lets go of it on every path there is; nothing in the loop has to remember to.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from typing import Final

from channels import Cancelled

from .. import events
from .._errors import describe
from ..execution._calls import Call
from ..session._message import Message
from ._core import StopRun, StreamCore, insist
from ._end_hooks import Cleanup
from ._tasks import stop_all

_logger = logging.getLogger(__name__)
_UNKNOWN: Final = "interrupted: the run ended in the middle of this call; it is not known whether it took effect"
_INTERRUPTED: Final = "interrupted: the stream ended before this call did"


def work(core: StreamCore, cleanup: Cleanup) -> None:
    """Run the stream to its end; `leave` has to follow. Raises nothing."""
    ending = core.ending
    try:
        with core.scope:
            try:
                _run(core, cleanup)
                ending.decide("normal")
            except Cancelled as error:
                ending.decide("canceled", message=str(error.cause or ""), error=error)
            except StopRun as stop:
                ending.decide(stop.reason, stop.code, str(stop), stop.__cause__ or stop)
                _logger.debug("%r ends: %s", core, stop, exc_info=stop.__cause__)
                _report(core)
            except BaseException as error:
                ending.decide("error", "internal", describe(error), error)
                _logger.exception("%r failed", core)
                _report(core)
            finally:
                stop_all(list(core.background.values()), core.token, core.shared.grace)
                core.calls.abandon(keep=cleanup.calls)
                core.shared.asks.withdraw(core, "the stream has ended")
                core.shared.confirmations.withdraw(core, "the stream has ended")
                core.speak_again()
                cleanup.due("session_end", ending.reason)
    except BaseException as error:
        ending.decide("error", "internal", describe(error), error)
        _logger.exception("%r did not end cleanly", core)


def leave(core: StreamCore, cleanup: Cleanup) -> None:
    """Let go of everything, and run the hooks that are still owed. Doing it twice is harmless."""
    try:
        finish(core, cleanup.calls)
    finally:
        cleanup.finish()


def _run(core: StreamCore, cleanup: Cleanup) -> None:
    """Run the loop, and leave the session in order: every call with a result, a word on why it ended early, and what
    the user said too late, for the next stream.
    """
    with core.log as log:
        log.settle(_UNKNOWN)  # the session may have been saved in the middle of a run, or its process have died
        try:
            core.shared.run(core, cleanup)
        except StopRun as stop:
            log.settle(_INTERRUPTED)
            if stop.note:
                log.append(Message("assistant", stop.note, agent_name=core.agent.name))
            raise
        finally:
            insist(log.settle, _INTERRUPTED)
            for said in core.mailbox.close():
                log.append(Message("user", said.text))


def finish(core: StreamCore, keep: Collection[Call] = ()) -> None:
    """Let go of everything but the calls to ``keep``, also of what the way out did not come to.

    Doing it twice is harmless.
    """
    try:
        core.mailbox.close()
        core.log.release()
    finally:
        try:
            core.scope.leave()
        finally:
            core.token.cancel("the stream has ended")  # what still acts for it shall not wait for ever
            core.calls.abandon(keep)
            core.shared.asks.withdraw(core, "the stream has ended")
            core.shared.confirmations.withdraw(core, "the stream has ended")


def _report(core: StreamCore) -> None:
    """Tell the consumer and the hooks why the stream ends. A cancel cuts this short; the reason stands."""
    ending = core.ending
    failed = ending.reason in ("error", "hook_blocked", "loop_detected")
    core.speak_again()
    try:
        if failed:
            core.emit(events.Error(ending.message, ending.code, **core.tags))
        core.fire("notification", reason=ending.message)
        if failed:
            core.fire("on_error", reason=ending.message)
    except Cancelled:
        pass
