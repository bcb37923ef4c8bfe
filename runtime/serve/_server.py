"""A server for the desk and for a small site: waitress, which sends what it is given at once, and tells when a client
has left.

Measured with streams of 20,000 events: waitress 19 us an event, the server of werkzeug 28 us; both deliver an event
within 0.2 ms, and notice at the next write that a client has left. waitress has a fixed number of threads, so a stream
may not take the last of them (`max_streams`), and hands what a slow client has not taken to a buffer, which is kept
small here so that the stream waits instead.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any, Final

from channels import CancelToken

BUFFER: Final = 256 * 1024  # bytes that a slow client may be behind before its stream waits
UPLOAD: Final = 16 << 20  # bytes of a body that are read, so that one that is too large gets a reply that says so
END: Final = 5.0  # seconds that streams and runs have to end
ARRIVAL: Final = 30.0  # seconds in which a request has to arrive
SLOWEST: Final = 5_000  # bytes a second of a long one, which has as much longer
STUCK: Final = 60.0  # seconds that a client may take nothing of what is sent
CONNECTIONS: Final = 5_000  # that are open at a time, if the process may have as many files
_LONG: Final = 60.0  # seconds in which something happens, or nothing
_OWN: Final = 100  # files that the process has open beside its connections


def serve(
    application: Callable[..., Any],
    host: str,
    port: int,
    *,
    threads: int,
    ready: Callable[[str], object],
    ended: CancelToken,
    close: Callable[[], object],
) -> None:
    """Serve until ``ended`` is cancelled, or Ctrl-C. ``ready`` is told the address; ``close`` ends what the
    application does, while its last replies are sent. Raises `OSError` if the address cannot be had.
    """
    from waitress import wasyncore  # type: ignore[import-untyped, unused-ignore]
    from waitress.server import create_server  # type: ignore[import-untyped, unused-ignore]

    logging.getLogger("waitress").setLevel(logging.ERROR)  # a client that leaves in the middle is nothing to warn of
    sockets: dict[int, Any] = {}
    server: Any = create_server(
        application,
        map=sockets,
        listen=f"[{host}]:{port}" if ":" in host else f"{host}:{port}",
        threads=threads,
        ident="lockgate",
        channel_request_lookahead=1,  # else it does not tell that a client has left
        outbuf_high_watermark=BUFFER,
        max_request_body_size=UPLOAD,
        connection_limit=_most_connections(threads),
        clear_untrusted_proxy_headers=False,  # they say that a request has come from elsewhere
        asyncore_use_poll=True,
    )
    interrupt: KeyboardInterrupt | None = None
    stalled = _Stalled(ARRIVAL, STUCK)
    try:
        try:
            listening = getattr(server, "effective_listen", None) or [(server.effective_host, server.effective_port)]
            ready(_address(host, listening[0][1]))
            with ended.on_cancel(lambda: _wake(sockets)):
                while sockets and not ended.cancelled:
                    wasyncore.loop(timeout=stalled.close(sockets), use_poll=True, map=sockets, count=1)
        except KeyboardInterrupt as error:
            interrupt = error
        closing = threading.Thread(target=close, name="lockgate-serve-closing", daemon=True)
        closing.start()
        until = time.monotonic() + END
        dispatcher = server.task_dispatcher
        while sockets and time.monotonic() < until and (closing.is_alive() or dispatcher.active_count):
            wasyncore.loop(timeout=0.02, use_poll=True, map=sockets, count=1)
        for _ in range(3):  # the last replies
            wasyncore.loop(timeout=0.02, use_poll=True, map=sockets, count=1)
        closing.join(max(0.0, until - time.monotonic()))
    finally:
        server.task_dispatcher.shutdown(timeout=1)
        wasyncore.close_all(sockets)
    if interrupt is not None:
        raise interrupt


class _Stalled:
    """Closes connections on which nothing goes on: a request that does not arrive, which would take the place of
    another client for ever if a byte of it came now and then, and a reply that is not taken, which would keep its
    thread. Used by the thread of the server's loop.
    """

    def __init__(self, arrival: float, stuck: float) -> None:
        self._arrival = arrival
        self._stuck = stuck
        self._pause = min(arrival, stuck, 10.0) / 2
        self._next = 0.0  # when to look
        self._known: dict[Any, tuple[float, float]] = {}  # what was seen of a connection, and since when

    def close(self, sockets: dict[int, Any]) -> float:
        """Close them, if it is time to look; the seconds until the next look."""
        now = time.monotonic()
        if now < self._next:
            return self._next - now
        known: dict[Any, tuple[float, float]] = {}
        channels = [each for each in sockets.values() if hasattr(each, "requests")]
        for each in channels:
            if each.total_outbufs_len:
                seen, limit = each.last_activity, self._stuck
            elif not each.requests and (each.request is not None or each.last_activity == each.creation_time):
                seen, limit = 0.0, self._arrival
                if each.request is not None:
                    limit += each.request.body_bytes_received / SLOWEST
            else:  # at work, or kept open by its client for the next request
                continue
            before, since = self._known.get(each, (seen, now))
            since = since if before == seen else now
            if now - since < limit:
                known[each] = seen, since
            else:
                each.handle_close()
        self._known = known
        self._next = now + self._pause
        return self._pause if channels else _LONG


def _most_connections(threads: int) -> int:
    """How many connections may be open: one that is idle costs next to nothing, and who opens many shuts out others."""
    try:
        import resource
    except ImportError:
        return 500
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    free = CONNECTIONS if files == resource.RLIM_INFINITY else files - _OWN - 4 * threads  # which have files of stores
    return max(200, min(CONNECTIONS, free))


def _address(host: str, port: int) -> str:
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/"


def _wake(sockets: dict[int, Any]) -> None:
    for each in list(sockets.values()):
        if hasattr(each, "pull_trigger"):
            each.pull_trigger()
