"""Passes answers that other processes have written to the store on to the open questions of this process."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from channels import CancelToken, Receiver
from channels._lazy import lazy_logger

from ..agent._tool import Answer
from ..permissions import Decision
from ..session._journal import Request
from ..stores._store import Notice, Store
from ._asks import Asks, Confirmations

_logger = lazy_logger("runtime")


def decision_from(said: Mapping[str, Any]) -> Decision:
    """The decision that a store has kept."""
    return Decision(bool(said.get("approved")), said.get("scope") or "once", str(said.get("reason") or ""))


def answer_from(said: Mapping[str, Any]) -> Answer:
    """The answer that a store has kept."""
    return Answer(said.get("action", "cancel"), said.get("content") or {})


class AnswerListener:
    """The thread of a runtime that watches its store for answers. It starts with the first question in the store, and
    `end` ends it. It holds references neither to the runtime nor to a stream.
    """

    def __init__(self, store: Store, asks: Asks, confirmations: Confirmations) -> None:
        self._store = store
        self._asks = asks
        self._confirmations = confirmations
        self._ended = CancelToken()
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None

    @property
    def listening(self) -> bool:
        """Whether the thread was started."""
        return self._thread is not None

    def listen(self) -> None:
        """Start to watch the store. Raises `StoreError`."""
        with self._starting:
            if self._thread is not None or self._ended.cancelled:
                return
            notices = self._store.watch(self._ended)
            self._thread = threading.Thread(
                target=self._listen, args=(notices,), name="lockgate-answers", daemon=True
            )
            self._thread.start()

    def _listen(self, notices: Receiver[Notice]) -> None:
        try:
            for notice in notices:
                if notice.kind == "answered" and notice.request is not None:
                    self._settle(notice.request)
        except BaseException:
            _logger.exception("answers of other processes are not heard any more")

    def _settle(self, request: Request) -> None:
        said = request.answer
        if said is None:
            return
        if request.kind == "approval":
            self._confirmations.settle_elsewhere(request.id, decision_from(said))
        else:
            self._asks.settle_elsewhere(request.id, answer_from(said))

    def end(self, timeout: float | None = 0.0) -> None:
        """Stop watching, and wait up to ``timeout`` seconds for the thread to end."""
        self._ended.cancel("the runtime was closed")
        thread = self._thread
        if thread is not None and timeout and thread is not threading.current_thread():
            thread.join(timeout)

    def __repr__(self) -> str:
        state = "ended" if self._ended.cancelled else "listening" if self.listening else "not started"
        return f"<AnswerListener {state}>"
