"""`StreamContext`, the `ToolContext` of a running tool: it passes every request on to the worker of its stream."""

from __future__ import annotations

import contextlib
import contextvars
import functools
import sys
from collections.abc import Awaitable, Callable, Mapping
from types import NoneType
from typing import TYPE_CHECKING, Any, Final, cast

from channels import Cancelled, CancelToken, Channel, ChannelClosed, WouldBlock
from channels._lazy import lazy

from .. import events
from .._checks import check, check_number
from .._errors import RunError
from ..agent._agent import Agent
from ..agent._result import RunResult
from ..agent._tool import Answer, Question
from ..execution._calls import refuse_on_the_loop
from ..session._journal import CallState, Step
from ..session._message import ToolCall
from ..session._session import Session
from ..stream._core import StreamCore
from ..team._nested import follow, open_nested
from ._messages import Asked, Fire, Forwarded, NestedParked, Progress

if TYPE_CHECKING:
    import asyncio
    import json
else:
    json = lazy("json")

_AHEAD: Final = 64  # how many events a nested stream may be ahead of its parent's worker


def _finite(what: str, number: float | None) -> float | None:
    """A number of progress, of which there is none where it is not finite: JSON has no word for that, so a client that
    is sent events could not read them.
    """
    if number is None:
        return None
    if isinstance(number, bool) or not isinstance(number, (int, float)):
        raise TypeError(f"{what} must be a number, or None, not {number!r:.200}")
    return number if abs(number) <= sys.float_info.max else None


class StreamContext:
    """The `ToolContext` of one call. ``inbox`` is the channel on which the worker receives, until the turn is over."""

    def __init__(
        self,
        core: StreamCore,
        call: ToolCall,
        inbox: Channel[Any],
        cancel: CancelToken,
        state: CallState,
        agents: set[str],
    ) -> None:
        self.call_id = call.id
        self.session_id = core.session.id
        self.agent_name = core.agent.name
        self.model = core.agent.model
        self.cancel = cancel
        self._core = core
        self._inbox = inbox
        self._nested = iter(state.nested)  # the sessions that it ran agents on, in an earlier stream
        self._kept = dict(state.kept)
        self._agents = agents  # the worker looks whether there are any
        self._credits: dict[None, Channel[None]] = {}  # made for the first event that is forwarded
        self._progress_credits: Channel[None] | None = None

    def progress(self, output: str = "", progress: float | None = None, total: float | None = None) -> None:
        check("the output of a progress report", output, str, "text")
        progress, total = _finite("progress", progress), _finite("total", total)
        if self._progress_credits is None:
            self._progress_credits = Channel(_AHEAD, name="progress credits")
        with contextlib.suppress(WouldBlock, ChannelClosed):
            self._progress_credits.try_send(None)
            made = Progress(self.call_id, output, progress, total, self._progress_credits)
            self._inbox.try_send(made)

    def run_agent(self, agent: Agent, task: str | Session) -> RunResult[Any]:
        refuse_on_the_loop("run_agent", "await context.arun_agent(...)")
        return self._run_agent(agent, task, self.cancel)

    async def arun_agent(self, agent: Agent, task: str | Session) -> RunResult[Any]:
        within = CancelToken(self.cancel)
        future, settled = _future()

        def run() -> None:
            try:
                settled(self._run_agent(agent, task, within))
            except BaseException as error:  # SystemExit too: it ends the call, not the helper
                settled(None, error)

        self._core.shared.helpers.submit(functools.partial(contextvars.copy_context().run, run))
        return cast("RunResult[Any]", await _waiting(future, within))

    def _run_agent(self, agent: Agent, task: str | Session, within: CancelToken) -> RunResult[Any]:
        check("what run_agent runs", agent, Agent, "an Agent")
        check("the task of run_agent", task, (str, Session), "text, or a Session")
        core = self._core
        session = Session.from_user(task) if isinstance(task, str) else task
        before = next(self._nested, None)
        if before is not None and core.shared.store is not None:
            session = core.shared.store.load(before)  # where that had come to its end, so has the stream at once
        stream = open_nested(core, agent, session, interactive=core.interactive, within=within, call_id=self.call_id)
        self._agents.add(session.id)
        try:
            return follow(core, stream, self._forward, self._fire)
        except RunError as error:
            if error.reason != "waiting":
                raise
        finally:
            self._agents.discard(session.id)
        self._post(NestedParked(self.call_id))
        with contextlib.suppress(ChannelClosed):
            within.done.recv()  # the parent parks, too: this call is not to come to a result here
        raise Cancelled(within.cause)

    @property
    def kept(self) -> Mapping[str, Any]:
        return self._kept

    def once(self, key: str, function: Callable[[], Any]) -> Any:
        refuse_on_the_loop("once", "await context.aonce(...)")
        _check_once(key, function)
        return self._kept[key] if key in self._kept else self._keep(key, function())

    async def aonce(self, key: str, function: Callable[[], Awaitable[Any]]) -> Any:
        import asyncio  # slow, and loaded by now: whoever awaits this has a loop

        _check_once(key, function)
        return self._kept[key] if key in self._kept else await asyncio.to_thread(self._keep, key, await function())

    def _keep(self, key: str, value: Any) -> Any:
        try:
            value = self._kept[key] = json.loads(json.dumps(value, allow_nan=False))
        except (TypeError, ValueError, RecursionError) as error:
            raise TypeError(f"once({key!r}) keeps what is JSON, and this is not: {error}") from error
        outbox = self._core.log.outbox
        outbox.note(Step(self.call_id, key, value))
        outbox.flush(self.cancel)
        return value

    def tell(self, event: events.Event) -> None:
        self._forward(event)

    def _forward(self, event: events.Event) -> None:
        credits = self._credits.get(None) or self._credits.setdefault(None, Channel(_AHEAD, name="credits"))
        credits.send(None, cancel=self.cancel)
        self._post(Forwarded(event, credits))

    def _fire(self, point: str, **fields: Any) -> None:
        done: Channel[None] = Channel(name=f"{point} hooks done")
        self._post(Fire(point, fields, done))
        with contextlib.suppress(ChannelClosed):
            done.recv(cancel=self.cancel)

    def elicit(
        self,
        message: str,
        schema: Mapping[str, Any] | None = None,
        *,
        url: str = "",
        timeout: float | None = None,
        cancel: CancelToken | None = None,
    ) -> Answer:
        refuse_on_the_loop("elicit", "await context.aelicit(...)")
        question = _question(message, schema, url, timeout)
        check("cancel", cancel, (CancelToken, NoneType), "a CancelToken, or None")
        if cancel is not None and cancel.cancelled:
            raise Cancelled(cancel.cause)
        answers: Channel[Answer] = Channel(1, name="answer")
        dropped = CancelToken()
        self._post(Asked(self.call_id, question, lambda answer: answers.close(final=answer), dropped))
        if cancel is None:
            return answers.recv(cancel=self.cancel)
        either = CancelToken(self.cancel)
        with cancel.on_cancel(lambda: either.cancel(cancel.cause)):
            try:
                return answers.recv(cancel=either)
            except Cancelled:
                dropped.cancel()
                raise

    async def aelicit(
        self,
        message: str,
        schema: Mapping[str, Any] | None = None,
        *,
        url: str = "",
        timeout: float | None = None,
    ) -> Answer:
        future, settled = _future()
        dropped = CancelToken()
        self._post(Asked(self.call_id, _question(message, schema, url, timeout), settled, dropped))
        return cast(Answer, await _waiting(future, dropped))

    def _post(self, message: Asked | Forwarded | Fire | NestedParked) -> None:
        try:
            self._inbox.try_send(message)
        except ChannelClosed:
            raise Cancelled(self.cancel.cause or "the stream has ended") from None

    def __repr__(self) -> str:
        return f"<ToolContext of call {self.call_id}>"


def _future() -> tuple[asyncio.Future[Any], Callable[..., None]]:
    """A future of the running loop, and a function that settles it from another thread, with a value or an error."""
    import asyncio  # slow, and loaded by now: whoever awaits this has a loop

    loop = asyncio.get_running_loop()
    future: asyncio.Future[Any] = loop.create_future()

    def settle(value: Any, error: BaseException | None) -> None:
        if future.done():
            return
        if error is None:
            future.set_result(value)
        else:
            future.set_exception(error)

    def settled(value: Any, error: BaseException | None = None) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed, and the task that waited gone with it
            loop.call_soon_threadsafe(settle, value, error)

    return future, settled


async def _waiting(future: asyncio.Future[Any], dropped: CancelToken) -> Any:
    """The result of the future. If the waiting task is cancelled, ``dropped`` is cancelled too."""
    import asyncio

    try:
        return await future
    except asyncio.CancelledError:
        dropped.cancel("the task that waited was cancelled")
        raise


def _check_once(key: object, function: object) -> None:
    check("the key of once", key, str, "text")
    check("what once calls", function, Callable, "a function without arguments")  # type: ignore[arg-type]


def _question(message: str, schema: Mapping[str, Any] | None, url: str, timeout: float | None) -> Question:
    check("the message of a question", message, str, "text")
    check("the url of a question", url, str, "text")
    check("the schema of a question", schema, (Mapping, NoneType), "a JSON schema of type object, or None")
    check_number("the timeout of a question", timeout, "seconds", least=0, optional=True)
    if url and schema is not None:
        raise ValueError("a question has a schema or a url, not both")
    if not url and schema is None:
        schema = {"type": "object", "properties": {}}
    return Question(message, schema, "url" if url else "form", url, timeout)
