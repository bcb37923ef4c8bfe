"""A program on a terminal, and what the screen shows."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path
from types import TracebackType

import pyte

LONG = 30.0  # seconds after which something will never happen, on a busy machine

# The child makes the terminal its own, so that a typed Ctrl-C reaches it.
START = "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"


class Emulator:
    """A program on an emulated terminal. `lines` are those of the screen and above it, `raw` what it has written."""

    def __init__(
        self, args: list[str], folder: Path, environment: dict[str, str], columns: int = 80, rows: int = 24
    ) -> None:
        self.master, slave = os.openpty()
        self.screen = pyte.HistoryScreen(columns, rows, history=20_000)
        self._stream = pyte.ByteStream(self.screen)
        self._set_size(columns, rows)
        self.before = termios.tcgetattr(slave)
        self.process = subprocess.Popen(
            [sys.executable, "-c", START, *args],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            cwd=folder,
            env=environment,
        )
        os.close(slave)
        self.raw = b""

    def _set_size(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def resize(self, columns: int, rows: int) -> None:
        """Make the terminal larger or smaller, as its user does."""
        self._set_size(columns, rows)
        self.screen.resize(rows, columns)
        self.process.send_signal(signal.SIGWINCH)

    @property
    def lines(self) -> list[str]:
        """The lines of text, down to the last that is not empty."""
        scrolled = ["".join(line[at].data for at in range(self.screen.columns)) for line in self.screen.history.top]
        lines = [line.rstrip() for line in (*scrolled, *self.screen.display)]
        while lines and not lines[-1]:
            lines.pop()
        return lines

    @property
    def text(self) -> str:
        """`lines`, as one text."""
        return "\n".join(self.lines)

    def read(self, timeout: float = 0.1) -> bool:
        """Take in what the program writes; False once it has closed the terminal."""
        if not select.select([self.master], [], [], timeout)[0]:
            return True
        try:
            piece = os.read(self.master, 65536)
        except OSError:  # the other side has gone
            return False
        self.raw += piece
        self._stream.feed(piece)
        return bool(piece)

    def until(self, *texts: str, times: int = 1) -> None:
        """Wait until each of the texts is there, so many times."""
        deadline = time.monotonic() + LONG
        for text in texts:
            while self.text.count(text) < times:
                assert time.monotonic() < deadline, f"no {text!r} in:\n{self.text}"
                assert self.read() or self.text.count(text) >= times, f"it ended without {text!r}:\n{self.text}"

    def until_gone(self, text: str) -> None:
        """Wait until the text is not on the screen any more."""
        deadline = time.monotonic() + LONG
        while text in self.text:
            assert time.monotonic() < deadline, f"still {text!r} in:\n{self.text}"
            assert self.read(), self.text

    def at_prompt(self) -> None:
        """Wait until the last line is the prompt, with nothing above it that may still change."""
        deadline = time.monotonic() + LONG
        while self.lines[-1:] != [">"] or self.lines[-2:-1] != [""]:
            assert time.monotonic() < deadline, f"no prompt:\n{self.text}"
            assert self.read(), self.text

    def type(self, text: str) -> None:
        """Type it."""
        os.write(self.master, text.encode())

    def enter(self, text: str = "") -> None:
        """Type it, and Enter."""
        self.type(f"{text}\r")

    def end(self, status: int = 0) -> str:
        """Wait for the end; all that was on the screen. The terminal has to be as it was before."""
        deadline = time.monotonic() + LONG
        while self.read():
            assert time.monotonic() < deadline, f"no end after:\n{self.text}"
        assert self.process.wait(LONG) == status, self.text
        assert "Traceback" not in self.text, self.text
        modes = self.raw.decode("utf-8", "replace")
        assert modes.rfind("\x1b[?25h") >= modes.rfind("\x1b[?25l"), "the cursor is hidden"
        assert modes.rfind("\x1b[?2004l") >= modes.rfind("\x1b[?2004h"), "pastes are bracketed"
        return self.text

    @property
    def is_as_before(self) -> bool:
        """Whether the terminal has the modes that it had before the program."""
        return termios.tcgetattr(self.master)[:4] == self.before[:4]

    def close(self) -> None:
        """End the program, and all that it has started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(LONG)
        with contextlib.suppress(OSError):
            os.close(self.master)

    def __enter__(self) -> Emulator:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
