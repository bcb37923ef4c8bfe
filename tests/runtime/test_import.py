"""What stands in the way of an import is said by the import."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_another_package_named_channels_is_named_with_the_way_out(tmp_path: Path) -> None:
    """Django Channels installs an import package of the same name: the one that was installed last is found."""
    (tmp_path / "channels").mkdir()
    (tmp_path / "channels" / "__init__.py").write_text('__version__ = "4.3.1"\nDEFAULT_CHANNEL_LAYER = "default"\n')
    program = f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(ROOT)!r}]; import runtime"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"ImportError: the package 'channels' in ['{tmp_path}/channels'] is not lockgate's")
    assert "Django Channels" in last
    assert "separate environments" in last


def test_opentelemetry_is_imported_by_instrument_and_not_before() -> None:
    """Nor does a program that has it installed pay for it, unless it asks for traces."""
    program = (
        "import sys, runtime, runtime.otel, runtime.cli\n"
        "print(sorted(name for name in sys.modules if name.partition('.')[0] == 'opentelemetry'))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert done.stdout.strip() == "[]", done.stderr


def test_opentelemetry_that_is_not_installed_is_named_with_the_way_out() -> None:
    program = (
        "import sys; sys.modules['opentelemetry'] = None\n"
        "import runtime\n"
        "from runtime.otel import instrument, uninstrument\n"
        "class M:\n"
        "    id = 'm'\n"
        "    def stream(self, messages, tools, *, cancel): yield runtime.TextDelta('x')\n"
        "with runtime.Runtime(runtime.Agent('a', M())) as made:\n"
        "    try: instrument(made)\n"
        "    except runtime.MissingExtra as error: print(error)\n"
        "    uninstrument(made)\n"
        "    print(made.run(runtime.Session.from_user('go')).text)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert done.stdout.splitlines() == ["OpenTelemetry needs an extra: pip install 'lockgate[otel]'", "x"], done.stderr


def modules(program: str) -> set[str]:
    """What is imported by then, beyond what a bare interpreter has."""
    show = "; import sys; print(*sys.modules)"
    found = []
    for each in ("pass", program):
        done = subprocess.run([sys.executable, "-c", each + show], capture_output=True, text=True, timeout=30, cwd=ROOT)
        assert done.returncode == 0, done.stderr
        found.append(set(done.stdout.split()))
    return found[1] - found[0]


def test_importing_the_packages_brings_along_little_of_the_standard_library() -> None:
    """What takes as long to import as a package of ours is imported when something of it is first used: no logger has
    anything to say yet, no dataclass is made, no function looked at.
    """
    heavy = {"asyncio", "concurrent.futures", "dataclasses", "inspect", "logging", "subprocess", "traceback"}
    heavy |= {"pathlib", "platform", "socket", "sqlite3", "ssl", "textwrap", "unittest", "urllib.parse", "uuid"}
    heavy |= {"copy", "hashlib", "importlib", "json", "random", "tempfile"}
    heavy |= {"runtime.batch", "runtime.loop", "runtime.recording", "runtime.team"}
    heavy |= {"janus", "mcp", "openai", "anthropic", "pydantic", "jsonschema", "re2", "psycopg", "opentelemetry"}
    assert not heavy & modules("import channels, runtime, runtime.events")
    heavy = {"contextvars", "datetime", "heapq", "json", "math", "queue", "random", "weakref", "runtime"}
    heavy |= {"channels._group", "channels._merge", "channels._parked"}
    assert not heavy & modules("import channels")


def test_importing_the_packages_compiles_nothing() -> None:
    """The first call of `compile` in a process takes a millisecond. Regular expressions are compiled when they are
    used, and a NamedTuple or TypedDict whose annotations are texts compiles them.
    """
    program = (
        "import builtins, re, sys, typing\n"
        "from importlib import _bootstrap_external as loader\n"
        "compile = builtins.compile\n"
        "def source_to_code(self, data, path, *, _optimization=-1): return compile(data, path, 'exec', 0, True)\n"
        "loader.SourceLoader.source_to_code = source_to_code\n"
        "builtins.compile = lambda *args, **options: sys.exit(f'compiles {args[0]!r}')\n"
        "re.compile = lambda *args: sys.exit(f'compiles {args[0]!r}')\n"
        "import channels, runtime, runtime.events"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr


def test_what_channels_imports_later_is_there_all_the_same() -> None:
    program = (
        "import pickle, sys, typing, channels\n"
        "assert set(channels.__all__) <= set(dir(channels))\n"
        "from channels import *\n"
        "for name in channels.__all__:\n"
        "    value = globals()[name]\n"
        "    assert value is getattr(channels, name) and value.__module__ == 'channels', name\n"
        "    assert pickle.loads(pickle.dumps(value)) is value\n"
        "assert typing.get_type_hints(Parked)['cases'] == tuple[ParkedCase, ...]\n"
        "assert not hasattr(channels, 'other')"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr


def test_what_is_imported_later_is_there_all_the_same() -> None:
    program = (
        "import pickle, sys, runtime\n"
        "assert {'Recording', 'Runs', 'Runtime'} <= set(dir(runtime))\n"
        "assert 'runtime.recording' not in sys.modules\n"
        "from runtime import *\n"
        "assert Recording is runtime.Recording and Runs is runtime.Runs\n"
        "assert Recording.__module__ == Runs.__module__ == 'runtime'\n"
        "assert pickle.loads(pickle.dumps(Recording)) is Recording"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
