"""Questions that wait for an answer: registered before they are sent, settled once.

Who settles a question is decided by who takes it out of the dict, a single step, so an answer that races a
cancellation is delivered or refused, never both. There is no lock, and nothing here waits.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from typing import Any

from channels import CancelToken

from ._errors import InvalidAnswer, NotPending
from ._schema import problems
from .events import Event
from .tool import Action, Answer, Question

_ACTIONS = ("accept", "decline", "cancel")


class Ask:
    """One question that waits. ``settled`` is called once, in the thread of whoever answers; it must not wait."""

    def __init__(
        self, stream: object, root: object, call: object, question: Question, settled: Callable[[Answer], object]
    ) -> None:
        self.id = uuid.uuid4().hex  # ours, never the server's: two servers may choose the same
        self.stream = stream  # that asks
        self.root = root  # the stream whose consumer answers
        self.call = call  # that asks
        self.question = question
        self.settled = settled
        self.event: Event | None = None  # what the consumer is sent
        self.deadline: CancelToken | None = None

    def __repr__(self) -> str:
        return f"<Ask {self.id[:8]} {self.question.message!r}>"


class Asks:
    """The questions that wait, of all streams of a runtime. All methods are thread-safe."""

    def __init__(self) -> None:
        self._pending: dict[str, Ask] = {}

    def register(self, ask: Ask, timeout: float | None) -> None:
        """Let ``ask`` be answered. After ``timeout`` seconds it is declined."""
        self._pending[ask.id] = ask
        if timeout is not None:
            note = f"nobody answered within {timeout:g} s"
            ask.deadline = CancelToken(timeout=timeout)
            ask.deadline.on_cancel(lambda: self._settle(ask, Answer("decline", note=note)))

    def answer(
        self, ask_id: str | None, action: Action, content: Mapping[str, Any] | None, *, root: object = None
    ) -> None:
        """Settle the question. Without an id, the only one that waits.

        Raises `NotPending`, also where ``root`` is another stream; `InvalidAnswer`, and then it still waits.
        """
        if action not in _ACTIONS:
            raise InvalidAnswer(f"an answer is one of {', '.join(_ACTIONS)}, not {action!r}")
        ask = self._find(ask_id, root)
        if action != "accept":
            content = {}
        elif ask.question.mode == "form" and ask.question.schema is not None:
            found = problems(dict(content or {}), ask.question.schema)
            if found:
                raise InvalidAnswer("; ".join(found))
        if not self._settle(ask, Answer(action, dict(content or {}))):
            raise NotPending(f"question {ask.id} was settled meanwhile")

    def withdraw(self, owner: object, note: str) -> None:
        """Settle a question that nobody waits for any more, or all those of a call or a stream that ends."""
        for ask in list(self._pending.values()):
            if ask is owner or ask.call is owner or ask.stream is owner:
                self._settle(ask, Answer("cancel", note=note))

    def is_pending(self, ask: Ask) -> bool:
        """Whether ``ask`` still waits."""
        return ask.id in self._pending

    def pending(self, root: object = None) -> list[Ask]:
        """The questions that wait, of one consumer or of all; the oldest comes first."""
        return [ask for ask in list(self._pending.values()) if root is None or ask.root is root]

    def _find(self, ask_id: str | None, root: object) -> Ask:
        if ask_id is not None:
            ask = self._pending.get(ask_id)
            if ask is None or (root is not None and ask.root is not root):
                raise NotPending(f"no question {ask_id} is waiting: it was answered, withdrawn or timed out")
            return ask
        waiting = self.pending(root)
        if not waiting:
            raise NotPending("no question is waiting")
        if len(waiting) > 1:
            ids = ", ".join(ask.id for ask in waiting)
            raise NotPending(f"{len(waiting)} questions are waiting, so the answer needs an id: {ids}")
        return waiting[0]

    def _settle(self, ask: Ask, answer: Answer) -> bool:
        if self._pending.pop(ask.id, None) is None:
            return False
        ask.settled(answer)
        return True

    def __repr__(self) -> str:
        return f"<Asks {len(self._pending)} waiting>"
