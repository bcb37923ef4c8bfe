"""Agents served over HTTP: a real server, real connections, every byte looked at."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from channels import CancelToken
from runtime import Agent, StoreError, tool
from runtime.serve import Application
from runtime.serve._not_here import NOT_HERE
from runtime.serve._runs import LiveRun, Runs
from runtime.stores import MemoryStore, SQLiteStore
from support.serving import OURS, Client, Events, Waiter, listening, pay, serving, waiter
from support.waiting import eventually

pytest.importorskip("werkzeug")

ROOT = Path(__file__).parents[3]


@pytest.fixture
def client() -> Iterator[Client]:
    with serving() as client:
        yield client


def everything(client: Client, id: str) -> list[dict[str, Any]]:
    """The log of a session, in our form."""
    found: list[dict[str, Any]] = []
    since = 0
    while True:
        said = client.ask("GET", f"/api/sessions/{id}/events?wait=0&since={since}", headers=OURS)[1]
        if not said["events"]:
            return found
        found += [{"id": each["id"], **each["event"]} for each in said["events"]]
        since = said["last"]


# -- a run, and those who look at it -----------------------------------------------------------------------------------


def test_a_run_with_an_approval_and_a_question(client: Client) -> None:
    """As a client of docker-agent does it: one connection looks, others answer."""
    id = client.session()
    with client.run(id, "!order") as events:
        asked = events.until("tool_call_confirmation")
        assert asked["tool_call"]["function"]["name"] == "order"
        client.post(f"/api/sessions/{id}/resume", {"confirmation": "approve"})
        question = events.until("elicitation_request")
        wrong = {"action": "accept", "content": {"dish": "x"}, "elicitation_id": question["elicitation_id"]}
        status, said = client.ask("POST", f"/api/sessions/{id}/elicitation", wrong)
        assert (status, said["code"], said["problems"]) == (
            422,
            "invalid_answer",
            ["dish must have at least 3 characters"],
        )
        client.post(f"/api/sessions/{id}/elicitation", {"action": "accept", "content": {"dish": "soup"}})
        assert events.until("tool_call_response")["response"] == "ordered soup"
        assert events.until("stream_stopped")["reason"] == "normal"
        assert list(events) == []
    session = client.get(f"/api/sessions/{id}")
    assert [each["message"]["role"] for each in session["messages"]] == ["user", "assistant", "tool", "assistant"]


def test_a_socket_that_is_cut_after_any_event_is_taken_up_without_gap_or_twin(client: Client) -> None:
    """Law 23. The run goes on while nobody looks; who comes back gets the rest."""
    text = "one two three four five"
    id = client.session()
    with client.run(id, text) as events:
        whole = [event["type"] for _, event in events]
    for cut in range(len(whole)):
        id = client.session()
        seen: list[tuple[int, str]] = []
        with client.run(id, text) as events:
            for at, event in events:
                seen.append((at, event["type"]))
                if len(seen) == cut:
                    break
        with client.events(id, since=seen[-1][0]) as events:
            while len(seen) < len(whole):
                seen.append(next((at, event["type"]) for at, event in events))
        assert [type for _, type in seen] == whole, cut
        assert [at for at, _ in seen] == list(range(seen[0][0], seen[0][0] + len(whole)))


def test_the_header_of_a_browser_that_connects_again_comes_before_the_query(client: Client) -> None:
    """It asks for the address of the first time, and would get again all that it had since then."""
    id = client.session()
    with client.run(id, "one two") as events:
        ids = [at for at, _ in events]
    with client.events(id, since=ids[0], **{"Last-Event-ID": str(ids[-2])}) as events:
        assert next(iter(events))[0] == ids[-1]


def test_a_client_that_leaves_frees_its_thread_and_the_run_goes_on() -> None:
    """Law 23. The stream is quiet, so only a ping, or a look at the socket, can find out."""
    agent = waiter()
    application = Application(agent, ping=0.1)
    with listening(application) as client:
        id = client.session()
        with client.run(id, "one wait two") as events:
            events.until("agent_choice")
            assert application._backend.streams == 1
        assert eventually(lambda: application._backend.streams == 0, 5)
        agent.model.go_on.set()
        with client.events(id) as events:
            assert events.until("stream_stopped")["reason"] == "normal"
    assert [each["content"] for each in everything_of(application, id) if "content" in each] == [
        "one ",
        "wait ",
        "two ",
    ]


def everything_of(application: Application, id: str) -> list[dict[str, Any]]:
    return [json.loads(entry.text("lockgate")) for entry in application._backend.log.read(id, 0, 1000).entries]


def test_two_look_at_one_run_and_both_see_all_of_it() -> None:
    agent = waiter()
    with serving(agent) as client:
        id = client.session()
        with client.run(id, "one wait two") as first, client.events(id) as second:
            first.until("agent_choice")
            agent.model.go_on.set()
            said = [[event["type"] for _, event in first], []]
            for _, event in second:
                said[1].append(event["type"])
                if event["type"] == "stream_stopped":
                    break
        assert said[1][-len(said[0]) :] == said[0]


def test_a_quiet_stream_gets_pings_and_is_told_when_its_session_is_deleted() -> None:
    with serving(ping=0.05) as client:
        id = client.session()
        with client.events(id) as events:
            pings = 0
            while pings < 3:
                pings += events.answer.readline() == b": ping\n"
            assert client.ask("DELETE", f"/api/sessions/{id}")[0] == 200
            assert [event for _, event in events] == [{"type": "session_exited"}]


def test_a_reader_that_is_too_slow_holds_up_nobody_and_is_told_of_the_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    from runtime.serve import _event_log

    log = _event_log.MemoryLog(kept=50)
    application = Application(Agent("waiter", Waiter()))
    monkeypatch.setattr(application._backend, "log", log)
    monkeypatch.setattr(application._backend.runs, "_log", log)
    with listening(application) as client:
        id = client.session()
        with client.events(id) as slow:
            assert slow.answer.readline()  # it has begun, and is not read any more
            for _ in range(4):
                with client.run(id, "word " * 200) as events:
                    assert events.until("stream_stopped")["reason"] == "normal"
            said = client.get(f"/api/sessions/{id}/events?wait=0&since=1")
            assert said["gap"]
            assert len(said["events"]) <= 63
        with client.events(id, since=said["events"][0]["id"] - 100) as events:
            reading = iter(events)
            assert next(reading) == (0, {"type": "gap"})
            assert next(reading)[0] == said["events"][0]["id"]


def test_two_hundred_abandoned_streams_leave_no_thread() -> None:
    application = Application(waiter(), ping=0.1, max_streams=300)
    with listening(application) as client:
        id = client.session()
        streams = [client.events(id) for _ in range(200)]
        assert application._backend.streams == 200
        for each in streams:
            each.close()
        assert eventually(lambda: application._backend.streams == 0, 40)
        assert eventually(lambda: not [each for each in threading.enumerate() if "request" in each.name])


def test_only_so_many_streams_and_the_next_is_told_when_to_come_back() -> None:
    application = Application(waiter(), ping=0.1, max_streams=2)
    with listening(application) as client:
        id = client.session()
        first, second = client.events(id), client.events(id)
        answer = client.open("GET", f"/api/sessions/{id}/events")
        assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
        answer.close()
        assert client.ask("POST", f"/api/sessions/{id}/agent/waiter", {"messages": [{"content": "hi"}]})[0] == 503
        assert client.get(f"/api/sessions/{id}")["messages"] == []  # and nothing was run
        first.close()
        assert eventually(lambda: application._backend.streams == 1, 5)
        client.events(id).close()
        second.close()


def test_a_thread_that_is_scarce_need_not_be_kept(client: Client) -> None:
    """Started without a stream, and followed with requests that each wait a while."""
    id = client.session()
    said = client.post(f"/api/sessions/{id}/agent/waiter?stream=false", {"messages": [{"content": "one two"}]})
    assert said["status"] == "running"
    types: list[str] = []
    since = said["since"]
    while "stream_stopped" not in types:
        page = client.get(f"/api/sessions/{id}/events?wait=5&since={since}")
        types += [each["event"]["type"] for each in page["events"]]
        since = page["last"]
    assert types[0] == "stream_started"
    assert types.count("agent_choice") == 2
    assert client.get(f"/api/sessions/{id}/events?wait=0&since={since}")["events"] == []


# -- nobody looks ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("linger", [0, 0.1])
def test_a_run_at_which_nobody_looks_is_cancelled(linger: float) -> None:
    application = Application(waiter(), linger=linger, ping=0.05)
    with listening(application) as client:
        id = client.session()
        client.run(id, "one wait two").close()
        assert eventually(lambda: not len(application._backend.runs))  # asking would be looking
        assert everything(client, id)[-1]["reason"] == "canceled"


def test_a_standstill_of_the_server_is_no_absence_of_its_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was stopped, or its computer closed: nobody could come back meanwhile."""
    left: list[int] = []
    ring = Runs._ring

    def ringing(runs: Runs, run: LiveRun, clock: CancelToken, pieces: int, due: float) -> None:
        left.append(pieces)
        ring(runs, run, clock, pieces, due - 3600 if len(left) in (1, 3) else due)

    monkeypatch.setattr(Runs, "_ring", ringing)
    application = Application(waiter(), linger=0.1, ping=0.05)
    with listening(application) as client:
        id = client.session()
        client.run(id, "one wait two").close()
        assert eventually(lambda: not len(application._backend.runs))
        assert left == [4, 4, 3, 3, 2, 1]
        assert everything(client, id)[-1]["reason"] == "canceled"


def test_a_run_may_go_on_without_anybody() -> None:
    agent = waiter()
    application = Application(agent, linger=None, ping=0.05)
    with listening(application) as client:
        id = client.session()
        with client.run(id, "one wait two") as events:
            events.until("agent_choice")
        assert eventually(lambda: application._backend.streams == 0)
        agent.model.go_on.set()
        assert eventually(lambda: not len(application._backend.runs))
        assert everything(client, id)[-1]["reason"] == "normal"


def test_somebody_who_comes_back_stops_the_clock() -> None:
    agent = waiter()
    application = Application(agent, linger=3.0, ping=0.05)
    with listening(application) as client:
        id = client.session()
        with client.run(id, "one wait two") as events:
            events.until("agent_choice")
        assert eventually(lambda: application._backend.streams == 0)
        with client.events(id) as events:
            events.until("agent_choice")
            time.sleep(3.2)  # longer than it would have lingered: the time is what is tested
            agent.model.go_on.set()
            assert events.until("stream_stopped")["reason"] == "normal"


def test_a_run_that_waits_for_its_user_is_parked_and_goes_on_with_the_answer() -> None:
    with serving(linger=0.1, ping=0.05) as client:
        id = client.session()
        with client.run(id, "!pay") as events:
            asked = events.until("tool_call_confirmation")
        assert eventually(lambda: client.get(f"/api/sessions/{id}/status")["status"] == "waiting")
        [waits] = client.get("/api/waiting")
        assert (waits["id"], waits["session_id"], waits["kind"]) == (asked["confirmation_id"], id, "approval")
        assert waits["event"]["tool_call"]["function"]["name"] == "pay"
        say = {"messages": [{"content": "and now?"}]}
        assert client.ask("POST", f"/api/sessions/{id}/agent/waiter", say)[1]["code"] == "waiting"
        with client.events(id) as events:
            assert events.until("stream_stopped")["reason"] == "waiting"
            client.post(f"/api/sessions/{id}/resume", {"confirmation": "approve", "confirmation_id": waits["id"]})
            assert events.until("tool_call_response")["response"] == "paid"
            assert events.until("stream_stopped")["reason"] == "normal"
        assert client.ask("POST", f"/api/sessions/{id}/resume", {"confirmation": "approve"})[1]["code"] == "not_pending"


@pytest.mark.parametrize("parked", [True, False])
def test_a_run_that_goes_on_with_an_answer_is_not_cancelled_because_nobody_looks(parked: bool) -> None:
    """Whoever has answered wants it to go on."""
    entered, go_on = threading.Event(), threading.Event()

    @tool
    def slow() -> str:
        """Take a while."""
        entered.set()
        return "done" if go_on.wait(10) else "in vain"

    linger = 0.1 if parked else 3.0
    application = Application(Agent("waiter", Waiter(), tools=[slow]), linger=linger, ping=0.05)
    with listening(application) as client:
        id = client.session()
        with client.run(id, "!slow") as events:
            events.until("tool_call_confirmation")
        if parked:
            assert eventually(lambda: client.get(f"/api/sessions/{id}/status")["status"] == "waiting")
        else:
            assert eventually(lambda: application._backend.streams == 0)
        client.post(f"/api/sessions/{id}/resume", {"confirmation": "approve"})
        assert entered.wait(5)
        time.sleep(linger + 0.5)  # longer than it would linger: the time is what is tested
        go_on.set()
        assert eventually(lambda: not len(application._backend.runs))
        assert everything(client, id)[-1]["reason"] == "normal"


def test_a_parked_run_can_be_cancelled() -> None:
    with serving(linger=0, ping=0.05) as client:
        id = client.session()
        with client.run(id, "!pay") as events:
            events.until("tool_call_confirmation")
        assert eventually(lambda: client.get(f"/api/sessions/{id}/status")["status"] == "waiting")
        client.post(f"/api/sessions/{id}/cancel")
        assert eventually(lambda: client.get(f"/api/sessions/{id}/status")["status"] == "idle")
        assert client.get("/api/waiting") == []


# -- what is said to a run ---------------------------------------------------------------------------------------------


def test_an_approval_needs_an_id_where_several_calls_wait(client: Client) -> None:
    """Or it might go to another call than the one that was seen."""
    id = client.session()
    with client.run(id, "!pay order") as events:
        asked = [events.until("tool_call_confirmation"), events.until("tool_call_confirmation")]
        status, said = client.ask("POST", f"/api/sessions/{id}/resume", {"confirmation": "approve"})
        assert (status, said["code"]) == (409, "which")
        assert said["ids"] == [each["confirmation_id"] for each in asked]
        by_name = {each["tool_call"]["function"]["name"]: each["confirmation_id"] for each in asked}
        said = client.post(
            f"/api/sessions/{id}/resume", {"confirmation": "reject", "tool_name": "order", "reason": "no"}
        )
        assert said["confirmation_id"] == by_name["order"]
        client.post(f"/api/sessions/{id}/resume", {"confirmation": "approve", "confirmation_id": by_name["pay"]})
        events.until("stream_stopped")
    results = {each["tool_call"]["name"]: each["response"] for each in everything(client, id) if "response" in each}
    assert results["pay"] == "paid"
    assert "no" in results["order"]


def test_more_turns_are_given_by_approving() -> None:
    with serving(Agent("waiter", Waiter(), tools=[pay], max_iterations=1)) as client:
        id = client.session()
        with client.run(id, "!pay") as events:
            events.until("tool_call_confirmation")
            client.post(f"/api/sessions/{id}/resume", {"confirmation": "approve"})
            assert events.until("max_iterations_reached")["max_iterations"] == 1
            client.post(f"/api/sessions/{id}/resume", {"confirmation": "approve"})
            assert events.until("stream_stopped")["reason"] == "normal"


def test_a_run_is_steered_and_a_message_that_is_sent_twice_is_said_once() -> None:
    agent = waiter()
    with serving(agent) as client:
        id = client.session()
        said = {"messages": [{"role": "user", "content": "and then?"}]}
        assert client.ask("POST", f"/api/sessions/{id}/steer", said)[1]["code"] == "not_running"
        with client.run(id, "wait") as events:
            assert agent.model.waits.wait(5)
            assert client.post(f"/api/sessions/{id}/steer", said)["status"] == "queued"
            key = {"Idempotency-Key": "k1"}
            answers = [client.ask("POST", f"/api/sessions/{id}/followup", said, key)[1] for _ in range(2)]
            assert [each["status"] for each in answers] == ["queued_streaming", "duplicate"]
            assert [each["duplicate"] for each in answers] == [False, True]
            agent.model.go_on.set()
            events.until("stream_stopped")
        users = [each["message"]["content"] for each in client.get(f"/api/sessions/{id}")["messages"]][::2]
        assert users == ["wait", "and then?", "and then?"]
        assert client.post(f"/api/sessions/{id}/followup", said)["status"] == "queued_idle"
        last = client.get(f"/api/sessions/{id}")["messages"][-1]["message"]
        assert (last["role"], last["content"]) == ("user", "and then?")


def test_all_who_look_are_told_of_an_answer(client: Client) -> None:
    """By whom it was given does not matter, nor whether anybody has: before anything else that the call does."""
    id = client.session()
    with client.run(id, "!pay order") as events, client.events(id, **OURS) as others:
        ids = [events.until("tool_call_confirmation")["confirmation_id"] for _ in range(2)]
        for confirmation_id, said, outcome in ((ids[0], "reject", "rejected"), (ids[1], "approve", "approved")):
            answer = {"confirmation": said, "reason": "no", "confirmation_id": confirmation_id}
            client.post(f"/api/sessions/{id}/resume", answer)
            for each in (events, others):
                told = each.until("request_settled")
                assert (told["request_id"], told["outcome"]) == (confirmation_id, outcome)
                assert told["reason"] == ("no" if said == "reject" else "")
        question, _ = events.until("elicitation_request"), others.until("elicitation_request")
        assert question["tool_call_id"] == "c1-1"
        client.post(f"/api/sessions/{id}/elicitation", {"action": "accept", "content": {"dish": "soup"}})
        for each in (events, others):
            told = each.until("request_settled")
            assert (told["request_id"], told["outcome"]) == (question["elicitation_id"], "accept")
            assert "soup" not in str(told)
            assert each.until("tool_call_response")["response"] == "ordered soup"
        events.until("stream_stopped")
    with serving(answer_timeout=0.1) as quick:
        id = quick.session()
        with quick.run(id, "!pay") as events:
            told = events.until("request_settled")
            assert (told["outcome"], told["reason"]) == ("rejected", "nobody answered within 0.1 s")
            events.until("stream_stopped")


def test_a_request_for_more_turns_is_settled() -> None:
    @tool(read_only=True)
    def look() -> str:
        """Look."""
        return "seen"

    with serving(Agent("waiter", Waiter(), tools=[look], max_iterations=1)) as client:
        id = client.session()
        with client.run(id, "!look") as events:
            asked = events.until("max_iterations_reached")
            client.post(f"/api/sessions/{id}/resume", {"confirmation": "approve"})
            told = events.until("request_settled")
            assert (told["request_id"], told["outcome"]) == (asked["request_id"], "accept")
            events.until("stream_stopped")


def test_a_run_is_cancelled(client: Client) -> None:
    id = client.session()
    with client.run(id, "one wait") as events:
        events.until("agent_choice")
        assert client.ask("POST", f"/api/sessions/{id}/cancel")[1] == {"status": "cancelling"}
        assert events.until("stream_stopped")["reason"] == "canceled"
    assert client.post(f"/api/sessions/{id}/cancel") == {"status": "idle"}


def test_who_has_seen_the_last_event_can_start_the_next_run(client: Client) -> None:
    id = client.session()
    for _ in range(20):
        with client.run(id, "go") as events:
            events.until("stream_stopped")
    with client.run(id, "wait"):
        status, said = client.ask("POST", f"/api/sessions/{id}/agent/waiter", {"messages": [{"content": "again"}]})
        assert (status, said["code"]) == (409, "running")


# -- sessions ----------------------------------------------------------------------------------------------------------


def test_sessions_are_listed_renamed_forked_and_deleted(client: Client) -> None:
    id = client.post("/api/sessions", {"title": "first"})["id"]
    for text in ("one", "two"):
        with client.run(id, text) as events:
            events.until("stream_stopped")
    assert client.ask("PATCH", f"/api/sessions/{id}/title", {"title": "renamed"})[1] == {"id": id, "title": "renamed"}
    copy = client.post(f"/api/sessions/{id}/fork", {"user_message_index": 1})
    assert [each["message"]["content"] for each in copy["messages"]] == ["one", "one "]
    assert client.ask("POST", f"/api/sessions/{id}/fork", {"user_message_index": 2})[0] == 400
    assert {each["id"]: each["title"] for each in client.get("/api/sessions")} == {id: "renamed", copy["id"]: "renamed"}
    assert client.ask("DELETE", f"/api/sessions/{id}")[0] == 200
    assert client.ask("GET", f"/api/sessions/{id}")[0] == 404
    assert [each["id"] for each in client.get("/api/sessions")] == [copy["id"]]


def test_several_sessions_are_deleted_and_one_is_exported(client: Client) -> None:
    ids = [client.session() for _ in range(3)]
    with client.run(ids[0], "one wait") as events:
        events.until("agent_choice")
        said = client.post("/api/sessions/batch/delete", {"session_ids": [*ids[:2], ids[0], "nobody"]})
        assert said == {"deleted_count": 2, "failed_count": 1, "failed_ids": ["nobody"]}
        assert events.until("stream_stopped")["reason"] == "canceled"
    assert [each["id"] for each in client.get("/api/sessions")] == [ids[2]]
    for wrong in ([], ["x"] * 101, [1], "x"):
        assert client.ask("POST", "/api/sessions/batch/delete", {"session_ids": wrong})[0] == 400
    client.post(f"/api/sessions/{ids[2]}/followup", {"messages": [{"content": "later"}]})
    with contextlib.closing(MemoryStore()) as store:
        session = store.import_(client.get(f"/api/sessions/{ids[2]}/recovery"))
        assert [each.content for each in session.messages] == ["later"]
    assert client.ask("GET", "/api/sessions/nobody/recovery")[1]["code"] == "unknown_session"


def test_the_queue_of_a_run() -> None:
    agent = waiter()
    with serving(agent) as client:
        id = client.session()
        with client.run(id, "wait") as events:
            assert agent.model.waits.wait(5)
            said = {"messages": [{"content": "a"}, {"content": "b"}]}
            client.post(f"/api/sessions/{id}/followup", said)
            client.post(f"/api/sessions/{id}/steer", {"messages": [{"content": "c"}]})
            queue = client.get(f"/api/sessions/{id}/queue")
            assert queue == {"steer": {"depth": 1, "capacity": 100}, "followup": {"depth": 2, "capacity": 100}}
            agent.model.go_on.set()
            events.until("stream_stopped")
        assert client.get(f"/api/sessions/{id}/queue")["followup"]["depth"] == 0
        assert client.ask("GET", "/api/sessions/nobody/queue")[0] == 404


@pytest.mark.parametrize(("method", "path", "text"), NOT_HERE)
def test_what_means_nothing_here_says_so(client: Client, method: str, path: str, text: str) -> None:
    path = path.replace("<id>", client.session()).replace("<message>", "1")
    status, said = client.ask(method, path, None if method == "GET" else {"starred": True})
    assert status == (422 if path.endswith("/models") else 501)
    assert said["error"] == text


def test_a_session_that_is_deleted_ends_its_run_and_its_streams(client: Client) -> None:
    id = client.session()
    with client.run(id, "wait") as run, client.events(id) as events:
        run.until("user_message")
        assert client.ask("DELETE", f"/api/sessions/{id}?wait=true&timeout=5s")[0] == 200
        assert run.until("stream_stopped")["reason"] == "canceled"
        said = [event for _, event in events]
        assert said[-1] == {"type": "session_exited"}


def test_a_snapshot_in_the_middle_of_a_run_says_where_to_go_on() -> None:
    """The messages before the run, then its events: nothing is missing, nothing is there twice."""
    agent = waiter()
    with serving(agent) as client:
        id = client.session()
        with client.run(id, "before") as events:
            events.until("stream_stopped")
        with client.run(id, "one wait two") as events:
            events.until("agent_choice")
            taken = client.get(f"/api/sessions/{id}/snapshot")
            assert (taken["streaming"], taken["status"], taken["agent"]) == (True, "running", "waiter")
            before = taken["messages"][: taken["run"]["messages"]]
            assert [each["message"]["content"] for each in before] == ["before", "before "]
            agent.model.go_on.set()
            with client.events(id, since=taken["run"]["since"]) as again:
                assert again.until("user_message")["message"] == "one wait two"
                assert again.until("agent_choice")["content"] == "one "
                again.until("stream_stopped")
        taken = client.get(f"/api/sessions/{id}/snapshot")
        assert taken["run"] is None
        assert taken["last_event_seq"] == everything(client, id)[-1]["id"]


def test_a_client_that_sends_the_whole_conversation_each_time_says_the_last_of_it(client: Client) -> None:
    """As docker-agent's does: what was said before would be said twice."""
    id = client.session()
    said: list[dict[str, str]] = []
    for text in ("one", "two", "two"):
        said.append({"role": "user", "content": text})
        body = {"messages": said, "model": ""}
        with Events(client.open("POST", f"/api/sessions/{id}/agent/waiter", body)) as events:
            assert events.until("user_message")["message"] == text
            events.until("stream_stopped")
        said.append({"role": "assistant", "content": f"{text} "})
    roles = [each["message"]["content"] for each in client.get(f"/api/sessions/{id}")["messages"]]
    assert roles == ["one", "one ", "two", "two ", "two", "two "]


def test_images_reach_the_agent(client: Client) -> None:
    id = client.session()
    said = {
        "messages": [
            {
                "role": "user",
                "multi_content": [
                    {"type": "text", "text": "look"},
                    {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0="}},
                ],
            }
        ]
    }
    assert client.ask("POST", f"/api/sessions/{id}/agent/waiter?stream=false", said)[0] == 202
    assert eventually(lambda: len(client.get(f"/api/sessions/{id}")["messages"]) == 2)
    inner = client.get(f"/api/sessions/{id}")["messages"][0]["message"]
    assert inner["multi_content"][1]["image_url"]["url"] == "data:image/png;base64,iVBORw0="


def test_what_is_served(client: Client) -> None:
    assert client.get("/health")["status"] == "ok"
    assert client.get("/api/ping") == {"status": "ok"}
    ready = client.get("/ready")
    assert (ready["ready"], ready["store_connected"]) == (True, True)
    assert client.get("/api/agents") == [{"name": "waiter", "description": "Takes orders.", "multi": False}]
    [told] = client.get("/api/agents/waiter")["agents"]
    assert (told["model"], told["tools"]) == ("waiter", ["order", "pay"])
    assert client.get("/api/agents/waiter/waiter/tools/count") == {"available_tools": 2}
    answer = client.open("GET", "/")
    assert answer.status == 200
    answer.close()


# -- the end -----------------------------------------------------------------------------------------------------------


def test_streams_end_when_the_server_does_and_say_when_to_come_back() -> None:
    application = Application(waiter())
    with listening(application) as client:
        id = client.session()
        with client.events(id) as events:
            threading.Thread(target=application.close).start()
            assert list(events) == []
            assert events.retry
        assert client.ask("GET", "/api/sessions")[0] == 503
        assert client.ask("GET", "/ready")[0] == 503


def test_a_run_that_waits_for_its_user_is_parked_when_the_server_ends() -> None:
    store = MemoryStore()
    with serving(store=store) as client:
        id = client.session()
        with client.run(id, "!pay") as events:
            events.until("tool_call_confirmation")
    with serving(store=store) as client:
        assert client.get(f"/api/sessions/{id}/status")["status"] == "waiting"
        with client.events(id) as events:
            client.post(f"/api/sessions/{id}/resume", {"confirmation": "approve"})
            assert events.until("tool_call_response")["response"] == "paid"
    store.close()


def test_a_run_that_waits_for_its_user_is_parked_when_the_interpreter_exits(
    tmp_path: Path, script: Callable[..., str]
) -> None:
    """gunicorn closes no application."""
    path = str(tmp_path / "s.db")
    program = f"""
import sys, time
sys.path.insert(0, "tests")
from runtime.serve import Application
from runtime.stores import SQLiteStore
from support.serving import waiter, listening
application = Application(waiter(), store=SQLiteStore({path!r}))
run = application._backend.store
from runtime import Session
session = Session.from_user("!pay")
live = application._backend.runs.start("waiter", session)
while not live.stream.pending:
    time.sleep(0.01)
"""
    script(program)
    with SQLiteStore(path) as store:
        [waits] = store.pending()
        assert (waits.kind, store.info(waits.root_id).status) == ("approval", "waiting")


def test_a_run_that_fails_is_logged_for_who_looks_after_the_server(caplog: pytest.LogCaptureFixture) -> None:
    class Fails:
        id = "fails"

        def stream(self, messages: Any, tools: Any, *, cancel: Any) -> Iterator[Any]:
            raise RuntimeError("the quota is used up")
            yield

    with serving(Agent("waiter", Fails())) as client:
        id = client.session()
        with client.run(id, "hello") as events:
            assert events.until("error")["code"] == "model_error"
    [record] = [each for each in caplog.records if each.name == "runtime.serve"]
    what = "model_error: fails: RuntimeError: the quota is used up"
    assert record.getMessage() == f"a run of session {id} has failed: {what}"
    assert (record.levelname, record.session_id) == ("WARNING", id)  # type: ignore[attr-defined]


def test_a_store_that_fails_ends_the_streams_of_its_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    agent = waiter()
    with SQLiteStore(tmp_path / "s.db") as store, serving(agent, store=store) as client:
        id = client.session()
        with client.run(id, "one wait two") as events:
            events.until("agent_choice")

            def fail(*_: object) -> None:
                raise StoreError("the disk is full")

            store.append_events = fail  # type: ignore[method-assign]
            agent.model.go_on.set()
            assert "stream_stopped" not in [event["type"] for _, event in events]  # it ends, and nothing hangs
        assert "the disk is full" in caplog.text
        del store.append_events
        with client.run(id, "again") as events:
            assert events.until("stream_stopped")["reason"] == "normal"


def test_only_so_many_runs() -> None:
    with serving(max_runs=1) as client:
        first, second = client.session(), client.session()
        with client.run(first, "one wait") as events:
            events.until("agent_choice")
            status, said = client.ask("POST", f"/api/sessions/{second}/agent/waiter", {"messages": [{"content": "x"}]})
            assert (status, said["code"]) == (503, "too_many_runs")


def test_what_serving_needs_is_imported_when_it_is_needed() -> None:
    program = (
        "import sys; sys.modules['werkzeug'] = None\n"
        "import runtime.serve, runtime.cli\n"
        "assert 'waitress' not in sys.modules\n"
        "try: runtime.serve.Application([])\n"
        "except runtime.MissingExtra as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert done.stdout.strip() == "serving agents over HTTP needs an extra: pip install 'lockgate[serve]'", done.stderr


def test_no_thread_is_started_before_a_request() -> None:
    """A server may fork after it has made the application."""
    before = threading.active_count()
    with Application(waiter()):
        assert threading.active_count() == before


def test_what_was_given_wrongly_is_said_where_it_is_given() -> None:
    for settings, error in (
        ({"token": ""}, ValueError),
        ({"token": "a b\n"}, ValueError),
        ({"linger": -1}, ValueError),
        ({"ping": 0}, ValueError),
        ({"max_streams": 0}, ValueError),
        ({"user": "me"}, TypeError),
        ({"hosts": "example.org"}, TypeError),
        ({"no_setting": 1}, TypeError),
    ):
        with pytest.raises(error):
            Application(waiter(), **settings)
    with pytest.raises(ValueError, match="two agents are named"):
        Application([waiter(), waiter()])
    with pytest.raises(ValueError, match="no agent"):
        Application([])
    with Application(waiter()) as application, pytest.raises(ValueError, match="everybody in reach"):
        application.run("0.0.0.0")
