"""Hooks: what they are told, what they may do, and that their failure never takes the stream down."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from runtime import Agent, HookInput, HookResult, RunError, Runtime, Session
from runtime.events import Error, Event, HookBlocked, HookFinished, HookStarted, StreamStopped, Warning
from support.scripted import Scripted, say


def events_of(hooks: dict[str, list[Any]], model: Scripted | None = None) -> list[Event]:
    with Runtime(Agent("a", model or Scripted(say("ok")), hooks=hooks)) as runtime:
        return list(runtime.run_stream(Session.from_user("hello")))


def test_what_a_hook_is_told() -> None:
    """Point, session, agent, working directory; the prompt where there is one."""
    told: list[HookInput] = []
    session = Session.from_user("hello")
    hooks = {point: [told.append] for point in ("session_start", "user_prompt_submit", "session_end")}
    with Runtime(Agent("a", Scripted(say("ok")), hooks=hooks)) as runtime:
        runtime.run(session)
    assert [each.hook_event_name for each in told] == ["session_start", "user_prompt_submit", "session_end"]
    assert {each.session_id for each in told} == {session.id}
    assert {each.agent_name for each in told} == {"a"}
    assert {each.cwd for each in told} == {str(Path.cwd())}
    assert told[1].prompt == "hello"
    assert told[2].reason == "normal"


@pytest.mark.parametrize("point", ["session_start", "user_prompt_submit"])
def test_a_hook_that_blocks(point: str) -> None:
    """HookBlocked, Error with its code and reason, the notification and on_error hooks, StreamStopped; in this
    order.
    """
    order: list[str] = []

    def block(given: HookInput) -> HookResult:
        return HookResult(block=True, reason="closed on Sundays")

    def note(given: HookInput) -> None:
        order.append(f"{given.hook_event_name}: {given.reason}")

    found = events_of({point: [block, note], "notification": [note], "on_error": [note], "session_end": [note]})
    told = [type(event) for event in found if not isinstance(event, HookStarted | HookFinished)]
    assert told[-3:] == [HookBlocked, Error, StreamStopped]
    assert order == ["notification: closed on Sundays", "on_error: closed on Sundays", "session_end: hook_blocked"]


def test_context_reaches_the_model() -> None:
    """What hooks want the model to know stands in the system message."""
    model = Scripted(say("ok"))
    with Runtime(
        Agent(
            "a",
            model,
            instructions="Be kind.",
            hooks={
                "session_start": [lambda given: HookResult(context="It is Monday.")],
                "user_prompt_submit": [f'{sys.executable} -c "print(\'{{\\"context\\": \\"It rains.\\"}}\')"'],
            },
        )
    ) as runtime:
        runtime.run(Session.from_user("hello"))
    assert model.seen[0][0].content == "Be kind.\n\nIt is Monday.\n\nIt rains."


async def fails_async(given: HookInput) -> None:
    raise SystemExit("async")


def fails(given: HookInput) -> None:
    raise KeyboardInterrupt("sync")


@pytest.mark.parametrize(
    ("hook", "said"),
    [
        (fails, "KeyboardInterrupt: sync"),
        (fails_async, "SystemExit: async"),
        (lambda given: "no result", "returns a HookResult or None"),
        ("echo broken >&2; exit 3", "exit status 3: broken"),
        ("echo '{\"blok\": true}'", "its output is not a hook result"),
        (["/no/such/program"], "No such file"),
    ],
)
def test_a_hook_that_fails_is_a_warning(hook: Any, said: str) -> None:
    """The stream goes on, at every point; the hook after it still runs."""
    ran: list[str] = []
    found = events_of({"session_start": [hook, lambda given: ran.append("next")], "session_end": [hook]})
    warnings = [event.message for event in found if isinstance(event, Warning)]
    assert len(warnings) == 2
    assert all(said in warning for warning in warnings)
    assert sum(said in event.error for event in found if isinstance(event, HookFinished)) == 2
    assert ran == ["next"]
    assert isinstance(found[-1], StreamStopped)
    assert found[-1].reason == "normal"


def test_a_command_gets_json_and_blocks_with_exit_status_2(tmp_path: Path) -> None:
    """The protocol of command hooks."""
    script = tmp_path / "hook.py"
    script.write_text(
        "import json, sys\n"
        "given = json.load(sys.stdin)\n"
        f"open({str(tmp_path / 'given.json')!r}, 'w').write(json.dumps(given))\n"
        "print('not allowed', file=sys.stderr)\n"
        "sys.exit(2)\n"
    )
    with (
        Runtime(
            Agent("a", Scripted(say("never")), hooks={"user_prompt_submit": [[sys.executable, str(script)]]})
        ) as runtime,
        pytest.raises(RunError, match="not allowed") as raised,
    ):
        runtime.run(Session.from_user("rm -rf"))
    assert raised.value.code == "hook_blocked"
    given = json.loads((tmp_path / "given.json").read_text())
    assert given["hook_event_name"] == "user_prompt_submit"
    assert given["prompt"] == "rm -rf"


def test_a_command_that_hangs_dies_with_what_it_started(tmp_path: Path) -> None:
    """Cancelled: the whole process group ends."""
    pid_file = tmp_path / "pid"
    hooks = {"session_start": [f"sleep 60 & echo $! > {pid_file}; wait"]}
    with Runtime(Agent("a", Scripted(say("never")), hooks=hooks)) as runtime:
        with runtime.run_stream(Session.from_user("hello")):
            while not pid_file.exists() or not pid_file.read_text().strip():
                time.sleep(0.005)
        pid = int(pid_file.read_text())
        assert not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text()


def test_a_wrong_hook_point_is_refused_at_once() -> None:
    """Nothing is silently ignored."""
    with (
        Runtime(Agent("a", Scripted(say("ok")), hooks={"on_start": [print]})) as runtime,
        pytest.raises(ValueError, match="unknown hook point 'on_start'; known are session_start"),
    ):
        runtime.run_stream(Session.from_user("hello"))
