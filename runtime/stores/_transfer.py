"""Sessions on their way from one store to another: what `Store.export` returns, and `Store.import_` takes.

What is imported may be anybody's. It is read field by field, within bounds, and is taken for what was said and done,
never for what the user has allowed: patterns that allow are left out, and so are questions with their answers, which
are asked anew. A call that had begun stays one that had begun.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from .._dataclasses import asdict
from ..foreign._fields import Fields
from ..foreign._sound import sound
from ..permissions import Permissions
from ..session._journal import Mailed, Partial, Request
from ..session._message import Message
from ..session._reading import compacted, message, rules, usage
from ..session._session import Compacted
from ._snapshot import Call, Snapshot
from ._store import Parent

TYPE: Final = "lockgate_session"
VERSION: Final = 1

_SESSIONS: Final = 10_000  # at most, of one export
_MESSAGES: Final = 1_000_000  # of all of them
_POINTS: Final = ("user_steering_messages_submit", "user_followup_submit")


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
    said = Fields(data, "the data")
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


def _snapshot(said: Fields, room: int) -> Snapshot:
    id = said.text("id")
    if not id:
        said.wrong("id", "text")
    partial = said.maybe_object("partial", _partial)
    messages = [message(each) for each in said.objects("messages", room)]
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
        compacted=asdict(Compacted(*compacted(said.needed("compacted"), len(messages)))),
        usage=said.maybe_object("usage", usage),
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
        found.nested = each.texts("nested", _SESSIONS)
    snapshot.status = "interrupted" if known or partial else "idle"
    return snapshot


def _parent(said: Fields) -> Parent:
    return Parent(said.text("session_id"), said.text("root_id"), said.maybe("call_id"))


def _partial(said: Fields) -> Partial:
    return Partial(said.text("text"), said.text("agent_name"))


def _open(messages: Sequence[Message]) -> Iterator[Call]:
    """The calls that have no result."""
    found: dict[str, Call] = {}
    for seq, each in enumerate(messages):
        if each.role == "tool" and each.tool_call_id is not None:
            found.pop(each.tool_call_id, None)
        for call in each.tool_calls:
            found[call.id] = Call(seq, call.id)
    yield from found.values()


def _permissions(said: Fields) -> dict[str, Any]:
    """What is asked about and denied. Not what is allowed: the user of this store has allowed nothing yet."""

    made = said.made(Permissions, ask=rules(said, "ask"), deny=rules(said, "deny"))
    asked = {name: [asdict(rule) for rule in getattr(made, name)] for name in ("allow", "ask", "deny")}
    return {**asked, "approve_all": False}


def _mail(said: Fields) -> Mailed:
    point = said.text("point")
    if point not in _POINTS:
        said.wrong("point", " or ".join(_POINTS))
    return Mailed(said.text("id"), point, said.text("text"))  # type: ignore[arg-type]
