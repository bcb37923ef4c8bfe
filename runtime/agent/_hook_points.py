"""The hook points: what a hook is told at each of them, and what it may answer. One row a point."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final


class HookPoint:
    """What holds at one hook point."""

    # No dataclass or NamedTuple: they are made here, as the package is imported, and that takes ten times as long.
    __slots__ = ("guards", "has_matchers", "takes", "told")

    def __init__(
        self,
        told: tuple[str, ...] = (),
        takes: tuple[str, ...] = (),
        has_matchers: bool = False,
        guards: bool = False,
    ) -> None:
        #: The fields of `HookInput` that are set here, besides those that every hook is told.
        self.told = told
        #: The fields of `HookResult` that mean something here, besides ``reason``.
        self.takes = takes
        #: It is about a tool: a hook may be for some of them only, with a matcher.
        self.has_matchers = has_matchers
        #: A hook that fails here, or takes too long, blocks.
        self.guards = guards


_CALL: Final = ("tool_name", "tool_use_id", "tool_input")
_RESULT: Final = (*_CALL, "tool_response", "is_error")

HOOK_POINTS: Final[Mapping[str, HookPoint]] = {
    # What the user says.
    "session_start": HookPoint(takes=("block", "context")),
    "user_prompt_submit": HookPoint(told=("prompt",), takes=("block", "context")),
    "user_steering_messages_submit": HookPoint(told=("prompt",), takes=("block", "context")),
    "user_followup_submit": HookPoint(told=("prompt",), takes=("block", "context")),
    # A turn, and its model call.
    "turn_start": HookPoint(told=("iteration",), takes=("context",)),
    "before_compaction": HookPoint(told=("reason",), takes=("block",)),
    "after_compaction": HookPoint(told=("reason", "response")),
    "before_llm_call": HookPoint(told=("model", "iteration"), takes=("block",)),
    "after_llm_call": HookPoint(told=("model", "iteration", "response", "usage")),
    # A tool call.
    "pre_tool_use": HookPoint(told=_CALL, takes=("block", "updated_input"), has_matchers=True, guards=True),
    "permission_request": HookPoint(told=_CALL, takes=("block", "allow"), has_matchers=True),
    "on_tool_approval_decision": HookPoint(told=(*_CALL, "decision", "reason"), has_matchers=True),
    "tool_response_transform": HookPoint(told=_RESULT, takes=("updated_response",), has_matchers=True),
    "post_tool_use": HookPoint(told=_RESULT, takes=("block", "context"), has_matchers=True),
    # Other agents, and people.
    "subagent_stop": HookPoint(told=("sub_agent", "sub_session_id", "reason", "response")),
    "on_agent_switch": HookPoint(told=("from_agent", "to_agent")),
    "on_user_input": HookPoint(told=("reason", *_CALL)),  # the call, where it is one that waits for the user
    # The ends.
    "stop": HookPoint(told=("response", "stop_hook_active"), takes=("block",)),
    "turn_end": HookPoint(told=("reason", "iteration")),
    "on_max_iterations": HookPoint(told=("reason",)),
    "notification": HookPoint(told=("reason",)),
    "on_error": HookPoint(told=("reason",)),
    "session_end": HookPoint(told=("reason",)),
}
