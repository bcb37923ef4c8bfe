"""Commands of other processes, which come through the store: steering, follow-ups and cancels."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Protocol

from channels import CancelToken

from ..human._mailbox import Mailbox
from ..session._session import Session
from ..stores._store import Store

_CANCELED: Final = "it was canceled through the store"


class Commanded(Protocol):
    """A stream, as far as commands are concerned."""

    @property
    def session(self) -> Session: ...
    @property
    def mailbox(self) -> Mailbox: ...
    @property
    def stopping(self) -> CancelToken: ...


def obey(core: Commanded, store: Store) -> None:
    """Let the stream have what it was told, and has not heard. Reads the store; called by any thread but the worker.
    Raises `StoreError` and `SessionNotFound`.
    """
    commands = store.commands(core.session.id)
    core.mailbox.deliver(commands.mail)
    if commands.cancel is not None:
        core.stopping.cancel(commands.cancel or _CANCELED)


def obey_all(cores: Iterable[Commanded], store: Store, session_id: str) -> None:
    """Let the stream of this session, if it is one of ``cores``, have what it was told."""
    for core in list(cores):
        if core.session.id == session_id:
            obey(core, store)
