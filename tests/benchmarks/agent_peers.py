"""What `runtime.py --peers` compares: other libraries for agents, none of which has to be installed.

`pip install agno haystack-ai` beside this project. Each is given a model that says what is written down, as
`runtime.py` gives one to lockgate, and is driven from synchronous Python. Where a library has no iterator for that, a
thread and a queue are put around it, as its users have to (`bridged`).
"""

from __future__ import annotations

import importlib
import json
import os
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

#: What a model does: it says a text, calls something that takes its time, or asks for a call of the tool ``nothing``.
Step = str | int | Callable[[], Any]


def nothing(n: int) -> str:
    """Does nothing."""
    return "ok"


class AgentPeer:
    """A library."""

    name = ""
    module = ""
    imported = ""  # the part of it that has agents

    def __init__(self) -> None:
        importlib.import_module(self.module)

    def stream(self, turns: Sequence[Sequence[Step]]) -> Iterator[str]:
        """The texts that an agent says whose model takes these turns; a whole number is a call of `nothing` with it."""
        raise NotImplementedError


class Agno(AgentPeer):
    name = module = "agno"
    imported = "agent"

    def __init__(self) -> None:
        os.environ["AGNO_TELEMETRY"] = "false"
        from agno.agent import Agent
        from agno.models.base import Model
        from agno.models.response import ModelResponse
        from agno.run.agent import RunContentEvent

        class Scripted(Model):  # type: ignore[misc]
            def __init__(self, turns: Sequence[Sequence[Step]]) -> None:
                super().__init__(id="scripted")
                self.turns = list(turns)

            def invoke_stream(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
                for step in self.turns.pop(0):
                    if isinstance(step, str):
                        yield ModelResponse(content=step)
                    elif isinstance(step, int):
                        function = {"name": "nothing", "arguments": json.dumps({"n": step})}
                        yield ModelResponse(
                            tool_calls=[{"id": f"call-{step}", "type": "function", "function": function}]
                        )
                    else:
                        step()

            def invoke(self, *args: Any, **kwargs: Any) -> Any:
                raise NotImplementedError

            ainvoke = ainvoke_stream = _parse_provider_response = _parse_provider_response_delta = invoke

        self._agent, self._model, self._event = Agent, Scripted, RunContentEvent

    def stream(self, turns: Sequence[Sequence[Step]]) -> Iterator[str]:
        agent = self._agent(model=self._model(turns), tools=[nothing], telemetry=False)
        for event in agent.run("go", stream=True):
            if isinstance(event, self._event):
                yield event.content


class Haystack(AgentPeer):
    name = module = "haystack"
    imported = "components.agents"

    def __init__(self) -> None:
        os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "False"
        from haystack import component
        from haystack.components.agents import Agent
        from haystack.dataclasses import ChatMessage, StreamingChunk, ToolCall
        from haystack.tools import create_tool_from_function

        @component  # type: ignore[misc]
        class Scripted:
            def __init__(self, turns: Sequence[Sequence[Step]]) -> None:
                self.turns = list(turns)

            @component.output_types(replies=list[ChatMessage])  # type: ignore[misc]
            def run(
                self,
                messages: list[ChatMessage],
                streaming_callback: Any = None,
                generation_kwargs: Any = None,
                tools: Any = None,
            ) -> dict[str, Any]:
                said: list[str] = []
                calls = []
                for step in self.turns.pop(0):
                    if isinstance(step, str):
                        said.append(step)
                        streaming_callback(StreamingChunk(step))
                    elif isinstance(step, int):
                        calls.append(ToolCall("nothing", {"n": step}, id=f"call-{step}"))
                    else:
                        step()
                return {"replies": [ChatMessage.from_assistant("".join(said) or None, tool_calls=calls)]}

        self._agent, self._model, self._message = Agent, Scripted, ChatMessage
        self._tool = create_tool_from_function(nothing)

    def stream(self, turns: Sequence[Sequence[Step]]) -> Iterator[str]:
        model = self._model(turns)
        agent = self._agent(chat_generator=model, tools=[self._tool], max_agent_steps=len(turns) + 1)
        message = self._message.from_user("go")
        return bridged(
            lambda send: agent.run([message], streaming_callback=lambda chunk: chunk.content and send(chunk.content))
        )


def bridged(run: Callable[[Callable[[str], object]], object]) -> Iterator[str]:
    """What ``run`` sends from a thread of its own, as an iterator."""
    texts: queue.Queue[str | None] = queue.Queue(128)

    def work() -> None:
        try:
            run(texts.put)
        finally:
            texts.put(None)

    threading.Thread(target=work, daemon=True).start()
    while (text := texts.get()) is not None:
        yield text


def installed() -> Iterator[AgentPeer]:
    """Those that are there, with a line for each that is not."""
    for kind in (Agno, Haystack):
        try:
            yield kind()
        except Exception as error:  # also what is installed, but does not go with this Python
            print(f"skipped {kind.name}: {error}")


if __name__ == "__main__":
    for peer in installed():
        texts = list(peer.stream([["one ", 1], ["two"]]))
        assert texts[0] == "one " and texts[-1] == "two", (peer.name, texts)  # noqa: PT018
        print(f"compared by runtime.py --peers: {peer.name}")
