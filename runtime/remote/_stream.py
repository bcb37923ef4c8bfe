"""`RemoteStream`: the consumer's end of a run on a worker."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from channels import Cancelled, ChannelClosed, Receiver, SupportsDone
from channels._lazy import lazy_logger

from .._checks import is_number
from .._errors import InvalidAnswer, NotParkable, NotPending, NotRunning, RunError, StreamStuck
from .._public import not_copied
from ..agent._output import Output
from ..agent._result import RunResult
from ..agent._tool import Action
from ..events import ElicitationRequest, Event, MaxIterationsReached, StopReason, ToolCallConfirmation
from ..execution._calls import refuse_on_the_loop
from ..permissions import Decision, Scope
from ..session._session import Session
from ..stream._event_stream import IN_A_COROUTINE, _id
from ..usage import Usage
from ._run import RemoteError, RemoteRun

_logger = lazy_logger("runtime.remote")


class RemoteStream(Receiver[Event]):
    """The events of a run on a worker, as those of an `EventStream`; the last is `StreamStopped`, also where the worker
    was lost (`Error` with the code ``worker_lost``).

    Leaving its ``with`` block cancels the run and waits for its end. Methods may be called from any thread. An
    exception that leaves the iteration, such as Ctrl-C, cancels the run; so does dropping the stream. It is a receiver,
    so `channels.select` and `channels.merge` accept it. Answers and steering messages wait until the worker has taken
    them, and raise what they raise there.
    """

    __slots__ = ("_finalizer", "_output", "_run", "_told")

    def __init__(self, run: RemoteRun, output: Output | None) -> None:
        link = run.link
        assert link is not None
        super().__init__(link.lanes[0].into)
        self._run = run
        self._output = output
        self._told = False
        self._finalizer = weakref.finalize(self, run.cancel, "the stream was dropped")
        self._finalizer.atexit = False

    # -- events --------------------------------------------------------------------------------------------------------

    def __iter__(self) -> RemoteStream:
        refuse_on_the_loop("iterating over a stream", IN_A_COROUTINE)
        return self

    def __next__(self) -> Event:
        try:
            event: Event = self._channel.recv()
            return event
        except ChannelClosed:
            self._finalizer.detach()
            if self._run.inherited:
                raise RuntimeError("this stream belongs to the process that was forked; start one here") from None
            raise StopIteration from None
        except BaseException as error:
            self._run.cancel(error)
            raise

    def recv(self, timeout: float | None = None, cancel: SupportsDone | None = None) -> Event:
        """The next event, as `channels.Channel.recv`. A timeout leaves the run as it is; Ctrl-C cancels it."""
        try:
            return super().recv(timeout, cancel)
        except (Exception, Cancelled):
            raise
        except BaseException as error:
            self._run.cancel(error)
            raise

    @property
    def session(self) -> Session:
        """The session of the run. It is changed when the run ends."""
        return self._run.session

    @property
    def reason(self) -> StopReason | None:
        """Why the run ended; None while it goes on."""
        return self._run.reason

    # -- answers -------------------------------------------------------------------------------------------------------

    def respond(
        self, request: ElicitationRequest | str, action: Action, content: Mapping[str, Any] | None = None
    ) -> None:
        """Answer a question, as `EventStream.respond`."""
        ask_id = _id(request, ElicitationRequest, "elicitation_id")
        if content is not None and not isinstance(content, Mapping):
            raise InvalidAnswer(f"content must be a mapping, such as {{'size': 'large'}}, not {content!r:.200}")
        args = {"request": ask_id, "action": action, "content": None if content is None else dict(content)}
        self._run.ask("respond", NotPending, **args)

    def extend(self, request: MaxIterationsReached | str, iterations: int) -> None:
        """Allow more turns, as `EventStream.extend`."""
        if not is_number(iterations, least=0, whole=True):
            raise InvalidAnswer(f"extend takes a whole number of turns, 0 or more, not {iterations!r:.200}")
        request = _id(request, MaxIterationsReached, "request_id")
        self._run.ask("extend", NotPending, request=request, iterations=iterations)

    def approve(self, call: ToolCallConfirmation | str, scope: Scope = "once") -> None:
        """Approve a tool call, as `EventStream.approve`."""
        call = _id(call, ToolCallConfirmation, "confirmation_id")
        self._run.ask("approve", NotPending, call=call, scope=Decision(True, scope).scope)

    def reject(self, call: ToolCallConfirmation | str, reason: str = "") -> None:
        """Reject a tool call, as `EventStream.reject`."""
        call = _id(call, ToolCallConfirmation, "confirmation_id")
        self._run.ask("reject", NotPending, call=call, reason=Decision(False, reason=reason).reason)

    @property
    def pending(self) -> list[Event]:
        """The open questions and confirmations, as `EventStream.pending`. Asks the worker."""
        try:
            return [Event.from_dict(each) for each in self._run.ask("pending", NotRunning)]
        except NotRunning:
            return []

    def park(self, *, force: bool = False) -> None:
        """Park the run in the store that the worker writes to, as `EventStream.park`."""
        self._run.ask("park", NotParkable, force=force)

    def steer(self, text: str) -> None:
        """Send a message to the run, as `Runtime.steer`."""
        self._run.ask("steer", NotRunning, text=text)

    def follow_up(self, text: str) -> None:
        """Queue a message for the run, as `Runtime.follow_up`."""
        self._run.ask("follow_up", NotRunning, text=text)

    def pause(self) -> None:
        """Pause the run before its next turn, as `Runtime.pause`."""
        self._run.ask("pause", NotRunning)

    def resume(self) -> None:
        """Let a paused run go on, as `Runtime.resume`."""
        self._run.ask("resume", NotRunning)

    # -- the end -------------------------------------------------------------------------------------------------------

    def cancel(self, cause: object = None) -> None:
        """Cancel the run. Does not wait. Events that have arrived and the last event can still be read.

        A worker that does not end the run within the grace time is cut off, and cancels the run when it notices.
        """
        self._run.cancel(cause)

    def close(self) -> None:
        """Cancel the run, drop the events that were not read, and wait for its end, for a few seconds at most.

        Afterwards nothing of the run is left here, and nothing in the worker, or `StreamStuck` names what is left
        there. Calling it twice is harmless.
        """
        self._close(0.0)

    def _close(self, waited: float) -> None:
        """`close`, by somebody who has waited so many seconds for other streams, since it cancelled this one."""
        run, link = self._run, self._run.link
        assert link is not None
        self._finalizer.detach()
        run.cancel("the stream was closed")
        stuck = self._join(waited)
        for _ in self._channel.receiver:  # type: ignore[attr-defined]
            pass
        if stuck is not None and not self._told:
            raise stuck

    def result(self) -> RunResult[Any]:
        """Read the stream to its end and return the result of the run, as `EventStream.result`.

        Where an exception has ended the run, the cause of `RunError` is a `RemoteError` with the worker's traceback.
        """
        outcome = self._outcome()
        if outcome.error is None:
            return outcome
        error = outcome.error
        del outcome  # which holds the error, whose traceback holds this frame
        raise error

    def _outcome(self) -> RunResult[Any]:
        """As `result`, but a run that did not end normally has its `RunError` in the result."""
        for _ in self:
            pass
        run = self._run
        stuck = self._join()
        if stuck is not None and not self._told:
            self._told = True
            _logger.warning("%r: %s", run.session, stuck)
        end = run.end
        assert end is not None
        reason = run.reason or "error"
        error: RunError | None = None
        if reason != "normal":
            error = RunError(end.code, end.message, reason, failures=end.failures, stuck=stuck)
            error.__cause__ = RemoteError(end.cause) if end.cause else None
        said = run.session.messages
        added = said[run.first_message :]
        text = next((m.content for m in reversed(added) if m.role == "assistant"), "")
        usage = Usage() if end.usage is None else Usage(**end.usage)
        output = end.output if self._output is None or error is not None else self._output.read(text)
        return RunResult(text, added, usage, reason, output, stuck, error)

    @property
    def failures(self) -> tuple[str, ...]:
        """The last few tracebacks of tools that failed in the run, once it has ended."""
        return () if self._run.end is None else tuple(self._run.end.failures)

    def _join(self, waited: float = 0.0) -> StreamStuck | None:
        """Wait for the worker to let go of the run, and for the connection to end, bounded; what is stuck there."""
        run, link = self._run, self._run.link
        assert link is not None
        with contextlib.suppress(ChannelClosed, TimeoutError):
            run.over.recv(timeout=max(0.0, 4 * run.grace - waited))
        if not run.join(max(0.0, run.grace - waited)):
            link.abort(ConnectionError("the run is over, and its worker does not hang up"))
            run.join(run.grace)
        return StreamStuck(f"in the worker: {run.stuck}") if run.stuck else None

    def __enter__(self) -> RemoteStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self.close()
        except StreamStuck as stuck:
            if error is None:
                raise
            error.add_note(f"StreamStuck: {stuck}")  # never in place of what the body raised

    __reduce_ex__ = not_copied("pass the stream itself to the thread that reads it")

    def __repr__(self) -> str:
        run = self._run
        state = f"ended: {run.reason}" if run.reason else "cancelling" if run.stopping.cancelled else "live"
        return f"<RemoteStream {state}, {len(self._channel)} events waiting, {run.session!r}>"
