"""`ToolContext`: what a running tool may use beside its arguments."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

from channels import CancelToken

from ..model import Model
from ..session._session import Session
from ._agent import Agent
from ._result import RunResult
from ._tool import Answer, CallContext


class ToolContext(CallContext, Protocol):
    """What a running tool may use. A tool gets one by having a parameter annotated `ToolContext`."""

    @property
    def call_id(self) -> str:
        """The id of this call."""

    @property
    def session_id(self) -> str:
        """The session that the call belongs to."""

    @property
    def agent_name(self) -> str:
        """The agent that makes the call."""

    @property
    def model(self) -> Model:
        """The model of that agent."""

    @property
    def cancel(self) -> CancelToken:
        """The call's token, cancelled when the stream is, or the call's time is up.

        Pass it as ``cancel=`` to what waits, or look at ``cancel.cancelled``.
        """

    def progress(self, output: str = "", progress: float | None = None, total: float | None = None) -> None:
        """Tell the consumer how far the call has come: a `ToolCallOutput` event.

        Never waits, and may be called from any thread, also from a coroutine. A consumer that is 64 of them behind
        misses some; what is said after the end of the call is dropped.
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

        ``schema`` is the JSON schema of the form, or ``url`` a page to visit. After ``timeout`` seconds (by default the
        runtime's) the answer is ``decline``, as it is at once where there is nobody to ask. Raises `Cancelled` when the
        stream ends first, or ``cancel`` is cancelled, which takes the question back. In a coroutine it would stop every
        asynchronous tool and model of the process, so it raises `RuntimeError` at once there: await `aelicit`.
        """

    async def aelicit(
        self,
        message: str,
        schema: Mapping[str, Any] | None = None,
        *,
        url: str = "",
        timeout: float | None = None,
    ) -> Answer:
        """`elicit`, for asynchronous tools. Cancelling the task that waits takes the question back."""

    def once(self, key: str, function: Callable[[], Any]) -> Any:
        """Call ``function``, and keep what it returns, which has to be JSON, in the store under ``key``. Where the
        process dies later in this call and the tool is called again (``@tool(resumable=True)``), return what is kept.

        ``function`` may still run twice, where the process dies before its result is in the store: give what it calls
        an idempotency key such as `call_id`. Raises what ``function`` raises, `TypeError` for what is not JSON,
        `StoreError`. Without a store it keeps the value as long as the call lasts. In a coroutine, await `aonce`.
        """

    async def aonce(self, key: str, function: Callable[[], Awaitable[Any]]) -> Any:
        """`once`, for asynchronous tools, with a coroutine function."""

    def run_agent(self, agent: Agent, task: str | Session) -> RunResult[Any]:
        """Run another agent inside this call, on a new session that begins with ``task``, or on a session.

        Its events reach the consumer of this stream, marked with its own session id, and so do its questions. It is
        cancelled when this stream is. Raises `RunError` when it ends other than normally. In a coroutine it raises
        `RuntimeError` at once, as `elicit`: await `arun_agent`.
        """

    async def arun_agent(self, agent: Agent, task: str | Session) -> RunResult[Any]:
        """`run_agent`, for asynchronous tools. Cancelling the task that waits cancels the agent."""
