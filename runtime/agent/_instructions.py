"""The instructions of an agent: a text, or a function that returns it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from channels._lazy import lazy

from ..session._session import Session

if TYPE_CHECKING:
    import inspect
else:
    inspect = lazy("inspect")


class Instructions:
    """What an agent was given as its instructions, checked. Raises `TypeError` for anything else."""

    def __init__(self, given: object) -> None:
        self.text = given if isinstance(given, str) else ""
        self.function: Callable[[Session], Any] | None = None
        if isinstance(given, str):
            return
        if not callable(given) or isinstance(given, type):
            raise TypeError(
                f"instructions must be text, or a function that returns it, not {given!r:.200}; "
                "pass tools by keyword: Agent(name, model, tools=[...])"
            )
        self.function = _taking_session(given)

    def __repr__(self) -> str:
        return f"<Instructions {self.function or self.text!r:.80}>"


def instructions_text(value: object) -> str:
    """What a function of instructions returned. Raises `TypeError` where that is not text."""
    if not isinstance(value, str):
        raise TypeError(f"a function of instructions returns text, not {value!r:.200}")
    return value


def _taking_session(function: Callable[..., Any]) -> Callable[[Session], Any]:
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # a builtin that does not say: it is called as documented
        return function
    for arguments in ((object(),), ()):
        try:
            signature.bind(*arguments)
        except TypeError:
            continue
        if arguments:
            return function
        if inspect.iscoroutinefunction(function):

            async def without_session_async(session: Session) -> Any:
                return await function()

            return without_session_async
        return lambda session: function()
    raise TypeError(f"a function of instructions takes nothing, or the session, not {signature}")
