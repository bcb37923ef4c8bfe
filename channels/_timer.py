"""Timers: all of a process on one thread.

Everything reaches that thread through one `SimpleQueue`, whose ``put`` is safe in finalizers and signal handlers, so
there is no lock here. The thread starts with the first timer, is a daemon, and serves until the interpreter's very end:
functions of ``atexit`` may wait for timers too. (In a subinterpreter, which aborts the process if a thread is left when
it ends, it goes with `atexit`.) In a forked child the timers go on, on a thread of its own.

No function of a user runs on it: they run apart, on threads that are started as needed and end when idle.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import itertools
import os
import threading
from _heapq import heapify, heappop, heappush  # in C: `heapq`, `queue` and `weakref` take longer to import than this
from _queue import Empty, SimpleQueue
from _weakref import ref
from collections.abc import Callable
from typing import Any, ClassVar, Final

from ._channel import Channel
from ._errors import ChannelClosed, WouldBlock
from ._lazy import _module, lazy_logger
from ._park import deadline_after, monotonic, refuse_greenlets
from ._views import Receiver

THREAD_NAME = "channels-timer"
APART_NAME = "channels-callback"
IDLE: Final = 1.0  # seconds after which a thread for callbacks ends
GOODBYE: Final = 2.0  # seconds that the threads of a subinterpreter have to end

_logger = lazy_logger("channels")
_order = itertools.count()


class Timer:
    """A call at a deadline. Made by `call_at`."""

    __slots__ = ("_function", "_key", "_owner", "deadline")

    #: Those that have neither fired nor been cancelled. Kept by the class: weak references call back until the very end
    #: of the interpreter, when the globals of this module are gone.
    pending: ClassVar[set[Timer]] = set()

    def __init__(self, deadline: float, function: Callable[[], object], owner: object = None) -> None:
        self.deadline = deadline
        self._function: Callable[[], object] | None = function
        self._key = (deadline, next(_order))
        # The reference leads back here by its callback: whoever drops the function drops it too.
        self._owner: ref[object] | None = None if owner is None else ref(owner, self._disown)

    def __lt__(self, other: Timer) -> bool:
        return self._key < other._key

    def cancel(self, _: object = None) -> None:
        """Let go of the function; it will not be called unless that has begun."""
        self._function = self._owner = None
        self.pending.discard(self)

    _disown = cancel

    def take(self) -> Callable[[], object] | None:
        """The function, for the one who calls it now; None if the timer is cancelled."""
        function = self._function
        self.cancel()
        return function

    def __repr__(self) -> str:
        return f"<Timer in {self.deadline - monotonic():.3f} s>" if self._function else "<Timer, over>"


class _Clock:
    """The thread, and the queue that leads to it."""

    def __init__(self) -> None:
        self._over = False
        self._reset()
        atexit.register(self._at_exit)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._forked)

    def _reset(self) -> None:
        self._inbox: SimpleQueue[Timer | Callable[[], object] | None] = SimpleQueue()
        self._starting = threading.RLock()
        self._thread: threading.Thread | None = None
        self._idle: list[_Caller] = []

    def _forked(self) -> None:
        self._reset()
        timers = list(Timer.pending)
        for timer in timers:
            self._inbox.put(timer)
        if timers:
            with contextlib.suppress(RuntimeError):  # no thread to be had now: the next timer starts one
                self.start()

    def start(self) -> None:
        if self._thread is None or self._over:
            with self._starting:
                if self._over:
                    raise RuntimeError("a timer cannot be started any more: the interpreter is exiting")
                if self._thread is None:
                    refuse_greenlets("a timer (after, tick, the deadline of a token)")
                    # Before it is started, which takes a while: finalizers may run meanwhile, and have timers too.
                    inbox = self._inbox
                    self._thread = threading.Thread(target=self._run, args=(inbox,), name=THREAD_NAME, daemon=True)
                    try:
                        self._thread.start()
                    except BaseException:  # should it run all the same, the next one will share its inbox
                        self._thread = None
                        raise

    def put(self, item: Timer | Callable[[], object]) -> None:
        self._inbox.put(item)

    def call_apart(self, function: Callable[[], object]) -> None:
        """On the timer thread: have another one call ``function``."""
        try:
            self._idle.pop().inbox.put(function)
        except IndexError:
            try:
                _Caller(self._idle, function)
            except RuntimeError:  # there is no other: late is better than never
                _call(function)

    def _at_exit(self) -> None:
        if self._thread is None or not _in_subinterpreter():
            return
        self._over = True
        self._inbox.put(None)
        deadline = monotonic() + GOODBYE
        self._thread.join(GOODBYE)
        while self._idle:
            caller = self._idle.pop()
            caller.inbox.put(None)
            caller.thread.join(max(deadline - monotonic(), 0))

    @staticmethod
    def _run(inbox: SimpleQueue[Timer | Callable[[], object] | None]) -> None:
        heap: list[Timer] = []
        tidy_at = 64
        while True:
            try:
                wait = min(max(heap[0].deadline - monotonic(), 0), threading.TIMEOUT_MAX) if heap else None
                item = inbox.get(timeout=wait)
            except Empty:
                pass
            else:
                if item is None:
                    return
                if isinstance(item, Timer):
                    heappush(heap, item)
                    if len(heap) >= tidy_at:  # cancelled timers with far deadlines must not pile up
                        heap = [timer for timer in heap if timer._function is not None]
                        heapify(heap)
                        tidy_at = 2 * len(heap) + 64
                else:
                    _call(item)
                item = None
            while heap and heap[0].deadline <= monotonic():
                function = heappop(heap).take()
                if function is not None:
                    _call(function)
                function = None


class _Caller:
    """A thread that calls functions which may block: its first, and what it gets while it is in the list of the idle.

    Whoever takes it out of the list, where it puts itself, has it: the clock to give it a function, or itself to end.
    """

    __slots__ = ("_idle", "inbox", "thread")

    def __init__(self, idle: list[_Caller], function: Callable[[], object]) -> None:
        self._idle = idle
        self.inbox: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self.inbox.put(function)
        self.thread = threading.Thread(target=self._run, name=APART_NAME, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        while True:
            try:
                function = self.inbox.get(timeout=IDLE)
            except Empty:
                try:
                    self._idle.remove(self)
                    return
                except ValueError:  # the clock was faster
                    function = self.inbox.get()
            if function is None:
                return
            _call(function)
            function = None
            self._idle.append(self)


def _in_subinterpreter() -> bool:
    for name in ("_interpreters", "_xxsubinterpreters"):  # its name from 3.13 on, and before
        with contextlib.suppress(Exception):
            module = _module(name)
            return bool(module.get_current() != module.get_main())
    return False


def _call(function: Callable[[], object]) -> None:
    try:
        function()
    except BaseException:  # also SystemExit: every other timer of the process hangs on this thread
        _logger.exception("a timer's function failed: %r", function)


_clock = _Clock()


def call_at(deadline: float, function: Callable[[], object], owner: object = None) -> Timer:
    """Call ``function`` on the timer thread at ``deadline`` (of `time.monotonic`), unless ``owner`` is gone by then.

    It must be quick and never block: it delays every timer. What may, it gives to `call_apart`.
    """
    timer = Timer(deadline, function, owner)
    _clock.start()
    Timer.pending.add(timer)
    _clock.put(timer)
    return timer


def call_soon(function: Callable[[], object]) -> None:
    """Call ``function`` on the timer thread. For finalizers: takes no lock and starts no thread (see `start`)."""
    _clock.put(function)


def ringing(function: Callable[[], object]) -> Callable[[], object]:
    """`call_soon` for ``function``, as a function that is C all through: no exception comes into the middle of it."""
    return functools.partial(_clock._inbox.put, function)


def call_apart(function: Callable[[], object]) -> None:
    """Call ``function``, which may block, on a thread for callbacks. On the timer thread only."""
    _clock.call_apart(function)


def start() -> None:
    """Start the timer thread, so that what `call_soon` is given will run."""
    _clock.start()


def after(seconds: float) -> Receiver[float]:
    """A channel that receives one value, the time of `time.monotonic`, ``seconds`` from now (Go's ``time.After``).

    The channel is not closed afterwards. A timer whose receiver is no longer referenced is dropped.
    """
    deadline = _deadline("after", seconds)
    channel: Channel[float] = Channel(1, name=f"after({seconds})")
    if deadline is not None:
        call_at(deadline, _Fire(channel), channel)
    return channel.receiver


def tick(seconds: float) -> Receiver[float]:
    """A channel that receives a value every ``seconds`` (Go's ``time.Tick``). Ticks that nobody takes are dropped.

    It ticks until the receiver is no longer referenced. ``seconds`` has to be more than 0.
    """
    deadline = _deadline("tick", seconds)
    if seconds <= 0:
        raise ValueError(f"tick takes a number of seconds, more than 0, not {seconds!r:.200}")
    channel: Channel[float] = Channel(1, name=f"tick({seconds})")
    if deadline is not None:
        call_at(deadline, _Fire(channel, deadline, seconds), channel)
    return channel.receiver


def _deadline(timer: str, seconds: float) -> float | None:
    if seconds is None:
        raise TypeError(f"{timer} takes a number of seconds, not None")
    try:
        return deadline_after(seconds)
    except (TypeError, ValueError) as error:  # which speaks of a timeout
        said = f"{timer} takes a number of seconds, 0 or more, not {seconds!r:.200}"
        raise type(error)(said) from None


class _Fire:
    """Sends the time to a channel, if somebody still holds it; and again, every ``period`` seconds."""

    __slots__ = ("_channel", "_deadline", "_period")

    def __init__(self, channel: Channel[float], deadline: float = 0.0, period: float | None = None) -> None:
        self._channel: ref[Channel[float]] = ref(channel)
        self._deadline = deadline
        self._period = period

    def __call__(self) -> None:
        channel: Any = self._channel()
        if channel is None:
            return
        now = monotonic()
        with contextlib.suppress(WouldBlock, ChannelClosed):
            channel.try_send(now)
        if self._period is not None:
            missed = max(now - self._deadline, 0.0) // self._period
            self._deadline += (missed + 1) * self._period
            call_at(self._deadline, self, channel)
