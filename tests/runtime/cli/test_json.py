"""`lockgate run --json`: the events of a run for another program."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from runtime.events import Event
from support.patience import without_patience

ROOT = Path(__file__).resolve().parents[3]
LONG = 30.0

AGENT = r"""
import subprocess
import sys
from runtime import Agent, ToolContext, tool
from support.scripted import Scripted, call, say

print("printed by the agent's module")

@tool(read_only=True)
def shout(ctx: ToolContext) -> str:
    ctx.progress("on its way", float("nan"), 2)
    print("printed by a tool")
    subprocess.run([sys.executable, "-c", "print('printed by a program')"])
    return "shouted \x1b[2J"

@tool
def bake(what: str) -> str:
    return f"baked {what}"

@tool(read_only=True)
def ask(ctx: ToolContext) -> str:
    form = {"type": "object", "properties": {"people": {"type": "integer"}}, "required": ["people"]}
    answer = ctx.elicit("How many?", form)
    return f"{answer.action} {dict(answer.content)}"

agent = Agent("cook", Scripted([call("shout")], say("Done.")), tools=[shout])
baking = Agent("cook", Scripted([call("bake", '{"what": "bread"}')], say("Done.")), tools=[bake])
asking = Agent("cook", Scripted([call("ask")], say("Done.")), tools=[ask])
broken = Agent("cook", Scripted([RuntimeError("the wire is cut")]))
chatty = Agent("cook", Scripted(say(*(f"word {n}" for n in range(20_000)))))
"""

Run = Callable[..., "tuple[list[Event], subprocess.CompletedProcess[str]]"]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run the command with ``--json``; the events, read back from their lines, and the process."""
    (tmp_path / "cook.py").write_text(AGENT)
    path = os.pathsep.join((str(ROOT), str(ROOT / "tests")))
    environment = {**os.environ, "PYTHONPATH": path, "XDG_DATA_HOME": str(tmp_path / "data")}

    def start(agent: str, *args: str, status: int = 0) -> tuple[list[Event], subprocess.CompletedProcess[str]]:
        done = subprocess.run(
            [sys.executable, "-m", "runtime.cli", "run", f"cook.py:{agent}", "--json", *args],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=LONG,
            cwd=tmp_path,
            env=environment,
        )
        assert done.returncode == status, done.stderr
        assert "Traceback" not in done.stderr
        done.stderr = without_patience(done.stderr)
        assert done.stdout.isascii()
        return [Event.from_dict(json.loads(line)) for line in done.stdout.splitlines()], done

    return start


def of(events: list[Event], kind: str) -> list[dict[str, object]]:
    return [event.to_dict() for event in events if event.type == kind]


def test_each_line_is_an_event_and_nothing_else_is_printed(run: Run) -> None:
    events, done = run("agent", "Shout")
    assert [events[0].type, events[-1].type] == ["stream_started", "stream_stopped"]
    assert of(events, "user_message")[0]["message"] == "Shout"
    assert of(events, "tool_call_response")[0]["response"] == "shouted \x1b[2J"
    assert of(events, "agent_choice")[0]["content"] == "Done."
    assert (of(events, "tool_call_output")[0]["progress"], "NaN" in done.stdout) == (None, False)
    for said in ("printed by the agent's module\n", "printed by a tool\n", "printed by a program\n"):
        assert said in done.stderr


def test_the_status_is_that_of_the_run_and_errors_go_to_standard_error(run: Run) -> None:
    events, done = run("broken", "Go", status=1)
    assert of(events, "error")[0]["error"] == "scripted: RuntimeError: the wire is cut"
    assert of(events, "stream_stopped")[0]["reason"] == "error"
    assert done.stderr.endswith("\nerror: model_error: scripted: RuntimeError: the wire is cut\n")
    events, done = run("nobody", "Go", status=2)
    assert events == []
    assert "error: cook.py has no 'nobody'" in done.stderr
    events, done = run("baking", status=2)
    assert "error: no prompt" in done.stderr


def test_questions_are_answered_from_the_command_line_or_declined(run: Run) -> None:
    events, _ = run("baking", "Bake", "--yes")
    assert of(events, "tool_call_response")[0]["response"] == "baked bread"
    events, _ = run("baking", "Bake")
    assert of(events, "tool_call_confirmation")[0]["arguments"] == {"what": "bread"}
    assert of(events, "tool_call_response")[0]["is_error"] is True
    events, _ = run("asking", "Ask", "--answer", "people=4")
    assert of(events, "elicitation_request")[0]["message"] == "How many?"
    assert of(events, "tool_call_response")[0]["response"] == "accept {'people': 4}"
    events, done = run("asking", "Ask")
    assert of(events, "tool_call_response")[0]["response"] == "decline {}"
    assert "--answer people=... would answer it" in done.stderr


def test_it_is_parked_as_any_run(run: Run) -> None:
    events, done = run("baking", "Bake", "--park", status=3)
    assert of(events, "stream_stopped")[0]["reason"] == "waiting"
    assert "waits for: lockgate answer " in done.stderr


def test_a_reader_who_has_enough_ends_it(tmp_path: Path) -> None:
    (tmp_path / "cook.py").write_text(AGENT)
    path = os.pathsep.join((str(ROOT), str(ROOT / "tests")))
    process = subprocess.Popen(
        [sys.executable, "-m", "runtime.cli", "run", "cook.py:chatty", "Talk", "--json", "--no-store"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(LONG) == 141
    assert without_patience(process.stderr.read().decode()) == "printed by the agent's module\n"
    process.stderr.close()
