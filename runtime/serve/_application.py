"""`Application`: agents over HTTP, as a WSGI callable."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

from channels import CancelToken
from channels._lazy import lazy_logger

from .._checks import check_items, check_number
from .._errors import MissingExtra, StoreError
from .._public import not_copied
from ..agent._agent import Agent, Team
from ..stores._memory import MemoryStore
from ..stores._store import Store
from ._backend import Backend, TooManyStreams, named
from ._page import page, page_headers

if TYPE_CHECKING:
    from werkzeug.wrappers import Request

_logger = lazy_logger("runtime.serve")

STREAMS: Final = 16  # where it is not known how many threads the server has
_SEVERAL: Final = (
    "several worker processes serve the agents, and each would have sessions of its own: give them a store that they"
    " share, such as Application(agents, store=SQLiteStore('sessions.db')), or serve with one worker and more threads"
)
_ONE_THREAD: Final = (
    "gunicorn has one thread, which a stream would take, and the answers that it waits for could not get in: give it"
    " threads, such as --worker-class gthread --threads 16"
)


class Application:
    """A WSGI application that serves agents: runs, their events as server-sent events, approvals, questions, sessions,
    and a page to talk to the agents.

    ``agents`` is an agent, a team, several of them, or a mapping from the names under which they are served. ``store``
    keeps their sessions; without one they are kept in the memory of this process, the last few hundred. Several worker
    processes need a store. ``settings`` are those of `Runtime`.

    - ``token``: clients have to send ``Authorization: Bearer TOKEN``. Without ``token`` and ``user`` only this machine
      is served.
    - ``user``: a function from the request (a `werkzeug.Request`) to the name of its owner, or None for nobody; it may
      read the session cookie of your site. Each owner has sessions of their own, and sees no others.
    - ``hosts``: the names under which the server is asked for. Without a token ``localhost`` is allowed as well.
    - ``linger``, in seconds: a run at which nobody has looked for this time is cancelled (0: at once; None: it runs
      on). A run that waits for its user is parked instead.
    - ``ping``, in seconds: how often a quiet stream gets a sign of life.
    - ``max_streams`` is the number of streams at a time. Each keeps a thread of the server, so two less than its
      threads are a good number, which is found out under gunicorn. ``max_runs`` is the number of runs at a time.
    - ``max_body`` is the number of bytes that a request may have.

    A run belongs to the application, and goes on where its client leaves; a connection only looks at it. Thread-safe.
    No thread is started before the first request, so that a server may fork. Use the application in a ``with`` block,
    or `close` it. Raises `MissingExtra` without werkzeug.
    """

    def __init__(
        self,
        agents: Agent | Team | Iterable[Agent | Team] | Mapping[str, Agent | Team],
        *,
        store: Store | None = None,
        token: str | None = None,
        user: Callable[[Request], str | None] | None = None,
        hosts: Iterable[str] = (),
        linger: float | None = 30.0,
        ping: float = 15.0,
        max_streams: int | None = None,
        max_runs: int = 100,
        max_body: int = 1 << 20,
        **settings: Any,
    ) -> None:
        try:
            import werkzeug  # noqa: F401
        except ImportError as error:
            raise MissingExtra("serving agents over HTTP", "serve") from error
        from ._api import Api
        from ._http import Guard

        check_number("linger", linger, "seconds", least=0, optional=True)
        check_number("ping", ping, "seconds", above=0)
        check_number("max_streams", max_streams, "streams", above=0, whole=True, optional=True)
        check_number("max_runs", max_runs, "runs", above=0, whole=True)
        check_number("max_body", max_body, "bytes", above=0, whole=True)
        if token is not None and not _is_token(token):
            raise ValueError("token must be a text of ASCII characters without spaces around it; leave it out for none")
        if user is not None and not callable(user):
            raise TypeError(f"user must be a function from a request to the name of its owner, not {user!r:.200}")
        hosts = check_items("hosts", hosts, str, "a list of names, such as ['agents.example.org']")
        self._alone = store is None or isinstance(store, MemoryStore)  # its sessions are in this process only
        workers, threads = _gunicorn()
        if workers > 1 and self._alone:
            raise ValueError(_SEVERAL)
        if workers and threads == 1 and max_streams is None:
            raise ValueError(_ONE_THREAD)
        self._guard = Guard(token, user, hosts)
        self._ping = ping
        self._max_streams = max_streams
        self._ended = CancelToken()
        self._backend = Backend(
            named(agents),
            store,
            linger=linger,
            max_streams=max_streams or (max(threads - 2, 1) if threads > 1 else STREAMS),
            max_runs=max_runs,
            settings=settings,
        )
        self._api = Api(self._backend, max_body=max_body, knows_clients=self._guard.knows)

    # -- WSGI ----------------------------------------------------------------------------------------------------------

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Answer a request."""
        from werkzeug.exceptions import HTTPException
        from werkzeug.wrappers import Request, Response

        from ._http import Problem, busy, from_http

        request = Request(environ, populate_request=False)
        try:
            made = self._respond(request)
            if not isinstance(made, Response):
                return self._stream(made, environ, start_response)
        except Problem as problem:
            made = problem.response()
        except HTTPException as error:
            made = from_http(error).response()
        except TooManyStreams:
            streams = self._backend.max_streams
            made = busy("too_many_streams", f"{streams} streams are open, which is as many as may be").response()
        except StoreError as error:
            _logger.error("the store has failed: %s", error)
            made = busy(
                "store_failed", "the sessions cannot be read or written at the moment; the log says why"
            ).response()
        except Exception:
            _logger.exception("%s %r has failed", request.method, request.path)
            made = Problem(500, "internal", "the server has failed; its log says more").response()
        return made(environ, start_response)

    def _respond(self, request: Request) -> Any:
        from ._http import Problem, busy, reply

        if self._alone and request.environ.get("wsgi.multiprocess"):
            _logger.error("%s", _SEVERAL)
            raise Problem(503, "needs_store", _SEVERAL)
        path = request.path
        if request.method in ("GET", "HEAD"):
            if path == "/health":
                from .. import __version__

                return reply({"status": "ok", "version": __version__})
            if path in ("/ready", "/api/ready"):
                return self._ready()
            if path in ("", "/"):
                return self._page(request)
        owner = self._guard.admit(request)
        if self._backend.closed:
            raise busy("closing", "the server is ending: ask again in a moment")
        return self._api.respond(request, owner)

    def _ready(self) -> Any:
        from ._http import reply

        connected = True
        try:
            self._backend.store.sessions(limit=1)
        except StoreError as error:
            _logger.warning("the store of the sessions cannot be used: %s", error)
            connected = False
        ready = connected and not self._backend.closed
        said = {"ready": ready, "active_sessions": len(self._backend.runs), "store_connected": connected}
        return reply(said, 200 if ready else 503)

    def _page(self, request: Request) -> Any:
        from werkzeug.utils import redirect
        from werkzeug.wrappers import Response

        if not request.environ.get("PATH_INFO") and request.root_path:  # its addresses begin where the page is
            return redirect(f"{request.root_path}/", 308)
        return Response(page(), headers=dict(page_headers()))

    def _stream(self, wanted: Any, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        from werkzeug.wrappers import Response

        from ._sse import HEADERS, EventBody, worker_is_ending

        backend, ending = self._backend, worker_is_ending()

        def close() -> None:
            backend.close_stream(wanted.session_id)

        if environ["REQUEST_METHOD"] == "HEAD":  # with a length: waitress would send the end of a body that is none
            close()
            return Response(headers=HEADERS)(environ, start_response)
        try:
            body = EventBody(
                backend.log,
                wanted.session_id,
                wanted.since,
                wanted.form,
                run_is_over=wanted.run_is_over,
                ping=self._ping,
                closing=lambda: backend.closed or ending(),
                environ=environ,
                tell=lambda: backend.runs.tell(wanted.session_id),
                tell_every=backend.runs.told_every,
                on_close=close,
            )
        except BaseException:
            close()
            raise
        try:
            start_response("200 OK", list(HEADERS))
        except BaseException:
            body.close()
            raise
        return body

    # -- serving -------------------------------------------------------------------------------------------------------

    def run(
        self,
        host: str = "127.0.0.1",
        port: int = 8080,
        *,
        threads: int = 64,
        ready: Callable[[str], object] | None = None,
    ) -> None:
        """Serve, with waitress, until Ctrl-C or `close`; then everything is closed.

        ``threads`` are the requests that are answered at once, streams among them. ``ready`` is called with the address
        once it can be asked (with port 0 the system chooses the port). Raises `ValueError` where others than this
        machine would be served although there is neither a token nor a user, `OSError` if the address cannot be had,
        and `MissingExtra`.
        """
        from ._http import is_loopback

        check_number("threads", threads, "threads", least=3, whole=True)
        check_number("port", port, "port", least=0, whole=True)
        if not self._guard.knows and not is_loopback(host):
            raise ValueError(f"on {host!r} everybody in reach could use the agents: token= says who may")
        try:
            from ._server import serve
        except ImportError as error:
            raise MissingExtra("serving agents over HTTP", "serve") from error
        if self._max_streams is None:
            self._backend.max_streams = threads - 2
        try:
            serve(
                self,
                host,
                port,
                threads=threads,
                ready=ready or (lambda address: None),
                ended=self._ended,
                close=self._backend.close,
            )
        finally:
            self.close()

    # -- the end -------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """End the streams, which clients open again a second later, and the runs: those that wait for their user are
        parked, the others cancelled. Closes no store that was given. Bounded in time. Closing twice is harmless.
        """
        self._ended.cancel("the application was closed")
        self._backend.close()

    def __enter__(self) -> Application:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    __reduce_ex__ = not_copied("make an Application in each process")

    def __repr__(self) -> str:
        backend = self._backend
        state = "closed" if backend.closed else f"{len(backend.runs)} runs, {backend.streams} streams"
        return f"<Application of {', '.join(backend.teams)}, {state}>"


def _is_token(token: object) -> bool:
    return isinstance(token, str) and token.isascii() and token.isprintable() and token.strip() == token != ""


def _gunicorn() -> tuple[int, int]:
    """How many workers, and threads of each, gunicorn has, where it makes the application; else zeros. Of its kinds of
    workers only those with threads are meant.
    """
    frame = sys._getframe(1) if "gunicorn" in sys.modules else None
    while frame is not None:
        if str(frame.f_globals.get("__name__", "")).startswith("gunicorn."):
            settings = getattr(frame.f_locals.get("self"), "cfg", None)
            if settings is not None and hasattr(settings, "workers"):
                has_threads = getattr(settings, "worker_class_str", "") in ("sync", "gthread")
                return int(settings.workers), int(settings.threads) if has_threads else 0
        frame = frame.f_back
    return 0, 0
