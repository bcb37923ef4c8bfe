"""A server asks the model of the agent that calls it (sampling): what it asks, and what it is told."""

from __future__ import annotations

import base64
import binascii
from typing import Any, Final

from mcp.types import (
    CreateMessageRequestParams,
    CreateMessageResult,
    ErrorData,
    SamplingMessage,
    TextContent,
)

from .._errors import RunError
from ..agent._agent import Agent
from ..agent._tool_context import ToolContext
from ..session._message import Image, Message
from ..session._session import Session
from ._content import picture

REJECTED: Final = -1  # the code of a request that the user has refused
FAILED: Final = -32603
SHOWN: Final = 1000  # characters of what is asked that the user is shown


def sampled(params: CreateMessageRequestParams, server: str, context: ToolContext) -> CreateMessageResult | ErrorData:
    """What the model of the calling agent replies, once the user has approved of asking it."""
    answer = context.elicit(_question(params, server), {"type": "object", "properties": {}})
    if not answer.accepted:
        return ErrorData(code=REJECTED, message=answer.note or "the user does not want the model to be asked")
    model = context.model
    messages = [_message(each) for each in params.messages]
    # No tools of the agent's: a server could have them called by what it makes the model say.
    agent = Agent(f"{context.agent_name}-for-{server}", model, instructions=params.system_prompt or "")
    try:
        result = context.run_agent(agent, Session(messages))
    except RunError as error:
        return ErrorData(code=FAILED, message=f"the model could not be asked: {error}")
    return CreateMessageResult(
        role="assistant", content=TextContent(type="text", text=result.text), model=model.id, stop_reason="endTurn"
    )


def _question(params: CreateMessageRequestParams, server: str) -> str:
    last = params.messages[-1] if params.messages else None
    said = "\n".join(_text(block) for block in _blocks(last)) if last is not None else ""
    if len(said) > SHOWN:
        said = f"{said[:SHOWN]} [... {len(said) - SHOWN} characters more]"
    return f"{server} wants to ask the model: {said}\nIs that all right? Its reply goes to {server}."


def _message(message: SamplingMessage) -> Message:
    texts: list[str] = []
    images: list[Image] = []
    for block in _blocks(message):
        if (image := _image(block)) is not None and message.role == "user":
            images.append(image)
        texts.append(_text(block))
    return Message(message.role, "\n".join(texts), images=tuple(images))


def _blocks(message: SamplingMessage | None) -> list[Any]:
    content: Any = [] if message is None else message.content
    return content if isinstance(content, list) else [content]


def _text(block: Any) -> str:
    return block.text if block.type == "text" else f"[{block.type}]"


def _image(block: Any) -> Image | None:
    if block.type != "image":
        return None
    try:
        data = base64.b64decode(block.data, validate=True)
    except (binascii.Error, ValueError):
        return None
    kind = picture(data)
    return None if kind is None else Image(data, kind)
