"""The line at the bottom of the terminal in which the user types, while the conversation goes on above it.

prompt_toolkit runs in a thread of its own, which `Prompt.start` starts and `Prompt.stop` ends, and this thread alone
writes to the terminal in between. Everybody else hands over text: finished lines, which scroll up above the prompt, and
lines that may still change, which are drawn between them and the prompt. What was handed over is written together with
the new prompt in one piece, so nothing flickers.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from select import select
from typing import IO, Any, Final, TextIO, cast

from prompt_toolkit.application import Application
from prompt_toolkit.completion import Completer
from prompt_toolkit.enums import DEFAULT_BUFFER
from prompt_toolkit.filters import Condition, has_focus
from prompt_toolkit.formatted_text import ANSI, StyleAndTextTuples, to_formatted_text
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.keys import Keys
from prompt_toolkit.output import ColorDepth, Output, create_output
from prompt_toolkit.output.vt100 import Vt100_Output
from prompt_toolkit.shortcuts import PromptSession

from channels import Channel, ChannelClosed, Receiver, WouldBlock

from ..foreign._printable import printable

LEFT: Final = "\x04"  # what arrives where the user presses Ctrl-D at the empty prompt, or the terminal is gone
OPEN: Final = "\x0f"  # Ctrl-O
SUSPEND: Final = "\x1a"  # Ctrl-Z
_FRAME: Final = 0.04  # seconds between two pictures, at least
_WAITING: Final = 500_000  # characters that wait to be written, before those who hand over more have to wait as well
_HINT: Final = 3.0  # seconds that a hint is shown
_TYPED: Final = 1_000  # lines that were typed and that nobody has taken
_HISTORY: Final = 1_000_000  # bytes of the file of the history, of which the older half is then forgotten


class Prompt:
    """Reads lines while others write. What is typed arrives in `typed`, ``interrupt`` is called on Ctrl-C, in the
    thread of the prompt. All methods but `start` and `stop` may be called from any thread.
    """

    def __init__(
        self,
        io: IO[str],
        *,
        colour: bool,
        completer: Completer,
        interrupt: Callable[[], None],
        history: Path | None = None,
    ) -> None:
        self._io = io
        self._typed: Channel[str] = Channel(_TYPED, name="typed")
        #: The lines that the user has typed, and `LEFT`, `OPEN` or `SUSPEND`.
        self.typed: Receiver[str] = self._typed.receiver
        self._interrupt = interrupt
        self._lock = threading.Condition()
        self._above: list[str] = []  # to be written, in its order
        self._size = 0
        self._live: StyleAndTextTuples = []  # what may still change
        self._hint = ("", 0.0)
        self._touched = -_HINT  # when a key was pressed last, by which something is typed and not entered
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._leaving = False
        self._modes = _modes()
        self._output = _output(io)
        keys = KeyBindings()
        self._bind(keys)
        self._session: PromptSession[str] = PromptSession(
            self._message,
            completer=completer,
            complete_while_typing=Condition(lambda: self._session.default_buffer.text.startswith("/")),
            history=_history(history),
            key_bindings=keys,
            enable_history_search=False,
            color_depth=None if colour else ColorDepth.DEPTH_1_BIT,
            erase_when_done=True,
            output=self._output,
        )
        self._app: Application[str] = self._session.app
        self._app.min_redraw_interval = _FRAME
        self._app.before_render += self._before
        self._app.after_render += self._after
        self._app.key_processor.after_key_press += self._pressed
        self._session.default_buffer.accept_handler = self._accept

    # -- the thread ----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Let the user type. What was typed before the last `stop`, and not entered, is there again."""
        self._leaving = False
        self._thread = threading.Thread(target=self._run, name="lockgate-prompt", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Take the prompt away, and give the terminal back as it was. Stopping twice is harmless."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        self._leaving = True
        if (loop := self._loop) is not None:
            with contextlib.suppress(RuntimeError):  # it has just ended by itself
                loop.call_soon_threadsafe(self._exit)
        thread.join()
        self._write_rest()

    def _run(self) -> None:
        try:
            self._app.run(pre_run=self._begun, handle_sigint=False, set_exception_handler=False)
        except EOFError:
            self._send(LEFT)
        except Exception as error:  # the terminal is gone, or cannot do what is asked of it
            if not isinstance(error, OSError):
                self.print(f"the prompt has failed: {type(error).__name__}: {printable(str(error))}")
            self._send(LEFT)
        finally:
            self._loop = None
            self._hold(False)
            with self._lock:
                self._lock.notify_all()

    def _begun(self) -> None:
        self._loop = asyncio.get_running_loop()
        if self._leaving:
            self._exit()

    def _exit(self) -> None:
        if self._app.is_running and self._app.future is not None and not self._app.future.done():
            self._app.exit(result="")

    def restore(self) -> None:
        """Give the terminal back at once, for a process that ends without waiting for anybody. Safe in a handler of a
        signal.
        """
        with contextlib.suppress(OSError, ValueError):
            if self._thread is not None and select([], [self._io], [], 0)[1]:  # it may have been stopped
                os.write(self._io.fileno(), b"\x1b[?2004l\x1b[?25h\x1b[0m\r\n\x1b[J")
            if self._modes is not None:
                import termios

                with contextlib.suppress(termios.error):
                    termios.tcsetattr(sys.stdin.fileno(), termios.TCSANOW, self._modes)

    # -- what is written -----------------------------------------------------------------------------------------------

    def print(self, *lines: str) -> None:
        """Write finished lines above the prompt. They are made printable already. Waits for a terminal that is slow."""
        text = "".join(f"{line}\n" for line in lines)
        with self._lock:
            self._above.append(text)
            self._size += len(text)
            while self._size > _WAITING and self._runs and threading.current_thread() is not self._thread:
                self._app.invalidate()
                self._lock.wait(1.0)
        if self._thread is None:
            self._write_rest()
        else:
            self._app.invalidate()

    def show(self, lines: Sequence[str]) -> None:
        """Draw lines that may still change, right above the prompt, in place of those before."""
        live: StyleAndTextTuples = []
        if lines:
            live = to_formatted_text(ANSI("".join(f"{line}\n" for line in lines)))
        if live != self._live:
            self._live = live
            self._app.invalidate()

    def hint(self, text: str) -> None:
        """Show a line for a few seconds; an empty text takes the one before away."""
        self._hint = text, time.monotonic() + _HINT
        self._app.invalidate()
        if (loop := self._loop) is not None:
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(lambda: loop.call_later(_HINT + 0.1, self._app.invalidate))

    @property
    def thread(self) -> threading.Thread | None:
        """The thread in which the prompt runs."""
        return self._thread

    @property
    def quiet(self) -> float:
        """For how many seconds nobody has typed, or all that was typed is entered."""
        return time.monotonic() - self._touched

    @property
    def rows(self) -> int:
        """How many lines there is room for above the prompt."""
        return max(self._output.get_size().rows - 4, 1)

    @property
    def _runs(self) -> bool:
        return self._loop is not None

    def _message(self) -> StyleAndTextTuples:
        text, until = self._hint
        hint: StyleAndTextTuples = [("ansiyellow", f"{text}\n")] if text and time.monotonic() < until else []
        # A blank line sets the prompt off from what was said; lines that may still change are close to it.
        above: StyleAndTextTuples = self._live or [("", "\n")]
        return [*above, *hint, ("bold", "> ")]

    def _take(self) -> str:
        with self._lock:
            text = "".join(self._above)
            self._above.clear()
            self._size = 0
            self._lock.notify_all()
        return text

    def _before(self, app: Application[Any]) -> None:
        """Before a picture is drawn: what is finished comes in place of the old one."""
        self._hold(True)
        text = self._take()
        if text:
            app.renderer.erase(leave_alternate_screen=False)
            self._output.write_raw(text.replace("\n", "\r\n"))

    def _after(self, app: Application[Any]) -> None:
        self._hold(False)
        self._output.flush()

    def _hold(self, hold: bool) -> None:
        if isinstance(self._output, _OnePiece):
            self._output.held = hold

    def _write_rest(self) -> None:
        text = self._take()
        with contextlib.suppress(OSError, ValueError):  # the terminal is gone
            self._io.write(text)
            self._io.flush()

    # -- what is typed -------------------------------------------------------------------------------------------------

    def _accept(self, buffer: Any) -> bool:
        """A line was entered. It stays where it is if nobody takes it."""
        return not self._send(buffer.text)

    def _send(self, text: str) -> bool:
        try:
            self._typed.try_send(text)
        except (WouldBlock, ChannelClosed):
            return False
        return True

    def _pressed(self, _: object) -> None:
        self._touched = time.monotonic() if self._session.default_buffer.text else -_HINT

    def _bind(self, keys: KeyBindings) -> None:
        typing = has_focus(DEFAULT_BUFFER)
        empty = Condition(lambda: not self._session.default_buffer.text)

        @keys.add("c-c", filter=typing)
        def _(event: KeyPressEvent) -> None:
            self._interrupt()

        @keys.add("c-d", filter=typing & empty)
        def _(event: KeyPressEvent) -> None:
            self._send(LEFT)

        @keys.add("c-o", filter=typing)
        def _(event: KeyPressEvent) -> None:
            self._send(OPEN)

        @keys.add("c-z", filter=typing & Condition(lambda: hasattr(signal, "SIGTSTP")))
        def _(event: KeyPressEvent) -> None:
            self._send(SUSPEND)

        @keys.add(Keys.Vt100MouseEvent)
        def _(event: KeyPressEvent) -> None:
            """Nothing: the mouse is not asked for, and a colour that is pasted raw looks like a report of it."""

        @keys.add("escape", "enter", filter=typing)
        def _(event: KeyPressEvent) -> None:
            event.current_buffer.newline()

    def drop_draft(self) -> bool:
        """Drop what is typed and not entered; whether there was anything. In the thread of the prompt only."""
        buffer = self._session.default_buffer
        there = bool(buffer.text)
        if there:
            buffer.reset()
        return there


class _OnePiece(Vt100_Output):
    """Keeps what is to be written until a picture is complete. Does not ask the terminal where its cursor is: an answer
    that comes late, or never, would be read as if the user had typed it.
    """

    held = False

    @property
    def responds_to_cpr(self) -> bool:
        return False

    def flush(self) -> None:
        if not self.held:
            super().flush()


def _output(io: IO[str]) -> Output:
    if sys.platform == "win32":
        return create_output(cast(TextIO, io))
    return _OnePiece.from_pty(cast(TextIO, io), term=os.environ.get("TERM"))


def _modes() -> list[Any] | None:
    """The modes of the terminal."""
    try:
        import termios

        return termios.tcgetattr(sys.stdin.fileno())
    except (ImportError, OSError, ValueError):
        return None
    except Exception:  # termios.error, which has no base in common with the others
        return None


class _File(FileHistory):
    """A history in a file. It is no reason to end a conversation that the file cannot be written."""

    def store_string(self, string: str) -> None:
        with contextlib.suppress(OSError):
            super().store_string(string)


def _history(path: Path | None) -> History:
    """The history in the file, which only its owner can read; without one, a history that is kept nowhere."""
    if path is None:
        return InMemoryHistory()
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        number = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        with os.fdopen(number, "rb+") as file:
            text = file.read()
            if len(text) > _HISTORY:
                _, _, kept = text[-_HISTORY // 2 :].partition(b"\n\n")
                file.seek(0)
                file.truncate()
                file.write(b"\n" + kept)
    except OSError:
        return InMemoryHistory()
    return _File(str(path))
