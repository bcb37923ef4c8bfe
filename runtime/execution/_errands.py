"""Calls of foreign code that the thread of the worker makes itself, while the worker rests."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from contextvars import Context
from typing import Any

from channels import Channel, ChannelClosed
from channels._park import NOTHING
from channels._standby import Standby

from ._calls import NOBODY, Call, Calls, Finished, Outcome
from ._driver import Carrier, Steps, thrown


def call_here(calls: Calls, what: str, function: Callable[..., Any], /, *args: Any) -> Steps[Any]:
    """Call ``function``, which is no coroutine function, and wait for what it returns or raises, as `Calls.run`. Raises
    `Cancelled`.
    """
    if not calls.may_make_here:
        return calls.run(what, function, *args)
    errand = _Awaited(calls, what, functools.partial(function, *args))
    outcome = thrown((yield errand))
    return (errand.outcome() if outcome is None else outcome).result()


class _Awaited:
    """A call which the worker waits for, and for nothing else. Where it was taken over all the same, the outcome comes
    through a channel.
    """

    __slots__ = ("_calls", "_function", "_late", "call")

    def __init__(self, calls: Calls, what: str, function: Callable[[], Any]) -> None:
        self._calls = calls
        self.call = Call(what, NOBODY)  # what it comes to is returned
        self._function = function
        self._late: dict[None, Channel[Outcome]] = {}

    def run(self, carrier: Carrier) -> Outcome | None:
        calls, call = self._calls, self.call
        if not call.claim():
            return None
        try:
            calls._live.add(call)
            carrier.leave()
            if calls.token.cancelled:  # looked at when the worker rests: who cancels it from now on sees that
                return None
            value, error = calls._make(call, calls._context.copy(), self._function)
            outcome = Outcome(value, error)
            if carrier.is_back():
                return None if calls.token.cancelled else outcome
            self._channel().close(final=outcome)
            return None
        finally:
            calls._live.discard(call)
            call.end()

    def taken_over(self) -> None:
        return

    def outcome(self) -> Outcome:
        """By the worker, after it was taken over. Raises `Cancelled`."""
        return self._channel().recv(cancel=self._calls.token)

    def _channel(self) -> Channel[Outcome]:
        return self._late.get(None) or self._late.setdefault(None, Channel(name=self.call.what))


class Held:
    """A call that has not begun, so that the worker can still choose where it is made: on a thread of its own, or as a
    task (`start`), or as an errand. As an errand it sends the worker the first message in ``inbox``, be it from this
    call or not; `NOTHING` where there is none yet.
    """

    __slots__ = ("_calls", "_function", "_inbox", "_standby", "_within", "call", "may_be_errand")

    def __init__(
        self,
        calls: Calls,
        what: str,
        inbox: Channel[Any],
        function: Callable[..., Any],
        /,
        *args: Any,
        within: Context | None = None,
        task: bool = False,
    ) -> None:
        self.call = Call(what, inbox)
        self._calls = calls
        self._inbox = inbox
        self._function = functools.partial(function, *args)
        self._within = within
        self._standby: Standby | None = None
        #: Whether no other thread, nor a ``task``, has to make it.
        self.may_be_errand = not task and calls.may_make_here

    def start(self) -> None:
        """Begin it on a helper, or as a task."""
        self._calls.begin_or_withdraw(self.call, self._function, self._within)

    def run(self, carrier: Carrier) -> Any:
        calls, call = self._calls, self.call
        standby = self._standby = Standby(carrier.wanted)
        if not standby.begin(self._inbox) or not call.claim():
            self.start()
            return standby.end()
        try:
            calls._live.add(call)
            carrier.leave()
            if calls.token.cancelled:  # looked at when the worker rests: who cancels it from now on sees that
                return NOTHING
            if standby.served:  # before the worker rested, when nobody could take it over
                carrier.ask_for_relief()
            value, error = calls._make(call, (self._within or calls._context).copy(), self._function)
            if error is not None:
                calls._told(call, error, call.explain)
            calls._live.discard(call)
            finished = Finished(value, error, call)
            message = standby.end() if carrier.is_back() else None
            if message is NOTHING:
                return finished
            with contextlib.suppress(ChannelClosed):
                self._inbox.try_send(finished)
            return message
        except BaseException:
            self._inbox.close()  # another thread may have the worker: rather than let it wait for ever
            raise
        finally:
            calls._live.discard(call)
            call.end()

    def taken_over(self) -> Any:
        return NOTHING if self._standby is None else self._standby.end()
