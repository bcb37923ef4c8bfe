"""One side of a channel: what may only send, what may only receive, and the cases of a `select`."""

# Without `from __future__ import annotations`: a NamedTuple compiles each annotation that is a text, and the first such
# compilation in a process takes a millisecond.

from collections.abc import Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Protocol, TypeVar

from ._errors import ChannelClosed
from ._park import NOTHING
from ._rescue import Rescue

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
T_contra = TypeVar("T_contra", contravariant=True)


class SupportsDone(Protocol):
    """The protocol of ``cancel=``: anything whose ``done`` is a receiver that closes. A ``cause`` is passed on."""

    @property
    def done(self) -> "Receiver[Any]": ...


class ChannelStatistics(NamedTuple):
    """How many values a channel held and how many threads waited, at some moment. (After trio's
    ``MemoryChannelStatistics``.)"""

    current_buffer_used: int
    max_buffer_size: int
    waiting_to_send: int  # threads, tasks and selects
    waiting_to_receive: int
    closed: bool


if TYPE_CHECKING:

    class Ends(Protocol):
        """Both sides of a channel, as its views know them; `Channel` is the one that there is."""

        def send(self, value: Any, timeout: float | None = None, cancel: SupportsDone | None = None) -> None: ...
        def recv(self, timeout: float | None = None, cancel: SupportsDone | None = None) -> Any: ...
        def send_many(
            self, values: Iterable[Any], timeout: float | None = None, cancel: SupportsDone | None = None
        ) -> None: ...
        def recv_many(
            self, limit: int | None = None, timeout: float | None = None, cancel: SupportsDone | None = None
        ) -> list[Any]: ...
        def try_send(self, value: Any) -> None: ...
        def try_send_many(self, values: Iterable[Any]) -> int: ...
        def try_recv_many(self, limit: int | None = None) -> list[Any]: ...
        def try_recv(self) -> Any: ...
        def close(self, final: Any = ...) -> bool: ...
        def statistics(self) -> ChannelStatistics: ...
        def _failure(self) -> BaseException | None: ...
        def _try_take(self) -> Any: ...
        def _put_back(self, holder: Any) -> None: ...
        def _await_close(self, waiter: Any) -> None: ...
        @property
        def closed(self) -> bool: ...
        @property
        def capacity(self) -> int: ...
        def __len__(self) -> int: ...


class Sender(Generic[T_contra]):
    """The sending side of a channel: Go's ``chan<-``. It can also close it."""

    __slots__ = ("__weakref__", "_target")  # no _channel: it is not a case of select

    def __init__(self, channel: "Ends") -> None:
        if not isinstance(channel, Rescue):
            raise _no_channel("Sender", channel)
        self._target: Ends = channel

    def send(self, value: T_contra, timeout: float | None = None, cancel: SupportsDone | None = None) -> None:
        """Send ``value``, as `Channel.send`: waits while the buffer is full."""
        self._target.send(value, timeout, cancel)

    def try_send(self, value: T_contra) -> None:
        """Send ``value`` if that needs no waiting, as `Channel.try_send`."""
        self._target.try_send(value)

    def send_many(
        self, values: Iterable[T_contra], timeout: float | None = None, cancel: SupportsDone | None = None
    ) -> None:
        """Send ``values``, as `Channel.send_many`: waits while the buffer is full."""
        self._target.send_many(values, timeout, cancel)

    def try_send_many(self, values: Iterable[T_contra]) -> int:
        """Send as many of ``values`` as need no waiting, as `Channel.try_send_many`; how many."""
        return self._target.try_send_many(values)

    def sending(self, value: T_contra) -> "Sending[Any]":
        """The case of a `select` that sends ``value``, as `Channel.sending`."""
        return Sending(self._target, value)

    def close(self, final: T_contra = NOTHING) -> bool:
        """Close the channel, as `Channel.close`. Returns whether this call closed it."""
        return self._target.close(final)

    @property
    def closed(self) -> bool:
        """Whether the channel is closed, as `Channel.closed`."""
        return self._target.closed

    @property
    def capacity(self) -> int:
        """How many values the channel buffers, as `Channel.capacity`."""
        return self._target.capacity

    def statistics(self) -> ChannelStatistics:
        """The state of the channel a moment ago, as `Channel.statistics`."""
        return self._target.statistics()

    def __len__(self) -> int:
        return len(self._target)

    def __bool__(self) -> bool:
        return True

    def __repr__(self) -> str:
        return f"<Sender of {self._target!r}>"

    def __enter__(self) -> "Sender[T_contra]":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._target.close()


class Receiver(Generic[T_co]):
    """The receiving side of a channel: Go's ``<-chan``. It is also the receive case of a `select`, and an iterator."""

    __slots__ = ("__weakref__", "_channel")

    def __init__(self, channel: "Ends") -> None:
        if not isinstance(channel, Rescue):
            raise _no_channel("Receiver", channel)
        self._channel: Ends = channel

    def recv(self, timeout: float | None = None, cancel: SupportsDone | None = None) -> T_co:
        """Receive the next value, as `Channel.recv`: waits until there is one."""
        value: T_co = self._channel.recv(timeout, cancel)
        return value

    def try_recv(self) -> T_co:
        """Receive a value if one is there, as `Channel.try_recv`."""
        value: T_co = self._channel.try_recv()
        return value

    def recv_many(
        self, limit: int | None = None, timeout: float | None = None, cancel: SupportsDone | None = None
    ) -> list[T_co]:
        """Receive the values that are there, as `Channel.recv_many`: waits until there is one."""
        return self._channel.recv_many(limit, timeout, cancel)

    def try_recv_many(self, limit: int | None = None) -> list[T_co]:
        """Receive the values that are there, as `Channel.try_recv_many`."""
        return self._channel.try_recv_many(limit)

    def receiving(self) -> "Receiver[T_co]":
        """This receiver as a case of a `select`, for code that wants to name the operation."""
        return self

    @property
    def closed(self) -> bool:
        """Whether the channel is closed, as `Channel.closed`."""
        return self._channel.closed

    @property
    def capacity(self) -> int:
        """How many values the channel buffers, as `Channel.capacity`."""
        return self._channel.capacity

    def statistics(self) -> ChannelStatistics:
        """The state of the channel a moment ago, as `Channel.statistics`."""
        return self._channel.statistics()

    def __iter__(self) -> "Receiver[T_co]":
        return self

    def __next__(self) -> T_co:
        """`recv`, until the channel is closed and drained. Threads may share it, and a Ctrl-C leaves it usable."""
        try:
            return self.recv()
        except ChannelClosed as error:
            if self._channel._failure() is error:
                raise  # the source of a feed failed with it
        raise StopIteration

    def __len__(self) -> int:
        return len(self._channel)

    def __bool__(self) -> bool:
        return True

    def __repr__(self) -> str:
        return f"<Receiver of {self._channel!r}>"


class Sending(Generic[T]):
    """The case of a `select` that sends ``value``. Made by `Channel.sending`."""

    __slots__ = ("_channel", "value")

    def __init__(self, channel: "Ends", value: T) -> None:
        self._channel = channel
        self.value = value

    def __repr__(self) -> str:
        return f"<Sending {self.value!r:.200} on {self._channel!r}>"


def _no_channel(view: str, given: object) -> TypeError:
    return TypeError(f"a {view} must be of a Channel, as channel.{view.lower()} makes it, not {given!r:.200}")
