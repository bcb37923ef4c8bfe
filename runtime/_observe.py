"""Observers see every event once, in order, before the consumer does: one forwarder thread stands between the two.

A stream without observers has no forwarder; its consumer reads what the worker sends.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from typing import Any, Protocol

from channels import Cancelled, CancelToken, ChannelClosed, WouldBlock

from ._calls import Calls
from ._core import StreamCore
from ._errors import NotInTime
from ._traffic import ConsumerCall, InBackground, Traffic
from .events import Event, StreamStopped
from .session import Session

_logger = logging.getLogger(__name__)


class Observer(Protocol):
    """Watches streams. Called on helper threads, one call at a time for each stream."""

    def on_run_start(self, session: Session) -> None:
        """A stream starts on ``session``."""

    def on_event(self, session: Session, event: Event) -> None:
        """An event, before the consumer of the stream has it. The last one is a `StreamStopped`."""


def forward(core: StreamCore, calls: Calls) -> None:
    """Pass the events of ``core`` on, each after the observers have seen it. Ends when they end.

    An observer that raises is logged, and told the next event all the same. One that does not return within the grace
    time is left out from then on. A consumer that does not read is waited for, but not once the stream is to end: then
    it gets what there is room for, and the last event; the observers get everything.
    """
    observers = list(core.shared.observers)
    recorders = [] if core.recorder is None else [core.recorder]
    late: list[Event] = []  # what there was no room for
    try:
        _tell(core, calls, observers, "on_run_start", core.session)
        for event in core.events:
            if isinstance(event, InBackground):
                _tell(core, calls, [*recorders, *observers], "on_event", core.session, event.event)
                continue
            if not isinstance(event, ConsumerCall):  # an errand between the worker and the consumer, and no news
                _tell(core, calls, recorders, "on_event", core.session, event)
            if isinstance(event, Traffic):
                continue
            if not isinstance(event, ConsumerCall):
                _tell(core, calls, observers, "on_event", core.session, event)
            if isinstance(event, StreamStopped):
                if event.reason != "canceled":  # the cancel came after the end: nothing may be missing
                    _wait_to_pass_on(core, late)
                core.out.close(final=event)
            elif late or not _pass_on(core, event):
                late.append(event)
    finally:
        core.out.close()
        if core.recorder is not None:
            core.recorder.close()


def _pass_on(core: StreamCore, event: Event) -> bool:
    """False: the stream is to end, and there is no room for the event."""
    try:
        try:
            core.out.send(event, None, core.stopping)
        except Cancelled:
            core.out.try_send(event)
    except ChannelClosed:
        pass  # the consumer has left
    except WouldBlock:
        return False
    return True


def _wait_to_pass_on(core: StreamCore, late: list[Event]) -> None:
    with contextlib.suppress(ChannelClosed, Cancelled):  # the consumer has left
        for event in late:
            core.out.send(event, None, core.gone)


def _tell(core: StreamCore, calls: Calls, observers: list[Any], method: str, *args: Any) -> None:
    for observer in observers[:]:
        function: Callable[..., Any] = getattr(observer, method)
        try:
            calls.run(f"observer {type(observer).__name__}.{method}", function, *args, timeout=core.shared.grace)
        except NotInTime:
            observers.remove(observer)
            _logger.warning("observer %r did not return from %s in time, and is left out from now on", observer, method)
        except BaseException:
            _logger.exception("observer %r failed in %s", observer, method)


def observing_calls(core: StreamCore) -> Calls:
    """The calls of the forwarder: no cancel ends them, observers see a cancelled stream to its end."""
    return Calls(CancelToken(), core.shared.helpers, core.shared.loop, core.context)
