"""Writes the record of a run: its events, and the model traffic.

Pieces of one text are written when all of them are there: a secret that a model says in three pieces is found in none
of them. What came after them, in other streams too, waits for them: the record is in the order of the run.
"""

from __future__ import annotations

import contextlib
import errno
import io
import itertools
import json
import os
import stat
import sys
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from channels._lazy import lazy_logger

from .. import events
from .._dataclasses import dataclass, field, fields
from .._errors import ModelError, describe
from ..foreign._arguments import to_text
from ..model import Delta, ReasoningDelta, TextDelta, ToolCallDelta
from ..session._message import Message
from ..session._session import Session
from ..stream import _private_events
from ._recording import (
    ANSWERED,
    CUT_OFF,
    HEADER,
    MAILED,
    REPLY,
    REQUEST,
    RETURNED,
    VERSION,
    Recording,
    shown,
    shown_tool,
)

if TYPE_CHECKING:
    from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_logger = lazy_logger("runtime")
#: What ends a line for `str.splitlines`, and is not escaped in JSON.
_LINE_ENDS: Final = {each: f"\\u{each:04x}" for each in (0x85, 0x2028, 0x2029)}
_BEGIN: Final = json.dumps({"type": HEADER})[:-1].encode()  # of every record
_CHANGED: Final = 4  # messages that a request may have changed; where there are more, all after them are written anew
_BLOCK: Final = 256  # messages that are held against those of the request before at once


@dataclass(slots=True)
class _Line:
    """A line to be written, once it is ``ready``; ``said`` is None for one that another line has taken in."""

    said: dict[str, Any] | None
    ready: bool = True
    clean: bool = False  # there is no secret in it: it was looked at together with its neighbours


@dataclass(slots=True)
class _Stream:
    """The state of one stream, the outermost or a nested one, in its record."""

    request: int = 0
    asked: tuple[Message, ...] = ()  # what its last request showed to the model
    tools: list[dict[str, Any]] = field(default_factory=list)
    deltas: list[Delta] | None = None  # of the reply that has begun
    pieces: list[_Line] = field(default_factory=list)  # of a text that is not complete
    key: Any = None  # of that text


class Recorder:
    """Writes one file, from one thread at a time. What is written is in the file when `on_event` returns.

    Raises `FileExistsError` for a path where another stream writes its record, or where there is a file that is none.
    ``file`` is what is written instead, if the record goes elsewhere.
    """

    def __init__(
        self, recording: Recording, agent_name: str, session: Session, file: io.RawIOBase | None = None
    ) -> None:
        self._redaction = recording.redaction
        self._file: Any = opened(recording.path) if file is None else file
        self._lines: deque[_Line] = deque()  # that wait for those before them
        self._streams: dict[str, _Stream] = {}
        self._requests = 0
        #: How many lines were written: whether it goes on.
        self.written = 0
        try:
            python = sys.version.split()[0]
            # Written with the first event, on a helper thread: a long session is not the caller's to wait for.
            self._add(HEADER, version=VERSION, python=python, agent_name=agent_name, session=session.to_dict())
        except BaseException:
            self.close()
            raise

    def on_event(self, event: events.Event) -> None:
        """Write the event, or keep it until the text that it is a piece of is complete."""
        if self._file.closed:
            return
        stream = self._streams.setdefault(event.session_id, _Stream())
        try:
            if isinstance(event, _private_events.Traffic):
                self._take(stream, event)
            else:
                self._take_event(stream, event)
            self._write()
        except BaseException:
            self.close()  # a record with a hole in it would tell a different story
            raise
        if isinstance(event, events.StreamStopped):
            self.close()

    def close(self) -> None:
        """Close the file. Doing it twice is harmless."""
        close(self._file)

    def _take_event(self, stream: _Stream, event: events.Event) -> None:
        key = _key(event)
        if key is None or key != stream.key:
            self._complete(stream)
        if isinstance(event, events.StreamStopped):  # there is nobody left to complete the texts of the others
            for each in self._streams.values():
                self._reply(each, CUT_OFF)
                self._complete(each)
        self._add(**event.to_dict())
        if key is not None:
            stream.key = key
            stream.pieces.append(self._lines[-1])
            self._lines[-1].ready = False

    def _complete(self, stream: _Stream) -> None:
        """The text whose pieces wait goes on no more: let them be written."""
        pieces, stream.pieces, stream.key = stream.pieces, [], None
        said = [each.said for each in pieces if each.said is not None]
        for line, clean in itertools.zip_longest(pieces, self._clean(said)):
            line.said, line.ready, line.clean = clean, True, True

    def _take(self, stream: _Stream, event: _private_events.Traffic) -> None:
        if isinstance(event, _private_events.ModelAsked):
            self._reply(stream, CUT_OFF)
            same, changed, new = _news(stream.asked, event.messages)
            tools = [shown_tool(tool) for tool in event.tools]
            news: dict[str, Any] = {"changed": changed} if changed else {}
            if tools != stream.tools or not stream.request:
                news["tools"] = stream.tools = tools
            self._requests += 1
            stream.request, stream.asked, stream.deltas = self._requests, event.messages, []
            self._add(
                REQUEST,
                request=stream.request,
                agent_name=event.agent_name,
                session_id=event.session_id,
                timestamp=event.timestamp.isoformat(),
                model=event.model,
                same=same,
                messages=new,
                **news,
            )
        elif isinstance(event, _private_events.ModelSaid) and stream.deltas is not None:
            stream.deltas.append(event.delta)
        elif isinstance(event, _private_events.ModelDone):
            self._reply(stream, event.error, event)
        elif isinstance(event, _private_events.UserAnswered):
            at = event.timestamp.isoformat()
            who = {"agent_name": event.agent_name, "session_id": event.session_id}
            self._add(ANSWERED, **who, timestamp=at, request_id=event.request_id)
        elif isinstance(event, _private_events.UserMailed):
            who = {"agent_name": event.agent_name, "session_id": event.session_id}
            self._add(MAILED, **who, point=event.point, text=event.text)
        elif isinstance(event, _private_events.ToolReturned):
            self._add(
                RETURNED,
                agent_name=event.agent_name,
                session_id=event.session_id,
                tool_call_id=event.tool_call.id,
                content=event.content,
                is_error=event.is_error,
            )

    def _reply(
        self, stream: _Stream, error: BaseException | str | None, event: _private_events.Traffic | None = None
    ) -> None:
        """The model of ``stream`` has said all that it will, if it has begun."""
        if stream.deltas is None:
            return
        runs = itertools.groupby(stream.deltas, _key)
        deltas = [each for key, run in runs for each in self._clean(list(map(_dict_of, run)), key is not None)]
        said: dict[str, Any] = {"request": stream.request, "deltas": deltas}
        if event is not None:
            said["timestamp"] = event.timestamp.isoformat()
        if error is not None:
            said["error"] = error if isinstance(error, str) else describe(error)
        if isinstance(error, ModelError):
            said |= {"code": error.code, "retryable": error.retryable, "retry_after": error.retry_after}
        self._add(REPLY, **said)
        stream.deltas = None

    def _clean(self, pieces: list[dict[str, Any]], joinable: bool = True) -> list[dict[str, Any]]:
        """The pieces of a text as they are; where there is a secret in it, one piece without the secret."""
        if not joinable or not pieces:
            return pieces
        whole = _joined(pieces)
        clean = self._redaction.value(whole)
        return pieces if clean == whole else [clean]

    def _add(self, type: str, **said: Any) -> None:
        self._lines.append(_Line({"type": type, **said}))

    def _write(self) -> None:
        """Write the lines that need not wait."""
        while self._lines and self._lines[0].ready:
            line = self._lines.popleft()
            if line.said is not None:
                said = line.said if line.clean else self._redaction.value(line.said)
                text = json.dumps(said, ensure_ascii=False, default=repr).translate(_LINE_ENDS) + "\n"
                write_all(self._file, text.encode("utf-8", "backslashreplace"))  # makes JSON of half a surrogate pair
                self.written += 1

    def __repr__(self) -> str:
        return f"<Recorder of {getattr(self._file, 'name', self._file)!r}, {self._requests} requests>"


def close(file: io.RawIOBase) -> None:
    """Close a file that `opened` has opened, or another. Doing it twice is harmless."""
    if isinstance(file, io.FileIO) and not file.closed:
        _unlock(file)
    file.close()


def write_all(file: io.RawIOBase, data: bytes) -> None:
    """Write the bytes, all of them."""
    left = memoryview(data)
    while left:
        left = left[file.write(left) or 0 :]


def opened(path: Path) -> io.FileIO:
    """The file at ``path``, empty, for this stream and its owner alone."""
    file = open(path, "r+b" if path.exists() else "x+b", buffering=0, opener=_private)  # noqa: SIM115
    try:
        if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            _lock(file)
            begin = file.read(len(_BEGIN))
            if begin and begin != _BEGIN:
                raise FileExistsError(
                    errno.EEXIST, "this file is not a recorded run, and is not replaced by one", str(path)
                )
            if hasattr(os, "fchmod"):  # nobody else shall read what was said, also where the file was there before
                os.fchmod(file.fileno(), 0o600)
            file.seek(0)
            file.truncate()
    except BaseException:
        file.close()
        raise
    return file


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _lock(file: io.FileIO) -> None:
    """Two streams would write into each other. Their locks are the system's, so other processes count too."""
    if fcntl is None:
        return
    try:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise FileExistsError(
            errno.EEXIST, "another stream is writing its record there; every stream has a file of its own", file.name
        ) from None
    except OSError:
        pass  # a file system without locks


def _unlock(file: io.FileIO) -> None:
    """A forked child may hold the file open, and with it the lock."""
    if fcntl is not None:
        with contextlib.suppress(OSError):
            fcntl.flock(file.fileno(), fcntl.LOCK_UN)


def _news(
    before: tuple[Message, ...], now: tuple[Message, ...]
) -> tuple[int, dict[str, dict[str, Any]], list[dict[str, Any]]]:
    """How many messages are those of the request before, which of these were changed, and which came after them.

    What is the same object is not looked into: what a turn costs does not grow with the run.
    """
    changed: dict[str, dict[str, Any]] = {}
    same, length = 0, min(len(before), len(now))
    while same < length:
        end = min(same + _BLOCK, length)
        if before[same:end] == now[same:end]:  # tells the same objects apart in C
            same = end
            continue
        for old, new in zip(before[same:end], now[same:end], strict=True):
            if old is not new:
                said = shown(new)
                if shown(old) != said:
                    if len(changed) == _CHANGED or old.role != new.role:
                        length = same
                        break
                    changed[str(same)] = said
            same += 1
    return same, changed, [shown(message) for message in now[same:]]


def _key(piece: Any) -> Any:
    """The key that the pieces of one text share; None for an event that is no piece of a text."""
    if isinstance(piece, events.PartialToolCall):
        return "call", piece.tool_call.id
    if isinstance(piece, ToolCallDelta):
        return "call", piece.index
    if isinstance(piece, (TextDelta, ReasoningDelta, events.AgentChoice, events.AgentChoiceReasoning)):
        return type(piece)
    return None


def _joined(pieces: list[dict[str, Any]]) -> dict[str, Any]:
    """The pieces of a text joined to one."""
    joined = dict(pieces[0])
    if "tool_call" in joined:  # the name is that of the call so far
        arguments = "".join(each["tool_call"]["arguments"] for each in pieces)
        joined["tool_call"] = {**pieces[-1]["tool_call"], "arguments": arguments}
        return joined
    for name in ("text", "content", "name", "arguments"):
        if name in joined:
            joined[name] = "".join(each.get(name, "") for each in pieces)
    return joined


def _dict_of(delta: Delta) -> dict[str, Any]:
    """A delta, as JSON has it, without the fields that say nothing."""
    said = {each.name: getattr(delta, each.name) for each in fields(delta)}
    if isinstance(delta, ToolCallDelta):  # a whole object, which is recorded as the text that the session has of it
        said["arguments"] = to_text(delta.arguments)
    return {
        "delta": type(delta).__name__,
        **{each.name: said[each.name] for each in fields(delta) if said[each.name] != each.default},
    }
