"""Law 9: observers see every event once, in order, before the consumer does."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from channels import ChannelClosed
from runtime import Agent, ConsumerCall, Runtime, Session, tool
from runtime.events import AgentChoice, Event, StreamStarted, StreamStopped, ToolCallResponse
from support.scripted import Scripted, Stall, call, say
from support.waiting import eventually


class Watcher:
    """Keeps what it sees."""

    def __init__(self) -> None:
        self.seen: list[Event] = []

    def on_run_start(self, session: Session) -> None:
        assert not self.seen

    def on_event(self, session: Session, event: Event) -> None:
        self.seen.append(event)


class Failing(Watcher):
    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error

    def on_event(self, session: Session, event: Event) -> None:
        super().on_event(session, event)
        raise self.error


def test_before_the_consumer() -> None:
    """Whatever the consumer has, the observer has had."""
    watcher = Watcher()
    with Runtime(Agent("a", Scripted(say(*"abcdef"))), observers=[watcher], event_capacity=1) as runtime:
        for count, event in enumerate(runtime.run_stream(Session.from_user("go")), 1):
            assert len(watcher.seen) >= count
            assert watcher.seen[count - 1] is event
        assert len(watcher.seen) == count


@pytest.mark.parametrize("error", [ValueError("x"), SystemExit(1), KeyboardInterrupt()])
def test_one_that_raises_is_isolated(error: BaseException, caplog: pytest.LogCaptureFixture) -> None:
    """It is logged, told the next event all the same, and the others do not notice."""
    failing, watcher = Failing(error), Watcher()
    with Runtime(Agent("a", Scripted(say("x"))), observers=[failing, watcher]) as runtime:
        events = list(runtime.run_stream(Session.from_user("go")))
    assert failing.seen == events
    assert watcher.seen == events
    assert caplog.text.count("failed in on_event") == 1  # not once for each event


class Events:
    """Has one of the methods only."""

    def __init__(self) -> None:
        self.seen: list[Event] = []

    def on_event(self, session: Session, event: Event) -> None:
        self.seen.append(event)


class Starts:
    def __init__(self) -> None:
        self.seen: list[Session] = []

    def on_run_start(self, session: Session) -> None:
        self.seen.append(session)


class Unsteady(Watcher):
    """Not even its methods can be looked up."""

    @property
    def on_event(self) -> Any:  # type: ignore[override]
        if self.looked_up:
            raise ValueError("no such thing")
        self.looked_up = True
        return print

    looked_up = False


def test_one_method_is_enough() -> None:
    """What an observer lacks it is not told; the others, and the consumer, do not notice."""
    events, starts, unsteady, watcher = Events(), Starts(), Unsteady(), Watcher()
    session = Session.from_user("go")
    with Runtime(Agent("a", Scripted(say("x"))), observers=[events, starts, unsteady, watcher]) as runtime:
        seen = list(runtime.run_stream(session))
    assert events.seen == watcher.seen == seen
    assert isinstance(seen[-1], StreamStopped)
    assert starts.seen == [session]


@pytest.mark.parametrize("wrong", [[print], [Watcher], [Events(), "watcher"], Watcher(), "watcher", None])
def test_what_cannot_observe_is_refused(wrong: Any) -> None:
    """Where it is given, with a sentence; a forwarder that found out ended the loop without a last event."""
    with pytest.raises(TypeError, match="observer"):
        Runtime(Agent("a", Scripted()), observers=wrong)


def test_a_forwarder_that_fails_still_brings_every_event(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Law 2: the consumer's loop ends with the reason, whatever becomes of those who watch."""

    def broken(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr("runtime.stream._forwarder._Forwarder._tell", broken)
    with Runtime(Agent("a", Scripted(say("x"))), observers=[Watcher()]) as runtime:
        events = list(runtime.run_stream(Session.from_user("go")))
    assert isinstance(events[0], StreamStarted)
    assert isinstance(events[-1], StreamStopped)
    assert events[-1].reason == "normal"
    assert "are left out from now on" in caplog.text


def test_one_that_stalls_is_left_out() -> None:
    """After the grace time; the consumer and the other observers go on."""
    watcher = Watcher()
    with Stall() as stall:

        class Stalling(Watcher):
            def on_event(self, session: Session, event: Event) -> None:
                super().on_event(session, event)
                stall()

        stalling = Stalling()
        runtime = Runtime(Agent("a", Scripted(say(*"abc"))), observers=[stalling, watcher], grace=0.5)
        events = list(runtime.run_stream(Session.from_user("go")))
        assert isinstance(events[-1], StreamStopped)
        assert watcher.seen == events
        assert len(stalling.seen) == 1
        stall.go_on.set()
        runtime.close()


def test_they_see_the_end_of_a_stream_whose_consumer_left() -> None:
    """Also what the consumer did not wait for; the last event with the true reason."""
    watcher = Watcher()
    with Runtime(Agent("a", Scripted(say(*["x"] * 500))), observers=[watcher], event_capacity=2) as runtime:
        with runtime.run_stream(Session.from_user("go")) as stream:
            for event in stream:
                if isinstance(event, AgentChoice):
                    break
        last = watcher.seen[-1]
        assert isinstance(last, StreamStopped)
        assert last.reason == "canceled"
        assert sum(isinstance(event, StreamStopped) for event in watcher.seen) == 1


def test_a_cancel_does_not_wait_for_a_consumer_that_does_not_read(threads: Any) -> None:
    """Laws 2 and 18, with observers as without: closed within 50 ms. The consumer, when it reads after all, gets what
    was there and the end; the observers get everything.
    """
    watcher = Watcher()
    took = []
    with Runtime(Agent("a", Scripted(*[say(*["x"] * 500)] * 5)), observers=[watcher], event_capacity=4) as runtime:
        for _ in range(5):  # the first that is fast enough will do: others use the machine too
            watcher.seen.clear()
            stream = runtime.run_stream(Session.from_user("go"))
            threads.parked(stream._core.out, senders=1)
            cancelled = time.monotonic()
            stream.cancel()
            with pytest.raises(ChannelClosed):
                stream._core.over.recv(timeout=5)
            took.append(time.monotonic() - cancelled)
            assert stream._core.out.closed
            events = list(stream)
            assert len(events) == 5
            assert events[:4] == watcher.seen[:4]
            assert events[4] == watcher.seen[-1]
            assert events[4].type == "stream_stopped"
            if took[-1] < 0.05:
                break
    assert min(took) < 0.05


@pytest.mark.parametrize("observers", [1, 3])
def test_a_cancel_waits_for_slow_observers_no_longer_than_the_grace_time(observers: int) -> None:
    """Not for each event that they have not seen yet. They see all of them, in order, and the same last event."""

    class Slow(Watcher):
        def on_event(self, session: Session, event: Event) -> None:
            super().on_event(session, event)
            threading.Event().wait(0.08 / observers)

    watchers = [Slow() for _ in range(observers)]
    agent = Agent("a", Scripted(say(*["x"] * 500)))
    with Runtime(agent, observers=watchers, event_capacity=60, grace=2) as runtime:
        stream = runtime.run_stream(Session.from_user("go"))
        assert eventually(lambda: len(stream._core.events) == 60)
        stream.cancel()
        events = list(stream)
        assert not stream._core.over.closed  # they are at it still
        assert len(events) < 50
        with pytest.raises(ChannelClosed):
            stream._core.over.recv(timeout=20)
    for watcher in watchers:
        assert len(watcher.seen) > 60
        assert watcher.seen[: len(events) - 1] == events[:-1]
        assert watcher.seen[-1] is events[-1]
    assert events[-1].type == "stream_stopped"
    assert stream.reason == "canceled"


def test_a_normal_end_waits_for_the_consumer_to_read_everything(threads: Any) -> None:
    """Nothing is dropped for being late."""
    watcher = Watcher()
    with Runtime(Agent("a", Scripted(say(*["x"] * 50))), observers=[watcher], event_capacity=40) as runtime:
        stream = runtime.run_stream(Session.from_user("go"))
        with pytest.raises(ChannelClosed):
            stream._core.finished.recv(timeout=5)
        threads.parked(stream._core.out, senders=1)
        events = list(stream)
    assert len(events) > 50
    assert events == watcher.seen


def test_a_cancel_after_the_end_drops_nothing(threads: Any) -> None:
    """The last event says that all is well, so all has to be there."""
    watcher = Watcher()
    with Runtime(Agent("a", Scripted(say(*["x"] * 50))), observers=[watcher], event_capacity=40) as runtime:
        stream = runtime.run_stream(Session.from_user("go"))
        with pytest.raises(ChannelClosed):
            stream._core.finished.recv(timeout=5)
        stream.cancel()
        threads.parked(stream._core.out, senders=1)
        events = list(stream)
    assert stream.reason == "normal"
    assert sum(isinstance(event, AgentChoice) for event in events) == 50
    assert events == watcher.seen


def test_an_errand_for_the_consumers_thread_is_no_event_of_theirs() -> None:
    """A tool that runs there is told to the consumer only."""

    @tool(read_only=True, on="consumer")
    def here() -> str:
        """Run in the consumer's thread."""
        return "done"

    watcher = Watcher()
    with Runtime(Agent("a", Scripted([call("here")], say("ok")), tools=[here]), observers=[watcher]) as runtime:
        assert runtime.run(Session.from_user("go")).text == "ok"
    assert any(isinstance(each, ToolCallResponse) for each in watcher.seen)
    assert not any(isinstance(each, ConsumerCall) for each in watcher.seen)


def test_no_observers_no_forwarder() -> None:
    """One thread a stream, two with observers."""

    def forwarders() -> int:
        return sum(thread.name.startswith("lockgate-observe-") for thread in threading.enumerate())

    for expected, observers in (0, []), (1, [Watcher()]):
        with Stall() as stall, Runtime(Agent("a", Scripted([stall])), observers=observers) as runtime:
            stream = runtime.run_stream(Session.from_user("go"))
            assert stall.reached.wait(5)
            assert eventually(lambda: forwarders() == expected)  # a thread takes its name itself
            stall.go_on.set()
            list(stream)
