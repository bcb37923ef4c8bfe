"""Steps that a run and a chat have in common: loading the model, telling how a stream ended, closing it."""

from __future__ import annotations

from typing import Any

from .. import events
from .._errors import RunError, StreamStuck
from ..agent._agent import Agent
from ..session._session import Session
from ..stream._event_stream import EventStream
from ._load import CannotLoad
from ._terminal import Terminal


def is_over(session: Session) -> bool:
    """Whether there is nothing left to do in the session, before the user says something."""
    left = session._unfinished
    if left is not None and (left.calls or left.requests or left.mail):
        return False
    last = session.messages[-1] if session.messages else None
    return last is None or (last.role == "assistant" and not last.tool_calls and last.finish_reason != "interrupted")


def load_model(terminal: Terminal, agent: Agent) -> None:
    """Load a model in this process. That keeps all threads waiting, so the terminal says so before."""
    model: Any = agent.model
    if not hasattr(model, "load"):
        return
    try:
        with terminal.busy(f"loading {model.id}", at_once=True):
            model.load()
    except Exception as error:
        raise CannotLoad(" ".join(str(error).split())) from error


def problem_of(event: events.Event) -> str:
    """Code and description, where ``event`` tells why the run fails."""
    if isinstance(event, events.Error):
        return f"{event.code}: {event.error}"
    if isinstance(event, events.MaxIterationsReached):
        return f"max_iterations: it did not come to an end within its turn limit of {event.max_iterations}"
    if isinstance(event, events.BudgetExceeded):
        return f"budget_exceeded: {event.kind} {event.used:g}, of {event.limit:g} allowed"
    return ""


def cause_of(stream: EventStream) -> BaseException | None:
    """The exception that was raised in the worker."""
    try:
        stream.result()
    except RunError as error:
        return error.__cause__
    return None


def show_traceback(stream: EventStream, terminal: Terminal) -> None:
    """Print the tracebacks of the tools that failed, and of what ended the run."""
    try:
        text = "\n".join(stream.failures)
        stream.result()
    except RunError as error:
        text = error.traceback
    if text:
        terminal.note(text.rstrip(), "dim")


def close_stream(stream: EventStream, terminal: Terminal) -> None:
    try:
        stream.close()
    except StreamStuck as stuck:
        terminal.note(f"warning: {str(stuck).splitlines()[0]}", "yellow")
