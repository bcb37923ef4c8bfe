"""A recorded run as a timeline: what took how long, in the terminal and as a page for a browser."""

from __future__ import annotations

import json
import stat
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from runtime import Agent, Recording, Runtime, Session, ToolContext, UsageDelta, tool
from runtime.cli._command import main
from runtime.cli._timeline import fitted, timeline_lines
from runtime.cli._timeline_page import page
from runtime.events import ElicitationRequest, MaxIterationsReached, ToolCallConfirmation
from runtime.recording._timeline import Note, Timeline, timeline
from support.chromium import Picture, browse, picture
from support.scripted import Scripted, call, say

EVIL = "</script><script>document.title='pwned'</script><img src=x onerror=\"document.title=1\">\x1b]0;x\x07\u202e"
BEGAN = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


class Written:
    """A record written by hand, with times of its own."""

    def __init__(self, path: Path, agent: str = "clerk") -> None:
        self.path = path
        self.lines: list[dict[str, Any]] = [
            {"type": "record", "version": 1, "agent_name": agent, "session": Session.from_user("hi").to_dict()}
        ]

    def add(self, type: str, at: float, session: str = "root", **said: Any) -> None:
        moment = (BEGAN + timedelta(seconds=at)).isoformat()
        self.lines.append({"type": type, "agent_name": "clerk", "session_id": session, "timestamp": moment, **said})

    def save(self) -> Recording:
        self.path.write_text("".join(json.dumps(line) + "\n" for line in self.lines), "utf-8")
        return Recording(self.path)


def called(id: str, name: str = "look", arguments: str = "{}") -> dict[str, Any]:
    return {"id": id, "name": name, "arguments": arguments}


@pytest.fixture
def written(tmp_path: Path) -> Written:
    """A run of ten seconds: a model, two calls side by side, one of which waits for the user, an agent inside."""
    record = Written(tmp_path / "run.jsonl")
    add = record.add
    add("stream_started", 0)
    add("user_message", 0, message=f"Hello {EVIL}")
    add("model_request", 0, request=1, model="m", same=0, messages=[], tools=[])
    add("agent_choice", 1.5, content="I look")
    add("agent_choice", 1.9, content=" it up.")
    add("model_reply", 2, request=1, deltas=[])
    add("tool_call", 2, tool_call=called("a", arguments='{"q": "one"}'))
    add("tool_call", 2, tool_call=called("b", "book", json.dumps({"day": EVIL})))
    add("tool_call_confirmation", 2.5, tool_call=called("b", "book"), confirmation_id="ask-1")
    add("tool_call_response", 5, tool_call=called("a"), response="found", is_error=False)
    add("user_answered", 6, request_id="ask-1")
    add("stream_started", 6, "nested")
    add("agent_info", 6, "nested", model="small")
    add("model_request", 6, "nested", request=2, model="small", same=0, messages=[], tools=[])
    add("model_reply", 6.5, "nested", request=2, deltas=[], error="it broke")
    add("sub_session_completed", 7, sub_session_id="nested", reason="error")
    add("tool_call_response", 8, tool_call=called("b"), response=f"no {EVIL}", is_error=True)
    add("token_usage", 8, model="m", input_tokens=1, output_tokens=2, total_input_tokens=10, total_output_tokens=20)
    add("model_request", 8, request=3, model="m", same=0, messages=[])
    add("model_reply", 10, request=3, deltas=[])
    add("stream_stopped", 10, reason="normal")
    record.save()
    return record


def spans(line: Timeline, kind: str) -> list[tuple[str, float, float]]:
    return [(span.name, span.start, span.end) for span in line.spans if span.kind == kind]


def test_what_was_under_way_from_when_to_when(written: Written) -> None:
    line = timeline(written.save())
    assert (line.agent_name, line.reason, line.seconds, line.turns) == ("clerk", "normal", 10.0, 2)
    assert (line.began, line.input_tokens, line.output_tokens) == (BEGAN, 10, 20)
    assert spans(line, "model") == [("m", 0, 2), ("small", 6, 6.5), ("m", 8, 10)]
    assert spans(line, "tool") == [("look", 2, 5), ("book", 2, 8)]
    assert spans(line, "user") == [("the user", 2.5, 6)]
    assert spans(line, "agent") == [("clerk", 6, 7)]
    assert [(span.depth, span.turn) for span in line.spans if span.kind == "model"] == [(0, 1), (1, 1), (0, 2)]
    assert [span.failed for span in line.spans if span.kind in ("model", "tool")] == [False, False, True, True, False]
    assert [note.text for note in line.entries if isinstance(note, Note) and note.kind == "agent"] == ["I look it up."]
    assert line.total("tool") == 6  # side by side counts once
    assert line.total("user") == 3.5


def test_a_real_run(tmp_path: Path) -> None:
    """The record of a run has when it waited for the user: for an approval, an answer, more turns."""

    @tool
    def ask(context: ToolContext) -> str:
        return context.elicit("How many?").action

    model = Scripted([call("ask"), UsageDelta(7, 3)], say("Done."))
    path = tmp_path / "run.jsonl"
    with Runtime(Agent("a", model, tools=[ask], max_iterations=1)) as runtime:
        stream = runtime.run_stream(Session.from_user("go"), record=path)
        for event in stream:
            if isinstance(event, ToolCallConfirmation):
                stream.approve(event)
            elif isinstance(event, ElicitationRequest):
                stream.respond(event, "decline")
            elif isinstance(event, MaxIterationsReached):
                stream.extend(event, 3)
    assert path.read_text("utf-8").count('"type": "user_answered"') == 3
    line = timeline(Recording(path))
    assert line.reason == "normal"
    assert line.turns == 2
    assert all(span.whole for span in line.spans), line.spans
    assert [span.said for span in line.spans if span.kind == "user"] == [
        "may ask be called?",
        "How many?",
        "may it take more turns?",
    ]
    tool_span = next(span for span in line.spans if span.kind == "tool")
    for span in line.spans[2:4]:
        assert tool_span.start <= span.start <= span.end <= tool_span.end


def test_a_record_that_breaks_off_has_spans_without_an_end(written: Written) -> None:
    del written.lines[10:]
    line = timeline(written.save())
    assert line.reason == ""
    assert [(span.name, span.end, span.whole) for span in line.spans if span.kind == "tool"] == [
        ("look", 2.5, False),
        ("book", 2.5, False),
    ]
    shown = "\n".join(text for text, _ in timeline_lines(line, 100))
    assert "the record does not have its end" in shown
    assert "500 ms+ |" in shown


def test_clocks_that_jump_give_no_negative_times(written: Written) -> None:
    for at, jumped in ((5, -3600.0), (7, 1e6), (10, -5.0)):
        written.lines[at]["timestamp"] = (BEGAN + timedelta(seconds=jumped)).isoformat()
    written.lines[12]["timestamp"] = "2026-01-02T03:04:09"  # without a zone
    line = timeline(written.save())
    assert all(span.seconds >= 0 and span.start >= 0 for span in line.spans)
    for text, _ in timeline_lines(line, 100):
        assert len(text) <= 100
    page(line)


def test_the_terminal_shows_turns_and_bars(written: Written) -> None:
    lines = [text for text, _ in timeline_lines(timeline(written.save()), 100)]
    assert lines[0] == "clerk: normal, 10.0 s, 2 turns, 10 tokens in, 20 out"
    assert lines[1] == "time for: the model 4.5 s, tools 6.0 s, the user 3.5 s"
    assert [text for text in lines if text.startswith("turn ")] == ["turn 1", "turn 2"]
    look, book, waits = (next(text for text in lines if name in text) for name in ("look(", "book(", "waits"))
    assert 'look(q="one")' in look
    assert "failed book(day=" in book
    assert "waits for the user: may book be called?" in waits
    bars = [each.partition("|")[2] for each in (look, book, waits)]
    assert [bar.find(mark) for bar, mark in zip(bars, "##.", strict=True)] == [7, 7, 9]  # of 38: 2 and 2.5 s of 10
    assert [bar.count(mark) for bar, mark in zip(bars, "##.", strict=True)] == [11, 23, 13]
    assert any(text.startswith("    6.00   model small failed ") for text in lines)
    assert not any("\x1b" in text or "\u202e" in text for text in lines)


@pytest.mark.parametrize("width", [20, 59, 60, 80, 300])
def test_no_line_is_longer_than_the_terminal_is_wide(written: Written, width: int) -> None:
    written.add("tool_call", 10, tool_call=called("c", "表" * 200, json.dumps({"文": "字" * 500})))
    for text, _ in timeline_lines(timeline(written.save()), width):
        wide = sum(2 if "\u2e80" <= each <= "\uffdc" else 1 for each in text)
        assert wide <= max(width, 80), text


@pytest.mark.parametrize(
    ("text", "cells", "shown"),
    [
        ("plain", 10, "plain     "),
        ("much too long", 10, "much t... "),
        ("表表表表表表", 10, "表表表... "),
        ("a\x1b[2Jb", 12, "a\\x1b[2Jb   "),
        ("e\u0301", 4, "e\u0301   "),
    ],
)
def test_texts_are_fitted_into_cells(text: str, cells: int, shown: str) -> None:
    assert fitted(text, cells) == shown


class Parsed(HTMLParser):
    """The elements of a page, and its text."""

    def __init__(self, said: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(said)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_is_whole_and_has_nothing_of_the_record_in_its_markup(written: Written) -> None:
    said = page(timeline(written.save()))
    parsed = Parsed(said)
    assert parsed.open == []
    tags = {tag for tag, _ in parsed.elements}
    assert tags.isdisjoint({"script", "img", "link", "iframe", "object", "a", "base", "form"})
    names = {name for _, attributes in parsed.elements for name in attributes}
    assert names == {"lang", "charset", "http-equiv", "content", "name", "class", "style"}
    assert "default-src 'none'" in said
    assert "url(" not in said
    assert "//" not in said.replace("</", "")
    assert "\x1b" not in said
    assert "\u202e" not in said
    assert "document.title='pwned'" in parsed.text  # shown, as text
    bars = [attributes for tag, attributes in parsed.elements if tag == "i" and attributes.get("style")]
    assert bars[1] == {"class": "tool", "style": "--at:20.000%;--long:30.000%"}
    assert {"class": "tool failed", "style": "--at:20.000%;--long:60.000%"} in bars


def test_a_run_without_length_has_a_page(tmp_path: Path) -> None:
    record = Written(tmp_path / "run.jsonl")
    record.add("stream_started", 0)
    line = timeline(record.save())
    assert (line.seconds, line.entries) == (0.0, [])
    Parsed(page(line))
    assert next(timeline_lines(line, 100))[0].startswith("clerk: the record does not have its end, 0 ms")


def test_long_texts_are_cut_in_the_page(written: Written) -> None:
    written.add("tool_call", 10, tool_call=called("c", "look", json.dumps({"q": "x" * 1_000_000})))
    written.add("tool_call_response", 10, tool_call=called("c"), response="y" * 1_000_000, is_error=False)
    said = page(timeline(written.save()))
    assert len(said) < 100_000
    assert "(1000000 characters)" in said


# -- the command -------------------------------------------------------------------------------------------------------


def test_the_command_shows_a_timeline(written: Written, capsys: pytest.CaptureFixture[str]) -> None:
    written.save()
    assert main(["replay", str(written.path), "--timeline"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("clerk: normal, 10.0 s")
    assert all(len(line) <= 100 for line in said)


def test_the_command_writes_a_page_for_its_owner_and_replaces_only_its_own(
    written: Written, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written.save()
    target = tmp_path / "page.html"
    for _ in range(2):  # again, over its own
        assert main(["replay", str(written.path), "--html", str(target)]) == 0
        assert capsys.readouterr().out == ""
        assert target.read_text("utf-8") == page(timeline(Recording(written.path)))
        assert stat.S_IMODE(target.stat().st_mode) == 0o600
    target.write_text("a letter")
    assert main(["replay", str(written.path), "--html", str(target)]) == 2
    assert "is there, and is no timeline: name another file" in capsys.readouterr().err
    assert target.read_text() == "a letter"
    assert main(["replay", str(written.path), "--html", str(written.path)]) == 2
    assert main(["replay", str(written.path), "--html", str(tmp_path / "no" / "page.html")]) == 2
    assert f"error: the page cannot be written: there is no directory {tmp_path / 'no'}" in capsys.readouterr().err
    assert sorted(each.name for each in tmp_path.iterdir()) == ["page.html", "run.jsonl"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.jsonl", "--timeline"], "cannot replay none.jsonl: "),
        (["{record}", "agent.py", "--timeline"], "a timeline is of the run that was recorded: leave out the agent"),
        (["{broken}", "--html", "page.html"], "error: {broken}, line 2: not JSON"),
        (["{strange}", "--timeline"], "line 2: unknown event type 'nonsense'"),
        (["{empty}", "--timeline"], "error: {empty} is empty, and no recorded run\n"),
        (["{letter}", "--timeline"], "error: {letter} is not a recorded run: its first line is not of type 'record'\n"),
        (
            ["{picture}", "--timeline"],
            "error: {picture} is not a recorded run: its first line is not of type 'record'\n",
        ),
        (["{older}", "--timeline"], "error: {older} was recorded in version 0 of the format, not 1\n"),
        (["{counted}", "--html", "page.html"], "line 2: total_input_tokens of token_usage is not a whole number\n"),
        (["{said}", "{agent}"], "line 1: title of the session must be text of at most 100,000,000 characters"),
    ],
)
def test_what_cannot_be_shown_is_told(
    written: Written, tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    record = written.path.read_text("utf-8").splitlines(keepends=True)
    (tmp_path / "broken").write_text(f"{record[0]}{{no\n{record[1]}", "utf-8")
    (tmp_path / "strange").write_text(record[0] + '{"type": "nonsense"}\n', "utf-8")
    (tmp_path / "empty").touch()
    (tmp_path / "letter").write_text("Dear Ada,\n")
    (tmp_path / "picture").write_bytes(b"\x89PNG\r\n\x1a\n\xff\xd8")
    (tmp_path / "older").write_text(record[0].replace('"version": 1', '"version": 0'), "utf-8")
    usage = {"type": "token_usage", "model": "m", "input_tokens": 1, "output_tokens": 1, "total_input_tokens": "x"}
    (tmp_path / "counted").write_text(record[0] + json.dumps({**usage, "total_output_tokens": 1}) + "\n", "utf-8")
    header = json.loads(record[0])
    header = json.dumps({**header, "session": {**header["session"], "title": []}})
    (tmp_path / "said").write_text("".join([f"{header}\n", *record[1:]]), "utf-8")
    model = "type('M', (), {'id': 'm', 'stream': lambda *_, **__: ()})()"
    (tmp_path / "agent").with_suffix(".py").write_text(f"from runtime import Agent\nagent = Agent('a', {model})\n")
    names = ("broken", "strange", "empty", "letter", "picture", "older", "counted", "said")
    files = {"agent": tmp_path / "agent.py", "record": written.path, **{name: tmp_path / name for name in names}}
    assert main(["replay", *(each.format(**files) for each in arguments)]) == 2
    assert message.format(**files) in capsys.readouterr().err


# -- in a browser ------------------------------------------------------------------------------------------------------

PAPER = {"light": (255, 255, 255), "dark": (0x12, 0x16, 0x1B)}
TOOL = {"light": (0x1A, 0x7F, 0x4B), "dark": (0x4C, 0xC3, 0x8A)}


@pytest.fixture
def opened(written: Written, tmp_path: Path) -> Path:
    written.save()
    target = tmp_path / "timeline.html"
    assert main(["replay", str(written.path), "--html", str(target)]) == 0
    return target


def test_a_browser_runs_nothing_of_it(opened: Path, tmp_path: Path) -> None:
    """Chromium reads the page as it is meant: what is foreign is text, and no script has run."""
    dom = browse(opened, tmp_path / "profile", "--dump-dom", "--virtual-time-budget=500")
    assert "<title>clerk: a run of 10.0 s</title>" in dom
    assert "<script" not in dom
    assert "<img" not in dom
    assert dom.count("<details") == 7


@pytest.mark.parametrize(("width", "mode"), [(900, "light"), (420, "dark")])
def test_what_it_looks_like(opened: Path, tmp_path: Path, width: int, mode: str) -> None:
    """In the colours of the reader, with the bars where their times are, and no wider than the window."""
    options = ["--force-dark-mode", "--blink-settings=preferredColorScheme=0"] if mode == "dark" else []
    seen = picture(opened, tmp_path, width, 700, *options)
    assert seen.width == width
    assert {seen.at(1, 1), seen.at(width - 2, 690), seen.at(width // 2, 2)} == {PAPER[mode]}
    # The first bar of a tool: from 2 to 5 of 10 seconds. In the wide window its track stands right of the labels.
    bar = _bar(seen, TOOL[mode])
    left, right = (16 + 22 * 16 + 80 + 26, width - 17) if width > 736 else (16, width - 17)
    track = right - left
    assert bar[0] == pytest.approx(left + 0.2 * track, abs=14)
    assert bar[1] == pytest.approx(left + 0.5 * track, abs=14)


def _bar(seen: Picture, colour: tuple[int, int, int]) -> tuple[int, int]:
    """From where to where the first thing goes that has this colour and is as long as a bar."""
    wanted = bytes(colour)
    for row in seen.rows:
        places = [at // 3 for at in range(0, len(row), 3) if row[at : at + 3] == wanted]
        if len(places) > 60 and places[-1] - places[0] < len(places) + 4:
            return places[0], places[-1]
    raise AssertionError(f"no bar has the colour {colour}")
