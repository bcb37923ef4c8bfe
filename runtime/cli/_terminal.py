"""What the command shows and reads: lines, text as it streams, and a status line while nothing comes."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from select import select
from typing import IO, Any

from ..foreign._printable import escaped, printable

PATIENCE = 1.0  # seconds in which nothing needs to be said
_FRAME = 0.125  # seconds between two pictures of the spinner
_LOOK = 0.2  # seconds between two looks at whether an answer is still waited for
_SPINNER = "|/-\\"
_STYLES = {"bold": 1, "dim": 2, "red": 31, "yellow": 33, "cyan": 36}
_CLEAR = "\r\x1b[K"
_LINE = 10_000  # characters of one line: a terminal that wraps more than that shows nothing else any more


class Over(Exception):
    """The question is over: nobody waits for an answer any more."""


class CannotWrite(Exception):
    """The output cannot be written, for another reason than that nobody reads it: the disk is full."""

    def __init__(self, error: OSError) -> None:
        super().__init__(f"the output cannot be written: {error.strerror or error}")


def open_standard_streams() -> None:
    """Open those of standard input, output and error that the shell has closed (``>&-``), on nothing. The next file
    that is opened would get the number, and what tools and their children print would go into it: into the store.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            with contextlib.suppress(OSError):
                opened = os.open(os.devnull, os.O_RDWR)
                os.dup2(opened, number)
                os.set_inheritable(number, True)
                if opened != number:
                    os.close(opened)
        if getattr(sys, name) is None:
            with contextlib.suppress(OSError):
                setattr(sys, name, open(number, "w" if number else "r", encoding="utf-8", closefd=False))  # noqa: SIM115


def bounded(text: str) -> str:
    """``text`` with the middle of overlong lines left out."""
    if len(text) <= _LINE:
        return text
    half = _LINE // 2
    return "\n".join(
        line if len(line) <= _LINE else f"{line[:half]} ... {len(line) - 2 * half} characters ... {line[-half:]}"
        for line in text.split("\n")
    )


class Guarded:
    """Standard error, for everybody else in the process: what logging, warnings and tracebacks quote is foreign too."""

    def __init__(self, io: IO[str]) -> None:
        self._io = io

    def write(self, text: str) -> int:
        """Write it, made printable."""
        self._io.write(printable(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write them, made printable."""
        for line in lines:
            self.write(line)

    @contextlib.contextmanager
    def diverted(self, io: Any) -> Iterator[None]:
        """Within, what is written goes to ``io``."""
        before, self._io = self._io, io
        try:
            yield
        finally:
            self._io = before

    def __getattr__(self, name: str) -> Any:
        return getattr(self._io, name)


class _Place:
    """The place where output streams end up, such as a terminal: how far its last line has come."""

    column = 0  # how many characters the last line has

    @property
    def fresh(self) -> bool:
        """Whether a line begins."""
        return self.column == 0

    def move(self, text: str) -> None:
        """``text`` has been written."""
        _, newline, last = text.rpartition("\n")
        self.column = len(last) if newline else self.column + len(last)


class _Stream:
    def __init__(self, io: IO[str], place: _Place) -> None:
        self.io = io
        self.place = place
        self.terminal = _is_terminal(io)
        self.moves = self.terminal and os.environ.get("TERM") != "dumb"  # its cursor, when told to
        self.colour = self.moves and not os.environ.get("NO_COLOR")
        with contextlib.suppress(AttributeError, OSError, ValueError):
            io.reconfigure(errors="replace")  # type: ignore[attr-defined]

    def write(self, text: str, style: str = "", end: str = "") -> None:
        """Write ``text``. This is the only way for text to get out, so nobody can forget to make it printable."""
        text = printable(text)
        if not text and not end:
            return
        self.raw(self.styled(text, style) + end)
        self.place.move(text + end)

    def line(self, text: str, style: str = "", *, whole: bool = False) -> None:
        self.write("" if self.place.fresh else "\n")
        self.write(text if whole else bounded(text), style, "\n")

    def raw(self, text: str) -> None:
        """Write text that was made printable already, or that moves the cursor: from this file only."""
        try:
            self.io.write(text)
            self.io.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            if error.errno != errno.EIO:  # the terminal is gone, and the run shall end in good order all the same
                raise CannotWrite(error) from error

    def styled(self, text: str, style: str) -> str:
        return f"\x1b[{_STYLES[style]}m{text}\x1b[0m" if style and self.colour else text


class Terminal:
    """Standard input, output and error. The conversation goes to standard output, what there is to say about it to
    standard error. With ``everything_on_stderr`` both go to standard error, and nobody is asked: standard output
    belongs to a program.

    Used by the main thread; only within `busy` a thread of its own draws the status line.
    """

    def __init__(self, *, everything_on_stderr: bool = False) -> None:
        out = sys.stderr if everything_on_stderr else sys.stdout
        place = _Place()
        self._out = _Stream(out, place)
        self._err = _Stream(sys.stderr, place if _together(out, sys.stderr) else _Place())
        # Questions are shown where the user sees them, also when the rest goes into a file.
        self._questions = self._err if self._err.terminal and not self._out.terminal else self._out
        #: Whether there is somebody to ask.
        self.asks = _is_terminal(sys.stdin) and self._questions.terminal and not everything_on_stderr
        #: Whether somebody reads what there is to say about the conversation.
        self.is_read = self._err.terminal
        self._part = ""
        self._what = ""
        self._since = self._next = time.monotonic()
        self._drawn = ""  # the status line: "here" or "below" the cursor

    @property
    def width(self) -> int:
        """How many characters a line of the conversation has room for."""
        return shutil.get_terminal_size((100, 24)).columns if self._out.terminal else 100

    @property
    def is_whole(self) -> bool:
        """Whether there is a terminal to type on, and to draw on."""
        return self.asks and self._out.moves

    # -- lines ---------------------------------------------------------------------------------------------------------

    def part(self, name: str) -> None:
        """Begin part ``name`` of the conversation, unless it has begun. A blank line sets it off from the last."""
        if self._part not in ("", name):
            self._clear()
            self._out.write("\n" if self._out.place.fresh else "\n\n")
        self._part = name

    def new_part(self) -> None:
        """Others have written: what comes next begins a line, and a part that nothing sets off."""
        self._part = ""
        self._out.place.column = self._err.place.column = 0

    def text(self, text: str, style: str = "") -> None:
        """Show a piece of the conversation's text, as it comes."""
        self._clear()
        self._out.write(text, style)

    def line(self, text: str, style: str = "") -> None:
        """Show a line of the conversation."""
        self._clear()
        self._out.line(text, style)

    def note(self, text: str, style: str = "") -> None:
        """Show a line about the conversation, on standard error."""
        self._clear()
        self._err.line(text, style)

    def finish(self) -> None:
        """End the last line of the conversation."""
        self._clear()
        if not self._out.place.fresh:
            self._out.write("\n")

    # -- questions -----------------------------------------------------------------------------------------------------

    def ask(self, text: str, style: str = "", *, whole: bool = False) -> None:
        """Show a line of a question; with ``whole``, however long it is."""
        self._clear()
        self._questions.line(text, style, whole=whole)

    def forget_typed(self) -> None:
        """Drop what was typed before a question could be read: it is no answer to it."""
        with contextlib.suppress(ImportError, OSError, ValueError):  # not on Windows; no terminal
            import termios

            with contextlib.suppress(termios.error):
                termios.tcflush(sys.stdin.fileno(), termios.TCIFLUSH)

    def read(self, prompt: str, over: Callable[[], bool] = lambda: False) -> str:
        """Read a line from the user. Raises `EOFError`, and `Over` once ``over()`` says that nobody waits for it."""
        self._clear()
        self._questions.write(prompt)
        try:
            entered = _read_line(over)
            self._questions.place.column = 0
            return entered
        except BaseException:  # Ctrl-D, Ctrl-C
            self._questions.write("\n")
            raise
        finally:
            self._restart()

    def interrupted(self) -> None:
        """Make up for the ``^C`` that the terminal has shown."""
        self._clear()
        if self._err.moves and self._err.place.fresh:
            self._raw(_CLEAR)

    # -- waiting -------------------------------------------------------------------------------------------------------

    def waiting(self, what: str) -> None:
        """Let the status line say ``what`` from now on, when there is need of one."""
        if what != self._what:
            self._clear()
            self._what = what
            self._restart()

    @property
    def pause(self) -> float:
        """How many seconds to wait before the next `tick`."""
        return max(self._next - time.monotonic(), 0.01)

    def tick(self) -> None:
        """Say what is going on, if that takes long."""
        now = time.monotonic()
        if now < self._next:
            return
        waited = now - self._since
        if self._err.moves:
            self._next = now + _FRAME
            self._draw(f"{_SPINNER[int(waited / _FRAME) % 4]} {self._what} ... {waited:.0f} s")
        else:  # a line each time, and ever fewer
            self._next = now + (4 if waited < 5 else 10 if waited < 15 else 30)
            self._err.line(f"still {self._what} ... {waited:.0f} s", "dim")

    @contextlib.contextmanager
    def busy(self, what: str, *, at_once: bool = False) -> Iterator[None]:
        """Say what is going on while the caller does it; ``at_once`` where no thread may get to say it meanwhile."""
        self.waiting(what)
        if at_once and self._err.moves:
            self._draw(f"{_SPINNER[0]} {what} ...")
        elif at_once:
            self.note(f"{what} ...", "dim")
        over = threading.Event()

        def draw() -> None:
            while not over.wait(self.pause):
                self.tick()

        thread = threading.Thread(target=draw, name="lockgate-status", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            self._clear()

    def _draw(self, text: str) -> None:
        width = _width(self._err.io)
        column = self._err.place.column
        if column and column % width == 0:
            return  # a line that is just full cannot be come back to
        line = _CLEAR + self._err.styled(escaped(text)[: width - 1], "dim")
        self._drawn = "below" if column else "here"  # below a text that may go on
        self._raw(_below(line) if column else line)

    def _restart(self) -> None:
        self._since = time.monotonic()
        self._next = self._since + PATIENCE

    def _clear(self) -> None:
        """Take the status line away before anything else is shown, and start its patience anew."""
        self._restart()
        if self._drawn:
            self._raw(_CLEAR if self._drawn == "here" else _below(_CLEAR))
            self._drawn = ""

    def _raw(self, text: str) -> None:
        self._err.raw(text)


def _read_line(over: Callable[[], bool]) -> str:
    """Read a line from the terminal. `input` would not do: a Ctrl-C that comes just before it waits is not seen."""
    if os.name != "posix":
        return input()
    line = b""
    while not line.endswith(b"\n"):
        while not select([sys.stdin], [], [], _LOOK)[0]:
            if over():
                raise Over
        piece = os.read(sys.stdin.fileno(), 4096)
        if not piece and not line:
            raise EOFError
        line += piece
    return line.decode(sys.stdin.encoding, "replace").rstrip("\n")


def _below(text: str) -> str:
    """``text`` on the line below the cursor, which comes back. The screen scrolls first, where that is needed."""
    return f"\x1bD\x1bM\x1b7\x1bD{text}\x1b8"


def _is_terminal(io: IO[str] | None) -> bool:
    try:
        return io is not None and io.isatty()
    except ValueError:  # closed
        return False


def _together(one: IO[str], other: IO[str]) -> bool:
    """Whether both streams end up in one place: a terminal, or what ``2>&1`` does."""
    try:
        return os.path.sameopenfile(one.fileno(), other.fileno())
    except (OSError, ValueError, AttributeError):
        return False


def _width(io: IO[str]) -> int:
    try:
        return os.get_terminal_size(io.fileno()).columns or 80
    except (OSError, ValueError):
        return 80
