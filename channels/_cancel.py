"""Telling threads to stop: Go's ``context``, as a token.

There is no lock here. Who cancels first is decided by setting a key of a dict, who runs a callback by deleting it from
its list of one; both are single steps. So cancelling is safe in finalizers and signal handlers. All that follows may be
done twice, so whoever is interrupted, or finds another at it, does it again: every channel below is closed first, then
the callbacks run.
"""

from __future__ import annotations

import functools
import itertools
import logging
import weakref
from collections.abc import Callable
from types import TracebackType

from ._channel import TRIES, Channel
from ._park import deadline_after, monotonic
from ._timer import Timer, call_at, call_soon, start
from ._views import Receiver

_logger = logging.getLogger(__name__)
_keys = itertools.count()


class _Cancellation(Channel[None]):
    """The channel that closes on cancel, with what else has to live as long as anyone holds its receiver."""

    __slots__ = ("callbacks", "parent", "timer", "verdict")

    def __init__(self, parent: _Cancellation | None) -> None:
        super().__init__(name="cancelled")
        self.parent = parent  # held strongly: its deadline is this one's too
        self.verdict: dict[str, tuple[object]] = {}  # "cause": what the first cancel said
        self.callbacks: dict[int, list[Callable[[], object]] | _Link] = {}
        self.timer: Timer | None = None

    @property
    def cause(self) -> object:
        verdict = self.verdict.get("cause")
        return None if verdict is None else verdict[0]

    def cancel(self, cause: object) -> bool:
        verdict = (cause,)
        try:
            first = self.verdict.setdefault("cause", verdict) is verdict
            self._spread()  # also when another was first: it may have come no further than this
        except BaseException:
            for _ in range(TRIES):  # nobody else would tell the rest
                try:
                    if self.verdict:
                        self._spread()
                    break
                except BaseException:
                    continue
            raise
        return first

    def _spread(self) -> None:
        below = [self]
        for core in below:  # it grows
            core.close()
            if core.timer is not None:
                core.timer.cancel()
            for entry in list(core.callbacks.values()):
                if isinstance(entry, _Link) and (child := entry.child()) is not None:
                    child.verdict.setdefault("cause", core.verdict["cause"])
                    below.append(child)
        for core in below:
            for key in list(core.callbacks):
                core.run(key)

    def run(self, key: int) -> None:
        """Run the callback, unless somebody else has."""
        entry = self.callbacks.get(key)
        if not isinstance(entry, list):
            return
        function = None
        try:
            function = entry[0]
            del entry[0]
        except IndexError:
            function = None
        if function is not None:
            try:
                function()
            except Exception:
                _logger.exception("a cancel callback failed: %r", function)
        self.callbacks.pop(key, None)


class CancelToken:
    """Says once, to everyone who looks or waits, that something should stop.

    Pass it as ``cancel=`` to channel operations, look at `cancelled`, or wait for `done`, a receiver that closes.
    Cancelling only asks; nothing is interrupted by force. Cancelling ``parent`` cancels this token with the same cause,
    which holds its children weakly; ``timeout`` (seconds) cancels it with a `TimeoutError` as the cause. All methods
    are thread-safe, and safe in signal handlers and finalizers.

    A token lives as long as somebody holds it, its `done`, a child or a registration; its deadline goes with it.

    Modelled on https://pkg.go.dev/context.
    """

    __slots__ = ("__weakref__", "_core", "done")

    _core: _Cancellation

    def __init__(self, parent: CancelToken | None = None, timeout: float | None = None) -> None:
        deadline = deadline_after(timeout)
        above = None if parent is None else parent._core
        core = self._core = _Cancellation(above)
        #: A receiver that closes when the token is cancelled.
        self.done: Receiver[None] = Receiver(core)
        if above is not None:
            _Link(above, core)
        if deadline is not None and not core.closed:
            if deadline <= monotonic():
                core.cancel(_expired(timeout))
            else:
                core.timer = call_at(deadline, functools.partial(_expire, weakref.ref(core), timeout), core)

    def cancel(self, cause: object = None) -> bool:
        """Cancel, for the reason ``cause``; whether this call did. Runs the callbacks, in the order of registration."""
        return self._core.cancel(cause)

    def canceller(self, cause: object = None) -> Callable[[], None]:
        """A function that cancels, on the timer thread. For `weakref.finalize`: it runs no callback and takes no lock
        itself.
        """
        start()
        core = self._core
        return lambda: call_soon(lambda: core.cancel(cause))

    @property
    def cancelled(self) -> bool:
        """Whether the token is cancelled."""
        return self._core.closed

    @property
    def cause(self) -> object:
        """What was given to the first `cancel`; a `TimeoutError` after a deadline."""
        return self._core.cause

    def on_cancel(self, function: Callable[[], object]) -> Registration:
        """Call ``function`` once on cancel, in the thread that cancels (the timer thread for a deadline).

        If the token is cancelled already, at once. It must be quick and not block. What it raises is logged.
        """
        core = self._core
        key = next(_keys)
        core.callbacks[key] = [function]
        if core.verdict:  # the canceller may have looked before the callback stood there
            core.close()
            core.run(key)
        return Registration(core, key)

    def __repr__(self) -> str:
        if not self.cancelled:
            return "<CancelToken>"
        return "<CancelToken cancelled>" if self.cause is None else f"<CancelToken cancelled: {self.cause!r}>"


class Registration:
    """A callback of a token. Leaving a ``with`` block on it removes it."""

    __slots__ = ("_core", "_key")

    def __init__(self, core: _Cancellation, key: int) -> None:
        self._core = core
        self._key = key

    def remove(self) -> bool:
        """Whether the callback will now never be called: False if it was, or is being."""
        entry = self._core.callbacks.get(self._key)
        try:
            del entry[0]  # type: ignore[union-attr]
        except (TypeError, IndexError):
            return False
        self._core.callbacks.pop(self._key, None)
        return True

    def __enter__(self) -> Registration:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.remove()


class _Link:
    """What a parent knows of a child. It goes when the child does."""

    __slots__ = ("child",)

    def __init__(self, parent: _Cancellation, child: _Cancellation) -> None:
        key = next(_keys)
        callbacks = parent.callbacks
        self.child: weakref.ref[_Cancellation] = weakref.ref(child, lambda _: callbacks.pop(key, None))
        callbacks[key] = self
        if parent.verdict:  # the canceller may have looked before the link stood there
            child.cancel(parent.cause)


def _expire(ref: weakref.ref[_Cancellation], timeout: float | None) -> None:
    core = ref()
    if core is not None:
        core.cancel(_expired(timeout))


def _expired(timeout: float | None) -> TimeoutError:
    return TimeoutError(f"deadline of {timeout} s passed")
