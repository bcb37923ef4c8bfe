"""A runtime for agents, driven from synchronous Python with a plain ``for`` loop.

    for event in runtime.run_stream(Session.from_user("Book a table")):
        ...

Events are in `runtime.events`, models in `runtime.models`, MCP servers in `runtime.mcp`, stores in `runtime.stores`.
"""

from typing import TYPE_CHECKING, Any

import channels as _channels

if not hasattr(_channels, "CancelToken"):  # Django Channels installs a package of this name, and the last one wins
    raise ImportError(
        f"the package 'channels' in {list(getattr(_channels, '__path__', []))} is not lockgate's: another distribution,"
        " such as Django Channels, installs one of the same name. Keep the two in separate environments, then install"
        " lockgate again: pip install --force-reinstall lockgate"
    )

from ._errors import (
    InvalidAnswer,
    LeaseLost,
    MissingExtra,
    ModelError,
    NotParkable,
    NotPending,
    NotRunning,
    RunError,
    SessionBusy,
    SessionChanged,
    SessionNotFound,
    StillWaiting,
    StoreError,
    StoreTooNew,
    StreamStuck,
)
from ._log import SessionFilter
from ._public import publish
from .agent._agent import Agent, Team
from .agent._budget import Budget
from .agent._compaction import Compaction
from .agent._hooks import Hook, HookInput, HookResult
from .agent._result import RunResult
from .agent._tool import Answer, Tool, ToolResult, ToolSet, tool
from .agent._tool_context import ToolContext
from .human._bridge import ElicitationBridge
from .model import (
    Delta,
    FallbackDelta,
    FinishDelta,
    Model,
    NativeDelta,
    OutputSchema,
    ReasoningDelta,
    TextDelta,
    ToolCallDelta,
    ToolDefinition,
    UsageDelta,
)
from .permissions import Decision, Permissions, Rule
from .runtime import Runtime
from .session._message import Image, Message, ToolCall
from .session._session import Session
from .stores._store import Store
from .stream._event_stream import EventStream
from .stream._forwarder import Observer
from .stream._private_events import ConsumerCall
from .stream._scope import EventSink, stream_scope
from .usage import Price, Usage

if TYPE_CHECKING:
    from .batch._runs import Runs
    from .recording._recording import Recording

__all__ = [
    "Agent",
    "Answer",
    "Budget",
    "Compaction",
    "ConsumerCall",
    "Decision",
    "Delta",
    "ElicitationBridge",
    "EventSink",
    "EventStream",
    "FallbackDelta",
    "FinishDelta",
    "Hook",
    "HookInput",
    "HookResult",
    "Image",
    "InvalidAnswer",
    "LeaseLost",
    "Message",
    "MissingExtra",
    "Model",
    "ModelError",
    "NativeDelta",
    "NotParkable",
    "NotPending",
    "NotRunning",
    "Observer",
    "OutputSchema",
    "Permissions",
    "Price",
    "ReasoningDelta",
    "Recording",
    "Rule",
    "RunError",
    "RunResult",
    "Runs",
    "Runtime",
    "Session",
    "SessionBusy",
    "SessionChanged",
    "SessionFilter",
    "SessionNotFound",
    "StillWaiting",
    "Store",
    "StoreError",
    "StoreTooNew",
    "StreamStuck",
    "Team",
    "TextDelta",
    "Tool",
    "ToolCall",
    "ToolCallDelta",
    "ToolContext",
    "ToolDefinition",
    "ToolResult",
    "ToolSet",
    "Usage",
    "UsageDelta",
    "stream_scope",
    "tool",
]

#: Not before somebody wants them: most programs neither record nor run many sessions at once.
_LATER = {"Recording": ".recording._recording", "Runs": ".batch._runs"}

publish(__name__, globals(), (name for name in __all__ if name not in _LATER))


def __getattr__(name: str) -> Any:
    if name in _LATER:
        from importlib import import_module

        value = globals()[name] = getattr(import_module(_LATER[name], __name__), name)
        return value
    if name == "__version__":  # from the installed metadata, which is slow to read: only when asked for
        from importlib.metadata import version

        return version("lockgate")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
