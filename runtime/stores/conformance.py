"""Tests that every store has to pass, for pytest: subclass `StoreConformance` where your tests are.

from runtime.stores.conformance import StoreConformance

class TestMyStore(StoreConformance):
    @pytest.fixture
    def store(self):
        with closing(MyStore(...)) as store:
            yield store

    @pytest.fixture
    def other(self, store):  # the same sessions, as another process has them; leave it out where there is no such
        with closing(MyStore(...)) as other:
            yield other
"""

from __future__ import annotations

import contextlib
import json
import threading
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, Final

import pytest

from channels import Cancelled, CancelToken, ChannelClosed, Receiver

from .._dataclasses import replace
from .._errors import (
    InvalidAnswer,
    LeaseLost,
    NotPending,
    NotRunning,
    SessionBusy,
    SessionChanged,
    SessionNotFound,
    StoreError,
)
from ..permissions import Permissions, Rule
from ..session._idempotency import IdempotencyKey
from ..session._journal import (
    Allowed,
    Began,
    Counted,
    Ended,
    HandedOver,
    Journal,
    Mailed,
    Named,
    Partial,
    Request,
    Requested,
    Said,
    Shortened,
    Step,
    Unfinished,
)
from ..session._message import Image, Message, Native, ToolCall
from ..session._session import Compacted, Session
from ..usage import Usage
from ._events import EVENTS
from ._store import Commands, Notice, Parent, Store

__all__ = ["StoreConformance"]

_LONG: Final = 10.0  # seconds after which something will never happen
_FORM: Final = {"type": "object", "properties": {"size": {"type": "string"}}, "required": ["size"]}
_ODD: Final = "Grüße, 你好 \U0001f600 \0 \x01 \\u0000 'quoted\" %s ? \ufffd e\u0301"


def _calling(*ids: str) -> Message:
    calls = tuple(ToolCall(id, "pay", '{"amount": 5}') for id in ids)
    return Message("assistant", "", tool_calls=calls, agent_name="clerk")


def _result(id: str, text: str = "paid") -> Message:
    return Message("tool", text, tool_call_id=id)


def _request(session: Session, id: str = "", kind: Any = "question", **more: Any) -> Request:
    event = {"type": "elicitation_request", "message": "Which size?", "nested": [1, 2.5, None, {"a": _ODD}]}
    return Request(id or uuid.uuid4().hex, session.id, session.id, kind, event, **more)


def _left(session: Session) -> Unfinished:
    assert session._unfinished is not None
    return session._unfinished


def _copy(session: Session) -> dict[str, Any]:
    """What a session says, as others would read it."""
    said: dict[str, Any] = json.loads(json.dumps(session.to_dict()))
    return said


class StoreConformance:
    """The tests. ``store`` is a fixture of yours: an empty store, closed behind the test."""

    @pytest.fixture
    def store(self) -> Store:
        """An empty store."""
        raise NotImplementedError("a subclass of StoreConformance has a fixture 'store', an empty store of its own")

    @pytest.fixture
    def other(self, store: Store) -> Store:
        """The sessions of ``store``, as another process has them."""
        pytest.skip("this store is for one process")

    @pytest.fixture
    def held(self, store: Store) -> Callable[..., tuple[Session, Journal]]:
        """A session that is in the store, with its journal."""

        def hold(*messages: Message, **more: Any) -> tuple[Session, Journal]:
            session = Session([Message("user", "hello"), *messages], **more)
            return session, store.open(session)

        return hold

    # -- what is written is there --------------------------------------------------------------------------------------

    def test_a_session_comes_back_as_it_was(self, store: Store) -> None:
        rules = Permissions(allow=["read_*", Rule("pay", (("to", "a=b:*"),), "bank")], ask=["x"], deny=["rm:path=/*"])
        said = [
            Message("system", "be kind"),
            Message("user", _ODD, images=(Image(b"\x89PNG\0", "image/png"), Image(b"", "image/x-empty"))),
            Message(
                "assistant",
                _ODD,
                tool_calls=(ToolCall("1", "pay", '{"a": 1}'), ToolCall("2", "näme\0", "not json {")),
                agent_name="clerk\0",
                model="m",
                usage=Usage(10, 5, 3, 2, 1, 0.25),
                finish_reason="tool_calls",
                native=Native("someone", [{"type": "thinking", "signature": _ODD}]),
            ),
            Message("tool", "fine", tool_call_id="1", images=(Image(b"\x89PNG\0", "image/png"),)),
            Message("tool", "bad", tool_call_id="2", is_error=True),
            Message("assistant", "done", usage=Usage(1, 1)),
        ]
        session = Session(
            said, title=_ODD, permissions=rules, agent_name="clerk", compacted=Compacted("so far", 1, 2, 3)
        )
        store.open(session).release("idle", "normal")
        found = store.load(session.id)
        assert _copy(found) == _copy(session)
        assert found.messages == tuple(said)
        assert _left(found) == Unfinished({})

    def test_entries_add_up_to_the_session(self, store: Store, held: Any) -> None:
        session, journal = held()
        reply = Message("assistant", "hi", usage=Usage(3, 2, cost=0.5))
        journal.append(
            Said(reply),
            Counted(Usage(10, 0, cost=0.5)),
            Named("a talk\0"),
            HandedOver("other"),
            Shortened("summary", 1, 1, 2),
            Allowed(Rule("pay", (("to", "*"),), "bank")),
            Allowed(None),
        )
        found = store.load(session.id)
        assert found.messages == (*session.messages, reply)
        assert found.usage == Usage(13, 2, cost=1.0)
        assert (found.title, found.agent_name) == ("a talk\0", "other")
        assert found.compacted == Compacted("summary", 1, 1, 2)
        assert found.permissions.allow == (Rule("pay", (("to", "*"),), "bank"),)
        assert found.permissions.approve_all
        journal.release("idle")

    def test_what_was_posted_is_written_in_order_before_what_is_appended(self, store: Store, held: Any) -> None:
        session, journal = held()
        for n in range(50):
            journal.post(Said(Message("assistant", f"{n}")))
        journal.append()
        assert [message.content for message in store.load(session.id).messages[1:]] == [f"{n}" for n in range(50)]
        journal.post(Said(Message("assistant", "last")))
        journal.release("idle")
        assert store.load(session.id).messages[-1].content == "last"

    def test_threads_that_append_at_once_lose_nothing(self, store: Store, held: Any) -> None:
        session, journal = held()

        def write(thread: int) -> None:
            for n in range(10):
                journal.append(Said(Message("assistant", f"{thread} {n}")))

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(write, range(8)))
        said = [message.content for message in store.load(session.id).messages[1:]]
        for thread in range(8):  # each thread's in its order
            assert [each for each in said if each.startswith(f"{thread} ")] == [f"{thread} {n}" for n in range(10)]
        assert len(said) == 80
        journal.release("idle")

    def test_a_conversation_goes_on_where_it_ended(self, store: Store, held: Any) -> None:
        session, journal = held()
        journal.append(Said(Message("assistant", "hi")))
        journal.release("idle", "normal")
        found = store.load(session.id)
        found.add_user("and now?")
        found.title = "a title of mine"
        journal = store.open(found)
        journal.append(Said(Message("assistant", "now this")))
        journal.release("idle", "normal")
        again = store.load(session.id)
        assert [message.content for message in again.messages] == ["hello", "hi", "and now?", "now this"]
        assert again.title == "a title of mine"

    def test_what_the_model_had_said_of_a_reply_is_kept_as_interrupted(self, store: Store, held: Any) -> None:
        session, journal = held()
        journal.append(Partial("once upon", "clerk"))
        journal.append(Partial("once upon a time", "clerk"))
        journal.release("interrupted")
        found = store.load(session.id)
        last = found.messages[-1]
        assert (last.role, last.content, last.finish_reason) == ("assistant", "once upon a time", "interrupted")
        assert last.agent_name == "clerk"
        journal = store.open(found)  # it is a message like others from now on
        journal.append(Said(Message("assistant", "there was")))
        journal.release("idle")
        contents = [message.content for message in store.load(session.id).messages]
        assert contents == ["hello", "once upon a time", "there was"]

    def test_a_whole_reply_takes_the_place_of_what_had_been_said_of_it(self, store: Store, held: Any) -> None:
        session, journal = held()
        journal.append(Partial("once", "clerk"))
        journal.append(Said(Message("assistant", "once upon a time")))
        journal.release("idle")
        assert [message.content for message in store.load(session.id).messages] == ["hello", "once upon a time"]

    def test_an_empty_append_is_harmless(self, store: Store, held: Any) -> None:
        _, journal = held()
        journal.append()
        journal.post()
        journal.release("idle")

    def test_an_append_whose_cancel_is_done_is_written_all_the_same(self, store: Store, held: Any) -> None:
        session, journal = held()
        token = CancelToken()
        token.cancel()
        with contextlib.suppress(Cancelled):
            journal.append(Said(Message("assistant", "hi")), cancel=token)
        journal.append()
        assert store.load(session.id).messages[-1].content == "hi"
        journal.release("idle")

    def test_unknown_sessions(self, store: Store) -> None:
        for call in (store.load, store.delete, store.export, store.branch):
            with pytest.raises(SessionNotFound, match="nothing-like-it"):
                call("nothing-like-it")
        assert list(store.pending("nothing-like-it")) == []

    @pytest.mark.parametrize("id", ["", "\udcff", "nul\x00", "x" * 10_000, "%", "../x", "\u202e"])
    def test_ids_that_are_the_ids_of_nothing(self, store: Store, id: str) -> None:
        for call in (store.load, store.info, store.delete, store.export, store.branch, store.cancel, store.events):
            with pytest.raises(SessionNotFound):
                call(id)
        with pytest.raises(SessionNotFound):
            store.mail(id, "user_followup_submit", "x")
        assert list(store.pending(id)) == []
        with pytest.raises(NotPending):
            store.answer(id, {"approved": True, "scope": "once", "reason": ""})

    @pytest.mark.parametrize("id", [None, 5, b"x", ["x"]])
    def test_an_id_is_text(self, store: Store, id: Any) -> None:
        for call in (store.load, store.info, store.delete, store.export, store.branch, store.cancel, store.events):
            with pytest.raises(TypeError, match="the id of a session must be text"):
                call(id)

    def test_lists_before_the_ends_of_the_calendar(self, store: Store, held: Any) -> None:
        held()
        zones = (None, UTC, timezone(timedelta(hours=14)), timezone(timedelta(hours=-12)))
        for zone in zones:
            assert list(store.sessions(before=datetime.min.replace(tzinfo=zone))) == []
            assert len(store.sessions(before=datetime.max.replace(tzinfo=zone))) == 1

    # -- tool calls ----------------------------------------------------------------------------------------------------

    def test_the_phases_of_a_call(self, store: Store, held: Any) -> None:
        session, journal = held()
        journal.append(Said(_calling("open", "asked", "approved", "refused", "began", "ended")))
        for id in ("asked", "approved", "refused", "began"):
            journal.append(Requested(_request(session, id, "approval", call_id=id, arguments='{"shown": 1}')))
        store.answer("approved", {"approved": True, "scope": "once", "reason": ""}, by="me")
        store.answer("refused", {"approved": False, "scope": "once", "reason": "no"}, by="me")
        store.answer("began", {"approved": True, "scope": "once", "reason": ""}, by="me")
        journal.append(Began("began", '{"amount": 6}'))
        journal.append(Began("ended", '{"amount": 7}'), Ended(_result("ended")))
        calls = _left(store.load(session.id)).calls
        assert {id: call.phase for id, call in calls.items()} == {
            id: id for id in ("open", "asked", "approved", "refused", "began")
        }
        assert list(calls) == ["open", "asked", "approved", "refused", "began"]
        assert calls["began"].arguments == '{"amount": 6}'
        assert calls["approved"].arguments == '{"shown": 1}'
        assert calls["open"].arguments is None
        assert [request.id for request in calls["refused"].requests] == ["refused"]
        assert calls["refused"].requests[0].answer == {"approved": False, "scope": "once", "reason": "no"}
        assert calls["refused"].requests[0].answered_by == "me"
        journal.release("interrupted")

    def test_results_follow_their_calls_in_order_when_loaded(self, store: Store, held: Any) -> None:
        session, journal = held()
        journal.append(Said(_calling("1", "2", "3")))
        journal.append(Ended(_result("3")), Ended(_result("1")))
        journal.append(Said(Message("user", "wait")), Ended(_result("2")))
        journal.release("idle")
        found = store.load(session.id)
        assert [message.tool_call_id or message.content for message in found.messages[2:]] == ["1", "2", "3", "wait"]
        found.add_user("go on")
        store.open(found).release("idle")
        again = store.load(session.id)
        assert [message.content for message in again.messages[-2:]] == ["wait", "go on"]

    def test_a_call_is_not_taken_for_an_earlier_one_with_its_id(self, store: Store, held: Any) -> None:
        """What was approved, begun and kept then is nothing of this one's: it would be made without being asked for."""
        session, journal = held()
        journal.append(Said(_calling("1")))
        journal.append(Requested(_request(session, "first", "approval", call_id="1", arguments="{}")))
        store.answer("first", {"approved": True, "scope": "once", "reason": ""})
        journal.append(Began("1", "{}"), Step("1", "step", 5))
        journal.append(Ended(_result("1")))
        journal.append(Said(_calling("1")))
        [call] = _left(store.load(session.id)).calls.values()
        assert (call.phase, call.arguments, dict(call.kept), call.requests) == ("open", None, {}, ())
        journal.append(Ended(_result("1")))
        assert not _left(store.load(session.id)).calls
        journal.release("idle")

    def test_the_steps_that_a_tool_has_kept(self, store: Store, held: Any) -> None:
        session, journal = held()
        journal.append(Said(_calling("1", "2")))
        journal.append(Step("1", "a\0", {"paid": [1, 2.5, None, True, _ODD]}), Step("1", "b", None))
        journal.append(Step("1", "a\0", "the first stays"))
        calls = _left(store.load(session.id)).calls
        assert dict(calls["1"].kept) == {"a\0": {"paid": [1, 2.5, None, True, _ODD]}, "b": None}
        assert not calls["2"].kept
        journal.release("interrupted")

    # -- requests ------------------------------------------------------------------------------------------------------

    def test_a_request_comes_back_as_it_was(self, store: Store, held: Any) -> None:
        session, journal = held(_calling("1"))
        request = _request(
            session,
            "q\0",
            call_id="1",
            arguments='{"b": 1, "a": 2}',
            ordinal=3,
            schema={
                "type": "object",
                "properties": {"z": {"type": "string"}, "a": {"type": "integer", "maximum": 1e2}},
            },
            expires_at=datetime.now(UTC) + timedelta(hours=1),
        )
        journal.append(Requested(request))
        assert list(store.pending()) == [request]
        assert list(store.pending(session.id)) == [request]
        [found] = store.pending()
        assert list((found.schema or {})["properties"]) == ["z", "a"]  # the order of a form
        assert _left(store.load(session.id)).calls["1"].requests == (request,)
        journal.release("waiting")
        assert list(store.pending()) == [request]

    def test_the_first_answer_counts(self, store: Store, held: Any) -> None:
        session, journal = held(_calling("1"))
        journal.append(Requested(_request(session, "q", schema=_FORM, call_id="1")))
        journal.release("waiting")
        answers = [{"action": "accept", "content": {"size": f"{n}"}} for n in range(8)]
        barrier = threading.Barrier(8)

        def answer(n: int) -> Request | None:
            barrier.wait(_LONG)
            try:
                return store.answer("q", answers[n], by=f"{n}")
            except NotPending:
                return None

        with ThreadPoolExecutor(8) as pool:
            won = [request for request in pool.map(answer, range(8)) if request is not None]
        assert len(won) == 1
        [kept] = _left(store.load(session.id)).calls["1"].requests
        assert kept == won[0]
        assert kept.answer == answers[int(kept.answered_by)]
        with pytest.raises(NotPending):
            store.answer("q", answers[0])
        assert list(store.pending()) == []

    @pytest.mark.parametrize(
        ("kind", "answer"),
        [
            ("question", {"action": "accept", "content": {}}),
            ("question", {"action": "accept", "content": {"size": 5}}),
            ("question", {"action": "maybe"}),
            ("question", {"approved": True}),
            ("question", {}),
            ("approval", {"action": "accept"}),
            ("approval", {"approved": "no"}),
            ("approval", {"approved": True, "scope": "for ever"}),
            ("approval", {"approved": False, "reason": 5}),
        ],
    )
    def test_an_answer_that_does_not_fit_leaves_the_request_waiting(
        self, store: Store, held: Any, kind: Any, answer: Mapping[str, Any]
    ) -> None:
        session, journal = held(_calling("1"))
        journal.append(Requested(_request(session, "q", kind, schema=_FORM, call_id="1")))
        with pytest.raises(InvalidAnswer):
            store.answer("q", answer)
        with pytest.raises(InvalidAnswer, match=r"the answer must be .*, without .*'x', 'y'"):
            store.answer("q", {**answer, "x": 1, "y": 2})
        assert [request.id for request in store.pending()] == ["q"]
        good = {"approved": True} if kind == "approval" else {"action": "decline"}
        assert store.answer("q", good, by="me").answer is not None
        journal.release("interrupted")

    def test_a_request_whose_time_is_over_takes_no_answer(self, store: Store, held: Any) -> None:
        session, journal = held(_calling("1"))
        journal.append(
            Requested(_request(session, "q", call_id="1", expires_at=datetime.now(UTC) - timedelta(seconds=1)))
        )
        assert list(store.pending()) == []
        with pytest.raises(NotPending):
            store.answer("q", {"action": "decline"})
        journal.release("waiting")
        assert list(store.ready()) == [session.id]
        [kept] = _left(store.load(session.id)).calls["1"].requests
        assert kept.expired

    def test_the_result_of_a_call_withdraws_its_requests(self, store: Store, held: Any) -> None:
        session, journal = held(_calling("1", "2"))
        journal.append(Requested(_request(session, "q1", call_id="1")), Requested(_request(session, "q2", call_id="2")))
        journal.append(Ended(_result("1")))
        assert [request.id for request in store.pending()] == ["q2"]
        with pytest.raises(NotPending):
            store.answer("q1", {"action": "decline"})
        journal.release("idle")

    @pytest.mark.parametrize("status", ["idle", "interrupted", "waiting"])
    def test_requests_outlast_their_stream_only_where_it_waits(self, store: Store, held: Any, status: Any) -> None:
        session, journal = held(_calling("1"))
        journal.append(Requested(_request(session, "q", call_id="1")), Requested(_request(session, "turns", "turns")))
        journal.release(status)
        kept = ["q", "turns"] if status == "waiting" else []
        assert [request.id for request in store.pending()] == kept
        assert [request.id for request in _left(store.load(session.id)).requests] == kept[1:]

    def test_a_request_that_is_asked_again_keeps_its_id_and_its_answer(self, store: Store, held: Any) -> None:
        session, journal = held(_calling("1"))
        journal.append(
            Requested(_request(session, "a", call_id="1")), Requested(_request(session, "b", call_id="1", ordinal=1))
        )
        journal.release("waiting")
        store.answer("a", {"action": "decline"}, by="me")
        found = store.load(session.id)
        journal = store.open(found)
        for request in _left(found).calls["1"].requests:
            journal.append(Requested(request))
        again = _left(store.load(session.id)).calls["1"].requests
        assert [(each.id, each.answer) for each in again] == [("a", {"action": "decline"}), ("b", None)]
        assert [request.id for request in store.pending()] == ["b"]
        journal.release("idle")

    def test_a_request_that_is_asked_again_without_an_end_waits_without_end(self, store: Store, held: Any) -> None:
        session, journal = held(_calling("1"))
        soon = datetime.now(UTC) + timedelta(minutes=1)
        asked = _request(session, "q", call_id="1", expires_at=soon)
        journal.append(Requested(asked))
        journal.append(Requested(replace(asked, expires_at=None)))
        journal.release("waiting")
        assert [(request.id, request.expires_at) for request in store.pending()] == [("q", None)]

    def test_more_turns_that_were_granted_are_not_granted_twice(self, store: Store, held: Any) -> None:
        session, journal = held()
        journal.append(Requested(_request(session, "turns", "turns")))
        store.answer("turns", {"action": "accept", "content": {}})
        assert [request.id for request in _left(store.load(session.id)).requests] == ["turns"]
        journal.append(Said(Message("assistant", "going on")))
        assert _left(store.load(session.id)).requests == ()
        journal.release("idle")

    def test_requests_of_sub_sessions_are_those_of_the_session(self, store: Store, held: Any) -> None:
        session, journal = held(_calling("1"))
        inner = Session.from_user("a task")
        with_inner = store.open(inner, parent=Parent(session.id, session.id, "1"))
        request = Request("q", inner.id, session.id, "question", {"type": "elicitation_request"})
        with_inner.append(Requested(request))
        assert list(store.pending(session.id)) == [request]
        assert list(store.pending(inner.id)) == [request]
        [info] = store.sessions()
        assert (info.id, info.waiting) == (session.id, 1)
        with_inner.release("waiting")
        journal.release("waiting")
        assert list(store.ready()) == []
        store.answer("q", {"action": "decline"})
        assert list(store.ready()) == [session.id]

    # -- mail ----------------------------------------------------------------------------------------------------------

    def test_a_steering_message_is_kept_until_the_agent_has_heard_it(self, store: Store, held: Any) -> None:
        session, journal = held()
        first = Mailed("m1", "user_steering_messages_submit", _ODD)
        second = Mailed("m2", "user_followup_submit", "and then?")
        journal.append(first, second)
        assert _left(store.load(session.id)).mail == (first, second)
        journal.append(Said(Message("user", first.text), mail="m1"))
        assert _left(store.load(session.id)).mail == (second,)
        journal.release("interrupted")
        assert _left(store.load(session.id)).mail == (second,)

    # -- one writer ----------------------------------------------------------------------------------------------------

    def test_a_session_has_one_stream_at_a_time(self, store: Store, held: Any) -> None:
        session, journal = held()
        with pytest.raises(SessionBusy, match="process"):
            store.open(store.load(session.id))
        journal.release("idle")
        store.open(store.load(session.id)).release("idle")

    def test_a_copy_that_the_store_is_ahead_of_is_refused(self, store: Store, held: Any) -> None:
        session, journal = held()
        early = store.load(session.id)  # while the stream runs
        journal.append(Said(Message("assistant", "hi")))
        journal.release("idle")
        with pytest.raises(SessionChanged, match="load"):
            store.open(early)
        first, second = store.load(session.id), store.load(session.id)
        store.open(first).release("idle")
        with pytest.raises(SessionChanged, match="load"):
            store.open(second)
        stranger = Session([Message("user", "something else")], id=session.id)
        with pytest.raises(SessionChanged):
            store.open(stranger)
        assert len(store.load(session.id).messages) == 2

    def test_a_copy_that_the_store_is_behind_of_writes_all_of_it_anew(self, store: Store, held: Any) -> None:
        """Its journal has failed once: what is in the store is a part of it, and may be in another order."""
        session, journal = held()
        journal.append(Said(_calling("1")), Requested(_request(session, "q", call_id="1")))
        journal.release("interrupted")
        session._messages += [_calling("1"), _result("1"), Message("assistant", "done", usage=Usage(5, 5))]
        session._count(Usage(5, 5))
        session._stored.behind = True
        again = store.open(session)
        found = store.load(session.id)
        assert _copy(found) == _copy(session)
        assert not _left(found).calls
        assert list(store.pending()) == []
        assert not session._stored.behind
        again.append(Said(Message("assistant", "and on")))
        again.release("idle")
        assert store.load(session.id).messages[-1].content == "and on"

    def test_an_opening_says_what_is_left_to_do(self, store: Store, held: Any) -> None:
        """Its questions may have been answered since it was loaded; a session from elsewhere may have open calls."""
        session, journal = held(_calling("1"))
        assert list(_left(session).calls) == ["1"]
        journal.append(Requested(_request(session, "q", call_id="1")))
        journal.release("waiting")
        found = store.load(session.id)
        store.answer("q", {"action": "decline"})
        store.open(found).release("waiting")
        assert _left(found).calls["1"].requests[0].answer == {"action": "decline"}

    def test_after_its_release_a_journal_writes_nothing(self, store: Store, held: Any) -> None:
        session, journal = held()
        journal.release("idle")
        journal.release("interrupted")  # twice is harmless
        journal.post(Said(Message("assistant", "late")))
        with pytest.raises(StoreError):
            journal.append(Said(Message("assistant", "too late")))
        assert len(store.load(session.id).messages) == 1
        [info] = store.sessions()
        assert info.status == "idle"

    def test_once_an_entry_has_failed_nothing_more_is_written(self, store: Store, held: Any) -> None:
        session, journal = held()
        broken: Any = Step("1", "key", object())  # JSON has no word for it
        journal.append(Said(Message("assistant", "before")))
        journal.post(broken)
        for _ in range(2):
            with pytest.raises(StoreError):
                journal.append(Said(Message("assistant", "behind")))
        with pytest.raises(StoreError):
            journal.release("idle")
        assert [message.content for message in store.load(session.id).messages] == ["hello", "before"]
        session._stored.behind = True  # as the log of a session says then
        store.open(session).release("idle")  # the lease was given back all the same

    def test_a_store_that_is_closed_says_so(self, store: Store, held: Any) -> None:
        session, journal = held()
        journal.append(Said(Message("assistant", "hi")))
        store.close()
        store.close()
        with pytest.raises(StoreError, match="closed"):
            journal.append(Said(Message("assistant", "late")))
        with pytest.raises(StoreError, match="closed"):
            store.load(session.id)
        with pytest.raises(StoreError, match="closed"):
            store.open(Session.from_user("x"))

    # -- lists ---------------------------------------------------------------------------------------------------------

    def test_sessions_that_changed_last_come_first(self, store: Store) -> None:
        made = [Session.from_user(f"{n}") for n in range(5)]
        for session in made:
            store.open(session).release("idle", "normal")
        journal = store.open(made[1])
        journal.append(Named("second"))
        order = [made[n].id for n in (1, 4, 3, 2, 0)]
        assert [info.id for info in store.sessions()] == order
        first = store.sessions(limit=2)
        rest = store.sessions(before=first[-1].updated_at)
        assert [info.id for info in (*first, *rest)] == order
        assert list(store.sessions(limit=0)) == []
        info = first[0]
        assert (info.title, info.status, info.messages, info.parent_id) == ("second", "running", 1, None)
        assert info.created_at.tzinfo is not None
        assert info.created_at <= info.updated_at <= datetime.now(UTC) + timedelta(seconds=1)
        assert (first[1].status, first[1].reason) == ("idle", "normal")
        journal.release("waiting", "waiting")
        assert store.sessions()[0].status == "waiting"

    def test_the_sessions_whose_ids_begin_alike(self, store: Store, held: Any) -> None:
        """An owner's among those of others: a list of them, a search, a page after the other, and what they ask."""
        ids = ["an-1", "ann-1", "ann-2", "ann-\U0010ffff1", "ann-%_", "ann.1", "anm-1", "Ann-1", "bob-1", "ann-3"]
        journals = {id: held(id=id, title="bill")[1] for id in ids}
        own = ["ann-3", "ann-%_", "ann-\U0010ffff1", "ann-2", "ann-1"]
        for query in ("", "bill"):
            assert [info.id for info in store.sessions(query, prefix="ann-")] == own
        assert [info.id for info in store.sessions(prefix="ann-\U0010ffff")] == ["ann-\U0010ffff1"]
        assert [info.id for info in store.sessions(prefix="ann-2")] == ["ann-2"]
        assert list(store.sessions(prefix="ann-%%")) == list(store.sessions(prefix="x")) == []
        first = store.sessions(prefix="ann-", limit=2)
        rest = store.sessions(prefix="ann-", before=first[-1].updated_at)
        assert [info.id for info in (*first, *rest)] == own
        for id in ("an-1", "ann-1", "ann.1", "ann-3"):
            journals[id].append(Requested(_request(store.load(id), f"of {id}")))
        assert [each.id for each in store.pending(prefix="ann-")] == ["of ann-1", "of ann-3"]
        assert [each.id for each in store.pending("ann-1", prefix="ann-")] == ["of ann-1"]
        assert list(store.pending("bob-1", prefix="ann-")) == list(store.pending(prefix="x")) == []
        for journal in journals.values():
            journal.release("idle")

    def test_what_is_known_of_one_session(self, store: Store, held: Any) -> None:
        """As in the list, and of sub-sessions, which are not there."""
        session, journal = held(_calling("1"), title=_ODD)
        inner = Session.from_user("task")
        nested = store.open(inner, parent=Parent(session.id, session.id, "1"))
        nested.append(Requested(_request(inner, "q")))
        assert store.info(session.id) == store.sessions()[0]
        found = store.info(inner.id)
        assert (found.parent_id, found.status, found.messages, found.waiting) == (session.id, "running", 1, 1)
        nested.release("idle")
        journal.release("idle")
        with pytest.raises(SessionNotFound):
            store.info("nobody")

    @pytest.mark.parametrize(
        ("query", "found"),
        [
            ("", True),
            ("trip", True),  # in the title
            ("TRIP zurich", True),  # one in the title, the other in a message
            ("Zürich hotel", True),
            ("zurich paris", False),
            ("zur", False),
            ("'; DROP TABLE sessions --", False),
            ('"hotel" AND (NEAR* OR', False),
            ("hotel-zürich", True),
            ("!!!", True),  # no words: nothing is searched for
            ("snake_case", True),
            ("snake", False),
            ("naïve NAIVE", True),
            ("\0", True),
        ],
    )
    def test_search(self, store: Store, query: str, found: bool) -> None:
        """All words, whole ones, in titles and messages; case and accents do not count."""
        session = Session.from_user("A hotel in ZÜRICH, with a view", permissions=None)
        session.title = "My trip"
        journal = store.open(session)
        journal.append(Said(Message("assistant", "nai\u0308ve snake_case x\0y")))
        journal.release("idle")
        store.open(Session.from_user("something else, paris")).release("idle")
        assert (session.id in [info.id for info in store.sessions(query)]) == found

    def test_what_is_said_while_a_stream_runs_can_be_searched_for(self, store: Store, held: Any) -> None:
        session, journal = held()
        assert list(store.sessions("needle")) == []
        journal.append(Said(Message("assistant", "a needle")))
        assert [info.id for info in store.sessions("needle")] == [session.id]
        journal.release("idle")

    def test_sub_sessions_are_not_in_the_list_but_with_their_call(self, store: Store, held: Any) -> None:
        session, journal = held(_calling("1"))
        inner = [Session.from_user("first"), Session.from_user("second")]
        for each in inner:
            nested = store.open(each, parent=Parent(session.id, session.id, "1"))
            nested.release("idle")
        assert [info.id for info in store.sessions()] == [session.id]
        assert _left(store.load(session.id)).calls["1"].nested == (inner[0].id, inner[1].id)
        assert store.load(inner[0].id).messages[0].content == "first"
        journal.append(Ended(_result("1")), Said(_calling("1")))
        assert _left(store.load(session.id)).calls["1"].nested == ()
        journal.release("idle")

    # -- branch, delete, export ----------------------------------------------------------------------------------------

    def test_a_branch_has_what_was_said_before_a_message_of_the_user(self, store: Store, held: Any) -> None:
        image = Image(b"picture", "image/png")
        session, journal = held(
            _calling("1"),
            Message("tool", "paid", tool_call_id="1", images=(image,)),
            Message("assistant", "done"),
            Message("user", "again"),
            Message("assistant", "no"),
            title="payments",
        )
        journal.release("idle")
        branch = store.branch(session.id, 4)
        assert branch.id != session.id
        assert branch.messages == session.messages[:4]
        assert branch.title == "payments"
        branch.add_user("something else")
        journal = store.open(branch)
        journal.append(Said(Message("assistant", "fine")))
        journal.release("idle")
        assert store.load(session.id).messages == session.messages
        assert [message.content for message in store.load(branch.id).messages[-2:]] == ["something else", "fine"]
        infos = {info.id: info for info in store.sessions()}
        assert infos[branch.id].branch_of == session.id
        assert infos[session.id].branch_of is None
        assert store.branch(session.id).messages == session.messages
        store.delete(session.id)
        assert store.load(branch.id).messages[2].images == (image,)

    def test_where_no_branch_can_begin(self, store: Store, held: Any) -> None:
        session, journal = held(_calling("1"))
        inner = Session.from_user("a task")
        store.open(inner, parent=Parent(session.id, session.id, "1")).release("idle")
        for id, at in ((session.id, 1), (session.id, 7), (session.id, -1), (session.id, None), (inner.id, 0)):
            with pytest.raises(ValueError):  # noqa: PT011
                store.branch(id, at)
        assert len(store.branch(session.id, 0).messages) == 0
        journal.release("idle")

    def test_a_deleted_session_is_gone_with_its_sub_sessions(self, store: Store, held: Any) -> None:
        session, journal = held(_calling("1"))
        inner, innermost = Session.from_user("task"), Session.from_user("task of the task")
        nested = store.open(inner, parent=Parent(session.id, session.id, "1"))
        deepest = store.open(innermost, parent=Parent(inner.id, session.id))
        deepest.append(Requested(Request("q", innermost.id, session.id, "question", {})))
        with pytest.raises(SessionBusy):
            store.delete(session.id)
        deepest.release("waiting")
        nested.release("waiting")
        with pytest.raises(SessionBusy):
            store.delete(session.id)
        journal.release("waiting")
        store.delete(session.id)
        for id in (session.id, inner.id, innermost.id):
            with pytest.raises(SessionNotFound):
                store.load(id)
        assert list(store.pending()) == []
        assert list(store.sessions("task")) == []
        with pytest.raises(NotPending):
            store.answer("q", {"action": "decline"})

    def test_an_export_can_be_imported(self, store: Store, held: Any) -> None:
        session, journal = held(
            Message("user", _ODD, images=(Image(b"\0picture", "image/png"),)),
            _calling("1", "2"),
            title=_ODD,
            permissions=Permissions(allow=["pay"], ask=["b"], deny=["c"]),
        )
        journal.append(Began("1", '{"a": 1}'), Step("1", "k", [1]), Counted(Usage(5, 5, cost=0.1)), Allowed(None))
        journal.append(Requested(_request(session, "q", "approval", call_id="2")), Partial("I was", "clerk"))
        store.answer("q", {"approved": True, "scope": "once", "reason": ""})
        journal.append(Mailed("m", "user_followup_submit", "and?"))
        inner = Session.from_user("a task")
        store.open(inner, parent=Parent(session.id, session.id, "1")).release("idle")
        journal.release("waiting")
        data = json.loads(json.dumps(store.export(session.id)))
        before = store.load(session.id)
        with pytest.raises(ValueError, match=session.id):
            store.import_(data)
        store.delete(session.id)
        found = store.import_(data)
        assert _copy(found) == _copy(store.load(session.id))
        assert (found.messages, found.title, found.usage) == (before.messages, before.title, before.usage)
        # What was done is known; what the user has allowed elsewhere is asked about anew.
        assert found.permissions == Permissions(ask=["b"], deny=["c"])
        calls = _left(found).calls
        assert (calls["1"].phase, calls["1"].arguments, calls["1"].kept) == ("began", '{"a": 1}', {"k": [1]})
        assert calls["1"].nested == (inner.id,)
        assert (calls["2"].phase, calls["2"].requests) == ("open", ())
        assert _left(found).mail == _left(before).mail
        assert store.load(inner.id).messages == inner.messages
        assert [info.id for info in store.sessions("zuruck")] == []
        journal = store.open(found)
        journal.append(Ended(_result("1")), Ended(_result("2")))
        journal.release("idle")
        assert len(store.load(session.id).messages) == len(found.messages) + 2

    @pytest.mark.parametrize(
        "change",
        [
            lambda data: data.update(type="x"),
            lambda data: data.update(version=99),
            lambda data: data.update(sessions=[]),
            lambda data: data.update(sessions={}),
            lambda data: data["sessions"].append(data["sessions"][0]),
            lambda data: data["sessions"][0].update(id=5),
            lambda data: data["sessions"][0].update(id=""),
            lambda data: data["sessions"][0].update(title=None),
            lambda data: data["sessions"][0].update(messages=[5]),
            lambda data: data["sessions"][0].update(permissions={"deny": [{"tool": 5, "arguments": [], "owner": ""}]}),
            lambda data: data["sessions"][0].update(usage={"input_tokens": -1}),
            lambda data: data["sessions"][0].update(compacted={"summary": "", "start": 9, "shortened": 0, "at": 0}),
            lambda data: data["sessions"][0].update(created_at="yesterday"),
            lambda data: data["sessions"][0].update(parent={"session_id": "x", "root_id": "x", "call_id": None}),
            lambda data: data["sessions"][0].update(calls=[{"seq": 0, "call_id": "1", "began": True, "kept": {}}]),
            lambda data: data["sessions"][0].update(mail=[{"id": "m", "point": "stop", "text": ""}]),
            lambda data: data["sessions"][0]["messages"][0].update(role="boss"),
            lambda data: data["sessions"][0]["messages"][0].update(images=[{"media_type": "x", "data": "***"}]),
            lambda data: data["sessions"][0]["messages"][0].update(tool_calls=[{"id": "1"}]),
        ],
    )
    def test_an_import_that_is_no_export_is_refused_whole(self, store: Store, held: Any, change: Any) -> None:
        session, journal = held()
        journal.release("idle")
        data = store.export(session.id)
        store.delete(session.id)
        data = json.loads(json.dumps(data))
        change(data)
        with pytest.raises(ValueError):  # noqa: PT011
            store.import_(data)
        assert list(store.sessions()) == []
        wrong: Any
        for wrong in (None, [], "text", {}):
            with pytest.raises(ValueError):  # noqa: PT011
                store.import_(wrong)

    # -- notices -------------------------------------------------------------------------------------------------------

    def test_who_watches_is_told(self, store: Store, held: Any) -> None:
        session, journal = held(_calling("1"))
        journal.append(Requested(_request(session, "q", call_id="1")), Requested(_request(session, "p", call_id="1")))
        token = CancelToken()
        notices = store.watch(token)
        request = store.answer("q", {"action": "decline"}, by="me")
        assert _next(notices) == Notice("answered", session.id, request)
        store.answer("p", {"action": "cancel"}, by="here")
        told = _next(notices)
        assert told.request is not None
        assert (told.kind, told.request.id, told.request.answer) == ("answered", "p", {"action": "cancel"})
        journal.release("idle")
        assert _next(notices) == Notice("released", session.id)
        store.delete(session.id)
        assert _next(notices) == Notice("deleted", session.id)
        token.cancel()
        assert list(notices) == []

    def test_watching_ends_with_the_store(self, store: Store) -> None:
        notices = store.watch(CancelToken())
        store.close()
        with pytest.raises(ChannelClosed):
            _next(notices)

    # -- event logs ----------------------------------------------------------------------------------------------------

    def test_events_are_read_as_they_were_logged(self, store: Store, held: Any) -> None:
        session, journal = held()
        assert (store.last_event(session.id), list(store.events(session.id))) == (0, [])
        rows = [(1, '{"a": 1}'), (2, json.dumps(_ODD)), (3, _ODD), (4, "\x01"), (5, "")]
        store.append_events(session, rows[:3])
        store.append_events(session, [])
        store.append_events(session, rows[3:])
        assert list(store.events(session.id)) == rows
        assert list(store.events(session.id, 2, limit=2)) == rows[2:4]
        assert list(store.events(session.id, 5)) == []
        assert list(store.events(session.id, 10**30, limit=0)) == []
        assert store.last_event(session.id) == 5
        journal.release("idle")
        store.append_events(session, [(6, "the end, which comes behind the release")])
        assert store.last_event(session.id) == 6
        store.delete(session.id)
        for use in (store.events, store.last_event):
            with pytest.raises(SessionNotFound):
                use(session.id)

    def test_an_event_is_logged_once_and_none_is_left_out(self, store: Store, held: Any) -> None:
        session, journal = held()
        store.append_events(session, [(1, "a"), (2, "b")])
        store.append_events(session, [(1, "a"), (2, "b")])  # again: nobody has heard that it was done
        store.append_events(session, [(2, "b"), (3, "c")])
        assert list(store.events(session.id)) == [(1, "a"), (2, "b"), (3, "c")]
        wrong: Any
        for wrong in ([(5, "e")], [(4, "d"), (6, "f")], [(0, "")], [(4, "d"), (4, "d")]):
            with pytest.raises(ValueError):  # noqa: PT011
                store.append_events(session, wrong)
        for wrong in ([(True, "x")], [(4, b"x")], ["ab"], [4]):
            with pytest.raises(TypeError):
                store.append_events(session, wrong)
        with pytest.raises(ValueError, match="no stream has run it"):
            store.append_events(Session.from_user("never run"), [(1, "a")])
        assert store.last_event(session.id) == 3
        journal.release("idle")

    def test_a_log_keeps_the_last_events(self, store: Store, held: Any) -> None:
        session, journal = held()
        for first in range(1, EVENTS + 2001, 4000):
            store.append_events(session, [(number, f"{number}") for number in range(first, first + 4000)])
        last = store.last_event(session.id)
        assert last > EVENTS
        kept = [number for number, _ in store.events(session.id, limit=2 * EVENTS)]
        assert kept == list(range(last - EVENTS + 1, last + 1))
        journal.release("idle")

    @pytest.mark.parametrize("size", [1, 3, 700])
    def test_a_log_is_read_from_any_number_on(self, store: Store, held: Any, size: int) -> None:
        """However many events were logged together, and however many are read; and it is pruned to the event."""
        session, journal = held()
        odd = ["", "\n", "1,2\n", _ODD, "x" * 5000]
        rows = [(number, odd[number % len(odd)]) for number in range(1, 2 * size + 4)]
        for at in range(0, len(rows), size):
            store.append_events(session, rows[at : at + size])
            store.append_events(session, rows[max(0, at - 1) : at + size])  # again, and one that was there before
        near = {since for edge in (0, size, 2 * size, len(rows)) for since in range(edge - 2, edge + 2)}
        for since in sorted(each for each in near if each >= 0):
            for limit in (1, 2, size, 10_000):
                assert list(store.events(session.id, since, limit=limit)) == rows[since : since + limit]
        journal.release("idle")

    def test_a_log_is_pruned_to_the_event(self, store: Store, held: Any) -> None:
        session, journal = held()
        store.append_events(session, [(number, "") for number in range(1, EVENTS + 1)])
        for number in range(EVENTS + 1, EVENTS + 6):
            store.append_events(session, [(number, f"{number}")])
            first = number - EVENTS + 1
            for since in (0, first - 2, first - 1):
                assert store.events(session.id, since, limit=1)[0][0] == first
            assert store.events(session.id, first, limit=1)[0][0] == first + 1
        journal.release("idle")

    def test_events_of_two_streams_are_not_mixed(self, store: Store, held: Any) -> None:
        """What the first still has to log is refused once the second has begun."""
        session, journal = held()
        store.append_events(session, [(1, "first")])
        journal.release("idle")
        second = store.load(session.id)
        journal = store.open(second)
        with pytest.raises(LeaseLost):
            store.append_events(session, [(2, "late")])
        store.append_events(second, [(2, "second")])
        assert list(store.events(session.id)) == [(1, "first"), (2, "second")]
        journal.release("idle")

    def test_logs_are_written_side_by_side(self, store: Store) -> None:
        """Each of many threads to its own, at once."""
        sessions = [Session.from_user(f"{n}") for n in range(8)]
        journals = [store.open(session) for session in sessions]
        rows = [(number, f"{number}") for number in range(1, 101)]

        def write(session: Session) -> None:
            for start in range(0, len(rows), 7):
                store.append_events(session, rows[start : start + 7])

        with ThreadPoolExecutor(len(sessions)) as pool:
            list(pool.map(write, sessions))
        for session, journal in zip(sessions, journals, strict=True):
            assert list(store.events(session.id)) == rows
            journal.release("idle")

    def test_who_wants_events_is_told_of_a_log_that_grows(self, store: Store, held: Any) -> None:
        """And who does not is not: his own notices would be pushed out."""
        session, journal = held()
        store.append_events(session, [(1, "before")])
        token = CancelToken()
        wanted, others = store.watch(token, events=True), store.watch(token)
        store.append_events(session, [(2, "a")])
        assert _next(wanted) == Notice("events", session.id)
        store.append_events(session, [(3, "b")])
        assert _next(wanted) == Notice("events", session.id)
        journal.release("idle")
        assert _next(wanted) == _next(others) == Notice("released", session.id)
        token.cancel()

    # -- commands ------------------------------------------------------------------------------------------------------

    def test_a_stream_that_listens_is_told_by_others(self, store: Store) -> None:
        session = Session.from_user("hello")
        journal = store.open(session, listens=True)
        assert store.commands(session.id) == Commands()
        token = CancelToken()
        notices = store.watch(token)
        first = store.mail(session.id, "user_steering_messages_submit", _ODD)
        second = store.mail(session.id, "user_followup_submit", "and then?")
        assert (first.text, second.point) == (_ODD, "user_followup_submit")
        store.cancel(session.id, _ODD)
        told = [_next(notices) for _ in range(3)]
        assert sorted(each.kind for each in told) == ["canceled", "mailed", "mailed"]
        assert {each.session_id for each in told} == {session.id}
        assert store.commands(session.id) == Commands((first, second), _ODD)
        journal.append(Said(Message("user", first.text), first.id))
        assert store.commands(session.id).mail == (second,)
        journal.release("idle")
        token.cancel()
        # What came too late is for the next, which nobody has cancelled.
        found = store.load(session.id)
        assert _left(found).mail == (second,)
        journal = store.open(found)
        assert store.commands(session.id) == Commands((second,))
        journal.release("idle")

    def test_who_looks_is_known_to_the_process_of_the_stream(self, store: Store, other: Store, held: Any) -> None:
        """And changes nothing of the session: a list shows it where it was."""
        session, journal = held()
        before = store.info(session.id)
        assert store.commands(session.id).looked_at is None
        other.look(session.id)
        first = store.commands(session.id).looked_at
        assert first is not None
        assert abs(datetime.now(UTC) - first) < timedelta(minutes=1)
        other.look(session.id)
        assert (store.commands(session.id).looked_at or first) > first
        assert store.info(session.id) == before
        journal.release("idle")
        with pytest.raises(SessionNotFound):
            store.look("nobody")

    def test_commands_for_nobody_are_refused(self, store: Store, held: Any) -> None:
        session, journal = held()
        for say, wrong in (("takes no commands", "running"), ("no run on session", "idle")):
            for command in (
                lambda: store.mail(session.id, "user_followup_submit", "x"),
                lambda: store.cancel(session.id),
            ):
                with pytest.raises(NotRunning, match=say):
                    command()
            if wrong == "running":
                journal.release("idle")
        assert store.commands(session.id) == Commands()
        with pytest.raises(SessionNotFound):
            store.mail("nobody", "user_followup_submit", "x")
        with pytest.raises(SessionNotFound):
            store.cancel("nobody")
        with pytest.raises(SessionNotFound):
            store.commands("nobody")
        wrong_point: Any = "stop"
        with pytest.raises(ValueError, match="user_followup_submit"):
            store.mail(session.id, wrong_point, "x")

    def test_the_key_of_a_request_is_noted_with_the_stream_that_it_opens(self, store: Store) -> None:
        session = Session.from_user("hello")
        session._idempotency = IdempotencyKey(_ODD, "fingerprint")
        journal = store.open(session)
        assert session._idempotency is None
        assert store.idempotency_key(session.id, _ODD) == IdempotencyKey(_ODD, "fingerprint")
        assert store.idempotency_key(session.id, "another") is None
        store.append_events(session, [(1, "a"), (2, "b")])
        journal.release("idle")
        again = store.load(session.id)
        again._idempotency = IdempotencyKey("another", "x", 1)
        store.open(again).release("idle")
        assert store.idempotency_key(session.id, "another") == IdempotencyKey("another", "x", 2)  # it knows better
        assert store.idempotency_key(session.id, _ODD) == IdempotencyKey(_ODD, "fingerprint")
        # A stream that is refused was not opened.
        late = store.load(session.id)
        late._idempotency = IdempotencyKey("late", "x")
        store.open(again).release("idle")
        with pytest.raises(SessionChanged):
            store.open(late)
        assert store.idempotency_key(session.id, "late") is None
        with pytest.raises(SessionNotFound):
            store.idempotency_key("nobody", _ODD)
        store.delete(session.id)
        with pytest.raises(SessionNotFound):
            store.idempotency_key(session.id, _ODD)

    def test_a_message_is_put_into_the_mailbox_once_for_a_key(self, store: Store) -> None:
        session = Session.from_user("hello")
        journal = store.open(session, listens=True)
        key = IdempotencyKey("k", "fingerprint")
        mailed = store.mail(session.id, "user_followup_submit", "and then?", key=key)
        store.mail(session.id, "user_followup_submit", "and then?", key=key)
        assert store.commands(session.id).mail == (mailed,)
        journal.append(Said(Message("user", mailed.text), mailed.id))
        store.mail(session.id, "user_followup_submit", "and then?", key=key)  # nor once it was taken
        assert store.commands(session.id).mail == ()
        journal.release("idle")
        store.mail(session.id, "user_followup_submit", "and then?", key=key)  # nor once the stream is over
        with pytest.raises(NotRunning):
            store.mail(session.id, "user_followup_submit", "and then?", key=IdempotencyKey("other", ""))
        assert store.idempotency_key(session.id, "other") is None
        assert store.idempotency_key(session.id, "k") == key

    def test_of_many_messages_with_one_key_one_is_put_in(self, store: Store) -> None:
        session = Session.from_user("hello")
        journal = store.open(session, listens=True)
        key = IdempotencyKey("k", "fingerprint")
        with ThreadPoolExecutor(8) as pool:
            for _ in range(8):
                pool.submit(store.mail, session.id, "user_followup_submit", "and then?", key=key)
        assert len(store.commands(session.id).mail) == 1
        journal.release("idle")

    # -- two processes -------------------------------------------------------------------------------------------------

    def test_another_process_sees_what_is_written(self, store: Store, other: Store, held: Any) -> None:
        session, journal = held()
        journal.append(Said(Message("assistant", "hi")))
        assert _copy(other.load(session.id)) == _copy(store.load(session.id))
        assert [info.status for info in other.sessions("hi")] == ["running"]
        with pytest.raises(SessionBusy):
            other.open(other.load(session.id))
        with pytest.raises(SessionBusy):
            other.delete(session.id)
        journal.release("idle")
        other.open(other.load(session.id)).release("idle")
        with pytest.raises(SessionChanged):
            store.open(session)

    def test_an_answer_from_another_process_is_told(self, store: Store, other: Store, held: Any) -> None:
        session, journal = held(_calling("1"))
        journal.append(Requested(_request(session, "q", call_id="1", schema=_FORM)))
        token = CancelToken()
        notices = store.watch(token)
        request = other.answer("q", {"action": "accept", "content": {"size": "large"}}, by="elsewhere")
        assert _next(notices) == Notice("answered", session.id, request)
        with pytest.raises(NotPending):
            store.answer("q", {"action": "decline"})
        token.cancel()
        journal.release("idle")

    def test_another_process_reads_the_log_and_is_told_of_it(self, store: Store, other: Store, held: Any) -> None:
        session, journal = held()
        token = CancelToken()
        notices = other.watch(token, events=True)
        store.append_events(session, [(1, "a")])
        assert _next(notices) == Notice("events", session.id)
        assert list(other.events(session.id)) == [(1, "a")]
        store.append_events(session, [(2, "b"), (3, "c")])
        assert _next(notices) == Notice("events", session.id)
        assert list(other.events(session.id, 1)) == [(2, "b"), (3, "c")]
        token.cancel()
        journal.release("idle")

    def test_another_process_knows_which_requests_were_carried_out(self, store: Store, other: Store) -> None:
        session = Session.from_user("hello")
        session._idempotency = IdempotencyKey("run", "x")
        journal = store.open(session, listens=True)
        assert other.idempotency_key(session.id, "run") == IdempotencyKey("run", "x")
        key = IdempotencyKey("mail", "y")
        mailed = other.mail(session.id, "user_followup_submit", "and then?", key=key)
        store.mail(session.id, "user_followup_submit", "and then?", key=key)
        assert store.commands(session.id).mail == (mailed,)
        journal.release("idle")

    def test_another_process_says_something_to_a_stream(self, store: Store, other: Store) -> None:
        session = Session.from_user("hello")
        journal = store.open(session, listens=True)
        token = CancelToken()
        notices = store.watch(token)
        mailed = other.mail(session.id, "user_steering_messages_submit", "faster")
        assert _next(notices) == Notice("mailed", session.id)
        other.cancel(session.id, "enough")
        assert _next(notices) == Notice("canceled", session.id)
        assert store.commands(session.id) == Commands((mailed,), "enough")
        token.cancel()
        journal.release("idle")


def _next(notices: Receiver[Notice]) -> Notice:
    return notices.recv(timeout=_LONG)
