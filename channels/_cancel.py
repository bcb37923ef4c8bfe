"""Telling threads to stop: Go's ``context``, as a token.

There is no lock here. Who cancels first is decided by setting a key of a dict, who runs a callback by claiming it from
its list of one (`_park`: claiming once); both are single steps. So cancelling is safe in finalizers and signal
handlers. All that follows may be done twice, so whoever is interrupted, or finds another thread at it, does it again:
every channel below is closed first, then the callbacks run.

Nothing here recurses. A thread that runs callbacks has a `_Round`; what is cancelled meanwhile in that thread, by a
callback, a signal handler or a finalizer, is closed at once, and its callbacks wait at the end of the round.
"""

from __future__ import annotations

import functools
import itertools
import threading
from _weakref import ref  # `weakref` has more, which takes as long to import as this file
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final, NoReturn, SupportsIndex

from ._channel import Channel
from ._errors import Cancelled
from ._lazy import lazy_logger
from ._park import deadline_after, monotonic
from ._rescue import TRIES, insist
from ._timer import Timer, call_apart, call_at, call_soon, start
from ._views import Receiver

_logger = lazy_logger("channels")
_keys = itertools.count()


class _Round:
    """The callbacks that are due in a thread, and the tokens that they belong to. Both grow while it runs."""

    __slots__ = ("cores", "due", "raised")

    def __init__(self, cores: list[_Cancellation], due: list[tuple[_Cancellation, int]]) -> None:
        self.cores = cores
        self.due = due
        self.raised: list[BaseException] = []

    def carry_out(self) -> None:
        """Run every callback to its end, and raise the first of what was no `Exception` then."""
        try:
            self._insist()
        except BaseException:  # maybe one that came between two tries: a round that nobody is at would get no callback
            try:  # run that is due in this thread from now on
                self._insist()
            except BaseException:
                self._insist()
                raise
            raise

    def _insist(self) -> None:
        for _ in range(TRIES):
            try:
                self._carry_out()
                break
            except BaseException as error:  # it came between the callbacks: the others are still to be run
                self.raised.append(error)
        _here.round = None
        if self.raised:
            first, self.raised = self.raised[0], []
            try:
                raise first
            finally:
                del first  # its traceback holds this frame

    def _carry_out(self) -> None:
        _here.round = self
        for core in self.cores:
            core.told = self
        for core, key in self.due:  # it grows; a signal handler comes when the loop jumps back, so it is seen
            core.run(key, self.raised)
        _here.round = None
        for core in self.cores:
            core.told = OVER


OVER: Final[Any] = _Round([], [])


class _Here(threading.local):
    round: _Round | None = None  # the one that this thread is at


_here = _Here()


class _Cancellation(Channel[None]):
    """The channel that closes on cancel, with what else has to live as long as anyone holds its receiver."""

    __slots__ = ("callbacks", "parent", "timer", "told", "verdict")

    def __init__(self, parent: _Cancellation | None) -> None:
        super().__init__(name="cancelled")
        self.parent = parent  # held strongly: its deadline is this one's too
        self.verdict: dict[str, tuple[object]] = {}  # "cause": what the first cancel said
        self.callbacks: dict[int, list[Callable[[], object]] | _Link] = {}
        self.timer: Timer | None = None
        self.told: _Round | None = None  # the round that has all callbacks from here on down; OVER: they have run

    @property
    def cause(self) -> object:
        verdict = self.verdict.get("cause")
        return None if verdict is None else verdict[0]

    def cancel(self, cause: object, apart: bool = False) -> bool:
        """Whether this call did. ``apart``: the callbacks run on a thread of their own."""
        verdict = (cause,)
        try:
            first = self.verdict.setdefault("cause", verdict) is verdict
            self._tell(apart)  # also when another was first: it may have come no further than this
        except BaseException:
            if self.verdict:  # nobody else would tell the rest
                try:
                    insist(self._tell, apart)
                except BaseException:
                    insist(self._tell, apart)
            raise
        return first

    def _tell(self, apart: bool) -> None:
        round = _here.round
        if self.told is OVER or (round is not None and self.told is round):
            return
        cores = [self]
        due: list[tuple[_Cancellation, int]] = []
        for core in cores:  # it grows
            core.close()
            if core.timer is not None:
                core.timer.cancel()
            for key in list(core.callbacks):
                entry = core.callbacks.get(key)
                if not isinstance(entry, _Link):
                    due.append((core, key))
                elif (child := entry.child()) is not None and child.told is not OVER:
                    child.verdict.setdefault("cause", core.verdict["cause"])
                    cores.append(child)
        if round is not None:
            round.due.extend(due)  # first: interrupted in between, this is done again
            round.cores.extend(cores)
            for core in cores:
                core.told = round
        elif apart and due:
            call_apart(_Round(cores, due).carry_out)
        else:
            _Round(cores, due).carry_out()

    def run(self, key: int, raised: list[BaseException]) -> None:
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
            except (Exception, Cancelled):
                _logger.exception("a cancel callback failed: %r", function)
            except BaseException as error:
                if raised:
                    _logger.exception("a cancel callback failed: %r", function)
                else:
                    raised.append(error)
        self.callbacks.pop(key, None)


class CancelToken:
    """Tells every thread that checks it or waits for it, once and for all, that something should stop.

    Pass it as ``cancel=`` to channel operations, check `cancelled`, or wait for `done`, a receiver that closes. A
    cancel is only a request: nothing is interrupted by force. Cancelling ``parent`` cancels this token with the same
    cause; a parent holds only weak references to its children. After ``timeout`` seconds the token is cancelled with a
    `TimeoutError` as the cause. All methods are thread-safe, and safe in signal handlers and finalizers.

    A token lives as long as it, its `done`, a child or a registration is referenced; its deadline ends with it.

    Modelled on https://pkg.go.dev/context.
    """

    __slots__ = ("__weakref__", "_core", "done")

    _core: _Cancellation

    def __init__(self, parent: CancelToken | None = None, timeout: float | None = None) -> None:
        if parent is not None and not isinstance(parent, CancelToken):
            raise TypeError(_no_parent(parent))
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
                core.timer = call_at(deadline, functools.partial(_expire, ref(core), timeout), core)

    def cancel(self, cause: object = None) -> bool:
        """Cancel the token, for the reason ``cause``, and run its callbacks in the order of registration. Returns
        whether this call cancelled the token.

        Every callback runs, once. A `SystemExit` or `KeyboardInterrupt` that a callback raises is raised here after the
        last callback. A cancel inside a callback (or in a signal handler or finalizer that interrupts one) does not run
        further callbacks itself: they run when the first callback has returned.
        """
        return self._core.cancel(cause)

    def canceller(self, cause: object = None) -> Callable[[], None]:
        """A function that cancels the token on another thread. It runs no callback and takes no lock itself, so it
        suits `weakref.finalize`.
        """
        start()
        core = self._core
        return lambda: call_soon(lambda: core.cancel(cause, apart=True))

    @property
    def cancelled(self) -> bool:
        """Whether the token is cancelled."""
        core = self._core
        return core._closed or (core._attention and core.closed)

    @property
    def cause(self) -> object:
        """The argument of the first `cancel`; a `TimeoutError` after a deadline."""
        return self._core.cause

    def on_cancel(self, function: Callable[[], object]) -> Registration:
        """Call ``function`` once when the token is cancelled, in the thread that cancels it, or, at a deadline, on a
        thread for callbacks.

        If the token is cancelled already, the function is called at once; inside a callback, as soon as that callback
        has returned. The function should be quick, because `cancel` waits for it. An exception that it raises is
        logged.
        """
        if not callable(function):
            raise TypeError(f"on_cancel takes a function to call without arguments, not {function!r}")
        core = self._core
        key = next(_keys)
        core.callbacks[key] = [function]
        if core.verdict:  # the canceller may have looked before the callback stood there
            core.close()
            if _here.round is None:
                _Round([], [(core, key)]).carry_out()
            else:
                _here.round.due.append((core, key))
        return Registration(core, key)

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise TypeError(
            f"{self!r} cannot be copied or pickled: a copy would not be cancelled with it. Pass the token itself, "
            "or make CancelToken(parent=...), which is cancelled with it"
        )

    def __repr__(self) -> str:
        if not self.cancelled:
            return "<CancelToken>"
        return "<CancelToken cancelled>" if self.cause is None else f"<CancelToken cancelled: {self.cause!r:.200}>"


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

    def __repr__(self) -> str:
        entry = self._core.callbacks.get(self._key)
        if isinstance(entry, list) and entry:
            return f"<Registration of {getattr(entry[0], '__qualname__', entry[0])}>"
        return "<Registration, removed or called>"


class _Link:
    """What a parent knows of a child. It goes when the child does."""

    __slots__ = ("child",)

    def __init__(self, parent: _Cancellation, child: _Cancellation) -> None:
        key = next(_keys)
        callbacks = parent.callbacks
        self.child: ref[_Cancellation] = ref(child, lambda _: callbacks.pop(key, None))
        callbacks[key] = self
        if parent.verdict:  # the canceller may have looked before the link stood there
            child.cancel(parent.cause)


def _expire(holder: ref[_Cancellation], timeout: float | None) -> None:
    core = holder()
    if core is not None:
        core.cancel(_expired(timeout), apart=True)


def _no_parent(parent: object) -> str:
    if isinstance(parent, (int, float)):
        return f"the parent of a CancelToken must be another one, not {parent!r}: for a deadline say timeout={parent!r}"
    token = "; pass its token" if isinstance(getattr(parent, "token", None), CancelToken) else ""
    return f"the parent of a CancelToken must be another one or None, not {parent!r}{token}"


def _expired(timeout: float | None) -> TimeoutError:
    return TimeoutError(f"deadline of {timeout} s passed")
