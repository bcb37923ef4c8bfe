"""`lockgate sessions`: what is in the store."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from ..foreign._printable import escaped
from ..session._message import Message
from ..session._session import Session
from ..stores._store import SessionInfo, Store
from ._files import why_unwritten
from ._load import CannotLoad
from ._place import is_there, opened
from ._show import arguments, named, result
from ._terminal import Terminal

_PAGE: Final = 500  # sessions that are read at a time
_TITLE: Final = 60  # characters
_LARGEST: Final = 500_000_000  # bytes of a file that is imported
_RANDOM: Final = re.compile(r"[0-9a-f]{32}")
_SHORT: Final = 8


def short(id: str) -> str:
    """An id as people are shown it: the beginning of one that was made up here, the whole of any other."""
    return id[:_SHORT] if _RANDOM.fullmatch(id) else escaped(id)


def matching(said: str, ids: Iterator[str], what: str) -> str:
    """The id that somebody means who has typed it, or its beginning. Raises `CannotLoad` where there are several."""
    if _RANDOM.fullmatch(said):
        return said
    found = []
    for id in ids:
        if id == said:
            return id
        if said and id.startswith(said):
            found.append(id)
    if len(found) > 1:
        raise CannotLoad(f"{len(found)} {what}s begin with {said!r}: {', '.join(found[:5])}; type more of it")
    return found[0] if found else said  # it may be one that is in no list


def session_id(store: Store, said: str) -> str:
    """The id of the session that somebody means."""
    return matching(said, (info.id for info in _all(store)), "session")


def last_id(store: Store) -> str:
    """The id of the session that changed last. Raises `CannotLoad` where there is none."""
    found = store.sessions(limit=1)
    if not found:
        raise CannotLoad("there is no session to continue; `lockgate run` without --continue begins one")
    return found[0].id


def _all(store: Store) -> Iterator[SessionInfo]:
    before = None
    while page := store.sessions(limit=_PAGE, before=before):
        yield from page
        before = page[-1].updated_at


# -- the commands ------------------------------------------------------------------------------------------------------


def show_list(args: argparse.Namespace, terminal: Terminal) -> None:
    """``sessions list`` and ``sessions search``."""
    if not is_there(args.store):
        terminal.note("There are no sessions yet; `lockgate run` keeps them.", "dim")
        return
    with opened(args.store) as store:
        found = store.sessions(" ".join(args.words), limit=args.limit)
    if args.json:
        for info in found:
            terminal.text(json.dumps(_as_dict(info)) + "\n")
        return
    for info in found:
        terminal.line(line_of(info))
    if len(found) == args.limit:
        terminal.note(f"... the last {args.limit}; --limit shows more", "dim")
    elif not found:
        terminal.note("There is no such session." if args.words else "There are no sessions.", "dim")


def show(args: argparse.Namespace, terminal: Terminal) -> None:
    """``sessions show``."""
    with opened(args.store) as store:
        session = store.load(session_id(store, args.id))
        info = next((each for each in _all(store) if each.id == session.id), None)
    terminal.part("head")
    terminal.line(f"{escaped(session.id)} {escaped(session.title)}".rstrip(), "bold")
    if info is not None:
        reason = f" ({escaped(info.reason)})" if info.reason else ""
        branch = f", a branch of {short(info.branch_of)}" if info.branch_of else ""
        terminal.line(f"{info.status}{reason}, {when(info.created_at)} to {when(info.updated_at)}{branch}", "dim")
    for number, message in enumerate(session.messages):
        _show_message(terminal, number, message, _names(session))
    left = session._unfinished
    if left is not None and (left.calls or left.requests):
        terminal.part("left")
        for call_id, state in left.calls.items():
            terminal.line(f"{_names(session).get(call_id, escaped(call_id))}: no result yet, {state.phase}", "yellow")
        requests = [*left.requests, *(request for state in left.calls.values() for request in state.requests)]
        for request in requests:
            if request.answer is None and not request.expired:
                terminal.line(f"waits for `lockgate answer {short(request.id)}`", "yellow")
    terminal.finish()


def delete(args: argparse.Namespace, terminal: Terminal) -> None:
    """``sessions delete``."""
    with opened(args.store) as store:
        ids = [session_id(store, said) for said in args.ids]
        titles = {info.id: info.title for info in _all(store) if info.id in ids}
        if not args.yes:
            for id in ids:
                terminal.ask(f"{short(id)}  {escaped(titles.get(id, ''))}".rstrip())
            if not terminal.asks:
                raise CannotLoad("nothing was deleted: there is no terminal to ask on, and no --yes")
            terminal.forget_typed()
            if terminal.read("Delete for good? y or n > ").strip().lower() not in ("y", "yes"):
                raise CannotLoad("nothing was deleted")
        for id in ids:
            store.delete(id)
            terminal.note(f"deleted {short(id)}", "dim")


def export(args: argparse.Namespace, terminal: Terminal) -> None:
    """``sessions export``."""
    with opened(args.store) as store:
        data = store.export(session_id(store, args.id))
    text = json.dumps(data, indent=1) + "\n"  # in ASCII: nothing in it is anything to a terminal
    if args.file in (None, "-"):
        terminal.text(text)
        return
    try:
        # For its owner alone, as the store is; and never over a file that is there.
        with os.fdopen(os.open(args.file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(text)
    except FileExistsError:
        raise CannotLoad(f"{args.file} is there already; delete it first, or name another file") from None
    except OSError as error:
        raise CannotLoad(f"the session cannot be written: {why_unwritten(args.file, error)}") from None


def import_(args: argparse.Namespace, terminal: Terminal) -> None:
    """``sessions import``."""
    try:
        if args.file == "-":
            text = sys.stdin.read(_LARGEST + 1)
        else:
            with Path(args.file).open(encoding="utf-8") as file:
                text = file.read(_LARGEST + 1)
        if len(text) > _LARGEST:
            raise ValueError(f"it is larger than {_LARGEST:,} characters")
        data = json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise CannotLoad(f"cannot import {args.file}: {error}") from None
    with opened(args.store, make=True) as store:
        try:
            session = store.import_(data)
        except ValueError as error:
            raise CannotLoad(f"cannot import {args.file}: {error}") from None
    terminal.line(escaped(session.id))


def branch(args: argparse.Namespace, terminal: Terminal) -> None:
    """``sessions branch``."""
    with opened(args.store) as store:
        try:
            session = store.branch(session_id(store, args.id), args.at)
        except ValueError as error:
            raise CannotLoad(f"{error}") from None
    terminal.line(escaped(session.id))


ACTIONS: Final = {
    "list": show_list, "search": show_list, "show": show, "delete": delete, "export": export, "import": import_,
    "branch": branch,
}  # fmt: skip


def run(args: argparse.Namespace, terminal: Terminal) -> int:
    """``lockgate sessions``; the exit status."""
    ACTIONS[args.action or "list"](args, terminal)
    return 0


def add_parser(commands: Any) -> None:
    """Let ``lockgate sessions`` be known."""
    sessions = commands.add_parser(
        "sessions",
        help="list the sessions that are kept, and work on them",
        description="The sessions that `lockgate run` and `lockgate chat` have kept. ID is an id, or its beginning.",
    )
    add_store(sessions)
    sessions.set_defaults(words=[])  # without an action they are listed
    _add_limits(sessions)
    actions = sessions.add_subparsers(dest="action", metavar="ACTION", required=False)

    def action(name: str, help: str) -> argparse.ArgumentParser:
        parser: argparse.ArgumentParser = actions.add_parser(name, help=help, description=help)
        add_store(parser, again=True)
        return parser

    for name, help in (("list", "list the sessions, the last one first"), ("search", "find sessions by their words")):
        parser = action(name, help)
        if name == "search":
            parser.add_argument("words", metavar="WORD", nargs="+", help="a word of the title or of a message")
        _add_limits(parser, again=True)
    action("show", "show a session").add_argument("id", metavar="ID")
    parser = action("delete", "delete sessions, with those of their sub-agents")
    parser.add_argument("ids", metavar="ID", nargs="+")
    parser.add_argument("-y", "--yes", action="store_true", help="without a question")
    parser = action("export", "write a session as JSON")
    parser.add_argument("id", metavar="ID")
    parser.add_argument("file", metavar="FILE", nargs="?", help="the file to write; - or none: standard output")
    action("import", "add a session that export wrote").add_argument(
        "file", metavar="FILE", help="the file; -: standard input"
    )
    parser = action("branch", "make a new session with the messages of another")
    parser.add_argument("id", metavar="ID")
    parser.add_argument(
        "--at", metavar="N", type=_number, help="up to its message N, which is one of the user's (`show` numbers them)"
    )


def add_store(parser: argparse.ArgumentParser, *, again: bool = False) -> None:
    """Let the parser know ``--store``; ``again`` where the parser around it does too."""
    parser.add_argument(
        "--store",
        metavar="FILE|URL",
        default=argparse.SUPPRESS if again else None,
        help="the store: a file, or postgresql://... (else $LOCKGATE_STORE, or a file of your own)",
    )


def _add_limits(parser: argparse.ArgumentParser, *, again: bool = False) -> None:
    """What a list may be told; as with `add_store`."""
    limit, as_json = (argparse.SUPPRESS, argparse.SUPPRESS) if again else (20, False)
    parser.add_argument("--limit", metavar="N", type=_number, default=limit, help="how many, at most (20)")
    parser.add_argument("--json", action="store_true", default=as_json, help="a line of JSON for each")


def _number(text: str) -> int:
    try:
        number = int(text)
        if number >= 0:
            return number
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"must be a whole number, 0 or more, not {text!r}")


# -- what is shown -----------------------------------------------------------------------------------------------------


def line_of(info: SessionInfo) -> str:
    """A session in one line of a list."""
    title = escaped(info.title)
    title = f"{title[: _TITLE - 4]} ..." if len(title) > _TITLE else title
    asks = f"  ({info.waiting} to answer)" if info.waiting else ""
    return f"{short(info.id)}  {when(info.updated_at)}  {info.status:<11}  {info.messages:>4}  {title}{asks}".rstrip()


def when(moment: datetime) -> str:
    """A time as it stands in lists: that of the clock here."""
    return f"{moment.astimezone():%Y-%m-%d %H:%M}"


def _as_dict(info: SessionInfo) -> dict[str, Any]:
    said = {name: getattr(info, name) for name in SessionInfo.__slots__}
    return {name: value.isoformat() if isinstance(value, datetime) else value for name, value in said.items()}


def _names(session: Session) -> dict[str | None, str]:
    """The names of the tools that were called, by the ids of the calls."""
    return {call.id: named(call) for message in session.messages for call in message.tool_calls}


def _show_message(terminal: Terminal, number: int, message: Message, names: dict[str | None, str]) -> None:
    images = "".join(f" {escaped(str(image))}" for image in message.images)
    who = f"[{escaped(message.agent_name)}] " if message.agent_name else ""
    if message.role == "tool":
        name = names.get(message.tool_call_id, "a tool")
        terminal.part("calls")
        terminal.line(
            f"<- {name}{' failed' if message.is_error else ''}: {result(message.content)}{images}",
            "red" if message.is_error else "",
        )
        return
    if message.content or images:
        terminal.part(f"message {number}")
        text = f"{message.content}{images}"
        if message.role == "assistant":
            cut = " (interrupted)" if message.finish_reason == "interrupted" else ""
            terminal.line(f"[{number}] {who}{text}{cut}")
        else:
            terminal.line(f"[{number}] {'> ' if message.role == 'user' else 'system: '}{text}", "bold")
    if message.tool_calls:
        terminal.part("calls")
        for call in message.tool_calls:
            terminal.line(f"-> {who}{named(call)}({arguments(call)})", "bold")
