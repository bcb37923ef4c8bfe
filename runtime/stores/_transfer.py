"""Sessions on their way from one store to another: what `Store.export` returns, and `Store.import_` takes.

What is imported may be anybody's. It is read field by field, within bounds, and is taken for what was said and done,
never for what the user has allowed: patterns that allow are left out, and so are questions with their answers, which
are asked anew. A call that had begun stays one that had begun.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, NoReturn, TypeVar

from .._dataclasses import asdict
from ..foreign._sound import sound, well_formed
from ..permissions import Permissions, Rule
from ..session._journal import Mailed, Partial, Request
from ..session._message import Image, Message, Native, ToolCall
from ..session._session import Compacted
from ..usage import Usage
from ._snapshot import Call, Snapshot
from ._store import Parent

T = TypeVar("T")

TYPE: Final = "lockgate_session"
VERSION: Final = 1

_SESSIONS: Final = 10_000  # at most, of one export
_MESSAGES: Final = 1_000_000  # of all of them
_CHARACTERS: Final = 100_000_000  # of a text, or of an image in base64
_LARGEST: Final = 2**53  # a number that every parser of JSON reads alike
_POINTS: Final = ("user_steering_messages_submit", "user_followup_submit")
_COUNTS: Final = ("input_tokens", "output_tokens", "cached_tokens", "cache_write_tokens", "reasoning_tokens")


def exported(snapshots: Sequence[Snapshot]) -> dict[str, Any]:
    """What `Store.export` returns: the first session, and behind it its sub-sessions, parents first."""
    first = snapshots[0].id
    return {"type": TYPE, "version": VERSION, "sessions": [_session(each, each.id == first) for each in snapshots]}


def _session(snapshot: Snapshot, first: bool) -> dict[str, Any]:
    return {
        "id": snapshot.id,
        "title": snapshot.title,
        "permissions": snapshot.permissions,
        "created_at": snapshot.created_at.isoformat(),
        "updated_at": snapshot.updated_at.isoformat(),
        "parent": None if first or snapshot.parent is None else asdict(snapshot.parent),
        "branch_of": snapshot.branch_of,
        "branch_at": snapshot.branch_at,
        "agent_name": snapshot.agent_name,
        "compacted": dict(snapshot.compacted),
        "usage": None if snapshot.usage is None else snapshot.usage.to_dict(),
        "status": snapshot.status,
        "reason": snapshot.reason,
        "messages": [message.to_dict() for message in snapshot.messages],
        "partial": None if snapshot.partial is None else asdict(snapshot.partial),
        "calls": [asdict(call) for call in snapshot.calls],
        "requests": [{**_request(each.request), "at": each.at} for each in snapshot.requests],
        "mail": [asdict(each) for each in snapshot.mail],
    }


def _request(request: Request) -> dict[str, Any]:
    expires = request.expires_at
    return {**asdict(request), "expires_at": None if expires is None else expires.isoformat()}


def imported(data: Any) -> list[Snapshot]:
    """The sessions that `exported` wrote, checked; parents first. Raises `ValueError`."""
    said = _Fields(data, "the data")
    if said.text("type") != TYPE:
        raise ValueError(f"this is not a session that export wrote: its type is {said.text('type')!r:.200}")
    if said.data.get("version") != VERSION:
        raise ValueError(
            f"this session was exported in version {said.data.get('version')!r:.200} of the format, and this lockgate"
            f" reads {VERSION}: import it with the one that wrote it, or a later one"
        )
    sessions = said.objects("sessions", _SESSIONS)
    room = _MESSAGES
    roots: dict[str, str] = {}  # the outermost session of each that is known
    snapshots: list[Snapshot] = []
    for each in sessions:
        snapshot = _snapshot(each, room)
        room -= len(snapshot.messages)
        if snapshot.id in roots:
            raise ValueError(f"session {snapshot.id!r:.200} is in it twice")
        if (snapshot.parent is None) == bool(roots):
            raise ValueError(f"session {snapshot.id!r:.200} is in it, and is no sub-session of the first")
        if snapshot.parent is None:
            roots[snapshot.id] = snapshot.id
        else:
            root = roots.get(snapshot.parent.session_id)
            if root is None:
                raise ValueError(f"session {snapshot.id!r:.200} comes before its parent, or without it")
            roots[snapshot.id] = root
            snapshot.parent = Parent(snapshot.parent.session_id, root, snapshot.parent.call_id)
        snapshots.append(snapshot)
    if not snapshots:
        raise ValueError("there is no session in it")
    runs = {(each.id, each.parent.session_id, each.parent.call_id) for each in snapshots if each.parent is not None}
    for snapshot in snapshots:
        for call in snapshot.calls:  # what says of itself that another runs it is not this one's
            call.nested = [each for each in call.nested if (each, snapshot.id, call.call_id) in runs]
    return snapshots


def _snapshot(said: _Fields, room: int) -> Snapshot:
    id = said.text("id")
    if not id:
        said.wrong("id", "text")
    partial = said.maybe_object("partial", _partial)
    messages = [_message(each) for each in said.objects("messages", room)]
    snapshot = Snapshot(
        id=id,
        title=said.text("title"),
        permissions=_permissions(said.needed("permissions")),
        created_at=said.moment("created_at"),
        updated_at=min(said.moment("updated_at"), datetime.now(UTC)),
        parent=said.maybe_object("parent", _parent),
        branch_of=said.maybe("branch_of"),
        branch_at=None if said.data.get("branch_at") is None else said.number("branch_at"),
        agent_name=said.maybe("agent_name"),
        compacted=asdict(_compacted(said.needed("compacted"), len(messages))),
        usage=said.maybe_object("usage", _usage),
        reason=said.text("reason"),
        epoch=1,
        messages=messages,
        partial=partial,
        calls=list(_open(messages)),
        mail=[_mail(each) for each in said.objects("mail", room)],
    )
    known = {(call.seq, call.call_id): call for call in snapshot.calls}
    for each in said.objects("calls", room):
        found = known.get((each.number("seq"), each.text("call_id")))
        if found is None:
            each.wrong("seq", "the number of a message whose call has no result")
        found.began = each.flag("began")
        found.arguments = each.maybe("arguments")
        found.kept = dict(sound(each.needed("kept").data))
        found.nested = each.texts("nested")
    snapshot.status = "interrupted" if known or partial else "idle"
    return snapshot


def _parent(said: _Fields) -> Parent:
    return Parent(said.text("session_id"), said.text("root_id"), said.maybe("call_id"))


def _partial(said: _Fields) -> Partial:
    return Partial(said.text("text"), said.text("agent_name"))


def _open(messages: Sequence[Message]) -> Iterator[Call]:
    """The calls that have no result."""
    found: dict[str, Call] = {}
    for seq, message in enumerate(messages):
        if message.role == "tool" and message.tool_call_id is not None:
            found.pop(message.tool_call_id, None)
        for call in message.tool_calls:
            found[call.id] = Call(seq, call.id)
    yield from found.values()


def _message(said: _Fields) -> Message:
    return said.made(
        Message,
        role=said.text("role"),
        content=said.text("content"),
        tool_calls=tuple(
            ToolCall(call.text("id"), call.text("name"), call.text("arguments"))
            for call in said.objects("tool_calls", 10_000)
        ),
        tool_call_id=said.maybe("tool_call_id"),
        is_error=said.flag("is_error"),
        images=tuple(map(_image, said.objects("images", 10_000))),
        agent_name=said.maybe("agent_name"),
        model=said.maybe("model"),
        usage=said.maybe_object("usage", _usage),
        finish_reason=said.maybe("finish_reason"),
        native=said.maybe_object("native", lambda native: Native(native.text("provider"), native.data.get("content"))),
        created_at=said.moment("created_at"),
    )


def _image(said: _Fields) -> Image:
    try:
        return Image(base64.b64decode(said.text("data"), validate=True), said.text("media_type"))
    except binascii.Error:
        said.wrong("data", "an image in base64")


def _usage(said: _Fields) -> Usage:
    counts = {name: said.number(name) for name in _COUNTS if name in said.data}
    cost = said.data.get("cost")
    if cost is not None and (isinstance(cost, bool) or not isinstance(cost, (int, float)) or not 0 <= cost < _LARGEST):
        said.wrong("cost", "a number of dollars, or null")
    return Usage(**counts, cost=None if cost is None else float(cost))


def _compacted(said: _Fields, messages: int) -> Compacted:
    start, shortened, at = said.number("start"), said.number("shortened"), said.number("at")
    if max(start, shortened, at) > messages:
        said.wrong("at", f"a number of messages, of which there are {messages}")
    return Compacted(said.text("summary"), start, shortened, at)


def _permissions(said: _Fields) -> dict[str, Any]:
    """What is asked about and denied. Not what is allowed: the user of this store has allowed nothing yet."""

    def rules(name: str) -> list[Rule]:
        return [Rule(each.text("tool"), _pairs(each), each.text("owner")) for each in said.objects(name, 10_000)]

    made = said.made(Permissions, ask=rules("ask"), deny=rules("deny"))
    asked = {name: [asdict(rule) for rule in getattr(made, name)] for name in ("allow", "ask", "deny")}
    return {**asked, "approve_all": False}


def _pairs(said: _Fields) -> tuple[tuple[str, str], ...]:
    pairs = said.items("arguments", 1_000)
    for pair in pairs:
        if not (isinstance(pair, (list, tuple)) and len(pair) == 2 and all(isinstance(each, str) for each in pair)):
            said.wrong("arguments", "a list of pairs of texts")
    return tuple((well_formed(name), well_formed(pattern)) for name, pattern in pairs)


def _mail(said: _Fields) -> Mailed:
    point = said.text("point")
    if point not in _POINTS:
        said.wrong("point", " or ".join(_POINTS))
    return Mailed(said.text("id"), point, said.text("text"))  # type: ignore[arg-type]


class _Fields:
    """An object of the data, whose fields are read with a check of what they are."""

    def __init__(self, data: Any, where: str) -> None:
        if not isinstance(data, Mapping):
            raise ValueError(f"{where} is an object, as export writes it, not {_shown(data)}")
        self.data = data
        self._where = where

    def wrong(self, name: str, wanted: str) -> NoReturn:
        """Raise `ValueError`: the field is not what is wanted."""
        said = _shown(self.data[name]) if name in self.data else "missing"
        raise ValueError(f"{name} of {self._where} is {said}, and should be {wanted}")

    def text(self, name: str) -> str:
        value = self.data.get(name)
        if not isinstance(value, str) or len(value) > _CHARACTERS:
            self.wrong(name, f"text of at most {_CHARACTERS:,} characters")
        return well_formed(value)

    def maybe(self, name: str) -> str | None:
        return None if self.data.get(name) is None else self.text(name)

    def number(self, name: str) -> int:
        value = self.data.get(name)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < _LARGEST:
            self.wrong(name, "a whole number, 0 or more")
        return value

    def flag(self, name: str) -> bool:
        value = self.data.get(name, False)
        if not isinstance(value, bool):
            self.wrong(name, "true or false")
        return value

    def moment(self, name: str) -> datetime:
        try:
            value = datetime.fromisoformat(self.text(name))
            if value.tzinfo is None:
                raise ValueError
            return value.astimezone(UTC)
        except (ValueError, OverflowError):
            self.wrong(name, "a date and time with a time zone")

    def items(self, name: str, most: int) -> Sequence[Any]:
        value = self.data.get(name, [])
        if not isinstance(value, (list, tuple)):
            self.wrong(name, "a list")
        if len(value) > most:
            raise ValueError(f"{name} of {self._where} has {len(value):,} items, more than {most:,}")
        return value

    def texts(self, name: str) -> list[str]:
        found = self.items(name, _SESSIONS)
        if not all(isinstance(each, str) for each in found):
            self.wrong(name, "a list of texts")
        return [well_formed(each) for each in found]

    def objects(self, name: str, most: int) -> list[_Fields]:
        return [_Fields(each, f"{name}[{i}] of {self._where}") for i, each in enumerate(self.items(name, most))]

    def maybe_object(self, name: str, read: Callable[[_Fields], T]) -> T | None:
        return None if self.data.get(name) is None else read(self.needed(name))

    def needed(self, name: str) -> _Fields:
        return _Fields(self.data.get(name), f"{name} of {self._where}")

    def made(self, kind: Callable[..., T], **fields: Any) -> T:
        """What ``kind`` makes of the fields, which it may have reasons of its own to refuse."""
        try:
            return kind(**fields)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{self._where}: {error}") from None


def _shown(value: Any) -> str:
    """A value in an error: never all of it, which may be long."""
    if isinstance(value, str):
        return f"{value[:60]!r}..." if len(value) > 60 else repr(value)
    return repr(value) if value is None or isinstance(value, (bool, float)) else f"a {type(value).__name__}"
