"""What people say to a session while it runs: steering messages and follow-ups."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from werkzeug.wrappers import Request, Response

from .._errors import NotRunning, SessionNotFound
from ..session._idempotency import IdempotencyKey
from ..session._journal import MailPoint
from ._bodies import messages_of
from ._handlers import Handlers, unknown
from ._http import Problem, field, reply
from ._idempotency import key_of, part_of

QUEUED: Final = 100  # messages to a run that it has not taken


class MessageHandlers(Handlers):
    """Messages to runs."""

    def steer(self, request: Request, owner: str, id: str) -> Response:
        """Say something to the live run, for its next model call."""
        body = self.object_of(request)
        framing = field(body, "framing", str, "plain")
        if framing not in ("plain", "instruction"):
            raise Problem(422, "no_framing", "a message to a run is said as it is: leave framing out")
        said, key = self._texts(body), key_of(request, "steer", body)
        self._check_room(id)
        self.load(id)
        if self.known(id, key) is not None:
            return reply({"status": "duplicate", "duplicate": True}, 202)
        if self._mail(id, "user_steering_messages_submit", said, key):
            raise Problem(409, "not_running", "the session has no run to steer: POST the message to its agent instead")
        return reply({"status": "queued"}, 202)

    def followup(self, request: Request, owner: str, id: str) -> Response:
        """Say something to the live run, for when it has nothing more to do; or to the session, for its next run."""
        body = self.object_of(request)
        said, key = self._texts(body), key_of(request, "followup", body)
        self._check_room(id)
        self.load(id)
        if self.known(id, key) is not None:
            return reply({"status": "duplicate", "duplicate": True}, 202)
        left = self._mail(id, "user_followup_submit", said, key)
        if not left:
            return reply({"status": "queued_streaming", "duplicate": False}, 202)
        session = self.load(id)
        if session.waiting:
            raise Problem(409, "waiting", "the session waits for its user: answer what it asks before you say more")
        for text in left:
            session.add_user(text)
        session._idempotency = key
        try:
            self.write(session)
        except Problem:
            if self.known(id, key) is None:
                raise
            return reply({"status": "duplicate", "duplicate": True}, 202)  # it was sent twice at the same moment
        return reply({"status": "queued_idle", "duplicate": False}, 202)

    def queue(self, request: Request, owner: str, id: str) -> Response:
        """How many messages the live run has not taken yet, wherever it runs."""
        run = self.backend.runs.get(id)
        if run is not None:
            box = run.stream._core.mailbox
            steering, following = len(box._steering), len(box._following)
        else:
            self.load(id)
            waiting = [each.point for each in self.backend.store.commands(id).mail]
            steering = waiting.count("user_steering_messages_submit")
            following = len(waiting) - steering
        said = {"steer": steering, "followup": following}
        return reply({name: {"depth": depth, "capacity": QUEUED} for name, depth in said.items()})

    def _mail(self, id: str, point: MailPoint, texts: list[str], key: IdempotencyKey | None) -> list[str]:
        """Give the texts to the live run, wherever that is; those that came too late."""
        for number, text in enumerate(texts, 1):
            try:
                if key is not None:  # with its key, in one step
                    part = part_of(key, number, number == len(texts))
                    self.backend.store.mail(id, point, text, key=part)
                elif point == "user_steering_messages_submit":
                    self.runtime(id).steer(id, text)
                else:
                    self.runtime(id).follow_up(id, text)
            except NotRunning:
                return texts[number - 1 :]
            except SessionNotFound:
                raise unknown() from None
        self.known(id, key)  # another request with this key may have come at the same moment, and have been first
        return []

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
