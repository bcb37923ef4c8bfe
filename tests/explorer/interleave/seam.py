"""Private copies of packages in which the scheduler stands for locks, threads, time and chance.

A `Universe` imports the packages anew, with an ``__import__`` of its own that hands them controlled versions of what
they would get from the standard library. Nothing that the rest of the process imports is touched.
"""

from __future__ import annotations

import _queue
import _random
import _thread
import ast
import builtins
import logging
import os
import queue
import re
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any
from weakref import WeakKeyDictionary, ref

from .instrument import Place, instrument
from .scheduler import ACQUIRE, OTHER, RELEASE, Scheduler

CONTAINERS = frozenset({deque, list, dict, set})
READERS = frozenset({"__len__", "get", "items", "keys", "values", "copy", "index", "count"})
PLAIN = frozenset({ModuleType, type, FunctionType, BuiltinFunctionType, str, tuple, int, float, type(None)})

Patches = Mapping[str, Sequence[tuple[str, str, str]]]  # path: (function or "", old, new)


class Lock:
    """`_thread.allocate_lock`."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._held: Any = None

    def free_for(self, task: Any) -> bool:
        return self._held is None

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        scheduler = self._scheduler
        scheduler.access(self, None, True, ACQUIRE)
        while self._held is not None and not scheduler.dead:
            if not blocking or not scheduler.wait(self, None if timeout < 0 else timeout, self._patient):
                return False
            scheduler.touch(self)
        self._held = scheduler.current or self
        return True

    def release(self) -> None:
        self._scheduler.access(self, None, True, RELEASE)
        if self._held is None and not self._scheduler.dead:
            raise RuntimeError("release unlocked lock")
        self._held = None

    _patient = False

    def locked(self) -> bool:
        self._scheduler.access(self, None, False, OTHER)
        return self._held is not None

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


class RLock(Lock):
    """`_thread.RLock`. A wait for it times out only when nothing else can go on: it is held for moments."""

    _patient = True

    def __init__(self, scheduler: Scheduler) -> None:
        super().__init__(scheduler)
        self._count = 0

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        if not (self._is_owned() or super().acquire(blocking, timeout)):
            return False
        self._count += 1
        return True

    def release(self) -> None:
        if not self._is_owned() and not self._scheduler.dead:
            raise RuntimeError("cannot release un-acquired lock")
        if self._count == 1:
            super().release()
        self._count = max(self._count - 1, 0)

    def _is_owned(self) -> bool:
        return self._held is not None and self._held is (self._scheduler.current or self)


class Thread:
    """`threading.Thread`, as far as it goes."""

    def __init__(
        self,
        scheduler: Scheduler,
        group: None = None,
        target: Callable[..., object] | None = None,
        name: str = "thread",
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
        *,
        daemon: bool | None = None,
    ) -> None:
        self._scheduler = scheduler
        self._target, self._args, self._kwargs = target, args, kwargs or {}
        self.name = name
        self.daemon = bool(daemon)
        self._task: Any = None

    def run(self) -> None:
        if self._target is not None:
            self._target(*self._args, **self._kwargs)

    def start(self) -> None:
        self._task = self._scheduler.add(self.name, self.run, daemon=self.daemon)

    def is_alive(self) -> bool:
        self._scheduler.access(self, None, False, OTHER)
        return self._task is not None and not self._task.done

    def free_for(self, task: Any) -> bool:
        return bool(self._task.done)

    def join(self, timeout: float | None = None) -> None:
        self._scheduler.access(self, None, True, OTHER)
        if not self._task.done and not self._scheduler.dead:
            self._scheduler.wait(self, timeout)
            self._scheduler.touch(self)


class SimpleQueue:
    """`queue.SimpleQueue`."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._items: deque[Any] = deque()

    def free_for(self, task: Any) -> bool:
        return bool(self._items)

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        self._scheduler.access(self, None, True, OTHER)
        self._items.append(item)

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        self._scheduler.access(self, None, True, OTHER)
        while not self._items:
            if not block or not self._scheduler.wait(self, timeout):
                raise queue.Empty
            self._scheduler.touch(self)
        return self._items.popleft()

    def empty(self) -> bool:
        self._scheduler.access(self, None, False, OTHER)
        return not self._items


class Local:
    """`threading.local`, of the tasks of one run: the threads that carry them are used again."""

    _scheduler: Scheduler

    def _mine(self) -> dict[str, Any]:
        own = vars(self).setdefault("of", WeakKeyDictionary())
        return own.setdefault(self._scheduler.current or self._scheduler, {})  # type: ignore[no-any-return]

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("_"):
            return object.__getattribute__(self, name)
        mine = self._mine()
        return mine[name] if name in mine else getattr(type(self), name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._mine()[name] = value


class Logger:
    """`logging.Logger`: what is said in a run is a failure, unless the scenario takes it from ``scheduler.logged``."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler

    def say(self, text: str, *args: object, **_: object) -> None:
        if not self._scheduler.dead:
            error = sys.exception()
            self._scheduler.logged.append(f"{text % args}" + ("" if error is None else f": {error!r}"))

    debug = info = warning = error = exception = say


PRIMITIVES = (Lock, RLock, Thread, SimpleQueue, Scheduler)


class Universe:
    """Packages found under ``root``, loaded anew, with hooks in ``modules`` (paths inside ``root``)."""

    def __init__(
        self,
        root: Path,
        packages: Sequence[str],
        modules: Sequence[str],
        patches: Patches | None = None,
        constants: Sequence[str] = (),
    ) -> None:
        self.root = root
        self.packages = frozenset(packages)
        self.instrumented = frozenset(modules)
        self.patches = dict(patches or {})
        self.constants = frozenset(constants) | {"__class__"}
        self.scheduler = Scheduler()
        self.places = [Place("", 0, None, text) for text in ("", "yield", "acquire", "release", "thread or queue")]
        self.names: list[str | None] = [None] * len(self.places)  # of the attributes that are accessed there
        self.modules: dict[str, ModuleType] = {}
        self._ids: dict[int, tuple[int, Callable[[], object]]] = {}
        self._count = 0
        self._builtins = dict(vars(builtins), __import__=self._import, id=self._id)
        self._stand_ins = self._make_stand_ins()
        self._hooks = self._make_hooks()

    def load(self, name: str) -> ModuleType:
        """The private copy of the module."""
        if name in self.modules:
            return self.modules[name]
        parent, _, child = name.rpartition(".")
        above = self.load(parent) if parent else None
        if name in self.modules:  # its package has imported it: a second copy would be another one than the package has
            return self.modules[name]
        path = self.root.joinpath(*name.split("."))
        package = path.is_dir()
        path = path / "__init__.py" if package else path.with_suffix(".py")
        bare = package and not path.exists()
        module = ModuleType(name)
        module.__file__ = str(path)
        module.__package__ = name if package else parent
        if package:
            module.__path__ = [str(path.parent)]
        module.__dict__["__builtins__"] = self._builtins
        module.__dict__.update(self._hooks)
        self.modules[name] = module
        public = sys.modules.get(name)
        sys.modules[name] = module  # for a moment: dataclasses look there
        try:
            if not bare:
                exec(self._compile(path), module.__dict__)
        finally:
            if public is None:
                del sys.modules[name]
            else:
                sys.modules[name] = public
        if above is not None:
            setattr(above, child, module)
        return module

    def _compile(self, path: Path) -> Any:
        inside = path.relative_to(self.root).as_posix()
        source = path.read_text()
        for function, old, new in self.patches.get(inside, ()):
            source = _patched(source, function, old, new)
        tree = ast.parse(source, str(path))
        if inside in self.instrumented:
            tree = instrument(tree, str(path), source, self.places, self.constants)
            self.names[:] = [place.name for place in self.places]
        return compile(tree, str(path), "exec")

    def _import(
        self, name: str, globals: Any = None, locals: Any = None, fromlist: Sequence[str] | None = (), level: int = 0
    ) -> Any:
        if level:
            base = globals["__package__"].rsplit(".", level - 1)[0]
            name = f"{base}.{name}" if name else base
        if name in self._stand_ins:
            return self._stand_ins[name]
        first = name.partition(".")[0]
        if first not in self.packages:
            return __import__(name, None, None, fromlist or ())
        module = self.load(name)
        for item in fromlist or ():
            if not hasattr(module, item) and hasattr(module, "__path__"):
                self.load(f"{name}.{item}")
        return module if fromlist else self.modules[first]

    def _id(self, thing: object) -> int:
        """`id`, but the same in every run: things are numbered as they come. Keeps nothing alive that need not be."""
        known = self._ids.get(id(thing))
        if known is None or known[1]() is not thing:
            try:
                there: Callable[[], object] = ref(thing)
            except TypeError:

                def there() -> object:
                    return thing

            self._count += 1
            known = self._ids[id(thing)] = (self._count, there)
        return known[0]

    def fresh(self) -> None:
        """Before a run."""
        self._ids.clear()
        self._count = 0

    # -- what stands for the standard library --------------------------------------------------------------------------

    def _make_stand_ins(self) -> dict[str, ModuleType]:
        scheduler = self.scheduler

        class ControlledThread(Thread):
            def __init__(self, *args: Any, **kwargs: Any) -> None:
                super().__init__(scheduler, *args, **kwargs)

        def lock() -> Lock:
            return Lock(scheduler)

        def rlock() -> RLock:
            return RLock(scheduler)

        def simple_queue(*_: object) -> SimpleQueue:
            return SimpleQueue(scheduler)

        class ControlledLocal(Local):
            _scheduler = scheduler

        class Chance:
            def random(self) -> float:
                return (0.0, 0.99)[scheduler.choose(2, "random")]

        def logger(_: object = None) -> Logger:
            return Logger(scheduler)

        def ignore(*_: object, **__: object) -> None:
            return None

        def like(module: ModuleType, **changes: Any) -> ModuleType:
            stand_in = ModuleType(module.__name__)
            stand_in.__dict__.update(vars(module), **changes)
            return stand_in

        simple_queue.__class_getitem__ = lambda _: simple_queue  # type: ignore[attr-defined]
        return {
            "_thread": like(_thread, allocate_lock=lock, RLock=rlock),
            "threading": like(threading, Lock=lock, RLock=rlock, Thread=ControlledThread, local=ControlledLocal),
            "time": like(time, monotonic=scheduler.monotonic),
            "_random": like(_random, Random=Chance),
            "os": like(os, sched_yield=scheduler.yield_, register_at_fork=ignore),
            "queue": like(queue, SimpleQueue=simple_queue),
            "_queue": like(_queue, SimpleQueue=simple_queue),
            "atexit": like(__import__("atexit"), register=ignore),
            "logging": like(logging, getLogger=logger),
        }

    # -- hooks ---------------------------------------------------------------------------------------------------------

    def _make_hooks(self) -> dict[str, Any]:
        scheduler, names = self.scheduler, self.names
        access, interruption = scheduler.access, scheduler.interruption

        def get(thing: Any, where: int) -> Any:
            """Before a read of an attribute or item."""
            if scheduler.current is not None and type(thing) not in PLAIN and not isinstance(thing, Local):
                access(thing, names[where], False, where)
            return thing

        def set_(thing: Any, where: int) -> Any:
            """Before a write or delete."""
            if scheduler.current is not None and not isinstance(thing, Local):
                access(thing, names[where], True, where)
            return thing

        def see(thing: Any, where: int) -> Any:
            """Before a look at the contents of what may be a container."""
            if scheduler.current is not None and type(thing) in CONTAINERS:
                access(thing, None, False, where)
            return thing

        def update(thing: Any, where: int, value: Any) -> Any:
            """Before ``thing += value``."""
            if scheduler.current is not None and type(thing) in CONTAINERS:
                access(thing, None, True, where)
            return value

        def call(function: Any, where: int, *args: Any, **kwargs: Any) -> Any:
            if scheduler.current is None:
                return function(*args, **kwargs)
            kind = type(function)
            if kind is FunctionType or (kind is MethodType and not isinstance(function.__self__, PRIMITIVES)):
                # CPython looks for signals on entry, not on return.
                if "_x_jump" not in (function if kind is FunctionType else function.__func__).__globals__:
                    interruption(where)
                return function(*args, **kwargs)
            if kind is BuiltinFunctionType and type(function.__self__) in CONTAINERS:
                access(function.__self__, None, function.__name__ not in READERS, where)
            for argument in args:
                if type(argument) in CONTAINERS:
                    access(argument, None, False, where)
            result = function(*args, **kwargs)
            interruption(where)
            return result

        def after(value: Any, where: int) -> Any:
            interruption(where)
            return value

        return {
            "_x_get": get,
            "_x_set": set_,
            "_x_see": see,
            "_x_update": update,
            "_x_call": call,
            "_x_after": after,
            "_x_jump": interruption,
        }


def _patched(source: str, function: str, old: str, new: str) -> str:
    """The source with ``old``, which has to be in it once, replaced; in that function only."""
    begin, end = 0, len(source)
    if function:
        match = re.search(rf"^( *)def {function}\(.*?(?=^\1[^\s)]|\Z)", source, re.DOTALL | re.MULTILINE)
        if match is None:
            raise LookupError(f"no function {function}")
        begin, end = match.span()
    body = source[begin:end]
    if body.count(old) != 1:
        raise LookupError(f"{function or 'the module'} has this {body.count(old)} times, not once:\n{old}")
    return source[:begin] + body.replace(old, new) + source[end:]
