"""A network that fails at a place of one's choice: it stands between a listener and who connects."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from typing import Literal

Way = Literal["up", "down"]  # from who connects to the listener, and back
How = Literal["reset", "end", "silence", "flip"]
HELLO = {"up": 72, "down": 40 + 32 + 2}  # bytes before the first frame; the settings come on top, in "down"


class Network:
    """Passes one connection to ``target`` on. Cuts it after the frame number ``after`` that went ``way``, and
    ``extra`` bytes of the next: with a reset, an end in both directions, or by passing nothing on any more. Where
    frames cannot be told, that is after so many ``octets``; a flip changes a bit of the next one, and passes all on.
    """

    def __init__(
        self,
        target: tuple[str, int],
        *,
        way: Way = "up",
        after: int | None = None,
        extra: int = 0,
        how: How = "reset",
        octets: int | None = None,
    ) -> None:
        self._target = target
        self._octets = octets
        self._way, self._after, self._extra, self._how = way, after, extra, how
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address: tuple[str, int] = self._listener.getsockname()[:2]
        self.frames: dict[str, int] = {"up": 0, "down": 0}
        self.cut = threading.Event()
        self._sockets: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._run, name="network", daemon=True)]
        self._threads[0].start()

    def _run(self) -> None:
        try:
            near, _ = self._listener.accept()
        except OSError:
            return
        self._sockets.append(near)
        try:
            far = socket.create_connection(self._target, 5)
        except OSError:
            near.close()
            return
        self._sockets.append(far)
        for sock in (near, far):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        back = threading.Thread(target=self._pass_on, args=(far, near, "down"), name="network down", daemon=True)
        self._threads.append(back)
        back.start()
        self._pass_on(near, far, "up")

    def _pass_octets(self, source: socket.socket, sink: socket.socket, way: Way, left: int) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if self.cut.is_set() and self._how != "flip":
                    if self._how == "silence":
                        continue
                    return
                if way == self._way and not self.cut.is_set():
                    if len(data) > left:
                        if self._how != "flip":
                            sink.sendall(data[:left])
                            self._end()
                            return
                        data = data[:left] + bytes([data[left] ^ 1]) + data[left + 1 :]
                        self.cut.set()
                    left -= len(data)
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)

    def _pass_on(self, source: socket.socket, sink: socket.socket, way: Way) -> None:
        if self._octets is not None:
            self._pass_octets(source, sink, way, self._octets)
            return
        head, rest = b"", b""
        hello = HELLO[way]
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if self.cut.is_set():
                    if self._how == "silence":
                        continue
                    return
                passed = b""
                if len(head) < hello:
                    head += data
                    if way == "down" and len(head) >= HELLO[way]:
                        hello = HELLO[way] + struct.unpack("!H", head[HELLO[way] - 2 : HELLO[way]])[0]
                    before = len(head) - len(data)
                    passed, data = data[: hello - before], data[hello - before :]
                    if len(head) < hello:
                        sink.sendall(passed)
                        continue
                rest += data
                while True:
                    if way == self._way and self.frames[way] == self._after:
                        sink.sendall(passed + rest[: self._extra])
                        self._end()
                        return
                    if len(rest) < 6 or len(rest) < (size := 6 + struct.unpack("!I", rest[:4])[0]):
                        break
                    passed, rest = passed + rest[:size], rest[size:]
                    self.frames[way] += 1
                sink.sendall(passed)
            with contextlib.suppress(OSError):
                sink.shutdown(socket.SHUT_WR)

    def _end(self) -> None:
        self.cut.set()
        if self._how == "silence":
            return
        for sock in self._sockets:
            with contextlib.suppress(OSError):
                if self._how == "reset":
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    sock.shutdown(socket.SHUT_RD)  # sends nothing, and wakes the thread that reads: it keeps it open
                    sock.close()
                else:
                    sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        for sock in self._sockets:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(5)
        for sock in (self._listener, *self._sockets):  # not before: a thread would read from a number that is another's
            sock.close()

    def __enter__(self) -> Network:
        return self

    def __exit__(self, *args: object) -> None:
        self.close()
