"""The worker of a stream: the one thread that runs the loop, writes the session and decides how the stream ends.

It only waits, sends and records. Whatever happens, it leaves through `stream_scope`, so the channel closes and the
bridge lets go of it on every path there is; nothing in the loop has to remember to.
"""

from __future__ import annotations

import logging

from channels import Cancelled, ChannelClosed

from . import _loop, events
from ._calls import Call
from ._core import StopRun, StreamCore, describe
from ._scope import stream_scope

_logger = logging.getLogger(__name__)


def work(core: StreamCore) -> None:
    """Run the stream to its end. Raises nothing."""
    ending = core.ending
    cleanup: list[Call] = []
    try:
        with stream_scope(core.shared.bridge, core.events, final=ending.stopped):
            try:
                with core.log as log:
                    try:
                        reason = _loop.run(core)
                    finally:
                        log.settle("interrupted: the stream ended before this call did")
                ending.decide(reason)
            except Cancelled as error:
                ending.decide("canceled", message=str(error.cause or ""), error=error)
            except StopRun as stop:
                ending.decide(stop.reason, stop.code, str(stop), stop.__cause__ or stop)
                _report(core)
            except BaseException as error:
                ending.decide("error", "internal", describe(error), error)
                _logger.exception("%r failed", core)
                _report(core)
            finally:
                core.calls.abandon()
                core.shared.asks.withdraw(core, "the stream has ended")
                cleanup = core.start_cleanup()
                _wait(core, cleanup)
    except BaseException as error:
        ending.decide("error", "internal", describe(error), error)
        _logger.exception("%r did not end cleanly", core)
    finally:
        core.log.release()
        if not core.events.closed:  # the scope could not be entered
            core.events.close(final=ending.stopped())
        core.token.cancel("the stream has ended")  # what still acts for it shall not wait for ever
        if cleanup:
            core.calls.join(core.shared.grace, cleanup)


def _report(core: StreamCore) -> None:
    """Tell the consumer and the hooks why the stream fails. A cancel cuts this short; the reason stands."""
    ending = core.ending
    try:
        core.emit(events.Error(ending.message, ending.code, **core.tags))
        if ending.reason == "hook_blocked":
            core.fire("notification", reason=ending.message)
        core.fire("on_error", reason=ending.message)
    except Cancelled:
        pass


def _wait(core: StreamCore, cleanup: list[Call]) -> None:
    """On a normal end the cleanup hooks finish before the last event; when cancelled, the stream closes first."""
    for call, hook in zip(cleanup, core.hooks.at("session_end"), strict=True):
        try:
            call.done.recv(timeout=hook.timeout, cancel=core.token)
        except ChannelClosed:
            _log_failure(call, hook.name)
        except TimeoutError:
            _logger.warning("hook %s at session_end did not end within %g s", hook.name, hook.timeout)
        except Cancelled:
            return


def _log_failure(call: Call, name: str) -> None:
    try:
        call.inbox.try_recv().result()
    except BaseException as error:
        _logger.warning("hook %s at session_end failed: %s", name, describe(error))
