"""What the ports of Go's tests have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from channels import Channel, ChannelClosed, WouldBlock, select

SHORT = 0.02


@pytest.fixture
def blocks() -> Callable[[Callable[[float], Any]], None]:
    """Assert that an operation, which is given a timeout, blocks."""

    def check(operation: Callable[[float], Any]) -> None:
        with pytest.raises(TimeoutError):
            operation(SHORT)

    return check


class Direct:
    """The operations as they are: Go's ``c <- x``, ``<-c`` and select with one case and default."""

    def __init__(self, channel: Channel[Any]) -> None:
        self.channel = channel

    def send(self, value: Any) -> None:
        self.channel.send(value, timeout=10)

    def nbsend(self, value: Any) -> bool:
        try:
            self.channel.try_send(value)
        except WouldBlock:
            return False
        return True

    def recv(self) -> tuple[Any, bool]:
        try:
            return self.channel.recv(timeout=10), True
        except ChannelClosed:
            return None, False

    def nbrecv(self) -> tuple[Any, bool, bool]:
        """value, ok, whether it was ready."""
        try:
            return self.channel.try_recv(), True, True
        except ChannelClosed:
            return None, False, True
        except WouldBlock:
            return None, False, False


class Select1(Direct):
    """The same as selects with one case."""

    def _select(self, case: Any, **options: Any) -> Any:
        return select(case, **options)

    def send(self, value: Any) -> None:
        self._select(self.channel.sending(value), timeout=10)

    def nbsend(self, value: Any) -> bool:
        try:
            self._select(self.channel.sending(value), block=False)
        except WouldBlock:
            return False
        return True

    def recv(self) -> tuple[Any, bool]:
        done = self._select(self.channel, timeout=10)
        return done.value, done.ok

    def nbrecv(self) -> tuple[Any, bool, bool]:
        try:
            done = self._select(self.channel, block=False)
        except WouldBlock:
            return None, False, False
        return done.value, done.ok, True


class Select2(Select1):
    """The same as selects with a second case that is never ready."""

    def _select(self, case: Any, **options: Any) -> Any:
        return select(Channel(), case, **options)


class Select3(Select1):
    """The same with nil and silent channels in both directions around the case."""

    def _select(self, case: Any, **options: Any) -> Any:
        return select(None, Channel().sending(1), case, Channel().receiver, None, **options)


class Many(Direct):
    """The same as batches of one value."""

    def send(self, value: Any) -> None:
        self.channel.send_many([value], timeout=10)

    def nbsend(self, value: Any) -> bool:
        return self.channel.try_send_many([value]) == 1

    def recv(self) -> tuple[Any, bool]:
        try:
            [value] = self.channel.recv_many(1, timeout=10)
        except ChannelClosed:
            return None, False
        return value, True

    def nbrecv(self) -> tuple[Any, bool, bool]:
        try:
            [value] = self.channel.try_recv_many(1)
        except ChannelClosed:
            return None, False, True
        except WouldBlock:
            return None, False, False
        return value, True, True


PHRASES = {"op": Direct, "many": Many, "select1": Select1, "select2": Select2, "select3": Select3}


@pytest.fixture(params=PHRASES)
def phrase(request: pytest.FixtureRequest) -> type[Direct]:
    """One way to say the operations."""
    return PHRASES[request.param]


@pytest.fixture(params=PHRASES)
def other_phrase(request: pytest.FixtureRequest) -> type[Direct]:
    """Another one, for the other side."""
    return PHRASES[request.param]
