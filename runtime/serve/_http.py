"""Requests and replies: bodies read within limits, errors as JSON that say what to do, and who may ask at all."""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from werkzeug.exceptions import HTTPException
from werkzeug.wrappers import Request, Response

from ..foreign import _json
from ._event_log import as_json

OURS: Final = "application/x-lockgate+json"
LOOPBACK: Final = ("127.0.0.1", "::1", "localhost")
_LOCAL: Final = re.compile(r"127(\.\d{1,3}){3}|::1|::ffff:127(\.\d{1,3}){3}")
_HOST: Final = re.compile(r"(?:\[([^\[\]]*)\]|([^:\[\],\s]*))(?::\d*)?")
_HEADERS: Final = (("Cache-Control", "no-store"), ("X-Content-Type-Options", "nosniff"))
#: Of which a proxy that passes requests on adds one: then the address of the peer is not that of the client.
_FORWARDED: Final = ("HTTP_FORWARDED", "HTTP_X_FORWARDED_FOR", "HTTP_X_FORWARDED_HOST", "HTTP_X_REAL_IP", "HTTP_VIA")


class Problem(Exception):
    """A request that is refused: the status, a code for programs, and a text that says what to do."""

    def __init__(
        self, status: int, code: str, text: str, *, headers: Mapping[str, str] | None = None, **more: Any
    ) -> None:
        super().__init__(text)
        self.status = status
        self.code = code
        self.headers = dict(headers or {})
        self.more = more

    def response(self) -> Response:
        """The reply."""
        made = reply({"error": str(self), "code": self.code, **self.more}, self.status)
        made.headers.update(self.headers)
        return made


def busy(code: str, text: str, seconds: int = 1) -> Problem:
    """It would work a little later."""
    return Problem(503, code, text, headers={"Retry-After": str(seconds)})


def from_http(error: HTTPException) -> Problem:
    """What the routing has found, as a problem of ours."""
    status = error.code or 500
    headers: dict[str, str] = {}
    text = "there is nothing here"
    if status == 404:
        text = "there is no such address; GET /api/agents and GET /api/sessions list what there is"
    elif status == 405:
        headers["Allow"] = allowed = ", ".join(sorted(getattr(error, "valid_methods", None) or ()))
        text = f"this address takes {allowed or 'another method'}"
    elif error.description:
        text = error.description
    return Problem(status, error.name.lower().replace(" ", "_"), text, headers=headers)


def reply(data: Any, status: int = 200) -> Response:
    """A reply of JSON."""
    return Response(as_json(data).encode("utf-8", "replace"), status, headers=_HEADERS, content_type="application/json")


def form_of(request: Request) -> str:
    """The form in which the client wants events: docker-agent's, unless it asks for ours."""
    return "lockgate" if OURS in request.headers.get("Accept", "") else "docker-agent"


# -- bodies ------------------------------------------------------------------------------------------------------------


def body_of(request: Request, limit: int) -> Any:
    """The JSON of the body; an empty object where there is no body. Raises `Problem`."""
    length = request.content_length
    if length is not None and length > limit:
        raise _too_large(limit)
    stream = request.environ["wsgi.input"]
    if length is None and not request.environ.get("wsgi.input_terminated"):
        data = b""  # without a length there is no body
    else:
        data = _read(stream, limit + 1 if length is None else length)
    if len(data) > limit:
        raise _too_large(limit)
    if length is not None and len(data) < length:
        raise Problem(400, "bad_request", "the body ended before its length: send it again")
    if not data:
        return {}
    if request.mimetype not in ("application/json", OURS):  # a form of a page elsewhere cannot send this
        raise Problem(415, "not_json", "the body is JSON, and says so: Content-Type: application/json")
    try:
        return _json.parse(data.decode("utf-8"))
    except ValueError as error:
        said = "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
        raise Problem(400, "bad_json", f"the body cannot be read as JSON: {said}") from None


def _read(stream: Any, size: int) -> bytes:
    pieces: list[bytes] = []
    while size > 0 and (piece := stream.read(min(size, 65536))):
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)


def _too_large(limit: int) -> Problem:
    return Problem(413, "too_large", f"the body has more than {limit:,} bytes: send less")


def object_of(request: Request, limit: int) -> dict[str, Any]:
    """The body as a JSON object. Raises `Problem`. Fields that nobody reads are ignored: newer clients send some."""
    body = body_of(request, limit)
    if not isinstance(body, dict):
        raise Problem(400, "bad_request", f"the body must be a JSON object, not {_kind(body)}")
    return body


def field(body: Mapping[str, Any], name: str, kind: type[Any], default: Any = None, *, required: bool = False) -> Any:
    """A field of a body, of its type; ``default`` where it is not there, or null. Raises `Problem`."""
    value = body.get(name)
    if value is None:
        if required:
            raise Problem(400, "bad_request", f"the field {name} is missing: {_KINDS[kind]}")
        return default
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise Problem(400, "bad_request", f"the field {name} must be {_KINDS[kind]}, not {_kind(value)}")
    return value


def one_of(body: Mapping[str, Any], name: str, choices: Sequence[str]) -> str:
    """A field whose value is one of some texts. Raises `Problem`."""
    value = field(body, name, str, required=True)
    if value not in choices:
        raise Problem(400, "bad_request", f"the field {name} must be one of {', '.join(choices)}, not {_quoted(value)}")
    return str(value)


_KINDS: Final[Mapping[type[Any], str]] = {
    str: "text",
    int: "a whole number",
    bool: "true or false",
    dict: "an object",
    list: "a list",
}


def _kind(value: Any) -> str:
    return "null" if value is None else _KINDS.get(type(value), "a number")


def _quoted(text: str) -> str:
    return json.dumps(text if len(text) <= 100 else f"{text[:100]}...")


def number_of(request: Request, name: str, *, default: float | None = None, most: float = 600.0) -> float | None:
    """Seconds, or a number, in the query: ``10``, ``2.5``, ``10s``, ``500ms``. Raises `Problem`."""
    text = request.args.get(name)
    if text is None:
        return default
    match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,9})?)(ms|s|m|)", text, re.ASCII)
    if match is None:
        raise Problem(
            400, "bad_request", f"{name} in the query must be a number, such as {name}=10, not {_quoted(text)}"
        )
    value = float(match[1]) * {"ms": 0.001, "s": 1.0, "m": 60.0, "": 1.0}[match[2]]
    return min(value, most)


def since_of(request: Request) -> int:
    """The id of the last event that the client had. A browser that connects again says it in a header, and asks for the
    address of the first time: so the header comes before the query. Raises `Problem`.
    """
    for name, text in (
        ("Last-Event-ID", request.headers.get("Last-Event-ID")),
        ("since", request.args.get("since")),
    ):
        if text is None or text == "":
            continue
        if not re.fullmatch(r"\d{1,18}", text, re.ASCII):
            raise Problem(400, "bad_request", f"{name} must be the id of an event, a whole number, not {_quoted(text)}")
        return int(text)
    return 0


# -- who may ask -------------------------------------------------------------------------------------------------------


class Guard:
    """Decides who may ask: whoever has the token, whoever ``user`` knows, or, where there is neither, this machine."""

    def __init__(
        self,
        token: str | None,
        user: Callable[[Request], str | None] | None,
        hosts: Sequence[str],
    ) -> None:
        self._token = None if token is None else token.encode()
        self._user = user
        self._hosts = tuple(map(_without_port, hosts))
        #: Whether those who ask have shown who they are, so that lasting approvals may be given.
        self.knows = token is not None or user is not None

    def admit(self, request: Request) -> str:
        """The owner of the sessions that the client may see, as the beginning of their ids. Raises `Problem`."""
        host = _without_port(request.environ.get("HTTP_HOST", ""))
        if self._hosts and host not in self._hosts:
            raise Problem(403, "wrong_host", f"nothing is served under the name {_quoted(host)}")
        if not self.knows:
            self._check_local(request, host)
        if self._token is not None:
            self._check_token(request)
        else:  # what a browser sends by itself, a cookie or nothing at all, another site's page can have it send
            _check_origin(request)
        if self._user is None:
            return ""
        owner = self._user(request)
        if owner is None or owner == "":
            raise Problem(401, "unauthorized", "sign in first: it is not known who you are")
        if not isinstance(owner, str):
            raise TypeError(f"user= returns the name of the owner, or None, not {type(owner).__name__}")
        return f"{hashlib.sha256(owner.encode('utf-8', 'surrogatepass')).hexdigest()[:32]}-"

    def _check_local(self, request: Request, host: str) -> None:
        """Without a token only this machine is served: by its address, and under a name that cannot lead elsewhere (a
        page of another site may have its own name lead to 127.0.0.1 once it is loaded)."""
        if not _LOCAL.fullmatch(request.environ.get("REMOTE_ADDR", "")) or any(
            name in request.environ for name in _FORWARDED
        ):
            raise Problem(403, "not_local", "only this machine is served without a token: start the server with one")
        if host not in LOOPBACK and host not in self._hosts:
            raise Problem(
                403, "wrong_host", "without a token, ask for localhost or 127.0.0.1: other names may be anybody's"
            )

    def _check_token(self, request: Request) -> None:
        assert self._token is not None
        kind, _, given = request.headers.get("Authorization", "").partition(" ")
        known = hmac.compare_digest(given.strip().encode("utf-8", "surrogateescape"), self._token)
        if kind.lower() != "bearer" or not known:
            raise Problem(
                401,
                "unauthorized",
                "the server wants its token, as the header Authorization: Bearer TOKEN",
                headers={"WWW-Authenticate": "Bearer"},
            )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens at ``host``."""
    return host in LOOPBACK or bool(_LOCAL.fullmatch(host))


def _check_origin(request: Request) -> None:
    origin = request.headers.get("Origin")
    if origin is not None:
        same = _place(origin.partition("://")[2]) == _place(request.environ.get("HTTP_HOST", ""))
    else:
        same = request.headers.get("Sec-Fetch-Site") not in ("cross-site", "same-site")
    if not same:
        raise Problem(403, "cross_origin", "pages of other sites may not use this server")


def _place(host: str) -> str:
    return re.sub(r":(80|443)$", "", host.lower())


def _without_port(host: str) -> str:
    match = _HOST.fullmatch(host)
    if match is None:  # an IPv6 address, as settings have it; or no name at all, and then none that is served
        return host.lower()
    return (match[1] or match[2] or "").lower()
