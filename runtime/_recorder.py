"""Writes the record of a run, as the observer that is told of the model traffic too.

Pieces of one text are written when all of them are there: a secret that a model says in three pieces is found in none
of them. What came after them, in other streams too, waits for them: the record is in the order of the run.
"""

from __future__ import annotations

import itertools
import json
import os
import stat
import sys
from collections import deque
from dataclasses import dataclass, field, fields
from typing import Any

from . import _traffic, events
from ._errors import ModelError, describe
from .model import Delta, ReasoningDelta, TextDelta, ToolCallDelta
from .recording import CUT_OFF, HEADER, REPLY, REQUEST, VERSION, Recording, same, shown, shown_tool
from .session import Session


@dataclass(slots=True)
class _Line:
    """A line to be written, once it is ``ready``; ``said`` is None for one that another line has taken in."""

    said: dict[str, Any] | None
    ready: bool = True


@dataclass(slots=True)
class _Stream:
    """What the recorder has to remember of a stream, the root or a nested one."""

    request: int = 0
    messages: list[dict[str, Any]] = field(default_factory=list)  # that its last request showed to the model
    deltas: list[Delta] | None = None  # of the reply that has begun
    pieces: list[_Line] = field(default_factory=list)  # of a text that is not complete
    key: Any = None  # of that text


class Recorder:
    """Writes one file, from one thread at a time. What is written is in the file when `on_event` returns."""

    def __init__(self, recording: Recording, agent_name: str, session: Session) -> None:
        self._redaction = recording.redaction
        self._file = open(recording.path, "wb", buffering=0, opener=_private)  # noqa: SIM115 - closed with the last event
        self._lines: deque[_Line] = deque()  # that wait for those before them
        self._streams: dict[str, _Stream] = {}
        self._requests = 0
        try:
            python = sys.version.split()[0]
            self._add(HEADER, version=VERSION, python=python, agent_name=agent_name, session=session.to_dict())
            self._write()
        except BaseException:
            self.close()
            raise

    def on_run_start(self, session: Session) -> None:
        """The header is there already."""

    def on_event(self, session: Session, event: events.Event) -> None:
        """Write it, or keep it until the text that it is a piece of is complete."""
        if self._file.closed:
            return
        stream = self._streams.setdefault(event.session_id, _Stream())
        try:
            if isinstance(event, _traffic.Traffic):
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
        self._file.close()

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
            line.said, line.ready = clean, True

    def _take(self, stream: _Stream, event: _traffic.Traffic) -> None:
        if isinstance(event, _traffic.ModelAsked):
            self._reply(stream, CUT_OFF)
            messages = [shown(message) for message in event.messages]
            known = same(stream.messages, messages)
            self._requests += 1
            stream.request, stream.messages, stream.deltas = self._requests, messages, []
            self._add(
                REQUEST,
                request=stream.request,
                agent_name=event.agent_name,
                session_id=event.session_id,
                model=event.model,
                same=known,
                messages=messages[known:],
                tools=[shown_tool(tool) for tool in event.tools],
            )
        elif isinstance(event, _traffic.ModelSaid) and stream.deltas is not None:
            stream.deltas.append(event.delta)
        elif isinstance(event, _traffic.ModelDone):
            self._reply(stream, event.error)

    def _reply(self, stream: _Stream, error: BaseException | str | None) -> None:
        """The model of ``stream`` has said all that it will, if it has begun."""
        if stream.deltas is None:
            return
        runs = itertools.groupby(stream.deltas, _key)
        deltas = [each for key, run in runs for each in self._clean([_plain(delta) for delta in run], key is not None)]
        said: dict[str, Any] = {"request": stream.request, "deltas": deltas}
        if error is not None:
            said["error"] = error if isinstance(error, str) else describe(error)
        if isinstance(error, ModelError):
            said |= {"code": error.code, "retryable": error.retryable, "retry_after": error.retry_after}
        self._add(REPLY, **said)
        stream.deltas = None

    def _clean(self, pieces: list[dict[str, Any]], joinable: bool = True) -> list[dict[str, Any]]:
        """The pieces of a text as they are; one piece without the secret where there is one in it."""
        if not joinable or not pieces:
            return pieces
        whole = _joined(pieces)
        clean = self._redaction.plain(whole)
        return pieces if clean == whole else [clean]

    def _add(self, type: str, **said: Any) -> None:
        self._lines.append(_Line({"type": type, **said}))

    def _write(self) -> None:
        """Write what need not wait."""
        while self._lines and self._lines[0].ready:
            said = self._lines.popleft().said
            if said is not None:
                line = json.dumps(self._redaction.plain(said), ensure_ascii=False, default=repr) + "\n"
                left = memoryview(line.encode("utf-8", "backslashreplace"))  # makes JSON of half a surrogate pair
                while left:
                    left = left[self._file.write(left) :]

    def __repr__(self) -> str:
        return f"<Recorder of {self._file.name!r}, {self._requests} requests>"


def _private(path: str, flags: int) -> int:
    """Nobody else shall read what was said, also where the file was there before."""
    file = os.open(path, flags, 0o600)
    if hasattr(os, "fchmod") and stat.S_ISREG(os.fstat(file).st_mode):
        os.fchmod(file, 0o600)
    return file


def _key(piece: Any) -> Any:
    """What the pieces of one text have in common; None for what is no piece of a text."""
    if isinstance(piece, events.PartialToolCall):
        return "call", piece.tool_call.id
    if isinstance(piece, ToolCallDelta):
        return "call", piece.index
    if isinstance(piece, (TextDelta, ReasoningDelta, events.AgentChoice, events.AgentChoiceReasoning)):
        return type(piece)
    return None


def _joined(pieces: list[dict[str, Any]]) -> dict[str, Any]:
    """One piece that says what they say."""
    joined = dict(pieces[0])
    if "tool_call" in joined:  # the name is that of the call so far
        arguments = "".join(each["tool_call"]["arguments"] for each in pieces)
        joined["tool_call"] = {**pieces[-1]["tool_call"], "arguments": arguments}
        return joined
    for name in ("text", "content", "name", "arguments"):
        if name in joined:
            joined[name] = "".join(each.get(name, "") for each in pieces)
    return joined


def _plain(delta: Delta) -> dict[str, Any]:
    """A delta, as JSON has it, without the fields that say nothing."""
    said = {each.name: getattr(delta, each.name) for each in fields(delta)}
    return {
        "delta": type(delta).__name__,
        **{each.name: said[each.name] for each in fields(delta) if said[each.name] != each.default},
    }
