"""Follows the references of a JSON schema, inside the schema itself: nothing is ever fetched."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

_STEPS: Final = 8  # references and branches behind each other: a schema may lead in a circle


def target_of(reference: object, root: object) -> Any:
    """What a ``$ref`` leads to in the schema ``root``; None where it leads nowhere, or out of it."""
    if not isinstance(reference, str) or not (reference == "#" or reference.startswith("#/")):
        return None
    node: Any = root
    for step in reference.split("/")[1:]:
        if "%" in step:
            from urllib.parse import unquote  # slow to import, and seldom needed

            step = unquote(step)
        step = step.replace("~1", "/").replace("~0", "~")
        if isinstance(node, Mapping) and step in node:
            node = node[step]
        elif isinstance(node, list) and step.isascii() and step.isdigit() and int(step[:9]) < len(node):
            node = node[int(step[:9])]
        else:
            return None
    return node


def resolved(schema: object, root: object) -> dict[str, Any]:
    """``schema``, a part of ``root``, with its reference followed, and without the null that makes it optional.

    Its own title, description and default stay. What is no schema is an empty one, which says nothing.
    """
    node: Mapping[str, Any] = schema if isinstance(schema, Mapping) else {}
    own = {key: node[key] for key in ("title", "description", "default") if node.get(key) is not None}
    for _ in range(_STEPS):
        if "$ref" in node:
            target = target_of(node["$ref"], root)
        else:
            target = _only_branch(node)
            if target is None:
                break
        node = target if isinstance(target, Mapping) else {}
    kinds = node.get("type")
    if isinstance(kinds, list):
        node = {key: each for key, each in node.items() if key != "type"}
        real = [kind for kind in kinds if isinstance(kind, str) and kind != "null"]
        if len(real) == 1:
            node["type"] = real[0]
    return {**node, **own}


def _only_branch(schema: Mapping[str, Any]) -> Any:
    """The branch that is left of a choice without its null; None where it is no such choice."""
    branches = schema.get("anyOf") or schema.get("oneOf")
    if not isinstance(branches, list):
        return None
    real = [branch for branch in branches if not (isinstance(branch, Mapping) and branch.get("type") == "null")]
    if len(real) != 1 or not isinstance(real[0], Mapping):
        return None
    # One constant alone is a choice that somebody gave a title to, not something optional.
    return None if len(branches) == 1 and "const" in real[0] else real[0]
