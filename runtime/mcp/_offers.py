"""What a server offers beside tools: resources, which are read, and prompts, which are filled in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .._dataclasses import dataclass
from ..agent._tool import ToolResult
from ..session._message import Message
from ._content import result_of

if TYPE_CHECKING:
    from mcp import Client

    from ._connection import Send


@dataclass(frozen=True, slots=True)
class Resource:
    """A resource of a server, which can be read. The address of a template has ``{names}``, which have to be filled
    in."""

    uri: str
    name: str
    description: str = ""
    media_type: str = ""
    is_template: bool = False


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt that a server offers. ``arguments`` may be filled in; those in ``required`` have to be."""

    name: str
    description: str = ""
    arguments: tuple[str, ...] = ()
    required: tuple[str, ...] = ()


def list_resources() -> Send:
    """What lists the resources and the templates of a server."""

    async def send(client: Client, call: Any) -> list[Resource]:
        from mcp import MCPError
        from mcp.types import METHOD_NOT_FOUND

        from ._connection import pages

        found = [
            Resource(str(each.uri), each.name, each.description or "", each.mime_type or "")
            for each in await pages(client.list_resources, "resources")
        ]
        try:
            templates = await pages(client.list_resource_templates, "resource_templates")
        except MCPError as error:
            if error.code != METHOD_NOT_FOUND:
                raise
            templates = []
        return found + [
            Resource(each.uri_template, each.name, each.description or "", each.mime_type or "", True)
            for each in templates
        ]

    return send


def read_resource(uri: str) -> Send:
    """What reads a resource."""

    async def send(client: Client, call: Any) -> Any:
        return await client.read_resource(uri)

    return send


def list_prompts() -> Send:
    """What lists the prompts of a server."""

    async def send(client: Client, call: Any) -> list[Prompt]:
        from ._connection import pages

        return [
            Prompt(
                each.name,
                each.description or "",
                tuple(argument.name for argument in each.arguments or ()),
                tuple(argument.name for argument in each.arguments or () if argument.required),
            )
            for each in await pages(client.list_prompts, "prompts")
        ]

    return send


def get_prompt(name: str, arguments: Mapping[str, str]) -> Send:
    """What fills in a prompt."""

    async def send(client: Client, call: Any) -> Any:
        return await client.get_prompt(name, dict(arguments))

    return send


def read(answer: Any) -> ToolResult:
    """What was read, as a model gets it: texts as they are, a line for each of the rest, and the images."""
    return result_of(_Content([_Embedded(each) for each in answer.contents]))


def messages_of(answer: Any) -> list[Message]:
    """The messages of a prompt, to begin a session with."""
    made = []
    for each in answer.messages:
        result = result_of(_Content([each.content]))
        images = result.images if each.role == "user" else ()
        made.append(Message(each.role, result.content, images=images))
    return made


class _Content:
    """As `result_of` takes the result of a call."""

    structured_content = None
    is_error = False

    def __init__(self, content: list[Any]) -> None:
        self.content = content


class _Embedded:
    type = "resource"

    def __init__(self, resource: Any) -> None:
        self.resource = resource


def listed(resources: list[Resource]) -> str:
    """The resources, a line for each, for a model."""
    lines = [_line(each.uri, each.name, each.description, each.media_type) for each in resources]
    return "\n".join(lines) or "[there are none]"


def listed_prompts(prompts: list[Prompt]) -> str:
    """The prompts, a line for each, for a model."""
    lines = []
    for each in prompts:
        arguments = ", ".join(name if name in each.required else f"{name}?" for name in each.arguments)
        lines.append(_line(f"{each.name}({arguments})", "", each.description, ""))
    return "\n".join(lines) or "[there are none]"


def said(messages: list[Message]) -> str:
    """The messages of a prompt as one text."""
    if len(messages) == 1:
        return messages[0].content
    return "\n\n".join(f"{each.role}: {each.content}" for each in messages)


def _line(what: str, name: str, description: str, media_type: str) -> str:
    note = ": ".join(" ".join(each.split()) for each in (name if name != what else "", description) if each)
    return " - ".join(each for each in (what, media_type, note) if each)
