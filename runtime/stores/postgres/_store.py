"""`PostgresStore`."""

from __future__ import annotations

import contextlib
import uuid
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

from channels import Receiver, SupportsDone

from ..._checks import check_number, is_number
from ..._errors import NotPending, SessionBusy, SessionNotFound
from ..._public import not_copied, publish
from ...session._idempotency import IdempotencyKey
from ...session._journal import Ended, Mailed, MailPoint, Request, Said, Unfinished
from ...session._message import Message
from ...session._session import Session, Stored
from ...usage import Usage
from .._answers import checked
from .._commands import checked_mail, not_running, reason_for
from .._events import numbered
from .._ids import behind, checked_done, checked_id, in_utc
from .._owner import Owner
from .._search_terms import words
from .._snapshot import Snapshot, branched, permissions_of, to_write
from .._store import Commands, Notice, Parent, SessionInfo, Store
from .._transfer import exported, imported
from . import _keys
from ._database import Again, Connection, Database
from ._events import Batch
from ._migrations import migrate
from ._rows import (
    REQUEST,
    Head,
    as_json,
    column,
    request_of,
    ring,
    snapshot_of,
    text_of,
    utc,
    withdraw,
)
from ._watch import Watch
from ._writer import PostgresJournal, Writer

LEASE: Final = 30.0  # seconds
PATIENCE: Final = 30.0  # seconds

_BELOW: Final = (  # the ids of a session and its sub-sessions
    "WITH RECURSIVE tree (id, depth) AS (SELECT id, 0 FROM @sessions WHERE id = %s UNION"
    " SELECT s.id, t.depth + 1 FROM @sessions s JOIN tree t ON s.parent_id = t.id)"
)
_OPEN: Final = (  # a request that waits
    "r.answer IS NULL AND r.withdrawn_at IS NULL AND (r.expires_at IS NULL OR r.expires_at > clock_timestamp())"
)

_INFO: Final = (
    "SELECT s.id, s.title, s.agent_name, s.status, s.reason, s.messages, s.created_at, s.updated_at, s.branch_of,"
    " s.owner, s.lease_until <= clock_timestamp(), s.parent_id, (SELECT count(*) FROM @requests r WHERE (r.root_id ="
    f" s.id OR r.session_id = s.id) AND {_OPEN}) FROM @sessions s"
)


class PostgresStore:
    """A `Store` in a PostgreSQL database, which any number of processes and machines may share.

    ``dsn`` is a connection string, ``postgresql://user@host/database`` or ``host=... dbname=...``. Missing parts are
    taken from PostgreSQL's environment variables, such as ``PGPASSWORD``. The tables are in the schema with the name
    ``schema``; they are created with the store. It works behind pgbouncer, in the transaction mode too.

    ``lease`` is the number of seconds for which a process that gives no sign of life keeps its sessions; ``patience``
    is the number of seconds that a stream waits for a server that cannot be reached, before it ends with an error.
    Acknowledged writes are as durable as the server's ``synchronous_commit`` says.

    Raises `StoreError`, which says what to do, if the database cannot be used, `StoreTooNew` if a later version of
    lockgate has written it, `ValueError` for a malformed connection string, and `MissingExtra` without the extra
    ``postgres``. Use it as a context manager, or `close` it. Thread-safe; after a fork, make a new one in the child.
    """

    def __init__(self, dsn: str, *, schema: str = "lockgate", lease: float = LEASE, patience: float = PATIENCE) -> None:
        for name, seconds in (("lease", lease), ("patience", patience)):
            if not is_number(seconds, least=0) or (name == "lease" and not seconds):
                raise ValueError(f"{name} must be a number of seconds, not {seconds!r}")
        self._lease = lease
        self._database = Database(dsn, schema)
        try:
            migrate(self._database)
        except BaseException:
            self._database.close()
            raise
        self._writer = Writer(self._database, lease, patience)
        self._watch = Watch(self._database)
        self._forgotten = weakref.finalize(self, _forget, self._writer, self._watch, self._database)
        self._forgotten.atexit = False

    # -- a session -----------------------------------------------------------------------------------------------------

    def load(self, id: str) -> Session:
        """See `Store.load`."""
        id = checked_id(id)
        return self._database.run(lambda connection: self._snapshot(connection, id)).session()

    def _snapshot(self, connection: Connection, id: str) -> Snapshot:
        with connection.transaction():
            connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            found = snapshot_of(self._database, connection, id)
        if found is None:
            raise self._not_found(id)
        return found

    def _not_found(self, id: str) -> SessionNotFound:
        return SessionNotFound(f"{self._database} has no session {id}")

    def open(self, session: Session, *, parent: Parent | None = None, listens: bool = False) -> PostgresJournal:
        """See `Store.open`."""
        owner = {**Owner.here().to_dict(), "journal": uuid.uuid4().hex, "listens": listens}

        def take(connection: Connection) -> tuple[Head, int, Unfinished]:
            with connection.transaction():
                head, appends = self._take(connection, session, owner, parent)
                if session._idempotency is not None:
                    _keys.know(self._database, connection, head.session_id, session._idempotency)
                snapshot = snapshot_of(self._database, connection, session.id, messages=False)
                assert snapshot is not None
                head.calls = {call.call_id: call.seq for call in snapshot.calls}
                return head, appends, snapshot.unfinished()

        head, appends, left = self._database.run(take)
        session._stored, session._unfinished = Stored(head.epoch, head.messages), left
        session._idempotency = None
        return self._writer.journal(head, session._stored, appends, session.id)

    def _take(
        self, connection: Connection, session: Session, owner: dict[str, Any], parent: Parent | None
    ) -> tuple[Head, int]:
        """Take the lease, and write what is missing: how to go on, and how many appends there were."""
        sql, key = self._database.sql, column(session.id)
        row = connection.execute(
            sql(
                "SELECT epoch, messages, appends, owner, lease_until > clock_timestamp(), usage, partial IS NOT NULL"
                " FROM @sessions WHERE id = %s FOR UPDATE"
            ),
            (key,),
        ).fetchone()
        head = Head(key, 1, self._database.schema, permissions=permissions_of(session))
        if row is None:
            to_write(session, None)
            self._insert(connection, head, session, owner=owner, parent=parent)
            return head, 0
        epoch, count, appends, holder, live, usage, partial = row
        head.epoch, head.messages, head.partial = epoch + 1, count, partial
        head.usage = None if usage is None else Usage(**usage)
        if holder is not None and holder["journal"] == owner["journal"]:  # it was taken: the answer was lost
            head.epoch = epoch
            return head, appends
        if holder is not None:
            self._check_free(session, holder, live)
        messages, anew = to_write(session, (epoch, count))
        connection.execute(
            sql(
                "UPDATE @sessions SET epoch = %s, owner = %s,"
                " lease_until = clock_timestamp() + %s * interval '1 second', status = 'running', reason = '',"
                " cancel = NULL, cancel_at = NULL,"
                " title = %s, words = array_to_tsvector(%s), permissions = %s, updated_at = clock_timestamp()"
                " WHERE id = %s"
            ),
            (
                head.epoch,
                as_json(owner),
                self._lease,
                column(session.title),
                words(session.title),
                as_json(head.permissions),
                key,
            ),
        )
        if anew:
            self._clear(connection, head, session)
        self._write(connection, head, messages, usage=session._usage if anew else head.usage)
        return head, appends

    def _check_free(self, session: Session, holder: dict[str, Any], live: bool) -> None:
        """Raise `SessionBusy` where somebody has the lease, who may be there."""
        owner, stored = Owner.from_dict(holder), session._stored
        if not live or owner.gone:
            return
        if stored is not None and stored.behind and owner == Owner.here():  # its journal here has failed
            return
        raise SessionBusy(
            f"session {session.id} has a live stream, in {owner}; wait for its end, or end it there, before the next"
        )

    def _clear(self, connection: Connection, head: Head, session: Session) -> None:
        """Forget what is there: the copy has all of it."""
        key = head.session_id
        for text, values in (
            ("DELETE FROM @items WHERE session_id = %s", (key,)),
            ("DELETE FROM @calls WHERE session_id = %s", (key,)),
            withdraw("session_id = %s", (key,)),
            (
                "UPDATE @sessions SET partial = NULL, usage = NULL, agent_name = %s, compacted = %s WHERE id = %s",
                (
                    None if session.agent_name is None else column(session.agent_name),
                    as_json(asdict(session.compacted)),
                    key,
                ),
            ),
        ):
            connection.execute(self._database.sql(text), values)
        head.messages, head.usage, head.partial = 0, None, False

    def _insert(
        self,
        connection: Connection,
        head: Head,
        session: Session,
        *,
        owner: dict[str, Any] | None = None,
        parent: Parent | None = None,
        branch_of: str | None = None,
    ) -> None:
        """Write a new session, under a lease where there is an ``owner``."""
        made = connection.execute(
            self._database.sql(
                "INSERT INTO @sessions (id, parent_id, root_id, call_id, branch_of, branch_at, title, agent_name,"
                " status, permissions, compacted, messages, epoch, owner, lease_until, words) VALUES"
                " (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, 0, %s, %s,"
                " clock_timestamp() + %s * interval '1 second', array_to_tsvector(%s)) ON CONFLICT DO NOTHING"
            ),
            (
                head.session_id,
                None if parent is None else column(parent.session_id),
                head.session_id if parent is None else column(parent.root_id),
                None if parent is None or parent.call_id is None else column(parent.call_id),
                None if branch_of is None else column(branch_of),
                None if branch_of is None else len(session.messages),
                column(session.title),
                None if session.agent_name is None else column(session.agent_name),
                "idle" if owner is None else "running",
                as_json(permissions_of(session)),
                as_json(asdict(session.compacted)),
                head.epoch,
                None if owner is None else as_json(owner),
                None if owner is None else self._lease,
                words(session.title),
            ),
        )
        if not made.rowcount:  # somebody has made it this moment
            raise Again
        if parent is not None and parent.call_id is not None:
            connection.execute(
                self._database.sql(
                    "INSERT INTO @nested (session_id, seq, call_id, nested_id) SELECT session_id, seq, call_id, %s"
                    " FROM @calls WHERE session_id = %s AND call_id = %s AND ended_at IS NULL ON CONFLICT DO NOTHING"
                ),
                (head.session_id, column(parent.session_id), column(parent.call_id)),
            )
        self._write(connection, head, session.messages, usage=session._usage)

    def _write(self, connection: Connection, head: Head, messages: Sequence[Message], *, usage: Usage | None) -> None:
        """Write the messages. ``usage`` counts the model calls that left none too."""
        statements = head.statements([Ended(each) if each.role == "tool" else Said(each) for each in messages])
        if usage is not None and usage != head.usage:
            statements.append(head.set_usage(usage))
        statements.append(("UPDATE @sessions SET messages = %s WHERE id = %s", (head.messages, head.session_id)))
        with connection.pipeline():
            for text, values in statements:
                connection.execute(self._database.sql(text), values)

    # -- the sessions --------------------------------------------------------------------------------------------------

    def sessions(
        self, query: str = "", *, limit: int = 50, before: datetime | None = None, prefix: str = ""
    ) -> Sequence[SessionInfo]:
        """See `Store.sessions`."""
        found = (
            " AND (s.words @@ %s::tsquery"
            " OR EXISTS (SELECT FROM @items i WHERE i.session_id = s.id AND i.words @@ %s::tsquery))"
        )
        wanted = [f"'{word}'" for word in words(query)]
        own, bounds = _beginning("s.id", prefix)
        # The sum keeps PostgreSQL from going through the sessions of all by their age.
        age = "s.updated_at + interval '0'" if prefix else "s.updated_at"
        text = (
            f"{_INFO} WHERE s.parent_id IS NULL{own} AND (%s::timestamptz IS NULL OR s.updated_at < %s)"
            f"{found * len(wanted)} ORDER BY {age} DESC, s.id LIMIT %s"
        )
        before = None if before is None else in_utc(before)
        values = (*bounds, before, before, *(word for word in wanted for _ in range(2)), limit)

        def read(connection: Connection) -> list[Any]:
            return connection.execute(self._database.sql(text), values).fetchall()

        return [_info(*row) for row in self._database.run(read)]

    def info(self, id: str) -> SessionInfo:
        """See `Store.info`."""
        id = checked_id(id)
        text = self._database.sql(f"{_INFO} WHERE s.id = %s")
        row = self._database.run(lambda connection: connection.execute(text, (column(id),)).fetchone())
        if row is None:
            raise self._not_found(id)
        return _info(*row)

    def branch(self, id: str, at: int | None = None) -> Session:
        """See `Store.branch`."""
        id = checked_id(id)
        original = self._database.run(lambda connection: self._snapshot(connection, id))
        session = branched(original.session(), at, original.parent is not None)

        def write(connection: Connection) -> None:
            with contextlib.suppress(Again), connection.transaction():  # it was written, and the answer lost
                head = Head(column(session.id), 1, self._database.schema)
                self._insert(connection, head, session, branch_of=id)

        self._database.run(write)
        return self.load(session.id)

    def delete(self, id: str) -> None:
        """See `Store.delete`."""
        id = checked_id(id)

        def forget(connection: Connection) -> bool:
            with connection.transaction():
                rows = connection.execute(
                    self._database.sql(
                        f"{_BELOW} SELECT s.id, s.owner, s.lease_until > clock_timestamp() FROM @sessions s"
                        " WHERE s.id IN (SELECT id FROM tree) ORDER BY s.id FOR UPDATE"
                    ),
                    (column(id),),
                ).fetchall()
                for _, holder, live in rows:
                    if holder is not None and live and not Owner.from_dict(holder).gone:
                        raise SessionBusy(
                            f"session {id} has a live stream, in {Owner.from_dict(holder)}; end it there first"
                        )
                keys = [key for key, _, _ in rows]
                connection.execute(self._database.sql("DELETE FROM @sessions WHERE id = ANY(%s)"), (keys,))
                connection.execute(
                    self._database.sql(
                        "DELETE FROM @blobs b WHERE NOT EXISTS (SELECT FROM @images i WHERE i.sha256 = b.sha256)"
                    )
                )
                connection.execute(  # for those who watch
                    self._database.sql("INSERT INTO @deleted (session_id) SELECT unnest(%s::text[])"), (keys,)
                )
                connection.execute(
                    self._database.sql("DELETE FROM @deleted WHERE deleted_at < clock_timestamp() - interval '1 hour'")
                )
                connection.execute(*ring(self._database.schema))
                return bool(rows)

        if not self._database.run(forget):
            raise self._not_found(id)

    def export(self, id: str) -> dict[str, Any]:
        """See `Store.export`."""
        id = checked_id(id)

        def read(connection: Connection) -> list[Snapshot]:
            with connection.transaction():
                connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
                tree = connection.execute(
                    self._database.sql(
                        f"{_BELOW} SELECT id FROM tree JOIN @sessions USING (id) ORDER BY depth, number"
                    ),
                    (column(id),),
                ).fetchall()
                found = (snapshot_of(self._database, connection, text_of(key)) for (key,) in tree)
                return [each for each in found if each is not None]

        snapshots = self._database.run(read)
        if not snapshots:
            raise self._not_found(id)
        return exported(snapshots)

    def import_(self, data: Mapping[str, Any]) -> Session:
        """See `Store.import_`."""
        snapshots = imported(data)
        keys = [column(each.id) for each in snapshots]
        tried = False

        def write(connection: Connection) -> None:
            nonlocal tried
            with connection.transaction():
                there = connection.execute(
                    self._database.sql("SELECT id FROM @sessions WHERE id = ANY(%s)"), (keys,)
                ).fetchall()
                if tried and len(there) == len(keys):
                    return  # it was written, and the answer lost
                tried = True
                for each in snapshots:
                    if (column(each.id),) in there:
                        raise ValueError(f"the store has a session {each.id} already; delete it first")
                for each in snapshots:
                    head = Head(column(each.id), each.epoch, self._database.schema)
                    with connection.pipeline():
                        for text, values in head.snapshot(each):
                            connection.execute(self._database.sql(text), values)

        self._database.run(write)
        return self.load(snapshots[0].id)

    # -- requests ------------------------------------------------------------------------------------------------------

    def pending(self, id: str | None = None, *, prefix: str = "") -> Sequence[Request]:
        """See `Store.pending`."""
        id = None if id is None else checked_id(id)
        own, bounds = _beginning("r.root_id", prefix)

        def read(connection: Connection) -> list[Any]:
            if id is None:
                return connection.execute(
                    self._database.sql(f"SELECT {REQUEST} FROM @requests r WHERE {_OPEN}{own} ORDER BY r.number"),
                    bounds,
                ).fetchall()
            return connection.execute(
                self._database.sql(
                    f"{_BELOW} SELECT {REQUEST} FROM @requests r JOIN tree t ON t.id = r.session_id WHERE {_OPEN}{own}"
                    " ORDER BY r.number"
                ),
                (column(id), *bounds),
            ).fetchall()

        return [request_of(row) for row in self._database.run(read)]

    def answer(self, request_id: str, answer: Mapping[str, Any], *, by: str = "") -> Request:
        """See `Store.answer`."""
        request_id = checked_id(request_id, "request")
        key, mine = column(request_id), uuid.uuid4().hex

        def read(connection: Connection) -> Any:
            return connection.execute(
                self._database.sql(
                    f"SELECT r.withdrawn_at IS NOT NULL, r.expires_at <= clock_timestamp(), r.answer_id, {REQUEST}"
                    " FROM @requests r WHERE r.id = %s"
                ),
                (key,),
            ).fetchone()

        row = self._database.run(read)
        request = _waiting(request_id, row)
        value = checked(request, answer)  # outside of the transaction: a schema is foreign

        def write(connection: Connection) -> Any:
            with connection.transaction():
                # As the writer does it: first the session, then its requests.
                connection.execute(
                    self._database.sql("SELECT FROM @sessions WHERE id = %s FOR UPDATE"), (column(request.session_id),)
                )
                made = connection.execute(
                    self._database.sql(
                        "UPDATE @requests r SET answer = %s, answered_by = %s, answered_at = clock_timestamp(),"
                        f" answer_id = %s WHERE r.id = %s AND {_OPEN}"
                    ),
                    (as_json(value), column(by), mine, key),
                )
                if not made.rowcount:
                    return read(connection)
                connection.execute(
                    self._database.sql("UPDATE @sessions SET updated_at = clock_timestamp() WHERE id = ANY(%s)"),
                    ([column(request.session_id)],),
                )
                connection.execute(*ring(self._database.schema))
                return None

        row = self._database.run(write)
        if row is not None and row[2] != mine:
            _waiting(request_id, row)
            raise NotPending(f"request {request_id} was settled meanwhile")
        return request.answered(value, by)

    def ready(self) -> Sequence[str]:
        """See `Store.ready`."""

        def read(connection: Connection) -> list[Any]:
            # What another process is just taking is not ready any more.
            return connection.execute(
                self._database.sql(
                    "SELECT s.id, s.owner, s.lease_until > clock_timestamp() FROM @sessions s"
                    " WHERE s.status = 'waiting' AND s.parent_id IS NULL AND NOT EXISTS"
                    f" (SELECT FROM @requests r WHERE r.root_id = s.id AND {_OPEN})"
                    " ORDER BY s.updated_at FOR UPDATE SKIP LOCKED"
                )
            ).fetchall()

        rows = self._database.run(read)
        return [text_of(key) for key, owner, live in rows if not (owner is not None and live)]

    # -- other processes -----------------------------------------------------------------------------------------------

    def mail(self, id: str, point: MailPoint, text: str, *, key: IdempotencyKey | None = None) -> Mailed:
        """See `Store.mail`."""
        id = checked_id(id)
        mailed = checked_mail(uuid.uuid4().hex, point, text)
        self._command(
            id,
            "INSERT INTO @mailbox (session_id, id, point, text, mailed_at) VALUES (%s, %s, %s, %s, clock_timestamp())"
            " ON CONFLICT DO NOTHING",
            (column(id), mailed.id, mailed.point, column(mailed.text)),
            key,
        )
        return mailed

    def idempotency_key(self, id: str, key: str) -> IdempotencyKey | None:
        """See `Store.idempotency_key`."""
        id = checked_id(id)

        def read(connection: Connection) -> IdempotencyKey | None:
            self._row(connection, id, "id")
            return _keys.known(self._database, connection, column(id), key)

        return self._database.run(read)

    def cancel(self, id: str, reason: str = "") -> None:
        """See `Store.cancel`."""
        id = checked_id(id)
        self._command(
            id,
            "UPDATE @sessions SET cancel = %s, cancel_at = clock_timestamp() WHERE id = %s",
            (column(reason_for(reason)), column(id)),
        )

    def _command(self, id: str, text: str, values: tuple[Any, ...], key: IdempotencyKey | None = None) -> None:
        """Write a command for the stream of the session, unless its ``key`` is known. Raises `SessionNotFound` and
        `NotRunning`.
        """

        def write(connection: Connection) -> None:
            with connection.transaction():
                owner, live = self._row(connection, id, "owner, lease_until > clock_timestamp()", lock=True)
                if key is not None and _keys.known(self._database, connection, column(id), key.key):
                    return
                if owner is None or not live or Owner.from_dict(owner).gone:
                    raise not_running(id, None)
                if not owner.get("listens"):
                    raise not_running(id, Owner.from_dict(owner))
                if key is not None:
                    _keys.know(self._database, connection, column(id), key)
                connection.execute(self._database.sql(text), values)
                connection.execute(*ring(self._database.schema))

        self._database.run(write)

    def look(self, id: str) -> None:
        """See `Store.look`."""
        id = checked_id(id)
        text = self._database.sql("UPDATE @sessions SET looked_at = clock_timestamp() WHERE id = %s")
        if not self._database.run(lambda connection: connection.execute(text, (column(id),)).rowcount):
            raise self._not_found(id)

    def commands(self, id: str) -> Commands:
        """See `Store.commands`."""
        id = checked_id(id)

        def read(connection: Connection) -> Commands:
            cancel, looked_at = self._row(connection, id, "cancel, looked_at")
            rows = connection.execute(
                self._database.sql(
                    "SELECT id, point, text FROM @mailbox WHERE session_id = %s AND taken_at IS NULL ORDER BY number"
                ),
                (column(id),),
            ).fetchall()
            mail = tuple(Mailed(text_of(key), point, text_of(said)) for key, point, said in rows)
            return Commands(mail, None if cancel is None else text_of(cancel), looked_at)

        return self._database.run(read)

    def append_events(self, session: Session, events: Sequence[tuple[int, str]]) -> None:
        """See `Store.append_events`."""
        epoch, rows = numbered(session, events)
        self._writer.log(Batch(session.id, epoch, rows))

    def events(self, id: str, since: int = 0, *, limit: int = 1000) -> Sequence[tuple[int, str]]:
        """See `Store.events`."""
        id = checked_id(id)
        for name, number in (("since", since), ("limit", limit)):
            check_number(name, number, "of events", least=0, whole=True)

        def read(connection: Connection) -> list[tuple[int, str]]:
            with connection.transaction():
                self._row(connection, id, "id")
                rows = connection.execute(
                    self._database.sql(
                        "SELECT seq, data FROM @events WHERE session_id = %s AND seq > %s ORDER BY seq LIMIT %s"
                    ),
                    (column(id), min(since, 2**62), min(limit, 2**62)),
                ).fetchall()
            return [(seq, text_of(data)) for seq, data in rows]

        return self._database.run(read)

    def last_event(self, id: str) -> int:
        """See `Store.last_event`."""
        id = checked_id(id)
        last: int = self._database.run(lambda connection: self._row(connection, id, "events"))[0]
        return last

    def _row(self, connection: Connection, id: str, columns: str, *, lock: bool = False) -> Any:
        """These columns of the row of a session. Raises `SessionNotFound`."""
        text = f"SELECT {columns} FROM @sessions WHERE id = %s{' FOR UPDATE' if lock else ''}"
        row = connection.execute(self._database.sql(text), (column(id),)).fetchone()
        if row is None:
            raise self._not_found(id)
        return row

    def watch(self, cancel: SupportsDone, *, events: bool = False) -> Receiver[Notice]:
        """See `Store.watch`."""
        checked_done(cancel)
        self._database.check_open()
        return self._watch.add(cancel, events)

    # -- the end -------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Write what is on its way, and let go of the connections. Twice is harmless."""
        if self._database.is_forked:  # all that is the parent's
            return
        self._watch.close()
        self._writer.close()
        self._database.close()

    def __enter__(self) -> PostgresStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    __reduce_ex__ = not_copied("open the database in each process, PostgresStore(dsn)")

    def __repr__(self) -> str:
        return f"<PostgresStore {self._database}, schema {self._database.schema}>"


def _beginning(name: str, prefix: str) -> tuple[str, tuple[str, ...]]:
    """The condition that a column begins with ``prefix``, and its values. An id with a NUL is written in another way
    (`column`), and begins with nothing.
    """
    prefix = checked_id(prefix)
    end = behind(prefix)
    if not prefix or not end:
        return "", ()
    return f" AND {name} ~>=~ %s AND {name} ~<~ %s", (column(prefix), column(end))


def _waiting(request_id: str, row: Any) -> Request:
    """The request of the row, which waits for its answer. Raises `NotPending`, with the reason."""
    if row is None:
        raise NotPending(f"no request {request_id} is waiting: there is none with this id")
    withdrawn, expired, _, *rest = row
    request = request_of(rest)
    if request.answer is not None:
        by = f" by {request.answered_by}" if request.answered_by else ""
        raise NotPending(f"request {request_id} was answered{by} before")
    if withdrawn:
        raise NotPending(f"request {request_id} was withdrawn: nobody waits for the answer any more")
    if expired:
        raise NotPending(f"request {request_id} has timed out")
    return request


def _info(
    id: str, title: str, agent: str | None, status: Any, reason: str, messages: int, created: datetime,
    updated: datetime, branch_of: str | None, holder: Any, over: bool | None, parent: str | None, waiting: int,
) -> SessionInfo:  # fmt: skip
    if holder is not None and (over or Owner.from_dict(holder).gone):
        status = "interrupted"
    return SessionInfo(
        id=text_of(id),
        title=text_of(title),
        agent_name=None if agent is None else text_of(agent),
        status=status,
        reason=text_of(reason),
        messages=messages,
        created_at=utc(created),
        updated_at=utc(updated),
        parent_id=None if parent is None else text_of(parent),
        branch_of=None if branch_of is None else text_of(branch_of),
        waiting=waiting,
    )


def _forget(writer: Writer, watch: Watch, database: Database) -> None:
    """The store is gone, nobody has closed it. Waits for no lock: this may come into the middle of anything."""
    writer.forget()
    watch.forget()
    database.close()


if TYPE_CHECKING:
    _is_a_store: Callable[[str], Store] = PostgresStore

publish("runtime.stores", globals(), ["PostgresStore"])
