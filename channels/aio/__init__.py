"""Where threads meet asyncio: a loop in a thread, and channels that tasks can use.

The two directions are not alike:

- A loop wakes a thread through a `Channel`. The waiting thread can be interrupted, cancelled and timed out anywhere,
  and loses nothing. (Ctrl-C in ``get`` of a janus queue loses values, and may leave the lock held that the loop needs.)
- A thread wakes a loop by a byte in a socket that the loop watches. The thread may be in a signal handler or finalizer,
  or be hit by Ctrl-C, so it does that in one step of C. A loop that cannot watch a socket (the one of Windows) is woken
  through janus, by the timer thread.

What has piled up is moved without any of that, so a wake-up is paid once for many values.
"""

from ._feed import Feed
from ._loop import LoopThread, default_loop, from_async
from ._task import TaskHandle
from ._wait import AsyncReceiver, to_async

__all__ = ["AsyncReceiver", "Feed", "LoopThread", "TaskHandle", "default_loop", "from_async", "to_async"]

for _name in __all__:  # repr, tracebacks, help and pickles show the name that users import
    globals()[_name].__module__ = __name__
