"""`lockgate chat`: many turns with an agent, on a terminal.

Three threads: the main one runs the turns, reads the events and writes what they tell; the prompt's reads what is
typed; the worker of the stream does the work. Where the user has to answer something, the prompt is taken away and the
main thread asks, as in `lockgate run`.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from channels import CancelToken, select

from .. import events
from .._errors import (
    InvalidAnswer,
    MissingExtra,
    NotRunning,
    SessionBusy,
    SessionChanged,
    SessionNotFound,
    StillWaiting,
    StoreError,
    StreamStuck,
)
from ..agent._agent import Team
from ..permissions import Permissions
from ..runtime import Runtime
from ..session._session import Session
from ..stores._store import Store
from ..stream._event_stream import EventStream
from ..stream._private_events import ConsumerCall
from ._ask import Questions, question_of
from ._interrupts import INTERRUPTED, Interrupts
from ._load import CannotLoad, load, with_model
from ._place import default_path, opened
from ._sessions import last_id, session_id, short
from ._steps import cause_of, is_over, load_model, problem_of
from ._terminal import Guarded, Terminal

if TYPE_CHECKING:
    from ._chat_view import View
    from ._prompt import Prompt

_TWICE: Final = 3.0  # seconds in which a second Ctrl-C at the prompt ends the program
_QUIET: Final = 1.0  # seconds without a key, before what is typed is taken for an answer
_BACK: Final = 6  # messages that are shown of a session that is gone on with
_REFUSED: Final = (SessionBusy, SessionChanged, SessionNotFound, StillWaiting, StoreError, LookupError)


def is_installed() -> bool:
    """Whether the packages of the extra are there."""
    from importlib.util import find_spec

    return all(find_spec(name) is not None for name in ("prompt_toolkit", "rich"))


def chat(args: argparse.Namespace, terminal: Terminal, interrupts: Interrupts, team: Team | None = None) -> int:
    """``lockgate chat``, with a team that is loaded already, or the one that ``args`` names; the exit status."""
    if not is_installed():
        raise CannotLoad(str(MissingExtra("lockgate chat", "chat")))
    if not terminal.is_whole:
        raise CannotLoad(
            "a chat needs a terminal on which the cursor can be moved; without one, say what to do on the command line:"
            f' lockgate run {args.agent} "..." --continue'
        )
    if args.no_store and args.store:
        raise CannotLoad("--no-store keeps no session, and --store needs one kept")
    if team is None:
        with terminal.busy(f"loading {args.agent}"):
            team = load(args.agent, args.model)
    with contextlib.ExitStack() as stack:
        store = None if args.no_store else stack.enter_context(opened(args.store, make=not _earlier(args)))
        session = None
        if store is not None and _earlier(args):
            session = store.load(last_id(store) if args.last else session_id(store, args.session))
        load_model(terminal, team.root)
        return Chat(args, team, terminal, interrupts, store, session).run()


def _earlier(args: argparse.Namespace) -> bool:
    return args.last or args.session is not None


class Chat:
    """A conversation on the terminal. The methods are the main thread's, except `interrupt`."""

    def __init__(
        self,
        args: argparse.Namespace,
        team: Team,
        terminal: Terminal,
        interrupts: Interrupts,
        store: Store | None,
        session: Session | None,
    ) -> None:
        from ._chat_commands import Completions
        from ._chat_view import View
        from ._markdown import Paint
        from ._prompt import Prompt

        self._args = args
        self._terminal = terminal
        self._interrupts = interrupts
        self.team = team
        self.store = store
        self.session = session
        #: The tools that `/approve` has named, and whether it has named all.
        self.approved: set[str] = set()
        self.approved_all = False
        #: The names of the tools of the agents, and the sessions, as far as they are known: for completion.
        self.tools: tuple[str, ...] = ()
        self.known: list[tuple[str, str]] = []
        colour = not os.environ.get("NO_COLOR")
        history = None if store is None else default_path().with_name("history")
        self._prompt: Prompt = Prompt(
            sys.stdout, colour=colour, completer=Completions(self), interrupt=self.interrupt, history=history
        )
        self.view: View = View(self._prompt, Paint(colour=colour), team.root.name)
        self._runtime = self._make_runtime()
        self._said: deque[str] = deque()  # what the next turn begins with
        self._stream: EventStream | None = None
        self._presses = 0  # of Ctrl-C, in this turn
        self._pressed = -_TWICE  # when it was pressed last
        self._over = CancelToken()
        self._status = 0
        self._ended_by = 0  # the signal

    # -- from beginning to end -----------------------------------------------------------------------------------------

    def run(self) -> int:
        """Have the conversation; the exit status."""
        with contextlib.ExitStack() as stack:
            stack.callback(self._close)
            stack.enter_context(self._interrupts.handled_by(self._signalled))
            stack.enter_context(_diverted(self._prompt))
            stack.callback(self._prompt.stop)
            self._prompt.start()
            self._greet()
            self._look_up_sessions()
            while not self._over.cancelled:
                self._step()
        if self._ended_by:
            self._terminal.note(f"stopped: ended by {signal.Signals(self._ended_by).name}", "yellow")
        if self.store is not None and self.session is not None:
            self._terminal.note(f"to go on: lockgate chat {self._args.agent} --session {short(self.session.id)}", "dim")
        return self._status

    def leave(self, status: int) -> None:
        """End the program, in good order."""
        if not self._over.cancelled:
            self._status = status
        self._over.cancel()
        if self._stream is not None:
            self._stream.cancel("the user has left")

    @property
    def working(self) -> bool:
        """Whether the agent works."""
        return self._stream is not None

    def _greet(self) -> None:
        agent = self.team.root
        self.view.note(f"{agent.name} ({agent.model.id}): /help lists the commands", "dim")
        if self.session is not None:
            self.look_back()

    def look_back(self) -> None:
        """Show the end of the session, and say what is left to do in it."""
        session = self.session
        assert session is not None
        count = len(session.messages)
        size = f"{count} message{'s' if count != 1 else ''}"
        self.view.note(f"session {short(session.id)}: {session.title or 'without a title'}, {size}", "dim")
        for message in session.messages[-_BACK:]:
            self.view.reply(message)
        if not is_over(session):
            self.view.note("It was cut off here. Enter goes on with it; or say something.", "yellow")

    def use(self, session: Session | None) -> None:
        """Go on with another session; None for a new one."""
        self.session = session
        self._said.clear()
        self.view.talk_to((session.agent_name if session is not None else None) or self.team.root.name)

    def use_model(self, name: str) -> None:
        """Go on with another model, for all agents. Raises `CannotLoad`."""
        with self._away():
            team = with_model(self.team, name)
            load_model(self._terminal, team.root)
            with self._terminal.busy("ending what the agent has started"):
                self._runtime.close()
        self.team = team
        self._runtime = self._make_runtime()

    def _make_runtime(self) -> Runtime:
        allowed = Permissions(approve_all=self._args.yes)
        return Runtime(self.team, permissions=allowed, store=self.store, titles=self.store is not None)

    def _close(self) -> None:
        with self._terminal.busy("ending what the agent has started"):
            self._runtime.close()

    def _look_up_sessions(self) -> None:
        if self.store is not None:
            with contextlib.suppress(StoreError):
                self.known = [(info.id, info.title) for info in self.store.sessions(limit=_BACK * 4)]

    # -- what is typed -------------------------------------------------------------------------------------------------

    def _step(self) -> None:
        """Wait for the user, and do what is said."""
        if self._said:
            text = self._said.popleft()
        else:
            typed = select(self._prompt.typed, self._over.done)
            if typed.index == 1:
                return
            text = typed.value
        if self._is_command(text):
            return
        if text.strip():
            self._turn(text.strip("\n"))
        elif self.session is not None and not is_over(self.session):
            self._turn(None)

    def _is_command(self, text: str) -> bool:
        """Carry out what is typed where it is a command; whether it is one."""
        from . import _chat_commands as commands
        from ._prompt import LEFT, OPEN, SUSPEND

        self._pressed = -_TWICE
        if text == LEFT:
            self.leave(0)
            return True
        if text == SUSPEND:
            with self._away():  # the modes of the terminal are as the shell wants them, before anything stops
                os.kill(0, signal.SIGTSTP)
            return True
        if text != OPEN and not text.startswith("/"):
            return False
        if text != OPEN:
            self.view.command(text)
        try:
            commands.run(self, "/open" if text == OPEN else text)
        except (commands.WrongUse, CannotLoad, InvalidAnswer, ValueError, *_REFUSED) as error:
            self.view.note(" ".join(str(error).split(" ")), "yellow")
        return True

    # -- a turn --------------------------------------------------------------------------------------------------------

    def _turn(self, text: str | None) -> None:
        """Run the agent on what the user has said; without a text, on what is left to do."""
        try:
            if text is not None:
                if self.session is None:
                    self.session = Session.from_user(text)
                else:
                    self.session.add_user(text)
            assert self.session is not None
            stream = self._runtime.run_stream(self.session)
        except (*_REFUSED, RuntimeError) as error:
            self.view.note(f"error: {error}", "red")
            if isinstance(error, SessionChanged) and self.session is not None:
                self.view.note(f"/sessions {short(self.session.id)} takes it as it is now.", "yellow")
            return
        self._presses = 0
        self._stream = stream
        if self._over.cancelled:  # meanwhile
            stream.cancel("the user has left")
        problem = ""
        try:
            self.view.begin()
            problem = self._follow(stream)
        finally:
            self.view.doing("ending")
            self._end_stream(stream)
            self._stream = None
            self.view.end()
            self._prompt.hint("")
        self._report(stream, problem)
        self._look_up_sessions()

    def _follow(self, stream: EventStream) -> str:
        """Show the stream until it ends, and take what is typed meanwhile; the problem that has ended it, if any."""
        problem, told = "", False
        # One reading of the settings of `run`: its answers are proposals here too.
        questions = Questions(
            self._terminal, dict(self._args.answer), self._interrupts.reading(self._terminal), self.view.agent
        )
        while True:
            if self._presses and not told:
                told = True
                self.view.doing("stopping")
            try:
                index, value, ok, _ = select(stream, self._prompt.typed, timeout=self.view.pause)
            except TimeoutError:
                self.view.tick()
                continue
            if index == 1:
                self._said_meanwhile(value)
            elif not ok:
                return problem
            else:
                problem = problem_of(value) or problem
                self._happened(stream, value, questions)
            self.view.tick()

    def _happened(self, stream: EventStream, event: events.Event, questions: Questions) -> None:
        if isinstance(event, ConsumerCall):  # a tool that wants the thread which reads the events
            event.run()
        elif isinstance(event, events.ToolsetInfo):
            self.tools = tuple(dict.fromkeys((*self.tools, *event.tools)))
        elif self._presses or self._over.cancelled:
            return  # nobody wants to see the rest
        elif isinstance(event, events.ToolCallConfirmation) and self._is_approved(event):
            with contextlib.suppress(LookupError):
                stream.approve(event)
        elif isinstance(event, events.ToolCallConfirmation):
            if self._ready_to_ask(stream):
                with self._away(), contextlib.suppress(KeyboardInterrupt):  # the handler has cancelled the stream
                    questions.confirm(stream, event)
        elif (question := question_of(event)) is not None:
            if self._ready_to_ask(stream):
                with self._away(), contextlib.suppress(KeyboardInterrupt):
                    questions.answer(stream, question)
        else:
            self.view.show(event)

    def _is_approved(self, event: events.ToolCallConfirmation) -> bool:
        return self.approved_all or event.tool_call.name in self.approved

    def _ready_to_ask(self, stream: EventStream) -> bool:
        """Wait until the user does not type: the rest of a word is no answer. Whether there is still need to ask."""
        while stream.reason is None and not self._presses and not self._over.cancelled:
            left = _QUIET - self._prompt.quiet
            if left <= 0:
                return True
            self.view.doing("a question waits until you stop typing")
            with contextlib.suppress(TimeoutError):
                self._said_meanwhile(select(self._prompt.typed, timeout=left).value)
        return False

    def _said_meanwhile(self, text: str) -> None:
        """Steer the agent with what was typed, or carry out the command."""
        if self._is_command(text) or not text.strip():
            return
        text = text.strip("\n")
        assert self.session is not None
        if not self._presses:
            try:
                self._runtime.steer(self.session, text)
            except NotRunning:
                pass
            except StoreError as error:
                self.view.note(f"error: {error}", "red")
            else:
                self.view.queue(text)
                return
        self._said.append(text)  # it is the next turn

    def _end_stream(self, stream: EventStream) -> None:
        try:
            stream.close()
        except StreamStuck as stuck:
            self.view.note(f"warning: {str(stuck).splitlines()[0]}", "yellow")

    def _report(self, stream: EventStream, problem: str) -> None:
        reason = stream.reason
        if reason == "canceled":
            if not self._over.cancelled:
                self.view.note("stopped", "yellow")
        elif reason != "normal":
            cause = cause_of(stream)
            said = str(cause) if isinstance(cause, MissingExtra) else problem or reason
            self.view.note(f"error: {said}", "red")
        if self._args.traceback and (text := "\n".join(stream.failures)):
            self.view.note(text.rstrip(), "dim")

    @contextlib.contextmanager
    def _away(self) -> Iterator[None]:
        """Within, there is no prompt: the terminal is the main thread's."""
        self._prompt.show([])
        self._prompt.stop()
        self._terminal.new_part()
        try:
            yield
        finally:
            self._prompt.start()

    # -- the end -------------------------------------------------------------------------------------------------------

    def interrupt(self) -> None:
        """Ctrl-C: as a key, in the thread of the prompt, or as a signal, in the main one."""
        stream = self._stream
        if self._over.cancelled or (stream is not None and self._presses):
            self._end_at_once(INTERRUPTED)
        if stream is None and threading.current_thread() is self._prompt.thread and self._prompt.drop_draft():
            return
        now = time.monotonic()
        again = now - self._pressed < _TWICE
        self._pressed = now
        if stream is not None:
            self._presses += 1
            stream.cancel("interrupted by the user")
            self._prompt.hint("stopping: Ctrl-C again ends the program at once")
        elif again:
            self.leave(INTERRUPTED)
        else:
            self._prompt.hint("Ctrl-C again ends the program, and so does Ctrl-D")

    def _signalled(self, number: int) -> None:
        """A signal has come. Called in the middle of anything."""
        if number == signal.SIGINT:
            self.interrupt()
            return
        if self._ended_by:
            self._end_at_once(128 + number)
        self._ended_by = number
        self.leave(128 + number)

    def _end_at_once(self, status: int) -> None:
        self._prompt.restore()
        os._exit(status)


@contextlib.contextmanager
def _diverted(prompt: Prompt) -> Iterator[None]:
    """What anybody prints within goes above the prompt, rather than through it."""
    above = _Above(prompt)
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.redirect_stdout(above))
        if isinstance(sys.stderr, Guarded) and sys.stderr.isatty():
            stack.enter_context(sys.stderr.diverted(above))
        stack.callback(above.finish)
        yield


class _Above(io.TextIOBase):
    """A file whose lines are written above a prompt. Thread-safe."""

    def __init__(self, prompt: Prompt) -> None:
        self._prompt = prompt
        self._lock = threading.Lock()
        self._partial = ""

    def write(self, text: str) -> int:
        """Write it, as far as its lines are complete."""
        from ..foreign._printable import printable

        with self._lock:
            *lines, self._partial = (self._partial + printable(text)).split("\n")
        if lines:
            self._prompt.print(*lines)
        return len(text)

    def flush(self) -> None:
        """Nothing: the rest of the line may come yet."""

    def finish(self) -> None:
        """Write what is there of the last line."""
        with self._lock:
            partial, self._partial = self._partial, ""
        if partial:
            self._prompt.print(partial)

    def writable(self) -> bool:
        """Yes."""
        return True
