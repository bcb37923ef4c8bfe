"""A server on loopback that answers as a test wrote down: what providers send, and what networks do to it."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Step = bytes | Callable[[], Any]
LONG = 10.0


class Hangup(Exception):
    """Ends the connection where it stands in an answer: in an orderly way, or with a reset."""

    def __init__(self, *, reset: bool = False) -> None:
        self.reset = reset

    def __call__(self) -> None:
        raise self


class Answer:
    """One answer: a status, headers, and the pieces of a body, each sent on its own."""

    def __init__(self, *pieces: Step, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        self.pieces = pieces
        self.status = status
        self.headers = {"content-type": "text/event-stream", **(headers or {})}


def failure(status: int, body: Any, **headers: str) -> Answer:
    """An answer that says what is wrong, in JSON."""
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return Answer(json.dumps(body).encode(), status=status, headers={"content-type": "application/json", **names})


def bytewise(*pieces: bytes, size: int = 1) -> list[bytes]:
    """The same bytes in pieces that respect nothing."""
    data = b"".join(pieces)
    return [data[at : at + size] for at in range(0, len(data), size)]


class Request:
    """What the client sent."""

    def __init__(self, path: str, headers: Mapping[str, str], body: Any) -> None:
        self.path = path
        self.headers = headers
        self.body = body


class Replay:
    """The server. It runs in threads of its own until `close`, which also ends what hangs."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self._answers: list[Answer] = []
        self._open: set[socket.socket] = set()
        self._changed = threading.Condition()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = False  # so that closing it waits for them
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), name="replay server")
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def answer(self, *answers: Answer) -> None:
        """What to say to the next requests, one each."""
        self._answers += answers

    def wait_for(self, connections: int) -> bool:
        """Whether that many connections are open, now or soon."""
        with self._changed:
            return self._changed.wait_for(lambda: len(self._open) == connections, LONG)

    def close(self) -> None:
        with self._changed:
            for opened in self._open:
                with contextlib.suppress(OSError):  # it is gone already
                    opened.shutdown(socket.SHUT_RDWR)
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> Replay:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _handler(replay) -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def setup(self) -> None:
                super().setup()
                with replay._changed:
                    replay._open.add(self.connection)
                    replay._changed.notify_all()

            def finish(self) -> None:
                try:
                    super().finish()
                except OSError:
                    pass
                finally:
                    with replay._changed:
                        replay._open.discard(self.connection)
                        replay._changed.notify_all()

            def handle(self) -> None:
                try:
                    super().handle()
                except OSError:
                    pass  # the client has gone

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                replay.requests.append(Request(self.path, {k.lower(): v for k, v in self.headers.items()}, body))
                try:
                    self._send(replay._answers.pop(0))
                except Hangup as hangup:
                    self.close_connection = True
                    if hangup.reset:
                        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

            def _send(self, answer: Answer) -> None:
                self.send_response(answer.status)
                for name, value in answer.headers.items():
                    self.send_header(name, value)
                self.send_header("transfer-encoding", "chunked")
                self.end_headers()
                for piece in answer.pieces:
                    if isinstance(piece, bytes):
                        self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
                    else:
                        piece()
                self.wfile.write(b"0\r\n\r\n")

            def log_message(self, format: str, *args: Any) -> None:
                pass

        return Handler
