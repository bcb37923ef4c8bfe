"""What a session is in rows: the statements that an entry of its journal makes, and the session that rows make."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any, TypeAlias

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
from ...usage import Usage
from .._images import put_together, taken_apart
from .._search_terms import words
from .._snapshot import Asking, Call, Snapshot, allowing
from .._store import Parent
from ._database import Connection, Cursor, Database

Statement: TypeAlias = tuple[str, tuple[Any, ...]]

LOGGED = "events"  # what is said of an event log that has grown
_MARK = "\x01"  # before a text that is written in another way


def column(text: str) -> str:
    """``text`` for a column: PostgreSQL takes every character but NUL."""
    return _MARK + json.dumps(text) if "\0" in text or text.startswith(_MARK) else text


def text_of(value: str) -> str:
    """The text that `column` wrote."""
    return json.loads(value[1:]) if value.startswith(_MARK) else value


def as_json(value: Any) -> str:
    """``value`` for a column of JSON."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


@dataclass(slots=True)
class Head:
    """What the writer of a session knows of its rows. While it has the lease nobody else changes them."""

    session_id: str  # as its column has it
    epoch: int
    channel: str  # on which those who watch listen
    messages: int = 0
    permissions: dict[str, Any] = field(default_factory=dict)
    usage: Usage | None = None
    partial: bool = False
    calls: dict[str, int] = field(default_factory=dict)  # the messages that have made the calls without a result

    def statements(self, entries: Iterable[Entry]) -> list[Statement]:
        """The statements that write the entries."""
        return [statement for entry in entries for statement in self._entry(entry)]

    def _entry(self, entry: Entry) -> Iterator[Statement]:
        session = self.session_id
        match entry:
            case Said(message, mail):
                yield from self._message(message)
                if mail is not None:
                    yield (
                        "UPDATE @mailbox SET taken_at = clock_timestamp() WHERE session_id = %s AND id = %s",
                        (session, column(mail)),
                    )
            case Ended(message):
                yield from self._message(message)
            case Requested(request):
                yield insert_request(request, self.messages)
            case Began(call_id, arguments):
                yield (
                    "UPDATE @calls SET began_at = clock_timestamp(), arguments = %s"
                    " WHERE session_id = %s AND seq = %s AND call_id = %s",
                    (column(arguments), *self._call(call_id)),
                )
            case Step(call_id, key, value):
                text = as_json(value)
                if call_id in self.calls:
                    yield (
                        "INSERT INTO @kept (session_id, seq, call_id, key, value) VALUES (%s, %s, %s, %s, %s)"
                        " ON CONFLICT (session_id, seq, call_id, key) DO NOTHING",
                        (*self._call(call_id), column(key), text),
                    )
            case Partial(text, agent_name):
                self.partial = True
                yield self._set("partial", as_json({"text": text, "agent_name": agent_name}))
            case Counted(usage):
                yield self._count(usage)
            case Named(title):
                yield (
                    "UPDATE @sessions SET title = %s, words = array_to_tsvector(%s) WHERE id = %s",
                    (column(title), words(title), session),
                )
            case HandedOver(agent_name):
                yield self._set("agent_name", column(agent_name))
            case Shortened():
                yield self._set("compacted", as_json(asdict(entry)))
            case Allowed(rule):
                self.permissions = allowing(self.permissions, rule)
                yield self._set("permissions", as_json(self.permissions))
            case Mailed(mail_id, point, text):
                yield (
                    "INSERT INTO @mailbox (session_id, id, point, text) VALUES (%s, %s, %s, %s) ON CONFLICT DO NOTHING",
                    (session, column(mail_id), point, column(text)),
                )
            case _:
                raise TypeError(f"{entry!r:.200} is no entry of a journal")

    def snapshot(self, snapshot: Snapshot) -> Iterator[Statement]:
        """The statements that write a session which another store had."""
        parent, session = snapshot.parent, self.session_id
        yield (
            "INSERT INTO @sessions (id, parent_id, root_id, call_id, branch_of, branch_at, title, agent_name, status,"
            " reason, permissions, compacted, messages, created_at, updated_at, epoch, words) VALUES"
            " (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, array_to_tsvector(%s))",
            (
                session,
                None if parent is None else column(parent.session_id),
                session if parent is None else column(parent.root_id),
                None if parent is None or parent.call_id is None else column(parent.call_id),
                None if snapshot.branch_of is None else column(snapshot.branch_of),
                snapshot.branch_at,
                column(snapshot.title),
                None if snapshot.agent_name is None else column(snapshot.agent_name),
                snapshot.status,
                column(snapshot.reason),
                as_json(snapshot.permissions),
                as_json(snapshot.compacted),
                len(snapshot.messages),
                snapshot.created_at,
                snapshot.updated_at,
                snapshot.epoch,
                words(snapshot.title),
            ),
        )
        for message in snapshot.messages:
            yield from self._message(message)
        if snapshot.usage is not None and snapshot.usage != self.usage:
            yield self.set_usage(snapshot.usage)
        entries: list[Entry] = [] if snapshot.partial is None else [snapshot.partial]
        for call in snapshot.calls:
            if call.began:
                entries.append(Began(call.call_id, call.arguments or "{}"))
            entries += [Step(call.call_id, key, value) for key, value in call.kept.items()]
        yield from self.statements([*entries, *snapshot.mail])
        for call in snapshot.calls:
            for nested in call.nested:
                yield (
                    "INSERT INTO @nested (session_id, seq, call_id, nested_id) VALUES (%s, %s, %s, %s)"
                    " ON CONFLICT DO NOTHING",
                    (*self._call(call.call_id), column(nested)),
                )

    def _call(self, call_id: str) -> tuple[str, int, str]:
        """The key of the row of a call; of none where it has a result, or never was."""
        return self.session_id, self.calls.get(call_id, -1), column(call_id)

    def _set(self, name: str, value: str) -> Statement:
        return f"UPDATE @sessions SET {name} = %s WHERE id = %s", (value, self.session_id)

    def _count(self, usage: Usage) -> Statement:
        return self.set_usage(usage if self.usage is None else self.usage + usage)

    def set_usage(self, usage: Usage) -> Statement:
        """Let the tokens that were used be these."""
        self.usage = usage
        return self._set("usage", as_json(self.usage.to_dict()))

    def _message(self, message: Message) -> Iterator[Statement]:
        """The row of a message, with its images, its calls, or the end of its call."""
        seq, self.messages = self.messages, self.messages + 1
        session = self.session_id
        data, blobs = taken_apart(message)
        yield (
            "INSERT INTO @items (session_id, seq, data, words) VALUES (%s, %s, %s, array_to_tsvector(%s))",
            (session, seq, as_json(data), words(message.content)),
        )
        for digest, content in blobs:
            yield "INSERT INTO @blobs (sha256, data) VALUES (%s, %s) ON CONFLICT DO NOTHING", (digest, content)
            yield "INSERT INTO @images (session_id, seq, sha256) VALUES (%s, %s, %s)", (session, seq, digest)
        if message.usage is not None:
            yield self._count(message.usage)
        if message.role == "assistant" and self.partial:
            self.partial = False
            yield "UPDATE @sessions SET partial = NULL WHERE id = %s", (session,)
        for place, call in enumerate(message.tool_calls):
            self.calls[call.id] = seq
            yield (
                "INSERT INTO @calls (session_id, seq, place, call_id, name) VALUES (%s, %s, %s, %s, %s)"
                " ON CONFLICT DO NOTHING",  # a model may give two calls one id
                (session, seq, place, column(call.id), column(call.name)),
            )
        if message.role == "tool" and message.tool_call_id in self.calls:
            call_id = message.tool_call_id
            key = self._call(call_id)
            del self.calls[call_id]
            yield (
                "UPDATE @calls SET ended_at = clock_timestamp() WHERE session_id = %s AND seq = %s AND call_id = %s",
                key,
            )
            yield withdraw("session_id = %s AND call_id = %s", (session, column(call_id)))


def withdraw(which: str, values: tuple[Any, ...]) -> Statement:
    """Let nobody answer the requests any more, as nobody waits for them."""
    return (
        f"UPDATE @requests SET withdrawn_at = clock_timestamp() WHERE {which} AND answer IS NULL"
        " AND withdrawn_at IS NULL",
        values,
    )


def ring(channel: str, what: str = "") -> Statement:
    """Let those who watch look, once the transaction is through; only at event logs, if it is only `LOGGED`."""
    return "SELECT pg_notify(%s, %s)", (channel, what)


def insert_request(request: Request, at: int) -> Statement:
    """The row of a request, asked when there were ``at`` messages. One that is asked again keeps its answer."""
    return (
        "INSERT INTO @requests AS r (id, session_id, root_id, kind, event, call_id, arguments, ordinal, schema,"
        " expires_at, answer, answered_by, at) VALUES"
        " (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)"
        " ON CONFLICT (id) DO UPDATE SET at = excluded.at, event = excluded.event, expires_at = excluded.expires_at,"
        " withdrawn_at = NULL WHERE r.answer IS NULL",
        (
            column(request.id),
            column(request.session_id),
            column(request.root_id),
            request.kind,
            as_json(request.event),
            None if request.call_id is None else column(request.call_id),
            None if request.arguments is None else column(request.arguments),
            request.ordinal,
            None if request.schema is None else as_json(request.schema),
            request.expires_at,
            None if request.answer is None else as_json(request.answer),
            column(request.answered_by),
            at,
        ),
    )


REQUEST = (
    "r.id, r.session_id, r.root_id, r.kind, r.event, r.call_id, r.arguments, r.ordinal, r.schema, r.expires_at,"
    " r.answer, r.answered_by"
)


def request_of(row: Iterable[Any]) -> Request:
    """The request of a row of the columns `REQUEST`."""
    id, session, root, kind, event, call, arguments, ordinal, schema, expires, answer, by = row
    return Request(
        id=text_of(id),
        session_id=text_of(session),
        root_id=text_of(root),
        kind=kind,
        event=event,
        call_id=_maybe(call),
        arguments=_maybe(arguments),
        ordinal=ordinal,
        schema=schema,
        expires_at=None if expires is None else utc(expires),
        answer=answer,
        answered_by=text_of(by),
    )


def utc(moment: datetime) -> datetime:
    """A moment in the one zone of all stores; a connection has that of its server."""
    return moment.astimezone(UTC)


def _maybe(value: str | None) -> str | None:
    return None if value is None else text_of(value)


def snapshot_of(database: Database, connection: Connection, id: str, *, messages: bool = True) -> Snapshot | None:
    """What there is of the session with this id, maybe without its ``messages``; None where there is none. For the
    state of one moment, within a transaction that has one.
    """
    key = (column(id),)
    sql = database.sql
    with connection.pipeline():  # all of them are on their way before the first has come back
        head = connection.execute(
            sql(
                "SELECT title, agent_name, permissions, compacted, usage, partial, epoch, status, reason, created_at,"
                " updated_at, parent_id, root_id, call_id, branch_of, branch_at, messages FROM @sessions WHERE id = %s"
            ),
            key,
        )
        wanted = (*key, messages)
        items = connection.execute(sql("SELECT data FROM @items WHERE session_id = %s AND %s ORDER BY seq"), wanted)
        blobs = connection.execute(
            sql(
                "SELECT sha256, data FROM @blobs WHERE sha256 IN (SELECT sha256 FROM @images WHERE session_id = %s)"
                " AND %s"
            ),
            wanted,
        )
        unfinished = _ask_unfinished(database, connection, key)
    row = head.fetchone()
    if row is None:
        return None
    (title, agent_name, permissions, compacted, usage, partial, epoch, status, reason, created, updated, parent, root,
     call, branch_of, branch_at, count) = row  # fmt: skip
    images = {digest.hex(): bytes(data) for digest, data in blobs}
    calls, requests, mail = _read_unfinished(*unfinished)
    return Snapshot(
        id=id,
        title=text_of(title),
        permissions=permissions,
        created_at=utc(created),
        updated_at=utc(updated),
        parent=None if parent is None else Parent(text_of(parent), text_of(root), _maybe(call)),
        branch_of=_maybe(branch_of),
        branch_at=branch_at,
        agent_name=_maybe(agent_name),
        compacted=compacted,
        usage=None if usage is None else Usage(**usage),
        status=status,
        reason=text_of(reason),
        epoch=epoch,
        messages=[put_together(data, images) for (data,) in items],
        partial=None if partial is None else Partial(**partial),
        calls=calls,
        requests=requests,
        mail=mail,
        count=count,
    )


def _ask_unfinished(database: Database, connection: Connection, key: tuple[str]) -> tuple[Cursor, ...]:
    sql = database.sql
    return (
        connection.execute(
            sql(
                "SELECT seq, call_id, arguments, began_at IS NOT NULL FROM @calls"
                " WHERE session_id = %s AND ended_at IS NULL ORDER BY seq, place"
            ),
            key,
        ),
        connection.execute(
            sql("SELECT seq, call_id, nested_id FROM @nested WHERE session_id = %s ORDER BY number"), key
        ),
        connection.execute(
            sql("SELECT seq, call_id, key, value FROM @kept WHERE session_id = %s ORDER BY number"), key
        ),
        connection.execute(
            sql(
                f"SELECT r.at, {REQUEST} FROM @requests r WHERE session_id = %s AND withdrawn_at IS NULL"
                # Those of calls that have ended are of no use any more.
                " AND (call_id IS NULL OR call_id IN"
                " (SELECT c.call_id FROM @calls c WHERE c.session_id = r.session_id AND c.ended_at IS NULL))"
                " ORDER BY number"
            ),
            key,
        ),
        connection.execute(
            sql("SELECT id, point, text FROM @mailbox WHERE session_id = %s AND taken_at IS NULL ORDER BY number"),
            key,
        ),
    )


def _read_unfinished(
    open_calls: Cursor, nested: Cursor, kept: Cursor, asked: Cursor, mail: Cursor
) -> tuple[list[Call], list[Asking], list[Mailed]]:
    calls = {
        (seq, key): Call(seq, text_of(key), None if arguments is None else text_of(arguments), began)
        for seq, key, arguments, began in open_calls
    }
    for seq, key, nested_id in nested:
        if call := calls.get((seq, key)):
            call.nested.append(text_of(nested_id))
    for seq, key, name, value in kept:
        if call := calls.get((seq, key)):
            call.kept[text_of(name)] = value
    return (
        list(calls.values()),
        [Asking(request_of(rest), at) for at, *rest in asked],
        [Mailed(text_of(mail_id), point, text_of(text)) for mail_id, point, text in mail],
    )
