"""What `channels.py` compares: one small class for each library, none of which has to be installed.

`pip install janus culsans aiologic chan chanpy`, and with Python 3.11 or older `pip install pygolang`, where a file of
constraints (`PIP_CONSTRAINT`) has to ask for cython<3, setuptools<66 and setuptools_dso<2.8.
"""

from __future__ import annotations

import importlib
import queue
from collections.abc import Callable, Iterator
from typing import Any

Send = Callable[[Any], Any]
Recv = Callable[[], Any]


class Peer:
    """A library. The methods return its own functions where they can, so that nothing is measured but those."""

    name = ""
    module = ""
    rendezvous = False  # has capacity 0
    bounded = True
    closed: tuple[type[BaseException], ...] = ()  # what a receive raises at the end; none: it cannot be closed
    selects = False
    asynchronous = False
    traceable = True  # its memory: what Python allocates

    def __init__(self) -> None:
        self.m = importlib.import_module(self.module)

    def make(self, capacity: int) -> Any:
        raise NotImplementedError

    def ops(self, channel: Any) -> tuple[Send, Recv]:
        return channel.send, channel.recv

    def close(self, channel: Any) -> None:
        channel.close()

    def drain(self, channel: Any) -> None:
        """Receive until the channel is closed."""
        recv = self.ops(channel)[1]
        try:
            while True:
                recv()
        except self.closed:
            pass

    def selector(self, channels: list[Any]) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """A function that receives from one of them, and its arguments."""
        raise NotImplementedError

    def async_recv(self, channel: Any) -> Recv:
        """A coroutine function that receives."""
        raise NotImplementedError


class Lockgate(Peer):
    name = "lockgate"
    module = "channels"
    rendezvous = selects = asynchronous = True

    def __init__(self) -> None:
        super().__init__()
        self.make = self.m.Channel
        self.closed = (self.m.ChannelClosed,)
        try:
            self.to_async = importlib.import_module("channels.aio").to_async
        except ImportError:
            self.asynchronous = False

    def selector(self, channels: list[Any]) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.m.select, tuple(channels)

    def async_recv(self, channel: Any) -> Recv:
        return self.to_async(channel).__anext__


class Queue(Peer):
    name = "queue.Queue"
    module = "queue"
    closed = (queue.ShutDown,) if hasattr(queue, "ShutDown") else ()  # 3.13

    def make(self, capacity: int) -> Any:
        return queue.Queue(capacity or 1)

    def ops(self, channel: Any) -> tuple[Send, Recv]:
        return channel.put, channel.get

    def close(self, channel: Any) -> None:
        channel.shutdown()


class SimpleQueue(Queue):
    name = "SimpleQueue"
    bounded = False
    closed = ()

    def make(self, capacity: int) -> Any:
        return queue.SimpleQueue()


class Janus(Peer):
    name = module = "janus"
    asynchronous = True

    def __init__(self) -> None:
        super().__init__()
        self.closed = (self.m.SyncQueueShutDown,)

    def make(self, capacity: int) -> Any:
        return self.m.Queue(capacity or 1)

    def ops(self, channel: Any) -> tuple[Send, Recv]:
        return channel.sync_q.put, channel.sync_q.get

    def close(self, channel: Any) -> None:
        channel.shutdown()

    def async_recv(self, channel: Any) -> Recv:
        return channel.async_q.get


class Culsans(Janus):
    name = module = "culsans"


class Aiologic(Peer):
    name = module = "aiologic"
    asynchronous = True

    def make(self, capacity: int) -> Any:
        return self.m.Queue(capacity or 1)

    def ops(self, channel: Any) -> tuple[Send, Recv]:
        return channel.green_put, channel.green_get

    def async_recv(self, channel: Any) -> Recv:
        return channel.async_get


class Chan(Peer):
    name = module = "chan"  # its select loses wake-ups
    rendezvous = True

    def __init__(self) -> None:
        super().__init__()
        self.make = self.m.Chan
        self.closed = (self.m.ChanClosed,)

    def ops(self, channel: Any) -> tuple[Send, Recv]:
        return channel.put, channel.get


class ChanPy(Peer):
    name = module = "chanpy"
    rendezvous = selects = asynchronous = True
    closed = (EOFError,)

    def make(self, capacity: int) -> Any:
        return self.m.chan(capacity) if capacity else self.m.chan()

    def ops(self, channel: Any) -> tuple[Send, Recv]:
        return channel.b_put, channel.b_get

    def drain(self, channel: Any) -> None:
        while channel.b_get() is not None:
            pass

    def selector(self, channels: list[Any]) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.m.b_alt, tuple(channels)

    def async_recv(self, channel: Any) -> Recv:
        return channel.get


class PyGolang(Peer):
    name = "pygolang (C++)"
    module = "golang"
    rendezvous = selects = True
    traceable = False
    closed = (EOFError,)

    def __init__(self) -> None:
        super().__init__()
        self.make = self.m.chan

    def drain(self, channel: Any) -> None:
        while channel.recv_()[1]:
            pass

    def selector(self, channels: list[Any]) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.m.select, tuple(channel.recv for channel in channels)


def installed() -> Iterator[Peer]:
    for kind in (Lockgate, Queue, SimpleQueue, Janus, Culsans, Aiologic, Chan, ChanPy, PyGolang):
        try:
            yield kind()
        except Exception as error:  # also what is installed, but does not go with this Python
            print(f"skipped {kind.name}: {error}")


if __name__ == "__main__":
    print("compared by channels.py:", ", ".join(peer.name for peer in installed()))
