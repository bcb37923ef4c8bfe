"""The worker of a stream: it runs the loop, writes the session and decides how the stream ends. It is a generator,
which may go on in another thread where it yields (`execution._driver`).

The worker only waits, sends and records. It always leaves through `stream_scope`, so on every path the channel closes
and the bridge drops the stream's place, without any code in the loop. `_ending` lists the steps of the end.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from channels import Cancelled
from channels._lazy import lazy_logger

from .. import events
from .._errors import StoreError, describe
from ..execution._driver import Steps
from ..human._mailbox import Mail
from ..session._journal import Unfinished
from ..session._message import Message
from ._core import StreamCore, insist
from ._end_hooks import Cleanup
from ._end_reason import StopRun
from ._ending import give_back, wind_down
from ._requests import park

_logger = lazy_logger("runtime")
_UNKNOWN: Final = "interrupted: the run ended in the middle of this call; it is not known whether it took effect"
_INTERRUPTED: Final = "interrupted: the stream ended before this call did"


def work(core: StreamCore, cleanup: Cleanup) -> Steps[None]:
    """Run the stream to its end; `_ending.leave` has to follow. Raises nothing."""
    ending = core.ending
    try:
        _logger.debug("%r of agent %r begins", core, core.agent.name)
        with core.scope:
            try:
                yield from _run(core, cleanup)
                ending.decide("normal")
            except Cancelled as error:
                ending.decide("canceled", message=str(error.cause or ""), error=error)
            except StopRun as stop:
                ending.decide(stop.reason, stop.code, str(stop), stop.__cause__ or stop)
                _logger.debug("%r is stopped: %s", core, stop, exc_info=stop.__cause__)
                _report(core)
            except BaseException as error:
                ending.decide("error", "internal", describe(error), error)
                _logger.exception("%r failed", core)
                _report(core)
            finally:
                wind_down(core, cleanup)
    except BaseException as error:
        ending.decide("error", "internal", describe(error), error)
        _logger.exception("%r did not end cleanly", core)
    _logger.debug("%r has ended: %s", core, ending.reason)


def _run(core: StreamCore, cleanup: Cleanup) -> Steps[None]:
    """Run the loop, and complete the session: every call gets a result, a note says why the run ended early, and
    messages of the user that came too late are recorded for the next stream.
    """
    log = core.log
    reason = "error"
    try:
        # The session may have been saved in the middle of a run, or its process have died.
        log.settle(_UNKNOWN, core.unfinished.calls if core.unfinished is not None else ())
        yield from core.shared.run(core, cleanup)
        reason = "normal"
    except Cancelled:
        reason = "canceled"
        raise
    except StopRun as stop:
        reason = stop.reason
        if reason == "waiting":
            core.session._unfinished = Unfinished({}, park(core))
        else:
            log.settle(_INTERRUPTED)
        if stop.note:
            log.append(Message("assistant", stop.note, agent_name=core.agent.name))
        raise
    finally:
        insist(_put_in_order, core, reason, deque(core.mailbox.close()))


def _put_in_order(core: StreamCore, reason: str, mails: deque[Mail]) -> None:
    log = core.log
    log.reason = reason
    if reason == "waiting":  # its calls are open, and what was said to it waits with them
        log.status = "waiting"
    else:
        log.status = "idle"
        log.settle(_INTERRUPTED)
        while mails:  # those that are left, where this is called again
            log.append(Message("user", mails[0].text), mails[0].id)
            mails.popleft()
    try:
        give_back(core)
    except StoreError as error:
        if reason == "normal":
            raise StopRun("error", "store_failed", describe(error)) from error
        _logger.warning("%r ends as %s, and its store was not told: %s", core, reason, describe(error))


def _report(core: StreamCore) -> None:
    """Tell the consumer and the hooks why the stream ends. A cancel ends this early, and does not change the reason."""
    ending = core.ending
    failed = ending.reason in ("error", "hook_blocked", "loop_detected")
    core.renew_token()
    try:
        if failed:
            core.emit(events.Error(ending.message, ending.code, **core.tags))
        core.fire("notification", reason=ending.message)
        if failed:
            core.fire("on_error", reason=ending.message)
    except Cancelled:
        pass
