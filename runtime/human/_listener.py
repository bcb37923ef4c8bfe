"""Passes on what other processes have written to the store: answers to the open questions of this process, and commands
for its streams.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

from channels import CancelToken, Receiver
from channels._lazy import lazy_logger

from .._errors import SessionNotFound, StoreError
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


class Listener:
    """The thread of a runtime that watches its store for answers and commands. It starts with the first question in the
    store, or with the first stream that takes commands, and `end` ends it. It holds no reference to the runtime.
    ``commanded`` is given the id of a session whose stream, in whichever process, has new commands.
    """

    def __init__(
        self, store: Store, asks: Asks, confirmations: Confirmations, commanded: Callable[[str], object]
    ) -> None:
        self._store = store
        self._asks = asks
        self._confirmations = confirmations
        self._commanded = commanded
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
            self._thread = threading.Thread(target=self._listen, args=(notices,), name="lockgate-listener", daemon=True)
            self._thread.start()

    def _listen(self, notices: Receiver[Notice]) -> None:
        try:
            for notice in notices:
                if notice.kind == "answered" and notice.request is not None:
                    self._settle(notice.request)
                elif notice.kind in ("mailed", "canceled"):
                    self._pass_on(notice.session_id)
        except BaseException:
            _logger.exception("answers and commands of other processes are not heard any more")

    def _pass_on(self, session_id: str) -> None:
        try:
            self._commanded(session_id)
        except SessionNotFound:  # it was deleted meanwhile
            pass
        except StoreError as error:  # the next command takes this one along
            _logger.warning("a command for the run on session %s could not be read: %s", session_id, error)

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
        return f"<Listener {state}>"
