"""A program that runs agents on an engine: ``python -m support.engine_caller ENGINE ADDRESS DIRECTORY SCENARIO...``. It
prints what it saw, a line of JSON for each scenario.

In a process of its own, for clients of engines start threads that they do not end.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from runtime import Session
from runtime.events import AgentChoice, ElicitationRequest, Error, Event, StreamStopped, ToolCallStarted
from runtime.remote import Remote, RemoteStream

from .waiting import eventually

LONG = 30.0
Submit = Callable[..., Any]


@contextlib.contextmanager
def engine(name: str, address: str) -> Iterator[dict[str, Submit]]:
    """The ways to submit a job to an engine."""
    if name == "threads":
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(4) as threads:
            yield {"pool": threads.submit}
    elif name == "processes":
        from concurrent.futures import ProcessPoolExecutor

        with ProcessPoolExecutor(2) as processes:
            yield {"pool": processes.submit}
    elif name == "dask":
        from distributed import Client

        with Client(address) as client:
            yield {"client": client.submit, "executor": client.get_executor().submit}
    elif name == "dbos":
        from dbos import DBOSClient

        from .engine_dbos import NAME, QUEUE

        client = DBOSClient(system_database_url=address)
        yield {"client": lambda function, spec: client.enqueue({"queue_name": QUEUE, "workflow_name": NAME}, spec)}
        client.destroy()
    else:
        from .engine_celery import app, run

        app.conf.update(broker_url=address, result_backend=address)
        yield {pool: _celery(run, pool) for pool in ("prefork", "threads")}
        app.close()


def _celery(task: Any, queue: str) -> Submit:
    return lambda function, spec: task.apply_async((spec,), queue=queue)


class Caller:
    """The scenarios."""

    def __init__(self, arguments: list[str], remote: Remote, directory: Path, jobs: list[Any]) -> None:
        self._arguments = arguments  # the first of this program
        self._remote = remote
        self._directory = directory
        self._jobs = jobs

    def run(self) -> dict[str, Any]:
        """The events of a run, in their order."""
        session = Session.from_user("say 300")
        with self._remote.run_stream(session) as stream:
            events = list(stream)
            result = stream.result()
        text = "".join(event.content for event in events if isinstance(event, AgentChoice))
        return {
            "words": len(text.split()),
            "same": text == result.text == session.messages[-1].content,
            "types": [events[0].type, events[-1].type],
            "elsewhere": int(text.split()[-1]) != os.getpid(),
        }

    def failure(self) -> dict[str, Any]:
        """A model that fails there."""
        with self._remote.run_stream(Session.from_user("fail")) as stream:
            return _ends(list(stream))

    def question(self) -> dict[str, Any]:
        """A question that is answered from here."""
        with self._remote.run_stream(Session.from_user("ask")) as stream:
            for event in stream:
                if isinstance(event, ElicitationRequest):
                    asked = event.message
                    stream.respond(event, "accept", {"n": 3})
            return {"asked": asked, "text": stream.result().text}

    def cancel(self) -> dict[str, Any]:
        """A run that is cancelled in the middle of a tool."""
        directory = self._own("cancel")
        with self._hanging(directory) as stream:
            began = time.monotonic()
            stream.cancel("enough")
            events = list(stream)
            took = time.monotonic() - began
        told = eventually(lambda: _lines(directory / "cancelled"), LONG)
        return {"seconds": took, "told": told, **_ends(events)}

    def killed(self) -> dict[str, Any]:
        """A worker that is killed in the middle of a tool, and what its engine makes of that."""
        directory = self._own("killed")
        with self._hanging(directory) as stream:
            (pid,) = (directory / "begun").read_text().split()
            began = time.monotonic()
            os.kill(int(pid), signal.SIGKILL)
            events = list(stream)
            took = time.monotonic() - began
        try:
            after: Any = _result(self._jobs[-1])
        except Exception as error:
            after = type(error).__name__
        return {"seconds": took, "job": after, "begun": _lines(directory / "begun"), **_ends(events)}

    def caller_killed(self) -> dict[str, Any]:
        """A caller that is killed in the middle of a run, and the worker after that."""
        directory = self._own("caller")
        command = [sys.executable, "-m", "support.engine_caller", *self._arguments, str(directory), "victim"]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True) as victim:
            try:
                assert eventually(lambda: _lines(directory / "begun"), LONG), "it never came so far"
                victim.kill()
                began = time.monotonic()
                assert eventually(lambda: _lines(directory / "cancelled"), LONG), "it goes on without its caller"
                took = time.monotonic() - began
            finally:
                with contextlib.suppress(ProcessLookupError):  # the workers of a process pool do not end with it
                    os.killpg(victim.pid, signal.SIGKILL)
        return {"seconds": took, "begun": _lines(directory / "begun"), "after": self.run()["same"]}

    def victim(self) -> dict[str, Any]:
        """Waits to be killed."""
        with self._hanging(self._directory.parent) as stream:
            return _ends(list(stream))

    def map(self) -> dict[str, Any]:
        """Many sessions, one of which fails."""
        prompts = ["say 3", "fail", "say 4", "say 5"]
        results = [result for _, result in self._remote.map(prompts, limit=2)]
        return {
            "texts": sorted(result.text.partition(" in ")[0] for result in results if result.error is None),
            "errors": [str(result.error) for result in results if result.error is not None],
        }

    def threads(self) -> dict[str, Any]:
        """What is left of ours here."""
        eventually(lambda: not _ours())
        return {"left": _ours()}

    def _own(self, name: str) -> Path:
        directory = self._directory / name
        directory.mkdir()
        return directory

    @contextlib.contextmanager
    def _hanging(self, directory: Path) -> Iterator[RemoteStream]:
        with self._remote.run_stream(Session.from_user(f"hang {directory}")) as stream:
            for event in stream:
                if isinstance(event, ToolCallStarted):
                    break
            assert eventually(lambda: _lines(directory / "begun"), LONG)
            yield stream


def _ours() -> list[str]:
    named = ("lockgate-remote", "lockgate-stream", "channels-net")
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(named)]


def _ends(events: list[Event]) -> dict[str, Any]:
    last = events[-1]
    errors = [event.code for event in events if isinstance(event, Error)]
    return {"errors": errors, "reason": last.reason if isinstance(last, StreamStopped) else None}


def _lines(path: Path) -> int:
    return len(path.read_text().split()) if path.exists() else 0


def _result(job: Any) -> Any:
    """What the engine says of a job, once it is through with it."""
    if hasattr(job, "get_result"):  # of DBOS
        said = job.get_result()
    elif hasattr(job, "get"):  # of Celery
        said = job.get(timeout=LONG)
    else:
        said = job.result(LONG)
    return "refused" if isinstance(said, dict) and said.get("refused") else said


def main(name: str, address: str, directory: str, *scenarios: str) -> None:
    """Run the scenarios in each way, those in which somebody is killed in the first only."""
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    with engine(name, address) as ways:
        for number, (way, submit) in enumerate(ways.items()):
            jobs: list[Any] = []

            def kept(*job: Any, submit: Submit = submit, jobs: list[Any] = jobs) -> Any:
                jobs.append(submit(*job))
                return jobs[-1]

            own = Path(directory) / way
            own.mkdir(exist_ok=True)
            with Remote(kept, "support.engine_agents:agent", grace=LONG) as remote:
                caller = Caller([name, address], remote, own, jobs)
                for scenario in scenarios:
                    if number == 0 or "killed" not in scenario:
                        print(json.dumps([way, scenario, getattr(caller, scenario)()]), flush=True)
            print(json.dumps([way, "threads", caller.threads()]), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
