"""`RemoteRun`: the caller's side of a run on a worker, without the consumer.

What the worker sends is taken in on the thread of the connection (`RemoteRun.event` and the methods after it), which
never waits. That thread alone decides how the run ends, and gives the session back before the last event is there to be
received: there is exactly one last event, the worker's or this side's own.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Sequence
from typing import Any, Final

from channels import CancelToken, Channel, ChannelClosed, WouldBlock
from channels._park import NOTHING
from channels.net._errors import ConnectionLost
from channels.net._lane import Codec, Last
from channels.net._link import Link

from .._errors import InvalidAnswer, NotParkable, NotPending, NotRunning, SessionBusy, StoreError, describe
from ..events import Error, Event, StopReason, StreamStarted, StreamStopped
from ..execution._threads import start
from ..session._session import Session, SessionLog
from . import _record, _wire
from ._record import Writing
from ._wire import End

_RAISED: Final = {
    kind.__name__: kind
    for kind in (NotPending, InvalidAnswer, NotParkable, NotRunning, SessionBusy, StoreError, ValueError, TypeError)
}


class RemoteError(Exception):
    """What was raised in the worker, with its traceback, as text. The ``__cause__`` of `RunError` there, as the
    exception itself is here."""


class RemoteRun:
    """One run. Methods are for any thread, but for those below the line."""

    def __init__(self, session: Session, log: SessionLog, grace: float, writing: Writing | None = None) -> None:
        self.session = session
        self.first_message = len(session._messages)
        self.grace = grace
        self.stopping = log.token = CancelToken()
        self.end: End | None = None  # as the worker has told it
        self.reason: StopReason | None = None
        self.failure = ""  # why the run could not be begun
        self.stuck = ""
        self.over: Channel[None] = Channel(name="remote run over")  # closes: the worker has let go of it, or is lost
        self.link: Link | None = None
        self.job: Any = None  # the engine's, such as a future
        self._log = log
        self._numbers = itertools.count(1)
        self._replies: dict[int, Channel[dict[str, Any]]] = {}
        self._patience: CancelToken | None = None
        self._last_seen: Event | None = None
        self._told = False  # what has failed
        self.codecs = [Codec(_wire.write, self._event, self._last), Codec(_wire.write, self._reply, self._no_reply)]
        self.writing = writing
        if writing is not None:
            self.codecs.append(_record.codec())

    @property
    def inherited(self) -> bool:
        """By a forked child, which has no connection."""
        return self.link is not None and self.link.forked

    # -- asking --------------------------------------------------------------------------------------------------------

    def ask(self, do: str, closed: type[Exception], /, **args: Any) -> Any:
        """Let the worker do something, and wait until it has. Raises what that raised there, and ``closed`` where the
        run has ended."""
        link = self.link
        assert link is not None
        number = next(self._numbers)
        reply: Channel[dict[str, Any]] = Channel(1, name=f"reply to {do}")
        self._replies[number] = reply
        try:
            if self.reason is not None or self.stopping.cancelled:
                raise closed("the run has ended, or is about to")
            lane = link.lanes[1]
            lane.out.send(lane.framed({"id": number, "do": do, "args": args}))
            said = reply.recv()
        except ChannelClosed:
            raise closed("the run has ended, or its worker was lost") from None
        finally:
            del self._replies[number]
        if "error" in said:
            raise _RAISED.get(said["error"], RuntimeError)(said["message"])
        return said.get("value")

    def cancel(self, cause: object) -> None:
        """Let the run end. Does not wait."""
        link = self.link
        if not self.stopping.cancel(cause) or self.reason is not None or link is None:
            return
        if not link.established:
            link.abort(ConnectionLost("cancelled before a worker had connected"))
            self.withdraw()
            return
        lane = link.lanes[1]
        lane.out.close(lane.framed({"do": "cancel", "cause": "" if cause is None else str(cause)}))
        link.bell.ring()
        self._patience = CancelToken(timeout=self.grace)
        self._patience.on_cancel(self._lose_patience)
        if self.reason is not None:
            self._patience = None

    def _lose_patience(self) -> None:
        if self.reason is None and self.link is not None:
            self.link.abort(ConnectionLost(f"the worker did not end the run within {self.grace:g} s after a cancel"))

    def join(self, timeout: float) -> bool:
        """Wait until the connection has ended, and the record is written; whether the connection has ended."""
        if self.link is not None and not self.link.join(timeout):
            return False
        if self.writing is not None:
            with contextlib.suppress(ChannelClosed, TimeoutError):
                self.writing.done.recv(timeout)
        return True

    def withdraw(self) -> None:
        """The engine need not begin the job any more."""
        cancel = getattr(self.job, "cancel", None)
        if callable(cancel):
            start(functools.partial(_quietly, cancel))  # it may talk to the engine

    def job_ended(self, job: Any) -> None:
        """The engine says that the job is over. What counts is the connection, if there is one."""
        link = self.link
        if link is None or link.established or link.aborted is not None:
            return
        try:
            if job.cancelled():
                why = "the engine has cancelled the job before it began"
            elif (error := job.exception()) is not None:
                why = f"the engine could not run the job: {describe(error)}"
            else:
                said = job.result()
                refused = said.get("refused") if isinstance(said, dict) else None
                why = f"the worker could not connect: {refused or 'the job has ended'}"
        except BaseException as error:
            why = f"the engine has lost the job: {describe(error)}"
        self.failure = why
        link.abort(ConnectionLost(why))

    # -- the thread of the connection ----------------------------------------------------------------------------------

    def _event(self, body: bytes) -> Any:
        data = _wire.read(body)
        if "End" in data:
            if self.end is not None:
                raise ValueError("the run has ended twice")
            end = End(**data["End"])
            stopped = end.event()
            if end.session is not None:
                _wire.apply(self.session, end.session)
            self.end = end
            self._finish(stopped.reason)
            events: list[Event] = []  # that the worker has not sent, since it has not begun, or failed in the middle
            tags: Any = {"session_id": self.session.id, "agent_name": stopped.agent_name}
            if self._last_seen is None:
                events.append(StreamStarted(**tags))
            if stopped.reason == "error" and not self._told:
                events.append(Error(end.message, end.code, **tags))
            return Last((*events, stopped))
        event = Event.from_dict(data)
        if isinstance(event, StreamStopped):
            raise ValueError("a run ends with an End")
        self._last_seen = event
        if event.__class__ is Error and event.session_id == self.session.id:
            self._told = True
        return event

    def _last(self, error: BaseException | None) -> Sequence[Any]:
        """Nothing more comes on the lane of the events: the last events, where the worker has sent none."""
        if self.end is not None:
            return ()
        link = self.link
        assert link is not None
        last = self._last_seen
        tags: Any = {"session_id": self.session.id, "agent_name": "" if last is None else last.agent_name}
        events: list[Event] = [] if last is not None else [StreamStarted(**tags)]
        if self.stopping.cancelled:
            self.end = End({}, "canceled", str(self.stopping.cause or "cancelled"))
            self._finish("canceled")
            return (*events, StreamStopped("canceled", **tags))
        text = str(error or "the worker has closed the connection")
        if link.established:
            code, text = "worker_lost", f"the worker was lost: {text}"
        else:
            code, text = "not_started", f"no worker has begun the run: {self.failure or text}"
            self.withdraw()
        self.end = End({}, code, text)
        self._finish("error")
        return (*events, Error(text, code, **tags), StreamStopped("error", **tags))

    def _finish(self, reason: StopReason) -> None:
        """The last event is about to be there: give the session back, and let go of who waits for an answer."""
        self._log.release()
        self.reason = reason
        self._patience = None
        for reply in list(self._replies.values()):
            reply.close()

    def _reply(self, body: bytes) -> Any:
        said = _wire.read(body)
        if "over" in said:
            self.stuck = str(said["over"])
            assert self.link is not None
            self.link.finish()
            self.over.close()
            return NOTHING
        reply = self._replies.get(said["id"])
        if reply is not None:
            with contextlib.suppress(ChannelClosed, WouldBlock):
                reply.try_send(said)
        return NOTHING

    def _no_reply(self, error: BaseException | None) -> Sequence[Any]:
        for reply in list(self._replies.values()):
            reply.close()
        self.over.close()
        return ()


def _quietly(function: Any) -> None:
    with contextlib.suppress(Exception):  # the engine's own affair: nothing listens, so that the job is refused
        function()
