"""Many clients at two servers that share a store: they are cut off anywhere, answer anywhere, and miss nothing."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from runtime.stores import SQLiteStore
from support.serving import Client, serving, waiter
from support.waiting import eventually

pytest.importorskip("werkzeug")
pytestmark = [pytest.mark.stress, pytest.mark.timeout(300)]

SECONDS = 16.0
CLIENTS = 10


class Person:
    """Talks to an agent, at whichever server, and checks that no event is missing or there twice."""

    def __init__(self, clients: Sequence[Client], seed: int) -> None:
        self._clients = clients
        self._rng = random.Random(seed)
        self._answered: set[str] = set()

    @property
    def client(self) -> Client:
        return self._rng.choice(self._clients)

    def converse(self) -> int:
        """A conversation of a few turns; how many."""
        id = self.client.session()
        turns = self._rng.randint(1, 3)
        for _ in range(turns):
            self.say(id, self._rng.choice(["!pay", "!order", "!pay order", "word " * self._rng.randint(1, 60)]))
        if self._rng.random() < 0.3:
            assert self.client.ask("DELETE", f"/api/sessions/{id}?wait=true")[0] == 200
        return turns

    def say(self, id: str, text: str) -> None:
        stream = self.client.run(id, text)
        last = 0
        until = time.monotonic() + 60
        while time.monotonic() < until:
            left = self._rng.randint(1, 12) if self._rng.random() < 0.5 else 1000
            for at, event in stream:
                assert event["type"] != "gap"
                assert at == last + 1 or not last, (last, at)
                last = at
                self.answer(id, event)
                if event["type"] == "stream_stopped" and event["reason"] != "waiting":
                    assert event["reason"] == "normal"
                    stream.close()
                    return
                left -= 1
                if not left:
                    break
            stream.close()
            if self._rng.random() < 0.3:
                time.sleep(self._rng.random() * 0.2)
            stream = self.client.events(id, since=last)
        raise AssertionError(f"session {id} is stuck behind event {last}")

    def answer(self, id: str, event: dict[str, str]) -> None:
        asked = event.get("confirmation_id") or event.get("elicitation_id")
        if not asked or asked in self._answered:
            return
        self._answered.add(asked)
        if event["type"] == "tool_call_confirmation":
            self.client.post(f"/api/sessions/{id}/resume", {"confirmation": "approve", "confirmation_id": asked})
        else:
            said = {"action": "accept", "content": {"dish": "soup"}, "elicitation_id": asked}
            self.client.post(f"/api/sessions/{id}/elicitation", said)


def test_clients_that_are_cut_off_anywhere_miss_nothing(tmp_path: Path) -> None:
    failed: list[BaseException] = []
    turns = [0] * CLIENTS
    until = time.monotonic() + SECONDS

    def live(number: int, clients: Sequence[Client]) -> None:
        person = Person(clients, number)
        try:
            while time.monotonic() < until and not failed:
                turns[number] += person.converse()
        except BaseException as error:
            failed.append(error)

    with (
        SQLiteStore(tmp_path / "s.db") as here,
        SQLiteStore(tmp_path / "s.db") as there,
        serving(waiter(), store=here, ping=0.2, max_streams=200) as first,
        serving(waiter(), store=there, ping=0.2, max_streams=200) as second,
    ):
        threads = [threading.Thread(target=live, args=(n, (first, second))) for n in range(CLIENTS)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
    assert not failed, failed
    assert min(turns) > 0


def test_runs_that_are_parked_go_on_with_answers_from_anywhere(tmp_path: Path) -> None:
    """Nobody looks, so the run is parked; it is answered here and there, at the moment when it is being parked too."""
    rng = random.Random(3)
    with (
        SQLiteStore(tmp_path / "s.db") as here,
        SQLiteStore(tmp_path / "s.db") as there,
        serving(waiter(), store=here, ping=0.05, linger=0.05) as first,
        serving(waiter(), store=there, ping=0.05, linger=0.05) as second,
    ):
        until = time.monotonic() + SECONDS / 2
        while time.monotonic() < until:
            id = first.session()
            with first.run(id, "!pay pay") as events:
                asked = [events.until("tool_call_confirmation")["confirmation_id"] for _ in range(2)]
            for each in asked:
                time.sleep(rng.random() * 0.3)
                answer = {"confirmation": "approve", "confirmation_id": each}
                rng.choice((first, second)).post(f"/api/sessions/{id}/resume", answer)

            def is_over(id: str = id) -> bool:
                said = first.get(f"/api/sessions/{id}")["messages"]
                return len(said) == 5 and said[-1]["message"]["role"] == "assistant"

            assert eventually(is_over, 20), (id, first.get(f"/api/sessions/{id}/status"))
            results = [each["message"]["content"] for each in first.get(f"/api/sessions/{id}")["messages"][2:4]]
            assert results == ["paid", "paid"]
