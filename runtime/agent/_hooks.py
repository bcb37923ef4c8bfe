"""Hooks: callables and shell commands that are told what a stream is about to do, and may stop it."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from channels import CancelToken
from channels._lazy import lazy

from .._checks import is_number
from .._dataclasses import asdict, dataclass, field, fields, replace, short_repr
from .._errors import HookFailed
from ..usage import Usage
from ._hook_answers import read_answer
from ._hook_commands import run_command
from ._hook_points import HOOK_POINTS

if TYPE_CHECKING:
    import copy
    import inspect
    import shlex
else:
    copy = lazy("copy")
    inspect = lazy("inspect")
    shlex = lazy("shlex")

TIMEOUT: Final = 60.0  # seconds

Command: TypeAlias = str | Sequence[str]


@dataclass(frozen=True, slots=True)
class HookInput:
    """The input of a hook. A command gets it as JSON on its standard input, without the empty fields.

    It is one class for all hook points, so that one hook may serve several of them and the JSON needs no second form.
    The first four fields are set at every point, the others where the table of the hook points says so.
    """

    hook_event_name: str
    session_id: str
    agent_name: str
    cwd: str = field(default_factory=lambda: _working_directory())

    # What was said, and why something happens.
    prompt: str = ""  # of the user
    response: str = ""  # what the model said; the last reply of a sub-agent; the summary of a compaction
    reason: str = ""

    # The turn and its model call.
    iteration: int = 0  # 1 for the first turn of a stream
    model: str = ""  # its id
    usage: Usage | None = None  # of the reply
    stop_hook_active: bool = False  # a ``stop`` hook has made the agent go on before

    # The tool call.
    tool_name: str = ""
    tool_use_id: str = ""
    tool_input: Mapping[str, Any] | None = None
    tool_response: str = ""
    is_error: bool = False  # of the response
    decision: str = ""  # ``allow`` or ``deny``

    # Other agents.
    sub_agent: str = ""
    sub_session_id: str = ""
    from_agent: str = ""
    to_agent: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The input of a command, ready for `json.dumps`."""
        given = asdict(self)
        said = {key: value for key, value in given.items() if value or key == "cwd"}
        if self.tool_input is not None:
            said["tool_input"] = dict(self.tool_input)
        return said

    __repr__ = short_repr


@dataclass(frozen=True, slots=True)
class HookResult:
    """The answer of a hook. A hook point accepts only some of the fields; with any other field the hook has failed.

    ``block`` stops what is about to happen, and ``reason`` says why. ``context`` is a text that the model is shown.
    ``updated_input`` replaces the arguments of a tool call, ``updated_response`` its result. ``allow`` approves a tool
    call in the user's place.
    """

    block: bool = False
    reason: str = ""
    context: str = ""
    updated_input: Mapping[str, Any] | None = None
    updated_response: str | None = None
    allow: bool = False

    __repr__ = short_repr


@functools.cache
def nothing() -> HookResult:
    """The answer of a hook that has nothing to say."""
    return HookResult()


_ANSWERS: Final[Mapping[str, type]] = {
    "block": bool,
    "reason": str,
    "context": str,
    "updated_input": Mapping,
    "updated_response": str,
    "allow": bool,
}


@dataclass(frozen=True, slots=True)
class Hook:
    """A hook with settings: a callable or a command, with a matcher or a timeout.

    ``matcher`` selects the tools for which the hook runs, by name: shell-style patterns separated by ``|``, such as
    ``shell|write_*``. Only the hook points of tool calls take one. After ``timeout`` seconds the hook has failed: a
    command is killed, a coroutine is cancelled, and a plain function is no longer waited for.
    """

    target: Callable[[HookInput], Any] | Command
    matcher: str = "*"
    timeout: float = TIMEOUT

    def __post_init__(self) -> None:
        command = [self.target] if isinstance(self.target, str) else self.target
        if not callable(command) and not (
            isinstance(command, Sequence) and command and all(isinstance(each, str) and each for each in command)
        ):
            raise TypeError(
                f"a hook must be a callable, a text for the shell or a list of arguments, not {self.target!r}"
            )
        if not isinstance(self.matcher, str):
            raise TypeError(f"a hook's matcher must be text, such as 'shell|write_*', not {self.matcher!r}")
        if not is_number(self.timeout, above=0):
            raise ValueError(f"a hook's timeout must be a number of seconds above 0, not {self.timeout!r}")

    @property
    def name(self) -> str:
        """The name of the hook in events."""
        if callable(self.target):
            return getattr(self.target, "__qualname__", None) or type(self.target).__qualname__
        return self.target if isinstance(self.target, str) else shlex.join(self.target)

    def matches(self, tool_name: str) -> bool:
        """Whether the hook is for calls of this tool."""
        return self.matcher == "*" or any(fnmatchcase(tool_name, pattern) for pattern in self.matcher.split("|"))

    def bound(self, given: HookInput, cancel: CancelToken | None) -> Callable[[], Any]:
        """A function without arguments that calls the hook; a coroutine function if the hook is one. ``cancel`` ends a
        command.
        """
        target = self.target
        if not callable(target):
            return lambda: self._run(target, given, cancel)
        if inspect.iscoroutinefunction(target) or inspect.iscoroutinefunction(getattr(target, "__call__", None)):  # noqa: B004

            async def call() -> Any:
                return _kept(await target(_private(given)))

            return call
        return lambda: _kept(target(_private(given)))

    def _run(self, command: Command, given: HookInput, cancel: CancelToken | None) -> HookResult:
        """Exit status 0: go on, or what JSON on standard output says; 2: block, with standard error as the reason."""
        ended = run_command(command, given.to_dict(), given.cwd, self.timeout, cancel)
        if ended.status == 2:
            return HookResult(block=True, reason=ended.err.strip())
        if ended.status != 0:
            raise HookFailed(f"exit status {ended.status}: {ended.err.strip() or 'nothing on standard error'}")
        return HookResult(**read_answer(ended.out, HOOK_POINTS[given.hook_event_name].takes))

    def result(self, point: str, value: Any) -> HookResult:
        """The answer of the hook at ``point``, checked. Raises `HookFailed`."""
        if value is None:
            return nothing()
        if not isinstance(value, HookResult):
            raise HookFailed(f"hook {self.name} returns a HookResult or None, not {value!r}")
        taken = HOOK_POINTS[point].takes
        for each in fields(HookResult):
            said = getattr(value, each.name)
            if said == each.default:
                continue
            if not isinstance(said, _ANSWERS[each.name]):
                raise HookFailed(f"hook {self.name}: {each.name} must be {_ANSWERS[each.name].__name__}, not {said!r}")
            if each.name not in ("reason", *taken):
                raise HookFailed(f"{point} accepts {', '.join(taken) or 'nothing'}, not {each.name}")
        return value


class Hooks:
    """The hooks of an agent, by hook point."""

    def __init__(self, given: Mapping[str, Sequence[Any]] | None) -> None:
        self._hooks: dict[str, list[Hook]] = {}
        for point, targets in (given or {}).items():
            if point not in HOOK_POINTS:
                raise ValueError(f"unknown hook point {point!r}; known are {', '.join(HOOK_POINTS)}")
            if isinstance(targets, (str, bytes, Hook)) or callable(targets) or not isinstance(targets, Iterable):
                raise TypeError(f"hooks[{point!r}] must be a list of callables and commands, not {targets!r:.200}")
            self._hooks[point] = [each if isinstance(each, Hook) else Hook(each) for each in targets]
            for hook in self._hooks[point]:
                if hook.matcher != "*" and not HOOK_POINTS[point].has_matchers:
                    raise ValueError(
                        f"hooks[{point!r}]: no tool is called at this point, so it takes no matcher {hook.matcher!r}"
                    )

    def __bool__(self) -> bool:
        return bool(self._hooks)

    def at(self, point: str, tool_name: str = "") -> list[Hook]:
        """The hooks at ``point``, for this tool where there is one."""
        hooks = self._hooks.get(point)
        if not hooks:
            return []
        return [hook for hook in hooks if hook.matches(tool_name)]


def _private(given: HookInput) -> HookInput:
    """The hook input with a copy of the arguments: a change of them reaches neither the tool nor the other hooks."""
    return given if given.tool_input is None else replace(given, tool_input=copy.deepcopy(given.tool_input))


def _kept(value: Any) -> Any:
    """The answer of a hook, copied: the hook cannot change it any more."""
    if isinstance(value, HookResult) and isinstance(value.updated_input, Mapping):
        return replace(value, updated_input=copy.deepcopy(value.updated_input))
    return value


def _working_directory() -> str:
    try:
        return os.getcwd()
    except OSError:  # it was removed
        return ""
