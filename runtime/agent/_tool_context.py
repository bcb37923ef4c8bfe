"""`ToolContext`: what a running tool may use beside its arguments."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar
from typing import Any, Protocol

from channels import CancelToken

from ..events import Event
from ..model import Model
from ..session._session import Session
from ._agent import Agent
from ._result import RunResult
from ._tool import Answer, CallContext


class Asking(Protocol):
    """What a toolset may use while a stream waits for its tools, or for the result of a call: the user."""

    @property
    def session_id(self) -> str: ...
    @property
    def agent_name(self) -> str: ...
    @property
    def cancel(self) -> CancelToken: ...

    def elicit(
        self,
        message: str,
        schema: Mapping[str, Any] | None = None,
        *,
        url: str = "",
        timeout: float | None = None,
        cancel: CancelToken | None = None,
    ) -> Answer: ...

    def tell(self, event: Event) -> None:
        """Send an event to the consumer. Raises `Cancelled` when the stream ends first."""


#: The stream that waits for the tools of a toolset, where its methods are called for one.
waiting_stream: ContextVar[Asking | None] = ContextVar("waiting_stream", default=None)


class ToolContext(CallContext, Protocol):
    """Everything that a running tool may use. A function with a parameter annotated `ToolContext` is given one. All
    methods may be called from any thread until the call ends.
    """

    @property
    def call_id(self) -> str:
        """The id of this call."""

    @property
    def session_id(self) -> str:
        """The id of the session that the call belongs to."""

    @property
    def agent_name(self) -> str:
        """The name of the agent that makes the call."""

    @property
    def model(self) -> Model:
        """The model of that agent."""

    @property
    def cancel(self) -> CancelToken:
        """The call's token, which is cancelled when the stream is cancelled or when the call's time is up.

        Pass it as ``cancel=`` to operations that wait, or check ``cancel.cancelled``.
        """

    def progress(self, output: str = "", progress: float | None = None, total: float | None = None) -> None:
        """Report progress to the consumer, as a `ToolCallOutput` event.

        Never waits, and may be called from any thread and from a coroutine. A consumer that is 64 of these events
        behind misses some. Progress that is reported after the end of the call is dropped, and so are numbers that are
        not finite.
        """

    def elicit(
        self,
        message: str,
        schema: Mapping[str, Any] | None = None,
        *,
        url: str = "",
        timeout: float | None = None,
        cancel: CancelToken | None = None,
    ) -> Answer:
        """Ask the user of this stream, and wait for the answer.

        ``schema`` is the JSON schema of the form; instead, ``url`` is a web page to visit. After ``timeout`` seconds
        (by default the runtime's ``answer_timeout``) the answer is ``decline``; if nobody can be asked, it is
        ``decline`` at once. Raises `Cancelled` if the stream ends first, or if ``cancel`` is cancelled, which withdraws
        the question. In a coroutine, waiting would block every asynchronous tool and model of the process, so `elicit`
        raises `RuntimeError` there: await `aelicit`.
        """

    async def aelicit(
        self,
        message: str,
        schema: Mapping[str, Any] | None = None,
        *,
        url: str = "",
        timeout: float | None = None,
    ) -> Answer:
        """As `elicit`, for asynchronous tools. Cancelling the task that waits withdraws the question."""

    @property
    def kept(self) -> Mapping[str, Any]:
        """What `once` has kept of this call so far, by key."""

    def once(self, key: str, function: Callable[[], Any]) -> Any:
        """Call ``function`` and keep its return value, which has to be JSON, in the store under ``key``. If the process
        dies later in this call and the tool is called again (``@tool(resumable=True)``), `once` returns the kept value.

        ``function`` may still run twice, if the process dies before its result is in the store: pass an idempotency key
        such as `call_id` to the service that it calls. Raises what ``function`` raises, `TypeError` for a value that is
        not JSON, and `StoreError`. Without a store, the value is kept until the call ends. In a coroutine, await
        `aonce`.
        """

    async def aonce(self, key: str, function: Callable[[], Awaitable[Any]]) -> Any:
        """As `once`, for asynchronous tools, with a coroutine function."""

    def run_agent(self, agent: Agent, task: str | Session) -> RunResult[Any]:
        """Run another agent inside this call, on a new session that begins with the text ``task``, or on a session.

        The other agent's events and questions reach the consumer of this stream, with the id of the other agent's
        session. A cancel of this stream cancels the other agent. Raises `RunError` if its run does not end normally. In
        a coroutine, `run_agent` raises `RuntimeError`, as `elicit` does: await `arun_agent`.
        """

    async def arun_agent(self, agent: Agent, task: str | Session) -> RunResult[Any]:
        """As `run_agent`, for asynchronous tools. Cancelling the task that waits cancels the other agent."""
