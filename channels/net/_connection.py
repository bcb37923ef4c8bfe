"""`Connection`, `Listener` and `connect`."""

from __future__ import annotations

import contextlib
import errno
import os
import selectors
import socket
import threading
import weakref
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

from .._errors import ChannelClosed
from .._park import deadline_after, monotonic
from .._views import Receiver, SupportsDone
from ._checks import check_address, check_name, checked_capacities, checked_codecs, is_capacity, is_number
from ._errors import ConnectionLost, HelloFailed
from ._hello import Challenge, introduce, introduce_within, new_key
from ._inherited import ours
from ._lane import Codec, LaneReceiver, LaneSender
from ._link import Link, Selector
from ._tls import Tls, checked, explained

if TYPE_CHECKING:
    from ssl import SSLContext

CAPACITY: Final = 128
HEARTBEAT: Final = 30.0
LIMIT: Final = 64 * 1024 * 1024
HELLO: Final = 5.0  # seconds that a peer may take for its hello
STRANGERS: Final = 64  # peers that are in the middle of it, at most
GOODBYE: Final = 2.0
SHORT: Final = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))
RESTS: Final = 0.1  # seconds that nobody is let in, where this process or machine is short of these

Address = tuple[str, int]


class Connection:
    """A channel in each direction, over one TCP connection. Made by `Listener.accept` and `connect`.

    ``connection.sender`` sends values that JSON can say; ``connection.receiver`` receives those of the peer, and is a
    case of `select` and `merge`. They behave as the ends of a `Channel`: a send waits while the channel is full, which
    counts values on both sides and under way. Closing the sender ends the peer's loop after the values that were sent.
    If the connection is lost, the receiver raises `ConnectionLost` after the values that have arrived, and sends are
    refused with `ChannelClosed`. All methods may be called from any thread.

    `close`, or leaving the ``with`` block, says goodbye. A connection that is dropped instead, with both ends, is cut.
    """

    def __init__(self, link: Link) -> None:
        self._link = link
        self._finalizer = weakref.finalize(self, link.abort, ConnectionLost("the connection was dropped"))
        self._finalizer.atexit = False

    @property
    def sender(self) -> LaneSender[Any]:
        """The sending end of the first lane."""
        return LaneSender(self._link.lanes[0], self)

    @property
    def receiver(self) -> LaneReceiver[Any]:
        """The receiving end of the first lane."""
        return LaneReceiver(self._link.lanes[0], self)

    @property
    def lanes(self) -> Sequence[tuple[LaneSender[Any], LaneReceiver[Any]]]:
        """The ends of all lanes: each has a bound of its own, so that one which is full does not hold up another."""
        return [(LaneSender(lane, self), LaneReceiver(lane, self)) for lane in self._link.lanes]

    @property
    def done(self) -> Receiver[None]:
        """A receiver that closes when the connection has ended, for `select` and ``cancel=``."""
        return Receiver(self._link.done)

    @property
    def error(self) -> BaseException | None:
        """Why the connection has failed; None as long as it has not, and where both sides said goodbye."""
        return self._link.error

    def close(self, timeout: float | None = GOODBYE) -> None:
        """Pass on what was sent, receive no more, and say goodbye: the peer's sends are refused from then on. Waits for
        the peer to hear it, for ``timeout`` seconds at most (None: as long as the peer is there), and cuts the
        connection then. Twice is harmless.
        """
        deadline = deadline_after(timeout)
        self._finalizer.detach()
        self._link.leave()
        left = None if deadline is None else min(max(deadline - monotonic(), 0.0), threading.TIMEOUT_MAX)
        if not self._link.join(left):
            self._link.abort(ConnectionLost(f"the peer did not say goodbye within {timeout} s"))
            self._link.join(GOODBYE)

    def abort(self) -> None:
        """Cut the connection: the peer gets `ConnectionLost`. Does not wait."""
        self._finalizer.detach()
        self._link.abort(ConnectionLost("the connection was cut on this side"))

    def __enter__(self) -> Connection:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:
            self.abort()
            self._link.join(GOODBYE)

    def __repr__(self) -> str:
        return f"<Connection {self._link!r}>"


class Listener:
    """Waits for one connection by a peer who knows `key`. The key is then spent, and nothing listens any more: a second
    peer is refused, also one who knows the key.

    ``address`` is where it listens: this machine only, unless told otherwise; port 0 is any free port. `address` and
    `key` are for the peer. The key is a secret. ``capacity`` is the number of values
    that each direction holds, at least 1, ``heartbeat`` the number of seconds after which a peer that is not heard of
    is lost, ``limit`` the longest value in bytes. Peers that do not know the key, say something else or nothing at all
    are turned away, and do not hold up others.

    With ``ssl``, a server's `ssl.SSLContext`, the connection is encrypted, the hello too; a peer without TLS is a
    stranger.

    ``codecs`` and ``capacities`` (to the peer, and from it) make lanes.
    """

    def __init__(
        self,
        address: Address = ("127.0.0.1", 0),
        *,
        capacity: int = CAPACITY,
        heartbeat: float = HEARTBEAT,
        limit: int = LIMIT,
        codecs: Sequence[Codec] | None = None,
        capacities: Sequence[tuple[int, int]] | None = None,
        ssl: SSLContext | None = None,
        name: str = "channels-net",
    ) -> None:
        self._ssl = None if ssl is None else checked(ssl, server_side=True)
        self._codecs = checked_codecs(codecs)
        if not is_capacity(capacity):
            raise ValueError(f"over a network capacity must be a whole number, 1 or more, not {capacity!r:.200}")
        if capacities is None:
            capacities = [(capacity, capacity)] * len(self._codecs)
        self._capacities = checked_capacities(capacities)
        if len(self._capacities) != len(self._codecs):
            raise ValueError(
                f"each lane needs a codec and its capacities: codecs is of length {len(self._codecs)}, capacities of"
                f" {len(self._capacities)}"
            )
        check_name("Listener", name)
        if not is_number(heartbeat) or not heartbeat > 0:
            raise ValueError(f"heartbeat must be a number of seconds, more than 0, not {heartbeat!r:.200}")
        if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
            raise ValueError(f"limit must be a whole number of bytes, 1 or more, not {limit!r:.200}")
        check_address(address)
        self._heartbeat, self._limit, self._name = float(heartbeat), limit, name
        #: The key for the one connection.
        self.key = new_key()
        family, kind, number, _, where = socket.getaddrinfo(*address, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[
            0
        ]
        self._sock = ours(socket.socket(family, kind, number))
        try:
            if os.name == "posix":  # a port may be used again at once; elsewhere this would let others take it over
                self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._sock.bind(where)
            self._sock.listen(128)
            self._sock.setblocking(False)
        except BaseException:
            self._sock.close()
            raise
        #: Where it listens: host and port.
        self.address: Address = self._sock.getsockname()[:2]
        self._taken = False

    def accept(self, timeout: float | None = None, cancel: SupportsDone | None = None) -> Connection:
        """Wait for the connection. Raises `TimeoutError`, `Cancelled`, and `RuntimeError` at the second call."""
        link = self.link(timeout)
        link.start()
        try:
            link.opened.recv(None, cancel)
        except ChannelClosed:
            pass
        except BaseException as error:
            link.abort(ConnectionLost(f"nobody waits for it any more: {error}"))
            link.join(GOODBYE)
            raise
        if link.error is not None and not link.established:
            raise link.error
        return Connection(link)

    def link(self, timeout: float | None, excused: Callable[[], bool] = lambda: False) -> Link:
        """The connection before there is one: its thread, not started, will listen for ``timeout`` seconds, and for as
        long again whenever these are over and the peer is ``excused``.
        """
        if self._taken:
            raise RuntimeError("a listener takes one connection: make another Listener for the next")
        deadline = deadline_after(timeout)
        self._taken = True

        def opening(link: Link) -> tuple[socket.socket, Tls | None]:
            try:
                return self._welcome(link, deadline, timeout, excused)
            finally:
                self.close()

        return Link(
            self._name, self._codecs, self._capacities, heartbeat=self._heartbeat, limit=self._limit, open=opening
        )

    def _welcome(
        self, link: Link, deadline: float | None, timeout: float | None, excused: Callable[[], bool]
    ) -> tuple[socket.socket, Tls | None]:
        """On the thread of the connection: the socket of the first peer that knows the key."""
        strangers: dict[socket.socket, Challenge] = {}
        turned_away = ""  # why the last one was
        resting: float | None = None  # until when nobody is let in
        try:
            with Selector() as selector:
                selector.register(link.bell.ears, selectors.EVENT_READ)
                selector.register(self._sock, selectors.EVENT_READ)

                def forget(sock: socket.socket) -> None:
                    selector.unregister(sock)
                    del strangers[sock]
                    sock.close()

                while True:
                    if link.aborted is not None:
                        raise link.aborted
                    now = monotonic()
                    if deadline is not None and timeout is not None and now >= deadline:
                        if not excused():
                            raise TimeoutError(
                                f"nobody connected within {timeout:g} s"
                                + (f"; the last one who tried was turned away: {turned_away}" if turned_away else "")
                            )
                        deadline = now + timeout
                    if resting is not None and now >= resting:
                        selector.register(self._sock, selectors.EVENT_READ)
                        resting = None
                    for sock, each in list(strangers.items()):
                        if now >= each.deadline:
                            turned_away = f"nothing of use was heard within {HELLO:g} s"
                            forget(sock)
                    ends = [each.deadline for each in strangers.values()]
                    ends += [each for each in (deadline, resting) if each is not None]
                    for key, _ in selector.select(max(min(ends) - now, 0.0) if ends else None):
                        if key.fileobj is link.bell.ears:
                            link.bell.hear()
                        elif key.fileobj is self._sock:
                            try:
                                new = self._stranger(strangers, forget)
                            except OSError as error:
                                if error.errno not in SHORT:
                                    raise
                                # Whoever waits there makes the socket ready, all the time, and is let in later.
                                selector.unregister(self._sock)
                                resting = now + RESTS
                                continue
                            if new is not None:
                                selector.register(new, selectors.EVENT_READ)
                        elif key.fileobj in strangers:
                            sock = key.fileobj
                            try:
                                nonce = strangers[sock].proven(self.key)
                                if nonce is None:
                                    continue
                                strangers[sock].accept(self.key, nonce, self._settings())
                            except OSError as error:  # also HelloFailed, and those of TLS
                                turned_away = explained(error)
                                forget(sock)
                                continue
                            prepare(sock)
                            return sock, strangers.pop(sock).tls
        finally:
            for sock in strangers:
                sock.close()

    def _stranger(self, strangers: dict[socket.socket, Challenge], forget: Any) -> socket.socket | None:
        """Let one in who waits. Raises `OSError` where nobody can be let in now."""
        try:
            sock = ours(self._sock.accept()[0])
        except OSError as error:
            if error.errno in SHORT or error.errno in (errno.EBADF, errno.EINVAL):
                raise
            return None  # it has hung up meanwhile
        try:
            tls = None if self._ssl is None else Tls(self._ssl)
            challenge = Challenge(sock, monotonic() + HELLO, tls)
        except OSError:
            sock.close()
            return None
        if len(strangers) >= STRANGERS:  # whoever has been silent for longest
            forget(next(iter(strangers)))
        strangers[sock] = challenge
        return sock

    def _settings(self) -> dict[str, Any]:
        return {"capacities": self._capacities, "heartbeat": self._heartbeat, "limit": self._limit}

    def close(self) -> None:
        """Listen no more. A connection that was accepted goes on."""
        self._taken = True
        self._sock.close()

    def __enter__(self) -> Listener:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Listener at {self.address[0]}:{self.address[1]}>"


def connect(
    address: Address,
    key: str,
    *,
    timeout: float = 10.0,
    codecs: Sequence[Codec] | None = None,
    ssl: SSLContext | None = None,
    server_hostname: str | None = None,
    name: str = "channels-net",
) -> Connection:
    """Connect to a `Listener`, within ``timeout`` seconds. The listener decides about capacity, heartbeat and limit.

    ``ssl`` is a client's `ssl.SSLContext`, for a listener that has one. The certificate has to be that of
    ``server_hostname``, by default the host of the address, unless the context does not check names.

    Raises `HelloFailed` if the key is wrong or was used before, or TLS fails, `ConnectionRefusedError` if nobody
    listens there (any more), `TimeoutError`, and other `OSError`.
    """
    if ssl is not None:
        checked(ssl, server_side=False)
    elif server_hostname is not None:
        raise ValueError("server_hostname= is for a certificate: it needs ssl=, a client's SSLContext")
    check_address(address)
    if not isinstance(key, str):
        raise TypeError(f"key must be the text that the listener has as its key, not {type(key).__name__}")
    if not is_number(timeout) or not 0 < timeout < float("inf"):
        raise ValueError(f"timeout must be a number of seconds, more than 0, not {timeout!r:.200}")
    codecs = checked_codecs(codecs)
    check_name("connection", name)
    deadline = monotonic() + timeout
    sock = ours(socket.create_connection((address[0], address[1]), timeout))
    tls: Tls | None = None
    try:
        if ssl is None:
            settings = introduce(sock, key, deadline)
        else:
            tls = Tls(ssl, server_hostname or address[0])
            settings = introduce_within(tls, sock, key, deadline)
        capacities = [(there, here) for here, there in settings["capacities"]]
        if len(capacities) != len(codecs):
            raise HelloFailed(f"the listener has {len(capacities)} lanes, and this side {len(codecs)}")
        prepare(sock)
        link = Link(
            name,
            codecs,
            capacities,
            heartbeat=settings["heartbeat"],
            limit=settings["limit"],
            open=lambda link: (sock, tls),
        )
        link.start()
    except BaseException:
        sock.close()
        raise
    return Connection(link)


def prepare(sock: socket.socket) -> None:
    """What a connection wants of TCP: small values are sent at once (Nagle's algorithm would keep them for 40 ms), and
    the system looks after a peer that has vanished."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
