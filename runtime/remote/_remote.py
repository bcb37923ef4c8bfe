"""`Remote`: agents that run on the workers of an engine."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Mapping
from types import NoneType, TracebackType
from typing import TYPE_CHECKING, Any, TypeVar, overload

from channels.net import ConnectionLost, Listener
from channels.net._tls import checked as checked_context

from .._checks import check, check_flags, is_number
from .._dataclasses import asdict
from .._public import not_copied
from ..agent._budget import Budget
from ..agent._output import Output
from ..agent._result import RunResult
from ..batch._runs import Runs, Sessions
from ..execution._calls import refuse_on_the_loop
from ..recording._recorder import opened
from ..recording._recording import Recording, RecordOf
from ..session._session import Session
from ..stream._event_stream import IN_A_COROUTINE
from ..stream._on_request import OnRequest, RequestEvent, ask, check_on_request
from ._record import PIECES, Writing
from ._run import RemoteRun
from ._stream import RemoteStream
from ._target import check_name, check_store, name_of
from ._wire import REQUESTS, VERSION, job_of
from ._work import carrier, work

if TYPE_CHECKING:
    from ssl import SSLContext

T = TypeVar("T")


class Remote:
    """Runs the agent ``target`` on the workers of an engine, one job a run. ``submit(function, spec)`` is the engine's:
    ``submit`` of a `concurrent.futures.Executor` or of a Dask ``Client``, or a function of yours. It lets a worker call
    ``function(spec)`` once; ``function`` is found by its name, ``spec`` is JSON.

    ``target`` is ``package.module:name`` of an `Agent`, a `Team`, a `Runtime`, or a function that returns one; the
    worker imports it. The worker opens a connection to this process for each run, over which all else goes: the
    session, the events, answers, a cancel.

    - ``store`` is ``sqlite:/path`` or ``postgresql://...``, which the worker opens. Without one, the session comes back
      when the run has ended, and what a lost worker had added to it is lost.
    - ``settings`` are those of the `Runtime` in the worker, such as ``{"answer_timeout": 60}``.
    - ``address`` is where this process listens, and what workers connect to: this machine only, unless told otherwise.
      Where workers know it under another name, ``advertise`` is that name.
    - ``ssl``, a server's `ssl.SSLContext` with a certificate for the name that workers connect to, encrypts the
      connections. ``worker_ssl`` is ``package.module:name`` of a client's context, or of a function that returns one,
      which the worker imports; without it, the worker trusts the authorities that its system trusts.
    - ``capacity`` is the number of events that are on their way or wait for the consumer.
    - ``start_timeout``: seconds after which a run that no worker has begun fails (None: never). As long as another run
      of this `Remote` is under way, a run may wait behind it, and does not fail.
    - ``heartbeat``: seconds after which a worker that nothing is heard of is lost, and a caller for the worker.
    - ``grace``: seconds that a worker may take to end a cancelled run, before it is cut off.

    A job is run at most once: its key is spent by the first worker that connects, so an engine that runs it again is
    refused before the agent is called. All methods may be called from any thread.
    """

    def __init__(
        self,
        submit: Callable[[Callable[[Mapping[str, Any]], dict[str, Any]], dict[str, Any]], Any],
        target: str,
        *,
        store: str | None = None,
        settings: Mapping[str, Any] | None = None,
        address: str | tuple[str, int] = "127.0.0.1",
        advertise: str | None = None,
        ssl: SSLContext | None = None,
        worker_ssl: str | None = None,
        capacity: int = 128,
        start_timeout: float | None = 60.0,
        heartbeat: float = 30.0,
        grace: float = 2.0,
    ) -> None:
        check("submit", submit, Callable, "a function, such as pool.submit")  # type: ignore[arg-type]
        check("the agent", target, str, "named, as 'package.module:agent'")
        check_name(target)
        check("store", store, (str, NoneType), "named, as 'sqlite:/path/to/the/file'")
        if store is not None:
            check_store(store)
        for name, value in (("start_timeout", start_timeout), ("heartbeat", heartbeat), ("grace", grace)):
            if not is_number(value, above=0) and not (name == "start_timeout" and value is None):
                raise ValueError(f"{name} must be a number of seconds, more than 0, not {value!r:.200}")
        if not is_number(capacity, least=1, whole=True):
            raise ValueError(f"capacity must be a whole number of events, 1 or more, not {capacity!r:.200}")
        check("settings", settings, (Mapping, NoneType), "a mapping, such as {'answer_timeout': 60}")
        check("advertise", advertise, (str, NoneType), "the name of this machine, or None")
        if not isinstance(address, str) and not (
            isinstance(address, (tuple, list))
            and len(address) == 2
            and isinstance(address[0], str)
            and is_number(address[1], least=0, whole=True)
        ):
            raise TypeError(f"address must be a name, or a pair such as ('127.0.0.1', 0), not {address!r:.200}")
        host = address if isinstance(address, str) else address[0]
        if host in ("", "0.0.0.0", "::") and advertise is None:
            raise ValueError(
                f"address={host!r} is every address of this machine: say with advertise= which of them workers are to"
                " connect to"
            )
        if ssl is not None:
            checked_context(ssl, server_side=True)
        check("worker_ssl", worker_ssl, (str, NoneType), "named, as 'package.module:context'")
        if worker_ssl is not None:
            check_name(worker_ssl)
            if ssl is None:
                raise ValueError("worker_ssl= is what workers connect with: it needs ssl=, the SSLContext of this side")
        self._ssl = ssl
        self._worker_ssl = worker_ssl
        self._submit = submit
        self._target = target
        self._store = store
        self._settings = dict(settings or {})
        self._address = (address, 0) if isinstance(address, str) else address
        self._advertise = advertise
        self._capacity = capacity
        self._start_timeout = start_timeout
        self._heartbeat = heartbeat
        self._grace = grace
        self._closed = False
        self._runs: weakref.WeakSet[RemoteRun] = weakref.WeakSet()
        self._lock = threading.RLock()  # of the set above; a signal handler may close what its thread has just locked

    def run_stream(
        self,
        session: Session,
        *,
        interactive: bool = True,
        budget: Budget | None = None,
        output_type: Any = None,
        record: Recording | str | os.PathLike[str] | None = None,
    ) -> RemoteStream:
        """Submit a run of the agent on ``session``, and return its events, to iterate over, at once.

        The arguments are those of `Runtime.run_stream`; ``output_type`` is a class that the worker can import, and the
        record is written here, as far as it has come, without secrets that the worker knows to be some: a `Recording`
        with ``redact=`` is refused. The session is lent to the run, and is changed when it has ended. Raises
        `SessionBusy`, `OSError` if the record cannot be written, and what ``submit`` raises.
        Whatever goes wrong afterwards is an `Error` in the stream: ``not_started`` if no worker has begun the run,
        ``worker_lost`` if it was lost in the middle.
        """
        settings = _checked(interactive, budget, output_type)
        output = None if output_type is None else Output(output_type)
        return self._open(session, settings, output, _recording(record))

    def _open(
        self,
        session: Session,
        settings: Mapping[str, Any],
        output: Output | None,
        recording: Recording | None = None,
    ) -> RemoteStream:
        if self._closed:
            raise RuntimeError("this Remote is closed")
        check("what to run", session, Session, "a Session, such as Session.from_user('hello')")
        job = {**settings, "carrier": carrier()}
        log = session.lease()
        writing: Writing | None = None
        try:
            if recording is not None:  # not before the lease: it may be the file of the stream that has it
                writing = Writing(opened(recording.path))
            run = RemoteRun(session, log, self._grace, writing)
            listener = Listener(
                self._address,
                heartbeat=self._heartbeat,
                codecs=run.codecs,
                capacities=[(4, self._capacity), (REQUESTS, REQUESTS), (1, PIECES)][: len(run.codecs)],
                ssl=self._ssl,
                name="lockgate-remote",
            )
        except BaseException:
            log.release()
            if writing is not None:
                writing.discard()
            raise
        try:
            link = run.link = listener.link(self._start_timeout, self._is_busy)
            lane = link.lanes[0]
            lane.out.try_send(lane.framed(job_of(session, **job)))
            if writing is not None:
                writing.begin(link.lanes[2].into)
            link.start()
        except BaseException as error:
            listener.close()
            if run.link is not None:
                run.link.abort(ConnectionLost("it could not be started"))  # Ctrl-C may have come as its thread began
                run.link.discard(error)
            if writing is not None:
                writing.discard()
            log.release()
            raise
        try:
            with self._lock:
                self._runs.add(run)
            if self._closed:  # in the meantime: `close` may have come before this run was there to be cancelled
                raise RuntimeError("this Remote is closed")
            spec = {
                "version": VERSION,
                "address": [self._advertise or listener.address[0], listener.address[1]],
                "key": listener.key,
                "timeout": self._heartbeat,
                "target": self._target,
                "store": self._store,
                "settings": self._settings,
                "ssl": None if self._ssl is None else self._worker_ssl or "",
                "record": recording is not None,
            }
            run.job = self._submit(work, spec)
            stream = RemoteStream(run, output)
            when_done = getattr(run.job, "add_done_callback", None)
            if callable(when_done):
                when_done(run.job_ended)
        except BaseException as error:
            run.cancel(error)
            run.join(self._grace)
            raise
        return stream

    def _is_busy(self) -> bool:
        """Whether a run is under way."""
        with self._lock:
            runs = list(self._runs)
        return any(run.reason is None and run.link is not None and run.link.established for run in runs)

    @overload
    def run(
        self,
        session: Session,
        *,
        output_type: type[T],
        on_request: OnRequest | None = None,
        budget: Budget | None = None,
        record: Recording | str | os.PathLike[str] | None = None,
    ) -> RunResult[T]: ...
    @overload
    def run(
        self,
        session: Session,
        *,
        output_type: Any = None,
        on_request: OnRequest | None = None,
        budget: Budget | None = None,
        record: Recording | str | os.PathLike[str] | None = None,
    ) -> RunResult[Any]: ...
    def run(
        self,
        session: Session,
        *,
        output_type: Any = None,
        on_request: OnRequest | None = None,
        budget: Budget | None = None,
        record: Recording | str | os.PathLike[str] | None = None,
    ) -> RunResult[Any]:
        """Run the agent on ``session`` to the end, and return the result, as `Runtime.run`."""
        refuse_on_the_loop("Remote.run", IN_A_COROUTINE)
        check_on_request(on_request)
        settings = {**_checked(on_request is not None, budget, output_type), "quiet": True}
        output = None if output_type is None else Output(output_type)
        with self._open(session, settings, output, _recording(record)) as stream:
            for event in stream:
                if on_request is not None and isinstance(event, RequestEvent):
                    ask(stream, event, on_request)
            return stream.result()

    @overload
    def map(
        self,
        sessions: Sessions,
        *,
        output_type: type[T],
        limit: int = 8,
        on_request: OnRequest | None = None,
        budget: Budget | None = None,
        record: RecordOf | None = None,
        progress: bool = False,
    ) -> Runs[T]: ...
    @overload
    def map(
        self,
        sessions: Sessions,
        *,
        output_type: Any = None,
        limit: int = 8,
        on_request: OnRequest | None = None,
        budget: Budget | None = None,
        record: RecordOf | None = None,
        progress: bool = False,
    ) -> Runs[Any]: ...
    def map(
        self,
        sessions: Sessions,
        *,
        output_type: Any = None,
        limit: int = 8,
        on_request: OnRequest | None = None,
        budget: Budget | None = None,
        record: RecordOf | None = None,
        progress: bool = False,
    ) -> Runs[Any]:
        """Run the agent on many sessions, at most ``limit`` at once, as `Runtime.map`. Returns an iterator of
        ``(session, result)`` in the order in which the runs end.

        A ``limit`` above the number of workers keeps them all busy: jobs that no worker has begun wait in the engine,
        for longer than ``start_timeout`` while others are under way. Only questions and results come over the
        connections, not the events, and the records where ``record`` asks for them, which are written here as by `run`.
        What ``submit`` raises ends the iteration.
        """
        refuse_on_the_loop("Remote.map", IN_A_COROUTINE)
        settings = {**_checked(on_request is not None, budget, output_type), "quiet": True}
        output = None if output_type is None else Output(output_type)

        def start(session: Session, file: Recording | str | os.PathLike[str] | None) -> RemoteStream:
            return self._open(session, settings, output, _recording(file))

        return Runs(start, sessions, limit=limit, on_request=on_request, record=record, progress=progress)

    def close(self) -> None:
        """Cancel the runs, and wait until they have ended, within a bounded time. Twice is harmless. What ``submit``
        belongs to goes on."""
        self._closed = True
        with self._lock:
            runs = list(self._runs)
        for run in runs:
            run.cancel("the Remote was closed")
        for run in runs:
            run.join(2 * self._grace)

    def __enter__(self) -> Remote:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    __reduce_ex__ = not_copied("make a Remote in each process")

    def __repr__(self) -> str:
        return f"<Remote {self._target}{', closed' if self._closed else ''}>"


def _recording(record: Recording | str | os.PathLike[str] | None) -> Recording | None:
    if record is None:
        return None
    found = record if isinstance(record, Recording) else Recording(record)
    if found.redaction._more is not None:
        raise TypeError("a Recording with redact= cannot be written by a worker, which does not have that function")
    return found


def _checked(interactive: bool, budget: Budget | None, output_type: Any) -> dict[str, Any]:
    """The settings of a run, as its worker is told."""
    check("budget", budget, (Budget, NoneType), "a Budget, such as Budget(tokens=10_000)")
    check_flags(interactive=interactive)
    return {
        "interactive": interactive,
        "budget": None if budget is None else asdict(budget),
        "output_type": None if output_type is None else name_of(output_type),
    }
