"""`lockgate eval`: recorded runs again, with the agent as it is now; the calls, the text and the end are compared."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runtime import Recording
from runtime.cli._command import main
from runtime.recording._compare import Trajectory, compare, trajectory
from support.waiting import eventually

ROOT = Path(__file__).resolve().parents[3]

AGENT = """
import pathlib
from runtime import Agent, HookResult, TextDelta, ToolCallDelta, ToolContext, tool

class Model:
    id = "clerk"
    def stream(self, messages, tools, *, cancel):
        pathlib.Path(__file__).with_name("asked").touch()
        STALL
        said = [message.content for message in messages if message.role == "tool"]
        if not said:
            yield ToolCallDelta(0, "a", "stock", '{"item": ITEM}')
            yield ToolCallDelta(1, "b", "price", '{"item":  "lamp"}')
        else:
            yield TextDelta("There are " + " for ".join(said) + "END")

@tool
def stock(item: str) -> str:
    "How many there are."
    with pathlib.Path(__file__).with_name("called").open("a") as file:
        file.write(item + "\\\\n")
    return STOCK

@tool(read_only=True)
def price(item: str) -> str:
    "What it costs."
    return "5 dollars"

agent = Agent("clerk", Model(), INSTRUCTIONS, tools=[stock, price])
"""

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes an agent file; what differs from the recorded one is given by name."""
    count = iter(range(100))

    def write(**changed: str) -> Path:
        text = AGENT
        said = {"ITEM": '"lamp"', "STOCK": '"3"', "END": ".", "INSTRUCTIONS": '"Be short."', "STALL": "", **changed}
        for name, value in said.items():
            text = text.replace(name, value)
        path = tmp_path / f"agent{next(count)}.py"
        path.write_text(text.replace("\\\\n", "\\n"), "utf-8")
        return path

    return write


@pytest.fixture
def records(write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """A directory with one record."""
    directory = tmp_path / "evals"
    directory.mkdir()
    assert main(["run", str(write()), "How many lamps?", "--yes", "--record", str(directory / "lamps.jsonl")]) == 0
    capsys.readouterr()
    (tmp_path / "called").unlink()
    (tmp_path / "asked").unlink()
    return directory


def test_an_agent_that_does_the_same_passes(
    records: Path, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", str(records), str(write())]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].split() == ["record", "tools", "text", "time"]
    assert said[1].split()[:3] == ["lamps.jsonl", "1.00", "1.00"]
    assert said[1].endswith("  passed")
    assert said[2:] == ["1 run: 1 passed, 0 failed"]
    assert (tmp_path / "asked").exists()  # the model that it has
    assert not (tmp_path / "called").exists()  # but not its tools


def test_another_call_fails_and_is_shown(records: Path, write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", str(records), str(write(ITEM='"table"'))]) == 1
    said = capsys.readouterr().out
    assert "lamps.jsonl   0.50 " in said
    assert "    tools 0.50, and 1 is needed\n" in said
    assert '    -stock({"item": "lamp"})\n    +stock({"item": "table"})\n     price({"item": "lamp"})\n' in said
    assert said.endswith("1 run: 0 passed, 1 failed\n")


def test_another_text_fails_below_its_threshold(
    records: Path, write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    agent = str(write(END=" in the shop. Would you like to have some of them?"))
    assert main(["eval", str(records), agent]) == 1
    assert "    text 0.52, and 0.8 is needed\n" in capsys.readouterr().out
    assert main(["eval", str(records), agent, "--min-text", "0.5"]) == 0


def test_the_tools_may_be_live(records: Path, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A tool that is not read only is called with --yes; what it returns now is what the text is about."""
    changed = str(write(STOCK='"7"'))
    assert main(["eval", str(records), changed, "--live-tools", "--yes", "--min-text", "1"]) == 1
    assert (tmp_path / "called").read_text() == "lamp\n"
    assert "text 0.83, and 1 is needed" in capsys.readouterr().out
    (tmp_path / "called").unlink()
    assert main(["eval", str(records), changed, "--live-tools", "--min-text", "0.99"]) == 1
    assert not (tmp_path / "called").exists()  # nobody has approved it


def test_the_model_may_be_that_of_the_record(records: Path, write: Write, tmp_path: Path) -> None:
    """Then a change of the agent shows that leads to other requests, and no model is asked."""
    assert main(["eval", str(records), str(write(END="!!!")), "--recorded-model", "--min-text", "1"]) == 0
    assert not (tmp_path / "asked").exists()


def test_what_the_model_of_the_record_was_not_asked_is_told(
    records: Path, write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", str(records), str(write(INSTRUCTIONS='"Be long."')), "--recorded-model"]) == 1
    said = capsys.readouterr().out
    assert "ended as error, and not as normal: " in said
    assert "request 1, of agent 'clerk', is not that of the record" in said


def test_the_results_as_json(records: Path, write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", str(records), str(write(ITEM='"table"')), "--json"]) == 1
    said = json.loads(capsys.readouterr().out)
    assert (said["passed"], said["failed"]) == (0, 1)
    (run,) = said["runs"]
    assert (run["record"], run["passed"], run["tools"]) == ("lamps.jsonl", False, 0.5)
    assert (run["recorded_reason"], run["reason"]) == ("normal", "normal")
    assert run["problems"][0] == "tools 0.50, and 1 is needed"
    assert '+stock({"item": "table"})' in run["difference"]


def test_new_records_are_kept(records: Path, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (records / "deeper").mkdir()
    (records / "lamps.jsonl").rename(records / "deeper" / "lamps.jsonl")
    kept = tmp_path / "kept"
    assert main(["eval", str(records), str(write()), "--save", str(kept)]) == 0
    assert trajectory(Recording(kept / "deeper" / "lamps.jsonl")).text == "There are 3 for 5 dollars."
    capsys.readouterr()
    before = (records / "deeper" / "lamps.jsonl").read_bytes()
    assert main(["eval", str(records), str(write()), "--save", str(records)]) == 2
    said = capsys.readouterr()
    assert "is the record itself: name another directory for --save" in said.err
    assert said.out == ""  # it is found out before the first run
    assert (records / "deeper" / "lamps.jsonl").read_bytes() == before


def test_a_run_that_takes_too_long(records: Path, write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    agent = str(write(STALL="cancel.done.recv(timeout=30)"))
    assert main(["eval", str(records), agent, "--timeout", "0.2"]) == 1
    assert "ended as budget_exceeded, and not as normal" in capsys.readouterr().out


def test_one_record_may_be_named(records: Path, write: Write) -> None:
    assert main(["eval", str(records / "lamps.jsonl"), str(write())]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{tmp}/none", "agent.py"], "there is no directory {tmp}/none; name one with records"),
        (["{tmp}/empty", "agent.py"], "{tmp}/empty has no record: write one with"),
        (["{records}", "none.py"], "there is no file none.py"),
        (["{tmp}/broken", "agent.py"], "{tmp}/broken/bad.jsonl is not a recorded run: "),
        (["{tmp}/cut", "agent.py"], "cannot evaluate {tmp}/cut/cut.jsonl: the record does not have the end of its run"),
        (["{tmp}/silent", "agent.py"], "cannot evaluate {tmp}/silent/no.jsonl: no model was asked in it"),
        (["{tmp}/odd", "{agent}"], "cannot evaluate {tmp}/odd/odd.jsonl: a tool needs a name"),
        (["{records}", "{agent}", "--save", "{agent}"], "cannot keep records in {agent}: "),
    ],
)
def test_bad_input_is_told_before_anything_runs(
    records: Path,
    write: Write,
    tmp_path: Path,
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines = (records / "lamps.jsonl").read_text("utf-8").splitlines(keepends=True)
    silent = [lines[0], *(line for line in lines if '"stream_' in line)]
    for name, text in {
        "empty/note.txt": "",
        "broken/bad.jsonl": "hello\n",
        "cut/cut.jsonl": "".join(lines[:-1]),
        "silent/no.jsonl": "".join(silent),
        "odd/odd.jsonl": "".join(lines).replace('"name": "price", "d', '"name": "", "d'),
    }.items():
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(text, "utf-8")
    names = {"tmp": tmp_path, "records": records, "agent": write()}
    assert main(["eval", *(each.format(**names) for each in arguments)]) == 2
    assert f"error: {message.format(**names)}" in capsys.readouterr().err
    assert not (tmp_path / "asked").exists()


@pytest.mark.parametrize("arguments", [["--min-text", "2"], ["--min-tools", "much"], ["--timeout", "0"]])
def test_bad_numbers(records: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["eval", str(records), "agent.py", *arguments])
    assert stopped.value.code == 2
    assert "a score must be a number from 0 to 1" in (said := capsys.readouterr().err) or "seconds, more than 0" in said


def test_a_stranger_s_record_reaches_the_terminal_as_text(
    records: Path, write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    path = records / "lamps.jsonl"
    evil = '{\\"item\\": \\"\\u001b[2J\\u202e\\"}'
    path.write_text(path.read_text("utf-8").replace('{\\"item\\": \\"lamp\\"}', evil))
    path.rename(records / "\x1b[31mred.jsonl")
    assert main(["eval", str(records), str(write())]) == 1
    said = capsys.readouterr()
    assert "\x1b" not in said.out + said.err
    assert "\u202e" not in said.out + said.err
    assert "\\x1b[31mred.jsonl" in said.out


@pytest.mark.skipif(not hasattr(signal, "SIGINT"), reason="the system has no signals")
def test_ctrl_c_ends_the_evaluation(records: Path, write: Write, tmp_path: Path) -> None:
    agent = write(STALL="cancel.done.recv(timeout=30)")
    with subprocess.Popen(
        [sys.executable, "-m", "runtime.cli", "eval", str(records), str(agent)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as process:
        assert eventually((tmp_path / "asked").exists, 20)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "stopped: interrupted by the user" in said


# -- the scores --------------------------------------------------------------------------------------------------------


def scored(recorded: Any, now: Any, texts: tuple[str, str] = ("", "")) -> tuple[float, float]:
    found = compare(Trajectory(tuple(recorded), texts[0], "normal"), Trajectory(tuple(now), texts[1], "normal"))
    return found.tools, found.text


@pytest.mark.parametrize(
    ("recorded", "now", "tools"),
    [
        ("", "", 1.0),
        ("ab", "ab", 1.0),
        ("", "a", 0.0),
        ("a", "", 0.0),
        ("ab", "ba", 0.5),
        ("abc", "abxc", 6 / 7),
        ("aa", "a", 2 / 3),
    ],
)
def test_the_score_of_tools(recorded: str, now: str, tools: float) -> None:
    assert scored(recorded, now)[0] == pytest.approx(tools)


@pytest.mark.parametrize(
    ("recorded", "now", "text"),
    [
        ("", "", 1.0),
        ("The cat sat.", "the CAT sat!", 1.0),
        ("the cat", "the dog", 0.5),
        ("the the cat", "the cat", 0.8),
        ("yes", "", 0.0),
        ("?", "!", 0.0),
        ("明日は晴れ", "明日は雨", 2 * 3 / 9),
        ("한국", "한글", 0.5),
    ],
)
def test_the_score_of_a_text(recorded: str, now: str, text: float) -> None:
    assert scored("", "", (recorded, now))[1] == pytest.approx(text)


def test_thousands_of_calls_are_compared_in_a_moment() -> None:
    calls = [f"call({number % 7})" for number in range(50_000)]
    tools, _ = scored(calls, calls[1:])
    assert 0.39 < tools < 0.41  # of the first 20,000
    found = compare(Trajectory(tuple(calls), "", ""), Trajectory(tuple(reversed(calls)), "", ""))
    assert len(found.difference()) <= 41
