"""What was said: messages, and the session that holds them.

Only the worker of a stream writes a session, through the log it holds a lease on (`Session.lease`); everyone else reads.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from ._errors import SessionBusy

Role = Literal["system", "user", "assistant", "tool"]


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call a model asks for. ``arguments`` is the JSON text as the model wrote it, which may be broken."""

    id: str
    name: str
    arguments: str = "{}"


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation.

    ``tool_calls`` stands on assistant messages, ``tool_call_id`` and ``is_error`` on tool messages.
    """

    role: Role
    content: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    is_error: bool = False
    agent_name: str | None = None
    created_at: datetime = field(default_factory=lambda: datetime.now(UTC))

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary, without the fields that say nothing."""
        out: dict[str, Any] = {"role": self.role, "content": self.content, "created_at": self.created_at.isoformat()}
        if self.tool_calls:
            out["tool_calls"] = [{"id": c.id, "name": c.name, "arguments": c.arguments} for c in self.tool_calls]
        if self.tool_call_id is not None:
            out["tool_call_id"] = self.tool_call_id
        if self.is_error:
            out["is_error"] = True
        if self.agent_name is not None:
            out["agent_name"] = self.agent_name
        return out

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Message:
        """The message that `to_dict` wrote."""
        return cls(
            role=data["role"],
            content=data.get("content", ""),
            tool_calls=tuple(ToolCall(**call) for call in data.get("tool_calls", ())),
            tool_call_id=data.get("tool_call_id"),
            is_error=data.get("is_error", False),
            agent_name=data.get("agent_name"),
            created_at=datetime.fromisoformat(data["created_at"]) if "created_at" in data else datetime.now(UTC),
        )
