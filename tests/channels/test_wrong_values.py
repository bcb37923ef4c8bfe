"""What callers get wrong is an error where they say it, and the error says what would be right."""

from __future__ import annotations

import contextvars
from collections.abc import Callable
from typing import Any

import pytest

from channels import CancelToken, Channel, Receiver, Sender, WorkerGroup, after, net, parked, tick
from channels.aio import LoopThread, from_async


async def nothing() -> None:
    """Nothing."""


WRONG: list[tuple[Callable[..., Any], dict[str, Any], type[Exception], str]] = [
    (Channel, {"capacity": None}, TypeError, "capacity must be a whole number, 0 or more, not None"),
    (Channel, {"capacity": 1.0}, TypeError, "capacity must be a whole number, 0 or more, not 1.0"),
    (Channel, {"capacity": True}, TypeError, "capacity must be a whole number, 0 or more, not True"),
    (Channel, {"capacity": -1}, ValueError, "capacity must be a whole number, 0 or more, not -1"),
    (Channel, {"name": 3}, TypeError, "the name of a channel must be text, or None, not 3"),
    (Channel(1).recv_many, {"limit": 0}, ValueError, "limit must be a whole number, 1 or more, or None for all, not 0"),
    (Channel(1).recv_many, {"limit": "2"}, TypeError, "limit must be a whole number, 1 or more, or None for all"),
    (Channel(1).try_recv_many, {"limit": 1.5}, TypeError, "limit must be a whole number"),
    (Channel(1).recv, {"timeout": "x" * 1000}, TypeError, r"timeout must be .*, not 'x{199}$"),
    (Channel(1).recv, {"cancel": "x" * 1000}, TypeError, r"cancel= takes a CancelToken, .*, not 'x{199}$"),
    (Receiver, {"channel": None}, TypeError, "a Receiver must be of a Channel, as channel.receiver makes it, not None"),
    (Sender, {"channel": []}, TypeError, r"a Sender must be of a Channel, as channel.sender makes it, not \[\]"),
    (after, {"seconds": -1}, ValueError, "after takes a number of seconds, 0 or more, not -1"),
    (after, {"seconds": "1"}, TypeError, "after takes a number of seconds, 0 or more, not '1'"),
    (tick, {"seconds": None}, TypeError, "tick takes a number of seconds, not None"),
    (tick, {"seconds": 0}, ValueError, "tick takes a number of seconds, more than 0, not 0"),
    (WorkerGroup, {"name": None}, TypeError, "the name of a WorkerGroup must be text, not None"),
    (CancelToken().on_cancel, {"function": None}, TypeError, "on_cancel takes a function to call without arguments"),
]


@pytest.mark.parametrize(
    ("made", "given", "kind", "says"), WRONG, ids=[f"{made.__name__} {given}"[:40] for made, given, _, _ in WRONG]
)
def test_wrong_values(made: Callable[..., Any], given: dict[str, Any], kind: type[Exception], says: str) -> None:
    with pytest.raises(kind, match=says):
        made(**given)


def test_numbers_of_other_kinds_are_whole_numbers() -> None:
    class Three:
        def __index__(self) -> int:
            return 3

    assert Channel(Three()).capacity == 3  # type: ignore[arg-type]
    channel: Channel[int] = Channel(4)
    channel.send_many([1, 2, 3, 4])
    assert channel.recv_many(Three()) == [1, 2, 3]  # type: ignore[arg-type]


def test_send_many_says_the_time_that_it_was_given() -> None:
    """And how far it came: what is left of the time says nothing to whoever gave it."""
    channel: Channel[int] = Channel(2)
    with pytest.raises(TimeoutError, match=r"nobody received number 3 of 4 within 0\.01 s") as error:
        channel.send_many([1, 2, 3, 4], timeout=0.01)
    assert error.value.sent == 2  # type: ignore[attr-defined]
    assert not parked()


ON_A_LOOP: list[tuple[Callable[[LoopThread], Any], str]] = [
    (lambda loop: loop.call(None), "what runs on a loop must be a coroutine or a coroutine function, not None"),  # type: ignore[arg-type]
    (lambda loop: loop.start("x"), "what runs on a loop must be a coroutine or a coroutine function"),  # type: ignore[arg-type]
    (lambda loop: loop.start(nothing(), on_done=3), "on_done must be a function of the result and the exception"),  # type: ignore[arg-type]
    (lambda loop: loop.call(nothing(), context={}), r"context must be a contextvars.Context, or None, not \{\}"),  # type: ignore[arg-type]
    (lambda loop: loop.iterate(nothing(), buffer=None), "capacity must be a whole number"),  # type: ignore[arg-type]
    (lambda loop: from_async(nothing(), loop=3), "loop must be a LoopThread, or None, not 3"),  # type: ignore[arg-type]
    (lambda loop: LoopThread(None), "the name of a LoopThread must be text, not None"),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("wrong", "says"), ON_A_LOOP, ids=[says[:40] for _, says in ON_A_LOOP])
@pytest.mark.filterwarnings("error")
def test_wrong_values_for_a_loop(wrong: Callable[[LoopThread], Any], says: str) -> None:
    """No coroutine is left that was never awaited, and the loop goes on."""
    with LoopThread() as loop:
        with pytest.raises(TypeError, match=says):
            wrong(loop)
        assert loop.call(nothing(), context=contextvars.copy_context()) is None


CONNECTING: list[tuple[Callable[..., Any], dict[str, Any], str]] = [
    (net.Listener, {"address": "localhost"}, r"address must be a host and a port, such as .*, not 'localhost'"),
    (net.Listener, {"address": ("localhost", "80")}, "address must be a host and a port"),
    (net.Listener, {"heartbeat": None}, "heartbeat must be a number of seconds, more than 0, not None"),
    (net.Listener, {"heartbeat": 10**400}, "heartbeat must be a number of seconds, more than 0, not 1000"),
    (net.Listener, {"limit": "64 MB"}, "limit must be a whole number of bytes, 1 or more, not '64 MB'"),
    (net.Listener, {"capacity": 0}, "capacity must be a whole number, 1 or more, not 0"),
    (net.Listener, {"capacity": "8"}, "capacity must be a whole number, 1 or more, not '8'"),
    (net.Listener, {"capacity": True}, "capacity must be a whole number, 1 or more, not True"),
    (net.Listener, {"codecs": 3}, "codecs must be a sequence with a Codec for each lane, not 3"),
    (net.Listener, {"codecs": []}, r"codecs must be a sequence with a Codec for each lane, not \[\]"),
    (net.Listener, {"codecs": "json"}, "codecs must be a sequence with a Codec for each lane, not 'json'"),
    (net.Listener, {"codecs": [None]}, r"codecs must be a sequence with a Codec for each lane, not \[None\]"),
    (net.Listener, {"capacities": 3}, r"capacities must be a sequence with two whole numbers, .*, not 3"),
    (net.Listener, {"capacities": []}, r"capacities must be .*, not \[\]"),
    (net.Listener, {"capacities": [8]}, r"capacities must be .*, not \[8\]"),
    (net.Listener, {"capacities": [(8,)]}, r"capacities must be .*, not \[\(8,\)\]"),
    (net.Listener, {"capacities": [(8, 0)]}, r"capacities must be .*, not \[\(8, 0\)\]"),
    (net.Listener, {"capacities": [(8, 8.0)]}, r"capacities must be .*, not \[\(8, 8\.0\)\]"),
    (net.Listener, {"capacities": [(8, 8), (8, 8)]}, "codecs is of length 1, capacities of 2"),
    (net.Listener, {"name": None}, "the name of a Listener must be text, not None"),
    (net.connect, {"address": None, "key": "k"}, "address must be a host and a port"),
    (net.connect, {"address": ("127.0.0.1", 1), "key": b"k"}, "key must be the text .*, not bytes"),
    (net.connect, {"address": ("127.0.0.1", 1), "key": "k", "timeout": 0}, "timeout must be a number of seconds"),
    (net.connect, {"address": ("127.0.0.1", 1), "key": "k", "timeout": float("inf")}, "timeout must be a number"),
    (net.connect, {"address": ("127.0.0.1", 1), "key": "k", "codecs": 3}, "codecs must be a sequence with a Codec"),
    (net.connect, {"address": ("127.0.0.1", 1), "key": "k", "name": 3}, "the name of a connection must be text, not 3"),
]


@pytest.mark.parametrize(("made", "given", "says"), CONNECTING, ids=[says[:40] for _, _, says in CONNECTING])
def test_wrong_values_for_a_connection(made: Callable[..., Any], given: dict[str, Any], says: str) -> None:
    with pytest.raises((TypeError, ValueError), match=says):
        made(**given)


@pytest.mark.parametrize("timeout", [-1, float("nan"), "1", True])
def test_a_wrong_timeout_does_not_use_up_a_listener(timeout: Any) -> None:
    with net.Listener() as listener:
        with pytest.raises((TypeError, ValueError), match="timeout must be a number of seconds"):
            listener.accept(timeout=timeout)
        with pytest.raises(TimeoutError, match="nobody connected"):
            listener.accept(timeout=0)


@pytest.mark.parametrize("timeout", [-1, float("nan"), "1", True])
def test_a_wrong_timeout_does_not_close_a_connection(timeout: Any) -> None:
    with net.Listener() as listener, WorkerGroup() as group:
        far = group.spawn(net.connect, listener.address, listener.key)
        with listener.accept(timeout=10) as near, far.result(timeout=10) as peer:
            with pytest.raises((TypeError, ValueError), match="timeout must be a number of seconds"):
                near.close(timeout=timeout)
            near.sender.send("still there", timeout=10)
            assert peer.receiver.recv(timeout=10) == "still there"
            peer.close(timeout=0)


@pytest.mark.parametrize("timeout", [float("inf"), 10**400, 1e300, None])
def test_a_connection_may_be_closed_without_a_bound(timeout: Any) -> None:
    with net.Listener() as listener, WorkerGroup() as group:
        far = group.spawn(net.connect, listener.address, listener.key)
        near, peer = listener.accept(timeout=10), far.result(timeout=10)
        group.spawn(peer.close)
        near.close(timeout=timeout)
        assert near.error is None
