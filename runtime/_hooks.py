"""Hooks: callables and shell commands that are told what a stream is about to do, and may stop it."""

from __future__ import annotations

import contextlib
import inspect
import json
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from channels import CancelToken

if TYPE_CHECKING:
    import subprocess

HOOK_POINTS: Final = ("session_start", "session_end", "user_prompt_submit", "notification", "on_error")
TIMEOUT: Final = 60.0  # seconds

Command: TypeAlias = "str | Sequence[str]"


@dataclass(frozen=True, slots=True)
class HookInput:
    """What a hook is told. A command gets it as JSON on its standard input."""

    hook_event_name: str
    session_id: str
    agent_name: str
    cwd: str = field(default_factory=lambda: _working_directory())
    prompt: str = ""  # user_prompt_submit
    reason: str = ""  # session_end, on_error, notification


@dataclass(frozen=True, slots=True)
class HookResult:
    """What a hook may answer: to stop here, for a reason; something that the model should know."""

    block: bool = False
    reason: str = ""
    context: str = ""


class HookFailed(Exception):
    """A hook broke. The stream goes on."""


class Hook:
    """One callable or command at one hook point."""

    def __init__(self, point: str, target: Callable[[HookInput], Any] | Command, timeout: float = TIMEOUT) -> None:
        self.point = point
        self.target = target
        self.timeout = timeout
        self.name = getattr(target, "__qualname__", None) or str(target)

    def bound(self, given: HookInput, cancel: CancelToken | None) -> Callable[[], Any]:
        """The call to make, as a plain or a coroutine function. ``cancel`` ends a command."""
        target = self.target
        if not callable(target):
            return lambda: _run_command(target, given, self.timeout, cancel)
        if inspect.iscoroutinefunction(target) or inspect.iscoroutinefunction(getattr(target, "__call__", None)):  # noqa: B004

            async def call() -> Any:
                return await target(given)

            return call
        return lambda: target(given)

    def result(self, value: Any) -> HookResult:
        """What the hook answered."""
        if value is None:
            return HookResult()
        if not isinstance(value, HookResult):
            raise HookFailed(f"hook {self.name} returns a HookResult or None, not {value!r}")
        if not (isinstance(value.reason, str) and isinstance(value.context, str)):
            raise HookFailed(f"hook {self.name} gives its reason and context as text, not {value!r}")
        return value

    def __repr__(self) -> str:
        return f"<Hook {self.point}: {self.name}>"


class Hooks:
    """The hooks of an agent, by hook point."""

    def __init__(self, given: Mapping[str, Sequence[Any]] | None) -> None:
        self._hooks: dict[str, list[Hook]] = {}
        for point, targets in (given or {}).items():
            if point not in HOOK_POINTS:
                raise ValueError(f"unknown hook point {point!r}; known are {', '.join(HOOK_POINTS)}")
            if isinstance(targets, str) or callable(targets):
                raise TypeError(f"hooks[{point!r}] is a list of callables and commands, not {targets!r}")
            self._hooks[point] = [Hook(point, target) for target in targets]

    def at(self, point: str) -> list[Hook]:
        """The hooks at ``point``."""
        return self._hooks.get(point, [])


def _run_command(command: Command, given: HookInput, timeout: float, cancel: CancelToken | None) -> HookResult:
    """Exit status 0: go on, or what JSON on standard output says; 2: block, with standard error as the reason."""
    import subprocess  # a tenth of what importing this package takes, and few agents have commands

    process = subprocess.Popen(
        command,
        shell=isinstance(command, str),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=given.cwd or None,
        start_new_session=True,  # so that what the shell started dies with it
    )
    with process, contextlib.ExitStack() as stack:
        if cancel is not None:
            stack.enter_context(cancel.on_cancel(lambda: _kill(process)))
        try:
            out, err = process.communicate(json.dumps(asdict(given)), timeout=timeout)
        except BaseException:
            _kill(process)
            raise
    if process.returncode == 2:
        return HookResult(block=True, reason=err.strip())
    if process.returncode != 0:
        raise HookFailed(f"exit status {process.returncode}: {err.strip()}")
    if not out.lstrip().startswith("{"):
        return HookResult()
    try:
        return HookResult(**json.loads(out))
    except (ValueError, TypeError) as error:
        raise HookFailed(f"its output is not a hook result: {error}") from error


def _working_directory() -> str:
    try:
        return os.getcwd()
    except OSError:  # it was removed
        return ""


def _kill(process: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
