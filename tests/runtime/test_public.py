"""What users import says where it is from, shows itself in a line, and is copied or says why not."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import sys
import typing
from collections.abc import Callable
from types import FunctionType
from typing import Any

import pytest

import channels.aio
import channels.net
import runtime.mcp
import runtime.models
import runtime.remote
import runtime.serve
import runtime.stores
from channels import CancelToken, Channel
from channels.aio import LoopThread
from runtime import events
from runtime.mcp import MCPToolSet
from runtime.remote import Remote
from runtime.serve import Application
from runtime.stores import MemoryStore
from support.scripted import Scripted, say

PACKAGES = [
    channels,
    channels.aio,
    channels.net,
    runtime,
    runtime.mcp,
    runtime.models,
    runtime.remote,
    runtime.serve,
    runtime.stores,
]


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.__name__)
def test_public_objects_say_their_public_module(package: typing.Any) -> None:
    for name in package.__all__:
        value = getattr(package, name)
        if isinstance(value, (type, FunctionType)):
            assert value.__module__ == package.__name__ or value is runtime.Store, name
            assert pickle.loads(pickle.dumps(value)) is value


def test_all_events_are_public_and_nothing_else_of_their_module() -> None:
    """``from runtime.events import *`` gave the program our own ``dataclass`` in the place of the standard one."""
    kinds = [
        name for name, value in vars(events).items() if isinstance(value, type) and issubclass(value, events.Event)
    ]
    assert events.__all__ == sorted([*kinds, "StopReason"])


def test_annotations_of_public_dataclasses_can_still_be_read() -> None:
    """As pydantic does: names are looked up in the module that a class says it is of."""
    for name in runtime.__all__:
        value = getattr(runtime, name)
        if isinstance(value, type) and dataclasses.is_dataclass(value):
            typing.get_type_hints(value)
    pydantic = pytest.importorskip("pydantic", reason="comes with the extras openai, anthropic and mcp")
    made = pydantic.TypeAdapter(runtime.Message).validate_python({"role": "user", "content": "hello"})
    assert made.content == "hello"


LONG = "x" * 100_000
AGENT = runtime.Agent("a", Scripted(say("x")), LONG)
CALL = runtime.ToolCall("1", "f", LONG)


@pytest.mark.parametrize(
    "made",
    [
        Channel(1, name=LONG),
        Channel(1).sending(LONG),
        runtime.Message("user", LONG),
        runtime.Message("assistant", "", (CALL,) * 100),
        runtime.ToolResult(LONG),
        runtime.Answer("accept", {"x": LONG}),
        runtime.TextDelta(LONG),
        runtime.NativeDelta("p", {"x": LONG}),
        runtime.HookInput("stop", "s", "a", prompt=LONG),
        runtime.HookResult(updated_input={"x": LONG}),
        runtime.RunResult(LONG, (runtime.Message("user", LONG),) * 100, runtime.Usage(), "normal", output=LONG),
        runtime.Session(title=LONG),
        AGENT,
        events.AgentChoice(LONG),
        events.ToolCallResponse(CALL, LONG),
    ],
    ids=lambda made: type(made).__name__,
)
def test_a_repr_is_never_long(made: object) -> None:
    """A debugger shows it, and an error has it in its text."""
    assert len(repr(made)) < 2000


def test_a_long_cause_of_a_cancel_is_not_shown_whole() -> None:
    token = CancelToken()
    token.cancel(LONG)
    assert len(repr(token)) < 300


def test_a_repr_has_what_is_set() -> None:
    message = runtime.Message("user", "hello")
    assert repr(message) == f"Message(role='user', content='hello', created_at={message.created_at!r})"
    assert repr(runtime.ToolResult("x", is_error=True)) == "ToolResult(content='x', is_error=True)"
    result = runtime.RunResult("x", (message,), runtime.Usage(1), "normal")
    assert repr(result) == f"RunResult(text='x', messages=<1 message>, usage={runtime.Usage(1)!r}, reason='normal')"
    assert bool(runtime.ElicitationBridge()), "as a channel: `if bridge` asks whether there is one"


def test_many_runs_say_how_far_they_are() -> None:
    with runtime.Runtime(AGENT) as ours, ours.map(["one", "two"]) as runs:
        assert repr(runs) == "<Runs not started>"
        next(runs)
        assert repr(runs) == "<Runs under way>"
    assert repr(runs) == "<Runs ended>"


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickle.dumps])
@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: runtime.Runtime(AGENT), "<Runtime of .* make a Runtime in each process"),
        (lambda: runtime.Runtime(AGENT).map([]), "pass the object itself to the thread that iterates"),
        (MemoryStore, "others need a store with a file or a database"),
        (lambda: MCPToolSet([sys.executable]), "make an MCPToolSet in each process"),
        (lambda: Remote(print, "a:b"), "make a Remote in each process"),
        (lambda: Application(AGENT), "make an Application in each process"),
        (LoopThread, "make a LoopThread in each process"),
    ],
)
def test_what_holds_threads_is_not_copied(make: Callable[[], Any], says: str, copied: Callable[[Any], object]) -> None:
    made = make()
    with pytest.raises(TypeError, match=f"cannot be copied or pickled: .*{says}|{says}"):
        copied(made)
    for end in ("close", "stop"):
        getattr(made, end, lambda: None)()


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_stream_is_not_copied(copied: Callable[[Any], object]) -> None:
    says = r"<EventStream .* pass the stream itself to the thread that reads it"
    with (
        runtime.Runtime(AGENT) as ours,
        ours.run_stream(runtime.Session.from_user("go")) as stream,
        pytest.raises(TypeError, match=says),
    ):
        copied(stream)
