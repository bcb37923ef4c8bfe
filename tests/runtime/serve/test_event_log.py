"""The logs of served sessions: each entry once for each reader, or a gap that it is told of."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator

import pytest

from runtime import Session
from runtime.events import AgentChoice, AgentChoiceReasoning, Event, StreamStopped
from runtime.serve._event_log import FORMS, Entry, EventLog, MemoryLog
from runtime.serve._store_log import StoreLog
from runtime.stores import MemoryStore

Append = Callable[[Session, list[Event]], None]


@pytest.fixture(params=["memory", "store"])
def log(request: pytest.FixtureRequest) -> Iterator[tuple[EventLog, Session]]:
    """A log, and a session that a stream runs."""
    session = Session.from_user("hello")
    if request.param == "memory":
        yield MemoryLog(kept=40), session
        return
    store = MemoryStore()
    journal = store.open(session)
    made = StoreLog(store)
    made._here._kept = 40  # what is older comes from the store
    yield made, session
    made.close()
    journal.release("idle")
    store.close()


def said(*numbers: int) -> list[Event]:
    return [AgentChoice(str(number)) for number in numbers]


def test_a_reader_gets_each_entry_once_or_is_told_of_a_gap(log: tuple[EventLog, Session]) -> None:
    made, session = log
    rng = random.Random(7)
    readers: list[list[int]] = [[] for _ in range(3)]
    at = [0, 0, 0]
    gaps = written = 0
    for _ in range(400):
        if rng.random() < 0.5:
            many = rng.randint(1, 12)
            made.append(session, said(*range(written, written + many)))
            written += many
        which = rng.randrange(3)
        if which == 2 and rng.random() < 0.9:
            continue  # a slow one
        page = made.read(session.id, at[which], rng.randint(1, 20))
        numbers = [int(entry.text("lockgate").partition('"content":"')[2].partition('"')[0]) for entry in page.entries]
        if page.gap:
            gaps += 1
            assert not readers[which] or numbers[0] > readers[which][-1] + 1
        elif readers[which] and numbers:
            assert numbers[0] == readers[which][-1] + 1
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers))) if numbers else True
        readers[which] += numbers
        at[which] = page.entries[-1].id if page.entries else at[which]
    assert gaps or isinstance(made, StoreLog)  # which has the last 10,000
    assert made.last(session.id) - made.read(session.id, 0, 1).entries[0].id < written


def test_ids_that_the_log_does_not_know_are_a_gap(log: tuple[EventLog, Session]) -> None:
    """Those of an earlier process, and those that never were."""
    made, session = log
    made.append(session, said(1, 2, 3))
    last = made.last(session.id)
    assert not made.read(session.id, 0).gap
    assert [entry.id for entry in made.read(session.id, last - 1).entries] == [last]
    assert not made.read(session.id, last).entries
    found = made.read(session.id, last + 1000)
    assert found.gap
    assert [entry.id for entry in found.entries] == [last - 2, last - 1, last]


def test_a_watcher_is_woken_by_what_comes_and_by_the_end(log: tuple[EventLog, Session]) -> None:
    made, session = log
    with made.watch(session.id) as watcher:
        made.append(session, said(1))
        assert watcher.wait(5)
        while watcher.wait(0.05):  # the store may tell of it once more
            pass
        made.end(session.id)
        assert watcher.wait(5)


def test_memory_forgets_the_sessions_that_nobody_reads() -> None:
    made = MemoryLog(kept=1000, most=100)
    sessions = [Session.from_user("hello") for _ in range(10)]
    with made.watch(sessions[0].id):
        for session in sessions:
            made.append(session, said(*range(30)))
        kept = [session for session in sessions if made.read(session.id, 0).entries]
        assert kept == [sessions[0], *sessions[-2:]]
        assert made._count == 90
        first = made.read(sessions[0].id, 0).entries[0].id
        made.end(sessions[0].id)
        assert made.read(sessions[0].id, first).over  # and what is there is still read
    assert made._count == 60
    assert sessions[0].id not in made._rings
    assert made.read(sessions[1].id, first).gap


def test_what_a_store_keeps_is_in_memory_only_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a server that runs for weeks grows by every run, up to a hundred thousand events."""
    monkeypatch.setattr("runtime.serve._store_log.ALL_HERE", 100)
    store = MemoryStore()
    made = StoreLog(store)
    sessions = [Session.from_user("hello") for _ in range(10)]
    for session in sessions:
        journal = store.open(session)
        made.append(session, said(*range(30)))
        journal.release("idle")
    assert made._here._count <= 120
    for session in sessions:
        page = made.read(session.id, 0)
        assert (len(page.entries), page.gap) == (30, False)
    made.close()
    store.close()


# -- the text of an event ----------------------------------------------------------------------------------------------

ODD = 'Grüße, 你好 \U0001f600 \0 \x01 \x1f \\u0000 "quoted" \\ / \u2028 </script> \ufffd\n\r\t'


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", [AgentChoice, AgentChoiceReasoning])
@pytest.mark.parametrize("text", ["", "word ", ODD, "half \ud83d an emoji"])
def test_a_piece_of_a_reply_is_written_as_every_event(
    form: str, kind: type[AgentChoice] | type[AgentChoiceReasoning], text: str
) -> None:
    event = kind(text, agent_name=f"clerk {ODD}", session_id=f"id {ODD}")
    written = Entry(1, event).text(form)
    assert "\n" not in written
    assert json.loads(written) == json.loads(json.dumps(FORMS[form](event)))
    assert list(json.loads(written)) == list(FORMS[form](event))  # in the same order, the type first
    assert Entry(1, text=written).type == event.type


def test_an_event_is_made_into_text_once_for_all_readers() -> None:
    for event in (AgentChoice("x"), StreamStopped("normal")):
        entry = Entry(1, event)
        for form in FORMS:
            assert entry.text(form) is entry.text(form)
