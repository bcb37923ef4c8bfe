"""Closable bounded channels for threads, with Go's semantics: `Channel`, `select`, `CancelToken` and what goes with it.

The asyncio side is in `channels.aio`, imported on its own.
"""

from typing import TYPE_CHECKING, Any

from ._cancel import CancelToken, Registration
from ._channel import Channel
from ._errors import Cancelled, ChannelClosed, WouldBlock
from ._select import Selected, select
from ._timer import after, tick
from ._views import ChannelStatistics, Receiver, Sender, Sending, SupportsDone

if TYPE_CHECKING:
    from ._group import WorkerGroup
    from ._merge import merge
    from ._parked import Parked, ParkedCase, parked

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

#: Not before somebody wants them.
_LATER = {
    "Parked": "_parked",
    "ParkedCase": "_parked",
    "WorkerGroup": "_group",
    "merge": "_merge",
    "parked": "_parked",
}

for _name in __all__:  # repr, tracebacks, help and pickles show the name that users import
    if _name not in _LATER:
        globals()[_name].__module__ = __name__


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = __import__(_LATER[name], globals(), None, [name], 1)
    for each, home in _LATER.items():
        if home == _LATER[name]:
            globals()[each] = getattr(module, each)
            globals()[each].__module__ = __name__
    return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
