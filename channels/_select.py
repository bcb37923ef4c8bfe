"""Waiting for the first of several channel operations (Go's ``select``)."""

from __future__ import annotations

from _random import Random
from collections.abc import Iterator, Sequence
from typing import Any, Final, TypeAlias

from . import _fork
from ._channel import Channel, _cancelled, _look_at
from ._errors import ChannelClosed, WouldBlock
from ._park import NOTHING, Waiter, deadline_after
from ._rescue import PATIENCE, insist
from ._views import Receiver, Sending, SupportsDone

forked = False  # a copy of `_fork.forked`
_fork.looked_at.append(globals())

random: Final = Random().random  # without the module `random`, which takes twice as long to import as this one
_new = object.__new__  # without the arguments of `Selected`, which take time

Case: TypeAlias = "Channel[Any] | Receiver[Any] | Sending[Any] | None"


class Selected(Sequence[Any]):
    """The result of a `select`: case number ``index`` was carried out; for a receive, ``value`` is the received value.

    ``ok`` is False for a receive from a channel that is closed and drained; ``case`` is the object that was passed. A
    `Selected` unpacks, compares and matches like a tuple of these four.
    """

    # Not a NamedTuple: making one takes twice as long, a tenth of a select.
    __slots__ = __match_args__ = ("index", "value", "ok", "case")

    index: int  # type: ignore[assignment]  # not Sequence.index
    value: Any
    ok: bool
    case: Any

    def __init__(self, index: int, value: Any, ok: bool, case: Any) -> None:
        self.index = index
        self.value = value
        self.ok = ok
        self.case = case

    def __iter__(self) -> Iterator[Any]:
        return iter((self.index, self.value, self.ok, self.case))

    def __len__(self) -> int:
        return 4

    def __getitem__(self, key: Any) -> Any:
        return tuple(self)[key]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, (Selected, tuple)) and tuple(self) == tuple(other)

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return f"Selected(index={self.index}, value={self.value!r}, ok={self.ok}, case={self.case!r})"


def select(
    *cases: Case, timeout: float | None = None, block: bool = True, cancel: SupportsDone | None = None
) -> Selected:
    """Carry out one of ``cases``: the first that becomes ready, or one at random if several are.

    A case is a receiver or channel (a receive), ``channel.sending(value)`` (a send), or ``None`` (never ready, as Go's
    nil channel). A receive from a channel that is closed and drained is ready, with ``ok`` False. If a send on a closed
    channel is chosen, it raises `ChannelClosed`. A select that sends and receives on the same channel never receives
    its own value.

    With ``block=False`` (Go's ``default``) the select does not wait: it raises `WouldBlock` if there was a moment at
    which no case was ready. After ``timeout`` seconds it raises `TimeoutError`; once ``cancel`` is done, `Cancelled`.
    If it raises one of these, no case was carried out. Without a case that can become ready, a timeout or a cancel, it
    waits for ever, as in Go.

    An asynchronous exception (Ctrl-C) loses no received value; whether a send happened is then not known. In a signal
    handler or finalizer that interrupted an operation on one of these channels, and if no other case is ready, a select
    raises `WouldBlock` with ``block=False``, else `RuntimeError`.
    """
    if timeout is not cancel:  # type: ignore[comparison-overlap]  # in one test: not both None
        if timeout is not None:
            deadline = deadline_after(timeout)
            if not block:
                raise ValueError("select(block=False) does not wait: leave out timeout=, or block=False")
        if cancel is not None:
            _look_at(cancel)

    # One look without a lock, then one try under one: most selects end here.
    index = -1
    ready: Any = None  # case number `first`, which looks ready
    several: list[int] | None = None  # the numbers of those that do, where they are several
    case: Any
    channel: Any
    for case in cases:
        index += 1
        if type(case) is Channel:
            if not (case._buffer or case._senders or case._closed):
                continue
        elif type(case) is Receiver:
            channel = case._channel
            if not (channel._buffer or channel._senders or channel._closed):
                continue
        elif type(case) is Sending:
            channel = case._channel
            if not (channel._receivers or channel._closed or len(channel._buffer) < channel._capacity):
                continue
        elif case is None or not _looks_ready(case):
            continue
        if ready is None:
            ready = case
            first = index
        elif several is None:
            several = [first, index]
        else:
            several.append(index)
    value: Any = NOTHING
    while ready is not None:
        if several:
            first = several.pop(int(random() * len(several)))
            ready = cases[first]
        channel, plain = ready, block
        if type(ready) is not Channel:
            channel = ready._channel
            plain = block and type(ready) is Receiver and type(channel) is Channel
        try:
            if plain and not (forked or (lock := channel._lock)._is_owned()):
                # Channel.recv, spelt out as far as it needs no waiting: the way of most values.
                lock.acquire()
                buffer = channel._buffer
                if buffer:
                    value = buffer[0]
                    buffer.popleft()
                    if channel._senders:
                        channel._refill()
                elif channel._senders:
                    value = channel._take()
                lock.release()
                if channel._attention:
                    channel._attend()
            if value is NOTHING:  # another kind of case, a closed channel, or somebody was faster
                if type(ready) is not Sending:
                    value = channel._try_take()
                elif channel._try_put(ready.value):
                    return Selected(first, None, True, ready)
            if value is not NOTHING:
                selected = _new(Selected)
                selected.index = first
                selected.value = value
                selected.ok = True
                selected.case = ready
                return selected
        except ChannelClosed:
            if type(ready) is Sending:
                raise
            return Selected(first, None, False, ready)
        except BaseException:
            try:
                channel._let_go(None, value)
            except RecursionError:
                if channel._lock._is_owned():
                    if value is not NOTHING:
                        channel._buffer.appendleft(value)
                    channel._lock.release()
            except BaseException:
                channel._let_go(None, value)
            raise
        if not several:
            break

    channels = [None if case is None else _channel_of(case) for case in cases]
    if not block:
        return _decide(cases, channels)
    if timeout == 0:
        try:
            return _decide(cases, channels)
        except WouldBlock:
            raise TimeoutError("select: no case was ready") from None
    while True:
        done = _park(cases, channels, None if timeout is None else deadline, timeout, cancel)
        if done is not None:
            return done


def _looks_ready(case: Any) -> Any:
    """Whether a receive looks ready: from an instance of a subclass, or through a receiver of another type."""
    channel = _channel_of(case)
    return channel._buffer or channel._senders or channel._closed


def _channel_of(case: Any) -> Channel[Any]:
    try:
        return case._channel  # type: ignore[no-any-return]
    except AttributeError:
        raise TypeError(
            f"a case of select must be a receiver or channel, channel.sending(value) or None, not {case!r}"
        ) from None


def _decide(cases: tuple[Any, ...], channels: list[Channel[Any] | None]) -> Selected:
    """Go's ``default``: hold all the channels, locked in one order, and judge one moment."""
    held = sorted({id(channel): channel for channel in channels if channel is not None}.values(), key=id)
    for one in held:
        if forked and one._epoch is not _fork.epoch:
            one._refresh()
    if any(one._lock._is_owned() for one in held):
        raise WouldBlock("select in a signal handler or finalizer that interrupted an operation on one of its channels")
    taken: list[Any] = []  # a channel and the value that left it
    try:
        done = _judge(held, cases, channels, taken)
        _release(held)
    except BaseException:
        try:
            insist(_release, held)
        except RecursionError:
            for one in held:
                if one._lock._is_owned():
                    one._lock.release()
        except BaseException:
            insist(_release, held)
        if taken:
            channel, value = taken
            try:
                channel._let_go(None, value)
            except BaseException:
                channel._let_go(None, value)
        raise
    if done is None:
        raise WouldBlock("select: no case is ready")
    return done


# Loops stand in functions of their own where there is a ``try`` around them: CPython may leave a jump back out of it.


def _judge(
    held: list[Channel[Any]], cases: tuple[Any, ...], channels: list[Channel[Any] | None], taken: list[Any]
) -> Selected | None:
    """Lock them all, and carry out a case that is ready. The locks are for the caller to release."""
    for one in held:
        lock = one._lock
        if not (lock.acquire(False) or lock.acquire(True, PATIENCE)):
            return None
    for index in sorted(range(len(cases)), key=lambda _: random()):
        case = cases[index]
        channel = channels[index]
        if channel is None:
            continue
        if case.__class__ is Sending:
            if channel._closed:
                raise ChannelClosed(f"send on {channel!r}")
            if channel._put(case.value):
                return Selected(index, None, True, case)
            continue
        value = channel._take()
        if value is not NOTHING:
            taken += (channel, value)
            return Selected(index, value, True, case)
        if channel._closed:
            return Selected(index, None, False, case)
    return None


def _release(channels: list[Channel[Any]]) -> None:
    for channel in channels:
        if channel._lock._is_owned():
            channel._lock.release()
        if channel._attention:
            channel._attend()


def _park(
    cases: tuple[Any, ...],
    channels: list[Channel[Any] | None],
    deadline: float | None,
    timeout: float | None,
    cancel: SupportsDone | None,
) -> Selected | None:
    """Queue on every channel and wait for the first to serve one case. None: begin again."""
    waiter = Waiter([None])
    entries: list[list[Any]] = []
    order: Any = range(len(cases))
    if len({id(channel) for channel in channels}) < len(cases):
        order = _one_each(cases, channels)
    try:
        if not _queue_up(waiter, entries, order, cases, channels):
            _forget(entries, waiter)
            return None
        if cancel is not None and not waiter.done:
            cancel.done._channel._await_close(waiter)
        if not waiter.done and not waiter.wait(deadline, "select", cases):
            waiter.withdraw()
        if entries:
            _forget(entries, waiter)
        served = waiter.channel
        if served is None:
            raise TimeoutError(f"select: no case was ready within {timeout} s")
        index = waiter.index
        if index < 0:
            if cancel is not None and served is cancel.done._channel:
                raise _cancelled(cancel)
            index = _receive_of(served, order, cases, channels)
            done = Selected(index, waiter.value if waiter.ok else None, waiter.ok, cases[index])
            waiter.channel = None
            waiter.value = NOTHING
            return done
        if not waiter.ok:
            raise ChannelClosed(f"send on {served!r}")
        waiter.channel = None
        return Selected(index, None, True, cases[index])
    except BaseException:
        try:
            insist(_let_go, waiter, entries)
        except BaseException:
            insist(_let_go, waiter, entries)
        raise


def _queue_up(
    waiter: Waiter,
    entries: list[list[Any]],
    order: Any,
    cases: tuple[Any, ...],
    channels: list[Channel[Any] | None],
) -> bool:
    """Queue on one channel after the other, until one serves. False: a partner was lost to another channel."""
    for index in order:
        channel = channels[index]
        if channel is None:
            continue
        entry = None
        if cases[index].__class__ is Sending:
            entry = [waiter, cases[index].value, index]
            entries.append(entry)
        if not channel._enlist(waiter, entry):
            return False
        if waiter.done:
            break
    return True


def _one_each(cases: tuple[Any, ...], channels: list[Channel[Any] | None]) -> list[int]:
    """Of the cases that receive from one channel one, and of those that send on it: any of them may be carried out.

    All of them would make a queue that each looks through.
    """
    chosen: dict[tuple[int, bool], int] = {}
    for index in sorted(range(len(cases)), key=lambda _: random()):
        if channels[index] is not None:
            chosen.setdefault((id(channels[index]), cases[index].__class__ is Sending), index)
    return list(chosen.values())


def _receive_of(channel: Channel[Any], order: Any, cases: tuple[Any, ...], channels: list[Channel[Any] | None]) -> int:
    """The case that was queued to receive from ``channel``."""
    for index in order:
        if channels[index] is channel and cases[index].__class__ is not Sending:
            return int(index)
    raise AssertionError(f"{channel!r} served a select that does not receive from it")


def _forget(entries: list[list[Any]], waiter: Waiter) -> None:
    """Dead entries may lie in queues for a while: their values shall not. (Who serves one may not have read it yet.)"""
    for entry in entries:
        if waiter.channel is None or entry[2] != waiter.index:
            entry[1] = None


def _let_go(waiter: Waiter, entries: list[list[Any]]) -> None:
    """After an exception: withdraw, and put back the value that was received."""
    waiter.withdraw()
    if waiter.channel is not None and waiter.value is not NOTHING:
        waiter.channel._put_back(waiter)
    _forget(entries, waiter)
    waiter.channel = None
