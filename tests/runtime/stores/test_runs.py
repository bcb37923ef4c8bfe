"""Runs that write themselves down: what the consumer was told is in the store, a call is not made twice, a store that
fails ends the run and loses nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from runtime import (
    Agent,
    RunError,
    Runtime,
    Session,
    StoreError,
    ToolContext,
    tool,
)
from runtime.events import (
    ElicitationRequest,
    Error,
    Event,
    SessionTitle,
    StreamStarted,
    StreamStopped,
    ToolCallConfirmation,
    ToolCallResponse,
    ToolCallStarted,
)
from runtime.session._journal import Began, Ended, Named, Requested, Said, Step
from runtime.stores import MemoryStore
from support.stores import RESULTS, Planned, Watched, World, calls, consume, done, results, survivor

LONG = 10.0  # seconds after which something will never happen


def run(world: World, store: Any, session: Session, events: list[Event]) -> None:
    with Runtime(world.team(), store=store, titles=True) as runtime, runtime.run_stream(session) as stream:
        consume(stream, events)


def whole(session: Session) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in session.messages]


def each_write(inject: Callable[[int], bool]) -> int:
    """Call ``inject`` with the number of each write, as long as the run has so many; how many times that was."""
    number = 1
    while inject(number):
        number += 1
    return number - 1


def tells(event: Event, entry: Any) -> bool:
    """Whether the event lets its consumer know what the entry is about."""
    if isinstance(entry, Said) and entry.message.role == "assistant":
        ids = {call.id for call in entry.message.tool_calls}
        return isinstance(event, ToolCallStarted) and event.tool_call.id in ids
    if isinstance(entry, Ended):
        return isinstance(event, ToolCallResponse) and event.tool_call.id == entry.message.tool_call_id
    if isinstance(entry, Requested):
        id = entry.request.id
        return id in (getattr(event, "confirmation_id", None), getattr(event, "elicitation_id", None))
    if isinstance(entry, Named):
        return isinstance(event, SessionTitle)
    return False


def test_what_the_consumer_was_told_is_in_the_store() -> None:
    """Law 19. Each event is held, as the consumer gets it, against what was durable at that moment."""
    store, world, session = Watched(), World(), Session.from_user("go")
    seen: list[tuple[Event, int]] = []
    with (
        Runtime(world.team(), store=store, titles=True, event_capacity=0) as runtime,
        runtime.run_stream(session) as stream,
    ):
        for event in stream:
            seen.append((event, len(store.durable)))
            if isinstance(event, ToolCallConfirmation):
                stream.approve(event)
                assert ("answered", event.confirmation_id) in store.durable  # before `approve` has returned
            elif isinstance(event, ElicitationRequest):
                stream.respond(event, "accept", {"n": 3})
                assert ("answered", event.elicitation_id) in store.durable
    told = 0
    for event, durable in seen:
        for entry in store.durable[durable:]:
            assert not tells(event, entry), f"{event} was told before {entry} was durable"
        told += any(tells(event, entry) for entry in store.durable[:durable])
    assert told >= 20
    assert isinstance(seen[0][0], StreamStarted)
    assert ("opened", session.id) in store.durable[: seen[0][1]]
    assert isinstance(seen[-1][0], StreamStopped)
    assert store.durable[seen[-1][1] - 1] == ("released", "idle")
    assert whole(store.load(session.id)) == whole(session)


def test_a_tool_is_entered_after_that_is_in_the_store() -> None:
    """Law 20 rests on it: a tool that the store does not know to have begun has done nothing."""
    store = Watched()
    began: list[bool] = []

    @tool
    def act(context: ToolContext) -> str:
        """Acts."""
        began.append(any(isinstance(each, Began) and each.call_id == context.call_id for each in store.durable))
        return "done"

    agent = Agent("a", Planned(calls(("c1", "act", {}), ("c2", "act", {})), done()), tools=[act])
    with Runtime(agent, store=store) as runtime:
        runtime.run(Session.from_user("go"), on_request=lambda event: True)
    assert began == [True, True]


@pytest.mark.timeout(120)
def test_a_process_that_dies_before_a_write_is_taken_up_by_the_next() -> None:
    """Laws 20 and 21: whatever the store had by then, the next run ends normally, every call has one result, and no
    effect has happened twice but those that may.
    """
    assert each_write(_dies) >= 25


def _dies(number: int) -> bool:
    left: list[tuple[MemoryStore, dict[str, int], bool]] = []
    world = World()

    def die(at: int, store: Watched) -> None:
        if at == number:
            kept = any(isinstance(each, Step) for each in store.durable)
            left.append((survivor(store.inner), dict(world.effects), kept))
            world.dead = True

    session = Session.from_user("go")
    run(world, Watched(die), session, [])
    if not left:
        return False
    store, before, kept = left[0]
    if not store.sessions():
        return True  # it had not come so far that anything was told
    again = World()
    again.effects.update(before)
    events: list[Event] = []
    loaded = store.load(session.id)
    run(again, store, loaded, events)
    assert isinstance(events[-1], StreamStopped)
    assert events[-1].reason == "normal", events[-3:]
    assert not [event for event in events if isinstance(event, Error)]
    for effect, times in again.effects.items():
        if effect == "order":  # a step that was made, and whose process died before that was written down
            assert times == 1 or not kept
        elif effect != "look" and not effect.startswith("put"):
            assert times == 1, f"{effect}: {times} times"
    found = results(loaded)
    for id, result in RESULTS.items():
        assert found[id] == result or ("it is not known whether it took" in found[id] and id in ("c1", "c6")), found
    assert whole(store.load(session.id)) == whole(loaded)
    assert [call.id for m in loaded.messages for call in m.tool_calls] == sorted(RESULTS)
    return True


@pytest.mark.timeout(120)
def test_a_store_that_fails_ends_the_run_and_loses_nothing() -> None:
    """The run ends as an error with its own code, or the one who answers is told; the session in memory is whole, and
    once the store works again the same session goes on in it.
    """
    assert each_write(_fails) >= 25


def _fails(number: int) -> bool:
    failed = threading.Event()

    def fail(at: int, store: Watched) -> None:
        if at == number:
            failed.set()
            raise StoreError("the disk is full: make room, then run the session again")

    store, world, session = Watched(fail), World(), Session.from_user("go")
    events: list[Event] = []
    with Runtime(world.team(), store=store, titles=True) as runtime:
        try:
            with runtime.run_stream(session) as stream:
                consume(stream, events)
                assert stream.reason in ("error", "normal")
                if stream.reason == "error":
                    with pytest.raises(RunError) as raised:
                        stream.result()
                    assert raised.value.code in ("store_failed", "tool_failed", "model_error"), raised.value
        except StoreError:  # it could not be opened, so there is no run
            assert not events
        assert all(call.id in results(session) for m in session.messages for call in m.tool_calls)
        store.heal()
        with runtime.run_stream(session) as stream:
            consume(stream, events)
            assert stream.reason == "normal", events[-2:]
    assert whole(store.load(session.id)) == whole(session)
    return failed.is_set()


@pytest.mark.timeout(120)
def test_a_cancel_in_the_middle_of_a_write_leaves_the_store_and_the_session_the_same() -> None:
    """Law 9: the worker waits for the store with its token, and what was under way is written all the same."""
    assert each_write(_is_cancelled) >= 25


def _is_cancelled(number: int) -> bool:
    stands, go_on = threading.Event(), threading.Event()
    cancelling: list[Any] = []

    def stall(at: int, store: Watched) -> None:
        if at == number:
            stands.set()
            if cancelling:
                cancelling[0].cancel("enough")
            go_on.wait(0.05)  # as long as a disk takes that is slow; a `Watched` cannot be left in the middle

    world, session = World(), Session.from_user("go")
    store = Watched(stall)
    events: list[Event] = []
    with Runtime(world.team(), store=store, titles=True) as runtime, runtime.run_stream(session) as stream:
        cancelling.append(stream)
        consume(stream, events)
        assert stream.reason in ("canceled", "normal")
    assert all(call.id in results(session) for m in session.messages for call in m.tool_calls)
    assert whole(store.load(session.id)) == whole(session)
    return stands.is_set()
