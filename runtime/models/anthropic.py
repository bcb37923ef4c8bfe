"""`AnthropicModel`: models behind Anthropic's messages API."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from functools import partial
from types import NoneType
from typing import Any, Final

from channels import CancelToken

from .._catalog import window_of
from .._checks import check
from .._errors import MissingExtra, ModelError
from ..foreign._arguments import to_text
from ..model import (
    Delta,
    FinishDelta,
    NativeDelta,
    OutputSchema,
    ReasoningDelta,
    TextDelta,
    ToolCallDelta,
    ToolDefinition,
    UsageDelta,
)
from ..session._message import Message
from ._clients import Clients
from ._event_bytes import bound
from ._fitting import fitting, paired, picture
from ._provider_errors import (
    MALFORMED,
    Account,
    address,
    check_settings,
    checked_key,
    checked_url,
    classify,
    retry_after,
    words,
)
from ._whole_reply import is_whole, read

try:
    import anthropic
    import httpx2

    from ._anthropic_schema import with_grammar
except ImportError as error:
    raise MissingExtra("AnthropicModel", "anthropic") from error

__all__ = ["AnthropicModel"]

ANTHROPIC_URL: Final = "https://api.anthropic.com"
_PROVIDER: Final = "anthropic"
_EMPTY: Final = "(an empty message)"  # what the user has said with nothing but white space; a turn has to say something

_EVENTS: Final[Mapping[str, type[anthropic.BaseModel]]] = {
    "message_start": anthropic.types.RawMessageStartEvent,
    "content_block_start": anthropic.types.RawContentBlockStartEvent,
    "content_block_delta": anthropic.types.RawContentBlockDeltaEvent,
    "message_delta": anthropic.types.RawMessageDeltaEvent,
    "message_stop": anthropic.types.RawMessageStopEvent,
}
_FINISH: Final = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "tool_use": "tool_calls",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
}


class AnthropicModel:
    """A model of Anthropic, or of a server with a compatible messages API.

    ``base_url`` is the address of the server (by default ``ANTHROPIC_BASE_URL``, or else Anthropic's own), ``api_key``
    its key (by default ``ANTHROPIC_API_KEY``; for Anthropic's own server also what the library ``anthropic`` finds by
    itself: ``ANTHROPIC_AUTH_TOKEN``, a profile). A server of your own may need no key. Without a key for Anthropic's
    own server, calls raise a `ModelError` with the code ``no_key``.

    ``max_tokens`` limits a reply, including its thinking; the API requires it. ``thinking`` is the API's own setting,
    such as ``{"type": "adaptive"}``: thinking arrives as `ReasoningDelta`, and is sent back with its signatures, as the
    API requires. ``timeout`` is the number of seconds that the server may send nothing at all. ``context_window`` is
    the number of tokens that the model takes, for a model that is not in the built-in list. ``options`` are fields that
    are added to every request unchanged and override others: ``{"cache_control": {"type": "ephemeral"}}`` makes
    Anthropic cache the conversation, ``{"output_config": {"format": None}}`` leaves out the schema of an
    ``output_type``.

    Install it with ``pip install 'lockgate[anthropic]'``; without the extra, importing this module raises
    `MissingExtra`. Raises `ValueError` for a malformed ``base_url`` or ``api_key``. A call that fails raises
    `ModelError`; wrap the model in `Retry` to try again. All methods may be called from any thread. Streams on the same
    event loop share connections.
    """

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        max_tokens: int = 16_384,
        thinking: Mapping[str, Any] | None = None,
        timeout: float = 600.0,
        context_window: int | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        check_settings(model, max_tokens, timeout, options)
        check("thinking", thinking, (Mapping, NoneType), "a mapping, such as {'type': 'adaptive'}")
        #: How many tokens it takes, as the protocol `Model` has it; None where that is not known.
        self.context_window = window_of(model, context_window)
        base_url = checked_url(base_url or os.environ.get("ANTHROPIC_BASE_URL") or ANTHROPIC_URL)
        key = checked_key(api_key or os.environ.get("ANTHROPIC_API_KEY"))
        self._account = Account(_PROVIDER, model, base_url, key, "ANTHROPIC_API_KEY")
        self._settings: dict[str, Any] = {"model": model, "max_tokens": max_tokens}
        if thinking is not None:
            self._settings["thinking"] = dict(thinking)
        self._options = dict(options or {})
        self._clients = Clients(partial(_client, self._account, timeout))

    @property
    def id(self) -> str:
        """``anthropic/model``."""
        return f"{_PROVIDER}/{self._account.model}"

    @property
    def settings(self) -> Mapping[str, Any]:
        """The parameters of each request, including ``options``, and ``base_url``."""
        return {**self._settings, **self._options, "base_url": address(self._account.base_url)}

    async def stream(
        self,
        messages: Sequence[Message],
        tools: Sequence[ToolDefinition],
        *,
        cancel: CancelToken,
        output: OutputSchema | None = None,
    ) -> AsyncIterator[Delta]:
        """Reply to ``messages``. Raises `ModelError`."""
        request, prefix = self._request(messages, tools, output)
        reply = _MessageReader(prefix)
        failure: ModelError | None = None
        try:
            client = await self._clients.get()
            async with await client.messages.create(**request) as events:
                if is_whole(events.response):
                    for each in _events(await read(events.response, self._account, "content")):
                        for delta in reply.read(each):
                            yield delta
                else:
                    bound(events.response, self._account)
                    async for event in events:
                        for delta in reply.read(event):
                            yield delta
        except (anthropic.AnthropicError, httpx2.HTTPError, *MALFORMED) as error:
            failure = self._explain(error)
        # Raised out here: what led to it may show the key, and would be its context.
        if failure is not None and not reply.over:
            raise failure
        for delta in reply.end(self._account):
            yield delta

    def close(self) -> None:
        """Begin to close the connections. Streams that use them end with an error. Using the model again opens new
        ones."""
        self._clients.close()

    def __repr__(self) -> str:
        return f"<AnthropicModel {self.id!r} at {self._account.address}>"

    def _request(
        self, messages: Sequence[Message], tools: Sequence[ToolDefinition], output: OutputSchema | None
    ) -> tuple[dict[str, Any], str]:
        """The request, and the `_Prefix` that tells whether the same stands before the reply another time."""
        options = dict(self._options)
        grammar = with_grammar(output.schema) if output is not None else None
        if grammar is not None:  # beside what else is configured there, such as the effort
            wanted = {"format": {"type": "json_schema", "schema": grammar}}
            options["output_config"] = wanted | dict(options.get("output_config") or {})
        request = self._settings | {"stream": True, "extra_body": options}
        if system := "\n\n".join(m.content for m in messages if m.role == "system" and m.content.strip()):
            request["system"] = system
        if tools:
            request["tools"] = [
                {"name": t.name, "description": t.description, "input_schema": dict(t.parameters)} for t in tools
            ]
        prefix = _Prefix()
        prefix.add(request.get("system"), request.get("tools"), grammar)  # which the server tells the model
        # Models that are told how much to think insist on their last thoughts, and do not mind what stands before.
        bound = self._settings.get("thinking", {}).get("type") != "enabled"
        request["messages"] = _conversation(messages, prefix, bound=bound)
        return request, prefix.told()

    def _explain(self, error: Exception) -> ModelError:
        explain = self._account.explain
        cause = error.__cause__
        if isinstance(error, anthropic.CredentialsError):
            return explain("no_key", str(error))
        if isinstance(error, anthropic.APITimeoutError):
            return explain("unreachable" if isinstance(cause, httpx2.ConnectTimeout) else "stalled")
        if isinstance(error, httpx2.ReadTimeout):  # in the middle of a stream
            return explain("stalled")
        if isinstance(error, anthropic.APIConnectionError):
            return explain("unreachable", str(cause or ""))
        if isinstance(error, httpx2.HTTPError):
            return explain("unreachable", str(error))
        if isinstance(error, anthropic.APIStatusError):
            # An error in the middle of a stream has the status of the answer it came in.
            status = error.status_code if error.status_code >= 400 else None
            said = words(error.body)
            code = classify(status, (error.type,), said)
            if status is None:
                return explain(code, said)
            return explain(code, f"{status} {said}", retry_after(error.response.headers))
        return explain("bad_response", f"{type(error).__name__}: {error}")


def _client(account: Account, timeout: float) -> anthropic.AsyncAnthropic:
    own = account.base_url == ANTHROPIC_URL
    client = anthropic.AsyncAnthropic(
        base_url=None if own else account.base_url,  # None: a profile may say it
        api_key=account.key or (None if own else "none"),  # the library insists on one
        max_retries=0,
        timeout=anthropic.Timeout(timeout, connect=min(timeout, 10.0)),
    )
    if client.api_key is None and client.auth_token is None and client.credentials is None:
        raise account.explain("no_key")
    return client


# -- what is sent ------------------------------------------------------------------------------------------------------


class _Prefix:
    """Tells whether the same stands before a reply as when it was made.

    The thoughts of newer models are good only there. A hand-off, a hook that adds to the instructions or another set of
    tools changes it: then the thoughts are left out, for the whole request would be refused.
    """

    def __init__(self) -> None:
        self._digest = hashlib.sha256()

    def add(self, *parts: Any) -> None:
        self._digest.update(json.dumps(parts, sort_keys=True).encode())

    def told(self) -> str:
        return self._digest.hexdigest()


def _conversation(messages: Sequence[Message], prefix: _Prefix, *, bound: bool) -> list[dict[str, Any]]:
    """The messages as the protocol has them: turns of the user and of the assistant, by turns.

    The results of all calls of a turn have to come in one message, before anything else the user says. With ``bound``,
    thoughts come only after what they came after before.
    """
    turns: list[dict[str, Any]] = []
    for message in paired(messages):
        if message.role == "system":
            continue
        role = "assistant" if message.role == "assistant" else "user"
        blocks = _blocks(message, prefix.told() if bound else None)
        prefix.add(role, blocks)
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"] += blocks
        elif blocks:
            turns.append({"role": role, "content": blocks})
    return turns


def _blocks(message: Message, prefix: str | None) -> list[dict[str, Any]]:
    # A block of white space alone is refused, and with it the conversation.
    text: list[dict[str, Any]] = [{"type": "text", "text": message.content}] if message.content.strip() else []
    if message.role != "assistant":
        shown = text + [_image(*taken) for image in message.images if (taken := picture(image)) is not None]
        if message.role == "user":
            return shown or [{"type": "text", "text": _EMPTY}]
        result = {"type": "tool_result", "tool_use_id": _id(message.tool_call_id), "content": shown}
        return [result | {"is_error": True}] if message.is_error else [result]
    calls = [
        {"type": "tool_use", "id": _id(call.id), "name": fitting(call.name, 128), "input": call.parsed or {}}
        for call in message.tool_calls
    ]
    native = message.native
    if native is not None and native.provider == _PROVIDER and prefix in (None, native.content["prefix"]):
        return _as_it_was(native.content["blocks"], message.content, calls) or text + calls
    return text + calls


def _as_it_was(blocks: Sequence[Any], text: str, calls: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The blocks of a reply in their order, its signed thoughts untouched. Nothing if the message was changed since."""
    if "".join(block["text"] for block in blocks if block["type"] == "text") != text:
        return []
    if sum(block["type"] == "tool_use" for block in blocks) != len(calls):
        return []
    left = iter(calls)
    return [
        next(left) if block["type"] == "tool_use" else dict(block)
        for block in blocks
        if block["type"] != "text" or block["text"].strip()
    ]


def _image(kind: str, data: str) -> dict[str, Any]:
    return {"type": "image", "source": {"type": "base64", "media_type": kind, "data": data}}


def _id(call_id: str | None) -> str:
    """The id of a call, which another provider may have given it, in the letters that are allowed here."""
    return fitting(call_id or "", 512)


# -- what comes back ---------------------------------------------------------------------------------------------------


def _events(answers: Sequence[dict[str, Any]]) -> list[Any]:
    """A whole answer as the events of a stream."""
    said: list[dict[str, Any]] = []
    for answer in answers:
        if answer.get("type") != "message":  # events already
            said.append(answer)
            continue
        said.append({"type": "message_start", "message": answer})
        for index, block in enumerate(answer["content"]):
            start = {"type": "content_block_start", "index": index, "content_block": block}
            if block["type"] == "tool_use":
                piece = {"type": "input_json_delta", "partial_json": json.dumps(block.get("input") or {})}
                said += [
                    {**start, "content_block": {**block, "input": {}}},
                    {"type": "content_block_delta", "index": index, "delta": piece},
                ]
            else:
                said.append(start)
        said.append({"type": "message_delta", "delta": answer, "usage": answer.get("usage") or {}})
        said.append({"type": "message_stop"})
    return [_EVENTS[each["type"]].construct(**each) for each in said if each.get("type") in _EVENTS]


class _MessageReader:
    """One reply, as its events come in."""

    def __init__(self, prefix: str) -> None:
        self.over = False
        self._prefix = prefix
        self._stop: str | None = None
        self._explanation = ""
        self._blocks: dict[int, dict[str, Any]] = {}

    def read(self, event: Any) -> list[Delta]:
        """The deltas of an event. Unknown kinds of events have none."""
        match event.type:
            case "message_start":
                return _usage(getattr(event.message, "usage", None))
            case "content_block_start":
                return self._begin(event.index, event.content_block)
            case "content_block_delta":
                return self._go_on(event.index, event.delta)
            case "message_delta":
                self._stop = _text(event.delta.stop_reason) or self._stop
                details = getattr(event.delta, "stop_details", None)
                self._explanation = getattr(details, "explanation", None) or ""
                return _usage(getattr(event, "usage", None))
            case "message_stop":
                self.over = True
        return []

    def end(self, account: Account) -> list[Delta]:
        """The deltas after the last event. Raises `ModelError` for a reply without content."""
        if self._stop == "refusal":
            raise account.explain("refused", self._explanation)
        if not self.over:
            raise account.explain("unreachable", "the connection ended in the middle of the reply")
        blocks = [block for _, block in sorted(self._blocks.items()) if block.get("text") != ""]
        thought = any(block["type"] in ("thinking", "redacted_thinking") for block in blocks)
        deltas: list[Delta] = [NativeDelta(_PROVIDER, {"prefix": self._prefix, "blocks": blocks})] if thought else []
        return [*deltas, FinishDelta(_FINISH.get(self._stop or "end_turn", self._stop or ""))]

    def _begin(self, index: int, block: Any) -> list[Delta]:
        match block.type:
            case "text":
                text = _text(block.text)
                self._blocks[index] = {"type": "text", "text": text}
                return [TextDelta(text)] if text else []
            case "thinking":
                thought = _text(block.thinking)
                self._blocks[index] = {"type": "thinking", "thinking": thought, "signature": _text(block.signature)}
                return [ReasoningDelta(thought)] if thought else []
            case "redacted_thinking":
                self._blocks[index] = {"type": "redacted_thinking", "data": block.data}
            case "tool_use":
                self._blocks[index] = {"type": "tool_use"}
                given = getattr(block, "input", None)  # an empty object, with the input in pieces to come; or all of it
                whole = to_text(given) if given else ""
                return [ToolCallDelta(index, str(block.id or ""), _text(block.name), whole)]
        return []

    def _go_on(self, index: int, delta: Any) -> list[Delta]:
        match delta.type:
            case "text_delta":
                text = _text(delta.text)
                block = self._blocks.setdefault(index, {"type": "text", "text": ""})  # not all begin a block
                block["text"] += text
                return [TextDelta(text)]
            case "thinking_delta":
                thought = _text(delta.thinking)
                self._blocks[index]["thinking"] += thought
                return [ReasoningDelta(thought)]
            case "signature_delta":
                self._blocks[index]["signature"] += _text(delta.signature)
            case "input_json_delta":
                if self._blocks.get(index) == {"type": "tool_use"}:  # not one of the server's own tools
                    piece = delta.partial_json
                    return [ToolCallDelta(index, arguments="" if piece is None else to_text(piece))]
        return []


def _text(said: Any) -> str:
    return said if isinstance(said, str) else ""


def _usage(usage: Any) -> list[Delta]:
    """The counts so far, as far as the server counts. What is read from the cache or written into it is not part of
    ``input_tokens`` there.
    """
    if usage is None:
        return []

    def count(name: str, of: Any = usage) -> int:
        value = getattr(of, name, None)
        return value if isinstance(value, int) else 0

    read, written = count("cache_read_input_tokens"), count("cache_creation_input_tokens")
    thought = count("thinking_tokens", getattr(usage, "output_tokens_details", None))
    return [UsageDelta(count("input_tokens") + read + written, count("output_tokens"), read, written, thought)]
