"""Observers see every event once, in order, before the consumer does: one forwarder thread stands between the two.

A stream without observers has no forwarder; its consumer reads what the worker sends.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Protocol

from channels import Cancelled, CancelToken, ChannelClosed, WouldBlock

from ._calls import Calls, NotInTime
from ._core import StreamCore
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
    reads = True
    try:
        _tell(core, calls, observers, "on_run_start", core.session)
        for event in core.events:
            _tell(core, calls, observers, "on_event", core.session, event)
            if isinstance(event, StreamStopped):
                core.out.close(final=event)
            else:
                reads = reads and _pass_on(core, event)  # after a gap only the end: nobody shall miss a middle
    finally:
        core.out.close()


def _pass_on(core: StreamCore, event: Event) -> bool:
    """Whether the consumer has the event, or can have it."""
    try:
        try:
            core.out.send(event, None, core.stopping)
        except Cancelled:
            core.out.try_send(event)
    except (WouldBlock, ChannelClosed):
        return False
    return True


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
