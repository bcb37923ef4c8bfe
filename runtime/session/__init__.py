"""Messages, and the session that holds them and has one writer at a time."""

from ._message import Image, Message, Native, Role, ToolCall
from ._session import Compacted, Session

__all__ = [
    "Compacted",
    "Image",
    "Message",
    "Native",
    "Role",
    "Session",
    "ToolCall",
]
