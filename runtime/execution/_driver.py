"""Which thread runs the worker of a stream.

A worker is a generator, which can go on in another thread than the one where it stopped. It yields where foreign code
is to be called that may stand still, a model or a tool. Its thread, the carrier, makes the call itself, while the
worker rests. If the worker is needed meanwhile, because its stream is cancelled or somebody has a message for it,
another thread becomes its carrier, and the one that makes the call is a helper from then on. So a call costs no way to
another thread and back unless the worker is needed in the middle of it, and a cancel never waits for foreign code. Go's
scheduler treats a system call in the same way (``entersyscall``, ``retake`` and ``exitsyscall`` in
https://go.dev/src/runtime/proc.go).

Invariant: the worker has one carrier at a time. For each time that it rests there is a dict, and the thread whose mark
comes first into that dict is the carrier afterwards. To put it there is a single step, and doing it again tells the
same again, so a thread can ask whether it is the carrier after an exception was thrown into it, wherever that was.

Nothing here waits, but for the foreign code itself. If the system has no thread to take over, that is tried again until
there is one or the carrier comes back.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator
from contextvars import Context
from typing import Any, Final, Protocol, TypeAlias, TypeVar

from channels import CancelToken, _timer
from channels._park import monotonic
from channels._standby import Standby

from ._calls import Call
from ._helpers import HelperPool
from ._threads import Running, launch

AGAIN: Final = 0.05  # seconds after which it is tried again to take over, where the system had no thread for it


class Errand(Protocol):
    """What a carrier does while the worker rests: it makes a ``call``."""

    @property
    def call(self) -> Call: ...

    def run(self, carrier: Carrier) -> Any:
        """On the carrier. It says `Carrier.leave` before foreign code, and asks `Carrier.is_back` after it. What it
        returns is sent to the worker, if the thread still is its carrier.
        """

    def taken_over(self) -> Any:
        """Another thread is the carrier now: what is sent to the worker there. Does not wait."""


T = TypeVar("T")

#: A part of a worker. What it is sent for an errand, it gives to `thrown`.
Steps: TypeAlias = Generator[Errand, Any, T]


class Thrown:
    """What is sent to a worker where an ``error`` was thrown into its carrier between the steps."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


def thrown(sent: Any) -> Any:
    """What was sent to a worker. Raises what was thrown into its carrier."""
    if sent.__class__ is Thrown:
        try:
            raise sent.error
        finally:
            del sent  # its traceback holds this frame
    return sent


class Driver:
    """Runs the steps of one worker. Whichever thread carries it, they run in ``context``. The first of ``threads`` is
    the carrier. The worker is wanted when ``cancel`` is done; an errand looks whether it is when the worker rests.
    """

    __slots__ = (
        "__weakref__",
        "_cancelled",
        "_context",
        "_errand",
        "_helpers",
        "_name",
        "_rest",
        "_steps",
        "_threads",
        "_token",
    )

    def __init__(
        self,
        name: str,
        steps: Steps[None],
        context: Context,
        threads: list[Running],
        helpers: HelperPool,
        cancel: CancelToken,
    ) -> None:
        self._name = name
        self._cancelled = Standby(self.wanted)
        self._token = cancel
        self._steps: Any = steps
        self._context = context
        self._threads = threads
        self._helpers = helpers
        self._rest: dict[None, object] = {None: None}  # empty as long as the worker rests
        self._errand: Errand | None = None

    @property
    def rest(self) -> tuple[object, Call] | None:
        """While the worker rests: an object that is another one the next time, and the call that is made meanwhile. Any
        thread.
        """
        rest, errand = self._rest, self._errand
        return None if rest or errand is None else (rest, errand.call)

    def start(self) -> None:
        """Begin, on a thread of its own. Raises `RuntimeError` where none can be had."""
        _timer.start()
        carrier = Carrier(self)
        running = carrier.running = Running(carrier.begin, self._name)
        try:
            self._cancelled.begin(self._token.done._channel)  # type: ignore[arg-type]  # there is no other
            self._threads.insert(0, running)
            launch(running)
        except BaseException:
            if not running.begun:
                self._threads.clear()
            raise

    def settle(self) -> None:
        """The worker does not rest any more: what it has to do at its end may be to cancel. On the carrier."""
        self._cancelled.end()
        self._errand = None  # which may hold what holds this

    def forget(self) -> None:
        """In a forked child, where a call that returns must not go on with the worker: that goes on in the parent."""
        self._rest.setdefault(None, None)

    def wanted(self) -> None:
        """There is something for the worker: if it rests, another thread takes it over. On the timer thread."""
        rest = self._rest
        if rest:
            return  # the carrier looks by itself before the worker rests again
        carrier = Carrier(self)
        carrier._rest = rest  # before its thread runs: hit by an exception at once, it does not take itself for the one
        running = carrier.running = Running(functools.partial(carrier.take_over, rest), self._name)
        try:
            launch(running)
        except RuntimeError:
            _timer.call_at(monotonic() + AGAIN, self.wanted, self)

    def __repr__(self) -> str:
        return f"<Driver of {self._name}{'' if self._rest else ', which rests'}>"


class Carrier:
    """A thread, as far as it carries a worker."""

    __slots__ = ("_driver", "_mark", "_rest", "running")

    running: Running

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._mark = object()
        self._rest: dict[None, object] = {None: self._mark}

    # -- for errands ---------------------------------------------------------------------------------------------------

    @property
    def wanted(self) -> Callable[[], None]:
        """`Driver.wanted`."""
        return self._driver.wanted

    def leave(self) -> None:
        """The worker rests from now on, and may be taken over. Only for the thread that carries it. What the worker may
        have been wanted for until then is to be looked at again after this.
        """
        self._rest = self._driver._rest = {}

    def is_back(self) -> bool:
        """The worker does not rest any more; whether this thread is its carrier, and it was not taken over."""
        return self._rest.setdefault(None, self._mark) is self._mark

    def ask_for_relief(self) -> None:
        """The worker is wanted, and this thread, which has left, is about to do something that may take its time."""
        _timer.call_soon(self._driver.wanted)

    # -- the functions of the thread -----------------------------------------------------------------------------------

    def begin(self) -> None:
        """Carry the worker from its first step on."""
        try:
            self._insist(None)
        except BaseException as error:
            self._go_on(error)

    def take_over(self, rest: dict[None, object]) -> None:
        """Carry the worker on, if nobody else does."""
        driver = self._driver
        sent: Any = None
        try:
            self._rest = rest
            if not self.is_back():
                return
            before, driver._threads[0] = driver._threads[0], self.running
            driver._helpers.adopt(before)
            if driver._errand is not None:
                sent = driver._errand.taken_over()
            self._insist(sent)
        except BaseException as error:
            self._go_on(error)

    def _go_on(self, error: BaseException) -> None:
        """It was thrown into this thread outside of `_insist`, or before its first line: the worker gets it."""
        if not self._has_to_go_on():
            raise error
        self._insist(Thrown(error))

    def _insist(self, sent: Any) -> None:
        """`_carry`, and again where an exception was thrown into that: the worker comes to its end all the same."""
        try:
            try:
                self._carry(sent)
            except BaseException as error:
                if not self._has_to_go_on():
                    raise
                self._carry(Thrown(error))
        except BaseException as error:
            if not self._has_to_go_on():
                raise
            self._carry(Thrown(error))

    def _has_to_go_on(self) -> bool:
        # In this order: without the GIL, nobody may look at the frame of a generator that runs in another thread.
        return self.is_back() and self._driver._steps.gi_frame is not None

    def _carry(self, sent: Any) -> None:
        """Run the steps until they are over, or another thread carries the worker."""
        driver = self._driver
        if sent.__class__ is Thrown and not driver._steps.gi_suspended:  # before its first step: it cannot raise that
            driver._token.cancel(sent.error)
            sent = None
        run, send = driver._context.run, driver._steps.send
        while self.is_back():
            try:
                errand = driver._errand = run(send, sent)
            except StopIteration:
                return
            sent = errand.run(self)
