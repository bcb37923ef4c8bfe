"""Models behind the protocol of OpenAI's chat completions: OpenAI's own, and the many servers that speak it."""

from __future__ import annotations

import os
import re
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from functools import partial
from typing import Any, Final

from channels import CancelToken

from .._catalog import window_of
from .._checks import check, check_flags, is_number
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
    import openai
    from openai.types.chat import ChatCompletionChunk
except ImportError as error:
    raise MissingExtra("OpenAIModel", "openai") from error

__all__ = ["OpenAIModel"]

OPENAI_URL: Final = "https://api.openai.com/v1"
_LONGEST_NAME: Final = 64  # of a function
_LONGEST_ID: Final = 40  # of a call
# What servers call the text of their thoughts. OpenAI's own sends none.
_REASONING: Final = ("reasoning_content", "reasoning")
_DONE: Final = b"[DONE]"  # the end of a stream


class OpenAIModel:
    """A model of OpenAI, or of any server with a compatible chat completions API: llama.cpp, vLLM, Ollama, OpenRouter,
    DeepSeek ...

    ``base_url`` is the address of the server (by default ``OPENAI_BASE_URL``, or else OpenAI's own), ``api_key`` its
    key (by default ``OPENAI_API_KEY``). A server of your own may need no key. Without a key for OpenAI's own server,
    calls raise a `ModelError` with the code ``no_key``. ``provider`` is the first half of `id`.

    ``max_tokens`` limits a reply. ``timeout`` is the number of seconds that the server may send nothing at all.
    ``images=False`` is for a model that cannot read images, whose server would refuse them. ``context_window`` is the
    number of tokens that the model takes, for a model that is not in the built-in list. ``options`` are fields that are
    added to every request unchanged and override others, such as ``{"reasoning_effort": "low"}``.

    Install it with ``pip install 'lockgate[openai]'``; without the extra, importing this module raises `MissingExtra`.
    Raises `ValueError` for a malformed ``base_url`` or ``api_key``. A call that fails raises `ModelError`; wrap the
    model in `Retry` to try again. All methods may be called from any thread. Streams on the same event loop share
    connections.
    """

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        provider: str = "openai",
        temperature: float | None = None,
        max_tokens: int | None = None,
        images: bool = True,
        timeout: float = 600.0,
        context_window: int | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        check_settings(model, max_tokens, timeout, options)
        if temperature is not None and not is_number(temperature, least=0):
            raise ValueError(f"temperature must be a number, 0 or more, not {temperature!r}")
        #: How many tokens it takes, as the protocol `Model` has it; None where that is not known.
        self.context_window = window_of(model, context_window)
        check("provider", provider, str, "text")
        check_flags(images=images)
        base_url = checked_url(base_url or os.environ.get("OPENAI_BASE_URL") or OPENAI_URL)
        key = checked_key(api_key or os.environ.get("OPENAI_API_KEY"))
        self._account = Account(provider, model, base_url, key, "OPENAI_API_KEY")
        self._settings: dict[str, Any] = {"model": model}
        if temperature is not None:
            self._settings["temperature"] = temperature
        if max_tokens is not None:  # OpenAI's newer models refuse the old name, other servers ignore the new one
            self._settings["max_completion_tokens" if base_url.startswith(OPENAI_URL) else "max_tokens"] = max_tokens
        self._images = images
        self._options = dict(options or {})
        self._clients = Clients(partial(_client, self._account, timeout))

    @property
    def id(self) -> str:
        """``provider/model``."""
        return f"{self._account.provider}/{self._account.model}"

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
        request = self._request(messages, tools, output)
        reply = _CompletionReader(self.id)
        failure: ModelError | None = None
        try:
            client = await self._clients.get()
            async with await client.chat.completions.create(**request) as chunks:
                if is_whole(chunks.response):
                    for each in await read(chunks.response, self._account, "choices"):
                        for delta in reply.read(_chunk(each)):
                            yield delta
                else:
                    bound(chunks.response, self._account)
                    reply.watch(chunks.response)
                    async for chunk in chunks:
                        for delta in reply.read(chunk):
                            yield delta
        except (openai.OpenAIError, *MALFORMED) as error:
            failure = self._explain(error)
        # Raised out here: what led to it may show the key, and would be its context.
        if failure is not None and not reply.finish:
            raise failure
        for delta in reply.end(self._account):
            yield delta

    def close(self) -> None:
        """Begin to close the connections. Streams that use them end with an error. Using the model again opens new
        ones."""
        self._clients.close()

    def __repr__(self) -> str:
        return f"<OpenAIModel {self.id!r} at {self._account.address}>"

    def _request(
        self, messages: Sequence[Message], tools: Sequence[ToolDefinition], output: OutputSchema | None
    ) -> dict[str, Any]:
        request = self._settings | {
            "messages": self._conversation(messages, {tool.name for tool in tools}),
            "stream": True,
            "stream_options": {"include_usage": True},
            "extra_body": self._options,
        }
        if output is not None and output.schema.get("type") == "object":  # the protocol has no other
            name = re.sub(r"[^\w-]", "_", output.name, flags=re.ASCII)[:64]
            schema = {"name": name, "schema": dict(output.schema)}
            request["response_format"] = {"type": "json_schema", "json_schema": schema}
        if tools:
            request["tools"] = [
                {
                    "type": "function",
                    "function": {"name": t.name, "description": t.description, "parameters": dict(t.parameters)},
                }
                for t in tools
            ]
        return request

    def _conversation(self, messages: Sequence[Message], known: Collection[str]) -> list[dict[str, Any]]:
        """The messages as the protocol has them. Results hold no images there: the user shows them, after the last."""
        sent: list[dict[str, Any]] = []
        shown: list[dict[str, Any]] = []
        for message in paired(messages):
            if message.role != "tool" and shown:
                sent.append({"role": "user", "content": shown})
                shown = []
            pictures = map(picture, message.images if self._images else ())
            images = [_image(*each) for each in pictures if each is not None]
            if message.role == "tool":
                call_id = self._id(message.tool_call_id or "")
                sent.append({"role": "tool", "tool_call_id": call_id, "content": message.content})
                if images:
                    shown += [{"type": "text", "text": f"Images of the result of {call_id}:"}, *images]
            elif message.role == "assistant":
                sent += self._reply(message, known)
            elif images:
                text = [{"type": "text", "text": message.content}] if message.content else []
                sent.append({"role": message.role, "content": text + images})
            else:
                sent.append({"role": message.role, "content": message.content})
        return [*sent, {"role": "user", "content": shown}] if shown else sent

    def _reply(self, message: Message, known: Collection[str]) -> list[dict[str, Any]]:
        if not message.tool_calls:  # with nothing in it, it was interrupted before its first word
            return [{"role": "assistant", "content": message.content}] if message.content else []
        calls = []
        for call in message.tool_calls:  # a name that the server takes as that of a tool is none that it refuses
            name = call.name if call.name in known else fitting(call.name, _LONGEST_NAME)
            # Servers parse the arguments, and fail on the whole conversation.
            function = {"name": name, "arguments": call.sound_arguments}
            calls.append({"id": self._id(call.id), "type": "function", "function": function})
        sent = {"role": "assistant", "content": message.content, "tool_calls": calls}
        # A server that thinks aloud wants its thoughts back with its calls; others may refuse them.
        if message.native is not None and message.native.provider == self.id:
            sent |= message.native.content
        return [sent]

    def _id(self, id: str) -> str:
        """The id of a call. Other servers keep things of their own in theirs, which they want back."""
        return fitting(id, _LONGEST_ID) if self._account.base_url.startswith(OPENAI_URL) or not id else id

    def _explain(self, error: Exception) -> ModelError:
        explain = self._account.explain
        cause = error.__cause__
        if isinstance(error, openai.APITimeoutError):
            return explain("unreachable" if type(cause).__name__ == "ConnectTimeout" else "stalled")
        if isinstance(error, openai.APIConnectionError):
            return explain("unreachable", str(cause or ""))
        if isinstance(error, openai.APIStatusError):
            said = words(error.body)
            code = classify(error.status_code, (error.code, error.type), said)
            return explain(code, f"{error.status_code} {said}", retry_after(error.response.headers))
        if isinstance(error, openai.APIError):  # in the middle of a stream
            said = words(error.body) or error.message
            return explain(classify(None, (error.code, error.type), said), said)
        return explain("bad_response", f"{type(error).__name__}: {error}")


def _client(account: Account, timeout: float) -> openai.AsyncOpenAI:
    if not account.key and account.base_url.startswith(OPENAI_URL):
        raise account.explain("no_key")
    return openai.AsyncOpenAI(
        base_url=account.base_url,
        api_key=account.key or "none",  # the library insists on one
        max_retries=0,
        timeout=openai.Timeout(timeout, connect=min(timeout, 10.0)),
    )


def _chunk(answer: Mapping[str, Any]) -> Any:
    """A whole answer as one chunk of a stream."""
    choices = [dict(choice) for choice in answer["choices"] or () if isinstance(choice, Mapping)]
    for choice in choices:
        if isinstance(message := choice.pop("message", None), Mapping):
            calls = message.get("tool_calls") or ()
            choice["delta"] = {**message, "tool_calls": [{**call, "index": at} for at, call in enumerate(calls)]}
    return ChatCompletionChunk.construct(**{**answer, "choices": choices})


class _CompletionReader:
    """One reply, as its chunks come in."""

    def __init__(self, model_id: str) -> None:
        self.finish = ""
        self._model_id = model_id
        self._refused = False
        self._thoughts: dict[str, str] = {}
        self._tail = b""  # the last bytes that came

    def watch(self, response: Any) -> None:
        """Look at the bytes of ``response`` on their way to the library, which takes the protocol's own end off them,
        and does not say whether there was one.
        """
        source = response.aiter_bytes

        async def watched() -> AsyncIterator[bytes]:
            async for piece in source():
                self._tail = (self._tail + piece)[-len(_DONE) - 8 :]
                yield piece

        response.aiter_bytes = watched

    def read(self, chunk: Any) -> list[Delta]:
        """The deltas of a chunk. Servers leave out what they do not know."""
        deltas: list[Delta] = []
        for choice in getattr(chunk, "choices", None) or ():
            if getattr(choice, "index", None):
                continue  # another reply to the same, which nobody asked for
            delta = getattr(choice, "delta", None)
            for name in _REASONING:
                thought = getattr(delta, name, None)
                if isinstance(thought, str):  # an empty one too: the server wants the field back
                    self._thoughts[name] = self._thoughts.get(name, "") + thought
                    if thought:
                        deltas.append(ReasoningDelta(thought))
                    break
            if text := _text(getattr(delta, "content", None)):
                deltas.append(TextDelta(text))
            if refusal := _text(getattr(delta, "refusal", None)):
                self._refused = True
                deltas.append(TextDelta(refusal))
            for piece in getattr(delta, "tool_calls", None) or ():
                deltas.append(_piece(piece))
            finish = getattr(choice, "finish_reason", None)
            self.finish = finish if finish and isinstance(finish, str) else self.finish
        if usage := getattr(chunk, "usage", None):
            deltas.append(_usage(usage))
        return deltas

    def end(self, account: Account) -> list[Delta]:
        """The deltas after the last chunk. Raises `ModelError` for a reply without content."""
        if self._refused or self.finish == "content_filter":
            raise account.explain("refused")
        if not self.finish and self._tail.strip().endswith(_DONE):
            self.finish = "stop"  # some servers leave the reason out, or empty
        if not self.finish:
            raise account.explain("unreachable", "the connection ended in the middle of the reply")
        deltas: list[Delta] = [NativeDelta(self._model_id, self._thoughts)] if self._thoughts else []
        return [*deltas, FinishDelta("tool_calls" if self.finish == "function_call" else self.finish)]


def _text(content: Any) -> str:
    """The text of a piece, which some servers send in parts, as it is sent to them."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else ()
    texts = (part.get("text") for part in parts if isinstance(part, Mapping))
    return "".join(text for text in texts if isinstance(text, str))


def _piece(piece: Any) -> ToolCallDelta:
    """A piece of a call, as it is: which call it belongs to is found out elsewhere."""
    index, given = getattr(piece, "index", None), getattr(piece, "id", None)
    function = getattr(piece, "function", None)
    name, arguments = getattr(function, "name", None), getattr(function, "arguments", None)
    return ToolCallDelta(
        index if isinstance(index, int) else None,
        str(given or ""),
        name if isinstance(name, str) else "",
        "" if arguments is None else to_text(arguments),
    )


def _usage(usage: Any) -> UsageDelta:
    read = getattr(usage, "prompt_tokens_details", None)
    written = getattr(usage, "completion_tokens_details", None)
    return UsageDelta(
        _count(usage, "prompt_tokens"),
        _count(usage, "completion_tokens"),
        _count(read, "cached_tokens"),
        _count(read, "cache_write_tokens"),
        _count(written, "reasoning_tokens"),
    )


def _count(said: Any, name: str) -> int:
    """A number of tokens. A reply is not lost because its server counts in some other way."""
    value = getattr(said, name, None)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return max(value, 0) if isinstance(value, int) else 0


def _image(kind: str, data: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": f"data:{kind};base64,{data}"}}
