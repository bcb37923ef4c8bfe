"""What a session is in rows: what an entry of its journal writes, and the snapshot that rows make.

An entry is made into JSON by the thread that appends it (`prepared`), so that the one writer of the store only writes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeAlias

from ..._dataclasses import asdict, dataclass, field, replace
from ..._errors import StoreError
from ...foreign._sound import well_formed
from ...session._journal import (
    Allowed,
    Began,
    Counted,
    Ended,
    Entry,
    HandedOver,
    Mailed,
    Named,
    Partial,
    Request,
    Requested,
    Said,
    Shortened,
    Step,
)
from ...session._message import Message
from ...session._session import Session
from ...usage import Usage
from .._images import put_together, taken_apart
from .._snapshot import Asking, Call, Snapshot, allowing, permissions_of
from .._store import Parent
from ._file import Connection, first

SHIFT: Final = 32  # bits of the place of an item in its session
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_encode: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
_decode: Final = json.JSONDecoder().decode


def as_json(value: Any) -> str:
    """``value`` for a column of JSON. Raises what `json` raises."""
    text = _encode(value)
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:  # half an emoji: only as an escape
            return json.dumps(value)
    return text


def micros(moment: datetime) -> int:
    """A moment for a column."""
    return (moment - _EPOCH) // timedelta(microseconds=1)


def moment(value: int) -> datetime:
    """The moment that `micros` wrote."""
    return _EPOCH + timedelta(microseconds=value)


def items_of(session: int) -> tuple[int, int]:
    """The first and the last number that an item of the session may have."""
    return session << SHIFT, (session + 1 << SHIFT) - 1


# -- writing -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class MessageRow:
    """A message, ready to be written."""

    data: str
    role: str
    blobs: tuple[tuple[bytes, bytes], ...] = ()
    usage: Usage | None = None
    calls: tuple[tuple[str, str], ...] = ()  # id, name
    result_of: str | None = None
    mail: str | None = None


@dataclass(frozen=True, slots=True)
class RequestRow:
    """A request, ready to be written."""

    id: str
    values: dict[str, Any]


Prepared: TypeAlias = (
    MessageRow | RequestRow | Began | Step | Partial | Counted | Named | HandedOver | Shortened | Allowed | Mailed
)


def prepared(entry: Entry) -> Prepared:
    """The entry with its JSON made. Raises `StoreError` where JSON has no word for what is in it."""
    try:
        match entry:
            case Said(message, mail):
                return message_row(message, mail)
            case Ended(message):
                return message_row(message)
            case Requested(request):
                return request_row(request)
            case Step(_, _, value):
                return replace(entry, value=as_json(value))
            case Named(title):
                return Named(well_formed(title))
            case Partial(text, agent_name):
                return Partial(well_formed(text), well_formed(agent_name))
        return entry
    except (TypeError, ValueError, RecursionError) as error:
        raise StoreError(f"{type(entry).__name__} cannot be written as JSON: {error}") from error


def message_row(message: Message, mail: str | None = None) -> MessageRow:
    """A message, ready to be written."""
    data, blobs = taken_apart(message)
    return MessageRow(
        data=as_json(data),
        role=message.role,
        blobs=blobs,
        usage=message.usage,
        calls=tuple((call.id, call.name) for call in message.tool_calls),
        result_of=message.tool_call_id if message.role == "tool" else None,
        mail=mail,
    )


def request_row(request: Request) -> RequestRow:
    """A request, ready to be written."""
    expires, schema, answer = request.expires_at, request.schema, request.answer
    return RequestRow(
        request.id,
        {
            "id": request.id,
            "root_id": request.root_id,
            "kind": request.kind,
            "event": as_json(request.event),
            "call_id": request.call_id,
            "arguments": request.arguments,
            "ordinal": request.ordinal,
            "schema": None if schema is None else as_json(schema),
            "expires_at": None if expires is None else micros(expires),
            "answer": None if answer is None else as_json(answer),
            "answered_by": well_formed(request.answered_by),
        },
    )


@dataclass(slots=True)
class Head:
    """What the writer knows of the rows of a session. While it has the lease nobody else changes them."""

    number: int
    session_id: str
    messages: int = 0
    permissions: dict[str, Any] = field(default_factory=dict)
    usage: Usage | None = None
    partial: bool = False
    calls: dict[str, int] = field(default_factory=dict)  # the messages that have made the calls without a result
    asked: set[str | None] = field(default_factory=set)  # calls that may have requests

    def write(self, connection: Connection, entries: Iterable[Prepared], now: int) -> dict[str, Any]:
        """Write the entries; what is to change in the row of the session itself."""
        changed: dict[str, Any] = {}
        for entry in entries:
            self._write(connection, entry, now, changed)
        return changed

    def _write(self, connection: Connection, entry: Prepared, now: int, changed: dict[str, Any]) -> None:
        execute, session = connection.execute, self.number
        match entry:
            case MessageRow():
                self._message(connection, entry, now, changed)
            case RequestRow(_, values):
                self._request(connection, values)
            case Began(call_id, arguments):
                execute(
                    "UPDATE calls SET began_at = ?, arguments = ? WHERE session = ? AND seq = ? AND call_id = ?",
                    (now, well_formed(arguments), session, self.calls.get(call_id, -1), call_id),
                )
            case Step(call_id, key, value):
                if call_id in self.calls:
                    execute(
                        "INSERT INTO kept VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
                        (session, self.calls[call_id], call_id, well_formed(key), value),
                    )
            case Partial(text, agent_name):
                self.partial = True
                changed["partial"] = as_json({"text": text, "agent_name": agent_name})
            case Counted(usage):
                self._count(usage, changed)
            case Named(title):
                changed["title"] = title
            case HandedOver(agent_name):
                changed["agent_name"] = agent_name
            case Shortened():
                changed["compacted"] = as_json(asdict(entry))
            case Allowed(rule):
                self.permissions = allowing(self.permissions, rule)
                changed["permissions"] = as_json(self.permissions)
            case Mailed(id, point, text):
                execute(
                    "INSERT INTO mailbox (session, id, point, text) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
                    (session, id, point, well_formed(text)),
                )

    def _count(self, usage: Usage, changed: dict[str, Any]) -> None:
        self.usage = usage if self.usage is None else self.usage + usage
        changed["usage"] = as_json(self.usage.to_dict())

    def _message(self, connection: Connection, row: MessageRow, now: int, changed: dict[str, Any]) -> None:
        """The row of a message, with its images, its calls, or the end of its call."""
        execute, session = connection.execute, self.number
        seq, self.messages = self.messages, self.messages + 1
        item = (session << SHIFT) + seq
        execute("INSERT INTO items VALUES (?, ?)", (item, row.data))
        for digest, data in row.blobs:
            execute("INSERT INTO blobs VALUES (?, ?) ON CONFLICT DO NOTHING", (digest, data))
            execute("INSERT INTO images VALUES (?, ?) ON CONFLICT DO NOTHING", (item, digest))
        if row.usage is not None:
            self._count(row.usage, changed)
        if row.role == "assistant" and self.partial:
            self.partial = False
            changed["partial"] = None
        for place, (call_id, name) in enumerate(row.calls):
            if call_id in self.calls and self.calls[call_id] != seq:  # the earlier one can have no result any more
                self._end(connection, call_id)
            self.calls[call_id] = seq
            execute(
                "INSERT INTO calls (session, seq, place, call_id, name) VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
                (session, seq, place, call_id, name),  # a model may give two calls one id
            )
        if row.result_of is not None and row.result_of in self.calls:
            self._end(connection, row.result_of)
            if row.result_of in self.asked:
                self.asked.discard(row.result_of)
                withdraw(connection, session, now, row.result_of)
        if row.mail is not None:
            execute("UPDATE mailbox SET taken_at = ? WHERE session = ? AND id = ?", (now, session, row.mail))

    def _end(self, connection: Connection, call_id: str) -> None:
        connection.execute(
            "DELETE FROM calls WHERE session = ? AND seq = ? AND call_id = ?",
            (self.number, self.calls.pop(call_id), call_id),
        )

    def _request(self, connection: Connection, values: dict[str, Any]) -> None:
        """A request; one that is asked again keeps its answer."""
        self.asked.add(values["call_id"])
        row = {**values, "session": self.number, "at": self.messages}
        connection.execute(
            f"INSERT INTO requests ({', '.join(row)}) VALUES ({', '.join('?' * len(row))}) ON CONFLICT (id) DO UPDATE"
            " SET at = excluded.at, withdrawn_at = NULL,"
            " event = iif(answer IS NULL, excluded.event, event),"
            " schema = iif(answer IS NULL, excluded.schema, schema),"
            " expires_at = iif(answer IS NULL, excluded.expires_at, expires_at)"
            " WHERE session = excluded.session",
            tuple(row.values()),
        )


def withdraw(connection: Connection, session: int, now: int, call_id: str | None = None) -> None:
    """Let nobody answer the requests of a call any more, or any of the session's, as nobody waits for them."""
    connection.execute(
        "UPDATE requests SET withdrawn_at = ? WHERE session = ? AND answer IS NULL AND withdrawn_at IS NULL"
        + ("" if call_id is None else " AND call_id = ?"),
        (now, session) if call_id is None else (now, session, call_id),
    )


def insert_session(
    connection: Connection,
    session: Session,
    now: int,
    *,
    parent: Parent | None = None,
    branch: tuple[str, int] | None = None,
) -> int:
    """The row of a new session, without its messages; its number. Raises `StoreError` where its parent is not there."""
    above = root = seq = None
    if parent is not None:
        found = connection.execute("SELECT number, root FROM sessions WHERE id = ?", (parent.session_id,)).fetchone()
        if found is None:
            raise StoreError(f"the store has no session {parent.session_id}, of which this would be a sub-session")
        above, root = found[0], found[1] or found[0]
        call = connection.execute(
            "SELECT seq FROM calls WHERE session = ? AND call_id = ? ORDER BY seq DESC", (above, parent.call_id)
        ).fetchone()
        seq = None if call is None else call[0]
    done = connection.execute(
        "INSERT INTO sessions (id, parent, root, call_id, call_seq, branch_of, branch_at, title, status, permissions,"
        " compacted, created_at, updated_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, 'idle', ?, '', ?, ?)",
        (
            session.id,
            above,
            root,
            None if parent is None else parent.call_id,
            seq,
            *(branch or (None, None)),
            well_formed(session.title),
            as_json(permissions_of(session)),
            now,
            now,
        ),
    )
    assert done.lastrowid is not None
    return done.lastrowid


def update_session(connection: Connection, number: int, changed: Mapping[str, Any], epoch: int | None = None) -> bool:
    """Change some columns of the row of a session; whether it is there, and still of this ``epoch``."""
    fence = "" if epoch is None else f" AND epoch = {epoch:d}"
    done = connection.execute(
        f"UPDATE sessions SET {', '.join(f'{name} = ?' for name in changed)} WHERE number = ?{fence}",
        (*changed.values(), number),
    )
    return bool(done.rowcount)


def forget_messages(connection: Connection, number: int, now: int) -> None:
    """Let the session be without messages and what hangs on them: they are written anew."""
    withdraw(connection, number, now)
    connection.execute("UPDATE sessions SET partial = NULL, usage = NULL, indexed = 0 WHERE number = ?", (number,))
    connection.execute("DELETE FROM calls WHERE session = ?", (number,))
    connection.execute("DELETE FROM items WHERE number BETWEEN ? AND ?", items_of(number))


def forget_blobs(connection: Connection, digests: Iterable[tuple[bytes]]) -> None:
    """Delete those images that no message shows any more."""
    connection.executemany(
        "DELETE FROM blobs WHERE sha256 = ? AND NOT EXISTS (SELECT 1 FROM images WHERE images.sha256 = blobs.sha256)",
        digests,
    )


def blobs_of(connection: Connection, numbers: Sequence[int]) -> list[tuple[bytes]]:
    """The digests of the images of these sessions."""
    return [
        row
        for number in numbers
        for row in connection.execute("SELECT DISTINCT sha256 FROM images WHERE item BETWEEN ? AND ?", items_of(number))
    ]


# -- reading -----------------------------------------------------------------------------------------------------------

REQUEST: Final = (
    "requests.id, sessions.id, root_id, kind, event, requests.call_id, arguments, ordinal, schema, expires_at,"
    " answer, answered_by"
)
_SESSION: Final = (
    "number, id, parent, root, call_id, branch_of, branch_at, title, agent_name, status, reason, permissions,"
    " compacted, usage, partial, epoch, created_at, updated_at"
)


def request_of(row: Sequence[Any]) -> Request:
    """The request of a row of the columns `REQUEST`."""
    id, session, root, kind, event, call, arguments, ordinal, schema, expires, answer, by = row
    return Request(
        id=id,
        session_id=session,
        root_id=root,
        kind=kind,
        event=_decode(event),
        call_id=call,
        arguments=arguments,
        ordinal=ordinal,
        schema=None if schema is None else _decode(schema),
        expires_at=None if expires is None else moment(expires),
        answer=None if answer is None else _decode(answer),
        answered_by=by,
    )


def snapshot_of(connection: Connection, id: str, *, messages: bool = True) -> Snapshot | None:
    """What the store has of the session, in the transaction of ``connection``; None where it is not there.

    Without ``messages`` only what it has left to do, in a fraction of the time.
    """
    row = connection.execute(f"SELECT {_SESSION}, messages FROM sessions WHERE id = ?", (id,)).fetchone()
    if row is None:
        return None
    number, _, above, root, call_id, branch_of, branch_at, title, agent_name, status, reason, *rest, count = row
    permissions, compacted, usage, partial, epoch, created, updated = rest
    snapshot = Snapshot(
        id=id,
        title=title,
        permissions=_decode(permissions),
        created_at=moment(created),
        updated_at=moment(updated),
        parent=None if above is None else Parent(_id(connection, above), _id(connection, root), call_id),
        branch_of=branch_of,
        branch_at=branch_at,
        agent_name=agent_name,
        compacted=_decode(compacted),
        usage=None if usage is None else Usage(**_decode(usage)),
        status=status,
        reason=reason,
        epoch=epoch,
        messages=_messages(connection, number) if messages else [],
        partial=None if partial is None else Partial(**_decode(partial)),
        calls=_calls(connection, number),
        requests=[
            Asking(request_of(each), at)
            for *each, at in connection.execute(
                f"SELECT {REQUEST}, at FROM requests JOIN sessions ON sessions.number = session"
                " WHERE session = ? AND withdrawn_at IS NULL ORDER BY requests.number",
                (number,),
            )
        ],
        mail=mail_of(connection, number),
    )
    snapshot.count = None if messages else count
    return snapshot


def _id(connection: Connection, number: int) -> str:
    id: str = first(connection.execute("SELECT id FROM sessions WHERE number = ?", (number,)).fetchone())
    return id


def mail_of(connection: Connection, number: int) -> list[Mailed]:
    """The messages of the user that the agent has not heard."""
    rows = connection.execute(
        "SELECT id, point, text FROM mailbox WHERE session = ? AND taken_at IS NULL ORDER BY number", (number,)
    )
    return [Mailed(*each) for each in rows]


def _messages(connection: Connection, number: int) -> list[Message]:
    images: dict[str, bytes] = {
        digest.hex(): data
        for digest, data in connection.execute(
            "SELECT DISTINCT blobs.sha256, data FROM blobs WHERE sha256 IN"
            " (SELECT sha256 FROM images WHERE item BETWEEN ? AND ?)",
            items_of(number),
        )
    }
    rows = connection.execute("SELECT data FROM items WHERE number BETWEEN ? AND ? ORDER BY number", items_of(number))
    return [put_together(_decode(data), images) for (data,) in rows]


def _calls(connection: Connection, number: int) -> list[Call]:
    calls = {
        (seq, id): Call(seq, id, arguments, began)
        for seq, id, arguments, began in (
            (seq, id, arguments, began_at is not None)
            for seq, id, arguments, began_at in connection.execute(
                "SELECT seq, call_id, arguments, began_at FROM calls WHERE session = ? ORDER BY seq, place",
                (number,),
            )
        )
    }
    for (seq, id), call in calls.items():
        key = (number, seq, id)
        call.kept = {
            name: _decode(value)
            for name, value in connection.execute(
                "SELECT key, value FROM kept WHERE session = ? AND seq = ? AND call_id = ?", key
            )
        }
        call.nested = [
            nested
            for (nested,) in connection.execute(
                "SELECT id FROM sessions WHERE parent = ? AND call_seq = ? AND call_id = ? ORDER BY number", key
            )
        ]
    return list(calls.values())


def family_of(connection: Connection, id: str) -> list[tuple[int, str]]:
    """The number and id of the session and its sub-sessions, parents first."""
    return connection.execute(
        "WITH RECURSIVE family (number, depth) AS (SELECT number, 0 FROM sessions WHERE id = ? UNION ALL"
        " SELECT s.number, depth + 1 FROM sessions s JOIN family ON s.parent = family.number)"
        " SELECT number, id FROM family JOIN sessions USING (number) ORDER BY depth, number",
        (id,),
    ).fetchall()
