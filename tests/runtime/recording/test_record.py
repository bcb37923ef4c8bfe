"""A run is recorded in a file, and runs again from it."""

from __future__ import annotations

import json
import os
import stat
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Optional

import pytest

from channels import CancelToken
from runtime import (
    Agent,
    HookResult,
    Image,
    Message,
    ModelError,
    ReasoningDelta,
    Recording,
    RunError,
    Runtime,
    Session,
    SessionBusy,
    TextDelta,
    Tool,
    ToolCallDelta,
    ToolContext,
    UsageDelta,
    tool,
)
from runtime.events import AgentChoice, Error, Event, StreamStopped, ToolCallResponse, UserMessage
from runtime.foreign._redact import REDACTED, Redaction
from runtime.models import Retry
from runtime.models.replay import Recorded, ReplayDiverged, ReplayModel
from runtime.recording._timeline import timeline
from runtime.session import Compacted
from support.hostile import HOSTILE, changed, places
from support.scripted import AsyncScripted, Scripted, Stall, approving, call, say


@tool(read_only=True)
def add(a: int, b: int) -> int:
    """Adds."""
    return a + b


def adding(a: int, b: int, id: str = "1") -> ToolCallDelta:
    return call("add", json.dumps({"a": a, "b": b}), id=id)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def without_times(events: list[Event]) -> list[dict[str, Any]]:
    """What they say, but for what is new each time: when, in which session."""
    said = [event.to_dict() for event in events]
    return [{key: value for key, value in each.items() if key not in ("timestamp", "session_id")} for each in said]


def record(agent: Agent, path: Path, text: str = "go", **more: Any) -> list[Event]:
    with approving(agent) as runtime:
        return list(runtime.run_stream(Session.from_user(text), record=path, **more))


# -- the record --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [Scripted, AsyncScripted])
def test_a_record_has_every_event_in_order_and_every_model_call(model: Any, tmp_path: Path) -> None:
    """The header, then the events as the consumer saw them, the last one too, with requests and replies between."""
    path = tmp_path / "run.jsonl"
    agent = Agent("a", model([*say("I ", "add"), adding(1, 2)], [*say("3"), UsageDelta(5, 6)]), "Add.", tools=[add])
    seen = record(agent, path)
    recording = Recording(path)
    assert list(recording.events()) == seen
    first, second = recording.requests
    assert [each["role"] for each in first.messages] == ["system", "user"]
    assert [each["role"] for each in second.messages] == ["system", "user", "assistant", "tool"]
    assert second.messages[:2] == first.messages
    assert [each["name"] for each in first.tools] == ["add"]
    assert first.reply is not None
    assert [each["delta"] for each in first.reply["deltas"]] == ["TextDelta", "TextDelta", "ToolCallDelta"]
    kinds = [line["type"] for line in lines(path)]
    assert kinds[:2] == ["record", "stream_started"]
    assert kinds[-1] == "stream_stopped"
    assert kinds.index("model_request") < kinds.index("agent_choice") < kinds.index("tool_call")
    assert recording.session().messages[0].content == "go"


def test_the_file_is_private_and_replaced(tmp_path: Path) -> None:
    """Also where there was one that everybody could read."""
    path = tmp_path / "run.jsonl"
    record(Agent("a", Scripted(say("old " * 1000))), path)
    path.chmod(0o644)
    record(Agent("a", Scripted(say("x"))), path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "old" not in path.read_text()


@pytest.mark.parametrize("text", ["print('hello')\n", '{"a": 1}\n', '{"type": "other"}\n'])
def test_a_record_replaces_nothing_but_a_record(text: str, tmp_path: Path) -> None:
    """Whoever gives the path of the program by mistake keeps the program, and its permissions."""
    path = tmp_path / "agent.py"
    path.write_text(text)
    path.chmod(0o644)
    session = Session.from_user("go")
    with Runtime(Agent("a", Scripted(say("x")))) as runtime:
        with pytest.raises(FileExistsError, match="not a recorded run"):
            runtime.run_stream(session, record=path)
        assert runtime.run(session).text == "x"
    assert path.read_text() == text
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_two_streams_do_not_write_one_record(tmp_path: Path) -> None:
    """The second is refused where it is started; the record of the first is whole."""
    path = tmp_path / "run.jsonl"
    with Stall() as stall, Runtime(Agent("a", Scripted([*say("one"), stall], say("two")))) as runtime:
        stream = runtime.run_stream(Session.from_user("go"), record=path)
        assert stall.reached.wait(5)
        with pytest.raises(FileExistsError, match="another stream"):
            runtime.run_stream(Session.from_user("go"), record=path)
        stall.go_on.set()
        assert list(stream) == list(Recording(path).events())
        runtime.run(Session.from_user("again"), record=path)
    assert Recording(path).session().messages[0].content == "again"


@pytest.mark.parametrize("pieces", [1, 20_000])
def test_a_record_is_whole_whatever_its_size(pieces: int, tmp_path: Path) -> None:
    """A picture of 3 MB, a reply of many pieces: the end of the run waits until they are written."""
    path = tmp_path / "run.jsonl"
    session = Session.from_user("look", images=[Image(os.urandom(3_000_000 if pieces == 1 else 10))])
    # No record is waited for longer than that, and on a busy machine such a one takes its time.
    with Runtime(Agent("a", Scripted(say(*["abcd "] * pieces))), grace=20) as runtime:
        seen = list(runtime.run_stream(session, record=path))
    recording = Recording(path)
    assert recording.whole
    assert [event.type for event in recording.events()] == [event.type for event in seen]
    assert recording.session().messages == session.messages[:1]


def test_a_cancel_does_not_wait_for_the_record(tmp_path: Path) -> None:
    """It is written to its end behind the consumer."""
    path = tmp_path / "run.jsonl"
    reached, go_on = threading.Event(), threading.Event()

    def slow(text: str) -> str:
        if text == "go":
            reached.set()
            go_on.wait(30)
        return text

    with Stall() as stall, Runtime(Agent("a", Scripted([*say("one"), stall]))) as runtime:
        stream = runtime.run_stream(Session.from_user("go"), record=Recording(path, redact=slow))
        assert stall.reached.wait(5)
        assert reached.wait(5)
        stream.cancel()
        assert isinstance(list(stream)[-1], StreamStopped)
        go_on.set()
        stall.go_on.set()
        stream.close()
    assert Recording(path).whole


def test_what_a_turn_adds_to_a_record_does_not_grow_with_the_run(tmp_path: Path) -> None:
    """Also where the instructions are others at each turn: what the model has seen before is not written again."""
    path = tmp_path / "run.jsonl"
    turns = iter(range(1000))
    model = Scripted(*([adding(i, i, id=f"c{i}")] for i in range(60)), say("end"))
    agent = Agent("a", model, lambda session: f"Turn {next(turns)}.", tools=[add], max_iterations=100)
    record(agent, path)
    sizes = [len(line) for line in path.read_text().splitlines() if '"type": "model_request"' in line]
    assert len(sizes) == 61
    assert max(sizes[2:]) < 1.2 * sizes[2]
    last = Recording(path).requests[-1]
    assert last.messages[0]["content"] == "Turn 60."
    assert len(last.messages) == 2 + 120
    assert [each["name"] for each in last.tools] == ["add"]


def test_consumers_and_observers_see_no_traffic(tmp_path: Path) -> None:
    """What goes to the model is for the record; the events are those of a run that is not recorded."""

    class Watcher:
        def __init__(self) -> None:
            self.seen: list[Event] = []

        def on_run_start(self, session: Session) -> None:
            pass

        def on_event(self, session: Session, event: Event) -> None:
            self.seen.append(event)

    def agent() -> Agent:
        return Agent("a", Scripted([*say("x"), adding(1, 2)], say("y")), tools=[add])

    watcher = Watcher()
    with Runtime(agent(), observers=[watcher]) as runtime:
        recorded = list(runtime.run_stream(Session.from_user("go"), record=tmp_path / "run.jsonl"))
    with Runtime(agent()) as runtime:
        plain = list(runtime.run_stream(Session.from_user("go")))
    assert watcher.seen == recorded
    assert without_times(recorded) == without_times(plain)


def test_a_path_that_cannot_be_written_is_the_callers_error(tmp_path: Path) -> None:
    """Nothing has started, and the session is free."""
    session = Session.from_user("go")
    with Runtime(Agent("a", Scripted(say("x")))) as runtime:
        with pytest.raises(FileNotFoundError):
            runtime.run_stream(session, record=tmp_path / "none" / "run.jsonl")
        assert runtime.run(session).text == "x"


def test_a_busy_session_leaves_the_record_of_its_stream_alone(tmp_path: Path) -> None:
    """Law 15: the second stream did not start, so it wrote nothing."""
    path, session = tmp_path / "run.jsonl", Session.from_user("go")
    with Stall() as stall, Runtime(Agent("a", Scripted([stall, *say("x")]))) as runtime:
        stream = runtime.run_stream(session, record=path)
        assert stall.reached.wait(5)
        with pytest.raises(SessionBusy):
            runtime.run_stream(session, record=path)
        stall.go_on.set()
        assert list(stream) == list(Recording(path).events())


def test_the_record_of_a_cancelled_run_has_its_end(tmp_path: Path) -> None:
    """Also when the consumer has left; a reply that was cut off is there as far as it came."""
    path = tmp_path / "run.jsonl"
    with (
        Stall() as stall,
        Runtime(Agent("a", Scripted([*say("one"), stall]))) as runtime,
        runtime.run_stream(Session.from_user("go"), record=path) as stream,
    ):
        assert any(isinstance(event, AgentChoice) for event in stream)
        assert stall.reached.wait(5)
        stall.go_on.set()
        stream.cancel()
    recording = Recording(path)
    assert list(recording.events())[-1].to_dict()["reason"] == "canceled"
    [request] = recording.requests
    assert request.reply is not None
    assert request.reply["deltas"] == [{"delta": "TextDelta", "text": "one"}]


def test_the_file_is_closed_on_every_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A normal end, an error, a cancel, a disk that is full, a forwarder that cannot start."""
    import runtime.stream._open as opening
    from runtime.recording._recorder import Recorder

    made: list[Recorder] = []
    init = Recorder.__init__

    def keep(self: Recorder, *args: Any) -> None:
        init(self, *args)
        made.append(self)

    monkeypatch.setattr(Recorder, "__init__", keep)
    path = tmp_path / "run.jsonl"
    record(Agent("a", Scripted(say("x"))), path)
    record(Agent("a", Scripted([LookupError("no")])), path)
    with Runtime(Agent("a", Scripted(say(*["x"] * 500))), event_capacity=1) as runtime:
        runtime.run_stream(Session.from_user("go"), record=path).close()

    def no_forwarder(function: Any, name: str) -> None:
        assert "observe" in name
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(opening, "start", no_forwarder)
    with Runtime(Agent("a", Scripted(say("x")))) as runtime, pytest.raises(RuntimeError, match="can't start"):
        runtime.run_stream(Session.from_user("go"), record=path)
    assert len(made) == 4
    assert all(recorder._file.closed for recorder in made)


def test_a_disk_that_is_full_ends_the_record_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is said once; a record with a hole would tell another story, so nothing more is written."""
    from runtime.recording._recorder import Recorder

    add, path = Recorder._add, tmp_path / "run.jsonl"

    def full(self: Recorder, type: str, **said: Any) -> None:
        if type == "agent_choice":
            raise OSError(28, "No space left on device")
        add(self, type, **said)

    monkeypatch.setattr(Recorder, "_add", full)
    events = record(Agent("a", Scripted(say("x", "y"), say("z"))), path)
    assert isinstance(events[-1], StreamStopped)
    assert events[-1].reason == "normal"
    assert ["ends before its run" in each.getMessage() for each in caplog.records] == [True]
    assert "stream_stopped" not in path.read_text()


# -- secrets -----------------------------------------------------------------------------------------------------------

KEY = "sk-" + "a1b2c3d4" * 4
SECRETS = [
    (f"my key is {KEY}.", f"my key is {REDACTED}."),
    ("Authorization: Bearer abcdefgh12345678", f"Authorization: {REDACTED}"),
    ("Authorization: Basic dXNlcjpwYXNz", f"Authorization: {REDACTED}"),
    ('{"api_key": "x y \\" z", "n": 1}', f'{{"api_key": "{REDACTED}", "n": 1}}'),
    ('{"body": "{\\"password\\": \\"x y\\"}"}', f'{{"body": "{{\\"password\\": \\"{REDACTED}\\"}}"}}'),
    ("PASSWORD=hunter2 next", f"PASSWORD={REDACTED} next"),
    ("https://example.org/?access_token=abc&n=1", f"https://example.org/?access_token={REDACTED}&n=1"),
    ("postgres://me:secret@host/db", f"postgres://{REDACTED}@host/db"),
    ("-----BEGIN RSA PRIVATE KEY-----\nabc\n-----END RSA PRIVATE KEY-----\n.", f"{REDACTED}\n."),
    ("ghp_" + "a" * 36, REDACTED),
    ("sk_live_" + "a" * 20, REDACTED),
    ("redis://:secret@host:6379/0", f"redis://{REDACTED}@host:6379/0"),
    ("amqp://u:p@ss@host", f"amqp://{REDACTED}@host"),
    ("Authorization: Token abc", f"Authorization: {REDACTED}"),
    ("Cookie: a=1; sid=abc", f"Cookie: {REDACTED}"),
    ("password = ['a', 'b']", f"password = {REDACTED}"),
    ("passwords:\n  - abc\n  - def\nuser: x", f"passwords:\n  {REDACTED}\nuser: x"),
    ("--password abc -v", f"--password {REDACTED} -v"),
    ("<password>abc</password>", f"<password>{REDACTED}</password>"),
    ('{"passwords": ["a", 5]}', f'{{"passwords": ["{REDACTED}", "{REDACTED}"]}}'),
    ('{"credentials": {"pin": "a", "on": true}}', f'{{"credentials": {{"pin": "{REDACTED}", "on": true}}}}'),
    ('so {"secret": ["a"], "token": 12}', f'so {{"secret": "{REDACTED}", "token": "{REDACTED}"}}'),
    ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2ln", REDACTED),
]
HARMLESS = [
    '{"password": null}',
    '[1, {"properties": {"password": {"type": "string"}}}]',
    "https://host:80/a/b",
    "max_tokens=100",
    "the token limit",
    '{"input_tokens": 3}',
    "tokens: 3",
    "skip-to-the-end-of-all",
    "",
]


@pytest.mark.parametrize(("text", "clean"), SECRETS)
def test_secrets_in_texts(text: str, clean: str) -> None:
    """By name and by form; doing it twice changes nothing more."""
    redaction = Redaction()
    assert redaction.text(text) == clean
    assert redaction.text(clean) == clean


@pytest.mark.parametrize("text", HARMLESS)
def test_what_is_no_secret_stays(text: str) -> None:
    """Tokens that are counted, words."""
    assert Redaction().text(text) == text


def test_secrets_by_the_name_of_their_key() -> None:
    """Whatever they look like, also in lists, numbers too; what tells nothing stays."""
    said = {"api_key": "a", "nested": {"password": ["b", 3], "max_tokens": "c"}, "token": None, "secret": ""}
    assert Redaction().value(said) == {
        "api_key": REDACTED,
        "nested": {"password": [REDACTED, REDACTED], "max_tokens": "c"},
        "token": None,
        "secret": "",
    }


def test_values_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever they turn up, whatever they look like."""
    monkeypatch.setenv("SHOP_API_KEY", "plainword")
    monkeypatch.setenv("OTHER_TOKEN", "short")
    assert Redaction().text("it says plainword and short") == f"it says {REDACTED} and short"


def test_the_working_directory_is_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shell has it in a variable whose name ends as those of passwords do; every traceback is full of it."""
    monkeypatch.setenv("PWD", "/srv/shop/app")
    monkeypatch.setenv("OLDPWD", "/srv/shop/old")
    monkeypatch.setenv("DB_PWD", "tulip-tulip")
    assert Redaction().text("/srv/shop/app /srv/shop/old tulip-tulip") == "/srv/shop/app /srv/shop/old <redacted>"


def test_no_secret_reaches_the_file(tmp_path: Path) -> None:
    """From the prompt, instructions, arguments, results, and what the model says, in pieces too."""

    @tool(read_only=True)
    def look(password: str, user: str) -> str:
        """Looks."""
        return f"{user} has {KEY}"

    pieces = [call("look", text, index=0) for text in ('{"pass', 'word": "hun', 'ter2", "user": "Ann"}')]
    first = [*say("the key ", "is " + KEY[:9], KEY[9:], "."), *pieces]
    turns = first, [ReasoningDelta(KEY[:5]), ReasoningDelta(KEY[5:])]
    agent = Agent("a", Scripted(*turns), f"Use {KEY}.", tools=[look])
    path = tmp_path / "run.jsonl"
    with Runtime(agent) as runtime:
        recording = Recording(path, redact=lambda text: text.replace("Ann", "<name>"))
        runtime.run(Session.from_user(f"{KEY}, please, Ann"), record=recording)
    text = path.read_text("utf-8")
    for secret in (KEY, KEY[9:], "hunter2", '"hun', "Ann"):
        assert secret not in text
    assert REDACTED in text
    said = [event for event in Recording(path).events() if isinstance(event, AgentChoice)]
    assert [event.content for event in said] == [f"the key is {REDACTED}."]


def test_texts_without_secrets_keep_their_pieces(tmp_path: Path) -> None:
    """So that a replay says the same in the same pieces."""
    path = tmp_path / "run.jsonl"
    seen = record(Agent("a", Scripted(say("one ", "two ", "three"))), path)
    assert [event for event in Recording(path).events() if isinstance(event, AgentChoice)] == [
        event for event in seen if isinstance(event, AgentChoice)
    ]


def test_a_redaction_that_fails_writes_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Rather a record that ends early than one with what should not be in it."""

    def fail(text: str) -> str:
        if "secret" in text:
            raise LookupError("cannot tell")
        return text

    path = tmp_path / "run.jsonl"
    with Runtime(Agent("a", Scripted(say("a secret"), say("x")))) as runtime:
        result = runtime.run(Session.from_user("go"), record=Recording(path, redact=fail))
    assert result.text == "a secret"
    assert "cannot tell" in caplog.text
    assert "secret" not in path.read_text()


# -- the replay --------------------------------------------------------------------------------------------------------


def replay(path: Path, agent: Agent, *, strict: bool = True) -> tuple[list[Event], ReplayModel]:
    model = ReplayModel(path, strict=strict)
    with approving(replace(agent, model=model)) as runtime:
        return list(runtime.run_stream(Recording(path).session())), model


def test_a_replay_says_the_same_without_the_model(tmp_path: Path) -> None:
    """Events and session, piece by piece; the tools run for real."""
    ran = []

    @tool(read_only=True)
    def look(what: str) -> str:
        """Looks."""
        ran.append(what)
        return f"seen {what}"

    turns = [*say("I ", "look"), call("look", '{"wh'), call("", 'at": "it"}', id="")], [*say("done"), UsageDelta(1, 2)]
    agent = Agent("a", Scripted(*turns), "Look.", tools=[look])
    path = tmp_path / "run.jsonl"
    seen = record(agent, path)
    again, model = replay(path, agent)
    assert without_times(again) == without_times(seen)
    assert ran == ["it", "it"]
    assert model.left == 0


def test_arguments_that_came_as_an_object_are_recorded_and_replayed(tmp_path: Path) -> None:
    """As some servers send them; the session has their text."""
    path = tmp_path / "run.jsonl"
    said = ToolCallDelta(0, "1", "add", {"a": 1, "b": 2, "key": "é"})
    agent = Agent("a", Scripted([said], say("3")), tools=[add])
    events = record(agent, path)
    assert lines(path)[-1]["type"] == "stream_stopped"
    replayed, _ = replay(path, agent)
    assert without_times(replayed) == without_times(events)


def test_a_replay_with_recorded_results_needs_no_tools(tmp_path: Path) -> None:
    """The same results to the same calls, in their order; a call that is not in the record is an error to the model."""
    count = iter(range(9))

    @tool(read_only=True)
    def turn() -> int:
        """Counts."""
        return next(count)

    agent = Agent("a", Scripted([call("turn", id="1")], [call("turn", "{ }", id="2")], say("two")), tools=[turn])
    path = tmp_path / "run.jsonl"
    seen = record(agent, path)
    recording = Recording(path)
    tools = recording.tools()
    with Runtime(Agent("a", ReplayModel(recording), tools=tools)) as runtime:
        again = list(runtime.run_stream(recording.session()))
    assert without_times(again) == without_times(seen)
    assert [event.response for event in again if isinstance(event, ToolCallResponse)] == ["0", "1"]
    with Runtime(Agent("a", Scripted([call("turn")], say("x")), tools=tools)) as runtime:
        runtime.run(session := Session.from_user("go"))
    assert "no (other) call of turn" in session.messages[2].content


def diverging(path: Path, agent: Agent) -> tuple[str, ReplayDiverged]:
    """The text of the error, and what the run's was raised from."""
    with approving(agent) as runtime, pytest.raises(RunError) as caught:
        runtime.run(Recording(path).session())
    assert isinstance(caught.value.__cause__, ReplayDiverged)
    return caught.value.message, caught.value.__cause__


def _varying(*results: Any, slow: bool = False) -> Tool:
    """A tool without arguments whose results are others each time; the first call ends last, if ``slow``."""
    left, last = list(results), threading.Event()

    def vary(x: int | None = None) -> Any:
        result = left.pop(0)
        if slow and left:
            last.wait(10)
        last.set()
        return result

    return Tool("vary", vary, parameters=tool(vary).parameters, read_only=True)


@tool(read_only=True, name="vary")
def optional(x: Optional[int] = None) -> str:  # noqa: UP045 - what a model may leave out or say null for
    """Says it."""
    return f"x is {x}"


@tool(polling=True, name="vary")
def poll() -> str:
    """Not yet."""
    return "not yet"


VARY = call("vary")
KINDS: dict[str, tuple[Any, list[Any], dict[str, Any]]] = {
    "an image": (_varying(Image(b"1")), [VARY], {}),
    "a long result": (_varying("x" * 60_000), [VARY], {}),
    "null": (optional, [call("vary", '{"x": null}')], {}),
    "wrong arguments": (optional, [call("vary", '{"x": "y"}')], {}),
    "broken arguments": (optional, [call("vary", '{"x": ')], {}),
    "a call that is refused": (poll, [VARY], {"hooks": {"pre_tool_use": [lambda given: HookResult(block=True)]}}),
    "two calls alike": (
        _varying("first", "second", slow=True),
        [call("vary", id="a", index=0), call("vary", id="b", index=1)],
        {},
    ),
    "a tool that fails": (_varying(), [VARY], {}),
    "polling": (poll, [call("vary", index=i, id=f"c{i}") for i in range(8)], {"max_repeated_calls": 3}),
    "arguments from a hook": (
        optional,
        [call("vary", '{"x": 1}')],
        {"hooks": {"pre_tool_use": [lambda given: HookResult(updated_input={"x": 5})]}},
    ),
    "a result from a hook": (
        _varying("r"),
        [VARY],
        {"hooks": {"tool_response_transform": [lambda given: HookResult(updated_response=f"[{given.tool_response}]")]}},
    ),
    "context from a hook": (
        _varying("r"),
        [VARY],
        {"hooks": {"turn_start": [lambda given: HookResult(context=f"It is {time.monotonic_ns()}.")]}},
    ),
    "instructions of the moment": (_varying("r"), [VARY], {"instructions": lambda session: f"{time.monotonic_ns()}"}),
    "a retry": (_varying("r"), [VARY], {"retry": True}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_is_unchanged_does_not_part_from_its_record(kind: str, tmp_path: Path) -> None:
    """With the recorded results of the tools, whatever is new each time."""
    made, calls, more = KINDS[kind]
    path, more = tmp_path / "run.jsonl", dict(more)
    model: Any = Scripted(calls, say("end"))
    if more.pop("retry", False):
        busy = ModelError("overloaded", "busy", retryable=True)
        model = Retry(Scripted([busy], calls, say("end")), backoff=lambda attempt: 0.001)
    agent = Agent("a", model, tools=[made], **more)
    recorded = record(agent, path)
    replayed = ReplayModel(path)
    with approving(replayed.agent(agent)) as runtime:
        again = list(runtime.run_stream(Recording(path).session()))
    assert again[-1].to_dict()["reason"] == recorded[-1].to_dict()["reason"] == "normal"
    assert replayed.left == 0


@pytest.mark.parametrize("when", ["before the first call", "while a tool runs", "with the last word", "as follow-ups"])
def test_what_the_user_said_to_a_run_is_said_again(when: str, tmp_path: Path) -> None:
    """In the replay, between the same model calls, at the same hook points: nothing parts."""
    path = tmp_path / "run.jsonl"
    session = Session.from_user("go")
    submitted: list[tuple[str, str]] = []
    do: list[Callable[[], None]] = []

    def start(given: Any) -> None:
        if do and when == "before the first call":
            do.pop()()

    def note(point: str) -> Callable[[Any], None]:
        return lambda given: submitted.append((point, given.prompt))

    def say_it() -> None:
        if do:
            do.pop()()

    @tool(read_only=True)
    def slow() -> str:
        """Takes its time."""
        if when == "while a tool runs":
            say_it()
        return "done"

    last_word = [*say("Bye."), *([] if when in ("before the first call", "while a tool runs") else [say_it])]
    model = Scripted([call("slow")], last_word, *([say("More.")] * 3))
    points = ("user_steering_messages_submit", "user_followup_submit")
    hooks: dict[str, list[Any]] = {"session_start": [start], **{point: [note(point)] for point in points}}
    agent = Agent("a", model, tools=[slow], hooks=hooks)
    with approving(agent) as runtime:

        def speak() -> None:
            said = runtime.follow_up if when == "as follow-ups" else runtime.steer
            said(session, "one")
            said(session, "two")

        do.append(speak)
        seen = list(runtime.run_stream(session, record=path))
    assert not do
    before, submitted[:] = list(submitted), []
    assert [text for _, text in before] == ["one", "two"]
    replayed = ReplayModel(path)
    with approving(replayed.agent(agent)) as runtime:
        again = Recording(path).session()
        events = list(runtime.run_stream(again))
    assert events[-1].to_dict()["reason"] == "normal"
    assert replayed.left == 0
    assert [(m.role, m.content) for m in again.messages] == [(m.role, m.content) for m in session.messages]
    if when != "before the first call":  # then it is in the session with which the replay begins
        assert submitted == before
        assert [event.type for event in events] == [event.type for event in seen]


def test_what_the_user_said_to_a_sub_agent_is_said_again(tmp_path: Path) -> None:
    """To that one, of two that run side by side."""
    path = tmp_path / "run.jsonl"
    with Stall() as stall:
        one = Agent("one", Scripted([*say("x"), stall], say("ok, quickly")))
        two = Agent("two", Scripted(say("ok")))
        tasks = [call("transfer_task", json.dumps({"agent": n, "task": "go"}), id=n, index=i) for i, n in
                 enumerate(("one", "two"))]  # fmt: skip
        outer = Agent("outer", Scripted(tasks, say("bye")), sub_agents=[one, two])
        with approving(outer) as runtime, runtime.run_stream(Session.from_user("go"), record=path) as stream:
            for event in stream:
                if isinstance(event, AgentChoice) and event.content == "x":
                    runtime.steer(event.session_id, "hurry")
                    stall.go_on.set()
    replayed = ReplayModel(path)
    with approving(replayed.agent(outer)) as runtime:
        again = list(runtime.run_stream(Recording(path).session()))
    assert again[-1].to_dict()["reason"] == "normal"
    assert replayed.left == 0
    assert [each.message for each in again if isinstance(each, UserMessage)].count("hurry") == 1


def test_a_replay_has_the_names_of_the_models(tmp_path: Path) -> None:
    """Each agent's own, in its messages and events."""
    path = tmp_path / "run.jsonl"

    def named(id: str, *turns: Any) -> Scripted:
        model = Scripted(*turns)
        model.id = id
        return model

    other = Agent("b", named("second", say("done")))
    agent = Agent("a", named("first", [call("handoff", '{"agent": "b"}')]), handoffs=[other])
    seen = record(agent, path)
    with approving(ReplayModel(path).agent(agent)) as runtime:
        session = Recording(path).session()
        again = list(runtime.run_stream(session))
    assert [message.model for message in session.messages if message.role == "assistant"] == ["first", "second"]
    assert [event.type for event in again] == [event.type for event in seen]


def test_it_says_where_a_replay_parts_from_the_record(tmp_path: Path) -> None:
    """Which request, which message, what stood there and what stands there now."""
    path = tmp_path / "run.jsonl"
    record(Agent("a", Scripted([adding(1, 2)], say("3")), "Add.", tools=[add]), path)

    @tool(read_only=True, name="add")
    def wrong(a: int, b: int) -> int:
        """Adds."""
        return a + b + 1

    text, diverged = diverging(path, Agent("a", ReplayModel(path), "Add.", tools=[wrong]))
    assert diverged.request == 2
    assert "request 2, of agent 'a'" in text
    assert "-  content: 3" in text
    assert "+  content: 4" in text
    text, diverged = diverging(path, Agent("a", ReplayModel(path), "Add well.", tools=[add]))
    assert diverged.request == 1
    assert "-  content: Add." in text
    assert "+  content: Add well." in text
    text, diverged = diverging(path, Agent("a", ReplayModel(path), "Add."))
    assert "tools in the record" in text
    assert "messages in the record" not in text


def test_a_run_that_goes_on_longer_than_the_record(tmp_path: Path) -> None:
    """It says so, rather than that something differs."""
    path = tmp_path / "run.jsonl"
    record(Agent("a", Scripted(say("x"))), path)
    model = ReplayModel(path)
    with Runtime(Agent("a", model)) as runtime:
        runtime.run(Recording(path).session())
    text, diverged = diverging(path, Agent("a", model))
    assert "once more than the record" in text
    assert diverged.request is None


def test_not_strict_goes_on_and_keeps_the_differences(tmp_path: Path) -> None:
    """For a prompt with the date in it."""
    path = tmp_path / "run.jsonl"
    record(Agent("a", Scripted([adding(1, 2)], say("3")), "It is Monday.", tools=[add]), path)
    events, model = replay(path, Agent("a", Scripted(), "It is Tuesday.", tools=[add]), strict=False)
    assert isinstance(events[-1], StreamStopped)
    assert events[-1].reason == "normal"
    assert ["request 1" in model.differences[0], "request 2" in model.differences[1]] == [True, True]
    assert "Tuesday" in model.differences[0]


def test_a_secret_that_was_taken_out_is_no_difference(tmp_path: Path) -> None:
    """What is asked now is compared without it too."""
    path = tmp_path / "run.jsonl"
    agent = Agent("a", Scripted(say("x")), f"The key is {KEY}.")
    record(agent, path)
    events, _ = replay(path, agent)
    assert not any(isinstance(event, Error) for event in events)


def test_ids_that_are_new_each_time_are_no_difference(tmp_path: Path) -> None:
    """A model that numbers its calls anew each turn has them renamed, differently each time."""
    path = tmp_path / "run.jsonl"
    agent = Agent("a", Scripted([adding(1, 2)], [adding(3, 4)], say("x")), tools=[add])
    record(agent, path)
    events, _ = replay(path, agent)
    assert not any(isinstance(event, Error) for event in events)


def test_a_model_that_failed_fails_again(tmp_path: Path) -> None:
    """With the same code where there was one, after the same words."""
    path = tmp_path / "run.jsonl"
    record(Agent("a", Scripted([*say("x"), ModelError("overloaded", "busy", retryable=True)])), path)
    with Runtime(Agent("a", ReplayModel(path))) as runtime, pytest.raises(RunError, match="busy") as caught:
        runtime.run(session := Recording(path).session())
    assert isinstance(caught.value.__cause__, ModelError)
    assert (caught.value.__cause__.code, caught.value.__cause__.retryable) == ("overloaded", True)
    assert session.messages[1].content == "x"
    record(Agent("a", Scripted([LookupError("gone")])), path)
    with Runtime(Agent("a", ReplayModel(path))) as runtime, pytest.raises(RunError, match="Error: gone") as caught:
        runtime.run(Recording(path).session())
    assert isinstance(caught.value.__cause__, Recorded)


def test_nested_streams_that_ran_at_once_are_told_apart(tmp_path: Path, threads: Any) -> None:
    """One model answers for all agents, each with what was said in its own stream."""
    line = threading.Barrier(2)

    def meet() -> None:
        line.wait(5)

    def delegating(model: Callable[[str], Any], tools: Any = (add,)) -> Agent:
        @tool(read_only=True)
        def delegate(to: str, context: ToolContext) -> str:
            """Delegates."""
            return context.run_agent(Agent(to, model(to), f"You are {to}.", tools=tools), f"task of {to}").text

        turn = [call("delegate", f'{{"to": "{name}"}}', id=name, index=i) for i, name in enumerate(("x", "y"))]
        return Agent("root", Scripted(turn, say("both")), "Delegate.", tools=[delegate])

    path = tmp_path / "run.jsonl"
    turns = {
        "x": [[meet, adding(1, 2, "x1")], [meet, TextDelta("x has 3")]],
        "y": [[meet, adding(3, 4, "y1")], [meet, TextDelta("y has 7")]],
    }
    seen = record(delegating(lambda name: Scripted(*turns[name])), path)
    assert {event.session_id for event in seen} == {event.session_id for event in Recording(path).events()}
    assert len({request.session_id for request in Recording(path).requests}) == 3
    shared = ReplayModel(path)
    with Runtime(replace(delegating(lambda name: shared), model=shared)) as runtime:
        result = runtime.run(session := Recording(path).session())
    assert result.text == "both"
    assert [message.content for message in session.messages[2:4]] == ["x has 3", "y has 7"]
    assert shared.left == 0


def test_a_team_is_replayed_with_its_sub_agents(tmp_path: Path) -> None:
    """Delegation and summaries happen again, on what the models said; no tool is called."""
    ran = []

    @tool(read_only=True)
    def look() -> str:
        """Looks."""
        ran.append("look")
        return "seen " + "x" * 600

    class Small(Scripted):
        context_window = 200

    inner = Agent("inner", Small([call("look")], say("summed up"), say("found it")), tools=[look])
    turns = [call("transfer_task", '{"agent": "inner", "task": "look"}')], say("done")
    boss = Agent("boss", Scripted(*turns), sub_agents=[inner])
    path = tmp_path / "run.jsonl"
    seen = record(boss, path)
    assert any(event.type == "session_summary" for event in seen)
    model = ReplayModel(path)
    with Runtime(model.agent(boss)) as runtime:
        again = list(runtime.run_stream(Recording(path).session()))
    assert [event.type for event in again] == [event.type for event in seen]
    assert ran == ["look"]
    assert model.left == 0


def test_the_session_of_a_record_is_shown_as_it_was(tmp_path: Path) -> None:
    """A summary that it had before the run is a part of it."""
    session = Session([Message("user", "old"), Message("user", "new")], compacted=Compacted("a summary", 1, 1, 2))
    path = tmp_path / "run.jsonl"
    with Runtime(Agent("a", Scripted(say("x")))) as runtime:
        runtime.run(session, record=path)
    with Runtime(Agent("a", ReplayModel(path))) as runtime:
        assert runtime.run(Recording(path).session()).text == "x"


def test_a_file_that_is_no_record(tmp_path: Path) -> None:
    """It says which line, and what is wrong with it; a last line that was not finished is left out."""
    path = tmp_path / "x.jsonl"
    path.write_text("{}\n")
    with pytest.raises(ValueError, match="not a recorded run"):
        ReplayModel(path)
    path.unlink()
    record(Agent("a", Scripted(say("x"))), path)
    whole = path.read_text()
    assert Recording(path).whole
    path.write_text(whole + '{"type": "stre')
    assert len(list(Recording(path).events())) == sum("session_id" in line for line in whole.splitlines()) - 1
    path.write_bytes(whole.encode() + '{"type": "agent_choice", "content": "\u2028'.encode()[:-1])  # in a character
    assert len(list(Recording(path).events())) == sum("session_id" in line for line in whole.splitlines()) - 1
    path.write_text(whole + "nonsense\n")
    with pytest.raises(ValueError, match=rf"line {len(whole.splitlines()) + 1}"):
        ReplayModel(path)
    path.write_text("".join(whole.splitlines(keepends=True)[:-1]))
    assert not Recording(path).whole


def test_a_line_of_a_record_is_a_line_for_everybody(tmp_path: Path) -> None:
    """Programs that read it with `str.splitlines` take characters for the end of a line that JSON does not escape."""
    path = tmp_path / "x.jsonl"
    said = "one\u2028two\u2029three\x85four\x0bfive\x1csix"
    record(Agent("a", Scripted(say(said))), path)
    lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    assert "".join(line["content"] for line in lines if line["type"] == "agent_choice") == said


def test_whatever_stands_in_a_line_is_a_sentence_or_harmless(tmp_path: Path) -> None:
    """A record may be anybody's: it is read, or refused with `ValueError`, and never ends the replay as internal."""
    path, other = tmp_path / "run.jsonl", tmp_path / "other.jsonl"
    agent = Agent("a", Scripted([adding(1, 2)], [*say("3"), UsageDelta(5, 6)]), "Add.", tools=[add])
    record(agent, path)
    said = lines(path)
    refused, ends = 0, []
    for number, line in enumerate(said):
        for place in places(line):
            if number == 0 and len(place) > 1:
                continue  # of the session
            for value in HOSTILE[:: 3 if line["type"].startswith(("model", "tool")) else 8]:
                with other.open("w", encoding="utf-8") as file:
                    for at, each in enumerate(said):
                        file.write(json.dumps(changed(each, place, value) if at == number else each) + "\n")
                try:
                    recording = Recording(other)
                    _ = [*recording.events()], recording.requests, recording.tools(), timeline(recording)
                    with approving(ReplayModel(recording, strict=False).agent(agent)) as runtime:
                        runtime.run(recording.session())
                except ValueError:
                    refused += 1
                except RunError as error:
                    ends.append(error.code)
    assert refused > 100
    assert "internal" not in ends


@pytest.mark.parametrize(
    "line",
    [
        "5",
        "{}",
        "[" * 100_000,
        '{"type": "nope"}',
        '{"type": "agent_choice"}',
        '{"type": "agent_choice", "content": null}',
        '{"type": "tool_call", "tool_call": {}}',
        '{"type": "tool_call", "tool_call": {"id": "1", "name": "x", "arguments": "{}", "more": 1}}',
        '{"type": "model_request"}',
    ],
)
def test_a_line_that_cannot_be_read_is_named(line: str, tmp_path: Path) -> None:
    """Records come from strangers, too."""
    path = tmp_path / "run.jsonl"
    record(Agent("a", Scripted(say("x"))), path)
    whole = path.read_text()
    path.write_text(f"{whole}{line}\n")
    recording = Recording(path)
    with pytest.raises(ValueError, match=rf"line {len(whole.splitlines()) + 1}: "):
        [*recording.events(), *recording.requests]


def test_a_cancel_reaches_a_replay(tmp_path: Path) -> None:
    """It looks between deltas."""
    path = tmp_path / "run.jsonl"
    record(Agent("a", Scripted(say("x", "y"))), path)
    token = CancelToken()
    model = ReplayModel(path)
    [message] = [Message("user", "go")]
    deltas = model.stream([message], [], cancel=token)
    assert next(deltas) == TextDelta("x")
    token.cancel()
    assert list(deltas) == []


def test_recording_imports_nothing_slow(script: Callable[..., str]) -> None:
    """It is part of `import runtime`."""
    said = script("import sys, runtime; print([m for m in ('asyncio', 'difflib', 'subprocess') if m in sys.modules])")
    assert said.strip() == "[]"
