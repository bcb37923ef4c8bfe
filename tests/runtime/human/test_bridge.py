"""The bridge and its scope. Laws 1, 3, 4, 5."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable

import pytest

from channels import Cancelled, CancelToken, Channel, ChannelClosed
from runtime import ElicitationBridge, stream_scope
from runtime.events import Event, StreamStopped, Warning


def events(name: str, capacity: int = 4) -> Channel[Event]:
    return Channel(capacity, name=name)


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
def test_streams_may_end_in_any_order(order: tuple[int, ...]) -> None:
    """Law 3: A enters, B enters, A leaves, B leaves must not bring A back - for four streams, in all 24 orders."""
    bridge = ElicitationBridge()
    channels = [events(str(i)) for i in range(4)]
    scopes = [stream_scope(bridge, channel) for channel in channels]
    for scope in scopes:
        scope.__enter__()
    left = list(range(4))
    for i in order:
        assert bridge.current is channels[max(left)]
        scopes[i].__exit__(None, None, None)
        left.remove(i)
        assert channels[i].closed
        assert bridge.current is (channels[max(left)] if left else None)
    assert len(bridge) == 0


def test_a_channel_that_was_closed_elsewhere_is_never_current() -> None:
    """Law 3: whoever closes it."""
    bridge = ElicitationBridge()
    outer, inner = events("outer"), events("inner")
    with stream_scope(bridge, outer), stream_scope(bridge, inner):
        inner.close()
        assert bridge.current is outer
    assert bridge.current is None


def test_entered_twice_by_mistake() -> None:
    """Law 3: each entry drops its own place; the channel is closed by the first to leave."""
    bridge = ElicitationBridge()
    channel = events("twice")
    with stream_scope(bridge, channel):
        with stream_scope(bridge, channel):
            assert len(bridge) == 2
        assert bridge.current is None
        assert len(bridge) == 1
    assert len(bridge) == 0


@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt, SystemExit, GeneratorExit])
def test_every_exit_closes_with_the_last_value(error: type[BaseException] | None) -> None:
    """Laws 1 and 2: also when the buffer is full."""
    bridge = ElicitationBridge()
    channel = events("full", 1)
    last = StreamStopped("error")

    def body() -> None:
        with stream_scope(bridge, channel, final=lambda: last) as sink:
            assert sink.emit(Warning("fills the buffer"))
            if error is not None:
                raise error

    if error is None:
        body()
    else:
        with pytest.raises(error):
            body()
    assert [type(event) for event in channel] == [Warning, StreamStopped]
    assert bridge.current is None
    assert not sink_says(channel)


def sink_says(channel: Channel[Event]) -> bool:
    """Law 12: what a late emitter hears."""
    from runtime import EventSink

    return EventSink(channel).emit(Warning("late"))


def test_a_final_that_fails_still_closes() -> None:
    """Law 1: finalisation that itself fails."""
    bridge = ElicitationBridge()
    channel = events("unlucky")

    def final() -> Event:
        raise SystemExit(3)

    with pytest.raises(SystemExit), stream_scope(bridge, channel, final=final):
        pass
    assert channel.closed
    assert len(bridge) == 0


def test_a_drop_that_fails_still_closes() -> None:
    """Law 1: and the failure is seen."""

    class Unlucky(ElicitationBridge):
        def drop(self, place: object) -> None:
            raise MemoryError

    channel = events("unlucky")
    with pytest.raises(MemoryError), stream_scope(Unlucky(), channel, final=StreamStopped):
        pass
    assert [type(event) for event in channel] == [StreamStopped]


def test_send_without_a_stream_is_a_clear_error() -> None:
    """Law 4: not a hang."""
    with pytest.raises(ChannelClosed, match="no stream is open"):
        ElicitationBridge().send(Warning("to nobody"))


def test_send_to_a_closed_stream_does_not_go_to_another() -> None:
    """Laws 4 and 6: a question reaches the stream whose call asked, or nobody."""
    bridge = ElicitationBridge()
    mine, other = events("mine"), events("other")
    with stream_scope(bridge, other), stream_scope(bridge, mine):
        bridge.send(Warning("1"), to=mine)
        mine.close()
        with pytest.raises(ChannelClosed):
            bridge.send(Warning("2"), to=mine)
        assert len(other) == 0


WAYS: list[tuple[str, Callable[[Channel[Event], CancelToken], object], type[BaseException] | None]] = [
    ("accepted", lambda channel, token: channel.recv(), None),
    ("closed", lambda channel, token: channel.close(), ChannelClosed),
    ("cancelled", lambda channel, token: token.cancel(), Cancelled),
    ("timed out", lambda channel, token: None, TimeoutError),
]


@pytest.mark.parametrize(("act", "expected"), [way[1:] for way in WAYS], ids=[way[0] for way in WAYS])
def test_a_parked_send_never_wedges(
    act: Callable[[Channel[Event], CancelToken], object], expected: type[BaseException] | None
) -> None:
    """Laws 4 and 5: a send parked on a full buffer ends in one of four ways, and closing does not wait for it."""
    bridge = ElicitationBridge()
    channel = events("full", 1)
    token = CancelToken()
    outcome: list[BaseException | None] = []

    def send() -> None:
        try:
            bridge.send(Warning("parked"), timeout=0.2 if expected is TimeoutError else 10, cancel=token)
            outcome.append(None)
        except BaseException as error:
            outcome.append(error)

    with stream_scope(bridge, channel) as sink:
        sink.emit(Warning("fills"))
        sender = threading.Thread(target=send)
        sender.start()
        while "waiting" not in repr(channel) and sender.is_alive():
            threading.Event().wait(0.001)
        act(channel, token)
        sender.join(10)
        assert not sender.is_alive()
    assert (None if expected is None else expected) is (None if outcome[0] is None else type(outcome[0]))


def test_swap_is_the_low_level_form() -> None:
    """It says what was current; once the channel is closed it is not current any more."""
    bridge = ElicitationBridge()
    first, second = events("first"), events("second")
    assert bridge.swap(first) is None
    assert bridge.swap(second) is first
    second.close()
    assert bridge.current is first
    assert bridge.swap(events("third")) is first
    assert len(bridge) == 2, "closed places do not pile up"


def test_many_threads_enter_and_leave() -> None:
    """Law 3, under load: whatever `current` says was open when it was read, and at the end nothing is left."""
    bridge = ElicitationBridge()
    barrier = threading.Barrier(8)
    wrong: list[object] = []

    def enter_and_leave(number: int) -> None:
        barrier.wait()
        for turn in range(50):
            channel = events(f"{number}.{turn}")
            with stream_scope(bridge, channel, final=StreamStopped):
                try:
                    bridge.send(Warning("hello"), to=channel, timeout=0)
                except ChannelClosed as error:
                    wrong.append(error)
            if bridge.current is channel:
                wrong.append(channel)
            if len(list(channel)) != 2:
                wrong.append(channel)

    threads = [threading.Thread(target=enter_and_leave, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert bridge.current is None
    assert len(bridge) == 0
