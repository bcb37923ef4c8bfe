"""One side of a channel: what may only send, what may only receive, and the cases of a `select`."""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from ._park import NOTHING

if TYPE_CHECKING:
    from ._channel import Channel

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
T_contra = TypeVar("T_contra", contravariant=True)


class SupportsDone(Protocol):
    """What ``cancel=`` takes: anything whose ``done`` is a receiver that closes. A ``cause`` is passed on."""

    @property
    def done(self) -> Receiver[Any]: ...


class Sender(Generic[T_contra]):
    """The sending side of a channel: Go's ``chan<-``. It can also close it."""

    __slots__ = ("__weakref__", "_target")  # no _channel: it is not a case of select

    def __init__(self, channel: Channel[Any]) -> None:
        self._target = channel

    def send(self, value: T_contra, timeout: float | None = None, cancel: SupportsDone | None = None) -> None:
        """`Channel.send`."""
        self._target.send(value, timeout, cancel)

    def try_send(self, value: T_contra) -> None:
        """`Channel.try_send`."""
        self._target.try_send(value)

    def sending(self, value: T_contra) -> Sending[Any]:
        """`Channel.sending`."""
        return Sending(self._target, value)

    def close(self, final: Any = NOTHING) -> bool:
        """`Channel.close`."""
        return self._target.close(final)

    @property
    def closed(self) -> bool:
        """`Channel.closed`."""
        return self._target.closed

    @property
    def capacity(self) -> int:
        """`Channel.capacity`."""
        return self._target.capacity

    def __len__(self) -> int:
        return len(self._target)

    def __bool__(self) -> bool:
        return True

    def __repr__(self) -> str:
        return f"<Sender of {self._target!r}>"

    def __enter__(self) -> Sender[T_contra]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._target.close()


class Receiver(Generic[T_co]):
    """The receiving side of a channel: Go's ``<-chan``. It is also the receive case of a `select`."""

    __slots__ = ("__weakref__", "_channel")

    def __init__(self, channel: Channel[Any]) -> None:
        self._channel = channel

    def recv(self, timeout: float | None = None, cancel: SupportsDone | None = None) -> T_co:
        """`Channel.recv`."""
        value: T_co = self._channel.recv(timeout, cancel)
        return value

    def try_recv(self) -> T_co:
        """`Channel.try_recv`."""
        value: T_co = self._channel.try_recv()
        return value

    def receiving(self) -> Receiver[T_co]:
        """This receiver, as the case of a `select` said aloud."""
        return self

    @property
    def closed(self) -> bool:
        """`Channel.closed`."""
        return self._channel.closed

    @property
    def capacity(self) -> int:
        """`Channel.capacity`."""
        return self._channel.capacity

    def __iter__(self) -> Iterator[T_co]:
        return iter(self._channel)

    def __len__(self) -> int:
        return len(self._channel)

    def __bool__(self) -> bool:
        return True

    def __repr__(self) -> str:
        return f"<Receiver of {self._channel!r}>"


class Sending(Generic[T]):
    """The case of a `select` that sends ``value``. Made by `Channel.sending`."""

    __slots__ = ("_channel", "value")

    def __init__(self, channel: Channel[T], value: T) -> None:
        self._channel = channel
        self.value = value

    def __repr__(self) -> str:
        return f"<Sending {self.value!r} on {self._channel!r}>"
