"""Agents served over HTTP: a real server, real connections, every byte looked at."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.serving import Client, serving

pytest.importorskip("werkzeug")


@pytest.fixture
def client() -> Iterator[Client]:
    with serving() as client:
        yield client


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
        assert (status, said["code"], said["problems"]) == (422, "invalid_answer", ["dish has at least 3 characters"])
        client.post(f"/api/sessions/{id}/elicitation", {"action": "accept", "content": {"dish": "soup"}})
        assert events.until("tool_call_response")["response"] == "ordered soup"
        assert events.until("stream_stopped")["reason"] == "normal"
        assert list(events) == []
    session = client.get(f"/api/sessions/{id}")
    assert [each["message"]["role"] for each in session["messages"]] == ["user", "assistant", "tool", "assistant"]
