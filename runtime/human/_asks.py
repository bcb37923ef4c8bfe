"""Open questions to the user. A question is registered before it is sent, and settled exactly once.

The answer that is written down first counts, and writing it down is a single step. So an answer that races with a
cancel is either delivered or refused, never both. An answer that is written down is always delivered, even if the
answering thread is interrupted (by Ctrl-C, the end of the stack, or a signal handler that answers the same question):
then the thread of the question's deadline delivers it, or the next thread that settles or looks for the question. An
answer may therefore be delivered twice, which has to be harmless. There is no lock, and nothing here waits.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from channels import CancelToken, ChannelClosed, WouldBlock
from channels._lazy import lazy

from .._errors import InvalidAnswer, NotPending
from ..agent._tool import Action, Answer, Question
from ..events import Event
from ..permissions import Decision
from ..schema._checking import problems
from ..session._message import ToolCall

if TYPE_CHECKING:
    import uuid
else:
    uuid = lazy("uuid")

Q = TypeVar("Q")
A = TypeVar("A")

_ACTIONS = ("accept", "decline", "cancel")


class Ask(Generic[Q, A]):
    """One open question.

    ``settled`` takes the answer. It is called in the thread that answers, and rarely a second time. It must not wait,
    and raises `ChannelClosed` if nobody takes the answer any more.
    """

    def __init__(
        self,
        stream: object,
        root: object,
        call: object,
        question: Q,
        settled: Callable[[A], object],
        id: str | None = None,
    ) -> None:
        self.id = id or uuid.uuid4().hex  # ours, never the server's: two servers may choose the same
        self.stream = stream  # that asks
        self.root = root  # the stream whose consumer answers
        self.call = call  # that asks, or is asked about
        self.question = question
        self.settled = settled
        self.event: Event | None = None  # what the consumer is sent
        self.deadline: CancelToken | None = None
        self.began = time.monotonic()
        self.retry: Callable[[], object] = _nothing  # delivers what is written down, on the deadline's thread
        self.written: dict[None, list[A]] = {}
        self.parked = False  # its stream has ended, and left it to the store, where it waits on
        self.patient = False  # nobody has said how long it may wait, once it is parked
        self.keep: Callable[[A], object] = _kept_nowhere  # writes the answer down where it outlives the process

    @property
    def answer(self) -> A | None:
        """The answer to the question; None as long as the question is open."""
        return self.written[None][0] if self.written else None

    def __repr__(self) -> str:
        return f"<Ask {self.id[:8]} {self.question!r}>"


class Pending(Generic[Q, A]):
    """The open questions of one kind, of all streams of a runtime. All methods are thread-safe."""

    def __init__(self, kind: str, *, unanswered: Callable[[str], A], withdrawn: Callable[[str], A]) -> None:
        self.kind = kind  # for people
        self._unanswered = unanswered  # the answer where nobody gives one in time, with a note
        self._withdrawn = withdrawn  # and where nobody waits for one any more
        self._pending: dict[str, Ask[Q, A]] = {}

    def register(self, ask: Ask[Q, A], timeout: float | None) -> None:
        """Open the question ``ask``. If nobody answers it within ``timeout`` seconds, it gets the default answer."""
        note = "" if timeout is None else f"nobody answered within {timeout:g} s"
        deadline = ask.deadline = CancelToken(timeout=timeout)
        ask.retry = deadline.canceller()
        self._pending[ask.id] = ask
        deadline.on_cancel(lambda: self._settle(ask, self._unanswered(note)))

    def settle(self, ask: Ask[Q, A], answer: A) -> None:
        """Answer ``ask``, in its store first. Raises `NotPending` if it was answered before, by any process, or if its
        stream ends; `StoreError`, and then the question stays open.
        """
        ask.keep(answer)
        if self._settle(ask, answer) or ask.parked:
            return
        # The store tells this process, too, of the answer that it has just kept, and that may be settled first.
        if ask.keep is _kept_nowhere or ask.answer != answer:
            raise NotPending(f"{self.kind} {ask.id} was settled meanwhile")

    def settle_elsewhere(self, ask_id: str, answer: A) -> None:
        """Settle a question that another process has answered in the store; nothing happens if it is not open here."""
        ask = self._pending.get(ask_id)
        if ask is not None:
            self._settle(ask, answer)

    def withdraw(self, owner: object, note: str) -> None:
        """Withdraw a question, or all questions of a call or a stream that ends."""
        for ask in list(self._pending.values()):
            if ask is owner or ask.call is owner or ask.stream is owner:
                self._settle(ask, self._withdrawn(note))

    def park(self, stream: object) -> list[Ask[Q, A]]:
        """Leave the questions of a stream, and their answers, to its store. Returns the questions."""
        left = [ask for ask in list(self._pending.values()) if ask.stream is stream]
        for ask in left:
            ask.parked = True
            self._pending.pop(ask.id, None)
            ask.deadline, ask.retry = None, _nothing
        return left

    def is_pending(self, ask: Ask[Q, A]) -> bool:
        """Whether ``ask`` is still open."""
        return ask.id in self._pending and not ask.written

    def pending(self, root: object = None) -> list[Ask[Q, A]]:
        """The open questions of one consumer or of all, the oldest first."""
        return [ask for ask in list(self._pending.values()) if not ask.written and (root is None or ask.root is root)]

    def find(self, ask_id: str | None, root: object = None) -> Ask[Q, A]:
        """The question with this id, or the only one. Raises `NotPending`, also where ``root`` is another stream."""
        if ask_id is not None:
            ask = self._pending.get(ask_id)
            if ask is not None and ask.written:
                self._deliver(ask)
                ask = None
            if ask is None or (root is not None and ask.root is not root):
                raise NotPending(f"no {self.kind} {ask_id} is waiting: it was answered, withdrawn or timed out")
            return ask
        waiting = self.pending(root)
        if not waiting:
            raise NotPending(f"no {self.kind} is waiting")
        if len(waiting) > 1:
            ids = ", ".join(ask.id for ask in waiting)
            raise NotPending(f"{len(waiting)} {self.kind}s are waiting, so the answer needs an id: {ids}")
        return waiting[0]

    def _settle(self, ask: Ask[Q, A], answer: A) -> bool:
        """Answer the question. Returns whether this answer counts and was delivered."""
        mine = [answer]
        _have_room()
        try:
            if ask.written.setdefault(None, mine) is mine:
                return self._deliver(ask)
        except BaseException as error:
            if ask.written.get(None) is mine:
                ask.retry()
                if isinstance(error, WouldBlock):  # in a signal handler, which came into the same thread's answer
                    return True
            raise
        if ask.id in self._pending:  # or whoever wrote it down was kept from delivering it
            self._deliver(ask)
        return False

    def _deliver(self, ask: Ask[Q, A]) -> bool:
        try:
            ask.settled(ask.written[None][0])
            taken = True
        except ChannelClosed:
            taken = False
        self._pending.pop(ask.id, None)
        ask.deadline, ask.retry = None, _nothing  # and its timer
        return taken

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {len(self._pending)} waiting>"


def _kept_nowhere(answer: object) -> None:
    """Placeholder for `Ask.keep` of a question without a store."""


def _nothing() -> None:
    """Placeholder for `Ask.retry` while the question is not registered."""


def _have_room(frames: int = 4) -> None:
    """Raise `RecursionError` before an answer is written down if the stack has no room for the frames up to
    `Ask.retry`."""
    if frames:
        _have_room(frames - 1)


class Asks(Pending[Question, Answer]):
    """The open questions of tools to the user (elicitations)."""

    def __init__(self) -> None:
        super().__init__(
            "question",
            unanswered=lambda note: Answer("decline", note=note),
            withdrawn=lambda note: Answer("cancel", note=note),
        )

    def answer(
        self, ask_id: str | None, action: Action, content: Mapping[str, Any] | None, *, root: object = None
    ) -> None:
        """Settle the question with this id, or the only open one.

        Raises `NotPending`, also if the question belongs to another stream than ``root``; `InvalidAnswer`, and then the
        question stays open.
        """
        if action not in _ACTIONS:
            raise InvalidAnswer(f"an answer must be one of {', '.join(_ACTIONS)}, not {action!r:.200}")
        if content is not None and not isinstance(content, Mapping):
            raise InvalidAnswer(f"content must be a mapping, such as {{'size': 'large'}}, not {content!r:.200}")
        ask = self.find(ask_id, root)
        if action != "accept":
            content = {}
        elif ask.question.mode == "form" and ask.question.schema is not None:
            found = problems(dict(content or {}), ask.question.schema)
            if found:
                raise InvalidAnswer("; ".join(found))
        self.settle(ask, Answer(action, dict(content or {})))


class Confirmations(Pending[ToolCall, Decision]):
    """The tool calls that need the user's approval."""

    def __init__(self) -> None:
        def rejected(note: str) -> Decision:
            return Decision(False, reason=note)

        super().__init__("confirmation", unanswered=rejected, withdrawn=rejected)

    def answer(self, ask_id: str | None, decision: Decision, *, root: object = None) -> None:
        """Settle the confirmation with this id, or the only pending one. Raises `NotPending`."""
        self.settle(self.find(ask_id, root), decision)
