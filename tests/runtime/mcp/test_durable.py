"""Questions of MCP servers that outlive their process: by the protocol of 2026-07-28, the call is made again with what
the server wants back.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runtime import Agent, NotParkable, Runtime, Session, Store
from runtime.events import ElicitationRequest, ToolCallConfirmation
from runtime.mcp import MCPToolSet
from runtime.stores import MemoryStore, SQLiteStore
from support.mcp_http import BOOKING, ROOT, served
from support.stores import Planned, calls, done, survivor
from support.waiting import eventually

pytest.importorskip("mcp")


@pytest.fixture(scope="module")
def booking_url() -> Iterator[str]:
    with served(BOOKING, [str(ROOT / "examples")]) as (url, _):
        yield url


def parked_at(url: str, store: Store, question: int, mode: str = "2026-07-28") -> Session:
    """A run that is parked when the server asks for the ``question``-th time."""
    desk = MCPToolSet(url=f"{url}/mcp", name="booking", transport="http", mode=mode)
    session = Session.from_user("go")
    with Runtime(agent(desk), store=store) as runtime, runtime.run_stream(session) as stream:
        asked = 0
        for event in stream:
            if isinstance(event, ToolCallConfirmation):
                stream.approve(event)
            elif isinstance(event, ElicitationRequest):
                asked += 1
                if asked == question:
                    stream.park()
                else:
                    stream.respond(event, "accept", {"date": "2026-12-24", "people": 2})
        assert stream.reason == "waiting"
    return session


def agent(desk: MCPToolSet) -> Agent:
    return Agent("a", Planned(calls(("c1", "book_table", {"restaurant": "Luigi's"})), done()), toolsets=[desk])


def ended(url: str, store: Store, session: Session) -> str:
    """The result of the call, after a run in another process has gone on with it."""
    desk = MCPToolSet(url=f"{url}/mcp", name="booking", transport="http", mode="2026-07-28")
    with Runtime(agent(desk), store=store) as runtime:
        loaded = store.load(session.id)
        with runtime.run_stream(loaded) as stream:
            for event in stream:
                if isinstance(event, ElicitationRequest):
                    assert "Book Luigi's" in event.message  # only what was not answered
                    stream.respond(event, "accept", {"confirm": True})
            assert stream.reason == "normal"
    return next(message.content for message in loaded.messages if message.role == "tool")


@pytest.mark.parametrize("question", [1, 2])
def test_a_question_of_a_server_is_answered_while_its_run_is_parked(booking_url: str, question: int) -> None:
    """Law 22: the server gets back what it wants, with the answers that were given, and books once."""
    store = MemoryStore()
    session = parked_at(booking_url, store, question)
    (request,) = store.pending()
    content = {"date": "2026-12-24", "people": 2} if question == 1 else {"confirm": True}
    store.answer(request.id, {"action": "accept", "content": content})
    assert ended(booking_url, store, session).startswith("Booked: Luigi's, 2026-12-24, 2 people")


def test_the_example_server_goes_on_in_a_process_of_its_own(tmp_path: Path) -> None:
    """As `lockgate run examples/booking.py --park` does: its server ends with the process that has parked the run."""
    server = [sys.executable, ROOT / "examples" / "booking_server.py"]
    session = Session.from_user("go")
    with SQLiteStore(tmp_path / "sessions.db") as store:

        def goes_on(*answer: Any) -> str:
            with Runtime(agent(MCPToolSet(server)), store=store, park_after=0) as runtime:
                for which in store.pending():
                    if which.kind == "approval":
                        runtime.approve(which.id)
                    else:
                        runtime.resume_elicitation("accept", *answer)
                with runtime.run_stream(session if not answer else store.load(session.id)) as stream:
                    for _ in stream:
                        pass
                return str(stream.reason)

        assert goes_on() == "waiting"
        assert goes_on({}) == "waiting"
        assert goes_on({"date": "2026-12-24", "people": 2}) == "waiting"
        assert goes_on({"confirm": True}) == "normal"
        said = next(message.content for message in store.load(session.id).messages if message.role == "tool")
    assert said == "Booked: Luigi's, 2026-12-24, 2 people (booking 1)"


def test_a_server_that_no_longer_accepts_its_state_makes_a_result_that_says_what_to_do(tmp_path: Path) -> None:
    """By default, a server of the Python SDK has a key that ends with its process."""
    source = (ROOT / "examples" / "booking_server.py").read_text()
    (tmp_path / "server.py").write_text(re.sub("request_state_security=.*", "", source))
    store, session = MemoryStore(), Session.from_user("go")
    for _ in range(2):  # a process of the server each
        loaded = store.load(session.id) if store.pending() else session
        server = MCPToolSet([sys.executable, tmp_path / "server.py"], name="booking")
        with Runtime(agent(server), store=store) as runtime, runtime.run_stream(loaded) as stream:
            for event in stream:
                if isinstance(event, ToolCallConfirmation):
                    stream.approve(event)
                elif isinstance(event, ElicitationRequest):
                    if loaded is session:
                        stream.park()
                    else:
                        stream.respond(event, "accept", {"date": "2026-12-24", "people": 2})
    said = next(message.content for message in loaded.messages if message.role == "tool")
    assert said == (
        "MCPServerError: MCP server 'booking' has not gone on with book_table: it no longer accepts the answer to its"
        " question, as after a restart or when the answer comes too late; call the tool again, and the user is asked"
        " again (Invalid or expired requestState, code -32602)"
    )


def steps(store: Store, session: Session) -> list[str]:
    """What is kept of the calls that are under way."""
    left = store.load(session.id)._unfinished
    return [] if left is None else [key for call in left.calls.values() for key in call.kept]


def test_a_call_whose_server_was_at_work_is_in_doubt(booking_url: str) -> None:
    """Its answer was on the way: nobody knows what the server has done with it."""
    store = MemoryStore()
    desk = MCPToolSet(url=f"{booking_url}/mcp", name="booking", transport="http", mode="2026-07-28")
    session = Session.from_user("go")
    dead: list[MemoryStore] = []
    with Runtime(agent(desk), store=store) as runtime, runtime.run_stream(session) as stream:
        for event in stream:
            if isinstance(event, ToolCallConfirmation):
                stream.approve(event)
            elif isinstance(event, ElicitationRequest) and not dead:
                stream.respond(event, "accept", {"date": "2026-12-24", "people": 2})
                assert eventually(lambda: any("answered" in key for key in steps(store, session)))
                dead.append(survivor(store))
                break
    assert "it is not known whether it took effect" in ended(booking_url, dead[0], session)


def test_a_server_of_the_older_generation_keeps_its_run(booking_url: str) -> None:
    """It holds the call open until it has its answer."""
    with pytest.raises(NotParkable, match="tool book_table"):
        parked_at(booking_url, MemoryStore(), 1, mode="legacy")
