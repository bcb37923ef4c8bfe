"""An agent for the workers of engines, which import it by its name. It does what the prompt says."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from channels import Cancelled, Channel
from runtime import Agent, TextDelta, ToolCallDelta, ToolContext, tool

FORM = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


def note(directory: str, name: str) -> None:
    """Leave a line with the id of this process in a file."""
    with open(Path(directory) / name, "a") as file:
        file.write(f"{os.getpid()}\n")


@dataclass
class Number:
    """An output type."""

    n: int


@tool(read_only=True)
def ask(context: ToolContext) -> str:
    """Asks for a number."""
    return f"{context.elicit('How many?', FORM).content['n']} in {os.getpid()}"


@tool(read_only=True)
def hang(context: ToolContext, directory: str) -> str:
    """Waits until it is cancelled."""
    note(directory, "begun")
    try:
        Channel().recv(timeout=60, cancel=context.cancel)
    except Cancelled:
        note(directory, "cancelled")
        raise
    return "nobody has cancelled it"


class Model:
    """Calls the tool that the prompt names, or says so many words, or the JSON that the prompt is, or waits or computes
    for so many milliseconds.
    """

    id = "model"

    def stream(self, messages: Any, tools: Any, *, cancel: Any) -> Iterator[Any]:
        last = messages[-1]
        if last.role == "tool":
            yield TextDelta(last.content)
            return
        what, _, more = last.content.partition(" ")
        if what == "ask":
            yield ToolCallDelta(0, "call-1", "ask", {})
        elif what == "hang":
            yield ToolCallDelta(0, "call-1", "hang", {"directory": more})
        elif what.startswith("{"):
            yield TextDelta(last.content)
        elif what == "wait":  # as for a model on the network
            time.sleep(float(more) / 1e3)
            yield TextDelta("waited")
        elif what == "compute":
            until = time.thread_time() + float(more) / 1e3
            while time.thread_time() < until:
                sum(range(100))
            yield TextDelta("computed")
        elif what == "fail":
            raise ValueError("as the prompt says")
        else:
            yield from (TextDelta(f"{number} ") for number in range(int(more)))
            yield TextDelta(f"in {os.getpid()}")


agent = Agent("worker", Model(), tools=[ask, hang])
