"""The command ``lockgate``."""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TextIO

from channels import ChannelClosed

from .. import events
from .._errors import MissingExtra
from ..agent._agent import Agent, Team
from ..permissions import Permissions
from ..recording._recording import Recording
from ..recording._timeline import timeline
from ..runtime import Runtime
from ..session._session import Session
from ..stores._store import Store
from ..stream._event_stream import EventStream
from . import _serve, _sessions, _waiting
from ._ask import Questions, question_of
from ._chat import chat, is_installed
from ._eval import EPILOG, add_arguments, evaluate
from ._files import why_unwritten
from ._interrupts import Interrupts
from ._json import JsonLines, standard_output
from ._load import CannotLoad, load, replayed
from ._place import opened
from ._sessions import add_store, last_id, session_id, short
from ._show import Screen
from ._steps import cause_of, close_stream, is_over, load_model, problem_of, show_traceback
from ._terminal import CannotWrite, Guarded, Terminal, open_standard_streams

OK: Final = 0
FAILED: Final = 1
UNUSABLE: Final = 2
WAITING: Final = 3

_PARKING: Final = 0.1  # seconds until the next look whether a run can be parked

_EPILOG = "`lockgate COMMAND --help` explains a command."

_RUN_EPILOG = """\
AGENT is a Python file that defines `agent`, an Agent or a Team; file.py:NAME, module and module:NAME
work as well.

On a terminal you are asked whether tools may run that do more than read, and what the tools want to know; an
--answer is what Enter takes. Without one, calls are approved by --yes, or rejected, and questions answered from
--answer, or declined. Ctrl-C ends the run in good order, twice ends it at once.

SIGUSR1 (kill -USR1 PID) prints what the run waits for, with the stacks of its calls, to standard error.

The session is kept: `lockgate sessions` lists it, --continue and --session go on with it. With --park, what needs
an answer that is not there waits for `lockgate answer`.

Exit status: 0 when the run ended normally, 1 when it did not (a line with `error:` names the code), 2 when
it could not begin, 3 when it waits for an answer, 130 when it was interrupted, 129 and 143 when SIGHUP or
SIGTERM ended it, 141 when nobody reads its output any more.

Example:
  lockgate run examples/booking.py "Book a table at Luigi's" --yes --answer people=2
"""

_CHAT_EPILOG = """\
AGENT is given as for `lockgate run`, which without a prompt is the same on a terminal. Type /help for the commands.

Needs the extra `chat`: pip install 'lockgate[chat]'

Example:
  lockgate chat examples/booking.py
"""

_REPLAY_EPILOG = """\
Without AGENT nothing runs: what happened is shown. With it, the run ends where the agent asks its model
something that is not in the record, and says what differs. With --timeline or --html nothing runs
either: they show what took how long.

Example:
  lockgate run examples/booking.py "Book a table at Luigi's" --record run.jsonl
  lockgate replay run.jsonl examples/booking.py
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; its exit status."""
    open_standard_streams()
    parser = _parser()
    args, behind = parser.parse_known_args(argv)
    if behind and not _take(args, behind):
        if args.command == "run" and not any(word.startswith("-") for word in behind):
            prompt = shlex.quote(" ".join([args.prompt, *behind] if args.prompt else behind))
            parser.error(f"the prompt has to be in quotes: lockgate run {args.agent} {prompt}")
        parser.error(f"unrecognized arguments: {' '.join(behind)}")
    if args.command is None:
        parser.print_help()
        return UNUSABLE
    as_json = args.command == "run" and args.json
    terminal = Terminal(everything_on_stderr=as_json)
    guarded = Guarded(sys.stderr) if sys.stderr is not None else None
    with Interrupts() as interrupts, contextlib.redirect_stderr(guarded):
        try:
            return _COMMANDS[args.command](args, terminal, interrupts)
        except CannotLoad as error:
            terminal.note(f"error: {error}", "red")
            return UNUSABLE
        except KeyboardInterrupt:
            terminal.interrupted()
            terminal.note(f"stopped: {interrupts.cause}", "yellow")
            return interrupts.status
        except BrokenPipeError:  # what we print is not wanted any more, as with `| head`
            _close_output(sys.stdout)
            return 141
        except CannotWrite as error:
            _close_output(sys.stdout)
            with contextlib.suppress(CannotWrite):
                terminal.note(f"error: {error}", "red")
            return FAILED
        finally:
            for output in (sys.stdout, sys.stderr):
                try:
                    output.flush()
                except (OSError, ValueError, AttributeError):  # such as that of a terminal that is gone
                    _close_output(output)


def _close_output(output: TextIO) -> None:
    """Drop what could not be written: the interpreter would try again as it ends, and make that its exit status."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), output.fileno())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lockgate", description="Run agents from the command line.", epilog=_EPILOG)
    parser.add_argument("--version", action="version", version=f"lockgate {_version()}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    run = commands.add_parser(
        "run",
        help="run an agent on a prompt",
        description="Run an agent on a prompt, and show what it says and does.",
        epilog=_RUN_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    run.add_argument("agent", metavar="AGENT", help="the agent, such as examples/booking.py")
    run.add_argument("prompt", metavar="PROMPT", nargs="?", help="what to say to it; - or none: standard input")
    run.add_argument("--record", metavar="FILE", help="write what happens to this file, for `lockgate replay`")
    run.add_argument(
        "--json", action="store_true", help="write the events to standard output, a line of JSON for each; ask nobody"
    )
    run.add_argument("--park", action="store_true", help="ask nobody: end the run while it waits for `lockgate answer`")
    add_store(run)
    chatting = commands.add_parser(
        "chat",
        help="talk with an agent, turn after turn",
        description="Talk with an agent on the terminal, turn after turn.",
        epilog=_CHAT_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    chatting.add_argument("agent", metavar="AGENT", help="the agent, such as examples/booking.py")
    for command in (run, chatting):
        command.add_argument(
            "--model", metavar="MODEL", help="use this model for every agent: FILE.gguf, openai/NAME or anthropic/NAME"
        )
        which = command.add_mutually_exclusive_group()
        which.add_argument("--session", metavar="ID", help="go on with this session, by its id or the beginning of it")
        which.add_argument("-c", "--continue", action="store_true", dest="last", help="go on with the last session")
        which.add_argument("--no-store", action="store_true", help="do not keep the session")
    add_store(chatting)
    replay = commands.add_parser(
        "replay",
        help="show a recorded run, or run it again",
        description="Show a run that --record has written. With AGENT, run it again on what its model said then.",
        epilog=_REPLAY_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    replay.add_argument("record", metavar="FILE", help="what --record has written")
    replay.add_argument("agent", metavar="AGENT", nargs="?", help="the agent of the run, as for `lockgate run`")
    replay.add_argument(
        "--live-tools", action="store_true", help="call the agent's tools, rather than give the results of then"
    )
    replay.add_argument("--timeline", action="store_true", help="show what took how long, in place of what was said")
    replay.add_argument(
        "--html", metavar="PAGE", help="write that to a page for a browser: one file, which needs no network"
    )
    again = commands.add_parser(
        "eval",
        help="run records again, and compare",
        description="Run recorded runs again with the agent as it is now, and compare what it did and said.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_arguments(again)
    serving = _serve.add_parser(commands)
    for command in (run, chatting, replay):
        command.add_argument(
            "--answer",
            metavar="NAME=VALUE",
            action="append",
            default=[],
            type=_answer,
            help="the answer to a field that a question asks for; may be given more than once",
        )
        command.add_argument(
            "--traceback", action="store_true", help="show where in their code tools and models failed"
        )
    for command in (run, chatting, replay, serving):
        command.add_argument(
            "-y", "--yes", action="store_true", help="approve every tool call that the agent does not forbid"
        )
    _sessions.add_parser(commands)
    _waiting.add_parsers(commands)
    return parser


def _take(args: argparse.Namespace, behind: Sequence[str]) -> bool:
    """Take the words that stand behind an option: argparse looks for what may be left out before it alone."""
    if any(word.startswith("-") and word != "-" for word in behind):
        return False
    if args.command == "run" and args.prompt is None and len(behind) == 1:
        [args.prompt] = behind
    elif args.command == "answer" and not args.words:
        args.words = list(behind)
    else:
        return False
    return True


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("lockgate")
    except PackageNotFoundError:
        return "(not installed)"


def _answer(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"an answer must have the form NAME=VALUE, not {text!r}")
    return name.strip(), value


def _run(args: argparse.Namespace, terminal: Terminal, interrupts: Interrupts) -> int:
    if not args.json:
        return _run_shown(args, terminal, interrupts)
    with standard_output() as write:
        return _run_shown(args, terminal, interrupts, JsonLines(write, terminal))


def _run_shown(
    args: argparse.Namespace, terminal: Terminal, interrupts: Interrupts, lines: JsonLines | None = None
) -> int:
    if args.no_store and (args.store or args.park):
        raise CannotLoad(f"--no-store keeps no session, and {'--store' if args.store else '--park'} needs one kept")
    with terminal.busy(f"loading {args.agent}"):
        team = load(args.agent, args.model)
    earlier = args.session is not None or args.last
    with contextlib.ExitStack() as stack:
        # A new file comes with a run that begins, not with a prompt that is missing.
        store = stack.enter_context(opened(args.store)) if earlier else None
        session = None
        if store is not None:
            session = store.load(last_id(store) if args.last else session_id(store, args.session))
        prompt = _piped() if args.prompt == "-" else args.prompt
        if (prompt is None or not prompt.strip()) and (session is None or is_over(session)):
            if args.prompt is None and terminal.is_whole and not (args.record or args.park) and is_installed():
                stack.close()
                return chat(args, terminal, interrupts, team)
            prompt = _ask_prompt(terminal, team.root)
        if session is None:
            session = Session.from_user(prompt or "")
        elif prompt:
            session.add_user(prompt)
        load_model(terminal, team.root)
        if store is None and not args.no_store:
            store = stack.enter_context(opened(args.store, make=True))
        return _drive(args, team, session, args.record, store, terminal, interrupts, lines)


def _replay(args: argparse.Namespace, terminal: Terminal, interrupts: Interrupts) -> int:
    """Show a recorded run, or run it again."""
    recording = Recording(args.record)
    if args.timeline or args.html is not None:
        return _show_timeline(args, recording, terminal)
    try:
        recorded = list(recording.events())
        team = None if args.agent is None else replayed(load(args.agent), recording, live_tools=args.live_tools)
        session = recording.session() if team is not None else None
    except OSError as error:
        raise CannotLoad(f"cannot replay {args.record}: {error.strerror or error}") from None
    except ValueError as error:  # which names the file
        raise CannotLoad(str(error)) from None
    if team is not None and session is not None:
        if args.live_tools:  # the file may be a stranger's: what its session was allowed, the user here has not allowed
            session = Session.from_dict({**session.to_dict(), "permissions": Session().to_dict()["permissions"]})
        return _drive(args, team, session, None, None, terminal, interrupts)
    screen = Screen(terminal, recording.agent_name)
    problem = ""
    for event in recorded:
        screen.show(event)
        problem = problem_of(event) or problem
    terminal.finish()
    last = recorded[-1] if recorded else None
    reason = last.reason if isinstance(last, events.StreamStopped) else "the record has no end"
    if reason == "normal":
        return OK
    terminal.note(f"error: {problem or reason}", "red")
    return FAILED


def _show_timeline(args: argparse.Namespace, recording: Recording, terminal: Terminal) -> int:
    """Show when what was under way in a recorded run; the exit status."""
    from ._timeline import timeline_lines
    from ._timeline_page import NotOurs, write_page

    if args.agent is not None:
        raise CannotLoad("a timeline is of the run that was recorded: leave out the agent")
    try:
        line = timeline(recording)
    except OSError as error:
        raise CannotLoad(f"cannot replay {args.record}: {error.strerror or error}") from None
    except ValueError as error:  # which names the file
        raise CannotLoad(str(error)) from None
    if args.html is not None:
        try:
            write_page(line, Path(args.html))
        except (OSError, NotOurs) as error:
            raise CannotLoad(f"the page cannot be written: {why_unwritten(args.html, error)}") from None
    if args.timeline:
        for text, style in timeline_lines(line, terminal.width):
            terminal.line(text, style)
    terminal.finish()
    return OK


def _drive(
    args: argparse.Namespace,
    team: Team,
    session: Session,
    record: str | None,
    store: Store | None,
    terminal: Terminal,
    interrupts: Interrupts,
    lines: JsonLines | None = None,
) -> int:
    """Run the team on the session, and show it, or write it as ``lines``; the exit status."""
    park = store is not None and args.park
    questions = Questions(terminal, dict(args.answer), interrupts.reading(terminal), team.root.name, park=park)
    # What is parked waits until it is answered; who sits at the terminal has the time that `Runtime` gives.
    parking: dict[str, Any] = {"answer_timeout": None} if park else {}
    allowed = Permissions(approve_all=args.yes)
    runtime = Runtime(team, permissions=allowed, store=store, titles=store is not None, **parking)
    try:
        try:
            stream = runtime.run_stream(session, record=record)
        except OSError as error:
            why = str(error) if record is None else why_unwritten(record, error)
            raise CannotLoad(f"the record cannot be written: {why}") from None
        try:
            with interrupts.ending(stream):
                screen = lines or Screen(terminal, team.root.name)
                problem = _follow(stream, terminal, screen, questions, interrupts)
            terminal.finish()
            if args.traceback:
                show_traceback(stream, terminal)
            status = _report(stream, terminal, problem, interrupts)
        finally:
            with terminal.busy("ending the run"):
                close_stream(stream, terminal)
        if store is not None and (terminal.is_read or status == WAITING):
            _tell_session(args, terminal, session, store, waits=status == WAITING)
        return status
    finally:
        with terminal.busy("ending what the agent has started"):
            runtime.close()


def _tell_session(args: argparse.Namespace, terminal: Terminal, session: Session, store: Store, *, waits: bool) -> None:
    """Say how to go on with the session: to people, whom a line more does not disturb."""
    if waits:
        for request in store.pending(session.id):
            terminal.note(f"waits for: lockgate answer {short(request.id)}", "yellow")
    terminal.note(f"to go on: lockgate run {args.agent} --session {short(session.id)}", "dim")


def _ask_prompt(terminal: Terminal, agent: Agent) -> str:
    prompt = ""
    if terminal.asks:
        with contextlib.suppress(EOFError):
            prompt = terminal.read(f"What should {agent.name} do? > ").strip()
    elif sys.stdin is not None and not sys.stdin.isatty():
        prompt = _piped()
    if not prompt:
        raise CannotLoad('no prompt: say what to do after the agent, in quotes, such as "Book a table at Luigi\'s"')
    return prompt


def _piped() -> str:
    """The text of standard input, read to its end."""
    try:
        return sys.stdin.read().strip()
    except (OSError, ValueError) as error:
        raise CannotLoad(f"the prompt cannot be read from standard input: {error}") from None


def _follow(
    stream: EventStream,
    terminal: Terminal,
    screen: Screen | JsonLines,
    questions: Questions,
    interrupts: Interrupts,
) -> str:
    """Show the stream until it ends; the text of the problem that ended it, empty where there was none."""
    screen.wait()
    problem = ""
    said = parking = False
    while True:
        try:
            event = stream.recv(timeout=min(terminal.pause, _PARKING) if parking else terminal.pause)
        except TimeoutError:
            terminal.tick()
            parking = questions.park(stream)
            continue
        except ChannelClosed:
            return problem
        finally:
            if interrupts.pressed and not said:
                said = True
                terminal.interrupted()
                terminal.note("stopping ... (Ctrl-C again ends it at once)", "yellow")
                terminal.waiting("stopping")
        problem = problem_of(event) or problem
        if isinstance(screen, JsonLines):
            screen.write(event)
        if said:
            continue  # nobody wants to see the rest
        question = question_of(event)
        if question is not None:
            with contextlib.suppress(KeyboardInterrupt):  # the handler has cancelled the stream
                questions.answer(stream, question)
            parking = questions.park(stream)
            screen.wait()
        elif isinstance(event, events.ToolCallConfirmation):
            with contextlib.suppress(KeyboardInterrupt):
                questions.confirm(stream, event)
            parking = questions.park(stream)
            screen.wait()
        else:
            screen.show(event)


def _report(stream: EventStream, terminal: Terminal, problem: str, interrupts: Interrupts) -> int:
    """Say how the stream ended; the exit status."""
    if stream.reason == "normal":
        return OK
    if stream.reason == "waiting":
        return WAITING
    if stream.reason == "canceled":
        terminal.note(f"stopped: canceled, {interrupts.cause}", "yellow")
        return interrupts.status
    cause = cause_of(stream)
    if isinstance(cause, MissingExtra):
        terminal.note(f"error: {cause}", "red")
        return UNUSABLE
    terminal.note(f"error: {problem or stream.reason}", "red")
    return FAILED


_COMMANDS: Final[Mapping[str, Callable[[argparse.Namespace, Terminal, Interrupts], int]]] = {
    "run": _run,
    "chat": chat,
    "replay": _replay,
    "eval": evaluate,
    "serve": lambda args, terminal, interrupts: _serve.serve(args),
    "sessions": lambda args, terminal, interrupts: _sessions.run(args, terminal),
    "waiting": lambda args, terminal, interrupts: _waiting.waiting(args, terminal),
    "answer": lambda args, terminal, interrupts: _waiting.answer(args, terminal, interrupts.reading(terminal)),
}
