"""Three agents on one question: the first good answer wins, the others are cancelled and bill nothing more.

python examples/race.py
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack

from channels import CancelToken, merge
from runtime import Agent, Delta, Message, Runtime, Session, TextDelta, ToolDefinition, UsageDelta
from runtime.events import StreamStopped


class Thinker:
    """Stands in for a model over the network: it says a word every so often, and is paid by the word."""

    def __init__(self, id: str, seconds: float, text: str) -> None:
        self.id = id
        self.seconds = seconds
        self.text = text

    async def stream(
        self, messages: Sequence[Message], tools: Sequence[ToolDefinition], *, cancel: CancelToken
    ) -> AsyncIterator[Delta]:
        for count, word in enumerate(self.text.split(), 1):
            await asyncio.sleep(self.seconds)
            yield UsageDelta(output_tokens=count)
            yield TextDelta(word + " ")


agents = [
    Agent("hasty", Thinker("hasty", 0.01, "About four hundred.")),
    Agent("careful", Thinker("careful", 0.03, "Seven times 23 is 161, ten times 23 is 230, so it is 391.")),
    Agent("thorough", Thinker("thorough", 0.25, "Let us begin with what a number is. " * 10)),
]


def good(answer: str) -> bool:
    """Whether it is what we want to hear."""
    return str(17 * 23) in answer


def main() -> None:
    sessions = [Session.from_user("What is 17 times 23?") for _ in agents]
    winner = None
    with ExitStack() as stack:  # leaving it cancels what still runs, and waits for its end
        streams = []
        for agent, session in zip(agents, sessions, strict=True):
            runtime = stack.enter_context(Runtime(agent))
            streams.append(stack.enter_context(runtime.run_stream(session)))
        for index, event in merge(*streams, cancel=CancelToken(timeout=30)):
            if isinstance(event, StreamStopped) and event.reason == "normal":
                answer = streams[index].result().text
                print(f"{agents[index].name}: {answer}")
                if good(answer):
                    winner = agents[index].name
                    break
        for stream in streams:
            stream.cancel("somebody else was first")  # all at once, rather than one after the other
    print(f"The winner is {winner}." if winner else "Nobody knows.")
    for agent, session in zip(agents, sessions, strict=True):
        print(f"{agent.name} is paid for {session.usage.output_tokens} words.")


if __name__ == "__main__":
    main()
