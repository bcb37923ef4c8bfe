"""`Link`: the one thread of a connection, to which the socket belongs.

Nobody else reads or writes the socket, so a send or receive of a value is an operation on a channel, with all that goes
with it, and the socket needs no lock. The thread waits for the socket and the bell; it never waits for a thread.

How it ends: when each side has closed its side of each lane, or was told that nobody receives there any more, both say
so to the system (a shutdown of the socket's sending half), and read to the other's end. A socket that is closed while
input lies in it resets the connection, and the peer may lose what it has not read yet.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import selectors
import socket
import threading
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

from .._channel import Channel
from .._park import monotonic
from ._bell import Bell
from ._errors import ConnectionLost, ProtocolError
from ._frames import ALIVE, Parser, frame
from ._lane import Codec, Lane
from ._tls import Tls

PIECE: Final = 262_144  # bytes that are read at a time
ENOUGH: Final = 1_048_576  # bytes that wait for the socket, from which on no values are taken
LINGER: Final = 2.0  # seconds that the peer may take to hang up after both have said goodbye

Selector: Final = getattr(selectors, "PollSelector", selectors.SelectSelector)  # without a file of its own

live: weakref.WeakSet[Link] = weakref.WeakSet()


class Link:
    """A connection, as its thread knows it. ``open`` gives the socket, on the thread; it may wait, until ``aborted``
    and as long as the bell does not ring."""

    def __init__(
        self,
        name: str,
        codecs: Sequence[Codec],
        capacities: Sequence[tuple[int, int]],
        *,
        heartbeat: float,
        limit: int,
        open: Callable[[Link], tuple[socket.socket, Tls | None]],
    ) -> None:
        self.name = name
        self.heartbeat = heartbeat
        self.limit = limit
        self.bell = Bell()
        self.error: BaseException | None = None
        self.lanes = [Lane(self, number, *each) for number, each in enumerate(zip(codecs, capacities, strict=True))]
        self.peer = ""
        #: Closes when the connection is established, or has failed; `done` when the thread has ended.
        self.opened: Channel[None] = Channel(name=f"{name} opened")
        self.done: Channel[None] = Channel(name=f"{name} done")
        self.aborted: BaseException | None = None  # written by any thread, which then rings
        self.established = False  # never taken back
        self.forked = False  # inherited by a forked child
        self.leaving = False  # receive no more, and send what is there
        self._open: Callable[[Link], tuple[socket.socket, Tls | None]] | None = open
        self._sock: socket.socket | None = None
        self._tls: Tls | None = None
        self._unsent: deque[memoryview] = deque()
        self._bytes = 0  # in there
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Start the thread. Raises `RuntimeError` where none can be had."""
        live.add(self)
        try:
            self._thread.start()
        except BaseException as error:
            self.discard(error)
            raise

    def discard(self, error: BaseException) -> None:
        """In place of `start`, or after it has failed: close what there is. Twice is harmless."""
        if self._thread.ident is None and not self.done.closed:
            self._end(error)

    # -- any thread ----------------------------------------------------------------------------------------------------

    def abort(self, error: BaseException) -> None:
        """End the connection at once, without a goodbye. Does not wait."""
        if self.aborted is None:
            self.aborted = error
        self.bell.ring()

    def finish(self) -> None:
        """Send no more but what is in the buffers, and say goodbye when the peer does. Does not wait."""
        for lane in self.lanes:
            lane.out.close()
        self.bell.ring()

    def leave(self) -> None:
        """The same, and receive no more: what has come is dropped, and the peer is told. Does not wait."""
        self.leaving = True
        self.finish()

    def join(self, timeout: float | None) -> bool:
        """Wait until the thread has ended; whether it has."""
        if threading.current_thread() is not self._thread and self._thread.ident is not None:
            self._thread.join(timeout)
        return not self._thread.is_alive()

    # -- the thread ----------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        error: BaseException | None = None
        try:
            opening, self._open = self._open, None
            assert opening is not None
            self._sock, self._tls = opening(self)
            opening = None
            self.established = True
            self.opened.close()
            self._serve(self._sock)
        except (ConnectionError, TimeoutError) as caught:
            error = caught
        except OSError as caught:
            error = ConnectionLost(f"the connection failed: {caught}")
            error.__cause__ = caught
        except BaseException as caught:  # of a codec, or ours
            error = ConnectionLost(f"the connection failed: {type(caught).__name__}: {caught}")
            error.__cause__ = caught
        finally:
            self._end(error)
            error = None

    def _end(self, error: BaseException | None) -> None:
        if isinstance(error, (ConnectionResetError, BrokenPipeError)):
            lost = ConnectionLost("the peer has hung up without a goodbye")
            lost.__cause__ = error
            error = lost
        self.error = error
        try:
            for lane in self.lanes:
                lane.end(error or ConnectionLost("the connection has ended"))
        finally:
            if self._sock is not None:
                self._sock.close()
            live.discard(self)
            self.bell.retire()
            self.opened.close()
            self.done.close()

    def _serve(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        parser = Parser(self.limit)
        tls = self._tls
        if tls is not None:  # what has come with the hello: the socket does not have it any more
            self._take_in(parser, tls.decrypt(b""))
        with Selector() as selector:
            selector.register(self.bell.ears, selectors.EVENT_READ)
            selector.register(sock, selectors.EVENT_READ)
            watched = selectors.EVENT_READ
            heard = sent = before = monotonic()
            wait = 0.0
            goodbye: float | None = None  # until when the peer may hang up
            ended = False  # this side of TLS
            while True:
                if self.aborted is not None:
                    raise self.aborted
                asking: float | None = None
                if goodbye is None:
                    frames, asking = self._frames(sent)
                    if frames:
                        data = b"".join(frames)
                        self._put(data if tls is None else tls.encrypt(data))
                    if self._unsent:
                        sent = monotonic()
                        self._send(sock)
                    if self._is_through() and tls is not None and not ended:
                        ended = True
                        self._put(tls.end())
                        self._send(sock)
                    if self._is_through():
                        goodbye = monotonic() + min(LINGER, self.heartbeat)
                        sock.shutdown(socket.SHUT_WR)
                wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._unsent else 0)
                if wanted != watched:
                    selector.modify(sock, wanted)
                    watched = wanted
                now = monotonic()
                still = now - before - max(wait, 0.0)
                if still > self.heartbeat / 3:  # this process has stood still for so long, and has not listened
                    heard = min(heard + still, now)
                before = now
                if goodbye is not None:
                    if now >= goodbye:
                        return  # it has everything, and does not hang up
                    wait = goodbye - now
                else:
                    wait = min(heard + self.heartbeat, sent + self.heartbeat / 3) - now
                    if asking is not None:
                        wait = min(wait, asking - now)
                overdue = goodbye is None and now - heard >= self.heartbeat
                ready = selector.select(max(wait, 0.0))
                if overdue and not any(key.fileobj is sock for key, _ in ready):
                    raise ConnectionLost(f"nothing was heard of the peer for {self.heartbeat:g} s")
                for key, mask in ready:
                    if key.fileobj is self.bell.ears:
                        self.bell.hear()
                    if key.fileobj is sock and mask & selectors.EVENT_READ:
                        try:
                            data = sock.recv(PIECE)
                        except (BlockingIOError, InterruptedError):
                            continue
                        except OSError:
                            if goodbye is not None:
                                return  # both have said goodbye before
                            raise
                        if data:
                            heard = monotonic()
                            if tls is None:
                                self._take_in(parser, data)
                            elif goodbye is None:
                                self._take_in(parser, tls.decrypt(data))
                                self._put(tls.outgoing())
                        if not data or (tls is not None and tls.ended):
                            if goodbye is not None or self._is_through():
                                return
                            raise ConnectionLost("the peer has hung up without a goodbye")

    def _frames(self, sent: float) -> tuple[list[bytes], float | None]:
        """What is to be sent now, and when a lane may have something to ask."""
        frames: list[bytes] = []
        now = monotonic()
        asking: float | None = None
        for lane in reversed(self.lanes):  # the last ones are for what is short and urgent
            if self.leaving:
                lane.stop(frames)
            lane.give_back(frames)
            if self._bytes < ENOUGH:
                lane.take(frames)
            asks = lane.ask(now, frames)
            if asks is not None:
                asking = asks if asking is None else min(asking, asks)
        if not frames and not self._unsent and now - sent >= self.heartbeat / 3:
            frames.append(frame(ALIVE))
        return frames, asking

    def _is_through(self) -> bool:
        return not self._unsent and all(lane.sent_close and lane.got_close for lane in self.lanes)

    def _put(self, data: bytes) -> None:
        """To be sent next."""
        if data:
            self._unsent.append(memoryview(data))
            self._bytes += len(data)

    def _send(self, sock: socket.socket) -> None:
        with contextlib.suppress(BlockingIOError, InterruptedError):
            while self._unsent:
                piece = self._unsent[0]
                sent = sock.send(piece)
                self._bytes -= sent
                if sent == len(piece):
                    self._unsent.popleft()
                else:
                    self._unsent[0] = piece[sent:]

    def _take_in(self, parser: Parser, data: bytes) -> None:
        values: list[list[Any]] = [[] for _ in self.lanes]
        try:
            for kind, number, body in parser.feed(data):
                if number >= len(self.lanes):
                    raise ProtocolError(f"the peer named lane {number}, of {len(self.lanes)}")
                if kind != ALIVE:
                    self.lanes[number].got(kind, body, values[number])
        finally:  # what came before a mistake has come
            for lane, some in zip(self.lanes, values, strict=True):
                lane.deliver(some)

    def inherited(self) -> None:
        """In a forked child, which has no thread for it, and has closed its copy of the socket."""
        self.forked = True
        self.error = RuntimeError("this connection belongs to the process that was forked")
        for lane in self.lanes:
            lane.into.drop()
            lane.out.close()
        self.opened.close()
        self.done.close()

    def __repr__(self) -> str:
        state = "ended" if self.done.closed else "live" if self.opened.closed else "opening"
        return f"<{self.name} {state}>"


def _at_exit() -> None:
    """The interpreter ends, and with it all that is under way: peers learn it now. Before the threads of
    concurrent.futures are joined, which may be waiting for work that a peer goes on with."""
    ending = list(live)
    for link in ending:
        link.abort(ConnectionLost("the interpreter exits"))
    for link in ending:
        link.join(LINGER / max(len(ending), 1))


def _in_child() -> None:
    for link in list(live):
        with contextlib.suppress(Exception):
            link.inherited()
    live.clear()


_register: Callable[[Callable[[], None]], object] = getattr(threading, "_register_atexit", atexit.register)
_register(_at_exit)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
