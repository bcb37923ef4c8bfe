"""The recipes of docs/recipes.md, each under the server or the program that it is for.

They need the extras `recipes` and `engines`, and Redis. With ``LOCKGATE_RECIPES=required`` and
``LOCKGATE_REDIS=required`` in the environment, as in CI, none is skipped.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.serving import Client
from support.waiting import eventually

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
BLOCKS = {found[1]: found[2] for found in re.finditer(r"^```python\n# ([^\n]+)\n(.*?)^```$", PAGE, re.M | re.S)}
PRINTS = re.compile(r"# prints: (.*)$", re.MULTILINE)


def need(module: str, extra: str = "recipes") -> None:
    """Skip the test where the module is not installed."""
    try:
        importlib.import_module(module)
    except ImportError:
        if os.environ.get("LOCKGATE_RECIPES") == "required":
            pytest.fail(f"the extra {extra} is not installed")
        pytest.skip(f"the extra {extra} is not installed")


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A directory with the files of the page."""
    for name, text in BLOCKS.items():
        if name.endswith(".py"):
            (tmp_path / name).write_text(text)
    return tmp_path


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}", "PYTHONWARNINGS": "ignore", **more}


@contextlib.contextmanager
def ended(process: subprocess.Popen[Any]) -> Iterator[subprocess.Popen[Any]]:
    """Ended within bounds, whatever happens in the block."""
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextlib.contextmanager
def gunicorn(site: Path, application: str, *options: str) -> Iterator[int]:
    """The port at which the application is served."""
    with socket.socket() as listening:  # handed down, so that nobody else gets the port
        listening.bind(("127.0.0.1", 0))
        listening.listen(64)
        listening.set_inheritable(True)
        command = [sys.executable, "-m", "gunicorn", "-b", f"fd://{listening.fileno()}", "-k", "gthread"]
        given = [*command, "--threads", "24", "--log-level", "error", "--graceful-timeout", "2", *options, application]
        process = subprocess.Popen(given, cwd=site, env=environment(), pass_fds=[listening.fileno()])
        with ended(process):
            yield listening.getsockname()[1]


def test_every_block_of_the_page_is_run_by_a_test() -> None:
    text = Path(__file__).read_text(encoding="utf-8")
    for name in BLOCKS:
        assert name.removesuffix(".py") in text.replace(BLOCKS[name], ""), name
    assert len(BLOCKS) == PAGE.count("```python")


def test_flask(site: Path) -> None:
    """The agent beside the routes of the site; its owners see their own sessions."""
    need("flask")
    with gunicorn(site, "flask_site:app") as port:
        stranger = Client(port)
        assert stranger.ask("GET", "/agents/api/sessions")[0] == 401

        def signed_in(name: str) -> Client:
            answer = stranger.open("POST", f"/sign-in/{name}", {})
            assert answer.read() == f"hello {name}".encode()
            cookie = (answer.getheader("Set-Cookie") or "").partition(";")[0]
            answer.connection.close()  # type: ignore[attr-defined]
            return Client(port, Cookie=cookie)

        ann, bob = signed_in("ann"), signed_in("bob")
        id = ann.post("/agents/api/sessions", {})["id"]
        said = {"messages": [{"role": "user", "content": "one two"}]}
        answer = ann.open("POST", f"/agents/api/sessions/{id}/agent/shop", said)
        events = [json.loads(line[6:]) for line in answer if line.startswith(b"data: ")]
        answer.connection.close()  # type: ignore[attr-defined]
        assert [event["content"] for event in events if event["type"] == "agent_choice"] == ["one ", "two "]
        assert [each["id"] for each in ann.get("/agents/api/sessions")] == [id]
        assert bob.get("/agents/api/sessions") == []
        assert bob.ask("GET", f"/agents/api/sessions/{id}")[0] == 404


WATCHED = """
from django_site import application as served, runtime

def application(environ, start_response):
    if environ["PATH_INFO"] != "/live":
        return served(environ, start_response)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [str(len(runtime._shared.cores)).encode()]
"""


def test_django(site: Path) -> None:
    """An event is sent when it comes, and who leaves ends the run."""
    need("django")
    (site / "watched.py").write_text(WATCHED)
    with gunicorn(site, "watched:application") as port:
        client = Client(port)
        answer = client.open("GET", "/chat?say=one+two")
        events = [json.loads(line[6:]) for line in answer if line.startswith(b"data: ")]
        answer.connection.close()  # type: ignore[attr-defined]
        assert [event["content"] for event in events if event["type"] == "agent_choice"] == ["one ", "two "]
        assert events[-1]["reason"] == "normal"

        def live() -> int:
            answer = client.open("GET", "/live")
            with contextlib.closing(answer.connection):  # type: ignore[attr-defined]
                return int(answer.read())

        answer = client.open("GET", f"/chat?say={'word+' * 700}")
        assert any(b"agent_choice" in line for line in answer)
        assert live() == 1
        answer.close()
        answer.connection.close()  # type: ignore[attr-defined]
        assert eventually(lambda: live() == 0, 10)


def test_gunicorn(site: Path) -> None:
    """Two workers and a store: a run in one of them, which others look at, and which is answered from anywhere."""
    need("gunicorn", "test")
    with gunicorn(site, "wsgi:application", "--workers", "2") as port:
        client = Client(port)
        id = client.session()
        client.post(f"/api/sessions/{id}/agent/shop?stream=false", {"messages": [{"role": "user", "content": "pay"}]})
        for _ in range(8):  # whichever worker takes the connection
            with contextlib.closing(client.events(id)) as events:
                assert events.until("tool_call_confirmation")["tool_call"]["function"]["name"] == "pay"
        assert [each["session_id"] for each in client.get("/api/waiting")] == [id]
        with contextlib.closing(client.events(id)) as looking, contextlib.closing(client.events(id)) as too:
            client.post(f"/api/sessions/{id}/resume", {"confirmation": "approve"})
            for events in (looking, too):
                assert events.until("tool_call_response")["response"] == "paid 5"
                assert events.until("stream_stopped")["reason"] == "normal"
        long = client.session()
        said = {"messages": [{"role": "user", "content": "word " * 3000}]}
        client.post(f"/api/sessions/{long}/agent/shop?stream=false", said)
        with contextlib.closing(client.events(long)) as events:
            events.until("agent_choice")
            client.post(f"/api/sessions/{long}/cancel")
            assert events.until("stream_stopped")["reason"] == "canceled"


def test_a_notebook(site: Path) -> None:
    """Interrupted in the middle of a reply: nothing is left behind, and the session goes on."""
    for module in ("nbclient", "nbformat", "ipykernel"):
        need(module)
    script = site / "notebook.py"
    script.write_text(NOTEBOOK)
    cells = json.dumps([BLOCKS["a cell"], BLOCKS["another cell"]])
    done = subprocess.run(
        [sys.executable, str(script), cells],
        cwd=site,
        env=environment(IPYTHONDIR=str(site / "ipython"), JUPYTER_PLATFORM_DIRS="1"),
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    assert shown == ["", "Hello there ", "interrupted", "0 live, []", "interrupted reply", "and now? "]


NOTEBOOK = '''
import asyncio, json, sys, threading, time
import nbformat
from nbclient import NotebookClient

LONG = """
try:
    chat("word " * 3000)
except KeyboardInterrupt:
    print("interrupted")
"""
LEFT = """
import threading, time
until = time.monotonic() + 10
def left():
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("lockgate-stream")]
while left() and time.monotonic() < until:
    time.sleep(0.05)
print(f"{len(runtime._shared.cores)} live, {left()}")
"""
REPLY = """
last = session.messages[-1]
print("interrupted reply" if last.content.startswith("word word ") and last.finish_reason == "interrupted" else last)
"""
cells = [nbformat.v4.new_code_cell(text) for text in (*json.loads(sys.argv[1]), LONG, LEFT, REPLY, "chat('and now?')")]
client = NotebookClient(nbformat.v4.new_notebook(cells=cells), timeout=30, kernel_name="python3")
cells = client.nb.cells

def shown(cell):
    """What a cell has printed, or else displayed."""
    printed = [output.text.strip() for output in cell.outputs if output.output_type == "stream"]
    displayed = [output.data["text/markdown"] for output in cell.outputs if output.output_type == "display_data"]
    return [*displayed, *printed][-1] if cell.outputs else ""

def interrupt():
    while "word word" not in shown(cells[2]):
        time.sleep(0.01)
    asyncio.run(client.km.interrupt_kernel())

with client.setup_kernel():
    for number, cell in enumerate(cells):
        if number == 2:
            threading.Thread(target=interrupt, daemon=True).start()
        client.execute_cell(cell, number)
print(json.dumps([shown(cell) for cell in cells]))
'''


def test_celery(site: Path) -> None:
    """A question is asked in a worker, answered in the web process, and the run goes on in a worker."""
    need("celery", "engines")
    if shutil.which("redis-server") is None:
        if os.environ.get("LOCKGATE_REDIS") == "required":
            pytest.fail("redis-server is not installed")
        pytest.skip("redis-server is not installed")
    from support.engine_guard import redis

    with redis() as broker:
        given = environment(BROKER=broker)
        command = [sys.executable, "-m", "celery", "-A", "tasks", "worker", "-P", "prefork", "-c", "1", "-l", "ERROR"]
        quiet: Any = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        with ended(subprocess.Popen(command, cwd=site, env=given, **quiet)):
            done = subprocess.run(
                [sys.executable, "web.py"], cwd=site, env=given, capture_output=True, text=True, timeout=50
            )
    assert done.returncode == 0, done.stderr
    assert [line.rstrip() for line in done.stdout.splitlines()] == PRINTS.findall(BLOCKS["web.py"])
