"""How many runs have ended, on standard error: a bar of `rich` where that is installed, a line of its own otherwise."""

from __future__ import annotations

import sys
from collections.abc import Sized
from types import TracebackType
from typing import IO, Any, Protocol

from channels import Channel, Receiver

from ..agent._result import RunResult


class Progress(Protocol):
    """A display, from entering it to leaving it. It has no thread: it changes when a run ends."""

    def ended(self, result: RunResult[Any]) -> None:
        """A run has ended."""

    def __enter__(self) -> Progress: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...


def shown(sessions: object) -> Progress:
    """The display for the runs of ``sessions``, whose number is known if they are a list."""
    known = isinstance(sessions, Sized) and not isinstance(sessions, (Channel, Receiver))
    total = len(sessions) if known and isinstance(sessions, Sized) else None
    if sys.stderr is not None and sys.stderr.isatty():
        try:
            return _Bar(total)
        except ImportError:
            pass
    return _Line(total, sys.stderr)


class _Bar:
    """A bar of `rich`, which keeps what the program prints meanwhile above it."""

    def __init__(self, total: int | None) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        self._failed = 0
        columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        self._progress = Progress(*columns, console=Console(stderr=True), auto_refresh=False)  # which is a thread
        self._task = self._progress.add_task("", total=total)

    def ended(self, result: RunResult[Any]) -> None:
        self._failed += result.error is not None
        failed = f"{self._failed} failed" if self._failed else ""
        self._progress.update(self._task, advance=1, description=failed, refresh=True)

    def __enter__(self) -> _Bar:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._progress.stop()


class _Line:
    """A line that is written anew on a terminal, and once, at the end, into a file."""

    def __init__(self, total: int | None, file: IO[str] | None) -> None:
        self._total = total
        self._file = file
        self._anew = file is not None and file.isatty()
        self._ended = self._failed = 0

    def ended(self, result: RunResult[Any]) -> None:
        self._ended += 1
        self._failed += result.error is not None
        if self._anew:
            self._write(f"\r{self}")

    def __enter__(self) -> _Line:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._write(f"\r{self}\n" if self._anew else f"{self}\n")

    def _write(self, text: str) -> None:
        if self._file is not None:
            try:
                self._file.write(text)
                self._file.flush()
            except (OSError, ValueError):  # the terminal is gone, or the file was closed: no reason to end the runs
                self._file = None

    def __str__(self) -> str:
        of = "" if self._total is None else f" of {self._total}"
        return f"{self._ended}{of} runs ended" + (f", {self._failed} failed" if self._failed else "")
