"""Observers see every event once, in order, before the consumer does: one forwarder thread stands between the two.

A stream without observers has no forwarder; its consumer reads what the worker sends.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Protocol

from channels import Cancelled, CancelToken, ChannelClosed

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
    time is left out from then on. Once nobody will read (`StreamCore.gone`), only observers get the events, but for
    the last.
    """
    observers = list(core.shared.observers)
    try:
        _tell(core, calls, observers, "on_run_start", core.session)
        for event in core.events:
            _tell(core, calls, observers, "on_event", core.session, event)
            try:
                if isinstance(event, StreamStopped):
                    core.out.close(final=event)
                else:
                    core.out.send(event, None, core.gone)
            except (ChannelClosed, Cancelled):
                pass  # the consumer has left; the observers see the rest
    finally:
        core.out.close()


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
