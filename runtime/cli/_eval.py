"""``lockgate eval``: recorded runs again, with the agent as it is now, compared with what they were."""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

from .._dataclasses import asdict, dataclass
from .._errors import RunError, StreamStuck, describe
from ..agent._agent import Team
from ..agent._budget import Budget
from ..foreign._printable import escaped
from ..permissions import Permissions
from ..recording._compare import Comparison, compare, trajectory
from ..recording._recording import Recording
from ..runtime import Runtime
from ..session._session import Session
from ..stream._event_stream import EventStream
from ._load import CannotLoad, load, replayed, with_recorded_tools
from ._terminal import Terminal
from ._timeline import fitted, seconds

TOOLS: Final = 1.0  # the thresholds: those of other evaluations of agents
TEXT: Final = 0.8
_NAME: Final = 40  # cells of a name in the table

EPILOG: Final = """\
Each record (*.jsonl, also in folders) is run again on its first messages. Tools give their recorded results, unless
--live-tools calls them; --recorded-model takes the model's replies from the record, too, so that only your agent and
its hooks are new. Nobody is asked: questions are declined.

Two scores compare each run with its record. tools is the share of the tool calls, with their arguments, that
both have in the same order. text is ROUGE-1 of the last replies: the F1 of the words that both have.

Exit status: 0 when every run passed, 1 when one did not, 2 when nothing could be evaluated, 130 when it was
interrupted.

Example:
  mkdir evals
  lockgate run examples/booking.py "Book a table at Luigi's" --record evals/luigi.jsonl
  lockgate eval evals examples/booking.py
"""


class Interrupts(Protocol):
    """Ctrl-C, as the command handles it."""

    pressed: int
    status: int
    cause: str

    def ending(self, stream: EventStream) -> Any: ...


@dataclass(frozen=True, slots=True)
class Evaluated:
    """One record, and how its run went this time."""

    record: str
    passed: bool
    tools: float
    text: float
    recorded_reason: str
    reason: str
    seconds: float
    problems: tuple[str, ...]  # why it did not pass
    difference: tuple[str, ...]  # in the tool calls


def add_arguments(command: argparse.ArgumentParser) -> None:
    """What `lockgate eval` takes."""
    command.add_argument("records", metavar="DIR", help="a directory of records, or one record")
    command.add_argument("agent", metavar="AGENT", help="the agent, as for `lockgate run`")
    command.add_argument("--recorded-model", action="store_true", help="answer with what the model said in the record")
    command.add_argument("--live-tools", action="store_true", help="call the agent's tools, and not the record's")
    command.add_argument(
        "--min-tools", metavar="SCORE", type=score, default=TOOLS, help=f"pass from this on; {TOOLS:g} by default"
    )
    command.add_argument(
        "--min-text", metavar="SCORE", type=score, default=TEXT, help=f"pass from this on; {TEXT:g} by default"
    )
    command.add_argument("--timeout", metavar="SECONDS", type=_positive, help="how long a run may take")
    command.add_argument("--save", metavar="DIR", help="keep the records of the new runs in this directory")
    command.add_argument("--json", action="store_true", help="print the results as JSON, in place of the table")
    command.add_argument(
        "-y", "--yes", action="store_true", help="approve every call of a live tool that the agent does not forbid"
    )


def score(text: str) -> float:
    """A number from 0 to 1."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"a score must be a number from 0 to 1, not {text!r}")
    return value


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number of seconds, more than 0, not {text!r}")
    return value


def evaluate(args: argparse.Namespace, terminal: Terminal, interrupts: Interrupts) -> int:
    """Run the command; the exit status. Raises `CannotLoad`."""
    base = Path(args.records)
    recordings = [Recording(path) for path in _records(base)]
    for recording in recordings:  # before the first run: a bad file is not to be found out about in an hour
        _check(recording)
    with terminal.busy(f"loading {args.agent}"):
        team = load(args.agent)
    if args.save is not None:
        _make(Path(args.save))
        for recording in recordings:
            path = Path(args.save, _name(recording, base))
            if path.exists() and os.path.samefile(path, recording.path):
                raise CannotLoad(f"{path} is the record itself: name another directory for --save")
    longest = max(len(escaped(_name(recording, base))) for recording in recordings)
    width = max(min(longest + 1, _NAME), len("record") + 1)
    if not args.json:
        terminal.line(f"{fitted('record', width)} tools   text      time", "bold")
    results = []
    for recording in recordings:
        name = _name(recording, base)
        with terminal.busy(f"running {name}"):
            result = _again(args, recording, name, team, interrupts)
        if interrupts.pressed:
            terminal.note(f"stopped: {interrupts.cause}", "yellow")
            return interrupts.status
        results.append(result)
        if not args.json:
            for line, style in _lines(result, width):
                terminal.line(line, style)
    failed = sum(not result.passed for result in results)
    if args.json:
        summary = {"passed": len(results) - failed, "failed": failed, "runs": [asdict(result) for result in results]}
        terminal.text(json.dumps(summary, indent=2) + "\n")
    else:
        runs = f"{len(results)} run{'' if len(results) == 1 else 's'}"
        terminal.line(f"{runs}: {len(results) - failed} passed, {failed} failed", "red" if failed else "bold")
    return 1 if failed else 0


def _records(base: Path) -> Sequence[Path]:
    if base.is_file():
        return [base]
    if not base.is_dir():
        raise CannotLoad(f"there is no directory {base}; name one with records, which `lockgate run --record` writes")
    found = sorted(base.rglob("*.jsonl"))
    if not found:
        raise CannotLoad(f"{base} has no record: write one with `lockgate run AGENT PROMPT --record {base}/one.jsonl`")
    return found


def _check(recording: Recording) -> None:
    """Raises `CannotLoad` for what cannot be run again."""
    try:
        trajectory(recording)
        recording.session()
        asked = recording.requests
        whole = recording.whole
    except OSError as error:
        raise CannotLoad(f"cannot evaluate {recording.path}: {error.strerror or error}") from None
    except ValueError as error:  # which names the file
        raise CannotLoad(str(error)) from None
    if not whole:
        raise CannotLoad(f"cannot evaluate {recording.path}: the record does not have the end of its run")
    if not asked:
        raise CannotLoad(f"cannot evaluate {recording.path}: no model was asked in it")


def _make(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CannotLoad(f"cannot keep records in {directory}: {describe(error)}") from None


def _name(recording: Recording, base: Path) -> str:
    return recording.path.name if base == recording.path else str(recording.path.relative_to(base))


def _again(args: argparse.Namespace, recording: Recording, name: str, team: Team, interrupts: Interrupts) -> Evaluated:
    """Run the record again."""
    session = recording.session()
    if args.live_tools:  # the file may be a stranger's: what its session was allowed, the user here has not allowed
        session = Session.from_dict({**session.to_dict(), "permissions": Session().to_dict()["permissions"]})
    try:
        if args.recorded_model:
            team = replayed(team, recording, live_tools=args.live_tools)
        elif not args.live_tools:
            team = with_recorded_tools(team, recording)
    except ValueError as failure:  # a tool that cannot be one
        raise CannotLoad(f"cannot evaluate {recording.path}: {failure}") from None
    with tempfile.TemporaryDirectory(prefix="lockgate-eval-") as directory:
        path = Path(directory, "run.jsonl")
        if args.save is not None:
            path = Path(args.save, name)
            _make(path.parent)
        began = time.monotonic()
        error = ""
        try:
            with Runtime(team, permissions=Permissions(approve_all=args.yes)) as runtime:
                budget = None if args.timeout is None else Budget(seconds=args.timeout)
                stream = runtime.run_stream(session, interactive=False, budget=budget, record=path)
                error = _drive(stream, interrupts)
        except OSError as failure:
            raise CannotLoad(f"cannot write the record of the new run: {describe(failure)}") from None
        took = time.monotonic() - began
        new = Recording(path)
        if not new.whole:
            raise CannotLoad(f"the record of the new run of {name} could not be written to its end")
        comparison = compare(trajectory(recording), trajectory(new))
    problems = tuple(_problems(args, comparison, error))
    return Evaluated(
        name,
        not problems,
        round(comparison.tools, 4),
        round(comparison.text, 4),
        comparison.recorded.reason,
        comparison.now.reason,
        round(took, 3),
        problems,
        tuple(comparison.difference()) if problems else (),
    )


def _drive(stream: EventStream, interrupts: Interrupts) -> str:
    """Run the stream to its end; why it failed, if it did."""
    try:
        with interrupts.ending(stream), stream:
            try:
                stream.result()
            except RunError as error:
                return describe(error)
    except StreamStuck as error:
        return str(error).splitlines()[0]
    return ""


def _problems(args: argparse.Namespace, comparison: Comparison, error: str) -> Iterator[str]:
    if not comparison.same_end:
        why = f": {' '.join(error.split())[:500]}" if error else ""
        yield f"ended as {comparison.now.reason}, and not as {comparison.recorded.reason}{why}"
    if comparison.tools < args.min_tools:
        yield f"tools {comparison.tools:.2f}, and {args.min_tools:g} is needed"
    if comparison.text < args.min_text:
        yield f"text {comparison.text:.2f}, and {args.min_text:g} is needed"


def _lines(result: Evaluated, width: int) -> Iterator[tuple[str, str]]:
    took = seconds(result.seconds)
    verdict = "passed" if result.passed else "failed"
    scores = f"{result.tools:5.2f}  {result.text:5.2f} {took:>9}"
    yield f"{fitted(result.record, width)} {scores}  {verdict}", "" if result.passed else "red"
    for problem in result.problems:
        yield f"    {problem}", "red"
    for line in result.difference:
        yield f"    {line}", "dim"
