"""`Runs`: many sessions, at most so many runs at once, their results in the order in which the runs end.

Invariant: a session that was taken from the iterator is in ``live``, or its result was handed over. So at most `limit`
sessions are under way, results included, however slow the consumer is; and closing has to look at ``live`` only.

All of it happens in the consumer's thread, inside `next`: sessions are taken, streams are started, their questions are
answered. The streams go on by themselves while the consumer is busy, because they are quiet (`runtime/stream/_quiet`).
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Generator, Iterable, Iterator
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeAlias, TypeVar

from channels import Channel, Receiver, merge
from channels._lazy import lazy, lazy_logger

from .._checks import check, check_flags, check_function, check_number
from .._errors import SessionBusy, SessionChanged, StillWaiting, StoreError, StreamStuck
from .._public import not_copied, publish
from ..agent._result import RunResult
from ..events import StreamStopped
from ..session._session import Session
from ..stream._on_request import Answering, OnRequest, RequestEvent, ask, check_on_request
from ..stream._private_events import ConsumerCall
from ..usage import Usage
from ._progress import Progress, shown

if TYPE_CHECKING:
    import inspect
else:
    inspect = lazy("inspect")

T = TypeVar("T")
Sessions: TypeAlias = "Iterable[Session | str] | Channel[Any] | Receiver[Any]"
#: What keeps one session from being run, and says nothing about the others.
REFUSED = (SessionBusy, SessionChanged, StillWaiting, StoreError, LookupError, ValueError)

_logger = lazy_logger("runtime")


class Stream(Answering, Protocol):
    """A run that has started. It is a receiver of events, too."""

    def cancel(self, cause: object = None) -> None:
        """End it, without waiting."""

    def close(self) -> None:
        """End it, and wait for that."""

    def _close(self, waited: float) -> None:
        """`close`, by somebody who has waited so many seconds since it cancelled it."""

    def _outcome(self) -> RunResult[Any]:
        """Wait for its end. A failure is in the result."""


class Runs(Generic[T]):
    """The results of many runs, as `Runtime.map` returns them: ``(session, result)`` pairs in the order in which the
    runs end.

    Iterate over it, in one thread. Nothing is started before the first result is asked for. Leaving its ``with`` block,
    `close`, an exception or Ctrl-C while it waits, and dropping it (as ``break`` does) cancel the runs that are under
    way, and wait for their end.
    """

    def __init__(
        self,
        start: Callable[[Session, Any], Stream],
        sessions: Sessions,
        *,
        limit: int,
        on_request: OnRequest | None,
        record: Callable[[Session], Any] | None,
        progress: bool,
    ) -> None:
        check_number("limit", limit, "runs at once", least=1, whole=True)
        if isinstance(sessions, (str, bytes, Session)) or not isinstance(sessions, (Iterable, Channel, Receiver)):
            raise TypeError(f"map takes many sessions or prompts, such as a list of them, not {sessions!r:.200}")
        check_on_request(on_request)
        if record is not None:
            wanted = "that gets a session and returns the file of its run, as lambda session: f'{session.id}.jsonl'"
            check_function("record", record, wanted)
        check_flags(progress=progress)
        self._results = _results(start, sessions, limit, on_request, record, shown(sessions) if progress else None)

    def __iter__(self) -> Runs[T]:
        return self

    def __next__(self) -> tuple[Session, RunResult[T]]:
        self._refuse_if_running()
        return next(self._results)

    def _refuse_if_running(self) -> None:
        if inspect.getgeneratorstate(self._results) == inspect.GEN_RUNNING:
            raise RuntimeError(
                "these runs are being iterated over just now, by another thread or around this function: one thread"
                " iterates, and ends them by leaving its loop; to end them from elsewhere, close the runtime"
            )

    def close(self) -> None:
        """Cancel the runs that are under way, and wait for their end, for a few seconds at most. What does not end by
        then is logged. Calling it twice is harmless. Raises `RuntimeError` while a result is being waited for.
        """
        self._refuse_if_running()
        self._results.close()

    __reduce_ex__ = not_copied("pass the object itself to the thread that iterates")

    def __repr__(self) -> str:
        state = {"GEN_CREATED": "not started", "GEN_CLOSED": "ended"}
        return f"<Runs {state.get(inspect.getgeneratorstate(self._results), 'under way')}>"

    def __enter__(self) -> Runs[T]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _results(
    start: Callable[[Session, Any], Stream],
    sessions: Sessions,
    limit: int,
    on_request: OnRequest | None,
    record: Callable[[Session], Any] | None,
    progress: Progress | None,
) -> Generator[tuple[Session, RunResult[Any]], None, None]:
    live: dict[int, tuple[Session, Stream]] = {}  # by the identity of the stream
    begin = functools.partial(_begin, start, record, live)
    try:
        with progress or contextlib.nullcontext():
            for session, result in _ended(begin, sessions, limit, on_request, live):
                if progress is not None:
                    progress.ended(result)
                yield session, result
    finally:
        if live:
            _end(live)


def _ended(
    begin: Callable[[Any], tuple[Session, RunResult[Any]] | None],
    sessions: Sessions,
    limit: int,
    on_request: OnRequest | None,
    live: dict[int, tuple[Session, Stream]],
) -> Iterator[tuple[Session, RunResult[Any]]]:
    waited_for = isinstance(sessions, (Channel, Receiver))  # for the next session as for the streams
    more: Iterator[Any] | None = None if waited_for else iter(sessions)
    while True:
        while more is not None and len(live) < limit:
            try:
                item = next(more)
            except StopIteration:
                more = None
                break
            if (refused := begin(item)) is not None:
                yield refused
        open_ = waited_for and len(live) < limit
        streams = list(live.values())
        receivers: list[Any] = [stream for _, stream in streams]
        # A merge has fixed members. Making one is cheap beside a run, and it keeps nothing that it has not delivered.
        for index, value in merge(*receivers, *((sessions,) if open_ else ())):
            if index == len(streams):
                if (refused := begin(value)) is not None:
                    yield refused
                break
            session, stream = streams[index]
            if isinstance(value, RequestEvent):
                if on_request is not None:
                    ask(stream, value, on_request)
            elif isinstance(value, ConsumerCall):
                value.run()
            elif isinstance(value, StreamStopped):
                result = stream._outcome()
                del live[id(stream)]
                stream.close()
                yield session, result
                break
        else:
            if not live:
                return
            raise RuntimeError("streams that this process does not own: they belong to the one that was forked")


def _begin(
    start: Callable[[Session, Any], Stream],
    record: Callable[[Session], Any] | None,
    live: dict[int, tuple[Session, Stream]],
    item: Any,
) -> tuple[Session, RunResult[Any]] | None:
    """Start a run; its result, if it could not be started."""
    if isinstance(item, str):
        item = Session.from_user(item)
    check("each item of map", item, Session, "a Session or a prompt")
    file = None if record is None else record(item)  # whatever that raises is not the session's fault
    try:
        stream = start(item, file)
    except REFUSED as error:
        return item, RunResult("", (), Usage(), "error", error=error)
    live[id(stream)] = item, stream
    return None


def _end(live: dict[int, tuple[Session, Stream]]) -> None:
    """Cancel all, so that they end side by side; then wait for each. Ctrl-C meanwhile does not leave the rest."""
    began = monotonic()
    with contextlib.ExitStack() as left:
        for _, stream in live.values():
            left.callback(_close, stream, began)
        for _, stream in live.values():
            stream.cancel("the runs were closed")
        live.clear()


def _close(stream: Stream, began: float) -> None:
    try:
        stream._close(monotonic() - began)  # or many that are stuck would be waited for one after the other
    except StreamStuck as stuck:
        _logger.warning("%r: %s", stream, stuck)


publish("runtime", globals(), ["Runs"])  # here: `runtime` imports this file when somebody asks for it
