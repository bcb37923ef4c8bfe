"""`work`: the function that an engine runs in the worker.

Two threads: the one of the connection, which sends the events of the stream as it receives them, and the engine's own,
which waits for the end, and is the consumer's thread for tools that want one. An answer may wait, for a store or a
schema, and a cancel calls what others have registered for it. So each request is dealt with on a helper thread, and
none waits behind another.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from channels import Cancelled, CancelToken, Channel, ChannelClosed, Receiver, net, select
from channels._lazy import lazy_logger
from channels._park import NOTHING
from channels.net._lane import Lane

from .._checks import check
from .._errors import NotRunning, StreamStuck, describe
from ..agent._agent import Agent, Team
from ..agent._budget import Budget
from ..agent._output import Output
from ..events import Event, StreamStopped
from ..execution._threads import start
from ..recording._recorder import Recorder
from ..recording._recording import Recording
from ..runtime import Runtime
from ..session._message import Message
from ..session._session import Session
from ..stores._store import Store
from ..stream._event_stream import EventStream
from ..stream._private_events import ConsumerCall
from ._record import SentFile, codec
from ._target import find, find_agent, find_context, open_store
from ._wire import VERSION, End, Job, changes, read, session_of, write

if TYPE_CHECKING:
    from ssl import SSLContext

CALLS: Final = 1000  # of tools for the thread of the job, that wait for it
FIRST: Final = 30.0  # seconds that the caller may take to say what to run

Lanes: TypeAlias = Sequence[tuple[net.LaneSender[Any], net.LaneReceiver[Any]]]

_logger = lazy_logger("runtime.remote")


def work(spec: Mapping[str, Any], *, ssl: SSLContext | None = None) -> dict[str, Any]:
    """Run the job that ``spec`` names, and send its events to the caller. What an engine runs: it is imported by its
    name, and ``spec`` and the result are JSON. Where a task of yours calls it, it may give it a client's context of
    ``ssl``, with which it connects then, in place of the one that the caller has named.

    A job is run once: whoever connects a second time with the key of a job is refused, and nothing is run. Then the
    result has the reason as ``refused``. Otherwise it has the id of the session and how the run ended. Raises nothing
    that would make an engine try again, and `ValueError` if ``spec`` is of another version of lockgate.
    """
    check("the job", spec, Mapping, "the mapping that a Remote submits")
    if spec.get("version") != VERSION:
        raise ValueError(
            f"the job was made by another version of lockgate (jobs of version {spec.get('version')!r}, this worker"
            f" takes {VERSION}): install the same version on both sides"
        )
    host, port = spec["address"]
    worker = _Worker(spec)
    try:
        connection = net.connect(
            (host, port),
            spec["key"],
            timeout=spec["timeout"],
            codecs=worker.codecs,
            ssl=ssl or find_context(spec.get("ssl")),
            name="lockgate-worker",
        )
    except (Exception, SystemExit) as error:  # of the network, or of the module that has the context
        _logger.warning("a job of %s was refused by its caller at %s:%s: %s", spec["target"], host, port, error)
        return {"refused": f"{type(error).__name__}: {error}"}
    try:
        return worker.run(connection)
    finally:
        connection.close(None)


class _Worker:
    """One job."""

    def __init__(self, spec: Mapping[str, Any]) -> None:
        self._spec = spec
        self.codecs = [net.Codec(write, read), net.Codec(write, self._obey, self._left)]
        if spec.get("record"):
            self.codecs.append(codec())
        self._stopping = CancelToken()  # the caller wants it to end, or is gone
        self._unbegun: list[None] = [None]  # whoever takes it out begins the run, or ends it before
        self._runtime: Runtime | None = None
        self._stream: EventStream | None = None
        self._session: Session | None = None
        self._before: list[Message] = []  # the messages of the session, once the run has begun
        self._connection: net.Connection | None = None
        self._lanes: Lanes | None = None  # once it is connected
        self._calls: Channel[ConsumerCall] = Channel(CALLS, name="calls for the thread of a job")
        self._failure: Exception | None = None  # of what makes frames of events
        self._ended = ""

    def run(self, connection: net.Connection) -> dict[str, Any]:
        """Run it, to its end."""
        self._connection = connection
        lanes = self._lanes = connection.lanes
        if self._stopping.cancelled:  # before it could be told
            self._cancel(str(self._stopping.cause))
        stuck = ""
        try:
            try:
                said = lanes[0][1].recv(timeout=FIRST)
                job = Job(**said["Job"])
                session = self._session = session_of(job)
            except (ChannelClosed, ConnectionError, TimeoutError) as error:
                return {"refused": f"the caller has gone: {error}"}
            try:
                stuck = self._run(job, session)
            except (Exception, SystemExit) as error:  # of a module that parses a command line as it is imported
                self._fail(error, session)
            except BaseException as error:  # Ctrl-C, which processes of one terminal get together
                self._fail(error, session)
                raise
            finally:
                with contextlib.suppress(ChannelClosed, Cancelled, TimeoutError):
                    lanes[1][0].send({"over": stuck}, timeout=1.0)
                connection.close(None)  # however long the caller takes to read it all
        finally:
            self._stream = None
        return {"session_id": session.id, "reason": self._ended}

    @property
    def _sender(self) -> net.LaneSender[Any]:
        assert self._lanes is not None
        return self._lanes[0][0]

    def _run(self, job: Job, session: Session) -> str:
        with contextlib.ExitStack() as stack:
            found = find_agent(self._spec["target"])
            store: Store | None = None
            if self._spec.get("store") is not None:
                store = open_store(self._spec["store"])
                stack.callback(store.close)
            runtime = self._runtime = self._runtime_of(found, store, stack)
            budget = None if job.budget is None else Budget(**job.budget)
            output = None if job.output_type is None else Output(find(job.output_type))
            try:
                del self._unbegun[0]
            except IndexError:  # cancelled before
                return ""
            self._before = list(session._messages)
            with _context(job.carrier):
                stream = runtime._open(
                    session,
                    interactive=job.interactive,
                    budget=budget,
                    output=output,
                    record=self._recorder() if self._spec.get("record") else None,
                    quiet=job.quiet,
                )
            stuck = ""
            try:
                self._stream = stream
                registration = self._stopping.on_cancel(lambda: stream.cancel(self._stopping.cause))
                try:
                    self._send_events(stream)
                finally:
                    registration.remove()
            finally:
                try:
                    stream.close()
                except StreamStuck as error:
                    stuck = str(error)
            return stuck

    def _recorder(self) -> Callable[[str, Session], Recorder]:
        assert self._lanes is not None
        return functools.partial(Recorder, Recording(""), file=SentFile(self._lanes[2][0]))

    def _runtime_of(self, found: Agent | Team | Runtime, store: Store | None, stack: contextlib.ExitStack) -> Runtime:
        settings = self._spec.get("settings") or {}
        if not isinstance(found, Runtime):
            return stack.enter_context(Runtime(found, store=store, **settings))
        if settings or store is not None:
            raise TypeError(
                f"{self._spec['target']} is a Runtime, which has its settings and its store: give them there, not to"
                " Remote"
            )
        return found

    def _send_events(self, stream: EventStream) -> None:
        """Let the connection send the events; wait until it has the last one, or has ended."""
        connection = self._connection
        assert connection is not None
        lane = connection._link.lanes[0]

        def frame_of(event: Event) -> bytes | None:
            if isinstance(event, StreamStopped):
                return self._last_frame(lane, stream, event)
            try:
                if isinstance(event, ConsumerCall):
                    self._calls.try_send(event)
                elif self._failure is None:
                    return lane.framed(event)
            except Exception as error:
                self._failure = error
                start(functools.partial(self._stopping.cancel, error))
            return None

        lane.send_from(stream, frame_of, lambda: self._stopping.cancelled)
        over: Receiver[None] | Channel[None] | None = stream._core.over
        while True:
            index, call, ok, _ = select(self._calls, connection.done, over)
            if index == 0 and ok:
                call.run()
            elif index == 2:
                over = None
                lane.link.bell.ring()  # it may have been waiting for credits
            else:
                self._stopping.cancel("the caller has gone")  # or it has ended
                return

    def _last_frame(self, lane: Lane, stream: EventStream, last: StreamStopped) -> bytes:
        """On the thread of the connection: the `End`, with what the run has changed in its session."""
        core, failure = stream._core, self._failure
        ending = core.ending
        self._ended = last.reason
        try:
            if failure is None:
                error = ending.error
                end = End(
                    last.to_dict(),
                    ending.code,
                    ending.message,
                    "" if error is None or isinstance(error, Cancelled) else "".join(traceback.format_exception(error)),
                    tuple(core.failures),
                    None if core.spending.usage is None else core.spending.usage.to_dict(),
                    _plain(core.said),
                    changes(stream.session, self._before),
                )
                return lane.framed(end)
        except Exception as error:  # the session is longer than a frame may be, it may be
            failure = error
        finally:
            self._calls.close()
        self._ended = "error"
        stopped = StreamStopped("error", agent_name=last.agent_name, session_id=last.session_id).to_dict()
        cause = "".join(traceback.format_exception(failure))
        return lane.framed(End(stopped, "internal", f"the run could not be sent: {describe(failure)}", cause))

    def _fail(self, error: BaseException, session: Session) -> None:
        """The run could not be begun."""
        _logger.info("a job of %s could not be begun", self._spec["target"], exc_info=error)
        if self._stream is not None:  # it has an end of its own, which says more
            return
        with contextlib.suppress(IndexError):
            del self._unbegun[0]
        self._ended = "error"
        text = f"the worker could not begin: {describe(error)}"
        cause = "".join(traceback.format_exception(error))
        stopped = StreamStopped("error", session_id=session.id).to_dict()
        self._sender.close(final=End(stopped, "not_started", text, cause))

    # -- the thread of the connection ----------------------------------------------------------------------------------

    def _obey(self, body: bytes) -> Any:
        request = read(body)
        if request["do"] == "cancel":
            start(functools.partial(self._cancel, request["cause"] or "cancelled by the caller"))
        else:
            start(functools.partial(self._answer, request))
        return NOTHING

    def _left(self, error: BaseException | None) -> Sequence[Any]:
        if not self._stopping.cancelled and not self._ended:
            start(functools.partial(self._cancel, "the caller has gone" + (f": {error}" if error else "")))
        return ()

    # -- helper threads ------------------------------------------------------------------------------------------------

    def _cancel(self, why: str) -> None:
        self._stopping.cancel(why)
        if self._lanes is None:
            return
        try:
            del self._unbegun[0]
        except IndexError:
            return
        self._ended = "canceled"
        session_id = "" if self._session is None else self._session.id
        self._sender.close(final=End(StreamStopped("canceled", session_id=session_id).to_dict(), "canceled", why))

    def _answer(self, request: Mapping[str, Any]) -> None:
        """Do what the caller asks, and say how that went."""
        reply: dict[str, Any] = {"id": request["id"]}
        try:
            stream, do, args = self._stream, request["do"], request["args"]
            if stream is None:
                raise NotRunning("the run has not begun, or has ended")
            if do in OF_RUNTIME:
                assert self._runtime is not None
                OF_RUNTIME[do](self._runtime, stream.session, **args)
            else:
                reply["value"] = REQUEST[do](stream, **args)
        except Exception as error:
            reply["error"], reply["message"] = type(error).__name__, str(error)
        assert self._lanes is not None  # the run has begun
        with contextlib.suppress(ChannelClosed):
            self._lanes[1][0].send(reply)


def _pending(stream: EventStream) -> list[dict[str, Any]]:
    return [event.to_dict() for event in stream.pending]


#: What a caller may ask for.
REQUEST: Final[dict[str, Callable[..., Any]]] = {
    "respond": EventStream.respond,
    "extend": EventStream.extend,
    "approve": EventStream.approve,
    "reject": EventStream.reject,
    "park": EventStream.park,
    "pending": _pending,
}
#: And of the runtime, for the session of the run.
OF_RUNTIME: Final[dict[str, Callable[..., Any]]] = {
    "steer": Runtime.steer,
    "follow_up": Runtime.follow_up,
    "pause": Runtime.pause,
    "resume": Runtime.resume,
}


def _plain(value: Any) -> Any:
    """The value of a structured output, as JSON has it; None where JSON cannot say it."""
    if value is None:
        return None
    with contextlib.suppress(Exception):
        return read(write(value))
    return None


@contextlib.contextmanager
def _context(carrier: Mapping[str, str]) -> Any:
    """The context of the caller's trace, where there is one and this process has OpenTelemetry."""
    token: Any = None
    if carrier:
        try:
            from opentelemetry import context
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        except ImportError:
            pass
        else:
            token = context.attach(TraceContextTextMapPropagator().extract(dict(carrier)))
    try:
        yield
    finally:
        if token is not None:
            context.detach(token)


def carrier() -> dict[str, str]:
    """The context of the trace that is current here; empty where nobody has imported OpenTelemetry."""
    found: dict[str, str] = {}
    if "opentelemetry.trace" in sys.modules:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        TraceContextTextMapPropagator().inject(found)
    return found
