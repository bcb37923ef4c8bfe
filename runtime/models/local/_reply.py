"""One reply of the local model: a thread that calls the library, and an iterator over the deltas.

The library passes chunks to a callback on the calling thread, and returns when the reply is complete. An iterator
therefore needs another thread.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from channels import Cancelled, CancelToken, ChannelClosed

from ...execution._pump import Pump
from ...model import Delta, FinishDelta, ReasoningDelta, TextDelta, ToolCallDelta, ToolDefinition, UsageDelta
from ...session._message import Message
from ._arguments import extract
from ._engine import Chunk, ContextExceeded, Server, Stop, Worker
from ._tool_choice import choose

AHEAD = 32  # deltas the model may be ahead of its consumer
PATIENCE = 2.0  # seconds that the end of an iteration waits for the library to notice
ARGUMENT_TOKENS = 512
ASKED = 1000  # characters of a message in which a tool and its arguments are looked for

DEFAULT_INSTRUCTIONS = "You are a helpful assistant."
EXTRACT = [
    {"role": "system", "content": "Extract the arguments from the message as JSON."},
    {"role": "user", "content": "weather: city\nWill it rain in Oslo tomorrow?"},
    {"role": "assistant", "content": '{"city": "Oslo"}'},
    {"role": "user", "content": "send_note: to, text\nTell Bob I am late"},
    {"role": "assistant", "content": '{"to": "Bob", "text": "I am late"}'},
    {"role": "user", "content": "set_alarm: hour, minute\nWake me at 7 30"},
    {"role": "assistant", "content": '{"hour": 7, "minute": 30}'},
]


class _CutOff(Exception):
    """The arguments of a tool call are longer than the model may write."""


class LocalReply:
    """A reply to ``messages``, with a call of one of ``tools`` or none. It is iterated once, which starts the
    thread."""

    def __init__(
        self, messages: Sequence[Message], tools: Sequence[ToolDefinition], max_tokens: int, cancel: CancelToken
    ) -> None:
        self._messages = messages
        self._tools = tools
        self._max_tokens = max_tokens
        self._cancel = cancel
        self._pump: Pump[Delta] = Pump(AHEAD, "local model")
        self._read = self._written = 0  # tokens

    def iterate(self, server: Callable[[], Server]) -> Iterator[Delta]:
        """Iterate over the deltas. ``server`` is called on the thread, which ends with the iteration."""
        try:
            worker = Worker(lambda: self._run(server), stop=self._pump.end)
        except Stop:
            return
        try:
            yield from self._pump.take(self._cancel)
        except Cancelled:
            if not self._cancel.cancelled:
                raise
        finally:
            self._pump.close()
            worker.join(PATIENCE)

    def fail(self, error: BaseException) -> None:
        """End the reply, and raise ``error`` in the iteration; from any thread."""
        self._pump.end(error)

    # -- on the thread ---------------------------------------------------------------------------------------------

    def _run(self, server: Callable[[], Server]) -> None:
        try:
            self._answer(server())
        except (Stop, Cancelled, ChannelClosed):
            pass
        except BaseException as error:
            self.fail(error)
        finally:
            self._pump.end()

    def _stopped(self) -> bool:
        return self._cancel.cancelled or self._pump.closed

    def _send(self, delta: Delta) -> None:
        self._pump.put(delta, cancel=self._cancel)

    def _answer(self, server: Server) -> None:
        asked = next((clean(m.content[:ASKED]) for m in reversed(self._messages) if m.role == "user"), "")
        tool = choose(self._tools, asked, lambda text: self._embed(server, text))
        finish = self._talk(server) if tool is None else self._call(server, tool, asked)
        self._send(UsageDelta(self._read, self._written))
        self._send(FinishDelta(finish))

    def _call(self, server: Server, tool: ToolDefinition, asked: str) -> str:
        """Send a call of ``tool`` with the arguments that are in the message."""
        call = f"call_{uuid.uuid4().hex}"
        self._send(ToolCallDelta(0, call, tool.name))

        def pick(schema: Mapping[str, Any]) -> Mapping[str, Any]:
            question = f"{tool.name}: {', '.join(schema['properties'])}\n{asked}"
            written: list[str] = []
            self._chat(
                server,
                [*EXTRACT, {"role": "user", "content": question}],
                lambda delta: written.append(delta.get("content") or ""),
                max_tokens=ARGUMENT_TOKENS,
                response_format={"type": "json_schema", "json_schema": {"schema": schema}},
            )
            try:
                picked: Mapping[str, Any] = json.loads("".join(written))
            except ValueError:
                raise _CutOff from None
            return picked

        try:
            arguments = extract(tool, asked, pick)
        except _CutOff:
            return "length"  # so that the call is not made, and the model reads why
        self._send(ToolCallDelta(0, call, arguments=json.dumps(arguments, ensure_ascii=False)))
        return "tool_calls"

    def _talk(self, server: Server) -> str:
        """Write a plain reply. If the conversation does not fit the context, its older half is left out, repeatedly."""

        def each(delta: Mapping[str, Any]) -> None:
            if thought := delta.get("reasoning_content"):
                self._send(ReasoningDelta(thought))
            if text := delta.get("content"):
                self._send(TextDelta(text))

        system, turns = conversation(self._messages)
        while True:
            try:
                # Without the penalty so small a model repeats itself for ever.
                return self._chat(
                    server, [system, *turns], each, max_tokens=self._max_tokens, temperature=0, repeat_penalty=1.1
                )
            except ContextExceeded:
                if len(turns) < 2:
                    raise
                turns = turns[(len(turns) + 1) // 2 :]
                if len(turns) > 1 and turns[0]["role"] == "assistant":
                    turns = turns[1:]

    def _chat(
        self, server: Server, messages: list[dict[str, str]], each: Callable[[Mapping[str, Any]], None], **request: Any
    ) -> str:
        """Have ``messages`` answered, and return the finish reason."""
        finish = "stop"

        def on_chunk(chunk: Chunk) -> None:
            nonlocal finish
            for choice in chunk.get("choices", ()):
                each(choice["delta"])
                finish = choice.get("finish_reason") or finish
            if usage := chunk.get("usage"):
                self._read += usage.get("prompt_tokens", 0)
                self._written += usage.get("completion_tokens", 0)

        server.chat({"messages": messages, "temperature": 0, **request}, on_chunk, self._stopped)
        return finish

    def _embed(self, server: Server, text: str) -> list[float]:
        vector, read = server.embed(text, self._stopped)
        self._read += read
        return vector


def conversation(messages: Sequence[Message]) -> tuple[dict[str, str], list[dict[str, str]]]:
    """The messages that a plain reply needs: the instructions, and the messages of the user and the model in turn.

    Tool calls and their results are left out, because the reply after them repeats the result. There is always a system
    message, because chat templates insert their own if there is none.
    """
    system: list[str] = []
    turns: list[dict[str, str]] = []
    for message in messages:
        text = clean(message.content).strip()
        if not text or message.role == "tool":
            continue
        if message.role == "system":
            system.append(text)
        elif turns and turns[-1]["role"] == message.role:
            turns[-1]["content"] += "\n\n" + text
        else:
            turns.append({"role": message.role, "content": text})
    return {"role": "system", "content": "\n\n".join(system) or DEFAULT_INSTRUCTIONS}, turns


def clean(text: str) -> str:
    """``text`` without lone surrogates, which UTF-8 cannot represent and the library does not accept."""
    return text.encode("utf-8", "replace").decode("utf-8")
