"""The sessions that the command keeps, and the questions that wait in them: each step is a process of its own."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runtime import Message, Session
from runtime.cli import _place
from runtime.stores import SQLiteStore
from support.patience import without_patience
from support.waiting import eventually

ROOT = Path(__file__).resolve().parents[3]
LONG = 60.0

AGENT = """
import os
import re
import pathlib
import time

from runtime import Agent, TextDelta, ToolCallDelta, ToolContext, tool

HERE = pathlib.Path(__file__).parent

def burn(what: str) -> str:
    "Burn it."
    with (HERE / "burnt").open("a") as file:
        file.write(what + "\\n")
    return f"burnt {what}"

def order(ctx: ToolContext) -> str:
    "Order a pizza."
    form = {
        "type": "object",
        "properties": {"size": {"enum": ["small", "large"]}, "people": {"type": "integer", "maximum": 9}},
        "required": ["size"],
    }
    answer = ctx.elicit("Which size?", form)
    return f"{answer.action} {dict(answer.content)}"

class Clerk:
    id = "clerk"
    def stream(self, messages, tools, *, cancel):
        users = [message.content for message in messages if message.role == "user"]
        last = messages[-1]
        if last.role == "tool":
            yield TextDelta(f"It said: {last.content}")
        elif last.content.startswith("burn "):
            yield ToolCallDelta(0, f"call-{len(messages)}", "burn", '{"what": "%s"}' % last.content[5:])
        elif last.content in ("order", "ask"):
            yield ToolCallDelta(0, f"call-{len(messages)}", last.content, "{}")
        elif last.content == "think" and not (HERE / "thinking").exists():
            yield TextDelta("Let me ")
            (HERE / "thinking").touch()
            time.sleep(60)
        else:
            yield TextDelta(f"That was number {len(users)}: {last.content}")

agent = Agent(
    "clerk",
    Clerk(),
    tools=[tool(burn), tool(read_only=True, resumable=True)(order), tool(read_only=True, name="ask")(order)],
)
short = Agent("clerk", Clerk(), tools=[tool(read_only=True)(burn)], max_iterations=1)
"""

Lockgate = Callable[..., subprocess.CompletedProcess[str]]


def environment(folder: Path, **more: str) -> dict[str, str]:
    path = os.pathsep.join((str(ROOT), str(ROOT / "tests")))
    return {**os.environ, "PYTHONPATH": path, "XDG_DATA_HOME": str(folder / "data"), "PYTHONUTF8": "1", **more}


def command(*args: str) -> list[str]:
    return [sys.executable, "-m", "runtime.cli", *args]


@pytest.fixture
def lockgate(tmp_path: Path) -> Lockgate:
    """Run the command without a terminal, in a folder with an agent file, for a user who has no sessions yet."""
    (tmp_path / "clerk.py").write_text(AGENT)

    def run(*args: str, status: int = 0, stdin: str = "", **more: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            command(*args),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=LONG,
            cwd=tmp_path,
            env=environment(tmp_path, **more),
        )
        assert done.returncode == status, f"status {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr, done.stderr
        done.stderr = without_patience(done.stderr)
        return done

    return run


def objects(text: str) -> list[dict[str, Any]]:
    """The lines of JSON."""
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """The file of the user's sessions."""
    return tmp_path / "data" / "lockgate" / "sessions.db"


# -- where they are ----------------------------------------------------------------------------------------------------


def test_a_run_is_kept_and_continued(lockgate: Lockgate, kept: Path) -> None:
    assert "no sessions yet" in lockgate("sessions").stderr
    assert not kept.exists()
    done = lockgate("run", "clerk.py", "Hello")
    assert done.stdout == "clerk (clerk)\n> Hello\n\nThat was number 1: Hello\n"
    assert done.stderr == ""  # nothing more is said where nobody reads it
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert stat.S_IMODE(kept.parent.stat().st_mode) == 0o700
    assert "That was number 2: more" in lockgate("run", "clerk.py", "-c", "more").stdout
    [session] = objects(lockgate("sessions", "--json").stdout)
    assert (session["title"], session["status"], session["messages"]) == ("Hello", "idle", 4)
    assert "That was number 1: Another" in lockgate("run", "clerk.py", "Another").stdout
    by_name = lockgate("run", "clerk.py", "again", "--session", session["id"][:10])
    assert "That was number 3: again" in by_name.stdout
    lines = lockgate("sessions").stdout.splitlines()
    assert lines[0].split()[0] == session["id"][:8]
    assert [line.split()[-1] for line in lines] == ["Hello", "Another"]
    assert lockgate("sessions", "--limit", "1").stdout.splitlines() == lines[:1]
    assert lockgate("sessions", "search", "ANOTHER", "number").stdout.splitlines() == lines[1:]
    assert "no such session" in lockgate("sessions", "search", "nowhere").stderr


def test_no_store_keeps_nothing(lockgate: Lockgate, kept: Path) -> None:
    lockgate("run", "clerk.py", "Hello", "--no-store")
    assert not kept.exists()
    assert "--park needs one kept" in lockgate("run", "clerk.py", "x", "--no-store", "--park", status=2).stderr


def test_the_store_may_be_named(lockgate: Lockgate, kept: Path, tmp_path: Path, postgres: str) -> None:
    """A file, by an option or a variable; or a database, whose address need not be on the command line."""
    lockgate("run", "clerk.py", "in a file", "--store", "mine.db")
    assert "in a file" in lockgate("sessions", "list", "--store", "mine.db").stdout
    assert "in a file" in lockgate("sessions", "--store", "mine.db").stdout
    lockgate("run", "clerk.py", "in another", LOCKGATE_STORE="other.db")
    assert "in another" in lockgate("sessions", LOCKGATE_STORE="other.db").stdout
    host, user, database = (part.partition("=")[2] for part in postgres.split())
    url = f"postgresql:///{database}?host={host}&user={user}"
    lockgate("run", "clerk.py", "burn toast", "--park", status=3, LOCKGATE_STORE=url)
    [request] = objects(lockgate("waiting", "--json", LOCKGATE_STORE=url).stdout)
    lockgate("answer", request["id"][:6], "yes", LOCKGATE_STORE=url)
    assert "It said: burnt toast" in lockgate("run", "clerk.py", "--continue", LOCKGATE_STORE=url).stdout
    assert not kept.exists()


@pytest.mark.parametrize("given", ["", "relative", "/somewhere/else"])
def test_the_place_is_that_of_the_platform(monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    """As platformdirs finds it, which the command does not need for that."""
    from platformdirs.macos import MacOS
    from platformdirs.unix import Unix

    home = Path.home()
    monkeypatch.setenv("XDG_DATA_HOME", given)
    monkeypatch.setattr(sys, "platform", "linux")
    relative = home / ".local/share/lockgate"  # of no use, says the specification; platformdirs takes it
    there = relative if given == "relative" else Path(Unix("lockgate", appauthor=False).user_data_dir)
    assert _place.default_path() == there / "sessions.db"
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", given)
    there = Path(given) if given else home / "AppData" / "Local"
    assert _place.default_path() == there / "lockgate" / "sessions.db"
    monkeypatch.setenv("XDG_DATA_HOME", "")
    monkeypatch.setattr(sys, "platform", "darwin")
    assert _place.default_path() == Path(MacOS("lockgate", appauthor=False).user_data_dir) / "sessions.db"


def test_a_store_that_cannot_be_used_is_told_with_the_way_out(lockgate: Lockgate, tmp_path: Path) -> None:
    (tmp_path / "diary.txt").write_text("Dear diary, nothing happened. " * 50)
    for name in ("diary.txt", ".", "nowhere/x.db"):
        told = lockgate("run", "clerk.py", "Hello", "--store", name, status=2).stderr
        assert told.startswith("error: "), told
        assert "--store FILE keeps sessions elsewhere, --no-store keeps none" in told
        assert told.count("\n") == 1
    assert "diary" in (tmp_path / "diary.txt").read_text()
    assert "no file missing.db" in lockgate("sessions", "--store", "missing.db", status=2).stderr
    assert not (tmp_path / "missing.db").exists()
    assert "no sessions yet" in lockgate("run", "clerk.py", "x", "-c", "--store", "missing.db", status=2).stderr
    SQLiteStore(tmp_path / "empty.db").close()
    assert "no session to continue" in lockgate("run", "clerk.py", "x", "-c", "--store", "empty.db", status=2).stderr
    unreachable = lockgate("sessions", "--store", "postgresql://nobody:secret@localhost:1/none", status=2).stderr
    assert "cannot be reached" in unreachable
    assert "secret" not in unreachable


# -- one session -------------------------------------------------------------------------------------------------------


def test_a_session_is_shown_branched_exported_imported_and_deleted(lockgate: Lockgate, tmp_path: Path) -> None:
    lockgate("run", "clerk.py", "burn toast", "--yes")
    lockgate("run", "clerk.py", "Hello", "--continue")
    [session] = objects(lockgate("sessions", "--json").stdout)
    id = session["id"]
    shown = lockgate("sessions", "show", id[:8]).stdout
    assert '\n[0] > burn toast\n\n-> [clerk] burn(what="toast")\n<- burn: burnt toast\n\n' in shown
    assert "[3] [clerk] It said: burnt toast\n\n[4] > Hello\n" in shown
    branch = lockgate("sessions", "branch", id, "--at", "4").stdout.strip()
    assert lockgate("sessions", "show", branch).stdout.count("[") == 2 + 2  # messages with their numbers, agents
    assert "before a message of the user" in lockgate("sessions", "branch", id, "--at", "1", status=2).stderr
    lockgate("sessions", "export", id, "out.json")
    assert stat.S_IMODE((tmp_path / "out.json").stat().st_mode) == 0o600
    assert json.loads(lockgate("sessions", "export", id).stdout) == json.loads((tmp_path / "out.json").read_text())
    assert "is there already" in lockgate("sessions", "export", id, "out.json", status=2).stderr
    nowhere = lockgate("sessions", "export", id, "none/out.json", status=2).stderr
    assert nowhere == "error: the session cannot be written: there is no directory none; make it first\n"
    assert "there is no terminal to ask on" in lockgate("sessions", "delete", id, status=2).stderr
    assert f"has a session {id} already" in lockgate("sessions", "import", "out.json", status=2).stderr
    lockgate("sessions", "delete", id, branch[:8], "--yes")
    assert "There are no sessions." in lockgate("sessions").stderr
    assert lockgate("sessions", "import", "-", stdin=(tmp_path / "out.json").read_text()).stdout == f"{id}\n"
    assert lockgate("sessions", "show", id).stdout != ""


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[" * 100_000, "cannot import x.json: "),
        ('{"type": "else"}', "not a session that export wrote"),
        ("no JSON", "cannot import x.json: Expecting value"),
        ("\xff", "cannot import x.json: "),
    ],
)
def test_a_file_that_is_no_session_is_refused(lockgate: Lockgate, tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "x.json").write_text(text, encoding="latin-1")
    assert told in lockgate("sessions", "import", "x.json", status=2).stderr


def test_ids_that_mean_none_or_several_are_told(lockgate: Lockgate, tmp_path: Path) -> None:
    with SQLiteStore(tmp_path / "s.db") as store:
        for id in ("order-1", "order-2", "order-21"):
            store.open(Session([Message("user", id)], id=id)).release("idle")
    at = ("--store", "s.db")
    assert "3 sessions begin with 'order'" in lockgate("sessions", "show", "order", *at, status=2).stderr
    assert (
        "[0] > order-2\n" in lockgate("sessions", "show", "order-2", *at).stdout
    )  # the whole id, which begins another
    assert "[0] > order-21\n" in lockgate("sessions", "show", "order-21", *at).stdout
    assert "has no session nothing" in lockgate("run", "clerk.py", "x", "--session", "nothing", *at, status=2).stderr
    assert "no question abc waits" in lockgate("answer", "abc", "yes", *at, status=1).stderr


def test_what_is_foreign_is_made_printable(lockgate: Lockgate, tmp_path: Path) -> None:
    nasty = "a\x1b]0;title\x07b\u202e\nc"
    with SQLiteStore(tmp_path / "s.db") as store:
        session = Session(
            [Message("user", nasty), Message("assistant", nasty, agent_name=nasty)], id=nasty, title=nasty
        )
        store.open(session).release("idle", nasty)
    at = ("--store", "s.db")
    for done in (
        lockgate("sessions", *at),
        lockgate("sessions", "show", nasty, *at),
        lockgate("sessions", "--json", *at),
    ):
        assert not set("\x1b\x07\u202e") & set(done.stdout + done.stderr)
    assert len(lockgate("sessions", *at).stdout.splitlines()) == 1


def test_a_session_that_runs_elsewhere_is_busy_and_goes_on_once_that_is_killed(
    lockgate: Lockgate, tmp_path: Path
) -> None:
    process = subprocess.Popen(
        command("run", "clerk.py", "think"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        cwd=tmp_path,
        env=environment(tmp_path),
    )
    try:
        assert eventually(lambda: (tmp_path / "thinking").exists(), LONG)
        [session] = objects(lockgate("sessions", "--json").stdout)
        assert session["status"] == "running"
        told = lockgate("run", "clerk.py", "x", "--continue", status=2).stderr
        assert f"process {process.pid} on" in told
        assert f"process {process.pid} on" in lockgate("sessions", "delete", session["id"], "--yes", status=2).stderr
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    [session] = objects(lockgate("sessions", "--json").stdout)
    assert session["status"] == "interrupted"
    assert "That was number 1: think" in lockgate("run", "clerk.py", "--continue").stdout  # without a prompt
    told = lockgate("run", "clerk.py", "--continue", status=2).stderr
    assert "no prompt" in told  # there is nothing left to do


# -- questions that wait -----------------------------------------------------------------------------------------------


def park(lockgate: Lockgate, prompt: str, agent: str = "clerk.py") -> str:
    """Let a run be parked; the id of what it waits for."""
    done = lockgate("run", agent, prompt, "--park", status=3)
    [request] = objects(lockgate("waiting", "--json").stdout)
    assert f"waits for: lockgate answer {request['id'][:8]}" in done.stderr
    assert f"--session {request['root_id'][:8]}" in done.stderr
    return str(request["id"])


def test_a_call_is_approved_from_another_process(lockgate: Lockgate, tmp_path: Path) -> None:
    id = park(lockgate, "burn toast")
    assert re.search(rf"^{id[:8]}  \d{{4}}-\d\d-\d\d \d\d:\d\d  session ", lockgate("waiting").stdout, re.MULTILINE)
    assert '  [clerk] run burn(what="toast")?' in lockgate("waiting").stdout
    assert "(1 to answer)" in lockgate("sessions").stdout
    assert "no result yet, asked" in lockgate("sessions", "show", lockgate("sessions").stdout.split()[0]).stdout
    assert "no answer was given" in lockgate("answer", id, status=2).stderr
    refused = lockgate("answer", id, "perhaps", status=2)
    assert "must be answered with approve or reject, not 'perhaps'" in refused.stderr
    assert not (tmp_path / "burnt").exists()
    assert f"answered {id[:8]}" in lockgate("answer", id[:8], "--scope", "tool", "approve").stderr
    assert "no question" in lockgate("answer", id, "reject", status=1).stderr
    assert "Nothing waits." in lockgate("waiting").stderr
    assert "It said: burnt toast" in lockgate("run", "clerk.py", "--continue").stdout
    assert (
        "It said: burnt bread" in lockgate("run", "clerk.py", "burn bread", "--continue").stdout
    )  # the tool, from now on
    assert (tmp_path / "burnt").read_text() == "toast\nbread\n"


def test_a_call_is_rejected_with_a_reason(lockgate: Lockgate, tmp_path: Path) -> None:
    id = park(lockgate, "burn toast")
    assert "--scope goes with an approval" in lockgate("answer", id, "reject", "--scope", "tool", status=2).stderr
    lockgate("answer", id, "reject", "not", "on", "Sundays")
    assert "not on Sundays" in lockgate("run", "clerk.py", "--continue").stdout
    assert not (tmp_path / "burnt").exists()


@pytest.mark.parametrize("answer", [["size=large", "people=2"], ['{"size": "large", "people": 2}']])
def test_a_form_is_answered_by_its_fields_or_in_json(lockgate: Lockgate, answer: list[str]) -> None:
    id = park(lockgate, "order")
    shown = lockgate("waiting").stdout
    assert "[clerk] order asks: Which size?\n  size* - small / large\n  people - a whole number, 9 or less\n" in shown
    for bad, told in (
        (["colour=red"], "'colour' is no field of it; its fields are: size, people"),
        (["size=huge"], "size must be one of small, large, not 'huge'"),
        (["people=2"], "size is missing"),
        (['{"size": "large", "people": 20}'], "people must be 9 or less, not 20"),
        (["{broken"], "it is no JSON"),
    ):
        refused = lockgate("answer", id, *bad, status=2)
        assert f"the answer does not fit: {told}" in refused.stderr or told in refused.stderr, refused.stderr
        assert "size* - small / large" in refused.stdout
    lockgate("answer", id, *answer)
    done = lockgate("run", "clerk.py", "--continue")
    assert "It said: accept {'size': 'large', 'people': 2}" in done.stdout


def test_answers_that_are_on_the_command_line_are_given_before_a_run_is_parked(lockgate: Lockgate) -> None:
    done = lockgate("run", "clerk.py", "order", "--park", "--answer", "size=small")
    assert "It said: accept {'size': 'small'}" in done.stdout
    done = lockgate("run", "clerk.py", "burn toast", "--park", "--yes")
    assert "It said: burnt toast" in done.stdout
    done = lockgate("run", "clerk.py", "order", "--park", "--answer", "size=huge", status=3)
    assert "it waits for an answer: --answer does not fit" in done.stdout


def test_a_question_of_a_tool_that_cannot_be_called_again_does_not_wait(lockgate: Lockgate) -> None:
    done = lockgate("run", "clerk.py", "ask", "--park")
    assert "declined: ask cannot wait, as it is not @tool(resumable=True)" in done.stdout
    assert "It said: decline {}" in done.stdout


def test_more_turns_are_given_from_another_process(lockgate: Lockgate) -> None:
    id = park(lockgate, "burn toast", "clerk.py:short")
    assert "It has reached its turn limit of 1" in lockgate("waiting").stdout
    lockgate("answer", id, "3")
    assert "It said: burnt toast" in lockgate("run", "clerk.py:short", "--continue").stdout


def test_the_first_of_many_answers_counts(lockgate: Lockgate, tmp_path: Path) -> None:
    id = park(lockgate, "burn toast")
    racing = [
        subprocess.Popen(
            command("answer", id, word), cwd=tmp_path, env=environment(tmp_path), stderr=subprocess.DEVNULL
        )
        for word in ("approve", "reject", "approve", "reject")
    ]
    assert sorted(process.wait(LONG) for process in racing) == [0, 1, 1, 1]
