"""Finding the agent that the command line names."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import os
import sys
import traceback
from pathlib import Path
from types import ModuleType

from .._errors import MissingExtra
from ..agent._agent import Agent, Team
from ..model import Model
from ..recording._recording import Recording

DEFAULT = "agent"
_MODELS = "A model is named as the path of a GGUF file, as openai/NAME or as anthropic/NAME."


class CannotLoad(Exception):
    """There is no such agent, or it cannot be used; the text is one line and says what to do."""


def load(name: str, model: str | None = None) -> Team:
    """The agent or team ``name``: ``file.py``, ``file.py:attribute``, ``module`` or ``module:attribute``.

    ``model`` takes the place of its models, as in `with_model`. Raises `CannotLoad`.
    """
    source, attribute = _split(name)
    module = _run_file(source) if source.endswith(".py") else _import(source)
    try:
        found = getattr(module, attribute)
    except AttributeError:
        others = [key for key, value in vars(module).items() if isinstance(value, (Agent, Team))]
        hint = f"there is {source}:{others[0]}" if others else f"add a line such as: {attribute} = Agent(...)"
        raise CannotLoad(f"{source} has no {attribute!r}; {hint}") from None
    if not isinstance(found, (Agent, Team)):
        raise CannotLoad(f"{source}:{attribute} is of type {type(found).__name__}, not an Agent or a Team")
    team = found if isinstance(found, Team) else Team((found,))
    if model is not None:
        team = with_model(team, model)
    return team


def _split(name: str) -> tuple[str, str]:
    source, colon, attribute = name.rpartition(":")
    return (source, attribute) if colon and attribute.isidentifier() else (name, DEFAULT)


def _run_file(source: str) -> ModuleType:
    path = Path(source)
    if not path.is_file():
        raise CannotLoad(f"there is no file {source}; name a Python file that defines {DEFAULT!r}, or module:attribute")
    # As `python file.py` does it, so that the file can import its neighbours.
    sys.path.insert(0, str(path.resolve().parent))
    spec = importlib.util.spec_from_file_location(f"lockgate_agent_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise _explained(error, source, path) from error
    return module


def _import(source: str) -> ModuleType:
    if not source or source.startswith("."):
        what = f"a Python file that defines {DEFAULT!r}, or module:attribute"
        raise CannotLoad(f"an agent must be {what}, not {source!r}")
    sys.path.insert(0, os.getcwd())
    try:
        return importlib.import_module(source)
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and f"{source}.".startswith(f"{error.name}."):
            hint = f"; a file is named with its ending: {source}.py" if Path(f"{source}.py").is_file() else ""
            raise CannotLoad(f"there is no module {error.name!r} here{hint}") from None
        raise _explained(error, source, None) from error


def with_model(team: Team, name: str) -> Team:
    """``team`` with another model for each agent: a GGUF file, ``openai/NAME`` or ``anthropic/NAME``. Raises
    `CannotLoad`.
    """
    from ..models.local._model import ModelUnavailable

    try:
        model = _model(name)
    except (MissingExtra, ModelUnavailable, ValueError) as error:
        known = isinstance(error, MissingExtra) or name.endswith(".gguf") or Path(name).exists()
        hint = "" if known else f" {_MODELS}"
        raise CannotLoad(f"{_one_line(error)}{hint}") from error
    return team.map(lambda agent: dataclasses.replace(agent, model=model))


def _model(name: str) -> Model:
    provider, _, rest = name.partition("/")
    if provider == "openai" and rest and not Path(name).exists():
        from ..models.openai import OpenAIModel

        return OpenAIModel(rest)
    if provider == "anthropic" and rest and not Path(name).exists():
        from ..models.anthropic import AnthropicModel

        return AnthropicModel(rest)
    from ..models.local._model import LocalModel

    return LocalModel(name)


def replayed(team: Team, recording: Recording, *, live_tools: bool) -> Team:
    """``team`` with what its models said in the record and, without ``live_tools``, what its tools gave back."""
    from ..models.replay import ReplayModel

    return ReplayModel(recording).team(team, live_tools=live_tools)


def with_recorded_tools(team: Team, recording: Recording) -> Team:
    """``team`` with the tools of the record, which give the results of then, and models of its own."""
    return team.map(lambda agent: dataclasses.replace(agent, tools=recording.tools(agent.name), toolsets=()))


def _explained(error: BaseException, source: str, path: Path | None) -> CannotLoad:
    """The error that a module raised when it ran, with the line of it."""
    if isinstance(error, MissingExtra) or type(error).__name__ == "ModelUnavailable":
        return CannotLoad(_one_line(error))
    place = source
    if isinstance(error, SyntaxError):
        line = "" if error.lineno is None else f", line {error.lineno}"
        return CannotLoad(f"{error.filename or source}{line}: {error.msg}")
    for frame in traceback.extract_tb(error.__traceback__):
        if path is not None and Path(frame.filename).resolve() == path.resolve():
            place = f"{source}, line {frame.lineno}"
    if isinstance(error, SystemExit):  # whose status would pass for that of a run
        hint = "what a script does by itself belongs below: if __name__ == '__main__':"
        return CannotLoad(f"{place}: the program ends itself when it is loaded; {hint}")
    return CannotLoad(f"{place}: {type(error).__name__}: {_one_line(error)}")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
