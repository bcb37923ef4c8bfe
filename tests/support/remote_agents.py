"""Agents for workers, which import this module, and engines to run them: `Processes` starts a Python for each job."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime import Agent, FinishDelta, Runtime, TextDelta, ToolCallDelta, ToolContext, tool

ROOT = Path(__file__).resolve().parents[2]


class Words:
    """Says so many words."""

    id = "words"

    def __init__(self, count: int) -> None:
        self.count = count

    def stream(self, messages: Any, tools: Any, *, cancel: Any) -> Any:
        for number in range(self.count):
            yield TextDelta(f"{number} ")
        yield FinishDelta("stop")


class Waits:
    """Says a word, and waits for its cancel."""

    id = "waits"

    def stream(self, messages: Any, tools: Any, *, cancel: Any) -> Any:
        yield TextDelta("begun")
        cancel.done.recv(timeout=60)


@dataclass
class Place:
    """A type of an output."""

    city: str
    days: int


class SaysAPlace:
    """Says JSON."""

    id = "json"

    def stream(self, messages: Any, tools: Any, *, cancel: Any) -> Any:
        yield TextDelta('{"city": "Rome", "days": 3}')


class Echoes:
    """Says what it was told, or so many letters."""

    id = "echoes"

    def stream(self, messages: Any, tools: Any, *, cancel: Any) -> Any:
        said = messages[-1].content
        yield TextDelta("y" * int(said[8:]) if said.startswith("make it ") else said)


class Calls:
    """Calls the tool of this name, then says what that gave."""

    id = "calls"

    def __init__(self, name: str) -> None:
        self.name = name

    def stream(self, messages: Any, tools: Any, *, cancel: Any) -> Any:
        if messages[-1].role == "user":
            yield ToolCallDelta(0, "call-1", self.name, {})
        else:
            yield TextDelta(messages[-1].content)


@tool(read_only=True)
def ask(context: ToolContext) -> str:
    """Ask the user how many."""
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    answer = context.elicit("How many?", schema)
    return f"{answer.action} {dict(answer.content)} in {os.getpid()}"


@tool
def delete() -> str:
    """Delete something, which needs an approval."""
    return f"deleted in {os.getpid()}"


@tool(read_only=True)
def die() -> str:
    """End the process, as the system does it where memory is short."""
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)
    return ""


@tool(read_only=True)
def fail() -> str:
    """Raise."""
    raise ValueError("no such luck")


@tool(read_only=True)
def whoami() -> str:
    """The process, after the file that the variable names has got a line: the run was begun once more."""
    with open(os.environ["LOCKGATE_TEST_MARKS"], "a") as file:
        file.write(f"{os.getpid()}\n")
    return str(os.getpid())


@tool(read_only=True, on="consumer")
def where() -> str:
    """The thread of the consumer."""
    return threading.current_thread().name


@tool(read_only=True)
def traced() -> str:
    """The trace that the tool runs in."""
    from opentelemetry import trace

    return f"{trace.get_current_span().get_span_context().trace_id:032x}"


few = Agent("few", Words(3))
many = Agent("many", Words(1000))
waits = Agent("waits", Waits())
asks = Agent("asks", Calls("ask"), tools=[ask])
deletes = Agent("deletes", Calls("delete"), tools=[delete])
dies = Agent("dies", Calls("die"), tools=[die])
fails = Agent("fails", Calls("fail"), tools=[fail])
wheres = Agent("wheres", Calls("where"), tools=[where])
traces = Agent("traces", Calls("traced"), tools=[traced])
marks = Agent("marks", Calls("whoami"), tools=[whoami])


def made() -> Agent:
    """A function that makes the agent."""
    return few


def raises() -> Agent:
    raise RuntimeError("the agent cannot be made")


def exits() -> Agent:
    """As a module does that parses the command line when it is imported."""
    sys.exit(2)


says_a_place = Agent("says_a_place", SaysAPlace())
echoes = Agent("echoes", Echoes())
not_an_agent = 5
shared = Runtime(few)


class Processes:
    """An engine: each job is a Python of its own."""

    def __init__(self, **environment: str) -> None:
        self.started: list[subprocess.Popen[str]] = []
        self.specs: list[dict[str, Any]] = []
        self._environment = dict(os.environ, PYTHONPATH=f"{ROOT}{os.pathsep}{ROOT / 'tests'}", **environment)

    def submit(self, function: Callable[..., Any], spec: Mapping[str, Any]) -> None:
        """Start a job, and do not look at how it ends."""
        self.specs.append(dict(spec))
        self.start(spec)

    def start(self, spec: Mapping[str, Any]) -> subprocess.Popen[str]:
        source = "import json, sys; from runtime.remote import work; print(json.dumps(work(json.load(sys.stdin))))"
        process = subprocess.Popen(
            [sys.executable, "-c", source],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=self._environment,
        )
        assert process.stdin is not None
        process.stdin.write(json.dumps(spec))
        process.stdin.close()
        self.started.append(process)
        return process

    def outcome(self, number: int = 0, timeout: float = 20.0) -> dict[str, Any]:
        """What job number ``number`` has returned."""
        process = self.started[number]
        process.wait(timeout)
        assert process.stdout is not None
        said: dict[str, Any] = json.loads(process.stdout.read())
        return said

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *args: object) -> None:
        for process in self.started:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()
