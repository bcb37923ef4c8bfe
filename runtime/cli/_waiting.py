"""`lockgate waiting` and `lockgate answer`: the questions that runs have left in the store."""

from __future__ import annotations

import argparse
import getpass
import json
import socket
from collections.abc import Mapping, Sequence
from typing import Any, Final, get_args

from .._errors import InvalidAnswer, NotPending
from ..agent._tool import Action
from ..events import ElicitationRequest, Event, StopReason, ToolCallConfirmation
from ..foreign._json import parse
from ..foreign._printable import escaped, printable
from ..permissions import Scope
from ..session._journal import Request
from ..stores._store import Store
from ._ask import Questions, Read, id_of, question_of
from ._fields import NotUnderstood, fields_of
from ._load import CannotLoad
from ._place import is_there, opened
from ._sessions import add_store, matching, session_id, short, when
from ._show import named, said
from ._terminal import Terminal

OK: Final = 0
FAILED: Final = 1

_SHOWN: Final = 2_000  # characters of an argument
_YES: Final = ("approve", "yes", "y")
_NO: Final = ("reject", "no", "n")

_ANSWER_EPILOG = """\
To a tool call that waits to be approved:
  lockgate answer ID approve [--scope tool|session]
  lockgate answer ID reject [REASON ...]
To a question, by the names of its fields or in JSON:
  lockgate answer ID people=2 date=2026-12-24
  lockgate answer ID '{"people": 2, "date": "2026-12-24"}'
  lockgate answer ID accept | decline | cancel
Without an answer you are asked for it on the terminal.

Exit status: 0 when the answer counts, 1 when somebody else's came first, nobody waits any more, or there is no such
question, 2 when the answer does not fit.
"""


def waiting(args: argparse.Namespace, terminal: Terminal) -> int:
    """``lockgate waiting``; the exit status."""
    if not is_there(args.store):
        terminal.note("Nothing waits: there are no sessions yet.", "dim")
        return OK
    with opened(args.store) as store:
        found = store.pending(None if args.session is None else session_id(store, args.session))
    if args.json:
        for request in found:
            terminal.text(json.dumps(_as_dict(request)) + "\n")
        return OK
    for request in found:
        _show(terminal, request)
    terminal.finish()
    if not found:
        terminal.note("Nothing waits.", "dim")
    return OK


def answer(args: argparse.Namespace, terminal: Terminal, read: Read) -> int:
    """``lockgate answer``; the exit status."""
    with opened(args.store) as store:
        pending = store.pending()
        id = matching(args.id, (request.id for request in pending), "question")
        request = next((each for each in pending if each.id == id), None)
        if request is None:
            terminal.note(f"error: no question {args.id} waits; `lockgate waiting` lists those that do", "red")
            return FAILED
        try:
            if args.words:
                _check_options(args, request)
                store.answer(id, _answer_of(args, request), by=_me())
            elif not terminal.asks:
                _show(terminal, request)
                raise CannotLoad("no answer was given; `lockgate answer --help` shows how to give one")
            elif not _ask(store, request, terminal, read):
                return FAILED
        except NotPending as error:
            terminal.note(f"error: {error}", "red")
            return FAILED
        except (InvalidAnswer, NotUnderstood) as error:
            _show(terminal, request)
            raise CannotLoad(f"the answer does not fit: {error}") from error
        parked = terminal.is_read and request.root_id in store.ready()
    terminal.note(f"answered {short(id)}", "dim")
    if parked:  # by itself it goes on nowhere, unless its agent is served
        terminal.note(f"to go on: lockgate run AGENT --session {short(request.root_id)}", "dim")
    return OK


def add_parsers(commands: Any) -> None:
    """Let ``lockgate waiting`` and ``lockgate answer`` be known."""
    parser = commands.add_parser(
        "waiting",
        help="list the questions that wait for an answer",
        description="The questions and tool calls, of all sessions, that wait for somebody to decide.",
    )
    add_store(parser)
    parser.add_argument("--session", metavar="ID", help="of this session only, and of its sub-sessions")
    parser.add_argument("--json", action="store_true", help="a line of JSON for each")
    parser = commands.add_parser(
        "answer",
        help="answer a question that waits",
        description="Answer a question that a run waits for, here or in another process. The first answer counts.",
        epilog=_ANSWER_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_store(parser)
    parser.add_argument("id", metavar="ID", help="of the question, or its beginning: `lockgate waiting` shows it")
    parser.add_argument("words", metavar="ANSWER", nargs="*", help="the answer, see below")
    parser.add_argument(
        "--scope", choices=get_args(Scope), default="once", help="what an approval is for: this call, the tool, or all"
    )


def _check_options(args: argparse.Namespace, request: Request) -> None:
    if args.scope != "once" and (request.kind != "approval" or args.words[0].lower() not in _YES):
        raise InvalidAnswer("--scope goes with an approval")


def _answer_of(args: argparse.Namespace, request: Request) -> dict[str, Any]:
    """The answer that the command line gives. Raises `InvalidAnswer` and `NotUnderstood`."""
    first, *rest = args.words
    if request.kind == "approval":
        if first.lower() in _YES and not rest:
            return {"approved": True, "scope": args.scope}
        if first.lower() in _NO:
            return {"approved": False, "reason": " ".join(rest)}
        raise InvalidAnswer(f"a tool call must be answered with approve or reject, not {' '.join(args.words)!r:.200}")
    if not rest and first.lower() in ("accept", "decline", "cancel"):
        return {"action": first.lower()}
    return {"action": "accept", "content": _content(args.words, request)}


def _content(words: Sequence[str], request: Request) -> dict[str, Any]:
    if words[0].lstrip().startswith("{"):
        try:
            content = parse(" ".join(words))
        except ValueError as error:
            raise InvalidAnswer(f"it is no JSON: {error}") from None
        if not isinstance(content, dict):
            raise InvalidAnswer("it is no JSON object")
        return content
    fields = {field.name: field for field in fields_of(request.schema)}
    content = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals and len(fields) == 1 and len(words) == 1:  # there is but one that it can be
            name, value = next(iter(fields)), word
        elif name not in fields:
            names = ", ".join(fields) or "none"
            raise InvalidAnswer(f"{name!r:.200} is no field of it; its fields are: {names}; an answer is FIELD=VALUE")
        content[name] = fields[name].read(value)
    return content


class _Kept:
    """A question in the store, as `Questions` asks it."""

    reason: StopReason | None = None

    def __init__(self, store: Store, request: Request, event: Event) -> None:
        self._store = store
        self._request = request
        self.pending: Sequence[Event] = (event,)
        self.answered = False

    def approve(self, call: ToolCallConfirmation | str, scope: Scope = "once") -> None:
        self._answer({"approved": True, "scope": scope})

    def reject(self, call: ToolCallConfirmation | str, reason: str = "") -> None:
        self._answer({"approved": False, "reason": reason})

    def respond(
        self, request: ElicitationRequest | str, action: Action, content: Mapping[str, Any] | None = None
    ) -> None:
        self._answer({"action": action, "content": dict(content or {})})

    def _answer(self, answer: dict[str, Any]) -> None:
        self._store.answer(self._request.id, answer, by=_me())
        self.answered = True


def _ask(store: Store, request: Request, terminal: Terminal, read: Read) -> bool:
    """Ask on the terminal, as a run does; whether the answer counts."""
    event = _event(request)
    if event is None:
        raise CannotLoad("this question cannot be read here; answer it with JSON")
    kept = _Kept(store, request, event)
    questions = Questions(terminal, {}, read)
    question = question_of(event)
    if question is not None:
        questions.answer(kept, question)
    elif isinstance(event, ToolCallConfirmation):
        questions.confirm(kept, event)
    return kept.answered


def _event(request: Request) -> Event | None:
    """The event of a request; None where it cannot be read: it may be another program's."""
    try:
        event = Event.from_dict(request.event)
    except Exception:
        return None
    return event if id_of(event) == request.id else None


def _show(terminal: Terminal, request: Request) -> None:
    event = _event(request)
    asked = "" if event is None else f"{when(event.timestamp)}  "
    whose = f"{short(request.id)}  {asked}session {short(request.root_id)}"
    until = "" if request.expires_at is None else f", until {when(request.expires_at)}"
    terminal.part(f"request {request.id}")
    terminal.line(f"{whose}{until}", "bold")
    agent = f"[{escaped(event.agent_name)}] " if event is not None and event.agent_name else ""
    if isinstance(event, ToolCallConfirmation):
        server = f" (of server {escaped(event.server)})" if event.server else ""
        undone = " What it does cannot be undone." if event.destructive else ""
        terminal.line(f"  {agent}run {named(event.tool_call)}({said(event.arguments, _SHOWN)}){server}?{undone}")
        terminal.line("  approve, or reject [REASON ...]", "dim")
        return
    question = None if event is None else question_of(event)
    if question is None:
        terminal.line("  a question that cannot be read here")
        return
    message = printable(question.message).replace("\n", "\n  | ")
    asks = f"{escaped(question.tool_name)} asks: " if question.tool_name else ""
    terminal.line(f"  {agent}{asks}{message}")
    if question.mode == "url":
        terminal.line(f"  {escaped(question.url)}")
    for field in fields_of(request.schema):
        terminal.line(f"  {escaped(field.label)} - {escaped(field.note)}", "dim")


def _as_dict(request: Request) -> dict[str, Any]:
    return {
        "id": request.id,
        "session_id": request.session_id,
        "root_id": request.root_id,
        "kind": request.kind,
        "call_id": request.call_id,
        "event": request.event,
        "schema": request.schema,
        "expires_at": None if request.expires_at is None else request.expires_at.isoformat(),
    }


def _me() -> str:
    try:
        return f"{getpass.getuser()} on {socket.gethostname()}"
    except (OSError, KeyError):  # a user without a name, as in a container
        return socket.gethostname()
