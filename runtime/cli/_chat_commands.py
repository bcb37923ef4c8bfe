"""What may be typed in a chat that is no message: `/help` and the others."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Final, Protocol

from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document

from .._dataclasses import dataclass
from ..agent._agent import Team
from ..foreign._printable import escaped
from ..permissions import Rule
from ..session._message import Message
from ..session._session import Session
from ..stores._store import Store
from ._chat_view import View
from ._files import why_unwritten
from ._sessions import line_of, session_id, short
from ._show import named

_LISTED: Final = 20  # sessions
_NAME: Final = re.compile(r"[\w.:/-]+")


class Chat(Protocol):
    """What the commands know of a chat."""

    approved: set[str]
    approved_all: bool
    tools: tuple[str, ...]
    known: list[tuple[str, str]]

    @property
    def view(self) -> View: ...
    @property
    def team(self) -> Team: ...
    @property
    def store(self) -> Store | None: ...
    @property
    def session(self) -> Session | None: ...
    @property
    def working(self) -> bool: ...
    def use(self, session: Session | None) -> None: ...
    def use_model(self, name: str) -> None: ...
    def look_back(self) -> None: ...
    def leave(self, status: int) -> None: ...


@dataclass(frozen=True, slots=True)
class Command:
    """A command: what is typed, what for, and the function that does it. ``idle``: not while the agent works."""

    usage: str
    help: str
    run: Callable[[Chat, str], None]
    idle: bool = False


class WrongUse(Exception):
    """The command cannot be carried out; the text says what to do."""


def run(chat: Chat, typed: str) -> None:
    """Carry out a command. Raises `WrongUse`."""
    name, _, rest = typed[1:].partition(" ")
    command = COMMANDS.get(name)
    if command is None:
        near = [each for each in COMMANDS if name and each.startswith(name)]
        if len(near) != 1:
            raise WrongUse(
                f"There is no command /{escaped(name)}: /help lists those there are. With a space before the /, it is a"
                " message."
            )
        command = COMMANDS[near[0]]
    if command.idle and chat.working:
        raise WrongUse(f"{command.usage.partition(' ')[0]} has to wait until the agent is done; Ctrl-C stops it.")
    command.run(chat, rest.strip())


def _help(chat: Chat, rest: str) -> None:
    width = max(len(each.usage) for each in COMMANDS.values())
    chat.view.lines(
        [
            *(f"{each.usage:<{width}}  {each.help}" for each in COMMANDS.values()),
            "",
            "Enter sends what you have typed; while the agent works, that steers it.",
            "Alt-Enter begins a new line. The arrow keys and Ctrl-R find what you have sent.",
            "Ctrl-C stops the agent; twice, it ends the program. So does Ctrl-D.",
        ]
    )


def _new(chat: Chat, rest: str) -> None:
    chat.use(None)
    chat.view.note("A new session begins with your next message.", "dim")


def _sessions(chat: Chat, rest: str) -> None:
    store = chat.store
    if store is None:
        raise WrongUse("No sessions are kept: the chat was started with --no-store.")
    if rest:
        session = store.load(session_id(store, rest))
        chat.use(session)
        chat.look_back()
        return
    found = store.sessions(limit=_LISTED)
    current = None if chat.session is None else chat.session.id
    chat.view.lines([f"{'* ' if info.id == current else '  '}{line_of(info)}" for info in found])
    chat.view.note("/sessions ID goes on with one of them." if found else "There are no sessions yet.", "dim")


def _branch(chat: Chat, rest: str) -> None:
    session = chat.session
    if session is None or not _of_user(session):
        raise WrongUse("There is nothing to branch from yet: say something first.")
    at = None
    if rest:
        if not rest.isdecimal() or int(rest) not in _of_user(session):
            raise WrongUse(f"/branch N takes the number of a message of yours:\n{_numbered(session)}")
        at = int(rest)
    before = session.id
    if chat.store is not None:
        chat.use(chat.store.branch(session.id, at))
    else:
        chat.use(Session(session.messages[:at], permissions=session.permissions, agent_name=session.agent_name))
    which = "all its messages" if at is None else f"the messages before number {at}"
    chat.view.note(f"This is a new session now, with {which}; the other one is {short(before)}.", "dim")


def _of_user(session: Session) -> dict[int, Message]:
    return {number: each for number, each in enumerate(session.messages) if each.role == "user"}


def _numbered(session: Session) -> str:
    return "\n".join(f"  {number}  {escaped(each.content[:60])}" for number, each in _of_user(session).items())


def _model(chat: Chat, rest: str) -> None:
    if not rest:
        chat.view.lines([f"{each.name}: {each.model.id}" for each in chat.team.agents])
        chat.view.note("/model FILE.gguf, /model openai/NAME or /model anthropic/NAME takes another one.", "dim")
        return
    chat.use_model(rest)
    chat.view.note(f"The model is {chat.team.root.model.id} now.", "dim")


def _approve(chat: Chat, rest: str) -> None:
    if rest == "all":
        chat.approved_all = True
    elif rest == "ask":
        chat.approved_all = False
        chat.approved.clear()
    elif rest and not re.search(r"\s", rest):
        chat.approved.add(rest)
    elif rest:
        raise WrongUse("/approve takes the name of one tool, or all, or ask.")
    if chat.approved_all:
        said = "Every call is approved, but those that the agent forbids."
    elif chat.approved:
        said = f"Approved without a question: {', '.join(map(escaped, sorted(chat.approved)))}."
    else:
        said = "You are asked before a tool does more than read."
    kept = chat.session.permissions if chat.session is not None else None
    if kept is not None and kept.approve_all:
        said += " This session has the lasting approval of all calls that you have given in it."
    elif kept is not None and kept.allow:
        names = (escaped(rule.tool) for rule in kept.allow if isinstance(rule, Rule))
        said += f" Approved for good in this session: {', '.join(names)}."
    chat.view.note(f"{said} (/approve all, /approve TOOL, /approve ask)", "dim")


def _open(chat: Chat, rest: str) -> None:
    number = int(rest) if rest.isdecimal() else 0 if rest else 1
    if not chat.view.open(number):
        raise WrongUse(
            f"/open N takes a number: 1 is the last tool call, 2 the one before, up to {chat.view.calls}."
            if chat.view.calls
            else "No tool was called yet."
        )


def _usage(chat: Chat, rest: str) -> None:
    session = chat.session
    if session is None:
        chat.view.note("Nothing was used yet.", "dim")
        return
    usage, count = session.usage, len(session.messages)
    so_far = f"session {short(session.id)}: {count} message{'s' if count != 1 else ''}"
    if not usage.tokens:
        chat.view.note(f"{so_far}; the model counts no tokens")
        return
    cost = "" if usage.cost is None else f", ${usage.cost:.4f}"
    cached = f" ({usage.cached_tokens:,} of them from the cache)" if usage.cached_tokens else ""
    chat.view.note(f"{so_far}, {usage.input_tokens:,} tokens in{cached}, {usage.output_tokens:,} out{cost}")


def _save(chat: Chat, rest: str) -> None:
    session = chat.session
    if session is None:
        raise WrongUse("There is nothing to save yet: say something first.")
    if not rest:
        raise WrongUse("/save FILE writes the conversation: as JSON if the name ends with .json, else as Markdown.")
    if rest.endswith(".json"):
        data = session.to_dict() if chat.store is None else chat.store.export(session.id)
        text = json.dumps(data, indent=1) + "\n"
    else:
        text = "\n".join(_transcript(session))
    path = os.path.expanduser(rest)
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise WrongUse(f"{escaped(rest)} is there already: name another file.") from None
    except (OSError, ValueError) as error:
        raise WrongUse(f"The conversation cannot be written: {escaped(why_unwritten(path, error))}") from None
    chat.view.note(f"saved as {escaped(rest)}", "dim")


def _transcript(session: Session) -> Iterator[str]:
    """The conversation in Markdown."""
    yield f"# {session.title or 'Conversation'}\n"
    names = {call.id: named(call) for message in session.messages for call in message.tool_calls}
    for message in session.messages:
        if message.role == "tool":
            name = names.get(message.tool_call_id or "", "a tool")
            failed = " failed" if message.is_error else ""
            yield f"Result of `{name}`{failed}:\n\n{_fenced(message.content)}\n"
            continue
        who = {"user": "You", "assistant": message.agent_name or "Agent", "system": "System"}[message.role]
        if message.content:
            yield f"## {who}\n\n{message.content}\n"
        for call in message.tool_calls:
            yield f"Call of `{named(call)}`:\n\n{_fenced(call.arguments, 'json')}\n"


def _fenced(text: str, language: str = "") -> str:
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    marks = "`" * max(3, longest + 1)
    return f"{marks}{language}\n{text}\n{marks}"


def _quit(chat: Chat, rest: str) -> None:
    chat.leave(0)


COMMANDS: Final[dict[str, Command]] = {
    "help": Command("/help", "list the commands", _help),
    "new": Command("/new", "begin a new session", _new, idle=True),
    "sessions": Command("/sessions [ID]", "list the sessions, or go on with one", _sessions, idle=True),
    "branch": Command("/branch [N]", "go on in a new session, with the messages before number N", _branch, idle=True),
    "model": Command("/model [NAME]", "show the model, or use another", _model, idle=True),
    "approve": Command("/approve [WHAT]", "approve calls without a question: all, TOOL; ask: no more", _approve),
    "open": Command("/open [N]", "show the last tool call in full, as Ctrl-O does", _open),
    "usage": Command("/usage", "show what the session has used", _usage),
    "save": Command("/save FILE", "write the conversation to a file, Markdown or .json", _save),
    "quit": Command("/quit", "end the program", _quit),
}


class Completions(Completer):
    """Completes commands and what stands behind them."""

    def __init__(self, chat: Chat) -> None:
        self._chat = chat
        self._paths = PathCompleter(expanduser=True)

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        """The completions of the text before the cursor."""
        text = document.text_before_cursor
        if not text.startswith("/") or "\n" in text:
            return
        name, space, rest = text[1:].partition(" ")
        if not space:
            for known, command in COMMANDS.items():
                if known.startswith(name):
                    yield Completion(known, -len(name), display=f"/{known}", display_meta=command.help)
        elif name in ("model", "save"):
            yield from self._paths.get_completions(Document(rest), complete_event)
        else:
            for word, meta in self._words(name):
                if word.startswith(rest):
                    yield Completion(word, -len(rest), display_meta=meta)

    def _words(self, name: str) -> list[tuple[str, str]]:
        chat = self._chat
        if name == "approve":
            tools = [(tool, "") for tool in chat.tools if _NAME.fullmatch(tool)]
            return [("all", "every call"), ("ask", "none without a question"), *tools]
        if name == "sessions":
            return [(short(each), escaped(title)) for each, title in chat.known]
        if name == "branch" and chat.session is not None:
            return [(str(number), escaped(each.content[:60])) for number, each in _of_user(chat.session).items()]
        return []
