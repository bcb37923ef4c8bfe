"""A server for the tests of what is served over HTTP, and a client that sees every byte."""

from __future__ import annotations

import contextlib
import http.client
import json
import threading
from collections.abc import Iterator
from typing import Any

from runtime import Agent, TextDelta, ToolCallDelta, ToolContext, tool
from runtime.serve import Application

JSON = {"Content-Type": "application/json"}
OURS = {"Accept": "application/x-lockgate+json"}


class Waiter:
    """Calls the tool that the user names after a ``!``, then says what it returned. Else it says the words of its user,
    one after the other; before the word ``wait`` it waits until it is let go.
    """

    id = "waiter"

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.waits = threading.Event()

    def stream(self, messages: Any, tools: Any, *, cancel: Any) -> Iterator[Any]:
        last = messages[-1]
        if last.role == "tool":
            yield TextDelta(last.content)
        elif last.content.startswith("!"):
            for number, name in enumerate(last.content[1:].split()):
                yield ToolCallDelta(number, f"c{len(messages)}-{number}", name, "{}")
        else:
            for word in last.content.split():
                if word == "wait":
                    self.waits.set()
                    while not self.go_on.wait(0.01) and not cancel.cancelled:
                        pass
                yield TextDelta(f"{word} ")


@tool
def order(context: ToolContext) -> str:
    """Order something."""
    schema = {"type": "object", "properties": {"dish": {"type": "string", "minLength": 3}}, "required": ["dish"]}
    answer = context.elicit("What?", schema)
    return f"ordered {answer.content['dish']}" if answer.accepted else f"ordered nothing: {answer.action}"


@tool
def pay() -> str:
    """Pay."""
    return "paid"


def waiter() -> Agent:
    """The agent, with a model of its own."""
    return Agent("waiter", Waiter(), tools=[order, pay], description="Takes orders.")


class Client:
    """A client of one server. Each request has a connection of its own."""

    def __init__(self, port: int, **headers: str) -> None:
        self.port = port
        self.headers = headers

    def open(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        data = body if isinstance(body, (bytes, type(None))) else json.dumps(body).encode()
        given = {**({} if body is None else JSON), **self.headers, **(headers or {})}
        connection.request(method, path, data, given)
        answer = connection.getresponse()
        answer.connection = connection  # type: ignore[attr-defined]
        return answer

    def ask(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> tuple[int, Any]:
        """The status, and the JSON of the reply."""
        answer = self.open(method, path, body, headers)
        try:
            text = answer.read().decode()
            return answer.status, json.loads(text) if text else None
        finally:
            answer.connection.close()  # type: ignore[attr-defined]

    def get(self, path: str) -> Any:
        status, said = self.ask("GET", path)
        assert status == 200, said
        return said

    def post(self, path: str, body: Any = None) -> Any:
        status, said = self.ask("POST", path, {} if body is None else body)
        assert status in (200, 202), said
        return said

    def session(self) -> str:
        """The id of a new session."""
        return str(self.post("/api/sessions", {})["id"])

    def run(self, id: str, text: str, agent: str = "waiter") -> Events:
        """The events of a new run."""
        said = {"messages": [{"role": "user", "content": text}]}
        return Events(self.open("POST", f"/api/sessions/{id}/agent/{agent}", said))

    def events(self, id: str, since: int = 0, **headers: str) -> Events:
        """The events of a session."""
        return Events(self.open("GET", f"/api/sessions/{id}/events?since={since}", None, headers))


class Events:
    """Server-sent events, as they come: pairs of an id (0 where there is none) and the JSON."""

    def __init__(self, answer: http.client.HTTPResponse) -> None:
        self.answer = answer
        self.last = 0
        self.retry = False  # whether the server has said that it ends
        self.pings = 0
        assert answer.status == 200, answer.read()

    def __iter__(self) -> Iterator[tuple[int, dict[str, Any]]]:
        id = 0
        for line in self.answer:
            if line.startswith(b"id: "):
                id = int(line[4:])
            elif line.startswith(b"retry: "):
                self.retry = True
            elif line.startswith(b": ping"):
                self.pings += 1
            elif line.startswith(b"data: "):
                self.last = id or self.last
                yield id, json.loads(line[6:])
                id = 0

    def until(self, type: str) -> dict[str, Any]:
        """The next event of this type."""
        for _, event in self:
            if event["type"] == type:
                return event
        raise AssertionError(f"the stream has ended without {type}")

    def close(self) -> None:
        """Leave, without a word."""
        self.answer.close()
        self.answer.connection.close()  # type: ignore[attr-defined]

    def __enter__(self) -> Events:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextlib.contextmanager
def listening(application: Application, port: int = 0) -> Iterator[Client]:
    """A server of this process, with a thread for each connection; on any free port, or on this one."""
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        def log(self, type: str, message: str, *args: Any) -> None: ...

    server = make_server("127.0.0.1", port, application, threaded=True, request_handler=Quiet)
    server.daemon_threads = False  # type: ignore[attr-defined]  # so that closing waits for them
    server.block_on_close = True  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), name="server")
    thread.start()
    try:
        yield Client(server.port)
    finally:
        application.close()
        server.shutdown()
        thread.join()
        server.server_close()


@contextlib.contextmanager
def serving(agents: Any = None, **settings: Any) -> Iterator[Client]:
    """An application that serves the waiter, and a client of it."""
    with listening(Application(waiter() if agents is None else agents, **settings)) as client:
        yield client
