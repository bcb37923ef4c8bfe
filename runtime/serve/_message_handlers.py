"""What people say to a session while it runs: steering messages and follow-ups."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, Final

from werkzeug.wrappers import Request, Response

from .._errors import NotRunning
from ._backend import Backend
from ._bodies import messages_of
from ._handlers import Handlers
from ._http import Problem, field, reply

QUEUED: Final = 100  # messages to a run that it has not taken
KEYS: Final = 10_000  # of messages that were sent, so that one that is sent again is not said twice
_KEY: Final = 200  # characters of such a key


class MessageHandlers(Handlers):
    """Messages to runs."""

    def __init__(self, backend: Backend, *, max_body: int, knows_clients: bool) -> None:
        super().__init__(backend, max_body=max_body, knows_clients=knows_clients)
        self._lock = threading.Lock()
        self._keys: OrderedDict[tuple[str, str], None] = OrderedDict()

    def steer(self, request: Request, owner: str, id: str) -> Response:
        body = self.object_of(request)
        framing = field(body, "framing", str, "plain")
        if framing not in ("plain", "instruction"):
            raise Problem(422, "no_framing", "a message to a run is said as it is: leave framing out")
        said = self._texts(body)
        self._check_room(id)
        self.load(id)
        if self._repeated(request, id):
            return reply({"status": "duplicate", "duplicate": True}, 202)
        try:
            for text in said:
                self.runtime(id).steer(id, text)
        except NotRunning:
            self._forget_key(request, id)
            raise Problem(
                409, "not_running", "the session has no run to steer: POST the message to its agent instead"
            ) from None
        return reply({"status": "queued"}, 202)

    def followup(self, request: Request, owner: str, id: str) -> Response:
        said = self._texts(self.object_of(request))
        self._check_room(id)
        session = self.load(id)
        if self._repeated(request, id):
            return reply({"status": "duplicate", "duplicate": True}, 202)
        try:
            for text in said:
                self.runtime(id).follow_up(id, text)
            return reply({"status": "queued_streaming", "duplicate": False}, 202)
        except NotRunning:
            pass
        try:
            if session.waiting:
                raise Problem(409, "waiting", "the session waits for its user: answer what it asks before you say more")
            session = self.load(id)
            for text in said:
                session.add_user(text)
            self.write(session)
        except Problem:
            self._forget_key(request, id)
            raise
        return reply({"status": "queued_idle", "duplicate": False}, 202)

    def _texts(self, body: Mapping[str, Any]) -> list[str]:
        said = messages_of(field(body, "messages", list, required=True))
        if not said or any(images for _, images in said):
            raise Problem(400, "bad_request", 'one message or more, of text: {"messages": [{"content": "hello"}]}')
        return [text for text, _ in said]

    def _check_room(self, id: str) -> None:
        run = self.backend.runs.get(id)
        if run is None:
            return
        box = run.stream._core.mailbox
        if len(box._steering) + len(box._following) >= QUEUED:
            text = f"{QUEUED} messages wait to be heard: wait a moment"
            raise Problem(429, "queue_full", text, headers={"Retry-After": "1"})

    def _repeated(self, request: Request, id: str) -> bool:
        """Whether a message with this key was sent before."""
        key = self._key(request)
        if not key:
            return False
        with self._lock:
            if (id, key) in self._keys:
                return True
            self._keys[id, key] = None
            if len(self._keys) > KEYS:
                self._keys.popitem(last=False)
        return False

    def _forget_key(self, request: Request, id: str) -> None:
        """The message was not taken: it may be sent again."""
        with self._lock:
            self._keys.pop((id, self._key(request)), None)

    @staticmethod
    def _key(request: Request) -> str:
        key = request.headers.get("Idempotency-Key", "")
        if len(key) > _KEY:
            raise Problem(400, "bad_request", f"an Idempotency-Key has {_KEY} characters at most")
        return key
