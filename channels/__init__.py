"""Closable bounded channels for threads, with Go's semantics: `Channel`, `select`, `CancelToken` and what goes with it.

The asyncio side is in `channels.aio`, imported on its own.
"""

from ._cancel import CancelToken, Registration
from ._channel import Channel
from ._errors import Cancelled, ChannelClosed, WouldBlock
from ._group import WorkerGroup
from ._merge import merge
from ._parked import Parked, ParkedCase, parked
from ._select import Selected, select
from ._timer import after, tick
from ._views import ChannelStatistics, Receiver, Sender, Sending, SupportsDone

__all__ = [
    "CancelToken",
    "Cancelled",
    "Channel",
    "ChannelClosed",
    "ChannelStatistics",
    "Parked",
    "ParkedCase",
    "Receiver",
    "Registration",
    "Selected",
    "Sender",
    "Sending",
    "SupportsDone",
    "WorkerGroup",
    "WouldBlock",
    "after",
    "merge",
    "parked",
    "select",
    "tick",
]

for _name in __all__:  # repr, tracebacks, help and pickles show the name that users import
    globals()[_name].__module__ = __name__
