"""What users import says that it is from where they import it."""

from __future__ import annotations

import dataclasses
import pickle
import typing
from types import FunctionType

import pytest

import channels
import runtime


@pytest.mark.parametrize("package", [channels, runtime], ids=["channels", "runtime"])
def test_public_objects_say_their_public_module(package: typing.Any) -> None:
    for name in package.__all__:
        value = getattr(package, name)
        if isinstance(value, (type, FunctionType)):
            assert value.__module__ == package.__name__, name
            assert pickle.loads(pickle.dumps(value)) is value


def test_annotations_of_public_dataclasses_can_still_be_read() -> None:
    """As pydantic does: names are looked up in the module that a class says it is of."""
    for name in runtime.__all__:
        value = getattr(runtime, name)
        if isinstance(value, type) and dataclasses.is_dataclass(value):
            typing.get_type_hints(value)
    pydantic = pytest.importorskip("pydantic", reason="comes with the extras openai, anthropic and mcp")
    made = pydantic.TypeAdapter(runtime.Message).validate_python({"role": "user", "content": "hello"})
    assert made.content == "hello"
