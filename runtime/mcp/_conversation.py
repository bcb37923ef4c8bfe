"""What a call of a server and the thread that waits for it have to say to each other."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from itertools import count
from typing import Any, Final
from urllib.parse import urlsplit
from uuid import uuid4

from mcp.types import ErrorData

from channels import Cancelled, CancelToken

from ..agent._tool import Answer
from ..agent._tool_context import ToolContext
from ._connection import (
    REJECTED,
    CallEnded,
    Connection,
    Declined,
    Elicitation,
    Lost,
    Progressed,
    Sampling,
    Send,
    ServerCall,
    Unsent,
    Visit,
    visit_of,
)
from ._oauth import SignIn, ask_to_sign_in
from ._sampling import sampled
from ._server_error import MCPServerError

_ASKED: Final = "mcp asked "  # steps of a call, numbered: what the server wants back with the answer to a question
_ANSWERED: Final = "mcp answered "  # and that it is about to get it
_LONGEST: Final = 1_000_000  # characters of that
_PIECES: Final = 4  # waits within the timeout of a call
_VISITS: Final = 3  # times that a user is sent to the pages that one call needs


def is_page(url: str) -> bool:
    """Whether a user can be asked to open ``url``: a browser would run ``javascript:``, and in
    ``https://bank.example@evil.example`` nobody sees whose page it is.
    """
    try:
        parts = urlsplit(url)
        sound = parts.port != 0
    except ValueError:
        return False
    sound = sound and parts.scheme in ("https", "http") and bool(parts.hostname) and "@" not in parts.netloc
    return sound and not any(char.isspace() or not char.isprintable() for char in url)


def waiting(kept: Mapping[str, Any]) -> str | None:
    """What the server wants back of a call that only waits for an answer, as far as its steps are ``kept``; None where
    the server may be at work.

    By the protocol of 2026-07-28 nothing of such a call is left at the server: it is made anew with this.
    """
    asked = sum(key.startswith(_ASKED) for key in kept)
    state = kept.get(f"{_ASKED}{asked - 1}")
    return state if isinstance(state, str) and f"{_ANSWERED}{asked - 1}" not in kept else None


class Conversation:
    """One call, which may be made twice. Used by the thread that waits for it."""

    def __init__(self, server: str, timeout: float | None, context: ToolContext | None) -> None:
        self.notes: list[str] = []  # for the model, beside the result
        self._server = server
        self._timeout = timeout
        self._context = context
        kept = {} if context is None else context.kept
        self._state = waiting(kept)
        self._asked = sum(key.startswith(_ASKED) for key in kept)

    def request(self, name: str, send: Send, connect: Callable[[ToolContext | None], Connection]) -> Any:
        """Make the call, and wait for its result. Without a context nobody is asked, and nothing cancels it."""
        try:
            for attempt in count(1):
                try:
                    return self._attempt(name, send, connect)
                except Visit as visit:
                    self._visit(name, visit, attempt)
        except Lost as error:
            raise MCPServerError(self._server, str(error)) from None
        except MCPServerError as error:
            if not self.notes:
                raise
            raise MCPServerError(self._server, "\n".join([error.problem, *self.notes])) from error

    def _attempt(self, name: str, send: Send, connect: Callable[[ToolContext | None], Connection]) -> Any:
        # Calls without a context are nobody's: none of them is like another.
        stream = uuid4().hex if self._context is None else self._context.session_id
        try:
            return self._converse(connect(self._context).call(name, send, stream, self._state))
        except Unsent:  # it ended, but had not begun with the call: another one can
            return self._converse(connect(self._context).call(name, send, stream, self._state))

    def _visit(self, tool: str, visit: Visit, attempt: int) -> None:
        """Ask the user to visit the pages that the call needs first. Raises `MCPServerError` where that is no help."""
        pages = ", ".join(url for _, url in visit.pages)
        if attempt > _VISITS or not visit.pages:
            problem = f"refused to call {tool}: {visit.reason}; the user has to finish at {pages or 'a page'} first"
            raise MCPServerError(self._server, problem)
        context = self._context
        for message, url in visit.pages:
            if not is_page(url):
                problem = f"refused to call {tool} before the user opens {url!r:.200}, which is no page of the web"
                raise MCPServerError(self._server, problem)
            answer = Answer("decline") if context is None else context.elicit(message, url=url)
            if not answer.accepted:
                why = answer.note or f"the user's answer is {answer.action!r}"
                raise MCPServerError(self._server, f"refused to call {tool} before the user visits {url}: {why}")

    def _converse(self, call: ServerCall) -> Any:
        """Answer the messages of a call until it has ended. Leaving earlier, by an exception, cancels it there."""
        context = self._context
        try:
            while True:
                left, began = self._left(call), time.monotonic()
                try:
                    message = call.inbox.recv(left, None if context is None else context.cancel)
                except TimeoutError:
                    if left is not None and call.heard_at is not None:
                        # While this process stands still it hears nothing, and a server on this machine says nothing.
                        now = time.monotonic()
                        call.heard_at = min(call.heard_at + max(now - began - left, 0.0), now)
                    if self._left(call):  # or it has waited for others so far, or progress was heard of meanwhile
                        continue
                    problem = (
                        f"has not finished {call.name} after {self._timeout:g} s, so the call was cancelled;"
                        " call_timeout= gives it more time"
                    )
                    raise MCPServerError(self._server, problem) from None
                since = time.monotonic()
                if isinstance(message, Progressed):
                    if context is not None:
                        context.progress(message.message, message.progress, message.total)
                elif isinstance(message, Elicitation | Sampling):
                    try:
                        if isinstance(message, Elicitation):
                            self._ask(message, call.over)
                        else:
                            self._sample(message)
                    except Cancelled:
                        if not call.over.cancelled:
                            raise
                        # Why it is over is the next message.
                elif isinstance(message, SignIn):
                    if context is None:
                        message.refuse(
                            f"the user has to sign in at {message.url} first, and nobody is there to be asked"
                        )
                    else:
                        ask_to_sign_in(message, self._server, context)  # type: ignore[arg-type]
                elif isinstance(message, Declined):
                    self.notes.append(
                        f"(The server asked {message.message!r} while calls of several conversations were under way,"
                        " and does not say which one it is for, so nobody was asked. Calls of this server are made one"
                        " at a time from now on: call again to have the user asked.)"
                    )
                elif isinstance(message, CallEnded):
                    if message.error is None:
                        return message.result
                    if isinstance(message.error, Lost):
                        raise message.error
                    if (visit := visit_of(message.error)) is not None:
                        raise visit
                    raise self._failure(call, message.error) from message.error
                if call.heard_at is not None:  # the time that people take is not the server's
                    call.heard_at += time.monotonic() - since
        finally:
            call.drop()

    def _left(self, call: ServerCall) -> float | None:
        """The seconds for which nothing may be heard of the call, from now on: a piece of them, as much as a standstill
        of this process may cost the server. None: as many as it likes.
        """
        if self._timeout is None:
            return None
        left = self._timeout if call.heard_at is None else call.heard_at + self._timeout - time.monotonic()
        return min(max(left, 0.0), self._timeout / _PIECES)

    def _sample(self, question: Sampling) -> None:
        if self._context is None:
            question.answer(ErrorData(code=REJECTED, message="no model is there to be asked"))
        else:
            question.answer(sampled(question.params, self._server, self._context))

    def _ask(self, question: Elicitation, over: CancelToken) -> None:
        params, context = question.params, self._context
        if context is None:
            question.answer("decline", None)
            return
        if params.mode == "url" and not is_page(params.url):
            note = f"(The server asked the user to open {params.url!r:.200}, which is no page of the web: declined.)"
            self.notes.append(note)
            question.answer("decline", None)
            return
        number, self._asked = self._asked, self._asked + 1
        if question.state is not None and len(question.state) <= _LONGEST:
            context.once(f"{_ASKED}{number}", lambda: question.state)
        if params.mode == "url":
            answer = context.elicit(params.message, url=params.url, cancel=over)
        else:
            answer = context.elicit(params.message, params.requested_schema, cancel=over)
        if question.state is not None:
            context.once(f"{_ANSWERED}{number}", lambda: True)
        try:
            question.answer(answer.action, answer.content)
        except ValueError as error:
            problem = (
                f"asked {params.message!r} and cannot be sent the answer {answer.content!r}: it is not a flat form"
            )
            raise MCPServerError(self._server, problem) from error

    def _failure(self, call: ServerCall, error: BaseException | None) -> MCPServerError:
        code, tool = getattr(error, "code", None), call.name
        if isinstance(code, int):  # the SDK's MCPError: the server's own words
            if call.state is not None and _refuses_its_state(error):
                problem = (
                    f"has not gone on with {tool}: it no longer accepts the answer to its question, as after a restart"
                    " or when the answer comes too late; call the tool again, and the user is asked again"
                    f" ({error}, code {code})"
                )
                return MCPServerError(self._server, problem)
            return MCPServerError(self._server, f"refused to call {tool}: {error} (code {code})")
        return MCPServerError(self._server, f"failed to call {tool}: {type(error).__name__}: {error}")


def _refuses_its_state(error: BaseException | None) -> bool:
    """Whether a server refuses the state that it had given out. The protocol has no code of its own for this; these
    are the words of the Python SDK.
    """
    data = getattr(error, "data", None)
    reason = data.get("reason") if isinstance(data, Mapping) else None
    return reason == "invalid_request_state" or "requeststate" in str(error).lower()
