"""Hooks: what they are told, what they may do, and that their failure never takes the stream down."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from runtime import Agent, Hook, HookInput, HookResult, RunError, Runtime, Session, Tool, Usage, UsageDelta
from runtime._orphans import _wrapper
from runtime.agent._hook_commands import run_command
from runtime.events import Error, Event, HookBlocked, HookFinished, HookStarted, StreamStopped, Warning
from support.scripted import Scripted, Stall, call, say
from support.waiting import eventually


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


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
            assert eventually(lambda: pid_file.exists() and pid_file.read_text().strip())
        pid = int(pid_file.read_text())
        assert eventually(lambda: is_gone(pid))  # a signal is on its way: the system ends the process when it runs next


@pytest.mark.skipif(not _wrapper(), reason="needs setpriv, which is Linux's")
@pytest.mark.parametrize("form", [None, "exec {}", "{}; true", "{} & wait", "sh -c '{}; true'; true"])
def test_a_command_does_not_outlive_a_process_that_is_killed(tmp_path: Path, form: str | None) -> None:
    """SIGKILL leaves no time to end it. Nor does what it has started outlive it."""
    pid = tmp_path / "pid"
    script = f"import os, time; open({str(pid)!r}, 'w').write(f'{{os.getpid()}}\\n'); time.sleep(60)"
    command = [sys.executable, "-c", script]
    hook = command if form is None else form.format(f"{sys.executable} {tmp_path / 'sleeper.py'}")
    (tmp_path / "sleeper.py").write_text(script)
    program = (
        "from runtime import Agent, Runtime, Session\n"
        "from support.scripted import Scripted, say\n"
        f"agent = Agent('a', Scripted(say('never')), hooks={{'session_start': [{hook!r}]}})\n"
        "Runtime(agent).run(Session.from_user('hello'))\n"
    )
    path = {**os.environ, "PYTHONPATH": os.pathsep.join(each for each in sys.path if each)}
    with subprocess.Popen([sys.executable, "-c", program], env=path) as process:
        assert eventually(lambda: pid.exists() and pid.read_text().endswith("\n"), 30)
        process.kill()
    assert eventually(lambda: is_gone(int(pid.read_text())))


def test_a_command_is_told_and_heard_as_if_nothing_stood_between(tmp_path: Path) -> None:
    """Its input, its output, its status, and that it does not read what it is told."""

    def run(command: str, told: int = 10) -> tuple[int, str, str]:
        done = run_command(command, {"x": "y" * told}, str(tmp_path), 10, None)
        return done.status, done.out, done.err

    assert run("cat; echo e >&2; exit 3") == (3, json.dumps({"x": "y" * 10}), "e\n")
    assert run("exec 0<&-; exit 2", 10_000_000) == (2, "", "")
    assert run("true", 10_000_000) == (0, "", "")
    assert run("pwd") == (0, f"{tmp_path}\n", "")
    assert run("trap '' INT; kill -9 $$")[0] in (-9, 137)


def test_context_of_a_turn_is_for_that_turn() -> None:
    """turn_start: it stands in the system message once, and is not kept."""
    model = Scripted([call("t")], say("ok"))
    hooks = {"turn_start": [lambda given: HookResult(context=f"turn {given.iteration}")]}
    session = Session.from_user("hi")
    with Runtime(Agent("a", model, tools=[Tool("t", lambda: "", read_only=True)], hooks=hooks)) as runtime:
        runtime.run(session)
    assert [messages[0].content for messages in model.seen] == ["turn 1", "turn 2"]
    assert all(message.role != "system" for message in session.messages)


def test_a_stop_hook_makes_the_agent_go_on() -> None:
    """Its reason is the next thing the agent is told; the hook is told what the agent said, and that it was asked."""
    told: list[HookInput] = []

    def check(given: HookInput) -> HookResult | None:
        told.append(given)
        return None if given.stop_hook_active else HookResult(block=True, reason="Run the tests first.")

    session = Session.from_user("hi")
    model = Scripted(say("done"), say("tested"))
    with Runtime(Agent("a", model, hooks={"stop": [check]})) as runtime:
        assert runtime.run(session).text == "tested"
    assert [(message.role, message.content) for message in session.messages[1:]] == [
        ("assistant", "done"),
        ("user", "Run the tests first."),
        ("assistant", "tested"),
    ]
    assert [(given.response, given.stop_hook_active) for given in told] == [("done", False), ("tested", True)]


def test_a_stop_hook_that_never_has_enough_is_overruled() -> None:
    """After eight times, with a warning; the run ends normally."""
    model = Scripted(*[say(str(n)) for n in range(20)])
    hooks = {"stop": [lambda given: HookResult(block=True, reason="more")]}
    found = events_of(hooks, model)
    assert isinstance(found[-1], StreamStopped)
    assert found[-1].reason == "normal"
    assert len(model.seen) == 9
    assert [event.message for event in found if isinstance(event, Warning)] == [
        "the stop hooks have made the agent go on 8 times, and no more"
    ]


def test_what_the_model_hooks_are_told() -> None:
    """The model, the turn, what it said, what it used."""
    told: list[HookInput] = []
    hooks = {"before_llm_call": [told.append], "after_llm_call": [told.append]}
    events_of(hooks, Scripted([*say("ok"), UsageDelta(3, 4)]))
    assert [(given.model, given.iteration) for given in told] == [("scripted", 1)] * 2
    assert told[1].response == "ok"
    assert told[1].usage == Usage(3, 4)
    assert "usage" not in told[0].to_dict()
    assert told[1].to_dict()["usage"]["output_tokens"] == 4


@pytest.mark.parametrize(
    ("point", "result", "said"),
    [
        ("turn_start", HookResult(block=True), "turn_start accepts context, not block"),
        ("session_end", HookResult(context="x"), "session_end accepts nothing, not context"),
        ("before_llm_call", HookResult(updated_input={}), "before_llm_call accepts block, not updated_input"),
        ("stop", HookResult(block="yes"), "block must be bool, not 'yes'"),  # type: ignore[arg-type]
    ],
)
def test_an_answer_that_its_point_does_not_take(point: str, result: HookResult, said: str) -> None:
    """It is not silently ignored: a warning says what would be taken."""
    found = events_of({point: [lambda given: result]})
    assert [said in event.message for event in found if isinstance(event, Warning)] == [True]
    assert isinstance(found[-1], StreamStopped)
    assert found[-1].reason == "normal"


def test_a_hook_has_its_time() -> None:
    """`Hook(timeout=)`: a coroutine is cancelled, a command killed, a function left; the stream goes on."""
    ended: list[str] = []

    async def slow(given: HookInput) -> None:
        try:
            await asyncio.sleep(30)
        finally:
            ended.append(given.hook_event_name)

    with Stall() as stall:
        hooks: dict[str, list[Any]] = {
            "session_start": [Hook(slow, timeout=0.5), Hook("sleep 30", timeout=0.5), Hook(stall, timeout=0.5)],
            "session_end": [Hook(slow, timeout=0.5)],
        }
        with (
            Runtime(Agent("a", Scripted(say("ok")), hooks=hooks)) as runtime,
            runtime.run_stream(Session.from_user("hi")) as stream,
        ):
            found = list(stream)
            stall.go_on.set()
    failed = [event.error for event in found if isinstance(event, HookFinished)]
    assert len(failed) == 4
    assert all("did not end within 0.5 s" in each or "timed out" in each for each in failed)
    assert ended == ["session_start", "session_end"]


@pytest.mark.parametrize("point", ["turn_end", "session_end"])
def test_cleanup_hooks_that_outlive_the_grace_time_are_ended(point: str) -> None:
    """Law 10: the stream is cancelled, closes at once, and waits for them with a bound; nothing is left to be named."""
    ended: list[str] = []
    started = threading.Event()

    async def slow(given: HookInput) -> None:
        started.set()
        try:
            await asyncio.sleep(30)
        finally:
            ended.append(given.hook_event_name)

    hooks: dict[str, list[Any]] = {point: [slow, "sleep 30"]}
    with Stall() as stall, Runtime(Agent("a", Scripted([stall]), hooks=hooks), grace=1) as runtime:
        with runtime.run_stream(Session.from_user("hi")) as stream:
            assert stall.reached.wait(5)
            stream.cancel()
            stall.go_on.set()
        assert started.is_set()
        assert ended == [point]


def test_cleanup_hooks_run_in_order_when_cancelled() -> None:
    """The end of the turn, then the end of the session, though the stream has closed."""
    order: list[str] = []
    with Stall() as stall:
        hooks = {point: [lambda given: order.append(given.hook_event_name)] for point in ("turn_end", "session_end")}
        with (
            Runtime(Agent("a", Scripted([stall]), hooks=hooks)) as runtime,
            runtime.run_stream(Session.from_user("hi")) as stream,
        ):
            assert stall.reached.wait(5)
            stream.cancel()
            stall.go_on.set()
    assert order == ["turn_end", "session_end"]


def test_a_matcher_is_a_pattern_of_names() -> None:
    """As in the shell, with | between them."""
    hook = Hook(print, matcher="shell|write_*")
    assert [name for name in ("shell", "write_file", "read_file", "shell2") if hook.matches(name)] == [
        "shell",
        "write_file",
    ]
    assert Hook(print).matches("anything")
