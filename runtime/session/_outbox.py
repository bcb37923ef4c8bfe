"""`Outbox`: what a stream has still to tell the store of its session."""

from __future__ import annotations

import contextlib
import threading

from channels import Cancelled, SupportsDone

from .._errors import StoreError, describe
from ._journal import Entry, Journal, Partial, Status


class Outbox:
    """The entries of one stream on their way to its journal, in the order in which they were noted.

    Invariant: as long as ``unwritten`` is false, all that was noted is durable, or the worker knows that the store has
    failed. So whoever commits before it tells anybody tells nothing that the store does not have.

    Thread-safe: any thread may `note` and `flush`; the worker of the stream alone commits and releases. Once the store
    has failed, nothing is written any more, or the store would have a gap.
    """

    def __init__(self) -> None:
        self.unwritten = False
        self._journal: Journal | None = None
        self._noted: list[Entry] = []
        #: Entries are handed over under this, in their order, and waited for outside. A signal handler may come into
        #: the middle, and hands over the rest.
        self._handing_over = threading.RLock()
        self._error: StoreError | None = None
        self._failed: Journal | None = None  # what it failed with, until the lease is given back
        self._told = False  # the worker, of the error

    def open(self, journal: Journal) -> None:
        """From now on, entries go to ``journal``."""
        self._journal = journal

    @property
    def is_open(self) -> bool:
        """Whether there is a store that takes what is noted."""
        return self._journal is not None

    def note(self, *entries: Entry) -> None:
        """Let the store have the entries with the next `commit` or `flush`. Does not wait."""
        if self._journal is not None:
            self._noted.extend(entries)
            self.unwritten = True

    def sketch(self, text: str, agent_name: str) -> None:
        """Let the store have the part of a model's reply that has arrived so far. Does not wait."""
        if self._journal is not None:
            self._journal.post(Partial(text, agent_name))

    def commit(self, cancel: SupportsDone | None) -> None:
        """Wait until all that was noted is durable. Raises `StoreError`, once, whichever thread found out; `Cancelled`
        when ``cancel`` is done first, and then the entries are on their way.
        """
        self.unwritten = False  # before looking: what is noted meanwhile belongs to the next
        if self._told:
            return
        try:
            self.flush(cancel)
        except StoreError:
            self._told, self.unwritten = True, False
            raise

    def flush(self, cancel: SupportsDone | None) -> None:
        """`commit` for other threads: the worker waits for the same entries all the same."""
        if self._error is not None:
            raise self._error
        journal = self._journal
        if journal is None:
            return
        try:
            self._hand_over(journal)
            journal.append(cancel=cancel)
        except Exception as error:
            raise self._fail(error) from error

    def release(self, status: Status, reason: str, timeout: float | None, cancel: SupportsDone | None) -> None:
        """Hand over what is left, and give the lease of the session back. Twice is harmless.

        Raises `StoreError` if the store did not take all of it within ``timeout`` seconds. If ``cancel`` is done first,
        what is left is on its way.
        """
        journal = self._journal
        if journal is None:
            self._release_failed(reason)
            return
        try:
            self._hand_over(journal)
            journal.release(status, reason, timeout=timeout, cancel=cancel)
            self._journal = None
        except Cancelled:
            self._journal = None
        except Exception as error:
            self._told = True
            raise self._fail(error) from error

    def disown(self) -> None:
        """In a forked child: leave the store to the parent."""
        self._journal = self._failed = None

    def _hand_over(self, journal: Journal) -> None:
        with self._handing_over:
            entries = []
            while self._noted:
                entries.append(self._noted.pop(0))
            journal.post(*entries)

    def _fail(self, error: Exception) -> StoreError:
        """A store may be anybody's, and what it raises anything."""
        failed = error if isinstance(error, StoreError) else StoreError(f"the store failed: {describe(error)}")
        if self._journal is not None:
            self._journal, self._failed, self._error = None, self._journal, failed
            self.unwritten = True  # the worker is told with its next commit
        self._noted.clear()
        return failed

    def _release_failed(self, reason: str) -> None:
        failed, self._failed = self._failed, None
        if failed is not None:  # it may take the lease back all the same
            with contextlib.suppress(Exception):
                failed.release("interrupted", reason, timeout=0.0)
        if self._error is not None and not self._told:
            self._told = True
            raise self._error

    @property
    def failed(self) -> bool:
        """Whether the store has less than the session in memory."""
        return self._error is not None

    def __repr__(self) -> str:
        state = "failed" if self.failed else f"{len(self._noted)} entries" if self.is_open else "no store"
        return f"<Outbox {state}>"
