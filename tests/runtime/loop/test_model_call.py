"""How the deltas of a reply become events: together where they have come together, and none of them later for that."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from runtime import Agent, ReasoningDelta, RunError, Runtime, Session, TextDelta
from runtime.events import AgentChoice, AgentChoiceReasoning, Event, StreamStopped
from runtime.execution._reading import BATCH
from runtime.loop._reply import LONG
from runtime.stream._core import StreamCore
from support.scripted import AsyncScripted, Scripted, Stall, say
from support.waiting import eventually

KINDS = pytest.mark.parametrize("kind", [Scripted, AsyncScripted])


class Batches:
    """Notes what the worker sends at once; the first is held up until the model has yielded all that it will."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.through = threading.Event()
        self.sent: list[Sequence[Event]] = []
        emit_many = StreamCore.emit_many

        def noting(core: StreamCore, batch: Sequence[Event], *how: bool) -> None:
            if not self.sent:
                self.through.wait(10)
            self.sent.append(batch)
            emit_many(core, batch, *how)

        monkeypatch.setattr(StreamCore, "emit_many", noting)


@KINDS
def test_deltas_that_have_come_together_are_sent_together(
    kind: type[Scripted], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In their order, each as an event of its own, and only so many at once that the first does not wait long. So it
    is with a model that does not run on the thread of the worker.
    """
    batches = Batches(monkeypatch)
    said = [ReasoningDelta(f"{n} ") if n % 3 == 0 else TextDelta(f"{n} ") for n in range(100)]
    agent = Agent("a", kind([*said, batches.through.set]))
    with ThreadPoolExecutor(2) as executor, Runtime(agent, executor=executor) as runtime:
        got = [
            e for e in runtime.run_stream(Session.from_user("go")) if isinstance(e, (AgentChoice, AgentChoiceReasoning))
        ]
    assert [event.content for event in got] == [f"{n} " for n in range(100)]
    assert [isinstance(event, AgentChoiceReasoning) for event in got] == [n % 3 == 0 for n in range(100)]
    assert [event for batch in batches.sent for event in batch] == got
    assert max(map(len, batches.sent)) == BATCH
    assert len(batches.sent) <= 2 + 100 // BATCH + 1


@KINDS
def test_a_long_piece_is_not_kept_for_others(kind: type[Scripted], monkeypatch: pytest.MonkeyPatch) -> None:
    """What the worker does with one takes its time, and a cancel may come meanwhile."""
    batches = Batches(monkeypatch)
    steps = [TextDelta("x" * (LONG + 1)) for _ in range(10)]
    agent = Agent("a", kind([*steps, batches.through.set]))
    with ThreadPoolExecutor(2) as executor, Runtime(agent, executor=executor) as runtime:
        runtime.run_stream(Session.from_user("go")).result()
    assert [len(batch) for batch in batches.sent] == [1] * 10


@KINDS
@pytest.mark.parametrize("capacity", [0, 1, 7])
def test_a_reply_that_is_cut_off_has_what_was_sent(kind: type[Scripted], capacity: int) -> None:
    """No less, since the consumer can read it, and no more: it may be shown what it has not been told."""
    stall, session = Stall(), Session.from_user("go")
    stalls = stall if kind is Scripted else lambda: asyncio.sleep(30)
    steps = [*(TextDelta(f"{n} ") for n in range(60)), stalls]
    with stall, Runtime(Agent("a", kind(steps)), event_capacity=capacity) as runtime:
        stream = runtime.run_stream(session)
        events = [next(stream)]
        while not isinstance(events[-1], AgentChoice):
            events.append(next(stream))
        assert eventually(lambda: stream._core.events.statistics().waiting_to_send == 1)
        stream.cancel()
        events += stream
    assert isinstance(events[-1], StreamStopped)
    told = "".join(event.content for event in events if isinstance(event, AgentChoice))
    assert session.messages[-1].content == told
    assert told.startswith("0 ")
    assert session.messages[-1].finish_reason == "interrupted"


def test_what_comes_before_an_object_that_is_no_delta_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    batches, session = Batches(monkeypatch), Session.from_user("go")
    bad: Any = "no delta"
    model = Scripted([*say("one ", "two ", "three "), batches.through.set, bad, *say("four")])
    with Runtime(Agent("a", model)) as runtime:
        stream = runtime.run_stream(session)
        told = [event.content for event in stream if isinstance(event, AgentChoice)]
        with pytest.raises(RunError, match="a model yields deltas"):
            stream.result()
    assert told == ["one ", "two ", "three "]
    assert session.messages[-1].content == "one two three "


def test_a_consumer_that_waits_for_a_delta_reads_it_before_the_worker_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker gives way to the thread that it has just woken; not to one that is busy, nor where its thread goes on
    to wait for the model.
    """
    gave: list[int] = []
    monkeypatch.setattr("runtime.stream._core.give_way", lambda: gave.append(len(told)))
    streams: list[Any] = []
    told: list[Event] = []

    def awaited() -> None:
        assert eventually(lambda: streams and streams[0]._core.events.statistics().waiting_to_receive == 1)

    agent = Agent("a", Scripted([awaited, TextDelta("1")], [TextDelta("2")]))
    with ThreadPoolExecutor(2) as executor, Runtime(agent, executor=executor) as runtime:
        streams.append(runtime.run_stream(Session.from_user("go")))
        for event in streams[0]:
            told.append(event)
        assert gave
        gave.clear()
        other = runtime.run_stream(Session.from_user("go"))  # which nobody reads yet
        assert eventually(lambda: other._core.events.closed)
        assert not gave
        assert [event.content for event in other if isinstance(event, AgentChoice)] == ["2"]


def test_half_a_character_waits_for_the_other_half_where_the_consumer_is_behind() -> None:
    """A delta that could not be sent on the event loop is taken by the worker as if for the first time."""
    session = Session.from_user("go")
    steps = [TextDelta("\ud83d"), lambda: asyncio.sleep(0.01), TextDelta("\ude00!")]
    before = 4  # events that the consumer leaves unread
    with Runtime(Agent("a", AsyncScripted(steps)), event_capacity=before + 1) as runtime:
        stream = runtime.run_stream(session)
        assert eventually(lambda: stream._core.events.statistics().waiting_to_send == 1)
        stream.result()
    assert session.messages[-1].content == "\U0001f600!"
